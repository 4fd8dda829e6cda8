"""Winograd convolutions against PyTorch's own, in float64 where numbers are compared."""

import copy

import pytest
import torch
from torch import nn

from anysam.models.winograd import WinogradConv, faster


def conv(in_channels: int = 64, out_channels: int = 72, bias: bool = True) -> nn.Conv2d:
    torch.manual_seed(0)
    return nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=bias).requires_grad_(False)


@torch.no_grad()
@pytest.mark.parametrize("size", [(1, 1), (4, 4), (5, 3), (8, 30), (67, 64)])
@pytest.mark.parametrize("channels_last", [False, True])
def test_equals_the_direct_convolution_at_any_size(size: tuple[int, int], channels_last: bool) -> None:
    direct = conv()
    x = torch.randn(2, 64, *size, generator=torch.Generator().manual_seed(1))
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    before = x.clone()
    expected = copy.deepcopy(direct).double()(x.double())
    ours = WinogradConv(direct)(x)
    assert ours.shape == expected.shape
    assert (ours - expected).abs().max() < 1e-4 * expected.std()
    assert (ours - expected).abs().mean() < 5e-6 * expected.std()
    assert torch.equal(x, before)


@torch.no_grad()
def test_images_of_a_batch_do_not_mix_and_a_bias_is_optional() -> None:
    direct = conv(bias=False)
    x = torch.randn(3, 64, 9, 10, generator=torch.Generator().manual_seed(1))
    together = WinogradConv(direct)(x)
    torch.testing.assert_close(together, torch.cat([WinogradConv(direct)(image[None]) for image in x]))
    torch.testing.assert_close(together, direct(x), atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    "other",
    [
        nn.Conv2d(64, 64, 3, stride=2, padding=1),
        nn.Conv2d(64, 64, 3),
        nn.Conv2d(64, 64, 3, padding="same"),
        nn.Conv2d(64, 64, 3, padding=2, dilation=2),
        nn.Conv2d(64, 64, 3, padding=1, groups=2),
        nn.Conv2d(64, 64, 3, padding=1, padding_mode="reflect"),
        nn.Conv2d(64, 64, 5, padding=2),
        nn.Conv2d(64, 32, 3, padding=1),
        nn.Conv2d(16, 64, 3, padding=1),
    ],
)
def test_other_convolutions_stay_as_they_are(other: nn.Conv2d) -> None:
    assert faster(other) is other
    assert isinstance(faster(conv()), WinogradConv)


def test_half_precision_falls_back_to_the_direct_convolution() -> None:
    direct = conv()
    x = torch.randn(1, 64, 8, 8, generator=torch.Generator().manual_seed(1)).bfloat16()
    half = WinogradConv(copy.deepcopy(direct)).bfloat16()
    assert torch.equal(half(x), direct.bfloat16()(x))
    assert half.transformed is None  # no memory for what is not used


def test_gradients_are_those_of_the_direct_convolution() -> None:
    direct = conv().requires_grad_(True)
    quick = WinogradConv(copy.deepcopy(direct))
    x = torch.randn(1, 64, 8, 8, generator=torch.Generator().manual_seed(1))
    for module in (direct, quick):
        module(x).square().sum().backward()
    assert torch.equal(quick.conv.weight.grad, direct.weight.grad)


def test_state_is_that_of_the_convolution() -> None:
    assert set(WinogradConv(conv()).state_dict()) == {"conv.weight", "conv.bias"}
