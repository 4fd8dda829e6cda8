"""What all readers need: JSON documents of bounded size, and their values checked before they are used."""

import json
from pathlib import Path
from typing import Any

from anysam import rle
from anysam.errors import OptionError
from anysam.images import MAX_PIXELS
from anysam.results import MaskRecord

# Of a file that is read whole. A COCO file of a million masks is about half of it.
MAX_BYTES = 2 * 1024**3


def read_json(path: str | Path) -> Any:
    """The JSON document of a file. Raises OptionError for anything else."""
    try:
        if Path(path).stat().st_size > MAX_BYTES:
            raise OptionError(f"{path} is too large: at most {MAX_BYTES:,} bytes are read.")
        return json.loads(Path(path).read_bytes(), parse_constant=_no_constant)
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


def make_record(
    segmentation: dict[str, Any],
    predicted_iou: float = 1.0,
    *,
    prompt: dict[str, Any] | None = None,
    label: str | None = None,
    stability_score: float | None = None,
    crop_box: tuple[float, float, float, float] | None = None,
    detection_score: float | None = None,
) -> MaskRecord:
    """A record whose area and box are those of the mask. predicted_iou: 1 where the format has no score."""
    x0, y0, x1, y1 = rle.box(segmentation) or (0, 0, 0, 0)
    return MaskRecord(
        segmentation=segmentation,
        area=rle.area(segmentation),
        box=(x0, y0, x1, y1),
        predicted_iou=predicted_iou,
        prompt=prompt,
        label=label,
        stability_score=stability_score,
        crop_box=crop_box,
        detection_score=detection_score,
    )


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


def _reason(error: Exception) -> str:
    if isinstance(error, OSError):
        return error.strerror or str(error)
    return "it is nested too deeply" if isinstance(error, RecursionError) else " ".join(str(error).split())
