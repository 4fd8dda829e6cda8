"""What can be asked of everything mode, checked when it is said."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Literal

import numpy as np

from anysam.errors import OptionError

Level = Literal["whole", "part", "subpart"]
LEAST_TILE = 64
# Beyond these lie days of work or no memory for the points; one digit too many is told at once.
MOST_POINTS_PER_SIDE = 1024
MOST_CROP_LAYERS = 6
LEVELS: tuple[Level, ...] = ("whole", "part", "subpart")


@dataclass(frozen=True, eq=False)
class EverythingOptions:
    """How all masks of an image are found. The first group is the published automatic mask generator's, by its names.

    points_per_side: points of the grid along each side, at most 1024; None when point_grids gives the points.
    points_per_batch: points asked at once, at most; the plan of max_memory may allow fewer. pred_iou_thresh: 0 to
    1, masks whose predicted IoU is not above it are dropped (0: none are). stability_score_thresh: 0 to 1, masks that
    change more when the threshold moves by stability_score_offset (in logits) to either side are dropped (0: none are).
    box_nms_thresh: 0 to 1, of two masks whose boxes have an IoU above it the one with the lower predicted IoU is
    dropped. crop_n_layers: further passes, at most 6, on crops of the image, 2^i x 2^i of them in layer i;
    crop_nms_thresh: as box_nms_thresh, between crops, the smaller crop wins; crop_overlap_ratio: overlap of crops as a
    part of the image's shorter side; crop_n_points_downscale_factor: points_per_side is divided by it to the power of
    the layer. point_grids: points of each layer instead, (N, 2) in 0..1, x y. min_mask_region_area: pixels; smaller
    holes are filled and smaller islands removed.

    Ours: levels: of the masks of each point, which sizes are candidates; None for all. min_area: pixels, smaller
    masks are dropped. max_masks: at most so many, the best. merge_duplicates: masks whose IoU is above it become one
    (the better); None: none do. panoptic: every pixel is in at most one mask, without islands or holes smaller than
    min_mask_region_area. confidence and nms_iou: of objects found by a detector or by FastSAM; None as published.
    tile: the side, in pixels, of tiles into which a large image is cut, at least 64; None for none; tile_overlap: 0.05
    to 0.9 of it.
    max_memory: bytes that may be taken above the loaded model; None is half of what is free.

    Raises OptionError for a value out of range.
    """

    points_per_side: int | None = 32
    points_per_batch: int | None = None
    pred_iou_thresh: float = 0.88
    stability_score_thresh: float = 0.95
    stability_score_offset: float = 1.0
    box_nms_thresh: float = 0.7
    crop_n_layers: int = 0
    crop_nms_thresh: float = 0.7
    crop_overlap_ratio: float = 512 / 1500
    crop_n_points_downscale_factor: int = 1
    point_grids: Sequence[np.ndarray] | None = None
    min_mask_region_area: int = 0
    levels: tuple[Level, ...] | None = None
    min_area: int = 0
    max_masks: int | None = None
    merge_duplicates: float | None = None
    panoptic: bool = False
    confidence: float | None = None
    nms_iou: float | None = None
    tile: int | None = None
    tile_overlap: float = 0.25
    max_memory: int | None = None

    def __post_init__(self) -> None:
        if (self.points_per_side is None) == (self.point_grids is None):
            raise OptionError(
                "Give points_per_side or point_grids, one of the two: with point_grids, points_per_side must be None."
            )
        for name in ("points_per_side", "points_per_batch", "max_masks", "max_memory"):
            _check_whole(name, getattr(self, name), 1, optional=True)
        _check_whole("tile", self.tile, LEAST_TILE, optional=True)
        _check_whole("crop_n_points_downscale_factor", self.crop_n_points_downscale_factor, 1)
        for name in ("crop_n_layers", "min_mask_region_area", "min_area"):
            _check_whole(name, getattr(self, name), 0)
        for name, value, most in (
            ("points_per_side", self.points_per_side, MOST_POINTS_PER_SIDE),
            ("crop_n_layers", self.crop_n_layers, MOST_CROP_LAYERS),
        ):
            if value is not None and value > most:
                raise OptionError(f"{name} must be at most {most}, got {value}; lower it.")
        for name in (
            *("pred_iou_thresh", "stability_score_thresh", "box_nms_thresh"),
            *("crop_nms_thresh", "crop_overlap_ratio"),
        ):
            _check_number(name, getattr(self, name), 1)
        for name in ("merge_duplicates", "confidence", "nms_iou"):
            _check_number(name, getattr(self, name), 1, optional=True)
        _check_number("stability_score_offset", self.stability_score_offset, math.inf)
        _check_number("tile_overlap", self.tile_overlap, 0.9, least=0.05)
        if not isinstance(self.panoptic, (bool, np.bool_)):
            raise OptionError(f"panoptic must be True or False, got {self.panoptic!r}.")
        self._check_levels()
        self._check_points()

    def _check_levels(self) -> None:
        if self.levels is None:
            return
        known = isinstance(self.levels, (tuple, list)) and all(level in LEVELS for level in self.levels)
        if not known or not self.levels or len(set(self.levels)) != len(self.levels):
            raise OptionError(f"levels must be some of {', '.join(LEVELS)}, each once, or None, got {self.levels!r}.")

    def _check_points(self) -> None:
        """Every layer of crops has at least one point, and all points are inside the image."""
        layers = self.crop_n_layers + 1
        if self.points_per_side is not None:
            last = int(self.points_per_side / self.crop_n_points_downscale_factor**self.crop_n_layers)
            if last < 1:
                raise OptionError(
                    f"points_per_side {self.points_per_side} divided by crop_n_points_downscale_factor "
                    f"{self.crop_n_points_downscale_factor} to the power of crop_n_layers {self.crop_n_layers} leaves "
                    "no point; raise the first or lower one of the others."
                )
        if self.point_grids is None:
            return
        if not isinstance(self.point_grids, (list, tuple, np.ndarray)):
            raise OptionError(f"point_grids must be a list of arrays (N, 2), got {type(self.point_grids).__name__}.")
        if len(self.point_grids) < layers:
            raise OptionError(
                f"point_grids must hold points for each of the {layers} layers (crop_n_layers + 1), "
                f"got {len(self.point_grids)}."
            )
        for i, grid in enumerate(self.point_grids):
            try:
                points = np.asarray(grid, dtype=np.float64)
            except (TypeError, ValueError) as error:
                raise OptionError(f"point_grids[{i}] must be numbers of shape (N, 2); {error}.") from error
            if points.ndim != 2 or points.shape[1] != 2 or not len(points):
                raise OptionError(f"point_grids[{i}] must be (N, 2) with N at least 1, got {points.shape}.")
            if not ((points >= 0) & (points <= 1)).all():
                raise OptionError(f"point_grids[{i}] must lie in 0..1, got {points.min():g} to {points.max():g}.")


def _check_whole(name: str, value: object, least: int, optional: bool = False) -> None:
    if optional and value is None:
        return
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, Integral) or value < least:
        none = " or None" if optional else ""
        raise OptionError(f"{name} must be a whole number of at least {least}{none}, got {value!r}.")


def _check_number(name: str, value: object, most: float, optional: bool = False, least: float = 0) -> None:
    if optional and value is None:
        return
    is_number = isinstance(value, Real) and not isinstance(value, (bool, np.bool_))
    if not is_number or not least <= value <= most or math.isinf(value):  # type: ignore[operator, arg-type]
        limits = "at least 0" if math.isinf(most) else f"from {least} to {most}"
        none = " or None" if optional else ""
        raise OptionError(f"{name} must be a number {limits}{none}, got {value!r}.")
