"""What everything mode asks of a model. `anysam.predictor.Model` offers it; tests use stand-ins."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from torch import Tensor

from anysam.automatic.operators import Band
from anysam.encoded_image import EncodedImage
from anysam.memory import WorkingMemory


@dataclass(frozen=True, eq=False)
class Resize:
    """How logits (K, rows, w) of a low resolution become logits (K, H, W) of an image.

    exact: does it as `Model.predict` does, bit for bit, float32. rows (of H pixels) and columns (of W): the same, up to
    rounding, as weights on the logits' rows and columns (`operators.resize_operators`); None where logits have the
    image's size already. convex: no weight is negative, so that no result lies outside the range of the cells it is
    made of (false for bicubic).
    """

    original_size: tuple[int, int]
    exact: Callable[[Tensor], Tensor]
    rows: Band | None
    columns: Band | None
    convex: bool


@dataclass(frozen=True, eq=False)
class PointMasks:
    """The candidates of P points that passed a threshold.

    low_res_logits: (K, rows, w) float32, point by point. candidates: (K,) int64, p * C + c of each, rising.
    iou_predictions: (P, C) float32, of all candidates.
    """

    low_res_logits: Tensor
    candidates: Tensor
    iou_predictions: Tensor


class GridModel(Protocol):
    """A model that can be asked at many points."""

    def encode(self, image: np.ndarray) -> EncodedImage:
        """RGB uint8 (H, W, 3) -> what the other methods need of it."""
        ...

    def decode_points(self, encoded: EncodedImage, points: np.ndarray, least_iou: float) -> PointMasks:
        """Several masks (multimask) of each foreground point (P, 2) float64, x y in pixels of the encoded image.

        least_iou: masks with a predicted IoU up to it are left out; -inf leaves none out.
        """
        ...

    def resize(self, encoded: EncodedImage) -> Resize:
        """From the logits of decode_points to the encoded image's pixels."""
        ...


@runtime_checkable
class MeasuredModel(Protocol):
    """A model that knows what memory it takes; of others a usual amount is assumed."""

    def working_memory(self) -> WorkingMemory:
        """Bytes beside the weights."""
        ...
