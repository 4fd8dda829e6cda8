"""Projects in a PostgreSQL that is started here: the tests of SQLite once more, and what only a server can do."""

import os
import subprocess
import sys

import pytest
import sqlalchemy

from anysam.errors import OptionError
from anysam.serve.projects import annotations, operations
from anysam.serve.projects.database import open_projects
from anysam.serve.projects.errors import ProjectError
from postgresql_server import missing, postgresql_server
from projects_app import Server, new_database
from projects_writer import item_of, picture
from test_projects_database import (  # noqa: F401
    test_an_area_larger_than_32_bits_is_kept,
    test_of_two_writers_with_one_version_one_wins,
    test_two_processes_lose_nothing_and_number_their_changes_without_gaps,
    test_what_was_acknowledged_survives_sigkill,
)
from test_projects_files import (  # noqa: F401
    test_an_import_is_in_the_history_and_leaves_no_files,
    test_imported_twice_is_there_once,
)
from test_projects_pages import (  # noqa: F401
    listings,
    test_a_database_made_before_gets_the_indexes_that_pages_need,
    test_a_page_of_large_annotations_ends_early,
    test_pages_together_are_the_listing,
    test_projects_made_in_one_microsecond_are_all_listed,
    test_thousands_of_images_are_listed_by_pages_of_bounded_memory,
    test_what_is_added_and_removed_meanwhile_moves_no_other,
)
from test_projects_routes import (  # noqa: F401
    place,
    server,
    test_a_batch_is_all_or_nothing,
    test_a_name_is_that_of_one_category,
    test_an_annotation_is_saved_as_it_was_drawn,
    test_an_image_comes_back_byte_for_byte_with_the_type_found_in_it,
    test_deleting_a_category_leaves_its_annotations_without_one,
    test_deleting_takes_what_is_inside_with_it,
    test_history_replayed_is_what_is_there,
    test_the_same_bytes_are_kept_once_in_a_project,
)

REASON = missing()
pytestmark = pytest.mark.skipif(REASON is not None, reason=str(REASON))


@pytest.fixture(scope="module")
def postgresql():
    with postgresql_server() as running:
        yield running


@pytest.fixture(autouse=True)
def on_postgresql(postgresql, monkeypatch):
    monkeypatch.setenv("ANYSAM_TEST_POSTGRESQL", postgresql.url)


def test_a_server_that_falls_over_is_told_and_loses_nothing(tmp_path, postgresql):
    app = Server(tmp_path)
    assert app.projects.url.startswith("postgresql+psycopg://")
    project = app.project()
    image = app.image(project, picture(0))
    annotations.put_annotation(app.projects, project, image, item_of(1))
    postgresql.stop()
    try:
        with pytest.raises(ProjectError) as caught:
            annotations.put_annotation(app.projects, project, image, item_of(2))
        assert caught.value.status == 503 and caught.value.retry_after
        with pytest.raises(OptionError, match="cannot be opened"):
            open_projects(postgresql.url)
    finally:
        postgresql.start()
    annotations.put_annotation(app.projects, project, image, item_of(3))
    assert [int(each["id"], 16) for each in app.annotations(project, image)] == [1, 3]
    app.projects.close()


def test_a_writer_that_waits_too_long_is_told_to_come_back(tmp_path, monkeypatch):
    monkeypatch.setattr("anysam.serve.projects.database._WAIT_SECONDS", 0.2)
    app = Server(tmp_path)
    project = app.project()
    engine = sqlalchemy.create_engine(app.projects._engine.url)
    with engine.connect() as other, other.begin():
        other.exec_driver_sql("SELECT * FROM projects FOR UPDATE")
        with pytest.raises(ProjectError) as caught:
            operations.rename_project(app.projects, project, "b")
        assert caught.value.status == 503 and caught.value.retry_after
        assert operations.get_project(app.projects, project).name == "Cats"  # readers do not wait
    operations.rename_project(app.projects, project, "b")
    engine.dispose()
    app.projects.close()


def test_servers_that_start_at_once_make_the_tables_once(tmp_path):
    database = new_database(tmp_path)
    program = "import sys; from anysam.serve.projects.database import open_projects; open_projects(sys.argv[1]).close()"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    started = [subprocess.Popen([sys.executable, "-c", program, database], env=environment) for _ in range(3)]
    assert [each.wait(60) for each in started] == [0, 0, 0]
