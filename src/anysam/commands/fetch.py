"""Download weights now, instead of on first use, and print where they are.

A download that was cut off goes on where it ended; a file that is here already is checked, not fetched again.
ANYSAM_HOME chooses the folder, ANYSAM_MIRROR another server, ANYSAM_OFFLINE=1 forbids connecting.

examples:
  anysam fetch sam_vit_b
  ANYSAM_MIRROR=https://mirror.example.org/sam anysam fetch sam_vit_l sam_vit_h
"""

import argparse
import json

from anysam.catalogue import find_variant
from anysam.commands.progress import download_progress
from anysam.fetch import fetch_weights


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("names", nargs="+", metavar="NAME", help="a model of `anysam models`")
    parser.add_argument("--json", action="store_true", help="print one JSON document")


def run(arguments: argparse.Namespace) -> int:
    """Fetch each model in turn. Raises UnknownModelError before any download, DownloadError or WeightsError."""
    variants = [find_variant(name) for name in arguments.names]
    fetched = []
    for variant in variants:
        with download_progress(variant.name) as progress:
            path = fetch_weights(variant, progress)
        fetched.append({"name": variant.name, "weights": str(path)})
        if not arguments.json:
            print(path, flush=True)
    if arguments.json:
        print(json.dumps({"fetched": fetched}, indent=2))
    return 0
