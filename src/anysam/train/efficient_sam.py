"""EfficientSAM's two stages: SAMI pretrains the encoder on a SAM's features, then the whole model learns masks.

Paper: Xiong et al., "EfficientSAM: Leveraged Masked Image Pretraining for Efficient Segment Anything", 2023 (arXiv
2312.00863). The released model is yformer/EfficientSAM@d525f62; neither stage's code was published. `sami` has the
first stage's network.

Stage finetune trains encoder and decoder together on masks, without augmentation. The paper says that it follows SAM;
the decoder's start is not said: here it is random, as EfficientSAM's decoder differs from SAM's. What differs from
SAM's training, because EfficientSAM takes six points and no masks: rounds of clicks end there, and no answer is the
next round's prompt. It always gives three masks; both they and the single mask learn from every prompt.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from anysam.checkpoints import load_model
from anysam.datasets import ImageDataset, ImageEntry
from anysam.errors import ImageError, OptionError
from anysam.models import Decoded, PromptableModel
from anysam.models.efficient_sam import MAX_POINTS, EfficientSam
from anysam.models.sam import ImageEncoderViT as SamViT
from anysam.train.configs.efficient_sam import EfficientSamConfig, sami_loop
from anysam.train.configs.finetune import FinetuneConfig
from anysam.train.data import open_data
from anysam.train.encoder_distillation import embedding_errors, evaluating, started
from anysam.train.finetune import Asker, learn_masks
from anysam.train.promptable import PromptExample, encode_images, read_example, score_prompts
from anysam.train.sami import (
    Box,
    Crop,
    Decoding,
    FeatureTeacher,
    SamiNetwork,
    as_input,
    at_side,
    middle_box,
    random_box,
    resized,
    start_as_mae,
)
from anysam.train.task import Loss, ParameterGroup, Step, decayed


@dataclass(frozen=True, eq=False)
class SamiTask:
    """Stage sami; see train.task.Task. learned, judged: the data sets. side: of a crop, pixels."""

    variant: str
    network: SamiNetwork
    teacher: FeatureTeacher
    learned: ImageDataset
    judged: ImageDataset
    config: EfficientSamConfig
    side: int = 224
    better: Literal["higher", "lower"] = "lower"

    def order(self, generator: np.random.Generator) -> np.ndarray:
        return generator.permutation(len(self.learned))

    def read(self, index: int, generator: np.random.Generator) -> Crop:
        entry = self.learned[index]
        box = random_box(entry.size, self.config.crop_scale, generator)
        flip = bool(generator.random() < 0.5)
        return self._crop(entry, box, flip, generator)

    def collate(self, examples: list[Crop]) -> Crop:
        """Crops as one, with a leading dimension B."""
        large = [example.large for example in examples if example.large is not None]
        return Crop(
            torch.stack([example.pixels for example in examples]),
            torch.stack(large) if large else None,
            torch.stack([example.order for example in examples]),
        )

    def loss(self, batch: Crop, step: Step) -> Loss:
        learned, wanted = self._features(self.network, batch, step.device)
        errors = embedding_errors(learned, wanted)  # (B,), equation 1 divided by the channels
        return Loss(errors.sum(), float(len(errors)), {"mse": errors.detach().mean().item()})

    def prepare(self, step: Step) -> None:
        """Nothing changes from step to step."""

    def groups(self, weight_decay: float) -> list[ParameterGroup]:
        return decayed(self.network, weight_decay)

    def validate(self, network: nn.Module) -> dict[str, float]:
        """Of the middle of each image, three quarters of it always hidden in the same way: "mse" as the loss, and
        "cosine" between the features found and wanted. Images that cannot be read are left out."""
        student = cast(SamiNetwork, network)
        device = student.cls_token.device
        errors: list[float] = []
        cosines: list[float] = []
        with evaluating(student):
            for index in range(len(self.judged)):
                try:
                    entry = self.judged[index]
                    crop = self._crop(entry, middle_box(entry.size), False, np.random.default_rng(index))
                except ImageError:
                    continue
                learned, wanted = self._features(student, self.collate([crop]), device)
                errors.append(embedding_errors(learned, wanted).item())
                cosines.append(functional.cosine_similarity(learned.float(), wanted, dim=1).mean().item())
        return {"mse": float(np.mean(errors)), "cosine": float(np.mean(cosines))} if errors else {}

    def weights(self, network: nn.Module) -> dict[str, Tensor]:
        """A whole EfficientSAM: its masks mean nothing before the second stage."""
        return dict(cast(SamiNetwork, network).sam.state_dict())

    def _crop(self, entry: ImageEntry, box: Box, flip: bool, generator: np.random.Generator) -> Crop:
        image, large = entry.read_image(), self.teacher.large_side
        order = generator.permutation(self.network.grid**2)
        return Crop(
            resized(image, box, self.side, flip),
            None if large is None else resized(image, box, large, flip),
            torch.from_numpy(order.astype(np.int64)),
        )

    def _features(self, network: SamiNetwork, batch: Crop, device: torch.device) -> tuple[Tensor, Tensor]:
        """What the network finds and what it should, both (B, D, grid, grid)."""
        crops = batch.pixels.to(device)
        large = None if batch.large is None else batch.large.to(device)
        wanted = self.teacher.features(crops, large, network.grid)
        return network(as_input(crops, network.sam.preprocess), batch.order.to(device)), wanted


@dataclass(frozen=True, eq=False)
class BothHeads:
    """As finetune.Asker, but every prompt gets the single mask and, counted last, the three."""

    asker: Asker

    @property
    def network(self) -> PromptableModel:
        return self.asker.network

    def answers(
        self, features: dict[str, Tensor], points: Tensor, labels: Tensor, previous: Tensor | None, several: Tensor
    ) -> list[tuple[Tensor, Decoded]]:
        heads = (torch.zeros_like(several), torch.ones_like(several))
        return [each for head in heads for each in self.asker.answers(features, points, labels, previous, head)]


@dataclass(frozen=True, eq=False)
class MasksTask:
    """Stage finetune; see train.task.Task. learned, judged: the data sets."""

    variant: str
    network: EfficientSam
    learned: ImageDataset
    judged: ImageDataset
    config: EfficientSamConfig
    better: Literal["higher", "lower"] = "higher"

    @property
    def asking(self) -> FinetuneConfig:
        """How masks are asked for, in finetune's words."""
        own = self.config
        return FinetuneConfig(
            clicks=own.clicks, repeats=0, box_noise=own.box_noise, focal_weight=own.focal_weight, masks=own.masks
        )

    def order(self, generator: np.random.Generator) -> np.ndarray:
        return generator.permutation(len(self.learned))

    def read(self, index: int, generator: np.random.Generator) -> PromptExample | None:
        return read_example(self.learned[index], self.network.preprocess, self.config.masks, generator)

    def collate(self, examples: list[PromptExample]) -> list[PromptExample]:
        return examples

    def loss(self, batch: list[PromptExample], step: Step) -> Loss:
        features = encode_images(self.network, [cast(Tensor, each.pixels).to(step.device) for each in batch])
        asker = cast(Asker, BothHeads(Asker(self.network, takes_mask=False, recompute=self.config.recompute)))
        asking = self.asking
        answers = [learn_masks(asker, own, each, asking) for own, each in zip(features, batch, strict=True)]
        names = sorted({name for _, parts in answers for name in parts})
        parts = {name: float(np.mean([own[name] for _, own in answers if name in own])) for name in names}
        count = sum(len(example.masks) for example in batch)
        return Loss(torch.stack([total for total, _ in answers]).sum(), float(count), parts)

    def prepare(self, step: Step) -> None:
        """Nothing changes from step to step."""

    def groups(self, weight_decay: float) -> list[ParameterGroup]:
        return decayed(self.network, weight_decay)

    def validate(self, network: nn.Module) -> dict[str, float]:
        """Mean IoU of boxes and of clicks at the images' own size, see promptable.score_prompts."""
        return score_prompts(network, self.variant, self.judged, self.config.val_masks)

    def weights(self, network: nn.Module) -> dict[str, Tensor]:
        return dict(network.state_dict())


def make_task(config: EfficientSamConfig, out: Path | None) -> SamiTask | MasksTask:
    """The task of `anysam train pretrain efficient_sam`; `out` is not used.

    Raises OptionError for options that do not fit, and what loading the models raises.
    """
    variant = f"efficient_sam_{config.size}"
    if config.stage == "sami":
        return _sami_task(config, variant)
    _check_finetuning(config)
    network, _, _ = load_model(config.init, variant)
    learned, judged = open_data(config.data)
    return MasksTask(variant, cast(EfficientSam, network).requires_grad_(True), learned, judged, config)


def _sami_task(config: EfficientSamConfig, variant: str) -> SamiTask:
    smallest, largest = config.crop_scale
    if not 0 < smallest <= largest <= 1:
        raise OptionError(f"--crop-scale must be two numbers in 0..1, the smaller first, got {config.crop_scale}.")
    decoding = Decoding(config.decoder_depth, config.decoder_width, config.decoder_heads, config.mask_ratio)
    source, row, _ = load_model(config.teacher)
    sam = cast(EfficientSam, started("efficient_sam", config.size, config.loop.seed))
    side = sam.image_encoder.table_size * sam.image_encoder.patch_embed.proj.kernel_size[0]
    teacher = feature_teacher(source, config.target, side, row.name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.loop.seed)
        network = SamiNetwork(sam, feature_width(source), decoding)
        start_as_mae(network)
    if config.init:
        sam.load_state_dict(load_model(config.init, variant)[0].state_dict())
    learned, judged = open_data(config.data)
    return SamiTask(variant, network, teacher, learned, judged, config, side)


def feature_teacher(network: nn.Module, target: str, side: int, name: str) -> FeatureTeacher:
    """The teacher of crops with `side` pixels. Raises OptionError for a network that cannot be one."""
    if not isinstance(network, PromptableModel):
        raise OptionError(f"{name} has no features to learn; take sam_vit_h, sam_vit_l or sam_vit_b.")
    if target == "pooled":
        return FeatureTeacher(network.preprocess, network=cast(nn.Module, network))
    encoder = getattr(network, "image_encoder", None)
    if not isinstance(encoder, SamViT):
        raise OptionError(f"Only a SAM's ViT can see small crops, and {name} has none; use --target pooled.")
    return FeatureTeacher(network.preprocess, encoder=at_side(encoder, side))


def feature_width(network: nn.Module) -> int:
    """Channels of a network's image embeddings, which its prompt encoder has as well."""
    prompts = network.get_submodule("prompt_encoder")
    matrix = cast(Tensor, prompts.get_submodule("pe_layer").positional_encoding_gaussian_matrix)
    return 2 * matrix.shape[1]


def _check_finetuning(config: EfficientSamConfig) -> None:
    first = sami_loop()
    if not config.init:
        raise OptionError("Stage finetune starts from the file that stage sami wrote; give it with --init.")
    if (config.loop.learning_rate, config.loop.betas) == (first.learning_rate, first.betas):
        raise OptionError(
            "Stage finetune has another schedule than stage sami, see examples/recipes/efficient_sam_finetune.toml: "
            "--epochs 5 --batch-size 2 --accumulate 64 --learning-rate 4e-4 --betas 0.9,0.999 --weight-decay 0.1 "
            "--schedule linear --warmup-steps 0."
        )
    if not 0 <= config.clicks <= MAX_POINTS - 2:
        raise OptionError(
            f"EfficientSAM takes {MAX_POINTS} points, a box is two: at most --clicks {MAX_POINTS - 2} here, got "
            f"{config.clicks}."
        )
    if min(config.masks, config.val_masks) < 1:
        raise OptionError(f"--masks and --val-masks must be at least 1, got {config.masks} and {config.val_masks}.")
