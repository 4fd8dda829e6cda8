"""SAM's mask decoder for many prompts on one image, without ever making a prompt's image tokens.

The algebra is our own; the network is that of sam_decoder.py. For inference on a CPU, in float32 or float64, without
mask prompts; `supports` says when.

A prompt changes the image's M = h w tokens by attention to its own N tokens, N about 7: by a matrix of rank N heads. So

    keys = a * B + F^T R + row      a (M,), F (f, M), R (f, D): of the prompt, f about 100; B (M, D), row (D,): of all

and layer normalisation keeps that form: its mean is taken out of the rows of B and R, its gain is multiplied into
them, its bias is the new `row`, and the standard deviation of each cell only divides a and F. The sum of squares that
it comes from is a^2 |B|^2 + 2 a F (R B^T) + F^T (R R^T) F; all rows have mean 0, so no large means cancel. All that the
rest of the network wants of the keys are products keys @ W with weights W, that is a * (B W) + F^T (R W) + row W, and
B W is computed once for all prompts: as much work as four prompts, so call with many. The normalised keys, 4 MB for
each prompt, are never written.

R is a product too: the tokens' values, in each head, with that head's part of an output projection. What R is
multiplied with is multiplied into the projections, once.

Also here:
- Attention weights of a head add up to 1. So the last token's weight is known from the others', its score may be 0, and
  its row of values goes to one row that all heads share: 48 + 1 factors instead of 56 for 7 tokens.
- The predicted IoU comes from one token, before any mask: what is not wanted is not upscaled.
- What follows the products in the upscaling is one loop instead of many passes where numba is there (low_rank_kernels).
"""

import importlib
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import ModuleType
from typing import NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from anysam.models import Kept
from anysam.models.layers import is_exporting
from anysam.models.sam_decoder import (
    Attention,
    LayerNorm2d,
    MaskDecoder,
    TwoWayAttentionBlock,
    flatten_cells,
    output_tokens,
)

# Prompts whose factors (1.6 MB each in float32) are held at once; they share the reading of the tokens' weights.
_PROMPTS_AT_ONCE = 4

# With fewer prompts, what is computed once for all of them costs more than it saves.
_FEWEST_PROMPTS = 4

# Threads that decode prompts; each needs some 30 MB.
_MOST_THREADS = 16

# Cells of the image upscaled at once; each becomes 16 of 32 channels, 1 MB in all in float32.
_CELLS_AT_ONCE = 512


class Rows(NamedTuple):
    """What makes rows of R, multiplied with some weights (D, X).

    outs: for each layer so far its output projection, times the weights, (heads, d, X). constant: the row that all
    prompts share in the last layer's factor of 1, times the weights, (X,).
    """

    outs: list[Tensor]
    constant: Tensor

    def times(self, weights: Tensor) -> "Rows":
        """With weights (D, X) multiplied in."""
        return Rows([out @ weights for out in self.outs], self.constant @ weights)

    def of(self, values: list[Tensor]) -> Tensor:
        """values: of the tokens in each layer so far, (P, heads, N, d) -> R times the weights, (P, f, X)."""
        parts = []
        for v, out in zip(values, self.outs, strict=True):
            parts += [((v[:, :, :-1] - v[:, :, -1:]) @ out).flatten(1, 2), (v[:, :, -1:] @ out).sum(1)]
        parts[-1] = parts[-1] + self.constant
        return torch.cat(parts, dim=1)


class Writing(NamedTuple):
    """The image as its own attention to the tokens sees it, and what the norm after it needs.

    queries: projection of B, (heads, d, M). queries_rows: of R, and queries_constant: of the constant row and the
    position code, with bias, (heads, d, M); both None for the first layer, whose keys are B. rows: R, with mean 0.
    crossed: R's projections times B^T, (heads, d, M) each, and constant_crossed, (M,). squares: |B|^2, (M,). eps: the
    norm's.
    """

    queries: Tensor
    queries_rows: Rows | None
    queries_constant: Tensor | None
    rows: Rows
    crossed: list[Tensor]
    constant_crossed: Tensor
    squares: Tensor
    eps: float


class Reading(NamedTuple):
    """The image as an attention of the tokens to it sees it.

    keys and values: projections of B, (heads, d, M); keys_rows and values_rows: of R. keys_constant: of the constant
    row and the position code, with bias, (heads, d, M); values_constant: of the constant row, with bias, (heads, 1, d).
    """

    keys: Tensor
    keys_rows: Rows
    keys_constant: Tensor
    values: Tensor
    values_rows: Rows
    values_constant: Tensor


class SharedImage(NamedTuple):
    """What all prompts share. keys, keys_at (1, M, D), keys_values: of the first layer, which needs nothing else.

    writings, readings: in each layer, and after it. masks: first upscaling of B, (M', D), of the M' cells wanted only;
    masks_rows: of R; masks_constant: of the constant row, with bias, (1, D).
    """

    keys: Tensor
    keys_at: Tensor
    keys_values: tuple[Tensor, Tensor]
    writings: list[Writing]
    readings: list[Reading]
    masks: Tensor
    masks_rows: Rows
    masks_constant: Tensor


class Keys:
    """The keys of a few prompts: F (P, f, M) in memory[:, :used], a (P, M), or None for 1. values: for Rows.of."""

    def __init__(self, memory: Tensor) -> None:
        self.memory = memory
        self.used = 0
        self.a: Tensor | None = None
        self.values: list[Tensor] = []


class _Memory:
    """What a thread needs for a few prompts: factors (P, f + 1, M) and work, as large as a layer's factors."""

    def __init__(self, decoder: MaskDecoder, image: Tensor, count: int) -> None:
        most = len(decoder.transformer.layers) * count + 1
        # Rows a power of two apart would compete for the same places in the caches.
        self.factors = image.new_empty(_PROMPTS_AT_ONCE, most, len(image) + 16)[:, :, : len(image)]
        self.work = image.new_empty(count, len(image))


def decode_kept(
    decoder: MaskDecoder,
    image_embeddings: Tensor,
    image_pe: Tensor,
    sparse: Tensor,
    dense: Tensor,
    tokens: slice,
    least_iou: float,
    rows: int,
) -> Kept:
    """The masks of the mask tokens in `tokens` whose predicted IoU is above least_iou: see `KeepingModel.decode_kept`.

    image_embeddings, image_pe: (1, D, h, w). sparse, dense: prompt embeddings, (P, N, D) and (1, D, h, w). tokens: a
    slice of 0..3. Where the low rank is of no use, MaskDecoder.forward_kept does it.
    """
    point = output_tokens(decoder.iou_token, decoder.mask_tokens, sparse)  # (P, 5 + N, D)
    if not supports(decoder, image_embeddings, point):
        return decoder.forward_kept(image_embeddings, image_pe, sparse, dense, tokens, least_iou, rows)
    image = (flatten_cells(image_embeddings) + dense.flatten(2).mT)[0]  # (hw, D)
    width = image_embeddings.shape[-1]
    shared = share_image(decoder, image, flatten_cells(image_pe)[0], -(-rows // 4) * width)
    first = cast(TwoWayAttentionBlock, decoder.transformer.layers[0])
    queries = first.attend_to_tokens(point, point)
    attend = first.cross_attn_token_to_image.image_to_tokens
    attended = attend(queries + point, shared.keys_at, shared.keys, shared.keys_values)
    queries = first.after_image(queries, attended)  # (P, 5 + N, D)

    chosen = range(decoder.num_mask_tokens)[tokens]
    logits = image.new_empty(len(point) * len(chosen), rows, 4 * width)
    upscaling = _upscaling(decoder, shared)
    starts = range(0, len(point), _PROMPTS_AT_ONCE)
    threads = min(torch.get_num_threads(), _MOST_THREADS, len(starts))
    count = first.self_attn.num_heads * (point.shape[1] - 1) + 1  # factors of a layer
    memory = [_Memory(decoder, image, count) for _ in range(threads)]

    def decode_part(start: int) -> Tensor:
        part = slice(start, start + _PROMPTS_AT_ONCE)
        own = memory.pop()
        keys = Keys(own.factors[: len(point[part])])
        attended = _through_layers(decoder, shared, keys, queries[part], point[part], own.work, chosen)
        ious = decoder.iou_prediction_head(attended[:, 0])[:, tokens]  # (P', C)
        weights = [decoder.output_hypernetworks_mlps[i](attended[:, 1 + n]) for n, i in enumerate(chosen)]
        _upscale_kept(
            keys, shared, upscaling, torch.stack(weights, dim=1), ious > least_iou, logits[start * len(chosen) :]
        )
        memory.append(own)
        return ious

    ious = _in_threads(decode_part, starts, threads)
    return _packed(logits, ious, least_iou)


def _packed(logits: Tensor, parts: list[Tensor], least_iou: float) -> Kept:
    """Close the gaps: the masks kept of each part, with IoUs (P', C), lie in the first places of its room in logits."""
    start = done = 0
    for ious in parts:
        count = int((ious > least_iou).sum())
        for i in range(count if done < start else 0):
            logits[done + i] = logits[start + i]
        start += ious.numel()
        done += count
    ious = torch.cat(parts)
    return Kept(logits[:done], (ious > least_iou).flatten().nonzero()[:, 0], ious)


def _in_threads(work: Callable[[int], Tensor], items: range, threads: int) -> list[Tensor]:
    """work(item) of each item, by `threads` threads.

    Prompts are independent, and each is many short operations: dividing every operation among the threads, as PyTorch
    does, has them wait for one another all the time.
    """
    if threads == 1:
        return [work(item) for item in items]
    inference, everyone = torch.is_inference_mode_enabled(), torch.get_num_threads()
    started = threading.Barrier(threads + 1)

    def work_alone(item: int) -> Tensor:
        with torch.inference_mode(inference), torch.no_grad():
            return work(item)

    def start() -> None:
        # PyTorch gives a thread the number that was set last, once, when it first asks; what was set before is lost.
        torch.get_num_threads()
        torch.set_num_threads(1)
        started.wait()

    with ThreadPoolExecutor(threads, initializer=start) as pool:
        results = [pool.submit(work_alone, item) for item in items]
        started.wait()
        # The number is each thread's own, but a thread that begins later takes over what was set last.
        torch.set_num_threads(everyone)
        try:
            return [result.result() for result in results]
        finally:  # whatever interrupts this does not wait for what has not begun
            pool.shutdown(wait=False, cancel_futures=True)


def supports(decoder: MaskDecoder, image: Tensor, tokens: Tensor) -> bool:
    """Whether this module can decode prompts of these tokens, (P, N, D), on an image, and does it with less work."""
    attention = cast(TwoWayAttentionBlock, decoder.transformer.layers[0]).cross_attn_image_to_token
    enough = len(tokens) >= _FEWEST_PROMPTS
    few = 2 * tokens.shape[1] * attention.num_heads <= attention.q_proj.in_features
    exact = image.dtype in (torch.float32, torch.float64)
    grad = torch.is_grad_enabled() and any(x.requires_grad for x in (image, tokens, *decoder.parameters()))
    return enough and few and exact and not grad and image.device.type == "cpu" and not is_exporting()


def share_image(decoder: MaskDecoder, keys: Tensor, key_pe: Tensor, cells: int) -> SharedImage:
    """keys, of the image without a prompt, and key_pe (M, D); masks are wanted of the first `cells` cells."""
    layers = [cast(TwoWayAttentionBlock, layer) for layer in decoder.transformer.layers]
    readers = [*(layer.cross_attn_token_to_image for layer in layers), decoder.transformer.final_attn_token_to_image]
    keys_at = keys + key_pe
    keys_values = readers[0].project_keys_values(keys_at[None], keys[None])
    writings, readings = [], []
    base, row = keys, torch.zeros_like(keys[0])
    rows = Rows([], row)
    for number, layer in enumerate(layers):
        write, norm, read = layer.cross_attn_image_to_token, layer.norm4, readers[number + 1]
        heads = write.num_heads
        out = write.out_proj.weight.T.unflatten(0, (heads, -1))  # (heads, d, D)
        if number == 0:
            queries, queries_rows, queries_constant = _project(write.q_proj, keys_at, heads, True), None, None
            base = _centred(base + write.out_proj.bias)  # a is 1, so a row of all cells is part of B
            rows = Rows([_centred(out)], row)
        else:
            queries, queries_rows = _project(write.q_proj, base, heads, False), rows.times(write.q_proj.weight.T)
            queries_constant = _project(write.q_proj, row + key_pe, heads, True)
            base = _centred(base)
            rows = Rows([_centred(o) for o in (*rows.outs, out)], _centred(row + write.out_proj.bias))
        crossed = [out @ base.T for out in rows.outs]
        squares = base.square().sum(1)
        writings.append(
            Writing(queries, queries_rows, queries_constant, rows, crossed, base @ rows.constant, squares, norm.eps)
        )
        base, row = base * norm.weight, norm.bias
        rows = Rows([out * norm.weight for out in rows.outs], rows.constant * norm.weight)
        readings.append(_as_read(read, base, rows, row, key_pe))
    weight, bias = _quadrupling(decoder, 0)
    masks, masks_constant = base[:cells] @ weight, row[None] @ weight + bias
    first = keys[None], keys_at[None], keys_values
    return SharedImage(*first, writings, readings, masks, rows.times(weight), masks_constant)


def _as_read(attention: Attention, base: Tensor, rows: Rows, row: Tensor, key_pe: Tensor) -> Reading:
    """The keys a * base + F^T R + row as an attention of the tokens sees them."""
    heads = attention.num_heads
    return Reading(
        _project(attention.k_proj, base, heads, False),
        rows.times(attention.k_proj.weight.T),
        _project(attention.k_proj, row + key_pe, heads, True),
        _project(attention.v_proj, base, heads, False),
        rows.times(attention.v_proj.weight.T),
        attention.v_proj(row).reshape(heads, 1, -1),
    )


def _through_layers(
    decoder: MaskDecoder,
    shared: SharedImage,
    keys: Keys,
    queries: Tensor,
    point: Tensor,
    work: Tensor,
    tokens: range,
) -> Tensor:
    """From the first layer's tokens, (P, N, D), to the last ones: of the IoU and the wanted masks, (P, 1 + C, D).

    keys: of the image alone, and of the prompts afterwards. point: what the tokens were at first. work: (f, M).
    """
    transformer = decoder.transformer
    for number, layer in enumerate(cast(list[TwoWayAttentionBlock], transformer.layers)):
        if number:
            queries = layer.attend_to_tokens(queries, point)
            attended = _read(keys, shared.readings[number - 1], layer.cross_attn_token_to_image, queries + point)
            queries = layer.after_image(queries, attended)
        _write(keys, shared.writings[number], layer.cross_attn_image_to_token, queries + point, queries, work)
    wanted = [0, *(1 + token for token in tokens)]
    queries, point = queries[:, wanted], point[:, wanted]
    attended = _read(keys, shared.readings[-1], transformer.final_attn_token_to_image, queries + point)
    return transformer.norm_final_attn(queries + attended)


def _read(keys: Keys, image: Reading, attention: Attention, tokens: Tensor) -> Tensor:
    """attention(tokens, keys and position code, keys) for tokens (P, N, D): (P, N, D)."""
    assert keys.a is not None
    heads = attention.num_heads
    q = _heads(attention.q_proj(tokens), heads) * _scale(attention)  # (P, heads, N, d)
    key_rows, value_rows = (
        _heads(image.keys_rows.of(keys.values), heads),
        _heads(image.values_rows.of(keys.values), heads),
    )
    weights = (q @ key_rows.mT).flatten(1, 2)  # (P, heads * N, f)
    of_image, constant = _at_cells(q, image.keys), _at_cells(q, image.keys_constant)  # (heads, P, N, M)
    mixed = torch.empty_like(weights)
    for i in range(len(q)):
        factors = keys.memory[i, : keys.used]
        scores = (weights[i] @ factors).unflatten(0, q.shape[1:3])  # (heads, N, M)
        shares = scores.addcmul_(of_image[:, i], keys.a[i]).add_(constant[:, i]).softmax(2)
        torch.mm(shares.flatten(0, 1), factors.T, out=mixed[i])
        torch.mul(shares, keys.a[i], out=of_image[:, i])
    direct = torch.bmm(of_image.flatten(1, 2), image.values.mT)  # (heads, P * N, d)
    direct = direct.unflatten(1, (len(q), -1)).transpose(0, 1)  # (P, heads, N, d)
    out = mixed.unflatten(1, q.shape[1:3]) @ value_rows + direct + image.values_constant
    return attention.out_proj(out.transpose(1, 2).flatten(2))


def _write(keys: Keys, image: Writing, attention: Attention, tokens_at: Tensor, tokens: Tensor, work: Tensor) -> None:
    """The image attends to tokens, adds what it finds, and is normalised. tokens_at, tokens: (P, N, D)."""
    heads, others = attention.num_heads, tokens.shape[1] - 1
    before, own = keys.used, heads * others  # factors so far, and those to come, but for the one of 1
    k = _heads(attention.k_proj(tokens_at), heads) * _scale(attention)  # (P, heads, N, d)
    _write_weights(keys, image, k[:, :, :-1] - k[:, :, -1:])
    keys.memory[: len(tokens), before + own].fill_(1)
    keys.used += own + 1
    keys.values.append(_heads(attention.v_proj(tokens), heads))
    crossed = [
        (_at_cells(v[:, :, :-1] - v[:, :, -1:], product), v[:, :, -1].flatten(1) @ product.flatten(0, 1))
        for v, product in zip(keys.values, image.crossed, strict=True)
    ]  # (heads, P, N - 1, M) and (P, M), for each layer: R B^T
    crossed[-1][1].add_(image.constant_crossed)
    rows = image.rows.of(keys.values)  # (P, f, D)
    gram = rows @ rows.mT  # (P, f, f)
    a = torch.ones_like(keys.memory[: len(tokens), 0]) if keys.a is None else keys.a
    for i in range(len(tokens)):
        # a^2 |B|^2 + 2 a F (R B^T) + F^T (R R^T) F, half of it; the last is symmetric, so a layer's factors are
        # multiplied with half their own part of R R^T and the earlier layers'.
        factors = keys.memory[i, : keys.used]
        half = torch.zeros_like(a[i])
        for number, (others_crossed, one_crossed) in enumerate(crossed):
            start, end = number * (own + 1), (number + 1) * (own + 1)
            weights = torch.cat([gram[i, start:end, :start], gram[i, start:end, start:end] / 2], dim=1)
            products = torch.mm(weights, factors[:end], out=work[: own + 1])
            products[:-1].unflatten(0, (heads, others)).addcmul_(others_crossed[:, i], a[i])
            products[-1].addcmul_(one_crossed[i], a[i])
            half += products.mul_(factors[start:end]).sum(0)
        squares = torch.addcmul(2 * half, image.squares, a[i].square()).clamp_(min=0)
        scale = squares.div_(rows.shape[2]).add_(image.eps).rsqrt_()
        factors *= scale
        a[i] *= scale
    keys.a = a


def _write_weights(keys: Keys, image: Writing, k: Tensor) -> None:
    """The image's attention to tokens, with scores of k (P, heads, N - 1, d) and one of 0, as the next factors."""
    prompts, heads, others, _ = k.shape
    new = slice(keys.used, keys.used + heads * others)
    of_image = _at_cells(k, image.queries)  # (heads, P, N - 1, M)
    if keys.a is None or image.queries_rows is None or image.queries_constant is None:
        for i in range(prompts):
            scores = keys.memory[i, new].unflatten(0, (heads, others)).copy_(of_image[:, i])
            _softmax_with_zero_(scores)
        return
    weights = (k @ _heads(image.queries_rows.of(keys.values), heads).mT).flatten(1, 2)  # (P, heads * (N - 1), f)
    constant = _at_cells(k, image.queries_constant)
    for i in range(prompts):
        scores = torch.mm(weights[i], keys.memory[i, : keys.used], out=keys.memory[i, new])
        scores = scores.unflatten(0, (heads, others))
        scores.addcmul_(of_image[:, i], keys.a[i]).add_(constant[:, i])
        _softmax_with_zero_(scores)


def _at_cells(x: Tensor, image: Tensor) -> Tensor:
    """x (P, heads, n, d) @ image (heads, d, M): (heads, P, n, M)."""
    # All prompts at once, because products of few rows are slow.
    return torch.bmm(x.transpose(0, 1).flatten(1, 2), image).unflatten(1, (len(x), -1))


def _softmax_with_zero_(scores: Tensor) -> None:
    """softmax over dimension 1 of scores (heads, N - 1, M) and one more of 0, whose weight is left out; in place."""
    top = scores.amax(1, keepdim=True).clamp_(min=0)  # (heads, 1, M)
    scores.sub_(top).exp_()
    scores.div_(scores.sum(1, keepdim=True).add_(top.neg_().exp_()))


@dataclass(frozen=True)
class Upscaling:
    """From keys to masks. kernels: the module low_rank_kernels, or None.

    first and first_constant: of SharedImage's masks, masks_constant. second: the second transposed convolution, (D/4,
    4 * D/8), and its bias, (4 * D/8,).
    """

    first: Tensor
    first_constant: Tensor
    norm: LayerNorm2d
    second: Tensor
    second_bias: Tensor
    kernels: ModuleType | None

    def masks(self, a: Tensor, factors: Tensor, rows: Tensor, weights: Tensor, out: Tensor) -> None:
        """One prompt's weights (C, D/8) @ upscaled keys, into out (C, rows, 4w).

        a (M,) and rows (f, D) of the keys' first upscaling; factors (f + 1, M), the last is overwritten.
        """
        factors[-1].fill_(1)
        rows = torch.cat([rows, self.first_constant])  # (f + 1, D)
        w = out.shape[2] // 4
        step = max(1, _CELLS_AT_ONCE // w) * w
        for start in range(0, len(self.first), step):
            part = slice(start, min(start + step, len(self.first)))
            x = factors[:, part].T @ rows  # (m, 4 * D/4)
            if self.kernels is None:
                self._finish(x, part, a, weights, out)
            else:
                self._finish_quickly(self.kernels, x, part, a, weights, out)

    def _finish(self, x: Tensor, part: slice, a: Tensor, weights: Tensor, out: Tensor) -> None:
        norm, w = self.norm, out.shape[2] // 4
        x = x.addcmul_(self.first[part], a[part, None]).unflatten(1, (4, -1))  # (m, 4, D/4)
        x = functional.gelu(functional.layer_norm(x, norm.weight.shape, norm.weight, norm.bias, norm.eps))
        x = functional.gelu(torch.addmm(self.second_bias, x.flatten(0, 1), self.second))  # (m * 4, 4 * D/8)
        x = x.view(-1, weights.shape[1]) @ weights.T  # (m * 16, C)
        x = x.reshape(-1, w, 2, 2, 2, 2 * len(weights)).permute(0, 2, 4, 1, 3, 5)  # (m/w, 2, 2, w, 2, 2C)
        x = x.reshape(-1, len(weights)).T.reshape(len(weights), -1, 4 * w)  # (C, 4 m/w, 4w)
        top = 4 * part.start // w
        out[:, top : top + x.shape[1]] = x[:, : out.shape[1] - top]

    def _finish_quickly(
        self, kernels: ModuleType, x: Tensor, part: slice, a: Tensor, weights: Tensor, out: Tensor
    ) -> None:
        norm, width = self.norm, weights.shape[1]
        gain, bias, eps = norm.weight.detach().numpy(), norm.bias.detach().numpy(), np.float32(norm.eps)
        kernels.add_norm_gelu(x.numpy(), self.first[part].numpy(), a[part].numpy(), gain, bias, eps)
        x = (x.view(-1, len(gain)) @ self.second).view(len(x), -1)  # (m, 16 * D/8)
        last_bias, columns = self.second_bias[:width].detach().numpy(), out.shape[2] // 4
        kernels.gelu_masks(x.numpy(), last_bias, weights.numpy(), part.start, columns, out.numpy())


def _upscaling(decoder: MaskDecoder, shared: SharedImage) -> Upscaling:
    kernels = _kernels() if shared.masks.dtype == torch.float32 else None
    norm = cast(LayerNorm2d, decoder.output_upscaling[1])
    return Upscaling(shared.masks, shared.masks_constant, norm, *_quadrupling(decoder, 3), kernels)


def _upscale_kept(
    keys: Keys, shared: SharedImage, upscaling: Upscaling, weights: Tensor, kept: Tensor, out: Tensor
) -> None:
    """The masks of `kept` (P, C) into the first places of out (.., rows, 4w). weights: of the masks, (P, C, D/8)."""
    rows = shared.masks_rows.of(keys.values)  # (P, f, D)
    done = 0
    for number, own in enumerate(kept):
        wanted = own.nonzero()[:, 0]
        if len(wanted) > 0:
            a, factors = cast(Tensor, keys.a)[number], keys.memory[number, : keys.used + 1]
            upscaling.masks(a, factors, rows[number], weights[number, wanted], out[done : done + len(wanted)])
            done += len(wanted)


def _kernels() -> ModuleType | None:
    """low_rank_kernels, if numba is installed and works here."""
    try:
        return importlib.import_module("anysam.models.low_rank_kernels")
    except (ImportError, RuntimeError):  # RuntimeError: numba finds no folder to keep compiled code in
        return None


def _quadrupling(decoder: MaskDecoder, index: int) -> tuple[Tensor, Tensor]:
    """A transposed convolution of kernel and stride 2 as weights (D, 4 D') and bias (4 D',) of a product."""
    layer = cast(nn.ConvTranspose2d, decoder.output_upscaling[index])
    return layer.weight.permute(0, 2, 3, 1).flatten(1), cast(Tensor, layer.bias).repeat(4)


def _project(layer: nn.Linear, cells: Tensor, heads: int, bias: bool) -> Tensor:
    """layer(cells) of cells (M, D), with or without the bias, as (heads, d, M)."""
    product = layer.weight @ cells.T  # (heads * d, M)
    return (product.add_(layer.bias[:, None]) if bias else product).unflatten(0, (heads, -1))


def _centred(x: Tensor) -> Tensor:
    """Rows (..., D) without their mean."""
    return x - x.mean(-1, keepdim=True)


def _heads(x: Tensor, heads: int) -> Tensor:
    """(P, N, heads * d) -> (P, heads, N, d), contiguous."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2).contiguous()


def _scale(attention: Attention) -> float:
    return (attention.q_proj.out_features // attention.num_heads) ** -0.5
