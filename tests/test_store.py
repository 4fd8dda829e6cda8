"""The store of encoded images: found by content, bounded, never wrong, safe for several processes."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from filelock import Timeout
from PIL import Image

import anysam
from anysam import EmbeddingStore, Model, Prompt
from anysam.encoded_image import EncodedImage
from anysam.errors import OptionError, OutputError
from tiny_models import TINY, tiny_model


@dataclasses.dataclass(frozen=True, eq=False)
class CountingModel(Model):
    """A Model that counts how often it encodes."""

    counts: list[int] = dataclasses.field(default_factory=list)

    def encode(self, image):
        self.counts.append(1)
        return super().encode(image)


def counting(family="sam", seed=0, dtype=torch.float32) -> CountingModel:
    model = tiny_model(family, dtype, seed)
    return CountingModel(**{field.name: getattr(model, field.name) for field in dataclasses.fields(model)})


def picture(seed=0, height=40, width=50):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.embedding"))


def test_an_image_is_encoded_once_and_comes_back_the_same(tmp_path):
    store, model = EmbeddingStore(tmp_path), counting()
    first, second = store.encode(model, picture()), store.encode(model, picture())
    assert len(model.counts) == 1
    for name, value in first.features.items():
        assert value.dtype == second.features[name].dtype == torch.float32
        assert torch.equal(value, second.features[name])
        assert torch.equal(value, value.half().float())
    exact = model.encode(picture())
    assert all(torch.allclose(exact.features[name], value, rtol=1e-3) for name, value in first.features.items())
    assert model.predict(second, Prompt(points=[[20, 20]])).masks.shape[1:] == (40, 50)


def test_a_feature_takes_two_bytes_a_value(tmp_path):
    store, model = EmbeddingStore(tmp_path), counting()
    encoded = store.encode(model, picture())
    values = sum(value.numel() for value in encoded.features.values())
    assert 2 * values < store.size() < 2 * values + 2000


def test_the_same_pixels_are_found_under_any_name(tmp_path):
    store, model = EmbeddingStore(tmp_path / "store"), counting()
    Image.fromarray(picture()).save(tmp_path / "a.png")
    Image.fromarray(picture()).save(tmp_path / "b.bmp")
    turned = Image.fromarray(np.rot90(picture()))  # upright again when turned clockwise, as its EXIF says
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(tmp_path / "c.png", exif=exif)
    for given in (tmp_path / "a.png", tmp_path / "b.bmp", (tmp_path / "a.png").read_bytes(), tmp_path / "c.png"):
        store.encode(model, given)
    assert len(model.counts) == 1 and len(files(tmp_path / "store")) == 1


def test_nothing_else_is_taken_for_it(tmp_path):
    store = EmbeddingStore(tmp_path)
    changed = picture()
    changed[0, 0, 0] ^= 1
    models = [counting(), counting(seed=1), counting("mobile_sam"), counting(dtype=torch.bfloat16)]
    for model in models:
        store.encode(model, picture())
        store.encode(model, changed)
        store.encode(model, picture().reshape(50, 40, 3))  # the same bytes in another shape
    assert [len(model.counts) for model in models] == [3, 3, 3, 3]
    assert len(files(tmp_path)) == 12


def test_boxes_of_a_detector_are_kept_exactly(tmp_path):
    store, model = EmbeddingStore(tmp_path), counting("fast_sam")
    exact = model.encode(picture())
    for _ in range(2):
        kept = store.encode(model, picture())
        assert all(torch.equal(kept.features[name], value) for name, value in exact.features.items())


def test_values_beyond_float16_are_kept(tmp_path):
    model = tiny_model("sam")
    encoded = model.encode(picture())
    big = {"image_embeddings": encoded.features["image_embeddings"] * 1e8}
    path = tmp_path / "big.safetensors"
    dataclasses.replace(encoded, features=big).save(path, compact=True)
    assert torch.equal(anysam.EncodedImage.load(path).features["image_embeddings"], big["image_embeddings"])


@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "text", "other", "renamed"])
def test_a_damaged_file_is_a_miss_and_is_replaced(tmp_path, damage):
    store, model = EmbeddingStore(tmp_path), counting()
    good = store.encode(model, picture())
    (path,) = files(tmp_path)
    data = bytearray(path.read_bytes())
    if damage in ("other", "renamed"):  # whole, but of another image
        store.encode(model, picture(1, 30, 30) if damage == "other" else picture(1))
        other = next(each for each in files(tmp_path) if each != path)
        data = bytearray(other.read_bytes())
    data[-7] ^= 1 if damage == "flip" else 0
    path.write_bytes({"cut": bytes(data[: len(data) // 2]), "empty": b"", "text": b"hello"}.get(damage, bytes(data)))
    count = len(model.counts)
    for _ in range(2):
        again = store.encode(model, picture())
        assert torch.equal(again.features["image_embeddings"], good.features["image_embeddings"])
    assert len(model.counts) == count + 1


def test_what_was_not_used_for_longest_goes_first(tmp_path):
    model = counting()
    one = EmbeddingStore(tmp_path)
    one.encode(model, picture(0))
    size = one.size()
    (first,) = files(tmp_path)
    store = EmbeddingStore(tmp_path, max_bytes=3 * size + size // 2)
    os.utime(first, (1, 1))
    for seed in (1, 2):
        before = set(files(tmp_path))
        store.encode(model, picture(seed))
        (new,) = set(files(tmp_path)) - before
        os.utime(new, (seed + 1, seed + 1))
    store.encode(model, picture(0))  # used: now the second is the oldest
    store.encode(model, picture(3))
    assert store.size() <= store.max_bytes and len(files(tmp_path)) == 3
    count = len(model.counts)
    store.encode(model, picture(0))
    assert len(model.counts) == count
    store.encode(model, picture(1))
    assert len(model.counts) == count + 1


def test_the_bound_holds_after_every_image_and_foreign_files_stay(tmp_path):
    (tmp_path / "notes.txt").write_text("x" * 100_000)
    (tmp_path / ".0123456789abcdef.tmp").write_bytes(b"left by a crash")
    os.utime(tmp_path / ".0123456789abcdef.tmp", (1, 1))
    model = counting()
    store = EmbeddingStore(tmp_path, max_bytes=30_000)
    for seed in range(8):
        store.encode(model, picture(seed))
        assert store.size() <= 30_000
    assert (tmp_path / "notes.txt").exists() and not (tmp_path / ".0123456789abcdef.tmp").exists()


def test_an_encoding_larger_than_the_store_is_not_kept_and_pushes_none_out(tmp_path):
    small, model = EmbeddingStore(tmp_path), counting()
    small.encode(model, picture())
    (kept,) = files(tmp_path)
    said: list[str] = []
    store = EmbeddingStore(tmp_path, max_bytes=kept.stat().st_size + 100, warn=said.append)
    large = counting("anysam_lite")  # three features
    for seed in (0, 1):
        assert store.encode(large, picture(seed)).features.keys() == {"image_embeddings", "skip8", "skip4"}
    assert files(tmp_path) == [kept]
    assert len(said) == 1 and f"the whole store {tmp_path} may take {store.max_bytes:,}" in said[0]


def test_a_store_that_cannot_be_written_warns_once_and_goes_on(tmp_path, monkeypatch):
    said: list[str] = []
    store, model = EmbeddingStore(tmp_path, warn=said.append), counting()

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("anysam.weights_files.save_file", full)
    for seed in (0, 1):
        assert store.encode(model, picture(seed)).original_size == (40, 50)
    assert len(said) == 1 and "the disk is full" in said[0] and files(tmp_path) == []


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(anysam.AnySamError, match="file"):
        EmbeddingStore(tmp_path / "file" / "store")
    with pytest.raises(anysam.AnySamError, match="max_bytes"):
        EmbeddingStore(tmp_path, max_bytes=0)


_WORKER = """
import sys
sys.path[:0] = {paths!r}
from test_store import counting, picture
from anysam import EmbeddingStore
import torch
torch.set_num_threads(1)
model, store = counting(), EmbeddingStore({folder!r}, max_bytes=40_000, warn=sys.exit)
for turn in range(3):
    for seed in range(6):
        encoded = store.encode(model, picture(seed))
        assert torch.equal(encoded.features["image_embeddings"],
                           model.encode(picture(seed)).rounded().features["image_embeddings"])
"""


def test_two_processes_write_and_evict_at_once(tmp_path):
    paths = [str(Path(__file__).parent)]
    code = _WORKER.format(paths=paths, folder=str(tmp_path))
    workers = [subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True) for _ in range(2)]
    for worker in workers:
        _, problems = worker.communicate(timeout=120)
        assert worker.returncode == 0, problems
    assert 0 < sum(path.stat().st_size for path in files(tmp_path)) <= 40_000


@pytest.mark.parametrize("kind", ["stride", "rank", "empty", "integers", "float64", "boxes"])
def test_a_whole_file_that_the_model_cannot_have_made_is_a_miss(tmp_path, kind):
    store, model = EmbeddingStore(tmp_path), counting()
    good = store.encode(model, picture())
    values = good.features["image_embeddings"]  # (1, 64, 4, 4)
    features = {
        "stride": {"image_embeddings": values[..., :3]},
        "rank": {"image_embeddings": values[..., 0]},
        "empty": {"image_embeddings": values[:, :, :0]},
        "integers": {"image_embeddings": values.long()},
        "float64": {"image_embeddings": values.double()},
        "boxes": {"decoded": torch.zeros(1, 37, 84)},
    }[kind]
    (path,) = files(tmp_path)
    dataclasses.replace(good, features=features).save(path, key=path.stem)
    for _ in range(2):
        assert torch.equal(store.encode(model, picture()).features["image_embeddings"], values)
    assert len(model.counts) == 2


@pytest.mark.parametrize("family", TINY)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_model_finds_its_own_encodings_again(tmp_path, family, dtype):
    store, model = EmbeddingStore(tmp_path), counting(family, dtype=dtype)
    first, second = (store.encode(model, picture()) for _ in range(2))
    assert len(model.counts) == 1 and first.features.keys() == second.features.keys()
    for name, value in first.features.items():
        assert second.features[name].dtype == value.dtype and torch.equal(second.features[name], value)


def test_another_version_of_the_package_does_not_take_it(tmp_path, monkeypatch):
    store, model = EmbeddingStore(tmp_path), counting()
    store.encode(model, picture())
    monkeypatch.setattr("anysam.store.__version__", "999")
    store.encode(model, picture())
    assert len(model.counts) == 2


def test_what_is_removed_while_it_is_looked_up_is_encoded_again(tmp_path, monkeypatch):
    store, model = EmbeddingStore(tmp_path), counting()
    first = store.encode(model, picture())
    load = EncodedImage.load

    def late(path, *arguments):
        path.unlink()
        return load(path, *arguments)

    monkeypatch.setattr(EncodedImage, "load", late)
    second = store.encode(model, picture())
    assert len(model.counts) == 2
    assert torch.equal(first.features["image_embeddings"], second.features["image_embeddings"])


def test_what_others_called_embedding_stays(tmp_path):
    name = "0" * 64 + ".embedding"
    (tmp_path / "mine.embedding").write_bytes(b"x" * 100_000)
    (tmp_path / f"old-{name}").write_bytes(b"x" * 100_000)
    (tmp_path / f"{name}").mkdir()
    (tmp_path / f"{'1' * 64}.embedding").symlink_to(tmp_path / "mine.embedding")
    before = {path.name for path in tmp_path.iterdir()}
    store, model = EmbeddingStore(tmp_path, max_bytes=10_000), counting()
    for seed in range(8):
        store.encode(model, picture(seed))
    assert before < {path.name for path in tmp_path.iterdir()} and 0 < store.size() <= 10_000


@pytest.mark.parametrize("problem", [NotImplementedError("no locks here"), Timeout("x.lock")], ids=["none", "taken"])
def test_without_a_lock_the_bound_holds_and_the_image_is_encoded(tmp_path, monkeypatch, problem):
    def lock(*arguments, **options):
        raise problem

    monkeypatch.setattr("anysam.store.FileLock", lock)
    said: list[str] = []
    store, model = EmbeddingStore(tmp_path, max_bytes=10_000, warn=said.append), counting()
    for seed in range(8):
        assert store.encode(model, picture(seed)).features
        assert store.size() <= 10_000
    assert len(model.counts) == 8 and len(said) == 1 and str(problem) in said[0]


def test_a_file_that_cannot_be_removed_is_left_and_others_go(tmp_path, monkeypatch):
    model = counting()
    EmbeddingStore(tmp_path).encode(model, picture())
    (stuck,) = files(tmp_path)
    os.utime(stuck, (1, 1))
    unlink = Path.unlink

    def refuse(path, missing_ok=False):
        if path == stuck:
            raise PermissionError(13, "Permission denied")
        unlink(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", refuse)
    said: list[str] = []
    store = EmbeddingStore(tmp_path, max_bytes=2 * stuck.stat().st_size + 10, warn=said.append)
    for seed in (1, 2, 3):
        store.encode(model, picture(seed))
    assert said == [] and stuck in files(tmp_path) and len(files(tmp_path)) == 2 and store.size() <= store.max_bytes
    tight = EmbeddingStore(tmp_path, max_bytes=stuck.stat().st_size + 10, warn=said.append)
    tight.encode(model, picture(4))
    assert files(tmp_path) == [stuck] and said == []


@pytest.mark.parametrize(
    ("folder", "kind"),
    [("a\0b", OutputError), ("~nobody-has-this-name/x", OutputError), ("", OptionError), (3, OptionError)],
)
def test_a_folder_that_cannot_be_is_refused_at_once(folder, kind):
    with pytest.raises(kind, match="store"):
        EmbeddingStore(folder)


def test_a_key_is_the_only_thing_that_names_a_file(tmp_path):
    store = EmbeddingStore(tmp_path / "store")
    model = dataclasses.replace(counting(), weights_sha256="../../outside")
    store.encode(model, picture())
    store.encode(model, picture())
    assert len(model.counts) == 1 and [path.parent for path in tmp_path.rglob("*.embedding")] == [store.folder]
