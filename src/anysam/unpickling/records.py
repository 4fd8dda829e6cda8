"""What stands for the things of a pickle that are no plain values. None of these does anything."""

import re
from dataclasses import dataclass, field

_MAX_NAME = 500
_RENAMED = {"__builtin__": "builtins", "copy_reg": "copyreg", "pathlib._local": "pathlib"}


class RefusedPickleError(Exception):
    """The file holds something else than data, or asks for a call. The text names it: "Python objects (os.mkdir)"."""


class DamagedPickleError(Exception):
    """The file is no complete, sensible file of its kind. The text says why."""


@dataclass(frozen=True, slots=True)
class Name:
    """Something that the file refers to by module and name."""

    module: str
    name: str

    def __post_init__(self) -> None:
        if len(self.module) > _MAX_NAME or len(self.name) > _MAX_NAME:
            raise DamagedPickleError(f"it has names of more than {_MAX_NAME} letters")

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"

    @property
    def meaning(self) -> str:
        """The full name as Python 3 and NumPy 2 spell it."""
        module = _RENAMED.get(self.module, self.module)
        return f"{re.sub(r'^numpy[.]core(?=[.]|$)', 'numpy._core', module)}.{self.name}"


@dataclass(eq=False, slots=True, repr=False)
class PickledObject:
    """An object that was not made: what it would have been made by and from.

    made_by: the class, or the function that would have been called, a Name in honest files. state: what it would have
    been given as attributes. items: what was appended, if it is a kind of list. entries: what was assigned, if it is a
    kind of dict.
    """

    made_by: object
    arguments: object = None
    state: object = None
    items: list[object] = field(default_factory=list)
    entries: dict[object, object] = field(default_factory=dict)


@dataclass(eq=False, slots=True, repr=False)
class OddKey:
    """A key of a dict that is no text and no small number. Hashed by identity: the file's own keys may collide."""

    value: object


@dataclass(eq=False, slots=True, repr=False)
class Storage:
    """A flat run of numbers. dtype: a name of torch's. data: its bytes, or None when the file has them under `key`.

    part: (offset, length) in numbers, where only a part of the stored run is meant.
    """

    key: str
    dtype: str
    count: int
    data: memoryview | None = None
    part: tuple[int, int] | None = None


@dataclass(eq=False, slots=True, repr=False)
class StoredTensor:
    """A tensor as pickled, not yet checked against its storage. dtype: a name of torch's; None means the storage's."""

    storage: Storage
    offset: object
    size: object
    stride: object
    dtype: str | None = None


@dataclass(eq=False, slots=True, repr=False)
class ArrayType:
    """A NumPy dtype: code like "f4", order one of "<>|=". plain: whether it is a type of single numbers."""

    code: str
    order: str = "="
    plain: bool = True


@dataclass(eq=False, slots=True, repr=False)
class StoredArray:
    """A NumPy array, or a scalar of shape (), as pickled, not yet checked against its bytes."""

    shape: object = None
    kind: ArrayType | None = None
    fortran: bool = False
    data: object = None


class EncodedText:
    """Bytes that older protocols write as text, one character for each byte. Decoded once, when they are wanted."""

    def __init__(self, text: str) -> None:
        self._text, self._data = text, None

    def data(self) -> memoryview:
        """The bytes, writable. Raises DamagedPickleError for characters that stand for none."""
        if self._data is None:
            try:
                self._data = memoryview(bytearray(self._text, "latin-1"))
            except UnicodeEncodeError as error:
                raise DamagedPickleError("text that stands for bytes has other characters") from error
            self._text = ""
        return self._data

    _text: str
    _data: memoryview | None


class Budget:
    """Work that may still be done for one file, the pickles inside of it included."""

    # The largest files of the family need a tenth of it, training checkpoints too; a second or two at most.
    def __init__(self, work: int = 2_000_000) -> None:
        self._left = work

    def spend(self, work: int) -> None:
        """Raises DamagedPickleError when nothing is left."""
        self._left -= work
        if self._left < 0:
            raise DamagedPickleError("it has more instructions than weights need")


def refusal(name: object) -> RefusedPickleError:
    """The error for a function or class called `name` that rebuilds no data."""
    return RefusedPickleError(f"Python objects ({name})")


def describe(value: object) -> str:
    """The name of what a file has instead of data, for messages: "torch.nn.Linear", "functools.partial(os.system)"."""
    if not isinstance(value, PickledObject):
        return str(value) if isinstance(value, Name) else type(value).__name__
    if isinstance(value.made_by, PickledObject):
        return f"what {_maker(value.made_by)} gives"
    first = value.arguments[0] if isinstance(value.arguments, (tuple, list)) and value.arguments else None
    return f"{_maker(value)}({first})" if isinstance(first, Name) else _maker(value)


def _maker(value: PickledObject) -> str:
    return str(value.made_by) if isinstance(value.made_by, Name) else "an object"


def key_of(value: object) -> object:
    """`value` as the key of a dict; see OddKey."""
    simple = value is None or isinstance(value, (str, bool)) or (isinstance(value, int) and abs(value) < 1 << 31)
    return value if simple else OddKey(value)
