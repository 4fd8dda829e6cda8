"""SAM: a ViT image encoder with windowed and global attention, and the encoder + prompt encoder + decoder composition.

Paper: Kirillov et al., "Segment Anything", 2023; the encoder is that of Li et al., "Exploring Plain Vision Transformer
Backbones for Object Detection", 2022. Source: facebookresearch/segment-anything@dca509f,
segment_anything/modeling/{image_encoder,sam,common}.py and build_sam.py (Apache-2.0). Written anew; parameter names are
the official ones, so published state_dicts load unchanged.

What is unusual here:
- Relative positions are decomposed: the logit of query (i, j) and key (k, l) gets q . R_h[i - k] + q . R_w[j - l], with
  the UNSCALED query, while the content term is scaled. In a global block that is a bias of (heads, 4096, 4096): 0.8 to
  1 GB in float32. It is built for a band of query rows of one head at a time, small enough to stay near the caches.
- The 64 x 64 grid is no multiple of the 14 x 14 window. Officially the tokens are padded with zeros before the qkv
  projection, so a padded key or value is the projection's bias. Here only real tokens are projected and the bias is
  written into the padding: the same numbers, a sixth less work in both projections.
- On a CPU a block of windowed attention takes two rows of windows at a time, from its first norm to its last sum, and
  every MLP 2048 tokens: smaller intermediate tensors, in memory that is used again instead of asked for anew.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from anysam.errors import UnknownModelError
from anysam.models import Decoded, Kept, MultimaskDefault
from anysam.models.hf_names import is_hf, sam_from_hf
from anysam.models.layers import is_exporting
from anysam.models.low_rank_decoder import decode_kept
from anysam.models.sam_decoder import PADDING, LayerNorm2d, MaskDecoder, PromptEncoder
from anysam.preprocess import Preprocess

PREPROCESS = Preprocess(name="sam_1024", long_side=1024, pad_to=1024)

# Values of relative-position bias held at once on a CPU: 6 M float32 are 24 MB, which allocators keep for the next use
# (from 32 MB on, glibc's asks the system for fresh pages every time). A GPU takes 16 times as many.
_BIAS_VALUES = 6 * 1024 * 1024

# On a CPU, rows of windows in a block and tokens in an MLP at once. Fewer would cost time in the matrix products.
_WINDOW_ROWS, _MLP_TOKENS = 2, 2048


@dataclass(frozen=True)
class VitConfig:
    """The shape of an image encoder.

    embed_dim, depth, num_heads: of the transformer. global_blocks: indices of the blocks that attend to the whole grid;
    the others attend within windows of window_size x window_size tokens. image_size: side of the square input, pixels.
    """

    embed_dim: int
    depth: int
    num_heads: int
    global_blocks: tuple[int, ...]
    image_size: int = 1024
    patch_size: int = 16
    window_size: int = 14
    mlp_ratio: int = 4
    out_channels: int = 256

    def __post_init__(self) -> None:
        if self.embed_dim % self.num_heads:
            raise ValueError(f"embed_dim must be a multiple of num_heads, got {self.embed_dim} and {self.num_heads}")
        if self.image_size % self.patch_size:
            raise ValueError(f"image_size must be a multiple of patch_size, got {self.image_size}, {self.patch_size}")
        if any(not 0 <= index < self.depth for index in self.global_blocks):
            raise ValueError(f"global_blocks must be in 0..{self.depth - 1}, got {self.global_blocks}")

    @property
    def grid_size(self) -> int:
        """Side of the square token grid."""
        return self.image_size // self.patch_size


SIZES = {
    "vit_b": VitConfig(embed_dim=768, depth=12, num_heads=12, global_blocks=(2, 5, 8, 11)),
    "vit_l": VitConfig(embed_dim=1024, depth=24, num_heads=16, global_blocks=(5, 11, 17, 23)),
    "vit_h": VitConfig(embed_dim=1280, depth=32, num_heads=16, global_blocks=(7, 15, 23, 31)),
}


class PatchEmbed(nn.Module):
    """Patches of pixels -> tokens."""

    def __init__(self, patch_size: int, embed_dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, embed_dim, kernel_size=patch_size, stride=patch_size)

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, h, w, D)."""
        return self.proj(pixels).permute(0, 2, 3, 1)  # (B, h, w, D)


class MLPBlock(nn.Module):
    """Linear, GELU (erf), linear."""

    def __init__(self, embed_dim: int, mlp_dim: int) -> None:
        super().__init__()
        self.lin1 = nn.Linear(embed_dim, mlp_dim)
        self.lin2 = nn.Linear(mlp_dim, embed_dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.lin2(functional.gelu(self.lin1(x)))


class Attention(nn.Module):
    """Multi-head attention over square windows (or the whole grid as one) with decomposed relative positions."""

    def __init__(self, embed_dim: int, num_heads: int, window: int) -> None:
        super().__init__()
        head_dim = embed_dim // num_heads
        self.num_heads = num_heads
        self.window = window
        self.qkv = nn.Linear(embed_dim, 3 * embed_dim)
        self.proj = nn.Linear(embed_dim, embed_dim)
        self.rel_pos_h = nn.Parameter(torch.zeros(2 * window - 1, head_dim))
        self.rel_pos_w = nn.Parameter(torch.zeros(2 * window - 1, head_dim))

    def forward(self, x: Tensor) -> Tensor:
        """x (B, h, w, D) -> the same shape. Windows that reach over the grid's edge see padding there."""
        batch, height, width, _ = x.shape
        side = self.window
        rows, columns = -(-height // side), -(-width // side)  # windows down and across
        q, k, v = self._project(x, (rows * side - height, columns * side - width))
        out = self._attend(q, k, v)  # (windows, heads, side * side, D/heads)
        out = out.reshape(batch, rows, columns, self.num_heads, side, side, -1)
        out = out.permute(0, 1, 4, 2, 5, 3, 6)  # (B, rows, side, columns, side, heads, D/heads)
        out = out.reshape(batch, rows * side, columns * side, -1)[:, :height, :width]  # (B, h, w, D)
        return self.proj(out)

    def _project(self, x: Tensor, padding: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
        """x (B, h, w, D) -> its q, k, v, each as `_windows` gives them."""
        # Padded tokens are zeros before the projection, so their keys and values are its bias.
        values, fill = self.qkv(x).chunk(3, dim=-1), self.qkv.bias.chunk(3)
        q, k, v = (self._windows(values[i], fill[i], padding) for i in range(3))
        return q, k, v

    def _windows(self, x: Tensor, fill: Tensor, padding: tuple[int, int]) -> Tensor:
        """x (B, h, w, D), padded below and right with fill (D,), -> (windows, heads, side * side, D/heads)."""
        batch, height, width, _ = x.shape
        side = self.window
        if any(padding):
            padded = fill.to(x.dtype).expand(batch, height + padding[0], width + padding[1], -1).clone()
            padded[:, :height, :width] = x
            x = padded
        x = x.reshape(batch, x.shape[1] // side, side, x.shape[2] // side, side, self.num_heads, -1)
        x = x.permute(0, 1, 3, 5, 2, 4, 6)  # (B, rows, columns, heads, side, side, D/heads)
        return x.flatten(0, 2).flatten(2, 3).contiguous()  # (windows, heads, side * side, D/heads)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention of q, k, v (windows, heads, side * side, D/heads), some heads and query rows at a time."""
        windows, heads, tokens, _ = q.shape
        side = self.window
        grid = q.unflatten(2, (side, side))  # (windows, heads, side, side, D/heads)
        offsets = torch.arange(side, device=q.device)
        offsets = offsets[:, None] - offsets + side - 1  # (query, key) -> row of a table
        tables_h, tables_w = self.rel_pos_h[offsets], self.rel_pos_w[offsets]  # (side, side, D/heads)
        limit = _BIAS_VALUES if q.device.type == "cpu" else 16 * _BIAS_VALUES
        some = min(heads, max(1, limit // (windows * tokens * tokens)))  # heads at once
        band = min(side, max(1, limit // (windows * some * side * tokens)))  # query rows at once
        bands = []
        for head in range(0, heads, some):
            few = slice(head, head + some)
            # Contiguous, because einsum returns permuted strides, which the sums would inherit and then copy away.
            rel_h = torch.einsum("nhijd,ikd->nhijk", grid[:, few], tables_h).contiguous()  # (.., side, side, side)
            rel_w = torch.einsum("nhijd,jkd->nhijk", grid[:, few], tables_w).contiguous()  # (.., side, side, side)
            parts = []
            for top in range(0, side, band):
                row = slice(top, top + band)
                bias = rel_h[:, :, row, :, :, None] + rel_w[:, :, row, :, None, :]
                bias = bias.flatten(4, 5).flatten(2, 3)  # (windows, some, band * side, side * side)
                queries = grid[:, few, row].flatten(2, 3)  # (windows, some, band * side, D/heads)
                out = functional.scaled_dot_product_attention(queries, k[:, few], v[:, few], attn_mask=bias)
                parts.append(out)  # (windows, some, band * side, D/heads)
            bands.append(torch.cat(parts, dim=2))
        return torch.cat(bands, dim=1)  # (windows, heads, side * side, D/heads)


class Block(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, embed_dim: int, num_heads: int, mlp_ratio: int, window: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(embed_dim, eps=1e-6)
        self.attn = Attention(embed_dim, num_heads, window)
        self.norm2 = nn.LayerNorm(embed_dim, eps=1e-6)
        self.mlp = MLPBlock(embed_dim, embed_dim * mlp_ratio)

    def forward(self, x: Tensor) -> Tensor:
        """(B, h, w, D) -> the same shape."""
        if x.device.type != "cpu" or is_exporting():
            x = x + self.attn(self.norm1(x))
            return x + self.mlp(self.norm2(x))
        # Windows do not see one another, so some go through the whole block before the next.
        bands = [self._band(band) for band in x.split(_WINDOW_ROWS * self.attn.window, dim=1)]
        return torch.cat(bands, dim=1)  # (B, h, w, D)

    def _band(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        parts = [part + self.mlp(self.norm2(part)) for part in x.flatten(0, 2).split(_MLP_TOKENS)]
        return torch.cat(parts).unflatten(0, x.shape[:3])


class ImageEncoderViT(nn.Module):
    """SAM's image encoder."""

    def __init__(self, config: VitConfig) -> None:
        super().__init__()
        dim, grid = config.embed_dim, config.grid_size
        self.patch_embed = PatchEmbed(config.patch_size, dim)
        self.pos_embed = nn.Parameter(torch.zeros(1, grid, grid, dim))
        self.blocks = nn.ModuleList(
            Block(dim, config.num_heads, config.mlp_ratio, grid if i in config.global_blocks else config.window_size)
            for i in range(config.depth)
        )
        self.neck = nn.Sequential(
            nn.Conv2d(dim, config.out_channels, kernel_size=1, bias=False),
            LayerNorm2d(config.out_channels),
            nn.Conv2d(config.out_channels, config.out_channels, kernel_size=3, padding=1, bias=False),
            LayerNorm2d(config.out_channels),
        )

    def forward(self, pixels: Tensor) -> Tensor:
        """Pixels (B, 3, image_size, image_size) -> image_embeddings (B, out_channels, h, w)."""
        x = self.patch_embed(pixels) + self.pos_embed  # (B, h, w, D)
        for block in self.blocks:
            x = block(x)
        return self.neck(x.permute(0, 3, 1, 2))  # (B, out_channels, h, w)


class Sam(nn.Module):
    """An image encoder, a prompt encoder and a mask decoder as one PromptableModel; other families pass other parts.

    image_encoder: maps pixels (B, 3, H, W) to image_embeddings (B, D, h, w).
    """

    multimask_default: MultimaskDefault = "single_point"
    float32_parts: tuple[str, ...] = ("prompt_encoder", "mask_decoder")

    def __init__(
        self, image_encoder: nn.Module, prompt_encoder: PromptEncoder, mask_decoder: MaskDecoder, preprocess: Preprocess
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
        """See PromptableModel.decode: low_res_logits (P, C, 4h, 4w) and iou_predictions (P, C), C 3 or 1."""
        image_pe, sparse, dense = self._encode_prompts(points, labels, mask_logits)
        return Decoded(*self.mask_decoder(features["image_embeddings"], image_pe, sparse, dense, multimask))

    def decode_kept(
        self,
        features: dict[str, Tensor],
        points: Tensor,
        labels: Tensor,
        multimask: bool,
        least_iou: float,
        rows: int,
    ) -> Kept:
        """See KeepingModel.decode_kept."""
        image_pe, sparse, dense = self._encode_prompts(points, labels, None)
        tokens = slice(1, 4) if multimask else slice(0, 1)
        return decode_kept(
            self.mask_decoder, features["image_embeddings"], image_pe, sparse, dense, tokens, least_iou, rows
        )

    def _encode_prompts(
        self, points: Tensor, labels: Tensor, mask_logits: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """image_pe (1, D, h, w), sparse (P, N, D) and dense (1 or P, D, h, w) prompt embeddings."""
        if labels.shape[1] == 1 and bool((labels == PADDING).all()):
            # Neither points nor boxes: the published predictor then gives no prompt tokens at all.
            points, labels = points[:, :0], labels[:, :0]
        return self.prompt_encoder.dense_pe(), *self.prompt_encoder(points, labels, mask_logits)


def build_sam(config: VitConfig, preprocess: Preprocess) -> Sam:
    """SAM around a ViT of any shape, with random weights."""
    grid = (config.grid_size, config.grid_size)
    prompt_encoder = PromptEncoder(config.out_channels, grid, (config.image_size, config.image_size))
    return Sam(ImageEncoderViT(config), prompt_encoder, MaskDecoder(config.out_channels), preprocess)


def build(size: str) -> Sam:
    """SAM with random weights; `size` is vit_b, vit_l or vit_h. Raises UnknownModelError for another size."""
    if size not in SIZES:
        raise UnknownModelError(f"SAM has no size {size!r}; its sizes are {', '.join(SIZES)}.")
    return build_sam(SIZES[size], PREPROCESS)


def convert_state_dict(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The names that transformers gives to SAM's tensors -> the official ones; those unchanged."""
    return sam_from_hf(state_dict) if is_hf(state_dict) else dict(state_dict)
