"""Find all masks of photographs without pointing at anything, or one for each box or point of a file.

Without options the model is asked at a grid of 32 by 32 points, and what it is unsure of, and all but the best of
masks that say the same, are left out: the published automatic mask generator. FastSAM models find all objects in one
pass; mobilesamv2 models ask at the boxes that a detector finds.

For each image, files in --out begin with its name. An image is there with all its files or not at all. Interrupted
work goes on with --resume: images whose files are all there, unchanged and made with the same settings are skipped.
--boxes and --points are in pixels of the upright original image; a file for several images names them.

With --tile, one tile of an image is worked on at a time; a GeoTIFF is also read so (the geo extra), whatever its size,
and --format geojson has its coordinates. overlay and cutout need the whole image at once.

Paths of written files go to stdout, everything else to stderr. Exit status: 0 done, 1 some of several images failed
(the others are done), 2 bad input, 130 interrupted.

examples:
  anysam everything photo.jpg
  anysam everything photo.jpg --preset whole --min-area 500 --format overlay,coco
  anysam everything photo.jpg --points-per-side 64 --crop-n-layers 1 --crop-n-points-downscale-factor 2
  anysam everything photos/ 'more/*.png' --preset fast --out results --format coco,yolo
  anysam everything photos/ --out results --format coco,yolo --resume
  anysam everything photo.jpg --panoptic --out results
  anysam everything photos/ --boxes detections.json --format coco
  anysam everything photo.jpg --points clicks.csv --model sam_vit_b
  anysam everything photos/ --model mobilesamv2_tiny_vit --confidence 0.5
  anysam everything map.tif --tile 1024 --overlap 0.25 --max-memory 2G --format geojson
  anysam everything photo.jpg --json > result.json
"""

import argparse
import dataclasses
import hashlib
import json
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anysam import __version__
from anysam.commands import everything_options
from anysam.commands.finding import Finder, find, found_words, open_picture
from anysam.commands.image_runs import JsonDocument, StopError, print_failures, print_paths, run_all
from anysam.commands.interrupts import interrupts_deferred, sigterm_interrupts
from anysam.commands.model_options import add_model_options, load_model, model_facts, pixel_limit
from anysam.commands.options import FORMATS, add_cache, open_cache
from anysam.commands.progress import ImageProgress, work_progress
from anysam.commands.prompt_files import ImagePrompts, PromptFile, read_prompts, unknown_words
from anysam.commands.resume import assign_stems, image_facts, publish, remove_abandoned, staging, verify
from anysam.errors import AnySamError, OptionError

if TYPE_CHECKING:
    from anysam.automatic.options import EverythingOptions
    from anysam.outputs import Loss
    from anysam.results import MaskRecord
    from anysam.store import EmbeddingStore

_DEFAULT_OUT, _DEFAULT_FORMATS = "out", "overlay,coco"
_DRAWN = {"overlay", "cutout"}  # formats that need the whole photograph
# Options that change no mask, so that work may go on with others.
_WITHOUT_EFFECT = ("points_per_batch", "point_grids", "max_memory")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="image files, folders of images or patterns")
    everything_options.add_what(parser.add_argument_group("what to look for"))
    everything_options.add_choice(parser.add_argument_group("which masks to keep"))
    everything_options.add_grid(
        parser.add_argument_group(
            "the grid",
            "Parameters of the published mask generator, with its values; a preset, or a model's authors, may have\n"
            "others. What is given here counts.",
        )
    )
    everything_options.add_size(parser.add_argument_group("large images"))
    how = parser.add_argument_group("how")
    add_model_options(how)
    add_cache(how)
    results = parser.add_argument_group("results")
    results.add_argument(
        "--out", metavar="DIR", help=f"folder for the results, made if missing (default: {_DEFAULT_OUT})"
    )
    results.add_argument(
        "--format", metavar="LIST", help=f"of {', '.join(FORMATS)}, with commas (default: {_DEFAULT_FORMATS})"
    )
    results.add_argument(
        "--resume", action="store_true", help="go on: skip the images that are finished, after checking their files"
    )
    results.add_argument(
        "--json",
        action="store_true",
        help="print one JSON document on stdout; files are written only with --out or --format",
    )


@dataclass(frozen=True)
class Task:
    """What to do with every image. out: None writes no files. given: fields of EverythingOptions."""

    out: Path | None
    formats: tuple[str, ...]
    max_pixels: int | None
    given: dict[str, Any]
    prompts: PromptFile | None
    resume: bool
    store: "EmbeddingStore | None"


class Report:
    """What a run over `count` images did: data on stdout as it comes, and numbers and failures for the end."""

    def __init__(self, as_json: bool, count: int) -> None:
        self.count = count
        self.done = 0
        self.skipped: list[str] = []
        self.failed: list[tuple[Path, AnySamError]] = []
        self._seconds: dict[str, float] = {}
        self._document = JsonDocument() if as_json else None

    def add(
        self,
        image: Path,
        size: tuple[int, int],
        records: Sequence["MaskRecord"],
        seconds: dict[str, float],
        files: Sequence[Path],
        losses: Sequence["Loss"],
    ) -> None:
        """An image is finished: the paths of its files go to stdout, or all about it in JSON.

        losses: what its formats could not hold.
        """
        self.done += 1
        for stage, spent in seconds.items():
            self._seconds[stage] = self._seconds.get(stage, 0.0) + spent
        if self._document is None:
            print_paths(files)
            return
        form = {
            "image": str(image),
            "size": list(size),
            "masks": [record.to_dict() for record in records],
            "seconds": _rounded(seconds),
            "files": [str(file) for file in files],
            "losses": [dataclasses.asdict(loss) for loss in losses],
        }
        self._document.add(form)

    def close(self, finder: Finder | None) -> None:
        """The rest of the JSON, and on stderr the images that failed. finder: None when nothing was loaded."""
        if self._document is not None:
            seconds = {"load": finder.seconds if finder else 0.0, **self._seconds}
            self._document.close(
                {
                    "anysam": __version__,
                    "model": model_facts(finder.model) if finder else None,
                    "detector": model_facts(finder.detector) if finder and finder.detector else None,
                    "options": _options_to_dict(finder.options) if finder else None,
                    "skipped": self.skipped,
                    "failed": [{"image": str(image), "error": str(error)} for image, error in self.failed],
                    "seconds": _rounded(seconds),
                }
            )
        if self.skipped:
            print(f"{len(self.skipped)} of {self.count} images were finished before.", file=sys.stderr)
        print_failures(self.failed, self.count)


def run(arguments: argparse.Namespace) -> int:
    """Find the masks of every image. Raises AnySamError when nothing can be done, or when the only image is bad."""
    # Imported on use, here and below, so that `anysam everything --help` does not wait for numpy.
    from anysam.images import find_images

    images = find_images(arguments.images)
    task = _plan(arguments, images)
    report = Report(arguments.json, len(images))
    finders: list[Finder] = []  # empty until the first good image needs it

    def finder() -> Finder:
        if not finders:
            finders.append(_load(arguments, task))
        return finders[0]

    with sigterm_interrupts():
        try:
            _run_all(images, task, finder, report)
        except BaseException as error:  # Ctrl-C above all: what is done is said, then the error goes on
            finished = report.done + len(report.skipped)
            if finished or report.failed or (isinstance(error, KeyboardInterrupt) and len(images) > 1):
                again = "; the same command with --resume goes on" if task.out and finished < len(images) else ""
                print(f"{finished} of {len(images)} images are done{again}.", file=sys.stderr)
                report.close(finders[0] if finders else None)
            raise
    report.close(finders[0] if finders else None)
    return 1 if report.failed else 0


def _plan(arguments: argparse.Namespace, images: Sequence[Path]) -> Task:
    """Check everything that can be checked before an image is opened."""
    from anysam.licences import allowed_licences
    from anysam.outputs import check_formats, make_folder

    allowed_licences(arguments.allow)
    pixel_limit(arguments)
    given = everything_options.given_options(arguments)
    writes = not arguments.json or arguments.out is not None or arguments.format is not None
    if arguments.resume and not writes:
        raise OptionError("--resume looks at the files of the run before, and --json alone writes none; add --out.")
    formats = tuple(word.strip() for word in (arguments.format or _DEFAULT_FORMATS).split(",") if word.strip())
    check_formats(formats)
    if not formats:
        raise OptionError(f"--format names no format, got {arguments.format!r}; write for example {_DEFAULT_FORMATS}.")
    if arguments.panoptic and "labels" not in formats:
        formats += ("labels",)
    prompts = None
    if arguments.boxes is not None:
        prompts = read_prompts(Path(arguments.boxes), "box", images)
    elif arguments.points is not None:
        prompts = read_prompts(Path(arguments.points), "point", images)
    if prompts and (words := unknown_words(prompts)):
        print(words, file=sys.stderr)
    out = make_folder(arguments.out or _DEFAULT_OUT) if writes else None
    return Task(out, formats, arguments.max_pixels, given, prompts, arguments.resume, open_cache(arguments))


def _load(arguments: argparse.Namespace, task: Task) -> Finder:
    """The model and, where one is wanted, the detector. Raises StopError."""
    start = time.perf_counter()
    try:
        model = load_model(arguments, arguments.model)
        name = everything_options.detector_name(arguments, model.variant, task.given)
        with_grid = name is None and task.prompts is None
        options = everything_options.everything_options(arguments.preset, model.variant, with_grid, task.given)
        detector = load_model(arguments, name) if name else None
    except AnySamError as error:
        raise StopError(error) from error
    settings = {
        "anysam": __version__,
        "model": model.variant,
        "weights_sha256": model.weights_sha256,
        "dtype": model_facts(model)["dtype"],
        "detector": detector.variant if detector else None,
        "detector_sha256": detector.weights_sha256 if detector else None,
        "cache": task.store is not None,  # encodings are rounded there
        "formats": sorted(task.formats),
        **{name: value for name, value in _options_to_dict(options).items() if name not in _WITHOUT_EFFECT},
    }
    return Finder(model, detector, options, task.store, settings, time.perf_counter() - start)


def _run_all(images: Sequence[Path], task: Task, finder: Callable[[], Finder], report: Report) -> None:
    from anysam.outputs import output_stems

    stems = output_stems(images)
    if task.out is not None:
        remove_abandoned(task.out)
        stems = assign_stems(images, task.out) if task.resume else stems
    with work_progress(len(images), "Finding masks") as progress:

        def work(number: int) -> None:
            _work(images[number], stems[number], task, finder, report, progress)

        def fail(image: Path, error: AnySamError) -> None:
            report.failed.append((image, error))
            progress.end(f"{image}: failed")

        run_all(images, work, fail, "give --tile or a smaller --max-memory, or make the image smaller")


def _work(
    image: Path, stem: str, task: Task, finder: Callable[[], Finder], report: Report, progress: ImageProgress
) -> None:
    """Find and write the masks of one image, or find that it was done. Raises AnySamError, StopError."""
    from anysam.outputs import write_outputs

    facts = image_facts(image) if task.out is not None else None
    prompts = task.prompts.images[image] if task.prompts else None
    again = ""
    if task.resume and task.out is not None and facts is not None:
        verdict = verify(task.out, stem, facts, _settings(finder(), prompts))
        if verdict.finished:
            report.skipped.append(str(image))
            progress.skip(f"{image}: skipped, finished before")
            return
        again = f", again because {verdict.reason}" if verdict.reason else ""
    start = time.perf_counter()
    picture = open_picture(image, task.max_pixels, tiled="tile" in task.given, drawn=bool(_DRAWN & set(task.formats)))
    seconds = {"read": time.perf_counter() - start}
    with closing(picture):
        ready = finder()
        progress.begin(str(image))
        start = time.perf_counter()
        records = find(ready, picture, task.prompts, prompts, progress.part)
        seconds["find"] = time.perf_counter() - start
        words = found_words(len(records), ready, task.prompts, prompts)
        line = f"{image}: {words} ({sum(seconds.values()):.2f} s){again}"
        if task.out is None:
            with interrupts_deferred():
                report.add(image, picture.size, records, seconds, (), ())
                progress.end(line)
            return
        start = time.perf_counter()
        losses: list[Loss] = []
        with staging(task.out) as folder:
            place = picture.place(image.name)
            staged = write_outputs(image, picture.shape(), records, folder, task.formats, stem, losses, place)
            with interrupts_deferred():  # what is in its place is also counted
                moves = publish(folder, task.out, stem, facts, _settings(ready, prompts))
                seconds["write"] = time.perf_counter() - start
                report.add(image, picture.size, records, seconds, [moves[file] for file in staged], losses)
                progress.end("; ".join([line, *map(str, losses)]))


def _settings(finder: Finder, prompts: ImagePrompts | None) -> dict[str, Any]:
    """What the results of one image depend on."""
    if prompts is None:
        return {**finder.settings, "prompts": None}
    form = json.dumps([prompts.values, prompts.labels, prompts.scores, prompts.normalised, prompts.size])
    return {**finder.settings, "prompts": hashlib.sha256(form.encode()).hexdigest()}


def _options_to_dict(options: "EverythingOptions") -> dict[str, Any]:
    return {field.name: getattr(options, field.name) for field in dataclasses.fields(options)}


def _rounded(seconds: dict[str, float]) -> dict[str, float]:
    return {stage: round(spent, 4) for stage, spent in seconds.items()}
