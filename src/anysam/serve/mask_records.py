"""From low-resolution logits to records of masks, without the masks as arrays: what a click costs after the decoder.

The pixels are those of `Model.predict`, but for images of more than 16 megapixels those that rounding decides (see
`automatic.regions`). Made only where a mask can be at all, and told apart from its surroundings by run lengths.
"""

from dataclasses import dataclass

import numpy as np
import torch

from anysam.automatic.regions import Frame, Region, region_spans
from anysam.encoded_image import EncodedImage
from anysam.models import PromptableModel
from anysam.predictor import Model
from anysam.results import MaskRecord
from anysam.rle import spans_area, spans_to_box, spans_to_runs, write_rle


@dataclass(frozen=True, eq=False)
class _Reach:
    """One axis: the first and the last cell that each pixel is made of, (n,) int64, both rising."""

    first: np.ndarray
    last: np.ndarray

    def of(self, marked: np.ndarray) -> tuple[int, int, int, int]:
        """Of marked cells (m,) bool, at least one of them set: first and end of the pixels that they are part of, first
        and end of the cells that these pixels are made of.
        """
        cells = np.flatnonzero(marked)
        start = int(np.searchsorted(self.last, cells[0]))
        end = int(np.searchsorted(self.first, cells[-1], side="right"))
        if end <= start:
            return 0, 0, 0, 0
        return start, end, int(self.first[start]), int(self.last[end - 1]) + 1


@dataclass(frozen=True, eq=False)
class MaskMaker:
    """How one image's logits become its masks. shape: (rows, columns) of the logits that are not padding."""

    frame: Frame
    shape: tuple[int, int]
    rows: _Reach
    columns: _Reach

    @classmethod
    def of(cls, model: Model, encoded: EncodedImage) -> "MaskMaker | None":
        """None where masks are better made whole: on a GPU, and where a pixel may lie outside the range of its cells
        (bicubic interpolation, models that find objects first).
        """
        if model.device.type != "cpu" or not isinstance(model.network, PromptableModel):
            return None
        with torch.inference_mode():
            resize = model.resize(encoded)
            if not resize.convex or resize.rows is None or resize.columns is None:
                return None
            shape = int(resize.rows.last.max()) + 1, int(resize.columns.last.max()) + 1
            frame = Frame.of(resize, torch.empty(1, *shape), 0.0, 1)
        axes = [_Reach(band.first.numpy(), band.last.numpy()) for band in (resize.rows, resize.columns)]
        return cls(frame, shape, *axes)

    def record(self, low_res_logits: np.ndarray, predicted_iou: float) -> MaskRecord:
        """The mask of logits (h, w) float32, in the model's frame. Raises OptionError for an IoU that is not finite."""
        height, width = self.frame.size
        spans = self._spans(low_res_logits[: self.shape[0], : self.shape[1]])
        box = spans_to_box(spans, height)
        x0, y0, x1, y1 = (0, 0, 0, 0) if box is None else box
        return MaskRecord(
            segmentation=write_rle(spans_to_runs(spans, height * width), (height, width)),
            area=spans_area(spans),
            box=(float(x0), float(y0), float(x1), float(y1)),
            predicted_iou=float(predicted_iou),
        )

    def _spans(self, logits: np.ndarray) -> np.ndarray:
        """The mask's spans (N, 2), see `anysam.rle`."""
        positive = logits > 0
        if not positive.any():
            return np.zeros((0, 2), dtype=np.int64)
        down, across = np.any(positive, axis=1, keepdims=True)[:, 0], np.any(positive, axis=0, keepdims=True)[0]
        top, bottom, first_row, end_row = self.rows.of(down)
        left, right, first_column, end_column = self.columns.of(across)
        cells = np.ascontiguousarray(logits[first_row:end_row, first_column:end_column])
        region = Region(
            (left, top, right, bottom), (first_column, first_row, end_column, end_row), torch.from_numpy(cells)
        )
        with torch.inference_mode():
            return region_spans(region, self.frame)
