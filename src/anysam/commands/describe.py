"""Say what masks are: a label with its probability, and a caption, for each mask.

The masks are those of a file (--masks: COCO, labelme, YOLO, PNG and all else that `anysam convert-masks` reads), or
what is pointed at (--point, --box, ..., as in `anysam segment`), or all that there are (--everything). They are matched
with the images by name.

Words come from Tokenize Anything, or from an image-text model such as CLIP (--describer clip; the text extra), which
chooses among the names in --labels. What is pointed at is cut out by --model; without it Tokenize Anything cuts out and
describes in one step.

One line for each mask goes to stderr, paths of written files to stdout; --json has all scores. Exit status: 0 done, 1
some of several images failed (the others are done), 2 bad input, 130 interrupted.

examples:
  anysam describe photo.jpg --point 320,240
  anysam describe photo.jpg --masks out/photo.coco.json
  anysam describe photos/ --masks results/ --out described --format overlay,coco
  anysam describe photo.jpg --everything --labels names.txt --no-captions
  anysam describe photo.jpg --box 40,60,300,420 --model sam_vit_b --describer clip --labels names.txt
  anysam describe photo.jpg --point 320,240 --json > words.json
"""

import argparse
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anysam import __version__
from anysam.commands.everything_options import authors_detector, everything_options
from anysam.commands.given_masks import GivenMasks, open_masks, refuse_overwriting
from anysam.commands.image_runs import Lazy, StopError
from anysam.commands.model_options import add_model_options, load_model, model_facts, pixel_limit
from anysam.commands.options import (
    READABLE,
    add_cache,
    add_prompts,
    add_results,
    chosen_formats,
    open_cache,
    results_folder,
    resumes,
    warn,
)
from anysam.commands.progress import Stopwatch, portion
from anysam.commands.reports import Delivery, ImageTask, Result, RunWords, Target, run_reported
from anysam.commands.words_options import (
    DescriberChoice,
    add_describer,
    class_names,
    describer_choice,
    label_words,
    load_describer,
)
from anysam.errors import AnySamError, OptionError

if TYPE_CHECKING:
    import numpy as np

    from anysam.automatic.options import EverythingOptions
    from anysam.describe.interface import Describer
    from anysam.predictor import Model
    from anysam.prompts import Prompt
    from anysam.results import MaskRecord
    from anysam.store import EmbeddingStore

_DEFAULT_FORMATS = "overlay,json"
_WORDS = RunWords("Describing", "make the image smaller")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="image files, folders of images or patterns")
    what = parser.add_argument_group("which masks: those of a file, or prompts, or everything")
    what.add_argument("--masks", metavar="FILE|FOLDER", type=Path, help="masks in any format that can be read")
    what.add_argument("--masks-format", choices=READABLE, metavar="FORMAT", help=f"theirs: {', '.join(READABLE)}")
    what.add_argument("--everything", action="store_true", help="all masks, as `anysam everything` finds them")
    add_prompts(what)
    add_describer(parser.add_argument_group("words"), "--describer")
    how = parser.add_argument_group("how")
    add_model_options(how)
    add_cache(how)
    add_results(parser.add_argument_group("results"), _DEFAULT_FORMATS, resume=True)


@dataclass(frozen=True)
class Task:
    """What to do with every image. The masks: those given, or of the prompts; without either of everything."""

    target: Target
    describer: DescriberChoice
    masks: GivenMasks | None
    prompts: Sequence["Prompt"]
    max_pixels: int
    store: "EmbeddingStore | None"


@dataclass(frozen=True, eq=False)
class Tools:
    """What was loaded. model: what makes masks; None where they are given, or made by the describer itself.

    detector, options: of everything mode. settings: what results depend on, in JSON form. seconds: that loading took.
    """

    describer: "Describer"
    model: "Model | None"
    detector: "Model | None"
    options: "EverythingOptions | None"
    settings: dict[str, Any]
    seconds: float


def run(arguments: argparse.Namespace) -> int:
    """Describe the masks of every image. Raises AnySamError when nothing can be done, or when the only image is bad."""
    # Imported on use, here and below, so that `anysam describe --help` does not wait for numpy.
    from anysam.images import find_images

    images = find_images(arguments.images)
    task = _plan(arguments, images)
    tools = Lazy(lambda: _load(arguments, task))

    def work(image: ImageTask, delivery: Delivery) -> None:
        _work(image, task, tools, delivery)

    return run_reported(images, task.target, arguments.json, _WORDS, work, lambda: _facts(tools.loaded))


def _plan(arguments: argparse.Namespace, images: Sequence[Path]) -> Task:
    """Check everything that can be checked before an image is opened."""
    from anysam.licences import allowed_licences
    from anysam.outputs import output_stems

    allowed_licences(arguments.allow)
    max_pixels = pixel_limit(arguments)
    formats = chosen_formats(arguments, _DEFAULT_FORMATS)
    _check_sources(arguments)
    describer = describer_choice(arguments)
    prompts: list[Prompt] = []
    if _pointed_at(arguments):
        from anysam.commands.hints import prompts_from_arguments

        prompts = prompts_from_arguments(arguments, (), max_pixels)
    masks = open_masks(arguments.masks, arguments.masks_format, images) if arguments.masks else None
    target = Target(results_folder(arguments), formats, resumes(arguments))
    if masks and target.out:
        refuse_overwriting(masks, target.out, formats, output_stems(images))
    return Task(target, describer, masks, prompts, max_pixels, open_cache(arguments))


def _pointed_at(arguments: argparse.Namespace) -> list[str]:
    """The options that point at something, of those given."""
    kinds = ("point", "box", "mask", "polygon", "scribble", "object")
    return [f"--{kind}" for kind in kinds if getattr(arguments, kind)]


def _check_sources(arguments: argparse.Namespace) -> None:
    """One source of masks, and no option that has no effect with it. Raises OptionError."""
    pointed = _pointed_at(arguments)
    given = [*["--masks"] * (arguments.masks is not None), *["--everything"] * arguments.everything, *pointed[:1]]
    if not given:
        raise OptionError(
            "Nothing says which masks to describe; give --masks FILE, or point at them with --point X,Y, --box "
            "X1,Y1,X2,Y2 and the like, or take --everything."
        )
    if len(given) > 1:
        raise OptionError(f"{given[0]} and {given[1]} exclude each other; give one of them, or run the command twice.")
    if arguments.masks is None and arguments.masks_format is not None:
        raise OptionError("--masks-format has no effect without --masks.")
    if arguments.masks is not None and arguments.model is not None:
        raise OptionError("--model has no effect with --masks, which are there already; leave one of them out.")


def _load(arguments: argparse.Namespace, task: Task) -> Tools:
    """The describer and, where they are wanted, the model that makes masks and its detector. Raises StopError."""
    watch = Stopwatch()
    try:
        describer = load_describer(arguments, task.describer, task.store)
        model, detector, options = None, None, None
        if task.masks is None and not (task.prompts and arguments.model is None and _cuts_out(describer)):
            model = load_model(arguments, arguments.model)
        if model is not None and not task.prompts:
            name = authors_detector(model.variant)
            detector = load_model(arguments, name) if name else None
            options = everything_options(None, model.variant, detector is None, {})
    except AnySamError as error:
        raise StopError(error) from error
    settings = {
        "anysam": __version__,
        **_identity("model", model),
        **_identity("detector", detector),
        "everything": None if options is None else asdict(options),
        "dtype": arguments.dtype,
        "cache": task.store is not None,  # encodings are rounded there
        "formats": sorted(task.target.formats),
        **task.describer.settings(describer),
    }
    watch.stop("load")
    return Tools(describer, model, detector, options, settings, watch.seconds["load"])


def _cuts_out(describer: "Describer") -> bool:
    """Whether a describer makes masks itself from what is pointed at."""
    from anysam.describe.tap import TapDescriber

    return isinstance(describer, TapDescriber)


def _identity(kind: str, model: "Model | None") -> dict[str, str | None]:
    return {
        kind: model.variant if model else None,
        f"{kind}_sha256": model.weights_sha256 if model else None,
    }


def _facts(tools: Tools | None) -> tuple[dict[str, Any], float]:
    """What was loaded, for the JSON, all None when nothing was; and the seconds that took."""
    facts = {
        "describer": tools.describer.facts() if tools else None,
        "model": model_facts(tools.model) if tools and tools.model else None,
        "detector": model_facts(tools.detector) if tools and tools.detector else None,
    }
    return facts, tools.seconds if tools else 0.0


def _work(task: ImageTask, plan: Task, tools: Callable[[], Tools], delivery: Delivery) -> None:
    """Describe the masks of one image, or find that it was done. Raises AnySamError, StopError."""
    from anysam.images import image_size, read_image
    from anysam.prompts import validate_prompt

    def given(size: tuple[int, int], say: Callable[[str], None]) -> "list[MaskRecord] | None":
        return None if plan.masks is None else plan.masks.of(task.image, size, say)

    def kept_settings() -> dict[str, Any]:
        records = given(image_size(task.image), lambda _: None) if plan.masks else None
        return _settings(tools(), plan, records)

    again = delivery.skip(task, kept_settings)
    if again is None:
        return
    watch = Stopwatch()
    pixels = read_image(task.image, plan.max_pixels)
    size = (pixels.shape[0], pixels.shape[1])
    for prompt in plan.prompts:
        validate_prompt(prompt, size)
    masks = given(size, warn)
    watch.stop("read")
    ready = tools()
    delivery.progress.begin(str(task.image))
    watch.restart()
    records = _described(ready, plan, pixels, masks, watch, delivery.progress.part)
    words = [
        f"  {number}: {label_words(record) or 'no words'}, {record.area:,} pixels"
        for number, record in enumerate(records)
    ]
    count = f"{len(records):,} mask{'' if len(records) == 1 else 's'}"
    line = "\n".join([f"{task.image}: {count} ({sum(watch.seconds.values()):.2f} s){again}", *words])
    result = Result(pixels, records, watch.seconds, line, names=class_names(records, ready.describer.names))
    delivery.deliver(task, result, _settings(ready, plan, masks))


def _described(
    tools: Tools,
    plan: Task,
    pixels: "np.ndarray",
    masks: "list[MaskRecord] | None",
    watch: Stopwatch,
    part: Callable[[float], None],
) -> "list[MaskRecord]":
    """The masks that are given, or those that are made now, with words. Raises AnySamError."""
    from anysam.describe.interface import describe_records

    begun = 0.0
    if masks is None and tools.model is None:
        return _regions(tools, plan, pixels, watch)
    if masks is None:
        begun = 0.0 if plan.prompts else 0.5
        masks = _made(tools, plan, pixels, watch, portion(part, 0.0, begun))
    records = describe_records(tools.describer, pixels, masks, portion(part, begun, 1.0))
    watch.stop("describe")
    return records


def _made(
    tools: Tools, plan: Task, pixels: "np.ndarray", watch: Stopwatch, part: Callable[[float], None]
) -> "list[MaskRecord]":
    """The masks that a model makes: the best one of each prompt, or all that there are."""
    from anysam.results import MaskRecord

    model, store = tools.model, plan.store
    assert model is not None
    if not plan.prompts:
        records = model.everything(pixels, tools.options, tools.detector, part, store)
        watch.stop("find")
        return records
    encoded = model.encode(pixels) if store is None else store.encode(model, pixels)
    watch.stop("encode")
    predictions = model.predict(encoded, plan.prompts)
    watch.stop("predict")
    return [
        MaskRecord.from_mask(each.masks[each.best], float(each.iou_predictions[each.best]), prompt)
        for prompt, each in zip(plan.prompts, predictions, strict=True)
    ]


def _regions(tools: Tools, plan: Task, pixels: "np.ndarray", watch: Stopwatch) -> "list[MaskRecord]":
    """Masks and words of the prompts, both by the describer."""
    from anysam.describe.tap import DescribeOptions, TapDescriber, describe_prompts

    assert isinstance(tools.describer, TapDescriber)
    model, wording = tools.describer.model, tools.describer.wording
    options = DescribeOptions(
        vocabulary=wording.vocabulary,
        top=wording.top,
        captions=wording.tokenizer is not None,
        max_tokens=wording.max_tokens,
        beams=wording.beams,
        tokenizer=wording.tokenizer,
    )
    encoded = model.encode(pixels) if plan.store is None else plan.store.encode(model, pixels)
    watch.stop("encode")
    records = describe_prompts(model, encoded, plan.prompts, options)
    watch.stop("describe")
    return records


def _settings(tools: Tools, plan: Task, masks: "list[MaskRecord] | None") -> dict[str, Any]:
    """What the results of one image depend on."""
    forms = None if masks is None else _digest([record.to_dict() for record in masks])
    prompts = _digest([prompt.to_dict() for prompt in plan.prompts]) if plan.prompts else None
    return {**tools.settings, "masks": forms, "prompts": prompts}


def _digest(form: object) -> str:
    return hashlib.sha256(json.dumps(form).encode()).hexdigest()
