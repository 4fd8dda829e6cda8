"""A family of tiny networks with every hook that a family's module may have, and a catalogue of its variants."""

import sys
import types
from collections.abc import Mapping, Sequence

import pytest
import torch
from torch import Tensor, nn

from anysam import checkpoints, identification
from anysam.catalogue import Variant, WeightsFile, find_variant
from anysam.errors import WeightsError


class Hooked(nn.Module):
    """width: known for the sizes two and three, read from the weights for any."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.encoder = nn.Linear(width, width)
        self.decoder = nn.BatchNorm1d(width)


WIDTHS = {"two": 2, "three": 3}


def build(size: str) -> nn.Module:
    return Hooked(WIDTHS.get(size, 1))


def build_like(size: str, state_dict: Mapping[str, Tensor]) -> nn.Module:
    if "encoder.bias" not in state_dict:
        raise WeightsError("These tensors have no encoder.")
    return Hooked(len(state_dict["encoder.bias"]) if size == "any" else WIDTHS[size])


def convert_state_dict(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key.replace("vision_model.", "encoder."): value for key, value in state_dict.items()}


def merge_parts(parts: Sequence[object]) -> dict[str, Tensor]:
    """{"PromtEncoder": ...} is the decoder, {"model": ...} the encoder."""
    found: dict[str, Tensor] = {}
    for part in parts:
        assert isinstance(part, dict)
        for name, prefix in (("PromtEncoder", "decoder."), ("model", "vision_model.")):
            found |= {prefix + key: value for key, value in part.get(name, {}).items()}
    if len(found) < 6:
        raise WeightsError("The parts are no encoder and decoder.")
    return found


def row(name: str, size: str, **facts: object) -> Variant:
    given = {
        "prompts": ("point",),
        "parameters": None,
        "file": WeightsFile(f"{name}.pth"),
        "code_licence": "MIT",
        "weights_licence": "Apache-2.0",
        "source": "nowhere",
        "summary": "tiny",
    }
    return Variant(name=name, family="hooked", size=size, **{**given, **facts})  # type: ignore[arg-type]


PARTS = (WeightsFile("encoder.pt"), WeightsFile("decoder.pt"))


def install(monkeypatch: pytest.MonkeyPatch, *more: Variant) -> tuple[Variant, ...]:
    """Make the catalogue: hooked_two, hooked_two_longer (the same shapes), hooked_three of two files, hooked_any."""
    rows = (
        row("hooked_two", "two", parameters=10),
        row("hooked_two_longer", "two", parameters=10, weights_licence="AGPL-3.0"),
        row("hooked_three", "three", parameters=18, parts=PARTS),
        *more,
        row("hooked_any", "any", weights_licence="S-Lab-1.0"),
    )
    module = types.ModuleType("anysam.models.hooked")
    for hook in (build, build_like, convert_state_dict, merge_parts):
        setattr(module, hook.__name__, hook)
    monkeypatch.setitem(sys.modules, "anysam.models.hooked", module)
    for user in (checkpoints, identification):
        monkeypatch.setattr(user, "VARIANTS", rows)

    def find(name: str) -> Variant:
        return next((each for each in rows if each.name == name), None) or find_variant(name)

    monkeypatch.setattr(checkpoints, "find_variant", find)
    monkeypatch.setattr(identification, "build", lambda family, size: build(size))
    return rows


def tensors_of(width: int, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        key: torch.rand(value.shape, generator=generator) if value.is_floating_point() else torch.tensor(7)
        for key, value in Hooked(width).state_dict().items()
    }
