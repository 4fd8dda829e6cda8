"""Rewrite masks of one file format in another: COCO, YOLO, labelme, label maps, GeoJSON, NumPy, SA-1B, PNG.

A is a file or a folder of files in one format, B a file for one image (COCO: for all of them) or a folder for any
number. The formats are told by names and contents; --from and --to say what cannot be told. docs/formats.md has a table
of what each format holds. What is lost on the way is said and counted.

Paths of written files go to stdout, everything else to stderr. Exit status: 0 done, 1 some files could not be read (the
others are done), 2 bad input, 130 interrupted.

examples:
  anysam convert-masks photo.coco.json photo.labelme.json
  anysam convert-masks labelme_files/ all.json --to coco
  anysam convert-masks instances.json labels/ --to yolo
  anysam convert-masks labels/ masks/ --from yolo --images photos/ --classes classes.txt --to labels
  anysam convert-masks results/ annotations/ --from json --to sa1b
"""

import argparse
import dataclasses
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from anysam.commands.options import READABLE
from anysam.errors import AnySamError, OptionError

if TYPE_CHECKING:
    from anysam.outputs import ImageResult, Loss

_ENDINGS = (
    (".coco.json", "coco"),
    (".polygons.json", "coco-polygons"),
    (".labelme.json", "labelme"),
    (".sa1b.json", "sa1b"),
    (".geojson", "geojson"),
    (".npz", "npz"),
    (".txt", "yolo"),
    (".png", "labels"),
)
_OF_MANY = ("coco", "coco-polygons")
_READ = ", ".join(READABLE)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("source", metavar="A", type=Path, help="file or folder of masks")
    parser.add_argument("target", metavar="B", type=Path, help="file or folder to write, made if missing")
    parser.add_argument("--from", dest="source_format", metavar="FORMAT", help=f"of A: {_READ}")
    parser.add_argument("--to", dest="target_format", metavar="FORMAT", help="of B, one of the same")
    parser.add_argument("--images", metavar="DIR", type=Path, help="the photographs, whose sizes YOLO's files lack")
    parser.add_argument(
        "--classes",
        metavar="FILE",
        type=Path,
        help="names of the classes of YOLO's and COCO's files in their order, one a line",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document on stdout")


def run(arguments: argparse.Namespace) -> int:
    """Convert everything. Raises AnySamError when a file cannot be read or written."""
    from anysam.outputs import read_masks

    for given in (arguments.source_format, arguments.target_format):
        if given is not None and given not in READABLE:
            raise OptionError(f"The format {given!r} does not keep masks; formats that do are {', '.join(READABLE)}.")
    kind = arguments.target_format or _target_kind(arguments.target)
    names = None if arguments.classes is None else _names(arguments.classes)
    images = None if arguments.images is None else _images(arguments.images)
    sizes = None if images is None else _sizes(arguments.images, images)
    failed: list[tuple[Path, AnySamError]] = []
    results = read_masks(arguments.source, arguments.source_format, sizes, names, failed)
    if failed and not results:
        raise failed[0][1]
    results = [_with_file_name(result, images or {}) for result in results]
    losses: list[tuple[str, Loss]] = []
    paths = _write(results, arguments.target, kind, names, losses)
    for image, loss in losses:
        print(f"warning: {image}: {loss}", file=sys.stderr)
    masks = sum(len(result.records) for result in results)
    if arguments.json:
        document = {
            "images": len(results),
            "masks": masks,
            "format": kind,
            "files": [str(path) for path in paths],
            "failed": [{"file": str(file), "error": str(error)} for file, error in failed],
            "lost": [{"image": image, "what": loss.what, "count": loss.count} for image, loss in losses],
        }
        print(json.dumps(document))
    else:
        for path in paths:
            print(path)
        print(f"{masks} masks of {len(results)} images.", file=sys.stderr)
    if failed:
        print(f"{len(failed)} files could not be read:", file=sys.stderr)
    for _, error in failed:
        print(f"  {error}", file=sys.stderr)
    return 1 if failed else 0


def _target_kind(target: Path) -> str:
    for ending, kind in _ENDINGS:
        if target.name.lower().endswith(ending):
            return kind
    raise OptionError(f"The format of {target} cannot be told by its name; add --to with one of {_READ}.")


def _names(path: Path) -> list[str]:
    try:
        names = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise OptionError(f"The class names {path} cannot be read: {error}.") from error
    if not names or len(set(names)) < len(names):
        raise OptionError(f"{path} must name each class once, one a line; it has {len(names)} lines.")
    return names


def _images(folder: Path) -> dict[str, list[Path]]:
    """The images in a folder, by their stems."""
    from anysam.images import IMAGE_SUFFIXES

    if not folder.is_dir():
        raise OptionError(f"There is no folder {folder} of images.")
    images: dict[str, list[Path]] = {}
    for file in sorted(folder.iterdir()):
        if file.suffix.lower() in IMAGE_SUFFIXES:
            images.setdefault(file.stem, []).append(file)
    return images


def _sizes(folder: Path, images: Mapping[str, Sequence[Path]]) -> Callable[[str], tuple[int, int]]:
    """Looks up the size (H, W), upright, of the image of a stem."""
    from anysam.images import image_size

    def size(stem: str) -> tuple[int, int]:
        found = images.get(stem, ())
        if len(found) != 1:
            count = "no image" if not found else f"{len(found)} images"
            raise OptionError(f"There is {count} called {stem} in {folder}, whose size its masks need.")
        return image_size(found[0])

    return size


def _with_file_name(result: "ImageResult", images: Mapping[str, Sequence[Path]]) -> "ImageResult":
    """With the name of its image where only the stem was known."""
    found = images.get(result.file_name, ())
    return dataclasses.replace(result, file_name=found[0].name) if len(found) == 1 else result


def _write(
    results: list["ImageResult"],
    target: Path,
    kind: str,
    names: list[str] | None,
    losses: list[tuple[str, "Loss"]],
) -> list[Path]:
    from anysam.outputs import make_folder, output_stems, write_coco_json, write_result
    from anysam.outputs.files import image_stem
    from anysam.outputs.writing import OF_CLASSES

    if kind in OF_CLASSES:
        names = _all_names(results, names)
    one_file = target.suffix != "" and not target.is_dir() and kind != "png"
    if one_file and kind in _OF_MANY:
        make_folder(target.parent)
        losses += [("all", loss) for loss in write_coco_json(target, results, kind == "coco-polygons", names)]
        return [target]
    if one_file and len(results) != 1:
        raise OptionError(f"{target} can hold one image, and there are {len(results)}; give a folder.")
    folder = make_folder(target.parent if one_file else target)
    stems = [target.stem] if one_file else output_stems([f"{image_stem(result.file_name)}.x" for result in results])
    paths: list[Path] = []
    for result, stem in zip(results, stems, strict=True):
        lost: list[Loss] = []
        paths += write_result(kind, folder, stem, result, lost, path=target if one_file else None, names=names)
        losses += [(result.file_name, loss) for loss in lost]
    return paths


def _all_names(results: list["ImageResult"], given: list[str] | None) -> list[str]:
    """The classes of all images, in the order given. Raises OptionError for masks of others."""
    from anysam.outputs.words import DEFAULT_NAME, class_names

    names = class_names(results, given)
    if given is not None and names != given:
        raise OptionError(
            f"There are masks without a label, which are of the class {DEFAULT_NAME!r}, and --classes does not name "
            "it; add it as a line."
        )
    return names
