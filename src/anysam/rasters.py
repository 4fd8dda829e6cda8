"""Images read window by window, and where on Earth a map's pixels lie.

A TIFF with a place on Earth, or with more pixels than `images` decodes, is read by windows through rasterio (the `geo`
extra); every other file is decoded whole, as everywhere. Decided here for what rasterio reads:
- Bands: red, green and blue where the file names them, else the first three, else the first as grey; a palette is
  applied. Further bands are not shown.
- 8 bits are taken as they are. Other numbers are stretched as viewers of maps do: from 2 % to 98 % of the values of the
  shown bands together become 0 to 255. The values are those of 16 x 16 windows of 64 x 64 pixels, spread evenly, so
  every window of the file is stretched alike.
- Pixels without data (nodata, NaN, transparent, masked out) are black, and no part of the stretch.
- Rows and columns stay as they are stored; an orientation tag is not applied, since a map's place belongs to its rows.

GDAL reads the one local TIFF that is named and nothing else: no address, no other driver, no file beside it.
"""

import stat
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from PIL import TiffImagePlugin

from anysam.errors import ImageError, MissingExtraError
from anysam.images import MAX_PIXELS, read_image

Transform = tuple[float, float, float, float, float, float]

_LEAST, _MOST = 2, 98  # percent of the values that become 0 and 255
_SAMPLES, _SAMPLE = 16, 64  # windows along each side, and pixels along each of theirs
_GDAL = {"GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR", "GDAL_PAM_ENABLED": "NO", "CPL_DEBUG": "OFF"}

# Tags of TIFF and GeoTIFF
_WIDTH, _HEIGHT, _BITS, _PHOTOMETRIC, _ORIENTATION, _BANDS, _FORMAT = 256, 257, 258, 262, 274, 277, 339
_SCALE, _TIEPOINT, _TRANSFORM, _KEYS, _NODATA = 33550, 33922, 34264, 34735, 42113
_RASTER_TYPE_KEY, _GEOGRAPHIC_KEY, _PROJECTED_KEY = 1025, 2048, 3072
_PIXEL_IS_POINT, _USER_DEFINED = 2, 32767


@runtime_checkable
class ImageSource(Protocol):
    """An image of which any window can be read."""

    @property
    def size(self) -> tuple[int, int]:
        """(H, W)."""
        ...

    def read(self, x0: int, y0: int, x1: int, y1: int) -> np.ndarray:
        """The pixels of a window inside the image: RGB uint8 (y1 - y0, x1 - x0, 3)."""
        ...


@dataclass(frozen=True, eq=False)
class ArraySource:
    """An image in memory, RGB uint8 (H, W, 3). crs and transform: see `geo_facts`."""

    pixels: np.ndarray
    crs: str | None = None
    transform: Transform | None = None

    @property
    def size(self) -> tuple[int, int]:
        """(H, W)."""
        return self.pixels.shape[0], self.pixels.shape[1]

    def read(self, x0: int, y0: int, x1: int, y1: int) -> np.ndarray:
        """The pixels of a window, sharing the image's memory. Raises ImageError outside of the image."""
        _check_window((x0, y0, x1, y1), self.size)
        return self.pixels[y0:y1, x0:x1]


@dataclass(frozen=True, eq=False)
class RasterSource:
    """A TIFF file that stays open; a window is decoded when it is read. crs and transform: see `geo_facts`.

    bands: numbers of the one or three bands shown, from 1. stretch: the values that become 0 and 255; None for 8 bits.
    palette: (256, 3) uint8 or None. inverted: whether the lowest value is white.
    """

    name: str
    size: tuple[int, int]
    crs: str | None
    transform: Transform | None
    bands: tuple[int, ...]
    stretch: tuple[float, float] | None
    palette: np.ndarray | None
    inverted: bool
    dataset: Any

    def read(self, x0: int, y0: int, x1: int, y1: int) -> np.ndarray:
        """The pixels of a window. Raises ImageError outside of the image and where the file is damaged."""
        _check_window((x0, y0, x1, y1), self.size)
        values, valid = _read_window(self.dataset, self.bands, (x0, y0, x1, y1), self.name)
        if self.palette is not None:
            pixels = self.palette[values[0]]  # (h, w, 3)
        else:
            shown = values if self.stretch is None else _stretched(values, self.stretch)  # (bands, h, w)
            pixels = np.repeat(shown.transpose(1, 2, 0), 3 // len(shown), axis=2)  # (h, w, 3)
            if self.inverted:
                pixels = 255 - pixels
        pixels[~valid] = 0
        return np.ascontiguousarray(pixels)

    def close(self) -> None:
        """Close the file; nothing can be read afterwards."""
        self.dataset.close()


def open_image(path: str | Path, max_pixels: int = MAX_PIXELS) -> ArraySource | RasterSource:
    """Open an image file for reading by windows, see the top of this module.

    max_pixels: of a file that has to be decoded as a whole; one read by windows may be larger.
    Raises ImageError as `read_image` does, and MissingExtraError for a file that only rasterio reads; a GeoTIFF of 8
    bits in one or three bands without nodata looks the same to both, so for it the extra is not asked for.
    """
    tags = _tiff_tags(path)
    if tags is None:
        return ArraySource(read_image(path, max_pixels))
    pixels = _number(tags, _WIDTH) * _number(tags, _HEIGHT)
    if pixels <= MAX_PIXELS and _KEYS not in tags and _transform(tags) is None:
        return ArraySource(read_image(path, max_pixels))
    try:
        import rasterio  # noqa: F401
    except ModuleNotFoundError as error:
        if pixels <= MAX_PIXELS and _is_plain(tags):
            return ArraySource(read_image(path, max_pixels), *geo_facts(path))
        reason = f"has {pixels:,} pixels" if pixels > MAX_PIXELS else "is a GeoTIFF of other than 8-bit grey or colour"
        raise MissingExtraError(
            f"{path} {reason} and is read by windows through rasterio, which is not installed: "
            "pip install 'anysam[geo]'."
        ) from error
    return _open_raster(path, tags)


def geo_facts(path: str | Path) -> tuple[str | None, Transform | None]:
    """Where the pixels of an image file lie: its coordinate reference system and the way from pixels to coordinates.

    The system is "EPSG:" and its number, or WKT. The six numbers a b c d e f of the transform take a corner of a pixel,
    x y, to a x + b y + c and d x + e y + f. Each is None where the file does not say, as files other than GeoTIFF do
    not; a system without a number is known only where rasterio is installed. Raises ImageError when the file cannot be
    opened.
    """
    tags = _tiff_tags(path)
    if tags is None:
        return None, None
    keys = _geo_keys(tags)
    number = keys.get(_PROJECTED_KEY, keys.get(_GEOGRAPHIC_KEY))
    if number == _USER_DEFINED:
        try:
            import rasterio  # noqa: F401
        except ModuleNotFoundError:
            return None, _transform(tags)
        raster = _open_raster(path, tags)
        raster.close()
        return raster.crs, raster.transform
    return (f"EPSG:{number}" if number else None), _transform(tags)


def _check_window(window: tuple[int, int, int, int], size: tuple[int, int]) -> None:
    x0, y0, x1, y1 = window
    if not (0 <= x0 < x1 <= size[1] and 0 <= y0 < y1 <= size[0]):
        raise ImageError(
            f"A window must lie in the image of {size[1]}x{size[0]} pixels and hold one at least, "
            f"got x0 y0 x1 y1 {list(window)}."
        )


def _tiff_tags(path: str | Path) -> dict[int, Any] | None:
    """The tags of a TIFF file's first image; None for a file of another kind, or one whose tags make no sense.

    What cannot be opened at all raises ImageError; what is damaged is left to the decoder to report.
    """
    try:
        if not stat.S_ISREG(Path(path).stat().st_mode):
            return None
        with open(path, "rb") as file:
            header = file.read(16)
            if header[:4] not in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
                return None
            is_big = header[2:4] in (b"+\0", b"\0+")
            tags = TiffImagePlugin.ImageFileDirectory_v2(header if is_big else header[:8])
            file.seek(tags.next)
            with warnings.catch_warnings(action="ignore"):  # of tags that break off
                tags.load(file)
                return dict(tags.items())
    except FileNotFoundError as error:
        hint = "; download it first, only files are read" if "://" in str(path) else "; check the path"
        raise ImageError(f"{path} does not exist{hint}.") from error
    except PermissionError as error:
        raise ImageError(f"{path} cannot be read: {error.strerror}.") from error
    except Exception:  # noqa: BLE001  # Pillow raises whatever the damage makes it trip over; the decoder says so
        return None


def _number(tags: Mapping[int, Any], tag: int, default: int = 0) -> int:
    value = tags.get(tag, default)
    return value if isinstance(value, int) else default


def _numbers(tags: Mapping[int, Any], tag: int, least: int) -> Sequence[float] | None:
    """The numbers of a tag; None when there are fewer than `least` or one is not finite."""
    value = tags.get(tag)
    if not isinstance(value, tuple) or len(value) < least:
        return None
    return value if all(isinstance(each, (int, float)) and np.isfinite(each) for each in value) else None


def _bits(tags: Mapping[int, Any]) -> tuple[int, ...]:
    """Bits of each band; TIFF's default is one."""
    bits = tags.get(_BITS, 1)
    return bits if isinstance(bits, tuple) else (bits,)


def _is_plain(tags: Mapping[int, Any]) -> bool:
    """Whether Pillow shows the pixels as rasterio would."""
    return (
        _NODATA not in tags
        and _number(tags, _ORIENTATION, 1) == 1
        and set(_bits(tags)) == {8}
        and set(tags.get(_FORMAT, (1,))) == {1}
        and _number(tags, _BANDS, 1) in (1, 3)
    )


def _geo_keys(tags: Mapping[int, Any]) -> dict[int, int]:
    """The numbers among a GeoTIFF's keys: a header of four, then key, place of the value (0: here), count, value."""
    directory = _numbers(tags, _KEYS, 4)
    if directory is None:
        return {}
    entries = [directory[start : start + 4] for start in range(4, len(directory) - 3, 4)]
    return {int(entry[0]): int(entry[3]) for entry in entries if entry[1] == 0}


def _transform(tags: Mapping[int, Any]) -> Transform | None:
    matrix, scale, tie = _numbers(tags, _TRANSFORM, 16), _numbers(tags, _SCALE, 2), _numbers(tags, _TIEPOINT, 6)
    if matrix is not None:
        a, b, c, d, e, f = matrix[0], matrix[1], matrix[3], matrix[4], matrix[5], matrix[7]
    elif scale is not None and tie is not None and scale[0] and scale[1]:
        a, b, d, e = scale[0], 0.0, 0.0, -scale[1]
        c, f = tie[3] - a * tie[0], tie[4] - e * tie[1]
    else:
        return None
    if _geo_keys(tags).get(_RASTER_TYPE_KEY) == _PIXEL_IS_POINT:  # the numbers are those of the middle of a pixel
        c, f = c - (a + b) / 2, f - (d + e) / 2
    return float(a), float(b), float(c), float(d), float(e), float(f)


def _open_raster(path: str | Path, tags: Mapping[int, Any]) -> RasterSource:
    """Open a TIFF with these tags through rasterio, which must be installed."""
    import rasterio
    from rasterio.enums import ColorInterp
    from rasterio.errors import NotGeoreferencedWarning, RasterioError

    local = Path(path).resolve()
    if str(local).startswith("/vsi"):
        raise ImageError(f"{path} lies in a folder whose name GDAL takes for an address; move it.")
    try:
        with rasterio.Env(**_GDAL), warnings.catch_warnings(action="ignore", category=NotGeoreferencedWarning):
            dataset = rasterio.open(local, driver="GTiff")
    except RasterioError as error:
        raise ImageError(
            f"{path} is damaged and cannot be read: {' '.join(str(error).split()).rstrip('.')}."
        ) from error
    kinds = list(dataset.colorinterp)
    colours = [ColorInterp.red, ColorInterp.green, ColorInterp.blue]
    palette = None
    if kinds[0] == ColorInterp.palette and dataset.dtypes[0] == "uint8":
        bands: tuple[int, ...] = (1,)
        entries = dataset.colormap(1)
        palette = np.array([entries.get(value, (0, 0, 0))[:3] for value in range(256)], dtype=np.uint8)  # (256, 3)
    elif all(colour in kinds for colour in colours):
        bands = tuple(kinds.index(colour) + 1 for colour in colours)
    else:
        bands = (1, 2, 3) if dataset.count >= 3 else (1,)
    kept = {dataset.dtypes[band - 1] for band in bands}
    if any(kind.startswith("complex") for kind in kept):
        raise ImageError(f"{path} has complex numbers for pixels; save their magnitude.")
    if kept != {"uint8"}:
        stretch: tuple[float, float] | None = _sampled_range(dataset, bands, str(path))
    else:
        stretch = None if min(_bits(tags)) >= 8 else (0.0, 2.0 ** min(_bits(tags)) - 1)
    return RasterSource(
        name=str(path),
        size=(dataset.height, dataset.width),
        crs=_crs_text(dataset.crs),
        transform=None if dataset.transform.is_identity else tuple(dataset.transform)[:6],
        bands=bands,
        stretch=stretch,
        palette=palette,
        inverted=_number(tags, _PHOTOMETRIC, 1) == 0,
        dataset=dataset,
    )


def _crs_text(crs: Any) -> str | None:
    if not crs:
        return None
    number = crs.to_epsg()
    return str(crs.to_wkt()) if number is None else f"EPSG:{number}"


def _read_window(
    dataset: Any, bands: Sequence[int], window: tuple[int, int, int, int], name: str
) -> tuple[np.ndarray, np.ndarray]:
    """Values (bands, h, w) of a window, and which pixels have data, (h, w) bool."""
    import rasterio
    from rasterio.enums import MaskFlags
    from rasterio.errors import RasterioError

    x0, y0, x1, y1 = window
    part = ((y0, y1), (x0, x1))
    try:
        with rasterio.Env(**_GDAL):
            values = dataset.read(list(bands), window=part)  # (bands, h, w)
            whole = all(dataset.mask_flag_enums[band - 1] == [MaskFlags.all_valid] for band in bands)
            masks = None if whole else dataset.read_masks(list(bands), window=part)  # (bands, h, w)
    except RasterioError as error:
        raise ImageError(f"{name} is damaged or cut short: {' '.join(str(error).split()).rstrip('.')}.") from error
    valid = np.ones(values.shape[1:], dtype=bool) if masks is None else masks.any(axis=0)
    if values.dtype.kind == "f":
        valid &= np.isfinite(values).all(axis=0)
    return values, valid


def _sampled_range(dataset: Any, bands: Sequence[int], name: str) -> tuple[float, float]:
    """The values below which _LEAST and _MOST percent of a sample of the file lie."""
    sides = []
    for side in (dataset.width, dataset.height):
        last = max(side - _SAMPLE, 0)
        starts = sorted({index * last // (_SAMPLES - 1) for index in range(_SAMPLES)})
        sides.append([(start, min(start + _SAMPLE, side)) for start in starts])
    samples = []
    for y0, y1 in sides[1]:
        for x0, x1 in sides[0]:
            values, valid = _read_window(dataset, bands, (x0, y0, x1, y1), name)
            samples.append(values[:, valid].ravel())
    sample = np.concatenate(samples)
    if not len(sample):
        return 0.0, 1.0
    least, most = np.percentile(sample, [_LEAST, _MOST])
    return float(least), float(most)


def _stretched(values: np.ndarray, stretch: tuple[float, float]) -> np.ndarray:
    least, most = stretch
    scale = 255 / (most - least) if most > least else 0.0
    with np.errstate(invalid="ignore", over="ignore"):
        scaled = np.clip((values.astype(np.float64) - least) * scale, 0, 255)
    return np.round(np.nan_to_num(scaled)).astype(np.uint8)
