"""What the user points at, with points, a box, a mask, an outline or a stroke in original-image pixels, or says in
words. No torch, no model.

Coordinates are x right, y down, measured in pixels of the original image with 0 0 at its top left corner. Boxes are
x0 y0 x1 y1, sizes (H, W). A `Prompt` is what was said; `resolve_prompt` turns it into what models understand.
"""

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from anysam.errors import OptionError, PromptError
from anysam.masks import decode_rle, encode_rle, mask_to_box, polygon_to_mask

SCRIBBLE_POINTS = 8  # at most this many points stand for a stroke: SAM was trained with up to about as many clicks
SCRIBBLE_SPACING = 10.0  # pixels between them at least, so that a dab of the brush is one click


@dataclass(frozen=True, eq=False)
class Prompt:
    """One object, pointed at in one or several ways, or said in words. Lists become arrays; arrays are copied.

    points: (N, 2), x y, pixels; with labels (N,) of 1 (on the object) or 0 (not on it); without labels all are 1.
    box: (4,), x0 y0 x1 y1, pixels, x1 > x0 and y1 > y0.
    mask: (H, W) bool (or integers of 0 and one other value) at the size of the image: where the object roughly is.
    low_res_logits: (h, w) float32, one row of an earlier `Prediction.low_res_logits`, to refine it.
    polygon: (N >= 3, 2), x y: the object's rough outline; becomes a mask.
    scribble, scribble_negative: (N >= 1, 2), x y: a stroke on the object, or on the background; become points.
    text: what to look for in the whole image, for example "the red car"; stands alone. Needs an image-text model, see
    `Model.find`. Line breaks and repeated spaces become one space.

    At most one of mask, low_res_logits and polygon. Raises PromptError when something is malformed or nothing is given;
    an empty list of points counts as nothing.
    """

    points: np.ndarray | None = None
    labels: np.ndarray | None = None
    box: np.ndarray | None = None
    mask: np.ndarray | None = None
    low_res_logits: np.ndarray | None = None
    polygon: np.ndarray | None = None
    scribble: np.ndarray | None = None
    scribble_negative: np.ndarray | None = None
    text: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "text", _text(self.text))
        points = _vertices("points", self.points, least=0)
        checked = {
            "points": points,
            "labels": _labels(self.labels, 0 if points is None else len(points)),
            "box": _box(self.box),
            "mask": _mask(self.mask),
            "low_res_logits": _low_res_logits(self.low_res_logits),
            "polygon": _vertices("polygon", self.polygon, least=3),
            "scribble": _vertices("scribble", self.scribble, least=1),
            "scribble_negative": _vertices("scribble_negative", self.scribble_negative, least=1),
        }
        for name, value in checked.items():
            if value is not None:
                value.setflags(write=False)
            object.__setattr__(self, name, value)
        masks = [name for name in ("mask", "low_res_logits", "polygon") if checked[name] is not None]
        if len(masks) > 1:
            raise PromptError(f"A prompt takes one of mask, low_res_logits and polygon, got {' and '.join(masks)}.")
        given = [name for name, value in checked.items() if value is not None]
        if self.text is not None and given:
            raise PromptError(f"A text prompt stands alone, got text and {' and '.join(given)}.")
        if self.text is None and not given:
            raise PromptError("The prompt is empty; give points, a box, a mask, a polygon, a scribble or a text.")

    def to_dict(self) -> dict[str, Any]:
        """JSON form: what was given, as lists; a mask as COCO RLE; logits as their shape and base64 of float32."""
        lists = {
            "points": self.points,
            "labels": self.labels,
            "box": self.box,
            "polygon": self.polygon,
            "scribble": self.scribble,
            "scribble_negative": self.scribble_negative,
        }
        form: dict[str, Any] = {name: value.tolist() for name, value in lists.items() if value is not None}
        if self.mask is not None:
            form["mask"] = encode_rle(self.mask)
        if self.low_res_logits is not None:
            data = base64.b64encode(self.low_res_logits.astype("<f4").tobytes()).decode("ascii")
            form["low_res_logits"] = {"shape": list(self.low_res_logits.shape), "float32": data}
        if self.text is not None:
            form["text"] = self.text
        return form

    @classmethod
    def from_dict(cls, form: Mapping[str, Any]) -> "Prompt":
        """Restore `to_dict`. Raises PromptError for an unknown key or a malformed value."""
        if not isinstance(form, Mapping):
            raise PromptError(f"A prompt must be a JSON object, got {type(form).__name__}.")
        known = [field.name for field in fields(cls)]
        unknown = sorted(set(form) - set(known))
        if unknown:
            raise PromptError(f"A prompt has no key '{unknown[0]}'; accepted are {', '.join(known)}.")
        mask, logits = form.get("mask"), form.get("low_res_logits")
        try:
            return cls(
                points=form.get("points"),
                labels=form.get("labels"),
                box=form.get("box"),
                mask=None if mask is None else decode_rle(mask),
                low_res_logits=None if logits is None else _logits_from_dict(logits),
                polygon=form.get("polygon"),
                scribble=form.get("scribble"),
                scribble_negative=form.get("scribble_negative"),
                text=form.get("text"),
            )
        except OptionError as error:  # from decode_rle
            raise PromptError(str(error)) from error


@dataclass(frozen=True, eq=False)
class ResolvedPrompt:
    """A prompt in the terms every model understands, checked against one image; original-image pixels.

    points: (N, 2) float64, x y, N may be 0. labels: (N,) int64, 1 foreground, 0 background. box: (4,) float64 xyxy.
    mask: (H, W) bool. low_res_logits: (h, w) float32.
    """

    points: np.ndarray
    labels: np.ndarray
    box: np.ndarray | None
    mask: np.ndarray | None
    low_res_logits: np.ndarray | None


def validate_prompt(prompt: Prompt, image_size: tuple[int, int]) -> None:
    """Check a prompt against an image of `image_size` (H, W).

    Raises PromptError for points, outlines or strokes outside of it (its edges included: x 0 to W, y 0 to H), a box
    that does not touch it, or a mask of another size. A box may reach over the edge.
    """
    height, width = image_size
    frame = f"the image, which is {width}x{height} pixels (x 0 to {width}, y 0 to {height})"
    named = {
        "point": prompt.points,
        "polygon vertex": prompt.polygon,
        "scribble point": prompt.scribble,
        "scribble_negative point": prompt.scribble_negative,
    }
    for name, vertices in named.items():
        if vertices is None:
            continue
        outside = np.flatnonzero(((vertices < 0) | (vertices > (width, height))).any(axis=1))
        if len(outside):
            x, y = vertices[outside[0]]
            raise PromptError(f"The {name} {x:g},{y:g} lies outside {frame}; points are original-image pixels, x,y.")
    if prompt.box is not None:
        x0, y0, x1, y1 = prompt.box
        if x0 >= width or y0 >= height or x1 <= 0 or y1 <= 0:
            raise PromptError(f"The box {x0:g},{y0:g},{x1:g},{y1:g} lies outside {frame}; boxes are x0,y0,x1,y1.")
    if prompt.mask is not None and prompt.mask.shape != (height, width):
        mask_height, mask_width = prompt.mask.shape
        raise PromptError(
            f"The mask is {mask_width}x{mask_height} but the image is {width}x{height}; "
            "give a mask of the original image's size."
        )


def resolve_prompt(prompt: Prompt, image_size: tuple[int, int], max_points: int | None = None) -> ResolvedPrompt:
    """Check a prompt against an image of `image_size` (H, W) and reduce it to points, a box and a mask.

    max_points: how many points the model takes, a box counting as two; strokes become at most as many as there is room
    for, but at least one each.

    A polygon is filled, strokes become points (the clicks first, then the stroke on the object, then the one on the
    background). A mask with neither points nor a box is joined by its own tight box: SAM's training always had a
    click or a box beside the mask, and without one its answer is arbitrary. low_res_logits are passed on as they are.
    Raises PromptError as `validate_prompt` does, for a polygon too thin to cover a pixel, and for a text, which says
    nothing about places.
    """
    if prompt.text is not None:
        raise PromptError(
            f"The text {_shorten(prompt.text)} cannot be found in an encoded image alone; use Model.find with the "
            "photograph and an image-text model (anysam.load_image_text)."
        )
    validate_prompt(prompt, image_size)
    points = [np.zeros((0, 2)) if prompt.points is None else prompt.points]
    labels = [np.zeros(0, dtype=np.int64) if prompt.labels is None else prompt.labels]
    strokes = [(s, label) for s, label in ((prompt.scribble, 1), (prompt.scribble_negative, 0)) if s is not None]
    most = SCRIBBLE_POINTS
    if max_points is not None and strokes:
        room = max_points - len(points[0]) - (0 if prompt.box is None else 2)
        most = min(most, max(1, room // len(strokes)))
    for stroke, label in strokes:
        points.append(stroke_to_points(stroke, most))
        labels.append(np.full(len(points[-1]), label, dtype=np.int64))
    mask, box = prompt.mask, prompt.box
    if prompt.polygon is not None:
        mask = polygon_to_mask(prompt.polygon, image_size)
        if not mask.any():
            raise PromptError("The polygon covers no pixel of the image; draw it around the object, not along a line.")
    all_points = np.concatenate(points)  # (N, 2)
    if mask is not None and box is None and not len(all_points):
        box = mask_to_box(mask)
    return ResolvedPrompt(all_points, np.concatenate(labels), box, mask, prompt.low_res_logits)


def stroke_to_points(stroke: np.ndarray, most: int = SCRIBBLE_POINTS) -> np.ndarray:
    """Points (N, 2) float64 evenly spaced along a stroke (M, 2): 1 to `most` of them, never at its very ends.

    The stroke is cut into equal lengths of at least SCRIBBLE_SPACING pixels and each part's middle is taken, because
    hands start and end strokes close to the border of what they mark.
    """
    steps = np.hypot(*np.diff(stroke, axis=0).T)  # (M-1,)
    along = np.concatenate(([0.0], np.cumsum(steps)))  # (M,)
    count = int(np.clip(along[-1] // SCRIBBLE_SPACING, 1, most))
    at = (np.arange(count) + 0.5) / count * along[-1]
    return np.stack([np.interp(at, along, stroke[:, 0]), np.interp(at, along, stroke[:, 1])], axis=1)  # (N, 2)


def _numbers(name: str, value: ArrayLike, shape: str) -> np.ndarray:
    """A float64 copy of a list or array of finite numbers."""
    try:
        array = np.array(value)
        if array.size and array.dtype.kind not in "biuf":
            raise ValueError(array.dtype)
        array = array.astype(np.float64)
    except (RuntimeError, TypeError, ValueError) as error:  # RuntimeError: a tensor that records gradients
        raise PromptError(f"{name} must be numbers of shape {shape}, got {_shorten(value)}.") from error
    if not np.isfinite(array).all():
        raise PromptError(f"{name} must be finite numbers, got {_shorten(value)}.")
    return array


def _vertices(name: str, value: ArrayLike | None, least: int) -> np.ndarray | None:
    shape = "(N, 2)" if least == 0 else f"(N, 2) with N at least {least}"
    if value is None:
        return None
    array = _numbers(name, value, shape)
    if array.size == 0 and least == 0:
        return None
    if array.ndim != 2 or array.shape[1] != 2 or len(array) < least:
        hint = "; write one point as [[x, y]]" if array.shape == (2,) else ""
        raise PromptError(f"{name} must be {shape}, x y in pixels, got {array.shape}{hint}.")
    return array


def _labels(value: ArrayLike | None, count: int) -> np.ndarray | None:
    if value is None:
        return np.ones(count, dtype=np.int64) if count else None
    array = _numbers("labels", value, "(N,)")
    if array.ndim != 1 or len(array) != count:
        raise PromptError(
            f"labels must be one per point: got {array.size} labels for {count} points, of shape {array.shape}."
        )
    if not np.isin(array, (0, 1)).all():
        raise PromptError(f"labels must be 1 (on the object) or 0 (not on it), got {_shorten(value)}.")
    return array.astype(np.int64) if count else None


def _box(value: ArrayLike | None) -> np.ndarray | None:
    if value is None:
        return None
    array = _numbers("box", value, "(4,)")
    if array.shape != (4,):
        raise PromptError(f"box must be (4,), x0 y0 x1 y1, got {array.shape}; several boxes are several prompts.")
    x0, y0, x1, y1 = array
    if x1 <= x0 or y1 <= y0:
        raise PromptError(
            f"box must have x1 > x0 and y1 > y0, got {x0:g},{y0:g},{x1:g},{y1:g} "
            f"({x1 - x0:g} wide, {y1 - y0:g} high); boxes are x0,y0,x1,y1, not x,y,width,height."
        )
    return array


def _mask(value: ArrayLike | None) -> np.ndarray | None:
    if value is None:
        return None
    try:
        array = np.asarray(value)
    except ValueError as error:  # rows of different lengths
        raise PromptError(f"mask must be (H, W) bool at the size of the image, got {_shorten(value)}.") from error
    if array.ndim != 2 or array.dtype.kind not in "biu":
        raise PromptError(f"mask must be (H, W) bool at the size of the image, got {array.dtype} {array.shape}.")
    foreground = array != 0  # a copy
    if not foreground.any():
        raise PromptError("mask is empty: no pixel is set; give points or a box instead.")
    values = array[foreground]
    if (values != values[0]).any():
        raise PromptError("mask must be binary: 0 and one other value; pick one object with `labels == n` first.")
    return foreground


def _low_res_logits(value: ArrayLike | None) -> np.ndarray | None:
    if value is None:
        return None
    array = _numbers("low_res_logits", value, "(h, w)").astype(np.float32)
    if array.ndim != 2 or not array.size:
        hint = "; take one row, such as prediction.low_res_logits[prediction.best]" if array.ndim == 3 else ""
        raise PromptError(f"low_res_logits must be (h, w), got {array.shape}{hint}.")
    return array


def _text(value: object) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str):
        raise PromptError(f"text must be a string, got {type(value).__name__}; several texts are several prompts.")
    words = " ".join(value.split())
    if not words:
        raise PromptError(f"text is empty, got {value!r}; write what to look for, for example 'the red car'.")
    return words


def _logits_from_dict(form: Mapping[str, Any]) -> np.ndarray:
    try:
        data = np.frombuffer(base64.b64decode(form["float32"], validate=True), dtype="<f4")
        return data.reshape([int(side) for side in form["shape"]])  # (h, w)
    except (KeyError, TypeError, ValueError, OverflowError, binascii.Error) as error:
        raise PromptError(
            'low_res_logits must be {"shape": [h, w], "float32": base64 of h x w little-endian numbers}.'
        ) from error


def _shorten(value: object) -> str:
    value = value.tolist() if isinstance(value, np.ndarray) else value  # as it was typed, not as NumPy shows it
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else f"{text[:57]}..."
