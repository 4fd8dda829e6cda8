"""The recipe of EfficientSAM: numbers of its paper (arXiv 2312.00863, section 4.1), where no other source is named."""

from dataclasses import dataclass, field

from anysam.train.configs import option
from anysam.train.configs.data import DataConfig
from anysam.train.configs.loop import LoopConfig


def sami_loop() -> LoopConfig:
    """400 epochs of ImageNet-1K in batches of 4096, warm-up over 40 epochs (313 steps of 4096 images each)."""
    return LoopConfig(
        epochs=400.0,
        batch_size=256,
        accumulate=16,
        learning_rate=2.4e-3,
        betas=(0.9, 0.95),
        weight_decay=0.05,
        warmup_steps=12520,
        validate_every=3130,
        save_every=313,
    )


def finetune_loop() -> LoopConfig:
    """5 epochs of SA-1B in batches of 128, the rate falling to 0 in a line; 64 GPUs had 2 images each."""
    return LoopConfig(
        epochs=5.0,
        batch_size=2,
        accumulate=64,
        learning_rate=4e-4,
        weight_decay=0.1,
        schedule="linear",
        validate_every=2000,
        save_every=500,
    )


@dataclass(frozen=True)
class EfficientSamConfig:
    """Stage sami pretrains the encoder on a SAM's features of masked images; finetune makes a whole model of it.

    The defaults of the loop are stage sami's; examples/recipes/efficient_sam_finetune.toml has those of finetune.
    """

    stage: str = option("sami", "sami pretrains the encoder, finetune goes on from its file", ("sami", "finetune"))
    size: str = option("vitt", "which EfficientSAM learns", ("vitt", "vits"))
    init: str = option("", "sami: a file to go on from; finetune: what stage sami wrote")
    teacher: str = option("sam_vit_h", "sami: the SAM whose features are learned: a name or a weights file")
    # Equation 1 gives SAM the same tokens as the student: so the default. How its 64 x 64 positions become 14 x 14 is
    # not said; here they are resized.
    target: str = option(
        "tokens",
        "sami: the teacher sees the same small crop, or sees it large and its features are averaged down",
        ("tokens", "pooled"),
    )
    mask_ratio: float = option(0.75, "sami: part of the patches that the encoder does not see")
    decoder_depth: int = option(8, "sami: blocks of the decoder that is thrown away")
    decoder_width: int = option(512, "sami: its width")
    decoder_heads: int = option(16, "sami: its heads")  # as in MAE, facebookresearch/mae, models_mae.py
    crop_scale: tuple[float, float] = option(
        (0.2, 1.0), "sami: part of an image's area that a crop has"
    )  # as in MAE, main_pretrain.py
    # Of the prompts, the paper says that it follows SAM: these are SAM's numbers (arXiv 2304.02643, appendix A), as far
    # as EfficientSAM, which takes 6 points and no masks, can be asked so.
    masks: int = option(32, "finetune: masks of an image at most; SAM: 64 on a GPU, which had one image")
    clicks: int = option(4, "finetune: clicks on what is wrong after the first prompt; SAM: 8")
    box_noise: float = option(0.1, "finetune: standard deviation of a box's corners, as a part of its sides")
    focal_weight: float = option(20.0, "finetune: weight of the focal loss; dice and IoU have 1")
    recompute: bool = option(
        False, "finetune: decode twice, for the loss and for the gradients, instead of keeping what is between"
    )
    val_masks: int = option(4, "finetune: masks of a validation image at most")
    data: DataConfig = field(default_factory=DataConfig)
    loop: LoopConfig = field(default_factory=sami_loop)
