"""A run's state on disk, to go on from bit for bit. No state of random generators: every step seeds them anew."""

import json
import pickle
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from anysam.atomic import draft_of, explain
from anysam.errors import OptionError, OutputError
from anysam.train.configs.loop import LoopConfig
from anysam.train.processes import world

CHECKPOINT, LOG, BROKEN, TENSORBOARD = "checkpoint.pt", "log.jsonl", "broken.txt", "tensorboard"
CONFIG = "config.toml"
BEST, LAST = "best.safetensors", "last.safetensors"

# What may differ between a run and its continuation: how long and how often, and where it computes. How a step's
# examples are parted is told by their number.
_FREE = (
    "steps",
    "epochs",
    "log_every",
    "save_every",
    "validate_every",
    "validate_first",
    "workers",
    "device",
    "tensorboard",
)
_PARTED = ("batch_size", "accumulate")


@dataclass(frozen=True)
class Origin:
    """What a run comes from. settings: what decides its result beside the LoopConfig, as text; a run of others is not
    gone on with. facts: metadata of the saved weights, for example {"licence": ...}. toml: the whole configuration."""

    settings: Mapping[str, str] = field(default_factory=dict)
    facts: Mapping[str, str] = field(default_factory=dict)
    toml: str = ""


def decisive(config: LoopConfig, processes: int) -> dict[str, str]:
    """The values of a configuration that decide a run's result, as text."""
    free = [*_FREE, *_PARTED]
    if config.schedule == "plateau":
        free.remove("validate_every")
    values = {name: repr(value) for name, value in sorted(vars(config).items()) if name not in free}
    return values | {"batch_size x accumulate x processes": str(config.batch_size * config.accumulate * processes)}


def refuse_other_settings(folder: Path, before: Mapping[str, str], now: Mapping[str, str]) -> None:
    """Raise OptionError, which says what differs, if a run's settings are not those it began with."""
    differences = [
        f"{name} was {before.get(name, 'not there')}, now {now.get(name, 'not there')}"
        for name in sorted({*before, *now})
        if before.get(name) != now.get(name)
    ]
    if differences:
        more = f" and {len(differences) - 3} more" if len(differences) > 3 else ""
        raise OptionError(
            f"The run in {folder} began with other settings: {'; '.join(differences[:3])}{more}. Go on with its own, "
            "choose another folder with --out, or start over with --fresh."
        )


def require_same_run(folder: Path, config: LoopConfig, settings: Mapping[str, str]) -> int:
    """How many steps a folder's run has taken, 0 without one. Raises OptionError if it began with other settings."""
    path = folder / CHECKPOINT
    if not path.exists():
        return 0
    state = load_state(path, mmap=True)  # the tensors are not read
    refuse_other_settings(folder, state["settings"], {**settings, **decisive(config, world())})
    return int(state["step"])


def save_state(path: Path, state: Mapping[str, Any]) -> None:
    """Write a state, complete or not at all. Raises OutputError if that fails; an older file is then still there."""
    try:
        with draft_of(path) as draft:
            torch.save(dict(state), draft)
    except RuntimeError as error:  # torch reports a full disk in this way
        reason = str(error).splitlines()[0]
        raise OutputError(f"{path} cannot be written ({reason}); is the disk full? The last one is kept.") from error


def load_state(path: Path, mmap: bool = False) -> dict[str, Any]:
    """Read a state that `save_state` wrote, onto the CPU. Raises OptionError if it is damaged or something else.

    mmap: the tensors are read when they are looked at, which must be before the file is replaced.
    """
    try:
        state = torch.load(str(path), map_location="cpu", weights_only=True, mmap=mmap)
        if isinstance(state, dict) and {"settings", "step"} <= state.keys():
            return state
        reason = "it has no settings"
    except (RuntimeError, EOFError, KeyError, ValueError, TypeError, OSError, pickle.UnpicklingError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    raise OptionError(
        f"{path} is not a whole checkpoint of a training run ({reason}); choose another folder with --out, or start "
        "over with --fresh."
    )


def append_line(path: Path, values: Mapping[str, Any]) -> None:
    """Append a JSON document as a line. Raises OutputError."""
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(values, allow_nan=False) + "\n")
    except OSError as error:
        raise OutputError(explain(path, error)) from error


def cut_log(path: Path, step: int) -> None:
    """Drop lines after `step`: what a run wrote after its last checkpoint, and will write again."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line)
        except (ValueError, KeyError, TypeError):
            continue  # cut off by the end of the run
    write_lines(path, kept)


def write_lines(path: Path, lines: list[str]) -> None:
    """Write a text file, complete or not at all. Raises OutputError."""
    with draft_of(path) as draft:
        draft.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8", errors="backslashreplace")
