"""The table of recipes: `anysam train NAME`. Names only; configurations and tasks are imported on use."""

from dataclasses import dataclass
from importlib import import_module
from typing import Any

from anysam.errors import OptionError


@dataclass(frozen=True)
class Recipe:
    """A way to make a model.

    name: as typed, "distill mobile_sam". config: class in anysam.train.configs, "module:Class". task: module of
    anysam.train whose make_task(config, out) gives what the loop trains; for a dry run `out` is None and nothing is
    written. paper: what it follows.
    """

    name: str
    summary: str
    config: str
    task: str
    paper: str


RECIPES = (
    Recipe(
        "distill mobile_sam",
        "TinyViT encoder from a SAM's embeddings",
        "mobile_sam:MobileSamConfig",
        "mobile_sam",
        "MobileSAM, arXiv 2306.14289",
    ),
    Recipe(
        "distill edge_sam",
        "RepViT encoder from embeddings, then prompt in the loop",
        "edge_sam:EdgeSamConfig",
        "edge_sam",
        "EdgeSAM, arXiv 2312.06660",
    ),
    Recipe(
        "distill sam_lightening",
        "dilated-attention encoder, layer by layer",
        "sam_lightening:SamLighteningConfig",
        "sam_lightening",
        "SAM-Lightening, arXiv 2403.09195",
    ),
    Recipe(
        "distill mobile_sam_v2",
        "prompt-guided decoder, or the object-aware detector of boxes",
        "mobile_sam_v2:MobileSamV2Config",
        "mobile_sam_v2",
        "MobileSAMv2, arXiv 2312.09579",
    ),
    Recipe(
        "pretrain efficient_sam",
        "masked images against SAM's features, then fine-tuning",
        "efficient_sam:EfficientSamConfig",
        "efficient_sam",
        "EfficientSAM, arXiv 2312.00863",
    ),
    Recipe(
        "prune slim_sam",
        "fewer channels in SAM's ViT-B, and distillation to make up for it",
        "slim_sam:SlimSamConfig",
        "slim_sam",
        "SlimSAM, arXiv 2312.05284",
    ),
    Recipe(
        "fast_sam",
        "YOLOv8 segmentation of everything",
        "fast_sam:FastSamConfig",
        "fast_sam",
        "FastSAM, arXiv 2306.12156",
    ),
    Recipe(
        "finetune",
        "any promptable model on your own masks: whole, decoder only, or LoRA",
        "finetune:FinetuneConfig",
        "finetune",
        "SAM, arXiv 2304.02643, appendix A",
    ),
    Recipe(
        "anysam_lite",
        "the built-in model",
        "anysam_lite:AnySamLiteConfig",
        "anysam_lite",
        "docs/training.md",
    ),
)


def config_class(recipe: Recipe) -> Any:
    """The recipe's configuration, a frozen dataclass with `data`, `loop` and fields of its own."""
    module, _, name = recipe.config.partition(":")
    return getattr(import_module(f"anysam.train.configs.{module}"), name)


def find_recipe(name: str) -> Recipe:
    """The recipe of a name. Raises OptionError if there is none."""
    for recipe in RECIPES:
        if recipe.name == name:
            return recipe
    raise OptionError(f"There is no recipe {name!r}; recipes are {', '.join(recipe.name for recipe in RECIPES)}.")
