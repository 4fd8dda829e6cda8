"""One model through one protocol: image by image, in one process or several, kept in a file, gone on with after a kill.

The file holds a line of JSON for each image, after a first line with all that the results depend on. What is drawn
depends on the seed and the image alone, and every process computes with one thread, so that the rows are the same for
any number of processes and any number of interruptions; but for `seconds`, which are only reported.
"""

import dataclasses
import json
import os
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import numpy as np
import torch

from anysam import __version__
from anysam.datasets import ImageDataset, ImageEntry, kind_of, read_dataset
from anysam.errors import AnySamError, ImageError, OptionError
from anysam.evaluate.protocols import DataChoice, Listed, Protocol, Row, Table, load_protocol
from anysam.evaluate.row_file import FORMAT, Outcome, open_rows
from anysam.predictor import Model, load

_SPLIT = "val"  # of data that name parts: what nothing was learnt from


@dataclass(frozen=True)
class ModelChoice:
    """What `anysam.load` takes. name: None for the built-in model."""

    name: str | None = None
    device: str | None = None
    dtype: str = "float32"
    allow: str | None = None

    def load(self) -> Model:
        return load(self.name, device=self.device, dtype=self.dtype, allow=self.allow)


@dataclass(frozen=True)
class Plan:
    """What is measured, on what, and how. workers: processes of one thread each. out: folder for the rows, or None."""

    listed: Listed
    options: Any
    data: DataChoice
    workers: int = 1
    out: Path | None = None


@dataclass(frozen=True)
class Result:
    """A model's scores. settings: all that they depend on, JSON. images: of the data, after the limit. empty: images
    with nothing to measure. broken: names and reasons. seconds: wall clock of this run, without images done before.
    """

    settings: dict[str, Any]
    table: Table
    rows: tuple[Row, ...]
    images: int
    empty: int
    broken: tuple[tuple[str, str], ...]
    seconds: float


def open_data(protocol: Protocol, options: Any, data: DataChoice) -> ImageDataset:
    """The images of a protocol, all of them. Raises what their reader raises."""
    if protocol.read is not None:
        return protocol.read(options, data)
    path, images = Path(data.data), data.images or None
    kind = kind_of(path, None if images is None else Path(images)) if data.kind == "auto" else data.kind
    split = data.split or (_SPLIT if kind == "collection" else None)
    return read_dataset(path, kind, split=split, images=images)


def spread(count: int, limit: int) -> list[int]:
    """Up to `limit` of the numbers 0 ... count - 1, evenly spread, the first and the last among them; 0: all."""
    if limit == 0 or limit >= count:
        return list(range(count))
    return [count // 2] if limit == 1 else np.linspace(0, count - 1, limit).round().astype(int).tolist()


def evaluate(plan: Plan, choice: ModelChoice, progress: Callable[[float], None] | None = None) -> Result:
    """Measure a model. progress: called with the part that is done, rising to 1.

    Raises OptionError when `plan.out` holds results of other settings, OutputError when it cannot be written, and what
    the model, the data and the protocol raise; images that raise ImageError are skipped and listed.
    """
    start = time.perf_counter()
    protocol = load_protocol(plan.listed)
    protocol.check(plan.options, plan.data)
    dataset = open_data(protocol, plan.options, plan.data)
    indices = spread(len(dataset), plan.data.limit)
    if not indices:
        raise OptionError(f"{plan.data.data} holds no images to measure; check --data, --kind and --split.")
    model: Model | None = choice.load()  # before any work: a wrong name is an error at once
    assert model is not None
    settings = describe_settings(plan, protocol, model, len(dataset))
    outcomes: dict[int, Outcome] = {}
    with closing(open_rows(plan.out, settings)) as rows:
        outcomes |= {each.index: each for each in rows.done if each.broken is None and each.index in set(indices)}
        todo = [index for index in indices if index not in outcomes]
        if plan.workers > 1 and len(todo) > 1:
            model = None  # the processes load their own
            measured = _in_processes(plan, choice, dataset, todo)
        else:
            measured = _in_this_process(plan, protocol, model, dataset, todo)
        for number, outcome in enumerate(measured, start=1):
            outcomes[outcome.index] = outcome
            rows.add(outcome)
            if progress is not None:
                progress(number / len(todo))
    ordered = [outcomes[index] for index in indices]
    return _result(plan, protocol, settings, ordered, time.perf_counter() - start)


def describe_settings(plan: Plan, protocol: Protocol, model: Model, count: int) -> dict[str, Any]:
    """All that results depend on, as it is read from JSON again."""
    facts = {
        "format": FORMAT,
        "anysam": __version__,
        "protocol": plan.listed.name,
        "source": plan.listed.source,
        "options": dataclasses.asdict(plan.options),
        "data": {**dataclasses.asdict(plan.data), "data": os.path.abspath(plan.data.data), "images_in_all": count},
        "model": model.variant,
        "weights_sha256": model.weights_sha256,
        "device": model.device.type,
        "dtype": str(model.dtype).removeprefix("torch."),
        "files": protocol.digest(plan.options, plan.data),
    }
    read_again: dict[str, Any] = json.loads(json.dumps(facts))
    return read_again


def _result(
    plan: Plan, protocol: Protocol, settings: dict[str, Any], outcomes: Sequence[Outcome], seconds: float
) -> Result:
    rows = tuple(
        Row(each.dataset, each.name, each.values, each.seconds) for each in outcomes if each.values is not None
    )
    broken = tuple((each.name, each.broken) for each in outcomes if each.broken is not None)
    table = protocol.summarise(rows, plan.options, plan.data)
    return Result(settings, table, rows, len(outcomes), len(outcomes) - len(rows) - len(broken), broken, seconds)


def _prepare(plan: Plan, protocol: Protocol, model: Model) -> Any:
    if protocol.prepare_for is not None:
        return protocol.prepare_for(model, plan.options, plan.data)
    return protocol.prepare(model, plan.options)


def _measure(protocol: Protocol, subject: Any, index: int, entry: ImageEntry, options: Any) -> Outcome:
    start = time.perf_counter()
    try:
        values = protocol.measure(subject, entry, options)
    except ImageError as error:
        return Outcome(index, entry.dataset, _name(entry), broken=str(error))
    seconds = round(time.perf_counter() - start, 4)
    # Through JSON, so that a row is the same whether it was just measured or read from a file.
    return Outcome(index, entry.dataset, _name(entry), json.loads(json.dumps(values)), seconds=seconds)


def _name(entry: ImageEntry) -> str:
    return entry.name or entry.path.name


def _read_entry(dataset: ImageDataset, index: int) -> ImageEntry | Outcome:
    try:
        return dataset[index]
    except ImageError as error:
        return Outcome(index, dataset.name, f"image {index + 1} of {dataset.name}", broken=str(error))


def _in_this_process(
    plan: Plan, protocol: Protocol, model: Model | None, dataset: ImageDataset, todo: Sequence[int]
) -> Iterator[Outcome]:
    if not todo or model is None:
        return
    with _one_thread():
        subject = _prepare(plan, protocol, model)
        for index in todo:
            entry = _read_entry(dataset, index)
            yield entry if isinstance(entry, Outcome) else _measure(protocol, subject, index, entry, plan.options)


@contextmanager
def _one_thread() -> Iterator[None]:
    """PyTorch computes with one thread inside: another number rounds otherwise."""
    earlier = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(earlier)


def _in_processes(plan: Plan, choice: ModelChoice, dataset: ImageDataset, todo: Sequence[int]) -> Iterator[Outcome]:
    """Outcomes as they come. The images' annotations are read here and sent, so that the data are opened once."""
    context = get_context("spawn")  # a fork of a process that computed with threads may hang
    workers = {}
    try:
        for _ in range(min(plan.workers, len(todo))):
            ours, theirs = context.Pipe()
            process = context.Process(target=_work, args=(theirs, plan, choice), daemon=True)
            process.start()
            theirs.close()  # so that the end of the process is seen here
            workers[ours] = process
        waiting = iter(todo)
        busy: set[Connection] = set()
        idle: list[Connection] = list(workers)
        while True:
            for index in waiting:
                entry = _read_entry(dataset, index)
                if isinstance(entry, Outcome):
                    yield entry
                    continue
                busy.add(idle[-1])
                _send(idle.pop(), (index, entry))
                if not idle:
                    break
            if not busy:
                return
            for ready in wait(list(busy)):
                assert isinstance(ready, Connection)
                yield _receive(ready)
                busy.remove(ready)
                idle.append(ready)
    finally:
        for connection, process in workers.items():
            connection.close()
            process.terminate()
            process.join()


def _send(connection: Connection, task: tuple[int, ImageEntry]) -> None:
    try:
        connection.send(task)
    except OSError as error:
        raise _lost() from error


def _receive(connection: Connection) -> Outcome:
    try:
        answer = connection.recv()
    except (EOFError, OSError) as error:
        raise _lost() from error
    if isinstance(answer, AnySamError):
        raise answer
    if isinstance(answer, str):
        raise RuntimeError(f"a worker process failed:\n{answer}")
    assert isinstance(answer, Outcome)
    return answer


def _lost() -> OptionError:
    return OptionError(
        "A worker process ended, most likely for lack of memory; what is done is kept in --out: go on with fewer "
        "--workers."
    )


def _work(connection: Connection, plan: Plan, choice: ModelChoice) -> None:
    """A worker process: images come, outcomes go, until the other end is closed."""
    try:
        torch.set_num_threads(1)
        protocol = load_protocol(plan.listed)
        subject = _prepare(plan, protocol, choice.load())
        while True:
            index, entry = connection.recv()
            connection.send(_measure(protocol, subject, index, entry, plan.options))
    except (EOFError, OSError, KeyboardInterrupt):  # nobody is there any more
        return
    except AnySamError as error:
        connection.send(error)
    except Exception:  # the outermost place of this process: the other one says it
        connection.send(traceback.format_exc())
