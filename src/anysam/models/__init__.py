"""Networks: one file per family, no weights, no files, no image reading.

Dimension letters, used in every module and comment:

    B images            P prompts            N tokens (points, box corners) per prompt      C masks per prompt
    D channels          H, W image or input pixels          h, w grid or low-resolution cells

Sizes are (H, W), points are (x, y), boxes are x0 y0 x1 y1.
"""

import importlib
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol, cast, runtime_checkable

import torch
from torch import Tensor, nn

from anysam.catalogue import VARIANTS
from anysam.errors import UnknownModelError
from anysam.preprocess import Preprocess
from anysam.prompts import ResolvedPrompt
from anysam.results import Prediction

if TYPE_CHECKING:  # at run time a family is imported on use only
    from anysam.letterbox import Letterbox
    from anysam.models.yolov8 import Instances

MultimaskDefault = Literal["single_point", "always", "never"]


class Decoded(NamedTuple):
    """What a decoder says of P prompts with C masks each.

    low_res_logits: (P, C, h, w). iou_predictions: (P, C). extras: more about each mask, by name, with (P, C) in front;
    for example Tokenize Anything's semantic tokens.
    """

    low_res_logits: Tensor
    iou_predictions: Tensor
    extras: dict[str, Tensor] = {}


class Kept(NamedTuple):
    """The masks that a decoder was asked to finish, of P prompts with C candidates each.

    low_res_logits: (K, rows, w), only the masks wanted, prompt by prompt. candidates: (K,) int64, p * C + c of each.
    iou_predictions: (P, C), of all candidates. extras: as in Decoded, (P, C, ...), of all candidates.
    """

    low_res_logits: Tensor
    candidates: Tensor
    iou_predictions: Tensor
    extras: dict[str, Tensor] = {}


@runtime_checkable
class PromptableModel(Protocol):
    """What every promptable network offers; `anysam.predictor` needs nothing else of it.

    preprocess: how images enter and logits leave. multimask_default: when a prediction without a wish has several
    masks: for a "single_point" and nothing else, "always" or "never". float32_parts: the submodules that stay in
    float32 where half precision would cost masks their borders: those that decode (little work beside an encoder; their
    features are then given in float32), and "image_encoder" where it amplifies rounding.
    """

    preprocess: Preprocess
    multimask_default: MultimaskDefault
    float32_parts: tuple[str, ...]

    def encode_image(self, pixels: Tensor) -> dict[str, Tensor]:
        """Padded, normalised pixels (B, 3, H, W) -> features, all with B in front.

        "image_embeddings" (B, D, h, w) is always there; a network may add more, for example finer features.
        """
        ...

    def decode(
        self, features: dict[str, Tensor], points: Tensor, labels: Tensor, mask_logits: Tensor | None, multimask: bool
    ) -> Decoded:
        """Masks for P prompts on one image.

        features: what encode_image returned for ONE image (leading dimension 1).
        points: (P, N, 2) float32, x y, input-frame pixels.
        labels: (P, N) int64: 0 background, 1 foreground, 2 and 3 box corners (top-left, bottom-right), -1 padding;
            N is at least 1, corners or one padding come last, padding alone means that the mask is the whole prompt.
        mask_logits: (P, 1, h, w) low-resolution logits of the padded input, or None.
        multimask: True for the masks of an ambiguous prompt, False for the one of a clear prompt.
        """
        ...


@runtime_checkable
class KeepingModel(PromptableModel, Protocol):
    """A PromptableModel that knows the predicted IoU of a mask before it makes the mask, and can leave the mask out."""

    def decode_kept(
        self,
        features: dict[str, Tensor],
        points: Tensor,
        labels: Tensor,
        multimask: bool,
        least_iou: float,
        rows: int,
    ) -> Kept:
        """As decode, for many prompts and without mask prompts, but only masks whose predicted IoU is above least_iou.

        features, points, labels, multimask: as in decode. least_iou: exclusive; -inf keeps all. rows: how many rows of
        the logits are wanted, from the top; what lies below is the padding of the input. Values are those of decode up
        to rounding.
        """
        ...


@runtime_checkable
class InstanceModel(Protocol):
    """What a network offers that finds all objects at once; prompts then choose among them.

    default_confidence, default_nms_iou: published thresholds of `instances`.
    """

    preprocess: "Letterbox"
    default_confidence: float
    default_nms_iou: float

    def encode_image(self, pixels: Tensor) -> dict[str, Tensor]:
        """Letterboxed pixels (1, 3, H, W) in 0..1 -> features, all with 1 in front.

        "decoded" (1, 4 + classes + 32, A): a box, its scores and its mask coefficients for every anchor.
        "prototypes" (1, 32, h, w): the maps whose combinations are masks; a detector of boxes alone has none.
        """
        ...

    def instances(
        self,
        features: dict[str, Tensor],
        original_size: tuple[int, int],
        *,
        confidence: float,
        nms_iou: float,
        limit: int = 300,
    ) -> "Instances":
        """The objects found, best first, at most `limit`, in pixels of the image of original_size (H, W)."""
        ...


@runtime_checkable
class SelectingModel(InstanceModel, Protocol):
    """An InstanceModel with masks, which prompts choose from."""

    def select(self, instances: "Instances", prompt: ResolvedPrompt, multimask: bool) -> Prediction:
        """The masks that a prompt means; an empty one with score 0 if no object fits."""
        ...


class LoadedModel(Protocol):
    """What identifies a loaded model and says where it computes; `anysam.Model` offers it."""

    @property
    def variant(self) -> str: ...

    @property
    def weights_sha256(self) -> str: ...

    @property
    def network(self) -> PromptableModel | InstanceModel: ...

    @property
    def device(self) -> torch.device: ...

    @property
    def dtype(self) -> torch.dtype: ...


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
