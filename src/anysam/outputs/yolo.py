"""YOLO's segmentation labels: a line for each mask, its class number and one ring in parts of the image's sides."""

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from anysam.errors import OptionError
from anysam.outputs.files import write_text
from anysam.outputs.formats import ImageResult, Loss
from anysam.outputs.polygons import INSET, fill_rings, joined_ring, record_outlines
from anysam.outputs.reading import MAX_BYTES, as_text, make_record
from anysam.outputs.words import DEFAULT_NAME, class_names
from anysam.results import MaskRecord

_FARTHEST = 1000.0  # outlines may leave the image, but not by so much
# Line breaks, those of `str.splitlines`; the mark that UTF-8 files may begin with; halves of letters.
_NOT_IN_A_LINE = re.compile("\r\n|[\n\r\v\f\x1c-\x1e\x85\u2028\u2029\ufeff\ud800-\udfff]")
_NONE = ("", DEFAULT_NAME)


def names_path(path: str | Path) -> Path:
    """Where the names of the classes of a label file are kept: cat.txt -> cat.names.txt."""
    return Path(path).with_suffix(".names.txt")


def write_yolo(path: str | Path, result: ImageResult, names: Sequence[str] | None = None) -> list[Loss]:
    """Write the label file of an image, and the names of its classes beside it, one a line; numbers count from 0.

    names: the classes of a whole set of images, all of which are written in this order, so that a number means the same
    for each of them; None takes the labels of this image, sorted. A mask of several parts or with holes is one ring
    whose seams have no width. Vertices lie INSET inside of the mask's edge: loaders of these files round down to whole
    pixels and draw the outline, too, and so get the mask itself. Raises OptionError for a label that is not among the
    names.
    """
    records = [record for record in result.records if record.area]
    classes = class_names([dataclasses.replace(result, records=tuple(records))], names)
    numbers = {name: number for number, name in enumerate(classes)}
    height, width = result.size
    lines = []
    for record in records:
        ring = joined_ring(record_outlines(record), INSET) / (width, height)
        values = tuple(ring.reshape(-1).tolist())
        lines.append(f"{numbers[record.label or DEFAULT_NAME]}{' %.8g' * len(values) % values}\n")
    written = [_NOT_IN_A_LINE.sub(" ", name) for name in classes]
    write_text(path, "".join(lines))
    write_text(names_path(path), "".join(f"{name}\n" for name in written))
    losses = [
        Loss("yolo", "masks without a pixel", len(result.records) - len(records)),
        Loss("yolo", "line breaks and the like in names", sum(a != b for a, b in zip(classes, written, strict=True))),
        Loss("yolo", f"the label {DEFAULT_NAME!r}, which means none", sum(record.label in _NONE for record in records)),
    ]
    return [loss for loss in losses if loss.count]


def read_yolo(path: str | Path, size: tuple[int, int], names: Sequence[str] | None = None) -> ImageResult:
    """The masks of a label file of an image of `size` (H, W). Raises OptionError.

    names: of the classes; None takes those beside the file, else class 3 is "class_3". Lines of a box alone (class and
    four numbers) are refused: they hold no mask.
    """
    if names is None and names_path(path).is_file():
        names = [as_text(name, str(names_path(path))) for name in _lines(names_path(path))]
    records = []
    for number, line in enumerate(_lines(path), start=1):
        if line.strip():
            records.append(_record(line.split(), size, names, f"{path}, line {number}"))
    return ImageResult(Path(path).stem, size, tuple(records))


def _record(words: list[str], size: tuple[int, int], names: Sequence[str] | None, where: str) -> MaskRecord:
    try:
        number, values = int(words[0]), np.array([float(word) for word in words[1:]])
    except ValueError as error:
        raise OptionError(f"{where}: a class number and coordinates are expected, got {error}.") from error
    if len(values) < 6 or len(values) % 2:
        raise OptionError(f"{where}: a mask is x y x y ... of at least 3 points, got {len(values)} numbers.")
    if not (np.abs(values) < _FARTHEST).all() or number < 0:
        raise OptionError(f"{where}: a class from 0 and coordinates of about 0 to 1 are expected.")
    if names is not None and number >= len(names):
        raise OptionError(f"{where}: there is no name for class {number}; {len(names)} names are known.")
    label = as_text(f"class_{number}", where) if names is None else names[number]
    height, width = size
    ring = values.reshape(-1, 2) * (width, height)  # (N, 2)
    return make_record(fill_rings([ring], size, where), label=None if label in _NONE else label)


def _lines(path: str | Path) -> list[str]:
    try:
        if Path(path).stat().st_size > MAX_BYTES:
            raise OptionError(f"{path} is too large: at most {MAX_BYTES:,} bytes are read.")
        return Path(path).read_bytes().decode("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise OptionError(f"{path} cannot be read: {' '.join(str(error).split())}.") from error
