"""What a recipe gives to the training loop: the boundary between `loop.py` and the recipes. Nothing computes here."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Step:
    """Where a run stands when a loss is computed.

    index: optimiser steps done, from 0. progress: index / steps, in [0, 1). epoch: passes over the data begun before
    this one. device: where the network is. generator: a CPU generator seeded by (seed, step, process, part of the
    step), for what a loss draws: using no other source makes a resumed run equal an unbroken one.
    """

    index: int
    progress: float
    epoch: int
    device: torch.device
    generator: torch.Generator


@dataclass(frozen=True, eq=False)
class Loss:
    """total: scalar with gradient, the SUM over `count` equally important things (images, masks ...), so that a batch
    in one process and the same batch in several give the same step: the loop divides the gathered gradients by the
    gathered counts. parts: named means for the log, without gradient.
    """

    total: Tensor
    count: float
    parts: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class ParameterGroup:
    """Parameters with a rate (a factor of the run's learning rate) and a weight decay of their own."""

    parameters: Sequence[nn.Parameter]
    rate: float = 1.0
    weight_decay: float = 0.0


class Task(Protocol):
    """A network, examples, and what is wrong with its answers.

    variant: name in the catalogue of what the saved weights are. network: what learns is in it, and what is saved to go
    on with; its parameters that require gradients learn. better: whether a higher or a lower first score of `validate`
    is better.
    An example is anything; it is read in worker processes, so it holds numpy arrays or CPU tensors.
    """

    variant: str
    network: nn.Module
    better: Literal["higher", "lower"]

    def order(self, generator: np.random.Generator) -> np.ndarray:
        """Indices (K,) int64 of one epoch's examples in their order; usually a permutation of all of them.

        K is the same in every epoch.
        """
        ...

    def read(self, index: int, generator: np.random.Generator) -> Any:
        """Example `index`, augmented with numbers from `generator` alone.

        Raises ImageError for a broken image: the loop leaves it out, counts it and lists it. None: nothing to learn
        from it (no mask left in a crop, say); it is left out without a word.
        """
        ...

    def collate(self, examples: list[Any]) -> Any:
        """At least one example -> a batch, still on the CPU."""
        ...

    def loss(self, batch: Any, step: Step) -> Loss:
        """What the loop differentiates. It is called under autocast and with the network in the mode that `network`
        is left in by `prepare`; it moves the batch to step.device."""
        ...

    def prepare(self, step: Step) -> None:
        """Called in all processes before every optimiser step, and before a validation that comes first: switches of
        mode and of what learns. Most recipes do nothing here."""
        ...

    def groups(self, weight_decay: float) -> list[ParameterGroup]:
        """What learns, in groups; see `decayed` for the usual choice."""
        ...

    def validate(self, network: nn.Module) -> dict[str, float]:
        """Scores of a network like `self.network` (its moving average, if there is one); the first one is the judge.

        Empty where none of the images that it is validated on can be scored.
        """
        ...

    def weights(self, network: nn.Module) -> dict[str, Tensor]:
        """The state_dict to save of a network like `self.network`: what `anysam.load` reads for `variant`."""
        ...


def decayed(network: nn.Module, weight_decay: float, rate: float = 1.0) -> list[ParameterGroup]:
    """The learning parameters in two groups: matrices and kernels decay, vectors and biases do not."""
    learning = [parameter for parameter in network.parameters() if parameter.requires_grad]
    groups = [
        ParameterGroup([p for p in learning if p.ndim > 1], rate, weight_decay),
        ParameterGroup([p for p in learning if p.ndim <= 1], rate, 0.0),
    ]
    return [group for group in groups if group.parameters]
