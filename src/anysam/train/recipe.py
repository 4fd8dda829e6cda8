"""What shapes a training run of the built-in model: one frozen value, saved beside the run's checkpoints."""

from dataclasses import dataclass

# How often each data set is drawn. coco_mini and bsds500 are the diverse ones; small, uniform sets are soon exhausted.
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


@dataclass(frozen=True)
class Recipe:
    """Sizes are (H, W) in pixels of the network's input, whose long side is `long_side` for a whole image.

    shapes, final_shapes: crops of the first and the last part of the run (`final_part` of it); small crops cost less.
    max_images, masks_per_step: a step of one process gathers images until it has exactly so many masks, or so many
    images; at most masks_per_image come from one.
    rounds: how often a step has no, one or two rounds of correcting clicks.
    forget_mask: how often a round of corrections does without the mask before it.
    train_backbone_from: first stage of the backbone that learns, at `backbone_rate` times the rate, after
    `freeze_backbone_part` of the run; depthwise convolutions train slowly on a CPU.
    minutes: the length of the run, by the clock; the learning rate's cosine follows it. steps: its length in steps
    instead, if not 0.
    init: a checkpoint of an earlier run to start from (its averaged weights).
    """

    data: str
    out: str
    minutes: float = 105.0
    steps: int = 0
    long_side: int = 512
    shapes: tuple[tuple[int, int], ...] = ((320, 320), (288, 384), (384, 288))
    final_shapes: tuple[tuple[int, int], ...] = ((384, 512), (512, 384), (448, 448))
    final_part: float = 0.3
    max_images: int = 3
    masks_per_step: int = 18
    masks_per_image: int = 16
    learning_rate: float = 8e-4
    backbone_rate: float = 0.1
    train_backbone_from: int = 3
    freeze_backbone_part: float = 0.2
    weight_decay: float = 0.02
    warmup_steps: int = 100
    rounds: tuple[float, ...] = (0.5, 0.35, 0.15)
    forget_mask: float = 0.25
    clip: float = 1.0
    ema: float = 0.998
    box_jitter: float = 0.06
    seed: int = 0
    device: str = "cpu"
    workers: int = 1
    save_minutes: float = 4.0
    validate_minutes: float = 12.0
    init: str = ""
