"""Masks for many prompts of one image: a detector's boxes, or boxes and points that are given.

The detector's way is MobileSAMv2's "segment everything" (Zhang et al., 2023; ChaoningZhang/MobileSAM@34bbbfd,
MobileSAMv2/Inference.py, Apache-2.0): a prompt for each object found, one mask for each prompt, and no filters. There
all prompts, at most 320, are decoded at once and all masks held; here a few at a time.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike

from anysam import rle
from anysam.automatic.options import EverythingOptions
from anysam.automatic.span_regions import clean_spans
from anysam.encoded_image import EncodedImage
from anysam.errors import OptionError, PromptError
from anysam.models import InstanceModel, PromptableModel, SelectingModel
from anysam.prompts import Prompt, validate_prompt
from anysam.results import MaskRecord, Prediction

Progress = Callable[[float], None]

# What masks of prompts that are answered together may take: a part of max_memory, and at most so many bytes.
_SHARE, _MOST_BYTES = 4, 256 * 1024 * 1024
_MOST_PROMPTS = 64
_MASKS = 3  # that a prompt may have before the best is chosen


class PromptModel(Protocol):
    """What is asked of a model here; `anysam.Model` offers it."""

    @property
    def network(self) -> PromptableModel | InstanceModel: ...

    def encode(self, image: np.ndarray) -> EncodedImage: ...

    def predict(
        self, encoded: EncodedImage, prompt: list[Prompt], multimask: bool | None = None
    ) -> list[Prediction]: ...


def box_records(
    model: PromptModel,
    image: np.ndarray | EncodedImage,
    boxes: ArrayLike,
    options: EverythingOptions,
    *,
    scores: Sequence[float] | None = None,
    labels: Sequence[str | None] | None = None,
    progress: Progress | None = None,
) -> list[MaskRecord]:
    """One record for each box (N, 4), x0 y0 x1 y1 in pixels, in their order; [] for none.

    image: RGB uint8 (H, W, 3), or what the model made of it. scores: (N,), 0 to 1, of the objects in the boxes; become
    detection_score. labels: (N,), names. The mask is the one that the model's authors would take, the one with the
    highest predicted IoU where there are several; it is empty where the model sees nothing. Of the options max_memory
    and min_mask_region_area count.

    Raises PromptError, which says which box it is, for one without area or outside the image.
    """
    array = _rows("boxes", boxes, 4, "x0 y0 x1 y1")
    prompts = _prompts("Box", ({"box": box} for box in array), len(array))
    return prompt_records(model, image, prompts, options, scores=scores, labels=labels, progress=progress, name="Box")


def point_records(
    model: PromptModel,
    image: np.ndarray | EncodedImage,
    points: ArrayLike,
    options: EverythingOptions,
    *,
    labels: Sequence[str | None] | None = None,
    progress: Progress | None = None,
) -> list[MaskRecord]:
    """One record for each point (N, 2), x y in pixels, in their order; otherwise as `box_records`."""
    array = _rows("points", points, 2, "x y")
    prompts = _prompts("Point", ({"points": point[None]} for point in array), len(array))
    return prompt_records(model, image, prompts, options, labels=labels, progress=progress, name="Point")


def prompt_records(
    model: PromptModel,
    image: np.ndarray | EncodedImage,
    prompts: Sequence[Prompt],
    options: EverythingOptions,
    *,
    scores: Sequence[float] | None = None,
    labels: Sequence[str | None] | None = None,
    progress: Progress | None = None,
    name: str = "Prompt",
) -> list[MaskRecord]:
    """One record for each prompt, of any kinds, as `box_records`. name: what a prompt is called in an error."""
    for given, what in ((scores, "scores"), (labels, "labels")):
        if given is not None and len(given) != len(prompts):
            raise OptionError(f"{what} must be one for each of {len(prompts)} prompts, got {len(given)}.")
    if not prompts:
        return []
    encoded = image if isinstance(image, EncodedImage) else model.encode(image)
    for i, prompt in enumerate(prompts):  # before any is decoded
        try:
            validate_prompt(prompt, encoded.original_size)
        except PromptError as error:
            raise PromptError(f"{name} {i + 1} of {len(prompts)}: {error}") from error
    records = []
    at_once = _at_once(model, encoded.original_size, options)
    for start in range(0, len(prompts), at_once):
        lot = list(prompts[start : start + at_once])
        for i, prediction in enumerate(model.predict(encoded, lot), start=start):
            best = prediction.best
            records.append(
                record_of(
                    prediction.masks[best],
                    float(prediction.iou_predictions[best]),
                    min_region_area=options.min_mask_region_area,
                    prompt=prompts[i],
                    label=None if labels is None else labels[i],
                    detection_score=None if scores is None else float(scores[i]),
                )
            )
        if progress is not None:
            progress(len(records) / len(prompts))
    return records


def record_of(
    mask: np.ndarray,
    predicted_iou: float,
    *,
    part: rle.Box | None = None,
    min_region_area: int = 0,
    prompt: Prompt | None = None,
    label: str | None = None,
    detection_score: float | None = None,
) -> MaskRecord:
    """The record of a mask (H, W) bool.

    part: x0 y0 x1 y1 outside of which it is known to be empty. min_region_area: pixels; smaller holes are filled and
    smaller islands removed.
    """
    size = mask.shape[0], mask.shape[1]
    x0, y0, x1, y1 = (0, 0, size[1], size[0]) if part is None else part
    inside = mask[y0:y1, x0:x1]
    spans = rle.runs_to_spans(rle.mask_to_runs(inside))
    if part is not None:
        spans = rle.place_spans(spans, (y1 - y0, x1 - x0), (x0, y0), size)
    spans = clean_spans(spans, size, min_region_area)[0]
    left, top, right, bottom = rle.spans_to_box(spans, size[0]) or (0, 0, 0, 0)
    return MaskRecord(
        segmentation=rle.write_rle(rle.spans_to_runs(spans, mask.size), size),
        area=rle.spans_area(spans),
        box=(float(left), float(top), float(right), float(bottom)),
        predicted_iou=predicted_iou,
        prompt=None if prompt is None else prompt.to_dict(),
        label=label,
        detection_score=detection_score,
    )


def masks_at_once(size: tuple[int, int], options: EverythingOptions) -> int:
    """How many masks of `size` (H, W) may be held together; at least one."""
    budget = _MOST_BYTES if options.max_memory is None else min(_MOST_BYTES, options.max_memory // _SHARE)
    return max(1, budget // max(1, size[0] * size[1]))


def _at_once(model: PromptModel, size: tuple[int, int], options: EverythingOptions) -> int:
    if isinstance(model.network, SelectingModel):
        return _MOST_PROMPTS  # every call makes the masks of all objects, which are far more
    return max(1, min(_MOST_PROMPTS, masks_at_once(size, options) // _MASKS))


def _rows(name: str, values: ArrayLike, length: int, form: str) -> np.ndarray:
    """Given numbers as (N, length) float64. Raises PromptError for anything else."""
    try:
        array = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise PromptError(f"{name} must be numbers of shape (N, {length}), {form} in pixels; {error}.") from error
    if array.size == 0:
        return np.zeros((0, length))
    if array.ndim != 2 or array.shape[1] != length:
        raise PromptError(f"{name} must be (N, {length}), {form} in pixels, got {array.shape}.")
    return array


def _prompts(name: str, given: Iterator[dict[str, np.ndarray]], count: int) -> list[Prompt]:
    prompts = []
    for i, parts in enumerate(given):
        try:
            prompts.append(Prompt(box=parts.get("box"), points=parts.get("points")))
        except PromptError as error:
            raise PromptError(f"{name} {i + 1} of {count}: {error}") from error
    return prompts
