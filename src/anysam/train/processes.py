"""Several training processes, as torchrun starts them: who is who, equal starts, gathered gradients.

Gradients travel in large flat messages after the backward pass. torch's DistributedDataParallel would send them during
it, but averages with equal weights, while ours are divided by what the processes counted together.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, distributed, nn

from anysam.errors import OptionError

_BUCKET = 25_000_000  # gradients in one message
_SMALLEST_SHARDED = 50_000_000  # parameters; below, a whole copy costs less than fetching parts of it
# The others wait while the first validates; when one dies, torchrun ends the others.
_PATIENCE = timedelta(days=1)


def rank() -> int:
    """This process's number, 0 for the first or only one."""
    return int(os.environ.get("RANK", "0"))


def world() -> int:
    """How many processes train together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def meet(device: torch.device) -> bool:
    """Join the other processes, if there are any; whether that was still to be done."""
    if world() == 1 or distributed.is_initialized():
        return False
    if device.type == "cuda":
        torch.cuda.set_device(device)  # where collective calls put what they send
    distributed.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=_PATIENCE)
    return True


@contextmanager
def company(device: torch.device) -> Iterator[None]:
    """Within the block the processes that torchrun started know each other; within another such block, as before."""
    joined = meet(device)
    try:
        yield
    finally:
        if joined:
            distributed.destroy_process_group()


def local_device(device: torch.device) -> torch.device:
    """The process's own GPU where `device` is "cuda" without a number and torchrun has started several processes.

    Raises OptionError if there are fewer GPUs than processes, or several processes are to share a numbered one.
    """
    if device.type != "cuda" or world() == 1:
        return device
    number = int(os.environ.get("LOCAL_RANK", "0"))
    if str(device) != "cuda":
        raise OptionError(f"{world()} processes cannot share {device}; use --device cuda, one GPU each.")
    if number >= torch.cuda.device_count():
        raise OptionError(
            f"Process {number} of this machine has no GPU: there are {torch.cuda.device_count()}; start that many with "
            "--nproc-per-node, or use --device cpu."
        )
    return torch.device("cuda", number)


def equal_start(network: nn.Module) -> None:
    """Give every process the first one's parameters and buffers."""
    if world() > 1:
        for value in network.state_dict().values():
            sent = value.contiguous()  # a message has no strides
            distributed.broadcast(sent, 0)
            value.copy_(sent)


def gather(parameters: Sequence[nn.Parameter], counts: Tensor) -> Tensor:
    """Sum gradients over all processes, in place, and `counts` (K,) float64, which is returned.

    A parameter without a gradient in one process counts as zeros there; without one anywhere it stays without.
    """
    if world() == 1:
        return counts
    there = torch.tensor([p.grad is not None for p in parameters], dtype=torch.float64)
    sums = torch.cat([counts, there]).to(parameters[0].device)  # (K + parameters,)
    distributed.all_reduce(sums)
    counts, there = sums.cpu().split([len(counts), len(there)])
    for bucket in _buckets([p for p, number in zip(parameters, there.tolist(), strict=True) if number]):
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in bucket]
        flat = torch.cat([gradient.flatten().float() for gradient in gradients])
        distributed.all_reduce(flat)
        for parameter, gradient, part in zip(bucket, gradients, flat.split([p.numel() for p in bucket]), strict=True):
            gradient.copy_(part.view(gradient.shape))
            parameter.grad = gradient
    return counts


def _buckets(parameters: Sequence[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    """The parameters in order, in groups of at most _BUCKET numbers; a larger one is alone."""
    bucket, size = list[nn.Parameter](), 0
    for parameter in parameters:
        if bucket and size + parameter.numel() > _BUCKET:
            yield bucket
            bucket, size = [], 0
        bucket.append(parameter)
        size += parameter.numel()
    if bucket:
        yield bucket


def everyone(value: Any) -> list[Any]:
    """Every process's value, in the order of their numbers."""
    if world() == 1:
        return [value]
    values: list[Any] = [None] * world()
    distributed.all_gather_object(values, value)
    return values


def from_first(value: Any) -> Any:
    """The first process's value."""
    if world() == 1:
        return value
    values = [value]
    distributed.broadcast_object_list(values, 0)
    return values[0]


def shard(network: nn.Module) -> bool:
    """Spread a large frozen network (a teacher) over the GPUs of all processes (FSDP); whether that was done.

    Small ones stay whole, and so does any on one process or on CPUs. Parts of a spread one are fetched block by block
    when it is called, which all processes must do together: never in Task.validate.
    """
    parameters = list(network.parameters())
    large = sum(p.numel() for p in parameters) >= _SMALLEST_SHARDED
    if world() == 1 or not large or parameters[0].device.type != "cuda":
        return False
    shard_blocks(network)
    return True


def shard_blocks(network: nn.Module) -> nn.Module:
    """The network, changed in place: of each block of its ModuleLists, and of the rest, a process keeps its part.

    It may then be called as network(...) and, where it has that method, as network.encode_image(...); other methods do
    not fetch what they need. (On CPUs too, with gloo; there it saves nothing that a shared memory would not.)
    """
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method  # torch 2.6

    for module in reversed(list(network.modules())):  # what is inside before what holds it
        if isinstance(module, nn.ModuleList):
            for block in module:
                fully_shard(block, reshard_after_forward=True)
    fully_shard(network, reshard_after_forward=True)
    if hasattr(network, "encode_image"):
        register_fsdp_forward_method(network, "encode_image")
    return network
