"""Masks that overlap -> masks that do not: each pixel in at most one, without specks.

Smaller masks lie on top of larger ones, as the published notebooks paint them, so that what is inside an object stays
visible. (Panoptic FPN, Kirillov et al., 2019, lets the better score win: a plate would then hide the food on it.) From
small to large, each mask takes the pixels that are left of it, but none of its islands below the limit: they are left
to the larger masks beneath. What nobody has in the end and is smaller than the limit is a hole, and goes to the
neighbour with the longest border.

Everything happens on spans (see anysam.rle) and on one map of labels, column by column, a band at a time.
"""

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

from anysam import rle
from anysam.automatic.span_regions import find_regions, join, without_small
from anysam.errors import OptionError
from anysam.results import MaskRecord

# Pixels unfolded at once.
_BAND = 8 * 1024 * 1024


def disjoin(records: Sequence[MaskRecord], min_region_area: int = 0, min_area: int = 0) -> list[MaskRecord]:
    """Records whose masks have no pixel in common; those of which nothing is left are gone, the others in order.

    min_region_area: pixels. Every part of a mask, and every region that no mask has, has at least so many (parts touch
    by sides or corners). min_area: masks of which fewer pixels are visible give them to those beneath.

    A pixel of the masks is in one of the results unless it was in a part below the limit of every mask that had it,
    and not in a hole. What a record says besides its mask is that of the whole mask. The same records in any order
    give the same masks, but for ties: of equal areas the higher predicted IoU is on top, then the first.

    Memory: two bytes a pixel (four from 65,535 records on) and a band. Raises OptionError for masks of different sizes
    or damaged ones.
    """
    spans, size = read_masks(records)
    if not records:
        return []
    labels = np.zeros(size[0] * size[1], dtype=np.uint16 if len(records) < 2**16 - 1 else np.int32)  # columns in turn
    areas = [rle.spans_area(each) for each in spans]
    least = max(1, min_area)
    visible: dict[int, np.ndarray] = {}
    for i in sorted(range(len(records)), key=lambda i: (areas[i], -records[i].predicted_iou, i)):
        left = without_small(_free(spans[i], labels), size[0], min_region_area)
        if rle.spans_area(left) >= least:
            visible[i] = left
            _paint(labels, left, i + 1)
    for i, filled in _fill_holes(labels, size, min_region_area).items():
        visible[i] = join(np.concatenate([visible[i], filled]))
    return [_with_spans(records[i], visible[i], spans[i], size) for i in sorted(visible)]


def read_masks(records: Sequence[MaskRecord]) -> tuple[list[np.ndarray], tuple[int, int]]:
    """The spans (N, 2) of each record's mask, and the one size (H, W) of all; (0, 0) of none.

    Raises OptionError for masks of different sizes or damaged ones.
    """
    read = [rle.read_rle(record.segmentation) for record in records]
    sizes = sorted({size for _, size in read})
    if len(sizes) > 1:
        raise OptionError(f"The records are of images of different sizes, got {sizes} (H, W); refine each image alone.")
    return [rle.runs_to_spans(runs) for runs, _ in read], (sizes[0] if sizes else (0, 0))


def _with_spans(record: MaskRecord, visible: np.ndarray, before: np.ndarray, size: tuple[int, int]) -> MaskRecord:
    if np.array_equal(visible, before):
        return record
    x0, y0, x1, y1 = rle.spans_to_box(visible, size[0]) or (0, 0, 0, 0)
    return dataclasses.replace(
        record,
        segmentation=rle.write_rle(rle.spans_to_runs(visible, size[0] * size[1]), size),
        area=rle.spans_area(visible),
        box=(float(x0), float(y0), float(x1), float(y1)),
    )


def _free(spans: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The part of spans (N, 2) where labels (H * W,) are 0, as spans (M, 2)."""
    found = [np.zeros((0, 2), dtype=np.int64)]
    if len(spans):
        for start, stop in _bands(int(spans[0, 0]), int(spans[-1, 1])):
            found.append(_spans_of(_unfold(spans, start, stop) & (labels[start:stop] == 0)) + start)
    return join(np.concatenate(found))


def _bands(start: int, stop: int) -> Iterator[tuple[int, int]]:
    for low in range(start, stop, _BAND):
        yield low, min(stop, low + _BAND)


def _unfold(spans: np.ndarray, start: int, stop: int) -> np.ndarray:
    """Which positions from start to stop lie in spans (N, 2): (stop - start,) bool."""
    first = np.searchsorted(spans[:, 1], start, side="right")
    last = np.searchsorted(spans[:, 0], stop, side="left")
    edges = np.clip(spans[first:last].reshape(-1), start, stop) - start
    runs = np.diff(edges, prepend=0, append=stop - start)
    return np.repeat(np.arange(len(runs)) % 2 == 1, runs)


def _spans_of(inside: np.ndarray) -> np.ndarray:
    """Spans (N, 2) int64 of a row (M,) bool."""
    changes = np.flatnonzero(inside[1:] != inside[:-1]) + 1
    begin, end = ([0] if inside[0] else []), ([len(inside)] if inside[-1] else [])
    return np.concatenate([begin, changes, end]).astype(np.int64).reshape(-1, 2)


def _paint(labels: np.ndarray, spans: np.ndarray, value: int) -> None:
    for start, stop in spans.tolist():
        labels[start:stop] = value


def _fill_holes(labels: np.ndarray, size: tuple[int, int], least: int) -> dict[int, np.ndarray]:
    """Regions without a label that have fewer than `least` pixels, given to the neighbour with the longest border.

    labels: (H * W,), columns in turn, i + 1 for record i. Returns the spans (N, 2) that each record gets, by its index;
    of neighbours with equal borders the first gets them. A region with no neighbour (the whole image) stays as it is.
    """
    height = size[0]
    empty = [_spans_of(labels[start:stop] == 0) + start for start, stop in _bands(0, len(labels))]
    spans = join(np.concatenate(empty))
    if least <= 1 or not len(spans):
        return {}
    pieces, regions, areas = find_regions(spans, height)
    small = areas[regions] < least
    pieces, regions = pieces[small], regions[small]
    owner = _longest_border(labels, pieces, regions, len(areas), height)[regions]  # (N,)
    return {int(i) - 1: pieces[owner == i] for i in np.unique(owner[owner > 0])}


def _longest_border(labels: np.ndarray, pieces: np.ndarray, regions: np.ndarray, count: int, height: int) -> np.ndarray:
    """For each of `count` regions the label that most sides of its pixels touch: (count,) int64, 0 for none.

    pieces: (N, 2), of one column each, of the regions (N,).
    """
    owner = np.zeros(count, dtype=np.int64)
    order = np.argsort(regions, kind="stable")
    pieces, regions = pieces[order], regions[order]
    total = np.cumsum(pieces[:, 1] - pieces[:, 0])
    start = 0
    while start < len(pieces):  # whole regions, about a band of pixels and their neighbours
        stop = int(np.searchsorted(total, (total[start - 1] if start else 0) + _BAND // 16, side="right"))
        last = regions[max(stop, start + 1) - 1]
        stop = int(np.searchsorted(regions, last, side="right"))
        lot = slice(start, stop)
        keys = np.concatenate([_touched(labels, pieces[lot], regions[lot], height, side) for side in range(4)])
        found, sides = np.unique(keys, return_counts=True)
        region, label = np.divmod(found, _LABELS)
        best = np.lexsort((label, -sides, region))  # by region, then the longest border, then the first label
        region, label = region[best], label[best]
        leads = np.diff(region, prepend=-1) != 0
        owner[region[leads]] = label[leads]
        start = stop
    return owner


_LABELS = 2**31  # more than there are


def _touched(labels: np.ndarray, pieces: np.ndarray, regions: np.ndarray, height: int, side: int) -> np.ndarray:
    """The labels beside pieces (N, 2) of regions (N,) on one side, each with its region: region * _LABELS + label.

    side: 0 above, 1 below, 2 left, 3 right. One key for each side of a pixel that touches a label.
    """
    starts, ends = pieces.T
    if side < 2:
        inside = starts % height > 0 if side == 0 else ends % height > 0  # not at the image's edge
        position, of = (starts[inside] - 1 if side == 0 else ends[inside]), regions[inside]
    else:
        lengths = ends - starts
        position = np.repeat(starts - np.cumsum(lengths) + lengths, lengths) + np.arange(int(lengths.sum()))
        position = position + (-height if side == 2 else height)
        inside = (position >= 0) & (position < len(labels))
        position, of = position[inside], np.repeat(regions, lengths)[inside]
    label = labels[position].astype(np.int64)
    return of[label > 0] * _LABELS + label[label > 0]
