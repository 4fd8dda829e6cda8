"""Texts as CLIP, SigLIP and SigLIP 2 take them: tokens, cut at a word where there are too many.

The tokens come from the checkpoint's own files: tokenizer.json (or vocab.json and merges.txt) through the `tokenizers`
library, SigLIP's spiece.model through `sentencepiece`. What stands around them is fixed for each kind: CLIP's are
between a start and an end; SigLIP's have an end and are filled up to the limit, always, as it was trained.
"""

import importlib
import json
import string
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from anysam.errors import MissingExtraError, OptionError, WeightsError

Say = Callable[[str], None]

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.json", "merges.txt")
SPIECE = "spiece.model"

# No vocabulary has pieces so long; longer texts are cut without counting all of their tokens first.
_LONGEST_PIECE = 200
_SHOWN = 40
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_SPACE = "\u2581"  # as SentencePiece writes it
_JOINER = "\u200d"  # makes one emoji of several


@dataclass(frozen=True, eq=False)
class TextReader:
    """A text -> token ids for one checkpoint.

    pieces: the ids of a text alone. start, end: what stands around them. pad: fills up shorter texts; filled: up to the
    limit, not just to the longest of a batch. limit: the most ids of a text, start and end included. blank: the ids
    that say nothing: what the vocabulary lacks, and the space. name: of the checkpoint, for messages.
    """

    pieces: Callable[[str], list[int]]
    start: tuple[int, ...]
    end: int
    pad: int
    blank: frozenset[int]
    limit: int
    filled: bool
    name: str

    @property
    def room(self) -> int:
        """How many pieces a text may have."""
        return self.limit - len(self.start) - 1


def checked_texts(texts: Sequence[str]) -> tuple[str, ...]:
    """The texts, with line breaks and repeated spaces as one space. Raises OptionError for an empty one or none."""
    if isinstance(texts, str) or not isinstance(texts, Sequence):
        raise OptionError(f"Texts are given as a list of strings, got {_shown(str(texts))}.")
    if not len(texts):
        raise OptionError("No text is given to compare pictures with; give at least one.")
    checked = []
    for number, text in enumerate(texts, start=1):
        if not isinstance(text, str):
            raise OptionError(f"Text {number} must be a string, got {type(text).__name__}.")
        words = " ".join(text.split())
        if not words:
            raise OptionError(f"Text {number} of {len(texts)} is empty, got {_shown(text)}; write what to look for.")
        try:
            words.encode("utf-8")
        except UnicodeEncodeError as error:  # half a character, for example of a damaged command line
            raise OptionError(f"Text {number} of {len(texts)}, {_shown(text)}, is not valid Unicode.") from error
        checked.append(words)
    return tuple(checked)


def token_ids(reader: TextReader, text: str, say: Say) -> list[int]:
    """The ids of a checked text with what stands around them, at most `reader.limit`.

    A text that is too long is cut after the last word that fits, or within a word where that would lose more than half
    of what fits; `say` gets a sentence about it, and another about a text of which nothing is known. Raises OptionError
    if nothing is left of a text.
    """
    pieces = reader.pieces(text) if len(text) <= _LONGEST_PIECE * reader.limit else None
    if pieces is None or len(pieces) > reader.room:
        kept = _cut(reader, text)
        pieces = reader.pieces(kept)
        if pieces:
            say(
                f"The text {_shown(text)}, {len(text)} characters, is longer than the {reader.limit} tokens that "
                f"{reader.name} reads; only its first {len(kept)} characters are used, up to {_shown_end(kept)}."
            )
    if not pieces:
        raise OptionError(f"The text {_shown(text)} holds nothing that {reader.name} reads; use letters or digits.")
    if reader.blank.issuperset(pieces):
        say(f"{reader.name} knows nothing of the text {_shown(text)}, so that its scores say nothing.")
    return [*reader.start, *pieces, reader.end]


def padded_ids(reader: TextReader, rows: Sequence[Sequence[int]]) -> np.ndarray:
    """Rows of ids -> (T, L) int64, filled up at their ends."""
    length = reader.limit if reader.filled else max(map(len, rows))
    return np.array([[*row, *[reader.pad] * (length - len(row))] for row in rows], dtype=np.int64)


def load_text_reader(folder: Path, kind: str, limit: int, name: str) -> TextReader:
    """The tokenizer in a checkpoint's folder. kind: "clip", "siglip" or "siglip2".

    Raises WeightsError if its files are missing or damaged, MissingExtraError if a library is.
    """
    names = _special_names(folder)
    if kind == "clip":
        encode, find = _tokenizer(folder)
        start = _found(find, names.get("bos_token", "<|startoftext|>"), folder)
        end = _found(find, names.get("eos_token", "<|endoftext|>"), folder)
        # what fills up comes after the end, which nothing before it sees
        return TextReader(encode, (start,), end, end, frozenset(), limit, False, name)
    if (folder / SPIECE).is_file():
        return _spiece_reader(folder, names, limit, name)
    encode, find = _tokenizer(folder)
    end = _found(find, names.get("eos_token", "<eos>"), folder)
    pad = _found(find, names.get("pad_token", "<pad>"), folder)
    blank = frozenset(piece for piece in (find(names.get("unk_token", "<unk>")), find(_SPACE)) if piece is not None)
    return TextReader(lambda text: encode(text.lower()), (), end, pad, blank, limit, True, name)


def canonical(text: str) -> str:
    """Lower case without ASCII punctuation, as SigLIP was trained (big_vision's prompt_engineering.canonicalize_text).

    What is removed leaves no gap: "T-shirt" becomes "tshirt".
    """
    return " ".join(text.lower().translate(_PUNCTUATION).split())


def _spiece_reader(folder: Path, names: Mapping[str, str], limit: int, name: str) -> TextReader:
    """SigLIP's tokenizer. Its model puts a space before a text by itself."""
    try:
        import sentencepiece
    except ImportError as error:
        raise MissingExtraError(
            "The tokenizer of SigLIP needs sentencepiece; install it with: pip install 'anysam[text]'"
        ) from error
    path = folder / SPIECE
    try:
        model = sentencepiece.SentencePieceProcessor(model_file=str(path))
    except (OSError, RuntimeError) as error:
        raise WeightsError(f"{path} is not a readable SentencePiece model; download or copy it again.") from error
    end = model.eos_id()
    if end < 0:
        raise WeightsError(f"{path} has no piece for the end of a text; it is not SigLIP's tokenizer.")
    pad = model.piece_to_id(names["pad_token"]) if "pad_token" in names else end
    blank = frozenset((model.unk_id(), model.piece_to_id(_SPACE)))
    return TextReader(lambda text: list(model.encode(canonical(text))), (), end, pad, blank, limit, True, name)


def _tokenizer(folder: Path) -> tuple[Callable[[str], list[int]], Callable[[str], int | None]]:
    """Two functions: the ids of a text without anything around them, and the id of a piece, or None."""
    path = folder / "tokenizer.json"
    try:
        if path.is_file():
            from tokenizers import Tokenizer

            tokenizer = Tokenizer.from_file(str(path))
        elif (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
            path = folder / "vocab.json"
            fast = importlib.import_module("transformers").CLIPTokenizerFast
            tokenizer = fast.from_pretrained(str(folder), local_files_only=True).backend_tokenizer
        else:
            raise WeightsError(
                f"{folder} has no tokenizer; accepted are tokenizer.json, vocab.json with merges.txt, and {SPIECE}."
            )
    except (ImportError, WeightsError):
        raise
    except Exception as error:  # the library raises Exception itself
        reason = " ".join(str(error).split())[:120]
        raise WeightsError(f"The tokenizer {path} is damaged ({reason}); download or copy it again.") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True  # a text that spells the name of a special token is only a text
    return lambda text: list(tokenizer.encode(text, add_special_tokens=False).ids), tokenizer.token_to_id


def _found(find: Callable[[str], int | None], piece: str, folder: Path) -> int:
    number = find(piece)
    if number is None:
        raise WeightsError(f"The tokenizer in {folder} has no piece {piece!r}; it does not belong to this model.")
    return number


def _special_names(folder: Path) -> dict[str, str]:
    """What the special pieces are called, from the two files that may say so; the second has the last word."""
    names: dict[str, str] = {}
    for file in ("special_tokens_map.json", "tokenizer_config.json"):
        form = read_json(folder / file) if (folder / file).is_file() else {}
        for role in ("bos_token", "eos_token", "pad_token", "unk_token"):
            value = form.get(role)
            value = value.get("content") if isinstance(value, dict) else value
            if isinstance(value, str) and value:
                names[role] = value
    return names


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file of a checkpoint. Raises WeightsError if it cannot be read or is something else."""
    try:
        form = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise WeightsError(f"{path.parent} has no {path.name}; download the whole folder again.") from error
    except OSError as error:
        raise WeightsError(f"Cannot read {path}: {error.strerror or error}.") from error
    except (ValueError, RecursionError) as error:  # no UTF-8, no JSON
        raise WeightsError(f"{path} is not a JSON file; download or copy it again.") from error
    if not isinstance(form, dict):
        raise WeightsError(f"{path} must hold a JSON object, got {type(form).__name__}.")
    return form


def _cut(reader: TextReader, text: str) -> str:
    """The beginning of a text that fits: ends with a word, or within one that would take more than half of the room."""
    text = text[: _LONGEST_PIECE * reader.limit]

    def fits(beginning: str) -> bool:
        return len(reader.pieces(beginning)) <= reader.room

    words = text.split(" ")
    count = _most(len(words), lambda n: fits(" ".join(words[:n])))
    kept = " ".join(words[:count])
    if count == len(words) or 2 * len(reader.pieces(kept)) >= reader.room:
        return kept
    before, word = f"{kept} " if kept else "", words[count]
    length = _most(len(word), lambda n: fits(before + word[:n]))
    while 0 < length < len(word) and _continues(word, length):
        length -= 1
    return (before + word[:length]).strip()


def _most(count: int, fits: Callable[[int], bool]) -> int:
    """The largest n of 0 to `count` that fits, by halving; where sizes do not rise with n, one that fits."""
    low, high = 0, count
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low


def _continues(word: str, at: int) -> bool:
    """Whether a cut before word[at] would take an accent from its letter or break an emoji that is made of several."""
    return word[at] == _JOINER or word[at - 1] == _JOINER or unicodedata.category(word[at]).startswith("M")


def _shown(text: str) -> str:
    """A text's beginning in quotes, on one line."""
    return repr(text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}...")


def _shown_end(text: str) -> str:
    return repr(text if len(text) <= _SHOWN else f"...{text[3 - _SHOWN :]}")
