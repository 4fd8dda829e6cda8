"""anysam_lite's decoder: prompts as tokens and as maps, SAM's two-way transformer, and masks at stride 4.

See anysam_lite.py for the design. This is the plain form, which training, exports, GPUs and half precision use;
anysam_lite_inference.py has the same numbers in less time.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

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

_MAP_CHANNELS = 12


@dataclass(frozen=True)
class LiteConfig:
    """Widths of the parts. `frame` is the input side, in pixels, that the position code maps to 1: the long side.
    `backbone`: "lite0", "lite1" or "lite2", the size of EfficientNet-Lite.
    """

    dim: int = 128
    skip8: int = 48
    skip4: int = 16
    num_heads: int = 4
    mlp_dim: int = 512
    frame: int = 640
    backbone: str = "lite0"


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
        self,
        features: dict[str, Tensor],
        points: Tensor,
        labels: Tensor,
        mask_logits: Tensor | None,
        has_mask: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Features of one image, points (P, N, 2), labels (P, N), mask_logits (P, 1, H/4, W/4) or None.

        has_mask: (1,) float32, 0 where mask_logits do not count, else 1: for graphs that always take some. None is 1.
        Returns the logits of all four masks (P, 4, H/4, W/4) and their predicted IoU (P, 4).
        """
        embeddings = features["image_embeddings"]
        h, w = embeddings.shape[-2:]
        drawn = functional.relu(
            self.maps8(draw_prompts(features["skip8"], points, labels, mask_logits, has_mask))
        )  # (P, 32, 2h, 2w)
        tokens = self.tokens(embeddings, points, labels)
        queries, keys = self.transformer(embeddings + self.maps16(drawn), self.image_pe(h, w), tokens)
        x16 = keys.transpose(1, 2).unflatten(2, (h, w))  # (P, D, h, w)
        x8 = functional.relu(self.norm8(self.up8(x16) + features["skip8"] + self.maps8_skip(drawn)))  # (P, C8, 2h, 2w)
        x8 = x8 + functional.relu(self.conv8(x8))
        x4 = functional.relu(self.up4(x8) + features["skip4"])  # (P, C4, 4h, 4w)
        weights = torch.stack([head(queries[:, 1 + i]) for i, head in enumerate(self.hypernetworks)], dim=1)
        # channels are last in memory here: a product with the transpose needs no copy
        cells = x4.permute(0, 2, 3, 1).flatten(1, 2)  # (P, 4h * 4w, C4)
        low_res_logits = (weights @ cells.transpose(1, 2)).unflatten(2, (4 * h, 4 * w))  # (P, 4, 4h, 4w)
        return low_res_logits, self.iou_prediction_head(queries[:, 0])

    def tokens(self, embeddings: Tensor, points: Tensor, labels: Tensor) -> Tensor:
        """[IoU token, mask tokens, prompt tokens] for every prompt: (P, 5 + N, D)."""
        frame = (self.frame, self.frame)
        sparse = encode_tokens(self.pe_layer, self.point_embeddings, self.not_a_point_embed, points, labels, frame)
        sparse = sparse + self.content(sample(embeddings, points, 16)) * (labels >= 0)[..., None]  # (P, N, D)
        return output_tokens(self.iou_token, self.mask_tokens, sparse)

    def image_pe(self, h: int, w: int) -> Tensor:
        """Position code of the cells at stride 16: (1, D, h, w)."""
        return self.pe_layer.grid(h, w, (self.frame / 16, self.frame / 16))


def sample(features: Tensor, points: Tensor, stride: int) -> Tensor:
    """Bilinear features (1, D, h, w) at points (P, N, 2) in input-frame pixels: (P, N, D)."""
    h, w = features.shape[-2:]
    points = points.float()
    x, y = (points[..., 0] + 0.5) / (w * stride), (points[..., 1] + 0.5) / (h * stride)  # (P, N) each
    grid = (torch.stack([x, y], dim=-1) * 2 - 1).reshape(1, -1, 1, 2)  # (1, P * N, 1, 2) in [-1, 1]
    # In float32: torch 2.13's half-precision grid_sample gives garbage for channels-last tensors on a CPU.
    sampled = functional.grid_sample(features.float(), grid, padding_mode="border", align_corners=False)
    return sampled[0, :, :, 0].T.unflatten(0, (points.shape[0], points.shape[1])).to(features.dtype)  # (P, N, D)


def draw_prompts(
    skip8: Tensor, points: Tensor, labels: Tensor, mask_logits: Tensor | None, has_mask: Tensor | None = None
) -> Tensor:
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
        previous = previous if has_mask is None else previous * has_mask
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


def limit_to_box(logits: Tensor, points: Tensor, labels: Tensor, size: tuple[int, int] | None = None) -> Tensor:
    """Logits (P, C, H/4, W/4) that are nowhere positive outside the prompt's box; unchanged without a box.

    A box says where the object ends, so what leaks out of it is wrong (docs/training.md has what this brings). A
    foreground click outside widens it. The limit is the distance to the nearest side, in pixels times 2: linear, so
    that bilinear upscaling puts its zero exactly on the side. Boxes under two cells are not limited so closely: no
    cell's centre might lie inside. size: (H/4, W/4), for a tracer that takes the logits' own for a constant.
    """
    h, w = logits.shape[-2:] if size is None else size
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
