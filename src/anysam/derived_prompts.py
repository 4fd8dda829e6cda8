"""Prompts a model does not understand, put in the terms it does: a mask becomes a box and a click. No torch, no model.

A model without mask prompts is shown where the mask is by its box and its most inner pixel, proposes several masks, and
the one most like the given mask is the answer. That is honest as long as the mask says WHERE the object is; what the
mask says beyond that (which of two overlapping things is meant) enters through the choice.
"""

from dataclasses import replace

import cv2
import numpy as np

from anysam.errors import PromptError
from anysam.masks import mask_iou, mask_to_box
from anysam.prompts import ResolvedPrompt
from anysam.results import Prediction

BOX_POINTS = 2  # a box takes the room of its two corners


def prompt_from_mask(prompt: ResolvedPrompt, mask: np.ndarray, max_points: int | None) -> ResolvedPrompt:
    """The prompt without its mask, joined by the mask's box and by a click inside of it, as far as they fit.

    mask: (H, W) bool, not empty. max_points: the most points of a prompt, a box counting as two, or None. What the user
    gave stays as it is: a box of theirs is not replaced, and a click is added only where none is on the object.
    """
    box, points, labels = prompt.box, prompt.points, prompt.labels
    room = np.inf if max_points is None else max_points - count_points(prompt)
    if box is None and room >= BOX_POINTS:
        box = mask_to_box(mask)
        room -= BOX_POINTS
    if not (labels == 1).any() and room >= 1:
        points = np.concatenate([points, innermost_point(mask)[None]])  # (N + 1, 2)
        labels = np.append(labels, 1)
    return replace(prompt, points=points, labels=labels, box=box, mask=None, low_res_logits=None)


def innermost_point(mask: np.ndarray) -> np.ndarray:
    """The centre (2,) float64, x y, of the pixel of a mask (H, W) that is furthest from its border and the image's."""
    padded = np.pad(mask.astype(np.uint8), 1)
    distance = cv2.distanceTransform(padded, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)[1:-1, 1:-1]  # (H, W)
    y, x = np.unravel_index(int(np.argmax(distance)), distance.shape)
    return np.array([x + 0.5, y + 0.5])


def choose_by_mask(candidates: Prediction, mask: np.ndarray) -> Prediction:
    """The one of the candidates that overlaps a mask (H, W) most, as a prediction of a single mask."""
    overlaps = [mask_iou(candidate, mask) for candidate in candidates.masks]
    i = int(np.argmax(overlaps))
    return Prediction(
        candidates.masks[i : i + 1],
        candidates.iou_predictions[i : i + 1],
        candidates.low_res_logits[i : i + 1],
        {name: value[i : i + 1] for name, value in candidates.extras.items()},
    )


def count_points(prompt: ResolvedPrompt) -> int:
    """How many points a prompt takes, a box counting as two."""
    return len(prompt.points) + (0 if prompt.box is None else BOX_POINTS)


def check_points(prompt: ResolvedPrompt, max_points: int | None, variant: str) -> None:
    """Raise PromptError if a prompt has more points than a model takes; none is dropped in silence."""
    if max_points is not None and count_points(prompt) > max_points:
        raise PromptError(
            f"{variant} takes at most {max_points} points in one prompt, a box counting as {BOX_POINTS}; got "
            f"{count_points(prompt)}; leave some out, or use a model without this limit, such as mobile_sam."
        )
