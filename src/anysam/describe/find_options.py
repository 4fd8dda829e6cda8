"""What can be asked when masks are looked for by a text, checked when it is said."""

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Literal

import numpy as np

from anysam.describe.crops import ViewName, check_view
from anysam.errors import OptionError

Rule = Literal["published", "negatives"]
RULES: tuple[Rule, ...] = ("published", "negatives")

# What everything is a little of: the canonical phrases of Kerr et al., "LERF: Language Embedded Radiance Fields", 2023.
NEGATIVES = ("object", "things", "stuff", "texture")
TEMPLATE = "a photo of {}"  # Radford et al., "Learning Transferable Visual Models", 2021: better than a bare name
TEXT_AREA = 100  # pixels; masks up to it get no picture; published by FastSAM


@dataclass(frozen=True)
class FindOptions:
    """Which masks a text means, among all masks of an image.

    rule: how a mask's probability comes about. "published": as FastSAM's authors do it, among all masks, so that there
    is one best mask however little it fits, and several good ones share the probability. "negatives": for each mask by
    itself, among the text and what it could be instead, so that several masks can be probable and none needs to be.
    None is what these options ask for by another field, else "published" for FastSAM and "negatives" for all others.
    negatives: texts for what is not meant, for example ("grass", "sky"); None for NEGATIVES. A text's own words are no
    negative of it. template: what the image-text model is asked, with the text for "{}"; None for TEMPLATE, and for the
    text as it is with the published rule, which takes neither negatives nor a template. wider: of the published rule:
    the largest mask that holds more than 0.9 of the one chosen.

    threshold: 0 to 1, all masks at least that probable. limit: at most so many masks a text. Without either the best
    mask alone. overlap: 0 to 1, of two masks of a text the less probable is left out if more than this share of the
    smaller one lies in the other; 1 leaves none out. min_area: pixels, masks of up to so many are no candidates.
    view: what the image-text model is shown, see `crops.VIEWS`; None for "canvas" with the published rule, else
    "blurred".

    `dataclasses.asdict` is its JSON form. Raises OptionError for a value out of range or what does not go together.
    """

    rule: Rule | None = None
    negatives: Sequence[str] | None = None
    template: str | None = None
    wider: bool = False
    threshold: float | None = None
    limit: int | None = None
    overlap: float = 0.8
    min_area: int = TEXT_AREA
    view: ViewName | None = None

    def __post_init__(self) -> None:
        if self.rule not in (None, *RULES):
            raise OptionError(f"rule must be {' or '.join(RULES)}, or None, got {self.rule!r}.")
        if self.negatives is not None:
            object.__setattr__(self, "negatives", _negatives(self.negatives))
        if self.template is not None and (not isinstance(self.template, str) or self.template.count("{}") != 1):
            raise OptionError(f"template must be a text with one {{}} in it, like {TEMPLATE!r}, got {self.template!r}.")
        if not isinstance(self.wider, (bool, np.bool_)):
            raise OptionError(f"wider must be True or False, got {self.wider!r}.")
        if self.threshold is not None:
            _check_share("threshold", self.threshold)
        _check_share("overlap", self.overlap)
        if self.limit is not None:
            _check_whole("limit", self.limit, 1)
        _check_whole("min_area", self.min_area, 0)
        if self.view is not None:
            check_view(self.view)
        self._check_rule()

    def _check_rule(self) -> None:
        """Nothing that was asked for goes unheard."""
        compared = [name for name in ("negatives", "template") if getattr(self, name) is not None]
        if compared and (self.rule == "published" or self.wider):
            raise OptionError(
                f"The published rule compares masks for the text as it is, without {compared[0]}; leave "
                f"{' and '.join(compared)} out, or take the rule negatives{' without wider' if self.wider else ''}."
            )
        if self.wider and self.rule == "negatives":
            raise OptionError("wider belongs to the published rule, got the rule negatives; leave one of them out.")

    def rule_for(self, finds_instances: bool) -> Rule:
        """The rule, for a model that finds all objects in one pass as FastSAM does, or for another."""
        if self.rule is not None:
            return self.rule
        if self.wider:
            return "published"
        if self.negatives is not None or self.template is not None:
            return "negatives"
        return "published" if finds_instances else "negatives"


def _negatives(value: object) -> tuple[str, ...]:
    if not isinstance(value, (list, tuple)) or not all(isinstance(text, str) for text in value):
        raise OptionError(f'negatives must be a list of texts, such as ["grass", "sky"], got {value!r}.')
    texts = tuple(" ".join(text.split()) for text in value)
    if not texts or not all(texts):
        raise OptionError(f"negatives must be one text at least, none of them empty, got {value!r}.")
    return tuple(dict.fromkeys(texts))


def _check_whole(name: str, value: object, least: int) -> None:
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, Integral) or value < least:
        raise OptionError(f"{name} must be a whole number of at least {least}, got {value!r}.")


def _check_share(name: str, value: object) -> None:
    number = isinstance(value, Real) and not isinstance(value, (bool, np.bool_))
    if not number or not 0 <= value <= 1:  # type: ignore[operator]
        raise OptionError(f"{name} must be a number from 0 to 1, got {value!r}.")
