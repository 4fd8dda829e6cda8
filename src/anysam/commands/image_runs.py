"""One image after the other: a bad one does not stop the rest, what concerns all does, and results leave as they come.

Nothing grows with the number of images but the list of those that failed.
"""

import errno
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

from anysam.errors import AnySamError, ImageError, OutputError

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


Loaded = TypeVar("Loaded")


class Lazy(Generic[Loaded]):
    """What is loaded when it is first asked for: the first good image needs it. loaded: None before."""

    def __init__(self, load: Callable[[], Loaded]) -> None:
        self._load = load
        self.loaded: Loaded | None = None

    def __call__(self) -> Loaded:
        if self.loaded is None:
            self.loaded = self._load()
        return self.loaded


class StopError(Exception):
    """Raised by the work on one image for what no other image would escape, such as a model that cannot be loaded."""

    def __init__(self, error: AnySamError) -> None:
        super().__init__(str(error))
        self.error = error


def run_all(
    images: Sequence[Path], work: Callable[[int], None], fail: Callable[[Path, AnySamError], None], advice: str
) -> None:
    """Call `work` with the number of each image, and `fail` with those for which it raises AnySamError or runs short
    of memory; `advice` is what helps against that.

    What stops everything is raised: StopError's error, a full disk, and the failure of the only image.
    """
    for number, image in enumerate(images):
        failure: AnySamError
        try:
            work(number)
            continue
        except StopError as stop:
            raise stop.error from stop.error.__cause__
        except AnySamError as error:
            failure = error
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            failure = ImageError(f"{image} needs more memory than there is; {advice}.")
        if len(images) == 1 or _is_disk_full(failure):
            raise failure
        fail(image, failure)


def is_out_of_memory(error: Exception) -> bool:
    """Whether Python, NumPy or PyTorch ran out of memory; PyTorch on a CPU says it with a plain RuntimeError."""
    if isinstance(error, MemoryError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and ("out of memory" in text or "can't allocate memory" in text)


def _is_disk_full(error: AnySamError) -> bool:
    cause = error.__cause__
    while cause is not None and not isinstance(cause, OSError):
        cause = cause.__cause__
    return isinstance(error, OutputError) and cause is not None and cause.errno in _NO_ROOM


def print_failures(failed: Sequence[tuple[Path, AnySamError]], count: int) -> None:
    """Words on stderr about the images, of `count` in all, that could not be done."""
    if failed:
        print(f"{len(failed)} of {count} images failed:", file=sys.stderr)
    for image, error in failed:
        print(f"  {error}" if str(image) in str(error) else f"  {image}: {error}", file=sys.stderr)


def print_paths(paths: Sequence[Path]) -> None:
    """Each path on a line of stdout, at once; names that are not text are written as the bytes that they are."""
    for path in paths:
        try:
            print(path)
        except UnicodeEncodeError:
            sys.stdout.flush()
            sys.stdout.buffer.write(os.fsencode(path) + b"\n")
    sys.stdout.flush()


class JsonDocument:
    """One JSON object on stdout, written while it is made: {"images": [...], then the rest}."""

    def __init__(self) -> None:
        self._images = 0

    def add(self, image: Mapping[str, Any]) -> None:
        """One more of the images."""
        print('{"images": [' if self._images == 0 else ",", json.dumps(image), sep="\n", end="", flush=True)
        self._images += 1

    def close(self, rest: Mapping[str, Any]) -> None:
        """The other members, at least one. Without any image the document is complete, too."""
        print('{"images": [' if self._images == 0 else "", end="\n")
        print("],", json.dumps(rest)[1:], sep=" ", flush=True)
