"""Boundaries that people drew: of regions in any data set with `annotators`, or BSDS500's own published files."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from pycocotools import mask as coco_mask

from anysam.datasets import ImageEntry
from anysam.errors import ImageError, OptionError
from anysam.evaluate.edge_thinning import thin
from anysam.images import image_size
from anysam.masks import mask_to_box

_BOUNDARY = "boundary"  # the label of a mask that is a map of boundaries, not a region
_TRUTH, _IMAGES = "groundTruth", "images"
_PUBLISHED_SPLIT = "test"  # what papers report


def drawn_boundaries(entry: ImageEntry) -> list[np.ndarray]:
    """The boundaries that each annotator of an image drew: (H, W) bool each; one person's if nobody is named.

    A pixel is at a boundary if it, the pixel to its right, the one below and the one between these are not all in the
    same regions; the set of them is then thinned, after BSDS500's seg2bdry.m ("imageSize") and bwmorph "thin". Regions
    may overlap. Where a collection leaves out small regions, the hole keeps their boundary, but
    two such regions side by side have none between them.
    """
    people = entry.annotators or (0,) * len(entry.masks)
    found: list[np.ndarray] = []
    for person in sorted(set(people)):
        own = [i for i, each in enumerate(people) if each == person]
        if entry.labels and all(entry.labels[i] == _BOUNDARY for i in own):
            found.extend(entry.decode(i).astype(np.bool_) for i in own)
            continue
        edges = np.zeros(entry.size, dtype=np.bool_)
        for i in own:
            _add_border(edges, entry.decode(i).astype(np.bool_))
        found.append(thin(edges))
    return found


def _add_border(edges: np.ndarray, region: np.ndarray) -> None:
    box = mask_to_box(region)
    if box is None:
        return
    x0, y0, x1, y1 = (int(side) for side in box)
    part = np.s_[max(y0 - 1, 0) : y1 + 1, max(x0 - 1, 0) : x1 + 1]
    edges[part] |= _changes(region[part])


def _changes(region: np.ndarray) -> np.ndarray:
    """Whether a pixel and those to the right, below and between are neither all inside nor all outside: (H, W) bool."""
    wide = np.pad(region, ((0, 1), (0, 1)), mode="edge")
    block = wide[:-1, :-1], wide[:-1, 1:], wide[1:, :-1], wide[1:, 1:]
    return np.asarray(np.logical_or.reduce(block) & ~np.logical_and.reduce(block))


@dataclass(frozen=True, eq=False)
class PublishedFolder:
    """BSDS500 as it is published: images/PART/*.jpg and groundTruth/PART/*.mat. files: of groundTruth."""

    name: str
    folder: Path
    part: str
    files: Sequence[Path]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> ImageEntry:
        file = self.files[index]
        image = self.folder / _IMAGES / self.part / f"{file.stem}.jpg"
        return replace(read_mat(file, image), dataset=self.name, name=f"{self.part}/{image.name}")


def is_published(path: Path) -> bool:
    """Whether a folder looks like BSDS500's `data`."""
    return (path / _TRUTH).is_dir()


def read_published(path: Path, split: str) -> PublishedFolder:
    """A part of BSDS500's folder `data`; "" is test. Raises OptionError where there is none."""
    part = split or _PUBLISHED_SPLIT
    files = sorted((path / _TRUTH / part).glob("*.mat"))
    if not files:
        raise OptionError(f"{path / _TRUTH / part} holds no .mat files; --split is train, val or test.")
    return PublishedFolder("bsds500", path, part, files)


def read_mat(file: Path, image: Path) -> ImageEntry:
    """A file of groundTruth: each annotator's Boundaries as one mask. Raises ImageError for one that is none."""
    from scipy.io import loadmat

    try:
        people = loadmat(file, variable_names=["groundTruth"])["groundTruth"].ravel()
        maps = [np.asarray(person["Boundaries"][0, 0]) > 0 for person in people]
    except Exception as error:  # what scipy's reader raises for a damaged file is many things
        raise ImageError(f"{file} is no groundTruth of BSDS500: {error}.") from error
    size = image_size(image)
    if not maps or any(each.shape != size for each in maps):
        raise ImageError(f"{file} does not belong to {image.name}: its boundaries are not of the image's size.")
    return ImageEntry(
        path=image,
        dataset="",
        size=size,
        masks=tuple(coco_mask.encode(np.asfortranarray(each.astype(np.uint8)))["counts"] for each in maps),
        areas=tuple(int(np.count_nonzero(each)) for each in maps),
        labels=(_BOUNDARY,) * len(maps),
        annotators=tuple(range(len(maps))),
    )
