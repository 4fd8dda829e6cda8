"""Files of masks in any format that can be read -> the images and masks in them."""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np

from anysam import rle
from anysam.errors import AnySamError, OptionError
from anysam.outputs.arrays import read_npz
from anysam.outputs.coco import coco_to_results
from anysam.outputs.formats import READABLE, ImageResult
from anysam.outputs.geojson import geojson_to_result
from anysam.outputs.label_map import read_label_map
from anysam.outputs.labelme import labelme_to_result
from anysam.outputs.native import native_to_results
from anysam.outputs.reading import make_record, read_json, read_png
from anysam.outputs.sa1b import sa1b_to_result
from anysam.outputs.yolo import read_yolo

Found = TypeVar("Found")
Sizes = Callable[[str], tuple[int, int]]

_MASK_NAME = re.compile(r"(.+)_mask_(\d+)\.png", re.IGNORECASE)
_SUFFIXES = (".json", ".geojson", ".npz", ".txt", ".png")
_JSON_KINDS = ("coco", "coco-polygons", "labelme", "geojson", "sa1b", "json")


class UnknownKindError(OptionError):
    """A whole JSON document, but not one of masks."""


def read_masks(
    path: str | Path,
    kind: str | None = None,
    sizes: Sizes | None = None,
    names: Sequence[str] | None = None,
    failed: list[tuple[Path, AnySamError]] | None = None,
) -> list[ImageResult]:
    """The images and masks of a file, or of all files of a folder in one format; in the order of their names.

    kind: one of READABLE; None looks at names and contents. sizes: the size (H, W) of the image of a stem, which YOLO's
    files need. names: of YOLO's classes. Formats without scores have predicted_iou 1. Files without the name of their
    image (YOLO, label maps, masks) give its stem.

    failed: takes the files of a folder that cannot be read, with the reason; None raises the first.

    Raises OptionError for damaged files, for a kind that cannot be told, and for a folder of several kinds.
    """
    source = Path(path)
    return read_files(source, mask_files(source, kind), kind, sizes, names, failed if source.is_dir() else None)


def mask_files(source: Path, kind: str | None, beginning: str = "") -> list[Path]:
    """The files that `read_masks` reads: the one given, or those of a folder by name.

    beginning: of the names of those wanted, which may be none. Raises OptionError when a folder has no files of masks.
    """
    if kind is not None and kind not in READABLE:
        raise OptionError(f"The format {kind!r} cannot be read; formats that can are {', '.join(READABLE)}.")
    if not source.exists():
        raise OptionError(f"There is no file or folder {source}.")
    return _files(source, kind, beginning)


def read_files(
    source: Path,
    files: Sequence[Path],
    kind: str | None,
    sizes: Sizes | None,
    names: Sequence[str] | None,
    failed: list[tuple[Path, AnySamError]] | None,
) -> list[ImageResult]:
    """`read_masks` for some of the files of a folder, or for the one file, that `source` is."""
    if kind is None:
        kinds = _attempt_all(files, lambda file: [(file, guess_kind(file))], failed)
        files = [file for file, _ in kinds]
        kind = _one_kind(source, {found for _, found in kinds})
    if kind == "png":
        groups = _mask_groups(files)
        return _attempt_all(list(groups), lambda first: [_read_mask_pngs(groups[first])], failed)
    chosen = kind
    return _attempt_all(files, lambda file: _read_file(file, chosen, sizes, names), failed)


def _attempt_all(
    files: Sequence[Path], read: Callable[[Path], list[Found]], failed: list[tuple[Path, AnySamError]] | None
) -> list[Found]:
    found = []
    for file in files:
        try:
            found += read(file)
        except AnySamError as error:
            if failed is None:
                raise
            failed.append((file, error))
    return found


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
    raise UnknownKindError(f"{path} is JSON of no format that is known here: {', '.join(_JSON_KINDS)}.")


def _files(source: Path, kind: str | None, beginning: str) -> list[Path]:
    if not source.is_dir():
        return [source]
    wanted = {"npz": ".npz", "yolo": ".txt", "png": ".png", "labels": ".png"}.get(kind or "")
    found = sorted(file for file in source.iterdir() if file.is_file() and not file.name.startswith("."))
    files = [
        file
        for file in found
        if file.name.startswith(beginning)
        and file.suffix.lower() in _SUFFIXES
        and not file.name.endswith((".names.txt", "_overlay.png"))
        and not re.search(r"_cutout_\d+\.png$", file.name)
        and (wanted is None or file.suffix.lower() == wanted)
    ]
    if kind in _JSON_KINDS:
        files = [file for file in files if _may_be(file, kind)]
    if kind == "png":
        files = [file for file in files if _MASK_NAME.fullmatch(file.name)]
    if kind == "labels":
        files = [file for file in files if not _MASK_NAME.fullmatch(file.name)]
    if not files and not beginning:
        raise OptionError(f"The folder {source} has no files of masks; they end in {', '.join(_SUFFIXES)}.")
    return files


def _may_be(file: Path, kind: str) -> bool:
    """Whether a file is JSON of this kind; both kinds of COCO are told apart by their names only."""
    if file.suffix.lower() not in (".json", ".geojson"):
        return False
    try:
        found = guess_kind(file)
    except OptionError as error:
        return not isinstance(error, UnknownKindError)  # what is damaged is for the reader to say
    endings = {"coco": ".polygons.json", "coco-polygons": ".coco.json"}
    if kind in endings:
        return not file.name.lower().endswith(endings[kind]) and found == "coco"
    return found == kind


def _one_kind(source: Path, kinds: set[str]) -> str:
    if len(kinds) > 1:
        words = ", ".join(sorted(kinds))
        raise OptionError(f"The folder {source} has files of several formats, {words}; say which to read.")
    return kinds.pop() if kinds else "json"  # without any file


def _read_file(path: Path, kind: str, sizes: Sizes | None, names: Sequence[str] | None) -> list[ImageResult]:
    if kind == "npz":
        return [read_npz(path)]
    if kind == "labels":
        return [read_label_map(path)]
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


def _mask_groups(paths: Sequence[Path]) -> dict[Path, list[Path]]:
    """The masks of each image, in the order of their numbers, by the first file."""
    groups: dict[str, list[tuple[int, Path]]] = {}
    for path in paths:
        found = _MASK_NAME.fullmatch(path.name)
        if found is None:
            raise OptionError(f"{path} is not named like a mask: <image>_mask_<number>.png.")
        groups.setdefault(found[1], []).append((int(found[2]), path))
    ordered = [[path for _, path in sorted(members)] for members in groups.values()]
    return {members[0]: members for members in ordered}


def _read_mask_pngs(paths: Sequence[Path]) -> ImageResult:
    records = []
    size = None
    for path in paths:
        mask = read_png(path, str(path), size, colours=True)
        size = (mask.shape[0], mask.shape[1])
        records.append(make_record(rle.write_rle(rle.mask_to_runs(_is_object(mask)), size)))
    assert size is not None
    found = _MASK_NAME.fullmatch(paths[0].name)
    return ImageResult(found[1] if found else paths[0].stem, size, tuple(records))


def _is_object(mask: np.ndarray) -> np.ndarray:
    """Lighter than half, or anything at all where there are fewer than 256 shades."""
    return mask > 127 if mask.size and mask.max() > 127 else mask > 0
