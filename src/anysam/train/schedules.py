"""How long a run is, and the learning rate as a function of the step, as a factor of the peak rate."""

import math
from dataclasses import dataclass
from typing import Literal

from anysam.train import processes
from anysam.train.configs.loop import LoopConfig


def total_steps(config: LoopConfig, examples: int) -> int:
    """The run's length: `steps`, or as many as `epochs` passes over the examples take."""
    if config.epochs <= 0:
        return config.steps
    return max(1, math.ceil(config.epochs * examples / (config.batch_size * config.accumulate * processes.world())))


def rate_factor(config: LoopConfig, step: int, steps: int, plateau: float = 1.0) -> float:
    """The factor of step `step` (from 0) of `steps`: a linear warm-up to the peak, then the schedule.

    The schedule counts from the run's beginning, not from the warm-up's end: after a long one the rate falls from the
    peak at once to where the schedule is by then, as timm's do, with which EdgeSAM and others were trained. Without a
    warmup_rate the warm-up begins at 1 / warmup_steps: at 0 the first step would be for nothing. plateau: what the
    plateau schedule has come down to, see `Plateau`, in the warm-up too; other schedules do not use it.
    """
    if step < config.warmup_steps:
        first = config.warmup_rate or 1 / config.warmup_steps
        warmup = first + (1 - first) * step / config.warmup_steps
        return warmup * plateau if config.schedule == "plateau" else warmup
    progress = step / max(1, steps)
    if config.schedule == "cosine":
        return config.least_rate + (1 - config.least_rate) * 0.5 * (1 + math.cos(math.pi * progress))
    if config.schedule == "linear":
        return config.least_rate + (1 - config.least_rate) * (1 - progress)
    if config.schedule == "step":
        return config.drop_factor ** sum(progress >= drop for drop in config.drops)
    return plateau if config.schedule == "plateau" else 1.0


def is_better(score: float, best: float | None, better: Literal["higher", "lower"]) -> bool:
    """Whether a score is better than the best before it, if there was one. A NaN never is."""
    if math.isnan(score):
        return False
    return best is None or (score > best if better == "higher" else score < best)


@dataclass
class Plateau:
    """The plateau schedule's memory: after `patience` validations without a better score, the next one like that drops
    the factor, as in torch's ReduceLROnPlateau with a threshold of 0."""

    patience: int
    drop_factor: float
    factor: float = 1.0
    best: float | None = None
    waited: int = 0

    def see(self, score: float, better: Literal["higher", "lower"]) -> None:
        """Take note of a validation's score."""
        if is_better(score, self.best, better):
            self.best, self.waited = score, 0
            return
        self.waited += 1
        if self.waited > self.patience:
            self.factor, self.waited = self.factor * self.drop_factor, 0
