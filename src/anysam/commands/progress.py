"""Progress on stderr: for many images, and for a download. rich is imported only when there is something to draw."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress


@contextmanager
def image_progress(count: int) -> Iterator[Callable[[str], None]]:
    """Yield `advance(line)`, to be called after each of `count` images with what there is to say about it.

    A terminal sees the lines above a bar, if there are several images; elsewhere each line begins with its number.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True, highlight=False)
    columns = (TextColumn("Segmenting"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    # stdout stays what it is: rich would otherwise send it to stderr, too.
    bar = Progress(*columns, console=console, redirect_stdout=False, disable=count < 2 or not console.is_terminal)
    with bar:
        task = bar.add_task("", total=count)

        def advance(line: str) -> None:
            bar.advance(task)
            number = f"[{bar.tasks[0].completed:.0f}/{count}] " if count > 1 and bar.disable else ""
            console.print(number + line, markup=False, soft_wrap=True)

        yield advance


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
