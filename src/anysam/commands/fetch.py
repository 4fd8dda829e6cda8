"""Download weights, or a file that words need, now instead of on first use, and print where they are.

A download that was cut off goes on where it ended; a file that is here already is checked, not fetched again. A model
that is published as several files has them all fetched.
ANYSAM_HOME chooses the folder, ANYSAM_MIRROR another server, ANYSAM_OFFLINE=1 forbids connecting.

examples:
  anysam fetch sam_vit_b
  anysam fetch mobile_sam edge_sam --allow apache-2.0
  anysam fetch tap_vit_b tap_tokenizer merged_2560     masks, captions and names
  ANYSAM_MIRROR=https://mirror.example.org/sam anysam fetch sam_vit_l sam_vit_h
"""

import argparse
import json
import sys
from collections.abc import Collection

from anysam.catalogue import RESOURCES, Resource, Variant, find_published
from anysam.commands.options import add_allow
from anysam.commands.progress import download_progress
from anysam.fetch import fetch_resource, fetch_weights, locate, missing_parts, title
from anysam.licences import allowed_licences, announce_licence, require_allowed


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("names", nargs="+", metavar="NAME", help="a model or a file of `anysam models`")
    add_allow(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON document")


def run(arguments: argparse.Namespace) -> int:
    """Fetch each in turn.

    Raises UnknownModelError and LicenceError before any download, DownloadError or WeightsError.
    """
    allowed = allowed_licences(arguments.allow)
    rows = [find_published(name) for name in arguments.names]
    for row in rows:
        if isinstance(row, Resource):
            require_allowed(row.name, row.licence, allowed, f"the {title(row)}")
        else:
            require_allowed(row.name, row.weights_licence, allowed)
    fetched = []
    for row in rows:
        for file in _fetch(row, arguments.allow):
            fetched.append({"name": row.name, "file" if isinstance(row, Resource) else "weights": file})
            if not arguments.json:
                print(file, flush=True)
    if arguments.json:
        print(json.dumps({"fetched": fetched}, indent=2))
    _say_what_words_need(rows)
    return 0


def _fetch(row: Variant | Resource, allow: str | None) -> list[str]:
    """The paths of one row's files, fetched."""
    if isinstance(row, Resource):
        with download_progress(row.name) as progress:
            return [str(fetch_resource(row.name, progress, allow))]
    announce_licence(row.name, row.weights_licence)
    paths = []
    for part in missing_parts(row) or (row,):
        with download_progress(row.name) as progress:
            paths.append(str(fetch_weights(part, progress)))
    return paths


def _say_what_words_need(rows: Collection[Variant | Resource]) -> None:
    """On stderr, which further files the fetched models find words with, if those are not here."""
    models = [row for row in rows if isinstance(row, Variant)]
    needed: dict[str, Resource] = {}  # the first of each kind
    for resource in RESOURCES:
        if resource.kind in ("vocabulary", "tokenizer") and any(row.family in resource.families for row in models):
            needed.setdefault(resource.kind, resource)
    missing = [resource for resource in needed.values() if locate(resource) is None]
    if missing:
        model = next(row for row in models if row.family in missing[0].families)
        what = " and ".join(f"the {title(resource)}" for resource in missing)
        names = " ".join(resource.name for resource in missing)
        print(f"For words {model.name} also needs {what}: anysam fetch {names}", file=sys.stderr)
