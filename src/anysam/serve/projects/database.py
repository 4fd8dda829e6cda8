"""Opens the database of projects, SQLite or PostgreSQL, and holds all in which the two differ. No SQL of projects."""

import os
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import sqlalchemy
from platformdirs import user_data_path
from sqlalchemy import Connection, Engine, event, exc, insert, inspect, select, text
from sqlalchemy.engine import URL, make_url

from anysam.errors import MissingExtraError, OptionError, OutputError
from anysam.home import home
from anysam.serve.projects.errors import ProjectError
from anysam.serve.projects.tables import SCHEMA_VERSION, metadata, schema_facts

FILE_NAME = "projects.sqlite"
CONNECTIONS = 12  # at most open at once
_WAIT_SECONDS = 30  # for another writer, or for a connection
_CONNECT_SECONDS = 10  # for a server to answer at all
_WRITES = "anysam_writes"  # an execution option of connections
_LOCK_NUMBER = 0x616E7973616D  # of PostgreSQL's advisory locks: one process at a time makes the tables
_MARK = 0x616E7973  # SQLite's application_id: tells our files from others

# SQLite's primary result codes.
_BUSY, _LOCKED, _READONLY, _IOERR, _CORRUPT, _FULL, _CANTOPEN, _TOOBIG, _NOTADB = 5, 6, 8, 10, 11, 13, 14, 18, 26


class Projects:
    """An open database. `reading` and `writing` are transactions; threads and processes may use it together.

    url: without its password, for messages. Made by `open_projects`.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._is_sqlite = engine.dialect.name == "sqlite"
        # SQLite has one writer at a time and polls for its turn; among threads a lock is quicker and fair.
        self._turn = threading.Lock()
        self.url = engine.url.render_as_string(hide_password=True)

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A transaction that sees the database as it is at its beginning. Raises ProjectError when that fails."""
        with _failures_told(), self._engine.connect() as connection:
            if not self._is_sqlite:
                connection = connection.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
            with connection.begin():
                yield connection

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """A transaction that is on disk when the block has ended; undone when the block raises.

        Raises ProjectError: 507 when the disk is full, 503 when others write for too long.
        """
        with _failures_told(), self._my_turn(), self._engine.connect() as connection:
            connection = connection.execution_options(**{_WRITES: True})
            with connection.begin():
                if not self._is_sqlite:  # SQLite has its busy_timeout
                    connection.exec_driver_sql(f"SET LOCAL lock_timeout = {int(_WAIT_SECONDS * 1000)}")
                yield connection

    def give_space_back(self) -> None:
        """Return the space of what was deleted to the file system, if that is possible now, else another time.

        PostgreSQL does so by itself.
        """
        if self._is_sqlite:
            # The deletion is done; that its space stays in the file for now is no failure of it.
            with (
                suppress(ProjectError, exc.SQLAlchemyError, sqlite3.Error),
                self._my_turn(),
                self._engine.connect() as connection,
            ):
                driver = connection.connection.driver_connection
                assert driver is not None
                driver.executescript("PRAGMA incremental_vacuum")  # execute() would free a single page

    def close(self) -> None:
        """Close all connections; SQLite's log is merged into its file first, so that the one file is everything."""
        if self._is_sqlite:
            # Where it fails, the log stays beside the file and is merged when that is opened next.
            with suppress(exc.DBAPIError, sqlite3.Error), self._engine.connect() as connection:
                driver = connection.connection.driver_connection
                assert driver is not None
                driver.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        self._engine.dispose()

    @contextmanager
    def _my_turn(self) -> Iterator[None]:
        if not self._is_sqlite:
            yield
            return
        if not self._turn.acquire(timeout=_WAIT_SECONDS):
            raise _busy()
        try:
            yield
        finally:
            self._turn.release()


def default_path() -> Path:
    """Where projects are kept without --db: in `ANYSAM_HOME` if set, else in the user's data folder.

    Not in the cache folder that other things are kept in: people empty caches.
    """
    folder = home() if os.environ.get("ANYSAM_HOME") else user_data_path("anysam", appauthor=False)
    return folder / FILE_NAME


def open_projects(db: str | Path | None = None) -> Projects:
    """Open the database of projects, made if missing.

    db: None for `default_path`; the path of a SQLite file; or a URL, sqlite:///FILE or postgresql://USER@HOST/NAME.
    Raises OptionError for another kind of URL, for a file that is no database of projects, for one of a newer version
    and for a server that cannot be reached; MissingExtraError without PostgreSQL's driver; OutputError when the
    file cannot be made.
    """
    url = _to_url(default_path() if db is None else db)
    is_sqlite = url.get_backend_name() == "sqlite"
    engine = _sqlite_engine(url) if is_sqlite else _postgresql_engine(url)
    shown = url.render_as_string(hide_password=True) if not is_sqlite else str(url.database)
    try:
        if is_sqlite:
            _prepare_file(engine, shown)
        _make_tables(engine, shown)
    except exc.DBAPIError as error:
        engine.dispose()
        if isinstance(error.orig, sqlite3.Error) and _code(error.orig) == _NOTADB:
            raise OptionError(f"{shown} is no database of projects; choose another file.") from error
        raise OptionError(f"The projects in {shown} cannot be opened: {_first_line(error)}.") from error
    except BaseException:
        engine.dispose()
        raise
    return Projects(engine)


def _to_url(db: str | Path) -> URL:
    if isinstance(db, Path) or "://" not in db:
        if not str(db) or "\0" in str(db):
            raise OptionError(f"The database of projects must be a file or a URL, got {str(db)!r}.")
        return URL.create("sqlite", database=str(Path(db).expanduser().absolute()))
    try:
        url = make_url(db)
    except (exc.ArgumentError, ValueError) as error:
        raise OptionError("--db is no URL; sqlite:///FILE and postgresql://USER@HOST/NAME are accepted.") from error
    if url.drivername == "sqlite":
        if not url.database or url.database == ":memory:" or url.query:
            raise OptionError(f"--db {db} names no file; sqlite:////home/me/{FILE_NAME} does, without a query.")
        return url.set(database=str(Path(url.database).absolute()))
    if url.drivername in ("postgresql", "postgresql+psycopg", "postgres"):
        return url.set(drivername="postgresql+psycopg")
    raise OptionError(
        f"--db of the kind {url.drivername} is not known; sqlite:///FILE and postgresql://USER@HOST/NAME are accepted."
    )


def _sqlite_engine(url: URL) -> Engine:
    path = Path(str(url.database))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"The folder {path.parent} of the projects cannot be made: {error.strerror}.") from error
    engine = sqlalchemy.create_engine(
        url,
        pool_size=CONNECTIONS,
        max_overflow=0,
        pool_timeout=_WAIT_SECONDS,
        connect_args={"timeout": _WAIT_SECONDS, "check_same_thread": False},
    )
    event.listen(engine, "connect", _prepare_connection)
    event.listen(engine, "begin", _begin)
    return engine


def _prepare_connection(connection: sqlite3.Connection, _: object) -> None:
    connection.isolation_level = None  # transactions begin where `_begin` says, not where the driver guesses
    for pragma in ("foreign_keys=ON", "synchronous=FULL", f"busy_timeout={_WAIT_SECONDS * 1000}", "trusted_schema=OFF"):
        connection.execute(f"PRAGMA {pragma}")


def _begin(connection: Connection) -> None:
    # A writer that begins as a reader may find that it cannot go on: it takes its turn at once.
    writes = connection.get_execution_options().get(_WRITES, False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _prepare_file(engine: Engine, shown: str) -> None:
    """Settings that stay in a SQLite file, and a look at whether it is ours. Raises OptionError."""
    with engine.connect() as connection:
        driver: Any = connection.connection.driver_connection
        try:
            # In this order: another process that is making the file marks it before it has tables.
            (tables,) = driver.execute("SELECT count(*) FROM sqlite_master").fetchone()
            (mark,) = driver.execute("PRAGMA application_id").fetchone()
            if tables and mark != _MARK:
                raise OptionError(f"{shown} is a database of another program; choose another file.")
            if not tables:
                driver.execute("PRAGMA auto_vacuum=INCREMENTAL")  # before the first table, or never
                driver.execute(f"PRAGMA application_id={_MARK}")
            driver.execute("PRAGMA journal_mode=WAL").fetchone()
        except sqlite3.Error as error:
            raise OptionError(f"The projects in {shown} cannot be opened: {error}.") from error


def _postgresql_engine(url: URL) -> Engine:
    seconds = {} if "connect_timeout" in url.query else {"connect_timeout": _CONNECT_SECONDS}
    try:
        return sqlalchemy.create_engine(
            url,
            pool_size=CONNECTIONS,
            max_overflow=0,
            pool_timeout=_WAIT_SECONDS,
            pool_pre_ping=True,
            connect_args=seconds,
        )
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            "Projects in PostgreSQL need its driver, which is not installed: pip install 'anysam[postgresql]'"
        ) from error


def _make_tables(engine: Engine, shown: str) -> None:
    """Make the tables of a new database; of an old one read its version. Raises OptionError for a newer one."""
    with engine.connect().execution_options(**{_WRITES: True}) as connection, connection.begin():
        if engine.dialect.name == "postgresql":
            connection.execute(text("SELECT pg_advisory_xact_lock(:number)"), {"number": _LOCK_NUMBER})
        if not inspect(connection).has_table(schema_facts.name):
            metadata.create_all(connection)
            connection.execute(insert(schema_facts).values(id=1, version=SCHEMA_VERSION))
        found = connection.execute(select(schema_facts.c.version)).scalar_one_or_none()
        if found is None or found > SCHEMA_VERSION:
            raise OptionError(
                f"The projects in {shown} are of version {found}, and this anysam knows up to {SCHEMA_VERSION}; "
                "they were made by a newer one: upgrade anysam, or choose another --db."
            )
        for table in metadata.sorted_tables:
            for index in sorted(table.indexes, key=lambda index: str(index.name)):
                index.create(connection, checkfirst=True)  # those that came later; they change nothing but the speed


@contextmanager
def _failures_told() -> Iterator[None]:
    """Failures of the database as ProjectError: what went wrong, and whether to try again."""
    try:
        yield
    except exc.TimeoutError as error:
        raise _busy() from error
    except exc.DBAPIError as error:
        raise _explained(error) from error


def _explained(error: exc.DBAPIError) -> Exception:
    original = error.orig
    if isinstance(original, sqlite3.Error):
        explain: dict[int, Callable[[], ProjectError]] = {
            _BUSY: _busy,
            _LOCKED: _busy,
            _FULL: _disk_full,
            _READONLY: lambda: ProjectError(507, "The projects' file is read-only; nothing was changed."),
            _IOERR: lambda: ProjectError(507, f"The projects' disk fails: {original}; nothing was changed."),
            _CANTOPEN: lambda: ProjectError(507, "The projects' file cannot be opened; nothing was changed."),
            _TOOBIG: lambda: ProjectError(413, "This is too large for the database of projects."),
            _CORRUPT: lambda: ProjectError(500, "The projects' file is damaged; stop the server, restore a backup."),
        }
        found = explain.get(_code(original))
        return found() if found else error
    state = str(getattr(original, "sqlstate", None) or "")
    if state == "53100":
        return _disk_full()
    # Connections that break, transactions that collide, a server without room or going down.
    if state.startswith(("08", "40", "53", "55P03", "57P")) or (not state and isinstance(error, exc.OperationalError)):
        return _busy()
    return error


def _code(error: sqlite3.Error) -> int:
    return int(getattr(error, "sqlite_errorcode", 0)) & 0xFF  # without the extension


def _busy() -> ProjectError:
    return ProjectError(503, "The database of projects is busy or away; nothing was changed, try again.", 5)


def _disk_full() -> ProjectError:
    return ProjectError(507, "The disk of the projects is full; nothing was changed. Free some space and try again.")


def _first_line(error: exc.DBAPIError) -> str:
    return " ".join(str(error.orig).split())[:300].rstrip(".")
