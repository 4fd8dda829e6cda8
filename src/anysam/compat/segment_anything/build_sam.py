"""Builders of the published models, and the table of them."""

from collections.abc import Callable
from pathlib import Path
from typing import cast

from anysam import models
from anysam.catalogue import find_variant
from anysam.checkpoints import load_model
from anysam.compat.segment_anything.sam import Sam
from anysam.models import sam
from anysam.models.layers import fuse


def build_sam_vit_h(checkpoint: str | Path | None = None) -> Sam:
    """SAM with the huge encoder, in eval mode; random weights without a checkpoint. Raises WeightsError."""
    return _build("sam_vit_h", checkpoint)


def build_sam_vit_l(checkpoint: str | Path | None = None) -> Sam:
    """SAM with the large encoder; see build_sam_vit_h."""
    return _build("sam_vit_l", checkpoint)


def build_sam_vit_b(checkpoint: str | Path | None = None) -> Sam:
    """SAM with the base encoder; see build_sam_vit_h."""
    return _build("sam_vit_b", checkpoint)


def build_sam_vit_t(checkpoint: str | Path | None = None) -> Sam:
    """MobileSAM, under the name that its own package gives it; see build_sam_vit_h."""
    return _build("mobile_sam", checkpoint)


build_sam = build_sam_vit_h

sam_model_registry: dict[str, Callable[..., Sam]] = {
    "default": build_sam_vit_h,
    "vit_h": build_sam_vit_h,
    "vit_l": build_sam_vit_l,
    "vit_b": build_sam_vit_b,
    "vit_t": build_sam_vit_t,
}


def _build(variant: str, checkpoint: str | Path | None) -> Sam:
    if checkpoint is None:
        row = find_variant(variant)
        network, weights_sha256 = models.build(row.family, row.size), "random"
    else:
        network, _, weights_sha256 = load_model(Path(checkpoint), variant)
    return Sam(cast(sam.Sam, fuse(network.eval())), variant, weights_sha256)
