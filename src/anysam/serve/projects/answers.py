"""What the routes of projects share: threads, answers, and what OpenAPI says of bodies and errors."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, TypeVar

import anyio
from anyio.to_thread import run_sync
from fastapi import Header, Path, Response

from anysam.serve.projects.bodies import inlined_schema
from anysam.serve.projects.database import CONNECTIONS

Done = TypeVar("Done")

ProjectId = Annotated[str, Path(pattern=r"^[0-9a-f]{32}$", description="a project's id")]
ImageId = Annotated[str, Path(pattern=r"^[0-9a-f]{32}$", description="an image's id")]
AnnotationId = Annotated[str, Path(pattern=r"^[0-9a-f]{32}$", description="an annotation's id, made by the client")]
CategoryNumber = Annotated[int, Path(ge=1, le=2**31 - 1, description="a category's id")]
IfMatch = Annotated[str | None, Header(alias="If-Match", description='"<version>", several of them, or *')]
IfNoneMatch = Annotated[str | None, Header(alias="If-None-Match")]
_ETAG = re.compile(r'(W/)?"([^"]*)"')


class Threads:
    """Work of the database in threads of its own number, so that others do not wait for it, nor it for connections."""

    def __init__(self) -> None:
        self._quick = anyio.CapacityLimiter(CONNECTIONS - 6)
        self._images = anyio.CapacityLimiter(4)  # each holds an image in memory
        self._transfers = anyio.CapacityLimiter(2)  # minutes each, perhaps

    async def quick(self, work: Callable[[], Done]) -> Done:
        """Do something short."""
        return await run_sync(work, limiter=self._quick)

    async def image(self, work: Callable[[], Done]) -> Done:
        """Do something with the bytes of an image."""
        return await run_sync(work, limiter=self._images)

    async def transfer(self, work: Callable[[], Done]) -> Done:
        """Export or import a project."""
        return await run_sync(work, limiter=self._transfers)


def etags(header: str | None, weak: bool) -> list[str]:
    """The tags in If-Match or If-None-Match, without quotes, a star as it is. weak: whether weak ones count."""
    if header is None:
        return []
    if header.strip() == "*":
        return ["*"]
    return [tag for mark, tag in _ETAG.findall(header) if (weak or not mark) and tag != "*"]


def answer(form: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """A JSON response."""
    data = json.dumps(form, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode("utf-8")
    return Response(data, status, {"Cache-Control": "no-store", **(headers or {})}, "application/json")


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """What OpenAPI says of these errors."""
    schema = {
        "type": "object",
        "required": ["title", "status", "detail"],
        "properties": {
            "type": {"type": "string"},
            "title": {"type": "string"},
            "status": {"type": "integer"},
            "detail": {"type": "string"},
            "request_id": {"type": "string"},
        },
    }
    content = {"application/problem+json": {"schema": schema}}
    return {status: {"description": _REASONS[status], "content": content} for status in statuses}


def json_body(model: type[Any]) -> dict[str, Any]:
    """What OpenAPI says of a JSON body that `read_body` reads."""
    content = {"application/json": {"schema": inlined_schema(model)}}
    return {"requestBody": {"required": True, "content": content}}


def form_body(kinds: Sequence[str]) -> dict[str, Any]:
    """What OpenAPI says of a body that is a file: a form with the part `file`, or the bytes as one of these types."""
    binary = {"type": "string", "format": "binary"}
    form = {"type": "object", "required": ["file"], "properties": {"file": binary}, "additionalProperties": False}
    content = {kind: {"schema": binary} for kind in kinds} | {"multipart/form-data": {"schema": form}}
    return {"requestBody": {"required": True, "content": content}}


UPLOAD_BODY = form_body(["application/octet-stream", "image/*"])
_REASONS = {
    400: "Malformed",
    404: "Unknown id",
    409: "Does not go with what is there, or is not enabled",
    412: "If-Match names another version",
    413: "Too large",
    415: "Of a type that is not accepted",
    422: "Values that are not accepted",
    500: "The database is damaged",
    503: "Busy; try again after Retry-After",
    507: "The disk is full or cannot be written",
}
