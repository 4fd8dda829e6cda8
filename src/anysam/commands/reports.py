"""Results that leave a command image by image: its files appear together, then its paths or its JSON on stdout; at the
end, or when the run is cut short, what was done and what failed.

Nothing grows with the number of images but the lists of those that failed or were skipped.
"""

import dataclasses
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anysam import __version__
from anysam.commands.image_runs import JsonDocument, print_failures, print_paths, run_all
from anysam.commands.interrupts import interrupts_deferred, sigterm_interrupts
from anysam.commands.progress import ImageProgress, work_progress
from anysam.commands.resume import FileFacts, assign_stems, image_facts, publish, remove_abandoned, staging, verify
from anysam.commands.words_options import told_losses
from anysam.errors import AnySamError

if TYPE_CHECKING:
    import numpy as np

    from anysam.outputs import ImageResult, Loss
    from anysam.results import MaskRecord


@dataclass(frozen=True)
class Target:
    """Where results go. out: None writes no files. resume: images that are finished there are skipped."""

    out: Path | None
    formats: tuple[str, ...]
    resume: bool


@dataclass(frozen=True)
class ImageTask:
    """An image of a run, what the names of its files begin with, and its hash; None where nothing is written."""

    image: Path
    stem: str
    facts: FileFacts | None


@dataclass(frozen=True, eq=False)
class Result:
    """What was made of an image. pixels: (H, W, 3) uint8, or for formats that draw nothing something of their shape.

    seconds: for each stage. line: for people. place: where the image lies, if it is a map. names: all that a label can
    be, which fixes the numbers of classes for the whole run.
    """

    pixels: "np.ndarray"
    records: Sequence["MaskRecord"]
    seconds: dict[str, float]
    line: str
    place: "ImageResult | None" = None
    names: Sequence[str] | None = None


class Report:
    """What a run over `count` images did: data on stdout as it comes, and numbers and failures for the end."""

    def __init__(self, as_json: bool, count: int) -> None:
        self.count = count
        self.done = 0
        self.skipped: list[str] = []
        self.failed: list[tuple[Path, AnySamError]] = []
        self._seconds: dict[str, float] = {}
        self._document = JsonDocument() if as_json else None

    def add(self, image: Path, result: Result, files: Sequence[Path] = (), losses: Sequence["Loss"] = ()) -> None:
        """An image is finished: the paths of its files go to stdout, or all about it in JSON.

        losses: what its formats could not hold.
        """
        self.done += 1
        for stage, spent in result.seconds.items():
            self._seconds[stage] = self._seconds.get(stage, 0.0) + spent
        if self._document is None:
            print_paths(files)
            return
        form = {
            "image": str(image),
            "size": list(result.pixels.shape[:2]),
            "masks": [record.to_dict() for record in result.records],
            "seconds": _rounded(result.seconds),
            "files": [str(file) for file in files],
            "losses": [dataclasses.asdict(loss) for loss in losses],
        }
        self._document.add(form)

    def close(self, facts: Mapping[str, Any], load_seconds: float) -> None:
        """The rest of the JSON, and on stderr the images that failed. facts: about what was loaded."""
        if self._document is not None:
            self._document.close(
                {
                    "anysam": __version__,
                    **facts,
                    "skipped": self.skipped,
                    "failed": [{"image": str(image), "error": str(error)} for image, error in self.failed],
                    "seconds": _rounded({"load": load_seconds, **self._seconds}),
                }
            )
        if self.skipped:
            print(f"{len(self.skipped)} of {self.count} images were finished before.", file=sys.stderr)
        print_failures(self.failed, self.count)


@dataclass(frozen=True, eq=False)
class Delivery:
    """How the work on one image says that it was done before, and hands over what it made."""

    target: Target
    report: Report
    progress: ImageProgress

    def skip(self, task: ImageTask, settings: Callable[[], Mapping[str, Any]]) -> str | None:
        """None when the image was finished before, under these settings: it is skipped. Else what to say of doing it
        again, which is nothing for a new one.
        """
        if not self.target.resume or self.target.out is None or task.facts is None:
            return ""
        verdict = verify(self.target.out, task.stem, task.facts, settings())
        if verdict.finished:
            self.report.skipped.append(str(task.image))
            self.progress.skip(f"{task.image}: skipped, finished before")
            return None
        return f", again because {verdict.reason}" if verdict.reason else ""

    def deliver(self, task: ImageTask, result: Result, settings: Mapping[str, Any]) -> None:
        """Write the files of an image, all or none, and report it. Raises OutputError."""
        from anysam.outputs import write_outputs

        losses: list[Loss] = []
        if self.target.out is None:
            with interrupts_deferred():
                self.report.add(task.image, result)
                self.progress.end(result.line)
            return
        start = time.perf_counter()
        with staging(self.target.out) as folder:
            staged = write_outputs(
                task.image,
                result.pixels,
                result.records,
                folder,
                self.target.formats,
                task.stem,
                losses,
                result.place,
                result.names,
            )
            with interrupts_deferred():  # what is in its place is also counted
                moves = publish(folder, self.target.out, task.stem, task.facts, settings)
                seconds = {**result.seconds, "write": time.perf_counter() - start}
                timed = dataclasses.replace(result, seconds=seconds)
                self.report.add(task.image, timed, [moves[file] for file in staged], losses)
                self.progress.end("; ".join([result.line, *told_losses(losses, self.target.formats)]))


@dataclass(frozen=True)
class RunWords:
    """What a run is called. doing: beside the progress bar. advice: what helps against a lack of memory."""

    doing: str
    advice: str


def run_reported(
    images: Sequence[Path],
    target: Target,
    as_json: bool,
    words: RunWords,
    work: Callable[[ImageTask, Delivery], None],
    loaded: Callable[[], tuple[Mapping[str, Any], float]],
) -> int:
    """Work on one image after the other and report all; returns the exit status.

    loaded: facts about what was loaded, for the JSON, and the seconds that took. Raises AnySamError when nothing can be
    done, or when the only image is bad; after an interruption, what is done has been said.
    """
    report = Report(as_json, len(images))
    with sigterm_interrupts():
        try:
            _run_all(images, target, words, work, report)
        except BaseException as error:  # Ctrl-C above all: what is done is said, then the error goes on
            finished = report.done + len(report.skipped)
            if finished or report.failed or (isinstance(error, KeyboardInterrupt) and len(images) > 1):
                again = "; the same command with --resume goes on" if target.out and finished < len(images) else ""
                print(f"{finished} of {len(images)} images are done{again}.", file=sys.stderr)
                report.close(*loaded())
            raise
    report.close(*loaded())
    return 1 if report.failed else 0


def _run_all(
    images: Sequence[Path],
    target: Target,
    words: RunWords,
    work: Callable[[ImageTask, Delivery], None],
    report: Report,
) -> None:
    from anysam.outputs import output_stems

    stems = output_stems(images)
    if target.out is not None:
        remove_abandoned(target.out)
        stems = assign_stems(images, target.out) if target.resume else stems
    with work_progress(len(images), words.doing) as progress:
        delivery = Delivery(target, report, progress)

        def work_on(number: int) -> None:
            image = images[number]
            facts = image_facts(image) if target.out is not None else None
            work(ImageTask(image, stems[number], facts), delivery)

        def fail(image: Path, error: AnySamError) -> None:
            report.failed.append((image, error))
            progress.end(f"{image}: failed")

        run_all(images, work_on, fail, words.advice)


def _rounded(seconds: Mapping[str, float]) -> dict[str, float]:
    return {stage: round(spent, 4) for stage, spent in seconds.items()}
