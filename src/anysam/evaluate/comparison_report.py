"""A comparison of models as a table, a JSON document and files."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anysam.atomic import write_atomic
from anysam.evaluate.comparison import Compared, Comparison, Score, machine_facts
from anysam.evaluate.recommendation import Terms, commercial_use, recommend

_COLUMNS = (
    *("model", "box", "click", "mIoU", "s/photo", "ms/prompt", "memory MB", "weights MB", "parameters", "licence"),
    "commercial use",
)
_WORDS = (0, 9, 10)  # columns of words, not of numbers
_LONGEST = 24  # letters of a licence in the table
_BUSY = 0.5  # of the cores: what others do then shows in seconds


@dataclass(frozen=True)
class Report:
    """A comparison with all that is said of it. load: processes that wanted a core before it began, or None."""

    asked: Comparison
    compared: Compared
    terms: Terms
    load: float | None = None

    @property
    def reference(self) -> Score:
        return self.compared.scores[self.asked.reference]

    @property
    def advice(self) -> str:
        """One line."""
        candidates = [each for score in self.compared.scores if (each := score.candidate()) is not None]
        if self.reference.facts is None:
            return f"There is no advice, since the reference {self.reference.name} could not be used."
        return recommend(candidates, self.reference.name, self.terms)


def to_markdown(report: Report) -> str:
    """The table, aligned, what it is about, and the advice."""
    rows = [_COLUMNS, *map(_cells, report.compared.scores)]
    widths = [max(3, *(len(row[i]) for row in rows)) for i in range(len(_COLUMNS))]

    def line(row: Sequence[str]) -> str:
        cells = [
            cell.ljust(w) if i in _WORDS else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        ]
        return f"| {' | '.join(cells)} |"

    rule = ["-" * w if i in _WORDS else "-" * (w - 1) + ":" for i, w in enumerate(widths)]
    lines = [line(rows[0]), f"| {' | '.join(rule)} |", *map(line, rows[1:])]
    return "\n".join([*lines, "", *_notes(report), "", report.advice]) + "\n"


def _cells(each: Score) -> tuple[str, ...]:
    if each.facts is None:
        return (each.name, *["–"] * (len(_COLUMNS) - 3), "could not be used", "–")
    facts = each.facts
    memory = facts.memory if facts.device_memory is None else facts.device_memory
    return (
        each.name,
        f"{each.box:.3f}",
        f"{each.click:.3f}",
        f"{each.quality:.3f}" if not each.error else f"{each.quality:.3f} ± {each.error:.3f}",
        f"{each.encode_seconds:.3g}",
        f"{1000 * each.prompt_seconds:.3g}",
        "–" if memory is None else f"{memory / 1e6:.0f}",
        f"{facts.bytes / 1e6:.1f}",
        f"{facts.parameters / 1e6:.1f} M",
        facts.licence if len(facts.licence) <= _LONGEST else f"{facts.licence[:_LONGEST]}...",
        commercial_use(facts.licence),
    )


def _notes(report: Report) -> list[str]:
    asked, compared = report.asked, report.compared
    what = f"what {report.reference.name} answers" if asked.masks is None else f"the masks of {asked.masks}"
    devices = sorted({each.facts.device for each in compared.scores if each.facts is not None})
    threads = f" with {asked.threads} thread{'s' if asked.threads > 1 else ''}" if devices == ["cpu"] else ""
    lines = [
        f"Mean IoU with {what}: {_count(compared.objects, 'object')} in {_count(compared.photos, 'photograph')}, "
        "asked for by a box and by a click; ± 1.96 standard errors.",
        f"Seconds are medians, memory is the most beyond the program's own; each model alone on {', '.join(devices)}"
        f"{threads}.",
    ]
    if compared.left_out:
        without = "no object in them" if asked.masks is None else "no masks"
        lines.append(f"{_count(compared.left_out, 'photograph')} with {without} left out.")
    if compared.broken:
        lines.append(f"{_count(len(compared.broken), 'photograph')} broken.")
    cores = machine_facts(asked.threads)["cores"] or 1
    if report.load is not None and report.load > _BUSY * cores:
        used = [f"{each.name} {each.cpu_seconds:.3g}" for each in compared.scores if each.cpu_seconds is not None]
        instead = f"; CPU seconds of a photograph, which count for more: {', '.join(used)}" if used else ""
        lines.append(
            f"The machine was busy (load {report.load:.1f} on {_count(cores, 'core')}): seconds are too high{instead}."
        )
    return lines


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def to_document(report: Report) -> dict[str, Any]:
    """JSON form, with the machine that the seconds are of."""
    asked, compared = report.asked, report.compared
    return {
        "models": [each.to_dict() for each in compared.scores],
        "reference": report.reference.name,
        "compared_with": "reference" if asked.masks is None else str(asked.masks),
        "advice": report.advice,
        "within": report.terms.within,
        "licences": None if report.terms.licences is None else sorted(report.terms.licences),
        "photographs": compared.photos,
        "objects": compared.objects,
        "left_out": compared.left_out,
        "broken": [{"image": name, "reason": reason} for name, reason in compared.broken],
        "settings": {"objects": asked.objects, "limit": asked.limit, "seed": asked.seed},
        "machine": {**machine_facts(asked.threads), "load": report.load},
    }


def write_report(report: Report, out: Path, plot: bool) -> list[Path]:
    """Write comparison.md, .json and, where wanted and a model has numbers, .png; the paths. `out` must exist.

    Raises OutputError, and MissingExtraError for a plot without matplotlib.
    """
    text, document = to_markdown(report), json.dumps(to_document(report), indent=1) + "\n"
    paths = [out / f"comparison.{suffix}" for suffix in ("md", "json", "png")]
    write_atomic(paths[0], lambda file: file.write(text.encode()))
    write_atomic(paths[1], lambda file: file.write(document.encode()))
    drawn = [each for each in report.compared.scores if each.facts is not None]
    if not plot or not drawn:
        return paths[:2]
    from anysam.evaluate.comparison_plot import draw_comparison  # matplotlib, on use

    y_label = "agreement with the reference, mean IoU" if report.asked.masks is None else "mean IoU with your masks"
    reference = report.reference.name if report.reference.facts is not None else None
    draw_comparison(drawn, reference, report.terms.within, y_label, paths[2])
    return paths
