"""Ctrl-C and SIGTERM: both end the work as KeyboardInterrupt, and neither in the middle of what must be whole."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def sigterm_interrupts() -> Iterator[None]:
    """Inside, SIGTERM raises KeyboardInterrupt, unless it is ignored. Only the main thread can; elsewhere nothing."""
    earlier = signal.getsignal(signal.SIGTERM)
    if not _in_main_thread() or earlier is signal.SIG_IGN:
        yield
        return
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, earlier or signal.SIG_DFL)


@contextmanager
def interrupts_deferred() -> Iterator[None]:
    """Inside, Ctrl-C and SIGTERM wait; at the end they do what they do. For moments, not for long work. Nests."""
    if not _in_main_thread():
        yield
        return
    waiting: list[int] = []

    def remember(number: int, _: FrameType | None) -> None:
        waiting.append(number)

    earlier = {number: signal.getsignal(number) for number in _SIGNALS}
    # A signal that is ignored, as Ctrl-C is in a background job, stays ignored.
    taken = {number: handler for number, handler in earlier.items() if callable(handler)}
    for number in taken:
        signal.signal(number, remember)
    try:
        yield
    finally:
        for number, handler in taken.items():
            signal.signal(number, handler)
    for each in waiting:
        signal.raise_signal(each)


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt
