"""FastSAM's training: YOLOv8-seg learns all objects of an image, their boxes and masks, as one class.

Paper: Zhao et al., "Fast Segment Anything", 2023; the losses' papers stand in yolo_losses.py. The
published training code is AGPL-3.0 and was not read.
"""

from pathlib import Path
from typing import cast

import torch

from anysam.checkpoints import load_model
from anysam.errors import OptionError
from anysam.models import build
from anysam.models.fast_sam import FastSam
from anysam.train.configs.fast_sam import FastSamConfig
from anysam.train.data import open_data
from anysam.train.detection import DetectionSettings, DetectionTask, require_one_class, require_side, start_head
from anysam.train.yolo_data import Augmentation
from anysam.train.yolo_losses import AssignmentRules, DetectionWeights


def make_task(config: FastSamConfig, out: Path | None) -> DetectionTask:
    """The task of `anysam train fast_sam`; `out` is not used.

    Raises OptionError for an `init` of another model or size, and for a side that is no multiple of 32.
    """
    require_side(config.side)
    torch.manual_seed(config.loop.seed)
    network = start(config)
    learned, judged = open_data(config.data)
    return DetectionTask(f"fastsam_{config.size}", network, learned, judged, settings(config))


def start(config: FastSamConfig) -> FastSam:
    """The network before the first step."""
    if not config.init:
        network = cast(FastSam, build("fast_sam", config.size))
        start_head(network)
        return network
    found, row, _ = load_model(config.init)
    if not isinstance(found, FastSam) or row.name != f"fastsam_{config.size}":
        raise OptionError(f"init must be a fastsam_{config.size}, but {config.init} is {row.name}.")
    require_one_class(found, config.init)
    return found


def settings(config: FastSamConfig) -> DetectionSettings:
    """The part of the configuration that every step needs."""
    augmentation = Augmentation(
        mosaic=config.mosaic,
        flip=config.flip,
        scale=config.scale,
        translate=config.translate,
        hue=config.hue,
        saturation=config.saturation,
        brightness=config.brightness,
    )
    weights = DetectionWeights(
        box=config.box_weight,
        score=config.score_weight,
        distance=config.distance_weight,
        mask=config.mask_weight,
        masks_at_once=config.masks_at_once,
        rules=AssignmentRules(config.anchors_per_object, config.alignment_score, config.alignment_overlap),
    )
    return DetectionSettings(config.side, config.objects, augmentation, weights)
