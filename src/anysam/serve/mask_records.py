"""From low-resolution logits to records of masks: what a click costs after the decoder.

The masks are those of `Model.predict`, bit for bit up to 16 megapixels. They are resized by OpenCV, in a tenth of
PyTorch's time and without Python's lock. The two differ by rounding, so pixels near the threshold are looked at again
in double precision, and where that does not decide, the mask is resized as `Model.predict` does it. Large images take
`automatic.regions` instead, which needs little memory.
"""

from dataclasses import dataclass

import cv2
import numpy as np
import torch

from anysam.automatic.regions import Frame, Region, region_spans
from anysam.encoded_image import EncodedImage
from anysam.models import PromptableModel
from anysam.predictor import Model
from anysam.results import MaskRecord
from anysam.rle import spans_area, spans_to_box, spans_to_runs, write_rle

# Up to this many pixels a mask is made as a whole.
_WHOLE_PIXELS = 4 * 1024 * 1024
# How far OpenCV's result may be from PyTorch's, relative to the largest logit. The most that was seen is 4e-6, over
# ten sizes from 77x77 to 12000x9000; the pixels within this are few.
_DIFFERENCE = 1e-4


@dataclass(frozen=True, eq=False)
class _Axis:
    """Pixel i is the sum over t of weights[t, i] x cell[cells[t, i]]; first and last: (n,) int64, its outermost cells.

    cells, weights: (T, n), int64 and float64.
    """

    cells: np.ndarray
    weights: np.ndarray
    first: np.ndarray
    last: np.ndarray

    def reach(self, marked: np.ndarray) -> tuple[int, int, int, int]:
        """Of marked cells (m,) bool, at least one of them set: first and end of the pixels that they are part of, first
        and end of the cells that these pixels are made of.
        """
        cells = np.flatnonzero(marked)
        start = int(np.searchsorted(self.last, cells[0]))
        end = int(np.searchsorted(self.first, cells[-1], side="right"))
        if end <= start:  # an image so small that cells are left out
            return 0, 0, 0, 0
        return start, end, int(self.first[start]), int(self.last[end - 1]) + 1


@dataclass(frozen=True, eq=False)
class MaskMaker:
    """How one image's logits become its masks.

    shape: (rows, columns) of the logits that are not padding. stride: pixels of the input frame per logit. input_size:
    (H, W) in the input frame.
    """

    frame: Frame
    shape: tuple[int, int]
    stride: int
    input_size: tuple[int, int]
    rows: _Axis
    columns: _Axis

    @classmethod
    def of(cls, model: Model, encoded: EncodedImage) -> "MaskMaker | None":
        """None where masks are better made by the model: on a GPU, and where a pixel may lie outside the range of its
        cells (bicubic interpolation, models that find objects first).
        """
        if model.device.type != "cpu" or not isinstance(model.network, PromptableModel):
            return None
        with torch.inference_mode():
            resize = model.resize(encoded)
            if not resize.convex or resize.rows is None or resize.columns is None:
                return None
            preprocess = model.network.preprocess
            stride = preprocess.low_res_stride
            low_res_size = preprocess.low_res_size(encoded.input_size)
            # One cell beyond the image is looked at, as in `preprocess.upscale_logits`.
            height, width = (
                min(cells, -(-side // stride) + 1) for cells, side in zip(low_res_size, encoded.input_size, strict=True)
            )
            frame = Frame.of(resize, torch.empty(1, height, width), 0.0, 1)
        rows, columns = (
            _Axis(
                np.ascontiguousarray(band.cells.numpy().T),
                np.ascontiguousarray(band.weights.numpy().T.astype(np.float64)),
                band.first.numpy(),
                band.last.numpy(),
            )
            for band in (resize.rows, resize.columns)
        )
        return cls(frame, (height, width), stride, encoded.input_size, rows, columns)

    def record(self, low_res_logits: np.ndarray, predicted_iou: float) -> MaskRecord:
        """The mask of logits (h, w) float32, in the model's frame. Raises OptionError for an IoU that is not finite."""
        height, width = self.frame.size
        spans = self.spans(low_res_logits)
        box = spans_to_box(spans, height)
        x0, y0, x1, y1 = (0, 0, 0, 0) if box is None else box
        return MaskRecord(
            segmentation=write_rle(spans_to_runs(spans, height * width), (height, width)),
            area=spans_area(spans),
            box=(float(x0), float(y0), float(x1), float(y1)),
            predicted_iou=float(predicted_iou),
        )

    def spans(self, low_res_logits: np.ndarray) -> np.ndarray:
        """The mask's spans (N, 2) int64, see `anysam.rle`."""
        rows, columns = self.shape
        logits = low_res_logits[:rows, :columns]
        positive = logits > 0
        if not positive.any():
            return np.zeros((0, 2), dtype=np.int64)
        top, bottom, first_row, end_row = self.rows.reach(positive.max(axis=1))
        left, right, first_column, end_column = self.columns.reach(positive.max(axis=0))
        if left == right or top == bottom:
            return np.zeros((0, 2), dtype=np.int64)
        if self.frame.size[0] * self.frame.size[1] <= _WHOLE_PIXELS:
            return self._whole_spans(logits, left, right)
        cells = torch.from_numpy(np.ascontiguousarray(logits[first_row:end_row, first_column:end_column]))
        place = first_column, first_row, end_column, end_row
        with torch.inference_mode():
            return region_spans(Region((left, top, right, bottom), place, cells), self.frame)

    def _whole_spans(self, logits: np.ndarray, left: int, right: int) -> np.ndarray:
        """Of logits (rows, columns) whose mask lies in the columns of pixels from left to right."""
        values = self._resized(logits)[left:right]  # (n, H), column by column as run lengths go
        limit = np.float32(_DIFFERENCE * float(np.abs(logits).max()))
        mask = values > limit
        close = np.flatnonzero(mask.reshape(-1) != (values >= -limit).reshape(-1))
        if len(close):
            above = self._above(logits, left, close)
            if above is None:
                with torch.inference_mode():
                    exact = self.frame.resize.exact(torch.from_numpy(np.ascontiguousarray(logits))[None])[0]  # (H, W)
                    mask = (exact[:, left:right] > 0).T.contiguous().numpy()
            else:
                mask.reshape(-1)[close] = above
        flat = mask.reshape(-1)
        edges = np.flatnonzero(flat[1:] != flat[:-1]) + 1
        begin, end = ([0] if flat[0] else []), ([len(flat)] if flat[-1] else [])
        return (np.concatenate([begin, edges, end]).astype(np.int64) + left * self.frame.size[0]).reshape(-1, 2)

    def _resized(self, logits: np.ndarray) -> np.ndarray:
        """Logits (rows, columns) -> (W, H) float32, turned: `preprocess.upscale_logits` but for rounding."""
        (rows, columns), (height, width) = self.shape, self.input_size
        padded = cv2.resize(
            np.ascontiguousarray(logits.T), (rows * self.stride, columns * self.stride), interpolation=cv2.INTER_LINEAR
        )
        return cv2.resize(padded[:width, :height], self.frame.size, interpolation=cv2.INTER_LINEAR)

    def _above(self, logits: np.ndarray, left: int, places: np.ndarray) -> np.ndarray | None:
        """Which of the pixels at places (N,), counted down the columns from `left`, are in the mask, (N,) bool; None
        if rounding decides one of them.
        """
        x, y = np.divmod(places, self.frame.size[0])
        x += left
        cells = logits[self.rows.cells[:, None, y], self.columns.cells[None, :, x]].astype(np.float64)  # (T, T, N)
        parts = cells * (self.rows.weights[:, None, y] * self.columns.weights[None, :, x])
        exact = parts.sum(axis=(0, 1))  # (N,)
        if (np.abs(exact) <= self.frame.rounding * np.abs(parts).sum(axis=(0, 1))).any():
            return None
        return exact > 0
