"""Between image pixels and a network's input frame, in both directions: every rounding rule lives here.

Source of the rules: facebookresearch/segment-anything@dca509f, segment_anything/{predictor,utils/transforms}.py
(Apache-2.0), written anew. Three frames appear:

- the original image, (H, W) pixels: prompts come in and masks go out in it;
- the input frame: the image resized so that its longest side is `long_side`; `input_size` is its (height, width);
- the padded input: the input frame with zeros added on the right and at the bottom; what the network sees.

Low-resolution logits cover the padded input, one value per `low_res_stride` x `low_res_stride` pixels.
"""

from dataclasses import dataclass, field

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
    """How a network wants its image.

    long_side: the longest side of the input frame, in pixels.
    pad_to: the side of the square padded input, or None for a padded input that follows the image's shape.
    pad_multiple: used when pad_to is None: height and width are padded to the next multiple of it.
    mean, std: per channel (R, G, B), on the 0..255 scale.
    low_res_stride: pixels of the padded input per low-resolution logit.
    name: a short name for people.
    """

    long_side: int
    pad_to: int | None
    pad_multiple: int = 1
    mean: tuple[float, float, float] = (123.675, 116.28, 103.53)
    std: tuple[float, float, float] = (58.395, 57.12, 57.375)
    low_res_stride: int = 4
    name: str = field(kw_only=True)

    def __post_init__(self) -> None:
        if self.long_side < 1 or self.pad_multiple < 1 or self.low_res_stride < 1:
            raise ValueError(f"long_side, pad_multiple and low_res_stride must be positive, got {self}")
        if self.pad_to is not None and self.pad_to < self.long_side:
            raise ValueError(f"pad_to must not be below long_side, got {self.pad_to} < {self.long_side}")

    def input_size(self, original_size: tuple[int, int]) -> tuple[int, int]:
        """(height, width) of the resized, unpadded image; at least 1 pixel, however thin the image is."""
        scale = self.long_side / max(original_size)
        height, width = (max(1, int(side * scale + 0.5)) for side in original_size)
        return height, width

    def padded_size(self, input_size: tuple[int, int]) -> tuple[int, int]:
        """(height, width) of what the network sees."""
        if self.pad_to is not None:
            return self.pad_to, self.pad_to
        height, width = (-(-side // self.pad_multiple) * self.pad_multiple for side in input_size)
        return height, width

    def low_res_size(self, input_size: tuple[int, int]) -> tuple[int, int]:
        """(h, w) of the low-resolution logits."""
        height, width = self.padded_size(input_size)
        return height // self.low_res_stride, width // self.low_res_stride


def prepare_image(
    image: np.ndarray, preprocess: Preprocess, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> tuple[Tensor, tuple[int, int]]:
    """An RGB image, uint8 (H, W, 3) -> pixels (1, 3, H', W') of the padded input, and input_size (height, width).

    Resized by Pillow's antialiased bilinear filter (which rounds to uint8), normalised in float32, padded with zeros.
    """
    input_size = preprocess.input_size((image.shape[0], image.shape[1]))
    resized = Image.fromarray(image).resize((input_size[1], input_size[0]), Image.Resampling.BILINEAR)
    pixels = torch.from_numpy(np.array(resized)).to(device).permute(2, 0, 1).float()  # (3, height, width)
    mean = torch.tensor(preprocess.mean, device=device)[:, None, None]  # (3, 1, 1)
    std = torch.tensor(preprocess.std, device=device)[:, None, None]  # (3, 1, 1)
    height, width = preprocess.padded_size(input_size)
    right, bottom = width - input_size[1], height - input_size[0]
    padded = functional.pad((pixels - mean) / std, (0, right, 0, bottom))  # (3, H', W')
    return padded[None].to(dtype), input_size  # (1, 3, H', W')


def prompt_tokens(
    prompt: ResolvedPrompt, original_size: tuple[int, int], input_size: tuple[int, int]
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
    # In float64, rounded once: the published predictor does the same.
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

    Two bilinear steps, as published: to the padded input, then, without the padding, to the image.
    """
    padded_size = preprocess.padded_size(input_size)
    logits = functional.interpolate(low_res_logits.float(), padded_size, mode="bilinear", align_corners=False)
    logits = logits[..., : input_size[0], : input_size[1]]  # (P, C, height, width)
    return functional.interpolate(logits, original_size, mode="bilinear", align_corners=False)  # (P, C, H, W)
