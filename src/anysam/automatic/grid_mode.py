"""All masks of an image by asking at a grid of points, with the semantics of the published mask generator.

Source: facebookresearch/segment-anything@dca509f, segment_anything/automatic_mask_generator.py (Apache-2.0), written
anew. The order of work is another, the records are the same; `candidates` says why.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import torch

from anysam.automatic.candidates import Candidates, CropMask
from anysam.automatic.filters import greedy_nms
from anysam.automatic.grids import Box, chosen_grids, crop_boxes, in_image
from anysam.automatic.interface import GridModel, MeasuredModel, PointMasks, Resize
from anysam.automatic.levels import keep_levels
from anysam.automatic.options import EverythingOptions
from anysam.automatic.regions import EXACT_PIXELS, Frame
from anysam.automatic.span_regions import clean_spans
from anysam.encoded_image import EncodedImage
from anysam.errors import OptionError
from anysam.memory import MEGABYTE, GridPlan, WorkingMemory, memory_bound, plan_grid
from anysam.prompts import Prompt
from anysam.results import MaskRecord
from anysam.rle import read_rle, runs_to_spans, spans_area, spans_to_box, spans_to_runs, write_rle

Progress = Callable[[float], None]

_DECODING = 0.98  # the part of the progress that is told while points are asked


# What a model takes that does not tell: SAM's decoder, a few prompts at a time, and a small encoder.
USUAL_MEMORY = WorkingMemory(encode=128 * MEGABYTE, decode=112 * MEGABYTE, point=256 * 1024)
_USUAL_MASKS = 4  # candidates of a point


def grid_records(
    model: GridModel, image: np.ndarray, options: EverythingOptions, progress: Progress | None = None
) -> list[MaskRecord]:
    """All masks of an RGB image (H, W, 3) uint8 that pass the published filters, in the published order.

    progress: called with the part done, 0 to 1, rising. Raises OptionError for an image too small for its crops or
    too little memory for the image.
    """
    size = image.shape[0], image.shape[1]
    boxes, layers = crop_boxes(size, options.crop_n_layers, options.crop_overlap_ratio)
    grids = chosen_grids(options)
    total = sum(len(grids[layer]) for layer in layers)
    done = 0
    found: list[CropMask] = []
    for box, layer in zip(boxes, layers, strict=True):
        for count, masks in _crop_masks(model, image, box, grids[layer], options):
            done += count
            found += masks
            if progress is not None and count:
                progress(_DECODING * done / total)
    if len(boxes) > 1:
        found = _between_crops(found, options.crop_nms_thresh)
    if options.min_mask_region_area > 0:
        found = _without_small_regions(found, options)
    records = [_record(mask) for mask in found]
    if progress is not None:
        progress(1.0)
    return records


def _crop_masks(
    model: GridModel, image: np.ndarray, box: Box, grid: np.ndarray, options: EverythingOptions
) -> Iterator[tuple[int, list[CropMask]]]:
    """The masks of one crop: (points answered, masks ready) again and again; the masks come last."""
    x0, y0, x1, y1 = box
    encoded, resize, plan = _prepare(model, image, box, options)
    points = grid * np.array([[x1 - x0, y1 - y0]])  # (P, 2), as published: the products round
    candidates = Candidates(
        box, (image.shape[0], image.shape[1]), options.stability_score_thresh, budget=plan.kept_logits
    )
    least_iou = options.pred_iou_thresh if options.pred_iou_thresh > 0 else -math.inf
    frame = None
    # More than planned would break the bound.
    at_once = min(options.points_per_batch or plan.points_at_once, plan.points_at_once)
    asked = -math.inf if options.levels else least_iou  # levels are told apart among all masks of a point
    for part, answer in _decoded(model, encoded, points, asked, at_once):
        if options.levels:
            answer = keep_levels(answer, options.levels, least_iou)
        if len(answer.candidates):
            frame = frame or Frame.of(resize, answer.low_res_logits, options.stability_score_offset, plan.masks_at_once)
            owners = (answer.candidates // answer.iou_predictions.shape[1]).cpu().numpy()  # (K,)
            scores = answer.iou_predictions.flatten()[answer.candidates].float().cpu().numpy()  # (K,)
            candidates.add(answer.low_res_logits, scores, in_image(part[owners], box), frame)
        yield len(part), []
    yield 0, [] if frame is None else candidates.choose(frame, options.box_nms_thresh)


def _prepare(
    model: GridModel, image: np.ndarray, box: Box, options: EverythingOptions
) -> tuple[EncodedImage, Resize, GridPlan]:
    """A crop encoded, and how the work on it is cut. Raises OptionError when there is too little memory for it."""
    x0, y0, x1, y1 = box
    height, width = image.shape[:2]
    working = model.working_memory() if isinstance(model, MeasuredModel) else USUAL_MEMORY
    # Copies of the image on its way into the network.
    working = replace(working, encode=working.encode + 6 * height * width)
    # Asked before as well as after the encoding, because only the encoded image tells the other sizes and the device.
    if options.max_memory is not None:
        plan_grid(options.max_memory, (height, width), 1, _USUAL_MASKS, working, exact_pixels=0)
    bound = memory_bound(options.max_memory) if options.max_memory is None else options.max_memory
    encoded = model.encode(np.ascontiguousarray(image[y0:y1, x0:x1]))
    resize = model.resize(encoded)
    rows, columns, pixels = resize.rows, resize.columns, (y1 - y0) * (x1 - x0)
    if rows is None or columns is None:
        cells, exact, device = pixels, 0, torch.device("cpu")
    else:
        cells, device = int((rows.last.max() + 1) * (columns.last.max() + 1)), rows.last.device
        exact = pixels if pixels <= EXACT_PIXELS else 0
    if device.type == "cuda" and options.max_memory is None:
        bound = memory_bound(None, device)
    on_gpu = device.type != "cpu"
    plan = plan_grid(bound, (height, width), cells, _USUAL_MASKS, working, on_gpu=on_gpu, exact_pixels=exact)
    return encoded, resize, plan


def _decoded(
    model: GridModel, encoded: EncodedImage, points: np.ndarray, least_iou: float, at_once: int
) -> Iterator[tuple[np.ndarray, PointMasks]]:
    """The answers to points (P, 2), some at once: (the points, their masks). Fewer when a GPU's memory is full."""
    start = 0
    while start < len(points):
        part = points[start : start + at_once]
        try:
            answer = model.decode_points(encoded, part, least_iou)
        except torch.cuda.OutOfMemoryError as error:
            if len(part) == 1:
                raise OptionError(
                    "The device's memory is too small for a single point; free some of it, choose a smaller model or "
                    "the device cpu."
                ) from error
            at_once = (len(part) + 1) // 2
        else:
            yield part, answer
            start += len(part)


def _between_crops(masks: list[CropMask], iou_threshold: float) -> list[CropMask]:
    """Without masks that overlap one of a smaller crop, as published: smallest crops first."""
    crops = np.array([mask.crop_box for mask in masks]).reshape(-1, 4)  # (N, 4)
    areas = (crops[:, 2] - crops[:, 0]) * (crops[:, 3] - crops[:, 1])  # (N,)
    scores = np.float32(1) / areas.astype(np.float32)  # (N,)
    boxes = np.array([mask.box for mask in masks]).reshape(-1, 4)  # (N, 4)
    return [masks[i] for i in greedy_nms(boxes, scores, iou_threshold).tolist()]


def _without_small_regions(masks: list[CropMask], options: EverythingOptions) -> list[CropMask]:
    """Masks without small holes and islands, and without those that became duplicates; unchanged ones come first."""
    cleaned, scores = [], []
    for mask in masks:
        runs, size = read_rle(mask.segmentation)
        spans, changed = clean_spans(runs_to_spans(runs), size, options.min_mask_region_area)
        scores.append(0.0 if changed else 1.0)
        if changed:
            x0, y0, x1, y1 = spans_to_box(spans, size[0]) or (0, 0, 1, 1)
            segmentation = write_rle(spans_to_runs(spans, size[0] * size[1]), size)
            mask = replace(mask, segmentation=segmentation, area=spans_area(spans), box=(x0, y0, x1 - 1, y1 - 1))
        cleaned.append(mask)
    boxes = np.array([mask.box for mask in cleaned]).reshape(-1, 4)  # (N, 4)
    threshold = max(options.box_nms_thresh, options.crop_nms_thresh)
    return [cleaned[i] for i in greedy_nms(boxes, np.array(scores, dtype=np.float32), threshold).tolist()]


def _record(mask: CropMask) -> MaskRecord:
    x0, y0, x1, y1 = mask.box
    left, top, right, bottom = mask.crop_box
    return MaskRecord(
        segmentation=mask.segmentation,
        area=mask.area,
        box=(float(x0), float(y0), float(x1 + 1), float(y1 + 1)) if mask.area else (0.0, 0.0, 0.0, 0.0),
        predicted_iou=mask.predicted_iou,
        prompt=Prompt(points=np.array([mask.point])).to_dict(),
        stability_score=mask.stability_score,
        crop_box=(float(left), float(top), float(right), float(bottom)),
    )
