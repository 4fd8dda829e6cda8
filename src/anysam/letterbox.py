"""The letterbox: an image scaled into a frame of the network's stride, grey around it, and boxes on their way back.

Written from the rules in words, which the published FastSAM and MobileSAMv2 detectors share. Three frames appear:

- the original image, (H, W) pixels;
- the picture: the image resized so that its longest side is `long_side`, small images enlarged, without antialiasing;
- the letterbox: the picture with grey on both sides, up to the next multiples of the stride; what the network sees.

Boxes come back by a factor taken from the letterbox's size, not from the picture's: that is published, and where
rounding makes the two factors differ the box moves by a fraction of a pixel.
"""

from dataclasses import dataclass, field

import cv2
import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Letterbox:
    """How a network of this kind wants its image.

    long_side: the longest side of the picture, in pixels; a multiple of stride.
    stride: the letterbox's sides are multiples of it.
    fill: the grey around the picture, 0 to 255.
    square: a letterbox of long_side x long_side, for networks exported with a fixed input, instead of the smallest.
    bgr: the planes enter as blue, green, red.
    low_res_stride: letterbox pixels per cell of the low-resolution logits.
    name: a short name for people.
    """

    long_side: int = 1024
    stride: int = 32
    fill: int = 114
    square: bool = False
    bgr: bool = False
    low_res_stride: int = 4
    name: str = field(kw_only=True)

    def __post_init__(self) -> None:
        if self.stride < 1 or self.long_side < 1 or self.long_side % self.stride:
            raise ValueError(f"long_side must be a positive multiple of stride, got {self.long_side}, {self.stride}")
        if self.low_res_stride < 1 or self.stride % self.low_res_stride:
            raise ValueError(f"low_res_stride must divide stride, got {self.low_res_stride}, {self.stride}")
        if not 0 <= self.fill <= 255:
            raise ValueError(f"fill must be 0 to 255, got {self.fill}")

    def input_size(self, original_size: tuple[int, int]) -> tuple[int, int]:
        """(height, width) of the picture; halves are rounded to even, and a side is at least 1 pixel."""
        scale = min(self.long_side / side for side in original_size)
        height, width = (max(1, round(side * scale)) for side in original_size)
        return height, width

    def padded_size(self, input_size: tuple[int, int]) -> tuple[int, int]:
        """(height, width) of the letterbox around a picture."""
        if self.square:
            return self.long_side, self.long_side
        height, width = (-(-side // self.stride) * self.stride for side in input_size)
        return height, width

    def low_res_size(self, input_size: tuple[int, int]) -> tuple[int, int]:
        """(h, w) of the low-resolution logits, which cover the letterbox."""
        height, width = self.padded_size(input_size)
        return height // self.low_res_stride, width // self.low_res_stride


def letterbox_image(image: np.ndarray, letterbox: Letterbox) -> np.ndarray:
    """An image, uint8 (H, W, 3) -> its letterbox, uint8 (H', W', 3), channels in the order they came.

    An odd pixel of padding goes to the right or the bottom.
    """
    height, width = letterbox.input_size((image.shape[0], image.shape[1]))
    padded_height, padded_width = letterbox.padded_size((height, width))
    if (height, width) != image.shape[:2]:
        image = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
    boxed = np.full((padded_height, padded_width, 3), letterbox.fill, dtype=np.uint8)
    top, left = _before(padded_height - height), _before(padded_width - width)
    boxed[top : top + height, left : left + width] = image
    return boxed


def prepare_letterbox(
    image: np.ndarray, letterbox: Letterbox, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> tuple[Tensor, tuple[int, int]]:
    """An RGB image, uint8 (H, W, 3) -> pixels (1, 3, H', W') in 0..1 of the letterbox, and the picture's size.

    The size (height, width) is `letterbox.input_size` of the image's. Divided in float32, then rounded to dtype.
    """
    pixels = torch.from_numpy(letterbox_image(image, letterbox)).to(device).permute(2, 0, 1)  # (3, H', W')
    if letterbox.bgr:
        pixels = pixels.flip(0)
    input_size = letterbox.input_size((image.shape[0], image.shape[1]))
    return (pixels[None].float() / 255).to(dtype), input_size  # (1, 3, H', W')


def boxes_to_image(boxes: np.ndarray, padded_size: tuple[int, int], original_size: tuple[int, int]) -> np.ndarray:
    """Boxes (N, 4) xyxy in pixels of a letterbox of padded_size (H', W') -> float32 in image pixels, clipped to it."""
    (padded_height, padded_width), (height, width) = padded_size, original_size
    gain = min(padded_height / height, padded_width / width)
    left, top = _before(padded_width - width * gain), _before(padded_height - height * gain)
    moved = boxes.astype(np.float32) - np.array([left, top, left, top], dtype=np.float32)
    scaled = moved / np.float32(gain)
    return np.clip(scaled, 0, np.array([width, height, width, height], dtype=np.float32))


def picture_cells(cells: tuple[int, int], original_size: tuple[int, int]) -> tuple[int, int, int, int]:
    """The cells of a grid (h, w) over the letterbox that the picture covers: top, left, bottom, right, ends exclusive.

    Cells that the picture covers only in part are taken in; at least one each way.
    """
    (grid_height, grid_width), (height, width) = cells, original_size
    gain = min(grid_height / height, grid_width / width)
    pad_y, pad_x = (grid_height - height * gain) / 2, (grid_width - width * gain) / 2
    return int(pad_y), int(pad_x), int(grid_height - pad_y), int(grid_width - pad_x)


def _before(padding: float) -> int:
    """Pixels of padding at the top or the left. -0.1 sends the odd one to the other side."""
    return round(padding / 2 - 0.1)
