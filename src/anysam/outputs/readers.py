"""Files of masks in any format that can be read -> the images and masks in them."""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from anysam import rle
from anysam.errors import OptionError
from anysam.images import MAX_PIXELS
from anysam.outputs.arrays import read_npz
from anysam.outputs.coco import coco_to_results
from anysam.outputs.formats import READABLE, ImageResult
from anysam.outputs.geojson import geojson_to_result
from anysam.outputs.label_map import read_label_map
from anysam.outputs.labelme import labelme_to_result
from anysam.outputs.native import native_to_results
from anysam.outputs.reading import make_record, read_json
from anysam.outputs.sa1b import sa1b_to_result
from anysam.outputs.yolo import read_yolo

Sizes = Callable[[str], tuple[int, int]]

_MASK_NAME = re.compile(r"(.+)_mask_(\d+)\.png", re.IGNORECASE)
_SUFFIXES = (".json", ".geojson", ".npz", ".txt", ".png")
_JSON_KINDS = ("coco", "coco-polygons", "labelme", "geojson", "sa1b", "json")


def read_masks(
    path: str | Path, kind: str | None = None, sizes: Sizes | None = None, names: list[str] | None = None
) -> list[ImageResult]:
    """The images and masks of a file, or of all files of a folder in one format; in the order of their names.

    kind: one of READABLE; None looks at names and contents. sizes: the size (H, W) of the image of a stem, which YOLO's
    files need. names: of YOLO's classes. Formats without scores have predicted_iou 1.

    Raises OptionError for damaged files, for a kind that cannot be told, and for a folder of several kinds.
    """
    source = Path(path)
    if kind is not None and kind not in READABLE:
        raise OptionError(f"The format {kind!r} cannot be read; formats that can are {', '.join(READABLE)}.")
    if not source.exists():
        raise OptionError(f"There is no file or folder {source}.")
    files = _files(source, kind)
    if source.is_dir() and kind is None:
        _check_one_kind(source, files)
    masks = [file for file in files if kind in (None, "png") and _MASK_NAME.fullmatch(file.name)]
    if masks:
        return _read_mask_pngs(masks)
    return [result for file in files for result in _read_file(file, kind, sizes, names)]


def guess_kind(path: Path) -> str:
    """The format of a file, by its name, and for JSON by its contents. Raises OptionError when it cannot be told."""
    suffix = path.suffix.lower()
    if suffix == ".png":
        return "png" if _MASK_NAME.fullmatch(path.name) else "labels"
    kinds = {".npz": "npz", ".txt": "yolo", ".geojson": "geojson"}
    if suffix in kinds:
        return kinds[suffix]
    if suffix != ".json":
        raise OptionError(f"The format of {path} is not known; say which it is: {', '.join(READABLE)}.")
    return _json_kind(read_json(path), path)


def _json_kind(document: object, path: Path) -> str:
    if isinstance(document, Mapping):
        for kind, keys in (
            ("labelme", ("shapes", "imageHeight")),
            ("coco", ("images", "annotations")),
            ("sa1b", ("image", "annotations")),
            ("json", ("masks", "size")),
            ("json", ("images", "anysam")),
            ("geojson", ("type", "features")),
        ):
            if all(key in document for key in keys):
                return kind
    raise OptionError(f"{path} is JSON of no format that is known here: {', '.join(_JSON_KINDS)}.")


def _files(source: Path, kind: str | None) -> list[Path]:
    if not source.is_dir():
        return [source]
    wanted = {"npz": ".npz", "yolo": ".txt", "png": ".png", "labels": ".png"}.get(kind or "")
    found = sorted(file for file in source.iterdir() if file.is_file() and not file.name.startswith("."))
    files = [
        file
        for file in found
        if file.suffix.lower() in _SUFFIXES
        and not file.name.endswith((".names.txt", "_overlay.png"))
        and not re.search(r"_cutout_\d+\.png$", file.name)
        and (wanted is None or file.suffix.lower() == wanted)
    ]
    if kind in _JSON_KINDS:
        files = [file for file in files if _may_be(file, kind)]
    if kind == "labels":
        files = [file for file in files if not _MASK_NAME.fullmatch(file.name)]
    if not files:
        raise OptionError(f"The folder {source} has no files of masks; they end in {', '.join(_SUFFIXES)}.")
    return files


def _may_be(file: Path, kind: str) -> bool:
    """Whether a file is JSON of this kind; both kinds of COCO are told apart by their names only."""
    if file.suffix.lower() not in (".json", ".geojson"):
        return False
    endings = {"coco": ".polygons.json", "coco-polygons": ".coco.json"}
    if kind in endings:
        return not file.name.lower().endswith(endings[kind]) and guess_kind(file) == "coco"
    return guess_kind(file) == kind


def _check_one_kind(folder: Path, files: Sequence[Path]) -> None:
    kinds = sorted({guess_kind(file) for file in files})
    if len(kinds) > 1:
        raise OptionError(f"The folder {folder} has files of several formats, {', '.join(kinds)}; say which to read.")


def _read_file(path: Path, kind: str | None, sizes: Sizes | None, names: list[str] | None) -> list[ImageResult]:
    kind = guess_kind(path) if kind is None else kind
    if kind == "npz":
        return [read_npz(path)]
    if kind == "labels":
        return [read_label_map(path)]
    if kind == "png":
        raise OptionError(f"{path} is not named like a mask: <image>_mask_<number>.png.")
    if kind == "yolo":
        if sizes is None:
            raise OptionError(f"{path} does not say how large its image is; say where the images are.")
        return [read_yolo(path, sizes(path.stem), names)]
    document, name = read_json(path), str(path)
    if not isinstance(document, Mapping):
        raise OptionError(f"{path} is no document of masks: an object is expected, got {type(document).__name__}.")
    if kind in ("coco", "coco-polygons"):
        return coco_to_results(document, name)
    if kind == "json":
        return native_to_results(document, name)
    return [{"labelme": labelme_to_result, "geojson": geojson_to_result, "sa1b": sa1b_to_result}[kind](document, name)]


def _read_mask_pngs(paths: Sequence[Path]) -> list[ImageResult]:
    """One image for each stem, its masks in the order of their numbers."""
    groups: dict[str, list[tuple[int, Path]]] = {}
    for path in paths:
        found = _MASK_NAME.fullmatch(path.name)
        assert found is not None
        groups.setdefault(found[1], []).append((int(found[2]), path))
    results = []
    for stem, members in groups.items():
        masks = [_mask_png(path) for _, path in sorted(members)]
        if len({mask.shape for mask in masks}) > 1:
            raise OptionError(f"The masks of {stem} in {members[0][1].parent} are of different sizes.")
        size = (masks[0].shape[0], masks[0].shape[1])
        records = [make_record(rle.write_rle(rle.mask_to_runs(mask), size)) for mask in masks]
        results.append(ImageResult(stem, size, tuple(records)))
    return results


def _mask_png(path: Path) -> np.ndarray:
    try:
        with Image.open(path, formats=["PNG"]) as image:
            if image.width * image.height > MAX_PIXELS:
                raise OptionError(f"{path} is too large: {image.width}x{image.height} pixels.")
            return np.asarray(image.convert("L")) > 127
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise OptionError(f"{path} cannot be read as a PNG: {error}.") from error
