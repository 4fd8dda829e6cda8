"""EfficientViT-SAM's networks: linear attention against its definition, official names and sizes, precision."""

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
from anysam.models import efficientvit_sam
from anysam.models.efficientvit_sam import (
    SIZES,
    EfficientViTConfig,
    LinearAttention,
    Resize,
    StageConfig,
    TanhGelu,
    build,
    build_efficientvit_sam,
    build_image_encoder,
    linear_attention,
)
from anysam.models.layers import fuse
from anysam.preprocess import Preprocess
from tiny_models import filled

CASES = Path(__file__).parent / "parity" / "cases"

STAGES = (
    StageConfig(8, 1, "res", 1),
    StageConfig(16, 1, "fmb", 2),
    StageConfig(16, 1, "fmb", 2),
    StageConfig(32, 1, "mb", 2),
    StageConfig(32, 1, "att", 2, fewer_norm=True),
)
TINY = EfficientViTConfig(STAGES, neck_depth=1, neck_expand=4, image_side=64, frame=128, head_dim=16, out_channels=64)
TINY_PREPROCESS = Preprocess(name="tiny", long_side=128, pad_to=128, image_side=64)


def tiny() -> nn.Module:
    return filled(build_efficientvit_sam(TINY, TINY_PREPROCESS)).eval().requires_grad_(False)


def pixels(count: int = 1) -> Tensor:
    return torch.randn(count, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def attention_by_definition(qkv: Tensor) -> Tensor:
    """One head, qkv (3, D, hw) -> (D, hw): every query weighs every value by relu(q) . relu(k), weights add up to 1."""
    q, k, v = qkv.double()
    out = torch.zeros_like(q)
    for i in range(q.shape[1]):
        weights = torch.tensor([float(q[:, i].relu() @ k[:, j].relu()) for j in range(k.shape[1])]).double()
        if weights.sum() > 0:
            out[:, i] = (v * (weights / weights.sum())).sum(1)
    return out


def test_linear_attention_is_its_definition() -> None:
    qkv = torch.randn(2, 3, 3, 4, 2, 3, generator=torch.Generator().manual_seed(1))  # (B, heads, 3, D, h, w)
    qkv[0, 0, 0, :, 0, 0] = -1.0  # a query that attends to nothing
    ours = linear_attention(qkv)
    for image in range(2):
        for head in range(3):
            expected = attention_by_definition(qkv[image, head].flatten(2))
            torch.testing.assert_close(ours[image, head].flatten(1).double(), expected, atol=1e-5, rtol=0)
    assert torch.equal(ours[0, 0, :, 0, 0], torch.zeros(4))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sums_of_linear_attention_neither_overflow_nor_lose_digits_in_half_precision(dtype: torch.dtype) -> None:
    # Over 64 x 64 cells of about 30, the sums reach 1e8; float16 ends at 65504.
    qkv = 30 * torch.randn(1, 2, 3, 32, 64, 64, generator=torch.Generator().manual_seed(1)).abs().to(dtype)
    ours = linear_attention(qkv)
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, linear_attention(qkv.double()).float(), atol=0, rtol=1e-5)


def test_half_the_heads_see_averages_over_a_neighbourhood() -> None:
    attention = filled(LinearAttention(32, head_dim=16, aggregation=3)).eval().requires_grad_(False)
    x = torch.randn(1, 32, 4, 4, generator=torch.Generator().manual_seed(1))
    qkv = attention.qkv.conv(x)
    average, mix = attention.aggreg[0]
    blurred = torch.stack(
        [functional.conv2d(qkv[:, i : i + 1], average.weight[i : i + 1], padding=1)[:, 0] for i in range(96)], 1
    )
    mixed = torch.cat(
        [functional.conv2d(blurred[:, i : i + 16], mix.weight[i : i + 16]) for i in range(0, 96, 16)], dim=1
    )
    heads = torch.cat([qkv, mixed], dim=1)[0].reshape(4, 3, 16, 16)  # (2 scales of 2 heads, 3, D, hw)
    out = torch.cat([attention_by_definition(head) for head in heads]).float().reshape(1, 64, 4, 4)
    torch.testing.assert_close(attention(x), attention.proj(out), atol=1e-5, rtol=1e-5)


def test_resize_is_bicubic_interpolation() -> None:
    x = torch.randn(2, 5, 4, 7, generator=torch.Generator().manual_seed(1))
    expected = functional.interpolate(x, (16, 16), mode="bicubic", align_corners=False)
    torch.testing.assert_close(Resize(16)(x), expected)
    same = torch.randn(1, 5, 16, 16)
    assert torch.equal(Resize(16)(same), same)


@torch.no_grad()
@pytest.mark.parametrize("layout", ["plain", "channels_last", "gaps"])
def test_fast_gelu_is_the_tanh_approximation(layout: str) -> None:
    x = torch.cat([torch.linspace(-12, 12, 40_000), torch.tensor([-1e4, 1e4, 0.0, -1e10])])
    x = x[:40_000].reshape(1, 40, 50, 20).contiguous() if layout != "plain" else x
    if layout == "channels_last":
        x = x.contiguous(memory_format=torch.channels_last)
    if layout == "gaps":
        x = x[:, :, 1:, :-1]
    ours = TanhGelu()(x)
    expected = 0.5 * x.double() * (1 + (math.sqrt(2 / math.pi) * (x.double() + 0.044715 * x.double() ** 3)).tanh())
    torch.testing.assert_close(ours.double(), expected, atol=2e-6, rtol=1e-6)
    assert ours.stride() == functional.gelu(x).stride()


def test_fast_gelu_has_gradients() -> None:
    x = torch.linspace(-3, 3, 7).requires_grad_()
    TanhGelu()(x).sum().backward()
    (expected,) = torch.autograd.grad(functional.gelu(x, approximate="tanh").sum(), x)
    torch.testing.assert_close(x.grad, expected)


@pytest.mark.parametrize("size", ["l0", "xl0"])
def test_state_dict_has_the_official_keys_shapes_and_order(size: str) -> None:
    manifest = json.loads((CASES / f"efficientvit_sam_{size}" / "manifest.json").read_text())["tensors"]
    with torch.device("meta"):
        ours = build(size).state_dict()
    assert [(name, list(value.shape)) for name, value in ours.items()] == [(n, s) for n, (s, _) in manifest.items()]


@pytest.mark.parametrize(
    ("size", "millions", "gigamacs"),
    [("l0", 34.8, 35), ("l1", 47.7, 49), ("l2", 61.3, 69), ("xl0", 117.0, 185), ("xl1", 203.3, 322)],
)
def test_parameters_and_arithmetic_are_the_published_ones(size: str, millions: float, gigamacs: int) -> None:
    with torch.device("meta"):
        network = build(size)
        macs = 0

        def count(module: nn.Module, inputs: tuple, output: Tensor) -> None:
            nonlocal macs
            if isinstance(module, nn.Conv2d):
                macs += output[0].numel() * module.weight[0].numel()
            else:  # in each of two scales, a channel meets the head's 32 and their sum twice
                macs += 2 * output[0].numel() * 2 * 33

        for module in network.image_encoder.modules():
            if isinstance(module, nn.Conv2d | LinearAttention):
                module.register_forward_hook(count)
        side = SIZES[size].image_side
        embedding = network.image_encoder.eval()(torch.zeros(1, 3, side, side))
    assert embedding.shape == (1, 256, 64, 64)
    assert abs(sum(value.numel() for value in network.parameters()) / 1e6 - millions) < 0.06
    assert round(macs / 1e9) == gigamacs


def test_every_norm_has_the_published_eps() -> None:
    network = build_efficientvit_sam(TINY, TINY_PREPROCESS)
    norms = [module for module in network.modules() if hasattr(module, "eps")]
    assert {type(module).__name__ for module in norms} >= {"BatchNorm2d", "LayerNorm", "LayerNorm2d"}
    assert {module.eps for module in norms} == {1e-6}


@torch.no_grad()
def test_the_decoder_uses_the_eps_of_its_norms() -> None:
    network = tiny()
    features = network.encode_image(pixels())
    points, labels = torch.ones(1, 1, 2), torch.ones(1, 1).long()
    for module in [m for m in network.mask_decoder.modules() if isinstance(m, nn.LayerNorm)]:
        usual = network.decode(features, points, labels, None, True).low_res_logits
        module.eps = 1.0
        assert not torch.allclose(network.decode(features, points, labels, None, True).low_res_logits, usual)
        module.eps = efficientvit_sam.NORM_EPS


@pytest.mark.parametrize(("size", "side"), [("l0", 512), ("l2", 512), ("xl1", 1024)])
def test_images_enter_at_their_own_size_and_prompts_in_a_frame_of_1024(size: str, side: int) -> None:
    with torch.device("meta"):
        preprocess = build(size).preprocess
    assert preprocess.padded_image_size(preprocess.input_size((600, 800))) == (side, side)
    assert preprocess.image_size((600, 800)) == (side * 3 // 4, side)
    assert preprocess.input_size((600, 800)) == (768, 1024)


@torch.no_grad()
def test_fused_network_gives_the_same_embedding_and_is_a_new_one() -> None:
    network = tiny()
    expected = network.encode_image(pixels())["image_embeddings"]
    fused = fuse(copy.deepcopy(network))
    assert not any(isinstance(module, nn.BatchNorm2d) for module in fused.modules())
    assert any(type(module).__name__ == "WinogradConv" for module in fused.modules())
    ours = fused.encode_image(pixels())["image_embeddings"]
    assert (ours - expected).abs().max() < 1e-4 * expected.std()
    layer = network.image_encoder.neck.middle.op_list[0].main.spatial_conv
    weight = layer.conv.weight.clone()
    layer.fused()
    assert torch.equal(layer.conv.weight, weight)


@torch.no_grad()
def test_images_of_a_batch_do_not_mix() -> None:
    network = fuse(tiny())
    together = network.encode_image(pixels(3))["image_embeddings"]
    alone = torch.cat([network.encode_image(image[None])["image_embeddings"] for image in pixels(3)])
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=1e-4)


def test_training_form_has_gradients_everywhere_in_the_encoder() -> None:
    encoder = filled(efficientvit_sam.ImageEncoder(TINY)).train()
    encoder(pixels(2)).square().mean().backward()
    assert [name for name, value in encoder.named_parameters() if value.grad is None] == []


@torch.no_grad()
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.1), (torch.float16, 0.02)])
def test_half_precision_stays_close(dtype: torch.dtype, tolerance: float) -> None:
    network = fuse(tiny())
    expected = network.encode_image(pixels())["image_embeddings"]
    ours = network.to(dtype).encode_image(pixels().to(dtype))["image_embeddings"]
    assert ours.dtype == dtype
    assert (ours.float() - expected).abs().mean() < tolerance * expected.std()


def test_build_names_what_there_is() -> None:
    for make in (build, build_image_encoder):
        with pytest.raises(UnknownModelError, match="'l9'; its sizes are l0, l1, l2, xl0, xl1"):
            make("l9")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stages": STAGES[:2]}, "three stages"),
        ({"stages": STAGES[1:]}, "first stage must be of kind 'res'"),
        ({"stages": (*STAGES, STAGES[0])}, "only the first stage"),
        ({"frame": 100}, "multiple of 16"),
        ({"head_dim": 24}, "multiples of 24"),
    ],
)
def test_impossible_shapes_are_refused(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(TINY, **changes)
