"""A file is there whole or not at all, whatever fails; and every failure says what to do."""

import errno
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from anysam.errors import OutputError

DRAFT_SUFFIX = ".tmp"  # of files that are not complete, hidden and with a random name


@contextmanager
def draft_of(path: str | Path) -> Iterator[Path]:
    """Yield an empty new file beside `path` that becomes it, replacing what was there, when the block ends well.

    The folder must exist. When anything fails, an interrupt included, the draft is removed and `path` is as before.
    Raises OutputError naming `path` for every OSError.
    """
    path = Path(path)
    # Not of the target's name: that may be as long as names may be.
    draft = path.with_name(f".{secrets.token_hex(8)}{DRAFT_SUFFIX}")
    try:
        os.close(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
        try:
            yield draft
            with open(draft, "rb+") as file:
                os.fsync(file.fileno())  # a full disk may only show here, and must before the rename
            os.replace(draft, path)
        except BaseException:
            draft.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise OutputError(explain(path, error)) from error


def write_atomic(path: str | Path, write: Callable[[BinaryIO], object]) -> None:
    """Call `write` with an open binary file that becomes `path` when it is complete; see `draft_of`."""
    with draft_of(path) as draft, open(draft, "wb") as file:
        write(file)


def require_writable(path: str | Path) -> None:
    """Find out before long work whether `path` can be written; nothing is left there. Raises OutputError."""
    path = Path(path)
    if path.is_dir():
        raise OutputError(explain(path, IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))))
    draft = path.with_name(f".{secrets.token_hex(8)}{DRAFT_SUFFIX}")
    try:
        os.close(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
        draft.unlink()
    except OSError as error:
        raise OutputError(explain(path, error)) from error


def explain(path: Path, error: OSError) -> str:
    """Why `path` cannot be written, in one sentence that says what to do."""
    reasons = {
        errno.ENOSPC: "the disk is full; free some space or choose another folder",
        errno.EDQUOT: "the disk quota is used up; free some space or choose another folder",
        errno.EACCES: "permission is denied; choose a folder you may write to",
        errno.EPERM: "permission is denied; choose a folder you may write to",
        errno.EROFS: "the file system is read-only; choose another folder",
        errno.ENOENT: "its folder does not exist; create it first",
        errno.ENOTDIR: "a part of its path is a file, not a folder",
        errno.EEXIST: "a file of that name is in the way; choose another folder",
        errno.EISDIR: "a folder of that name is in the way; remove it or choose another folder",
        errno.ENAMETOOLONG: "the name is too long; rename the image or choose a shorter folder",
    }
    reason = reasons.get(error.errno or 0, error.strerror or str(error))
    return f"{path} cannot be written: {reason}."
