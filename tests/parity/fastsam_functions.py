"""The case of FastSAM's functions after the network: their inputs are stored, so no weights are needed."""

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from harness import Arrays, Case, Report
from PIL import Image
from torch.nn import functional
from weights import input_image

from anysam.describe.crops import pictures_of
from anysam.describe.find_options import TEXT_AREA, FindOptions
from anysam.describe.text_prompts import choose_by_text
from anysam.letterbox import Letterbox, boxes_to_image, letterbox_image, picture_cells
from anysam.models import fast_sam
from anysam.models.yolov8 import (
    Detections,
    Raw,
    Segment,
    YoloConfig,
    anchor_grid,
    detect,
    find_candidates,
    pairwise_iou,
    snap_to_border,
    suppress,
)
from anysam.results import MaskRecord

Stored = dict[str, np.ndarray]


def read_functions(folder: Path) -> tuple[dict[str, Any], Stored]:
    """case.json as it is, which has keys of its own, and the stored arrays."""
    return json.loads((folder / "case.json").read_text()), dict(np.load(folder / "expected.npz"))


def arrays(case: Case, inputs: Path, report: Report) -> Arrays:
    """Our value of every array that is no input, by name."""
    form, stored = read_functions(case.folder)
    yield from decode_arrays(stored)
    yield from letterbox_arrays(form)
    yield from nms_arrays(form, stored)
    yield from box_arrays(form, stored)
    for geometry in form["geometry"]:
        yield from post_arrays(form, stored, geometry)
        yield from mask_arrays(form, stored, geometry)
    for name, facts in form["prompts"].items():
        yield from prompt_arrays(form, stored, name, facts, report)


def decode_arrays(stored: Stored) -> Arrays:
    for prefix in dict.fromkeys(re.findall(r"^(decode/[^/]+)/", "\n".join(stored), re.MULTILINE)):
        levels = [torch.from_numpy(stored[f"{prefix}/head_p{level}"]) for level in (3, 4, 5)]
        reg_max = (levels[0].shape[1] - 1) // 4
        config = YoloConfig(depth=0.33, width=0.125, max_channels=64, reg_max=reg_max)
        head = Segment(config, (8, 8, 8))
        shapes = [(level.shape[2], level.shape[3]) for level in levels]
        centres, strides = anchor_grid(shapes, torch.device("cpu"))  # (2, A), (A,)
        yield f"{prefix}/anchors", centres.numpy()
        yield f"{prefix}/strides", strides.numpy()
        raw = Raw((levels[0], levels[1], levels[2]), torch.zeros(1, 32, len(strides)), None)
        yield f"{prefix}/decoded", head.decode(raw)[:, :5].detach().numpy()


def letterbox_arrays(form: dict[str, Any]) -> Arrays:
    for name, facts in form["letterbox"].items():
        height, width, seed = (int(number) for number in re.findall(r"\d+", facts["input"]))
        letterbox = Letterbox(name=name, long_side=facts["imgsz"], square=not facts["auto"])
        yield name, letterbox_image(input_image(height, width, seed), letterbox)


def rows(found: Detections) -> np.ndarray:
    """(N, 6 + 32): box, score, class, coefficients."""
    return np.column_stack((found.boxes, found.scores, found.classes, found.coefficients))


def nms_arrays(form: dict[str, Any], stored: Stored) -> Arrays:
    for name, facts in form["nms"].items():
        options = facts["options"]
        classes, confidence = options["nc"], options["conf_thres"]
        decoded = stored[facts["input"]][0]  # (4 + classes + 32, A)
        if options.get("multi_label"):
            # An anchor with several labels is that many anchors with one.
            parts = [decoded.copy() for _ in range(classes)]
            for kind, part in enumerate(parts):
                part[4 : 4 + classes][np.arange(classes) != kind] = 0
            decoded = np.stack(parts, axis=2).reshape(len(decoded), -1)  # (4 + classes + 32, A * classes)
        found = find_candidates(decoded, classes, confidence)
        if "classes" in options:
            found = found.take(np.isin(found.classes, options["classes"]))
        limit, across = options.get("max_det", 300), options.get("agnostic", False)
        ours = rows(suppress(found, options["iou_thres"], limit, across))
        yield f"nms/{name}", ours[order_of_ties(ours, stored[f"nms/{name}"])]


def order_of_ties(ours: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """The order of rows in which neighbours with equal scores stand as expected: the published sort is not stable."""
    order = np.arange(len(ours))
    for i in range(min(len(ours), len(expected)) - 1):
        tied = ours[order[i], 4] == ours[order[i + 1], 4]
        if tied and ours[order[i], 5] != expected[i, 5] and ours[order[i + 1], 5] == expected[i, 5]:
            order[[i, i + 1]] = order[[i + 1, i]]
    return order


def box_arrays(form: dict[str, Any], stored: Stored) -> Arrays:
    for geometry, facts in form["geometry"].items():
        sizes = tuple(facts["network_hw"]), tuple(facts["original_hw"])
        yield f"boxes/scale_boxes_{geometry}", boxes_to_image(stored["boxes/input"], *sizes)
    padded_size = tuple(form["geometry"]["wide"]["network_hw"])
    snapped = snap_to_border(stored["boxes/snap_input"], padded_size)
    whole = np.array([[0, 0, padded_size[1], padded_size[0]]], dtype=np.float32)
    overlap = pairwise_iou(snapped, whole)[:, 0]
    yield "boxes/snap_adjusted", snapped
    yield "boxes/snap_iou_full", overlap
    yield "boxes/snap_indices", np.flatnonzero(overlap > fast_sam.WHOLE_IMAGE_IOU)


def post_arrays(form: dict[str, Any], stored: Stored, geometry: str) -> Arrays:
    """From predictions to boxes and masks, as `FastSam.instances` does it."""
    padded_size = tuple(form["geometry"][geometry]["network_hw"])
    original_size = tuple(form["geometry"][geometry]["original_hw"])
    prototypes = torch.from_numpy(stored[f"post/{geometry}/proto"][0])
    for kind in ("none", "one_full", "two_full"):
        decoded = torch.from_numpy(stored[f"post/{geometry}/{kind}/predictions"])
        found = detect(decoded, padded_size, 1, confidence=0.4, nms_iou=0.9, limit=300)
        found = fast_sam.replace_whole_image(found, padded_size)
        boxes = boxes_to_image(found.boxes, padded_size, original_size)
        logits = fast_sam.mask_logits(found.coefficients, prototypes)
        for grid, masks in (
            ("retina", fast_sam.image_masks(logits, boxes, original_size)),
            ("network", fast_sam.letterbox_masks(logits, found.boxes, padded_size)),
        ):
            prefix = f"post/{geometry}/{kind}/{grid}"
            yield f"{prefix}/boxes", np.column_stack((boxes, found.scores, found.classes))
            yield f"{prefix}/masks_packed", np.packbits(masks)
            yield f"{prefix}/mask_areas", fast_sam.mask_areas(masks)


def mask_arrays(form: dict[str, Any], stored: Stored, geometry: str) -> Arrays:
    """The published variants of making masks, those that we have no use for put together from our parts."""
    padded_size = tuple(form["geometry"][geometry]["network_hw"])
    original_size = tuple(form["geometry"][geometry]["original_hw"])
    decoded = stored[f"post/{geometry}/none/predictions"][0]
    found = suppress(find_candidates(decoded, 1, 0.4), 0.9, 300)
    yield f"masks/{geometry}/nms_output", rows(found)
    prototypes = torch.from_numpy(stored[f"post/{geometry}/proto"][0])
    logits = fast_sam.mask_logits(found.coefficients, prototypes)  # (N, h, w)
    grid = (logits.shape[1], logits.shape[2])
    low_res = logits.numpy() * fast_sam.cells_inside(found.boxes, grid, padded_size)
    full = functional.interpolate(logits[None], padded_size, mode="bilinear", align_corners=False)[0].numpy()
    at_letterbox = fast_sam.letterbox_masks(logits, found.boxes, padded_size)
    forms = {
        "process_mask": low_res > 0,
        "process_mask_upsample_true": at_letterbox,
        "process_mask_upsample_fn": (full * fast_sam.cells_inside(found.boxes, padded_size, padded_size)) > 0,
        "process_mask_native": fast_sam.image_masks(
            logits, boxes_to_image(found.boxes, padded_size, original_size), original_size
        ),
    }
    for name, masks in forms.items():
        yield f"masks/{geometry}/{name}_areas", fast_sam.mask_areas(masks)
        yield f"masks/{geometry}/{name}_packed", np.packbits(masks)
    top, left, bottom, right = picture_cells(padded_size, original_size)
    picture = np.ascontiguousarray(at_letterbox[:, top:bottom, left:right].transpose(1, 2, 0), dtype=np.float32)
    yield f"masks/{geometry}/scale_image", cv2.resize(picture, original_size[::-1], interpolation=cv2.INTER_LINEAR)


def prompt_arrays(form: dict[str, Any], stored: Stored, name: str, facts: dict[str, Any], report: Report) -> Arrays:
    """Selection among the stored masks of post/...; in "network" cases the masks have the letterbox's size."""
    _, geometry, kind, grid = name.split("/")
    height, width = form["geometry"][geometry]["original_hw"]
    shape = form["postprocess"][f"post/{geometry}/{kind}/{grid}"]["masks_shape"]
    packed = stored[f"post/{geometry}/{kind}/{grid}/masks_packed"]
    masks = np.unpackbits(packed, count=int(np.prod(shape))).reshape(shape) > 0  # (N, H, W)
    scale = np.array([shape[2] / width, shape[1] / height])
    yield f"{name}/everything_count", np.array([len(masks)])
    areas = fast_sam.mask_areas(masks)
    scores = stored[f"post/{geometry}/{kind}/{grid}/boxes"][:, 4]
    for smallest in (0, 400):
        ids = np.flatnonzero(areas >= smallest)
        yield f"{name}/format_results_{smallest}/ids", ids
        yield f"{name}/format_results_{smallest}/areas", areas[ids]
        yield f"{name}/format_results_{smallest}/scores", scores[ids]
    yield f"{name}/filter_masks_kept_ids", fast_sam.distinct_masks(masks)

    chosen = {}
    for box_name, box in facts["box_prompts"].items():
        fit = fast_sam.iou_with_box(masks, published_place(box["xyxy"], scale))
        chosen[box_name] = int(fit.argmax())
        report.line(
            chosen[box_name] == box["mask_index"] and abs(fit.max() - box["iou"]) < 1e-5,
            "fastsam_functions",
            f"{name}/{box_name}: mask {chosen[box_name]} with IoU {fit.max():.6f}",
        )
        yield from mask_pair(f"{name}/{box_name}", masks[[chosen[box_name]]])
    several = [int(fast_sam.iou_with_box(masks, published_place(b, scale)).argmax()) for b in facts["boxes_prompt"]]
    yield from mask_pair(f"{name}/boxes", masks[list(set(several))])
    for points_name, points in facts["points"].items():
        places = published_place(points["points_xy"], scale)
        united = fast_sam.unite_by_points(masks, places, np.array(points["labels_1fg_0bg"]))
        yield from mask_pair(f"{name}/points_{points_name}", united[None])
    yield from mask_pair(f"{name}/better_quality", np.stack([fast_sam.clean_mask(mask) for mask in masks]))
    yield from text_arrays(form, stored, name, facts["text"], masks, report)


def published_place(place: list, scale: np.ndarray) -> np.ndarray:
    """Coordinates in image pixels -> mask pixels; where they differ the published code cuts off the fractions."""
    array = np.asarray(place, dtype=np.float64)
    return array if (scale == 1).all() else np.trunc((array.reshape(-1, 2) * scale).reshape(array.shape))


def mask_pair(name: str, masks: np.ndarray) -> Arrays:
    yield f"{name}_packed", np.packbits(masks)
    yield f"{name}_areas", fast_sam.mask_areas(masks)


def text_arrays(
    form: dict[str, Any], stored: Stored, name: str, facts: dict[str, Any], masks: np.ndarray, report: Report
) -> Arrays:
    height, width = form["geometry"][name.split("/")[1]]["original_hw"]
    image = input_image(height, width, 31)
    if masks.shape[1:] != image.shape[:2]:
        image = np.array(Image.fromarray(image).resize(masks.shape[:0:-1], Image.Resampling.BICUBIC))
    image = image[..., ::-1]  # published so; a text encoder of ours gets RGB
    # predicted_iou holds a mask's number, by which it is known again.
    records = [MaskRecord.from_mask(mask, predicted_iou=number) for number, mask in enumerate(masks)]
    candidates = [record for record in records if record.area > TEXT_AREA]
    yield f"{name}/text/crop_boxes", np.array([record.box for record in candidates])
    yield f"{name}/text/dropped_ids", np.array([r.predicted_iou for r in records if r not in candidates])
    for i, picture in enumerate(pictures_of(image, candidates[:2], "canvas")):
        yield f"{name}/text/crop_{i}", picture
    for key in (key for key in facts if key != "dropped"):
        scorer = StoredSimilarities(stored[f"{name}/text/{key}_similarities"])
        all_of_them = FindOptions(rule="published", threshold=0, overlap=1)
        hits = choose_by_text(records, image, "any text", scorer, all_of_them)
        by_number = sorted(hits, key=lambda record: record.predicted_iou)
        yield f"{name}/text/{key}_probabilities", np.array([record.label_score for record in by_number])
        chosen, wider = (
            int(choose_by_text(records, image, "any text", scorer, options)[0].predicted_iou)
            for options in (FindOptions(rule="published"), FindOptions(rule="published", wider=True))
        )
        published = facts[key]
        report.line(
            chosen == hits[0].predicted_iou
            and chosen == published["mask_index_chosen_by_utils.tools"]
            and wider == published["mask_index_chosen_by_utils.tools_wider"],
            "fastsam_functions",
            f"{name}/text/{key}: mask {chosen}, wider {wider}",
        )


@dataclass(frozen=True)
class StoredSimilarities:
    """An image-text model of cosines (K,) that are known."""

    cosines: np.ndarray

    def similarities(self, pictures: Iterable[np.ndarray], texts: Sequence[str]) -> np.ndarray:
        assert sum(1 for _ in pictures) == len(self.cosines)
        return 100 * self.cosines.astype(np.float32)[:, None]  # (K, 1)
