"""The files that hold pickles: torch's zip archives, torch's format before 1.6, and bare pickles of arrays.

The file is mapped into memory, and tensors are views of the map: what a file claims can never ask for more than it has.
"""

import math
import mmap
import struct
import sys
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from anysam.errors import WeightsError
from anysam.unpickling.machine import Reader, unpickle
from anysam.unpickling.records import (
    Budget,
    DamagedPickleError,
    EncodedText,
    RefusedPickleError,
    Storage,
    StoredArray,
    StoredTensor,
)

_MAX_TABLE = 8 << 20  # of an archive's table of contents: 80 bytes a member, a thousand members in a large file
_MAX_AXES = 64
_MAGIC, _VERSION = 0x1950A86A20F9469CFC6C, 1001  # of torch's format before 1.6

_DTYPES = {
    name: getattr(torch, name) for name in "float64 float32 float16 bfloat16 int64 int32 int16 int8 uint8 bool".split()
}
_ARRAY_CODES = frozenset(["f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "b1"])


class PickledFile:
    """What a file holds, as containers and records, and the means to turn the records of numbers into tensors.

    content: as `unpickle` returns it. size: of the file in bytes. locate: the bytes of a storage by its key.
    """

    def __init__(self, content: object, size: int, locate: Callable[[str], memoryview]) -> None:
        self.content, self.size = content, size
        self._locate = locate
        self._copied = 0
        self._tensors: dict[tuple[object, ...], Tensor] = {}  # each storage and array once, however often it is used

    def tensor(self, record: StoredTensor | StoredArray) -> Tensor:
        """The tensor of a record: a view of the file where that is possible, with the stored dtype.

        Raises DamagedPickleError if the record asks for more than the file has, RefusedPickleError for kinds of numbers
        that no weights have.
        """
        if isinstance(record, StoredArray):
            if (id(record),) not in self._tensors:
                self._tensors[(id(record),)] = torch.from_numpy(self.array(record))
            return self._tensors[(id(record),)]
        storage = record.storage
        dtype = _DTYPES.get(record.dtype or storage.dtype)
        stored = _DTYPES.get(storage.dtype)
        if dtype is None or stored is None:
            raise RefusedPickleError(f"numbers of the type {(record.dtype or storage.dtype)[:80]}")
        size, stride = _whole_numbers(record.size), _whole_numbers(record.stride)
        (offset,) = _whole_numbers((record.offset,))
        if len(size) != len(stride):
            raise DamagedPickleError("a tensor's size and stride differ in length")
        if 0 in size:
            return torch.empty(size, dtype=dtype)
        flat = self._flat(storage, stored.itemsize, dtype)
        last = offset + sum((length - 1) * step for length, step in zip(size, stride, strict=True))
        if last >= len(flat):
            raise DamagedPickleError("a tensor reaches beyond its storage")
        return flat.as_strided(size, stride, offset)

    def array(self, record: StoredArray) -> np.ndarray:
        """The array of a record, in the machine's byte order. Raises as `tensor` does."""
        kind, shape = record.kind, _whole_numbers(record.shape)
        if kind is None:
            raise DamagedPickleError("an array has no type")
        if kind.code not in _ARRAY_CODES or not kind.plain or kind.order == "?":
            raise RefusedPickleError(f"arrays of the type {kind.code[:20]!r}")
        data = record.data.data() if isinstance(record.data, EncodedText) else record.data
        if isinstance(data, str):  # as Python 2 wrote bytes
            data = EncodedText(data).data()
        if not isinstance(data, (bytes, memoryview)):
            raise DamagedPickleError("an array has no bytes")
        dtype = np.dtype((">" if kind.order == ">" else "<") + kind.code)
        if math.prod(shape) * dtype.itemsize != len(data):
            raise DamagedPickleError("an array's shape does not fit its bytes")
        if 0 in shape:
            return np.empty(shape, dtype.newbyteorder("="))
        flat = np.frombuffer(data, dtype)
        array = flat.reshape(shape, order="F" if record.fortran else "C")
        if not dtype.isnative or not flat.flags.writeable or not flat.flags.aligned:
            self._copy(len(data))
            return array.astype(dtype.newbyteorder("="))
        return array

    def _flat(self, storage: Storage, itemsize: int, dtype: torch.dtype) -> Tensor:
        """All numbers of a storage as (count,), read as `dtype`; itemsize: bytes of each of the numbers it counts."""
        owner = storage.key if storage.data is None else id(storage.data)
        known = (owner, storage.count, storage.part, itemsize, dtype)
        if known in self._tensors:
            return self._tensors[known]
        data = self._locate(storage.key) if storage.data is None else storage.data
        start, count = (0, storage.count) if storage.part is None else storage.part
        if start < 0 or count < 0 or (start + count) * itemsize > len(data):
            raise DamagedPickleError(f"a storage should have {count} numbers, more than are there")
        data = data[start * itemsize : (start + count) * itemsize]
        whole = len(data) // dtype.itemsize * dtype.itemsize
        if data.readonly:
            self._copy(whole)
            data = memoryview(bytearray(data))
        # frombuffer takes no buffer without bytes
        numbers = torch.frombuffer(data, dtype=torch.uint8, count=whole) if whole else torch.empty(0, dtype=torch.uint8)
        if numbers.data_ptr() % dtype.itemsize:
            self._copy(whole)
            numbers = numbers.clone()
        return self._tensors.setdefault(known, numbers.view(dtype))

    def _copy(self, count: int) -> None:
        """Note that as many bytes are copied; honest records share none, so that the file's size is enough for all."""
        self._copied += count
        if self._copied > self.size:
            raise DamagedPickleError("its tensors and arrays claim the same bytes again and again")


def _whole_numbers(values: object) -> tuple[int, ...]:
    """`values` as a tuple of sizes or offsets."""
    if not isinstance(values, (tuple, list)) or len(values) > _MAX_AXES:
        raise DamagedPickleError("a shape is no short tuple")
    if not all(isinstance(value, int) and 0 <= value < 1 << 62 for value in values):
        raise DamagedPickleError("a shape has odd numbers")
    return tuple(values)


def read_pickled(path: Path, kind: str) -> PickledFile:
    """What a file of torch's ("zip") or another pickle ("pickle", torch's old format included) holds.

    Raises RefusedPickleError and DamagedPickleError without the file's name, WeightsError with it.
    """
    try:
        with open(path, "rb") as file:
            # A private map: what is written to a tensor never reaches the file.
            data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise WeightsError(f"Cannot read the weights file {path}: {reason}.") from error
    if sys.byteorder != "little":
        raise WeightsError(f"Cannot read {path}: pickled weights are read on little-endian machines only.")
    return _read_archive(path, data) if kind == "zip" else _read_stream(data)


# --- zip archives -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Member:
    """A file of an archive: where its bytes are, and their checksum; 0 where none was computed."""

    start: int
    size: int
    crc: int


def _read_archive(path: Path, data: memoryview) -> PickledFile:
    members = _members(path, data)
    if any(name.endswith("/constants.pkl") for name in members):
        raise WeightsError(f"{path} is a TorchScript program, not weights; save its state_dict() with torch.save.")
    pickles = [name for name in members if name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise WeightsError(f"{path} is a zip archive, but not one written by torch.save; pass the weights file itself.")
    folder = pickles[0].removesuffix("data.pkl")
    checked: dict[str, memoryview] = {}

    def content(name: str) -> memoryview:
        if name not in checked:
            member = members.get(name)
            if member is None:
                raise DamagedPickleError("a tensor's storage is missing")
            piece = data[member.start : member.start + member.size]
            if member.crc not in (0, zlib.crc32(piece)):
                raise DamagedPickleError(f"the checksum of its member {name[:80]!r} is wrong")
            checked[name] = piece
        return checked[name]

    if folder + "byteorder" in members and bytes(content(folder + "byteorder")[:8]) != b"little":
        raise WeightsError(f"{path} was written on a big-endian machine; save it again on a little-endian one.")
    tree = unpickle(Reader(content(pickles[0])), Budget())
    return PickledFile(tree, len(data), lambda key: content(f"{folder}data/{key}"))


def _members(path: Path, data: memoryview) -> dict[str, _Member]:
    """The archive's files. Only what torch.save writes is accepted: stored, not compressed, each once and apart."""
    rows = _table(data)
    claimed = sum(row[3] for row in rows)
    if claimed > len(data) or any(method or size != packed for _, method, packed, size, _, _ in rows):
        raise WeightsError(
            f"{path} is not a PyTorch weights file: it has {len(data)} bytes, but its members claim {claimed} bytes or "
            f"are compressed, which torch.save never does."
        )
    members: dict[str, _Member] = {}
    for raw_name, _, _, size, crc, header in rows:
        local = bytes(data[header : header + 30])
        if len(local) < 30 or not local.startswith(b"PK\x03\x04"):
            raise DamagedPickleError("a member lies outside of it")
        name_length, extra_length = struct.unpack("<HH", local[26:30])
        start = header + 30 + name_length + extra_length
        if start + size > len(data) or bytes(data[header + 30 : header + 30 + name_length]) != raw_name:
            raise DamagedPickleError("a member lies outside of it")
        name = raw_name.decode("utf-8", "replace")
        if name in members:
            raise DamagedPickleError(f"it has two members called {name[:80]!r}")
        members[name] = _Member(start, size, crc)
    ordered = sorted(members.values(), key=lambda member: (member.start, member.size))
    if any(before.start + before.size > after.start for before, after in zip(ordered, ordered[1:], strict=False)):
        raise DamagedPickleError("two members share bytes")
    return members


def _table(data: memoryview) -> list[tuple[bytes, int, int, int, int, int]]:
    """The archive's table of contents: name, compression, stored size, size, checksum, place of its header."""
    tail = bytes(data[-(22 + 65_535) :])
    at = tail.rfind(b"PK\x05\x06")
    if at < 0 or len(tail) - at < 22:
        raise DamagedPickleError("it ends too early")
    count, length, start = struct.unpack("<HII", tail[at + 10 : at + 20])
    if (count == 0xFFFF or 0xFFFFFFFF in (length, start)) and tail[max(0, at - 20) : at].startswith(b"PK\x06\x07"):
        (place,) = struct.unpack("<Q", tail[at - 12 : at - 4])
        record = bytes(data[place : place + 56])
        if len(record) < 56 or not record.startswith(b"PK\x06\x06"):
            raise DamagedPickleError("its table of contents is missing")
        count, length, start = struct.unpack("<QQQ", record[32:56])
    if length > _MAX_TABLE or start + length > len(data):
        raise DamagedPickleError("its table of contents is outside of it or too large")
    table, rows, at = bytes(data[start : start + length]), [], 0
    for _ in range(count):
        if len(table) - at < 46 or table[at : at + 4] != b"PK\x01\x02":
            raise DamagedPickleError("its table of contents is cut short")
        flags, method, crc, packed, size, *lengths = struct.unpack("<HH4xIIIHHH", table[at + 8 : at + 34])
        (header,) = struct.unpack("<I", table[at + 42 : at + 46])
        name_end = at + 46 + lengths[0]
        extra = table[name_end : name_end + lengths[1]]
        size, packed, header = _large_fields(extra, size, packed, header)
        if flags & 1:
            raise DamagedPickleError("it is encrypted")
        rows.append((table[at + 46 : name_end], method, packed, size, crc, header))
        at = name_end + lengths[1] + lengths[2]
    return rows


def _large_fields(extra: bytes, *fields: int) -> tuple[int, ...]:
    """`fields` with those that do not fit in 32 bits taken from a member's extra fields, where they stand in order."""
    wide: list[int] = []
    while len(extra) >= 4:
        kind, length = struct.unpack("<HH", extra[:4])
        if kind == 1:
            wide = [value for (value,) in struct.iter_unpack("<Q", extra[4 : 4 + length // 8 * 8])]
        extra = extra[4 + length :]
    values = iter(wide)
    return tuple(next(values, value) if value == 0xFFFFFFFF else value for value in fields)


# --- streams ----------------------------------------------------------------------------------------------------------


def _read_stream(data: memoryview) -> PickledFile:
    """torch's format before 1.6, or a bare pickle."""
    budget, reader = Budget(), Reader(data)
    first = unpickle(reader, budget, _nested_storage)
    if first != _MAGIC or isinstance(first, bool):
        return PickledFile(first, len(data), _no_storage)
    tree, places = _read_legacy(reader, budget)
    return PickledFile(tree, len(data), lambda key: _at(places, key))


def _no_storage(key: str) -> memoryview:
    raise DamagedPickleError("its tensors are elsewhere")


def _at(places: dict[str, memoryview], key: str) -> memoryview:
    if key not in places:
        raise DamagedPickleError("a tensor's storage is missing")
    return places[key]


def _read_legacy(reader: Reader, budget: Budget) -> tuple[object, dict[str, memoryview]]:
    """After the magic number: version, system, the object, the keys of its storages, and their bytes."""
    version, system = unpickle(reader, budget), unpickle(reader, budget)
    if version != _VERSION or not isinstance(system, dict) or system.get("little_endian") is not True:
        raise DamagedPickleError("it is of an unknown version or of a big-endian machine")
    storages: list[Storage] = []
    tree = unpickle(reader, budget, None, storages)
    widths = {each.key: _DTYPES[each.dtype].itemsize for each in storages if each.dtype in _DTYPES}
    keys = unpickle(reader, budget)
    if not isinstance(keys, list) or not all(isinstance(key, (str, int)) and str(key) in widths for key in keys):
        raise DamagedPickleError("it has storages that no tensor uses, or of unknown numbers")
    places: dict[str, memoryview] = {}
    for key in map(str, keys):
        (count,) = struct.unpack("<q", _exactly(reader, 8))
        places[key] = _exactly(reader, count * widths[key])
    return tree, places


def _exactly(reader: Reader, count: int) -> memoryview:
    piece = reader.data[reader.position : reader.position + max(0, count)]
    if len(piece) != count:
        raise DamagedPickleError("it ends too early")
    reader.position += count
    return piece


def _nested_storage(data: memoryview, budget: Budget) -> Storage:
    """The storage that torch wrote in its old format into a bare pickle."""
    reader = Reader(data)
    if unpickle(reader, budget) != _MAGIC:
        raise DamagedPickleError("a storage inside of it is of an unknown format")
    storage, places = _read_legacy(reader, budget)
    if not isinstance(storage, Storage):
        raise DamagedPickleError("a storage inside of it is none")
    return replace(storage, data=_at(places, storage.key))
