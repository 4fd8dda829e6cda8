"""Seconds to encode a photograph and to answer prompts, and the peak memory of a process that does both.

python benchmarks/speed.py [--variants anysam_lite sam_vit_b | all] [--dtypes float32 bfloat16] [--threads 2]
python benchmarks/speed.py --variants sam_vit_b --against FOLDER   (side by side with the published code)
python benchmarks/speed.py --variants all --gmac                   (multiplications of one encode, nothing measured)

A model whose weights are not on this machine is built with random weights: time and memory do not depend on the values.
Every model and dtype runs in a process of its own, so that one's memory is not counted for another. See README.md for
the method.
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
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from published import import_published
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from anysam import Model, Prompt, load
from anysam.catalogue import VARIANTS, find_variant
from anysam.errors import PromptError
from anysam.fetch import locate
from anysam.letterbox import prepare_letterbox
from anysam.models import build
from anysam.models.layers import fuse, move
from anysam.preprocess import Preprocess, prepare_image

PHOTO = Path(__file__).parents[1] / "examples" / "images" / "coffee.png"
SIZE = (640, 480)  # width, height

# Prompts whose masks are held at once; more are asked for in lots of this many, whose answers are dropped.
LOT = 64

PROMPTS = (1, 64, 1024)
COLUMNS = ("encode s", *(f"{n} prompt{'s' if n > 1 else ''} s" for n in PROMPTS), "peak MB", "GMAC", "GMAC/s")


def open_model(name: str, dtype: str = "float32") -> Model:
    """The model with its weights, or with random ones when they are not on this machine."""
    variant = find_variant(name)
    if locate(variant) is not None:
        return load(name, device="cpu", dtype=dtype)
    torch.manual_seed(0)
    network = fuse(build(variant.family, variant.size).eval().requires_grad_(False))
    cpu, torch_dtype = torch.device("cpu"), getattr(torch, dtype)
    return Model(name, move(network, cpu, torch_dtype), cpu, torch_dtype, "random")


def photo() -> np.ndarray:
    """The photograph that everything is measured on: uint8 (H, W, 3)."""
    return np.asarray(Image.open(PHOTO).convert("RGB").resize(SIZE))


def clicks(count: int) -> np.ndarray:
    """One point for each of `count` prompts: (count, 1, 2) float64, x y, image pixels."""
    return np.random.default_rng(0).uniform((0, 0), SIZE, (count, 1, 2))


@dataclass(frozen=True)
class Clock:
    """How actions are timed. now: seconds of the wall or of the process's CPU. repeats: how many give the median."""

    now: Callable[[], float]
    repeats: int

    def once(self, action: Callable[[], object]) -> float:
        """Seconds of one run."""
        start = self.now()
        action()
        return self.now() - start

    def median(self, action: Callable[[], object]) -> float:
        """Median seconds, after one run that is not counted."""
        action()
        return statistics.median(self.once(action) for _ in range(self.repeats))

    def median_of_pairs(self, ours: Callable[[], object], theirs: Callable[[], object]) -> tuple[float, float]:
        """Median seconds of two actions that take turns, after one uncounted run of each."""
        ours(), theirs()
        pairs = [(self.once(ours), self.once(theirs)) for _ in range(self.repeats)]
        return statistics.median(a for a, _ in pairs), statistics.median(b for _, b in pairs)


def peak_megabytes() -> float:
    """The most memory that this process has held so far (resident set, 10**6 bytes)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6  # kibibytes on Linux


def count_gmac(name: str, image: np.ndarray) -> float:
    """Multiplications (with addition, 10**9) of encoding one image, counted without computing anything.

    Products of matrices, convolutions and attention are counted as the network is written, before anything is fused;
    element-wise work is not. The input is the one that the model makes of `image`.
    """
    variant = find_variant(name)
    with torch.device("meta"):
        network = build(variant.family, variant.size).eval()
    frame = network.preprocess
    pixels, _ = prepare_image(image, frame) if isinstance(frame, Preprocess) else prepare_letterbox(image, frame)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network.encode_image(pixels.to("meta"))
    return counter.get_total_flops() / 2 / 1e9


def measure(name: str, dtype: str, clock: Clock) -> dict[str, float | str]:
    """All numbers of one model, in this process; what the model cannot do is missing."""
    model, image = open_model(name, dtype), photo()
    row: dict[str, float | str] = {"model": name if model.weights_sha256 != "random" else f"{name} (random weights)"}
    encoded = model.encode(image)
    row["encode s"] = clock.median(lambda: model.encode(image))
    prompts = [Prompt(points=point) for point in clicks(max(PROMPTS))]

    def answer(count: int) -> None:
        for start in range(0, count, LOT):
            model.predict(encoded, prompts[start : min(start + LOT, count)])

    for count, column in zip(PROMPTS, COLUMNS[1:], strict=False):
        try:
            # The long one is measured once, after the others have warmed everything up.
            timed = clock.median if count <= LOT else clock.once
            row[column] = timed(lambda n=count: answer(n))
        except PromptError:  # a detector takes no prompts
            break
    row["peak MB"] = peak_megabytes()
    row["GMAC"] = count_gmac(name, image)
    row["GMAC/s"] = float(row["GMAC"]) / float(row["encode s"])
    return row


def compare(name: str, folder: str, clock: Clock, only: str | None) -> dict[str, float | str]:
    """Our SAM and the published one with the same weights, in turns: {column: seconds or megabytes}.

    only: "ours" or "theirs" runs nothing but one encode and 64 prompts of one of them, for its peak memory.
    """
    image, points = photo(), clicks(LOT)
    prompts = [Prompt(points=point) for point in points]
    model = open_model(name)
    if only == "ours":
        model.predict(model.encode(image), prompts)
        return {"peak MB": peak_megabytes()}
    published = import_published(folder)
    sam = published.sam_model_registry[find_variant(name).size]()
    sam.load_state_dict(model.network.state_dict())
    predictor = published.SamPredictor(sam.eval().requires_grad_(False))
    frame_points = torch.from_numpy(predictor.transform.apply_coords(points, image.shape[:2])).float()  # (P, 1, 2)
    ones = torch.ones(LOT, 1, dtype=torch.int64)
    with torch.inference_mode():
        if only == "theirs":
            del model
            predictor.set_image(image)
            predictor.predict_torch(frame_points, ones)
            return {"peak MB": peak_megabytes()}
        encoded = model.encode(image)
        predictor.set_image(image)
        row: dict[str, float | str] = {"model": name}
        pairs: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {
            "encode s": (lambda: model.encode(image), lambda: predictor.set_image(image)),
            "1 prompt s": (
                lambda: model.predict(encoded, prompts[0]),
                lambda: predictor.predict(points[0], np.ones(1)),
            ),
            "64 prompts s": (
                lambda: model.predict(encoded, prompts),
                lambda: predictor.predict_torch(frame_points, ones),
            ),
            "decoder alone, 64 s": decoders(model, sam, encoded.features["image_embeddings"], frame_points, ones),
        }
        for column, (ours, theirs) in pairs.items():
            a, b = clock.median_of_pairs(ours, theirs)
            row[column], row[f"published {column}"] = a, b
    return row


def decoders(
    model: Model, sam: torch.nn.Module, image_embeddings: Tensor, points: Tensor, labels: Tensor
) -> tuple[Callable[[], object], Callable[[], object]]:
    """Our mask decoder and the published one on the same embeddings (P prompts of one point and the padding)."""
    ours = model.network
    sparse, dense = sam.prompt_encoder(points=(points, labels), boxes=None, masks=None)
    image_pe = sam.prompt_encoder.get_dense_pe()
    return (
        lambda: ours.mask_decoder(image_embeddings, image_pe, sparse, dense[:1], True),
        lambda: sam.mask_decoder(image_embeddings, image_pe, sparse, dense, True),
    )


def in_new_process(arguments: argparse.Namespace, name: str, dtype: str, only: str | None = None) -> dict:
    """What `measure` or `compare` returns for one model, from a process of its own."""
    command = [sys.executable, __file__, "--in-this-process", "--variants", name, "--dtypes", dtype]
    command += ["--threads", str(arguments.threads), "--repeats", str(arguments.repeats)]
    command += ["--cpu-time"] if arguments.cpu_time else []
    if arguments.against is not None:
        command += ["--against", arguments.against] + (["--only", only] if only else [])
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def print_speeds(arguments: argparse.Namespace, names: list[str]) -> None:
    for dtype in arguments.dtypes:
        print(f"\n{dtype}\n\n| model | {' | '.join(COLUMNS)} |\n|" + " --- |" * (1 + len(COLUMNS)))
        for name in names:
            row = in_new_process(arguments, name, dtype)
            digits = {"peak MB": 0, "GMAC": 1, "GMAC/s": 0}
            cells = [f"{row[key]:.{digits.get(key, 3)}f}" if key in row else "-" for key in COLUMNS]
            print(f"| {row['model']} | {' | '.join(cells)} |", flush=True)


def print_comparison(arguments: argparse.Namespace, names: list[str]) -> None:
    print("\n| model | what | published | ours | ratio |\n| --- | --- | --- | --- | --- |")
    for name in names:
        row = in_new_process(arguments, name, "float32")
        for column in [key for key in row if f"published {key}" in row]:
            ours, theirs = row[column], row[f"published {column}"]
            print(f"| {name} | {column} | {theirs:.3f} | {ours:.3f} | {theirs / ours:.2f} |", flush=True)
        ours, theirs = (in_new_process(arguments, name, "float32", only)["peak MB"] for only in ("ours", "theirs"))
        print(f"| {name} | peak MB | {theirs:.0f} | {ours:.0f} | {theirs / ours:.2f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variants", nargs="+", default=["anysam_lite"], help="names of the catalogue, or all")
    parser.add_argument("--dtypes", nargs="+", default=["float32"], choices=["float32", "bfloat16"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--cpu-time", action="store_true", help="CPU seconds of the process, if others use the machine")
    parser.add_argument("--against", metavar="FOLDER", help="a checkout of facebookresearch/segment-anything")
    parser.add_argument("--gmac", action="store_true", help="print each variant's GMAC for a square image as JSON")
    parser.add_argument("--in-this-process", action="store_true", help="measure the one model here and print JSON")
    parser.add_argument("--only", choices=["ours", "theirs"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    names = [row.name for row in VARIANTS] if arguments.variants == ["all"] else arguments.variants
    torch.set_num_threads(arguments.threads)
    clock = Clock(time.process_time if arguments.cpu_time else time.perf_counter, arguments.repeats)
    if arguments.gmac:
        square = np.zeros((1024, 1024, 3), dtype=np.uint8)
        print(json.dumps({name: round(count_gmac(name, square), 1) for name in names}, indent=1))
    elif arguments.in_this_process and arguments.against is not None:
        print(json.dumps(compare(names[0], arguments.against, clock, arguments.only)))
    elif arguments.in_this_process:
        print(json.dumps(measure(names[0], arguments.dtypes[0], clock)))
    else:
        kind = "CPU seconds" if arguments.cpu_time else "wall seconds"
        threads = f"{arguments.threads} thread{'s' if arguments.threads > 1 else ''}"
        print(f"{platform.machine()}, {threads}, torch {torch.__version__}, {SIZE[0]}x{SIZE[1]}, {kind}")
        (print_speeds if arguments.against is None else print_comparison)(arguments, names)


if __name__ == "__main__":
    main()
