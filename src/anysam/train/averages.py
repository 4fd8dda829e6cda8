"""The moving average of a network's weights, often better than the weights of any one step; and the statistics that
normalisation layers keep."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Average:
    """Averages of the parameters that learn and of the buffers of a network; whole numbers (counters) are copied.

    Only these values are kept, not a second network: it would hold the frozen parts again, and copies of hooks.
    """

    def __init__(self, network: nn.Module, learned: Sequence[nn.Parameter]) -> None:
        own = {id(parameter) for parameter in learned}
        resting = {name for name, parameter in network.named_parameters() if id(parameter) not in own}
        self._watched = {name: value for name, value in network.state_dict().items() if name not in resting}
        self.values = {name: value.clone() for name, value in self._watched.items()}

    @torch.no_grad()
    def follow(self, decay: float) -> None:
        """values = decay x values + (1 - decay) x the network's."""
        fractions = [name for name, value in self.values.items() if value.is_floating_point()]
        if fractions:
            mine, theirs = ([each[name] for name in fractions] for each in (self.values, self._watched))
            torch._foreach_lerp_(mine, theirs, 1 - decay)
        for name in self.values.keys() - set(fractions):
            self.values[name].copy_(self._watched[name])

    @torch.no_grad()
    def load(self, values: dict[str, Tensor]) -> None:
        """Take the values of an earlier run. Raises KeyError or RuntimeError if they are of another network."""
        for name, value in self.values.items():
            value.copy_(values[name])

    @contextmanager
    def inside(self) -> Iterator[None]:
        """Within the block the network has the averages, afterwards its own values again, bit for bit."""
        kept = {name: value.clone() for name, value in self._watched.items()}
        self._fill(self.values)
        try:
            yield
        finally:
            self._fill(kept)

    @torch.no_grad()
    def _fill(self, values: dict[str, Tensor]) -> None:
        for name, value in self._watched.items():
            value.copy_(values[name])


def learned_statistics(network: nn.Module) -> list[tuple[Tensor, Tensor]]:
    """What normalisation layers learn without gradients, and copies of it: one bad batch would spoil it for good."""
    layers = (module for module in network.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm))
    return [(buffer, buffer.clone()) for layer in layers if layer.training for buffer in layer.buffers()]
