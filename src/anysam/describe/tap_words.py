"""What Tokenize Anything says of a mask: the options, the files that they name, and from its numbers to words.

A decoded mask has a semantic embedding, which is compared with the names of a vocabulary, and a semantic token, from
which a caption is written (`models/tap_text.py`).
"""

import importlib.util
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from anysam.catalogue import VARIANTS
from anysam.describe.interface import Words
from anysam.describe.labels import Say, check_top, label_words, say_wordless
from anysam.describe.vocabulary import Vocabulary, load_vocabulary
from anysam.encoded_image import EncodedImage
from anysam.errors import MissingExtraError, OptionError
from anysam.fetch import Progress as Download
from anysam.fetch import fetch_resource
from anysam.models import LoadedModel, PromptableModel
from anysam.models.tap_captions import caption_tokens, decode_captions
from anysam.models.tap_text import TextDecoder, concept_probabilities
from anysam.prompts import Prompt

Progress = Callable[[float], None]

VOCABULARY = "merged_2560"
TOKENIZER = "tap_tokenizer"
MOST_BEAMS = 16

_CAPTIONS_AT_ONCE = 64  # whose tokens become words together: progress is told between them
_LABELS_AT_ONCE = 256  # whose probabilities are held together: 51 MB for the largest vocabulary


@dataclass(frozen=True)
class DescribeOptions:
    """What is said of a region, and how.

    vocabulary: the names that labels are chosen from: loaded ones (`describe.vocabulary`), a name of the catalogue, or
    the path of a file with embeddings; None for no labels. top: how many names get a score, best first; None for 5, or
    all if there are fewer. captions: whether phrases are written. max_tokens: of a caption; None for what the model can
    (38). beams: 1 takes the most probable next token, more compare so many beginnings. tokenizer: path of the
    SentencePiece model that the network was trained with; None for the published one, which is fetched.

    Raises OptionError for a value out of range, what does not go together, and nothing to say.
    """

    vocabulary: Vocabulary | str | Path | None = VOCABULARY
    top: int | None = None
    captions: bool = True
    max_tokens: int | None = None
    beams: int = 1
    tokenizer: str | Path | None = None

    def __post_init__(self) -> None:
        if self.vocabulary is not None and not isinstance(self.vocabulary, (Vocabulary, str, Path)):
            raise OptionError(
                f"vocabulary must be a Vocabulary, a name, a path or None, got {type(self.vocabulary).__name__}; "
                "names of your own need embeddings: see anysam.describe.vocabulary."
            )
        check_top(self.top, len(self.vocabulary) if isinstance(self.vocabulary, Vocabulary) else None)
        if not isinstance(self.captions, bool):
            raise OptionError(f"captions must be True or False, got {self.captions!r}.")
        for name, value, most in (("max_tokens", self.max_tokens, None), ("beams", self.beams, MOST_BEAMS)):
            _check_count(name, value, most)
        if self.tokenizer is not None and not isinstance(self.tokenizer, (str, Path)):
            raise OptionError(f"tokenizer must be a path or None, got {type(self.tokenizer).__name__}.")
        if self.vocabulary is None and not self.captions:
            raise OptionError("Neither labels nor captions are asked for; give a vocabulary or captions=True.")
        if self.vocabulary is None and self.top is not None:
            raise OptionError(f"top is {self.top}, but without a vocabulary there are no names; leave one of them out.")
        asked = (("max_tokens", self.max_tokens), ("tokenizer", self.tokenizer))
        unheard = [name for name, value in asked if value is not None] + ["beams"] * (self.beams > 1)
        if unheard and not self.captions:
            raise OptionError(f"{unheard[0]} has no effect without captions; leave it out, or write captions.")


def _check_count(name: str, value: object, most: int | None) -> None:
    if value is None and most is None:
        return
    if isinstance(value, bool) or not isinstance(value, int) or value < 1 or (most is not None and value > most):
        raise OptionError(
            f"{name} must be a whole number from 1{'' if most is None else f' to {most}'}, got {value!r}."
        )


@dataclass(frozen=True, eq=False)
class Wording:
    """`DescribeOptions` with its files read: all that is needed beside a network. See there.

    vocabulary: None for no labels. tokenizer: None for no captions.
    """

    vocabulary: Vocabulary | None
    top: int | None
    tokenizer: Path | None
    max_tokens: int | None
    beams: int


def prepare_wording(
    options: DescribeOptions, progress: Download | None = None, allow: str | Iterable[str] | None = None
) -> Wording:
    """Read what the options name, or fetch it; before any work that depends on it.

    progress: of downloads. allow: the licences that the files may be under, see `anysam.load`. Raises MissingExtraError
    for captions without sentencepiece, OptionError for unknown names and more names asked for than there are,
    WeightsError for damaged files, LicenceError, DownloadError.
    """
    if options.captions and importlib.util.find_spec("sentencepiece") is None:
        raise MissingExtraError(
            "Captions need sentencepiece, which is not installed; install it with: pip install 'anysam[text]', or ask "
            "for labels alone: captions=False."
        )
    tokenizer = None
    if options.captions:
        tokenizer = fetch_resource(options.tokenizer or TOKENIZER, progress, allow)
        decode_captions([], tokenizer)  # whether it can be read
    vocabulary = options.vocabulary
    if vocabulary is not None and not isinstance(vocabulary, Vocabulary):
        vocabulary = load_vocabulary(vocabulary, progress=progress, allow=allow)
    if vocabulary is not None:
        check_top(options.top, len(vocabulary))
    return Wording(vocabulary, options.top, tokenizer, options.max_tokens, options.beams)


@runtime_checkable
class SpeakingNetwork(PromptableModel, Protocol):
    """A network that describes what it segments: its decoder's extras are "semantic_tokens" and "semantic_embeddings".

    text_decoder: writes captions from the former. semantic_dim: D of the latter.
    """

    text_decoder: TextDecoder

    @property
    def semantic_dim(self) -> int: ...


class SpeakingModel(LoadedModel, Protocol):
    """What is asked of a model here; `anysam.Model` offers it."""

    def encode(self, image: np.ndarray) -> EncodedImage: ...

    def predict(self, encoded: EncodedImage, prompt: Sequence[Prompt]) -> list[Any]: ...


def check_speaking(model: SpeakingModel, wording: Wording | None = None) -> SpeakingNetwork:
    """The network of a model that describes what it segments, in the given wording.

    Raises OptionError for a model of another kind, a vocabulary of another width, and captions longer than it writes;
    WeightsError for a tokenizer with too few pieces.
    """
    network = model.network
    if not isinstance(network, SpeakingNetwork):
        names = ", ".join(row.name for row in VARIANTS if row.family == "tap")
        raise OptionError(
            f"{model.variant} makes masks but has no words; models that describe what they segment are {names}; "
            "anysam.load_describer describes the masks of any model."
        )
    if wording is None:
        return network
    if wording.vocabulary is not None and len(wording.vocabulary.embeddings) != network.semantic_dim:
        raise OptionError(
            f"The embeddings of {wording.vocabulary.source} have {len(wording.vocabulary.embeddings)} numbers, but "
            f"{model.variant} compares {network.semantic_dim}; use a vocabulary made for it, such as {VOCABULARY}."
        )
    config = network.text_decoder.config
    if wording.tokenizer is not None:
        if wording.max_tokens is not None and wording.max_tokens > config.max_tokens:
            raise OptionError(f"max_tokens must be at most {config.max_tokens}, got {wording.max_tokens}.")
        decode_captions([[config.vocabulary - 1]], wording.tokenizer)
    return network


def write_words(
    network: SpeakingNetwork,
    wording: Wording,
    semantic_tokens: Tensor,
    semantic_embeddings: Tensor,
    say: Say | None = None,
    progress: Progress | None = None,
) -> list[Words]:
    """Labels and captions of P masks, whatever was asked for; none for a mask whose numbers are not finite.

    semantic_tokens (P, 256) and semantic_embeddings (P, D) float32. say: called with a sentence about masks without
    words. progress: called with the part done, rising to 1. Raises OptionError if no mask's numbers are finite.
    """
    finite = semantic_tokens.isfinite().all(dim=1) & semantic_embeddings.isfinite().all(dim=1)  # (P,)
    say_wordless(finite.cpu().numpy(), say)
    found = [Words() for _ in finite]
    if wording.vocabulary is not None:
        weights = torch.from_numpy(wording.vocabulary.embeddings)  # (D, names)
        labels = (
            label_words(row, wording.vocabulary.names, wording.top)
            for part in semantic_embeddings[finite].split(_LABELS_AT_ONCE)
            for row in concept_probabilities(part, weights).cpu().numpy()  # (names,)
        )
        found = [next(labels) if fine else Words() for fine in finite.tolist()]
    places = finite.nonzero()[:, 0].tolist() if wording.tokenizer is not None else []
    for start in range(0, len(places), _CAPTIONS_AT_ONCE):
        some = places[start : start + _CAPTIONS_AT_ONCE]
        for i, (text, score) in zip(some, _captions(network, wording, semantic_tokens[some]), strict=True):
            if text:
                found[i] = replace(found[i], caption=text, caption_score=score)
        if progress is not None:
            progress((start + len(some)) / len(places))
    return found


def _captions(network: SpeakingNetwork, wording: Wording, semantic_tokens: Tensor) -> list[tuple[str, float]]:
    """A phrase, which may be empty, and its score for each of the semantic tokens (P, 256)."""
    assert wording.tokenizer is not None
    written = caption_tokens(network.text_decoder, semantic_tokens, wording.max_tokens, beams=wording.beams)
    texts = decode_captions([caption.tokens for caption in written], wording.tokenizer)
    return [(text.strip(), caption.score) for text, caption in zip(texts, written, strict=True)]
