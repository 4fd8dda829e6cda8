"""COCO's and LVIS's mask AP by pycocotools, image by image and class by class where there is something to compare.

`COCOeval.evaluate` visits every class in every image, which is 95 million visits for LVIS; most of them find nothing.
Here only the others are visited, and pycocotools' own matching and accumulation do the rest, so that COCO's numbers are
its numbers. LVIS's rules are those of its published evaluation (lvis-dataset/lvis-api, lvis/eval.py at 04e89fd):
- detections of a class are only counted in images for which somebody said that it is there or that it is not
  (neg_category_ids);
- where not all objects of a class are annotated (not_exhaustive_category_ids), detections without a match are ignored.
"""

import copy
import io
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

_AREAS = ("all", "small", "medium", "large")  # COCOeval's areaRngLbl


@dataclass(frozen=True, eq=False)
class Precision:
    """precision: (T, R, K, A) float64, at IoU .5:.05:.95, recalls 0:.01:1, classes with something to find, sizes; -1
    where a class has nothing of a size. recalls: (R,). categories: (K,) ids.
    """

    precision: np.ndarray
    recalls: np.ndarray
    categories: tuple[int, ...]


def measure_precision(
    truth: COCO,
    results: Sequence[Mapping[str, Any]],
    images: Sequence[int],
    *,
    lvis: bool,
    max_detections: int,
    kind: str = "segm",
) -> Precision:
    """Precision of results in COCO's form (image_id, category_id, score, segmentation as RLE) on some images.

    max_detections: of each class in an image, the best. kind: "segm", or "bbox" for results with `bbox` (x y w h).
    Images without results count: what is there was missed.
    """
    wanted = set(images)
    counted, unexhausted = (_counted(truth, wanted), _unexhausted(truth, wanted)) if lvis else (None, {})
    kept = [
        {**each, "id": number}
        for number, each in enumerate(results, start=1)
        if each["image_id"] in wanted and (counted is None or each["category_id"] in counted[each["image_id"]])
    ]
    with redirect_stdout(io.StringIO()):
        evaluation = COCOeval(truth, truth.loadRes(kept) if kept else _no_results(truth), kind)
        params = evaluation.params
        params.imgIds, params.maxDets = sorted(wanted), [max_detections]
        evaluation._prepare()
        places: dict[int, set[int]] = defaultdict(set)  # images in which there is something of a class
        for found in (evaluation._gts, evaluation._dts):
            for (image, category), members in list(found.items()):
                if members:
                    places[category].add(image)
        tables = []
        categories = tuple(category for category in sorted(truth.getCatIds()) if category in places)
        for category in categories:
            own = sorted(places[category])
            tables.append(_one_class(evaluation, category, own, unexhausted))
    shape = (len(params.iouThrs), len(params.recThrs), 0, len(params.areaRng))
    precision = np.concatenate(tables, axis=2) if tables else np.zeros(shape)  # (T, R, K, A)
    return Precision(precision, params.recThrs, categories)


def _one_class(
    evaluation: COCOeval, category: int, images: Sequence[int], unexhausted: Mapping[int, set[int]]
) -> np.ndarray:
    """Precision (T, R, 1, A) of one class from the images in which there is something of it."""
    params = copy.deepcopy(evaluation.params)
    params.imgIds, params.catIds = list(images), [category]
    largest = params.maxDets[-1]
    for image in images:
        evaluation.ious[image, category] = evaluation.computeIoU(image, category)
    compared = []
    for area in params.areaRng:
        for image in images:
            one = evaluation.evaluateImg(image, category, area, largest)
            if one is not None and category in unexhausted.get(image, ()):
                one["dtIgnore"] = np.logical_or(one["dtIgnore"], one["dtMatches"] == 0)
            compared.append(one)
    accumulation = COCOeval(iouType=evaluation.params.iouType)
    accumulation.params, accumulation._paramsEval, accumulation.evalImgs = params, params, compared
    accumulation.accumulate()
    precision: np.ndarray = accumulation.eval["precision"][..., 0]  # (T, R, 1, A)
    return precision


def scores(found: Precision, truth: COCO) -> dict[str, float | None]:
    """AP, AP50, AP75, APs, APm, APl, and where the classes have frequencies APr, APc, APf; None for nothing to find."""
    values = found.precision
    result = {
        "AP": mean_of(values[..., 0]),
        "AP50": mean_of(values[0, :, :, 0]),
        "AP75": mean_of(values[5, :, :, 0]),
        **{f"AP{size[0]}": mean_of(values[..., i]) for i, size in enumerate(_AREAS) if size != "all"},
    }
    kinds = [truth.cats[category].get("frequency") for category in found.categories]
    if any(kind is not None for kind in kinds):
        for kind in ("r", "c", "f"):
            result[f"AP{kind}"] = mean_of(values[:, :, [each == kind for each in kinds], 0])
    return result


def mean_of(values: np.ndarray) -> float | None:
    """The mean of what is not -1, as COCOeval.summarize has it; None where that is nothing."""
    known = values[values > -1]
    return float(np.mean(known)) if len(known) else None


def has_federated_labels(document: Mapping[str, Any]) -> bool:
    """Whether a document's images say which classes were looked for: LVIS's rules are for it."""
    return any("neg_category_ids" in image for image in document["images"])


def _counted(truth: COCO, images: set[int]) -> dict[int, set[int]]:
    """Classes whose detections count, by image."""
    counted = {image: set(truth.imgs[image].get("neg_category_ids", ())) for image in images}
    for annotation in truth.anns.values():
        if annotation["image_id"] in images:
            counted[annotation["image_id"]].add(annotation["category_id"])
    return counted


def _unexhausted(truth: COCO, images: set[int]) -> dict[int, set[int]]:
    return {image: set(truth.imgs[image].get("not_exhaustive_category_ids", ())) for image in images}


def _no_results(truth: COCO) -> COCO:
    """pycocotools cannot load an empty list."""
    empty = COCO()
    empty.dataset = {"images": truth.dataset["images"], "annotations": [], "categories": truth.dataset["categories"]}
    empty.createIndex()
    return empty
