"""What every request passes before it is looked at: its id, host, origin, token and size; and what every answer gets.

Plain ASGI, so that bodies are counted as they come in and answers may be streams. What a request carries is written to
no log: a line has its id, method, route, status and milliseconds.
"""

import hmac
import logging
import secrets
import time
import traceback
from collections.abc import Callable
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from anysam.serve.problems import FAULT, Problem, as_problem, problem_response
from anysam.serve.settings import ServeSettings

log = logging.getLogger("anysam.serve")

Observe = Callable[[str, str, int, float], None]

_PRIVATE = ("/v1", "/metrics", "/openapi.json")
_SAFE = ("GET", "HEAD", "OPTIONS")
_METHODS = "GET, POST, PUT, PATCH, DELETE"
_REQUEST_HEADERS = "Authorization, Content-Type, If-Match, If-None-Match"
_ANSWER_HEADERS = (
    "ETag, Content-Disposition, Location, Retry-After, X-Export-Losses, X-Original-Size, X-Input-Size, X-Request-Id"
)
_ROOM = 64 * 1024  # around a file in a multipart body

# Everything from this server alone; WebAssembly may be compiled, scripts and styles inside the page are not run.
_CSP = (
    "default-src 'self'; script-src 'self' 'wasm-unsafe-eval'; style-src 'self'; img-src 'self' blob: data:; "
    "worker-src 'self' blob:; connect-src 'self' blob: data:; object-src 'none'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)
_HEADERS = (
    ("content-security-policy", _CSP),
    ("cross-origin-opener-policy", "same-origin"),  # these three let the page use several threads
    ("cross-origin-embedder-policy", "require-corp"),
    ("referrer-policy", "no-referrer"),
    ("x-content-type-options", "nosniff"),
    ("x-frame-options", "DENY"),
)


class Guard:
    """The outermost ASGI application. observe: called with method, route, status and seconds of every request."""

    def __init__(self, app: ASGIApp, settings: ServeSettings, observe: Observe | None = None) -> None:
        self.app = app
        self.settings = settings
        self.observe = observe

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":  # there are no WebSockets here
            await send({"type": "websocket.close", "code": 1008})
            return
        request_id = secrets.token_hex(8)
        scope["anysam_request_id"] = request_id
        headers = _headers(scope)
        answer = _Answer(send, request_id, self._cors(headers))
        start = time.perf_counter()
        try:
            refusal = self._refusal(scope, headers)
            if refusal is not None:
                await _tell(refusal, request_id, scope, receive, answer)
            elif scope["method"] == "OPTIONS" and "access-control-request-method" in headers:
                await answer({"type": "http.response.start", "status": 204, "headers": []})
                await answer({"type": "http.response.body", "body": b""})
            else:
                await self.app(scope, self._counted(scope, receive), answer)
        except Exception as error:  # the outermost place: the server goes on
            problem = as_problem(error)
            if problem is None:
                log.error("%s fault %s at %s", request_id, type(error).__name__, _places(error))
                problem = Problem(500, FAULT)
            if answer.status is None:
                await _tell(problem, request_id, scope, receive, answer)
        finally:
            seconds = time.perf_counter() - start
            route = getattr(scope.get("route"), "path", "-")
            status = answer.status or 499  # as others say: nobody was there any more
            log.info("%s %s %s %d %.0f ms", request_id, scope["method"], route, status, 1000 * seconds)
            if self.observe is not None:
                self.observe(scope["method"], route, status, seconds)

    def _refusal(self, scope: Scope, headers: dict[str, str]) -> Problem | None:
        host, origin = headers.get("host", ""), headers.get("origin")
        if self.settings.hosts and _host_name(host) not in self.settings.hosts:
            return Problem(403, "The Host header names another server; --allow-host lets a name in.")
        if origin is not None and origin not in self.settings.cors and scope["method"] not in _SAFE:
            # Behind a proxy that ends TLS the scheme differs; the host and port are what counts.
            if urlsplit(origin).netloc.lower() != host.lower():
                return Problem(403, "Pages of other origins may not use this server; --cors lets one in.")
        if scope["method"] == "OPTIONS":
            return None
        if self.settings.token is not None and scope["path"].startswith(_PRIVATE):
            kind, _, token = headers.get("authorization", "").partition(" ")
            right = hmac.compare_digest(token.strip().encode("utf-8"), self.settings.token.encode("utf-8"))
            if kind.lower() != "bearer" or not right:
                return Problem(
                    401,
                    "This server needs its token, as `Authorization: Bearer TOKEN`.",
                    {"WWW-Authenticate": 'Bearer realm="anysam"'},
                )
        return self._too_large(scope, headers.get("content-length"))

    def _too_large(self, scope: Scope, length: str | None) -> Problem | None:
        limit = self._limit(scope)
        if length is not None and length.isascii() and length.isdigit() and int(length) > limit:
            return _excess(limit)
        return None

    def _limit(self, scope: Scope) -> int:
        """Bytes that a body may have. Projects bound their own uploads; imports are larger than images."""
        path = scope["path"].rstrip("/")
        if path.startswith("/v1/projects/") and path.endswith("/import"):
            return 1 << 62
        files = path == "/v1/images" or (path.startswith("/v1/projects/") and path.endswith("/images"))
        return self.settings.upload_bytes + _ROOM if files else self.settings.json_bytes

    def _counted(self, scope: Scope, receive: Receive) -> Receive:
        limit, taken = self._limit(scope), 0

        async def counted() -> Message:
            nonlocal taken
            message = await receive()
            taken += len(message.get("body", b""))
            if taken > limit:
                raise _excess(limit)
            return message

        return counted

    def _cors(self, headers: dict[str, str]) -> list[tuple[bytes, bytes]]:
        origin = headers.get("origin")
        if origin is None or origin not in self.settings.cors:
            return [(b"cross-origin-resource-policy", b"same-origin")]
        named = {
            "access-control-allow-origin": origin,
            "access-control-allow-methods": _METHODS,
            "access-control-allow-headers": _REQUEST_HEADERS,
            "access-control-expose-headers": _ANSWER_HEADERS,
            "access-control-max-age": "600",
            "cross-origin-resource-policy": "cross-origin",
            "vary": "Origin",
        }
        return [(name.encode("ascii"), value.encode("ascii")) for name, value in named.items()]


class _Answer:
    """The way back, which adds headers and remembers the status."""

    def __init__(self, send: Send, request_id: str, more: list[tuple[bytes, bytes]]) -> None:
        self._send = send
        self._more = [(name.encode("ascii"), value.encode("ascii")) for name, value in _HEADERS]
        self._more += [*more, (b"x-request-id", request_id.encode("ascii"))]
        self.status: int | None = None

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message = {**message, "headers": [*message.get("headers", []), *self._more]}
        await self._send(message)


def _excess(limit: int) -> Problem:
    return Problem(413, f"The request is larger than the {limit:,} bytes that this server takes; send less.")


async def _tell(problem: Problem, request_id: str, scope: Scope, receive: Receive, send: Send) -> None:
    await problem_response(problem.status, problem.detail, request_id, problem.headers)(scope, receive, send)


def _headers(scope: Scope) -> dict[str, str]:
    return {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}


def _host_name(host: str) -> str:
    """The name in a Host header: without its port, in small letters; "[::1]:8000" is "::1"."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.rpartition(":")[0].lower() if host.rpartition(":")[2].isdigit() and ":" in host else host.lower()


def _places(error: BaseException) -> str:
    """Where an error came from, without its message, which may quote what a user sent."""
    frames = traceback.extract_tb(error.__traceback__)[-6:]
    return " < ".join(f"{frame.filename.rpartition('/')[2]}:{frame.lineno}" for frame in reversed(frames))
