"""Tokenize Anything's words for a mask: concept scores and captions.

Paper: Pan et al., "Tokenize Anything via Prompting", 2023. Source: baaivision/tokenize-anything@9cefd56,
tokenize_anything/modeling/{text_decoder,text_tokenizer,concept_projector,image_tokenizer}.py (Apache-2.0). Written
anew; parameter names are the official ones.

Both start from what `tap.Tap.decode` returns for a mask: its semantic embedding (1024 numbers, in CLIP's space) is
compared with a matrix of concept embeddings, and its semantic token (256 numbers) is the prompt of a causal transformer
that writes a caption.

What is unusual here:
- The concept matrix holds unit vectors already multiplied by CLIP's temperature: no factor is left for run time.
- The prompt stands before the begin-of-sequence token, so the latter has position 1; rotary codes turn interleaved
  pairs over the whole head.
- The tokenizer is LLaMA's SentencePiece model, whose licence the repository does not state. It is not part of this
  package: a user who has it gives its path.

Letters beside those of `anysam.models`: L tokens of a caption, T positions (prompt and tokens), V vocabulary.
"""

import importlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from anysam.errors import MissingExtraError, OptionError, WeightsError

BOS, EOS = 1, 2

# Captions written at once: their keys and values take 126 MB in float32, however many prompts there are.
_CAPTIONS_AT_ONCE = 64


@dataclass(frozen=True)
class TextConfig:
    """The shape of a caption decoder.

    depth, dim, num_heads: of the transformer. max_positions: the prompt, BOS and all further tokens.
    """

    depth: int = 12
    dim: int = 512
    num_heads: int = 8
    mlp_ratio: int = 4
    vocabulary: int = 32000
    max_positions: int = 40

    def __post_init__(self) -> None:
        if self.dim % (2 * self.num_heads):
            raise ValueError(f"dim must be a multiple of twice num_heads, got {self.dim} and {self.num_heads}")
        if self.max_positions < 3 or self.vocabulary <= EOS:
            raise ValueError(f"max_positions and vocabulary must be at least 3, got {self}")

    @property
    def max_tokens(self) -> int:
        """The longest caption: what is left of the positions after the prompt and BOS."""
        return self.max_positions - 2


class Concepts(NamedTuple):
    """The best concepts of each mask: scores (..., k) float32 in 0..1, best first, and indices (..., k) int64."""

    scores: Tensor
    indices: Tensor


def concept_logits(semantic_embeddings: Tensor, weights: Tensor) -> Tensor:
    """Semantic embeddings (..., D) of any float dtype, concept matrix (D, concepts) -> logits (..., concepts) float32.

    D is 1024 in the published models; the columns are those of the published concept files, with CLIP's temperature in
    them. Raises OptionError if the widths differ.
    """
    if weights.ndim != 2 or semantic_embeddings.shape[-1:] != weights.shape[:1]:
        raise OptionError(
            f"The concept matrix must be ({semantic_embeddings.shape[-1]}, concepts) for these semantic embeddings, "
            f"got {tuple(weights.shape)}."
        )
    unit = functional.normalize(semantic_embeddings.float(), dim=-1)
    return unit @ weights.to(unit.device, unit.dtype)


def concept_probabilities(semantic_embeddings: Tensor, weights: Tensor) -> Tensor:
    """How probable each concept is for each mask: (..., concepts) float32, each row sums to 1. See concept_logits."""
    return concept_logits(semantic_embeddings, weights).softmax(dim=-1)


def top_concepts(probabilities: Tensor, k: int = 5) -> Concepts:
    """The k best of probabilities (..., concepts). Raises OptionError for a k that is not in 1..concepts."""
    if not 1 <= k <= probabilities.shape[-1]:
        raise OptionError(f"The number of concepts to name must be in 1..{probabilities.shape[-1]}, got {k}.")
    scores, indices = probabilities.topk(k, dim=-1)
    return Concepts(scores, indices)


class MLP(nn.Module):
    """Linear, GELU (erf), linear."""

    def __init__(self, dim: int, mlp_dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, mlp_dim)
        self.fc2 = nn.Linear(mlp_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(functional.gelu(self.fc1(x)))


class Attention(nn.Module):
    """Causal multi-head attention with rotary positions; earlier keys and values may be kept by the caller."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, turns: Tensor, kept: Tensor | None, start: int) -> Tensor:
        """x (P, T, D), the tokens at positions start, start + 1, ...; turns (T, D/heads/2, 2) of those positions.

        kept: (2, P, heads, positions, D/heads), the keys and values of positions before start, or None if start is 0.
        Those of x are written into it. start > 0 takes one position at a time.
        """
        qkv = self.qkv(x).unflatten(-1, (3, self.num_heads, -1))  # (P, T, 3, heads, D/heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each (P, heads, T, D/heads)
        q, k = rotate(q, turns), rotate(k, turns)
        end = start + x.shape[1]
        if kept is not None:
            kept[0, :, :, start:end], kept[1, :, :, start:end] = k, v
            k, v = kept[0, :, :, :end], kept[1, :, :, :end]  # each (P, heads, end, D/heads)
        out = functional.scaled_dot_product_attention(q, k, v, is_causal=start == 0)
        return self.proj(out.transpose(1, 2).flatten(2))  # (P, T, D)


class Block(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, dim: int, num_heads: int, mlp_dim: int) -> None:
        super().__init__()
        self.attn = Attention(dim, num_heads)
        self.mlp = MLP(dim, mlp_dim)
        self.norm1 = nn.LayerNorm(dim)
        self.norm2 = nn.LayerNorm(dim)

    def forward(self, x: Tensor, turns: Tensor, kept: Tensor | None, start: int) -> Tensor:
        """See Attention.forward; (P, T, D) -> the same shape."""
        x = x + self.attn(self.norm1(x), turns, kept, start)
        return x + self.mlp(self.norm2(x))


class Transformer(nn.Module):
    """The parameters of a causal transformer with a vocabulary; TextDecoder runs it."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.tok_embeddings = nn.Embedding(config.vocabulary, config.dim)
        self.blocks = nn.ModuleList(
            Block(config.dim, config.num_heads, config.mlp_ratio * config.dim) for _ in range(config.depth)
        )
        self.norm = nn.LayerNorm(config.dim)
        self.text_proj = nn.Linear(config.dim, config.vocabulary, bias=False)


class TextDecoder(nn.Module):
    """From a mask's semantic token to the tokens of its caption."""

    def __init__(self, config: TextConfig, prompt_dim: int = 256) -> None:
        super().__init__()
        self.config = config
        self.encoder = nn.Linear(prompt_dim, config.dim, bias=False)
        self.transformer = Transformer(config)

    def forward(self, semantic_tokens: Tensor, tokens: Tensor) -> Tensor:
        """Logits of the token after each of `tokens`, all at once, as in training.

        semantic_tokens: (P, 256). tokens: (P, L) int64, BOS first. Returns (P, L, V) float32.
        """
        x = torch.cat([self.prompts(semantic_tokens), self.transformer.tok_embeddings(tokens)], dim=1)  # (P, 1 + L, D)
        return self._run(x, self._turns(x.shape[1]), None, 0)[:, 1:]

    def prompts(self, semantic_tokens: Tensor) -> Tensor:
        """Semantic tokens (P, 256) -> the vectors that stand before BOS, (P, 1, D)."""
        return self.encoder(semantic_tokens.to(self.encoder.weight.dtype))[:, None]

    def greedy_steps(self, semantic_tokens: Tensor) -> Iterator[Tensor]:
        """The logits (P, V) float32 of each next token, feeding the most probable ones back.

        semantic_tokens: (P, 256), all worked on at once. There are config.max_tokens steps; a caller may stop earlier.
        """
        config = self.config
        turns = self._turns(config.max_positions)
        head_dim = config.dim // config.num_heads
        shape = (config.depth, 2, len(semantic_tokens), config.num_heads, config.max_positions, head_dim)
        x = self.prompts(semantic_tokens)  # (P, 1, D)
        kept = x.new_zeros(shape)
        tokens = torch.full((len(x), 1), BOS, device=x.device)  # (P, 1)
        x = torch.cat([x, self.transformer.tok_embeddings(tokens)], dim=1)  # (P, 2, D)
        start = 0
        for _ in range(config.max_tokens):
            logits = self._run(x, turns[start : start + x.shape[1]], kept, start)[:, -1]  # (P, V)
            yield logits
            start += x.shape[1]
            x = self.transformer.tok_embeddings(logits.argmax(dim=-1, keepdim=True))  # (P, 1, D)

    def _run(self, x: Tensor, turns: Tensor, kept: Tensor | None, start: int) -> Tensor:
        """x (P, T, D) at positions start, start + 1, ... -> logits (P, T, V) float32; see Attention.forward."""
        for i, block in enumerate(self.transformer.blocks):
            x = block(x, turns, None if kept is None else kept[i], start)
        return self.transformer.text_proj(self.transformer.norm(x)).float()

    def _turns(self, positions: int) -> Tensor:
        """cos and sin of each position and pair of a head's numbers: (positions, D/heads/2, 2) float32."""
        head_dim = self.config.dim // self.config.num_heads
        device = self.encoder.weight.device
        periods = 10000.0 ** (torch.arange(0, head_dim, 2, device=device).float() / head_dim)  # (D/heads/2,)
        angles = torch.arange(positions, device=device).float()[:, None] * periods.reciprocal()
        return torch.stack([angles.cos(), angles.sin()], dim=-1)


def rotate(x: Tensor, turns: Tensor) -> Tensor:
    """Turn pairs (2 i, 2 i + 1) of x (P, heads, T, D) by turns (T, D/2, 2), in float32; returns x's shape and dtype."""
    even, odd = x.float().unflatten(-1, (-1, 2)).unbind(-1)  # each (P, heads, T, D/2)
    cos, sin = turns.unbind(-1)  # each (T, D/2)
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).flatten(-2).to(x.dtype)


@torch.no_grad()
def caption_tokens(
    decoder: TextDecoder, semantic_tokens: Tensor, max_tokens: int | None = None, at_once: int = _CAPTIONS_AT_ONCE
) -> list[list[int]]:
    """The most probable caption of each mask, one token after the other, as ids without BOS and EOS.

    semantic_tokens: (P, 256), any P. max_tokens: the longest caption, by default and at most what the decoder has
    positions for (38). at_once: masks worked on together, which bounds the memory. Raises OptionError for numbers that
    are not positive or too large, and for semantic tokens of another shape.
    """
    longest = decoder.config.max_tokens
    max_tokens = longest if max_tokens is None else max_tokens
    if not 1 <= max_tokens <= longest:
        raise OptionError(f"A caption may have 1 to {longest} tokens, got {max_tokens}.")
    if at_once < 1:
        raise OptionError(f"The number of captions written at once must be positive, got {at_once}.")
    width = decoder.encoder.in_features
    if semantic_tokens.ndim != 2 or semantic_tokens.shape[1] != width:
        raise OptionError(f"Semantic tokens must be (P, {width}), got {tuple(semantic_tokens.shape)}.")
    captions = []
    for part in semantic_tokens.split(at_once) if len(semantic_tokens) else ():
        columns: list[Tensor] = []  # each (P,)
        ended = torch.zeros(len(part), dtype=torch.bool, device=part.device)
        for logits in decoder.greedy_steps(part):
            columns.append(logits.argmax(dim=-1))
            ended |= columns[-1] == EOS
            if len(columns) == max_tokens or bool(ended.all()):
                break
        captions += [cut_at_end(row) for row in torch.stack(columns, dim=1).tolist()]
    return captions


def cut_at_end(tokens: Sequence[int]) -> list[int]:
    """The ids before the first EOS. What a finished row goes on saying while others write is no part of its caption."""
    return list(tokens[: tokens.index(EOS)] if EOS in tokens else tokens)


def decode_captions(captions: Sequence[Sequence[int]], tokenizer: str | Path) -> list[str]:
    """Token ids, as `caption_tokens` returns them, -> text.

    tokenizer: path of a SentencePiece model; the published weights need LLaMA's with 32000 pieces, which the authors
    keep as tokenize_anything/modeling/text_tokenizer.model. Raises MissingExtraError if sentencepiece is not installed,
    WeightsError if the file is missing, damaged or has too few pieces.
    """
    try:
        sentencepiece = importlib.import_module("sentencepiece")
    except ImportError as error:
        raise MissingExtraError(
            "Turning caption tokens into text needs sentencepiece; install it with: pip install sentencepiece"
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
