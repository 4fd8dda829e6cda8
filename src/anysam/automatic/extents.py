"""Boxes of masks from low-resolution logits, and the part of an image where a mask can be at all.

A pixel is a mean of a few cells, weights that are not negative, so that it can only be in the mask if one of its cells
is. The box's sides are then found by evaluating the few lines of pixels at which positive cells begin.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from anysam.automatic.operators import ROUNDING, Band

# Elements of the largest intermediate of one step: 4 MB, so that it stays in a CPU's caches.
_ELEMENTS = 1024 * 1024
_LINES_AT_ONCE = 3
_TRIED = 2  # of these lines are looked at pixel by pixel in one step
_WINDOW = 32  # pixels looked at first
_MASKS_AT_ONCE = 8  # logits that are read twice, along rows and columns: what stays in a CPU's caches


@dataclass(frozen=True, eq=False)
class Extents:
    """Where K masks are. All arrays are int64 on the CPU.

    boxes: (K, 4) x0 y0 x1 y1 of the pixels > 0, last row and column included; 0 0 0 0 for none. sure: (K,) bool, false
    where rounding decides the box, which must then be found in another way. pixels: (K, 4) x0 y0 x1 y1, right and
    bottom exclusive; outside of it no pixel is above the lower threshold. cells: (K, 4), of the logits, likewise: all
    that the pixels within are made of.
    """

    boxes: np.ndarray
    sure: np.ndarray
    pixels: np.ndarray
    cells: np.ndarray


def find_extents(logits: Tensor, rows: Band, columns: Band, lower: float, rounding: float = ROUNDING) -> Extents:
    """Where the masks of logits (K, h, w) float32 are at full size, for bands without negative weights.

    lower: a threshold, at most 0, above which pixels matter. rounding: relative, see `operators.ROUNDING`.
    """
    # A mean of cells up to the lower threshold may be rounded to above it.
    active = lower * (1 + 2 * rounding)
    parts = [(part.amax(dim=2), part.amax(dim=1)) for part in logits.split(_MASKS_AT_ONCE)]
    peaks = tuple(torch.cat(part) for part in zip(*parts, strict=True))  # (K, h), (K, w)
    ranges = [_reach(peak > active, band) for peak, band in zip(peaks, (rows, columns), strict=True)]
    cores = [_reach(peak > 0, band) for peak, band in zip(peaks, (rows, columns), strict=True)]
    sides = []
    sure = torch.ones(len(logits), dtype=torch.bool, device=logits.device)
    across = logits.transpose(1, 2)  # (K, w, h)
    for values, along, crossing, core in ((across, columns, rows, cores[1]), (logits, rows, columns, cores[0])):
        for direction in (1, -1):
            side, certain = _first_line(values, along, crossing, core[:, :2], direction, rounding)
            sides.append(side)
            sure &= certain
    boxes = torch.stack([sides[0], sides[2], sides[1], sides[3]], dim=1)  # (K, 4)
    boxes = torch.where((boxes < 0).any(dim=1, keepdim=True), 0, boxes)
    (down, along_x) = ranges
    found = torch.cat(
        [
            boxes,
            sure[:, None].long(),
            torch.stack([along_x[:, 0], down[:, 0], along_x[:, 1], down[:, 1]], dim=1),
            torch.stack([along_x[:, 2], down[:, 2], along_x[:, 3], down[:, 3]], dim=1),
        ],
        dim=1,
    )  # (K, 13)
    table = found.cpu().numpy()  # one transfer
    pixels, cells = table[:, 5:9], table[:, 9:13]
    empty = (pixels[:, 2] <= pixels[:, 0]) | (pixels[:, 3] <= pixels[:, 1])
    return Extents(
        boxes=table[:, :4],
        sure=table[:, 4].astype(bool),
        pixels=np.where(empty[:, None], 0, pixels),
        cells=np.where(empty[:, None], 0, cells),
    )


def _reach(marked: Tensor, band: Band) -> Tensor:
    """What marked cells (K, n) bool reach along an axis: (K, 4), first and end of pixels, first and end of cells.

    Pixels that have a cell between the first and the last marked one, and all the cells of these pixels.
    """
    count = marked.shape[1]
    numbers = torch.arange(count, device=marked.device)
    low = torch.where(marked, numbers, count).amin(dim=1)  # (K,)
    high = torch.where(marked, numbers, -1).amax(dim=1)  # (K,)
    start = torch.searchsorted(band.last, low)  # the first pixel whose last cell is not before `low`
    end = torch.searchsorted(band.first, high, right=True)  # behind the last pixel whose first cell is not after `high`
    inside = len(band) - 1
    cells = band.first[start.clamp(max=inside)], band.last[(end - 1).clamp(min=0)] + 1
    return torch.stack([start, torch.maximum(start, end), *cells], dim=1)  # (K, 4)


def _first_line(
    logits: Tensor, along: Band, across: Band, pixels: Tensor, direction: int, rounding: float
) -> tuple[Tensor, Tensor]:
    """The first line of pixels with one > 0, among pixels (K, 2), first and end, from the front or from the back.

    logits: (K, n, m). along, across: bands of n and m cells. Returns lines (K,), -1 for none, and whether each is sure.
    """
    found = torch.full((len(logits),), -1, dtype=torch.int64, device=logits.device)
    sure = torch.ones(len(logits), dtype=torch.bool, device=logits.device)
    lot = max(1, _ELEMENTS // max(_LINES_AT_ONCE * logits.shape[2], _TRIED * len(across)))
    span = _span(along)
    waiting = (pixels[:, 0] < pixels[:, 1]).nonzero()[:, 0]  # (A,)
    current = pixels[:, 0].clone() if direction > 0 else pixels[:, 1] - 1
    steps = direction * torch.arange(_LINES_AT_ONCE, device=logits.device)
    while len(waiting):
        parts = [
            _try_lines(logits, along, across, span, part, current[part, None] + steps, rounding)
            for part in waiting.split(lot)
        ]
        tried, hit, certain = (torch.cat(part) for part in zip(*parts, strict=True))
        found[waiting] = torch.where(hit, tried, -1)
        sure[waiting] &= certain
        following = tried + direction
        current[waiting] = following
        inside = (following >= pixels[waiting, 0]) & (following < pixels[waiting, 1])
        waiting = waiting[~hit & inside]
    return found, sure


def _try_lines(
    logits: Tensor, along: Band, across: Band, span: int, which: Tensor, lines: Tensor, rounding: float
) -> tuple[Tensor, Tensor, Tensor]:
    """For masks `which` (A,) and lines (A, T) of pixels in the order of interest, made of up to `span` cells each:

    (A,) the first line that has a pixel > 0, or the last that is known to have none; whether it has; and whether that
    is more than rounding.
    """
    line = lines.clamp(0, len(along) - 1)
    # All the lines' cells at once, because neighbours share most of them.
    base = along.first[line.amin(dim=1)]  # (A,)
    numbers = base[:, None] + torch.arange(span, device=logits.device)  # (A, R)
    cells = logits[which[:, None], numbers.clamp(max=logits.shape[1] - 1)]  # (A, R, m)
    weights = torch.zeros(*line.shape, span, device=logits.device)
    weights.scatter_add_(2, along.cells[line] - base[:, None, None], along.weights[line])  # (A, T, R)
    mixed = cells[:, None, 0] * weights[..., :1]  # (A, T, m)
    for i in range(1, span):
        mixed += cells[:, None, i] * weights[..., i : i + 1]
    tolerance = (rounding * cells.abs().amax(dim=(1, 2)))[:, None].expand(line.shape)  # (A, T)
    # No pixel is above the highest cell of its line.
    possible = (mixed.amax(dim=2) > -tolerance) & (line == lines)
    order = torch.sort((~possible).int(), dim=1, stable=True).indices[:, :_TRIED]  # (A, 2), the possible ones first
    rows = torch.arange(len(which), device=which.device)[:, None]
    open_, limit = possible[rows, order], tolerance[rows, order]  # (A, 2)
    highest = _highest_pixels(mixed[rows, order].flatten(0, 1), across, limit.flatten()).reshape(limit.shape)  # (A, 2)
    hits = open_ & ((highest >= -limit) if rounding else (highest > 0))
    hit, first = hits.any(dim=1), hits.int().argmax(dim=1)  # (A,)
    rows = rows[:, 0]
    certain = ~hit | (highest[rows, first] > limit[rows, first])
    # Without a hit every line is done up to the last one tried, or all of them if no more were possible.
    more = possible.sum(dim=1) > _TRIED
    end = torch.where(more, order[:, -1], lines.shape[1] - 1)
    return lines[rows, torch.where(hit, order[rows, first], end)], hit, certain


def _span(band: Band) -> int:
    """The most cells that the lines tried at once are made of."""
    ends = torch.arange(len(band), device=band.last.device).add(_LINES_AT_ONCE - 1).clamp(max=len(band) - 1)
    return int((band.last[ends] - band.first).max()) + 1


def _highest_pixels(cells: Tensor, across: Band, tolerance: Tensor) -> Tensor:
    """Lines of cells (N, m) -> (N,) the highest pixel of each, or one above its tolerance, or -inf for none near 0."""
    count, inside = len(across), cells.shape[1] - 1
    marked = cells > -tolerance[:, None]  # (N, m)
    low = marked.int().argmax(dim=1)  # (N,)
    high = inside - marked.flip(1).int().argmax(dim=1)  # (N,)
    start = torch.searchsorted(across.last, low)  # (N,)
    end = torch.searchsorted(across.first, high, right=True)  # (N,)
    # Pixels around the highest cell, which usually has one above the threshold, or all that have a marked cell.
    width = min(count, max(_WINDOW, 8 * math.ceil(count / cells.shape[1])))
    peak = torch.searchsorted(across.last, cells.argmax(dim=1))
    begin = torch.minimum(torch.maximum(peak - width // 2, start), (end - width).clamp(min=0))  # (N,)
    pixels = (begin[:, None] + torch.arange(width, device=cells.device)).clamp(max=count - 1)  # (N, width)
    values = torch.zeros(pixels.shape, device=cells.device)
    for i in range(across.cells.shape[1]):
        values += cells.gather(1, across.cells[:, i][pixels]) * across.weights[:, i][pixels]
    highest = values.amax(dim=1)
    unseen = ((start < begin) | (end > begin + width)) & (highest <= tolerance)
    rest = (unseen & marked.any(dim=1)).nonzero()[:, 0]
    if len(rest):
        whole = torch.zeros(len(rest), count, device=cells.device)
        for i in range(across.cells.shape[1]):
            whole += cells[rest].index_select(1, across.cells[:, i]) * across.weights[:, i]
        highest[rest] = whole.amax(dim=1)
    return highest
