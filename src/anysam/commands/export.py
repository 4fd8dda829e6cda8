"""Write a model's decoder for other runtimes: an ONNX file that answers clicks in browsers and elsewhere.

The image is still encoded by anysam; its features and the prompts go into the file. Before anything is written it is
compared with PyTorch on images and prompts of several kinds.

examples:
  anysam export decoder --half
  anysam export decoder --model mobile_sam -o mobile_sam.onnx
"""

import argparse
import json
from pathlib import Path

from anysam.commands.options import add_allow, printable

_NAMES = {"decoder": "Write the decoder of a promptable model as ONNX, with a JSON file that describes it."}


def names() -> tuple[str, ...]:
    """What may stand after `anysam export`."""
    return tuple(_NAMES)


def describe(name: str) -> str:
    """What `anysam export NAME --help` says first."""
    return _NAMES[name]


def add_arguments(parser: argparse.ArgumentParser, name: str | None = None) -> None:
    """Declare the arguments; without a name there is only the list."""
    if name is None:
        parser.add_argument("what", nargs="?", metavar="WHAT", help="decoder; with --help, all about it")
        return
    parser.add_argument(
        "--model", metavar="NAME|FILE", help="a model of `anysam models`, or a weights file (default: the built-in one)"
    )
    parser.add_argument(
        "-o", "--out", metavar="FILE", help="the ONNX file; FILE.json is beside it (default: MODEL_decoder.onnx)"
    )
    parser.add_argument(
        "--half",
        action="store_true",
        help="store weights as float16: half the size, and exact for the built-in model; other models are refused "
        "where rounding changes their masks too much",
    )
    parser.add_argument("--json", action="store_true", help="print the description as JSON")
    add_allow(parser)
    parser.set_defaults(what=name)


def run(arguments: argparse.Namespace) -> int:
    """Export, and say what came of it. Raises AnySamError."""
    from anysam.errors import OptionError

    if arguments.what != "decoder":
        if arguments.what is not None:
            raise OptionError(f"There is nothing called {arguments.what!r} to export; there is: {', '.join(_NAMES)}.")
        print("\n".join(f"anysam export {name:10} {text}" for name, text in _NAMES.items()))
        return 0
    from anysam.atomic import write_atomic
    from anysam.catalogue import VARIANTS
    from anysam.commands.progress import download_progress
    from anysam.export.decoder import DecoderOptions, export_decoder
    from anysam.export.graphs import FAMILIES, not_exportable
    from anysam.predictor import load

    if arguments.out is not None and Path(arguments.out).suffix != ".onnx":
        raise OptionError(f"--out must end in .onnx, got {arguments.out!r}; the description goes beside it.")
    if any(row.name == arguments.model and row.family not in FAMILIES for row in VARIANTS):
        raise not_exportable(arguments.model)  # before a download
    named = None if arguments.out is None else _writable(arguments.out)
    with download_progress(arguments.model or "") as progress:
        model = load(arguments.model, device="cpu", progress=progress, allow=arguments.allow)
    path = named or _writable(f"{model.variant}_decoder.onnx")
    file = export_decoder(model, DecoderOptions(half=arguments.half))
    write_atomic(path, lambda out: out.write(file.data))
    text = json.dumps(file.info, indent=2)
    write_atomic(path.with_suffix(".json"), lambda out: out.write(f"{text}\n".encode()))
    if arguments.json:
        print(text)
    else:
        certificate = file.info["certificate"]
        print(
            f"{printable(str(path))}: {file.info['bytes'] / 1e6:.2f} MB; logits differ from PyTorch's by at most "
            f"{certificate['max_logit_difference']:.1e} in {certificate['inputs']} calls"
        )
    return 0


def _writable(out: str) -> Path:
    """The path, if both files can be written: exporting takes long. Raises OutputError."""
    from anysam.atomic import require_writable

    path = Path(out)
    for each in (path, path.with_suffix(".json")):
        require_writable(each)
    return path
