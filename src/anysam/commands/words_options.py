"""The options that say who finds words for masks, and how; and a mask's words for people."""

import argparse
import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from anysam.commands import options
from anysam.commands.options import printable, warn
from anysam.commands.progress import download_progress
from anysam.errors import OptionError

if TYPE_CHECKING:
    from anysam.describe.interface import Describer
    from anysam.outputs import Loss
    from anysam.results import MaskRecord
    from anysam.store import EmbeddingStore

TOP = 5
CLIP = "clip"
_NAMES_SHOWN = 5  # of the kinds of masks, in the line about an image
_FAMILY = "tap"
_OF_CAPTIONS = ("--beams", "--max-tokens", "--tokenizer")
_OF_LABELS = ("--labels", "--top", "--text-encoder", "--template")
_OF_TAP = (*_OF_CAPTIONS, "--text-encoder")
# Fields of a DescriberChoice that name files: what is in them counts, which the describer's facts say.
_BY_CONTENT = ("name", "labels", "tokenizer", "text_encoder")
_LOST_WORDS = ("labels of masks", "captions", "scores of labels and captions")  # as `anysam.outputs` says it
_WEIGHTS = (".safetensors", ".pth", ".pt", ".pkl", ".bin")
_IMAGES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp")


def add_describer(group: argparse._ArgumentGroup, flag: str) -> None:
    """Declare what names masks: by --describer, or by --describe, which asks for it in the first place."""
    if flag == "--describe":
        group.add_argument(
            flag,
            nargs="?",
            const="",
            type=_describer_name,
            metavar="NAME|FILE|clip",
            help="say what each mask is: a model of Tokenize Anything or its file, or clip for an image-text model "
            "(default: Tokenize Anything if its weights are here, else clip if that is)",
        )
    else:
        group.add_argument(
            flag,
            dest="describe",
            metavar="NAME|FILE|clip",
            help="a model of Tokenize Anything or its file, or clip for an image-text model (default: Tokenize "
            "Anything if it is here, else clip)",
        )
    group.add_argument(
        "--labels",
        metavar="FILE|NAME",
        help="choose labels from this text file, a name a line, or this vocabulary: merged_2560, lvis_1203, coco_80, "
        "everyday",
    )
    group.add_argument(
        "--top", type=int, metavar="K", help=f"how many labels to give with their scores (default: {TOP})"
    )
    group.add_argument("--no-captions", action="store_true", help="labels only, which is faster")
    group.add_argument("--no-labels", action="store_true", help="captions only")
    group.add_argument(
        "--beams", type=int, metavar="N", help="captions by a beam search this wide (default: 1, which is greedy)"
    )
    group.add_argument("--max-tokens", type=int, metavar="N", help="end captions after so many tokens")
    group.add_argument("--tokenizer", metavar="FILE", help="the captions' tokenizer (default: the published one)")
    group.add_argument(
        "--text-encoder", metavar="FOLDER", help="turns the names of a text file into labels of Tokenize Anything"
    )
    group.add_argument(
        "--template", metavar="TEXT", help="what clip is asked of a name, with {} in its place, as 'a photo of a {}'"
    )


@dataclass(frozen=True)
class DescriberChoice:
    """Which describer, and how; the fields are arguments of `anysam.describers.load_describer`."""

    name: str | None
    labels: str | Literal[False] | None
    top: int | None
    captions: bool | None
    beams: int
    max_tokens: int | None
    tokenizer: str | None
    text_encoder: str | None
    template: str | None

    def settings(self, describer: "Describer") -> dict[str, Any]:
        """What its words depend on, in JSON form. The names of its labels count, not the file that they came from."""
        names = hashlib.sha256("\n".join(describer.names).encode()).hexdigest()
        given = {name: value for name, value in asdict(self).items() if name not in _BY_CONTENT}
        facts = {name: value for name, value in describer.facts().items() if name not in ("device", "vocabulary")}
        return {"describer": facts, "names_sha256": names, "describing": given}


def wanted_describer(arguments: argparse.Namespace) -> DescriberChoice | None:
    """What the options of `add_describer(group, "--describe")` say; None where neither --describe nor --labels asks for
    words. Raises what `describer_choice` does.
    """
    given = _given(arguments)
    if arguments.describe is None and "--labels" not in given:
        if given:
            raise OptionError(f"{next(iter(given))} has no effect without --describe; add it, or leave both out.")
        return None
    return describer_choice(arguments, "--describe")


def describer_choice(arguments: argparse.Namespace, flag: str = "--describer") -> DescriberChoice:
    """What the options of `add_describer(group, flag)` say. Raises OptionError, UnknownModelError and MissingExtraError
    for what can be known without loading anything.
    """
    given = _given(arguments)
    name = arguments.describe or None
    if name is not None:
        _check_name(name, flag)
    kind = _kind(name, given)
    _refuse_contradictions(given, f"{flag} {name}" if name else "names of your own" if kind == CLIP else None, kind)
    _check_values(given)
    _check_files(given)
    if kind == CLIP:
        options.need_package("transformers", f"{flag} {name or 'with names of your own'}")
    elif kind == _FAMILY and any(option in given for option in _OF_CAPTIONS):
        options.need_package("sentencepiece", "Captions")
    return DescriberChoice(
        name=name,
        labels=False if arguments.no_labels else arguments.labels,
        top=arguments.top,
        captions=False if arguments.no_captions else None,
        beams=arguments.beams or 1,
        max_tokens=arguments.max_tokens,
        tokenizer=arguments.tokenizer,
        text_encoder=arguments.text_encoder,
        template=arguments.template,
    )


def _given(arguments: argparse.Namespace) -> dict[str, Any]:
    """The options about words that were given, but for --describe or --describer itself."""
    values = {
        "--labels": arguments.labels,
        "--top": arguments.top,
        "--no-captions": arguments.no_captions or None,
        "--no-labels": arguments.no_labels or None,
        "--beams": arguments.beams,
        "--max-tokens": arguments.max_tokens,
        "--tokenizer": arguments.tokenizer,
        "--text-encoder": arguments.text_encoder,
        "--template": arguments.template,
    }
    return {option: value for option, value in values.items() if value is not None}


def _kind(name: str | None, given: dict[str, Any]) -> str | None:
    """CLIP or _FAMILY, or None where the describer depends on what is on this machine."""
    if name is None:
        return _FAMILY if "--no-labels" in given or any(option in given for option in _OF_TAP) else None
    # A folder is an image-text model, and so is OWNER/NAME; a file has the weights of Tokenize Anything.
    path = Path(name).expanduser()
    return CLIP if name == CLIP or path.is_dir() or ("/" in name and not path.exists()) else _FAMILY


def _check_name(name: str, flag: str) -> None:
    """Raises OptionError, UnknownModelError for what is neither a path nor a model that describes."""
    if Path(name).expanduser().exists() or name == CLIP:
        return
    if name.startswith((".", "/", "~")) or Path(name).suffix in _WEIGHTS:
        raise OptionError(f"There is no file or folder {name!r}, which {flag} names.")
    if "/" in name:
        return  # OWNER/NAME of huggingface.co
    from anysam.catalogue import find_variant

    if find_variant(name).family != _FAMILY:
        raise OptionError(
            f"{name} finds masks but no words; {flag} takes a model of Tokenize Anything, such as tap_vit_b, or clip."
        )


def _refuse_contradictions(given: dict[str, Any], clip: str | None, kind: str | None) -> None:
    """What would change nothing is a mistake: the user expects something of it."""
    if "--no-labels" in given and "--no-captions" in given:
        raise OptionError("With --no-labels and --no-captions there is nothing to say; leave one of them out.")
    useless = []
    if "--no-labels" in given:
        useless += [(option, "--no-labels") for option in _OF_LABELS]
    if "--no-captions" in given:
        useless += [(option, "--no-captions") for option in _OF_CAPTIONS]
    if kind == CLIP:
        useless += [(option, f"{clip}, which gives labels only") for option in ("--no-labels", *_OF_TAP)]
    for option, cause in useless:
        if option in given:
            raise OptionError(f"{option} has no effect with {cause}; leave one of them out.")


def _check_values(given: dict[str, Any]) -> None:
    for option in ("--top", "--beams", "--max-tokens"):
        if given.get(option, 1) < 1:
            raise OptionError(f"{option} must be at least 1, got {given[option]}.")
    if given.get("--template", "{}").count("{}") != 1:
        raise OptionError(
            "--template must have {} once, in the place of the name, like 'a photo of a {}', "
            f"got {given['--template']!r}."
        )


def _check_files(given: dict[str, Any]) -> None:
    """Raises OptionError for files that are not there, or a list of labels that is none."""
    tokenizer, encoder, labels = (given.get(option) for option in ("--tokenizer", "--text-encoder", "--labels"))
    if tokenizer is not None and not Path(tokenizer).expanduser().is_file():
        raise OptionError(f"There is no file {tokenizer!r}, which --tokenizer names.")
    if encoder is not None and not Path(encoder).expanduser().is_dir():
        raise OptionError(f"There is no folder {encoder!r}, which --text-encoder names.")
    if labels is not None and Path(labels).expanduser().exists():
        from anysam.describe.vocabulary import read_names  # which imports torch

        read_names(Path(labels))
    elif labels is not None:
        from anysam.catalogue import find_resource

        find_resource(labels, "vocabulary", "names")


def load_describer(
    arguments: argparse.Namespace, choice: DescriberChoice, store: "EmbeddingStore | None"
) -> "Describer":
    """The describer, on the device and with the numbers that the options say. store: where it keeps encoded images."""
    from anysam import describers

    with download_progress(choice.name or "the describer") as progress:
        return describers.load_describer(
            choice.name,
            labels=choice.labels,
            top=choice.top,
            captions=choice.captions,
            beams=choice.beams,
            max_tokens=choice.max_tokens,
            tokenizer=choice.tokenizer,
            text_encoder=choice.text_encoder,
            template=choice.template,
            device=arguments.device,
            dtype=arguments.dtype,
            store=store,
            say=warn,
            progress=progress,
            allow=arguments.allow,
        )


def _describer_name(text: str) -> str:
    """The value of --describe, which may be left out: an image after it would be taken for its value."""
    if text.lower().endswith(_IMAGES):
        raise argparse.ArgumentTypeError(
            f"must be a describer, got the image {text!r}; write the images first, or --describe=clip"
        )
    return text


def class_names(records: Sequence["MaskRecord"], names: Sequence[str]) -> tuple[str, ...] | None:
    """The classes of a run with a describer: its names, then other labels that masks have; None for no names.

    Masks of a file may have such labels from before, which stay where a describer finds no words.
    """
    others = {record.label for record in records if record.label is not None} - set(names)
    return (*dict.fromkeys(names), *sorted(others)) if names else None  # two of a vocabulary may be called the same


def told_losses(losses: Sequence["Loss"], formats: Sequence[str]) -> list[str]:
    """What is lost, in words: of labels and captions nothing, where a format that holds all of them is written, too."""
    return [str(loss) for loss in losses if "json" not in formats or loss.what not in _LOST_WORDS]


def mask_words(record: "MaskRecord") -> str:
    """A mask in a few words: the text that asked for it, what it is called, its caption, and its size."""
    text = (record.prompt or {}).get("text")
    asked = f"for {printable(repr(text))} " if text is not None and text != record.label else ""
    size = f"{record.area:,} pixels, predicted IoU {record.predicted_iou:.2f}"
    said = label_words(record)
    return asked + (f"{said}, {size}" if said else size)


def label_words(record: "MaskRecord") -> str:
    """Label and caption with their scores, for people; "" where nobody knows."""
    words = []
    if record.label is not None:
        words.append(_scored(printable(record.label), record.label_score))
    if record.caption is not None:
        words.append(_scored(f'"{printable(record.caption)}"', record.caption_score))
    return ", ".join(words)


def _scored(words: str, score: float | None) -> str:
    return words if score is None else f"{words} {score:.2f}"


def kinds_words(records: Sequence["MaskRecord"]) -> str:
    """How many masks have which label, the most frequent first, as `: 3 cup, 1 spoon`; "" if none has one."""
    kinds = Counter(record.label for record in records if record.label is not None).most_common()
    shown = [f"{count} {printable(label)}" for label, count in kinds[:_NAMES_SHOWN]]
    more = [f"{len(kinds) - _NAMES_SHOWN} more names"] if len(kinds) > _NAMES_SHOWN else []
    return f": {', '.join(shown + more)}" if shown else ""
