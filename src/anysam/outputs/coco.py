"""COCO instances: one JSON document for one image or for many, with run lengths or with polygons."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from anysam import rle
from anysam.errors import OptionError
from anysam.outputs.files import write_json
from anysam.outputs.formats import ImageResult, Loss
from anysam.outputs.polygons import fill_rings, joined_ring, record_outlines
from anysam.outputs.reading import as_list, as_number, as_size, make_record
from anysam.results import MaskRecord


def write_coco_json(path: str | Path, results: Sequence[ImageResult], polygons: bool = False) -> list[Loss]:
    """Write a COCO instances file: bbox x y width height, score; one category for each label.

    polygons: False writes run lengths, True one polygon for each part of a mask; COCO knows no holes, so that they are
    joined to their outline. Masks without a label are of the category "object".
    """
    names = sorted({record.label or "object" for result in results for record in result.records} or {"object"})
    categories = {name: number for number, name in enumerate(names, start=1)}
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    empty = 0
    for image_id, result in enumerate(results, start=1):
        height, width = result.size
        images.append({"id": image_id, "file_name": result.file_name, "height": height, "width": width})
        for record in result.records:
            empty += polygons and not record.area
            annotation = _annotation(record, categories, polygons)
            annotations.append({"id": len(annotations) + 1, "image_id": image_id} | annotation)
    document = {
        "info": {"description": "Masks predicted by anysam"},
        "images": images,
        "annotations": annotations,
        "categories": [{"id": number, "name": name} for name, number in categories.items()],
    }
    write_json(path, document)
    return [Loss("coco-polygons", "masks without a pixel", empty)] if empty else []


def _annotation(record: MaskRecord, categories: Mapping[str, int], polygons: bool) -> dict[str, Any]:
    x0, y0, x1, y1 = record.box
    segmentation: Any = record.segmentation
    if polygons:
        outlines = record_outlines(record)
        segmentation = [joined_ring([each.outer, *each.holes]).reshape(-1).tolist() for each in outlines]
    return {
        "category_id": categories[record.label or "object"],
        "segmentation": segmentation,
        "area": record.area,
        "bbox": [x0, y0, x1 - x0, y1 - y0],
        "iscrowd": 0,
        "score": record.predicted_iou,
    }


def coco_to_results(document: Mapping[str, Any], name: str) -> list[ImageResult]:
    """A COCO instances document -> its images, in their order. name: of the file, for errors. Raises OptionError."""
    labels = {row.get("id"): str(row.get("name", "object")) for row in as_list(document.get("categories", []), name)}
    sizes: dict[object, tuple[int, int]] = {}
    files: dict[object, str] = {}
    found: dict[object, list[MaskRecord]] = {}
    for image in as_list(document.get("images"), f"{name}: images"):
        key = image.get("id")
        if not isinstance(key, (int, str)) or key in sizes:
            raise OptionError(f"{name}: an image needs an id of its own, got {key!r}.")
        sizes[key] = as_size((image.get("height"), image.get("width")), f"{name}: image {key}")
        files[key], found[key] = str(image.get("file_name", key)), []
    for number, row in enumerate(as_list(document.get("annotations"), f"{name}: annotations"), start=1):
        key, where = row.get("image_id"), f"{name}: annotation {number}"
        if not isinstance(key, (int, str)) or key not in sizes:
            raise OptionError(f"{where} is for image {key!r}, which the file does not have.")
        label = labels.get(row.get("category_id")) if isinstance(row.get("category_id"), (int, str)) else None
        segmentation = segmentation_to_rle(row.get("segmentation"), sizes[key], where)
        score = as_number(row.get("score", 1.0), f"{where}: score")
        found[key].append(make_record(segmentation, score, label=None if label == "object" else label))
    return [ImageResult(files[key], sizes[key], tuple(found[key])) for key in sizes]


def segmentation_to_rle(segmentation: object, size: tuple[int, int], where: str) -> dict[str, Any]:
    """COCO's segmentation, run lengths or polygons, as run lengths of an image (H, W). Raises OptionError."""
    if isinstance(segmentation, Mapping):
        try:
            runs, own = rle.read_rle(segmentation)
        except OptionError as error:
            raise OptionError(f"{where}: {error}") from error
        if own != size:
            raise OptionError(f"{where}: the mask is {own} and its image {size} (H, W); the file is damaged.")
        return rle.write_rle(runs, own)
    masks = []
    for polygon in as_list(segmentation, f"{where}: segmentation", list):
        numbers = np.array([as_number(value, where) for value in polygon])
        if len(numbers) % 2 or len(numbers) < 6:
            raise OptionError(f"{where}: a polygon is x y x y ... of at least 3 points, got {len(numbers)} numbers.")
        masks.append(fill_rings([numbers.reshape(-1, 2)], size))
    return rle.union(masks) if masks else fill_rings([], size)
