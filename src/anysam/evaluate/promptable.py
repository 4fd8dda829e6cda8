"""How well prompts give the masks that people drew: 1 click, 3 clicks, a box; beside two baselines, in one run.

python -m anysam.evaluate.promptable --data DIR [--split val] [--model NAME] [--masks 4] [--json FILE] [--jobs 2]

Protocol. Of every image up to `masks` annotations of at least 16 pixels are drawn with a fixed seed. For each:
- 1-click: the centre-most point; of three masks the one with the highest predicted IoU (oracle-of-3: the best one);
- 3-click: the same first click, then twice the centre-most point of the largest error, with all clicks so far and the
  previous logits as prompt, one mask;
- box: the tight box, one mask;
- the baselines: the box itself as mask, and OpenCV's GrabCut from the same box, 5 iterations.
Scores are IoU with the annotation at the image's own size, averaged over a data set's masks; "mean" averages data sets.
"""

import argparse
import json
import os
import sys
import time
import zlib
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch

from anysam.datasets import ImageEntry, read_collection
from anysam.images import read_image
from anysam.masks import mask_iou, mask_to_box
from anysam.metrics import centre_most_point, correcting_point, grabcut_mask
from anysam.outputs import write_atomic
from anysam.predictor import EncodedImage, Model, load
from anysam.prompts import Prompt

MIN_AREA = 16
SCORES = ("one_click", "oracle_of_3", "three_clicks", "box", "box_as_mask", "grabcut")


def chosen_masks(entry: ImageEntry, count: int) -> list[np.ndarray]:
    """Up to `count` masks (H, W) bool of at least MIN_AREA pixels, the same ones in every run."""
    rng = np.random.default_rng(zlib.crc32(f"{entry.dataset}/{entry.path.name}".encode()))
    large = [i for i, area in enumerate(entry.areas) if area >= MIN_AREA]
    picked = rng.permutation(len(large))[:count]
    return [entry.decode(large[i]).astype(bool) for i in picked]


def tight_box(target: np.ndarray) -> np.ndarray:
    """The box (4,) xyxy of a non-empty mask."""
    box = mask_to_box(target)
    if box is None:
        raise ValueError("an empty mask has no box; chosen_masks gives none")
    return box


def score_image(model: Model, image: np.ndarray, targets: list[np.ndarray]) -> dict[str, list[float]]:
    """IoU of every target by every way of prompting (the names of SCORES but the baselines)."""
    encoded = model.encode(image)
    boxes = [tight_box(target) for target in targets]
    clicks = [np.array([centre_most_point(target)]) for target in targets]  # (1, 2) each
    by_box = model.predict(encoded, [Prompt(box=box) for box in boxes], multimask=False)
    by_click = model.predict(encoded, [Prompt(points=click) for click in clicks], multimask=True)
    scores: dict[str, list[float]] = {name: [] for name in SCORES[:4]}
    for target, click, boxed, clicked in zip(targets, clicks, by_box, by_click, strict=True):
        ious = [mask_iou(mask, target) for mask in clicked.masks]
        scores["one_click"].append(ious[clicked.best])
        scores["oracle_of_3"].append(max(ious))
        scores["box"].append(mask_iou(boxed.masks[0], target))
        first = clicked.masks[clicked.best], clicked.low_res_logits[clicked.best]
        scores["three_clicks"].append(three_clicks(model, encoded, target, click, *first))
    return scores


def three_clicks(
    model: Model,
    encoded: EncodedImage,
    target: np.ndarray,
    click: np.ndarray,
    mask: np.ndarray,
    logits: np.ndarray,
) -> float:
    """IoU after two more clicks on the first click's mask (H, W) and low_res_logits (h, w). click: (1, 2), x y."""
    points, labels = click, np.array([1])
    for _ in range(2):
        correction = correcting_point(mask, target)
        if correction is None:
            break
        points, labels = np.vstack([points, correction[0]]), np.append(labels, correction[1])
        prompt = Prompt(points=points, labels=labels, low_res_logits=logits)
        prediction = model.predict(encoded, prompt, multimask=False)
        mask, logits = prediction.masks[0], prediction.low_res_logits[0]
    return mask_iou(mask, target)


def score_baselines(image: np.ndarray, targets: list[np.ndarray]) -> dict[str, list[float]]:
    """IoU of the box itself and of GrabCut."""
    scores: dict[str, list[float]] = {"box_as_mask": [], "grabcut": []}
    for target in targets:
        box = tight_box(target)
        filled = np.zeros_like(target)
        x0, y0, x1, y1 = (int(v) for v in box)
        filled[y0:y1, x0:x1] = True
        scores["box_as_mask"].append(mask_iou(filled, target))
        scores["grabcut"].append(mask_iou(grabcut_mask(image, box), target))
    return scores


def score_entries(model: Model, entries: list[ImageEntry], masks: int, baselines: bool) -> dict[str, list[float]]:
    """All scores of some images of one data set, by name."""
    sums: dict[str, list[float]] = {}
    for entry in entries:
        targets = chosen_masks(entry, masks)
        if not targets:
            continue
        image = read_image(entry.path)
        scores = score_image(model, image, targets)
        if baselines:
            scores |= score_baselines(image, targets)
        for key, values in scores.items():
            sums.setdefault(key, []).extend(values)
    return sums


@dataclass(frozen=True)
class Part:
    """Some images of one data set, for a process of its own, which loads the model itself."""

    model: str | None
    variant: str | None
    entries: list[ImageEntry]
    masks: int
    baselines: bool

    def scores(self) -> dict[str, list[float]]:
        torch.set_num_threads(1)
        return score_entries(load(self.model, variant=self.variant), self.entries, self.masks, self.baselines)


def evaluate(parts: dict[str, list[Part]], jobs: int, progress: Callable[[str], None]) -> dict[str, dict[str, float]]:
    """Scores per data set and their mean: {"coco_mini": {"masks": n, "box": ...}, ..., "mean": {...}}.

    parts: the parts of every data set. jobs: how many processes work on them; 1 works in this process.
    """
    table: dict[str, dict[str, float]] = {}
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) if jobs > 1 else nullcontext() as pool:
        done = pool.map if pool else map
        scores = done(Part.scores, [part for own in parts.values() for part in own])
        for name, own in parts.items():
            sums: dict[str, list[float]] = {}
            for _ in own:
                for key, values in next(scores).items():
                    sums.setdefault(key, []).extend(values)
            if sums:
                table[name] = {"images": sum(len(part.entries) for part in own), "masks": len(sums["box"])}
                table[name] |= {key: float(np.mean(values)) for key, values in sums.items()}
                progress(format_row(name, table[name]))
    keys = [key for key in SCORES if all(key in row for row in table.values())]
    mean = {key: float(np.mean([row[key] for row in table.values()])) for key in keys}
    table["mean"] = {key: sum(row[key] for row in table.values()) for key in ("images", "masks")} | mean
    return table


def format_row(name: str, row: dict[str, float]) -> str:
    """A line of the Markdown table."""
    cells = [f"{row[key]:.3f}" if key in row else "–" for key in SCORES]
    return f"| {name} | {int(row['images'])} | {int(row['masks'])} | {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, type=Path, help="folder of COCO-style folders")
    parser.add_argument("--split", default="val")
    parser.add_argument("--model", default=None, help="catalogue name or weights file; the built-in model by default")
    parser.add_argument("--variant", default=None, help="catalogue name of a weights file that does not tell")
    parser.add_argument("--masks", type=int, default=4, help="masks per image at most")
    parser.add_argument("--no-baselines", action="store_true")
    parser.add_argument("--json", type=Path, default=None, help="also write the table here")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes, of one thread each")
    arguments = parser.parse_args()
    model = load(arguments.model, variant=arguments.variant)  # before any work: a wrong name is an error at once
    start = time.perf_counter()
    print(f"| data set | images | masks | {' | '.join(SCORES)} |\n|{' --- |' * (len(SCORES) + 3)}", flush=True)
    parts = {
        name: [
            Part(arguments.model, arguments.variant, entries[i : i + 12], arguments.masks, not arguments.no_baselines)
            for i in range(0, len(entries), 12)
        ]
        for name, entries in read_collection(arguments.data, arguments.split).items()
    }
    table = evaluate(parts, arguments.jobs, lambda row: print(row, flush=True))
    print(format_row("mean", table["mean"]))
    seconds = time.perf_counter() - start
    print(f"\n{model.variant}, weights {model.weights_sha256[:12]}, {seconds:.0f} s", file=sys.stderr)
    if arguments.json:
        facts = {"variant": model.variant, "weights_sha256": model.weights_sha256, "split": arguments.split}
        document = json.dumps(facts | {"masks_per_image": arguments.masks, "scores": table}, indent=1) + "\n"
        write_atomic(arguments.json, lambda file: file.write(document.encode()))


if __name__ == "__main__":
    main()
