"""Run lengths against pycocotools, and against the same done to whole masks."""

import tracemalloc

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from anysam import rle
from anysam.errors import OptionError

# pycocotools itself is not yet silent under NumPy 2
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def random_masks(number, seed=0, largest=40):
    """Noise of every density, rectangles, empty and full ones, single rows and columns."""
    generator = np.random.default_rng(seed)
    for index in range(number):
        height, width = generator.integers(1, largest, 2)
        if index % 7 == 0:
            height, width = (1, width) if index % 2 else (height, 1)
        if index % 3:
            mask = generator.random((height, width)) < generator.choice([0.02, 0.3, 0.9])
        else:
            mask = np.zeros((height, width), dtype=bool)
            (y0, y1), (x0, x1) = (np.sort(generator.integers(0, side + 1, 2)) for side in (height, width))
            mask[y0:y1, x0:x1] = True
        if index % 20 == 0:
            mask[:] = index % 40 == 0
        yield mask


def coco(mask):
    form = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": list(mask.shape), "counts": form["counts"].decode("ascii")}


def uncompressed(mask):
    """COCO's list of run lengths, counted pixel by pixel."""
    lengths, value = [0], False
    for pixel in mask.ravel(order="F").tolist():
        if pixel != value:
            lengths.append(0)
            value = pixel
        lengths[-1] += 1
    return lengths


def test_runs_are_those_counted_pixel_by_pixel_and_come_back():
    for mask in random_masks(300):
        runs = rle.mask_to_runs(mask)
        assert runs.dtype == np.int64
        assert runs.tolist() == uncompressed(mask)
        np.testing.assert_array_equal(rle.runs_to_mask(runs, mask.shape), mask)


def test_counts_are_the_string_of_pycocotools_and_come_back():
    for mask in [*random_masks(300, seed=1), np.tri(700, 900, k=40, dtype=bool)]:
        written = rle.write_rle(rle.mask_to_runs(mask), mask.shape)
        assert written == coco(mask)
        runs, size = rle.read_rle(written)
        assert (runs.tolist(), size) == (rle.mask_to_runs(mask).tolist(), mask.shape)
        assert rle.read_rle(coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8)))[0].tolist() == runs.tolist()


def test_a_mask_without_pixels_has_one_empty_run():
    for size in [(0, 0), (0, 5), (5, 0)]:
        runs = rle.mask_to_runs(np.zeros(size, dtype=bool))
        assert runs.tolist() == [0]
        assert rle.runs_to_mask(runs, size).shape == size


def test_area_and_box_agree_with_pycocotools():
    for mask in random_masks(300, seed=2):
        form = coco(mask)
        assert rle.area(form) == coco_mask.area(form)
        if mask.any():
            x, y, width, height = coco_mask.toBbox(form)
            assert rle.box(form) == (x, y, x + width, y + height)
        else:
            assert rle.box(form) is None


def test_a_part_is_placed_where_slicing_puts_it():
    generator = np.random.default_rng(3)
    for mask in random_masks(300, seed=3):
        (height, width), (above, left, below, right) = mask.shape, generator.integers(0, 4, 4).tolist()
        whole = np.zeros((above + height + below, left + width + right), dtype=bool)
        whole[above : above + height, left : left + width] = mask
        assert rle.place(coco(mask), (left, above), whole.shape) == coco(whole)


def test_a_part_that_does_not_fit_is_refused():
    form = coco(np.ones((4, 6), dtype=bool))
    for offset in [(-1, 0), (0, -1), (5, 0), (0, 7)]:
        with pytest.raises(OptionError, match=r"6x4 pixels at x -?\d, y -?\d does not lie in an image of 10x10"):
            rle.place(form, offset, (10, 10))


def test_a_window_is_the_slice_of_the_mask():
    generator = np.random.default_rng(4)
    for mask in random_masks(400, seed=4):
        (y0, y1), (x0, x1) = (np.sort(generator.integers(0, side + 1, 2)).tolist() for side in mask.shape)
        np.testing.assert_array_equal(rle.window(coco(mask), (x0, y0, x1, y1)), mask[y0:y1, x0:x1])
        assert rle.crop(coco(mask), (x0, y0, x1, y1)) == coco(mask[y0:y1, x0:x1]) or min(y1 - y0, x1 - x0) == 0


def test_a_window_that_leaves_the_image_is_refused():
    form = coco(np.ones((4, 6), dtype=bool))
    for box in [(-1, 0, 3, 3), (0, 0, 7, 4), (0, 3, 6, 2)]:
        with pytest.raises(OptionError, match="window must lie in the image of 6x4"):
            rle.window(form, box)


def test_union_and_intersection_agree_with_pycocotools():
    generator = np.random.default_rng(5)
    for number in range(200):
        size = generator.integers(1, 30, 2)
        masks = [generator.random(size) < generator.choice([0.1, 0.5, 0.95]) for _ in range(1 + number % 4)]
        forms = [coco(mask) for mask in masks]
        for ours, intersect in [(rle.union(forms), False), (rle.intersection(forms), True)]:
            theirs = coco_mask.merge(forms, intersect=intersect)
            np.testing.assert_array_equal(rle.runs_to_mask(*rle.read_rle(ours)), coco_mask.decode(theirs).astype(bool))
            assert ours == coco(coco_mask.decode(theirs))
        assert rle.intersection_area(forms[0], forms[-1]) == (masks[0] & masks[-1]).sum()
        expected = coco_mask.iou([forms[0]], [forms[-1]], [0])[0, 0] if (masks[0] | masks[-1]).any() else 1.0
        assert rle.iou(forms[0], forms[-1]) == pytest.approx(expected)


def test_masks_of_different_sizes_or_none_at_all_are_not_compared():
    wide, high = coco(np.ones((2, 3), dtype=bool)), coco(np.ones((3, 2), dtype=bool))
    for operation in (rle.intersection_area, rle.iou, lambda a, b: rle.union([a, b])):
        with pytest.raises(OptionError, match="different sizes"):
            operation(wide, high)
    with pytest.raises(OptionError, match="At least one mask"):
        rle.union([])


def test_images_beyond_32_bits_cost_what_their_outlines_cost():
    height, width = 100_000, 90_000  # 9 thousand million pixels, which pycocotools cannot count
    disc = np.add.outer((np.arange(400) - 200) ** 2, (np.arange(400) - 200) ** 2) < 180**2
    tracemalloc.start()
    placed = rle.place(coco(disc), (width - 400, height - 400), (height, width))
    moved = rle.place(coco(disc), (width - 500, height - 400), (height, width))
    background = rle.place(coco(~np.zeros((1, 1), dtype=bool)), (0, 0), (height, width))
    everything = rle.union([placed, moved, background])
    assert tracemalloc.get_traced_memory()[1] < 2e6
    tracemalloc.stop()
    assert rle.area(placed) == disc.sum()
    assert rle.box(placed) == (width - 379, height - 379, width - 20, height - 20)
    assert rle.intersection_area(placed, moved) == (disc[:, :300] & disc[:, 100:]).sum()
    assert rle.area(everything) == 2 * disc.sum() - (disc[:, :300] & disc[:, 100:]).sum() + 1
    np.testing.assert_array_equal(
        rle.window(everything, (width - 400, height - 400, width, height)),
        disc | np.pad(disc[:, 100:], ((0, 0), (0, 100))),
    )
    full = {"size": [height, width], "counts": [0, height * width]}
    assert rle.area(full) == height * width
    assert rle.box(rle.write_rle(*rle.read_rle(full))) == (0, 0, width, height)


def test_runs_of_no_length_between_others_are_read_as_the_one_run_they_are():
    form = {"size": [2, 5], "counts": [1, 2, 0, 3, 1, 0, 3]}
    runs, size = rle.read_rle(form)
    assert runs.tolist() == [1, 5, 4]
    assert rle.box(form) == (0, 0, 3, 2)
    np.testing.assert_array_equal(rle.runs_to_mask(runs, size), coco_mask.decode(coco_mask.frPyObjects(form, 2, 5)))


@pytest.mark.parametrize(
    "form",
    [
        {"size": [2, 2]},
        {"counts": "4"},
        {"size": [2, 2], "counts": ""},
        {"size": [2, 2], "counts": [1, 4]},
        {"size": [2, 2], "counts": [5, -1]},
        {"size": [2, 2], "counts": [4, 2**62, 2**62, 2**62, 2**62]},  # wraps around to 4
        {"size": [2, 2], "counts": "P"},
        {"size": [2, 2], "counts": "ä"},
        {"size": [2, 2], "counts": " "},
        {"size": [2, 2], "counts": "o" * 40 + "0"},
        {"size": [2, 2, 1], "counts": [4]},
        {"size": [-2, -2], "counts": [4]},
        {"size": [2**40, 2**40], "counts": [2**80]},
        {"size": [2, 2], "counts": None},
        {"size": [2, 2], "counts": ["x"]},
        [[1, 2]],
    ],
)
def test_damaged_data_are_refused_in_one_line_by_every_reader(form):
    for reader in (rle.read_rle, rle.area, rle.box, lambda form: rle.place(form, (0, 0), (9, 9))):
        with pytest.raises(OptionError) as caught:
            reader(form)
        assert "\n" not in str(caught.value)


def test_counts_with_any_character_changed_are_refused_or_cover_the_image():
    generator = np.random.default_rng(7)
    form = coco(generator.random((20, 20)) < 0.5)
    refused = 0
    for _ in range(300):
        place = int(generator.integers(len(form["counts"])))
        changed = form["counts"][:place] + chr(generator.integers(33, 126)) + form["counts"][place + 1 :]
        try:
            runs, _ = rle.read_rle(form | {"counts": changed})
        except OptionError:
            refused += 1
        else:
            assert runs.sum() == 400 and (runs[1:] > 0).all()
    assert refused > 200


@pytest.mark.parametrize("mask", [np.zeros((2, 2)), np.zeros(4, dtype=bool), [[True]], np.zeros((1, 2, 2), dtype=bool)])
def test_only_bool_arrays_of_two_dimensions_are_masks(mask):
    with pytest.raises(OptionError, match="bool array"):
        rle.mask_to_runs(mask)
