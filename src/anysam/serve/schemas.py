"""The JSON forms of requests and answers, for their checks and for the OpenAPI document.

Prompts and masks have the forms that the commands print: `anysam.Prompt.to_dict` and `anysam.MaskRecord.to_dict`.
"""

import dataclasses
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from anysam import rle
from anysam.automatic.options import MOST_POINTS_PER_SIDE, EverythingOptions
from anysam.automatic.presets import preset
from anysam.errors import OptionError, PromptError
from anysam.prompts import Prompt
from anysam.results import MaskRecord

MAX_PROMPTS = 256
MAX_POINTS = 256  # of one prompt: the decoder compares each with each
MAX_VERTICES = 10_000  # of an outline or a stroke
MAX_MASK_PIXELS = 2**29  # of the masks and outlines of one request, unfolded to a byte a pixel
MAX_MASKS = 2000
MAX_SIDE = 1_000_000
MAX_POINTS_PER_SIDE = min(64, MOST_POINTS_PER_SIDE)
MAX_CROP_LAYERS = 1

Number = Annotated[float, Field(ge=-1e7, le=1e7, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Score = Annotated[float, Field(ge=-1e6, le=1e6, allow_inf_nan=False)]
Point = Annotated[list[Number], Field(min_length=2, max_length=2, description="x y in pixels")]
Box = Annotated[list[Number], Field(min_length=4, max_length=4, description="x0 y0 x1 y1 in pixels")]
Side = Annotated[int, Field(ge=1, le=MAX_SIDE)]
Size = Annotated[list[Side], Field(min_length=2, max_length=2, description="[height, width]")]
Label = Annotated[int, Field(ge=0, le=1)]
Words = Annotated[str, Field(min_length=1, max_length=500)]


class Strict(BaseModel):
    """A body with these keys and no others, of exactly these types."""

    model_config = ConfigDict(extra="forbid", strict=True)


class RleBody(Strict):
    """A mask as COCO's run lengths: a string, or a list of whole numbers."""

    size: Size
    counts: Annotated[str, Field(max_length=20_000_000)] | list[Annotated[int, Field(ge=0, le=2**40)]]


class LogitsBody(Strict):
    """Low-resolution logits: their shape [h, w], and base64 of float32, little-endian, row by row."""

    shape: Annotated[list[Annotated[int, Field(ge=1, le=4096)]], Field(min_length=2, max_length=2)]
    float32: Annotated[str, Field(max_length=24_000_000)]


class PromptBody(Strict):
    """What one object is pointed at with, in pixels of the original image; `anysam.Prompt` says more."""

    points: Annotated[list[Point], Field(max_length=MAX_POINTS)] | None = None
    labels: Annotated[list[Label], Field(max_length=MAX_POINTS)] | None = Field(None, description="1 on, 0 beside it")
    box: Box | None = None
    mask: RleBody | None = None
    low_res_logits: LogitsBody | None = None
    polygon: Annotated[list[Point], Field(max_length=MAX_VERTICES)] | None = None
    scribble: Annotated[list[Point], Field(max_length=MAX_VERTICES)] | None = None
    scribble_negative: Annotated[list[Point], Field(max_length=MAX_VERTICES)] | None = None
    text: Words | None = None


class MaskBody(Strict):
    """One mask and what is known of it; `anysam.MaskRecord` says more."""

    segmentation: RleBody
    area: Annotated[int, Field(ge=0, le=2**40)]
    box: Box
    predicted_iou: Score
    prompt: PromptBody | None = None
    label: str | None = None
    stability_score: Score | None = None
    crop_box: Box | None = None
    detection_score: Score | None = None
    label_score: Score | None = None
    label_scores: dict[str, Score] | None = None
    caption: str | None = None
    caption_score: Score | None = None
    similarity: Score | None = None


class UrlBody(Strict):
    """An image that the server fetches."""

    url: Annotated[str, Field(min_length=1, max_length=2000)]


class PredictBody(Strict):
    """What to predict. multimask: true for several masks a prompt, false for one, null as the model's authors do."""

    prompts: Annotated[list[PromptBody], Field(min_length=1, max_length=MAX_PROMPTS)]
    multimask: bool | None = None
    low_res_logits: bool = Field(False, description="whether to answer with the logits, to refine them later")


class EverythingSettings(Strict):
    """What may be set of everything mode; `anysam.EverythingOptions` says more. What is left out is the preset's."""

    points_per_side: Annotated[int, Field(ge=1, le=MAX_POINTS_PER_SIDE)] | None = None
    pred_iou_thresh: Share | None = None
    stability_score_thresh: Share | None = None
    box_nms_thresh: Share | None = None
    crop_n_layers: Annotated[int, Field(ge=0, le=MAX_CROP_LAYERS)] | None = None
    min_mask_region_area: Annotated[int, Field(ge=0, le=2**31)] | None = None
    levels: Annotated[list[Literal["whole", "part", "subpart"]], Field(min_length=1, max_length=3)] | None = None
    min_area: Annotated[int, Field(ge=0, le=2**31)] | None = None
    max_masks: Annotated[int, Field(ge=1, le=10_000)] | None = None
    merge_duplicates: Share | None = None
    panoptic: bool | None = None


class EverythingBody(Strict):
    """How to find all masks: a preset, and what differs from it."""

    preset: Literal["default", "whole", "part", "subpart", "dense", "fast"] = "default"
    options: EverythingSettings = EverythingSettings()


class DescribeBody(Strict):
    """What to describe: prompts, or masks that are there already; one of the two."""

    prompts: Annotated[list[PromptBody], Field(min_length=1, max_length=MAX_PROMPTS)] | None = None
    masks: Annotated[list[MaskBody], Field(min_length=1, max_length=MAX_MASKS)] | None = None


class ImageAnswer(BaseModel):
    """An image on its way. queue_position: 0 is encoded next; null when it does not wait."""

    id: str
    size: list[int]
    state: Literal["queued", "encoding", "ready", "failed"]
    model: str
    queue_position: int | None
    error: str | None


class PromptAnswer(BaseModel):
    """The masks for one prompt. best: which has the highest predicted IoU; null without masks."""

    masks: list[dict[str, Any]]
    best: int | None
    low_res_logits: list[LogitsBody] | None = None


class PredictAnswer(BaseModel):
    """Answers in the order of the prompts. size: [height, width] of the image."""

    size: list[int]
    results: list[PromptAnswer]


class MasksAnswer(BaseModel):
    """Masks of an image of size [height, width]."""

    size: list[int]
    masks: list[dict[str, Any]]


class ModelAnswer(BaseModel):
    """A model of the catalogue."""

    name: str
    family: str
    licence: str
    prompts: list[str]
    served: bool


class LimitsAnswer(BaseModel):
    """The largest image."""

    upload_bytes: int
    pixels: int


class ServiceAnswer(BaseModel):
    """What this server has. presets: of everything mode, those that the served model knows."""

    models: list[ModelAnswer]
    served: str
    presets: list[str]
    text: bool
    describe: bool
    urls: bool
    projects: bool
    decoder: bool
    limits: LimitsAnswer
    version: str


def check_together(bodies: Sequence[PromptBody], size: tuple[int, int]) -> None:
    """Raises PromptError for more masks and outlines of an image (H, W) than a request may unfold."""
    masks = sum(each.mask is not None or each.polygon is not None for each in bodies)
    most = max(1, MAX_MASK_PIXELS // (size[0] * size[1]))
    if masks > most:
        raise PromptError(
            f"A request about an image of {size[1]}x{size[0]} pixels may have {most} masks and polygons, got {masks}; "
            "send several requests."
        )


def to_prompt(body: PromptBody, size: tuple[int, int]) -> Prompt:
    """Raises PromptError. A mask of another size than the image's (H, W) is refused before it takes memory."""
    if body.mask is not None:
        _check_size(body.mask, size)
    return Prompt.from_dict(body.model_dump(exclude_none=True))


def to_record(body: MaskBody, size: tuple[int, int]) -> MaskRecord:
    """Raises OptionError, PromptError. Area and box are the mask's own, whatever was said."""
    _check_size(body.segmentation, size)
    record = MaskRecord.from_dict(body.model_dump())
    area, box = rle.area(record.segmentation), rle.box(record.segmentation) or (0, 0, 0, 0)
    if (area, *box) != (record.area, *record.box):
        raise OptionError(
            f"A mask has an area of {area} and the box {list(box)}, but it says {record.area} and {list(record.box)}; "
            "send it as it was received."
        )
    return record


def to_everything_options(body: EverythingBody, variant: str) -> EverythingOptions:
    """The preset of a variant with what differs from it. Raises OptionError."""
    changes: dict[str, Any] = body.options.model_dump(exclude_none=True)
    if "levels" in changes:
        changes["levels"] = tuple(changes["levels"])
    return dataclasses.replace(preset(body.preset, variant), **changes)


def _check_size(mask: RleBody, size: tuple[int, int]) -> None:
    if tuple(mask.size) != size:
        raise PromptError(
            f"The mask is of an image of {mask.size[1]}x{mask.size[0]} pixels, but this one has {size[1]}x{size[0]}; "
            "give a mask of the original image's size."
        )
    try:
        rle.read_rle(mask.model_dump())
    except OptionError as error:
        raise PromptError(str(error)) from error
