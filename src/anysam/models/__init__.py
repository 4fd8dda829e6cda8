"""Networks: one file per family, no weights, no files, no image reading.

Dimension letters, used in every module and comment:

    B images            P prompts            N tokens (points, box corners) per prompt      C masks per prompt
    D channels          H, W image or input pixels          h, w grid or low-resolution cells

Sizes are (H, W), points are (x, y), boxes are x0 y0 x1 y1.
"""

import importlib
from typing import Protocol, cast, runtime_checkable

from torch import Tensor, nn

from anysam.catalogue import VARIANTS
from anysam.errors import UnknownModelError
from anysam.preprocess import Preprocess


@runtime_checkable
class PromptableModel(Protocol):
    """What every promptable network offers; `anysam.predictor` needs nothing else of it."""

    preprocess: Preprocess

    def encode_image(self, pixels: Tensor) -> dict[str, Tensor]:
        """Padded, normalised pixels (B, 3, H, W) -> features, all with B in front.

        "image_embeddings" (B, D, h, w) is always there; a network may add more, for example finer features.
        """
        ...

    def decode(
        self, features: dict[str, Tensor], points: Tensor, labels: Tensor, mask_logits: Tensor | None, multimask: bool
    ) -> tuple[Tensor, Tensor]:
        """Masks for P prompts on one image.

        features: what encode_image returned for ONE image (leading dimension 1).
        points: (P, N, 2) float32, x y, input-frame pixels.
        labels: (P, N) int64: 0 background, 1 foreground, 2 and 3 box corners (top-left, bottom-right), -1 padding;
            N is at least 1, and padding alone means that the mask is the whole prompt.
        mask_logits: (P, 1, h, w) low-resolution logits of the padded input, or None.
        multimask: True for the masks of an ambiguous prompt, False for the one of a clear prompt.

        Returns low_res_logits (P, C, h, w) and iou_predictions (P, C).
        """
        ...


def build(family: str, size: str) -> nn.Module:
    """A network with random weights; `family` and `size` as in the catalogue's rows.

    The family's module is imported on use, so that naming one family does not load all of them. Raises
    UnknownModelError for a family or size the catalogue does not have.
    """
    sizes = sorted({variant.size for variant in VARIANTS if variant.family == family})
    if not sizes:
        families = ", ".join(sorted({variant.family for variant in VARIANTS}))
        raise UnknownModelError(f"There is no model family {family!r}; families are {families}.")
    if size not in sizes:
        raise UnknownModelError(f"The family {family!r} has no size {size!r}; its sizes are {', '.join(sizes)}.")
    module = importlib.import_module(f"anysam.models.{family}")
    return cast(nn.Module, module.build(size))
