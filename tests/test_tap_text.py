"""Words for masks: concepts by their definition, captions with a cache against captions without. Numbers: parity."""

import math
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from anysam.errors import MissingExtraError, OptionError, WeightsError
from anysam.models import tap_text
from anysam.models.tap_text import (
    BOS,
    EOS,
    TextConfig,
    TextDecoder,
    caption_tokens,
    concept_probabilities,
    cut_at_end,
    decode_captions,
    top_concepts,
)

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
def test_kept_keys_and_values_give_what_reading_all_again_gives() -> None:
    decoder, semantic_tokens = random_decoder(), random_tokens(3)
    tokens = torch.full((3, 1), BOS)
    steps = list(decoder.greedy_steps(semantic_tokens))
    assert len(steps) == TINY.max_tokens == 7
    for logits in steps:
        torch.testing.assert_close(logits, decoder(semantic_tokens, tokens)[:, -1], atol=1e-4, rtol=1e-4)
        tokens = torch.cat([tokens, logits.argmax(1, keepdim=True)], dim=1)


def test_captions_do_not_depend_on_what_is_written_beside_them() -> None:
    decoder, semantic_tokens = random_decoder(seed=23), random_tokens(20)
    together = caption_tokens(decoder, semantic_tokens)
    assert together == [caption_tokens(decoder, row[None])[0] for row in semantic_tokens]
    assert together == caption_tokens(decoder, semantic_tokens, at_once=3)
    assert len({tuple(caption) for caption in together}) > 5
    assert len({len(caption) for caption in together}) > 1  # some end early
    assert not any(EOS in caption for caption in together)
    assert caption_tokens(decoder, semantic_tokens, max_tokens=2) == [caption[:2] for caption in together]
    assert caption_tokens(decoder, semantic_tokens[:0]) == []


def test_work_ends_when_every_caption_has_ended_and_is_done_in_bounded_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    script = [3, 4, EOS, 5, 6, 7, 8]

    def steps(self: TextDecoder, semantic_tokens: Tensor):
        for token in script:
            sizes.append(len(semantic_tokens))
            yield functional.one_hot(torch.full((len(semantic_tokens),), token), 11).float()

    monkeypatch.setattr(TextDecoder, "greedy_steps", steps)
    assert caption_tokens(random_decoder(), random_tokens(5), at_once=2) == [[3, 4]] * 5
    assert sizes == [2] * 3 + [2] * 3 + [1] * 3


def test_nothing_after_the_end_belongs_to_a_caption() -> None:
    assert cut_at_end([7, 8, EOS, 9, EOS]) == [7, 8]
    assert cut_at_end([EOS]) == []
    assert cut_at_end([7, 8]) == [7, 8]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_writes(dtype: torch.dtype) -> None:
    decoder = random_decoder().to(dtype)
    logits = next(iter(decoder.greedy_steps(random_tokens(2).to(dtype))))
    assert logits.dtype == torch.float32 and logits.isfinite().all()
    exact = next(iter(random_decoder().greedy_steps(random_tokens(2))))
    assert (logits - exact).abs().mean() < 0.05 * exact.std()


@pytest.mark.parametrize(
    ("tokens", "options", "message"),
    [
        (random_tokens(2), {"max_tokens": 8}, "1 to 7 tokens, got 8"),
        (random_tokens(2), {"max_tokens": 0}, "1 to 7 tokens, got 0"),
        (random_tokens(2), {"at_once": 0}, "positive, got 0"),
        (random_tokens(2)[0], {}, r"must be \(P, 6\), got \(6,\)"),
        (torch.zeros(2, 7), {}, r"must be \(P, 6\), got \(2, 7\)"),
    ],
)
def test_impossible_requests_are_refused(tokens: Tensor, options: dict, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        caption_tokens(random_decoder(), tokens, **options)


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


class FakeProcessor:
    """Stands for SentencePiece's: ten pieces, and files that hold "good" are models."""

    def __init__(self, model_file: str) -> None:
        if Path(model_file).read_text() != "good":
            raise RuntimeError("could not parse\nthe model")

    def vocab_size(self) -> int:
        return 10

    def decode(self, tokens: list[int]) -> str:
        return " ".join(f"w{token}" for token in tokens)


@pytest.fixture
def tokenizer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    fake = types.ModuleType("sentencepiece")
    fake.SentencePieceProcessor = FakeProcessor
    monkeypatch.setitem(sys.modules, "sentencepiece", fake)
    path = tmp_path / "text.model"
    path.write_text("good")
    return path


def test_tokens_become_text(tokenizer: Path) -> None:
    assert decode_captions([[3, 4], [], [9]], tokenizer) == ["w3 w4", "", "w9"]


def test_tokenizers_that_do_not_fit_are_refused(tokenizer: Path) -> None:
    with pytest.raises(WeightsError, match="has 10 pieces, but a caption holds the token 10"):
        decode_captions([[3], [10]], tokenizer)
    with pytest.raises(WeightsError, match="no SentencePiece model .*other"):
        decode_captions([[3]], tokenizer.with_name("other"))
    tokenizer.write_text("bad")
    with pytest.raises(WeightsError, match=r"not a readable SentencePiece model \(could not parse\)"):
        decode_captions([[3]], tokenizer)


def test_without_sentencepiece_the_install_line_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    with pytest.raises(MissingExtraError, match="pip install sentencepiece"):
        tap_text.decode_captions([[3]], tmp_path / "text.model")
