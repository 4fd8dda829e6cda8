"""Any image a user has -> RGB uint8 (H, W, 3). Orientation applied, size bounded, damage reported; never resized.

Decided here, once, for every kind of file:
- EXIF orientation is applied, so that coordinates are those a viewer shows.
- Transparency is laid on white, as viewers show it: what lies under transparent pixels is arbitrary, often all black.
- 16-bit grey is scaled by 1/257 (65535 -> 255); of 16-bit colour Pillow keeps the high byte. Files with
  floating-point pixels are refused, since their range is not known; arrays must lie in 0..1.
- Palette, grey, 1-bit, CMYK and YCbCr images become RGB by Pillow's plain conversion; colour profiles are ignored.
- Of an animation or a file of several pages the first is taken.
"""

import glob
import io
import stat
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np
from PIL import Image

from anysam.errors import ImageError

# Pillow's own point of refusal (twice Image.MAX_IMAGE_PIXELS), so that this one number is the limit in force.
MAX_PIXELS = 178_956_970

# Formats with pixels only: Pillow would run Ghostscript for EPS and fetch nothing good from the exotic ones.
_FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "PPM", "JPEG2000", "AVIF", "TGA")
_ACCEPTED = "JPEG, PNG, WebP, TIFF, BMP, GIF, PPM, JPEG 2000, AVIF and TGA"
IMAGE_SUFFIXES = frozenset(
    ".jpg .jpeg .jpe .jfif .png .apng .webp .tif .tiff .bmp .dib .gif .ppm .pgm .pbm .pnm .jp2 .j2k .avif .tga".split()
)

# EXIF orientation -> what undoes it; 1 is upright.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_EXIF_ORIENTATION = 0x0112


class TensorLike(Protocol):
    """A torch tensor, told by its method, so that torch need not be imported here."""

    def detach(self) -> Any:
        """The values without their history."""
        ...


def read_image(
    source: str | Path | bytes | Image.Image | np.ndarray | TensorLike, max_pixels: int = MAX_PIXELS
) -> np.ndarray:
    """Read an image as uint8 (H, W, 3) RGB, C-contiguous.

    source: a path; the bytes of a file; a Pillow image; or an array (H, W), (H, W, 1), (H, W, 3) RGB or (H, W, 4) RGBA,
    uint8, uint16, or floating-point with values from 0 to 1; or a tensor (3, H, W) or one of an array's shapes, with
    the same values. max_pixels: a larger image is refused from its header, before anything is decoded (a value
    above MAX_PIXELS does not raise the limit of files); arrays, being in memory already, are not bounded. The result
    may share memory with an array given as source.
    Raises ImageError, naming the file, when it is missing, empty, damaged, cut short, too large or no image.
    """
    if isinstance(source, np.ndarray):
        return _array_to_rgb(source)
    if not isinstance(source, (str, Path, bytes, Image.Image)) and hasattr(source, "detach"):
        return _array_to_rgb(_tensor_to_array(source))
    if isinstance(source, Image.Image):
        return _decode(source, "the image", max_pixels)
    if isinstance(source, bytes):
        return _open(io.BytesIO(source), "the image", len(source), max_pixels)
    if not isinstance(source, (str, Path)):
        raise ImageError(
            f"An image must be a path, bytes, a Pillow image or an array (H, W, 3), got {type(source).__name__}."
        )
    try:
        status = Path(source).stat()
        if stat.S_ISDIR(status.st_mode):
            raise ImageError(f"{source} is a folder, not an image; name a file in it.")
        if not stat.S_ISREG(status.st_mode):
            raise ImageError(f"{source} is not a regular file; save the image to a file first.")
        with open(source, "rb") as file:
            return _open(file, str(source), status.st_size, max_pixels)
    except FileNotFoundError as error:
        hint = "; download it first, only files are read" if "://" in str(source) else "; check the path"
        raise ImageError(f"{source} does not exist{hint}.") from error
    except (OSError, ValueError) as error:  # no permission, a name too long, a NUL in it
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise ImageError(f"{source!s} cannot be read: {reason}.") from error


def image_size(path: str | Path) -> tuple[int, int]:
    """The size (H, W) of an image file when it is upright, read from its header alone. Raises ImageError."""
    try:
        with Image.open(path, formats=_FORMATS) as image:
            width, height = image.size
            lies = image.getexif().get(_EXIF_ORIENTATION, 1) >= 5  # turned by 90 degrees, mirrored or not
    except Exception as error:  # as in _decode
        raise ImageError(f"{path} is no image that can be read: {_one_line(error)}.") from error
    return (width, height) if lies else (height, width)


def find_images(paths: Iterable[str | Path]) -> list[Path]:
    """Expand files, folders and patterns to image paths, in the order given and without repeats.

    A folder stands for the images directly in it (known suffixes, sorted by name, hidden files left out), a pattern
    such as `photos/**/*.jpg` for the files it matches. Other paths are kept as they are, existing or not, so that
    `read_image` reports each bad one by itself. Raises ImageError for a folder or pattern without images.
    """
    found: dict[Path, None] = {}
    for given in paths:
        path = Path(given)
        if path.is_dir():
            inside = _images_in(path)
            if not inside:
                raise ImageError(
                    f"The folder {path} has no image in it; files ending in .jpg, .png and such are taken."
                )
        elif not path.exists() and glob.has_magic(str(given)):
            inside = [path for path in map(Path, sorted(glob.glob(str(given), recursive=True))) if path.is_file()]
            if not inside:
                raise ImageError(f"No file matches {given}; check the pattern.")
        else:
            inside = [path]
        found.update(dict.fromkeys(inside))
    return list(found)


def _images_in(folder: Path) -> list[Path]:
    try:
        files = sorted(folder.iterdir())
    except OSError as error:
        raise ImageError(f"The folder {folder} cannot be listed: {error.strerror}.") from error
    visible = [file for file in files if not file.name.startswith(".")]
    return [file for file in visible if file.suffix.lower() in IMAGE_SUFFIXES and file.is_file()]


def _open(file: BinaryIO, name: str, size: int, max_pixels: int) -> np.ndarray:
    """Identify and decode the image in a binary file of `size` bytes."""
    if size == 0:
        raise ImageError(f"{name} is empty (0 bytes).")
    try:
        with warnings.catch_warnings():
            # The size is judged by max_pixels, in one sentence, not by a warning on stderr.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(file, formats=_FORMATS)
    except Image.DecompressionBombError as error:
        raise ImageError(_too_large(name, f"more than {MAX_PIXELS:,}", min(max_pixels, MAX_PIXELS))) from error
    except Image.UnidentifiedImageError as error:
        raise ImageError(f"{name} is not an image, or its header is damaged; accepted are {_ACCEPTED}.") from error
    except Exception as error:  # as in _decode
        raise ImageError(f"{name} is damaged and cannot be read: {_one_line(error)}.") from error
    with image:
        return _decode(image, name, max_pixels)


def _decode(image: Image.Image, name: str, max_pixels: int) -> np.ndarray:
    """Bring a Pillow image to RGB uint8 (H, W, 3) after a look at its size."""
    width, height = image.size
    if width * height > max_pixels:
        raise ImageError(_too_large(name, f"{width}x{height} = {width * height:,}", max_pixels))
    if width * height == 0:
        raise ImageError(f"{name} has no pixels ({width}x{height}).")
    try:
        image.load()
        image = _turn_upright(image)
        if image.mode == "F":
            raise ImageError(f"{name} has floating-point pixels of unknown range; save it with 8 or 16 bits a channel.")
        if image.mode.startswith("I"):
            return _grey16_to_rgb(np.asarray(image), name)
        return np.ascontiguousarray(_lay_on_white(image))  # (H, W, 3)
    except ImageError:
        raise
    except MemoryError as error:
        raise ImageError(f"{name} ({width}x{height}) does not fit in memory; make it smaller.") from error
    except Exception as error:
        # Pillow's decoders raise whatever the damage makes them trip over: OSError, SyntaxError, struct.error, KeyError
        raise ImageError(f"{name} is damaged or cut short: {_one_line(error)}.") from error


def _turn_upright(image: Image.Image) -> Image.Image:
    # Pillow's exif_transpose also writes the EXIF block back, which fails on blocks that are damaged elsewhere.
    orientation = image.getexif().get(_EXIF_ORIENTATION)
    return image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image


def _lay_on_white(image: Image.Image) -> Image.Image:
    if image.mode in ("La", "RGBa"):  # premultiplied; only these two steps undo it
        image = image.convert("LA" if image.mode == "La" else "RGBA")
    if image.mode not in ("RGBA", "LA", "PA") and "transparency" not in image.info:
        return image.convert("RGB")
    image = image.convert("RGBA")
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image).convert("RGB")


def _grey16_to_rgb(grey: np.ndarray, name: str) -> np.ndarray:
    """Integers (H, W) of 16 bits, perhaps stored wider -> uint8 (H, W, 3)."""
    if grey.min() < 0 or grey.max() > 65535:
        raise ImageError(
            f"{name} has 32-bit values from {grey.min()} to {grey.max()}; save it with 8 or 16 bits a channel."
        )
    return np.repeat(_to_uint8(grey)[:, :, None], 3, axis=2)  # (H, W, 3)


def _to_uint8(values: np.ndarray) -> np.ndarray:
    return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)  # rounds v / 257


def _tensor_to_array(tensor: TensorLike) -> np.ndarray:
    values = tensor.detach().cpu()
    array = np.asarray(values.float() if str(values.dtype) == "torch.bfloat16" else values)  # NumPy has no bfloat16
    if array.ndim != 3 or array.shape[0] not in (1, 3, 4):
        return array
    if array.shape[2] in (1, 3, 4):
        raise ImageError(
            f"An image tensor of shape {array.shape} could have its channels first or last; pass an array (H, W, 3)."
        )
    return array.transpose(1, 2, 0)  # (H, W, channels)


def _unit_to_uint8(values: np.ndarray) -> np.ndarray:
    least, most = float(values.min()), float(values.max())
    if not (least >= 0 and most <= 1):  # also where a value is not a number
        raise ImageError(
            f"A floating-point image must have values from 0 to 1, got {least:g} to {most:g}; "
            "convert values of 0 to 255 by image.astype(np.uint8)."
        )
    return np.round(values * 255).astype(np.uint8)


def _array_to_rgb(array: np.ndarray) -> np.ndarray:
    shape = array.shape
    if array.dtype not in (np.uint8, np.uint16) and array.dtype.kind != "f":
        raise ImageError(f"An image array must be uint8, uint16 or floating-point, got {array.dtype} {shape}.")
    if len(shape) == 3 and shape[0] in (1, 3, 4) and shape[2] not in (1, 3, 4):
        raise ImageError(f"An image array must be (H, W, 3), got {shape}; bring the channels to the end.")
    if len(shape) not in (2, 3) or (len(shape) == 3 and shape[2] not in (1, 3, 4)) or 0 in shape:
        raise ImageError(f"An image array must be (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), not empty, got {shape}.")
    if array.dtype == np.uint16:
        array = _to_uint8(array)
    elif array.dtype.kind == "f":
        array = _unit_to_uint8(array)
    if len(shape) == 2:
        array = array[:, :, None]  # (H, W, 1)
    if array.shape[2] == 1:
        return np.repeat(array, 3, axis=2)  # (H, W, 3)
    if array.shape[2] == 4:
        return np.ascontiguousarray(_lay_on_white(Image.fromarray(np.ascontiguousarray(array))))  # (H, W, 3)
    return np.ascontiguousarray(array)


def _too_large(name: str, pixels: str, max_pixels: int) -> str:
    return (
        f"{name} is too large: its header says {pixels} pixels, at most {max_pixels:,} are accepted; make it smaller."
    )


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split()).rstrip(".")
    return text or type(error).__name__
