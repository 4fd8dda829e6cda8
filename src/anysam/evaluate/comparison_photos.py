"""The photographs of `anysam compare` and the objects that models are asked for in them: a tight box and a click each.

The objects are the user's own masks, which belong to a photograph by path or by name, or what everything mode of a
reference model finds. Which of them are taken depends on the seed and the photograph's name alone.
"""

import dataclasses
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from anysam.automatic.presets import preset
from anysam.datasets import Entries, ImageDataset, ImageEntry, kind_of, read_dataset
from anysam.datasets.coco import CocoDataset, file_name
from anysam.datasets.label_images import IMAGE_SUFFIXES, LabelDataset
from anysam.datasets.sa1b import Sa1bDataset
from anysam.errors import ImageError, OptionError
from anysam.evaluate.runs import spread
from anysam.evaluate.sampling import chosen_masks
from anysam.images import read_image
from anysam.masks import decode_rle, mask_to_box
from anysam.metrics import centre_most_point
from anysam.models import InstanceModel
from anysam.predictor import Model

Rle = dict[str, Any]  # COCO's: {"size": [H, W], "counts": str}
Broken = tuple[str, str]  # what could not be used, and why

_LEAST_PART, _MOST_PART = 0.001, 0.6  # of a photograph: specks and backgrounds say little of a model
_LEAST_AREA = 64  # pixels of a mask of the user's
_SPLITS = ("train", "val")  # of a collection


@dataclass(frozen=True)
class Photo:
    """A photograph and its objects. boxes: x0 y0 x1 y1, clicks: x y, pixels of the image, one of each for an object.
    masks: the user's, at the image's size, or empty where a reference is asked."""

    path: Path
    boxes: tuple[tuple[float, float, float, float], ...]
    clicks: tuple[tuple[float, float], ...]
    masks: tuple[Rle, ...] = ()


@dataclass(frozen=True)
class Search:
    """Where objects are looked for, and how many are taken at most."""

    path: Path
    objects: int
    seed: int


def find_objects(model: Model, search: Search) -> Photo:
    """The photograph with objects that everything mode finds, of 0.1 % to 60 % of it; perhaps none.

    A quarter of the usual points, where points are asked: few objects are wanted. Raises ImageError.
    """
    image = read_image(search.path)
    name = "default" if isinstance(model.network, InstanceModel) else "fast"
    pixels = image.shape[0] * image.shape[1]
    records = model.everything(image, preset(name, model.variant))
    found = [each.segmentation for each in records if _LEAST_PART <= each.area / pixels <= _MOST_PART]
    order = np.random.default_rng([zlib.crc32(search.path.name.encode()), search.seed]).permutation(len(found))
    photo = photo_of(search.path, [found[i] for i in order[: search.objects]])
    return dataclasses.replace(photo, masks=())


def photo_of(path: Path, masks: Sequence[Rle]) -> Photo:
    """The photograph with a box and a click for each mask, none of them empty."""
    boxes, clicks = [], []
    for rle in masks:
        mask = decode_rle(rle)
        box = mask_to_box(mask)
        assert box is not None
        x, y = centre_most_point(mask)
        boxes.append((float(box[0]), float(box[1]), float(box[2]), float(box[3])))
        clicks.append((x + 0.5, y + 0.5))  # the middle of the pixel
    return Photo(path, tuple(boxes), tuple(clicks), tuple(masks))


def annotated_photos(
    dataset: ImageDataset, paths: Sequence[Path], objects: int, seed: int, limit: int = 0
) -> tuple[list[Photo], list[Broken]]:
    """The photographs that have masks in the data set, with up to `objects` of them each, and what could not be read.

    limit: at most so many photographs, spread evenly over those with masks; 0: all. Raises OptionError when two images
    of the data set can be the same photograph.
    """
    entries, broken = match(dataset, paths)
    photos = []
    for entry in [entries[i] for i in spread(len(entries), limit)]:
        assert isinstance(entry.path, Path)
        chosen = chosen_masks(entry, objects, _LEAST_AREA, seed)
        try:
            if chosen:
                entry.read_image()  # its size is compared with that of the masks
                photos.append(photo_of(entry.path, [_rle(entry, i) for i in chosen]))
        except ImageError as error:
            broken.append((str(entry.path), str(error)))
    return photos, broken


def match(dataset: ImageDataset, paths: Sequence[Path]) -> tuple[list[ImageEntry], list[Broken]]:
    """The entries of the photographs, in their order, each with the photograph's own path.

    An entry belongs to a photograph by its path; else by its name: to the only photograph of that name, or, of several,
    to the only one whose path ends like the entry's name ("a/1.jpg").
    """
    by_path = {path.resolve(): path for path in paths}
    by_name: dict[str, list[Path]] = {}
    for path in paths:
        by_name.setdefault(path.name, []).append(path)
    exact: dict[Path, ImageEntry] = {}
    named: dict[Path, list[ImageEntry]] = {}
    broken: list[Broken] = []
    for i in range(len(dataset)):
        try:
            entry = dataset[i]
        except ImageError as error:
            broken.append((f"image {i + 1} of {dataset.name}", str(error)))
            continue
        name = PurePath(entry.name or entry.path.name)
        twins = by_name.get(name.name, [])
        if len(twins) > 1:
            twins = [path for path in twins if path.resolve().parts[-len(name.parts) :] == name.parts]
        own = by_path.get(entry.path.resolve()) if isinstance(entry.path, Path) else None
        if own is not None:
            exact[own] = entry
        elif len(twins) == 1:
            named.setdefault(twins[0], []).append(entry)
    found = []
    for path in paths:
        candidates = [exact[path]] if path in exact else named.get(path, [])
        if len(candidates) > 1:
            raise OptionError(
                f"{dataset.name} has {len(candidates)} images called {path.name}; give the photographs that it lies "
                "with, not copies of them."
            )
        found += [dataclasses.replace(entry, path=path) for entry in candidates]
    return found, broken


def open_masks(masks: Path, paths: Sequence[Path]) -> ImageDataset:
    """The user's masks of photographs: a COCO JSON, SA-1B's files, a collection, a folder of label images with the
    names of the photographs, or one label image for one photograph. Raises OptionError."""
    if not masks.exists():
        raise OptionError(f"--masks {masks} is not there.")
    if masks.suffix.lower() in IMAGE_SUFFIXES and masks.is_file():
        if len(paths) != 1:
            raise OptionError(
                f"--masks {masks} is one label image, but there are {len(paths)} photographs; give a folder of them."
            )
        return LabelDataset(masks.name, [(paths[0], masks)])
    names = {path.name for path in paths}
    kind = kind_of(masks)
    if kind == "coco":
        folder = next((path.parent for path in paths if path.is_file()), masks.parent)
        return _of_names(read_dataset(masks, kind, images=folder), names)
    if kind == "collection":
        return _whole_collection(masks)
    if kind != "images":
        return _of_names(read_dataset(masks, kind), names)
    labels = {path.stem: path for path in sorted(masks.rglob("*")) if path.suffix.lower() == ".png"}
    pairs = [(path, labels[path.stem]) for path in paths if path.stem in labels]
    pairs = [(path, label) for path, label in pairs if path.resolve() != label.resolve()]
    if not pairs:
        raise OptionError(f"No label PNG in {masks} has the name of a photograph, such as {paths[0].stem}.png.")
    return LabelDataset(masks.name, pairs)


def _of_names(dataset: ImageDataset, names: set[str]) -> ImageDataset:
    """Without images of other names, where these can be told before their masks are read: there may be many."""
    if isinstance(dataset, CocoDataset):
        images = [image for image in dataset.images if PurePath(file_name(image)).name in names]
        return dataclasses.replace(dataset, images=images)
    if isinstance(dataset, Sa1bDataset):
        return dataclasses.replace(
            dataset, pairs=[pair for pair in dataset.pairs if PurePath(pair[0].name).name in names]
        )
    return dataset


def _whole_collection(path: Path) -> ImageDataset:
    """All parts of a collection, whatever was learnt from them; at least one must be there."""
    entries: list[ImageEntry] = []
    for split in _SPLITS:
        try:
            part = read_dataset(path, "collection", split=split)
        except OptionError:
            if split == _SPLITS[-1] and not entries:
                raise
            continue
        entries += [part[i] for i in range(len(part))]
    return Entries(path.name, entries)


def _rle(entry: ImageEntry, index: int) -> Rle:
    return {"size": list(entry.size), "counts": entry.masks[index].decode()}
