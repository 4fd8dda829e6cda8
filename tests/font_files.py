"""Small TrueType fonts for tests, made from nothing: one square for every character, and an empty .notdef."""

import struct
from collections.abc import Iterable, Mapping


def format_4(segments: Iterable[tuple[int, int, int]]) -> bytes:
    """A character map of segments of a first code, a last code and the first one's glyph."""
    rows = [*segments, (0xFFFF, 0xFFFF, 0)]
    ends, starts = [row[1] for row in rows], [row[0] for row in rows]
    deltas = [(glyph - first) & 0xFFFF for first, _, glyph in rows]
    n = len(rows)
    body = struct.pack(f">4H{n}HH{n}H{n}H{n}H", 2 * n, 0, 0, 0, *ends, 0, *starts, *deltas, *([0] * n))
    return struct.pack(">3H", 4, 6 + len(body), 0) + body


def format_12(groups: Iterable[tuple[int, int, int]]) -> bytes:
    rows = list(groups)
    body = b"".join(struct.pack(">3I", *row) for row in rows)
    return struct.pack(">HHIII", 12, 0, 16 + len(body), 0, len(rows)) + body


def cmap(*maps: tuple[int, int, bytes]) -> bytes:
    """The table of maps, each with its platform and encoding."""
    at = 4 + 8 * len(maps)
    head, body = struct.pack(">HH", 0, len(maps)), b""
    for platform, encoding, data in maps:
        head += struct.pack(">HHI", platform, encoding, at + len(body))
        body += data
    return head + body


def font(characters: bytes | str, glyphs: int = 2, extra: Mapping[bytes, bytes] | None = None, at: int = 0) -> bytes:
    """A font file. characters: a `cmap` table, or what it shall have. glyphs: how many; all but the first are squares.

    extra: tables to add, or with b"" to leave out. at: where in a collection the font lies.
    """
    if isinstance(characters, str):
        codes = sorted(map(ord, characters))
        characters = cmap((3, 10, format_12((code, code, 1) for code in codes)))
    points = struct.pack(">4h4h", 100, 600, 0, -600, 0, 0, 600, 0)
    square = struct.pack(">5hHH4B", 1, 100, 0, 700, 600, 3, 0, 1, 1, 1, 1) + points
    places = [0, 0, *(i * len(square) // 2 for i in range(1, glyphs))]
    tables = {
        b"cmap": characters,
        b"glyf": square * (glyphs - 1),
        b"head": struct.pack(
            ">IIIIHHQQ4hHHhhh", 65536, 65536, 0, 0x5F0F3CF5, 0, 1000, 0, 0, 0, 0, 700, 600, 0, 8, 2, 0, 0
        ),
        b"hhea": struct.pack(">I3hH3h3h4hhH", 65536, 800, -200, 0, 800, 0, 0, 700, 1, 0, 0, 0, 0, 0, 0, 0, glyphs),
        b"hmtx": struct.pack(">Hh", 800, 0) * glyphs,
        b"loca": struct.pack(f">{glyphs + 1}H", *places),
        b"maxp": struct.pack(">IH13H", 65536, glyphs, 4, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0),
        **(extra or {}),
    }
    kept = sorted((tag, data) for tag, data in tables.items() if data)
    head, body = struct.pack(">I4H", 65536, len(kept), 0, 0, 0), b""
    for tag, data in kept:
        head += struct.pack(">4sIII", tag, 0, at + 12 + 16 * len(kept) + len(body), len(data))
        body += data + b"\0" * (-len(data) % 4)
    return head + body


def collection(*members: str) -> bytes:
    """A collection of fonts, each with the characters it shall have."""
    at = 12 + 4 * len(members)
    places, body = [], b""
    for characters in members:
        places.append(at + len(body))
        body += font(characters, at=places[-1])
    return struct.pack(f">4sII{len(members)}I", b"ttcf", 65536, len(members), *places) + body
