"""Masks without overlap: cases drawn by hand, and properties against a second implementation on plain arrays."""

import cv2
import numpy as np
import pytest

from anysam.automatic import panoptic
from anysam.automatic.panoptic import disjoin
from anysam.errors import OptionError
from anysam.masks import encode_rle, mask_to_box
from anysam.results import MaskRecord


def drawing(text: str) -> dict[str, np.ndarray]:
    """Masks by letter, from rows of letters."""
    letters = np.array([list(line.strip()) for line in text.strip().splitlines()])
    return {letter: letters == letter for letter in np.unique(letters) if letter != "."}


def record(mask: np.ndarray, score: float = 0.9, label: str | None = None) -> MaskRecord:
    return MaskRecord.from_mask(np.asarray(mask, dtype=np.bool_), score, label=label)


def shown(records: list[MaskRecord]) -> str:
    """The drawing of records whose labels are letters."""
    letters = np.full(records[0].size, ".")
    for each in records:
        assert (letters[each.to_mask()] == ".").all(), "masks overlap"
        letters[each.to_mask()] = each.label
    return "\n".join("".join(line) for line in letters)


def lines(text: str) -> str:
    return "\n".join(line.strip() for line in text.strip().splitlines())


def rectangle(size: tuple[int, int], x0: int, y0: int, x1: int, y1: int) -> np.ndarray:
    mask = np.zeros(size, dtype=np.bool_)
    mask[y0:y1, x0:x1] = True
    return mask


def blobs(seed: int, count: int, size: tuple[int, int], grain: int) -> list[np.ndarray]:
    """Random masks with islands, holes and ragged borders; the larger the grain, the smoother."""
    generator = np.random.default_rng(seed)
    masks = []
    for _ in range(count):
        field = cv2.GaussianBlur(generator.normal(size=size), (0, 0), grain)
        centre, spread = generator.uniform(0, 1, 2) * size, generator.uniform(0.05, 0.5) * max(size)
        y, x = np.mgrid[: size[0], : size[1]]
        far = np.hypot(y - centre[0], x - centre[1]) / spread
        masks.append(field / field.std() > 2 * far - 1)
    return [mask for mask in masks if mask.any()]


def regions(mask: np.ndarray) -> list[np.ndarray]:
    """Its parts that touch by sides or corners."""
    count, labels = cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)
    return [labels == i for i in range(1, count)]


def disjoin_by_definition(masks: list[np.ndarray], limit: int) -> np.ndarray:
    """The label map (H, W), 1 for the first: one mask, one region, one pixel after the other."""
    labels = np.zeros(masks[0].shape, dtype=np.int64)
    for i in sorted(range(len(masks)), key=lambda i: np.count_nonzero(masks[i])):
        for region in regions(masks[i] & (labels == 0)):
            if np.count_nonzero(region) >= limit:
                labels[region] = i + 1
    filled = labels.copy()
    for hole in regions(labels == 0):
        if np.count_nonzero(hole) >= limit:
            continue
        sides: dict[int, int] = {}
        for y, x in np.argwhere(hole).tolist():
            for beside in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)):
                if 0 <= beside[0] < labels.shape[0] and 0 <= beside[1] < labels.shape[1] and labels[beside]:
                    sides[int(labels[beside])] = sides.get(int(labels[beside]), 0) + 1
        if sides:
            filled[hole] = min(sides, key=lambda label: (-sides[label], label))
    return filled


def test_what_lies_inside_stays_visible_whatever_the_order_and_the_scores() -> None:
    size = (4, 6)
    table, plate, pea = rectangle(size, 0, 0, 6, 4), rectangle(size, 1, 1, 5, 3), rectangle(size, 2, 1, 3, 2)
    records = [record(table, 0.99, "t"), record(pea, 0.5, "o"), record(plate, 0.7, "p")]
    expected = lines("""
        tttttt
        tpoppt
        tppppt
        tttttt""")
    for order in ([0, 1, 2], [2, 1, 0], [1, 0, 2]):
        found = disjoin([records[i] for i in order])
        assert shown(found) == expected
        assert [each.label for each in found] == [records[i].label for i in order]


def test_records_say_their_new_area_and_box_and_keep_the_rest() -> None:
    size = (3, 5)
    under = MaskRecord.from_mask(rectangle(size, 0, 0, 4, 3), 0.8, label="under")
    over = MaskRecord.from_mask(rectangle(size, 2, 0, 5, 3), 0.6)
    left, right = disjoin([under, over])
    assert right is over  # the smaller, untouched
    assert (left.area, left.box, left.predicted_iou, left.label) == (6, (0, 0, 2, 3), 0.8, "under")
    assert left.segmentation == encode_rle(rectangle(size, 0, 0, 2, 3))


def test_of_equal_areas_the_more_certain_is_on_top_then_the_first() -> None:
    size = (1, 4)
    left, right = rectangle(size, 0, 0, 3, 1), rectangle(size, 1, 0, 4, 1)
    assert shown(disjoin([record(left, 0.6, "a"), record(right, 0.9, "b")])) == "abbb"
    assert shown(disjoin([record(left, 0.9, "a"), record(right, 0.9, "b")])) == "aaab"


def test_a_mask_that_is_hidden_or_hardly_visible_is_gone() -> None:
    size = (1, 6)
    whole, halves = rectangle(size, 0, 0, 6, 1), [rectangle(size, 0, 0, 3, 1), rectangle(size, 3, 0, 6, 1)]
    found = disjoin([record(mask, 0.9, name) for mask, name in zip([whole, *halves], "wab", strict=True)])
    assert shown(found) == "aaabbb" and len(found) == 2
    most = record(rectangle(size, 0, 0, 5, 1), 0.9, "m")
    beneath = [record(whole, 0.9, "w"), most, record(halves[0], 0.9, "a")]
    assert shown(disjoin(beneath, min_area=1)) == "aaammw"
    assert shown(disjoin(beneath, min_area=3)) == "aaawww"  # a gap would not be what the pixels are


def test_islands_fall_to_the_mask_beneath_or_are_removed() -> None:
    masks = drawing("""
        bbbbb...
        baabb.a.
        baabb...
        bbbba...""")
    beneath = masks["b"] | masks["a"]
    beneath[1, 6] = False
    found = disjoin([record(masks["a"], 0.9, "a"), record(beneath, 0.9, "b")], 3)
    assert shown(found) == lines("""
        bbbbb...
        baabb...
        baabb...
        bbbbb...""")


def test_parts_that_touch_by_a_corner_are_one() -> None:
    masks = drawing("""
        a..
        .a.
        ..a""")
    assert shown(disjoin([record(masks["a"], 0.9, "a")], 3)) == "a..\n.a.\n..a"
    assert disjoin([record(masks["a"])], 4) == []


def test_holes_go_to_the_neighbour_with_the_longest_border() -> None:
    masks = drawing("""
        aaabbb
        a.a.bb
        aaa.bb
        aaabbb""")
    found = disjoin([record(masks[name], 0.9, name) for name in "ab"], 3)
    assert shown(found) == lines("""
        aaabbb
        aaabbb
        aaabbb
        aaabbb""")
    # The two cells of the gap touch b on the right twice and above and below once each, a on the left twice.
    assert [each.area for each in found] == [12, 12]
    assert found[1].box == (3, 0, 6, 4)


def test_columns_do_not_run_into_one_another() -> None:
    mask = np.zeros((3, 2), dtype=np.bool_)
    mask[2, 0] = mask[0, 1] = True  # neighbours in memory, column by column, not in the image
    assert disjoin([record(mask)], 2) == []
    holes = ~mask
    assert shown(disjoin([record(holes, 0.9, "a")], 2)) == "aa\naa\naa"


def test_the_end_of_the_next_column_is_no_neighbour() -> None:
    masks = drawing("""
        aa.
        aab
        bbb""")
    records = [record(masks[name], 0.9, name) for name in "ab"]
    assert shown(disjoin(records, 2)) == "aaa\naab\nbbb"  # a side each, so the first; b below a is none of them
    turned = [record(masks[name][::-1, ::-1], 0.9, name) for name in "ab"]
    assert shown(disjoin(turned, 2)) == "bbb\nbaa\naaa"


def test_nothing_gives_nothing_and_empty_masks_go() -> None:
    assert disjoin([]) == []
    empty = record(np.zeros((2, 3), dtype=np.bool_))
    assert disjoin([empty], 5) == []
    full = record(np.ones((2, 3), dtype=np.bool_))
    assert disjoin([full, empty]) == [full]
    assert disjoin([full], 7) == []  # an image smaller than the limit has no room for a region


def test_masks_of_other_sizes_are_refused() -> None:
    with pytest.raises(OptionError, match=r"different sizes, got \[\(2, 3\), \(3, 2\)\]"):
        disjoin([record(np.ones((2, 3))), record(np.ones((3, 2)))])


@pytest.mark.parametrize("limit", [0, 1, 4, 30])
@pytest.mark.parametrize("seed", range(4))
def test_result_is_the_definition_in_bands_of_any_size(seed: int, limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    masks = blobs(seed, 7, (33, 41), grain=1 + seed)
    expected = disjoin_by_definition(masks, limit)
    assert len(np.unique(expected)) > 3
    for band in (panoptic._BAND, 100):
        monkeypatch.setattr(panoptic, "_BAND", band)
        labels = np.zeros_like(expected)
        for each in disjoin([record(mask, 0.9, str(i + 1)) for i, mask in enumerate(masks)], limit):
            labels[each.to_mask()] = int(each.label)
        np.testing.assert_array_equal(labels, expected)


@pytest.mark.parametrize("seed", range(3))
def test_disjoint_without_specks_and_nothing_else_is_lost(seed: int) -> None:
    limit, masks = 12, blobs(10 + seed, 20, (90, 120), grain=2)
    found = disjoin([record(mask) for mask in masks], limit)
    taken = np.stack([each.to_mask() for each in found])
    assert taken.sum(axis=0).max() == 1
    for region in [region for mask in [*taken, ~taken.any(axis=0)] for region in regions(mask)]:
        assert np.count_nonzero(region) >= limit
    lost = np.any(masks, axis=0) & ~taken.any(axis=0)
    assert np.count_nonzero(lost) < 0.05 * lost.size
    for region in regions(lost):  # only what was a speck of every mask that had it
        for mask in masks:
            assert all(np.count_nonzero(part) < limit for part in regions(mask & region))
    for each, mask in zip(found, taken, strict=True):
        assert each.area == np.count_nonzero(mask) and each.box == tuple(mask_to_box(mask))
