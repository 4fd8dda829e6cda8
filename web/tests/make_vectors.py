"""What the page's unit tests compare with, computed by the Python package, pycocotools and safetensors.

Run it again after a change of the rules: python web/tests/make_vectors.py
"""

import base64
import dataclasses
import json
from pathlib import Path

import numpy as np
import torch
from pycocotools import mask as coco_mask
from safetensors.torch import save

import anysam
from anysam.preprocess import Preprocess, mask_to_logits, prompt_tokens, upscale_logits
from anysam.prompts import Prompt, resolve_prompt

OUT = Path(__file__).parent / "vectors"
PHOTO = Path(__file__).parents[2] / "examples" / "images" / "rocket.jpg"
FRAME_KEYS = (
    "long_side",
    "pad_to",
    "pad_multiple",
    "low_res_stride",
    "keep_aspect",
    "uniform_prompt_scale",
    "mask_resize",
)
FRAMES = {
    "built-in": Preprocess(640, None, pad_multiple=32, name="built-in"),
    "square": Preprocess(1024, 1024, name="square"),
    "uniform": Preprocess(1024, 1024, uniform_prompt_scale=True, name="uniform"),
    "squashed": Preprocess(1024, 1024, keep_aspect=False, mask_resize="bicubic", name="squashed"),
    "small": Preprocess(64, None, pad_multiple=16, name="small"),
    "small square": Preprocess(64, 64, name="small square"),
    "small squashed": Preprocess(64, 64, keep_aspect=False, mask_resize="bicubic", name="small squashed"),
}


def main() -> None:
    OUT.mkdir(exist_ok=True)
    rng = np.random.default_rng(7)
    vectors = {
        "rle": rle_cases(rng),
        "upscale": upscale_cases(rng),
        "frame": frame_cases(rng),
        "mask_prompt": mask_prompt_cases(rng),
        "safetensors": safetensors_case(),
    }
    for name, value in vectors.items():
        lines = ",\n".join(json.dumps(case) for case in value) if isinstance(value, list) else ""
        text = f"[\n{lines}\n]\n" if lines else json.dumps(value) + "\n"
        (OUT / f"{name}.json").write_text(text, encoding="utf-8")


def rle_cases(rng: np.random.Generator) -> list[dict]:
    masks = {
        "empty": np.zeros((5, 7), bool),
        "full": np.ones((5, 7), bool),
        "one pixel": np.eye(1, dtype=bool),
        "begins with mask": np.arange(12).reshape(3, 4) < 6,
        "one row": rng.random((1, 40)) < 0.5,
        "one column": rng.random((40, 1)) < 0.5,
        "noise": rng.random((23, 31)) < 0.3,
        "blobs": blobs(rng, 90, 130) > 0,
        "long runs": np.pad(np.ones((3, 2), bool), ((200, 190), (150, 90))),
    }
    return [{"name": name, "mask": pack(mask), **coco(mask)} for name, mask in masks.items()]


def upscale_cases(rng: np.random.Generator) -> list[dict]:
    cases = []
    sizes = [(64, 64), (48, 64), (200, 150), (37, 211), (13, 17), (64, 1), (3, 900), (501, 333)]
    for name in ("small", "small square", "small squashed"):
        for size in sizes:
            frame = FRAMES[name]
            input_size = frame.input_size(size)
            h, w = frame.low_res_size(input_size)
            logits = np.round(blobs(rng, h, w) * 16).astype(np.float16).astype(np.float32) / 4
            cases.append(upscale_case(f"{name} {size}", frame, logits, size))
    frame = FRAMES["built-in"]
    for name, value in {"nothing": -1.0, "everything": 1.0}.items():
        cases.append(upscale_case(name, FRAMES["small"], np.full((12, 16), value, np.float32), (50, 64)))
    model = anysam.load("anysam_lite")
    encoded = model.encode(PHOTO)
    prediction = model.predict(encoded, Prompt(points=[[322, 250]]))
    logits = prediction.low_res_logits[prediction.best].astype(np.float16).astype(np.float32)
    cases.append(upscale_case("rocket", frame, logits, encoded.original_size))
    cases.append(upscale_case("rocket, enlarged", frame, logits, (1281, 1920)))
    return cases


def upscale_case(name: str, frame: Preprocess, logits: np.ndarray, original_size: tuple[int, int]) -> dict:
    input_size = frame.input_size(original_size)
    full = upscale_logits(torch.from_numpy(logits)[None, None], frame, input_size, original_size)[0, 0].numpy()
    # Pixels this close to the threshold may fall on either side of it: float32 sums in another order.
    close = int((np.abs(full) < 1e-5 * max(1.0, float(np.abs(full).max()))).sum())
    return {
        "name": name,
        "frame": frame_form(frame),
        "low_res_size": list(logits.shape),
        "low_res_logits": base64.b64encode(logits.astype("<f2").tobytes()).decode(),
        "input_size": list(input_size),
        "close": close,
        **coco(full > 0),
    }


def frame_cases(rng: np.random.Generator) -> list[dict]:
    cases = []
    for name in ("built-in", "square", "uniform", "squashed"):
        for size in [(480, 640), (1999, 1333), (7, 2000), (1, 1), (427, 640), (5000, 3333)]:
            height, width = size
            spots = (rng.random((6, 2)) * (width, height)).round(3)
            low, high = spots[:2].min(axis=0), spots[:2].max(axis=0) + 0.25
            prompts = {
                "click": Prompt(points=spots[:1]),
                "clicks": Prompt(points=spots[:3], labels=[1, 0, 1]),
                "box": Prompt(box=[*low, *high]),
                "box and click": Prompt(points=spots[2:3], labels=[0], box=[*low, *high]),
                "scribble": Prompt(scribble=spots, scribble_negative=spots[:2]),
                "dab": Prompt(points=spots[:1], scribble=spots[3:4]),
            }
            for kind, prompt in prompts.items():
                max_points = 5 if kind == "scribble" and name == "square" else None
                resolved = resolve_prompt(prompt, size, max_points)
                points, labels = prompt_tokens(resolved, FRAMES[name], size)
                cases.append(
                    {
                        "name": f"{name} {size} {kind}",
                        "frame": frame_form(FRAMES[name]),
                        "original_size": size,
                        "input_size": FRAMES[name].input_size(size),
                        "low_res_size": FRAMES[name].low_res_size(FRAMES[name].input_size(size)),
                        "max_points": max_points,
                        "prompt": prompt.to_dict(),
                        "points": points.numpy().astype(np.float64).tolist(),
                        "labels": labels.tolist(),
                    }
                )
    return cases


def mask_prompt_cases(rng: np.random.Generator) -> list[dict]:
    cases = []
    for name, size in [("small", (100, 75)), ("small", (20, 31)), ("small square", (64, 64)), ("small", (300, 40))]:
        frame = FRAMES[name]
        mask = blobs(rng, *size) > 0
        input_size = frame.input_size(size)
        logits = mask_to_logits(mask, frame, input_size, frame.low_res_size(input_size)).numpy()
        cases.append({"name": f"{name} {size}", "frame": frame_form(frame), "logits": logits.tolist(), **coco(mask)})
    return cases


def safetensors_case() -> dict:
    values = [0.0, -0.0, 1.0, -2.5, 65504.0, 6.0e-5, 5.9604645e-8, -1e-5, float("inf"), float("-inf"), 0.1, 1 / 3]
    half = torch.tensor(values, dtype=torch.float16).reshape(3, 4)
    single = torch.tensor([[0.1, -1e-30, 3e38]], dtype=torch.float32)
    data = save({"half": half, "odd": half[0, :3].clone(), "single": single}, {"size": "3,4"})
    # JSON has no infinity.
    widened = [repr(value) for value in half.double().flatten().tolist()]
    return {"file": base64.b64encode(data).decode(), "half": widened, "single": single.double().flatten().tolist()}


def blobs(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Smooth values (height, width) float64 around 0."""
    y, x = np.mgrid[:height, :width] / max(height, width)
    waves = [rng.normal() * np.cos(2 * np.pi * (rng.normal(size=2) * 2.5 @ (x.ravel(), y.ravel()) + rng.random()))]
    waves += [rng.normal() * np.cos(2 * np.pi * (rng.normal(size=2) * 2 @ (x.ravel(), y.ravel()))) for _ in range(3)]
    return np.sum(waves, axis=0).reshape(height, width)


def coco(mask: np.ndarray) -> dict:
    """size and counts as pycocotools writes them; area and box."""
    rle = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    ys, xs = np.nonzero(mask)
    box = [int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1] if len(xs) else [0, 0, 0, 0]
    return {"size": list(mask.shape), "counts": rle["counts"].decode(), "area": int(mask.sum()), "box": box}


def pack(mask: np.ndarray) -> str:
    """Row by row, a bit each, in base64."""
    return base64.b64encode(np.packbits(mask).tobytes()).decode()


def frame_form(frame: Preprocess) -> dict:
    form = dataclasses.asdict(frame)
    return {key: form[key] for key in FRAME_KEYS}


if __name__ == "__main__":
    main()
