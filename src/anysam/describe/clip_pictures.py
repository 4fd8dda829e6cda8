"""Pictures as CLIP, SigLIP and SigLIP 2 take them, by what a checkpoint's preprocessor_config.json says.

Written here and not left to transformers, some of whose processors need torchvision, and which turn a picture over
several times. The arithmetic is that of its Pillow processors, to the last bit: resize by Pillow on 8-bit values, cut
or pad about the centre, then scale and normalise. CLIP's own program resizes by Pillow too; processors called "Fast" do
it by torchvision, which differs by a level or two of 255.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from anysam.errors import OptionError, WeightsError

# A picture so long and thin that scaling its short side up would make more pixels than this is resized only where the
# cut about the centre is.
_MAX_RESIZED = 16_000_000
_MAX_SIDE = 4096  # of what a network takes

# How finely SigLIP 2 looks for the largest size that has not too many patches.
_SCALE_RANGE = (1e-6, 100.0)
_SCALE_STEP = 1e-5

# Of R, G and B, where a file leaves them out: CLIP's and SigLIP's.
_CLIP_COLOURS = {"image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711]}
_SIGLIP_COLOURS = {"image_mean": 0.5, "image_std": 0.5}


@dataclass(frozen=True, eq=False)
class PictureRule:
    """How every picture becomes an array of one size.

    resize: the length of the shorter side, or (H, W), or None. crop: (H, W) about the centre, or None. resample:
    Pillow's number of a filter. levels: (3, 256) float32, what the network takes for each 8-bit value of R, G and B.
    """

    resize: int | tuple[int, int] | None
    crop: tuple[int, int] | None
    resample: int
    levels: np.ndarray

    @property
    def size(self) -> tuple[int, int] | None:
        """(H, W) of every result; None if it depends on the picture."""
        return self.crop or (self.resize if isinstance(self.resize, tuple) else None)


@dataclass(frozen=True, eq=False)
class PatchRule:
    """How a picture becomes at most `most` square patches of `side` pixels, its shape kept: SigLIP 2's NaFlex."""

    side: int
    most: int
    resample: int
    levels: np.ndarray


def require_picture(picture: object, number: int) -> np.ndarray:
    """The picture itself if it is (H, W, 3) uint8 with at least a pixel; else raises OptionError that names it."""
    if not isinstance(picture, np.ndarray):
        raise OptionError(f"Picture {number} must be an array (H, W, 3) of uint8, got {type(picture).__name__}.")
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3 or not picture.size:
        raise OptionError(
            f"Picture {number} must be (H, W, 3) uint8, RGB, of at least one pixel, got {picture.dtype} "
            f"{picture.shape}."
        )
    return picture


def picture_rule(form: Mapping[str, Any], square: bool) -> PictureRule:
    """What a preprocessor_config.json asks for.

    square: whether it is SigLIP's, for which a size of one number means a square, or CLIP's, for which it is the
    shorter side. Raises WeightsError, whose text completes a sentence, for what such processors do not do.
    """
    if form.get("do_pad") or form.get("do_thumbnail"):
        raise WeightsError("it asks for padding or thumbnails, which no CLIP or SigLIP processor does")
    resize = _size(form.get("size", {"shortest_edge": 224}), square) if form.get("do_resize", True) else None
    crop = None
    if form.get("do_center_crop", not square):
        crop = _pair(_size(form.get("crop_size", 224), square=True))
    return PictureRule(resize, crop, _resample(form.get("resample", 3)), _levels(form, square))


def patch_rule(form: Mapping[str, Any]) -> PatchRule:
    """The same for SigLIP 2's NaFlex. Raises WeightsError for impossible values."""
    side, most = form.get("patch_size", 16), form.get("max_num_patches", 256)
    return PatchRule(_length(side), _length(most), _resample(form.get("resample", 2)), _levels(form, square=True))


def prepared(picture: np.ndarray, rule: PictureRule) -> np.ndarray:
    """A picture (H, W, 3) uint8 -> (3, h, w) float32."""
    image = Image.fromarray(np.ascontiguousarray(picture))
    size = _resized((image.height, image.width), rule.resize)
    if rule.crop is not None and size[0] * size[1] > _MAX_RESIZED:
        return _normalised(_resized_centre(image, size, rule.crop, rule.resample), rule.levels)
    if rule.resize is not None:
        image = image.resize((size[1], size[0]), resample=rule.resample)
    pixels = np.asarray(image)
    return _normalised(pixels if rule.crop is None else _centre(pixels, rule.crop), rule.levels)


def patches(picture: np.ndarray, rule: PatchRule) -> tuple[np.ndarray, np.ndarray, tuple[int, int]]:
    """A picture (H, W, 3) uint8 -> patches (L, 3 side^2) float32, which of them are real (L,) bool, rows and columns.

    L is `rule.most`; a patch's values are in the order row, column, channel. The rest is 0.
    """
    height, width = _patched_size((picture.shape[0], picture.shape[1]), rule)
    image = Image.fromarray(np.ascontiguousarray(picture)).resize((width, height), resample=rule.resample)
    values = _normalised(np.asarray(image), rule.levels)  # (3, height, width)
    rows, columns, side = height // rule.side, width // rule.side, rule.side
    split = values.reshape(3, rows, side, columns, side)
    flat = split.transpose(1, 3, 2, 4, 0).reshape(rows * columns, -1)  # (rows columns, 3 side^2)
    padded = np.zeros((rule.most, flat.shape[1]), dtype=np.float32)
    padded[: len(flat)] = flat
    return padded, np.arange(rule.most) < len(flat), (rows, columns)


def _resized(size: tuple[int, int], resize: int | tuple[int, int] | None) -> tuple[int, int]:
    """(H, W) after the resizing; the longer side is rounded down."""
    if resize is None:
        return size
    if isinstance(resize, tuple):
        return resize
    height, width = size
    longer = int(resize * max(size) / min(size))
    return (longer, resize) if width <= height else (resize, longer)


def _resized_centre(image: Image.Image, size: tuple[int, int], crop: tuple[int, int], resample: int) -> np.ndarray:
    """The middle of `image` as if it had been resized to `size`, without making the rest."""
    offsets, lengths = [], []
    for whole, part in zip(size, crop, strict=True):
        lengths.append(min(whole, part))
        offsets.append((whole - lengths[-1]) // 2)
    (top, left), (height, width) = offsets, lengths
    down, across = image.height / size[0], image.width / size[1]
    box = (left * across, top * down, (left + width) * across, (top + height) * down)
    return _centre(np.asarray(image.resize((width, height), resample=resample, box=box)), crop)


def _centre(pixels: np.ndarray, crop: tuple[int, int]) -> np.ndarray:
    """The middle (h, w, 3) of pixels (H, W, 3); what reaches over them is black."""
    for axis in (0, 1):
        have, want = pixels.shape[axis], crop[axis]
        start = (have - want) // 2
        if start < 0:  # one more line before than after, if the number is odd
            before = math.ceil((want - have) / 2)
            widths = [(0, 0)] * 3
            widths[axis] = (before, want - have - before)
            pixels = np.pad(pixels, widths)
        else:
            pixels = pixels[start : start + want] if axis == 0 else pixels[:, start : start + want]
    return pixels


def _normalised(pixels: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """Pixels (h, w, 3) uint8 -> (3, h, w) float32."""
    return np.stack([levels[channel][pixels[..., channel]] for channel in range(3)])


def _levels(form: Mapping[str, Any], square: bool) -> np.ndarray:
    """(3, 256) float32: the rounding is that of scaling in float64 and normalising in float32."""
    values = np.arange(256, dtype=np.float64)
    if form.get("do_rescale", True):
        values = values * _number(form.get("rescale_factor", 1 / 255), "rescale_factor")
    levels = np.repeat(values.astype(np.float32)[None], 3, axis=0)
    if form.get("do_normalize", True):
        form = {**(_SIGLIP_COLOURS if square else _CLIP_COLOURS), **form}
        mean, std = _triple(form, "image_mean"), _triple(form, "image_std")
        if (std == 0).any():
            raise WeightsError("its image_std has a zero")
        levels = (levels - mean[:, None]) / std[:, None]
    return levels


def _patched_size(size: tuple[int, int], rule: PatchRule) -> tuple[int, int]:
    """(H, W), multiples of the patch: the largest scale of `size`, rounded up, that has at most `rule.most` patches.

    Found by halving as the published processor does, whose last step decides about sizes on the edge.
    """

    def at(scale: float) -> tuple[int, int]:
        height, width = (max(1, math.ceil(length * scale / rule.side)) * rule.side for length in size)
        return height, width

    low, high = _SCALE_RANGE
    while high - low >= _SCALE_STEP:
        middle = (low + high) / 2
        height, width = at(middle)
        if (height // rule.side) * (width // rule.side) <= rule.most:
            low = middle
        else:
            high = middle
    return at(low)


def _size(value: object, square: bool) -> int | tuple[int, int]:
    """A size in any of the forms that such files have had: a number, {"shortest_edge"}, {"height", "width"}."""
    if isinstance(value, Mapping):
        if value.get("height") is not None and value.get("width") is not None:
            return _length(value["height"]), _length(value["width"])
        if value.get("shortest_edge") is not None and value.get("longest_edge") is None:
            return _length(value["shortest_edge"])
        raise WeightsError(f"its size {dict(value)} has neither shortest_edge nor height and width")
    length = _length(value)
    return (length, length) if square else length


def _pair(size: int | tuple[int, int]) -> tuple[int, int]:
    return size if isinstance(size, tuple) else (size, size)


def _length(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= _MAX_SIDE:
        raise WeightsError(f"it has the length {value!r}; accepted are whole numbers from 1 to {_MAX_SIDE}")
    return value


def _resample(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value not in list(Image.Resampling):
        raise WeightsError(f"it has the unknown resample {value!r}")
    return int(value)


def _number(value: object, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise WeightsError(f"its {name} is {value!r}, not a number")
    return float(value)


def _triple(form: Mapping[str, Any], name: str) -> np.ndarray:
    """(3,) float32, for R, G and B."""
    value = form.get(name)
    values = value if isinstance(value, list) else [value] * 3
    if len(values) != 3:
        raise WeightsError(f"its {name} has {len(values)} values, not 3")
    return np.array([_number(each, name) for each in values], dtype=np.float32)
