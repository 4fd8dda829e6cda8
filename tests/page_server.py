"""The page's server and a real Chromium that uses it, for the page's tests."""

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from anysam.masks import decode_rle

ROOT = Path(__file__).parents[1]
IMAGE = ROOT / "examples" / "images" / "coffee.png"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def missing() -> str | None:
    """Why the page cannot be tried here, or None."""
    if CHROMIUM is None:
        return "Chromium is not installed (Debian: apt install chromium)"
    if shutil.which("node") is None or not (ROOT / "web" / "node_modules" / "playwright-core").is_dir():
        return "Node.js or web/node_modules is missing: make page"
    if not (ROOT / "src" / "anysam" / "serve" / "page" / "index.html").is_file():
        return "the page is not built: make page"
    return None


needs_page = pytest.mark.skipif(missing() is not None, reason=f"the page's tests are skipped: {missing()}")


def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of this run of the tests, the same for all of its processes."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "page"
    folder.mkdir(exist_ok=True)
    return folder


def once(tmp_path_factory: pytest.TempPathFactory, name: str, make: Callable[[Path], Any]) -> Any:
    """What `make` gives (JSON), tried once, by the first process that asks; it gets an empty folder."""
    folder = shared_folder(tmp_path_factory) / name
    with FileLock(folder.with_suffix(".lock")):
        if not folder.is_dir():
            folder.mkdir()
            (folder / "made.json").write_text(json.dumps(make(folder)))
    assert (folder / "made.json").is_file(), f"{name} failed before: its first test says why"
    return json.loads((folder / "made.json").read_text())


@contextlib.contextmanager
def serving(folder: Path, *options: str, environment: Mapping[str, str] | None = None) -> Iterator[str]:
    """`anysam app` with its projects and log in `folder`; its address."""
    words = [sys.executable, "-m", "anysam", "app", "--no-browser", "--port", "0", "--db", str(folder / "p.sqlite")]
    # Exported decoders are kept in a home: all servers of a run have the same one.
    home = {"ANYSAM_HOME": str(folder.parent / "home"), "OMP_NUM_THREADS": "1"}
    # Its log goes to a file: a pipe that nobody reads would fill up.
    log = folder / "stderr.txt"
    with log.open("w") as stderr:
        process = subprocess.Popen([*words, *options], stderr=stderr, env={**os.environ, **home, **(environment or {})})
    try:
        yield _announced(log, process)
    finally:
        process.kill()
        process.wait(10)


def _announced(log: Path, process: subprocess.Popen) -> str:
    """The address that the server says."""
    for _ in range(1800):
        found = re.search(r"at (http://\S+/) ", log.read_text())
        if found:
            return found[1]
        assert process.poll() is None, log.read_text()
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.1)
    raise AssertionError("the server did not start")


def browse(script: str, url: str, **options: str | Path) -> dict[str, Any]:
    """What a script of web/e2e saw. options: the script's own."""
    words = ["node", f"e2e/{script}", "--url", url, "--chromium", str(CHROMIUM)]
    words += [word for name, value in options.items() for word in (f"--{name}", str(value))]
    done = subprocess.run(words, cwd=ROOT / "web", capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def overlap(first: Mapping[str, Any], second: Mapping[str, Any]) -> float:
    """The IoU of two masks, given as COCO's run lengths."""
    one, other = decode_rle(dict(first)), decode_rle(dict(second))
    return float((one & other).sum() / (one | other).sum())
