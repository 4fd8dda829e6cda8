"""SAM's prompt encoder, two-way transformer and mask decoder: the part that most of the family shares.

Paper: Kirillov et al., "Segment Anything", 2023, section 3 and appendix A ("Lightweight mask decoder").
Source: facebookresearch/segment-anything@dca509f, segment_anything/modeling/ (prompt_encoder.py, transformer.py and
mask_decoder.py; Apache-2.0). Written anew; parameter names are the official ones, so published state_dicts load
unchanged.

What is unusual here, all of it algebra that changes rounding only:
- Tensors that are the same for all prompts (the image embedding, its position code, the dense embedding when no mask is
  given) keep a leading dimension of 1 for as long as they are equal, so the first layer's image-side projections are
  computed once for a whole batch of prompts.
- A prompt has few tokens, the image thousands. Where a product of both can be bracketed either way, the projection
  matrix is multiplied into the tokens: q (W x)^T = (q W) x^T. That halves the work of a prompt.
- On a CPU the image side is computed for a few prompts at a time, which keeps it in the caches.
- The transposed convolutions are matrix products in token layout; only the final logits are put in image order.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from anysam.models import Kept
from anysam.models.layers import is_exporting

# Labels of prompt tokens, as in the official point_embeddings table.
PADDING, BACKGROUND, FOREGROUND, BOX_TOP_LEFT, BOX_BOTTOM_RIGHT = -1, 0, 1, 2, 3

# Prompts whose image tokens (4 MB each in float32) are held at once on a CPU.
_PROMPTS_AT_ONCE_CPU = 2


class LayerNorm2d(nn.Module):
    """Layer normalisation over the channels of (B, D, h, w), eps 1e-6 as in SAM."""

    def __init__(self, channels: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 2, 3, 1)  # (B, h, w, D)
        x = functional.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)
        return x.permute(0, 3, 1, 2)  # (B, D, h, w)


class MLP(nn.Module):
    """Linear layers with ReLU between them."""

    def __init__(self, input_dim: int, hidden_dim: int, output_dim: int, num_layers: int) -> None:
        super().__init__()
        widths = [input_dim] + [hidden_dim] * (num_layers - 1) + [output_dim]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in zip(widths[:-1], widths[1:], strict=True))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = functional.relu(layer(x))
        return self.layers[-1](x)


class PositionEmbeddingRandom(nn.Module):
    """Random Fourier features of a position: sin and cos of 2 pi (2 c - 1) G, with c in [0, 1], x first."""

    positional_encoding_gaussian_matrix: Tensor

    def __init__(self, num_pos_feats: int) -> None:
        super().__init__()
        self.register_buffer("positional_encoding_gaussian_matrix", torch.randn(2, num_pos_feats))

    def encode(self, coordinates: Tensor) -> Tensor:
        """Coordinates (..., 2) in [0, 1], x y -> (..., 2 * num_pos_feats) in the matrix's dtype.

        Computed in float32 whatever the matrix is: half precision would move a point by several pixels.
        """
        matrix = self.positional_encoding_gaussian_matrix
        angles = 2 * math.pi * ((2 * coordinates.float() - 1) @ matrix.float())
        return torch.cat([angles.sin(), angles.cos()], dim=-1).to(matrix.dtype)

    def grid(self, height: int, width: int, frame: tuple[float, float]) -> Tensor:
        """Codes of the cell centres of a (height, width) grid; `frame` is the (height, width) that maps to 1.

        Returns (1, D, height, width).
        """
        device = self.positional_encoding_gaussian_matrix.device
        y = (torch.arange(height, device=device, dtype=torch.float32) + 0.5) / frame[0]
        x = (torch.arange(width, device=device, dtype=torch.float32) + 0.5) / frame[1]
        coordinates = torch.stack([x.expand(height, width), y[:, None].expand(height, width)], dim=-1)
        return self.encode(coordinates).permute(2, 0, 1)[None]  # (1, D, height, width)


class PromptEncoder(nn.Module):
    """Points, box corners and a mask -> sparse and dense prompt embeddings."""

    def __init__(
        self,
        embed_dim: int = 256,
        image_embedding_size: tuple[int, int] = (64, 64),
        input_size: tuple[int, int] = (1024, 1024),
        mask_in_chans: int = 16,
    ) -> None:
        super().__init__()
        self.image_embedding_size = image_embedding_size
        self.input_size = input_size
        self.pe_layer = PositionEmbeddingRandom(embed_dim // 2)
        self.point_embeddings = nn.ModuleList(nn.Embedding(1, embed_dim) for _ in range(4))
        self.not_a_point_embed = nn.Embedding(1, embed_dim)
        self.mask_downscaling = nn.Sequential(
            nn.Conv2d(1, mask_in_chans // 4, kernel_size=2, stride=2),
            LayerNorm2d(mask_in_chans // 4),
            nn.GELU(),
            nn.Conv2d(mask_in_chans // 4, mask_in_chans, kernel_size=2, stride=2),
            LayerNorm2d(mask_in_chans),
            nn.GELU(),
            nn.Conv2d(mask_in_chans, embed_dim, kernel_size=1),
        )
        self.no_mask_embed = nn.Embedding(1, embed_dim)

    def dense_pe(self) -> Tensor:
        """Position code of the image grid: (1, D, h, w)."""
        h, w = self.image_embedding_size
        return self.pe_layer.grid(h, w, (h, w))

    def forward(self, points: Tensor, labels: Tensor, mask_logits: Tensor | None) -> tuple[Tensor, Tensor]:
        """Points (P, N, 2) input-frame pixels, labels (P, N) in -1..3, mask_logits (P, 1, 4h, 4w) or None.

        Returns sparse_prompt_embeddings (P, N, D) and dense_prompt_embeddings (1 or P, D, h, w).
        """
        sparse = encode_tokens(
            self.pe_layer, self.point_embeddings, self.not_a_point_embed, points, labels, self.input_size
        )
        if mask_logits is None:
            dense = self.no_mask_embed.weight.reshape(1, -1, 1, 1)  # (1, D, 1, 1)
            return sparse, dense.expand(-1, -1, *self.image_embedding_size)  # (1, D, h, w)
        return sparse, self.mask_downscaling(mask_logits)


def encode_tokens(
    pe_layer: PositionEmbeddingRandom,
    point_embeddings: nn.ModuleList,
    not_a_point_embed: nn.Embedding,
    points: Tensor,
    labels: Tensor,
    input_size: tuple[int, int],
) -> Tensor:
    """Position code of each point's pixel centre plus the learned vector of its label; (P, N, D).

    A padding token (label -1) has no position: only its learned vector.
    """
    frame = points.new_tensor([input_size[1], input_size[0]])
    by_label = [cast(nn.Embedding, embedding).weight for embedding in point_embeddings]
    table = torch.cat([not_a_point_embed.weight, *by_label])  # (5, D)
    codes = pe_layer.encode((points + 0.5) / frame)  # (P, N, D)
    return codes * (labels >= 0)[..., None] + table[labels + 1]


class Attention(nn.Module):
    """Multi-head attention whose inner width may be smaller than the embedding's.

    Between few tokens (P, N, D) and many cells of the image (P or 1, M, D) there are two forms of `forward` that do
    less work; a leading 1 means that all prompts share the image.
    """

    def __init__(self, embedding_dim: int, num_heads: int, downsample_rate: int = 1) -> None:
        super().__init__()
        internal_dim = embedding_dim // downsample_rate
        self.num_heads = num_heads
        self.q_proj = nn.Linear(embedding_dim, internal_dim)
        self.k_proj = nn.Linear(embedding_dim, internal_dim)
        self.v_proj = nn.Linear(embedding_dim, internal_dim)
        self.out_proj = nn.Linear(internal_dim, embedding_dim)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q (P or 1, N, D), k and v (P or 1, M, D) -> (P, N, D); a leading 1 is shared by all prompts."""
        q, k, v = self._heads(self.q_proj(q)), self._heads(self.k_proj(k)), self._heads(self.v_proj(v))
        if q.shape[0] != k.shape[0]:
            batch = max(q.shape[0], k.shape[0])
            q, k, v = (t.expand(batch, -1, -1, -1) for t in (q, k, v))  # (P, heads, N or M, d)
        out = functional.scaled_dot_product_attention(q, k, v)
        return self.out_proj(out.transpose(1, 2).flatten(2))  # (P, N, D)

    def image_to_tokens(
        self, tokens: Tensor, image_at: Tensor, image: Tensor, projected: tuple[Tensor, Tensor] | None = None
    ) -> Tensor:
        """forward(tokens, image_at, image): (P, N, D).

        projected: keys and values of the image, (P or 1, heads, M, d), if they are known already.
        """
        q = self._heads(self.q_proj(tokens))  # (P, heads, N, d)
        shared = len(image) == 1
        if shared:
            q = q.transpose(0, 1).flatten(1, 2)[None]  # (1, heads, P * N, d)
        if projected is None and self.folds(q.shape[2], q.dtype):
            q = q * q.shape[-1] ** -0.5
            at = (q @ self._by_head(self.k_proj.weight)).flatten(1, 2)  # (P or 1, heads * N, D)
            constant = (q @ self._by_head(self.k_proj.bias)).flatten(1, 2)  # (P or 1, heads * N, 1)
            weights = torch.baddbmm(constant, at, image_at.transpose(-2, -1)).softmax(-1)  # (P or 1, heads * N, M)
            mixed = (weights @ image).unflatten(1, (self.num_heads, -1))  # (P or 1, heads, N, D)
            out = mixed @ self._by_head(self.v_proj.weight).transpose(-2, -1) + self._by_head(
                self.v_proj.bias
            ).transpose(-2, -1)
        else:
            k, v = projected or self.project_keys_values(image_at, image)
            out = functional.scaled_dot_product_attention(q, k, v)  # (P or 1, heads, N, d)
        if shared:
            out = out[0].unflatten(1, (len(tokens), -1)).transpose(0, 1)  # (P, heads, N, d)
        return self.out_proj(out.transpose(1, 2).flatten(2))  # (P, N, D)

    def add_tokens_to_image(
        self, image: Tensor, image_at: Tensor, tokens_at: Tensor, tokens: Tensor, projected: Tensor | None = None
    ) -> Tensor:
        """image + forward(image_at, tokens_at, tokens): (P, M, D).

        projected: queries of the image, (P or 1, heads, M, d), if they are known already.
        """
        k, v = self._heads(self.k_proj(tokens_at)), self._heads(self.v_proj(tokens))  # (P, heads, N, d)
        prompts, heads, count, width = k.shape
        if not self.folds(count, k.dtype):
            return image + self(image_at, tokens_at, tokens)
        k = k * width**-0.5
        shared = len(image) == 1
        if shared:
            k = k.transpose(0, 1).flatten(1, 2)[None]  # (1, heads, P * N, d)
        if projected is None and self.folds(k.shape[2], k.dtype):
            at = (k @ self._by_head(self.q_proj.weight)).flatten(1, 2)  # (P or 1, heads * N, D)
            constant = (k @ self._by_head(self.q_proj.bias)).flatten(1, 2)  # (P or 1, heads * N, 1)
            scores = torch.baddbmm(constant, at, image_at.transpose(-2, -1)).unflatten(1, (heads, -1))
        else:
            q = self.project_queries(image_at) if projected is None else projected
            scores = k @ q.transpose(-2, -1)  # (P or 1, heads, N, M)
        if shared:
            scores = scores[0].unflatten(1, (prompts, count)).transpose(0, 1)  # (P, heads, N, M)
        weights = scores.softmax(2).flatten(1, 2)  # (P, heads * N, M)
        # The weights of a head add up to 1, so a share of the bias in each row adds up to the bias.
        rows = (
            v @ self._by_head(self.out_proj.weight.transpose(-2, -1)) + self.out_proj.bias / heads
        )  # (P, heads, N, D)
        return torch.baddbmm(image.expand(prompts, -1, -1), weights.transpose(-2, -1), rows.flatten(1, 2))  # (P, M, D)

    def project_queries(self, x: Tensor) -> Tensor:
        """(P, M, D) -> (P, heads, M, d)."""
        return self._heads(self.q_proj(x))

    def project_keys_values(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """(P, M, D) each -> (P, heads, M, d) each."""
        return self._heads(self.k_proj(keys)), self._heads(self.v_proj(values))

    def folds(self, tokens: int, dtype: torch.dtype) -> bool:
        """Whether multiplying the projections into this many tokens per image is less work, and as accurate.

        In half precision it is not: the scores would be rounded before the softmax.
        """
        few = tokens * self.num_heads < self.q_proj.out_features
        return few and dtype in (torch.float32, torch.float64) and not is_exporting()

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # (P, heads, N, d)

    def _by_head(self, x: Tensor) -> Tensor:
        """A weight (heads * d, X) or bias (heads * d,) -> (heads, d, X or 1)."""
        return x.reshape(self.num_heads, len(x) // self.num_heads, -1)


class ImageTokens(NamedTuple):
    """The image as a layer sees it; a leading 1 where it is the same for all prompts.

    keys (P or 1, hw, D); key_pe (1, hw, D), their position code; keys_at, the sum of both. keys_values and queries:
    projections of layer 0, (1, heads, hw, d), where they are worth keeping.
    """

    keys: Tensor
    key_pe: Tensor
    keys_at: Tensor
    keys_values: tuple[Tensor, Tensor] | None = None
    queries: Tensor | None = None


class TwoWayAttentionBlock(nn.Module):
    """Tokens attend to themselves and to the image, then the image attends to the tokens."""

    def __init__(self, embedding_dim: int, num_heads: int, mlp_dim: int, skip_first_layer_pe: bool) -> None:
        super().__init__()
        self.self_attn = Attention(embedding_dim, num_heads)
        self.norm1 = nn.LayerNorm(embedding_dim)
        self.cross_attn_token_to_image = Attention(embedding_dim, num_heads, downsample_rate=2)
        self.norm2 = nn.LayerNorm(embedding_dim)
        self.mlp = MLPBlock(embedding_dim, mlp_dim)
        self.norm3 = nn.LayerNorm(embedding_dim)
        self.norm4 = nn.LayerNorm(embedding_dim)
        self.cross_attn_image_to_token = Attention(embedding_dim, num_heads, downsample_rate=2)
        self.skip_first_layer_pe = skip_first_layer_pe

    def forward(self, queries: Tensor, query_pe: Tensor, image: ImageTokens) -> tuple[Tensor, Tensor]:
        """queries and query_pe (P, N, D), image -> queries (P, N, D) and keys (P, hw, D)."""
        queries = self.attend_to_tokens(queries, query_pe)
        keys, keys_at = image.keys, image.keys_at
        attend = self.cross_attn_token_to_image.image_to_tokens
        queries = self.after_image(queries, attend(queries + query_pe, keys_at, keys, image.keys_values))
        add = self.cross_attn_image_to_token.add_tokens_to_image
        return queries, self.norm4(add(keys, keys_at, queries + query_pe, queries, image.queries))

    def attend_to_tokens(self, queries: Tensor, query_pe: Tensor) -> Tensor:
        """The tokens, (P, N, D), after they attended to one another."""
        if self.skip_first_layer_pe:
            # The official first layer replaces the queries instead of adding to them.
            return self.norm1(self.self_attn(queries, queries, queries))
        q = queries + query_pe
        return self.norm1(queries + self.self_attn(q, q, queries))

    def after_image(self, queries: Tensor, attended: Tensor) -> Tensor:
        """The tokens with what they found in the image, (P, N, D) both, through norm and MLP: (P, N, D)."""
        queries = self.norm2(queries + attended)
        return self.norm3(queries + self.mlp(queries))

    def project(self, keys: Tensor, key_pe: Tensor, tokens: int) -> ImageTokens:
        """keys (1, hw, D) and key_pe (1, hw, D), shared by `tokens` tokens in all, as this layer's image."""
        keys_at = keys + key_pe
        read, write = self.cross_attn_token_to_image, self.cross_attn_image_to_token
        if read.folds(tokens, keys.dtype):
            return ImageTokens(keys, key_pe, keys_at)
        keys_values, queries = read.project_keys_values(keys_at, keys), write.project_queries(keys_at)
        return ImageTokens(keys, key_pe, keys_at, keys_values, queries)


class MLPBlock(nn.Module):
    """Linear, ReLU, linear (SAM's transformer uses ReLU here)."""

    def __init__(self, embedding_dim: int, mlp_dim: int) -> None:
        super().__init__()
        self.lin1 = nn.Linear(embedding_dim, mlp_dim)
        self.lin2 = nn.Linear(mlp_dim, embedding_dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.lin2(functional.relu(self.lin1(x)))


class TwoWayTransformer(nn.Module):
    """Prompt tokens and image tokens exchange information in both directions."""

    def __init__(self, depth: int = 2, embedding_dim: int = 256, num_heads: int = 8, mlp_dim: int = 2048) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            TwoWayAttentionBlock(embedding_dim, num_heads, mlp_dim, skip_first_layer_pe=i == 0) for i in range(depth)
        )
        self.final_attn_token_to_image = Attention(embedding_dim, num_heads, downsample_rate=2)
        self.norm_final_attn = nn.LayerNorm(embedding_dim)

    def forward(self, image: Tensor, image_pe: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """image (P or 1, D, h, w), image_pe (1, D, h, w), tokens (P, N, D) -> (P, N, D) and (P, hw, D)."""
        parts = list(self.in_parts(flatten_cells(image), flatten_cells(image_pe), tokens))
        return torch.cat([queries for queries, _ in parts]), torch.cat([keys for _, keys in parts])

    def in_parts(self, keys: Tensor, key_pe: Tensor, tokens: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """What forward returns, a few prompts at a time; keys (P or 1, hw, D), key_pe (1, hw, D), tokens (P, N, D)."""
        prompts, count, _ = tokens.shape
        whole = keys.device.type != "cpu" or is_exporting()
        parts = (tokens,) if whole else tokens.split(_PROMPTS_AT_ONCE_CPU)
        if len(keys) == 1:
            image = cast(TwoWayAttentionBlock, self.layers[0]).project(keys, key_pe, prompts * count)
            for part in parts:
                yield self._attend(image, part)
        else:
            for part, part_keys in zip(parts, (keys,) if whole else keys.split(_PROMPTS_AT_ONCE_CPU), strict=True):
                yield self._attend(ImageTokens(part_keys, key_pe, part_keys + key_pe), part)

    def _attend(self, image: ImageTokens, tokens: Tensor) -> tuple[Tensor, Tensor]:
        queries = tokens
        for layer in self.layers:
            queries, keys = layer(queries, tokens, image)
            image = ImageTokens(keys, image.key_pe, keys + image.key_pe)
        attended = self.final_attn_token_to_image.image_to_tokens(queries + tokens, image.keys_at, image.keys)
        return self.norm_final_attn(queries + attended), image.keys


def flatten_cells(image: Tensor) -> Tensor:
    """(P or 1, D, h, w) -> (P or 1, hw, D), contiguous."""
    if len(image) == 1:
        # PyTorch transposes one matrix five times as fast as a batch of one.
        return image[0].flatten(1).T.contiguous()[None]
    return image.flatten(2).transpose(1, 2).contiguous()


class MaskDecoder(nn.Module):
    """SAM's mask decoder: one mask for clear prompts, three for ambiguous ones, each with its predicted IoU."""

    def __init__(self, transformer_dim: int = 256, num_heads: int = 8, mlp_dim: int = 2048, depth: int = 2) -> None:
        super().__init__()
        self.transformer = TwoWayTransformer(depth, transformer_dim, num_heads, mlp_dim)
        self.num_mask_tokens = 4
        self.iou_token = nn.Embedding(1, transformer_dim)
        self.mask_tokens = nn.Embedding(self.num_mask_tokens, transformer_dim)
        self.output_upscaling = nn.Sequential(
            nn.ConvTranspose2d(transformer_dim, transformer_dim // 4, kernel_size=2, stride=2),
            LayerNorm2d(transformer_dim // 4),
            nn.GELU(),
            nn.ConvTranspose2d(transformer_dim // 4, transformer_dim // 8, kernel_size=2, stride=2),
            nn.GELU(),
        )
        self.output_hypernetworks_mlps = nn.ModuleList(
            MLP(transformer_dim, transformer_dim, transformer_dim // 8, 3) for _ in range(self.num_mask_tokens)
        )
        self.iou_prediction_head = MLP(transformer_dim, 256, self.num_mask_tokens, 3)

    def forward(
        self,
        image_embeddings: Tensor,
        image_pe: Tensor,
        sparse_prompt_embeddings: Tensor,
        dense_prompt_embeddings: Tensor,
        multimask: bool,
    ) -> tuple[Tensor, Tensor]:
        """image_embeddings and image_pe (1, D, h, w), sparse (P, N, D), dense (1 or P, D, h, w).

        Returns low_res_logits (P, C, 4h, 4w) and iou_predictions (P, C); C is 3 if multimask else 1.
        """
        wanted = slice(1, self.num_mask_tokens) if multimask else slice(0, 1)
        low_res_logits, iou_predictions = self.forward_all(
            image_embeddings, image_pe, sparse_prompt_embeddings, dense_prompt_embeddings, wanted
        )
        return low_res_logits, iou_predictions[:, wanted]

    def forward_all(
        self,
        image_embeddings: Tensor,
        image_pe: Tensor,
        sparse_prompt_embeddings: Tensor,
        dense_prompt_embeddings: Tensor,
        tokens: slice = slice(None),
    ) -> tuple[Tensor, Tensor]:
        """As forward, but for the masks of the mask tokens in `tokens` (a slice of 0..3), by default all four.

        Token 0 is the mask of a clear prompt, 1 to 3 those of an ambiguous one. Returns low_res_logits (P, C, 4h, 4w)
        of the chosen tokens alone and iou_predictions (P, 4) of all of them.
        """
        h, w = image_embeddings.shape[-2:]
        queries = output_tokens(self.iou_token, self.mask_tokens, sparse_prompt_embeddings)  # (P, 5 + N, D)
        keys = flatten_cells(image_embeddings) + dense_prompt_embeddings.flatten(2).transpose(-2, -1)  # (1 or P, hw, D)
        chosen = range(self.num_mask_tokens)[tokens]
        logits, scores = [], []
        for attended, cells in self.transformer.in_parts(keys, flatten_cells(image_pe), queries):
            weights = [self.output_hypernetworks_mlps[i](attended[:, 1 + i]) for i in chosen]  # C times (P, D/8)
            logits.append(self._masks(cells, torch.stack(weights, dim=1), (h, w)))
            scores.append(self.iou_prediction_head(attended[:, 0]))
        return torch.cat(logits), torch.cat(scores)

    def forward_kept(
        self,
        image_embeddings: Tensor,
        image_pe: Tensor,
        sparse_prompt_embeddings: Tensor,
        dense_prompt_embeddings: Tensor,
        tokens: slice,
        least_iou: float,
        rows: int,
    ) -> Kept:
        """As forward_all, but only the masks whose predicted IoU is above least_iou, and of each the first `rows` rows.

        iou_predictions (P, C) are those of the mask tokens in `tokens`. See also `low_rank_decoder.decode_kept`.
        """
        h, w = -(-rows // 4), image_embeddings.shape[-1]
        queries = output_tokens(self.iou_token, self.mask_tokens, sparse_prompt_embeddings)  # (P, 5 + N, D)
        keys = flatten_cells(image_embeddings) + dense_prompt_embeddings.flatten(2).transpose(-2, -1)  # (1 or P, hw, D)
        chosen = range(self.num_mask_tokens)[tokens]
        logits, scores = [], []
        for attended, cells in self.transformer.in_parts(keys, flatten_cells(image_pe), queries):
            scores.append(self.iou_prediction_head(attended[:, 0])[:, tokens])
            kept = scores[-1] > least_iou  # (P', C)
            some = kept.any(1)
            weights = torch.stack([self.output_hypernetworks_mlps[i](attended[some, 1 + i]) for i in chosen], dim=1)
            masks = self._masks(cells[some, : h * w], weights, (h, w))[kept[some]]  # (K', 4h, 4w)
            logits.append(masks[:, :rows])
        ious = torch.cat(scores)
        return Kept(torch.cat(logits), (ious > least_iou).flatten().nonzero()[:, 0], ious)

    def _masks(self, cells: Tensor, weights: Tensor, size: tuple[int, int]) -> Tensor:
        """cells (P, hw, D), weights (P, C, D/8) -> weights @ output_upscaling(cells), (P, C, 4h, 4w).

        A transposed convolution of kernel and stride 2 is a product that makes four cells of one; only the logits, not
        their channels, are put in the order of the image.
        """
        up1, norm, gelu1, up2, gelu2 = self.output_upscaling
        h, w = size
        norm = cast(LayerNorm2d, norm)
        x = _quadruple(cells, cast(nn.ConvTranspose2d, up1))  # (P, hw, 4, D/4)
        x = gelu1(functional.layer_norm(x, norm.weight.shape, norm.weight, norm.bias, norm.eps))
        x = gelu2(_quadruple(x, cast(nn.ConvTranspose2d, up2)))  # (P, hw, 4, 4, D/8)
        x = x.flatten(1, 3) @ weights.transpose(-2, -1)  # (P, 16hw, C)
        # In two steps, each of which copies longer runs than one step would: the cells' order, then masks first.
        masks = weights.shape[1]
        prompts = -1 if is_exporting() else len(weights)  # a tracer would take it for a constant
        x = x.reshape(prompts, h, w, 2, 2, 2, 2 * masks).permute(0, 1, 3, 5, 2, 4, 6)  # (P, h, 2, 2, w, 2, 2C)
        return (
            x.reshape(prompts, 16 * h * w, masks).transpose(-2, -1).reshape(prompts, masks, 4 * h, 4 * w)
        )  # (P, C, 4h, 4w)


def _quadruple(x: Tensor, layer: nn.ConvTranspose2d) -> Tensor:
    """The 2x2 cells that a transposed convolution of stride 2 makes of each cell: (..., D) -> (..., 4, D')."""
    weight = layer.weight.permute(2, 3, 1, 0).flatten(0, 2)  # (4 D', D)
    bias = cast(Tensor, layer.bias)
    return functional.linear(x, weight, bias.repeat(4)).unflatten(-1, (4, -1))  # (..., 4, D')


def output_tokens(iou_token: nn.Embedding, mask_tokens: nn.Embedding, sparse: Tensor) -> Tensor:
    """[IoU token, mask tokens, prompt tokens] for every prompt: (P, 1 + masks + N, D)."""
    learned = torch.cat([iou_token.weight, mask_tokens.weight])  # (1 + masks, D)
    return torch.cat([learned.expand(sparse.shape[0], -1, -1), sparse], dim=1)
