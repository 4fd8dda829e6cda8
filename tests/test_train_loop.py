"""The training loop on small networks: resumption bit for bit, processes, schedules, failures."""

import dataclasses
import errno
import json
import math
import os
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from anysam.errors import ImageError, OptionError, OutputError, WeightsError
from anysam.train import processes
from anysam.train.configs.loop import LoopConfig
from anysam.train.loop import train
from anysam.train.progress import Report
from anysam.train.saving import Origin
from anysam.train.schedules import Plateau, rate_factor, total_steps
from anysam.train.task import Loss, ParameterGroup, decayed
from anysam.weights_files import read_metadata, read_state_dict

LOOP = LoopConfig(
    steps=20,
    batch_size=4,
    learning_rate=0.05,
    warmup_steps=3,
    clip=1.0,
    ema=0.9,
    log_every=5,
    save_every=5,
    validate_every=5,
    device="cpu",
    tensorboard=False,
)
TRUTH = np.array([1.0, -2.0, 3.0])


def line():
    torch.manual_seed(0)
    return nn.Linear(3, 1)


def noisy():
    """All that remembers or draws: statistics of batches, and dropout."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.2), nn.Linear(4, 1))


@dataclass(frozen=True, eq=False)
class LineTask:
    """Learns y = TRUTH . x from noisy examples; some of them may be broken or empty."""

    count: int = 48
    broken: frozenset = frozenset()
    empty: frozenset = frozenset()
    stop_at: int = -1  # the process kills itself in this step
    infinite: frozenset = frozenset()  # steps whose loss is not finite
    network: nn.Module = field(default_factory=line)
    variant: str = "anysam_lite"
    better: str = "higher"
    seen: list = field(default_factory=list)  # (step, example's number, loss, weights before the step)

    def order(self, generator):
        return generator.permutation(self.count)

    def read(self, index, generator):
        if index in self.broken:
            raise ImageError(f"image {index} is broken.")
        if index in self.empty:
            return None
        x = np.random.default_rng(index).normal(size=3)
        return x.astype(np.float32), np.float32(x @ TRUTH + 0.1 * generator.normal()), index

    def collate(self, examples):
        return tuple(torch.tensor(np.stack(column)) for column in zip(*examples, strict=True))

    def loss(self, batch, step):
        if step.index == self.stop_at:
            os.kill(os.getpid(), signal.SIGKILL)
        x, y, indices = batch
        if step.index in self.infinite:
            x = x * math.inf
        errors = (self.network(x)[:, 0] - y) ** 2
        weights = [p.detach().clone() for p in self.network.parameters()]
        self.seen.extend((step.index, int(i), float(e), weights) for i, e in zip(indices, errors.detach(), strict=True))
        return Loss(errors.sum(), len(x), {"error": float(errors.detach().mean())})

    def prepare(self, step):
        pass

    def groups(self, weight_decay):
        return decayed(self.network, weight_decay)

    def validate(self, network):
        return {"closeness": -float(sum(p.detach().abs().sum() for p in network.parameters()))}

    def weights(self, network):
        return dict(network.state_dict())


def log_of(out):
    lines = [json.loads(text) for text in (out / "log.jsonl").read_text().splitlines()]
    return [{name: value for name, value in each.items() if name != "images_per_second"} for each in lines]


def state_of(out):
    return torch.load(out / "checkpoint.pt", weights_only=True)


def same(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[name], b[name]) for name in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def run_elsewhere(*arguments, processes=1):
    """This file as a program; see its end."""
    start = [sys.executable]
    if processes > 1:
        start += ["-m", "torch.distributed.run", "--nproc-per-node", str(processes)]
        start += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [*start, __file__, *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)


def test_the_network_learns_and_its_average_is_saved(tmp_path):
    task = LineTask()
    outcome = train(task, dataclasses.replace(LOOP, steps=150, learning_rate=0.1), tmp_path)
    assert outcome.steps == 150
    saved = read_state_dict(outcome.last)
    np.testing.assert_allclose(saved["weight"][0].numpy(), TRUTH, atol=0.2)
    assert same(saved, state_of(tmp_path)["average"]) and not torch.equal(saved["weight"], task.network.weight)
    metadata = read_metadata(outcome.last)
    assert (metadata["variant"], metadata["steps"], metadata["dtype"]) == ("anysam_lite", "150", "float32")
    losses = [each["loss"] for each in log_of(tmp_path) if "loss" in each]
    assert len(losses) == 30 and losses[-1] < 0.1 * losses[0]


def test_every_example_is_read_once_an_epoch_and_the_log_has_their_mean_loss(tmp_path):
    task = LineTask()
    train(task, dataclasses.replace(LOOP, steps=24), tmp_path)  # two epochs
    for epoch in range(2):
        indices = [index for step, index, *_ in task.seen if step // 12 == epoch]
        assert sorted(indices) == list(range(48)) and indices != sorted(indices)
    means = [np.mean([loss for step, _, loss, _ in task.seen if a <= step < a + 5]) for a in (0, 5, 10, 15, 20)]
    logged = [each for each in log_of(tmp_path) if "loss" in each]
    assert [each["loss"] for each in logged] == pytest.approx(means)
    assert [each["error"] for each in logged] == pytest.approx(means)
    assert [each["step"] for each in logged] == [5, 10, 15, 20, 24]


def test_a_step_and_its_average_are_those_computed_by_hand(tmp_path):
    task = LineTask(count=4)
    config = dataclasses.replace(
        LOOP, steps=8, optimizer="sgd", momentum=0.0, weight_decay=0.0, schedule="constant", warmup_steps=0, clip=0.7
    )
    train(task, config, tmp_path)
    weight = task.seen[0][3][0].double().numpy()[0]
    bias = task.seen[0][3][1].double().numpy()
    average = np.append(weight, bias)
    for step in range(8):
        gradient = np.zeros(4)
        for index in range(4):
            x = np.random.default_rng(index).normal(size=3)
            place = 4 * step + [each[1] for each in task.seen[4 * step :]].index(index)
            y = x @ TRUTH + 0.1 * np.random.default_rng([0, place]).normal()
            gradient += 2 * (weight @ x + bias[0] - y) * np.append(x, 1) / 4
        gradient *= min(1, 0.7 / np.linalg.norm(gradient))
        weight, bias = weight - 0.05 * gradient[:3], bias - 0.05 * gradient[3:]
        decay = min(0.9, (step + 2) / (step + 11))
        average = decay * average + (1 - decay) * np.append(weight, bias)
    np.testing.assert_allclose(task.network.weight.detach().numpy()[0], weight, atol=1e-5)
    saved = read_state_dict(tmp_path / "last.safetensors")
    np.testing.assert_allclose(np.append(saved["weight"], saved["bias"]), average, atol=1e-5)


def test_groups_have_rates_of_their_own_and_what_is_in_none_rests(tmp_path):
    class Grouped(LineTask):
        def groups(self, weight_decay):
            return [ParameterGroup([self.network[0].weight]), ParameterGroup([self.network[3].weight], rate=0.0)]

    task = Grouped(network=noisy())
    train(task, LOOP, tmp_path)
    start, end = noisy().state_dict(), task.network.state_dict()
    changed = {name for name in start if not torch.equal(start[name], end[name])}
    assert changed == {"0.weight", "1.running_mean", "1.running_var", "1.num_batches_tracked"}
    saved = read_state_dict(tmp_path / "last.safetensors")
    assert same(
        {name: saved[name] for name in start if name not in changed}, {n: start[n] for n in start if n not in changed}
    )


def test_networks_compute_in_bfloat16_when_told(tmp_path):
    dtypes = set()

    class Watching(LineTask):
        def loss(self, batch, step):
            dtypes.add(self.network(batch[0]).dtype)
            return super().loss(batch, step)

    train(Watching(), dataclasses.replace(LOOP, precision="bfloat16"), tmp_path)
    assert dtypes == {torch.bfloat16} and state_of(tmp_path)["network"]["weight"].dtype == torch.float32


def test_the_best_weights_are_kept_and_the_judge_may_be_the_lowest(tmp_path):
    task = LineTask(better="lower", network=nn.Linear(3, 1))
    outcome = train(task, dataclasses.replace(LOOP, steps=30, validate_every=10), tmp_path)
    scores = [each["val_closeness"] for each in log_of(tmp_path) if "val_closeness" in each]
    assert outcome.scores == {"closeness": scores[-1]} and len(scores) == 3
    assert read_metadata(outcome.best)["steps"] == str(10 * (1 + scores.index(min(scores))))


def test_a_validation_sees_the_average_in_eval_mode_and_changes_nothing(tmp_path):
    class Judged(LineTask):
        def validate(self, network):
            assert not network.training and not network[2].training and not torch.is_grad_enabled()
            torch.rand(7)  # whatever a validation draws
            network(torch.ones(2, 3))
            return {"score": float(network[0].weight.detach().sum())}

    often = Judged(network=noisy())
    train(often, dataclasses.replace(LOOP, validate_every=3), tmp_path / "often")
    once = Judged(network=noisy())
    outcome = train(once, dataclasses.replace(LOOP, validate_every=0), tmp_path / "once")
    assert same(often.network.state_dict(), once.network.state_dict()) and often.network.training
    assert outcome.scores["score"] == pytest.approx(float(state_of(tmp_path / "once")["average"]["0.weight"].sum()))


def test_without_scores_there_is_no_best(tmp_path):
    class Unjudged(LineTask):
        def validate(self, network):
            return {}

    outcome = train(Unjudged(), LOOP, tmp_path)
    assert outcome.best is None and outcome.scores == {} and outcome.last.exists()


def test_twenty_steps_are_ten_then_a_kill_then_ten_bit_for_bit(tmp_path):
    killed = run_elsewhere("killed", tmp_path / "parts")
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-2000:]
    assert state_of(tmp_path / "parts")["step"] == 10
    assert [each["step"] for each in log_of(tmp_path / "parts")][-1] == 12  # which goes and comes again
    config = dataclasses.replace(LOOP, log_every=3)
    train(LineTask(network=noisy(), broken=frozenset({7})), config, tmp_path / "parts")
    train(LineTask(network=noisy(), broken=frozenset({7})), config, tmp_path / "whole")
    whole, parts = state_of(tmp_path / "whole"), state_of(tmp_path / "parts")
    assert whole["step"] == 20 and same(whole, parts)
    assert log_of(tmp_path / "whole") == log_of(tmp_path / "parts")
    for name in ("last.safetensors", "best.safetensors"):
        one, other = tmp_path / "whole" / name, tmp_path / "parts" / name
        assert same(read_state_dict(one), read_state_dict(other)) and read_metadata(one) == read_metadata(other)


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    """What two processes left behind, see `main`."""
    folder = tmp_path_factory.mktemp("two")
    done = run_elsewhere("two", folder, processes=2)
    assert done.returncode == 0, done.stderr[-2000:]
    return folder


def test_two_processes_learn_what_one_with_the_doubled_batch_does(two_processes, tmp_path):
    odd = LineTask(broken=frozenset({3}), empty=frozenset({5, 6, 7, 8}))
    train(odd, dataclasses.replace(LOOP, batch_size=8, ema=0.9), tmp_path / "one")
    one, two = state_of(tmp_path / "one"), state_of(two_processes)
    for part in ("network", "average"):
        torch.testing.assert_close(one[part]["weight"], two[part]["weight"])
    assert one["broken"] == two["broken"] == ["image 3 is broken."]
    for a, b in zip(log_of(tmp_path / "one"), log_of(two_processes), strict=True):
        assert a.keys() == b.keys()  # error: of the first process's examples only
        assert all(a[name] == pytest.approx(b[name], rel=1e-4) for name in a if name != "error")
    # the run can go on in one process, with the batch gathered
    whole = dataclasses.replace(LOOP, accumulate=2, steps=25)
    assert train(LineTask(broken=frozenset({3}), empty=odd.empty), whole, two_processes).steps == 25


def test_a_teacher_that_is_spread_over_two_processes_teaches_the_same(two_processes):
    """Also in steps in which one of them has a broken image and nothing else, and in validation, which one does."""
    whole, spread = two_processes / "whole", two_processes / "spread"
    assert log_of(whole) == log_of(spread) and same(state_of(whole), state_of(spread))
    assert [each["val_mse"] for each in log_of(spread) if "val_mse" in each]
    assert state_of(spread)["broken"] == ["image 2 is broken."]


def test_gathered_batches_and_workers_change_nothing(tmp_path):
    def run(name, **changes):
        config = dataclasses.replace(LOOP, **changes)
        task = LineTask(broken=frozenset({3}), empty=frozenset({5, 6, 7}))
        assert train(task, config, tmp_path / name).broken == ("image 3 is broken.",)
        return state_of(tmp_path / name)

    one, two = run("one", batch_size=8), run("two", accumulate=2)
    torch.testing.assert_close(one["network"]["weight"], two["network"]["weight"])
    three = run("three", batch_size=8, workers=2)
    assert same(one, three) and log_of(tmp_path / "one") == log_of(tmp_path / "three")


def test_an_error_in_a_worker_arrives_as_it_is(tmp_path):
    class Failing(LineTask):
        def read(self, index, generator):
            raise WeightsError("the store is damaged; make it again.")

    with pytest.raises(WeightsError, match=r"^the store is damaged; make it again\.$"):
        train(Failing(), dataclasses.replace(LOOP, workers=1), tmp_path)


def test_broken_images_are_left_out_and_listed(tmp_path):
    task = LineTask(broken=frozenset({3, 11}), empty=frozenset({5}))
    outcome = train(task, LOOP, tmp_path)
    assert outcome.broken == ("image 11 is broken.", "image 3 is broken.")
    assert (tmp_path / "broken.txt").read_text().splitlines() == list(outcome.broken)
    assert {index for _, index, *_ in task.seen} == set(range(48)) - {3, 5, 11}


@pytest.mark.parametrize("steps", [2, 200])
def test_a_run_whose_images_are_all_broken_says_so(tmp_path, steps):
    with pytest.raises(ImageError, match="image 0 is broken"):
        train(LineTask(count=8, broken=frozenset(range(8))), dataclasses.replace(LOOP, steps=steps), tmp_path)
    assert not (tmp_path / "last.safetensors").exists()


def test_a_few_images_may_have_nothing_to_learn_from_for_a_while(tmp_path):
    task = LineTask(count=2, empty=frozenset({0}))
    assert train(task, dataclasses.replace(LOOP, batch_size=1), tmp_path).steps == 20


def test_no_images_are_an_error(tmp_path):
    with pytest.raises(OptionError, match="no images"):
        train(LineTask(count=0), LOOP, tmp_path)


def test_a_step_that_is_not_finite_leaves_no_trace(tmp_path):
    task = LineTask(infinite=frozenset({4}), network=noisy())
    outcome = train(task, LOOP, tmp_path)
    assert outcome.skipped == 1 and log_of(tmp_path)[0]["skipped"] == 1
    assert all(torch.isfinite(value).all() for value in task.network.state_dict().values())
    assert int(task.network[1].num_batches_tracked) == 19


def test_several_such_steps_in_a_row_are_an_error_that_keeps_the_checkpoint(tmp_path):
    with pytest.raises(OptionError, match=r"5 steps in a row.*lower --learning-rate"):
        train(LineTask(infinite=frozenset(range(6, 20))), LOOP, tmp_path)
    assert state_of(tmp_path)["step"] == 10 and torch.isfinite(state_of(tmp_path)["network"]["weight"]).all()
    assert train(LineTask(), LOOP, tmp_path).steps == 20


def test_a_run_with_other_settings_is_not_gone_on_with(tmp_path):
    train(LineTask(), LOOP, tmp_path)
    checkpoint = (tmp_path / "checkpoint.pt").read_bytes()
    with pytest.raises(OptionError, match=r"learning_rate was 0\.05, now 0\.01\..*--fresh"):
        train(LineTask(), dataclasses.replace(LOOP, learning_rate=0.01), tmp_path)
    with pytest.raises(OptionError, match="accumulate x processes was 4, now 8"):
        train(LineTask(), dataclasses.replace(LOOP, accumulate=2), tmp_path)
    with pytest.raises(OptionError, match="teacher was not there, now big"):
        train(LineTask(), LOOP, tmp_path, origin=Origin({"teacher": "big"}))
    with pytest.raises(OptionError, match="48 images to learn from, now there are 47"):
        train(LineTask(count=47), LOOP, tmp_path)
    with pytest.raises(OptionError, match="20 steps already, more than the 10"):
        train(LineTask(), dataclasses.replace(LOOP, steps=10), tmp_path)
    with pytest.raises(OptionError, match="trained another network"):
        train(LineTask(network=noisy()), LOOP, tmp_path)
    assert (tmp_path / "checkpoint.pt").read_bytes() == checkpoint
    assert train(LineTask(), dataclasses.replace(LOOP, steps=30, workers=1, save_every=7), tmp_path).steps == 30
    assert train(LineTask(), dataclasses.replace(LOOP, learning_rate=0.01, steps=2), tmp_path, resume=False).steps == 2
    assert [each["step"] for each in log_of(tmp_path)] == [2, 2]


def test_a_finished_run_has_nothing_left_to_do(tmp_path):
    first = train(LineTask(), LOOP, tmp_path)
    files = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.safetensors")}
    assert train(LineTask(), LOOP, tmp_path) == first
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.safetensors")} == files


def test_what_is_no_checkpoint_is_refused_and_weights_without_one_are_not_replaced(tmp_path):
    train(LineTask(), LOOP, tmp_path)
    whole = (tmp_path / "checkpoint.pt").read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"nothing", b"\x80\x02N."):
        (tmp_path / "checkpoint.pt").write_bytes(content)
        with pytest.raises(OptionError, match=r"not a whole checkpoint.*--fresh"):
            train(LineTask(), LOOP, tmp_path)
    (tmp_path / "checkpoint.pt").unlink()
    with pytest.raises(OptionError, match=r"holds weights.*--fresh"):
        train(LineTask(), LOOP, tmp_path)
    assert (tmp_path / "last.safetensors").exists()


def test_a_full_disk_is_an_error_that_keeps_the_last_checkpoint(tmp_path, monkeypatch):
    write, written = torch.save, []

    def fill(state, path):
        if written:
            Path(path).write_bytes(b"half")
            raise RuntimeError("[enforce fail at inline_container.cc] . PytorchStreamWriter failed writing file")
        written.append(path)
        write(state, path)

    monkeypatch.setattr(torch, "save", fill)
    with pytest.raises(OutputError, match=r"checkpoint\.pt cannot be written.*is the disk full"):
        train(LineTask(), LOOP, tmp_path)
    assert state_of(tmp_path)["step"] == 5 and not list(tmp_path.glob("*.tmp")) + list(tmp_path.glob(".*"))

    def refuse(self, mode="r", **options):
        if mode == "a":
            raise OSError(errno.ENOSPC, "No space left on device")
        return opened(self, mode, **options)

    opened = Path.open
    monkeypatch.setattr(torch, "save", write)
    with monkeypatch.context() as patch, pytest.raises(OutputError, match=r"log\.jsonl.*the disk is full"):
        patch.setattr(Path, "open", refuse)
        train(LineTask(), LOOP, tmp_path)
    assert state_of(tmp_path)["step"] == 5
    assert train(LineTask(), LOOP, tmp_path).steps == 20


class Judged(LineTask):
    """A validation's score is how many steps were taken, best at 0: nothing is better than the start."""

    def validate(self, network):
        steps = {step for step, *_ in self.seen}
        return {"score": -float(max(steps, default=-1) + 1)}


def test_validation_before_the_first_step_keeps_the_start_as_best_once(tmp_path):
    config = dataclasses.replace(LOOP, validate_first=True, save_every=100, validate_every=100, steps=4, ema=0.0)

    class Stopped(Judged):
        def prepare(self, step):
            if step.index == 2:
                raise WeightsError("stopped.")

    with pytest.raises(WeightsError):
        train(Stopped(), config, tmp_path)  # has no checkpoint, but the start as best: nothing to refuse
    start = line().state_dict()
    assert same(read_state_dict(tmp_path / "best.safetensors"), start)
    outcome = train(Judged(), config, tmp_path)
    assert outcome.scores == {"score": -4.0} and same(read_state_dict(outcome.best), start)
    assert [each["step"] for each in log_of(tmp_path) if "val_score" in each] == [0, 4]
    train(Judged(), dataclasses.replace(config, steps=6), tmp_path)
    assert [each["step"] for each in log_of(tmp_path) if "val_score" in each] == [0, 4, 6]
    assert read_metadata(tmp_path / "best.safetensors")["steps"] == "0"


def test_without_anything_to_validate_on_no_weights_are_the_best(tmp_path, capsys):
    class Blind(LineTask):
        def validate(self, network):
            return {}

    outcome = train(Blind(), LOOP, tmp_path, show=True)
    assert outcome.best is None and outcome.scores == {} and outcome.last.exists()
    assert "step 5: validation: no image can be read and has masks" in capsys.readouterr().err


def test_what_is_left_is_told_from_this_runs_own_steps(tmp_path, monkeypatch, capsys):
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    report = Report(tmp_path / "log.jsonl", 40, 20, True, False)  # goes on after step 20
    now[0] += 50
    report.scores(20, {"score": 1.0}, 50)  # before the first step
    for step in range(21, 31):
        now[0] += 2
        report.add(8, 8.0, {"loss": 3.0})  # 8 images in all processes
        if step == 25:
            report.line(step, {})
            now[0] += 10
            report.scores(step, {"score": 2.0}, 10)
    report.line(30, {})
    told = capsys.readouterr().err.splitlines()
    assert told[1] == "step 25 of 40: loss 3, 4 images/s, 30 s left"  # 15 steps of 2 seconds
    assert told[3] == "step 30 of 40: loss 3, 4 images/s, 30 s left"  # 10 steps of 3, validations included
    report.line(30, {})
    assert "nothing to learn from, " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("batch_size", 0),
        ("steps", 0),
        ("ema", 1.0),
        ("learning_rate", 0.0),
        ("learning_rate", math.nan),
        ("betas", (0.9, 1.0)),
        ("workers", -1),
        ("drops", (2.0,)),
        ("clip", -1.0),
    ],
)
def test_settings_that_no_run_can_have_are_refused(name, value, tmp_path):
    with pytest.raises(OptionError, match=name):
        train(LineTask(), dataclasses.replace(LOOP, **{name: value}), tmp_path)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_that_is_interrupted_saves_and_goes_on(tmp_path, number):
    class Interrupting(LineTask):
        def prepare(self, step):
            if step.index == 6:
                os.kill(os.getpid(), number)

    handlers = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(KeyboardInterrupt):
        train(Interrupting(), LOOP, tmp_path / "stopped")
    assert state_of(tmp_path / "stopped")["step"] in (7, 8)
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == handlers
    train(LineTask(), LOOP, tmp_path / "stopped")
    train(LineTask(), LOOP, tmp_path / "whole")
    assert same(state_of(tmp_path / "stopped"), state_of(tmp_path / "whole"))
    assert log_of(tmp_path / "stopped") == log_of(tmp_path / "whole")


def test_people_are_told_how_it_goes_and_otherwise_nobody_is(tmp_path, capsys):
    train(LineTask(broken=frozenset({1})), LOOP, tmp_path / "quiet")
    assert capsys.readouterr() == ("", "")
    train(LineTask(infinite=frozenset({6})), LOOP, tmp_path / "told", show=True)
    out, told = capsys.readouterr()
    assert out == "" and "step 5 of 20: loss " in told and "images/s, " in told
    assert "step 5: validation: closeness -" in told and "step 7 is left out: its loss is not finite." in told


def test_tensorboard_gets_the_numbers_of_the_log(tmp_path):
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    train(LineTask(), dataclasses.replace(LOOP, tensorboard=True), tmp_path)
    events = event_accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    losses = [(each["step"], each["loss"]) for each in log_of(tmp_path) if "loss" in each]
    assert [(each.step, pytest.approx(each.value)) for each in events.Scalars("loss")] == losses


def test_epochs_become_steps():
    assert total_steps(dataclasses.replace(LOOP, epochs=2.5, batch_size=4, accumulate=2), 48) == 15


def test_rates_of_each_schedule_by_hand():
    def rates(steps=(0, 5, 9), **changes):
        config = dataclasses.replace(LoopConfig(steps=10, warmup_steps=0), **changes)
        return [rate_factor(config, step, 10) for step in steps]

    assert rates(schedule="constant") == [1, 1, 1]
    assert rates(schedule="linear", least_rate=0.5) == pytest.approx([1, 0.75, 0.55])
    assert rates(schedule="cosine") == pytest.approx([1, 0.5, 0.5 * (1 + math.cos(0.9 * math.pi))])
    assert rates(schedule="step", drops=(0.5, 0.9)) == pytest.approx([1, 0.1, 0.01])
    warm = {"schedule": "constant", "warmup_steps": 4}
    assert rates(range(6), **warm, warmup_rate=0.2) == pytest.approx([0.2, 0.4, 0.6, 0.8, 1, 1])
    assert rates(range(6), **warm) == pytest.approx([0.25, 0.4375, 0.625, 0.8125, 1, 1])
    # as timm's: up to the peak in half of the run, and then at once half down the cosine
    half = rates((0, 4, 5, 9), schedule="cosine", warmup_steps=5, warmup_rate=0.2)
    assert half == pytest.approx([0.2, 0.84, 0.5, 0.5 * (1 + math.cos(0.9 * math.pi))])
    assert rate_factor(LoopConfig(warmup_steps=4), 2, 10, plateau=0.1) == pytest.approx(0.625)  # another schedule


def test_a_plateau_drops_as_torchs_own_schedule_does():
    parameter = nn.Parameter(torch.zeros(()))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    theirs = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, "max", factor=0.5, patience=1, threshold=0.0)
    plateau = Plateau(patience=1, drop_factor=0.5)
    for score in (0.1, 0.2, 0.2, 0.1, 0.3, 0.3, 0.3, 0.2, 0.2, 0.4, 0.1):
        plateau.see(score, "higher")
        theirs.step(score)
        assert plateau.factor == optimizer.param_groups[0]["lr"]
    assert plateau.factor == 0.125


def test_a_plateau_is_remembered_when_a_run_goes_on(tmp_path):
    config = dataclasses.replace(LOOP, schedule="plateau", patience=0, validate_every=2, log_every=1)

    class Flat(LineTask):
        def validate(self, network):
            return {"score": 1.0}

    train(Flat(), config, tmp_path / "whole")
    train(Flat(), dataclasses.replace(config, steps=9), tmp_path / "parts")
    train(Flat(), config, tmp_path / "parts")
    rates = [each["rate"] for each in log_of(tmp_path / "whole") if "rate" in each]
    # A run of 9 steps validates at its end too: 9 drops once more.
    assert rates[:3] == pytest.approx([0.05 / 3, 0.05 * 5 / 9, 0.05 * 7 / 9]) and rates[4] == pytest.approx(0.005)
    assert [each["rate"] for each in log_of(tmp_path / "parts") if "rate" in each][9] == pytest.approx(rates[9] / 10)


class Blocks(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.first, self.last = nn.Linear(3, 8), nn.Linear(8, 2)
        self.blocks = nn.ModuleList([nn.Sequential(nn.Linear(8, 8), nn.GELU()) for _ in range(2)])

    def forward(self, x):
        x = self.first(x)
        for block in self.blocks:
            x = x + block(x)
        return self.last(x)


def check_shards():
    """A spread network computes the same, and between two calls a process keeps about its half of the numbers."""
    network, x = Blocks().eval().requires_grad_(False), torch.ones(4, 3)
    count = sum(parameter.numel() for parameter in network.parameters())
    with torch.no_grad():
        whole = network(x)
        processes.shard_blocks(network)
        for _ in range(2):
            assert torch.equal(network(x), whole)
            kept = sum(parameter.to_local().numel() for parameter in network.parameters())
            assert 0.4 * count < kept < 0.6 * count


class SomeBroken(list):
    name = "photographs"

    def __getitem__(self, index):
        if index == 2:
            raise ImageError("image 2 is broken.")
        return super().__getitem__(index)


def check_spread_teachers(folder):
    """EdgeSAM's first stage with a teacher that both processes hold whole, and with one of which each holds a part."""
    from anysam.train import encoder_distillation
    from test_train_edge_sam import task_of
    from test_train_promptable import photographs

    (own := folder / str(processes.rank())).mkdir()
    entries = SomeBroken(photographs(own, 4))
    whole = task_of(entries, "1")
    loop = dataclasses.replace(whole.config.loop, steps=3, batch_size=1, validate_first=True)
    train(whole, loop, folder / "whole")

    teacher = whole.teacher.network
    pixels = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    count = sum(parameter.numel() for parameter in teacher.image_encoder.parameters())
    with torch.no_grad():
        wanted = teacher.encode_image(pixels)["image_embeddings"]
    encoder_distillation.shard = lambda network: processes.shard_blocks(network) is not None
    spread = task_of(entries, "1")
    train(spread, loop, folder / "spread")
    assert len(spread.teacher.kept) == (0 if processes.rank() else 3)

    with torch.no_grad():
        again = processes.shard_blocks(task_of(entries, "1").teacher.network)  # whole, with its methods
        for network in (spread.teacher.network, again):
            assert torch.equal(network.encode_image(pixels)["image_embeddings"], wanted)
            kept = sum(parameter.to_local().numel() for parameter in network.image_encoder.parameters())
            assert 0.4 * count < kept < 0.6 * count


def main(what, folder):
    if what == "killed":
        task = LineTask(network=noisy(), broken=frozenset({7}), stop_at=13)
        train(task, dataclasses.replace(LOOP, log_every=3), folder)
        return
    network = line()
    if processes.rank():
        network.weight.data += 1  # the first process's start counts
    odd = LineTask(broken=frozenset({3}), empty=frozenset({5, 6, 7, 8}), network=network)
    with processes.company(torch.device("cpu")):
        train(odd, LOOP, folder)
        check_shards()
        check_spread_teachers(folder)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
