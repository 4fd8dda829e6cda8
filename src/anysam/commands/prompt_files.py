"""Boxes and points of many images from a file: COCO JSON, YOLO text or CSV. Which line a mistake is on is said.

Read here are the rows and which image each belongs to; `rows.py` knows the formats. All is checked before the first
image is opened, but for what needs the size of an image: see `ImagePrompts.in_pixels`.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from anysam.commands.prompt_rows import Kind, Row, read_coco, read_csv, read_yolo
from anysam.errors import OptionError, PromptError

if TYPE_CHECKING:
    import numpy as np

_LARGEST_FILE = 2_000_000_000  # bytes; four times the largest annotations of COCO

_KINDS = {
    "box": "COCO JSON, YOLO text (a file, or a folder with one for each image) and CSV",
    "point": "CSV",
}


@dataclass(frozen=True, eq=False)
class ImagePrompts:
    """What a file says of one image, row by row; none at all is possible.

    values: x0 y0 x1 y1 of a box, or x y of a point. normalised: as parts of the image's width and height, else in
    pixels of the original image. size: the (H, W) that the file gives the image. labels: names of the objects; scores:
    0 to 1. places: where each row stands.
    """

    values: tuple[tuple[float, ...], ...] = ()
    labels: tuple[str | None, ...] = ()
    scores: tuple[float | None, ...] = ()
    places: tuple[str, ...] = ()
    normalised: bool = False
    size: tuple[int, int] | None = None

    def in_pixels(self, size: tuple[int, int]) -> "np.ndarray":
        """The values (P, 4) or (P, 2) float64, x0 y0 x1 y1 or x y, in pixels of an image of `size` (H, W).

        Raises PromptError for what lies outside of the image, or when the file gives the image another size.
        """
        import numpy as np

        height, width = size
        if self.size is not None and self.size != size:
            raise PromptError(
                f"{self.places[0]}: the file says that the image has {self.size[1]}x{self.size[0]} pixels, but upright "
                f"it has {width}x{height}; its coordinates would not fit."
            )
        columns = len(self.values[0]) if self.values else 4
        values = np.array(self.values, dtype=np.float64).reshape(-1, columns)  # (P, 4) or (P, 2)
        if self.normalised:
            values *= np.array([width, height] * (columns // 2), dtype=np.float64)
        x, y = values[:, 0], values[:, 1]
        if columns == 4:
            outside = (x >= width) | (y >= height) | (values[:, 2] <= 0) | (values[:, 3] <= 0)
        else:
            outside = (x < 0) | (y < 0) | (x > width) | (y > height)
        for i in np.flatnonzero(outside)[:1].tolist():
            what = "box" if columns == 4 else "point"
            given = ",".join(f"{value:g}" for value in values[i])
            raise PromptError(f"{self.places[i]}: the {what} {given} lies outside of the image ({width}x{height}).")
        return values


@dataclass(frozen=True, eq=False)
class PromptFile:
    """What a file of prompts says: of each image, and how many rows it has for others, by the name it gives them."""

    path: Path
    kind: Kind
    images: Mapping[Path, ImagePrompts]
    unknown: Mapping[str, int]


def read_prompts(path: Path, kind: Kind, images: Sequence[Path]) -> PromptFile:
    """Read boxes or points for `images` from a file, or boxes from a folder of YOLO files.

    An image is found by its name, with as much of its path as the file gives, or by its name without suffix, as for
    YOLO files; by its number where COCO results name images so (139 is 000000000139.jpg). A file that names no images
    is for one image only.
    Raises OptionError for a file that is missing, malformed, ambiguous or has nothing for any of the images.
    """
    if path.is_dir():
        if kind != "box":
            raise OptionError(f"{path} is a folder; accepted for points is {_KINDS['point']}.")
        found = _read_yolo_folder(path, images)
    else:
        found = _assign(path, kind, _rows(path, kind, images), images)
    if not any(prompts.values for prompts in found.images.values()):
        raise OptionError(f"{path} has no {kind} for any of the images{_few(found.unknown)}.")
    return found


def unknown_words(found: PromptFile) -> str | None:
    """A sentence on rows for images that are not there; None when there are none."""
    if not found.unknown:
        return None
    count = sum(found.unknown.values())
    noun = found.kind if count == 1 else {"box": "boxes", "point": "points"}[found.kind]
    return f"{found.path}: {count:,} {noun} not used, being for images that were not given{_few(found.unknown)}."


def _few(unknown: Mapping[str, int]) -> str:
    if not unknown:
        return ""
    names = list(unknown)
    more = f" and {len(names) - 3:,} more" if len(names) > 3 else ""
    return f": {', '.join(name[:80] for name in names[:3])}{more}"


def _rows(path: Path, kind: Kind, images: Sequence[Path]) -> list[Row]:
    """All rows of one file, by the format that its name or its beginning tells."""
    text = _read_text(path)
    suffix, beginning = path.suffix.lower(), text.lstrip()[:1]
    if not beginning:
        raise OptionError(f"{path} is empty; accepted are {_KINDS[kind]}.")
    if suffix == ".json" or beginning in "[{":
        if kind == "point":
            raise OptionError(f"{path} is JSON; accepted for points is {_KINDS['point']}.")
        return read_coco(path, text)
    first_line = text.lstrip().splitlines()[0]
    if kind == "box" and suffix not in (".csv", ".tsv") and not any(mark in first_line for mark in ",;\t"):
        return [replace(row, image=_yolo_image(path, images)) for row in read_yolo(path, text, {})]
    return read_csv(path, text, kind)


def _yolo_image(path: Path, images: Sequence[Path]) -> str | None:
    """Whose boxes a lone YOLO file holds: those of the image with its stem, or of the only one."""
    if len(images) == 1:
        return None
    named = [image for image in images if image.stem == path.stem]
    if len(named) != 1:
        raise OptionError(
            f"{path} names no image, and {len(named) or 'none'} of the {len(images)} images given is called "
            f"{path.stem}; give one image, or the folder of the text files."
        )
    return str(named[0])


def _read_yolo_folder(folder: Path, images: Sequence[Path]) -> PromptFile:
    """The boxes in <stem>.txt for each image; classes.txt, if there, names the classes line by line."""
    files = {file.stem: file for file in sorted(folder.glob("*.txt")) if file.is_file()}
    names_file = files.pop("classes", None)
    names = dict(enumerate(_read_text(names_file).splitlines())) if names_file else {}
    if not files:
        raise OptionError(f"The folder {folder} has no text file in it; YOLO boxes are in one .txt for each image.")
    rows = {stem: read_yolo(file, _read_text(file), names) for stem, file in files.items()}
    stems = {image.stem for image in images}
    unknown = {str(files[stem]): len(rows[stem]) for stem in files if stem not in stems and rows[stem]}
    return PromptFile(folder, "box", {image: _join(rows.get(image.stem, ())) for image in images}, unknown)


def _assign(path: Path, kind: Kind, rows: Sequence[Row], images: Sequence[Path]) -> PromptFile:
    """Each row to its image."""
    ends = _path_ends(images)
    numbers: dict[int, list[Path]] = {}
    stems: dict[str, list[Path]] = {}
    for image in images:
        stems.setdefault(image.stem, []).append(image)
        if image.stem.isascii() and image.stem.isdigit() and len(image.stem) < 20:
            numbers.setdefault(int(image.stem), []).append(image)
    of_image: dict[Path, list[Row]] = {image: [] for image in images}
    unknown: dict[str, int] = {}
    for row in rows:
        if row.image is None and len(images) > 1:
            raise OptionError(f"{row.place} does not say of which image it is, and {len(images)} images were given.")
        if row.image is None:
            found = list(images)
        elif isinstance(row.image, int):
            found = numbers.get(row.image, [])
        else:
            found = ends.get(_parts(row.image)) or stems.get(row.image, [])
        if len(found) > 1:
            raise OptionError(
                f"{row.place}: {row.image} may be {found[0]} or {found[1]}; write more of its path in the file."
            )
        if found:
            of_image[found[0]].append(row)
        else:
            unknown[str(row.image)] = unknown.get(str(row.image), 0) + 1
    return PromptFile(path, kind, {image: _join(own) for image, own in of_image.items()}, unknown)


def _path_ends(images: Sequence[Path]) -> dict[tuple[str, ...], list[Path]]:
    """The images by each end of their absolute paths: (cat.jpg), (a, cat.jpg), ..."""
    ends: dict[tuple[str, ...], list[Path]] = {}
    for image in images:
        parts = image.absolute().parts
        for start in range(len(parts)):
            ends.setdefault(parts[start:], []).append(image)
    return ends


def _parts(name: str) -> tuple[str, ...]:
    """A name in a file as the parts of a path; files from Windows have backslashes."""
    return Path(name.replace("\\", "/")).parts


def _join(rows: Iterable[Row]) -> ImagePrompts:
    rows = list(rows)
    return ImagePrompts(
        values=tuple(row.values for row in rows),
        labels=tuple(row.label for row in rows),
        scores=tuple(row.score for row in rows),
        places=tuple(row.place for row in rows),
        normalised=any(row.normalised for row in rows),
        size=next((row.size for row in rows if row.size), None),
    )


def _read_text(path: Path) -> str:
    """A UTF-8 file, with or without a byte-order mark. Raises OptionError."""
    try:
        if not path.is_file():
            raise OptionError(f"{path} {'is not a regular file' if path.exists() else 'does not exist'}.")
        size = path.stat().st_size
        if size > _LARGEST_FILE:
            raise OptionError(f"{path} is too large: {size:,} bytes, at most {_LARGEST_FILE:,} are accepted.")
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise OptionError(f"{path} is not UTF-8 text (byte {error.start:,}); save it as UTF-8.") from error
    except OSError as error:
        raise OptionError(f"{path} cannot be read: {error.strerror}.") from error
