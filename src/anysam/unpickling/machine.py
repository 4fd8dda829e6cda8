"""The stack machine that pickles are written for, without a way out: its instructions make records and containers."""

import pickletools
import struct
from collections.abc import Callable
from typing import BinaryIO, cast

from anysam.unpickling.calls import Calls, NestedReader
from anysam.unpickling.records import (
    ArrayType,
    Budget,
    DamagedPickleError,
    Name,
    PickledObject,
    Storage,
    StoredArray,
    key_of,
    refusal,
)

_MAX_MARKS, _MAX_INTEGER, _MAX_LINE = 10_000, 1 << 128, 10_000
_COPIED_BYTES = 256  # shorter pieces of the file are copied, longer ones are views

# How torch.save names the types of its storages.
_STORAGE_DTYPES = {
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "DoubleStorage": "float64",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
    "UntypedStorage": "uint8",
}


class Reader:
    """A place in a file's bytes, as pickletools reads them: never more is allocated than the file holds."""

    def __init__(self, data: memoryview, position: int = 0) -> None:
        self.data, self.position = data, position

    def read(self, count: int) -> bytes | memoryview:
        """The next `count` bytes, or fewer at the end."""
        piece = self.data[self.position : self.position + max(0, count)]
        self.position += len(piece)
        return bytes(piece) if len(piece) < _COPIED_BYTES else piece

    def readline(self) -> bytes:
        """The bytes up to and with the next line break, or as many as a line may have."""
        piece = bytes(self.data[self.position : self.position + _MAX_LINE])
        line = piece[: piece.find(b"\n") + 1] or piece
        self.position += len(line)
        return line


def unpickle(
    reader: Reader, budget: Budget, nested: NestedReader | None = None, storages: list[Storage] | None = None
) -> object:
    """The object that a pickle describes, as plain containers and records; `reader` is then behind the pickle.

    Sets are lists here, and every kind of dict is a dict. nested: reads storages inside of the pickle. storages: what
    the pickle refers to elsewhere is appended to it. Raises RefusedPickleError or DamagedPickleError.
    """
    machine = _Machine(Calls(budget, nested, [] if storages is None else storages))
    source = cast(BinaryIO, reader)  # pickletools uses read and readline only
    try:
        while True:
            budget.spend(1)
            if reader.position >= len(reader.data):
                raise DamagedPickleError("it ends too early")
            code = reader.data[reader.position]
            reader.position += 1
            if code == _STOP:
                return machine.stack.pop()
            read_argument, follow = _BY_CODE[code]
            follow(machine, None if read_argument is None else read_argument(source))
    except (IndexError, KeyError, TypeError, ValueError, AttributeError, OverflowError, struct.error) as error:
        # whatever a nonsensical pickle does to the stack; nothing goes on after it
        raise DamagedPickleError("it ends too early or has nonsensical instructions") from error


class _Machine:
    """What the instructions work on."""

    def __init__(self, calls: Calls) -> None:
        self.calls = calls
        self.stack: list[object] = []
        self.below: list[list[object]] = []  # what lies under each mark
        self.memo: dict[int, object] = {}

    def push(self, value: object) -> None:
        """Put a value on the stack."""
        if isinstance(value, int) and abs(value) > _MAX_INTEGER:
            raise DamagedPickleError("it has integers of more than 128 bits")
        self.stack.append(value)

    def take(self, count: int) -> list[object]:
        """The top `count` values, removed."""
        if len(self.stack) < count:
            raise IndexError
        items = self.stack[-count:]
        del self.stack[-count:]
        return items

    def mark(self, _: object) -> None:
        """Begin a new stack on top of the present one."""
        if len(self.below) >= _MAX_MARKS:
            raise DamagedPickleError("it is nested too deeply")
        self.below.append(self.stack)
        self.stack = []

    def since_mark(self) -> list[object]:
        """What was put on the stack since the last mark, removed with the mark."""
        items, self.stack = self.stack, self.below.pop()
        return items

    def remember(self, index: object) -> None:
        """Note the top of the stack, under the next number if none is given."""
        self.memo[len(self.memo) if index is None else _integer(index)] = self.stack[-1]

    def recall(self, index: object) -> None:
        """Push what was noted under a number."""
        self.push(self.memo[_integer(index)])

    def append(self, items: list[object]) -> None:
        """Append to the list, or add to the set, that is on top."""
        target = self.stack[-1]
        into = target.items if isinstance(target, PickledObject) else target
        if not isinstance(into, list):
            raise TypeError
        into.extend(items)

    def assign(self, pairs: list[object]) -> None:
        """Assign key, value, key, value ... to the dict that is on top."""
        target = self.stack[-1]
        entries = target.entries if isinstance(target, PickledObject) else target
        if not isinstance(entries, dict):
            raise TypeError
        for key, value in zip(pairs[::2], pairs[1::2], strict=True):
            entries[key_of(key)] = value

    def call(self, function: object, arguments: object) -> None:
        """Push what a call means."""
        self.push(self.calls.call(function, arguments))


def _drop(machine: _Machine, _: object) -> None:
    """Drop the top, or the mark if nothing is above it."""
    if machine.stack:
        machine.stack.pop()
    else:
        machine.since_mark()


def _dict(machine: _Machine, _: object) -> None:
    pairs = machine.since_mark()
    machine.push({})
    machine.assign(pairs)


def _name(machine: _Machine, module: object, name: object) -> None:
    if not isinstance(module, str) or not isinstance(name, str):
        raise TypeError
    machine.push(Name(module, name))


def _instance(machine: _Machine, argument: object) -> None:
    module, name = str(argument).split(" ", 1)
    machine.call(Name(module, name), machine.since_mark())


def _object(machine: _Machine, _: object) -> None:
    kind, *arguments = machine.since_mark()
    machine.call(kind, arguments)


def _new(machine: _Machine, count: int) -> None:
    """An instance of a class without its constructor, from its arguments and with NEWOBJ_EX its named arguments."""
    kind, arguments, *_ = machine.take(count)
    machine.push(PickledObject(kind, arguments))


def _build(machine: _Machine, _: object) -> None:
    """Give the object under the top the state on top. Attributes of containers are of no use here, and dropped."""
    state = machine.stack.pop()
    target = machine.stack[-1]
    if isinstance(target, PickledObject):
        target.state = state
    elif isinstance(target, StoredArray):
        _, target.shape, kind, fortran, target.data = _parts(state, 5)
        target.kind, target.fortran = kind if isinstance(kind, ArrayType) else None, bool(fortran)
    elif isinstance(target, ArrayType):
        _, order, *structure = _parts(state, 5)
        target.order = order if isinstance(order, str) and order in ("<", ">", "|", "=") else "?"
        target.plain = structure == [None, None, None]
    elif isinstance(target, Name):
        raise refusal(f"an attribute of {target}")


def _persistent(machine: _Machine, _: object) -> None:
    """torch's references: ("storage", type, key, device, count, part) to numbers elsewhere, ("module", class, ...).

    Only files before 1.6 have a part, which is None or its own key, offset and count, and classes with their source.
    """
    identity = machine.stack.pop()
    if _parts(identity, 2)[0] == "module":
        machine.push(_parts(identity, 2)[1])
        return
    what, kind, key, _, count = _parts(identity, 5)
    if what != "storage" or not isinstance(kind, Name):
        raise TypeError
    view = identity[5] if isinstance(identity, tuple) and len(identity) > 5 else None
    part = None if view is None else (_integer(_parts(view, 3)[1]), _integer(_parts(view, 3)[2]))
    name = key if isinstance(key, str) else str(_integer(key))
    storage = Storage(name, _STORAGE_DTYPES.get(kind.name, str(kind)), _integer(count), None, part)
    machine.calls.storages.append(storage)
    machine.push(storage)


def _parts(value: object, count: int) -> tuple[object, ...]:
    if not isinstance(value, tuple) or len(value) < count:
        raise TypeError
    return value[:count]


def _integer(value: object) -> int:
    if not isinstance(value, int):
        raise TypeError
    return value


def _refuse(what: str) -> Callable[[_Machine, object], None]:
    def refuse(machine: _Machine, argument: object) -> None:
        raise refusal(what)

    return refuse


def _ignore(machine: _Machine, argument: object) -> None:
    """Frames, the protocol's number and read-only marks say nothing about the content."""


_VALUES = (
    "INT LONG LONG1 LONG4 BININT BININT1 BININT2 FLOAT BINFLOAT STRING BINSTRING SHORT_BINSTRING UNICODE BINUNICODE "
    "SHORT_BINUNICODE BINUNICODE8 BINBYTES SHORT_BINBYTES BINBYTES8 BYTEARRAY8"
)

_INSTRUCTIONS: dict[str, Callable[[_Machine, object], object]] = {
    **{name: _Machine.push for name in _VALUES.split()},
    **{name: _Machine.remember for name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE")},
    **{name: _Machine.recall for name in ("GET", "BINGET", "LONG_BINGET")},
    **{name: _ignore for name in ("PROTO", "FRAME", "READONLY_BUFFER")},
    **{name: _refuse(f"pickle instruction {name}") for name in ("EXT1", "EXT2", "EXT4", "PERSID", "NEXT_BUFFER")},
    "NONE": lambda machine, _: machine.push(None),
    "NEWTRUE": lambda machine, _: machine.push(True),
    "NEWFALSE": lambda machine, _: machine.push(False),
    "MARK": _Machine.mark,
    "POP": _drop,
    "POP_MARK": lambda machine, _: machine.since_mark(),
    "DUP": lambda machine, _: machine.push(machine.stack[-1]),
    "EMPTY_TUPLE": lambda machine, _: machine.push(()),
    "TUPLE1": lambda machine, _: machine.push(tuple(machine.take(1))),
    "TUPLE2": lambda machine, _: machine.push(tuple(machine.take(2))),
    "TUPLE3": lambda machine, _: machine.push(tuple(machine.take(3))),
    "TUPLE": lambda machine, _: machine.push(tuple(machine.since_mark())),
    "EMPTY_LIST": lambda machine, _: machine.push([]),
    "LIST": lambda machine, _: machine.push(machine.since_mark()),
    "APPEND": lambda machine, _: machine.append(machine.take(1)),
    "APPENDS": lambda machine, _: machine.append(machine.since_mark()),
    "EMPTY_SET": lambda machine, _: machine.push([]),
    "ADDITEMS": lambda machine, _: machine.append(machine.since_mark()),
    "FROZENSET": lambda machine, _: machine.push(machine.since_mark()),
    "EMPTY_DICT": lambda machine, _: machine.push({}),
    "DICT": _dict,
    "SETITEM": lambda machine, _: machine.assign(machine.take(2)),
    "SETITEMS": lambda machine, _: machine.assign(machine.since_mark()),
    "GLOBAL": lambda machine, names: _name(machine, *str(names).split(" ", 1)),
    "STACK_GLOBAL": lambda machine, _: _name(machine, *machine.take(2)),
    "INST": _instance,
    "OBJ": _object,
    "REDUCE": lambda machine, _: machine.call(*machine.take(2)),
    "NEWOBJ": lambda machine, _: _new(machine, 2),
    "NEWOBJ_EX": lambda machine, _: _new(machine, 3),
    "BUILD": _build,
    "BINPERSID": _persistent,
}


def _read_bytearray8(file: BinaryIO) -> bytes:
    """A length of eight bytes, then as many bytes; pickletools would copy them."""
    (count,) = struct.unpack("<Q", file.read(8))
    piece = file.read(count)
    if len(piece) < count:
        raise DamagedPickleError("it ends too early")
    return piece


def _argument_reader(opcode: pickletools.OpcodeInfo) -> Callable[[BinaryIO], object] | None:
    if opcode.name == "BYTEARRAY8":
        return _read_bytearray8
    return None if opcode.arg is None else opcode.arg.reader


_STOP = ord(".")
# How to read the argument of each instruction, and what to do with it, by the instruction's byte.
_BY_CODE: dict[int, tuple[Callable[[BinaryIO], object] | None, Callable[[_Machine, object], object]]] = {
    ord(opcode.code): (_argument_reader(opcode), _INSTRUCTIONS[opcode.name])
    for opcode in pickletools.opcodes
    if ord(opcode.code) != _STOP
}
