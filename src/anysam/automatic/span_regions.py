"""Connected regions of masks that are given as spans (see anysam.rle): time and memory follow outlines, not areas.

Regions touch by sides or corners, as in the published remove_small_regions, for masks and for holes alike.
"""

import numpy as np

from anysam import rle


def clean_spans(spans: np.ndarray, size: tuple[int, int], min_area: int) -> np.ndarray:
    """A mask's spans (N, 2) without holes, then without islands, of fewer than min_area pixels: (M, 2).

    As published (`small_regions.clean_mask`): a hole may lie at the image's edge, and of islands that are all small the
    largest stays, of equal ones the first by rows.
    """
    if min_area <= 1 or not len(spans):
        return spans
    pixels = size[0] * size[1]
    edges = np.concatenate(([0], spans.reshape(-1), [pixels])).reshape(-1, 2)  # between the spans
    outside = edges[edges[:, 0] < edges[:, 1]]
    if len(outside):
        pieces, regions, areas = find_regions(outside, size[0])
        spans = join(np.concatenate([spans, pieces[areas[regions] < min_area]]))
    pieces, regions, areas = find_regions(spans, size[0])
    stays = areas >= min_area
    if stays.all():
        return spans
    if not stays.any():
        columns, rows = np.divmod(pieces[:, 0], size[0])
        first = np.lexsort((columns, rows, -areas[regions]))[0]
        stays[regions[first]] = True
    return join(pieces[stays[regions]])


def without_small(spans: np.ndarray, height: int, least: int) -> np.ndarray:
    """The spans (N, 2) without regions of fewer than `least` pixels."""
    if least <= 1 or not len(spans):
        return spans
    pieces, regions, areas = find_regions(spans, height)
    large = areas[regions] >= least
    return spans if large.all() else join(pieces[large])


def find_regions(spans: np.ndarray, height: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The connected regions, by sides or corners, of spans (N, 2) in an image that is `height` high.

    Returns pieces (M, 2), the spans cut at the ends of columns; the region of each, (M,) int64; and the area of each
    region, (R,) int64. The order of regions means nothing.
    """
    # With an empty row below the image no piece touches the next column's, and neither does a position beside it.
    tall = height + 1
    width = -(-int(spans[-1, 1]) // height)
    padded = rle.place_spans(spans, (height, width), (0, 0), (tall, width))  # (M, 2)
    first = np.searchsorted(padded[:, 1], padded[:, 0] + tall - 1, side="right")
    last = np.searchsorted(padded[:, 0], padded[:, 1] + tall + 1, side="left")
    number = np.maximum(last - first, 0)  # of pieces in the next column that a piece touches
    a = np.repeat(np.arange(len(padded)), number)
    b = np.repeat(first - np.cumsum(number) + number, number) + np.arange(int(number.sum()))
    _, regions = np.unique(_connect(len(padded), a, b), return_inverse=True)
    lengths = padded[:, 1] - padded[:, 0]
    areas = np.bincount(regions, weights=lengths).astype(np.int64)
    return padded - (padded[:, :1] // tall), regions, areas


def _connect(count: int, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The lowest member of the connected component of each of `count` nodes, by edges a[i] - b[i]: (count,) int64."""
    root = np.arange(count)
    while True:
        low, high = np.minimum(root[a], root[b]), np.maximum(root[a], root[b])
        apart = low != high
        if not apart.any():
            return root
        a, b = a[apart], b[apart]
        np.minimum.at(root, high[apart], low[apart])
        while True:
            above = root[root]
            if np.array_equal(above, root):
                break
            root = above


def join(spans: np.ndarray) -> np.ndarray:
    """Spans (N, 2) in any order, none over another -> rising, those that touch joined."""
    starts, ends = spans[np.argsort(spans[:, 0], kind="stable")].T
    gap = starts[1:] > ends[:-1]
    first, last = np.ones(len(starts), dtype=np.bool_), np.ones(len(starts), dtype=np.bool_)
    first[1:], last[:-1] = gap, gap
    return np.stack([starts[first], ends[last]], axis=1)  # (N, 2)
