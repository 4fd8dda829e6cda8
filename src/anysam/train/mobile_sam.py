"""MobileSAM's decoupled distillation: TinyViT learns the embeddings of a SAM, by their mean squared error alone.

Paper: Zhang et al., "Faster Segment Anything: Towards Lightweight SAM for Mobile Applications", 2023 (arXiv
2306.14289), sections 3.2 and 4.1. No training code was published. Prompt encoder and mask decoder are the teacher's and
stay as they are; the paper's optional second step, fine-tuning the decoder, is

    anysam train finetune --model OUT/best.safetensors --what decoder

The teacher takes far more time than the student, so its embeddings are best made once, by `anysam embed`, as the
authors did.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

import numpy as np
from torch import Tensor, nn

from anysam.checkpoints import load_model, load_strictly
from anysam.datasets import ImageDataset
from anysam.errors import OptionError
from anysam.models.mobile_sam import TinyVit
from anysam.models.sam import PREPROCESS, Sam
from anysam.models.sam_decoder import MaskDecoder, PromptEncoder
from anysam.train.configs.mobile_sam import MobileSamConfig
from anysam.train.data import open_data
from anysam.train.encoder_distillation import (
    EmbeddingBatch,
    EmbeddingExample,
    Teacher,
    agreement,
    collate,
    decoder_of,
    embedding_errors,
    open_teacher,
    read_example,
    require_stored,
    start_encoder,
    started,
    valid_embedding_cells,
)
from anysam.train.task import Loss, ParameterGroup, Step, decayed

# Of the encoder: a classifier that MobileSAM's published file has and nothing uses.
_UNUSED = ("norm_head", "head")


@dataclass(frozen=True, eq=False)
class MobileSamTask:
    """See train.task.Task. network: a student that `prepared` made. learned, judged: the data sets."""

    network: Sam
    teacher: Teacher
    learned: ImageDataset
    judged: ImageDataset
    config: MobileSamConfig
    variant: str = "mobile_sam"
    better: Literal["higher", "lower"] = "higher"

    def order(self, generator: np.random.Generator) -> np.ndarray:
        return generator.permutation(len(self.learned))

    def read(self, index: int, generator: np.random.Generator) -> EmbeddingExample:
        return read_example(self.learned[index], self.network.preprocess, self.teacher)

    def collate(self, examples: list[EmbeddingExample]) -> EmbeddingBatch:
        return collate(examples)

    def loss(self, batch: EmbeddingBatch, step: Step) -> Loss:
        pixels = batch.pixels.to(step.device)
        wanted = self.teacher.embeddings(batch, pixels)
        learned = self.network.encode_image(pixels)["image_embeddings"]
        valid = None
        if self.config.ignore_padding:
            size = (learned.shape[2], learned.shape[3])
            valid = valid_embedding_cells(self.network.preprocess, batch, size).to(step.device)
        errors = embedding_errors(learned, wanted, valid)  # (B,)
        return Loss(errors.sum(), float(len(errors)), {"mse": errors.detach().mean().item()})

    def prepare(self, step: Step) -> None:
        self.network.image_encoder.train()  # batch norms learn their statistics
        self.teacher.keep(self.judged, self.network.preprocess, step.device)

    def groups(self, weight_decay: float) -> list[ParameterGroup]:
        return decayed(self.network, weight_decay)

    def validate(self, network: nn.Module) -> dict[str, float]:
        """Agreement of masks with the teacher's, see encoder_distillation.agreement."""
        return agreement(cast(Sam, network), self.teacher, self.judged, self.config.val_points)

    def weights(self, network: nn.Module) -> dict[str, Tensor]:
        return dict(network.state_dict())


def prepared(network: Sam, prompt_encoder: PromptEncoder, mask_decoder: MaskDecoder) -> Sam:
    """The student, changed in place: with this prompt encoder and decoder, and gradients for its image encoder alone.

    Raises WeightsError if they are of other widths.
    """
    load_strictly(network.prompt_encoder, prompt_encoder.state_dict(), "this prompt encoder", with_guess=False)
    load_strictly(network.mask_decoder, mask_decoder.state_dict(), "this mask decoder", with_guess=False)
    network.eval().requires_grad_(False)
    for name, child in network.image_encoder.named_children():
        child.requires_grad_(name not in _UNUSED)
    for parameter in network.image_encoder.parameters(recurse=False):
        parameter.requires_grad_(True)
    return network


def make_task(config: MobileSamConfig, out: Path | None) -> MobileSamTask:
    """The task of `anysam train distill mobile_sam`; `out` is not used.

    Raises OptionError for options that do not fit, and what loading the models raises.
    """
    if config.val_points < 1:
        raise OptionError(f"--val-points must be at least 1, got {config.val_points}.")
    teacher, source = open_teacher(config.teacher, config.embeddings, PREPROCESS)
    parts = source.prompt_encoder, source.mask_decoder
    if config.decoder:
        other, row, _ = load_model(config.decoder)
        parts = decoder_of(other, row.name)
    network = cast(Sam, started("mobile_sam", "tiny_vit", config.loop.seed))
    if config.init:
        assert isinstance(network.image_encoder, TinyVit)
        start_encoder(network.image_encoder, config.init, may_lack=("neck.", *(f"{name}." for name in _UNUSED)))
    learned, judged = open_data(config.data)
    for dataset in (learned, judged):
        require_stored(teacher, dataset)
    return MobileSamTask(prepared(network, *parts), teacher, learned, judged, config)
