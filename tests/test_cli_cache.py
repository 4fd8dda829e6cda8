"""--cache and --cache-size: the second run encodes nothing and answers the same."""

import dataclasses
import json

import numpy as np
import pytest
from PIL import Image

from anysam import Model
from anysam.cli import main
from tiny_models import tiny_model


@pytest.fixture
def encoded(monkeypatch):
    """Images that the command's model has encoded, by their shape; the model is a tiny one."""
    shapes = []
    encode = Model.encode

    def count(model, image):
        shapes.append(image.shape)
        return encode(model, image)

    model = tiny_model("anysam_lite")
    monkeypatch.setattr(Model, "encode", count)
    monkeypatch.setattr("anysam.predictor.load", lambda *arguments, **options: dataclasses.replace(model))
    return shapes


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, size in (("a.png", (60, 80)), ("b.png", (80, 60))):
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)).save(name)
    return tmp_path


def run(capsys, *arguments):
    status = main(["segment", "a.png", "b.png", "--point", "30,20", "--json", *arguments])
    out, err = capsys.readouterr()
    images = json.loads(out)["images"] if out else []
    return status, [image["masks"] for image in images], err


def test_the_second_run_encodes_nothing_and_gives_the_same_masks(encoded, folder, capsys):
    first = run(capsys, "--cache", "kept")
    assert first[0] == 0 and encoded == [(60, 80, 3), (80, 60, 3)]
    assert run(capsys, "--cache", "kept", "--cache-size", "1M")[:2] == first[:2]  # what is said has times in it
    assert len(encoded) == 2 and len(list((folder / "kept").glob("*.embedding"))) == 2
    assert [len(masks) for masks in first[1]] == [1, 1] and all(masks[0]["area"] > 0 for masks in first[1])


def test_without_the_option_nothing_is_kept(encoded, folder, capsys):
    for _ in range(2):
        assert run(capsys)[0] == 0
    assert len(encoded) == 4 and list(folder.rglob("*.embedding")) == []


def test_the_size_is_a_bound(encoded, folder, capsys):
    assert run(capsys, "--cache", "kept")[0] == 0
    one = max(path.stat().st_size for path in (folder / "kept").glob("*.embedding"))
    Image.new("RGB", (64, 64), "red").save("a.png")
    assert run(capsys, "--cache", "kept", "--cache-size", str(one + 2000))[0] == 0
    assert sum(path.stat().st_size for path in (folder / "kept").iterdir()) <= one + 2000


def test_a_cache_too_small_for_an_image_says_so_once_and_the_masks_come(encoded, capsys):
    status, masks, err = run(capsys, "--cache", "kept", "--cache-size", "1K")
    assert status == 0 and len(masks) == 2
    said = [line for line in err.splitlines() if line.startswith("warning:")]
    assert len(said) == 1 and "kept" in said[0] and "may take 1,024" in said[0]


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (["--cache-size", "1M"], "name its folder with --cache"),
        (["--cache", "x", "--cache-size", "lots"], "'lots'"),
        (["--cache", "x", "--cache-size", "0"], "'0'"),
        (["--cache", "a.png"], "'a.png' cannot be made"),
        (["--cache", "~nobody-has-this-name/x"], "home directory"),
        (["--cache", ""], "must be a path"),
    ],
)
def test_wrong_options_are_named_before_anything_is_encoded(options, word, encoded, capsys):
    status, _, err = run(capsys, *options)
    assert status == 2 and word in err and len(err.splitlines()) == 1 and encoded == []
