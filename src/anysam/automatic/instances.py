"""Objects that a network finds in one pass: with masks (FastSAM) as records, without (a detector) as boxes to prompt.

FastSAM (Zhao et al., 2023) filters by score and by the overlap of boxes and by nothing else.
"""

from collections.abc import Callable, Iterator
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from anysam.automatic.boxes import Progress, PromptModel, box_records, masks_at_once, record_of
from anysam.automatic.options import EverythingOptions
from anysam.encoded_image import EncodedImage
from anysam.errors import OptionError
from anysam.models import InstanceModel, PromptableModel, SelectingModel
from anysam.models.yolov8 import Instances
from anysam.results import MaskRecord

OBJECTS = 300  # at most, as published


class FindingModel(Protocol):
    """What is asked of a model here; `anysam.Model` offers it, and fails where its network finds nothing."""

    @property
    def variant(self) -> str: ...

    @property
    def network(self) -> PromptableModel | InstanceModel: ...

    @property
    def device(self) -> torch.device: ...

    def encode(self, image: np.ndarray) -> EncodedImage: ...

    def detect(
        self, encoded: EncodedImage, *, confidence: float | None = None, nms_iou: float | None = None, limit: int = 300
    ) -> Instances: ...


@runtime_checkable
class LotModel(SelectingModel, Protocol):
    """A network that can make the masks of the objects it found a few at a time."""

    def instance_lots(
        self,
        features: dict[str, Tensor],
        original_size: tuple[int, int],
        *,
        confidence: float,
        nms_iou: float,
        limit: int = OBJECTS,
        at_once: int,
    ) -> Iterator[Instances]:
        """See `FastSam.instance_lots`."""
        ...


def instance_records(
    model: FindingModel,
    image: np.ndarray | EncodedImage,
    options: EverythingOptions,
    progress: Progress | None = None,
) -> list[MaskRecord]:
    """One record for each object with a mask, best first, at most 300; [] where nothing is found.

    image: RGB uint8 (H, W, 3), or what the model made of it. options.confidence and nms_iou: as published if None. The
    score of an object is its predicted_iou and its detection_score. Objects of which no pixel is left are no records.

    Raises OptionError for a model that finds nothing by itself, or boxes without masks.
    """
    if isinstance(model.network, InstanceModel) and not isinstance(model.network, SelectingModel):
        raise OptionError(
            f"{model.variant} finds boxes without masks; give it as the detector of a model that takes boxes, such as "
            "mobilesamv2_tiny_vit."
        )
    encoded = image if isinstance(image, EncodedImage) else model.encode(image)
    records = []
    for found in _lots(model, encoded, options):
        assert found.masks is not None
        for mask, box, score in zip(found.masks, found.boxes, found.scores, strict=True):
            x0, y0 = np.floor(box[:2]).astype(int).tolist()
            x1, y1 = np.ceil(box[2:]).astype(int).tolist()
            record = record_of(
                mask,
                float(score),
                part=(x0, y0, x1, y1),
                min_region_area=options.min_mask_region_area,
                detection_score=float(score),
            )
            if record.area:
                records.append(record)
    if progress is not None:
        progress(1.0)
    return records


def detected_records(
    model: PromptModel,
    detector: FindingModel,
    image: np.ndarray,
    options: EverythingOptions,
    progress: Progress | None = None,
    encode: Callable[[np.ndarray], EncodedImage] | None = None,
) -> list[MaskRecord]:
    """One record for each object that a detector finds and a model then masks: best first, at most 300.

    image: RGB uint8 (H, W, 3). options.confidence and nms_iou: the detector's; as published if None. Nothing is
    filtered, but boxes without area are not asked for and masks without a pixel are no records. prompt is the box,
    detection_score the detector's, predicted_iou the model's. encode: instead of the model's, for example a store's.

    Raises OptionError for a detector that finds nothing by itself, or a model that takes no boxes.
    """
    if isinstance(model.network, InstanceModel):
        raise OptionError(
            "A detector's boxes are for a model that takes boxes, such as mobilesamv2_tiny_vit; this one finds objects "
            "itself, so use it without a detector."
        )
    boxes, scores = find_boxes(detector, image, options)
    if not len(boxes):
        return []
    encoded = (encode or model.encode)(image)
    records = box_records(model, encoded, boxes, options, scores=scores.tolist(), progress=progress)
    return [record for record in records if record.area]


def find_boxes(detector: FindingModel, image: np.ndarray, options: EverythingOptions) -> tuple[np.ndarray, np.ndarray]:
    """The boxes (N, 4) xyxy in pixels and scores (N,) of the objects found, best first, without those of no area."""
    lots = list(_boxes_of(detector, detector.encode(image), options))
    boxes, scores = np.concatenate([lot[0] for lot in lots]), np.concatenate([lot[1] for lot in lots])
    filled = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])  # (N,)
    return boxes[filled], scores[filled]


def _boxes_of(
    detector: FindingModel, encoded: EncodedImage, options: EverythingOptions
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for found in _lots(detector, encoded, options):
        yield found.boxes, found.scores  # without the masks, which are freed


@torch.inference_mode()  # while it runs, not while it waits
def _lots(model: FindingModel, encoded: EncodedImage, options: EverythingOptions) -> Iterator[Instances]:
    """The objects found, with few masks at a time where there are masks; at least one lot."""
    network = model.network
    if not isinstance(network, LotModel):
        yield model.detect(encoded, confidence=options.confidence, nms_iou=options.nms_iou, limit=OBJECTS)
        return
    features = {name: tensor.to(model.device) for name, tensor in encoded.features.items()}
    yield from network.instance_lots(
        features,
        encoded.original_size,
        confidence=network.default_confidence if options.confidence is None else options.confidence,
        nms_iou=network.default_nms_iou if options.nms_iou is None else options.nms_iou,
        limit=OBJECTS,
        at_once=masks_at_once(encoded.original_size, options),
    )
