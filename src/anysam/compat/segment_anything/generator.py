"""The published `SamAutomaticMaskGenerator`: its arguments and its records, by this package's everything mode."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from anysam.automatic.grid_mode import grid_records
from anysam.automatic.options import EverythingOptions
from anysam.compat.segment_anything.predictor import SamPredictor
from anysam.compat.segment_anything.sam import Sam
from anysam.errors import OptionError
from anysam.images import read_image
from anysam.predictor import Model
from anysam.results import MaskRecord
from anysam.rle import mask_to_runs

_OUTPUT_MODES = ("binary_mask", "uncompressed_rle", "coco_rle")


class SamAutomaticMaskGenerator:
    """All masks of an image, with the published arguments; what they mean is at `anysam.EverythingOptions`."""

    def __init__(
        self,
        model: Sam,
        points_per_side: int | None = 32,
        points_per_batch: int = 64,
        pred_iou_thresh: float = 0.88,
        stability_score_thresh: float = 0.95,
        stability_score_offset: float = 1.0,
        box_nms_thresh: float = 0.7,
        crop_n_layers: int = 0,
        crop_nms_thresh: float = 0.7,
        crop_overlap_ratio: float = 512 / 1500,
        crop_n_points_downscale_factor: int = 1,
        point_grids: Sequence[np.ndarray] | None = None,
        min_mask_region_area: int = 0,
        output_mode: str = "binary_mask",
    ) -> None:
        if output_mode not in _OUTPUT_MODES:
            raise OptionError(f"output_mode must be one of {', '.join(_OUTPUT_MODES)}, got {output_mode!r}.")
        self.predictor = SamPredictor(model)
        self.options = EverythingOptions(
            points_per_side=points_per_side,
            points_per_batch=points_per_batch,
            pred_iou_thresh=pred_iou_thresh,
            stability_score_thresh=stability_score_thresh,
            stability_score_offset=stability_score_offset,
            box_nms_thresh=box_nms_thresh,
            crop_n_layers=crop_n_layers,
            crop_nms_thresh=crop_nms_thresh,
            crop_overlap_ratio=crop_overlap_ratio,
            crop_n_points_downscale_factor=crop_n_points_downscale_factor,
            point_grids=point_grids,
            min_mask_region_area=min_mask_region_area,
        )
        self.output_mode = output_mode

    def generate(self, image: np.ndarray) -> list[dict[str, Any]]:
        """All masks of an RGB image, uint8 (H, W, 3), in the published order.

        Each is a dict: "segmentation" (bool (H, W), or run lengths as output_mode says), "area" in pixels, "bbox"
        x y width height (to the last pixel, not beyond it), "predicted_iou", "point_coords" [[x, y]],
        "stability_score", "crop_box" x y width height.
        """
        sam = self.predictor.model
        dtype = next(sam.parameters()).dtype
        model = Model(sam.variant, sam.network.eval(), sam.device, dtype, sam.weights_sha256)
        with torch.inference_mode():
            records = grid_records(model, read_image(image), self.options, None)
        return [self._annotation(record) for record in records]

    def _annotation(self, record: MaskRecord) -> dict[str, Any]:
        x0, y0, x1, y1 = record.box
        empty = record.area == 0
        assert record.prompt is not None and record.crop_box is not None
        left, top, right, bottom = record.crop_box
        return {
            "segmentation": self._segmentation(record),
            "area": record.area,
            "bbox": [x0, y0, 0.0, 0.0] if empty else [x0, y0, x1 - x0 - 1, y1 - y0 - 1],
            "predicted_iou": record.predicted_iou,
            "point_coords": record.prompt["points"],
            "stability_score": record.stability_score,
            "crop_box": [left, top, right - left, bottom - top],
        }

    def _segmentation(self, record: MaskRecord) -> np.ndarray | dict[str, Any]:
        if self.output_mode == "coco_rle":
            return record.segmentation
        mask = record.to_mask()
        if self.output_mode == "binary_mask":
            return mask
        return {"size": list(mask.shape), "counts": mask_to_runs(mask).tolist()}
