"""Masks as run lengths, worked on without unfolding them: what is done to an image of 100 megapixels costs what the
outline of the mask costs.

Three forms of one mask of size (H, W), all column by column (down, then right), as COCO has it:
- RLE: COCO's {"size": [H, W], "counts": str}, for JSON and for keeping;
- runs: (N,) int64, lengths of the runs that alternate between background and mask, beginning with background; only the
  first may be 0, and together they cover H x W;
- spans: (N, 2) int64, the start and the end (exclusive) of each run of the mask, rising, with gaps between.

pycocotools counts in 32 bits and reads past the end of damaged data; here numbers have 64 bits and data are checked.
Sizes are (H, W), boxes x0 y0 x1 y1 with an exclusive right and bottom edge.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from anysam.errors import OptionError

Rle = Mapping[str, Any]
Box = tuple[int, int, int, int]

MAX_PIXELS = 2**58  # of a size: its run lengths then fit into 60 bits with a sign, and sums into int64
_CHARACTER = 48  # COCO writes five bits a character, starting at "0"
_MAX_CHARACTERS = 12  # of a number: 60 bits


def mask_to_runs(mask: np.ndarray) -> np.ndarray:
    """Run lengths (N,) int64 of a mask (H, W) bool. Raises OptionError for anything but a bool array (H, W)."""
    if not isinstance(mask, np.ndarray) or mask.ndim != 2 or mask.dtype != np.bool_:
        found = f"{mask.dtype} {mask.shape}" if isinstance(mask, np.ndarray) else type(mask).__name__
        raise OptionError(f"A mask must be a bool array (H, W), got {found}; compare with a threshold first.")
    if not mask.size:
        return np.zeros(1, dtype=np.int64)
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return np.array([mask.size], dtype=np.int64)
    # Most masks fill a small part of their image: only the columns in their box are laid out anew.
    first, last = int(columns[0]), int(columns[-1]) + 1
    flat = mask[:, first:last].ravel(order="F")
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    begin = [0] if flat[0] else []
    end = [len(flat)] if flat[-1] else []
    edges = np.concatenate([begin, changes, end]).astype(np.int64) + first * len(mask)
    return spans_to_runs(edges.reshape(-1, 2), mask.size)


def runs_to_mask(runs: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The mask (H, W) bool of run lengths (N,) that cover `size` (H, W). Raises OptionError when they do not."""
    runs = _check_runs(runs, size)
    values = np.arange(len(runs)) % 2 == 1  # runs alternate, beginning with background
    return np.repeat(values, runs).reshape(size, order="F")  # (H, W)


def runs_to_counts(runs: np.ndarray) -> str:
    """COCO's counts string of run lengths (N,).

    Each number is signed, five bits a character, low bits first, a sixth bit says that more follow; from the fourth
    run on the difference to the run two before is stored.
    """
    runs = np.asarray(runs, dtype=np.int64)
    numbers = runs.copy()
    numbers[3:] -= runs[1:-2]
    magnitude = np.where(numbers < 0, ~numbers, numbers)
    lengths = np.ones(len(numbers), dtype=np.int64)
    for characters in range(1, _MAX_CHARACTERS + 1):
        larger = magnitude >= 1 << (5 * characters - 1)  # the highest bit is the sign's
        if not larger.any():
            break
        lengths += larger
    ends = np.cumsum(lengths)
    place = np.arange(int(lengths.sum())) - np.repeat(ends - lengths, lengths)
    codes = (np.repeat(numbers, lengths) >> (5 * place)) & 0x1F
    codes |= 0x20
    codes[ends - 1] &= 0x1F
    return (codes + _CHARACTER).astype(np.uint8).tobytes().decode("ascii")


def counts_to_runs(counts: str | bytes) -> np.ndarray:
    """Run lengths (N,) int64 of COCO's counts string, see `runs_to_counts`.

    Raises OptionError for a string that breaks off or has foreign characters. Whether the lengths fit a size is
    checked by `read_rle`.
    """
    try:
        data = counts.encode("ascii") if isinstance(counts, str) else counts
        codes = np.frombuffer(data, dtype=np.uint8).astype(np.int64) - _CHARACTER
    except UnicodeEncodeError as error:
        raise OptionError(_not_rle("the counts have foreign characters")) from error
    if not len(codes):
        return codes
    last = (codes & 0x20) == 0  # the character that ends a number
    if (codes < 0).any() or (codes > 63).any():
        raise OptionError(_not_rle("the counts have foreign characters"))
    if not last[-1]:
        raise OptionError(_not_rle("the counts break off"))
    ends = np.flatnonzero(last)
    starts = np.concatenate(([0], ends[:-1] + 1))
    lengths = ends - starts + 1
    if lengths.max() > _MAX_CHARACTERS:
        raise OptionError(_not_rle("a run length has more than 60 bits"))
    place = np.arange(len(codes)) - np.repeat(starts, lengths)
    numbers = np.add.reduceat((codes & 0x1F) << (5 * place), starts)
    negative = (codes[ends] & 0x10) != 0
    numbers[negative] -= np.int64(1) << (5 * lengths[negative])
    numbers[1::2] = np.cumsum(numbers[1::2])
    numbers[2::2] = np.cumsum(numbers[2::2])
    return numbers


def read_rle(rle: Rle) -> tuple[np.ndarray, tuple[int, int]]:
    """Run lengths (N,) int64 and the size (H, W) of COCO's RLE; "counts" is its string, bytes or a list of lengths.

    Raises OptionError when the data are no RLE, or the lengths do not add up to H x W.
    """
    try:
        height, width = (int(side) for side in rle["size"])
        counts = rle["counts"]
        if not isinstance(counts, (str, bytes)):
            runs = np.asarray(counts, dtype=np.int64).reshape(-1)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise OptionError(_not_rle("its size or its counts are missing or of another kind")) from error
    if isinstance(counts, (str, bytes)):
        runs = counts_to_runs(counts)
    return _check_runs(runs, (height, width)), (height, width)


def write_rle(runs: np.ndarray, size: tuple[int, int]) -> dict[str, Any]:
    """COCO's RLE of run lengths (N,) and a size (H, W), ready for JSON."""
    return {"size": [int(side) for side in size], "counts": runs_to_counts(runs)}


def runs_to_spans(runs: np.ndarray) -> np.ndarray:
    """Run lengths (N,) -> spans (M, 2) int64 of the mask."""
    edges = np.cumsum(np.asarray(runs, dtype=np.int64))
    if len(edges) % 2:  # the last run is background
        edges = edges[:-1]
    return edges.reshape(-1, 2)  # (M, 2)


def spans_to_runs(spans: np.ndarray, pixels: int) -> np.ndarray:
    """Spans (M, 2) in an image of H x W `pixels` -> run lengths (N,) int64."""
    edges = np.asarray(spans, dtype=np.int64).reshape(-1)  # (2M,)
    if len(edges) and edges[-1] == pixels:
        return np.diff(edges, prepend=0)
    return np.diff(edges, prepend=0, append=pixels)


def area(rle: Rle) -> int:
    """Number of pixels set. Raises OptionError for damaged data, as all that read an RLE."""
    runs, _ = read_rle(rle)
    return int(runs[1::2].sum())


def box(rle: Rle) -> Box | None:
    """Tight box of a mask: x0 y0 x1 y1 with exclusive right and bottom; None when it is empty."""
    runs, size = read_rle(rle)
    return spans_to_box(runs_to_spans(runs), size[0])


def spans_to_box(spans: np.ndarray, height: int) -> Box | None:
    """Tight box x0 y0 x1 y1 of spans (N, 2) in an image that is `height` high; None when there are none."""
    spans = spans[spans[:, 0] < spans[:, 1]]
    if not len(spans):
        return None
    (first, top), (last, bottom) = np.divmod(spans[:, 0], height), np.divmod(spans[:, 1] - 1, height)
    if (first != last).any():  # a run over the end of a column touches the top and the bottom
        return int(first[0]), 0, int(last[-1]) + 1, height
    return int(first[0]), int(top.min()), int(last[-1]) + 1, int(bottom.max()) + 1


def place(rle: Rle, offset: tuple[int, int], size: tuple[int, int]) -> dict[str, Any]:
    """The mask of a part of an image as the mask of the image.

    offset: x0 y0 of the part. size: (H, W) of the image. Raises OptionError when the part does not lie in the image.
    """
    runs, (height, width) = read_rle(rle)
    spans = place_spans(runs_to_spans(runs), (height, width), offset, size)
    return write_rle(spans_to_runs(spans, size[0] * size[1]), size)


def place_spans(
    spans: np.ndarray, part_size: tuple[int, int], offset: tuple[int, int], size: tuple[int, int]
) -> np.ndarray:
    """Spans (N, 2) of a part of an image -> spans (M, 2) of the image, as `place`."""
    (x0, y0), (height, width) = offset, part_size
    if min(x0, y0) < 0 or x0 + width > size[1] or y0 + height > size[0]:
        raise OptionError(
            f"A mask of {width}x{height} pixels at x {x0}, y {y0} does not lie in an image of {size[1]}x{size[0]}."
        )
    column, top, bottom = column_spans(spans, height)
    base = (column + x0) * size[0] + y0
    return _join(base + top, base + bottom)


def crop(rle: Rle, box: Box) -> dict[str, Any]:
    """The part of a mask inside a box x0 y0 x1 y1, as the RLE of a mask (y1 - y0, x1 - x0).

    Raises OptionError when the box does not lie in the image.
    """
    runs, size = read_rle(rle)
    x0, y0, x1, y1 = box
    spans = crop_spans(runs_to_spans(runs), size, box)
    return write_rle(spans_to_runs(spans, (y1 - y0) * (x1 - x0)), (y1 - y0, x1 - x0))


def window(rle: Rle, box: Box) -> np.ndarray:
    """The part of a mask inside a box x0 y0 x1 y1, (y1 - y0, x1 - x0) bool; nothing outside it is unfolded.

    Raises OptionError when the box does not lie in the image.
    """
    part = crop(rle, box)
    return runs_to_mask(counts_to_runs(part["counts"]), tuple(part["size"]))


def crop_spans(spans: np.ndarray, size: tuple[int, int], box: Box) -> np.ndarray:
    """Spans (N, 2) of an image of `size` (H, W) -> spans (M, 2) of the part of it inside a box x0 y0 x1 y1."""
    (x0, y0, x1, y1), (height, width) = box, size
    if not (0 <= x0 <= x1 <= width and 0 <= y0 <= y1 <= height):
        raise OptionError(f"A window must lie in the image of {width}x{height} pixels, got x0 y0 x1 y1 {list(box)}.")
    # Spans of the columns x0..x1 only, so that a small window of a large mask is quick.
    first = int(np.searchsorted(spans[:, 1], x0 * height, side="right"))
    stop = int(np.searchsorted(spans[:, 0], x1 * height, side="left"))
    column, top, bottom = column_spans(np.clip(spans[first:stop], x0 * height, x1 * height), height)
    top, bottom = np.maximum(top, y0) - y0, np.minimum(bottom, y1) - y0
    inside = top < bottom
    base = (column[inside] - x0) * (y1 - y0)
    return _join(base + top[inside], base + bottom[inside])


def union(rles: Sequence[Rle]) -> dict[str, Any]:
    """The pixels set in at least one of several masks of one size. Raises OptionError for none, or other sizes."""
    spans, size = _read_all(rles)
    return write_rle(spans_to_runs(spans_union(spans), size[0] * size[1]), size)


def intersection(rles: Sequence[Rle]) -> dict[str, Any]:
    """The pixels set in all of several masks of one size. Raises OptionError for none, or other sizes."""
    spans, size = _read_all(rles)
    return write_rle(spans_to_runs(_at_least(spans, len(rles)), size[0] * size[1]), size)


def intersection_area(a: Rle, b: Rle) -> int:
    """Number of pixels set in both of two masks of one size. Raises OptionError for other sizes."""
    (spans_a, spans_b), _ = _read_all([a, b])
    return spans_intersection(spans_a, spans_b)


def iou(a: Rle, b: Rle) -> float:
    """Intersection over union of two masks of one size, 0 to 1; 1.0 when both are empty."""
    (spans_a, spans_b), _ = _read_all([a, b])
    common = spans_intersection(spans_a, spans_b)
    either = spans_area(spans_a) + spans_area(spans_b) - common
    return common / either if either else 1.0


def spans_area(spans: np.ndarray) -> int:
    """Number of pixels in spans (N, 2)."""
    return int((spans[:, 1] - spans[:, 0]).sum())


def spans_intersection(a: np.ndarray, b: np.ndarray) -> int:
    """Number of pixels in both of spans (N, 2) and (M, 2)."""
    if len(a) < len(b):
        a, b = b, a
    if not len(b):
        return 0
    before = np.concatenate(([0], np.cumsum(a[:, 1] - a[:, 0])))  # pixels of `a` before each of its spans

    def covered(position: np.ndarray) -> np.ndarray:
        index = np.searchsorted(a[:, 0], position, side="right")  # spans of `a` that begin up to there
        inside = np.minimum(position, a[index - 1, 1]) - a[index - 1, 0]
        return np.where(index > 0, before[index - 1] + inside, 0)

    return int((covered(b[:, 1]) - covered(b[:, 0])).sum())


def spans_union(spans: Sequence[np.ndarray]) -> np.ndarray:
    """The pixels in at least one of several spans (N, 2), at least one of them given -> spans (M, 2)."""
    return _at_least(spans, 1)


def spans_difference(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The pixels in spans (N, 2) but not in spans (M, 2), as spans (K, 2)."""
    if not len(a) or not len(b):
        return a
    edges = np.concatenate([[0], b.ravel(), [max(a[-1, 1], b[-1, 1])]])
    return _at_least([a, edges.reshape(-1, 2)], 2)


def _at_least(spans: Sequence[np.ndarray], times: int) -> np.ndarray:
    """The pixels that lie in at least `times` of several lists of spans, as spans (N, 2)."""
    starts = np.sort(np.concatenate([each[:, 0] for each in spans]))
    ends = np.sort(np.concatenate([each[:, 1] for each in spans]))
    edges = np.concatenate([starts, ends])
    order = np.argsort(edges, kind="stable")  # at one position spans begin before others end: touching spans join
    depth = np.cumsum(np.where(order < len(starts), 1, -1))
    enough = depth >= times
    opens = enough & ~np.concatenate(([False], enough[:-1]))
    closes = ~enough & np.concatenate(([False], enough[:-1]))
    edges = edges[order]
    return _join(edges[opens], edges[closes])


def column_spans(spans: np.ndarray, height: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cut spans (N, 2) at the ends of columns: the column, and the first row and the end in it, (M,) int64 each."""
    spans = spans[spans[:, 0] < spans[:, 1]]
    if not len(spans):
        return (np.zeros(0, dtype=np.int64),) * 3
    first, last = spans[:, 0] // height, (spans[:, 1] - 1) // height
    number = last - first + 1
    column = np.repeat(first - np.cumsum(number) + number, number) + np.arange(int(number.sum()))
    top = np.maximum(np.repeat(spans[:, 0], number) - column * height, 0)
    bottom = np.minimum(np.repeat(spans[:, 1], number) - column * height, height)
    return column, top, bottom


def _join(starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Starts and ends, rising, without overlap -> spans (N, 2) with gaps between and none empty."""
    filled = starts < ends
    starts, ends = starts[filled], ends[filled]
    gap = starts[1:] > ends[:-1]
    first, last = np.ones(len(starts), dtype=bool), np.ones(len(starts), dtype=bool)
    first[1:], last[:-1] = gap, gap
    return np.stack([starts[first], ends[last]], axis=1)  # (N, 2)


def _read_all(rles: Sequence[Rle]) -> tuple[list[np.ndarray], tuple[int, int]]:
    """The spans of several masks, and their one size."""
    if not rles:
        raise OptionError("At least one mask is needed, got none.")
    read = [read_rle(rle) for rle in rles]
    sizes = {size for _, size in read}
    if len(sizes) > 1:
        raise OptionError(f"Masks of different sizes cannot be compared, got {sorted(sizes)} (H, W).")
    return [runs_to_spans(runs) for runs, _ in read], read[0][1]


def _check_runs(runs: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    height, width = size
    pixels = height * width
    if min(height, width) < 0 or pixels > MAX_PIXELS:
        raise OptionError(f"A mask of {width}x{height} pixels is not accepted; at most {MAX_PIXELS:,} pixels are.")
    runs = np.asarray(runs, dtype=np.int64)
    ends = np.cumsum(runs)
    # Of sums that wrap around, one before it does is above `pixels`: nothing hides.
    if (runs < 0).any() or (runs > pixels).any() or (ends > pixels).any() or (ends[-1] if len(ends) else 0) != pixels:
        covered = sum(runs.tolist())
        raise OptionError(
            f"The mask's run lengths cover {covered} pixels but its size {width}x{height} has {pixels}; "
            "the data is damaged or belongs to another image."
        )
    if (runs[1:] == 0).any():  # allowed in COCO, written by some: two neighbours are one run
        starts, stops = (edge for edge in runs_to_spans(runs).T)
        return spans_to_runs(_join(starts, stops), pixels)
    return runs


def _not_rle(reason: str) -> str:
    return (
        'The mask is not COCO run-length data: {"size": [H, W], "counts": ...} with unbroken counts is accepted, '
        f"but {reason}."
    )
