"""Names that a mask can be given, with or without the embeddings that Tokenize Anything compares: files of them.

Source of the embedded form: baaivision/tokenize-anything@9cefd56 (Apache-2.0), notebooks/concept.ipynb. A column is the
text embedding of "a NAME", divided by its length, times the temperature that the text encoder was trained with; the
logits of a mask are its semantic embedding, divided by its length, times the matrix.
"""

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from anysam.errors import AnySamError, OptionError, OutputError, WeightsError
from anysam.fetch import Progress, fetch_resource
from anysam.home import home
from anysam.weights_files import FORMAT, read_concepts, read_metadata, read_state_dict, show, write_tensors

TEMPLATE = "a {}"  # what the published vocabularies were made with
MAX_NAMES = 50_000  # twice ImageNet's 21,841; their embeddings are 200 MB

_KIND = "vocabulary"
_MAX_CHARACTERS = 1000  # of one name; every text encoder reads less
_MAX_TEXT_BYTES = 32 << 20
_CACHE_VERSION = 1  # of what the cached embeddings depend on beside their key
_MAX_CACHED_BYTES = 256 << 20
_NAMED, _EMBEDDED = ("vocabulary", "names"), (".pkl", ".pickle", ".safetensors", ".pt", ".pth")


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """Names and where they lie in the space of a model's semantic embeddings.

    names: C texts in the matrix's order. embeddings: (D, C) float32, columns of unit length times a temperature.
    source: where it came from, for people.
    """

    names: tuple[str, ...]
    embeddings: np.ndarray
    source: str

    def __post_init__(self) -> None:
        shape, count = self.embeddings.shape, len(self.names)
        if self.embeddings.dtype != np.float32 or len(shape) != 2 or shape[1] != count or not shape[0]:
            raise WeightsError(
                f"The embeddings of {count} names must be (D, {count}) float32, got {shape} {self.embeddings.dtype}."
            )
        problem = _problem(self.names)
        if problem:
            raise WeightsError(f"The vocabulary {self.source} {problem}.")
        if not np.isfinite(self.embeddings).all():
            raise WeightsError(f"The vocabulary {self.source} has embeddings that are not finite; make it again.")
        if not self.embeddings.any(axis=0).all():
            raise WeightsError(f"The vocabulary {self.source} has names whose embedding is all zeros; make it again.")

    def __len__(self) -> int:
        return len(self.names)


def _problem(names: Iterable[str]) -> str | None:
    """What is wrong with names, in words that follow a subject; None if nothing is."""
    names = list(names)
    if not names:
        return "has no names"
    if len(names) > MAX_NAMES:
        return f"has {len(names)} names; at most {MAX_NAMES} are accepted"
    for number, name in enumerate(names, start=1):
        if not name.strip() or not name.isprintable() or len(name) > _MAX_CHARACTERS:
            return (
                f"has the name {name[:80]!r} in place {number}; accepted are printable texts of 1 to "
                f"{_MAX_CHARACTERS} characters"
            )
    return None


def load_vocabulary(
    name_or_path: str | Path,
    text_encoder: str | Path | None = None,
    progress: Progress | None = None,
    allow: str | Iterable[str] | None = None,
    template: str = TEMPLATE,
    embedded: Callable[[float], None] | None = None,
) -> Vocabulary:
    """The vocabulary of a name in the catalogue's RESOURCES or of a file, with embeddings.

    Files: Tokenize Anything's .pkl of [array, names]; .safetensors of `save_vocabulary`; anything else is a list of
    names (see `read_names`), which `text_encoder` embeds: the folder that `anysam convert --text-tower` wrote. What it
    embedded once with a `template` is kept in the home folder. The other arguments do nothing for files with
    embeddings. progress: of a download. embedded: called with the part of the names that is embedded, up to 1.

    Raises OptionError (no such name or file, names without an encoder, a bad list), WeightsError for a damaged file,
    LicenceError, DownloadError, MissingExtraError without the extra `text`.
    """
    path = fetch_resource(name_or_path, progress, allow, _NAMED)
    source = str(name_or_path)
    if _has_embeddings(path):
        return _read_embedded(path, source)
    names = _read_list(path)
    if text_encoder is None:
        raise OptionError(
            f"{source} is a list of names without embeddings, and no text encoder is given; Tokenize Anything needs "
            f"the one of EVA02-CLIP-bigE-14-plus: make its folder with `anysam convert --text-tower` and give that."
        )
    return embedded_once(names, text_encoder, source, template, embedded)


def read_names(
    name_or_path: str | Path, progress: Progress | None = None, allow: str | Iterable[str] | None = None
) -> tuple[str, ...]:
    """Names alone: of a name in the catalogue's RESOURCES, of a vocabulary's file, or of a list in a text file.

    A list is UTF-8 text with one name a line. Spaces around names are no part of them; blank lines and lines that begin
    with # are skipped. Raises OptionError for no such file or a list that is none: another encoding, no names, more
    than MAX_NAMES, a name twice; else as `load_vocabulary`.
    """
    path = fetch_resource(name_or_path, progress, allow, _NAMED)
    return _read_embedded(path, str(name_or_path)).names if _has_embeddings(path) else _read_list(path)


def _has_embeddings(path: Path) -> bool:
    """Whether a file claims to be more than a list of names."""
    if path.suffix.lower() in _EMBEDDED:
        return True
    try:
        with open(path, "rb") as file:
            return file.read(4).startswith((b"\x80", b"PK\x03\x04"))  # a pickle, torch's archive
    except OSError as error:
        raise OptionError(f"Cannot read {path}: {error.strerror or error}.") from error


def _read_list(path: Path) -> tuple[str, ...]:
    """The names of a text file. Raises OptionError with the line."""
    lines: dict[str, int] = {}
    for number, line in enumerate(re.split(r"\r\n|\r|\n", _text(path)), start=1):
        name = line.strip()
        if not name or name.startswith("#"):
            continue
        if name in lines:
            raise OptionError(f"{path} has the name {name!r} twice, in lines {lines[name]} and {number}.")
        problem = _problem([name])
        if problem:
            raise OptionError(
                f"Line {number} of {path} is no name ({name[:80]!r}); accepted are printable texts of at most "
                f"{_MAX_CHARACTERS} characters, one a line."
            )
        lines[name] = number
    if not lines:
        raise OptionError(f"{path} has no names; write one a line (lines that begin with # are skipped).")
    if len(lines) > MAX_NAMES:
        raise OptionError(f"{path} has {len(lines)} names; at most {MAX_NAMES} are accepted.")
    return tuple(lines)


def _text(path: Path) -> str:
    try:
        with open(path, "rb") as file:
            content = file.read(_MAX_TEXT_BYTES + 1)
    except OSError as error:
        raise OptionError(f"Cannot read {path}: {error.strerror or error}.") from error
    if len(content) > _MAX_TEXT_BYTES:
        raise OptionError(f"{path} has more than {_MAX_TEXT_BYTES} bytes; a list of names is shorter.")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise OptionError(f"{path} is not UTF-8 text (line {line}); save it as UTF-8, one name a line.") from error


def save_vocabulary(path: str | Path, vocabulary: Vocabulary) -> None:
    """Write a vocabulary as .safetensors, complete or not at all. Raises OptionError for another suffix, OutputError.

    embeddings: (D, C) float32. names: their JSON list in UTF-8 bytes. The metadata says what it is and its source.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise OptionError(f"A vocabulary's file must end in .safetensors, got {str(path)!r}.")
    names = json.dumps(list(vocabulary.names), ensure_ascii=False).encode()
    tensors = {
        "embeddings": torch.from_numpy(vocabulary.embeddings),
        "names": torch.frombuffer(bytearray(names), dtype=torch.uint8),
    }
    write_tensors(path, tensors, {"format": FORMAT, "kind": _KIND, "source": vocabulary.source})


def _read_embedded(path: Path, source: str) -> Vocabulary:
    if path.suffix.lower() == ".safetensors":
        return _read_saved(path)
    embeddings, names = read_concepts(path)
    return Vocabulary(tuple(names), embeddings, source)


def _read_saved(path: Path) -> Vocabulary:
    """What `save_vocabulary` wrote. Raises WeightsError for any other file."""
    metadata, tensors = read_metadata(path), read_state_dict(path)
    embeddings, names = tensors.get("embeddings"), tensors.get("names")
    if metadata.get("kind") != _KIND or metadata.get("format") != FORMAT or tensors.keys() != {"embeddings", "names"}:
        raise WeightsError(f"{path} is no vocabulary (its first tensor is {show(next(iter(tensors)))!r}).")
    if embeddings is None or names is None or embeddings.dtype != torch.float32 or names.dtype != torch.uint8:
        raise WeightsError(f"{path} is a damaged vocabulary: its tensors have wrong types; make it again.")
    try:
        listed = json.loads(names.numpy().tobytes())
    except (ValueError, RecursionError) as error:
        raise WeightsError(f"{path} is a damaged vocabulary: its names cannot be read; make it again.") from error
    if not isinstance(listed, list) or not all(isinstance(name, str) for name in listed):
        raise WeightsError(f"{path} is a damaged vocabulary: its names are no list of texts; make it again.")
    source = metadata.get("source", "")
    return Vocabulary(tuple(listed), embeddings.numpy().copy(), source if source.isprintable() else str(path))


# --- what was embedded before -----------------------------------------------------------------------------------------


def embedded_once(
    names: tuple[str, ...],
    text_encoder: str | Path,
    source: str,
    template: str = TEMPLATE,
    progress: Callable[[float], None] | None = None,
) -> Vocabulary:
    """The names with embeddings: kept ones of the same names, encoder and template, else new ones, which are kept.

    Files of vocabularies/ in the home folder; beyond 256 MB those go that were not used for longest. A folder that
    cannot be written, or a damaged file in it, costs only time.
    """
    from anysam.describe.text_towers import embed_names, encoder_identity  # which asks this module for the form

    identity = encoder_identity(text_encoder)
    kept = None if identity is None else _kept_path(names, identity, template)
    if kept is not None and kept.is_file():
        try:
            vocabulary = _read_saved(kept)
            if vocabulary.names == names:
                os.utime(kept)
                if progress is not None:
                    progress(1.0)
                return Vocabulary(names, vocabulary.embeddings, source)
        except (AnySamError, OSError):
            pass  # made again below
    made = embed_names(names, text_encoder, template, progress=progress)
    vocabulary = Vocabulary(names, made.embeddings, source)
    if kept is not None:
        _keep(kept, vocabulary)
    return vocabulary


def _kept_path(names: tuple[str, ...], identity: str, template: str) -> Path:
    key = json.dumps([_CACHE_VERSION, list(names), identity, template])
    return home() / "vocabularies" / f"{hashlib.sha256(key.encode()).hexdigest()}.safetensors"


def _keep(path: Path, vocabulary: Vocabulary) -> None:
    """Write a vocabulary to the home folder and remove what is too much there; never fails."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_vocabulary(path, vocabulary)
        found = sorted(((file.stat(), file) for file in path.parent.glob("*.safetensors")), key=_last_used)
        size = sum(state.st_size for state, _ in found)
        for state, file in found:
            if size <= _MAX_CACHED_BYTES or file == path:
                continue
            file.unlink(missing_ok=True)
            size -= state.st_size
    except (OutputError, OSError):
        return


def _last_used(item: tuple[os.stat_result, Path]) -> int:
    return item[0].st_mtime_ns
