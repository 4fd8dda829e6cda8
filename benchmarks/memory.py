"""The most memory that everything mode takes above a loaded model, under several bounds.

python benchmarks/memory.py [--variants anysam_lite sam_vit_b] [--sizes 800x600 4000x3000] [--bounds none 1G 300M]
python benchmarks/memory.py --synthetic [--sizes 12000x8000] (made-up logits: what comes after the network alone)

Every run has a process of its own. What is counted is the resident set at its
peak, less the resident set when the model is loaded and the image is read. Masks are the same under every bound: the
table shows a hash of all records. A model whose weights are not on this machine has random ones.
"""

import argparse
import dataclasses
import hashlib
import json
import platform
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from speed import PHOTO, open_model

from anysam.automatic.grid_mode import grid_records
from anysam.automatic.options import EverythingOptions
from anysam.automatic.presets import preset
from anysam.errors import OptionError
from anysam.memory import parse_size, resident_bytes


def resident_megabytes(name: str) -> float:
    """What this process holds now, VmRSS, or held at most since `forget_peak`, VmHWM (Linux)."""
    found = resident_bytes(name)
    assert found is not None
    return found / 1e6


def forget_peak() -> None:
    """Let the peak begin anew: reading a large image takes more than keeping it."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def measure(name: str, size: tuple[int, int], bound: str, points: int) -> dict[str, object]:
    """One run in this process. size: (W, H)."""
    image = np.asarray(Image.open(PHOTO).convert("RGB").resize(size))
    if name == "synthetic":
        from everything import SceneModel, make_scene

        model = SceneModel(make_scene((size[1], size[0])))
    else:
        model = open_model(name)
    # Random weights make no good masks: then the filters let all of them through.
    random = getattr(model, "weights_sha256", "") == "random"
    thresholds = {"pred_iou_thresh": 0.0, "stability_score_thresh": 0.0} if random else {}
    own = EverythingOptions() if name == "synthetic" or random else preset("default", name)
    limit = None if bound == "none" else parse_size(bound)
    options = dataclasses.replace(own, points_per_side=points, max_memory=limit, **thresholds)
    forget_peak()
    before = resident_megabytes("VmRSS")
    try:
        with torch.inference_mode():
            records = grid_records(model, image, options, None)
    except OptionError as error:
        return {"masks": "-", "MB": "-", "records": str(error)}
    text = json.dumps([record.to_dict() for record in records])
    return {
        "masks": len(records),
        "MB": round(resident_megabytes("VmHWM") - before),
        "records": hashlib.sha256(text.encode()).hexdigest()[:12],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variants", nargs="+", default=["anysam_lite"], help="names of the catalogue")
    parser.add_argument("--sizes", nargs="+", default=["800x600"], help="width x height of the photograph")
    parser.add_argument("--bounds", nargs="+", default=["none", "1G", "300M"], help="--max-memory, or none")
    parser.add_argument("--points", type=int, default=32, help="points along each side")
    parser.add_argument("--synthetic", action="store_true", help="made-up logits instead of a network's")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--in-this-process", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    names = ["synthetic"] if arguments.synthetic else arguments.variants
    if arguments.in_this_process:
        width, height = (int(side) for side in arguments.sizes[0].split("x"))
        print(json.dumps(measure(names[0], (width, height), arguments.bounds[0], arguments.points)))
        return
    print(f"{platform.machine()}, {arguments.threads} threads, torch {torch.__version__}, MB of 10^6 bytes")
    print("\n| model | image | bound | masks | MB above the model | records |\n|" + " --- |" * 6)
    for name in names:
        for size in arguments.sizes:
            for bound in arguments.bounds:
                command = [sys.executable, __file__, "--in-this-process", "--sizes", size, "--bounds", bound]
                command += ["--threads", str(arguments.threads), "--points", str(arguments.points)]
                command += ["--synthetic"] if arguments.synthetic else ["--variants", name]
                row = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
                print(f"| {name} | {size} | {bound} | {row['masks']} | {row['MB']} | {row['records']} |", flush=True)


if __name__ == "__main__":
    main()
