"""SAM-Lightening: a small ViT with dilated attention before SAM's prompt encoder and decoder.

Paper: Song et al., "SAM-Lightening: A Lightweight Segment Anything Model with Dilated Flash Attention to Achieve 30
times Acceleration", 2024 (arXiv 2403.09195). Source: Songyanfei/SAM-LIGHTENING@5913ec7, sam_lightening/build_sam.py and
sam_lightening/modeling/image_encoder.py (no licence file: read for its numbers, written anew). No weights were
published; parameter names are the published ones, so state_dicts of the published code load unchanged.

What is unusual here, all of it kept because weights are only worth something with the same arithmetic:
- Only every second token, row by row, takes part in attention: with even sides, those in even columns. The others get
  the bias of the last projection.
- In a windowed block a token attends to the tokens at its own place in the other windows, not to those of its window:
  the published code hands (place, window, channel) to an attention that reads it as (batch, sequence, channel).
- In a global block it attends to the tokens at its own place in the other images of the batch. With one image that
  leaves the value alone. Results must not depend on which images share a batch, so here every image is on its own,
  as if it were the only one: for windows too.
- There are half as many heads as configured, each twice as wide, and logits are scaled for the configured width.
- Two projections follow each other, the first on attended tokens, the second on all.
- Officially attention runs in bfloat16 within a float32 network. It takes the dtype of its own weights here, so
  `block.attn.to(torch.bfloat16)` gives that form; default is one dtype for all.
"""

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from anysam.errors import UnknownModelError
from anysam.models.sam import MLPBlock, PatchEmbed, Sam
from anysam.models.sam_decoder import LayerNorm2d, MaskDecoder, PromptEncoder
from anysam.models.winograd import faster
from anysam.preprocess import Preprocess

PREPROCESS = Preprocess(name="sam_1024", long_side=1024, pad_to=1024)

DILATION = 2


@dataclass(frozen=True)
class DilatedVitConfig:
    """The shape of an image encoder.

    embed_dim, depth: of the transformer. configured_heads: twice the number of real heads. global_blocks: indices of
    the blocks without windows; the others have windows of window_size x window_size tokens. image_size: side of the
    square input, pixels.
    """

    embed_dim: int
    depth: int
    configured_heads: int
    global_blocks: tuple[int, ...]
    image_size: int = 1024
    patch_size: int = 16
    window_size: int = 14
    mlp_ratio: int = 4
    out_channels: int = 256

    def __post_init__(self) -> None:
        heads = self.configured_heads
        if heads % DILATION or self.embed_dim % heads:
            raise ValueError(
                f"configured_heads must be even and divide embed_dim, got {heads} heads and embed_dim {self.embed_dim}"
            )
        if self.image_size % (self.patch_size * DILATION) or self.window_size % DILATION:
            # Otherwise every second token would not be every second column.
            raise ValueError(f"grid and windows must have even sides, got {self}")
        if any(not 0 <= index < self.depth for index in self.global_blocks):
            raise ValueError(f"global_blocks must be in 0..{self.depth - 1}, got {self.global_blocks}")

    @property
    def grid_size(self) -> int:
        """Side of the square token grid."""
        return self.image_size // self.patch_size


# The published builders of t_np and t_np2 mean every block to be global, but list a range object in the place of its
# numbers, so none is. Those of b, l and h have SAM's names and shapes, but dilated attention in other windows.
SIZES = {
    "t": DilatedVitConfig(embed_dim=384, depth=6, configured_heads=6, global_blocks=(2, 5)),
    "t_np": DilatedVitConfig(embed_dim=384, depth=9, configured_heads=8, global_blocks=()),
    "t_np2": DilatedVitConfig(embed_dim=384, depth=6, configured_heads=6, global_blocks=()),
    "b": DilatedVitConfig(embed_dim=768, depth=12, configured_heads=12, global_blocks=(2, 5, 8, 11), window_size=16),
    "l": DilatedVitConfig(embed_dim=1024, depth=24, configured_heads=16, global_blocks=(5, 11, 17, 23), window_size=16),
    "h": DilatedVitConfig(embed_dim=1280, depth=32, configured_heads=16, global_blocks=(7, 15, 23, 31), window_size=16),
}


class MultiheadAttention(nn.Module):
    """The projections of DilatedAttention, under their official names."""

    def __init__(self, embed_dim: int) -> None:
        super().__init__()
        self.Wqkv = nn.Linear(embed_dim, 3 * embed_dim)
        self.out_proj = nn.Linear(embed_dim, embed_dim)


class DilatedAttention(nn.Module):
    """Attention of the tokens in even columns across windows; see the module's docstring.

    window: side of a window, or None in a global block.
    """

    def __init__(self, embed_dim: int, configured_heads: int, window: int | None) -> None:
        super().__init__()
        self.num_heads = configured_heads // DILATION
        self.scale = (embed_dim // configured_heads) ** -0.5
        self.window = window
        self.multihead_attn = MultiheadAttention(embed_dim)
        self.proj = nn.Linear(embed_dim, embed_dim)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, h, w, D) with even w -> what to add to it, (B, h, w, D), in the dtype of the weights."""
        even = x[:, :, ::DILATION].to(self.proj.weight.dtype)  # (B, h, w/2, D)
        if self.window is None:
            attended = even_values(even, self.multihead_attn.Wqkv)
        else:
            attended = across_windows(even, self.multihead_attn.Wqkv, self.window, self.num_heads, self.scale)
        attended = self.proj(self.multihead_attn.out_proj(attended))  # (B, h, w/2, D)
        return interleave(attended, self.proj.bias)

    def fused(self) -> nn.Module:
        return FusedDilatedAttention(self)


class FusedDilatedAttention(nn.Module):
    """DilatedAttention with both projections in one, and in a global block the value's with them."""

    def __init__(self, attention: DilatedAttention) -> None:
        super().__init__()
        self.num_heads, self.scale, self.window = attention.num_heads, attention.scale, attention.window
        inner, last = attention.multihead_attn, attention.proj
        dtype = last.weight.dtype
        weight, bias = last.weight.detach().double(), last.bias.detach().double()
        out_bias = bias + weight @ inner.out_proj.bias.detach().double()  # (D,)
        out_weight = weight @ inner.out_proj.weight.detach().double()  # (D, D)
        if self.window is None:
            _, _, value_weight = inner.Wqkv.weight.detach().double().chunk(3)  # (D, D)
            _, _, value_bias = inner.Wqkv.bias.detach().double().chunk(3)  # (D,)
            out_bias = out_bias + out_weight @ value_bias
            out_weight = out_weight @ value_weight
        else:
            self.Wqkv = inner.Wqkv
        self.out_weight = nn.Parameter(out_weight.to(dtype))
        self.out_bias = nn.Parameter(out_bias.to(dtype))
        self.odd = nn.Parameter(last.bias.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        """As DilatedAttention."""
        even = x[:, :, ::DILATION].to(self.out_weight.dtype)  # (B, h, w/2, D)
        if self.window is not None:
            even = across_windows(even, self.Wqkv, self.window, self.num_heads, self.scale)
        return interleave(functional.linear(even, self.out_weight, self.out_bias), self.odd)


def even_values(even: Tensor, qkv: nn.Linear) -> Tensor:
    """The values alone of (B, h, w/2, D): what attention to oneself gives."""
    dim = even.shape[-1]
    return functional.linear(even, qkv.weight[2 * dim :], qkv.bias[2 * dim :])  # (B, h, w/2, D)


def across_windows(even: Tensor, qkv: nn.Linear, window: int, num_heads: int, scale: float) -> Tensor:
    """Attention of (B, h, w/2, D), the tokens in even columns, to those at the same place in other windows.

    Officially the grid is padded with zeros to whole windows before the projection, and the padding takes part: its
    query, key and value are the projection's bias. Returns (B, h, w/2, D).
    """
    batch, height, width, _ = even.shape
    half = window // DILATION
    rows, columns = -(-height // window), -(-width // half)  # windows down and across
    projected = qkv(even)  # (B, h, w/2, 3 D)
    if (rows * window, columns * half) != (height, width):
        padded = qkv.bias.expand(batch, rows * window, columns * half, -1).clone()
        padded[:, :height, :width] = projected
        projected = padded  # (B, rows * window, columns * half, 3 D)
    projected = projected.reshape(batch, rows, window, columns, half, 3, num_heads, -1)
    projected = projected.permute(5, 0, 2, 4, 6, 1, 3, 7)  # (3, B, window, half, heads, rows, columns, D/heads)
    q, k, v = projected.flatten(1, 3).flatten(3, 4)  # each (places, heads, windows, D/heads)
    out = functional.scaled_dot_product_attention(q, k, v, scale=scale)  # (places, heads, windows, D/heads)
    out = out.reshape(batch, window, half, num_heads, rows, columns, -1)
    out = out.permute(0, 4, 1, 5, 2, 3, 6)  # (B, rows, window, columns, half, heads, D/heads)
    return out.reshape(batch, rows * window, columns * half, -1)[:, :height, :width]  # (B, h, w/2, D)


def interleave(even: Tensor, odd: Tensor) -> Tensor:
    """Columns (B, h, w/2, D), each followed by a column of `odd` (D,): (B, h, w, D)."""
    return torch.stack([even, odd.to(even.dtype).expand_as(even)], dim=3).flatten(2, 3)  # (B, h, w, D)


class Block(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, config: DilatedVitConfig, window: int | None) -> None:
        super().__init__()
        dim = config.embed_dim
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = DilatedAttention(dim, config.configured_heads, window)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = MLPBlock(dim, dim * config.mlp_ratio)

    def forward(self, x: Tensor) -> Tensor:
        """(B, h, w, D) -> the same shape and dtype."""
        x = x + self.attn(self.norm1(x)).to(x.dtype)
        return x + self.mlp(self.norm2(x))


class Neck(nn.Sequential):
    """Convolutions from the transformer's width to the embedding's, as in SAM."""

    def __init__(self, embed_dim: int, out_channels: int) -> None:
        super().__init__(
            nn.Conv2d(embed_dim, out_channels, kernel_size=1, bias=False),
            LayerNorm2d(out_channels),
            nn.Conv2d(out_channels, out_channels, kernel_size=3, padding=1, bias=False),
            LayerNorm2d(out_channels),
        )

    def fused(self) -> nn.Module:
        point, norm, spatial, last_norm = self
        return nn.Sequential(point, norm, faster(cast(nn.Conv2d, spatial)), last_norm)


class ImageEncoderViT(nn.Module):
    """SAM-Lightening's image encoder."""

    def __init__(self, config: DilatedVitConfig) -> None:
        super().__init__()
        dim, grid = config.embed_dim, config.grid_size
        self.patch_embed = PatchEmbed(config.patch_size, dim)
        self.pos_embed = nn.Parameter(torch.zeros(1, grid, grid, dim))
        self.blocks = nn.ModuleList(
            Block(config, None if i in config.global_blocks else config.window_size) for i in range(config.depth)
        )
        self.neck = Neck(dim, config.out_channels)

    def forward(self, pixels: Tensor) -> Tensor:
        """Pixels (B, 3, image_size, image_size) -> image_embeddings (B, out_channels, h, w)."""
        x = self.patch_embed(pixels) + self.pos_embed  # (B, h, w, D)
        for block in self.blocks:
            x = block(x)
        return self.neck(x.permute(0, 3, 1, 2))  # (B, out_channels, h, w)


def build_sam_lightening(config: DilatedVitConfig, preprocess: Preprocess) -> Sam:
    """SAM-Lightening of any shape, with random weights."""
    grid = (config.grid_size, config.grid_size)
    prompt_encoder = PromptEncoder(config.out_channels, grid, (config.image_size, config.image_size))
    return Sam(ImageEncoderViT(config), prompt_encoder, MaskDecoder(config.out_channels), preprocess)


def build(size: str) -> Sam:
    """SAM-Lightening with random weights; `size` is t, t_np, t_np2, b, l or h. Raises UnknownModelError for another."""
    if size not in SIZES:
        raise UnknownModelError(f"SAM-Lightening has no size {size!r}; its sizes are {', '.join(SIZES)}.")
    return build_sam_lightening(SIZES[size], PREPROCESS)
