"""Labels and captions of masks, drawn on a photograph so that they can be read."""

import bisect
import math
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import ArrayLike
from PIL import Image, ImageDraw, ImageFont, features

from anysam import rle
from anysam.outputs.fonts import JOINERS, Font, find_fonts, split_runs
from anysam.outputs.formats import Loss
from anysam.outputs.label_boxes import Place, Point, Wish, place_boxes
from anysam.results import MaskRecord

_WHITE = (255, 255, 255)
_SMALLEST, _SMALLEST_CAPTION = 13, 11  # pixels, fonts that can be read
_ZOOM, _ZOOMED_BELOW = 4, 24  # pixels
_CAPTION = 0.8  # of the label's font
_LABEL_WIDTH, _CAPTION_WIDTH = 16, 16  # in font sizes
_CAPTION_LINES = 2
_LONGEST = 500  # characters that are looked at
_OPACITY = 0.84
_CONTRAST = 7.0  # between a text and its box, at least; WCAG 2.1's level AAA
_SHIFT = 4  # OpenCV draws at 1/16 pixel
_ELLIPSIS = "…"
_EMOJI = re.compile("[\U0001f000-\U0001faff\ufe0e\ufe0f\u20e3]")


@dataclass(frozen=True, eq=False)
class _Letters:
    """Fonts at one size in pixels. faces: of each font, `zoom` times as large, since small letters are drawn larger and
    reduced: FreeType would put each on a whole pixel, and words would run together.
    """

    size: float
    zoom: int
    fonts: tuple[Font, ...]
    faces: dict[Font, ImageFont.FreeTypeFont]

    @classmethod
    def at(cls, size: float, zoom: int, fonts: Sequence[Font]) -> "_Letters":
        return cls(size, zoom, tuple(fonts), {font: font.at(size * zoom) for font in fonts})


@dataclass(frozen=True)
class _Line:
    """A line of text: its runs with the face of each, and the pixels they take above and below the base line."""

    runs: tuple[tuple[ImageFont.FreeTypeFont, str], ...]
    width: int
    ascent: int
    descent: int


@dataclass(frozen=True)
class _Block:
    """The text of a record, in letters drawn `zoom` times as large. label: at most one line. caption: at most two."""

    zoom: int
    label: tuple[_Line, ...]
    caption: tuple[_Line, ...]


def draw_labels(
    canvas: np.ndarray,
    records: Sequence[MaskRecord],
    on_top: np.ndarray,
    colours: np.ndarray,
    avoid: Sequence[tuple[float, float, float, float]] = (),
) -> list[Loss]:
    """Draw the labels and captions of records on an overlay, in place; returns what could not be drawn.

    canvas: (H, W, 3) uint8 RGB. on_top: (H, W) int, the number from 1 of the record seen at each pixel. colours: (N, 3)
    uint8 of the records. avoid: boxes x0 y0 x1 y1 that would better be seen.

    A label stands in a box of its mask's colour, darkened until white text has a contrast of 7 on it, with its score in
    percent; a caption under it in smaller letters. For drawing only, control characters are dropped, as are emoji
    beside letters, and long texts end in an ellipsis. Characters of a label that no font on this machine has are drawn
    as boxes, and a caption with one is left out; either is said. Where there is no room for all, captions are left out
    first, then the labels of the smallest masks.
    """
    worded = [i for i, record in enumerate(records) if record.label is not None or record.caption is not None]
    if not worded:
        return []
    if not features.check("freetype2"):
        return [Loss("overlay", "labels without FreeType, which this build of Pillow lacks", len(worded))]
    worded.sort(key=lambda i: -records[i].area)
    size = _font_size(canvas.shape[0], canvas.shape[1], len(worded))
    blocks, losses = _set_blocks([records[i] for i in worded], size, canvas.shape[1])
    boxes = [rle.box(records[i].segmentation) for i in worded]
    kept = [k for k, box in enumerate(boxes) if box is not None]
    wishes = [_wish(worded[k] + 1, box, blocks[k], size) for k, box in enumerate(boxes) if box is not None]
    found = dict(zip(kept, place_boxes(on_top, wishes, max(2, round(size / 5)), avoid), strict=True))
    drawn = [(block, found.get(k), colours[i]) for k, (i, block) in enumerate(zip(worded, blocks, strict=True))]
    for _, place, colour in drawn:
        if place is not None and place.leader is not None:
            _draw_leader(canvas, *place.leader, colour, size)
    paints = {tuple(colour): _dark(colour) for colour in np.unique(colours, axis=0)}
    for block, place, colour in drawn:
        if place is not None:
            _draw_box(canvas, block, place, (colour, paints[tuple(colour)]), size)
    left = sum(bool(block.label) and place is None for block, place, _ in drawn)
    untold = sum(bool(block.caption) and not (place and place.full) for block, place, _ in drawn)
    what = (("labels for which there is no room", left), ("captions for which there is no room", untold))
    return losses + [Loss("overlay", name, count) for name, count in what if count]


def _set_blocks(records: Sequence[MaskRecord], size: float, image_width: int) -> tuple[list[_Block], list[Loss]]:
    """The texts of records in letters of a size in pixels, and what is said of characters that no font has."""
    texts = [(_drawable(record.label), _drawable(record.caption)) for record in records]
    written = [text for pair in texts for text in pair]
    fonts = find_fonts([_ELLIPSIS, "0123456789 %", *written, *(_base(char) for char in set().union(*written))])
    known = frozenset(JOINERS).union(*(font.characters for font in fonts))
    zoom = _ZOOM if size < _ZOOMED_BELOW else 1
    letters = _Letters.at(size, zoom, fonts)
    small_letters = _Letters.at(max(_SMALLEST_CAPTION, size * _CAPTION), zoom, fonts)
    blocks = []
    for record, (label, caption) in zip(records, texts, strict=True):
        label_lines = _label_lines(_plain(label, known), record.label_score, letters, image_width)
        phrase = _plain(caption, known)
        phrase = phrase if known.issuperset(phrase) else ""  # lines of boxes
        blocks.append(_Block(zoom, label_lines, _caption_lines(phrase, small_letters, size, image_width)))
    strange = [text for text in written if not known.issuperset(text)]
    return blocks, _unwritable(strange, known) if strange else []


def contrast(first: ArrayLike, second: ArrayLike) -> float:
    """Of two colours (R, G, B) from 0 to 255, 1 to 21 (WCAG 2.1, "contrast ratio" and "relative luminance")."""

    def luminance(colour: ArrayLike) -> float:
        shares = np.asarray(colour, dtype=np.float64) / 255
        linear = np.where(shares <= 0.03928, shares / 12.92, ((shares + 0.055) / 1.055) ** 2.4)
        return float(linear @ [0.2126, 0.7152, 0.0722])

    darker, lighter = sorted([luminance(first), luminance(second)])
    return (lighter + 0.05) / (darker + 0.05)


def _font_size(height: int, width: int, count: int) -> float:
    """Pixels: as large to the eye on every image that is seen whole; smaller where many labels share it."""
    alone = max(_SMALLEST, min(max(height, width) / 46, min(height, width) / 9))
    return max(_SMALLEST_CAPTION, alone * min(1.0, (20 / count) ** 0.2))


def _drawable(text: str | None) -> str:
    """One line of what can be drawn: no control characters, surrogates or marks of direction."""
    if text is None:
        return ""
    joiners = JOINERS if features.check("raqm") else ""  # they would be boxes without shaping
    kept = [
        " " if char.isspace() else char
        for char in unicodedata.normalize("NFC", str(text)[:_LONGEST])
        if char in joiners or char.isspace() or unicodedata.category(char) not in ("Cc", "Cf", "Cs", "Co")
    ]
    line = " ".join("".join(kept).split())
    return " ".join(_EMOJI.sub("", line).split()) or line


def _base(char: str) -> str:
    """The letter from A to Z under an accent, if it is one."""
    base = unicodedata.normalize("NFD", char)[0]
    return base if base.isascii() else ""


def _plain(text: str, known: frozenset[str]) -> str:
    """Letters that no font has without their accents, if that helps: a box in their place says less."""
    return "".join(char if char in known else _base(char) or char for char in text)


def _unwritable(texts: Sequence[str], known: frozenset[str]) -> list[Loss]:
    """What is said of texts with characters that no font has."""
    missing = frozenset().union(*texts) - known
    asian = any(unicodedata.name(char, "").startswith(("CJK", "HIRAGANA", "KATAKANA", "HANGUL")) for char in missing)
    package = "fonts-noto-cjk" if asian else "fonts-noto-core"
    first = "".join(char if char.isprintable() else "\ufffd" for char in texts[0])
    first = first if len(first) <= 40 else f"{first[:39]}{_ELLIPSIS}"
    what = f"texts in characters that no font on this machine has, such as '{first}' (install for example {package})"
    return [Loss("overlay", what, len(texts))]


def _label_lines(text: str, score: float | None, letters: _Letters, image_width: int) -> tuple[_Line, ...]:
    if not text:
        return ()
    percent = "" if score is None or not np.isfinite(score) else f" {score * 100:.0f} %"
    limit = min(_LABEL_WIDTH * letters.size, image_width - 2 * _padding(letters.size)[0])
    line = _set_line(text + percent, letters)
    if line.width > limit:
        line = _set_line(_shortened(text, percent, limit, letters) + percent, letters)
    return (line,)


def _caption_lines(text: str, letters: _Letters, label_size: float, image_width: int) -> tuple[_Line, ...]:
    limit = min(_CAPTION_WIDTH * label_size, image_width - 2 * _padding(label_size)[0])
    lines: list[_Line] = []
    while text:
        line = _set_line(text, letters)
        if line.width <= limit:
            return (*lines, line)
        if len(lines) == _CAPTION_LINES - 1:
            return (*lines, _set_line(_shortened(text, "", limit, letters), letters))
        part = _fitting(text, "", limit, letters)
        lines.append(_set_line(part, letters))
        text = text[len(part) :].lstrip()
    return tuple(lines)


def _shortened(text: str, tail: str, limit: float, letters: _Letters) -> str:
    """What fits of a text in front of an ellipsis and a tail."""
    return _fitting(text, _ELLIPSIS + tail, limit, letters).rstrip(" ,;:-") + _ELLIPSIS


def _fitting(text: str, tail: str, limit: float, letters: _Letters) -> str:
    """The longest beginning that fits with a tail behind it: of whole words, unless they are less than half of it."""

    def longest(ends: Sequence[int]) -> int:
        fitting = bisect.bisect_right(ends, limit, key=lambda end: _set_line(text[:end] + tail, letters).width)
        return ends[fitting - 1] if fitting else 0

    # Never between a letter and the marks on it, nor in front of a comma or a closing bracket.
    bound = ("Mn", "Mc", "Me", "Po", "Pe", "Pf")
    part = longest([i for i in range(1, len(text)) if unicodedata.category(text[i]) not in bound] + [len(text)])
    words = text[:part] if text[part : part + 1] == " " else text[:part].rpartition(" ")[0]
    return words if 2 * len(words) >= part else text[: max(part, 1)]


def _set_line(text: str, letters: _Letters) -> _Line:
    width, top, bottom = 0.0, -0.76 * letters.size, 0.22 * letters.size  # of Latin letters, so that boxes are alike
    runs = []
    for font, part in split_runs(text, letters.fonts):
        face = letters.faces[font]
        _, ink_top, _, ink_bottom = face.getbbox(part, anchor="ls")
        top, bottom = min(top, ink_top / letters.zoom), max(bottom, ink_bottom / letters.zoom)
        width += face.getlength(part) / letters.zoom
        runs.append((face, part))
    return _Line(tuple(runs), math.ceil(width), math.ceil(-top), math.ceil(bottom))


def _padding(size: float) -> tuple[int, int]:
    """Pixels between a text and the sides of its box, and its top and bottom."""
    return max(3, round(0.42 * size)), max(2, round(0.2 * size))


def _wish(number: int, box: tuple[int, int, int, int], block: _Block, size: float) -> Wish:
    whole = _box_size((*block.label, *block.caption), size) if block.caption else None
    return Wish(number, box, _box_size(block.label, size) if block.label else None, whole)


def _box_size(lines: Sequence[_Line], size: float) -> tuple[int, int]:
    x, y = _padding(size)
    return sum(line.ascent + line.descent for line in lines) + 2 * y, max(line.width for line in lines) + 2 * x


def _draw_box(
    canvas: np.ndarray, block: _Block, place: Place, paints: tuple[np.ndarray, np.ndarray], size: float
) -> None:
    """paints: of its border, and of what is inside."""
    x0, y0, x1, y1 = place.box
    part = canvas[y0:y1, x0:x1]
    height, width = part.shape[:2]
    border, radius = max(1.0, size / 14), 0.3 * size
    depth = _depth_in_rounded_box(height, width, radius)
    inside, core = np.clip(depth + 0.5, 0, 1), np.clip(depth - border + 0.5, 0, 1)
    letters = Image.new("L", (width * block.zoom, height * block.zoom))
    drawing = ImageDraw.Draw(letters)
    left, y = _padding(size)
    for line in (*block.label, *block.caption) if place.full else block.label:
        x, y = float(left * block.zoom), y + line.ascent
        for face, text in line.runs:
            drawing.text((x, y * block.zoom), text, fill=255, font=face, anchor="ls")
            x += face.getlength(text)
        y += line.descent
    if block.zoom > 1:
        letters = letters.resize((width, height), Image.Resampling.LANCZOS)
    picture = Image.fromarray(part)
    for paint, opacity in zip(paints, (inside - core, _OPACITY * core), strict=True):
        picture.paste(
            tuple(round(float(value)) for value in paint), mask=Image.fromarray(np.uint8(255 * opacity + 0.5))
        )
    picture.paste(_WHITE, mask=letters)
    part[:] = np.asarray(picture)


def _dark(colour: np.ndarray) -> np.ndarray:
    """The colour, darkened until white has enough contrast on it where a white photograph shines through."""
    for share in np.arange(1.0, 0.0, -0.1):
        if contrast(_WHITE, colour * share * _OPACITY + 255 * (1 - _OPACITY)) >= _CONTRAST:
            return colour * share
    return colour * 0.0


def _depth_in_rounded_box(height: int, width: int, radius: float) -> np.ndarray:
    """How far inside a box with round corners each pixel's centre lies, (height, width) float32; negative outside."""
    x, y = (np.arange(side, dtype=np.float32) + 0.5 for side in (width, height))
    depth = np.minimum(np.minimum(x, x[::-1])[None], np.minimum(y, y[::-1])[:, None])
    n = min(math.ceil(radius), height // 2, width // 2)
    corner = radius - np.hypot(radius - x[:n][None], radius - y[:n][:, None])  # (n, n)
    for rows, columns in ((1, 1), (1, -1), (-1, 1), (-1, -1)):
        depth[::rows, ::columns][:n, :n] = corner
    return depth


def _draw_leader(canvas: np.ndarray, start: Point, end: Point, colour: np.ndarray, size: float) -> None:
    """A line in the mask's colour with a dark edge, and a dot on the mask."""
    thin, dot = max(2, round(size / 9)), max(2.5, size / 5)
    margin = int(2 * dot + thin) + 2
    corners = np.array([start, end])
    x0, y0 = np.maximum(np.floor(corners.min(axis=0)).astype(int) - margin, 0)
    x1, y1 = np.ceil(corners.max(axis=0)).astype(int) + margin
    part = canvas[y0:y1, x0:x1]
    drawn = part.copy()  # OpenCV wants whole rows
    a, b = (np.round((corners - [x0, y0]) * 2**_SHIFT).astype(int)).tolist()
    bright = [int(value) for value in 255 - (255 - colour.astype(int)) * 0.6]
    for extra, paint in ((1, (0, 0, 0)), (0, bright)):
        cv2.line(drawn, a, b, paint, thin + 2 * extra, cv2.LINE_AA, _SHIFT)
        cv2.circle(drawn, b, round((dot + extra) * 2**_SHIFT), paint, cv2.FILLED, cv2.LINE_AA, _SHIFT)
    part[:] = drawn
