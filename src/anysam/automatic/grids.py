"""Where a model is asked: points and crops of an image, as published.

Source: facebookresearch/segment-anything@dca509f, segment_anything/utils/amg.py (Apache-2.0), written anew.
"""

import math

import numpy as np

from anysam.automatic.options import EverythingOptions
from anysam.errors import OptionError

Box = tuple[int, int, int, int]


def point_grid(points_per_side: int) -> np.ndarray:
    """The centres of points_per_side x points_per_side cells of the unit square: (N, 2) float64, x y, row by row."""
    margin = 1 / (2 * points_per_side)
    along = np.linspace(margin, 1 - margin, points_per_side)
    return np.stack([np.tile(along, points_per_side), np.repeat(along, points_per_side)], axis=1)  # (N, 2)


def layer_grids(points_per_side: int, layers: int, downscale_factor: int) -> list[np.ndarray]:
    """A grid for the whole image and one for each of `layers` layers of crops, coarser layer by layer."""
    return [point_grid(int(points_per_side / downscale_factor**layer)) for layer in range(layers + 1)]


def chosen_grids(options: EverythingOptions) -> list[np.ndarray]:
    """The points of each layer, (N, 2) float64, x y in 0..1."""
    if options.point_grids is not None:
        return [np.asarray(grid, dtype=np.float64) for grid in options.point_grids]
    assert options.points_per_side is not None
    return layer_grids(options.points_per_side, options.crop_n_layers, options.crop_n_points_downscale_factor)


def crop_boxes(size: tuple[int, int], layers: int, overlap_ratio: float) -> tuple[list[Box], list[int]]:
    """The whole image of `size` (H, W), then the crops of each layer: boxes x0 y0 x1 y1, and the layer of each.

    Layer i has 2^i x 2^i overlapping crops; the left ones come first, each column from the top. Raises OptionError
    when the image has fewer pixels than there are crops.
    """
    height, width = size
    boxes: list[Box] = [(0, 0, width, height)]
    owners = [0]
    for layer in range(1, layers + 1):
        parts = 2**layer
        overlap = int(overlap_ratio * min(size) * (2 / parts))
        across, down = (math.ceil((overlap * (parts - 1) + side) / parts) for side in (width, height))
        for x0 in (i * (across - overlap) for i in range(parts)):
            for y0 in (i * (down - overlap) for i in range(parts)):
                boxes.append((x0, y0, min(x0 + across, width), min(y0 + down, height)))
                owners.append(layer)
    if any(x1 <= x0 or y1 <= y0 for x0, y0, x1, y1 in boxes):
        raise OptionError(f"An image of {width}x{height} pixels is too small for {layers} layers of crops.")
    return boxes, owners


def in_image(places: np.ndarray, crop_box: Box) -> np.ndarray:
    """Points (N, 2) x y, or boxes (N, 4) xyxy, of a crop in pixels of the image."""
    return places + np.array([crop_box[0], crop_box[1]] * (places.shape[1] // 2))
