"""Find all masks of photographs without pointing at anything, or one for each box or point of a file.

Without options the model is asked at a grid of 32 by 32 points, and what it is unsure of, and all but the best of
masks that say the same, are left out: the published automatic mask generator. FastSAM models find all objects in one
pass; mobilesamv2 models ask at the boxes that a detector finds.

For each image, files in --out begin with its name. An image is there with all its files or not at all. Interrupted
work goes on with --resume: images whose files are all there, unchanged and made with the same settings are skipped.
--boxes and --points are in pixels of the upright original image; a file for several images names them.

With --tile, one tile of an image is worked on at a time; a GeoTIFF is also read so (the geo extra), whatever its size,
and --format geojson has its coordinates. overlay, cutout and --describe need the whole image at once.

--describe says what each mask is, by Tokenize Anything or an image-text model (see `anysam describe`), --labels which
names it may have; the numbers of classes in COCO and YOLO files are then those of the names, the same for all images.

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
  anysam everything photo.jpg --describe
  anysam everything photos/ --labels names.txt --describe clip --format coco,yolo --out results
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
from anysam.commands.finding import Finder, describe_found, find, found_words, open_picture
from anysam.commands.image_runs import Lazy, StopError
from anysam.commands.model_options import add_model_options, load_model, model_facts, pixel_limit
from anysam.commands.options import add_cache, add_results, chosen_formats, open_cache, results_folder, resumes
from anysam.commands.progress import Stopwatch, portion
from anysam.commands.prompt_files import ImagePrompts, PromptFile, read_prompts, unknown_words
from anysam.commands.reports import Delivery, ImageTask, Result, RunWords, Target, run_reported
from anysam.commands.words_options import DescriberChoice, add_describer, class_names, load_describer, wanted_describer
from anysam.errors import AnySamError

if TYPE_CHECKING:
    from anysam.automatic.options import EverythingOptions
    from anysam.store import EmbeddingStore

_DEFAULT_FORMATS = "overlay,coco"
_DRAWN = {"overlay", "cutout"}  # formats that need the whole photograph
# Options that change no mask, so that work may go on with others.
_WITHOUT_EFFECT = ("points_per_batch", "point_grids", "max_memory")
_WORDS = RunWords("Finding masks", "give --tile or a smaller --max-memory, or make the image smaller")


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
    add_describer(parser.add_argument_group("words for the masks"), "--describe")
    add_results(parser.add_argument_group("results"), _DEFAULT_FORMATS, resume=True)


@dataclass(frozen=True)
class Task:
    """What to do with every image. given: fields of EverythingOptions. describer: None for masks without words."""

    target: Target
    max_pixels: int | None
    given: dict[str, Any]
    prompts: PromptFile | None
    store: "EmbeddingStore | None"
    describer: DescriberChoice | None


def run(arguments: argparse.Namespace) -> int:
    """Find the masks of every image. Raises AnySamError when nothing can be done, or when the only image is bad."""
    # Imported on use, here and below, so that `anysam everything --help` does not wait for numpy.
    from anysam.images import find_images

    images = find_images(arguments.images)
    task = _plan(arguments, images)
    finder = Lazy(lambda: _load(arguments, task))

    def work(image: ImageTask, delivery: Delivery) -> None:
        _work(image, task, finder, delivery)

    return run_reported(images, task.target, arguments.json, _WORDS, work, lambda: _facts(finder.loaded))


def _plan(arguments: argparse.Namespace, images: Sequence[Path]) -> Task:
    """Check everything that can be checked before an image is opened."""
    from anysam.licences import allowed_licences

    allowed_licences(arguments.allow)
    pixel_limit(arguments)
    given = everything_options.given_options(arguments)
    resume = resumes(arguments)
    formats = chosen_formats(arguments, _DEFAULT_FORMATS)
    if arguments.panoptic and "labels" not in formats:
        formats += ("labels",)
    describer = wanted_describer(arguments)
    prompts = None
    if arguments.boxes is not None:
        prompts = read_prompts(Path(arguments.boxes), "box", images)
    elif arguments.points is not None:
        prompts = read_prompts(Path(arguments.points), "point", images)
    if prompts and (words := unknown_words(prompts)):
        print(words, file=sys.stderr)
    target = Target(results_folder(arguments), formats, resume)
    return Task(target, arguments.max_pixels, given, prompts, open_cache(arguments), describer)


def _load(arguments: argparse.Namespace, task: Task) -> Finder:
    """The model and, where they are wanted, the detector and the describer. Raises StopError."""
    start = time.perf_counter()
    try:
        model = load_model(arguments, arguments.model)
        name = everything_options.detector_name(arguments, model.variant, task.given)
        with_grid = name is None and task.prompts is None
        options = everything_options.everything_options(arguments.preset, model.variant, with_grid, task.given)
        detector = load_model(arguments, name) if name else None
        describer = load_describer(arguments, task.describer, task.store) if task.describer else None
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
        "formats": sorted(task.target.formats),
        **{name: value for name, value in _options_to_dict(options).items() if name not in _WITHOUT_EFFECT},
        **(task.describer.settings(describer) if task.describer and describer else {}),
    }
    return Finder(model, detector, options, task.store, settings, time.perf_counter() - start, describer)


def _facts(finder: Finder | None) -> tuple[dict[str, Any], float]:
    """What was loaded, for the JSON, all None when nothing was; and the seconds that took."""
    facts = {
        "model": model_facts(finder.model) if finder else None,
        "detector": model_facts(finder.detector) if finder and finder.detector else None,
        "describer": finder.describer.facts() if finder and finder.describer else None,
        "options": _options_to_dict(finder.options) if finder else None,
    }
    return facts, finder.seconds if finder else 0.0


def _work(task: ImageTask, plan: Task, finder: Callable[[], Finder], delivery: Delivery) -> None:
    """Find and write the masks of one image, or find that it was done. Raises AnySamError, StopError."""
    prompts = plan.prompts.images[task.image] if plan.prompts else None
    again = delivery.skip(task, lambda: _settings(finder(), prompts))
    if again is None:
        return
    watch = Stopwatch()
    tiled, drawn = "tile" in plan.given, bool(_DRAWN & set(plan.target.formats))
    picture = open_picture(task.image, plan.max_pixels, tiled=tiled, drawn=drawn, described=plan.describer is not None)
    watch.stop("read")
    with closing(picture):
        ready = finder()
        delivery.progress.begin(str(task.image))
        watch.restart()
        part, half = delivery.progress.part, 0.5 if ready.describer else 1.0
        records = find(ready, picture, plan.prompts, prompts, portion(part, 0.0, half))
        watch.stop("find")
        if ready.describer:
            records = describe_found(ready, picture, records, portion(part, half, 1.0))
            watch.stop("describe")
        words = found_words(records, ready, plan.prompts, prompts)
        line = f"{task.image}: {words} ({sum(watch.seconds.values()):.2f} s){again}"
        names = class_names(records, ready.describer.names) if ready.describer else None
        place = picture.place(task.image.name)
        result = Result(picture.shape(), records, watch.seconds, line, place, names)
        delivery.deliver(task, result, _settings(ready, prompts))


def _settings(finder: Finder, prompts: ImagePrompts | None) -> dict[str, Any]:
    """What the results of one image depend on."""
    if prompts is None:
        return {**finder.settings, "prompts": None}
    form = json.dumps([prompts.values, prompts.labels, prompts.scores, prompts.normalised, prompts.size])
    return {**finder.settings, "prompts": hashlib.sha256(form.encode()).hexdigest()}


def _options_to_dict(options: "EverythingOptions") -> dict[str, Any]:
    return {field.name: getattr(options, field.name) for field in dataclasses.fields(options)}
