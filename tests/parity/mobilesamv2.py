"""Cases of MobileSAMv2's promptable side: as other models that take prompts, under other names.

The published script draws the masks of a batch of boxes, the largest first; so their order by area is stored.
"""

from pathlib import Path

import numpy as np
from harness import AREA_PIXELS, Arrays, Case, Report
from promptable import run_promptable

NAMES = {"full_res_logits": "mask_logits_full", "best_mask_packed": "first_mask_packed"}


def arrays(case: Case, inputs: Path, report: Report) -> Arrays:
    """Our arrays of a case, by name. Problems that stop an image are reported."""
    for name, ours in run_promptable(case, inputs, report):
        yield name, ours
        prefix, _, leaf = name.rpartition("/")
        if leaf in NAMES:  # a batch of boxes has one mask each: the best one is the first
            yield f"{prefix}/{NAMES[leaf]}", ours
        if leaf == "mask_areas":
            yield f"{prefix}/order_by_area", order_by_area(ours.ravel(), case.expected.get(f"{prefix}/order_by_area"))


def order_by_area(areas: np.ndarray, expected: np.ndarray | None) -> np.ndarray:
    """Indices of the masks, the largest first: the expected ones if no area breaks that order by more than rounding."""
    if expected is not None and sorted(expected) == list(range(areas.size)):
        if (np.diff(areas[expected]) <= AREA_PIXELS).all():
            return expected
    return np.argsort(-areas, kind="stable")
