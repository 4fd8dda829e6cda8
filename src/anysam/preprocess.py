"""Between image pixels and a network's input frame, in both directions: every rounding rule lives here.

Source of the rules: facebookresearch/segment-anything@dca509f, segment_anything/{predictor,utils/transforms}.py
(Apache-2.0), written anew. Three frames appear:

- the original image, (H, W) pixels: prompts come in and masks go out in it;
- the input frame: the image resized so that its longest side is `long_side`; `input_size` is its (height, width);
- the padded input: the input frame with something added on the right and at the bottom.

Prompts enter in the input frame. Low-resolution logits cover the padded input, one value per `low_res_stride` x
`low_res_stride` pixels of it. The network sees the padded input, or a smaller one of the same proportions
(`image_side`).
"""

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from anysam.prompts import ResolvedPrompt

# A binary mask enters the decoder as logits of this size. SAM was trained on its own logits as mask prompts, which
# mostly lie within +-10 to +-20; this says "sure" without leaving that range.
MASK_PROMPT_LOGIT = 10.0

# Tokens of the decoder's prompt encoder beside the user's labels 0 (background) and 1 (foreground).
PADDING_LABEL, TOP_LEFT_LABEL, BOTTOM_RIGHT_LABEL = -1, 2, 3


@dataclass(frozen=True)
class Preprocess:
    """How a network wants its image and its prompts.

    long_side: the longest side of the input frame, in pixels.
    pad_to: the side of the square padded input, or None for a padded input that follows the image's shape.
    pad_multiple: used when pad_to is None: height and width are padded to the next multiple of it.
    mean, std: per channel (R, G, B, or B, G, R if bgr), on the 0..255 scale.
    low_res_stride: pixels of the padded input per low-resolution logit.
    image_side: the longest side of the image that the network sees, where that is not long_side (EfficientViT-SAM takes
        images of 512 with prompts in a frame of 1024).
    keep_aspect: False squashes every image to long_side x long_side (EfficientSAM).
    antialias: True resizes by Pillow's bilinear filter, which rounds to whole numbers; False by plain bilinear
        interpolation of the float values, without antialiasing (EfficientSAM).
    bgr: the channels enter in the order blue, green, red.
    pad_colour: what is padded, on the 0..255 scale, in the network's channel order; None pads zeros after normalising.
    uniform_prompt_scale: prompts are scaled by one factor, long_side / longest side, in float32 (Tokenize Anything);
        False scales each axis by its own rounded sizes, in float64.
    mask_resize: "two_step" is bilinear to the padded input, then, without the padding, to the image; "bicubic" goes
        from the low-resolution logits to the image at once (EfficientSAM).
    name: a short name for people.
    """

    long_side: int
    pad_to: int | None
    pad_multiple: int = 1
    mean: tuple[float, float, float] = (123.675, 116.28, 103.53)
    std: tuple[float, float, float] = (58.395, 57.12, 57.375)
    low_res_stride: int = 4
    image_side: int | None = None
    keep_aspect: bool = True
    antialias: bool = True
    bgr: bool = False
    pad_colour: tuple[float, float, float] | None = None
    uniform_prompt_scale: bool = False
    mask_resize: Literal["two_step", "bicubic"] = "two_step"
    name: str = field(kw_only=True)

    def __post_init__(self) -> None:
        if self.long_side < 1 or self.pad_multiple < 1 or self.low_res_stride < 1:
            raise ValueError(f"long_side, pad_multiple and low_res_stride must be positive, got {self}")
        if self.pad_to is not None and self.pad_to < self.long_side:
            raise ValueError(f"pad_to must not be below long_side, got {self.pad_to} < {self.long_side}")
        if self.image_side is not None and (self.pad_to is None or self.pad_to * self.image_side % self.long_side):
            raise ValueError(f"image_side must divide a square padded input evenly, got {self}")
        if self.mask_resize == "bicubic" and self.keep_aspect:
            raise ValueError(f"resizing logits in one step leaves no room for padding, got {self}")

    def input_size(self, original_size: tuple[int, int]) -> tuple[int, int]:
        """(height, width) of the resized, unpadded image; at least 1 pixel, however thin the image is."""
        return self._resized(original_size, self.long_side)

    def image_size(self, original_size: tuple[int, int]) -> tuple[int, int]:
        """(height, width) of the resized, unpadded image that the network sees; input_size for most."""
        return self._resized(original_size, self.image_side or self.long_side)

    def _resized(self, original_size: tuple[int, int], long_side: int) -> tuple[int, int]:
        if not self.keep_aspect:
            return long_side, long_side
        scale = long_side / max(original_size)
        height, width = (max(1, int(side * scale + 0.5)) for side in original_size)
        return height, width

    def padded_size(self, input_size: tuple[int, int]) -> tuple[int, int]:
        """(height, width) of the padded input."""
        if self.pad_to is not None:
            return self.pad_to, self.pad_to
        height, width = (-(-side // self.pad_multiple) * self.pad_multiple for side in input_size)
        return height, width

    def padded_image_size(self, input_size: tuple[int, int]) -> tuple[int, int]:
        """(height, width) of what the network sees."""
        height, width = self.padded_size(input_size)
        if self.image_side is None:
            return height, width
        return height * self.image_side // self.long_side, width * self.image_side // self.long_side

    def low_res_size(self, input_size: tuple[int, int]) -> tuple[int, int]:
        """(h, w) of the low-resolution logits."""
        height, width = self.padded_size(input_size)
        return height // self.low_res_stride, width // self.low_res_stride


def prepare_image(
    image: np.ndarray, preprocess: Preprocess, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> tuple[Tensor, tuple[int, int]]:
    """An RGB image, uint8 (H, W, 3) -> pixels (1, 3, H', W') that the network sees, and input_size (height, width).

    Resized, normalised in float32 and padded as `preprocess` says.
    """
    original_size = (image.shape[0], image.shape[1])
    input_size = preprocess.input_size(original_size)
    pixels = _resize_image(image, preprocess.image_size(original_size), preprocess.antialias).to(device)
    if preprocess.bgr:
        pixels = pixels.flip(0)
    mean = torch.tensor(preprocess.mean, device=device)[:, None, None]  # (3, 1, 1)
    std = torch.tensor(preprocess.std, device=device)[:, None, None]  # (3, 1, 1)
    height, width = preprocess.padded_image_size(input_size)
    normalised = (pixels - mean) / std  # (3, height, width)
    padded = functional.pad(normalised, (0, width - pixels.shape[2], 0, height - pixels.shape[1]))  # (3, H', W')
    if preprocess.pad_colour is not None:
        colour = (torch.tensor(preprocess.pad_colour, device=device)[:, None, None] - mean) / std  # (3, 1, 1)
        padded[:, pixels.shape[1] :] = colour
        padded[:, :, pixels.shape[2] :] = colour
    return padded[None].to(dtype), input_size  # (1, 3, H', W')


def _resize_image(image: np.ndarray, size: tuple[int, int], antialias: bool) -> Tensor:
    """uint8 (H, W, 3) -> float32 (3, height, width) on the 0..255 scale, without changing an image of that size."""
    if antialias:
        image = np.array(Image.fromarray(image).resize((size[1], size[0]), Image.Resampling.BILINEAR))
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).float()  # (3, H, W)
    if pixels.shape[1:] == size:
        return pixels
    return functional.interpolate(pixels[None], size, mode="bilinear", align_corners=False)[0]  # (3, height, width)


def prompt_tokens(
    prompt: ResolvedPrompt, preprocess: Preprocess, original_size: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """A prompt in original-image pixels -> points (N, 2) float32 in input-frame pixels, x y, and labels (N,) int64.

    SAM's order: the points; a padding point (0, 0) with label -1 if there is no box; the box's top-left (label 2) and
    bottom-right (label 3) corners. So N is never 0: a prompt that is only earlier logits is the padding point alone.
    """
    points, labels = prompt.points, prompt.labels
    if prompt.box is None:
        # The padding is not scaled, and (0, 0) would not change if it were.
        points = np.concatenate([points, np.zeros((1, 2))])
        labels = np.append(labels, PADDING_LABEL)
    if prompt.box is not None:
        points = np.concatenate([points, prompt.box.reshape(2, 2)])
        labels = np.append(labels, [TOP_LEFT_LABEL, BOTTOM_RIGHT_LABEL])
    if preprocess.uniform_prompt_scale:
        scaled = points.astype(np.float32) * np.float32(preprocess.long_side / max(original_size))  # (N, 2)
    else:
        # In float64, rounded once: the published predictor does the same.
        input_size = preprocess.input_size(original_size)
        scale = np.array([input_size[1] / original_size[1], input_size[0] / original_size[0]])
        scaled = (points * scale).astype(np.float32)  # (N, 2)
    return torch.from_numpy(scaled), torch.from_numpy(np.asarray(labels, dtype=np.int64))


def mask_to_logits(
    mask: np.ndarray, preprocess: Preprocess, input_size: tuple[int, int], low_res_size: tuple[int, int]
) -> Tensor:
    """A binary mask at image size, bool (H, W) -> mask prompt logits (h, w) float32 in the padded low-resolution frame.

    A cell's logit runs linearly from -MASK_PROMPT_LOGIT (no mask in it; also the padding) to +MASK_PROMPT_LOGIT (all
    mask), so the zero level runs along the mask's border at better than a cell.
    """
    resized = Image.fromarray(mask.astype(np.uint8) * 255).resize(
        (input_size[1], input_size[0]), Image.Resampling.BILINEAR
    )
    coverage = torch.from_numpy(np.array(resized)).float() / 255  # (height, width) in [0, 1]
    height, width = preprocess.padded_size(input_size)
    coverage = functional.pad(coverage, (0, width - input_size[1], 0, height - input_size[0]))  # (H', W')
    cells = functional.adaptive_avg_pool2d(coverage[None, None], low_res_size)[0, 0]  # (h, w)
    return (2 * cells - 1) * MASK_PROMPT_LOGIT


def upscale_logits(
    low_res_logits: Tensor, preprocess: Preprocess, input_size: tuple[int, int], original_size: tuple[int, int]
) -> Tensor:
    """Logits (P, C, h, w) of the padded input -> logits (P, C, H, W) float32 at the original image's size.

    In one or two steps, as published: see `Preprocess.mask_resize`.
    """
    if preprocess.mask_resize == "bicubic":
        return functional.interpolate(low_res_logits.float(), original_size, mode="bicubic", align_corners=False)
    stride = preprocess.low_res_stride
    # One cell beyond the image is all that the interpolation looks at; what follows is padding, and cut off.
    rows, columns = (
        min(cells, -(-side // stride) + 1) for cells, side in zip(low_res_logits.shape[-2:], input_size, strict=True)
    )
    logits = low_res_logits[..., :rows, :columns].float()  # (P, C, rows, columns)
    logits = functional.interpolate(logits, (rows * stride, columns * stride), mode="bilinear", align_corners=False)
    logits = logits[..., : input_size[0], : input_size[1]]  # (P, C, height, width)
    return functional.interpolate(logits, original_size, mode="bilinear", align_corners=False)  # (P, C, H, W)
