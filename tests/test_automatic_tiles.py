"""Tiles against the truth: stand-ins for everything mode that cut known objects as the borders of tiles do."""

import tracemalloc

import cv2
import numpy as np
import pytest

from anysam import rle
from anysam.automatic.tiles import tile_grid, tiled_records
from anysam.errors import OptionError
from anysam.results import MaskRecord

SIZE = (300, 420)
ROWS, COLUMNS = np.mgrid[: SIZE[0], : SIZE[1]]


class Source:
    """An image without content that remembers which window was read, so that a stand-in knows where it is."""

    def __init__(self, size=SIZE):
        self.size = size
        self.windows = []

    def read(self, x0, y0, x1, y1):
        self.windows.append((x0, y0, x1, y1))
        return np.zeros((y1 - y0, x1 - x0, 3), dtype=np.uint8)


def disc(x, y, radius):
    return (COLUMNS - x) ** 2 + (ROWS - y) ** 2 <= radius**2


def rectangle(x0, y0, x1, y1):
    return (COLUMNS >= x0) & (COLUMNS < x1) & (ROWS >= y0) & (ROWS < y1)


def connected(mask):
    number, parts = cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)
    return [parts == part for part in range(1, number)]


def found(masks, tile=128, overlap=0.25, change=None, split=False, hide=(), size=SIZE):
    """tiled_records of a model that sees of every mask what lies in its tile.

    change(mask, window): what it makes of it; split: it sees connected parts only; hide: (mask, window number) that it
    misses.
    """
    source = Source(size)

    def everything(image):
        x0, y0, x1, y1 = window = source.windows[-1]
        assert image.shape == (y1 - y0, x1 - x0, 3) and image.dtype == np.uint8
        records = []
        for index, mask in enumerate(masks):
            if (index, len(source.windows) - 1) in hide:
                continue
            seen = mask[y0:y1, x0:x1]
            seen = seen if change is None else change(seen, window)
            for part in connected(seen) if split else [seen]:
                if part.any():
                    records.append(MaskRecord.from_mask(part, predicted_iou=0.9 + index / 10_000))
        return records

    return tiled_records(everything, source, tile, overlap)


def assert_exact(records, masks):
    """Every object once, pixel by pixel, nothing else."""
    for record in records:
        mask = record.to_mask()
        assert record.area == mask.sum()
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        assert record.box == (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
    expected = sorted(rle.runs_to_counts(rle.mask_to_runs(mask)) for mask in masks)
    assert sorted(record.segmentation["counts"] for record in records) == expected
    assert all(record.size == masks[0].shape for record in records)


@pytest.mark.parametrize(
    ("tile", "overlap"), [(64, 0.25), (128, 0.05), (128, 0.5), (100, 0.7), (299, 0.25), (350, 0.1)]
)
def test_the_grid_covers_the_image_with_full_tiles_that_overlap_enough(tile, overlap):
    grid = tile_grid(SIZE, tile, overlap)
    depth, cores = np.zeros(SIZE, dtype=int), np.zeros(SIZE, dtype=int)
    for each in grid.tiles:
        x0, y0, x1, y1 = each.box
        assert (x1 - x0, y1 - y0) == (min(tile, SIZE[1]), min(tile, SIZE[0]))
        depth[y0:y1, x0:x1] += 1
        x0, y0, x1, y1 = each.core
        cores[y0:y1, x0:x1] += 1
    assert (depth > 0).all()
    assert (cores == 1).all()
    for lower, upper in [(0, 2), (1, 3)]:
        spans = sorted({(each.box[lower], each.box[upper]) for each in grid.tiles})
        assert all(end - start >= int(overlap * tile) for (_, end), (start, _) in zip(spans, spans[1:], strict=False))
    for number, each in enumerate(grid.tiles):
        touching = [
            other
            for other, rival in enumerate(grid.tiles)
            if other != number
            and all(each.box[i] <= rival.box[i + 2] and rival.box[i] <= each.box[i + 2] for i in range(2))
        ]
        assert grid.near(number) == touching


@pytest.mark.parametrize(("tile", "overlap"), [(128, 0.25), (100, 0.4), (128, 0.1), (128, 0.6)])
def test_discs_of_all_sizes_anywhere_come_back_whole(tile, overlap):
    generator = np.random.default_rng(tile)
    masks = [
        disc(*generator.integers(0, (420, 300)), generator.integers(2, 45)) for _ in range(40 if overlap < 0.5 else 20)
    ]
    assert_exact(found(masks, tile, overlap), masks)


def test_objects_larger_than_a_tile_are_one_record():
    masks = [
        disc(200, 150, 130),
        disc(200, 150, 148) & ~disc(200, 150, 137),  # a ring around it
        rectangle(0, 290, 420, 294),  # stripes through all tiles, from side to side
        np.abs(ROWS - COLUMNS) < 4,
        (np.abs(ROWS - 20 - 15 * np.sin(COLUMNS / 20)) < 3),
    ]
    assert_exact(found(masks), masks)


def test_nested_and_touching_objects_stay_apart():
    nested = [disc(140, 110, radius) for radius in (12, 25, 40, 60, 90)]
    chequers = [rectangle(250 + 20 * i, 150 + 20 * j, 270 + 20 * i, 170 + 20 * j) for i in range(8) for j in range(7)]
    assert_exact(found(nested + chequers), nested + chequers)


def test_objects_exactly_on_the_borders_of_tiles_come_back_whole():
    masks = []
    for tile in tile_grid(SIZE, 128, 0.25).tiles:
        x0, y0, x1, y1 = tile.box
        masks += [
            rectangle(x0, y0 + 50, x0 + 9, y0 + 59),  # inside the left border
            rectangle(x0 - 9, y0 + 70, x0, y0 + 80),  # outside of it
            rectangle(x1 - 7, y0 + 20, x1, y0 + 29),  # inside the right border
            rectangle(x1, y0 + 30, x1 + 9, y0 + 39),
            rectangle(x0 + 40, y1 - 3, x0 + 60, y1),
            rectangle(x0 + 62, y1, x0 + 80, y1 + 1),
            rectangle(x1 - 2, y1 - 2, x1, y1),  # in the corner
            rectangle(x1 - 4, y1 + 5, x1 + 1, y1 + 6),  # one pixel over
        ]
    masks = list({mask.tobytes(): mask for mask in masks if mask.any()}.values())
    assert_exact(found(masks), masks)


def test_an_object_in_the_corner_that_four_tiles_share_is_one_record():
    boxes = [tile.box for tile in tile_grid(SIZE, 128, 0.25).tiles]
    x, y = boxes[1][0], boxes[-1][1]
    for radius in (3, 12, 30):
        masks = [disc(x + 16, y + 16, radius)]
        assert sum(mask[y0:y1, x0:x1].any() for mask in masks for x0, y0, x1, y1 in boxes) >= 4
        assert_exact(found(masks), masks)


@pytest.mark.parametrize("tile", [100, 128, 160])
def test_an_object_that_enters_a_tile_twice_is_one_record(tile):
    ring = disc(210, 150, 120) & ~disc(210, 150, 108)
    comb = rectangle(20, 20, 400, 30) | np.logical_or.reduce(
        [rectangle(x, 20, x + 10, 280) for x in range(20, 400, 40)]
    )
    for mask in (ring, comb):
        assert_exact(found([mask], tile, split=True), [mask])


def test_a_part_that_looks_like_its_whole_in_the_strip_is_not_joined_to_it():
    boxes = sorted({tile.box[::2] for tile in tile_grid(SIZE, 128, 0.25).tiles})
    (start, end) = boxes[1][0], boxes[0][1]  # the strip between the first two columns of tiles
    body = rectangle(start - 60, 60, end + 60, 80)
    wings = rectangle(start - 50, 30, start - 20, 110)
    tail = rectangle(end + 30, 40, end + 45, 100)
    masks = [body, body | wings | tail]
    assert_exact(found(masks), masks)
    assert_exact(found(masks[::-1]), masks)


def test_masks_that_waver_at_the_borders_of_tiles_still_give_one_record_an_object():
    generator = np.random.default_rng(0)
    centres = [(x, y) for x in range(25, 420, 62) for y in range(25, 260, 62)]
    masks = [disc(x, y, 26) for x, y in centres]
    masks += [rectangle(0, 270, 420, 290)]

    def waver(mask, window):
        """Grow or shrink by a pixel what is nearer than 8 pixels to a border with more of the image beyond."""
        change = cv2.dilate if generator.random() < 0.5 else cv2.erode
        moved = change(mask.astype(np.uint8), np.ones((3, 3), dtype=np.uint8)).astype(bool)
        x0, y0, x1, y1 = (0 if window[side] in (0, 420, 300) else (8, 8, -8, -8)[side] for side in range(4))
        inner = (slice(y0, y1 or None), slice(x0, x1 or None))
        moved[inner] = mask[inner]
        return moved

    records = found(masks, change=waver)
    assert len(records) == len(masks)
    for mask in masks:
        best = max(np.count_nonzero(mask & r.to_mask()) / np.count_nonzero(mask | r.to_mask()) for r in records)
        assert best > 0.97


def test_what_one_tile_alone_saw_cut_is_left_out():
    boxes = [tile.box for tile in tile_grid(SIZE, 128, 0.25).tiles]
    right, top = boxes[0][2], boxes[1][0]
    blob = rectangle(right - 60, 20, right + 60, 60)
    kept = disc(40, 60, 20)
    assert top < right - 30
    assert_exact(found([blob, kept]), [blob, kept])
    assert_exact(found([blob, kept], hide={(0, 1)}), [kept])  # the half in the first tile would end at its border


def test_a_road_that_one_tile_missed_keeps_its_other_pieces():
    road = rectangle(10, 40, 410, 44)
    records = found([road], hide={(0, 1)})
    assert 1 <= len(records) <= 2
    seen = np.logical_or.reduce([record.to_mask() for record in records])
    assert not (seen & ~road).any()
    hidden = tile_grid(SIZE, 128, 0.25).tiles
    assert seen.sum() == road.sum() - (hidden[2].box[0] - hidden[0].box[2]) * 4


def test_an_object_whole_in_one_tile_is_not_patched_with_the_stump_of_another():
    boxes = [tile.box for tile in tile_grid(SIZE, 128, 0.25).tiles]
    edge = boxes[0][2]
    mask = rectangle(edge - 24, 50, edge + 10, 84)

    def lose_a_row(seen, window):
        return seen & (np.arange(len(seen))[:, None] != 50) if window == boxes[0] else seen

    assert_exact(found([mask], change=lose_a_row), [mask])


def test_two_views_that_disagree_leave_the_better_record():
    boxes = [tile.box for tile in tile_grid(SIZE, 128, 0.25).tiles]
    strip = boxes[1][0], boxes[0][2]  # where both tiles see all of a small object
    frame = rectangle(strip[0] + 4, 40, strip[1] - 4, 64) & ~rectangle(strip[0] + 6, 42, strip[1] - 6, 62)
    full = rectangle(strip[0] + 4, 40, strip[1] - 4, 64)
    records = found([frame, full], hide={(0, 1), (1, 0)})
    assert_exact(records, [full])  # listed second, so with the higher score
    assert_exact(found([frame, full]), [frame, full])  # seen side by side they are two objects


def test_scores_are_means_by_pixels_and_the_prompt_is_the_largest_pieces():
    source = Source((100, 160))
    boxes = [tile.box for tile in tile_grid(source.size, 100, 0.4).tiles]
    assert [box[:2] for box in boxes] == [(0, 0), (60, 0)]
    mask = np.zeros(source.size, dtype=bool)
    mask[40:50, 20:] = True

    def everything(image):
        x0, y0, x1, y1 = source.windows[-1]
        first = x0 == 0
        seen = MaskRecord.from_mask(mask[y0:y1, x0:x1], 0.9 if first else 0.96)
        prompt = {"points": [[30.0, 45.0]], "labels": [1], "box": [5.0, 6.0, 7.0, 8.0]}
        crop_box = (0.0, 0.0, 50.0, 50.0) if first else (50.0, 10.0, 90.0, 90.0)
        return [
            MaskRecord(
                **(vars(seen) | {"prompt": prompt, "crop_box": crop_box, "stability_score": 0.5 if first else None})
            )
        ]

    (record,) = tiled_records(everything, source, 100, 0.4)
    np.testing.assert_array_equal(record.to_mask(), mask)
    assert record.predicted_iou == pytest.approx((0.9 * 60 + 0.96 * 80) / 140)  # the cores meet at x = 80
    assert record.stability_score == 0.5
    assert record.detection_score is None
    assert record.prompt == {"points": [[90.0, 45.0]], "labels": [1], "box": [65.0, 6.0, 67.0, 8.0]}
    assert record.crop_box == (0.0, 0.0, 150.0, 90.0)


def test_an_image_no_larger_than_a_tile_is_handed_over_as_it_is():
    source = Source((50, 70))
    records = [MaskRecord.from_mask(np.ones((50, 70), dtype=bool), 0.5)]
    parts = []
    assert tiled_records(lambda image: records, source, 70, progress=parts.append) == records
    assert source.windows == [(0, 0, 70, 50)]
    assert parts == [1.0]


def test_the_result_is_the_same_every_time_and_best_first():
    generator = np.random.default_rng(5)
    masks = [disc(*generator.integers(0, (420, 300)), generator.integers(5, 60)) for _ in range(20)]
    first, second = (found(masks, split=True) for _ in range(2))
    assert first == second
    scores = [record.predicted_iou for record in first]
    assert scores == sorted(scores, reverse=True)


def test_progress_rises_to_one():
    parts = []
    tiled_records(lambda image: [], Source(), 128, progress=parts.append)
    assert parts == sorted(set(parts))
    assert parts[-1] == 1.0
    assert len(parts) > 6


@pytest.mark.parametrize(
    ("tile", "overlap", "words"), [(63, 0.25, "at least 64"), (128, 0.0, "0.05 to 0.9"), (128, 0.95, "0.95")]
)
def test_tiles_too_small_or_without_overlap_are_refused(tile, overlap, words):
    with pytest.raises(OptionError, match=words):
        tiled_records(lambda image: [], Source(), tile, overlap)


def test_a_record_of_another_size_is_refused():
    wrong = MaskRecord.from_mask(np.ones((5, 5), dtype=bool), 0.5)
    with pytest.raises(OptionError, match=r"\(128, 128\) \(H, W\), got \(5, 5\)"):
        tiled_records(lambda image: [wrong], Source(), 128)


def test_400_megapixels_take_the_memory_of_a_tile():
    """A grid of squares and one stripe from side to side, made window by window; a single unfolded mask has 400 MB."""
    side, pitch = 20_000, 2_000
    source = Source((side, side))

    def everything(image):
        x0, y0, x1, y1 = source.windows[-1]
        first = [start // pitch * pitch for start in (x0, y0)]
        boxes = [(x, y, x + 300, y + 300) for x in range(first[0], x1, pitch) for y in range(first[1], y1, pitch)]
        records = []
        for left, top, right, bottom in [*boxes, (0, 600, side, 650)]:
            a, b, c, d = max(left, x0) - x0, max(top, y0) - y0, min(right, x1) - x0, min(bottom, y1) - y0
            if a < c and b < d:
                part = rle.write_rle(np.array([0, (c - a) * (d - b)]), (d - b, c - a))
                placed = rle.place(part, (a, b), (y1 - y0, x1 - x0))
                records.append(MaskRecord(placed, (c - a) * (d - b), (a, b, c, d), 0.9))
        return records

    tracemalloc.start()
    records = tiled_records(everything, source, 4096, 0.25)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(source.windows) == 49
    assert len(records) == 101
    assert sorted(record.area for record in records) == [300 * 300] * 100 + [50 * side]
    assert peak < 3 * 4096 * 4096 + 10e6
