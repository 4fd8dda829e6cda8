"""What is left of a list of records: none too small, none twice, not too many, none over another.

Masks stay run lengths; two are compared only if their boxes and areas leave room for the overlap that is asked about.
"""

import math
from collections.abc import Sequence

import numpy as np

from anysam import rle
from anysam.automatic.options import EverythingOptions
from anysam.automatic.panoptic import disjoin, read_masks
from anysam.results import MaskRecord


def refine(records: Sequence[MaskRecord], options: EverythingOptions) -> list[MaskRecord]:
    """The records that min_area, merge_duplicates, max_masks and panoptic leave, applied in this order.

    Order is kept. max_masks comes before panoptic, so that a mask that is left out does not leave a gap in another.
    """
    left = [record for record in records if record.area >= options.min_area]
    if options.merge_duplicates is not None:
        left = merge_duplicates(left, options.merge_duplicates)
    if options.max_masks is not None:
        left = keep_best(left, options.max_masks)
    if options.panoptic:
        left = disjoin(left, options.min_mask_region_area, options.min_area)
    return left


def quality(record: MaskRecord) -> float:
    """How good a mask is, about 0 to 1: the product of all that is known of it.

    That is the IoU that the model predicts, the stability, and the score of the object whose box was the prompt. A
    product, because each alone is fooled: stable masks of nothing in particular, sure ones with a border that moves
    with the threshold. Something negative or not a number counts as 0.
    """
    known = [record.predicted_iou, record.stability_score, record.detection_score]
    return math.prod(value if value > 0 else 0.0 for value in known if value is not None)


def keep_best(records: Sequence[MaskRecord], count: int) -> list[MaskRecord]:
    """At most `count` records, those with the highest `quality` (of equal ones the first), in the order they had."""
    best = np.argsort([-quality(record) for record in records], kind="stable")[:count]
    return [records[i] for i in sorted(best.tolist())]


def merge_duplicates(records: Sequence[MaskRecord], iou: float) -> list[MaskRecord]:
    """The records without those whose mask has an IoU above `iou` with that of a better one that stays.

    Better by `quality`, of equal ones the first. Order is kept. Empty masks are like no other. Raises OptionError for
    masks of different sizes or damaged ones.
    """
    spans, _ = read_masks(records)
    areas = np.array([rle.spans_area(each) for each in spans], dtype=np.float64)  # (N,)
    height = records[0].size[0] if records else 0
    boxes = np.array([rle.spans_to_box(each, height) or (0, 0, 0, 0) for each in spans]).reshape(-1, 4)  # (N, 4)
    kept = np.zeros(len(records), dtype=np.bool_)
    for i in np.argsort([-quality(record) for record in records], kind="stable").tolist():
        better = np.flatnonzero(kept)
        better = better[_bound(boxes[i], areas[i], boxes[better], areas[better]) > iou]
        kept[i] = not any(_iou(spans[i], spans[j], areas[i] + areas[j]) > iou for j in better.tolist())
    return [record for record, stays in zip(records, kept, strict=True) if stays]


def _bound(box: np.ndarray, area: float, boxes: np.ndarray, areas: np.ndarray) -> np.ndarray:
    """The highest IoU (N,) that a mask can have with others, by its box (4,) and area and theirs, (N, 4) and (N,)."""
    sides = np.minimum(box[2:], boxes[:, 2:]) - np.maximum(box[:2], boxes[:, :2])  # (N, 2)
    common = np.minimum(np.clip(sides, 0, None).astype(np.float64).prod(axis=1), np.minimum(area, areas))  # (N,)
    return common / np.maximum(area + areas - common, 1)


def _iou(a: np.ndarray, b: np.ndarray, areas: float) -> float:
    common = rle.spans_intersection(a, b)
    return common / max(areas - common, 1)
