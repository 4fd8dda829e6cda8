"""One step of learning: prompts, masks, corrections, gradients; and a quick validation."""

import math

import numpy as np
import torch
from torch import Tensor

from anysam.datasets import ImageEntry
from anysam.models.anysam_lite import AnySamLite
from anysam.train.augment import Sample, whole_sample
from anysam.train.losses import mask_iou, mask_loss
from anysam.train.prompt_sampling import add_corrections, first_prompts
from anysam.train.recipe import Recipe
from anysam.train.stream import pixels_of


def learn(network: AnySamLite, samples: list[Sample], recipe: Recipe, rounds: int) -> list[dict[str, float]]:
    """Gradients of one step over all images; every mask counts the same. `rounds`: the first prompt plus corrections.

    The images are encoded together. Their features become leaves, so that each image's decoding is back-propagated and
    forgotten at once; the gradients gathered on the leaves then go through the encoder in one pass.
    Returns the losses and IoUs of every image.
    """
    total = sum(len(sample.masks) for sample in samples)
    with torch.autocast("cuda", torch.bfloat16, enabled=recipe.device == "cuda"):
        features = network.encode_image(pixels_of(samples, recipe.device))
    gradients = {name: torch.zeros_like(value) for name, value in features.items()}
    logs = []
    for i, sample in enumerate(samples):
        leaves = {name: value[i : i + 1].detach().requires_grad_(True) for name, value in features.items()}
        logs.append(learn_prompts(network, leaves, sample, recipe, rounds, len(sample.masks) / total))
        for name, leaf in leaves.items():
            if leaf.grad is not None:
                gradients[name][i : i + 1] = leaf.grad
    torch.autograd.backward(list(features.values()), list(gradients.values()))
    return logs


def learn_prompts(
    network: AnySamLite, features: dict[str, Tensor], sample: Sample, recipe: Recipe, rounds: int, share: float
) -> dict[str, float]:
    """Prompt and decode one image's masks, back-propagate, again with correcting clicks; `share` scales the loss."""
    target, boxes, clicks = (torch.from_numpy(v).to(recipe.device) for v in (sample.masks, sample.boxes, sample.clicks))
    as_box = torch.rand(len(target), device=recipe.device) < 0.5
    points, labels = first_prompts(clicks, boxes, as_box, recipe.box_jitter)
    previous: Tensor | None = None
    log: dict[str, float] = {}
    for turn in range(rounds):
        with torch.autocast("cuda", torch.bfloat16, enabled=recipe.device == "cuda"):
            logits, iou_predictions = network.decoder(features, points, labels, previous)
        logits, iou_predictions = logits.float(), iou_predictions.float()
        chosen = prompt_loss(mask_loss(logits, target), as_box, first=turn == 0)
        true_iou = mask_iou(logits.detach(), target)  # (P, 4)
        iou_loss = ((iou_predictions - true_iou) ** 2).sum(dim=1).mean()
        ((chosen.mean() + iou_loss) * share / rounds).backward()
        if turn == 0:
            picked = (iou_predictions[:, 1:].argmax(dim=1) + 1).masked_fill(as_box, 0)
            one = true_iou.gather(1, picked[:, None])[:, 0]
            log |= {"box": _mean(one[as_box]), "click": _mean(one[~as_box])}
        else:
            picked = torch.zeros_like(picked)
        log |= {f"loss{turn}": _mean(chosen.detach()), f"iou{turn}": _mean(true_iou[:, 0])}
        if turn + 1 < rounds:
            previous = logits.detach()[torch.arange(len(picked)), picked][:, None]  # (P, 1, h, w)
            points, labels = add_corrections(points, labels, previous[:, 0], target)
            if torch.rand(()) < recipe.forget_mask:
                previous = None  # several points at once, as a user gives them, without a mask before them
    return log


def prompt_loss(losses: Tensor, as_box: Tensor, first: bool) -> Tensor:
    """Losses of the four masks (P, 4) -> what each prompt learns from (P,).

    An ambiguous first click learns from the best of its three masks; a box, and clicks with a previous mask, from the
    single mask. The other head learns along with less weight, and a little of the mean keeps all three masks alive.
    """
    best_of_three = losses[:, 1:].min(dim=1).values + 0.05 * losses[:, 1:].mean(dim=1)
    single = losses[:, 0]
    if not first:
        return single + 0.25 * best_of_three
    return torch.where(as_box, single + 0.5 * best_of_three, best_of_three + 0.25 * single)


@torch.no_grad()
def validate(
    network: AnySamLite, collection: dict[str, list[ImageEntry]], recipe: Recipe, images: int, masks: int
) -> dict[str, float]:
    """A quick look at low resolution: mean over data sets of box, 1-click (best predicted) and oracle-of-3 IoU.

    (anysam.evaluate.promptable measures properly, at the images' own size.)
    """
    scores: dict[str, list[float]] = {"box": [], "click": [], "oracle": []}
    for own in collection.values():
        sums: dict[str, list[float]] = {name: [] for name in scores}
        for entry in own[:: max(1, len(own) // images)][:images]:
            sample = whole_sample(entry, recipe.long_side, 32, masks, np.random.default_rng(0))
            if len(sample.masks) == 0:
                continue
            features = network.encode_image(pixels_of([sample], recipe.device))
            arrays = (sample.masks, sample.boxes, sample.clicks)
            target, boxes, clicks = (torch.from_numpy(v).to(recipe.device) for v in arrays)
            for as_box in (True, False):
                flags = torch.full((len(target),), as_box, device=recipe.device)
                logits, predicted = network.decoder(features, *first_prompts(clicks, boxes, flags, 0.0), None)
                iou = mask_iou(logits, target)  # (P, 4)
                if as_box:
                    sums["box"] += iou[:, 0].tolist()
                else:
                    sums["click"] += iou[:, 1:].gather(1, predicted[:, 1:].argmax(1, keepdim=True))[:, 0].tolist()
                    sums["oracle"] += iou[:, 1:].max(dim=1).values.tolist()
        for name in scores:
            if sums[name]:
                scores[name].append(float(np.mean(sums[name])))
    return {name: float(np.mean(values)) for name, values in scores.items() if values}


def _mean(values: Tensor) -> float:
    return float(values.mean()) if len(values) else math.nan
