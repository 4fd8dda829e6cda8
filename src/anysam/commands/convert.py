"""Rewrite published weights as a .safetensors file that says which model it is, where it came from, and its licence.

Accepted are PyTorch's .pth and .pt, pickled networks and NumPy arrays among them, other projects' .safetensors, and the
.pkl files of Tokenize Anything. Nothing in them is run. A model that is published as several files takes them all. The
result is checked to fit the model, and `anysam segment --model FILE` uses it.

examples:
  anysam convert FastSAM.pt -o fastsam_x.safetensors
  anysam convert tap_vit_b_v1_1.pkl -o tap_vit_b.safetensors --dtype float16
  anysam convert l2.pt Prompt_guided_Mask_Decoder.pt -o mobilesamv2_efficientvit_l2.safetensors
  anysam convert mine.pth -o mine.safetensors --variant sam_vit_b
"""

import argparse
import json
import sys

from anysam.commands.options import add_allow


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("files", nargs="+", metavar="FILE", help="a weights file, or all the files of one model")
    parser.add_argument("-o", "--out", required=True, metavar="FILE", help="the .safetensors file to write")
    parser.add_argument("--variant", metavar="NAME", help="a model of `anysam models`, if the file does not tell")
    parser.add_argument(
        "--dtype", choices=("float16", "float32"), help="number format to store (default: as in the file)"
    )
    parser.add_argument("--force", action="store_true", help="replace the file if it is there already")
    add_allow(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON document")


def run(arguments: argparse.Namespace) -> int:
    """Convert and say what was written. Raises AnySamError when nothing is written."""
    from anysam.checkpoints import convert_checkpoint  # with torch, which --help does without

    done = convert_checkpoint(
        arguments.files, arguments.out, arguments.variant, arguments.dtype, arguments.force, arguments.allow
    )
    facts = {
        "weights": str(done.path),
        "variant": done.variant,
        "licence": done.licence,
        "dtype": done.dtype,
        "tensors": done.tensors,
        "megabytes": round(done.path.stat().st_size / 1e6, 1),
        "source_sha256": done.source_sha256,
    }
    if arguments.json:
        print(json.dumps(facts, indent=2))
        return 0
    what = f"{facts['tensors']} tensors, {facts['dtype']}, {facts['megabytes']} MB, {facts['licence']}"
    print(done.path)
    print(f"Wrote {done.path}: {done.variant}, {what}.", file=sys.stderr)
    return 0
