"""Cases of EdgeSAM: as other models that take prompts, and what only its published predictor can be asked for.

That is 1, 3 or 4 masks, with stability scores in the place of predicted IoUs; an embedding with the interpolation of
the published exports; and image encoders alone, which were never released but can be trained.
"""

import dataclasses
import re
import tempfile
from pathlib import Path
from typing import Any

import torch
from harness import Arrays, Case, Report, load_filled
from promptable import make_prompt, run_promptable
from weights import filled_state_dict

import anysam
from anysam.models.edge_sam import PREPROCESS, SIZES, EdgeSam, Enlarge, build_image_encoder
from anysam.models.layers import fuse
from anysam.preprocess import prepare_image, prompt_tokens, upscale_logits
from anysam.prompts import resolve_prompt
from anysam.weights_files import read_state_dict


def arrays(case: Case, inputs: Path, report: Report) -> Arrays:
    """Our arrays of a case, by name. Problems that stop an image are reported."""
    if case.kind == "encoder":
        yield from run_encoder(case, inputs)
        return
    yield from run_promptable(case, inputs, report)
    model = load_filled(case)
    for image, entry in case.images.items():
        if not (inputs / entry["file"]).is_file():
            continue  # reported above
        encoded = model.encode(inputs / entry["file"])
        for name, options in case.facts.get("predictor_option_prompts", {}).items():
            if name.startswith(f"{image}/"):
                yield from run_options(model, encoded, name, entry["prompts"], options)
    for image, entry in case.images.items():
        if f"{image}/image_embeddings_bilinear" in case.expected:
            enlarge_bilinearly(model.network)
            encoded = model.encode(inputs / entry["file"])
            yield f"{image}/image_embeddings_bilinear", encoded.features["image_embeddings"].numpy()


def run_options(model: Any, encoded: Any, name: str, prompts: dict[str, Any], options: dict[str, Any]) -> Arrays:
    """Our arrays of a prompt with the published predictor's options; the words of the case name another's prompt."""
    source = re.search(r"'(\w+)'", options["prompt"])
    assert source is not None, options["prompt"]
    preprocess = model.network.preprocess
    resolved = resolve_prompt(make_prompt(prompts[source[1]]["prompts"][0], None), encoded.original_size)
    points, labels = prompt_tokens(resolved, preprocess, encoded.original_size)
    with torch.inference_mode():
        logits, scores, _ = model.network.decode_masks(
            encoded.features,
            points[None],
            labels[None],
            None,
            options["num_multimask_outputs"],
            options["use_stability_score"],
        )
    masks = upscale_logits(logits, preprocess, encoded.input_size, encoded.original_size) > 0  # (1, C, H, W)
    yield f"{name}/low_res_logits", logits.numpy()
    yield f"{name}/scores", scores.numpy()
    yield f"{name}/mask_areas", masks.sum((2, 3)).numpy()


def enlarge_bilinearly(network: EdgeSam) -> None:
    """Change a network to what the published exports make of its weights."""
    for module in network.modules():
        if isinstance(module, Enlarge):
            module.mode = "bilinear"


def run_encoder(case: Case, inputs: Path) -> Arrays:
    """Our arrays of an image encoder alone, in its form for inference."""
    match = re.fullmatch(r"edge_sam_rep_vit_(m\d)(_nofuse)?", case.variant)
    assert match is not None, case.variant
    encoder = build_image_encoder(dataclasses.replace(SIZES[match[1]], two_scales=match[2] is None))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "encoder.pth"
        filled = filled_state_dict(case.folder / "manifest.json")
        torch.save({"model": {key: torch.from_numpy(value) for key, value in filled.items()}}, path)
        encoder.load_state_dict(read_state_dict(path), strict=True)
    fused = fuse(encoder.eval().requires_grad_(False))
    for image, entry in case.images.items():
        pixels, _ = prepare_image(anysam.read_image(inputs / entry["file"]), PREPROCESS)
        yield f"{image}/input", pixels.numpy()
        with torch.inference_mode():
            embeddings = fused(pixels)
        yield f"{image}/image_embeddings", embeddings.numpy()
