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
from anysam.outputs.reading import as_box, as_file_name, as_list, as_number, as_prompt, as_size, make_record
from anysam.outputs.words import with_said
from anysam.results import MaskRecord


def write_sa1b(path: str | Path, result: ImageResult, image_id: int = 0) -> list[Loss]:
    """Write the masks of an image; labels and captions have no place in it."""
    height, width = result.size
    image = {"image_id": image_id, "width": width, "height": height, "file_name": result.file_name}
    annotations = [_annotation(record, number, result.size) for number, record in enumerate(result.records)]
    write_json(path, {"image": image, "annotations": annotations})
    return []


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
        crop = row.get("crop_box")
        points = as_list(row.get("point_coords") or [], f"{where}: point_coords", list)
        x, y, width, height = (0.0,) * 4 if crop is None else as_box(crop, where)
        record = make_record(
            segmentation_to_rle(row.get("segmentation"), size, where),
            as_number(row.get("predicted_iou", 1.0), where),
            prompt=as_prompt({"points": points, "labels": [1] * len(points)}, where) if points else None,
            crop_box=None if crop is None else (x, y, x + width, y + height),
        )
        records.append(with_said(record, {"stability_score": row.get("stability_score")}, where))
    return ImageResult(as_file_name(image.get("file_name", Path(name).name), name), size, tuple(records))
