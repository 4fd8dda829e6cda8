"""Projects over HTTP: every route, what is answered and what is refused."""

import hashlib
import io
import json

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image
from pycocotools import mask as coco_mask

from anysam.masks import encode_rle
from anysam.serve.projects.bodies import ProjectLimits
from projects_app import Server, body, box_mask, make_app, masks_of, png

NOWHERE = "0" * 32
SIZE = (6, 8)


@pytest.fixture
def server(tmp_path):
    server = Server(tmp_path)
    yield server
    server.projects.close()


@pytest.fixture
def place(server):
    """A project with an image, and the path of its annotations."""
    return new_place(server)


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """A server for tests that must not change it."""
    server = Server(tmp_path_factory.mktemp("shared"))
    yield server
    server.projects.close()


def new_place(server):
    project = server.project()
    image = server.image(project)
    return project, image, f"/{project}/images/{image}/annotations"


def test_a_project_is_made_found_renamed_and_deleted(server):
    made = server.ask("POST", "", 201, json={"name": "Cats"})
    assert made["name"] == "Cats" and made["images"] == made["annotations"] == 0
    assert server.ask("GET", f"/{made['id']}") == made
    assert server.ask("GET", "")["projects"] == [made]
    renamed = server.ask("PATCH", f"/{made['id']}", json={"name": "Dogs"})
    assert renamed["name"] == "Dogs" and renamed["updated_at"] > made["updated_at"]
    assert renamed["created_at"] == made["created_at"]
    server.ask("DELETE", f"/{made['id']}", 204)
    server.ask("GET", f"/{made['id']}", 404)
    assert server.ask("GET", "")["projects"] == []


def test_categories_have_numbers_that_are_not_used_again(server):
    project = server.project()
    first = server.ask("POST", f"/{project}/categories", 201, json={"name": "cat", "colour": "#FF0000"})
    assert first == {"id": 1, "name": "cat", "colour": "#ff0000"}
    server.ask("DELETE", f"/{project}/categories/1", 204)
    second = server.ask("POST", f"/{project}/categories", 201, json={"name": "cat", "colour": "#00ff00"})
    assert second["id"] == 2
    changed = server.ask("PATCH", f"/{project}/categories/2", json={"name": "dog"})
    assert changed == {"id": 2, "name": "dog", "colour": "#00ff00"}
    assert server.ask("GET", f"/{project}/categories")["categories"] == [changed]
    server.ask("PATCH", f"/{project}/categories/1", 404, json={"name": "dog"})


def test_a_name_is_that_of_one_category(server):
    project = server.project()
    for name in ("cat", "dog"):
        server.ask("POST", f"/{project}/categories", 201, json={"name": name, "colour": "#000000"})
    server.ask("POST", f"/{project}/categories", 409, json={"name": "cat", "colour": "#000000"})
    server.ask("PATCH", f"/{project}/categories/2", 409, json={"name": "cat"})
    server.ask("PATCH", f"/{project}/categories/2", json={"name": "dog", "colour": "#111111"})


def test_an_image_comes_back_byte_for_byte_with_the_type_found_in_it(server):
    project = server.project()
    data = png((6, 8), 3, "JPEG")
    path = f"/{project}/images"
    made = server.ask("POST", path, 201, params={"name": "a.gif"}, content=data, headers={"Content-Type": "text/html"})
    assert made["size"] == [6, 8] and made["bytes"] == len(data) and made["name"] == "a.gif"
    file = server.ask("GET", f"{path}/{made['id']}/file")
    assert file.content == data and file.headers["content-type"] == "image/jpeg"
    tag = file.headers["etag"]
    assert tag == f'"{hashlib.sha256(data).hexdigest()}"'
    same = server.ask("GET", f"{path}/{made['id']}/file", 304, headers={"If-None-Match": f'"x", W/{tag}'})
    assert same.content == b""
    assert server.ask("GET", path)["images"] == [made] == [server.ask("GET", f"{path}/{made['id']}")]


def test_the_same_bytes_are_kept_once_in_a_project(server):
    project, other = server.project(), server.project()
    first = server.image(project, name="cat.png")
    assert server.image(project, name="copy.png", expected=200) == first
    assert server.image(other) != first
    assert server.ask("GET", f"/{project}")["images"] == 1


def test_an_image_comes_in_a_form_and_has_its_name(server):
    project = server.project()
    files = {"file": ("photo.png", png(SIZE, 4), "image/png")}
    assert server.ask("POST", f"/{project}/images", 201, files=files)["name"] == "photo.png"
    files = {"other": ("photo.png", png(SIZE, 5), "image/png")}
    server.ask("POST", f"/{project}/images", 400, files=files)
    server.ask("POST", f"/{project}/images", 400, content=b"x", headers={"Content-Type": "multipart/form-data"})


def test_a_turned_photograph_has_its_upright_size(server):
    file, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (8, 6)).save(file, "JPEG", exif=exif)
    project = server.project()
    assert server.ask("POST", f"/{project}/images", 201, content=file.getvalue())["size"] == [8, 6]


@pytest.mark.parametrize(
    ("content", "status"),
    [(b"", 415), (b"<svg/>", 415), (png(SIZE, 1)[:60], 415), (png((300, 300), 1), 413), (png((40, 50), 1), 413)],
    ids=["nothing", "no image", "cut short", "too many bytes", "too many pixels"],
)
def test_what_is_no_image_or_too_large_is_refused(tmp_path, content, status):
    server = Server(tmp_path, ProjectLimits(upload_bytes=50_000, max_pixels=1999))
    project = server.project()
    server.ask("POST", f"/{project}/images", status, content=content)
    server.ask("POST", f"/{project}/images", status, files={"file": ("a.png", content, "image/png")})
    assert server.ask("GET", f"/{project}/images")["images"] == []


@pytest.mark.parametrize("name", ["a/b.png", "..", "a\\b.png", "a\0.png", " ", "a\nb.png", "ä" * 150])
def test_names_of_images_have_no_folders_and_no_control_characters(shared, name):
    project = shared.project()
    shared.ask("POST", f"/{project}/images", 422, params={"name": name}, content=png(SIZE, 1))


def test_opening_an_image_gives_its_bytes_to_the_engine(server):
    project = server.project()
    image = server.image(project)
    state = server.ask("POST", f"/{project}/images/{image}/open", 201)
    assert state["state"] == "queued" and state["id"] == "e" * 32 and state["model"] == "fake"
    assert server.ask("POST", f"/{project}/images/{image}/open", 201, params={"wait": 2})["state"] == "ready"
    assert server.engine.received == [png(SIZE, 1)] * 2


def test_without_an_engine_images_are_not_opened(server):
    project = server.project()
    image = server.image(project)
    client = TestClient(make_app(server.projects))
    assert client.post(f"/v1/projects/{project}/images/{image}/open").status_code == 409


def test_an_annotation_is_saved_as_it_was_drawn(server, place):
    _, _, path = place
    mask = np.random.default_rng(0).random(SIZE) > 0.5
    values = {"predicted_iou": 0.75, "label": "a cat", "prompt": {"points": [[1, 2]], "labels": [1]}}
    saved = server.ask("PUT", f"{path}/{'a' * 32}", 201, json=body(mask, **values))
    rle = saved["segmentation"]
    assert np.array_equal(coco_mask.decode(rle).astype(bool), mask)
    assert saved["area"] == mask.sum() == coco_mask.area(rle)
    x, y, width, height = coco_mask.toBbox(rle)
    assert saved["box"] == [x, y, x + width, y + height]
    assert saved["label"] == "a cat" and saved["predicted_iou"] == 0.75 and saved["category_id"] is None
    assert saved["prompt"] == {"points": [[1.0, 2.0]], "labels": [1]} and saved["source"] == "click"
    assert server.ask("GET", path)["annotations"] == [saved]


def test_run_lengths_as_a_list_are_the_same_as_a_string(server, place):
    _, _, path = place
    mask = box_mask(SIZE, 2, 1, 5, 4)
    flat = mask.ravel(order="F")
    changes = [0, *np.flatnonzero(np.diff(flat)) + 1, flat.size]
    form = {"segmentation": {"size": list(SIZE), "counts": np.diff(changes).tolist()}, "source": "brush"}
    assert server.ask("PUT", f"{path}/{'a' * 32}", 201, json=form)["segmentation"] == encode_rle(mask)


def test_saving_again_changes_the_version_only_where_something_changed(server, place):
    _, _, path = place
    path = f"{path}/{'a' * 32}"
    first = server.ask("PUT", path, 201, json=body(box_mask(SIZE, 0, 0, 2, 2)))
    same = server.client.put(f"/v1/projects{path}", json=body(box_mask(SIZE, 0, 0, 2, 2)))
    assert same.status_code == 200 and same.json() == first and same.headers["etag"] == f'"{first["version"]}"'
    other = server.ask("PUT", path, json=body(box_mask(SIZE, 0, 0, 3, 2)))
    assert other["version"] > first["version"] and other["created_at"] == first["created_at"]
    assert other["updated_at"] > first["updated_at"]


def test_if_match_saves_only_over_the_version_it_names(server, place):
    _, _, path = place
    path = f"{path}/{'a' * 32}"
    masks = [body(box_mask(SIZE, 0, 0, side, 2)) for side in (1, 2, 3, 4)]
    server.ask("PUT", path, 412, json=masks[0], headers={"If-Match": '"1"'})
    server.ask("PUT", path, 412, json=masks[0], headers={"If-Match": "*"})
    first = server.ask("PUT", path, 201, json=masks[0])["version"]
    second = server.ask("PUT", path, json=masks[1], headers={"If-Match": f'"{first}"'})["version"]
    server.ask("PUT", path, 412, json=masks[2], headers={"If-Match": f'"{first}"'})
    server.ask("PUT", path, 412, json=masks[2], headers={"If-Match": f'W/"{second}"'})
    server.ask("PUT", path, 412, json=masks[2], headers={"If-Match": "nonsense"})
    server.ask("PUT", path, json=masks[2], headers={"If-Match": f'"7777", "{second}"'})
    last = server.ask("PUT", path, json=masks[3], headers={"If-Match": "*"})["version"]
    server.ask("DELETE", path, 412, headers={"If-Match": f'"{second}"'})
    server.ask("DELETE", path, 204, headers={"If-Match": f'"{last}"'})
    server.ask("DELETE", path, 404)


def test_a_version_is_never_given_twice(server, place):
    _, _, path = place
    path = f"{path}/{'a' * 32}"
    form = body(box_mask(SIZE, 0, 0, 2, 2))
    first = server.ask("PUT", path, 201, json=form)["version"]
    server.ask("DELETE", path, 204)
    assert server.ask("PUT", path, 201, json=form)["version"] > first
    server.ask("PUT", path, 412, json=form, headers={"If-Match": f'"{first}"'})


def test_an_empty_mask_is_kept(server, place):
    saved = server.put(*place[:2], np.zeros(SIZE, dtype=bool))
    assert saved["area"] == 0 and saved["box"] == [0, 0, 0, 0]


GOOD = body(box_mask(SIZE, 0, 0, 2, 2))


@pytest.mark.parametrize(
    "change",
    [
        {"segmentation": {"size": [8, 6], "counts": "0n0"}},
        {"segmentation": {"size": [6, 8], "counts": "garbage"}},
        {"segmentation": {"size": [6, 8], "counts": [1, 2]}},
        {"segmentation": {"size": [6, 8], "counts": [10**30]}},
        {"segmentation": {"size": [6, 8], "counts": [-1, 49]}},
        {"segmentation": {"size": [6, 8], "counts": [48.0]}},
        {"segmentation": {"size": [6, 8], "counts": ""}},
        {"segmentation": {"size": [10**30, 8], "counts": "0"}},
        {"segmentation": {"size": [6, 8]}},
        {"segmentation": encode_rle(box_mask((8, 6), 0, 0, 2, 2))},
        {"segmentation": None},
        {"source": "magic"},
        {"source": None},
        {"category_id": 1},
        {"category_id": 10**30},
        {"category_id": "1"},
        {"category_id": True},
        {"predicted_iou": 10**400},
        {"predicted_iou": "0.5"},
        {"label": ""},
        {"label": "a\0b"},
        {"label": "x" * 1001},
        {"prompt": {}},
        {"prompt": {"points": [[100, 100]]}},
        {"prompt": {"points": [[1, 1]], "colour": 1}},
        {"prompt": {"points": "abc"}},
        {"prompt": {"points": [[10**400, 1]]}},
        {"prompt": {"text": "a\0b"}},
        {"prompt": {"mask": {"size": [40000, 50000], "counts": [2_000_000_000]}}},
        {"prompt": {"mask": {"size": [10**30, 1], "counts": "0"}}},
        {"prompt": {"low_res_logits": {"shape": [10**30, 1], "float32": ""}}},
        {"prompt": {"low_res_logits": {"shape": [1, 1], "float32": "AADAfw=="}}},
        {"version": 1},
    ],
    ids=lambda change: json.dumps(change)[:60],
)
def test_values_that_are_not_accepted_are_refused_and_nothing_is_saved(shared, change):
    server, place = shared, new_place(shared)
    path = f"{place[2]}/{'a' * 32}"
    server.ask("PUT", path, 422, json=GOOD | change)
    server.ask(
        "POST", f"{place[2]}/batch", 422, json={"put": [GOOD | {"id": "a" * 32}, GOOD | change | {"id": "b" * 32}]}
    )
    assert server.ask("GET", place[2])["annotations"] == []


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (b"", 400),
        (b"{", 400),
        (b'{"name": "\\ud800"}', 400),
        (b'{"name": "\xff"}', 400),
        (b'{"name": NaN}', 422),
        (b'{"name": "a", "name2": "b"}', 422),
        (b"[" * 100_000, 400),
        (b"[]", 422),
        (b"null", 422),
        (b'{"name": "a\\u0000b"}', 422),
        (b'{"name": " "}', 422),
        (b'{"name": ""}', 422),
        (json.dumps({"name": "n" * 201}).encode(), 422),
        (b'{"name": ' + b"1" * 5000 + b"}", 400),
    ],
    ids=lambda value: str(value)[:30],
)
def test_bodies_that_are_no_json_or_no_project_are_refused(shared, content, status):
    before = shared.ask("GET", "")
    shared.ask("POST", "", status, content=content, headers={"Content-Type": "application/json"})
    assert shared.ask("GET", "") == before


def test_a_body_of_another_type_or_too_long_is_refused(tmp_path):
    server = Server(tmp_path, ProjectLimits(json_bytes=100))
    server.ask("POST", "", 415, content=b'{"name": "a"}', headers={"Content-Type": "text/plain"})
    server.ask("POST", "", 413, json={"name": "a" * 150})

    def chunks():
        for _ in range(100):
            yield b" " * 50

    server.ask("POST", "", 413, content=chunks(), headers={"Content-Type": "application/json"})


@pytest.mark.parametrize("wrong", ["A" * 32, "a" * 31, "a" * 33, "g" * 32, "ａ" * 32, "a" * 32 + "%0A", "%00"])
def test_ids_are_32_lower_case_hexadecimal_digits(shared, wrong):
    server, place = shared, new_place(shared)
    for path in (f"/{wrong}", f"/{place[0]}/images/{wrong}"):
        server.ask("GET", path, 422)
    server.ask("PUT", f"{place[2]}/{wrong}", 422, json=GOOD)


def test_what_does_not_exist_is_404_everywhere(server, place):
    project, image, _ = place
    other = server.project()
    for base in (f"/{NOWHERE}", f"/{NOWHERE}/images", f"/{NOWHERE}/categories", f"/{NOWHERE}/history"):
        server.ask("GET", base, 404)
    for owner in (NOWHERE, other):
        base = f"/{owner}/images/{image}"
        server.ask("GET", base, 404)
        server.ask("GET", f"{base}/file", 404)
        server.ask("DELETE", base, 404)
        server.ask("POST", f"{base}/open", 404)
        server.ask("GET", f"{base}/annotations", 404)
        server.ask("PUT", f"{base}/annotations/{'a' * 32}", 404, json=GOOD)
        server.ask("POST", f"{base}/annotations/batch", 404, json={})
    server.ask("DELETE", f"/{NOWHERE}", 404)
    server.ask("PATCH", f"/{NOWHERE}", 404, json={"name": "a"})
    server.ask("POST", f"/{NOWHERE}/images", 404, content=png(SIZE, 1))
    server.ask("DELETE", f"/{project}/categories/1", 404)
    server.ask("POST", f"/{NOWHERE}/categories", 404, json={"name": "a", "colour": "#000000"})


def test_a_batch_is_all_or_nothing(server, place):
    project, image, path = place
    kept = server.put(project, image, box_mask(SIZE, 0, 0, 1, 1))
    masks = [box_mask(SIZE, 0, 0, side, side) for side in (2, 3, 4)]
    put = [{"id": f"{number:032x}", **body(mask)} for number, mask in enumerate(masks)]
    bad = put[:2] + [put[2] | {"category_id": 5}]
    server.ask("POST", f"{path}/batch", 422, json={"put": bad, "delete": [kept["id"]]})
    assert server.annotations(project, image) == [kept]
    answer = server.ask("POST", f"{path}/batch", json={"put": put, "delete": [NOWHERE[:-1] + "f", kept["id"]]})
    assert answer["deleted"] == [kept["id"]]
    assert [each["id"] for each in answer["annotations"]] == [each["id"] for each in put]
    assert server.annotations(project, image) == answer["annotations"]
    assert all(map(np.array_equal, masks_of(answer["annotations"]), masks))


def test_a_batch_names_each_annotation_once(server, place):
    path = f"{place[2]}/batch"
    one = {"id": "a" * 32, **GOOD}
    server.ask("POST", path, 422, json={"put": [one, one]})
    server.ask("POST", path, 422, json={"put": [one], "delete": ["a" * 32]})
    server.ask("POST", path, 422, json={"delete": ["a" * 32, "a" * 32]})
    server.ask("POST", path, 422, json={"put": [one | {"id": "A" * 32}]})
    assert server.ask("POST", path, json={}) == {"annotations": [], "deleted": []}


def test_deleting_a_category_leaves_its_annotations_without_one(server, place):
    project, image, _ = place
    server.ask("POST", f"/{project}/categories", 201, json={"name": "cat", "colour": "#000000"})
    before = server.put(project, image, box_mask(SIZE, 0, 0, 1, 1), category_id=1)
    server.ask("DELETE", f"/{project}/categories/1", 204)
    (after,) = server.annotations(project, image)
    assert after["category_id"] is None and after["version"] > before["version"]


def test_deleting_takes_what_is_inside_with_it(server, place):
    project, image, _ = place
    server.put(project, image, box_mask(SIZE, 0, 0, 1, 1))
    other = server.image(project, png(SIZE, 9))
    server.put(project, other, box_mask(SIZE, 0, 0, 1, 1))
    counts = server.ask("GET", f"/{project}")
    assert (counts["images"], counts["annotations"]) == (2, 2)
    server.ask("DELETE", f"/{project}/images/{image}", 204)
    server.ask("GET", f"/{project}/images/{image}/annotations", 404)
    counts = server.ask("GET", f"/{project}")
    assert (counts["images"], counts["annotations"]) == (1, 1)
    server.ask("DELETE", f"/{project}", 204)
    with server.projects.reading() as connection:
        for table in ("projects", "images", "image_files", "annotations", "categories", "history"):
            assert connection.exec_driver_sql(f"SELECT count(*) FROM {table}").scalar() == 0, table


def test_history_replayed_is_what_is_there(server, place):
    project, image, path = place
    rng = np.random.default_rng(7)
    for name in ("cat", "dog"):
        server.ask("POST", f"/{project}/categories", 201, json={"name": name, "colour": "#000000"})
    second = server.image(project, png(SIZE, 2))
    for _ in range(40):
        where = f"/{project}/images/{rng.choice([image, second])}/annotations/{rng.integers(8):032x}"
        if rng.random() < 0.3:
            server.client.delete(f"/v1/projects{where}")
        else:
            category = [None, 1, 2][rng.integers(3)]
            server.client.put(f"/v1/projects{where}", json=body(rng.random(SIZE) > 0.5, category_id=category))
    server.ask("DELETE", f"/{project}/categories/1", 204)
    server.ask("PATCH", f"/{project}/categories/2", json={"name": "hound"})
    server.ask("PATCH", f"/{project}", json={"name": "All"})
    third = server.image(project, png(SIZE, 3))
    server.put(project, third, box_mask(SIZE, 0, 0, 1, 1))
    server.ask("DELETE", f"/{project}/images/{third}", 204)
    state = {}
    events = server.events(project, limit=7)
    assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
    for event in events:
        kind = event["action"].partition(".")[0]
        there = event["after"] or event["before"]
        key = kind, event["image_id"], event["annotation_id"], there["id"] if kind == "category" else None
        assert state.get(key) == event["before"], event
        state[key] = event["after"]
    left = {key: value for key, value in state.items() if value is not None}
    for number in (image, second):
        found = [value for key, value in left.items() if key[:2] == ("annotation", number)]
        assert sorted(found, key=lambda each: each["id"]) == sorted(
            server.annotations(project, number), key=lambda each: each["id"]
        )
    assert [value for key, value in left.items() if key[0] == "category"] == server.ask(
        "GET", f"/{project}/categories"
    )["categories"]
    images = [value for key, value in left.items() if key[0] == "image"]
    listed = server.ask("GET", f"/{project}/images")["images"]
    assert images == [{key: value for key, value in each.items() if key != "annotations"} for each in listed]
    assert left["project", None, None, None] == {"name": server.ask("GET", f"/{project}")["name"]}


def test_history_is_read_in_pages(server):
    project = server.project()
    for number in range(4):
        server.ask("PATCH", f"/{project}", json={"name": f"name {number}"})
    page = server.ask("GET", f"/{project}/history", params={"after": 1, "limit": 2})
    assert [event["seq"] for event in page["events"]] == [2, 3] and page["next"] == 3
    last = server.ask("GET", f"/{project}/history", params={"after": 3, "limit": 2})
    assert [event["seq"] for event in last["events"]] == [4, 5] and last["next"] is None
    for wrong in ({"after": -1}, {"after": 2**70}, {"limit": 0}, {"limit": 1001}, {"limit": "x"}):
        server.ask("GET", f"/{project}/history", 422, params=wrong)


def test_openapi_names_every_route_with_its_errors(server):
    document = server.client.get("/openapi.json").json()
    assert "$defs" not in json.dumps(document)
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            assert method == "get" or operation["responses"].keys() & {"200", "201", "204"}, path
            assert {"503", "500"} & operation["responses"].keys(), path
            if method in ("put", "patch"):
                assert (
                    operation["requestBody"]["content"]["application/json"]["schema"]["additionalProperties"] is False
                )
