"""Pickled files: tensors come out of networks whose classes are not installed, and nothing in a file runs."""

import functools
import pickle
import struct
import sys
import types
import warnings
import zipfile
import zlib
from collections import deque
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from anysam.errors import WeightsError
from anysam.weights_files import read_checkpoint, read_concepts, read_state_dict


def refuse(path: Path, *parts: str) -> str:
    """Reading `path` must raise one WeightsError, one line, that names the file and holds `parts`."""
    with pytest.raises(WeightsError) as caught:
        read_state_dict(path)
    message = str(caught.value)
    assert str(path) in message and message.isprintable() and message.endswith(".") and len(message) < 600, message
    for part in parts:
        assert part in message, message
    return message


def assert_same(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    assert list(first) == list(second)
    for key in second:
        assert first[key].dtype == second[key].dtype and torch.equal(first[key], second[key]), key


# --- networks of classes that are not there ---------------------------------------------------------------------------


class Conv(nn.Module):
    """Like the building block of the published detectors; parts of every kind that torch pickles."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, bias=False)  # its bias is None
        self.bn = nn.BatchNorm2d(4)  # has a counter of whole numbers
        self.act = nn.SiLU()
        self.register_buffer("grid", torch.arange(3.0), persistent=False)
        self.register_buffer("anchors", torch.arange(4.0))
        self.detect = Conv.forward  # pickled as getattr(Conv, "forward")
        self.shape, self.names = torch.Size([2, 3]), {0: "object", (1, 2): {3}}
        self.args = types.SimpleNamespace(path=Path("x.yaml"), norm=functools.partial(nn.LayerNorm, eps=1e-6))

    def forward(self, x: Tensor) -> Tensor:
        return x


class Network(nn.Module):
    """Networks in networks, one of them twice, one without anything, one in a wrapper."""

    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Sequential(Conv(), nn.Identity(), nn.ModuleList([Conv()]))
        self.again = self.model[0]
        self.image_encoder = nn.DataParallel(nn.Linear(2, 3))
        self.scale = nn.Parameter(torch.tensor(2.0), requires_grad=False)
        self.hooks: deque = deque([1], maxlen=3)


@pytest.fixture
def absent_package(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """A package whose classes can be pickled; `remove` makes it one that is not installed."""
    package = types.ModuleType("absent_package.nn")
    for kind in (Conv, Network):
        monkeypatch.setattr(kind, "__module__", "absent_package.nn")
        setattr(package, kind.__name__, kind)
    monkeypatch.setitem(sys.modules, "absent_package", types.ModuleType("absent_package"))
    monkeypatch.setitem(sys.modules, "absent_package.nn", package)
    return package


def remove(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "absent_package.nn")
    monkeypatch.delitem(sys.modules, "absent_package")


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before-1.6"])
@pytest.mark.parametrize("protocol", [2, 4])
def test_a_network_of_unknown_classes_gives_its_state_dict(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, absent_package: types.ModuleType, zipped: bool, protocol: int
) -> None:
    network = Network().half()
    path = tmp_path / "w.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the old format warns that it cannot save the sources
        torch.save(network, path, pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
    remove(monkeypatch)
    with pytest.raises(ModuleNotFoundError):
        torch.load(path, weights_only=False)  # the class is really needed elsewhere
    before = set(sys.modules)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read = read_state_dict(path)
    assert_same(read, dict(network.state_dict()))
    assert "image_encoder.module.weight" in read and "model.0.grid" not in read
    assert not {name for name in set(sys.modules) - before if name.startswith(("absent", "ultralytics"))}


def test_of_a_training_file_the_running_mean_is_preferred(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, absent_package: types.ModuleType
) -> None:
    model, mean = Network(), Network()
    rest = {"epoch": -1, "optimizer": None, "train_args": {"lr": 0.1, "data": Path("x")}, "date": "2023", "version": 8}
    torch.save({"model": model, "ema": mean, **rest}, tmp_path / "both.pt")
    torch.save({"model": model, "ema": None, **rest}, tmp_path / "one.pt")
    remove(monkeypatch)
    assert_same(read_state_dict(tmp_path / "both.pt"), dict(mean.state_dict()))
    assert_same(read_state_dict(tmp_path / "one.pt"), dict(model.state_dict()))
    content = read_checkpoint(tmp_path / "both.pt")
    assert isinstance(content, dict) and content["version"] == 8 and list(content["ema"]) == list(mean.state_dict())


def test_a_part_of_a_network_that_is_no_tensor_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, absent_package: types.ModuleType
) -> None:
    network = Network()
    network._parameters["scale"] = torch.eye(2).to_sparse()  # type: ignore[assignment]
    torch.save(network, tmp_path / "w.pt")
    refuse(tmp_path / "w.pt", "torch._utils._rebuild_sparse_tensor", "was not run")


# --- arrays -----------------------------------------------------------------------------------------------------------


def arrays() -> dict[str, object]:
    generator = np.random.default_rng(0)
    return {
        "weight": generator.random((20, 30), np.float32),
        "short": np.arange(3, dtype=np.float16),
        "transposed": generator.random((20, 30)).T,
        "columns": np.asfortranarray(generator.random((20, 30))),
        "index": np.arange(400, dtype=np.int64).reshape(20, 20),
        "flags": np.array([True, False]),
        "big_endian": np.arange(100, dtype=">f4"),
        "scalar": np.float32(3),
        "counter": np.array(7),
        "empty": np.zeros((0, 3), np.float32),
        "tensor": torch.arange(200, dtype=torch.float32).reshape(2, 100).T,
        "half": torch.ones(3, dtype=torch.bfloat16),
    }


@pytest.mark.parametrize("old_numpy", [False, True], ids=["numpy-2", "numpy-1"])
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_pickled_arrays_are_read(tmp_path: Path, protocol: int, old_numpy: bool) -> None:
    content = pickle.dumps(arrays(), protocol)
    if old_numpy:
        assert b"numpy._core" in content
        content = content.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
        content = content.replace(b"numpy._core.numeric", b"numpy.core.numeric")
        if protocol >= 4:  # the length before the name, and of the frames; without frames the rest stays true
            content = content.replace(b"\x16numpy.core.multiarray", b"\x15numpy.core.multiarray")
            content = content.replace(b"\x13numpy.core.numeric", b"\x12numpy.core.numeric")
    (tmp_path / "w.pkl").write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of buffers that must not be written to
        read = read_state_dict(tmp_path / "w.pkl")
    assert list(read) == list(arrays())
    for key, wanted in arrays().items():
        expected = (
            wanted
            if isinstance(wanted, Tensor)
            else torch.from_numpy(np.array(wanted, order="C").astype(np.asarray(wanted).dtype.newbyteorder("=")))
        )
        assert read[key].dtype == expected.dtype and torch.equal(read[key], expected), key
        read[key].zero_()  # a copy or a private map: the file stays
    assert (tmp_path / "w.pkl").read_bytes() == content


@pytest.mark.parametrize(
    ("array", "word"),
    [
        (np.array(["a", "b"]), "arrays of the type 'U1'"),
        (np.array([1, "b"], dtype=object), "arrays of the type 'O8'"),
        (np.zeros(3, dtype=[("x", "f4")]), "arrays of the type 'V4'"),
        (np.zeros(3, dtype=complex), "arrays of the type 'c16'"),
    ],
    ids=["text", "object", "record", "complex"],
)
def test_arrays_of_other_things_are_refused(tmp_path: Path, array: np.ndarray, word: str) -> None:
    (tmp_path / "w.pkl").write_bytes(pickle.dumps({"a": array}, 4))
    refuse(tmp_path / "w.pkl", word)


def test_an_array_that_lies_about_its_size_is_refused(tmp_path: Path) -> None:
    honest = pickle.dumps({"a": np.zeros(77, np.uint8)}, 4)
    assert honest.count(b"K\x4d\x85") == 1  # (77,)
    for lie in (b"K\x4e\x85", b"J\xff\xff\xff\x7f\x85", b"J\xff\xff\xff\xff\x85"):
        (tmp_path / "w.pkl").write_bytes(honest.replace(b"K\x4d\x85", lie))
        refuse(tmp_path / "w.pkl", "damaged")


def test_concepts_are_an_array_and_its_names(tmp_path: Path) -> None:
    matrix = np.random.default_rng(0).random((8, 3), np.float32)
    for protocol in (2, 4, 5):
        (tmp_path / "c.pkl").write_bytes(pickle.dumps([matrix, ["cat", "dog", "hot dog"]], protocol))
        array, names = read_concepts(tmp_path / "c.pkl")
        assert np.array_equal(array, matrix) and array.dtype == np.float32 and names == ["cat", "dog", "hot dog"]


@pytest.mark.parametrize(
    ("content", "word"),
    [
        ([np.zeros((8, 3), np.float32), ["cat", "dog"]], "for 2 names the array must be (D, 2)"),
        ([np.zeros((8, 2), np.int64), ["cat", "dog"]], "of fractions"),
        ([np.full((8, 1), np.nan), ["cat"]], "not finite"),
        ([np.zeros((8, 2), np.float32), ["cat", 3]], "texts"),
        ({"a": 1}, "accepted is a pickle of [array, names]"),
        ([["cat"], ["cat"]], "accepted is a pickle of [array, names]"),
    ],
)
def test_other_pickles_are_no_concepts(tmp_path: Path, content: object, word: str) -> None:
    (tmp_path / "c.pkl").write_bytes(pickle.dumps(content))
    with pytest.raises(WeightsError) as caught:
        read_concepts(tmp_path / "c.pkl")
    assert word in str(caught.value) and str(tmp_path) in str(caught.value)


# --- archives ---------------------------------------------------------------------------------------------------------


def saved(path: Path) -> bytearray:
    torch.save({"a": torch.arange(1000.0), "b": torch.ones(5)}, path)
    return bytearray(path.read_bytes())


def test_a_flipped_bit_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    content = saved(path)
    with zipfile.ZipFile(path) as archive:
        place = content.index(archive.read("w/data/0"))
    content[place + 1234] ^= 4
    path.write_bytes(content)
    refuse(path, "checksum of its member 'w/data/0' is wrong")


def test_files_without_checksums_are_read(tmp_path: Path) -> None:
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        saved(tmp_path / "w.pth")
    finally:
        torch.serialization.set_crc32_options(before)
    assert torch.equal(read_state_dict(tmp_path / "w.pth")["a"], torch.arange(1000.0))


def central_entry(content: bytearray, name: bytes) -> int:
    """Where the table of contents speaks of a member."""
    return content.index(name, content.index(b"PK\x01\x02")) - 46


def test_members_that_are_twice_or_overlap_or_outside_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    with zipfile.ZipFile(path, "w") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        archive.writestr("w/data.pkl", b"\x80\x02}.")
        archive.writestr("w/data.pkl", b"\x80\x02].")
    refuse(path, "two members called 'w/data.pkl'")

    content = saved(path)
    entry = central_entry(content, b"w/data/0")
    struct.pack_into("<I", content, entry + 42, len(content) - 5)
    path.write_bytes(content)
    refuse(path, "outside")

    content = saved(path)
    header = struct.unpack_from("<I", content, central_entry(content, b"w/data/0") + 42)[0]
    struct.pack_into("<I", content, central_entry(content, b"w/data/1") + 42, header)  # another's header
    path.write_bytes(content)
    refuse(path, "outside")


def test_an_archive_larger_than_four_gigabytes_is_understood(tmp_path: Path) -> None:
    # as torch would write it: sizes and places in 64 bits; here with small values
    data = pickle.dumps({"a": np.arange(5.0)}, 2)
    crc = zlib.crc32(data)
    local = b"PK\x03\x04" + struct.pack("<HHHHHIIIHH", 45, 0, 0, 0, 0, crc, 0xFFFFFFFF, 0xFFFFFFFF, 10, 20)
    local += b"w/data.pkl" + struct.pack("<HHQQ", 1, 16, len(data), len(data)) + data
    extra = struct.pack("<HH", 0x4242, 2) + b"xx" + struct.pack("<HHQQQ", 1, 24, len(data), len(data), 0)
    table = b"PK\x01\x02" + struct.pack(
        "<HHHHHHIIIHHHHHII", 45, 45, 0, 0, 0, 0, crc, 0xFFFFFFFF, 0xFFFFFFFF, 10, len(extra), 0, 0, 0, 0, 0xFFFFFFFF
    )
    table += b"w/data.pkl" + extra
    start = len(local)
    end = b"PK\x06\x06" + struct.pack("<QHHIIQQQQ", 44, 45, 45, 0, 0, 1, 1, len(table), start)
    end += b"PK\x06\x07" + struct.pack("<IQI", 0, start + len(table), 1)
    end += b"PK\x05\x06" + struct.pack("<HHHHIIH", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    (tmp_path / "w.pth").write_bytes(local + table + end)
    with zipfile.ZipFile(tmp_path / "w.pth") as archive:  # another reader agrees that it is one
        assert archive.read("w/data.pkl") == data
    assert torch.equal(read_state_dict(tmp_path / "w.pth")["a"], torch.arange(5.0, dtype=torch.float64))


def test_a_missing_storage_and_a_huge_table_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    saved(path)
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(tmp_path / "x.pth", "w") as target:
        for name in source.namelist():
            if name != "w/data/1":
                target.writestr(name, source.read(name))
    refuse(tmp_path / "x.pth", "storage is missing")
    with zipfile.ZipFile(path, "w") as archive:
        for i in range(100):
            info = zipfile.ZipInfo(f"w/{i}")
            info.comment = b"x" * 60_000
            archive.writestr(info, b"x" * 65_000)
        for i in range(100, 150):
            info = zipfile.ZipInfo(f"w/{i}")
            info.comment = info.extra = b"\x99\x99\x00\x00" * 15_000
            archive.writestr(info, b"")
    refuse(path, "table of contents")


def test_weights_of_a_big_endian_machine_are_refused(tmp_path: Path) -> None:
    saved(tmp_path / "w.pth")
    with zipfile.ZipFile(tmp_path / "w.pth") as source, zipfile.ZipFile(tmp_path / "x.pth", "w") as target:
        for name in source.namelist():
            target.writestr(name, b"big" if name.endswith("byteorder") else source.read(name))
    refuse(tmp_path / "x.pth", "big-endian")
