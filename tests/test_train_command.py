"""`anysam train`: the list, a recipe's help, a plan, a run, its continuation, what is refused."""

import json
import os
import signal
import subprocess
import sys
import tomllib
from dataclasses import dataclass, field
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import nn

from anysam import cli
from anysam.errors import ImageError
from anysam.train import recipes
from anysam.train.configs import option
from anysam.train.configs.data import DataConfig
from anysam.train.configs.loop import LoopConfig
from anysam.train.recipes import RECIPES, Recipe
from anysam.train.task import Loss, decayed
from anysam.weights_files import read_metadata


@dataclass(frozen=True)
class TinyConfig:
    teacher: str = option("sam_vit_b", "whom to learn from")
    interrupt: int = option(-1, "step of a Ctrl-C")
    broken: int = option(-1, "number of a broken image")
    data: DataConfig = field(default_factory=DataConfig)
    loop: LoopConfig = field(
        default_factory=lambda: LoopConfig(steps=6, batch_size=2, save_every=2, device="cpu", tensorboard=False)
    )


class TinyTask:
    variant, better = "anysam_lite", "higher"

    def __init__(self, config):
        self.config = config
        torch.manual_seed(0)
        self.network = nn.Linear(2, 1)

    def order(self, generator):
        return generator.permutation(8)

    def read(self, index, generator):
        if index == self.config.broken:
            raise ImageError(f"image {index} is broken.")
        return torch.tensor(generator.normal(size=2), dtype=torch.float32)

    def collate(self, examples):
        return torch.stack(examples)

    def loss(self, batch, step):
        if step.index == self.config.interrupt:
            os.kill(os.getpid(), signal.SIGINT)
        return Loss((self.network(batch) ** 2).sum(), len(batch))

    def prepare(self, step):
        pass

    def groups(self, weight_decay):
        return decayed(self.network, weight_decay)

    def validate(self, network):
        return {"flatness": -float(network.weight.detach().abs().sum())}

    def weights(self, network):
        return dict(network.state_dict())


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    """A recipe "distill tiny" of the table."""
    task, config = ModuleType("anysam.train.tiny"), ModuleType("anysam.train.configs.tiny")
    task.make_task = lambda config, out: TinyTask(config)
    config.TinyConfig = TinyConfig
    monkeypatch.setitem(sys.modules, "anysam.train.tiny", task)
    monkeypatch.setitem(sys.modules, "anysam.train.configs.tiny", config)
    row = Recipe("distill tiny", "next to nothing", "tiny:TinyConfig", "tiny", "no paper")
    for module in (recipes, cli.import_module("anysam.commands.train")):
        monkeypatch.setattr(module, "RECIPES", (*RECIPES, row))


def train(*words):
    return cli.main(["train", "distill", "tiny", *map(str, words)])


def test_the_list_names_every_recipe_and_its_paper(capsys):
    assert cli.main(["train"]) == 0
    text = capsys.readouterr().out
    assert all(recipe.name in text and recipe.paper in text for recipe in RECIPES)
    assert cli.main(["train", "--json"]) == 0
    assert [row["name"] for row in json.loads(capsys.readouterr().out)][-1] == "distill tiny"


def test_a_recipes_help_has_its_defaults_and_needs_no_torch():
    code = (
        "import sys\nfrom anysam import cli\nfrom anysam.train.recipes import RECIPES\n"
        "for recipe in RECIPES:\n"
        "    try:\n        cli.main(['train', *recipe.name.split(), '--help'])\n"
        "    except SystemExit as end:\n        assert end.code == 0\n"
        "print(sorted({'torch', 'numpy', 'PIL', 'cv2', 'rich'} & set(sys.modules)), file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr.strip() == "[]", done.stderr
    assert "usage: anysam train distill mobile_sam" in done.stdout and "(default: sam_vit_h)" in done.stdout
    titles = [line for line in done.stdout.splitlines() if line in ("the recipe:", "data:", "the run:")]
    assert titles == ["the recipe:", "data:", "the run:"] * len(RECIPES)


def test_a_run_leaves_weights_a_configuration_and_their_origin(tmp_path, capsys):
    out = tmp_path / "run"
    config = tmp_path / "mine.toml"
    config.write_text("[loop]\nlearning_rate = 0.1\nsteps = 4\n")
    assert train("--config", config, "--steps", "5", "-o", out) == 0
    told = capsys.readouterr()
    assert told.out.strip() == str(out / "best.safetensors")
    assert "5 steps of 2 images (2 at once, 1 times, in 1 process): 1.25 times all 8 images" in told.err
    assert "5 steps are done; at the end flatness -" in told.err
    effective = tomllib.loads((out / "config.toml").read_text())
    assert (effective["loop"]["steps"], effective["loop"]["learning_rate"]) == (5, 0.1)
    metadata = read_metadata(out / "best.safetensors")
    assert metadata["recipe"] == "distill tiny" and metadata["steps"] == "5" and len(metadata["config_sha256"]) == 64
    assert metadata["licence"] == "see the weights' origin: sam_vit_b: Apache-2.0"


def test_a_dry_run_says_what_would_be_done_and_does_nothing(tmp_path, capsys):
    out = tmp_path / "run"
    assert train("-o", out, "--dry-run", "--epochs", "2") == 0
    text = capsys.readouterr().out
    assert tomllib.loads(text)["loop"]["epochs"] == 2.0 and not out.exists()
    assert "# 8 steps of 2 images" in text and "# 0.00 of 0.00 million parameters learn." in text
    assert "# At least 4.8e-08 GB of memory" in text  # 3 numbers: weights, gradients, two averages of Adam
    assert "# Of 8 images that were looked at, 0 are broken and 0 have nothing to learn from." in text
    assert train("-o", out, "--dry-run", "--broken", "3") == 0
    text = capsys.readouterr().out
    assert "8 images that were looked at, 1 are broken" in text and "# broken: image 3 is broken." in text
    assert not out.exists() and tomllib.loads(text)


def test_a_folder_that_cannot_be_is_refused_before_anything_is_loaded(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    sys.modules["anysam.train.tiny"].make_task = None  # not called
    assert train("-o", tmp_path / "file" / "run") == 2
    assert f"{tmp_path / 'file'} is a file; choose another folder" in capsys.readouterr().err


def test_the_same_command_goes_on_and_fresh_starts_over(tmp_path, capsys):
    out = tmp_path / "run"
    assert train("-o", out, "--steps", "3") == 0
    assert train("-o", out, "--steps", "5") == 0
    assert f"The run in {out} goes on after step 3" in capsys.readouterr().err
    assert [json.loads(line)["step"] for line in (out / "log.jsonl").read_text().splitlines()] == [3, 3, 5, 5]
    assert train("-o", out, "--steps", "2", "--fresh") == 0
    assert [json.loads(line)["step"] for line in (out / "log.jsonl").read_text().splitlines()] == [2, 2]


def test_a_run_of_another_configuration_is_refused_before_anything_is_made(tmp_path, capsys):
    out = tmp_path / "run"
    assert train("-o", out) == 0
    kept = (out / "config.toml").read_bytes()
    sys.modules["anysam.train.tiny"].make_task = None  # not called
    assert train("-o", out, "--teacher", "sam_vit_l", "--limit", "3") == 2
    said = capsys.readouterr().err
    assert 'teacher was "sam_vit_b", now "sam_vit_l"' in said and "data.limit was 0, now 3" in said
    assert (out / "config.toml").read_bytes() == kept


def test_data_may_move(tmp_path):
    assert train("-o", tmp_path / "run", "--data", "here", "--steps", "2") == 0
    assert train("-o", tmp_path / "run", "--data", "there", "--steps", "3") == 0


def test_broken_images_are_told_and_make_the_status_1(tmp_path, capsys):
    assert train("-o", tmp_path / "run", "--broken", "3") == 1
    said = capsys.readouterr().err
    assert "left out: image 3 is broken." in said and "1 image was broken and left out" in said


def test_ctrl_c_saves_and_says_how_to_go_on(tmp_path, capsys):
    out = tmp_path / "my run"
    assert train("-o", out, "--interrupt", "2") == 130
    said = capsys.readouterr().err
    assert "Stopped and saved after step" in said
    line = f"Go on with: anysam train distill tiny --config '{out / 'config.toml'}' -o '{out}'"
    assert line in said and said.strip().endswith("interrupted.")
    assert cli.main(["train", "distill", "tiny", "--config", str(out / "config.toml"), "-o", str(out)]) == 0
    assert np.isfinite(json.loads((out / "log.jsonl").read_text().splitlines()[-2])["loss"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["distill"], "There is no recipe 'distill'"),
        (["distil", "tiny"], "There is no recipe 'distil tiny'"),
        (["distill", "tiny"], "required: -o/--out"),
        (["distill", "tiny", "-o", "x", "--step", "3"], "nrecognized arguments: --step"),
        (["distill", "tiny", "-o", "x", "--steps", "many"], "--steps: invalid int value: 'many'"),
        (["distill", "tiny", "-o", "x", "--betas", "0.9"], "--betas must be a list of 2 numbers"),
        (["distill", "tiny", "-o", "x", "--betas", "a,b"], "--betas: must be values with commas"),
        (["distill", "tiny", "-o", "x", "--steps", "0"], "steps must be at least 1, got 0"),
        (["distill", "tiny", "-o", "x", "--device", "gpu7"], "The device 'gpu7' cannot be used"),
        (["distill", "tiny", "-o", "x", "--optimizer", "lion"], "--optimizer: invalid choice: 'lion'"),
    ],
)
def test_what_is_asked_wrongly_is_refused_in_a_line(tmp_path, monkeypatch, capsys, words, message):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["train", *words]) == 2
    said = capsys.readouterr().err
    assert message in said and len(said.splitlines()) == 1 and not list(tmp_path.iterdir())


def test_an_option_may_stand_before_the_recipe(tmp_path, capsys):
    assert cli.main(["--debug", "train", "distill", "tiny", "-o", str(tmp_path / "run"), "--steps", "1"]) == 0
