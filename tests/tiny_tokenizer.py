"""A SentencePiece model with as many pieces as the tiny Tokenize Anything has tokens."""

import io
from pathlib import Path

import pytest

_SENTENCES = ["a red car on the street", "the old dog sleeps well", "a cup of tea with milk", "two birds in a tree"]


def write_tokenizer(folder: Path, pieces: int = 40) -> Path:
    """Train one and write it; the path. Skips the test where sentencepiece is not installed."""
    sentencepiece = pytest.importorskip("sentencepiece")
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(_SENTENCES * 20),
        model_writer=written,
        vocab_size=pieces,
        model_type="bpe",
        minloglevel=2,
    )
    path = folder / "pieces.model"
    path.write_bytes(written.getvalue())
    return path
