"""`anysam eval`: the list, one protocol from the command line, its exit status and its files."""

import json

import numpy as np
import pytest
from PIL import Image

from anysam.cli import main
from anysam.commands.eval import add_fields, describe, names
from anysam.evaluate.protocols import PROTOCOLS
from anysam.evaluate.runs import ModelChoice
from test_datasets import write_folder
from test_evaluate_runs import FakeModel


@pytest.fixture
def data(tmp_path):
    y, x = np.mgrid[:60, :80]
    masks = [(y - 30) ** 2 + (x - 35) ** 2 < r**2 for r in (10, 20)]
    write_folder(tmp_path / "set", {f"{i}.png": [(mask, 0)] for i, mask in enumerate(masks)}, "val")
    for i, mask in enumerate(masks):
        image = np.where(mask[..., None], (220, 60, 40), (60, 90, 120)).astype(np.uint8)
        Image.fromarray(image).save(tmp_path / f"set/images/{i}.png")
    return tmp_path / "set"


@pytest.fixture
def fake(monkeypatch):
    """A model that is loaded at once."""
    monkeypatch.setattr(ModelChoice, "load", lambda self: FakeModel())


def run(*arguments, capsys):
    status = main(["eval", *map(str, arguments)])
    printed = capsys.readouterr()
    return status, printed.out, printed.err


def test_without_a_protocol_they_are_listed(capsys):
    status, text, _ = run(capsys=capsys)
    assert status == 0 and all(each.name in text and each.source in text for each in PROTOCOLS)
    _, text, _ = run("--json", capsys=capsys)
    assert [row["name"] for row in json.loads(text)["protocols"]] == list(names())


def test_an_unknown_protocol_is_one_line(capsys):
    status, text, words = run("nothing", capsys=capsys)
    assert (status, text) == (2, "") and words.count("\n") == 1 and "clicks" in words


@pytest.mark.parametrize(
    "name", ["clicks", "boxes", "instances", "proposals", "everything", "edges", "labels", "captions"]
)
def test_help_names_the_source_and_every_option(name, capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["eval", name, "--help"])
    text = " ".join(capsys.readouterr().out.split())
    listed = next(each for each in PROTOCOLS if each.name == name)
    assert " ".join(listed.source.split()) in text and listed.summary[1:] in text
    assert all(flag in text for flag in ("--data", "--limit", "--workers", "--out", "--no-plots"))
    assert describe(name).startswith(listed.summary[0].upper())


def test_one_run_writes_table_json_plots_and_goes_on(data, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    out = tmp_path / "out"
    command = ("boxes", "--data", data, "--workers", 1, "-o", out, "--baselines")
    status, text, words = run(*command, capsys=capsys)
    assert status == 0 and "grabcut" in text and "anysam_lite: 2 images" in words
    assert text == (out / "table.md").read_text()
    document = json.loads((out / "results.json").read_text())
    scores = document["results"][0]["scores"]["mean"]
    assert scores["images"] == 2 and scores["box"] > 0.5
    assert (out / "sizes.png").stat().st_size > 1000
    before = (out / next(path.name for path in out.glob("*.jsonl"))).read_bytes()
    status, again, _ = run(*command, capsys=capsys)
    assert (status, again) == (0, text)
    assert next(out.glob("*.jsonl")).read_bytes() == before
    status, _, words = run(*command, "--jitter", 0.2, capsys=capsys)
    assert status == 2 and "jitter" in words


def test_json_is_one_document_and_nothing_is_written_without_out(data, fake, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    status, text, _ = run("boxes", "--data", data, "--limit", 1, "--workers", 1, "--json", capsys=capsys)
    (result,) = json.loads(text)["results"]
    assert status == 0 and result["images"] == 1 and result["options"]["jitter"] == 0.0
    assert sorted(tmp_path.rglob("*")) == before


def test_two_models_stand_in_one_table(data, fake, capsys):
    command = ("boxes", "--data", data, "--limit", 1, "--workers", 1, "--model", "first,second")
    status, text, _ = run(*command, capsys=capsys)
    assert status == 0 and text.splitlines()[0].startswith("| model")
    assert sum(line.startswith("| anysam_lite | mean") for line in text.splitlines()) == 2


def test_a_broken_image_gives_status_1_and_its_name(data, fake, capsys):
    (data / "images/0.png").write_bytes(b"")
    status, text, words = run("boxes", "--data", data, "--workers", 1, capsys=capsys)
    assert status == 1 and "1 of 2 images, 1 broken" in text and "0.png: " in words


def test_allow_also_binds_what_a_protocol_loads_besides(data, capsys, monkeypatch):
    import os

    seen = []

    def load(self):
        seen.append(os.environ.get("ANYSAM_ALLOW"))
        return FakeModel()

    monkeypatch.setattr(ModelChoice, "load", load)
    run("boxes", "--data", data, "--workers", 1, "--allow", "mit", capsys=capsys)
    assert seen == ["mit"] and "ANYSAM_ALLOW" not in os.environ


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("boxes", "--data", "nowhere"), "nowhere"),
        (("boxes",), "--data"),
        (("boxes", "--data", ".", "--limit", "-1"), "--limit"),
        (("boxes", "--data", ".", "--workers", "0"), "--workers"),
        (("boxes", "--data", ".", "--jitter", "2"), "--jitter"),
        (("clicks", "--data", ".", "--clicks", "3,1"), "--clicks"),
        (("clicks", "--data", ".", "--clicks", "many"), "whole numbers"),
        (("instances", "--data", "."), "--detections"),
        (("boxes", "--data", ".", "--seeds", "2"), "--seeds"),
    ],
)
def test_bad_input_is_one_line(arguments, said, capsys):
    status, text, words = run(*arguments, capsys=capsys)
    assert (status, text) == (2, "") and words.strip().count("\n") == 0 and said in words


def test_every_option_of_every_protocol_of_ours_is_a_flag():
    import argparse

    from anysam.evaluate.protocols import find_listed, options_class

    for name in ("clicks", "boxes", "instances", "proposals", "everything"):
        parser = argparse.ArgumentParser()
        add_fields(parser.add_argument_group("options"), options_class(find_listed(name)))
        assert options_class(find_listed(name))(**vars(parser.parse_args([]))) == options_class(find_listed(name))()
