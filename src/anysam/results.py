"""What comes out: the masks of one prompt, and the record of one mask that is kept. Writes no files."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from anysam.errors import OptionError
from anysam.masks import decode_rle, encode_rle, mask_area, mask_to_box
from anysam.prompts import Prompt
from anysam.rle import read_rle


@dataclass(frozen=True, eq=False)
class Prediction:
    """The C masks a model proposes for one prompt on one image.

    masks: (C, H, W) bool, original-image size. iou_predictions: (C,) float32, the model's own estimate of each mask's
    IoU with the object, about 0 to 1. low_res_logits: (C, h, w) float32, in the model's frame, where > 0 is the mask;
    one row of it is a `Prompt.low_res_logits`. extras: what else a model says of each mask, (C, ...) float32 by name,
    for example Tokenize Anything's "semantic_tokens" (C, 256). Raises OptionError when they do not belong together.
    """

    masks: np.ndarray
    iou_predictions: np.ndarray
    low_res_logits: np.ndarray
    extras: Mapping[str, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        shapes = self.masks.shape, self.iou_predictions.shape, self.low_res_logits.shape
        if [len(shape) for shape in shapes] != [3, 1, 3] or not shapes[0][0] == shapes[1][0] == shapes[2][0] > 0:
            raise OptionError(f"A prediction must be (C, H, W), (C,) and (C, h, w) with C at least 1, got {shapes}.")
        if any(len(value) != len(self.masks) for value in self.extras.values()):
            found = {name: value.shape for name, value in self.extras.items()}
            raise OptionError(f"A prediction's extras must be (C, ...) with C {len(self.masks)}, got {found}.")
        if self.masks.dtype != np.bool_:
            raise OptionError(f"A prediction's masks must be bool, got {self.masks.dtype}.")

    @property
    def best(self) -> int:
        """Index of the mask with the highest predicted IoU."""
        return int(np.argmax(self.iou_predictions))


@dataclass(frozen=True)
class MaskRecord:
    """One mask on its own, small enough to keep thousands, with a JSON form.

    segmentation: COCO RLE of the mask at original-image size. area: pixels. box: x0 y0 x1 y1 in pixels, right and
    bottom exclusive; all 0 when the mask is empty. predicted_iou: the model's estimate, about 0 to 1. prompt: the
    `Prompt.to_dict` it answers, or None. What everything mode knows besides: stability_score, 0 to 1: how little the
    mask changes with its threshold (NaN for a mask that is empty at both; null in JSON); crop_box: x0 y0 x1 y1 of the
    part of the image that the model saw; detection_score: 0 to 1, of the object whose box was the prompt.

    Words, each None where nobody asked for it. label: a name for the object. label_score: 0 to 1, how probable the name
    is among those considered (by FastSAM's rule for texts: the mask among all masks). label_scores: the best names
    considered, and for a text prompt the negatives, with their probabilities, best first. caption: a phrase.
    caption_score: 0 to 1, the geometric mean of its tokens' probabilities. similarity: of the mask's picture and the
    text that asked for it, as the image-text model says it.

    Raises OptionError when predicted_iou is not finite, which JSON cannot hold.
    """

    segmentation: dict[str, Any]
    area: int
    box: tuple[float, float, float, float]
    predicted_iou: float
    prompt: dict[str, Any] | None = None
    label: str | None = None
    stability_score: float | None = None
    crop_box: tuple[float, float, float, float] | None = None
    detection_score: float | None = None
    label_score: float | None = None
    label_scores: dict[str, float] | None = None
    caption: str | None = None
    caption_score: float | None = None
    similarity: float | None = None

    def __post_init__(self) -> None:
        if not math.isfinite(self.predicted_iou):
            raise OptionError(
                f"The predicted IoU of a mask is {self.predicted_iou}, not a number; the weights are damaged or "
                "the number format is too narrow for this model: use float32."
            )

    @classmethod
    def from_mask(
        cls, mask: np.ndarray, predicted_iou: float, prompt: Prompt | None = None, label: str | None = None
    ) -> "MaskRecord":
        """Record a mask (H, W) bool. Raises OptionError for anything but a bool array."""
        box = mask_to_box(mask)
        x0, y0, x1, y1 = (0.0, 0.0, 0.0, 0.0) if box is None else box.tolist()
        return cls(
            segmentation=encode_rle(mask),
            area=mask_area(mask),
            box=(x0, y0, x1, y1),
            predicted_iou=float(predicted_iou),
            prompt=None if prompt is None else prompt.to_dict(),
            label=label,
        )

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of the image the mask belongs to."""
        height, width = self.segmentation["size"]
        return int(height), int(width)

    def to_mask(self) -> np.ndarray:
        """The mask (H, W) bool. Raises OptionError when the segmentation is damaged."""
        return decode_rle(self.segmentation)

    def to_dict(self) -> dict[str, Any]:
        """JSON form, keys as the fields; `box` is x0 y0 x1 y1 (COCO's own x y w h is written by `outputs`)."""
        return {
            "segmentation": dict(self.segmentation),
            "area": self.area,
            "box": list(self.box),
            "predicted_iou": self.predicted_iou,
            "prompt": self.prompt,
            "label": self.label,
            "stability_score": _finite(self.stability_score),
            "crop_box": None if self.crop_box is None else list(self.crop_box),
            "detection_score": _finite(self.detection_score),
            "label_score": _finite(self.label_score),
            "label_scores": _scores(self.label_scores),
            "caption": self.caption,
            "caption_score": _finite(self.caption_score),
            "similarity": _finite(self.similarity),
        }

    @classmethod
    def from_dict(cls, form: Mapping[str, Any]) -> "MaskRecord":
        """Restore `to_dict`. Raises OptionError for a missing key, a malformed value or damaged run lengths."""
        try:
            x0, y0, x1, y1 = (float(side) for side in form["box"])
            crop_box = None if form.get("crop_box") is None else [float(side) for side in form["crop_box"]]
            if crop_box is not None and len(crop_box) != 4:
                raise ValueError("crop_box")
            record = cls(
                segmentation=dict(form["segmentation"]),
                area=int(form["area"]),
                box=(x0, y0, x1, y1),
                predicted_iou=float(form["predicted_iou"]),
                prompt=form.get("prompt"),
                label=form.get("label"),
                stability_score=_number(form.get("stability_score")),
                crop_box=None if crop_box is None else (crop_box[0], crop_box[1], crop_box[2], crop_box[3]),
                detection_score=_number(form.get("detection_score")),
                label_score=_number(form.get("label_score")),
                label_scores=_scores(form.get("label_scores")),
                caption=form.get("caption"),
                caption_score=_number(form.get("caption_score")),
                similarity=_number(form.get("similarity")),
            )
        except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
            raise OptionError(
                "A mask record must have segmentation (COCO RLE), area, box (x0 y0 x1 y1) and predicted_iou, "
                f"but this one is malformed at {error}."
            ) from error
        read_rle(record.segmentation)  # whether it is whole, without the mask itself
        return record


def _finite(value: float | None) -> float | None:
    """JSON has no NaN."""
    return float(value) if value is not None and math.isfinite(value) else None


def _number(value: Any) -> float | None:
    return None if value is None else float(value)


def _scores(value: Any) -> dict[str, float] | None:
    return None if value is None else {str(name): float(score) for name, score in value.items()}
