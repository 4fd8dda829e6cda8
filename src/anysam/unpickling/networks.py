"""Find the tensors of pickled networks, and turn whole contents into plain values. Neither trusts the file's structure:
what it refers to again and again is looked at a bounded number of times, and nothing may contain itself.
"""

from collections.abc import Iterator, Mapping

from torch import Tensor

from anysam.unpickling.files import PickledFile
from anysam.unpickling.records import (
    DamagedPickleError,
    EncodedText,
    Name,
    OddKey,
    PickledObject,
    StoredArray,
    StoredTensor,
    describe,
    refusal,
)

_MAX_DEPTH, _MAX_PARTS = 100, 100_000  # a network has a depth of ten and a few thousand parts

Record = StoredTensor | StoredArray


def is_network(value: object) -> bool:
    """Whether a value is an object that was pickled as torch pickles an nn.Module."""
    attributes = _attributes(value)
    return all(isinstance(attributes.get(name), dict) for name in ("_parameters", "_buffers", "_modules"))


def network_records(network: object) -> dict[str, Record]:
    """What state_dict() of a pickled network would hold, by dotted name, as records.

    Raises RefusedPickleError for a network with parts of other kinds, DamagedPickleError for one that contains itself
    or has too many parts.
    """
    records: dict[str, Record] = {}
    parts = 0
    for prefix, attributes in _parts(network, "", 0):
        parts += 1
        left_out = attributes.get("_non_persistent_buffers_set")
        hidden = {name for name in left_out if isinstance(name, str)} if isinstance(left_out, list) else set()
        own = [*_entries(attributes, "_parameters"), *_entries(attributes, "_buffers")]
        parts += len(own)
        if parts > _MAX_PARTS:
            raise DamagedPickleError(f"its network has more than {_MAX_PARTS} parts")
        for name, value in own:
            if value is None or name in hidden:  # None: a bias that is not there
                continue
            if not isinstance(value, (StoredTensor, StoredArray)):
                raise refusal(describe(value))
            records[prefix + name] = value
    return records


def _parts(network: object, prefix: str, depth: int) -> Iterator[tuple[str, dict[object, object]]]:
    """The attributes of a network and of all networks inside of it, each with its prefix."""
    if not is_network(network):
        raise refusal(describe(network))
    if depth > _MAX_DEPTH:
        raise DamagedPickleError("its network contains itself")
    attributes = _attributes(network)
    yield prefix, attributes
    for name, child in _entries(attributes, "_modules"):
        if child is not None:
            yield from _parts(child, f"{prefix}{name}.", depth + 1)


def _attributes(value: object) -> dict[object, object]:
    """The attributes of a pickled object: its state, or the first of two where the class has slots."""
    state = value.state if isinstance(value, PickledObject) else None
    if isinstance(state, tuple) and len(state) == 2:
        state = state[0]
    return state if isinstance(state, dict) else {}


def _entries(attributes: Mapping[object, object], name: str) -> list[tuple[str, object]]:
    entries = attributes[name]
    assert isinstance(entries, dict)  # is_network
    if not all(isinstance(key, str) and len(key) < 1000 for key in entries):
        raise DamagedPickleError("its network has parts without proper names")
    return list(entries.items())


def plain(file: PickledFile) -> object:
    """The whole content with its records turned into tensors and arrays' tensors, and networks into state_dicts.

    What is neither stays a `PickledObject`, a name becomes text. What the file refers to twice is one object here too.
    Raises RefusedPickleError or DamagedPickleError.
    """
    return _Plain(file).value(file.content, 0)


class _Plain:
    """One conversion. Each container is converted once, by its id (the file's content keeps all of them alive)."""

    def __init__(self, file: PickledFile) -> None:
        self.file = file
        self.done: dict[int, object] = {}
        self.open: set[int] = set()

    def value(self, value: object, depth: int) -> object:
        """`value` as plain as it can be."""
        if value is None or isinstance(value, (str, int, float, bytes)):
            return value
        if id(value) in self.done:
            return self.done[id(value)]
        if depth > _MAX_DEPTH or id(value) in self.open:
            raise DamagedPickleError("it contains itself or is nested too deeply")
        self.open.add(id(value))
        self.done[id(value)] = made = self.convert(value, depth + 1)
        self.open.discard(id(value))
        return made

    def convert(self, value: object, depth: int) -> object:
        """The conversion of what is not converted yet."""
        if isinstance(value, (StoredTensor, StoredArray)):
            return self.file.tensor(value)
        if is_network(value):
            return self.tensors(network_records(value))
        if isinstance(value, dict):
            return {key: self.value(each, depth) for key, each in value.items() if not isinstance(key, OddKey)}
        if isinstance(value, list):
            return [self.value(each, depth) for each in value]
        if isinstance(value, tuple):
            return tuple(self.value(each, depth) for each in value)
        if isinstance(value, (memoryview, EncodedText)):
            return bytes(value if isinstance(value, memoryview) else value.data())
        return str(value) if isinstance(value, Name) else value

    def tensors(self, records: Mapping[str, Record]) -> dict[str, Tensor]:
        """The tensors of records."""
        return {name: self.file.tensor(record) for name, record in records.items()}
