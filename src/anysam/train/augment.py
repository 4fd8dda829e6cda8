"""An image and some of its masks -> a random crop for training, or the whole image for validation."""

from dataclasses import dataclass

import cv2
import numpy as np

from anysam.datasets import ImageEntry
from anysam.metrics import centre_most_point

# A mask must keep this many input pixels and this share of its area after the crop.
_MIN_PIXELS = 24
_MIN_SHARE = 0.3
# A pasted object is at most this part of the crop.
_MAX_PASTED = 1 / 3


@dataclass(frozen=True)
class Sample:
    """image: (H, W, 3) uint8 RGB; masks: (P, H/4, W/4) float32, coverage of each cell in [0, 1].

    boxes: (P, 4) float32 xyxy and clicks: (P, 2) float32 x y, in pixels of the image.
    """

    image: np.ndarray
    masks: np.ndarray
    boxes: np.ndarray
    clicks: np.ndarray
    dataset: str


@dataclass(frozen=True)
class Crop:
    """image: (H, W, 3) uint8 RGB; masks: (H, W) uint8 of 0 and 1, with no order between them."""

    image: np.ndarray
    masks: tuple[np.ndarray, ...]


def training_sample(
    entry: ImageEntry,
    shape: tuple[int, int],
    long_side: int,
    max_masks: int,
    rng: np.random.Generator,
    donor: ImageEntry | None = None,
) -> Sample | None:
    """A random crop of `shape` (H, W), rescaled, flipped and recoloured; None if no mask is left in it.

    The image is scaled as if its long side were 0.55 to 1.9 times `long_side`. donor: an image with masks, from which
    one object is pasted over the crop; one that leaves no mask, or hides all others, is left out.
    """
    crop = random_crop(entry, shape, long_side, max_masks, rng)
    if crop is not None and donor is not None:
        given = random_crop(donor, shape, long_side, 1, rng)
        crop = crop if given is None else (pasted(crop, given, rng) or crop)
    return _sample(crop.image, list(crop.masks[:max_masks]), entry.dataset, rng) if crop is not None else None


def random_crop(
    entry: ImageEntry, shape: tuple[int, int], long_side: int, max_masks: int, rng: np.random.Generator
) -> Crop | None:
    """The crop of `training_sample` with at most max_masks of its masks; None if no mask is left in it."""
    image = entry.read_image()
    height, width = entry.size
    weights = np.sqrt(np.sqrt(np.asarray(entry.areas, dtype=np.float64) + 1))
    order = rng.choice(len(entry.masks), min(len(entry.masks), 2 * max_masks), replace=False, p=weights / weights.sum())
    scale = long_side / max(height, width) * float(np.exp(rng.uniform(np.log(0.55), np.log(1.9))))
    anchor = _centre(entry.decode(int(order[0])))
    flips = bool(rng.random() < 0.5), bool(rng.random() < 0.2)
    matrix = _crop_matrix(anchor, (height, width), scale, shape, flips, rng)
    image = _warp_image(image, matrix, scale, shape)
    kept = []
    for index in order:
        mask = cv2.warpAffine(entry.decode(int(index)), matrix, shape[::-1], flags=cv2.INTER_NEAREST)
        area = int(np.count_nonzero(mask))
        if area >= _MIN_PIXELS and area >= _MIN_SHARE * entry.areas[index] * scale**2:
            kept.append(mask)
        if len(kept) == max_masks:
            break
    return Crop(recolour(image, rng), tuple(kept)) if kept else None


def pasted(crop: Crop, donor: Crop, rng: np.random.Generator) -> Crop | None:
    """The donor's first object over the crop, moved to anywhere; its mask comes first (Simple Copy-Paste, arXiv
    2012.07177: what lies below loses the pixels, and borders are not blended).

    Masks that keep too little are left out. None when the object is larger than a third of the crop (most often no
    object but a background), when too little of it is within, or when no other mask is left.
    """
    height, width = crop.image.shape[:2]
    mask = donor.masks[0]
    area = int(np.count_nonzero(mask))
    if area > _MAX_PASTED * height * width:
        return None
    x, y, w, h = cv2.boundingRect(mask)
    matrix = np.array(
        [[1, 0, rng.integers(-x, max(width - w, 0) - x + 1)], [0, 1, rng.integers(-y, max(height - h, 0) - y + 1)]],
        np.float64,
    )
    mask = cv2.warpAffine(mask, matrix, (width, height), flags=cv2.INTER_NEAREST)
    moved = cv2.warpAffine(donor.image, matrix, (width, height), flags=cv2.INTER_NEAREST)
    kept = []
    for other in crop.masks:
        left = other & (1 - mask)
        if np.count_nonzero(left) >= max(_MIN_PIXELS, _MIN_SHARE * np.count_nonzero(other)):
            kept.append(left)
    if not kept or np.count_nonzero(mask) < _MIN_PIXELS:
        return None
    return Crop(np.where(mask[..., None] == 1, moved, crop.image), (mask, *kept))


def whole_sample(entry: ImageEntry, long_side: int, multiple: int, max_masks: int, rng: np.random.Generator) -> Sample:
    """The whole image with its long side at long_side, zero-padded right and bottom, clicked in the centres."""
    height, width = entry.size
    scale = long_side / max(height, width)
    size = (round(height * scale), round(width * scale))
    padded = tuple(-(-n // multiple) * multiple for n in size)
    image = np.zeros((*padded, 3), np.uint8)
    image[: size[0], : size[1]] = cv2.resize(entry.read_image(), size[::-1], interpolation=cv2.INTER_AREA)
    kept = []
    for index in rng.permutation(len(entry.masks))[:max_masks]:
        mask = np.zeros(padded, np.uint8)
        mask[: size[0], : size[1]] = cv2.resize(entry.decode(int(index)), size[::-1], interpolation=cv2.INTER_NEAREST)
        if mask.any():
            kept.append(mask)
    return _sample(image, kept, entry.dataset, None)


def recolour(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Random brightness, contrast, saturation; sometimes grey, inverted or with channels exchanged."""
    out = image.astype(np.float32)
    out = (out - 128) * rng.uniform(0.7, 1.3) + 128 + rng.uniform(-25, 25)
    grey = out.mean(axis=2, keepdims=True)
    out = grey + (out - grey) * (0.0 if rng.random() < 0.08 else rng.uniform(0.6, 1.4))
    if rng.random() < 0.05:
        out = 255 - out
    if rng.random() < 0.1:
        out = out[..., rng.permutation(3)]
    return np.clip(out, 0, 255).astype(np.uint8)


def _crop_matrix(
    anchor: tuple[float, float],
    size: tuple[int, int],
    scale: float,
    shape: tuple[int, int],
    flips: tuple[bool, bool],
    rng: np.random.Generator,
) -> np.ndarray:
    """Affine (2, 3) map from image to crop pixels that keeps the anchor within the crop and little empty space."""
    matrix = np.zeros((2, 3), np.float64)
    for axis, (point, flip) in enumerate(zip(anchor, flips, strict=True)):
        extent, target = size[1 - axis] * scale, shape[1 - axis]
        if extent <= target:
            offset = 0.0
        else:
            offset = -min(max(point * scale - rng.uniform(0.15, 0.85) * target, 0.0), extent - target)
        matrix[axis, axis], matrix[axis, 2] = scale, offset
        if flip:
            visible = min(extent, target)
            matrix[axis] = -matrix[axis]
            matrix[axis, 2] += visible - 1
    return matrix


def _warp_image(image: np.ndarray, matrix: np.ndarray, scale: float, shape: tuple[int, int]) -> np.ndarray:
    """The crop of the image; shrinking averages areas first, since warpAffine alone would alias."""
    if scale < 1:
        height, width = image.shape[:2]
        size = (max(1, round(height * scale)), max(1, round(width * scale)))
        image = cv2.resize(image, size[::-1], interpolation=cv2.INTER_AREA)
        matrix = matrix @ np.diag([width / size[1], height / size[0], 1.0])
    return cv2.warpAffine(image, matrix, shape[::-1], flags=cv2.INTER_LINEAR)


def _centre(mask: np.ndarray) -> tuple[float, float]:
    ys, xs = np.nonzero(mask)
    return (float(xs.mean()), float(ys.mean())) if len(xs) else (0.0, 0.0)


def _sample(image: np.ndarray, masks: list[np.ndarray], dataset: str, rng: np.random.Generator | None) -> Sample:
    """rng None: the centre-most click of every mask; otherwise half uniform in the mask, half weighted by depth."""
    height, width = image.shape[:2]
    boxes, small = [], []
    clicks: list[tuple[float, float]] = []
    for mask in masks:
        x, y, w, h = cv2.boundingRect(mask)
        boxes.append((x, y, x + w, y + h))
        if rng is None:
            clicks.append(centre_most_point(mask))
        else:
            distance = cv2.distanceTransform(np.pad(mask, 1), cv2.DIST_L2, 3)[1:-1, 1:-1].ravel()
            weight = (distance > 0).astype(np.float64) if rng.random() < 0.4 else distance.astype(np.float64) ** 2
            index = int(np.searchsorted(np.cumsum(weight), rng.random() * weight.sum()))
            clicks.append((float(index % width), float(index // width)))
        small.append(cv2.resize(mask.astype(np.float32), (width // 4, height // 4), interpolation=cv2.INTER_AREA))
    return Sample(
        image=image,
        masks=np.stack(small) if small else np.zeros((0, height // 4, width // 4), np.float32),
        boxes=np.asarray(boxes, np.float32).reshape(-1, 4),
        clicks=np.asarray(clicks, np.float32).reshape(-1, 2),
        dataset=dataset,
    )
