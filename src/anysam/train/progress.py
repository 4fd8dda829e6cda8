"""What a run tells: a bar or lines for people, a log of JSON lines, TensorBoard where it is installed."""

import math
import sys
import time
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from anysam.train.saving import TENSORBOARD, append_line


class Report:
    """Collects what a run says between two lines of its log. Only the first process has one.

    show: also tell people, on stderr: a bar on a terminal, else a line for each line of the log.
    """

    def __init__(self, log: Path, steps: int, first: int, show: bool, tensorboard: bool) -> None:
        self.log, self.steps, self.first = log, steps, first
        self.show = show
        self.started = time.monotonic()
        self.since, self.examples = self.started, 0
        self.sums: dict[str, tuple[float, float]] = {}
        self.bar: Any = None
        self.writer: Any = None
        if tensorboard and find_spec("tensorboard") is not None:
            from torch.utils.tensorboard import SummaryWriter

            # lines after the last checkpoint are written again
            self.writer = SummaryWriter(str(log.parent / TENSORBOARD), purge_step=first + 1)
        if show and sys.stderr.isatty():
            self._open_bar()

    def _open_bar(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"), TimeRemainingColumn())
        # what a library prints on stdout goes above the bar, not to stderr
        shared = sys.stdout is not None and sys.stdout.isatty()
        self.bar = Progress(*columns, console=Console(stderr=True, highlight=False), redirect_stdout=shared)
        self.bar.start()
        self.bar.add_task("starting", total=self.steps, completed=self.first)

    def add(self, examples: int, weight: float, values: Mapping[str, float]) -> None:
        """Means of one step; `weight` things were counted in it."""
        self.examples += examples
        for name, value in values.items():
            if math.isfinite(value):
                total, weights = self.sums.get(name, (0.0, 0.0))
                self.sums[name] = (total + value * weight, weights + weight)

    def advance(self) -> None:
        """One step more is done."""
        if self.bar is not None:
            self.bar.update(self.bar.task_ids[0], advance=1)

    def line(self, step: int, values: Mapping[str, float]) -> None:
        """Write a line of the log after step `step` (counted from 1): what was collected, which is then forgotten, and
        `values`."""
        now = time.monotonic()
        speed = self.examples / max(1e-9, now - self.since)
        means = {name: total / weights for name, (total, weights) in self.sums.items() if weights}
        self.write(step, {**values, **means, "images_per_second": float(f"{speed:.4g}")})
        left = (now - self.started) / max(1, step - self.first) * (self.steps - step)
        words = f"loss {means['loss']:.4g}, {speed:.3g} images/s" if "loss" in means else "nothing to learn from"
        if self.bar is not None:
            self.bar.update(self.bar.task_ids[0], description=words)
        else:
            self.say(
                f"step {step} of {self.steps}: {words}" + (f", {duration(left)} left" if step < self.steps else "")
            )
        self.since, self.examples, self.sums = now, 0, {}

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Append {"step": step, **values} to the log. Raises OutputError."""
        append_line(self.log, {"step": step} | {k: v if math.isfinite(v) else None for k, v in values.items()})
        if self.writer is not None:
            for name, value in values.items():
                self.writer.add_scalar(name, value, step)

    def scores(self, step: int, scores: Mapping[str, float], seconds: float) -> None:
        """A validation's scores; the seconds that it took are none of learning. What is left of the run is told from
        steps and validations together, but for the one before the first step."""
        self.since += seconds
        if step == self.first:
            self.started += seconds
        words = "no image can be read and has masks, so no weights are kept as best"
        if scores:
            self.write(step, {f"val_{name}": value for name, value in scores.items()})
            words = ", ".join(f"{name} {value:.4f}" for name, value in scores.items())
        self.say(f"step {step}: validation: {words}")

    def say(self, words: str) -> None:
        """Tell people something."""
        if self.bar is not None:
            self.bar.console.print(words, markup=False, emoji=False, soft_wrap=True)
        elif self.show:
            print(words, file=sys.stderr, flush=True)

    def close(self) -> None:
        """End the bar and the files."""
        if self.bar is not None:
            self.bar.stop()
        if self.writer is not None:
            self.writer.close()


def duration(seconds: float) -> str:
    """Seconds in words: "40 s", "12 min 05 s", "3 h 20 min"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02} min"
    return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"
