"""Full-size evaluation of masks, in their part of the image only, with the result of the published resizing.

A pixel's logit is compared with a threshold. The value by weights differs from the published one by rounding, so a
pixel that is too close to tell is looked at in double precision, and where that does not decide either, the mask is
resized as published as a whole.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from anysam.automatic.filters import stability_ratio
from anysam.automatic.interface import Resize
from anysam.automatic.operators import ROUNDING, Band, identity_band

# Above this many pixels the value by weights is the result, because the published resizing takes the whole image at
# once; pixels that are within rounding of a threshold may then fall on the other side of it than in Model.predict.
EXACT_PIXELS = 16 * 1024 * 1024

_BLOCK = 48 * 1024  # pixels evaluated at once on a CPU: what stays in its caches


@dataclass(frozen=True, eq=False)
class Region:
    """One mask's logits where they matter. pixels, cells: x0 y0 x1 y1, right and bottom exclusive. logits: (h', w')."""

    pixels: tuple[int, int, int, int]
    cells: tuple[int, int, int, int]
    logits: Tensor

    @property
    def nbytes(self) -> int:
        return self.logits.numel() * self.logits.element_size()


@dataclass(frozen=True, eq=False)
class _Axis:
    """A band as arrays, for the CPU. weights: (T, n, 1), cells: (T, n)."""

    cells: np.ndarray
    weights: np.ndarray

    @classmethod
    def of(cls, band: Band) -> "_Axis":
        weights = np.ascontiguousarray(band.weights.cpu().numpy().T[:, :, None])  # (T, n, 1)
        return cls(np.ascontiguousarray(band.cells.cpu().numpy().T), weights)


@dataclass(frozen=True, eq=False)
class Frame:
    """How the logits (h, w) of one crop become its pixels, and what counts in them.

    offset: of the stability score, so that pixels up to -offset do not matter. device: of the logits. whole: masks are
    resized as published and as a whole, at_once together, which a GPU does faster than parts of them one by one.
    """

    resize: Resize
    low_res_size: tuple[int, int]
    offset: float
    device: torch.device
    rows: Band
    columns: Band
    rounding: float
    axes: tuple[_Axis, _Axis]
    at_once: int
    whole: bool

    @classmethod
    def of(cls, resize: Resize, logits: Tensor, offset: float, at_once: int) -> "Frame":
        """For logits (K, h, w). at_once: masks of the whole crop's size that may be resized together on a GPU."""
        height, width = logits.shape[1:]
        same = resize.rows is None or resize.columns is None
        rows = identity_band(height, logits.device) if resize.rows is None else resize.rows
        columns = identity_band(width, logits.device) if resize.columns is None else resize.columns
        return cls(
            resize=resize,
            low_res_size=(height, width),
            offset=offset,
            device=logits.device,
            rows=rows,
            columns=columns,
            rounding=0.0 if same else ROUNDING,
            axes=(_Axis.of(rows), _Axis.of(columns)),
            at_once=at_once,
            whole=logits.device.type != "cpu",
        )

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of the crop."""
        return self.resize.original_size

    @property
    def exact_as_published(self) -> bool:
        """Whether pixels that rounding decides are decided as published."""
        return self.size[0] * self.size[1] <= EXACT_PIXELS


def stability_scores(regions: Sequence[Region], frame: Frame) -> np.ndarray:
    """The published stability of each mask: (K,) float32."""
    levels = frame.offset, -frame.offset
    if frame.whole:
        counts = np.concatenate([_exact_counts(lot, frame, levels) for lot in _lots(regions, frame.at_once)])
    else:
        counts = np.array([_counts(region, frame, levels) for region in regions])
    counts = counts.reshape(-1, 2)
    return stability_ratio(counts[:, 0], counts[:, 1])


def region_spans(region: Region, frame: Frame) -> np.ndarray:
    """The mask as spans (M, 2) int64 of the crop's pixels counted column by column, see `anysam.rle`."""
    x0, y0, x1, y1 = region.pixels
    if frame.whole:
        return _exact_spans(region, frame)
    spans = []
    for start, values, limit in _blocks(region, frame):
        mask = values > np.float32(limit)  # (n, H')
        if limit and np.count_nonzero(mask) != np.count_nonzero(values > np.float32(-limit)):
            above = _close_pixels(region, frame, values, start, 0.0, limit)
            if above is None:
                return _exact_spans(region, frame)
            mask[above] = True
        spans.append(_column_spans(mask, x0 + start, y0, frame.size[0]))
    return _joined(np.concatenate(spans)) if spans else np.zeros((0, 2), dtype=np.int64)


def _exact_spans(region: Region, frame: Frame) -> np.ndarray:
    """`region_spans` with the published resizing."""
    x0, y0, x1, y1 = region.pixels
    full = frame.resize.exact(_whole([region], frame))[0]  # (H, W)
    mask = (full[y0:y1, x0:x1] > 0).T.contiguous().cpu().numpy()  # (W', H')
    return _joined(_column_spans(mask, x0, y0, frame.size[0]))


def _column_spans(mask: np.ndarray, first: int, top: int, height: int) -> np.ndarray:
    """Spans (M, 2) of columns (n, H') bool, of which the first is column `first` and starts at row `top` of H rows."""
    ended = np.zeros((mask.shape[0], mask.shape[1] + 1), dtype=bool)
    ended[:, :-1] = mask
    flat = ended.ravel()
    edges = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    if flat[0]:
        edges = np.concatenate([[0], edges])
    column, row = np.divmod(edges, mask.shape[1] + 1)
    # A span ends behind its last pixel, which may be the first row of no column.
    return ((column + first) * height + row + top).reshape(-1, 2)  # (M, 2)


def _joined(spans: np.ndarray) -> np.ndarray:
    """Spans that touch, at the bottom of one column and the top of the next, as one."""
    apart = spans[1:, 0] != spans[:-1, 1]  # (M - 1,)
    starts, ends = np.concatenate([[True], apart]), np.concatenate([apart, [True]])
    return np.stack([spans[starts, 0], spans[ends, 1]], axis=1) if len(spans) else spans


def _counts(region: Region, frame: Frame, levels: tuple[float, ...]) -> list[int]:
    """Pixels above each level."""
    counts = [0] * len(levels)
    for start, values, limit in _blocks(region, frame):
        for i, level in enumerate(levels):
            sure = int(np.count_nonzero(values > np.float32(level + limit)))
            if limit and sure != np.count_nonzero(values > np.float32(level - limit)):
                above = _close_pixels(region, frame, values, start, level, limit)
                if above is None:
                    return [int(count) for count in _exact_counts([region], frame, levels)[0]]
                sure += len(above[0])
            counts[i] += sure
    return counts


def _blocks(region: Region, frame: Frame) -> Iterator[tuple[int, np.ndarray, float]]:
    """Columns of the region's pixels: the first, values (n, H') float32 column by column, and how far they may be off.

    The values are in a buffer that the next block overwrites. Column by column, as run lengths go.
    """
    x0, y0, x1, y1 = region.pixels
    if x1 <= x0 or y1 <= y0:
        return
    logits = region.logits.numpy()  # (h', w')
    limit = frame.rounding * float(np.abs(logits).max())
    rows, columns = frame.axes
    # Along the rows first, on the few columns of cells; then turned, so that whole lines are combined again.
    tall = np.empty((y1 - y0, logits.shape[1]), dtype=np.float32)  # (H', w')
    _combine(logits, rows, y0, y1, region.cells[1], tall, np.empty_like(tall))
    lines = np.ascontiguousarray(tall.T)  # (w', H')
    step = max(1, _BLOCK // (y1 - y0))
    values, scratch = (np.empty((min(step, x1 - x0), y1 - y0), dtype=np.float32) for _ in range(2))
    for start in range(x0, x1, step):
        end = min(start + step, x1)
        part = values[: end - start]
        _combine(lines, columns, start, end, region.cells[0], part, scratch[: end - start])
        yield start - x0, part, limit


def _combine(
    lines: np.ndarray, axis: _Axis, start: int, end: int, first: int, out: np.ndarray, scratch: np.ndarray
) -> None:
    """Pixels start..end of an axis from lines (n, m) of cells, the first of which is cell `first`: (end - start, m)."""
    for i in range(len(axis.cells)):
        into = scratch if i else out
        np.take(lines, axis.cells[i, start:end] - first, axis=0, out=into, mode="clip")
        np.multiply(into, axis.weights[i, start:end], out=into)
        if i:
            np.add(out, into, out=out)


def _close_pixels(
    region: Region, frame: Frame, values: np.ndarray, start: int, level: float, limit: float
) -> tuple[np.ndarray, np.ndarray] | None:
    """Of a block's pixels within `limit` of a level those above it, as indices of the block; None if one is unsure."""
    published = np.float64(np.float32(level))
    x, y = np.nonzero((values > np.float32(level - limit)) & ~(values > np.float32(level + limit)))
    rows, columns = frame.axes
    at_x, at_y = x + start + region.pixels[0], y + region.pixels[1]
    cell_y = rows.cells[:, None, at_y] - region.cells[1]  # (T, 1, N)
    cell_x = columns.cells[None, :, at_x] - region.cells[0]  # (1, T, N)
    weights = rows.weights[:, None, at_y, 0].astype(np.float64) * columns.weights[None, :, at_x, 0]  # (T, T, N)
    parts = region.logits.numpy()[cell_y, cell_x] * weights  # (T, T, N)
    exact = parts.sum(axis=(0, 1))  # (N,)
    unsure = np.abs(exact - published) <= frame.rounding * np.abs(parts).sum(axis=(0, 1))
    if unsure.any() and frame.exact_as_published:
        return None
    above = exact > published
    return x[above], y[above]


def _exact_counts(regions: Sequence[Region], frame: Frame, levels: tuple[float, ...]) -> np.ndarray:
    """Pixels above each level with the published resizing: (K, L)."""
    full = frame.resize.exact(_whole(regions, frame))  # (K, H, W)
    counts = [torch.count_nonzero(full > level, dim=(1, 2)) for level in levels]
    return torch.stack(counts, dim=1).cpu().numpy()  # (K, L)


def _whole(regions: Sequence[Region], frame: Frame) -> Tensor:
    """Logits (K, h, w) that give the regions' pixels, and around them nothing that matters."""
    whole = torch.full((len(regions), *frame.low_res_size), -frame.offset - 1.0, device=frame.device)
    for logits, region in zip(whole, regions, strict=True):
        x0, y0, x1, y1 = region.cells
        logits[y0:y1, x0:x1] = region.logits
    return whole


def _lots(regions: Sequence[Region], count: int) -> Iterator[Sequence[Region]]:
    for start in range(0, len(regions), count):
        yield regions[start : start + count]
