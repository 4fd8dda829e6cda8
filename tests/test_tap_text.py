"""What words for masks come from: concepts and the caption network, each by its definition. Numbers: parity."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from anysam.errors import OptionError
from anysam.models.tap_text import BOS, TextConfig, TextDecoder, concept_probabilities, linear, top_concepts

TINY = TextConfig(depth=2, dim=16, num_heads=2, mlp_ratio=2, vocabulary=11, max_positions=9)


def random_decoder(seed: int = 0, config: TextConfig = TINY) -> TextDecoder:
    decoder = TextDecoder(config, prompt_dim=6).eval()
    generator = torch.Generator().manual_seed(seed)
    for parameter in decoder.parameters():
        nn.init.normal_(parameter, std=0.5, generator=generator)
    return decoder


def random_tokens(count: int) -> Tensor:
    return torch.randn(count, 6, generator=torch.Generator().manual_seed(1))


def logits_by_definition(decoder: TextDecoder, semantic_token: Tensor, tokens: list[int]) -> Tensor:
    """One caption: rotary positions as multiplications of complex numbers, one query and one head at a time."""
    words, config = decoder.transformer, decoder.config
    x = torch.stack([decoder.encoder.weight @ semantic_token, *words.tok_embeddings.weight[tokens]])  # (T, D)
    width = config.dim // config.num_heads
    turns = torch.tensor(
        [[10000 ** (-2 * i / width) * place for i in range(width // 2)] for place in range(len(x))]
    )  # (T, width / 2)
    for block in words.blocks:
        qkv = block.attn.qkv(block.norm1(x)).reshape(len(x), 3, config.num_heads, width)
        seen = torch.zeros(len(x), config.num_heads, width)
        for head in range(config.num_heads):
            q, k, v = qkv[:, :, head].unbind(1)
            q, k = (
                torch.view_as_real(torch.view_as_complex(t.reshape(len(x), -1, 2)) * torch.exp(1j * turns)).flatten(1)
                for t in (q, k)
            )
            for place in range(len(x)):
                weights = (k[: place + 1] @ q[place] / math.sqrt(width)).softmax(0)
                seen[place, head] = weights @ v[: place + 1]
        x = x + block.attn.proj(seen.flatten(1))
        x = x + block.mlp.fc2(functional.gelu(block.mlp.fc1(block.norm2(x))))
    return words.norm(x)[1:] @ words.text_proj.weight.T


@torch.no_grad()
def test_logits_are_the_definition() -> None:
    decoder, semantic_tokens = random_decoder(), random_tokens(2)
    tokens = [[BOS, 5, 9, 3], [BOS, 0, 10, 7]]
    logits = decoder(semantic_tokens, torch.tensor(tokens))
    assert logits.shape == (2, 4, 11)
    expected = torch.stack([logits_by_definition(decoder, semantic_tokens[i], tokens[i]) for i in range(2)])
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("pieces", [(5,), (1, 1, 1, 1, 1), (2, 3), (3, 1, 1)])
def test_reading_in_pieces_is_reading_all_at_once(pieces: tuple[int, ...]) -> None:
    decoder, semantic_tokens = random_decoder(), random_tokens(3)
    tokens = torch.tensor([[BOS, 5, 9, 3], [BOS, 0, 10, 7], [BOS, 4, 4, 4]])
    vectors = torch.cat([decoder.prompts(semantic_tokens), decoder.embed(tokens)], dim=1)  # (3, 5, D)
    kept = decoder.nothing_read(3).fill_(math.nan)  # what was not read yet has no influence
    read, start = [], 0
    for x in vectors.split(pieces, dim=1):
        read.append(decoder.read(x, decoder.turns(), kept, start))
        start += x.shape[1]
    logits = decoder.logits(torch.cat(read, dim=1)[:, 1:])
    torch.testing.assert_close(logits, decoder(semantic_tokens, tokens), atol=1e-4, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("bias", [True, False])
def test_few_rows_give_what_many_give(bias: bool) -> None:
    layer = nn.Linear(12, 7, bias)
    for shape in [(0, 1), (1, 1), (2, 1), (1, 3), (4, 2), (9, 1), (2, 8), (8, 8), (65, 1)]:
        x = torch.randn(*shape, 12, generator=torch.Generator().manual_seed(0))
        torch.testing.assert_close(linear(layer, x), layer(x))
        assert linear(layer, x).is_contiguous()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@torch.no_grad()
def test_half_precision_gives_about_the_same(dtype: torch.dtype) -> None:
    tokens = torch.tensor([[BOS, 5], [BOS, 7]])
    exact = random_decoder()(random_tokens(2), tokens)
    logits = random_decoder().to(dtype)(random_tokens(2).to(dtype), tokens)
    assert logits.dtype == torch.float32 and logits.isfinite().all()
    assert (logits - exact).abs().mean() < 0.05 * exact.std()


@pytest.mark.parametrize("changes", [{"dim": 18}, {"max_positions": 2}, {"vocabulary": 2}])
def test_impossible_shapes_are_refused(changes: dict) -> None:
    with pytest.raises(ValueError):
        TextConfig(**({"depth": 1, "dim": 16, "num_heads": 2} | changes))


def test_concepts_are_a_softmax_of_cosines() -> None:
    rng = np.random.default_rng(0)
    embeddings, weights = rng.normal(size=(3, 8)), rng.normal(size=(8, 5))
    logits = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True) @ weights
    expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    ours = concept_probabilities(torch.from_numpy(embeddings).float(), torch.from_numpy(weights).float())
    np.testing.assert_allclose(ours.numpy(), expected, rtol=1e-5)
    best = top_concepts(ours, 2)
    np.testing.assert_array_equal(best.indices.numpy(), np.argsort(-expected)[:, :2])
    np.testing.assert_allclose(best.scores.numpy(), -np.sort(-expected)[:, :2], rtol=1e-5)


def test_concepts_of_a_batch_of_masks_in_half_precision_are_computed_in_float32() -> None:
    embeddings = torch.full((2, 4, 8), 3e4, dtype=torch.float16)  # the square of one is past what float16 holds
    embeddings[0, 0] = 0
    probabilities = concept_probabilities(embeddings, 100 * torch.eye(8, 5))
    assert probabilities.shape == (2, 4, 5) and probabilities.dtype == torch.float32
    torch.testing.assert_close(probabilities, torch.full((2, 4, 5), 0.2))


def test_concepts_that_do_not_fit_are_refused() -> None:
    with pytest.raises(OptionError, match=r"must be \(8, concepts\) .* got \(7, 5\)"):
        concept_probabilities(torch.zeros(2, 8), torch.zeros(7, 5))
    with pytest.raises(OptionError, match=r"1\.\.5, got 6"):
        top_concepts(torch.zeros(2, 5), 6)
