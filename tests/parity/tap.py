"""Cases of Tokenize Anything: four masks per prompt with their semantic tokens, the chosen one, and its words.

The published interface has the four masks inside and one outside, and so have we: they are taken where the network
decodes. Concepts are those of a stand-in matrix. Caption tokens and margins are compared up to the first step at which
the two best tokens are too close to tell apart; what follows would be another caption.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import Arrays, Case, Recorder, Report, load_filled
from promptable import make_prompt
from torch import Tensor
from weights import filled_tensor

from anysam.describe.tap import describe_prompts
from anysam.describe.tap_words import DescribeOptions
from anysam.describe.vocabulary import Vocabulary
from anysam.models.tap import Tap
from anysam.models.tap_captions import caption_tokens
from anysam.models.tap_text import BOS, EOS, concept_logits
from anysam.preprocess import upscale_logits
from anysam.results import MaskRecord

# Logits of captions have a std of about 1 and differ by about 1e-5 from machine to machine.
CERTAIN_MARGIN = 1e-4


def arrays(case: Case, inputs: Path, report: Report) -> Arrays:
    """Our arrays of a case, by name. Problems that stop an image are reported."""
    model = load_filled(case)
    recorder = Recorder(model.network, list(case.expected))
    network: Tap = recorder.network
    network.prompt_encoder.register_forward_hook(lambda _, given, output: keep(recorder, "sparse_embeds", output))
    network.image_decoder.register_forward_hook(lambda _, given, output: keep_decoded(recorder, output))
    plain, model = model, dataclasses.replace(model, network=recorder)
    yield "fixed/rel_pos_index", network.image_encoder.blocks[0].attn.rel_pos_embed.index.numpy()
    for image, entry in case.images.items():
        path = inputs / entry["file"]
        if not path.is_file():
            report.line(False, case.folder.name, f"{image}: the image {path.name} is not among the inputs")
            continue
        encoded = model.encode(path)
        if encoded.original_size != tuple(reversed(entry["size_wh"])):
            report.line(
                False, case.folder.name, f"{image}: {path.name} is {encoded.original_size}, not the case's size"
            )
        pixels = recorder.seen["input"][0]  # (1, 3, H, W)
        yield f"{image}/input", pixels.numpy()
        yield f"{image}/input_pad_value", pixels[0, :, -1, -1].numpy()
        yield f"{image}/resized_bgr", resized_image(network, pixels, encoded.input_size)
        embeddings = encoded.features["image_embeddings"]  # (1, D, h, w)
        yield f"{image}/image_embeddings", embeddings.permute(0, 2, 3, 1).numpy()
        for name, form in entry["prompts"].items():
            recorder.seen = {}
            prompts = [make_prompt(given, None) for given in form["prompts"]]
            predictions = model.predict(encoded, prompts, multimask=form["multimask"])
            seen = {leaf: torch.cat(tensors) for leaf, tensors in recorder.seen.items()}  # each (P, ...)
            for leaf, tensor in seen.items():
                yield f"{image}/{name}/{leaf}", tensor.numpy()
            prefix = f"{image}/{name}"
            yield from mask_arrays(model, encoded, prefix, predictions, seen["mask_pred"])
            yield from concept_arrays(case, prefix, predictions, partial(describe_prompts, plain, encoded, prompts))
            if f"{prefix}/caption/token_ids" in case.expected:
                yield from caption_arrays(case, network, prefix, predictions, report)


def keep(recorder: Recorder, leaf: str, tensor: Tensor) -> None:
    recorder.seen.setdefault(leaf, []).append(tensor)


def keep_decoded(recorder: Recorder, decoded: Any) -> None:
    keep(recorder, "mask_pred", decoded.low_res_logits)
    keep(recorder, "iou_pred", decoded.iou_predictions)
    keep(recorder, "sem_tokens", decoded.extras["semantic_tokens"])
    keep(recorder, "sem_embeds", decoded.extras["semantic_embeddings"])


def resized_image(network: Tap, pixels: Tensor, input_size: tuple[int, int]) -> np.ndarray:
    """The image before normalising, out of the padded input: (height, width, 3) of whole numbers."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (network.preprocess.mean, network.preprocess.std))
    image = (pixels[0] * std + mean)[:, : input_size[0], : input_size[1]]  # (3, height, width)
    return image.permute(1, 2, 0).round().numpy()


def mask_arrays(model: Any, encoded: Any, prefix: str, predictions: list[Any], all_four: Tensor) -> Arrays:
    """all_four: (P, 4, h, w), of which each prediction holds one."""
    low_res = torch.from_numpy(np.stack([p.low_res_logits for p in predictions]))  # (P, 1, h, w)
    yield f"{prefix}/selected", (all_four - low_res).abs().amax(dim=(2, 3)).argmin(dim=1).numpy()
    full = upscale_logits(low_res, model.network.preprocess, encoded.input_size, encoded.original_size)
    yield f"{prefix}/mask_logits_full", full.numpy()
    yield f"{prefix}/mask_areas", np.stack([p.masks for p in predictions]).sum(axis=(1, 2, 3))
    yield f"{prefix}/best_mask_packed", np.packbits(predictions[0].masks[0])


def concept_arrays(
    case: Case, prefix: str, predictions: list[Any], describe: Callable[[DescribeOptions], list[MaskRecord]]
) -> Arrays:
    """Concepts of the chosen masks, with a stand-in matrix of unit columns times 100; the best by `Model.describe`."""
    if f"{prefix}/concept_logits" not in case.arrays:
        return
    embeddings = torch.from_numpy(np.stack([p.extras["semantic_embeddings"][0] for p in predictions]))  # (P, 1024)
    concepts = case.arrays[f"{prefix}/concept_logits"]["shape"][-1]
    weights = filled_tensor("concept_projector.src_weights", (embeddings.shape[1], concepts))
    weights = torch.from_numpy(100 * weights / np.linalg.norm(weights, axis=0))
    yield f"{prefix}/concept_logits", concept_logits(embeddings, weights).numpy()
    names = tuple(map(str, range(concepts)))
    vocabulary = Vocabulary(names, weights.numpy().astype(np.float32), "stand-in")
    records = describe(DescribeOptions(vocabulary, top=3, captions=False))
    scores = [record.label_scores or {} for record in records]
    yield f"{prefix}/concept_top3", np.array([[int(name) for name in best] for best in scores])
    yield f"{prefix}/concept_top3_prob", np.array([list(best.values()) for best in scores], dtype=np.float32)


@torch.inference_mode()
def caption_arrays(case: Case, network: Tap, prefix: str, predictions: list[Any], report: Report) -> Arrays:
    """The caption of the first prompt's mask as it is written, and the logits after each token of the stored one."""
    decoder = network.text_decoder
    semantic_tokens = torch.from_numpy(predictions[0].extras["semantic_tokens"])  # (1, 256)
    expected = {leaf: case.expected[f"{prefix}/caption/{leaf}"] for leaf in ("token_ids", "margins")}
    tokens = [BOS, *expected["token_ids"].reshape(-1).tolist()]
    logits = decoder(semantic_tokens, torch.tensor([tokens[:-1]]))[0]  # (L, V)
    yield f"{prefix}/caption/prompt", decoder.prompts(semantic_tokens).numpy()
    yield f"{prefix}/caption/first_step_logits", logits[:1].numpy()
    yield f"{prefix}/caption/second_step_logits", logits[1:2].numpy()
    best = logits.topk(2).values  # (L, 2)
    written = [*caption_tokens(decoder, semantic_tokens)[0].tokens, EOS][: len(logits)]
    found = {"token_ids": np.array(written), "margins": (best[:, 0] - best[:, 1]).numpy()}
    close = np.flatnonzero(expected["margins"] < CERTAIN_MARGIN)
    certain = int(close[0]) if close.size else len(expected["margins"])
    text = f"{prefix}/caption: {certain} of {len(expected['margins'])} tokens are certain, {len(written)} written"
    certain = min(certain, len(written))
    report.line(certain > 0 and (EOS in written or len(written) == len(logits)), case.folder.name, text)
    for leaf, values in found.items():
        yield f"{prefix}/caption/{leaf}", np.concatenate([values[:certain], expected[leaf][certain:]])
