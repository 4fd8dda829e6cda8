"""A comparison of models as a table, a JSON document, and a plot of quality against time."""

import json
import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from anysam import __version__
from anysam.atomic import write_atomic
from anysam.evaluate import plots
from anysam.evaluate.comparison import Score
from anysam.evaluate.recommendation import PERMISSIVE
from anysam.licences import licence_id

_COLUMNS = ("model", "box", "click", "mIoU", "s/photo", "ms/prompt", "memory MB", "weights MB", "licence")
_LONGEST = 24  # letters of a licence in the table
_OPEN, _BOUND, _INK, _GRID = "#0072B2", "#D55E00", "#333333", "#E2E2E2"


def to_markdown(scores: Sequence[Score], reference: str, masks: bool, advice: str) -> str:
    """The table, what it is about, and the advice."""
    lines = ["| " + " | ".join(_COLUMNS) + " |", "| --- |" + " ---: |" * (len(_COLUMNS) - 2) + " --- |"]
    for each in scores:
        lines.append("| " + " | ".join(_cells(each)) + " |")
    objects = max((each.objects for each in scores), default=0)
    what = "your masks" if masks else f"what {reference} answers"
    note = f"Mean IoU with {what}, {objects} objects; seconds and memory of a process of its own, medians and peak."
    return "\n".join([*lines, "", note, "", advice]) + "\n"


def _cells(each: Score) -> list[str]:
    if each.facts is None or each.problem is not None:
        return [each.name, *"-" * (len(_COLUMNS) - 2), "could not be used"]
    facts = each.facts
    memory = facts.memory if facts.device_memory is None else facts.device_memory
    return [
        each.name,
        f"{each.box:.3f}",
        f"{each.click:.3f}",
        f"{each.quality:.3f}",
        f"{each.encode_seconds:.2f}",
        f"{1000 * each.prompt_seconds:.0f}",
        "-" if memory is None else f"{memory / 1e6:.0f}",
        f"{facts.bytes / 1e6:.1f}",
        facts.licence if len(facts.licence) <= _LONGEST else f"{facts.licence[:_LONGEST]}...",
    ]


def to_document(
    scores: Sequence[Score], reference: str, advice: str, broken: Sequence[tuple[str, str]] = ()
) -> dict[str, Any]:
    """JSON form, with the machine that the seconds are of."""
    machine = {
        "system": f"{platform.system()} {platform.machine()}",
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "anysam": __version__,
    }
    return {
        "models": [each.to_dict() for each in scores],
        "reference": reference,
        "advice": advice,
        "broken": [{"image": name, "reason": reason} for name, reason in broken],
        "machine": machine,
    }


def write_comparison(
    scores: Sequence[Score], table: str, document: dict[str, Any], out: Path, plot: bool
) -> list[Path]:
    """Write comparison.md, .json and, where a model has numbers, .png; returns their paths. Raises OutputError."""
    out.mkdir(parents=True, exist_ok=True)
    paths = [out / f"comparison.{suffix}" for suffix in ("md", "json", "png")]
    write_atomic(paths[0], lambda file: file.write(table.encode()))
    write_atomic(paths[1], lambda file: file.write(json.dumps(document, indent=1).encode()))
    drawn = [each for each in scores if each.problem is None]
    if not plot or not drawn:
        return paths[:2]
    draw_comparison(drawn, paths[2])
    return paths


def draw_comparison(scores: Sequence[Score], path: Path) -> None:
    """Quality against seconds for a photograph and a prompt; a mark's area grows with the weights, its shape and colour
    tell permissive licences from others. Raises MissingExtraError, OutputError."""
    plots.require_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    canvas = Figure(figsize=(6.4, 4.2), dpi=150, layout="constrained")
    axes = canvas.add_subplot()
    kinds = {True: ("permissive licence", "o", _OPEN), False: ("other terms", "s", _BOUND)}
    seen = set()
    for each in scores:
        assert each.facts is not None
        free = licence_id(each.facts.licence) in PERMISSIVE
        label, marker, colour = kinds[free]
        seconds, area = each.encode_seconds + each.prompt_seconds, 30 + 6 * (each.facts.bytes / 1e6) ** 0.5
        axes.scatter([seconds], [each.quality], area, color=colour, marker=marker, label="" if label in seen else label)
        seen.add(label)
        name = f"{Path(each.name).name} ({each.facts.bytes / 1e6:.0f} MB)"
        axes.annotate(name, (seconds, each.quality), (7, 5), textcoords="offset points", fontsize=8, color=_INK)
    times = [each.encode_seconds + each.prompt_seconds for each in scores]
    if max(times) > 5 * min(times):
        axes.set_xscale("log")
    axes.margins(x=0.3, y=0.2)
    axes.set_title("Quality against time", fontsize=12, color=_INK, loc="left", pad=10)
    axes.set_xlabel("seconds for a photograph and one prompt", fontsize=10, color=_INK)
    axes.set_ylabel("mean IoU of boxes and clicks", fontsize=10, color=_INK)
    axes.grid(color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.tick_params(colors=_INK, labelsize=9, length=0)
    canvas.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=9, labelcolor=_INK)
    write_atomic(path, lambda file: FigureCanvasAgg(canvas).print_png(file))
