"""Download weights now, instead of on first use, and print where they are.

A download that was cut off goes on where it ended; a file that is here already is checked, not fetched again. A model
that is published as several files has them all fetched.
ANYSAM_HOME chooses the folder, ANYSAM_MIRROR another server, ANYSAM_OFFLINE=1 forbids connecting.

examples:
  anysam fetch sam_vit_b
  anysam fetch mobile_sam edge_sam --allow apache-2.0
  ANYSAM_MIRROR=https://mirror.example.org/sam anysam fetch sam_vit_l sam_vit_h
"""

import argparse
import json

from anysam.catalogue import find_variant
from anysam.commands.options import add_allow
from anysam.commands.progress import download_progress
from anysam.fetch import fetch_weights, missing_parts
from anysam.licences import allowed_licences, announce_licence, require_allowed


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("names", nargs="+", metavar="NAME", help="a model of `anysam models`")
    add_allow(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON document")


def run(arguments: argparse.Namespace) -> int:
    """Fetch each model in turn.

    Raises UnknownModelError and LicenceError before any download, DownloadError or WeightsError.
    """
    allowed = allowed_licences(arguments.allow)
    variants = [find_variant(name) for name in arguments.names]
    for variant in variants:
        require_allowed(variant.name, variant.weights_licence, allowed)
    fetched = []
    for variant in variants:
        announce_licence(variant.name, variant.weights_licence)
        for file in missing_parts(variant) or (variant,):
            with download_progress(variant.name) as progress:
                path = fetch_weights(file, progress)
            fetched.append({"name": variant.name, "weights": str(path)})
            if not arguments.json:
                print(path, flush=True)
    if arguments.json:
        print(json.dumps({"fetched": fetched}, indent=2))
    return 0
