"""What a server asks of its engine: the protocol, the values between them and the errors; computes nothing."""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

from anysam.automatic.options import EverythingOptions
from anysam.prompts import Prompt
from anysam.results import MaskRecord

State = Literal["queued", "encoding", "ready", "failed"]


@dataclass(frozen=True)
class ImageState:
    """Where an image is on its way to being clicked.

    size: (H, W) in pixels. queue_position: 0 for the next one to be encoded; None when it does not wait. error: one
    sentence when it failed.
    """

    image_id: str
    size: tuple[int, int]
    state: State
    queue_position: int | None = None
    error: str | None = None


@dataclass(frozen=True)
class Progress:
    """How much of a long task is done, 0 to 1."""

    done: float


@dataclass(frozen=True, eq=False)
class Answer:
    """What came of one prompt.

    best: the mask with the highest predicted IoU; None where there is no mask. low_res_logits: (C, h, w) float32, one
    for each mask, when they were asked for.
    """

    masks: tuple[MaskRecord, ...]
    best: int | None
    low_res_logits: np.ndarray | None


@dataclass(frozen=True, eq=False)
class EmbeddingFile:
    """An encoded image as safetensors, features in float16. etag: without quotes. Sizes are (H, W)."""

    data: bytes
    etag: str
    original_size: tuple[int, int]
    input_size: tuple[int, int]


@dataclass(frozen=True)
class EngineStats:
    """Numbers for a monitoring system: totals since the start, and bytes of what is kept between requests."""

    images: int = 0
    ready: int = 0
    queued_encodes: int = 0
    running_encodes: int = 0
    waiting_predicts: int = 0
    encodes_total: int = 0
    failed_encodes_total: int = 0
    predicts_total: int = 0
    everything_total: int = 0
    everything_running: int = 0
    describe_total: int = 0
    rejected_total: int = 0
    cancelled_total: int = 0
    memory_bytes: int = 0
    upload_bytes: int = 0
    cache_hits: int = 0
    cache_misses: int = 0
    encode_seconds: float = 0.0
    predict_seconds: float = 0.0


class Overloaded(Exception):
    """A queue is full. retry_after: whole seconds, at least 1, after which there should be room."""

    def __init__(self, retry_after: int) -> None:
        super().__init__(f"The server has more work than it can queue; try again in {retry_after} s.")
        self.retry_after = retry_after


class UnknownImage(Exception):
    """No image has this id: it was never there, or has been removed."""

    def __init__(self, image_id: str) -> None:
        super().__init__("There is no such image: it was removed, or it is too old; upload it again.")
        self.image_id = image_id


class NotEnabled(Exception):
    """This server cannot do that; the message is a sentence for people."""


class Engine(Protocol):
    """One model for many users. Everything but the workers happens on the event loop's thread.

    A task that is cancelled while it awaits one of these takes its work with it.
    """

    @property
    def variant(self) -> str: ...

    @property
    def ready(self) -> bool: ...

    async def add_image(self, data: bytes) -> ImageState:
        """Accept an image and queue its encoding. Raises ImageError; Overloaded when the queue is full."""
        ...

    def image_state(self, image_id: str) -> ImageState:
        """Raises UnknownImage."""
        ...

    async def wait(self, image_id: str, seconds: float) -> ImageState:
        """The image's state when it is ready or failed, or after `seconds`. Raises UnknownImage."""
        ...

    def remove(self, image_id: str) -> None:
        """Forget an image, and what waits for it. Raises UnknownImage."""
        ...

    async def embedding(self, image_id: str) -> EmbeddingFile:
        """Waits for the encoding. Raises UnknownImage, ImageError, and NotEnabled for a model that has none."""
        ...

    async def predict(
        self, image_id: str, prompts: Sequence[Prompt], multimask: bool | None, low_res_logits: bool
    ) -> list[Answer]:
        """An answer for each prompt, in their order. Raises UnknownImage, Overloaded, NotEnabled, PromptError."""
        ...

    def everything(self, image_id: str, options: EverythingOptions) -> AsyncIterator[Progress | tuple[MaskRecord, ...]]:
        """Progress, and at last the records. Closing the iterator cancels. Raises as `predict`, when iterated."""
        ...

    async def describe(self, image_id: str, what: Sequence[Prompt] | Sequence[MaskRecord]) -> list[MaskRecord]:
        """The masks, or the best mask of each prompt, with names or captions. Raises as `predict`."""
        ...

    def stats(self) -> EngineStats: ...

    def close(self) -> None:
        """End the workers; what waits fails. Nothing may be asked afterwards."""
        ...
