"""How long, how fast and how much at a time: the part of a configuration that every recipe shares."""

from dataclasses import dataclass

from anysam.train.configs import option


@dataclass(frozen=True)
class LoopConfig:
    """A run: optimiser, schedule, intervals. A step has batch_size x accumulate x processes examples."""

    steps: int = option(1000, "optimiser steps, instead of --epochs")
    epochs: float = option(0.0, "passes over the data, instead of --steps; 0: so many steps")
    batch_size: int = option(8, "examples at once in each process")
    accumulate: int = option(1, "batches whose gradients are gathered into one step")
    optimizer: str = option("adamw", "optimiser", ("adamw", "adam", "sgd"))
    learning_rate: float = option(1e-3, "peak learning rate")
    betas: tuple[float, float] = option((0.9, 0.999), "Adam's averages")
    momentum: float = option(0.9, "SGD's momentum")
    weight_decay: float = option(0.01, "decay of matrices and kernels")
    schedule: str = option(
        "cosine", "how the rate falls after the warm-up", ("constant", "cosine", "linear", "step", "plateau")
    )
    warmup_steps: int = option(0, "steps over which the rate rises linearly")
    warmup_rate: float = option(0.0, "rate at the first step, as a part of the peak; 0: 1 / warmup_steps")
    least_rate: float = option(0.0, "rate at the end of a cosine or line, as a part of the peak")
    drops: tuple[float, ...] = option((), "for the step schedule: where the rate drops, as parts of the run")
    drop_factor: float = option(0.1, "what a drop, or a plateau, multiplies the rate by")
    patience: int = option(3, "for the plateau schedule: validations without a better score before a drop")
    clip: float = option(0.0, "largest L2 norm of all gradients together; 0: no limit")
    ema: float = option(
        0.0, "decay of the moving average of the weights, which is what is validated and saved; 0: none"
    )
    precision: str = option("float32", "what networks compute in", ("float32", "bfloat16"))
    seed: int = option(0, "of everything that is drawn")
    device: str = option("", "cpu, cuda, cuda:1 ...; empty: a GPU if there is one")
    workers: int = option(0, "processes that read examples ahead, for each training process")
    log_every: int = option(10, "steps between lines of the log")
    save_every: int = option(200, "steps between checkpoints")
    validate_every: int = option(200, "steps between validations; 0: only at the end")
    validate_first: bool = option(
        False, "also validate before the first step: what is kept as best is then never worse than the start"
    )
    tensorboard: bool = option(True, "also write TensorBoard's files, if it is installed")
