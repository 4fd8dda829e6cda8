"""What stays of a list of records: hand-computed cases, and duplicates against a comparison of all pairs of arrays."""

import dataclasses
import math

import numpy as np
import pytest

from anysam.automatic.options import EverythingOptions
from anysam.automatic.refine import keep_best, merge_duplicates, quality, refine
from anysam.errors import OptionError
from anysam.masks import mask_iou
from anysam.results import MaskRecord

SIZE = (20, 30)


def record(x0: int, y0: int, x1: int, y1: int, iou: float = 0.9, **facts: float) -> MaskRecord:
    mask = np.zeros(SIZE, dtype=np.bool_)
    mask[y0:y1, x0:x1] = True
    return dataclasses.replace(MaskRecord.from_mask(mask, iou), **facts)


def test_quality_is_the_product_of_what_is_known() -> None:
    assert quality(record(0, 0, 1, 1, 0.8)) == 0.8
    assert quality(record(0, 0, 1, 1, 0.8, stability_score=0.5)) == pytest.approx(0.4)
    assert quality(record(0, 0, 1, 1, 0.8, stability_score=0.5, detection_score=0.5)) == pytest.approx(0.2)
    assert quality(record(0, 0, 1, 1, 0.8, stability_score=math.nan)) == 0
    assert quality(record(0, 0, 1, 1, -0.8, stability_score=0.5, detection_score=0.5)) == 0


def test_the_best_stay_in_their_order() -> None:
    records = [record(i, 0, i + 1, 1, iou) for i, iou in enumerate([0.5, 0.9, 0.7, 0.9, 0.6])]
    assert keep_best(records, 3) == [records[1], records[2], records[3]]
    assert keep_best(records, 1) == [records[1]]  # the first of equal ones
    assert keep_best(records, 9) == records
    records[1] = dataclasses.replace(records[1], stability_score=0.6)
    assert keep_best(records, 2) == [records[2], records[3]]


def test_the_better_of_two_duplicates_stays_where_it_was() -> None:
    small, large, other = record(0, 0, 10, 9, 0.7), record(0, 0, 10, 10, 0.8), record(15, 0, 25, 10, 0.1)
    assert merge_duplicates([small, other, large], 0.89) == [other, large]  # their IoU is 0.9
    assert merge_duplicates([small, other, large], 0.9) == [small, other, large]  # not above it
    assert merge_duplicates([small, other, record(0, 0, 10, 10, 0.7)], 0.5) == [small, other]


def test_what_is_left_out_leaves_nothing_out() -> None:
    # b is like a and goes; c is like b but not like a.
    a, b, c = record(0, 0, 10, 10, 0.9), record(0, 2, 10, 12, 0.8), record(0, 4, 10, 14, 0.7)
    assert merge_duplicates([c, b, a], 0.6) == [c, a]


def test_empty_masks_are_like_no_other_and_sizes_must_agree() -> None:
    empty = record(0, 0, 0, 0)
    assert merge_duplicates([empty, empty], 0.0) == [empty, empty]
    assert merge_duplicates([], 0.5) == []
    with pytest.raises(OptionError, match="different sizes"):
        merge_duplicates([empty, MaskRecord.from_mask(np.ones((2, 2), dtype=np.bool_), 0.5)], 0.5)


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.7, 1.0])
@pytest.mark.parametrize("seed", range(3))
def test_duplicates_are_those_of_all_pairs(seed: int, threshold: float) -> None:
    generator = np.random.default_rng(seed)
    records = []
    for _ in range(60):
        x0, y0 = generator.integers(0, 15, 2)
        mask = np.zeros(SIZE, dtype=np.bool_)
        mask[y0 : y0 + generator.integers(1, 10), x0 : x0 + generator.integers(1, 15)] = True
        mask &= generator.random(SIZE) > generator.choice([0.0, 0.2])
        records.append(MaskRecord.from_mask(mask, round(generator.random(), 1)))
    records += records[:5]
    kept: list[int] = []
    for i in sorted(range(len(records)), key=lambda i: -records[i].predicted_iou):
        ious = [mask_iou(records[i].to_mask(), records[j].to_mask()) for j in kept]
        if not any(iou > threshold for iou in ious):
            kept.append(i)
    found = merge_duplicates(records, threshold)
    assert [id(each) for each in found] == [id(records[i]) for i in sorted(kept)]
    assert len(kept) < len(records) or threshold == 1.0


def test_options_apply_in_their_order() -> None:
    speck = record(0, 0, 2, 1, 0.99)
    whole, twin = record(0, 0, 20, 20, 0.9), record(0, 0, 20, 19, 0.8)
    inner, unsure = record(5, 5, 9, 9, 0.7), record(22, 0, 28, 6, 0.2)
    records = [speck, whole, twin, inner, unsure]
    assert refine(records, EverythingOptions()) == records
    assert refine(records, EverythingOptions(min_area=2)) == records
    assert refine(records, EverythingOptions(min_area=3)) == records[1:]
    assert refine(records, EverythingOptions(min_area=3, merge_duplicates=0.9)) == [whole, inner, unsure]
    # The twin takes no place among the best, and what is left out makes no hole in what stays.
    assert refine(records, EverythingOptions(min_area=3, merge_duplicates=0.9, max_masks=2)) == [whole, inner]
    options = EverythingOptions(min_area=3, merge_duplicates=0.9, max_masks=2, panoptic=True)
    assert [each.area for each in refine(records, options)] == [400 - 16, 16]
    assert refine(records, dataclasses.replace(options, max_masks=1)) == [whole]
    assert refine([], options) == []


def test_panoptic_limits_reach_the_panoptic_step() -> None:
    under, over = record(0, 0, 10, 4), record(0, 0, 9, 4)  # a column of 4 pixels stays visible
    options = EverythingOptions(panoptic=True)
    assert [each.area for each in refine([under, over], options)] == [4, 36]
    assert [each.area for each in refine([under, over], dataclasses.replace(options, min_area=5))] == [36]
    found = refine([under, over], dataclasses.replace(options, min_mask_region_area=5))
    assert [each.area for each in found] == [36]  # the column is no hole: it touches what nobody has
