"""Cases of a model that takes prompts in SAM's way: an image, its embedding, and what each prompt gives."""

import dataclasses
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import Arrays, Case, Recorder, Report, load_filled
from weights import filled_tensor

import anysam
from anysam.preprocess import upscale_logits


def run_promptable(case: Case, inputs: Path, report: Report) -> Arrays:
    """Our arrays of a model that takes prompts, by name. Problems that stop an image are reported."""
    model = load_filled(case)
    recorder = Recorder(model.network, list(case.expected))
    model = dataclasses.replace(model, network=recorder)
    groups = dict.fromkeys(name.split("/")[0] for name in case.expected if "/" in name)
    for image in groups:
        if image not in case.images:
            yield from run_synthetic(case, model, recorder, image, report)
            continue
        path = inputs / case.images[image]["file"]
        if not path.is_file():
            report.line(False, case.folder.name, f"{image}: the image {path.name} is not among the inputs")
            continue
        encoded = model.encode(path)
        if encoded.original_size != tuple(reversed(case.images[image]["size_wh"])):
            report.line(
                False, case.folder.name, f"{image}: {path.name} is {encoded.original_size}, not the case's size"
            )
        for leaf, tensors in recorder.seen.items():
            yield f"{image}/{leaf}", torch.cat(tensors).numpy()
        yield f"{image}/image_embeddings", encoded.features["image_embeddings"].numpy()
        yield from run_prompts(model, recorder, encoded, image, case.images[image]["prompts"])


def run_synthetic(case: Case, model: Any, recorder: Recorder, image: str, report: Report) -> Arrays:
    """Prompts on standard normal numbers in the place of an image's embedding, to test a decoder alone.

    Which prompts and which image size is not said; they are those of the image that has all prompts named here.
    """
    name = f"{image}/image_embeddings"
    used = {n.split("/")[1] for n in case.expected if n.startswith(f"{image}/") and n.count("/") >= 2}
    packed = [len(case.expected[n]) for n in case.expected if re.fullmatch(rf"{image}/[^/]+/best_mask_packed", n)]
    for entry in case.images.values():
        width, height = entry["size_wh"]
        if used <= set(entry["prompts"]) and all(size == -(-width * height // 8) for size in packed):
            break
    else:
        report.line(False, case.folder.name, f"{image}: no image of the case has the prompts {', '.join(sorted(used))}")
        return
    if name not in case.arrays:
        report.line(False, case.folder.name, f"{image}: neither an image of the case nor an embedding of its own")
        return
    shape = case.arrays[name]["shape"]
    # filled_tensor divides a weight by the root of its fan-in; times that root, the numbers are standard normal.
    embedding = filled_tensor(name, shape) * np.float32(math.sqrt(math.prod(shape[1:])))
    encoded = anysam.EncodedImage(
        features={"image_embeddings": torch.from_numpy(embedding)},
        original_size=(height, width),
        input_size=model.network.preprocess.input_size((height, width)),
        variant=model.variant,
        preprocess=repr(model.network.preprocess),
        weights_sha256=model.weights_sha256,
    )
    yield name, embedding
    # Not only those used: a prompt may begin with another one's mask.
    yield from run_prompts(model, recorder, encoded, image, entry["prompts"])


def run_prompts(model: Any, recorder: Recorder, encoded: Any, image: str, prompts: dict[str, Any]) -> Arrays:
    """Our arrays of one image's prompts, each entry of a batch one Prompt, all in one call."""
    results: dict[str, list[anysam.Prediction]] = {}
    for name, form in prompts.items():
        if form["prompts"] is None:
            continue
        earlier = results[form["mask_from"]] if form["mask_from"] else [None] * len(form["prompts"])
        batch = [make_prompt(entry, mask) for entry, mask in zip(form["prompts"], earlier, strict=True)]
        recorder.seen = {}
        results[name] = model.predict(encoded, batch, multimask=form["multimask"])
        prefix = f"{image}/{name}"
        for leaf in ("sparse_embeddings", "dense_embeddings"):
            if leaf in recorder.seen:
                yield f"{prefix}/{leaf}", torch.cat(recorder.seen[leaf]).numpy()
        if "image_pe" in recorder.seen:
            yield "image_pe", recorder.seen["image_pe"][0].numpy()
        yield from prediction_arrays(model, encoded, prefix, results[name], form.get("as_published") or {})


def make_prompt(entry: dict[str, Any], earlier: anysam.Prediction | None) -> anysam.Prompt:
    return anysam.Prompt(
        points=entry["points"] or None,
        labels=entry["labels"] or None,
        box=entry["box"],
        low_res_logits=None if earlier is None else earlier.low_res_logits[earlier.best],
    )


def prediction_arrays(
    model: Any, encoded: Any, prefix: str, predictions: list[anysam.Prediction], published: dict[str, Any]
) -> Arrays:
    low_res = np.stack([p.low_res_logits for p in predictions])  # (P, C, h, w)
    masks = np.stack([p.masks for p in predictions])  # (P, C, H, W)
    best = published.get("best_mask_index", predictions[0].best)
    full = upscale_logits(
        torch.from_numpy(low_res), model.network.preprocess, encoded.input_size, encoded.original_size
    )  # (P, C, H, W)
    yield f"{prefix}/low_res_logits", low_res
    yield f"{prefix}/full_res_logits", full.numpy()
    yield f"{prefix}/iou_predictions", np.stack([p.iou_predictions for p in predictions])  # (P, C)
    yield f"{prefix}/mask_areas", masks.sum(axis=(2, 3))  # (P, C)
    yield f"{prefix}/best_mask_packed", np.packbits(masks[0, best])
