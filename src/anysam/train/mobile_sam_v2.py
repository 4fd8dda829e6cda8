"""MobileSAMv2's two parts: a mask decoder that answers boxes behind a small encoder, and the detector of the boxes.

Paper: Zhang et al., "MobileSAMv2: Faster Segment Anything to Everything", 2023. It describes the flow (a YOLOv8 finds
boxes, each is decoded into one mask) and not how the published decoder was trained; no training code was released. Here

- the decoder ("prompt-guided decoder") starts as SAM's and learns, for the boxes of annotated objects, the masks and
  the predicted IoU that the teacher gives for the same boxes on its own embeddings. The small encoder rests: it was
  distilled before (`anysam train distill mobile_sam`). Only the mask token of clear prompts is asked, as in use, so the
  three masks of ambiguous points drift a little;
- the detector ("object-aware model") is trained as FastSAM is, without masks. Its network has branches for mask
  coefficients, which published weights hold and nothing uses: they do not learn.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn

from anysam.checkpoints import load_model, load_strictly
from anysam.datasets import ImageDataset
from anysam.errors import OptionError
from anysam.models import build
from anysam.models.object_aware import ObjectAware
from anysam.models.sam import Sam
from anysam.models.yolov8 import Segment
from anysam.preprocess import Preprocess
from anysam.train.configs.fast_sam import FastSamConfig
from anysam.train.configs.mobile_sam_v2 import MobileSamV2Config, decoder_loop
from anysam.train.data import open_data
from anysam.train.detection import DetectionSettings, DetectionTask, require_one_class, require_side, start_head
from anysam.train.edge_sam import TeacherDecoder
from anysam.train.encoder_distillation import (
    EmbeddingBatch,
    EmbeddingExample,
    Teacher,
    collate,
    decoder_of,
    open_teacher,
    read_example,
    require_stored,
)
from anysam.train.fast_sam import settings as fast_sam_settings
from anysam.train.promptable import (
    PromptExample,
    bce_dice,
    decode_tokens,
    first_prompts,
    noisy_boxes,
    score_prompts,
    valid_area,
)
from anysam.train.promptable import read_example as read_prompts
from anysam.train.task import Loss, ParameterGroup, Step, decayed

# The mask token of clear prompts, the only one that a box is answered with.
_BOX_TOKEN = slice(0, 1)
_BOX_NOISE_MOST = 20.0  # pixels, as in SAM's training


class DecoderBatch(NamedTuple):
    """B images, and the objects of each."""

    images: EmbeddingBatch
    prompts: list[PromptExample]


@dataclass(frozen=True, eq=False)
class DecoderTask:
    """See train.task.Task. network: as `prepared` makes it; its image encoder rests. teacher, decoder: the SAM's
    embeddings and its decoder. learned, judged: the data sets."""

    variant: str
    network: Sam
    teacher: Teacher
    decoder: TeacherDecoder
    learned: ImageDataset
    judged: ImageDataset
    config: MobileSamV2Config
    better: Literal["higher", "lower"] = "higher"

    def order(self, generator: np.random.Generator) -> np.ndarray:
        return generator.permutation(len(self.learned))

    def read(self, index: int, generator: np.random.Generator) -> tuple[EmbeddingExample, PromptExample] | None:
        """An image and at most config.objects of its objects; not augmented, since embeddings may be stored."""
        entry, preprocess = self.learned[index], self.network.preprocess
        prompts = read_prompts(entry, preprocess, self.config.objects, generator, with_pixels=False)
        return None if prompts is None else (read_example(entry, preprocess, self.teacher), prompts)

    def collate(self, examples: list[tuple[EmbeddingExample, PromptExample]]) -> DecoderBatch:
        return DecoderBatch(collate([image for image, _ in examples]), [prompts for _, prompts in examples])

    def loss(self, batch: DecoderBatch, step: Step) -> Loss:
        """The sum over all objects of the batch."""
        pixels = batch.images.pixels.to(step.device)
        with torch.no_grad():
            learned = self.network.encode_image(pixels)["image_embeddings"]  # (B, D, h, w)
        wanted = self.teacher.embeddings(batch.images, pixels)  # (B, D, h, w)
        parts = torch.stack(
            [self.object_losses(learned[i : i + 1], wanted[i : i + 1], each) for i, each in enumerate(batch.prompts)]
        ).sum(dim=0)  # (3,)
        weights = parts.new_tensor([self.config.bce_weight, self.config.dice_weight, self.config.iou_weight])
        count = sum(len(each.boxes) for each in batch.prompts)
        means = (parts.detach() / count).tolist()
        return Loss((parts * weights).sum(), float(count), dict(zip(("bce", "dice", "iou"), means, strict=True)))

    def object_losses(self, learned: Tensor, wanted: Tensor, example: PromptExample) -> Tensor:
        """Cross-entropy, dice and squared error of the predicted IoU, each summed over an image's objects: (3,).

        learned, wanted: (1, D, h, w), embeddings of the student's encoder and of the teacher's.
        """
        device, preprocess, teacher = learned.device, self.network.preprocess, self.decoder.to(learned.device)
        boxes = example.boxes
        if self.config.box_noise:
            boxes = noisy_boxes(boxes, self.config.box_noise, _BOX_NOISE_MOST, example.input_size, example.generator())
        as_box = torch.ones(len(boxes), dtype=torch.bool, device=device)
        points, labels = first_prompts(example.points.to(device), boxes.to(device), as_box)
        valid = valid_area(preprocess, example.input_size, preprocess.low_res_size(example.input_size)).to(device)
        with torch.no_grad():
            theirs = decode_tokens(teacher, {"image_embeddings": wanted}, points, labels, _BOX_TOKEN)
        ours = decode_tokens(self.network, {"image_embeddings": learned}, points, labels, _BOX_TOKEN)
        bce, dice = bce_dice(ours.low_res_logits.float(), (theirs.low_res_logits > 0).float(), valid)  # (P,) both
        iou = (ours.iou_predictions.float() - theirs.iou_predictions.float()) ** 2  # (P, 1)
        return torch.stack((bce.sum(), dice.sum(), iou.sum()))

    def prepare(self, step: Step) -> None:
        self.network.train()
        self.network.image_encoder.eval()  # its batch norms keep their statistics

    def groups(self, weight_decay: float) -> list[ParameterGroup]:
        return decayed(self.network, weight_decay)

    def validate(self, network: nn.Module) -> dict[str, float]:
        """promptable.score_prompts, judged by "box", the mean IoU of the answers to tight boxes."""
        scores = score_prompts(network, self.variant, self.judged, self.config.val_masks)
        return {"box": scores["box"]} | scores if scores else {}

    def weights(self, network: nn.Module) -> dict[str, Tensor]:
        return dict(network.state_dict())


def make_task(config: MobileSamV2Config, out: Path | None) -> DecoderTask | DetectionTask:
    """The task of `anysam train distill mobile_sam_v2`; `out` is not used.

    Raises OptionError for options that do not fit each other, an `init` or a teacher of another kind, embeddings of
    another teacher, and for the detector with the decoder's loop.
    """
    torch.manual_seed(config.loop.seed)
    return make_detector_task(config) if config.part == "detector" else make_decoder_task(config)


def make_decoder_task(config: MobileSamV2Config) -> DecoderTask:
    """The small SAM, its teacher and the data."""
    init = config.init or ("mobile_sam" if config.encoder == "tiny_vit" else "")
    if not init:
        raise OptionError(f"The encoder rests, so it must be trained: give a SAM with {config.encoder} with --init.")
    network = cast(Sam, build("mobile_sam_v2", config.encoder))
    load_strictly(network, load_model(init)[0].state_dict(), f"mobilesamv2_{config.encoder}", False)
    teacher, whole = open_teacher(config.teacher, config.embeddings, network.preprocess)
    decoder = TeacherDecoder(*decoder_of(whole, config.teacher))
    learned, judged = open_data(config.data)
    require_stored(teacher, learned)
    network = prepared(network, teacher.preprocess, config.prompts_learn)
    return DecoderTask(f"mobilesamv2_{config.encoder}", network, teacher, decoder, learned, judged, config)


def prepared(network: Sam, theirs: Preprocess, prompts_learn: bool) -> Sam:
    """The student, changed in place, with gradients for what learns.

    theirs: the teacher's preprocess. Raises OptionError for a teacher whose prompts are in another frame.
    """
    if theirs.long_side != network.preprocess.long_side:
        raise OptionError(
            f"The teacher's prompts are in a frame of {theirs.long_side} pixels, the student's of "
            f"{network.preprocess.long_side}; take a teacher such as sam_vit_h, sam_vit_l or sam_vit_b."
        )
    network.requires_grad_(False)
    network.mask_decoder.requires_grad_(True)
    network.prompt_encoder.requires_grad_(prompts_learn)
    return network


def make_detector_task(config: MobileSamV2Config) -> DetectionTask:
    """The object-aware detector and the data."""
    other = decoder_loop()
    if (config.loop.optimizer, config.loop.learning_rate) == (other.optimizer, other.learning_rate):
        raise OptionError(
            "The detector has another schedule than the decoder; start from examples/recipes/"
            "mobile_sam_v2_detector.toml with --config."
        )
    require_side(config.side)
    network = start_detector(config.init)
    learned, judged = open_data(config.data)
    return DetectionTask("mobilesamv2_object_aware", network, learned, judged, detector_settings(config))


def start_detector(init: str) -> ObjectAware:
    """The detector before the first step. Its mask coefficients do not learn. Raises OptionError for another `init`."""
    if init:
        found, row, _ = load_model(init)
        if not isinstance(found, ObjectAware):
            raise OptionError(f"init must be a mobilesamv2_object_aware, but {init} is {row.name}.")
        require_one_class(found, init)
        network = found
    else:
        network = cast(ObjectAware, build("object_aware", "x"))
        start_head(network)
    cast(Segment, network.model["22"]).cv4.requires_grad_(False)
    return network


def detector_settings(config: MobileSamV2Config) -> DetectionSettings:
    """FastSAM's, but for what the configuration tells."""
    return fast_sam_settings(
        FastSamConfig(side=config.side, objects=config.objects, mosaic=config.mosaic, scale=config.scale)
    )
