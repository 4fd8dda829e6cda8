"""A recipe's configuration out of defaults, a file and flags."""

import dataclasses
import tomllib
from dataclasses import dataclass, field

import pytest

from anysam.errors import OptionError
from anysam.train.configs import option
from anysam.train.configs.data import DataConfig
from anysam.train.configs.loop import LoopConfig
from anysam.train.recipes import RECIPES, config_class
from anysam.train.settings import flat, read_config, settings_of, write_config

# What the command itself puts among a recipe's flags.
TAKEN = {"out", "config", "fresh", "dry_run", "recipe", "debug", "help"}


@dataclass(frozen=True)
class TinyConfig:
    teacher: str = option("big", "whom to learn from", ("big", "large"))
    name: str = option("", "any text")
    rate: float = option(0.5, "a number")
    deep: bool = option(False, "a truth")
    sizes: tuple[int, ...] = option((1, 2), "whole numbers")
    range: tuple[float, float] = option((0.0, 1.0), "two numbers")
    data: DataConfig = field(default_factory=lambda: DataConfig(kind="coco"))
    loop: LoopConfig = field(default_factory=lambda: LoopConfig(steps=7, ema=0.5))


def written(tmp_path, text):
    path = tmp_path / "tiny.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_flags_go_before_the_file_and_the_file_before_defaults(tmp_path):
    path = written(
        tmp_path, 'teacher = "large"\nsizes = [3]\n[loop]\nsteps = 9\nlearning_rate = 1\n[data]\nlimit = 2\n'
    )
    flags = {"steps": 11, "learning_rate": None, "deep": True, "range": [2, 3.5], "out": "somewhere"}
    config = read_config(TinyConfig, path, flags)
    assert (config.teacher, config.sizes, config.deep, config.range) == ("large", (3,), True, (2.0, 3.5))
    assert (config.loop.steps, config.loop.learning_rate, config.loop.ema) == (11, 1.0, 0.5)
    assert isinstance(config.loop.learning_rate, float) and isinstance(config.range[0], float)
    assert (config.data.limit, config.data.kind) == (2, "coco")


def test_without_file_and_flags_a_configuration_is_its_defaults():
    assert read_config(TinyConfig, None, {}) == TinyConfig()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("teachr = 'big'", "teachr is no setting of this recipe; did you mean teacher?"),
        ("steps = 3", r"steps is no setting of this recipe; did you mean steps in \[loop\]?"),
        ("[loop]\nrate = 3", r"\[loop\] rate is no setting of this recipe; did you mean rate?"),
        ("[lop]\nsteps = 3", r"\[lop\] steps is no setting of this recipe; did you mean steps in \[loop\]?"),
        ("[loop]\nzzz = 3", r"\[loop\] zzz is no setting of this recipe; known there: steps, epochs"),
        ("loop = 3", r"loop must be a table, \[loop\], got 3"),
        ("[[loop]]\nsteps = 3", r"loop must be a table, \[loop\], got \["),
        ("teacher = 'small'", 'teacher must be one of big, large, got "small"'),
        ("teacher = 3", "teacher must be a text, got 3"),
        ("rate = '3'", 'rate must be a number, got "3"'),
        ("rate = nan", "rate must be a number, got NaN"),
        ("rate = true", "rate must be a number, got true"),
        ("deep = 1", "deep must be true or false, got 1"),
        ("sizes = [1.5]", r"sizes must be a list of whole numbers, got \[1.5\]"),
        ("sizes = 3", "sizes must be a list of whole numbers, got 3"),
        ("range = [1]", r"range must be a list of 2 numbers, got \[1\]"),
        ("[loop]\nsteps = 2.0", r"\[loop\] steps must be a whole number, got 2.0"),
        ("[loop]\nsteps = 2000-01-01", r"\[loop\] steps must be a whole number"),
        ("[loop]\nseed = false", r"\[loop\] seed must be a whole number, got false"),
        ("[data]\nkind = 'jpg'", r"\[data\] kind must be one of auto, coco"),
        ("teacher = ", "is not TOML"),
        ("[loop.more]\na = 1", r"\[loop\] more is no setting"),
    ],
)
def test_what_a_file_may_not_say_is_refused_with_file_and_key(tmp_path, text, words):
    path = written(tmp_path, text)
    with pytest.raises(OptionError, match=words) as caught:
        read_config(TinyConfig, path, {})
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_length_in_steps_replaces_one_in_epochs_that_was_not_asked_for(tmp_path):
    epochs = dataclasses.replace(TinyConfig().loop, epochs=8.0)

    @dataclass(frozen=True)
    class Long:
        data: DataConfig = field(default_factory=DataConfig)
        loop: LoopConfig = field(default_factory=lambda: epochs)

    def length(text, **flags):
        loop = read_config(Long, written(tmp_path, f"[loop]\n{text}"), flags).loop
        return loop.steps, loop.epochs

    assert length("") == (7, 8.0) and length("steps = 3") == (3, 0.0) and length("epochs = 2") == (7, 2.0)
    assert length("steps = 3\nepochs = 2") == (3, 2.0)  # as every run's own config.toml has both
    assert length("epochs = 2", steps=5) == (5, 0.0) and length("steps = 3", epochs=4.0) == (3, 4.0)
    assert length("", steps=5, epochs=0.0) == (5, 0.0)
    with pytest.raises(OptionError, match=r"^--steps 5 and --epochs 4 are two lengths; give one\.$"):
        length("", steps=5, epochs=4.0)


def test_a_flag_is_named_in_what_is_wrong_with_it(tmp_path):
    with pytest.raises(OptionError, match=r"^--learning-rate must be a number, got Infinity"):
        read_config(TinyConfig, None, {"learning_rate": float("inf")})
    with pytest.raises(OptionError, match="cannot be read: No such file"):
        read_config(TinyConfig, tmp_path / "none.toml", {})


def test_what_is_written_is_toml_that_reads_back(tmp_path):
    odd = 'a "quoted" \\ back\tslash, Grüße \x7f\n'
    config = TinyConfig(name=odd, rate=1e-07, sizes=(), loop=LoopConfig(betas=(0.9, 0.98), learning_rate=5e-05))
    text = write_config(config)
    assert read_config(TinyConfig, written(tmp_path, text), {}) == config
    document = tomllib.loads(text)
    assert document["name"] == odd and document["rate"] == 1e-07 and document["loop"]["betas"] == [0.9, 0.98]
    assert document["deep"] is False and document["data"]["kind"] == "coco"
    assert flat(config)["teacher"] == '"big"' and flat(config)["data.limit"] == "0" and "loop" not in flat(config)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
def test_every_recipes_settings_have_flags_and_files_of_their_own(tmp_path, recipe):
    config = config_class(recipe)
    names = [each.name for each in settings_of(config)]
    assert len(set(names)) == len(names) and not TAKEN & set(names)
    assert all(each.help and each.help == each.help.strip() for each in settings_of(config))
    for each in settings_of(config):
        assert not each.choices or each.default in each.choices
    assert read_config(config, written(tmp_path, write_config(config())), {}) == config()
    assert dataclasses.is_dataclass(config)
