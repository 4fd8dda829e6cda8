"""Train the built-in model: `python -m anysam.train.anysam_lite --data DIR --out DIR` (docs/training.md has the story).

SAM's recipe (paper, appendix A) on a small scale: every mask is prompted by a click or a jittered box, then by clicks
on its errors with its previous logits; focal x 20 + dice on the best of three masks, squared error on the predicted
IoU. The schedule follows the clock, so that a run fits a machine. A run resumes from its last checkpoint. Several
processes (torchrun) average their gradients; on a CPU one process a core is faster than one with several threads.
"""

import argparse
import copy
import json
import math
import os
import time
from dataclasses import asdict, fields
from pathlib import Path

import numpy as np
import torch
from torch import distributed, nn

from anysam.datasets import read_collection
from anysam.models.anysam_lite import AnySamLite, build
from anysam.train.imagenet_backbone import read_imagenet_backbone
from anysam.train.learning import learn, validate
from anysam.train.recipe import Recipe
from anysam.train.stream import Batches, stream

CHECKPOINT, LOG = "checkpoint.pt", "log.jsonl"


class Run:
    """The state of a run that a checkpoint holds: network, its moving average, optimiser, steps and seconds so far."""

    def __init__(self, recipe: Recipe, backbone: dict[str, torch.Tensor]) -> None:
        self.recipe = recipe
        torch.manual_seed(recipe.seed)
        self.network = build("lite")
        self.network.backbone.load_state_dict(backbone)
        self.network.decoder.frame = recipe.long_side  # the position code spans the long side, here as at inference
        if recipe.init:
            self.network.load_state_dict(torch.load(recipe.init, weights_only=True, map_location="cpu")["ema"])
        self.network.to(recipe.device)
        self.ema = copy.deepcopy(self.network).requires_grad_(False)
        self.optimizer = build_optimizer(self.network, recipe)
        self.step, self.seconds = 0, 0.0

    @property
    def progress(self) -> float:
        """How much of the recipe's steps or time is over, from 0 to 1."""
        if self.recipe.steps:
            return min(1.0, self.step / self.recipe.steps)
        return min(1.0, self.seconds / (self.recipe.minutes * 60))

    def save(self, path: Path) -> None:
        """Atomic: a killed run leaves the previous checkpoint whole."""
        state = {
            "network": self.network.state_dict(),
            "ema": self.ema.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "seconds": self.seconds,
        }
        torch.save(state, path.with_suffix(".tmp"))
        os.replace(path.with_suffix(".tmp"), path)

    def restore(self, path: Path) -> None:
        """Go on from a checkpoint of the same recipe."""
        state = torch.load(path, map_location=self.recipe.device, weights_only=True)
        self.network.load_state_dict(state["network"])
        self.ema.load_state_dict(state["ema"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.seconds = state["step"], state["seconds"]

    def update(self) -> None:
        """One step of the optimiser with the gradients that are there, averaged over processes; then the average."""
        learned = [p for p in self.network.parameters() if p.grad is not None]
        if distributed.is_initialized():
            share_gradients(learned)
        nn.utils.clip_grad_norm_(learned, self.recipe.clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        # the average forgets the random start quickly
        decay = min(self.recipe.ema, (self.step + 1) / (self.step + 10))
        with torch.no_grad():
            for mine, theirs in zip(self.ema.parameters(), self.network.parameters(), strict=True):
                mine.lerp_(theirs, 1 - decay)


def build_optimizer(network: AnySamLite, recipe: Recipe) -> torch.optim.Optimizer:
    """AdamW: the learning stages of the backbone at a lower rate, no decay on vectors."""
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in network.named_parameters():
        backbone = name.startswith("backbone.")
        if backbone and not backbone_learns(name, recipe):
            parameter.requires_grad_(False)
            continue
        rate = recipe.backbone_rate if backbone else 1.0
        decay = recipe.weight_decay if parameter.ndim > 1 and not backbone else 0.0
        groups.setdefault((rate, decay), []).append(parameter)
    options = [{"params": own, "weight_decay": decay, "scale": rate} for (rate, decay), own in groups.items()]
    return torch.optim.AdamW(options, lr=recipe.learning_rate, betas=(0.9, 0.98))


def backbone_learns(name: str, recipe: Recipe) -> bool:
    """Whether the parameter `backbone.stages.<i>...` belongs to a stage that the recipe trains."""
    parts = name.split(".")
    return parts[1] == "stages" and int(parts[2]) >= recipe.train_backbone_from


def wake_backbone(network: AnySamLite, recipe: Recipe, progress: float) -> None:
    """Gradients for the learning stages of the backbone once the decoder has settled; none before: it saves time."""
    awake = progress >= recipe.freeze_backbone_part
    for name, parameter in network.backbone.named_parameters():
        parameter.requires_grad_(awake and backbone_learns(f"backbone.{name}", recipe))


def set_rate(run: Run) -> float:
    """Warm-up by steps, then a cosine over the run down to a hundredth."""
    rate = run.recipe.learning_rate * min(1.0, (run.step + 1) / run.recipe.warmup_steps)
    rate *= 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * run.progress))
    for group in run.optimizer.param_groups:
        group["lr"] = rate * group["scale"]
    return rate


def share_gradients(parameters: list[nn.Parameter]) -> None:
    """Average the gradients of all processes, in one flat message."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([g.flatten() for g in gradients])
    distributed.all_reduce(flat)
    flat /= distributed.get_world_size()
    for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))


def train(recipe: Recipe, backbone: dict[str, torch.Tensor]) -> None:
    """Run the recipe, or go on where its folder left off. `backbone`: state dict to start the backbone from."""
    world, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    if world > 1 and not distributed.is_initialized():
        distributed.init_process_group("nccl" if recipe.device == "cuda" else "gloo")
    out = Path(recipe.out)
    out.mkdir(parents=True, exist_ok=True)
    run = Run(recipe, backbone)
    if (out / CHECKPOINT).exists():
        run.restore(out / CHECKPOINT)
    torch.manual_seed(recipe.seed + run.step + 1_000_003 * rank)
    plan = np.random.default_rng([recipe.seed, run.step])  # the same in every process
    final = torch.zeros(1, dtype=torch.bool).share_memory_()
    collection = read_collection(Path(recipe.data), "train")
    batches = stream(Batches(recipe, collection, final, [recipe.seed, run.step, rank]), recipe.workers)
    (out / "recipe.json").write_text(json.dumps(asdict(recipe), indent=1) + "\n")
    report = Report(out, recipe) if rank == 0 else None
    clock = time.monotonic() - run.seconds
    while run.progress < 1:
        final[0] = run.progress > 1 - recipe.final_part
        wake_backbone(run.network, recipe, run.progress)
        rate = set_rate(run)
        logs = learn(run.network, next(batches), recipe, 1 + int(plan.choice(len(recipe.rounds), p=recipe.rounds)))
        run.update()
        run.seconds = agreed(time.monotonic() - clock)
        if report:
            report.after_step(run, rate, logs)
    if report:
        report.save(run)
        report.validate(run)


def agreed(value: float) -> float:
    """Process 0's value in every process, so that all keep one schedule."""
    if not distributed.is_initialized():
        return value
    shared = torch.tensor([value], dtype=torch.float64)
    distributed.broadcast(shared, 0)
    return float(shared)


class Report:
    """Log lines, checkpoints and validation at their intervals."""

    def __init__(self, out: Path, recipe: Recipe) -> None:
        self.out, self.recipe = out, recipe
        self.collection = read_collection(Path(recipe.data), "val")
        self.logs: list[dict[str, float]] = []
        self.saved = self.validated = -1.0

    def after_step(self, run: Run, rate: float, logs: list[dict[str, float]]) -> None:
        self.logs += logs
        minutes = run.seconds / 60
        if run.step % 25 == 0:
            names = sorted({name for entry in self.logs for name in entry})
            means = {name: _nanmean([entry[name] for entry in self.logs if name in entry]) for name in names}
            self.write({"step": run.step, "minutes": round(minutes, 2), "rate": rate, **means})
            self.logs = []
        # both intervals count from the first step of this process, also in a resumed run
        self.saved, self.validated = (minutes if v < 0 else v for v in (self.saved, self.validated))
        if minutes - self.saved >= self.recipe.save_minutes:
            self.saved = minutes
            self.save(run)
        if minutes - self.validated >= self.recipe.validate_minutes:
            self.validated = minutes
            self.validate(run)

    def save(self, run: Run) -> None:
        run.save(self.out / CHECKPOINT)

    def validate(self, run: Run) -> None:
        scores = validate(run.ema, self.collection, self.recipe, images=5, masks=4)
        self.write({"step": run.step, "minutes": round(run.seconds / 60, 2), "val": scores})

    def write(self, line: dict[str, object]) -> None:
        with (self.out / LOG).open("a") as file:
            file.write(json.dumps(line) + "\n")


def _nanmean(values: list[float]) -> float:
    finite = [v for v in values if not math.isnan(v)]
    return round(sum(finite) / len(finite), 4) if finite else math.nan


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder of COCO-style folders (images/, annotations.json)")
    parser.add_argument("--out", required=True, help="where checkpoints and the log go; an existing run is resumed")
    for field in fields(Recipe):
        if isinstance(field.default, (int, float, str)):
            name = f"--{field.name.replace('_', '-')}"
            parser.add_argument(name, type=type(field.default), default=field.default, help="default: %(default)r")
    train(Recipe(**vars(parser.parse_args())), read_imagenet_backbone())


if __name__ == "__main__":
    main()
