"""Prompts answered by a few threads, those that wait for the same image together. Knows no HTTP.

Each request gets what it would get alone, up to the rounding of larger matrix products, as in `Model.predict` with
several prompts. A request of many prompts is answered in parts, and others have their turn between them.
"""

import math
import threading
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch

from anysam.encoded_image import EncodedImage
from anysam.errors import PromptError
from anysam.models import PromptableModel
from anysam.predictor import Model
from anysam.prompting import check_encoded, decode_low_res, is_derived, resolve
from anysam.prompts import Prompt, ResolvedPrompt
from anysam.results import MaskRecord
from anysam.serve.engine_types import Answer, Overloaded
from anysam.serve.futures import answer, refuse
from anysam.serve.lanes import Lane
from anysam.serve.mask_records import MaskMaker

# Prompts decoded together. More gain little on a CPU, and the next request waits for as long.
_AT_ONCE = 8
# The share of the newest measurement in the mean time of a prompt, and what is assumed before there is one.
_NEWEST, _FIRST_GUESS = 0.1, 0.05


@dataclass(frozen=True, eq=False)
class PreparedImage:
    """An encoded image, and what is computed once for all masks on it."""

    encoded: EncodedImage
    masks: MaskMaker | None

    @classmethod
    def of(cls, model: Model, encoded: EncodedImage) -> "PreparedImage":
        return cls(encoded, MaskMaker.of(model, encoded))

    @property
    def nbytes(self) -> int:
        return sum(value.numel() * value.element_size() for value in self.encoded.features.values())


@dataclass(eq=False)
class _Click:
    """A request. next: its first prompt that nobody has taken yet. left: prompts without an answer."""

    image: PreparedImage
    prompts: tuple[Prompt, ...]
    multimask: bool | None
    low_res_logits: bool
    future: "Future[list[Answer]]"
    next: int = 0
    answers: dict[int, Answer] = field(default_factory=dict)


class _Part(NamedTuple):
    """Some prompts of a request: start to stop."""

    click: _Click
    start: int
    stop: int


class ClickPool:
    """Threads that answer prompts. threads: at least 1; each computes by itself, which suits many short operations.

    max_waiting: requests that wait, at most.
    """

    def __init__(self, model: Model, threads: int, max_waiting: int) -> None:
        self._model = model
        self._threads, self._max_waiting = threads, max_waiting
        self._lock = threading.Lock()
        self._mean = _FIRST_GUESS
        self._seconds, self._answered = 0.0, 0
        self._lane: Lane[_Click, list[_Part]] = Lane("click", _take, self._answer_parts, threads, 1)

    def ask(
        self, image: PreparedImage, prompts: Sequence[Prompt], multimask: bool | None, low_res_logits: bool
    ) -> "Future[list[Answer]]":
        """An answer for each prompt. Cancel the future to drop what is not done yet. Raises Overloaded."""
        waiting = self._lane.waiting()
        if len(waiting) >= self._max_waiting:
            raise Overloaded(self.seconds_to_wait(waiting))
        click = _Click(image, tuple(prompts), multimask, low_res_logits, Future())
        if not click.prompts:
            click.future.set_result([])
            return click.future
        if not self._lane.put(click):
            raise Overloaded(1)
        return click.future

    def seconds_to_wait(self, waiting: Sequence[_Click]) -> int:
        """Whole seconds, at least 1, until what waits should be answered."""
        prompts = sum(len(click.prompts) - click.next for click in waiting)
        return max(1, math.ceil(prompts * self._mean / self._threads))

    def forget(self, future: "Future[list[Answer]]") -> None:
        """Remove a cancelled request from the queue."""
        for click in self._lane.waiting():
            if click.future is future:
                self._lane.discard(click)

    @property
    def waiting(self) -> int:
        """Requests that wait, or wait for the rest of their answers."""
        return len(self._lane.waiting())

    @property
    def totals(self) -> tuple[int, float]:
        """Prompts answered, and the seconds that threads took for them."""
        return self._answered, self._seconds

    def close(self) -> None:
        for click in self._lane.close():
            refuse(click.future, Overloaded(1))

    def join(self, seconds: float) -> bool:
        return self._lane.join(seconds)

    def _answer_parts(self, parts: list[_Part]) -> None:
        if not parts:
            return
        good: list[tuple[_Part, list[ResolvedPrompt]]] = []
        for part in parts:
            try:
                good.append((part, self._resolve(part)))
            except Exception as error:  # this request's alone
                refuse(part.click.future, error)
        try:
            self._answer(good)
        except Exception as error:
            if len(good) == 1:
                refuse(good[0][0].click.future, error)
            for each in good if len(good) > 1 else []:  # perhaps it is one of them, or the size of all
                try:
                    self._answer([each])
                except Exception as own:
                    refuse(each[0].click.future, own)

    def _count(self, prompts: int, seconds: float) -> None:
        with self._lock:
            self._mean += _NEWEST * (seconds / prompts - self._mean)
            self._seconds += seconds
            self._answered += prompts

    def _resolve(self, part: _Part) -> list[ResolvedPrompt]:
        """The prompts in points, box and mask. Raises PromptError, which says which of several it is."""
        resolved = []
        for i in range(part.start, part.stop):
            try:
                resolved.append(resolve(self._model, part.click.prompts[i], part.click.image.encoded))
            except PromptError as error:
                many = len(part.click.prompts)
                raise error if many == 1 else PromptError(f"Prompt {i + 1} of {many}: {error}") from error
        return resolved

    def _answer(self, parts: list[tuple[_Part, list[ResolvedPrompt]]]) -> None:
        """Answers to prompts on one image with one wish for the number of masks."""
        if not parts:
            return
        began = time.perf_counter()
        click = parts[0][0].click
        places = [(part.click, i) for part, _ in parts for i in range(part.start, part.stop)]
        resolved = [prompt for _, prompts in parts for prompt in prompts]
        answers = dict(zip(places, self._masks(click, places, resolved), strict=True))
        self._count(len(places), time.perf_counter() - began)
        for part, _ in parts:
            for i in range(part.start, part.stop):
                part.click.answers[i] = answers[part.click, i]
            count = len(part.click.prompts)
            if len(part.click.answers) == count:
                answer(part.click.future, [part.click.answers[i] for i in range(count)])

    def _masks(self, click: _Click, places: list[tuple[_Click, int]], resolved: list[ResolvedPrompt]) -> list[Answer]:
        model, image = self._model, click.image
        quick = isinstance(model.network, PromptableModel) and image.masks is not None
        whole = [i for i, prompt in enumerate(resolved) if not quick or is_derived(model, prompt)]
        others = [i for i in range(len(resolved)) if i not in whole]
        answers: dict[int, Answer] = {}
        if others and image.masks is not None:
            check_encoded(model, image.encoded)
            with torch.inference_mode():
                decoded = decode_low_res(model, image.encoded, [resolved[i] for i in others], click.multimask)
            for i, each in zip(others, decoded, strict=True):
                records = [
                    image.masks.record(*pair) for pair in zip(each.low_res_logits, each.iou_predictions, strict=True)
                ]
                answers[i] = _answer(records, each.iou_predictions, each.low_res_logits, places[i][0].low_res_logits)
        if whole:
            asked = [places[i][0].prompts[places[i][1]] for i in whole]
            for i, found in zip(whole, model.predict(image.encoded, asked, click.multimask), strict=True):
                pairs = zip(found.masks, found.iou_predictions, strict=True)
                records = [MaskRecord.from_mask(mask, score) for mask, score in pairs]
                answers[i] = _answer(records, found.iou_predictions, found.low_res_logits, places[i][0].low_res_logits)
        return [answers[i] for i in range(len(resolved))]


def _answer(records: list[MaskRecord], scores: np.ndarray, logits: np.ndarray, wanted: bool) -> Answer:
    return Answer(tuple(records), int(np.argmax(scores)), logits if wanted else None)


def _take(queue: deque[_Click]) -> list[_Part]:
    """The first request's next prompts, with those of others that can be decoded with them.

    A request that is not done goes behind the others. What was cancelled, or has failed, is dropped.
    """
    first: _Click | None = None
    parts, room = [], _AT_ONCE
    for click in list(queue):
        if click.future.done():
            queue.remove(click)
            continue
        if first is None:
            first = click
        if click.image is not first.image or click.multimask != first.multimask or room == 0:
            continue
        stop = min(len(click.prompts), click.next + room)
        parts.append(_Part(click, click.next, stop))
        room -= stop - click.next
        click.next = stop
        queue.remove(click)
        if stop < len(click.prompts):
            queue.append(click)
    return parts
