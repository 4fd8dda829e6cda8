"""One step of learning of the built-in model: prompts, masks, corrections; and a quick validation."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from anysam.datasets import ImageDataset
from anysam.errors import ImageError
from anysam.models.anysam_lite import AnySamLite
from anysam.train.augment import Sample, whole_sample
from anysam.train.configs.anysam_lite import AnySamLiteConfig
from anysam.train.losses import mask_iou, mask_loss
from anysam.train.prompt_sampling import add_corrections, first_prompts
from anysam.train.task import Loss, Step


def learn(network: AnySamLite, samples: list[Sample], config: AnySamLiteConfig, rounds: int, step: Step) -> Loss:
    """The loss of one batch: every mask counts the same. `rounds`: the first prompt plus corrections.

    Images of one shape are encoded together, prompts are decoded image by image.
    """
    totals, counts, logs = [], 0, list[dict[str, float]]()
    for shape in sorted({sample.image.shape for sample in samples}):
        own = [sample for sample in samples if sample.image.shape == shape]
        features = network.encode_image(pixels_of(own, step.device))
        for i, sample in enumerate(own):
            one = {name: value[i : i + 1] for name, value in features.items()}
            total, log = learn_prompts(network, one, sample, config, rounds, step)
            totals.append(total)
            counts += len(sample.masks)
            logs.append(log)
    names = sorted({name for log in logs for name in log})
    return Loss(
        torch.stack(totals).sum(), counts, {name: _mean([log.get(name, math.nan) for log in logs]) for name in names}
    )


def learn_prompts(
    network: AnySamLite, features: dict[str, Tensor], sample: Sample, config: AnySamLiteConfig, rounds: int, step: Step
) -> tuple[Tensor, dict[str, float]]:
    """Prompt and decode one image's masks, then again with correcting clicks: their summed losses, a mean of rounds."""
    target, boxes, clicks = (torch.from_numpy(v).to(step.device) for v in (sample.masks, sample.boxes, sample.clicks))
    as_box = (torch.rand(len(target), generator=step.generator) < 0.5).to(step.device)
    points, labels = first_prompts(clicks, boxes, as_box, config.box_jitter, step.generator)
    previous: Tensor | None = None
    losses, log = [], dict[str, float]()
    for turn in range(rounds):
        logits, iou_predictions = network.decoder(features, points, labels, previous)
        logits, iou_predictions = logits.float(), iou_predictions.float()
        chosen = prompt_loss(mask_loss(logits, target), as_box, first=turn == 0)
        true_iou = mask_iou(logits.detach(), target)  # (P, 4)
        iou_error = ((iou_predictions - true_iou) ** 2).sum(dim=1)  # (P,)
        losses.append((chosen + config.iou_weight * iou_error).sum())
        if turn == 0:
            picked = (iou_predictions[:, 1:].argmax(dim=1) + 1).masked_fill(as_box, 0)
            one = true_iou.gather(1, picked[:, None])[:, 0]
            log |= {"box": _mean(one[as_box].tolist()), "click": _mean(one[~as_box].tolist())}
        else:
            picked = torch.zeros_like(picked)
        log |= {f"loss{turn}": _mean(chosen.tolist()), f"iou{turn}": _mean(true_iou[:, 0].tolist())}
        if turn + 1 < rounds:
            previous = logits.detach()[torch.arange(len(picked)), picked][:, None]  # (P, 1, h, w)
            points, labels = add_corrections(points, labels, previous[:, 0], target, step.generator, config.centred)
            if torch.rand((), generator=step.generator) < config.forget_mask:
                previous = None  # several points at once, as a user gives them, without a mask before them
    return torch.stack(losses).mean(), log


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
    network: AnySamLite, sets: Sequence[ImageDataset], long_side: int, images: int = 5, masks: int = 4
) -> dict[str, float]:
    """A quick look at low resolution at `images` images of each data set, at most `masks` of each: means over data sets
    of box, 1-click (best predicted) and oracle-of-3 IoU. "score", the judge, is the mean of box and 1 click.

    (`anysam eval` measures properly, at the images' own size.)
    """
    frame, network.decoder.frame = network.decoder.frame, long_side
    device = network.neck.norm16.weight.device
    scores: dict[str, list[float]] = {"box": [], "click": [], "oracle": []}
    for own in sets:
        sums: dict[str, list[float]] = {name: [] for name in scores}
        for index in range(0, len(own), max(1, len(own) // images))[:images]:
            try:
                sample = whole_sample(own[index], long_side, 32, masks, np.random.default_rng(0))
            except ImageError:  # the loop counts and lists broken images; here they are left out
                continue
            if len(sample.masks):
                for name, values in quick_scores(network, sample, device).items():
                    sums[name] += values
        for name, values in sums.items():
            if values:
                scores[name].append(float(np.mean(values)))
    network.decoder.frame = frame
    means = {name: float(np.mean(values)) for name, values in scores.items() if values}
    return {"score": (means["box"] + means["click"]) / 2} | means if means else {}


def quick_scores(network: AnySamLite, sample: Sample, device: torch.device) -> dict[str, list[float]]:
    """IoU at stride 4 of every mask of a whole image: by its box, by its click, and the best of the click's three."""
    features = network.encode_image(pixels_of([sample], device))
    target, boxes, clicks = (torch.from_numpy(v).to(device) for v in (sample.masks, sample.boxes, sample.clicks))
    still = torch.Generator()  # without jitter nothing is drawn
    ious = []
    for as_box in (True, False):
        flags = torch.full((len(target),), as_box, device=device)
        logits, predicted = network.decoder(features, *first_prompts(clicks, boxes, flags, 0.0, still), None)
        ious.append(mask_iou(logits, target))  # (P, 4)
    by_box, by_click = ious
    chosen = predicted[:, 1:].argmax(dim=1, keepdim=True)  # (P, 1)
    return {
        "box": by_box[:, 0].tolist(),
        "click": by_click[:, 1:].gather(1, chosen)[:, 0].tolist(),
        "oracle": by_click[:, 1:].max(dim=1).values.tolist(),
    }


def pixels_of(samples: list[Sample], device: torch.device) -> Tensor:
    """Normalised images of one shape: (B, 3, H, W) float32."""
    batch = torch.from_numpy(np.stack([s.image for s in samples])).to(device).permute(0, 3, 1, 2)  # (B, 3, H, W)
    preprocess = AnySamLite.preprocess
    mean, std = (torch.tensor(v, device=device)[:, None, None] for v in (preprocess.mean, preprocess.std))
    return (batch - mean) / std


def _mean(values: list[float]) -> float:
    finite = [value for value in values if not math.isnan(value)]
    return sum(finite) / len(finite) if finite else math.nan
