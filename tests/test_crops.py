"""Pictures of masks: what each view shows, against views drawn by hand; lazily, and of little memory."""

import tracemalloc
from dataclasses import dataclass, field

import numpy as np
import pytest

from anysam.describe.crops import FILL, LEAST_SIDE, MOST_SIDE, VIEWS, pictures_of, window_around
from anysam.errors import OptionError
from anysam.rasters import ArraySource
from anysam.results import MaskRecord

SIZE = (120, 200)
CUT_OUTS = [name for name, view in VIEWS.items() if view is not None]


def noise(size: tuple[int, int] = SIZE, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


def rectangle(x0: int, y0: int, x1: int, y1: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    mask = np.zeros(size, dtype=np.bool_)
    mask[y0:y1, x0:x1] = True
    return mask


def record(mask: np.ndarray) -> MaskRecord:
    return MaskRecord.from_mask(mask, predicted_iou=0.9)


def disc(size: tuple[int, int] = SIZE, x: int = 90, y: int = 60, radius: int = 20) -> np.ndarray:
    rows, columns = np.mgrid[: size[0], : size[1]]
    return (rows - y) ** 2 + (columns - x) ** 2 <= radius**2


def one(image: np.ndarray, mask: np.ndarray, view: str) -> np.ndarray:
    (picture,) = pictures_of(image, [record(mask)], view)
    assert picture.dtype == np.uint8
    return picture


@dataclass
class Windows:
    """A source that notes what is read of it."""

    pixels: np.ndarray
    read_windows: list[tuple[int, int, int, int]] = field(default_factory=list)

    @property
    def size(self) -> tuple[int, int]:
        return self.pixels.shape[0], self.pixels.shape[1]

    def read(self, x0: int, y0: int, x1: int, y1: int) -> np.ndarray:
        self.read_windows.append((x0, y0, x1, y1))
        return self.pixels[y0:y1, x0:x1]


def test_canvas_is_the_image_and_white_outside_the_box() -> None:
    image, mask = noise(), disc()
    expected = np.array([[[255] * 3] * SIZE[1]] * SIZE[0], dtype=np.uint8)
    expected[40:81, 70:111] = image[40:81, 70:111]
    np.testing.assert_array_equal(one(image, mask, "canvas"), expected)


def test_crop_is_the_box_in_a_square_with_a_margin() -> None:
    image = noise()
    # 40 wide, 20 high: a square of 40 * 1.2, centred at 100, 60.
    np.testing.assert_array_equal(one(image, rectangle(80, 50, 120, 70), "crop"), image[36:84, 76:124])


def test_masked_shows_the_mask_alone() -> None:
    image, mask = noise(), disc()
    expected = np.where(mask[:, :, None], image, np.uint8(FILL))
    np.testing.assert_array_equal(one(image, mask, "masked"), expected[36:85, 66:115])


def test_blurred_keeps_the_mask_and_the_colours_around_it_but_no_detail() -> None:
    mask = disc()
    image = noise()
    image[:, :100] //= 4  # dark on the left
    window = slice(27, 93), slice(57, 123)  # 41 pixels and 0.3 of them on each side
    picture, inside = one(image, mask, "blurred"), mask[window]
    np.testing.assert_array_equal(picture[inside], image[window][inside])
    around = picture[~inside].astype(float)
    assert np.abs(np.diff(picture[:12].astype(float), axis=1)).mean() < 4  # of the noise's own 50
    np.testing.assert_allclose(around.mean(), image[window][~inside].mean(), atol=8)
    assert picture[:, :8].mean() + 30 < picture[:, -8:].mean()
    plain = np.full((*SIZE, 3), (10, 200, 90), dtype=np.uint8)
    np.testing.assert_array_equal(one(plain, mask, "blurred"), plain[window])


@pytest.mark.parametrize("view", CUT_OUTS)
@pytest.mark.parametrize("corner", [(0, 0), (197, 0), (0, 118), (197, 118)])
def test_mask_of_a_few_pixels_in_a_corner_is_shown_with_its_surroundings(view: str, corner: tuple[int, int]) -> None:
    x, y = corner
    image = np.full((*SIZE, 3), 200, dtype=np.uint8)
    mask = rectangle(x, y, x + 3, y + 2)
    image[mask] = (255, 0, 0)
    picture = one(image, mask, view)
    assert picture.shape == (LEAST_SIDE, LEAST_SIDE, 3)
    assert (picture == (255, 0, 0)).all(axis=2).sum() == 6


@pytest.mark.parametrize("view", CUT_OUTS)
def test_object_larger_than_the_image_is_high_is_whole_in_the_middle_of_a_square(view: str) -> None:
    image, mask = noise(), rectangle(0, 30, 200, 90)
    picture = one(image, mask, view)
    assert picture.shape == (200, 200, 3)
    np.testing.assert_array_equal(picture[70:130], image[30:90])
    assert (picture[:40] == FILL).all()
    assert (picture[160:] == FILL).all()


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 1), (40, 40)])
@pytest.mark.parametrize("view", VIEWS)
def test_mask_that_covers_all_is_the_image(view: str, size: tuple[int, int]) -> None:
    image = noise(size)
    picture = one(image, np.ones(size, dtype=np.bool_), view)
    side = max(size)
    top, left = ((side - size[0]) // 2, (side - size[1]) // 2) if view != "canvas" else (0, 0)
    np.testing.assert_array_equal(picture[top : top + size[0], left : left + size[1]], image)
    picture[:] = 0
    assert image.any()  # the picture is no window on the image's own memory


def test_window_holds_the_box_and_lies_in_the_image() -> None:
    random = np.random.default_rng(1)
    for _ in range(500):
        height, width = random.integers(1, 90, 2).tolist()
        x0, y0 = int(random.integers(width)), int(random.integers(height))
        x1, y1 = int(random.integers(x0, width)) + 1, int(random.integers(y0, height)) + 1
        u0, v0, u1, v1 = window_around((x0, y0, x1, y1), float(random.uniform(0, 0.5)), (height, width))
        assert 0 <= u0 <= x0
        assert x1 <= u1 <= width
        assert 0 <= v0 <= y0
        assert y1 <= v1 <= height
        assert u1 - u0 == v1 - v0 or (u0, u1) == (0, width) or (v0, v1) == (0, height)


@pytest.mark.parametrize("view", CUT_OUTS)
def test_large_object_becomes_a_small_picture_and_a_wire_stays_whole(view: str) -> None:
    size = (3000, 2600)
    image = np.full((*size, 3), 40, dtype=np.uint8)
    mask = np.zeros(size, dtype=np.bool_)
    mask[np.arange(2600), np.arange(2600)] = True  # a pixel wide
    image[mask] = 255
    picture = one(image, mask, view)
    side = picture.shape[0]
    assert MOST_SIDE // 2 < side <= MOST_SIDE
    shown = picture[:, :, 0].astype(int)
    at_wire = np.array([shown[row].max() for row in range(side // 20, side * 4 // 5)])
    assert (at_wire > 80).all()  # a third of the cells' pixels are white
    background = {"crop": 40, "masked": FILL[0], "blurred": 40}[view]
    np.testing.assert_allclose(shown[side // 2, -200:-150], background, atol=3)


def test_pictures_are_made_one_by_one_from_their_surroundings_alone() -> None:
    image = Windows(noise())
    pictures = pictures_of(image, [record(disc(x=40)), record(disc(x=150, y=50))], "masked")
    assert image.read_windows == []
    first = next(pictures)
    assert image.read_windows == [(16, 36, 65, 85)]
    np.testing.assert_array_equal(first, one(image.pixels, disc(x=40), "masked"))
    next(pictures)
    assert len(image.read_windows) == 2
    assert next(pictures, None) is None


def test_hundreds_of_masks_of_twenty_megapixels_hold_one_picture() -> None:
    size = (4000, 5000)
    image = np.broadcast_to(np.array((90, 120, 30), dtype=np.uint8), (*size, 3))
    record_of = MaskRecord.from_mask
    whole = record_of(np.ones(size, dtype=np.bool_), 0.5)
    small = [record_of(rectangle(x, 900, x + 90, 960, size), 0.5) for x in range(0, 4500, 900)]
    records = [*small * 20, whole]
    tracemalloc.start()
    sizes = {picture.shape for picture in pictures_of(image, records, "blurred")}
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert sizes == {(144, 144, 3), (1000, 1000, 3)}
    assert peak < 64 * 2**20  # the image has 57 MB, its mask 19


def test_wrong_views_images_and_masks_are_told_before_any_picture() -> None:
    image, mask = noise(), record(disc())
    with pytest.raises(OptionError, match="There is no view 'circle'; views of a mask are canvas, crop, masked, blur"):
        pictures_of(image, [mask], "circle")
    with pytest.raises(OptionError, match=r"Mask 2 of 2 belongs to an image of 10x20 pixels, but this one has 200x120"):
        pictures_of(image, [mask, record(np.ones((20, 10), dtype=np.bool_))])
    with pytest.raises(OptionError, match="Mask 1 of 1 is empty"):
        pictures_of(image, [record(np.zeros(SIZE, dtype=np.bool_))])
    for wrong, found in ((image.astype(np.float32), "float32"), (image[:, :, 0], r"\(120, 200\)"), ("a.jpg", "str")):
        with pytest.raises(OptionError, match=f"from an RGB image .* got .*{found}"):
            pictures_of(wrong, [mask])
    huge = Windows(np.broadcast_to(np.uint8(0), (20_000, 20_000, 3)))
    with pytest.raises(OptionError, match="canvas is as large as the image, 20000x20000"):
        pictures_of(huge, [], "canvas")
    assert list(pictures_of(ArraySource(image), [], "canvas")) == []
