"""Who names the objects of protocol "labels", and with which names: a describer for each data set."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from anysam.catalogue import VARIANTS, find_resource
from anysam.describe.interface import Describer
from anysam.describe.labels import LabelDescriber
from anysam.describe.tap import TapDescriber
from anysam.describe.tap_words import DescribeOptions, SpeakingNetwork, Wording, check_speaking
from anysam.describe.text_towers import encoder_identity
from anysam.describe.vocabulary import TEMPLATE, Vocabulary, embedded_once, load_vocabulary, read_names
from anysam.describers import CLIP, load_describer
from anysam.errors import OptionError
from anysam.evaluate.options import LabelOptions
from anysam.evaluate.regions import Categories, plain_name
from anysam.fetch import file_sha256
from anysam.predictor import Model, load

TOP = 5
_EMBEDDED = (".pkl", ".pickle", ".safetensors", ".pt", ".pth")  # files of names with embeddings
# With embeddings for Tokenize Anything, the smallest first: the first that has all categories is taken.
_PUBLISHED = ("coco_80", "lvis_1203", "merged_2560")


@dataclass(frozen=True, eq=False)
class Namer:
    """A model that cuts out what is shown to it, and who names it, by data set.

    answers: by data set, plain names of what can be answered. own: where the model names what it cuts out itself, how.
    """

    model: Model
    describers: Mapping[str, Describer]
    answers: Mapping[str, frozenset[str]]
    own: Mapping[str, DescribeOptions] | None
    identity: str


def make_namer(model: Model, options: LabelOptions, sets: Sequence[Categories]) -> Namer:
    """Load what names things, with the names of each data set.

    Raises OptionError for names without a category of the data, a describer that cannot be, categories for which
    Tokenize Anything has no embeddings, and what `load_describer` raises.
    """
    speaker = _speaker(model, options)
    describers: dict[str, Describer] = {}
    if speaker is None:
        clip = _clip(model, options, sets)
        for each in sets:
            names = _clip_names(options, each)
            describers[each.dataset] = replace(clip, names=names, source=each.dataset, top=_top(len(names), options))
        identity = _identity(clip)
    else:
        for each in sets:
            vocabulary = _vocabulary(options, each)
            wording = Wording(vocabulary, _top(len(vocabulary), options), None, None, 1)
            check_speaking(speaker, wording)
            describers[each.dataset] = TapDescriber(speaker, wording)
        identity = f"{speaker.variant} {speaker.weights_sha256[:12]}"
    answers = {name: frozenset(map(plain_name, describer.names)) for name, describer in describers.items()}
    for each in sets:
        if not answers[each.dataset] & set(map(plain_name, each.names)):
            raise OptionError(f"None of the categories of {each.dataset} is among the names {options.labels}.")
    own = None
    if speaker is model and options.prompt == "box":
        own = {name: _own_options(describer) for name, describer in describers.items()}
    return Namer(model, describers, answers, own, identity)


def naming_files(options: LabelOptions) -> dict[str, str]:
    """What tells the files that the options name apart from others: SHA-256, and of a text encoder its identity."""
    found = {}
    for name, given in (("labels", options.labels), ("describer", options.describer)):
        if given and Path(given).expanduser().is_file():
            found[name] = file_sha256(Path(given).expanduser())
    if options.text_encoder:
        identity = encoder_identity(options.text_encoder) or ""
        found["text_encoder"] = hashlib.sha256(identity.encode()).hexdigest()
    return found


def _top(names: int, options: LabelOptions) -> int:
    """Of how many names the probability is wanted; of all for average precision."""
    return names if options.average_precision else min(TOP, names)


# --- with Tokenize Anything -------------------------------------------------------------------------------------------


def _speaker(model: Model, options: LabelOptions) -> Model | None:
    """The model of Tokenize Anything that names things; None for CLIP."""
    given = options.describer
    if not given:
        return model if isinstance(model.network, SpeakingNetwork) else None
    rows = {row.name: row for row in VARIANTS}
    if given == CLIP or not (given in rows or Path(given).expanduser().is_file()):
        return None
    if given in rows and rows[given].family != "tap":
        raise OptionError(f"{given} finds masks but no words; --describer takes a model such as tap_vit_b, or clip.")
    if given == model.variant and isinstance(model.network, SpeakingNetwork):
        return model
    speaker = load(given, device=str(model.device), dtype=model.dtype)
    check_speaking(speaker)
    return speaker


def _vocabulary(options: LabelOptions, categories: Categories) -> Vocabulary:
    """What Tokenize Anything chooses from: the given names, all of them, or the data set's categories."""
    template = options.template or TEMPLATE
    if options.labels:
        if _has_embeddings(options.labels):
            _refuse(options.template, "--template", f"{options.labels}, whose names have embeddings")
            _refuse(options.text_encoder, "--text-encoder", f"{options.labels}, whose names have embeddings")
        return load_vocabulary(options.labels, options.text_encoder or None, template=template)
    if options.text_encoder:
        names = tuple(dict.fromkeys(name.replace("_", " ") for name in categories.names))
        return embedded_once(names, options.text_encoder, categories.dataset, template)
    _refuse(options.template, "--template", "the published names of Tokenize Anything without --text-encoder")
    missing: tuple[str, ...] = ()
    for name in _PUBLISHED:
        published = load_vocabulary(name)
        columns, missing = match_names(categories.names, published.names)
        if not missing:
            chosen = np.ascontiguousarray(published.embeddings[:, list(columns)])  # (D, names)
            return Vocabulary(categories.names, chosen, name)
    raise OptionError(
        f"No published vocabulary has all categories of {categories.dataset} ({missing[0]!r} is in none); give the "
        "folder of the text encoder as --text-encoder, names as --labels, or take --describer clip."
    )


def _has_embeddings(labels: str) -> bool:
    path = Path(labels).expanduser()
    if path.is_file() or path.suffix:
        return path.suffix.lower() in _EMBEDDED
    return find_resource(labels, "vocabulary", "names").kind == "vocabulary"


def _refuse(value: str, flag: str, what: str) -> None:
    """Raises OptionError where an option was given that nobody would hear."""
    if value:
        raise OptionError(f"{flag} has no effect with {what}; leave it out.")


def match_names(wanted: Sequence[str], names: Sequence[str]) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """The places of N wanted names among others, and the names that are not there; places are whole if none is missing.

    By their plain names. Lists of the same length may spell some differently (COCO's "skis" is "ski" in coco_80): such
    a name is the one in its own place, as in the published evaluation, unless that is another of the wanted names.
    """
    places: dict[str, int] = {}
    for i, name in enumerate(names):
        places.setdefault(plain_name(name), i)
    taken = {plain_name(name) for name in wanted}
    columns, missing = [], []
    for i, name in enumerate(wanted):
        place = places.get(plain_name(name))
        if place is None and len(names) == len(wanted) and plain_name(names[i]) not in taken:
            place = i
        if place is None:
            missing.append(name)
        else:
            columns.append(place)
    return tuple(columns), tuple(missing)


def _own_options(describer: Describer) -> DescribeOptions:
    assert isinstance(describer, TapDescriber)
    return DescribeOptions(describer.wording.vocabulary, describer.wording.top, captions=False)


# --- with CLIP --------------------------------------------------------------------------------------------------------


def _clip(model: Model, options: LabelOptions, sets: Sequence[Categories]) -> LabelDescriber:
    _refuse(options.text_encoder, "--text-encoder", "clip: it belongs to Tokenize Anything")
    describer = load_describer(
        options.describer or CLIP,
        labels=_clip_names(options, sets[0]),
        template=options.template or None,
        device=str(model.device),
        dtype=model.dtype,
    )
    assert isinstance(describer, LabelDescriber)
    return describer


def _clip_names(options: LabelOptions, categories: Categories) -> tuple[str, ...]:
    names = read_names(options.labels) if options.labels else categories.names
    return tuple(dict.fromkeys(name.replace("_", " ") for name in names))


def _identity(clip: LabelDescriber) -> str:
    facts = clip.facts()
    return f"{facts.get('model', 'image-text')} {str(facts.get('weights_sha256', ''))[:12]}".strip()
