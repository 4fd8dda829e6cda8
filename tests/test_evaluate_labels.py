"""Protocol "labels": accuracies by hand, who names with which names, box AP, and tiny models through the runner."""

import io
import json
from contextlib import redirect_stdout
from dataclasses import dataclass

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from anysam import Prompt, describers
from anysam.describe.interface import Words
from anysam.describe.tap_words import DescribeOptions
from anysam.describe.vocabulary import Vocabulary, save_vocabulary
from anysam.errors import OptionError
from anysam.evaluate import naming
from anysam.evaluate.labels import LABELS, box_precision, suppressed
from anysam.evaluate.naming import Namer, match_names
from anysam.evaluate.options import LabelOptions
from anysam.evaluate.protocols import DataChoice, Row, find_listed
from anysam.evaluate.regions import read_categories, read_objects
from anysam.evaluate.runs import ModelChoice, Plan, evaluate
from anysam.masks import encode_rle
from stand_in_text import COLOURS, ColourScorer
from test_evaluate_runs import FakeModel
from tiny_models import tiny_model

OPTIONS = LabelOptions()
SIZE = (48, 64)
RED, GREEN, BLUE = (4, 4, 24, 20), (26, 2, 62, 46), (6, 26, 20, 44)  # x0 y0 x1 y1


def write_set(folder, names, frequencies=None, name="annotations.json"):
    """Two images with discs in three boxes each, red, green and blue; their categories are the first three names."""
    (folder / "images").mkdir(parents=True)
    images, annotations = [], []
    rows, columns = np.mgrid[: SIZE[0], : SIZE[1]] + 0.5
    for number in (1, 2):
        images.append({"id": number, "file_name": f"{number}.png", "height": SIZE[0], "width": SIZE[1]})
        pixels = np.full((*SIZE, 3), 128, np.uint8)
        for kind, (box, colour) in enumerate(zip((RED, GREEN, BLUE), ("red", "green", "blue"), strict=True)):
            x0, y0, x1, y1 = box
            mask = ((2 * columns - x0 - x1) / (x1 - x0)) ** 2 + ((2 * rows - y0 - y1) / (y1 - y0)) ** 2 < 1
            pixels[mask] = COLOURS[colour]
            form = encode_rle(mask)
            annotations.append(
                {"id": len(annotations) + 1, "image_id": number, "category_id": 10 + kind, "segmentation": form}
                | {"bbox": [x0, y0, x1 - x0, y1 - y0], "area": int(mask.sum()), "iscrowd": 0}
            )
        Image.fromarray(pixels).save(folder / "images" / f"{number}.png")
    categories = [{"id": 10 + i, "name": each} for i, each in enumerate(names)]
    for category, frequency in zip(categories, frequencies or (), strict=False):
        category["frequency"] = frequency
    document = {"images": images, "annotations": annotations, "categories": categories}
    (folder / name).write_text(json.dumps(document))
    return DataChoice(str(folder / name if name != "annotations.json" else folder))


@dataclass
class Speaker:
    """A describer that answers each mask in its turn with the next of these lists of names, best first."""

    names: tuple[str, ...]
    answers: list

    def words(self, image, records, progress=None):
        return [Words(each[0], 0.5, dict.fromkeys(each, 0.5)) for each in (self.answers.pop(0) for _ in records)]

    def facts(self):
        return {}


def namer_of(data, answers, model=None):
    (categories,) = read_categories(data)
    speaker = Speaker(categories.names, answers)
    return Namer(
        model or FakeModel(),
        {categories.dataset: speaker},
        {categories.dataset: frozenset(categories.names)},
        None,
        "x",
    )


NAMES = ("cat", "dog", "cow", "hen", "pig", "owl", "fox")


def measured(data, answers, options=OPTIONS):
    """Rows of two images, each of whose three objects gets a list of names."""
    namer, regions = namer_of(data, answers), read_objects(data)
    return [
        Row(entry.dataset, entry.name, json.loads(json.dumps(LABELS.measure(namer, entry, options))))
        for entry in (regions[0], regions[1])
    ]


@pytest.mark.parametrize("prompt", ["box", "mask"])
def test_accuracies_by_hand(prompt, tmp_path):
    options = LabelOptions(prompt=prompt)
    data = write_set(tmp_path / "farm", NAMES, "rrc")
    wrong = ["pig", "owl", "fox", "hen", "dog"]
    answers = [["cat", "dog"], wrong, ["hen", "owl"], ["cat"], ["dog"], ["pig", "cow"]]
    rows = measured(data, answers, options)
    assert rows[0].values["labels"] == ["cat", "dog", "cow"] and rows[0].values["guesses"][1] == wrong
    lines = dict(LABELS.summarise(rows, options, data).lines)
    # cat 2 of 2, dog 1 of 2 (and fifth once), cow 0 of 2 (and second once)
    whole = lines["farm"]
    assert (whole["top_1"], whole["top_5"]) == pytest.approx((3 / 6, 5 / 6))
    assert whole["class_mean"] == pytest.approx((1 + 0.5 + 0) / 3) and whole["classes"] == 3
    assert lines["mean"]["class_mean"] == whole["class_mean"]
    assert lines["rare"]["top_1"] == pytest.approx(3 / 4) and lines["common"]["top_1"] == 0.0
    assert lines["rare"]["class_mean"] == pytest.approx(0.75) and "frequent" not in lines
    # red and blue ones are small
    assert lines["small"]["top_1"] == pytest.approx(2 / 4) and lines["small"]["masks"] == 4
    assert lines["small"]["class_mean"] == pytest.approx(1 / 2) and lines["medium"]["top_1"] == 0.5
    figures = {figure.name: figure for figure in LABELS.summarise(rows, options, data).figures}
    assert figures["ranks"].y == pytest.approx((3 / 6, 4 / 6, 4 / 6, 4 / 6, 5 / 6))
    assert dict(zip(figures["classes"].x, figures["classes"].y, strict=True)) == {"cat": 1.0, "dog": 0.5, "cow": 0.0}


def test_an_object_without_words_is_wrong(tmp_path):
    data = write_set(tmp_path / "farm", NAMES)
    empty = {"areas": [9], "labels": ["cat"], "guesses": [[]], "unanswerable": 0, "namer": "x"}
    lines = dict(LABELS.summarise([Row("farm", "1.png", empty)], OPTIONS, data).lines)
    assert lines["farm"]["top_1"] == 0.0 == lines["farm"]["top_5"]


def test_no_rows_make_an_empty_table():
    assert LABELS.summarise([], OPTIONS, DataChoice("nowhere")).lines == ()


def test_the_mean_over_classes_is_that_of_each_data_set(tmp_path):
    first, second = (write_set(tmp_path / "all" / name, NAMES) for name in ("one", "two"))
    rows = measured(first, [["cat"], ["dog"], ["cow"]] * 2) + measured(second, [["cat"], ["cat"], ["cat"]] * 2)
    lines = dict(LABELS.summarise(rows, OPTIONS, DataChoice(str(tmp_path / "all"))).lines)
    assert lines["one"]["class_mean"] == 1.0 and lines["two"]["class_mean"] == pytest.approx(1 / 3)
    assert lines["mean"]["class_mean"] == pytest.approx(2 / 3) and lines["mean"]["masks"] == 12


def test_five_of_few_names_say_nothing(tmp_path):
    data = write_set(tmp_path / "farm", NAMES[:5])
    table = LABELS.summarise(measured(data, [["cat"], ["dog"], ["cow"]] * 2), OPTIONS, data)
    assert dict(table.lines)["farm"]["top_5"] is None and any("No top 5" in note for note in table.notes)


def test_spelling_is_no_mistake(tmp_path):
    data = write_set(tmp_path / "lvis", ("Traffic_light", "bow-tie", *NAMES))
    namer = namer_of(data, [])
    namer.describers["lvis"].answers += [["traffic light"], ["bow tie"], ["cat"]]
    namer.answers["lvis"] = frozenset(["traffic light", "bow tie", "cat"])
    entry = read_objects(data)[0]
    row = Row("lvis", "1.png", LABELS.measure(namer, entry, OPTIONS))
    assert dict(LABELS.summarise([row], OPTIONS, data).lines)["lvis"]["top_1"] == 1.0


def test_categories_that_nobody_could_answer_are_left_out_and_counted(tmp_path):
    data = write_set(tmp_path / "farm", NAMES)
    namer = namer_of(data, [["cat"], ["cow"]])
    namer.answers["farm"] = frozenset(["cat", "cow"])
    values = LABELS.measure(namer, read_objects(data)[0], OPTIONS)
    assert values["labels"] == ["cat", "cow"] and values["unanswerable"] == 1
    options = LabelOptions(labels="names.txt")
    table = LABELS.summarise([Row("farm", "1.png", values)], options, data)
    assert "Left out, because their categories are not among the names names.txt: 1 of the masks." in table.notes


def test_rows_of_several_describers_are_not_averaged(tmp_path):
    data = write_set(tmp_path / "farm", NAMES)
    first, second = measured(data, [["cat"], ["dog"], ["cow"]] * 2)
    other = Row(second.dataset, second.name, {**second.values, "namer": "y"})
    with pytest.raises(OptionError, match="several describers"):
        LABELS.summarise([first, other], OPTIONS, data)


# --- data -------------------------------------------------------------------------------------------------------------


def test_objects_have_categories_boxes_and_masks(tmp_path):
    data = write_set(tmp_path / "farm", NAMES)
    entry = read_objects(data)[1]
    assert (entry.name, entry.dataset, entry.labels) == ("2.png", "farm", ("cat", "dog", "cow"))
    assert entry.boxes == (RED, GREEN, BLUE) and entry.areas[0] == int(entry.decode(0).sum())
    (categories,) = read_categories(data)
    assert categories.names == NAMES and categories.frequencies == {}


def test_a_json_and_crowds(tmp_path):
    data = write_set(tmp_path / "farm", NAMES, name="lvis.json")
    path = tmp_path / "farm/lvis.json"
    document = json.loads(path.read_text())
    document["annotations"][0]["iscrowd"] = 1
    path.write_text(json.dumps(document))
    entry = read_objects(data)[0]
    assert entry.dataset == "lvis" and entry.labels == ("dog", "cow")


def test_data_without_a_choice_are_refused(tmp_path):
    data = write_set(tmp_path / "cells", ("cell",))
    with pytest.raises(OptionError, match="fewer than two categories"):
        read_categories(data)
    with pytest.raises(OptionError, match="has no categories"):
        read_categories(DataChoice(str(tmp_path / "cells/images")))


# --- who names --------------------------------------------------------------------------------------------------------


def test_names_are_matched_by_name_and_then_by_place():
    assert match_names(("b_b", "A"), ("a", "x", "B-b")) == ((2, 0), ())
    assert match_names(("a", "skis", "c"), ("a", "ski", "c")) == ((0, 1, 2), ())
    # not by place where the lists differ in length, or what stands there is another category
    assert match_names(("a", "skis"), ("a", "ski", "c")) == ((0,), ("skis",))
    assert match_names(("skis", "a"), ("a", "ski")) == ((0,), ("skis",))


@pytest.fixture
def vocabulary(tmp_path):
    columns = np.random.default_rng(0).normal(size=(32, len(NAMES)))
    columns = 20 * columns / np.linalg.norm(columns, axis=0)
    return Vocabulary(NAMES, columns.astype(np.float32), "seven names")


@pytest.fixture
def tap(monkeypatch):
    model = tiny_model("tap")
    monkeypatch.setattr(ModelChoice, "load", lambda self: model)
    return model


def test_tokenize_anything_names_by_the_published_embeddings_of_the_categories(tmp_path, tap, vocabulary, monkeypatch):
    """The first published vocabulary that has all of them, its other names left out, in the order of the data."""
    data = write_set(tmp_path / "farm", ("fox", "Owl", "cat"))
    asked = []

    def load_vocabulary(name):
        asked.append(name)
        return Vocabulary(("cat", "dog"), vocabulary.embeddings[:, :2], name) if name == "coco_80" else vocabulary

    monkeypatch.setattr(naming, "load_vocabulary", load_vocabulary)
    result = evaluate(Plan(find_listed("labels"), OPTIONS, data, 1, tmp_path / "out"), ModelChoice())
    assert asked == ["coco_80", "lvis_1203"]
    chosen = Vocabulary(("fox", "Owl", "cat"), np.ascontiguousarray(vocabulary.embeddings[:, [6, 5, 0]]), "mine")
    image = read_objects(data)[0].read_image()
    prompts = [Prompt(box=np.array(box)) for box in (RED, GREEN, BLUE)]
    records = tap.describe(tap.encode(image), prompts, DescribeOptions(chosen, captions=False))
    assert result.rows[0].values["guesses"] == [list(record.label_scores) for record in records]
    assert f"Named by tap_vit_b {tap.weights_sha256[:12]}, shown the annotated boxes." in result.table.notes
    rows = next((tmp_path / "out").glob("*.jsonl")).read_bytes()
    again = evaluate(Plan(find_listed("labels"), OPTIONS, data, 1, tmp_path / "out"), ModelChoice())
    assert again.table == result.table and next((tmp_path / "out").glob("*.jsonl")).read_bytes() == rows


def test_given_names_and_masks_are_shown_to_tokenize_anything(tmp_path, tap, vocabulary):
    data = write_set(tmp_path / "farm", ("fox", "owl", "gnu"))
    save_vocabulary(tmp_path / "mine.safetensors", vocabulary)
    options = LabelOptions(prompt="mask", labels=str(tmp_path / "mine.safetensors"))
    result = evaluate(Plan(find_listed("labels"), options, data), ModelChoice())
    for row in result.rows:
        assert row.values["labels"] == ["fox", "owl"] and row.values["unanswerable"] == 1
        assert all(len(names) == 5 and set(names) < set(NAMES) for names in row.values["guesses"])
    with pytest.raises(OptionError, match="--template has no effect"):
        options = LabelOptions(labels=str(tmp_path / "mine.safetensors"), template="the {}")
        evaluate(Plan(find_listed("labels"), options, data), ModelChoice())


def test_categories_that_no_published_vocabulary_has_are_said(tmp_path, tap, vocabulary, monkeypatch):
    data = write_set(tmp_path / "farm", ("fox", "gnu"))
    monkeypatch.setattr(naming, "load_vocabulary", lambda name: vocabulary)
    with pytest.raises(OptionError, match="'gnu' is in none.*--text-encoder"):
        evaluate(Plan(find_listed("labels"), OPTIONS, data), ModelChoice())


@pytest.mark.parametrize("prompt", ["box", "mask"])
def test_the_masks_of_another_model_are_named_by_clip(prompt, tmp_path, monkeypatch):
    """It knows colours. Of the discs it names all, and of the boxes that the model fills, mostly disc, too."""
    scorer = ColourScorer()
    monkeypatch.setattr(ModelChoice, "load", lambda self: FakeModel())
    monkeypatch.setattr(describers, "load_image_text", lambda *_, **__: scorer)
    monkeypatch.setattr(FakeModel, "network", None, raising=False)
    data = write_set(tmp_path / "shapes", ("red_thing", "green_thing", "blue_thing", "black_thing"))
    options = LabelOptions(prompt=prompt, template="the {} here")
    result = evaluate(Plan(find_listed("labels"), options, data), ModelChoice())
    assert dict(result.table.lines)["mean"]["top_1"] == 1.0
    assert scorer.pictures == 6 and set(scorer.texts) == {
        f"the {each} thing here" for each in ("red", "green", "blue", "black")
    }
    with pytest.raises(OptionError, match="--text-encoder has no effect with clip"):
        evaluate(Plan(find_listed("labels"), LabelOptions(text_encoder="folder"), data), ModelChoice())


def test_a_model_that_has_no_words_is_no_describer(tmp_path, tap):
    data = write_set(tmp_path / "farm", NAMES)
    with pytest.raises(OptionError, match="finds masks but no words"):
        evaluate(Plan(find_listed("labels"), LabelOptions(describer="sam_vit_b"), data), ModelChoice())


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"template": "no place"}, "--template"),
        ({"masks_per_image": -1}, "--masks-per-image"),
        ({"least_area": 0}, "--least-area"),
        ({"average_precision": True, "prompt": "mask"}, "--average-precision"),
    ],
)
def test_options_that_cannot_be_are_refused(given, said):
    with pytest.raises(OptionError, match=said):
        LabelOptions(**given)


# --- box AP -----------------------------------------------------------------------------------------------------------


def test_boxes_of_one_name_suppress_those_that_overlap_by_more_than_half():
    boxes = [(0, 0, 10, 10), (0, 0, 10, 6), (0, 0, 10, 5), (20, 20, 30, 30)]
    assert suppressed([(0.3, 3), (0.8, 1), (0.9, 0), (0.1, 2)], boxes) == [(0.9, 0), (0.3, 3), (0.1, 2)]


def test_right_names_of_the_annotated_boxes_have_an_ap_of_1(tmp_path):
    options = LabelOptions(average_precision=True)
    data = write_set(tmp_path / "farm", NAMES)
    rows = measured(data, [["cat"], ["dog"], ["cow"]] * 2, options)
    score, *box = rows[0].values["results"][0][1:]
    assert score == pytest.approx(0.5**0.5) and box == [4, 4, 20, 16]
    assert dict(LABELS.summarise(rows, options, data).lines)["farm"]["AP"] == 1.0
    rows = measured(data, [["cat"], ["dog"], ["hen"], ["cat"], ["dog"], ["hen"]], options)
    assert dict(LABELS.summarise(rows, options, data).lines)["farm"]["AP"] == pytest.approx(2 / 3)


def test_box_ap_is_pycocotools(tmp_path):
    data = write_set(tmp_path / "farm", NAMES)
    (categories,) = read_categories(data)
    draw = np.random.default_rng(3)
    rows = []
    for number in (1, 2):
        results = [
            [str(draw.choice(NAMES[:3])), float(draw.random()), *map(float, np.add(box, draw.integers(0, 4, 4)))]
            for box in ([4, 4, 20, 16], [26, 2, 36, 44], [6, 26, 14, 18]) * 5
        ]
        rows.append(Row("farm", f"{number}.png", {"results": results}))
    detections = [
        {"image_id": image, "category_id": 10 + NAMES.index(name), "score": score, "bbox": box}
        for image, row in enumerate(rows, start=1)
        for name, score, *box in row.values["results"]
    ]
    with redirect_stdout(io.StringIO()):
        truth = COCO(str(categories.path))
        evaluation = COCOeval(truth, truth.loadRes(detections), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    found = box_precision(rows, categories)
    assert [found["AP"], found["AP50"], found["AP75"]] == pytest.approx(list(evaluation.stats[:3]))
    assert 0 < found["AP"] < 1
