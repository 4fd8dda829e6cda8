"""`anysam convert-masks`: between formats, between one file and many, and what it says when something is missing."""

import json

import numpy as np
import pytest
from PIL import Image

from anysam.cli import main
from anysam.commands import options
from anysam.images import image_size
from anysam.outputs import FORMATS, READABLE, ImageResult, read_masks, write_coco_json
from anysam.results import MaskRecord

SIZE = (40, 60)


def mask(x0, y0, x1, y1):
    found = np.zeros(SIZE, dtype=bool)
    found[y0:y1, x0:x1] = True
    return found


def results():
    cat = MaskRecord.from_mask(mask(5, 5, 20, 20), 0.9, label="cat")
    dog = MaskRecord.from_mask(mask(30, 10, 50, 35), 0.8, label="dog")
    return [ImageResult("a.jpg", SIZE, (cat, dog)), ImageResult("b.jpg", SIZE, (dog,)), ImageResult("c.jpg", SIZE, ())]


@pytest.fixture
def coco(tmp_path):
    path = tmp_path / "all.coco.json"
    write_coco_json(path, results())
    return path


def same(found, expected):
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        assert len(ours.records) == len(theirs.records)
        for a, b in zip(ours.records, theirs.records, strict=True):
            assert np.array_equal(a.to_mask(), b.to_mask())


@pytest.mark.parametrize("kind", ["labelme", "labels", "geojson", "npz", "sa1b", "json", "coco", "coco-polygons"])
def test_one_file_becomes_many_and_one_again(kind, coco, tmp_path, capsys):
    assert main(["convert-masks", str(coco), str(tmp_path / "many"), "--to", kind]) == 0
    printed = capsys.readouterr()
    assert len(printed.out.splitlines()) == 3 and "3 masks of 3 images" in printed.err
    again = tmp_path / "again.coco.json"
    assert main(["convert-masks", str(tmp_path / "many"), str(again), "--from", kind]) == 0
    same(read_masks(again), results())


def test_yolo_with_the_sizes_of_the_photographs(coco, tmp_path, capsys):
    (tmp_path / "photos").mkdir()
    for name in "abc":
        Image.new("RGB", (60, 40)).save(tmp_path / "photos" / f"{name}.png")
    assert main(["convert-masks", str(coco), str(tmp_path / "labels"), "--to", "yolo"]) == 0
    assert (tmp_path / "labels" / "b.txt").read_text().startswith("1 ")  # cat, dog: of all images, not of each
    assert (tmp_path / "labels" / "b.names.txt").read_text() == "cat\ndog\n"
    command = ["convert-masks", str(tmp_path / "labels"), str(tmp_path / "again.coco.json"), "--from", "yolo"]
    assert main(command) == 2
    assert "where the images are" in capsys.readouterr().err
    assert main([*command, "--images", str(tmp_path / "photos")]) == 0
    again = read_masks(tmp_path / "again.coco.json")
    same(again, results())
    assert [record.label for record in again[0].records] == ["cat", "dog"]


def test_classes_decide_the_numbers(coco, tmp_path, capsys):
    (tmp_path / "classes.txt").write_text("dog\nhorse\ncat\n")
    command = ["convert-masks", str(coco), str(tmp_path / "labels"), "--to", "yolo", "--classes"]
    assert main([*command, str(tmp_path / "classes.txt")]) == 0
    assert [line[0] for line in (tmp_path / "labels" / "a.txt").read_text().splitlines()] == ["2", "0"]
    (tmp_path / "classes.txt").write_text("dog\n")
    assert main([*command, str(tmp_path / "classes.txt")]) == 2
    assert "masks of 'cat'" in capsys.readouterr().err


def test_what_is_lost_is_said_and_counted(tmp_path, capsys):
    over = MaskRecord.from_mask(mask(0, 0, 30, 30), 0.7)
    write_coco_json(tmp_path / "a.coco.json", [ImageResult("a.jpg", SIZE, (*results()[0].records, over))])
    command = ["convert-masks", str(tmp_path / "a.coco.json"), str(tmp_path / "a.png"), "--json"]
    assert main(command) == 0
    printed = capsys.readouterr()
    hidden = [
        {"image": "a.jpg", "what": "labels of masks", "count": 2},
        {"image": "a.jpg", "what": "pixels of masks under smaller masks", "count": 225},
    ]
    document = json.loads(printed.out)
    assert document["lost"] == hidden and document["masks"] == 3 and document["format"] == "labels"
    assert "225 lost" in printed.err


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["nothing.json", "b.npz"], "nothing.json"),
        (["{coco}", "b"], "--to"),
        (["{coco}", "b.npz"], "give a folder"),
        (["{coco}", "b", "--to", "overlay"], "overlay"),
        (["{coco}", "b", "--to", "yolo", "--classes", "none.txt"], "none.txt"),
        (["{coco}", "b", "--to", "yolo", "--images", "nowhere"], "nowhere"),
    ],
)
def test_what_is_missing_is_named(arguments, word, coco, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["convert-masks", *(each.format(coco=coco) for each in arguments)]) == 2
    assert word in capsys.readouterr().err
    assert not (tmp_path / "b").exists()


def test_the_size_of_an_image_is_that_of_the_upright_one(tmp_path):
    image = Image.new("RGB", (60, 40))
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path / "turned.jpg", exif=exif)
    image.save(tmp_path / "plain.jpg")
    assert image_size(tmp_path / "turned.jpg") == (60, 40)
    assert image_size(tmp_path / "plain.jpg") == (40, 60)


def test_a_damaged_file_does_not_stop_the_others(tmp_path, capsys):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "bad.json").write_text("{")
    write_coco_json(tmp_path / "in" / "good.coco.json", results()[:1])
    command = ["convert-masks", str(tmp_path / "in"), str(tmp_path / "out"), "--to", "npz", "--json"]
    assert main(command) == 1
    printed = capsys.readouterr()
    document = json.loads(printed.out)
    assert document["images"] == 1 and [row["file"] for row in document["failed"]] == [
        str(tmp_path / "in" / "bad.json")
    ]
    assert "1 files could not be read" in printed.err and "bad.json" in printed.err
    same(read_masks(tmp_path / "out"), results()[:1])
    (tmp_path / "in" / "good.coco.json").unlink()
    assert main(command) == 2


def test_images_of_dotted_names_keep_them_and_get_their_suffix_from_the_photographs(tmp_path):
    (tmp_path / "photos").mkdir()
    for name in ("cat.1", "cat.2"):
        Image.new("RGB", (60, 40)).save(tmp_path / "photos" / f"{name}.png")
        Image.fromarray(mask(5, 5, 20, 20).astype(np.uint8)).save(tmp_path / f"{name}_labels.png")
    labels, coco = str(tmp_path), str(tmp_path / "all.coco.json")
    assert main(["convert-masks", labels, coco, "--from", "labels", "--images", str(tmp_path / "photos")]) == 0
    assert [result.file_name for result in read_masks(coco)] == ["cat.1.png", "cat.2.png"]
    assert main(["convert-masks", labels, str(tmp_path / "many"), "--from", "labels", "--to", "sa1b"]) == 0
    assert sorted(file.name for file in (tmp_path / "many").iterdir()) == ["cat.1.sa1b.json", "cat.2.sa1b.json"]


def test_the_help_names_the_formats_there_are():
    assert options.FORMATS == FORMATS and set(options.READABLE) == set(READABLE)
