"""One caption of Tokenize Anything at a time, on a CPU, in float32: guesses of its next tokens, and their check.

One token of one caption reads all 54 million weights of the published decoder and multiplies each only once, so the
time is that of fetching 216 MB from memory. Hence two loops for tap_captions.py:
- `guess` runs a copy whose weights are whole numbers of 8 bits, with one scale for each row. What goes into a product
  is rounded to 14 bits on the spot, or as many as its length allows, and products are added as integers. Its tokens are
  right most of the time.
- `read` runs the decoder's own weights on a few tokens at once, while each weight is at hand. The results are those of
  TextDecoder.read and .logits but for rounding.

numba is optional (the extra `fast`) and imported with this module. Compiled code is kept on disk (numba's cache).
"""

import math
from typing import NamedTuple, cast

import numba
import numpy as np
import torch
from torch import Tensor, nn

from anysam.models.low_rank_kernels import _gelu
from anysam.models.tap_text import EOS, Block, TextDecoder

_F = np.float32
_ONE, _ZERO = _F(1), _F(0)

# Sums may be reordered and products fused, which vector units need.
_MATH = {"contract", "reassoc", "nsz", "arcp"}


class Rows(NamedTuple):
    """A linear layer. weights (out, in) int8; scales, one for each row, and bias (out,) float32."""

    weights: np.ndarray
    scales: np.ndarray
    bias: np.ndarray


class Norm(NamedTuple):
    """A layer norm. gain and bias (D,) float32."""

    gain: np.ndarray
    bias: np.ndarray
    eps: float


class DraftBlock(NamedTuple):
    qkv: Rows
    proj: Rows
    fc1: Rows
    fc2: Rows
    norm1: Norm
    norm2: Norm


class Draft(NamedTuple):
    """The copy: a byte for each weight but those of the tokens' embeddings."""

    blocks: list[DraftBlock]
    norm: Norm
    vocabulary: Rows


@torch.no_grad()
def make_draft(decoder: TextDecoder) -> Draft:
    """The copy of a float32 decoder on a CPU."""
    words = decoder.transformer
    blocks = cast(list[Block], words.blocks)
    layers = [*(layer for block in blocks for layer in _linears(block)), words.text_proj]
    sizes = [layer.weight.numel() for layer in layers]
    # NumPy, not PyTorch, asks for huge pages where it wants more than 4 MB; guesses then take 10 to 15 % less time.
    rooms = torch.from_numpy(np.empty(sum(sizes), np.int8)).split(sizes)
    rows = [_rows(layer, room.view_as(layer.weight)) for layer, room in zip(layers, rooms, strict=True)]
    drafts = []
    for i, block in enumerate(blocks):
        qkv, proj, fc1, fc2 = rows[4 * i : 4 * i + 4]
        drafts.append(DraftBlock(qkv, proj, fc1, fc2, _norm(block.norm1), _norm(block.norm2)))
    return Draft(drafts, _norm(words.norm), rows[-1])


def _linears(block: Block) -> tuple[nn.Linear, ...]:
    return block.attn.qkv, block.attn.proj, block.mlp.fc1, block.mlp.fc2


def _rows(layer: nn.Linear, weights: Tensor) -> Rows:
    """The layer's copy; weights (out, in) int8 is filled."""
    scales = layer.weight.abs().amax(dim=1).clamp(min=1e-30) / 127  # (out,)
    parts = zip(weights.split(2048), layer.weight.split(2048), scales.split(2048), strict=True)
    for out, exact, scale in parts:  # in parts, so as not to hold the whole vocabulary once more
        out.copy_((exact / scale[:, None]).round_())
    bias = torch.zeros(len(scales)) if layer.bias is None else layer.bias.detach()
    return Rows(weights.numpy(), scales.numpy(), bias.numpy())


def _norm(layer: nn.LayerNorm) -> Norm:
    return Norm(layer.weight.detach().numpy(), layer.bias.detach().numpy(), layer.eps)


class Exact(NamedTuple):
    """A linear layer as it is. weights (out, in), bias (out,) float32; views of the parameters."""

    weights: np.ndarray
    bias: np.ndarray


class ExactBlock(NamedTuple):
    qkv: Exact
    proj: Exact
    fc1: Exact
    fc2: Exact
    norm1: Norm
    norm2: Norm


class ExactDecoder(NamedTuple):
    """A decoder's own parameters, no copies. embeddings (V, D): the tokens'."""

    blocks: list[ExactBlock]
    norm: Norm
    vocabulary: Exact
    embeddings: np.ndarray


def exact_decoder(decoder: TextDecoder) -> ExactDecoder:
    """The parameters of a float32 decoder on a CPU. Make it anew for each use: moving a network makes others."""
    words = decoder.transformer
    blocks = []
    for block in cast(list[Block], words.blocks):
        qkv, proj, fc1, fc2 = (_exact(layer) for layer in _linears(block))
        blocks.append(ExactBlock(qkv, proj, fc1, fc2, _norm(block.norm1), _norm(block.norm2)))
    return ExactDecoder(
        blocks, _norm(words.norm), _exact(words.text_proj), words.tok_embeddings.weight.detach().numpy()
    )


def _exact(layer: nn.Linear) -> Exact:
    bias = torch.zeros(layer.out_features) if layer.bias is None else layer.bias.detach()
    return Exact(layer.weight.detach().numpy(), bias.numpy())


@numba.njit(nogil=True, cache=True, fastmath=_MATH)
def _normalise(x, gain, bias, eps, out):  # type: ignore[no-untyped-def]
    share = _ONE / _F(len(x))
    total = _ZERO
    for j in range(len(x)):
        total += x[j]
    mean = total * share
    squares = _ZERO
    for j in range(len(x)):
        squares += (x[j] - mean) * (x[j] - mean)
    scale = _ONE / _F(math.sqrt(squares * share + eps))
    for j in range(len(x)):
        out[j] = (x[j] - mean) * scale * gain[j] + bias[j]


@numba.njit(nogil=True, cache=True, fastmath=_MATH)
def _multiply(weights, scales, biases, x, whole, out):  # type: ignore[no-untyped-def]
    """out = weights * scales @ x + biases, x rounded to numbers that fit int16 and whose sums fit int32."""
    n = len(x)
    largest = _F(1e-30)
    for j in range(n):
        largest = max(largest, abs(x[j]))
    limit = _F(min(32767, 2147483647 // (127 * n)))
    up = limit / largest
    for j in range(n):
        whole[j] = np.int16(np.rint(x[j] * up))
    down = largest / limit
    for i in range(len(weights)):
        total = np.int32(0)
        for j in range(n):
            total += np.int32(weights[i, j]) * np.int32(whole[j])
        # Numba adds in 64 bits; that only 32 are wanted lets the compiler take the fast instructions.
        out[i] = _F(np.int32(total)) * (scales[i] * down) + biases[i]


@numba.njit(nogil=True, cache=True, fastmath=_MATH)
def _attend(qkv, turns, kept, position, out):  # type: ignore[no-untyped-def]
    """qkv (3 * D,) of one position; kept (2, heads, positions, D/heads), into which its key and value are written."""
    heads, width = kept.shape[1], kept.shape[3]
    dim = heads * width
    scores = np.empty(position + 1, _F)
    share = _F(1 / math.sqrt(width))
    for head in range(heads):
        q = qkv[head * width : (head + 1) * width]
        k = qkv[dim + head * width : dim + (head + 1) * width]
        key, value = kept[0, head, position], kept[1, head, position]
        for i in range(0, width, 2):
            cos, sin = turns[0, position, i], turns[1, position, i + 1]
            q[i], q[i + 1] = q[i] * cos - q[i + 1] * sin, q[i] * sin + q[i + 1] * cos
            key[i], key[i + 1] = k[i] * cos - k[i + 1] * sin, k[i] * sin + k[i + 1] * cos
        for i in range(width):
            value[i] = qkv[2 * dim + head * width + i]
            out[head * width + i] = _ZERO
        most = _F(-np.inf)
        for t in range(position + 1):
            total = _ZERO
            for i in range(width):
                total += q[i] * kept[0, head, t, i]
            scores[t] = total * share
            most = max(most, scores[t])
        total = _ZERO
        for t in range(position + 1):
            scores[t] = math.exp(scores[t] - most)
            total += scores[t]
        for t in range(position + 1):
            weight = scores[t] / total
            for i in range(width):
                out[head * width + i] += weight * kept[1, head, t, i]


@numba.njit(nogil=True, cache=True, fastmath=_MATH)
def _read_block(x, turns, kept, position, qkv, proj, fc1, fc2, norm1, norm2):  # type: ignore[no-untyped-def]
    """One token's x (D,) through a block, in place."""
    wide = len(fc1[2])
    h, out, hidden = np.empty(len(x), _F), np.empty(3 * len(x), _F), np.empty(wide, _F)
    whole = np.empty(max(len(x), wide), np.int16)
    _normalise(x, norm1[0], norm1[1], norm1[2], h)
    _multiply(qkv[0], qkv[1], qkv[2], h, whole, out)
    _attend(out, turns, kept, position, h)
    _multiply(proj[0], proj[1], proj[2], h, whole, out)
    for j in range(len(x)):
        x[j] += out[j]
    _normalise(x, norm2[0], norm2[1], norm2[2], h)
    _multiply(fc1[0], fc1[1], fc1[2], h, whole, hidden)
    for j in range(wide):
        hidden[j] = _gelu(hidden[j])
    _multiply(fc2[0], fc2[1], fc2[2], hidden, whole, h)
    for j in range(len(x)):
        x[j] += h[j]


def guess(
    draft: Draft,
    exact: ExactDecoder,
    inputs: np.ndarray,
    turns: np.ndarray,
    kept: np.ndarray,
    start: int,
    count: int,
) -> list[int]:
    """Read inputs (m, D) at positions start, start + 1, ..., and guess `count` tokens that follow, or up to an EOS.

    turns (2, positions, D/heads) as TextDecoder.turns gives them. kept (layers, 2, heads, positions, D/heads): keys and
    values of the positions before start; those read here are written into it, about as they will be. All float32.
    """
    tokens: list[int] = []
    whole, logits = np.empty(inputs.shape[1], np.int16), np.empty(len(exact.embeddings), _F)
    for position in range(start, start + len(inputs) + count - 1):
        step = position - start
        x = (inputs[step] if step < len(inputs) else exact.embeddings[tokens[-1]]).copy()  # (D,)
        for block, block_kept in zip(draft.blocks, kept, strict=True):
            _read_block(x, turns, block_kept, position, *block)
        if step >= len(inputs) - 1:
            _normalise(x, *draft.norm, x)
            _multiply(*draft.vocabulary, x, whole, logits)
            tokens.append(int(logits.argmax()))
            if tokens[-1] == EOS:
                break
    return tokens


@numba.njit(nogil=True, cache=True, fastmath=_MATH)
def _multiply_eight(weights, bias, x, out):  # type: ignore[no-untyped-def]
    """out = x @ weights.T + bias for x (8 n, in), by eights: each weight is fetched once, not once for each row."""
    for i in range(len(weights)):
        for row in range(0, len(x), 8):
            a = b = c = d = e = f = g = h = bias[i]
            for j in range(x.shape[1]):
                weight = weights[i, j]
                a += weight * x[row, j]
                b += weight * x[row + 1, j]
                c += weight * x[row + 2, j]
                d += weight * x[row + 3, j]
                e += weight * x[row + 4, j]
                f += weight * x[row + 5, j]
                g += weight * x[row + 6, j]
                h += weight * x[row + 7, j]
            out[row, i], out[row + 1, i], out[row + 2, i], out[row + 3, i] = a, b, c, d
            out[row + 4, i], out[row + 5, i], out[row + 6, i], out[row + 7, i] = e, f, g, h


@numba.njit(nogil=True, cache=True, fastmath=_MATH)
def _read_exactly(x, count, turns, kept, start, qkv, proj, fc1, fc2, norm1, norm2):  # type: ignore[no-untyped-def]
    """Rows x (8 n, D), of which `count` are meant, at positions start, start + 1, ... through a block, in place."""
    h, split, joined = np.empty_like(x), np.empty((len(x), 3 * x.shape[1]), _F), np.empty_like(x)
    hidden = np.empty((len(x), len(fc1[1])), _F)
    for i in range(len(x)):
        _normalise(x[i], norm1[0], norm1[1], norm1[2], h[i])
    _multiply_eight(qkv[0], qkv[1], h, split)
    for i in range(count):
        _attend(split[i], turns, kept, start + i, h[i])
    _multiply_eight(proj[0], proj[1], h, joined)
    for i in range(len(x)):
        for j in range(x.shape[1]):
            x[i, j] += joined[i, j]
        _normalise(x[i], norm2[0], norm2[1], norm2[2], h[i])
    _multiply_eight(fc1[0], fc1[1], h, hidden)
    for i in range(len(x)):
        for j in range(hidden.shape[1]):
            hidden[i, j] = _gelu(hidden[i, j])
    _multiply_eight(fc2[0], fc2[1], hidden, joined)
    for i in range(len(x)):
        for j in range(x.shape[1]):
            x[i, j] += joined[i, j]


def read(exact: ExactDecoder, x: np.ndarray, turns: np.ndarray, kept: np.ndarray, start: int) -> np.ndarray:
    """What TextDecoder.read and .logits give for vectors x (T, D) of one caption: (T, V) float32; see guess.

    For up to some 16 vectors, which PyTorch's products are not made for.
    """
    rows = np.zeros((len(x) + -len(x) % 8, x.shape[1]), _F)
    rows[: len(x)] = x
    for block, block_kept in zip(exact.blocks, kept, strict=True):
        _read_exactly(rows, len(x), turns, block_kept, start, *block)
    for row in rows:
        _normalise(row, *exact.norm, row)
    logits = np.empty((len(rows), len(exact.vocabulary.bias)), _F)
    _multiply_eight(*exact.vocabulary, rows, logits)
    return logits[: len(x)]
