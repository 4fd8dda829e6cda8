"""The edges of masks as closed rings, from run lengths: work and memory go with the outline, not with the pixels.

A ring runs along pixel edges with the mask on its right: around a part clockwise on the screen, around a hole
counter-clockwise. Where two parts touch by a corner they stay apart.
"""

from dataclasses import dataclass

import numpy as np

from anysam import rle


@dataclass(frozen=True, eq=False)
class Outline:
    """One connected part of a mask: its outer ring and the rings of the holes in it.

    Rings are (N, 2) float64, x y, corners of pixels, not closed (the last vertex differs from the first); outer rings
    run clockwise on the screen, holes counter-clockwise.
    """

    outer: np.ndarray
    holes: tuple[np.ndarray, ...] = ()


@dataclass(frozen=True, eq=False)
class _Edges:
    """Edges of one direction, (N,) int64 each: on which line, from where to where on it, and +1 for ahead or -1."""

    line: np.ndarray
    start: np.ndarray
    end: np.ndarray
    sign: np.ndarray


def trace_spans(spans: np.ndarray, height: int) -> list[Outline]:
    """An Outline for each 4-connected part of the spans (N, 2) of an image that is `height` high.

    In the order of their first pixels, row by row; rings begin with the first of their horizontal edges in that order.
    """
    column, top, bottom = rle.column_spans(spans, height)
    if not len(column):
        return []
    across, lowest_above = _horizontal(column, top, bottom)
    down = _vertical(column, top, bottom)
    xy = np.concatenate(
        [np.stack([across.start, across.line], axis=1), np.stack([down.line, down.start], axis=1)]
    )  # (E, 2), where each edge begins
    rings, ring_of = _rings(_following(across, down).tolist(), len(across.line))
    # The first edge of a ring is its highest: the mask is below it, or above it where the ring is a hole's. What is
    # above a hole belongs to its part, and to a ring that began before.
    parts: list[int] = []
    outers: list[np.ndarray] = []
    holes: list[list[np.ndarray]] = []
    for ring in rings:
        first = ring[0]
        if across.sign[first] > 0:
            parts.append(len(outers))
            outers.append(xy[ring].astype(np.float64))
            holes.append([])
        else:
            parts.append(parts[ring_of[lowest_above[first]]])
            holes[parts[-1]].append(xy[ring].astype(np.float64))
    return [Outline(outer, tuple(own)) for outer, own in zip(outers, holes, strict=True)]


def _horizontal(column: np.ndarray, top: np.ndarray, bottom: np.ndarray) -> tuple[_Edges, np.ndarray]:
    """Horizontal edges by row, then column: above the mask they run right, below it left.

    Also, for each edge below the mask, the edge above the mask that is straight over its left end, (N,) int64.
    """
    count = len(column)
    y, x = np.concatenate([top, bottom]), np.concatenate([column, column])  # (2M,), a pixel's side each
    sign = np.repeat(np.array([1, -1]), count)
    order = np.lexsort((x, y))
    y, x, sign = y[order], x[order], sign[order]
    begins = np.ones(2 * count, dtype=bool)
    begins[1:] = (y[1:] != y[:-1]) | (x[1:] != x[:-1] + 1) | (sign[1:] != sign[:-1])
    first = np.flatnonzero(begins)
    last = np.append(first[1:], 2 * count) - 1
    left, right, ahead = x[first], x[last] + 1, sign[first] > 0
    edge_of = np.empty(2 * count, dtype=np.int64)  # of each side, in the order before sorting
    edge_of[order] = np.cumsum(begins) - 1
    above = edge_of[order[first] % count]  # of a side below a span, the side above it
    return _Edges(y[first], np.where(ahead, left, right), np.where(ahead, right, left), sign[first]), above


def _vertical(column: np.ndarray, top: np.ndarray, bottom: np.ndarray) -> _Edges:
    """Vertical edges by column, then row: on the right of the mask they run down, on the left up."""
    count = len(column)
    x = np.concatenate([column + 1, column + 1, column, column])
    y = np.concatenate([top, bottom, top, bottom])
    step = np.repeat(np.array([1, -1, -1, 1]), count)
    order = np.lexsort((y, x))
    x, y = x[order], y[order]
    begins = np.ones(4 * count, dtype=bool)
    begins[1:] = (x[1:] != x[:-1]) | (y[1:] != y[:-1])
    first = np.flatnonzero(begins)
    sign = np.cumsum(
        np.add.reduceat(step[order], first)
    )  # from each place down to the next; 0 after the last of a line
    x, y = x[first], y[first]
    upper = np.flatnonzero(sign)  # at every place the mask begins or ends on one side, so that an edge goes to the next
    lower, ahead = upper + 1, sign[upper] > 0
    return _Edges(x[upper], np.where(ahead, y[upper], y[lower]), np.where(ahead, y[lower], y[upper]), sign[upper])


def _following(across: _Edges, down: _Edges) -> np.ndarray:
    """For each edge, horizontal ones first, the one that goes on from its end.

    Where two parts touch by a corner both turns exist; the right turn keeps the parts separate.
    """
    width = int(max(across.start.max(), across.end.max())) + 2
    starts_across = (across.line * width + across.start) * 2 + (across.sign > 0)
    starts_down = (down.start * width + down.line) * 2 + (down.sign > 0)
    # To the right of right is down, of left up; of down left, of up right.
    after_across = _find(starts_down, (across.line * width + across.end) * 2 + (across.sign > 0))
    after_down = _find(starts_across, (down.end * width + down.line) * 2 + (down.sign < 0))
    return np.concatenate([after_across + len(across.line), after_down])


def _find(keys: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Where each wanted number, or else the other of its pair, is among the keys; one of them is."""
    order = np.argsort(keys)
    ordered = keys[order]
    place = np.minimum(np.searchsorted(ordered, wanted), len(keys) - 1)
    missing = ordered[place] != wanted
    place[missing] = np.searchsorted(ordered, wanted[missing] ^ 1)
    return order[place]


def _rings(following: list[int], horizontal: int) -> tuple[list[list[int]], list[int]]:
    """The edges of each ring, from its first horizontal one on; and the number of the ring of each edge."""
    rings: list[list[int]] = []
    ring_of = [-1] * len(following)
    for start in range(horizontal):
        if ring_of[start] >= 0:
            continue
        number, ring, edge = len(rings), [], start
        while ring_of[edge] < 0:
            ring_of[edge] = number
            ring.append(edge)
            edge = following[edge]
        rings.append(ring)
    return rings, ring_of
