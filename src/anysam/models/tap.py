"""Tokenize Anything (TAP): masks, and for each mask a semantic token that names and describes it.

Paper: Pan et al., "Tokenize Anything via Prompting", 2023. Source: baaivision/tokenize-anything@9cefd56,
tokenize_anything/modeling/{image_encoder,prompt_encoder,image_decoder,image_tokenizer}.py and models/easy_build.py
(Apache-2.0). Written anew; parameter names are the official ones, so published state_dicts load unchanged. Versions 1.0
and 1.1 differ in training only. Concepts and captions: tap_text.py.

What is unusual here:
- Images enter as BGR, padded with the mean colour cut to whole numbers. The checkpoint holds mean and 1 / std too
  (`pixel_mean`, `pixel_rsig`), possibly rounded to float16; the network corrects the pixels for the difference.
- Every block attends within windows of 16 x 16 tokens, without shift; only a convolution after each quarter of the
  blocks looks further. So tokens stay in window order, and only what enters a 3 x 3 convolution is put together.
- A prompt's box corners come first. With a box the mask of token 0 is meant, without one the best of tokens 1 to 3.
- The published numbers have pi = 3.1415926, and IoU predictions that a sigmoid never saw.
"""

from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from anysam.errors import PromptError, UnknownModelError
from anysam.models import Decoded, Kept, MultimaskDefault
from anysam.models.layers import fuse_conv_bn
from anysam.models.tap_text import TextConfig, TextDecoder
from anysam.preprocess import Preprocess

PREPROCESS = Preprocess(
    name="tap_1024",
    long_side=1024,
    pad_to=1024,
    mean=(103.53, 116.28, 123.675),
    std=(57.375, 57.12, 58.395),
    bgr=True,
    pad_colour=(103, 116, 123),
    uniform_prompt_scale=True,
)

MASKS = 4  # masks per prompt: token 0 for a box, 1 to 3 for an ambiguous prompt

# The published constant; it moves no point visibly, but costs nothing to keep.
_PI = 3.1415926

# Prompts of `decode_kept` whose image tokens (4 MB each in float32) are held at once on a CPU.
_PROMPTS_AT_ONCE_CPU = 3

# Labels of prompt tokens, as in the official point_embed table.
_TOP_LEFT, _PADDING = 2, 4


@dataclass(frozen=True)
class TapConfig:
    """The shape of a network.

    embed_dim, depth, num_heads: of the image encoder. image_size: side of the square input, pixels. out_channels: of
    the image embedding and the mask decoder. text: the caption decoder.
    """

    embed_dim: int
    depth: int
    num_heads: int
    image_size: int = 1024
    patch_size: int = 16
    window_size: int = 16
    mlp_ratio: int = 4
    out_channels: int = 256
    decoder_mlp_dim: int = 2048
    semantic_dim: int = 1024
    text: TextConfig = field(default_factory=TextConfig)

    def __post_init__(self) -> None:
        if self.embed_dim % self.num_heads:
            raise ValueError(f"embed_dim must be a multiple of num_heads, got {self.embed_dim} and {self.num_heads}")
        if self.depth % 4 or self.depth < 4:
            raise ValueError(f"depth must be a multiple of 4, got {self.depth}")
        if self.image_size % (self.patch_size * self.window_size):
            raise ValueError(f"image_size must be a multiple of patch_size * window_size, got {self}")
        if self.out_channels % 32:
            raise ValueError(f"out_channels must be a multiple of 32, got {self.out_channels}")

    @property
    def grid_size(self) -> int:
        """Side of the square token grid."""
        return self.image_size // self.patch_size


SIZES = {
    "vit_b": TapConfig(embed_dim=768, depth=12, num_heads=12),
    "vit_l": TapConfig(embed_dim=1024, depth=24, num_heads=16),
    "vit_h": TapConfig(embed_dim=1280, depth=32, num_heads=16),
}


def to_windows(x: Tensor, side: int) -> Tensor:
    """(B, h, w, D) -> (windows, side, side, D): each image's windows row by row, the images one after the other."""
    batch, height, width, _ = x.shape
    x = x.reshape(batch, height // side, side, width // side, side, -1)
    return x.transpose(2, 3).flatten(0, 2)  # (windows, side, side, D)


def from_windows(x: Tensor, grid: int) -> Tensor:
    """(windows, side, side, D) of square images -> (B, grid, grid, D)."""
    side = x.shape[1]
    x = x.reshape(-1, grid // side, grid // side, side, side, x.shape[-1])
    return x.transpose(2, 3).reshape(-1, grid, grid, x.shape[-1])  # (B, grid, grid, D)


class PatchEmbed(nn.Module):
    """Patches of pixels -> tokens."""

    def __init__(self, patch_size: int, embed_dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, embed_dim, kernel_size=patch_size, stride=patch_size)

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, h, w, D). As a matrix product, which in half precision is far faster on a CPU."""
        side = self.proj.weight.shape[-1]
        patches = pixels.unflatten(3, (-1, side)).unflatten(2, (-1, side))  # (B, 3, h, side, w, side)
        patches = patches.permute(0, 2, 4, 1, 3, 5).flatten(3)  # (B, h, w, 3 * side * side)
        return functional.linear(patches, self.proj.weight.flatten(1), self.proj.bias)


class PosEmbed(nn.Module):
    """A learned vector for each place of the grid, row by row."""

    def __init__(self, embed_dim: int, places: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(places, embed_dim))
        nn.init.normal_(self.weight, std=0.02)


class RelPosEmbed(nn.Module):
    """A learned attention bias for each head and each offset of two places in a window."""

    index: Tensor

    def __init__(self, num_heads: int, side: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(num_heads, (2 * side - 1) ** 2))
        place = torch.arange(side * side)
        offsets = place[:, None] // side - place // side, place[:, None] % side - place % side  # down, across
        self.register_buffer("index", (offsets[0] + side - 1) * (2 * side - 1) + offsets[1] + side - 1)

    def forward(self) -> Tensor:
        """(heads, side * side, side * side), query then key."""
        return self.weight[:, self.index]


class Attention(nn.Module):
    """Multi-head attention within windows."""

    def __init__(self, embed_dim: int, num_heads: int, window: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(embed_dim, 3 * embed_dim)
        self.proj = nn.Linear(embed_dim, embed_dim)
        self.rel_pos_embed = RelPosEmbed(num_heads, window)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        """x (windows, n, D), bias (1, heads, n, n) as rel_pos_embed gives it -> (windows, n, D)."""
        qkv = self.qkv(x).unflatten(-1, (3, self.num_heads, -1))  # (windows, n, 3, heads, D/heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # each (windows, heads, n, D/heads)
        out = functional.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        return self.proj(out.transpose(1, 2).flatten(2))  # (windows, n, D)


class MLP(nn.Module):
    """Two linear layers, with GELU (erf) between them in the encoder and ReLU in the decoder."""

    def __init__(self, dim: int, mlp_dim: int, activation: nn.Module) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, mlp_dim)
        self.fc2 = nn.Linear(mlp_dim, dim)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.activation(self.fc1(x)))


class Block(nn.Module):
    """Pre-norm transformer block of the image encoder."""

    def __init__(self, config: TapConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.embed_dim)
        self.attn = Attention(config.embed_dim, config.num_heads, config.window_size)
        self.norm2 = nn.LayerNorm(config.embed_dim)
        self.mlp = MLP(config.embed_dim, config.embed_dim * config.mlp_ratio, nn.GELU())

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (windows, n, D) -> the same shape."""
        x = x + self.attn(self.norm1(x), self.attn.rel_pos_embed()[None])
        return x + self.mlp(self.norm2(x))


class Bottleneck(nn.Module):
    """Residual 1x1, 3x3, 1x1 convolutions: the only way from window to window."""

    def __init__(self, dim: int, grid: int) -> None:
        super().__init__()
        width = dim // 2
        self.conv1 = nn.Conv2d(dim, width, kernel_size=1, bias=False)
        self.norm1: nn.Module = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, kernel_size=3, padding=1, bias=False)
        self.norm2: nn.Module = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, dim, kernel_size=1, bias=False)
        self.norm3: nn.Module = nn.BatchNorm2d(dim)
        self.grid = grid

    def forward(self, x: Tensor) -> Tensor:
        """(windows, side, side, D) -> the same shape. Channels last throughout: the permutes move nothing."""
        y = functional.gelu(self.norm1(self.conv1(x.permute(0, 3, 1, 2))))  # (windows, D/2, side, side)
        y = from_windows(y.permute(0, 2, 3, 1), self.grid).permute(0, 3, 1, 2)  # (B, D/2, grid, grid)
        y = functional.gelu(self.norm2(self.conv2(y)))
        y = to_windows(y.permute(0, 2, 3, 1), x.shape[1]).permute(0, 3, 1, 2)  # (windows, D/2, side, side)
        return x + self.norm3(self.conv3(y)).permute(0, 2, 3, 1)

    def fused(self) -> "Bottleneck":
        """The same with the batch norms joined to the convolutions."""
        if not isinstance(self.norm1, nn.BatchNorm2d):
            return self  # it already is
        joined = Bottleneck(self.conv3.out_channels, self.grid).train(self.training)
        joined.conv1, joined.norm1 = fuse_conv_bn(self.conv1, self.norm1), nn.Identity()
        joined.conv2, joined.norm2 = fuse_conv_bn(self.conv2, cast(nn.BatchNorm2d, self.norm2)), nn.Identity()
        joined.conv3, joined.norm3 = fuse_conv_bn(self.conv3, cast(nn.BatchNorm2d, self.norm3)), nn.Identity()
        return joined


class Neck(nn.Module):
    """Tokens -> image embedding, by a 1x1 and a 3x3 convolution. (Published: one level of a feature pyramid.)"""

    def __init__(self, dim: int, out_channels: int, grid: int) -> None:
        super().__init__()
        lateral = nn.Conv2d(dim, out_channels, kernel_size=1, bias=False)
        output = nn.Conv2d(out_channels, out_channels, kernel_size=3, padding=1, bias=False)
        self.lateral_conv = nn.ModuleList([nn.Sequential(lateral, nn.BatchNorm2d(out_channels))])
        self.output_conv = nn.ModuleList([nn.Sequential(output, nn.BatchNorm2d(out_channels))])
        self.grid = grid

    def forward(self, x: Tensor) -> Tensor:
        """(windows, side, side, D) -> (B, out_channels, grid, grid)."""
        x = self.lateral_conv[0](x.permute(0, 3, 1, 2))  # (windows, out_channels, side, side)
        x = from_windows(x.permute(0, 2, 3, 1), self.grid)  # (B, grid, grid, out_channels)
        return self.output_conv[0](x.permute(0, 3, 1, 2))

    def fused(self) -> "Neck":
        """The same with the batch norms joined to the convolutions."""
        if len(cast(nn.Sequential, self.lateral_conv[0])) == 1:
            return self  # it already is
        (lateral, lateral_norm), (output, output_norm) = self._pair(self.lateral_conv), self._pair(self.output_conv)
        joined = Neck(lateral.in_channels, lateral.out_channels, self.grid).train(self.training)
        joined.lateral_conv[0] = nn.Sequential(fuse_conv_bn(lateral, lateral_norm))
        joined.output_conv[0] = nn.Sequential(fuse_conv_bn(output, output_norm))
        return joined

    @staticmethod
    def _pair(level: nn.ModuleList) -> tuple[nn.Conv2d, nn.BatchNorm2d]:
        conv, norm = cast(nn.Sequential, level[0])
        return cast(nn.Conv2d, conv), cast(nn.BatchNorm2d, norm)


class ImageEncoderViT(nn.Module):
    """TAP's image encoder."""

    def __init__(self, config: TapConfig) -> None:
        super().__init__()
        dim, grid = config.embed_dim, config.grid_size
        self.window_size = config.window_size
        self.patch_embed = PatchEmbed(config.patch_size, dim)
        self.pos_embed = PosEmbed(dim, grid * grid)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(dim)
        self.cross_conv = nn.ModuleList(Bottleneck(dim, grid) for _ in range(4))
        self.neck = Neck(dim, config.out_channels, grid)
        self.grid = grid

    def forward(self, pixels: Tensor) -> Tensor:
        """Pixels (B, 3, image_size, image_size) -> image_embeddings (B, out_channels, h, w)."""
        side, quarter = self.window_size, len(self.blocks) // 4
        x = self.patch_embed(pixels) + self.pos_embed.weight.unflatten(0, (self.grid, self.grid))  # (B, h, w, D)
        x = to_windows(x, side).flatten(1, 2)  # (windows, side * side, D)
        for i, block in enumerate(self.blocks):
            x = block(x)
            if (i + 1) % quarter == 0:
                x = self.norm(x) if i + 1 == len(self.blocks) else x
                x = self.cross_conv[i // quarter](x.unflatten(1, (side, side))).flatten(1, 2)
        return self.neck(x.unflatten(1, (side, side)))


class PromptEncoder(nn.Module):
    """Points and box corners -> tokens, and the position code of the image grid."""

    coord_matrix: Tensor

    def __init__(self, embed_dim: int, image_size: int) -> None:
        super().__init__()
        self.register_buffer("coord_matrix", torch.randn(2, embed_dim // 2))
        self.point_embed = nn.Embedding(5, embed_dim)
        self.image_size = image_size

    def forward(self, points: Tensor, labels: Tensor) -> Tensor:
        """points (P, N, 2) input-frame pixels, labels (P, N) in 0..4 -> (P, N, D).

        A padding token (label 4) has no position: only its learned vector.
        """
        codes = self.encode(((points.float() + 0.5) / self.image_size).clamp(0, 1))  # (P, N, D)
        return codes * (labels != _PADDING)[..., None] + self.point_embed(labels)

    def grid(self, side: int) -> Tensor:
        """Codes of the cell centres of a side x side grid, row by row: (side * side, D)."""
        centres = (torch.arange(side, device=self.coord_matrix.device, dtype=torch.float32) + 0.5) / side
        x, y = centres.expand(side, side), centres[:, None].expand(side, side)
        return self.encode(torch.stack([x, y], dim=-1)).flatten(0, 1)  # (side * side, D)

    def encode(self, coordinates: Tensor) -> Tensor:
        """Coordinates (..., 2) in [0, 1], x y -> (..., D): sines in float32, returned in the network's dtype."""
        angles = (4 * _PI * coordinates - 2 * _PI) @ self.coord_matrix.float()
        return torch.cat([angles.sin(), angles.cos()], dim=-1).to(self.point_embed.weight.dtype)


class TokenAttention(nn.Module):
    """Multi-head attention whose inner width may be smaller than the tokens'.

    Between a few tokens and the whole image, products of projections are joined where that is less work: with q the
    projection of a token, its logit with an image token x is q . (W_k x + b_k) = (W_k^T q) . x + q . b_k, so no image
    token is projected. Only in float32: half precision would round the logits.
    """

    def __init__(self, dim: int, inner_dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q_proj = nn.Linear(dim, inner_dim)
        self.k_proj = nn.Linear(dim, inner_dim)
        self.v_proj = nn.Linear(dim, inner_dim)
        self.proj = nn.Linear(inner_dim, dim)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q (P or 1, N, D), k and v (P or 1, M, D) -> (P, N, D); a leading 1 is shared by all prompts."""
        q, k, v = self._heads(self.q_proj(q)), self._heads(self.k_proj(k)), self._heads(self.v_proj(v))
        batch = max(q.shape[0], k.shape[0])
        q, k, v = (t.expand(batch, -1, -1, -1) for t in (q, k, v))  # (P, heads, N or M, D/heads)
        out = functional.scaled_dot_product_attention(q, k, v)
        return self.proj(out.transpose(1, 2).flatten(2))  # (P, N, D)

    def from_image(self, tokens: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """What tokens (P, N, D) see in an image, keys and values (P or 1, hw, D): (P, N, D)."""
        if not self._joins(tokens, keys):
            return self(tokens, keys, values)
        q = self._scaled(self._heads(self.q_proj(tokens)))  # (P, heads, N, d)
        seen = self._logits(q, self.k_proj, keys).softmax(dim=-1) @ values  # (P, heads * N, D)
        seen = seen.unflatten(1, (self.num_heads, -1))  # (P, heads, N, D)
        out = seen @ self.v_proj.weight.unflatten(0, (self.num_heads, -1)).mT  # (P, heads, N, d)
        # The weights of a softmax sum to 1, so the bias of the values passes through unchanged.
        return self.proj(out.transpose(1, 2).flatten(2) + self.v_proj.bias)  # (P, N, D)

    def add_to_image(self, image: Tensor, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """image (P or 1, hw, D) plus what queries, the image at its places, see in tokens (P, N, D): (P, hw, D)."""
        if image.dtype != torch.float32:
            return image + self(queries, keys, values)
        k = self._scaled(self._heads(self.k_proj(keys)))  # (P, heads, N, d)
        if self._joins(keys, queries):
            logits = self._logits(k, self.q_proj, queries).unflatten(1, (self.num_heads, -1))  # (P, heads, N, hw)
        else:
            logits = k @ self._heads(self.q_proj(queries)).mT  # (P, heads, N, hw)
        v = self._heads(self.v_proj(values))  # (P, heads, N, d)
        v = v @ self.proj.weight.unflatten(1, (self.num_heads, -1)).permute(1, 2, 0)  # (P, heads, N, D)
        v = (v + self.proj.bias / self.num_heads).flatten(1, 2)  # (P, heads * N, D); each head's weights sum to 1
        return torch.baddbmm(image, logits.softmax(dim=2).flatten(1, 2).mT, v)  # (P, hw, D)

    def _joins(self, tokens: Tensor, image: Tensor) -> bool:
        """Whether joined projections of tokens (P, N, D) are less work than those of image tokens (P or 1, hw, D)."""
        shared = len(image) < len(tokens)
        few = tokens.shape[1] * self.num_heads < self.q_proj.out_features
        return few and not shared and image.dtype == torch.float32

    def _logits(self, tokens: Tensor, projection: nn.Linear, image: Tensor) -> Tensor:
        """tokens (P, heads, N, d) times the projection of image (P, hw, D), unprojected: (P, heads * N, hw)."""
        weight, bias = (t.unflatten(0, (self.num_heads, -1)) for t in (projection.weight, projection.bias))
        offset = (tokens @ bias[..., None]).flatten(1, 2)  # (P, heads * N, 1)
        return torch.baddbmm(offset, (tokens @ weight).flatten(1, 2), image.mT)

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # (P, heads, N, d)

    def _scaled(self, x: Tensor) -> Tensor:
        return x * x.shape[-1] ** -0.5


class TwoWayBlock(nn.Module):
    """Tokens attend to themselves and to the image, then the image attends to the tokens."""

    def __init__(self, dim: int, num_heads: int, mlp_dim: int, first: bool) -> None:
        super().__init__()
        self.self_attn = TokenAttention(dim, dim, num_heads)
        self.norm1 = nn.LayerNorm(dim)
        self.cross_attn_token_to_image = TokenAttention(dim, dim // 2, num_heads)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = MLP(dim, mlp_dim, nn.ReLU())
        self.norm3 = nn.LayerNorm(dim)
        self.cross_attn_image_to_token = TokenAttention(dim, dim // 2, num_heads)
        self.norm4 = nn.LayerNorm(dim)
        self.first = first

    def forward(self, queries: Tensor, keys: Tensor, query_pe: Tensor, key_pe: Tensor) -> tuple[Tensor, Tensor]:
        """queries (P, N, D), keys (P or 1, hw, D) -> the same, keys now with P in front."""
        if self.first:
            # Published so: the first block's self attention replaces the tokens instead of adding to them.
            queries = self.self_attn(queries, queries, queries)
        else:
            q = queries + query_pe
            queries = queries + self.self_attn(q, q, queries)
        queries = self.norm1(queries)
        keys_at = keys + key_pe
        queries = self.norm2(queries + self.cross_attn_token_to_image.from_image(queries + query_pe, keys_at, keys))
        queries = self.norm3(queries + self.mlp(queries))
        keys = self.norm4(self.cross_attn_image_to_token.add_to_image(keys, keys_at, queries + query_pe, queries))
        return queries, keys


class Transformer(nn.Module):
    """Prompt tokens and image tokens exchange information in both directions."""

    def __init__(self, dim: int, num_heads: int, mlp_dim: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(TwoWayBlock(dim, num_heads, mlp_dim, first=i == 0) for i in range(2))
        self.final_attn_token_to_image = TokenAttention(dim, dim // 2, num_heads)
        self.norm = nn.LayerNorm(dim)

    def forward(self, tokens: Tensor, keys: Tensor, key_pe: Tensor) -> tuple[Tensor, Tensor]:
        """tokens (P, N, D), keys (1, hw, D), key_pe (hw, D) -> (P, N, D) and (P, hw, D)."""
        queries = tokens
        for block in self.blocks:
            queries, keys = block(queries, keys, tokens, key_pe)
        attended = self.final_attn_token_to_image.from_image(queries + tokens, keys + key_pe, keys)
        return self.norm(queries + attended), keys


class Predictor(nn.Module):
    """Three linear layers with ReLU between them."""

    def __init__(self, in_dim: int, mlp_dim: int, out_dim: int) -> None:
        super().__init__()
        widths = (in_dim, mlp_dim, mlp_dim, out_dim)
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in zip(widths[:-1], widths[1:], strict=True))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = functional.relu(layer(x))
        return self.layers[-1](x)


class ImageDecoder(nn.Module):
    """Prompt tokens and image embedding -> masks, IoU predictions, semantic tokens and embeddings."""

    def __init__(self, config: TapConfig) -> None:
        super().__init__()
        dim = config.out_channels
        self.transformer = Transformer(dim, dim // 32, config.decoder_mlp_dim)
        self.iou_token = nn.Embedding(1, dim)
        self.sem_tokens = nn.Embedding(MASKS, dim)
        self.mask_tokens = nn.Embedding(MASKS, dim)
        self.output_conv = nn.Sequential(
            nn.ConvTranspose2d(dim, dim // 4, kernel_size=2, stride=2),
            nn.LayerNorm(dim // 4),
            nn.GELU(),
            nn.ConvTranspose2d(dim // 4, dim // 8, kernel_size=2, stride=2),
            nn.GELU(),
        )
        self.mask_pred = nn.ModuleList(Predictor(dim, dim, dim // 8) for _ in range(MASKS))
        self.iou_pred = Predictor(dim, dim, MASKS)
        self.sem_pred = Predictor(dim, config.semantic_dim, config.semantic_dim)

    def forward(self, image_embeddings: Tensor, image_pe: Tensor, sparse: Tensor) -> Decoded:
        """image_embeddings (1, D, h, w), image_pe (hw, D), sparse (P, N, D) -> all 4 masks; see Tap.decode_all."""
        tokens, keys = self._attend(image_embeddings, image_pe, sparse)
        logits = self.upscale(keys).flatten(1, 3) @ self._weights(tokens).mT  # (P, 16hw, 4)
        logits = self._in_place(logits, image_embeddings.shape[-1])  # (P, 4, 4h, 4w)
        semantic_tokens = tokens[:, :MASKS]
        extras = {"semantic_tokens": semantic_tokens, "semantic_embeddings": self.sem_pred(semantic_tokens)}
        return Decoded(logits, self.iou_pred(tokens[:, MASKS]), extras)

    def forward_kept(
        self,
        image_embeddings: Tensor,
        image_pe: Tensor,
        sparse: Tensor,
        has_box: Tensor,
        multimask: bool,
        least_iou: float,
        rows: int,
    ) -> Kept:
        """As forward, for the masks that `choose` takes and of them only those wanted; see KeepingModel.decode_kept.

        has_box: (P,) bool. Only prompts with a wanted mask are upscaled, and of them only the cells above the padding.
        """
        w = image_embeddings.shape[-1]
        cells = -(-rows // 4) * w  # every cell becomes 4 x 4 logits
        at_once = _PROMPTS_AT_ONCE_CPU if sparse.device.type == "cpu" else max(1, len(sparse))
        masks, scores, semantic = [image_embeddings.new_zeros(0, rows, 4 * w)], [], []
        for prompts, boxes in zip(sparse.split(at_once), has_box.split(at_once), strict=True):
            tokens, keys = self._attend(image_embeddings, image_pe, prompts)
            iou_predictions = self.iou_pred(tokens[:, MASKS])  # (p, 4)
            chosen = choose(iou_predictions, boxes, multimask)  # (p, C)
            one = torch.arange(len(chosen), device=chosen.device)[:, None]  # (p, 1)
            scores.append(iou_predictions[one, chosen])
            semantic.append(tokens[one, chosen])
            kept = scores[-1] > least_iou  # (p, C)
            some = kept.any(dim=1)
            if bool(some.any()):
                weights = self._weights(tokens)[one, chosen][some]  # (p', C, D/8)
                logits = self.upscale(keys[some, :cells]).flatten(1, 3) @ weights.mT  # (p', 16 cells, C)
                wanted = logits.mT[kept[some]]  # (k, 16 cells)
                masks.append(self._in_place(wanted[..., None], w)[:, 0, :rows])  # (k, rows, 4w)
        all_scores, semantic_tokens = torch.cat(scores), torch.cat(semantic)
        candidates = (all_scores > least_iou).flatten().nonzero()[:, 0]
        extras = {"semantic_tokens": semantic_tokens, "semantic_embeddings": self.sem_pred(semantic_tokens)}
        return Kept(torch.cat(masks), candidates, all_scores, extras)

    def _attend(self, image_embeddings: Tensor, image_pe: Tensor, sparse: Tensor) -> tuple[Tensor, Tensor]:
        """4 semantic tokens, the IoU token, 4 mask tokens and the prompt's (P, 9 + N, D); and the image (P, hw, D)."""
        learned = torch.cat([self.sem_tokens.weight, self.iou_token.weight, self.mask_tokens.weight])  # (9, D)
        tokens = torch.cat([learned.expand(len(sparse), -1, -1), sparse], dim=1)  # (P, 9 + N, D)
        keys = image_embeddings.flatten(2).transpose(1, 2).contiguous()  # (1, hw, D)
        return self.transformer(tokens, keys, image_pe)

    def _weights(self, tokens: Tensor) -> Tensor:
        """Of `_attend`'s tokens and upscaled cells, the masks are the products: (P, 4, D/8)."""
        weights = [predict(tokens[:, MASKS + 1 + i]) for i, predict in enumerate(self.mask_pred)]
        return torch.stack(weights, dim=1)

    def _in_place(self, logits: Tensor, w: int) -> Tensor:
        """Logits of cells (P, 16hw, C), in the order of `upscale` -> (P, C, 4h, 4w)."""
        logits = logits.reshape(len(logits), -1, w, 2, 2, 2, 2, logits.shape[-1])  # cells, then quarters, then quarters
        logits = logits.permute(0, 7, 1, 3, 5, 2, 4, 6)  # (P, C, h, 2, 2, w, 2, 2)
        return logits.flatten(5, 7).flatten(2, 4)  # (P, C, 4h, 4w)

    def upscale(self, keys: Tensor) -> Tensor:
        """Image tokens (P, hw, D) -> features of their 4 quarters' quarters (P, hw, 4, 4, D/8).

        A transposed convolution of 2x2 with stride 2 is one matrix product per cell; its outputs are put in their
        places only once they are mask logits, of which there are fewer.
        """
        first, norm, _, second, _ = self.output_conv
        x = functional.gelu(norm(quarters(keys, cast(nn.ConvTranspose2d, first))))  # (P, hw, 4, D/4)
        return functional.gelu(quarters(x, cast(nn.ConvTranspose2d, second)))  # (P, hw, 4, 4, D/8)


def quarters(x: Tensor, conv: nn.ConvTranspose2d) -> Tensor:
    """Cells (..., D) -> their 2 x 2 cells under a transposed convolution, row by row: (..., 4, out)."""
    weight = conv.weight.flatten(2).permute(2, 1, 0).flatten(0, 1)  # (4 out, D)
    bias = None if conv.bias is None else conv.bias.repeat(4)  # (4 out,)
    return functional.linear(x, weight, bias).unflatten(-1, (4, -1))


class Tap(nn.Module):
    """Tokenize Anything as a PromptableModel.

    text_decoder: writes captions (tap_captions.py). semantic_dim: numbers in a semantic embedding.
    """

    multimask_default: MultimaskDefault = "never"
    float32_parts: tuple[str, ...] = ("prompt_encoder", "image_decoder")
    pixel_mean: Tensor
    pixel_rsig: Tensor

    def __init__(self, config: TapConfig, preprocess: Preprocess) -> None:
        super().__init__()
        self.preprocess = preprocess
        self.register_buffer("pixel_mean", torch.tensor(preprocess.mean))
        self.register_buffer("pixel_rsig", 1 / torch.tensor(preprocess.std))
        self.image_encoder = ImageEncoderViT(config)
        self.prompt_encoder = PromptEncoder(config.out_channels, config.image_size)
        self.image_decoder = ImageDecoder(config)
        self.text_decoder = TextDecoder(config.text, config.out_channels)
        self.semantic_dim = config.semantic_dim

    def encode_image(self, pixels: Tensor) -> dict[str, Tensor]:
        """Pixels (B, 3, image_size, image_size), B, G, R -> {"image_embeddings": (B, D, h, w)}."""
        if self.pixel_mean.dtype == torch.float32:  # in half precision the rounding is not the checkpoint's
            statistics = [self.preprocess.mean, self.preprocess.std]
            mean, std = pixels.new_tensor(statistics, dtype=torch.float32)[..., None, None]  # each (3, 1, 1)
            own_mean, own_rsig = self.pixel_mean[:, None, None], self.pixel_rsig[:, None, None]  # each (3, 1, 1)
            pixels = (pixels * (std * own_rsig) + (mean - own_mean) * own_rsig).to(pixels.dtype)
        return {"image_embeddings": self.image_encoder(pixels)}

    def decode(
        self, features: dict[str, Tensor], points: Tensor, labels: Tensor, mask_logits: Tensor | None, multimask: bool
    ) -> Decoded:
        """See PromptableModel.decode. multimask gives masks 1 to 3, else there is one: mask 0 for a prompt with a box,
        the best of masks 1 to 3 for one without.

        extras: "semantic_tokens" (P, C, D) for captions, "semantic_embeddings" (P, C, 1024) for concepts. Raises
        PromptError if there is a mask prompt.
        """
        if mask_logits is not None:
            raise PromptError("Tokenize Anything takes no mask prompt; use points or a box.")
        decoded = self.decode_all(features, points, labels)
        iou_predictions = decoded.iou_predictions  # (P, 4)
        chosen = choose(iou_predictions, (labels == _TOP_LEFT).any(dim=1), multimask)  # (P, C)
        rows = torch.arange(len(labels), device=labels.device)[:, None]  # (P, 1)
        extras = {name: value[rows, chosen] for name, value in decoded.extras.items()}
        return Decoded(decoded.low_res_logits[rows, chosen], iou_predictions[rows, chosen], extras)

    def decode_kept(
        self,
        features: dict[str, Tensor],
        points: Tensor,
        labels: Tensor,
        multimask: bool,
        least_iou: float,
        rows: int,
    ) -> Kept:
        """See KeepingModel.decode_kept; masks and extras as in decode."""
        embeddings = features["image_embeddings"]  # (1, D, h, w)
        points, labels = published_order(points, labels)
        image_pe = self.prompt_encoder.grid(embeddings.shape[-1])  # (hw, D)
        sparse, has_box = self.prompt_encoder(points, labels), (labels == _TOP_LEFT).any(dim=1)
        return self.image_decoder.forward_kept(embeddings, image_pe, sparse, has_box, multimask, least_iou, rows)

    def decode_all(self, features: dict[str, Tensor], points: Tensor, labels: Tensor) -> Decoded:
        """All 4 masks of each prompt; features, points and labels as in PromptableModel.decode.

        Returns low_res_logits (P, 4, 4h, 4w), iou_predictions (P, 4) and the extras of `decode` with C = 4.
        """
        embeddings = features["image_embeddings"]  # (1, D, h, w)
        points, labels = published_order(points, labels)
        image_pe = self.prompt_encoder.grid(embeddings.shape[-1])  # (hw, D)
        return self.image_decoder(embeddings, image_pe, self.prompt_encoder(points, labels))


def choose(iou_predictions: Tensor, has_box: Tensor, multimask: bool) -> Tensor:
    """Which of the 4 masks of each prompt are meant: (P, C) int64; iou_predictions (P, 4), has_box (P,) bool.

    Masks 1 to 3 if multimask. Else one: mask 0 of a prompt with a box, the best of masks 1 to 3 of one without.
    """
    if multimask:
        return torch.arange(1, MASKS, device=iou_predictions.device).expand(len(iou_predictions), -1)  # (P, 3)
    return torch.where(has_box, 0, 1 + iou_predictions[:, 1:].argmax(dim=1))[:, None]  # (P, 1)


def published_order(points: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Prompts in this package's convention (P, N, 2), (P, N) -> in TAP's: corners first, padding labelled 4."""
    order = torch.argsort((labels < _TOP_LEFT).long(), dim=1, stable=True)  # (P, N)
    labels = torch.where(labels < 0, _PADDING, labels)
    return points.gather(1, order[..., None].expand_as(points)), labels.gather(1, order)


def build_tap(config: TapConfig, preprocess: Preprocess) -> Tap:
    """TAP of any shape, with random weights."""
    return Tap(config, preprocess)


def build(size: str) -> Tap:
    """TAP with random weights; `size` is vit_b, vit_l or vit_h. Raises UnknownModelError for another size."""
    if size not in SIZES:
        raise UnknownModelError(f"Tokenize Anything has no size {size!r}; its sizes are {', '.join(SIZES)}.")
    return build_tap(SIZES[size], PREPROCESS)
