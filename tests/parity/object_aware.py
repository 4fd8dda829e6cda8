"""Cases of MobileSAMv2's object-aware detector: FastSAM's network without prototypes, and what becomes of its boxes."""

from pathlib import Path

import fast_sam
import numpy as np
import torch
from fastsam_functions import read_functions
from harness import Arrays, Case, Report

from anysam.letterbox import boxes_to_image
from anysam.models.yolov8 import detect


def arrays(case: Case, inputs: Path, report: Report) -> Arrays:
    """Our arrays of a case, by name. The predictions of post/... are stored in the case fastsam_functions beside it."""
    yield from fast_sam.arrays(case, inputs, report)
    names = [name for name in case.expected if name.startswith("post/")]
    if not names:
        return
    folder = case.folder.parent / "fastsam_functions"
    if not (folder / "expected.npz").is_file():
        report.line(False, case.folder.name, f"{folder.name}, which has the predictions of post/..., is not there")
        return
    form, stored = read_functions(folder)
    for name in names:
        _, geometry, kind, _ = name.split("/")
        padded_size = tuple(form["geometry"][geometry]["network_hw"])
        original_size = tuple(form["geometry"][geometry]["original_hw"])
        decoded = torch.from_numpy(stored[f"post/{geometry}/{kind}/predictions"])
        found = detect(decoded, padded_size, 1, confidence=0.4, nms_iou=0.9, limit=300)
        boxes = boxes_to_image(found.boxes, padded_size, original_size)
        yield name, np.column_stack((boxes, found.scores, found.classes))
