"""What several families share: convolution and batch norm joined, modules replaced by faster equal ones, dtypes."""

from typing import Protocol, cast, runtime_checkable

import torch
from torch import nn


@runtime_checkable
class Fusable(Protocol):
    """A module that has another form, equal in inference and faster."""

    def fused(self) -> nn.Module:
        """A new module with the same outputs (in eval mode); this one stays as it is."""
        ...


def is_exporting() -> bool:
    """Whether a graph is being made of what is computed, by PyTorch's exporter or tracer: shapes may then change later,
    so that nothing may be decided by them."""
    return torch.compiler.is_exporting() or bool(torch.jit.is_tracing())


def fuse(network: nn.Module) -> nn.Module:
    """Replace, in place, every submodule of `network` that has `fused` by what it returns; returns the network.

    Parents come first, so a module that fuses itself decides about its children too; what it returns is not visited.
    The result is for inference: its state_dict is no longer the published one.
    """
    if isinstance(network, Fusable):
        return network.fused()
    for name, child in network.named_children():
        setattr(network, name, fuse(child))
    return network


def move(network: nn.Module, device: torch.device | str, dtype: torch.dtype) -> nn.Module:
    """Bring `network` to a device and a dtype, in place, except for its `float32_parts`, which stay in float32."""
    network.to(device, dtype)
    for name in getattr(network, "float32_parts", ()):
        network.get_submodule(name).float()
    return network


def fuse_conv_bn(conv: nn.Conv2d, bn: nn.BatchNorm2d) -> nn.Conv2d:
    """One convolution with bias that equals `bn(conv(x))` with the norm's running statistics.

    Computed in float64 and rounded once to the convolution's dtype. The batch norm must be affine and keep statistics.
    """
    variance, mean = cast(torch.Tensor, bn.running_var).double(), cast(torch.Tensor, bn.running_mean).double()
    scale = bn.weight.detach().double() / torch.sqrt(variance + bn.eps)  # (out,)
    bias = torch.zeros_like(mean) if conv.bias is None else conv.bias.detach().double()
    joined = nn.Conv2d(
        conv.in_channels,
        conv.out_channels,
        cast(tuple[int, int], conv.kernel_size),
        stride=cast(tuple[int, int], conv.stride),
        padding=cast(tuple[int, int], conv.padding),
        dilation=cast(tuple[int, int], conv.dilation),
        groups=conv.groups,
        device="meta",
    )
    dtype = conv.weight.dtype
    joined.weight = nn.Parameter((conv.weight.detach().double() * scale[:, None, None, None]).to(dtype))
    joined.bias = nn.Parameter(((bias - mean) * scale + bn.bias.detach().double()).to(dtype))
    return joined.train(conv.training)
