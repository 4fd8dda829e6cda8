"""Words on overlays: that they can be read, that they harm nothing else, and what is said of those left out."""

import dataclasses

import numpy as np
import pytest
from PIL import Image, features

from anysam.outputs import Loss, draw_overlay, fonts, label_drawing, pictures
from anysam.outputs.label_drawing import contrast
from anysam.outputs.pictures import write_overlay_png
from anysam.results import MaskRecord
from font_files import font

SIZE = (240, 320)  # H, W
WHITE = (255, 255, 255)


@pytest.fixture(autouse=True)
def no_fonts(monkeypatch):
    """The font inside Pillow alone, so that a machine with fonts gives the same pictures as one without."""
    monkeypatch.setattr(fonts, "_FOLDERS", ())


def record(box: tuple[int, int, int, int] = (60, 60, 260, 180), size=SIZE, **words) -> MaskRecord:
    mask = np.zeros(size, dtype=bool)
    mask[box[1] : box[3], box[0] : box[2]] = True
    return dataclasses.replace(MaskRecord.from_mask(mask, 0.9), **words)


def photograph(kind: str, size=SIZE) -> np.ndarray:
    if kind == "noise":
        return np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    return np.full((*size, 3), {"white": 255, "black": 0, "grey": 128}[kind], dtype=np.uint8)


def drawn(image: np.ndarray, records: list[MaskRecord]) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """The overlay, where (H, W) bool words changed it, and what was said."""
    losses: list[Loss] = []
    overlay = draw_overlay(image, records, losses=losses)
    bare = draw_overlay(image, [dataclasses.replace(each, label=None, caption=None) for each in records])
    return overlay, (overlay != bare).any(axis=2), [str(loss) for loss in losses]


def around(changed: np.ndarray) -> tuple[int, int, int, int]:
    rows, columns = np.flatnonzero(changed.any(axis=1)), np.flatnonzero(changed.any(axis=0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def test_contrast_is_that_of_wcag():
    assert contrast(WHITE, (0, 0, 0)) == pytest.approx(21)
    assert contrast((10, 20, 30), (10, 20, 30)) == 1
    # Two greys that are often named as the last one that passes on white and the first one that does not.
    assert contrast((0x76, 0x76, 0x76), WHITE) == pytest.approx(4.54, abs=0.005)
    assert contrast(WHITE, (0x77, 0x77, 0x77)) == pytest.approx(4.48, abs=0.005)


@pytest.mark.parametrize("kind", ["white", "black", "grey", "noise"])
def test_text_stands_out_from_its_box_on_every_photograph_and_in_every_colour(kind):
    records = [record((30 * i, 40, 30 * i + 28, 160), label="ill") for i in range(len(pictures._COLOURS))]
    for i, each in enumerate(records):
        records[i] = record((30, 60, 290, 180), label="HIM 99", label_score=0.5)
        one = [dataclasses.replace(each, label=None)] * i + [records[i]]  # the colours are taken in turn
        overlay, changed, _ = drawn(photograph(kind), one)
        x0, y0, x1, y1 = around(changed)
        inside = overlay[y0 + 3 : y1 - 3, x0 + 3 : x1 - 3].reshape(-1, 3).astype(int)
        brightest = inside[inside.sum(axis=1).argmax()]
        text = inside.min(axis=1) > 225
        box = inside[~text & (inside.max(axis=1) < 160)]
        assert brightest.min() > 235
        assert 0.03 < text.mean() < 0.5 and len(box) > 0.4 * len(inside)
        lightest = np.percentile(box, 75, axis=0)
        assert contrast(brightest, lightest) >= 4.5, (kind, i)


def test_every_colour_is_darkened_until_white_can_be_read_on_it():
    for colour in [*pictures._COLOURS, WHITE, (255, 255, 0), (0, 0, 0)]:
        dark = label_drawing._dark(np.array(colour, dtype=np.uint8))
        shown = dark * label_drawing._OPACITY + 255 * (1 - label_drawing._OPACITY)  # on a white photograph
        assert contrast(WHITE, shown) >= 7
        assert (dark <= colour).all()


def test_records_without_words_look_as_ever(monkeypatch):
    image = photograph("noise")
    records = [record(), record((10, 10, 30, 30))]
    plain = draw_overlay(image, records)
    nothing = draw_overlay(image, [dataclasses.replace(each, label="", caption=" \n") for each in records])
    np.testing.assert_array_equal(nothing, plain)
    monkeypatch.setattr(label_drawing, "find_fonts", lambda *_: pytest.fail("looked for fonts"))
    np.testing.assert_array_equal(draw_overlay(image, records), plain)


def test_a_label_lies_in_its_mask_and_changes_nothing_beside_its_box():
    overlay, changed, said = drawn(photograph("noise"), [record(label="dog", label_score=0.873)])
    x0, y0, x1, y1 = around(changed)
    assert 60 < x0 < x1 < 260 and 60 < y0 < y1 < 180
    assert (x1 - x0) * (y1 - y0) < 0.1 * 200 * 120
    assert said == []


def test_the_score_is_drawn_in_percent():
    image = photograph("grey")
    label, scored, same, other = (
        draw_overlay(image, [record(label=text, label_score=score)])
        for text, score in (("dog", None), ("dog", 0.873), ("dog 87 %", None), ("dog", 0.88))
    )
    np.testing.assert_array_equal(scored, same)
    assert (scored != label).any() and (scored != other).any()
    nan = draw_overlay(image, [record(label="dog", label_score=float("nan"))])
    np.testing.assert_array_equal(nan, label)


def test_long_labels_end_in_an_ellipsis_behind_a_word_and_keep_their_score():
    image = photograph("grey", (400, 700))
    words = "a rather long name of a thing that nobody can call by another name"
    long = draw_overlay(image, [record((50, 50, 650, 350), (400, 700), label=words, label_score=0.5)])
    texts = [f"{words[:i]}… 50 %" for i in range(len(words)) if words[i] == " "]
    same = [
        np.array_equal(long, draw_overlay(image, [record((50, 50, 650, 350), (400, 700), label=text)]))
        for text in texts
    ]
    assert sum(same) == 1 and 3 <= same.index(True) <= 6


def test_a_word_without_an_end_is_cut_where_it_must_be():
    _, changed, said = drawn(photograph("grey"), [record(label="x" * 100_000, caption="y" * 100_000)])
    x0, _, x1, _ = around(changed)
    assert 60 < x1 - x0 <= SIZE[1] and said == []


def test_a_caption_has_at_most_two_lines_under_its_label():
    image = photograph("grey", (400, 700))

    def height(**words) -> int:
        _, changed, said = drawn(image, [record((50, 50, 650, 350), (400, 700), label="dog", **words)])
        assert said == []
        _, y0, _, y1 = around(changed)
        return y1 - y0

    heights = [height(caption=text) for text in (None, "a dog", "a dog " * 12, "a dog " * 50)]
    assert heights[0] < heights[1] < heights[2] == heights[3]
    assert heights[3] - heights[1] < heights[0]  # its letters are smaller


def test_a_caption_alone_is_drawn():
    _, changed, said = drawn(photograph("grey"), [record(caption="a dog on a bench")])
    assert changed.any() and said == []


@pytest.mark.parametrize("scale", [2, 3])
def test_letters_are_as_large_to_the_eye_on_larger_images(scale):
    height, width = 480, 960
    heights = []
    for each in (1, scale):
        size = (height * each, width * each)
        box = (100 * each, 100 * each, 800 * each, 400 * each)
        _, changed, _ = drawn(photograph("grey", size), [record(box, size, label="dog")])
        _, y0, _, y1 = around(changed)
        heights.append(y1 - y0)
    assert heights[1] / heights[0] == pytest.approx(scale, rel=0.1)
    assert 15 < heights[0] < 50


def grid(count: int, size=SIZE, **words) -> list[MaskRecord]:
    random = np.random.default_rng(3)
    places = [(int(random.integers(size[1] - 12)), int(random.integers(size[0] - 12))) for _ in range(count)]
    return [record((x, y, x + 5 + i % 7, y + 5 + i % 7), size, **words) for i, (x, y) in enumerate(places)]


def test_what_finds_no_room_is_said_and_captions_are_the_first_to_go():
    *_, said = drawn(photograph("grey"), grid(12, label="dog", caption="a dog on a bench"))
    assert len(said) == 1
    assert said[0].startswith("overlay cannot hold captions for which there is no room: ")
    *_, said = drawn(photograph("grey"), grid(150, label="dog", caption="a dog on a bench"))
    lost = dict(line.removeprefix("overlay cannot hold ").rsplit(": ") for line in said)
    assert lost["captions for which there is no room"] == "150 lost"
    assert 20 < int(lost["labels for which there is no room"].split()[0]) < 140


def test_labels_of_the_largest_masks_stay():
    records = [*grid(150, label="dog"), record((100, 80, 220, 160), label="large")]
    alone, changed, _ = drawn(photograph("grey"), [record((100, 80, 220, 160), label="large")])
    x0, y0, x1, y1 = around(changed)
    *_, said = drawn(photograph("grey"), records)
    assert "labels for which there is no room" in said[0]
    places = []
    original = label_drawing.place_boxes

    def spied(on_top, wishes, *rest):
        places.extend(zip(wishes, original(on_top, wishes, *rest), strict=True))
        return [place for _, place in places]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(label_drawing, "place_boxes", spied)
        draw_overlay(photograph("grey"), records)
    assert places[0][0].number == 151 and places[0][1] is not None
    areas = [wish.box[2] - wish.box[0] for wish, _ in places]
    assert areas == sorted(areas, reverse=True)


def test_what_is_lost_is_appended_by_whoever_writes_the_file(tmp_path):
    losses = [Loss("png", "something else", 1)]
    records = grid(150, label="dog")
    write_overlay_png(tmp_path / "a.png", photograph("grey"), records, losses=losses)
    assert [loss.what for loss in losses] == ["something else", "labels for which there is no room"]
    picture = np.asarray(Image.open(tmp_path / "a.png"))
    np.testing.assert_array_equal(picture, draw_overlay(photograph("grey"), records))


def test_characters_that_no_font_has_are_said_once_and_drawn_as_boxes():
    words = ["红色汽车", "日本", "dog"]
    boxes = [(10, 10, 110, 110), (120, 10, 220, 110), (10, 120, 110, 220)]
    records = [record(box, label=text) for box, text in zip(boxes, words, strict=True)]
    overlay, changed, said = drawn(photograph("grey"), records)
    assert said == [
        "overlay cannot hold texts in characters that no font on this machine has, such as '红色汽车' (install for "
        "example fonts-noto-cjk): 2 lost"
    ]
    assert all(changed[y0:y1, x0:x1].any() for x0, y0, x1, y1 in boxes)


def test_a_caption_that_would_be_boxes_is_left_out_and_letters_lose_only_their_accents():
    image = photograph("grey")
    overlay, _, said = drawn(image, [record(label="café", caption="红色汽车")])
    np.testing.assert_array_equal(overlay, draw_overlay(image, [record(label="cafe")]))
    assert len(said) == 1 and said[0].endswith("(install for example fonts-noto-cjk): 2 lost") and "'café'" in said[0]


def test_a_font_of_this_machine_is_found_and_drawn_with(tmp_path, monkeypatch):
    image = photograph("grey")
    without, _, _ = drawn(image, [record(label="红色")])
    (tmp_path / "squares.ttf").write_bytes(font("红色汽车"))
    monkeypatch.setattr(fonts, "_FOLDERS", (str(tmp_path),))
    overlay, changed, said = drawn(image, [record(label="红色", label_score=0.5)])
    assert said == [] and (overlay != without).any()
    x0, y0, x1, y1 = around(changed)
    white = (overlay[y0:y1, x0:x1] > 225).all(axis=2)
    runs = np.diff(np.flatnonzero(np.diff(np.pad(white[(y1 - y0) // 2].astype(int), 1))))[::2]
    assert (runs >= 6).sum() == 2  # two squares, side by side


@pytest.mark.parametrize(
    "text",
    [
        "two\nlines\tand\x00controls\x1b[31m",
        "\u202eright to left\u2066",
        "lone \ud800 surrogate",
        "private \ue000 use",
        "\U0001f436 dog",
        "\U0001f436",
        "a\u0301\u0301\u0301\u0301\u0301",
        "zero\u200bwidth\u200djoiner",
        "\u05e9\u05dc\u05d5\u05dd",
        "नमस्ते",
        "".join(map(chr, range(0x20, 0x2000, 37))),
        "\U0010ffff\ufffe",
    ],
)
def test_strange_labels_are_drawn_without_a_crash(text):
    _, changed, said = drawn(photograph("grey"), [record(label=text, caption=text, label_score=1.0)])
    assert changed.any()
    assert all(line.isprintable() for line in said)


def test_marks_of_control_and_emoji_beside_letters_are_not_drawn():
    image = photograph("grey")
    plain = draw_overlay(image, [record(label="a dog")])
    for text in ("a\ndog", " a\x00 \u200b dog ", "\U0001f436 a dog", "\u202ea dog", "a dog\ud800"):
        np.testing.assert_array_equal(draw_overlay(image, [record(label=text)]), plain)


@pytest.mark.parametrize("size", [(1, 1), (1, 400), (400, 1), (12, 12), (16, 2000), (3, 5)])
def test_the_smallest_and_the_longest_images_are_drawn(size):
    overlay, changed, said = drawn(
        photograph("grey", size), [record((0, 0, *size[::-1]), size, label="dog", caption="c")]
    )
    assert overlay.shape == (*size, 3)
    assert changed.any() or "overlay cannot hold labels for which there is no room: 1 lost" in said


def test_the_label_of_a_mask_without_a_pixel_finds_no_room():
    _, changed, said = drawn(photograph("grey"), [record((5, 5, 5, 5), label="nothing"), record(label="dog")])
    assert changed.any()
    assert said == ["overlay cannot hold labels for which there is no room: 1 lost"]


def test_a_label_that_is_away_from_its_mask_has_a_line_to_it():
    """Rows of small masks: those in the middle have no room beside them."""
    records = [record((x, y, x + 8, y + 8), label="something") for x in range(130, 180, 12) for y in range(90, 140, 12)]
    led = []
    original = label_drawing._draw_leader

    def spied(canvas, start, end, *rest):
        before = canvas.copy()
        original(canvas, start, end, *rest)
        led.append((np.array([start, end]), (canvas != before).any(axis=2)))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(label_drawing, "_draw_leader", spied)
        drawn(photograph("grey"), records)
    assert len(led) >= 5
    masks = np.any([each.to_mask() for each in records], axis=0)
    for (start, end), changed in led:
        assert masks[int(end[1]), int(end[0])]
        along = start + np.linspace(0, 1, 50)[:, None] * (end - start)  # (50, 2)
        assert changed[tuple(np.clip(along.astype(int).T[::-1], 0, [[239], [319]]))].all()
        ys, xs = np.nonzero(changed)
        way = (end - start) / np.hypot(*(end - start))
        beside = np.abs((xs - start[0]) * way[1] - (ys - start[1]) * way[0])
        assert beside.max() < 8


def test_lines_reach_over_the_rim_of_the_image_without_a_crash():
    canvas = photograph("grey")
    for start, end in (((0.0, 0.0), (319.9, 239.9)), ((320.0, 240.0), (310.0, 0.0)), ((5.0, 5.0), (5.0, 5.0))):
        label_drawing._draw_leader(canvas, start, end, np.array([0, 132, 255], dtype=np.uint8), 30.0)
    assert (canvas != 128).any()


def test_joiners_are_not_drawn_without_shaping(monkeypatch):
    monkeypatch.setattr(features, "check", lambda name: name != "raqm")
    image = photograph("grey")
    plain = draw_overlay(image, [record(label="ab\u03b1")])
    np.testing.assert_array_equal(draw_overlay(image, [record(label="a\u200db\u03b1\u200c")]), plain)


def test_a_pillow_without_freetype_draws_no_labels_and_says_so(monkeypatch):
    monkeypatch.setattr(features, "check", lambda name: False)
    _, changed, said = drawn(photograph("grey"), [record(label="dog")])
    assert not changed.any()
    assert said == ["overlay cannot hold labels without FreeType, which this build of Pillow lacks: 1 lost"]


def test_round_boxes_are_as_deep_as_their_distance_from_the_rim():
    height, width, radius = 23, 41, 7.0
    depth = label_drawing._depth_in_rounded_box(height, width, radius)
    for y in range(height):
        for x in range(width):
            cx, cy = np.clip(x + 0.5, radius, width - radius), np.clip(y + 0.5, radius, height - radius)
            in_corner = cx != x + 0.5 and cy != y + 0.5
            rim = min(x + 0.5, y + 0.5, width - x - 0.5, height - y - 0.5)
            expected = radius - np.hypot(x + 0.5 - cx, y + 0.5 - cy) if in_corner else rim
            assert depth[y, x] == pytest.approx(expected, abs=1e-4)
