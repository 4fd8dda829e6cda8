"""Mask and IoU losses of SAM's training (paper, appendix A "Training algorithm")."""

import torch
from torch import Tensor
from torch.nn import functional


def mask_loss(logits: Tensor, target: Tensor, focal_weight: float = 20.0) -> Tensor:
    """focal_weight x focal (gamma 2) + dice of each mask.

    logits (P, C, h, w), target (P, h, w) coverage in [0, 1]; returns (P, C).
    """
    target = target[:, None].expand_as(logits)
    cross_entropy = functional.binary_cross_entropy_with_logits(logits, target, reduction="none")
    probability = logits.sigmoid()
    focal = ((probability - target) ** 2 * cross_entropy).flatten(2).mean(dim=2)  # (P, C)
    overlap = (probability * target).flatten(2).sum(dim=2)
    total = probability.flatten(2).sum(dim=2) + target.flatten(2).sum(dim=2)
    dice = 1 - (2 * overlap + 1) / (total + 1)  # (P, C)
    return focal_weight * focal + dice


@torch.no_grad()
def mask_iou(logits: Tensor, target: Tensor) -> Tensor:
    """IoU of logits > 0 with target > 0.5: logits (P, C, h, w), target (P, h, w) -> (P, C)."""
    predicted, true = logits > 0, (target > 0.5)[:, None]
    intersection = (predicted & true).flatten(2).sum(dim=2)
    union = (predicted | true).flatten(2).sum(dim=2)
    return intersection / union.clamp(min=1)
