"""Which network a state_dict is for, and the network itself without values. Opens no files.

A family's module may offer, beside `build`:

    convert_state_dict(state_dict)       other published spellings of its keys -> its own; its own unchanged
    build_like(size, state_dict)         where widths must be read from the tensors
    merge_parts(parts)                   where the weights are published as several files: their contents -> state_dict
"""

import importlib
from collections.abc import Iterable, Mapping, Sequence
from types import ModuleType
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn import init
from torch.overrides import TorchFunctionMode

from anysam.catalogue import VARIANTS, Variant
from anysam.errors import AnySamError, OptionError
from anysam.models import build

# Keys that a file may have beyond the model's own, and the only values they may hold: another value means another
# preprocessing than ours, so it counts as an unexpected key.
EXTRA_KEYS = {
    # SAM's pixel statistics are non-persistent buffers: official files lack them, some re-saved files have them.
    "pixel_mean": (123.675, 116.28, 103.53),
    "pixel_std": (58.395, 57.12, 57.375),
}

Shapes = Mapping[str, tuple[int, ...]]


@runtime_checkable
class _Converts(Protocol):
    def convert_state_dict(self, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]: ...


@runtime_checkable
class _Adapts(Protocol):
    def build_like(self, size: str, state_dict: Mapping[str, Tensor]) -> nn.Module: ...


@runtime_checkable
class _Merges(Protocol):
    def merge_parts(self, parts: Sequence[object]) -> dict[str, Tensor]: ...


def _module(variant: Variant) -> ModuleType:
    return importlib.import_module(f"anysam.models.{variant.family}")


def converted(variant: Variant, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`state_dict` under the keys of the variant's network."""
    module = _module(variant)
    return module.convert_state_dict(state_dict) if isinstance(module, _Converts) else dict(state_dict)


def merged(variant: Variant, parts: Sequence[object]) -> dict[str, Tensor]:
    """The state_dict of a variant from the contents of its published files. Raises OptionError if it has but one."""
    module = _module(variant)
    if not isinstance(module, _Merges):
        raise OptionError(f"The weights of {variant.name} are one file, got {len(parts)}.")
    return module.merge_parts(parts)


def unfilled(variant: Variant, state_dict: Mapping[str, Tensor]) -> nn.Module:
    """The variant's network for these (converted) tensors, whose values are still undefined.

    Raises WeightsError if the variant reads its widths from the tensors and they are of another network.
    """
    module = _module(variant)
    with _SkipRandomInit():
        if isinstance(module, _Adapts):
            return module.build_like(variant.size, state_dict)
        return build(variant.family, variant.size)


def guess_variant(shapes: Shapes) -> str | None:
    """The variant whose keys and shapes are most like `shapes`, or None if none shares at least half of them."""
    return next((variant.name for variant in likely_variants(shapes)), None)


def likely_variants(shapes: Shapes) -> list[Variant]:
    """The variants whose keys and shapes are most like `shapes`, all equally; none if none shares half of them.

    Networks are built one after the other, those of a similar number of parameters first, until one fits exactly. Their
    values stay untouched, so that they take no memory. (On torch's meta device arithmetic in a constructor is slow, and
    some of it imports torch's compiler.)
    """
    given = {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}
    size = sum(value.numel() for value in given.values())
    best: list[Variant] = []
    best_score = 0.5
    scores: dict[tuple[str, str], float] = {}
    for variant in sorted(VARIANTS, key=lambda variant: _distance(variant, size)):
        if best_score == 1 and variant.parameters != best[0].parameters:
            continue  # another number of parameters cannot fit exactly as well
        network = variant.family, variant.size
        if network not in scores:
            scores[network] = _score(variant, given)
        if scores[network] > best_score:
            best, best_score = [variant], scores[network]
        elif best and scores[network] == best_score:
            best.append(variant)
    return sorted(best, key=VARIANTS.index)


def _distance(variant: Variant, size: int) -> float:
    return float("inf") if variant.parameters is None else abs(variant.parameters - size)


def _score(variant: Variant, given: Mapping[str, Tensor]) -> float:
    """The share of keys with equal shapes among all keys of `given` and the variant's network; 1 is an exact fit."""
    try:
        tensors = converted(variant, given)
    except AnySamError:  # another spelling of another network
        return 0.0
    try:
        network = unfilled(variant, tensors)
    except AnySamError:  # the tensors are of another network; how much is alike is still worth knowing
        with _SkipRandomInit():
            network = build(variant.family, variant.size)
    expected = network.state_dict()
    counted = [(key, value) for key, value in tensors.items() if key in expected or key not in EXTRA_KEYS]
    own, theirs = _forms(expected.items()), _forms(counted)
    return len(own & theirs) / max(1, len(own | theirs))


def _forms(tensors: Iterable[tuple[str, Tensor]]) -> set[tuple[str, tuple[int, ...]]]:
    return {(key, tuple(value.shape)) for key, value in tensors}


class _SkipRandomInit(TorchFunctionMode):
    """Networks built under this keep their weights as allocated (the base class is how torch intercepts calls).

    All of them are overwritten by load_strictly, or only their shapes are wanted, and drawing hundreds of millions of
    random numbers takes seconds.
    """

    def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        """Return the tensor untouched where a random initialiser is called."""
        kwargs = kwargs or {}
        if func in (init.uniform_, init.normal_, init.kaiming_uniform_, Tensor.uniform_, Tensor.normal_):
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return func(*args, **kwargs)
