"""Errors as application/problem+json (RFC 9457): which exception is which status, and the sentence for people."""

import json
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.responses import Response

from anysam.errors import AnySamError, ImageError, MissingExtraError, OptionError, PromptError
from anysam.serve.engine_types import NotEnabled, Overloaded, UnknownImage

MEDIA_TYPE = "application/problem+json"
FAULT = "This is a fault of the server; its log has more under this request's id."
_LONGEST = 1000  # characters of a detail, which may quote what was received
_LISTED = 3  # mistakes in one detail


class ProblemBody(BaseModel):
    """What went wrong, as RFC 9457 has it. detail: one sentence. request_id: as in the server's log."""

    type: str = "about:blank"
    title: str
    status: int = Field(ge=400, le=599)
    detail: str
    request_id: str | None = None


class Problem(Exception):
    """A request that is answered with an error."""

    def __init__(self, status: int, detail: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.headers = dict(headers or {})


class ClientGone(Exception):
    """Nobody waits for the answer any more."""


def problem_form(status: int, detail: str, request_id: str | None) -> dict[str, Any]:
    """The JSON form of a problem. Whatever a client has sent and the detail quotes can be written as UTF-8."""
    clean = detail.encode("utf-8", "replace").decode("utf-8")
    clean = clean if len(clean) <= _LONGEST else f"{clean[:_LONGEST]}..."
    title = next((each.phrase for each in HTTPStatus if each.value == status), "Error")
    return ProblemBody(title=title, status=status, detail=clean, request_id=request_id).model_dump()


def problem_response(
    status: int, detail: str, request_id: str | None = None, headers: Mapping[str, str] | None = None
) -> Response:
    """A whole answer."""
    body = json.dumps(problem_form(status, detail, request_id), ensure_ascii=False).encode("utf-8")
    return Response(body, status, dict(headers or {}), MEDIA_TYPE)


def as_problem(error: Exception) -> Problem | None:
    """What an exception of ours means to a client; None for one that is a fault of this program."""
    if isinstance(error, Problem):
        return error
    if isinstance(error, Overloaded):
        return Problem(503, str(error), {"Retry-After": str(error.retry_after)})
    if isinstance(error, UnknownImage):
        return Problem(404, str(error))
    if isinstance(error, (NotEnabled, MissingExtraError)):
        return Problem(409, str(error))
    status = getattr(error, "status", None)  # of errors that know it, such as those of projects
    if isinstance(error, AnySamError) and isinstance(status, int):
        after = getattr(error, "retry_after", None)
        return Problem(status, str(error), {"Retry-After": str(after)} if after else {})
    if isinstance(error, ImageError):
        return Problem(415, str(error))
    if isinstance(error, (PromptError, OptionError)):
        return Problem(422, str(error))
    return None


def install(app: FastAPI) -> None:
    """Answer every error of this package, of the routing and of the checks of bodies with a problem."""

    async def tell(request: Request, error: Exception) -> Response:
        problem = as_problem(error)
        if problem is None:
            raise error
        return problem_response(problem.status, problem.detail, _request_id(request), problem.headers)

    async def tell_http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        detail = {404: "There is nothing at this address.", 405: "This address does not take that method."}
        text = detail.get(error.status_code, str(error.detail))
        return problem_response(error.status_code, text, _request_id(request), error.headers)

    async def tell_invalid(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        mistakes = error.errors()
        broken = any(each.get("type") == "json_invalid" for each in mistakes)
        return problem_response(400 if broken else 422, _sentence(mistakes), _request_id(request))

    async def tell_fault(request: Request, error: Exception) -> Response:
        return problem_response(500, FAULT, _request_id(request))  # the guard logs it

    app.add_exception_handler(Exception, tell_fault)
    for kind in (Problem, Overloaded, UnknownImage, NotEnabled, AnySamError):
        app.add_exception_handler(kind, tell)
    app.add_exception_handler(HTTPException, tell_http)
    app.add_exception_handler(RequestValidationError, tell_invalid)


def _request_id(request: Request) -> str | None:
    found = request.scope.get("anysam_request_id")
    return found if isinstance(found, str) else None


def _sentence(mistakes: Any) -> str:
    """The first few mistakes of a body, by their places. What was received is not repeated: it may be huge."""
    told = []
    for each in mistakes[:_LISTED]:
        place = ".".join(str(part) for part in each.get("loc", ()) if part != "body")
        told.append(f"{place}: {each.get('msg')}" if place else str(each.get("msg")))
    more = f" (and {len(mistakes) - _LISTED} more)" if len(mistakes) > _LISTED else ""
    return f"The request is not accepted: {'; '.join(told)}{more}."
