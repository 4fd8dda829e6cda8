"""What all readers need: JSON documents of bounded size, and their values checked before they are used."""

import os
import warnings
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image

from anysam import rle
from anysam.errors import AnySamError, OptionError
from anysam.images import MAX_PIXELS
from anysam.outputs.json_reading import loads_by_rows
from anysam.prompts import Prompt
from anysam.results import MaskRecord

# Of a file that is read whole. A COCO file of a million masks is about half of it.
MAX_BYTES = 2 * 1024**3
MAX_LETTERS = 100_000  # of a label, a name or a caption


def read_json(path: str | Path) -> Any:
    """The JSON document of a file. Raises OptionError for anything else."""
    try:
        if Path(path).stat().st_size > MAX_BYTES:
            raise OptionError(f"{path} is too large: at most {MAX_BYTES:,} bytes are read.")
        return loads_by_rows(Path(path).read_bytes())
    except (OSError, UnicodeDecodeError, ValueError, RecursionError) as error:
        raise OptionError(f"{path} cannot be read as JSON: {_reason(error)}.") from error


def as_list(value: object, where: str, kind: type = dict) -> list[Any]:
    """A list of dicts (or of another kind). Raises OptionError."""
    if not isinstance(value, list) or not all(isinstance(each, kind) for each in value):
        raise OptionError(f"{where} must be a list of {'objects' if kind is dict else 'lists'}.")
    return value


def as_number(value: object, where: str) -> float:
    """A finite number. Raises OptionError."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < 1e300:
        raise OptionError(f"{where}: a number is expected, got {str(value)[:40]!r}.")
    return float(value)


def as_size(value: object, where: str) -> tuple[int, int]:
    """The size (H, W) of an image. Raises OptionError."""
    sides = value if isinstance(value, (list, tuple)) else ()
    whole = all(isinstance(side, int) and not isinstance(side, bool) and side > 0 for side in sides)
    if len(sides) != 2 or not whole or sides[0] * sides[1] > 100 * MAX_PIXELS:
        raise OptionError(f"{where}: height and width of the image are expected, got {str(value)[:60]}.")
    return sides[0], sides[1]


def as_text(value: object, where: str) -> str:
    """A label or the like; numbers are taken as they are written. Raises OptionError."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not (isinstance(value, str) or number) or len(str(value)) > MAX_LETTERS:
        raise OptionError(
            f"{where}: a text of at most {MAX_LETTERS:,} characters is expected, got {str(value)[:40]!r}."
        )
    return str(value)


def as_box(value: object, where: str) -> tuple[float, float, float, float]:
    """Four finite numbers. Raises OptionError."""
    if not isinstance(value, list) or len(value) != 4:
        raise OptionError(f"{where}: a box of four numbers is expected, got {str(value)[:60]!r}.")
    a, b, c, d = (as_number(side, where) for side in value)
    return a, b, c, d


def as_file_name(value: object, where: str) -> str:
    """The name of an image, which names of other files are made of. Raises OptionError."""
    name = as_text(value, where)
    try:
        possible = Path(name).name != "" and b"\0" not in os.fsencode(name)
    except UnicodeEncodeError:
        possible = False
    if not possible:
        raise OptionError(f"{where}: the name of an image is expected, got {name[:40]!r}.")
    return name


def as_prompt(value: object, where: str) -> dict[str, Any]:
    """The form of a Prompt. Raises OptionError."""
    try:
        return Prompt.from_dict(value).to_dict()  # type: ignore[arg-type]  # anything else is refused there
    except AnySamError as error:
        raise OptionError(f"{where}: {error}") from error


def read_png(
    file: str | Path | BinaryIO, where: str, size: tuple[int, int] | None = None, colours: bool = False
) -> np.ndarray:
    """The pixels of a grey, palette or black-and-white PNG: (H, W), bool or whole numbers.

    size: (H, W) that it must have. colours: whether to take a PNG in colours, too, as its brightness. Nothing is
    unpacked before size and kind are known. Raises OptionError.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the size is judged here, in one sentence
            opened = Image.open(file, formats=["PNG"])
        with opened as image:
            found = (image.height, image.width)
            if found[0] * found[1] > MAX_PIXELS:
                raise OptionError(f"{where} is too large: {found[1]}x{found[0]} pixels.")
            if size is not None and found != size:
                raise OptionError(f"{where} is {found[1]}x{found[0]} pixels where {size[1]}x{size[0]} are expected.")
            if image.mode in ("RGB", "RGBA", "LA") and colours:
                return np.asarray(image.convert("L"))
            if image.mode not in ("1", "L", "P", "I", "I;16"):
                raise OptionError(f"{where} is no mask but in colours ({image.mode}); grey or palette is accepted.")
            return np.asarray(image)
    except OptionError:
        raise
    except Image.UnidentifiedImageError as error:
        raise OptionError(f"{where} is no PNG.") from error
    except Exception as error:  # Pillow's decoders raise whatever the damage makes them trip over
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise OptionError(f"{where} cannot be read as a PNG: {' '.join(reason.split())}.") from error


def make_record(
    segmentation: dict[str, Any],
    predicted_iou: float = 1.0,
    *,
    prompt: dict[str, Any] | None = None,
    label: str | None = None,
    crop_box: tuple[float, float, float, float] | None = None,
) -> MaskRecord:
    """A record whose area and box are those of the mask. predicted_iou: 1 where the format has no score."""
    x0, y0, x1, y1 = rle.box(segmentation) or (0, 0, 0, 0)
    return MaskRecord(
        segmentation=segmentation,
        area=rle.area(segmentation),
        box=(float(x0), float(y0), float(x1), float(y1)),
        predicted_iou=predicted_iou,
        prompt=prompt,
        label=label,
        crop_box=crop_box,
    )


def _reason(error: Exception) -> str:
    if isinstance(error, OSError):
        return error.strerror or str(error)
    return "it is nested too deeply" if isinstance(error, RecursionError) else " ".join(str(error).split())
