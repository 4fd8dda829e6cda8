"""The one training loop: any `task.Task`, one process or several, on a CPU or on GPUs.

All that is random comes from the seed and the position in the run, nothing from what ran before: the example at
position p is read with a generator of (seed, p), and the global generators are seeded anew for every part of a step. So
a resumed run equals an unbroken one bit for bit (on a CPU), and two processes take the same steps as one with twice the
batch.
"""

import math
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from anysam.atomic import explain
from anysam.devices import find_device
from anysam.errors import ImageError, OptionError, OutputError
from anysam.train import processes
from anysam.train.averages import Average, learned_statistics
from anysam.train.configs.loop import LoopConfig
from anysam.train.optimisers import build_optimizer, check_config, optimizer_fits
from anysam.train.progress import Report
from anysam.train.randomness import seed_everything
from anysam.train.reading import LEAST_FRUITLESS, MOST_FRUITLESS, Examples, Portion, portions
from anysam.train.saving import (
    BEST,
    BROKEN,
    CHECKPOINT,
    CONFIG,
    LAST,
    LOG,
    TENSORBOARD,
    Origin,
    cut_log,
    decisive,
    load_state,
    refuse_other_settings,
    save_state,
    write_lines,
)
from anysam.train.schedules import Plateau, is_better, rate_factor, total_steps
from anysam.train.stopping import interruptions
from anysam.train.task import Loss, Step, Task
from anysam.weights_files import read_metadata, save_checkpoint

_MOST_FAILED_STEPS = 5  # in a row
_LICENCE = "not stated: see the licences of the weights and images it was made from"


@dataclass(frozen=True)
class Outcome:
    """What a run came to. scores: the last validation's. best: weights of the best validation, None without one.
    last: weights at the end. broken: what is wrong with the images that were left out. skipped: steps that were left
    out because their loss was not finite."""

    steps: int
    scores: dict[str, float]
    best: Path | None
    last: Path
    broken: tuple[str, ...]
    skipped: int = 0


def train(
    task: Task,
    config: LoopConfig,
    out: Path,
    *,
    resume: bool = True,
    show: bool = False,
    origin: Origin | None = None,
) -> Outcome:
    """Train, or go on where the run in `out` left off; `resume` False starts over.

    show: tell people on stderr how it goes. Where torchrun has started several processes, each calls this.

    Raises OptionError for settings that no run can have or that contradict the run in `out`, and after several steps in
    a row without a finite loss; ImageError if no image can be learned from; OutputError for files that cannot be
    written; KeyboardInterrupt, after saving, on Ctrl-C or SIGTERM.
    """
    check_config(config)
    device = processes.local_device(find_device(config.device or None))
    with processes.company(device):
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(explain(out, error)) from error
        run = Run(task, config, out, device, origin or Origin())
        begin(run, resume)
        if processes.rank() == 0:
            run.report = Report(out / LOG, run.steps, run.step, show, config.tensorboard)
            run.report.sums = run.sums
        try:
            with interruptions() as interrupted:
                run.go(interrupted)
        finally:
            if run.report is not None:
                run.report.close()
    best = out / BEST
    broken = tuple(sorted(run.broken))
    return Outcome(run.step, run.scores, best if best.exists() else None, out / LAST, broken, run.skipped)


def begin(run: "Run", resume: bool) -> None:
    """Find the run's earlier state, or clear its folder. Raises OptionError if neither may be done."""
    out = run.out
    if resume and (out / CHECKPOINT).exists():
        run.restore(load_state(out / CHECKPOINT))
    elif resume and (
        (out / LAST).exists() or ((out / BEST).exists() and read_metadata(out / BEST).get("steps") != "0")
    ):
        raise OptionError(
            f"{out} holds weights, but no {CHECKPOINT} to go on from; choose another folder with --out, or start over "
            "with --fresh, which replaces them."
        )
    processes.everyone(None)  # all have looked before the first one writes
    if processes.rank() == 0:
        if not run.step:
            for name in (CHECKPOINT, LOG, BROKEN, BEST, LAST):
                (out / name).unlink(missing_ok=True)
            shutil.rmtree(out / TENSORBOARD, ignore_errors=True)
        cut_log(out / LOG, run.step)
        if run.origin.toml:
            write_lines(out / CONFIG, run.origin.toml.splitlines())


class Run:
    """All that changes while a task is trained, and that a checkpoint holds."""

    def __init__(self, task: Task, config: LoopConfig, out: Path, device: torch.device, origin: Origin) -> None:
        self.task, self.config, self.out, self.device, self.origin = task, config, out, device, origin
        seed_everything([config.seed])
        task.network.to(device)
        processes.equal_start(task.network)
        self.groups = [group for group in task.groups(config.weight_decay) if group.parameters]
        self.parameters = [parameter for group in self.groups for parameter in group.parameters]
        if not self.parameters:
            raise OptionError("Nothing in the network learns; check what the recipe freezes.")
        kept = {id(parameter) for parameter in task.network.parameters()}
        assert all(id(p) in kept for p in self.parameters), "what learns is in the network, else it would not be saved"
        self.average = Average(task.network, self.parameters) if config.ema else None
        self.optimizer = build_optimizer(config, self.groups)
        self.examples = Examples(task, config.seed)
        self.step_size = config.batch_size * config.accumulate * processes.world()
        self.steps = total_steps(config, self.examples.length)
        self.settings = {**origin.settings, **decisive(config, processes.world())}
        self.plateau = Plateau(config.patience, config.drop_factor)
        # failed: steps in a row; fruitless: examples in a row that had nothing to learn from; learned: that had
        self.step, self.skipped, self.failed, self.fruitless, self.learned = 0, 0, 0, 0, 0
        self.best: float | None = None
        self.scores: dict[str, float] = {}
        self.broken: set[str] = set()
        self.sums: dict[str, tuple[float, float]] = {}
        self.report: Report | None = None

    def go(self, interrupted: list[float]) -> None:
        """Step after step until the end, with logs, checkpoints and validations at their intervals."""
        config = self.config
        if self.step == self.steps and (self.out / LAST).exists():
            return  # nothing is left to do
        if config.validate_first and not self.step:
            self.task.prepare(self._now(0))
            self._validate()
        reading = portions(self.examples, self._positions(), config.workers)
        while self.step < self.steps:
            rate, norm, stop = self._take_step(reading, bool(interrupted))
            last = self.step == self.steps
            if self.report:
                self.report.advance()
                if self.step % config.log_every == 0 or last:
                    skipped = {"skipped": self.skipped} if self.skipped else {}
                    self.report.line(self.step, {"rate": rate, "gradient_norm": norm, **skipped})
            judged = last or (config.validate_every > 0 and self.step % config.validate_every == 0)
            if judged:
                self._validate()
            if not last and (stop or judged or self.step % config.save_every == 0):
                self._save()  # with the best weights too: there are none that a run cannot go on from
            if stop and not last:
                if self.report:
                    self.report.say(f"Stopped and saved after step {self.step} of {self.steps}.")
                raise KeyboardInterrupt
        self._require_learned()
        if processes.rank() == 0:
            self._save_weights(self.out / LAST)
        self._save()

    def _positions(self) -> Iterator[range]:
        """The positions that this process learns from, part by part, from this step on."""
        size, world = self.config.batch_size, processes.world()
        for part in range(self.step * self.config.accumulate, self.steps * self.config.accumulate):
            start = (part * world + processes.rank()) * size
            yield range(start, start + size)

    def _now(self, part: int) -> Step:
        """The present step; what is random in this part of it begins anew."""
        seed = seed_everything([self.config.seed, self.step, part * processes.world() + processes.rank()])
        epoch = self.step * self.step_size // self.examples.length
        return Step(self.step, self.step / self.steps, epoch, self.device, torch.Generator().manual_seed(seed))

    def _take_step(self, reading: Iterator[Portion], stop: bool) -> tuple[float, float, bool]:
        """Gradients of all parts and processes, divided by what they counted; then the optimiser and the average.

        Returns the rate, the gradients' norm, and whether any process is to `stop`.
        """
        config = self.config
        rate = config.learning_rate * rate_factor(config, self.step, self.steps, self.plateau.factor)
        for options, group in zip(self.optimizer.param_groups, self.groups, strict=True):
            options["lr"] = rate * group.rate
        self.task.prepare(self._now(0))
        before = learned_statistics(self.task.network)
        counts = torch.tensor([0, 0, 0, float(stop)], dtype=torch.float64)  # total, count, examples, to stop
        sums: dict[str, float] = {}
        for part in range(config.accumulate):
            counts[:3] += self._learn(next(reading), part, sums)
        own = float(counts[1])
        counts = processes.gather(self.parameters, counts)
        total, count, examples, stops = counts.tolist()
        self._require_fruit(int(examples))
        norm = self._divide(count) if count else 0.0
        if not (math.isfinite(total) and math.isfinite(norm)):
            self._leave_out(total, before)
        elif count:
            self.optimizer.step()
            self.failed = 0
            if self.average is not None:  # which forgets its start quickly
                self.average.follow(min(config.ema, (self.step + 2) / (self.step + 11)))
            if self.report:
                self.report.add(int(examples), count, {"loss": total / count})
                self.report.add(0, own, {name: value / own for name, value in sums.items()})
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        return rate, norm, bool(stops)

    def _learn(self, portion: Portion, part: int, sums: dict[str, float]) -> Tensor:
        """Gradients of one part: (3,) its total loss, what it counted, and how many examples it had."""
        self.broken.update(portion.broken)
        if not portion.examples:
            self._keep_company(portion.batch, part)
            return torch.zeros(3, dtype=torch.float64)
        loss = self._loss(portion.batch, part)
        if loss.count:
            loss.total.float().backward()
        for name, value in loss.parts.items():
            if math.isfinite(value):
                sums[name] = sums.get(name, 0.0) + value * loss.count
        return torch.tensor([loss.total.item(), loss.count, portion.examples], dtype=torch.float64)

    def _loss(self, batch: Any, part: int) -> Loss:
        half = self.config.precision == "bfloat16"
        step = self._now(part)
        with torch.autocast(self.device.type, torch.bfloat16) if half else nullcontext():
            return self.task.loss(batch, step)

    @torch.no_grad()
    def _keep_company(self, batch: Any, part: int) -> None:
        """The loss of a stand-in, which leaves no trace: see reading.Examples.stand_in."""
        if batch is not None:
            before = learned_statistics(self.task.network)
            self._loss(batch, part)
            for buffer, value in before:
                buffer.copy_(value)

    def _divide(self, count: float) -> float:
        """Gradients of sums become gradients of means, clipped; their norm before that."""
        gradients = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
        if not gradients:
            return 0.0
        torch._foreach_div_(gradients, count)
        learned = [parameter for parameter in self.parameters if parameter.grad is not None]
        return nn.utils.clip_grad_norm_(learned, self.config.clip or math.inf).item()

    def _leave_out(self, total: float, before: list[tuple[Tensor, Tensor]]) -> None:
        """A step whose loss or gradients are not finite leaves no trace, and must remain an exception."""
        for buffer, value in before:
            buffer.copy_(value)
        self.skipped += 1
        self.failed += 1
        what = "gradients" if math.isfinite(total) else "loss"
        if self.report:
            self.report.say(f"step {self.step + 1} is left out: its {what} is not finite.")
        if self.failed >= _MOST_FAILED_STEPS:
            raise OptionError(
                f"The {what} was not finite in {self.failed} steps in a row, up to step {self.step + 1}; lower "
                "--learning-rate, set --clip, or use --precision float32. The last checkpoint is kept."
            )

    def _require_fruit(self, examples: int) -> None:
        """Raise ImageError when image after image has nothing to learn from; the same in all processes."""
        self.learned += examples
        self.fruitless = 0 if examples else self.fruitless + self.step_size
        if self.fruitless >= min(max(self.examples.length, LEAST_FRUITLESS), MOST_FRUITLESS):
            raise self._nothing_learned()

    def _require_learned(self) -> None:
        if not self.learned:
            raise self._nothing_learned()

    def _nothing_learned(self) -> ImageError:
        why = f"for example: {min(self.broken)}" if self.broken else "none has a mask to learn from."
        return ImageError(f"None of the images can be learned from, {why}")

    def _validate(self) -> None:
        """Scores by the first process, the same in all; the best weights so far are kept."""
        began = time.monotonic()
        seed_everything([self.config.seed, self.step])
        scores: dict[str, float] = {}
        if processes.rank() == 0:
            with self._judged() as network, torch.no_grad():
                scores = {name: float(value) for name, value in self.task.validate(network).items()}
        self.scores = processes.from_first(scores)
        if self.report:
            self.report.scores(self.step, self.scores, time.monotonic() - began)
        if not self.scores:
            return
        score = next(iter(self.scores.values()))
        if self.step:
            self.plateau.see(score, self.task.better)
        if is_better(score, self.best, self.task.better):
            self.best = score
            if processes.rank() == 0:
                self._save_weights(self.out / BEST)

    @contextmanager
    def _judged(self) -> Iterator[nn.Module]:
        """The network as it is validated and saved: with the averages, if there are any, and in eval mode."""
        network = self.task.network
        modes = {module: module.training for module in network.modules()}
        network.eval()
        try:
            with nullcontext() if self.average is None else self.average.inside():
                yield network
        finally:
            for module, mode in modes.items():
                module.training = mode

    def _save_weights(self, path: Path) -> None:
        """What `anysam.load` reads."""
        metadata = {"variant": self.task.variant, "licence": _LICENCE, **self.origin.facts, "steps": str(self.step)}
        with self._judged() as network:
            save_checkpoint(path, self.task.weights(network), metadata)

    def _save(self) -> None:
        """Write the checkpoint, and the list of broken images."""
        self.broken.update(*processes.everyone(self.broken))
        if processes.rank() != 0:
            return
        if self.broken:
            write_lines(self.out / BROKEN, sorted(self.broken))
        state = {
            "settings": self.settings,
            "examples": self.examples.length,
            "step": self.step,
            "position": self.step * self.step_size,
            "network": self.task.network.state_dict(),
            "average": None if self.average is None else self.average.values,
            "optimizer": self.optimizer.state_dict(),
            "plateau": dict(vars(self.plateau)),
            "best": self.best,
            "scores": self.scores,
            "counts": [self.skipped, self.failed, self.fruitless, self.learned],
            "broken": sorted(self.broken),
            "sums": {} if self.report is None else self.report.sums,
        }
        save_state(self.out / CHECKPOINT, state)

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint. Raises OptionError if it is of another run."""
        refuse_other_settings(self.out, state["settings"], self.settings)
        if state.get("examples") != self.examples.length:
            raise OptionError(
                f"The run in {self.out} began with {state.get('examples')} images to learn from, now there are "
                f"{self.examples.length}; go on with the same data, or start over with --fresh."
            )
        if state["step"] > self.steps:
            raise OptionError(
                f"The run in {self.out} has taken {state['step']} steps already, more than the {self.steps} asked for."
            )
        try:
            optimizer_fits(self.optimizer, state["optimizer"])
            self.task.network.load_state_dict(state["network"])
            if self.average is not None:
                self.average.load(state["average"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.plateau = Plateau(**state["plateau"])
            self.skipped, self.failed, self.fruitless, self.learned = state["counts"]
            self.sums = {name: (total, weights) for name, (total, weights) in state["sums"].items()}
            self.best, self.scores, self.broken = state["best"], state["scores"], set(state["broken"])
        except (RuntimeError, ValueError, KeyError, TypeError) as error:
            reason = str(error).splitlines()[0]
            raise OptionError(
                f"The run in {self.out} trained another network ({reason}); choose another folder with --out, or start "
                "over with --fresh."
            ) from error
        self.step = state["step"]
