"""The cases of everything mode: its functions one by one, and whole runs with a stand-in for the model.

All is compared value by value: integers and masks, but also float32 and float64 numbers are expected to be equal.
"""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import torch
from harness import Case, Report
from PIL import Image

from anysam import rle
from anysam.automatic import grids
from anysam.automatic.filters import greedy_nms, inclusive_box, near_crop_edge, stability_score
from anysam.automatic.grid_mode import grid_records
from anysam.automatic.interface import PointMasks, Resize
from anysam.automatic.options import EverythingOptions
from anysam.automatic.span_regions import without_holes, without_islands
from anysam.compat.segment_anything import SamAutomaticMaskGenerator
from anysam.compat.segment_anything.transforms import ResizeLongestSide
from anysam.masks import decode_rle, encode_rle
from anysam.preprocess import Preprocess, prepare_image, prompt_tokens
from anysam.prompts import Prompt, resolve_prompt
from anysam.results import MaskRecord

Values = Iterator[tuple[str, Any, Any]]  # name, ours, expected


def check(case: Case, report: Report) -> None:
    """Compare everything that a case holds."""
    form = json.loads((case.folder / "case.json").read_text())
    values = run_values(case.folder, form) if "configurations" in form else function_values(case.folder)
    for name, ours, expected in values:
        report.compared += 1
        problem = difference(ours, expected)
        report.line(problem is None, case.folder.name, f"{name}: {problem or 'equal'}")


def difference(ours: Any, expected: Any) -> str | None:
    """What is not equal, or None; NaN equals NaN, and 12 equals 12.0."""
    try:
        ours, expected = np.asarray(ours), np.asarray(expected)
    except ValueError:
        return None if ours == expected else f"{ours} is not {expected}"
    if ours.shape != expected.shape:
        return f"shape {ours.shape}, expected {expected.shape}"
    if ours.dtype.kind in "fc" or expected.dtype.kind in "fc":
        equal = (ours == expected) | (np.isnan(ours) & np.isnan(expected))
    else:
        equal = ours == expected
    wrong = np.size(equal) - np.count_nonzero(equal)
    if not wrong:
        return None
    at = tuple(np.argwhere(~equal)[0]) if ours.shape else ()
    return f"{wrong} of {np.size(equal)} values differ; first {ours[at]}, expected {expected[at]}"


class Stored(dict):
    """The arrays of a case, which remembers those that were asked for."""

    def __init__(self, path: Path) -> None:
        super().__init__(np.load(path))
        self.used: set[str] = set()

    def __getitem__(self, name: str) -> np.ndarray:
        self.used.add(name)
        return super().__getitem__(name)


def function_values(folder: Path) -> Values:
    """Each function on the stored arguments. What is stored but not asked for is a difference too."""
    form, stored = json.loads((folder / "data.json").read_text()), Stored(folder / "data.npz")
    for name, facts in form.items():
        yield from FUNCTIONS[name](facts, stored)
    yield from box_values(stored)
    yield from grid_values(stored)
    yield "arrays that were not compared", sorted(set(stored) - stored.used), []


def stability_values(facts: list[dict[str, Any]], stored: Stored) -> Values:
    for each in facts:
        ours = stability_score(stored["stability/logits"], each["mask_threshold"], each["threshold_offset"])
        yield each["output"], ours, stored[each["output"]]


def grid_values(stored: Stored) -> Values:
    for name in [name for name in stored if name.startswith("point_grid/")]:
        yield name, grids.point_grid(int(name.split("/")[1])), stored[name]


def layer_values(facts: list[dict[str, Any]], stored: Stored) -> Values:
    for each in facts:
        layers = grids.layer_grids(each["n_per_side"], each["n_layers"], each["scale_per_layer"])
        yield f"layer_grids {each['n_per_side']} sizes", [len(layer) for layer in layers], each["sizes"]
        for name, layer in zip(each["outputs"], layers, strict=True):
            yield name, layer, stored[name]


def crop_values(facts: list[dict[str, Any]], stored: Stored) -> Values:
    for each in facts:
        size, layers, overlap = tuple(each["im_size_hw"]), each["n_layers"], each["overlap_ratio"]
        boxes, owners = grids.crop_boxes(size, layers, overlap)
        yield f"crop_boxes {size} {layers} {overlap:.3f}", boxes, each["boxes_xyxy"]
        yield f"crop_boxes {size} {layers} {overlap:.3f} layers", owners, each["layer_idxs"]


def edge_values(facts: list[dict[str, Any]], stored: Stored) -> Values:
    for each in facts:
        x0, y0, width, height = each["orig_box"]
        assert x0 == y0 == 0
        ours = near_crop_edge(stored[each["boxes"]], tuple(each["crop_box"]), (height, width), each["atol"])
        yield each["result"], ours, stored[each["result"]]


def box_values(stored: Stored) -> Values:
    boxes = np.array([inclusive_box(mask) for mask in stored["masks/bool"]])
    yield "mask_to_box/khw", boxes, stored["mask_to_box/khw"]
    yield "mask_to_box/2x5", boxes.reshape(stored["mask_to_box/2x5"].shape), stored["mask_to_box/2x5"]
    yield "mask_to_box/single", boxes[0], stored["mask_to_box/single"]
    for kind in ("int", "float"):
        annotations = [annotation(box) for box in stored[f"xywh/{kind}_in"].tolist()]
        yield f"xywh/{kind}_out", [form["crop_box"] for form in annotations], stored[f"xywh/{kind}_out"]


def annotation(box: list[float]) -> dict[str, Any]:
    """A record with a crop box xyxy in the published form, where it is x y width height."""
    record = MaskRecord({}, 1, (0, 0, 1, 1), 1.0, prompt={"points": []}, crop_box=tuple(box))
    return SamAutomaticMaskGenerator._annotation(SimpleNamespace(_segmentation=lambda record: {}), record)


def rle_values(facts: list[dict[str, Any]], stored: Stored) -> Values:
    for i, each in enumerate(facts):
        mask, runs = stored["masks/bool"][i], np.array(each["uncompressed"]["counts"])
        yield f"rle/{i} runs", rle.mask_to_runs(mask), runs
        yield f"rle/{i} mask of runs", rle.runs_to_mask(runs, mask.shape), mask
        yield f"rle/{i} mask of uncompressed", decode_rle(each["uncompressed"]), mask
        yield f"rle/{i} area", rle.area(each["uncompressed"]), each["area"]
        for name, ours in (("of mask", encode_rle(mask)), ("of runs", rle.write_rle(runs, mask.shape))):
            yield f"rle/{i} counts {name}", ours["counts"], each["coco"]["counts"]
            yield f"rle/{i} size {name}", ours["size"], each["coco"]["size"]


def small_region_values(facts: list[dict[str, Any]], stored: Stored) -> Values:
    for each in facts:
        mask = stored["small_regions/masks"][each["mask"]]
        clean = {"holes": without_holes, "islands": without_islands}[each["mode"]]
        spans, changed = clean(rle.runs_to_spans(rle.mask_to_runs(mask)), mask.shape, each["area_thresh"])
        ours = rle.runs_to_mask(rle.spans_to_runs(spans, mask.size), mask.shape)
        yield f"{each['output_packbits']} changed", changed, each["changed"]
        yield f"{each['output_packbits']} area", np.count_nonzero(ours), each["area"]
        yield each["output_packbits"], np.packbits(ours), stored[each["output_packbits"]]


def uncrop_values(facts: dict[str, Any], stored: Stored) -> Values:
    box, size = facts["crop_box"], (facts["orig_h"], facts["orig_w"])
    placed = [rle.place(encode_rle(mask), (box[0], box[1]), size) for mask in stored["uncrop/masks_in"]]
    yield "uncrop/masks_out", [decode_rle(mask) for mask in placed], stored["uncrop/masks_out"]
    for kind in ("boxes", "points"):
        yield f"uncrop/{kind}_out", grids.in_image(stored[f"uncrop/{kind}_in"], box), stored[f"uncrop/{kind}_out"]


def nms_values(facts: list[dict[str, Any]], stored: Stored) -> Values:
    for each in facts:
        boxes, scores, kinds = (stored[f"nms/{each['set']}/{name}"] for name in ("boxes", "scores", "categories"))
        kept = []
        for kind in np.unique(kinds):
            members = np.flatnonzero(kinds == kind)
            kept += members[greedy_nms(boxes[members], scores[members], each["iou_threshold"])].tolist()
        kept.sort(key=lambda i: (-scores[i], i))
        yield each["output"], kept, stored[each["output"]]


def resize_values(facts: dict[str, Any], stored: Stored) -> Values:
    for each in facts["shapes"]:
        size, target = tuple(each["old_hw"]), each["target"]
        name = f"resize {size} to {target}"
        yield name, ResizeLongestSide.get_preprocess_shape(*size, target), each["new_hw"]
        # A network wants at least one pixel.
        yield f"{name}, frame", frame(target).input_size(size), [max(1, side) for side in each["new_hw"]]
    for each in facts["coords"]:
        size, prefix = tuple(each["original_hw"]), each["arrays"]
        resize = ResizeLongestSide(each["target"])
        points, expected = stored[f"{prefix}/points_in"], stored[f"{prefix}/points_out"]
        yield f"{prefix}/points_out", resize.apply_coords(points, size), expected
        tensor = resize.apply_coords_torch(torch.from_numpy(points), size)
        yield f"{prefix}/points_out_torch", tensor.numpy(), stored[f"{prefix}/points_out_torch"]
        yield (
            f"{prefix}/boxes_out",
            resize.apply_boxes(stored[f"{prefix}/boxes_in"], size),
            stored[f"{prefix}/boxes_out"],
        )
        inside = ((points >= 0) & (points <= size[::-1])).all(axis=1)
        if inside.any():
            prompt = resolve_prompt(Prompt(points=points[inside]), size, None)
            ours = prompt_tokens(prompt, frame(each["target"]), size)[0][:-1].numpy()
            yield f"{prefix}/points_out, tokens", ours, expected[inside].astype(np.float32)
    for each in facts["images"]:
        image = stored[f"{each['arrays']}/in"]
        expected = stored[f"{each['arrays']}/out"]
        yield f"{each['arrays']}/out", ResizeLongestSide(each["target"]).apply_image(image), expected
        pixels = prepare_image(image, frame(each["target"]))[0][0].permute(1, 2, 0).numpy()
        yield f"{each['arrays']}/out, frame", pixels, expected
        floats = torch.from_numpy(image).permute(2, 0, 1)[None].float()
        ours = ResizeLongestSide(each["target"]).apply_image_torch(floats).numpy()
        expected = stored[f"{each['arrays']}/out_torch"]
        # Antialiased sums have another order on another processor.
        yield f"{each['arrays']}/out_torch", np.abs(ours - expected).max() < 1e-3, True


def frame(long_side: int) -> Preprocess:
    """An input frame without padding and normalising."""
    return Preprocess(long_side, pad_to=None, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), name="plain")


FUNCTIONS: dict[str, Callable[..., Values]] = {
    "stability": stability_values,
    "layer_grids": layer_values,
    "crop_boxes": crop_values,
    "near_crop_edge": edge_values,
    "rle": rle_values,
    "small_regions": small_region_values,
    "uncrop": uncrop_values,
    "nms": nms_values,
    "resize_longest_side": resize_values,
}


def run_values(folder: Path, form: dict[str, Any]) -> Values:
    """Everything mode with each configuration: its records, field by field."""
    image = np.array(Image.open(folder / "labels.png").convert("RGB"))
    expected = json.loads((folder / "records.json").read_text())
    yield "configurations", sorted(form["configurations"]), sorted(expected)
    model = LabelModel(form)
    for name, facts in form["configurations"].items():
        arguments = {**form["defaults"], **facts["arguments"]}
        points = arguments.get("point_grids")
        if points is not None:
            points = json.loads(points) if isinstance(points, str) else points
            # One layer is stored as it is, several as a list of them.
            arguments["point_grids"] = [points] if np.ndim(points[0]) == 1 else points
        records = grid_records(model, image, EverythingOptions(**arguments), None)
        form_of = [published_form(record) for record in records]
        yield f"{name} count", len(records), len(expected[name])
        for field in sorted({key for record in expected[name] for key in record}):
            ours = [record[field] for record in form_of]
            theirs = [record[field] for record in expected[name]]
            yield f"{name} {field}", *((ours, theirs) if field in NUMBERS else (ours == theirs, True))


NUMBERS = ("bbox", "area", "predicted_iou", "point_coords", "stability_score", "crop_box")


def published_form(record: MaskRecord) -> dict[str, Any]:
    uncompressed = SimpleNamespace(output_mode="uncompressed_rle")
    segmentation = SamAutomaticMaskGenerator._segmentation(uncompressed, record)
    form = SamAutomaticMaskGenerator._annotation(SimpleNamespace(_segmentation=lambda record: segmentation), record)
    return {**form, "segmentation_coco_rle": record.segmentation}


@dataclass(frozen=True)
class Rules:
    """The numbers of the stand-in model, which its case states in formulas."""

    nudge: float
    shifts: tuple[float, ...]
    slopes: tuple[float, ...]
    limits: tuple[float, float]
    iou: tuple[float, float, int, int, int]

    @classmethod
    def read(cls, facts: dict[str, Any]) -> "Rules":
        assert facts["mask_threshold"] == 0.0
        logits = facts["logits"]
        shifts, slopes = (found(rf"{name} = \(([^)]*)\)", logits)[0].split(",") for name in ("shift", "slope s"))
        assert int(found(r"\[r mod (\d+)\]", logits)[0]) == len(slopes)
        start, step, by_region, by_kind, period = found(
            r"\(([\d.]+) \+ ([\d.]+)\*\(\((\d+)\*r \+ (\d+)\*k\) mod (\d+)\)\)", facts["iou_predictions"]
        )
        low, high = found(r"clip\(s \* \(sd \+ shift_k\), (-?[\d.]+), (-?[\d.]+)\)", logits)
        return cls(
            nudge=float(found(r"floor\(x \+ ([\d.]+)\)", facts["point"])[0]),
            shifts=tuple(float(shift) for shift in shifts),
            slopes=tuple(float(slope) for slope in slopes),
            limits=(float(low), float(high)),
            iou=(float(start), float(step), int(by_region), int(by_kind), int(period)),
        )


def found(pattern: str, text: str) -> tuple[str, ...]:
    match = re.search(pattern, text)
    assert match is not None, f"{pattern} is not in {text!r}"
    return match.groups()


@dataclass(frozen=True, eq=False)
class Labels:
    """A crop as the stand-in model sees it: regions (h, w) by their numbers."""

    regions: np.ndarray
    rules: Rules

    def logits(self, region: int, kind: int) -> np.ndarray:
        """One mask (h, w) float32 of a region, grown or shrunk."""
        slope = self.rules.slopes[region % len(self.rules.slopes)]
        return np.clip(slope * (self.distance(region) + self.rules.shifts[kind]), *self.rules.limits).astype(np.float32)

    @lru_cache(maxsize=64)  # noqa: B019
    def distance(self, region: int) -> np.ndarray:  # a crop lives shortly, and so does its cache
        return signed_distance(self.regions == region)


class LabelModel:
    """The stand-in of the case: a point selects a region, the masks are the region eroded, as it is, and dilated."""

    def __init__(self, form: dict[str, Any]) -> None:
        self.rules = Rules.read(form["fake_model"])

    def encode(self, image: np.ndarray) -> Labels:
        return Labels(image[..., 0].astype(np.int64), self.rules)

    def resize(self, encoded: Labels) -> Resize:
        return Resize(encoded.regions.shape, lambda logits: logits, None, None, True)

    def decode_points(self, encoded: Labels, points: np.ndarray, least_iou: float) -> PointMasks:
        height, width = encoded.regions.shape
        nudged = np.floor(points + self.rules.nudge).astype(np.int64)
        columns, rows = np.clip(nudged[:, 0], 0, width - 1), np.clip(nudged[:, 1], 0, height - 1)
        chosen = encoded.regions[rows, columns]  # (P,)
        start, step, by_region, by_kind, period = self.rules.iou
        kinds = np.arange(len(self.rules.shifts))
        level = start + step * ((by_region * chosen[:, None] + by_kind * kinds) % period)  # (P, C)
        ious = torch.from_numpy(level.astype(np.float32))
        kept = (ious > least_iou).flatten().nonzero()[:, 0]
        logits = [encoded.logits(int(chosen[i // len(kinds)]), int(i % len(kinds))) for i in kept.tolist()]
        stacked = np.stack(logits) if logits else np.zeros((0, height, width), dtype=np.float32)
        return PointMasks(torch.from_numpy(stacked), kept, ious)


def signed_distance(inside: np.ndarray) -> np.ndarray:
    """Chessboard distance to the nearest pixel of the other kind, less a half; negative outside."""
    if inside.all():
        return np.full(inside.shape, 1000.0)
    to_outside = cv2.distanceTransform(inside.astype(np.uint8), cv2.DIST_C, 3).astype(np.float64)
    to_inside = cv2.distanceTransform((~inside).astype(np.uint8), cv2.DIST_C, 3).astype(np.float64)
    return np.where(inside, to_outside - 0.5, 0.5 - to_inside)
