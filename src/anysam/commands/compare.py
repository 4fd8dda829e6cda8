"""Which model suits your own photographs? Quality, seconds, memory, size and licence of several, and a word of advice.

The models get the same boxes and clicks. With --masks (COCO JSON, label images, SA-1B, a collection: masks of these
very photographs) their answers are compared with your masks. Without, with what the reference model answers: by itself
the largest of --models. Each model works in a process of its own, one after another; broken photographs are skipped,
counted and listed. Exit status 1 when a photograph or a model could not be used.

With --out DIR: comparison.md, comparison.json and comparison.png; models that are done are kept there, so that the same
command goes on after an interruption.

examples:
  anysam compare photos/ --models anysam_lite,mobile_sam,sam_vit_b
  anysam compare photos/ --models anysam_lite,runs/mine/best.safetensors --masks masks.json
  anysam compare photos/ --models mobile_sam,edge_sam,sam_vit_b --licence apache-2.0,mit --out which
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from anysam.commands.options import add_allow, printable
from anysam.errors import OptionError

if TYPE_CHECKING:
    from anysam.evaluate.comparison import Comparison


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("images", nargs="+", metavar="IMAGES", help="photographs, folders or patterns")
    what = parser.add_argument_group("what is compared")
    what.add_argument("--models", required=True, metavar="NAME,NAME", help="names of `anysam models` or weights files")
    what.add_argument(
        "--masks", metavar="PATH", help="masks of the photographs, to compare with instead of a reference"
    )
    what.add_argument("--reference", metavar="NAME", help="one of --models (the one with the largest weights)")
    what.add_argument(
        "--objects", type=int, default=5, metavar="N", help="objects of a photograph at most (default: %(default)s)"
    )
    what.add_argument("--limit", type=int, default=0, metavar="N", help="N photographs, spread evenly over all; 0: all")
    what.add_argument("--seed", type=int, default=0, metavar="N", help="of which objects (default: %(default)s)")
    advice = parser.add_argument_group("the advice")
    advice.add_argument(
        "--within", type=float, default=0.02, metavar="X", help="mIoU that a smaller model may lose (default: 0.02)"
    )
    advice.add_argument("--licence", metavar="NAME[,NAME]", help="advise only what is under these licences (all)")
    how = parser.add_argument_group("how")
    how.add_argument("--device", metavar="NAME", help="cpu, cuda, cuda:1, ... (default: a GPU if there is one)")
    how.add_argument("--dtype", choices=("float32", "float16", "bfloat16"), default="float32", help="number format")
    add_allow(how)
    results = parser.add_argument_group("results")
    results.add_argument("-o", "--out", metavar="DIR", help="folder for table, JSON, plot, and to go on from")
    results.add_argument("--json", action="store_true", help="print one JSON document on stdout, not the table")
    results.add_argument("--no-plots", action="store_true", help="no PNG in --out, and no need of matplotlib")


def run(arguments: argparse.Namespace) -> int:
    """Compare and print; 1 when a photograph or a model could not be used. Raises AnySamError."""
    from anysam.commands.interrupts import sigterm_interrupts
    from anysam.commands.progress import work_progress
    from anysam.evaluate.comparison import compare, open_masks
    from anysam.evaluate.comparison_report import to_document, to_markdown, write_comparison
    from anysam.evaluate.plots import require_matplotlib
    from anysam.evaluate.recommendation import recommend
    from anysam.evaluate.runs import spread
    from anysam.images import find_images
    from anysam.licences import allowed_licences

    asked = _asked(arguments)
    licences = None if arguments.licence is None else allowed_licences(arguments.licence)
    if arguments.out is not None and not arguments.no_plots:
        require_matplotlib()  # before minutes of work
    found = find_images(arguments.images)
    paths = [found[i] for i in spread(len(found), arguments.limit)]
    masks = None if arguments.masks is None else open_masks(Path(arguments.masks), arguments.images)
    with sigterm_interrupts(), work_progress(len(asked.choices), "Comparing") as progress:
        begun: list[str] = []

        def report(name: str, part: float) -> None:
            if name not in begun:
                begun.append(name)
                progress.begin(name)
            progress.part(part)
            if part >= 1 and not name.startswith("objects "):
                progress.end(f"{name} is done")

        scores, broken = compare(asked, paths, masks, report)
    for name, reason in broken:
        print(f"broken: {printable(name)}: {printable(reason)}", file=sys.stderr)
    for each in scores:
        if each.problem is not None:
            print(f"{printable(each.name)}: {printable(each.problem)}", file=sys.stderr)
    reference = scores[asked.reference]
    candidates = [candidate for each in scores if (candidate := each.candidate()) is not None]
    advice = (
        "There is no advice, since the reference has no numbers."
        if reference.candidate() is None
        else recommend(candidates, reference.name, arguments.within, licences)
    )
    table = to_markdown(scores, reference.name, arguments.masks is not None, advice)
    document = to_document(scores, reference.name, advice, broken)
    if asked.out is not None:
        for path in write_comparison(scores, table, document, asked.out, not arguments.no_plots):
            print(path, file=sys.stderr)
    print(json.dumps(document, indent=1) + "\n" if arguments.json else table, end="")
    return 1 if broken or any(each.problem is not None for each in scores) else 0


def _asked(arguments: argparse.Namespace) -> "Comparison":
    from anysam.evaluate.comparison import Comparison
    from anysam.evaluate.runs import ModelChoice

    names = list(dict.fromkeys(name.strip() for name in arguments.models.split(",") if name.strip()))
    if len(names) < 2:
        raise OptionError(
            f"--models must name at least two models with a comma between them, got {arguments.models!r}."
        )
    for flag, value, least in (("--objects", arguments.objects, 1), ("--limit", arguments.limit, 0)):
        if value < least:
            raise OptionError(f"{flag} must be at least {least}, got {value}.")
    if not 0 <= arguments.within <= 1:
        raise OptionError(f"--within must be from 0 to 1, got {arguments.within:g}.")
    if arguments.reference is not None and arguments.reference not in names:
        raise OptionError(f"--reference must be one of --models ({', '.join(names)}), got {arguments.reference!r}.")
    choices = tuple(ModelChoice(name, arguments.device, arguments.dtype, arguments.allow) for name in names)
    reference = names.index(arguments.reference) if arguments.reference else _largest(names)
    out = None if arguments.out is None else Path(arguments.out)
    return Comparison(choices, reference, arguments.objects, arguments.seed, out)


def _largest(names: Sequence[str]) -> int:
    """The place of the model with the largest weights, as the catalogue or the file says; the first of equals."""
    from anysam.catalogue import VARIANTS

    rows = {row.name: row.megabytes or 0.0 for row in VARIANTS}
    sizes = []
    for name in names:
        path = Path(name).expanduser()
        if name not in rows and not path.is_file():
            raise OptionError(f"There is no model {name!r}, and no such file; `anysam models` lists the names.")
        sizes.append(rows[name] if name in rows else path.stat().st_size / 1e6)
    return sizes.index(max(sizes))
