"""`anysam compare`: several models answer the same prompts on the user's own photographs, each in a process of its own.

What is compared with are the user's masks, or the answers of a reference model to the same prompts. Prompts are the
tight box and the centre-most point of an object. Without masks the objects are what the reference's everything mode
finds, drawn by the seed among those of 0.1 % to 60 % of the photograph.

Measured in a model's own process, on the photographs one after another, after the first one was done once to warm up:
seconds for encoding and for one box or click, wall clock, medians; and the most memory that the process held, loading
included. So models do not disturb each other's numbers, and one that fails does not end the others.
"""

import hashlib
import json
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pycocotools import mask as coco_mask

from anysam import __version__
from anysam.atomic import write_atomic
from anysam.catalogue import DEFAULT_VARIANT, VARIANTS
from anysam.datasets import ImageDataset, ImageEntry, read_dataset
from anysam.errors import AnySamError, ImageError, OptionError
from anysam.evaluate.recommendation import Candidate
from anysam.evaluate.runs import ModelChoice
from anysam.evaluate.sampling import chosen_masks
from anysam.fetch import locate
from anysam.images import read_image
from anysam.masks import decode_rle, encode_rle, mask_to_box
from anysam.metrics import centre_most_point
from anysam.predictor import Model
from anysam.prompts import Prompt
from anysam.weights_files import read_metadata

Rle = dict[str, Any]
_LEAST_PART, _MOST_PART = 0.001, 0.6  # of a photograph: specks and backgrounds say little of a model
_LEAST_AREA = 64  # pixels of a mask of the user's


@dataclass(frozen=True)
class Photo:
    """A photograph and its objects. boxes: x0 y0 x1 y1, clicks: x y, pixels of the image. masks: the user's, COCO RLE
    at the image's size, or empty."""

    path: Path
    boxes: tuple[tuple[float, float, float, float], ...]
    clicks: tuple[tuple[float, float], ...]
    masks: tuple[Rle, ...] = ()


@dataclass(frozen=True)
class Answers:
    """What a model says of a photograph's objects: a mask for each box and each click, and the seconds it took."""

    boxes: tuple[Rle, ...]
    clicks: tuple[Rle, ...]
    encode_seconds: float
    prompt_seconds: float


@dataclass(frozen=True)
class Facts:
    """What a model is. bytes: of its weights file. licence: of the weights. memory: bytes that its process held at
    most, None where the system does not tell; device_memory: of a GPU, or None."""

    variant: str
    parameters: int
    bytes: int
    licence: str
    weights_sha256: str
    device: str
    memory: int | None
    device_memory: int | None


@dataclass(frozen=True)
class Score:
    """One model's row. box, click: mean IoU over the objects; quality: their mean. problem: why it has no numbers."""

    name: str
    facts: Facts | None = None
    box: float = 0.0
    click: float = 0.0
    objects: int = 0
    encode_seconds: float = 0.0
    prompt_seconds: float = 0.0
    problem: str | None = None

    @property
    def quality(self) -> float:
        return (self.box + self.click) / 2

    def candidate(self) -> Candidate | None:
        """As `recommend` takes it; None for a model without numbers."""
        if self.facts is None or self.problem is not None:
            return None
        seconds = self.encode_seconds + self.prompt_seconds
        return Candidate(self.name, self.quality, self.facts.bytes, seconds, self.facts.licence)

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        if self.facts is None or self.problem is not None:
            return {"name": self.name, "problem": self.problem}
        numbers = asdict(self)
        del numbers["facts"], numbers["problem"]
        return numbers | {"quality": self.quality} | asdict(self.facts)


@dataclass(frozen=True)
class Comparison:
    """What is asked. choices: the models; reference: the place of the reference among them. out: folder that keeps the
    answers of finished models, or None."""

    choices: tuple[ModelChoice, ...]
    reference: int
    objects: int
    seed: int
    out: Path | None = None


Report = Callable[[str, float], None]  # which model, what part of its photographs is done


def compare(
    asked: Comparison, paths: Sequence[Path], masks: ImageDataset | None, report: Report | None = None
) -> tuple[list[Score], list[tuple[str, str]]]:
    """The models' scores in the order asked for, and the photographs that could not be read, with reasons.

    masks: of the photographs at `paths`, or None for agreement with the reference. Raises OptionError when there is
    nothing to compare on, or what the reference raises when it is what the others are compared with.
    """
    report = report or (lambda name, part: None)
    broken: list[tuple[str, str]] = []
    reference = asked.choices[asked.reference]
    if masks is None:
        photos = find_photos(asked, reference, paths, broken, report)
    else:
        photos = annotated_photos(masks, paths, asked.objects, asked.seed, broken)
    if not photos:
        raise OptionError(
            "There is no object to compare the models on; give photographs in which something can be cut out"
            + (", or masks of these very photographs." if masks is not None else ".")
        )
    order = [asked.reference, *(i for i in range(len(asked.choices)) if i != asked.reference)]
    answers: dict[int, tuple[Facts, list[Answers]] | AnySamError] = {}
    for i in order:
        try:
            answers[i] = kept_answers(asked.out, asked.choices[i], photos, report)
        except AnySamError as error:
            if masks is None and i == asked.reference:
                raise  # there is nothing to compare with
            answers[i] = error
    theirs = None if masks is not None else answers[asked.reference]
    targets = None if theirs is None or isinstance(theirs, AnySamError) else theirs[1]
    return [score(_name(choice), photos, answers[i], targets) for i, choice in enumerate(asked.choices)], broken


def score(
    name: str,
    photos: Sequence[Photo],
    found: tuple[Facts, Sequence[Answers]] | AnySamError,
    targets: Sequence[Answers] | None,
) -> Score:
    """A model's row from its answers: against the photographs' masks, or against a reference's answers."""
    if isinstance(found, AnySamError):
        return Score(name, problem=str(found))
    facts, answers = found
    box, click = [], []
    for i, (photo, own) in enumerate(zip(photos, answers, strict=True)):
        box += ious(own.boxes, photo.masks if targets is None else targets[i].boxes)
        click += ious(own.clicks, photo.masks if targets is None else targets[i].clicks)
    return Score(
        name,
        facts,
        float(np.mean(box)),
        float(np.mean(click)),
        len(box),
        float(np.median([own.encode_seconds for own in answers])),
        float(np.median([own.prompt_seconds for own in answers])),
    )


def ious(found: Sequence[Rle], wanted: Sequence[Rle]) -> list[float]:
    """IoU of each mask with its twin, COCO RLE of one image; 1 where both are empty."""
    values = []
    for one, other in zip(found, wanted, strict=True):
        pair = [{**each, "counts": each["counts"].encode()} for each in (one, other)]
        empty = not coco_mask.area(pair[0]) and not coco_mask.area(pair[1])
        values.append(1.0 if empty else float(coco_mask.iou(pair[:1], pair[1:], [0])[0, 0]))
    return values


def annotated_photos(
    dataset: ImageDataset, paths: Sequence[Path], count: int, seed: int, broken: list[tuple[str, str]]
) -> list[Photo]:
    """The photographs among `paths` that the data set has masks of, with up to `count` of them each."""
    wanted = {path.resolve() for path in paths}
    photos = []
    for i in range(len(dataset)):
        try:
            entry = dataset[i]
            if not isinstance(entry.path, Path) or entry.path.resolve() not in wanted:
                continue
            chosen = chosen_masks(entry, count, _LEAST_AREA, seed)
            if chosen:
                entry.read_image()  # its size is checked against the masks'
                photos.append(photo_of(entry.path, [_rle(entry, k) for k in chosen]))
        except ImageError as error:
            broken.append((str(getattr(error, "path", "")) or f"image {i}", str(error)))
    return photos


def photo_of(path: Path, masks: Sequence[Rle]) -> Photo:
    """The photograph with a box and a click for each mask, none of them empty."""
    boxes, clicks = [], []
    for rle in masks:
        mask = decode_rle(rle)
        box = mask_to_box(mask)
        assert box is not None
        x, y = centre_most_point(mask)
        boxes.append((float(box[0]), float(box[1]), float(box[2]), float(box[3])))
        clicks.append((x + 0.5, y + 0.5))
    return Photo(path, tuple(boxes), tuple(clicks), tuple(masks))


def open_masks(masks: Path, given: Sequence[str]) -> ImageDataset:
    """The user's masks: what `datasets.read_dataset` reads; a single folder of photographs is that of the images."""
    folder = Path(given[0]) if len(given) == 1 and Path(given[0]).is_dir() else None
    needs_folder = masks.is_file() and masks.suffix.lower() == ".json"
    return read_dataset(masks, images=folder if needs_folder else None)


def find_photos(
    asked: Comparison, reference: ModelChoice, paths: Sequence[Path], broken: list[tuple[str, str]], report: Report
) -> list[Photo]:
    """The photographs with objects that the reference's everything mode finds."""
    name = _name(reference)
    photos = []
    for i, (path, found) in enumerate(zip(paths, in_own_process(reference, _find, list(paths)), strict=False)):
        if isinstance(found, AnySamError):
            broken.append((str(path), str(found)))
        elif isinstance(found, list) and found:
            order = np.random.default_rng([asked.seed, i]).permutation(len(found))[: asked.objects]
            photos.append(Photo(path, *_prompts([found[k] for k in order])))
        report(f"objects by {name}", (i + 1) / len(paths))
    return photos


def kept_answers(
    out: Path | None, choice: ModelChoice, photos: Sequence[Photo], report: Report
) -> tuple[Facts, list[Answers]]:
    """The model's facts and answers: those that an earlier run kept in `out`, if nothing has changed, or new ones."""
    kept = None if out is None else out / "models" / f"{_digest(choice, photos)}.json"
    if kept is not None and kept.is_file():
        form = json.loads(kept.read_text(encoding="utf-8"))
        report(_name(choice), 1.0)
        return Facts(**form["facts"]), [_answers(each) for each in form["answers"]]
    found = in_own_process(choice, _answer, [photos[0], *photos])
    answers: list[Answers] = []
    for each in found:
        if isinstance(each, AnySamError):
            raise each
        if isinstance(each, Facts):
            facts = each
            break
        answers.append(each)
        report(_name(choice), len(answers) / (len(photos) + 1))
    else:
        raise OptionError(f"{_name(choice)}: its process ended early, most likely for lack of memory.")
    answers = answers[1:]  # the first one was the warm-up
    if kept is not None:
        kept.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"model": _name(choice), "facts": asdict(facts), "answers": [asdict(a) for a in answers]})
        write_atomic(kept, lambda file: file.write(text.encode()))
    return facts, answers


def in_own_process(choice: ModelChoice, work: Callable[[Model, Any], Any], items: Sequence[Any]) -> Iterator[Any]:
    """work(model, item) of each item, from a new process that loads the model; at last the model's Facts.

    An AnySamError stands in the place of an item's result, or comes alone when the model could not be loaded. Ends
    early when the process dies.
    """
    context = get_context("spawn")  # a fork of a process that computed with threads may hang
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(theirs, choice, work, items), daemon=True)
    process.start()
    theirs.close()  # so that the end of the process is seen here
    try:
        while True:
            try:
                result = ours.recv()
            except EOFError:
                return
            if isinstance(result, str):
                raise RuntimeError(f"{_name(choice)}: its process failed: {result}")
            yield result
            if isinstance(result, Facts):
                return
    finally:
        ours.close()
        process.terminate()
        process.join()


def _work(connection: Connection, choice: ModelChoice, work: Callable[[Model, Any], Any], items: Sequence[Any]) -> None:
    try:
        try:
            model = choice.load()
        except AnySamError as error:
            connection.send(error)
            return
        for item in items:
            try:
                result = work(model, item)
            except AnySamError as error:
                result = error
            connection.send(result)
        connection.send(facts_of(choice, model))
    except (BrokenPipeError, KeyboardInterrupt):
        return  # the other end has ended, and said why
    except Exception as error:
        connection.send(f"{type(error).__name__}: {error}")


def facts_of(choice: ModelChoice, model: Model) -> Facts:
    """What is known of a loaded model, in the process that loaded it."""
    name = choice.name or DEFAULT_VARIANT
    row = next((row for row in VARIANTS if row.name == name), None)
    path = locate(row) if row is not None else Path(name).expanduser()
    licence = "" if row is not None or path is None else read_metadata(path).get("licence", "")
    own = row or next(row for row in VARIANTS if row.name == model.variant)
    parameters = sum(each.numel() for each in model.network.parameters())  # type: ignore[union-attr]
    on_gpu = torch.cuda.max_memory_allocated(model.device) if model.device.type == "cuda" else None
    return Facts(
        model.variant,
        parameters,
        path.stat().st_size if path is not None else round((own.megabytes or 0) * 1e6),
        licence or own.weights_licence,
        model.weights_sha256,
        str(model.device),
        peak_memory(),
        on_gpu,
    )


def peak_memory() -> int | None:
    """Bytes that this process held at most. Not getrusage on Linux: there a new process begins with its parent's."""
    status = Path("/proc/self/status")
    if status.is_file():
        match = re.search(r"^VmHWM:\s+(\d+) kB", status.read_text(encoding="ascii"), re.MULTILINE)
        return int(match[1]) * 1024 if match else None
    if sys.platform == "darwin":
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return None


def _find(model: Model, path: Path) -> list[Rle]:
    image = read_image(path)
    pixels = image.shape[0] * image.shape[1]
    records = model.everything(image)
    return [each.segmentation for each in records if _LEAST_PART <= each.area / pixels <= _MOST_PART]


def _answer(model: Model, photo: Photo) -> Answers:
    image = read_image(photo.path)
    began = time.perf_counter()
    encoded = model.encode(image)
    _wait(model.device)
    encode_seconds = time.perf_counter() - began
    began = time.perf_counter()
    by_box = [model.predict(encoded, Prompt(box=np.array(box)), multimask=False) for box in photo.boxes]
    by_click = [model.predict(encoded, Prompt(points=np.array([click]))) for click in photo.clicks]
    seconds = (time.perf_counter() - began) / (2 * len(photo.boxes))
    masks = [[encode_rle(each.masks[each.best]) for each in own] for own in (by_box, by_click)]
    return Answers(tuple(masks[0]), tuple(masks[1]), encode_seconds, seconds)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _prompts(masks: Sequence[Rle]) -> tuple[Any, Any]:
    photo = photo_of(Path(), masks)
    return photo.boxes, photo.clicks


def _rle(entry: ImageEntry, index: int) -> Rle:
    return {"size": list(entry.size), "counts": entry.masks[index].decode()}


def _answers(form: dict[str, Any]) -> Answers:
    return Answers(tuple(form["boxes"]), tuple(form["clicks"]), form["encode_seconds"], form["prompt_seconds"])


def _name(choice: ModelChoice) -> str:
    return choice.name or DEFAULT_VARIANT


def _digest(choice: ModelChoice, photos: Sequence[Photo]) -> str:
    """Of all that answers depend on: the version, the model and its file, the photographs and the prompts."""
    path = Path(choice.name or "")
    stat = path.stat() if choice.name and path.is_file() else None
    facts: list[Any] = [__version__, asdict(choice), None if stat is None else [stat.st_size, stat.st_mtime_ns]]
    for photo in photos:
        own = photo.path.stat()
        facts.append([str(photo.path), own.st_size, own.st_mtime_ns, photo.boxes, photo.clicks])
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:24]
