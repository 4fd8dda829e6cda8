import numpy as np
import pytest

from anysam.automatic.options import EverythingOptions
from anysam.errors import OptionError


def test_defaults_are_the_published_ones():
    options = EverythingOptions()
    assert options.points_per_side == 32
    assert (options.pred_iou_thresh, options.stability_score_thresh, options.stability_score_offset) == (0.88, 0.95, 1)
    assert (options.box_nms_thresh, options.crop_nms_thresh, options.crop_overlap_ratio) == (0.7, 0.7, 512 / 1500)
    assert (options.crop_n_layers, options.crop_n_points_downscale_factor, options.min_mask_region_area) == (0, 1, 0)


def test_numbers_of_numpy_are_numbers():
    EverythingOptions(points_per_side=np.int64(4), pred_iou_thresh=np.float32(0.5), stability_score_offset=2)
    EverythingOptions(points_per_side=None, point_grids=[[[0.5, 0.5]]], levels=("part", "whole"), max_memory=10)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"points_per_side": None}, "points_per_side or point_grids"),
        ({"point_grids": [np.zeros((1, 2))]}, "points_per_side or point_grids"),
        ({"points_per_side": 0}, "points_per_side must be a whole number of at least 1 or None, got 0"),
        ({"points_per_side": 2.5}, "whole number"),
        ({"points_per_side": 100_000}, "points_per_side must be at most 1024, got 100000"),
        ({"crop_n_layers": 20}, "crop_n_layers must be at most 6, got 20"),
        ({"points_per_side": True}, "whole number"),
        ({"points_per_batch": 0}, "points_per_batch"),
        ({"max_memory": 0}, "max_memory"),
        ({"max_memory": "2G"}, "max_memory .* got '2G'"),
        ({"max_masks": 0}, "max_masks"),
        ({"tile": -5}, "tile must be"),
        ({"crop_n_layers": -1}, "crop_n_layers must be a whole number of at least 0, got -1"),
        ({"min_mask_region_area": 1.5}, "min_mask_region_area"),
        ({"min_area": None}, "min_area"),
        ({"crop_n_points_downscale_factor": 0}, "downscale_factor"),
        ({"pred_iou_thresh": 1.5}, "pred_iou_thresh must be a number from 0 to 1, got 1.5"),
        ({"pred_iou_thresh": -0.1}, "pred_iou_thresh"),
        ({"stability_score_thresh": float("nan")}, "stability_score_thresh"),
        ({"stability_score_offset": float("inf")}, "stability_score_offset must be a number at least 0"),
        ({"stability_score_offset": -1}, "stability_score_offset"),
        ({"box_nms_thresh": "0.7"}, "box_nms_thresh"),
        ({"crop_nms_thresh": 2}, "crop_nms_thresh"),
        ({"crop_overlap_ratio": 1.1}, "crop_overlap_ratio"),
        ({"merge_duplicates": 1.1}, "merge_duplicates must be a number from 0 to 1 or None"),
        ({"confidence": -1}, "confidence"),
        ({"nms_iou": None, "tile_overlap": 0.95}, "tile_overlap must be a number from 0.05 to 0.9"),
        ({"panoptic": 1}, "panoptic"),
        ({"levels": ()}, "levels must be some of whole, part, subpart"),
        ({"levels": ("whole", "whole")}, "each once"),
        ({"levels": "whole"}, "levels"),
        ({"levels": ("half",)}, "levels"),
        ({"points_per_side": 4, "crop_n_layers": 3, "crop_n_points_downscale_factor": 2}, "leaves no point"),
        ({"points_per_side": None, "point_grids": "0.5 0.5"}, "list of arrays"),
        ({"points_per_side": None, "point_grids": []}, "each of the 1 layers"),
        ({"points_per_side": None, "point_grids": [[[0.5, 0.5]]], "crop_n_layers": 1}, "each of the 2 layers"),
        ({"points_per_side": None, "point_grids": [[0.5, 0.5]]}, r"point_grids\[0\] must be \(N, 2\)"),
        ({"points_per_side": None, "point_grids": [np.zeros((0, 2))]}, "N at least 1"),
        ({"points_per_side": None, "point_grids": [[[0.5, 1.5]]]}, r"in 0..1, got 0.5 to 1.5"),
        ({"points_per_side": None, "point_grids": [[["a", "b"]]]}, "must be numbers"),
        ({"points_per_side": None, "point_grids": [[[float("nan"), 0]]]}, "in 0..1"),
    ],
    ids=str,
)
def test_a_value_out_of_range_is_refused_in_one_line(wrong, message):
    with pytest.raises(OptionError, match=message) as caught:
        EverythingOptions(**wrong)
    assert "\n" not in str(caught.value)
