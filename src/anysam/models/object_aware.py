"""MobileSAMv2's object-aware detector: boxes of everything in an image, with which to prompt a mask decoder.

Paper: Zhang et al., "MobileSAMv2: Faster Segment Anything to Everything", 2023. Source: ChaoningZhang/MobileSAM@34bbbfd
(folder MobileSAMv2), where the detector's code and weights are AGPL-3.0: known here by a description in words only.

What is unusual here:
- It is FastSAM-x's network (yolov8.py) without prototypes. Mask coefficients are computed all the same; published
  weights have them, and nothing uses them.
- The published script hands an RGB image to code that expects BGR, so the network sees blue, green, red. Kept, since
  the boxes depend on it.
- Boxes near the letterbox's border are moved onto it; those of the whole image are not replaced, unlike in FastSAM.
- Where nothing is found the published code fails; here there are no instances then.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from anysam.errors import UnknownModelError, WeightsError
from anysam.letterbox import Letterbox, boxes_to_image
from anysam.models.yolov8 import SCALES, Instances, YoloConfig, YoloV8, detect, read_config

PREPROCESS = Letterbox(name="object_aware_1024", long_side=1024, bgr=True)

SIZES = {"x": YoloConfig(*SCALES["x"], reg_max=26, prototypes=False)}


class ObjectAware(nn.Module):
    """The detector; an InstanceModel whose instances have no masks."""

    default_confidence = 0.4
    default_nms_iou = 0.9

    def __init__(self, config: YoloConfig, preprocess: Letterbox) -> None:
        super().__init__()
        self.classes = config.classes
        self.preprocess = preprocess
        self.model = YoloV8(config)

    def encode_image(self, pixels: Tensor) -> dict[str, Tensor]:
        """Letterboxed pixels (B, 3, H, W), B, G, R in 0..1 -> {"decoded": (B, 4 + classes + 32, A) float32}.

        Per anchor: centre x, y, width, height in letterbox pixels, a score per class, 32 unused coefficients.
        """
        return self.model.predict(pixels)

    def instances(
        self,
        features: dict[str, Tensor],
        original_size: tuple[int, int],
        *,
        confidence: float = default_confidence,
        nms_iou: float = default_nms_iou,
        limit: int = 300,
    ) -> Instances:
        """Boxes of at most `limit` objects, best first, in pixels of the image (H, W) whose features these are.

        confidence: scores must be above it. nms_iou: of two boxes with a higher IoU the lower score goes.
        """
        padded_size = self.preprocess.padded_size(self.preprocess.input_size(original_size))
        found = detect(features["decoded"], padded_size, self.classes, confidence, nms_iou, limit)
        return Instances(boxes_to_image(found.boxes, padded_size, original_size), found.scores)


def build_from(config: YoloConfig, preprocess: Letterbox) -> ObjectAware:
    """A detector of any shape, with random weights, channels last in memory."""
    return ObjectAware(config, preprocess).to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def build(size: str) -> ObjectAware:
    """The detector with random weights; `size` is x. Raises UnknownModelError for another."""
    if size not in SIZES:
        raise UnknownModelError(f"The object-aware detector has no size {size!r}; its sizes are {', '.join(SIZES)}.")
    return build_from(SIZES[size], PREPROCESS)


def build_like(size: str, state_dict: Mapping[str, Tensor]) -> ObjectAware:
    """The detector that fits published tensors: scale, distances and classes are read from their shapes.

    Which scale was published is stated nowhere (the file's size says x), so every scale is accepted. Raises
    WeightsError for tensors of another network and UnknownModelError for an unknown size.
    """
    if size not in SIZES:
        raise UnknownModelError(f"The object-aware detector has no size {size!r}; its sizes are {', '.join(SIZES)}.")
    scale, config = read_config(state_dict)
    if config.prototypes:
        raise WeightsError(
            "These tensors have a prototype branch, which the object-aware detector has not; "
            f"load them as fastsam_{scale}."
        )
    return build_from(config, PREPROCESS)
