"""MobileSAM: SAM's prompt encoder and decoder behind TinyViT-5M, a small hierarchical image encoder.

Papers: Zhang et al., "Faster Segment Anything: Towards Lightweight SAM for Mobile Applications", 2023; the encoder is
that of Wu et al., "TinyViT: Fast Pretraining Distillation for Small Vision Transformers", 2022. Source:
ChaoningZhang/MobileSAM@34bbbfd, mobile_sam/modeling/tiny_vit_sam.py and build_sam.py (Apache-2.0). Written anew;
parameter names are the official ones, so published state_dicts load unchanged.

What is unusual here:
- The classifier (norm_head, head) is in the published file and never used; it exists here so that the file fits.
- Officially the learned attention biases are spread into a buffer when eval() is called, so that a checkpoint loaded
  into a model in eval mode runs without them. Here they are read in every call.
- Where a window reaches over the grid's edge, the official code pads with zero tokens BEFORE the attention's norm and
  lets real tokens attend to them. A zero token leaves the norm as the norm's bias, so that all padding of a window has
  one and the same key and value: here it is a single key whose bias is the log of the sum of the exponentials of the
  single biases. The same numbers without any padded token.
- Tokens stay in the order (B, h, w, D) throughout; convolutions see them as channels_last. Wide hidden layers are
  computed for a band of rows at a time, which keeps them in the caches and the allocator quiet.
"""

import copy
from dataclasses import dataclass
from itertools import product
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from anysam.errors import UnknownModelError
from anysam.models.layers import fuse, fuse_conv_bn
from anysam.models.sam import PREPROCESS, Sam
from anysam.models.sam_decoder import LayerNorm2d, MaskDecoder, PromptEncoder
from anysam.models.winograd import faster
from anysam.preprocess import Preprocess

# Values of a hidden layer held at once: 2 M float32 are 8 MB.
_BAND_VALUES = 2 * 1024 * 1024


@dataclass(frozen=True)
class TinyVitConfig:
    """The shape of an image encoder.

    embed_dims, depths: channels and blocks of the stages; the first stage is convolutional and has a quarter of the
    image's side. num_heads, window_sizes: of the stages after the first. strides: of the steps between the stages.
    image_size: side of the square input, pixels. num_classes: of the unused classifier.
    """

    embed_dims: tuple[int, ...]
    depths: tuple[int, ...]
    num_heads: tuple[int, ...]
    window_sizes: tuple[int, ...]
    strides: tuple[int, ...]
    image_size: int = 1024
    expand_ratio: int = 4
    mlp_ratio: int = 4
    num_classes: int = 1000
    out_channels: int = 256

    def __post_init__(self) -> None:
        steps = len(self.embed_dims) - 1
        if len(self.depths) != steps + 1:
            raise ValueError(f"depths must have {steps + 1} entries as embed_dims, got {self.depths}")
        for name, values in (
            ("num_heads", self.num_heads),
            ("window_sizes", self.window_sizes),
            ("strides", self.strides),
        ):
            if len(values) != steps:
                raise ValueError(f"{name} must have {steps} entries, one less than embed_dims, got {values}")
        if any(dim % heads for dim, heads in zip(self.embed_dims[1:], self.num_heads, strict=True)):
            raise ValueError(f"embed_dims must be multiples of num_heads, got {self.embed_dims} and {self.num_heads}")
        if self.image_size % self.patch_size:
            raise ValueError(f"image_size must be a multiple of {self.patch_size}, got {self.image_size}")

    @property
    def patch_size(self) -> int:
        """Pixels per cell of the embedding."""
        size = 4
        for stride in self.strides:
            size *= stride
        return size


SIZES = {
    "tiny_vit": TinyVitConfig(
        embed_dims=(64, 128, 160, 320),
        depths=(2, 2, 6, 2),
        num_heads=(4, 5, 10),
        window_sizes=(7, 14, 7),
        strides=(2, 2, 1),
    )
}


class ConvBN(nn.Module):
    """A convolution without bias, then batch norm."""

    def __init__(self, inputs: int, outputs: int, kernel_size: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.c = nn.Conv2d(inputs, outputs, kernel_size, stride, kernel_size // 2, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """(B, D, h, w) -> (B, outputs, h / stride, w / stride)."""
        return self.bn(self.c(x))

    def fused(self) -> nn.Conv2d:
        """The same as one convolution, for inference."""
        return _channels_last(fuse_conv_bn(self.c, self.bn))


def _channels_last(conv: nn.Conv2d) -> nn.Conv2d:
    """`conv` with its weights in the order that channels_last inputs are fastest with."""
    conv.weight = nn.Parameter(conv.weight.detach().to(memory_format=torch.channels_last))
    return conv


class PatchEmbed(nn.Module):
    """Two convolutions of stride 2 with GELU between them."""

    def __init__(self, embed_dim: int) -> None:
        super().__init__()
        self.seq = nn.Sequential(
            ConvBN(3, embed_dim // 2, 3, stride=2), nn.GELU(), ConvBN(embed_dim // 2, embed_dim, 3, stride=2)
        )

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, D, H / 4, W / 4), channels_last."""
        return self.seq(pixels.contiguous(memory_format=torch.channels_last))

    def fused(self) -> "FusedPatchEmbed":
        """The same without batch norms and with a bounded hidden layer."""
        return FusedPatchEmbed(cast(ConvBN, self.seq[0]).fused(), cast(ConvBN, self.seq[2]).fused())


class FusedPatchEmbed(nn.Module):
    """A PatchEmbed for inference: a band of rows at a time."""

    def __init__(self, conv1: nn.Conv2d, conv2: nn.Conv2d) -> None:
        super().__init__()
        self.conv1 = conv1
        self.conv2 = conv2

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, D, H / 4, W / 4), channels_last."""
        batch, _, height, width = pixels.shape
        hidden_rows, rows = -(-height // 2), -(-height // 4)
        band = max(1, _BAND_VALUES // (batch * width * self.conv1.out_channels))
        parts = []
        for top in range(0, rows, band):
            bottom = min(top + band, rows)
            needed = _needed(self.conv2, top, bottom)
            hidden_top, hidden_bottom = needed.start, min(needed.stop, hidden_rows)
            y = self.conv1(pixels[:, :, _needed(self.conv1, hidden_top, hidden_bottom)])
            y = self.conv2(functional.gelu(_kept(y, hidden_top, hidden_bottom)))
            parts.append(_kept(y, top, bottom))
        return torch.cat(parts, dim=2)  # (B, D, H / 4, W / 4)


def _needed(conv: nn.Conv2d, top: int, bottom: int) -> slice:
    """The input rows for the output rows top..bottom of a 3x3 convolution, and one output row more above.

    So the convolution's own padding lies outside of what `_kept` keeps, except at the borders of the whole input.
    """
    stride = conv.stride[0]
    return slice(max(0, top - 1) * stride, (bottom - 1) * stride + 2)


def _kept(y: Tensor, top: int, bottom: int) -> Tensor:
    """The output rows top..bottom in y (B, D, h, w), which was computed from the rows `_needed`."""
    above = min(top, 1)
    return y[:, :, above : above + bottom - top]


class Bottleneck(nn.Module):
    """1x1, depthwise 3x3 and 1x1 convolution with GELU between them: an MBConv block, or a step between stages.

    residual: whether the input is added at the end and GELU applied to the sum, as in MBConv.
    """

    def __init__(self, inputs: int, hidden: int, outputs: int, stride: int, residual: bool) -> None:
        super().__init__()
        self.conv1 = ConvBN(inputs, hidden, 1)
        self.conv2 = ConvBN(hidden, hidden, 3, stride, groups=hidden)
        self.conv3 = ConvBN(hidden, outputs, 1)
        self.residual = residual

    def forward(self, x: Tensor) -> Tensor:
        """(B, D, h, w) -> (B, outputs, h / stride, w / stride)."""
        y = functional.gelu(self.conv1(x))
        y = self.conv3(functional.gelu(self.conv2(y)))
        return functional.gelu(x + y) if self.residual else y

    def fused(self) -> "FusedBottleneck":
        """The same without batch norms and with a bounded hidden layer."""
        return FusedBottleneck(self.conv1.fused(), self.conv2.fused(), self.conv3.fused(), self.residual)


class FusedBottleneck(nn.Module):
    """A Bottleneck for inference: a band of rows at a time."""

    def __init__(self, conv1: nn.Conv2d, conv2: nn.Conv2d, conv3: nn.Conv2d, residual: bool) -> None:
        super().__init__()
        self.conv1 = conv1
        self.conv2 = conv2
        self.conv3 = conv3
        self.residual = residual

    def forward(self, x: Tensor) -> Tensor:
        """(B, D, h, w) -> (B, outputs, h / stride, w / stride), channels_last."""
        batch, _, height, width = x.shape
        stride = self.conv2.stride[0]
        rows = -(-height // stride)
        band = max(1, _BAND_VALUES // (batch * width * self.conv1.out_channels * stride))
        parts = []
        for top in range(0, rows, band):
            bottom = min(top + band, rows)
            y = self.conv2(functional.gelu(self.conv1(x[:, :, _needed(self.conv2, top, bottom)])))
            y = self.conv3(functional.gelu(_kept(y, top, bottom)))
            parts.append(functional.gelu(x[:, :, top:bottom] + y) if self.residual else y)
        return torch.cat(parts, dim=2)  # (B, outputs, h / stride, w / stride)


class Attention(nn.Module):
    """Norm, then multi-head attention within square windows, with a learned bias per head and distance."""

    def __init__(self, dim: int, num_heads: int, window: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.window = window
        self.norm = nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.attention_biases = nn.Parameter(torch.zeros(num_heads, window * window))

    def forward(self, x: Tensor) -> Tensor:
        """(B, h, w, D) -> the same shape. Windows are counted from the top left."""
        out = torch.empty_like(x)
        for rows, columns in product(_spans(x.shape[1], self.window), _spans(x.shape[2], self.window)):
            piece = x[:, rows, columns]
            tall, wide = min(piece.shape[1], self.window), min(piece.shape[2], self.window)
            windows = _windows(piece, tall, wide)  # (B, rows, columns, tall, wide, D)
            tokens = windows.flatten(3, 4).flatten(0, 2)  # (windows, tall * wide, D)
            attended = self.proj(self._attend(tokens, tall, wide))  # (windows, tall * wide, D)
            _windows(out[:, rows, columns], tall, wide).copy_(attended.view(windows.shape))
        return out

    def _attend(self, tokens: Tensor, tall: int, wide: int) -> Tensor:
        """Tokens (windows, tall * wide, D) of windows whose other tokens, if any, are padding -> the same shape."""
        q, k, v = self._heads(self.qkv(self.norm(tokens)))  # each (windows, heads, tall * wide, D/heads)
        bias = self._bias(tall, wide)  # (heads, tall * wide, tall * wide or one more)
        if bias.shape[1] != bias.shape[2]:
            padding = self._heads(self.qkv(self.norm.bias)[None, None])  # q, k and v, each (1, heads, 1, D/heads)
            k = torch.cat([k, padding[1].expand(k.shape[0], -1, -1, -1)], dim=2)  # one key more
            v = torch.cat([v, padding[2].expand(v.shape[0], -1, -1, -1)], dim=2)
        out = functional.scaled_dot_product_attention(q, k, v, attn_mask=bias[None].to(q.dtype))
        return out.transpose(1, 2).flatten(2)  # (windows, tall * wide, D)

    def _heads(self, qkv: Tensor) -> tuple[Tensor, ...]:
        """(windows, N, 3 D) -> q, k and v (windows, heads, N, D/heads), views; a head's q, k and v lie together."""
        return qkv.unflatten(2, (self.num_heads, 3, -1)).permute(3, 0, 2, 1, 4).unbind(0)

    def _bias(self, tall: int, wide: int) -> Tensor:
        """Biases (heads, tall * wide, tall * wide) of the real tokens of a window, and one key more for its padding."""
        offsets = torch.arange(self.window, device=self.attention_biases.device)
        offsets = (offsets[:, None] - offsets).abs()  # (query, key) -> distance along one axis
        index = offsets[:tall, None, :, None] * self.window + offsets[None, :wide, None, :]  # (tall, wide, side, side)
        bias = self.attention_biases[:, index]  # (heads, tall, wide, side, side)
        real = bias[..., :tall, :wide].flatten(3).flatten(1, 2)  # (heads, tall * wide, tall * wide)
        if tall == wide == self.window:
            return real
        padding = torch.cat([bias[..., tall:, :].flatten(3), bias[..., :tall, wide:].flatten(3)], dim=3)
        joined = padding.float().logsumexp(dim=3).flatten(1)  # (heads, tall * wide)
        return torch.cat([real, joined[..., None].to(real.dtype)], dim=2)  # (heads, tall * wide, tall * wide + 1)


def _spans(length: int, window: int) -> list[slice]:
    """What whole windows cover of `length`, and the rest, as far as there are any."""
    whole = length // window * window
    return [span for span in (slice(0, whole), slice(whole, length)) if span.start < span.stop]


def _windows(x: Tensor, tall: int, wide: int) -> Tensor:
    """A view (B, rows, columns, tall, wide, D) of (B, h, w, D)."""
    return x.unflatten(1, (-1, tall)).unflatten(3, (-1, wide)).transpose(2, 3)


class Mlp(nn.Module):
    """x + (norm, linear, GELU, linear) of x."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, h, w, D) -> the same shape."""
        tokens = x.flatten(0, 2)  # (B * h * w, D)
        count = -(-tokens.shape[0] * self.fc1.out_features // _BAND_VALUES)
        parts = [part + self.fc2(functional.gelu(self.fc1(self.norm(part)))) for part in tokens.chunk(count)]
        return torch.cat(parts).view(x.shape)  # (B, h, w, D)


class TinyVitBlock(nn.Module):
    """Attention within windows, a depthwise convolution, an MLP."""

    def __init__(self, dim: int, num_heads: int, window: int, mlp_ratio: int) -> None:
        super().__init__()
        self.attn = Attention(dim, num_heads, window)
        self.mlp = Mlp(dim, dim * mlp_ratio)
        self.local_conv = ConvBN(dim, dim, 3, groups=dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, h, w, D) -> the same shape."""
        x = x + self.attn(x)
        x = self.local_conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)  # (B, h, w, D)
        return self.mlp(x)


class Pointwise(nn.Module):
    """A linear layer as a 1x1 convolution, with the same parameters, for inference.

    On a CPU with more than one thread torch computes float32 convolutions with oneDNN, which adds the bias on the way;
    a linear layer is a product of another library, after a pass that writes the bias: 3 to 9 % slower at these sizes.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.out_features = linear.out_features
        self.weight, self.bias = linear.weight, linear.bias

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., out_features)."""
        if x.device.type != "cpu" or x.dtype != torch.float32:
            return functional.linear(x, self.weight, self.bias)
        pixels = x.reshape(1, -1, 1, x.shape[-1]).permute(0, 3, 1, 2)  # (1, D, N, 1)
        y = functional.conv2d(pixels, self.weight[:, :, None, None], self.bias)  # (1, out_features, N, 1)
        return y.permute(0, 2, 3, 1).reshape(*x.shape[:-1], self.out_features)


class Stage(nn.Module):
    """Blocks, then the step to the next stage's grid and channels, if there is a next stage.

    convolutional: the blocks map (B, D, h, w), as in the first stage; otherwise (B, h, w, D).
    """

    def __init__(self, blocks: list[nn.Module], downsample: nn.Module | None, convolutional: bool) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.downsample = downsample
        self.convolutional = convolutional

    def forward(self, x: Tensor) -> Tensor:
        """(B, D, h, w) if convolutional else (B, h, w, D) -> (B, h', w', D')."""
        for block in self.blocks:
            x = block(x)
        if self.downsample is not None:
            x = x if self.convolutional else x.permute(0, 3, 1, 2)  # (B, D, h, w)
            x = self.downsample(x).permute(0, 2, 3, 1)  # (B, h', w', D')
        return x


class TinyVit(nn.Module):
    """MobileSAM's image encoder."""

    def __init__(self, config: TinyVitConfig) -> None:
        super().__init__()
        dims, channels = config.embed_dims, config.out_channels
        self.patch_embed = PatchEmbed(dims[0])
        self.layers = nn.ModuleList(_stage(config, i) for i in range(len(dims)))
        self.norm_head = nn.LayerNorm(dims[-1])
        self.head = nn.Linear(dims[-1], config.num_classes)
        self.neck = nn.Sequential(
            nn.Conv2d(dims[-1], channels, kernel_size=1, bias=False),
            LayerNorm2d(channels),
            nn.Conv2d(channels, channels, kernel_size=3, padding=1, bias=False),
            LayerNorm2d(channels),
        )

    def forward(self, pixels: Tensor) -> Tensor:
        """Pixels (B, 3, H, W) -> image_embeddings (B, out_channels, h, w)."""
        x = self.patch_embed(pixels)  # (B, D, H / 4, W / 4)
        for layer in self.layers:
            x = layer(x)  # (B, h, w, D)
        return self.neck(x.permute(0, 3, 1, 2))  # (B, out_channels, h, w)

    def fused(self) -> "TinyVit":
        """The same for inference: batch norms joined to convolutions, and everything in its fastest form."""
        twin = copy.deepcopy(self)
        for name, child in twin.named_children():
            setattr(twin, name, fuse(child))
        for module in list(twin.layers.modules()):
            for name, child in module.named_children():
                if isinstance(child, nn.Linear):
                    setattr(module, name, Pointwise(child))
        twin.neck[0] = _channels_last(cast(nn.Conv2d, twin.neck[0]))
        if isinstance(twin.neck[2], nn.Conv2d):  # not in a second fusing
            twin.neck[2] = faster(_channels_last(twin.neck[2]))
        return twin


def _stage(config: TinyVitConfig, index: int) -> Stage:
    """The encoder's stage `index`; the first one is convolutional."""
    dim = config.embed_dims[index]
    downsample = None
    if index < len(config.strides):
        following = config.embed_dims[index + 1]
        downsample = Bottleneck(dim, following, following, config.strides[index], residual=False)
    blocks: list[nn.Module]
    if index == 0:
        hidden = dim * config.expand_ratio
        blocks = [Bottleneck(dim, hidden, dim, stride=1, residual=True) for _ in range(config.depths[0])]
    else:
        heads, window = config.num_heads[index - 1], config.window_sizes[index - 1]
        blocks = [TinyVitBlock(dim, heads, window, config.mlp_ratio) for _ in range(config.depths[index])]
    return Stage(blocks, downsample, convolutional=index == 0)


def build_mobile_sam(config: TinyVitConfig, preprocess: Preprocess) -> Sam:
    """MobileSAM around a TinyViT of any shape, with random weights."""
    grid = config.image_size // config.patch_size
    prompt_encoder = PromptEncoder(config.out_channels, (grid, grid), (config.image_size, config.image_size))
    return Sam(TinyVit(config), prompt_encoder, MaskDecoder(config.out_channels), preprocess)


def build(size: str) -> Sam:
    """MobileSAM with random weights; `size` is tiny_vit. Raises UnknownModelError for another size."""
    if size not in SIZES:
        raise UnknownModelError(f"MobileSAM has no size {size!r}; its sizes are {', '.join(SIZES)}.")
    return build_mobile_sam(SIZES[size], PREPROCESS)
