"""SAM-Lightening's networks: dilated attention against its description, official names, precision."""

import copy
import dataclasses
import json
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from anysam.errors import UnknownModelError
from anysam.models.layers import fuse
from anysam.models.sam_lightening import (
    PREPROCESS,
    SIZES,
    DilatedAttention,
    DilatedVitConfig,
    ImageEncoderViT,
    build,
    build_sam_lightening,
)
from tiny_models import filled, frame

CASES = Path(__file__).parent / "parity" / "cases"

TINY = DilatedVitConfig(
    embed_dim=32,
    depth=2,
    configured_heads=4,
    global_blocks=(1,),
    image_size=64,
    patch_size=4,
    window_size=6,
    mlp_ratio=2,
)


def attention(window: int | None, dim: int = 16, heads: int = 4) -> DilatedAttention:
    return filled(DilatedAttention(dim, heads, window)).requires_grad_(False)


def published_steps(attention: DilatedAttention, x: Tensor) -> Tensor:
    """x (windows, side, side, D), the windows of one image or one whole image -> the same shape, token by token.

    As published: positions first; every second position; softmax over the axis of windows at each position; two
    projections, of which the second sees zeros where there was no attention.
    """
    windows, side, _, dim = x.shape
    heads = attention.num_heads
    positions = x.permute(1, 2, 0, 3).reshape(side * side, windows, dim)
    out = torch.zeros_like(positions)
    for place in range(0, side * side, 2):
        q, k, v = attention.multihead_attn.Wqkv(positions[place]).reshape(windows, 3, heads, -1).unbind(1)
        # Half as many heads as configured, logits scaled for the configured width.
        logits = torch.einsum("ahd,bhd->hab", q, k) * (dim // (2 * heads)) ** -0.5
        mixed = torch.einsum("hab,bhd->ahd", logits.softmax(-1), v).reshape(windows, dim)
        out[place] = attention.multihead_attn.out_proj(mixed)
    return attention.proj(out.reshape(side, side, windows, dim).permute(2, 0, 1, 3))


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize(("height", "width"), [(8, 8), (6, 10), (4, 4)])
def test_windowed_attention_is_the_published_steps(height: int, width: int, fused: bool) -> None:
    module = attention(window=4)
    x = torch.randn(2, height, width, 16, generator=torch.Generator().manual_seed(1))
    ours = module.fused()(x) if fused else module(x)
    padded = functional.pad(x, (0, 0, 0, -width % 4, 0, -height % 4))  # zeros right and below, attended to as any
    expected = torch.zeros_like(padded)
    for image in range(2):
        places = [(top, left) for top in range(0, height, 4) for left in range(0, width, 4)]
        windows = torch.stack([padded[image, t : t + 4, s : s + 4] for t, s in places])
        for (t, s), window in zip(places, published_steps(module, windows), strict=True):
            expected[image, t : t + 4, s : s + 4] = window
    torch.testing.assert_close(ours, expected[:, :height, :width], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("fused", [False, True])
def test_global_attention_is_the_published_steps_of_each_image_alone(fused: bool) -> None:
    module = attention(window=None)
    x = torch.randn(2, 6, 6, 16, generator=torch.Generator().manual_seed(1))
    expected = torch.cat([published_steps(module, image[None]) for image in x])
    torch.testing.assert_close(module.fused()(x) if fused else module(x), expected, atol=1e-5, rtol=1e-5)


def test_tokens_in_odd_columns_get_the_bias_alone_and_change_nothing_else() -> None:
    module = attention(window=4)
    x = torch.randn(1, 8, 8, 16, generator=torch.Generator().manual_seed(1))
    changed = x.clone()
    changed[:, :, 1::2] = 7.0
    assert torch.equal(module(x), module(changed))
    assert torch.equal(module(x)[0, 3, 5], module.proj.bias)


def test_images_of_a_batch_do_not_mix() -> None:
    encoder = filled(ImageEncoderViT(TINY)).requires_grad_(False)
    pixels = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    alone = torch.cat([encoder(image[None]) for image in pixels])
    torch.testing.assert_close(encoder(pixels), alone, atol=1e-5, rtol=1e-5)


def test_state_dict_has_the_official_keys_shapes_and_order() -> None:
    manifest = json.loads((CASES / "sam_lightening" / "manifest.json").read_text())["tensors"]
    with torch.device("meta"):
        ours = build("t").state_dict()
    assert [(name, list(value.shape)) for name, value in ours.items()] == [(n, s) for n, (s, _) in manifest.items()]


@pytest.mark.parametrize(
    ("size", "blocks", "heads", "head_width", "windowed"),
    [
        ("t", 6, 3, 64, [True, True, False] * 2),
        ("t_np", 9, 4, 48, [True] * 9),
        ("t_np2", 6, 3, 64, [True] * 6),
        ("b", 12, 6, 64, [True, True, False] * 4),
    ],
)
def test_sizes_are_those_of_the_published_builders(
    size: str, blocks: int, heads: int, head_width: int, windowed: list[bool]
) -> None:
    with torch.device("meta"):
        attentions = [block.attn for block in build(size).image_encoder.blocks]
    assert len(attentions) == blocks
    assert {module.num_heads for module in attentions} == {heads}
    assert {module.scale for module in attentions} == {head_width**-0.5}
    assert [module.window is not None for module in attentions] == windowed


@torch.no_grad()
def test_fused_network_gives_the_same_embedding_and_leaves_the_other_as_it_was() -> None:
    network = filled(build_sam_lightening(dataclasses.replace(TINY, out_channels=64), frame(PREPROCESS))).eval()
    pixels = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    expected = network.encode_image(pixels)["image_embeddings"]
    ours = fuse(copy.deepcopy(network)).encode_image(pixels)["image_embeddings"]
    assert (ours - expected).abs().max() < 1e-4 * expected.std()
    block = network.image_encoder.blocks[0]
    state = copy.deepcopy(block.state_dict())
    block.attn.fused()
    assert all(torch.equal(value, state[name]) for name, value in block.state_dict().items())


@torch.no_grad()
@pytest.mark.parametrize("fused", [False, True])
def test_attention_alone_may_be_in_bfloat16(fused: bool) -> None:
    encoder = filled(ImageEncoderViT(TINY)).eval()
    pixels = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    expected = encoder(pixels)
    encoder = fuse(encoder) if fused else encoder
    for block in encoder.blocks:
        block.attn.to(torch.bfloat16)
    ours = encoder(pixels)
    assert ours.dtype == torch.float32
    assert 0 < (ours - expected).abs().mean() < 0.02 * expected.std()


def test_training_form_has_gradients_everywhere_but_where_attention_is_to_oneself() -> None:
    encoder = filled(ImageEncoderViT(TINY)).train()
    encoder(torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))).square().mean().backward()
    assert [name for name, value in encoder.named_parameters() if value.grad is None] == []
    gradient = encoder.blocks[1].attn.multihead_attn.Wqkv.weight.grad
    assert not gradient[:64].any()  # queries and keys of a global block
    assert gradient[64:].any()


def test_build_names_what_there_is() -> None:
    with pytest.raises(UnknownModelError, match="'vit_t'; its sizes are t, t_np, t_np2, b, l, h"):
        build("vit_t")
    assert set(SIZES) == {"t", "t_np", "t_np2", "b", "l", "h"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"configured_heads": 5}, "configured_heads must be even"),
        ({"embed_dim": 30}, "divide embed_dim"),
        ({"window_size": 7}, "even sides"),
        ({"image_size": 60, "patch_size": 12}, "even sides"),
        ({"global_blocks": (2,)}, "global_blocks"),
    ],
)
def test_impossible_encoder_shapes_are_refused(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(TINY, **changes)
