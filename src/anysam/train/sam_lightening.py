"""SAM-Lightening's dynamic layer-wise distillation: its blocks learn those of a SAM, the first ones first.

Paper: Song et al., "SAM-Lightening: A Lightweight Segment Anything Model with Dilated Flash Attention to Achieve 30
times Acceleration", 2024 (arXiv 2403.09195). Source: Songyanfei/SAM-LIGHTENING@5913ec7, which has no training code and
no weights: this is how to get some.

From the paper is only the idea, as its abstract and summaries tell it: distillation is progressive and layer by layer,
with weights that change during the run and move on to deeper layers; the decoder is aligned as well. Its formulas and
numbers were not at hand. How it is done here is ours:
- Which layers: block i of S learns the output of the teacher's block at the same part of its depth, rounded.
- A linear layer for each brings the student's width to the teacher's. They learn along and are thrown away. The
  teacher's features are normalised token by token, so that no block counts more for having larger ones.
- The weights: see `layer_weights`. The last "layer" is the embeddings themselves.

The published attention mixes the images of a batch (its windows attend to windows of other images, its global blocks to
other images alone). A model trained so would answer otherwise for one image than it was trained to for several. Here
every image is on its own, in training as in inference: any batch size gives the sums of its single images' losses.

The decoder is the teacher's and rests. It is aligned with the new encoder by

    anysam train finetune --model OUT/best.safetensors --what decoder
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from anysam.catalogue import VARIANTS
from anysam.checkpoints import load_model
from anysam.datasets import ImageDataset
from anysam.errors import OptionError
from anysam.models.sam import ImageEncoderViT as SamViT
from anysam.models.sam import Sam
from anysam.models.sam_lightening import PREPROCESS, ImageEncoderViT
from anysam.train.configs.sam_lightening import SamLighteningConfig
from anysam.train.data import open_data
from anysam.train.encoder_distillation import (
    EmbeddingBatch,
    EmbeddingExample,
    Teacher,
    agreement,
    collate,
    decoder_of,
    embedding_errors,
    observed,
    open_teacher,
    read_example,
    start_encoder,
    started,
    valid_embedding_cells,
)
from anysam.train.mobile_sam import prepared
from anysam.train.task import Loss, ParameterGroup, Step, decayed


class LayerStudent(nn.Module):
    """A SAM-Lightening and a linear layer for each of its blocks, to the teacher's width. Only the first is kept."""

    def __init__(self, sam: Sam, teacher_width: int) -> None:
        super().__init__()
        encoder = cast(ImageEncoderViT, sam.image_encoder)
        self.sam = sam
        self.projections = nn.ModuleList(
            nn.Linear(encoder.pos_embed.shape[-1], teacher_width) for _ in range(len(encoder.blocks))
        )


@dataclass(frozen=True, eq=False)
class SamLighteningTask:
    """See train.task.Task. network: its `sam` is one that mobile_sam.prepared made. teacher: one that runs along.

    learned, judged: the data sets.
    """

    network: LayerStudent
    teacher: Teacher
    learned: ImageDataset
    judged: ImageDataset
    config: SamLighteningConfig
    variant: str = "sam_lightening"
    better: Literal["higher", "lower"] = "higher"

    def order(self, generator: np.random.Generator) -> np.ndarray:
        return generator.permutation(len(self.learned))

    def read(self, index: int, generator: np.random.Generator) -> EmbeddingExample:
        return read_example(self.learned[index], self.network.sam.preprocess, self.teacher)

    def collate(self, examples: list[EmbeddingExample]) -> EmbeddingBatch:
        return collate(examples)

    def loss(self, batch: EmbeddingBatch, step: Step) -> Loss:
        pixels = batch.pixels.to(step.device)
        sam, projections = self.network.sam, self.network.projections
        depth = len(projections)
        weights = layer_weights(depth, step.progress, self.config.layer_part, self.config.passed)
        theirs = cast(nn.Module, self.teacher.on(step.device)).get_submodule("image_encoder")
        pairs = paired_blocks(depth, len(theirs.get_submodule("blocks")._modules))
        wanted_names = [f"blocks.{index}" for index in pairs]
        with observed(theirs, wanted_names) as wanted_layers:
            wanted = self.teacher.embeddings(batch, pixels)
        with observed(sam.image_encoder, [f"blocks.{index}" for index in range(depth)]) as learned_layers:
            learned = sam.encode_image(pixels)["image_embeddings"]
        valid = None
        if self.config.ignore_padding:
            size = (learned.shape[2], learned.shape[3])
            valid = valid_embedding_cells(sam.preprocess, batch, size).to(step.device)
        errors = embedding_errors(learned, wanted, valid)  # (B,)
        total = weights[depth] * errors
        parts = {"mse": errors.detach().mean().item()}
        for index, projection in enumerate(projections):
            if weights[index]:
                own = projection(learned_layers[f"blocks.{index}"])  # (B, h, w, D)
                layer = embedding_errors(_channels_first(own), normalised(wanted_layers[wanted_names[index]]), valid)
                total = total + weights[index] * layer
                parts[f"block{index}"] = layer.detach().mean().item()
        return Loss(total.sum(), float(len(errors)), parts)

    def prepare(self, step: Step) -> None:
        self.teacher.keep(self.judged, self.network.sam.preprocess, step.device)

    def groups(self, weight_decay: float) -> list[ParameterGroup]:
        return decayed(self.network, weight_decay)

    def validate(self, network: nn.Module) -> dict[str, float]:
        """Agreement of masks with the teacher's, see encoder_distillation.agreement."""
        return agreement(cast(LayerStudent, network).sam, self.teacher, self.judged, self.config.val_points)

    def weights(self, network: nn.Module) -> dict[str, Tensor]:
        return dict(cast(LayerStudent, network).sam.state_dict())


def layer_weights(depth: int, progress: float, layer_part: float, passed: float) -> list[float]:
    """Weights of the errors of `depth` blocks and, last, of the embeddings: they sum to 1.

    A front moves evenly from block 0 to the embeddings while progress goes from 0 to layer_part, and stays there. What
    it has reached has the weight passed ** (its distance behind the front); what lies less than one layer before it
    rises linearly from 0; the rest has none.
    """
    front = depth * min(1.0, progress / layer_part) if layer_part > 0 else float(depth)
    raw = [passed ** (front - i) if i <= front else max(0.0, 1 - (i - front)) for i in range(depth + 1)]
    return [value / sum(raw) for value in raw]


def paired_blocks(depth: int, teacher_depth: int) -> list[int]:
    """For each of `depth` blocks the teacher's at the same part of the depth: the last for the last."""
    return [max(1, round((index + 1) * teacher_depth / depth)) - 1 for index in range(depth)]


def normalised(features: Tensor) -> Tensor:
    """Features (B, h, w, D) with mean 0 and variance 1 in each token, as (B, D, h, w) float32."""
    return _channels_first(functional.layer_norm(features.float(), features.shape[-1:]))


def _channels_first(features: Tensor) -> Tensor:
    return features.permute(0, 3, 1, 2)  # (B, D, h, w)


def make_task(config: SamLighteningConfig, out: Path | None) -> SamLighteningTask:
    """The task of `anysam train distill sam_lightening`; `out` is not used.

    Raises OptionError for options that do not fit, and what loading the models raises.
    """
    if not (0 <= config.layer_part <= 1 and 0 <= config.passed <= 1 and config.val_points >= 1):
        raise OptionError(
            f"--layer-part and --passed must be in 0..1 and --val-points at least 1, got {config.layer_part}, "
            f"{config.passed} and {config.val_points}."
        )
    teacher, source = open_teacher(config.teacher, "", PREPROCESS)
    if not isinstance(source.image_encoder, SamViT):
        raise OptionError(
            f"The layers of {config.teacher} are not a SAM's ViT, whose blocks are learned; take sam_vit_h, sam_vit_l "
            "or sam_vit_b."
        )
    parts = source.prompt_encoder, source.mask_decoder
    if config.decoder:
        other, row, _ = load_model(config.decoder)
        parts = decoder_of(other, row.name)
    sam = cast(Sam, started("sam_lightening", config.size, config.loop.seed))
    if config.init:
        start_encoder(sam.image_encoder, config.init)
    student = learner(prepared(sam, *parts), source.image_encoder, config.loop.seed)
    learned, judged = open_data(config.data)
    return SamLighteningTask(student, teacher, learned, judged, config, variant_of(config.size))


def learner(sam: Sam, teacher: SamViT, seed: int) -> LayerStudent:
    """A prepared student with projections to the teacher's width, their values drawn from `seed`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LayerStudent(sam, teacher.pos_embed.shape[-1])


def variant_of(size: str) -> str:
    """The catalogue's name of a size."""
    names: Sequence[str] = [row.name for row in VARIANTS if (row.family, row.size) == ("sam_lightening", size)]
    return names[0]
