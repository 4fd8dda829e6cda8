"""Options by name: `preset("whole", "sam_vit_b")` is a plain EverythingOptions, to be changed further."""

import dataclasses
from collections.abc import Mapping

from anysam.automatic.options import LEVELS, EverythingOptions, Level
from anysam.catalogue import find_variant
from anysam.errors import OptionError

PRESETS = ("default", *LEVELS, "dense", "fast")

# What the authors of a family use where it is not what the published generator has, whose defaults were chosen for
# SAM's largest encoder. Families that are not here, among them TAP, which publishes no such mode, have those.
_BY_FAMILY: Mapping[str, EverythingOptions] = {
    # Ours: its predicted IoUs are low, its logits shallow, and its stability says little of a mask (correlation with
    # the true overlap 0.15 to 0.19, of the predicted IoU 0.33); the published thresholds leave no mask at all.
    # Measured with the weights that ship on 30 photographs of ten data sets (`anysam eval everything --limit 30`): at
    # 0.3 it finds .54 of the objects at an IoU of 0.5 in 165 masks, at 0.4 .48 in 69. Four times the points found as
    # much in as many masks, with the first version's weights.
    "anysam_lite": EverythingOptions(
        points_per_side=16,
        pred_iou_thresh=0.3,
        stability_score_thresh=0.0,
        box_nms_thresh=0.8,
        min_mask_region_area=100,
    ),
    # mit-han-lab/efficientvit, applications/efficientvit_sam/demo_efficientvit_sam_model.py
    "efficientvit_sam": EverythingOptions(pred_iou_thresh=0.8, stability_score_thresh=0.85, min_mask_region_area=100),
    # yformer/EfficientSAM, notebooks/EfficientSAM_segment_everything_example.ipynb. There a point gives only its mask
    # with the highest predicted IoU; here all three are candidates and suppression decides.
    "efficient_sam": EverythingOptions(pred_iou_thresh=0.7, stability_score_thresh=0.9, min_mask_region_area=100),
    # czg1225/SlimSAM, inference.py. It has a layer of crops too, which `dense` is for.
    "slim_sam": EverythingOptions(stability_score_thresh=0.9, min_mask_region_area=100),
}

# They find objects in one pass and know neither points nor several masks of a point.
_FINDING_FAMILIES = ("fast_sam", "object_aware")
_FINDING_PRESETS = ("default", "dense")
_DENSE_CONFIDENCE = 0.25  # CASIA-IVA-Lab/FastSAM: its demonstrations; 0.4 is its command's

# The published generator's second example (segment-anything, notebooks/automatic_mask_generator_example.ipynb): a
# predicted IoU of 0.86 instead of 0.88, a stability of 0.92 instead of 0.95, four crops with 16 x 16 points each, and
# no specks. What is too small for the grid is twice as large in a crop; together 2048 points in five encodings.
_DENSE_IOU, _DENSE_STABILITY, _SPECK = 0.02, 0.03, 100


def preset(name: str, variant: str, *, detector: bool = False) -> EverythingOptions:
    """The options that a preset means for a variant of the catalogue, or for one that is given a detector's boxes.

    default: what the family's authors use. whole, part, subpart: of each point's masks those of one size, see
    `levels.choose`. dense: less certain and smaller masks too, in twice the time and five encodings. fast: a quarter of
    the points. Where objects are found and no points asked, dense means objects down to a score of 0.25, and the
    others nothing.

    Raises OptionError for a preset that there is not or that means nothing here, UnknownModelError for a variant that
    there is not.
    """
    family = find_variant(variant).family
    if name not in PRESETS:
        raise OptionError(f"There is no preset {name!r}; presets are {', '.join(PRESETS)}.")
    if detector or family in _FINDING_FAMILIES:
        return _finding(name, variant, detector)
    options = _BY_FAMILY.get(family, EverythingOptions())
    if name == "dense":
        return dataclasses.replace(
            options,
            pred_iou_thresh=round(options.pred_iou_thresh - _DENSE_IOU, 6),
            stability_score_thresh=round(max(options.stability_score_thresh - _DENSE_STABILITY, 0), 6),
            crop_n_layers=1,
            crop_n_points_downscale_factor=2,
            min_mask_region_area=_SPECK,
        )
    if name == "fast":
        assert options.points_per_side is not None
        return dataclasses.replace(options, points_per_side=options.points_per_side // 2)
    levels: tuple[Level, ...] = tuple(level for level in LEVELS if level == name)
    return dataclasses.replace(options, levels=levels or None)


def presets_of(variant: str) -> tuple[str, ...]:
    """The presets that mean something for a variant. Raises UnknownModelError."""
    return _FINDING_PRESETS if find_variant(variant).family in _FINDING_FAMILIES else PRESETS


def _finding(name: str, variant: str, detector: bool) -> EverythingOptions:
    if name == "default":
        return EverythingOptions()
    if name == "dense":
        return EverythingOptions(confidence=_DENSE_CONFIDENCE)
    reason = f"{variant} with a detector" if detector else variant
    raise OptionError(
        f"The preset {name!r} is about the points that a model is asked at, but {reason} finds objects in one pass; "
        f"presets for it are {' and '.join(_FINDING_PRESETS)}."
    )
