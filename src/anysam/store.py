"""A folder of encoded images, so that no image is encoded twice by the same model.

    store = EmbeddingStore("~/.cache/embeddings", max_bytes=parse_size("10G"))
    encoded = store.encode(model, "photo.jpg")  # encoded now, or read back

What is found is found by content: the same pixels under another name are, another weights file's encoding is not.
Features are kept as float16 where the model answers prompts (a SAM's take 2 MB), and come back as what they were, but
for float16's rounding. A new encoding is returned with the same rounding, so that nothing depends on what was there
before. Several processes may use one folder: files appear whole, and who misses one encodes again.
"""

import hashlib
import os
import re
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from filelock import FileLock, Timeout
from PIL import Image
from torch import Tensor

from anysam.atomic import DRAFT_SUFFIX
from anysam.encoded_image import EncodedImage
from anysam.errors import AnySamError, OptionError, OutputError
from anysam.images import read_image
from anysam.letterbox import Letterbox
from anysam.models import InstanceModel, PromptableModel
from anysam.preprocess import Preprocess

DEFAULT_MAX_BYTES = 10 * 1000**3

_SUFFIX = ".embedding"
_DRAFT_NAME = re.compile(rf"\.[0-9a-f]{{16}}{re.escape(DRAFT_SUFFIX)}")
_LOCK_NAME = ".anysam-store.lock"
_LOCK_SECONDS = 10
_ABANDONED_SECONDS = 3600  # after which a file that was never finished is removed
_LAYOUT = b"anysam-embedding-1"


class EncodingModel(Protocol):
    """What the store asks of a model; `anysam.Model` offers it."""

    @property
    def variant(self) -> str: ...

    @property
    def weights_sha256(self) -> str: ...

    @property
    def network(self) -> PromptableModel | InstanceModel: ...

    @property
    def device(self) -> torch.device: ...

    @property
    def dtype(self) -> torch.dtype: ...

    def encode(self, image: np.ndarray) -> EncodedImage: ...


class EmbeddingStore:
    """Encoded images in a folder, at most max_bytes of them; the ones not used for longest go first.

    folder: made if missing; only files that end in .embedding are this store's. max_bytes: at least 1. warn: called
    with one sentence, once, when something cannot be kept (a full disk, a folder without permission): the work goes on
    without. Raises OutputError when the folder cannot be made, OptionError for a size that is none.
    """

    def __init__(
        self,
        folder: str | Path,
        max_bytes: int = DEFAULT_MAX_BYTES,
        warn: Callable[[str], object] = warnings.warn,
    ) -> None:
        if isinstance(max_bytes, bool) or not isinstance(max_bytes, int) or max_bytes < 1:
            raise OptionError(f"max_bytes must be a whole number of at least 1, got {max_bytes!r}.")
        if not isinstance(folder, (str, Path)) or not str(folder):
            raise OptionError(f"The store's folder must be a path, got {folder!r}.")
        self.folder = Path(folder).expanduser()
        self.max_bytes = max_bytes
        self._warn = warn
        self._warned = False
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            reason = error.strerror or str(error)
            raise OutputError(f"The store {self.folder} cannot be made: {reason}; choose another folder.") from error

    def encode(
        self, model: EncodingModel, image: str | Path | bytes | Image.Image | np.ndarray | Tensor
    ) -> EncodedImage:
        """The image's encoding by the model: the one kept, or a new one, which is then kept.

        image: whatever `Model.encode` takes. Raises ImageError as `Model.encode` does.
        """
        pixels = read_image(image)
        path = self.folder / f"{_key(model, pixels)}{_SUFFIX}"
        kept = self._read(path, model, (pixels.shape[0], pixels.shape[1]))
        if kept is not None:
            return kept
        encoded = model.encode(pixels)
        compact = isinstance(model.network, PromptableModel)  # the boxes of a detector would move by pixels
        self._write(path, encoded, compact)
        return encoded.rounded() if compact else encoded

    def size(self) -> int:
        """Bytes that the kept encodings take."""
        return sum(size for _, size, _ in self._kept())

    def _read(self, path: Path, model: EncodingModel, original_size: tuple[int, int]) -> EncodedImage | None:
        """The encoding kept at `path`; None where there is none, or another thing, or a damaged one."""
        if not path.is_file():
            return None
        try:
            encoded = EncodedImage.load(path, str(model.device))
        except AnySamError:
            return None
        frame = model.network.preprocess
        wanted = (model.variant, model.weights_sha256, repr(frame), original_size, _input_size(frame, original_size))
        found = (encoded.variant, encoded.weights_sha256, encoded.preprocess, encoded.original_size, encoded.input_size)
        if found != wanted:
            return None
        try:
            os.utime(path)  # used now: the last to go
        except OSError:
            pass  # a folder that may only be read, or another process has just removed it
        return encoded

    def _write(self, path: Path, encoded: EncodedImage, compact: bool) -> None:
        try:
            encoded.save(path, compact=compact)
            self._evict()
        except (OSError, OutputError, Timeout) as error:
            if not self._warned:
                self._warned = True
                self._warn(f"Encoded images are not kept: {error}")

    def _evict(self) -> None:
        """Remove what was not used for longest until the rest fits; one process at a time."""
        if self.size() <= self.max_bytes:
            return
        with FileLock(self.folder / _LOCK_NAME, timeout=_LOCK_SECONDS):
            kept = sorted(self._kept())
            total = sum(size for _, size, _ in kept)
            for _, size, path in kept:
                if total <= self.max_bytes:
                    break
                path.unlink(missing_ok=True)
                total -= size

    def _kept(self) -> list[tuple[int, int, Path]]:
        """(time of last use, bytes, path) of every encoding; abandoned drafts are removed on the way."""
        found = []
        with os.scandir(self.folder) as entries:
            for entry in entries:
                draft = _DRAFT_NAME.fullmatch(entry.name) is not None
                if not draft and not entry.name.endswith(_SUFFIX):
                    continue
                try:
                    facts = entry.stat(follow_symlinks=False)
                    if not draft:
                        found.append((facts.st_mtime_ns, facts.st_size, Path(entry.path)))
                    elif time.time() - facts.st_mtime > _ABANDONED_SECONDS:
                        os.unlink(entry.path)
                except OSError:
                    continue  # another process has just removed it
        return found


def _key(model: EncodingModel, pixels: np.ndarray) -> str:
    """Hexadecimal digest of all that an encoding depends on. pixels: uint8 (H, W, 3), C-contiguous."""
    digest = hashlib.sha256(_LAYOUT)
    facts = (model.variant, model.weights_sha256, repr(model.network.preprocess), str(model.dtype), pixels.shape)
    digest.update(repr(facts).encode())
    digest.update(np.ascontiguousarray(pixels).data)
    return digest.hexdigest()


def _input_size(frame: Preprocess | Letterbox, original_size: tuple[int, int]) -> tuple[int, int]:
    return frame.input_size(original_size)
