"""A mask put in the terms that Tokenize Anything was trained with, and how well an answer fits the mask.

Only a mask's box is unfolded, and all else is done on at most SIDE x SIDE cells of it, whatever the image's size and
however many masks there are. Cells are parts of the box, of one size up to a pixel, at least a pixel.
"""

from dataclasses import dataclass

import cv2
import numpy as np

from anysam import rle
from anysam.derived_prompts import innermost_point
from anysam.errors import OptionError
from anysam.preprocess import Preprocess
from anysam.prompts import ResolvedPrompt
from anysam.results import MaskRecord
from anysam.rle import Box

SIDE = 256  # cells; Tokenize Anything's own masks have as many for the whole image


@dataclass(frozen=True, eq=False)
class ShownMask:
    """A mask as it is shown to a model.

    box: tight, x0 y0 x1 y1. rows (h + 1,), columns (w + 1,) int64: where the cells of the box begin and end, from 0.
    pixels: (h, w) int64, of the mask in each cell. point: (2,) float64, x y, the centre of a pixel of the mask, the one
    that is furthest from its border, up to the size of a cell.
    """

    box: Box
    rows: np.ndarray
    columns: np.ndarray
    pixels: np.ndarray
    point: np.ndarray

    def prompt(self, with_box: bool) -> ResolvedPrompt:
        """Its point, with or without its box."""
        box = np.array(self.box, dtype=np.float64) if with_box else None
        return ResolvedPrompt(self.point[None], np.ones(1, dtype=np.int64), box, mask=None, low_res_logits=None)


def show_mask(record: MaskRecord) -> ShownMask:
    """The mask of a record with at least one pixel; of the image no more than its box is unfolded."""
    box = rle.box(record.segmentation)
    if box is None:
        raise OptionError("A mask says that it has pixels but has none; its record is damaged.")
    inside = rle.window(record.segmentation, box)  # (y1 - y0, x1 - x0)
    rows, columns = (np.arange(min(side, SIDE) + 1) * side // min(side, SIDE) for side in inside.shape)
    pixels = np.add.reduceat(inside, rows[:-1], axis=0, dtype=np.int64)  # (h, x1 - x0)
    pixels = np.add.reduceat(pixels, columns[:-1], axis=1)  # (h, w)
    coverage = pixels / np.outer(np.diff(rows), np.diff(columns))  # (h, w) 0..1
    x, y = np.floor(innermost_point(coverage >= min(0.5, coverage.max()))).astype(np.int64)
    cell = inside[rows[y] : rows[y + 1], columns[x] : columns[x + 1]]
    point = _nearest_to_middle(cell) + (box[0] + columns[x], box[1] + rows[y])
    return ShownMask(box, rows, columns, pixels, point)


def _nearest_to_middle(cell: np.ndarray) -> np.ndarray:
    """x y (2,) of the centre of the pixel set in a cell (H, W) bool that is nearest to the middle."""
    y, x = np.nonzero(cell)
    centres = np.stack([x, y], axis=1) + 0.5  # (N, 2)
    away = np.hypot(*(centres - (cell.shape[1] / 2, cell.shape[0] / 2)).T)
    return centres[int(np.argmin(away))]


def overlap(
    shown: ShownMask, logits: np.ndarray, preprocess: Preprocess, input_size: tuple[int, int], size: tuple[int, int]
) -> float:
    """Intersection over union, 0 to 1, of a mask and low-resolution logits (h, w) float32, which mark it where > 0.

    Inside the box the logits are interpolated at the middle of each cell; outside of it they are counted as they are.
    input_size, size: (H, W) of the input frame and of the image. Logits that are not numbers overlap nothing.
    """
    stride = preprocess.low_res_stride
    down, across = (new / old / stride for new, old in zip(input_size, size, strict=True))  # logits a pixel
    y = (shown.box[1] + (shown.rows[1:] + shown.rows[:-1]) / 2) * down - 0.5  # (h,)
    x = (shown.box[0] + (shown.columns[1:] + shown.columns[:-1]) / 2) * across - 0.5  # (w,)
    x_map, y_map = (grid.astype(np.float32) for grid in np.meshgrid(x, y))  # each (h, w)
    found = cv2.remap(logits, x_map, y_map, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE) > 0  # (h, w)
    areas = np.outer(np.diff(shown.rows), np.diff(shown.columns))  # (h, w)
    common = int(shown.pixels[found].sum())
    other = int(areas[found].sum()) + _outside(logits, shown.box, (down, across), size) / (down * across)
    return common / (int(shown.pixels.sum()) + other - common)


def _outside(logits: np.ndarray, box: Box, scale: tuple[float, float], size: tuple[int, int]) -> int:
    """How many logits > 0 of the image, without its padding, have their middle outside a box. scale: logits a pixel."""
    y, x = ((np.arange(side) + 0.5) / each for side, each in zip(logits.shape, scale, strict=True))
    in_image = (y < size[0])[:, None] & (x < size[1])  # (h, w)
    in_box = ((y > box[1]) & (y < box[3]))[:, None] & ((x > box[0]) & (x < box[2]))  # (h, w)
    return int(np.count_nonzero((logits > 0) & in_image & ~in_box))
