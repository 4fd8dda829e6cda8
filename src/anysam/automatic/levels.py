"""Whole, part, subpart: which of the masks of one point are candidates.

Kirillov et al., "Segment Anything", 2023, section 3: masks of an ambiguous point are nested, at most three deep in most
cases: whole, part and subpart, which is why there are three. Nothing in the training says which output is which. In
SAM's weights they come from small to large (facebookresearch/segment-anything issue 550; LangSplat relies on it), in
the built-in model as the second, the third, the first: so the areas decide here, and hold for every family.
"""

import numpy as np
import torch

from anysam.automatic.interface import PointMasks
from anysam.automatic.options import Level

# Of two masks of a point, sizes that differ by less are the same: the point is less ambiguous than there are masks.
SAME_SIZE = 0.9


def keep_levels(answer: PointMasks, levels: tuple[Level, ...] | None, least_iou: float) -> PointMasks:
    """The masks of an answer that are of the wanted levels and whose predicted IoU is above least_iou.

    answer: with ALL masks of every point, as `decode_points` gives them for a least_iou of -inf; sizes are compared
    before anything is left out, so that a level means the same whatever the thresholds are. levels: None for all.
    """
    points, several = answer.iou_predictions.shape
    assert len(answer.candidates) == points * several, "levels need all masks of every point"
    areas = (answer.low_res_logits > 0).flatten(1).sum(dim=1)  # (P * C,), in cells
    wanted = choose(areas.reshape(points, several).cpu().numpy(), levels)  # (P, C)
    good = torch.from_numpy(wanted).to(areas.device) & (answer.iou_predictions > least_iou)
    kept = good.flatten().nonzero()[:, 0]  # (K,)
    return PointMasks(answer.low_res_logits[kept], kept, answer.iou_predictions)


def choose(areas: np.ndarray, levels: tuple[Level, ...] | None) -> np.ndarray:
    """Which masks are of the wanted levels: (P, C) bool.

    areas: (P, C) of all masks of each point, in any unit. levels: None for all masks.

    The largest mask is the whole, the smallest that is not empty the subpart, those between are parts. Masks of about
    the same size (each at least SAME_SIZE of the next larger one) are one, and of every level that one of them is: a
    point with two such masks and a smaller one has no other part than the whole. With two masks that are not empty, the
    smaller is part and subpart. Empty masks are of no level.
    """
    if levels is None:
        return np.ones(areas.shape, dtype=np.bool_)
    order = np.argsort(-areas, axis=1, kind="stable")  # (P, C), from large to small
    ranked = np.take_along_axis(areas, order, axis=1).astype(np.float64)  # (P, C)
    first, last = _ranks(ranked)
    smallest = areas.shape[1] - 1
    inner = min(1, smallest)
    between = {"whole": (0, 0), "part": (inner, max(smallest - 1, inner)), "subpart": (smallest, smallest)}
    wanted = np.zeros(areas.shape, dtype=np.bool_)  # by rank
    for level in levels:
        low, high = between[level]
        wanted |= (first <= high) & (last >= low)
    chosen = np.zeros(areas.shape, dtype=np.bool_)
    np.put_along_axis(chosen, order, wanted & (ranked > 0), axis=1)
    return chosen


def _ranks(ranked: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The first and the last rank, 0 for the largest, that masks of falling areas (P, C) stand for: (P, C) each."""
    points, count = ranked.shape
    first = np.tile(np.arange(count), (points, 1))  # (P, C)
    last = first.copy()
    filled = np.maximum((ranked > 0).sum(axis=1), 1)  # (P,)
    last[np.arange(points), filled - 1] = count - 1  # the smallest stands for the empty ones too
    same = ranked[:, 1:] >= SAME_SIZE * ranked[:, :-1]  # (P, C - 1)
    for rank in range(1, count):
        first[:, rank] = np.where(same[:, rank - 1], first[:, rank - 1], first[:, rank])
    for rank in range(count - 2, -1, -1):
        last[:, rank] = np.where(same[:, rank], last[:, rank + 1], last[:, rank])
    return first, last
