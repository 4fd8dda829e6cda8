"""Options that several commands have."""

import argparse
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from anysam.store import EmbeddingStore


# Those of anysam.outputs, which --help must not import.
FORMATS = (
    *("png", "overlay", "cutout", "coco", "coco-polygons", "yolo", "labelme", "labels", "geojson", "npz", "sa1b"),
    "json",
)
READABLE = tuple(name for name in FORMATS if name not in ("overlay", "cutout"))


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
    return EmbeddingStore(arguments.cache, max_bytes, lambda problem: print(f"warning: {problem}", file=sys.stderr))
