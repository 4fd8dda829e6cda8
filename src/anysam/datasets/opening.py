"""Which kind of data a path is, and its reader."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from anysam.datasets.coco import read_coco
from anysam.datasets.collection import read_collection
from anysam.datasets.entries import ImageDataset, ImageEntry
from anysam.datasets.label_images import ImageFolder, image_files, read_label_folder
from anysam.datasets.sa1b import read_sa1b_folder, read_sa1b_tars
from anysam.errors import OptionError

KINDS = ("coco", "sa1b", "sa1b-tar", "labels", "collection", "images")


@dataclass(frozen=True, eq=False)
class Subset:
    """Some entries of a data set, by their numbers in it."""

    name: str
    whole: ImageDataset
    indices: Sequence[int]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> ImageEntry:
        return self.whole[self.indices[index]]


@dataclass(frozen=True, eq=False)
class Entries:
    """Entries that are in memory."""

    name: str
    entries: Sequence[ImageEntry]

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int) -> ImageEntry:
        return self.entries[index]


def read_dataset(
    path: str | Path,
    kind: str = "auto",
    *,
    split: str | None = None,
    images: str | Path | None = None,
    limit: int | None = None,
) -> ImageDataset:
    """Images with masks at `path`; kind: one of KINDS, or "auto" to tell from what is there.

    coco: a COCO or LVIS instances json. sa1b: a folder of sa_N.jpg and sa_N.json. sa1b-tar: a tar of those, or a folder
    of tars. labels: a folder of label PNGs. collection: folders of images/ and annotations.json, or one such folder.
    images: a folder of images without masks. split: of a collection, "train" by default. images: the folder of the
    images of a coco or labels. limit: the first so many images.
    Raises OptionError for a path that is not there or not of this kind.
    """
    path, folder = Path(path).expanduser(), None if images is None else Path(images).expanduser()
    if not path.exists():
        raise OptionError(f"{path} is not there.")
    if kind not in ("auto", *KINDS):
        raise OptionError(f"A kind of data must be auto or one of {', '.join(KINDS)}, got {kind!r}.")
    kind = kind_of(path, folder) if kind == "auto" else kind
    if split and kind != "collection":
        raise OptionError(f"{path} ({kind}) has no parts with names; leave out the split {split!r}.")
    if folder and kind not in ("coco", "labels"):
        raise OptionError(f"{path} ({kind}) has its images with it; leave out the folder of images {folder}.")
    dataset = _read(path, kind, split or "train", folder)
    if limit is not None and limit < len(dataset):
        return Subset(dataset.name, dataset, range(limit))
    return dataset


def kind_of(path: Path, images: Path | None = None) -> str:
    """The kind of data a file or folder is. Raises OptionError if it is none."""
    if path.is_file():
        if path.suffix.lower() not in (".json", ".tar"):
            raise OptionError(f"{path} is neither a COCO .json nor an SA-1B .tar.")
        return "coco" if path.suffix.lower() == ".json" else "sa1b-tar"
    if (path / "annotations.json").is_file() or next(path.glob("*/annotations.json"), None):
        return "collection"
    if images is not None or ((path / "images").is_dir() and any((path / n).is_dir() for n in ("labels", "masks"))):
        return "labels"
    if next(path.glob("*.tar"), None):
        return "sa1b-tar"
    if next((each for each in path.glob("*.json") if each.with_suffix(".jpg").is_file()), None):
        return "sa1b"
    if image_files(path):
        return "images"
    raise OptionError(f"{path} holds no data of a known kind; kinds are {', '.join(KINDS)}.")


def _read(path: Path, kind: str, split: str, images: Path | None) -> ImageDataset:
    if kind == "coco":
        return read_coco(path, images)
    if kind == "sa1b":
        return read_sa1b_folder(path)
    if kind == "sa1b-tar":
        return read_sa1b_tars(path)
    if kind == "labels":
        return read_label_folder(path, images)
    if kind == "images":
        return ImageFolder(path.name, path, image_files(path))
    one = (path / "annotations.json").is_file()
    try:
        sets = read_collection(path.parent, split, [path.name]) if one else read_collection(path, split)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise OptionError(f"{path} cannot be read as a collection: {error}.") from error
    entries = [entry for own in sets.values() for entry in own]
    if len(sets) > 1:  # two folders may hold images of the same name
        entries = [replace(entry, name=f"{entry.dataset}/{entry.name}") for entry in entries]
    if not entries:
        raise OptionError(f"{path} has no images with masks in its split {split!r}.")
    return Entries(path.name, entries)
