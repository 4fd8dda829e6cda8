"""Regions of spans against OpenCV's of arrays, and cleaned masks against the published way on arrays."""

import cv2
import numpy as np
import pytest

from anysam.automatic.span_regions import clean_spans, find_regions
from anysam.rle import mask_to_runs, runs_to_mask, runs_to_spans, spans_to_runs
from naive_regions import clean_mask


def noise(height: int, width: int, grain: float, seed: int = 0, share: float = 0.5) -> np.ndarray:
    """A mask of about this share of the image; the larger the grain, the smoother."""
    field = cv2.GaussianBlur(np.random.default_rng(seed).normal(size=(height, width)), (0, 0), grain)
    return field > np.quantile(field, 1 - share)


def spans_of(mask: np.ndarray) -> np.ndarray:
    return runs_to_spans(mask_to_runs(mask))


def cleaned(mask: np.ndarray, min_area: int) -> tuple[np.ndarray, bool]:
    spans, changed = clean_spans(spans_of(mask), mask.shape, min_area)
    return runs_to_mask(spans_to_runs(spans, mask.size), mask.shape), changed


@pytest.mark.parametrize("grain", [0.4, 1, 3])
def test_regions_are_those_of_opencv(grain: float) -> None:
    mask = noise(60, 47, grain)
    pieces, found, areas = find_regions(spans_of(mask), 60)
    count, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    assert len(areas) == count - 1 and sorted(areas) == sorted(stats[1:, cv2.CC_STAT_AREA])
    flat = labels.ravel(order="F")
    for region in range(len(areas)):
        own = np.concatenate([flat[start:stop] for start, stop in pieces[found == region].tolist()])
        assert (own == own[0]).all() and len(own) == areas[region]
    assert ((pieces // 60)[:, 0] == ((pieces - 1) // 60)[:, 1]).all()  # each of one column


def test_a_snake_is_one_region() -> None:
    mask = np.zeros((41, 41), dtype=np.bool_)
    mask[::2] = True
    mask[1::4, -1] = mask[3::4, 0] = True
    _, found, areas = find_regions(spans_of(mask), 41)
    assert areas.tolist() == [np.count_nonzero(mask)] and not found.any()


@pytest.mark.parametrize("min_area", [0, 1, 2, 9, 60, 3000])
@pytest.mark.parametrize("grain", [0.4, 0.8, 2])
@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.98])
def test_cleaned_masks_are_the_published_ones(grain: float, share: float, min_area: int) -> None:
    for seed in range(3):
        mask = noise(50, 43, grain, seed, share)
        ours, published = cleaned(mask, min_area), clean_mask(mask, min_area)
        np.testing.assert_array_equal(ours[0], published[0])
        assert ours[1] == published[1]


def test_cleaning_of_plain_masks() -> None:
    empty, full, two = np.zeros((3, 5, 5), dtype=np.bool_)
    full[:] = True
    two[3:5, 0] = two[0:2, 4] = True  # equal and small; what is between them is not
    first = np.zeros_like(two)
    first[0:2, 4] = True  # by rows, though not by columns
    for mask, min_area, expected, changed in (
        (empty, 3, empty, False),
        (empty, 26, full, True),  # all of the image is a hole
        (full, 3, full, False),
        (full, 26, full, True),  # the largest island stays, but it was a small one
        (two, 2, two, False),
        (two, 3, first, True),
        (two, 22, full, True),
    ):
        found = cleaned(mask, min_area)
        np.testing.assert_array_equal(found[0], expected)
        assert found[1] == clean_mask(mask, min_area)[1] == changed
        np.testing.assert_array_equal(clean_mask(mask, min_area)[0], expected)
