"""Threads that take work from one queue. Knows no model and no image."""

import threading
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

import torch

from anysam.serve.logs import log_fault

Waiting = TypeVar("Waiting")
Taken = TypeVar("Taken")


class Lane(Generic[Waiting, Taken]):
    """Work that waits, first come first served, and the threads that do it.

    take: called with everything that waits, at least one; removes what it returns, and may put something back. It is
    called under the lane's lock and must be quick. work: does what was taken, in one of the threads; reports by
    itself, also its errors: what it raises is logged, and the thread goes on. torch_threads: how many threads PyTorch
    uses for an operation within each of these threads.
    """

    def __init__(
        self,
        name: str,
        take: Callable[[deque[Waiting]], Taken],
        work: Callable[[Taken], None],
        threads: int,
        torch_threads: int,
    ) -> None:
        self._take, self._work = take, work
        self._queue: deque[Waiting] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._busy = 0
        everyone = torch.get_num_threads()
        started = threading.Barrier(threads + 1)
        self._threads = [
            threading.Thread(target=self._run, args=(started, torch_threads), name=f"anysam-{name}-{i}", daemon=True)
            for i in range(threads)
        ]
        for thread in self._threads:
            thread.start()
        started.wait()
        # Threads that begin later take over what was set last.
        torch.set_num_threads(everyone)

    def put(self, item: Waiting) -> bool:
        """Queue it; False, and nothing is done, once the lane is closed."""
        with self._changed:
            if self._closed:
                return False
            self._queue.append(item)
            self._changed.notify()
        return True

    def discard(self, item: Waiting) -> bool:
        """Remove what still waits; False where it does not."""
        with self._changed:
            for i, waiting in enumerate(self._queue):
                if waiting is item:
                    del self._queue[i]
                    return True
        return False

    def waiting(self) -> list[Waiting]:
        """What waits now, first come first."""
        with self._changed:
            return list(self._queue)

    def position(self, item: Waiting) -> int | None:
        """How many come before; None for what does not wait."""
        with self._changed:
            return next((i for i, waiting in enumerate(self._queue) if waiting is item), None)

    @property
    def busy(self) -> int:
        """How many threads are at work."""
        return self._busy

    def close(self) -> list[Waiting]:
        """Take nothing more; what still waits is returned. See `join`."""
        with self._changed:
            self._closed = True
            left = list(self._queue)
            self._queue.clear()
            self._changed.notify_all()
        return left

    def join(self, seconds: float) -> bool:
        """Wait for the threads to end after `close`; False where one has not after so many seconds."""
        for thread in self._threads:
            thread.join(seconds)
        return not any(thread.is_alive() for thread in self._threads)

    def _run(self, started: threading.Barrier, torch_threads: int) -> None:
        # PyTorch gives a thread the number that was set last, once, when it first asks; what was set before is lost.
        torch.get_num_threads()
        torch.set_num_threads(torch_threads)
        started.wait()
        while True:
            with self._changed:
                while not self._queue and not self._closed:
                    self._changed.wait()
                if self._closed:
                    return
                taken = self._take(self._queue)
                self._busy += 1
                if self._queue:  # one long request is work for several threads
                    self._changed.notify()
            try:
                self._work(taken)
            except Exception as error:  # the thread serves everybody
                log_fault(None, error)
            finally:
                del taken
                with self._changed:
                    self._busy -= 1
