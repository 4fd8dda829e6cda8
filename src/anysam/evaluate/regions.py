"""Regions with words, for the protocols about words: objects with their category, and boxes with captions.

Objects: COCO and LVIS JSON, and folders in the layout of our own data (images/ and annotations.json), one or several.
Captions: COCO-style JSON whose annotations have `bbox` and `caption` or `captions`, as GRiT's test.json of Visual
Genome, which Tokenize Anything is measured on (its notebooks/evaluation_tap_vit_l_v1_1.ipynb says where it is); and
Visual Genome's own region_descriptions.json, a list of {"id", "regions": [{"region_id", "x", "y", "width", "height",
"phrase"}]}.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pycocotools import mask as coco_mask

from anysam.datasets import ImageEntry
from anysam.datasets.coco import captions_of, encode_segmentation
from anysam.datasets.json_files import read_json
from anysam.errors import ImageError, OptionError
from anysam.evaluate.protocols import DataChoice
from anysam.evaluate.truth import FREQUENCIES, coco_images, file_name, read_document, truth_path
from anysam.images import image_size

_FOLDERS = ("", "images", "VG_100K", "VG_100K_2")  # of Visual Genome's images, below --images or beside the file
_SUFFIX = ".jpg"  # theirs

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Categories:
    """The categories of a data set. names: each once, in the order of the file. frequencies: "rare", "common" or
    "frequent" by name, where the file says it.
    """

    dataset: str
    path: Path
    names: tuple[str, ...]
    frequencies: Mapping[str, str]


@dataclass(frozen=True, eq=False)
class Regions:
    """Images with annotated regions; an entry's regions are made when it is asked for.

    annotations: of each of the entries, as in the file. categories: by id, of each entry's file; empty for captions.
    """

    name: str
    entries: Sequence[ImageEntry]
    annotations: Sequence[Sequence[Mapping[str, Any]]]
    categories: Sequence[Mapping[int, str]]

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int) -> ImageEntry:
        """With masks, labels and boxes of objects, or boxes and captions. Raises ImageError for unreadable ones."""
        entry, own = self.entries[index], self.annotations[index]
        try:
            if self.categories:
                return _with_objects(entry, own, self.categories[index])
            if entry.size == (0, 0):
                entry = replace(entry, size=image_size(entry.path))  # type: ignore[arg-type]  # these are files
            boxes = tuple(_corners(each["bbox"]) for each in own)
            captions = tuple(captions_of(each) for each in own)
            return replace(entry, boxes=boxes, captions=captions, ids=tuple(int(each.get("id", -1)) for each in own))
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            raise ImageError(
                f"The annotations of {entry.name} in {entry.dataset} cannot be read: {error!r}."
            ) from error


def plain_name(name: str) -> str:
    """What two spellings of a name have in common: small letters, spaces for _ and -."""
    return " ".join(re.split(r"[\s_-]+", name.lower())).strip()


# --- objects ----------------------------------------------------------------------------------------------------------


def read_categories(data: DataChoice) -> tuple[Categories, ...]:
    """The categories of every file of --data that has at least two of them. Raises OptionError if none has."""
    return tuple(categories for categories, _ in _documents(data))


def _documents(data: DataChoice) -> list[tuple[Categories, dict[str, Any]]]:
    found = []
    for path in _annotation_files(data):
        document = read_document(path)
        try:
            frequencies = {str(each["name"]): each.get("frequency") for each in document["categories"]}
        except (KeyError, TypeError, AttributeError) as error:
            raise OptionError(f"{path} has categories without a name.") from error
        kinds = {name: FREQUENCIES[kind] for name, kind in frequencies.items() if kind in FREQUENCIES}
        if len(frequencies) > 1:
            found.append((Categories(_dataset(path), path, tuple(frequencies), kinds), document))
    if not found:
        raise OptionError(f"{data.data} has fewer than two categories: there is nothing to choose from.")
    return found


def read_objects(data: DataChoice) -> Regions:
    """All images with objects of the files of `read_categories`; crowds are left out."""
    entries: list[ImageEntry] = []
    annotations: list[list[Mapping[str, Any]]] = []
    categories: list[Mapping[int, str]] = []
    for each, document in _documents(data):
        by_image = _by_image([one for one in document["annotations"] if not one["iscrowd"]])
        names = {int(one["id"]): str(one["name"]) for one in document["categories"]}
        for entry in coco_images(each.path, data).entries:
            if entry.ids[0] in by_image:
                entries.append(entry)
                annotations.append(by_image[entry.ids[0]])
                categories.append(names)
    return Regions(Path(data.data).stem, entries, annotations, categories)


def _annotation_files(data: DataChoice) -> list[Path]:
    one = truth_path("", data)
    found = sorted(Path(data.data).glob("*/annotations.json")) if one is None else [one]
    if not found or not all(path.is_file() for path in found):
        raise OptionError(
            f"{data.data} has no categories; give a COCO or LVIS JSON, or folders with an annotations.json each."
        )
    return found


def _dataset(path: Path) -> str:
    """As `coco_images` calls it."""
    return path.parent.name if path.name == "annotations.json" else path.stem


def _with_objects(entry: ImageEntry, own: Sequence[Mapping[str, Any]], categories: Mapping[int, str]) -> ImageEntry:
    masks = tuple(encode_segmentation(each["segmentation"], entry.size) for each in own)
    forms = [{"size": list(entry.size), "counts": counts} for counts in masks]
    return replace(
        entry,
        masks=masks,
        areas=tuple(int(coco_mask.area(form)) for form in forms),
        labels=tuple(categories[int(each["category_id"])] for each in own),
        boxes=tuple(
            _corners(each.get("bbox") or coco_mask.toBbox(form)) for each, form in zip(own, forms, strict=True)
        ),
        ids=tuple(int(each.get("id", -1)) for each in own),
    )


# --- captions ---------------------------------------------------------------------------------------------------------


def read_captioned(data: DataChoice, join: bool = False) -> Regions:
    """All images with captioned regions, in the file's order. join: annotations of the same box are one region with all
    of their captions.

    Raises OptionError for a file of another form, or none of whose annotations has a caption.
    """
    path = Path(data.data)
    if path.suffix != ".json" or not path.is_file():
        raise OptionError(f"Captions are in a JSON file, got {data.data}; see `anysam eval captions --help`.")
    if data.split:
        raise OptionError(f"{path} does not say which split an image is of; leave out --split {data.split}.")
    document = read_json(path)
    try:
        images = (
            _genome_images(path, data, document) if isinstance(document, list) else _coco_images(path, data, document)
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise OptionError(
            f"{path} is neither Visual Genome's region_descriptions.json nor a COCO JSON with captions: {error!r}."
        ) from error
    kept = [(entry, _joined(own) if join else own) for entry, own in images if own]
    if not kept:
        raise OptionError(f"No annotation of {path} has a caption and a box.")
    entries, annotations = zip(*kept, strict=True)
    return Regions(path.stem, entries, annotations, ())


def _coco_images(
    path: Path, data: DataChoice, document: Mapping[str, Any]
) -> list[tuple[ImageEntry, list[Mapping[str, Any]]]]:
    by_image = _by_image([each for each in document["annotations"] if captions_of(each)])
    folder = _folder(data, path)
    images = []
    for image in document["images"]:
        name = file_name(image)
        size = (int(image["height"]), int(image["width"]))
        place = _find(folder, name)
        images.append((ImageEntry(place, path.stem, size, (), (), name), by_image.get(int(image["id"]), [])))
    return images


def _genome_images(
    path: Path, data: DataChoice, document: Sequence[Mapping[str, Any]]
) -> list[tuple[ImageEntry, list[Mapping[str, Any]]]]:
    """The file does not tell the images' sizes; (0, 0) stands for one that is read from the image."""
    folder = _folder(data, path)
    images = []
    for image in document:
        name = f"{int(image['id'])}{_SUFFIX}"
        own: list[Mapping[str, Any]] = [
            {
                "id": each["region_id"],
                "bbox": [each["x"], each["y"], each["width"], each["height"]],
                "caption": str(each["phrase"]),
            }
            for each in image["regions"]
        ]
        images.append((ImageEntry(_find(folder, name), path.stem, (0, 0), (), (), name), own))
    return images


def _folder(data: DataChoice, path: Path) -> Path:
    folder = Path(data.images) if data.images else path.parent
    if not folder.is_dir():
        raise OptionError(f"The folder of images {folder} does not exist; name it with --images.")
    return folder


def _find(folder: Path, name: str) -> Path:
    """Where an image is; where it would be if it is nowhere."""
    places = [folder / below / part for below in _FOLDERS for part in (name, name.rpartition("/")[2])]
    return next((place for place in places if place.is_file()), places[0])


def _joined(annotations: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """One annotation for each box, with the captions of all that have it; its id is that of the first."""
    by_box: dict[tuple[float, ...], dict[str, Any]] = {}
    for each in annotations:
        one = by_box.setdefault(tuple(map(float, each["bbox"])), {"bbox": each["bbox"], "id": each.get("id", -1)})
        one["captions"] = (*one.get("captions", ()), *captions_of(each))
    return list(by_box.values())


def _by_image(annotations: Sequence[Mapping[str, Any]]) -> dict[int, list[Mapping[str, Any]]]:
    found: dict[int, list[Mapping[str, Any]]] = {}
    for each in annotations:
        found.setdefault(int(each["image_id"]), []).append(each)
    return found


def _corners(box: Sequence[float]) -> Box:
    """x y w h -> x0 y0 x1 y1."""
    x, y, width, height = (float(value) for value in box)
    return (x, y, x + width, y + height)
