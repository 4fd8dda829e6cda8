"""TAP's networks: windows, token attention and choices against plain second implementations. Numbers: parity."""

import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from anysam.errors import PromptError, UnknownModelError
from anysam.models import KeepingModel, PromptableModel, tap
from anysam.models.layers import fuse
from anysam.models.tap import (
    Attention,
    ImageDecoder,
    ImageEncoderViT,
    PromptEncoder,
    Tap,
    TapConfig,
    TokenAttention,
    build_tap,
    from_windows,
    published_order,
    to_windows,
)
from anysam.models.tap_captions import caption_tokens
from anysam.models.tap_text import TextConfig
from anysam.preprocess import Preprocess

CASES = Path(__file__).parent / "parity" / "cases"

TINY = TapConfig(
    embed_dim=16,
    depth=4,
    num_heads=2,
    image_size=64,
    patch_size=8,
    window_size=4,
    mlp_ratio=2,
    out_channels=32,
    decoder_mlp_dim=16,
    semantic_dim=24,
    text=TextConfig(depth=1, dim=16, num_heads=2, vocabulary=20, max_positions=6),
)
TINY_PREPROCESS = Preprocess(name="tiny_64", long_side=64, pad_to=64, low_res_stride=2, bgr=True)


def randomise(module: nn.Module, seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        if "running_var" in name:
            nn.init.uniform_(tensor, 0.5, 1.5, generator=generator)
        elif "running_mean" in name or isinstance(tensor, nn.Parameter):
            nn.init.normal_(tensor, std=0.3, generator=generator)


def tiny() -> Tap:
    network = build_tap(TINY, TINY_PREPROCESS).eval()
    randomise(network)
    return network


def noise(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def prompts(count: int) -> tuple[Tensor, Tensor]:
    """Prompts of three tokens: even ones are two points and a padding, odd ones a point and a box."""
    points = 64 * torch.rand(count, 3, 2, generator=torch.Generator().manual_seed(2))
    labels = torch.tensor([[1, 0, -1], [1, 2, 3]]).repeat(count, 1)[:count]
    return points, labels


def between(scores: Tensor, above: int) -> float:
    """A threshold that so many scores are above, and none is near."""
    ordered = [float("inf"), *sorted(scores.flatten().tolist(), reverse=True), float("-inf")]
    return (ordered[above] + ordered[above + 1]) / 2


def attention_by_definition(attention: Attention, window: Tensor) -> Tensor:
    """One window (side, side, D): one head, and the offset of one query and one key, at a time."""
    side, heads = window.shape[0], attention.num_heads
    q, k, v = attention.qkv(window.flatten(0, 1)).reshape(side * side, 3, heads, -1).unbind(1)
    table = attention.rel_pos_embed.weight.unflatten(1, (2 * side - 1, 2 * side - 1))  # (heads, down, across)
    bias = torch.zeros(heads, side * side, side * side)
    for i in range(side * side):
        for j in range(side * side):
            bias[:, i, j] = table[:, i // side - j // side + side - 1, i % side - j % side + side - 1]
    out = torch.zeros_like(q)
    for head in range(heads):
        logits = q[:, head] @ k[:, head].T / math.sqrt(q.shape[-1]) + bias[head]
        out[:, head] = logits.softmax(1) @ v[:, head]
    return attention.proj(out.flatten(1)).unflatten(0, (side, side))


def embed_by_definition(encoder: ImageEncoderViT, image: Tensor) -> Tensor:
    """One image (3, H, W) through the encoder, the tokens kept in their places; (D, h, w)."""
    side = encoder.window_size
    x = encoder.patch_embed.proj(image[None])[0].permute(1, 2, 0)  # (h, w, D)
    x = x + encoder.pos_embed.weight.reshape(x.shape)
    for i, block in enumerate(encoder.blocks):
        normed = block.norm1(x)
        seen = torch.zeros_like(x)
        for top in range(0, x.shape[0], side):
            for left in range(0, x.shape[1], side):
                window = slice(top, top + side), slice(left, left + side)
                seen[window] = attention_by_definition(block.attn, normed[window])
        x = x + seen
        x = x + block.mlp.fc2(functional.gelu(block.mlp.fc1(block.norm2(x))))
        if i == len(encoder.blocks) - 1:
            x = encoder.norm(x)
        cross = encoder.cross_conv[i // (len(encoder.blocks) // 4)]
        y = x.permute(2, 0, 1)[None]
        y = functional.gelu(cross.norm1(cross.conv1(y)))
        y = functional.gelu(cross.norm2(cross.conv2(y)))
        x = x + cross.norm3(cross.conv3(y))[0].permute(1, 2, 0)
    x = x.permute(2, 0, 1)[None]
    return encoder.neck.output_conv[0](encoder.neck.lateral_conv[0](x))[0]


@torch.no_grad()
def test_encoder_in_window_order_is_the_definition_in_place() -> None:
    encoder = tiny().image_encoder
    pixels = noise(2, 3, 64, 64)
    embeddings = encoder(pixels)
    assert embeddings.shape == (2, 32, 8, 8)
    torch.testing.assert_close(embeddings, torch.stack([embed_by_definition(encoder, image) for image in pixels]))


def test_windows_go_row_by_row_and_back() -> None:
    places = torch.arange(2 * 6 * 6).reshape(2, 6, 6, 1)
    windows = to_windows(places, 3)
    assert windows.shape == (8, 3, 3, 1)
    assert windows[1, :, :, 0].tolist() == [[3, 4, 5], [9, 10, 11], [15, 16, 17]]
    assert windows[4, 0, 0, 0] == 36  # the second image's first
    torch.testing.assert_close(from_windows(windows, 6), places)


@torch.no_grad()
def test_joined_batch_norms_change_no_number() -> None:
    network, pixels = tiny(), noise(1, 3, 64, 64)
    before = network.encode_image(pixels)["image_embeddings"]
    alone = network.image_encoder.cross_conv[0].fused()
    assert "norm1.weight" in network.image_encoder.cross_conv[0].state_dict()  # the old one is as it was
    assert not any(isinstance(module, nn.BatchNorm2d) for module in alone.modules())
    for _ in range(2):  # a second time there is nothing left to do
        network = fuse(network)
        assert not any(isinstance(module, nn.BatchNorm2d) for module in network.modules())
        after = network.encode_image(pixels)["image_embeddings"]
        assert (after - before).abs().max() < 1e-4 * before.std()


@torch.no_grad()
@pytest.mark.parametrize("tokens", [2, 7])  # fewer and more than makes joined projections less work
@pytest.mark.parametrize("shared", [False, True])
def test_attention_with_joined_projections_is_plain_attention(tokens: int, shared: bool) -> None:
    attention = TokenAttention(dim=16, inner_dim=8, num_heads=2)
    randomise(attention)
    image, positions = noise(1 if shared else 3, 10, 16, seed=2), noise(10, 16, seed=3)
    asking, asked = noise(3, tokens, 16, seed=4), noise(3, tokens, 16, seed=5)
    seen = attention.from_image(asking, image + positions, image)
    torch.testing.assert_close(seen, attention(asking, image + positions, image))
    added = attention.add_to_image(image, image + positions, asking, asked)
    torch.testing.assert_close(added, image + attention(image + positions, asking, asked))
    plain = nn.MultiheadAttention(8, 2, batch_first=True)  # the definition: torch's own between the projections
    nn.init.eye_(plain.out_proj.weight)
    with torch.no_grad():
        plain.in_proj_weight.copy_(torch.eye(8).repeat(3, 1))
    q, k, v = attention.q_proj(asking), attention.k_proj(image + positions), attention.v_proj(image)
    k, v = k.expand(3, -1, -1), v.expand(3, -1, -1)
    torch.testing.assert_close(seen, attention.proj(plain(q, k, v)[0]))


@torch.no_grad()
def test_upscaling_is_two_transposed_convolutions() -> None:
    decoder = ImageDecoder(TINY).eval()
    randomise(decoder)
    keys, weights = noise(2, 12, 32), noise(2, 4, 4, seed=2)
    first, norm, _, second, _ = decoder.output_conv
    x = first(keys.mT.unflatten(2, (3, 4))).permute(0, 2, 3, 1)  # (2, 6, 8, 8)
    x = functional.gelu(second(functional.gelu(norm(x)).permute(0, 3, 1, 2)))  # (2, 4, 12, 16)
    places = decoder.upscale(keys).reshape(2, 3, 4, 2, 2, 2, 2, 4)
    places = places.permute(0, 7, 1, 3, 5, 2, 4, 6).reshape(2, 4, 12, 16)
    torch.testing.assert_close(places, x)
    assert (weights @ x.flatten(2)).shape == (2, 4, 12 * 16)


@torch.no_grad()
def test_one_mask_is_the_first_for_a_box_and_the_best_other_for_points() -> None:
    network, (points, labels) = tiny(), prompts(8)
    features = network.encode_image(noise(1, 3, 64, 64))
    usual = network.decode_all(features, points, labels).iou_predictions.mean(dim=0)
    network.image_decoder.iou_pred.layers[-1].bias.sub_(usual)  # so that each of the masks is the best for some prompt
    everything = network.decode_all(features, points, labels)
    assert everything.low_res_logits.shape == (8, 4, 32, 32) and everything.iou_predictions.shape == (8, 4)
    one = network.decode(features, points, labels, None, False)
    three = network.decode(features, points, labels, None, True)
    best = [1 + int(everything.iou_predictions[i, 1:].argmax()) for i in range(8)]
    chosen = [0 if i % 2 else best[i] for i in range(8)]
    assert len(set(chosen)) > 2
    for i in range(8):
        torch.testing.assert_close(one.low_res_logits[i], everything.low_res_logits[i, chosen[i]][None])
        torch.testing.assert_close(one.iou_predictions[i], everything.iou_predictions[i, chosen[i]][None])
        for name, width in {"semantic_tokens": 32, "semantic_embeddings": 24}.items():
            assert one.extras[name].shape == (8, 1, width)
            torch.testing.assert_close(one.extras[name][i, 0], everything.extras[name][i, chosen[i]])
    torch.testing.assert_close(three.low_res_logits, everything.low_res_logits[:, 1:])
    torch.testing.assert_close(three.iou_predictions, everything.iou_predictions[:, 1:])
    torch.testing.assert_close(three.extras["semantic_tokens"], everything.extras["semantic_tokens"][:, 1:])


@torch.no_grad()
@pytest.mark.parametrize("multimask", [True, False])
@pytest.mark.parametrize("rows", [32, 19, 4])
def test_kept_masks_are_those_of_all_above_the_threshold(multimask: bool, rows: int) -> None:
    network, (points, labels) = tiny(), prompts(8)  # more than are decoded at once, and not a multiple of it
    assert isinstance(network, KeepingModel)
    features = network.encode_image(noise(1, 3, 64, 64))
    usual = network.decode_all(features, points, labels).iou_predictions.mean(dim=0)
    network.image_decoder.iou_pred.layers[-1].bias.sub_(usual)
    everything = network.decode(features, points, labels, None, multimask)
    scores = everything.iou_predictions
    for count in (scores.numel(), scores.numel() // 2, 0):
        least = between(scores, count)
        kept = network.decode_kept(features, points, labels, multimask, least, rows)
        expected = [i for i, score in enumerate(scores.flatten().tolist()) if score > least]
        assert kept.candidates.tolist() == expected and len(expected) == count
        masks = everything.low_res_logits.flatten(0, 1)[expected, :rows]
        torch.testing.assert_close(kept.low_res_logits, masks, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(kept.iou_predictions, scores)
        for name, values in everything.extras.items():
            torch.testing.assert_close(kept.extras[name], values)


@torch.no_grad()
def test_prompts_of_a_batch_and_images_of_a_batch_do_not_mix() -> None:
    network, (points, labels) = tiny(), prompts(4)
    pixels = noise(2, 3, 64, 64)
    together = network.encode_image(pixels)["image_embeddings"]
    features = network.encode_image(pixels[:1])
    torch.testing.assert_close(features["image_embeddings"], together[:1])
    all_at_once = network.decode_all(features, points, labels)
    for i in range(4):
        alone = network.decode_all(features, points[i : i + 1], labels[i : i + 1])
        torch.testing.assert_close(alone.low_res_logits[0], all_at_once.low_res_logits[i], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(alone.extras["semantic_embeddings"][0], all_at_once.extras["semantic_embeddings"][i])


def test_corners_come_first_and_padding_has_label_four() -> None:
    points = torch.tensor([[[1.0, 1], [2, 2], [3, 3]], [[4, 4], [5, 5], [0, 0]]])
    ordered, labels = published_order(points, torch.tensor([[0, 2, 3], [1, 0, -1]]))
    assert labels.tolist() == [[2, 3, 0], [1, 0, 4]]
    assert ordered[..., 0].tolist() == [[2, 3, 1], [4, 5, 0]]


@torch.no_grad()
def test_prompt_tokens_are_the_formula() -> None:
    encoder = PromptEncoder(embed_dim=4, image_size=100)
    encoder.coord_matrix.copy_(torch.tensor([[1.0, 0.0], [0.0, 0.5]]))
    points = torch.tensor([[[24.5, 49.5], [-30.0, 300.0], [7.0, 8.0]]])
    tokens = encoder(points, torch.tensor([[1, 0, 4]]))
    names = encoder.point_embed.weight
    # x = 0.25 turns by -pi, y = 0.5 by 0; outside the frame they are those of its edge: -2 pi and 2 pi / 2.
    torch.testing.assert_close(tokens[0, 0], names[1] + torch.tensor([0.0, 0.0, -1.0, 1.0]), atol=1e-5, rtol=0)
    torch.testing.assert_close(tokens[0, 1], names[0] + torch.tensor([0.0, 0.0, 1.0, -1.0]), atol=1e-5, rtol=0)
    torch.testing.assert_close(tokens[0, 2], names[4])
    grid = encoder.grid(2)  # row by row; the first is the centre of the top left quarter
    torch.testing.assert_close(grid[0] + names[1], encoder(torch.tensor([[[24.5, 24.5]]]), torch.tensor([[1]]))[0, 0])
    torch.testing.assert_close(grid[1] + names[1], encoder(torch.tensor([[[74.5, 24.5]]]), torch.tensor([[1]]))[0, 0])


@torch.no_grad()
def test_half_precision_does_not_move_points() -> None:
    encoder = PromptEncoder(embed_dim=16, image_size=1024)
    encoder.coord_matrix.copy_(encoder.coord_matrix.bfloat16())
    nn.init.zeros_(encoder.point_embed.weight)
    points, labels = torch.tensor([[[512.0, 100.0], [513.0, 100.0]]]), torch.ones(1, 2, dtype=torch.int64)
    exact = encoder(points, labels)
    half = encoder.bfloat16()(points, labels)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), exact, atol=2**-8, rtol=0)  # rounded once, at the end


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_gives_about_the_same(dtype: torch.dtype) -> None:
    network, (points, labels) = tiny(), prompts(2)
    pixels = noise(1, 3, 64, 64)
    exact = network.decode_all(network.encode_image(pixels), points, labels)
    network = fuse(network).to(dtype)
    features = network.encode_image(pixels.to(dtype))
    half = network.decode_all(features, points, labels)
    assert features["image_embeddings"].dtype == half.low_res_logits.dtype == dtype
    assert (half.low_res_logits.float() - exact.low_res_logits).abs().mean() < 0.1 * exact.low_res_logits.std()
    assert caption_tokens(network.text_decoder, half.extras["semantic_tokens"].flatten(0, 1))


@torch.no_grad()
def test_products_of_queries_and_keys_may_leave_the_range_of_float16() -> None:
    attention = Attention(embed_dim=16, num_heads=2, window=4)
    randomise(attention)
    attention.qkv.weight.mul_(500)  # logits of about 1e6: past the 65504 that float16 ends at
    x, bias = noise(2, 16, 16).half(), attention.rel_pos_embed()[None]
    exact = attention(x.float(), bias)
    half = attention.half()(x, bias.half())
    assert half.isfinite().all()
    assert (half.float() - exact).abs().max() < 0.02 * exact.abs().max()


@torch.no_grad()
def test_the_checkpoints_own_pixel_statistics_count() -> None:
    network, image = tiny(), 255 * torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    mean, std = (torch.tensor(values)[:, None, None] for values in (TINY_PREPROCESS.mean, TINY_PREPROCESS.std))
    own_mean, own_rsig = torch.tensor([100.0, 120.0, 121.0]), torch.tensor([0.02, 0.01, 0.015])
    expected = network.image_encoder((image - own_mean[:, None, None]) * own_rsig[:, None, None])
    network.load_state_dict({**network.state_dict(), "pixel_mean": own_mean, "pixel_rsig": own_rsig})
    ours = network.encode_image((image - mean) / std)["image_embeddings"]
    torch.testing.assert_close(ours, expected, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_rounding_of_pixel_statistics_to_half_precision_is_no_correction() -> None:
    network, pixels = tiny().bfloat16(), noise(1, 3, 64, 64).bfloat16()
    assert float(network.pixel_mean[0]) != TINY_PREPROCESS.mean[0]
    expected = network.image_encoder(pixels)
    torch.testing.assert_close(network.encode_image(pixels)["image_embeddings"], expected, atol=0, rtol=0)


def test_every_parameter_learns() -> None:
    network, (points, labels) = tiny().train(), prompts(2)
    decoded = network.decode_all(network.encode_image(noise(1, 3, 64, 64)), points, labels)
    logits = network.text_decoder(decoded.extras["semantic_tokens"].flatten(0, 1), torch.tensor([[1, 5]] * 8))
    (decoded.low_res_logits.mean() + decoded.iou_predictions.mean() + logits.square().mean()).backward()
    unused = [name for name, parameter in network.named_parameters() if parameter.grad is None]
    assert all(name.startswith("image_decoder.sem_pred") for name in unused)


def test_state_dict_has_the_official_keys_shapes_types_and_order() -> None:
    manifest = json.loads((CASES / "tap_vit_b" / "manifest.json").read_text())["tensors"]
    with torch.device("meta"):
        ours = tap.build("vit_b").state_dict()
    found = [(name, [list(value.shape), str(value.dtype).removeprefix("torch.")]) for name, value in ours.items()]
    assert found == list(manifest.items())


@pytest.mark.parametrize(("size", "encoder"), [("vit_b", 97_398_160), ("vit_l", 322_163_072), ("vit_h", 658_638_080)])
def test_numbers_of_parameters_are_the_published_ones(size: str, encoder: int) -> None:
    with torch.device("meta"):
        network = tap.build(size)
    parts = network.image_encoder, network.prompt_encoder, network.image_decoder, network.text_decoder
    counts = [sum(value.numel() for value in part.parameters()) for part in parts]
    assert counts == [encoder, 1280, 6_421_732, 70_728_704]


def test_what_cannot_be_built_is_refused() -> None:
    with pytest.raises(UnknownModelError, match="'vit_x'; its sizes are vit_b, vit_l, vit_h"):
        tap.build("vit_x")
    for changes in ({"num_heads": 5}, {"depth": 6}, {"image_size": 1000}, {"out_channels": 48}):
        with pytest.raises(ValueError, match=next(iter(changes))):
            TapConfig(**({"embed_dim": 32, "depth": 4, "num_heads": 2} | changes))


@torch.no_grad()
def test_a_mask_prompt_is_refused() -> None:
    network = tiny()
    assert isinstance(network, PromptableModel)
    features = network.encode_image(torch.zeros(1, 3, 64, 64))
    with pytest.raises(PromptError, match="takes no mask prompt; use points or a box"):
        network.decode(features, *prompts(2), torch.zeros(2, 1, 32, 32), False)
