"""Quality against time as a PNG: a mark for each model, its area that of the weights, its shape the licence."""

from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path, PurePath
from typing import TYPE_CHECKING

from anysam.atomic import write_atomic
from anysam.evaluate import plots
from anysam.evaluate.comparison import Score
from anysam.evaluate.recommendation import commercial_use

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.transforms import Bbox

# What `commercial_use` says -> in words, mark, colour; the colours are told apart by people who see them differently,
# too (Okabe and Ito 2008).
_KINDS = {
    "yes": ("commercial use", "o", "#0072B2"),
    "with your source": ("commercial use with your source (GPL)", "^", "#009E73"),
    "no": ("no commercial use", "s", "#D55E00"),
    "not stated": ("licence not known", "D", "#777777"),
}
_INK, _FAINT, _GRID = "#333333", "#777777", "#E2E2E2"
_SIZE, _DPI = (7.2, 4.6), 150  # inches
_LEAST_AREA, _AREA = 36.0, 0.6  # points squared: of no weights, and for each MB
_MOST_AREA = 1800.0  # of 3 GB and more
_ROOM = 4.0  # of free space, in pixels of the figure, around a label
_STEPS = (0.0, 14.0, 28.0, 42.0, 60.0)  # points by which a label moves up or down to find room


def draw_comparison(scores: Sequence[Score], reference: str | None, within: float, y_label: str, path: Path) -> None:
    """Draw models that have numbers, and a line `within` below the reference. Raises MissingExtraError, OutputError."""
    plots.require_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    canvas = Figure(figsize=_SIZE, dpi=_DPI, layout="constrained")
    FigureCanvasAgg(canvas)
    axes = canvas.add_subplot()
    _style(axes, y_label)
    seen = set()
    for each in scores:
        assert each.facts is not None
        words, marker, colour = _KINDS[commercial_use(each.facts.licence)]
        axes.errorbar(each.seconds, each.quality, each.error or 0, color=colour, linewidth=1, alpha=0.6, zorder=2)
        axes.scatter(
            [each.seconds],
            [each.quality],
            _area(each),
            color=colour,
            alpha=0.85,
            marker=marker,
            edgecolors="white",
            label=None if words in seen else words,
            zorder=3,
        )
        seen.add(words)
    _limit(axes, scores)
    for each in scores:
        if each.name == reference:
            axes.axhline(each.quality - within, color=_FAINT, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
            axes.annotate(
                f"{within:g} below {short_name(each.name, scores)}",
                (0, each.quality - within),
                (2, -10),
                xycoords=axes.get_yaxis_transform(),
                textcoords="offset points",
                fontsize=8,
                color=_FAINT,
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5, "alpha": 0.8},
            )
    legend = canvas.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=9, labelcolor=_INK)
    for handle in legend.legend_handles:
        handle.set_sizes([_LEAST_AREA])  # type: ignore[union-attr]
    _label(canvas, axes, scores)
    write_atomic(path, lambda file: canvas.savefig(file, format="png"))


def short_name(name: str, scores: Sequence[Score]) -> str:
    """A model's name for people: of a file its own name, with its folder where another file is called the same."""
    path = PurePath(name)
    if path.suffix == "" or [PurePath(each.name).stem for each in scores].count(path.stem) == 1:
        return path.stem if path.suffix else name
    return f"{path.parent.name}/{path.stem}"


def _style(axes: "Axes", y_label: str) -> None:
    axes.set_xscale("log")
    axes.set_title("Quality against time", fontsize=12, color=_INK, loc="left", pad=10)
    axes.set_title("area: size of the weights", fontsize=9, color=_FAINT, loc="right", pad=10)
    axes.set_xlabel("seconds for a photograph and one prompt (log)", fontsize=10, color=_INK)
    axes.set_ylabel(y_label, fontsize=10, color=_INK)
    axes.tick_params(which="both", colors=_INK, labelsize=9, length=0)
    axes.grid(color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(_GRID)


def _limit(axes: "Axes", scores: Sequence[Score]) -> None:
    """Room for names on both sides, and for the errors above and below."""
    times = [each.seconds for each in scores]
    spread = max(max(times) / min(times), 2.0)
    axes.set_xlim(min(times) / spread**0.2, max(times) * spread**0.35)
    low, high = axes.get_xlim()
    shown = plain_ticks(low, high)
    axes.set_xticks(shown, [f"{tick:g}" for tick in shown])
    axes.minorticks_off()
    lows = [each.quality - (each.error or 0) for each in scores]
    highs = [each.quality + (each.error or 0) for each in scores]
    room = max(0.15 * (max(highs) - min(lows)), 0.01)
    axes.set_ylim(max(0.0, min(lows) - room), min(1.0, max(highs)) + room)


def plain_ticks(low: float, high: float) -> list[float]:
    """Plain numbers from low to high: the coarsest kind of which there are at least three."""
    kinds = ((10, 20, 50), range(10, 100, 10), range(10, 100, 5), range(10, 100))
    shown: list[float] = []
    for digits in kinds:
        every = (round(digit * 10.0 ** (power - 1), 10) for power in range(-5, 5) for digit in digits)
        shown = [tick for tick in every if low <= tick <= high]
        if len(shown) >= 3:
            break
    return shown


def _label(canvas: "Figure", axes: "Axes", scores: Sequence[Score]) -> None:
    """Each model's name and size beside its mark, where neither a mark nor another name is; else a little away."""
    canvas.draw_without_rendering()  # places are known from here on
    taken = [_mark(axes, each) for each in scores]
    inside = axes.get_window_extent()
    for each in scores:
        assert each.facts is not None
        text = f"{short_name(each.name, scores)}\n{each.facts.bytes / 1e6:.0f} MB"
        best: tuple[float, tuple[float, float], str, Bbox] | None = None
        for cost, (offset, side) in enumerate(_places(_mark(axes, each).width * 36 / _DPI)):
            note = axes.annotate(
                text, (each.seconds, each.quality), offset, textcoords="offset points", fontsize=8, ha=side, va="center"
            )
            box = note.get_window_extent().padded(_ROOM)
            note.remove()
            hidden = sum(_overlap(box, other) for other in taken)
            outside = box.width * box.height - _overlap(box, inside)
            total = cost + hidden + outside
            if best is None or total < best[0]:
                best = (total, offset, side, box)
        assert best is not None
        _, offset, side, box = best
        far = abs(offset[1]) > _STEPS[1]
        line = {"arrowstyle": "-", "color": _FAINT, "linewidth": 0.6, "shrinkB": 4} if far else None
        axes.annotate(
            text,
            (each.seconds, each.quality),
            offset,
            textcoords="offset points",
            fontsize=8,
            color=_INK,
            ha=side,
            va="center",
            arrowprops=line,
            zorder=4,
        )
        taken.append(box)


def _places(radius: float) -> Iterator[tuple[tuple[float, float], str]]:
    """Where a name can stand, in points from the mark's middle: the nearest places first, right before left."""
    for step, (direction, side) in product(_STEPS, ((1, "left"), (-1, "right"))):
        for y in (step, -step) if step else (0.0,):
            yield (direction * (radius + 5), y), side


def _mark(axes: "Axes", each: Score) -> "Bbox":
    """The place of a mark and its error bar, in pixels."""
    from matplotlib.transforms import Bbox

    x, y = axes.transData.transform((each.seconds, each.quality))
    _, top = axes.transData.transform((each.seconds, each.quality + (each.error or 0)))
    radius = _area(each) ** 0.5 / 2 * _DPI / 72
    high = max(radius, top - y)
    return Bbox.from_extents(x - radius, y - high, x + radius, y + high)


def _area(each: Score) -> float:
    """Of a mark, in points squared."""
    assert each.facts is not None
    return min(_MOST_AREA, _LEAST_AREA + _AREA * each.facts.bytes / 1e6)


def _overlap(one: "Bbox", other: "Bbox") -> float:
    width = min(one.x1, other.x1) - max(one.x0, other.x0)
    height = min(one.y1, other.y1) - max(one.y0, other.y0)
    return max(0.0, width) * max(0.0, height)
