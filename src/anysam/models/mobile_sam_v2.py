"""MobileSAMv2's promptable side: a choice of image encoders before SAM's prompt encoder and mask decoder, retrained.

Paper: Zhang et al., "MobileSAMv2: Faster Segment Anything to Everything", 2023. Source:
ChaoningZhang/MobileSAM@34bbbfd, MobileSAMv2/Inference.py and MobileSAMv2/mobilesamv2/build_sam.py (Apache-2.0). Written
anew. The detector that finds the boxes to prompt with is anysam.models.object_aware.

What is unusual here:
- The network is published in parts: one file for prompt encoder and mask decoder ("prompt-guided decoder"), one for
  each image encoder. `merge_parts` makes one state_dict of them, with the prefixes image_encoder., prompt_encoder. and
  mask_decoder. None of the files was at hand; their forms are those that the published code reads.
- Every encoder is given the padded input of 1024 pixels. efficientvit_l2 halves it first, bilinearly: at exactly half
  the size that is the mean of 2 x 2 pixels. EfficientViT-SAM itself resizes the image to 512 pixels instead.
"""

from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor
from torch.nn import functional

from anysam.errors import UnknownModelError, WeightsError
from anysam.models import mobile_sam, sam
from anysam.models.mobile_sam import TinyVit, TinyVitConfig
from anysam.models.sam import ImageEncoderViT, Sam
from anysam.models.sam_decoder import MaskDecoder, PromptEncoder
from anysam.preprocess import Preprocess

SIZES = ("tiny_vit", "efficientvit_l2", "sam_vit_h")
PREPROCESS = sam.PREPROCESS

# The two halves of the decoder's file, as it spells them, and our prefixes.
_DECODER_HALVES = {"PromtEncoder": "prompt_encoder.", "MaskDecoder": "mask_decoder."}
_ENCODER = "image_encoder."
_ENCODER_WRAPPERS = ("model", "state_dict")
# The first key of each encoder, by size.
_FIRST_KEYS = {
    "tiny_vit": "patch_embed.seq.0.c.weight",
    "efficientvit_l2": "backbone.stages.0.op_list.0.conv.weight",
    "sam_vit_h": "patch_embed.proj.weight",
}
# TinyViT's file is officially loaded without strictness. What may therefore be in it beyond the network's own: the
# tables of distances, computed here from the window's side. And what may be missing: the classifier, never used.
_TABLES = ".attention_bias_idxs"
_CLASSIFIER = ("norm_head.weight", "norm_head.bias", "head.weight", "head.bias")


class HalfInputSam(Sam):
    """A Sam whose encoder sees the padded input at half its size.

    Inherits, against the house rule: everything else is Sam's, with the names of all parameters.
    """

    def encode_image(self, pixels: Tensor) -> dict[str, Tensor]:
        """Pixels (B, 3, H, W) -> {"image_embeddings": (B, D, h, w)}."""
        return super().encode_image(functional.avg_pool2d(pixels, 2))


def build_from(config: TinyVitConfig, preprocess: Preprocess) -> Sam:
    """MobileSAMv2 around a TinyViT of any shape, with random weights; the same network as MobileSAM."""
    return mobile_sam.build_mobile_sam(config, preprocess)


def build(size: str) -> Sam:
    """MobileSAMv2 with random weights; `size` is one of SIZES. Raises UnknownModelError for another size."""
    if size not in SIZES:
        raise UnknownModelError(f"MobileSAMv2 has no size {size!r}; its sizes are {', '.join(SIZES)}.")
    if size == "tiny_vit":
        return build_from(mobile_sam.SIZES["tiny_vit"], PREPROCESS)
    if size == "sam_vit_h":
        return Sam(ImageEncoderViT(sam.SIZES["vit_h"]), PromptEncoder(), MaskDecoder(), PREPROCESS)
    from anysam.models.efficientvit_sam import build_image_encoder  # on use: the other sizes do without it

    return HalfInputSam(build_image_encoder("l2"), PromptEncoder(), MaskDecoder(), PREPROCESS)


def merge_parts(parts: Sequence[object]) -> dict[str, Tensor]:
    """One state_dict of the contents of the official files, in any order: one decoder and one image encoder.

    parts: what the files hold, as nested dicts of tensors. The decoder is {"PromtEncoder": state_dict, "MaskDecoder":
    state_dict}, spelled like this. An encoder is {"model": state_dict} (TinyViT), {"state_dict": state_dict}
    (EfficientViT) or a bare state_dict (ViT-H); the wrapper may be gone already. If an encoder's keys contain
    "image_encoder.", only what follows it counts, and the other keys do not, as in the published code. Of TinyViT's
    file, tables of distances are left out, and a missing classifier becomes zeros: it is never used.

    Raises WeightsError for a part that is none of these, and for a missing or a second decoder or encoder. Whether the
    encoder is that of the wanted size is seen when the state_dict is loaded.
    """
    decoders, encoders = [], []
    for number, part in enumerate(parts, start=1):
        if not isinstance(part, Mapping):
            raise WeightsError(f"Part {number} of {len(parts)} is a {type(part).__name__}, not a dict of tensors.")
        if _DECODER_HALVES.keys() & part.keys():
            decoders.append(_decoder_tensors(part, number))
        else:
            encoders.append(_encoder_tensors(part, number))
    if len(decoders) != 1 or len(encoders) != 1:
        raise WeightsError(
            f"The parts hold {len(decoders)} prompt-guided decoders and {len(encoders)} image encoders; MobileSAMv2 is "
            f"one of each: Prompt_guided_Mask_Decoder.pt and mobile_sam.pt, l2.pt or sam_vit_h.pt."
        )
    return encoders[0] | decoders[0]


def _decoder_tensors(part: Mapping[str, object], number: int) -> dict[str, Tensor]:
    """The tensors of prompt encoder and mask decoder under our names."""
    if part.keys() != _DECODER_HALVES.keys():
        raise WeightsError(
            f"Part {number} has the keys {', '.join(map(str, part))}; a prompt-guided decoder has exactly "
            f"{' and '.join(_DECODER_HALVES)}."
        )
    return {
        prefix + key: value
        for half, prefix in _DECODER_HALVES.items()
        for key, value in _tensors(part[half], f"{half} of part {number}").items()
    }


def _encoder_tensors(part: Mapping[str, object], number: int) -> dict[str, Tensor]:
    """The tensors of an image encoder under our names."""
    wrapper = next((key for key in _ENCODER_WRAPPERS if isinstance(part.get(key), Mapping)), None)
    found = _tensors(part if wrapper is None else part[wrapper], f"part {number}")
    if any(_ENCODER in key for key in found):
        found = {key.partition(_ENCODER)[2]: value for key, value in found.items() if _ENCODER in key}
    size = next((size for size, key in _FIRST_KEYS.items() if key in found), None)
    if size is None:
        raise WeightsError(
            f"Part {number} (first key: {next(iter(found), 'none')}) is neither a prompt-guided decoder nor an image "
            f"encoder of MobileSAMv2 ({', '.join(SIZES)})."
        )
    if size == "tiny_vit":
        found = {key: value for key, value in found.items() if not key.endswith(_TABLES)}
        if not any(key in found for key in _CLASSIFIER):
            with torch.device("meta"):
                shapes = TinyVit(mobile_sam.SIZES["tiny_vit"]).state_dict()
            found |= {key: torch.zeros(shapes[key].shape) for key in _CLASSIFIER}
    return {_ENCODER + key: value for key, value in found.items()}


def _tensors(content: object, name: str) -> dict[str, Tensor]:
    """`content` as a state_dict, or WeightsError."""
    if not isinstance(content, Mapping) or not content:
        raise WeightsError(f"{name} holds no tensors, but {type(content).__name__}; a state_dict is expected.")
    other = next((key for key, value in content.items() if not isinstance(value, Tensor)), None)
    if other is not None:
        kind = type(content[other]).__name__
        raise WeightsError(f"{name} holds no state_dict: {str(other)[:120]!r} is of type {kind}, not a tensor.")
    return cast(dict[str, Tensor], dict(content))
