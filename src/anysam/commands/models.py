"""List the models that --model accepts, and whether their weights are on this machine. Connects to nothing.

Below the models are the files that words need: vocabularies for names, the tokenizer of captions. `info NAME` says all
that is known of one model or file: its size and work, what it can be asked, its licences, and where it comes from.

examples:
  anysam models                      a table
  anysam models --json               the same as JSON, with addresses and licences in full
  anysam models info efficient_sam_vitt
  anysam models info merged_2560     a vocabulary
"""

import argparse
import json

from anysam.catalogue import PACKAGE, Variant, WeightsFile
from anysam.errors import OptionError
from anysam.listing import ListedModel, ListedResource, find_listed, list_models, list_resources

_HEADER = ("MODEL", "WEIGHTS", "PROMPTS", "CODE", "WEIGHTS LICENCE", "HERE", "")
_FILES_HEADER = ("FILE FOR WORDS", "SIZE", "KIND", "LICENCE", "HERE", "")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("action", nargs="?", metavar="info", help="with a NAME: all about it")
    parser.add_argument("name", nargs="?", metavar="NAME", help="a model or a file of the list")
    parser.add_argument("--json", action="store_true", help="print one JSON document")


def run(arguments: argparse.Namespace) -> int:
    """Print the table, one model's facts, or the JSON document, on stdout."""
    if arguments.action is not None:
        return _info(arguments)
    models, files = list_models(), list_resources()
    if arguments.json:
        document = {"models": [model.to_dict() for model in models], "resources": [file.to_dict() for file in files]}
        print(json.dumps(document, indent=2))
        return 0
    _print_table([_HEADER, *map(_row, models)])
    print()
    _print_table([_FILES_HEADER, *map(_file_row, files)])
    return 0


def _print_table(rows: list[tuple[str, ...]]) -> None:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _row(model: ListedModel) -> tuple[str, ...]:
    variant = model.variant
    size = "?" if model.megabytes is None else f"{model.megabytes:.0f} MB"
    here = "no" if model.weights is None else "yes"
    prompts = ", ".join(variant.prompts) or "none"
    return variant.name, size, prompts, variant.code_licence, variant.weights_licence, here, variant.summary


def _file_row(file: ListedResource) -> tuple[str, ...]:
    resource = file.resource
    size = "?" if file.megabytes is None else _size(file.megabytes)
    here = "no" if file.path is None else "yes"
    return resource.name, size, resource.noun, resource.licence, here, resource.summary


def _size(megabytes: float) -> str:
    return f"{megabytes:,.0f} MB" if megabytes >= 1 else f"{megabytes * 1000:.0f} kB"


def _info(arguments: argparse.Namespace) -> int:
    if arguments.action != "info" or arguments.name is None:
        raise OptionError(
            f"`anysam models` takes nothing, or info and a model's name, got {arguments.action!r}"
            f"{'' if arguments.name is None else f' and {arguments.name!r}'}."
        )
    listed = find_listed(arguments.name)
    if arguments.json:
        print(json.dumps(listed.to_dict(), indent=2))
        return 0
    facts = _facts(listed) if isinstance(listed, ListedModel) else _file_facts(listed)
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


def _file_facts(listed: ListedResource) -> dict[str, str]:
    """What there is to say of a file, a line each."""
    resource = listed.resource
    file = resource.file
    size = "" if file.bytes is None else f" ({_size(file.bytes / 1e6)})"
    return {
        "file": resource.name,
        "summary": resource.summary,
        "kind": resource.noun,
        "for": ", ".join(resource.families) or "any model that takes names",
        "licence": resource.licence,
        "described at": resource.source,
        "published": f"{file.name}{size}, in the package" if file.url is None else f"{file.name}{size} from {file.url}",
        "sha256": file.sha256 or "not published; recorded at the first download",
        "here": "no" if listed.path is None else str(listed.path),
    }


def _origin(variant: Variant, file: WeightsFile) -> str:
    """A published file, its size, and where it comes from."""
    size = "" if file.bytes is None else f" ({file.bytes / 1e6:,.1f} MB)"
    if file.url is not None:
        return f"{file.name}{size} from {file.url}"
    if file.page is not None:
        return f"{file.name}{size}, by hand from {file.page}"
    return f"{file.name}{size}, in the package" if variant.source == PACKAGE else "never released; train your own"
