"""The picture of a mask that an image-text model is asked about.

What such a picture should show is a row of VIEWS. All but the published one are squares around the object, so that no
model that takes the middle of a picture cuts the ends of a long object off; they are as small as they may be, since
these models see 224 to 512 pixels. One picture is in memory at a time, and of the mask no more than a few megapixels.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Literal, NamedTuple

import cv2
import numpy as np

from anysam import rle
from anysam.errors import OptionError
from anysam.images import MAX_PIXELS
from anysam.rasters import ArraySource, ImageSource
from anysam.results import MaskRecord
from anysam.rle import Box

ViewName = Literal["canvas", "crop", "masked", "blurred"]

FILL = (123, 117, 104)  # the mean colour of CLIP's training pictures, which its normalisation makes 0
LEAST_SIDE = 32  # pixels of the image around a mask of a few pixels, which alone shows nothing
MOST_SIDE = 1024  # pixels of a picture
_BLUR = 0.15  # standard deviation, as a part of the picture's side
_BLUR_SIDE = 64  # pixels: what is blurred that much has no more to show
_READ_AT_ONCE = 4 * 1024 * 1024  # pixels of the image


class View(NamedTuple):
    """How the surroundings of a mask are shown. margin: around its box, as a part of the box's longer side.

    background: what pixels (h, w, 3) have in place of those outside the mask; None leaves them.
    """

    margin: float
    background: Callable[[np.ndarray], np.ndarray] | None


def _filled(pixels: np.ndarray) -> np.ndarray:
    return np.broadcast_to(np.array(FILL, dtype=np.uint8), pixels.shape)


def _blurred(pixels: np.ndarray) -> np.ndarray:
    """Pixels (h, w, 3) uint8, blurred until only large patches of colour are left."""
    height, width = pixels.shape[:2]
    scale = min(1.0, _BLUR_SIDE / max(height, width))
    small_size = max(1, round(width * scale)), max(1, round(height * scale))
    small = cv2.resize(pixels, small_size, interpolation=cv2.INTER_AREA)
    small = cv2.GaussianBlur(small, (0, 0), _BLUR * max(small_size), borderType=cv2.BORDER_REPLICATE)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR)


# canvas: the whole image, white outside the mask's box; FastSAM's published one (Zhao et al., 2023).
# crop: the box and what is around it. masked: the mask alone on a plain ground.
# blurred: what is around the mask stays, but blurred: the reverse-blur prompt of Yang et al., "Fine-Grained Visual
# Prompting", 2023, the best of theirs at referring expressions. They blur the whole image by 100 pixels (images of 640
# pixels, ylingfeng/FGVP@7fe4fb1); here a crop is blurred by the same part of its side.
VIEWS: Mapping[ViewName, View | None] = {
    "canvas": None,
    "crop": View(0.1, None),
    "masked": View(0.1, _filled),
    "blurred": View(0.3, _blurred),
}


def pictures_of(
    image: np.ndarray | ImageSource, records: Sequence[MaskRecord], view: ViewName = "blurred"
) -> Iterator[np.ndarray]:
    """A picture for each mask of an image, made when it is asked for: uint8 RGB, in the records' order.

    image: RGB uint8 (H, W, 3), or a source of windows, of which only the masks' surroundings are read. view: see VIEWS;
    a "canvas" is (H, W, 3), the others are (S, S, 3) with S at most MOST_SIDE, what lies outside the image is FILL.

    Raises OptionError, at once, for another view, an image of another kind, a mask of another size than the image's or
    without a pixel, and a canvas of more pixels than images may have.
    """
    check_view(view)
    source = image_source(image)
    height, width = source.size
    if VIEWS[view] is None and height * width > MAX_PIXELS:
        raise OptionError(
            f"The view canvas is as large as the image, {width}x{height} pixels, and at most {MAX_PIXELS:,} are "
            "accepted; take the view crop, masked or blurred."
        )
    check_records(records, source.size)
    return (_picture(source, record, VIEWS[view]) for record in records)


def check_view(view: object) -> None:
    """Raise OptionError for anything but the name of a view."""
    if not isinstance(view, str) or view not in VIEWS:
        raise OptionError(f"There is no view {view!r}; views of a mask are {', '.join(VIEWS)}.")


def check_records(records: Sequence[MaskRecord], size: tuple[int, int]) -> None:
    """Raise OptionError unless all are masks with a pixel, of an image of `size` (H, W)."""
    for number, record in enumerate(records, start=1):
        if record.size != size:
            raise OptionError(
                f"Mask {number} of {len(records)} belongs to an image of {record.size[1]}x{record.size[0]} pixels, but "
                f"this one has {size[1]}x{size[0]}; give the masks of this image, at its original size."
            )
        if not record.area:
            raise OptionError(f"Mask {number} of {len(records)} is empty and cannot be shown; leave it out.")


def image_source(image: np.ndarray | ImageSource) -> ImageSource:
    """The windows of an image (H, W, 3) uint8 RGB, or those given. Raises OptionError for anything else."""
    if isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3:
        return ArraySource(image)
    if isinstance(image, np.ndarray) or not isinstance(image, ImageSource):
        found = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
        raise OptionError(
            f"Pictures of masks are cut from an RGB image (H, W, 3) uint8, got {found}; use anysam.read_image."
        )
    return image


def _picture(source: ImageSource, record: MaskRecord, view: View | None) -> np.ndarray:
    box = rle.box(record.segmentation)  # a file's own box may be wrong, or from the side of another format
    if box is None:
        raise OptionError("A mask says that it has pixels but has none; its record is damaged.")
    if view is None:
        return _canvas(source, box)
    window = window_around(box, view.margin, source.size)
    factor = -(-max(window[2] - window[0], window[3] - window[1]) // MOST_SIDE)
    pixels, inside = _read(source, record, window, factor)
    if view.background is not None:
        pixels = np.where(inside[:, :, None], pixels, view.background(pixels))
    return _squared(pixels)


def _canvas(source: ImageSource, box: Box) -> np.ndarray:
    x0, y0, x1, y1 = box
    canvas = np.full((*source.size, 3), 255, dtype=np.uint8)
    canvas[y0:y1, x0:x1] = source.read(*box)
    return canvas


def window_around(box: Box, margin: float, size: tuple[int, int]) -> Box:
    """The square around a box x0 y0 x1 y1, moved or, where the image of `size` (H, W) is smaller, cut to lie inside."""
    side = max(LEAST_SIDE, round(max(box[2] - box[0], box[3] - box[1]) * (1 + 2 * margin)))
    (x0, x1), (y0, y1) = (
        _stretch(start, stop, side, whole) for start, stop, whole in zip(box[:2], box[2:], size[::-1], strict=True)
    )
    return x0, y0, x1, y1


def _stretch(start: int, stop: int, length: int, whole: int) -> tuple[int, int]:
    """The piece of a `length` around another one, in 0 to `whole`."""
    length = min(length, whole)
    first = min(max((start + stop - length) // 2, 0), whole - length)
    return first, first + length


def _read(source: ImageSource, record: MaskRecord, window: Box, factor: int) -> tuple[np.ndarray, np.ndarray]:
    """The pixels (h, w, 3) uint8 of a window, `factor` times smaller, and which of them are in the mask, (h, w) bool.

    A pixel of the picture belongs to the mask if any of the image's that it is made of does: a wire stays a wire.
    """
    x0, y0, x1, y1 = window
    if factor == 1:
        return source.read(*window), rle.window(record.segmentation, window)
    band = max(1, _READ_AT_ONCE // ((x1 - x0) * factor)) * factor  # rows; whole rows of the picture
    pixels, inside = [], []
    for top in range(y0, y1, band):
        bottom = min(top + band, y1)
        size = -(-(x1 - x0) // factor), -(-(bottom - top) // factor)
        pixels.append(cv2.resize(source.read(x0, top, x1, bottom), size, interpolation=cv2.INTER_AREA))
        part = rle.window(record.segmentation, (x0, top, x1, bottom)).astype(np.float32)
        inside.append(cv2.resize(part, size, interpolation=cv2.INTER_AREA) > 0)
    return np.concatenate(pixels), np.concatenate(inside)


def _squared(pixels: np.ndarray) -> np.ndarray:
    """Pixels (h, w, 3) in the middle of a square of FILL."""
    height, width = pixels.shape[:2]
    if height == width:
        return np.array(pixels)  # never the image's own memory
    side = max(height, width)
    square = np.full((side, side, 3), FILL, dtype=np.uint8)
    top, left = (side - height) // 2, (side - width) // 2
    square[top : top + height, left : left + width] = pixels
    return square
