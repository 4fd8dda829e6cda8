"""The letterbox: golden images and boxes of the published code, and the corners that those leave out."""

import json
import re
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch

from anysam.letterbox import Letterbox, boxes_to_image, letterbox_image, picture_cells, prepare_letterbox

PARITY = Path(__file__).parent / "parity"
WEIGHTS = runpy.run_path(str(PARITY / "weights.py"))
input_image, thin = WEIGHTS["input_image"], WEIGHTS["thin"]
CASE = PARITY / "cases" / "fastsam_functions"
FORM = json.loads((CASE / "case.json").read_text())
STORED = np.load(CASE / "expected.npz")

PLAIN = Letterbox(name="plain", long_side=64)


@pytest.mark.parametrize("name", list(FORM["letterbox"]))
def test_letterboxed_images_are_the_published_ones(name: str) -> None:
    facts = FORM["letterbox"][name]
    height, width, seed = (int(number) for number in re.findall(r"\d+", facts["input"]))
    letterbox = Letterbox(name=name, long_side=facts["imgsz"], square=not facts["auto"])
    boxed = letterbox_image(input_image(height, width, seed), letterbox)
    assert list(boxed.shape[:2]) == facts["output_hw"]
    np.testing.assert_array_equal(thin(boxed), STORED[name])


@pytest.mark.parametrize("geometry", list(FORM["geometry"]))
def test_boxes_come_back_as_published(geometry: str) -> None:
    facts = FORM["geometry"][geometry]
    boxes = boxes_to_image(STORED["boxes/input"], tuple(facts["network_hw"]), tuple(facts["original_hw"]))
    np.testing.assert_array_equal(boxes, STORED[f"boxes/scale_boxes_{geometry}"])
    assert boxes.dtype == np.float32


@pytest.mark.parametrize("geometry", list(FORM["geometry"]))
def test_picture_is_where_it_was_put(geometry: str) -> None:
    facts = FORM["geometry"][geometry]
    x0, y0, x1, y1 = facts["picture_inside_network_x0y0x1y1"]
    letterbox = Letterbox(name="", long_side=max(facts["network_hw"]))
    boxed = letterbox_image(np.zeros((*facts["original_hw"], 3), dtype=np.uint8), letterbox)
    picture = np.argwhere((boxed != 114).all(axis=2))
    assert [*picture.min(axis=0), *(picture.max(axis=0) + 1)] == [y0, x0, y1, x1]


@pytest.mark.parametrize(
    ("original", "picture", "padded"),
    [
        ((1, 1), (64, 64), (64, 64)),
        ((33, 1500), (1, 64), (32, 64)),  # 1.408 pixels high
        ((3000, 20), (64, 1), (64, 32)),  # 0.43 pixels wide: not 0
        ((100, 50), (64, 32), (64, 32)),
        ((64, 33), (64, 33), (64, 64)),
        ((128, 101), (64, 50), (64, 64)),  # 50.5 is rounded to even
        ((128, 103), (64, 52), (64, 64)),  # and so is 51.5
    ],
)
def test_sizes(original: tuple[int, int], picture: tuple[int, int], padded: tuple[int, int]) -> None:
    assert PLAIN.input_size(original) == picture
    assert PLAIN.padded_size(picture) == padded
    assert PLAIN.low_res_size(picture) == (padded[0] // 4, padded[1] // 4)
    pixels, input_size = prepare_letterbox(np.zeros((*original, 3), dtype=np.uint8), PLAIN)
    assert pixels.shape == (1, 3, *padded)
    assert input_size == picture
    top, left, bottom, right = picture_cells((padded[0] // 4, padded[1] // 4), original)
    assert bottom > top and right > left


def test_square_letterbox_is_square_for_every_image() -> None:
    square = Letterbox(name="square", long_side=64, square=True)
    assert letterbox_image(np.zeros((20, 60, 3), dtype=np.uint8), square).shape == (64, 64, 3)


def test_odd_padding_goes_right_and_below() -> None:
    boxed = letterbox_image(np.zeros((64, 33, 3), dtype=np.uint8), PLAIN)
    columns = np.flatnonzero((boxed == 0).all(axis=(0, 2)))
    assert (columns[0], 63 - columns[-1]) == (15, 16)


def test_pixels_are_planes_between_0_and_1_in_the_order_asked_for() -> None:
    image = np.zeros((64, 64, 3), dtype=np.uint8)
    image[..., 0] = 255
    pixels, _ = prepare_letterbox(image, PLAIN)
    assert pixels.mean(dim=(0, 2, 3)).tolist() == [1, 0, 0]
    pixels, _ = prepare_letterbox(image, Letterbox(name="", long_side=64, bgr=True), dtype=torch.bfloat16)
    assert pixels.dtype == torch.bfloat16
    assert pixels.float().mean(dim=(0, 2, 3)).tolist() == [0, 0, 1]


def test_image_given_is_not_changed() -> None:
    image = input_image(40, 50)
    before = image.copy()
    boxed = letterbox_image(image, Letterbox(name="", long_side=64))
    boxed[:] = 0
    np.testing.assert_array_equal(image, before)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"long_side": 100}, "multiple of stride"),
        ({"long_side": 0}, "multiple of stride"),
        ({"low_res_stride": 5}, "must divide stride"),
        ({"fill": 256}, "0 to 255"),
    ],
)
def test_impossible_letterboxes_are_refused(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Letterbox(**({"name": "", "long_side": 64} | changes))
