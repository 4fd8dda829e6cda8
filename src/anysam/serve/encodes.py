"""Images waiting to be encoded, and the one thread that does it. Knows no HTTP and keeps no image.

One by one, with all threads that PyTorch has: images of one size stacked were measured with the built-in model on two
cores (640x480, 2 and 4 at once) and took 1.1 to 1.5 times as long each, because what is between the layers no longer
fits into the caches.
"""

import math
import threading
import time
from collections import deque
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
    """A model as a store sees it, which remembers whether it was asked to encode."""

    model: Model
    asked: bool = False

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
        self.asked = True
        return self.model.encode(image)


class EncodeQueue:
    """First come, first encoded. torch_threads: of one encoding."""

    def __init__(self, model: Model, store: EmbeddingStore | None, torch_threads: int) -> None:
        self._model, self._store = model, store
        self._lock = threading.Lock()
        self._counts = EncodeCounts()
        self._mean = _FIRST_GUESS
        self._lane: Lane[EncodeJob, EncodeJob] = Lane("encode", _take, self._encode, 1, torch_threads)

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
        return self._lane.busy

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

    def _encode(self, job: EncodeJob) -> None:
        began = time.perf_counter()
        watched = _Watched(self._model)
        prepared: PreparedImage | None = None
        failure: Exception | None = None
        try:
            pixels = read_image(job.data, job.max_pixels) if job.pixels is None else job.pixels
            job.pixels = None
            prepared = PreparedImage.of(self._model, self._encoded(watched, pixels))
        except Exception as error:  # this image's alone
            failure = error
        taken = time.perf_counter() - began
        stored = self._store is not None and failure is None
        with self._lock:
            self._mean += _NEWEST * (taken - self._mean)
            counts = self._counts
            self._counts = replace(
                counts,
                encoded=counts.encoded + (prepared is not None and watched.asked),
                failed=counts.failed + (failure is not None),
                hits=counts.hits + (stored and not watched.asked),
                misses=counts.misses + (stored and watched.asked),
                seconds=counts.seconds + taken,
            )
        if prepared is not None:
            answer(job.future, prepared)
        elif failure is not None:
            refuse(job.future, failure)

    def _encoded(self, watched: _Watched, pixels: np.ndarray) -> EncodedImage:
        """Rounded as a store rounds, so that nothing depends on whether there is one, or what was in it."""
        if self._store is not None:
            return self._store.encode(watched, pixels)
        encoded = watched.encode(pixels)
        return encoded.rounded() if isinstance(self._model.network, PromptableModel) else encoded


def _take(queue: "deque[EncodeJob]") -> EncodeJob:
    job = queue.popleft()
    job.begun = True
    return job
