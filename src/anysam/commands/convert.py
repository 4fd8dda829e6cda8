"""Rewrite published weights as a .safetensors file that says which model it is, where it came from, and its licence.

Accepted are PyTorch's .pth and .pt, pickled networks and NumPy arrays among them, other projects' .safetensors, and the
.pkl files of Tokenize Anything. Nothing in them is run. A model that is published as several files takes them all. The
result is checked to fit the model, and `anysam segment --model FILE` uses it.

With --text-tower, the file is a CLIP checkpoint in the form of OpenCLIP or EVA-CLIP, and the result a folder with its
text encoder alone. Made of eva02_clip_e_plus (10 GB, of which 1.4 GB are kept), it embeds names of your own for
Tokenize Anything: `anysam describe --labels FILE --text-encoder FOLDER`.

examples:
  anysam convert FastSAM.pt -o fastsam_x.safetensors
  anysam convert tap_vit_b_v1_1.pkl -o tap_vit_b.safetensors --dtype float16
  anysam convert l2.pt Prompt_guided_Mask_Decoder.pt -o mobilesamv2_efficientvit_l2.safetensors
  anysam convert mine.pth -o mine.safetensors --variant sam_vit_b
  anysam convert eva02_clip_e_plus --text-tower -o text_tower
"""

import argparse
import json
import sys

from anysam.commands.options import add_allow
from anysam.commands.progress import download_progress
from anysam.errors import OptionError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("files", nargs="+", metavar="FILE", help="a weights file, or all the files of one model")
    parser.add_argument(
        "-o", "--out", required=True, metavar="FILE", help="the .safetensors file, or the folder, to write"
    )
    parser.add_argument("--variant", metavar="NAME", help="a model of `anysam models`, if the file does not tell")
    parser.add_argument(
        "--dtype", choices=("float16", "float32"), help="number format to store (default: as in the file)"
    )
    parser.add_argument("--text-tower", action="store_true", help="write the text encoder of a CLIP checkpoint")
    parser.add_argument(
        "--tokenizer",
        metavar="FOLDER",
        help="with --text-tower: where a CLIP's tokenizer is, a folder or a name of the Hugging Face hub (default: "
        "beside FILE, else openai/clip-vit-base-patch32)",
    )
    parser.add_argument("--force", action="store_true", help="replace the file if it is there already")
    add_allow(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON document")


def run(arguments: argparse.Namespace) -> int:
    """Convert and say what was written. Raises AnySamError when nothing is written."""
    if arguments.text_tower:
        return _convert_text_tower(arguments)
    if arguments.tokenizer is not None:
        raise OptionError("--tokenizer has no effect without --text-tower.")
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


def _convert_text_tower(arguments: argparse.Namespace) -> int:
    for flag, value in (("--variant", arguments.variant), ("--dtype", arguments.dtype)):
        if value is not None:
            raise OptionError(f"{flag} has no effect with --text-tower, which keeps the numbers as they are stored.")
    if len(arguments.files) != 1:
        raise OptionError(f"--text-tower takes one checkpoint, got {len(arguments.files)} files.")
    from anysam.describe.tower_conversion import convert_text_tower  # with torch, which --help does without

    with download_progress(arguments.files[0]) as progress:
        done = convert_text_tower(
            arguments.files[0], arguments.out, arguments.tokenizer, arguments.force, progress, arguments.allow
        )
    facts = {
        "folder": str(done.folder),
        "width": done.width,
        "layers": done.layers,
        "logit_scale": round(done.logit_scale, 6),
        "licence": done.licence,
        "dtype": done.dtype,
        "tensors": done.tensors,
        "source_sha256": done.source_sha256,
    }
    if not done.is_expected:
        print(
            "warning: this is not the text encoder of EVA02-CLIP-bigE-14-plus (1280 wide, 32 layers), which Tokenize "
            "Anything was trained with; labels found with it mean nothing.",
            file=sys.stderr,
        )
    if arguments.json:
        print(json.dumps(facts, indent=2))
        return 0
    print(done.folder)
    what = f"{done.layers} layers, {done.width} wide, {done.tensors} tensors, {done.dtype}, {done.licence}"
    print(f"Wrote {done.folder}: a text encoder, {what}.", file=sys.stderr)
    return 0
