"""What projects consist of, in the form that the API answers with, and how what comes in is checked. No database."""

import json
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from anysam import rle
from anysam.errors import AnySamError
from anysam.prompts import Prompt, validate_prompt
from anysam.serve.projects.errors import refused

Source = Literal["click", "box", "scribble", "text", "everything", "brush", "import"]

MAX_NAME = 200  # characters of a name
MAX_FILE_NAME_BYTES = 255  # as file systems have it
MAX_LABEL = 1000  # characters
MAX_SCORE = 1e9
MAX_PROMPT_BYTES = 2 * 1024**2  # of JSON; logits of 256 x 256 take 350 kB

_COLOUR = re.compile(r"#[0-9a-f]{6}", re.IGNORECASE | re.ASCII)


@dataclass(frozen=True)
class Project:
    """A project, and how many images and annotations it has. Times are ISO 8601 in UTC."""

    id: str
    name: str
    created_at: str
    updated_at: str
    images: int
    annotations: int


@dataclass(frozen=True)
class Category:
    """A name for objects. id: from 1 in its project, never used twice. colour: #rrggbb."""

    id: int
    name: str
    colour: str


@dataclass(frozen=True)
class ProjectImage:
    """An image of a project. size: (H, W) upright. bytes: of its file. annotations: how many."""

    id: str
    name: str
    size: tuple[int, int]
    bytes: int
    annotations: int
    created_at: str


@dataclass(frozen=True)
class ImageFile:
    """The file of an image as it was uploaded. media_type: found in its bytes, not said by anyone."""

    data: bytes
    media_type: str
    sha256: str


@dataclass(frozen=True)
class Segmentation:
    """COCO's run lengths of a mask. size: [H, W] of the image. counts: its string."""

    size: tuple[int, int]
    counts: str


@dataclass(frozen=True)
class Annotation:
    """An object on an image. segmentation: COCO RLE. area: pixels. box: x0 y0 x1 y1, all 0 for an empty mask.

    version: the number of the change that made it what it is, which grows in the whole project; see history.
    """

    id: str
    segmentation: Segmentation
    category_id: int | None
    prompt: dict[str, Any] | None
    predicted_iou: float | None
    label: str | None
    source: Source
    area: int
    box: tuple[float, float, float, float]
    version: int
    created_at: str
    updated_at: str


@dataclass(frozen=True)
class NewAnnotation:
    """An annotation to be saved, made by `check_annotation`. prompt: `Prompt.to_dict` as JSON."""

    id: str
    segmentation: Segmentation
    area: int
    box: tuple[int, int, int, int]
    category_id: int | None
    prompt: str | None
    predicted_iou: float | None
    label: str | None
    source: Source


@dataclass(frozen=True)
class Event:
    """A change. before, after: what it was and became, None where it was not there; forms as the API's.

    action: for example annotation.create, annotation.change, annotation.delete, image.add, project.rename.
    """

    seq: int
    time: str
    action: str
    image_id: str | None
    annotation_id: str | None
    before: dict[str, Any] | None
    after: dict[str, Any] | None


def check_annotation(
    annotation_id: str,
    segmentation: Mapping[str, Any],
    size: tuple[int, int],
    *,
    category_id: int | None = None,
    prompt: Mapping[str, Any] | None = None,
    predicted_iou: float | None = None,
    label: str | None = None,
    source: Source = "import",
) -> NewAnnotation:
    """An annotation of an image of `size` (H, W), ready to be saved; no mask is unfolded.

    Raises ProjectError (422) for run lengths that are damaged or of another size, for a prompt that is malformed or
    outside of the image, for a score that is no reasonable number and for a label that cannot be kept.
    """
    runs, own = _read(segmentation)
    if own != size:
        raise refused(
            f"The segmentation is for {own[1]}x{own[0]} pixels and the image has {size[1]}x{size[0]}; "
            "give run lengths at the original size, as [H, W]."
        )
    if predicted_iou is not None and not abs(predicted_iou) <= MAX_SCORE:
        raise refused(f"predicted_iou must be a number of about 0 to 1, got {predicted_iou}.")
    if label is not None:
        check_label(label)
    x0, y0, x1, y1 = rle.spans_to_box(rle.runs_to_spans(runs), size[0]) or (0, 0, 0, 0)
    return NewAnnotation(
        id=annotation_id,
        segmentation=Segmentation(size, rle.runs_to_counts(runs)),
        area=int(runs[1::2].sum()),
        box=(x0, y0, x1, y1),
        category_id=category_id,
        prompt=None if prompt is None else check_prompt(prompt, size),
        predicted_iou=None if predicted_iou is None else float(predicted_iou),
        label=label,
        source=source,
    )


def check_prompt(prompt: Mapping[str, Any], size: tuple[int, int]) -> str:
    """The JSON of a prompt on an image of `size` (H, W). Raises ProjectError (422)."""
    mask = prompt.get("mask")
    if mask is not None:  # before it is unfolded, which a few characters can make very large
        own = mask.get("size") if isinstance(mask, Mapping) else None
        if not isinstance(own, (list, tuple)) or list(own) != list(size):
            raise refused(f"The prompt's mask must have the size [H, W] of the image, {list(size)}.")
    try:
        checked = Prompt.from_dict(prompt)
        validate_prompt(checked, size)
        form = json.dumps(checked.to_dict(), separators=(",", ":"), allow_nan=False)
    except AnySamError as error:
        raise refused(f"The prompt is not accepted: {error}") from error
    except (OverflowError, RecursionError, ValueError) as error:
        raise refused(f"The prompt is not accepted: {error}.") from error
    if len(form) > MAX_PROMPT_BYTES:
        raise refused(f"The prompt takes {len(form):,} bytes; at most {MAX_PROMPT_BYTES:,} are kept.")
    if checked.text is not None and not _is_storable(checked.text):
        raise refused("The prompt's text has characters that cannot be kept, such as NUL.")
    return form


def check_name(name: str, what: str) -> str:
    """A name of 1 to MAX_NAME characters, not only spaces, on one line. Raises ProjectError (422)."""
    if not 1 <= len(name) <= MAX_NAME or not name.strip():
        raise refused(f"The name of {what} must have 1 to {MAX_NAME} characters, not only spaces, got {len(name)}.")
    if any(unicodedata.category(letter) in ("Cc", "Cs", "Zl", "Zp") for letter in name):
        raise refused(f"The name of {what} has a line break or another control character; leave it out.")
    return name


def check_file_name(name: str) -> str:
    """The name of an image, a single part of a path. Raises ProjectError (422)."""
    check_name(name, "an image")
    if "/" in name or "\\" in name or name in (".", "..") or len(name.encode()) > MAX_FILE_NAME_BYTES:
        raise refused(
            f"The name of an image must be a file name without folders of at most {MAX_FILE_NAME_BYTES} bytes, "
            f"got {name[:60]!r}."
        )
    return name


def check_label(label: str) -> str:
    """A label of 1 to MAX_LABEL characters. Raises ProjectError (422)."""
    if not 1 <= len(label) <= MAX_LABEL or not _is_storable(label):
        raise refused(f"A label must have 1 to {MAX_LABEL} characters, none of them NUL, or be null.")
    return label


def check_colour(colour: str) -> str:
    """A colour #rrggbb, in lower case. Raises ProjectError (422)."""
    if not _COLOUR.fullmatch(colour):
        raise refused(f"A colour must be #rrggbb, for example #ff8800, got {colour[:20]!r}.")
    return colour.lower()


def iso_time(microseconds: int) -> str:
    """Microseconds since 1970 as ISO 8601 in UTC."""
    seconds, rest = divmod(microseconds, 1_000_000)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{rest:06d}Z"


def form_of(item: Project | Category | ProjectImage | Annotation | Event) -> dict[str, Any]:
    """The JSON form of an item: its fields by name."""
    form = dict(vars(item))
    if isinstance(item, Annotation):
        form["segmentation"] = dict(vars(item.segmentation))
    return form


def _read(segmentation: Mapping[str, Any]) -> tuple[Any, tuple[int, int]]:
    try:
        return rle.read_rle(segmentation)
    except AnySamError as error:
        raise refused(str(error)) from error


def _is_storable(text: str) -> bool:
    return "\0" not in text and not any(0xD800 <= ord(letter) <= 0xDFFF for letter in text)
