"""Cases of EfficientSAM: as other models that take prompts, but for six things that the published interface does.

It drops every point after the sixth, which our interface refuses; it can return the one mask of a clear prompt, which
no prompt of a case says by itself; it takes a batch of images; the order of the masks by score is stored, and so is the
resized position table; and a prompt without one in the case is a batch of images, described in words.
"""

import dataclasses
import re
from pathlib import Path
from typing import Any

import numpy as np
from harness import Arrays, Case, Recorder, Report, load_filled
from promptable import make_prompt, prediction_arrays

import anysam
from anysam.models.efficient_sam import MAX_POINTS


def arrays(case: Case, inputs: Path, report: Report) -> Arrays:
    """Our arrays of a case, by name. Problems that stop an image are reported."""
    model = load_filled(case)
    recorder = Recorder(model.network, list(case.expected))
    model = dataclasses.replace(model, network=recorder)
    for image, entry in case.images.items():
        path = inputs / entry["file"]
        if not path.is_file():
            report.line(False, case.folder.name, f"{image}: the image {path.name} is not among the inputs")
            continue
        pixels = anysam.read_image(path)
        if list(pixels.shape[1::-1]) != entry["size_wh"]:
            report.line(False, case.folder.name, f"{image}: {path.name} is {pixels.shape[:2]}, not the case's size")
        encoded = model.encode(pixels)
        for leaf, tensors in recorder.seen.items():
            yield f"{image}/{leaf}", tensors[0].numpy()
        embeddings = encoded.features["image_embeddings"]  # (1, D, h, w)
        yield f"{image}/image_embeddings", embeddings.numpy()
        h, w = embeddings.shape[-2:]
        positions = recorder.network.image_encoder.positions(h, w)  # (1, D, h, w)
        yield f"{image}/encoder/pos_embed_{h}", positions.permute(0, 2, 3, 1).numpy()
        for name, form in entry["prompts"].items():
            prefix = f"{image}/{name}"
            if form["prompts"] is None:
                yield from run_images(model, pixels, prefix, form)
            else:
                yield from run_prompt(case, model, encoded, prefix, form, report)


def run_prompt(case: Case, model: Any, encoded: Any, prefix: str, form: dict[str, Any], report: Report) -> Arrays:
    """Our arrays of one prompt of a case, which may stand for several objects."""
    prompts = []
    for entry in form["prompts"]:
        room = MAX_POINTS - (2 if entry["box"] else 0)
        if len(entry["points"]) > room:
            try:
                model.predict(encoded, make_prompt(entry, None))
                report.line(False, case.folder.name, f"{prefix}: {len(entry['points'])} points were not refused")
            except anysam.AnySamError as error:
                report.line("at most" in str(error), case.folder.name, f"{prefix}: refused: {error}")
            entry = {**entry, "points": entry["points"][:room], "labels": entry["labels"][:room]}
        prompts.append(make_prompt(entry, None))
    stored = case.arrays.get(f"{prefix}/low_res_logits", {}).get("shape", [1, 1, 3])  # images, prompts, masks, h, w
    multimask = False if stored[2] == 1 else form["multimask"]
    predictions = model.predict(encoded, prompts, multimask=multimask)
    yield from prediction_arrays(model, encoded, prefix, predictions, form.get("as_published") or {})
    scores = np.stack([prediction.iou_predictions for prediction in predictions])  # (P, C)
    yield f"{prefix}/order_by_iou", np.argsort(-scores, axis=1)


def run_images(model: Any, pixels: np.ndarray, prefix: str, form: dict[str, Any]) -> Arrays:
    """Our arrays of an image (H, W, 3) and its left-right flip, one point on each, which are only said in words."""
    words = form["as_published"]["queries"]
    places = re.findall(r"point \((\d+), ?(\d+)\) label (\d)", words)
    images = (pixels, np.ascontiguousarray(pixels[:, ::-1]))
    if "flip" not in words or len(places) != len(images):
        raise ValueError(f"{prefix}: cannot be understood: {words}")
    predictions = []
    for image, (x, y, label) in zip(images, places, strict=True):
        prompt = anysam.Prompt(points=[[float(x), float(y)]], labels=[int(label)])
        predictions.append(model.predict(model.encode(image), prompt, multimask=form["multimask"]))
    yield f"{prefix}/low_res_logits", np.stack([prediction.low_res_logits for prediction in predictions])
    yield f"{prefix}/iou_predictions", np.stack([prediction.iou_predictions for prediction in predictions])
