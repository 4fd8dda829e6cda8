"""Seconds to encode a photograph and to answer prompts, and the peak memory of a process that does both.

python benchmarks/speed.py [--models anysam_lite sam_vit_b] [--threads 2] [--repeats 5]

A model whose weights are not on this machine is built with random weights: time and memory do not depend on the values.
Every model runs in a process of its own, so that one's memory is not counted for another. See README.md for the method.
"""

import argparse
import json
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from anysam import Prompt, load
from anysam.catalogue import find_variant
from anysam.checkpoints import build
from anysam.fetch import locate
from anysam.predictor import Model

PHOTO = Path(__file__).parents[1] / "examples" / "images" / "coffee.png"
SIZE = (640, 480)  # width, height


def open_model(name: str) -> Model:
    """The model with its weights, or with random ones when they are not on this machine."""
    variant = find_variant(name)
    if locate(variant) is not None:
        return load(name)
    network = build(variant.family, variant.size).eval().requires_grad_(False)
    return Model(name, network, torch.device("cpu"), torch.float32, "random")


def median_seconds(action: Callable[[], object], repeats: int) -> float:
    """Median of `repeats` runs after one that is not counted."""
    action()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        action()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def measure(name: str, threads: int, repeats: int) -> dict[str, float | str]:
    """All numbers of one model, in this process."""
    torch.set_num_threads(threads)
    model = open_model(name)
    image = np.asarray(Image.open(PHOTO).convert("RGB").resize(SIZE))
    encoded = model.encode(image)
    rng = np.random.default_rng(0)
    clicks = [Prompt(points=rng.uniform((0, 0), SIZE, (1, 2))) for _ in range(64)]

    def encode_and_prompt() -> None:
        model.predict(model.encode(image), clicks[0])

    return {
        "model": name if model.weights_sha256 != "random" else f"{name} (random weights)",
        "encode": median_seconds(lambda: model.encode(image), repeats),
        "1 prompt": median_seconds(lambda: model.predict(encoded, clicks[0]), repeats),
        "encode + 1 prompt": median_seconds(encode_and_prompt, repeats),
        "64 prompts": median_seconds(lambda: model.predict(encoded, clicks), max(1, repeats // 2)),
        "peak MB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000,  # kilobytes on Linux
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["anysam_lite"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--in-this-process", action="store_true", help="measure the one model here and print JSON")
    arguments = parser.parse_args()
    if arguments.in_this_process:
        print(json.dumps(measure(arguments.models[0], arguments.threads, arguments.repeats)))
        return
    machine = f"{platform.machine()}, {arguments.threads} threads, torch {torch.__version__}"
    print(f"{machine}, photo {SIZE[0]}x{SIZE[1]}, float32")
    print("| model | encode s | 1 prompt s | encode + 1 prompt s | 64 prompts s | peak MB |\n|" + " --- |" * 6)
    for name in arguments.models:
        command = [sys.executable, __file__, "--in-this-process", "--models", name]
        command += ["--threads", str(arguments.threads), "--repeats", str(arguments.repeats)]
        row = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        cells = [f"{row[key]:.3f}" for key in ("encode", "1 prompt", "encode + 1 prompt", "64 prompts")]
        print(f"| {row['model']} | {' | '.join(cells)} | {row['peak MB']:.0f} |", flush=True)


if __name__ == "__main__":
    main()
