"""SlimSAM's alternate slimming: prune one half of an encoder's channels, distil, prune the other half, distil.

Paper: Chen et al., "SlimSAM: 0.1% Data Makes Segment Anything Slim", 2023. Source: czg1225/SlimSAM@b612c1b,
prune_distill_step1.py and prune_distill_step2.py (Apache-2.0). Written anew; `slimming` has the pruning.

Stage 1 prunes the embedding and aligns what it does not touch ("bottleneck aligning"): queries, keys, values and hidden
activations with SAM's, in the first half of the run. Stage 2 prunes those and aligns the embedding after each half of
each block with that of stage 1's result ("embedding aligning"), with a weight that falls over the first 11 twentieths
of the run, which are its epochs as published. Prompt encoder and mask decoder stay SAM's.
"""

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from anysam.checkpoints import load_model
from anysam.datasets import ImageDataset, ImageEntry
from anysam.devices import find_device
from anysam.errors import ImageError, OptionError
from anysam.masks import mask_iou
from anysam.metrics import centre_most_point
from anysam.models.sam import Block, ImageEncoderViT, Sam
from anysam.models.slim_sam import SIZES, SlimVitConfig, encoder_config
from anysam.predictor import Model
from anysam.preprocess import prepare_image
from anysam.prompts import Prompt
from anysam.train.configs.slim_sam import SlimSamConfig
from anysam.train.data import open_data
from anysam.train.processes import local_device
from anysam.train.slim_gradients import Disturbance, gather_gradients
from anysam.train.slimming import (
    Gradients,
    Kept,
    choose_bottleneck,
    choose_embedding,
    member_weights,
    prune_encoder,
)
from anysam.train.task import Loss, ParameterGroup, Step, decayed

Seen = dict[str, list[Tensor]]

# The published run has 20 epochs, in 11 of which the weight of aligning is above 0 or reaches it.
_EPOCHS, _ALIGNED_EPOCHS = 20, 11


@dataclass(frozen=True, eq=False)
class SlimSamTask:
    """See train.task.Task. network: the pruned one; its image encoder learns. teacher: what it is pruned from in the
    end, the original SAM. step1: the encoder of stage 1's result, in stage 2. learned, judged: the data sets.
    """

    variant: str
    network: Sam
    teacher: Sam
    step1: ImageEncoderViT | None
    config: SlimSamConfig
    learned: ImageDataset
    judged: ImageDataset
    better: Literal["higher", "lower"] = "higher"

    def order(self, generator: np.random.Generator) -> np.ndarray:
        return generator.permutation(len(self.learned))

    def read(self, index: int, generator: np.random.Generator) -> Tensor:
        """Pixels (3, H, W) as the encoder wants them; no augmentation, as published."""
        return read_pixels(self.network, self.learned, index)

    def collate(self, examples: list[Tensor]) -> Tensor:
        return torch.stack(examples)  # (B, 3, H, W)

    def loss(self, batch: Tensor, step: Step) -> Loss:
        pixels = batch.to(step.device)
        teacher = vit(self.teacher).to(step.device)
        if self.step1 is None:
            parts = self._bottleneck_loss(teacher, pixels, step)
        else:
            parts = self._embedding_loss(teacher, self.step1.to(step.device), pixels, step)
        total = torch.stack(list(parts.values())).sum() * len(pixels)
        return Loss(total, float(len(pixels)), {name: value.item() for name, value in parts.items()})

    def _bottleneck_loss(self, teacher: nn.Module, pixels: Tensor, step: Step) -> dict[str, Tensor]:
        """Stage 1's: the weighted mean squared errors, by what they are of."""
        student = vit(self.network)
        if step.progress >= 0.5:
            with torch.no_grad():
                wanted = teacher(pixels)
            return {"embeddings": _mse([(student(pixels), wanted)])}
        with torch.no_grad(), watched(teacher, _BOTTLENECK) as theirs:
            wanted = teacher(pixels)
        with watched(student, _BOTTLENECK) as ours:
            embeddings = student(pixels)
        config = encoder_config(student)
        blocks = range(len(config.mlp_widths))
        windowed = [index for index in blocks if index not in config.global_blocks]
        attention = {
            "windowed": _attention_mse(student, teacher, windowed, ours, theirs, len(pixels)),
            "global": _attention_mse(student, teacher, config.global_blocks, ours, theirs, len(pixels)),
        }
        if self.config.faults == "published":
            attention.pop("global")  # there, a comparison of the student with itself
        hidden = _mse([pair for index in blocks for pair in _pairs(ours, theirs, f"{index}.hidden")])
        align = self.config.align
        parts = {"embeddings": (1 - align) * _mse([(embeddings, wanted)])}
        return parts | {name: align * value for name, value in (attention | {"hidden": hidden}).items()}

    def _embedding_loss(self, teacher: nn.Module, step1: nn.Module, pixels: Tensor, step: Step) -> dict[str, Tensor]:
        """Stage 2's: the weighted mean squared errors, by what they are of."""
        align, student = alignment(step.progress), vit(self.network)
        with torch.no_grad():
            wanted = teacher(pixels)
        if not align:
            return {"embeddings": _mse([(student(pixels), wanted)])}
        with torch.no_grad(), watched(step1, _EMBEDDING) as theirs:
            near = step1(pixels)
        with watched(student, _EMBEDDING) as ours:
            embeddings = student(pixels)
        blocks = _mse([pair for name in ours for pair in _pairs(ours, theirs, name)])
        return {
            "embeddings": (1 - align) * _mse([(embeddings, wanted)]),
            "step1": align * _mse([(embeddings, near)]),
            "blocks": align * blocks,
        }

    def prepare(self, step: Step) -> None:
        """Nothing changes from step to step."""

    def groups(self, weight_decay: float) -> list[ParameterGroup]:
        return decayed(self.network, weight_decay)

    def validate(self, network: nn.Module) -> dict[str, float]:
        """iou: of one mask for each annotation's point, averaged over an image, then over images, where there are
        annotations. cosine: between the embeddings and the teacher's, averaged over their cells and over images."""
        assert isinstance(network, Sam)
        return score(network, self.teacher, self.judged)

    def weights(self, network: nn.Module) -> dict[str, Tensor]:
        return dict(network.state_dict())


def alignment(progress: float) -> float:
    """Stage 2's dynamic weight: 10/11 in the first twentieth of the run, 1/11 less in each of the next ten, then 0."""
    epoch = math.floor(progress * _EPOCHS + 1e-9)
    return max(0, _ALIGNED_EPOCHS - 1 - epoch) / _ALIGNED_EPOCHS


def read_pixels(network: Sam, dataset: ImageDataset, index: int) -> Tensor:
    """An image as the network's encoder sees it: (3, H, W) float32. Raises ImageError for a broken one."""
    return prepare_image(dataset[index].read_image(), network.preprocess)[0][0]


# What is observed of a block, by name: whether of the module "inputs" or "outputs" are kept, and the module's name.
_BOTTLENECK = {"qkv": ("outputs", "attn.qkv"), "hidden": ("inputs", "mlp.lin2")}
_EMBEDDING = {"inputs": ("inputs", ""), "middle": ("inputs", "norm2"), "outputs": ("outputs", "")}


@contextmanager
def watched(encoder: nn.Module, parts: Mapping[str, tuple[str, str]]) -> Iterator[Seen]:
    """Keeps what passes through parts of the blocks of a SAM encoder: "<block>.<name>" -> tensors in order.

    On a CPU a block takes some windows, and an MLP some tokens, at a time: there are several tensors then. Of blocks'
    own inputs only the first block's are kept, the others' being outputs already.
    """
    seen: Seen = {}
    handles = []

    def keep(module: nn.Module, kind: str, name: str) -> None:
        if kind == "inputs":
            hook = module.register_forward_pre_hook(lambda _, inputs: seen.setdefault(name, []).append(inputs[0]))
        else:
            hook = module.register_forward_hook(lambda _, inputs, output: seen.setdefault(name, []).append(output))
        handles.append(hook)

    blocks: Sequence[nn.Module] = encoder.get_submodule("blocks").children()  # type: ignore[assignment]
    for index, block in enumerate(blocks):
        for name, (kind, path) in parts.items():
            if path or kind == "outputs" or index == 0:
                keep(block.get_submodule(path), kind, f"{index}.{name}")
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _pairs(ours: Seen, theirs: Seen, name: str) -> list[tuple[Tensor, Tensor]]:
    return list(zip(ours[name], theirs[name], strict=True))


def _mse(pairs: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """Mean squared error over all elements of all pairs, in float32."""
    errors = [(one.float() - other.float()).square().sum() for one, other in pairs]
    return torch.stack(errors).sum() / sum(one.numel() for one, _ in pairs)


def _attention_mse(
    student: ImageEncoderViT, teacher: nn.Module, blocks: Sequence[int], ours: Seen, theirs: Seen, batch: int
) -> Tensor:
    """Mean squared error of queries, keys and values of some blocks, padded tokens included, as published.

    A padded token's are the projection's bias; they are in no output that was observed.
    """
    if not blocks:
        return student.pos_embed.new_zeros(())
    errors, count = [], 0
    for index in blocks:
        for one, other in _pairs(ours, theirs, f"{index}.qkv"):
            errors.append((one.float() - other.float()).square().sum())
            count += one.numel()
        block = student.blocks[index]
        assert isinstance(block, Block)
        other_bias = teacher.get_parameter(f"blocks.{index}.attn.qkv.bias")
        height, width = student.pos_embed.shape[1:3]
        side = block.attn.window
        padding = batch * (-(-height // side) * -(-width // side) * side**2 - height * width)
        errors.append(padding * (block.attn.qkv.bias - other_bias).square().sum())
        count += padding * len(other_bias)
    return torch.stack(errors).sum() / count


@torch.no_grad()
def score(network: Sam, teacher: Sam, dataset: ImageDataset) -> dict[str, float]:
    """What `SlimSamTask.validate` returns; images that cannot be read are left out."""
    ious: list[float] = []
    cosines: list[float] = []
    device = network.get_parameter("image_encoder.pos_embed").device
    # a row of the catalogue with SAM's prompts; which one does not matter here
    model = Model("sam_vit_b", network, device, torch.float32, "0" * 64)
    for index in range(len(dataset)):
        try:
            entry = dataset[index]
            image = entry.read_image()
        except ImageError:
            continue
        encoded = model.encode(image)
        prompts, masks = _point_prompts(entry)
        if masks:
            found = model.predict(encoded, prompts, multimask=False)
            own = [mask_iou(each.masks[0], mask) for each, mask in zip(found, masks, strict=True)]
            ious.append(float(np.mean(own)))
        else:
            pixels = prepare_image(image, network.preprocess, device)[0]
            wanted = teacher.to(device).encode_image(pixels)["image_embeddings"]
            cosine = functional.cosine_similarity(encoded.features["image_embeddings"], wanted, dim=1)  # (1, h, w)
            cosines.append(cosine.mean().item())
    scores = {"iou": ious, "cosine": cosines}
    return {name: float(np.mean(values)) for name, values in scores.items() if values}


def _point_prompts(entry: ImageEntry) -> tuple[list[Prompt], list[np.ndarray]]:
    """Each mask (H, W) that is not empty, and the point that was its annotator's prompt, or its centre-most one."""
    prompts, masks = [], []
    for index, area in enumerate(entry.areas):
        if not area:
            continue
        mask = entry.decode(index).astype(bool)
        point = entry.points[index] if entry.points else None
        prompts.append(Prompt(points=np.array([centre_most_point(mask) if point is None else point], np.float64)))
        masks.append(mask)
    return prompts, masks


def make_task(config: SlimSamConfig, out: Path | None) -> SlimSamTask:
    """The pruned network and its teachers. What the gradients were is kept in `out` / gradients.safetensors; without
    `out`, for a look, no gradients are computed and channels stay by the size of their weights.

    Raises OptionError for options that do not fit, or if the gradients in `out` are of another run, and what loading
    the teacher raises.
    """
    if not 0 <= config.ratio < 1:
        raise OptionError(f"ratio must be at least 0 and below 1, got {config.ratio}.")
    if (config.stage == "2") != bool(config.init):
        raise OptionError(
            f"Stage 2 starts from the file that stage 1 wrote (init), stage 1 from the teacher alone; got stage "
            f"{config.stage} and init {config.init!r}."
        )
    learned, judged = open_data(config.data)
    teacher, sha256 = load_sam(config.teacher)
    source, step1 = teacher, None
    if config.init:
        source, sha256 = load_sam(config.init)
        step1 = vit(source)
        _require_alike(teacher, source, config)
    if out is None:
        gradients: Gradients = {name: torch.ones_like(value) for name, value in member_weights(vit(source)).items()}
    else:
        gradients = _gradients(source, learned, config, out / "gradients.safetensors", sha256)
    network = slim(source, choose(vit(source), gradients, config), config.faults == "published")
    for frozen in (teacher, source):
        frozen.requires_grad_(False).eval()
    variant = variant_name(encoder_config(vit(network)))
    return SlimSamTask(variant, network, teacher, step1, config, learned, judged)


def load_sam(name_or_path: str) -> tuple[Sam, str]:
    """A SAM with a ViT, pruned or not, and its weights' sha256. Raises OptionError for another model."""
    network, row, sha256 = load_model(name_or_path)
    if not isinstance(network, Sam) or not isinstance(network.image_encoder, ImageEncoderViT):
        raise OptionError(
            f"Only SAM itself (sam_vit_b, sam_vit_l, sam_vit_h) is pruned, but {name_or_path} is {row.name}."
        )
    return network, sha256


def _require_alike(teacher: Sam, source: Sam, config: SlimSamConfig) -> None:
    """Stage 2 compares the embeddings of both."""
    configs = [encoder_config(vit(each)) for each in (teacher, source)]
    shapes = [(each.image_size, each.patch_size, each.out_channels) for each in configs]
    if shapes[0] != shapes[1]:
        raise OptionError(
            f"The embeddings of {config.teacher} and {config.init} must be of one form (image, patch, channels), got "
            f"{shapes[0]} and {shapes[1]}; give the teacher that stage 1 pruned."
        )


def vit(network: Sam) -> ImageEncoderViT:
    """The encoder of a network that `load_sam` accepted, or of one pruned from it."""
    assert isinstance(network.image_encoder, ImageEncoderViT)
    return network.image_encoder


def _gradients(source: Sam, learned: ImageDataset, config: SlimSamConfig, path: Path, sha256: str) -> Gradients:
    """The summed gradients of the first images: from `path`, where they are or are left."""
    count = min(config.gradient_images, len(learned))
    facts = {
        "weights_sha256": sha256,
        "data": f"{learned.name}, {count} images",
        "noise": str(config.noise),
        "seed": str(config.loop.seed),
    }
    return gather_gradients(
        vit(source),
        lambda index: read_pixels(source, learned, index),
        count,
        Disturbance(config.noise, config.loop.seed),
        local_device(find_device(config.loop.device or None)),
        path,
        facts,
    )


def choose(encoder: ImageEncoderViT, gradients: Gradients, config: SlimSamConfig) -> Kept:
    """What stays of an encoder in the configured stage."""
    auto = config.normalisation == "auto"
    if config.stage == "1":
        return choose_embedding(encoder, gradients, config.ratio, "mean" if auto else config.normalisation)
    normalisation = "gaussian" if auto else config.normalisation
    return choose_bottleneck(encoder, gradients, config.ratio, config.scope, normalisation)


def slim(source: Sam, kept: Kept, mixed_norms: bool) -> Sam:
    """A SAM with a pruned encoder, which alone learns; the rest is a copy."""
    network = Sam(
        prune_encoder(vit(source), kept, mixed_norms),
        copy.deepcopy(source.prompt_encoder),
        copy.deepcopy(source.mask_decoder),
        source.preprocess,
    ).requires_grad_(False)
    network.image_encoder.requires_grad_(True)
    return network


def variant_name(config: SlimVitConfig) -> str:
    """The row of the catalogue for SAM around a pruned encoder of this shape."""
    uniform = [name for name, size in SIZES.items() if size == config and name.endswith("uniform")]
    if uniform:
        return f"slimsam_{uniform[0]}"
    for name in ("77", "50"):
        if config.vit == SIZES[name].vit:  # the blocks' widths may differ
            return f"slimsam_{name}"
    return "slimsam"
