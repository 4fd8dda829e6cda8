"""Names and their embeddings: every kind of file that has them, what is refused, and what is kept of the embedded."""

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from anysam.catalogue import RESOURCES
from anysam.describe import text_towers, vocabulary
from anysam.describe.vocabulary import (
    MAX_NAMES,
    Vocabulary,
    embedded_once,
    load_vocabulary,
    read_names,
    save_vocabulary,
)
from anysam.errors import AnySamError, DownloadError, LicenceError, OptionError, OutputError, WeightsError

NAMES = ("cat", "hot dog", "café", "猫")
MATRIX = np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32)


@pytest.fixture(autouse=True)
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A working folder and a home of its own."""
    monkeypatch.setenv("ANYSAM_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("ANYSAM_OFFLINE", "1")
    monkeypatch.delenv("ANYSAM_ALLOW", raising=False)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


def put(text: str | bytes, name: str = "names.txt") -> str:
    Path(name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return name


# Lists of names


def test_a_list_has_a_name_a_line() -> None:
    put("\ufeff# animals\n\n  cat \nhot dog\r\n\tcafé\n   # not an animal\n猫")
    assert read_names("names.txt") == NAMES
    assert read_names(Path("names.txt")) == NAMES


def test_a_list_may_have_any_suffix_or_none() -> None:
    for name in ("names", "names.lst", "my names.csv.txt", "coco.names"):
        assert read_names(put("cat\ndog\n", name)) == ("cat", "dog")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "has no names"),
        ("\n  \n# nothing\n", "has no names"),
        ("cat\ndog\n\n cat\n", "'cat' twice, in lines 1 and 4"),
        ("cat\nd\x07og\n", "Line 2 of names.txt is no name ('d\\x07og')"),
        ("cat\na\tb\n", "Line 2"),
        ("cat\rdog\x0bbird\n", "Line 2"),  # no line ends there
        ("cat\n" + "x" * 1001, "at most 1000 characters"),
        ("cat\nsc\x1bhön", "Line 2"),
        (b"cat\n\n" + "schön".encode("latin-1"), "is not UTF-8 text (line 3)"),
        ("cat\ndog".encode("utf-16"), "is not UTF-8 text"),
        ("\n".join(map(str, range(MAX_NAMES + 1))), f"has {MAX_NAMES + 1} names; at most {MAX_NAMES}"),
    ],
    ids=["empty", "comments", "twice", "control", "tab", "feed", "long", "escape", "latin-1", "utf-16", "many"],
)
def test_a_bad_list_is_refused_with_its_line(content: str | bytes, message: str) -> None:
    put(content)
    with pytest.raises(OptionError) as caught:
        read_names("names.txt")
    text = str(caught.value)
    assert message in text and "names.txt" in text and text.endswith(".") and text.isprintable()


def test_a_long_file_is_not_read_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vocabulary, "_MAX_TEXT_BYTES", 10)
    with pytest.raises(OptionError, match="more than 10 bytes"):
        read_names(put("cat\ndog\nbird\n"))


@pytest.mark.parametrize("place", ["nowhere.txt", "no/where", "../names.txt", "./"])
def test_a_missing_list_is_said_with_the_names_that_there_are(place: str) -> None:
    with pytest.raises(OptionError, match="There is no file .*everyday"):
        read_names(place)
    with pytest.raises(OptionError, match="There is no file"):
        read_names(Path(place))


@pytest.mark.parametrize(
    ("name", "hint"), [("merged2560", "merged_2560"), ("every-day", "everyday"), ("zzz", "lvis_1203, coco_80")]
)
def test_an_unknown_name_is_answered_with_those_that_there_are(name: str, hint: str) -> None:
    with pytest.raises(OptionError) as caught:
        load_vocabulary(name)
    assert repr(name) in str(caught.value) and hint in str(caught.value) and "path of a file" in str(caught.value)


@pytest.mark.parametrize("name", ["tap_tokenizer", "eva02_clip_e_plus"])
def test_what_is_no_vocabulary_is_not_taken_for_one(name: str) -> None:
    with pytest.raises(OptionError, match="of that name"):
        read_names(name)


def test_everyday_names_are_in_the_package() -> None:
    names = read_names("everyday")
    assert 80 <= len(names) <= 500 and {"person", "dog", "car", "traffic light", "chair"} <= set(names)
    assert names == read_names("everyday", allow="apache-2.0")
    with pytest.raises(LicenceError):
        read_names("everyday", allow="mit")


# Files with embeddings


def test_a_concept_file_is_read() -> None:
    put(pickle.dumps([MATRIX, list(NAMES)]), "mine.pkl")
    found = load_vocabulary("mine.pkl")
    assert (found.names, found.source, len(found)) == (NAMES, "mine.pkl", 4)
    assert np.array_equal(found.embeddings, MATRIX) and found.embeddings.dtype == np.float32
    assert read_names("mine.pkl") == NAMES
    put(pickle.dumps([MATRIX, list(NAMES)]), "mine")  # by its content
    assert load_vocabulary(Path("mine")).names == NAMES


def test_pickled_code_is_not_run() -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (exec, ("open('run', 'w')",))

    put(pickle.dumps([MATRIX, Evil()]), "evil.pkl")
    with pytest.raises(WeightsError):
        load_vocabulary("evil.pkl")
    assert not Path("run").exists()


def test_a_saved_vocabulary_is_read_back() -> None:
    save_vocabulary("mine.safetensors", Vocabulary(NAMES, MATRIX, "by hand"))
    found = load_vocabulary("mine.safetensors")
    assert (found.names, found.source) == (NAMES, "by hand") and np.array_equal(found.embeddings, MATRIX)
    assert read_names("mine.safetensors") == NAMES
    found.embeddings[0, 0] = 0  # no view of the file
    assert np.array_equal(load_vocabulary("mine.safetensors").embeddings, MATRIX)


def test_a_matrix_in_any_memory_order_is_saved_as_it_is() -> None:
    for matrix in (np.asfortranarray(MATRIX), np.vstack([MATRIX, MATRIX])[::2]):
        save_vocabulary("mine.safetensors", Vocabulary(NAMES, matrix, "x"))
        assert np.array_equal(load_vocabulary("mine.safetensors").embeddings, matrix)


def test_saving_is_whole_or_not_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    save_vocabulary("mine.safetensors", Vocabulary(NAMES, MATRIX, "first"))
    with pytest.raises(OptionError, match=r"\.safetensors"):
        save_vocabulary("mine.pkl", Vocabulary(NAMES, MATRIX, "second"))
    with pytest.raises(OutputError):
        save_vocabulary("no/mine.safetensors", Vocabulary(NAMES, MATRIX, "second"))

    def fail(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("anysam.weights_files.save_file", fail)
    with pytest.raises(OutputError, match="disk is full"):
        save_vocabulary("mine.safetensors", Vocabulary(NAMES, MATRIX, "second"))
    assert load_vocabulary("mine.safetensors").source == "first" and os.listdir() == ["mine.safetensors"]


def as_bytes(text: str | bytes) -> torch.Tensor:
    return torch.frombuffer(bytearray(text if isinstance(text, bytes) else text.encode()), dtype=torch.uint8)


GOOD = {"embeddings": torch.from_numpy(MATRIX), "names": as_bytes(json.dumps(NAMES))}
MARK = {"format": "anysam", "kind": "vocabulary", "source": "x"}


@pytest.mark.parametrize(
    ("tensors", "metadata", "message"),
    [
        ({}, {}, "is no vocabulary"),
        ({}, {**MARK, "kind": "model"}, "is no vocabulary"),
        ({"more": torch.ones(3)}, MARK, "is no vocabulary"),
        ({"embeddings": GOOD["embeddings"].double()}, MARK, "wrong types"),
        ({"names": torch.ones(4)}, MARK, "wrong types"),
        ({"embeddings": torch.ones(8, 3)}, MARK, "must be (D, 4)"),
        ({"embeddings": torch.ones(4)}, MARK, "must be (D, 4)"),
        ({"embeddings": torch.ones(0, 4)}, MARK, "must be (D, 4)"),
        ({"embeddings": torch.full((8, 4), torch.inf)}, MARK, "not finite"),
        ({"embeddings": torch.zeros(8, 4)}, MARK, "all zeros"),
        ({"names": as_bytes("[1, 2, 3, 4]")}, MARK, "no list of texts"),
        ({"names": as_bytes('{"a": 1}')}, MARK, "no list of texts"),
        ({"names": as_bytes("[" * 100_000)}, MARK, "cannot be read"),
        ({"names": as_bytes(b"\xff\xfe")}, MARK, "cannot be read"),
        ({"names": as_bytes('["a", "b", "c", ""]')}, MARK, "in place 4"),
        ({"names": as_bytes('["a", "b\\u001b[2J", "c", "d"]')}, MARK, "in place 2"),
        ({"names": as_bytes("[]"), "embeddings": torch.ones(8, 0)}, MARK, "has no names"),
    ],
)
def test_damaged_and_hostile_vocabularies_are_refused(
    tensors: dict[str, torch.Tensor], metadata: dict[str, str], message: str
) -> None:
    save_file({**GOOD, **tensors}, "bad.safetensors", metadata)
    with pytest.raises(WeightsError) as caught:
        load_vocabulary("bad.safetensors")
    assert message in str(caught.value) and str(caught.value).isprintable()


def test_a_truncated_vocabulary_is_refused() -> None:
    save_vocabulary("mine.safetensors", Vocabulary(NAMES, MATRIX, "x"))
    whole = Path("mine.safetensors").read_bytes()
    for length in (0, 5, 100, len(whole) - 1):
        put(whole[:length], "mine.safetensors")
        with pytest.raises(WeightsError):
            load_vocabulary("mine.safetensors")


def test_a_web_page_and_a_pointer_are_no_vocabulary() -> None:
    put("<!DOCTYPE html><html>", "merged.pkl")
    with pytest.raises(WeightsError, match="web page"):
        load_vocabulary("merged.pkl")
    put("version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 3\n", "merged.pkl")
    with pytest.raises(WeightsError, match="Git LFS pointer"):
        load_vocabulary("merged.pkl")


def test_a_vocabulary_in_the_cache_is_found_by_name(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    row = next(row for row in RESOURCES if row.name == "coco_80")
    with pytest.raises(DownloadError, match="vocabulary coco_80.*ANYSAM_OFFLINE"):
        load_vocabulary("coco_80")
    cached = folder.parent / "home" / "resources" / row.file.name
    cached.parent.mkdir(parents=True)
    cached.write_bytes(pickle.dumps([MATRIX, list(NAMES)]))
    with pytest.raises(WeightsError, match="sha256"):  # not the published file
        load_vocabulary("coco_80")
    monkeypatch.setattr("anysam.fetch.verify_weights", lambda row, path: "")
    assert load_vocabulary("coco_80").source == "coco_80" and read_names("coco_80") == NAMES


# Names that are embedded


@pytest.fixture
def encoder(monkeypatch: pytest.MonkeyPatch, folder: Path) -> list[tuple[str, ...]]:
    """A stand-in for the text encoder; the calls that it gets. Its folder is "tower"."""
    calls: list[tuple[str, ...]] = []

    def embed(names: tuple[str, ...], text_encoder: object, template: str, **others: object) -> Vocabulary:
        calls.append(names)
        return Vocabulary(names, np.full((8, len(names)), len(calls), np.float32), "made")

    monkeypatch.setattr(text_towers, "embed_names", embed)
    monkeypatch.setattr(text_towers, "encoder_identity", lambda folder: str(folder))
    return calls


def kept(folder: Path) -> list[Path]:
    return sorted((folder.parent / "home" / "vocabularies").glob("*"))


def test_names_need_an_encoder() -> None:
    with pytest.raises(OptionError, match="names.txt is a list of names.*anysam convert --text-tower"):
        load_vocabulary(put("cat\ndog\n"))


def test_a_list_is_embedded_once(encoder: list[tuple[str, ...]], folder: Path) -> None:
    put("cat\ndog\n")
    first = load_vocabulary("names.txt", "tower")
    assert first.names == ("cat", "dog") and first.source == "names.txt" and first.embeddings[0, 0] == 1
    put("# the same\ncat\ndog\n", "again.txt")
    parts: list[float] = []
    again = load_vocabulary("again.txt", "tower", embedded=parts.append)
    assert (len(encoder), again.source, parts) == (1, "again.txt", [1.0])
    assert np.array_equal(again.embeddings, first.embeddings)
    assert len(kept(folder)) == 1


def test_other_names_encoders_and_templates_are_embedded_anew(encoder: list[tuple[str, ...]]) -> None:
    embedded_once(("cat", "dog"), "tower", "x")
    embedded_once(("dog", "cat"), "tower", "x")  # the order is the matrix's
    embedded_once(("cat", "dog"), "other", "x")
    embedded_once(("cat", "dog"), "tower", "x", "a photo of a {}")
    assert len(encoder) == 4
    embedded_once(("cat", "dog"), "tower", "x")
    assert len(encoder) == 4


def test_a_damaged_kept_file_is_made_again(encoder: list[tuple[str, ...]], folder: Path) -> None:
    embedded_once(("cat",), "tower", "x")
    (file,) = kept(folder)
    for content in (b"", b"{" * 30, file.read_bytes()[:-1]):
        file.write_bytes(content)
        assert embedded_once(("cat",), "tower", "x").names == ("cat",)
    assert len(encoder) == 4
    save_vocabulary(file, Vocabulary(("other",), np.ones((8, 1), np.float32), "x"))
    assert embedded_once(("cat",), "tower", "x").names == ("cat",) and len(encoder) == 5


def test_what_was_not_used_for_longest_goes_first(
    encoder: list[tuple[str, ...]], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for age, name in enumerate(("old", "older", "oldest"), start=1):
        before = set(kept(folder))
        embedded_once((name,), "tower", "x")
        (file,) = set(kept(folder)) - before
        os.utime(file, ns=(10**18 - age * 10**9,) * 2)
    embedded_once(("oldest",), "tower", "x")  # now it is the newest
    size = sum(file.stat().st_size for file in kept(folder))
    monkeypatch.setattr(vocabulary, "_MAX_CACHED_BYTES", size)
    embedded_once(("new",), "tower", "x")
    assert len(kept(folder)) == 3 and len(encoder) == 4
    for name in ("new", "oldest", "old"):
        embedded_once((name,), "tower", "x")
    assert len(encoder) == 4
    embedded_once(("older",), "tower", "x")
    assert len(encoder) == 5


def test_a_home_that_cannot_be_written_costs_only_time(
    encoder: list[tuple[str, ...]], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANYSAM_HOME", put("in the way", "file"))
    for _ in range(2):
        assert embedded_once(("cat",), "tower", "x").names == ("cat",)
    assert len(encoder) == 2


def test_an_encoder_that_is_not_there_keeps_nothing(folder: Path) -> None:
    with pytest.raises(AnySamError, match="anysam convert --text-tower"):
        embedded_once(("cat",), "nowhere", "x")
    assert kept(folder) == []


def test_reading_names_imports_no_transformers() -> None:
    code = (
        "import sys; from anysam.describe.vocabulary import read_names; read_names('everyday'); "
        "sys.exit('transformers' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
