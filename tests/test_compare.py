"""`anysam compare`: agreement by hand, the advice by hand, and the command from photographs to files."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from anysam.catalogue import find_variant
from anysam.cli import main
from anysam.errors import OptionError, WeightsError
from anysam.evaluate import comparison
from anysam.evaluate.comparison import Answers, Facts, Photo, compare, ious, peak_memory, photo_of, score
from anysam.evaluate.comparison_report import to_markdown
from anysam.evaluate.recommendation import Candidate, choose, recommend
from anysam.fetch import locate
from anysam.licences import allowed_licences
from anysam.masks import encode_rle
from test_datasets import write_folder

FACTS = Facts("anysam_lite", 10, 5_000_000, "Apache-2.0", "ab", "cpu", 100, None)


def bar(left, right, size=(10, 40)):
    mask = np.zeros(size, bool)
    mask[:, left:right] = True
    return encode_rle(mask)


def answers(*masks, seconds=(1.0, 0.1)):
    return Answers(tuple(masks), tuple(masks), *seconds)


def test_a_mask_moved_by_half_its_width_agrees_by_a_third():
    assert ious([bar(0, 20), bar(5, 15)], [bar(10, 30), bar(5, 15)]) == [pytest.approx(1 / 3), 1.0]
    assert ious([bar(0, 0), bar(0, 0)], [bar(0, 0), bar(3, 4)]) == [1.0, 0.0]


def test_scores_are_means_over_objects_and_medians_over_photographs():
    photos = [Photo("a", (), ()), Photo("b", (), ()), Photo("c", (), ())]
    theirs = [answers(bar(0, 10)), answers(bar(0, 10)), answers(bar(0, 10), bar(10, 20))]
    own = [
        answers(bar(0, 10), seconds=(1.0, 0.3)),
        answers(bar(0, 5), seconds=(9.0, 0.1)),
        answers(bar(10, 20), bar(10, 20), seconds=(2.0, 0.2)),
    ]
    row = score("own", photos, (FACTS, own), theirs)
    assert (row.objects, row.box, row.click) == (4, (1 + 0.5 + 0 + 1) / 4, (1 + 0.5 + 0 + 1) / 4)
    assert (row.encode_seconds, row.prompt_seconds) == (2.0, 0.2)
    assert score("reference", photos, (FACTS, theirs), theirs).quality == 1
    assert score("gone", photos, WeightsError("no file"), theirs).problem == "no file"


def test_objects_are_asked_for_by_tight_box_and_middle():
    photo = photo_of("a", [bar(4, 13)])
    assert photo.boxes == ((4.0, 0.0, 13.0, 10.0),)
    ((x, y),) = photo.clicks
    assert 8 <= x <= 9 and 4 <= y <= 6


LARGE = Candidate("large", 0.90, 400_000_000, 3.0, "Apache-2.0")
NEAR = Candidate("near", 0.885, 40_000_000, 0.5, "Apache-2.0")
FREE_NOT = Candidate("bound", 0.89, 10_000_000, 0.2, "S-Lab-1.0")
POOR = Candidate("poor", 0.70, 5_000_000, 0.1, "MIT")


@pytest.mark.parametrize(
    ("candidates", "within", "licences", "expected"),
    [
        ([LARGE, NEAR, FREE_NOT, POOR], 0.02, None, "bound"),
        ([LARGE, NEAR, FREE_NOT, POOR], 0.02, "apache-2.0,mit", "near"),
        ([LARGE, NEAR, FREE_NOT, POOR], 0.2, "mit", "poor"),
        ([LARGE, NEAR, POOR], 0.015, None, "near"),  # exactly as far as allowed
        ([LARGE, NEAR, POOR], 0.01, None, "large"),
        ([LARGE, POOR], 0.01, "mit", None),
        ([LARGE, NEAR, Candidate("faster", 0.89, 40_000_000, 0.4, "MIT")], 0.02, None, "faster"),
    ],
)
def test_the_smallest_that_is_nearly_as_good_and_allowed_is_chosen(candidates, within, licences, expected):
    chosen = choose(candidates, "large", within, licences and allowed_licences(licences))
    assert (chosen and chosen.name) == expected


def test_the_advice_says_what_speaks_for_it_or_what_comes_closest():
    everything = [LARGE, NEAR, POOR]
    assert recommend(everything, "large", 0.02) == (
        "Take near: the smallest within 0.02 mIoU of large (0.885 against 0.900); "
        "0.50 s a photograph, 40 MB, Apache-2.0."
    )
    assert recommend(everything, "large", 0.001).startswith("Take large itself: no smaller model is within 0.001 mIoU")
    refused = recommend(everything, "large", 0.02, allowed_licences("mit"))
    assert refused.startswith("No model under an allowed licence is within 0.02 mIoU of large (0.900).")
    assert "The closest is poor (0.700)" in refused


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """Two photographs of a disc with their masks, and a file that is no image."""
    root = tmp_path_factory.mktemp("compare")
    y, x = np.mgrid[:64, :96]
    masks = {"a.png": (y - 32) ** 2 + (x - 40) ** 2 < 300, "b.png": (y - 30) ** 2 + (x - 60) ** 2 < 200}
    write_folder(root / "set", {name: [(mask, 0)] for name, mask in masks.items()}, "train")
    for name, mask in masks.items():
        image = np.where(mask[..., None], (220, 60, 40), (60, 90, 120)).astype(np.uint8)
        Image.fromarray(image).save(root / "set" / "images" / name)
    return root


def test_models_are_compared_on_own_masks_and_a_finished_one_is_kept(photographs, tmp_path, capsys, monkeypatch):
    twin, bad = tmp_path / "twin.safetensors", tmp_path / "bad.safetensors"
    shutil.copy(locate(find_variant("anysam_lite")), twin)
    bad.write_bytes(b"nothing")
    command = ["compare", str(photographs / "set" / "images"), "--masks", str(photographs / "set")]
    command += ["--models", f"anysam_lite,{twin},{bad}", "--out", str(tmp_path / "out"), "--device", "cpu", "--json"]
    assert main(command) == 1  # one model could not be used
    printed = capsys.readouterr()
    document = json.loads(printed.out)
    built_in, copy, broken = document["models"]
    assert built_in["objects"] == 2 and built_in["box"] > 0.6
    assert (copy["box"], copy["click"], copy["parameters"]) == (
        built_in["box"],
        built_in["click"],
        find_variant("anysam_lite").parameters,
    )
    assert built_in["licence"] == "Apache-2.0" and built_in["bytes"] == twin.stat().st_size
    assert built_in["memory"] > 100e6 and built_in["encode_seconds"] > 0
    assert set(broken) == {"name", "problem"} and str(bad) in printed.err
    assert document["advice"].startswith("Take ") and document["machine"]["cores"] >= 1
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"comparison.md", "comparison.json", "comparison.png", "models"}
    assert Image.open(tmp_path / "out" / "comparison.png").size[0] > 500

    asked = []
    real = comparison.in_own_process
    monkeypatch.setattr(
        comparison, "in_own_process", lambda choice, *rest: asked.append(choice.name) or real(choice, *rest)
    )
    assert main(command) == 1
    assert asked == [str(bad)]  # the others are done
    again = json.loads(capsys.readouterr().out)
    assert again["models"] == document["models"]


def test_without_masks_models_are_compared_with_the_reference(photographs, tmp_path, monkeypatch):
    """In this process: the same functions without the cost of new ones."""

    def here(choice, work, items):
        model = choice.load()
        yield from (work(model, item) for item in items)
        yield FACTS

    monkeypatch.setattr(comparison, "in_own_process", here)
    choices = (comparison.ModelChoice("anysam_lite", "cpu"), comparison.ModelChoice("anysam_lite", "cpu", "bfloat16"))
    paths = sorted((photographs / "set" / "images").iterdir())
    scores, broken = compare(comparison.Comparison(choices, 0, 2, 0), paths, None)
    assert broken == [] and scores[0].quality == 1 and 0.5 < scores[1].quality <= 1
    assert scores[0].objects >= 2
    text = to_markdown(scores, "anysam_lite", False, "Take it.")
    assert "what anysam_lite answers" in text and text.endswith("Take it.\n")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--models", "anysam_lite"], "at least two models"),
        (["--models", "anysam_lite,nothing"], "no model 'nothing'"),
        (["--models", "anysam_lite,mobile_sam", "--reference", "sam_vit_b"], "one of --models"),
        (["--models", "anysam_lite,mobile_sam", "--within", "2"], "from 0 to 1"),
        (["--models", "anysam_lite,mobile_sam", "--objects", "0"], "at least 1"),
        (["--models", "anysam_lite,mobile_sam", "--licence", "nonsense"], "unknown licence"),
    ],
)
def test_what_cannot_be_asked_is_one_line(photographs, arguments, words, capsys):
    assert main(["compare", str(photographs / "set" / "images"), *arguments]) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and words in printed.err and printed.err.count("\n") == 1


def test_masks_of_other_photographs_are_refused(photographs, tmp_path):
    other = tmp_path / "other.png"
    Image.new("RGB", (96, 64)).save(other)
    choices = (comparison.ModelChoice("anysam_lite", "cpu"),) * 2
    dataset = comparison.open_masks(photographs / "set", [str(other)])
    with pytest.raises(OptionError, match="masks of these very photographs"):
        compare(comparison.Comparison(choices, 0, 2, 0), [other], dataset)


def test_the_peak_is_of_this_process():
    peak = peak_memory()
    assert peak is None or 50e6 < peak < 1e12
