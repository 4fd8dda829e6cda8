"""List the models that --model accepts, and whether their weights are on this machine. Connects to nothing.

`info NAME` says all that is known of one model: its size and work, what it can be asked, its licences, and where its
weights come from.

examples:
  anysam models                      a table
  anysam models --json               the same as JSON, with addresses and licences in full
  anysam models info efficient_sam_vitt
"""

import argparse
import json

from anysam.catalogue import PACKAGE, Variant, WeightsFile
from anysam.errors import OptionError
from anysam.listing import ListedModel, find_model, list_models

_HEADER = ("MODEL", "WEIGHTS", "PROMPTS", "CODE", "WEIGHTS LICENCE", "HERE", "")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("action", nargs="?", metavar="info", help="with a NAME: all about this model")
    parser.add_argument("name", nargs="?", metavar="NAME", help="a model of the list")
    parser.add_argument("--json", action="store_true", help="print one JSON document")


def run(arguments: argparse.Namespace) -> int:
    """Print the table, one model's facts, or the JSON document, on stdout."""
    if arguments.action is not None:
        return _info(arguments)
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
    prompts = ", ".join(variant.prompts) or "none"
    return variant.name, size, prompts, variant.code_licence, variant.weights_licence, here, variant.summary


def _info(arguments: argparse.Namespace) -> int:
    if arguments.action != "info" or arguments.name is None:
        raise OptionError(
            f"`anysam models` takes nothing, or info and a model's name, got {arguments.action!r}"
            f"{'' if arguments.name is None else f' and {arguments.name!r}'}."
        )
    model = find_model(arguments.name)
    if arguments.json:
        print(json.dumps(model.to_dict(), indent=2))
        return 0
    facts = _facts(model)
    width = max(map(len, facts))
    for name, value in facts.items():
        print(f"{name.ljust(width)}  {value}")
    return 0


def _facts(model: ListedModel) -> dict[str, str]:
    """What there is to say of a model, a line each."""
    variant = model.variant
    unknown = "decided by the weights, or not counted here"
    limit = "none" if variant.max_points is None else f"{variant.max_points} in one prompt, a box counting as two"
    return {
        "model": variant.name,
        "summary": variant.summary,
        "parameters": unknown if variant.parameters is None else f"{variant.parameters:,}",
        "work": unknown if variant.gmac is None else f"{variant.gmac:,.1f} GMAC to encode an image",
        "prompts": ", ".join(variant.prompts) or "none: it finds all objects by itself",
        "point limit": limit,
        "code licence": variant.code_licence,
        "weights licence": variant.weights_licence,
        "described at": variant.source,
        "weights": "\n".join(_origin(variant, file) for file in variant.files).replace("\n", "\n" + " " * 17),
        "here": "no" if model.weights is None else str(model.weights),
    }


def _origin(variant: Variant, file: WeightsFile) -> str:
    """A published file, its size, and where it comes from."""
    size = "" if file.bytes is None else f" ({file.bytes / 1e6:,.1f} MB)"
    if file.url is not None:
        return f"{file.name}{size} from {file.url}"
    if file.page is not None:
        return f"{file.name}{size}, by hand from {file.page}"
    return f"{file.name}{size}, in the package" if variant.source == PACKAGE else "never released; train your own"
