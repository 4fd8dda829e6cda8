"""Cases of FastSAM's network: what it says before any selection. The object-aware detector's cases use this too."""

import dataclasses
from pathlib import Path

import numpy as np
import torch
from harness import Arrays, Case, Report, load_filled

from anysam.images import read_image
from anysam.letterbox import prepare_letterbox
from anysam.masks import box_iou

GAIN = "gain/"


def arrays(case: Case, inputs: Path, report: Report) -> Arrays:
    """Our arrays of a case, by name: with the plain stand-in weights, then with the stronger ones under gain/."""
    for prefix in ("", GAIN):
        if any(name.startswith(GAIN) == bool(prefix) for name in case.expected):
            yield from network_arrays(case, inputs, report, prefix)


def network_arrays(case: Case, inputs: Path, report: Report, prefix: str) -> Arrays:
    network = load_filled(case, gain=bool(prefix)).network
    for image, facts in case.images.items():
        path = inputs / facts["file"]
        if not path.is_file():
            report.line(False, case.folder.name, f"{image}: the image {path.name} is not among the inputs")
            continue
        array = read_image(path)
        # An image is stored at several input sizes; its letterbox says which one this is.
        long_side = max(case.arrays[f"{image}/input"]["shape"])
        pixels, _ = prepare_letterbox(array, dataclasses.replace(network.preprocess, long_side=long_side))
        with torch.inference_mode():
            raw = network.model(pixels)
            decoded = network.model["22"].decode(raw)  # (1, 4 + classes + 32, A)
            features = {"decoded": decoded}
            if raw.prototypes is not None:
                features["prototypes"] = raw.prototypes
                yield f"{prefix}{image}/proto", raw.prototypes.numpy()
        yield f"{prefix}{image}/input", pixels.numpy()
        for level, head in zip((3, 4, 5), raw.levels, strict=True):
            yield f"{prefix}{image}/head_p{level}", head.numpy()
        yield f"{prefix}{image}/mask_coefficients", raw.coefficients.numpy()
        yield f"{prefix}{image}/decoded", decoded.numpy()
        yield f"{prefix}{image}/decoded_first_anchors", decoded[0, :, :64].numpy()
        if long_side == network.preprocess.long_side:
            compare_instances(case, f"{prefix}{image}", network, features, array.shape[:2], report)


def compare_instances(
    case: Case, name: str, network: torch.nn.Module, features: dict, size: tuple[int, int], report: Report
) -> None:
    """Say how many of the published final boxes are ours too. Never a failure.

    Stand-in weights give thousands of boxes with nearly equal scores, of which 300 stay: rounding decides which.
    """
    expected = case.expected.get(f"{name}/e2e_boxes")
    if expected is None:
        return
    with torch.inference_mode():
        found = network.instances(features, size, confidence=0.4, nms_iou=0.9)
    overlap = box_iou(expected[:, :4].astype(np.float64), found.boxes.astype(np.float64))  # (n, N)
    same = overlap.max(axis=1, initial=0) > 0.99
    text = f"{name}/e2e_boxes: {same.sum()} of {len(expected)} published boxes are among our {len(found.boxes)}"
    areas = case.expected.get(f"{name}/e2e_mask_areas")
    if areas is not None and same.any():
        ours = found.masks.sum(axis=(1, 2))[overlap.argmax(axis=1)]  # (n,)
        text += f", the area of {np.isclose(ours[same], areas[same], rtol=0.01, atol=20).sum()} too"
    report.line(True, case.folder.name, text + " (informative)")
