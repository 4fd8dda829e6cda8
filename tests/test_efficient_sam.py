"""EfficientSAM against its definition, written out again here without any of the shortcuts. Numbers: test_parity.py."""

import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from anysam.catalogue import find_variant
from anysam.errors import PromptError, UnknownModelError
from anysam.models import KeepingModel, PromptableModel, efficient_sam
from anysam.models.efficient_sam import EfficientSam, EfficientSamConfig, ImageEncoderViT, build_efficient_sam
from anysam.models.layers import fuse
from anysam.preprocess import Preprocess

CASES = Path(__file__).parent / "parity" / "cases"

TINY = EfficientSamConfig(embed_dim=32, num_heads=2, depth=2, image_size=64, out_channels=32, decoder_mlp_dim=64)
TINY_PREPROCESS = Preprocess(
    name="tiny_64", long_side=64, pad_to=64, keep_aspect=False, antialias=False, mask_resize="bicubic"
)

# One prompt of each number of points, as the predictor gives them: without a box, padding comes last.
POINT = ([[20.0, 30.0], [0.0, 0.0]], [1, -1])
OTHER = ([[50.0, 9.0], [0.0, 0.0]], [1, -1])
BOX = ([[10.0, 5.0], [50.0, 60.0]], [2, 3])
SIX = ([[1.0 + i, 60.0 - 9 * i] for i in range(6)] + [[0.0, 0.0]], [1, 0, 1, 1, 0, 0, -1])


def tiny(seed: int = 0) -> EfficientSam:
    network = build_efficient_sam(TINY, TINY_PREPROCESS).eval()
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in network.named_parameters():
        # Tokens and places of size 1, layers that keep sizes, gains near 1: everything matters to the outcome.
        table = name.split(".")[-2].endswith(("token", "tokens", "embeddings", "points"))
        std = 1.0 if table else parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.1
        torch.nn.init.normal_(parameter, mean=float("norm" in name and "weight" in name), std=std, generator=generator)
    network.prompt_encoder.pe_layer.positional_encoding_gaussian_matrix.normal_(generator=generator)
    return network


def noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def batch(*prompts: tuple[list[list[float]], list[int]]) -> tuple[Tensor, Tensor]:
    """Prompts of unequal length as points (P, N, 2) and labels (P, N), padded at the end."""
    longest = max(len(labels) for _, labels in prompts)
    points = [places + [[0.0, 0.0]] * (longest - len(places)) for places, _ in prompts]
    labels = [numbers + [-1] * (longest - len(numbers)) for _, numbers in prompts]
    return torch.tensor(points), torch.tensor(labels)


def attend(attention: nn.Module, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Multi-head attention of q (N, D) to k and v (M, D), one head after the other."""
    q, k, v = attention.q_proj(q), attention.k_proj(k), attention.v_proj(v)
    width = q.shape[-1] // 8
    heads = []
    for i in range(8):
        part = slice(i * width, (i + 1) * width)
        heads.append(functional.softmax(q[:, part] @ k[:, part].T / math.sqrt(width), -1) @ v[:, part])
    return attention.out_proj(torch.cat(heads, -1))


def decode_by_definition(network: EfficientSam, embedding: Tensor, prompt: tuple) -> tuple[Tensor, Tensor]:
    """All four masks (4, 4h, 4w) and scores (4,) of one prompt on an embedding (D, h, w), from the published rules."""
    encoder, decoder = network.prompt_encoder, network.mask_decoder
    kept = [(point, label) for point, label in zip(*prompt, strict=True) if label != -1]
    kept += [([-1.0, -1.0], -1)] * (6 - len(kept))
    vectors = {
        -1: encoder.invalid_points.weight[0],
        0: torch.zeros(32),
        1: encoder.point_embeddings.weight[0],
        2: encoder.bbox_top_left_embeddings.weight[0],
        3: encoder.bbox_bottom_right_embeddings.weight[0],
    }
    matrix = encoder.pe_layer.positional_encoding_gaussian_matrix

    def code(x: float, y: float) -> Tensor:
        angles = 2 * math.pi * (torch.tensor([2 * x - 1, 2 * y - 1]) @ matrix)
        return torch.cat([angles.sin(), angles.cos()])

    prompt_tokens = [code((x + 0.5) / 64, (y + 0.5) / 64) + vectors[label] for (x, y), label in kept]
    tokens = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight, torch.stack(prompt_tokens)])  # (11, D)
    height, width = embedding.shape[1:]
    pe = torch.stack([code((x + 0.5) / width, (y + 0.5) / height) for y in range(height) for x in range(width)])
    keys, queries = embedding.flatten(1).T, tokens  # (hw, D), (11, D)
    for i, layer in enumerate(decoder.transformer.layers):
        if i > 0:
            queries = queries + tokens
        queries = layer.norm1(queries + attend(layer.self_attn, queries, queries, queries))
        found = attend(layer.cross_attn_token_to_image, queries + tokens, keys + pe, keys)
        queries = layer.norm2(queries + found)
        hidden = functional.gelu(layer.mlp.layers[0][0](queries))
        queries = layer.norm3(queries + layer.mlp.fc(hidden))
        keys = layer.norm4(keys + attend(layer.cross_attn_image_to_token, keys + pe, queries + tokens, queries))
    found = attend(decoder.transformer.final_attn_token_to_image, queries + tokens, keys + pe, keys)
    queries = decoder.transformer.norm_final_attn(queries + found)
    cells = keys.T.reshape(1, 32, height, width)
    for layers in decoder.final_output_upscaling_layers:
        cells = layers(cells)
    masks = [decoder.output_hypernetworks_mlps[i](queries[1 + i]) @ cells[0].flatten(1) for i in range(4)]
    return torch.stack(masks).reshape(4, 4 * height, 4 * width), decoder.iou_prediction_head(queries[0])


@torch.no_grad()
@pytest.mark.parametrize("copies", [1, 3], ids=["few prompts", "more than one batch"])
def test_decoder_is_the_definition(copies: int) -> None:
    network, embedding = tiny(), noise(1, 32, 4, 4)
    prompts = [POINT, BOX][: copies + 1] * copies + [SIX] * (copies - 1)
    points, labels = batch(*prompts)
    several, scores, _ = network.decode({"image_embeddings": embedding}, points, labels, None, True)
    one, score, _ = network.decode({"image_embeddings": embedding}, points, labels, None, False)
    for i, prompt in enumerate(prompts):
        masks, ious = decode_by_definition(network, embedding[0], prompt)
        torch.testing.assert_close(torch.cat([one[i], several[i]]), masks, atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(torch.cat([score[i], scores[i]]), ious, atol=1e-5, rtol=1e-5)
    if copies > 1:
        assert (several[0] - several[1]).abs().mean() > 0.1 * several.std()  # prompts do matter


@torch.no_grad()
def test_attention_is_the_definition() -> None:
    attention = tiny().image_encoder.blocks[0].attn
    x = noise(2, 9, 32)
    expected = torch.zeros_like(x)
    for image in range(2):
        q, k, v = attention.qkv(x[image]).reshape(9, 3, 2, 16).permute(1, 2, 0, 3)  # each (heads, tokens, D/heads)
        for head in range(2):
            weights = functional.softmax(q[head] @ k[head].T / 4, -1)
            expected[image, :, 16 * head : 16 * head + 16] = weights @ v[head]
    torch.testing.assert_close(attention(x), attention.proj(expected))


def cubic(x: float) -> float:
    """The cubic convolution kernel of Keys with a = -0.75."""
    a, x = -0.75, abs(x)
    if x <= 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    return a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a if x < 2 else 0.0


def cubic_weights(size: int, target: int) -> Tensor:
    """(target, size): pixel centres, edges repeated, no antialiasing."""
    weights = torch.zeros(target, size)
    for i in range(target):
        centre = (i + 0.5) * size / target - 0.5
        for j in range(math.floor(centre) - 1, math.floor(centre) + 3):
            weights[i, min(max(j, 0), size - 1)] += cubic(centre - j)
    return weights


@torch.no_grad()
def test_position_table_is_resized_by_cubic_convolution_without_the_class_token() -> None:
    encoder = ImageEncoderViT(TINY)
    encoder.pos_embed.copy_(noise(*encoder.pos_embed.shape))
    table = encoder.pos_embed[0, 1:].reshape(14, 14, 32)
    expected = torch.einsum("yj,xi,jid->dyx", cubic_weights(14, 20), cubic_weights(14, 9), table)
    torch.testing.assert_close(encoder.positions(20, 9)[0], expected)
    torch.testing.assert_close(encoder.positions(14, 14)[0], table.permute(2, 0, 1))


def test_state_dict_has_the_official_keys_shapes_and_order() -> None:
    manifest = json.loads((CASES / "efficient_sam_vitt" / "manifest.json").read_text())["tensors"]
    with torch.device("meta"):
        ours = efficient_sam.build("vitt").state_dict()
    assert [(name, list(value.shape)) for name, value in ours.items()] == [(n, s) for n, (s, _) in manifest.items()]


@pytest.mark.parametrize("size", ["vitt", "vits"])
def test_weights_fill_the_published_file(size: str) -> None:
    published = find_variant(f"efficient_sam_{size}").file.bytes
    with torch.device("meta"):
        ours = sum(4 * value.numel() for value in efficient_sam.build(size).state_dict().values())
    assert published is not None
    assert 0 < published - ours < 120_000  # what is left are names and the archive's structure


def test_other_sizes_and_impossible_shapes_are_refused() -> None:
    with pytest.raises(UnknownModelError, match="'vitb'; its sizes are vitt, vits"):
        efficient_sam.build("vitb")
    with pytest.raises(ValueError, match="multiple of num_heads"):
        EfficientSamConfig(embed_dim=32, num_heads=3)
    with pytest.raises(ValueError, match="multiple of patch_size"):
        EfficientSamConfig(embed_dim=32, num_heads=2, image_size=60)
    with pytest.raises(ValueError, match="out_channels"):
        EfficientSamConfig(embed_dim=32, num_heads=2, out_channels=24)


@torch.no_grad()
def test_images_of_a_batch_do_not_mix() -> None:
    network, pixels = tiny(), noise(3, 3, 64, 64)
    together = network.encode_image(pixels)["image_embeddings"]
    alone = torch.cat([network.encode_image(image[None])["image_embeddings"] for image in pixels])
    assert together.shape == (3, 32, 4, 4)
    torch.testing.assert_close(together, alone)


@torch.no_grad()
def test_prompts_of_unequal_length_in_a_batch_are_as_if_alone() -> None:
    network = tiny()
    features = {"image_embeddings": noise(1, 32, 4, 4)}
    assert isinstance(network, PromptableModel)
    prompts = [POINT, SIX, BOX, POINT]
    together = network.decode(features, *batch(*prompts), None, True)
    assert together.low_res_logits.shape == (4, 3, 16, 16)
    for i, prompt in enumerate(prompts):
        alone = network.decode(features, *batch(prompt), None, True)
        torch.testing.assert_close(together.low_res_logits[i], alone.low_res_logits[0], atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(together.iou_predictions[i], alone.iou_predictions[0], atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("multimask", [True, False])
@pytest.mark.parametrize("prompts", [[POINT], [POINT, SIX, BOX, OTHER]], ids=["one", "more than at once"])
def test_kept_masks_are_those_of_all_above_the_threshold(multimask: bool, prompts: list) -> None:
    network, features = tiny(), {"image_embeddings": noise(1, 32, 4, 4)}
    assert isinstance(network, KeepingModel)
    everything = network.decode(features, *batch(*prompts), None, multimask)
    scores = everything.iou_predictions
    ordered = [float("inf"), *sorted(scores.flatten().tolist(), reverse=True), float("-inf")]
    for count in (scores.numel(), 2, 1, 0):
        least = (ordered[min(count, scores.numel())] + ordered[min(count, scores.numel()) + 1]) / 2  # none is near it
        for rows in (16, 9):
            kept = network.decode_kept(features, *batch(*prompts), multimask, least, rows)
            expected = [i for i, score in enumerate(scores.flatten().tolist()) if score > least]
            assert kept.candidates.tolist() == expected and len(expected) == min(count, scores.numel())
            assert kept.low_res_logits.shape == (len(expected), rows, 16)
            masks = everything.low_res_logits.flatten(0, 1)[expected, :rows]
            torch.testing.assert_close(kept.low_res_logits, masks, atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(kept.iou_predictions, scores)


@torch.no_grad()
def test_order_of_tokens_and_place_of_padding_do_not_matter() -> None:
    network = tiny()
    features = {"image_embeddings": noise(1, 32, 4, 4)}
    corners_last = ([[20.0, 30.0], [10.0, 5.0], [50.0, 60.0]], [0, 2, 3])
    corners_first = ([[10.0, 5.0], [9.0, 9.0], [50.0, 60.0], [20.0, 30.0]], [2, -1, 3, 0])
    expected = network.decode(features, *batch(corners_last), None, True).low_res_logits
    found = network.decode(features, *batch(corners_first), None, True).low_res_logits
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)


def test_more_than_six_points_are_refused_rather_than_dropped() -> None:
    seven = ([[5.0 * i, 7.0 * i] for i in range(5)] + BOX[0], [1, 0, 1, 1, 1, 2, 3])
    with pytest.raises(PromptError, match="at most 6 points .* got 7"):
        tiny().decode({"image_embeddings": noise(1, 32, 4, 4)}, *batch(POINT, seven), None, True)


@torch.no_grad()
def test_background_points_have_no_vector_and_padding_has_a_place() -> None:
    encoder = tiny().prompt_encoder
    sparse, log_counts = encoder(*batch(([[20.0, 30.0]], [0])))
    torch.testing.assert_close(sparse[0, 0], encoder.pe_layer.encode(torch.tensor([20.5, 30.5]) / 64))
    place = encoder.pe_layer.encode(torch.tensor([-0.5, -0.5]) / 64)
    torch.testing.assert_close(sparse[0, 1], place + encoder.invalid_points.weight[0])
    torch.testing.assert_close(log_counts.exp(), torch.tensor([[1.0, 5.0]]))


@torch.no_grad()
def test_fused_network_is_equal_and_leaves_the_original() -> None:
    network, pixels = tiny(), noise(1, 3, 64, 64)
    keys = list(network.state_dict())
    embeddings = network.encode_image(pixels)
    expected = network.decode(embeddings, *batch(POINT, BOX), None, True)
    encoder = network.prompt_encoder
    fused = fuse(network)
    assert encoder.image_pe is None and fused.prompt_encoder.image_pe is not None
    found = fused.decode(fused.encode_image(pixels), *batch(POINT, BOX), None, True)
    torch.testing.assert_close(found.low_res_logits, expected.low_res_logits)
    assert list(fused.state_dict()) == keys


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("prompts", [[POINT], [POINT, BOX, SIX, POINT]])
def test_half_precision_gives_the_same_masks(dtype: torch.dtype, prompts: list) -> None:
    pixels = noise(1, 3, 64, 64)
    exact, half = tiny(), tiny().to(dtype)
    expected = exact.decode(exact.encode_image(pixels), *batch(*prompts), None, True)
    found = half.decode(half.encode_image(pixels.to(dtype)), *batch(*prompts), None, True)
    assert found.low_res_logits.dtype == found.iou_predictions.dtype == dtype
    for ours, true in zip(found[:2], expected[:2], strict=True):
        assert (ours - true).abs().mean() < 0.03 * true.std()
    masks, true_masks = found.low_res_logits > 0, expected.low_res_logits > 0
    assert (masks & true_masks).sum() / (masks | true_masks).sum() > 0.98


@pytest.mark.parametrize("prompts", [[POINT, BOX], [POINT, BOX, SIX, SIX]], ids=["few", "many"])
def test_every_parameter_learns(prompts: list) -> None:
    network = tiny().train()
    features = network.encode_image(noise(1, 3, 64, 64))
    loss = torch.zeros(())
    for multimask in (True, False):
        logits, ious, _ = network.decode(features, *batch(*prompts), None, multimask)
        loss = loss + (logits * noise(*logits.shape)).sum() + (ious * noise(*ious.shape)).sum()
    loss.backward()
    for name, parameter in network.named_parameters():
        # A key's bias shifts the logits of all keys alike.
        if not name.endswith("k_proj.bias"):
            assert parameter.grad is not None and parameter.grad.isfinite().all() and parameter.grad.any(), name
