"""Segment what you point at, or say: one mask for each object, written as PNG, overlay, cut-out, COCO or JSON.

All coordinates are pixels of the original image, x to the right, y down. A leading minus on a point or scribble says
"not this": --point=-120,80. Points, one box, a mask, a polygon and scribbles together describe ONE object; several
--box (or --mask, or --polygon) and nothing else are an object each. For several objects with more hints each, use
--object. The same prompts are applied to every image.

--text finds what words mean in the whole image: all masks are found, and an image-text model (CLIP; the text extra: pip
install 'anysam[text]') says which fits best. Each --text is an object of its own, after those that are pointed at; with
--text-threshold all that fit, "all the dogs", and perhaps none. --describe adds a name and a caption to each mask.

Paths of written files go to stdout, everything else to stderr. Exit status: 0 done, 1 some of several images failed
(the others are done), 2 bad input, 130 interrupted.

examples:
  anysam segment photo.jpg --point 320,240
  anysam segment photo.jpg --point 320,240 --point=-120,80 --format overlay,cutout
  anysam segment photo.jpg --box 40,60,300,420 --box 310,50,600,400
  anysam segment photo.jpg --object 'box=40,60,300,420 point=-50,70' --object 'point=500,80'
  anysam segment photo.jpg --polygon '100,100;300,90;320,280;90,300' --model sam_vit_b
  anysam segment photos/ 'more/*.png' --box 0,0,200,200 --out results --format coco
  anysam segment photo.jpg --text "the red car"
  anysam segment photos/ --text dog --text cat --text-threshold 0.5 --format overlay,coco
  anysam segment photo.jpg --point 320,240 --describe
  anysam segment photo.jpg --point 320,240 --json > result.json
"""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anysam import __version__
from anysam.commands.image_runs import Lazy, print_failures, print_paths
from anysam.commands.model_options import add_model_options, load_model, model_facts, pixel_limit
from anysam.commands.options import add_cache, add_prompts, add_results, chosen_formats, open_cache, results_folder
from anysam.commands.progress import Stopwatch, portion, work_progress
from anysam.commands.texts import TextChoice, add_text, find_texts, load_image_text, text_choice
from anysam.commands.words_options import (
    DescriberChoice,
    add_describer,
    class_names,
    load_describer,
    mask_words,
    told_losses,
    wanted_describer,
)
from anysam.errors import AnySamError, OptionError

if TYPE_CHECKING:
    import numpy as np

    from anysam.describe.clip import ImageTextNetwork
    from anysam.describe.interface import Describer
    from anysam.outputs import Loss
    from anysam.predictor import Model
    from anysam.prompts import Prompt
    from anysam.results import MaskRecord
    from anysam.store import EmbeddingStore

_DEFAULT_FORMATS, _WORDS_FORMATS = "png,overlay", "png,overlay,json"
_MASKS_SHOWN = 3  # in the line about an image


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="image files, folders of images or patterns")
    what = parser.add_argument_group("what to segment")
    add_prompts(what)
    add_text(what, parser.add_argument_group("how a text is understood"))
    how = parser.add_argument_group("how")
    add_model_options(how)
    masks = how.add_mutually_exclusive_group()
    masks.add_argument(
        "--multimask",
        action="store_const",
        const=True,
        default=None,
        dest="multimask",
        help="keep all three masks of each object, best first (default: the best only)",
    )
    masks.add_argument(
        "--single",
        action="store_const",
        const=False,
        dest="multimask",
        help="ask the model for one mask only, even for a lone point",
    )
    add_cache(how)
    add_describer(parser.add_argument_group("words for the masks"), "--describe")
    formats = f"{_DEFAULT_FORMATS}; where words are asked for {_WORDS_FORMATS}"
    add_results(parser.add_argument_group("results"), formats, resume=False)


@dataclass(frozen=True)
class Task:
    """What to do with every image. out: None writes no files. multimask: as in `Model.predict`. store: or None.

    prompts: those of a text, which `text` says how to understand, are the last.
    """

    prompts: Sequence["Prompt"]
    text: TextChoice | None
    describer: DescriberChoice | None
    out: Path | None
    formats: tuple[str, ...]
    multimask: bool | None
    max_pixels: int
    store: "EmbeddingStore | None"


@dataclass(frozen=True, eq=False)
class Tools:
    """What was loaded. image_text, describer: None where no text is asked for, or no words."""

    model: "Model"
    image_text: "ImageTextNetwork | None"
    describer: "Describer | None"


@dataclass(frozen=True)
class Done:
    """One image's result. masks: the number of its object and its record, for each mask. remarks: on texts
    that mean nothing in it. seconds: for each stage. losses: what the formats could not hold.
    """

    image: Path
    size: tuple[int, int]
    masks: tuple[tuple[int, "MaskRecord"], ...]
    remarks: tuple[str, ...]
    seconds: dict[str, float]
    files: tuple[Path, ...]
    formats: tuple[str, ...]
    losses: tuple["Loss", ...]

    def to_dict(self) -> dict[str, Any]:
        """JSON form; the masks are `MaskRecord.to_dict` with the number of the object they belong to, from 0."""
        return {
            "image": str(self.image),
            "size": list(self.size),
            "masks": [{"object": number, **record.to_dict()} for number, record in self.masks],
            "remarks": list(self.remarks),
            "seconds": {stage: round(spent, 4) for stage, spent in self.seconds.items()},
            "files": [str(file) for file in self.files],
            "losses": [asdict(loss) for loss in self.losses],
        }

    def summary(self) -> str:
        """One line for people."""
        shown = [mask_words(record) for _, record in self.masks[:_MASKS_SHOWN]]
        more = len(self.masks) - _MASKS_SHOWN
        rest = [f"{more} more mask{'s' if more > 1 else ''}"] if more > 0 else []
        said = f"{self.image}: {'; '.join([*shown, *rest, *self.remarks])} ({sum(self.seconds.values()):.2f} s)"
        return "; ".join([said, *told_losses(self.losses, self.formats)])


def run(arguments: argparse.Namespace) -> int:
    """Segment every image. Raises AnySamError when nothing can be done, or when the only image is bad."""
    # Imported on use, here and below, so that `anysam segment --help` does not wait for numpy, nor bad input for torch.
    from anysam.images import find_images

    task = _plan(arguments)
    images = find_images(arguments.images)
    done: list[Done] = []
    failed: list[tuple[Path, AnySamError]] = []
    tools = Lazy(lambda: _load(arguments, task))

    def report() -> None:
        _report(arguments.json, _facts(tools.loaded, task.text), done, failed)

    try:
        _segment_all(images, task, tools, done, failed)
    except BaseException:  # Ctrl-C above all: what is done is said, then the error goes on
        if done or failed:
            print(f"{len(done)} of {len(images)} images are done.", file=sys.stderr)
            report()
        raise
    report()
    return 1 if failed else 0


def _plan(arguments: argparse.Namespace) -> Task:
    """Check everything that can be checked before an image is opened."""
    from anysam.commands.hints import prompts_from_arguments
    from anysam.licences import allowed_licences

    allowed_licences(arguments.allow)
    max_pixels = pixel_limit(arguments)
    prompts = prompts_from_arguments(arguments, arguments.text, max_pixels)
    text = text_choice(arguments)
    if text and arguments.multimask:
        raise OptionError("--multimask is for what is pointed at; for several masks of a --text use --text-limit.")
    if text and arguments.multimask is False and len(text.texts) == len(prompts):
        raise OptionError("--single has no effect on --text; leave it out.")
    describer = wanted_describer(arguments)
    formats = chosen_formats(arguments, _WORDS_FORMATS if text or describer else _DEFAULT_FORMATS)
    out = results_folder(arguments)
    return Task(prompts, text, describer, out, formats, arguments.multimask, max_pixels, open_cache(arguments))


def _load(arguments: argparse.Namespace, task: Task) -> Tools:
    image_text = load_image_text(arguments, task.text) if task.text else None
    describer = load_describer(arguments, task.describer, task.store) if task.describer else None
    return Tools(load_model(arguments, arguments.model), image_text, describer)


def _segment_all(
    images: list[Path],
    task: Task,
    tools: Callable[[], Tools],
    done: list[Done],
    failed: list[tuple[Path, AnySamError]],
) -> None:
    """Segment one image after the other; what each gave is appended to `done` or `failed`.

    Raises AnySamError when the model cannot be loaded or the only image is bad.
    """
    from anysam.images import read_image
    from anysam.outputs import output_stems
    from anysam.prompts import validate_prompt

    with work_progress(len(images), "Segmenting") as progress:

        def fail(image: Path, error: AnySamError) -> None:
            if len(images) == 1:
                raise error
            failed.append((image, error))
            progress.end(f"{image}: failed")

        for image, stem in zip(images, output_stems(images), strict=True):
            try:
                pixels = read_image(image, task.max_pixels)
                for prompt in task.prompts:
                    validate_prompt(prompt, (pixels.shape[0], pixels.shape[1]))
            except AnySamError as error:
                fail(image, error)
                continue
            loaded = tools()  # outside of any try: without a model no image can be done
            progress.begin(str(image))
            try:
                done.append(_segment(loaded, image, pixels, stem, task, progress.part))
            except AnySamError as error:
                fail(image, error)
                continue
            progress.end(done[-1].summary())


def _segment(
    tools: Tools, image: Path, pixels: "np.ndarray", stem: str, task: Task, part: Callable[[float], None]
) -> Done:
    """Segment one image, (H, W, 3) uint8, and write its files."""
    from anysam.outputs import write_outputs

    watch = Stopwatch()
    masks = _pointed_at(tools.model, pixels, task, watch)
    remarks: tuple[str, ...] = ()
    half = 0.5 if tools.describer else 1.0
    if task.text and tools.image_text:
        texts, options, before = task.text.texts, task.text.options, len(task.prompts) - len(task.text.texts)
        found = find_texts(tools.model, tools.image_text, pixels, texts, options, task.store, portion(part, 0.0, half))
        masks += [(before + i, record) for i, records in enumerate(found.masks) for record in records]
        remarks = found.remarks
        watch.stop("find")
    records = [record for _, record in masks]
    if tools.describer:
        from anysam.describe.interface import describe_records

        records = describe_records(tools.describer, pixels, records, portion(part, half, 1.0))
        masks = [(number, record) for (number, _), record in zip(masks, records, strict=True)]
        watch.stop("describe")
    losses: list[Loss] = []
    named = tools.describer.names if tools.describer else task.text.texts if task.text else ()
    names = class_names(records, named)
    files = []
    if task.out is not None:
        files = write_outputs(image, pixels, records, task.out, task.formats, stem, losses, names=names)
    size = (pixels.shape[0], pixels.shape[1])
    return Done(image, size, tuple(masks), remarks, watch.seconds, tuple(files), task.formats, tuple(losses))


def _pointed_at(model: "Model", pixels: "np.ndarray", task: Task, watch: "Stopwatch") -> list[tuple[int, "MaskRecord"]]:
    """The number of each object that is pointed at, with its masks; the image is not encoded for none."""
    from anysam.results import MaskRecord

    prompts = [prompt for prompt in task.prompts if prompt.text is None]
    if not prompts:
        return []
    encoded = model.encode(pixels) if task.store is None else task.store.encode(model, pixels)
    watch.stop("encode")
    predictions = model.predict(encoded, prompts, task.multimask)
    watch.stop("predict")
    masks: list[tuple[int, MaskRecord]] = []
    for number, (prompt, prediction) in enumerate(zip(prompts, predictions, strict=True)):
        # Without --multimask the candidates of an ambiguous point are the model's business, not three results.
        kept = prediction.iou_predictions.argsort()[::-1] if task.multimask else [prediction.best]
        for i in kept:
            record = MaskRecord.from_mask(prediction.masks[i], float(prediction.iou_predictions[i]), prompt)
            masks.append((number, record))
    return masks


def _facts(tools: Tools | None, text: TextChoice | None) -> dict[str, Any]:
    """What was loaded, for the JSON; all None when nothing was, or was not asked for."""
    asked = None
    if tools and tools.image_text and text:
        asked = {**tools.image_text.facts(), "options": asdict(text.options)}
    return {
        "model": model_facts(tools.model) if tools else None,
        "text_model": asked,
        "describer": tools.describer.facts() if tools and tools.describer else None,
    }


def _report(
    as_json: bool,
    facts: dict[str, Any],
    done: list[Done],
    failed: list[tuple[Path, AnySamError]],
) -> None:
    """Data on stdout: the JSON document, or the paths of the files. Words on stderr: the bad images."""
    if as_json:
        document = {
            "anysam": __version__,
            **facts,
            "images": [each.to_dict() for each in done],
            "failed": [{"image": str(image), "error": str(error)} for image, error in failed],
        }
        print(json.dumps(document))
    else:
        print_paths([file for each in done for file in each.files])
    print_failures(failed, len(failed) + len(done))
