"""Scores and clicks on arrays, against brute force and hand-computed values."""

import numpy as np
import pytest

from anysam.metrics import centre_most_point, correcting_point, grabcut_mask


def brute_force_depth(mask: np.ndarray) -> np.ndarray:
    """Distance of every mask pixel to the nearest pixel outside the mask; the image is surrounded by outside."""
    padded = np.pad(mask, 1)
    outside = np.argwhere(~padded)
    depth = np.zeros(padded.shape)
    for y, x in np.argwhere(padded):
        depth[y, x] = np.sqrt(((outside - (y, x)) ** 2).sum(axis=1)).min()
    return depth[1:-1, 1:-1]


def test_centre_most_point_is_the_deepest_pixel_by_brute_force():
    rng = np.random.default_rng(3)
    for _ in range(5):
        mask = np.zeros((24, 31), bool)
        for _ in range(4):
            y, x = rng.integers(0, 20, 2)
            mask[y : y + rng.integers(2, 9), x : x + rng.integers(2, 12)] = True
        x, y = centre_most_point(mask)
        depth = brute_force_depth(mask)
        assert mask[y, x]
        assert depth[y, x] == pytest.approx(depth.max(), abs=1e-3)


def test_centre_most_point_counts_the_image_edge_as_outside():
    mask = np.ones((5, 9), bool)
    x, y = centre_most_point(mask)
    assert y == 2 and 2 <= x <= 6


def test_centre_most_point_of_an_empty_mask_is_an_error():
    with pytest.raises(ValueError, match="empty"):
        centre_most_point(np.zeros((4, 4), bool))


def test_correcting_point_asks_for_the_missing_part_and_against_the_surplus():
    target = np.zeros((20, 40), bool)
    target[5:15, 5:25] = True
    missing = target.copy()
    missing[:, 15:] = False  # a 10 x 10 square is missing
    (x, y), label = correcting_point(missing, target)
    assert label == 1 and 15 <= x < 25 and 5 <= y < 15
    surplus = target.copy()
    surplus[2:18, 27:39] = True
    (x, y), label = correcting_point(surplus, target)
    assert label == 0 and 27 <= x < 39 and 2 <= y < 18


def test_correcting_point_prefers_the_error_with_the_larger_disc():
    target = np.zeros((30, 60), bool)
    target[10:20, 2:12] = True
    predicted = np.zeros_like(target)
    predicted[:, 30:60] = True  # surplus 30 x 30, missing 10 x 10
    assert correcting_point(predicted, target)[1] == 0


def test_correcting_point_of_a_perfect_mask_is_none():
    mask = np.eye(6, dtype=bool)
    assert correcting_point(mask, mask) is None


def test_grabcut_finds_a_disc_of_another_colour_inside_its_box():
    y, x = np.mgrid[:80, :100]
    disc = (y - 40) ** 2 + (x - 50) ** 2 < 20**2
    rng = np.random.default_rng(0)
    image = np.where(disc[..., None], (200, 40, 40), (30, 90, 160)) + rng.integers(-8, 9, (80, 100, 3))
    mask = grabcut_mask(image.astype(np.uint8), np.array([28.0, 18.0, 72.0, 62.0]))
    assert (mask & disc).sum() / (mask | disc).sum() > 0.98


def test_grabcut_of_a_box_over_the_whole_image_is_the_box():
    image = np.zeros((10, 12, 3), np.uint8)
    assert grabcut_mask(image, np.array([0.0, 0.0, 12.0, 10.0])).all()
