"""Which of several measured models to take: the smallest that is nearly as good. No torch, no numpy."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from anysam.licences import licence_id

# Licences that ask for little more than to be named.
PERMISSIVE = frozenset(map(licence_id, "Apache-2.0 MIT BSD-2-Clause BSD-3-Clause ISC Unlicense CC0-1.0".split()))


@dataclass(frozen=True)
class Candidate:
    """A model by what the choice depends on. quality: 0 to 1. bytes: of the weights. seconds: photograph and prompt."""

    name: str
    quality: float
    bytes: int
    seconds: float
    licence: str


def choose(
    candidates: Sequence[Candidate], reference: str, within: float, licences: Collection[str] | None
) -> Candidate | None:
    """The smallest model, the fastest of equally large ones, whose quality is at most `within` below the reference's
    and whose licence is allowed. licences: as `licence_id` gives them, None for all. None where there is no such model.

    The reference may be the choice where nothing smaller is near it. Raises KeyError for a reference without numbers.
    """
    goal = {each.name: each for each in candidates}[reference].quality - within
    fitting = [each for each in candidates if each.quality >= goal - 1e-9 and _allowed(each, licences)]
    return min(fitting, key=lambda each: (each.bytes, each.seconds, each.name), default=None)


def recommend(
    candidates: Sequence[Candidate], reference: str, within: float, licences: Collection[str] | None = None
) -> str:
    """The choice in one line, with what speaks for it; where nothing fits, that, and what comes closest."""
    chosen = choose(candidates, reference, within, licences)
    best = {each.name: each for each in candidates}[reference]
    under = "" if licences is None else " under an allowed licence"
    if chosen is not None and chosen.name != reference:
        return (
            f"Take {chosen.name}: the smallest{under} within {within:g} mIoU of {reference} ({chosen.quality:.3f} "
            f"against {best.quality:.3f}); {_facts(chosen)}."
        )
    others = [each for each in candidates if each.name != reference and _allowed(each, licences)]
    nearest = max(others, key=lambda each: each.quality, default=None)
    closest = "" if nearest is None else f" The closest is {nearest.name} ({nearest.quality:.3f}); {_facts(nearest)}."
    if chosen is not None:
        return f"Take {reference} itself: no smaller model{under} is within {within:g} mIoU of it.{closest}"
    return f"No model{under} is within {within:g} mIoU of {reference} ({best.quality:.3f}).{closest}"


def _allowed(candidate: Candidate, licences: Collection[str] | None) -> bool:
    return licences is None or licence_id(candidate.licence) in licences


def _facts(candidate: Candidate) -> str:
    return f"{candidate.seconds:.2f} s a photograph, {candidate.bytes / 1e6:.0f} MB, {candidate.licence}"
