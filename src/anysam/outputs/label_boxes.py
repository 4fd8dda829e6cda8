"""Where the text boxes of masks go: near their masks, inside the image, never one on another."""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

_GRID = 700  # cells on the longer side of the image, at most
_INSIDE = 40  # places inside a mask that are tried
_DIRECTIONS = 24  # in which a box moves outward
_SWEEPS = 2
_EXCHANGES = 12  # boxes without a place for which others are moved; where more have none, it helps few
_NEIGHBOURS = 6  # that are tried
_REACH = 0.3  # of the image's longer side: the longest leader
# What places cost: over the middle of the mask, beside it, away from it; hiding the whole of another mask, or of a
# point that was given, or with half as much of the mask itself.
_SPILLING, _BESIDE, _LED = 0.5, 0.35, 0.9
_HIDING = 1.6
_OFF_CENTRE = 0.3  # at the rim of the mask
_CAPTION_MAY_COST = 1.0  # a caption says more about a picture only while the picture can be seen

Box = tuple[int, int, int, int]
Point = tuple[float, float]


@dataclass(frozen=True)
class Wish:
    """A mask that wants a text box.

    number: of the mask on the map. box: x0 y0 x1 y1 around the mask, for one of which nothing can be seen. size: (H, W)
    of the text box with the label alone, None if the mask has only a caption. full_size: with the caption, None if it
    has none.
    """

    number: int
    box: tuple[float, float, float, float]
    size: tuple[int, int] | None
    full_size: tuple[int, int] | None = None


@dataclass(frozen=True)
class Place:
    """A text box x0 y0 x1 y1 in pixels. full: with the caption. leader: from the box to a mask it does not touch."""

    box: Box
    full: bool
    leader: tuple[Point, Point] | None


def place_boxes(
    on_top: np.ndarray, wishes: Sequence[Wish], gap: int, avoid: Sequence[tuple[float, float, float, float]] = ()
) -> list[Place | None]:
    """A place for each wish, or None for those that find no room; earlier wishes go first, all labels before captions.

    on_top: (H, W) int, the number from 1 of the mask seen at each pixel, 0 for none. gap: pixels between boxes, and
    between a box and the mask it lies beside. avoid: boxes x0 y0 x1 y1 that would better be seen.

    A box goes inside its mask, to the innermost place where it fits; else beside it, or over its middle; else further
    out at the end of a leader. Boxes stay inside the image and never overlap. They cover no mask for which they could
    find another place nearby.
    """
    board = _Board(on_top, gap, avoid)
    places: list[Place | None] = [None] * len(wishes)
    targets = [_target(board, wish) for wish in wishes]
    for sweep in range(_SWEEPS):
        for i, wish in enumerate(wishes):
            if wish.size is None or (sweep and (kept := places[i]) is not None and kept.leader is None):
                continue
            board.remove(places[i])  # now that those are known which came later, its leader may find a better way
            places[i] = board.place(targets[i], wish.size, full=False)
    left = [i for i, wish in enumerate(wishes) if wish.size is not None and places[i] is None]
    for i in left if len(left) <= _EXCHANGES else ():
        _exchange(board, wishes, targets, places, i)
    for i, wish in enumerate(wishes):
        if wish.full_size is not None:
            without = places[i]
            board.remove(without)
            places[i] = board.place(targets[i], wish.full_size, full=True, limit=_CAPTION_MAY_COST) or without
            if places[i] is without:
                board.put(without)
    return places


def _exchange(
    board: "_Board", wishes: Sequence[Wish], targets: Sequence["_Target"], places: list[Place | None], i: int
) -> None:
    """Find a place for a label by moving one other, if there is a place for both; changes `places`."""
    away = {
        j: np.hypot(place.box[0] - targets[i].anchor[0], place.box[1] - targets[i].anchor[1])
        for j, place in enumerate(places)
        if place is not None
    }
    for j in sorted(away, key=lambda j: away[j])[:_NEIGHBOURS]:
        size, other_size = wishes[i].size, wishes[j].size
        assert size is not None and other_size is not None
        board.remove(places[j])
        first = board.place(targets[i], size, full=False)
        second = board.place(targets[j], other_size, full=False) if first is not None else None
        if second is not None:
            places[i], places[j] = first, second
            return
        board.remove(first)
        board.put(places[j])


@dataclass(frozen=True, eq=False)
class _Target:
    """The thickest part that can be seen of a mask, since a label on a splinter of it would be taken for another's.

    In cells of the grid: origin: x y of the window; seen: (h, w) bool, and sums: its integral; depth: (h, w) float32,
    how far inside. In pixels: anchor: the innermost point; box: around it.
    """

    origin: tuple[int, int]
    seen: np.ndarray
    sums: np.ndarray
    depth: np.ndarray
    anchor: Point
    box: tuple[float, float, float, float]


class _Board:
    """The image with the boxes that have their places. Holds state, since every box stands in the way of the next."""

    def __init__(self, on_top: np.ndarray, gap: int, avoid: Sequence[tuple[float, float, float, float]] = ()) -> None:
        self.height, self.width = on_top.shape
        self.gap = gap
        self.step = max(1, -(-max(on_top.shape) // _GRID))
        self.map = np.ascontiguousarray(on_top[:: self.step, :: self.step])  # (h, w)
        self.last = np.array(self.map.shape[::-1]) - 1  # x y
        counts = np.bincount(self.map.ravel())
        shares = 1 / np.maximum(counts, 1)
        shares[0] = 0
        self.shares = _integral(shares[self.map])  # of a rectangle: the parts of masks it covers, summed
        self.avoid = np.array(avoid, dtype=np.float64).reshape(-1, 4)
        self.places: list[Place] = []

    def put(self, place: Place | None) -> None:
        if place is not None:
            self.places.append(place)

    def remove(self, place: Place | None) -> None:
        if place is not None:
            self.places.remove(place)

    def place(self, target: _Target, size: tuple[int, int], full: bool, limit: float = np.inf) -> Place | None:
        """The best place for a box of a size (H, W), which is taken; None where none is free that costs less."""
        height, width = size
        if height > self.height or width > self.width:
            return None
        room = np.array([self.width - width, self.height - height])
        edge = np.minimum(self.gap, room // 2)
        taken = np.array([place.box for place in self.places]).reshape(-1, 4)  # (P, 4)
        best, least = None, limit
        for candidates in (_near, _far):
            corners, costs = candidates(target, size, self)  # (K, 2) x y, (K,)
            corners = np.clip(np.round(corners), edge, room - edge)
            boxes = np.concatenate([corners, corners + [width, height]], axis=1).astype(int)  # (K, 4)
            free = self._free(boxes, taken)
            if free.any():
                boxes, costs = boxes[free], costs[free] + self._costs(boxes[free], target, taken)
                if costs.min() < least:
                    best, least = boxes[costs.argmin()], costs.min()
            if least < _LED:
                break
        if best is None:
            return None
        x0, y0, x1, y1 = best.tolist()
        place = Place((x0, y0, x1, y1), full, self._leader(best, target))
        self.put(place)
        return place

    def cells(self, boxes: np.ndarray) -> np.ndarray:
        """Boxes (K, 4) in pixels -> the cells (K, 4) they cover, at least one each."""
        cells = np.maximum(np.rint(boxes / self.step).astype(int), 0)
        first = np.minimum(cells[:, :2], self.last)
        return np.concatenate([first, np.minimum(np.maximum(cells[:, 2:], first + 1), self.last + 1)], axis=1)

    def _free(self, boxes: np.ndarray, taken: np.ndarray) -> np.ndarray:
        """Whether boxes (K, 4) keep away from those (P, 4) that have their places."""
        grown = np.concatenate([boxes[:, :2] - self.gap, boxes[:, 2:] + self.gap], axis=1)
        hull = np.concatenate([grown[:, :2].min(axis=0), grown[:, 2:].max(axis=0)])
        taken = taken[_overlap(taken, hull)]  # few of all
        return np.logical_not(_overlap(grown[:, None], taken).any(axis=1))  # (K, P) -> (K,)

    def _costs(self, boxes: np.ndarray, target: _Target, taken: np.ndarray) -> np.ndarray:
        """What boxes (K, 4) hide, and for those away from the mask the way to it.

        Infinite for a line through a box or another line, which would seem to lead elsewhere.
        """
        costs = _HIDING * _sums(self.shares, self.cells(boxes))
        costs -= _HIDING / 2 * self._seen(boxes, target) / max(target.sums[-1, -1], 1)  # its own mask
        costs += _HIDING * _shares_covered(boxes[:, None], self.avoid).sum(axis=1)
        lines = [place.leader for place in self.places if place.leader is not None]
        others = np.array(lines).reshape(-1, 4)  # (L, 4)
        costs[_crosses(boxes[:, None], others).any(axis=1)] = np.inf
        away = np.flatnonzero(~self._touches(boxes, target))
        centres = (boxes[away, :2] + boxes[away, 2:]) / 2  # (A, 2)
        lengths = np.hypot(*(centres - target.anchor).T)
        costs[away] += _LED + 2 * lengths / max(self.width, self.height)
        leaders = np.concatenate([centres, np.broadcast_to(target.anchor, centres.shape)], axis=1)[:, None]  # (A, 1, 4)
        crossing = _crosses(taken, leaders).any(axis=1) | _cross_each_other(leaders, others).any(axis=1)
        costs[away[crossing]] = np.inf
        return costs

    def _touches(self, boxes: np.ndarray, target: _Target) -> np.ndarray:
        """Whether boxes (K, 4) lie on the mask or right beside it."""
        reach = self.gap + self.step
        return np.asarray(self._seen(boxes + [-reach, -reach, reach, reach], target) > 0)

    def _seen(self, boxes: np.ndarray, target: _Target) -> np.ndarray:
        """How many cells of the mask lie in boxes (K, 4)."""
        x, y = target.origin
        height, width = target.seen.shape
        cells = self.cells(boxes) - [x, y, x, y]
        return _sums(target.sums, np.minimum(np.maximum(cells, 0), [width, height, width, height]))

    def _leader(self, box: np.ndarray, target: _Target) -> tuple[Point, Point] | None:
        """From the rim of the box, towards the innermost point of the mask, to a little inside it."""
        if self._touches(box[None], target)[0]:
            return None
        sides, anchor = (box[2:] - box[:2]) / 2, np.array(target.anchor)
        centre = box[:2] + sides
        way = anchor - centre
        count = int(np.abs(way).max() / self.step) + 2
        points = centre + np.linspace(0, 1, count)[:, None] * way  # (count, 2)
        cells = np.floor(points / self.step).astype(int) - target.origin
        inside = ((cells >= 0) & (cells < target.seen.shape[::-1])).all(axis=1)
        inside[inside] = target.seen[cells[inside, 1], cells[inside, 0]]
        if inside.any():
            entry = int(inside.argmax())
            steps = inside[entry : entry + 1 + round(sides[1] / self.step)]
            anchor = points[entry + int(steps.cumprod().sum()) - 1]  # not out of it again
        start = centre + way * min(1.0, *(sides / np.maximum(np.abs(way), 1e-9)))
        return (float(start[0]), float(start[1])), (float(anchor[0]), float(anchor[1]))


def _target(board: _Board, wish: Wish) -> _Target:
    step, box = board.step, wish.box
    x0, y0, x1, y1 = board.cells(np.array([box]))[0].tolist()
    seen = board.map[y0:y1, x0:x1] == wish.number
    anchor = ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2)
    depth = cv2.distanceTransform(np.pad(seen, 1).astype(np.uint8), cv2.DIST_L2, 5)[1:-1, 1:-1]
    if seen.any():  # else it is smaller than a cell, or under others
        parts = cv2.connectedComponents(seen.astype(np.uint8))[1]
        seen = parts == parts.flat[depth.argmax()]
        depth = depth * seen
        rows, columns = np.flatnonzero(seen.any(axis=1)), np.flatnonzero(seen.any(axis=0))
        inner = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
        seen, depth, x0, y0 = seen[inner], depth[inner], x0 + int(columns[0]), y0 + int(rows[0])
        y, x = np.unravel_index(depth.argmax(), depth.shape)
        anchor = ((x0 + x + 0.5) * step, (y0 + y + 0.5) * step)
        box = (x0 * step, y0 * step, (x0 + seen.shape[1]) * step, (y0 + seen.shape[0]) * step)
    return _Target((x0, y0), seen, _integral(seen), depth, anchor, box)


def _near(target: _Target, size: tuple[int, int], board: _Board) -> tuple[np.ndarray, np.ndarray]:
    """Corners (K, 2) of boxes inside the mask, over its middle and beside it, and what they cost (K,)."""
    height, width = size
    inside, costs = _inside(target, size, board)
    x0, y0, x1, y1 = target.box
    above, below = y0 - height - board.gap, y1 + board.gap
    middle, aside = (x0 + x1 - width) / 2, target.anchor[1] - height / 2
    beside = [
        *((middle, above), (x0, above), (x1 - width, above), (target.anchor[0] - width / 2, above)),
        *((middle, below), (x0, below), (x1 - width, below), (target.anchor[0] - width / 2, below)),
        *((x0 - width - board.gap, aside), (x1 + board.gap, aside)),
    ]
    over = (target.anchor[0] - width / 2, target.anchor[1] - height / 2)
    ranks = np.repeat([0, 0.1, 0.15], [4, 4, 2])
    corners = np.concatenate([inside, [over], beside])
    return corners, np.concatenate([costs, [_SPILLING], _BESIDE + ranks])


def _inside(target: _Target, size: tuple[int, int], board: _Board) -> tuple[np.ndarray, np.ndarray]:
    """Corners (K, 2) of boxes that lie wholly on what is seen of the mask; the deeper the centre the cheaper."""
    height, width = (-(-(side + 2 * board.gap) // board.step) | 1 for side in size)  # odd, to have a centre
    if height > target.seen.shape[0] or width > target.seen.shape[1]:
        return np.zeros((0, 2)), np.zeros(0)
    fits = cv2.erode(np.pad(target.seen, 1).astype(np.uint8), np.ones((height, width), np.uint8))[1:-1, 1:-1]
    depth = target.depth * fits
    cells = np.flatnonzero(fits)
    if not len(cells):
        return np.zeros((0, 2)), np.zeros(0)
    spread = cells[np.linspace(0, len(cells) - 1, _INSIDE).astype(int)]
    y, x = np.unravel_index(np.append(depth.argmax(), spread), depth.shape)
    centres = (np.stack([x, y], axis=1) + target.origin + 0.5) * board.step
    return centres - [size[1] / 2, size[0] / 2], _OFF_CENTRE * (1 - depth[y, x] / depth.max())


def _far(target: _Target, size: tuple[int, int], board: _Board) -> tuple[np.ndarray, np.ndarray]:
    """Corners (K, 2) of boxes around the mask, further and further out; what they cost is the way."""
    height, width = size
    reach = _REACH * max(board.height, board.width)
    distances = height * 1.25 ** np.arange(1, 40)
    distances = distances[distances <= max(reach, height * 1.25)]
    angles = np.arange(_DIRECTIONS) * 2 * np.pi / _DIRECTIONS
    directions = np.stack([np.cos(angles), np.sin(angles)], axis=1)  # (directions, 2)
    ways = (distances[:, None] * np.ones(_DIRECTIONS))[..., None] * directions  # (distances, directions, 2)
    centres = np.array(target.anchor) + ways + directions * [width / 2, height / 2]
    corners = centres.reshape(-1, 2) - [width / 2, height / 2]
    return corners, np.zeros(len(corners))


def _integral(values: np.ndarray) -> np.ndarray:
    """Sums (h + 1, w + 1) of all that lies above and left, float64."""
    return np.pad(values.astype(np.float64).cumsum(axis=0).cumsum(axis=1), ((1, 0), (1, 0)))


def _sums(integral: np.ndarray, cells: np.ndarray) -> np.ndarray:
    x0, y0, x1, y1 = cells.T
    return integral[y1, x1] - integral[y0, x1] - integral[y1, x0] + integral[y0, x0]


def _overlap(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Whether boxes (..., 4) share pixels with other boxes (..., 4)."""
    wide = (boxes[..., 0] < others[..., 2]) & (others[..., 0] < boxes[..., 2])
    return np.asarray(wide & (boxes[..., 1] < others[..., 3]) & (others[..., 1] < boxes[..., 3]))


def _shares_covered(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """What part of the other boxes (..., 4) boxes (..., 4) cover."""
    low, high = np.maximum(boxes[..., :2], others[..., :2]), np.minimum(boxes[..., 2:], others[..., 2:])
    sides = np.maximum(high - low, 0)
    areas = (others[..., 2] - others[..., 0]) * (others[..., 3] - others[..., 1])
    return np.asarray(sides.prod(axis=-1) / np.maximum(areas, 1))


def _crosses(boxes: np.ndarray, lines: np.ndarray) -> np.ndarray:
    """Whether lines x y x y (..., 4) run through boxes (..., 4)."""
    enter, leave = np.float64(0), np.float64(1)  # along the line
    for axis in (0, 1):
        start, way = lines[..., axis], lines[..., 2 + axis] - lines[..., axis]
        way = np.where(np.abs(way) < 1e-9, 1e-9, way)
        near, far = (boxes[..., axis] - start) / way, (boxes[..., 2 + axis] - start) / way
        enter, leave = np.maximum(enter, np.minimum(near, far)), np.minimum(leave, np.maximum(near, far))
    return np.asarray(enter < leave)


def _cross_each_other(lines: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Whether lines x y x y (..., 4) cross other lines (..., 4)."""

    def parted(points: np.ndarray, ends: np.ndarray) -> np.ndarray:
        """Whether the two `points` lie on two sides of the line through the two `ends`."""
        way = ends[..., 2:] - ends[..., :2]
        first, second = points[..., :2] - ends[..., :2], points[..., 2:] - ends[..., :2]
        sides = [way[..., 0] * to[..., 1] > way[..., 1] * to[..., 0] for to in (first, second)]
        return np.asarray(sides[0] != sides[1])

    return parted(lines, others) & parted(others, lines)
