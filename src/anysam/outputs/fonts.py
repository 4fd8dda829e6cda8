"""Which fonts of this machine have the characters of a text; their own character maps (cmap) say so.

Tables read: OpenType specification 1.9.1, "Organization of an OpenType Font", "cmap" (formats 4 and 12) and "maxp".
"""

import io
import itertools
import os
import struct
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import ImageFont

# Where Linux, macOS and Windows keep fonts; a folder that is not there costs nothing.
_FOLDERS = (
    *("$XDG_DATA_HOME/fonts", "~/.local/share/fonts", "~/.fonts", "/usr/local/share/fonts", "/usr/share/fonts"),
    *("/run/current-system/sw/share/X11/fonts", "~/Library/Fonts", "/Library/Fonts", "/System/Library/Fonts"),
    *("/System/Library/AssetsV2", "$WINDIR/Fonts", "$LOCALAPPDATA/Microsoft/Windows/Fonts"),
)
# Well-known upright sans-serifs, the first to be asked; spelled as `_plain` spells a file's name.
_KNOWN = (
    *("notosans", "dejavusans", "liberationsans", "segoeui", "arial", "helvetica", "helveticaneue", "tahoma"),
    *("notosanscjk", "notosanscjksc", "notosanscjkjp", "notosanscjkkr", "notosanssc", "notosansjp", "notosanskr"),
    *("sourcehansans", "sourcehansanssc", "wqymicrohei", "wqyzenhei", "droidsansfallbackfull", "droidsansfallback"),
    *("pingfang", "hiraginosansgb", "ヒラギノ角ゴシックw3", "applesdgothicneo", "stheitimedium", "arialunicode"),
    *("msyh", "msjh", "yugothm", "meiryo", "msgothic", "malgun", "simsun", "nirmala", "leelawui", "arialuni"),
    *("geezapro", "kohinoor", "thonburi", "notosansarabic", "notosansdevanagari", "notosansthai", "notosanshebrew"),
)
_STYLES = ("bold", "italic", "oblique", "light", "thin", "black", "medium", "condensed", "mono", "serif", "display")
_ENDINGS = (".ttf", ".otf", ".ttc", ".otc")
_NOTHING_INSIDE = ("lastresort", "adobeblank", "adobenotdef")  # a placeholder for every character
_MAX_ENTRIES = 20_000  # of folders, looked at
_MAX_FONTS = 2_000  # opened
_MAX_FACES = 16  # of a collection
_MAX_TABLE = 1 << 22  # bytes; the largest character maps take a fifth of that
JOINERS = "\u200c\u200d"  # of no width, needed by Persian and Indic scripts; no font has to have them


@dataclass(frozen=True)
class Font:
    """A font that can be drawn with. path: None for the one inside Pillow. index: of the face in a collection.

    characters: those of the characters looked for that it has.
    """

    path: Path | None
    index: int
    characters: frozenset[str]

    def at(self, size: float) -> ImageFont.FreeTypeFont:
        """For drawing, `size` pixels high. Raises OSError for a font that FreeType cannot read."""
        if self.path is None:
            return _own_font(size)
        return ImageFont.truetype(self.path, size, self.index)


def find_fonts(texts: Iterable[str], folders: Sequence[str | Path] | None = None) -> list[Font]:
    """Fonts that have the characters of `texts`: first the one inside Pillow, then as few as it takes of this machine.

    Each has characters that none before it has; those that none has are in none. No folder is looked into unless
    Pillow's font lacks a character. folders: by default where the system and the user keep fonts.
    """
    wanted = frozenset().union(*texts) - frozenset(JOINERS)
    own = Font(None, 0, _characters(_own_file(), 0, wanted))
    found, lacking = [own], wanted - own.characters
    if not lacking:
        return found
    for path in itertools.islice(_font_files(_FOLDERS if folders is None else folders), _MAX_FONTS):
        for font in _faces(path, wanted):
            if font.characters & lacking and _can_be_read(font):
                found.append(font)
                lacking -= font.characters
                if not lacking:
                    return found
    return found


def split_runs(text: str, fonts: Sequence[Font]) -> list[tuple[Font, str]]:
    """The text in runs of one font each: all in the first that has every character, or else in as many as it takes.

    What no font has is in a run of the first font, where a box stands for it.
    """
    letters = set(text) - set(JOINERS)
    for font in fonts:
        if letters <= font.characters:
            # Pillow draws its own font without shaping, so that even a joiner would be a box.
            return [(font, text if font.path else "".join(char for char in text if char not in JOINERS))]
    runs: list[tuple[Font, str]] = []
    for char in text:
        # Marks and spaces stay in the font of the letters before them, if it has them.
        able = [font for font in fonts if char in font.characters]
        last = runs[-1][0] if runs else None
        stays = not char.isalnum() and last in able or char in JOINERS
        font = last if stays and last else able[0] if able else fonts[0]
        if font == last:
            runs[-1] = (font, runs[-1][1] + char)
        elif char not in JOINERS:
            runs.append((font, char))
    return runs


def has_characters(file: BinaryIO, codes: np.ndarray, index: int = 0) -> np.ndarray:
    """Which Unicode characters a font has glyphs for: codes (N,) int64 -> (N,) bool.

    file: a TrueType or OpenType font, or a collection of them with `index` the face. Raises ValueError for anything
    else, and for a damaged one.
    """
    try:
        tables = _tables(file, index)
        (glyphs,) = struct.unpack_from(">4xH", _table(file, tables, b"maxp"))
        cmap = _table(file, tables, b"cmap")
        found = _glyph_numbers(cmap, codes)
    except struct.error as error:
        raise ValueError(f"the font ends too early: {error}") from error
    return (found > 0) & (found < glyphs)


def _own_font(size: float) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size)
    if not isinstance(font, ImageFont.FreeTypeFont):
        raise OSError("Pillow was built without FreeType.")
    return font


def _own_file() -> BinaryIO:
    path = _own_font(10).path
    return io.BytesIO(path.getvalue()) if isinstance(path, io.BytesIO) else io.BytesIO()


def _font_files(folders: Iterable[str | Path]) -> Iterator[Path]:
    """The fonts in folders and the folders in them: the well-known ones first, upright before bold."""
    found: list[tuple[bool, int, str, Path]] = []
    seen: set[str] = set()
    entries = 0
    for folder in folders:
        start = os.path.expanduser(os.path.expandvars(folder))
        for root, inside, names in os.walk(start):
            entries += len(names) + 1
            if entries > _MAX_ENTRIES:
                break
            inside.sort()  # the same order on every file system
            for name in names:
                plain = _plain(name)
                if name.lower().endswith(_ENDINGS) and name not in seen and plain not in _NOTHING_INSIDE:
                    seen.add(name)
                    rank = _KNOWN.index(plain) if plain in _KNOWN else len(_KNOWN)
                    styled = any(style in plain for style in _STYLES) and rank == len(_KNOWN)
                    found.append((styled, rank, name, Path(root, name)))
    return (path for *_, path in sorted(found))


def _plain(name: str) -> str:
    """A font file's name without what varies: "NotoSansCJK-Regular.ttc" is "notosanscjk"."""
    stem = os.path.splitext(unicodedata.normalize("NFC", name))[0].lower().split("[")[0]
    return "".join(char for char in stem if char.isalnum()).replace("regular", "").removesuffix("vf")


def _faces(path: Path, wanted: frozenset[str]) -> Iterator[Font]:
    for index in range(_MAX_FACES):
        try:
            with open(path, "rb") as file:
                characters = _characters(file, index, wanted)
        except (OSError, ValueError):  # unreadable, damaged, or no such face: it has nothing that we could draw
            return
        yield Font(path, index, characters)


def _characters(file: BinaryIO, index: int, wanted: frozenset[str]) -> frozenset[str]:
    ordered = sorted(wanted)
    has = has_characters(file, np.array([ord(char) for char in ordered], dtype=np.int64), index)
    return frozenset(itertools.compress(ordered, has))


def _can_be_read(font: Font) -> bool:
    """By FreeType, which reads more of it than its character map."""
    try:
        font.at(16).getmask("".join(sorted(font.characters)[:32]))
    except OSError:
        return False
    return True


def _tables(file: BinaryIO, index: int) -> dict[bytes, tuple[int, int]]:
    """Offset and length of each table. Raises ValueError for a font without outlines, whose size is fixed."""
    kind, offset = _read(file, 0, 4), 0
    if kind == b"ttcf":
        (count,) = struct.unpack(">I", _read(file, 8, 4))
        if index >= count:
            raise ValueError(f"face {index} of a collection that has {count}")
        (offset,) = struct.unpack(">I", _read(file, 12 + 4 * index, 4))
        kind = _read(file, offset, 4)
    elif index:
        raise ValueError(f"face {index} of a single font")
    if kind not in (b"\0\1\0\0", b"OTTO", b"true"):
        raise ValueError(f"no font begins with {kind!r}")
    (count,) = struct.unpack(">H", _read(file, offset + 4, 2))
    rows = struct.iter_unpack(">4s4xII", _read(file, offset + 12, 16 * count))
    tables = {tag: (start, length) for tag, start, length in rows}
    if not tables.keys() & {b"glyf", b"CFF ", b"CFF2"} or tables.keys() & {b"sbix", b"CBDT", b"COLR"}:
        raise ValueError("pictures or coloured layers instead of outlines")
    return tables


def _table(file: BinaryIO, tables: dict[bytes, tuple[int, int]], tag: bytes) -> bytes:
    if tag not in tables:
        raise ValueError(f"no table {tag!r}")
    start, length = tables[tag]
    return _read(file, start, min(length, _MAX_TABLE))


def _read(file: BinaryIO, start: int, length: int) -> bytes:
    file.seek(start)
    data = file.read(length)
    if len(data) < length:
        raise ValueError(f"the font ends before byte {start + length}")
    return data


def _glyph_numbers(cmap: bytes, codes: np.ndarray) -> np.ndarray:
    """Glyph numbers (N,) int64, 0 for none, from the best of the Unicode maps in the table."""
    (count,) = struct.unpack_from(">2xH", cmap)
    maps: dict[int, int] = {}
    for i in range(count):
        platform, encoding, offset = struct.unpack_from(">HHI", cmap, 4 + 8 * i)
        if (platform, encoding) in ((3, 10), (3, 1)) or (platform == 0 and encoding != 5):  # 5: variation sequences
            (form,) = struct.unpack_from(">H", cmap, offset)
            maps[form] = offset
    if 12 in maps:  # all planes, hence the larger one
        return _format_12(cmap[maps[12] :], codes)
    if 4 in maps:
        return _format_4(cmap[maps[4] :], codes)
    raise ValueError(f"character maps of formats {sorted(maps)}, not 4 or 12")


def _format_4(table: bytes, codes: np.ndarray) -> np.ndarray:
    """Segments of the first plane: end codes, start codes, deltas, and offsets into a list of glyphs behind them."""
    segments = struct.unpack_from(">6xH", table)[0] // 2
    if segments == 0 or len(table) < 16 + 8 * segments:
        raise ValueError(f"a character map of {segments} segments in {len(table)} bytes")
    words = np.frombuffer(table, dtype=">u2", count=len(table) // 2).astype(np.int64)
    ends, rest = words[7 : 7 + segments], words[8 + segments :]
    starts, deltas, offsets = rest[:segments], rest[segments : 2 * segments], rest[2 * segments : 3 * segments]
    glyphs = np.zeros(len(codes), dtype=np.int64)
    for place, code in enumerate(codes.tolist()):
        i = int((ends >= code).argmax())  # the first segment that ends there or behind
        if not starts[i] <= code <= ends[i] or offsets[i] == 0xFFFF:
            continue
        if offsets[i] == 0:
            glyphs[place] = (code + deltas[i]) & 0xFFFF
            continue
        # An offset counts from its own place in the table.
        at = 8 + 3 * segments + i + int(offsets[i]) // 2 + code - int(starts[i])
        if at < len(words) and words[at]:
            glyphs[place] = (words[at] + deltas[i]) & 0xFFFF
    return glyphs


def _format_12(table: bytes, codes: np.ndarray) -> np.ndarray:
    """Groups of a first code, a last code and the first one's glyph."""
    (count,) = struct.unpack_from(">12xI", table)
    if count > (len(table) - 16) // 12:
        raise ValueError(f"a character map of {count} groups in {len(table)} bytes")
    groups = np.frombuffer(table, dtype=">u4", count=3 * count, offset=16).astype(np.int64).reshape(count, 3)
    starts, ends, first = groups.T
    if count == 0 or (starts[1:] <= ends[:-1]).any():
        raise ValueError("a character map without groups, or out of order")
    i = np.searchsorted(starts, codes, side="right") - 1  # (N,), -1 in front of all
    inside = (i >= 0) & (codes <= ends[i])
    return np.where(inside, first[i] + codes - starts[i], 0)
