"""A folder of encoded images, so that no image is encoded twice by the same model.

    store = EmbeddingStore("~/.cache/embeddings", max_bytes=parse_size("10G"))
    encoded = store.encode(model, "photo.jpg")  # encoded now, or read back

What is found is found by content: the same pixels under another name are, another weights file's encoding is not, nor
one that another version of this package made. The device does not matter: a CPU takes what a GPU has encoded.
Features are kept as float16 where the model answers prompts (a SAM's take 2 MB), and come back as what they were, but
for float16's rounding. A new encoding is returned with the same rounding, so that nothing depends on what was there
before. Several processes may use one folder: files appear whole, and who misses one encodes again.
"""

import hashlib
import os
import re
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from filelock import FileLock
from PIL import Image
from torch import Tensor

from anysam import __version__
from anysam.atomic import DRAFT_SUFFIX
from anysam.encoded_image import EncodedImage
from anysam.errors import AnySamError, OptionError, OutputError
from anysam.images import read_image
from anysam.models import LoadedModel, PromptableModel
from anysam.preprocess import Preprocess

DEFAULT_MAX_BYTES = 10 * 1000**3

_SUFFIX = ".embedding"
_NAME = re.compile(rf"[0-9a-f]{{64}}{re.escape(_SUFFIX)}")
_DRAFT_NAME = re.compile(rf"\.[0-9a-f]{{16}}{re.escape(DRAFT_SUFFIX)}")
_LOCK_NAME = ".anysam-store.lock"
_LOCK_SECONDS = 10
_ABANDONED_SECONDS = 3600  # after which a file that was never finished is removed


class EncodingModel(LoadedModel, Protocol):
    """What the store asks of a model; `anysam.Model` offers it."""

    def encode(self, image: np.ndarray) -> EncodedImage: ...


class BatchingModel(EncodingModel, Protocol):
    """One that encodes several images at once; `anysam.Model` does."""

    def encode_together(self, images: Sequence[np.ndarray]) -> list[EncodedImage]: ...


class EmbeddingStore:
    """Encoded images in a folder. After each new one they take at most max_bytes: what was not used for longest goes.

    folder: made if missing; only files named by 64 hexadecimal digits and .embedding are this store's. max_bytes: at
    least 1. warn: called with one sentence, once, when something cannot be kept (a full disk, a folder without
    permission, an encoding larger than the store): the work goes on without. Raises OutputError when the folder cannot
    be made, OptionError for a size that is none.
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
        self.max_bytes = max_bytes
        self._warn = warn
        self._warned = False
        try:
            self.folder = Path(folder).expanduser()
            self.folder.mkdir(parents=True, exist_ok=True)
        except (OSError, ValueError, RuntimeError) as error:  # a NUL in the path; the home of a user who is not there
            reason = (error.strerror if isinstance(error, OSError) else None) or str(error).rstrip(".")
            raise OutputError(f"The store {str(folder)!r} cannot be made: {reason}; choose another folder.") from error

    def encode(
        self, model: EncodingModel, image: str | Path | bytes | Image.Image | np.ndarray | Tensor
    ) -> EncodedImage:
        """The image's encoding by the model: the one kept, or a new one, which is then kept.

        image: whatever `Model.encode` takes. Raises ImageError as `Model.encode` does.
        """
        pixels = read_image(image)
        key = _key(model, pixels)
        kept = self._read(key, model, (pixels.shape[0], pixels.shape[1]))
        return self._keep(key, model, model.encode(pixels)) if kept is None else kept

    def encode_together(self, model: BatchingModel, images: Sequence[np.ndarray]) -> list[EncodedImage]:
        """Encodings of several images, uint8 (H, W, 3): those kept, and new ones by `Model.encode_together`."""
        keys = [_key(model, pixels) for pixels in images]
        places = dict(zip(keys, images, strict=True))
        found: dict[str, EncodedImage] = {}
        for key, pixels in places.items():
            kept = self._read(key, model, (pixels.shape[0], pixels.shape[1]))
            if kept is not None:
                found[key] = kept
        missing = [key for key in places if key not in found]
        for key, encoded in zip(missing, model.encode_together([places[key] for key in missing]), strict=True):
            found[key] = self._keep(key, model, encoded)
        return [found[key] for key in keys]

    def _keep(self, key: str, model: EncodingModel, encoded: EncodedImage) -> EncodedImage:
        """A new encoding, as it will be read back."""
        compact = isinstance(model.network, PromptableModel)  # the boxes of a detector would move by pixels
        self._write(key, encoded, compact)
        return encoded.rounded() if compact else encoded

    def size(self) -> int:
        """Bytes that the kept encodings take."""
        return sum(size for _, size, _ in self._kept())

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}{_SUFFIX}"

    def _read(self, key: str, model: EncodingModel, original_size: tuple[int, int]) -> EncodedImage | None:
        """The encoding kept under `key`; None where there is none, or another thing, or a damaged one."""
        path = self._path(key)
        if not path.is_file():
            return None
        try:
            encoded = EncodedImage.load(path, str(model.device), key)
        except AnySamError:
            return None
        if not _fits(encoded, model, original_size):
            return None
        with suppress(OSError):  # a folder that may only be read, or another process has just removed it
            os.utime(path)  # used now: the last to go
        return encoded

    def _write(self, key: str, encoded: EncodedImage, compact: bool) -> None:
        """Keep an encoding and make room for it; or do neither, and say so once."""
        path = self._path(key)
        try:
            encoded.save(path, compact, key)
            self._evict(path)
        except (OSError, NotImplementedError, OutputError) as error:  # of locks: not had in time, unknown to the disk
            with suppress(OSError):
                path.unlink(missing_ok=True)
            if not self._warned:
                self._warned = True
                self._warn(f"Encoded images are not kept: {error}")

    def _evict(self, newest: Path) -> None:
        """Remove what was not used for longest until the rest fits; one process at a time.

        Raises OutputError if `newest` alone is too large, OSError or NotImplementedError if there is no lock or what
        would have to go cannot be removed.
        """
        sizes = {path: size for _, size, path in self._kept()}
        if sizes.get(newest, 0) > self.max_bytes:  # all others would go for nothing
            raise OutputError(
                f"one takes {sizes[newest]:,} bytes, but the whole store {self.folder} may take {self.max_bytes:,}; "
                "give it more."
            )
        if sum(sizes.values()) <= self.max_bytes:
            return
        with FileLock(self.folder / _LOCK_NAME, timeout=_LOCK_SECONDS):
            kept = sorted(self._kept())
            total = sum(size for _, size, _ in kept)
            problem: OSError | None = None
            for _, size, path in kept:
                if total <= self.max_bytes:
                    return
                try:
                    path.unlink(missing_ok=True)
                    total -= size
                except OSError as error:  # another user's, or open in another process where that matters
                    problem = error
            if problem is not None and total > self.max_bytes:
                raise problem

    def _kept(self) -> list[tuple[int, int, Path]]:
        """(time of last use, bytes, path) of every encoding; abandoned drafts are removed on the way."""
        found = []
        with os.scandir(self.folder) as entries:
            for entry in entries:
                draft = _DRAFT_NAME.fullmatch(entry.name) is not None
                if not draft and not _NAME.fullmatch(entry.name):
                    continue
                try:
                    if not entry.is_file(follow_symlinks=False):
                        continue
                    facts = entry.stat(follow_symlinks=False)
                    if not draft:
                        found.append((facts.st_mtime_ns, facts.st_size, Path(entry.path)))
                    elif time.time() - facts.st_mtime > _ABANDONED_SECONDS:
                        os.unlink(entry.path)
                except OSError:
                    continue  # another process has just removed it
        return found


def _key(model: EncodingModel, pixels: np.ndarray) -> str:
    """Hexadecimal digest of all that an encoding depends on. pixels: uint8 (H, W, 3), C-contiguous.

    The version is part of it: the next one's encoder may round differently, or keep other features.
    """
    facts = (model.variant, model.weights_sha256, repr(model.network.preprocess), str(model.dtype), pixels.shape)
    # SHA-256 takes half the time of BLAKE2b where the processor has instructions for it, as most have.
    digest = hashlib.sha256(repr((__version__, *facts)).encode())
    digest.update(np.ascontiguousarray(pixels).data)
    return digest.hexdigest()


def _fits(encoded: EncodedImage, model: EncodingModel, original_size: tuple[int, int]) -> bool:
    """Whether an encoding is one that the model can have made of an image of original_size (H, W)."""
    frame = model.network.preprocess
    input_size = frame.input_size(original_size)
    wanted = (model.variant, model.weights_sha256, repr(frame), original_size, input_size)
    found = (encoded.variant, encoded.weights_sha256, encoded.preprocess, encoded.original_size, encoded.input_size)
    if found != wanted or any(value.dtype not in (model.dtype, torch.float32) for value in encoded.features.values()):
        return False
    if not isinstance(frame, Preprocess):
        boxes = encoded.features.get("decoded")
        return boxes is not None and boxes.ndim == 3
    grid = encoded.features.get("image_embeddings")
    if grid is None or grid.ndim != 4 or 0 in grid.shape:
        return False
    height, width = frame.padded_image_size(input_size)
    (rows, columns) = grid.shape[2:]
    # One cell for each square of the padded input: 16 x 16 pixels in most models, 8 x 8 in some.
    return height % rows == 0 and (height // rows) * columns == width
