"""The recipe of the built-in model. docs/training.md has its story and what each number brought."""

from dataclasses import dataclass, field

from anysam.train.configs import option
from anysam.train.configs.data import DataConfig
from anysam.train.configs.loop import LoopConfig


@dataclass(frozen=True)
class AnySamLiteConfig:
    """Crops are HEIGHTxWIDTH in pixels of the network's input, whose long side is `long_side` for a whole image."""

    backbone: str = option("lite2", "size of EfficientNet-Lite", ("lite0", "lite1", "lite2"))
    init: str = option("", "weights of an earlier run to start from, instead of ImageNet's for the backbone")
    long_side: int = option(640, "input's long side of a whole image, in pixels; a multiple of 32")
    crops: tuple[str, ...] = option(
        ("352x448", "448x352", "384x384"), "sizes of the crops; a batch may mix them; smaller ones cost less"
    )
    masks_per_image: int = option(6, "masks of a crop at most")
    learn: str = option(
        "all", "everything, or only the head that predicts IoUs, when masks are as they should be", ("all", "iou_head")
    )
    train_backbone_from: int = option(
        2, "first of the backbone's 7 stages that learns: early ones learn slowly on a CPU"
    )
    backbone_rate: float = option(0.2, "the backbone's learning rate, as a part of the rate")
    freeze_backbone_part: float = option(0.06, "the backbone rests for this part of the run")
    rounds: tuple[float, ...] = option(
        (0.35, 0.35, 0.3), "how often a step has no, one, two rounds of correcting clicks"
    )
    centred: float = option(0.5, "part of the correcting clicks in the middle of the largest error; the rest anywhere")
    forget_mask: float = option(0.25, "how often a round of corrections does without the mask before it")
    paste: float = option(0.0, "how often an object of another image of the set is pasted over a crop")
    iou_weight: float = option(1.0, "weight of the predicted IoU's squared error")
    box_jitter: float = option(0.06, "noise of a box's corners, as a part of its sides; at most 20 pixels")
    data: DataConfig = field(default_factory=lambda: DataConfig(kind="collection"))
    loop: LoopConfig = field(
        default_factory=lambda: LoopConfig(
            steps=4000,
            batch_size=3,
            learning_rate=8e-4,
            betas=(0.9, 0.98),
            weight_decay=0.02,
            warmup_steps=100,
            least_rate=0.01,
            clip=1.0,
            ema=0.998,
            workers=1,
        )
    )
