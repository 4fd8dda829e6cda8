"""Protocol "instances": mask AP on COCO or LVIS, with the boxes of a detector as prompts.

SAM (arXiv 2304.02643), section 7.4 and appendix D.4: each box that ViTDet-H found becomes a mask, which keeps the
detector's class and score. The paper asks a second time with the box and the surest mask's logits; `refine` does.
EdgeSAM's numbers are without it (its README says so), EfficientViT-SAM's are of the surest of three masks
(`multimask`; eval_efficientvit_sam_model.py at 8d60c1c). Boxes come from a JSON file in COCO's form of results, such as
those that EfficientViT-SAM's README links to (mit-han-lab/efficientvit-sam, source_json_file).

COCO counts the best 100 detections of a class in an image, LVIS the best 300 of an image whatever their class; here
the limit is on the image in both, which is what files of detectors hold anyway. What counts as right is up to
`average_precision`.
"""

import hashlib
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from anysam.datasets import ImageEntry
from anysam.errors import OptionError
from anysam.evaluate.average_precision import has_federated_labels, mean_of, measure_precision, scores
from anysam.evaluate.options import InstanceOptions
from anysam.evaluate.protocols import DataChoice, Figure, Protocol, Row, Table
from anysam.evaluate.truth import CocoImages, coco_images, make_coco, read_document, truth_path
from anysam.masks import encode_rle
from anysam.predictor import Model
from anysam.prompts import Prompt
from anysam.results import Prediction

_COCO_LIMIT, _LVIS_LIMIT = 100, 300
_AT_ONCE = 32  # boxes whose masks, of the image's size, are held at a time


@dataclass(frozen=True)
class Detection:
    """A detected object. box: x0 y0 x1 y1."""

    category: int
    score: float
    box: tuple[float, float, float, float]


@dataclass(frozen=True, eq=False)
class Detected:
    """A model, and what a detector found, by image_id, best first."""

    model: Model
    detections: Mapping[int, Sequence[Detection]]


def check_instances(options: InstanceOptions, data: DataChoice) -> None:
    """Raises OptionError unless there are detections, and annotations to compare with."""
    if not options.detections:
        raise OptionError("The protocol instances needs the boxes of a detector: --detections FILE.json.")
    if not Path(options.detections).is_file():
        raise OptionError(f"--detections {options.detections} is not a file.")
    _truth(options, data)


def files_digest(options: InstanceOptions, data: DataChoice) -> dict[str, str]:
    """SHA-256 of the two files."""
    paths = {"detections": Path(options.detections), "annotations": _truth(options, data)}
    digests = {}
    for name, path in paths.items():
        with path.open("rb") as file:
            digests[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return digests


def _truth(options: InstanceOptions, data: DataChoice) -> Path:
    path = truth_path(options.annotations, data)
    if path is None or not path.is_file():
        raise OptionError(
            f"The protocol instances compares with a COCO or LVIS file, but --data {data.data} is none; "
            "give it as --annotations."
        )
    return path


def read_images(options: InstanceOptions, data: DataChoice) -> CocoImages:
    """All images of the annotation file, those without annotations too: what is found there is wrong."""
    return coco_images(_truth(options, data), data)


def read_detections(path: Path, least_score: float = 0.0) -> dict[int, list[Detection]]:
    """Detections by image_id, best first, of a JSON list in COCO's form of results. Raises OptionError."""
    found: dict[int, list[Detection]] = defaultdict(list)
    try:
        for each in json.loads(path.read_bytes()):
            x, y, width, height = (float(value) for value in each["bbox"])
            if float(each["score"]) >= least_score:
                box = (x, y, x + width, y + height)
                found[int(each["image_id"])].append(Detection(int(each["category_id"]), float(each["score"]), box))
    except OSError as error:
        raise OptionError(f"{path} cannot be read: {error.strerror}.") from error
    except (ValueError, TypeError, KeyError) as error:
        raise OptionError(
            f"{path} is no file of detections: it must be a list of image_id, category_id, bbox (x y w h) and score."
        ) from error
    return {image: sorted(own, key=lambda each: -each.score) for image, own in found.items()}


def prepare_instances(model: Model, options: InstanceOptions) -> Detected:
    """The model with the detections."""
    return Detected(model, read_detections(Path(options.detections), options.least_score))


def measure_instances(detected: Detected, entry: ImageEntry, options: InstanceOptions) -> dict[str, Any]:
    """The masks of an image's boxes: {"image_id", "results": [[category_id, score, counts], ...]}."""
    image_id = entry.ids[0]
    # The larger limit: which rules count is known where the annotations are.
    found = list(detected.detections.get(image_id, ()))[: options.max_detections or _LVIS_LIMIT]
    results: list[list[Any]] = []
    if found:
        encoded = detected.model.encode(entry.read_image())
        for start in range(0, len(found), _AT_ONCE):
            some = found[start : start + _AT_ONCE]
            prompts = [Prompt(box=inside(each.box, entry.size)) for each in some]
            predictions = detected.model.predict(encoded, prompts, multimask=options.multimask)
            if options.refine:
                prompts = [
                    Prompt(box=prompt.box, low_res_logits=one.low_res_logits[one.best])
                    for prompt, one in zip(prompts, predictions, strict=True)
                ]
                predictions = detected.model.predict(encoded, prompts, multimask=False)
            results += [[e.category, e.score, _counts(p)] for e, p in zip(some, predictions, strict=True)]
    return {"image_id": image_id, "size": list(entry.size), "results": results}


def _counts(prediction: Prediction) -> str:
    counts: str = encode_rle(prediction.masks[prediction.best])["counts"]
    return counts


def inside(box: Sequence[float], size: tuple[int, int]) -> np.ndarray:
    """A box xyxy cut off at the edges of an image (H, W), at least a pixel wide and high: (4,) float64."""
    limits = np.array([size[1], size[0]], np.float64)
    low = np.clip(np.asarray(box[:2], np.float64), 0, limits - 1)
    return np.concatenate([low, np.clip(np.asarray(box[2:], np.float64), low + 1, limits)])


def summarise_instances(rows: Sequence[Row], options: InstanceOptions, data: DataChoice) -> Table:
    """AP by size, and on LVIS by frequency."""
    document = read_document(_truth(options, data))
    federated = has_federated_labels(document) if options.rules == "auto" else options.rules == "lvis"
    limit = options.max_detections or (_LVIS_LIMIT if federated else _COCO_LIMIT)
    truth = make_coco(document)
    results = [
        {
            "image_id": row.values["image_id"],
            "category_id": category,
            "score": score,
            "segmentation": {"size": row.values["size"], "counts": counts},
        }
        for row in rows
        for category, score, counts in row.values["results"][:limit]
    ]
    images = [row.values["image_id"] for row in rows]
    found = measure_precision(truth, results, images, lvis=federated, max_detections=limit)
    values = scores(found, truth)
    line = {"images": len(rows), "detections": len(results), **values}
    rules = "LVIS" if federated else "COCO"
    note = f"By {rules}'s rules, at most {limit} detections of an image."
    name = rows[0].dataset if rows else "none"
    columns = ("images", "detections", *values)
    return Table(columns, ((name, line),), "AP", _figures(found.precision, found.recalls, values), (note,))


def _figures(precision: np.ndarray, recalls: np.ndarray, values: Mapping[str, float | None]) -> tuple[Figure, ...]:
    sizes = [(size, values[f"AP{size[0]}"]) for size in ("small", "medium", "large")]
    known = [(size, value) for size, value in sizes if value is not None]
    figures = []
    if known:
        x, y = zip(*known, strict=True)
        figures.append(Figure("sizes", "Mask AP by size of the object", "bars", "", "AP", x, y))
    curve = [mean_of(precision[0, i, :, 0]) for i in range(len(recalls))]
    if any(value is not None for value in curve):
        y = tuple(value or 0.0 for value in curve)
        title = "Precision and recall at IoU 0.5, mean over classes"
        figures.append(Figure("precision", title, "lines", "recall", "precision", tuple(recalls.tolist()), y))
    return tuple(figures)


INSTANCES = Protocol(
    "instances",
    measure_instances,
    summarise_instances,
    prepare_instances,
    check_instances,
    files_digest,
    read_images,
)
