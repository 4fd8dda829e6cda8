"""Pickled files that want to run something, or to take all memory or time: refused in a sentence, and nothing runs."""

import functools
import io
import marshal
import os
import pickle
import struct
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from anysam.errors import WeightsError
from anysam.unpickling.machine import Reader, unpickle
from anysam.unpickling.records import Budget, DamagedPickleError, RefusedPickleError
from anysam.weights_files import read_checkpoint, read_state_dict


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


# --- files that want to run something ---------------------------------------------------------------------------------


class Call:
    """Pickled as a call."""

    def __init__(self, function: object, *arguments: object, state: object = None) -> None:
        self.parts = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self) -> tuple:
        return self.parts


def zip_with_pickle(path: Path, content: bytes) -> None:
    """A file like torch.save's, with another pickle in it."""
    buffer = io.BytesIO()
    torch.save({"a": torch.ones(4)}, buffer)
    with zipfile.ZipFile(buffer) as source, zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as target:
        for name in source.namelist():
            target.writestr(name, content if name.endswith("data.pkl") else source.read(name))


def raw(folder: str) -> dict[str, tuple[bytes, str]]:
    """Pickles that make `folder` when a real unpickler reads them, by hand, and what the message must name."""
    text = b"X" + struct.pack("<I", len(folder)) + folder.encode()
    short = f"S{folder!r}\n".encode()
    mkdir = b"cos\nmkdir\n"
    expression = f"__import__('os').mkdir({folder!r})"
    code = marshal.dumps(compile("1", "x", "eval"))
    call = b"X" + struct.pack("<I", len(expression)) + expression.encode()
    return {
        "REDUCE": (b"\x80\x02" + mkdir + text + b"\x85R.", "os.mkdir"),
        "INST": (b"\x80\x02(" + short + b"ios\nmkdir\n.", "os.mkdir"),
        "OBJ": (b"\x80\x02(" + mkdir + short + b"o.", "os.mkdir"),
        "STACK_GLOBAL": (b"\x80\x04\x8c\x02os\x8c\x05mkdir\x93" + text + b"\x85R.", "os.mkdir"),
        "memo": (b"\x80\x02" + mkdir + b"q\x000(h\x00" + text + b"o.", "os.mkdir"),
        "in a dict": (b"\x80\x02}X\x01\x00\x00\x00a" + mkdir + text + b"\x85Rs.", "os.mkdir"),
        "as a key": (b"\x80\x02}" + mkdir + text + b"\x85RNs.", "os.mkdir"),
        "popped": (b"\x80\x02" + mkdir + text + b"\x85R0}.", "os.mkdir"),
        "eval": (b"\x80\x02c__builtin__\neval\n" + call + b"\x85R.", "__builtin__.eval"),
        "getattr": (
            b"\x80\x02c__builtin__\ngetattr\nc__builtin__\n__import__\nX\x02\x00\x00\x00os\x85RX\x05\x00\x00\x00mkdir"
            b"\x86R" + text + b"\x85R.",
            "__builtin__.__import__",
        ),
        "getattr of a module": (
            b"\x80\x02c__builtin__\ngetattr\nceverything\nos\nX\x05\x00\x00\x00mkdir\x86R" + text + b"\x85R.",
            "__builtin__.getattr(everything.os)",
        ),
        "partial": (
            b"\x80\x02cfunctools\npartial\n" + mkdir + b"\x85R" + text + b"\x85R.",
            "functools.partial(os.mkdir)",
        ),
        "BUILD": (b"\x80\x02" + mkdir + b"}X\x01\x00\x00\x00aNsb" + text + b"\x85R.", "an attribute of os.mkdir"),
        "CodeType": (b"\x80\x02ctypes\nCodeType\n)R.", "types.CodeType"),
        "function of code": (
            b"\x80\x03(ctypes\nFunctionType\n(cmarshal\nloads\nC" + bytes([len(code)]) + code + b"o}o).",
            "marshal.loads",
        ),
        "extension": (b"\x80\x02\x82\x01.", "EXT1"),
    }


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("kind", raw("x"))
def test_no_instruction_runs_anything(tmp_path: Path, kind: str, zipped: bool) -> None:
    trace = tmp_path / "executed"
    content, name = raw(str(trace))[kind]
    path = tmp_path / "w.pth"
    zip_with_pickle(path, content) if zipped else path.write_bytes(content)
    message = refuse(path, "was not run")
    assert f"({name})" in message or name in message, message
    with pytest.raises(WeightsError):
        read_checkpoint(path)
    assert not trace.exists()
    if kind not in (
        "extension",
        "getattr of a module",
        "BUILD",
        "CodeType",
        "function of code",
    ):  # it is alive: another unpickler runs it
        pickle.loads(content)
        assert trace.is_dir()


def payloads(trace: str) -> dict[str, tuple[object, str]]:
    return {
        "os.mkdir": (Call(os.mkdir, trace), f"{os.mkdir.__module__}.mkdir"),
        "exec": (Call(exec, f"import os; os.mkdir({trace!r})"), "__builtin__.exec"),
        "hub": (Call(torch.hub.load, trace, "x"), "torch.hub.load"),
        "load": (Call(torch.load, trace), "torch.serialization.load"),
        "numpy": (Call(np.load, trace), "numpy.load"),
        "bytearray": (Call(bytearray, 2_000_000_000), "__builtin__.bytearray"),
        "reduce": (Call(functools.reduce, len, [1]), "__builtin__.reduce"),
    }


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before-1.6"])
@pytest.mark.parametrize("kind", payloads("x"))
def test_a_state_dict_with_a_call_in_it_is_refused_by_name(tmp_path: Path, kind: str, zipped: bool) -> None:
    payload, name = payloads(str(tmp_path / "executed"))[kind]
    path = tmp_path / "w.pth"
    for content in ({"a": torch.ones(3), "b": payload}, {"model": {"a": torch.ones(3)}, "optimizer": payload}):
        torch.save(content, path, _use_new_zipfile_serialization=zipped)
        refuse(path, f"Python objects ({name})", "was not run", "state_dict()")
    assert not (tmp_path / "executed").exists()


def test_torch_told_to_trust_every_file_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    trace = tmp_path / "executed"
    torch.save({"a": torch.ones(3), "b": Call(os.mkdir, str(trace))}, tmp_path / "w.pth")
    refuse(tmp_path / "w.pth", "mkdir")
    assert not trace.exists()
    with pytest.warns(UserWarning, match="TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"):
        torch.load(tmp_path / "w.pth")  # torch itself runs it
    assert trace.is_dir()


def test_a_setstate_of_an_installed_class_is_not_called(tmp_path: Path) -> None:
    state = {"path": str(tmp_path / "executed")}
    torch.save({"a": torch.ones(1), "model": {"a": torch.ones(1)}, "x": Maker(state)}, tmp_path / "w.pth")
    assert_same(read_state_dict(tmp_path / "w.pth"), {"a": torch.ones(1)})
    read_checkpoint(tmp_path / "w.pth")
    assert not (tmp_path / "executed").exists()
    torch.load(tmp_path / "w.pth", weights_only=False)
    assert (tmp_path / "executed").is_dir()


class Maker:
    """Makes a folder when it gets its state back."""

    def __init__(self, state: dict) -> None:
        self.state = state

    def __getstate__(self) -> dict:
        return self.state

    def __setstate__(self, state: dict) -> None:
        os.mkdir(state["path"])


# --- files that want too much -----------------------------------------------------------------------------------------


def machine(content: bytes, work: int = 2_000_000) -> object:
    return unpickle(Reader(memoryview(content)), Budget(work))


def test_plain_values_are_what_pickle_says() -> None:
    value = {
        "a": [1, -1, 2**40, -(2**100), 1.5, True, None, "é\n", b"x" * 300, ("t", ()), OrderedDict(x=1)],
        3: {"s"},
        None: frozenset(["f"]),
    }
    for protocol in range(6):
        read = machine(pickle.dumps(value, protocol))
        assert isinstance(read, dict)
        items = read["a"]
        assert items[:8] == value["a"][:8] and items[9:] == value["a"][9:]
        assert read[3] == ["s"] and read[None] == ["f"]


def nested_lists(depth: int) -> bytes:
    return b"\x80\x02" + b"]" * depth + b"a" * (depth - 1) + b"."


def laughs(levels: int) -> bytes:
    """Each list holds the one before it ten times."""
    lists = [b"](" + 10 * (b"h" + bytes([i])) + b"eq" + bytes([i + 1]) for i in range(levels)]
    return b"\x80\x02" + b"0".join([b"]q\x00", *lists]) + b"."


@pytest.mark.parametrize(
    "content",
    [
        nested_lists(20_000),
        laughs(200),
        b"\x80\x02]q\x00h\x00a.",  # contains itself
        b"\x80\x02" + b"(" * 50_000 + b".",
        b"\x80\x02\x8b" + struct.pack("<i", 400_000) + b"\x01" * 400_000 + b".",  # an integer
        b"\x80\x02X\xff\xff\xff\x7fabc.",  # a text of two billion letters, three of them here
        b"\x80\x05\x8e" + struct.pack("<Q", 2**62) + b"abc.",
        b"\x80\x05\x96" + struct.pack("<Q", 2**62) + b"abc.",
        b"\x80\x02r\xff\xff\xff\xff}.",
        b"\x80\x02cx\n" + b"y" * 20_000 + b"\n.",
        b"\x80\x02}}Ns.",
        b"\x80\x02",
        b"\x80\x02.",
        b"\x80\x02\xfe.",
        b"\x80\x02h\x05.",
        b"\x80\x02(((t.",
        b"\x80\x02NNs.",
    ],
)
def test_bombs_and_nonsense_are_one_sentence(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "w.pth"
    path.write_bytes(content)
    refuse(path, "")
    zip_with_pickle(path, content)
    refuse(path, "")


def test_the_work_of_a_file_is_bounded() -> None:
    assert machine(b"\x80\x02" + b"]0" * 1000 + b"}.", work=3000) == {}
    with pytest.raises(DamagedPickleError, match="more instructions than weights need"):
        machine(b"\x80\x02" + b"]0" * 1000 + b"}.", work=1000)
    # copies count as well: one list of a hundred, copied again and again
    copies = b"\x80\x02](" + b"N" * 100 + b"eq\x000](" + b"c__builtin__\nset\nh\x00\x85R" * 100 + b"e."
    assert len(machine(copies, work=20_000)) == 100  # type: ignore[arg-type]
    with pytest.raises(DamagedPickleError, match="more instructions than weights need"):
        machine(copies, work=5000)


def test_lists_that_repeat_each_other_are_not_expanded(tmp_path: Path) -> None:
    (tmp_path / "w.pkl").write_bytes(b"\x80\x02}X\x01\x00\x00\x00x" + laughs(40)[2:-1] + b"s.")
    content = read_checkpoint(tmp_path / "w.pkl")  # 10**40 lists, were they expanded
    assert isinstance(content, dict) and content["x"][0] is content["x"][9]


def test_a_network_that_holds_itself_or_repeats_itself_is_refused(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Linear(1, 1))
    network._modules["1"] = network
    torch.save(network, tmp_path / "w.pth")
    refuse(tmp_path / "w.pth", "contains itself")
    tower: nn.Module = nn.Linear(1, 1)
    for _ in range(30):
        tower = nn.ModuleDict({"a": tower, "b": tower})
    torch.save(tower, tmp_path / "w.pth")
    refuse(tmp_path / "w.pth", "more than 100000 parts")


def test_keys_that_collide_take_no_time(tmp_path: Path) -> None:
    # integers with one and the same hash in CPython: a dict of them would compare each with each
    modulus = sys.hash_info.modulus
    keys = b"".join(b"\x8a\x0b" + (i * modulus).to_bytes(11, "little", signed=True) + b"N" for i in range(20_000))
    read = machine(b"\x80\x02}(" + keys + b"u.")
    assert isinstance(read, dict) and len(read) == 20_000


def test_one_text_decoded_often_is_held_once() -> None:
    text = "é" * 1_000_000
    call = b"c_codecs\nencode\nh\x00X\x06\x00\x00\x00latin1\x86R"
    content = b"\x80\x02X" + struct.pack("<I", 2_000_000) + text.encode() + b"q\x000](" + 1000 * call + b"e."
    read = machine(content)
    assert (
        isinstance(read, list)
        and len({id(item) for item in read}) == 1
        and bytes(read[0].data()) == b"\xe9" * 1_000_000
    )


def test_arrays_that_share_bytes_cannot_ask_for_more_than_the_file_has(tmp_path: Path) -> None:
    data = os.urandom(200_001)
    one = np.frombuffer(data[1:], ">f4")
    content = pickle.dumps(one, 4)
    # the same bytes, as a hundred arrays in the other byte order: each would be a copy
    start = content.index(b"B" + struct.pack("<I", 200_000))
    memo_bytes = b"B" + struct.pack("<I", 200_000) + data[1:] + b"r\xe8\x03\x00\x000"
    rebuild = content[content.index(b"\x8c\x16numpy._core.multiarray") : start].replace(b"\x94", b"")
    rebuild = rebuild.replace(b"h\x03", b"\x8c\x05numpy") if b"h\x03" in rebuild else rebuild
    again = rebuild + b"j\xe8\x03\x00\x00tb"
    entries = b"".join(b"\x8c\x03" + f"{i:03d}".encode() + again for i in range(100))
    (tmp_path / "w.pkl").write_bytes(b"\x80\x04" + memo_bytes + b"}(" + entries + b"u.")
    refuse(tmp_path / "w.pkl", "the same bytes again and again")
    (tmp_path / "w.pkl").write_bytes(b"\x80\x04" + memo_bytes + b"}(" + entries[: len(entries) // 100] + b"u.")
    assert np.array_equal(read_state_dict(tmp_path / "w.pkl")["000"].numpy(), one.astype("f4"), equal_nan=True)


def tensor_pickle(size: bytes, stride: bytes, offset: bytes, count: bytes) -> bytes:
    """{"a": a float32 tensor of a storage that zip_with_pickle has: four ones}."""
    storage = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpu" + count + b"tQ"
    return (
        b"\x80\x02}X\x01\x00\x00\x00actorch._utils\n_rebuild_tensor_v2\n("
        + storage
        + offset
        + size
        + stride
        + b"\x89}tRs."
    )


@pytest.mark.parametrize(
    ("size", "stride", "offset", "count"),
    [
        (b"K\x05\x85", b"K\x01\x85", b"K\x00", b"K\x04"),
        (b"K\x04\x85", b"K\x01\x85", b"K\x01", b"K\x04"),
        (b"K\x02\x85", b"K\x04\x85", b"K\x00", b"K\x04"),
        (b"K\x04\x85", b"K\x01\x85", b"K\x00", b"K\x05"),
        (b"K\x04\x85", b"K\x01\x85", b"K\x00", b"J\xff\xff\xff\xff"),
        (b"K\x04\x85", b"J\xff\xff\xff\xff\x85", b"K\x03", b"K\x04"),
        (b"K\x04\x85", b"K\x01\x85", b"J\xff\xff\xff\xff", b"K\x04"),
        (b"J\xff\xff\xff\xff\x85", b"K\x01\x85", b"K\x00", b"K\x04"),
        (b"K\x04\x85", b")", b"K\x00", b"K\x04"),
        (b"K\x04K\x04\x86", b"K\x01\x85", b"K\x00", b"K\x04"),
        (b"\x8a\x08\x00\x00\x00\x00\x00\x00\x00\x40\x85", b"K\x00\x85", b"K\x00", b"K\x04"),
        (b"K\x04\x85", b"\x8a\x08\x00\x00\x00\x00\x00\x00\x00\x40\x85", b"K\x00", b"K\x04"),
        (b"N", b"K\x01\x85", b"K\x00", b"K\x04"),
    ],
)
def test_a_tensor_stays_within_its_storage(
    tmp_path: Path, size: bytes, stride: bytes, offset: bytes, count: bytes
) -> None:
    zip_with_pickle(tmp_path / "w.pth", tensor_pickle(b"K\x02\x85", b"K\x03\x85", b"K\x00", b"K\x04"))
    assert torch.equal(read_state_dict(tmp_path / "w.pth")["a"], torch.ones(2))  # the honest one
    zip_with_pickle(tmp_path / "w.pth", tensor_pickle(size, stride, offset, count))
    refuse(tmp_path / "w.pth", "")


def test_numbers_that_no_weights_have_are_named(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(2, dtype=torch.complex64)}, tmp_path / "w.pth")
    refuse(tmp_path / "w.pth", "numbers of the type torch.ComplexFloatStorage")


@pytest.mark.parametrize("zipped", [True, False])
def test_no_single_changed_byte_raises_anything_else(tmp_path: Path, zipped: bool) -> None:
    path = tmp_path / "w.pth"
    torch.save({"a": torch.ones(2), "m": [1]}, path, _use_new_zipfile_serialization=zipped)
    content = path.read_bytes()
    generator = np.random.default_rng(0)
    for place in generator.choice(len(content), 300, replace=False):
        changed = bytearray(content)
        changed[place] ^= int(generator.integers(1, 256))
        path.write_bytes(changed)
        try:
            read_state_dict(path)
        except WeightsError:
            pass
        try:
            machine(bytes(changed[2:] if zipped else changed))
        except (DamagedPickleError, RefusedPickleError):
            pass
