"""A change of a project: one transaction, and in it the record of what was changed; and the record read back."""

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Connection, Row, insert, select, update

from anysam.serve.projects.database import Projects
from anysam.serve.projects.errors import unknown
from anysam.serve.projects.items import Event, iso_time
from anysam.serve.projects.pages import read_page
from anysam.serve.projects.tables import history
from anysam.serve.projects.tables import projects as projects_table

_ROWS = 200  # kept before they are written


class Change:
    """One transaction on one project. Made by `changing`; every change of a row is recorded by `record`.

    now: its time, microseconds since 1970.
    """

    def __init__(self, connection: Connection, project_id: str, version: int) -> None:
        self.connection = connection
        self.project_id = project_id
        self.now = time.time_ns() // 1000
        self.version = version
        self._begun_at = version
        self._rows: list[dict[str, Any]] = []

    def record(
        self,
        action: str,
        after: Mapping[str, Any] | None,
        *,
        previous: int | None = None,
        image_id: str | None = None,
        annotation_id: str | None = None,
    ) -> None:
        """Note a change under the number that `next_version` gave. previous: the number of the change before it."""
        self._rows.append(
            {
                "project_id": self.project_id,
                "seq": self.version,
                "time": self.now,
                "action": action,
                "image_id": image_id,
                "annotation_id": annotation_id,
                "previous": previous,
                "after": None if after is None else json.dumps(after, separators=(",", ":"), allow_nan=False),
            }
        )
        if len(self._rows) >= _ROWS:
            self._write()

    def next_version(self) -> int:
        """A new number, for the row that changes and for its record."""
        self.version += 1
        return self.version

    def finish(self) -> None:
        """Write what is left, and the project's own row."""
        self._write()
        if self.version > self._begun_at:
            values = {"version": self.version, "updated_at": self.now}
            self.connection.execute(update(projects_table).where(projects_table.c.id == self.project_id).values(values))

    def _write(self) -> None:
        if self._rows:
            self.connection.execute(insert(history), self._rows)
            self._rows = []


@contextmanager
def changing(projects: Projects, project_id: str) -> Iterator[Change]:
    """A transaction on a project, on disk with its history when the block has ended. Raises ProjectError (404)."""
    with projects.writing() as connection:
        # The row is locked: changes of one project follow one another, and their numbers appear in order.
        version = connection.execute(
            select(projects_table.c.version).where(projects_table.c.id == project_id).with_for_update()
        ).scalar_one_or_none()
        if version is None:
            raise unknown("project", project_id)
        change = Change(connection, project_id, version)
        yield change
        change.finish()


def list_events(projects: Projects, project_id: str, after: int, limit: int) -> tuple[list[Event], int | None]:
    """At most `limit` changes that follow number `after`, fewer where they are large; and the number to go on after.

    That is None at the end. Raises ProjectError (404).
    """
    before = history.alias("before")
    query = (
        select(history, before.c.after.label("before"))
        .outerjoin(before, (before.c.project_id == history.c.project_id) & (before.c.seq == history.c.previous))
        .where(history.c.project_id == project_id, history.c.seq > after)
        .order_by(history.c.seq)
    )
    with projects.reading() as connection:
        found = connection.execute(select(projects_table.c.id).where(projects_table.c.id == project_id)).first()
        if found is None:
            raise unknown("project", project_id)
        rows, more = read_page(connection, query, limit, lambda row: len(row.before or "") + len(row.after or ""))
    return [_event(row) for row in rows], rows[-1].seq if more else None


def _event(row: Row) -> Event:
    return Event(
        seq=row.seq,
        time=iso_time(row.time),
        action=row.action,
        image_id=row.image_id,
        annotation_id=row.annotation_id,
        before=None if row.before is None else json.loads(row.before),
        after=None if row.after is None else json.loads(row.after),
    )
