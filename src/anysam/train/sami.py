"""SAMI, masked image pretraining against a SAM's features: crops, teachers, and the network around the encoder.

Paper: Xiong et al., "EfficientSAM: Leveraged Masked Image Pretraining for Efficient Segment Anything", 2023 (arXiv
2312.00863), sections 3.2 and 4.1; no code of it was published. The encoder sees a quarter of an image's patches. A
decoder asks, for each of the others, the encoder's answers and the other unknown ones (cross-attention: what the
encoder saw is not changed by it). Both together, in their places, are led to a SAM's features by a linear layer.

Not in the paper, and ours: encoder and decoder have different widths, and the encoder's answers are merged in the
decoder's; a layer norm stands behind both, as in MAE; the class token, which the released position table has a row for,
is seen by encoder and decoder, as in MAE, and learns nothing itself; SAM's features are those after its neck, and not
normalised; positions of the encoder start as MAE's fixed ones and learn.
"""

import math
from dataclasses import dataclass, replace
from typing import cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from anysam.errors import OptionError
from anysam.models import PromptableModel
from anysam.models.efficient_sam import EfficientSam, Mlp
from anysam.models.sam import ImageEncoderViT as SamViT
from anysam.models.slim_sam import build_image_encoder, encoder_config
from anysam.preprocess import Preprocess

# Proportions of a random crop, and how often one is tried before the middle of the image is taken: torchvision's.
_RATIOS, _TRIES = (3 / 4, 4 / 3), 10

Box = tuple[int, int, int, int]


@dataclass(frozen=True, eq=False)
class Crop:
    """A square piece of an image. pixels: (3, S, S) uint8 RGB. large: (3, L, L) uint8, the same piece as a teacher sees
    it that wants more pixels, or None. order: (N,) int64, the patches in the order in which they are hidden: the first
    ones are seen."""

    pixels: Tensor
    large: Tensor | None
    order: Tensor


@dataclass(frozen=True)
class Decoding:
    """The shape of the decoder that pretraining throws away, and which part of the patches it has to find."""

    depth: int = 8
    width: int = 512
    heads: int = 16
    mask_ratio: float = 0.75

    def __post_init__(self) -> None:
        if self.depth < 1 or self.heads < 1 or self.width % (4 * self.heads):
            raise OptionError(
                f"The decoder's width must be a multiple of 4 x its heads, and there must be a block, got {self}."
            )
        if not 0 < self.mask_ratio < 1:
            raise OptionError(f"The mask ratio must be between 0 and 1, got {self.mask_ratio}.")

    def visible(self, patches: int) -> int:
        """How many of so many patches are seen; at least one, and not all."""
        return min(patches - 1, max(1, int(patches * (1 - self.mask_ratio))))


def random_box(size: tuple[int, int], scale: tuple[float, float], generator: np.random.Generator) -> Box:
    """x0 y0 x1 y1 of a random piece of an image (H, W): area in `scale` of the image's, sides in 3:4 to 4:3."""
    height, width = size
    for _ in range(_TRIES):
        area = height * width * generator.uniform(*scale)
        ratio = math.exp(generator.uniform(*np.log(_RATIOS)))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            x, y = int(generator.integers(width - w + 1)), int(generator.integers(height - h + 1))
            return x, y, x + w, y + h
    return middle_box(size)


def middle_box(size: tuple[int, int]) -> Box:
    """x0 y0 x1 y1 of the largest square in the middle of an image (H, W)."""
    height, width = size
    side = min(size)
    x, y = (width - side) // 2, (height - side) // 2
    return x, y, x + side, y + side


def resized(image: np.ndarray, box: Box, side: int, flip: bool) -> Tensor:
    """A piece of an RGB image uint8 (H, W, 3) as a square: (3, side, side) uint8, bicubic with antialiasing."""
    piece = Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC, box=box)
    array = np.array(piece)[:, :: -1 if flip else 1]
    return torch.from_numpy(np.ascontiguousarray(array)).permute(2, 0, 1)  # (3, side, side)


def as_input(crops: Tensor, preprocess: Preprocess) -> Tensor:
    """Crops (B, 3, S, S) uint8 normalised as a network wants its images: float32."""
    pixels = (crops.flip(1) if preprocess.bgr else crops).float()
    mean, std = (torch.tensor(each, device=crops.device)[:, None, None] for each in (preprocess.mean, preprocess.std))
    return (pixels - mean) / std


class FeatureTeacher:
    """A frozen network whose features of a crop are the target.

    encoder: SAM's, resized to the crop, or None. network: the whole one, for large crops, whose features are averaged
    down. One of both must be given.
    """

    def __init__(self, preprocess: Preprocess, encoder: nn.Module | None = None, network: nn.Module | None = None):
        if (encoder is None) == (network is None):
            raise ValueError("a teacher is an encoder or a network")
        self.preprocess = preprocess
        self.pools = encoder is None
        self._part = cast(nn.Module, network if encoder is None else encoder).eval().requires_grad_(False)
        self._device: torch.device | None = None

    @property
    def large_side(self) -> int | None:
        """Side of the large crop that it wants, in pixels, if it does."""
        return (self.preprocess.image_side or self.preprocess.long_side) if self.pools else None

    @torch.no_grad()
    def features(self, crops: Tensor, large: Tensor | None, grid: int) -> Tensor:
        """Of crops (B, 3, S, S) uint8, or of large ones: (B, D, grid, grid) float32."""
        if self._device != crops.device:
            self._part, self._device = self._part.to(crops.device), crops.device
        if not self.pools:
            return self._part(as_input(crops, self.preprocess)).float()
        assert large is not None
        model = cast(PromptableModel, self._part)
        found = model.encode_image(as_input(large, self.preprocess))["image_embeddings"].float()
        return functional.adaptive_avg_pool2d(found, grid)  # (B, D, grid, grid)


def at_side(encoder: SamViT, side: int) -> SamViT:
    """A copy of SAM's image encoder for squares of `side` pixels.

    Its table of positions is resized (bicubic), and the relative positions of global blocks as in SAM's own code
    (linear); windows stay as they are. Raises OptionError if side is no multiple of the patch.
    """
    config = encoder_config(encoder)
    if side % config.patch_size:
        raise OptionError(f"SAM's images must have sides that are multiples of {config.patch_size}, got {side}.")
    twin = build_image_encoder(replace(config, image_size=side))
    state = dict(encoder.state_dict())
    for name, wanted in twin.state_dict().items():
        if state[name].shape == wanted.shape:
            continue
        if name == "pos_embed":
            table = state[name].permute(0, 3, 1, 2).float()  # (1, D, h, w)
            table = functional.interpolate(table, wanted.shape[1:3], mode="bicubic", align_corners=False)
            state[name] = table.permute(0, 2, 3, 1)  # (1, grid, grid, D)
        else:
            relative = functional.interpolate(state[name].mT[None].float(), len(wanted), mode="linear")
            state[name] = relative[0].mT  # (2 grid - 1, D/heads)
    twin.load_state_dict(state)
    return twin


class CrossBlock(nn.Module):
    """A pre-norm transformer block in which unknown tokens ask the known ones and themselves."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(width, 2 * width)
        self.proj = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = Mlp(width, 4 * width)

    def forward(self, unknown: Tensor, known: Tensor) -> Tensor:
        """unknown (B, M, D), known (B, K, D) -> (B, M, D)."""
        asking = self.norm1(unknown)
        q = self.q(asking).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, heads, M, D/heads)
        kv = self.kv(torch.cat([self.norm1(known), asking], dim=1)).unflatten(-1, (2, self.heads, -1))
        k, v = kv.permute(2, 0, 3, 1, 4)  # each (B, heads, K + M, D/heads)
        found = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)  # (B, M, D)
        unknown = unknown + self.proj(found)
        return unknown + self.mlp(self.norm2(unknown))


class SamiNetwork(nn.Module):
    """EfficientSAM, whose image encoder learns, and what pretraining needs around it. Only `sam` is kept.

    The encoder's neck, and the decoder of masks, rest: they are learned by fine-tuning.
    """

    positions: Tensor

    def __init__(self, sam: EfficientSam, features: int, decoding: Decoding) -> None:
        super().__init__()
        encoder, width = sam.image_encoder, decoding.width
        dim, grid = encoder.pos_embed.shape[-1], encoder.table_size
        self.sam = sam.requires_grad_(False)
        for name, child in encoder.named_children():
            child.requires_grad_(name != "neck")
        encoder.pos_embed.requires_grad_(True)
        self.visible = decoding.visible(grid * grid)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.embed = nn.Linear(dim, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.register_buffer("positions", sine_positions(grid, width)[None])
        self.blocks = nn.ModuleList(CrossBlock(width, decoding.heads) for _ in range(decoding.depth))
        self.decoder_norm = nn.LayerNorm(width, eps=1e-6)
        self.head = nn.Linear(width, features)

    @property
    def grid(self) -> int:
        """Side of the square of patches."""
        return self.sam.image_encoder.table_size

    def forward(self, pixels: Tensor, order: Tensor) -> Tensor:
        """Pixels (B, 3, S, S) and orders (B, N) int64 of their patches -> features (B, D, grid, grid) of all patches.

        The first `visible` patches of an order are seen by the encoder.
        """
        seen, hidden = order[:, : self.visible], order[:, self.visible :]  # (B, K), (B, M)
        known = self.embed(self.norm(self.encode(pixels, seen)))  # (B, 1 + K, width)
        table = self.positions.expand(len(order), -1, -1)
        unknown = self.mask_token + picked(table, hidden)  # (B, M, width)
        known_at = torch.cat([known[:, :1], known[:, 1:] + picked(table, seen)], dim=1)
        for block in self.blocks:
            unknown = block(unknown, known_at)
        tokens = in_place(known[:, 1:], self.decoder_norm(unknown), order)  # (B, N, width)
        return self.head(tokens).mT.unflatten(2, (self.grid, self.grid))  # (B, D, grid, grid)

    def encode(self, pixels: Tensor, seen: Tensor) -> Tensor:
        """The encoder's class token and the tokens of the patches `seen` (B, K), through all blocks: (B, 1 + K, D)."""
        encoder = self.sam.image_encoder
        patches = encoder.patch_embed(pixels).flatten(2).mT  # (B, N, D)
        tokens = picked(patches + encoder.pos_embed[:, 1:], seen)  # (B, K, D)
        first = (self.cls_token + encoder.pos_embed[:, :1]).expand(len(tokens), -1, -1)
        x = torch.cat([first, tokens], dim=1)  # (B, 1 + K, D)
        for block in encoder.blocks:
            x = block(x)
        return x


def picked(tokens: Tensor, index: Tensor) -> Tensor:
    """The tokens (B, N, D) at index (B, K): (B, K, D)."""
    return tokens.gather(1, index[..., None].expand(-1, -1, tokens.shape[-1]))


def in_place(seen: Tensor, hidden: Tensor, order: Tensor) -> Tensor:
    """Tokens seen (B, K, D) and hidden (B, N - K, D), which are in the order (B, N) together, in their places."""
    return picked(torch.cat([seen, hidden], dim=1), order.argsort(dim=1))  # (B, N, D)


def sine_positions(grid: int, width: int) -> Tensor:
    """MAE's fixed code of the cells of a grid, row by row: (grid * grid, width); half of it for x, then half for y.

    Of each half, half are sines and half cosines of the place, with wavelengths from 2 pi to 10000 x 2 pi.
    """
    rates = 10000 ** -(torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    angles = torch.arange(grid)[:, None] * rates  # (grid, width / 4)
    axis = torch.cat([angles.sin(), angles.cos()], dim=1).float()  # (grid, width / 2)
    x, y = axis.expand(grid, -1, -1), axis[:, None].expand(-1, grid, -1)  # (grid, grid, width / 2)
    return torch.cat([x, y], dim=2).flatten(0, 1)


def start_as_mae(network: SamiNetwork) -> None:
    """MAE's start values for all that pretraining teaches, in place, drawn from torch's global generator."""
    encoder = network.sam.image_encoder
    for module in (encoder.blocks, network.embed, network.blocks, network.head):
        for child in module.modules():
            if isinstance(child, nn.Linear):
                nn.init.xavier_uniform_(child.weight)
                nn.init.zeros_(child.bias)
    nn.init.xavier_uniform_(encoder.patch_embed.proj.weight.data.flatten(1))
    for token in (network.cls_token, network.mask_token):
        nn.init.normal_(token, std=0.02)
    with torch.no_grad():
        encoder.pos_embed[:, :1].zero_()
        encoder.pos_embed[:, 1:] = sine_positions(network.grid, encoder.pos_embed.shape[-1])
