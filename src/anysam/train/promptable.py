"""What recipes with prompts in the loop share: masks and prompts in a network's frame, points on errors, losses.

Everything here works on any network that is a `models.PromptableModel`, one image at a time: its features (leading
dimension 1) and P prompts. The steps of a recipe are then

    example = read_example(entry, network.preprocess, ...)           in a worker process
    features = encode_images(network, [example.pixels, ...])         one dict for each image
    points, labels = first_prompts(example.points, boxes, as_box)
    decoded = network.decode(features[0], points, labels, None, multimask)
    losses, ious = sam_loss(cut logits, cut masks)                   (P,) and (P, C)
    found = sample_errors(best mask > 0, cut masks > 0.5, generator)
    points, labels = add_points(points, labels, cell_centres(found.cells, stride), found.labels)
"""

from dataclasses import dataclass
from typing import NamedTuple, Protocol, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from anysam.datasets import ImageDataset, ImageEntry
from anysam.encoded_image import EncodedImage
from anysam.errors import ImageError
from anysam.masks import mask_iou as exact_iou
from anysam.masks import mask_to_box
from anysam.metrics import centre_most_point
from anysam.models import Decoded, PromptableModel
from anysam.models.sam_decoder import (
    BACKGROUND,
    BOX_BOTTOM_RIGHT,
    BOX_TOP_LEFT,
    FOREGROUND,
    PADDING,
    MaskDecoder,
    PromptEncoder,
)
from anysam.predictor import Model
from anysam.preprocess import MASK_PROMPT_LOGIT, Preprocess, mask_to_logits, prepare_image, prompt_tokens
from anysam.prompts import Prompt, ResolvedPrompt
from anysam.train.losses import mask_iou, mask_loss

# The label of a point that `decode_tokens` leaves out of a prompt; no encoder of prompts knows it.
IGNORED = -2

# Encodings of validation images that are held, some 4 MB each.
_MOST_KEPT = 200

# The children of a promptable network that are asked with prompts; all others encode the image.
DECODING_PARTS = ("prompt_encoder", "mask_decoder", "image_decoder", "text_decoder", "decoder")


class SamLike(Protocol):
    """A network with SAM's own prompt encoder and mask decoder: SAM, MobileSAM, EdgeSAM, SlimSAM and others."""

    prompt_encoder: PromptEncoder
    mask_decoder: MaskDecoder


@dataclass(frozen=True, eq=False)
class PromptExample:
    """One image and P of its masks, in the frame of the network that learns them.

    pixels: (3, H', W') float32 as the network sees them; None where features are kept instead. masks: (P, h, w)
    float32, how much of each low-resolution cell is mask, 0 to 1. boxes: (P, 4) float32, tight, and points: (P, 2)
    float32, one uniform in each mask, both xyxy and x y in pixels of the input frame. valid: (rows, columns) of the
    cells that hold image; the rest is padding. seed: for all that is drawn from this example in this step.
    name: the image's, within its data set.
    """

    pixels: Tensor | None
    masks: Tensor
    boxes: Tensor
    points: Tensor
    input_size: tuple[int, int]
    valid: tuple[int, int]
    seed: int
    name: str

    def generator(self) -> torch.Generator:
        """A new CPU generator with the example's seed: the same numbers in whichever process it is learned."""
        return torch.Generator().manual_seed(self.seed)


def read_example(
    entry: ImageEntry,
    preprocess: Preprocess,
    most: int,
    generator: np.random.Generator,
    image: np.ndarray | None = None,
    masks: list[np.ndarray] | None = None,
    with_pixels: bool = True,
) -> PromptExample | None:
    """An entry as a network of this preprocess learns it: at most `most` of its masks, drawn without replacement.

    image, masks: (H, W, 3) uint8 and (H, W) uint8 or bool each, to use instead of the entry's (an augmentation's).
    with_pixels: False does not even read the image. Masks that fill no cell of the low-resolution frame to a half are
    left out, and None is returned where no mask is left. Raises ImageError for a broken image.
    """
    count = len(entry.masks) if masks is None else len(masks)
    order = generator.permutation(count)
    seed = int(generator.integers(2**63 - 1))
    if with_pixels and image is None:
        image = entry.read_image()
    size = entry.size if image is None else (image.shape[0], image.shape[1])
    input_size = preprocess.input_size(size)
    kept: list[Tensor] = []
    boxes, points = [], []
    for index in order:
        mask = (entry.decode(int(index)) if masks is None else masks[index]) > 0
        if len(kept) == most:
            break
        coverage = low_res_coverage(mask, preprocess, input_size)
        if bool((coverage > 0.5).any()):
            kept.append(coverage)
            boxes.append(cast(np.ndarray, mask_to_box(mask)))
            points.append(uniform_point(mask, generator))
    if not kept:
        return None
    corners = np.stack(boxes).reshape(-1, 2)  # (2 P, 2)
    return PromptExample(
        pixels=prepare_image(image, preprocess)[0][0] if with_pixels and image is not None else None,
        masks=torch.stack(kept),  # (P, h, w)
        boxes=to_input_frame(corners, preprocess, size).reshape(-1, 4),  # (P, 4)
        points=to_input_frame(np.stack(points), preprocess, size),
        input_size=input_size,
        valid=valid_cells(preprocess, input_size),
        seed=seed,
        name=entry.name,
    )


def low_res_coverage(mask: np.ndarray, preprocess: Preprocess, input_size: tuple[int, int]) -> Tensor:
    """A mask at image size, bool (H, W) -> how much of each low-resolution cell it fills: (h, w) float32, 0 to 1."""
    logits = mask_to_logits(mask, preprocess, input_size, preprocess.low_res_size(input_size))
    return (logits / MASK_PROMPT_LOGIT + 1) / 2


def uniform_point(mask: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """A pixel (x, y) float64 drawn from a non-empty mask (H, W)."""
    inside = np.flatnonzero(mask)
    y, x = divmod(int(inside[generator.integers(len(inside))]), mask.shape[1])
    return np.array([x, y], dtype=np.float64)


def to_input_frame(points: np.ndarray, preprocess: Preprocess, original_size: tuple[int, int]) -> Tensor:
    """Points (N, 2) float64, x y, in original-image pixels -> the same in input-frame pixels, (N, 2) float32."""
    prompt = ResolvedPrompt(points, np.ones(len(points), np.int64), None, None, None)
    return prompt_tokens(prompt, preprocess, original_size)[0][:-1]  # without the padding point that is appended


def valid_cells(preprocess: Preprocess, input_size: tuple[int, int]) -> tuple[int, int]:
    """(rows, columns) of the low-resolution cells that hold any of the image; those below and right are padding."""
    stride = preprocess.low_res_stride
    return -(-input_size[0] // stride), -(-input_size[1] // stride)


def valid_area(preprocess: Preprocess, input_size: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """1 where the padded input is image, 0 where padding, reduced bilinearly to `size` (h, w): float32, 0 to 1."""
    area = torch.zeros(1, 1, *preprocess.padded_size(input_size))
    area[..., : input_size[0], : input_size[1]] = 1
    return functional.interpolate(area, size, mode="bilinear", align_corners=False)[0, 0]  # (h, w)


def cut(maps: Tensor, valid: tuple[int, int]) -> Tensor:
    """Maps (..., h, w) without the padding: their first valid[0] rows and valid[1] columns."""
    return maps[..., : valid[0], : valid[1]]


def encoding_parts(network: nn.Module) -> list[str]:
    """Names of the children that encode the image: those that are not among DECODING_PARTS."""
    return [name for name, _ in network.named_children() if name not in DECODING_PARTS]


def encode_images(network: PromptableModel, pixels: list[Tensor]) -> list[dict[str, Tensor]]:
    """Pixels (3, H', W') of each image -> its features, leading dimension 1; images of one shape are encoded together.

    Networks whose input follows the image's shape meet several shapes in a batch.
    """
    by_shape: dict[tuple[int, ...], list[int]] = {}
    for i, each in enumerate(pixels):
        by_shape.setdefault(tuple(each.shape), []).append(i)
    features: dict[int, dict[str, Tensor]] = {}
    for members in by_shape.values():
        together = network.encode_image(torch.stack([pixels[i] for i in members]))  # each (B, ...)
        for place, i in enumerate(members):
            features[i] = {name: value[place : place + 1] for name, value in together.items()}
    return [features[i] for i in range(len(pixels))]


def noisy_boxes(
    boxes: Tensor, noise: float, most: float, input_size: tuple[int, int], generator: torch.Generator
) -> Tensor:
    """Boxes (P, 4) xyxy with normal noise on each coordinate, kept in the input frame and at least a pixel wide.

    noise: standard deviation as a part of the box's side, most: its limit in pixels; 0.1 and 20 in SAM's paper,
    appendix A ("Training algorithm").
    """
    sides = (boxes[:, 2:] - boxes[:, :2]).repeat(1, 2)  # (P, 4)
    drawn = torch.randn(boxes.shape, generator=generator).to(boxes.device) * noise * sides
    moved = boxes + drawn.clamp(-most, most)
    limit = moved.new_tensor([input_size[1], input_size[0]])
    low = torch.minimum(moved[:, :2], moved[:, 2:] - 1).clamp(min=0)
    high = torch.minimum(torch.maximum(moved[:, 2:], low + 1), limit)
    return torch.cat([torch.minimum(low, high - 1).clamp(min=0), high], dim=1)  # (P, 4)


def first_prompts(points: Tensor, boxes: Tensor, as_box: Tensor) -> tuple[Tensor, Tensor]:
    """Two tokens for each prompt: the two corners of its box, or a foreground point and the padding point.

    points (P, 2), boxes (P, 4) xyxy, both input-frame pixels, as_box (P,) bool. Returns points (P, 2, 2) and labels
    (P, 2) as PromptableModel.decode takes them.
    """
    clicked = torch.stack([points, torch.zeros_like(points)], dim=1)  # (P, 2, 2)
    chosen = torch.where(as_box[:, None, None], boxes.unflatten(1, (2, 2)), clicked)  # (P, 2, 2)
    box_labels = torch.tensor([BOX_TOP_LEFT, BOX_BOTTOM_RIGHT], device=points.device)
    point_labels = torch.tensor([FOREGROUND, PADDING], device=points.device)
    return chosen, torch.where(as_box[:, None], box_labels, point_labels)


def add_points(points: Tensor, labels: Tensor, new: Tensor, new_labels: Tensor) -> tuple[Tensor, Tensor]:
    """One more point for each prompt: points (P, N, 2), labels (P, N), new (P, 2), new_labels (P,).

    It goes in front, because corners and padding come last; a decoder does not see the order of points.
    """
    return torch.cat([new[:, None].to(points.dtype), points], dim=1), torch.cat([new_labels[:, None], labels], dim=1)


class Errors(NamedTuple):
    """A cell of each prompt's error region. cells: (P, 2) int64, x y on the low-resolution grid, 0 0 where none was
    drawn. labels: (P,) int64, foreground where the mask is missing, background where it is too much. counts: (P,)
    int64, how many cells are wrong. found: (P,) bool, whether a cell was drawn."""

    cells: Tensor
    labels: Tensor
    counts: Tensor
    found: Tensor


@torch.no_grad()
def sample_errors(predicted: Tensor, target: Tensor, generator: torch.Generator, least: int = 1) -> Errors:
    """A cell uniform in the region where predicted and target, bool (P, h, w), differ.

    least: with fewer wrong cells, none is drawn. generator: a CPU generator; the same numbers give the same cells on
    every device. (SAM's paper, appendix A; EdgeSAM's with a teacher's masks as target and least = 10.)
    """
    wrong = (predicted ^ target).flatten(1)  # (P, h * w)
    counts = wrong.sum(dim=1)  # (P,)
    found = counts >= max(1, least)
    drawn = torch.rand(len(counts), generator=generator, dtype=torch.float64).to(counts.device)
    rank = (drawn * counts).long()  # (P,), which of the wrong cells
    index = torch.searchsorted(wrong.cumsum(dim=1), rank[:, None] + 1)[:, 0]  # (P,), h * w where none is wrong
    index = index.where(found, torch.zeros_like(index))
    missing = target.flatten(1).gather(1, index[:, None])[:, 0]  # (P,)
    cells = torch.stack([index % predicted.shape[2], index // predicted.shape[2]], dim=1)  # (P, 2)
    return Errors(cells, torch.where(missing, FOREGROUND, BACKGROUND), counts, found)


def cell_centres(cells: Tensor, stride: int) -> Tensor:
    """Cells (P, 2), x y -> the pixels in their middles, (P, 2) float32 in the input frame.

    A pixel's centre is at its index plus a half, which the prompt encoders add.
    """
    return (cells.float() + 0.5) * stride - 0.5


def sam_loss(decoded: Decoded, target: Tensor, focal_weight: float = 20.0) -> tuple[Tensor, Tensor]:
    """SAM's loss of each prompt (P,), and the IoU of its masks (P, C) without gradient.

    decoded: low_res_logits (P, C, h, w), cut to where there is image, as target (P, h, w) in 0..1 is. The loss is focal
    x focal_weight + dice of that of the C masks for which it is least, plus the mean squared error of the predicted
    IoU (paper, section 3 and appendix A; it does not say which predicted IoUs learn: here all do).
    """
    logits = decoded.low_res_logits.float()
    least = mask_loss(logits, target, focal_weight).min(dim=1).values  # (P,)
    ious = mask_iou(logits.detach(), target)  # (P, C)
    return least + ((decoded.iou_predictions.float() - ious) ** 2).mean(dim=1), ious


def bce_dice(logits: Tensor, target: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Binary cross-entropy and dice loss of each prompt, (P,) both.

    logits and target (P, C, h, w), target in 0..1; valid (h, w) in 0..1, how much of each cell counts. The cross-
    entropy is a mean over all masks and valid cells, the dice a mean of the masks' own, as in EdgeSAM's published
    training (chongzhou96/EdgeSAM@b53372c).
    """
    cost = functional.binary_cross_entropy_with_logits(logits, target, reduction="none") * valid
    bce = cost.flatten(1).sum(dim=1) / (valid.sum() * logits.shape[1]).clamp(min=1e-6)  # (P,)
    probability, true = logits.sigmoid() * valid, target * valid
    overlap = (probability * true).flatten(2).sum(dim=2)  # (P, C)
    total = probability.flatten(2).sum(dim=2) + true.flatten(2).sum(dim=2)  # (P, C)
    return bce, (1 - (2 * overlap + 1) / (total + 1)).mean(dim=1)


def decode_tokens(
    network: SamLike, features: dict[str, Tensor], points: Tensor, labels: Tensor, tokens: slice
) -> Decoded:
    """The masks of the mask tokens in `tokens` (a slice of 0..3) for prompts without mask prompts.

    As PromptableModel.decode, but labels may be IGNORED: such a token is all zeros, as in EdgeSAM's published training
    (it takes part in attention as a token without content). iou_predictions are (P, C), of the same mask tokens.
    """
    ignored = labels == IGNORED
    sparse, dense = network.prompt_encoder(points, labels.masked_fill(ignored, PADDING), None)
    sparse = sparse.masked_fill(ignored[..., None], 0)  # (P, N, D)
    image_pe = network.prompt_encoder.dense_pe()
    logits, ious = network.mask_decoder.forward_all(features["image_embeddings"], image_pe, sparse, dense, tokens)
    return Decoded(logits, ious[:, tokens])


def score_prompts(
    network: nn.Module,
    variant: str,
    dataset: ImageDataset,
    most: int,
    kept: dict[str, EncodedImage] | None = None,
) -> dict[str, float]:
    """How well a network answers prompts as users give them: mean IoU with the masks at the images' own size.

    "box": from the tight box, one mask. "click": from the centre-most point, of three masks the one with the highest
    predicted IoU. "miou": the mean of both, the score to judge by. masks: how many were asked for, the same ones each
    time, at most `most` of an image; images that cannot be read are left out, and without any other there are no
    scores. kept: encodings by the images' names, read and filled, for an encoder that does not change. Goes the way of
    `Model.predict`, in eval mode; the network's modes are as before afterwards.
    """
    modes = {module: module.training for module in network.modules()}
    network.eval()
    device = next(network.parameters()).device
    model = Model(variant, cast(PromptableModel, network), device, torch.float32, "0" * 64)
    boxes: list[float] = []
    clicks: list[float] = []
    for i in range(len(dataset)):
        try:
            entry = dataset[i]
            targets = [entry.decode(index) > 0 for index in _same_masks(entry, most)]
            if not targets:
                continue
            encoded = kept.get(entry.name) if kept is not None else None
            encoded = model.encode(entry.read_image()) if encoded is None else encoded
        except ImageError:
            continue
        if kept is not None and len(kept) < _MOST_KEPT:
            kept[entry.name] = encoded
        own_boxes, own_clicks = _score_masks(model, encoded, targets)
        boxes += own_boxes
        clicks += own_clicks
    for module, training in modes.items():
        module.training = training
    if not boxes:
        return {}
    box, click = float(np.mean(boxes)), float(np.mean(clicks))
    return {"miou": (box + click) / 2, "box": box, "click": click, "masks": float(len(boxes))}


def _same_masks(entry: ImageEntry, most: int) -> list[int]:
    """Up to `most` masks of an entry that are not empty, spread over its list."""
    there = [i for i, area in enumerate(entry.areas) if area > 0]
    return there[:: max(1, len(there) // max(1, most))][:most]


def _score_masks(model: Model, encoded: EncodedImage, targets: list[np.ndarray]) -> tuple[list[float], list[float]]:
    """IoU of each target (H, W) bool by its box and by its centre-most point."""
    by_box = model.predict(encoded, [Prompt(box=mask_to_box(target)) for target in targets], multimask=False)
    points = [np.array([centre_most_point(target)]) for target in targets]  # (1, 2) each
    by_click = model.predict(encoded, [Prompt(points=point) for point in points], multimask=True)
    return (
        [exact_iou(found.masks[0], target) for found, target in zip(by_box, targets, strict=True)],
        [exact_iou(found.masks[found.best], target) for found, target in zip(by_click, targets, strict=True)],
    )
