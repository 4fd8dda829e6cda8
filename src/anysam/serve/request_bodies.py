"""The bodies of requests as they come in: how large one may be, how much all may hold, how long one may take."""

import asyncio
from dataclasses import dataclass

from starlette.types import Message, Receive

from anysam.serve.problems import Problem

PAUSE_SECONDS = 30.0  # between two pieces of a body, at most
_RETRY_SECONDS = 5


@dataclass
class HeldBytes:
    """What the bodies of all requests take until they are answered. most: more is refused."""

    most: int
    now: int = 0


class CountedBody:
    """A request's `receive` that raises Problem 413, 503 or 408; call `release` when the request is answered.

    limit: bytes of this body; None where the route bounds it and keeps none of it in memory.
    """

    def __init__(self, receive: Receive, limit: int | None, held: HeldBytes, pause: float = PAUSE_SECONDS) -> None:
        self._receive, self._limit, self._held, self._pause = receive, limit, held, pause
        self._taken = 0
        self._whole = False

    async def __call__(self) -> Message:
        if self._whole:  # what comes now is that the client has gone, and that may take any time
            return await self._receive()
        try:
            async with asyncio.timeout(self._pause):
                message = await self._receive()
        except TimeoutError as error:
            raise Problem(408, f"Nothing more of the request came for {self._pause:g} s; send it again.") from error
        self._whole = not message.get("more_body", False)
        if self._limit is not None:
            self._take(len(message.get("body", b"")), self._limit)
        return message

    def release(self) -> None:
        """Give back what the body took."""
        if self._limit is not None:
            self._held.now -= self._taken
            self._taken = 0

    def _take(self, size: int, limit: int) -> None:
        self._taken += size
        self._held.now += size
        if self._taken > limit:
            raise too_large(limit)
        if self._held.now > self._held.most:
            detail = f"The server is busy with other uploads; try again in {_RETRY_SECONDS} s."
            raise Problem(503, detail, {"Retry-After": str(_RETRY_SECONDS)})


def too_large(limit: int) -> Problem:
    """413, with what the server takes."""
    return Problem(413, f"The request is larger than the {limit:,} bytes that this server takes; send less.")
