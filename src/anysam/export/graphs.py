"""The decoders as modules that can be traced: all masks at once, the previous mask switched by a number. No files."""

import torch
from torch import Tensor, nn

from anysam.errors import ExportError
from anysam.models import PromptableModel
from anysam.models.anysam_lite import AnySamLite
from anysam.models.anysam_lite_decoder import LiteDecoder, limit_to_box
from anysam.models.sam_decoder import MaskDecoder, PromptEncoder

# The families of the catalogue with such a decoder.
FAMILIES = (
    *("anysam_lite", "sam", "mobile_sam", "mobile_sam_v2", "edge_sam", "slim_sam"),
    *("efficientvit_sam", "sam_lightening"),
)
SINGLE, SEVERAL = (0,), (1, 2, 3)  # of the four masks: that of a clear prompt, those of an ambiguous one


class LiteGraph(nn.Module):
    """The built-in model's decoder."""

    features = ("image_embeddings", "skip8", "skip4")

    def __init__(self, decoder: LiteDecoder) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(
        self,
        image_embeddings: Tensor,
        skip8: Tensor,
        skip4: Tensor,
        points: Tensor,
        labels: Tensor,
        mask_logits: Tensor,
        has_mask: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """As `LiteDecoder.forward` and `limit_to_box`, (P, 4, h, w) and (P, 4). has_mask: (1,) float32, 0 or 1."""
        features = {"image_embeddings": image_embeddings, "skip8": skip8, "skip4": skip4}
        low_res_logits, ious = self.decoder(features, points, labels, mask_logits, has_mask)
        h, w = image_embeddings.shape[-2:]
        return limit_to_box(low_res_logits, points, labels, (4 * h, 4 * w)), ious


class SamGraph(nn.Module):
    """The decoder that most of the family shares."""

    features = ("image_embeddings",)

    def __init__(self, prompt_encoder: PromptEncoder, mask_decoder: MaskDecoder) -> None:
        super().__init__()
        self.prompt_encoder = prompt_encoder
        self.mask_decoder = mask_decoder

    def forward(
        self, image_embeddings: Tensor, points: Tensor, labels: Tensor, mask_logits: Tensor, has_mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Logits (P, 4, 4h, 4w) and predicted IoU (P, 4). has_mask: (1,) float32, 0 or 1."""
        sparse, with_mask = self.prompt_encoder(points, labels, mask_logits)
        without = self.prompt_encoder.no_mask_embed.weight.reshape(1, -1, 1, 1)  # (1, D, 1, 1)
        dense = with_mask * has_mask + without * (1 - has_mask)  # (P, D, h, w)
        result: tuple[Tensor, Tensor] = self.mask_decoder.forward_all(
            image_embeddings, self.prompt_encoder.dense_pe(), sparse, dense
        )
        return result


def make_graph(network: PromptableModel, variant: str) -> LiteGraph | SamGraph:
    """The decoder of a network, ready to be traced. Raises ExportError for one that has another kind of decoder."""
    if isinstance(network, AnySamLite):
        return LiteGraph(network.decoder)
    encoder, decoder = getattr(network, "prompt_encoder", None), getattr(network, "mask_decoder", None)
    if type(encoder) is PromptEncoder and type(decoder) is MaskDecoder:
        return SamGraph(encoder, decoder)
    raise not_exportable(variant)


def not_exportable(variant: str) -> ExportError:
    """What is said of a variant that has another kind of decoder."""
    return ExportError(
        f"The decoder of {variant} cannot be exported; those of anysam_lite, SAM, MobileSAM, MobileSAMv2, EdgeSAM, "
        "SlimSAM, EfficientViT-SAM and SAM-Lightening can."
    )


def sample_inputs(
    graph: LiteGraph | SamGraph, features: dict[str, Tensor], low_res_size: tuple[int, int]
) -> tuple[Tensor, ...]:
    """Inputs to trace with: two prompts of three tokens, so that nothing is taken for a size that is always 1."""
    points = torch.tensor([[[20.0, 30.0], [10.0, 8.0], [0.0, 0.0]], [[9.0, 7.0], [3.0, 4.0], [40.0, 50.0]]])
    labels = torch.tensor([[1, 0, -1], [1, 2, 3]])
    return (
        *(features[name] for name in graph.features),
        points,
        labels,
        torch.zeros(2, 1, *low_res_size),
        torch.ones(1),
    )
