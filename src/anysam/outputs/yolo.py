"""YOLO's segmentation labels: a line for each mask, its class number and one ring in parts of the image's sides."""

from pathlib import Path

import numpy as np

from anysam.errors import OptionError
from anysam.outputs.files import write_text
from anysam.outputs.formats import ImageResult, Loss
from anysam.outputs.polygons import INSET, fill_rings, joined_ring, record_outlines
from anysam.outputs.reading import MAX_BYTES, as_text, make_record
from anysam.results import MaskRecord

_DEFAULT_NAME = "object"
_FARTHEST = 1000.0  # outlines may leave the image, but not by so much


def names_path(path: str | Path) -> Path:
    """Where the names of the classes of a label file are kept: cat.txt -> cat.names.txt."""
    return Path(path).with_suffix(".names.txt")


def class_names(results: list[ImageResult]) -> list[str]:
    """The classes of masks, by name; a mask without a label is an "object"."""
    return sorted({record.label or _DEFAULT_NAME for result in results for record in result.records} or {_DEFAULT_NAME})


def write_yolo(path: str | Path, result: ImageResult, names: list[str] | None = None) -> list[Loss]:
    """Write the label file of an image, and the names of its classes beside it, one a line.

    names: the classes of a whole set of images; None takes those of this image. A mask of several parts or with holes
    is one ring whose seams have no width. Vertices lie INSET inside of the mask's edge: loaders of these files round
    down to whole pixels and draw the outline, too, and so get the mask itself.
    """
    names = class_names([result]) if names is None else names
    height, width = result.size
    lines, empty = [], 0
    for record in result.records:
        outlines = record_outlines(record)
        if not outlines:
            empty += 1
            continue
        ring = joined_ring(outlines, INSET) / (width, height)
        numbers = " ".join(f"{value:.8g}" for value in ring.reshape(-1).tolist())
        lines.append(f"{names.index(record.label or _DEFAULT_NAME)} {numbers}\n")
    write_text(path, "".join(lines))
    lines_of_names = [" ".join(name.splitlines()) for name in names]
    write_text(names_path(path), "".join(f"{name}\n" for name in lines_of_names))
    broken = sum(line != name for line, name in zip(lines_of_names, names, strict=True))
    losses = [Loss("yolo", "masks without a pixel", empty), Loss("yolo", "line breaks in names", broken)]
    return [loss for loss in losses if loss.count]


def read_yolo(path: str | Path, size: tuple[int, int], names: list[str] | None = None) -> ImageResult:
    """The masks of a label file of an image of `size` (H, W). Raises OptionError.

    names: of the classes; None takes those beside the file, else class 3 is "class_3". Lines of a box alone (class and
    four numbers) are refused: they hold no mask.
    """
    if names is None and names_path(path).is_file():
        names = [as_text(name, str(names_path(path))) for name in _text(names_path(path)).splitlines()]
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
    if not (np.abs(values) < _FARTHEST).all() or number < 0:
        raise OptionError(f"{where}: a class from 0 and coordinates of about 0 to 1 are expected.")
    if names is not None and number >= len(names):
        raise OptionError(f"{where}: there is no name for class {number}; {len(names)} names are known.")
    label = as_text(f"class_{number}", where) if names is None else names[number]
    height, width = size
    ring = values.reshape(-1, 2) * (width, height)  # (N, 2)
    return make_record(fill_rings([ring], size, where), label=None if label == _DEFAULT_NAME else label)


def _text(path: str | Path) -> str:
    try:
        if Path(path).stat().st_size > MAX_BYTES:
            raise OptionError(f"{path} is too large: at most {MAX_BYTES:,} bytes are read.")
        return Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise OptionError(f"{path} cannot be read: {' '.join(str(error).split())}.") from error
