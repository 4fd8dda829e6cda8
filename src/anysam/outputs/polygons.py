"""Masks as rings of vertices and back: exact along pixel edges, and as one ring where a format holds no more."""

from collections.abc import Sequence

import numpy as np

from anysam import rle
from anysam.errors import OptionError
from anysam.masks import MAX_AREA, Outline, mask_to_polygons
from anysam.results import MaskRecord


def record_outlines(record: MaskRecord) -> list[Outline]:
    """`masks.mask_to_polygons` of a record, which looks only at the mask's box."""
    box = rle.box(record.segmentation)
    if box is None:
        return []
    offset = np.array(box[:2], dtype=np.float64)
    outlines = mask_to_polygons(rle.window(record.segmentation, box))
    return [Outline(each.outer + offset, tuple(hole + offset for hole in each.holes)) for each in outlines]


def joined_ring(rings: Sequence[np.ndarray]) -> np.ndarray:
    """Several rings (N, 2) as one: a seam of no width leads from each to the nearest vertex of those before it.

    The seam is walked there and back, so that it encloses nothing, by the even-odd rule and by the winding number.
    Rings must run as those of an Outline do: holes against their outer ring.
    """
    ring = rings[0]
    for other in rings[1:]:
        # Only the other's uppermost vertices are tried: the nearest of all pairs would take a table of all of them.
        tried = np.argsort(other[:, 1], kind="stable")[:8]
        distances = ((other[tried][:, None] - ring[None]) ** 2).sum(axis=-1)  # (8, N)
        i, j = np.unravel_index(int(distances.argmin()), distances.shape)
        turned = np.roll(other, -int(tried[i]), axis=0)
        ring = np.concatenate([ring[: j + 1], turned, turned[:1], ring[j:]])
    return ring


def fill_rings(rings: Sequence[np.ndarray], size: tuple[int, int]) -> dict[str, object]:
    """Rings (N, 2), x y in pixels, filled by the even-odd rule -> the RLE of a mask of `size` (H, W).

    A pixel is set when its centre is inside, so rings along pixel edges come back exactly. Vertices may lie outside of
    the image. Raises OptionError for a ring that is no array of finite points, or an image too large to fill.
    """
    height, width = size
    if height * width > MAX_AREA or min(size) < 1:
        raise OptionError(f"An image of {width}x{height} pixels is not filled; at most {MAX_AREA:,} are accepted.")
    checked = [_check_ring(ring) for ring in rings if len(ring)]
    if not checked:
        return rle.write_rle(np.array([height * width]), size)
    points = np.concatenate(checked)
    x0, x1 = (int(x) for x in np.clip([np.floor(points[:, 0].min()), np.ceil(points[:, 0].max())], 0, width))
    y0, y1 = (int(y) for y in np.clip([np.floor(points[:, 1].min()), np.ceil(points[:, 1].max())], 0, height))
    if x0 >= x1 or y0 >= y1:
        return rle.write_rle(np.array([height * width]), size)
    toggles = np.zeros((y1 - y0, x1 - x0 + 1), dtype=np.int32)
    for ring in checked:
        rows, columns = _crossings(ring, (x0, y0, x1, y1))
        np.add.at(toggles, (rows, columns), 1)
    inside = np.cumsum(toggles, axis=1)[:, :-1] % 2 == 1  # (y1 - y0, x1 - x0)
    part = rle.write_rle(rle.mask_to_runs(inside), (y1 - y0, x1 - x0))
    return rle.place(part, (x0, y0), size)


def _crossings(ring: np.ndarray, box: rle.Box) -> tuple[np.ndarray, np.ndarray]:
    """Where a ring's edges cross the lines through the centres of the box's rows: row and first column behind it."""
    x0, y0, x1, y1 = box
    a, b = ring, np.roll(ring, -1, axis=0)
    down = a[:, 1] <= b[:, 1]
    upper, lower = np.where(down[:, None], a, b), np.where(down[:, None], b, a)
    first = np.clip(np.ceil(upper[:, 1] - 0.5), y0, y1).astype(np.int64)  # rows whose centre is in [upper, lower)
    stop = np.clip(np.ceil(lower[:, 1] - 0.5), y0, y1).astype(np.int64)
    count = np.maximum(stop - first, 0)
    edge = np.repeat(np.arange(len(ring)), count)
    rows = np.arange(int(count.sum())) - np.repeat(np.cumsum(count) - count, count) + first[edge]
    slope = (lower[edge, 0] - upper[edge, 0]) / (lower[edge, 1] - upper[edge, 1])
    crossings = upper[edge, 0] + (rows + 0.5 - upper[edge, 1]) * slope
    columns = np.clip(np.ceil(crossings - 0.5), x0, x1).astype(np.int64)
    return rows - y0, columns - x0


def _check_ring(ring: np.ndarray) -> np.ndarray:
    try:
        points = np.asarray(ring, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise OptionError(f"A polygon must be numbers of shape (N, 2), x y; {error}.") from error
    if points.ndim != 2 or points.shape[1] != 2 or not np.isfinite(points).all():
        raise OptionError(f"A polygon must be finite numbers of shape (N, 2), x y, got {points.shape}.")
    return points
