"""Fonts: what their character maps say, compared with hand-made maps and with what FreeType draws."""

import io
import os
import struct

import numpy as np
import pytest
from PIL import ImageFont

from anysam.outputs import fonts
from anysam.outputs.fonts import find_fonts, has_characters, split_runs
from font_files import cmap, collection, font, format_4, format_12


def has(data: bytes, text: str, index: int = 0) -> str:
    codes = np.array([ord(char) for char in text], dtype=np.int64)
    return "".join(
        char for char, found in zip(text, has_characters(io.BytesIO(data), codes, index), strict=True) if found
    )


def test_segments_have_what_lies_in_them_and_not_what_lies_between():
    data = font(cmap((3, 1, format_4([(0x41, 0x43, 1), (0x61, 0x61, 4)]))), glyphs=5)
    assert has(data, "@ABCDab") == "ABCa"


def test_a_segment_with_a_list_of_glyphs_has_no_character_whose_glyph_is_0():
    # Three characters A B C in a list behind the segments: glyphs 1, 0 and 2; the offset counts from its own place.
    words = [4, 16 + 16 + 6, 0, 4, 0, 0, 0, 0x43, 0xFFFF, 0, 0x41, 0xFFFF, 0, 1, 4, 0, 1, 0, 2]
    data = font(cmap((3, 1, struct.pack(f">{len(words)}H", *words))), glyphs=3)
    assert has(data, "ABCD") == "AC"


def test_groups_reach_beyond_the_first_plane_and_are_preferred_to_segments():
    maps = cmap((3, 1, format_4([(0x41, 0x42, 1)])), (3, 10, format_12([(0x41, 0x41, 1), (0x20000, 0x20001, 2)])))
    assert has(font(maps, glyphs=4), "AB\U00020000\U00020001\U00020002") == "A\U00020000\U00020001"


def test_a_glyph_number_that_the_font_does_not_reach_is_no_glyph():
    data = font(cmap((3, 10, format_12([(0x41, 0x44, 0)]))), glyphs=3)
    assert has(data, "ABCD") == "BC"  # A is glyph 0, D would be the fourth


def test_maps_that_are_not_of_unicode_count_for_nothing():
    with pytest.raises(ValueError, match="not 4 or 12"):
        has(font(cmap((3, 0, format_4([(0x41, 0x42, 1)])))), "A")


def test_each_face_of_a_collection_has_its_own_characters():
    data = collection("ab", "cd")
    assert (has(data, "abcd", 0), has(data, "abcd", 1)) == ("ab", "cd")
    with pytest.raises(ValueError, match="face 2 of a collection that has 2"):
        has(data, "abcd", 2)


def drawn_by_freetype(data: bytes, codes: list[int], index: int = 0) -> np.ndarray:
    """Whether a character does not look like one that no font has."""
    face = ImageFont.truetype(io.BytesIO(data), 40, index, layout_engine=ImageFont.Layout.BASIC)

    def look(code: int) -> tuple:
        mask = face.getmask(chr(code))
        return mask.size, bytes(mask), face.getlength(chr(code))

    nothing = look(0xFFFE)
    return np.array([look(code) != nothing for code in codes])


CODES = [*range(0x20, 0x250), *range(0x370, 0x600), *range(0x2000, 0x2100), 0x4E00, 0x7EA2, 0xAC00, 0xFB01, 0x1F600]


def test_the_font_inside_pillow_has_the_characters_that_freetype_draws():
    data = ImageFont.load_default(10).path.getvalue()
    expected = drawn_by_freetype(data, CODES)
    np.testing.assert_array_equal(has_characters(io.BytesIO(data), np.array(CODES)), expected)
    assert 90 < expected.sum() < len(CODES) / 2


def test_fonts_made_by_hand_have_the_characters_that_freetype_draws():
    segments = cmap((3, 1, format_4([(0x41, 0x5A, 1), (0x3B1, 0x3C9, 7), (0x4E00, 0x4E00, 3)])))
    groups = cmap((0, 4, format_12([(0x41, 0x42, 1), (0x7EA2, 0x7EA2, 2), (0x1F600, 0x1F601, 3)])))
    for data in (font(segments, glyphs=40), font(groups, glyphs=5), font("Zα红")):
        np.testing.assert_array_equal(has_characters(io.BytesIO(data), np.array(CODES)), drawn_by_freetype(data, CODES))


def test_fonts_of_this_machine_have_the_characters_that_freetype_draws():
    """Where there are any: the fonts above are on every machine."""
    for path in list(fonts._font_files(fonts._FOLDERS))[:4]:
        data = path.read_bytes()
        codes = CODES[::3]
        try:
            found = has_characters(io.BytesIO(data), np.array(codes))
        except ValueError:
            continue
        # A font may give a character the picture of .notdef, but draws nothing that its map lacks.
        expected = drawn_by_freetype(data, codes)
        assert not (expected & ~found).any() and (found & ~expected).sum() <= 3, path


def test_damaged_fonts_are_refused_or_read_but_never_crash():
    whole = collection("ab红", "cd")
    for length in range(len(whole)):
        with pytest.raises(ValueError):
            has(whole[:length], "ab", 1)
    random = np.random.default_rng(0)
    refused = 0
    for _ in range(1500):
        broken = bytearray(whole)
        for place in random.integers(0, len(whole), 3):
            broken[place] = random.choice([0, 1, 0x7F, 0xFF, random.integers(256)])
        try:
            has(bytes(broken), "ab红\U0010ffff", int(random.integers(3)))
        except ValueError:
            refused += 1
    assert 0 < refused < 1500


def test_counts_that_exceed_the_table_are_refused():
    groups = format_12([(0x41, 0x41, 1)])
    with pytest.raises(ValueError, match="4294967295 groups"):
        has(font(cmap((3, 10, groups[:12] + b"\xff" * 4 + groups[16:]))), "A")
    segments = format_4([(0x41, 0x41, 1)])
    with pytest.raises(ValueError, match="32767 segments"):
        has(font(cmap((3, 1, segments[:6] + b"\xff" * 2 + segments[8:]))), "A")


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "deep" / "er" / "cjk.ttc").write_bytes(collection("x", "红色汽车"))
    (tmp_path / "accents.ttf").write_bytes(font("éêa"))
    (tmp_path / "a-damaged.ttf").write_bytes(font("éêa红色汽车")[:300])
    (tmp_path / "a-text.otf").write_text("no font")
    (tmp_path / "notes.txt").write_bytes(font("éêa红色汽车"))
    return tmp_path


def paths(found: list[fonts.Font]) -> list[tuple[str | None, int]]:
    return [(each.path and each.path.name, each.index) for each in found]


def test_no_folder_is_looked_into_for_plain_letters(monkeypatch):
    monkeypatch.setattr(os, "walk", lambda *_, **__: pytest.fail("looked into a folder"))
    assert paths(find_fonts(["dog 87 %", "traffic-light…"])) == [(None, 0)]


def test_fonts_are_found_in_folders_and_collections_and_others_are_passed_over(folder):
    found = find_fonts(["dog", "é", "红色"], [folder, folder / "absent"])
    assert paths(found) == [(None, 0), ("accents.ttf", 0), ("cjk.ttc", 1)]
    assert found[2].characters == {"红", "色"}
    assert found[2].at(30).getlength("红") == pytest.approx(24)  # 800 of 1000 units wide: it is that face


def test_characters_that_no_font_has_are_in_none(folder):
    found = find_fonts(["ก红"], [folder])
    assert set().union(*(each.characters for each in found)) == {"红"}


def test_fonts_that_cannot_be_drawn_with_are_passed_over(tmp_path):
    (tmp_path / "a-pictures.ttf").write_bytes(font("红", extra={b"CBDT": b"1234", b"glyf": b""}))
    (tmp_path / "b-colours.ttf").write_bytes(font("红", extra={b"COLR": b"1234"}))
    (tmp_path / "c-headless.ttf").write_bytes(font("红", extra={b"head": b""}))  # its map is whole; FreeType refuses it
    assert paths(find_fonts(["红"], [tmp_path])) == [(None, 0)]
    (tmp_path / "d-good.ttf").write_bytes(font("红"))
    assert paths(find_fonts(["红"], [tmp_path])) == [(None, 0), ("d-good.ttf", 0)]


def test_well_known_fonts_and_upright_ones_come_first_and_placeholders_never(tmp_path):
    names = ["Aaa-Bold.ttf", "Aaa.ttf", "NotoSansCJK-Regular.ttc", "DejaVuSans.ttf", "LastResort.otf", "msyh.ttc"]
    for name in names:
        (tmp_path / name).write_bytes(font("红"))
    order = [path.name for path in fonts._font_files([tmp_path])]
    assert order == ["DejaVuSans.ttf", "NotoSansCJK-Regular.ttc", "msyh.ttc", "Aaa.ttf", "Aaa-Bold.ttf"]


def test_a_bounded_number_of_fonts_is_opened(tmp_path, monkeypatch):
    for i in range(6):
        (tmp_path / f"{i}.ttf").write_bytes(font("红" if i == 5 else "x"))
    assert len(find_fonts(["红"], [tmp_path])) == 2
    monkeypatch.setattr(fonts, "_MAX_FONTS", 5)
    assert len(find_fonts(["红"], [tmp_path])) == 1
    monkeypatch.setattr(fonts, "_MAX_ENTRIES", 3)
    assert list(fonts._font_files([tmp_path])) == []


def test_a_text_is_in_one_font_if_one_has_it_all_and_else_in_as_few_runs_as_it_takes(folder):
    found = find_fonts(["a é", "红色"], [folder])
    own, accents, cjk = found
    assert split_runs("aé", found) == [(accents, "aé")]  # although the first has a
    assert split_runs("a 红 é", found) == [(own, "a "), (cjk, "红"), (own, " "), (accents, "é")]
    assert split_runs("aก红", found) == [(own, "aก"), (cjk, "红")]  # the first draws a box for what none has
    assert split_runs("a\u200d", found) == [(own, "a")]
