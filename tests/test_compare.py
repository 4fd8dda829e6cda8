"""`anysam compare`: agreement by hand, the advice by hand, and the command from photographs to files."""

import dataclasses
import json
import os

import numpy as np
import pytest
import torch
from PIL import Image

from anysam.catalogue import find_variant
from anysam.checkpoints import read_state_dict, save_checkpoint
from anysam.cli import main
from anysam.datasets import Entries, ImageEntry
from anysam.errors import ImageError, OptionError, WeightsError
from anysam.evaluate import comparison
from anysam.evaluate.comparison import Comparison, compare, ious, score
from anysam.evaluate.comparison_photos import Photo, annotated_photos, match, open_masks, photo_of
from anysam.evaluate.comparison_plot import plain_ticks, short_name
from anysam.evaluate.comparison_process import (
    Answers,
    Contender,
    Facts,
    Failure,
    Question,
    answer,
    in_own_process,
    make_contender,
    most_parameters,
    work_here,
)
from anysam.evaluate.comparison_report import Report, to_document, to_markdown
from anysam.evaluate.recommendation import Candidate, Terms, choose, commercial_use, make_terms, recommend
from anysam.evaluate.runs import ModelChoice
from anysam.fetch import locate
from anysam.masks import encode_rle
from anysam.memory import resident_bytes
from test_datasets import write_folder

FACTS = Facts("anysam_lite", 10, 5_000_000, "Apache-2.0", "ab", "cpu", "float32", 100_000_000, None)
LITE = ModelChoice("anysam_lite", "cpu")


def bar(left, right, size=(10, 40)):
    mask = np.zeros(size, bool)
    mask[:, left:right] = True
    return encode_rle(mask)


def answers(*masks, encode=(1.0,), prompt=(0.1,)):
    return Answers(tuple(masks), tuple(masks), encode, prompt)


def test_a_mask_moved_by_half_its_width_agrees_by_a_third():
    assert ious([bar(0, 20), bar(5, 15)], [bar(10, 30), bar(5, 15)]) == [pytest.approx(1 / 3), 1.0]
    assert ious([bar(0, 0), bar(0, 0)], [bar(0, 0), bar(3, 4)]) == [1.0, 0.0]


def test_scores_are_means_over_objects_and_medians_over_photographs():
    photos = [Photo("a", (), ()), Photo("b", (), ()), Photo("c", (), ())]
    theirs = [answers(bar(0, 10)), answers(bar(0, 10)), answers(bar(0, 10), bar(10, 20))]
    own = [
        answers(bar(0, 10), encode=(1.0,), prompt=(0.3, 0.3)),
        answers(bar(0, 5), encode=(9.0,), prompt=(0.1, 0.2)),
        answers(bar(10, 20), bar(10, 20), encode=(2.0,), prompt=(0.2,)),
    ]
    row = score("own", photos, FACTS, own, theirs)
    assert (row.box, row.click) == ((1 + 0.5 + 0 + 1) / 4, (1 + 0.5 + 0 + 1) / 4)
    assert (row.encode_seconds, row.prompt_seconds, row.cpu_seconds) == (2.0, 0.2, None)
    deviation = (((1 - 0.625) ** 2 * 2 + (0.5 - 0.625) ** 2 + 0.625**2) / 3) ** 0.5
    assert row.error == pytest.approx(1.96 * deviation / 2)
    itself = score("reference", photos, FACTS, theirs, theirs)
    assert (itself.quality, itself.error) == (1, 0)
    masks = [dataclasses.replace(photo, masks=each.boxes) for photo, each in zip(photos, own, strict=True)]
    assert score("theirs", masks, FACTS, theirs, None).box == row.box


def test_objects_are_asked_for_by_tight_box_and_middle():
    photo = photo_of("a", [bar(4, 13)])
    assert photo.boxes == ((4.0, 0.0, 13.0, 10.0),)
    ((x, y),) = photo.clicks
    assert 8 <= x <= 9 and 4 <= y <= 6


LARGE = Candidate("large", 0.90, 400_000_000, 3.0, "Apache-2.0")
NEAR = Candidate("near", 0.885, 40_000_000, 0.5, "Apache-2.0")
FREE_NOT = Candidate("bound", 0.89, 10_000_000, 0.2, "S-Lab-1.0")
POOR = Candidate("poor", 0.70, 5_000_000, 0.1, "MIT")
TWIN = Candidate("twin", 0.89, 400_000_000, 4.0, "MIT")
HUGE = Candidate("huge", 0.95, 900_000_000, 9.0, "MIT")


@pytest.mark.parametrize(
    ("candidates", "within", "licences", "expected"),
    [
        ([LARGE, NEAR, FREE_NOT, POOR], 0.02, "any", "bound"),
        ([LARGE, NEAR, FREE_NOT, POOR], 0.02, "apache-2.0,mit", "near"),
        ([LARGE, NEAR, FREE_NOT, POOR], 0.02, "commercial", "near"),
        ([LARGE, NEAR, FREE_NOT, POOR], 0.2, "mit", "poor"),
        ([LARGE, NEAR, POOR], 0.015, "any", "near"),  # exactly as far as allowed
        ([LARGE, NEAR, POOR], 0.01, "any", "large"),  # the reference alone fits
        ([LARGE, POOR], 0.01, "mit", None),
        ([LARGE, NEAR, Candidate("faster", 0.89, 40_000_000, 0.4, "MIT")], 0.02, "any", "faster"),
        ([LARGE, TWIN], 0.02, "any", "twin"),  # not the reference where another one fits, slower or not
        ([LARGE, HUGE], 0.02, "any", "large"),  # nobody takes a larger one because it is nearly as good
        ([LARGE, HUGE, POOR], 0.02, "mit", "huge"),  # unless the reference is not allowed
    ],
)
def test_the_smallest_that_is_nearly_as_good_and_allowed_is_chosen(candidates, within, licences, expected):
    chosen = choose(candidates, "large", make_terms(within, licences))
    assert (chosen and chosen.name) == expected


def test_the_advice_says_what_speaks_for_it_or_what_comes_closest():
    everything = [LARGE, NEAR, POOR]
    assert recommend(everything, "large", Terms(0.02)) == (
        "Take near, the smallest within 0.02 mIoU of large: 0.885 against 0.900, 0.50 s a photograph, 40 MB, "
        "Apache-2.0."
    )
    bound = recommend([LARGE, FREE_NOT], "large", Terms(0.02))
    assert bound.endswith("10 MB, S-Lab-1.0 (not for commercial use).")
    alone = recommend(everything, "large", Terms(0.001))
    assert alone.startswith("Take large itself: no other model that is as small is within 0.001 mIoU of it.")
    assert "The closest is near: 0.885" in alone
    refused = recommend([LARGE, POOR], "large", make_terms(0.02, "MIT"))
    assert refused.startswith("No model under MIT is within 0.02 mIoU of large (0.900). The closest is poor: 0.700")
    assert "\n" not in refused
    assert recommend([FREE_NOT], "bound", make_terms(0.02, "commercial")) == (
        "No model for commercial use is within 0.02 mIoU of bound (0.890)."
    )


@pytest.mark.parametrize(
    ("licence", "use"),
    [
        ("Apache-2.0", "yes"),
        ("mit", "yes"),
        ("S-Lab-1.0", "no"),
        ("CC-BY-NC-4.0", "no"),
        ("CC-BY-NC-SA-4.0", "no"),
        ("non-commercial research", "no"),
        ("AGPL-3.0", "with your source"),
        ("GPL-3.0-or-later", "with your source"),
        ("none stated", "not stated"),
        ("see the weights' origin", "not stated"),
        ("", "not stated"),
    ],
)
def test_commercial_use_is_said_only_where_the_licence_is_known(licence, use):
    assert commercial_use(licence) == use


def test_the_largest_model_is_the_reference(tmp_path):
    small = tmp_path / "small.safetensors"
    small.write_bytes(b"0" * 1000)
    assert most_parameters(["anysam_lite", "sam_vit_b", "mobile_sam", str(small)]) == 1
    assert most_parameters([str(small), "slimsam_77", "edge_sam_3x", "edge_sam"]) == 2  # of equals the first
    with pytest.raises(OptionError, match="no model 'mobil_sam'"):
        most_parameters(["mobil_sam", "anysam_lite"])


def entry(path, name="", masks=()):
    counts = tuple(rle["counts"].encode() for rle in masks)
    return ImageEntry(path, "set", (10, 40), counts, (100,) * len(masks), name=name)


def test_masks_belong_to_a_photograph_by_path_or_by_name(tmp_path):
    paths = [tmp_path / folder / name for folder in "ab" for name in ("1.png", "2.png")] + [tmp_path / "3.png"]
    entries = [
        entry(tmp_path / "b/1.png", "1.png"),
        entry(tmp_path / "x/2.png", "a/2.png"),  # ends like one of the two of this name
        entry(tmp_path / "x/2.png", "2.png"),  # could be either
        entry(tmp_path / "x/3.png", "deep/3.png"),  # the only one of its name
        entry(tmp_path / "x/4.png", "4.png"),
    ]
    found, broken = match(Entries("set", entries), paths)
    assert broken == [] and [each.path for each in found] == [paths[1], paths[2], paths[4]]
    with pytest.raises(OptionError, match=r"set has 2 images called 3\.png"):
        match(Entries("set", [entry(tmp_path / "x/3.png"), entry(tmp_path / "y/3.png")]), paths)


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """Two photographs of a disc with their masks, in different splits."""
    root = tmp_path_factory.mktemp("compare")
    y, x = np.mgrid[:64, :96]
    masks = {"a.png": (y - 32) ** 2 + (x - 40) ** 2 < 300, "b.png": (y - 30) ** 2 + (x - 60) ** 2 < 200}
    write_folder(root / "set", {name: [(mask, 0)] for name, mask in masks.items()}, "train")
    document = json.loads((root / "set/annotations.json").read_text())
    document["images"][1]["split"] = "val"
    (root / "set/annotations.json").write_text(json.dumps(document))
    (root / "labels").mkdir()
    for name, mask in masks.items():
        image = np.where(mask[..., None], (220, 60, 40), (60, 90, 120)).astype(np.uint8)
        Image.fromarray(image).save(root / "set" / "images" / name)
        Image.fromarray(mask.astype(np.uint8)).save(root / "labels" / name)
    return root


def images(photographs):
    return sorted((photographs / "set" / "images").iterdir())


def test_masks_are_read_from_a_collection_a_json_label_images_or_one_of_them(photographs, tmp_path):
    paths = images(photographs)
    document = json.loads((photographs / "set/annotations.json").read_text())
    broken = {"id": 9, "image_id": 77, "category_id": 1, "segmentation": "nonsense", "area": 1}
    document["images"].append({"id": 77, "file_name": "other.png", "height": 5, "width": 5})
    document["annotations"].append(broken)  # of another image, so nobody is told
    elsewhere = tmp_path / "masks.json"
    elsewhere.write_text(json.dumps(document))
    expected = annotated_photos(open_masks(photographs / "set", paths), paths, 5, 0)
    assert [photo.path for photo in expected[0]] == paths and expected[1] == []
    for masks in (elsewhere, photographs / "labels"):
        assert annotated_photos(open_masks(masks, paths), paths, 5, 0) == expected
    one = annotated_photos(open_masks(photographs / "labels/a.png", paths[:1]), paths[:1], 5, 0)
    assert one[0] == expected[0][:1]
    with pytest.raises(OptionError, match="one label image, but there are 2 photographs"):
        open_masks(photographs / "labels/a.png", paths)
    with pytest.raises(OptionError, match=r"such as masks\.png"):
        open_masks(photographs / "labels", [tmp_path / "masks.jpg"])


def test_masks_of_another_size_are_broken(photographs, tmp_path):
    Image.new("RGB", (50, 50)).save(tmp_path / "a.png")
    photos, broken = annotated_photos(open_masks(photographs / "set", []), [tmp_path / "a.png"], 5, 0)
    assert photos == [] and "50 x 50" in broken[0][1]


@pytest.fixture
def here(monkeypatch):
    """The same work in this process, without the seconds that a new one takes; the list of what was asked."""
    asked = []

    def work(contender, threads, function, items):
        asked.append((contender.name, len(items)))
        try:
            yield from work_here(contender, torch.get_num_threads(), function, items)
        except WeightsError as error:
            yield Failure(str(error))

    monkeypatch.setattr(comparison, "in_own_process", work)
    monkeypatch.setattr(comparison, "_LEAST_TIMES", 1)
    return asked


def test_models_are_compared_on_own_masks_and_what_is_done_is_kept(photographs, tmp_path, capsys, here):
    twin, bad, out = tmp_path / "twin.safetensors", tmp_path / "bad.safetensors", tmp_path / "out"
    state_dict = read_state_dict(locate(find_variant("anysam_lite")))
    state_dict = {key: value.float() for key, value in state_dict.items()}  # the built-in file has halves
    save_checkpoint(twin, state_dict, {"variant": "anysam_lite", "licence": "CC-BY-NC-4.0"})
    bad.write_bytes(b"nothing")
    command = ["compare", str(photographs / "set" / "images"), "--masks", str(photographs / "set"), "--out", str(out)]
    command += ["--models", f"anysam_lite,{twin},{bad}", "--reference", str(twin), "--device", "cpu"]
    assert main([*command, "--json"]) == 1  # one model could not be used
    printed = capsys.readouterr()
    document = json.loads(printed.out)
    built_in, copy, broken = document["models"]
    assert (document["objects"], document["photographs"], document["reference"]) == (2, 2, str(twin))
    assert built_in["box"] > 0.6 and built_in["parameters"] == find_variant("anysam_lite").parameters
    assert (copy["box"], copy["click"]) == (built_in["box"], built_in["click"])
    assert (built_in["licence"], built_in["commercial_use"]) == ("Apache-2.0", "yes")
    assert (copy["licence"], copy["commercial_use"]) == ("CC-BY-NC-4.0", "no")
    assert copy["bytes"] == twin.stat().st_size and built_in["encode_seconds"] > 0
    assert set(broken) == {"name", "problem"} and f"not compared: {bad}" in printed.err
    assert document["advice"].startswith("Take anysam_lite, the smallest within 0.02 mIoU of")
    assert document["machine"]["threads"] == torch.get_num_threads()
    assert {path.name for path in out.iterdir()} == {*("comparison.md", "comparison.json", "comparison.png", "answers")}
    assert json.loads((out / "comparison.json").read_text()) == document
    assert Image.open(out / "comparison.png").size[0] > 500
    assert here == [(str(twin), 3), ("anysam_lite", 3), (str(bad), 3)]  # the first photograph twice, to warm up

    here.clear()
    rows = next((out / "answers").glob("*anysam_lite*"))
    lines = rows.read_bytes().splitlines(keepends=True)
    rows.write_bytes(b"".join(lines[:2]) + lines[2][:40])  # killed while the second photograph was written
    assert main([*command, "--licence", "mit", "--no-plots"]) == 1
    assert here == [("anysam_lite", 2), (str(bad), 3)]
    printed = capsys.readouterr()
    assert printed.out == (out / "comparison.md").read_text()
    assert printed.out.endswith("No model under mit is within 0.02 mIoU of " + printed.out.rsplit(" of ", 1)[1])
    again = json.loads((out / "comparison.json").read_text())["models"]
    assert again[1] == copy and again[0]["click"] == built_in["click"]

    assert main([*command, "--objects", "1"]) == 2
    assert "other settings (objects 5 there, 1 now)" in capsys.readouterr().err


def test_without_masks_models_are_compared_with_the_reference(photographs, tmp_path, here):
    paths = [*images(photographs), tmp_path / "none.png"]
    other = tmp_path / "other.safetensors"
    generator = torch.Generator().manual_seed(0)
    state_dict = {
        key: value.float() * (1 + 0.02 * torch.randn(value.shape, generator=generator))
        for key, value in read_state_dict(locate(find_variant("anysam_lite"))).items()
    }
    save_checkpoint(other, state_dict, {"variant": "anysam_lite"})
    contenders = (make_contender(LITE), make_contender(dataclasses.replace(LITE, name=str(other))))
    asked = Comparison(contenders, 0, objects=2, out=tmp_path)
    done = []
    compared = compare(asked, paths, lambda name, part: done.append((name, part)))
    assert [name for name, _ in compared.broken] == [str(tmp_path / "none.png")]
    reference, disturbed = compared.scores
    assert (reference.quality, reference.error) == (1, 0) and 0.2 < disturbed.quality < 1
    assert 2 <= compared.objects <= 4 and compared.photos == 2
    whole = [name for name, part in done if part == 1]
    assert whole == ["objects by anysam_lite", "anysam_lite", str(other)]
    here.clear()
    again = compare(asked, paths, lambda name, part: None)
    assert again.scores == compared.scores and here == [("anysam_lite", 1)]  # the broken photograph is tried again
    text = to_markdown(Report(asked, compared, Terms(), load=1e3))
    assert "Mean IoU with what anysam_lite answers" in text and "1 photograph broken." in text
    assert "The machine was busy (load 1000.0" in text and "CPU seconds of a photograph, which count for more" in text


def test_a_model_that_fails_ends_no_other(photographs, monkeypatch):
    """What goes wrong: the process dies, one photograph is refused, the weights are not there."""
    contenders = (*(Contender(ModelChoice(name), (), "ab") for name in ("good", "dies", "refuses")),)
    contenders += (Contender(ModelChoice("absent"), problem="no such file"),)

    def work(contender, threads, function, items):
        yield answers(items[0].photo.masks[0])
        if contender.name == "dies":
            yield Failure("ended")
            return
        for item in items[1:]:
            yield ImageError("odd") if contender.name == "refuses" else answers(item.photo.masks[0])
        yield FACTS

    monkeypatch.setattr(comparison, "in_own_process", work)
    asked = Comparison(contenders, 0, masks=photographs / "set")
    compared = compare(asked, images(photographs), lambda name, part: None)
    assert [(each.problem, each.quality) for each in compared.scores] == [
        *((None, 1.0), ("ended", 0.0), ("odd", 0.0), ("no such file", 0.0))
    ]
    document = to_document(Report(asked, compared, Terms()))
    assert document["advice"].startswith("Take good itself") and document["models"][3]["problem"] == "no such file"
    table = to_markdown(Report(asked, compared, Terms()))
    assert sum("could not be used" in line for line in table.splitlines()) == 3
    failed = dataclasses.replace(asked, reference=3)
    report = Report(failed, compare(failed, images(photographs), lambda name, part: None), Terms())
    assert report.advice == "There is no advice, since the reference absent could not be used."
    with pytest.raises(OptionError, match="The reference absent cannot be used: no such file"):
        compare(dataclasses.replace(failed, masks=None), images(photographs), lambda name, part: None)


def answer_or_die(model, question):
    """For the other process, which finds it by name."""
    if question.times == 0:
        os._exit(3)
    return answer(model, question)


def test_a_process_of_its_own_answers_and_its_death_is_told(photographs):
    photo = Photo(images(photographs)[0], ((25.0, 15.0, 57.0, 50.0),), ((40.5, 32.5),))
    contender = make_contender(LITE)
    results = list(in_own_process(contender, 1, answer_or_die, [Question(photo, 2), Question(photo, 0)]))
    expected, facts = work_here(contender, torch.get_num_threads(), answer, [Question(photo)])
    assert ious(results[0].boxes + results[0].clicks, expected.boxes + expected.clicks) == pytest.approx(
        [1, 1], abs=0.01
    )
    assert [len(each) for each in (results[0].encode_seconds, results[0].cpu_seconds)] == [2, 2]
    assert len(results[0].prompt_seconds) == 2
    assert isinstance(results[1], Failure) and "status 3" in results[1].reason and len(results) == 2
    assert facts.bytes == locate(find_variant("anysam_lite")).stat().st_size
    assert facts.memory is None or facts.memory > 0


def test_weights_that_cannot_be_had_are_a_reason(tmp_path, monkeypatch):
    monkeypatch.setenv("ANYSAM_OFFLINE", "1")
    absent = make_contender(ModelChoice("sam_vit_h"))
    assert absent.files == () and "sam_vit_h" in absent.problem
    refused = make_contender(ModelChoice("edge_sam", allow="apache-2.0"))
    assert "S-Lab-1.0" in refused.problem


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--models", "anysam_lite"], "at least two models"),
        (["--models", "anysam_lite,nothing"], "no model 'nothing'"),
        (["--models", "anysam_lite,mobile_sam", "--reference", "sam_vit_b"], "one of --models"),
        (["--models", "anysam_lite,mobile_sam", "--within", "2"], "from 0 to 1"),
        (["--models", "anysam_lite,mobile_sam", "--objects", "0"], "at least 1"),
        (["--models", "anysam_lite,mobile_sam", "--seed", "-1"], "--seed"),
        (["--models", "anysam_lite,mobile_sam", "--licence", "nonsense"], "unknown licence"),
        (["--models", "anysam_lite,mobile_sam", "--allow", "nonsense"], "unknown licence"),
        (["--models", "anysam_lite,mobile_sam", "--device", "abacus"], "abacus"),
    ],
)
def test_what_cannot_be_asked_is_one_line(photographs, arguments, words, capsys):
    assert main(["compare", str(photographs / "set" / "images"), *arguments]) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and words in printed.err and printed.err.count("\n") == 1


def test_masks_of_other_photographs_are_refused(photographs, tmp_path):
    other = tmp_path / "other.png"
    Image.new("RGB", (96, 64)).save(other)
    asked = Comparison((Contender(LITE), Contender(LITE)), 0, masks=photographs / "set")
    with pytest.raises(OptionError, match="masks of these very photographs"):
        compare(asked, [other], lambda name, part: None)


def test_files_of_one_name_are_told_apart_by_their_folders():
    scores = [comparison.Score(name) for name in ("runs/a/best.pt", "runs/b/best.pt", "runs/b/last.pt", "sam_vit_b")]
    assert [short_name(each.name, scores) for each in scores] == ["a/best", "b/best", "last", "sam_vit_b"]


def test_the_memory_is_of_this_process():
    now, peak = resident_bytes("VmRSS"), resident_bytes("VmHWM")
    assert now is None or 50e6 < now <= peak < 1e12


@pytest.mark.parametrize(
    "low, high, ticks",
    [(0.05, 3, [0.05, 0.1, 0.2, 0.5, 1, 2]), (0.2, 0.35, [0.2, 0.25, 0.3, 0.35]), (0.23, 0.29, [0.23, 0.24, 0.25])],
)
def test_the_plot_s_axis_has_numbers_however_alike_the_models_are(low, high, ticks):
    assert plain_ticks(low, high)[: len(ticks)] == ticks
