"""Places of text boxes, on random layouts, checked pair by pair and pixel by pixel."""

import itertools

import numpy as np
import pytest

from anysam.outputs.label_boxes import Place, Wish, place_boxes

GAP = 3


def layout(count: int, height: int, width: int, seed: int, captions: bool = False) -> tuple[np.ndarray, list[Wish]]:
    """Random discs, the small ones on the large ones, that want boxes of random widths."""
    random = np.random.default_rng(seed)
    on_top = np.zeros((height, width), dtype=np.int32)
    radii = np.sort(np.exp(random.uniform(np.log(3), np.log(min(height, width) / 5), count)))[::-1]
    wishes = []
    for number, radius in enumerate(radii, start=1):
        x, y = random.uniform(0, width), random.uniform(0, height)
        x0, y0 = int(max(x - radius, 0)), int(max(y - radius, 0))
        box = (x0, y0, int(min(x + radius, width - 1)) + 1, int(min(y + radius, height - 1)) + 1)
        rows, columns = np.mgrid[y0 : box[3], x0 : box[2]]
        on_top[y0 : box[3], x0 : box[2]][(columns - x) ** 2 + (rows - y) ** 2 <= radius**2] = number
        size = (18, int(random.integers(30, 110)))
        wishes.append(Wish(number, box, size, (46, 150) if captions else None))
    return on_top, wishes


def check(on_top: np.ndarray, wishes: list[Wish], places: list[Place | None]) -> None:
    """Boxes are of the size asked for, inside the image and apart from all others; leaders end on what is labelled."""
    height, width = on_top.shape
    for wish, place in zip(wishes, places, strict=True):
        if place is None:
            continue
        x0, y0, x1, y1 = place.box
        assert (y1 - y0, x1 - x0) == (wish.full_size if place.full else wish.size)
        assert 0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height
        if place.leader is not None:
            (ax, ay), (bx, by) = place.leader
            assert x0 <= ax <= x1 and y0 <= ay <= y1
            left, top, right, bottom = wish.box
            assert left <= bx <= right and top <= by <= bottom
            if (on_top == wish.number).any():
                assert on_top[int(by), int(bx)] == wish.number
    for one, other in itertools.combinations([place.box for place in places if place is not None], 2):
        # In at least one direction they are apart by the gap.
        assert max(other[0] - one[2], one[0] - other[2], other[1] - one[3], one[1] - other[3]) >= GAP, (one, other)


@pytest.mark.parametrize("count", [1, 10, 60, 300])
@pytest.mark.parametrize("size", [(480, 640), (150, 200), (1200, 90)])
def test_boxes_never_overlap_and_stay_inside_the_image(count, size):
    for seed in range(2):
        on_top, wishes = layout(count, *size, seed, captions=seed == 1)
        check(on_top, wishes, place_boxes(on_top, wishes, GAP))


def test_all_find_a_place_where_there_is_room():
    for seed in range(5):
        on_top, wishes = layout(40, 900, 1200, seed)
        assert None not in place_boxes(on_top, wishes, GAP)


def test_the_same_layout_gives_the_same_places():
    on_top, wishes = layout(80, 300, 400, 0, captions=True)
    assert place_boxes(on_top, wishes, GAP) == place_boxes(on_top.copy(), list(wishes), GAP)


def rectangle(on_top: np.ndarray, number: int, box: tuple[int, int, int, int], size=(20, 80), full=None) -> Wish:
    x0, y0, x1, y1 = box
    on_top[y0:y1, x0:x1] = number
    return Wish(number, box, size, full)


def test_a_box_goes_into_the_middle_of_a_mask_that_holds_it():
    on_top = np.zeros((400, 600), dtype=np.int32)
    wish = rectangle(on_top, 1, (200, 100, 400, 300))
    (place,) = place_boxes(on_top, [wish], GAP)
    x0, y0, x1, y1 = place.box
    assert ((x0 + x1) / 2, (y0 + y1) / 2) == pytest.approx((300, 200), abs=3)
    assert place.leader is None


def test_a_box_goes_above_a_mask_that_is_too_small_for_it_and_below_at_the_top_of_the_image():
    on_top = np.zeros((400, 600), dtype=np.int32)
    wishes = [rectangle(on_top, 1, (290, 200, 310, 220)), rectangle(on_top, 2, (100, 2, 120, 20))]
    above, below = place_boxes(on_top, wishes, GAP)
    assert above.box == (260, 200 - GAP - 20, 340, 200 - GAP)
    assert below.box == (70, 20 + GAP, 150, 40 + GAP)
    assert above.leader is None and below.leader is None


def test_a_box_lies_in_the_part_of_its_mask_that_others_leave_free():
    on_top = np.zeros((400, 600), dtype=np.int32)
    wishes = [rectangle(on_top, 1, (0, 0, 600, 400)), rectangle(on_top, 2, (100, 60, 600, 400))]
    first, second = place_boxes(on_top, wishes, GAP)
    for place, number in ((first, 1), (second, 2)):
        x0, y0, x1, y1 = place.box
        assert (on_top[y0:y1, x0:x1] == number).all()


def test_no_box_covers_a_small_mask_while_there_is_room_beside():
    on_top = np.zeros((400, 600), dtype=np.int32)
    dots = [(250 + 30 * i, 200 + 25 * j, 262 + 30 * i, 212 + 25 * j) for i in range(4) for j in range(3)]
    wishes = [rectangle(on_top, i + 1, dot) for i, dot in enumerate(dots)]
    places = place_boxes(on_top, wishes, GAP)
    check(on_top, wishes, places)
    assert None not in places
    seen = on_top.copy()
    for place in places:
        x0, y0, x1, y1 = place.box
        seen[y0:y1, x0:x1] = 0
    for i in range(len(dots)):
        assert (seen == i + 1).any()
    assert sum(place.leader is not None for place in places) >= 4  # not all have room beside their masks


def test_leaders_cross_no_boxes():
    on_top, wishes = layout(150, 480, 640, 4)
    places = [place for place in place_boxes(on_top, wishes, GAP) if place is not None]
    led = [place for place in places if place.leader is not None]
    assert len(led) > 5
    crossed = 0
    for place in led:
        start, end = np.array(place.leader)
        line = start + np.linspace(0, 1, 400)[:, None] * (end - start)  # (400, 2)
        for other in places:
            x0, y0, x1, y1 = other.box
            inside = (line > [x0 + 1, y0 + 1]).all(axis=1) & (line < [x1 - 1, y1 - 1]).all(axis=1)
            crossed += other is not place and bool(inside.any())
    assert crossed == 0


def test_a_box_keeps_off_what_would_better_be_seen():
    on_top = np.zeros((400, 600), dtype=np.int32)
    wish = rectangle(on_top, 1, (200, 100, 400, 300))
    marker = (285.0, 185.0, 315.0, 215.0)
    (place,) = place_boxes(on_top, [wish], GAP, [marker])
    x0, y0, x1, y1 = place.box
    assert x0 >= 315 or x1 <= 285 or y0 >= 215 or y1 <= 185
    assert (on_top[y0:y1, x0:x1] == 1).all()


def test_without_room_the_later_wishes_are_left_out():
    on_top = np.zeros((46, 60), dtype=np.int32)
    wishes = [rectangle(on_top, i + 1, (5 * i, 5 * i, 5 * i + 9, 5 * i + 9), size=(18, 50)) for i in range(6)]
    places = place_boxes(on_top, wishes, GAP)
    check(on_top, wishes, places)
    assert places[0] is not None and 1 <= sum(place is not None for place in places) <= 2
    (none,) = place_boxes(on_top, [Wish(1, (0, 0, 9, 9), (18, 61))], GAP)  # wider than the image
    assert none is None


def test_captions_take_no_place_from_labels():
    for seed in range(3):
        on_top, wishes = layout(14, 300, 400, seed, captions=True)
        bare = [Wish(wish.number, wish.box, wish.size) for wish in wishes]
        told, plain = place_boxes(on_top, wishes, GAP), place_boxes(on_top, bare, GAP)
        check(on_top, wishes, told)
        assert [place is None for place in told] == [place is None for place in plain]
        assert 0 < sum(place is not None and place.full for place in told) < len(wishes)


def test_a_mask_under_others_or_smaller_than_a_cell_of_the_map_still_gets_its_box():
    on_top = np.zeros((3000, 4000), dtype=np.int32)  # more than one pixel to a cell
    wishes = [rectangle(on_top, 1, (2001, 1501, 2003, 1503), size=(90, 400)), Wish(9, (50, 50, 90, 90), (90, 400))]
    places = place_boxes(on_top, wishes, GAP)
    assert None not in places
    for place, centre in zip(places, [(2002, 1502), (70, 70)], strict=True):
        x0, y0, x1, y1 = place.box
        assert place.leader is None or place.leader[1] == pytest.approx(centre, abs=8)
        distance = np.hypot(*(np.clip(centre, [x0, y0], [x1, y1]) - centre))
        assert distance < 200


def test_no_wishes_and_wishes_for_nothing_have_no_places():
    on_top = np.zeros((5, 5), dtype=np.int32)
    assert place_boxes(on_top, [], GAP) == []
    assert place_boxes(on_top, [Wish(1, (0, 0, 5, 5), None, None)], GAP) == [None]
    assert place_boxes(np.zeros((1, 1), dtype=np.int32), [Wish(1, (0, 0, 1, 1), (1, 1))], GAP)[0].box == (0, 0, 1, 1)
