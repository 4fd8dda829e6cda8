"""A PostgreSQL server of a test's own: in a temporary folder, reached by a socket in it and by nothing else."""

import os
import shutil
import subprocess
import tempfile
from contextlib import contextmanager
from pathlib import Path

_USER = "postgres"  # PostgreSQL refuses to run as root


def programs():
    """The folder of initdb and pg_ctl, of the newest version; None where PostgreSQL is not installed."""
    found = [path for path in Path("/usr/lib/postgresql").glob("*/bin") if (path / "initdb").is_file()]
    if found:
        return max(found, key=lambda path: float(path.parent.name))
    on_path = shutil.which("initdb")
    return Path(on_path).resolve().parent if on_path and shutil.which("pg_ctl") else None


def missing():
    """Why no server can be started, or None."""
    try:
        import psycopg  # noqa: F401
    except ImportError as error:
        return f"psycopg, PostgreSQL's driver, is not installed: {error}"
    if programs() is None:
        return "PostgreSQL is not installed (Debian's package postgresql)"
    if os.geteuid() == 0:
        import pwd

        try:
            pwd.getpwnam(_USER)
        except KeyError:
            return f"PostgreSQL does not run as root, and there is no user {_USER}"
    return None


class PostgresqlServer:
    """A running server. url: of its database postgres, for SQLAlchemy."""

    def __init__(self, folder):
        self._folder = folder
        self.url = f"postgresql+psycopg://{_USER}@/postgres?host={folder}"

    def start(self):
        # No disk is waited for: what is tested is not whether PostgreSQL survives a power cut.
        settings = f"-c listen_addresses='' -c unix_socket_directories={self._folder} -c max_connections=200 -F"
        self._run("pg_ctl", "-D", "data", "-w", "-l", "log", "-o", settings, "start")

    def stop(self, how="immediate"):
        self._run("pg_ctl", "-D", "data", "-w", "-m", how, "stop")

    def initialise(self):
        self._run("initdb", "-D", "data", "-A", "trust", "-U", _USER, "-E", "UTF8", "--locale=C", "--no-sync")

    def _run(self, program, *arguments):
        account = {"user": _USER, "group": _USER, "extra_groups": []} if os.geteuid() == 0 else {}
        with open(self._folder / "said", "w+b") as said:  # not a pipe, which the server would keep open
            done = subprocess.run(
                [programs() / program, *arguments],
                **{"cwd": self._folder, "stdout": said, "stderr": said, "timeout": 60, **account},
            )
            said.seek(0)
            assert done.returncode == 0, said.read().decode(errors="replace")


@contextmanager
def postgresql_server():
    """A server that is stopped, and its folder removed, when the block ends."""
    # Not pytest's folder: another user must be able to go there, and the name of a socket has at most 107 bytes.
    folder = Path(tempfile.mkdtemp(prefix="anysam-pg-", dir="/tmp"))
    try:
        if os.geteuid() == 0:
            shutil.chown(folder, _USER, _USER)
        server = PostgresqlServer(folder)
        server.initialise()
        server.start()
        try:
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
