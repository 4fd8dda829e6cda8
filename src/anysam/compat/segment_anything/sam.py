"""The published `Sam` module around our network: its parts can be called one by one, by the published signatures."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from anysam.models import sam, sam_decoder
from anysam.models.sam_decoder import BOX_BOTTOM_RIGHT, BOX_TOP_LEFT, PADDING
from anysam.preprocess import Preprocess


def _share(module: nn.Module, inner: nn.Module) -> None:
    """Give `module` the children of `inner`, under the same names: one set of weights with the published keys."""
    for name, child in inner.named_children():
        module.add_module(name, child)


class PromptEncoder(nn.Module):
    """Published signature of the prompt encoder."""

    def __init__(self, inner: sam_decoder.PromptEncoder) -> None:
        super().__init__()
        _share(self, inner)
        self._inner = (inner,)  # in a tuple, so that its parameters are not counted again
        self.image_embedding_size = inner.image_embedding_size
        self.input_image_size = inner.input_size
        self.embed_dim = inner.no_mask_embed.embedding_dim
        self.mask_input_size = tuple(4 * side for side in inner.image_embedding_size)

    def get_dense_pe(self) -> Tensor:
        """Position code of the image grid, (1, D, h, w)."""
        return self._inner[0].dense_pe()

    def forward(
        self, points: tuple[Tensor, Tensor] | None, boxes: Tensor | None, masks: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """points: coordinates (P, N, 2), input-frame pixels, and labels (P, N); boxes (P, 4); masks (P, 1, 4h, 4w).

        Returns sparse (P, N', D) and dense (P, D, h, w) embeddings. Without points and boxes N' is 0.
        """
        inner = self._inner[0]
        given = [value for value in (None if points is None else points[0], boxes, masks) if value is not None]
        prompts = len(given[0]) if given else 1
        device = inner.no_mask_embed.weight.device
        coordinates = torch.zeros(prompts, 0, 2, device=device)  # (P, 0, 2)
        labels = torch.zeros(prompts, 0, dtype=torch.int64, device=device)  # (P, 0)
        if points is not None:
            coordinates, labels = points[0].to(device, torch.float32), points[1].to(device, torch.int64)
            if boxes is None:  # a padding token takes the place of the box
                coordinates = functional.pad(coordinates, (0, 0, 0, 1))  # (P, N + 1, 2)
                labels = functional.pad(labels, (0, 1), value=PADDING)  # (P, N + 1)
        if boxes is not None:
            corners = boxes.to(device, torch.float32).reshape(-1, 2, 2)  # (P, 2, 2)
            kinds = labels.new_tensor([BOX_TOP_LEFT, BOX_BOTTOM_RIGHT]).expand(len(corners), 2)  # (P, 2)
            coordinates, labels = torch.cat([coordinates, corners], dim=1), torch.cat([labels, kinds], dim=1)
        sparse, dense = inner(coordinates, labels, masks)
        return sparse, dense.expand(prompts, -1, -1, -1)  # (P, D, h, w)


class MaskDecoder(nn.Module):
    """Published signature of the mask decoder."""

    def __init__(self, inner: sam_decoder.MaskDecoder) -> None:
        super().__init__()
        _share(self, inner)
        self._inner = (inner,)
        self.num_multimask_outputs = inner.num_mask_tokens - 1
        self.num_mask_tokens = inner.num_mask_tokens

    def forward(
        self,
        image_embeddings: Tensor,
        image_pe: Tensor,
        sparse_prompt_embeddings: Tensor,
        dense_prompt_embeddings: Tensor,
        multimask_output: bool,
    ) -> tuple[Tensor, Tensor]:
        """Masks (P, C, 4h, 4w), as logits, and predicted IoU (P, C) of P prompts on one image (1, D, h, w)."""
        dense = dense_prompt_embeddings
        if dense.stride(0) == 0:  # the same for all prompts, which the decoder makes use of
            dense = dense[:1]
        logits, scores = self._inner[0](image_embeddings, image_pe, sparse_prompt_embeddings, dense, multimask_output)
        return logits, scores


class Sam(nn.Module):
    """An image encoder, a prompt encoder and a mask decoder, as published, with the published keys.

    network: ours, whose weights these are.
    """

    mask_threshold: float = 0.0
    image_format: str = "RGB"
    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(self, network: sam.Sam, variant: str, weights_sha256: str) -> None:
        super().__init__()
        frame: Preprocess = network.preprocess
        self.image_encoder = network.image_encoder
        self.image_encoder.img_size = frame.long_side  # type: ignore[assignment]
        self.prompt_encoder = PromptEncoder(network.prompt_encoder)
        self.mask_decoder = MaskDecoder(network.mask_decoder)
        self.register_buffer("pixel_mean", torch.tensor(frame.mean).reshape(-1, 1, 1), persistent=False)  # (3, 1, 1)
        self.register_buffer("pixel_std", torch.tensor(frame.std).reshape(-1, 1, 1), persistent=False)  # (3, 1, 1)
        self._network = (network,)
        self.variant = variant
        self.weights_sha256 = weights_sha256

    @property
    def network(self) -> sam.Sam:
        """Ours, sharing these weights."""
        return self._network[0]

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.pixel_mean.device

    @torch.no_grad()
    def forward(self, batched_input: Sequence[Mapping[str, Any]], multimask_output: bool) -> list[dict[str, Tensor]]:
        """Masks of several images, each a dict as published.

        Keys of an image: "image" (3, h, w), resized to the longest side but not normalised; "original_size" (H, W); and
        of its P prompts, in input-frame pixels, any of "point_coords" (P, N, 2) with "point_labels" (P, N), "boxes"
        (P, 4), "mask_inputs" (P, 1, 256, 256). Returns for each image "masks" (P, C, H, W) bool, "iou_predictions"
        (P, C) and "low_res_logits" (P, C, 256, 256).
        """
        outputs = []
        for record in batched_input:
            # One image at a time: a batch of large ones is no quicker on a CPU and takes their memory at once.
            embeddings = self.image_encoder(self.preprocess(record["image"])[None])  # (1, D, h, w)
            points = (record["point_coords"], record["point_labels"]) if "point_coords" in record else None
            sparse, dense = self.prompt_encoder(
                points=points, boxes=record.get("boxes"), masks=record.get("mask_inputs")
            )
            low_res_logits, iou_predictions = self.mask_decoder(
                image_embeddings=embeddings,
                image_pe=self.prompt_encoder.get_dense_pe(),
                sparse_prompt_embeddings=sparse,
                dense_prompt_embeddings=dense,
                multimask_output=multimask_output,
            )
            masks = self.binary_masks(low_res_logits, tuple(record["image"].shape[-2:]), record["original_size"])
            outputs.append({"masks": masks, "iou_predictions": iou_predictions, "low_res_logits": low_res_logits})
        return outputs

    def postprocess_masks(self, masks: Tensor, input_size: tuple[int, ...], original_size: tuple[int, ...]) -> Tensor:
        """Logits (P, C, 256, 256) of the padded input -> logits (P, C, H, W) of the image of original_size (H, W)."""
        side = self.image_encoder.img_size
        masks = functional.interpolate(masks, (side, side), mode="bilinear", align_corners=False)  # type: ignore[arg-type]
        masks = masks[..., : input_size[0], : input_size[1]]  # (P, C, height, width)
        return functional.interpolate(masks, tuple(original_size), mode="bilinear", align_corners=False)

    def binary_masks(
        self, low_res_logits: Tensor, input_size: tuple[int, ...], original_size: tuple[int, ...]
    ) -> Tensor:
        """postprocess_masks(...) > mask_threshold, (P, C, H, W); full-size logits are held for one prompt at a time."""
        size = (*low_res_logits.shape[:2], *original_size)
        masks = torch.empty(size, dtype=torch.bool, device=low_res_logits.device)  # (P, C, H, W)
        for i, logits in enumerate(low_res_logits):
            masks[i] = self.postprocess_masks(logits[None], input_size, original_size)[0] > self.mask_threshold
        return masks

    def preprocess(self, x: Tensor) -> Tensor:
        """Pixels (..., 3, h, w) in 0..255 -> normalised, padded with zeros to the square input."""
        x = (x - self.pixel_mean) / self.pixel_std
        side: int = self.image_encoder.img_size  # type: ignore[assignment]
        return functional.pad(x, (0, side - x.shape[-1], 0, side - x.shape[-2]))  # (..., 3, side, side)
