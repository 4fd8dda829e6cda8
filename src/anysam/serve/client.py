"""A small client of the server, for Python programs: `Client("http://127.0.0.1:8000")`.

with Client("http://127.0.0.1:8000") as client:
    image = client.add_image("photo.jpg")
    (answer,) = client.predict(image, [Prompt(points=[[320, 240]])])
    mask = answer.masks[answer.best].to_mask()
"""

import base64
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import httpx
import numpy as np

from anysam.errors import AnySamError, ImageError, OptionError
from anysam.prompts import Prompt
from anysam.results import MaskRecord
from anysam.serve.engine_types import Answer
from anysam.serve.settings import check_token

Read = TypeVar("Read")

_LONGEST_WAIT = 30.0  # seconds, of one request


class ServerError(AnySamError):
    """The server did not do what was asked. status: of HTTP; 0 where no answer came, or none that is understood.
    retry_after: seconds, or None.
    """

    def __init__(self, status: int, detail: str, retry_after: float | None = None) -> None:
        super().__init__(detail)
        self.status = status
        self.retry_after = retry_after


class Client:
    """One server. May be used by several threads; close it, or use it in a `with`.

    url: such as http://127.0.0.1:8000. token: what the server was started with. seconds: how long an answer may take.
    All methods raise ServerError; this one OptionError for what is no address, no token and no time.
    """

    def __init__(self, url: str, token: str | None = None, seconds: float = 300.0) -> None:
        if not url.startswith(("http://", "https://")):
            raise OptionError(f"A server's address begins with http:// or https://, got {url!r}.")
        if token is not None:
            check_token(token)
        if not seconds > 0:
            raise OptionError(f"seconds must be above 0, got {seconds!r}.")
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        try:
            self._http = httpx.Client(base_url=url, headers=headers, timeout=seconds, trust_env=False)
        except httpx.InvalidURL as error:
            raise OptionError(f"A server's address is like http://127.0.0.1:8000, got {url!r}: {error}.") from error

    def __enter__(self) -> "Client":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def models(self) -> dict[str, Any]:
        """What the server has: `served`, `models`, `text`, `describe`, ..."""
        return self._json(self._http.build_request("GET", "/v1/models"), dict)

    def add_image(self, image: str | Path | bytes, wait: float = 30.0) -> str:
        """Upload an image file or its bytes, and wait up to so many seconds for its encoding. Returns its id.

        Raises ImageError for a file that cannot be read and for an image that the server could not encode.
        """
        data = image if isinstance(image, bytes) else _bytes(Path(image))
        headers = {"Content-Type": "application/octet-stream"}
        request = self._http.build_request("POST", "/v1/images", content=data, headers=headers)
        image_id = self._json(request, lambda form: str(form["id"]))
        if wait > 0:
            self.wait(image_id, wait)
        return image_id

    def wait(self, image_id: str, seconds: float = 30.0) -> bool:
        """Whether the image can be clicked, after at most so many seconds. Raises ImageError when it never can."""
        end = time.monotonic() + seconds
        while True:
            left = min(max(0.0, end - time.monotonic()), _LONGEST_WAIT)
            request = self._http.build_request("GET", f"/v1/images/{image_id}", params={"wait": left})
            state, error = self._json(request, lambda form: (str(form["state"]), str(form["error"])))
            if state == "failed":
                raise ImageError(error)
            if state == "ready" or time.monotonic() >= end:
                return state == "ready"

    def remove(self, image_id: str) -> None:
        """Have the server forget an image."""
        self._send(self._http.build_request("DELETE", f"/v1/images/{image_id}"))

    def predict(
        self,
        image_id: str,
        prompts: Sequence[Prompt],
        multimask: bool | None = None,
        low_res_logits: bool = False,
    ) -> list[Answer]:
        """Masks for each prompt, in their order; with `low_res_logits` what refines them."""
        body = {
            "prompts": [prompt.to_dict() for prompt in prompts],
            "multimask": multimask,
            "low_res_logits": low_res_logits,
        }
        request = self._http.build_request("POST", f"/v1/images/{image_id}/predict", json=body)
        return self._json(request, lambda form: [_answer(each) for each in form["results"]])

    def everything(
        self,
        image_id: str,
        preset: str = "default",
        options: Mapping[str, Any] | None = None,
        progress: Callable[[float], None] | None = None,
    ) -> list[MaskRecord]:
        """All masks of an image. options: fields of `EverythingOptions`. progress: called with the part done."""
        body = {"preset": preset, "options": dict(options or {})}
        headers = {"Accept": "text/event-stream"}
        path = f"/v1/images/{image_id}/everything"
        with _Stream(self._http, self._http.build_request("POST", path, json=body, headers=headers)) as response:
            for event, data in _events(response.iter_lines()):
                if event == "progress" and progress is not None:
                    progress(_read(data, lambda form: float(form["done"])))
                if event == "problem":
                    raise ServerError(*_read(data, lambda form: (int(form["status"]), str(form["detail"]))))
                if event == "result":
                    return _read(data, _records)
        raise ServerError(0, "The server ended everything mode without a result; try again.")

    def describe(self, image_id: str, what: Sequence[Prompt] | Sequence[MaskRecord]) -> list[MaskRecord]:
        """Names and captions for what prompts point at, or for masks."""
        kind = "prompts" if all(isinstance(each, Prompt) for each in what) else "masks"
        body = {kind: [each.to_dict() for each in what]}
        return self._json(self._http.build_request("POST", f"/v1/images/{image_id}/describe", json=body), _records)

    def embedding(self, image_id: str) -> bytes:
        """The encoded image: a safetensors file with features in float16."""
        return self._send(self._http.build_request("GET", f"/v1/images/{image_id}/embedding")).content

    def _json(self, request: httpx.Request, read: Callable[[Any], Read]) -> Read:
        """What `read` finds in the JSON of the answer."""
        return _read(self._send(request).content, read)

    def _send(self, request: httpx.Request) -> httpx.Response:
        try:
            response = self._http.send(request)
        except httpx.HTTPError as error:
            raise _unreachable(error) from error
        if not response.is_success:
            raise _refusal(response)
        return response


class _Stream:
    """A response that is read while it comes in."""

    def __init__(self, http: httpx.Client, request: httpx.Request) -> None:
        self._http, self._request = http, request
        self._response: httpx.Response | None = None

    def __enter__(self) -> httpx.Response:
        try:
            self._response = self._http.send(self._request, stream=True)
            if not self._response.is_success:
                self._response.read()
                raise _refusal(self._response)
        except httpx.HTTPError as error:
            raise _unreachable(error) from error
        return self._response

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._response is not None:
            self._response.close()
        if isinstance(error, httpx.HTTPError):
            raise _unreachable(error) from error


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ImageError(f"{path} cannot be read: {error.strerror or error}.") from error


def _events(lines: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Server-sent events: (name, JSON)."""
    name, data = "message", ""
    for line in lines:
        if line.startswith("event:"):
            name = line[6:].strip()
        elif line.startswith("data:"):
            data += line[5:].strip()
        elif not line and data:
            yield name, data
            name, data = "message", ""


def _read(text: str | bytes, read: Callable[[Any], Read]) -> Read:
    """What `read` finds in JSON. Raises ServerError for what no server of this package says."""
    try:
        return read(json.loads(text))
    except (AnySamError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise ServerError(
            0, "The answer is not one of an anysam server; check the address, and the versions of both."
        ) from error


def _records(form: Mapping[str, Any]) -> list[MaskRecord]:
    return [MaskRecord.from_dict(each) for each in form["masks"]]


def _answer(form: Mapping[str, Any]) -> Answer:
    logits = form.get("low_res_logits")
    rows = None
    if logits:
        rows = np.stack(
            [np.frombuffer(base64.b64decode(row["float32"]), dtype="<f4").reshape(row["shape"]) for row in logits]
        )  # (C, h, w)
    return Answer(tuple(MaskRecord.from_dict(each) for each in form["masks"]), form["best"], rows)


def _refusal(response: httpx.Response) -> ServerError:
    try:
        detail = str(response.json()["detail"])
    except (ValueError, KeyError, TypeError):
        detail = f"The server answered with {response.status_code}."
    after = response.headers.get("retry-after", "")
    return ServerError(response.status_code, detail, float(after) if after.isdigit() else None)


def _unreachable(error: httpx.HTTPError) -> ServerError:
    return ServerError(0, f"The server cannot be reached or broke off: {error}.")
