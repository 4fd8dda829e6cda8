"""SAM's networks: attention against its definition, official names and sizes, precision. Numbers: test_parity.py."""

import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from anysam.catalogue import find_variant
from anysam.errors import UnknownModelError
from anysam.models import PromptableModel, build, sam
from anysam.models.sam import Attention, Block, VitConfig, build_sam
from anysam.models.sam_decoder import PositionEmbeddingRandom, PromptEncoder
from anysam.preprocess import Preprocess

CASES = Path(__file__).parent / "parity" / "cases"

TINY = VitConfig(
    embed_dim=32, depth=2, num_heads=2, global_blocks=(1,), image_size=64, window_size=3, mlp_ratio=2, out_channels=32
)
TINY_PREPROCESS = Preprocess(name="tiny_64", long_side=64, pad_to=64)


def randomise(module: nn.Module, seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.3, generator=generator)


def attention_by_definition(attention: Attention, window: Tensor) -> Tensor:
    """One window (side, side, D): every pair of a query and a key on its own, as the paper writes it."""
    side, heads = attention.window, attention.num_heads
    qkv = attention.qkv(window.reshape(side * side, -1))
    q, k, v = qkv.reshape(side * side, 3, heads, -1).unbind(1)  # (tokens, heads, D/heads)
    out = torch.zeros_like(q)
    for head in range(heads):
        for i in range(side * side):
            logits = torch.zeros(side * side)
            for j in range(side * side):
                content = q[i, head] @ k[j, head] / math.sqrt(q.shape[-1])
                down = attention.rel_pos_h[i // side - j // side + side - 1]
                across = attention.rel_pos_w[i % side - j % side + side - 1]
                logits[j] = content + q[i, head] @ down + q[i, head] @ across
            out[i, head] = logits.softmax(0) @ v[:, head]
    return attention.proj(out.reshape(side, side, -1))


@torch.no_grad()
def test_global_attention_is_the_definition() -> None:
    attention = Attention(embed_dim=8, num_heads=2, window=4)
    randomise(attention)
    x = torch.randn(1, 4, 4, 8, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(attention(x)[0], attention_by_definition(attention, x[0]))


@torch.no_grad()
def test_padded_windows_are_the_definition_on_zero_padded_tokens() -> None:
    attention = Attention(embed_dim=8, num_heads=2, window=3)
    randomise(attention)
    x = torch.randn(2, 4, 5, 8, generator=torch.Generator().manual_seed(1))
    padded = functional.pad(x, (0, 0, 0, 1, 0, 2))  # (2, 6, 6, 8): zeros right and below
    expected = torch.zeros_like(padded)
    for image in range(2):
        for top in (0, 3):
            for left in (0, 3):
                window = padded[image, top : top + 3, left : left + 3]
                expected[image, top : top + 3, left : left + 3] = attention_by_definition(attention, window)
    torch.testing.assert_close(attention(x), expected[:, :4, :5])


@torch.no_grad()
def test_position_bias_is_built_in_bands_of_bounded_size(monkeypatch: pytest.MonkeyPatch) -> None:
    attention = Attention(embed_dim=8, num_heads=2, window=6)
    randomise(attention)
    x = torch.randn(1, 6, 6, 8, generator=torch.Generator().manual_seed(1))
    whole = attention(x)
    sizes = []

    def attend(q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor) -> Tensor:
        sizes.append(attn_mask.numel())
        return functional.softmax(q @ k.mT / math.sqrt(q.shape[-1]) + attn_mask, -1) @ v

    monkeypatch.setattr(functional, "scaled_dot_product_attention", attend)
    monkeypatch.setattr(sam, "_BIAS_VALUES", 36 * 36)  # one head
    torch.testing.assert_close(attention(x), whole)
    monkeypatch.setattr(sam, "_BIAS_VALUES", 4 * 6 * 36)  # four of six query rows of one head
    torch.testing.assert_close(attention(x), whole)
    assert sizes == [36 * 36] * 2 + [4 * 6 * 36, 2 * 6 * 36] * 2


def test_a_block_gives_the_same_in_pieces_and_leaves_its_input_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    block = Block(embed_dim=8, num_heads=2, mlp_ratio=2, window=3)
    randomise(block)
    x = torch.randn(2, 8, 7, 8, generator=torch.Generator().manual_seed(1))
    before = x.clone()
    attended = x + block.attn(block.norm1(x))
    expected = attended + block.mlp(block.norm2(attended))
    monkeypatch.setattr(sam, "_WINDOW_ROWS", 1)
    monkeypatch.setattr(sam, "_MLP_TOKENS", 5)
    torch.testing.assert_close(block(x), expected)
    block(x).square().sum().backward()
    assert all(parameter.grad is not None for parameter in block.parameters())
    torch.testing.assert_close(x, before, atol=0, rtol=0)


@pytest.mark.parametrize("size", ["vit_b", "vit_l"])
def test_state_dict_has_the_official_keys_shapes_and_order(size: str) -> None:
    manifest = json.loads((CASES / f"sam_{size}" / "manifest.json").read_text())["tensors"]
    with torch.device("meta"):
        ours = build("sam", size).state_dict()
    assert [(name, list(value.shape)) for name, value in ours.items()] == [(n, s) for n, (s, _) in manifest.items()]


@pytest.mark.parametrize("name", ["sam_vit_b", "sam_vit_l", "sam_vit_h"])
def test_number_of_parameters_is_the_published_one(name: str) -> None:
    row = find_variant(name)
    with torch.device("meta"):
        network = build(row.family, row.size)
    assert sum(value.numel() for value in network.parameters()) == row.parameters


def test_build_names_what_there_is() -> None:
    with pytest.raises(UnknownModelError, match="'samm'; families are .*sam"):
        build("samm", "vit_b")
    with pytest.raises(UnknownModelError, match="'vit_x'; its sizes are vit_b, vit_h, vit_l"):
        build("sam", "vit_x")
    with pytest.raises(UnknownModelError, match="'vit_x'; its sizes are vit_b, vit_l, vit_h"):
        sam.build("vit_x")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_heads": 5}, "multiple of num_heads"),
        ({"image_size": 65}, "multiple of patch_size"),
        ({"global_blocks": (2,)}, "global_blocks"),
    ],
)
def test_impossible_encoder_shapes_are_refused(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VitConfig(**({"embed_dim": 32, "depth": 2, "num_heads": 2, "global_blocks": (1,)} | changes))


@torch.no_grad()
def test_images_of_a_batch_do_not_mix() -> None:
    network = build_sam(TINY, TINY_PREPROCESS).eval()
    randomise(network)
    pixels = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    together = network.encode_image(pixels)["image_embeddings"]
    alone = torch.cat([network.encode_image(image[None])["image_embeddings"] for image in pixels])
    torch.testing.assert_close(together, alone)


@torch.no_grad()
@pytest.mark.parametrize(("multimask", "masks"), [(True, 3), (False, 1)])
@pytest.mark.parametrize("with_mask", [True, False])
def test_decode_keeps_the_protocol(multimask: bool, masks: int, with_mask: bool) -> None:
    network = build_sam(TINY, TINY_PREPROCESS).eval()
    assert isinstance(network, PromptableModel)
    features = network.encode_image(torch.zeros(1, 3, 64, 64))
    assert features["image_embeddings"].shape == (1, 32, 4, 4)
    mask_logits = torch.zeros(5, 1, 16, 16) if with_mask else None
    logits, ious, _ = network.decode(features, torch.ones(5, 2, 2), torch.ones(5, 2).long(), mask_logits, multimask)
    assert logits.shape == (5, masks, 16, 16)
    assert ious.shape == (5, masks)


@torch.no_grad()
def test_a_prompt_that_is_only_a_mask_adds_no_token() -> None:
    network = build_sam(TINY, TINY_PREPROCESS).eval()
    randomise(network)
    features = network.encode_image(torch.zeros(1, 3, 64, 64))
    mask_logits = torch.randn(2, 1, 16, 16, generator=torch.Generator().manual_seed(1))
    logits, _, _ = network.decode(features, torch.zeros(2, 1, 2), torch.full((2, 1), -1), mask_logits, False)
    dense = network.prompt_encoder.mask_downscaling(mask_logits)
    no_tokens = torch.zeros(2, 0, 32)
    expected, _ = network.mask_decoder(
        features["image_embeddings"], network.prompt_encoder.dense_pe(), no_tokens, dense, False
    )
    torch.testing.assert_close(logits, expected)
    assert not torch.allclose(logits[0], logits[1])


@torch.no_grad()
def test_labels_and_places_of_tokens_matter_but_not_the_place_of_padding() -> None:
    encoder = PromptEncoder(embed_dim=16, image_embedding_size=(4, 4), input_size=(64, 64))
    place, elsewhere = torch.tensor([[[10.0, 20.0]]]), torch.tensor([[[40.0, 5.0]]])
    codes = [encoder(place, torch.tensor([[label]]), None)[0] for label in (-1, 0, 1, 2, 3)]
    assert all(not torch.allclose(a, b) for i, a in enumerate(codes) for b in codes[:i])
    assert not torch.allclose(encoder(elsewhere, torch.tensor([[1]]), None)[0], codes[2])
    torch.testing.assert_close(encoder(elsewhere, torch.tensor([[-1]]), None)[0], codes[0])


def test_half_precision_does_not_move_points() -> None:
    layer = PositionEmbeddingRandom(8)
    layer.positional_encoding_gaussian_matrix.copy_(layer.positional_encoding_gaussian_matrix.bfloat16())
    points = torch.tensor([[0.50, 0.25], [0.501, 0.25]])  # half a pixel of 512 apart
    exact = layer.encode(points)
    half = layer.bfloat16().encode(points)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), exact, atol=2**-8, rtol=0)  # rounded once, at the end
