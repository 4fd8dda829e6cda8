"""Connected regions of masks that are given as spans (see anysam.rle): time and memory follow outlines, not areas.

Regions touch by sides or corners, as in the published remove_small_regions, for masks and for holes alike.
"""

import numpy as np

from anysam import rle


def clean_spans(spans: np.ndarray, size: tuple[int, int], min_area: int) -> tuple[np.ndarray, bool]:
    """A mask's spans (N, 2) without holes, then without islands, of fewer than min_area pixels, and if there were any.

    size: (H, W). As published: facebookresearch/segment-anything@dca509f, remove_small_regions.
    """
    filled, had_holes = without_holes(spans, size, min_area)
    cleaned, had_islands = without_islands(filled, size, min_area)
    return cleaned, had_holes or had_islands


def without_holes(spans: np.ndarray, size: tuple[int, int], min_area: int) -> tuple[np.ndarray, bool]:
    """See clean_spans. A hole may lie at the image's edge, and be all that is outside of the mask."""
    pixels = size[0] * size[1]
    edges = np.concatenate(([0], spans.reshape(-1), [pixels])).reshape(-1, 2)  # between the spans
    outside = edges[edges[:, 0] < edges[:, 1]]
    if min_area <= 1 or not len(outside):
        return spans, False
    pieces, regions, areas = find_regions(outside, size[0])
    small = areas[regions] < min_area
    if not small.any():
        return spans, False
    return join(np.concatenate([spans, pieces[small]])), True


def without_islands(spans: np.ndarray, size: tuple[int, int], min_area: int) -> tuple[np.ndarray, bool]:
    """See clean_spans. Of islands that are all small the largest stays, of equal ones the first by rows."""
    if min_area <= 1 or not len(spans):
        return spans, False
    pieces, regions, areas = find_regions(spans, size[0])
    stays = areas >= min_area
    if stays.all():
        return spans, False
    if not stays.any():
        columns, rows = np.divmod(pieces[:, 0], size[0])
        first = np.lexsort((columns, rows, -areas[regions]))[0]
        stays[regions[first]] = True
    return join(pieces[stays[regions]]), True


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
