"""What one model does for `anysam compare`, in a process of its own, and what that takes.

One model after the other, so that none takes memory or time from another, and one that fails ends no other. Seconds are
wall clock: encoding a photograph that is read already, and answering one box or click with masks of the photograph's
size. The first photograph is done once before anything is timed. Beside them are told the CPU's seconds for encoding,
of all threads together, which other work on the machine hardly changes. Memory is what the process holds at most,
beyond what it held before the model was loaded; on a GPU what PyTorch had allocated there at most.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from anysam.catalogue import VARIANTS, find_variant
from anysam.errors import AnySamError, OptionError
from anysam.evaluate.comparison_photos import Photo, Rle
from anysam.evaluate.runs import ModelChoice
from anysam.fetch import Progress, fetch_weights, file_sha256, locate, missing_parts
from anysam.images import read_image
from anysam.licences import allowed_licences, require_allowed
from anysam.masks import encode_rle
from anysam.memory import resident_bytes
from anysam.predictor import Model
from anysam.prompts import Prompt
from anysam.weights_files import FORMAT, read_metadata


@dataclass(frozen=True)
class Contender:
    """A model that is compared, and its weights files; or why it cannot be used."""

    choice: ModelChoice
    files: tuple[Path, ...] = ()
    weights_sha256: str = ""
    problem: str | None = None

    @property
    def name(self) -> str:
        assert self.choice.name is not None
        return self.choice.name


@dataclass(frozen=True)
class Question:
    """A photograph to encode, so many times to be timed, and its objects to be asked for."""

    photo: Photo
    times: int = 1


@dataclass(frozen=True)
class Answers:
    """A mask for each box and each click of a photograph, and the seconds that each step took; cpu_seconds: of all
    threads, for encoding."""

    boxes: tuple[Rle, ...]
    clicks: tuple[Rle, ...]
    encode_seconds: tuple[float, ...]
    prompt_seconds: tuple[float, ...]
    cpu_seconds: tuple[float, ...] = ()


@dataclass(frozen=True)
class Facts:
    """What a model is. bytes: of its weights files. licence: of the weights. memory: bytes that its process held at
    most beyond those before it was loaded, None where the system does not tell; device_memory: of a GPU, or None."""

    variant: str
    parameters: int
    bytes: int
    licence: str
    weights_sha256: str
    device: str
    dtype: str
    memory: int | None
    device_memory: int | None


@dataclass(frozen=True)
class Failure:
    """The whole process has failed: the model cannot be loaded, or something else went wrong."""

    reason: str


def make_contender(choice: ModelChoice, progress: Progress | None = None) -> Contender:
    """The model with its weights files, downloaded where they are not here; never fails."""
    try:
        files = _files(choice, progress)
        return Contender(choice, files, ",".join(map(file_sha256, files)))
    except AnySamError as error:
        return Contender(choice, problem=str(error))


def _files(choice: ModelChoice, progress: Progress | None) -> tuple[Path, ...]:
    assert choice.name is not None
    row = next((row for row in VARIANTS if row.name == choice.name), None)
    if row is None:
        return (Path(choice.name).expanduser(),)
    require_allowed(row.name, row.weights_licence, allowed_licences(choice.allow))  # before a download
    return tuple(locate(each) or fetch_weights(each, progress) for each in missing_parts(row) or (row,))


def in_own_process(
    contender: Contender, threads: int, work: Callable[[Model, Any], Any], items: Sequence[Any]
) -> Iterator[Any]:
    """work(model, item) of each item, in order, from a new process of so many threads; at last the model's Facts.

    An AnySamError stands in the place of a result that could not be had; a Failure is the last thing said. work: a
    function at the top of a module, which the other process finds by name.
    """
    context = get_context("spawn")  # a fork of a process that computed with threads may hang
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(theirs, contender, threads, work, items), daemon=True)
    process.start()
    theirs.close()  # so that the end of the process is seen here
    try:
        while True:
            try:
                result = ours.recv()
            except (EOFError, OSError):
                process.join()
                yield Failure(
                    f"Its process ended with status {process.exitcode}, most likely for lack of memory; try smaller "
                    "photographs, or leave the model out."
                )
                return
            yield result
            if isinstance(result, Facts | Failure):
                return
    finally:
        ours.close()
        process.terminate()
        process.join()


def _work(
    connection: Connection,
    contender: Contender,
    threads: int,
    work: Callable[[Model, Any], Any],
    items: Sequence[Any],
) -> None:
    """The other process: what is said goes through the connection, until the other end is closed."""
    try:
        try:
            for result in work_here(contender, threads, work, items):
                connection.send(result)
        except AnySamError as error:
            connection.send(Failure(str(error)))
        except Exception as error:  # the outermost place of this process: the other one says it
            connection.send(Failure(" ".join(f"Its process failed, {type(error).__name__}: {error}".split())))
    except (OSError, KeyboardInterrupt):  # nobody is there any more
        return


def work_here(
    contender: Contender, threads: int, work: Callable[[Model, Any], Any], items: Sequence[Any]
) -> Iterator[Any]:
    """As `in_own_process`, in this one. Raises what loading the model raises."""
    torch.set_num_threads(threads)
    before = resident_bytes("VmRSS")
    model = contender.choice.load()
    for item in items:
        try:
            result = work(model, item)
        except AnySamError as error:
            result = error
        yield result
    yield facts_of(contender, model, before)


def answer(model: Model, question: Question) -> Answers:
    """The model's masks for each box (one mask) and each click (the surest of those that it gives for one)."""
    image = read_image(question.photo.path)
    encode_seconds, cpu_seconds = [], []
    for _ in range(question.times):
        began, cpu_began = time.perf_counter(), time.process_time()
        encoded = model.encode(image)
        _wait(model.device)
        encode_seconds.append(time.perf_counter() - began)
        cpu_seconds.append(time.process_time() - cpu_began)
    prompts: list[tuple[Prompt, bool | None]] = [(Prompt(box=np.array(box)), False) for box in question.photo.boxes]
    prompts += [(Prompt(points=np.array([click])), None) for click in question.photo.clicks]
    masks, prompt_seconds = [], []
    for prompt, multimask in prompts:
        began = time.perf_counter()
        prediction = model.predict(encoded, prompt, multimask=multimask)
        prompt_seconds.append(time.perf_counter() - began)
        masks.append(encode_rle(prediction.masks[prediction.best]))
    half = len(question.photo.boxes)
    seconds = (tuple(encode_seconds), tuple(prompt_seconds), tuple(cpu_seconds))
    return Answers(tuple(masks[:half]), tuple(masks[half:]), *seconds)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def facts_of(contender: Contender, model: Model, before: int | None) -> Facts:
    """What is known of a loaded model, in the process that loaded it. before: what that held until then, bytes."""
    peak = resident_bytes("VmHWM")
    return Facts(
        variant=model.variant,
        parameters=sum(each.numel() for each in cast(nn.Module, model.network).parameters()),
        bytes=sum(path.stat().st_size for path in contender.files),
        licence=weights_licence(contender, model.variant),
        weights_sha256=model.weights_sha256,
        device=str(model.device),
        dtype=str(model.dtype).removeprefix("torch."),
        memory=None if peak is None or before is None else peak - before,
        device_memory=torch.cuda.max_memory_allocated(model.device) if model.device.type == "cuda" else None,
    )


def weights_licence(contender: Contender, variant: str) -> str:
    """What a file of ours says of itself; else that of the variant's published weights, as `--allow` takes it."""
    published = find_variant(variant).weights_licence
    if contender.name == variant:
        return published
    metadata = read_metadata(contender.files[0])
    return (metadata.get("licence", "") if metadata.get("format") == FORMAT else "") or published


def default_threads() -> int:
    """Threads of a CPU that PyTorch takes unasked."""
    return torch.get_num_threads()


def most_parameters(names: Sequence[str]) -> int:
    """The place of the largest model, the first of equals: by parameters as the catalogue says, or for a file a quarter
    of its bytes, which is what float32 takes. Raises OptionError for what is neither a model nor a file."""
    rows = {row.name: row for row in VARIANTS}
    sizes = []
    for name in names:
        path = Path(name).expanduser()
        if name in rows:
            sizes.append(float(rows[name].parameters or (rows[name].megabytes or 0) * 1e6 / 4))
        elif path.is_file():
            sizes.append(path.stat().st_size / 4)
        else:
            raise OptionError(f"There is no model {name!r}, and no such file; `anysam models` lists the names.")
    return sizes.index(max(sizes))
