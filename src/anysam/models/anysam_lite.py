"""anysam_lite: the small promptable model that ships inside the package and is used when no model is named.

Our own design, no paper. Encoder: EfficientNet-Lite0 (Liu et al. 2020, the "lite" variant of Tan & Le 2019; batch norms
folded into the convolutions) at strides 4 to 32, and a small feature pyramid. Decoder: SAM's prompt tokens, two-way
transformer and 3+1 mask tokens (see sam_decoder.py) at half of SAM's width, with three additions that let it learn
from little data:
- a token of a click also carries the image embedding under the click;
- prompts are drawn as maps (clicks as Gaussians, the box as inside/relative coordinates, the previous mask) beside the
  tokens, together with the similarity of every place to the clicked places;
- features of strides 8 and 4 enter the upscaler, so that borders are crisp.

The input is not square: long side 640, padded to multiples of 32. A 640x480 photo costs 3/4 of a square. (The shipped
weights were trained at 512; at 640, with the position code stretched along, they score higher: docs/training.md.)
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from anysam.models import Decoded, MultimaskDefault
from anysam.models.sam_decoder import (
    BACKGROUND,
    BOX_BOTTOM_RIGHT,
    BOX_TOP_LEFT,
    FOREGROUND,
    MLP,
    LayerNorm2d,
    PositionEmbeddingRandom,
    TwoWayTransformer,
    encode_tokens,
    output_tokens,
)
from anysam.preprocess import Preprocess


@dataclass(frozen=True)
class LiteConfig:
    """Widths of the parts. `frame` is the input side, in pixels, that the position code maps to 1: the long side."""

    dim: int = 128
    skip8: int = 48
    skip4: int = 16
    num_heads: int = 4
    mlp_dim: int = 512
    frame: int = 640


SIZES = {"lite": LiteConfig()}

# EfficientNet-Lite0's stages: repeats, kernel, stride, expansion, output channels.
_STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
# After which stages the features of strides 4, 8, 16 and 32 are taken.
_TAPS = (1, 2, 4, 6)
_MAP_CHANNELS = 12


class SameConv2d(nn.Conv2d):
    """Convolution padded as TensorFlow's SAME: with stride 2 on an even side, the extra row goes right and bottom."""

    def __init__(self, cin: int, cout: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__(cin, cout, kernel, stride, padding=0 if stride == 2 else kernel // 2, groups=groups)

    def forward(self, x: Tensor) -> Tensor:
        if self.stride[0] == 2:
            before, after = (self.kernel_size[0] - 2) // 2, (self.kernel_size[0] - 1) // 2
            x = functional.pad(x, (before, after, before, after))
        return super().forward(x)


class InvertedResidual(nn.Module):
    """1x1 expansion, depthwise convolution, 1x1 projection; a residual where the shape allows it."""

    def __init__(self, cin: int, cout: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = cin * expansion
        self.expand = SameConv2d(cin, hidden, 1) if expansion != 1 else None
        self.depthwise = SameConv2d(hidden, hidden, kernel, stride, groups=hidden)
        self.project = SameConv2d(hidden, cout, 1)
        self.residual = stride == 1 and cin == cout

    def forward(self, x: Tensor) -> Tensor:
        y = x if self.expand is None else functional.relu6(self.expand(x), inplace=True)
        y = self.project(functional.relu6(self.depthwise(y), inplace=True))
        return x + y if self.residual else y


class EfficientNetLite0(nn.Module):
    """The backbone: (B, 3, H, W) normalised pixels -> features at strides 4, 8, 16, 32."""

    channels = (24, 40, 112, 320)

    def __init__(self) -> None:
        super().__init__()
        self.stem = SameConv2d(3, 32, 3, stride=2)
        self.stages = nn.ModuleList()
        cin = 32
        for repeats, kernel, stride, expansion, cout in _STAGES:
            blocks = [InvertedResidual(cin, cout, kernel, stride, expansion)]
            blocks += [InvertedResidual(cout, cout, kernel, 1, expansion) for _ in range(repeats - 1)]
            self.stages.append(nn.Sequential(*blocks))
            cin = cout

    def forward(self, pixels: Tensor) -> list[Tensor]:
        x = functional.relu6(self.stem(pixels), inplace=True)
        taps = []
        for i, stage in enumerate(self.stages):
            x = stage(x)
            if i in _TAPS:
                taps.append(x)
        return taps


class ResidualConv(nn.Module):
    """Two 3x3 convolutions on a normalised input, added to it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = LayerNorm2d(channels)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(functional.relu(self.conv1(self.norm(x))))


class Neck(nn.Module):
    """A feature pyramid: image_embeddings at stride 16, skip features at strides 8 and 4."""

    def __init__(self, config: LiteConfig) -> None:
        super().__init__()
        c4, c8, c16, c32 = EfficientNetLite0.channels
        dim, mid = config.dim, config.dim // 2
        self.lateral32 = nn.Conv2d(c32, dim, 1)
        self.block32 = ResidualConv(dim)
        self.lateral16 = nn.Conv2d(c16, dim, 1)
        self.block16a = ResidualConv(dim)
        self.block16b = ResidualConv(dim)
        self.norm16 = LayerNorm2d(dim)
        self.lateral8 = nn.Conv2d(c8, mid, 1)
        self.down8 = nn.Conv2d(dim, mid, 1)
        self.block8 = ResidualConv(mid)
        self.skip8 = nn.Conv2d(mid, config.skip8, 1)
        self.lateral4 = nn.Conv2d(c4, mid // 2, 1)
        self.down4 = nn.Conv2d(mid, mid // 2, 1)
        self.block4 = nn.Conv2d(mid // 2, mid // 2, 3, padding=1)
        self.skip4 = nn.Conv2d(mid // 2, config.skip4, 1)

    def forward(self, features: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        f4, f8, f16, f32 = features
        x32 = self.block32(self.lateral32(f32))
        x16 = self.lateral16(f16) + _double(x32)
        x16 = self.norm16(self.block16b(self.block16a(x16)))
        x8 = self.block8(self.lateral8(f8) + _double(self.down8(x16)))
        x4 = functional.relu(self.lateral4(f4) + _double(self.down4(x8)))
        x4 = functional.relu(self.block4(x4))
        return x16, self.skip8(x8), self.skip4(x4)


def _double(x: Tensor) -> Tensor:
    return functional.interpolate(x, scale_factor=2.0, mode="nearest")


class LiteDecoder(nn.Module):
    """Prompt tokens and maps + features -> mask logits at stride 4 and predicted IoU."""

    def __init__(self, config: LiteConfig) -> None:
        super().__init__()
        dim = config.dim
        self.frame = config.frame
        self.pe_layer = PositionEmbeddingRandom(dim // 2)
        self.point_embeddings = nn.ModuleList(nn.Embedding(1, dim) for _ in range(4))
        self.not_a_point_embed = nn.Embedding(1, dim)
        self.content = nn.Linear(dim, dim)
        self.maps8 = nn.Conv2d(_MAP_CHANNELS, 32, 3, padding=1)
        self.maps16 = nn.Conv2d(32, dim, 2, stride=2)
        self.maps8_skip = nn.Conv2d(32, config.skip8, 1)
        self.transformer = TwoWayTransformer(2, dim, config.num_heads, config.mlp_dim)
        self.num_mask_tokens = 4
        self.iou_token = nn.Embedding(1, dim)
        self.mask_tokens = nn.Embedding(self.num_mask_tokens, dim)
        self.up8 = nn.ConvTranspose2d(dim, config.skip8, 2, stride=2)
        self.norm8 = LayerNorm2d(config.skip8)
        self.conv8 = nn.Conv2d(config.skip8, config.skip8, 3, padding=1)
        self.up4 = nn.ConvTranspose2d(config.skip8, config.skip4, 2, stride=2)
        self.hypernetworks = nn.ModuleList(MLP(dim, dim, config.skip4, 3) for _ in range(self.num_mask_tokens))
        self.iou_prediction_head = MLP(dim, dim, self.num_mask_tokens, 3)

    def forward(
        self, features: dict[str, Tensor], points: Tensor, labels: Tensor, mask_logits: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Features of one image, points (P, N, 2), labels (P, N), mask_logits (P, 1, H/4, W/4) or None.

        Returns the logits of all four masks (P, 4, H/4, W/4) and their predicted IoU (P, 4).
        """
        embeddings = features["image_embeddings"]
        h, w = embeddings.shape[-2:]
        drawn = functional.relu(
            self.maps8(draw_prompts(features["skip8"], points, labels, mask_logits))
        )  # (P, 32, 2h, 2w)
        sparse = encode_tokens(
            self.pe_layer, self.point_embeddings, self.not_a_point_embed, points, labels, (self.frame, self.frame)
        )
        sparse = sparse + self.content(sample(embeddings, points, 16)) * (labels >= 0)[..., None]  # (P, N, D)
        tokens = output_tokens(self.iou_token, self.mask_tokens, sparse)  # (P, 5 + N, D)
        image_pe = self.pe_layer.grid(h, w, (self.frame / 16, self.frame / 16))  # (1, D, h, w)
        queries, keys = self.transformer(embeddings + self.maps16(drawn), image_pe, tokens)
        x16 = keys.transpose(1, 2).unflatten(2, (h, w))  # (P, D, h, w)
        x8 = functional.relu(self.norm8(self.up8(x16) + features["skip8"] + self.maps8_skip(drawn)))  # (P, C8, 2h, 2w)
        x8 = x8 + functional.relu(self.conv8(x8))
        x4 = functional.relu(self.up4(x8) + features["skip4"])  # (P, C4, 4h, 4w)
        weights = torch.stack([head(queries[:, 1 + i]) for i, head in enumerate(self.hypernetworks)], dim=1)
        # channels are last in memory here: a product with the transpose needs no copy
        cells = x4.permute(0, 2, 3, 1).flatten(1, 2)  # (P, 4h * 4w, C4)
        low_res_logits = (weights @ cells.transpose(1, 2)).unflatten(2, x4.shape[-2:])  # (P, 4, 4h, 4w)
        return low_res_logits, self.iou_prediction_head(queries[:, 0])


def sample(features: Tensor, points: Tensor, stride: int) -> Tensor:
    """Bilinear features (1, D, h, w) at points (P, N, 2) in input-frame pixels: (P, N, D)."""
    h, w = features.shape[-2:]
    points = points.float()
    grid = (points + 0.5) / points.new_tensor([w * stride, h * stride]) * 2 - 1  # (P, N, 2) in [-1, 1]
    grid = grid.reshape(1, -1, 1, 2)  # (1, P * N, 1, 2)
    # In float32: torch 2.13's half-precision grid_sample gives garbage for channels-last tensors on a CPU.
    sampled = functional.grid_sample(features.float(), grid, padding_mode="border", align_corners=False)
    return sampled[0, :, :, 0].T.unflatten(0, points.shape[:2]).to(features.dtype)  # (P, N, D)


def draw_prompts(skip8: Tensor, points: Tensor, labels: Tensor, mask_logits: Tensor | None) -> Tensor:
    """Prompts as maps at stride 8: (P, 12, 2h, 2w).

    0-3 clicks (foreground near and wide, background near and wide), 4-5 cosine similarity to the most similar place
    clicked as foreground and as background (not below 0),
    6-9 box (is there one, inside, position relative to it in x and y), 10-11 previous mask (is there one, its value).
    """
    h, w = skip8.shape[-2:]
    xs = (torch.arange(w, device=points.device) + 0.5) * 8 - 0.5
    ys = (torch.arange(h, device=points.device) + 0.5) * 8 - 0.5
    gx = torch.exp(-((xs - points[..., :1]) ** 2) / 2 / 8**2)  # (P, N, w)
    gy = torch.exp(-((ys - points[..., 1:]) ** 2) / 2 / 8**2)  # (P, N, h)
    fx, fy = gx ** (1 / 25), gy ** (1 / 25)  # the same with five times the width
    unit = functional.normalize(skip8, dim=1)
    code = functional.normalize(sample(skip8, points, 8), dim=-1)  # (P, N, C)
    near = torch.einsum("pnc,chw->pnhw", code, unit[0])  # (P, N, h, w)
    clicks, similar = [], []
    for label in (FOREGROUND, BACKGROUND):
        chosen = (labels == label).to(points.dtype)[..., None]  # (P, N, 1)
        clicks.append(torch.einsum("pnh,pnw->phw", gy * chosen, gx))
        clicks.append(torch.einsum("pnh,pnw->phw", fy * chosen, fx))
        similar.append((near * chosen[..., None]).amax(dim=1).clamp(min=0))
    maps = torch.stack(clicks + similar + draw_box(xs, ys, points, labels), dim=1)  # (P, 10, h, w)
    if mask_logits is None:
        previous = maps.new_zeros(maps.shape[0], 2, h, w)
    else:
        value = functional.avg_pool2d(mask_logits.clamp(-8, 8) / 4, 2)  # (P, 1, h, w)
        previous = torch.cat([torch.ones_like(value), value], dim=1)  # (P, 2, h, w)
    return torch.cat([maps, previous.to(maps.dtype)], dim=1).to(skip8.dtype)


def draw_box(xs: Tensor, ys: Tensor, points: Tensor, labels: Tensor) -> list[Tensor]:
    """The box as four (P, h, w) maps: there is one, how far inside, and x and y relative to it within [-2, 2]."""
    top_left = ((labels == BOX_TOP_LEFT)[..., None] * points).sum(dim=1)  # (P, 2)
    bottom_right = ((labels == BOX_BOTTOM_RIGHT)[..., None] * points).sum(dim=1)  # (P, 2)
    there = (labels == BOX_TOP_LEFT).any(dim=1).to(points.dtype)[:, None, None]  # (P, 1, 1)
    centre = (top_left + bottom_right) / 2
    half = ((bottom_right - top_left) / 2).clamp(min=1.0)
    u = (xs - centre[:, :1]) / half[:, :1]  # (P, w)
    v = (ys - centre[:, 1:]) / half[:, 1:]  # (P, h)
    # distance to the nearest side in cells of 8 pixels, positive inside
    dx = (1 - u.abs()) * half[:, :1] / 8
    dy = (1 - v.abs()) * half[:, 1:] / 8
    inside = torch.minimum(dx[:, None, :], dy[:, :, None]).clamp(-1, 1)  # (P, h, w)
    u, v = u.clamp(-2, 2)[:, None, :], v.clamp(-2, 2)[:, :, None]
    return [(there * t).expand_as(inside) for t in (torch.ones_like(inside), inside, u, v)]


def limit_to_box(logits: Tensor, points: Tensor, labels: Tensor) -> Tensor:
    """Logits (P, C, H/4, W/4) that are nowhere positive outside the prompt's box; unchanged without a box.

    A box says where the object ends, so what leaks out of it is wrong (docs/training.md has what this brings). A
    foreground click outside widens it. The limit is the distance to the nearest side, in pixels times 2: linear, so
    that bilinear upscaling puts its zero exactly on the side. Boxes under two cells are not limited so closely: no
    cell's centre might lie inside.
    """
    h, w = logits.shape[-2:]
    corner = (labels == BOX_TOP_LEFT) | (labels == BOX_BOTTOM_RIGHT)  # (P, N)
    counts = (corner | (labels == FOREGROUND))[..., None]  # (P, N, 1)
    low = points.masked_fill(~counts, torch.inf).amin(dim=1)  # (P, 2)
    high = points.masked_fill(~counts, -torch.inf).amax(dim=1)  # (P, 2)
    margin = (8 - (high - low)).clamp(min=0) / 2
    low, high = low - margin, high + margin
    xs, ys = ((torch.arange(n, device=points.device) + 0.5) * 4 for n in (w, h))  # centres of the cells, in pixels
    dx = torch.minimum(xs - low[:, :1], high[:, :1] - xs)  # (P, w)
    dy = torch.minimum(ys - low[:, 1:], high[:, 1:] - ys)  # (P, h)
    limit = 2 * torch.minimum(dx[:, None, :], dy[:, :, None])  # (P, h, w)
    limit = limit.masked_fill(~corner.any(dim=1)[:, None, None], torch.inf)
    return torch.minimum(logits, limit[:, None].to(logits.dtype))  # (P, C, h, w)


class AnySamLite(nn.Module):
    """Backbone, neck and decoder; see the module's docstring."""

    multimask_default: MultimaskDefault = "single_point"
    float32_parts: tuple[str, ...] = ()
    preprocess = Preprocess(long_side=640, pad_to=None, pad_multiple=32, name="anysam_lite")

    def __init__(self, config: LiteConfig) -> None:
        super().__init__()
        self.backbone = EfficientNetLite0()
        self.neck = Neck(config)
        self.decoder = LiteDecoder(config)

    def encode_image(self, pixels: Tensor) -> dict[str, Tensor]:
        """pixels (B, 3, H, W) normalised, H and W multiples of 32 -> features at strides 16, 8 and 4."""
        # channels last in memory: 1.3 times as fast on a CPU, and what the decoder's views expect
        pixels = pixels.contiguous(memory_format=torch.channels_last)
        embeddings, skip8, skip4 = self.neck(self.backbone(pixels))
        return {"image_embeddings": embeddings, "skip8": skip8, "skip4": skip4}

    def decode(
        self, features: dict[str, Tensor], points: Tensor, labels: Tensor, mask_logits: Tensor | None, multimask: bool
    ) -> Decoded:
        """See models.PromptableModel.decode: low_res_logits (P, C, H/4, W/4), iou_predictions (P, C); C is 3 or 1."""
        features = {name: value.contiguous(memory_format=torch.channels_last) for name, value in features.items()}
        low_res_logits, iou_predictions = self.decoder(features, points, labels, mask_logits)
        chosen = slice(1, None) if multimask else slice(0, 1)
        return Decoded(limit_to_box(low_res_logits[:, chosen], points, labels), iou_predictions[:, chosen])


def build(size: str) -> AnySamLite:
    """The network of a size in SIZES, with random weights, channels last in memory."""
    return AnySamLite(SIZES[size]).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
