"""`anysam compare`: several models answer the same boxes and clicks on the user's own photographs.

What is compared with are the user's masks, or the answers of a reference model to the same prompts; then the reference
agrees with itself, and the score of the others says how little is lost by taking them instead. Which objects are asked
for is said in `comparison_photos`, what is measured in `comparison_process`.

With a folder for results a line is kept for every photograph of every model, and the same command goes on there. Other
settings are refused; other models, another `within` and other licences are not other settings.
"""

import hashlib
import json
import os
import platform
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pycocotools import mask as coco_mask

from anysam import __version__
from anysam.devices import find_device
from anysam.errors import AnySamError, ImageError, OptionError
from anysam.evaluate.comparison_photos import Broken, Photo, Rle, Search, annotated_photos, find_objects, open_masks
from anysam.evaluate.comparison_process import Answers, Contender, Facts, Failure, Question, answer, in_own_process
from anysam.evaluate.recommendation import Candidate, commercial_use
from anysam.evaluate.row_file import FORMAT, Outcome, open_rows
from anysam.evaluate.runs import spread

_LEAST_TIMES = 3  # of which a median is taken, however few the photographs
_ANSWERS = tuple(field.name for field in fields(Answers))
_FACTS = "facts"  # the name of the row with what is known of a model
_CONFIDENT = 1.96  # standard errors to either side hold the mean of many more objects 19 times of 20

Report = Callable[[str, float], None]  # what is done now, and what part of it is done, rising to 1


@dataclass(frozen=True)
class Comparison:
    """What is asked. reference: the place among the contenders of the model that the others are compared with. masks:
    the user's, or None for the reference's answers. objects: of a photograph at most. limit: photographs, 0: all.
    threads: of each process. out: folder for what goes on after an interruption, or None."""

    contenders: tuple[Contender, ...]
    reference: int
    masks: Path | None = None
    objects: int = 5
    limit: int = 0
    seed: int = 0
    threads: int = 1
    out: Path | None = None


@dataclass(frozen=True)
class Score:
    """A model's row, or the problem why it has none. box, click: mean IoU over the objects; quality: their mean; error:
    1.96 standard errors of it, None for a single object. Seconds are medians; cpu_seconds: of encoding, all threads."""

    name: str
    facts: Facts | None = None
    box: float = 0.0
    click: float = 0.0
    error: float | None = None
    encode_seconds: float = 0.0
    prompt_seconds: float = 0.0
    cpu_seconds: float | None = None
    problem: str | None = None

    @property
    def quality(self) -> float:
        return (self.box + self.click) / 2

    @property
    def seconds(self) -> float:
        """For a photograph and a prompt."""
        return self.encode_seconds + self.prompt_seconds

    def candidate(self) -> Candidate | None:
        """As `recommend` takes it; None for a model without numbers."""
        if self.facts is None:
            return None
        return Candidate(self.name, self.quality, self.facts.bytes, self.seconds, self.facts.licence)

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        if self.facts is None:
            return {"name": self.name, "problem": self.problem}
        numbers = asdict(self)
        del numbers["facts"], numbers["problem"]
        commercial = {"commercial_use": commercial_use(self.facts.licence)}
        return numbers | {"quality": self.quality} | asdict(self.facts) | commercial


@dataclass(frozen=True)
class Compared:
    """scores: in the order of the contenders. photos, objects: how many the models were asked on. left_out: photographs
    without objects. broken: what could not be read, and why."""

    scores: tuple[Score, ...]
    photos: int
    objects: int
    left_out: int
    broken: tuple[Broken, ...]


def compare(asked: Comparison, paths: Sequence[Path], report: Report) -> Compared:
    """Ask every model and compare; a model that fails is a row with its reason.

    Raises OptionError when there is nothing to compare on, when the reference fails whose answers are compared with, or
    when `asked.out` holds results of other settings; OutputError when it cannot be written.
    """
    reference = asked.contenders[asked.reference]
    if asked.masks is None:
        chosen = [paths[i] for i in spread(len(paths), asked.limit)]
        photos, broken = found_photos(asked, chosen, report)
        tried = len(chosen)
    else:
        photos, broken = annotated_photos(open_masks(asked.masks, paths), paths, asked.objects, asked.seed, asked.limit)
        tried = len(paths) if asked.limit == 0 else len(photos)
    if not photos:
        raise OptionError(nothing_to_compare(asked, broken))
    order = [asked.reference, *(i for i in range(len(asked.contenders)) if i != asked.reference)]
    targets: list[Answers] | None = None
    scores: dict[int, Score] = {}
    for i in order:
        name = asked.contenders[i].name
        result = answers_of(asked, asked.contenders[i], photos, report)
        if isinstance(result, Failure):
            if asked.masks is None and i == asked.reference:
                raise OptionError(f"The reference {reference.name} cannot be used: {result.reason}")
            scores[i] = Score(name, problem=result.reason)
            report(name, 1.0)
            continue
        if asked.masks is None and i == asked.reference:
            targets = result[1]
        scores[i] = score(name, photos, *result, targets)
    objects = sum(len(photo.boxes) for photo in photos)
    left_out = max(0, tried - len(photos) - len(broken))
    return Compared(tuple(scores[i] for i in sorted(scores)), len(photos), objects, left_out, tuple(broken))


def nothing_to_compare(asked: Comparison, broken: Sequence[Broken]) -> str:
    """Why there is not one object."""
    if broken:
        return f"There is nothing to compare the models on: {broken[0][1]}"
    if asked.masks is None:
        return "The reference finds no object in these photographs; take others, another --reference, or give --masks."
    return (
        f"{asked.masks} has no masks of these very photographs, by path or by name, of at least 64 pixels; of label "
        "images, every value but 0 and 255 is an object."
    )


def score(
    name: str, photos: Sequence[Photo], facts: Facts, answers: Sequence[Answers], targets: Sequence[Answers] | None
) -> Score:
    """A model's row from its answers: against the photographs' masks, or against a reference's answers."""
    box, click = [], []
    for i, (photo, own) in enumerate(zip(photos, answers, strict=True)):
        box += ious(own.boxes, photo.masks if targets is None else targets[i].boxes)
        click += ious(own.clicks, photo.masks if targets is None else targets[i].clicks)
    both = (np.array(box) + click) / 2
    cpu_seconds = [seconds for own in answers for seconds in own.cpu_seconds]
    return Score(
        name,
        facts,
        float(np.mean(box)),
        float(np.mean(click)),
        float(_CONFIDENT * both.std(ddof=1) / len(both) ** 0.5) if len(both) > 1 else None,
        float(np.median([seconds for own in answers for seconds in own.encode_seconds])),
        float(np.median([seconds for own in answers for seconds in own.prompt_seconds])),
        float(np.median(cpu_seconds)) if cpu_seconds and not facts.device.startswith("cuda") else None,
    )


def ious(found: Sequence[Rle], wanted: Sequence[Rle]) -> list[float]:
    """IoU of each mask with its twin, COCO RLE of one image; 1 where both are empty."""
    values = []
    for one, other in zip(found, wanted, strict=True):
        pair = [{**each, "counts": each["counts"].encode()} for each in (one, other)]
        empty = not coco_mask.area(pair[0]) and not coco_mask.area(pair[1])
        values.append(1.0 if empty else float(coco_mask.iou(pair[:1], pair[1:], [0])[0, 0]))
    return values


def found_photos(asked: Comparison, paths: Sequence[Path], report: Report) -> tuple[list[Photo], list[Broken]]:
    """The photographs with objects that the reference finds, and what could not be read."""
    reference = asked.contenders[asked.reference]
    if reference.problem is not None:
        raise OptionError(f"The reference {reference.name} cannot be used: {reference.problem}")
    items = [Search(path, asked.objects, asked.seed) for path in paths]
    found: dict[int, Photo] = {}
    broken: list[Broken] = []
    with closing(open_rows(_folder(asked), _settings(asked, reference, "objects", paths))) as rows:
        for outcome in rows.done:
            if outcome.values is not None and outcome.index < len(paths):
                found[outcome.index] = _photo(paths[outcome.index], outcome.values)
        todo = [i for i in range(len(paths)) if i not in found]
        results = in_own_process(reference, asked.threads, find_objects, [items[i] for i in todo]) if todo else ()
        for number, (i, result) in enumerate(zip(todo, results, strict=False), start=1):
            if isinstance(result, Failure) or not isinstance(result, Photo | ImageError):
                reason = result.reason if isinstance(result, Failure) else str(result)
                raise OptionError(f"The reference {reference.name} cannot be used: {reason}")
            if isinstance(result, ImageError):
                broken.append((str(paths[i]), str(result)))
            else:
                found[i] = result
                values = {"boxes": result.boxes, "clicks": result.clicks}
                rows.add(Outcome(i, "", str(paths[i]), _json(values)))
            report(f"objects by {reference.name}", number / len(todo))
    return [found[i] for i in sorted(found) if found[i].boxes], broken


def answers_of(
    asked: Comparison, contender: Contender, photos: Sequence[Photo], report: Report
) -> tuple[Facts, list[Answers]] | Failure:
    """A model's facts and its answers for each photograph: what an earlier run kept, and the rest anew."""
    if contender.problem is not None:
        return Failure(contender.problem)
    times = -(-_LEAST_TIMES // len(photos))
    answers: dict[int, Answers] = {}
    facts: Facts | None = None
    with closing(open_rows(_folder(asked), _settings(asked, contender, "answers", photos))) as rows:
        for outcome in rows.done:
            if outcome.name == _FACTS and outcome.values is not None:
                facts = Facts(**outcome.values)
            elif outcome.values is not None:
                answers[outcome.index] = _answers(outcome.values)
        todo = [i for i in range(len(photos)) if i not in answers]
        if facts is not None and not todo:
            report(contender.name, 1.0)
            return facts, [answers[i] for i in range(len(photos))]
        questions = [Question(photos[0]), *(Question(photos[i], times) for i in todo)]  # the first one to warm up
        for number, result in enumerate(in_own_process(contender, asked.threads, answer, questions)):
            match result:
                case Answers() if number > 0:
                    answers[todo[number - 1]] = result
                    rows.add(Outcome(todo[number - 1], "", str(photos[todo[number - 1]].path), _json(asdict(result))))
                case Facts():
                    facts = result
                    rows.add(Outcome(-1, "", _FACTS, asdict(result)))
                case Failure():
                    return result
                case AnySamError():
                    return Failure(str(result))
            report(contender.name, (number + 1) / (len(questions) + 1))
    assert facts is not None
    return facts, [answers[i] for i in range(len(photos))]


def machine_facts(threads: int) -> dict[str, Any]:
    """What seconds depend on, but for the device."""
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "cores": os.cpu_count(),
        "threads": threads,
        "torch": torch.__version__,
        "anysam": __version__,
    }


def _folder(asked: Comparison) -> Path | None:
    return None if asked.out is None else asked.out / "answers"


def _settings(asked: Comparison, contender: Contender, what: str, on: Sequence[Path | Photo]) -> dict[str, Any]:
    """All that rows depend on, in the order in which a difference is told."""
    reference = asked.contenders[asked.reference]
    choice = contender.choice
    by = f"{reference.name} {reference.weights_sha256[:8]}" if asked.masks is None else os.path.abspath(asked.masks)
    read_again: dict[str, Any] = json.loads(
        json.dumps(
            {
                "format": FORMAT,
                "protocol": f"compare-{what}",
                "model": _slug(contender.name),
                "weights_sha256": contender.weights_sha256,
                "device": str(find_device(choice.device)),
                "dtype": choice.dtype,
                "machine": machine_facts(asked.threads),
                "objects_from": by,
                "objects": asked.objects,
                "limit": asked.limit,
                "seed": asked.seed,
                "photographs": {"count": len(on), "digest": _digest(on)},
            }
        )
    )
    return read_again


def _slug(name: str) -> str:
    """A model's name as a part of a file's."""
    return "".join(letter if letter.isalnum() or letter in "_-." else "_" for letter in Path(name).stem)[:80]


def _digest(on: Sequence[Path | Photo]) -> str:
    """Of the photographs' names, sizes and times, and of the prompts where there are."""
    return hashlib.sha256(json.dumps(list(_facts(on))).encode()).hexdigest()[:16]


def _facts(on: Sequence[Path | Photo]) -> Iterator[list[Any]]:
    for each in on:
        path = each.path if isinstance(each, Photo) else each
        prompts = [each.boxes, each.clicks] if isinstance(each, Photo) else []
        stat = path.stat() if path.is_file() else None
        yield [str(path), *([] if stat is None else [stat.st_size, stat.st_mtime_ns]), *prompts]


def _photo(path: Path, values: dict[str, Any]) -> Photo:
    boxes = tuple((x0, y0, x1, y1) for x0, y0, x1, y1 in values["boxes"])
    return Photo(path, boxes, tuple((x, y) for x, y in values["clicks"]))


def _answers(values: dict[str, Any]) -> Answers:
    return Answers(*(tuple(values[name]) for name in _ANSWERS))


def _json(values: dict[str, Any]) -> dict[str, Any]:
    """As it is read again."""
    read: dict[str, Any] = json.loads(json.dumps(values))
    return read
