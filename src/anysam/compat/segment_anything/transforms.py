"""Images and coordinates resized to a longest side, as the published `ResizeLongestSide` does."""

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from anysam.errors import ImageError, OptionError


class ResizeLongestSide:
    """Resizes images so that their longest side is `target_length` pixels, and coordinates with them."""

    def __init__(self, target_length: int) -> None:
        if isinstance(target_length, bool) or not isinstance(target_length, int) or target_length < 1:
            raise OptionError(f"target_length must be a whole number of at least 1, got {target_length!r}.")
        self.target_length = target_length

    def apply_image(self, image: np.ndarray) -> np.ndarray:
        """uint8 (H, W, 3) -> uint8 (h, w, 3) by Pillow's bilinear filter. Raises ImageError for another array."""
        if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            found = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
            raise ImageError(f"An image must be a uint8 array (H, W, 3), got {found}.")
        height, width = self.get_preprocess_shape(image.shape[0], image.shape[1], self.target_length)
        resized = Image.fromarray(np.ascontiguousarray(image)).resize((width, height), Image.Resampling.BILINEAR)
        return np.array(resized)  # (h, w, 3)

    def apply_coords(self, coords: np.ndarray, original_size: tuple[int, ...]) -> np.ndarray:
        """Points (..., 2), x y, in pixels of an image of original_size (H, W) -> float64, of the resized image."""
        scaled = np.array(coords, dtype=np.float64)
        x_scale, y_scale = self._scales(original_size)
        scaled[..., 0] *= x_scale
        scaled[..., 1] *= y_scale
        return scaled

    def apply_boxes(self, boxes: np.ndarray, original_size: tuple[int, ...]) -> np.ndarray:
        """Boxes (..., 4), x0 y0 x1 y1 -> (N, 4) float64."""
        corners = np.asarray(boxes).reshape(-1, 2, 2)  # (N, 2, 2)
        return self.apply_coords(corners, original_size).reshape(-1, 4)  # (N, 4)

    def apply_image_torch(self, image: Tensor) -> Tensor:
        """A float tensor (B, 3, H, W) -> (B, 3, h, w), bilinear with antialiasing; not equal to `apply_image`."""
        size = self.get_preprocess_shape(image.shape[2], image.shape[3], self.target_length)
        return functional.interpolate(image, size, mode="bilinear", align_corners=False, antialias=True)

    def apply_coords_torch(self, coords: Tensor, original_size: tuple[int, ...]) -> Tensor:
        """As apply_coords, float32."""
        scaled = coords.to(torch.float32, copy=True)
        x_scale, y_scale = self._scales(original_size)
        scaled[..., 0] = scaled[..., 0] * x_scale
        scaled[..., 1] = scaled[..., 1] * y_scale
        return scaled

    def apply_boxes_torch(self, boxes: Tensor, original_size: tuple[int, ...]) -> Tensor:
        """As apply_boxes, float32."""
        corners = boxes.reshape(-1, 2, 2)  # (N, 2, 2)
        return self.apply_coords_torch(corners, original_size).reshape(-1, 4)  # (N, 4)

    def _scales(self, original_size: tuple[int, ...]) -> tuple[float, float]:
        old_height, old_width = original_size
        height, width = self.get_preprocess_shape(old_height, old_width, self.target_length)
        return width / old_width, height / old_height

    @staticmethod
    def get_preprocess_shape(oldh: int, oldw: int, long_side_length: int) -> tuple[int, int]:
        """(height, width) of an image of (oldh, oldw) whose longest side becomes long_side_length."""
        scale = long_side_length / max(oldh, oldw)
        return int(oldh * scale + 0.5), int(oldw * scale + 0.5)
