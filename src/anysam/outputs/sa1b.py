"""The per-image JSON of the SA-1B dataset: what the published mask generator knows of each mask.

Boxes are x y width height to the last pixel, as there, not beyond it.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from anysam.errors import OptionError
from anysam.outputs.coco import segmentation_to_rle
from anysam.outputs.files import write_json
from anysam.outputs.formats import ImageResult, Loss
from anysam.outputs.reading import as_list, as_number, as_size, make_record
from anysam.results import MaskRecord


def write_sa1b(path: str | Path, result: ImageResult, image_id: int = 0) -> list[Loss]:
    """Write the masks of an image; labels have no place in it."""
    height, width = result.size
    image = {"image_id": image_id, "width": width, "height": height, "file_name": result.file_name}
    annotations = [_annotation(record, number, result.size) for number, record in enumerate(result.records)]
    write_json(path, {"image": image, "annotations": annotations})
    labelled = sum(record.label is not None for record in result.records)
    return [Loss("sa1b", "labels of masks", labelled)] if labelled else []


def _annotation(record: MaskRecord, number: int, size: tuple[int, int]) -> dict[str, Any]:
    x0, y0, x1, y1 = record.box
    left, top, right, bottom = record.crop_box or (0, 0, size[1], size[0])
    return {
        "id": number,
        "segmentation": record.segmentation,
        "bbox": [x0, y0, max(x1 - x0 - 1, 0), max(y1 - y0 - 1, 0)],
        "area": record.area,
        "predicted_iou": record.predicted_iou,
        "stability_score": record.to_dict()["stability_score"],
        "point_coords": (record.prompt or {}).get("points") or [],
        "crop_box": [left, top, right - left, bottom - top],
    }


def sa1b_to_result(document: Mapping[str, Any], name: str) -> ImageResult:
    """The document of one image -> its masks. Raises OptionError."""
    image = document.get("image")
    if not isinstance(image, Mapping):
        raise OptionError(f"{name}: the member image is missing.")
    size = as_size((image.get("height"), image.get("width")), name)
    records = []
    for number, row in enumerate(as_list(document.get("annotations"), f"{name}: annotations"), start=1):
        where = f"{name}: annotation {number}"
        stability, crop, points = row.get("stability_score"), row.get("crop_box"), row.get("point_coords")
        records.append(
            make_record(
                segmentation_to_rle(row.get("segmentation"), size, where),
                as_number(row.get("predicted_iou", 1.0), where),
                prompt=_prompt(points, where),
                stability_score=None if stability is None else as_number(stability, where),
                crop_box=_box(crop, where),
            )
        )
    return ImageResult(str(image.get("file_name", name)), size, tuple(records))


def _prompt(points: object, where: str) -> dict[str, Any] | None:
    if not points:
        return None
    pairs = [[as_number(value, where) for value in point] for point in as_list(points, where, list)]
    return {"points": pairs, "labels": [1] * len(pairs)}


def _box(crop: object, where: str) -> tuple[float, float, float, float] | None:
    if crop is None:
        return None
    if not isinstance(crop, list) or len(crop) != 4:
        raise OptionError(f"{where}: crop_box is x y width height, got {str(crop)[:60]}.")
    x, y, width, height = (as_number(value, where) for value in crop)
    return x, y, x + width, y + height
