"""Resizing of logits taken apart: which cells of the low resolution make a pixel, and with which weights.

Every published way of resizing treats rows and columns alike and each on its own, so that two bands of weights say all
of it. They are read off the interpolation itself, by resizing patterns, so that they hold its own roundings of the
sampling positions.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from anysam.preprocess import Preprocess

# A pixel of two bilinear steps is made of at most 3 neighbouring cells, of one bicubic step of 4. Cells are told apart
# by their index modulo this, which must exceed the number of cells by more than the uncertainty of where they are.
_PERIOD = 8

# Bounds the roundings on both ways from a pixel's cells to its value: in one or two steps of interpolation, and by
# weights; relative to the sum of |weight x cell|. Each way has at most 16 products and sums in a row.
ROUNDING = 32 * 2.0**-24


@dataclass(frozen=True, eq=False)
class Band:
    """Resizing along one axis: pixel i is the sum over t of weights[i, t] x cell[cells[i, t]].

    cells: (n, T) int64, rising with t, then repeated with weight 0; rising with i. weights: (n, T) float32.
    first, last: (n,) int64, the outermost of a pixel's cells.
    """

    cells: Tensor
    weights: Tensor
    first: Tensor
    last: Tensor

    def __len__(self) -> int:
        return len(self.cells)


def identity_band(count: int, device: torch.device | str = "cpu") -> Band:
    """No resizing at all."""
    cells = torch.arange(count, device=device)
    return Band(cells[:, None], torch.ones(count, 1, device=device), cells, cells)


def resize_operators(
    preprocess: Preprocess,
    input_size: tuple[int, int],
    original_size: tuple[int, int],
    low_res_size: tuple[int, int],
    device: torch.device | str = "cpu",
) -> tuple[Band, Band]:
    """What `preprocess.upscale_logits` does along the rows and the columns of logits of low_res_size (h, w).

    low_res_size: as many rows and columns as the logits have. device: where the logits will be, because positions are
    rounded otherwise on another.
    """
    stride = preprocess.low_res_stride
    if preprocess.mask_resize == "bicubic":
        steps = [[(side, side)] for side in original_size]
        mode: Literal["bilinear", "bicubic"] = "bicubic"
    else:
        mode = "bilinear"
        steps = [
            [(cells * stride, input_side), (side, side)]
            for cells, input_side, side in zip(low_res_size, input_size, original_size, strict=True)
        ]
    where = torch.device(device)
    rows, columns = (_band(cells, axis, mode, where) for cells, axis in zip(low_res_size, steps, strict=True))
    return rows, columns


def _band(count: int, steps: list[tuple[int, int]], mode: Literal["bilinear", "bicubic"], device: torch.device) -> Band:
    """The band of `count` cells resized step by step: to so many pixels, of which the first so many are kept."""
    index = torch.arange(count, device=device)
    patterns = functional.one_hot(index % _PERIOD, _PERIOD).float()  # (count, 8): which cells go into a pixel
    place = index.float()[:, None]  # (count, 1)
    for size, kept in steps:
        patterns = _resize_rows(patterns, size, mode)[:kept]  # (kept, 8)
        place = _resize_rows(place, size, mode)[:kept]  # (kept, 1)
    # The cells around a pixel's place, which is known well enough to tell them from those a period away.
    cells = place.round().long() - _PERIOD // 2 + torch.arange(_PERIOD, device=device)  # (n, 8)
    weights = patterns.gather(1, cells.remainder(_PERIOD))  # (n, 8)
    used = (weights != 0) & (cells >= 0) & (cells < count)
    assert bool(used.any(dim=1).all()) and bool((weights[~used] == 0).all())
    order = torch.sort(~used, dim=1, stable=True).indices  # the used ones first, still rising
    width = int(used.sum(dim=1).max())
    cells, weights, used = (part.gather(1, order)[:, :width] for part in (cells, weights, used))
    first = cells[:, 0].contiguous()
    last = cells.gather(1, used.sum(dim=1, keepdim=True) - 1)[:, 0]
    return Band(torch.where(used, cells, first[:, None]), weights * used, first, last)


def _resize_rows(values: Tensor, size: int, mode: Literal["bilinear", "bicubic"]) -> Tensor:
    """(n, k) -> (size, k): along the first axis as the whole would be; the other is resized to itself, exactly."""
    image = functional.interpolate(values[None, None], (size, values.shape[1]), mode=mode, align_corners=False)
    return image[0, 0]  # (size, k)
