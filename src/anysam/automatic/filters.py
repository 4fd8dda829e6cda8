"""Which candidates stay: stability, edges of crops, overlap of boxes. Published formulas, on arrays.

Source: facebookresearch/segment-anything@dca509f, segment_anything/utils/amg.py, and the non-maximum suppression of
torchvision that it calls (BSD-3-Clause), written anew. Boxes here are x0 y0 x1 y1 with the last row and column that
belong to the mask, as published, so that a mask of one pixel has a box without area.
"""

from collections.abc import Callable

import numpy as np

# Pixels within which a side of a box counts as lying on a side of the crop.
EDGE_DISTANCE = 20.0


def inclusive_box(mask: np.ndarray) -> tuple[int, int, int, int]:
    """x0 y0 x1 y1 of a mask (H, W) bool, its last column and row included; 0 0 0 0 when it is empty."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return 0, 0, 0, 0
    return int(columns[0]), int(rows[0]), int(columns[-1]), int(rows[-1])


def stability_ratio(narrow: np.ndarray, wide: np.ndarray) -> np.ndarray:
    """Pixels of the masks at a higher threshold by those at a lower one, (K,) each -> (K,) float32; 0 / 0 is NaN."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(narrow).astype(np.float32) / np.asarray(wide).astype(np.float32)


def stability_score(logits: np.ndarray, threshold: float, offset: float) -> np.ndarray:
    """The IoU of the masks (K, H, W) > threshold + offset and > threshold - offset: (K,) float32."""
    narrow, wide = (
        np.count_nonzero(logits > np.float32(level), axis=(-2, -1))
        for level in (threshold + offset, threshold - offset)
    )
    return stability_ratio(narrow, wide)


def near_crop_edge(
    boxes: np.ndarray, crop_box: tuple[int, int, int, int], size: tuple[int, int], distance: float = EDGE_DISTANCE
) -> np.ndarray:
    """Whether a box (N, 4) in the crop's pixels ends at the crop's edge, but not at the image's: (N,) bool.

    crop_box: x0 y0 x1 y1 in an image of `size` (H, W).
    """
    crop = np.array(crop_box, dtype=np.float32)  # (4,)
    image = np.array([0, 0, size[1], size[0]], dtype=np.float32)  # (4,)
    moved = (boxes + crop[[0, 1, 0, 1]]).astype(np.float32)  # (N, 4)
    near = (np.abs(moved - crop) <= distance) & ~(np.abs(moved - image) <= distance)  # (N, 4)
    return near.any(axis=1)


def greedy_nms(
    boxes: np.ndarray,
    scores: np.ndarray,
    iou_threshold: float,
    accept: Callable[[np.ndarray], np.ndarray] | None = None,
    lot: int = 1,
) -> np.ndarray:
    """Indices of boxes (N, 4) that no better kept box overlaps with an IoU above the threshold, best first.

    Equal scores (N,) are taken in their order. An IoU of 0 / 0 (two boxes without area) suppresses nothing. accept:
    told the indices of at most `lot` boxes that are not suppressed, says which of them may be kept (bool); asked in
    the order of scores and never of a box that is suppressed by a kept one at that time. A box that is not accepted
    neither stays nor suppresses, so that asking late gives what filtering all boxes before would.
    """
    order = np.argsort(-scores, kind="stable")
    boxes = np.ascontiguousarray(boxes[order], dtype=np.float32)  # (N, 4)
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])  # (N,)
    open_ = np.ones(len(boxes), dtype=bool)  # neither suppressed nor decided
    kept: list[int] = []
    start = 0
    while True:
        waiting = start + np.flatnonzero(open_[start : start + 16 * lot])[:lot]
        if not len(waiting):
            start += 16 * lot
            if start >= len(boxes):
                return order[kept]
            continue
        start = int(waiting[-1]) + 1
        good = np.ones(len(waiting), dtype=bool) if accept is None else accept(order[waiting])
        for i in waiting[good].tolist():
            if open_[i]:
                kept.append(i)
                open_[i + 1 :] &= ~_overlaps(boxes[i], areas[i], boxes[i + 1 :], areas[i + 1 :], iou_threshold)


def _overlaps(
    box: np.ndarray, area: np.ndarray, others: np.ndarray, areas: np.ndarray, iou_threshold: float
) -> np.ndarray:
    """Whether the IoU of a box (4,) with others (N, 4), in float32, is above the threshold: (N,) bool."""
    top_left = np.maximum(box[:2], others[:, :2])  # (N, 2)
    sides = np.maximum(np.minimum(box[2:], others[:, 2:]) - top_left, np.float32(0))  # (N, 2)
    intersection = sides[:, 0] * sides[:, 1]  # (N,)
    with np.errstate(divide="ignore", invalid="ignore"):
        iou = intersection / (area + areas - intersection)  # (N,)
    return iou.astype(np.float64) > iou_threshold
