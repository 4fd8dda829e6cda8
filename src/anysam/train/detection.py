"""What FastSAM and MobileSAMv2's detector share: a task whose network is a YOLOv8 with one class, "object".

The networks are inference networks; what their losses take, `yolov8.Raw`, is what their layers return before anything
is decoded, so nothing in models/ knows of training.
"""

import math
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from pycocotools import mask as coco_mask
from torch import Tensor, nn

from anysam.datasets import ImageDataset, ImageEntry
from anysam.errors import ImageError, OptionError
from anysam.letterbox import Letterbox, prepare_letterbox
from anysam.masks import box_iou
from anysam.models.fast_sam import FastSam
from anysam.models.object_aware import ObjectAware
from anysam.models.yolov8 import Instances, Segment
from anysam.train.proposal_recall import AverageRecall
from anysam.train.task import Loss, ParameterGroup, Step, decayed
from anysam.train.yolo_data import Augmentation, DetectionBatch, DetectionExample, collate, read_example
from anysam.train.yolo_losses import DetectionWeights, detection_loss

# Proposals are counted down to this score, and of two with a higher IoU the lower one goes. The defaults of use (0.4
# and 0.9) are for showing masks; recall wants everything, without its own repetitions. Ours.
_LEAST_SCORE, _NMS_IOU = 0.001, 0.7
PROPOSALS = 100
# Every anchor starts as sure as this that it sees an object (Lin et al., "Focal Loss", 2017, section 4.1: 0.01).
_PRIOR = 0.01


@dataclass(frozen=True)
class DetectionSettings:
    """side: of a training image, in pixels; a multiple of 32. objects: of a training image at most."""

    side: int
    objects: int = 300
    augmentation: Augmentation = field(default_factory=Augmentation)
    weights: DetectionWeights = field(default_factory=DetectionWeights)


@dataclass(frozen=True, eq=False)
class DetectionTask:
    """See train.task.Task. learned, judged: the data sets to learn from and to validate on."""

    variant: str
    network: FastSam | ObjectAware
    learned: ImageDataset
    judged: ImageDataset
    settings: DetectionSettings
    better: Literal["higher", "lower"] = "higher"

    def order(self, generator: np.random.Generator) -> np.ndarray:
        return generator.permutation(len(self.learned))

    def read(self, index: int, generator: np.random.Generator) -> DetectionExample | None:
        settings = self.settings
        own = self.network.preprocess
        letterbox = Letterbox(long_side=settings.side, stride=own.stride, fill=own.fill, name="square")
        return read_example(
            self.learned,
            index,
            letterbox,
            settings.augmentation,
            settings.objects,
            isinstance(self.network, FastSam),
            generator,
        )

    def collate(self, examples: list[DetectionExample]) -> DetectionBatch:
        return collate(examples, self.network.preprocess.bgr)

    def loss(self, batch: DetectionBatch, step: Step) -> Loss:
        pixels = batch.pixels.to(step.device).float() / 255
        truths = [truth.to(step.device) for truth in batch.truths]
        raw = self.network.model(pixels)
        return detection_loss(raw, truths, self.settings.weights, step.generator)

    def prepare(self, step: Step) -> None:
        self.network.train()  # batch norms learn their statistics

    def groups(self, weight_decay: float) -> list[ParameterGroup]:
        return decayed(self.network, weight_decay)

    def validate(self, network: nn.Module) -> dict[str, float]:
        """See `score_proposals`."""
        assert isinstance(network, (FastSam, ObjectAware))
        return score_proposals(network, self.judged)

    def weights(self, network: nn.Module) -> dict[str, Tensor]:
        return dict(network.state_dict())


@torch.no_grad()
def score_proposals(network: FastSam | ObjectAware, dataset: ImageDataset) -> dict[str, float]:
    """AR@100 over a data set's objects, in its images' own pixels: "mask_ar" where the network makes masks, "box_ar".

    Images are seen as in use, at network.preprocess; those that cannot be read are left out; without any object there
    are no scores. The network's modes are as
    before afterwards.
    """
    modes = {module: module.training for module in network.modules()}
    network.eval()
    device = next(network.parameters()).device
    boxes, masks = AverageRecall(), AverageRecall()
    for index in range(len(dataset)):
        try:
            entry = dataset[index]
            pixels, _ = prepare_letterbox(entry.read_image(), network.preprocess, device)
        except ImageError:
            continue
        there = [i for i, area in enumerate(entry.areas) if area > 0]
        found = network.instances(
            network.encode_image(pixels), entry.size, confidence=_LEAST_SCORE, nms_iou=_NMS_IOU, limit=PROPOSALS
        )
        truth: list[dict[str, object]] = [{"size": list(entry.size), "counts": entry.masks[i]} for i in there]
        true_boxes = coco_mask.toBbox(truth).reshape(-1, 4) if truth else np.zeros((0, 4))  # x, y, width, height
        true_boxes[:, 2:] += true_boxes[:, :2]
        boxes.add(box_iou(found.boxes, true_boxes))
        if found.masks is not None:
            masks.add(_mask_ious(found, truth, entry))
    for module, training in modes.items():
        module.training = training
    if not boxes.objects:
        return {}
    scores = {"box_ar": boxes.value()}
    return {"mask_ar": masks.value()} | scores if isinstance(network, FastSam) else scores


def _mask_ious(found: Instances, truth: list[dict[str, object]], entry: ImageEntry) -> np.ndarray:
    """IoU (D, G) of the masks found in an image with the true ones."""
    if found.masks is None or not len(found.masks) or not truth:
        return np.zeros((len(found.boxes), len(truth)))
    own = [coco_mask.encode(np.asfortranarray(mask.view(np.uint8))) for mask in found.masks]
    return np.asarray(coco_mask.iou(own, truth, [0] * len(truth)))


def start_head(network: FastSam | ObjectAware) -> None:
    """Set the biases of the scores of a network that starts from nothing, in place: few anchors see an object."""
    head = network.model["22"]
    assert isinstance(head, Segment)
    for branch in head.cv3:
        last = branch[-1]  # type: ignore[index]
        nn.init.constant_(last.bias, math.log(_PRIOR / (1 - _PRIOR)))


def require_one_class(network: FastSam | ObjectAware, name: str) -> None:
    """Raises OptionError for a network that tells kinds of objects apart."""
    if network.classes != 1:
        raise OptionError(
            f"{name} tells {network.classes} classes of objects apart; only networks with one class, as published for "
            "segmenting anything, are trained."
        )


def require_side(side: int) -> None:
    """Raises OptionError unless the side of training images is a multiple of 32 above 0."""
    if side <= 0 or side % 32:
        raise OptionError(f"side must be a multiple of 32 above 0, got {side}.")
