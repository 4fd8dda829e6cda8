"""What is finished, so that an interrupted run can go on: one record for each image, in the folder .anysam beside it.

A record says which image it was, under which settings, and what was written, each with its SHA-256. It is written after
the files. An image counts as finished when all of that is still true; so neither a file that was lost, changed or cut
short, nor another image under the same name, nor other settings pass for done. The files of an image appear together:
they are made in a folder of their own and moved when the last one is complete.
"""

import hashlib
import json
import os
import secrets
import shutil
import stat
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from anysam.commands.interrupts import interrupts_deferred
from anysam.errors import OutputError

FOLDER = ".anysam"

_FORMAT = "anysam-finished-1"
_LARGEST_RECORD = 64_000_000  # bytes; a hundred thousand files
_ABANDONED = 24 * 3600  # seconds after which the unfinished files of a process that was killed are removed


@dataclass(frozen=True)
class FileFacts:
    """A file's path (absolute for an image, relative to the results' folder for a result), size and SHA-256."""

    path: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Record:
    """One finished image. settings: JSON values by name, all that the results depend on; "formats" is one of them."""

    image: FileFacts
    settings: dict[str, Any]
    files: tuple[FileFacts, ...]


@dataclass(frozen=True)
class Verdict:
    """Whether an image is finished and whole, its files then, and else the reason; "" when it was never done."""

    finished: bool
    reason: str = ""
    files: tuple[Path, ...] = ()


def image_facts(image: Path) -> FileFacts | None:
    """Path, size and hash of an image file; None when it cannot be read, which reading it will explain."""
    return _facts(image, os.path.abspath(image))


def read_record(out: Path, stem: str) -> Record | None:
    """The record of the image whose files begin with `stem`; None without one. Raises ValueError when it is damaged."""
    path = _record_path(out, stem)
    try:
        if path.stat().st_size > _LARGEST_RECORD:
            raise ValueError("too large")
        form = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, RecursionError) as error:
        raise ValueError(str(error)) from error
    try:
        record = Record(
            FileFacts(**form["image"]), dict(form["settings"]), tuple(FileFacts(**each) for each in form["files"])
        )
        whole = form["format"] == _FORMAT and form["check"] == _check(record)
        whole = whole and all(_stays_inside(facts.path) for facts in record.files)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(str(error)) from error
    if not whole:
        raise ValueError("altered")
    return record


def verify(out: Path, stem: str, image: FileFacts | None, settings: Mapping[str, Any]) -> Verdict:
    """Whether the results of an image are all there, as they were written, for this image and these settings."""
    try:
        record = read_record(out, stem)
    except ValueError:
        return Verdict(False, "its record is damaged")
    if record is None:
        return Verdict(False)
    if image is None or (image.bytes, image.sha256) != (record.image.bytes, record.image.sha256):
        return Verdict(False, "the image has changed")
    if change := _difference(record.settings, json.loads(json.dumps(settings))):
        return Verdict(False, f"the settings have changed: {change}")
    for facts in record.files:
        found = _facts(out / facts.path, facts.path)
        if found is None:
            return Verdict(False, f"{facts.path} is missing")
        if found != facts:
            return Verdict(False, f"{facts.path} is not what was written")
    return Verdict(True, files=tuple(out / facts.path for facts in record.files))


def assign_stems(images: Sequence[Path], out: Path) -> list[str]:
    """A file-name stem for each image: the one it had in `out`, else a new one that no image of `out` has.

    So a list of images that has grown or shrunk finds its results again. An image that was moved, so that there is
    nothing any more where it was, is told by its content.
    """
    from anysam.outputs import output_stems

    taken: list[str] = []
    stems: dict[str, str] = {}  # by path
    moved: dict[tuple[int, str], str] = {}  # by size and hash
    for stem, record in _records(out):
        taken.append(stem)
        stems[record.image.path] = stem
        if not os.path.exists(record.image.path):
            moved[record.image.bytes, record.image.sha256] = stem
    sizes = {size for size, _ in moved}
    known: dict[Path, str] = {}
    for image in images:
        found = stems.get(os.path.abspath(image))
        if found is None and _size(image) in sizes and (facts := image_facts(image)):
            found = moved.pop((facts.bytes, facts.sha256), None)
        if found is not None:
            known[image] = found
    # Names in use come first and so keep what they have.
    new = [image for image in images if image not in known]
    fresh = output_stems([f"{stem}.x" for stem in taken] + [str(image) for image in new])[len(taken) :]
    known.update(zip(new, fresh, strict=True))
    return [known[image] for image in images]


@contextmanager
def staging(out: Path) -> Iterator[Path]:
    """A new folder inside `out`, removed with all in it at the end, whatever happens. Raises OutputError.

    An OutputError from inside names the place where the file was to appear at last.
    """
    from anysam.outputs import make_folder

    folder = out / FOLDER / f"{secrets.token_hex(8)}.partial"
    make_folder(folder)
    try:
        yield folder
    except OutputError as error:
        raise OutputError(str(error).replace(str(folder), str(out))) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def publish(
    folder: Path, out: Path, stem: str, image: FileFacts | None, settings: Mapping[str, Any]
) -> dict[Path, Path]:
    """Move all files of a `staging` folder to `out`, record that the image is finished: old place -> new place.

    Files of an earlier run in the same formats that this one did not write again, such as the masks beyond the last,
    are removed if nobody changed them. Ctrl-C waits until all is in place. Without `image` there is no record.
    Raises OutputError.
    """
    made = sorted(path for path in folder.rglob("*") if path.is_file())
    moves = {path: out / path.relative_to(folder) for path in made}
    files = tuple(facts for path in made if (facts := _facts(path, path.relative_to(folder).as_posix())))
    earlier = _earlier(out, stem, settings)
    with interrupts_deferred():
        try:
            _record_path(out, stem).unlink(missing_ok=True)
            for facts in earlier:
                if facts not in files and _facts(out / facts.path, facts.path) == facts:
                    (out / facts.path).unlink()
            for path, target in moves.items():
                target.parent.mkdir(parents=True, exist_ok=True)
                os.replace(path, target)
        except OSError as error:
            raise OutputError(f"{error.filename2 or error.filename} cannot be written: {error.strerror}.") from error
        if image is not None:
            _write_record(_record_path(out, stem), Record(image, json.loads(json.dumps(settings)), files))
    return moves


def remove_abandoned(out: Path) -> None:
    """Remove what processes that were killed left unfinished in `out`, if it is older than a day."""
    for folder in (out / FOLDER).glob("*.partial"):
        try:
            if time.time() - folder.stat().st_mtime > _ABANDONED:
                shutil.rmtree(folder, ignore_errors=True)
        except OSError:
            continue  # another process removed it first


def _earlier(out: Path, stem: str, settings: Mapping[str, Any]) -> tuple[FileFacts, ...]:
    """The files of the run before, if it wrote no format that this one does not write."""
    try:
        record = read_record(out, stem)
    except ValueError:
        return ()
    if record is None or not set(record.settings.get("formats", ())) <= set(settings["formats"]):
        return ()
    return record.files


def _records(out: Path) -> Iterator[tuple[str, Record]]:
    """Stem and record of each finished image, the latest last, without the damaged ones."""
    for path in sorted((out / FOLDER).glob("*.json"), key=lambda path: (path.lstat().st_mtime_ns, path.name)):
        stem = path.name.removesuffix(".json")
        try:
            record = read_record(out, stem)
        except ValueError:
            continue
        if record is not None:
            yield stem, record


def _write_record(path: Path, record: Record) -> None:
    from anysam.atomic import write_atomic

    form = {"format": _FORMAT, **asdict(record), "check": _check(record)}
    data = json.dumps(form).encode()
    write_atomic(path, lambda file: file.write(data))


def _check(record: Record) -> str:
    return hashlib.sha256(json.dumps(asdict(record), sort_keys=True).encode()).hexdigest()


def _record_path(out: Path, stem: str) -> Path:
    return out / FOLDER / f"{stem}.json"


def _stays_inside(path: str) -> bool:
    """Whether a relative path leads nowhere but below its folder: records are files that anybody can write."""
    parts = PurePosixPath(path).parts
    return bool(parts) and not path.startswith("/") and not {"..", FOLDER} & set(parts) and "\\" not in path


def _facts(path: Path, name: str) -> FileFacts | None:
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            return None
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256")
            return FileFacts(name, file.tell(), digest.hexdigest())
    except (OSError, ValueError):  # a NUL in the name is a ValueError
        return None


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except (OSError, ValueError):
        return None


def _difference(earlier: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """The first setting that differs, in words; "" when none does."""
    for name in [*now, *(name for name in earlier if name not in now)]:
        if earlier.get(name) != now.get(name):
            return f"{name} {json.dumps(now.get(name))}, was {json.dumps(earlier.get(name))}"
    return ""
