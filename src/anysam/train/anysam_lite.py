"""Recipe of the built-in model. Run `python -m anysam.train.anysam_lite --help`; docs/training.md tells what came of it.

SAM's recipe (paper, appendix A) on a small scale: every mask is prompted by a click or a jittered box, then by clicks on its
errors with its previous logits; focal x 20 + dice on the best of three masks, squared error on the predicted IoU. The
optimiser's schedule follows elapsed time, so that a run fits a machine; a run resumes from its last checkpoint.
"""

import argparse
import copy
import json
import math
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TextIO

import cv2
import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from anysam.datasets import ImageEntry, read_collection
from anysam.models.anysam_lite import AnySamLite, build
from anysam.train.augment import Sample, training_sample, whole_sample
from anysam.train.imagenet_backbone import read_imagenet_backbone
from anysam.train.losses import mask_iou, mask_loss
from anysam.train.prompt_sampling import add_corrections, first_prompts

MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)

# How often each data set is drawn. coco_mini and bsds500 are the diverse ones; small, uniform sets are soon exhausted.
WEIGHTS = {
    "coco_mini": 0.20,
    "bsds500": 0.19,
    "ccp_clothing": 0.12,
    "car_parts": 0.10,
    "camvid": 0.09,
    "facades": 0.08,
    "bbbc038": 0.08,
    "isbi_em": 0.05,
    "coelho_nuclei": 0.05,
    "cwfid": 0.04,
}


@dataclass(frozen=True)
class Recipe:
    """Everything that shapes a run. Sizes in pixels of the network's input, which has its long side at `long_side`."""

    data: str
    out: str
    minutes: float = 100.0
    long_side: int = 512
    shapes: tuple[tuple[int, int], ...] = ((320, 320), (288, 384), (384, 288))
    final_shapes: tuple[tuple[int, int], ...] = ((384, 512), (512, 384), (448, 448))
    final_part: float = 0.3
    max_images: int = 3
    masks_per_step: int = 14
    masks_per_image: int = 16
    learning_rate: float = 8e-4
    backbone_rate: float = 0.1
    train_backbone_from: int = 3
    freeze_backbone_part: float = 0.2
    weight_decay: float = 0.02
    warmup_steps: int = 100
    rounds: tuple[float, ...] = (0.5, 0.35, 0.15)
    clip: float = 1.0
    ema: float = 0.998
    box_jitter: float = 0.06
    seed: int = 0
    device: str = "cpu"
    workers: int = 1
    save_minutes: float = 4.0
    validate_minutes: float = 12.0
    init: str = ""


class Batches(IterableDataset):
    """An endless stream of (shape, samples of that shape); `shared` switches to the final shapes."""

    def __init__(self, recipe: Recipe, entries: dict[str, list[ImageEntry]], final: Tensor, start: int, rank: int) -> None:
        super().__init__()
        self.recipe, self.entries, self.final = recipe, entries, final
        self.start, self.rank = start, rank

    def __iter__(self) -> Iterator[list[Sample]]:
        info = torch.utils.data.get_worker_info()
        cv2.setNumThreads(1)
        rng = np.random.default_rng([self.recipe.seed, self.start, self.rank, info.id if info else 0])
        names = [name for name in WEIGHTS if self.entries.get(name)]
        p = np.asarray([WEIGHTS[name] for name in names])
        while True:
            shapes = self.recipe.final_shapes if self.final.item() else self.recipe.shapes
            shape = shapes[rng.integers(len(shapes))]
            samples: list[Sample] = []
            # images with few masks come in company, so that every step (and every process) has about the same work
            while len(samples) < self.recipe.max_images and sum(len(s.masks) for s in samples) < self.recipe.masks_per_step:
                own = self.entries[names[rng.choice(len(names), p=p / p.sum())]]
                entry = own[rng.integers(len(own))]
                sample = training_sample(entry, shape, self.recipe.long_side, self.recipe.masks_per_image, rng)
                if sample is not None:
                    samples.append(sample)
            yield samples


def pixels_of(samples: list[Sample], device: str) -> Tensor:
    """Normalised images of one shape: (B, 3, H, W), channels last in memory, which CPU convolutions prefer."""
    batch = torch.from_numpy(np.stack([s.image for s in samples])).to(device).permute(0, 3, 1, 2)  # (B, 3, H, W)
    mean, std = (torch.tensor(v, device=device)[:, None, None] for v in (MEAN, STD))
    return ((batch - mean) / std).contiguous(memory_format=torch.channels_last)


def decode_and_learn(
    network: AnySamLite, features: dict[str, Tensor], sample: Sample, recipe: Recipe, rounds: int, share: float
) -> dict:
    """Prompt, decode and back-propagate one image's masks, then again with correction clicks; gradients accumulate.

    `features` are leaves: their gradients are handed to the encoder once, after all images. `share` scales the loss.
    """
    device = recipe.device
    target = torch.from_numpy(sample.masks).to(device)
    boxes, clicks = torch.from_numpy(sample.boxes).to(device), torch.from_numpy(sample.clicks).to(device)
    as_box = torch.rand(len(target), device=device) < 0.5
    points, labels = first_prompts(clicks, boxes, as_box, recipe.box_jitter)
    previous, log = None, {}
    for turn in range(rounds):
        with torch.autocast("cuda", torch.bfloat16, enabled=device == "cuda"):
            logits, iou_predictions = network.decoder(features, points, labels, previous)
        logits = logits.float()
        losses = mask_loss(logits, target)  # (P, 4)
        best_of_three = losses[:, 1:].min(dim=1).values + 0.05 * losses[:, 1:].mean(dim=1)
        if turn == 0:
            chosen = torch.where(as_box, losses[:, 0] + 0.5 * best_of_three, best_of_three + 0.25 * losses[:, 0])
        else:
            chosen = losses[:, 0] + 0.25 * best_of_three
        true_iou = mask_iou(logits.detach(), target)
        loss = (chosen.mean() + functional_mse(iou_predictions.float(), true_iou)) * share / rounds
        loss.backward()
        log[f"loss{turn}"] = float(chosen.mean().detach())
        if turn == 0:
            picked = (iou_predictions[:, 1:].argmax(dim=1) + 1).masked_fill(as_box, 0)
            log["box"] = float(true_iou[as_box, 0].mean()) if as_box.any() else math.nan
            one = true_iou.gather(1, picked[:, None])[:, 0]
            log["click"] = float(one[~as_box].mean()) if (~as_box).any() else math.nan
        else:
            picked = torch.zeros_like(labels[:, 0])
            log[f"fix{turn}"] = float(true_iou[:, 0].mean())
        if turn + 1 < rounds:
            previous = logits.detach()[torch.arange(len(picked)), picked][:, None]  # (P, 1, h, w)
            points, labels = add_corrections(points, labels, previous[:, 0], target)
    return log


def functional_mse(predictions: Tensor, targets: Tensor) -> Tensor:
    return ((predictions - targets) ** 2).sum(dim=1).mean()


def learn(network: AnySamLite, samples: list[Sample], recipe: Recipe, rounds: int) -> list[dict]:
    """One step's gradients over all images and prompts; every mask counts the same. `rounds`: the first prompt and corrections."""
    total = sum(len(sample.masks) for sample in samples)
    with torch.autocast("cuda", torch.bfloat16, enabled=recipe.device == "cuda"):
        features = network.encode_image(pixels_of(samples, recipe.device))
    logs, gradients = [], {name: torch.zeros_like(value) for name, value in features.items()}
    for i, sample in enumerate(samples):
        leaves = {name: value[i : i + 1].detach().requires_grad_(True) for name, value in features.items()}
        logs.append(decode_and_learn(network, leaves, sample, recipe, rounds, len(sample.masks) / total))
        for name, leaf in leaves.items():
            gradients[name][i : i + 1] = leaf.grad
    torch.autograd.backward(list(features.values()), list(gradients.values()))
    return logs


def build_optimizer(network: AnySamLite, recipe: Recipe) -> torch.optim.Optimizer:
    """AdamW: the trained stages of the backbone at a lower rate, no decay on vectors."""
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in network.named_parameters():
        backbone = name.startswith("backbone.")
        if backbone and not _backbone_trains(name, recipe.train_backbone_from):
            parameter.requires_grad_(False)
            continue
        rate = recipe.backbone_rate if backbone else 1.0
        decay = recipe.weight_decay if parameter.ndim > 1 and not backbone else 0.0
        groups.setdefault((rate, decay), []).append(parameter)
    return torch.optim.AdamW(
        [{"params": own, "weight_decay": decay, "scale": rate} for (rate, decay), own in groups.items()],
        lr=recipe.learning_rate,
        betas=(0.9, 0.98),
    )


def _backbone_trains(name: str, first_stage: int) -> bool:
    parts = name.split(".")
    return parts[1] == "stages" and int(parts[2]) >= first_stage


def wake_backbone(network: AnySamLite, recipe: Recipe, progress: float) -> None:
    """Gradients for the trained stages of the backbone once the decoder has settled; none before, which saves time."""
    awake = progress >= recipe.freeze_backbone_part
    for name, parameter in network.backbone.named_parameters():
        parameter.requires_grad_(awake and _backbone_trains(f"backbone.{name}", recipe.train_backbone_from))


def set_rate(optimizer: torch.optim.Optimizer, recipe: Recipe, step: int, progress: float) -> float:
    """Warm-up by steps, then a cosine over the run."""
    rate = recipe.learning_rate * min(1.0, (step + 1) / recipe.warmup_steps)
    rate *= 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    for group in optimizer.param_groups:
        group["lr"] = rate * group["scale"]
    return rate


@torch.no_grad()
def validate(network: AnySamLite, entries: dict[str, list[ImageEntry]], recipe: Recipe, images: int, masks: int) -> dict:
    """A quick look at stride 4: mean over data sets of box, 1-click (best predicted) and oracle-of-3 IoU."""
    scores: dict[str, list[float]] = {"box": [], "click": [], "oracle": []}
    for own in entries.values():
        sums: dict[str, list[float]] = {name: [] for name in scores}
        for entry in own[:: max(1, len(own) // images)][:images]:
            sample = whole_sample(entry, recipe.long_side, 32, masks, np.random.default_rng(0))
            if len(sample.masks) == 0:
                continue
            features = network.encode_image(pixels_of([sample], recipe.device))
            target = torch.from_numpy(sample.masks).to(recipe.device)
            clicks, boxes = (torch.from_numpy(v).to(recipe.device) for v in (sample.clicks, sample.boxes))
            for as_box in (True, False):
                flags = torch.full((len(target),), as_box, device=recipe.device)
                logits, predictions = network.decoder(features, *first_prompts(clicks, boxes, flags, 0.0), None)
                iou = mask_iou(logits, target)
                if as_box:
                    sums["box"] += iou[:, 0].tolist()
                else:
                    sums["click"] += iou[:, 1:].gather(1, predictions[:, 1:].argmax(1, keepdim=True))[:, 0].tolist()
                    sums["oracle"] += iou[:, 1:].max(dim=1).values.tolist()
        for name in scores:
            scores[name].append(float(np.mean(sums[name])))
    return {name: float(np.mean(values)) for name, values in scores.items()}


def share_gradients(parameters: list[nn.Parameter]) -> None:
    """Average the gradients of all processes (torchrun); one flat message."""
    flat = torch.cat([p.grad.flatten() for p in parameters])
    torch.distributed.all_reduce(flat)
    flat /= torch.distributed.get_world_size()
    for parameter, part in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
        parameter.grad.copy_(part.view_as(parameter))


def save(path: Path, state: dict) -> None:
    """Atomic: a killed run leaves the previous checkpoint whole."""
    torch.save(state, path.with_suffix(".tmp"))
    os.replace(path.with_suffix(".tmp"), path)


def train(recipe: Recipe) -> None:
    """Run the recipe, or go on where its folder left off. Under torchrun every process takes its own images."""
    world, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    if world > 1:
        torch.distributed.init_process_group("nccl" if recipe.device == "cuda" else "gloo")
    out = Path(recipe.out)
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(recipe.seed)
    network = build("lite")
    network.backbone.load_state_dict(read_imagenet_backbone())
    if recipe.init:
        network.load_state_dict(torch.load(recipe.init, weights_only=True)["ema"])
    network.to(recipe.device, memory_format=torch.channels_last)
    ema = copy.deepcopy(network).requires_grad_(False)
    optimizer = build_optimizer(network, recipe)
    step, elapsed = 0, 0.0
    checkpoint = out / "checkpoint.pt"
    if checkpoint.exists():
        state = torch.load(checkpoint, map_location=recipe.device, weights_only=True)
        network.load_state_dict(state["network"])
        ema.load_state_dict(state["ema"])
        optimizer.load_state_dict(state["optimizer"])
        step, elapsed = state["step"], state["elapsed"]
    torch.manual_seed(recipe.seed + step + 1_000_003 * rank)
    plan = np.random.default_rng([recipe.seed, step])  # the same in every process
    final = torch.zeros(1, dtype=torch.bool).share_memory_()
    batches = Batches(recipe, read_collection(Path(recipe.data), "train"), final, step, rank)
    loader = iter(DataLoader(batches, batch_size=None, num_workers=recipe.workers, prefetch_factor=4 if recipe.workers else None))
    val = read_collection(Path(recipe.data), "val")
    (out / "recipe.json").write_text(json.dumps(asdict(recipe), indent=1))
    log = (out / "log.jsonl").open("a")
    logs: list[dict] = []
    last, saved, validated = time.monotonic(), elapsed, elapsed
    while True:
        progress = elapsed / (recipe.minutes * 60)
        if world > 1:  # one clock for all
            progress = broadcast(progress)
        final[0] = progress > 1 - recipe.final_part
        wake_backbone(network, recipe, progress)
        if progress >= 1:
            break
        rate = set_rate(optimizer, recipe, step, progress)
        rounds = 1 + int(plan.choice(3, p=recipe.rounds))
        logs += learn(network, next(loader), recipe, rounds)
        learned = [p for p in network.parameters() if p.grad is not None]
        if world > 1:
            share_gradients(learned)
        torch.nn.utils.clip_grad_norm_(learned, recipe.clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        step += 1
        decay = min(recipe.ema, (step + 1) / (step + 10))
        with torch.no_grad():
            for mine, theirs in zip(ema.parameters(), network.parameters(), strict=True):
                mine.lerp_(theirs, 1 - decay)
        now = time.monotonic()
        elapsed, last = elapsed + now - last, now
        if rank:
            continue
        if step % 25 == 0:
            means = {k: round(float(np.nanmean([entry.get(k, np.nan) for entry in logs])), 4) for k in logs[0] | logs[-1]}
            log.write(json.dumps({"step": step, "minutes": round(elapsed / 60, 2), "rate": round(rate, 7), **means}) + "\n")
            log.flush()
            logs = []
        if elapsed - saved > recipe.save_minutes * 60:
            saved = elapsed
            save(checkpoint, snapshot(network, ema, optimizer, step, elapsed))
        if elapsed - validated > recipe.validate_minutes * 60:
            validated = elapsed
            write_scores(log, ema, val, recipe, step, elapsed)
    if rank == 0:
        save(checkpoint, snapshot(network, ema, optimizer, step, elapsed))
        write_scores(log, ema, val, recipe, step, elapsed)


def broadcast(value: float) -> float:
    """Process 0's value in every process."""
    shared = torch.tensor([value], dtype=torch.float64)
    torch.distributed.broadcast(shared, 0)
    return float(shared)


def snapshot(network: nn.Module, ema: nn.Module, optimizer: torch.optim.Optimizer, step: int, elapsed: float) -> dict:
    """What a resumed run needs."""
    states = {"network": network.state_dict(), "ema": ema.state_dict(), "optimizer": optimizer.state_dict()}
    return states | {"step": step, "elapsed": elapsed}


def write_scores(
    log: TextIO, ema: AnySamLite, val: dict[str, list[ImageEntry]], recipe: Recipe, step: int, elapsed: float
) -> None:
    """One line of validation scores in the log."""
    scores = validate(ema, val, recipe, images=5, masks=4)
    log.write(json.dumps({"step": step, "minutes": round(elapsed / 60, 2), "val": scores}) + "\n")
    log.flush()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder of COCO-style folders (images/, annotations.json)")
    parser.add_argument("--out", required=True, help="where checkpoints and the log go; an existing run is resumed")
    for name in ("minutes", "learning_rate", "backbone_rate", "ema", "save_minutes", "validate_minutes", "freeze_backbone_part"):
        parser.add_argument(f"--{name.replace('_', '-')}", type=float, default=getattr(Recipe, name))
    for name in ("max_images", "masks_per_step", "masks_per_image", "seed", "workers", "train_backbone_from", "warmup_steps"):
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=getattr(Recipe, name))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--init", default="", help="checkpoint of an earlier run to start from")
    arguments = parser.parse_args()
    train(Recipe(**vars(arguments)))


if __name__ == "__main__":
    main()
