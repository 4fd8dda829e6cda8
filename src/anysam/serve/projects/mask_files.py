"""Reads uploaded files of masks for the images of a project, by the readers of `anysam.outputs`. No database.

A reader is asked only for an image that the project has, at the size it has: nothing is unfolded for others.
"""

import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from PIL import Image

from anysam.errors import AnySamError
from anysam.outputs import guess_kind, read_masks
from anysam.outputs.coco import coco_to_results
from anysam.outputs.geojson import geojson_to_result
from anysam.outputs.labelme import labelme_to_result
from anysam.outputs.native import native_to_results
from anysam.outputs.readers import UnknownKindError
from anysam.outputs.reading import read_json
from anysam.results import MaskRecord
from anysam.serve.projects.archives import is_archive, opened_archive, unpack
from anysam.serve.projects.bodies import ProjectLimits
from anysam.serve.projects.errors import ProjectError, refused
from anysam.serve.projects.naming import ImageNames, NamedImage, base_name

IMPORT_FORMATS = ("coco", "yolo", "labelme", "labels", "png", "geojson", "json")
_SUFFIXES = {"yolo": (".txt",), "labels": (".png",), "png": (".png",)}
_JSON = (".json", ".geojson")
_MASK_PNG = re.compile(r"(.+)_mask_(\d+)\.png", re.IGNORECASE)
_CLASSES = "classes.txt"
_HIDDEN = ("__MACOSX",)  # what macOS adds to zip files; and names that begin with a dot
_LONGEST_NAME = 200  # bytes, of a temporary file
_PNG = b"\x89PNG"


@dataclass(frozen=True)
class Found:
    """The masks of one image in a file. where: the file's name, for messages. has_scores: whether the format has."""

    image: NamedImage
    records: Sequence[MaskRecord]
    where: str
    has_scores: bool


class MaskFiles:
    """A reader of one upload. kind: of IMPORT_FORMATS; None finds out for each file.

    folder: for what is unpacked, one file at a time. skip: told what is left out, and why.
    """

    def __init__(
        self,
        images: ImageNames,
        kind: str | None,
        limits: ProjectLimits,
        folder: Path,
        skip: Callable[[str, str], None],
    ) -> None:
        self._images = images
        self._kind = kind
        self._limits = limits
        self._folder = folder
        self._skip = skip
        self._classes: list[str] | None = None

    def read(self, file: BinaryIO, file_name: str) -> Iterator[Found]:
        """The masks in a file, image by image. Raises ProjectError (413, 422) when something is damaged."""
        if is_archive(file):
            yield from self._read_archive(file)
            return
        path = self._folder / _upload_name(file, base_name(file_name))
        file.seek(0)
        with open(path, "wb") as target:
            shutil.copyfileobj(file, target)
        if path.stat().st_size > self._limits.document_bytes:
            raise ProjectError(413, f"The file is too large; at most {self._limits.document_bytes:,} bytes are read.")
        kind = self._kind or self._guess(path, path.name)
        if kind is None or kind not in IMPORT_FORMATS:
            raise refused(f"The file is of no format that can be imported: {', '.join(IMPORT_FORMATS)}.")
        yield from self._read_one(path, path.name, kind)

    def _read_archive(self, file: BinaryIO) -> Iterator[Found]:
        with opened_archive(file, self._limits) as (archive, entries):
            work = self._folder / "entry"
            work.mkdir()
            wanted = []
            for entry in entries:
                name = base_name(entry.filename)
                if name.startswith(".") or entry.filename.startswith(_HIDDEN):
                    continue
                if name.lower() == _CLASSES and self._kind in (None, "yolo") and "labels/" not in entry.filename:
                    path = work / _CLASSES
                    unpack(archive, entry, path, self._limits.document_bytes)
                    self._classes = _lines(path, entry.filename)
                    path.unlink()
                elif name.endswith(".names.txt") and self._kind in (None, "yolo"):
                    continue  # read with the labels beside it
                else:
                    wanted.append(entry)
            by_name = {entry.filename: entry for entry in entries}
            for entry in sorted(wanted, key=lambda each: _in_order(each.filename)):
                name = base_name(entry.filename)
                reason = self._unfit(name)
                if reason is not None:
                    self._skip(entry.filename, reason)
                    continue
                path = work / name
                unpack(archive, entry, path, self._limits.document_bytes)
                beside = by_name.get(re.sub(r"\.txt$", ".names.txt", entry.filename))
                if beside is not None and beside is not entry:
                    unpack(archive, beside, path.with_suffix(".names.txt"), self._limits.document_bytes)
                kind = self._kind or self._guess(path, name)
                if kind in IMPORT_FORMATS:
                    yield from self._read_one(path, entry.filename, kind or "")
                else:
                    self._skip(entry.filename, "it is no file of masks of a format that can be imported")
                for left in work.iterdir():
                    left.unlink()

    def _unfit(self, name: str) -> str | None:
        """Why a file is not looked at, by its name alone; None where it is."""
        suffix = Path(name).suffix.lower()
        accepted = (*_JSON, ".txt", ".png") if self._kind is None else _SUFFIXES.get(self._kind, _JSON)
        if suffix not in accepted:
            return "it is no file of masks" if self._kind is None else f"it is no file of the format {self._kind}"
        if len(name.encode(errors="replace")) > _LONGEST_NAME or "\0" in name:
            return "its name is too long or has characters that file names cannot have"
        mask, label_map = _MASK_PNG.fullmatch(name), name.lower().endswith("_labels.png")
        if suffix == ".png" and self._kind is None and not (mask or label_map):
            return "it is a picture without _mask_N or _labels in its name; say format=labels if it is a label map"
        if self._kind == "png" and not mask:
            return "it is not called <image>_mask_<number>.png"
        return None

    def _guess(self, path: Path, name: str) -> str | None:
        try:
            kind = guess_kind(path)
        except UnknownKindError:
            return None
        except AnySamError as error:
            raise _told(error, path, name) from error
        return "coco" if kind == "coco-polygons" else kind

    def _read_one(self, path: Path, name: str, kind: str) -> Iterator[Found]:
        read = {"coco": self._read_coco, "json": self._read_native}.get(kind)
        try:
            if read is not None:
                yield from read(read_json(path), name)
            elif kind in ("labelme", "geojson"):
                yield from self._read_document(read_json(path), name, kind)
            elif kind == "yolo":
                yield from self._read_yolo(path, name)
            else:
                yield from self._read_png(path, name, kind)
        except ProjectError:
            raise
        except AnySamError as error:
            raise _told(error, path, name) from error
        except (OverflowError, RecursionError, MemoryError) as error:
            raise refused(f"{name} cannot be read: its numbers are too large or it is nested too deeply.") from error

    def _read_coco(self, document: object, name: str) -> Iterator[Found]:
        """Image by image: only the rows of one at a time are made into masks."""
        rows = _rows(document, "images", name)
        of_image: dict[object, list[Mapping[str, Any]]] = {}
        for row in _rows(document, "annotations", name):
            key = row.get("image_id")
            if not isinstance(key, (int, str)):
                raise refused(f"{name}: an annotation is for image {str(key)[:40]!r}, which the file does not have.")
            of_image.setdefault(key, []).append(row)
        known = {row.get("id") for row in rows if isinstance(row.get("id"), (int, str))}
        missing = next((key for key in of_image if key not in known), None)
        if missing is not None or len(known) < len(rows):
            raise refused(f"{name}: each image needs an id of its own, and each annotation one of these as image_id.")
        categories = document.get("categories", []) if isinstance(document, Mapping) else []
        for row in rows:
            file_name = str(row.get("file_name", row.get("id")))
            found = self._match(file_name, (row.get("height"), row.get("width")), name)
            if found is not None:
                own = {"images": [row], "annotations": of_image.get(row["id"], []), "categories": categories}
                (result,) = coco_to_results(own, f"{name}, {file_name[:80]}")
                yield Found(found, result.records, name, True)

    def _read_native(self, document: object, name: str) -> Iterator[Found]:
        single = isinstance(document, Mapping) and "masks" in document
        for row in [document] if single else _rows(document, "images", name):
            assert isinstance(row, Mapping)
            file_name = str(row.get("image", Path(name).name))
            found = self._match(file_name, row.get("size"), name)
            if found is not None:
                _check_prompts(row, found.size, name)
                for result in native_to_results(row, name):
                    yield Found(found, result.records, name, True)

    def _read_document(self, document: object, name: str, kind: str) -> Iterator[Found]:
        """labelme and GeoJSON: one image a document."""
        if not isinstance(document, Mapping):
            raise refused(f"{name} is no document of masks: an object is expected.")
        facts = document.get("anysam")
        if kind == "labelme":
            size: object = (document.get("imageHeight"), document.get("imageWidth"))
            file_name = document.get("imagePath") or base_name(name)
        else:
            size = facts.get("size") if isinstance(facts, Mapping) else None
            file_name = facts.get("file_name", base_name(name)) if isinstance(facts, Mapping) else base_name(name)
        read = labelme_to_result if kind == "labelme" else geojson_to_result
        found = self._match(str(file_name), size, name)
        if found is not None:
            yield Found(found, read(document, name).records, name, True)

    def _read_yolo(self, path: Path, name: str) -> Iterator[Found]:
        found = self._images.find_stem(path.stem)
        if found is None:
            self._skip(name, f"the project has no image called {path.stem}")
            return
        for result in read_masks(path, "yolo", lambda _: found.size, self._classes):
            yield Found(found, result.records, name, False)

    def _read_png(self, path: Path, name: str, kind: str) -> Iterator[Found]:
        mask = _MASK_PNG.fullmatch(path.name)
        if kind == "png" and mask is None:
            raise refused(f"{name} is not called like a mask: <image>_mask_<number>.png.")
        stem = mask[1] if kind == "png" and mask is not None else path.stem.removesuffix("_labels")
        found = self._images.find_stem(stem)
        if found is None:
            self._skip(name, f"the project has no image called {stem}")
            return
        size = _png_size(path, name)
        if size != found.size:
            self._skip(name, _of_other_size(size, found))
            return
        for result in read_masks(path, kind):
            yield Found(found, result.records, name, False)

    def _match(self, file_name: str, size: object, name: str) -> NamedImage | None:
        """The image that is meant, if it has this size (H, W); else it is noted."""
        found = self._images.find(file_name)
        if found is None:
            self._skip(f"{name}: {file_name}", "the project has no image of this name")
            return None
        if not isinstance(size, (list, tuple)) or list(size) != list(found.size):
            self._skip(f"{name}: {file_name}", _of_other_size(size, found))
            return None
        return found


def _rows(document: object, key: str, name: str) -> list[Mapping[str, Any]]:
    rows = document.get(key) if isinstance(document, Mapping) else None
    if not isinstance(rows, list) or not all(isinstance(row, Mapping) for row in rows):
        raise refused(f"{name}: {key} must be a list of objects.")
    return rows


def _check_prompts(row: Mapping[str, Any], size: tuple[int, int], name: str) -> None:
    """Masks in prompts are unfolded when they are read: none may be of another size. Raises ProjectError (422)."""
    for form in _rows(row, "masks", name):
        prompt = form.get("prompt")
        mask = prompt.get("mask") if isinstance(prompt, Mapping) else None
        if isinstance(mask, Mapping) and mask.get("size") != list(size):
            raise refused(f"{name}: the mask of a prompt must have the size of its image, {list(size)}.")


def _of_other_size(size: object, image: NamedImage) -> str:
    return f"it is for the size {str(size)[:60]} (H, W), and {image.name} has {list(image.size)}"


def _png_size(path: Path, name: str) -> tuple[int, int]:
    try:
        with Image.open(path, formats=["PNG"]) as opened:
            return opened.height, opened.width
    except Exception as error:  # Pillow raises whatever damage makes it trip over
        raise refused(f"{name} is no PNG, or a damaged one.") from error


def _lines(path: Path, name: str) -> list[str]:
    try:
        return path.read_bytes().decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise refused(f"{name} is no text in UTF-8.") from error


def _in_order(name: str) -> tuple[str, int]:
    """By name, and masks of an image by their numbers."""
    found = _MASK_PNG.fullmatch(name)
    return (found[1], int(found[2][:18])) if found else (name, 0)


def _upload_name(file: BinaryIO, name: str) -> str:
    """What the upload is called here: its own name where that says something, with the suffix of what is in it."""
    file.seek(0)
    beginning = file.read(64)
    if beginning.startswith(_PNG):
        suffix = ".png"
    elif beginning.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] in (b"{", b"["):
        suffix = Path(name).suffix.lower() if Path(name).suffix.lower() in _JSON else ".json"
    else:
        suffix = ".txt"
    stem = re.sub(r"[\x00-\x1f\ud800-\udfff]", "_", Path(name).stem).encode()[:_LONGEST_NAME]
    return f"{stem.decode(errors='ignore') or 'upload'}{suffix}"


def _told(error: AnySamError, path: Path, name: str) -> ProjectError:
    return refused(str(error).replace(str(path), name))
