"""The options that choose a model and bound its images, and loading it, for commands that segment."""

import argparse
from typing import TYPE_CHECKING, Any

from anysam.commands.options import add_allow
from anysam.commands.progress import download_progress
from anysam.errors import OptionError

if TYPE_CHECKING:
    from anysam.predictor import Model


def add_model_options(group: argparse._ArgumentGroup) -> None:
    """Declare --model, --device, --dtype, --allow and --max-pixels."""
    group.add_argument(
        "--model", metavar="NAME|FILE", help="a model of `anysam models`, or a weights file (default: the built-in one)"
    )
    group.add_argument("--device", metavar="NAME", help="cpu, cuda, cuda:1, ... (default: a GPU if there is one)")
    group.add_argument(
        "--dtype",
        choices=("float32", "float16", "bfloat16"),
        default="float32",
        help="number format (default: %(default)s)",
    )
    add_allow(group)
    group.add_argument(
        "--max-pixels", type=int, metavar="N", help="refuse images of more pixels than this (default: 178,956,970)"
    )


def pixel_limit(arguments: argparse.Namespace) -> int:
    """--max-pixels, or its default. Raises OptionError."""
    from anysam.images import MAX_PIXELS

    limit: int = MAX_PIXELS if arguments.max_pixels is None else arguments.max_pixels
    if limit < 1:
        raise OptionError(f"--max-pixels must be at least 1, got {limit}.")
    return limit


def load_model(arguments: argparse.Namespace, name: str | None) -> "Model":
    """The model `name`, None for the built-in one, on the device and with the numbers that the options say."""
    from anysam import predictor

    with download_progress(name or "") as progress:
        return predictor.load(
            name, device=arguments.device, dtype=arguments.dtype, progress=progress, allow=arguments.allow
        )


def model_facts(model: "Model") -> dict[str, Any]:
    """What a result's reader wants to know of a model, in JSON form."""
    return {
        "name": model.variant,
        "weights_sha256": model.weights_sha256,
        "device": str(model.device),
        "dtype": str(model.dtype).removeprefix("torch."),
    }
