"""One model for many users: images are accepted, encoded in turn and kept; prompts on them are answered. No HTTP.

Encodes wait in one queue, prompts in another, tasks of seconds in a third, each with threads of its own, so that a
click never waits for an encode or for everything mode. Methods may be called from any event loop; the state is under
one lock, which is never held while something is computed.
"""

import asyncio
import dataclasses
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from anysam.automatic.options import EverythingOptions
from anysam.describe.find_options import FindOptions
from anysam.describe.interface import Describer, ImageTextModel, describe_records
from anysam.encoded_image import EncodedImage
from anysam.errors import AnySamError, ImageError, OptionError
from anysam.images import MAX_PIXELS, read_image
from anysam.models import PromptableModel
from anysam.predictor import Model
from anysam.prompts import Prompt
from anysam.results import MaskRecord
from anysam.serve.clicks import ClickPool, PreparedImage
from anysam.serve.encodes import EncodeQueue, default_batch
from anysam.serve.engine_types import (
    Answer,
    EmbeddingFile,
    Engine,
    EngineStats,
    ImageState,
    NotEnabled,
    Overloaded,
    Progress,
    UnknownImage,
)
from anysam.serve.futures import answer, refuse, tell, until
from anysam.serve.image_shelf import ImageShelf, ShelvedImage
from anysam.serve.logs import log_fault
from anysam.serve.long_work import LongJob, LongWork, Report
from anysam.serve.one_image import OneEncoding, embedding_file
from anysam.store import EmbeddingStore

# Of the memory for what is kept, the part that decoded pixels may take while they wait to be encoded; what does not
# fit is decoded again.
_WAITING_PIXELS = 8
_READERS = 2  # threads that decode uploads
_TEXT_HITS = 3  # masks of a text where several are asked for
_CLOSE_SECONDS = 5.0


@dataclass(frozen=True)
class EngineSettings:
    """What an engine may take.

    max_pixels: of an image. max_queue: images that wait to be encoded, at most. max_predicts_waiting: requests that
    wait to be answered. max_long_waiting: everything and describe requests that wait. memory_bytes: kept uploads and
    encodings; a half of it is for uploads. max_images: kept. image_ttl_s: seconds after its last use an image is
    forgotten. threads: processor cores to use; None for PyTorch's number. encode_batch: images encoded together, at
    most; None for one on a CPU and a few on a GPU. Raises OptionError for a value out of range.
    """

    max_pixels: int = MAX_PIXELS
    max_queue: int = 64
    max_predicts_waiting: int = 256
    max_long_waiting: int = 16
    memory_bytes: int = 1024**3
    max_images: int = 4096
    image_ttl_s: float = 3600.0
    threads: int | None = None
    encode_batch: int | None = None

    def __post_init__(self) -> None:
        for each in dataclasses.fields(self):
            value = getattr(self, each.name)
            if value is None and each.name in ("threads", "encode_batch"):
                continue
            number = int if each.name != "image_ttl_s" else (int, float)
            if isinstance(value, bool) or not isinstance(value, number) or not value > 0:
                raise OptionError(f"{each.name} must be a positive number, got {value!r}.")


def open_engine(
    model: Model,
    settings: EngineSettings,
    *,
    store: EmbeddingStore | None = None,
    image_text: ImageTextModel | None = None,
    describer: Describer | None = None,
) -> Engine:
    """Start an engine's threads. store: where encodings are kept on disk. image_text: for prompts of texts. describer:
    for words. Call `close` at the end.
    """
    return ModelEngine(model, settings, store, image_text, describer)


class ModelEngine:
    """See `engine_types.Engine`; made by `open_engine`."""

    def __init__(
        self,
        model: Model,
        settings: EngineSettings,
        store: EmbeddingStore | None,
        image_text: ImageTextModel | None,
        describer: Describer | None,
    ) -> None:
        self._model, self._settings, self._store = model, settings, store
        self._image_text, self._describer = image_text, describer
        threads = settings.threads or torch.get_num_threads()
        self._lock = threading.RLock()
        self._shelf = ImageShelf(
            settings.memory_bytes, settings.max_images, settings.image_ttl_s, self._was_removed, time.monotonic
        )
        self._closed = False
        self._reading = 0
        self._waiting_pixels = 0
        self._totals = {"everything": 0, "describe": 0, "rejected": 0, "cancelled": 0}
        self._everything_running = 0
        batch = default_batch(model) if settings.encode_batch is None else settings.encode_batch
        self._encodes = EncodeQueue(model, store, threads, batch)
        self._clicks = ClickPool(model, threads, settings.max_predicts_waiting)
        self._long = LongWork(1, max(1, threads // 2), settings.max_long_waiting)
        self._readers = ThreadPoolExecutor(_READERS, "anysam-read")

    @property
    def variant(self) -> str:
        return self._model.variant

    @property
    def ready(self) -> bool:
        return not self._closed

    # --- images -------------------------------------------------------------------------------------------------------

    async def add_image(self, data: bytes) -> ImageState:
        with self._counted():
            self._check_open()
            most = self._shelf.most_upload_bytes
            if len(data) > most:
                raise ImageError(
                    f"The image's file has {len(data):,} bytes, but this server keeps at most {most:,} for all; send a "
                    "smaller file."
                )
            with self._lock:
                if self._encodes.waiting + self._reading >= self._settings.max_queue:
                    raise Overloaded(self._encodes.seconds_to_wait())
                self._reading += 1
            try:
                reading = self._readers.submit(read_image, data, self._settings.max_pixels)
                pixels = await asyncio.wrap_future(reading)
            finally:
                with self._lock:
                    self._reading -= 1
            with self._lock:
                self._check_open()
                image = self._shelf.add(data, (pixels.shape[0], pixels.shape[1]))
                if image is None:
                    raise Overloaded(self._encodes.seconds_to_wait())
                self._encode(image, pixels)
                return self._state(image)

    def image_state(self, image_id: str) -> ImageState:
        with self._lock:
            return self._state(self._shelf.get(image_id))

    async def wait(self, image_id: str, seconds: float) -> ImageState:
        with self._using(image_id) as image:
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await until(image.settled)
        return self.image_state(image_id)

    def remove(self, image_id: str) -> None:
        with self._lock:
            self._shelf.remove(self._shelf.get(image_id))

    async def embedding(self, image_id: str) -> EmbeddingFile:
        if not isinstance(self._model.network, PromptableModel):
            raise NotEnabled(
                f"{self.variant} finds all objects at once and has no image embeddings; ask the server to predict."
            )
        with self._counted(), self._using(image_id) as image:
            prepared = await self._prepared(image)
            return await asyncio.wrap_future(self._readers.submit(embedding_file, prepared.encoded))

    def _state(self, image: ShelvedImage) -> ImageState:
        if image.ready or image.error is not None:
            return ImageState(image.image_id, image.size, "ready" if image.ready else "failed", None, image.error)
        position = None if image.job is None else self._encodes.position(image.job)
        return ImageState(image.image_id, image.size, "encoding" if position is None else "queued", position)

    @contextmanager
    def _using(self, image_id: str) -> Iterator[ShelvedImage]:
        """The image, which stays while it is used. Raises UnknownImage."""
        with self._lock:
            image = self._shelf.get(image_id)
            self._shelf.begin(image)
        try:
            yield image
        finally:
            with self._lock:
                self._shelf.end(image)

    def _encode(self, image: ShelvedImage, pixels: np.ndarray | None) -> None:
        """Queue the image's encoding; under the lock."""
        held = 0 if pixels is None else pixels.nbytes
        if self._waiting_pixels + held > self._settings.memory_bytes // _WAITING_PIXELS:
            pixels, held = None, 0
        self._waiting_pixels += held
        job = self._encodes.put(image.data, pixels, self._settings.max_pixels)
        image.job = job
        job.future.add_done_callback(partial(self._was_encoded, image, held))

    def _was_encoded(self, image: ShelvedImage, held: int, future: "Future[PreparedImage]") -> None:
        """Called when an encoding is done, has failed or was dropped."""
        error = None if future.cancelled() else future.exception()
        with self._lock:
            self._waiting_pixels -= held
            image.job = None
            if not future.cancelled() and error is None:
                image.ready = True
                self._shelf.keep(image, future.result())
            elif error is not None and not image.ready:
                image.error = _sentence(error)
            self._shelf.drop_old()
        if error is not None and not isinstance(error, (AnySamError, UnknownImage, Overloaded)):
            log_fault(None, error)
        if image.ready or image.error is not None:
            answer(image.settled, None)

    def _was_removed(self, image: ShelvedImage) -> None:
        """Called by the shelf, under the lock."""
        job, image.job = image.job, None
        if job is not None:
            self._encodes.discard(job)
            refuse(job.future, UnknownImage(image.image_id))
        answer(image.settled, None)

    async def _prepared(self, image: ShelvedImage) -> PreparedImage:
        """The image's encoding, made again if it has left memory; the caller uses the image."""
        with self._lock:
            if image.gone:
                raise UnknownImage(image.image_id)
            if image.error is not None:
                raise ImageError(image.error)
            if image.prepared is not None:
                return image.prepared
            if image.job is None:
                if self._encodes.waiting >= self._settings.max_queue:
                    raise Overloaded(self._encodes.seconds_to_wait())
                self._encode(image, None)
            job = image.job
            assert job is not None
            image.awaiting += 1
        try:
            await until(job.future)
        finally:
            with self._lock:
                image.awaiting -= 1
                # The first encoding was promised when the image was accepted; this one only to those who wait.
                if image.ready and not image.awaiting and self._encodes.discard(job):
                    job.future.cancel()
        error = job.future.exception()
        if error is None:
            return job.future.result()
        raise error if isinstance(error, (AnySamError, UnknownImage, Overloaded)) else ImageError(_sentence(error))

    # --- prompts ------------------------------------------------------------------------------------------------------

    async def predict(
        self, image_id: str, prompts: Sequence[Prompt], multimask: bool | None, low_res_logits: bool
    ) -> list[Answer]:
        with self._counted(), self._using(image_id) as image:
            return await self._predict(image, prompts, multimask, low_res_logits)

    async def _predict(
        self, image: ShelvedImage, prompts: Sequence[Prompt], multimask: bool | None, low_res_logits: bool
    ) -> list[Answer]:
        """As `predict`; the caller uses the image, and counts."""
        texts = [i for i, prompt in enumerate(prompts) if prompt.text is not None]
        others = [i for i in range(len(prompts)) if i not in set(texts)]
        if texts and self._image_text is None:
            raise NotEnabled("This server has no model for texts; give points, a box or a mask instead.")
        prepared = await self._prepared(image)
        answers: dict[int, Answer] = {}
        if others:
            asked = self._clicks.ask(prepared, [prompts[i] for i in others], multimask, low_res_logits)
            try:
                found: list[Answer] = await asyncio.wrap_future(asked)
                answers.update(zip(others, found, strict=True))
            finally:
                if asked.cancelled():
                    self._clicks.forget(asked)
        if texts:
            words = [str(prompts[i].text) for i in texts]
            hits = await self._long_result(partial(self._find, image.data, prepared.encoded, words, multimask))
            answers |= {i: hits[word] for i, word in zip(texts, words, strict=True)}
        return [answers[i] for i in range(len(prompts))]

    def _find(
        self, data: bytes, encoded: EncodedImage, words: Sequence[str], multimask: bool | None, report: Report
    ) -> dict[str, Answer]:
        """The hits of each text, best first."""
        assert self._image_text is not None
        pixels = read_image(data, self._settings.max_pixels)
        found: dict[str, list[MaskRecord]] = {word: [] for word in words}
        hits = self._model.find(
            pixels,
            list(found),
            self._image_text,
            FindOptions(limit=_TEXT_HITS if multimask else 1),
            progress=report,
            store=OneEncoding(encoded, self._store),
        )
        for record in hits:
            found[str(record.label)].append(record)
        return {word: Answer(tuple(records), 0 if records else None, None) for word, records in found.items()}

    # --- tasks of seconds ---------------------------------------------------------------------------------------------

    async def everything(
        self, image_id: str, options: EverythingOptions
    ) -> AsyncIterator[Progress | tuple[MaskRecord, ...]]:
        with self._counted(), self._using(image_id) as image:
            prepared = await self._prepared(image)
            loop = asyncio.get_running_loop()
            news: asyncio.Queue[float | None] = asyncio.Queue()
            run = partial(self._everything, image.data, prepared.encoded, options)
            job = self._long.put(run, lambda done: tell(loop, partial(news.put_nowait, done)))
            job.future.add_done_callback(lambda future: tell(loop, partial(news.put_nowait, None)))
            try:
                while (done := await news.get()) is not None:
                    yield Progress(done)
                records = job.future.result()
                self._totals["everything"] += 1
                yield records
            except GeneratorExit:
                self._totals["cancelled"] += not job.future.done()
                raise
            finally:
                self._long.cancel(job)

    def _everything(
        self, data: bytes, encoded: EncodedImage, options: EverythingOptions, report: Report
    ) -> tuple[MaskRecord, ...]:
        self._everything_running += 1
        try:
            if not options.crop_n_layers and options.tile is None:
                return tuple(self._model.everything(encoded, options, progress=report))
            pixels = read_image(data, self._settings.max_pixels)
            kept = OneEncoding(encoded, self._store)
            return tuple(self._model.everything(pixels, options, progress=report, store=kept))
        finally:
            self._everything_running -= 1

    async def describe(self, image_id: str, what: Sequence[Prompt] | Sequence[MaskRecord]) -> list[MaskRecord]:
        if self._describer is None:
            raise NotEnabled("This server has no model for words; start it with one.")
        prompts = [each for each in what if isinstance(each, Prompt)]
        records = [each for each in what if isinstance(each, MaskRecord)]
        if prompts and records:
            raise OptionError("Give prompts or masks, not both.")
        with self._counted(), self._using(image_id) as image:
            if prompts:
                answers = await self._predict(image, prompts, None, False)
                records = [each.masks[each.best] for each in answers if each.best is not None]
            described = await self._long_result(partial(self._describe, image.data, records))
            self._totals["describe"] += 1
            return described

    def _describe(self, data: bytes, records: list[MaskRecord], report: Report) -> list[MaskRecord]:
        assert self._describer is not None
        return describe_records(self._describer, read_image(data, self._settings.max_pixels), records, report)

    async def _long_result(self, run: Callable[[Report], Any]) -> Any:
        """A task's result; the task stops when nobody waits for it any more."""
        job: LongJob[Any] = self._long.put(run)
        try:
            return await asyncio.wrap_future(job.future)
        finally:
            self._long.cancel(job)

    # --- the engine itself --------------------------------------------------------------------------------------------

    def stats(self) -> EngineStats:
        with self._lock:
            self._shelf.drop_old()
            counts, (predicts, seconds) = self._encodes.counts, self._clicks.totals
            return EngineStats(
                images=len(self._shelf),
                ready=sum(image.ready for image in self._shelf.images()),
                queued_encodes=self._encodes.waiting,
                running_encodes=self._encodes.running,
                waiting_predicts=self._clicks.waiting,
                encodes_total=counts.encoded,
                failed_encodes_total=counts.failed,
                predicts_total=predicts,
                everything_total=self._totals["everything"],
                everything_running=self._everything_running,
                describe_total=self._totals["describe"],
                rejected_total=self._totals["rejected"],
                cancelled_total=self._totals["cancelled"],
                memory_bytes=self._shelf.upload_bytes + self._shelf.encoding_bytes,
                upload_bytes=self._shelf.upload_bytes,
                cache_hits=counts.hits,
                cache_misses=counts.misses,
                encode_seconds=counts.seconds,
                predict_seconds=seconds,
            )

    def close(self) -> None:
        with self._lock:
            if self._closed:
                return
            self._closed = True
        self._readers.shutdown(wait=False, cancel_futures=True)
        workers = (self._encodes, self._clicks, self._long)
        for each in workers:
            each.close()
        end = time.monotonic() + _CLOSE_SECONDS
        for each in workers:
            each.join(max(0.0, end - time.monotonic()))

    def _check_open(self) -> None:
        if self._closed:
            raise Overloaded(1)

    @contextmanager
    def _counted(self) -> Iterator[None]:
        """Count what is refused and what is given up."""
        try:
            yield
        except Overloaded:
            self._totals["rejected"] += 1
            raise
        except asyncio.CancelledError:
            self._totals["cancelled"] += 1
            raise


def _sentence(error: BaseException) -> str:
    """What people are told; of an unexpected error only its kind, because it may quote what is not theirs."""
    if isinstance(error, MemoryError):
        return "There is not enough memory to encode this image; send a smaller one."
    return str(error) if isinstance(error, AnySamError) else f"The image could not be encoded ({type(error).__name__})."
