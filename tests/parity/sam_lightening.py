"""Cases of SAM-Lightening: as other models that take prompts, and once more with attention in bfloat16.

The published attention only runs in bfloat16, within a float32 network, on a GPU. Cases hold float32 numbers, and under
`<image>/bf16/` some of a run with that attention on a CPU.
"""

import copy
import dataclasses
import re
from pathlib import Path

import torch
from harness import Arrays, Case, Report, load_filled
from promptable import make_prompt, run_promptable


def arrays(case: Case, inputs: Path, report: Report) -> Arrays:
    """Our arrays of a case, by name. Problems that stop an image are reported."""
    yield from run_promptable(case, inputs, report)
    images = [image for image in case.images if any(name.startswith(f"{image}/bf16/") for name in case.expected)]
    if not images:
        return
    model = load_filled(case)
    network = copy.deepcopy(model.network)
    for block in network.image_encoder.blocks:
        block.attn.to(torch.bfloat16)
    model = dataclasses.replace(model, network=network)
    for image in images:
        path = inputs / case.images[image]["file"]
        if not path.is_file():
            continue  # reported above
        encoded = model.encode(path)
        yield f"{image}/bf16/image_embeddings", encoded.features["image_embeddings"].numpy()
        used = {match[1] for name in case.expected if (match := re.match(rf"{image}/bf16/(\w+)/", name))}
        for prompt in sorted(used):
            form = case.images[image]["prompts"][prompt]
            prediction = model.predict(encoded, make_prompt(form["prompts"][0], None), multimask=form["multimask"])
            yield f"{image}/bf16/{prompt}/low_res_logits", prediction.low_res_logits
            yield f"{image}/bf16/{prompt}/iou_predictions", prediction.iou_predictions
