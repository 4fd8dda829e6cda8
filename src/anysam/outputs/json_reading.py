"""JSON of many rows, read row by row: Python's parser lets no other thread run until it is done, and a server's
requests would wait for it.
"""

import json
from typing import Any

_SPACE = " \t\n\r"
MAX_VALUES = 16_000_000  # in one document: of a few letters each, they take a hundred times the room of the text


def loads_by_rows(data: bytes) -> Any:
    """What `json.loads` gives, but that NaN and the infinities are refused; lists one or two levels deep row by row.

    Raises ValueError as that does, and for more than MAX_VALUES values; RecursionError where it is nested too deeply.
    """
    text = data.decode(json.detect_encoding(data), "surrogatepass")
    if text.startswith("\ufeff"):
        text = text[1:]
    if sum(text.count(sign) for sign in "[{,") > MAX_VALUES:
        raise ValueError(f"it has more than {MAX_VALUES:,} values; split it")
    rows = _Rows(text)
    value, end = rows.value(rows.after_space(0), 0)
    if end != len(text):
        raise json.JSONDecodeError("Extra data", text, end)
    return value


class _Rows:
    """A text and its parser. Places are those behind what was read and the space after it."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._decoder = json.JSONDecoder(parse_constant=_no_constant)

    def after_space(self, place: int) -> int:
        """Where the next sign is."""
        while self._text[place : place + 1] and self._text[place] in _SPACE:
            place += 1
        return place

    def value(self, place: int, depth: int) -> tuple[Any, int]:
        """The value that begins at a place, in pieces where it is at most one deep, and the place behind it."""
        sign = self._text[place : place + 1]
        if depth < 2 and sign == "[":
            return self._list(place, depth)
        if depth < 1 and sign == "{":
            return self._object(place, depth)
        found, end = self._decoder.raw_decode(self._text, place)
        return found, self.after_space(end)

    def _list(self, place: int, depth: int) -> tuple[list[Any], int]:
        found: list[Any] = []
        place = self.after_space(place + 1)
        if self._text[place : place + 1] == "]":
            return found, self.after_space(place + 1)
        while True:
            item, place = self.value(place, depth + 1)
            found.append(item)
            place, ended = self._next(place, "]")
            if ended:
                return found, place

    def _object(self, place: int, depth: int) -> tuple[dict[str, Any], int]:
        found: dict[str, Any] = {}
        place = self.after_space(place + 1)
        if self._text[place : place + 1] == "}":
            return found, self.after_space(place + 1)
        while True:
            if self._text[place : place + 1] != '"':
                raise json.JSONDecodeError("Expecting property name enclosed in double quotes", self._text, place)
            key, place = self.value(place, depth + 1)
            if self._text[place : place + 1] != ":":
                raise json.JSONDecodeError("Expecting ':' delimiter", self._text, place)
            found[key], place = self.value(self.after_space(place + 1), depth + 1)
            place, ended = self._next(place, "}")
            if ended:
                return found, place

    def _next(self, place: int, end: str) -> tuple[int, bool]:
        """Behind a comma, or behind the end: the place, and whether it was the end."""
        sign = self._text[place : place + 1]
        if sign not in (",", end):
            raise json.JSONDecodeError("Expecting ',' delimiter", self._text, place)
        return self.after_space(place + 1), sign == end


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")
