"""The interface of the published package `segment_anything`, with its signatures and its results.

    from anysam.compat.segment_anything import SamAutomaticMaskGenerator, SamPredictor, sam_model_registry

Source of the interface: facebookresearch/segment-anything@dca509f (Apache-2.0), written anew. The rest of
this package does the work: safe and strict loading, the quicker decoder, masks within a memory bound. What differs on
purpose:

- Errors are `anysam.AnySamError`, not AssertionError.
- Checkpoints are read as tensors only, and may also be safetensors files or files in transformers' spelling.
- `sam_model_registry` also has "vit_t": MobileSAM. Its convolutions are fused, so its state_dict has other keys.
- Building without a checkpoint gives random weights, as published; `anysam.load("sam_vit_b")` downloads them.
"""

from anysam.compat.segment_anything.build_sam import (
    build_sam,
    build_sam_vit_b,
    build_sam_vit_h,
    build_sam_vit_l,
    build_sam_vit_t,
    sam_model_registry,
)
from anysam.compat.segment_anything.generator import SamAutomaticMaskGenerator
from anysam.compat.segment_anything.predictor import SamPredictor
from anysam.compat.segment_anything.sam import Sam
from anysam.compat.segment_anything.transforms import ResizeLongestSide

__all__ = [
    "ResizeLongestSide",
    "Sam",
    "SamAutomaticMaskGenerator",
    "SamPredictor",
    "build_sam",
    "build_sam_vit_b",
    "build_sam_vit_h",
    "build_sam_vit_l",
    "build_sam_vit_t",
    "sam_model_registry",
]
