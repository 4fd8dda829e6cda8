"""YOLO's segmentation labels: a line for each mask, its class number and one ring in parts of the image's sides."""

from pathlib import Path

import numpy as np

from anysam.errors import OptionError
from anysam.outputs.files import write_text
from anysam.outputs.formats import ImageResult, Loss
from anysam.outputs.polygons import fill_rings, joined_ring, record_outlines
from anysam.outputs.reading import MAX_BYTES, make_record
from anysam.results import MaskRecord

_DEFAULT_NAME = "object"


def names_path(path: str | Path) -> Path:
    """Where the names of the classes of a label file are kept: cat.txt -> cat.names.txt."""
    return Path(path).with_suffix(".names.txt")


def class_names(results: list[ImageResult]) -> list[str]:
    """The classes of masks, by name; a mask without a label is an "object"."""
    return sorted({record.label or _DEFAULT_NAME for result in results for record in result.records} or {_DEFAULT_NAME})


def write_yolo(path: str | Path, result: ImageResult, names: list[str] | None = None) -> list[Loss]:
    """Write the label file of an image, and the names of its classes beside it, one a line.

    names: the classes of a whole set of images; None takes those of this image. A mask of several parts or with holes
    is one ring whose seams have no width. Ten digits are written: a vertex moves by less than 0.0001 pixels.
    """
    names = class_names([result]) if names is None else names
    height, width = result.size
    lines, empty = [], 0
    for record in result.records:
        outlines = record_outlines(record)
        if not outlines:
            empty += 1
            continue
        rings = [ring for each in outlines for ring in (each.outer, *each.holes)]
        ring = joined_ring(rings) / (width, height)
        numbers = " ".join(f"{value:.10g}" for value in ring.reshape(-1).tolist())
        lines.append(f"{names.index(record.label or _DEFAULT_NAME)} {numbers}\n")
    write_text(path, "".join(lines))
    write_text(names_path(path), "".join(f"{name}\n" for name in names))
    return [Loss("yolo", "masks without a pixel", empty)] if empty else []


def read_yolo(path: str | Path, size: tuple[int, int], names: list[str] | None = None) -> ImageResult:
    """The masks of a label file of an image of `size` (H, W). Raises OptionError.

    names: of the classes; None takes those beside the file, else class 3 is "class_3". Lines of a box alone (class and
    four numbers) are refused: they hold no mask.
    """
    if names is None and names_path(path).is_file():
        names = _text(names_path(path)).splitlines()
    records = []
    for number, line in enumerate(_text(path).splitlines(), start=1):
        if line.strip():
            records.append(_record(line.split(), size, names, f"{path}, line {number}"))
    return ImageResult(Path(path).stem, size, tuple(records))


def _record(words: list[str], size: tuple[int, int], names: list[str] | None, where: str) -> MaskRecord:
    try:
        number, values = int(words[0]), np.array([float(word) for word in words[1:]])
    except ValueError as error:
        raise OptionError(f"{where}: a class number and coordinates are expected, got {error}.") from error
    if len(values) < 6 or len(values) % 2:
        raise OptionError(f"{where}: a mask is x y x y ... of at least 3 points, got {len(values)} numbers.")
    if not np.isfinite(values).all() or number < 0:
        raise OptionError(f"{where}: a class from 0 and finite coordinates are expected.")
    if names is not None and number >= len(names):
        raise OptionError(f"{where}: there is no name for class {number}; {len(names)} names are known.")
    label = f"class_{number}" if names is None else names[number]
    height, width = size
    ring = values.reshape(-1, 2) * (width, height)  # (N, 2)
    nearest = np.round(ring)
    ring = np.where(np.abs(ring - nearest) < 1e-3, nearest, ring)  # what the rounding of the digits has moved
    return make_record(fill_rings([ring], size), label=None if label == _DEFAULT_NAME else label)


def _text(path: str | Path) -> str:
    try:
        if Path(path).stat().st_size > MAX_BYTES:
            raise OptionError(f"{path} is too large: at most {MAX_BYTES:,} bytes are read.")
        return Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise OptionError(f"{path} cannot be read: {error}.") from error
