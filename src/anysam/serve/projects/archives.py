"""Zip files from strangers: looked at before anything is unpacked, and unpacked one entry at a time, bounded.

No name in them ever becomes a path: an entry is read where it is, and written under a name that is chosen here.
"""

import stat
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from anysam.serve.projects.bodies import ProjectLimits
from anysam.serve.projects.errors import ProjectError, refused

_CHUNK = 1024**2
_ENTRY = b"PK\x01\x02"  # what the description of an entry begins with
_SIGNATURES = (b"PK\x03\x04", b"PK\x05\x06")  # of a zip file with entries, and of one without
# Others ask for as much memory as their headers say.
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, NotImplementedError, RuntimeError)


def is_archive(file: BinaryIO) -> bool:
    """Whether a file begins like a zip file."""
    file.seek(0)
    return file.read(4) in _SIGNATURES


@contextmanager
def opened_archive(file: BinaryIO, limits: ProjectLimits) -> Iterator[tuple[zipfile.ZipFile, list[zipfile.ZipInfo]]]:
    """A zip file and those of its entries that are files, by name. Nothing is unpacked.

    Raises ProjectError: 413 for too many entries or too much in them, 422 for a damaged or encrypted file, for paths
    that lead out of it, for links and other things that are no files, and for two entries of one name.
    """
    if _count_entries(file) > limits.max_entries:
        raise ProjectError(413, f"The zip file has too many entries; at most {limits.max_entries:,} are accepted.")
    try:
        archive = zipfile.ZipFile(file)
    except _DAMAGE as error:
        raise refused(f"The zip file cannot be read: {error}.") from error
    with archive:
        entries = [entry for entry in archive.infolist() if not entry.is_dir()]
        for entry in archive.infolist():
            _check(entry)
        if len({entry.filename for entry in entries}) < len(entries):
            raise refused("The zip file has two entries of one name.")
        if sum(entry.file_size for entry in entries) > limits.unpacked_bytes:
            raise ProjectError(
                413, f"The zip file unpacks to too much; at most {limits.unpacked_bytes:,} bytes are accepted."
            )
        yield archive, sorted(entries, key=lambda entry: entry.filename)


def unpack(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, path: Path, limit: int) -> None:
    """Write an entry to `path`. Raises ProjectError: 413 for more than `limit` bytes, 422 for a damaged entry."""
    taken = 0
    try:
        source = archive.open(entry)
    except _DAMAGE as error:
        raise refused(f"{entry.filename} in the zip file cannot be read: {error}.") from error
    with source, open(path, "wb") as target:
        while True:
            try:
                chunk = source.read(_CHUNK)
            except _DAMAGE as error:
                raise refused(f"{entry.filename} in the zip file is damaged: {error}.") from error
            if not chunk:
                return
            taken += len(chunk)
            if taken > limit:
                raise ProjectError(413, f"{entry.filename} is too large; at most {limit:,} bytes a file are accepted.")
            target.write(chunk)


def _check(entry: zipfile.ZipInfo) -> None:
    name = entry.filename.replace("\\", "/")
    parts = name.split("/")
    if name.startswith("/") or ".." in parts or name[1:2] == ":":
        raise refused(f"The zip file has an entry whose path leads out of it: {entry.filename[:100]!r}.")
    kind = stat.S_IFMT(entry.external_attr >> 16)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise refused(f"The zip file has a link or something else that is no file: {entry.filename[:100]!r}.")
    if entry.flag_bits & 0x1:
        raise refused(f"The zip file is encrypted: {entry.filename[:100]!r}; unlock it first.")
    if entry.compress_type not in _METHODS:
        raise refused(f"The zip file is packed in a way that is not accepted: {entry.filename[:100]!r}; use deflate.")


def _count_entries(file: BinaryIO) -> int:
    """At least as many as the file has. Opening it makes an object of each, so they are counted before."""
    file.seek(0)
    count, rest = 0, b""
    while chunk := file.read(_CHUNK):
        data = rest + chunk
        count += data.count(_ENTRY)
        rest = data[-(len(_ENTRY) - 1) :]
    file.seek(0)
    return count
