"""List the models that --model accepts, and whether their weights are on this machine. Connects to nothing.

examples:
  anysam models                 a table
  anysam models --json          the same as JSON, with addresses and licences in full
"""

import argparse
import json

from anysam.listing import ListedModel, list_models

_HEADER = ("MODEL", "WEIGHTS", "PROMPTS", "LICENCE", "HERE", "")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--json", action="store_true", help="print one JSON document")


def run(arguments: argparse.Namespace) -> int:
    """Print the table, or the JSON document, on stdout."""
    models = list_models()
    if arguments.json:
        print(json.dumps({"models": [model.to_dict() for model in models]}, indent=2))
        return 0
    rows = [_HEADER, *map(_row, models)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    return 0


def _row(model: ListedModel) -> tuple[str, ...]:
    variant = model.variant
    size = "?" if model.megabytes is None else f"{model.megabytes:.0f} MB"
    here = "no" if model.weights is None else "yes"
    return variant.name, size, ", ".join(variant.prompts), variant.weights_licence, here, variant.summary
