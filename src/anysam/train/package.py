"""A checkpoint of the built-in model's training -> the file that ships: averaged weights, float16, with its origin.

python -m anysam.train.package runs/lite/checkpoint.pt src/anysam/weights/anysam_lite.safetensors
"""

import argparse
from pathlib import Path

import torch

from anysam.checkpoints import file_sha256, save_checkpoint


def package(checkpoint: Path, target: Path) -> None:
    """Write the averaged weights of a checkpoint of train.anysam_lite. Raises OutputError if that fails."""
    state = torch.load(checkpoint, map_location="cpu", weights_only=True)
    weights = {name: value.to(torch.float16).contiguous() for name, value in state["ema"].items()}
    facts = {
        "variant": "anysam_lite",
        "source_sha256": file_sha256(checkpoint),
        "licence": "see the model card anysam_lite.md",
        "stored_dtype": "float16",
        "steps": str(state["step"]),
    }
    target.parent.mkdir(parents=True, exist_ok=True)
    save_checkpoint(target, weights, facts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("target", type=Path)
    arguments = parser.parse_args()
    package(arguments.checkpoint, arguments.target)


if __name__ == "__main__":
    main()
