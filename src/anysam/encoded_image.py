"""What a model keeps of an image: a value that can be kept, saved and sent. Knows no network."""

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from anysam.devices import DTYPES, find_device, find_dtype
from anysam.errors import ImageError, OptionError
from anysam.weights_files import write_tensors

_FORMAT = "anysam-encoded-image-2"  # 2: a digest of everything in it
_MAX_HEADER = 1 << 20


@dataclass(frozen=True, eq=False)
class EncodedImage:
    """What a model keeps of an image: everything `Model.predict` needs beside the prompts.

    features: the network's tensors, leading dimension 1; "image_embeddings" (1, D, h, w) for a model that takes
        prompts, "decoded" (1, rows, anchors) for one that finds objects first.
    original_size, input_size: (H, W) of the image and of the resized, unpadded input.
    variant, preprocess, weights_sha256: the model that made it; only the same one can use it.
    """

    features: dict[str, Tensor]
    original_size: tuple[int, int]
    input_size: tuple[int, int]
    variant: str
    preprocess: str
    weights_sha256: str

    def save(self, path: str | Path, compact: bool = False, key: str = "") -> None:
        """Write a safetensors file, complete or not at all. Raises OutputError, or OptionError for no path.

        compact: False keeps every value bit for bit, True as `rounded`, in half of the space. key: kept in the file,
        for a `load` that wants to be sure which one it reads.
        """
        if not isinstance(path, (str, Path)) or not str(path) or "\0" in str(path):
            raise OptionError(f"An encoded image is saved to a path, got {path!r}.")
        write_tensors(path, *self._stored(compact, key))

    def to_bytes(self, compact: bool = False) -> bytes:
        """What `save` writes, without a file."""
        features, facts = self._stored(compact, "")
        return save({name: value.detach().cpu().contiguous() for name, value in features.items()}, facts)

    def _stored(self, compact: bool, key: str) -> tuple[dict[str, Tensor], dict[str, str]]:
        """The tensors and facts of a file."""
        features = {name: _halved(value) for name, value in self.features.items()} if compact else self.features
        facts = {
            "format": _FORMAT,
            "original_size": json.dumps(self.original_size),
            "input_size": json.dumps(self.input_size),
            "variant": self.variant,
            "preprocess": self.preprocess,
            "weights_sha256": self.weights_sha256,
            "dtypes": json.dumps(
                {name: str(value.dtype).removeprefix("torch.") for name, value in self.features.items()}
            ),
            "key": key,
        }
        return features, facts | {"digest": _digest(features, facts)}

    def rounded(self) -> "EncodedImage":
        """The same with features rounded to float16, in the dtype they have; what it cannot hold stays as it was."""
        features = {name: _halved(value).to(value.dtype) for name, value in self.features.items()}
        return replace(self, features=features)

    @classmethod
    def load(cls, path: str | Path, device: str = "cpu", key: str | None = None) -> "EncodedImage":
        """Read a file written by `save`, onto a device ("cpu", "cuda", ...).

        key: the one it was saved with; None takes a file with any, or none. Raises ImageError if the file is missing,
        damaged, of another key or anything else, OptionError for no path or no such device.
        """
        if not isinstance(path, (str, Path)):
            raise OptionError(f"An encoded image is read from a path, got {type(path).__name__}.")
        target = find_device(device)
        try:
            features, facts = _read(path)
        except FileNotFoundError as error:
            raise ImageError(f"There is no encoded image {str(path)!r}.") from error
        except (OSError, SafetensorError, AttributeError, KeyError, ValueError, RecursionError) as error:
            raise ImageError(
                f"{str(path)!r} is not a readable encoded image ({error}); encode the image again."
            ) from error
        if features is None:
            raise ImageError(
                f"{str(path)!r} is not an encoded image of this version: its format is {facts.get('format')!r}, "
                f"expected {_FORMAT!r}; encode the image again."
            )
        if facts.pop("digest", None) != _digest(features, facts):
            raise ImageError(
                f"{str(path)!r} is damaged: its values are not those that were saved; encode the image again."
            )
        if key is not None and facts.get("key") != key:
            raise ImageError(f"{str(path)!r} was saved with the key {facts.get('key')!r}, expected {key!r}.")
        try:
            encoded = cls(
                features=_with_dtypes(features, json.loads(facts["dtypes"]), target),
                original_size=_size(facts["original_size"]),
                input_size=_size(facts["input_size"]),
                variant=facts["variant"],
                preprocess=facts["preprocess"],
                weights_sha256=facts["weights_sha256"],
            )
        except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
            raise ImageError(
                f"{str(path)!r} is a damaged encoded image ({error!r}); encode the image again."
            ) from error
        shapes = [tensor.shape for tensor in features.values()]
        if not {"image_embeddings", "decoded"} & set(features) or any(shape[:1] != (1,) for shape in shapes):
            raise ImageError(f"{str(path)!r} does not hold the features of one image; encode the image again.")
        return encoded


def _read(path: str | Path) -> tuple[dict[str, Tensor] | None, dict[str, str]]:
    """The tensors and facts of a file; no tensors if it has another format.

    Read at one go and not mapped into memory: in a store another process may remove or replace it at any time.
    """
    with open(path, "rb") as file:
        start = file.read(8)
        header = file.read(min(int.from_bytes(start, "little"), _MAX_HEADER))
        facts = json.loads(header).get("__metadata__", {})
        if facts.get("format") != _FORMAT:  # perhaps gigabytes of weights
            return None, facts
        return load(start + header + file.read()), facts


def _halved(value: Tensor) -> Tensor:
    """As float16, if no value is too large for it and the tensor holds floating-point numbers at all."""
    if not value.is_floating_point() or not bool((value.abs() <= torch.finfo(torch.float16).max).all()):
        return value
    return value.to(torch.float16)


def _with_dtypes(features: dict[str, Tensor], dtypes: dict[str, str], device: torch.device) -> dict[str, Tensor]:
    wanted = {name: find_dtype(dtypes[name]) for name in features if name in dtypes and dtypes[name] in DTYPES}
    return {name: value.to(device, wanted.get(name, value.dtype)) for name, value in features.items()}


def _digest(features: dict[str, Tensor], facts: dict[str, str]) -> str:
    """Of all facts, names, shapes and values, as they are stored: safetensors itself would not see a flipped bit."""
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for name in sorted(features):
        value = features[name].detach().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)};".encode())
        digest.update(value.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _size(text: str) -> tuple[int, int]:
    height, width = json.loads(text)
    if not all(isinstance(side, int) and not isinstance(side, bool) and side > 0 for side in (height, width)):
        raise ValueError(f"size {text}")
    return height, width
