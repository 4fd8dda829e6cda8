"""Protocol "captions": its files, and a tiny Tokenize Anything through the runner on small photographs."""

import json

import numpy as np
import pytest
from PIL import Image

from anysam import Prompt
from anysam.cli import main
from anysam.describe import tap_words
from anysam.errors import ImageError, MissingExtraError, OptionError
from anysam.evaluate.captions import CAPTIONS, describe_options
from anysam.evaluate.cider import bleu_4, cider_d, tokens
from anysam.evaluate.options import CaptionOptions
from anysam.evaluate.protocols import DataChoice, Row, find_listed
from anysam.evaluate.regions import read_captioned
from anysam.evaluate.runs import ModelChoice, Plan, evaluate
from tiny_models import tiny_model
from tiny_tokenizer import write_tokenizer

OPTIONS = CaptionOptions()
SIZE = (40, 60)


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in (1, 2):
        pixels = np.random.default_rng(number).integers(0, 256, (*SIZE, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.jpg")
    return folder


@pytest.fixture
def coco(tmp_path, images):
    """As GRiT's file: an annotation for each caption; one has two captions, two have the same box, one has none."""
    document = {
        "images": [{"id": i, "file_name": f"{i}.jpg", "height": SIZE[0], "width": SIZE[1]} for i in (1, 2, 3)],
        "categories": [{"id": 1, "name": "object"}],
        "annotations": [
            {"id": 10, "image_id": 1, "bbox": [5, 5, 20, 10], "caption": "a red car"},
            {"id": 11, "image_id": 2, "bbox": [0, 0, 60, 40], "captions": ["the old dog", "a dog sleeps"]},
            {"id": 12, "image_id": 1, "bbox": [5, 5, 20, 10], "caption": "car on the street"},
            {"id": 13, "image_id": 2, "bbox": [30, 20, 12, 12], "caption": "two birds in a tree"},
            {"id": 14, "image_id": 2, "bbox": [1, 2, 3, 4]},
        ],
    }
    path = tmp_path / "grit.json"
    path.write_text(json.dumps(document))
    return DataChoice(str(path), images=str(images))


@pytest.fixture
def genome(tmp_path, images):
    """As Visual Genome's own file, which does not tell how large its images are."""
    names = ("region_id", "x", "y", "width", "height", "phrase")
    rows = [(7, 5, 5, 20, 10, "a red car"), (8, 30, 20, 99, 12, "two birds in a tree")]
    regions = [dict(zip(names, row, strict=True)) | {"image_id": 1} for row in rows]
    path = tmp_path / "region_descriptions.json"
    path.write_text(
        json.dumps([{"id": 1, "regions": regions}, {"id": 2, "regions": []}, {"id": 9, "regions": regions}])
    )
    return DataChoice(str(path), images=str(images))


@pytest.fixture
def tap(monkeypatch):
    model = tiny_model("tap")
    monkeypatch.setattr(ModelChoice, "load", lambda self: model)
    return model


def entries(data, **options):
    regions = read_captioned(data, **options)
    return [regions[i] for i in range(len(regions))]


def test_annotations_of_a_coco_file_are_regions(coco):
    first, second = entries(coco)
    assert (first.name, first.dataset, first.size) == ("1.jpg", "grit", SIZE)
    assert first.boxes == ((5, 5, 25, 15), (5, 5, 25, 15))
    assert first.captions == (("a red car",), ("car on the street",)) and first.ids == (10, 12)
    assert second.captions == (("the old dog", "a dog sleeps"), ("two birds in a tree",)) and second.ids == (11, 13)


def test_annotations_of_the_same_box_are_joined_where_asked(coco):
    first, second = entries(coco, join=True)
    assert first.boxes == ((5, 5, 25, 15),) and first.ids == (10,)
    assert first.captions == (("a red car", "car on the street"),)
    assert len(second.boxes) == 2


def test_visual_genomes_file_is_read_with_the_images_sizes(genome, images):
    regions = read_captioned(genome)
    assert len(regions) == 2  # the image without regions is none
    entry = regions[0]
    assert (entry.size, entry.name, entry.path) == (SIZE, "1.jpg", images / "1.jpg")
    assert entry.boxes == ((5, 5, 25, 15), (30, 20, 129, 32))
    assert entry.captions == (("a red car",), ("two birds in a tree",)) and entry.ids == (7, 8)
    with pytest.raises(ImageError):
        regions[1]  # 9.jpg is nowhere


def test_visual_genomes_images_are_found_in_its_two_folders(genome, images):
    (images / "VG_100K_2").mkdir()
    (images / "1.jpg").rename(images / "VG_100K_2/1.jpg")
    assert read_captioned(genome)[0].path == images / "VG_100K_2/1.jpg"


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ({"images": [], "annotations": []}, "caption and a box"),
        ({"images": []}, "neither Visual Genome"),
        ([1, 2], "neither Visual Genome"),
        ("text", "neither Visual Genome"),
    ],
)
def test_another_file_is_one_line(document, said, tmp_path):
    path = tmp_path / "other.json"
    path.write_text(json.dumps(document))
    with pytest.raises(OptionError, match=said) as caught:
        read_captioned(DataChoice(str(path)))
    assert "\n" not in str(caught.value)


def test_a_folder_is_refused_before_a_model_is_loaded(tmp_path, monkeypatch):
    monkeypatch.setattr(ModelChoice, "load", lambda self: pytest.fail("loaded"))
    with pytest.raises(OptionError, match="JSON file"):
        evaluate(Plan(find_listed("captions"), OPTIONS, DataChoice(str(tmp_path))), ModelChoice())


def test_a_tiny_model_writes_through_the_runner_and_goes_on(coco, tap, tmp_path):
    options = CaptionOptions(tokenizer=str(write_tokenizer(tmp_path)), max_tokens=6)
    plan = Plan(find_listed("captions"), options, coco, 1, tmp_path / "out")
    result = evaluate(plan, ModelChoice())
    assert [row.name for row in result.rows] == ["1.jpg", "2.jpg"]
    first, second = (row.values for row in result.rows)
    assert first["references"] == [["a red car"], ["car on the street"]] and first["areas"] == [200, 200]
    assert second["ids"] == [11, 13] and all(first["captions"] + second["captions"])

    image = read_captioned(coco)[1].read_image()
    prompts = [Prompt(box=[0, 0, 60, 40]), Prompt(box=[30, 20, 42, 32])]
    records = tap.describe(tap.encode(image), prompts, describe_options(options))
    assert second["captions"] == [record.caption for record in records]

    captions = [tokens(each) for each in first["captions"] + second["captions"]]
    references = [[tokens(each) for each in own] for own in first["references"] + second["references"]]
    line = dict(result.table.lines)["grit"]
    assert line["CIDEr"] == pytest.approx(np.mean(cider_d(captions, references)))
    assert line["BLEU-4"] == pytest.approx(bleu_4(captions, references))
    assert (line["images"], line["regions"]) == (2, 4)
    assert line["words"] == pytest.approx(np.mean([len(caption) for caption in captions]))

    (path,) = (tmp_path / "out").glob("*.jsonl")
    whole = path.read_bytes()
    path.write_bytes(whole[: whole.rindex(b"\n", 0, -1) + 9])  # killed while the second row was written
    again = evaluate(plan, ModelChoice())
    assert [row.values for row in again.rows] == [row.values for row in result.rows]
    assert again.table == result.table


def test_captions_by_hand():
    values = {
        "ids": [1, 2],
        "areas": [100.0, 2000.0],
        "captions": ["Red car.", "c c"],
        "references": [["red car"], ["C d!"]],
    }
    table = CAPTIONS.summarise([Row("one", "a", values)], OPTIONS, DataChoice("x.json"))
    lines = dict(table.lines)
    small, medium = 5.0, 10 / (2 * 2**0.5) / 4  # see test_cider.py
    assert lines["one"]["CIDEr"] == pytest.approx((small + medium) / 2) == lines["mean"]["CIDEr"]
    assert lines["small"]["CIDEr"] == pytest.approx(small) and lines["medium"]["CIDEr"] == pytest.approx(medium)
    assert lines["large"] == {"regions": 0}
    assert lines["one"]["different"] == 1.0 and lines["one"]["words"] == 2.0
    figure = table.figures[0]
    assert dict(zip(figure.x, figure.y, strict=True)) == {0.0: 0.0, 1.0: 0.0, 2.0: 1.0}
    assert CAPTIONS.summarise([], OPTIONS, DataChoice("x.json")).lines == ()


def test_frequencies_are_of_each_data_set_alone():
    """Two sets of one region each: alone, all words are in all regions, which counts nothing."""
    rows = [Row(name, "a", {"areas": [1.0], "captions": ["a b"], "references": [["a b"]]}) for name in ("one", "two")]
    lines = dict(CAPTIONS.summarise(rows, OPTIONS, DataChoice("x.json")).lines)
    assert lines["mean"]["CIDEr"] == 0.0 and lines["mean"]["regions"] == 2


def test_regions_are_chosen_by_the_seed_and_the_image(coco, tap, tmp_path):
    tokenizer = str(write_tokenizer(tmp_path))
    writer = CAPTIONS.prepare(tap, CaptionOptions(tokenizer=tokenizer, max_tokens=2))
    entry = read_captioned(coco)[1]
    ids = set()
    for seed in range(8):
        options = CaptionOptions(regions_per_image=1, seed=seed, tokenizer=tokenizer, max_tokens=2)
        values = CAPTIONS.measure(writer, entry, options)
        assert values == CAPTIONS.measure(writer, entry, options) and len(values["ids"]) == 1
        ids |= set(values["ids"])
    assert ids == {11, 13}


def test_a_model_without_words_is_refused_with_those_that_have_them(coco, monkeypatch):
    sam = tiny_model("sam")
    monkeypatch.setattr(ModelChoice, "load", lambda self: sam)
    with pytest.raises(OptionError, match=r"sam_vit_b .*tap_vit_b"):
        evaluate(Plan(find_listed("captions"), OPTIONS, coco), ModelChoice())


def test_without_sentencepiece_its_extra_is_named(coco, tap, monkeypatch):
    monkeypatch.setattr(tap_words.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"anysam\[text\]"):
        evaluate(Plan(find_listed("captions"), OPTIONS, coco), ModelChoice())


@pytest.mark.parametrize(
    ("given", "said"),
    [({"beams": 0}, "--beams"), ({"max_tokens": -1}, "--max-tokens"), ({"regions_per_image": -1}, "--regions")],
)
def test_options_that_cannot_be_are_refused(given, said):
    with pytest.raises(OptionError, match=said):
        CaptionOptions(**given)


def test_a_tokenizer_that_is_not_there_is_said_before_work(coco):
    with pytest.raises(OptionError, match=r"nowhere\.model"):
        CAPTIONS.check(CaptionOptions(tokenizer="nowhere.model"), coco)


def test_the_command_prints_a_table_and_a_broken_image(genome, tap, tmp_path, capsys):
    tokenizer = write_tokenizer(tmp_path)
    arguments = ["--images", genome.images, "--tokenizer", str(tokenizer), "--max-tokens", "3", "--workers", "1"]
    status = main(["eval", "captions", "--data", genome.data, *arguments])
    text, words = capsys.readouterr()
    assert status == 1 and "9.jpg" in words
    assert "| region_descriptions |" in text and "CIDEr" in text and "1 of 2 images, 1 broken" in text
