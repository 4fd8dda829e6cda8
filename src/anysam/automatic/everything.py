"""Everything mode put together: which way a model finds all masks, tiles around it, and what is made of the masks."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from anysam.automatic.boxes import PromptModel
from anysam.automatic.grid_mode import USUAL_MEMORY, Progress, grid_records
from anysam.automatic.instances import FindingModel, detected_records, instance_records
from anysam.automatic.interface import GridModel, MeasuredModel, PointMasks, Resize
from anysam.automatic.options import EverythingOptions
from anysam.automatic.refine import refine
from anysam.automatic.tiles import tiled_records
from anysam.encoded_image import EncodedImage
from anysam.errors import OptionError
from anysam.memory import MEGABYTE, WorkingMemory, check_bound
from anysam.models import InstanceModel
from anysam.rasters import ArraySource, ImageSource
from anysam.results import MaskRecord

Encoder = Callable[[np.ndarray], EncodedImage]

# What only a grid of points has a use for.
_GRID_ONLY = (
    *("points_per_side", "points_per_batch", "point_grids", "pred_iou_thresh", "stability_score_thresh"),
    *("stability_score_offset", "crop_n_layers", "crop_nms_thresh", "crop_overlap_ratio"),
    *("crop_n_points_downscale_factor", "levels"),
)


# Low-resolution logits of all objects that are found in one pass, and one mask of full-size logits.
_OBJECTS = 96 * MEGABYTE


class EverythingModel(GridModel, PromptModel, FindingModel, Protocol):
    """What is asked of a model; `anysam.Model` offers it."""


class ImageStore(Protocol):
    """Where encoded images are kept; `anysam.EmbeddingStore` is one."""

    def encode(self, model: Any, image: np.ndarray) -> EncodedImage:
        """The image's encoding by the model: the one kept, or a new one, which is then kept."""
        ...


@dataclass(frozen=True, eq=False)
class _Gridded:
    """A model whose images are encoded by something else: a store, or once and for all."""

    model: GridModel
    encoder: Encoder

    def encode(self, image: np.ndarray) -> EncodedImage:
        return self.encoder(image)

    def decode_points(self, encoded: EncodedImage, points: np.ndarray, least_iou: float) -> PointMasks:
        return self.model.decode_points(encoded, points, least_iou)

    def resize(self, encoded: EncodedImage) -> Resize:
        return self.model.resize(encoded)

    def working_memory(self) -> WorkingMemory:
        return self.model.working_memory() if isinstance(self.model, MeasuredModel) else USUAL_MEMORY


def find_everything(
    model: EverythingModel,
    image: np.ndarray | ImageSource | EncodedImage,
    options: EverythingOptions,
    *,
    detector: FindingModel | None = None,
    encode: Encoder | None = None,
    progress: Progress | None = None,
) -> list[MaskRecord]:
    """All masks of an image: RGB uint8 (H, W, 3), a source of windows, or what the model made of an image.

    A model that finds objects by itself does so; with a detector, the boxes that it finds are prompts; else a grid of
    points is. encode: takes the place of the model's own, for example a store's. progress: called with the part done, 0
    to 1, rising.

    Raises OptionError for options that the model, the detector or the kind of image has no use for.
    """
    _check(model, options, detector)

    def whole(pixels: np.ndarray, report: Progress | None = None) -> list[MaskRecord]:
        with torch.inference_mode():
            return _one_image(model, pixels, options, detector, encode or model.encode, report)

    if isinstance(image, EncodedImage):
        found = _encoded(model, image, options, detector, progress)
    elif options.tile is not None:
        source = ArraySource(image) if isinstance(image, np.ndarray) else image
        found = tiled_records(whole, source, options.tile, options.tile_overlap, options.crop_nms_thresh, progress)
    else:
        height, width = (image.shape[0], image.shape[1]) if isinstance(image, np.ndarray) else image.size
        found = whole(image if isinstance(image, np.ndarray) else image.read(0, 0, width, height), progress)
    return refine(found, options)


def _one_image(
    model: EverythingModel,
    pixels: np.ndarray,
    options: EverythingOptions,
    detector: FindingModel | None,
    encode: Encoder,
    progress: Progress | None,
) -> list[MaskRecord]:
    if isinstance(model.network, InstanceModel):
        _check_memory(model, pixels, options, _OBJECTS)
        return instance_records(model, encode(pixels), options, progress)
    if detector is not None:
        _check_memory(detector, pixels, options, 0)
        return detected_records(model, detector, pixels, options, progress, encode)
    return grid_records(_Gridded(model, encode), pixels, options, progress)


def _check_memory(model: FindingModel, pixels: np.ndarray, options: EverythingOptions, more: int) -> None:
    """Nothing is cut in a network that answers in one pass, so a bound that it cannot keep is refused before."""
    if options.max_memory is not None and isinstance(model, MeasuredModel):
        height, width = pixels.shape[:2]
        least = model.working_memory().encode + more + height * width
        # Masks take the last quarter of the bound, see `boxes.masks_at_once`.
        check_bound(options.max_memory, -(-4 * least // 3), (height, width))


def _encoded(
    model: EverythingModel,
    encoded: EncodedImage,
    options: EverythingOptions,
    detector: FindingModel | None,
    progress: Progress | None,
) -> list[MaskRecord]:
    """Everything on an encoding, which has no pixels to cut or to give to another model."""
    for name, given in (("crop_n_layers", options.crop_n_layers), ("tile", options.tile), ("a detector", detector)):
        if given:
            raise OptionError(f"An encoded image has no pixels, which {name} would need; give the image itself.")
    height, width = encoded.original_size
    shape = np.broadcast_to(np.uint8(0), (height, width, 3))  # only its size is looked at
    with torch.inference_mode():
        return _one_image(model, shape, options, None, lambda pixels: encoded, progress)


def _check(model: EverythingModel, options: EverythingOptions, detector: FindingModel | None) -> None:
    """Nothing that was asked for goes unheard."""
    finds = isinstance(model.network, InstanceModel)
    if finds and detector is not None:
        raise OptionError(f"{model.variant} finds objects by itself and takes no detector; leave the detector out.")
    if finds or detector is not None:
        plain = EverythingOptions()
        for field in dataclasses.fields(options):
            if field.name in _GRID_ONLY and getattr(options, field.name) != getattr(plain, field.name):
                what = f"{model.variant} finds objects in one pass" if finds else "a detector gives the prompts"
                raise OptionError(f"{field.name} belongs to a grid of points, but {what}; leave it at its default.")
    elif options.confidence is not None or options.nms_iou is not None:
        raise OptionError(
            f"confidence and nms_iou belong to detectors, but {model.variant} is asked at a grid of points; "
            "use pred_iou_thresh and box_nms_thresh, or give a detector."
        )
