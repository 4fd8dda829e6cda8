"""Presets as options, and the levels of a point's masks: drawn cases, a second implementation, a tiny model."""

import itertools

import numpy as np
import pytest
import torch

from anysam.automatic.interface import PointMasks
from anysam.automatic.levels import SAME_SIZE, choose, keep_levels
from anysam.automatic.options import LEVELS, EverythingOptions
from anysam.automatic.presets import PRESETS, preset, presets_of
from anysam.catalogue import VARIANTS
from anysam.errors import OptionError, UnknownModelError


def levels_of(areas: list[int]) -> list[str]:
    """Of each of three masks the first letters of its levels: w, p, s."""
    by_level = {level[0]: choose(np.array([areas]), (level,))[0] for level in LEVELS}
    return ["".join(letter for letter in "wps" if by_level[letter][i]) for i in range(3)]


@pytest.mark.parametrize(
    ("areas", "expected"),
    [
        ([10, 100, 1000], ["s", "p", "w"]),
        ([1000, 100, 10], ["w", "p", "s"]),
        ([100, 1000, 10], ["p", "w", "s"]),  # the order of the masks means nothing
        ([1000, 995, 10], ["wp", "wp", "s"]),  # two are one
        ([1000, 20, 19], ["w", "ps", "ps"]),
        ([1000, 999, 998], ["wps", "wps", "wps"]),
        ([1000, 920, 840], ["wps", "wps", "wps"]),  # each of the size of the next
        ([1000, 900, 100], ["wp", "wp", "s"]),
        ([1000, 899, 100], ["w", "p", "s"]),
        ([1000, 100, 0], ["w", "ps", ""]),
        ([0, 1000, 990], ["", "wps", "wps"]),
        ([0, 0, 50], ["", "", "wps"]),
        ([0, 0, 0], ["", "", ""]),
    ],
)
def test_levels_are_the_ranks_of_sizes(areas: list[int], expected: list[str]) -> None:
    assert levels_of(areas) == expected


def levels_by_definition(areas: list[int], level: str) -> list[bool]:
    """Groups of about equal masks take as many ranks as they have members, the smallest also those of empty masks."""
    order = sorted((i for i in range(len(areas)) if areas[i]), key=lambda i: -areas[i])
    groups: list[list[int]] = []
    for i in order:
        if groups and areas[i] >= SAME_SIZE * areas[groups[-1][-1]]:
            groups[-1].append(i)
        else:
            groups.append([i])
    ranks: dict[int, set[int]] = {}
    taken = 0
    for number, group in enumerate(groups):
        stop = len(areas) if number == len(groups) - 1 else taken + len(group)
        for i in group:
            ranks[i] = set(range(taken, stop))
        taken += len(group)
    wanted = {"whole": 0, "part": 1, "subpart": 2}[level]
    return [wanted in ranks.get(i, ()) for i in range(len(areas))]


def test_levels_of_many_points_are_the_definition() -> None:
    areas = np.array(list(itertools.product([0, 5, 90, 95, 100, 1000], repeat=3)))
    for level in LEVELS:
        expected = [levels_by_definition(row, level) for row in areas.tolist()]
        np.testing.assert_array_equal(choose(areas, (level,)), expected)
    both = choose(areas, ("whole", "subpart"))
    np.testing.assert_array_equal(both, choose(areas, ("whole",)) | choose(areas, ("subpart",)))
    assert choose(areas, None).all()
    np.testing.assert_array_equal(choose(areas, LEVELS), areas > 0)


def test_models_with_one_or_two_masks_have_levels_too() -> None:
    assert all(choose(np.array([[7]]), (level,)).all() for level in LEVELS)
    assert [choose(np.array([[7, 70]]), (level,)).tolist() for level in LEVELS] == [
        [[False, True]],
        [[True, False]],
        [[True, False]],
    ]
    assert choose(np.zeros((0, 3)), ("whole",)).shape == (0, 3)


def answer_with(sizes: list[list[int]], scores: list[list[float]]) -> PointMasks:
    """Masks of so many cells."""
    flat = torch.tensor(sizes).flatten()
    logits = (torch.arange(100) < flat[:, None]).float().reshape(-1, 5, 20) - 0.5
    return PointMasks(logits, torch.arange(len(flat)), torch.tensor(scores))


def test_levels_are_told_apart_before_the_threshold() -> None:
    answer = answer_with([[10, 50, 99], [90, 30, 3]], [[0.9, 0.8, 0.2], [0.9, 0.95, 0.3]])
    whole = keep_levels(answer, ("whole",), 0.5)
    assert whole.candidates.tolist() == [3]  # the first point's whole is not sure enough, and nothing takes its place
    torch.testing.assert_close(whole.low_res_logits, answer.low_res_logits[[3]])
    torch.testing.assert_close(whole.iou_predictions, answer.iou_predictions)
    assert keep_levels(answer, ("whole",), float("-inf")).candidates.tolist() == [2, 3]
    assert keep_levels(answer, ("part", "subpart"), 0.5).candidates.tolist() == [0, 1, 4]
    assert keep_levels(answer, None, 0.85).candidates.tolist() == [0, 3, 4]
    assert len(keep_levels(answer, ("subpart",), 1.0).low_res_logits) == 0


def test_every_preset_is_for_every_model_options_or_a_reason() -> None:
    for variant in VARIANTS:
        for name in PRESETS:
            finding = variant.family in ("fast_sam", "object_aware")
            if finding and name not in ("default", "dense"):
                with pytest.raises(OptionError, match=f"{name}.*{variant.name} finds objects in one pass"):
                    preset(name, variant.name)
            else:
                assert isinstance(preset(name, variant.name), EverythingOptions)
            if name not in ("default", "dense"):
                with pytest.raises(OptionError, match="with a detector finds objects"):
                    preset(name, variant.name, detector=True)


def test_presets_of_sam() -> None:
    default = preset("default", "sam_vit_h")
    assert default.__dict__ == EverythingOptions().__dict__
    for level in LEVELS:
        assert preset(level, "sam_vit_h").__dict__ == {**default.__dict__, "levels": (level,)}
    assert preset("fast", "sam_vit_h").__dict__ == {**default.__dict__, "points_per_side": 16}
    dense = {
        "pred_iou_thresh": 0.86,
        "stability_score_thresh": 0.92,
        "crop_n_layers": 1,
        "crop_n_points_downscale_factor": 2,
        "min_mask_region_area": 100,
    }
    assert preset("dense", "sam_vit_h").__dict__ == {**default.__dict__, **dense}


def test_families_with_thresholds_of_their_own() -> None:
    expected = {
        "anysam_lite": (0.3, 0.0, 100),
        "efficient_sam_vits": (0.7, 0.9, 100),
        "efficientvit_sam_l1": (0.8, 0.85, 100),
        "slimsam_77_uniform": (0.88, 0.9, 100),
        "mobile_sam": (0.88, 0.95, 0),
        "tap_vit_b": (0.88, 0.95, 0),
    }
    for name, thresholds in expected.items():
        options = preset("default", name)
        found = options.pred_iou_thresh, options.stability_score_thresh, options.min_mask_region_area
        assert found == thresholds
    assert preset("dense", "efficient_sam_vits").pred_iou_thresh == 0.68


def test_finding_models_and_detectors_have_a_dense_preset() -> None:
    for options in (preset("dense", "fastsam_s"), preset("dense", "mobilesamv2_tiny_vit", detector=True)):
        assert options.__dict__ == {**EverythingOptions().__dict__, "confidence": 0.25}


def test_unknown_presets_and_models_are_refused() -> None:
    with pytest.raises(OptionError, match="no preset 'all'; presets are default, whole, part, subpart, dense, fast"):
        preset("all", "sam_vit_h")
    with pytest.raises(UnknownModelError, match="sam_vit_x"):
        preset("fast", "sam_vit_x")


@pytest.mark.parametrize("variant", [row.name for row in VARIANTS])
def test_the_presets_of_a_variant_are_those_that_are_not_refused(variant):
    for name in PRESETS:
        if name in presets_of(variant):
            preset(name, variant)
        else:
            with pytest.raises(OptionError):
                preset(name, variant)
