"""transformers' names of SAM: every name, from a list written by reading its `SamModel`, to the official one."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from anysam.errors import WeightsError
from anysam.models import build
from anysam.models.hf_names import is_hf, sam_from_hf

CASES = Path(__file__).parent / "parity" / "cases"

Shapes = dict[str, tuple[int, ...]]


def layer(name: str, *shape: int) -> Shapes:
    """The weight of `shape` and the bias of a layer; a norm has one number."""
    outputs = shape[1] if "upscale_conv" in name else shape[0]  # transposed convolutions have their inputs first
    return {f"{name}.weight": shape, f"{name}.bias": (outputs,)}


def vision_names(dim: int, mlp: int, depth: int, heads: int, global_blocks: tuple[int, ...]) -> Shapes:
    names = {"vision_encoder.pos_embed": (1, 64, 64, dim)} | layer(
        "vision_encoder.patch_embed.projection", dim, 3, 16, 16
    )
    for index in range(depth):
        block = f"vision_encoder.layers.{index}"
        table = (127 if index in global_blocks else 27, dim // heads)
        names |= {f"{block}.attn.rel_pos_h": table, f"{block}.attn.rel_pos_w": table}
        names |= layer(f"{block}.attn.qkv", 3 * dim, dim) | layer(f"{block}.attn.proj", dim, dim)
        names |= layer(f"{block}.layer_norm1", dim) | layer(f"{block}.layer_norm2", dim)
        names |= layer(f"{block}.mlp.lin1", mlp, dim) | layer(f"{block}.mlp.lin2", dim, mlp)
    names |= {
        "vision_encoder.neck.conv1.weight": (256, dim, 1, 1),
        "vision_encoder.neck.conv2.weight": (256, 256, 3, 3),
    }
    return names | layer("vision_encoder.neck.layer_norm1", 256) | layer("vision_encoder.neck.layer_norm2", 256)


def prompt_names() -> Shapes:
    names: Shapes = {
        "shared_image_embedding.positional_embedding": (2, 128),
        "prompt_encoder.shared_embedding.positional_embedding": (2, 128),
        "prompt_encoder.no_mask_embed.weight": (1, 256),
        "prompt_encoder.not_a_point_embed.weight": (1, 256),
    }
    names |= {f"prompt_encoder.point_embed.{label}.weight": (1, 256) for label in range(4)}
    embed = "prompt_encoder.mask_embed"
    names |= layer(f"{embed}.conv1", 4, 1, 2, 2) | layer(f"{embed}.conv2", 16, 4, 2, 2)
    names |= layer(f"{embed}.conv3", 256, 16, 1, 1)
    return names | layer(f"{embed}.layer_norm1", 4) | layer(f"{embed}.layer_norm2", 16)


def decoder_names() -> Shapes:
    names: Shapes = {"mask_decoder.iou_token.weight": (1, 256), "mask_decoder.mask_tokens.weight": (4, 256)}
    transformer = "mask_decoder.transformer"
    attentions = {f"{transformer}.final_attn_token_to_image": 128}
    for index in range(2):
        block = f"{transformer}.layers.{index}"
        attentions[f"{block}.self_attn"] = 256
        attentions |= {f"{block}.cross_attn_token_to_image": 128, f"{block}.cross_attn_image_to_token": 128}
        names |= layer(f"{block}.mlp.lin1", 2048, 256) | layer(f"{block}.mlp.lin2", 256, 2048)
        for norm in range(1, 5):
            names |= layer(f"{block}.layer_norm{norm}", 256)
    for attention, width in attentions.items():
        for which in "qkv":
            names |= layer(f"{attention}.{which}_proj", width, 256)
        names |= layer(f"{attention}.out_proj", 256, width)
    names |= layer(f"{transformer}.layer_norm_final_attn", 256)
    names |= layer("mask_decoder.upscale_conv1", 256, 64, 2, 2) | layer("mask_decoder.upscale_conv2", 64, 32, 2, 2)
    names |= layer("mask_decoder.upscale_layer_norm", 64)
    heads = [f"mask_decoder.output_hypernetworks_mlps.{token}" for token in range(4)]
    for head in [*heads, "mask_decoder.iou_prediction_head"]:
        outputs = 32 if head in heads else 4
        names |= layer(f"{head}.proj_in", 256, 256) | layer(f"{head}.layers.0", 256, 256)
        names |= layer(f"{head}.proj_out", outputs, 256)
    return names


def hf_tensors(
    dim: int, mlp: int, depth: int, heads: int, global_blocks: tuple[int, ...], device: str = "meta"
) -> dict[str, Tensor]:
    shapes = vision_names(dim, mlp, depth, heads, global_blocks) | prompt_names() | decoder_names()
    return {name: torch.zeros(shape, device=device) for name, shape in shapes.items()}


MODELS = {
    ("sam", "vit_b"): (768, 3072, 12, 12, (2, 5, 8, 11)),
    ("sam", "vit_l"): (1024, 4096, 24, 16, (5, 11, 17, 23)),
    ("sam", "vit_h"): (1280, 5120, 32, 16, (7, 15, 23, 31)),
    ("slim_sam", "77_uniform"): (168, 696, 12, 12, (2, 5, 8, 11)),
    ("slim_sam", "50_uniform"): (384, 1536, 12, 12, (2, 5, 8, 11)),
}


@pytest.mark.parametrize(("family", "size"), list(MODELS))
def test_every_name_becomes_a_name_of_the_network(family: str, size: str) -> None:
    with torch.device("meta"):
        expected = build(family, size).state_dict()
    ours = sam_from_hf(hf_tensors(*MODELS[family, size]))
    assert {name: value.shape for name, value in ours.items()} == {name: v.shape for name, v in expected.items()}


@pytest.mark.parametrize(
    ("case", "family", "size"),
    [("sam_vit_b", "sam", "vit_b"), ("sam_vit_l", "sam", "vit_l"), ("slimsam_77_uniform", "slim_sam", "77_uniform")],
)
def test_every_name_becomes_an_official_name(case: str, family: str, size: str) -> None:
    official = json.loads((CASES / case / "manifest.json").read_text())["tensors"]
    ours = sam_from_hf(hf_tensors(*MODELS[family, size]))
    assert {name: list(value.shape) for name, value in ours.items()} == {name: s for name, (s, _) in official.items()}


@pytest.mark.parametrize(
    ("theirs", "official"),
    [
        # The heads number their middle layers apart from the first and the last one.
        ("mask_decoder.iou_prediction_head.proj_in.bias", "mask_decoder.iou_prediction_head.layers.0.bias"),
        ("mask_decoder.iou_prediction_head.layers.0.bias", "mask_decoder.iou_prediction_head.layers.1.bias"),
        ("mask_decoder.iou_prediction_head.proj_out.bias", "mask_decoder.iou_prediction_head.layers.2.bias"),
        (
            "mask_decoder.output_hypernetworks_mlps.3.layers.0.weight",
            "mask_decoder.output_hypernetworks_mlps.3.layers.1.weight",
        ),
        # Layers in a sequence are numbered with the activations between them.
        ("prompt_encoder.mask_embed.layer_norm2.weight", "prompt_encoder.mask_downscaling.4.weight"),
        ("mask_decoder.upscale_conv2.bias", "mask_decoder.output_upscaling.3.bias"),
        ("vision_encoder.neck.layer_norm1.bias", "image_encoder.neck.1.bias"),
        ("vision_encoder.layers.11.layer_norm2.bias", "image_encoder.blocks.11.norm2.bias"),
        ("mask_decoder.transformer.layers.1.layer_norm4.bias", "mask_decoder.transformer.layers.1.norm4.bias"),
        ("mask_decoder.transformer.layer_norm_final_attn.bias", "mask_decoder.transformer.norm_final_attn.bias"),
    ],
)
def test_tensors_of_the_same_shape_are_not_confused(theirs: str, official: str) -> None:
    value = torch.ones(3)
    assert sam_from_hf({theirs: value})[official] is value


@pytest.mark.parametrize("prefix", ["shared_image_embedding", "prompt_encoder.shared_embedding"])
def test_one_position_embedding_is_enough(prefix: str) -> None:
    value = torch.ones(2, 4)
    ours = sam_from_hf({f"{prefix}.positional_embedding": value})
    assert ours == {"prompt_encoder.pe_layer.positional_encoding_gaussian_matrix": value}


def test_two_position_embeddings_must_be_equal() -> None:
    names = ("shared_image_embedding.positional_embedding", "prompt_encoder.shared_embedding.positional_embedding")
    assert len(sam_from_hf({name: torch.ones(2, 4) for name in names})) == 1
    with pytest.raises(WeightsError, match="two different position embeddings"):
        sam_from_hf({name: torch.full((2, 4), float(i)) for i, name in enumerate(names)})


@pytest.mark.parametrize(
    "name",
    [
        "mask_decoder.hq_token.weight",
        "vision_encoder.backbone.blocks.0.attn.qkv.weight",
        "prompt_encoder.point_embed.4.weight",
        "vision_encoder.neck.conv1.bias",
        "vision_encoder.pos_embed.weight",
    ],
)
def test_names_of_other_models_are_refused(name: str) -> None:
    with pytest.raises(WeightsError, match=f"its SamModel has no '{name}'"):
        sam_from_hf({name: torch.zeros(1)})


def test_the_form_is_recognised_by_its_names() -> None:
    assert is_hf(hf_tensors(*MODELS["slim_sam", "77_uniform"]))
    with torch.device("meta"):
        assert not is_hf(build("slim_sam", "77_uniform").state_dict())
