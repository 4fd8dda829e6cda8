"""Which of several measured models to take: the smallest that is nearly as good. No torch, no numpy."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from anysam.licences import allowed_licences, licence_id

# What may be sold and offered without giving away one's own source. Only of these "commercial" advises.
_FREE = frozenset(
    map(
        licence_id,
        "Apache-2.0 MIT BSD-2-Clause BSD-3-Clause ISC Unlicense CC0-1.0 CC-BY-4.0 CC-BY-SA-4.0 MPL-2.0".split(),
    )
)
_SHARED = re.compile(r"a?gpl-|lgpl-")
_REFUSED = re.compile(r"s-lab-|.*(-nc\b|non-?commercial)")
ANY, COMMERCIAL = "any", "commercial"


@dataclass(frozen=True)
class Candidate:
    """A model by what the choice depends on. quality: 0 to 1. bytes: of the weights. seconds: photograph and prompt."""

    name: str
    quality: float
    bytes: int
    seconds: float
    licence: str


@dataclass(frozen=True)
class Terms:
    """What a model must keep to. within: mIoU that it may be worse than the reference. licences: as `licence_id` gives
    them, None for all; words: what the advice says of them, " for commercial use"."""

    within: float = 0.02
    licences: frozenset[str] | None = None
    words: str = ""

    def allow(self, candidate: Candidate) -> bool:
        return self.licences is None or licence_id(candidate.licence) in self.licences


def commercial_use(licence: str) -> str:
    """Whether weights may be used commercially: "yes", "no", "with your source" (GPL and its kin), or "not stated" for
    a licence that is none, or that is not known here. What the licence says counts, not this word."""
    name = licence_id(licence)
    if name in _FREE:
        return "yes"
    if _REFUSED.match(name):
        return "no"
    return "with your source" if _SHARED.match(name) else "not stated"


def make_terms(within: float, licences: str) -> Terms:
    """licences: "any", "commercial", or names with commas. Raises OptionError for a licence that is not known."""
    if licences == ANY:
        return Terms(within)
    if licences == COMMERCIAL:
        return Terms(within, _FREE, " for commercial use")
    names = " or ".join(name.strip() for name in licences.split(","))
    return Terms(within, allowed_licences(licences), f" under {names}")


def choose(candidates: Sequence[Candidate], reference: str, terms: Terms) -> Candidate | None:
    """The smallest model whose quality is at most `terms.within` below the reference's and whose licence is allowed.

    Of equally large files the faster one, then the first by name. The reference itself only if no other one fits, where
    one that is larger than an allowed reference does not fit. None if none does. Raises KeyError for a reference that
    is no candidate.
    """
    best = {each.name: each for each in candidates}[reference]
    fitting = [each for each in candidates if each.quality >= best.quality - terms.within - 1e-9 and terms.allow(each)]
    others = [each for each in fitting if each != best and (each.bytes <= best.bytes or best not in fitting)]
    return min(others or fitting, key=lambda each: (each.bytes, each.seconds, each.name), default=None)


def recommend(candidates: Sequence[Candidate], reference: str, terms: Terms) -> str:
    """The choice in one line, with what speaks for it; where nothing fits, that, and what comes closest."""
    chosen = choose(candidates, reference, terms)
    best = {each.name: each for each in candidates}[reference]
    within = f"within {terms.within:g} mIoU of"
    if chosen is not None and chosen is not best:
        return (
            f"Take {chosen.name}, the smallest{terms.words} {within} {reference}: {chosen.quality:.3f} against "
            f"{best.quality:.3f}, {_facts(chosen)}."
        )
    others = [each for each in candidates if each is not best and terms.allow(each)]
    nearest = max(others, key=lambda each: each.quality, default=None)
    closest = "" if nearest is None else f" The closest is {nearest.name}: {nearest.quality:.3f}, {_facts(nearest)}."
    if chosen is not None:
        return f"Take {reference} itself: no other model{terms.words} that is as small is {within} it.{closest}"
    return f"No model{terms.words} is {within} {reference} ({best.quality:.3f}).{closest}"


def _facts(candidate: Candidate) -> str:
    use = commercial_use(candidate.licence)
    words = {"yes": "", "no": " (not for commercial use)", "with your source": " (asks for your source)"}.get(use, "")
    size = f"{candidate.bytes / 1e6:.0f} MB"
    return f"{candidate.seconds:.2f} s a photograph, {size}, {candidate.licence}{words}"
