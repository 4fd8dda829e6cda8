"""COCO instances: one JSON document for one image or for many, with run lengths or with polygons."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from anysam import rle
from anysam.errors import OptionError
from anysam.outputs.files import write_json
from anysam.outputs.formats import ImageResult, Loss
from anysam.outputs.polygons import fill_parts, joined_ring, record_outlines
from anysam.outputs.reading import as_file_name, as_list, as_number, as_size, as_text, make_record
from anysam.outputs.words import DEFAULT_NAME, class_names, hidden_words, label_of, said_of, with_said
from anysam.results import MaskRecord


def write_coco_json(
    path: str | Path,
    results: Sequence[ImageResult],
    polygons: bool = False,
    names: Sequence[str] | None = None,
) -> list[Loss]:
    """Write a COCO instances file: bbox x y width height, score; one category for each label, with ids from 1.

    polygons: False writes run lengths, True one polygon for each part of a mask; COCO knows no holes, so that they are
    joined to their outline. Masks without a label are of the category "object". names: of the categories of a whole
    run, so that an id means the same in all its files; None takes the labels of this file, sorted. What else is said of
    a mask (its caption, all scores) is in its annotation. Raises OptionError for a label that is not among the names.
    """
    categories = {name: number for number, name in enumerate(class_names(results, names), start=1)}
    images = [coco_image(number, result) for number, result in enumerate(results, start=1)]
    records = [(number, record) for number, result in enumerate(results, start=1) for record in result.records]

    def annotations() -> Iterator[dict[str, Any]]:
        for number, (image_id, record) in enumerate(records, start=1):
            yield {"id": number, "image_id": image_id} | coco_annotation(record, categories, polygons)

    document = {
        "info": {"description": "Masks predicted by anysam"},
        "images": images,
        "annotations": annotations(),
        "categories": [{"id": number, "name": name} for name, number in categories.items()],
    }
    write_json(path, document)
    empty = sum(polygons and not record.area for _, record in records)
    return [Loss("coco-polygons", "masks without a pixel", empty)] if empty else []


def coco_image(image_id: int, result: ImageResult) -> dict[str, Any]:
    """The row of an image among the images of a COCO document."""
    height, width = result.size
    return {"id": image_id, "file_name": result.file_name, "height": height, "width": width}


def coco_annotation(record: MaskRecord, categories: Mapping[str, int], polygons: bool) -> dict[str, Any]:
    """The row of a mask among the annotations of a COCO document, without the ids of itself and of its image.

    categories: the id of each name, "object" for masks without a label among them. polygons: see `write_coco_json`.
    """
    x0, y0, x1, y1 = record.box
    segmentation: Any = record.segmentation
    if polygons:
        outlines = record_outlines(record)
        segmentation = [joined_ring([each]).reshape(-1).tolist() for each in outlines]
    annotation = {
        "category_id": categories[record.label or DEFAULT_NAME],
        "segmentation": segmentation,
        "area": record.area,
        "bbox": [x0, y0, x1 - x0, y1 - y0],
        "iscrowd": 0,
        "score": record.predicted_iou,
    }
    return annotation | said_of(record) | hidden_words(record)  # COCO allows members of one's own


def coco_to_results(document: Mapping[str, Any], name: str) -> list[ImageResult]:
    """A COCO instances document -> its images, in their order. name: of the file, for errors. Raises OptionError."""
    labels: dict[object, str] = {}
    for row in as_list(document.get("categories", []), f"{name}: categories"):
        labels[as_text(row.get("id"), f"{name}: category")] = as_text(
            row.get("name", DEFAULT_NAME), f"{name}: category"
        )
    sizes: dict[object, tuple[int, int]] = {}
    files: dict[object, str] = {}
    found: dict[object, list[MaskRecord]] = {}
    for image in as_list(document.get("images"), f"{name}: images"):
        key = image.get("id")
        if not isinstance(key, (int, str)) or key in sizes:
            raise OptionError(f"{name}: an image needs an id of its own, got {key!r}.")
        sizes[key] = as_size((image.get("height"), image.get("width")), f"{name}: image {key}")
        files[key] = as_file_name(image.get("file_name", key), f"{name}: image {key}")
        found[key] = []
    for number, row in enumerate(as_list(document.get("annotations"), f"{name}: annotations"), start=1):
        key, where = row.get("image_id"), f"{name}: annotation {number}"
        if not isinstance(key, (int, str)) or key not in sizes:
            raise OptionError(f"{where} is for image {key!r}, which the file does not have.")
        label = labels.get(str(row.get("category_id")))
        segmentation = segmentation_to_rle(row.get("segmentation"), sizes[key], where)
        score = 1.0 if row.get("score") is None else as_number(row["score"], where)
        found[key].append(with_said(make_record(segmentation, score, label=label_of(label, row)), row, where))
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
    parts = []
    for polygon in as_list(segmentation, f"{where}: segmentation", list):
        numbers = np.array([as_number(value, where) for value in polygon])
        if len(numbers) % 2 or len(numbers) < 6:
            raise OptionError(f"{where}: a polygon is x y x y ... of at least 3 points, got {len(numbers)} numbers.")
        parts.append([numbers.reshape(-1, 2)])
    return fill_parts(parts, size, where)
