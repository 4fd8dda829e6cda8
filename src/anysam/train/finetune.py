"""Fine-tune a promptable model on one's own masks: the whole network, its decoder, or LoRA on its attention.

Procedure: Kirillov et al., "Segment Anything", 2023, appendix A ("Training algorithm"). Every mask is first asked for
by a point uniform in it or by its box with noise, then by clicks uniform in what is wrong with the last answer, with
that answer's logits as mask prompt; some rounds bring no new click. The loss is `promptable.sam_loss` of every round.

What differs, because the model is to answer as this package asks: a lone box gets the one mask of a clear prompt (SAM
was trained to give it three). The rounds' losses are averaged (the paper does not say). Batch norms keep their
statistics, since batches are small.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from anysam.catalogue import DEFAULT_VARIANT, VARIANTS, Variant, find_variant
from anysam.checkpoints import load_model
from anysam.datasets import ImageDataset, ImageEntry
from anysam.embeddings import EmbeddingCache
from anysam.encoded_image import EncodedImage
from anysam.errors import OptionError
from anysam.memory import parse_size
from anysam.models import Decoded, MultimaskDefault, PromptableModel
from anysam.preprocess import Preprocess
from anysam.train.augment import recolour
from anysam.train.configs.finetune import FinetuneConfig
from anysam.train.data import open_data
from anysam.train.lora import adapter_state_dict, inject, merged_state_dict
from anysam.train.promptable import (
    DECODING_PARTS,
    Errors,
    PromptExample,
    add_points,
    cell_centres,
    cut,
    encode_images,
    encoding_parts,
    first_prompts,
    noisy_boxes,
    read_example,
    sam_loss,
    sample_errors,
    score_prompts,
)
from anysam.train.task import Loss, ParameterGroup, Step, decayed

# Prompts alone are encoded by the prompt encoder, words come from the text decoder: neither learns with the decoder.
_MASK_DECODERS = ("mask_decoder", "image_decoder", "decoder")

# What decoders take beside image_embeddings, by family.
FINER_FEATURES = {"anysam_lite": ("skip8", "skip4")}

# SAM's limit of a box's noise, pixels of the input frame.
MOST_NOISE = 20.0

# An augmented image's crop has this part of its sides at least, and a mask must keep this part of its area. Ours.
_LEAST_CROP, _LEAST_KEPT = 0.6, 0.3


class KeptFeatures:
    """Features of images by a frozen encoder, computed once: rounded to float16, kept on the CPU, up to `limit` bytes.

    Each image is encoded alone and always rounded, so that no value depends on what is kept. cache: features that were
    computed before, if any.
    """

    def __init__(self, limit: int, cache: EmbeddingCache | None = None) -> None:
        self.limit, self.cache = limit, cache
        self.used = 0
        self.kept: dict[str, dict[str, Tensor]] = {}

    def has(self, name: str) -> bool:
        return name in self.kept or (self.cache is not None and name in self.cache)

    @torch.no_grad()
    def of(self, network: PromptableModel, example: PromptExample, device: torch.device) -> dict[str, Tensor]:
        """Features of one image, leading dimension 1, float32, on the device."""
        name = example.name
        if name in self.kept:
            halves = self.kept[name]
        elif self.cache is not None and name in self.cache:
            halves = {key: value[None] for key, value in self.cache[name].items()}
        else:
            assert example.pixels is not None  # read without pixels only if `has`
            features = network.encode_image(example.pixels[None].to(device))
            halves = {key: value.to("cpu", torch.float16) for key, value in features.items()}
            size = sum(value.nbytes for value in halves.values())
            if self.used + size <= self.limit:
                self.used += size
                self.kept[name] = halves
        return {key: value.to(device, torch.float32) for key, value in halves.items()}


@dataclass(frozen=True, eq=False)
class FinetuneTask:
    """See train.task.Task. network: a PromptableModel, already frozen and injected as `prepared` does it.

    learned, judged: the data sets. features: where the encoder rests and nothing is augmented, else None.
    """

    variant: str
    network: nn.Module
    learned: ImageDataset
    judged: ImageDataset
    config: FinetuneConfig
    features: KeptFeatures | None = None
    encoded: dict[str, EncodedImage] = field(default_factory=dict)  # validation's, where the encoder rests
    better: Literal["higher", "lower"] = "higher"

    def order(self, generator: np.random.Generator) -> np.ndarray:
        return generator.permutation(len(self.learned))

    def read(self, index: int, generator: np.random.Generator) -> PromptExample | None:
        entry, preprocess, most = self.learned[index], self._model(self.network).preprocess, self.config.masks
        if self.config.augment:
            return augmented_example(entry, preprocess, most, generator)
        known = self.features is not None and self.features.has(entry.name)
        return read_example(entry, preprocess, most, generator, with_pixels=not known)

    def collate(self, examples: list[PromptExample]) -> list[PromptExample]:
        return examples

    def loss(self, batch: list[PromptExample], step: Step) -> Loss:
        network = self._model(self.network)
        if self.features is None:
            pixels = [cast(Tensor, example.pixels).to(step.device) for example in batch]
            features = encode_images(network, pixels)
        else:
            features = [self.features.of(network, example, step.device) for example in batch]
            if self.config.what == "lora":  # the decoder's own parameters rest; networks look at these for gradients
                features = [{key: value.requires_grad_() for key, value in each.items()} for each in features]
        asker = Asker(network, "mask" in find_variant(self.variant).prompts, self.config.recompute)
        answers = [learn_masks(asker, own, each, self.config) for own, each in zip(features, batch, strict=True)]
        total = torch.stack([loss for loss, _ in answers]).sum()
        names = {name for _, parts in answers for name in parts}
        parts = {name: [parts[name] for _, parts in answers if name in parts] for name in sorted(names)}
        count = sum(len(example.masks) for example in batch)
        return Loss(total, float(count), {name: float(np.mean(values)) for name, values in parts.items()})

    def prepare(self, step: Step) -> None:
        self.network.eval()  # batch norms keep their statistics

    def groups(self, weight_decay: float) -> list[ParameterGroup]:
        encoders = encoding_parts(self.network)
        return [
            group
            for name, child in self.network.named_children()
            for group in decayed(child, weight_decay, self.config.encoder_rate if name in encoders else 1.0)
        ]

    def validate(self, network: nn.Module) -> dict[str, float]:
        """Mean IoU of boxes and of clicks at the images' own size, see promptable.score_prompts."""
        kept = self.encoded if rests(network) else None
        return score_prompts(network, self.variant, self.judged, self.config.val_masks, kept)

    def weights(self, network: nn.Module) -> dict[str, Tensor]:
        if self.config.what == "lora" and self.config.save == "adapter":
            return adapter_state_dict(network)
        return merged_state_dict(network)

    def _model(self, network: nn.Module) -> PromptableModel:
        return cast(PromptableModel, network)


def rests(network: nn.Module) -> bool:
    """Whether nothing of what encodes the image learns."""
    children = [network.get_submodule(name) for name in encoding_parts(network)]
    return not any(parameter.requires_grad for child in children for parameter in child.parameters())


def prepared(network: nn.Module, config: FinetuneConfig) -> nn.Module:
    """The network, changed in place, with gradients for what is to learn and LoRA's products where they are wanted.

    Raises OptionError for LoRA on a part without attention.
    """
    network.requires_grad_(False)
    decoders = [name for name, _ in network.named_children() if name in _MASK_DECODERS]
    encoders = encoding_parts(network)
    if config.what == "lora":
        parts = {"encoder": encoders, "decoder": decoders, "both": encoders + decoders}[config.lora_parts]
        inject(network, parts, config.lora_rank, config.lora_alpha, config.lora_targets, config.loop.seed)
        return network
    learning = decoders if config.what == "decoder" else [*encoders, *DECODING_PARTS]
    for name, child in network.named_children():
        if name in learning and name != "text_decoder":
            child.requires_grad_(True)
    return network


@dataclass(frozen=True, eq=False)
class Asker:
    """How masks are asked for while a network learns.

    takes_mask: whether the last answer's logits are a prompt of the next round. recompute: decode again for the
    gradients, instead of keeping what is between.
    """

    network: PromptableModel
    takes_mask: bool
    recompute: bool

    def answers(
        self, features: dict[str, Tensor], points: Tensor, labels: Tensor, previous: Tensor | None, several: Tensor
    ) -> list[tuple[Tensor, Decoded]]:
        """Answers for the prompts that get several masks and those that get one: (indices (K,), Decoded) of each.

        points, labels: (P, N, 2) and (P, N). previous: (P, 1, h, w) or None. several: (P,) bool.
        """
        found = []
        for multimask in (True, False):
            chosen = (several == multimask).nonzero()[:, 0]  # (K,)
            if len(chosen):
                mask = previous[chosen] if previous is not None and self.takes_mask else None
                found.append((chosen, self._decode(features, points[chosen], labels[chosen], mask, multimask)))
        return found

    def _decode(
        self, features: dict[str, Tensor], points: Tensor, labels: Tensor, mask: Tensor | None, multimask: bool
    ) -> Decoded:
        if not self.recompute:
            return self.network.decode(features, points, labels, mask, multimask)
        again = checkpoint(
            self.network.decode,
            features,
            points,
            labels,
            mask,
            multimask,
            use_reentrant=False,
            preserve_rng_state=False,
        )
        return cast(Decoded, again)


def learn_masks(
    asker: Asker, features: dict[str, Tensor], example: PromptExample, config: FinetuneConfig
) -> tuple[Tensor, dict[str, float]]:
    """All rounds of one image's P masks: the sum over masks of the mean loss of their rounds, and means for the log."""
    device, preprocess = features["image_embeddings"].device, asker.network.preprocess
    generator = example.generator()
    targets = cut(example.masks, example.valid).to(device)  # (P, rows, columns)
    as_box = boxes_first(len(targets), config.prompts, generator).to(device)
    boxes = noisy_boxes(example.boxes, config.box_noise, MOST_NOISE, example.input_size, generator)
    points, labels = first_prompts(example.points.to(device), boxes.to(device), as_box)
    turns = [True, *correction_turns(config.clicks, config.repeats, generator)]
    previous: Tensor | None = None
    total = targets.new_zeros(())
    parts: dict[str, float] = {}
    for turn, clicked in enumerate(turns):
        if previous is not None and clicked:
            wrong = sample_corrections(cut(previous[:, 0], example.valid) > 0, targets > 0.5, generator)
            centres = cell_centres(wrong.cells, preprocess.low_res_stride)
            points, labels = add_points(points, labels, centres, wrong.labels)
        several = wants_several(asker.network.multimask_default, as_box, turn == 0)
        losses, best = torch.zeros_like(targets[:, 0, 0]), torch.zeros_like(targets[:, 0, 0])  # (P,) both
        logits = example.masks.new_zeros(len(targets), 1, *example.masks.shape[1:], device=device)  # (P, 1, h, w)
        for chosen, decoded in asker.answers(features, points, labels, previous, several):
            seen = decoded._replace(low_res_logits=cut(decoded.low_res_logits, example.valid))
            own, ious = sam_loss(seen, targets[chosen], config.focal_weight)
            losses = losses.index_add(0, chosen, own)
            picked = decoded.iou_predictions.detach().argmax(dim=1)  # (K,)
            rows = torch.arange(len(chosen), device=device)
            best[chosen] = ious[rows, picked]
            logits[chosen, 0] = decoded.low_res_logits.detach()[rows, picked].float()
        total, previous = total + losses.sum() / len(turns), logits
        parts |= _means({f"loss{turn}": losses.detach(), f"iou{turn}": best})
        if turn == 0:
            parts |= _means({"box": best[as_box], "point": best[~as_box]})
    return total, parts


def boxes_first(count: int, prompts: str, generator: torch.Generator) -> Tensor:
    """Which of `count` masks are asked for by their boxes, (count,) bool: each with probability a half for "both"."""
    drawn = torch.rand(count, generator=generator) < 0.5
    return drawn if prompts == "both" else torch.full((count,), prompts == "box")


def correction_turns(clicks: int, repeats: int, generator: torch.Generator) -> list[bool]:
    """The rounds after the first: whether each brings a new click. One repeat is always the last, others anywhere."""
    turns = [True] * clicks
    for _ in range(repeats - 1):
        turns.insert(int(torch.randint(len(turns) + 1, (), generator=generator)), False)
    return turns + [False] * min(repeats, 1)


def wants_several(default: MultimaskDefault, as_box: Tensor, first: bool) -> Tensor:
    """Which prompts (P,) bool get several masks to learn from the best of, as predictions of the model have them.

    A model that always gives one ("never") chooses it among several for clicks.
    """
    if default == "always":
        return torch.ones_like(as_box)
    return ~as_box if first or default == "never" else torch.zeros_like(as_box)


def sample_corrections(predicted: Tensor, target: Tensor, generator: torch.Generator) -> Errors:
    """As sample_errors, with a point in the target for a mask that is perfect; no target (P, h, w) bool is empty."""
    perfect = (predicted == target).flatten(1).all(dim=1)  # (P,)
    return sample_errors(predicted & ~perfect[:, None, None], target, generator)


def augmented_example(
    entry: ImageEntry, preprocess: Preprocess, most: int, generator: np.random.Generator
) -> PromptExample | None:
    """A random crop of an entry, flipped and recoloured; ours (SAM's last training has no augmentation)."""
    image = recolour(entry.read_image(), generator)
    picked = [int(index) for index in generator.permutation(len(entry.masks))[: 2 * most]]
    masks = [entry.decode(index) for index in picked]
    height, width = (round(side * generator.uniform(_LEAST_CROP, 1)) for side in entry.size)
    top, left = (int(generator.integers(n - m + 1)) for n, m in zip(entry.size, (height, width), strict=True))
    step = -1 if generator.random() < 0.5 else 1
    window = (slice(top, top + height), slice(left, left + width))
    crops = [mask[window][:, ::step] for mask in masks]
    kept = [crop for crop, mask in zip(crops, masks, strict=True) if crop.sum() >= max(1, _LEAST_KEPT * mask.sum())]
    if not kept:
        return None
    return read_example(entry, preprocess, most, generator, np.ascontiguousarray(image[window][:, ::step]), kept)


def _means(values: dict[str, Tensor]) -> dict[str, float]:
    return {name: float(value.mean()) for name, value in values.items() if len(value)}


def make_task(config: FinetuneConfig, out: Path | None) -> FinetuneTask:
    """The task of `anysam train finetune`; `out` is not used.

    Raises OptionError for a model that takes no prompts, prompts it does not take, or features of another model.
    """
    network, row, sha256 = load_model(config.model or DEFAULT_VARIANT, config.variant or None)
    check_prompts(row, config)
    network = prepared(network.eval(), config)
    learned, judged = open_data(config.data)
    features = None
    if rests(network) and not config.augment:
        cache = open_cache(config.embeddings, row, sha256) if config.embeddings else None
        features = KeptFeatures(parse_size(config.keep), cache)
    elif config.embeddings:
        raise OptionError("--embeddings is for an encoder that rests, on images that are not augmented; leave it out.")
    return FinetuneTask(row.name, network, learned, judged, config, features)


def open_cache(folder: str, row: Variant, sha256: str) -> EmbeddingCache:
    """Features of `anysam embed`. Raises OptionError for those of other weights, or not all that the decoder takes."""
    cache = EmbeddingCache(folder)
    if cache.facts.get("weights_sha256") != sha256:
        raise OptionError(
            f"The features in {folder} are not of {row.name} with these weights; make them again with `anysam embed`."
        )
    missing = [name for name in FINER_FEATURES.get(row.family, ()) if name not in cache.facts["features"]]
    if missing:
        raise OptionError(
            f"{folder} lacks {', '.join(missing)}, which the decoder of {row.name} takes too; make it again with "
            f"`anysam embed --features {','.join(('image_embeddings', *FINER_FEATURES[row.family]))}`."
        )
    return cache


def check_prompts(row: Variant, config: FinetuneConfig) -> None:
    """Raise OptionError for a model without prompts, or rounds that it cannot be asked."""
    if not {"point", "box"} <= set(row.prompts):
        names = ", ".join(each.name for each in VARIANTS if {"point", "box"} <= set(each.prompts))
        raise OptionError(f"{row.name} finds objects by itself and is not fine-tuned by prompts; models are {names}.")
    if config.repeats and "mask" not in row.prompts:
        raise OptionError(
            f"{row.name} takes no mask prompts, so a round without a new click is no new one; --repeats 0."
        )
    most = None if row.max_points is None else row.max_points - (1 if config.prompts == "point" else 2)
    if most is not None and config.clicks > most:
        raise OptionError(f"{row.name} takes {row.max_points} points, a box is two: at most --clicks {most} here.")
    if min(config.clicks, config.repeats) < 0 or min(config.masks, config.val_masks) < 1:
        raise OptionError("--clicks and --repeats must be at least 0, --masks and --val-masks at least 1.")
