"""Which prompts a mask is trained with: a click or a jittered box first, then clicks on the errors."""

import torch
from torch import Tensor

from anysam.models.sam_decoder import BACKGROUND, BOX_BOTTOM_RIGHT, BOX_TOP_LEFT, FOREGROUND, PADDING


def first_prompts(clicks: Tensor, boxes: Tensor, as_box: Tensor, jitter: float) -> tuple[Tensor, Tensor]:
    """Two tokens for every mask: a click and a padding token, or the two corners of the box with noise.

    clicks (P, 2), boxes (P, 4) xyxy in input pixels, as_box (P,) bool; jitter is the noise's standard deviation as a
    part of the side (at most 20 pixels, as in SAM). Returns points (P, 2, 2) and labels (P, 2).
    """
    sides = (boxes[:, 2:] - boxes[:, :2]).repeat(1, 2)  # (P, 4)
    noisy = boxes + (torch.randn_like(boxes) * jitter * sides).clamp(-20, 20)
    corners = torch.cat(
        [torch.minimum(noisy[:, :2], noisy[:, 2:] - 2), torch.maximum(noisy[:, 2:], noisy[:, :2] + 2)], dim=1
    )
    corners = corners.clamp(min=0).unflatten(1, (2, 2))  # (P, 2, 2)
    click_points = torch.stack([clicks, torch.zeros_like(clicks)], dim=1)  # (P, 2, 2)
    points = torch.where(as_box[:, None, None], corners, click_points)
    box_labels = torch.tensor([BOX_TOP_LEFT, BOX_BOTTOM_RIGHT], device=clicks.device)
    click_labels = torch.tensor([FOREGROUND, PADDING], device=clicks.device)
    return points, torch.where(as_box[:, None], box_labels, click_labels)


def add_corrections(points: Tensor, labels: Tensor, logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """One more click per mask, uniform in the error region of logits (P, h, w) against target (P, h, w).

    Foreground where the mask is missing, background where it is too much; a perfect mask gets a click inside.
    """
    predicted, true = logits > 0, target > 0.5
    error = (predicted ^ true).flatten(1)  # (P, h * w)
    weights = torch.where(error.any(dim=1, keepdim=True), error, true.flatten(1)).float() + 1e-12
    index = torch.multinomial(weights, 1)[:, 0]  # (P,)
    y, x = index // logits.shape[-1], index % logits.shape[-1]
    click = (torch.stack([x, y], dim=1) + torch.rand(len(index), 2, device=index.device)) * 4 - 0.5  # (P, 2)
    missing = true.flatten(1).gather(1, index[:, None])  # (P, 1)
    label = torch.where(missing, FOREGROUND, BACKGROUND)
    return torch.cat([points, click[:, None].to(points.dtype)], dim=1), torch.cat([labels, label], dim=1)
