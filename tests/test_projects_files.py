"""Projects as files of other programs: what is exported is what the API says, and comes back by an import."""

import io
import json
import stat
import tempfile
import zipfile

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from anysam.masks import decode_rle, encode_rle
from anysam.serve.projects.bodies import ProjectLimits
from anysam.serve.projects.naming import ImageNames, name_images
from projects_app import Server, body, box_mask, masks_of, png

SIZE = (40, 50)
KINDS = ("coco", "coco-polygons", "yolo", "labelme", "png", "labels", "geojson", "json")


@pytest.fixture
def server(tmp_path):
    server = Server(tmp_path)
    yield server
    server.projects.close()


def blob(seed):
    """A mask of a disc and a part of its own; every third with a hole."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    cy, cx = rng.uniform(10, 30), rng.uniform(10, 25)
    mask = np.hypot(y - cy, x - cx) < rng.uniform(4, 8)
    mask |= box_mask(SIZE, 42, 2 * seed % 30, 47, 2 * seed % 30 + 3)
    if seed % 3 == 0:
        mask &= np.hypot(y - cy, x - cx) > 2
    return mask


def filled(server):
    """A project of two images with masks in two categories, with a free label, and with none."""
    project = server.project("My cats")
    for name in ("zebra", "cat"):
        server.ask("POST", f"/{project}/categories", 201, json={"name": name, "colour": "#123456"})
    images = [server.image(project, png(SIZE, 1), "a.jpg"), server.image(project, png(SIZE, 2), "b photo.v2.png")]
    server.image(project, png(SIZE, 3), "empty.png")
    values = [
        {"category_id": 2, "predicted_iou": 0.5},
        {"category_id": 1, "prompt": {"box": [1, 2, 3, 4]}},
        {"label": "a tree", "predicted_iou": 0.25},
        {},
    ]
    for seed, each in enumerate(values):
        server.put(project, images[seed % 2], blob(seed), **each)
    return project, images


def bare_copy(server, name="copy"):
    """A project with the same images and no annotations."""
    project = server.project(name)
    return project, [
        server.image(project, png(SIZE, 1), "a.jpg"),
        server.image(project, png(SIZE, 2), "b photo.v2.png"),
    ]


def export(server, project, kind):
    return server.client.get(f"/v1/projects/{project}/export", params={"format": kind})


def load(server, project, data, name="masks.zip", expected=200, kind="auto"):
    files = {"file": (name, data, "application/octet-stream")}
    return server.ask("POST", f"/{project}/import", expected, params={"format": kind}, files=files)


def zipped(entries):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    return file.getvalue()


def names_of(server, project, annotations):
    names = {each["id"]: each["name"] for each in server.ask("GET", f"/{project}/categories")["categories"]}
    return [names.get(each["category_id"], each["label"]) for each in annotations]


@pytest.mark.parametrize("polygons", [False, True])
def test_coco_is_what_the_api_says_as_pycocotools_reads_it(server, tmp_path, polygons):
    project, images = filled(server)
    response = export(server, project, "coco-polygons" if polygons else "coco")
    assert response.headers["content-type"] == "application/json"
    assert response.headers["content-disposition"].startswith("attachment;")
    assert "My%20cats." in response.headers["content-disposition"]
    path = tmp_path / "coco.json"
    path.write_bytes(response.content)
    coco = COCO(str(path))
    listed = server.ask("GET", f"/{project}/images")["images"]
    assert [row["file_name"] for row in coco.imgs.values()] == [image["name"] for image in listed]
    for number, image in enumerate(listed, start=1):
        theirs = coco.loadAnns(coco.getAnnIds(imgIds=[number]))
        ours = server.annotations(project, image["id"])
        assert len(theirs) == len(ours)
        for a, b in zip(theirs, ours, strict=True):
            assert np.array_equal(coco.annToMask(a).astype(bool), decode_rle(b["segmentation"]))
            x0, y0, x1, y1 = b["box"]
            assert a["bbox"] == [x0, y0, x1 - x0, y1 - y0] and a["area"] == b["area"]
            assert a.get("score") == b["predicted_iou"]
            if b["category_id"] is not None:
                assert a["category_id"] == b["category_id"]
            named = b["label"] or "object" if b["category_id"] is None else names_of(server, project, [b])[0]
            assert coco.cats[a["category_id"]]["name"] == named


def test_categories_keep_their_numbers_in_coco_after_one_is_deleted(server):
    project, _ = filled(server)
    server.ask("DELETE", f"/{project}/categories/1", 204)
    categories = export(server, project, "coco").json()["categories"]
    assert categories == [{"id": 2, "name": "cat"}, {"id": 3, "name": "a tree"}, {"id": 4, "name": "object"}]


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_exported_comes_back(server, kind):
    project, images = filled(server)
    response = export(server, project, kind)
    assert response.status_code == 200
    copy, copies = bare_copy(server)
    name = "export.json" if kind.startswith("coco") else "export.zip"
    answer = load(server, copy, response.content, name)
    for ours, theirs in zip(images, copies, strict=True):
        before, after = server.annotations(project, ours), server.annotations(copy, theirs)
        assert len(before) == len(after)
        expected = masks_of(before)
        if kind == "labels":  # where masks overlap, the smaller is on top
            for i in range(len(expected)):
                smaller = [mask for mask in masks_of(before) if mask.sum() < expected[i].sum()]
                expected[i] = expected[i] & ~np.any([np.zeros(SIZE, bool), *smaller], axis=0)
        assert all(map(np.array_equal, expected, masks_of(after)))
        assert all(each["source"] == "import" for each in after)
        if kind not in ("png", "labels"):
            assert names_of(server, project, before) == names_of(server, copy, after)
        if kind == "json":
            assert [each["prompt"] for each in before] == [each["prompt"] for each in after]
        if kind in ("json", "labelme", "geojson", "coco"):
            assert [each["predicted_iou"] or 1 for each in before] == [each["predicted_iou"] for each in after]
    assert answer["imported"] == 4
    assert all("empty" in each["what"] for each in answer["skipped"])


def test_imported_twice_is_there_once(server):
    project, _ = filled(server)
    for kind in ("json", "png", "coco"):
        answer = load(server, project, export(server, project, kind).content, "e.json" if kind == "coco" else "e.zip")
        assert answer["imported"] == 0 and len(answer["skipped"]) == 4
    assert server.ask("GET", f"/{project}")["annotations"] == 4


def test_cutouts_are_the_photograph_inside_the_mask_and_nothing_else(server):
    project, images = filled(server)
    archive = zipfile.ZipFile(io.BytesIO(export(server, project, "cutout").content))
    assert sorted(archive.namelist()) == [f"{stem}_cutout_{n}.png" for stem in ("a", "b photo.v2") for n in (0, 1)]
    pixels = np.asarray(Image.open(io.BytesIO(png(SIZE, 1))))
    for number, annotation in enumerate(server.annotations(project, images[0])):
        cutout = np.asarray(Image.open(archive.open(f"a_cutout_{number}.png")))
        x0, y0, x1, y1 = (int(side) for side in annotation["box"])
        mask = decode_rle(annotation["segmentation"])[y0:y1, x0:x1]
        assert np.array_equal(cutout[..., 3], mask * 255)
        assert np.array_equal(cutout[..., :3], pixels[y0:y1, x0:x1] * mask[..., None])


def test_yolo_has_one_list_of_classes_for_all_images(server):
    project, _ = filled(server)
    archive = zipfile.ZipFile(io.BytesIO(export(server, project, "yolo").content))
    assert archive.read("classes.txt").decode().splitlines() == ["zebra", "cat", "a tree", "object"]
    numbers = [int(line.split()[0]) for line in archive.read("labels/a.txt").decode().splitlines()]
    assert numbers == [1, 2]
    assert archive.read("labels/empty.txt") == b""


def test_what_a_format_cannot_hold_is_said(server):
    project, images = filled(server)
    server.put(project, images[0], np.zeros(SIZE, bool), label="é")
    assert "x-export-losses" not in export(server, project, "json").headers
    losses = export(server, project, "png").headers["x-export-losses"]
    assert "png cannot hold labels of masks: 4 lost" in losses
    assert "masks without a pixel: 1" in export(server, project, "yolo").headers["x-export-losses"]


def test_an_empty_project_is_exported_in_every_format(server):
    project = server.project()
    for kind in (*KINDS, "cutout"):
        assert export(server, project, kind).status_code == 200
    assert export(server, project, "coco").json()["images"] == []
    assert export(server, project, "exe").status_code == 422
    assert export(server, "0" * 32, "coco").status_code == 404


def test_files_of_images_of_one_name_stay_apart(server):
    project, copy = server.project(), server.project()
    for seed in (1, 2):
        for each in (project, copy):
            image = server.image(each, png(SIZE, seed), "cat.jpg")
            if each == project:
                server.put(each, image, blob(seed))
    for kind in KINDS:
        target = server.project(kind)
        copies = [server.image(target, png(SIZE, seed), "cat.jpg") for seed in (1, 2)]
        name = "e.json" if kind.startswith("coco") else "e.zip"
        assert load(server, target, export(server, project, kind).content, name)["imported"] == 2, kind
        for seed, image in zip((1, 2), copies, strict=True):
            assert np.array_equal(masks_of(server.annotations(target, image))[0], blob(seed)), kind


def test_names_in_files_differ_and_suit_every_system():
    names = ["a.jpg", "A.png", "a:b?.jpg", "a_b_.png", ".hidden", "x" * 200 + ".png", "漢" * 80 + ".png", "...", "con"]
    named = name_images([(str(i), name, SIZE) for i, name in enumerate(names)])
    assert len({image.stem.lower() for image in named}) == len(names)
    for image in named:
        assert not set(image.stem) & set('<>:"/\\|?*') and not image.stem.startswith(".")
        assert len(image.file_name.encode()) < 140
    lookup = ImageNames(named)
    for image in named:
        assert lookup.find(image.file_name) == image and lookup.find_stem(image.stem) == image
    assert lookup.find("folder\\a:b?.jpg").name == "a:b?.jpg"


def test_a_foreign_coco_file_goes_to_images_of_its_names(server):
    project, images = bare_copy(server)
    mask = blob(1)
    document = {
        "images": [
            {"id": 7, "file_name": "train/a.jpg", "height": 40, "width": 50},
            {"id": 8, "file_name": "nobody.jpg", "height": 40, "width": 50},
            {"id": 9, "file_name": "b photo.v2.png", "height": 400, "width": 500},
        ],
        "annotations": [
            {"id": 1, "image_id": 7, "category_id": 3, "segmentation": encode_rle(mask)},
            {"id": 2, "image_id": 7, "category_id": 4, "segmentation": [[10, 10, 20, 10, 20, 20, 10, 20]]},
            {"id": 3, "image_id": 8, "category_id": 3, "segmentation": encode_rle(mask)},
            {"id": 4, "image_id": 9, "category_id": 3, "segmentation": [[1, 1, 9, 1, 9, 9]]},
        ],
        "categories": [{"id": 3, "name": "dog"}, {"id": 4, "name": "x" * 201}],
    }
    answer = load(server, project, json.dumps(document), "instances.json")
    assert answer["imported"] == 2
    assert [each["what"].split(": ")[1] for each in answer["skipped"]] == ["nobody.jpg", "b photo.v2.png"]
    found = server.annotations(project, images[0])
    assert np.array_equal(masks_of(found)[0], mask) and found[1]["box"] == [10, 10, 20, 20]
    assert names_of(server, project, found) == ["dog", "x" * 201]
    assert found[1]["category_id"] is None
    assert [each["name"] for each in server.ask("GET", f"/{project}/categories")["categories"]] == ["dog"]


def test_single_files_of_each_kind_are_taken(server):
    project, images = bare_copy(server)
    labels = np.zeros(SIZE, np.uint8)
    labels[2:5, 3:9], labels[20:30, 20:25] = 1, 7
    for name in ("a_labels.png", "a.png"):
        copy, copies = bare_copy(server)
        file = io.BytesIO()
        Image.fromarray(labels).save(file, "PNG")
        assert load(server, copy, file.getvalue(), name, kind="labels")["imported"] == 2
        assert all(map(np.array_equal, masks_of(server.annotations(copy, copies[0])), [labels == 1, labels == 7]))
    file = io.BytesIO()
    Image.fromarray(blob(1)).save(file, "PNG")
    assert load(server, project, file.getvalue(), "b photo.v2_mask_0.png")["imported"] == 1
    assert np.array_equal(masks_of(server.annotations(project, images[1]))[0], blob(1))
    assert load(server, project, b"0 0.1 0.1 0.5 0.1 0.5 0.5\n", "a.txt")["imported"] == 1
    shape = {"label": "cat", "shape_type": "polygon", "points": [[1, 1], [9, 1], [9, 9]]}
    document = {"shapes": [shape], "imageHeight": 40, "imageWidth": 50, "imagePath": "../a.jpg"}
    assert load(server, project, json.dumps(document), "whatever.json")["imported"] == 1
    assert names_of(server, project, server.annotations(project, images[0])) == ["class_0", "cat"]


GOOD = json.dumps(
    {"image": "a.jpg", "size": [40, 50], "masks": [{"segmentation": encode_rle(blob(0)), "predicted_iou": 1}]}
)


def native(**change):
    form = {"segmentation": encode_rle(blob(0)), "predicted_iou": 1} | change
    return json.dumps({"image": "a.jpg", "size": [40, 50], "masks": [form]})


@pytest.mark.parametrize(
    "bad",
    [
        "{",
        "[" * 100_000,
        '{"image": "a.jpg", "size": [40, 50], "masks": [NaN]}',
        '{"image": "a.jpg", "size": [40, 50], "masks": 7}',
        native(segmentation={"size": [40, 50], "counts": [1]}),
        native(predicted_iou="high"),
        native(prompt={"mask": {"size": [40_000, 50_000], "counts": [2_000_000_000]}}),
        native(prompt={"low_res_logits": {"shape": [10**40], "float32": ""}}),
        '{"images": [{"id": [], "file_name": "a.jpg"}], "annotations": []}',
        '{"images": [], "annotations": [{"image_id": 3}]}',
        '{"images": [{"id": 1, "file_name": "a.jpg", "height": 40, "width": 50}], "annotations": [{"image_id": 1}]}',
        '{"shapes": [7], "imageHeight": 40, "imageWidth": 50, "imagePath": "a.jpg"}',
        '{"type": "FeatureCollection", "features": [], "anysam": {"size": [40, 50], "file_name": "a.jpg"}}',
    ],
    ids=range(13),
)
def test_a_malformed_file_imports_nothing_of_the_whole_request(server, bad):
    project, images = bare_copy(server)
    detail = load(server, project, zipped({"a.json": GOOD, "b.json": bad}), expected=422)["detail"]
    assert "b.json" in detail and tempfile.gettempdir() not in detail
    load(server, project, bad, "b.json", expected=422)
    assert server.annotations(project, images[0]) == []


def test_records_that_cannot_be_kept_are_skipped_with_the_reason(server):
    project, images = bare_copy(server)
    answers = [
        load(server, project, native(**change), "a.json")
        for change in (
            {"label": "a\0b"},
            {"label": "\ud800"},
            {"prompt": {"points": [[900, 1]]}},
            {"predicted_iou": 1e12},
        )
    ]
    assert [answer["imported"] for answer in answers] == [0] * 4
    assert all(len(answer["skipped"]) == 1 for answer in answers)
    assert server.annotations(project, images[0]) == []


def test_captions_are_not_kept_and_that_is_said(server):
    project, _ = bare_copy(server)
    answer = load(server, project, native(caption="a cat on a mat"), "a.json")
    assert answer["imported"] == 1 and answer["skipped"][0]["what"] == "captions of 1 masks"


def test_names_of_images_with_halves_of_letters_are_answered_in_json(server):
    project, _ = bare_copy(server)
    document = '{"image": "\\ud800\\u0000.jpg", "size": [40, 50], "masks": []}'
    assert load(server, project, document, "a.json")["skipped"]


def link(name, target):
    entry = zipfile.ZipInfo(name)
    entry.external_attr = (stat.S_IFLNK | 0o777) << 16
    return entry, target


def hostile(case):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.json", GOOD)
        if case == "bomb":
            archive.writestr("b.json", b" " * 20_000_000)
        elif case == "many":
            for number in range(300):
                archive.writestr(f"{number}.json", "{}")
        elif case == "link":
            archive.writestr(*link("b.json", "/etc/passwd"))
        elif case == "packed otherwise":
            archive.writestr("b.json", GOOD, zipfile.ZIP_LZMA)
        elif case == "twice":
            with pytest.warns(UserWarning):
                archive.writestr("a.json", GOOD)
        elif case.startswith("path "):
            archive.writestr(case[5:], GOOD)
    data = bytearray(file.getvalue())
    if case == "encrypted":
        data[6] |= 1
        data[data.index(b"PK\x01\x02") + 8] |= 1
    if case == "damaged":
        data[45] ^= 0xFF
    if case == "cut short":
        data = data[:-30]
    if case == "lying size":
        place = data.index(b"PK\x01\x02") + 24
        data[place : place + 4] = (5).to_bytes(4, "little")
    return bytes(data)


@pytest.mark.parametrize(
    ("case", "status"),
    [
        ("bomb", 413),
        ("many", 413),
        ("link", 422),
        ("packed otherwise", 422),
        ("twice", 422),
        ("path ../b.json", 422),
        ("path /etc/b.json", 422),
        ("path c:\\b.json", 422),
        ("path a\\..\\..\\b.json", 422),
        ("encrypted", 422),
        ("damaged", 422),
        ("cut short", 422),
        ("lying size", 422),
    ],
)
def test_hostile_zip_files_are_refused_and_nothing_is_imported(tmp_path, case, status):
    server = Server(tmp_path, ProjectLimits(max_entries=200, unpacked_bytes=10_000_000, document_bytes=1_000_000))
    project, images = bare_copy(server)
    load(server, project, hostile(case), expected=status)
    assert server.annotations(project, images[0]) == []
    assert load(server, project, hostile("none"))["imported"] == 1


def test_documents_and_uploads_have_their_limits(tmp_path):
    server = Server(tmp_path, ProjectLimits(import_bytes=100_000, document_bytes=5_000))
    project, _ = bare_copy(server)
    load(server, project, b" " * 300_000, "a.json", expected=413)
    load(server, project, GOOD + " " * 6_000, "a.json", expected=413)
    load(server, project, zipped({"a.json": GOOD + " " * 6_000}), expected=413)
    server.ask("POST", f"/{project}/import", 400, content=GOOD)
    server.ask("POST", f"/{project}/import", 400, files=[("file", ("a", "b")), ("file", ("a", "b"))])
    load(server, "0" * 32, GOOD, "a.json", expected=404)
    load(server, project, GOOD, "a.json", expected=422, kind="exe")


def test_other_files_in_a_zip_file_are_named_and_left(server):
    project, _ = bare_copy(server)
    entries = {"a.json": GOOD, "a.jpg": b"x", "photo.png": png(SIZE, 5), "data.yaml": "names: []", "x.json": "{}"}
    entries |= {"__MACOSX/._a.json": b"\0", ".hidden.json": "{", "nobody_labels.png": png(SIZE, 5), "zz.txt": "0 0 0"}
    answer = load(server, project, zipped(entries))
    assert answer["imported"] == 1
    left = [each["what"] for each in answer["skipped"]]
    assert left == ["a.jpg", "data.yaml", "nobody_labels.png", "photo.png", "x.json", "zz.txt"]


def test_an_import_is_in_the_history_and_leaves_no_files(server, tmp_path, monkeypatch):
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    project, _ = bare_copy(server)
    load(server, project, GOOD, "a.json")
    load(server, project, "{", "a.json", expected=422)
    export(server, project, "png")
    export(server, "0" * 32, "png")
    assert [event["action"] for event in server.events(project)][-1] == "annotation.create"
    assert list(folder.iterdir()) == []


def test_pycocotools_agrees_on_the_run_lengths(server):
    project, images = filled(server)
    for annotation in server.annotations(project, images[0]):
        rle = annotation["segmentation"]
        again = coco_mask.encode(np.asfortranarray(coco_mask.decode(rle)))
        assert again["counts"].decode() == rle["counts"] and body(decode_rle(rle))["segmentation"] == rle
