"""Which model describes masks: Tokenize Anything, which also writes captions, or one of the CLIP kind, which chooses
among names.

    describer = anysam.load_describer()
    records = anysam.describe_records(describer, pixels, records)
"""

import importlib.util
import re
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch

from anysam.automatic.everything import ImageStore
from anysam.catalogue import VARIANTS, find_resource, find_variant
from anysam.describe import clip_files
from anysam.describe.clip import DEFAULT as DEFAULT_CLIP
from anysam.describe.clip import load_image_text
from anysam.describe.interface import Describer
from anysam.describe.labels import TEMPLATE, LabelDescriber, Say, check_names, check_template, check_top
from anysam.describe.tap import TapDescriber
from anysam.describe.tap_words import VOCABULARY, DescribeOptions, Wording, check_speaking, prepare_wording
from anysam.describe.vocabulary import TEMPLATE as TAP_TEMPLATE
from anysam.describe.vocabulary import Vocabulary, embedded_once, load_vocabulary, read_names
from anysam.errors import OptionError, UnknownModelError
from anysam.fetch import Progress, locate
from anysam.predictor import load
from anysam.weights_files import SUFFIXES

DEFAULT_TAP = "tap_vit_b"
CLIP = "clip"
EVERYDAY = "everyday"

_FAMILY = "tap"
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_EMBEDDED = (".pkl", ".pickle", ".safetensors", ".pt", ".pth")
_GIVEN = "the given names"

Labels = str | Path | Vocabulary | Sequence[str] | Literal[False] | None


@dataclass(frozen=True)
class _Wish:
    """What was asked for; the fields are arguments of `load_describer`."""

    labels: Labels
    top: int | None
    captions: bool | None
    beams: int
    max_tokens: int | None
    tokenizer: str | Path | None
    text_encoder: str | Path | None
    template: str | None


def load_describer(  # one describer or the other, each with its own options, by one name
    name: str | Path | None = None,
    *,
    labels: Labels = None,
    top: int | None = None,
    captions: bool | None = None,
    beams: int = 1,
    max_tokens: int | None = None,
    tokenizer: str | Path | None = None,
    text_encoder: str | Path | None = None,
    template: str | None = None,
    device: str | None = None,
    dtype: torch.dtype | str = "float32",
    store: ImageStore | None = None,
    say: Say = warnings.warn,
    progress: Progress | None = None,
    allow: str | Iterable[str] | None = None,
) -> Describer:
    """Load what describes masks of any family, for `describe_records`.

    name: a variant of Tokenize Anything or the file of its weights; "clip", a name of the hub such as
    "openai/clip-vit-base-patch32", or a folder with a config.json, for CLIP and SigLIP. None: what the other options
    ask for; else Tokenize Anything if its weights are on this machine, else CLIP if that is, else Tokenize Anything.

    labels: which names there are: a name of the catalogue, a file (.pkl, .safetensors, or a text with a name a line), a
    list of names; None for "merged_2560" or, with CLIP, "everyday"; False for no labels. top: how many of them get a
    score; None for 5, or all if there are fewer. template: what a name is put into, with "{}" in its place.
    text_encoder: the folder of Tokenize Anything's own (`anysam convert --text-tower`), which its own names need.

    captions: whether phrases are written; None: by Tokenize Anything, if sentencepiece is installed. beams, max_tokens,
    tokenizer: see `DescribeOptions`. device, dtype, allow: as `anysam.load`. store: where encoded images are kept, such
    as an `EmbeddingStore`; CLIP has none. say: called with a sentence on what was not done or is doubtful. progress:
    called with bytes done and bytes in all (or None) during downloads.

    Raises OptionError for options that make no sense together, MissingExtraError, UnknownModelError, and what
    `anysam.load` raises. Names, files and packages are checked before weights are read or fetched.
    """
    wish = _Wish(labels, top, captions, beams, max_tokens, tokenizer, text_encoder, template)
    if captions is not None and not isinstance(captions, bool):
        raise OptionError(f"captions must be True, False or None, got {captions!r}.")
    check_top(top)
    if template is not None:
        check_template(template)
    chosen = _default(wish) if name is None else _chosen(name)
    if chosen.clip:
        _check_clip(wish)
        found, source = _names(labels, progress, allow)
        check_top(top, len(found))
        model = load_image_text(chosen.name, device=device, dtype=dtype, say=say, progress=progress, allow=allow)
        return LabelDescriber(model, found, source, TEMPLATE if template is None else template, top=top, say=say)
    wording = _wording(wish, say, progress, allow)
    network = load(chosen.name, device=device, dtype=dtype, progress=progress, allow=allow)
    check_speaking(network, wording)
    return TapDescriber(network, wording, store, say)


# --- which one --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Chosen:
    """clip: whether it is of the CLIP kind. name: of a model, a file or a folder."""

    clip: bool
    name: str | Path


def _chosen(name: object) -> _Chosen:
    """What a name stands for; a file is only looked at when it is loaded."""
    if not isinstance(name, (str, Path)) or not str(name).strip():
        raise OptionError(f"A describer is given by its name or a path, got {name!r}.")
    if name == CLIP:
        return _Chosen(True, DEFAULT_CLIP)
    rows = {row.name: row for row in VARIANTS}
    if isinstance(name, str) and name in rows:
        if rows[name].family != _FAMILY:
            raise OptionError(f"{name} finds masks but no words; describers are {_describers()}.")
        return _Chosen(False, name)
    path = Path(name).expanduser()
    if path.is_dir():
        return _Chosen(True, path)
    if path.is_file() or path.suffix.lower() in SUFFIXES or isinstance(name, Path):
        return _Chosen(False, path)
    if _HUB_NAME.fullmatch(name):
        return _Chosen(True, name)
    raise UnknownModelError(f"There is no describer {name!r}; describers are {_describers()}.")


def _describers() -> str:
    names = ", ".join(row.name for row in VARIANTS if row.family == _FAMILY)
    return f"{names} or the file of their weights, {CLIP}, and any CLIP or SigLIP by its hub name or folder"


def _default(wish: _Wish) -> _Chosen:
    """The describer that can do what is wished for; of two the one that is on this machine, else Tokenize Anything."""
    tap, clip = _Chosen(False, DEFAULT_TAP), _Chosen(True, DEFAULT_CLIP)
    of_tap = (wish.max_tokens, wish.tokenizer, wish.text_encoder)
    if wish.captions or wish.labels is False or wish.beams != 1 or any(value is not None for value in of_tap):
        return tap
    if _has_embeddings(wish.labels):
        return tap
    if wish.labels is not None or wish.template is not None:
        return clip  # names without embeddings, which Tokenize Anything has no use for without its text encoder
    if locate(find_variant(DEFAULT_TAP)) is not None:
        return tap
    installed = all(importlib.util.find_spec(package) for package in ("transformers", "huggingface_hub"))
    return clip if installed and clip_files.cached_checkpoint(DEFAULT_CLIP) is not None else tap


def _has_embeddings(labels: Labels) -> bool:
    """Whether names come with embeddings for Tokenize Anything."""
    if isinstance(labels, Vocabulary):
        return True
    if not isinstance(labels, (str, Path)):
        return False
    path = Path(labels)
    if path.suffix:
        return path.suffix.lower() in _EMBEDDED
    return not path.is_file() and find_resource(str(labels), "vocabulary", "names").kind == "vocabulary"


# --- with CLIP --------------------------------------------------------------------------------------------------------


def _check_clip(wish: _Wish) -> None:
    """Nothing that was asked for goes unheard."""
    if wish.labels is False:
        raise OptionError("CLIP only gives labels, and they are turned off; use Tokenize Anything for captions.")
    if wish.captions:
        raise OptionError("CLIP chooses among names and writes no captions; use Tokenize Anything, such as tap_vit_b.")
    unheard = {
        "beams": wish.beams != 1,
        "max_tokens": wish.max_tokens is not None,
        "tokenizer": wish.tokenizer is not None,
        "text_encoder": wish.text_encoder is not None,
    }
    for option in [option for option, given in unheard.items() if given]:
        raise OptionError(f"{option} belongs to Tokenize Anything and has no effect with CLIP; leave it out.")


def _names(labels: Labels, progress: Progress | None, allow: str | Iterable[str] | None) -> tuple[tuple[str, ...], str]:
    """The names that labels stand for, and where they are from."""
    if isinstance(labels, Vocabulary):
        found, source = labels.names, labels.source
    elif labels is None or isinstance(labels, (str, Path)):
        source = EVERYDAY if labels is None else str(labels)
        found = read_names(EVERYDAY if labels is None else labels, progress, allow)
    else:
        check_names(labels)
        return tuple(labels), _GIVEN  # type: ignore[arg-type]
    return tuple(dict.fromkeys(found)), source


# --- with Tokenize Anything -------------------------------------------------------------------------------------------


def _wording(wish: _Wish, say: Say, progress: Progress | None, allow: str | Iterable[str] | None) -> Wording:
    """The wish as Tokenize Anything understands it; what takes longest, names of the user's own, comes last."""
    captions = wish.captions
    if captions is None:
        asked = wish.beams != 1 or wish.max_tokens is not None or wish.tokenizer is not None or wish.labels is False
        captions = asked or importlib.util.find_spec("sentencepiece") is not None
        if not captions:
            say("No captions are written: they need sentencepiece; install it with: pip install 'anysam[text]'")
    labels = VOCABULARY if wish.labels is None else wish.labels
    own = labels is not False and not _has_embeddings(labels)
    if not own and (wish.text_encoder is not None or wish.template is not None):
        what = "text_encoder" if wish.text_encoder is not None else "template"
        raise OptionError(f"{what} is for names of your own, but the labels are {_source(labels)}; leave it out.")
    named = None if labels is False else VOCABULARY if own else labels
    options = DescribeOptions(named, wish.top, captions, wish.max_tokens, wish.beams, wish.tokenizer)  # type: ignore[arg-type]
    if not own:
        return prepare_wording(options, progress, allow)
    wording = Wording(None, wish.top, None, wish.max_tokens, wish.beams)
    if captions:
        wording = replace(prepare_wording(replace(options, vocabulary=None, top=None), progress, allow), top=wish.top)
    vocabulary = _own_vocabulary(labels, wish, progress, allow)
    check_top(wish.top, len(vocabulary))
    return replace(wording, vocabulary=vocabulary)


def _own_vocabulary(
    labels: object, wish: _Wish, progress: Progress | None, allow: str | Iterable[str] | None
) -> Vocabulary:
    """Names without embeddings, embedded by the text encoder. Raises OptionError without one."""
    template = TAP_TEMPLATE if wish.template is None else wish.template
    if isinstance(labels, (str, Path)):
        return load_vocabulary(labels, wish.text_encoder, progress, allow, template)
    check_names(labels)
    assert isinstance(labels, Sequence)
    check_top(wish.top, len(labels))
    if wish.text_encoder is None:
        raise OptionError(
            "Tokenize Anything compares names by their embeddings; give the folder of the text encoder that makes them "
            "as text_encoder (`anysam convert --text-tower` writes it), or use the describer clip."
        )
    return embedded_once(tuple(labels), wish.text_encoder, _GIVEN, template)


def _source(labels: object) -> str:
    return "turned off" if labels is False else labels.source if isinstance(labels, Vocabulary) else str(labels)
