"""Regions of spans against OpenCV's of arrays, and cleaned masks against the published way on arrays."""

import cv2
import numpy as np
import pytest

from anysam.automatic.small_regions import clean_mask
from anysam.automatic.span_regions import clean_spans, find_regions
from anysam.rle import mask_to_runs, runs_to_mask, runs_to_spans, spans_to_runs


def noise(height: int, width: int, grain: float, seed: int = 0, share: float = 0.5) -> np.ndarray:
    """A mask of about this share of the image; the larger the grain, the smoother."""
    field = cv2.GaussianBlur(np.random.default_rng(seed).normal(size=(height, width)), (0, 0), grain)
    return field > np.quantile(field, 1 - share)


def spans_of(mask: np.ndarray) -> np.ndarray:
    return runs_to_spans(mask_to_runs(mask))


def cleaned(mask: np.ndarray, min_area: int) -> np.ndarray:
    spans = clean_spans(spans_of(mask), mask.shape, min_area)
    return runs_to_mask(spans_to_runs(spans, mask.size), mask.shape)


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
        np.testing.assert_array_equal(cleaned(mask, min_area), clean_mask(mask, min_area)[0])


def test_cleaning_of_plain_masks() -> None:
    for mask in (np.zeros((4, 5), dtype=np.bool_), np.ones((4, 5), dtype=np.bool_)):
        for min_area in (0, 3, 21):
            np.testing.assert_array_equal(cleaned(mask, min_area), mask)
    two = np.zeros((5, 5), dtype=np.bool_)
    two[3:5, 0] = two[0:2, 4] = True  # equal and small; the hole between is not
    expected = np.zeros_like(two)
    expected[0:2, 4] = True  # the first by rows, though not by columns
    np.testing.assert_array_equal(cleaned(two, 3), expected)
    np.testing.assert_array_equal(cleaned(two, 22), np.ones_like(two))
