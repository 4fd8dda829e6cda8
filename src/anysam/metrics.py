"""Scores on arrays: where a user would click on a mask or on an error, and how well a mask fits. Knows no model."""

import cv2
import numpy as np


def centre_most_point(mask: np.ndarray) -> tuple[int, int]:
    """The pixel (x, y) of a non-empty mask (H, W) farthest from everything outside it; the image's edge is outside.

    Of several such pixels the first in reading order. Raises ValueError for an empty mask, which has no such pixel.
    """
    if not mask.any():
        raise ValueError("an empty mask has no centre-most point")
    distance = cv2.distanceTransform(np.pad(mask.astype(np.uint8), 1), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)[1:-1, 1:-1]
    y, x = np.unravel_index(int(distance.argmax()), distance.shape)
    return int(x), int(y)


def correcting_point(predicted: np.ndarray, target: np.ndarray) -> tuple[tuple[int, int], int] | None:
    """The next click of a careful user: ((x, y), label) at the centre-most pixel of the largest error region.

    predicted and target are bool (H, W). Missing and surplus parts are compared by the radius of the largest disc in
    them; label 1 asks for more, 0 for less. None when nothing is wrong. (The usual protocol of interactive
    segmentation, e.g. Sofiiuk et al. 2021, "Reviving iterative training with mask guidance".)
    """
    best: tuple[float, tuple[int, int], int] | None = None
    for error, label in ((target & ~predicted, 1), (predicted & ~target, 0)):
        if not error.any():
            continue
        padded = np.pad(error.astype(np.uint8), 1)
        distance = cv2.distanceTransform(padded, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)[1:-1, 1:-1]
        y, x = np.unravel_index(int(distance.argmax()), distance.shape)
        if best is None or distance[y, x] > best[0]:
            best = (float(distance[y, x]), (int(x), int(y)), label)
    return None if best is None else best[1:]


def grabcut_mask(image: np.ndarray, box: np.ndarray, iterations: int = 5) -> np.ndarray:
    """OpenCV's GrabCut started from a box: the classical baseline. image (H, W, 3) uint8, box xyxy -> (H, W) bool.

    A box that covers the whole image leaves GrabCut no background to learn from; then the box itself is the answer.
    """
    height, width = image.shape[:2]
    x0, y0 = (int(v) for v in np.floor(box[:2]))
    x1, y1 = min(width, int(np.ceil(box[2]))), min(height, int(np.ceil(box[3])))
    state = np.full((height, width), cv2.GC_BGD, np.uint8)
    state[y0:y1, x0:x1] = cv2.GC_PR_FGD
    if not (state == cv2.GC_BGD).any():
        return state == cv2.GC_PR_FGD
    background, foreground = np.zeros((1, 65), np.float64), np.zeros((1, 65), np.float64)
    cv2.setRNGSeed(0)
    # the rectangle is not used when the mask says where the box is
    cv2.grabCut(image, state, (0, 0, 1, 1), background, foreground, iterations, cv2.GC_INIT_WITH_MASK)
    return (state == cv2.GC_FGD) | (state == cv2.GC_PR_FGD)
