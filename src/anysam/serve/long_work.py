"""Tasks of seconds, one at a time beside the clicks: everything mode, words, texts. Knows no HTTP and no image."""

import math
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from anysam.serve.engine_types import Overloaded
from anysam.serve.futures import answer, refuse
from anysam.serve.lanes import Lane

Result = TypeVar("Result")
Report = Callable[[float], None]

_NEWEST, _FIRST_GUESS = 0.3, 10.0


class _Cancelled(Exception):
    """Nobody wants the result any more; raised out of the model's progress callback."""


@dataclass(eq=False)
class LongJob(Generic[Result]):
    """A task that waits or runs. listener: called with the part done, 0 to 1, in the thread that works."""

    run: Callable[[Report], Result]
    listener: Report
    future: "Future[Result]" = field(default_factory=Future)
    cancelled: bool = False

    def report(self, done: float) -> None:
        """Called by the task; raises when it is to stop."""
        if self.cancelled or self.future.cancelled():
            raise _Cancelled
        self.listener(done)


class LongWork:
    """threads: tasks at a time. torch_threads: of one of them. max_waiting: at most so many more wait."""

    def __init__(self, threads: int, torch_threads: int, max_waiting: int) -> None:
        self._threads, self._max_waiting = threads, max_waiting
        self._lock = threading.Lock()
        self._running: set[LongJob[Any]] = set()
        self._mean = _FIRST_GUESS
        self._lane: Lane[LongJob[Any], LongJob[Any]] = Lane("long", _take, self._do, threads, torch_threads)

    def put(self, run: Callable[[Report], Result], listener: Report = lambda done: None) -> LongJob[Result]:
        """Queue a task, a function of a callback for the part done. Raises Overloaded."""
        waiting = len(self._lane.waiting())
        if waiting >= self._max_waiting:
            raise Overloaded(max(1, math.ceil((waiting + 1) * self._mean / self._threads)))
        job = LongJob(run, listener)
        if not self._lane.put(job):
            raise Overloaded(1)
        return job

    def cancel(self, job: LongJob[Any]) -> None:
        """Drop a task that waits; stop one that runs when it next tells how far it is."""
        job.cancelled = True
        if self._lane.discard(job):
            job.future.cancel()

    @property
    def running(self) -> int:
        return self._lane.busy

    @property
    def waiting(self) -> int:
        return len(self._lane.waiting())

    def close(self) -> None:
        for job in self._lane.close():
            refuse(job.future, Overloaded(1))
        with self._lock:
            for job in self._running:
                job.cancelled = True
                refuse(job.future, Overloaded(1))

    def join(self, seconds: float) -> bool:
        return self._lane.join(seconds)

    def _do(self, job: LongJob[Any]) -> None:
        with self._lock:
            self._running.add(job)
        began = time.perf_counter()
        try:
            job.report(0.0)
            answer(job.future, job.run(job.report))
        except _Cancelled:
            job.future.cancel()
        except Exception as error:  # this task's alone
            refuse(job.future, error)
        finally:
            with self._lock:
                self._running.discard(job)
                self._mean += _NEWEST * (time.perf_counter() - began - self._mean)


def _take(queue: "deque[LongJob[Any]]") -> LongJob[Any]:
    return queue.popleft()
