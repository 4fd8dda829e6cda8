"""The published code to compare with, imported from a checkout, without the packages that tie it to one torch build.

What they use of torchvision is Pillow's resizing and a non-maximum suppression, of timm a few initialisers; here are
stand-ins that compute the same. torchvision's suppression is compiled code: the stand-in is written so that it is not
slower than that by more than a few milliseconds, which is nothing beside the minutes that are compared.
"""

import sys
import types

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

PACKAGES = ("segment_anything", "mobile_sam")


def import_published(folder: str) -> types.ModuleType:
    """The package segment_anything or mobile_sam that lies in `folder`, a checkout of the published repository."""
    transforms = types.ModuleType("torchvision.transforms.functional")
    transforms.to_pil_image = Image.fromarray
    transforms.resize = lambda image, size: image.resize(size[::-1], Image.Resampling.BILINEAR)
    boxes = types.ModuleType("torchvision.ops.boxes")
    boxes.batched_nms, boxes.box_area = batched_nms, box_area
    layers = types.ModuleType("timm.models.layers")
    layers.DropPath, layers.to_2tuple = DropPath, lambda x: x if isinstance(x, tuple) else (x, x)
    layers.trunc_normal_ = nn.init.trunc_normal_
    registry = types.ModuleType("timm.models.registry")
    registry.register_model = lambda function: function
    for module in (transforms, boxes, layers, registry):
        sys.modules[module.__name__] = module
    for name in ("torchvision", "torchvision.transforms", "torchvision.ops", "timm", "timm.models"):
        sys.modules[name] = types.ModuleType(name)
    sys.path.insert(0, folder)
    for name in PACKAGES:
        try:
            return __import__(name)
        except ModuleNotFoundError as error:
            if error.name != name:
                raise
    raise SystemExit(f"{folder} holds none of the packages {', '.join(PACKAGES)}.")


class DropPath(nn.Module):
    """timm's, which does nothing when a network is not trained."""

    def __init__(self, drop_prob: float | None = None) -> None:
        super().__init__()
        self.drop_prob = drop_prob

    def forward(self, x: Tensor) -> Tensor:
        return x


def box_area(boxes: Tensor) -> Tensor:
    """Areas (N,) of boxes (N, 4) xyxy."""
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def batched_nms(boxes: Tensor, scores: Tensor, categories: Tensor, iou_threshold: float) -> Tensor:
    """Indices of the boxes kept, by falling score; the automatic mask generator has a single category."""
    assert not categories.any()
    order = np.argsort(-scores.numpy(), kind="stable")
    sides, kept = boxes.float().numpy()[order], []
    areas = (sides[:, 2] - sides[:, 0]) * (sides[:, 3] - sides[:, 1])
    alive = np.ones(len(order), dtype=bool)
    for i in range(len(order)):
        if not alive[i]:
            continue
        kept.append(order[i])
        rest = sides[i + 1 :]
        width = np.minimum(rest[:, 2], sides[i, 2]) - np.maximum(rest[:, 0], sides[i, 0])
        height = np.minimum(rest[:, 3], sides[i, 3]) - np.maximum(rest[:, 1], sides[i, 1])
        overlap = np.maximum(width, 0) * np.maximum(height, 0)
        with np.errstate(invalid="ignore"):
            alive[i + 1 :] &= ~(overlap / (areas[i] + areas[i + 1 :] - overlap) > iou_threshold)
    return torch.as_tensor(np.array(kept, dtype=np.int64))
