"""A tiny instance of every family, with random weights: what the contract test and others try behaviours on."""

import dataclasses
import importlib
from collections.abc import Callable
from typing import cast

import torch
from torch import nn

from anysam import Model
from anysam.models import InstanceModel, PromptableModel
from anysam.models.layers import move
from anysam.preprocess import Preprocess

SIDE = 64


def frame(preprocess: Preprocess, side: int = SIDE) -> Preprocess:
    """A family's own frame in all but its size."""
    factor = preprocess.long_side // side
    image_side = None if preprocess.image_side is None else preprocess.image_side // factor
    return dataclasses.replace(preprocess, long_side=side, pad_to=side, image_side=image_side, name=f"tiny_{side}")


def _family(name: str):  # a module
    return importlib.import_module(f"anysam.models.{name}")


def _anysam_lite() -> nn.Module:
    network = _family("anysam_lite").build("lite")
    network.preprocess = dataclasses.replace(network.preprocess, long_side=SIDE, name="tiny")
    return network


def _sam() -> nn.Module:
    sam = _family("sam")
    config = sam.VitConfig(
        embed_dim=32, depth=2, num_heads=2, global_blocks=(1,), image_size=SIDE, window_size=3, out_channels=64
    )
    return sam.build_sam(config, frame(sam.PREPROCESS))


def _tiny_vit():
    return _family("mobile_sam").TinyVitConfig(
        embed_dims=(16, 32, 32, 64),
        depths=(1, 1, 1, 1),
        num_heads=(1, 1, 2),
        window_sizes=(3, 5, 3),
        strides=(2, 2, 1),
        image_size=SIDE,
        num_classes=10,
        out_channels=64,
    )


def _mobile_sam() -> nn.Module:
    return _family("mobile_sam").build_mobile_sam(_tiny_vit(), frame(_family("sam").PREPROCESS))


def _mobile_sam_v2() -> nn.Module:
    family = _family("mobile_sam_v2")
    return family.build_from(_tiny_vit(), frame(_family("sam").PREPROCESS))


def _efficient_sam() -> nn.Module:
    family = _family("efficient_sam")
    config = family.EfficientSamConfig(
        embed_dim=32, num_heads=2, depth=2, image_size=SIDE, out_channels=64, decoder_mlp_dim=64
    )
    return family.build_efficient_sam(config, frame(family.PREPROCESS))


def _efficientvit_sam() -> nn.Module:
    family = _family("efficientvit_sam")
    stages = (
        family.StageConfig(8, 1, "res", 1),
        family.StageConfig(16, 1, "fmb", 2),
        family.StageConfig(16, 1, "fmb", 2),
        family.StageConfig(32, 1, "mb", 2, fewer_norm=True),
        family.StageConfig(32, 1, "att", 2, fewer_norm=True),
    )
    config = family.EfficientViTConfig(
        stages, neck_depth=1, neck_expand=1, image_side=SIDE, frame=2 * SIDE, head_dim=16, out_channels=64
    )
    preprocess = Preprocess(name="tiny", long_side=2 * SIDE, pad_to=2 * SIDE, image_side=SIDE)
    return family.build_efficientvit_sam(config, preprocess)


def _edge_sam() -> nn.Module:
    family = _family("edge_sam")
    config = family.RepVitConfig(
        widths=(8, 16, 32, 32),
        depths=(1, 1, 2, 2),
        squeeze_excite=((0,), (), (1,), (1,)),
        image_size=SIDE,
        out_channels=64,
    )
    return family.build_edge_sam(config, frame(_family("sam").PREPROCESS))


def _slim_sam() -> nn.Module:
    family = _family("slim_sam")
    config = family.SlimVitConfig(
        embed_dim=36,
        attention_widths=(12, 24),
        mlp_widths=(60, 24),
        global_blocks=(1,),
        image_size=SIDE,
        window_size=3,
        out_channels=64,
    )
    return family.build_slim_sam(config, frame(_family("sam").PREPROCESS))


def _sam_lightening() -> nn.Module:
    family = _family("sam_lightening")
    config = family.DilatedVitConfig(
        embed_dim=32, depth=2, configured_heads=4, global_blocks=(1,), image_size=SIDE, window_size=6, out_channels=64
    )
    return family.build_sam_lightening(config, frame(family.PREPROCESS))


def _tap() -> nn.Module:
    family = _family("tap")
    text = _family("tap_text").TextConfig(dim=32, depth=1, num_heads=2, vocabulary=40)
    config = family.TapConfig(
        embed_dim=32, depth=4, num_heads=2, image_size=SIDE, window_size=2, out_channels=64, semantic_dim=32, text=text
    )
    return family.build_tap(config, frame(family.PREPROCESS))


def _yolo(name: str, **options: object) -> nn.Module:
    family, yolo = _family(name), _family("yolov8")
    config = yolo.YoloConfig(depth=0.33, width=0.125, max_channels=64, **options)
    return family.build_from(config, dataclasses.replace(family.PREPROCESS, long_side=SIDE, name="tiny"))


def _fast_sam() -> nn.Module:
    return _yolo("fast_sam")


def _object_aware() -> nn.Module:
    return _yolo("object_aware", prototypes=False)


# family -> a catalogue name of it, and how a tiny network is made
TINY: dict[str, tuple[str, Callable[[], nn.Module]]] = {
    "anysam_lite": ("anysam_lite", _anysam_lite),
    "sam": ("sam_vit_b", _sam),
    "mobile_sam": ("mobile_sam", _mobile_sam),
    "mobile_sam_v2": ("mobilesamv2_tiny_vit", _mobile_sam_v2),
    "efficient_sam": ("efficient_sam_vitt", _efficient_sam),
    "efficientvit_sam": ("efficientvit_sam_l0", _efficientvit_sam),
    "edge_sam": ("edge_sam", _edge_sam),
    "slim_sam": ("slimsam_77_uniform", _slim_sam),
    "sam_lightening": ("sam_lightening", _sam_lightening),
    "tap": ("tap_vit_b", _tap),
    "fast_sam": ("fastsam_s", _fast_sam),
    "object_aware": ("mobilesamv2_object_aware", _object_aware),
}


def filled(network: nn.Module, seed: int = 0) -> nn.Module:
    """Random values in every tensor: matrices scaled to keep the size of what passes, statistics as after training."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in network.state_dict().items():
        if not value.is_floating_point() or "dfl" in name or "pixel_" in name:
            continue
        if name.endswith("running_var"):
            value.uniform_(0.5, 1.5, generator=generator)
        elif value.dim() > 1:
            value.normal_(std=(2 / value[0].numel()) ** 0.5, generator=generator)
        elif name.endswith("weight"):
            value.uniform_(0.8, 1.2, generator=generator)
        else:
            value.normal_(std=0.1, generator=generator)
    return network


def tiny_model(family: str, dtype: torch.dtype = torch.float32, seed: int = 0) -> Model:
    """A loaded model of a family, as small as it gets, on the CPU."""
    variant, make = TINY[family]
    network = move(filled(make(), seed).eval().requires_grad_(False), "cpu", dtype)
    typed = cast(PromptableModel | InstanceModel, network)
    return Model(variant, typed, torch.device("cpu"), dtype, f"{seed:064d}")
