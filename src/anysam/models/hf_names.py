"""Hugging Face's names of SAM's parameters -> the official ones.

The `SamModel` class of the transformers library is SAM with other names, and SlimSAM-uniform is published in no other
form. Source: huggingface/transformers, src/transformers/models/sam/{modeling_sam,convert_sam_to_hf}.py (Apache-2.0).

What is unusual there:
- The random Fourier features of positions are one tensor under two names; files hold it under either or both.
- Its decoder normalises with an eps of 1e-6, the official one with 1e-5; this package keeps the official one, so that
  masks agree with the official code, and with transformers up to that difference.
"""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from anysam.errors import WeightsError

_POSITIONS = "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"
_VALUES = r"\.(weight|bias)"

# A whole name there -> the name here; groups in the order they appear.
_RULES: tuple[tuple[str, str], ...] = (
    (r"shared_image_embedding\.positional_embedding", _POSITIONS),
    (r"prompt_encoder\.shared_embedding\.positional_embedding", _POSITIONS),
    (r"prompt_encoder\.point_embed\.([0-3])\.weight", r"prompt_encoder.point_embeddings.\1.weight"),
    (r"prompt_encoder\.(not_a_point_embed|no_mask_embed)\.weight", r"prompt_encoder.\1.weight"),
    (rf"prompt_encoder\.mask_embed\.conv1{_VALUES}", r"prompt_encoder.mask_downscaling.0.\1"),
    (rf"prompt_encoder\.mask_embed\.layer_norm1{_VALUES}", r"prompt_encoder.mask_downscaling.1.\1"),
    (rf"prompt_encoder\.mask_embed\.conv2{_VALUES}", r"prompt_encoder.mask_downscaling.3.\1"),
    (rf"prompt_encoder\.mask_embed\.layer_norm2{_VALUES}", r"prompt_encoder.mask_downscaling.4.\1"),
    (rf"prompt_encoder\.mask_embed\.conv3{_VALUES}", r"prompt_encoder.mask_downscaling.6.\1"),
    (r"vision_encoder\.pos_embed", r"image_encoder.pos_embed"),
    (rf"vision_encoder\.patch_embed\.projection{_VALUES}", r"image_encoder.patch_embed.proj.\1"),
    (rf"vision_encoder\.layers\.(\d+)\.layer_norm([12]){_VALUES}", r"image_encoder.blocks.\1.norm\2.\3"),
    (rf"vision_encoder\.layers\.(\d+)\.(attn\.qkv|attn\.proj){_VALUES}", r"image_encoder.blocks.\1.\2.\3"),
    (r"vision_encoder\.layers\.(\d+)\.attn\.rel_pos_([hw])", r"image_encoder.blocks.\1.attn.rel_pos_\2"),
    (rf"vision_encoder\.layers\.(\d+)\.mlp\.lin([12]){_VALUES}", r"image_encoder.blocks.\1.mlp.lin\2.\3"),
    (r"vision_encoder\.neck\.conv1\.weight", r"image_encoder.neck.0.weight"),
    (rf"vision_encoder\.neck\.layer_norm1{_VALUES}", r"image_encoder.neck.1.\1"),
    (r"vision_encoder\.neck\.conv2\.weight", r"image_encoder.neck.2.weight"),
    (rf"vision_encoder\.neck\.layer_norm2{_VALUES}", r"image_encoder.neck.3.\1"),
    (r"mask_decoder\.(iou_token|mask_tokens)\.weight", r"mask_decoder.\1.weight"),
    (
        rf"mask_decoder\.transformer\.layers\.(\d+)\.(self_attn|cross_attn_token_to_image|cross_attn_image_to_token)"
        rf"\.([qkv]|out)_proj{_VALUES}",
        r"mask_decoder.transformer.layers.\1.\2.\3_proj.\4",
    ),
    (
        rf"mask_decoder\.transformer\.layers\.(\d+)\.layer_norm([1-4]){_VALUES}",
        r"mask_decoder.transformer.layers.\1.norm\2.\3",
    ),
    (
        rf"mask_decoder\.transformer\.layers\.(\d+)\.mlp\.lin([12]){_VALUES}",
        r"mask_decoder.transformer.layers.\1.mlp.lin\2.\3",
    ),
    (
        rf"mask_decoder\.transformer\.final_attn_token_to_image\.([qkv]|out)_proj{_VALUES}",
        r"mask_decoder.transformer.final_attn_token_to_image.\1_proj.\2",
    ),
    (
        rf"mask_decoder\.transformer\.layer_norm_final_attn{_VALUES}",
        r"mask_decoder.transformer.norm_final_attn.\1",
    ),
    (rf"mask_decoder\.upscale_conv1{_VALUES}", r"mask_decoder.output_upscaling.0.\1"),
    (rf"mask_decoder\.upscale_layer_norm{_VALUES}", r"mask_decoder.output_upscaling.1.\1"),
    (rf"mask_decoder\.upscale_conv2{_VALUES}", r"mask_decoder.output_upscaling.3.\1"),
    # The layers in the middle have numbers of their own: 0 there is 1 here.
    (
        rf"mask_decoder\.(iou_prediction_head|output_hypernetworks_mlps\.[0-3])\.proj_in{_VALUES}",
        r"mask_decoder.\1.layers.0.\2",
    ),
    (
        rf"mask_decoder\.(iou_prediction_head|output_hypernetworks_mlps\.[0-3])\.layers\.0{_VALUES}",
        r"mask_decoder.\1.layers.1.\2",
    ),
    (
        rf"mask_decoder\.(iou_prediction_head|output_hypernetworks_mlps\.[0-3])\.proj_out{_VALUES}",
        r"mask_decoder.\1.layers.2.\2",
    ),
)


def is_hf(state_dict: Mapping[str, Tensor]) -> bool:
    """Whether the keys are those of transformers' `SamModel`."""
    return "vision_encoder.patch_embed.projection.weight" in state_dict


def sam_from_hf(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a `SamModel` under their official names; the tensors themselves stay as they are.

    Raises WeightsError for a name that `SamModel` does not have, and if its two position embeddings differ.
    """
    official: dict[str, Tensor] = {}
    for key, value in state_dict.items():
        name = _official_name(key)
        earlier = official.get(name)
        if earlier is not None and not value.is_meta and not torch.equal(earlier, value):
            raise WeightsError(
                "The weights hold two different position embeddings, shared_image_embedding and "
                "prompt_encoder.shared_embedding, which must be equal; save the model again."
            )
        official[name] = value
    return official


def _official_name(key: str) -> str:
    for pattern, name in _RULES:
        if match := re.fullmatch(pattern, key):
            return match.expand(name)
    raise WeightsError(
        f"The weights are in transformers' form, but its SamModel has no {key!r}; only SAM and SlimSAM-uniform can be "
        f"read in that form."
    )
