"""EdgeSAM: SAM distilled into RepViT, a convolutional image encoder, with SAM's own prompt encoder and mask decoder.

Papers: Zhou et al., "EdgeSAM: Prompt-In-the-Loop Distillation for On-Device Deployment of SAM", 2023; the encoder is
that of Wang et al., "RepViT: Revisiting Mobile CNN From ViT Perspective", 2023. Source: chongzhou96/EdgeSAM@b53372c,
edge_sam/modeling/{rep_vit,mask_decoder,sam}.py (S-Lab License 1.0, non-commercial). Written anew; parameter names are
the official ones, so published state_dicts load unchanged.

What is unusual here:
- Every depthwise mixer trains as three branches (3 x 3, 1 x 1, identity), every convolution with a batch norm. They are
  one convolution each in inference; the published code never joins them, `fused` does.
- The encoder adds two scales before its neck. The coarse one is enlarged by bicubic interpolation in the published
  PyTorch model and by bilinear interpolation in its exports; the weights are the same and do not say which.
- The decoder gives any of its four masks: 1 (token 0), 3 (tokens 1 to 3) or all 4. The IoU head was not distilled, and
  the authors recommend to choose by stability scores instead: see `EdgeSam.decode_masks`.
- The prompt encoder also has a label -2 for ignored points of the training, which no prompt can reach: it is not here.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from anysam.errors import OptionError, UnknownModelError
from anysam.models import Decoded, Kept, MultimaskDefault
from anysam.models.layers import fuse, fuse_conv_bn
from anysam.models.low_rank_decoder import decode_kept
from anysam.models.sam import PREPROCESS
from anysam.models.sam_decoder import PADDING, LayerNorm2d, MaskDecoder, PromptEncoder
from anysam.models.winograd import faster
from anysam.preprocess import Preprocess

# A mask is stable if it hardly changes between the thresholds +1 and -1 of its logits.
STABILITY_OFFSET = 1.0

# The maps before the neck's first norm are large, and sums over their channels may leave float16's range. Up to that
# norm all is linear, and with its eps scaled too, the norm gives the same for scaled maps.
_FLOAT16_SCALE = 1 / 16

# How many masks decode_masks gives, and the mask tokens that they are.
_TOKENS = {1: slice(0, 1), 3: slice(1, 4), 4: slice(0, 4)}


@dataclass(frozen=True)
class RepVitConfig:
    """The shape of an image encoder.

    widths, depths: channels and blocks of the four stages; the first block of stages 1 to 3 halves the grid.
    squeeze_excite: per stage, the indices of the blocks with a squeeze-and-excitation gate.
    two_scales: add the last two stages' maps before the neck; False is a training option that keeps the third stage's
        grid in the last stage and uses that alone. upsample: how the last map is enlarged for the sum.
    image_size: side of the square input, pixels.
    """

    widths: tuple[int, ...]
    depths: tuple[int, ...]
    squeeze_excite: tuple[tuple[int, ...], ...]
    two_scales: bool = True
    upsample: Literal["bicubic", "bilinear"] = "bicubic"
    image_size: int = 1024
    out_channels: int = 256

    def __post_init__(self) -> None:
        if not len(self.widths) == len(self.depths) == len(self.squeeze_excite) == 4:
            raise ValueError(f"widths, depths and squeeze_excite must have four stages each, got {self}")
        if any(width % 2 for width in self.widths) or min(self.depths) < 1:
            raise ValueError(f"widths must be even and depths positive, got {self.widths}, {self.depths}")
        if self.image_size % 32:
            raise ValueError(f"image_size must be a multiple of 32, got {self.image_size}")

    @property
    def grid_size(self) -> int:
        """Side of the image embedding's grid."""
        return self.image_size // 16


_M1 = RepVitConfig(
    widths=(48, 96, 192, 384), depths=(3, 4, 16, 3), squeeze_excite=((0,), (1,), (1, 3, 5, 7, 9, 11, 13), (1,))
)
# m2 and m3 are in the published code, but no weights for them are.
SIZES = {
    "m1": _M1,
    "m2": RepVitConfig(
        widths=(64, 128, 256, 512), depths=(3, 4, 14, 3), squeeze_excite=((0,), (1,), (1, 3, 5, 7, 9, 11), (1,))
    ),
    "m3": RepVitConfig(
        widths=(64, 128, 256, 512), depths=(5, 6, 20, 3), squeeze_excite=((0, 2), (1, 3), tuple(range(1, 19, 2)), (1,))
    ),
}


class ConvNorm(nn.Sequential):
    """A convolution without bias and a batch norm, which `fused` joins."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.c = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(outputs)

    def fused(self) -> nn.Conv2d:
        """One convolution with the same outputs, with the norm's running statistics."""
        return _channels_last(fuse_conv_bn(self.c, self.bn))


def _channels_last(conv: nn.Conv2d) -> nn.Conv2d:
    """`conv` with its weights in the order that channels_last inputs are fastest with."""
    conv.weight = nn.Parameter(conv.weight.detach().to(memory_format=torch.channels_last))
    return conv


class RepVggDepthwise(nn.Module):
    """Depthwise 3 x 3 and 1 x 1 convolutions, each with its norm, and the input itself, added."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = ConvNorm(channels, channels, kernel=3, groups=channels)
        self.conv1 = ConvNorm(channels, channels, groups=channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) + self.conv1(x) + x

    @torch.no_grad()
    def fused(self) -> nn.Conv2d:
        """One depthwise 3 x 3 convolution with the same outputs: the other branches are in its centre.

        Computed in float64 and rounded once: a kernel's error is the same in all cells, and gates see their mean.
        """
        exact = copy.deepcopy(self).double()
        joined, centre = exact.conv.fused(), exact.conv1.fused()
        assert joined.bias is not None and centre.bias is not None
        joined.weight[:, :, 1, 1] += centre.weight[:, :, 0, 0] + 1
        joined.bias += centre.bias
        return joined.to(self.conv.c.weight.dtype)


class SqueezeExcite(nn.Module):
    """Scale each channel by a gate computed from the channels' means over the grid."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        squeezed = max(8, (channels // 4 + 4) // 8 * 8)  # a quarter, to the nearest multiple of 8
        self.fc1 = nn.Conv2d(channels, squeezed, kernel_size=1)
        self.fc2 = nn.Conv2d(squeezed, channels, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        # First along rows: one sum over all cells would round more.
        gate = x.mean(3, keepdim=True).mean(2, keepdim=True)  # (B, D, 1, 1)
        return x * self.fc2(functional.relu(self.fc1(gate))).sigmoid()


class Residual(nn.Module):
    """The input plus what a module makes of it."""

    def __init__(self, m: nn.Module) -> None:
        super().__init__()
        self.m = m

    def forward(self, x: Tensor) -> Tensor:
        return x + self.m(x)


class RepVitBlock(nn.Module):
    """Mix within each channel (depthwise), then between channels (1 x 1, GELU, 1 x 1, residual).

    resize: None for a block that keeps its input's shape, otherwise the stride of a stage's first block, which may also
    change the number of channels.
    """

    def __init__(self, inputs: int, outputs: int, resize: int | None, squeeze_excite: bool) -> None:
        super().__init__()
        gate = SqueezeExcite(inputs) if squeeze_excite else nn.Identity()
        if resize is None:
            self.token_mixer = nn.Sequential(RepVggDepthwise(inputs), gate)
        else:
            depthwise = ConvNorm(inputs, inputs, kernel=3, stride=resize, groups=inputs)
            self.token_mixer = nn.Sequential(depthwise, gate, ConvNorm(inputs, outputs))
        self.channel_mixer = Residual(
            nn.Sequential(ConvNorm(outputs, 2 * outputs), nn.GELU(), ConvNorm(2 * outputs, outputs))
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, h, w) -> (B, outputs, h, w), or less by the stride."""
        return self.channel_mixer(self.token_mixer(x))

    def fused(self) -> "FusedBlock":
        """The same for inference."""
        mixer = cast(nn.Sequential, self.channel_mixer.m)
        expand, contract = cast(ConvNorm, mixer[0]).fused(), cast(ConvNorm, mixer[2]).fused()
        return FusedBlock(fuse(copy.deepcopy(self.token_mixer)), _as_linear(expand), _as_linear(contract))


class FusedBlock(nn.Module):
    """A RepVitBlock without norms and branches; its 1 x 1 convolutions are matrix products over channels_last maps."""

    def __init__(self, token_mixer: nn.Module, expand: nn.Linear, contract: nn.Linear) -> None:
        super().__init__()
        self.token_mixer = token_mixer
        self.expand = expand
        self.contract = contract

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, h, w) -> (B, outputs, h, w), or less by the stride; channels_last."""
        x = self.token_mixer(x).permute(0, 2, 3, 1)  # (B, h, w, outputs)
        cells = x.flatten(0, 2)  # (B * h * w, outputs)
        # In place: the hidden layer is the largest tensor of all, and a second one would cost as much as a sum.
        hidden = torch.ops.aten.gelu_(self.expand(cells))  # (B * h * w, 2 * outputs)
        return self.contract(hidden).add_(cells).view(x.shape).permute(0, 3, 1, 2)  # (B, outputs, h, w)


def _as_linear(conv: nn.Conv2d) -> nn.Linear:
    """A 1 x 1 convolution with bias as a linear layer."""
    linear = nn.Linear(conv.in_channels, conv.out_channels, device="meta")
    linear.weight = nn.Parameter(conv.weight.detach().flatten(1).contiguous())
    assert conv.bias is not None
    linear.bias = nn.Parameter(conv.bias.detach())
    return linear.train(conv.training)


class Enlarge(nn.Module):
    """Interpolate a map to twice its height and width."""

    def __init__(self, mode: str) -> None:
        super().__init__()
        self.mode = mode

    def forward(self, x: Tensor) -> Tensor:
        return functional.interpolate(x, scale_factor=2.0, mode=self.mode, align_corners=False)


class OpSequential(nn.Module):
    """A sequence under the name that the published parameters have."""

    def __init__(self, *modules: nn.Module) -> None:
        super().__init__()
        self.op_list = nn.Sequential(*modules)

    def forward(self, x: Tensor) -> Tensor:
        return self.op_list(x)


class RepVit(nn.Module):
    """EdgeSAM's image encoder."""

    def __init__(self, config: RepVitConfig) -> None:
        super().__init__()
        width, out = config.widths[0], config.out_channels
        stem = nn.Sequential(ConvNorm(3, width // 2, 3, stride=2), nn.GELU(), ConvNorm(width // 2, width, 3, stride=2))
        features: list[nn.Module] = [stem]
        for stage, (outputs, depth) in enumerate(zip(config.widths, config.depths, strict=True)):
            for index in range(depth):
                resize = None
                if stage and not index:
                    resize = 1 if stage == 3 and not config.two_scales else 2
                features.append(RepVitBlock(width, outputs, resize, index in config.squeeze_excite[stage]))
                width = outputs
        self.features = nn.ModuleList(features)
        self.fine_end = len(features) - config.depths[3]  # features before the last stage's
        self.two_scales = config.two_scales
        if config.two_scales:
            self.fuse_stage2 = nn.Conv2d(config.widths[2], out, kernel_size=1, bias=False)
            coarse = nn.Conv2d(width, out, kernel_size=1, bias=False)
            self.fuse_stage3 = OpSequential(coarse, Enlarge(config.upsample))
            width = out
        self.neck = nn.Sequential(
            nn.Conv2d(width, out, kernel_size=1, bias=False),
            LayerNorm2d(out),
            nn.Conv2d(out, out, kernel_size=3, padding=1, bias=False),
            LayerNorm2d(out),
        )

    def forward(self, pixels: Tensor) -> Tensor:
        """Pixels (B, 3, image_size, image_size) -> image_embeddings (B, out_channels, h, w)."""
        x = pixels.contiguous(memory_format=torch.channels_last)
        for block in self.features[: self.fine_end]:
            x = block(x)
        fine = x  # (B, D, h, w)
        for block in self.features[self.fine_end :]:
            x = block(x)
        scale = _FLOAT16_SCALE if x.dtype == torch.float16 else 1.0
        if scale != 1:
            fine, x = fine * scale, x * scale
        if self.two_scales:
            x = self.fuse_stage2(fine) + self.fuse_stage3(x)  # (B, out_channels, h, w)
        norm = cast(LayerNorm2d, self.neck[1])
        cells = self.neck[0](x).permute(0, 2, 3, 1)  # (B, h, w, out_channels)
        cells = functional.layer_norm(cells, norm.weight.shape, norm.weight, norm.bias, norm.eps * scale**2)
        return self.neck[3](self.neck[2](cells.permute(0, 3, 1, 2)))  # (B, out_channels, h, w)

    def fused(self) -> "RepVit":
        """The same for inference: norms and branches joined to convolutions, and everything in its fastest form."""
        twin = copy.deepcopy(self)
        for name, child in twin.named_children():
            setattr(twin, name, fuse(child))
        if isinstance(twin.neck[2], nn.Conv2d):
            twin.neck[2] = faster(_channels_last(twin.neck[2]))
        return twin


class EdgeSam(nn.Module):
    """A PromptableModel of RepVit and SAM's prompt encoder and mask decoder."""

    multimask_default: MultimaskDefault = "single_point"
    # The encoder's gates amplify rounding, and nothing bounds its activations: with stand-in weights, bfloat16 gave
    # other masks and float16 no numbers.
    float32_parts: tuple[str, ...] = ("image_encoder", "prompt_encoder", "mask_decoder")

    def __init__(
        self, image_encoder: nn.Module, prompt_encoder: PromptEncoder, mask_decoder: MaskDecoder, preprocess: Preprocess
    ) -> None:
        super().__init__()
        self.image_encoder = image_encoder
        self.prompt_encoder = prompt_encoder
        self.mask_decoder = mask_decoder
        self.preprocess = preprocess

    def encode_image(self, pixels: Tensor) -> dict[str, Tensor]:
        """Pixels (B, 3, H, W) -> {"image_embeddings": (B, D, h, w)}."""
        return {"image_embeddings": self.image_encoder(pixels)}

    def decode(
        self, features: dict[str, Tensor], points: Tensor, labels: Tensor, mask_logits: Tensor | None, multimask: bool
    ) -> Decoded:
        """See PromptableModel.decode: low_res_logits (P, C, 4h, 4w) and iou_predictions (P, C), C 3 or 1."""
        return self.decode_masks(features, points, labels, mask_logits, 3 if multimask else 1, False)

    def decode_kept(
        self,
        features: dict[str, Tensor],
        points: Tensor,
        labels: Tensor,
        multimask: bool,
        least_iou: float,
        rows: int,
    ) -> Kept:
        """See KeepingModel.decode_kept."""
        image_pe, sparse, dense = self._encode_prompts(points, labels, None)
        tokens = _TOKENS[3 if multimask else 1]
        return decode_kept(
            self.mask_decoder, features["image_embeddings"], image_pe, sparse, dense, tokens, least_iou, rows
        )

    def decode_masks(
        self,
        features: dict[str, Tensor],
        points: Tensor,
        labels: Tensor,
        mask_logits: Tensor | None,
        num_masks: int,
        stability_scores: bool,
    ) -> Decoded:
        """As decode, with the published predictor's options.

        num_masks: 1 is the mask of a clear prompt, 3 are those of an ambiguous one, 4 are all, the clear one first.
        stability_scores: give stability scores of the masks (see `stability_score`) in the place of iou_predictions.
        Raises OptionError for another number of masks.
        """
        if num_masks not in _TOKENS:
            raise OptionError(f"EdgeSAM gives 1, 3 or 4 masks of a prompt, not {num_masks!r}.")
        image_pe, sparse, dense = self._encode_prompts(points, labels, mask_logits)
        tokens = _TOKENS[num_masks]
        logits, ious = self.mask_decoder.forward_all(features["image_embeddings"], image_pe, sparse, dense, tokens)
        return Decoded(logits, stability_score(logits) if stability_scores else ious[:, tokens])

    def _encode_prompts(
        self, points: Tensor, labels: Tensor, mask_logits: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """image_pe (1, D, h, w), sparse (P, N, D) and dense (1 or P, D, h, w) prompt embeddings."""
        if labels.shape[1] == 1 and bool((labels == PADDING).all()):
            # Neither points nor boxes: the published predictor then gives no prompt tokens at all.
            points, labels = points[:, :0], labels[:, :0]
        return self.prompt_encoder.dense_pe(), *self.prompt_encoder(points, labels, mask_logits)


def stability_score(low_res_logits: Tensor) -> Tensor:
    """How much of each mask (P, C, h, w) stays when the threshold moves from -1 to +1: (P, C) float32 in 0..1.

    Counts the whole padded input, as published. 0 for a mask that is empty even at -1, where the quotient is undefined.
    """
    kept = (low_res_logits > STABILITY_OFFSET).sum((2, 3))  # (P, C)
    all_ = (low_res_logits > -STABILITY_OFFSET).sum((2, 3))  # (P, C)
    return kept / all_.clamp(min=1)


def build_image_encoder(config: RepVitConfig) -> RepVit:
    """An image encoder of any shape, with random weights; its keys are those of a checkpoint of the encoder alone."""
    return RepVit(config)


def build_edge_sam(config: RepVitConfig, preprocess: Preprocess) -> EdgeSam:
    """EdgeSAM around an image encoder of any shape, with random weights."""
    grid, side = config.grid_size, config.image_size
    prompt_encoder = PromptEncoder(config.out_channels, (grid, grid), (side, side))
    return EdgeSam(build_image_encoder(config), prompt_encoder, MaskDecoder(config.out_channels), preprocess)


def build(size: str) -> EdgeSam:
    """EdgeSAM with random weights; `size` is m1, m2 or m3. Raises UnknownModelError for another size."""
    if size not in SIZES:
        raise UnknownModelError(f"EdgeSAM has no size {size!r}; its sizes are {', '.join(SIZES)}.")
    return build_edge_sam(SIZES[size], PREPROCESS)


def convert_state_dict(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The names of all checkpoints are ours, but those of the encoder alone (first training phase) lack its prefix."""
    if any(key.startswith("features.") for key in state_dict):
        return {f"image_encoder.{key}": value for key, value in state_dict.items()}
    return dict(state_dict)
