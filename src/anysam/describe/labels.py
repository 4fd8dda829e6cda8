"""Names for masks by an image-text model: each mask's picture is compared with every name (zero-shot classification).

Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", 2021, section 3.1: the names in
a template, the softmax of the similarities as their probabilities.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np

from anysam.describe.crops import ViewName, check_view, pictures_of
from anysam.describe.interface import ImageTextModel, Words
from anysam.errors import OptionError
from anysam.results import MaskRecord

Progress = Callable[[float], None]
Say = Callable[[str], None]

TEMPLATE = "a photo of a {}"  # the paper's; a bare name is often taken for another of its meanings
USUAL_TOP = 5


@runtime_checkable
class KnownModel(Protocol):
    """A model that can say what it is."""

    def facts(self) -> dict[str, Any]:
        """In JSON form: model, weights_sha256, ..."""
        ...


@dataclass(frozen=True, eq=False)
class LabelDescriber:
    """A `Describer` that finds the most probable of given names; it writes no captions.

    image_text: compares. names: at least one, each once. source: where they came from, for people. template: what is
    asked of a name, with the name for "{}". view: how a mask is shown, see `crops.VIEWS`. top: how many of the names
    get a score, best first; None for 5, or all if there are fewer. say: called with a sentence when masks got no words.

    Raises OptionError for names, a template, a view or a top that cannot be.
    """

    image_text: ImageTextModel
    names: tuple[str, ...]
    source: str = "names"
    template: str = TEMPLATE
    view: ViewName = "blurred"
    top: int | None = None
    say: Say | None = None

    def __post_init__(self) -> None:
        check_names(self.names)
        check_template(self.template)
        check_view(self.view)
        check_top(self.top, len(self.names))

    def words(self, image: np.ndarray, records: Sequence[MaskRecord], progress: Progress | None = None) -> list[Words]:
        """Words for each mask of an image (H, W, 3) uint8 RGB: label, label_score and label_scores.

        progress: called with the part done, rising to 1. A mask for which the model gives no numbers gets none.
        """
        if not records:
            return []
        pictures = _counted(pictures_of(image, records, self.view), len(records), progress)
        texts = [self.template.replace("{}", name) for name in self.names]
        logits = self.image_text.similarities(pictures, texts).astype(np.float64)  # (N, T)
        finite = np.asarray(np.isfinite(logits).all(axis=1))  # (N,)
        say_wordless(finite, self.say)
        found = [
            label_words(_softmax(row), self.names, self.top) if fine else Words()
            for row, fine in zip(logits, finite, strict=True)
        ]
        if progress is not None:
            progress(1.0)
        return found

    def facts(self) -> dict[str, Any]:
        """The model's own, and where the names are from, how many there are, and how they are asked for."""
        known = self.image_text.facts() if isinstance(self.image_text, KnownModel) else {}
        asked = {"vocabulary": self.source, "names": len(self.names), "template": self.template, "view": self.view}
        return {"describer": "image-text", **known, **asked}


def label_words(probabilities: np.ndarray, names: Sequence[str], top: int | None) -> Words:
    """The most probable of C names by probabilities (C,), best first; of equal ones the first.

    top: at most so many names get a score; None for USUAL_TOP. A name that is there twice counts once.
    """
    scores: dict[str, float] = {}
    for i in np.argsort(-probabilities, kind="stable"):
        scores.setdefault(names[i], float(probabilities[i]))
        if len(scores) == (USUAL_TOP if top is None else top):
            break
    best, score = next(iter(scores.items()))
    return Words(label=best, label_score=score, label_scores=scores)


def say_wordless(finite: np.ndarray, say: Say | None) -> None:
    """Say how many masks got no words; finite (N,) bool: which did. Raises OptionError if none of them did."""
    if len(finite) and not finite.any():
        raise OptionError(
            "The describer's numbers are not finite for any mask; its weights are damaged, or the number format is too "
            "narrow: use float32."
        )
    if not finite.all() and say is not None:
        say(f"{np.count_nonzero(~finite)} of {len(finite)} masks got no words: the numbers for them are not finite.")


def check_names(names: object) -> None:
    """Raise OptionError unless these are names to choose from: at least one text, none empty, each once."""
    if isinstance(names, str) or not isinstance(names, Sequence) or not all(isinstance(name, str) for name in names):
        raise OptionError(f'Names must be a list of texts, such as ["cat", "dog"], got {_shown(names)}.')
    if not names or not all(name.strip() for name in names):
        raise OptionError(f"Names must be at least one, and none of them empty, got {_shown(names)}.")
    if len(set(names)) < len(names):
        twice = next(name for i, name in enumerate(names) if name in names[:i])
        raise OptionError(f"Names must be there once each, but {_shown(twice)} is there twice.")


def check_template(template: object) -> None:
    """Raise OptionError unless this is a text with one place for a name."""
    if not isinstance(template, str) or template.count("{}") != 1:
        raise OptionError(f"template must be a text with one {{}} in it, like {TEMPLATE!r}, got {_shown(template)}.")


def check_top(top: object, names: int | None = None) -> None:
    """Raise OptionError unless so many names can get a score. names: how many there are, if that is known."""
    if top is None:
        return
    if isinstance(top, bool) or not isinstance(top, int) or top < 1:
        raise OptionError(f"top must be a whole number of at least 1, or None, got {top!r}.")
    if names is not None and top > names:
        raise OptionError(f"top must be at most {names}, as many as there are names, got {top}.")


def _softmax(logits: np.ndarray) -> np.ndarray:
    shifted = np.exp(logits - logits.max())  # (T,)
    return shifted / shifted.sum()


def _counted(pictures: Iterable[np.ndarray], count: int, progress: Progress | None) -> Iterator[np.ndarray]:
    """The pictures as they are; progress is called with the part of them that has been given out before each."""
    for i, picture in enumerate(pictures):
        if progress is not None:
            progress(i / count)
        yield picture


def _shown(value: object) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else f"{text[:57]}..."
