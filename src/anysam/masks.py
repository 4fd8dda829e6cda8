"""Binary masks as arrays: run lengths, boxes, areas, overlaps and outlines. Knows no model and writes no file.

A mask is a bool array (H, W). Boxes are x0 y0 x1 y1 in pixels with an exclusive right and bottom edge, so that a mask
of the one pixel in the corner has the box 0 0 1 1. Outlines run along pixel edges in the same frame.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from anysam.errors import OptionError
from anysam.rle import mask_to_runs, read_rle, runs_to_mask, runs_to_spans
from anysam.tracing import Outline, trace_spans

MAX_AREA = 2**31  # a decoded mask takes a byte a pixel: what a few characters of run lengths may ask for


def _check_mask(mask: np.ndarray) -> np.ndarray:
    if not isinstance(mask, np.ndarray) or mask.ndim != 2 or mask.dtype != np.bool_:
        found = f"{mask.dtype} {mask.shape}" if isinstance(mask, np.ndarray) else type(mask).__name__
        raise OptionError(f"A mask must be a bool array (H, W), got {found}; compare with a threshold first.")
    return mask


def encode_rle(mask: np.ndarray) -> dict[str, Any]:
    """Compress a mask (H, W) bool to COCO's run-length form, ready for JSON.

    Returns {"size": [H, W], "counts": str}, which `pycocotools.mask.decode` reads. Raises OptionError for anything but
    a bool array (H, W).
    """
    rle = coco_mask.encode(np.asfortranarray(_check_mask(mask), dtype=np.uint8))
    return {"size": [int(side) for side in rle["size"]], "counts": rle["counts"].decode("ascii")}


def decode_rle(rle: Mapping[str, Any]) -> np.ndarray:
    """Restore the mask (H, W) bool from COCO's run-length form; "counts" is its string, bytes or a list of lengths.

    Raises OptionError when the lengths do not add up to H x W, or the mask has more than MAX_AREA pixels.
    """
    runs, (height, width) = read_rle(rle)
    if height * width > MAX_AREA:
        raise OptionError(
            f"A mask of {width}x{height} pixels is not decoded; at most {MAX_AREA:,} pixels are accepted."
        )
    return runs_to_mask(runs, (height, width))


def mask_area(mask: np.ndarray) -> int:
    """Number of pixels set in a mask (H, W) bool."""
    return int(np.count_nonzero(_check_mask(mask)))


def mask_to_box(mask: np.ndarray) -> np.ndarray | None:
    """Tight box of a mask (H, W) bool: (4,) float64, x0 y0 x1 y1 with exclusive right and bottom; None when empty."""
    rows = np.flatnonzero(_check_mask(mask).any(axis=1))
    if not len(rows):
        return None
    columns = np.flatnonzero(mask.any(axis=0))
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], dtype=np.float64)


def mask_iou(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection over union of two masks (H, W) bool of one size, 0 to 1; 1.0 when both are empty."""
    if _check_mask(a).shape != _check_mask(b).shape:
        raise OptionError(f"Masks of different sizes cannot be compared, got {a.shape} and {b.shape} (H, W).")
    union = np.count_nonzero(a | b)
    return float(np.count_nonzero(a & b) / union) if union else 1.0


def box_iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Intersection over union of every box in `a` (N, 4) with every box in `b` (M, 4), xyxy -> (N, M) float64, 0 to 1.

    Boxes without area overlap nothing. Raises OptionError for other shapes.
    """
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != 4 or b.shape[1] != 4:
        raise OptionError(f"Boxes must be (N, 4) and (M, 4), x0 y0 x1 y1, got {a.shape} and {b.shape}.")
    top_left = np.maximum(a[:, None, :2], b[None, :, :2])  # (N, M, 2)
    bottom_right = np.minimum(a[:, None, 2:], b[None, :, 2:])  # (N, M, 2)
    intersection = np.clip(bottom_right - top_left, 0, None).prod(axis=-1)  # (N, M)
    area_a = np.clip(a[:, 2:] - a[:, :2], 0, None).prod(axis=-1)  # (N,)
    area_b = np.clip(b[:, 2:] - b[:, :2], 0, None).prod(axis=-1)  # (M,)
    union = area_a[:, None] + area_b[None, :] - intersection
    return np.divide(intersection, union, out=np.zeros_like(union), where=union > 0)


def polygon_to_mask(polygon: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Fill a polygon (N, 2) float64, x y in pixels, into a mask (H, W) bool of `size` (H, W).

    A pixel is set when its centre is inside by the even-odd rule, so pixel-edge outlines come back exactly;
    vertices may lie outside the image.
    """
    height, width = size
    toggles = np.zeros((height, width + 1), dtype=np.int32)
    polygon = np.asarray(polygon, dtype=np.float64)
    for (x0, y0), (x1, y1) in zip(polygon, np.roll(polygon, -1, axis=0), strict=True):
        if y0 == y1:
            continue
        if y0 > y1:
            x0, y0, x1, y1 = x1, y1, x0, y0
        first, stop = (int(np.clip(np.ceil(y - 0.5), 0, height)) for y in (y0, y1))  # rows whose centre is in [y0, y1)
        rows = np.arange(first, stop)
        crossings = x0 + (rows + 0.5 - y0) * ((x1 - x0) / (y1 - y0))
        toggles[rows, np.clip(np.ceil(crossings - 0.5), 0, width).astype(np.int64)] += 1
    return np.cumsum(toggles, axis=1)[:, :width] % 2 == 1  # (H, W)


def mask_to_polygons(mask: np.ndarray) -> list[Outline]:
    """Trace a mask (H, W) bool along its pixel edges: one Outline for each 4-connected part, [] when empty.

    Exact: the rings enclose the mask's area, and filling them (`polygon_to_mask`, holes taken out) gives it back.
    """
    runs = mask_to_runs(_check_mask(mask))
    return trace_spans(runs_to_spans(runs), mask.shape[0])
