"""SAM's mask decoder: its quicker forms against the network as the paper writes it. Numbers: test_parity.py."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from anysam.models import sam_decoder
from anysam.models.sam_decoder import Attention, MaskDecoder

Inputs = tuple[Tensor, Tensor, Tensor, Tensor]


def randomise(module: nn.Module, seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.3, generator=generator)


def small_decoder() -> MaskDecoder:
    decoder = MaskDecoder(transformer_dim=32, num_heads=2, mlp_dim=16).eval()
    randomise(decoder)
    return decoder


def inputs(prompts: int, tokens: int, dense: int = 1) -> Inputs:
    """Image embeddings (1, 32, 4, 6), position code, sparse (P, N, 32) and dense (1 or P, 32, 4, 6) embeddings."""
    generator = torch.Generator().manual_seed(1)
    shapes = [(1, 32, 4, 6), (1, 32, 4, 6), (prompts, tokens, 32), (dense, 32, 4, 6)]
    image, image_pe, sparse, dense_embeddings = (torch.randn(shape, generator=generator) for shape in shapes)
    return image, image_pe, sparse, dense_embeddings


def decode_by_definition(
    decoder: MaskDecoder, image: Tensor, image_pe: Tensor, sparse: Tensor, dense: Tensor
) -> tuple[Tensor, Tensor]:
    """All four masks of each prompt on its own, with every projection and convolution as the paper writes it."""
    masks, scores = [], []
    for i in range(len(sparse)):
        point = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight, sparse[i]])[None]
        keys = (image + dense[i % len(dense)]).flatten(2).mT
        key_pe = image_pe.flatten(2).mT
        queries = point
        for number, layer in enumerate(decoder.transformer.layers):
            at = queries if number == 0 else queries + point
            attended = layer.self_attn(at, at, queries)
            queries = layer.norm1(attended if number == 0 else queries + attended)
            queries = layer.norm2(queries + layer.cross_attn_token_to_image(queries + point, keys + key_pe, keys))
            queries = layer.norm3(queries + layer.mlp.lin2(layer.mlp.lin1(queries).relu()))
            keys = layer.norm4(keys + layer.cross_attn_image_to_token(keys + key_pe, queries + point, queries))
        attended = decoder.transformer.final_attn_token_to_image(queries + point, keys + key_pe, keys)
        queries = decoder.transformer.norm_final_attn(queries + attended)
        upscaled = decoder.output_upscaling(keys.mT.unflatten(2, image.shape[-2:]))
        weights = torch.stack([mlp(queries[:, 1 + j]) for j, mlp in enumerate(decoder.output_hypernetworks_mlps)], 1)
        masks.append(torch.einsum("pcd,pdhw->pchw", weights, upscaled))
        scores.append(decoder.iou_prediction_head(queries[:, 0]))
    return torch.cat(masks), torch.cat(scores)


@torch.no_grad()
@pytest.mark.parametrize("dense", [1, 5])
@pytest.mark.parametrize("tokens", [0, 1, 2, 20])  # 20: too many to take the projections onto
@pytest.mark.parametrize("prompts", [1, 5])
def test_masks_are_those_of_the_definition(prompts: int, tokens: int, dense: int) -> None:
    decoder = small_decoder()
    values = inputs(prompts, tokens, min(dense, prompts))
    expected_masks, expected_scores = decode_by_definition(decoder, *values)
    masks, scores = decoder.forward_all(*values)
    assert masks.shape == (prompts, 4, 16, 24)
    torch.testing.assert_close(masks, expected_masks, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(scores, expected_scores, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_only_the_wanted_masks_are_made_and_they_are_the_same() -> None:
    decoder, values = small_decoder(), inputs(3, 2)
    every_mask, every_score = decoder.forward_all(*values)
    for multimask, chosen in ((True, slice(1, 4)), (False, slice(0, 1))):
        masks, scores = decoder(*values, multimask)
        torch.testing.assert_close(masks, every_mask[:, chosen])
        torch.testing.assert_close(scores, every_score[:, chosen])
    masks, scores = decoder.forward_all(*values, slice(2, 4))
    torch.testing.assert_close(masks, every_mask[:, 2:])
    torch.testing.assert_close(scores, every_score)


@torch.no_grad()
@pytest.mark.parametrize("dense", [1, 5])
def test_how_many_prompts_are_held_at_once_changes_nothing(dense: int, monkeypatch: pytest.MonkeyPatch) -> None:
    decoder, values = small_decoder(), inputs(5, 2, dense)
    outputs = []
    for at_once in (1, 2, 64):
        monkeypatch.setattr(sam_decoder, "_PROMPTS_AT_ONCE_CPU", at_once)
        outputs.append(decoder(*values, True))
    for output in outputs[1:]:
        torch.testing.assert_close(output, outputs[0])


@pytest.mark.parametrize("tokens", [1, 20])
@pytest.mark.parametrize("images", [1, 3])
def test_attention_with_the_image_has_the_values_and_gradients_of_plain_attention(images: int, tokens: int) -> None:
    attention = Attention(embedding_dim=16, num_heads=2, downsample_rate=2).double()
    randomise(attention)
    generator = torch.Generator().manual_seed(1)
    image, image_at = torch.randn(2, images, 7, 16, dtype=torch.float64, generator=generator)
    queries, queries_at = torch.randn(2, 3, tokens, 16, dtype=torch.float64, generator=generator)
    pairs = (
        (attention(queries, image_at, image), attention.image_to_tokens(queries, image_at, image)),
        (
            image + attention(image_at, queries_at, queries),
            attention.add_tokens_to_image(image, image_at, queries_at, queries),
        ),
    )
    for plain, quick in pairs:
        torch.testing.assert_close(quick, plain)
        parameters = list(attention.parameters())
        expected = torch.autograd.grad(plain.square().sum(), parameters)
        torch.testing.assert_close(torch.autograd.grad(quick.square().sum(), parameters), expected)


def test_training_reaches_every_parameter_and_leaves_the_inputs_alone() -> None:
    decoder = small_decoder().train()
    values = inputs(3, 2)
    before = [value.clone() for value in values]
    masks, scores = decoder.forward_all(*values)
    (masks.square().mean() + scores.square().mean()).backward()
    assert [name for name, value in decoder.named_parameters() if value.grad is None] == []
    for value, old in zip(values, before, strict=True):
        torch.testing.assert_close(value, old, atol=0, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_near_float32(dtype: torch.dtype) -> None:
    decoder, values = small_decoder(), inputs(3, 2)
    expected, _ = decoder(*values, True)
    halves = [value.to(dtype) for value in values]
    masks, scores = decoder.to(dtype)(*halves, True)
    assert masks.dtype == scores.dtype == dtype
    correlation = torch.stack([masks.float().flatten(), expected.flatten()]).corrcoef()[0, 1]
    assert correlation > 0.999
    assert functional.mse_loss(masks.float(), expected) < 0.01 * expected.var()
