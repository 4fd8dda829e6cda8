"""3x3 convolutions in a third of the multiplications: Winograd's F(4x4, 3x3), for inference in float32 on a CPU.

Source: Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", 2015. A tile of 4 x 4 outputs needs 6 x 6
inputs; transformed, these 36 numbers per channel are multiplied with 36 transformed weights, instead of 16 x 9. So the
work is 36 matrix products over the channels of all tiles, and sums before and after. Rounding errors about double, to
1e-6 of the output's standard deviation on average; in half precision they would be ruinous. Transformed weights take
four times the memory of weights.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

# Fewer channels than this, and the sums cost more than the products save.
_MIN_CHANNELS = 64
# Tiles transformed at once: enough for matrix products at full speed, few enough for buffers that caches hold.
_TILES = 256

# Rows: transformed weight; columns: weight.
_WEIGHT_TRANSFORM = (
    (1 / 4, 0, 0),
    (-1 / 6, -1 / 6, -1 / 6),
    (-1 / 6, 1 / 6, -1 / 6),
    (1 / 24, 1 / 12, 1 / 6),
    (1 / 24, -1 / 12, 1 / 6),
    (0, 0, 1),
)


def faster(conv: nn.Conv2d) -> nn.Module:
    """The convolution in its fastest form for inference: a WinogradConv where that pays, else `conv` itself."""
    plain = conv.kernel_size == (3, 3) and conv.stride == conv.padding == conv.dilation == (1, 1) and conv.groups == 1
    if plain and conv.padding_mode == "zeros" and min(conv.in_channels, conv.out_channels) >= _MIN_CHANNELS:
        return WinogradConv(conv)
    return conv


class WinogradConv(nn.Module):
    """A 3x3 convolution of stride 1 and padding 1; equals `conv`, which it keeps for other devices and dtypes."""

    transformed: Tensor | None

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.conv = conv
        self.register_buffer("transformed", None, persistent=False)
        if conv.weight.device.type == "cpu" and conv.weight.dtype == torch.float32:
            self.transformed = transform_weight(conv.weight)  # (36, in, out)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        super()._apply(fn, recurse)
        if self.conv.weight.device.type != "cpu" or self.conv.weight.dtype != torch.float32:
            self.transformed = None
        return self

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, h, w) -> (B, out, h, w)."""
        trained = torch.is_grad_enabled() and (x.requires_grad or self.conv.weight.requires_grad)
        if self.transformed is None or trained or torch.compiler.is_compiling():
            return self.conv(x)
        return winograd_conv(x, self.transformed, self.conv.bias)


def transform_weight(weight: Tensor) -> Tensor:
    """Weight (out, in, 3, 3) -> (36, in, out), column by column of the tile; in float64, rounded once."""
    matrix = torch.tensor(_WEIGHT_TRANSFORM, dtype=torch.float64, device=weight.device)  # (6, 3)
    transformed = torch.einsum("ra,oiab,cb->crio", matrix, weight.detach().double(), matrix)  # (6, 6, in, out)
    return transformed.flatten(0, 1).to(weight.dtype).contiguous()  # (36, in, out)


def winograd_conv(x: Tensor, transformed: Tensor, bias: Tensor | None) -> Tensor:
    """x (B, in, h, w), transformed (36, in, out), bias (out,) -> (B, out, h, w), channels last in memory."""
    batch, channels, height, width = x.shape
    rows, columns = -(-height // 4), -(-width // 4)  # tiles down and across
    padded = x.new_zeros(batch, 4 * rows + 2, 4 * columns + 2, channels)
    padded[:, 1 : height + 1, 1 : width + 1] = x.permute(0, 2, 3, 1)  # (B, 4 rows + 2, 4 columns + 2, in)
    out = x.new_empty(batch, 4 * rows, 4 * columns, transformed.shape[2])
    step = max(1, _TILES // (batch * columns))
    for top in range(0, rows, step):
        strip = padded[:, 4 * top : 4 * (top + step) + 2]
        _strip(strip, transformed, bias, out[:, 4 * top : 4 * (top + step)])
    return out[:, :height, :width].permute(0, 3, 1, 2)  # (B, out, h, w)


def _strip(padded: Tensor, transformed: Tensor, bias: Tensor | None, out: Tensor) -> None:
    """padded (B, 4 r + 2, 4 c + 2, in) -> out (B, 4 r, 4 c, out)."""
    batch, height, width, channels = padded.shape
    rows, columns, out_channels = height // 4, width // 4, transformed.shape[2]
    by_row = padded.new_empty(6, batch, rows, width, channels)
    _transform_input([padded[:, i : i + 4 * rows - 3 : 4] for i in range(6)], by_row)
    tiles = padded.new_empty(6, 6, batch, rows, columns, channels)  # column and row of the tile first
    _transform_input([by_row[:, :, :, i : i + 4 * columns - 3 : 4] for i in range(6)], tiles)
    products = torch.bmm(tiles.flatten(0, 1).flatten(1, 3), transformed)  # (36, B r c, out)
    products = products.reshape(6, 6, batch, rows, columns, out_channels)
    by_column = padded.new_empty(4, 6, batch, rows, columns, out_channels)
    _transform_output(products, by_column)
    outputs = out.unflatten(2, (columns, 4)).unflatten(1, (rows, 4))  # (B, r, 4, c, 4, out)
    _transform_output(by_column.permute(1, 2, 3, 4, 0, 5), outputs.permute(2, 0, 1, 3, 4, 5))
    if bias is not None:
        outputs += bias


def _transform_input(x: Sequence[Tensor], out: Tensor) -> None:
    """Six equal tensors, along one side of the tile -> the six of `out`."""
    even, odd = torch.sub(x[4], x[2], alpha=4), torch.sub(x[3], x[1], alpha=4)
    torch.add(even, odd, out=out[1])
    torch.sub(even, odd, out=out[2])
    torch.sub(x[4], x[2], out=even)
    torch.sub(x[3], x[1], out=odd)
    torch.add(even, odd, alpha=2, out=out[3])
    torch.sub(even, odd, alpha=2, out=out[4])
    rest = x[0] - x[2]
    torch.add(even, rest, alpha=4, out=out[0])
    torch.sub(x[5], x[3], out=rest)
    torch.sub(rest, odd, alpha=4, out=out[5])


def _transform_output(x: Tensor, out: Tensor) -> None:
    """Six tensors, along one side of the transformed tile -> the four of `out`."""
    sum_1, difference_1 = x[1] + x[2], x[1] - x[2]
    sum_2, difference_2 = x[3] + x[4], x[3] - x[4]
    torch.add(x[0], sum_1, out=out[0])
    out[0].add_(sum_2)
    torch.add(difference_1, difference_2, alpha=2, out=out[1])
    torch.add(sum_1, sum_2, alpha=4, out=out[2])
    torch.add(difference_1, difference_2, alpha=8, out=out[3])
    out[3].add_(x[5])
