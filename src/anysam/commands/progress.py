"""Progress on stderr: for many images, for a long one, and for a download. rich is imported only on use."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

# Off a terminal, a long image gets a line at most so often, in seconds.
SECONDS_BETWEEN_LINES = 10.0


class ImageProgress:
    """What is told of a run over `count` images: `begin` each, `part` within it, then `end` or `skip`.

    On a terminal there is a bar, with the time that the work done so far lets expect for the rest; elsewhere a line for
    each image, and now and then one within a long image. Skipped images do not count as work.
    """

    def __init__(self, count: int, console: "Console", bar: "Progress", clock: Callable[[], float]) -> None:
        self._count, self._console, self._bar, self._clock = count, console, bar, clock
        self._task = bar.add_task("", total=count, left="")
        self._name = ""
        self._done, self._skipped = 0, 0
        self._started: float | None = None  # of the first image that is worked on
        self._spoken = 0.0

    def begin(self, name: str) -> None:
        """Work on the next image begins."""
        self._name = name
        self._spoken = self._clock()
        if self._started is None:
            self._started = self._spoken

    def part(self, fraction: float) -> None:
        """So much of the present image is done, 0 to 1."""
        fraction = min(max(fraction, 0.0), 1.0)
        left = self._left(self._done - self._skipped + fraction)
        if not self._bar.disable:
            self._bar.update(self._task, completed=self._done + fraction, left=left)
            self._bar.start()  # with one image there is no bar before there is something to show; again does nothing
        elif self._clock() - self._spoken >= SECONDS_BETWEEN_LINES:
            self._say(f"{self._name}: {fraction:.0%} done{f', {left}' if left else ''}", self._done + 1)

    def end(self, line: str) -> None:
        """The present image is done, or has failed: `line` says how."""
        self._done += 1
        self._bar.update(self._task, completed=self._done, left=self._left(self._done - self._skipped))
        self._say(line, self._done)

    def skip(self, line: str) -> None:
        """The next image needs no work."""
        self._skipped += 1
        self.end(line)

    def _say(self, line: str, number: int) -> None:
        place = f"[{number}/{self._count}] " if self._count > 1 and self._bar.disable else ""
        # Neither marks nor :names: of pictures are looked for: labels and names of files may have them.
        self._console.print(place + line, markup=False, emoji=False, soft_wrap=True)
        self._spoken = self._clock()

    def _left(self, worked: float) -> str:
        """In words, the time that the other images will take if each takes as long as those worked on."""
        if self._started is None or worked <= 0:
            return ""
        to_do = self._count - self._skipped - worked
        return f"about {duration((self._clock() - self._started) / worked * to_do)} left" if to_do > 0 else ""


def portion(part: Callable[[float], None], start: float, end: float) -> Callable[[float], None]:
    """The progress of one of several steps, which leads from `start` to `end` of `part`."""
    return lambda fraction: part(start + (end - start) * fraction)


class Stopwatch:
    """Seconds of the stages of some work, each from the end of the one before."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.restart()

    def restart(self) -> None:
        """A stage begins now; what was done since the last one is none."""
        self._since = time.perf_counter()

    def stop(self, stage: str) -> None:
        """The stage ends now, and the next begins."""
        now = time.perf_counter()
        self.seconds[stage], self._since = now - self._since, now


def duration(seconds: float) -> str:
    """Seconds in words: "8 s", "3 min", "2 h 10 min"."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60} min" if minutes % 60 else f"{minutes // 60} h"


@contextmanager
def work_progress(
    count: int, words: str, clock: Callable[[], float] = time.monotonic, console: "Console | None" = None
) -> Iterator[ImageProgress]:
    """Yield the progress of a run over `count` images; `words` name the work beside the bar.

    clock: seconds, rising. console: where to write, by default stderr.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskProgressColumn, TextColumn

    console = console or Console(stderr=True, highlight=False)
    share = MofNCompleteColumn() if count > 1 else TaskProgressColumn()
    # Where stdout is the same terminal, rich must know what is printed there, to put it above the bar. A stdout that
    # is a file or a pipe stays what it is: rich would send it to stderr.
    shared = sys.stdout is not None and sys.stdout.isatty()
    columns = (TextColumn(words), BarColumn(), share, TextColumn("{task.fields[left]}"))
    bar = Progress(*columns, console=console, redirect_stdout=shared, disable=not console.is_terminal)
    progress = ImageProgress(count, console, bar, clock)
    if count > 1:
        bar.start()
    try:
        yield progress
    finally:
        if bar.live.is_started:
            bar.stop()


@contextmanager
def download_progress(name: str) -> Iterator[Callable[[int, int | None], None]]:
    """Yield `progress(bytes done, bytes in all or None)`; its first call draws a bar, or off a terminal a line."""
    started: list[Progress] = []

    def progress(done: int, total: int | None) -> None:
        if not started:
            started.append(_download_bar(name))
        bar = started[0]
        bar.update(bar.task_ids[0], completed=done, total=total)

    try:
        yield progress
    finally:
        for bar in started:
            bar.stop()


def _download_bar(name: str) -> "Progress":
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (
        TextColumn("Fetching {task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True, highlight=False)
    bar = Progress(*columns, console=console, redirect_stdout=False, disable=not console.is_terminal)
    if bar.disable:
        console.print(f"Fetching the weights of {name}", markup=False)
    bar.add_task(name, total=None)
    bar.start()
    return bar
