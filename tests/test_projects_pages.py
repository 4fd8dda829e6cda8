"""Listings page by page: nothing twice, nothing left out, whatever is added, changed or removed meanwhile."""

import secrets
import tracemalloc

import pytest
from sqlalchemy import insert, inspect

from anysam.serve.projects import operations
from anysam.serve.projects.database import open_projects
from anysam.serve.projects.tables import annotations, images
from projects_app import Server, body, box_mask, png

SIZE = (6, 8)


@pytest.fixture
def server(tmp_path):
    server = Server(tmp_path)
    yield server
    server.projects.close()


def pages_of(server, path, key, limit, between=lambda number: None):
    """The ids on each page; between(n) is called after page n."""
    pages, after = [], {}
    while True:
        page = server.ask("GET", path, params={"limit": limit, **after})
        pages.append([each["id"] for each in page[key]])
        between(len(pages))
        if page["next"] is None:
            return pages
        after = {"after": page["next"]}


def add_annotation(server, project, image):
    return server.put(project, image, box_mask(SIZE, 1, 1, 3, 3))["id"]


@pytest.fixture
def listings(server):
    """Each listing of five: its path, its key, the ids in its order, and how one more is made and one removed."""
    made = [server.project(str(number)) for number in range(5)]
    project = made[2]
    pictures = [server.image(project, png(SIZE, number), f"{number}.png") for number in range(5)]
    image = pictures[3]
    masks = [add_annotation(server, project, image) for _ in range(5)]
    path = f"/{project}/images"
    below = f"{path}/{image}/annotations"
    return {
        "projects": ("", made[::-1], server.project, ""),
        "images": (path, pictures, lambda: server.image(project, png(SIZE, 77)), path),
        "annotations": (below, masks, lambda: add_annotation(server, project, image), below),
    }


@pytest.mark.parametrize("key", ["projects", "images", "annotations"])
def test_pages_together_are_the_listing(server, listings, key):
    path, ids, *_ = listings[key]
    whole = server.ask("GET", path)
    assert [each["id"] for each in whole[key]] == ids and whole["next"] is None
    assert pages_of(server, path, key, 2) == [ids[:2], ids[2:4], ids[4:]]
    assert pages_of(server, path, key, 5) == [ids]  # no empty page behind a full one
    assert pages_of(server, path, key, 1) == [[each] for each in ids]


@pytest.mark.parametrize("key", ["projects", "images", "annotations"])
def test_what_is_added_and_removed_meanwhile_moves_no_other(server, listings, key):
    path, ids, make, base = listings[key]
    new = []

    def change(number):
        if number == 1:
            new.append(make())
            for gone in (ids[1], ids[2]):  # of the page that was read, its last; and of the next
                server.ask("DELETE", f"{base}/{gone}", 204)

    first, *others = pages_of(server, path, key, 2, change)
    behind = [] if key == "projects" else new
    assert first == ids[:2] and sum(others, []) == [*ids[3:], *behind]


def test_a_project_that_is_changed_meanwhile_is_not_missed(server):
    ids = [server.project(str(number)) for number in range(4)][::-1]

    def rename(number):
        server.ask("PATCH", f"/{ids[-1]}", json={"name": f"renamed {number}"})

    assert sum(pages_of(server, "", "projects", 1, rename), []) == ids


def test_projects_made_in_one_microsecond_are_all_listed(server, monkeypatch):
    monkeypatch.setattr("time.time_ns", lambda: 1_700_000_000_000_000_000)
    ids = {server.project(str(number)) for number in range(5)}
    pages = pages_of(server, "", "projects", 2)
    assert [len(page) for page in pages] == [2, 2, 1] and set(sum(pages, [])) == ids


@pytest.mark.parametrize("values", ["limit=0", "limit=1001", "limit=x", "after=x", "after=-1", f"after={2**63}"])
@pytest.mark.parametrize("key", ["projects", "images", "annotations"])
def test_other_limits_and_places_are_refused(server, listings, key, values):
    server.ask("GET", f"{listings[key][0]}?{values}", 422)


def test_a_page_of_large_annotations_ends_early(server, monkeypatch):
    monkeypatch.setattr("anysam.serve.projects.pages._ANSWER_BYTES", 1000)
    project = server.project()
    image = server.image(project)
    put = [{"id": f"{number:032x}", **body(box_mask(SIZE, 1, 1, 3, 3), label="x" * 600)} for number in range(5)]
    path = f"/{project}/images/{image}/annotations"
    server.ask("POST", f"{path}/batch", json={"put": put})
    assert [len(page) for page in pages_of(server, path, "annotations", 1000)] == [2, 2, 1]


def test_thousands_of_images_are_listed_by_pages_of_bounded_memory(server):
    project = server.project()
    facts = {"project_id": project, "height": 6, "width": 8, "bytes": 1, "media_type": "image/png", "created_at": 0}
    ids = [secrets.token_hex(16) for _ in range(5000)]
    rows = [{"id": each, "name": "a", "sha256": each, "version": n} for n, each in enumerate(ids, start=2)]
    mask = {"project_id": project, "counts": "1", "area": 0, "x0": 0, "y0": 0, "x1": 0, "y1": 0, "source": "click"}
    times = {"version": 1, "created_at": 0, "updated_at": 0}
    marks = [{"image_id": each, "id": each, "place": n, **mask, **times} for n, each in enumerate(ids)]
    with server.projects.writing() as connection:
        connection.execute(insert(images), [row | facts for row in rows])
        connection.execute(insert(annotations), marks)
    tracemalloc.start()
    found, after, peak = [], 0, 0
    while after is not None:
        tracemalloc.reset_peak()
        before, _ = tracemalloc.get_traced_memory()
        page, after = operations.list_images(server.projects, project, after, 500)
        peak = max(peak, tracemalloc.get_traced_memory()[1] - before)
        found += [(each.id, each.annotations) for each in page]
    tracemalloc.stop()
    assert found == [(each, 1) for each in ids]
    assert peak < 4_000_000


def test_a_database_made_before_gets_the_indexes_that_pages_need(tmp_path):
    server = Server(tmp_path)
    wanted = {"annotations": "annotations_by_place", "projects": "projects_by_creation"}
    with server.projects.writing() as connection:
        for name in wanted.values():
            connection.exec_driver_sql(f"DROP INDEX {name}")
    again = open_projects(server.projects._engine.url.render_as_string(hide_password=False))
    with again.reading() as connection:
        for table, name in wanted.items():
            assert name in {each["name"] for each in inspect(connection).get_indexes(table)}
    again.close()
    server.projects.close()
