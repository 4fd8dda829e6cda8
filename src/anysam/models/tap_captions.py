"""Captions of Tokenize Anything: from semantic tokens to tokens, and from tokens to text.

What is written is what the network finds most probable (or the beam search of its probabilities), in two ways. Captions
together are read token by token, all at once, and leave when they have ended. One to three captions on a CPU are
written one after the other: a rough copy of the network guesses the next seven tokens (tap_draft.py, with the extra
`fast`), the network reads these at once, which takes about twice as long as reading one, and says what it would have
written after each; what agrees stands, and the first that does not is replaced. (The greedy case of Leviathan et al.,
"Fast Inference from Transformers via Speculative Decoding", 2023.)

The tokenizer is LLaMA's SentencePiece model, whose licence Tokenize Anything's repository does not state. It is not
part of this package: a user who has it gives its path.
"""

import importlib
import math
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from anysam.errors import MissingExtraError, OptionError, WeightsError
from anysam.models.tap_text import BOS, EOS, TextDecoder

# Captions written at once: their keys and values take 126 MB in float32, however many prompts there are.
_CAPTIONS_AT_ONCE = 64

# Captions that are quicker to write one by one with guesses than together without.
_MOST_GUESSED = 3

# Positions that the network reads at once when it checks guesses. 4 take two thirds of the time; with more than 8, more
# guesses are in vain after one that is wrong.
_READ_AT_ONCE = 8

# Ended captions leave once no more than this part goes on: moving the others' keys and values takes time too.
_FEW_ENOUGH = 0.75


class Caption(NamedTuple):
    """tokens: ids without BOS and EOS. score: geometric mean of the tokens' probabilities, the EOS's included, 0..1."""

    tokens: list[int]
    score: float


@torch.no_grad()
def caption_tokens(
    decoder: TextDecoder,
    semantic_tokens: Tensor,
    max_tokens: int | None = None,
    at_once: int = _CAPTIONS_AT_ONCE,
    beams: int = 1,
) -> list[Caption]:
    """A caption of each mask.

    semantic_tokens: (P, 256), any P. max_tokens: the longest caption, by default and at most what the decoder has
    positions for (38). at_once: captions worked on together, a search's unfinished ones included; it bounds the memory.

    beams: 1 writes the most probable token after every token. More, at most at_once, keep that many unfinished captions
    of a mask, those with the largest sums of log probabilities, and return the best of all that an EOS or max_tokens
    ended, by log P / |Y|: a beam search normalised by a power of the length, which is 1 here (Wu et al., "Google's
    Neural Machine Translation System", 2016, section 7).

    Up to three captions in float32 on a CPU are written by guesses if numba is installed, from a copy of the weights
    that is made on the first use and kept as decoder.draft (54 MB for the published decoder).

    Raises OptionError for numbers that are not positive or too large and for semantic tokens of another shape or not
    finite, WeightsError if the network's own numbers are not finite.
    """
    longest = decoder.config.max_tokens
    max_tokens = longest if max_tokens is None else max_tokens
    _check(decoder, semantic_tokens, max_tokens, at_once, beams)
    captions: list[Caption] = []
    for part in semantic_tokens.split(at_once // beams) if len(semantic_tokens) else ():
        if beams > 1:
            captions += _search(decoder, part, max_tokens, beams)
        elif len(part) <= _MOST_GUESSED and (drafts := _drafts(decoder)) is not None:
            captions += [_write_guessed(decoder, drafts, one, max_tokens) for one in part.split(1)]
        else:
            captions += _write(decoder, part, max_tokens)
    return captions


def _check(decoder: TextDecoder, semantic_tokens: Tensor, max_tokens: int, at_once: int, beams: int) -> None:
    """Raise OptionError for what caption_tokens does not accept."""
    if not 1 <= max_tokens <= decoder.config.max_tokens:
        raise OptionError(f"A caption may have 1 to {decoder.config.max_tokens} tokens, got {max_tokens}.")
    if at_once < 1:
        raise OptionError(f"The number of captions written at once must be positive, got {at_once}.")
    if not 1 <= beams <= at_once:
        raise OptionError(
            f"The number of beams must be in 1..{at_once} when {at_once} captions are written at once, got {beams}."
        )
    width = decoder.encoder.in_features
    if semantic_tokens.ndim != 2 or semantic_tokens.shape[1] != width:
        raise OptionError(f"Semantic tokens must be (P, {width}), got {tuple(semantic_tokens.shape)}.")
    if not bool(semantic_tokens.isfinite().all()):
        raise OptionError(
            "Semantic tokens must be finite, got NaN or infinity; the weights that they come from may be damaged, "
            "or their numbers too large for float16: use float32."
        )


def _write(decoder: TextDecoder, semantic_tokens: Tensor, max_tokens: int) -> list[Caption]:
    """Greedy captions of semantic_tokens (P, 256), all at once."""
    turns, kept = decoder.turns(), decoder.nothing_read(len(semantic_tokens))
    written: list[list[int]] = [[] for _ in semantic_tokens]
    sums = [0.0] * len(written)
    rows = list(range(len(written)))  # which caption each row of x continues
    x, start = _beginning(decoder, semantic_tokens), 0  # (P, 2, D)
    while True:
        values, tokens = _best(decoder.logits(decoder.read(x, turns, kept, start)[:, -1]))  # each (P,)
        start += x.shape[1]
        open_rows = []
        for i, (row, token, value) in enumerate(zip(rows, tokens.tolist(), values.tolist(), strict=True)):
            if EOS not in written[row][-1:]:
                written[row].append(token)
                sums[row] += value
                if token != EOS:
                    open_rows.append(i)
        if not open_rows or start - 1 == max_tokens:
            return [_caption(tokens, total) for tokens, total in zip(written, sums, strict=True)]
        if len(open_rows) <= _FEW_ENOUGH * len(rows):
            kept, tokens = _reorder(kept, open_rows, start), tokens[open_rows]
            rows = [rows[i] for i in open_rows]
        x = decoder.embed(tokens[:, None])  # (P, 1, D)


def _write_guessed(decoder: TextDecoder, drafts: ModuleType, semantic_token: Tensor, max_tokens: int) -> Caption:
    """The greedy caption of semantic_token (1, 256), by guesses. drafts: the module tap_draft."""
    exact = drafts.exact_decoder(decoder)
    turns, kept = decoder.turns().numpy(), decoder.nothing_read(1)[:, :, 0].numpy()
    written: list[int] = []
    total, start = 0.0, 0
    inputs = _beginning(decoder, semantic_token)[0].numpy()  # (2, D)
    while True:
        count = min(_READ_AT_ONCE - len(inputs), max_tokens - len(written) - 1)
        guesses = drafts.guess(decoder.draft, exact, inputs, turns, kept, start, count) if count else []
        if EOS in guesses:
            guesses.pop()  # nothing follows it
        x = np.concatenate([inputs, exact.embeddings[guesses]])  # (T, D)
        logits = torch.from_numpy(drafts.read(exact, x, turns, kept, start))  # (T, V)
        values, tokens = _best(logits[len(inputs) - 1 :])
        for guessed, (token, value) in enumerate(zip(tokens.tolist(), values.tolist(), strict=True)):
            written.append(token)
            total += value
            if token == EOS or len(written) == max_tokens:
                return _caption(written, total)
            if guesses[guessed : guessed + 1] != [token]:
                break
        start += len(inputs) + guessed  # what was read of wrong guesses is overwritten
        inputs = exact.embeddings[written[-1:]]  # (1, D)


def _search(decoder: TextDecoder, semantic_tokens: Tensor, max_tokens: int, beams: int) -> list[Caption]:
    """The best caption that a beam search finds, for each of semantic_tokens (P, 256); see caption_tokens."""
    count = len(semantic_tokens)
    turns, kept = decoder.turns(), decoder.nothing_read(count * beams)
    best: list[tuple[float, list[int]]] = [(-math.inf, [])] * count  # score and tokens with EOS
    places = list(range(count))  # whose captions are still open
    x, start = _beginning(decoder, semantic_tokens).repeat_interleave(beams, dim=0), 0  # (P beams, 2, D)
    sums = torch.full((count, beams), -math.inf, device=x.device)
    sums[:, 0] = 0  # at first all beams are the same
    written = torch.zeros(count, beams, 0, dtype=torch.long, device=x.device)
    for length in range(1, max_tokens + 1):
        logits = decoder.logits(decoder.read(x, turns, kept, start)[:, -1])  # (P beams, V)
        start += x.shape[1]
        _best(logits)  # raises for NaN
        totals = sums[:, :, None] + logits.log_softmax(dim=-1).unflatten(0, (-1, beams))  # (P, beams, V)
        ends = totals if length == max_tokens else totals[:, :, EOS : EOS + 1]
        _note_best(best, places, written, ends, length)
        totals[:, :, EOS] = -math.inf
        sums, chosen = totals.flatten(1).topk(beams)  # each (P, beams)
        beam, tokens = chosen // totals.shape[-1], chosen % totals.shape[-1]
        # Log probabilities are at most 0: nothing that is still open can get a better score than this.
        bounds = (sums[:, 0] / max_tokens).tolist()
        going_on = [i for i, place in enumerate(places) if bounds[i] > best[place][0]]
        if not going_on or length == max_tokens:
            break
        places, sums, tokens = [places[i] for i in going_on], sums[going_on], tokens[going_on]
        rows = (beam + beams * torch.arange(len(beam), device=x.device)[:, None])[going_on]  # (P, beams)
        written = torch.cat([written.flatten(0, 1)[rows], tokens[..., None]], dim=2)  # (P, beams, length)
        kept = _reorder(kept, rows.flatten().tolist(), start)
        x = decoder.embed(tokens.reshape(-1, 1))  # (P beams, 1, D)
    return [_caption(tokens, score * len(tokens)) for score, tokens in best]


def _note_best(
    best: list[tuple[float, list[int]]], places: list[int], written: Tensor, ends: Tensor, length: int
) -> None:
    """Put captions that end now into `best`, for each place, if they have a better score.

    written (P, beams, length - 1). ends (P, beams, n): sums of log probabilities with a last token, which is the EOS if
    n is 1, else the token of that number.
    """
    sums, chosen = ends.flatten(1).max(dim=1)  # each (P,)
    for i, (total, index) in enumerate(zip(sums.tolist(), chosen.tolist(), strict=True)):
        if total / length > best[places[i]][0]:
            beam, token = divmod(index, ends.shape[-1])
            last = EOS if ends.shape[-1] == 1 else token
            best[places[i]] = (total / length, [*written[i, beam].tolist(), last])


def _beginning(decoder: TextDecoder, semantic_tokens: Tensor) -> Tensor:
    """The vectors of the prompt and of BOS: (P, 2, D)."""
    prompts = decoder.prompts(semantic_tokens.to(decoder.encoder.weight.device))  # (P, 1, D)
    tokens = torch.full((len(prompts), 1), BOS, device=prompts.device)
    return torch.cat([prompts, decoder.embed(tokens)], dim=1)


def _best(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Logits (P, V) -> the log probabilities and the numbers of the most probable tokens, each (P,).

    Raises WeightsError if they are not finite.
    """
    tokens = logits.argmax(dim=-1, keepdim=True)  # (P, 1)
    values = (logits.gather(-1, tokens) - logits.logsumexp(dim=-1, keepdim=True))[:, 0]
    if not bool(values.isfinite().all()):
        raise WeightsError(
            "The caption decoder makes numbers that are not finite: its weights may be damaged, "
            "or its numbers too large for float16; use float32, and the published weights."
        )
    return values, tokens[:, 0]


def _caption(tokens: Sequence[int], total: float) -> Caption:
    """tokens: with the EOS, if any. total: the sum of their log probabilities."""
    return Caption([token for token in tokens if token != EOS], math.exp(min(total, 0.0) / len(tokens)))


def _reorder(kept: Tensor, rows: list[int], end: int) -> Tensor:
    """These rows of kept (depth, 2, P, heads, positions, D/heads), filled up to `end`; kept itself is overwritten."""
    for block in kept:
        block[:, : len(rows), :, :end] = block[:, rows, :, :end]
    return kept[:, :, : len(rows)]


def _drafts(decoder: TextDecoder) -> ModuleType | None:
    """The module tap_draft if it can serve this decoder, which then has a draft."""
    weight = decoder.encoder.weight
    if weight.dtype != torch.float32 or weight.device.type != "cpu":
        return None
    try:
        drafts = importlib.import_module("anysam.models.tap_draft")
    except (ImportError, RuntimeError):  # RuntimeError: numba finds no folder to keep compiled code in
        return None
    if decoder.draft is None:
        decoder.draft = drafts.make_draft(decoder)
    return drafts


def decode_captions(captions: Sequence[Sequence[int]], tokenizer: str | Path) -> list[str]:
    """Token ids, the `tokens` of each Caption, -> text.

    tokenizer: path of a SentencePiece model; the published weights need LLaMA's with 32000 pieces, which the authors
    keep as tokenize_anything/modeling/text_tokenizer.model. Raises MissingExtraError if sentencepiece is not installed,
    WeightsError if the file is missing, damaged or has too few pieces.
    """
    try:
        sentencepiece = importlib.import_module("sentencepiece")
    except ImportError as error:
        raise MissingExtraError(
            "Turning caption tokens into text needs sentencepiece; install it with: pip install 'anysam[text]'"
        ) from error
    if not Path(tokenizer).is_file():
        raise WeightsError(f"There is no SentencePiece model {str(tokenizer)!r}; captions need one of 32000 pieces.")
    try:
        processor = sentencepiece.SentencePieceProcessor(model_file=str(tokenizer))
    except (OSError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise WeightsError(f"{str(tokenizer)!r} is not a readable SentencePiece model ({reason}).") from error
    largest = max((max(caption) for caption in captions if caption), default=0)
    if largest >= processor.vocab_size():
        raise WeightsError(
            f"{str(tokenizer)!r} has {processor.vocab_size()} pieces, but a caption holds the token {largest}; "
            "use the tokenizer that the model was trained with."
        )
    return [processor.decode(list(caption)) for caption in captions]
