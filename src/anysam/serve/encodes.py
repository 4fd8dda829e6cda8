"""Images waiting to be encoded, and the one thread that does it. Knows no HTTP and keeps no image.

Those that wait are encoded together, as many as `default_batch` says: several where a GPU has room for them; one on a
CPU, with all threads that PyTorch has, because what is between the layers of several no longer fits into its caches.
"""

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace

import numpy as np
import torch

from anysam.encoded_image import EncodedImage
from anysam.images import read_image
from anysam.models import InstanceModel, PromptableModel
from anysam.predictor import Model
from anysam.serve.clicks import PreparedImage
from anysam.serve.engine_types import Overloaded
from anysam.serve.futures import answer, refuse
from anysam.serve.lanes import Lane
from anysam.store import EmbeddingStore

_NEWEST, _FIRST_GUESS = 0.2, 1.0
# Images that a GPU encodes together: a few fill one, and more make the first wait for the last.
_GPU_BATCH = 4


@dataclass(eq=False)
class EncodeJob:
    """An image to be encoded. data: the upload. pixels: (H, W, 3) uint8, where they are still there.

    begun: set when its turn has come.
    """

    data: bytes
    pixels: np.ndarray | None
    max_pixels: int
    future: "Future[PreparedImage]"
    begun: bool = False


@dataclass(frozen=True)
class EncodeCounts:
    """Totals since the start. hits and misses: of the store on disk; without one there are neither."""

    encoded: int = 0
    failed: int = 0
    hits: int = 0
    misses: int = 0
    seconds: float = 0.0


@dataclass(eq=False)
class _Watched:
    """A model as a store sees it, which counts the images that it was asked to encode."""

    model: Model
    asked: int = 0

    @property
    def variant(self) -> str:
        return self.model.variant

    @property
    def network(self) -> PromptableModel | InstanceModel:
        return self.model.network

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        return self.model.dtype

    @property
    def weights_sha256(self) -> str:
        return self.model.weights_sha256

    def encode(self, image: np.ndarray) -> EncodedImage:
        return self.encode_together([image])[0]

    def encode_together(self, images: Sequence[np.ndarray]) -> list[EncodedImage]:
        several = len(images) > 1
        encoded = self.model.encode_together(images) if several else [self.model.encode(each) for each in images]
        self.asked += len(images)
        return encoded


def default_batch(model: Model) -> int:
    """How many images are encoded together where nobody says: one on a CPU, `_GPU_BATCH` elsewhere."""
    return 1 if model.device.type == "cpu" else _GPU_BATCH


class EncodeQueue:
    """First come, first encoded. torch_threads: of one encoding. batch: images encoded together, at most."""

    def __init__(self, model: Model, store: EmbeddingStore | None, torch_threads: int, batch: int) -> None:
        self._model, self._store = model, store
        self._lock = threading.Lock()
        self._counts = EncodeCounts()
        self._mean = _FIRST_GUESS
        self._running = 0
        self._lane: Lane[EncodeJob, list[EncodeJob]] = Lane("encode", _taker(batch), self._encode, 1, torch_threads)

    def put(self, data: bytes, pixels: np.ndarray | None, max_pixels: int) -> EncodeJob:
        """Queue an image. Raises Overloaded only when the queue is closed; how many may wait is its owner's to say."""
        job = EncodeJob(data, pixels, max_pixels, Future())
        if not self._lane.put(job):
            raise Overloaded(1)
        return job

    def discard(self, job: EncodeJob) -> bool:
        """Remove a job that still waits; False where it does not."""
        return self._lane.discard(job)

    def position(self, job: EncodeJob) -> int | None:
        """How many jobs come before; None for one that does not wait."""
        return self._lane.position(job)

    @property
    def waiting(self) -> int:
        return len(self._lane.waiting())

    @property
    def running(self) -> int:
        """Images that are encoded now."""
        return self._running

    @property
    def counts(self) -> EncodeCounts:
        return self._counts

    def seconds_to_wait(self) -> int:
        """Whole seconds, at least 1, until what waits now should be encoded."""
        return max(1, math.ceil((self.waiting + 1) * self._mean))

    def close(self) -> None:
        for job in self._lane.close():
            refuse(job.future, Overloaded(1))

    def join(self, seconds: float) -> bool:
        return self._lane.join(seconds)

    def _encode(self, jobs: list[EncodeJob]) -> None:
        began = time.perf_counter()
        self._running = len(jobs)
        pixels: dict[EncodeJob, np.ndarray] = {}
        failed: dict[EncodeJob, Exception] = {}
        for job in jobs:
            try:
                pixels[job] = read_image(job.data, job.max_pixels) if job.pixels is None else job.pixels
            except Exception as error:  # this image's alone
                failed[job] = error
            job.pixels = None
        watched = _Watched(self._model)
        prepared = self._prepared(watched, pixels, failed)
        self._count(len(prepared), len(failed), watched.asked, time.perf_counter() - began)
        self._running = 0
        for job, image in prepared.items():
            answer(job.future, image)
        for job, fault in failed.items():
            refuse(job.future, fault)

    def _prepared(
        self, watched: _Watched, pixels: dict[EncodeJob, np.ndarray], failed: dict[EncodeJob, Exception]
    ) -> dict[EncodeJob, PreparedImage]:
        """Encoded together; where that fails, one by one, and what fails then goes to `failed`."""
        if len(pixels) > 1:
            try:
                together = self._encoded(watched, list(pixels.values()))
                return {
                    job: PreparedImage.of(self._model, encoded) for job, encoded in zip(pixels, together, strict=True)
                }
            except Exception:  # perhaps it is one of them, or the size of all
                pass
        prepared = {}
        for job, each in pixels.items():
            try:
                prepared[job] = PreparedImage.of(self._model, self._encoded(watched, [each])[0])
            except Exception as error:  # this image's alone
                failed[job] = error
        return prepared

    def _encoded(self, watched: _Watched, pixels: list[np.ndarray]) -> list[EncodedImage]:
        """Rounded as a store rounds, so that nothing depends on whether there is one, or what was in it."""
        if self._store is not None:
            return self._store.encode_together(watched, pixels)
        encoded = watched.encode_together(pixels)
        return [each.rounded() for each in encoded] if isinstance(self._model.network, PromptableModel) else encoded

    def _count(self, done: int, failed: int, asked: int, seconds: float) -> None:
        stored = done if self._store is not None else 0
        with self._lock:
            self._mean += _NEWEST * (seconds / (done + failed) - self._mean)
            counts = self._counts
            self._counts = replace(
                counts,
                encoded=counts.encoded + min(asked, done),
                failed=counts.failed + failed,
                hits=counts.hits + max(0, stored - asked),
                misses=counts.misses + min(asked, stored),
                seconds=counts.seconds + seconds,
            )


def _taker(batch: int) -> "Callable[[deque[EncodeJob]], list[EncodeJob]]":
    def take(queue: "deque[EncodeJob]") -> list[EncodeJob]:
        jobs = [queue.popleft() for _ in range(min(batch, len(queue)))]
        for job in jobs:
            job.begun = True
        return jobs

    return take
