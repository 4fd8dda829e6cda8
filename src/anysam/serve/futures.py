"""Futures between threads and event loops: set once, awaited by several, by whoever is still there."""

import asyncio
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from typing import Any, TypeVar

Result = TypeVar("Result")


def answer(future: "Future[Result]", result: Result) -> None:
    """Set a future's result, unless whoever waited has gone."""
    with suppress(InvalidStateError):
        future.set_result(result)


def refuse(future: "Future[Result]", error: BaseException) -> None:
    """Set a future's error, unless whoever waited has gone."""
    with suppress(InvalidStateError):
        future.set_exception(error)


async def until(future: "Future[Any]") -> None:
    """Wait for a future that others wait for too: unlike `asyncio.wrap_future`, giving up does not cancel it."""
    loop = asyncio.get_running_loop()
    done = loop.create_future()

    def wake() -> None:
        if not done.done():
            done.set_result(None)

    future.add_done_callback(lambda _: tell(loop, wake))
    await done


def tell(loop: asyncio.AbstractEventLoop, call: Callable[[], object]) -> None:
    """Call something on an event loop from any thread; if the loop is closed, nobody is there to be told."""
    with suppress(RuntimeError):
        loop.call_soon_threadsafe(call)
