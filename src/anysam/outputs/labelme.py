"""labelme's JSON: polygons, and for masks with holes its shape of type mask.

The form is labelme 5's (wkentaro/labelme, label files and `shapes_to_label`): the two points of a mask are its first
and last pixel, both included, and "mask" is a PNG of what lies between, in base64. Shapes of one group_id and label are
one object. A shape's "description", a text, is the caption. What else is said of a mask is in members that labelme does
not know, which it keeps when it saves the file (`other_data` of its shapes; so in labelme 6.3.1).
"""

import base64
import binascii
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from anysam import rle
from anysam.errors import OptionError
from anysam.outputs.files import write_json
from anysam.outputs.formats import ImageResult, Loss
from anysam.outputs.polygons import INSET, fill_parts, joined_ring, record_outlines
from anysam.outputs.reading import as_file_name, as_list, as_number, as_size, as_text, make_record, read_png
from anysam.outputs.words import DEFAULT_NAME, as_caption, hidden_words, label_of, said_of, with_said
from anysam.results import MaskRecord

_VERSION = "5.5.0"


def write_labelme(path: str | Path, result: ImageResult) -> list[Loss]:
    """Write an image's masks for labelme; predicted_iou is each shape's "score"."""
    empty = []

    def shapes() -> Iterator[dict[str, Any]]:
        for number, record in enumerate(result.records):
            own = _shapes(record, number)
            if not own:
                empty.append(number)
            yield from own

    document: dict[str, Any] = {
        "version": _VERSION,
        "flags": {},
        "shapes": shapes(),
        "imagePath": result.file_name,
        "imageData": None,
        "imageHeight": result.size[0],
        "imageWidth": result.size[1],
    }
    write_json(path, document)
    losses = [
        Loss("labelme", "masks without a pixel", len(empty)),
        Loss("labelme", "captions without a letter", sum(record.caption == "" for record in result.records)),
    ]
    return [loss for loss in losses if loss.count]


def _shapes(record: MaskRecord, number: int) -> list[dict[str, Any]]:
    outlines = record_outlines(record)
    said = said_of(record)
    common: dict[str, Any] = {
        "label": record.label or DEFAULT_NAME,
        "group_id": number if len(outlines) > 1 else None,
        "description": said.pop("caption", ""),
        "flags": {},
        "score": record.predicted_iou,
        **said,
        **hidden_words(record),
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
    # Inside of the edge: labelme draws the outline, too, when it makes masks of polygons.
    rings = [np.round(joined_ring([each], INSET), 2).tolist() for each in outlines]
    return [{**common, "shape_type": "polygon", "points": ring, "mask": None} for ring in rings]


def labelme_to_result(document: Mapping[str, Any], name: str) -> ImageResult:
    """A labelme document -> its masks; shapes that are neither polygons nor masks are refused. Raises OptionError."""
    size = as_size((document.get("imageHeight"), document.get("imageWidth")), name)
    groups: dict[tuple[object, ...], list[tuple[str, Mapping[str, Any]]]] = {}
    for number, shape in enumerate(as_list(document.get("shapes"), f"{name}: shapes"), start=1):
        group = shape.get("group_id")
        key = (number,) if group is None else (str(group), str(shape.get("label")))
        groups.setdefault(key, []).append((f"{name}: shape {number}", shape))
    records = tuple(_record(shapes, size) for shapes in groups.values())
    return ImageResult(as_file_name(document.get("imagePath") or Path(name).name, name), size, records)


def _record(shapes: Sequence[tuple[str, Mapping[str, Any]]], size: tuple[int, int]) -> MaskRecord:
    """The mask of the shapes of one group."""
    polygons, masks = [], []
    for where, shape in shapes:
        points = [[as_number(value, where) for value in point] for point in as_list(shape.get("points"), where, list)]
        if any(len(point) != 2 for point in points):
            raise OptionError(f"{where}: points are x y.")
        kind = shape.get("shape_type", "polygon")  # labelme 3 had no other and did not say so
        if kind == "polygon":
            polygons.append([np.array(points).reshape(-1, 2)])
        elif kind == "mask" and len(points) == 2:
            masks.append(_mask_to_rle(shape.get("mask"), points, size, where))
        else:
            raise OptionError(f"{where} is of the kind {str(kind)[:40]!r}; polygons and masks are accepted.")
    where, shape = shapes[0]  # which names the group
    name, score = as_text(shape.get("label", DEFAULT_NAME), where), shape.get("score")
    record = make_record(
        rle.union([fill_parts(polygons, size, where), *masks]),
        1.0 if score is None else as_number(score, where),
        label=label_of(name, shape),
    )
    caption = as_caption(shape.get("description"), f"{where}: description")
    return with_said(record, {**shape, "caption": caption or None}, where)


def _mask_to_rle(text: object, corners: Sequence[Sequence[float]], size: tuple[int, int], where: str) -> dict[str, Any]:
    """The mask of a PNG in base64 between its first and its last pixel, x y each."""
    (x0, y0), (x1, y1) = corners
    if not (0 <= x0 <= x1 < size[1] and 0 <= y0 <= y1 < size[0]):
        raise OptionError(f"{where} lies outside of the image, which is {size[1]}x{size[0]}.")
    try:
        data = base64.b64decode(text if isinstance(text, str) else "", validate=True)
    except (binascii.Error, ValueError) as error:
        raise OptionError(f"{where}: the mask is not in base64: {error}.") from error
    part_size = (int(y1) - int(y0) + 1, int(x1) - int(x0) + 1)
    mask = read_png(io.BytesIO(data), f"{where}: the mask", part_size) > 0
    return rle.place(rle.write_rle(rle.mask_to_runs(mask), part_size), (int(x0), int(y0)), size)
