"""What was typed on the command line (`120,80`, `10,20,300,400`, `x,y;x,y`) -> prompts."""

import argparse
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from anysam.errors import PromptError
from anysam.images import read_image
from anysam.prompts import Prompt

_NOTHING = (
    "Nothing says what to segment; give --point X,Y or --box X1,Y1,X2,Y2 (pixels), "
    "--mask FILE, --polygon, --scribble or --object, or say it in words with --text."
)


@dataclass(frozen=True)
class Hints:
    """The values of the options of that name, as typed."""

    point: tuple[str, ...] = ()
    box: tuple[str, ...] = ()
    mask: tuple[str, ...] = ()
    polygon: tuple[str, ...] = ()
    scribble: tuple[str, ...] = ()

    def given(self) -> dict[str, tuple[str, ...]]:
        """The kinds that have values."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {kind: texts for kind, texts in values.items() if texts}


def prompts_from_arguments(arguments: argparse.Namespace, texts: Sequence[str], max_pixels: int) -> list[Prompt]:
    """The prompts of a command line with `options.add_prompts`. Raises what `prompts_from_hints` does."""
    loose = Hints(
        point=tuple(arguments.point),
        box=tuple(arguments.box),
        mask=tuple(arguments.mask),
        polygon=tuple(arguments.polygon),
        scribble=tuple(arguments.scribble),
    )
    return prompts_from_hints(loose, arguments.object, max_pixels, texts)


def prompts_from_hints(
    loose: Hints, objects: Sequence[str], max_pixels: int, texts: Sequence[str] = ()
) -> list[Prompt]:
    """One Prompt for each object: of the loose hints, then those of --object, then the texts.

    The loose hints describe one object together, except several boxes, masks or polygons without any other hint: those
    are an object each. max_pixels: the limit for mask files. Raises PromptError, also for a text given twice, or
    ImageError for a mask file.
    """
    given = loose.given()
    if list(given) in (["box"], ["mask"], ["polygon"]):
        kind, values = next(iter(given.items()))
        groups = [_hints({kind: [value]}) for value in values]
    else:
        groups = [loose] if given else []
    groups += [_parse_object(text) for text in objects]
    if not groups and not texts:
        raise PromptError(_NOTHING)
    said = [Prompt(text=text) for text in texts]
    words = [prompt.text for prompt in said]
    if len(set(words)) < len(words):
        twice = next(text for text in words if words.count(text) > 1)
        raise PromptError(f"The text {twice!r} is given twice; for several masks of one text use --text-limit.")
    return [_prompt(hints, max_pixels) for hints in groups] + said


def _hints(values: dict[str, list[str]]) -> Hints:
    return Hints(
        point=tuple(values.get("point", ())),
        box=tuple(values.get("box", ())),
        mask=tuple(values.get("mask", ())),
        polygon=tuple(values.get("polygon", ())),
        scribble=tuple(values.get("scribble", ())),
    )


def _parse_object(text: str) -> Hints:
    """`point=120,80 point=-10,10 box=5,5,200,200` -> Hints."""
    kinds = [field.name for field in fields(Hints)]
    values: dict[str, list[str]] = {}
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise PromptError(f"--object {text!r} cannot be read: {error}.") from error
    for word in words:
        kind, equals, value = word.partition("=")
        if equals and kind == "text":
            raise PromptError(
                f"A text stands alone, without other hints; instead of --object 'text=...' write --text {value!r}."
            )
        if not equals or kind not in kinds:
            raise PromptError(
                f"--object takes {'=, '.join(kinds)}= with a value each, separated by spaces, got {word!r}."
            )
        values.setdefault(kind, []).append(value)
    if not values:
        raise PromptError("--object is empty; write for example --object 'box=10,20,300,400 point=-50,60'.")
    return _hints(values)


def _prompt(hints: Hints, max_pixels: int) -> Prompt:
    for kind, texts in (("box", hints.box), ("mask", hints.mask), ("polygon", hints.polygon)):
        if len(texts) > 1:
            raise PromptError(
                f"One object takes one {kind}, got {len(texts)} beside other hints; "
                "describe each object by its own --object 'box=... point=...'."
            )
    points = [_point(text) for text in hints.point]
    strokes = {True: None, False: None} | _strokes(hints.scribble)
    return Prompt(
        points=np.array([xy for xy, _ in points]) if points else None,
        labels=np.array([label for _, label in points]) if points else None,
        box=_box(hints.box[0]) if hints.box else None,
        mask=_read_mask(Path(hints.mask[0]), max_pixels) if hints.mask else None,
        polygon=_vertices("polygon", hints.polygon[0]) if hints.polygon else None,
        scribble=strokes[True],
        scribble_negative=strokes[False],
    )


def _point(text: str) -> tuple[tuple[float, float], int]:
    """`120,80` -> ((120, 80), 1); `-120,80` -> ((120, 80), 0)."""
    positive, bare = _take_sign(text)
    numbers = _numbers(bare)
    if len(numbers) != 2:
        raise PromptError(
            f"--point must be X,Y in pixels, such as 120,80, or =-120,80 for a point that is not on the object; "
            f"got {text!r}."
        )
    return (numbers[0], numbers[1]), int(positive)


def _box(text: str) -> np.ndarray:
    numbers = _numbers(text)
    if len(numbers) != 4:
        raise PromptError(f"--box must be X1,Y1,X2,Y2 in pixels, such as 40,60,300,420; got {text!r}.")
    return np.array(numbers)  # (4,)


def _strokes(texts: tuple[str, ...]) -> dict[bool, np.ndarray]:
    """On the object: True; on the background (a leading minus): False."""
    strokes: dict[bool, np.ndarray] = {}
    for text in texts:
        positive, bare = _take_sign(text)
        if positive in strokes:
            raise PromptError(
                "An object takes one --scribble on it and one, with a leading minus, beside it; use --point for more."
            )
        strokes[positive] = _vertices("scribble", bare)
    return strokes


def _vertices(kind: str, text: str) -> np.ndarray:
    rows = [_numbers(part) for part in text.split(";") if part.strip()]
    if not rows or any(len(row) != 2 for row in rows):
        raise PromptError(f"--{kind} must be x,y;x,y;... in pixels (in quotes, for the shell), got {text!r}.")
    return np.array(rows)  # (N, 2)


def _take_sign(text: str) -> tuple[bool, str]:
    """x is never negative, so a leading minus is free to say "not this"; -0,Y works as well."""
    bare = text.strip()
    return (False, bare[1:]) if bare.startswith("-") else (True, bare)


def _numbers(text: str) -> list[float]:
    """`1,2.5` -> [1.0, 2.5]; an empty list for anything else."""
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        return []


def _read_mask(path: Path, max_pixels: int) -> np.ndarray:
    """A mask (H, W) bool: all that is not black; in a JPEG, whose black is not quite, all brighter than half."""
    image = read_image(path, max_pixels)
    limit = 127 if path.suffix.lower() in (".jpg", ".jpeg") else 0
    mask = np.any(image > limit, axis=2)  # (H, W)
    if not mask.any():
        raise PromptError(f"The mask {path} is all black; the object's pixels must be white.")
    return mask
