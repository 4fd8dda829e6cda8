"""The text of COCO, YOLO and CSV files -> rows of boxes or points. Every mistake names its line or its entry."""

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn

from anysam.errors import OptionError

Kind = Literal["box", "point"]

_NAMES = ("image", "file_name", "filename", "file")
# Accepted names of the columns; where x1 y1 is a corner depends on whether there is an x2.
_COLUMNS: dict[Kind, tuple[tuple[str, ...], ...]] = {
    "box": (("x0", "y0", "x1", "y1"), ("x1", "y1", "x2", "y2"), ("xmin", "ymin", "xmax", "ymax")),
    "point": (("x", "y"),),
}
_OPTIONAL: dict[Kind, tuple[str, ...]] = {"box": ("label", "score"), "point": ("label",)}


@dataclass(frozen=True)
class Row:
    """One box, values x0 y0 x1 y1, or one point, x y; normalised to 0..1 or in pixels.

    image: a name, or a number of COCO's; None where the file names none. place: where it stands, to begin a message.
    size: (H, W) of the image, if the file says it.
    """

    values: tuple[float, ...]
    place: str
    image: str | int | None = None
    label: str | None = None
    score: float | None = None
    normalised: bool = False
    size: tuple[int, int] | None = None


# CSV


def read_csv(path: Path, text: str, kind: Kind) -> list[Row]:
    """Rows of `image,x0,y0,x1,y1[,label[,score]]` or `image,x,y[,label]`.

    The image may be left out, columns may be in any order if the first line names them, and they are parted by commas,
    semicolons or tabs. Raises OptionError.
    """
    first = text.lstrip().splitlines()[0]
    delimiter = max(",;\t", key=first.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    columns: dict[str, int] | None = None
    rows: list[Row] = []
    try:
        for cells in reader:
            cells = [cell.strip() for cell in cells]
            if not any(cells):
                continue
            place = f"{path} line {reader.line_num}"
            if columns is None:
                columns = _header(cells, kind, place)
                if columns is not None:
                    continue
                columns = _columns_without_header(cells, kind)
            rows.append(_csv_row(cells, columns, kind, place))
    except csv.Error as error:
        raise OptionError(f"{path} line {reader.line_num} is not CSV: {error}.") from error
    return rows


def _header(cells: Sequence[str], kind: Kind, place: str) -> dict[str, int] | None:
    """Column -> index, if the line names columns; None if it holds numbers."""
    if any(_is_number(cell) for cell in cells):
        return None
    names = [cell.lower() for cell in cells]
    chosen = next((each for each in _COLUMNS[kind] if set(each) <= set(names)), None)
    known = {*_NAMES, *_OPTIONAL[kind], *(chosen or ())}
    if chosen is None or any(name not in known for name in names) or len(set(names)) < len(names):
        _refuse(place, f"the columns {','.join(cells)[:120]!r}", kind)
    columns = {column: names.index(name) for column, name in zip(_COLUMNS[kind][0], chosen, strict=True)}
    columns |= {column: names.index(column) for column in _OPTIONAL[kind] if column in names}
    image = [name for name in names if name in _NAMES]
    if len(image) > 1:
        _refuse(place, f"the columns {','.join(cells)[:120]!r}", kind)
    return columns | ({"image": names.index(image[0])} if image else {})


def _columns_without_header(cells: Sequence[str], kind: Kind) -> dict[str, int]:
    """Column -> index, the optional last ones included; the image is there if the line does not begin with a number."""
    columns = [*(() if _is_number(cells[0]) else ("image",)), *_COLUMNS[kind][0], *_OPTIONAL[kind]]
    return {column: index for index, column in enumerate(columns)}


def _csv_row(cells: Sequence[str], columns: Mapping[str, int], kind: Kind, place: str) -> Row:
    needed = {index for name, index in columns.items() if name not in _OPTIONAL[kind]}
    if len(cells) > len(columns) or any(index >= len(cells) for index in needed):
        _refuse(place, f"{len(cells)} values", kind)

    def cell(name: str) -> str | None:
        index = columns.get(name)
        return None if index is None or index >= len(cells) or not cells[index] else cells[index]

    values = tuple(_number(cell(name), name, place) for name in _COLUMNS[kind][0])
    if "image" in columns and cell("image") is None:
        raise OptionError(f"{place} names no image.")
    score = cell("score")
    return Row(
        values=_box(values, place) if kind == "box" else values,
        place=place,
        image=cell("image"),
        label=cell("label"),
        score=None if score is None else _score(_number(score, "score", place), place),
    )


def _refuse(place: str, given: str, kind: Kind) -> NoReturn:
    form = "image,x0,y0,x1,y1[,label[,score]]" if kind == "box" else "image,x,y[,label]"
    raise OptionError(f"{place} has {given}; accepted are rows of {form}, image being optional for a single image.")


# YOLO


def read_yolo(path: Path, text: str, names: Mapping[int, str]) -> list[Row]:
    """Rows of `class cx cy w h [score]`, all normalised to 0..1: centre and size of a box.

    names: of the classes; a class without one is called by its number. Raises OptionError.
    """
    rows = []
    for number, line in enumerate(text.splitlines(), start=1):
        cells = line.split()
        if not cells:
            continue
        place = f"{path} line {number}"
        if len(cells) not in (5, 6):
            outline = " (outlines of objects are not read)" if len(cells) > 6 else ""
            raise OptionError(f"{place} has {len(cells)} values; accepted are class cx cy w h [score]{outline}.")
        cx, cy, w, h = (_number(cell, "a coordinate", place) for cell in cells[1:5])
        if not all(0 <= value <= 1 for value in (cx, cy, w, h)):
            raise OptionError(f"{place}: cx cy w h must be from 0 to 1, parts of the image's sides, got {line[:120]}.")
        if not (cells[0].isascii() and cells[0].isdigit() and len(cells[0]) < 10):
            raise OptionError(f"{place}: the class must be a whole number from 0, got {cells[0][:40]!r}.")
        label = names.get(int(cells[0]), "").strip() or cells[0]
        score = _score(_number(cells[5], "score", place), place) if len(cells) == 6 else None
        box = _box((cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2), place)
        rows.append(Row(box, place, None, label, score, normalised=True))
    return rows


# COCO


def read_coco(path: Path, text: str) -> list[Row]:
    """Rows of COCO results, a list of {image_id or file_name, bbox, score, category_id}, or of a whole COCO file.

    bbox is x y width height in pixels. Raises OptionError.
    """
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:  # numbers of thousands of digits, brackets in brackets in ...
        reason = " ".join(str(error).split())
        raise OptionError(f"{path} is not JSON ({reason}).") from error
    if isinstance(document, list):
        return [_coco_row(entry, f"{path} entry {i}", {}, {}) for i, entry in enumerate(document)]
    if not isinstance(document, dict) or not isinstance(document.get("annotations"), list):
        raise OptionError(
            f"{path} must be a list of COCO results, [{{image_id or file_name, bbox, score, category_id}}, ...], or a "
            "COCO file with images and annotations."
        )
    images = {key: entry for key, entry in _by_id(document, "images", path)}
    categories = {key: entry.get("name") for key, entry in _by_id(document, "categories", path)}
    rows = []
    for i, entry in enumerate(document["annotations"]):
        place = f"{path} annotation {i}"
        if isinstance(entry, dict) and "file_name" not in entry and _id(entry.get("image_id")) not in images:
            raise OptionError(f"{place}: its image_id {_shown(entry.get('image_id'))} is none of the file's images.")
        rows.append(_coco_row(entry, place, images, categories))
    return rows


def _by_id(document: Mapping[str, Any], name: str, path: Path) -> list[tuple[int | str, dict[str, Any]]]:
    """The entries of a list of a COCO file with their ids, which are all different."""
    entries = document.get(name, [])
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise OptionError(f"{path}: its {name} must be a list of objects.")
    found: dict[int | str, dict[str, Any]] = {}
    for i, entry in enumerate(entries):
        key = _id(entry.get("id"))
        if key is None or key in found:
            why = "is there twice" if key is not None else "must be a number or a name"
            raise OptionError(f"{path} {name} entry {i}: its id {_shown(entry.get('id'))} {why}.")
        found[key] = entry
    return list(found.items())


def _coco_row(
    entry: Any,
    place: str,
    images: Mapping[int | str, Mapping[str, Any]],
    categories: Mapping[int | str, Any],
) -> Row:
    if not isinstance(entry, dict):
        raise OptionError(f"{place} must be an object, got {_shown(entry)}.")
    bbox = entry.get("bbox")
    if not isinstance(bbox, list) or len(bbox) != 4:
        raise OptionError(f"{place}: bbox must be [x, y, width, height], got {_shown(bbox)}.")
    x, y, width, height = (_json_number(value, "bbox", place) for value in bbox)
    image_id = _id(entry.get("image_id"))
    image = images.get(image_id, {}) if image_id is not None else {}
    name = image.get("file_name", entry.get("file_name"))
    if (images and name is None) or not (name is None or (isinstance(name, str) and name)):
        raise OptionError(f"{place}: the file_name of its image must be a name, got {_shown(name)}.")
    if name is None and image_id is None and entry.get("image_id") is not None:
        raise OptionError(f"{place}: image_id must be a number or a name, got {_shown(entry['image_id'])}.")
    height_width = [value for value in (image.get("height"), image.get("width")) if type(value) is int]
    score, category = entry.get("score"), _id(entry.get("category_id"))
    label = categories.get(category) if category is not None else None
    return Row(
        values=_box((x, y, x + width, y + height), place),
        place=place,
        image=image_id if name is None else name,
        label=label if isinstance(label, str) else None if category is None else str(category),
        score=None if score is None else _score(_json_number(score, "score", place), place),
        size=(height_width[0], height_width[1]) if len(height_width) == 2 else None,
    )


def _id(value: Any) -> int | str | None:
    return value if type(value) is int or isinstance(value, str) else None


def _json_number(value: Any, name: str, place: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise OptionError(f"{place}: {name} must be made of numbers, got {_shown(value)}.")
    return _number(str(value), name, place)


# What rows are made of


def _box(values: tuple[float, ...], place: str) -> tuple[float, ...]:
    x0, y0, x1, y1 = values
    if not (x1 > x0 and y1 > y0 and all(map(math.isfinite, values))):
        shown = ",".join(f"{value:g}" for value in values)
        raise OptionError(f"{place}: a box must be x0,y0,x1,y1 with x1 > x0 and y1 > y0, got {shown}.")
    return values


def _score(value: float, place: str) -> float:
    if not 0 <= value <= 1:
        raise OptionError(f"{place}: a score must be from 0 to 1, got {value:g}.")
    return value


def _number(text: str | None, name: str, place: str) -> float:
    """A finite number. Raises OptionError."""
    if text is None or not _is_number(text) or not math.isfinite(float(text)):
        raise OptionError(f"{place}: {name} must be a finite number, got {_shown(text or '')}.")
    return float(text)


def _is_number(text: str) -> bool:
    """Whether Python would read it as a number; "1_000" is a name."""
    try:
        float(text)
    except ValueError:
        return False
    return "_" not in text


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
