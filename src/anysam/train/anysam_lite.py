"""The recipe of the built-in model, after SAM's (paper, appendix A) on a small scale; docs/training.md has its story.

Every mask is prompted by a click or a jittered box, then by clicks on its errors with its previous logits; focal x 20 +
dice on the best of three masks, squared error on the predicted IoU. Early stages of the backbone stay as ImageNet made
them: depthwise convolutions learn slowly on a CPU.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from anysam.checkpoints import load_strictly, read_state_dict
from anysam.datasets import Entries, ImageDataset, ImageEntry, read_collection
from anysam.errors import OptionError
from anysam.models.anysam_lite import AnySamLite
from anysam.models.anysam_lite_decoder import LiteConfig
from anysam.train.augment import Sample, training_sample
from anysam.train.configs.anysam_lite import AnySamLiteConfig
from anysam.train.data import open_data
from anysam.train.imagenet_backbone import read_imagenet_backbone
from anysam.train.learning import learn, validate
from anysam.train.task import Loss, ParameterGroup, Step, decayed

# How often each of our data sets is drawn; any other counts as their mean. coco_mini and bsds500 are the diverse ones;
# small, uniform sets are soon exhausted.
DATASET_WEIGHTS = {
    "coco_mini": 0.20,
    "bsds500": 0.19,
    "ccp_clothing": 0.12,
    "car_parts": 0.10,
    "camvid": 0.09,
    "facades": 0.08,
    "bbbc038": 0.08,
    "isbi_em": 0.05,
    "coelho_nuclei": 0.05,
    "cwfid": 0.04,
}


@dataclass(frozen=True, eq=False)
class AnySamLiteTask:
    """See train.task.Task. learned, judged: data sets to learn from and to validate on."""

    network: AnySamLite
    config: AnySamLiteConfig
    learned: Sequence[ImageDataset]
    judged: Sequence[ImageDataset]
    variant: str = "anysam_lite"
    better: Literal["higher", "lower"] = "higher"

    def order(self, generator: np.random.Generator) -> np.ndarray:
        """As many draws as there are images: a data set by its weight, then one of its images evenly."""
        sizes = np.array([len(each) for each in self.learned])
        mean = sum(DATASET_WEIGHTS.values()) / len(DATASET_WEIGHTS)
        weights = np.array([DATASET_WEIGHTS.get(each.name, mean) for each in self.learned])
        drawn = generator.choice(len(sizes), sizes.sum(), p=weights / weights.sum())  # (K,)
        starts = np.cumsum(sizes) - sizes
        return starts[drawn] + generator.integers(sizes[drawn])  # (K,)

    def read(self, index: int, generator: np.random.Generator) -> Sample | None:
        cv2.setNumThreads(1)  # this process has one core
        crops = self.config.crops
        height, width = crop_size(crops[generator.integers(len(crops))])
        entry = entry_at(self.learned, index)
        if not entry.masks:
            return None
        donor = None
        if self.config.paste and generator.random() < self.config.paste:
            donor = neighbour_of(self.learned, index, generator)
        return training_sample(
            entry, (height, width), self.config.long_side, self.config.masks_per_image, generator, donor
        )

    def collate(self, examples: list[Sample]) -> list[Sample]:
        return examples

    def loss(self, batch: list[Sample], step: Step) -> Loss:
        # drawn by the step alone: all processes then have about the same work, and none waits for another
        shares = np.asarray(self.config.rounds) / sum(self.config.rounds)
        rounds = 1 + int(np.random.default_rng([self.config.loop.seed, step.index]).choice(len(shares), p=shares))
        return learn(self.network, batch, self.config, rounds, step)

    def prepare(self, step: Step) -> None:
        """The backbone rests at first: gradients that a fresh decoder sends are worth little and cost time."""
        if self.config.learn == "iou_head":
            return  # make_task chose what learns
        awake = step.progress >= self.config.freeze_backbone_part
        for name, parameter in self.network.backbone.named_parameters():
            parameter.requires_grad_(awake and backbone_learns(name, self.config.train_backbone_from))

    def groups(self, weight_decay: float) -> list[ParameterGroup]:
        """The learning stages of the backbone at a lower rate; no decay there, nor on vectors."""
        if self.config.learn == "iou_head":
            return decayed(self.network, weight_decay)
        backbone = [
            parameter
            for name, parameter in self.network.backbone.named_parameters()
            if backbone_learns(name, self.config.train_backbone_from)
        ]
        rest = [p for name, p in self.network.named_parameters() if not name.startswith("backbone.")]
        groups = [
            ParameterGroup([p for p in rest if p.ndim > 1], 1.0, weight_decay),
            ParameterGroup([p for p in rest if p.ndim <= 1], 1.0, 0.0),
            ParameterGroup(backbone, self.config.backbone_rate, 0.0),
        ]
        return [group for group in groups if group.parameters]

    def validate(self, network: nn.Module) -> dict[str, float]:
        assert isinstance(network, AnySamLite)
        return validate(network, self.judged, self.config.long_side, masks=4)

    def weights(self, network: nn.Module) -> dict[str, Tensor]:
        return dict(network.state_dict())


def make_task(config: AnySamLiteConfig, out: Path | None) -> AnySamLiteTask:
    """The network as the configuration starts it, and its data. Raises OptionError for sizes that do not fit."""
    if config.long_side <= 0 or config.long_side % 32:
        raise OptionError(f"long_side must be a multiple of 32 above 0, got {config.long_side}.")
    for crop in config.crops:
        crop_size(crop)
    if config.learn == "iou_head" and not config.init:
        raise OptionError("The head that predicts IoUs learns alone after everything else has; give a file to --init.")
    torch.manual_seed(config.loop.seed)
    network = AnySamLite(LiteConfig(frame=config.long_side, backbone=config.backbone))
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if config.init:
        load_strictly(network, read_state_dict(config.init), f"anysam_lite with backbone {config.backbone}", False)
    else:
        network.backbone.load_state_dict(read_imagenet_backbone(config.backbone))
    if config.learn == "iou_head":
        network.requires_grad_(False).decoder.iou_prediction_head.requires_grad_(True)
    learned, judged = open_sets(config)
    return AnySamLiteTask(network, config, learned, judged)


def open_sets(config: AnySamLiteConfig) -> tuple[list[ImageDataset], list[ImageDataset]]:
    """Data sets to learn from and to validate on: those of a collection each by itself, for their weights' sake."""
    root = Path(config.data.data)
    if config.data.kind == "collection" and not config.data.val_data and any(root.glob("*/annotations.json")):
        sets = (read_collection(root, split) for split in (config.data.split or "train", "val"))
        learned, judged = (list[ImageDataset](Entries(n, own) for n, own in each.items() if own) for each in sets)
        return learned, judged
    one, other = open_data(config.data)
    return [one], [other]


def entry_at(sets: Sequence[ImageDataset], index: int) -> ImageEntry:
    """Entry `index` of the data sets one after another."""
    for each in sets:
        if index < len(each):
            return each[index]
        index -= len(each)
    raise IndexError(index)


def neighbour_of(sets: Sequence[ImageDataset], index: int, generator: np.random.Generator) -> ImageEntry | None:
    """Any entry of the data set that entry `index` is from; None if it has no masks."""
    for each in sets:
        if index < len(each):
            entry = each[int(generator.integers(len(each)))]
            return entry if entry.masks else None
        index -= len(each)
    raise IndexError(index)


def crop_size(text: str) -> tuple[int, int]:
    """ "352x448" -> (352, 448). Raises OptionError unless both are multiples of 32 above 0."""
    height, _, width = text.partition("x")
    if (
        not (height.isdigit() and width.isdigit())
        or int(height) % 32
        or int(width) % 32
        or not int(height) * int(width)
    ):
        raise OptionError(f"A crop must be HEIGHTxWIDTH in multiples of 32 pixels, for example 384x512, got {text!r}.")
    return int(height), int(width)


def backbone_learns(name: str, first: int) -> bool:
    """Whether the backbone's parameter `stages.<i>...` belongs to a stage from `first` on."""
    parts = name.split(".")
    return parts[0] == "stages" and int(parts[1]) >= first
