"""Everything mode on images far larger than a model's input: overlapping tiles, and records without seams.

One tile's pixels are in memory at a time, and of its masks only their run lengths. Which masks of neighbouring tiles
are pieces of one object is decided in `tile_pieces`. Of an object's pieces, in this order:

1. A piece that no border of its tile cuts, and that leaves out nothing the other tiles saw, is the object.
2. Else every pixel is decided by the tile that sees it farthest from its borders, where a mask has most to go by; where
   that tile has no piece of the object, by all that have.
3. What still ends at the border of a tile, with more of the image beyond and no piece there, is a fragment: no tile
   saw the object whole, and the neighbour saw no such object. It is left out when more than CUT of its outline
   follows the border, and kept otherwise, like a road that one tile of ten did not see.

Then, as between the crops of the published generator, of two records of different tiles whose boxes have an IoU above
box_nms_thresh the one with the lower predicted IoU goes. The result depends on the image and the options only.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from anysam import rle
from anysam.automatic.tile_pieces import (
    NEAR,
    Grid,
    Match,
    Piece,
    Tile,
    find_matches,
    group_pieces,
    inner_sides,
    is_cut,
    overlap,
)
from anysam.errors import OptionError
from anysam.rasters import ImageSource
from anysam.results import MaskRecord
from anysam.rle import Box

CUT = 0.03  # largest share of an outline that may follow the borders of tiles; beyond, it would show as a seam
_OUTSIDE = 0.05  # a piece is the whole object when no more than this share of it was seen outside its tile
_LEAST_TILE = 64  # pixels
_LEAST_OVERLAP, _MOST_OVERLAP = 0.05, 0.9

Progress = Callable[[float], None]


def tile_grid(size: tuple[int, int], tile: int, overlap: float) -> Grid:
    """Cut an image of `size` (H, W) into tiles of `tile` pixels a side, row by row.

    Neighbours share at least `overlap` of a tile, 0.05 to 0.9; the tiles are spread evenly, so that all are full-sized
    and none sticks out; along a side of the image shorter than `tile` there is one, as long as the side. Raises
    OptionError for a value out of range.
    """
    if tile < _LEAST_TILE:
        raise OptionError(f"Tiles must have at least {_LEAST_TILE} pixels a side, got {tile}.")
    if not _LEAST_OVERLAP <= overlap <= _MOST_OVERLAP:
        raise OptionError(
            f"Tiles must overlap by {_LEAST_OVERLAP} to {_MOST_OVERLAP} of their side, got {overlap:g}; objects that "
            "cross from one to the next are recognised by what both see."
        )
    rows, columns = (_cut(side, tile, overlap) for side in size)
    tiles = [Tile((x0, y0, x1, y1), (u0, v0, u1, v1)) for y0, y1, v0, v1 in rows for x0, x1, u0, u1 in columns]
    near_rows, near_columns = (
        tuple(tuple(i for i, b in enumerate(parts) if a[0] <= b[1] and b[0] <= a[1]) for a in parts)
        for parts in (rows, columns)
    )
    return Grid(size, tuple(tiles), near_rows, near_columns)


def _cut(side: int, tile: int, overlap: float) -> list[tuple[int, int, int, int]]:
    """Tiles along one side: start, end, and start and end of the core, which goes to the middle of each overlap."""
    if side <= tile:
        return [(0, side, 0, side)]
    number = math.ceil((side - tile) / max(math.floor(tile * (1 - overlap)), 1)) + 1
    starts = [index * (side - tile) // (number - 1) for index in range(number)]
    middles = [(start + tile + following) // 2 for start, following in zip(starts, starts[1:], strict=False)]
    edges = [0, *middles, side]
    return [(start, start + tile, edges[index], edges[index + 1]) for index, start in enumerate(starts)]


def tiled_records(
    everything: Callable[[np.ndarray], Sequence[MaskRecord]],
    image: ImageSource,
    tile: int,
    overlap: float = 0.25,
    box_nms_thresh: float = 0.7,
    progress: Progress | None = None,
) -> list[MaskRecord]:
    """All masks of a large image, each object once, whole and in the pixels of the image; best predicted IoU first.

    everything: records of an RGB uint8 (h, w, 3) tile, of its size. tile, overlap: see `tile_grid`; an image no larger
    than a tile is handed over as it is. box_nms_thresh: 0 to 1. progress: called with the part done, 0 to 1, rising.

    A record made of several pieces has the mean of their scores, weighted with the pixels, the prompt of the largest,
    and the box around their crop boxes. Raises OptionError for a value out of range or a record of another size.
    """
    grid = tile_grid(image.size, tile, overlap)
    if len(grid.tiles) == 1:
        records = list(everything(image.read(*grid.tiles[0].box)))
        _report(progress, 1.0)
        return records
    pieces: list[Piece] = []
    matches: list[Match] = []
    recent: dict[int, list[tuple[int, Piece, np.ndarray]]] = {}  # of tiles that later ones overlap
    for number, current in enumerate(grid.tiles):
        mine = _pieces(everything(image.read(*current.box)), number, current, len(pieces))
        pieces += [piece for _, piece, _ in mine]
        for other in [other for other in recent if grid.tiles[other].box[3] <= current.box[1]]:
            del recent[other]
        for other in grid.near(number):
            if other in recent:
                matches += find_matches(recent[other], mine, (grid.tiles[other], current), grid.size)
        recent[number] = mine
        _report(progress, (number + 1) / (len(grid.tiles) + 1))
    records = merge_pieces(pieces, matches, grid, box_nms_thresh)
    _report(progress, 1.0)
    return records


def merge_pieces(
    pieces: Sequence[Piece], matches: Iterable[Match], grid: Grid, box_nms_thresh: float
) -> list[MaskRecord]:
    """One record for each object, in the pixels of the image, best predicted IoU first."""
    objects: list[tuple[MaskRecord, frozenset[int]]] = []
    for group in group_pieces(pieces, matches):
        members = [pieces[number] for number in group]
        record = _join(members, grid)
        if record is not None:
            objects.append((record, frozenset(piece.tile for piece in members)))
    objects.sort(key=lambda found: (-found[0].predicted_iou, found[0].box, found[0].area))
    return _drop_duplicates(objects, box_nms_thresh)


def _pieces(records: Sequence[MaskRecord], number: int, tile: Tile, first: int) -> list[tuple[int, Piece, np.ndarray]]:
    """The records of a tile as pieces, numbered from `first`, each with its spans; empty ones left out."""
    x0, y0 = tile.box[:2]
    pieces: list[tuple[int, Piece, np.ndarray]] = []
    for record in records:
        if record.size != tile.size:
            raise OptionError(f"Records of a tile must have its size {tile.size} (H, W), got {record.size}.")
        spans = rle.runs_to_spans(rle.read_rle(record.segmentation)[0])
        box = rle.spans_to_box(spans, tile.size[0])
        if box is not None:
            piece = Piece(record, number, (box[0] + x0, box[1] + y0, box[2] + x0, box[3] + y0))
            pieces.append((first + len(pieces), piece, spans))
    return pieces


def _join(pieces: Sequence[Piece], grid: Grid) -> MaskRecord | None:
    """The object of which these are pieces; None for a fragment."""
    whole = _whole_piece(pieces, grid)
    chosen = list(pieces) if whole is None else [whole]
    shares = _shares(chosen, grid)
    merged = rle.spans_union(shares)
    if whole is None and _is_fragment(merged, {piece.tile for piece in pieces}, grid):
        return None
    return _record(chosen, [rle.spans_area(share) for share in shares], merged, grid)


def _whole_piece(pieces: Sequence[Piece], grid: Grid) -> Piece | None:
    """The best of the pieces that are not cut and hold all that was seen of the object; None when there is none."""
    candidates = [piece for piece in pieces if not is_cut(piece.box, grid.tiles[piece.tile], grid.size)]
    for piece in sorted(candidates, key=lambda piece: (-piece.record.predicted_iou, piece.tile)):
        outside = sum(
            other.record.area - _area_inside(other, grid.tiles[other.tile], grid.tiles[piece.tile].box)
            for other in pieces
            if other.tile != piece.tile
        )
        beside = sum(other.record.area for other in pieces if other.tile == piece.tile and other is not piece)
        if outside + beside <= _OUTSIDE * piece.record.area:
            return piece
    return None


def _area_inside(piece: Piece, tile: Tile, box: Box) -> int:
    """Pixels of a piece inside a box of the image."""
    part = overlap(piece.box, box)
    if part is None or part == piece.box:
        return piece.record.area if part else 0
    return rle.spans_area(rle.crop_spans(piece.spans(), tile.size, _shifted(part, tile)))


def _shares(pieces: Sequence[Piece], grid: Grid) -> list[np.ndarray]:
    """What each piece gives to the object: spans (N, 2) in the image.

    Its whole mask, but for the cores of other tiles that have a piece of the object.
    """
    present = {piece.tile for piece in pieces}
    shares = []
    for piece in pieces:
        tile, spans = grid.tiles[piece.tile], piece.spans()
        share = rle.place_spans(spans, tile.size, tile.box[:2], grid.size)
        for number in grid.near(piece.tile):
            part = overlap(piece.box, grid.tiles[number].core)
            if number in present and part is not None:
                inside = rle.crop_spans(spans, tile.size, _shifted(part, tile))
                height, width = part[3] - part[1], part[2] - part[0]
                share = rle.spans_difference(share, rle.place_spans(inside, (height, width), part[:2], grid.size))
        shares.append(share)
    return shares


def _shifted(box: Box, tile: Tile) -> Box:
    """A box of the image in the pixels of a tile."""
    x0, y0 = tile.box[:2]
    return box[0] - x0, box[1] - y0, box[2] - x0, box[3] - y0


def _is_fragment(spans: np.ndarray, present: set[int], grid: Grid) -> bool:
    """Whether too much of an outline follows the border of what the tiles `present` see."""
    along = 0
    for number in present:
        x0, y0, x1, y1 = grid.tiles[number].box
        # Of each side: the band inside it, and the line outside.
        bands = [
            ((x0, y0, x0 + NEAR, y1), (x0 - 1, y0, x0, y1)),
            ((x0, y0, x1, y0 + NEAR), (x0, y0 - 1, x1, y0)),
            ((x1 - NEAR, y0, x1, y1), (x1, y0, x1 + 1, y1)),
            ((x0, y1 - NEAR, x1, y1), (x0, y1, x1, y1 + 1)),
        ]
        others = [grid.tiles[other].box for other in grid.near(number) if other in present]
        for side, is_inner in enumerate(inner_sides(grid.tiles[number], grid.size)):
            if is_inner:
                band, beyond = bands[side]
                axis = 1 - side % 2  # of a box along this side: y for left and right, x for top and bottom
                touching = np.any(_unfold(rle.crop_spans(spans, grid.size, band), band), axis=axis)  # (h,) or (w,)
                for seen in (overlap(other, beyond) for other in others):
                    if seen is not None:
                        touching[seen[axis] - beyond[axis] : seen[axis + 2] - beyond[axis]] = False
                along += int(np.count_nonzero(touching))
    return along > 0 and along > CUT * _outline_length(spans, grid.size[0])


def _unfold(spans: np.ndarray, box: Box) -> np.ndarray:
    height, width = box[3] - box[1], box[2] - box[0]
    return rle.runs_to_mask(rle.spans_to_runs(spans, height * width), (height, width))


def _outline_length(spans: np.ndarray, height: int) -> int:
    """Number of pixel edges between a mask and what is not the mask, in an image that is `height` high."""
    columns = (spans[:, 1] - 1) // height - spans[:, 0] // height + 1
    upright = 2 * (rle.spans_area(spans) - rle.spans_intersection(spans, spans + height))
    return 2 * int(columns.sum()) + upright


def _record(pieces: Sequence[Piece], areas: Sequence[int], spans: np.ndarray, grid: Grid) -> MaskRecord | None:
    """The record of a mask given by its spans, from pieces that gave so many pixels to it; None when it is empty."""
    box = rle.spans_to_box(spans, grid.size[0])
    if box is None:  # each pixel was left to a tile whose piece does not hold it
        return None
    largest = pieces[int(np.argmax(areas))]
    records = [piece.record for piece in pieces]
    predicted_iou = _mean([record.predicted_iou for record in records], areas)
    assert predicted_iou is not None
    left, top, right, bottom = zip(*(_crop_box(piece, grid.tiles[piece.tile]) for piece in pieces), strict=True)
    return replace(
        largest.record,
        segmentation=rle.write_rle(rle.spans_to_runs(spans, grid.size[0] * grid.size[1]), grid.size),
        area=rle.spans_area(spans),
        box=(float(box[0]), float(box[1]), float(box[2]), float(box[3])),
        predicted_iou=predicted_iou,
        prompt=_moved_prompt(largest.record.prompt, grid.tiles[largest.tile]),
        stability_score=_mean([record.stability_score for record in records], areas),
        crop_box=(min(left), min(top), max(right), max(bottom)),
        detection_score=_mean([record.detection_score for record in records], areas),
    )


def _mean(scores: Sequence[float | None], weights: Sequence[int]) -> float | None:
    """The weighted mean of the scores that are known; None when none is."""
    known = [(score, weight) for score, weight in zip(scores, weights, strict=True) if score is not None and weight]
    if len(known) < 2:
        return known[0][0] if known else None  # as it is, without a rounding
    return sum(score * weight for score, weight in known) / sum(weight for _, weight in known)


def _crop_box(piece: Piece, tile: Tile) -> tuple[float, float, float, float]:
    """The part of the image that the model saw."""
    (x0, y0, x1, y1), box = (float(side) for side in tile.box), piece.record.crop_box
    return (x0, y0, x1, y1) if box is None else (box[0] + x0, box[1] + y0, box[2] + x0, box[3] + y0)


def _moved_prompt(prompt: dict[str, Any] | None, tile: Tile) -> dict[str, Any] | None:
    """A prompt in pixels of the image; None for one with a mask or logits, which belong to the tile."""
    if prompt is None or "mask" in prompt or "low_res_logits" in prompt:
        return None
    x0, y0 = tile.box[:2]
    moved = dict(prompt)
    for name in ("points", "polygon", "scribble", "scribble_negative"):
        if name in moved:
            moved[name] = [[x + x0, y + y0] for x, y in moved[name]]
    if "box" in moved:
        left, top, right, bottom = moved["box"]
        moved["box"] = [left + x0, top + y0, right + x0, bottom + y0]
    return moved


def _drop_duplicates(objects: Sequence[tuple[MaskRecord, frozenset[int]]], box_nms_thresh: float) -> list[MaskRecord]:
    """Of two records, best first, that no tile saw both and whose boxes agree, the better."""
    boxes = np.array([record.box for record, _ in objects], dtype=np.float64).reshape(-1, 4)
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])  # (N,)
    by_left = np.argsort(boxes[:, 0], kind="stable")
    lefts = boxes[by_left, 0]
    dropped = np.zeros(len(objects), dtype=bool)
    for index, (_, seen) in enumerate(objects):
        if dropped[index]:
            continue
        x0, y0, x1, y1 = boxes[index]
        # Boxes with an IoU above t begin closer than (1 - t) of the width of the one that begins first.
        slack = (1 - box_nms_thresh) * (x1 - x0)
        reach = slack / box_nms_thresh if box_nms_thresh > 0 else math.inf
        near = by_left[np.searchsorted(lefts, x0 - reach) : np.searchsorted(lefts, x0 + slack, side="right")]
        other = boxes[near]
        common = np.clip(np.minimum(other[:, 2], x1) - np.maximum(other[:, 0], x0), 0, None)
        common *= np.clip(np.minimum(other[:, 3], y1) - np.maximum(other[:, 1], y0), 0, None)
        agreeing = near[common > box_nms_thresh * (areas[near] + areas[index] - common)]
        for rival in agreeing.tolist():
            if rival > index and not seen & objects[rival][1]:
                dropped[rival] = True
    return [record for (record, _), gone in zip(objects, dropped, strict=True) if not gone]


def _report(progress: Progress | None, part: float) -> None:
    if progress is not None:
        progress(part)
