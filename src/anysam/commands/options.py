"""Options that several commands have."""

import argparse
import importlib.util
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from anysam.store import EmbeddingStore


# Those of anysam.outputs, which --help must not import.
FORMATS = (
    *("png", "overlay", "cutout", "coco", "coco-polygons", "yolo", "labelme", "labels", "geojson", "npz", "sa1b"),
    "json",
)
READABLE = tuple(name for name in FORMATS if name not in ("overlay", "cutout"))
DEFAULT_OUT = "out"


def add_allow(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """Declare --allow, for `anysam.licences.allowed_licences`."""
    parser.add_argument(
        "--allow",
        metavar="LICENCES",
        help="refuse weights under other licences, for example apache-2.0,mit (default: ANYSAM_ALLOW, or all)",
    )


def add_cache(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """Declare --cache and --cache-size, for `open_cache`."""
    parser.add_argument(
        "--cache", metavar="DIR", help="keep encoded images here, so that none is encoded twice by the same model"
    )
    parser.add_argument(
        "--cache-size",
        metavar="SIZE",
        help="remove what was not used for longest from the cache beyond this, for example 500M (default: 10G)",
    )


def open_cache(arguments: argparse.Namespace) -> "EmbeddingStore | None":
    """The store that --cache names, or None. Raises OptionError, or OutputError for a folder that cannot be made."""
    from anysam.errors import OptionError

    if arguments.cache is None:
        if arguments.cache_size is not None:
            raise OptionError("--cache-size is the size of a cache, but there is none; name its folder with --cache.")
        return None
    from anysam.memory import parse_size
    from anysam.store import DEFAULT_MAX_BYTES, EmbeddingStore  # which imports torch

    max_bytes = DEFAULT_MAX_BYTES if arguments.cache_size is None else parse_size(arguments.cache_size)
    return EmbeddingStore(arguments.cache, max_bytes, warn)


def add_prompts(group: argparse._ArgumentGroup) -> None:
    """Declare --point, --box, --mask, --polygon, --scribble and --object, for `hints.prompts_from_hints`."""
    group.add_argument(
        "--point",
        action="append",
        default=[],
        metavar="X,Y",
        help="a point on the object; =-X,Y: not on it; repeatable",
    )
    group.add_argument(
        "--box", action="append", default=[], metavar="X1,Y1,X2,Y2", help="a box around the object; repeatable"
    )
    group.add_argument(
        "--mask",
        action="append",
        default=[],
        metavar="FILE",
        help="a rough mask: an image of the same size, not black where the object is",
    )
    group.add_argument(
        "--polygon", action="append", default=[], metavar="'X,Y;X,Y;...'", help="a rough outline of the object"
    )
    group.add_argument(
        "--scribble",
        action="append",
        default=[],
        metavar="'X,Y;X,Y;...'",
        help="a stroke on the object; ='-X,Y;...': beside it",
    )
    group.add_argument(
        "--object",
        action="append",
        default=[],
        metavar="'KIND=VALUE ...'",
        help="one object by several hints: point=, box=, mask=, polygon=, scribble=; repeatable",
    )


def add_results(group: argparse._ArgumentGroup, formats: str, *, resume: bool) -> None:
    """Declare --out, --format (by default `formats`), --json and, where work can go on, --resume."""
    group.add_argument("--out", metavar="DIR", help=f"folder for the results, made if missing (default: {DEFAULT_OUT})")
    group.add_argument("--format", metavar="LIST", help=f"of {', '.join(FORMATS)}, with commas (default: {formats})")
    if resume:
        group.add_argument(
            "--resume", action="store_true", help="go on: skip the images that are finished, after checking their files"
        )
    group.add_argument(
        "--json",
        action="store_true",
        help="print one JSON document on stdout; files are written only with --out or --format",
    )


def chosen_formats(arguments: argparse.Namespace, default: str) -> tuple[str, ...]:
    """The formats that --format names, or the default ones. Raises OptionError."""
    from anysam.errors import OptionError
    from anysam.outputs import check_formats

    formats = tuple(word.strip() for word in (arguments.format or default).split(",") if word.strip())
    check_formats(formats)
    if not formats:
        raise OptionError(f"--format names no format, got {arguments.format!r}; write for example {default}.")
    return formats


def writes_files(arguments: argparse.Namespace) -> bool:
    """Whether files are wanted: --json alone writes none."""
    return not arguments.json or arguments.out is not None or arguments.format is not None


def results_folder(arguments: argparse.Namespace) -> Path | None:
    """The folder for results, made; None if no files are wanted. Raises OutputError."""
    from anysam.outputs import make_folder

    return make_folder(arguments.out or DEFAULT_OUT) if writes_files(arguments) else None


def resumes(arguments: argparse.Namespace) -> bool:
    """--resume, checked. Raises OptionError."""
    from anysam.errors import OptionError

    if arguments.resume and not writes_files(arguments):
        raise OptionError("--resume looks at the files of the run before, and --json alone writes none; add --out.")
    return bool(arguments.resume)


def warn(problem: str) -> None:
    """Say on stderr what goes wrong without stopping the work."""
    print(f"warning: {printable(problem)}", file=sys.stderr)


def need_package(package: str, what: str) -> None:
    """Raises MissingExtraError when a package of the extra `text` is not installed. Imports it not."""
    from anysam.errors import MissingExtraError

    if importlib.util.find_spec(package) is None:
        raise MissingExtraError(f"{what} needs {package}, which is not installed: pip install 'anysam[text]'")


def printable(text: str) -> str:
    """On one line, whatever characters a file's name or a label has: others are written as their codes."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)
