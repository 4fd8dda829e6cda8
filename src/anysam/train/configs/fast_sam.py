"""The recipe of FastSAM: YOLOv8-x with masks on 2 % of SA-1B (arXiv 2306.12156).

The paper says: input of 1024 pixels, 100 epochs, default hyper-parameters but for 26 distances per side of a box. Those
defaults are known here from a description of the published training in words; its code is AGPL-3.0 and was not read.
"""

from dataclasses import dataclass, field

from anysam.train.configs import option
from anysam.train.configs.data import DataConfig
from anysam.train.configs.loop import LoopConfig


def yolo_loop() -> LoopConfig:
    """Published: a batch of 32 in 8 processes, 4 each; rate 0.01 falling to a hundredth, momentum 0.937, decay 5e-4.

    The published loss is multiplied by a process's 4 images, ours is a mean: 4 times the rate and a quarter of the
    decay make the same steps. Not published, so ours: SGD (it says "auto"), a line, 1000 steps of warm-up (it says 3
    epochs, which of 2 % of SA-1B are 20000 steps), the limit on gradients, validation. ema: PP-YOLOE's decay. Its
    default "nominal batch" of 64, which would gather two batches into a step, is not followed: a step has 32 images.
    """
    return LoopConfig(
        epochs=100.0,
        batch_size=4,
        accumulate=8,
        optimizer="sgd",
        learning_rate=0.04,
        momentum=0.937,
        weight_decay=1.25e-4,
        schedule="linear",
        warmup_steps=1000,
        least_rate=0.01,
        clip=10.0,
        ema=0.9998,
        validate_every=2000,
        save_every=500,
    )


@dataclass(frozen=True)
class FastSamConfig:
    """All objects of an image, of whatever kind, as boxes and masks."""

    size: str = option("x", "which FastSAM: x has 72 million parameters, s 12", ("s", "x"))
    init: str = option("", "a FastSAM of this size to go on from: a name or a file; empty: random weights")
    side: int = option(1024, "side of training images in pixels, a multiple of 32; in use it is 1024 always")
    objects: int = option(300, "objects of a training image at most")  # ours
    mosaic: float = option(1.0, "how often four images are put together into one")
    flip: float = option(0.5, "how often an image is mirrored")
    scale: float = option(0.5, "images are up to this part larger or smaller")
    translate: float = option(0.1, "images are moved by up to this part of the side")
    hue: float = option(0.015, "hues are turned by up to this part of the circle")
    saturation: float = option(0.7, "saturation is up to this part higher or lower")
    brightness: float = option(0.4, "brightness is up to this part higher or lower")
    box_weight: float = option(7.5, "weight of the boxes' complete IoU")
    score_weight: float = option(0.5, "weight of the scores' cross-entropy")
    distance_weight: float = option(1.5, "weight of the distances' distribution focal loss")
    mask_weight: float = option(1.875, "weight of the masks' cross-entropy")  # 7.5 over a process's 4 images
    masks_at_once: int = option(100, "anchors of an image whose masks learn at most")  # YOLACT's number
    anchors_per_object: int = option(10, "anchors that learn an object at most")
    alignment_score: float = option(0.5, "power of the score in choosing an object's anchors; TOOD: 1")
    alignment_overlap: float = option(6.0, "power of the overlap in choosing an object's anchors")
    data: DataConfig = field(default_factory=DataConfig)
    loop: LoopConfig = field(default_factory=yolo_loop)
