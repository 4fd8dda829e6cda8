"""MobileSAM's encoder: attention against its definition, fusing, official names, precision. Numbers: test_parity.py."""

import copy
import dataclasses
import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from anysam.errors import UnknownModelError
from anysam.models import PromptableModel, mobile_sam
from anysam.models.layers import fuse
from anysam.models.mobile_sam import Attention, Bottleneck, Mlp, PatchEmbed, TinyVit, TinyVitConfig, build_mobile_sam
from anysam.preprocess import Preprocess

CASES = Path(__file__).parent / "parity" / "cases"

TINY = TinyVitConfig(
    embed_dims=(8, 16, 16, 24),
    depths=(1, 1, 2, 1),
    num_heads=(2, 2, 3),
    window_sizes=(3, 5, 3),
    strides=(2, 2, 1),
    image_size=64,
    num_classes=5,
    out_channels=32,
)
TINY_PREPROCESS = Preprocess(name="tiny_64", long_side=64, pad_to=64)


def randomise(module: nn.Module, seed: int = 0) -> None:
    """Random parameters and random statistics of the batch norms."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in module.state_dict().items():
        if name.endswith("running_var"):
            value.uniform_(0.5, 1.5, generator=generator)
        elif value.is_floating_point():
            value.normal_(std=0.3, generator=generator)


def noise(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def attention_by_definition(attention: Attention, window: Tensor) -> Tensor:
    """One whole window (side, side, D): every pair of a query and a key on its own."""
    side, heads = attention.window, attention.num_heads
    qkv = attention.qkv(attention.norm(window.reshape(side * side, -1)))
    q, k, v = qkv.reshape(side * side, heads, 3, -1).unbind(2)  # each (tokens, heads, D/heads)
    out = torch.zeros_like(q)
    for head in range(heads):
        for i in range(side * side):
            logits = torch.zeros(side * side)
            for j in range(side * side):
                down, across = abs(i // side - j // side), abs(i % side - j % side)
                bias = attention.attention_biases[head, down * side + across]
                logits[j] = q[i, head] @ k[j, head] / math.sqrt(q.shape[-1]) + bias
            out[i, head] = logits.softmax(0) @ v[:, head]
    return attention.proj(out.reshape(side, side, -1))


@torch.no_grad()
@pytest.mark.parametrize(("height", "width"), [(3, 6), (4, 5), (6, 4), (2, 2), (1, 7)])
def test_attention_is_the_definition_on_windows_padded_with_zeros_before_the_norm(height: int, width: int) -> None:
    attention = Attention(dim=8, num_heads=2, window=3)
    randomise(attention)
    x = noise(2, height, width, 8)
    rows, columns = -(-height // 3) * 3, -(-width // 3) * 3
    padded = functional.pad(x, (0, 0, 0, columns - width, 0, rows - height))
    expected = torch.zeros_like(padded)
    for image in range(2):
        for top in range(0, rows, 3):
            for left in range(0, columns, 3):
                window = padded[image, top : top + 3, left : left + 3]
                expected[image, top : top + 3, left : left + 3] = attention_by_definition(attention, window)
    torch.testing.assert_close(attention(x), expected[:, :height, :width], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_biases_loaded_after_eval_take_part() -> None:
    attention = Attention(dim=8, num_heads=2, window=3).eval()
    x = noise(1, 3, 3, 8)
    before = attention(x)
    attention.load_state_dict(attention.state_dict() | {"attention_biases": noise(2, 9)})
    assert not torch.allclose(attention(x), before, atol=1e-3)


@torch.no_grad()
@pytest.mark.parametrize("values", [1, 700, 10**9])
@pytest.mark.parametrize("height", [7, 8, 13])
@pytest.mark.parametrize("module", [Bottleneck(6, 9, 6, 1, True), Bottleneck(6, 9, 10, 2, False), PatchEmbed(8)])
def test_convolutions_in_bands_are_the_whole_with_batch_norms(
    module: nn.Module, height: int, values: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mobile_sam, "_BAND_VALUES", values)
    module = copy.deepcopy(module).eval()
    randomise(module)
    channels, width = (3, 12) if isinstance(module, PatchEmbed) else (6, 5)
    x = noise(2, channels, height, width)
    expected = module(x)
    torch.testing.assert_close(fuse(module)(x), expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_mlp_in_parts_is_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    mlp = Mlp(8, 16)
    randomise(mlp)
    x = noise(2, 3, 5, 8)
    hidden = functional.gelu(mlp.fc1(mlp.norm(x)))
    expected = x + mlp.fc2(hidden)
    for values in (1, 100, 10**9):
        monkeypatch.setattr(mobile_sam, "_BAND_VALUES", values)
        torch.testing.assert_close(mlp(x), expected)


@torch.no_grad()
def test_fused_encoder_equals_the_training_form_and_leaves_it_alone() -> None:
    # Wide enough for every faster form, and with a grid that no window divides.
    encoder = TinyVit(dataclasses.replace(TINY, out_channels=64)).eval()
    randomise(encoder)
    before = copy.deepcopy(encoder.state_dict())
    pixels = noise(2, 3, 64, 96)
    expected = encoder(pixels)
    fused = fuse(encoder)
    difference = (fused(pixels) - expected).abs() / expected.std()
    assert difference.max() < 1e-4
    assert torch.equal(fuse(fused)(pixels), fused(pixels))
    assert not any(isinstance(module, nn.BatchNorm2d) for module in fused.modules())
    assert all(torch.equal(value, before[key]) for key, value in encoder.state_dict().items())


@torch.no_grad()
def test_images_of_a_batch_do_not_mix() -> None:
    network = fuse(build_mobile_sam(TINY, TINY_PREPROCESS).eval())
    randomise(network)
    pixels = noise(3, 3, 64, 64)
    together = network.encode_image(pixels)["image_embeddings"]
    alone = torch.cat([network.encode_image(image[None])["image_embeddings"] for image in pixels])
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=1e-4)


def test_training_reaches_every_parameter_but_the_classifier() -> None:
    encoder = TinyVit(TINY).train()
    randomise(encoder)
    encoder(noise(2, 3, 64, 64)).square().sum().backward()
    without = {name for name, value in encoder.named_parameters() if value.grad is None}
    assert without == {"norm_head.weight", "norm_head.bias", "head.weight", "head.bias"}
    assert all(
        value.grad.isfinite().all() and value.grad.any() for value in encoder.parameters() if value.grad is not None
    )


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_near_float32(dtype: torch.dtype) -> None:
    network = build_mobile_sam(TINY, TINY_PREPROCESS).eval()
    pixels = noise(1, 3, 64, 64)
    exact = network.encode_image(pixels)["image_embeddings"]
    half = fuse(network).to(dtype).encode_image(pixels.to(dtype))["image_embeddings"].float()
    assert half.isfinite().all()
    assert (half - exact).abs().mean() < 0.05 * exact.std()


@torch.no_grad()
@pytest.mark.parametrize(("multimask", "masks"), [(True, 3), (False, 1)])
def test_decode_keeps_the_protocol(multimask: bool, masks: int) -> None:
    network = build_mobile_sam(TINY, TINY_PREPROCESS).eval()
    assert isinstance(network, PromptableModel)
    features = network.encode_image(torch.zeros(1, 3, 64, 64))
    assert features["image_embeddings"].shape == (1, 32, 4, 4)
    decoded = network.decode(features, torch.ones(5, 2, 2), torch.ones(5, 2).long(), None, multimask)
    assert decoded.low_res_logits.shape == (5, masks, 16, 16)
    assert decoded.iou_predictions.shape == (5, masks)


def test_names_shapes_and_order_are_the_official_ones() -> None:
    manifest = json.loads((CASES / "mobile_sam" / "manifest.json").read_text())["tensors"]
    with torch.device("meta"):
        network = mobile_sam.build("tiny_vit")
    assert [[key, list(value.shape)] for key, value in network.state_dict().items()] == [
        [key, shape] for key, (shape, _) in manifest.items()
    ]


def test_build_names_what_there_is() -> None:
    with pytest.raises(UnknownModelError, match="'vit_t'; its sizes are tiny_vit"):
        mobile_sam.build("vit_t")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"depths": (1, 1)}, "depths must have 4 entries"),
        ({"strides": (2, 2)}, "strides must have 3 entries"),
        ({"num_heads": (2, 3, 3)}, "multiples of num_heads"),
        ({"image_size": 72}, "multiple of 16"),
    ],
)
def test_impossible_encoder_shapes_are_refused(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(TINY, **changes)
