"""A promptable network asked at many points at once: what `Model.decode_points` and `Model.resize` do."""

import numpy as np
import torch
from torch import Tensor

from anysam.automatic.interface import PointMasks, Resize
from anysam.automatic.operators import resize_operators
from anysam.encoded_image import EncodedImage
from anysam.models import KeepingModel, Kept, PromptableModel
from anysam.preprocess import PADDING_LABEL, Preprocess, prompt_tokens, upscale_logits
from anysam.prompts import ResolvedPrompt

FOREGROUND_LABEL = 1


def decode_points(
    network: PromptableModel,
    features: dict[str, Tensor],
    encoded: EncodedImage,
    points: np.ndarray,
    least_iou: float,
) -> PointMasks:
    """The several masks of each foreground point (P, 2) float64, x y, pixels of the encoded image; see GridModel.

    features: the encoded image's, on the network's device and in its decoder's dtype.
    """
    tokens, labels = _point_tokens(points, network.preprocess, encoded.original_size)
    device = features["image_embeddings"].device
    rows = _wanted_size(network.preprocess, encoded.input_size)[0]
    tokens, labels = tokens.to(device), labels.to(device)
    if isinstance(network, KeepingModel):
        kept = network.decode_kept(features, tokens, labels, True, least_iou, rows)
    else:
        kept = _decode_all(network, features, tokens, labels, least_iou, rows)
    columns = _wanted_size(network.preprocess, encoded.input_size)[1]
    return PointMasks(kept.low_res_logits[..., :columns].float(), kept.candidates, kept.iou_predictions.float())


def make_resize(preprocess: Preprocess, encoded: EncodedImage, device: torch.device) -> Resize:
    """How the logits of `decode_points` become logits of the encoded image's size."""
    input_size, original_size = encoded.input_size, encoded.original_size

    def exact(logits: Tensor) -> Tensor:
        return upscale_logits(logits[None], preprocess, input_size, original_size)[0]  # (K, H, W)

    rows, columns = resize_operators(
        preprocess, input_size, original_size, _wanted_size(preprocess, input_size), device
    )
    return Resize(original_size, exact, rows, columns, convex=preprocess.mask_resize == "two_step")


def _wanted_size(preprocess: Preprocess, input_size: tuple[int, int]) -> tuple[int, int]:
    """(rows, columns) of the low-resolution logits that the image's pixels are made of; the others are padding."""
    low_res_size = preprocess.low_res_size(input_size)
    if preprocess.mask_resize == "bicubic":
        return low_res_size
    stride = preprocess.low_res_stride
    rows, columns = (min(cells, -(-side // stride) + 1) for cells, side in zip(low_res_size, input_size, strict=True))
    return rows, columns


def _point_tokens(points: np.ndarray, preprocess: Preprocess, original_size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Each point as a prompt of its own, as the decoder takes it: (P, 2, 2) with the padding, and labels (P, 2)."""
    nothing = ResolvedPrompt(
        points=points, labels=np.full(len(points), FOREGROUND_LABEL), box=None, mask=None, low_res_logits=None
    )
    # All points of one prompt are scaled as those of many are.
    scaled = prompt_tokens(nothing, preprocess, original_size)[0]  # (P + 1, 2), the padding last
    count = len(points)
    tokens = torch.stack([scaled[:count], scaled[count:].expand(count, 2)], dim=1)  # (P, 2, 2)
    labels = torch.tensor([FOREGROUND_LABEL, PADDING_LABEL]).expand(count, 2)  # (P, 2)
    return tokens, labels


def _decode_all(
    network: PromptableModel, features: dict[str, Tensor], points: Tensor, labels: Tensor, least_iou: float, rows: int
) -> Kept:
    """`decode_kept` of a network that makes every mask before it knows which are wanted."""
    parts = []
    size = 8 if points.device.type == "cpu" else len(points)
    for some, kinds in zip(points.split(size), labels.split(size), strict=True):
        decoded = network.decode(features, some, kinds, None, True)
        wanted = decoded.iou_predictions > least_iou  # (P, C)
        parts.append((decoded.low_res_logits[wanted][:, :rows], wanted, decoded.iou_predictions))
    logits, wanted, scores = (torch.cat(each) for each in zip(*parts, strict=True))
    return Kept(logits, wanted.flatten().nonzero()[:, 0], scores)
