"""Where weights, and the files beside them, are on this machine, and how they get there. Imports no torch.

Order: the package's own file, then the cache (`ANYSAM_HOME`, else the platform's cache folder), then a download.
A file appears in the cache under its name only when it is complete and its sha256 is right. Until then it is a `.part`
file, which the next try continues. Environment variables, read at each call:

ANYSAM_HOME     the folder that holds the cache.
ANYSAM_MIRROR   an http(s) address: files come from there, their name appended, instead of their published address.
ANYSAM_OFFLINE  set to 1: never connect.
"""

import hashlib
import http.client
import logging
import os
import re
import shutil
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from filelock import FileLock, Timeout

from anysam.catalogue import PACKAGE, RESOURCES, VARIANTS, Resource, Variant, find_resource
from anysam.errors import DownloadError, OptionError, WeightsError
from anysam.home import home as home  # the name that callers of this module use
from anysam.licences import allowed_licences, announce_licence, require_allowed

Progress = Callable[[int, int | None], None]
Published = Variant | Resource

_CHUNK = 1 << 20
_RETRIED_STATUS = (408, 425, 429, 500, 502, 503, 504)
_WEB_PAGE = (b"<!doctype", b"<html", b"<head", b"<?xml")
_WEB_PAGE_CAME = "a web page came instead of the file; check ANYSAM_MIRROR and whether a login page stands in between"

logger = logging.getLogger(__name__)


def embedded_path(row: Published) -> Path | None:
    """The file of `row` inside the installed package, or None."""
    package = Path(__file__).parent
    if isinstance(row, Variant):
        path = package / "weights" / f"{row.name}.safetensors"
    else:
        path = package / "describe" / "names" / row.file.name
    return path if path.is_file() else None


def cache_path(row: Published) -> Path:
    """Where the downloaded file of `row` is or would be."""
    return home() / ("weights" if isinstance(row, Variant) else "resources") / row.file.name


def locate(row: Published) -> Path | None:
    """The file of `row` on this machine: the package's own, else the cache's, else None. Never connects."""
    cached = cache_path(row)
    return embedded_path(row) or (cached if cached.is_file() else None)


def is_offline() -> bool:
    """Whether ANYSAM_OFFLINE forbids connecting."""
    return os.environ.get("ANYSAM_OFFLINE", "").lower() not in ("", "0", "false", "no")


def title(row: Published) -> str:
    """What a row stands for, in the words of a message: "weights of sam_vit_b", "vocabulary coco_80"."""
    return f"weights of {row.name}" if isinstance(row, Variant) else f"{row.noun} {row.name}"


def missing_parts(variant: Variant) -> tuple[Variant, ...]:
    """The published parts of a variant whose own file is not here, a row for each; none for other variants."""
    if locate(variant) is not None:
        return ()
    return tuple(replace(variant, file=part, parts=()) for part in variant.parts)


def file_sha256(path: Path) -> str:
    """The sha256 of a file's bytes, 64 lower-case hex digits. Raises WeightsError if it cannot be read."""
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
    except OSError as error:
        raise WeightsError(f"Cannot read the weights file {path}: {error.strerror or error}.") from error
    return digest.hexdigest()


def verify_weights(variant: Published, path: Path) -> str:
    """The sha256 of `path`, which holds what `variant` names in the package or the cache.

    Raises WeightsError with both hashes if it is not the published one or, where none is published, the one that was
    recorded at the download. The file is left as it is.
    """
    seen = file_sha256(path)
    expected = variant.file.sha256 or _recorded_sha256(path)
    if expected is not None and seen != expected:
        raise WeightsError(
            f"{path} is not the published file of {variant.name}: its sha256 is {seen}, expected {expected}; "
            f"it was left as it is: move it away and run `anysam fetch {variant.name}`, or pass its path to load it."
        )
    return seen


def fetch_weights(
    variant: Published,
    progress: Progress | None = None,
    *,
    timeout: float = 30.0,
    attempts: int = 4,
    pause: float = 1.0,
) -> Path:
    """The file of `variant`, a row of the catalogue, on this machine, downloaded if it is not here yet.

    progress(bytes so far, bytes in all or None) is called after each piece, starting where an earlier try ended.
    timeout: seconds without any data before a connection is given up. attempts: connections that may fail in a row
    without bringing anything new; before each further one is a pause (`pause` seconds, then twice that, ...).

    Two processes or threads at once are safe: the second waits for the first and finds its file.
    Raises DownloadError if it cannot be fetched; WeightsError if the file that is here has another hash.
    """
    here = locate(variant)
    if here is not None:
        verify_weights(variant, here)
        return here
    target = cache_path(variant)
    task = _Download(variant, _address(variant, target), target, progress, timeout)
    with _locked(target):
        if not target.is_file():  # else another process finished it while this one waited
            _download(task, attempts, pause)
    return target


def fetch_resource(
    name_or_path: str | Path,
    progress: Progress | None = None,
    allow: str | Iterable[str] | None = None,
    kinds: tuple[str, ...] = (),
) -> Path:
    """A file beside weights: one of the catalogue's RESOURCES on this machine, or the user's own.

    A name of RESOURCES takes the package's own file, else the cache, else a download (see `fetch_weights`). Anything
    that is a Path, exists, or looks like a path is the user's own file: it is not checked, but one that is a published
    file is under that one's licence. kinds: those of RESOURCE_KINDS that are accepted by name; none for all.
    allow: as in anysam.licences.allowed_licences.

    Raises OptionError (no such name or file), LicenceError before any download, DownloadError or WeightsError.
    """
    allowed = allowed_licences(allow)
    own = Path(name_or_path).expanduser() if _is_own_file(name_or_path) else None
    if own is not None and not _is_file(own):
        raise OptionError(f"There is no file {own}; give another path, or a name: {', '.join(_names(kinds))}.")
    row = find_resource(str(name_or_path), *kinds) if own is None else _published_twin(own)
    if row is None:
        return Path(name_or_path).expanduser()
    subject = f"the {title(row)}"
    require_allowed(row.name, row.licence, allowed, subject)
    path = own or fetch_weights(row, progress)
    announce_licence(row.name, row.licence, subject)
    return path


def _is_own_file(name_or_path: str | Path) -> bool:
    """Whether a file is meant, not a name of RESOURCES."""
    if isinstance(name_or_path, Path):
        return True
    if name_or_path in _names(()):
        return False
    path = Path(name_or_path)
    return "/" in name_or_path or os.sep in name_or_path or path.suffix != "" or _is_file(path)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name that is too long
        return False


def _names(kinds: tuple[str, ...]) -> list[str]:
    return [row.name for row in RESOURCES if not kinds or row.kind in kinds]


def _published_twin(path: Path) -> Resource | None:
    """The row whose published file a user's own file is, or None."""
    size = path.stat().st_size
    rows = [row for row in RESOURCES if row.file.sha256 is not None and row.file.bytes == size]
    digest = file_sha256(path) if rows else ""
    return next((row for row in rows if row.file.sha256 == digest), None)


@dataclass(frozen=True)
class _Download:
    """What one download needs to know."""

    variant: Published
    url: str
    target: Path
    progress: Progress | None
    timeout: float

    @property
    def part(self) -> Path:
        """The incomplete file beside the target."""
        return self.target.with_name(self.target.name + ".part")

    @property
    def arrived(self) -> int:
        """Bytes in the part file."""
        return self.part.stat().st_size if self.part.exists() else 0

    @property
    def resumable(self) -> bool:
        """Without a published hash nothing would tell whether an old beginning fits a new rest."""
        return self.variant.file.sha256 is not None

    @property
    def what(self) -> str:
        """The beginning of every message."""
        return f"The {title(self.variant)} could not be fetched from {self.url}"


class _Interrupted(Exception):
    """A connection failed in a way that another try may mend. The text completes a message."""


def _address(variant: Published, target: Path) -> str:
    """Where to download from. Raises DownloadError if that is nowhere or connecting is forbidden."""
    file, what = variant.file, f"The {title(variant)}"
    if file.url is None and file.page is None and variant.source != PACKAGE:
        raise DownloadError(f"{what} were never released; train your own and give their path as the model.")
    if file.url is None and file.page is None:
        lacking = f"weights/{variant.name}.safetensors" if isinstance(variant, Variant) else file.name
        raise DownloadError(
            f"{what} {_verb(variant, 'ship')} inside the package and {_verb(variant, 'are')} not downloadable, but "
            f"this installation lacks {lacking}; install the package again."
        )
    if is_offline():
        raise DownloadError(
            f"{what} {_verb(variant, 'are')} not at {target} and ANYSAM_OFFLINE forbids connecting; "
            f"copy {file.name} there or unset ANYSAM_OFFLINE."
        )
    mirror = os.environ.get("ANYSAM_MIRROR", "")
    if not mirror and file.url is None and file.name not in {row.file.name for row in VARIANTS}:
        owner = next(row for row in VARIANTS if file in row.parts)
        others = ", ".join(part.name for part in owner.parts if part != file)
        raise DownloadError(
            f"The weights of {owner.name} are in parts: get its encoder from {file.page} (there it may have another "
            f"name) and {others}, join them with `anysam convert ENCODER DECODER --variant {owner.name} "
            f"-o {owner.file.name}`, and give the result's path as the model."
        )
    if not mirror and file.url is None:
        raise DownloadError(
            f"{what} have no address to fetch them from: get {file.name} from {file.page} and "
            f"give its path as the model, or copy it to {target}."
        )
    if not mirror:
        return str(file.url)
    if not _is_plain_address(mirror):
        shown = mirror.rsplit("@", 1)[-1]  # a password must not end up in a log
        raise DownloadError(
            f"ANYSAM_MIRROR must be an http:// or https:// address without user name, query or fragment, got {shown!r}."
        )
    return f"{mirror.rstrip('/')}/{urllib.parse.quote(file.name)}"


def _verb(row: Published, plural: str) -> str:
    """The verb that fits the row's title: weights are many, any other file is one."""
    return plural if isinstance(row, Variant) else {"ship": "ships", "are": "is"}[plural]


def _is_plain_address(address: str) -> bool:
    """Whether a file name can be appended to `address` and the result be opened."""
    try:
        parts = urllib.parse.urlsplit(address)
        host = (parts.hostname or "").encode("idna")
        extras = "@" in parts.netloc or parts.query or parts.fragment or parts.port == 0
    except ValueError:  # a port that is no number, an unclosed bracket, a label that is too long
        return False
    return parts.scheme in ("http", "https") and bool(host) and not extras


@contextmanager
def _locked(target: Path) -> Iterator[None]:
    """Hold the lock of one weights file; the operating system frees it even when this process is killed."""
    lock = FileLock(target.with_name(target.name + ".lock"))
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0.5)
        except Timeout:
            logger.warning("Waiting for another process that is downloading %s.", target.name)
            lock.acquire()
    except (OSError, NotImplementedError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise DownloadError(
            f"Cannot use the weights folder {target.parent}: {reason}; set ANYSAM_HOME to a writable folder."
        ) from error
    try:
        yield
    finally:
        lock.release()


def _download(task: _Download, attempts: int, pause: float) -> None:
    """Fill the part file, check it, move it into place."""
    file = task.variant.file
    resumed = task.resumable and task.arrived > 0
    _transfer_with_retries(task, attempts, pause)
    seen = file_sha256(task.part)
    if resumed and seen != file.sha256:
        logger.warning("The continued download of %s has a wrong sha256; starting over.", file.name)
        task.part.unlink()
        _transfer_with_retries(task, attempts, pause)
        seen = file_sha256(task.part)
    if file.sha256 is not None and seen != file.sha256:
        task.part.unlink()
        raise DownloadError(
            f"{task.what}: the file there has sha256 {seen}, expected {file.sha256}; it was not kept and "
            f"nothing else was changed; try again, or another ANYSAM_MIRROR."
        )
    try:
        if file.sha256 is None:  # the note has the form that `sha256sum --check` reads
            _sha256_note(task.target).write_text(f"{seen}  {file.name}\n", encoding="ascii")
            logger.warning(
                "No hash is published for %s; its sha256 %s was recorded and is expected from now on.", file.name, seen
            )
        with open(task.part, "rb") as part:
            os.fsync(part.fileno())  # a power cut after the rename must not leave a file of zeros
        os.replace(task.part, task.target)
    except OSError as error:
        raise _unwritable(task, error) from error


def _transfer_with_retries(task: _Download, attempts: int, pause: float) -> None:
    """Connect until the part file is complete. Only failures without any new byte count as failures in a row."""
    failures, most = 0, task.arrived
    while True:
        try:
            return _transfer(task)
        except _Interrupted as problem:
            here = task.arrived
            failures, most = (1, here) if here > most else (failures + 1, most)
            if failures >= attempts:
                kept = (
                    f"; the next try continues after the {here} bytes that are here" if task.resumable and here else ""
                )
                raise DownloadError(f"{task.what}: {problem} ({attempts} tries){kept}.") from problem
            time.sleep(pause * 2 ** (failures - 1))


def _transfer(task: _Download) -> None:
    """One connection: append to the part file what is missing. Raises _Interrupted where another try may help."""
    size, offset = task.variant.file.bytes, task.arrived if task.resumable else 0
    if size is not None and offset == size:
        return  # complete, but the process ended before it was moved into place
    with _connect(task, offset) as response:
        start, total = _placement(task, response, offset)
        if response.headers.get_content_type() == "text/html":
            raise DownloadError(f"{task.what}: {_WEB_PAGE_CAME}.")
        if size is not None and total is not None and total != size:
            raise DownloadError(f"{task.what}: the file there has {total} bytes, expected {size}; it is another file.")
        total, free = total or size, shutil.disk_usage(task.target.parent).free
        if total is not None and total - start > free:
            raise DownloadError(
                f"{task.what}: {(total - start) / 1e6:.0f} MB are still needed, but only {free / 1e6:.0f} MB are free "
                f"in {task.target.parent}; free some space or set ANYSAM_HOME to a folder on another disk."
            )
        done = _append(task, response, start, total)
    if total is not None and done < total:
        raise _Interrupted(f"the connection ended after {done} of {total} bytes")


def _connect(task: _Download, offset: int) -> http.client.HTTPResponse:
    """The answer to a GET from byte `offset` on. Maps every failure to DownloadError (final) or _Interrupted."""
    headers = {"User-Agent": "anysam", "Accept-Encoding": "identity"}
    if offset:
        headers["Range"] = f"bytes={offset}-"
    opener = urllib.request.build_opener(_NoDowngrade())
    try:
        return opener.open(urllib.request.Request(task.url, headers=headers), timeout=task.timeout)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416:  # what is here cannot be continued on this server
            task.part.unlink(missing_ok=True)
            raise _Interrupted("the server refused to continue the download") from error
        if error.code in _RETRIED_STATUS:
            raise _Interrupted(f"the server answered {error.code} {error.reason}") from error
        raise DownloadError(
            f"{task.what}: the server answered {error.code} {error.reason}; check ANYSAM_MIRROR, "
            f"or get {task.target.name} elsewhere and copy it to {task.target.parent}."
        ) from error
    except urllib.error.URLError as error:
        if isinstance(error.reason, ssl.SSLCertVerificationError):
            raise DownloadError(f"{task.what}: the server's certificate is not trusted ({error.reason}).") from error
        raise _network_problem(task, error.reason) from error
    except (OSError, http.client.HTTPException) as error:
        raise _network_problem(task, error) from error


class _NoDowngrade(urllib.request.HTTPRedirectHandler):
    """Follows redirects, but never from https to http."""

    def redirect_request(self, req, fp, code, msg, headers, newurl):  # type: ignore[no-untyped-def]
        """The request for `newurl`; raises HTTPError for a downgrade (the signature is the standard library's)."""
        if req.type == "https" and urllib.parse.urlsplit(newurl).scheme != "https":
            raise urllib.error.HTTPError(newurl, code, "redirect from https to an insecure address", headers, fp)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _network_problem(task: _Download, error: object) -> _Interrupted:
    if isinstance(error, TimeoutError):
        return _Interrupted(f"no data came for {task.timeout:g} seconds")
    return _Interrupted(f"the connection failed ({error or type(error).__name__})")


def _placement(task: _Download, response: http.client.HTTPResponse, offset: int) -> tuple[int, int | None]:
    """The byte at which the answer's body starts, and the size of the whole file if the server says it."""
    length = response.headers.get("Content-Length", "")
    if response.status != 206:  # the whole file, also from a server that ignores Range
        return 0, int(length) if length.isdecimal() else None
    found = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", "").strip())
    if found is None or int(found[1]) != offset:
        task.part.unlink(missing_ok=True)
        raise _Interrupted("the server continued at another byte than asked")
    return offset, None if found[2] == "*" else int(found[2])


def _append(task: _Download, response: http.client.HTTPResponse, start: int, total: int | None) -> int:
    """Write the body from byte `start` of the part file on and return the size the file then has."""
    done = start
    if task.progress is not None:
        task.progress(done, total)
    try:
        # unbuffered: what has been counted is in the file, whatever happens next
        file = open(task.part, "ab" if start else "wb", buffering=0)
    except OSError as error:
        raise _unwritable(task, error) from error
    with file:
        while chunk := _read(task, response):
            if done == 0 and chunk.lstrip()[:9].lower().startswith(_WEB_PAGE):
                raise DownloadError(f"{task.what}: {_WEB_PAGE_CAME}.")
            if total is not None and done + len(chunk) > total:
                raise DownloadError(f"{task.what}: more than the expected {total} bytes came.")
            try:
                written = 0
                while written < len(chunk):  # an unbuffered write may take less than it is given
                    written += file.write(chunk[written:])
            except OSError as error:
                raise _unwritable(task, error) from error
            done += len(chunk)
            if task.progress is not None:
                task.progress(done, total)
    return done


def _read(task: _Download, response: http.client.HTTPResponse) -> bytes:
    """The next piece of the body, as soon as there is one; empty at the end."""
    try:
        return response.read1(_CHUNK)
    except (OSError, http.client.HTTPException) as error:
        raise _network_problem(task, error) from error


def _unwritable(task: _Download, error: OSError) -> DownloadError:
    return DownloadError(
        f"{task.what}: cannot write {task.part}: {error.strerror or error}; "
        f"free some space or set ANYSAM_HOME to a writable folder."
    )


def _sha256_note(path: Path) -> Path:
    return path.with_name(path.name + ".sha256")


def _recorded_sha256(path: Path) -> str | None:
    """The hash recorded beside `path` at its download, or None. Raises WeightsError if the note is damaged."""
    note = _sha256_note(path)
    if not note.is_file():
        return None
    found = re.match(r"[0-9a-f]{64}(?=\s)", note.read_text(encoding="ascii", errors="replace"))
    if found is None:
        raise WeightsError(f"{note} does not hold a sha256; delete it to accept {path.name} as it is.")
    return found[0]
