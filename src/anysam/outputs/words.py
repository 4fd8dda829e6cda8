"""What is said of masks, in all formats alike: their scores, names and captions, and the numbers of classes.

Where a format has members of one's own, what is said has the names of the fields of `MaskRecord`, and members are left
out where nothing is said. Formats of classes have no mask without one: it is an "object", and reads as none. That a
label is that very word, or empty, is then said by the member "anysam".
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from anysam.errors import OptionError
from anysam.outputs.formats import ImageResult, Loss
from anysam.outputs.reading import MAX_LETTERS, as_number, as_text
from anysam.results import MaskRecord

DEFAULT_NAME = "object"  # of masks without a label
SCORES_OF_WORDS = ("label_score", "label_scores", "caption_score", "similarity")
_SAID = ("stability_score", "detection_score", *SCORES_OF_WORDS, "caption")
_LISTED = 5  # names in an error


def said_of(record: MaskRecord) -> dict[str, Any]:
    """The members for what is said of a mask, besides label and predicted_iou."""
    form = record.to_dict()
    return {name: form[name] for name in _SAID if form[name] is not None}


def with_said(record: MaskRecord, form: Mapping[str, Any], where: str) -> MaskRecord:
    """The record with what `said_of` gave; other members are not looked at, missing ones are None.

    where: what errors begin with. Raises OptionError for scores that are no finite numbers, for label_scores that is no
    object of them, and for a caption that is no text.
    """
    return dataclasses.replace(
        record,
        stability_score=_score(form, "stability_score", where),
        detection_score=_score(form, "detection_score", where),
        label_score=_score(form, "label_score", where),
        label_scores=_label_scores(form.get("label_scores"), where),
        caption=as_caption(form.get("caption"), where),
        caption_score=_score(form, "caption_score", where),
        similarity=_score(form, "similarity", where),
    )


def as_caption(value: object, where: str) -> str | None:
    """A caption, or None. Raises OptionError."""
    if value is not None and not (isinstance(value, str) and len(value) <= MAX_LETTERS):
        raise OptionError(
            f"{where}: the caption must be a text of at most {MAX_LETTERS:,} characters, got {str(value)[:40]!r}."
        )
    return value


def _score(form: Mapping[str, Any], name: str, where: str) -> float | None:
    value = form.get(name)
    return None if value is None else as_number(value, f"{where}: {name}")


def _label_scores(value: object, where: str) -> dict[str, float] | None:
    if value is None:
        return None
    if not isinstance(value, Mapping):
        raise OptionError(f"{where}: label_scores must be an object of names and numbers, got {str(value)[:40]!r}.")
    where = f"{where}: label_scores"
    return {as_text(name, where): as_number(score, f"{where} of {name[:40]!r}") for name, score in value.items()}


def hidden_words(record: MaskRecord) -> dict[str, Any]:
    """The member "anysam" for a label that would read as none, in a dict; empty where there is no need of it."""
    return {"anysam": {"label": record.label}} if record.label in ("", DEFAULT_NAME) else {}


def label_of(name: str | None, form: Mapping[str, Any]) -> str | None:
    """The label of a mask of a class; form: its members, of which "anysam" is trusted with what `hidden_words` says."""
    if name != DEFAULT_NAME:
        return name
    hidden = form.get("anysam")
    label = hidden.get("label") if isinstance(hidden, Mapping) else None
    return label if isinstance(label, str) and label in ("", DEFAULT_NAME) else None


def class_names(results: Sequence[ImageResult], names: Sequence[str] | None = None) -> list[str]:
    """The classes of masks: a class's number is its place in this list.

    names: the classes of a whole run, which come first, all and in their order, so that a number means the same for
    every image of the run; "object" follows them only where masks have no label. None: the labels that occur, sorted,
    so that the same masks have the same numbers; those of another image differ. Raises OptionError for a label that is
    not among the names, and for names that are empty or come twice.
    """
    found = {record.label or DEFAULT_NAME for result in results for record in result.records}
    if names is None:
        return sorted(found or {DEFAULT_NAME})
    given = check_names(names)
    wanted = {record.label for result in results for record in result.records if record.label}
    missing = sorted(wanted.difference(given))
    if missing:
        listed = ", ".join(repr(name[:80]) for name in missing[:_LISTED])
        more = f" and {len(missing) - _LISTED:,} more" if len(missing) > _LISTED else ""
        raise OptionError(
            f"There are masks of {listed}{more}, and no such class among the {len(given):,} names given; add it to "
            "them or give no names."
        )
    return given if DEFAULT_NAME in given or DEFAULT_NAME not in found else [*given, DEFAULT_NAME]


def check_names(names: Sequence[str]) -> list[str]:
    """The names of classes, as a list. Raises OptionError for none, and for names that are empty or come twice."""
    if isinstance(names, str) or not all(isinstance(name, str) and name for name in names) or not len(names):
        raise OptionError(f"The names of classes must be a list of texts, none of them empty, got {str(names)[:60]!r}.")
    if len(set(names)) < len(names):
        twice = next(name for i, name in enumerate(names) if name in names[:i])
        raise OptionError(f"The names of classes must differ, but {twice[:80]!r} is there twice.")
    return list(names)


def lost_words(kind: str, result: ImageResult, labels: bool, captions: bool) -> list[Loss]:
    """What is lost of an image's words in a format; labels, captions: what it keeps. Scores go with their words."""
    records = result.records
    losses = []
    if not labels:
        losses.append(Loss(kind, "labels of masks", sum(record.label is not None for record in records)))
    if not captions:
        losses.append(Loss(kind, "captions", sum(record.caption is not None for record in records)))
    if labels and not captions:
        scored = sum(any(getattr(record, name) is not None for name in SCORES_OF_WORDS) for record in records)
        losses.append(Loss(kind, "scores of labels and captions", scored))
    return [loss for loss in losses if loss.count]
