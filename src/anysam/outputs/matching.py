"""The masks of one image, looked up in a file or a folder of masks by the image's name."""

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

from anysam.errors import AnySamError, OptionError
from anysam.outputs.files import image_stem
from anysam.outputs.formats import ImageResult
from anysam.outputs.readers import mask_files, read_files
from anysam.results import MaskRecord

_LISTED = 5  # names in an error


def records_for_image(
    path: str | Path,
    image_path: str | Path,
    size: tuple[int, int],
    kind: str | None = None,
    names: Sequence[str] | None = None,
    warn: Callable[[str], object] = warnings.warn,
) -> list[MaskRecord]:
    """The masks that a file or a folder in any format of READABLE has of an image of `size` (H, W); [] is an answer.

    kind, names: as in `read_masks`. The masks are those of the image with the same file name, else of the one whose
    name is the same but for its suffix. A file that holds a single image is taken for this one whatever it is called,
    if the size is the same; in a folder the name decides. `warn` is told when names differ. In a folder, files that
    begin like the image's name are read first, and others only when the image is not among them.

    To look up many images in one large file, read it once with `read_masks` and use `choose_records`.

    Raises OptionError for masks of another size; when there are none of this image, with the names that there are; when
    several images have its name; and as `read_masks` does.
    """
    source, stem = Path(path), Path(image_path).stem
    near = mask_files(source, kind, stem) if source.is_dir() else []
    failed: list[tuple[Path, AnySamError]] = []

    def read(some: list[Path]) -> list[ImageResult]:
        return read_files(source, some, kind, lambda _: size, names, failed if source.is_dir() else None)

    if near:
        results = read(near)
        if _called_alike(results, Path(image_path).name):
            return choose_records(results, source, image_path, size, warn)
        failed.clear()
    results = read(mask_files(source, kind))
    if failed and not _called_alike(results, Path(image_path).name):
        # Not the listing of what there is: the image may be in what could not be read.
        raise next((error for file, error in failed if file in near), failed[0][1])
    return choose_records(results, source, image_path, size, warn)


def choose_records(
    results: Sequence[ImageResult],
    source: str | Path,
    image_path: str | Path,
    size: tuple[int, int],
    warn: Callable[[str], object] = warnings.warn,
) -> list[MaskRecord]:
    """The masks of one image among those that were read from `source`; for the rules see `records_for_image`."""
    name = Path(image_path).name
    found = _called_alike(results, name)
    if len(found) > 1:
        raise OptionError(
            f"{source} has {len(found)} images called {name}, with or without its suffix; give the file of this one."
        )
    if not found and (len(results) != 1 or Path(source).is_dir()):
        raise OptionError(f"{source} has no masks of {name}; {_listing(results)}.")
    (result,) = found or results
    theirs = Path(result.file_name).name
    if result.size != size:
        turned = "; they may be of the image before it was turned upright" if result.size == size[::-1] else ""
        raise OptionError(
            f"{source}: the masks of {theirs} are for {result.size[1]}x{result.size[0]} pixels, but {image_path} has "
            f"{size[1]}x{size[0]}{turned}; give the masks of this image at its original size."
        )
    if theirs not in (name, Path(name).stem):
        warn(f"The masks in {source} are of {theirs}; they are taken for those of {image_path}, which has its size.")
    return list(result.records)


def _called_alike(results: Sequence[ImageResult], name: str) -> list[ImageResult]:
    """Those of exactly this name, else of this name but for the suffix, which some formats do not keep."""
    same = [result for result in results if Path(result.file_name).name == name]
    return same or [result for result in results if image_stem(result.file_name) == Path(name).stem]


def _listing(results: Sequence[ImageResult]) -> str:
    if not results:
        return "it names no image at all"
    listed = ", ".join(Path(result.file_name).name[:80] for result in results[:_LISTED])
    more = f" and {len(results) - _LISTED:,} more" if len(results) > _LISTED else ""
    return f"it has those of {listed}{more}"
