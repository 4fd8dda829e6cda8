"""Fine-tuning on one's own masks. SAM's numbers: arXiv 2304.02643, appendix A; what is not from there is said to be."""

from dataclasses import dataclass, field

from anysam.train.configs import option
from anysam.train.configs.data import DataConfig
from anysam.train.configs.loop import LoopConfig


@dataclass(frozen=True)
class FinetuneConfig:
    """A promptable model of the catalogue learns masks from clicks and boxes.

    The defaults are ours, for some 50 images on a CPU: the mask decoder alone, on features that are computed once. SAM
    itself was trained with 8 clicks and 2 repeats; for a whole network on a GPU see examples/recipes/finetune_*.toml.
    """

    model: str = option("", "what to start from: a name of the catalogue or a weights file; empty: the built-in model")
    variant: str = option("", "catalogue name of a weights file that does not tell by itself")
    what: str = option(
        "decoder",
        "what learns: the mask decoder, all, or low-rank products beside attention",
        ("decoder", "whole", "lora"),
    )
    lora_parts: str = option("both", "which attention LoRA is put on", ("encoder", "decoder", "both"))
    lora_targets: str = option("qv", "queries and values, or the keys and outputs too", ("qv", "all"))
    lora_rank: int = option(4, "rank of the products")  # 4 as in arXiv 2304.13785
    lora_alpha: float = option(4.0, "their scale is alpha / rank")
    save: str = option("merged", "for LoRA: ordinary weights, or only the products", ("merged", "adapter"))
    prompts: str = option("both", "how masks are first asked for", ("both", "box", "point"))
    clicks: int = option(2, "clicks on what is wrong after the first prompt; SAM: 8")
    repeats: int = option(0, "further rounds without a new click, only with the mask so far; SAM: 2")
    masks: int = option(4, "masks of an image at most")
    box_noise: float = option(0.1, "standard deviation of a box's corners, as a part of its sides; at most 20 pixels")
    focal_weight: float = option(20.0, "weight of the focal loss; dice and IoU have 1")
    augment: bool = option(False, "flip, crop and recolour; then the features of a frozen encoder are not kept")
    encoder_rate: float = option(0.1, "the encoder's learning rate as a part of the decoder's, where it learns")
    embeddings: str = option("", "folder of `anysam embed` with the images' features, for an encoder that rests")
    keep: str = option("2G", "memory for features of an encoder that rests; what does not fit is computed again")
    recompute: bool = option(
        False, "decode twice, for the loss and for the gradients, instead of keeping what is between"
    )
    val_masks: int = option(4, "masks of a validation image at most")
    data: DataConfig = field(default_factory=DataConfig)
    # The rate and the decay of MedSAM (arXiv 2304.12306), which fine-tunes SAM; the rest is ours.
    loop: LoopConfig = field(
        default_factory=lambda: LoopConfig(
            steps=300,
            batch_size=2,
            learning_rate=1e-4,
            weight_decay=0.01,
            warmup_steps=20,
            least_rate=0.01,
            clip=1.0,
            validate_every=50,
            validate_first=True,
            save_every=50,
        )
    )
