"""FastSAM: all objects of an image at once from YOLOv8-seg; prompts choose among the finished masks.

Paper: Zhao et al., "Fast Segment Anything", 2023. Source: CASIA-IVA-Lab/FastSAM@b4ed20c, whose code and weights are
AGPL-3.0 by its LICENSE (the README says Apache-2.0): known here by a description in words and golden numbers only.

What is unusual here:
- There is no prompt encoder: `select` picks or combines instances. How is written at `FastSam.select`.
- FastSAM-x has 26 distances per side of a box, FastSAM-s 16; `build_like` reads the number from the tensors.
- After suppression boxes near the letterbox's border are moved onto it, and one that then covers nearly all of the
  letterbox becomes the whole of it.

Where we differ from the published code on purpose:
- Several boxes of the whole image are all replaced (published: an error, and then no result at all).
- Nothing found is an empty `Instances`, and a prompt that no instance fits an empty mask with score 0 (published: None,
  or for a box the first mask of all).
- Each image is treated for itself (published: only the first of a batch is snapped and replaced).
- Masks are always made at the image's size, "retina" in the published words; there, without it, prompts miss by the
  letterbox's padding. `letterbox_masks` makes the others.

Texts choose among the instances too; that rule is for every family, in `describe.text_prompts`.
"""

from collections.abc import Iterator, Mapping

import cv2
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from anysam.errors import OptionError, UnknownModelError, WeightsError
from anysam.letterbox import Letterbox, boxes_to_image, picture_cells
from anysam.masks import mask_to_box
from anysam.models.yolov8 import SCALES, Detections, Instances, YoloConfig, YoloV8, detect, pairwise_iou, read_config
from anysam.preprocess import MASK_PROMPT_LOGIT
from anysam.prompts import ResolvedPrompt
from anysam.results import Prediction

PREPROCESS = Letterbox(name="fast_sam_1024", long_side=1024)

SIZES = {"s": YoloConfig(*SCALES["s"], reg_max=16), "x": YoloConfig(*SCALES["x"], reg_max=26)}

WHOLE_IMAGE_IOU = 0.9  # a box above it with the letterbox becomes the letterbox; published
CANDIDATES = 3  # masks of an ambiguous prompt

# Full-size logits of one mask held at once: 8 M float32 are 32 MB.
_LOGITS_AT_ONCE = 8 * 1024 * 1024


class FastSam(nn.Module):
    """The network; an InstanceModel whose instances prompts can be matched with."""

    default_confidence = 0.4
    default_nms_iou = 0.9
    multimask_default = "never"

    def __init__(self, config: YoloConfig, preprocess: Letterbox) -> None:
        super().__init__()
        if not config.prototypes:
            raise ValueError("FastSAM makes its masks from prototypes; the configuration has none")
        self.classes = config.classes
        self.preprocess = preprocess
        self.model = YoloV8(config)

    def encode_image(self, pixels: Tensor) -> dict[str, Tensor]:
        """Letterboxed pixels (B, 3, H, W) in 0..1 -> features.

        "decoded" (B, 4 + classes + 32, A) float32, per anchor: centre x, y, width, height in letterbox pixels, a score
        0..1 per class, 32 mask coefficients. "prototypes" (B, 32, H/4, W/4).
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
        """At most `limit` objects, best first, of the image (H, W) whose features these are.

        confidence: scores must be above it. nms_iou: of two boxes with a higher IoU the lower score goes.
        """
        lots = self.instance_lots(
            features, original_size, confidence=confidence, nms_iou=nms_iou, limit=limit, at_once=limit
        )
        return next(lots)

    def instance_lots(
        self,
        features: dict[str, Tensor],
        original_size: tuple[int, int],
        *,
        confidence: float,
        nms_iou: float,
        limit: int = 300,
        at_once: int,
    ) -> Iterator[Instances]:
        """What `instances` returns, `at_once` at a time, so that few masks are held; at least one lot."""
        padded_size = self.preprocess.padded_size(self.preprocess.input_size(original_size))
        found = detect(features["decoded"], padded_size, self.classes, confidence, nms_iou, limit)
        found = replace_whole_image(found, padded_size)
        logits = mask_logits(found.coefficients, features["prototypes"][0])  # (N, h, w)
        boxes = boxes_to_image(found.boxes, padded_size, original_size)
        for start in range(0, max(1, len(boxes)), at_once):
            part = slice(start, start + at_once)
            masks = image_masks(logits[part], boxes[part], original_size)
            _turn_negative_outside(logits[part], found.boxes[part], padded_size)
            yield Instances(boxes[part], found.scores[part], masks, logits[part].cpu().numpy())

    def select(self, instances: Instances, prompt: ResolvedPrompt, multimask: bool) -> Prediction:
        """The instances that a prompt means.

        multimask False: one mask.
        - Only points, as published: all masks with a foreground point in them are united, from the largest to the
          smallest; a mask with a background point in it is taken away again when its turn comes. iou_predictions is
          the best score among those united, times the agreement of the result.
        - Anything with a box or a mask: the instance that fits best. Only a box, as published: by its IoU with the box.

        multimask True: up to three instances, none united, by how well they fit. How well, which is iou_predictions
        too, is a product: the IoU with the box; the IoU with the mask; the agreement with the points; and, for points
        alone, the instance's score, or 0 without a foreground point inside. The box that `resolve_prompt` draws around
        a mask given alone says nothing new and is left out; low_res_logits are a mask where they are positive.
        Agreement is (1 + points on the right side) / (1 + points): a wrong point weakens, it does not rule out.

        Where nothing fits, background points alone included, the answer is one empty mask with score 0. Raises
        OptionError for instances without masks.
        """
        masks, low_res_logits = instances.masks, instances.low_res_logits
        if masks is None or low_res_logits is None:
            raise OptionError("Prompts choose among masks, but these instances are boxes alone.")
        pixels, positive = _point_pixels(prompt.points, masks.shape[1:]), prompt.labels == 1
        inside = masks[:, pixels[:, 1], pixels[:, 0]]  # (N, points)
        hint = self._hint(prompt, (masks.shape[1], masks.shape[2]))
        box = None if hint is not None and _is_box_of(prompt.box, hint) else prompt.box
        if hint is None and box is None and not multimask:
            return self._united(instances, inside, positive)
        fit = (1 + (inside == positive).sum(axis=1)) / (1 + len(positive))  # (N,)
        if hint is None and box is None:
            fit = fit * instances.scores * inside[:, positive].any(axis=1)
        if box is not None:
            fit = fit * iou_with_box(masks, box)
        if hint is not None:
            fit = fit * iou_with_mask(masks, hint)
        order = np.argsort(-fit, kind="stable")[: CANDIDATES if multimask else 1]
        order = order[fit[order] > 0]
        if not len(order):
            return self._nothing((masks.shape[1], masks.shape[2]))
        return Prediction(masks[order], fit[order].astype(np.float32), low_res_logits[order])

    def _united(self, instances: Instances, inside: np.ndarray, positive: np.ndarray) -> Prediction:
        """The union of the masks under foreground points; inside (N, points) says which point is in which mask."""
        masks, low_res_logits = instances.masks, instances.low_res_logits
        assert masks is not None and low_res_logits is not None
        chosen = inside[:, positive].any(axis=1)  # (N,)
        if not chosen.any():
            return self._nothing((masks.shape[1], masks.shape[2]))
        mask = np.zeros(masks.shape[1:], dtype=np.bool_)
        low_res = np.minimum(low_res_logits[chosen].max(axis=0), 0)  # (h, w)
        hit = np.zeros(len(positive), dtype=np.bool_)  # points on the mask as it stands
        for i, adds in _turns(masks, inside, positive):
            _set(mask, masks[i], adds)
            hit[inside[i]] = adds
            cells = low_res_logits[i] > 0
            low_res[cells] = low_res_logits[i][cells] * (1 if adds else -1)
        agreement = (1 + (hit == positive).sum()) / (1 + len(positive))
        score = instances.scores[chosen].max() * agreement * mask.any()
        return Prediction(mask[None], np.array([score], dtype=np.float32), low_res[None])

    def _nothing(self, original_size: tuple[int, int]) -> Prediction:
        low_res_size = self.preprocess.low_res_size(self.preprocess.input_size(original_size))
        logits = np.full((1, *low_res_size), -MASK_PROMPT_LOGIT, dtype=np.float32)
        return Prediction(np.zeros((1, *original_size), dtype=np.bool_), np.zeros(1, dtype=np.float32), logits)

    def _hint(self, prompt: ResolvedPrompt, original_size: tuple[int, int]) -> np.ndarray | None:
        """The mask (H, W) that a prompt gives as one or as low-resolution logits, or None."""
        if prompt.low_res_logits is None:
            return prompt.mask
        logits = torch.tensor(prompt.low_res_logits)[None]  # (1, h, w)
        height, width = original_size
        whole = np.array([[0, 0, width, height]], dtype=np.float32)
        return image_masks(logits, whole, original_size)[0]


def replace_whole_image(found: Detections, padded_size: tuple[int, int]) -> Detections:
    """Boxes whose IoU with the letterbox is above WHOLE_IMAGE_IOU become the letterbox, and their class 0."""
    letterbox = np.array([[0, 0, padded_size[1], padded_size[0]]], dtype=np.float32)
    whole = pairwise_iou(found.boxes, letterbox)[:, 0] > np.float64(WHOLE_IMAGE_IOU)  # (N,)
    boxes = np.where(whole[:, None], letterbox, found.boxes)
    return Detections(boxes, found.scores, np.where(whole, 0, found.classes), found.coefficients)


def mask_logits(coefficients: np.ndarray, prototypes: Tensor) -> Tensor:
    """Coefficients (N, 32) and prototypes (32, h, w) -> logits (N, h, w) float32, on the prototypes' device."""
    weights = torch.from_numpy(np.ascontiguousarray(coefficients)).to(prototypes.device)
    return (weights @ prototypes.float().flatten(1)).unflatten(1, prototypes.shape[1:])  # (N, h, w)


def image_masks(logits: Tensor, boxes: np.ndarray, original_size: tuple[int, int]) -> np.ndarray:
    """Logits (N, h, w) over the letterbox and boxes (N, 4), image pixels -> masks (N, H, W) bool, false outside them.

    Bilinear from the picture's cells to the image's pixels, evaluated only where the box is: the box of most objects is
    a small part of the image.
    """
    height, width = original_size
    top, left, bottom, right = picture_cells((logits.shape[1], logits.shape[2]), original_size)
    logits = logits[:, top:bottom, left:right]  # (N, h, w) of the picture
    down, across = (_neighbours(*sides, logits.device) for sides in zip(logits.shape[1:], original_size, strict=True))
    # Memory that is never written is never taken from the system, so rows without an object cost nothing.
    masks = np.zeros((len(logits), height, width), dtype=np.bool_)
    for mask, cells, (x0, y0, x1, y1) in zip(masks, logits, boxes, strict=True):
        rows, columns = _span(y0, y1, height), _span(x0, x1, width)
        band = max(1, _LOGITS_AT_ONCE // max(1, len(columns)))
        for start in range(rows.start, rows.stop, band) if len(columns) else ():
            part = slice(start, min(rows.stop, start + band))
            between = slice(columns.start, columns.stop)
            values = _bilinear(cells, [value[part] for value in down], [value[between] for value in across])
            mask[part, between] = (values > 0).cpu().numpy()
    return masks


def letterbox_masks(logits: Tensor, boxes: np.ndarray, padded_size: tuple[int, int]) -> np.ndarray:
    """Logits (N, h, w) and boxes (N, 4), letterbox pixels -> masks (N, H', W') bool at the letterbox's size.

    What the published code makes without "retina masks": logits outside the boxes become 0 before the enlargement.
    """
    masks = np.zeros((len(logits), *padded_size), dtype=np.bool_)
    inside = torch.from_numpy(cells_inside(boxes, (logits.shape[1], logits.shape[2]), padded_size)).to(logits.device)
    at_once = max(1, _LOGITS_AT_ONCE // (padded_size[0] * padded_size[1]))
    for start in range(0, len(logits), at_once):
        part = slice(start, start + at_once)
        cropped = (logits[part] * inside[part])[None]  # (1, n, h, w)
        full = functional.interpolate(cropped, padded_size, mode="bilinear", align_corners=False)
        masks[part] = (full[0] > 0).cpu().numpy()
    return masks


def cells_inside(boxes: np.ndarray, grid: tuple[int, int], padded_size: tuple[int, int]) -> np.ndarray:
    """Which cells of a grid (h, w) over the letterbox belong to boxes (N, 4), letterbox pixels: (N, h, w) bool.

    A cell belongs by its left and its upper edge.
    """
    x0, y0, x1, y1 = _scale_boxes(boxes, grid, padded_size).T[:, :, None]  # each (N, 1)
    x, y = (np.arange(side, dtype=np.float32) for side in (grid[1], grid[0]))
    return ((x >= x0) & (x < x1))[:, None, :] & ((y >= y0) & (y < y1))[:, :, None]  # (N, h, w)


def _turn_negative_outside(logits: Tensor, boxes: np.ndarray, padded_size: tuple[int, int]) -> None:
    """Make logits (N, h, w) nowhere positive outside the boxes, whatever was predicted there, in place."""
    height, width = logits.shape[1:]
    for cells, (x0, y0, x1, y1) in zip(logits, _scale_boxes(boxes, (height, width), padded_size), strict=True):
        rows, columns = _span(y0, y1, height), _span(x0, x1, width)
        inside = (slice(rows.start, rows.stop), slice(columns.start, columns.stop))
        kept = cells[inside].clone()
        cells.abs_().neg_()
        cells[inside] = kept


def _scale_boxes(boxes: np.ndarray, grid: tuple[int, int], padded_size: tuple[int, int]) -> np.ndarray:
    """Boxes (N, 4), letterbox pixels -> float32, cells of a grid (h, w) over the letterbox."""
    return boxes * np.array([grid[1] / padded_size[1], grid[0] / padded_size[0]] * 2, dtype=np.float32)


def _span(low: float, high: float, size: int) -> range:
    """The whole numbers in [low, high) and [0, size)."""
    start, stop = (int(np.clip(np.ceil(value), 0, size)) for value in (low, high))
    return range(start, max(start, stop))


def _neighbours(cells: int, pixels: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """For each of so many pixels over so many cells: the cell before, the cell after, and the weight of the latter."""
    place = (torch.arange(pixels, device=device, dtype=torch.float32) + 0.5) * (cells / pixels) - 0.5
    place = place.clamp(0, cells - 1)
    before = place.long()
    return before, (before + 1).clamp(max=cells - 1), place - before


def _bilinear(cells: Tensor, down: list[Tensor], across: list[Tensor]) -> Tensor:
    """Cells (h, w) at rows and columns between them, each at least one and given as `_neighbours` does."""
    (above, below, wy), (before, after, wx) = down, across
    first = int(above[0])
    cells = cells[first : int(below[-1]) + 1]  # the rows that are read
    wide = torch.lerp(cells[:, before], cells[:, after], wx)  # (h', columns)
    return torch.lerp(wide[above - first], wide[below - first], wy[:, None])  # (rows, columns)


def iou_with_box(masks: np.ndarray, box: np.ndarray) -> np.ndarray:
    """IoU (N,) float64 of masks (N, H, W) with a box (4,), xyxy, image pixels, which may reach over the image.

    The box is rounded to whole pixels and clipped, as published, but stays one pixel wide and high at least.
    """
    height, width = masks.shape[1:]
    x0, y0, x1, y1 = (int(np.clip(np.rint(side), 0, size)) for side, size in zip(box, (width, height) * 2, strict=True))
    x0, y0 = min(x0, width - 1), min(y0, height - 1)
    x1, y1 = max(x1, x0 + 1), max(y1, y0 + 1)
    overlap = np.array([np.count_nonzero(mask[y0:y1, x0:x1]) for mask in masks], dtype=np.float64)  # (N,)
    return overlap / ((x1 - x0) * (y1 - y0) + mask_areas(masks) - overlap)


def iou_with_mask(masks: np.ndarray, hint: np.ndarray) -> np.ndarray:
    """IoU (N,) float64 of masks (N, H, W) with one (H, W); 0 where both are empty."""
    overlap = np.array([np.count_nonzero(mask & hint) for mask in masks], dtype=np.float64)  # (N,)
    return overlap / np.maximum(mask_areas(masks) + np.count_nonzero(hint) - overlap, 1)


def mask_areas(masks: np.ndarray) -> np.ndarray:
    """Pixels (N,) int64 of masks (N, H, W)."""
    return np.array([np.count_nonzero(mask) for mask in masks], dtype=np.int64)


def unite_by_points(masks: np.ndarray, points: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The published answer of masks (N, H, W) to points (P, 2), x y, with labels (P,) of 1 or 0: one mask (H, W).

    Masks have their turn by falling area. One with a foreground point inside is added, one with a background point
    inside taken away; of several points inside the last in the list decides.
    """
    pixels, positive = _point_pixels(points, masks.shape[1:]), np.asarray(labels) == 1
    united = np.zeros(masks.shape[1:], dtype=np.bool_)
    for i, adds in _turns(masks, masks[:, pixels[:, 1], pixels[:, 0]], positive):
        _set(united, masks[i], adds)
    return united


def _turns(masks: np.ndarray, inside: np.ndarray, positive: np.ndarray) -> list[tuple[int, bool]]:
    """Masks with a point inside, by falling area: their index, and whether they are added or taken away."""
    order = np.argsort(-mask_areas(masks), kind="stable")
    return [(int(i), bool(positive[np.flatnonzero(inside[i])[-1]])) for i in order if inside[i].any()]


def _set(mask: np.ndarray, region: np.ndarray, adds: bool) -> None:
    """Add a region to a mask or take it away, in place."""
    if adds:
        mask |= region
    else:
        mask &= ~region


def _point_pixels(points: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """Points (P, 2), x y -> the pixels they lie in, (P, 2) int64; the right and lower edges count as the last ones."""
    return np.clip(np.asarray(points).astype(np.int64), 0, [size[1] - 1, size[0] - 1])


def _is_box_of(box: np.ndarray | None, mask: np.ndarray) -> bool:
    tight = mask_to_box(mask)
    return box is not None and tight is not None and np.array_equal(box, tight)


def clean_mask(mask: np.ndarray) -> np.ndarray:
    """A mask (H, W) bool without gaps of a pixel or two and without specks: the published "better quality".

    Closed with a 3x3 kernel, then opened with an 8x8 one, whose even size moves the mask right and down by a pixel.
    """
    closed = cv2.morphologyEx(mask.astype(np.uint8), cv2.MORPH_CLOSE, np.ones((3, 3), np.uint8))
    return cv2.morphologyEx(closed, cv2.MORPH_OPEN, np.ones((8, 8), np.uint8)) > 0


def distinct_masks(masks: np.ndarray, contained: float = 0.8) -> np.ndarray:
    """Indices, by falling area, of masks (N, H, W) without those of which more than a share lies in one larger mask.

    Empty masks are left out. The larger one counts even if it is left out itself.
    """
    areas = mask_areas(masks)
    order = [int(i) for i in np.argsort(-areas, kind="stable") if areas[i]]
    kept = [
        i
        for rank, i in enumerate(order)
        if all(np.count_nonzero(masks[i] & masks[larger]) <= contained * areas[i] for larger in order[:rank])
    ]
    return np.array(kept, dtype=np.int64)


def build_from(config: YoloConfig, preprocess: Letterbox) -> FastSam:
    """A network of any shape, with random weights, channels last in memory."""
    return FastSam(config, preprocess).to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def build(size: str) -> FastSam:
    """FastSAM with random weights; `size` is s or x. Raises UnknownModelError for another size."""
    if size not in SIZES:
        raise UnknownModelError(f"FastSAM has no size {size!r}; its sizes are {', '.join(SIZES)}.")
    return build_from(SIZES[size], PREPROCESS)


def build_like(size: str, state_dict: Mapping[str, Tensor]) -> FastSam:
    """FastSAM of a size with as many distances and classes as published tensors have.

    Raises UnknownModelError for an unknown size and WeightsError for the tensors of another size or network.
    """
    if size not in SIZES:
        raise UnknownModelError(f"FastSAM has no size {size!r}; its sizes are {', '.join(SIZES)}.")
    scale, config = read_config(state_dict)
    if scale != size:
        hint = f"load them as fastsam_{scale}" if scale in SIZES else f"FastSAM's sizes are {', '.join(SIZES)}"
        raise WeightsError(f"These are the tensors of a YOLOv8-{scale} network, not of FastSAM-{size}; {hint}.")
    if not config.prototypes:
        raise WeightsError(
            f"These tensors have no prototype branch, which FastSAM-{size} needs; is it mobilesamv2_object_aware?"
        )
    return build_from(config, PREPROCESS)
