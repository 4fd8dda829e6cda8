"""labelme's JSON: polygons, and for masks with holes its shape of type mask.

The form is labelme 5's (wkentaro/labelme, label files and `shapes_to_label`): the two points of a mask are its first
and last pixel, both included, and "mask" is a PNG of what lies between, in base64. Shapes of one group_id and label are
one object.
"""

import base64
import binascii
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from anysam import rle
from anysam.errors import OptionError
from anysam.outputs.files import write_json
from anysam.outputs.formats import ImageResult, Loss
from anysam.outputs.polygons import fill_rings, record_outlines
from anysam.outputs.reading import as_list, as_number, as_size, make_record
from anysam.results import MaskRecord

_VERSION = "5.5.0"
_DEFAULT_NAME = "object"


def write_labelme(path: str | Path, result: ImageResult) -> list[Loss]:
    """Write an image's masks for labelme; predicted_iou is each shape's "score"."""
    shapes, empty = [], 0
    for number, record in enumerate(result.records):
        own = _shapes(record, number)
        empty += not own
        shapes += own
    document: dict[str, Any] = {
        "version": _VERSION,
        "flags": {},
        "shapes": shapes,
        "imagePath": result.file_name,
        "imageData": None,
        "imageHeight": result.size[0],
        "imageWidth": result.size[1],
    }
    write_json(path, document)
    return [Loss("labelme", "masks without a pixel", empty)] if empty else []


def _shapes(record: MaskRecord, number: int) -> list[dict[str, Any]]:
    outlines = record_outlines(record)
    common: dict[str, Any] = {
        "label": record.label or _DEFAULT_NAME,
        "group_id": number if len(outlines) > 1 else None,
        "description": "",
        "flags": {},
        "score": record.predicted_iou,
    }
    if any(each.holes for each in outlines):
        box = rle.box(record.segmentation)
        assert box is not None
        x0, y0, x1, y1 = box
        picture = io.BytesIO()
        Image.fromarray(rle.window(record.segmentation, box)).save(picture, "PNG")
        mask = base64.b64encode(picture.getvalue()).decode("ascii")
        points = [[x0, y0], [x1 - 1, y1 - 1]]
        return [{**common, "group_id": None, "shape_type": "mask", "points": points, "mask": mask}]
    return [{**common, "shape_type": "polygon", "points": each.outer.tolist(), "mask": None} for each in outlines]


def labelme_to_result(document: Mapping[str, Any], name: str) -> ImageResult:
    """A labelme document -> its masks; shapes that are neither polygons nor masks are refused. Raises OptionError."""
    size = as_size((document.get("imageHeight"), document.get("imageWidth")), name)
    groups: dict[tuple[object, ...], list[dict[str, Any]]] = {}
    for number, shape in enumerate(as_list(document.get("shapes"), f"{name}: shapes"), start=1):
        group = shape.get("group_id")
        key = (number,) if group is None else (str(group), str(shape.get("label")))
        groups.setdefault(key, []).append({**shape, "where": f"{name}: shape {number}"})
    records = []
    for shapes in groups.values():
        label, score = str(shapes[0].get("label", _DEFAULT_NAME)), shapes[0].get("score")
        segmentation = rle.union([_shape_to_rle(shape, size) for shape in shapes])
        predicted_iou = 1.0 if score is None else as_number(score, shapes[0]["where"])
        records.append(make_record(segmentation, predicted_iou, label=None if label == _DEFAULT_NAME else label))
    return ImageResult(str(document.get("imagePath") or name), size, tuple(records))


def _shape_to_rle(shape: Mapping[str, Any], size: tuple[int, int]) -> dict[str, Any]:
    where, kind = shape["where"], shape.get("shape_type")
    points = [[as_number(value, where) for value in point] for point in as_list(shape.get("points"), where, list)]
    if any(len(point) != 2 for point in points):
        raise OptionError(f"{where}: points are x y.")
    if kind == "polygon":
        return fill_rings([np.array(points).reshape(-1, 2)], size)
    if kind != "mask" or len(points) != 2:
        raise OptionError(f"{where} is a {str(kind)[:40]}; polygons and masks are accepted.")
    (x0, y0), (x1, y1) = ((int(x), int(y)) for x, y in points)
    if not (0 <= x0 <= x1 < size[1] and 0 <= y0 <= y1 < size[0]):
        raise OptionError(f"{where} lies outside of the image, which is {size[1]}x{size[0]}.")
    part_size = (y1 - y0 + 1, x1 - x0 + 1)
    mask = _picture(shape.get("mask"), part_size, where)
    part = rle.write_rle(rle.mask_to_runs(mask), part_size)
    return rle.place(part, (x0, y0), size)


def _picture(text: object, size: tuple[int, int], where: str) -> np.ndarray:
    """The mask (h, w) bool of a PNG in base64, whose size must be the one its points say, before it is unpacked."""
    try:
        data = base64.b64decode(text if isinstance(text, str) else "", validate=True)
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            if (image.height, image.width) != size:
                raise OptionError(
                    f"{where}: the mask is {image.width}x{image.height}, its points say {size[1]}x{size[0]}."
                )
            return np.asarray(image.convert("L")) > 0
    except (binascii.Error, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise OptionError(f"{where}: the mask is no PNG in base64: {' '.join(str(error).split())}.") from error
