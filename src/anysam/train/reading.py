"""Examples by their position in a run, read here or ahead by worker processes: the same either way."""

import signal
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from anysam.errors import AnySamError, ImageError, OptionError
from anysam.train.processes import world
from anysam.train.task import Task

# Examples in a row without anything to learn from, after which a run gives up: so many as there are, within these.
LEAST_FRUITLESS, MOST_FRUITLESS = 100, 1000

_AHEAD = 4  # portions that each worker has ready


@dataclass(frozen=True, eq=False)
class Portion:
    """What a process learns from at once. batch: as the task collates it, of `examples` examples. Where there are none
    it is None, or, beside other processes, a stand-in: see `Examples.stand_in`. broken: what is wrong with images that
    could not be read. failure: why nothing can be read at all."""

    batch: Any
    examples: int
    broken: tuple[str, ...] = ()
    failure: AnySamError | None = None


class Examples(Dataset[Portion]):
    """Portions by positions. Position p is example p % length of epoch p // length in the order that the task gives for
    (seed, epoch), read with a generator of (seed, p): it does not matter who reads it, or when."""

    def __init__(self, task: Task, seed: int) -> None:
        self.task, self.seed = task, seed
        self._epoch, self._order = 0, task.order(np.random.default_rng([seed, 0]))
        self.length = len(self._order)
        if not self.length:
            raise OptionError("There are no images to learn from; check --data and --split.")

    def __getitem__(self, positions: Sequence[int]) -> Portion:
        examples, broken = [], []
        try:
            for position in positions:
                try:
                    example = self.task.read(self.index(position), np.random.default_rng([self.seed, position]))
                except ImageError as error:
                    broken.append(" ".join(str(error).split()))
                    continue
                if example is not None:
                    examples.append(example)
            batch = self.task.collate(examples) if examples else self.stand_in(positions[-1] + 1)
            return Portion(batch, len(examples), tuple(broken))
        except AnySamError as error:  # as it is: on its way from a worker torch would wrap it in a traceback
            return Portion(None, 0, (), error)

    def stand_in(self, position: int) -> Any:
        """Where several processes train: a batch of the first example from a position on that can be learned from.

        A process with nothing to learn from computes its loss, and forgets it, to keep the others company: a teacher
        that is spread over all computes only in all together. None in one process, or if there is no such example.
        """
        if world() == 1:
            return None
        for later in range(position, position + min(max(self.length, LEAST_FRUITLESS), MOST_FRUITLESS)):
            try:
                example = self.task.read(self.index(later), np.random.default_rng([self.seed, later]))
            except ImageError:
                continue
            if example is not None:
                return self.task.collate([example])
        return None

    def index(self, position: int) -> int:
        """The task's number of the example at a position."""
        epoch, place = divmod(position, self.length)
        if epoch != self._epoch:
            self._epoch, self._order = epoch, self.task.order(np.random.default_rng([self.seed, epoch]))
            assert len(self._order) == self.length, "an epoch has as many examples as the first"
        return int(self._order[place])


def portions(examples: Examples, wanted: Iterable[Sequence[int]], workers: int) -> Iterator[Portion]:
    """The portions at the wanted positions, in order. Raises whatever made reading impossible."""
    for portion in _portions(examples, wanted, workers):
        if portion.failure is not None:
            raise portion.failure
        yield portion


def _portions(examples: Examples, wanted: Iterable[Sequence[int]], workers: int) -> Iterator[Portion]:
    if not workers:
        yield from map(examples.__getitem__, wanted)
        return
    loader = DataLoader(
        examples,
        batch_size=None,
        sampler=wanted,
        num_workers=workers,
        prefetch_factor=_AHEAD,
        collate_fn=_unchanged,
        generator=torch.Generator(),  # the global one stays as it is
        worker_init_fn=_begin_worker,
    )
    try:
        yield from loader
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise OptionError(
            f"A process that reads images ended ({str(error).splitlines()[0]}); if memory ran out, use fewer --workers."
        ) from error


def _unchanged(portion: Any) -> Any:
    return portion


def _begin_worker(number: int) -> None:
    """Ctrl-C reaches every process of a terminal; the main one decides when reading ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
