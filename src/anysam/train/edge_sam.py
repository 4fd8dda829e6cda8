"""EdgeSAM's two stages: RepViT learns a SAM's embeddings, then, with the decoder, its masks: prompt in the loop.

Paper: Zhou et al., "EdgeSAM: Prompt-In-the-Loop Distillation for On-Device Deployment of SAM", 2023, section 3. Source:
chongzhou96/EdgeSAM@b53372c, training/ and edge_sam/utils/common.py (S-Lab License 1.0, non-commercial). Written anew
from a description of its numbers.

Stage 2 decodes the same prompts with the student and with the teacher, each on its own embeddings, and the student
learns the teacher's binarised masks, mask token by mask token. A step asks by boxes or by points. Then every object
gets a point uniform in the cells where student and teacher disagree, and is asked again. There is no loss on embeddings
or predicted IoUs, so those drift: the authors choose masks by stability (`EdgeSam.decode_masks`).

Images are resized as in inference, by Pillow, where the published training resizes tensors, which does not round.
"""

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

import numpy as np
import torch
from torch import Tensor, distributed, nn

from anysam.checkpoints import load_strictly
from anysam.datasets import ImageDataset, ImageEntry
from anysam.errors import ImageError, OptionError
from anysam.masks import mask_to_box
from anysam.models import Decoded
from anysam.models.edge_sam import EdgeSam
from anysam.models.sam_decoder import MaskDecoder, PromptEncoder
from anysam.preprocess import Preprocess
from anysam.train.configs.edge_sam import EdgeSamConfig, stage1_loop
from anysam.train.configs.loop import LoopConfig
from anysam.train.data import open_data
from anysam.train.encoder_distillation import (
    EmbeddingBatch,
    EmbeddingExample,
    Teacher,
    collate,
    decoder_of,
    embedding_errors,
    evaluating,
    open_teacher,
    read_example,
    require_stored,
    start_encoder,
    started,
    valid_embedding_cells,
)
from anysam.train.promptable import (
    IGNORED,
    add_points,
    bce_dice,
    decode_tokens,
    first_prompts,
    sample_errors,
    score_prompts,
    to_input_frame,
    uniform_point,
    valid_area,
)
from anysam.train.schedules import total_steps
from anysam.train.task import Loss, ParameterGroup, Step, decayed

# The mask tokens that learn: the one of clear prompts for boxes, all four for points.
_BOX_TOKENS, _POINT_TOKENS = slice(0, 1), slice(0, 4)


class TeacherDecoder(nn.Module):
    """A SAM's prompt encoder and mask decoder, copied and frozen: a teacher that is spread over GPUs cannot be asked
    for its parts."""

    def __init__(self, prompt_encoder: PromptEncoder, mask_decoder: MaskDecoder) -> None:
        super().__init__()
        self.prompt_encoder = copy.deepcopy(prompt_encoder)
        self.mask_decoder = copy.deepcopy(mask_decoder)
        self.eval().requires_grad_(False)


@dataclass(frozen=True, eq=False)
class ObjectExample:
    """An image and P of its objects; P is 0 in stage 1.

    boxes: (P, 4) float32 xyxy, points: (P, 2) float32, both in input-frame pixels. seed: for all that is drawn from
    this example in this step.
    """

    image: EmbeddingExample
    boxes: Tensor
    points: Tensor
    seed: int


@dataclass(frozen=True, eq=False)
class EdgeSamTask:
    """See train.task.Task. network: as `prepared` makes it. teacher, decoder: the SAM's embeddings and its decoder.

    learned, judged: the data sets.
    """

    network: EdgeSam
    teacher: Teacher
    decoder: TeacherDecoder
    learned: ImageDataset
    judged: ImageDataset
    config: EdgeSamConfig
    variant: str = "edge_sam"

    @property
    def better(self) -> Literal["higher", "lower"]:
        return "lower" if self.config.stage == "1" else "higher"

    def order(self, generator: np.random.Generator) -> np.ndarray:
        return generator.permutation(len(self.learned))

    def read(self, index: int, generator: np.random.Generator) -> ObjectExample | None:
        entry, most = self.learned[index], 0 if self.config.stage == "1" else self.config.objects
        if most and not entry.masks:
            return None
        image = read_example(entry, self.network.preprocess, self.teacher)
        boxes, points = read_objects(entry, self.network.preprocess, most, generator)
        return ObjectExample(image, boxes, points, int(generator.integers(2**63 - 1)))

    def collate(self, examples: list[ObjectExample]) -> tuple[EmbeddingBatch, list[ObjectExample]]:
        return collate([example.image for example in examples]), examples

    def loss(self, batch: tuple[EmbeddingBatch, list[ObjectExample]], step: Step) -> Loss:
        images, examples = batch
        pixels = images.pixels.to(step.device)
        learned = self.network.encode_image(pixels)["image_embeddings"]  # (B, D, h, w)
        wanted = self.teacher.embeddings(images, pixels)  # (B, D, h, w)
        if self.config.stage == "1":
            errors = embedding_errors(learned, wanted, self._valid(images, wanted))  # (B,)
            return Loss(errors.sum(), float(len(examples)), {"mse": float(errors.detach().mean())})
        # One kind of prompt for the whole step, in all processes.
        as_box = bool(np.random.default_rng([self.config.loop.seed, step.index]).random() > 0.5)
        bce, dice = learned.new_zeros(()), learned.new_zeros(())
        for i, example in enumerate(examples):
            own = self.object_losses(learned[i : i + 1], wanted[i : i + 1], example, as_box)
            bce, dice = bce + own[0].sum(), dice + own[1].sum()
        count = sum(len(example.boxes) for example in examples)
        total = self.config.bce_weight * bce + self.config.dice_weight * dice
        values = {"bce": bce, "dice": dice, "box" if as_box else "point": total}
        return Loss(total, float(count), {name: float(value.detach()) / count for name, value in values.items()})

    def object_losses(
        self, learned: Tensor, wanted: Tensor, example: ObjectExample, as_box: bool
    ) -> tuple[Tensor, Tensor]:
        """Cross-entropy and dice of one image's objects, averaged over the rounds: (P,) both.

        learned, wanted: (1, D, h, w), the student's embeddings and the teacher's.
        """
        device = learned.device
        teacher = self.decoder.to(device)
        kinds = torch.full((len(example.boxes),), as_box, device=device)
        points, labels = first_prompts(example.points.to(device), example.boxes.to(device), kinds)
        tokens = _BOX_TOKENS if as_box else _POINT_TOKENS
        preprocess, input_size = self.network.preprocess, example.image.input_size
        valid = valid_area(preprocess, input_size, preprocess.low_res_size(input_size)).to(device)  # (h, w)
        generator = torch.Generator().manual_seed(example.seed)
        bce, dice = learned.new_zeros(len(points)), learned.new_zeros(len(points))
        for turn in range(self.config.rounds):
            with torch.no_grad():
                theirs = decode_tokens(teacher, {"image_embeddings": wanted}, points, labels, tokens)
            ours = decode_tokens(self.network, {"image_embeddings": learned}, points, labels, tokens)
            logits = ours.low_res_logits.float()  # (P, C, h, w)
            own = bce_dice(logits, (theirs.low_res_logits > 0).float(), valid)
            bce, dice = bce + own[0] / self.config.rounds, dice + own[1] / self.config.rounds
            if turn + 1 < self.config.rounds:
                new = disagreements(
                    logits, theirs, valid, preprocess.low_res_stride, self.config.least_disagreement, generator
                )
                points, labels = add_points(points, labels, *new)
        return bce, dice

    def prepare(self, step: Step) -> None:
        self.network.train()  # batch norms learn their statistics
        if self.config.stage == "1":  # the other stage is judged by masks
            self.teacher.keep(self.judged, self.network.preprocess, step.device)

    def groups(self, weight_decay: float) -> list[ParameterGroup]:
        return decayed(self.network, weight_decay)

    def validate(self, network: nn.Module) -> dict[str, float]:
        """Stage 1: mean squared error of the embeddings, as the loss. Stage 2: promptable.score_prompts."""
        if self.config.stage == "2":
            return score_prompts(network, self.variant, self.judged, self.config.val_masks)
        errors = self._embedding_errors(cast(EdgeSam, network))
        return {"mse": float(np.mean(errors))} if errors else {}

    def weights(self, network: nn.Module) -> dict[str, Tensor]:
        return dict(network.state_dict())  # with branches and batch norms, as published; loading joins them

    def _embedding_errors(self, network: EdgeSam) -> list[float]:
        """Of each image; those without an embedding, or that cannot be read, are left out."""
        device, errors = next(network.parameters()).device, []
        with evaluating(network):
            for i in range(len(self.judged)):
                try:
                    images = collate([read_example(self.judged[i], network.preprocess, self.teacher)])
                    pixels = images.pixels.to(device)
                    wanted = self.teacher.embeddings_to_judge(i, images, pixels)
                except ImageError:
                    continue
                learned = network.encode_image(pixels)["image_embeddings"]
                errors.append(embedding_errors(learned, wanted, self._valid(images, wanted)).item())
        return errors

    def _valid(self, images: EmbeddingBatch, embeddings: Tensor) -> Tensor:
        """Whether the cells of the embeddings hold image: (B, h, w) bool."""
        size = (embeddings.shape[2], embeddings.shape[3])
        return valid_embedding_cells(self.network.preprocess, images, size).to(embeddings.device)


def read_objects(
    entry: ImageEntry, preprocess: Preprocess, most: int, generator: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Boxes (P, 4) and points (P, 2), float32 in the input frame, of at most `most` objects of an entry.

    Of more, so many are drawn with replacement, as published. They are the annotation's; where it has none, the mask's
    box and a uniform point of it.
    """
    count = min(len(entry.masks), most)
    picked = generator.integers(len(entry.masks), size=most) if len(entry.masks) > most > 0 else np.arange(count)
    boxes, points = np.zeros((count, 4)), np.zeros((count, 2))
    for place, index in enumerate(picked):
        mask = entry.decode(int(index)) > 0
        box = entry.boxes[index] if entry.boxes else mask_to_box(mask)
        point = entry.points[index] if entry.points else None
        if box is not None:
            boxes[place] = box
        if point is None and mask.any():
            points[place] = uniform_point(mask, generator)
        elif point is not None:
            points[place] = point
    corners = to_input_frame(boxes.reshape(-1, 2), preprocess, entry.size)  # (2 P, 2)
    return corners.reshape(-1, 4), to_input_frame(points, preprocess, entry.size)


@torch.no_grad()
def disagreements(
    logits: Tensor, teacher: Decoded, valid: Tensor, stride: int, least: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """A point for each object where the student's masks differ from the teacher's: points (P, 2), labels (P,).

    logits: the student's (P, C, h, w). Of several masks the one with the teacher's highest predicted IoU is compared.
    valid: (h, w), 0 where there is no image. A point lies at its cell's corner (x, y) * stride: the published code does
    not shift it by half a cell. With fewer than `least` cells that differ it is (0, 0) with the label IGNORED.
    """
    best = teacher.iou_predictions.argmax(dim=1)  # (P,)
    rows = torch.arange(len(best), device=best.device)
    inside = valid > 0
    ours, theirs = ((maps[rows, best] > 0) & inside for maps in (logits, teacher.low_res_logits))  # (P, h, w)
    errors = sample_errors(ours, theirs, generator, least)
    points = (errors.cells * stride).float() * errors.found[:, None]
    return points, torch.where(errors.found, errors.labels, IGNORED)


def make_task(config: EdgeSamConfig, out: Path | None) -> EdgeSamTask:
    """The task of `anysam train distill edge_sam`; `out` is not used.

    Raises OptionError for a teacher of another kind or frame, for stage 2 without a file of stage 1 or with the loop of
    stage 1, for a warm-up as long as the run, WeightsError for an `init` that is neither RepViT nor EdgeSAM.
    """
    if config.stage == "2" and not config.init:
        raise OptionError("Stage 2 of EdgeSAM starts from the file that stage 1 wrote; give it with --init.")
    first = stage1_loop()
    if config.stage == "2" and (config.loop.learning_rate, config.loop.clip) == (first.learning_rate, first.clip):
        raise OptionError(
            "Stage 2 of EdgeSAM has another schedule than stage 1, see examples/recipes/edge_sam_stage2.toml: "
            "--epochs 5 --batch-size 2 --accumulate 8 --learning-rate 1e-4 --least-rate 0.1 --warmup-steps 0 "
            "--weight-decay 0.05 --clip 0.01."
        )
    network = cast(EdgeSam, started("edge_sam", "m1", config.loop.seed))
    teacher, whole = open_teacher(config.teacher, config.embeddings, network.preprocess)
    decoder = TeacherDecoder(*decoder_of(whole, config.teacher))
    if config.init:
        # A classifier has no neck, and nothing that joins two scales before it.
        start_encoder(network.image_encoder, config.init, ("neck.", "fuse_stage") if config.stage == "1" else ())
    learned, judged = open_data(config.data)
    require_stored(teacher, learned)
    check_warmup(config.loop, len(learned))
    network = prepared(network, decoder, teacher.preprocess, config.stage)
    if config.stage == "1" and distributed.is_initialized() and distributed.get_backend() == "nccl":
        network = nn.SyncBatchNorm.convert_sync_batchnorm(network)  # as published, in stage 1 only; keys are the same
    return EdgeSamTask(network, teacher, decoder, learned, judged, config)


def check_warmup(loop: LoopConfig, images: int) -> None:
    """Raise OptionError for a run that ends before its rate is up: the published warm-up is for 1 % of SA-1B."""
    steps = total_steps(loop, images)
    if loop.warmup_steps >= steps:
        raise OptionError(
            f"A warm-up of {loop.warmup_steps} steps leaves nothing of the {steps} steps of this run; give "
            f"--warmup-steps {steps // 2}, half of them as published, or 0."
        )


def prepared(network: EdgeSam, decoder: TeacherDecoder, theirs: Preprocess, stage: str) -> EdgeSam:
    """The student, changed in place: with the teacher's prompt encoder and decoder, and gradients for what learns.

    theirs: the teacher's preprocess. Raises OptionError for a teacher whose prompts are in another frame, WeightsError
    for one of other widths.
    """
    if theirs.long_side != network.preprocess.long_side:
        raise OptionError(
            f"The teacher's prompts are in a frame of {theirs.long_side} pixels, the student's of "
            f"{network.preprocess.long_side}; take a teacher such as sam_vit_h, sam_vit_l or sam_vit_b."
        )
    for name in ("prompt_encoder", "mask_decoder"):
        load_strictly(network.get_submodule(name), decoder.get_submodule(name).state_dict(), "edge_sam", False)
    network.requires_grad_(False)
    network.image_encoder.requires_grad_(True)
    network.mask_decoder.requires_grad_(stage == "2")
    return network
