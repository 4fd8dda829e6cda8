"""Masks against pycocotools and hand-made values."""

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from anysam.errors import OptionError
from anysam.masks import (
    box_iou,
    decode_rle,
    encode_rle,
    mask_area,
    mask_iou,
    mask_to_box,
    mask_to_polygons,
    polygon_to_mask,
)

# pycocotools itself is not yet silent under NumPy 2
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def random_masks() -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    sizes = [(1, 1), (1, 9), (9, 1), (7, 5), (33, 64), (120, 90)]
    masks = [generator.random(size) < share for size in sizes for share in (0.0, 0.1, 0.5, 0.9, 1.0)]
    rows, columns = np.mgrid[:1500, :1200]
    return [*masks, (rows - 700) ** 2 + (columns - 500) ** 2 < 300**2]


def test_rle_is_what_pycocotools_writes_and_reads():
    for mask in random_masks():
        rle = encode_rle(mask)
        assert rle["size"] == list(mask.shape)
        assert isinstance(rle["counts"], str)
        np.testing.assert_array_equal(coco_mask.decode(rle).astype(bool), mask)
        np.testing.assert_array_equal(decode_rle(rle), mask)


def test_rle_written_as_bytes_or_as_a_list_of_lengths_is_read():
    mask = np.array([[False, True], [True, True]])
    assert (decode_rle({"size": [2, 2], "counts": [1, 3]}) == mask).all()
    assert (decode_rle(coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))) == mask).all()


@pytest.mark.parametrize(
    "rle",
    [
        {"size": [2, 2]},
        {"size": [2, 2], "counts": ""},
        {"size": [2, 2], "counts": [1, 4]},
        {"size": [2, 2], "counts": [5, -1]},
        {"size": [2, 2], "counts": "P"},
        {"size": [2, 2], "counts": "ä"},
        {"size": [2, 2], "counts": " "},
        {"size": [2, 2], "counts": "o" * 40 + "0"},
        {"size": [2, 2, 1], "counts": [4]},
        {"size": [-2, -2], "counts": [4]},
        {"size": [2, 2], "counts": None},
        {"size": None, "counts": [4]},
        [[1, 2]],
    ],
)
def test_damaged_rle_is_refused_in_one_line(rle):
    with pytest.raises(OptionError) as caught:
        decode_rle(rle)
    assert "\n" not in str(caught.value)


def test_rle_of_another_size_names_both_pixel_counts():
    rle = encode_rle(np.ones((3, 4), dtype=bool)) | {"size": [3, 5]}
    with pytest.raises(OptionError, match=r"cover 12 pixels but its size 5x3 has 15"):
        decode_rle(rle)


def test_only_bool_arrays_are_masks():
    for wrong in (np.zeros((3, 3), dtype=np.uint8), np.zeros((1, 3, 3), dtype=bool), [[True]]):
        with pytest.raises(OptionError, match="bool array"):
            encode_rle(wrong)


def test_box_has_exclusive_right_and_bottom_and_agrees_with_pycocotools():
    single = np.zeros((4, 6), dtype=bool)
    single[2, 5] = True
    assert mask_to_box(single).tolist() == [5, 2, 6, 3]
    for mask in random_masks():
        box = mask_to_box(mask)
        if not mask.any():
            assert box is None
        else:
            x, y, width, height = coco_mask.toBbox(encode_rle(mask))
            assert box.tolist() == [x, y, x + width, y + height]
        assert mask_area(mask) == coco_mask.area(encode_rle(mask))


def test_overlaps_agree_with_pycocotools():
    generator = np.random.default_rng(1)
    a, b = generator.random((2, 40, 30)) < 0.4
    assert mask_iou(a, b) == pytest.approx(coco_mask.iou([encode_rle(a)], [encode_rle(b)], [0])[0, 0])
    assert mask_iou(np.zeros((2, 2), dtype=bool), np.zeros((2, 2), dtype=bool)) == 1.0
    with pytest.raises(OptionError, match=r"\(40, 30\) and \(30, 40\)"):
        mask_iou(a, b.T)

    corners = generator.random((2, 7, 2)) * 50
    sides = generator.random((2, 7, 2)) * 50
    boxes = np.concatenate([corners, corners + sides], axis=-1)  # (2, 7, 4)
    xywh = np.concatenate([corners, sides], axis=-1)
    np.testing.assert_allclose(box_iou(boxes[0], boxes[1, :5]), coco_mask.iou(xywh[0], xywh[1, :5], [0] * 5))
    assert box_iou(np.zeros((1, 4)), np.zeros((1, 4))).tolist() == [[0.0]]
    assert box_iou(np.zeros((0, 4)), np.zeros((3, 4))).shape == (0, 3)


def test_outlines_enclose_the_area_and_fill_back_to_the_mask():
    for mask in random_masks():
        filled = np.zeros_like(mask)
        area = 0.0
        for outline in mask_to_polygons(mask):
            for ring in (outline.outer, *outline.holes):
                assert len(ring) >= 4
                filled ^= polygon_to_mask(ring, mask.shape)
                x, y = ring.T
                area += 0.5 * float(np.sum(x * np.roll(y, -1) - np.roll(x, -1) * y))
        np.testing.assert_array_equal(filled, mask)
        assert area == mask.sum()


def test_outline_of_a_ring_with_an_island_in_its_hole():
    mask = np.zeros((9, 9), dtype=bool)
    mask[1:8, 1:8] = True
    mask[2:7, 2:7] = False
    mask[4, 4] = True
    ring, island = mask_to_polygons(mask)
    assert ring.outer.tolist() == [[1, 1], [8, 1], [8, 8], [1, 8]]
    assert len(ring.holes) == 1
    assert sorted(ring.holes[0].tolist()) == [[2, 2], [2, 7], [7, 2], [7, 7]]
    assert island.outer.tolist() == [[4, 4], [5, 4], [5, 5], [4, 5]]
    assert island.holes == ()


def test_parts_touching_by_a_corner_are_two_outlines():
    assert len(mask_to_polygons(np.eye(3, dtype=bool))) == 3


def test_polygon_may_leave_the_image():
    mask = polygon_to_mask(np.array([[-5.0, -5.0], [2.0, -5.0], [2.0, 3.0], [-5.0, 3.0]]), (4, 4))
    assert mask_to_box(mask).tolist() == [0, 0, 2, 3]
    assert mask.sum() == 6
    assert not polygon_to_mask(np.array([[9.0, 0.0], [12.0, 0.0], [12.0, 4.0]]), (4, 4)).any()


def test_run_lengths_of_a_monstrous_size_are_refused_before_any_memory_is_taken():
    with pytest.raises(OptionError, match=r"1000000x1000000 pixels .* at most 2,147,483,648"):
        decode_rle({"size": [10**6, 10**6], "counts": [10**12]})
