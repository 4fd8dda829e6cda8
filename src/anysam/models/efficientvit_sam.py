"""EfficientViT-SAM: a convolutional encoder with multi-scale linear attention before SAM's prompt encoder and decoder.

Papers: Zhang et al., "EfficientViT-SAM: Accelerated Segment Anything Model Without Accuracy Loss", 2024, and Cai et
al., "EfficientViT: Multi-Scale Linear Attention for High-Resolution Dense Prediction", 2023. Source:
mit-han-lab/efficientvit@de7d773, efficientvit/models/efficientvit/{sam,backbone}.py, efficientvit/models/nn/ops.py and
efficientvit/sam_model_zoo.py (Apache-2.0). Written anew; parameter names are the official ones, so published
state_dicts load unchanged.

What is unusual here:
- Every norm has eps 1e-6, also the LayerNorms of the mask decoder's transformer, which has 1e-5 in every other SAM.
- l0, l1 and l2 see an image of 512 pixels, yet prompts are in a frame of 1024 and the embedding is 64 x 64 as in SAM:
  the neck takes stages of strides 8, 16 and 32. xl0 and xl1 see 1024 pixels and take strides 16, 32 and 64.
- Attention is linear in the number of tokens: with ReLU in the place of softmax, the output is q (k^T v) / (q sum(k)).
  Half the heads see queries, keys and values averaged over a neighbourhood by a learned depthwise filter. There is no
  position embedding.
- GELU is the tanh approximation in encoder and neck, the exact one in SAM's parts.
- In the late stages only the last convolution of a block has a norm; the others have a bias instead.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from anysam.errors import UnknownModelError
from anysam.models.layers import fuse_conv_bn
from anysam.models.sam import Sam
from anysam.models.sam_decoder import LayerNorm2d, MaskDecoder, PromptEncoder
from anysam.models.winograd import faster
from anysam.preprocess import Preprocess

NORM_EPS = 1e-6

# 2 sqrt(2 / pi), and the same times the approximation's 0.044715.
_GELU_LINEAR, _GELU_CUBIC = 1.5957691216057308, 0.07135481627159992
_GELU_PIECE = 64 * 1024  # values per thread

BlockKind = Literal["res", "fmb", "mb", "att"]


@dataclass(frozen=True)
class StageConfig:
    """One stage of the backbone; all but the first begin with a block that halves the resolution.

    width: channels. depth: blocks after the first one. kind: of those blocks: two 3x3 convolutions ("res"), a 3x3 and a
    1x1 convolution ("fmb"), an inverted bottleneck ("mb"), or linear attention and an inverted bottleneck ("att").
    expand: inner channels of a block per channel; four times as many in a stage's first block. fewer_norm: only the
    last convolution of a block has a norm. aggregation: side of the attention's depthwise filter.
    """

    width: int
    depth: int
    kind: BlockKind
    expand: int
    fewer_norm: bool = False
    aggregation: int = 5


@dataclass(frozen=True)
class EfficientViTConfig:
    """The shape of an image encoder.

    stages: from stride 2 on, each of half the resolution of the one before; the neck reads the last three.
    neck_depth, neck_expand: blocks after the sum, and their inner channels per channel. image_side: side of the square
    image that the network sees; frame: side of the square frame that prompts are in; both in pixels. head_dim:
    channels of an attention head. out_channels: of the embedding.
    """

    stages: tuple[StageConfig, ...]
    neck_depth: int
    neck_expand: int
    image_side: int
    frame: int = 1024
    head_dim: int = 32
    out_channels: int = 256

    def __post_init__(self) -> None:
        if len(self.stages) < 3:
            raise ValueError(f"the neck reads three stages, got {len(self.stages)}")
        if self.stages[0].kind != "res" or self.stages[0].expand != 1:
            raise ValueError(f"the first stage must be of kind 'res' with expand 1, got {self.stages[0]}")
        if any(stage.kind == "res" for stage in self.stages[1:]):
            raise ValueError(f"only the first stage may be of kind 'res', got {self.stages}")
        if self.frame % 16:
            raise ValueError(f"frame must be a multiple of 16, got {self.frame}")
        for stage in self.stages:
            if stage.kind == "att" and stage.width % self.head_dim:
                raise ValueError(f"widths of attention must be multiples of {self.head_dim}, got {stage.width}")

    @property
    def grid_size(self) -> int:
        """Side of the square embedding."""
        return self.frame // 16


def _large(depths: tuple[int, int, int, int, int], neck_depth: int) -> EfficientViTConfig:
    stages = (
        StageConfig(32, depths[0], "res", 1),
        StageConfig(64, depths[1], "fmb", 4),
        StageConfig(128, depths[2], "fmb", 4),
        StageConfig(256, depths[3], "mb", 4, fewer_norm=True),
        StageConfig(512, depths[4], "att", 6, fewer_norm=True),
    )
    return EfficientViTConfig(stages, neck_depth, neck_expand=1, image_side=512)


def _extra_large(depths: tuple[int, int, int, int, int, int], neck_depth: int) -> EfficientViTConfig:
    stages = (
        StageConfig(32, depths[0], "res", 1),
        StageConfig(64, depths[1], "fmb", 4),
        StageConfig(128, depths[2], "fmb", 4),
        StageConfig(256, depths[3], "fmb", 4),
        StageConfig(512, depths[4], "att", 4, fewer_norm=True, aggregation=3),
        StageConfig(1024, depths[5], "att", 6, fewer_norm=True, aggregation=3),
    )
    return EfficientViTConfig(stages, neck_depth, neck_expand=4, image_side=1024)


SIZES = {
    "l0": _large((1, 1, 1, 4, 4), neck_depth=4),
    "l1": _large((1, 1, 1, 6, 6), neck_depth=8),
    "l2": _large((1, 2, 2, 8, 8), neck_depth=12),
    "xl0": _extra_large((0, 1, 1, 2, 3, 3), neck_depth=6),
    "xl1": _extra_large((1, 2, 2, 4, 6, 6), neck_depth=12),
}


class ConvLayer(nn.Module):
    """A convolution that keeps the size (or halves it, by stride 2), then batch norm and GELU where asked for.

    Without a norm, the convolution has a bias if `bias` says so; with one, never.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int = 1,
        stride: int = 1,
        groups: int = 1,
        norm: bool = True,
        bias: bool = False,
        gelu: bool = False,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(
            in_channels, out_channels, kernel, stride, kernel // 2, groups=groups, bias=bias and not norm
        )
        self.norm = nn.BatchNorm2d(out_channels, eps=NORM_EPS) if norm else None
        self.gelu = gelu

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, h, w) -> (B, out, h / stride, w / stride)."""
        x = self.conv(x)
        if self.norm is not None:
            x = self.norm(x)
        return functional.gelu(x, approximate="tanh") if self.gelu else x

    def fused(self) -> nn.Module:
        conv = copy.deepcopy(self.conv) if self.norm is None else fuse_conv_bn(self.conv, self.norm)
        conv.weight = nn.Parameter(conv.weight.detach().contiguous(memory_format=torch.channels_last))
        quick = faster(conv)
        return nn.Sequential(quick, TanhGelu()) if self.gelu else quick


class TanhGelu(nn.Module):
    """GELU in its tanh approximation, for inference.

    PyTorch's own is a seventh of the network's time on a CPU, most of it in tanh. By 0.5 (1 + tanh(u)) = sigmoid(2 u)
    the same is x sigmoid(x (a + b x^2)), here in four steps over pieces that stay in the cache, in half the time.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Any shape and dtype."""
        as_graph = torch.compiler.is_compiling() or (torch.is_grad_enabled() and x.requires_grad)
        if as_graph or x.dtype != torch.float32 or x.device.type != "cpu":
            return functional.gelu(x, approximate="tanh")
        out = torch.empty_like(x)  # channels last if x is
        if x.stride() != out.stride():  # x has gaps in memory
            return functional.gelu(x, approximate="tanh")
        flat, flat_out = (t.as_strided((x.numel(),), (1,)) for t in (x, out))  # in the order of memory
        linear = torch.tensor(_GELU_LINEAR)
        size = _GELU_PIECE * torch.get_num_threads()
        for piece, piece_out in zip(flat.split(size), flat_out.split(size), strict=True):
            torch.addcmul(linear, piece, piece, value=_GELU_CUBIC, out=piece_out)
            piece_out.mul_(piece).sigmoid_().mul_(piece)
        return out


class OpList(nn.Module):
    """Modules one after the other, under the official name."""

    def __init__(self, op_list: Sequence[nn.Module]) -> None:
        super().__init__()
        self.op_list = nn.ModuleList(op_list)

    def forward(self, x: Tensor) -> Tensor:
        for op in self.op_list:
            x = op(x)
        return x


class Block(nn.Module):
    """`main`, added to its input where `shortcut` says so."""

    def __init__(self, main: nn.Module, shortcut: bool = True) -> None:
        super().__init__()
        self.main = main
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        return x + self.main(x) if self.shortcut else self.main(x)


class ResConv(nn.Module):
    """Two 3x3 convolutions of equal width."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = ConvLayer(channels, channels, 3, gelu=True)
        self.conv2 = ConvLayer(channels, channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv2(self.conv1(x))


class FusedMBConv(nn.Module):
    """A 3x3 convolution to `inner` channels and a 1x1 convolution from them."""

    def __init__(self, in_channels: int, inner: int, out_channels: int, stride: int = 1) -> None:
        super().__init__()
        self.spatial_conv = ConvLayer(in_channels, inner, 3, stride, gelu=True)
        self.point_conv = ConvLayer(inner, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.point_conv(self.spatial_conv(x))


class MBConv(nn.Module):
    """An inverted bottleneck: 1x1 to `inner` channels, 3x3 depthwise, 1x1."""

    def __init__(
        self, in_channels: int, inner: int, out_channels: int, stride: int = 1, fewer_norm: bool = False
    ) -> None:
        super().__init__()
        norm = not fewer_norm
        self.inverted_conv = ConvLayer(in_channels, inner, norm=norm, bias=True, gelu=True)
        self.depth_conv = ConvLayer(inner, inner, 3, stride, groups=inner, norm=norm, bias=True, gelu=True)
        self.point_conv = ConvLayer(inner, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.point_conv(self.depth_conv(self.inverted_conv(x)))


class LinearAttention(nn.Module):
    """ReLU attention at two scales: of every pixel, and of learned averages over aggregation x aggregation pixels."""

    def __init__(self, channels: int, head_dim: int, aggregation: int) -> None:
        super().__init__()
        inner = 3 * channels
        self.head_dim = head_dim
        self.qkv = ConvLayer(channels, inner, norm=False)
        average = nn.Conv2d(inner, inner, aggregation, padding=aggregation // 2, groups=inner, bias=False)
        mix = nn.Conv2d(inner, inner, 1, groups=inner // head_dim, bias=False)
        self.aggreg = nn.ModuleList([nn.Sequential(average, mix)])
        self.proj = ConvLayer(2 * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, D, h, w) -> the same shape."""
        qkv = self.qkv(x)  # (B, 3 D, h, w), per head its query, key and value
        qkv = torch.cat([qkv, self.aggreg[0](qkv)], dim=1)  # (B, 6 D, h, w)
        out = linear_attention(qkv.unflatten(1, (-1, 3, self.head_dim)))  # (B, 2 heads, D/heads, h, w)
        return self.proj(out.flatten(1, 2).to(x.dtype))


def at_least_float32(x: Tensor) -> Tensor:
    """x, in float32 if it is in half precision."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def linear_attention(qkv: Tensor) -> Tensor:
    """qkv (B, heads, 3, D, h, w) -> (B, heads, D, h, w): relu(q) (relu(k)^T v) / (relu(q) . sum of relu(k)).

    In float32 at least: the sums run over all pixels, past the range of float16 and the digits of bfloat16.
    """
    h, w = qkv.shape[-2:]
    q, k, v = at_least_float32(qkv).flatten(4).unbind(2)  # each (B, heads, D, hw)
    q, k = q.relu(), k.relu()
    summed = torch.cat([v @ k.mT, k.sum(-1)[:, :, None]], dim=2)  # (B, heads, D + 1, D)
    out = summed @ q  # (B, heads, D + 1, hw)
    # A query of zeros only attends to nothing: then 0 / tiny is 0.
    return (out[:, :, :-1] / (out[:, :, -1:] + 1e-15)).unflatten(3, (h, w))  # (B, heads, D, h, w)


class AttentionBlock(nn.Module):
    """Linear attention, then an inverted bottleneck, each added to its input."""

    def __init__(self, stage: StageConfig, head_dim: int) -> None:
        super().__init__()
        width = stage.width
        self.context_module = Block(LinearAttention(width, head_dim, stage.aggregation))
        self.local_module = Block(MBConv(width, width * stage.expand, width, fewer_norm=stage.fewer_norm))

    def forward(self, x: Tensor) -> Tensor:
        return self.local_module(self.context_module(x))


def _first_stage(stage: StageConfig) -> OpList:
    blocks = [Block(ResConv(stage.width)) for _ in range(stage.depth)]
    return OpList([ConvLayer(3, stage.width, 3, 2, gelu=True), *blocks])


def _later_stage(in_channels: int, stage: StageConfig, head_dim: int) -> OpList:
    width, expand = stage.width, stage.expand
    if stage.kind == "fmb":
        first: nn.Module = FusedMBConv(in_channels, in_channels * expand * 4, width, 2)
    else:
        first = MBConv(in_channels, in_channels * expand * 4, width, 2, stage.fewer_norm)
    blocks: list[nn.Module] = [Block(first, shortcut=False)]
    for _ in range(stage.depth):
        if stage.kind == "att":
            blocks.append(AttentionBlock(stage, head_dim))
        elif stage.kind == "fmb":
            blocks.append(Block(FusedMBConv(width, width * expand, width)))
        else:
            blocks.append(Block(MBConv(width, width * expand, width, fewer_norm=stage.fewer_norm)))
    return OpList(blocks)


class Backbone(nn.Module):
    """Stages of halving resolution."""

    def __init__(self, config: EfficientViTConfig) -> None:
        super().__init__()
        widths = [stage.width for stage in config.stages]
        later = zip(widths[:-1], config.stages[1:], strict=True)
        self.stages = nn.ModuleList(
            [_first_stage(config.stages[0]), *(_later_stage(width, stage, config.head_dim) for width, stage in later)]
        )

    def forward(self, pixels: Tensor) -> list[Tensor]:
        """Pixels (B, 3, H, W) -> every stage's output, the last one first."""
        features = [pixels]
        for stage in self.stages:
            features.append(stage(features[-1]))
        return features[:0:-1]


class Resize(nn.Module):
    """Bicubic resize to size x size, as two matrix products, which take a fraction of interpolate's time on a CPU."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        """(B, D, h, w) -> (B, D, size, size)."""
        if x.shape[-2:] == (self.size, self.size):
            return x
        down, across = (self._weights(side, x.device) for side in x.shape[-2:])  # (size, h), (size, w)
        rows = at_least_float32(x).permute(0, 2, 3, 1)  # (B, h, w, D)
        down, across = down.to(rows.dtype), across.to(rows.dtype)
        resized = across @ (down @ rows.flatten(2)).unflatten(2, rows.shape[2:])  # (B, size, size, D)
        return resized.permute(0, 3, 1, 2).to(x.dtype)

    def _weights(self, side: int, device: torch.device) -> Tensor:
        """What each of `side` values adds to each of `size`: (size, side)."""
        units = torch.eye(side, device=device)[None, :, :, None]  # (1, side, side, 1)
        resized = functional.interpolate(units, (self.size, 1), mode="bicubic", align_corners=False)
        return resized[0, :, :, 0].T  # (size, side)


class Neck(nn.Module):
    """The last three stages, brought to one width and size, summed and refined."""

    def __init__(self, config: EfficientViTConfig) -> None:
        super().__init__()
        width = config.out_channels
        self.input_ops = nn.ModuleList(
            OpList([ConvLayer(stage.width, width), Resize(config.grid_size)]) for stage in config.stages[:-4:-1]
        )
        inner = width * config.neck_expand
        self.middle = OpList([Block(FusedMBConv(width, inner, width)) for _ in range(config.neck_depth)])
        self.output_ops = nn.ModuleList([OpList([ConvLayer(width, width, norm=False, bias=True)])])

    def forward(self, features: list[Tensor]) -> Tensor:
        """Outputs of the stages, the last one first -> (B, out_channels, h, w)."""
        last, middle, first = (op(x) for op, x in zip(self.input_ops, features, strict=False))
        return self.output_ops[0](self.middle(last + (middle + first)))


class ImageEncoder(nn.Module):
    """EfficientViT backbone, neck and a norm over the channels."""

    def __init__(self, config: EfficientViTConfig) -> None:
        super().__init__()
        self.backbone = Backbone(config)
        self.neck = Neck(config)
        self.norm = LayerNorm2d(config.out_channels, NORM_EPS)

    def forward(self, pixels: Tensor) -> Tensor:
        """Pixels (B, 3, image_side, image_side) -> image_embeddings (B, out_channels, grid_size, grid_size)."""
        pixels = pixels.contiguous(memory_format=torch.channels_last)  # which 1x1 and depthwise convolutions like
        return self.norm(self.neck(self.backbone(pixels)))


def _config(size: str) -> EfficientViTConfig:
    if size not in SIZES:
        raise UnknownModelError(f"EfficientViT-SAM has no size {size!r}; its sizes are {', '.join(SIZES)}.")
    return SIZES[size]


def build_image_encoder(size: str) -> ImageEncoder:
    """The image encoder alone, with random weights. Raises UnknownModelError for a size other than those of `build`."""
    return ImageEncoder(_config(size))


def build_efficientvit_sam(config: EfficientViTConfig, preprocess: Preprocess) -> Sam:
    """EfficientViT-SAM of any shape, with random weights."""
    grid = (config.grid_size, config.grid_size)
    prompt_encoder = PromptEncoder(config.out_channels, grid, (config.frame, config.frame))
    mask_decoder = MaskDecoder(config.out_channels)
    for module in mask_decoder.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = NORM_EPS  # the published code sets it for every norm of the whole network
    return Sam(ImageEncoder(config), prompt_encoder, mask_decoder, preprocess)


def build(size: str) -> Sam:
    """EfficientViT-SAM with random weights; `size` is l0, l1, l2, xl0 or xl1. Raises UnknownModelError for another."""
    config = _config(size)
    side, frame = config.image_side, config.frame
    preprocess = Preprocess(
        name=f"efficientvit_sam_{side}", long_side=frame, pad_to=frame, image_side=None if side == frame else side
    )
    return build_efficientvit_sam(config, preprocess)
