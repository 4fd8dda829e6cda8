"""Which model suits your own photographs? Quality, seconds, memory, size and licence of several, and a word of advice.

The models get the same boxes and clicks. With --masks, annotations of these very photographs, their answers are
compared with your masks: a COCO JSON, SA-1B files, a collection, a folder of label images (a.png for a.jpg) or one
label image. Without, with what the reference model answers, at objects that its everything mode finds.

Each model works in a process of its own, one after another, so that seconds and memory are its own; a model that cannot
be used becomes a line with the reason, and broken photographs are skipped, counted and listed (exit status 1 for both).
The advice is the smallest weights file within --within of the reference, the faster one of equals.

With --out DIR: comparison.md, comparison.json, comparison.png, and in answers/ a line for each photograph and model, so
that the same command goes on after an interruption, and a further model costs only its own time; other settings are
refused there.

examples:
  anysam compare photos/ --models anysam_lite,mobile_sam,sam_vit_b
  anysam compare photos/ --models anysam_lite,runs/mine/best.safetensors --masks masks.json
  anysam compare photos/ --models mobile_sam,edge_sam,sam_vit_b --licence commercial --within 0.05 --out which
  anysam compare photo.jpg --masks photo.png --models anysam_lite,mobile_sam --json
"""

import argparse
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from anysam.commands.options import add_allow, printable
from anysam.errors import OptionError

if TYPE_CHECKING:
    from anysam.evaluate.comparison import Compared, Comparison
    from anysam.evaluate.comparison_process import Contender


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("images", nargs="+", metavar="IMAGES", help="photographs, folders of them or patterns")
    what = parser.add_argument_group("what is compared")
    what.add_argument(
        "--models", required=True, metavar="NAME,NAME", help="models of `anysam models` or weights files, with commas"
    )
    what.add_argument("--masks", metavar="PATH", help="masks of the photographs, to compare with")
    what.add_argument("--reference", metavar="NAME", help="one of --models (default: the one with the most parameters)")
    what.add_argument(
        "--objects", type=int, default=5, metavar="N", help="objects of a photograph at most (default: %(default)s)"
    )
    what.add_argument("--limit", type=int, default=0, metavar="N", help="N photographs, spread evenly over all; 0: all")
    what.add_argument("--seed", type=int, default=0, metavar="N", help="which objects are taken (default: %(default)s)")
    advice = parser.add_argument_group("the advice")
    advice.add_argument(
        "--within", type=float, default=0.02, metavar="X", help="mIoU that a smaller model may lose (default: 0.02)"
    )
    advice.add_argument(
        "--licence",
        default="any",
        metavar="NAME[,NAME]",
        help="advise only these licences, or commercial: commercial use without giving away your source (default: any)",
    )
    how = parser.add_argument_group("how")
    how.add_argument("--device", metavar="NAME", help="cpu, cuda, cuda:1, ... (default: a GPU if there is one)")
    how.add_argument("--dtype", choices=("float32", "float16", "bfloat16"), default="float32", help="number format")
    how.add_argument("--threads", type=int, metavar="N", help="of a CPU, for each model (default: PyTorch's)")
    add_allow(how)
    results = parser.add_argument_group("results")
    results.add_argument("-o", "--out", metavar="DIR", help="folder for table, JSON, plot, and to go on from")
    results.add_argument("--json", action="store_true", help="print one JSON document on stdout, not the table")
    results.add_argument("--no-plots", action="store_true", help="no PNG in --out, and no need of matplotlib")


def run(arguments: argparse.Namespace) -> int:
    """Compare and print; 1 when a photograph or a model could not be used. Raises AnySamError."""
    from anysam.commands.interrupts import sigterm_interrupts
    from anysam.evaluate.comparison_report import Report, to_document, to_markdown, write_report
    from anysam.evaluate.plots import require_matplotlib
    from anysam.evaluate.recommendation import make_terms
    from anysam.images import find_images

    names = _names(arguments)
    terms = make_terms(arguments.within, arguments.licence)
    plot = arguments.out is not None and not arguments.no_plots
    if plot:
        require_matplotlib()  # before minutes of work
    paths = find_images(arguments.images)
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None  # before this program adds to it
    with sigterm_interrupts():
        asked = _asked(arguments, names)
        compared = _compare(asked, paths)
    for name, reason in compared.broken:
        print(f"broken: {printable(name)}: {printable(reason)}", file=sys.stderr)
    for each in compared.scores:
        if each.problem is not None:
            print(f"not compared: {printable(each.name)}: {printable(each.problem)}", file=sys.stderr)
    report = Report(asked, compared, terms, load)
    if asked.out is not None:
        for path in write_report(report, asked.out, plot):
            print(path, file=sys.stderr)
    print(json.dumps(to_document(report), indent=1) + "\n" if arguments.json else to_markdown(report), end="")
    return 1 if compared.broken or any(each.problem is not None for each in compared.scores) else 0


def _names(arguments: argparse.Namespace) -> list[str]:
    """The models, after all that can be checked without loading anything."""
    names = list(dict.fromkeys(name.strip() for name in arguments.models.split(",") if name.strip()))
    if len(names) < 2:
        raise OptionError(
            f"--models must name at least two models with a comma between them, got {arguments.models!r}."
        )
    for flag, value, least in (
        ("--objects", arguments.objects, 1),
        ("--limit", arguments.limit, 0),
        ("--seed", arguments.seed, 0),
        ("--threads", arguments.threads, 1),
    ):
        if value is not None and value < least:
            raise OptionError(f"{flag} must be at least {least}, got {value}.")
    if not 0 <= arguments.within <= 1:
        raise OptionError(f"--within must be from 0 to 1, got {arguments.within:g}.")
    if arguments.reference is not None and arguments.reference not in names:
        raise OptionError(f"--reference must be one of --models ({', '.join(names)}), got {arguments.reference!r}.")
    return names


def _asked(arguments: argparse.Namespace, names: list[str]) -> "Comparison":
    """What is compared, with the weights that were not here downloaded."""
    from anysam.evaluate.comparison import Comparison
    from anysam.evaluate.comparison_process import default_threads, most_parameters

    largest = most_parameters(names)  # raises for a name that there is not
    return Comparison(
        contenders=tuple(_contender(arguments, name) for name in names),
        reference=names.index(arguments.reference) if arguments.reference else largest,
        masks=None if arguments.masks is None else Path(arguments.masks),
        objects=arguments.objects,
        limit=arguments.limit,
        seed=arguments.seed,
        threads=arguments.threads or default_threads(),
        out=None if arguments.out is None else Path(arguments.out),
    )


def _contender(arguments: argparse.Namespace, name: str) -> "Contender":
    from anysam.commands.progress import download_progress
    from anysam.devices import find_device
    from anysam.evaluate.comparison_process import make_contender
    from anysam.evaluate.runs import ModelChoice
    from anysam.licences import allowed_licences

    find_device(arguments.device)
    allowed_licences(arguments.allow)  # what is wrong for all is said at once
    with download_progress(name) as progress:
        return make_contender(ModelChoice(name, arguments.device, arguments.dtype, arguments.allow), progress)


def _compare(asked: "Comparison", paths: list[Path]) -> "Compared":
    """Compare with a progress bar; a line for each model when it is done."""
    from anysam.commands.progress import work_progress
    from anysam.evaluate.comparison import compare

    steps = len(asked.contenders) + (asked.masks is None)
    with work_progress(steps, "Comparing") as progress:
        begun: list[str] = []

        def report(name: str, part: float) -> None:
            if name not in begun:
                begun.append(name)
                progress.begin(name)
            progress.part(part)
            if part >= 1:
                progress.end(f"{printable(name)}: done")

        try:
            return compare(asked, paths, report)
        except KeyboardInterrupt:
            if asked.out is not None:
                print(f"What is done is kept in {asked.out}; the same command goes on.", file=sys.stderr)
            raise
