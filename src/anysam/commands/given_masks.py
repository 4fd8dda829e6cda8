"""Masks that are there already, in a file or a folder of any readable format, by image."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from anysam.errors import OptionError

if TYPE_CHECKING:
    from anysam.outputs import ImageResult
    from anysam.results import MaskRecord


@dataclass(frozen=True, eq=False)
class GivenMasks:
    """A file that was read, or a folder, whose files are read image by image: results are None. kind: or None, to be
    told by names and contents.
    """

    path: Path
    kind: str | None
    results: tuple["ImageResult", ...] | None

    def of(self, image: Path, size: tuple[int, int], warn: Callable[[str], None]) -> list["MaskRecord"]:
        """The masks of an image of `size` (H, W), by its name. warn: is told when names differ.

        Raises OptionError when there are none of it, for those of another size, and for a damaged file of a folder.
        """
        from anysam.outputs import choose_records, records_for_image

        if self.results is None:
            return records_for_image(self.path, image, size, self.kind, warn=warn)
        return choose_records(self.results, self.path, image, size, warn)


def open_masks(path: Path, kind: str | None, images: Sequence[Path]) -> GivenMasks:
    """Read a file of masks, or look whether a folder has any, for `images`. Raises OptionError."""
    from anysam.outputs import read_masks
    from anysam.outputs.readers import mask_files

    mask_files(path, kind)
    if path.is_dir():
        return GivenMasks(path, kind, None)
    return GivenMasks(path, kind, tuple(read_masks(path, kind, lambda stem: _size(path, stem, images))))


def refuse_overwriting(masks: GivenMasks, out: Path, formats: Sequence[str], stems: Sequence[str]) -> None:
    """Raises OptionError when results, whose names begin with `stems`, would take the place of masks that are read."""
    from anysam.outputs.formats import TABLE
    from anysam.outputs.readers import mask_files

    folder = masks.path if masks.path.is_dir() else masks.path.parent
    if folder.resolve() != out.resolve():
        return
    patterns = [pattern for row in TABLE if row.name in formats for pattern in row.files.split(", ")]
    names = "|".join(re.escape(stem) for stem in stems)
    endings = "|".join(re.escape(pattern[1:]).replace("_N", r"_\d+") for pattern in patterns)
    for file in mask_files(masks.path, masks.kind):
        # With a number behind it where several images have one name.
        if re.fullmatch(rf"({names})(_\d+)?({endings})", file.name, re.IGNORECASE):
            raise OptionError(
                f"The results would take the place of {file}, whose masks are read; choose another --out, or other "
                "formats with --format."
            )


def _size(path: Path, stem: str, images: Sequence[Path]) -> tuple[int, int]:
    """The size (H, W) of the image that a file belongs to which does not say it."""
    from anysam.images import image_size

    named = [image for image in images if image.stem == stem]
    chosen = named if len(images) > 1 else images
    if len(chosen) != 1:
        raise OptionError(
            f"{path} names no image, and {len(named) or 'none'} of the {len(images)} images given is called {stem}; "
            "give one image, or the folder of the files."
        )
    return image_size(chosen[0])
