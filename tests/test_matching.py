"""The masks of one image out of a file or a folder of masks: by name, by size, and what is said when there are none."""

import json

import numpy as np
import pytest

from anysam.errors import OptionError
from anysam.outputs import ImageResult, choose_records, read_masks, records_for_image, write_coco_json, write_result
from anysam.outputs.formats import TABLE
from anysam.results import MaskRecord

SIZE = (20, 30)


def record(x, label=None, size=SIZE):
    mask = np.zeros(size, dtype=bool)
    mask[2:9, x : x + 4] = True
    return MaskRecord.from_mask(mask, 0.5, label=label)


def image(name, x, size=SIZE):
    return ImageResult(name, size, (record(x, size=size), record(x + 6, size=size)))


def write(folder, kind, *images):
    folder.mkdir(exist_ok=True)
    for each in images:
        write_result(kind, folder, each.file_name.rsplit(".", 1)[0], each, [])


def boxes(records):
    return [each.box[0] for each in records]


@pytest.fixture
def said():
    return []


KINDS = [row.name for row in TABLE if row.reads]


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_in_any_format_has_the_masks_of_each_of_its_images(kind, tmp_path, said):
    write(tmp_path / "masks", kind, image("a.jpg", 1), image("ab.jpg", 3), image("b.c.jpg", 5))
    for name, x in (("a.jpg", 1), ("ab.jpg", 3), ("b.c.jpg", 5)):
        found = records_for_image(tmp_path / "masks", f"photos/{name}", SIZE, kind, warn=said.append)
        assert boxes(found) == [x, x + 6]
    assert said == []
    with pytest.raises(OptionError, match=r"no masks of c\.jpg; it has those of a(\.jpg)?, ab(\.jpg)?, b\.c(\.jpg)?\."):
        records_for_image(tmp_path / "masks", "c.jpg", SIZE, kind)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "png"])
def test_the_only_image_of_a_file_is_taken_whatever_it_is_called_and_this_is_said(kind, tmp_path, said):
    write(tmp_path, kind, image("a.jpg", 1))
    (file, *_) = (file for file in sorted(tmp_path.iterdir()) if ".names" not in file.name)
    found = records_for_image(file, "else.png", SIZE, warn=said.append)
    assert boxes(found) == [1, 7]
    assert len(said) == 1 and "are of a" in said[0] and "else.png" in said[0]


def test_that_the_name_differs_is_a_warning_by_default(tmp_path):
    write(tmp_path, "json", image("a.jpg", 1))
    with pytest.warns(UserWarning, match=r"are of a\.jpg; they are taken for those of b\.jpg"):
        records_for_image(tmp_path / "a.json", "b.jpg", SIZE)


def test_in_a_folder_the_name_decides_even_if_there_is_one_image_only(tmp_path):
    write(tmp_path, "json", image("a.jpg", 1))
    with pytest.raises(OptionError, match=r"no masks of b\.jpg; it has those of a\.jpg"):
        records_for_image(tmp_path, "b.jpg", SIZE)


def test_one_file_of_many_images(tmp_path, said):
    images = [image(f"train/{i}.jpg", i) for i in range(1, 9)]
    write_coco_json(tmp_path / "all.json", images)
    assert boxes(records_for_image(tmp_path / "all.json", "photos/3.jpg", SIZE, warn=said.append)) == [3, 9]
    assert said == []
    with pytest.raises(OptionError, match=r"it has those of 1\.jpg, 2\.jpg, 3\.jpg, 4\.jpg, 5\.jpg and 3 more\."):
        records_for_image(tmp_path / "all.json", "9.jpg", SIZE)
    results = read_masks(tmp_path / "all.json")
    assert boxes(choose_records(results, tmp_path / "all.json", "4.jpg", SIZE)) == [4, 10]


def test_a_name_that_differs_by_the_suffix_is_accepted_and_said(tmp_path, said):
    write_coco_json(tmp_path / "all.json", [image("a.png", 1), image("b.png", 2)])
    assert boxes(records_for_image(tmp_path / "all.json", "b.jpg", SIZE, warn=said.append)) == [2, 8]
    assert len(said) == 1 and "of b.png" in said[0]


def test_the_exact_name_goes_before_that_of_another_suffix(tmp_path, said):
    write_coco_json(tmp_path / "all.json", [image("a.png", 1), image("a.jpg", 2)])
    assert boxes(records_for_image(tmp_path / "all.json", "a.jpg", SIZE, warn=said.append)) == [2, 8]
    assert said == []


def test_two_images_of_one_name_are_refused(tmp_path):
    write_coco_json(tmp_path / "all.json", [image("x/a.jpg", 1), image("y/a.jpg", 2)])
    with pytest.raises(OptionError, match=r"has 2 images called a\.jpg"):
        records_for_image(tmp_path / "all.json", "a.jpg", SIZE)


def test_masks_of_another_size_are_refused_with_both_sizes(tmp_path):
    write(tmp_path, "json", image("a.jpg", 1))
    with pytest.raises(OptionError, match=r"a\.jpg are for 30x20 pixels, but a\.jpg has 60x40; give"):
        records_for_image(tmp_path, "a.jpg", (40, 60))
    with pytest.raises(OptionError, match=r"has 20x30; they may be of the image before it was turned upright"):
        records_for_image(tmp_path / "a.json", "a.jpg", SIZE[::-1])
    with pytest.raises(OptionError, match=r"a\.jpg are for 30x20 pixels, but b\.jpg has 60x40"):
        records_for_image(tmp_path / "a.json", "b.jpg", (40, 60))


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "png"])
def test_no_masks_at_all_are_an_answer(kind, tmp_path):
    write(tmp_path, kind, ImageResult("a.jpg", SIZE, ()))
    assert records_for_image(tmp_path, "a.jpg", SIZE, kind) == []


def test_a_document_that_names_no_image_is_refused(tmp_path):
    (tmp_path / "all.json").write_text(json.dumps({"images": [], "annotations": []}))
    with pytest.raises(OptionError, match="it names no image at all"):
        records_for_image(tmp_path / "all.json", "a.jpg", SIZE)


def test_a_damaged_file_of_another_image_does_no_harm_and_that_of_the_image_is_named(tmp_path):
    write(tmp_path, "json", image("a.jpg", 1), image("b.jpg", 2))
    (tmp_path / "b.json").write_text("{")
    assert boxes(records_for_image(tmp_path, "a.jpg", SIZE)) == [1, 7]
    with pytest.raises(OptionError, match=r"b\.json cannot be read as JSON"):
        records_for_image(tmp_path, "b.jpg", SIZE)
    (tmp_path / "a.json").unlink()
    write(tmp_path, "json", image("dog.jpg", 1))
    with pytest.raises(OptionError, match=r"b\.json cannot be read"):  # the dog's masks are not taken instead
        records_for_image(tmp_path, "cat.jpg", SIZE)


@pytest.mark.parametrize("kind", [None, "json"])
def test_other_images_are_not_read_when_a_file_is_called_like_the_image(kind, tmp_path, monkeypatch):
    from anysam.outputs import readers

    write(tmp_path, "json", *(image(f"{name}.jpg", 1) for name in "abcdefgh"))
    seen = set()
    read_json = readers.read_json
    monkeypatch.setattr(readers, "read_json", lambda path: seen.add(path.name) or read_json(path))
    records_for_image(tmp_path, "c.jpg", SIZE, kind)
    assert seen == {"c.json"}


def test_results_of_two_images_of_one_stem_are_told_apart_by_what_is_in_them(tmp_path):
    """As `output_stems` calls them."""
    write_result("json", tmp_path, "cat", image("cat.jpg", 1), [])
    write_result("json", tmp_path, "cat_2", image("cat.png", 2), [])
    assert boxes(records_for_image(tmp_path, "cat.jpg", SIZE)) == [1, 7]
    assert boxes(records_for_image(tmp_path, "cat.png", SIZE)) == [2, 8]


def test_names_of_classes_reach_yolo(tmp_path):
    (path, names) = write_result("yolo", tmp_path, "a", ImageResult("a.jpg", SIZE, (record(1, "x"),)), [])
    names.unlink()
    assert records_for_image(path, "a.jpg", SIZE)[0].label == "class_0"
    assert records_for_image(path, "a.jpg", SIZE, names=["dog"])[0].label == "dog"


def test_what_cannot_be_read_at_all_is_said_as_by_the_readers(tmp_path):
    with pytest.raises(OptionError, match=r"no file or folder .*none\.json"):
        records_for_image(tmp_path / "none.json", "a.jpg", SIZE)
    with pytest.raises(OptionError, match="'overlay' cannot be read"):
        records_for_image(tmp_path, "a.jpg", SIZE, "overlay")
