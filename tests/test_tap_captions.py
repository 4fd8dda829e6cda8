"""Captions against slow and plain ways of finding them: no cache, no guesses, every sentence tried. Golden: parity."""

import itertools
import math
import sys
import types
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from anysam.errors import MissingExtraError, OptionError, WeightsError
from anysam.models import tap_captions
from anysam.models.tap_captions import Caption, caption_tokens, decode_captions
from anysam.models.tap_text import BOS, EOS, TextConfig, TextDecoder

TINY = TextConfig(depth=2, dim=16, num_heads=2, mlp_ratio=2, vocabulary=11, max_positions=14)
SMALL = TextConfig(depth=1, dim=8, num_heads=2, mlp_ratio=2, vocabulary=6, max_positions=6)


def random_decoder(seed: int = 0, config: TextConfig = TINY, std: float = 0.5) -> TextDecoder:
    decoder = TextDecoder(config, prompt_dim=6).eval()
    generator = torch.Generator().manual_seed(seed)
    for parameter in decoder.parameters():
        nn.init.normal_(parameter, std=std, generator=generator)
    return decoder


def random_tokens(count: int) -> Tensor:
    return torch.randn(count, 6, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def next_log_probabilities(decoder: TextDecoder, semantic_token: Tensor, tokens: list[int]) -> list[float]:
    """After `tokens` without BOS, by reading them all: one for each token of the vocabulary."""
    logits = decoder(semantic_token[None], torch.tensor([[BOS, *tokens]]))[0, -1].double()
    return logits.log_softmax(0).tolist()


def greedy(decoder: TextDecoder, semantic_token: Tensor, max_tokens: int) -> Caption:
    tokens: list[int] = []
    total = 0.0
    while len(tokens) < max_tokens and EOS not in tokens:
        values = next_log_probabilities(decoder, semantic_token, tokens)
        tokens.append(values.index(max(values)))
        total += max(values)
    return Caption([token for token in tokens if token != EOS], math.exp(total / len(tokens)))


def assert_same(found: list[Caption], expected: list[Caption]) -> None:
    assert [caption.tokens for caption in found] == [caption.tokens for caption in expected]
    assert [caption.score for caption in found] == pytest.approx([caption.score for caption in expected], rel=1e-4)


@pytest.fixture(params=["numba", "torch"])
def loops(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "numba":
        pytest.importorskip("numba", reason="the extra `fast` is not installed")
    else:
        monkeypatch.setattr(tap_captions, "_drafts", lambda decoder: None)
    return request.param


def test_captions_are_those_of_reading_all_again_for_every_token(loops: str) -> None:
    decoder, semantic_tokens = random_decoder(seed=23), random_tokens(20)
    expected = [greedy(decoder, row, TINY.max_tokens) for row in semantic_tokens]
    assert len({tuple(caption.tokens) for caption in expected}) > 5
    assert len({len(caption.tokens) for caption in expected}) > 3  # some end early
    assert_same(caption_tokens(decoder, semantic_tokens), expected)
    assert_same([caption_tokens(decoder, row[None])[0] for row in semantic_tokens], expected)
    assert_same(caption_tokens(decoder, semantic_tokens, at_once=3), expected)
    assert_same(caption_tokens(decoder, semantic_tokens, at_once=9), expected)
    assert caption_tokens(decoder, semantic_tokens[:0]) == []


@pytest.mark.parametrize("max_tokens", [1, 2, 3, 4, 5, 11])
def test_captions_end_at_the_most_tokens(loops: str, max_tokens: int) -> None:
    for seed in (1, 23):
        decoder, semantic_tokens = random_decoder(seed), random_tokens(3)
        expected = [greedy(decoder, row, max_tokens) for row in semantic_tokens]
        assert_same(caption_tokens(decoder, semantic_tokens, max_tokens=max_tokens), expected)
        assert_same(caption_tokens(decoder, semantic_tokens.repeat(2, 1), max_tokens=max_tokens), expected * 2)


@pytest.mark.parametrize("beams", [1, 2])
def test_a_caption_may_be_empty(loops: str, beams: int) -> None:
    decoder = random_decoder()
    with torch.no_grad():  # all that is read becomes ones: EOS gets the logit ln 10, the 10 others get 0
        decoder.transformer.norm.weight.zero_()
        decoder.transformer.norm.bias.fill_(1)
        decoder.transformer.text_proj.weight.zero_()
        decoder.transformer.text_proj.weight[EOS] = math.log(10) / TINY.dim
    for count in (1, 5):
        assert_same(caption_tokens(decoder, random_tokens(count), beams=beams), [Caption([], 0.5)] * count)


def test_captions_that_have_ended_are_not_read_on(monkeypatch: pytest.MonkeyPatch) -> None:
    decoder, semantic_tokens = random_decoder(seed=23), random_tokens(20)
    lengths = [len(greedy(decoder, row, TINY.max_tokens).tokens) for row in semantic_tokens]
    read, sizes = TextDecoder.read, []

    def counted(self: TextDecoder, x: Tensor, turns: Tensor, kept: Tensor | None, start: int) -> Tensor:
        sizes.append(len(x))
        return read(self, x, turns, kept, start)

    monkeypatch.setattr(TextDecoder, "read", counted)
    caption_tokens(decoder, semantic_tokens)
    unfinished = [sum(length >= step for length in lengths) for step in range(len(sizes))]
    assert sizes[0] == 20 and sizes[-1] < 20
    assert all(size * 0.75 <= count + 1e-9 or size == count for size, count in zip(sizes, unfinished, strict=True))


def test_guesses_change_nothing_but_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("numba", reason="the extra `fast` is not installed")
    from anysam.models import tap_draft

    reads = 0
    read = tap_draft.read

    def counted(*arguments: object) -> object:
        nonlocal reads
        reads += 1
        return read(*arguments)

    monkeypatch.setattr(tap_draft, "read", counted)
    decoder, semantic_tokens = random_decoder(seed=1), random_tokens(12)
    expected = [greedy(decoder, row, TINY.max_tokens) for row in semantic_tokens]
    written = sum(len(caption.tokens) for caption in expected)

    def reads_needed() -> int:
        nonlocal reads
        reads = 0
        assert_same([caption_tokens(decoder, row[None])[0] for row in semantic_tokens], expected)
        return reads

    keys = list(decoder.state_dict())
    assert decoder.draft is None
    assert reads_needed() < 0.5 * written  # most guesses are right
    assert list(decoder.state_dict()) == keys
    decoder.draft = tap_draft.make_draft(random_decoder(seed=2))
    assert reads_needed() > 0.7 * written  # of another network: most are wrong


def test_captions_follow_weights_that_were_changed(loops: str) -> None:
    decoder, semantic_tokens = random_decoder(seed=1), random_tokens(2)
    before = caption_tokens(decoder, semantic_tokens)
    decoder.load_state_dict(random_decoder(seed=2).state_dict())
    assert_same(caption_tokens(decoder, semantic_tokens), caption_tokens(random_decoder(seed=2), semantic_tokens))
    decoder.double().load_state_dict(random_decoder(seed=1).state_dict())
    assert_same(caption_tokens(decoder, semantic_tokens.double()), before)
    assert_same(caption_tokens(decoder.float(), semantic_tokens), before)


@torch.no_grad()
def test_the_loops_read_as_the_network_does() -> None:
    pytest.importorskip("numba", reason="the extra `fast` is not installed")
    from anysam.models import tap_draft

    decoder, semantic_token = random_decoder(), random_tokens(1)
    tokens = torch.tensor([[BOS, 5, 9, 3, 7, 7, 4]])
    x = torch.cat([decoder.prompts(semantic_token), decoder.embed(tokens)], dim=1)[0].numpy()  # (8, D)
    turns, kept = decoder.turns().numpy(), decoder.nothing_read(1)[:, :, 0].numpy()
    exact = tap_draft.exact_decoder(decoder)
    parts = [torch.from_numpy(tap_draft.read(exact, x[a:b], turns, kept, a)) for a, b in [(0, 4), (4, 7), (7, 8)]]
    torch.testing.assert_close(torch.cat(parts)[1:], decoder(semantic_token, tokens)[0], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("beams", [1, 2])
def test_half_precision_writes(dtype: torch.dtype, beams: int) -> None:
    exact = [greedy(random_decoder(seed=23), row, 1) for row in random_tokens(5)]
    captions = caption_tokens(random_decoder(seed=23).to(dtype), random_tokens(5), beams=beams)
    assert len(captions) == 5 and all(0 < caption.score <= 1 for caption in captions)
    first = caption_tokens(random_decoder(seed=23).to(dtype), random_tokens(5), max_tokens=1)
    assert [caption.score for caption in first] == pytest.approx([caption.score for caption in exact], rel=0.1)


def sentences(max_tokens: int) -> list[list[int]]:
    """Every caption that can be written, with its EOS."""
    words = [token for token in range(SMALL.vocabulary) if token != EOS]
    ended = [[*some, EOS] for n in range(max_tokens) for some in itertools.product(words, repeat=n)]
    return ended + [list(some) for some in itertools.product(words, repeat=max_tokens)]


def likelihood(decoder: TextDecoder, semantic_token: Tensor) -> Callable[[list[int]], float]:
    """The mean log probability of a sentence's tokens."""
    known: dict[tuple[int, ...], list[float]] = {}

    def score(sentence: list[int]) -> float:
        total = 0.0
        for n, token in enumerate(sentence):
            start = tuple(sentence[:n])
            if start not in known:
                known[start] = next_log_probabilities(decoder, semantic_token, list(start))
            total += known[start][token]
        return total / len(sentence)

    return score


@pytest.mark.parametrize("seed", range(4))
def test_a_search_that_is_wide_enough_finds_the_best_of_all_sentences(seed: int) -> None:
    decoder, semantic_tokens = random_decoder(seed, SMALL, std=0.7), random_tokens(2)
    expected = []
    for row in semantic_tokens:
        score = likelihood(decoder, row)
        best = max(sentences(4), key=score)
        expected.append(Caption([token for token in best if token != EOS], math.exp(score(best))))
    assert_same(caption_tokens(decoder, semantic_tokens, at_once=125, beams=125), expected)


def search(decoder: TextDecoder, semantic_token: Tensor, max_tokens: int, beams: int) -> Caption:
    """A beam search with lists, which never stops early."""
    score = likelihood(decoder, semantic_token)
    beam: list[list[int]] = [[]]
    done: list[list[int]] = []
    for length in range(1, max_tokens + 1):
        longer = [[*some, token] for some in beam for token in range(decoder.config.vocabulary)]
        done += [some for some in longer if some[-1] == EOS or length == max_tokens]
        open_ones = [some for some in longer if some[-1] != EOS]
        beam = sorted(open_ones, key=lambda some: -score(some) * len(some))[:beams]
    best = max(done, key=score)
    return Caption([token for token in best if token != EOS], math.exp(score(best)))


@pytest.mark.parametrize("beams", [2, 3, 5])
def test_searches_are_those_of_a_plain_search(beams: int) -> None:
    differing = 0
    for seed in (2, 23, 31):
        decoder, semantic_tokens = random_decoder(seed), random_tokens(6)
        expected = [search(decoder, row, 7, beams) for row in semantic_tokens]
        assert_same(caption_tokens(decoder, semantic_tokens, max_tokens=7, beams=beams), expected)
        assert_same(caption_tokens(decoder, semantic_tokens, max_tokens=7, at_once=2 * beams, beams=beams), expected)
        differing += expected != [greedy(decoder, row, 7) for row in semantic_tokens]
    assert differing


def test_one_beam_is_greedy(loops: str) -> None:
    decoder, semantic_tokens = random_decoder(seed=23), random_tokens(6)
    expected = [greedy(decoder, row, TINY.max_tokens) for row in semantic_tokens]
    assert_same(caption_tokens(decoder, semantic_tokens, beams=1), expected)


@pytest.mark.parametrize(
    ("tokens", "options", "message"),
    [
        (random_tokens(2), {"max_tokens": 13}, "1 to 12 tokens, got 13"),
        (random_tokens(2), {"max_tokens": 0}, "1 to 12 tokens, got 0"),
        (random_tokens(2), {"at_once": 0}, "positive, got 0"),
        (random_tokens(2), {"beams": 0}, r"in 1\.\.64 .* got 0"),
        (random_tokens(2), {"beams": 5, "at_once": 4}, r"in 1\.\.4 when 4 captions .* got 5"),
        (random_tokens(2)[0], {}, r"must be \(P, 6\), got \(6,\)"),
        (torch.zeros(2, 7), {}, r"must be \(P, 6\), got \(2, 7\)"),
        (torch.full((2, 6), math.nan), {}, "must be finite"),
    ],
)
def test_impossible_requests_are_refused(tokens: Tensor, options: dict, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        caption_tokens(random_decoder(), tokens, **options)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize(("count", "beams"), [(1, 1), (5, 1), (2, 3)])
def test_damaged_weights_are_said_to_be(loops: str, value: float, count: int, beams: int) -> None:
    decoder = random_decoder()
    with torch.no_grad():
        decoder.transformer.blocks[1].mlp.fc1.weight[3, 4] = value
    with pytest.raises(WeightsError, match="not finite"):
        caption_tokens(decoder, random_tokens(count), beams=beams)


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
    with pytest.raises(MissingExtraError, match=r"pip install 'anysam\[text\]'"):
        decode_captions([[3]], tmp_path / "text.model")


def test_a_real_tokenizer_decodes_what_it_encoded(tmp_path: Path) -> None:
    sentencepiece = pytest.importorskip("sentencepiece", reason="the extra `text` is not installed")
    texts = ["a red car on a street", "two dogs in the grass"]
    path = tmp_path / "text.model"
    with path.open("wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(texts * 20), model_writer=file, vocab_size=40, hard_vocab_limit=False, minloglevel=2
        )
    tokens = [sentencepiece.SentencePieceProcessor(model_file=str(path)).encode(text) for text in texts]
    assert decode_captions(tokens, path) == texts
