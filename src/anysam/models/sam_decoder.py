"""SAM's prompt encoder, two-way transformer and mask decoder: the part that most of the family shares.

Paper: Kirillov et al., "Segment Anything", 2023, section 3 and appendix A ("Lightweight mask decoder").
Source: facebookresearch/segment-anything@dca509f, segment_anything/modeling/ (prompt_encoder.py, transformer.py and
mask_decoder.py; Apache-2.0). Written anew; parameter names are the official ones, so published state_dicts load
unchanged.

What is unusual here: tensors that are the same for all prompts (the image embedding, its position code, the dense
embedding when no mask is given) keep a leading dimension of 1 for as long as they are equal, so the first layer's
image-side projections are computed once for a whole batch of prompts.
"""

import math
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

# Labels of prompt tokens, as in the official point_embeddings table.
PADDING, BACKGROUND, FOREGROUND, BOX_TOP_LEFT, BOX_BOTTOM_RIGHT = -1, 0, 1, 2, 3


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
    """Multi-head attention whose inner width may be smaller than the embedding's."""

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
        batch = max(q.shape[0], k.shape[0])
        q, k, v = (t.expand(batch, -1, -1, -1) for t in (q, k, v))  # (P, heads, N or M, D/heads)
        out = functional.scaled_dot_product_attention(q, k, v)
        return self.out_proj(out.transpose(1, 2).flatten(2))  # (P, N, D)

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # (P, heads, N, D/heads)


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

    def forward(self, queries: Tensor, keys: Tensor, query_pe: Tensor, key_pe: Tensor) -> tuple[Tensor, Tensor]:
        """queries (P, N, D), keys (P or 1, hw, D) -> the same, keys now with P in front."""
        if self.skip_first_layer_pe:
            # The official first layer replaces the queries instead of adding to them.
            queries = self.self_attn(queries, queries, queries)
        else:
            q = queries + query_pe
            queries = queries + self.self_attn(q, q, queries)
        queries = self.norm1(queries)
        keys_at = keys + key_pe
        queries = self.norm2(queries + self.cross_attn_token_to_image(queries + query_pe, keys_at, keys))
        queries = self.norm3(queries + self.mlp(queries))
        keys = self.norm4(keys + self.cross_attn_image_to_token(keys_at, queries + query_pe, queries))
        return queries, keys


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
        keys = image.flatten(2).transpose(1, 2)  # (P or 1, hw, D)
        key_pe = image_pe.flatten(2).transpose(1, 2)  # (1, hw, D)
        queries = tokens
        for layer in self.layers:
            queries, keys = layer(queries, keys, tokens, key_pe)
        attended = self.final_attn_token_to_image(queries + tokens, keys + key_pe, keys)
        return self.norm_final_attn(queries + attended), keys


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
        tokens = output_tokens(self.iou_token, self.mask_tokens, sparse_prompt_embeddings)  # (P, 5 + N, D)
        h, w = image_embeddings.shape[-2:]
        queries, keys = self.transformer(image_embeddings + dense_prompt_embeddings, image_pe, tokens)
        chosen = range(1, self.num_mask_tokens) if multimask else range(1)
        src = keys.transpose(1, 2).unflatten(2, (h, w))  # (P, D, h, w)
        upscaled = self.output_upscaling(src)  # (P, D/8, 4h, 4w)
        weights = [self.output_hypernetworks_mlps[i](queries[:, 1 + i]) for i in chosen]  # C times (P, D/8)
        low_res_logits = torch.stack(weights, dim=1) @ upscaled.flatten(2)  # (P, C, 16hw)
        low_res_logits = low_res_logits.unflatten(2, upscaled.shape[-2:])  # (P, C, 4h, 4w)
        iou_predictions = self.iou_prediction_head(queries[:, 0])  # (P, 4)
        return low_res_logits, iou_predictions[:, chosen.start : chosen.stop]


def output_tokens(iou_token: nn.Embedding, mask_tokens: nn.Embedding, sparse: Tensor) -> Tensor:
    """[IoU token, mask tokens, prompt tokens] for every prompt: (P, 1 + masks + N, D)."""
    learned = torch.cat([iou_token.weight, mask_tokens.weight])  # (1 + masks, D)
    return torch.cat([learned.expand(sparse.shape[0], -1, -1), sparse], dim=1)
