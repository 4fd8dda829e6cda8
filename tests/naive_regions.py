"""Small holes and islands of masks by OpenCV, as published: what the spans of the package are compared with.

Source: facebookresearch/segment-anything@dca509f, segment_anything/utils/amg.py (Apache-2.0), written anew.
"""

from typing import Literal

import cv2
import numpy as np


def remove_small_regions(mask: np.ndarray, min_area: int, kind: Literal["holes", "islands"]) -> tuple[np.ndarray, bool]:
    """Fill the holes, or remove the islands, of a mask (H, W) bool that have fewer than min_area pixels.

    Returns the mask and whether it changed. Regions touch by sides or corners; a hole may lie at the image's edge. If
    all islands are small, the largest stays (the first of equal ones, from the top).
    """
    wanted = mask if kind == "islands" else ~mask
    count, labels, stats, _ = cv2.connectedComponentsWithStats(wanted.astype(np.uint8), connectivity=8)
    small = stats[:, cv2.CC_STAT_AREA] < min_area  # (count,), of which 0 is what is not wanted
    small[0] = False
    if not small.any():
        return mask, False
    if kind == "holes":
        return mask | small[labels], True
    stays = ~small
    stays[0] = False
    if not stays.any():
        stays[1 + int(np.argmax(stats[1:, cv2.CC_STAT_AREA]))] = True
    return stays[labels], True


def clean_mask(mask: np.ndarray, min_area: int) -> tuple[np.ndarray, bool]:
    """A mask (H, W) bool without small holes, then without small islands, and whether it changed."""
    filled, had_holes = remove_small_regions(mask, min_area, "holes")
    cleaned, had_islands = remove_small_regions(filled, min_area, "islands")
    return cleaned, had_holes or had_islands
