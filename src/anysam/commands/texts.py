"""Texts on the command line: what they ask for, the masks that they mean in an image, and what to say of one that means
none.
"""

import argparse
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anysam.commands import options as command_options
from anysam.commands.options import warn
from anysam.commands.progress import download_progress, portion
from anysam.errors import OptionError

if TYPE_CHECKING:
    import numpy as np

    from anysam.describe.clip import ImageTextNetwork
    from anysam.describe.find_options import FindOptions
    from anysam.describe.interface import ImageTextModel
    from anysam.predictor import Model
    from anysam.results import MaskRecord
    from anysam.store import EmbeddingStore

TEXT_MODEL = "openai/clip-vit-base-patch32"
_RULES = ("published", "negatives")


def add_text(what: argparse._ArgumentGroup, how: argparse._ArgumentGroup) -> None:
    """Declare --text in one group, and in another how it is understood."""
    what.add_argument(
        "--text",
        action="append",
        default=[],
        metavar="WORDS",
        help="find what these words mean in the whole image, one object for each --text; needs anysam[text]",
    )
    how.add_argument(
        "--text-threshold",
        type=float,
        metavar="0..1",
        help="all masks that fit the words at least so probably (default: the best one only)",
    )
    how.add_argument("--text-limit", type=int, metavar="N", help="at most so many masks of each text, the best")
    how.add_argument(
        "--negative",
        action="append",
        metavar="WORDS",
        help="what the masks may be instead, with which the words are compared; repeatable",
    )
    how.add_argument(
        "--text-rule",
        choices=_RULES,
        help="published: FastSAM's, masks compared with each other; negatives: words compared with others",
    )
    how.add_argument(
        "--text-model",
        metavar="NAME|FOLDER",
        help=f"CLIP or SigLIP, by its name on huggingface.co or its folder (default: {TEXT_MODEL})",
    )


@dataclass(frozen=True)
class TextChoice:
    """What --text asks for, and how. model: the image-text model's name or folder."""

    texts: tuple[str, ...]
    options: "FindOptions"
    model: str


def text_choice(arguments: argparse.Namespace) -> TextChoice | None:
    """What --text and its options say; None without a text. Raises OptionError, MissingExtraError."""
    given = [flag for flag, value in _text_options(arguments).items() if value is not None]
    if not arguments.text:
        if given:
            raise OptionError(f"{given[0]} has no effect without --text; add for example --text 'the red car'.")
        return None
    if arguments.negative and arguments.text_rule == "published":
        raise OptionError(
            "--negative has no effect with --text-rule published, which compares masks with each other; leave one of "
            "them out."
        )
    from anysam.describe.find_options import FindOptions

    try:
        options = FindOptions(
            rule=arguments.text_rule,
            negatives=None if arguments.negative is None else tuple(arguments.negative),
            threshold=arguments.text_threshold,
            limit=arguments.text_limit,
        )
    except OptionError as error:
        raise OptionError(_as_typed(str(error))) from error
    for text in arguments.text:
        if options.negatives and {text.strip().casefold()} == {word.casefold() for word in options.negatives}:
            raise OptionError(f"--negative {text.strip()!r} is the --text itself; say what else the masks may be.")
    model = TEXT_MODEL if arguments.text_model is None else arguments.text_model
    if model.startswith((".", "/", "~")) and not Path(model).expanduser().is_dir():
        raise OptionError(f"There is no folder {model!r}, which --text-model names.")
    command_options.need_package("transformers", "--text")
    return TextChoice(tuple(" ".join(text.split()) for text in arguments.text), options, model)


def _text_options(arguments: argparse.Namespace) -> dict[str, Any]:
    return {
        "--text-threshold": arguments.text_threshold,
        "--text-limit": arguments.text_limit,
        "--negative": arguments.negative,
        "--text-rule": arguments.text_rule,
        "--text-model": arguments.text_model,
    }


def _as_typed(message: str) -> str:
    """A message about a field of FindOptions, in the names of the command line."""
    message = re.sub(r"^(threshold|limit)\b", r"--text-\1", message).replace(" or None, got", ", got")
    return re.sub(r"^negatives must be one text at least, none of them empty", "--negative must not be empty", message)


def load_image_text(arguments: argparse.Namespace, choice: TextChoice) -> "ImageTextNetwork":
    """The image-text model of --text, on the device and with the numbers that the options say."""
    from anysam.describe import clip

    with download_progress(choice.model) as progress:
        return clip.load_image_text(
            choice.model,
            device=arguments.device,
            dtype=arguments.dtype,
            say=warn,
            progress=progress,
            allow=arguments.allow,
        )


@dataclass(frozen=True)
class Found:
    """The masks of each text, in the order of the texts; and what to say of texts that have none, or doubtful ones."""

    masks: tuple[tuple["MaskRecord", ...], ...]
    remarks: tuple[str, ...]


@dataclass(eq=False)
class _Asked:
    """An image-text model that is asked about the masks of one image once for each text, whoever wants to know."""

    model: "ImageTextModel"
    _logits: "dict[str, np.ndarray]" = field(default_factory=dict)  # (N,) float32 of each text

    def similarities(self, pictures: "Iterable[np.ndarray]", texts: Sequence[str]) -> "np.ndarray":
        """As `ImageTextModel.similarities`; the pictures must be the same at every call."""
        import numpy as np

        new = [text for text in texts if text not in self._logits]
        if new:
            self._logits |= zip(new, self.model.similarities(pictures, new).T, strict=True)
        return np.stack([self._logits[text] for text in texts], axis=1)  # (N, T)


def find_texts(
    model: "Model",
    image_text: "ImageTextModel",
    pixels: "np.ndarray",
    texts: Sequence[str],
    options: "FindOptions",
    store: "EmbeddingStore | None",
    progress: Callable[[float], None],
) -> Found:
    """Look for what texts mean in an image (H, W, 3) uint8. Raises AnySamError."""
    from anysam.describe.text_prompts import choose_by_text
    from anysam.models import SelectingModel

    options = replace(options, rule=options.rule_for(isinstance(model.network, SelectingModel)))
    everything = model.everything(pixels, None, None, portion(progress, 0.0, 0.5), store)
    asked = _Asked(image_text)
    hits = choose_by_text(everything, pixels, texts, asked, options, portion(progress, 0.5, 1.0))
    masks = tuple(tuple(hit for hit in hits if hit.label == text) for text in texts)
    missing = [text for text, own in zip(texts, masks, strict=True) if not own]
    # Of those texts the best mask each, to say how far it was from the threshold.
    nearest = (
        choose_by_text(everything, pixels, missing, asked, replace(options, threshold=None, limit=1)) if missing else []
    )
    best = {record.label: record.label_score for record in nearest}
    remarks = [_missed_words(text, options.threshold, best.get(text)) for text in missing]
    if options.threshold is None:
        remarks += [words for own in masks for hit in own[:1] if (words := _doubtful_words(hit))]
    return Found(masks, tuple(remarks))


def _missed_words(text: str, threshold: float | None, best: float | None) -> str:
    if best is None:
        return f"no mask fits {text!r}, for no mask was found at all"
    return f"no mask fits {text!r} with probability {threshold:g}; the best had {best:.2f}"


def _doubtful_words(hit: "MaskRecord") -> str | None:
    """Without a threshold there is a best mask for whatever is said; here what speaks against it, None for nothing."""
    best, score = next(iter((hit.label_scores or {}).items()), (hit.label, 1.0))
    if best == hit.label:
        return None
    return f"{hit.label!r} may not be there: its best mask is rather {best!r} ({score:.2f})"
