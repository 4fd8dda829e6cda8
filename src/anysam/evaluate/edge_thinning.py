"""Lines of one pixel: maps of edges thinned by their strength, and sets of pixels thinned by their shape."""

import cv2
import numpy as np

# The neighbours of a pixel as (down, right), against the clock from the east, and the bit of each in a code.
_AROUND = ((0, 1), (-1, 1), (-1, 0), (-1, -1), (0, -1), (1, -1), (1, 0), (1, 1))
_SMOOTHING = 4  # radius of the triangle filter before second derivatives are taken
_LEAD = 1.01  # a neighbour suppresses when it is stronger by more than this factor


def suppress_edges(strength: np.ndarray) -> np.ndarray:
    """Edge non-maximum suppression: strength (H, W) float32, at least 0 -> the same, 0 where an edge is not strongest.

    A pixel stays unless the strength one pixel away across the edge, on either side, is more than 1.01 times its own.
    The direction across is that of the strongest curvature of the map smoothed by a triangle filter of radius 4, which
    is well defined on the ridge of an edge, where the gradient is not. Numbers and idea: pdollar/edges at 94260b5,
    edgesDetect.m and edgesNmsMex.cpp; there the direction is an approximation of this one, and pixels within five of
    the image's border are weakened, which they are not here.
    """
    across = edge_normals(strength)
    height, width = strength.shape
    y, x = np.nonzero(strength)
    own = strength[y, x] * np.float32(_LEAD)
    kept = np.ones(len(y), dtype=np.bool_)
    for side in (1, -1):
        at_x = np.clip(x + side * np.cos(across[y, x]), 0, width - 1).astype(np.float32)
        at_y = np.clip(y + side * np.sin(across[y, x]), 0, height - 1).astype(np.float32)
        kept &= own >= _bilinear(strength, at_x, at_y)
    thin = np.zeros_like(strength)
    thin[y[kept], x[kept]] = strength[y[kept], x[kept]]
    return thin


def edge_normals(strength: np.ndarray) -> np.ndarray:
    """The direction across the edge at each pixel of (H, W) float32: (H, W) float32 radians, 0 right, pi/2 down."""
    side = np.concatenate([np.arange(1, _SMOOTHING + 2), np.arange(_SMOOTHING, 0, -1)]).astype(np.float64)
    side /= side.sum()
    smooth = cv2.sepFilter2D(strength, cv2.CV_64F, side, side, borderType=cv2.BORDER_REFLECT)
    down, right = np.gradient(smooth) if min(smooth.shape) > 1 else (np.zeros_like(smooth),) * 2
    if min(smooth.shape) > 1:
        yy, xy = np.gradient(down)
        xx = np.gradient(right, axis=1)
    else:
        yy = xy = xx = down
    # The eigenvector whose eigenvalue is largest in size: below 0 on a ridge, above 0 at its foot.
    sign = np.where(xx + yy > 0, 1, -1)
    return np.asarray(0.5 * np.arctan2(sign * 2 * xy, sign * (xx - yy)), dtype=np.float32)


def _bilinear(values: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    left, top = np.floor(x).astype(np.int64), np.floor(y).astype(np.int64)
    right, bottom = np.minimum(left + 1, values.shape[1] - 1), np.minimum(top + 1, values.shape[0] - 1)
    along, down = x - left, y - top
    upper = values[top, left] * (1 - along) + values[top, right] * along
    lower = values[bottom, left] * (1 - along) + values[bottom, right] * along
    return np.asarray(upper * (1 - down) + lower * down)


def thin(mask: np.ndarray) -> np.ndarray:
    """Thin a set of pixels (H, W) bool to lines, in turns until nothing changes: MATLAB's bwmorph(mask, "thin", inf).

    The conditions are those of its documentation, after Lam, Lee and Suen, "Thinning methodologies: a comprehensive
    survey", TPAMI 1992, page 879: each turn takes away, first from the south-east and then from the north-west, the
    pixels at a border that neither end a line nor hold two parts together.
    """
    height, width = mask.shape
    wide = width + 2
    padded = np.zeros((height + 2) * wide, dtype=np.bool_)
    y, x = np.nonzero(mask)
    places = (y + 1) * wide + x + 1  # (N,)
    padded[places] = True
    steps = [down * wide + right for down, right in _AROUND]
    tables = _removed_codes()
    changed = True
    while changed:
        changed = False
        for table in tables:
            codes = np.zeros(len(places), dtype=np.uint8)
            for bit, step in enumerate(steps):
                codes |= padded[places + step].astype(np.uint8) << bit
            removed = table[codes]
            if removed.any():
                changed = True
                padded[places[removed]] = False
                places = places[~removed]
    return padded.reshape(height + 2, wide)[1:-1, 1:-1]


def _removed_codes() -> tuple[np.ndarray, np.ndarray]:
    """Which of the 256 neighbourhoods lose their middle in the first and the second half of a turn: (256,) bool each.

    Bit k of a code is the neighbour x(k + 1) of the documentation.
    """
    codes = np.arange(256)
    x = [(codes >> k & 1).astype(np.bool_) for k in range(8)]
    crossings = sum((~x[2 * i] & (x[2 * i + 1] | x[(2 * i + 2) % 8])).astype(np.int64) for i in range(4))
    first = sum((x[2 * k] | x[2 * k + 1]).astype(np.int64) for k in range(4))
    second = sum((x[2 * k + 1] | x[(2 * k + 2) % 8]).astype(np.int64) for k in range(4))
    fewer = np.minimum(first, second)
    border = (crossings == 1) & (fewer >= 2) & (fewer <= 3)
    east = (x[1] | x[2] | ~x[7]) & x[0]
    west = (x[5] | x[6] | ~x[3]) & x[4]
    return border & ~east, border & ~west
