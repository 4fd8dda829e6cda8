"""Names, captions and their scores in files: what comes back, what is lost and said, which class has which number."""

import contextlib
import dataclasses
import io
import json
import random

import numpy as np
import pytest
from pycocotools.coco import COCO

from anysam.cli import main
from anysam.errors import OptionError, OutputError
from anysam.outputs import ImageResult, Loss, read_masks, write_coco_json, write_outputs, write_result
from anysam.outputs.formats import TABLE
from anysam.outputs.words import class_names
from anysam.results import MaskRecord

# pycocotools itself is not yet silent under NumPy 2
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

SIZE = (40, 60)
WORDS = ("label", "label_score", "label_scores", "caption", "caption_score", "similarity")
ALL = [row.name for row in TABLE if row.captions]
TEXTS = (
    *("cat", " a dog ", "object", "\tTab", "two  spaces", "\"quoted\", 'so' \\ & <b>", "line\nbreak\r\n", "\u2028"),
    *(
        "Größe",
        "кошка",
        "猫が二匹",
        "قطة",
        "บ้าน",
        "👩‍👩‍👧‍👦 family",
        "\ufeffmark",
        "e\u0301",
        "0",
        "null",
        "NaN",
        "x" * 3000,
    ),
)


def mask(i):
    found = np.zeros(SIZE, dtype=bool)
    found[2:9, i : i + 3] = True
    if i % 3 == 0:
        found[4:6, i + 1] = False  # a hole
    if i % 3 == 1:
        found[20:25, i : i + 2] = True  # a part
    return found


def described(i, **words):
    return dataclasses.replace(MaskRecord.from_mask(mask(i), 0.75), **words)


def random_record(i, source):
    """Any of its words may be missing; scores have all their digits."""

    def maybe(value):
        return value if source.random() < 0.7 else None

    names = source.sample(TEXTS, source.randrange(4))
    return described(
        i,
        label=maybe(source.choice(TEXTS)),
        label_score=maybe(source.random()),
        label_scores=maybe({name: source.random() * 10.0 ** -source.randrange(12) for name in names}),
        caption=maybe(source.choice(TEXTS)),
        caption_score=maybe(source.random()),
        similarity=maybe(source.uniform(-50, 50)),
        stability_score=maybe(source.random()),
        detection_score=maybe(source.random()),
    )


def words_of(record):
    return {name: getattr(record, name) for name in (*WORDS, "stability_score", "detection_score")}


def written(kind, folder, *records, names=None):
    losses: list[Loss] = []
    paths = write_result(kind, folder, "photo", ImageResult("photo.jpg", SIZE, records), losses, names=names)
    return paths, losses


def read(path, kind=None, names=None):
    (found,) = read_masks(path, kind, lambda stem: SIZE, names)
    return found.records


@pytest.mark.parametrize("kind", ALL)
def test_random_words_come_back_exactly(kind, tmp_path):
    source = random.Random(kind)
    records = [random_record(i % 50, source) for i in range(200)]
    (path,), losses = written(kind, tmp_path, *records)
    assert losses == []
    for ours, found in zip(records, read(path), strict=True):
        assert words_of(found) == words_of(ours)
        assert list(found.label_scores or ()) == list(ours.label_scores or ())  # best first
        assert found.segmentation == ours.segmentation


@pytest.mark.parametrize("kind", ALL)
def test_nothing_said_reads_as_nothing_and_emptiness_as_such(kind, tmp_path):
    records = [described(1), described(4, label="", label_scores={}, caption="", label_score=0.0)]
    (path,), losses = written(kind, tmp_path, *records)
    nothing, empty = read(path)
    assert set(words_of(nothing).values()) == {None}
    assert (empty.label, empty.label_scores, empty.label_score) == ("", {}, 0.0)
    if kind == "labelme":
        assert losses == [Loss("labelme", "captions without a letter", 1)] and empty.caption is None
    else:
        assert losses == [] and empty.caption == ""


@pytest.mark.parametrize("kind", [row.name for row in TABLE if row.reads and not row.captions])
def test_what_is_lost_of_words_is_said_once_and_counted(kind, tmp_path):
    records = [
        described(1, label="cat", label_score=0.5, caption="a cat"),
        described(10, label="dog"),
        described(20, caption="grass", caption_score=0.5),
        described(30, similarity=0.25),
    ]
    _, losses = written(kind, tmp_path, *records)
    expected = [Loss(kind, "captions", 2)]
    if kind == "yolo":
        expected.append(Loss(kind, "scores of labels and captions", 3))
        assert str(losses[0]) == "yolo cannot hold captions: 2 lost"
    else:
        expected.insert(0, Loss(kind, "labels of masks", 2))
    assert losses == expected
    assert {record.caption for record in read(tmp_path, kind)} == {None}


def test_labels_of_all_kinds_in_yolo(tmp_path):
    labels = [text for text in TEXTS if len(text) < 100]
    records = [described(i, label=label) for i, label in enumerate(labels)]
    _, losses = written("yolo", tmp_path, *records)
    found = [record.label for record in read(tmp_path, "yolo")]
    changed = {"object": None, "line\nbreak\r\n": "line break ", "\u2028": " ", "\ufeffmark": " mark"}
    assert found == [changed.get(label, label) for label in labels]
    assert losses == [
        Loss("yolo", "line breaks and the like in names", 3),
        Loss("yolo", "the label 'object', which means none", 1),
    ]


def test_a_coco_file_with_words_is_read_by_pycocotools(tmp_path):
    records = [described(1, label="cat 猫", caption="a\ncat", label_scores={"cat 猫": 0.75}), described(4)]
    path = tmp_path / "a.json"
    write_coco_json(path, [ImageResult("a.jpg", SIZE, tuple(records))], names=["zebra", "cat 猫", "ant"])
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(path))
    assert [(row["id"], row["name"]) for row in coco.loadCats(coco.getCatIds())] == [
        *((1, "zebra"), (2, "cat 猫"), (3, "ant"), (4, "object"))
    ]
    named, other = coco.loadAnns(coco.getAnnIds())
    assert (named["category_id"], other["category_id"]) == (2, 4)
    assert coco.getAnnIds(catIds=coco.getCatIds(catNms=["cat 猫"])) == [named["id"]]
    assert np.array_equal(coco.annToMask(named).astype(bool), mask(1))
    assert (named["caption"], named["label_scores"]) == ("a\ncat", {"cat 猫": 0.75})
    assert not set(WORDS) & set(other)  # what is not known is left out


def test_words_in_labelme_are_where_it_has_them(tmp_path):
    (path,), _ = written("labelme", tmp_path, described(1, label="cat", caption="a cat", similarity=0.5), described(3))
    document = json.loads(path.read_text(encoding="utf-8"))
    assert [(shape["label"], shape["description"]) for shape in document["shapes"]] == [
        *(("cat", "a cat"), ("cat", "a cat"), ("object", ""))  # the first has two parts
    ]
    for shape in document["shapes"]:
        shape["description"] = "corrected" if shape["description"] else None
    path.write_text(json.dumps(document))
    assert [(record.caption, record.similarity) for record in read(path)] == [("corrected", 0.5), (None, None)]


def test_words_in_npz_are_plain_arrays(tmp_path):
    records = [described(1, label="cat", caption="a cat", label_scores={"cat": 0.5, "dog": 0.25}), described(4)]
    (path,), _ = written("npz", tmp_path, *records)
    with np.load(path) as arrays:
        assert arrays["captions"].tolist() == ["a cat", ""] and arrays["has_caption"].tolist() == [True, False]
        assert arrays["label_score_counts"].tolist() == [2, -1]
        assert dict(zip(arrays["label_score_names"], arrays["label_score_values"], strict=True)) == {
            "cat": 0.5,
            "dog": 0.25,
        }


def test_an_npz_of_an_earlier_version_has_no_words(tmp_path):
    (path,), _ = written("npz", tmp_path, described(1, label="cat"), described(4, caption="a dog"))
    with np.load(path) as arrays:
        earlier = "file_name size runs run_counts boxes areas predicted_iou stability_score labels".split()
        np.savez(tmp_path / "earlier.npz", **{name: arrays[name] for name in earlier})
    assert [(record.label, record.caption) for record in read(tmp_path / "earlier.npz")] == [
        ("cat", None),
        (None, None),
    ]


def test_what_numpy_cuts_off_texts_is_said(tmp_path):
    (path,), losses = written("npz", tmp_path, described(1, label="a\0", caption="b\0c"))
    assert losses == [Loss("npz", "the character NUL at the end of texts", 1)]
    assert (read(path)[0].label, read(path)[0].caption) == ("a", "b\0c")


@pytest.mark.parametrize(
    ("name", "array"),
    [
        ("label_score_counts", np.array([3])),
        ("label_score_counts", np.array([-2])),
        ("label_score_counts", np.array([1, 1])),
        ("label_score_counts", np.array([2**62])),
        ("label_score_counts", None),
        ("label_score_names", np.array(["a"])),
        ("label_score_names", np.array([["a", "b"]])),
        ("label_score_values", np.array([0.5, np.nan])),
        ("captions", np.array(["a", "b"])),
        ("captions", np.array([5])),
        ("has_caption", np.array([1.0])),
        ("caption_score", np.array([np.inf])),
        ("label_score", np.array(["high"])),
    ],
)
def test_words_in_an_npz_that_do_not_fit_are_refused(name, array, tmp_path):
    (path,), _ = written("npz", tmp_path, described(1, label="cat", label_scores={"cat": 0.5, "dog": 0.25}))
    with np.load(path) as found:
        arrays = dict(found) | {name: array}
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})
    with pytest.raises(OptionError, match=r"photo\.npz"):
        read(path)


MALFORMED = [
    ("label_scores", ["cat"]),
    ("label_scores", "cat"),
    ("label_scores", {"cat": "high"}),
    ("label_scores", {"cat": None}),
    ("label_scores", {"cat": True}),
    ("label_scores", {"cat": float("inf")}),
    ("label_score", "0.5"),
    ("label_score", [0.5]),
    ("label_score", float("inf")),
    ("caption", ["a", "cat"]),
    ("caption", 5),
    ("caption", "x" * 200_000),
    ("caption_score", True),
    ("similarity", {}),
    ("detection_score", "x"),
]
JSON = {  # where the members of the second mask are
    "json": (lambda document: document["masks"][1], "image 1: mask 2"),
    "coco": (lambda document: document["annotations"][1], "annotation 2"),
    "coco-polygons": (lambda document: document["annotations"][1], "annotation 2"),
    "geojson": (lambda document: document["features"][1]["properties"], "feature 2"),
    "labelme": (lambda document: document["shapes"][1], "shape 2"),
}


@pytest.mark.parametrize("kind", JSON)
@pytest.mark.parametrize(("name", "value"), MALFORMED, ids=str)
def test_malformed_words_are_refused_by_file_mask_and_member(kind, name, value, tmp_path):
    member = {"caption": "description"}.get(name, name) if kind == "labelme" else name
    (path,), _ = written(kind, tmp_path, described(0), described(3))
    document = json.loads(path.read_text())
    members, where = JSON[kind]
    members(document)[member] = value
    path.write_text(json.dumps(document).replace("Infinity", "1e999"))
    with pytest.raises(OptionError) as caught:
        read(path)
    message = str(caught.value)
    assert path.name in message and where in message and member in message
    assert "\n" not in message and len(message) < 400


@pytest.mark.parametrize("kind", JSON)
def test_members_of_other_programs_are_left_alone(kind, tmp_path):
    (path,), _ = written(kind, tmp_path, described(0, label="object", caption="a"), described(3))
    document = json.loads(path.read_text())
    JSON[kind][0](document).update({"anysam": ["not", "ours"], "occluded": {}, "attributes": None, "words": float})
    path.write_text(json.dumps(document, default=str))
    assert [(record.label, record.caption) for record in read(path)] == [("object", "a"), (None, None)]


@pytest.mark.parametrize("kind", JSON)
def test_a_score_that_is_no_number_is_an_error_and_no_file(kind, tmp_path):
    with pytest.raises(OutputError, match="no finite number"):
        written(kind, tmp_path, described(0, label_scores={"cat": float("nan")}))
    with pytest.raises(OutputError, match="no finite number"):
        written("npz", tmp_path, described(0, label_scores={"cat": float("nan")}))
    assert list(tmp_path.iterdir()) == []


def test_class_numbers_mean_the_same_in_all_images_of_a_run(tmp_path):
    names = ["horse", "cat", "zebra", "ant"]
    image = np.zeros((*SIZE, 3), dtype=np.uint8)
    for stem, labels in (("a", ["zebra", "cat"]), ("b", ["ant"]), ("c", [])):
        records = [described(i, label=label) for i, label in enumerate(labels)]
        losses = []
        write_outputs(
            f"{stem}.jpg", image, records, tmp_path, ["coco", "yolo", "coco-polygons"], None, losses, names=names
        )
        assert losses == []
    for stem, numbers in (("a", [2, 1]), ("b", [3]), ("c", [])):
        lines = (tmp_path / f"{stem}.txt").read_text().splitlines()
        assert [int(line.split()[0]) for line in lines] == numbers
        assert (tmp_path / f"{stem}.names.txt").read_text() == "horse\ncat\nzebra\nant\n"
        for ending in ("coco", "polygons"):
            document = json.loads((tmp_path / f"{stem}.{ending}.json").read_text())
            assert document["categories"] == [{"id": i, "name": name} for i, name in enumerate(names, start=1)]
            assert [row["category_id"] for row in document["annotations"]] == [number + 1 for number in numbers]


def test_without_names_an_image_numbers_its_own_in_a_fixed_order(tmp_path):
    for order in ((0, 1, 2), (2, 0, 1)):
        records = [described(i, label=("zebra", "ant", None)[i]) for i in order]
        (path, names), _ = written("yolo", tmp_path, *records)
        assert names.read_text() == "ant\nobject\nzebra\n"
        assert [int(line[0]) for line in path.read_text().splitlines()] == [(2, 0, 1)[i] for i in order]
        (path,), _ = written("coco", tmp_path, *records)
        assert [row["name"] for row in json.loads(path.read_text())["categories"]] == ["ant", "object", "zebra"]


def test_a_label_outside_of_the_names_is_refused_before_anything_is_written(tmp_path):
    image = np.zeros((*SIZE, 3), dtype=np.uint8)
    records = [described(1, label="cat"), described(4, label="unicorn")]
    for kind in ("coco", "coco-polygons", "yolo"):
        with pytest.raises(OptionError, match="masks of 'unicorn', and no such class among the 2 names given"):
            write_outputs("a.jpg", image, records, tmp_path / "out", ["png", kind], names=["cat", "dog"])
        with pytest.raises(OptionError, match="'unicorn'"):
            written(kind, tmp_path, *records, names=["cat", "dog"])
    assert list(tmp_path.iterdir()) == []
    assert write_outputs("a.jpg", image, records, tmp_path / "out", ["json"], names=["cat"])  # which has no classes


def test_masks_without_a_label_come_after_the_names_and_shift_none(tmp_path):
    nothing = MaskRecord.from_mask(np.zeros(SIZE, dtype=bool), 0.5)  # is not described
    records = [nothing, described(1, label="dog"), described(4)]
    assert class_names([ImageResult("a.jpg", SIZE, tuple(records))], ["dog", "cat"]) == ["dog", "cat", "object"]
    (path, names), _ = written("yolo", tmp_path, *records, names=["dog", "cat"])
    assert [line[0] for line in path.read_text().splitlines()] == ["0", "2"]
    (path, names), _ = written("yolo", tmp_path, *records[:2], names=["dog", "cat"])
    assert names.read_text() == "dog\ncat\n"  # what has no line needs no class
    (path,), _ = written("coco", tmp_path, *records, names=["object", "dog"])
    assert [row["category_id"] for row in json.loads(path.read_text())["annotations"]] == [1, 2, 1]


@pytest.mark.parametrize(
    ("names", "word"),
    [([], "must be a list"), ("cat", "must be a list"), (["a", ""], "empty"), (["a", "b", "a"], "twice")],
)
def test_names_that_cannot_number_classes_are_refused(names, word, tmp_path):
    with pytest.raises(OptionError, match=word):
        written("yolo", tmp_path, described(1, label="a"), names=names)
    assert list(tmp_path.iterdir()) == []


def test_words_go_through_the_command_and_losses_are_said(tmp_path, capsys):
    records = [described(1, label="cat", caption="a cat", label_scores={"cat": 0.5}), described(4, label="ant")]
    written("json", tmp_path, *records)
    source = str(tmp_path / "photo.json")
    for kind, target in (("coco", "b.coco.json"), ("geojson", "b.geojson"), ("npz", "b.npz"), ("labelme", "b.json")):
        assert main(["convert-masks", source, str(tmp_path / target), "--to", kind]) == 0
        assert [words_of(record) for record in read(tmp_path / target, kind)] == [words_of(each) for each in records]
    assert capsys.readouterr().err.count("warning") == 0
    assert main(["convert-masks", source, str(tmp_path / "b.txt"), "--json"]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["lost"] == [
        {"image": "photo.jpg", "what": "captions", "count": 1},
        {"image": "photo.jpg", "what": "scores of labels and captions", "count": 1},
    ]
    assert "warning: photo.jpg: yolo cannot hold captions: 1 lost" in printed.err


def test_classes_of_the_command_are_those_of_coco_too(tmp_path, capsys):
    written("json", tmp_path, described(1, label="cat"))
    (tmp_path / "classes.txt").write_text("zebra\ncat\n")
    command = ["convert-masks", str(tmp_path / "photo.json"), str(tmp_path / "b.coco.json"), "--classes"]
    assert main([*command, str(tmp_path / "classes.txt")]) == 0
    document = json.loads((tmp_path / "b.coco.json").read_text())
    assert [row["name"] for row in document["categories"]] == ["zebra", "cat"]
    assert document["annotations"][0]["category_id"] == 2
    written("json", tmp_path, described(1, label="cat"), described(4))
    assert main([*command, str(tmp_path / "classes.txt")]) == 2
    assert "masks without a label" in capsys.readouterr().err
