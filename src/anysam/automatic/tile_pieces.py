"""Which masks of neighbouring tiles are pieces of one object.

Tiles overlap, so that both of two neighbours have seen the strip between them. Two masks, one of each, belong to one
object when inside the strip they are the same: their IoU there is at least SAME. It does not matter how much of the
object lies elsewhere, so one rule finds the pieces of what crosses a border, the two copies of what lies in the
strip, and the stump of what the other tile has whole.

What the rule alone would confuse:
- A part may look like its whole inside the strip, and any two objects may where it is narrow. So matches without a
  rival nearly as good are made first, then from the best to the worst, little evidence counting as weak; of those
  about as good (between two of STEPS) the largest come first, so that wholes find each other before parts do. And no
  match may bring two masks of one tile together that overlap: the model has told them apart.
- An object may enter a tile twice, like a U, which the tile can only see as two masks. A mask that is cut and agrees
  with some connected parts of the other's share of the strip belongs to it too, unless a better match forbids it.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from anysam import rle
from anysam.results import MaskRecord
from anysam.rle import Box

SAME = 0.6  # least IoU, inside the strip, of two pieces of one object
STEPS = (0.98, 0.95, 0.9, 0.8, 0.6, 0.4, 0.2)
_FEW = 50  # pixels: agreement on so many counts as half
_RIVAL = 0.1  # an IoU lower by no more than this is nearly as good
_APART = 0.1  # two masks of a tile are apart when at most this share of the smaller lies in the other
NEAR = 3  # pixels: a mask that ends so close to a border of its tile counts as cut by it


@dataclass(frozen=True)
class Tile:
    """One tile of an image: its box, and its core, the pixels that no other tile sees farther from its borders."""

    box: Box
    core: Box

    @property
    def size(self) -> tuple[int, int]:
        """(H, W)."""
        return self.box[3] - self.box[1], self.box[2] - self.box[0]


@dataclass(frozen=True, eq=False)
class Piece:
    """A mask of a tile. record: in the tile's own pixels. tile: its number. box: in pixels of the image."""

    record: MaskRecord
    tile: int
    box: Box

    def spans(self) -> np.ndarray:
        """Spans (N, 2) of the mask in the tile."""
        return rle.runs_to_spans(rle.read_rle(self.record.segmentation)[0])


@dataclass(frozen=True, order=True)
class Match:
    """Two pieces, by number, that agree. Sorted, the matches to be made first come first."""

    by_parts: bool
    has_rival: bool
    step: int  # how many of STEPS its strength is below
    minus_area: int
    first: int
    second: int


@dataclass(frozen=True)
class Grid:
    """The tiles of an image of `size` (H, W), row by row.

    near_rows, near_columns: for each row and column of tiles, those that overlap it or lie beside it, itself too.
    """

    size: tuple[int, int]
    tiles: tuple[Tile, ...]
    near_rows: tuple[tuple[int, ...], ...]
    near_columns: tuple[tuple[int, ...], ...]

    def near(self, number: int) -> list[int]:
        """Numbers of the tiles that overlap a tile or lie beside it, rising, itself left out."""
        row, column = divmod(number, len(self.near_columns))
        numbers = [r * len(self.near_columns) + c for r in self.near_rows[row] for c in self.near_columns[column]]
        return [other for other in numbers if other != number]


def overlap(a: Box, b: Box) -> Box | None:
    """The box that two boxes share; None when they share no pixel."""
    x0, y0, x1, y1 = max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])
    return (x0, y0, x1, y1) if x0 < x1 and y0 < y1 else None


def inner_sides(tile: Tile, size: tuple[int, int]) -> tuple[bool, bool, bool, bool]:
    """Which sides of a tile, left top right bottom, have more of the image, of `size` (H, W), beyond them."""
    x0, y0, x1, y1 = tile.box
    return x0 > 0, y0 > 0, x1 < size[1], y1 < size[0]


def is_cut(piece_box: Box, tile: Tile, size: tuple[int, int]) -> bool:
    """Whether a mask with this box comes near a side of its tile with more of the image beyond."""
    inner = inner_sides(tile, size)
    distances = [abs(piece_box[side] - tile.box[side]) for side in range(4)]
    return any(is_inner and distance < NEAR for is_inner, distance in zip(inner, distances, strict=True))


@dataclass(frozen=True, eq=False)
class _Strip:
    """The N pieces of one tile that reach into the strip it shares with another; spans, areas and boxes in the strip.

    spans: each (M, 2). areas: (N,) int64. boxes: (N, 4) int64, xyxy.
    """

    size: tuple[int, int]
    numbers: list[int]
    pieces: list[Piece]
    spans: list[np.ndarray]
    areas: np.ndarray
    boxes: np.ndarray


def find_matches(
    first: Sequence[tuple[int, Piece, np.ndarray]],
    second: Sequence[tuple[int, Piece, np.ndarray]],
    tiles: tuple[Tile, Tile],
    size: tuple[int, int],
) -> Iterator[Match]:
    """The matches between the pieces of two tiles, each as its number, itself and its spans, in an image of `size`."""
    box = overlap(tiles[0].box, tiles[1].box)
    if box is None:
        return
    a, b = _strip(first, tiles[0], box), _strip(second, tiles[1], box)
    sides = np.minimum(a.boxes[:, None, 2:], b.boxes[:, 2:]) - np.maximum(a.boxes[:, None, :2], b.boxes[:, :2])
    most = np.clip(sides, 0, None).prod(axis=2)  # (N, M) pixels that two pieces can have in common
    parts: dict[int, tuple[np.ndarray, Box] | None] = {}
    agreeing: list[tuple[int, int, float, bool]] = []
    for i, j in np.argwhere((most > 0) & (most >= SAME * np.minimum(a.areas[:, None], b.areas))).tolist():
        common = rle.spans_intersection(a.spans[i], b.spans[j])
        area_a, area_b = int(a.areas[i]), int(b.areas[j])
        if common < SAME * min(area_a, area_b):
            continue
        iou = common / (area_a + area_b - common)
        by_parts = iou < SAME
        if by_parts:
            small, s, tile, large, k = (a, i, tiles[0], b, j) if area_a < area_b else (b, j, tiles[1], a, i)
            if not is_cut(small.pieces[s].box, tile, size):
                continue
            if large.numbers[k] not in parts:
                parts[large.numbers[k]] = _connected_parts(large, k)
            found = parts[large.numbers[k]]
            if found is None or (iou := _agreement_of_parts(small, s, *found)) < SAME:
                continue
        agreeing.append((i, j, iou, by_parts))
    yield from _matches(agreeing, a, b)


def _matches(agreeing: Sequence[tuple[int, int, float, bool]], a: _Strip, b: _Strip) -> Iterator[Match]:
    """The matches of pieces that agree, given by their place in either strip, their IoU and whether it is by parts."""
    best: dict[tuple[int, int], list[float]] = {}  # the two highest IoUs of each piece of either side
    for i, j, iou, _ in agreeing:
        for key in ((0, i), (1, j)):
            best[key] = sorted([*best.get(key, []), iou], reverse=True)[:2]
    for i, j, iou, by_parts in agreeing:
        rivals = [best[key][1 if best[key][0] == iou else 0] for key in ((0, i), (1, j)) if len(best[key]) > 1]
        pixels = min(int(a.areas[i]), int(b.areas[j]))
        strength = iou * pixels / (pixels + _FEW)
        yield Match(
            by_parts=by_parts,
            has_rival=any(rival >= iou - _RIVAL for rival in rivals),
            step=sum(strength < step for step in STEPS),
            minus_area=-(a.pieces[i].record.area + b.pieces[j].record.area),
            first=a.numbers[i],
            second=b.numbers[j],
        )


def _strip(pieces: Sequence[tuple[int, Piece, np.ndarray]], tile: Tile, box: Box) -> _Strip:
    """The pieces of a tile, cropped to a box of the image that lies in it; those that hold none of it left out."""
    x0, y0 = tile.box[:2]
    inside = (box[0] - x0, box[1] - y0, box[2] - x0, box[3] - y0)
    reaching = [entry for entry in pieces if overlap(entry[1].box, box)]
    cropped = [rle.crop_spans(spans, tile.size, inside) for _, _, spans in reaching]
    boxes = [rle.spans_to_box(spans, box[3] - box[1]) for spans in cropped]
    kept = [index for index, found in enumerate(boxes) if found is not None]
    return _Strip(
        size=(box[3] - box[1], box[2] - box[0]),
        numbers=[reaching[index][0] for index in kept],
        pieces=[reaching[index][1] for index in kept],
        spans=[cropped[index] for index in kept],
        areas=np.array([rle.spans_area(cropped[index]) for index in kept], dtype=np.int64),
        boxes=np.array([boxes[index] for index in kept], dtype=np.int64).reshape(-1, 4),
    )


def _connected_parts(strip: _Strip, index: int) -> tuple[np.ndarray, Box] | None:
    """A piece's connected parts in the strip, (h, w) int32 from 1, in its box, and the box; None when there is one."""
    x0, y0, x1, y1 = strip.boxes[index].tolist()
    number, parts = cv2.connectedComponents(_unfold(strip, index, (x0, y0, x1, y1)), connectivity=8)
    return (parts, (x0, y0, x1, y1)) if number > 2 else None


def _unfold(strip: _Strip, index: int, box: Box) -> np.ndarray:
    """A piece inside a box of the strip, (h, w) uint8."""
    height, width = box[3] - box[1], box[2] - box[0]
    spans = rle.crop_spans(strip.spans[index], strip.size, box)
    return rle.runs_to_mask(rle.spans_to_runs(spans, height * width), (height, width)).astype(np.uint8)


def _agreement_of_parts(small: _Strip, index: int, parts: np.ndarray, box: Box) -> float:
    """IoU of a piece with those of another's connected parts (h, w), in a box, that lie in it by more than half."""
    sizes = np.bincount(parts.ravel())
    within = np.bincount(parts[_unfold(small, index, box) > 0], minlength=len(sizes))
    meant = 2 * within > sizes
    meant[0] = False
    common = int(within[meant].sum())
    return common / (int(sizes[meant].sum()) + int(small.areas[index]) - common)


def group_pieces(pieces: Sequence[Piece], matches: Iterable[Match]) -> list[list[int]]:
    """Unite pieces along their matches -> groups of numbers, rising; a piece without a match is a group."""
    root = list(range(len(pieces)))
    groups: dict[int, dict[int, list[int]]] = {number: {pieces[number].tile: [number]} for number in root}
    for match in sorted(matches):
        large, small = root[match.first], root[match.second]
        if large == small:
            continue
        if len(groups[large]) < len(groups[small]):
            large, small = small, large
        common = groups[small].keys() & groups[large].keys()
        if any(_overlap_any(pieces, groups[small][tile], groups[large][tile]) for tile in common):
            continue
        for tile, numbers in groups.pop(small).items():
            groups[large].setdefault(tile, []).extend(numbers)
            for number in numbers:
                root[number] = large
    return sorted(sorted(number for numbers in group.values() for number in numbers) for group in groups.values())


def _overlap_any(pieces: Sequence[Piece], first: Sequence[int], second: Sequence[int]) -> bool:
    """Whether any two pieces of one tile, one of each list, are not apart."""
    for a in (pieces[number] for number in first):
        for b in (pieces[number] for number in second):
            if overlap(a.box, b.box) is not None:
                common = rle.spans_intersection(a.spans(), b.spans())
                if common > _APART * min(a.record.area, b.record.area):
                    return True
    return False
