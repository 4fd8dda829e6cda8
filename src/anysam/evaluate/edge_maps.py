"""From a model to a map of edges, as SAM (arXiv 2304.02643, appendix D.2) makes one of everything mode's masks.

A grid of 16 x 16 points, three masks each, no filters but the suppression of masks whose boxes overlap; the Sobel
filter of each mask's unthresholded probabilities, 0 but on the mask's outer boundary pixels; the maximum of all masks,
scaled to 0 ... 1; edge suppression.

The paper does not say, so that it is ours: the threshold of the suppression is the mask generator's, 0.7; outer
boundary pixels are those outside of the mask that touch one of its pixels by a side or a corner; Sobel's kernels are
3 x 3; the maximum becomes 1 and 0 stays 0; the edge suppression is that of `edge_thinning`.

FastSAM and models of its kind are asked for their objects, as FastSAM (arXiv 2306.12156, section 4.2) has it; the
probabilities are those of the masks before they are thresholded, and nothing is outside of the box.
"""

from collections.abc import Iterator

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from anysam.automatic.extents import find_extents
from anysam.automatic.filters import greedy_nms, inclusive_box
from anysam.automatic.grids import point_grid
from anysam.automatic.instances import LotModel
from anysam.automatic.interface import Resize
from anysam.automatic.operators import ROUNDING, identity_band
from anysam.encoded_image import EncodedImage
from anysam.errors import OptionError
from anysam.evaluate.edge_thinning import suppress_edges
from anysam.evaluate.options import EdgeOptions
from anysam.letterbox import picture_cells
from anysam.models import InstanceModel
from anysam.predictor import Model

_POINTS_AT_ONCE = 64
_MASKS_AT_ONCE = 8  # of the image's size
_MOST_LOGIT = 30.0  # beyond it a probability is 0 or 1 in float32


def check_model(model: Model, options: EdgeOptions) -> None:
    """Raises OptionError for a model without masks and for options that it has no use for."""
    plain = EdgeOptions()
    if not isinstance(model.network, InstanceModel):
        if options.confidence != plain.confidence:
            raise OptionError(
                f"--confidence belongs to found objects, but {model.variant} is asked at a grid of points."
            )
        return
    if not isinstance(model.network, LotModel):
        raise OptionError(f"{model.variant} finds boxes without masks, which have no edges; choose another model.")
    for name in ("points_per_side", "box_nms_thresh"):
        if getattr(options, name) != getattr(plain, name):
            raise OptionError(f"--{name.replace('_', '-')} belongs to a grid, but {model.variant} is not asked at one.")


def edge_map(model: Model, image: np.ndarray, options: EdgeOptions) -> np.ndarray:
    """How sure there is an edge at each pixel of an RGB image (H, W, 3) uint8: (H, W) float32, 0 to 1, lines of about
    a pixel; the greatest is 1, unless there are no edges at all.

    A grid's candidates are held at low resolution (SAM: 0.2 MB each), a few masks at the image's size.
    """
    with torch.inference_mode():
        encoded = model.encode(image)
        strength = np.zeros(encoded.original_size, dtype=np.float32)
        masks = _found_masks(model, encoded, options) if isinstance(model.network, LotModel) else None
        for logits, mask in masks or _grid_masks(model, encoded, options):
            add_border(strength, logits, mask)
    most = float(strength.max())
    return suppress_edges(strength / most) if most > 0 else strength


def add_border(strength: np.ndarray, logits: np.ndarray, mask: np.ndarray) -> None:
    """Raise strength (H, W) float32, in place, to a mask's: logits (H, W) float32 -> the Sobel filter of their
    probabilities, on the pixels just outside of mask (H, W) bool."""
    x0, y0, x1, y1 = inclusive_box(mask)
    # One pixel more than the outer boundary, so that the filter sees what it would see in the whole image.
    part = np.s_[max(y0 - 2, 0) : y1 + 3, max(x0 - 2, 0) : x1 + 3]
    inside = mask[part].astype(np.uint8)
    probability = 1 / (1 + np.exp(-logits[part].clip(-_MOST_LOGIT, _MOST_LOGIT)))
    gradient = np.hypot(*(cv2.Sobel(probability, cv2.CV_32F, 1 - axis, axis) for axis in (0, 1)))
    outer = cv2.dilate(inside, np.ones((3, 3), dtype=np.uint8)) > inside
    np.maximum(strength[part], gradient, out=strength[part], where=outer)


def _grid_masks(model: Model, encoded: EncodedImage, options: EdgeOptions) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Logits and mask, (H, W) each, of the masks of a grid that no better one suppresses."""
    height, width = encoded.original_size
    points = point_grid(options.points_per_side) * np.array([[width, height]])  # (P, 2)
    resize = model.resize(encoded)
    kept_logits, boxes, scores = [], [], []
    for start in range(0, len(points), _POINTS_AT_ONCE):
        answer = model.decode_points(encoded, points[start : start + _POINTS_AT_ONCE], -np.inf)
        kept_logits.append(answer.low_res_logits)
        boxes.append(mask_boxes(answer.low_res_logits, resize))
        scores.append(answer.iou_predictions.flatten()[answer.candidates].float().cpu().numpy())
    logits = torch.cat(kept_logits)  # (K, h, w)
    kept = greedy_nms(np.concatenate(boxes), np.concatenate(scores), options.box_nms_thresh)
    for start in range(0, len(kept), _MASKS_AT_ONCE):
        some = torch.from_numpy(kept[start : start + _MASKS_AT_ONCE]).to(logits.device)
        for full in resize.exact(logits[some]).cpu().numpy():  # (H, W)
            yield full, full > 0


def mask_boxes(logits: Tensor, resize: Resize) -> np.ndarray:
    """x0 y0 x1 y1 at the image's size of masks (K, h, w) at low resolution, last column and row included: (K, 4)."""
    boxes = np.zeros((len(logits), 4), dtype=np.int64)
    unsure = np.ones(len(logits), dtype=np.bool_)
    if resize.convex:
        same = resize.rows is None or resize.columns is None
        rows = identity_band(logits.shape[1], logits.device) if resize.rows is None else resize.rows
        columns = identity_band(logits.shape[2], logits.device) if resize.columns is None else resize.columns
        extents = find_extents(logits, rows, columns, 0.0, 0.0 if same else ROUNDING)
        boxes, unsure = extents.boxes.copy(), ~extents.sure
    for i in np.flatnonzero(unsure).tolist():
        boxes[i] = inclusive_box((resize.exact(logits[i : i + 1])[0] > 0).cpu().numpy())
    return boxes


def _found_masks(model: Model, encoded: EncodedImage, options: EdgeOptions) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Logits and mask, (H, W) each, of the objects that the model finds by itself."""
    network = model.network
    assert isinstance(network, LotModel)
    features = {name: tensor.to(model.device) for name, tensor in encoded.features.items()}
    lots = network.instance_lots(
        features,
        encoded.original_size,
        confidence=network.default_confidence if options.confidence == -1 else options.confidence,
        nms_iou=network.default_nms_iou,
        at_once=_MASKS_AT_ONCE,
    )
    for lot in lots:
        assert lot.masks is not None and lot.low_res_logits is not None
        for cells, mask in zip(lot.low_res_logits, lot.masks, strict=True):
            top, left, bottom, right = picture_cells((cells.shape[0], cells.shape[1]), encoded.original_size)
            picture = torch.from_numpy(cells[top:bottom, left:right])[None, None]
            full = functional.interpolate(picture, encoded.original_size, mode="bilinear", align_corners=False)
            yield full[0, 0].numpy(), mask
