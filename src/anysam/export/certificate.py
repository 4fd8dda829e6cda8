"""What an exported decoder says against what PyTorch says, on real encodings and prompts of every kind."""

from collections.abc import Iterator, Sequence
from typing import Any, cast

import numpy as np
import torch

from anysam.encoded_image import EncodedImage
from anysam.export.graphs import SEVERAL, SINGLE
from anysam.models import PromptableModel
from anysam.predictor import Model

# Prompts of one call, in parts of the input's width and height: points with labels, corners of boxes are 2 and 3.
_CALLS: tuple[tuple[tuple[tuple[float, float, int], ...], ...], ...] = (
    (((0.5, 0.5, 1), (0, 0, -1)),),
    (((0.52, 0.4, 1), (0.1, 0.9, 0), (0.7, 0.6, 1), (0, 0, -1)),),
    (((0.2, 0.25, 2), (0.8, 0.9, 3)),),
    (((0.45, 0.5, 1), (0.9, 0.1, 0), (0.3, 0.2, 2), (0.75, 0.8, 3)),),
    tuple(((0.1 + 0.15 * i, 0.9 - 0.14 * i, 1), (0, 0, -1)) for i in range(6)),
    (((0.01, 0.01, 1), (0, 0, -1)), ((0.99, 0.99, 1), (0, 0, -1))),
)


def sample_photographs(long_side: int) -> list[np.ndarray]:
    """A wide, a tall and a square image, uint8 (H, W, 3), with discs and stripes on a gradient."""
    side = min(long_side, 480)
    shapes = ((side * 3 // 4, side), (side, side * 2 // 3), (side // 2, side // 2))
    return [_photograph(height, width, seed) for seed, (height, width) in enumerate(shapes)]


def certify(data: bytes, model: Model, encodings: Sequence[EncodedImage]) -> dict[str, Any]:
    """Run an ONNX file and `model.network.decode` on the same inputs.

    Returns {"max_logit_difference", "max_iou_difference", "mask_pixels_different": low-resolution pixels whose sign
    differs, "inputs": calls, "torch", "onnxruntime"}. A difference of NaN is infinite.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    worst_logit, worst_iou, signs, calls = 0.0, 0.0, 0, 0
    for encoded, points, labels, mask_logits in _inputs(model, encodings):
        low_res_logits, ious = _expected(model, encoded, points, labels, mask_logits)
        found_logits, found_ious = session.run(
            ["low_res_logits", "iou_predictions"], onnx_inputs(session, encoded, points, labels, mask_logits)
        )
        worst_logit = max(worst_logit, _difference(found_logits, low_res_logits))
        worst_iou = max(worst_iou, _difference(found_ious, ious))
        signs += int(np.count_nonzero((found_logits > 0) != (low_res_logits > 0)))
        calls += 1
    return {
        "max_logit_difference": worst_logit,
        "max_iou_difference": worst_iou,
        "mask_pixels_different": signs,
        "inputs": calls,
        "torch": torch.__version__,
        "onnxruntime": onnxruntime.__version__,
    }


def onnx_inputs(
    session: Any, encoded: EncodedImage, points: torch.Tensor, labels: torch.Tensor, mask_logits: torch.Tensor | None
) -> dict[str, np.ndarray]:
    """The inputs of a file's session. Without a mask there is one of zeros, and has_mask is 0."""
    shape = (len(points), 1, *low_res_size(encoded, session))
    mask = np.zeros(shape, np.float32) if mask_logits is None else mask_logits.numpy()
    every = {name: value.float().numpy() for name, value in encoded.features.items()} | {
        "points": points.numpy(),
        "labels": labels.numpy(),
        "mask_logits": mask,
        "has_mask": np.array([mask_logits is not None], np.float32),
    }
    return {each.name: every[each.name] for each in session.get_inputs()}


def low_res_size(encoded: EncodedImage, session: Any) -> tuple[int, int]:
    """(h, w) of the mask input: fixed in the file, or four times the grid of the features."""
    (mask,) = (each for each in session.get_inputs() if each.name == "mask_logits")
    height, width = mask.shape[2:]
    grid = encoded.features["image_embeddings"].shape[-2:]
    if isinstance(height, int) and isinstance(width, int):
        return height, width
    return 4 * grid[0], 4 * grid[1]


def _inputs(
    model: Model, encodings: Sequence[EncodedImage]
) -> Iterator[tuple[EncodedImage, torch.Tensor, torch.Tensor, torch.Tensor | None]]:
    frame = cast(PromptableModel, model.network).preprocess
    for encoded in encodings:
        height, width = encoded.input_size
        for call in _CALLS:
            points = torch.tensor([[[x * width, y * height] for x, y, _ in prompt] for prompt in call])
            labels = torch.tensor([[label for _, _, label in prompt] for prompt in call])
            for masked in (False, True):
                mask = None
                if masked:
                    generator = torch.Generator().manual_seed(0)
                    size = frame.low_res_size(encoded.input_size)
                    mask = torch.randn(len(call), 1, *size, generator=generator) * 6
                yield encoded, points, labels, mask


def _expected(
    model: Model, encoded: EncodedImage, points: torch.Tensor, labels: torch.Tensor, mask_logits: torch.Tensor | None
) -> tuple[np.ndarray, np.ndarray]:
    """What the network says of all four masks: (P, 4, h, w) and (P, 4)."""
    network = cast(PromptableModel, model.network)
    with torch.inference_mode():
        one = network.decode(encoded.features, points, labels, mask_logits, False)
        several = network.decode(encoded.features, points, labels, mask_logits, True)
    logits = torch.cat([one.low_res_logits, several.low_res_logits], dim=1)
    ious = torch.cat([one.iou_predictions, several.iou_predictions], dim=1)
    order = [*SINGLE, *SEVERAL]
    assert logits.shape[1] == len(order)
    return logits.float().numpy(), ious.float().numpy()


def _difference(found: np.ndarray, expected: np.ndarray) -> float:
    if found.shape != expected.shape:
        return float("inf")
    worst = float(np.abs(found - expected).max())
    return worst if np.isfinite(worst) else float("inf")


def _photograph(height: int, width: int, seed: int) -> np.ndarray:
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    pixels = np.stack([x * 200 / width, y * 200 / height, (x + y) * 100 / (width + height)], axis=-1)  # (H, W, 3)
    for _ in range(6):
        centre, radius = random.uniform((0, 0), (height, width)), random.uniform(0.05, 0.25) * min(height, width)
        inside = (y - centre[0]) ** 2 + (x - centre[1]) ** 2 < radius**2
        pixels[inside] = random.uniform(0, 255, 3) + 20 * np.sin(x[inside] / 5)[:, None]
    return np.clip(pixels + random.normal(0, 4, pixels.shape), 0, 255).astype(np.uint8)
