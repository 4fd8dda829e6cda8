"""Long work over HTTP: given up when the client goes, told as server-sent events while it goes on."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import suppress
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from anysam.serve.logs import log_fault
from anysam.serve.problems import FAULT, ClientGone, Problem, as_problem, problem_form

Item = TypeVar("Item")
Done = TypeVar("Done")

_HEARTBEAT_SECONDS = 10.0
_FIRST_SECONDS = 0.25  # how long the first item may take and still decide the status


async def unless_gone(request: Request, work: Coroutine[Any, Any, Done]) -> Done:
    """What `work` gives; it is cancelled when the client goes first, and ClientGone raised.

    The request's body must have been read.
    """
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_gone(request.receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientGone
    finally:
        await _end(task)
        await _end(gone)


class EventStream(Response):
    """Items of an iterator as server-sent events. form: an item as the event's name and data.

    The iterator is closed when the client goes. An error that comes later than the first moments is an event `problem`.
    """

    media_type = "text/event-stream"

    def __init__(
        self, items: AsyncIterator[Item], form: Callable[[Item], tuple[str, Mapping[str, Any]]], request_id: str | None
    ) -> None:
        super().__init__()
        self._items = items
        self._form = form
        self._request_id = request_id
        self._next: asyncio.Task[Item] | None = None

    async def start(self) -> None:
        """Wait a moment for the first item, so that what is wrong from the beginning is raised here."""
        self._next = asyncio.ensure_future(_following(self._items))
        await asyncio.wait({self._next}, timeout=_FIRST_SECONDS)
        if self._next.done() and self._next.exception() is not None:
            await _close(self._items)
            self._next.result()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-store")]
        headers += [(b"x-accel-buffering", b"no")]  # nginx would hold events back
        gone = asyncio.ensure_future(_gone(receive))
        try:
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            while True:
                following = self._next or asyncio.ensure_future(_following(self._items))
                self._next = following
                await asyncio.wait({following, gone}, timeout=_HEARTBEAT_SECONDS, return_when=asyncio.FIRST_COMPLETED)
                if gone.done():
                    return
                if not following.done():
                    await send({"type": "http.response.body", "body": b": still here\n\n", "more_body": True})
                    continue
                self._next = None
                try:
                    event, data = self._form(following.result())
                except StopAsyncIteration:
                    break
                except Exception as error:  # the status has been sent: what went wrong is told as an event
                    problem = as_problem(error)
                    if problem is None:
                        log_fault(self._request_id, error)
                        problem = Problem(500, FAULT)
                    await send(_event("problem", problem_form(problem.status, problem.detail, self._request_id)))
                    break
                await send(_event(event, data))
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            await _end(gone)
            if self._next is not None:
                await _end(self._next)
            await _close(self._items)


def _event(name: str, data: Mapping[str, Any]) -> dict[str, Any]:
    body = f"event: {name}\ndata: {json.dumps(data, separators=(',', ':'))}\n\n".encode()
    return {"type": "http.response.body", "body": body, "more_body": True}


async def _following(items: AsyncIterator[Item]) -> Item:
    return await anext(items)


async def _close(items: AsyncIterator[Any]) -> None:
    close = getattr(items, "aclose", None)
    if close is not None:
        await close()


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _end(task: "asyncio.Future[Any]") -> None:
    """Cancel a task and wait until it has ended; what it raised is nobody's."""
    if not task.done():
        task.cancel()
        with suppress(asyncio.CancelledError, Exception):
            await task
    if task.done() and not task.cancelled():
        task.exception()  # asyncio would log what nobody asked for, with its message, which may quote a user
