"""Names of a project's images in files of masks: given out by exports, recognised by imports. No database."""

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from anysam.outputs import output_stems
from anysam.outputs.files import image_stem

_MOST_BYTES = 120  # of a stem: what formats add to it must fit into a file name, too
_UNPORTABLE = re.compile(r'[<>:"/\\|?*\x00-\x1f\x7f]')  # on some system or other


@dataclass(frozen=True)
class NamedImage:
    """An image and its names in files. stem, file_name: no two images of a project have the same, whatever the case.

    name: as it was uploaded, which others may have. size: (H, W).
    """

    id: str
    name: str
    size: tuple[int, int]
    stem: str
    file_name: str


def name_images(found: Sequence[tuple[str, str, tuple[int, int]]]) -> list[NamedImage]:
    """Names for images of (id, name, size), in their order: their own, with a number where one is there before."""
    wanted = [portable(image_stem(name)) for _, name, _ in found]
    named = []
    for (image_id, name, size), stem in zip(found, output_stems([f"{each}.x" for each in wanted]), strict=True):
        suffix = name[len(image_stem(name)) :]  # one of a few, or none
        named.append(NamedImage(image_id, name, size, stem, f"{stem}{suffix}"))
    return named


def portable(text: str) -> str:
    """A text as a part of a file name on any system: not hidden, not too long, without signs that some refuse."""
    text = _UNPORTABLE.sub("_", text)
    text = text.encode()[:_MOST_BYTES].decode(errors="ignore").rstrip(" .")
    return f"_{text[1:]}" if text.startswith(".") else text or "image"


class ImageNames:
    """Finds the image that a file of masks means. Of several images of one name, the first is meant, as in exports."""

    def __init__(self, images: Sequence[NamedImage]) -> None:
        self._by_name: dict[str, NamedImage] = {}
        self._by_stem: dict[str, NamedImage] = {}
        names = [[image.file_name for image in images], [image.name for image in images]]
        stems = [[image.stem for image in images], [image_stem(image.name) for image in images]]
        for listed, table in ((names, self._by_name), (stems, self._by_stem)):
            for each in listed:
                for name, image in zip(each, images, strict=True):
                    table.setdefault(_key(name), image)

    def find(self, file_name: str) -> NamedImage | None:
        """The image of a file name, folders left out; else the one of this name but for the suffix; else None."""
        name = re.split(r"[\\/]", file_name)[-1]
        stem = image_stem(name)
        return self._by_name.get(_key(name)) or self._by_stem.get(_key(stem))

    def find_stem(self, stem: str) -> NamedImage | None:
        """The image of a name without its suffix, or None."""
        return self._by_stem.get(_key(stem))


def base_name(path: str) -> str:
    """The last part of a path of any system."""
    return Path(path.replace("\\", "/")).name


def _key(name: str) -> str:
    return unicodedata.normalize("NFC", name)  # zip files of some systems have accents apart from their letters
