"""EfficientSAM: a plain ViT-Tiny or ViT-Small encoder with a prompt encoder and a mask decoder of its own.

Paper: Xiong et al., "EfficientSAM: Leveraged Masked Image Pretraining for Efficient Segment Anything", 2023.
Source: yformer/EfficientSAM@d525f62, efficient_sam/*.py (Apache-2.0). Written anew; parameter names are the official
ones, so published state_dicts load unchanged.

What is unusual here, compared with SAM:
- The image is squashed to 1024 x 1024; every block attends to all 4096 tokens, without relative positions. The position
  table is that of a 224 pixel image (14 x 14 and a class token) and is resized whenever it is used.
- A prompt is always six tokens. Unused ones are a point at (-1, -1) of the label -1 that keeps its position code and
  takes part in attention. Background points have no learned vector. There are no mask prompts.
- The two-way transformer adds its self-attention to the queries in both layers; from the second layer on the position
  code is added into the queries for good. It uses GELU, and the upscaling GroupNorm over all channels and cells.

What is done differently here, with the same numbers:
- The padding tokens of a prompt are equal and therefore stay equal in every layer: they are carried as one token, which
  counts as many times as there are of them wherever others attend to it.
- The image embedding has far more tokens (4096) than a prompt (about 8, times 8 heads). So where a prompt has changed
  it, it is not projected to keys, queries and values; their weights are folded into the prompt's few tokens instead.
"""

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from anysam.errors import PromptError, UnknownModelError
from anysam.models import Decoded, Kept, MultimaskDefault
from anysam.models.sam_decoder import PADDING, LayerNorm2d, PositionEmbeddingRandom
from anysam.preprocess import Preprocess

# Tokens of a prompt: points, or points and the two corners of a box.
MAX_POINTS = 6

# Prompts that a CPU decodes at once. Their largest tensors, 8 MB a prompt in float32, then stay below the 32 MB from
# which on the C library takes memory from the kernel and gives it back every time, which takes longer than computing.
_PROMPTS_AT_ONCE_CPU = 3

PREPROCESS = Preprocess(
    name="efficient_sam_1024",
    long_side=1024,
    pad_to=1024,
    mean=(0.485 * 255, 0.456 * 255, 0.406 * 255),
    std=(0.229 * 255, 0.224 * 255, 0.225 * 255),
    keep_aspect=False,
    antialias=False,
    mask_resize="bicubic",
)


@dataclass(frozen=True)
class EfficientSamConfig:
    """The shape of a network.

    embed_dim, num_heads, depth, mlp_ratio: of the image encoder. image_size: side of the square input, pixels.
    table_size: side of the learned position table. out_channels: D of the image embedding and of the decoder.
    decoder_mlp_dim: hidden width of the decoder's two transformer layers.
    """

    embed_dim: int
    num_heads: int
    depth: int = 12
    mlp_ratio: int = 4
    image_size: int = 1024
    patch_size: int = 16
    table_size: int = 14
    out_channels: int = 256
    decoder_mlp_dim: int = 2048

    def __post_init__(self) -> None:
        if self.embed_dim % self.num_heads:
            raise ValueError(f"embed_dim must be a multiple of num_heads, got {self.embed_dim} and {self.num_heads}")
        if self.image_size % self.patch_size:
            raise ValueError(f"image_size must be a multiple of patch_size, got {self.image_size}, {self.patch_size}")
        if self.out_channels % 16:
            raise ValueError(
                f"out_channels must be a multiple of 16 (8 heads of half the width), got {self.out_channels}"
            )


SIZES = {
    "vitt": EfficientSamConfig(embed_dim=192, num_heads=3),
    "vits": EfficientSamConfig(embed_dim=384, num_heads=6),
}


class PatchEmbed(nn.Module):
    """Patches of pixels -> tokens."""

    def __init__(self, patch_size: int, embed_dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, embed_dim, kernel_size=patch_size, stride=patch_size)

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, D, h, w)."""
        return self.proj(pixels)


class SelfAttention(nn.Module):
    """Multi-head attention of all image tokens to all."""

    def __init__(self, embed_dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(embed_dim, 3 * embed_dim)
        self.proj = nn.Linear(embed_dim, embed_dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, hw, D) -> the same shape."""
        qkv = self.qkv(x).unflatten(-1, (3, self.num_heads, -1))  # (B, hw, 3, heads, D/heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each (B, heads, hw, D/heads)
        out = functional.scaled_dot_product_attention(q, k, v)
        return self.proj(out.transpose(1, 2).flatten(2))  # (B, hw, D)


class Mlp(nn.Module):
    """Linear, GELU (erf), linear."""

    def __init__(self, embed_dim: int, mlp_dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(embed_dim, mlp_dim)
        self.fc2 = nn.Linear(mlp_dim, embed_dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(functional.gelu(self.fc1(x)))


class Block(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, embed_dim: int, num_heads: int, mlp_ratio: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(embed_dim, eps=1e-6)
        self.attn = SelfAttention(embed_dim, num_heads)
        self.norm2 = nn.LayerNorm(embed_dim, eps=1e-6)
        self.mlp = Mlp(embed_dim, embed_dim * mlp_ratio)

    def forward(self, x: Tensor) -> Tensor:
        """(B, hw, D) -> the same shape."""
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class ImageEncoderViT(nn.Module):
    """The image encoder."""

    def __init__(self, config: EfficientSamConfig) -> None:
        super().__init__()
        dim, channels = config.embed_dim, config.out_channels
        self.table_size = config.table_size
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + config.table_size**2, dim))
        self.patch_embed = PatchEmbed(config.patch_size, dim)
        self.blocks = nn.ModuleList(Block(dim, config.num_heads, config.mlp_ratio) for _ in range(config.depth))
        self.neck = nn.Sequential(
            nn.Conv2d(dim, channels, kernel_size=1, bias=False),
            LayerNorm2d(channels),
            nn.Conv2d(channels, channels, kernel_size=3, padding=1, bias=False),
            LayerNorm2d(channels),
        )

    def positions(self, height: int, width: int) -> Tensor:
        """The position table, without its class token, for a grid of another size: (1, D, height, width)."""
        side = self.table_size
        table = self.pos_embed[:, 1:].mT.unflatten(2, (side, side))  # (1, D, side, side)
        # In float32: the weights of the interpolation do not bear rounding to half precision.
        resized = functional.interpolate(table.float(), (height, width), mode="bicubic", align_corners=False)
        return resized.to(table.dtype)

    def forward(self, pixels: Tensor) -> Tensor:
        """Pixels (B, 3, image_size, image_size) -> image_embeddings (B, out_channels, h, w)."""
        x = self.patch_embed(pixels)  # (B, D, h, w)
        h, w = x.shape[-2:]
        x = (x + self.positions(h, w)).flatten(2).mT.contiguous()  # (B, hw, D)
        for block in self.blocks:
            x = block(x)
        return self.neck(x.mT.unflatten(2, (h, w)))  # (B, out_channels, h, w)


class PromptEncoder(nn.Module):
    """Points and box corners -> prompt tokens."""

    image_pe: Tensor | None

    def __init__(self, embed_dim: int, grid_size: int, image_size: int) -> None:
        super().__init__()
        self.grid_size = grid_size
        self.image_size = image_size
        self.pe_layer = PositionEmbeddingRandom(embed_dim // 2)
        self.invalid_points = nn.Embedding(1, embed_dim)
        self.point_embeddings = nn.Embedding(1, embed_dim)
        self.bbox_top_left_embeddings = nn.Embedding(1, embed_dim)
        self.bbox_bottom_right_embeddings = nn.Embedding(1, embed_dim)

        self.register_buffer("image_pe", None, persistent=False)

    def fused(self) -> "PromptEncoder":
        """The same with the position code of the image grid at hand: it takes a tenth of a prompt's time."""
        twin = copy.deepcopy(self)
        twin.image_pe = self.dense_pe()
        return twin

    def dense_pe(self) -> Tensor:
        """Position code of the image grid: (1, D, h, w)."""
        if self.image_pe is not None:
            return self.image_pe
        return self.pe_layer.grid(self.grid_size, self.grid_size, (self.grid_size, self.grid_size))

    def forward(self, points: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Points (P, N, 2) input-frame pixels, labels (P, N) in -1..3, at most MAX_POINTS of them not -1.

        Returns sparse_prompt_embeddings (P, N + 1, D) and log_counts (P, N + 1): how many tokens each one stands for.
        The last token stands for all the padding; a -1 among the labels counts nothing (log 0) in its own place.
        """
        valid = labels != PADDING  # (P, N)
        labels = functional.pad(labels, (0, 1), value=PADDING)  # (P, N + 1)
        points = functional.pad(points, (0, 0, 0, 1), value=-1.0)  # (P, N + 1, 2)
        background = torch.zeros_like(self.point_embeddings.weight)
        vectors = torch.cat(
            [
                self.invalid_points.weight,
                background,
                self.point_embeddings.weight,
                self.bbox_top_left_embeddings.weight,
                self.bbox_bottom_right_embeddings.weight,
            ]
        )  # (5, D), in the order of the labels
        sparse = self.pe_layer.encode((points + 0.5) / self.image_size) + vectors[labels + 1]  # (P, N + 1, D)
        padding = MAX_POINTS - valid.sum(dim=1, keepdim=True)  # (P, 1)
        log_counts = torch.cat([valid, padding], dim=1).to(sparse.dtype).log()  # (P, N + 1)
        return sparse, log_counts


class Attention(nn.Module):
    """Multi-head attention among prompt tokens (T), or between them and far more image tokens (M)."""

    def __init__(self, embedding_dim: int, num_heads: int, downsample_rate: int = 1) -> None:
        super().__init__()
        internal_dim = embedding_dim // downsample_rate
        self.num_heads = num_heads
        self.scale = (internal_dim // num_heads) ** -0.5
        self.q_proj = nn.Linear(embedding_dim, internal_dim)
        self.k_proj = nn.Linear(embedding_dim, internal_dim)
        self.v_proj = nn.Linear(embedding_dim, internal_dim)
        self.out_proj = nn.Linear(internal_dim, embedding_dim)

    def forward(self, tokens: Tensor, bias: Tensor) -> Tensor:
        """tokens (P, T, D), bias (P, T) on the logits -> what each finds in all, (P, T, D)."""
        q, k, v = (self.heads(proj(tokens)) for proj in (self.q_proj, self.k_proj, self.v_proj))
        out = functional.scaled_dot_product_attention(q, k, v, attn_mask=bias[:, None, None])  # (P, heads, T, D/heads)
        return self.out_proj(out.transpose(1, 2).flatten(2))  # (P, T, D)

    def read_image(self, tokens: Tensor, image_at: Tensor, image: Tensor) -> Tensor:
        """What tokens (P, T, D) find in images: keys image_at and values image, each (P or 1, M, D); -> (P, T, D)."""
        # (q W_q) (k W_k + b_k)^T is q W_q W_k^T k^T plus what is the same for all keys, which a softmax does not see.
        folded = (self.heads(self.q_proj(tokens)) * self.scale) @ self._by_head(self.k_proj)  # (P, heads, T, D)
        weights = (folded.flatten(1, 2) @ image_at.mT).softmax(dim=-1)  # (P, heads * T, M)
        found = (weights @ image).unflatten(1, folded.shape[1:3])  # (P, heads, T, D)
        # The values' bias comes after the average, because weights sum to 1.
        out = (found @ self._by_head(self.v_proj).mT).transpose(1, 2).flatten(2) + self.v_proj.bias
        return self.out_proj(out)  # (P, T, D)

    def read_projected_image(self, tokens: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """The same on one image, projected to k and v (1, heads, M, D/heads)."""
        # The tokens of all prompts ask as if they were those of one.
        q = self.heads(self.q_proj(tokens.flatten(0, 1)[None]))  # (1, heads, P * T, D/heads)
        out = functional.scaled_dot_product_attention(q, k, v)[0].transpose(0, 1).flatten(1)  # (P * T, D')
        return self.out_proj(out).unflatten(0, tokens.shape[:2])  # (P, T, D)

    def write_image(
        self, image: Tensor, image_at: Tensor, q: Tensor | None, tokens: Tensor, tokens_at: Tensor, bias: Tensor
    ) -> Tensor:
        """Images (P or 1, M, D), plus what they find in prompt tokens (P, T, D): (P, M, D).

        image_at: asks, as long as image; or q (1, heads, M, D/heads), the same one projected. tokens_at: the keys
        (P, T, D). bias: (P, T) on the logits.
        """
        k = self.heads(self.k_proj(tokens_at)) * self.scale  # (P, heads, T, D/heads)
        bias = bias[:, None, :, None]  # (P, 1, T, 1)
        if q is None:
            folded = k @ self._by_head(self.q_proj)  # (P, heads, T, D)
            bias = k @ self.q_proj.bias.reshape(self.num_heads, -1, 1) + bias  # (P, heads, T, 1)
            image_at = image_at.expand(len(tokens), -1, -1)
            logits = torch.baddbmm(bias.flatten(1, 2), folded.flatten(1, 2), image_at.mT)  # (P, heads * T, M)
            logits = logits.unflatten(1, folded.shape[1:3])  # (P, heads, T, M)
        else:
            logits = (k.transpose(0, 1).flatten(1, 2) @ q[0].mT).unflatten(1, k.shape[::2])  # (heads, P, T, M)
            logits = logits.transpose(0, 1) + bias  # (P, heads, T, M)
        weights = logits.softmax(dim=2).flatten(1, 2)  # (P, heads * T, M)
        out_weight = self.out_proj.weight.mT.unflatten(0, (self.num_heads, -1))  # (heads, D/heads, D)
        # The weights of each head sum to 1, so each brings its share of the output's bias.
        values = self.heads(self.v_proj(tokens)) @ out_weight + self.out_proj.bias / self.num_heads
        return torch.baddbmm(image, weights.mT, values.flatten(1, 2))  # (P, M, D)

    def heads(self, x: Tensor) -> Tensor:
        """(P, N, D') -> (P, heads, N, D'/heads)."""
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

    def _by_head(self, linear: nn.Linear) -> Tensor:
        return linear.weight.unflatten(0, (self.num_heads, -1))  # (heads, D'/heads, D)


class MLPBlock(nn.Module):
    """Linear layers, GELU after each but the last."""

    def __init__(self, input_dim: int, hidden_dim: int, output_dim: int, num_hidden: int) -> None:
        super().__init__()
        widths = [input_dim] + [hidden_dim] * num_hidden
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Linear(a, b), nn.GELU()) for a, b in zip(widths[:-1], widths[1:], strict=True)
        )
        self.fc = nn.Linear(hidden_dim, output_dim)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return self.fc(x)


class Projected(NamedTuple):
    """An image that many prompts share, projected once for the first layer; each (1, heads, M, D/heads).

    k, v: for the tokens that read the image. q: for the image that reads the tokens.
    """

    k: Tensor
    v: Tensor
    q: Tensor


class TwoWayAttentionBlock(nn.Module):
    """Tokens attend to themselves and to the image, then the image attends to the tokens."""

    def __init__(self, embedding_dim: int, num_heads: int, mlp_dim: int, skip_first_layer_pe: bool) -> None:
        super().__init__()
        self.self_attn = Attention(embedding_dim, num_heads)
        self.norm1 = nn.LayerNorm(embedding_dim)
        self.cross_attn_token_to_image = Attention(embedding_dim, num_heads, downsample_rate=2)
        self.norm2 = nn.LayerNorm(embedding_dim)
        self.mlp = MLPBlock(embedding_dim, mlp_dim, embedding_dim, num_hidden=1)
        self.norm3 = nn.LayerNorm(embedding_dim)
        self.norm4 = nn.LayerNorm(embedding_dim)
        self.cross_attn_image_to_token = Attention(embedding_dim, num_heads, downsample_rate=2)
        self.skip_first_layer_pe = skip_first_layer_pe

    def project(self, keys: Tensor, keys_at: Tensor) -> Projected:
        """One image (1, M, D), without and with its positions, projected for many prompts."""
        read, write = self.cross_attn_token_to_image, self.cross_attn_image_to_token
        k, v, q = read.k_proj(keys_at), read.v_proj(keys), write.q_proj(keys_at)
        return Projected(read.heads(k), read.heads(v), write.heads(q).contiguous())

    def forward(
        self,
        queries: Tensor,
        query_pe: Tensor,
        keys: Tensor,
        keys_at: Tensor,
        projected: Projected | None,
        log_counts: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """queries, query_pe (P, T, D), log_counts (P, T); keys, keys_at (P or 1, M, D), projected: the same or None.

        Returns the queries and the keys, now with P in front.
        """
        if not self.skip_first_layer_pe:
            queries = queries + query_pe
        queries = self.norm1(queries + self.self_attn(queries, log_counts))
        if projected is None:
            found = self.cross_attn_token_to_image.read_image(queries + query_pe, keys_at, keys)
        else:
            found = self.cross_attn_token_to_image.read_projected_image(queries + query_pe, projected.k, projected.v)
        queries = self.norm2(queries + found)
        queries = self.norm3(queries + self.mlp(queries))
        q = None if projected is None else projected.q
        keys = self.cross_attn_image_to_token.write_image(keys, keys_at, q, queries, queries + query_pe, log_counts)
        return queries, self.norm4(keys)


class TwoWayTransformer(nn.Module):
    """Prompt tokens and image tokens exchange information in both directions."""

    def __init__(self, embedding_dim: int, mlp_dim: int, depth: int = 2, num_heads: int = 8) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            TwoWayAttentionBlock(embedding_dim, num_heads, mlp_dim, skip_first_layer_pe=i == 0) for i in range(depth)
        )
        self.final_attn_token_to_image = Attention(embedding_dim, num_heads, downsample_rate=2)
        self.norm_final_attn = nn.LayerNorm(embedding_dim)

    def project(self, image: Tensor, image_pe: Tensor) -> Projected:
        """One image and its positions (1, M, D), projected for the first layer."""
        return cast(TwoWayAttentionBlock, self.layers[0]).project(image, image + image_pe)

    def forward(
        self,
        image: Tensor,
        image_pe: Tensor,
        projected: Projected | None,
        tokens: Tensor,
        log_counts: Tensor,
        wanted: list[int],
    ) -> tuple[Tensor, Tensor]:
        """image, image_pe (1, M, D), tokens (P, T, D), log_counts (P, T).

        projected: what `project` made of the image, or None, which is quicker for one or two prompts.
        Returns those tokens that are wanted, (P, len(wanted), D), and the image for each prompt, (P, M, D).
        """
        queries, keys = tokens, image
        for layer in self.layers:
            queries, keys = layer(queries, tokens, keys, keys + image_pe, projected, log_counts)
            projected = None  # from here on each prompt has an image of its own
        queries, tokens = queries[:, wanted], tokens[:, wanted]
        queries = queries + self.final_attn_token_to_image.read_image(queries + tokens, keys + image_pe, keys)
        return self.norm_final_attn(queries), keys


class MaskDecoder(nn.Module):
    """One mask, or three for an ambiguous prompt, each with its predicted IoU."""

    def __init__(self, transformer_dim: int, mlp_dim: int) -> None:
        super().__init__()
        self.transformer = TwoWayTransformer(transformer_dim, mlp_dim)
        self.num_mask_tokens = 4
        self.iou_token = nn.Embedding(1, transformer_dim)
        self.mask_tokens = nn.Embedding(self.num_mask_tokens, transformer_dim)
        middle, last = transformer_dim // 4, transformer_dim // 8
        self.final_output_upscaling_layers = nn.ModuleList(
            [
                nn.Sequential(
                    nn.ConvTranspose2d(transformer_dim, middle, kernel_size=2, stride=2),
                    nn.GroupNorm(1, middle),
                    nn.GELU(),
                ),
                nn.Sequential(nn.ConvTranspose2d(middle, last, kernel_size=2, stride=2), nn.Identity(), nn.GELU()),
            ]
        )
        self.output_hypernetworks_mlps = nn.ModuleList(
            MLPBlock(transformer_dim, transformer_dim, last, num_hidden=2) for _ in range(self.num_mask_tokens)
        )
        self.iou_prediction_head = MLPBlock(transformer_dim, 256, self.num_mask_tokens, num_hidden=2)

    def forward(
        self,
        image_embeddings: Tensor,
        image_pe: Tensor,
        sparse_prompt_embeddings: Tensor,
        log_counts: Tensor,
        multimask: bool,
    ) -> tuple[Tensor, Tensor]:
        """image_embeddings and image_pe (1, D, h, w), sparse (P, N, D), log_counts (P, N) of the sparse tokens.

        Returns low_res_logits (P, C, 4h, 4w) and iou_predictions (P, C); C is 3 if multimask else 1.
        """
        h, w = image_embeddings.shape[-2:]
        chosen = self._chosen(multimask)
        parts = self._attend(image_embeddings, image_pe, sparse_prompt_embeddings, log_counts, chosen)
        logits, scores = [], []
        for queries, keys in parts:
            logits.append(self._weights(queries, chosen) @ self._upscale(keys).mT)  # (p, C, 16hw)
            scores.append(self.iou_prediction_head(queries[:, 0])[:, chosen])
        return _in_place(torch.cat(logits), h, w), torch.cat(scores)

    def forward_kept(
        self,
        image_embeddings: Tensor,
        image_pe: Tensor,
        sparse_prompt_embeddings: Tensor,
        log_counts: Tensor,
        multimask: bool,
        least_iou: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """As forward, but only the masks whose predicted IoU is above least_iou, and only their prompts upscaled.

        Returns low_res_logits (K, 4h, 4w), candidates (K,) int64, p * C + c of each, and iou_predictions (P, C).
        """
        h, w = image_embeddings.shape[-2:]
        chosen = self._chosen(multimask)
        parts = self._attend(image_embeddings, image_pe, sparse_prompt_embeddings, log_counts, chosen)
        logits, scores = [image_embeddings.new_zeros(0, 4 * h, 4 * w)], []
        for queries, keys in parts:
            scores.append(self.iou_prediction_head(queries[:, 0])[:, chosen])
            kept = scores[-1] > least_iou  # (p, C)
            some = kept.any(dim=1)
            if bool(some.any()):
                masks = self._weights(queries[some], chosen) @ self._upscale(keys[some]).mT  # (p', C, 16hw)
                logits.append(_in_place(masks[kept[some]], h, w))  # (k, 4h, 4w)
        iou_predictions = torch.cat(scores)
        return torch.cat(logits), (iou_predictions > least_iou).flatten().nonzero()[:, 0], iou_predictions

    def _attend(
        self, image_embeddings: Tensor, image_pe: Tensor, sparse: Tensor, log_counts: Tensor, chosen: list[int]
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """The IoU token and the chosen mask tokens (p, 1 + C, D), and the image (p, hw, D), a few prompts at a time."""
        learned = torch.cat([self.iou_token.weight, self.mask_tokens.weight])  # (5, D)
        prompts = len(sparse)
        tokens = torch.cat([learned.expand(prompts, -1, -1), sparse], dim=1)  # (P, 5 + N, D)
        log_counts = functional.pad(log_counts, (len(learned), 0))  # (P, 5 + N)
        image, positions = image_embeddings.flatten(2).mT.contiguous(), image_pe.flatten(2).mT  # (1, hw, D)
        projected = self.transformer.project(image, positions) if prompts > 2 else None
        at_once = _PROMPTS_AT_ONCE_CPU if tokens.device.type == "cpu" else prompts
        wanted = [0] + [1 + i for i in chosen]
        for part in zip(tokens.split(at_once), log_counts.split(at_once), strict=True):
            yield self.transformer(image, positions, projected, *part, wanted)

    def _chosen(self, multimask: bool) -> list[int]:
        return list(range(1, self.num_mask_tokens)) if multimask else [0]

    def _weights(self, queries: Tensor, chosen: list[int]) -> Tensor:
        """Of `_attend`'s tokens (p, 1 + C, D) and upscaled cells, the masks are the products: (p, C, D/8)."""
        weights = [self.output_hypernetworks_mlps[i](queries[:, 1 + j]) for j, i in enumerate(chosen)]
        return torch.stack(weights, dim=1)

    def _upscale(self, keys: Tensor) -> Tensor:
        """Cells (P, hw, D) -> finer cells (P, 16hw, D/8), in the order of (h, w, 2, 2, 2, 2): y x y x y x.

        Only the masks, which are far smaller, are put into the order of an image.
        """
        first, second = (cast(nn.Sequential, layer) for layer in self.final_output_upscaling_layers)
        x = _split_cells(cast(nn.ConvTranspose2d, first[0]), keys)  # (P, 4hw, D/4)
        # As (P, D/4, hw, 4) in channels_last, which GroupNorm takes as it is.
        x = first[1](x.unflatten(1, (-1, 4)).permute(0, 3, 1, 2))
        x = functional.gelu(x.permute(0, 2, 3, 1).flatten(1, 2))  # (P, 4hw, D/4)
        return functional.gelu(_split_cells(cast(nn.ConvTranspose2d, second[0]), x))  # (P, 16hw, D/8)


def _in_place(logits: Tensor, h: int, w: int) -> Tensor:
    """Logits of cells (..., 16hw), in `_upscale`'s order of h, w, and twice 2 x 2 -> (..., 4h, 4w)."""
    leading = logits.shape[:-1]
    # In two steps, because a copy of longer rows is quicker.
    logits = logits.reshape(-1, h, w, 2, 2, 4).transpose(2, 3).reshape(-1, 2 * h, 2 * w, 2, 2)
    return logits.transpose(2, 3).reshape(*leading, 4 * h, 4 * w)


def _split_cells(layer: nn.ConvTranspose2d, cells: Tensor) -> Tensor:
    """A transposed convolution of kernel and stride 2, as a product: (P, N, D) -> (P, 4N, D'), each cell's 2 x 2."""
    weight = layer.weight.permute(2, 3, 1, 0).flatten(0, 2)  # (2 * 2 * D', D)
    assert layer.bias is not None
    split = functional.linear(cells, weight, layer.bias.repeat(4))  # (P, N, 4 D')
    return split.unflatten(2, (4, -1)).flatten(1, 2)  # (P, 4N, D')


class EfficientSam(nn.Module):
    """EfficientSAM as a PromptableModel."""

    multimask_default: MultimaskDefault = "always"
    float32_parts: tuple[str, ...] = ("prompt_encoder", "mask_decoder")

    def __init__(
        self,
        image_encoder: ImageEncoderViT,
        prompt_encoder: PromptEncoder,
        mask_decoder: MaskDecoder,
        preprocess: Preprocess,
    ) -> None:
        super().__init__()
        self.image_encoder = image_encoder
        self.prompt_encoder = prompt_encoder
        self.mask_decoder = mask_decoder
        self.preprocess = preprocess

    def encode_image(self, pixels: Tensor) -> dict[str, Tensor]:
        """Pixels (B, 3, H, W) -> {"image_embeddings": (B, D, h, w)}."""
        return {"image_embeddings": self.image_encoder(pixels)}

    def decode(
        self, features: dict[str, Tensor], points: Tensor, labels: Tensor, mask_logits: Tensor | None, multimask: bool
    ) -> Decoded:
        """See PromptableModel.decode: low_res_logits (P, C, 4h, 4w) and iou_predictions (P, C), C 3 or 1.

        mask_logits must be None. Prompts of a batch may be of unequal length, padded with label -1 in any place.
        Raises PromptError for more than six points, where a box counts as two.
        """
        assert mask_logits is None, "EfficientSAM has no mask prompts"
        sparse, log_counts = self._encode_prompts(points, labels)
        image_pe = self.prompt_encoder.dense_pe()  # (1, D, h, w)
        return Decoded(*self.mask_decoder(features["image_embeddings"], image_pe, sparse, log_counts, multimask))

    def decode_kept(
        self,
        features: dict[str, Tensor],
        points: Tensor,
        labels: Tensor,
        multimask: bool,
        least_iou: float,
        rows: int,
    ) -> Kept:
        """See KeepingModel.decode_kept; points and labels as in decode.

        An image fills the whole input, so rows are cut only at the end, should fewer be wanted.
        """
        sparse, log_counts = self._encode_prompts(points, labels)
        image_pe = self.prompt_encoder.dense_pe()  # (1, D, h, w)
        logits, candidates, iou_predictions = self.mask_decoder.forward_kept(
            features["image_embeddings"], image_pe, sparse, log_counts, multimask, least_iou
        )
        return Kept(logits[:, :rows], candidates, iou_predictions)

    def _encode_prompts(self, points: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Prompts as decode takes them -> what `PromptEncoder.forward` returns."""
        valid = labels != PADDING  # (P, N)
        if labels.shape[1] > MAX_POINTS and bool((count := valid.sum(dim=1).max()) > MAX_POINTS):
            raise PromptError(
                f"EfficientSAM takes at most {MAX_POINTS} points in a prompt, where a box counts as two; "
                f"got {int(count)}. Leave some out."
            )
        if not bool(valid[:, -1].any()):
            # Padding counts by what is missing to six tokens; the column itself only costs time.
            points, labels = points[:, :-1], labels[:, :-1]
        return self.prompt_encoder(points, labels)


def build_efficient_sam(config: EfficientSamConfig, preprocess: Preprocess) -> EfficientSam:
    """EfficientSAM of any shape, with random weights."""
    prompt_encoder = PromptEncoder(config.out_channels, config.image_size // config.patch_size, config.image_size)
    decoder = MaskDecoder(config.out_channels, config.decoder_mlp_dim)
    return EfficientSam(ImageEncoderViT(config), prompt_encoder, decoder, preprocess)


def build(size: str) -> EfficientSam:
    """EfficientSAM with random weights; `size` is vitt or vits. Raises UnknownModelError for another size."""
    if size not in SIZES:
        raise UnknownModelError(f"EfficientSAM has no size {size!r}; its sizes are {', '.join(SIZES)}.")
    return build_efficient_sam(SIZES[size], PREPROCESS)
