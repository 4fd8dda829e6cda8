"""anysam_lite's decoder for inference on a CPU in float32 or float64: LiteDecoder.forward up to rounding, in less time.

All of it is algebra, and an order of memory that fits. `supports` says when it applies.

- The predicted IoU comes from one token, before any mask: what is not wanted is not upscaled.
- Prompts that are one click each are drawn in less work: a Gaussian is a column times a row, and so is a convolution of
  it; maps that are zero (background, box, previous mask) are left out.
- Attention between a prompt's few tokens and the image's cells has its projections multiplied into the tokens, as in
  sam_decoder.py. The mean that a layer norm takes away is one more factor of the attention's product, its gain and bias
  are multiplied into what reads the cells next: of the norm a sum of squares and a scaling is left.
- What is the same for all prompts (skip features, position code, biases) is put in order once, and is what the matrix
  products add to.
- Transposed and strided convolutions are matrix products in channels-last memory, by the parity of the rows, so that
  nothing is permuted. Cells of an image are one row of a matrix each, M = h w of them at stride 16.
"""

from typing import NamedTuple, cast

import torch
from torch import Tensor
from torch.nn import functional

from anysam.models import Kept
from anysam.models.anysam_lite_decoder import LiteDecoder, draw_prompts, limit_to_box, sample
from anysam.models.sam_decoder import (
    FOREGROUND,
    PADDING,
    Attention,
    TwoWayAttentionBlock,
    flatten_cells,
)

# Prompts whose cells (0.6 MB each at 640x480 in float32) are held at once: enough to share the work on their tokens,
# few enough that no tensor reaches 32 MB, from where on glibc asks the system for fresh pages each time.
_PROMPTS_AT_ONCE = 16

# Prompts whose masks are made at once; 1 MB each at stride 8.
_UPSCALED_AT_ONCE = 2


class Weights(NamedTuple):
    """Weights of a LiteDecoder, in the order in which they are multiplied here.

    click (2, 3, 3, 32): maps8 for the near and the wide Gaussian of a foreground click, by row and column. similar
    (12, 64): maps8 for its similarity, 3 rows x 4 columns of cells at stride 8 -> 2 columns of 32. maps16 (2, 64, D),
    up8 (2, D, 2 C8), up4 (2, C8, 2 C4): one matrix for even and odd rows at the finer stride, two columns of cells
    each. up8 and skip (32, C8) have mean 0 over C8, as the norm wants it; up8 has the last norm's gain in it.
    """

    click: Tensor
    similar: Tensor
    maps16: Tensor
    up8: Tensor
    skip: Tensor
    up4: Tensor


class ImageCells(NamedTuple):
    """What all prompts share. size: (h, w), M = h w.

    keys, pe (M, D): the image with the bias of maps16, and its position code. unit (C8, 4 M): skip8, each cell of
    length 1. skip8 (2, M, 2 C8) and skip4 (2, 4 M, 2 C4): even and odd rows, with the biases that meet them.
    """

    size: tuple[int, int]
    keys: Tensor
    pe: Tensor
    unit: Tensor
    skip8: Tensor
    skip4: Tensor


class Attended(NamedTuple):
    """Prompts after the transformer's layers.

    queries (P, 5 + N, D). queries_at: with the tokens added. cells (P, M, D): before the last layer norm, mean 0.
    scale (P, M, 1): 1 / standard deviation.
    """

    queries: Tensor
    queries_at: Tensor
    cells: Tensor
    scale: Tensor


def supports(decoder: LiteDecoder, features: dict[str, Tensor], points: Tensor) -> bool:
    """Whether `decode` applies: on a CPU, float32 or float64, no gradients, no tracing, few tokens in a prompt."""
    embeddings = features["image_embeddings"]
    trained = torch.is_grad_enabled() and (embeddings.requires_grad or decoder.maps8.weight.requires_grad)
    traced = torch.compiler.is_compiling() or torch.jit.is_tracing()
    exact = embeddings.dtype in (torch.float32, torch.float64) and decoder.maps8.weight.dtype == embeddings.dtype
    first = cast(TwoWayAttentionBlock, decoder.transformer.layers[0])
    tokens = 1 + decoder.num_mask_tokens + points.shape[1]
    few = 0 < len(points) and tokens * first.self_attn.num_heads <= embeddings.shape[1]
    return embeddings.device.type == "cpu" and exact and few and not trained and not traced


def decode(
    decoder: LiteDecoder,
    features: dict[str, Tensor],
    points: Tensor,
    labels: Tensor,
    tokens: slice,
    least_iou: float | None,
    rows: int,
) -> Kept:
    """The masks of the mask tokens in `tokens` whose predicted IoU is above least_iou (None: all).

    features of one image, channels last; points (P, N, 2), labels (P, N), P at least 1; rows of the logits wanted, from
    the top. Boxes have limited the logits already.
    """
    weights, image = arrange(decoder), share(decoder, features)
    point_tokens = decoder.tokens(features["image_embeddings"], points, labels)  # (P, 5 + N, D)
    first_layer = cast(TwoWayAttentionBlock, decoder.transformer.layers[0])
    queries = first_layer.attend_to_tokens(point_tokens, point_tokens)
    clicks = bool((labels[:, 0] == FOREGROUND).all() and (labels[:, 1:] == PADDING).all())
    bias = cast(Tensor, decoder.maps8.bias)
    logits, kept, ious = [], [], []
    for start in range(0, len(points), _PROMPTS_AT_ONCE):
        some = slice(start, start + _PROMPTS_AT_ONCE)
        if clicks:
            drawn = draw_clicks(features["skip8"], points[some, 0], weights, bias, image)
        else:
            drawn = draw_any(decoder, features["skip8"], points[some], labels[some])
        attended = attend(decoder, image, _keys(image, drawn, weights), point_tokens[some], queries[some])
        iou = decoder.iou_prediction_head(read_last(decoder, image, attended, slice(0, 1))[:, 0])[:, tokens]  # (P, C)
        wanted = torch.ones_like(iou, dtype=torch.bool) if least_iou is None else iou > least_iou
        with_masks = wanted.any(1).nonzero()[:, 0]
        for first in range(0, len(with_masks), _UPSCALED_AT_ONCE):
            part = with_masks[first : first + _UPSCALED_AT_ONCE]
            masks = make_masks(decoder, image, weights, _pick(attended, part), drawn[:, part], tokens, rows)
            if not clicks:
                masks = limit_to_box(masks, points[some][part], labels[some][part])
            logits.append(masks[wanted[part]])  # (K', rows, 4w)
        kept.append(wanted)
        ious.append(iou)
    candidates = torch.cat(kept).flatten().nonzero()[:, 0]  # (K,)
    low_res_logits = torch.cat(logits) if logits else image.keys.new_empty(0, rows, 4 * image.size[1])
    return Kept(low_res_logits, candidates, torch.cat(ious))


def arrange(decoder: LiteDecoder) -> Weights:
    """The decoder's weights as `decode` uses them."""
    maps8 = decoder.maps8.weight  # (32, 12, 3, 3)
    channels = len(maps8)
    similar = maps8.new_zeros(3, 4, 2, channels)  # row and column of the window, column of the output
    for column in range(2):
        similar[:, column : column + 3, column] = maps8[:, 4].permute(1, 2, 0)
    gain = cast(TwoWayAttentionBlock, decoder.transformer.layers[-1]).norm4.weight
    up8 = decoder.up8.weight.permute(2, 0, 3, 1)  # (2, D, 2, C8)
    up8 = (up8 - up8.mean(-1, keepdim=True)) * gain[:, None, None]
    skip = decoder.maps8_skip.weight[:, :, 0, 0].T  # (32, C8)
    return Weights(
        maps8[:, :2].permute(1, 2, 3, 0).contiguous(),
        similar.reshape(12, 2 * channels),
        decoder.maps16.weight.permute(2, 3, 1, 0).flatten(1, 2).contiguous(),  # (2, 64, D)
        up8.flatten(2).contiguous(),
        skip - skip.mean(-1, keepdim=True),
        decoder.up4.weight.permute(2, 0, 3, 1).flatten(2).contiguous(),  # (2, C8, 2 C4)
    )


def share(decoder: LiteDecoder, features: dict[str, Tensor]) -> ImageCells:
    """What all prompts on an image of these features share."""
    embeddings, skip8, skip4 = (features[name] for name in ("image_embeddings", "skip8", "skip4"))
    h, w = embeddings.shape[-2:]
    keys = flatten_cells(embeddings)[0] + cast(Tensor, decoder.maps16.bias)  # (M, D)
    pe = flatten_cells(decoder.image_pe(h, w))[0]  # (M, D)
    unit = functional.normalize(skip8, dim=1)[0].flatten(1).contiguous()  # (C8, 4 M)
    last = cast(TwoWayAttentionBlock, decoder.transformer.layers[-1])
    bias8 = torch.einsum("d,dcij->ijc", last.norm4.bias, decoder.up8.weight)  # (2, 2, C8)
    bias8 = bias8 + cast(Tensor, decoder.up8.bias) + cast(Tensor, decoder.maps8_skip.bias)
    rows8 = skip8[0].permute(1, 2, 0).reshape(h, 2, w, 2, -1).transpose(0, 1) + bias8[:, None, None]  # (2, h, w, 2, C8)
    rows8 = rows8 - rows8.mean(-1, keepdim=True)
    rows4 = skip4[0].permute(1, 2, 0).reshape(2 * h, 2, 2 * w, 2, -1).transpose(0, 1) + cast(Tensor, decoder.up4.bias)
    return ImageCells(
        (h, w),
        keys,
        pe,
        unit,
        rows8.reshape(2, h * w, -1),
        rows4.reshape(2, 4 * h * w, -1),
    )


def draw_clicks(skip8: Tensor, points: Tensor, weights: Weights, bias: Tensor, image: ImageCells) -> Tensor:
    """relu(maps8(draw_prompts(...))) of one foreground click (P, 2) in each prompt: (2, P, M, 64).

    Even and odd rows at stride 8 apart; a cell's two columns, of 32 channels each, are one row.
    """
    h, w = image.size
    prompts, channels = len(points), weights.click.shape[-1]
    windows = [
        _gaussian_windows(points[:, axis : axis + 1], 2 * side).to(skip8.dtype) for axis, side in ((0, w), (1, h))
    ]
    # By row of the window: its columns are convolved here, its rows in the product below.
    columns = (windows[0][:, :, None] @ weights.click).flatten(3).flatten(1, 2)  # (P, 2 * 3, 2w * 32)
    columns = torch.cat([columns, bias.repeat(2 * w).expand(prompts, 1, -1)], dim=1)
    rows = functional.pad(windows[1].transpose(1, 2).flatten(2), (0, 1), value=1.0)  # (P, 2h, 2 * 3 + 1)
    code = functional.normalize(sample(skip8, points[:, None], 8)[:, 0], dim=-1)  # (P, C8)
    near = (code @ image.unit).clamp_(min=0).unflatten(1, (2 * h, 2 * w))
    near = functional.pad(near, (1, 1, 1, 1))  # (P, 2h + 2, 2w + 2)
    whole, row, _ = near.stride()
    drawn = points.new_empty(2, prompts, h * w, 2 * channels, dtype=skip8.dtype)
    for parity, part in enumerate(drawn):
        torch.bmm(rows[:, parity::2], columns, out=part.view(prompts, h, -1))
        around = near.as_strided((prompts, h, w, 3, 4), (whole, 2 * row, 2, row, 1), parity * row)
        part.flatten(0, 1).addmm_(around.reshape(-1, 12), weights.similar)
    return drawn.relu_()


def _gaussian_windows(at: Tensor, cells: int) -> Tensor:
    """The Gaussians of draw_prompts around coordinates (P, 1) along one side: 3 cells around each, (P, 2, cells, 3)."""
    centres = (torch.arange(cells, device=at.device) + 0.5) * 8 - 0.5
    near = torch.exp(-((centres - at) ** 2) / 2 / 8**2)  # (P, cells)
    both = torch.stack([near, near ** (1 / 25)], dim=1)
    return functional.pad(both, (1, 1)).unfold(2, 3, 1)


def draw_any(decoder: LiteDecoder, skip8: Tensor, points: Tensor, labels: Tensor) -> Tensor:
    """As draw_clicks, of prompts of any kind without a mask."""
    drawn = functional.relu(decoder.maps8(draw_prompts(skip8, points, labels, None)))  # (P, 32, 2h, 2w)
    prompts, _, height, width = drawn.shape
    drawn = drawn.permute(0, 2, 3, 1).reshape(prompts, height // 2, 2, width // 2, -1)  # (P, h, 2, w, 64)
    return drawn.permute(2, 0, 1, 3, 4).flatten(2, 3)  # (2, P, M, 64)


def _keys(image: ImageCells, drawn: Tensor, weights: Weights) -> Tensor:
    """The image with the drawn prompts, at stride 16: (P, M, D)."""
    keys = image.keys.repeat(drawn.shape[1], 1, 1)  # (P, M, D)
    for part, matrix in zip(drawn, weights.maps16, strict=True):
        keys.flatten(0, 1).addmm_(part.flatten(0, 1), matrix)
    return keys


def attend(decoder: LiteDecoder, image: ImageCells, keys: Tensor, tokens: Tensor, queries: Tensor) -> Attended:
    """The transformer's layers. keys (P, M, D), overwritten; tokens (P, 5 + N, D); queries: in layer 0, after norm1."""
    keys_at = keys + image.pe
    pe, norm, bias, scale = image.pe, None, None, None
    for module in decoder.transformer.layers:
        layer = cast(TwoWayAttentionBlock, module)
        if norm is not None and scale is not None:
            keys.mul_(scale)
            # The norm's bias stays out of the keys, and goes where they are read and written.
            bias, pe = norm.bias, image.pe + norm.bias
            torch.addcmul(pe, keys, norm.weight, out=keys_at)
            keys.mul_(norm.weight)
            queries = layer.attend_to_tokens(queries, tokens)
        read = layer.cross_attn_token_to_image
        seen = torch.bmm(_read_queries(read, queries + tokens), keys_at.mT).softmax(-1)  # (P, heads * N, M)
        seen = torch.bmm(seen, keys) if bias is None else torch.baddbmm(bias, seen, keys)  # (P, heads * N, D)
        queries = layer.after_image(queries, _read_values(read, seen))
        _write(layer.cross_attn_image_to_token, keys, keys_at, pe.mean(-1), queries + tokens, queries, bias)
        norm, scale = layer.norm4, _scale(keys, layer.norm4.eps)
    return Attended(queries, queries + tokens, keys, cast(Tensor, scale))


def _write(
    layer: Attention, keys: Tensor, keys_at: Tensor, mean: Tensor, at: Tensor, tokens: Tensor, bias: Tensor | None
) -> None:
    """keys (P, M, D) become keys + bias + what the tokens write into them, less the mean of each cell.

    keys_at: keys with their position code, whose mean is `mean` (M,) above theirs.
    """
    heads, (prompts, _, width) = layer.num_heads, keys.shape
    k = _by_head(layer.k_proj(at), heads) * (layer.k_proj.out_features // heads) ** -0.5  # (P, heads, N, d)
    directions = (k @ _rows_by_head(layer.q_proj.weight, heads)).flatten(1, 2)  # (P, heads * N, D)
    constant = (k @ _rows_by_head(layer.q_proj.bias, heads)).flatten(1, 2)  # (P, heads * N, 1)
    # The weights of a head add up to 1, so a share of a bias in each row adds up to the bias.
    rows = _by_head(layer.v_proj(tokens), heads) @ _rows_by_head(layer.out_proj.weight.mT, heads)
    shares = cast(Tensor, layer.out_proj.bias)
    if bias is not None:
        shares = shares + bias
    rows = (rows + shares / heads).flatten(1, 2)  # (P, heads * N, D)
    # One more direction measures the mean of a cell, and one more row takes it away.
    directions = torch.cat([directions, directions.new_full((prompts, 1, width), 1 / width)], dim=1)
    constant = torch.cat([constant, constant.new_zeros(prompts, 1, 1)], dim=1)
    rows = torch.cat([rows - rows.mean(-1, keepdim=True), rows.new_ones(prompts, 1, width)], dim=1)
    factors = torch.baddbmm(constant, directions, keys_at.mT)  # (P, heads * N + 1, M)
    scores = factors[:, :-1].unflatten(1, (heads, -1))  # (P, heads, N, M)
    scores.sub_(scores.amax(2, keepdim=True)).exp_()
    scores.div_(scores.sum(2, keepdim=True))
    torch.sub(mean, factors[:, -1], out=factors[:, -1])
    keys.baddbmm_(factors.mT, rows)


def read_last(decoder: LiteDecoder, image: ImageCells, attended: Attended, tokens: slice) -> Tensor:
    """Some of the tokens after the attention that follows the layers: (P, N', D)."""
    layer = decoder.transformer.final_attn_token_to_image
    norm = cast(TwoWayAttentionBlock, decoder.transformer.layers[-1]).norm4
    directions = _read_queries(layer, attended.queries_at[:, tokens])  # (P, heads * N', D)
    constant = (directions.flatten(0, 1) @ (image.pe + norm.bias).mT).unflatten(0, directions.shape[:2])
    scale = attended.scale.mT  # (P, 1, M)
    seen = torch.bmm(directions * norm.weight, attended.cells.mT).mul_(scale).add_(constant).softmax(-1).mul_(scale)
    seen = torch.bmm(seen, attended.cells) * norm.weight + norm.bias  # (P, heads * N', D)
    return decoder.transformer.norm_final_attn(attended.queries[:, tokens] + _read_values(layer, seen))


def make_masks(
    decoder: LiteDecoder,
    image: ImageCells,
    weights: Weights,
    attended: Attended,
    drawn: Tensor,
    tokens: slice,
    rows: int,
) -> Tensor:
    """Logits (P, C, rows, 4w) of the mask tokens in `tokens`; drawn (2, P, M, 64)."""
    prompts, (h, w) = len(attended.cells), image.size
    chosen = range(1, 1 + decoder.num_mask_tokens)[tokens]
    hidden = read_last(decoder, image, attended, slice(chosen.start, chosen.stop))  # (P, C, D)
    heads = list(decoder.hypernetworks)[tokens]
    mixtures = torch.stack([head(hidden[:, i]) for i, head in enumerate(heads)], dim=1)  # (P, C, C4)
    # The convolution at stride 8 looks one row further.
    h = min(h, -(-(-(-rows // 2) + 1) // 2))
    cells = (attended.cells[:, : h * w] * attended.scale[:, : h * w]).flatten(0, 1)  # (P M, D)
    x8 = cells.new_empty(prompts, h, 2, w, weights.up8.shape[-1])
    for parity in range(2):
        part = image.skip8[parity, : h * w].repeat(prompts, 1, 1)  # (P, M, 2 C8)
        part.flatten(0, 1).addmm_(cells, weights.up8[parity])
        part = part.view(2 * prompts * h * w, -1)  # (2 P M, C8)
        part.addmm_(drawn[parity, :, : h * w].reshape(len(part), -1), weights.skip)
        part.mul_(_scale(part, decoder.norm8.eps))
        part = torch.addcmul(decoder.norm8.bias, part, decoder.norm8.weight, out=part)
        torch.clamp_min(part.view(prompts, h, w, -1), 0, out=x8[:, :, parity])
    x8 = x8.view(prompts, 2 * h, 2 * w, -1).permute(0, 3, 1, 2)  # (P, C8, 2h, 2w), channels last
    x8 = decoder.conv8(x8).relu_().add_(x8)
    cells = x8.permute(0, 2, 3, 1).flatten(0, 2)  # (4 P M, C8)
    logits = []
    for parity in range(2):
        x4 = image.skip4[parity, : 4 * h * w].repeat(prompts, 1, 1)  # (P, 4 M, 2 C4)
        x4.flatten(0, 1).addmm_(cells, weights.up4[parity]).relu_()
        x4 = x4.view(prompts, 8 * h * w, -1)
        logits.append((mixtures @ x4.mT).unflatten(2, (2 * h, 4 * w)))  # (P, C, 2h, 4w)
    return torch.stack(logits, dim=3).flatten(2, 3)[:, :, :rows]  # (P, C, rows, 4w)


def _pick(attended: Attended, prompts: Tensor) -> Attended:
    return Attended(*(each[prompts] for each in attended))


def _scale(x: Tensor, eps: float) -> Tensor:
    """1 / sqrt(mean square + eps) over the channels: (..., D) -> (..., 1)."""
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return length.square_().div_(x.shape[-1]).add_(eps).rsqrt_()


def _read_queries(layer: Attention, tokens: Tensor) -> Tensor:
    """What tokens (P, N, D) look for in the image, in its own channels: (P, heads * N, D)."""
    q = _by_head(layer.q_proj(tokens), layer.num_heads) * (layer.q_proj.out_features // layer.num_heads) ** -0.5
    return (q @ _rows_by_head(layer.k_proj.weight, layer.num_heads)).flatten(1, 2)


def _read_values(layer: Attention, seen: Tensor) -> Tensor:
    """The layer's output from the cells that each head saw, (P, heads * N, D) -> (P, N, D)."""
    values = seen.unflatten(1, (layer.num_heads, -1)) @ _rows_by_head(layer.v_proj.weight, layer.num_heads).mT
    values = values + _rows_by_head(layer.v_proj.bias, layer.num_heads).mT  # (P, heads, N, d)
    return layer.out_proj(values.transpose(1, 2).flatten(2))


def _by_head(x: Tensor, heads: int) -> Tensor:
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)  # (P, heads, N, d)


def _rows_by_head(x: Tensor, heads: int) -> Tensor:
    """A weight (heads * d, X) or bias (heads * d,) -> (heads, d, X or 1)."""
    return x.reshape(heads, len(x) // heads, -1)
