"""Make a model: distil a small one from a large one, prune one, or fine-tune one on your own masks.

`anysam train` lists the recipes, `anysam train RECIPE --help` shows a recipe's settings: each is a flag and a key of
the TOML file that --config names (the folder examples/recipes has one for every stage of every recipe). A run that is
stopped goes on when the same command is given again. --out holds the run: best.safetensors and last.safetensors are
models that every other command takes as --model.

Several processes: torchrun --nproc-per-node 8 -m anysam train RECIPE ...

examples:
  anysam train                                                            which recipes are there?
  anysam train finetune --data masks.json --images photos -o runs/mine    your own masks, on a CPU
  anysam train finetune --config examples/recipes/finetune_lora.toml --data masks/ -o runs/lora
  anysam train finetune --data masks/ --steps 500 -o runs/mine --dry-run  what would be done?
"""

import argparse
import json
import os
import shlex
import sys
from hashlib import sha256
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anysam.commands.options import printable
from anysam.errors import OutputError
from anysam.train.recipes import RECIPES, Recipe, config_class, find_recipe
from anysam.train.settings import SECTIONS, Setting, flat, read_config, settings_of, write_config

if TYPE_CHECKING:
    from anysam.train.loop import Outcome
    from anysam.train.task import Task

_TITLES = {"": "the recipe", "data": "data", "loop": "the run"}
# Settings that name models, whose licences the result may be under.
_MODELS = ("model", "teacher", "decoder", "init")
# How many images a dry run looks at, and for how long, in seconds.
_LOOKED_AT, _LONGEST_LOOK = 20, 10
# Data may move to another folder while a run goes on; the number of images is compared.
_PLACES = ("data.data", "data.images", "data.val_data")


def names() -> tuple[str, ...]:
    """What may stand after `anysam train`."""
    return tuple(recipe.name for recipe in RECIPES)


def describe(name: str) -> str:
    """What `anysam train NAME --help` says first."""
    recipe = find_recipe(name)
    return f"{recipe.summary[0].upper()}{recipe.summary[1:]}. After {recipe.paper}. `anysam train --help` says more."


def add_arguments(parser: argparse.ArgumentParser, name: str | None = None) -> None:
    """Declare the arguments of a recipe; without a name those of `anysam train` alone."""
    if name is None:
        parser.add_argument("recipe", nargs="*", metavar="RECIPE", help="see the list; with --help, all about it")
        parser.add_argument("--json", action="store_true", help="the list as one JSON document")
        return
    recipe = find_recipe(name)
    parser.set_defaults(recipe=name)
    parser.add_argument("-o", "--out", required=True, metavar="DIR", help="the run's folder, new or to go on with")
    parser.add_argument("--config", metavar="FILE", help="TOML file with settings; flags go before it")
    parser.add_argument("--fresh", action="store_true", help="start over, replacing the run that --out holds")
    parser.add_argument(
        "--dry-run", action="store_true", help="print the configuration and what would be done, and write nothing"
    )
    groups = {section: parser.add_argument_group(_TITLES[section]) for section in ("", *SECTIONS)}
    for setting in settings_of(config_class(recipe)):
        _add_flag(groups[setting.section], setting)


def _add_flag(group: argparse._ArgumentGroup, setting: Setting) -> None:
    """A flag whose value is None unless it is given."""
    default, words = setting.default, setting.help.replace("%", "%%")
    if setting.kind is bool:
        words += f" (default: {'yes' if default else 'no'})"
        group.add_argument(setting.flag, action=argparse.BooleanOptionalAction, default=None, help=words)
    elif setting.item is not None:
        shown = ",".join(map(str, default)).replace("%", "%%") or "none"
        kind = _list_of(setting.item)
        group.add_argument(setting.flag, type=kind, metavar="A,B", help=f"{words} (default: {shown})")
    else:
        shown = "" if default == "" else f" (default: {str(default).replace('%', '%%')})"
        metavar = None if setting.choices else {int: "N", float: "X"}.get(setting.kind, "TEXT")
        choices = setting.choices or None
        group.add_argument(setting.flag, type=setting.kind, choices=choices, metavar=metavar, help=words + shown)


def _list_of(kind: type) -> Any:
    def parse(text: str) -> list[Any]:
        try:
            return [kind(part.strip()) for part in text.split(",") if part.strip()]
        except ValueError:
            raise argparse.ArgumentTypeError(f"must be values with commas, got {text!r}") from None

    return parse


def run(arguments: argparse.Namespace) -> int:
    """Train and say where the model is; returns 1 when images were broken. Raises AnySamError."""
    if not isinstance(arguments.recipe, str):
        if arguments.recipe:
            find_recipe(" ".join(arguments.recipe))  # says which there are
        _list(arguments.json)
        return 0
    recipe = find_recipe(arguments.recipe)
    config = read_config(config_class(recipe), Path(arguments.config) if arguments.config else None, vars(arguments))
    out = Path(arguments.out)
    try:
        return _train(recipe, config, out, arguments.fresh, arguments.dry_run)
    except KeyboardInterrupt:
        _say_how_to_go_on(recipe, out)
        raise


def _train(recipe: Recipe, config: Any, out: Path, fresh: bool, dry: bool) -> int:
    from anysam.devices import find_device
    from anysam.train import processes
    from anysam.train.loop import train
    from anysam.train.optimisers import check_config
    from anysam.train.saving import Origin, require_same_run

    check_config(config.loop)
    text = f"# anysam train {recipe.name}\n{write_config(config)}"
    settings = {"recipe": recipe.name} | {name: value for name, value in flat(config).items() if name not in _PLACES}
    facts = {"recipe": recipe.name, "config_sha256": sha256(text.encode()).hexdigest(), "licence": _licence(config)}
    origin = Origin(settings, facts, text)
    if not dry:
        _require_place(out)
    going_on = not fresh and require_same_run(out, config.loop, settings)
    first = processes.rank() == 0
    with processes.company(processes.local_device(find_device(config.loop.device or None))):
        task = import_module(f"anysam.train.{recipe.task}").make_task(config, None if dry else out)
        if first:
            plan = _plan(task, config, out, going_on)
            if dry:
                plan += [_memory(task, config), *_first_look(task, config)]
                print(text + "\n" + "\n".join(f"# {printable(line)}" for line in plan))
            else:
                print(printable(f"{recipe.name}: {' '.join(plan)}"), file=sys.stderr)
        if dry:
            return 0
        outcome = train(task, config.loop, out, resume=not fresh, show=first, origin=origin)
    return _tell(outcome, out) if first else 0


def _require_place(out: Path) -> None:
    """Raise OutputError for a folder that cannot be written in, before models are loaded and data are read."""
    there = next(folder for folder in (out, *out.absolute().parents) if folder.exists())
    if not there.is_dir():
        raise OutputError(f"{out} cannot be written: {there} is a file; choose another folder.")
    if not os.access(there, os.W_OK | os.X_OK):
        raise OutputError(f"{out} cannot be written: permission is denied; choose a folder you may write to.")


def _plan(task: "Task", config: Any, out: Path, going_on: int) -> list[str]:
    """What a run will do, in sentences."""
    import numpy as np

    from anysam.train import processes
    from anysam.train.schedules import total_steps

    loop, world = config.loop, processes.world()
    images = len(task.order(np.random.default_rng([loop.seed, 0])))
    size = loop.batch_size * loop.accumulate * world
    steps = total_steps(loop, images)
    learning = sum(p.numel() for group in task.groups(loop.weight_decay) for p in group.parameters)
    own = sum(p.numel() for p in task.network.parameters())
    parts = f"{loop.batch_size} at once, {loop.accumulate} times, in {world} process{'es' if world > 1 else ''}"
    lines = [
        f"{learning / 1e6:.2f} of {own / 1e6:.2f} million parameters learn.",
        f"{steps} steps of {size} images ({parts}): {steps * size / max(1, images):.3g} times all {images} images.",
    ]
    if going_on:
        lines.append(f"The run in {out} goes on after step {going_on}; --fresh starts over.")
    return lines


def _memory(task: "Task", config: Any) -> str:
    """The least that a run takes, in a sentence: four bytes for every number that is kept."""
    loop = config.loop
    learning = sum(p.numel() for group in task.groups(loop.weight_decay) for p in group.parameters)
    own = sum(p.numel() for p in task.network.parameters())
    moments = 1 if loop.optimizer == "sgd" else 2
    least = 4 * (own + learning * (1 + moments + (loop.ema > 0)))
    return (
        f"At least {least / 1e9:.2g} GB of memory in each process: weights, gradients and the optimiser's numbers. A "
        "teacher, and what layers leave for the gradients, come on top."
    )


def _first_look(task: "Task", config: Any) -> list[str]:
    """What the first images are like, in sentences: as many as are read in some seconds."""
    import time

    import numpy as np

    from anysam.errors import ImageError

    order = np.sort(task.order(np.random.default_rng([config.loop.seed, 0])))
    chosen = np.unique(np.linspace(0, len(order) - 1, min(len(order), _LOOKED_AT)).astype(int))
    seen, empty, broken, began = 0, 0, list[str](), time.monotonic()
    for place in chosen:
        try:
            empty += task.read(int(order[place]), np.random.default_rng([config.loop.seed, seen])) is None
        except ImageError as error:
            broken.append(str(error))
        seen += 1
        if time.monotonic() - began > _LONGEST_LOOK:
            break
    lines = [f"Of {seen} images that were looked at, {len(broken)} are broken and {empty} have nothing to learn from."]
    return lines + [f"broken: {line}" for line in broken]


def _tell(outcome: "Outcome", out: Path) -> int:
    """The result on stdout, and on stderr what is to be known about it. Returns the exit status."""
    scores = ", ".join(f"{name} {value:.4f}" for name, value in outcome.scores.items())
    skipped = f" {outcome.skipped} were left out: their loss was not finite." if outcome.skipped else ""
    ended = f"at the end {scores}" if scores else "nothing was validated"
    print(f"{outcome.steps} steps are done; {ended}.{skipped}", file=sys.stderr)
    for line in outcome.broken[:10]:
        print(f"left out: {printable(line)}", file=sys.stderr)
    if outcome.broken:
        many = f"{len(outcome.broken)} images were" if len(outcome.broken) > 1 else "1 image was"
        print(f"{many} broken and left out; {out / 'broken.txt'} lists them.", file=sys.stderr)
    print(outcome.best or outcome.last)
    return 1 if outcome.broken else 0


def _licence(config: Any) -> str:
    """What the metadata of the result say: training does not free anyone from the licences of what it began with."""
    from anysam.catalogue import DEFAULT_VARIANT, VARIANTS
    from anysam.weights_files import read_metadata

    rows = {row.name: row for row in VARIANTS}
    origins = []
    for name, value in vars(config).items():
        value = value or (DEFAULT_VARIANT if name == "model" else "")
        if name not in _MODELS or not value:
            continue
        if value in rows:
            licence = rows[value].weights_licence
        else:
            licence = read_metadata(value).get("licence", "not stated") if Path(value).is_file() else "not stated"
        origins.append(f"{Path(value).name}: {licence}")
    return f"see the weights' origin: {'; '.join(dict.fromkeys(origins))}" if origins else "see the images it learned"


def _say_how_to_go_on(recipe: Recipe, out: Path) -> None:
    """On stderr, the command that goes on with what was saved."""
    from anysam.train import processes
    from anysam.train.saving import CHECKPOINT, CONFIG

    if processes.rank() != 0 or not (out / CHECKPOINT).exists():
        return
    world = processes.world()
    start = ["anysam"] if world == 1 else ["torchrun", "--nproc-per-node", str(world), "-m", "anysam"]
    words = [*start, "train", *recipe.name.split(), "--config", str(out / CONFIG), "-o", str(out)]
    print(printable(f"Go on with: {shlex.join(words)}"), file=sys.stderr, flush=True)


def _list(as_json: bool) -> None:
    if as_json:
        print(json.dumps([{"name": r.name, "summary": r.summary, "paper": r.paper} for r in RECIPES], indent=1))
        return
    width = max(len(recipe.name) for recipe in RECIPES)
    for recipe in RECIPES:
        print(f"{recipe.name:<{width}}  {recipe.summary} ({recipe.paper})")
