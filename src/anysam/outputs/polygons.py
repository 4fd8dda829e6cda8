"""Masks as rings of vertices and back: exact along pixel edges, and as one ring where a format holds no more."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from anysam import rle
from anysam.errors import OptionError
from anysam.results import MaskRecord
from anysam.tracing import Outline, trace_spans

# Where the outlines of one mask may cross columns of pixels. A polygon of few letters can cross a large image so often
# that no memory would hold it; of what a mask looks like, this is the outline of a chessboard of 16 megapixels.
MAX_CROSSINGS = 2**23
MAX_COORDINATE = 1e12  # of a vertex in pixels: arithmetic on it is exact to a thousandth
INSET = 0.05  # pixels; see `joined_ring`
_CHUNK = 2**20  # crossings worked on at once

_COMPARED = 1024  # vertices among which the nearest is sought for a seam between two parts


def record_outlines(record: MaskRecord) -> list[Outline]:
    """`masks.mask_to_polygons` of a record, which is not unfolded."""
    runs, size = rle.read_rle(record.segmentation)
    return trace_spans(rle.runs_to_spans(runs), size[0])


def joined_ring(outlines: Sequence[Outline], inset: float = 0.0) -> np.ndarray:
    """Outlines along pixel edges, at least one, as one ring (N, 2): seams of no width lead to holes and other parts.

    A seam is walked there and back, so that it encloses nothing, by the even-odd rule and by the winding number. The
    seam of a hole goes straight up through the mask alone, where a reader that also draws the outline does no harm; one
    between two parts is about as short as can be.

    inset: moves all edges into the mask, in pixels. With a little of it, 0 < inset < 0.5, rounding down gives the first
    and the last pixels of the mask, which is what those fill exactly that round down and include the outline.
    """
    rings = [ring for each in outlines for ring in (each.outer, *each.holes)]
    xy = np.concatenate(rings)  # (N, 2)
    stops = np.cumsum([len(ring) for ring in rings])
    firsts = stops - [len(ring) for ring in rings]
    after, before = np.arange(1, len(xy) + 1), np.arange(-1, len(xy) - 1)
    after[stops - 1], before[firsts] = firsts, stops - 1
    steps = np.sign(xy[after] - xy)  # of the edge that leaves each vertex
    turns = steps + steps[before]  # the mask is on the right of every edge
    places = xy + inset * np.stack([-turns[:, 1], turns[:, 0]], axis=1)
    if len(rings) == 1:
        return places[_moved(places)]
    chain = places.tolist()
    following = after.tolist()

    def insert(vertex: int, seam: list[list[float]], last: int) -> None:
        """Behind `vertex` go along the seam to what follows `last`, all around to `last`, and back."""
        behind, ahead = following[vertex], following[last]
        for end, points, goal in ((vertex, seam, ahead), (last, seam[::-1], behind)):
            following[end] = len(chain)
            following.extend(range(len(chain) + 1, len(chain) + len(points)))
            following.append(goal)
            chain.extend(points)

    is_hole = [i > 0 for each in outlines for i in range(1 + len(each.holes))]
    holes = [slice(*ends) for *ends, hole in zip(firsts, stops, is_hole, strict=True) if hole]
    for hole, edge in _edges_above(xy, after, holes):
        x, y0, y1 = xy[hole, 0] + 0.5, xy[edge, 1] + inset, xy[hole, 1] - inset
        insert(edge, [[x, y0], [x, y1]], int(before[hole]))
    outers = [slice(*ends) for *ends, hole in zip(firsts, stops, is_hole, strict=True) if not hole]
    for here, there in _nearest_vertices(xy, outers):
        insert(here, [chain[here], chain[there]], there)
    vertex, ring = int(following[0]), [chain[0]]
    while vertex:
        ring.append(chain[vertex])
        vertex = following[vertex]
    joined = np.array(ring)
    return joined[_moved(joined)]


def _moved(ring: np.ndarray) -> np.ndarray:
    """Which vertices of a ring (N, 2) differ from the one before: (N,) bool."""
    moved = ring != np.roll(ring, 1, axis=0)
    return moved[:, 0] | moved[:, 1]


def _edges_above(xy: np.ndarray, after: np.ndarray, holes: Sequence[slice]) -> list[tuple[int, int]]:
    """For each hole its top left vertex, and the vertex where the next horizontal edge straight above that begins.

    One sweep from the top: what is next above a column is noted for each. Of several holes under one edge, the one
    farthest along comes first, so that each can be inserted right behind the edge's vertex.
    """
    if not holes:
        return []
    whole = xy.astype(np.int64)
    x, y = (whole - whole.min(axis=0)).T
    order = y * (int(x.max()) + 1) + x
    heads = [hole.start + int(order[hole].argmin()) for hole in holes]
    edges = np.flatnonzero(y == y[after])
    lefts, rights = np.minimum(x, x[after]).tolist(), np.maximum(x, x[after]).tolist()
    above = [0] * (int(x.max()) + 1)
    events = [(y[head], 0, head) for head in heads] + [(y[edge], 1, edge) for edge in edges.tolist()]
    found = []
    for _, is_edge, vertex in sorted(events):
        left, right = lefts[vertex], rights[vertex]
        if is_edge:
            above[left:right] = [vertex] * (right - left)
        else:
            found.append((vertex, above[x[vertex]]))
    return sorted(found, key=lambda pair: -abs(int(x[pair[0]] - x[pair[1]])))


def _nearest_vertices(xy: np.ndarray, outers: Sequence[slice]) -> list[tuple[int, int]]:
    """For each outer ring but the first, two near vertices: one of the rings before it, and one of its own."""
    pairs = []
    before = np.zeros(sum(outer.stop - outer.start for outer in outers), dtype=np.int64)
    count = 0
    for outer in outers:
        own = np.arange(outer.start, outer.stop)
        if count:
            tried, others = own[:: len(own) // 16 + 1], before[: count : count // _COMPARED + 1]
            aside, below = (xy[tried][:, None] - xy[others][None]).transpose(2, 0, 1)
            distances = aside**2 + below**2  # (about 16, about 1024)
            i, j = np.unravel_index(int(distances.argmin()), distances.shape)
            pairs.append((int(others[j]), int(tried[i])))
        before[count : count + len(own)] = own
        count += len(own)
    return pairs


def fill_rings(rings: Sequence[np.ndarray], size: tuple[int, int], where: str = "A polygon") -> dict[str, Any]:
    """Rings (N, 2), x y in pixels, filled by the even-odd rule -> the RLE of a mask of `size` (H, W).

    A pixel is set when its centre is inside, so rings along pixel edges come back exactly. Vertices may lie outside of
    the image. Takes memory for the outline, not for the image. where: what errors begin with. Raises OptionError for a
    ring that is no array of finite points, or whose outline is longer than MAX_CROSSINGS.
    """
    return fill_parts([rings], size, where)


def fill_parts(
    parts: Sequence[Sequence[np.ndarray]], size: tuple[int, int], where: str = "A polygon"
) -> dict[str, Any]:
    """The union of several masks, each of rings as in `fill_rings`."""
    room = MAX_CROSSINGS
    spans = [np.zeros((0, 2), dtype=np.int64)]
    for rings in parts:
        places = [np.zeros(0, dtype=np.int64)]
        for ring in rings:
            own = _crossings(_check_ring(ring, where), size, room, where)
            room -= sum(len(each) for each in own)
            places += own
        # Down a column every crossing leads into the mask or out of it; two at one place are none. The end of a column
        # is the place where the next begins.
        found = np.sort(np.concatenate(places))
        first = np.flatnonzero(np.diff(found, prepend=-1))
        odd = np.diff(first, append=len(found)) % 2 == 1
        spans.append(found[first[odd]].reshape(-1, 2))  # (M, 2)
    return rle.write_rle(rle.spans_to_runs(rle.spans_union(spans), size[0] * size[1]), size)


def _crossings(ring: np.ndarray, size: tuple[int, int], room: int, where: str) -> list[np.ndarray]:
    """Where a ring crosses the middle of columns: the number of the first pixel below, counted column by column.

    room: how many of them may be found at most. Raises OptionError.
    """
    height, width = size
    a, b = ring, np.roll(ring, -1, axis=0)
    rises = a[:, :1] <= b[:, :1]
    left, right = np.where(rises, a, b), np.where(rises, b, a)
    first = np.clip(np.ceil(left[:, 0] - 0.5), 0, width).astype(np.int64)  # columns whose middle is in [left, right)
    stop = np.clip(np.ceil(right[:, 0] - 0.5), 0, width).astype(np.int64)
    ends = np.cumsum(np.maximum(stop - first, 0).astype(np.float64))
    if len(ends) and ends[-1] > room:
        raise OptionError(
            f"{where}: the outline of a mask crosses columns more than {MAX_CROSSINGS:,} times; simplify it."
        )
    ends = ends.astype(np.int64)
    found = []
    for start in range(0, int(ends[-1]) if len(ends) else 0, _CHUNK):
        number = np.arange(start, min(start + _CHUNK, int(ends[-1])))
        edge = np.searchsorted(ends, number, side="right")
        column = stop[edge] - (ends[edge] - number)
        (x0, y0), (x1, y1) = left[edge].T, right[edge].T
        y = y0 + (y1 - y0) * ((column + 0.5 - x0) / (x1 - x0))
        found.append(column * height + np.clip(np.ceil(y - 0.5), 0, height).astype(np.int64))
    return found


def _check_ring(ring: np.ndarray, where: str) -> np.ndarray:
    try:
        points = np.asarray(ring, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise OptionError(f"{where}: vertices must be numbers of shape (N, 2), x y; {error}.") from error
    if points.ndim != 2 or points.shape[1] != 2 or not (np.abs(points) < MAX_COORDINATE).all():
        raise OptionError(f"{where}: vertices must be (N, 2), x y, finite and below {MAX_COORDINATE:g}; these are not.")
    return points
