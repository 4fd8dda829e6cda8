"""Promptable segmentation for the Segment Anything family.

The public names below are loaded on first use, so that `import anysam` costs nothing and the command line can list
models without importing torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from anysam.automatic.options import EverythingOptions
    from anysam.automatic.presets import preset
    from anysam.checkpoints import convert_checkpoint
    from anysam.describe.clip import load_image_text
    from anysam.describe.find_options import FindOptions
    from anysam.describe.interface import describe_records
    from anysam.describe.tap_words import DescribeOptions
    from anysam.describe.vocabulary import load_vocabulary
    from anysam.describers import load_describer
    from anysam.encoded_image import EncodedImage
    from anysam.errors import AnySamError, LicenceError
    from anysam.images import read_image
    from anysam.listing import list_models
    from anysam.predictor import Model, load
    from anysam.prompts import Prompt
    from anysam.results import MaskRecord, Prediction
    from anysam.store import EmbeddingStore

__version__ = "0.1.0"

__all__ = [
    "AnySamError",
    "DescribeOptions",
    "EmbeddingStore",
    "EncodedImage",
    "EverythingOptions",
    "FindOptions",
    "LicenceError",
    "MaskRecord",
    "Model",
    "Prediction",
    "Prompt",
    "__version__",
    "convert_checkpoint",
    "describe_records",
    "list_models",
    "load",
    "load_describer",
    "load_image_text",
    "load_vocabulary",
    "preset",
    "read_image",
]

_HOMES = {
    "AnySamError": "anysam.errors",
    "DescribeOptions": "anysam.describe.tap_words",
    "EmbeddingStore": "anysam.store",
    "EncodedImage": "anysam.encoded_image",
    "EverythingOptions": "anysam.automatic.options",
    "FindOptions": "anysam.describe.find_options",
    "LicenceError": "anysam.errors",
    "MaskRecord": "anysam.results",
    "Model": "anysam.predictor",
    "Prediction": "anysam.results",
    "Prompt": "anysam.prompts",
    "convert_checkpoint": "anysam.checkpoints",
    "describe_records": "anysam.describe.interface",
    "list_models": "anysam.listing",
    "load": "anysam.predictor",
    "load_describer": "anysam.describers",
    "load_image_text": "anysam.describe.clip",
    "load_vocabulary": "anysam.describe.vocabulary",
    "preset": "anysam.automatic.presets",
    "read_image": "anysam.images",
}


def __getattr__(name: str) -> object:
    """Import the module that holds a public name when the name is first used (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value  # later uses find it without this function
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
