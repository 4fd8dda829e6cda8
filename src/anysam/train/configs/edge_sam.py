"""The recipe of EdgeSAM: numbers of chongzhou96/EdgeSAM@b53372c, training/ and its two training/configs/*.yaml."""

from dataclasses import dataclass, field

from anysam.train.configs import option
from anysam.train.configs.data import DataConfig
from anysam.train.configs.loop import LoopConfig


def stage1_loop() -> LoopConfig:
    """Published rates are for a batch of 512 and scaled by batch / 512: 0.1 x 64 / 512, floor 5e-6 x 64 / 512.

    The batch of 64 is 8 in each of 8 processes; one process gathers it in 8 parts. The rate rises to its peak in half
    of the run and falls from there at once to a half, where the cosine is by then.
    """
    return LoopConfig(
        epochs=10.0,
        batch_size=8,
        accumulate=8,
        learning_rate=1.25e-2,
        weight_decay=0.01,
        # 5 of the 10 epochs: a per cent of SA-1B's 11 million images makes 1719 steps of 64 an epoch.
        warmup_steps=8595,
        warmup_rate=5e-6,
        least_rate=5e-5,
        clip=5.0,
    )


def stage2_loop() -> LoopConfig:
    """As stage1_loop: 3.2e-3 x 16 / 512, floor 3.2e-4 x 16 / 512, no warm-up; 2 in each of 8 processes."""
    return LoopConfig(
        epochs=5.0,
        batch_size=2,
        accumulate=8,
        learning_rate=1e-4,
        weight_decay=0.05,
        least_rate=0.1,
        clip=0.01,
    )


@dataclass(frozen=True)
class EdgeSamConfig:
    """Stage 1 teaches the encoder a SAM's embeddings; stage 2 the encoder and the mask decoder its masks.

    The defaults of the loop are stage 1's; examples/recipes/edge_sam_stage2.toml has those of stage 2.
    """

    stage: str = option("1", "1 learns embeddings, 2 masks, starting from --init", ("1", "2"))
    teacher: str = option("sam_vit_h", "the SAM to learn from, whose prompt encoder and decoder are taken over")
    embeddings: str = option(
        "", "folder of `anysam embed` with the teacher's embeddings; empty: its encoder runs along"
    )
    init: str = option("", "stage 1: RepViT trained on ImageNet, or an EdgeSAM to go on from; stage 2: stage 1's file")
    objects: int = option(16, "stage 2: objects of an image at most; of more, so many are drawn with replacement")
    rounds: int = option(2, "stage 2: times that an object is decoded; after the first, with one point more each")
    least_disagreement: int = option(10, "stage 2: with fewer cells (of 256 x 256) that differ there is no new point")
    bce_weight: float = option(5.0, "stage 2: weight of the binary cross-entropy")
    dice_weight: float = option(5.0, "stage 2: weight of the dice loss")
    val_masks: int = option(4, "stage 2: masks of a validation image at most")
    data: DataConfig = field(default_factory=DataConfig)
    loop: LoopConfig = field(default_factory=stage1_loop)
