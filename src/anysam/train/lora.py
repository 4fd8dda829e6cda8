"""Low-rank adaptation: attention's projections learn a product of two thin matrices, everything else stays.

Paper: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", arXiv 2106.09685, section 4: W x becomes
W x + (alpha / rank) B A x, A random, B zero at the start, W frozen. For SAM, Zhang and Liu ("Customized Segment
Anything Model for Medical Image Segmentation", arXiv 2304.13785) put it on the queries and values of the image encoder,
with rank 4. Written anew.

A fused projection of queries, keys and values has a product of its own for the rows of each. The products are merged
into plain weights at saving, so the saved file is an ordinary one; or they are saved alone, as an adapter:

    python -m anysam.train.lora BASE ADAPTER.safetensors MERGED.safetensors

puts an adapter back on the weights that it was learned on.
"""

import argparse
import math
from collections.abc import Mapping
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from anysam.checkpoints import load_model
from anysam.errors import OptionError, WeightsError
from anysam.models.mobile_sam import Attention as WindowAttention
from anysam.weights_files import read_metadata, read_state_dict, save_checkpoint

# Names of attention's projections in the networks of this package. In the fused ones the rows of queries, keys and
# values lie one after the other, or so for each head.
_FUSED = ("qkv", "Wqkv")
_SINGLE = {"q_proj": "q", "k_proj": "k", "v_proj": "v", "out_proj": "out", "proj": "out"}

_PREFIX = "lora."

TARGETS = {"qv": ("q", "v"), "all": ("q", "k", "v", "out")}


class LowRank(nn.Module):
    """The product that is added to some rows of a matrix: scale * b @ a.

    rows: (K,) int64, of the matrix. a: (rank, inputs), random; b: (K, rank), zero at the start.
    """

    rows: Tensor

    def __init__(self, rows: Tensor, inputs: int, rank: int, scale: float, generator: torch.Generator) -> None:
        super().__init__()
        bound = 1 / math.sqrt(inputs)
        self.a = nn.Parameter((torch.rand(rank, inputs, generator=generator) * 2 - 1) * bound)
        self.b = nn.Parameter(torch.zeros(len(rows), rank))
        self.scale = scale
        self.register_buffer("rows", rows, persistent=False)


class LoraLinear(nn.Module):
    """A frozen linear layer and what is added to it; stands where the layer stood.

    Decoders read `weight` and `bias` of some projections instead of calling them: those are the merged ones.
    parts: what is added, by "q", "k", "v", "out".
    """

    def __init__(self, base: nn.Linear, parts: Mapping[str, LowRank]) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.parts = nn.ModuleDict(dict(parts))
        self.in_features, self.out_features = base.in_features, base.out_features

    @property
    def weight(self) -> Tensor:
        """The merged matrix (outputs, inputs)."""
        weight = self.base.weight
        for part in self.products().values():
            added = (part.b @ part.a) * part.scale  # in half precision under autocast
            weight = weight.index_add(0, part.rows, added.to(weight.dtype))
        return weight

    @property
    def bias(self) -> Tensor:
        return self.base.bias

    def forward(self, x: Tensor) -> Tensor:
        """(..., inputs) -> (..., outputs)."""
        y = self.base(x)
        for part in self.products().values():
            added = functional.linear(functional.linear(x, part.a), part.b) * part.scale  # (..., K)
            y = y.index_add(-1, part.rows, added.to(y.dtype))
        return y

    def products(self) -> dict[str, LowRank]:
        """What is added, by "q", "k", "v", "out"."""
        return {name: cast(LowRank, part) for name, part in self.parts.items()}


def inject(network: nn.Module, parts: list[str], rank: int, alpha: float, targets: str, seed: int = 0) -> list[str]:
    """Put low-rank products beside the attention's projections below the children `parts` of a network, in place.

    targets: a key of TARGETS. seed: of the random halves. Returns the names of the layers. Only the products require
    gradients in these layers; other parameters stay as they are. Raises OptionError for a rank below 1, or where there
    is no such projection (an encoder of convolutions alone).
    """
    if rank < 1:
        raise OptionError(f"The rank of LoRA must be at least 1, got {rank}.")
    found = {name: rows for part in parts for name, rows in _projections(network, part, TARGETS[targets]).items()}
    if not found:
        raise OptionError(
            f"LoRA finds no attention in {', '.join(parts) or 'this network'}; choose another part, or learn the "
            "decoder or the whole network instead."
        )
    generator = torch.Generator().manual_seed(seed)
    for name, rows in found.items():
        base = cast(nn.Linear, network.get_submodule(name))
        products = {
            part: LowRank(where, base.in_features, rank, alpha / rank, generator).to(base.weight.device)
            for part, where in rows.items()
        }
        parent, _, leaf = name.rpartition(".")
        setattr(network.get_submodule(parent), leaf, LoraLinear(base, products))
    return list(found)


def _projections(network: nn.Module, part: str, wanted: tuple[str, ...]) -> dict[str, dict[str, Tensor]]:
    """Name -> {"q": rows ...} of the attention's projections below the child `part`, as far as wanted."""
    found = {}
    for name, module in network.get_submodule(part).named_modules(prefix=part):
        if isinstance(module, nn.Linear):
            rows = {kind: where for kind, where in _rows(network, name, module).items() if kind in wanted}
            if rows:
                found[name] = rows
    return found


def _rows(network: nn.Module, name: str, layer: nn.Linear) -> dict[str, Tensor]:
    """{"q": rows (K,) int64 ...} of a projection; empty for a layer that is none."""
    parent, _, leaf = name.rpartition(".")
    rows = torch.arange(layer.out_features)
    if leaf in _FUSED:
        owner = network.get_submodule(parent)
        if isinstance(owner, WindowAttention):  # TinyViT: a head's q, k and v lie together
            thirds = rows.unflatten(0, (owner.num_heads, 3, -1)).transpose(0, 1).flatten(1)  # (3, D)
        else:
            thirds = rows.unflatten(0, (3, -1))  # (3, D)
        return dict(zip("qkv", thirds, strict=True))
    return {_SINGLE[leaf]: rows} if leaf in _SINGLE else {}


def merged_state_dict(network: nn.Module) -> dict[str, Tensor]:
    """The state_dict of the network as it was before `inject`, with the products in its weights."""
    state = dict(network.state_dict())
    for name, module in network.named_modules():
        if isinstance(module, LoraLinear):
            state = {key: value for key, value in state.items() if not key.startswith(f"{name}.")}
            state[f"{name}.weight"] = module.weight.detach()
            if module.bias is not None:
                state[f"{name}.bias"] = module.bias.detach()
    return state


def adapter_state_dict(network: nn.Module) -> dict[str, Tensor]:
    """The products alone, by the names of their layers and parts, with the scale in b."""
    adapter = {}
    for name, module in network.named_modules():
        if isinstance(module, LoraLinear):
            for part, product in module.products().items():
                adapter[f"{_PREFIX}{name}.{part}.a"] = product.a.detach()
                adapter[f"{_PREFIX}{name}.{part}.b"] = product.b.detach() * product.scale
    return adapter


def merge_adapter(network: nn.Module, adapter: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state_dict of a network with an adapter's products (`adapter_state_dict`) in its weights.

    Raises WeightsError for tensors that are no adapter, or one of another network.
    """
    state = dict(network.state_dict())
    for key in sorted(adapter):
        name, _, tail = key.removeprefix(_PREFIX).rpartition(".")
        name, _, part = name.rpartition(".")
        if tail == "b" and f"{key[:-1]}a" in adapter:
            continue
        a, b = adapter[key], adapter.get(f"{key[:-1]}b")
        weight = state.get(f"{name}.weight")
        layer = network.get_submodule(name) if weight is not None else None
        rows = _rows(network, name, layer).get(part) if isinstance(layer, nn.Linear) else None
        if not key.startswith(_PREFIX) or tail != "a" or b is None or weight is None or rows is None:
            raise WeightsError(
                f"These tensors are no adapter of this network: {key[:120]!r} belongs to none of its layers."
            )
        if a.shape[1:] != weight.shape[1:] or b.shape != (len(rows), len(a)):
            raise WeightsError(
                f"This adapter is of another network: {key[:120]!r} is {tuple(a.shape)} and {tuple(b.shape)} for a "
                f"matrix of {tuple(weight.shape)}."
            )
        state[f"{name}.weight"] = weight.index_add(0, rows, b.to(weight.dtype) @ a.to(weight.dtype))
    return state


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", help="catalogue name or weights file that the adapter was learned on")
    parser.add_argument("adapter", type=Path)
    parser.add_argument("merged", type=Path, help="the .safetensors file to write")
    arguments = parser.parse_args()
    facts = read_metadata(arguments.adapter)
    network, row, digest = load_model(arguments.base, None)
    merged = merge_adapter(network, read_state_dict(arguments.adapter))
    licence = facts.get("licence", row.weights_licence)
    save_checkpoint(arguments.merged, merged, {"variant": row.name, "source_sha256": digest, "licence": licence})


if __name__ == "__main__":
    main()
