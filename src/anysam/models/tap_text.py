"""Tokenize Anything's words for a mask: concept scores, and the network that captions are written with.

Paper: Pan et al., "Tokenize Anything via Prompting", 2023. Source: baaivision/tokenize-anything@9cefd56,
tokenize_anything/modeling/{text_decoder,text_tokenizer,concept_projector,image_tokenizer}.py (Apache-2.0). Written
anew; parameter names are the official ones.

Both start from what `tap.Tap.decode` returns for a mask: its semantic embedding (1024 numbers, in CLIP's space) is
compared with a matrix of concept embeddings, and its semantic token (256 numbers) is the prompt of a causal transformer
that writes a caption. How it is written: tap_captions.py.

What is unusual here:
- The concept matrix holds unit vectors already multiplied by CLIP's temperature: no factor is left for run time.
- The prompt stands before the begin-of-sequence token, so the latter has position 1; rotary codes turn interleaved
  pairs over the whole head.
- Keys and values of what was read are kept by the caller, in one tensor (`TextDecoder.nothing_read`).

Letters beside those of `anysam.models`: L tokens of a caption, T positions (prompt and tokens), V vocabulary.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from anysam.errors import OptionError

BOS, EOS = 1, 2

# Rows of a product up to which `linear` may take the weights first.
_MOST_ROWS_SWAPPED = 32


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


def linear(layer: nn.Linear, x: Tensor) -> Tensor:
    """layer(x), where few rows on a CPU are faster as the weights times the rows than as the rows times the weights.

    Measured with MKL on AVX2: 4 rows take half the time, 8 three quarters, 32 nine tenths, 64 the same; with two
    threads up to 32 take less than three quarters. Numbers of rows between multiples of 8 may take longer.
    """
    rows = x.shape[:-1].numel()
    few = 1 < rows < 8 or (rows % 8 == 0 and 0 < rows <= _MOST_ROWS_SWAPPED)
    if not few or x.device.type != "cpu" or x.dtype != torch.float32:
        return layer(x)
    columns = x.reshape(rows, -1).t()  # (in, rows)
    bias: Tensor | None = layer.bias
    if bias is None:
        out = torch.mm(layer.weight, columns)  # (out, rows)
    else:
        out = torch.addmm(bias[:, None], layer.weight, columns)  # (out, rows)
    return out.t().contiguous().reshape(*x.shape[:-1], -1)


class MLP(nn.Module):
    """Linear, GELU (erf), linear."""

    def __init__(self, dim: int, mlp_dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, mlp_dim)
        self.fc2 = nn.Linear(mlp_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return linear(self.fc2, functional.gelu(linear(self.fc1, x)))


class Attention(nn.Module):
    """Causal multi-head attention with rotary positions; earlier keys and values may be kept by the caller."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, turns: Tensor, seen: Tensor | None, kept: Tensor | None, start: int) -> Tensor:
        """x (P, T, D), the tokens at positions start, start + 1, ...; turns (2, T, D/heads) of those positions.

        seen: (T, start + T) bool, which positions each token sees; None if it sees all (T = 1), or all up to its own
        (start = 0). kept: (2, P, heads, positions, D/heads), the keys and values of positions before start, or None if
        start is 0. Those of x are written into it.
        """
        qkv = linear(self.qkv, x).unflatten(-1, (3, self.num_heads, -1))  # (P, T, 3, heads, D/heads)
        q, k = rotate(qkv[:, :, :2], turns[:, :, None, None]).permute(2, 0, 3, 1, 4)  # each (P, heads, T, D/heads)
        v = qkv[:, :, 2].transpose(1, 2)  # (P, heads, T, D/heads)
        end = start + x.shape[1]
        if kept is not None:
            kept[0, :, :, start:end], kept[1, :, :, start:end] = k, v
            k, v = kept[0, :, :, :end], kept[1, :, :, :end]  # each (P, heads, end, D/heads)
        causal = start == 0 and seen is None
        out = functional.scaled_dot_product_attention(q, k, v, attn_mask=seen, is_causal=causal)
        return linear(self.proj, out.transpose(1, 2).flatten(2))  # (P, T, D)


class Block(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, dim: int, num_heads: int, mlp_dim: int) -> None:
        super().__init__()
        self.attn = Attention(dim, num_heads)
        self.mlp = MLP(dim, mlp_dim)
        self.norm1 = nn.LayerNorm(dim)
        self.norm2 = nn.LayerNorm(dim)

    def forward(self, x: Tensor, turns: Tensor, seen: Tensor | None, kept: Tensor | None, start: int) -> Tensor:
        """See Attention.forward; (P, T, D) -> the same shape."""
        x = x + self.attn(self.norm1(x), turns, seen, kept, start)
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
    """From a mask's semantic token to the tokens of its caption.

    draft: a rough copy of the weights, to guess tokens with, if tap_captions.py made one; no part of the state_dict.
    """

    def __init__(self, config: TextConfig, prompt_dim: int = 256) -> None:
        super().__init__()
        self.config = config
        self.encoder = nn.Linear(prompt_dim, config.dim, bias=False)
        self.transformer = Transformer(config)
        self.draft: NamedTuple | None = None

    def forward(self, semantic_tokens: Tensor, tokens: Tensor) -> Tensor:
        """Logits of the token after each of `tokens`, all at once, as in training.

        semantic_tokens: (P, 256). tokens: (P, L) int64, BOS first. Returns (P, L, V) float32.
        """
        x = torch.cat([self.prompts(semantic_tokens), self.embed(tokens)], dim=1)  # (P, 1 + L, D)
        return self.logits(self.read(x, self.turns(), None, 0)[:, 1:])

    def prompts(self, semantic_tokens: Tensor) -> Tensor:
        """Semantic tokens (P, 256) -> the vectors that stand before BOS, (P, 1, D)."""
        return self.encoder(semantic_tokens.to(self.encoder.weight.dtype))[:, None]

    def embed(self, tokens: Tensor) -> Tensor:
        """Tokens (P, L) int64 -> their vectors (P, L, D)."""
        return self.transformer.tok_embeddings(tokens)

    def nothing_read(self, count: int) -> Tensor:
        """Room for the keys and values of `count` captions: (depth, 2, P, heads, positions, D/heads), see `read`."""
        config = self.config
        shape = (config.depth, 2, count, config.num_heads, config.max_positions, config.dim // config.num_heads)
        return self.encoder.weight.new_zeros(shape)

    def read(self, x: Tensor, turns: Tensor, kept: Tensor | None, start: int) -> Tensor:
        """What the network makes of vectors x (P, T, D) at positions start, start + 1, ...: (P, T, D) for `logits`.

        turns: of all positions. kept: the keys and values of the positions before start, as nothing_read shapes them,
        to which those of x are added; None reads from position 0 and keeps nothing.
        """
        count = x.shape[1]
        seen = None
        if start and count > 1:
            seen = torch.ones(count, start + count, dtype=torch.bool, device=x.device).tril(start)
        for i, block in enumerate(self.transformer.blocks):
            x = block(x, turns[:, start : start + count], seen, None if kept is None else kept[i], start)
        return self.transformer.norm(x)

    def logits(self, x: Tensor) -> Tensor:
        """What `read` returned (P, T, D) -> how the next token is likely to go on: (P, T, V) float32."""
        return linear(self.transformer.text_proj, x).float()

    def turns(self) -> Tensor:
        """For `rotate`: (2, positions, D/heads) float32. Of each pair of numbers, [0] is cos, cos and [1] -sin, sin."""
        head_dim = self.config.dim // self.config.num_heads
        device = self.encoder.weight.device
        periods = 10000.0 ** (torch.arange(0, head_dim, 2, device=device).float() / head_dim)  # (D/heads/2,)
        angles = torch.arange(self.config.max_positions, device=device).float()[:, None] * periods.reciprocal()
        cos, sin = angles.cos(), angles.sin()  # each (positions, D/heads/2)
        return torch.stack([torch.stack([cos, cos], dim=-1), torch.stack([-sin, sin], dim=-1)]).flatten(-2)


def rotate(x: Tensor, turns: Tensor) -> Tensor:
    """Turn pairs (2 i, 2 i + 1) of x (..., D) by turns (2, ..., D) of TextDecoder.turns, in float32; keeps dtype."""
    swapped = x.float().unflatten(-1, (-1, 2)).flip(-1).flatten(-2)  # (..., D)
    return torch.addcmul(x.float() * turns[0], swapped, turns[1]).to(x.dtype)
