"""What the calls of a pickle mean. Nothing here takes a function from a file: the table at the end is all there is."""

import sys
from collections.abc import Callable
from dataclasses import dataclass, field

from anysam.unpickling.records import (
    ArrayType,
    Budget,
    EncodedText,
    Name,
    PickledObject,
    Storage,
    StoredArray,
    StoredTensor,
    describe,
    key_of,
    refusal,
)

Arguments = tuple[object, ...]
# Reads the storage that torch writes as bytes into plain pickles.
NestedReader = Callable[[memoryview, Budget], Storage]


@dataclass(frozen=True, eq=False)
class Calls:
    """What the calls of one pickle share.

    nested: None where no pickle may be inside of the pickle. storages: those that the pickle refers to, so far.
    """

    budget: Budget
    nested: NestedReader | None
    storages: list[Storage]
    encoded: dict[int, EncodedText] = field(default_factory=dict)  # by the text's id: each text is decoded once

    def call(self, function: object, arguments: object) -> object:
        """What calling `function` means, or a record that it was asked for.

        Raises RefusedPickleError if it would do more than make an object, TypeError or similar for nonsense.
        """
        if not isinstance(arguments, (tuple, list)):
            raise TypeError
        if not isinstance(function, Name):
            raise refusal(describe(function))
        known = _MEANINGS.get(function.meaning)
        if known is not None:
            return known(self, function, tuple(arguments))
        if _does_more_than_making(function):
            raise refusal(function)
        return PickledObject(function, tuple(arguments))


# Calls of the standard library that only make an object. What a file names without calling it does not matter.
_MAKERS = frozenset(
    [f"builtins.{name}" for name in "getattr slice complex range object int float str bool list dict tuple".split()]
    + [f"datetime.{name}" for name in "datetime date time timedelta timezone".split()]
    + [f"pathlib.{name}" for name in "Path PosixPath WindowsPath PurePath PurePosixPath PureWindowsPath".split()]
    + ["argparse.Namespace", "types.SimpleNamespace", "functools.partial", "decimal.Decimal", "fractions.Fraction"]
    + ["uuid.UUID", "logging.getLogger", "collections.UserDict"]
)
_MAKING_MODULES = (
    "torch._utils.",
    "torch.serialization._get_layout",
    "torch._tensor.",
    "torch.storage.",
    "torch.nn.parameter.",
    "numpy.random.",
)
_PYTHON_2_MODULES = frozenset(["commands", "imp", "popen2", "asyncore", "urllib2", "exceptions"])


def _does_more_than_making(function: Name) -> bool:
    """Whether a call is of the standard library, torch or NumPy, and not of a constructor: no part of a network.

    This serves the message; what it lets pass does not run either.
    """
    meaning = function.meaning
    package, last = meaning.partition(".")[0], meaning.rpartition(".")[2]
    if package in sys.stdlib_module_names or package in _PYTHON_2_MODULES:
        return meaning not in _MAKERS
    return package in ("torch", "numpy") and not last[:1].isupper() and not meaning.startswith(_MAKING_MODULES)


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


def _dict(calls: Calls, name: Name, arguments: Arguments) -> object:
    content = arguments[0] if arguments and not isinstance(arguments[0], (Name, PickledObject)) else ()
    if isinstance(content, dict):
        return content
    if content is None or not isinstance(content, (tuple, list)):  # None: the factory of a defaultdict
        return {}
    calls.budget.spend(len(content))
    return {key_of(key): value for key, value in content}


def _list(calls: Calls, name: Name, arguments: Arguments) -> object:
    items = arguments[0] if arguments else ()
    if not isinstance(items, (tuple, list)):
        raise TypeError
    calls.budget.spend(len(items))
    return list(items)


def _bytes(calls: Calls, name: Name, arguments: Arguments) -> object:
    if not arguments:
        return b""
    if isinstance(arguments[0], str):
        return _encode(calls, name, arguments)
    if not isinstance(arguments[0], (bytes, memoryview, EncodedText)):  # a number would ask for as much memory
        raise refusal(name)
    return arguments[0]


def _encode(calls: Calls, name: Name, arguments: Arguments) -> object:
    text, encoding = _text(arguments[0]), _text(arguments[1])
    if encoding.replace("-", "").replace("_", "").lower() not in ("latin1", "iso88591"):
        raise refusal(name)
    if id(text) not in calls.encoded:
        calls.encoded[id(text)] = EncodedText(text)
    return calls.encoded[id(text)]


def _first(calls: Calls, name: Name, arguments: Arguments) -> object:
    return arguments[0]


def _old_object(calls: Calls, name: Name, arguments: Arguments) -> object:
    return PickledObject(arguments[0], arguments[1:])


def _tensor(calls: Calls, name: Name, arguments: Arguments) -> object:
    storage, offset, size, stride = arguments[:4]
    if not isinstance(storage, Storage):
        raise TypeError
    dtype = arguments[6] if name.name == "_rebuild_tensor_v3" else None
    return StoredTensor(storage, offset, size, stride, dtype.name if isinstance(dtype, Name) else None)


def _tensor_with_attributes(calls: Calls, name: Name, arguments: Arguments) -> object:
    rebuild, _, inner = arguments[:3]
    if rebuild == name:
        raise TypeError
    return calls.call(rebuild, inner)


def _storage_in_bytes(calls: Calls, name: Name, arguments: Arguments) -> object:
    if calls.nested is None:
        raise refusal(name)
    data = arguments[0].data() if isinstance(arguments[0], EncodedText) else arguments[0]
    if not isinstance(data, (bytes, memoryview)):
        raise TypeError
    return calls.nested(memoryview(data), calls.budget)


def _array(calls: Calls, name: Name, arguments: Arguments) -> object:
    return StoredArray()


def _array_type(calls: Calls, name: Name, arguments: Arguments) -> object:
    return ArrayType(_text(arguments[0]))


def _scalar(calls: Calls, name: Name, arguments: Arguments) -> object:
    kind, data = arguments[:2]
    return StoredArray((), kind if isinstance(kind, ArrayType) else None, False, data)


def _array_of_buffer(calls: Calls, name: Name, arguments: Arguments) -> object:
    data, kind, shape, order = arguments[:4]
    return StoredArray(shape, kind if isinstance(kind, ArrayType) else None, order == "F", data)


_MEANINGS: dict[str, Callable[[Calls, Name, Arguments], object]] = {
    "collections.OrderedDict": _dict,
    "collections.defaultdict": _dict,
    "collections.Counter": _dict,
    "collections.deque": _list,
    "builtins.set": _list,
    "builtins.frozenset": _list,
    "builtins.bytes": _bytes,
    "builtins.bytearray": _bytes,
    "_codecs.encode": _encode,
    "copyreg._reconstructor": _old_object,
    "torch.Size": _first,
    "torch.device": _first,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor,
    "torch._utils._rebuild_parameter": _first,
    "torch._utils._rebuild_parameter_with_state": _first,
    "torch._tensor._rebuild_from_type_v2": _tensor_with_attributes,
    "torch.storage._load_from_bytes": _storage_in_bytes,
    "numpy._core.multiarray._reconstruct": _array,
    "numpy._core.multiarray.scalar": _scalar,
    "numpy._core.numeric._frombuffer": _array_of_buffer,
    "numpy.dtype": _array_type,
}
