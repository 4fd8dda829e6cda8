"""Segment what you point at: one mask for each object, written as PNG, overlay, cut-out, COCO or JSON.

All coordinates are pixels of the original image, x to the right, y down. A leading minus on a point or scribble says
"not this": --point=-120,80. Points, one box, a mask, a polygon and scribbles together describe ONE object; several
--box (or --mask, or --polygon) and nothing else are an object each. For several objects with more hints each, use
--object. The same prompts are applied to every image.

Paths of written files go to stdout, everything else to stderr. Exit status: 0 done, 1 some of several images failed
(the others are done), 2 bad input, 130 interrupted.

examples:
  anysam segment photo.jpg --point 320,240
  anysam segment photo.jpg --point 320,240 --point=-120,80 --format overlay,cutout
  anysam segment photo.jpg --box 40,60,300,420 --box 310,50,600,400
  anysam segment photo.jpg --object 'box=40,60,300,420 point=-50,70' --object 'point=500,80'
  anysam segment photo.jpg --polygon '100,100;300,90;320,280;90,300' --model sam_vit_b
  anysam segment photos/ 'more/*.png' --box 0,0,200,200 --out results --format coco
  anysam segment photo.jpg --point 320,240 --json > result.json
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anysam import __version__
from anysam.commands.model_options import add_model_options, load_model, model_facts, pixel_limit
from anysam.commands.options import FORMATS, add_cache, open_cache
from anysam.commands.progress import image_progress
from anysam.errors import AnySamError, OptionError

if TYPE_CHECKING:
    import numpy as np

    from anysam.outputs import Loss
    from anysam.predictor import Model
    from anysam.prompts import Prompt
    from anysam.results import MaskRecord
    from anysam.store import EmbeddingStore

_DEFAULT_OUT, _DEFAULT_FORMATS = "out", "png,overlay"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="image files, folders of images or patterns")
    what = parser.add_argument_group("what to segment")
    what.add_argument(
        "--point",
        action="append",
        default=[],
        metavar="X,Y",
        help="a point on the object; =-X,Y: not on it; repeatable",
    )
    what.add_argument(
        "--box", action="append", default=[], metavar="X1,Y1,X2,Y2", help="a box around the object; repeatable"
    )
    what.add_argument(
        "--mask",
        action="append",
        default=[],
        metavar="FILE",
        help="a rough mask: an image of the same size, not black where the object is",
    )
    what.add_argument(
        "--polygon", action="append", default=[], metavar="'X,Y;X,Y;...'", help="a rough outline of the object"
    )
    what.add_argument(
        "--scribble",
        action="append",
        default=[],
        metavar="'X,Y;X,Y;...'",
        help="a stroke on the object; ='-X,Y;...': beside it",
    )
    what.add_argument(
        "--object",
        action="append",
        default=[],
        metavar="'KIND=VALUE ...'",
        help="one object by several hints: point=, box=, mask=, polygon=, scribble=; repeatable",
    )
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
    results = parser.add_argument_group("results")
    results.add_argument(
        "--out", metavar="DIR", help=f"folder for the results, made if missing (default: {_DEFAULT_OUT})"
    )
    results.add_argument(
        "--format",
        metavar="LIST",
        help=f"of {', '.join(FORMATS)}, with commas (default: {_DEFAULT_FORMATS})",
    )
    results.add_argument(
        "--json",
        action="store_true",
        help="print one JSON document on stdout; files are written only with --out or --format",
    )


@dataclass(frozen=True)
class Task:
    """What to do with every image. out: None writes no files. multimask: as in `Model.predict`. store: or None."""

    prompts: Sequence["Prompt"]
    out: Path | None
    formats: tuple[str, ...]
    multimask: bool | None
    max_pixels: int
    store: "EmbeddingStore | None"


@dataclass(frozen=True)
class Done:
    """One image's result. masks: the number of its object and its record, for each mask. seconds: for each stage.
    losses: what the formats could not hold.
    """

    image: Path
    size: tuple[int, int]
    masks: tuple[tuple[int, "MaskRecord"], ...]
    seconds: dict[str, float]
    files: tuple[Path, ...]
    losses: tuple["Loss", ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """JSON form; the masks are `MaskRecord.to_dict` with the number of the object they belong to, from 0."""
        return {
            "image": str(self.image),
            "size": list(self.size),
            "masks": [{"object": number, **record.to_dict()} for number, record in self.masks],
            "seconds": {stage: round(spent, 4) for stage, spent in self.seconds.items()},
            "files": [str(file) for file in self.files],
            "losses": [asdict(loss) for loss in self.losses],
        }

    def summary(self) -> str:
        """One line for people."""
        shown = [f"{record.area:,} pixels, predicted IoU {record.predicted_iou:.2f}" for _, record in self.masks[:3]]
        more = [f"{len(self.masks) - 3} more masks"] if len(self.masks) > 3 else []
        said = f"{self.image}: {'; '.join(shown + more)} ({sum(self.seconds.values()):.2f} s)"
        return "; ".join([said, *map(str, self.losses)])


def run(arguments: argparse.Namespace) -> int:
    """Segment every image. Raises AnySamError when nothing can be done, or when the only image is bad."""
    # Imported on use, here and below, so that `anysam segment --help` does not wait for numpy, nor bad input for torch.
    from anysam.images import find_images

    task = _plan(arguments)
    images = find_images(arguments.images)
    done: list[Done] = []
    failed: list[tuple[Path, AnySamError]] = []
    models: list[Model] = []  # empty until the first good image needs it
    try:
        _segment_all(images, task, lambda: _load(arguments, models), done, failed)
    except BaseException:  # Ctrl-C above all: what is done is said, then the error goes on
        if done or failed:
            print(f"{len(done)} of {len(images)} images are done.", file=sys.stderr)
            _report(arguments.json, models, done, failed)
        raise
    _report(arguments.json, models, done, failed)
    return 1 if failed else 0


def _plan(arguments: argparse.Namespace) -> Task:
    """Check everything that can be checked before an image is opened."""
    from anysam.commands.hints import Hints, prompts_from_hints
    from anysam.licences import allowed_licences
    from anysam.outputs import check_formats, make_folder

    allowed_licences(arguments.allow)
    max_pixels = pixel_limit(arguments)
    formats = tuple(word.strip() for word in (arguments.format or _DEFAULT_FORMATS).split(",") if word.strip())
    check_formats(formats)
    if not formats:
        raise OptionError(f"--format names no format, got {arguments.format!r}; write for example {_DEFAULT_FORMATS}.")
    hints = Hints(
        point=tuple(arguments.point),
        box=tuple(arguments.box),
        mask=tuple(arguments.mask),
        polygon=tuple(arguments.polygon),
        scribble=tuple(arguments.scribble),
    )
    prompts = prompts_from_hints(hints, arguments.object, max_pixels)
    writes = not arguments.json or arguments.out is not None or arguments.format is not None
    out = make_folder(arguments.out or _DEFAULT_OUT) if writes else None
    return Task(prompts, out, formats, arguments.multimask, max_pixels, open_cache(arguments))


def _load(arguments: argparse.Namespace, models: list["Model"]) -> "Model":
    """The model, loaded at the first call."""
    if not models:
        models.append(load_model(arguments, arguments.model))
    return models[0]


def _segment_all(
    images: list[Path],
    task: Task,
    model: Callable[[], "Model"],
    done: list[Done],
    failed: list[tuple[Path, AnySamError]],
) -> None:
    """Segment one image after the other; what each gave is appended to `done` or `failed`.

    Raises AnySamError when the model cannot be loaded or the only image is bad.
    """
    from anysam.images import read_image
    from anysam.outputs import output_stems
    from anysam.prompts import validate_prompt

    with image_progress(len(images)) as advance:

        def fail(image: Path, error: AnySamError) -> None:
            if len(images) == 1:
                raise error
            failed.append((image, error))
            advance(f"{image}: failed")

        for image, stem in zip(images, output_stems(images), strict=True):
            try:
                pixels = read_image(image, task.max_pixels)
                for prompt in task.prompts:
                    validate_prompt(prompt, (pixels.shape[0], pixels.shape[1]))
            except AnySamError as error:
                fail(image, error)
                continue
            loaded = model()  # outside of any try: without a model no image can be done
            try:
                done.append(_segment(loaded, image, pixels, stem, task))
            except AnySamError as error:
                fail(image, error)
                continue
            advance(done[-1].summary())


def _segment(model: "Model", image: Path, pixels: "np.ndarray", stem: str, task: Task) -> Done:
    """Segment one image, (H, W, 3) uint8, and write its files."""
    from anysam.outputs import write_outputs
    from anysam.results import MaskRecord

    start = time.perf_counter()
    encoded = model.encode(pixels) if task.store is None else task.store.encode(model, pixels)
    encoded_at = time.perf_counter()
    predictions = model.predict(encoded, task.prompts, task.multimask)
    seconds = {"encode": encoded_at - start, "predict": time.perf_counter() - encoded_at}
    masks: list[tuple[int, MaskRecord]] = []
    for number, (prompt, prediction) in enumerate(zip(task.prompts, predictions, strict=True)):
        # Without --multimask the candidates of an ambiguous point are the model's business, not three results.
        kept = prediction.iou_predictions.argsort()[::-1] if task.multimask else [prediction.best]
        for i in kept:
            record = MaskRecord.from_mask(prediction.masks[i], float(prediction.iou_predictions[i]), prompt)
            masks.append((number, record))
    records = [record for _, record in masks]
    losses: list[Loss] = []
    files = [] if task.out is None else write_outputs(image, pixels, records, task.out, task.formats, stem, losses)
    return Done(image, encoded.original_size, tuple(masks), seconds, tuple(files), tuple(losses))


def _report(as_json: bool, models: list["Model"], done: list[Done], failed: list[tuple[Path, AnySamError]]) -> None:
    """Data on stdout: the JSON document, or the paths of the files. Words on stderr: the bad images."""
    if as_json:
        document = {
            "anysam": __version__,
            "model": model_facts(models[0]) if models else None,
            "images": [each.to_dict() for each in done],
            "failed": [{"image": str(image), "error": str(error)} for image, error in failed],
        }
        print(json.dumps(document))
    else:
        for each in done:
            for file in each.files:
                print(file)
    if failed:
        print(f"{len(failed)} of {len(failed) + len(done)} images failed:", file=sys.stderr)
        for image, error in failed:
            print(f"  {error}" if str(image) in str(error) else f"  {image}: {error}", file=sys.stderr)
