"""The database of projects: what survives a kill, a full disk and two writers; which databases are opened."""

import dataclasses
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import sqlalchemy
from sqlalchemy.dialects import postgresql
from sqlalchemy.schema import CreateIndex, CreateTable

from anysam.errors import MissingExtraError, OptionError, OutputError
from anysam.masks import decode_rle
from anysam.serve.projects import annotations, history, operations
from anysam.serve.projects.database import default_path, open_projects
from anysam.serve.projects.errors import ProjectError
from anysam.serve.projects.tables import metadata
from projects_app import Server, body, box_mask, new_database, png
from projects_writer import SIZE, item_of, mask_of, picture

only_sqlite = pytest.mark.skipif(
    "ANYSAM_TEST_POSTGRESQL" in os.environ, reason="about SQLite's file; ANYSAM_TEST_POSTGRESQL is set"
)


def on_postgresql():
    return bool(os.environ.get("ANYSAM_TEST_POSTGRESQL"))


def start_writer(database, *arguments):
    program = Path(__file__).with_name("projects_writer.py")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(program), str(database), *map(str, arguments)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True)


def run_until_killed(database, seed, lines, seconds):
    """What a writer said before it was killed, `seconds` after it has said so many lines."""
    process = start_writer(database, seed)
    said = [process.stdout.readline() for _ in range(lines)]
    time.sleep(seconds)
    process.send_signal(signal.SIGKILL)
    rest, _ = process.communicate(timeout=30)
    assert process.returncode == -signal.SIGKILL
    if on_postgresql():
        time.sleep(0.5)  # a server goes on with what it was told last
    # What is cut off by the kill is no whole line, and was not said.
    return [line.split() for line in ("".join(said) + rest).splitlines(keepends=True) if line.endswith("\n")]


def test_what_was_acknowledged_survives_sigkill(tmp_path):
    database = new_database(tmp_path)
    rng = random.Random(20)
    acknowledged = 0
    for seed in range(2 if on_postgresql() else 5):
        words = run_until_killed(database, seed, rng.randint(1, 25), rng.uniform(0, 0.05))
        said = dict(pair for pair in words if pair[0] != "saved")
        saved = [int(number) for word, number in words if word == "saved"]
        acknowledged += len(saved)
        projects = open_projects(database)
        assert operations.get_project(projects, said["project"]).name == f"seed {seed}"
        if "image" in said:
            file = operations.read_image_file(projects, said["project"], said["image"])
            assert file.data == picture(seed)
            found, _ = annotations.list_annotations(projects, said["project"], said["image"])
            numbers = [int(each.id, 16) for each in found]
            assert set(saved) <= set(numbers)
            # At most the one request that was under way is there without having been acknowledged.
            assert numbers == list(range(len(numbers))) and len(numbers) - len(saved) <= 3
            for annotation in found:
                number = int(annotation.id, 16)
                form = {"size": annotation.segmentation.size, "counts": annotation.segmentation.counts}
                assert np.array_equal(decode_rle(form), mask_of(number)) and annotation.label == f"number {number}"
            events, after = [], 0
            while after is not None:
                page, after = history.list_events(projects, said["project"], after, 1000)
                events += page
            assert [event.annotation_id for event in events if event.annotation_id] == [each.id for each in found]
        projects.close()
        if not on_postgresql():
            with sqlite3.connect(database) as connection:
                assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
                assert connection.execute("PRAGMA foreign_key_check").fetchall() == []
    assert acknowledged > 5


def test_two_writers_lose_nothing_and_number_their_changes_without_gaps(tmp_path):
    server = Server(tmp_path)
    project = server.project()
    image = server.image(project, png(SIZE, 0))
    other = open_projects(server.projects.url if not on_postgresql() else _with_password(server))
    failures = []

    def write(projects, numbers):
        try:
            for number in numbers:
                annotations.put_annotation(projects, project, image, item_of(number))
        except Exception as error:
            failures.append(error)

    shares = [(server.projects, range(0, 20)), (server.projects, range(20, 40)), (other, range(40, 60))]
    threads = [threading.Thread(target=write, args=share) for share in shares]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert sorted(int(each["id"], 16) for each in server.annotations(project, image)) == list(range(60))
    assert [event["seq"] for event in server.events(project)] == list(range(1, 63))
    other.close()


def test_two_processes_lose_nothing_and_number_their_changes_without_gaps(tmp_path):
    database = new_database(tmp_path)
    server = Server(tmp_path, db=database)
    project = server.project()
    image = server.image(project, png(SIZE, 0))
    writers = [start_writer(database, first, project, image, 25) for first in (0, 100)]
    assert [writer.stdout.readline() for writer in writers] == ["ready\n", "ready\n"]
    for writer in writers:  # both at once, and this process between
        writer.stdin.write("\n")
        writer.stdin.flush()
    for number in range(200, 210):
        annotations.put_annotation(server.projects, project, image, item_of(number))
    for writer in writers:
        writer.communicate(timeout=60)
        assert writer.returncode == 0
    expected = [*range(25), *range(100, 125), *range(200, 210)]
    found = server.annotations(project, image)
    assert sorted(int(each["id"], 16) for each in found) == expected
    assert [event["seq"] for event in server.events(project)] == list(range(1, 63))
    order = [int(each["id"], 16) // 100 for each in found]
    assert any(a != b for a, b in zip(order[:40], order[1:40], strict=False))  # by turns, not one after the other


def _with_password(server):
    return server.projects._engine.url.render_as_string(hide_password=False)


def test_of_two_writers_with_one_version_one_wins(tmp_path):
    server = Server(tmp_path)
    project = server.project()
    image = server.image(project, png(SIZE, 0))
    saved, _ = annotations.put_annotation(server.projects, project, image, item_of(1))
    barrier, outcomes = threading.Barrier(4), []

    def write(number):
        item = dataclasses.replace(item_of(number), id=saved.id)
        barrier.wait()
        try:
            annotations.put_annotation(server.projects, project, image, item, [saved.version])
            outcomes.append("saved")
        except ProjectError as error:
            outcomes.append(error.status)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(2, 6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes, key=str) == [412, 412, 412, "saved"]


@only_sqlite
def test_a_full_disk_is_507_and_leaves_everything_as_it_was(tmp_path):
    server = Server(tmp_path)
    project = server.project()
    image = server.image(project, png(SIZE, 0))
    server.put(project, image, mask_of(1))
    before = server.annotations(project, image), server.events(project), server.ask("GET", f"/{project}")
    with sqlite3.connect(tmp_path / "projects.sqlite") as connection:
        (pages,) = connection.execute("PRAGMA page_count").fetchone()

    def fill(connection, record, proxy):
        connection.execute(f"PRAGMA max_page_count={pages + 2}")

    sqlalchemy.event.listen(server.projects._engine, "checkout", fill)
    big = np.random.default_rng(0).random(SIZE) > 0.5
    for _ in range(3):
        put = [{"id": f"{number:032x}", **body(big)} for number in range(20)]
        server.ask("POST", f"/{project}/images/{image}/annotations/batch", 507, json={"put": put})
        server.ask("POST", f"/{project}/images", 507, content=png((300, 300), 1))
    assert (server.annotations(project, image), server.events(project), server.ask("GET", f"/{project}")) == before
    sqlalchemy.event.remove(server.projects._engine, "checkout", fill)

    def empty(connection, record, proxy):
        connection.execute("PRAGMA max_page_count=1000000")

    sqlalchemy.event.listen(server.projects._engine, "checkout", empty)
    server.ask("POST", f"/{project}/images/{image}/annotations/batch", json={"put": put})


def test_a_full_disk_for_temporary_files_is_507(tmp_path, monkeypatch):
    server = Server(tmp_path)
    project = server.project()
    image = server.image(project, png(SIZE, 0))
    server.put(project, image, mask_of(1))
    document = server.ask("GET", f"/{project}/export", params={"format": "coco"})

    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("shutil.copyfileobj", full)
    for kind in ("coco", "labels"):
        server.ask("GET", f"/{project}/export", 507, params={"format": kind})
    server.ask("POST", f"/{project}/import", 507, files={"file": ("a.json", json.dumps(document))})


@only_sqlite
def test_a_writer_that_waits_too_long_is_told_to_come_back(tmp_path, monkeypatch):
    monkeypatch.setattr("anysam.serve.projects.database._WAIT_SECONDS", 0.2)
    server = Server(tmp_path)
    with sqlite3.connect(tmp_path / "projects.sqlite") as connection:
        connection.execute("BEGIN IMMEDIATE")
        with pytest.raises(ProjectError) as caught:
            operations.create_project(server.projects, "a")
        assert caught.value.status == 503 and caught.value.retry_after
        assert operations.list_projects(server.projects) == ([], None)  # readers do not wait
    operations.create_project(server.projects, "a")


@only_sqlite
def test_sqlite_is_opened_for_durability(tmp_path):
    server = Server(tmp_path)
    with server.projects.reading() as connection:
        settings = ("journal_mode", "synchronous", "foreign_keys", "busy_timeout", "auto_vacuum")
        found = [connection.exec_driver_sql(f"PRAGMA {name}").scalar() for name in settings]
    assert found == ["wal", 2, 1, 30_000, 2]


@only_sqlite
def test_after_close_the_one_file_is_everything(tmp_path):
    server = Server(tmp_path)
    project = server.project()
    server.image(project)
    server.projects.close()
    assert [path.name for path in tmp_path.iterdir()] == ["projects.sqlite"]
    (tmp_path / "projects.sqlite").rename(tmp_path / "moved.sqlite")
    found, _ = operations.list_images(open_projects(tmp_path / "moved.sqlite"), project)
    assert len(found) == 1


@only_sqlite
def test_deleted_images_give_their_space_back(tmp_path):
    server = Server(tmp_path)
    project = server.project()
    image = server.image(project, png((600, 600), 1))
    server.ask("DELETE", f"/{project}/images/{image}", 204)
    server.projects.close()
    assert (tmp_path / "projects.sqlite").stat().st_size < 200_000


@only_sqlite
def test_a_newer_schema_is_refused(tmp_path):
    path = tmp_path / "projects.sqlite"
    open_projects(path).close()
    open_projects(path).close()
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE anysam_schema SET version = 2")
    with pytest.raises(OptionError, match="version 2.*knows up to 1.*upgrade"):
        open_projects(path)


@only_sqlite
def test_databases_and_files_of_others_are_refused_untouched(tmp_path):
    theirs = tmp_path / "theirs.sqlite"
    with sqlite3.connect(theirs) as connection:
        connection.execute("CREATE TABLE notes (text)")
    text = tmp_path / "text.sqlite"
    text.write_text("not a database, but long enough to be looked at " * 10)
    for path in (theirs, text):
        before = path.read_bytes()
        with pytest.raises(OptionError, match="choose another file"):
            open_projects(path)
        assert path.read_bytes() == before


@pytest.mark.parametrize(
    "db",
    ["mysql://host/db", "sqlite://", "sqlite:///:memory:", "sqlite:///a?mode=ro", "://", "", "a\0b"],
)
def test_urls_of_other_kinds_are_refused(db):
    with pytest.raises(OptionError):
        open_projects(db)


def test_a_folder_that_cannot_be_made_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be made"):
        open_projects(tmp_path / "file" / "projects.sqlite")
    with pytest.raises(OptionError, match="cannot be opened"):
        open_projects(tmp_path)


def test_postgresql_without_its_driver_names_the_install_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'anysam\[postgresql\]'"):
        open_projects("postgresql://user:secret@localhost/anysam")


def test_a_password_is_not_shown(monkeypatch):
    with pytest.raises((OptionError, MissingExtraError)) as caught:
        open_projects("postgresql://user:secret@localhost:1/anysam")
    assert "secret" not in str(caught.value)


def test_projects_are_kept_where_people_do_not_empty_caches(tmp_path, monkeypatch):
    monkeypatch.setenv("ANYSAM_HOME", str(tmp_path))
    assert default_path() == tmp_path / "projects.sqlite"
    monkeypatch.delenv("ANYSAM_HOME")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    if sys.platform == "linux":
        assert default_path() == tmp_path / "data" / "anysam" / "projects.sqlite"


def test_the_tables_are_postgresqls_too():
    dialect = postgresql.dialect()
    statements = [str(CreateTable(table).compile(dialect=dialect)) for table in metadata.sorted_tables]
    statements += [
        str(CreateIndex(index).compile(dialect=dialect)) for t in metadata.sorted_tables for index in t.indexes
    ]
    assert len(statements) == 11
    together = "\n".join(statements)
    assert "data BYTEA NOT NULL" in together and "predicted_iou DOUBLE PRECISION" in together
    assert "SERIAL" not in together


def test_an_area_larger_than_32_bits_is_kept(tmp_path):
    server = Server(tmp_path)
    project = server.project()
    image = server.image(project)
    side = 60_000
    with server.projects.writing() as connection:
        connection.exec_driver_sql(f"UPDATE images SET height = {side}, width = {side}")
    item = {"segmentation": {"size": [side, side], "counts": [0, side * side]}, "source": "brush"}
    path = f"/{project}/images/{image}/annotations/{'a' * 32}"
    server.ask("PUT", path, 422, json=item)  # a run longer than any image has pixels
    item["segmentation"]["counts"] = [0, side * side // 40] + [0, side * side // 40] * 39
    assert server.ask("PUT", path, 201, json=item)["area"] == side * side


def test_box_of_a_mask(tmp_path):
    server = Server(tmp_path)
    project = server.project()
    image = server.image(project, png(SIZE, 1))
    assert server.put(project, image, box_mask(SIZE, 3, 4, 50, 60))["box"] == [3, 4, 50, 60]
