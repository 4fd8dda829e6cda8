"""The routes of images: upload, state, embedding, and what is asked of them. The work is the engine's."""

import asyncio
import base64
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from typing import Annotated, Any

from fastapi import APIRouter, Header, Path, Query, Request
from starlette.responses import JSONResponse, Response

from anysam.prompts import Prompt
from anysam.results import MaskRecord
from anysam.serve.engine_types import Answer, Engine, ImageState, Progress, UnknownImage
from anysam.serve.events import EventStream, unless_gone
from anysam.serve.problems import MEDIA_TYPE, ClientGone, Problem, ProblemBody
from anysam.serve.schemas import (
    DescribeBody,
    EverythingBody,
    ImageAnswer,
    MasksAnswer,
    PredictAnswer,
    PredictBody,
    PromptBody,
    UrlBody,
    check_together,
    to_everything_options,
    to_prompt,
    to_record,
)
from anysam.serve.settings import ServeSettings
from anysam.serve.uploads import read_image_or_url
from anysam.serve.url_fetch import Fetcher

MAX_WAIT = 30.0

ImageId = Annotated[str, Path(pattern=r"^[0-9a-f]{32}$", description="an image's id")]
Wait = Annotated[float, Query(ge=0, le=MAX_WAIT, allow_inf_nan=False, description="seconds to wait for the encoding")]

_BINARY: dict[str, Any] = {"type": "string", "format": "binary"}
_UPLOAD = {
    "requestBody": {
        "required": True,
        "content": {
            "application/octet-stream": {"schema": _BINARY},
            "image/*": {"schema": _BINARY},
            "multipart/form-data": {
                "schema": {"type": "object", "required": ["file"], "properties": {"file": _BINARY}}
            },
            "application/json": {"schema": UrlBody.model_json_schema()},
        },
    }
}


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """For the OpenAPI document: these statuses are answered with problems, besides those that can be anywhere."""
    described = {"model": ProblemBody, "content": {MEDIA_TYPE: {}}, "description": "a problem"}
    return {status: described for status in sorted({400, 401, 403, 408, 413, 422, 503, *statuses})}


def make_image_router(engine: Engine, settings: ServeSettings, fetcher: Fetcher | None = None) -> APIRouter:
    """The routes below /v1/images. fetcher: for tests."""
    router = APIRouter(prefix="/v1/images", tags=["images"])
    fetcher = Fetcher() if fetcher is None else fetcher

    @router.post("", status_code=201, response_model=ImageAnswer, responses=problems(409, 415), openapi_extra=_UPLOAD)
    async def add_image(request: Request, wait: Wait = 0.0) -> Response:
        """Upload an image: it is encoded, and can then be clicked. Answers at once, or after `wait` seconds."""
        found = await read_image_or_url(request, settings.upload_bytes)
        if isinstance(found, str):
            if not settings.allow_urls:
                raise Problem(403, "This server fetches no addresses; upload the image, or start it with --allow-urls.")
            found = await unless_gone(request, fetcher.fetch(found, settings.upload_bytes))
        state = await unless_gone(request, engine.add_image(found))
        if wait:
            try:
                state = await unless_gone(request, engine.wait(state.image_id, wait))
            except ClientGone:  # nobody knows its id
                with suppress(UnknownImage):
                    engine.remove(state.image_id)
                raise
        location = {"Location": f"/v1/images/{state.image_id}"}
        return JSONResponse(image_form(state, engine.variant), 201, location)

    @router.get("/{image_id}", response_model=ImageAnswer, responses=problems(404))
    async def image_state(image_id: ImageId, request: Request, wait: Wait = 0.0) -> Response:
        """Where an image is on its way; with `wait` when it is ready or has failed, or after so many seconds."""
        state = await unless_gone(request, engine.wait(image_id, wait)) if wait else engine.image_state(image_id)
        return JSONResponse(image_form(state, engine.variant))

    @router.delete("/{image_id}", status_code=204, responses=problems(404))
    async def remove_image(image_id: ImageId) -> Response:
        """Forget an image."""
        engine.remove(image_id)
        return Response(status_code=204)

    @router.get(
        "/{image_id}/embedding",
        response_class=Response,
        responses={
            200: {"content": {"application/octet-stream": {"schema": _BINARY}}, "description": "a safetensors file"},
            304: {"description": "as it was"},
            **problems(404, 409, 415),
        },
    )
    async def embedding(
        image_id: ImageId,
        request: Request,
        if_none_match: Annotated[str | None, Header(description="an ETag, for 304")] = None,
    ) -> Response:
        """The encoded image as safetensors, features in float16, to decode clicks elsewhere. Waits for the encoding."""
        file = await unless_gone(request, engine.embedding(image_id))
        headers = {
            "ETag": f'"{file.etag}"',
            "Cache-Control": "private, max-age=3600",
            "X-Original-Size": f"{file.original_size[0]},{file.original_size[1]}",
            "X-Input-Size": f"{file.input_size[0]},{file.input_size[1]}",
        }
        return conditional(file.data, headers, if_none_match)

    @router.post("/{image_id}/predict", response_model=PredictAnswer, responses=problems(404, 409, 415))
    async def predict(image_id: ImageId, body: PredictBody, request: Request) -> Response:
        """Masks for prompts. Waits for the image's encoding."""
        size = engine.image_state(image_id).size
        prompts = await _prompts(body.prompts, size)
        work = engine.predict(image_id, prompts, body.multimask, body.low_res_logits)
        answers = await unless_gone(request, work)
        return JSONResponse({"size": list(size), "results": [answer_form(answer) for answer in answers]})

    @router.post(
        "/{image_id}/everything",
        response_model=MasksAnswer,
        responses={
            200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}},
            **problems(404, 409, 415),
        },
    )
    async def everything(
        image_id: ImageId,
        body: EverythingBody,
        request: Request,
        accept: Annotated[str, Header(description="text/event-stream for progress")] = "application/json",
    ) -> Response:
        """All masks of an image. As server-sent events: `progress` with `done`, then `result`, or `problem`.

        Closing the connection ends the work.
        """
        size = engine.image_state(image_id).size
        items = engine.everything(image_id, to_everything_options(body, engine.variant))
        if "text/event-stream" in accept.lower():
            stream = EventStream(items, _event_form(size), request.scope.get("anysam_request_id"))
            await stream.start()
            return stream
        return JSONResponse(masks_form(size, await unless_gone(request, _last(items))))

    @router.post("/{image_id}/describe", response_model=MasksAnswer, responses=problems(404, 409, 415))
    async def describe(image_id: ImageId, body: DescribeBody, request: Request) -> Response:
        """Names and captions for what prompts point at, or for masks; on a server that has a describer."""
        size = engine.image_state(image_id).size
        if (body.prompts is None) == (body.masks is None):
            raise Problem(422, "Give prompts or masks, one of the two.")
        if body.prompts is not None:
            work = engine.describe(image_id, await _prompts(body.prompts, size))
        else:
            masks = body.masks or []
            work = engine.describe(image_id, await asyncio.to_thread(lambda: [to_record(each, size) for each in masks]))
        return JSONResponse(masks_form(size, await unless_gone(request, work)))

    return router


async def _prompts(bodies: Sequence[PromptBody], size: tuple[int, int]) -> list[Prompt]:
    """Masks take time to unfold, so they are left to a thread; clicks do not wait for one."""
    check_together(bodies, size)
    if any(each.mask is not None for each in bodies):
        return await asyncio.to_thread(lambda: [to_prompt(each, size) for each in bodies])
    return [to_prompt(each, size) for each in bodies]


def image_form(state: ImageState, variant: str) -> dict[str, Any]:
    """The JSON form of an image's state."""
    return {
        "id": state.image_id,
        "size": list(state.size),
        "state": state.state,
        "model": variant,
        "queue_position": state.queue_position,
        "error": state.error,
    }


def answer_form(answer: Answer) -> dict[str, Any]:
    """The JSON form of one prompt's masks."""
    form: dict[str, Any] = {"masks": [record.to_dict() for record in answer.masks], "best": answer.best}
    if answer.low_res_logits is not None:
        form["low_res_logits"] = [
            {"shape": list(row.shape), "float32": base64.b64encode(row.astype("<f4").tobytes()).decode("ascii")}
            for row in answer.low_res_logits
        ]
    return form


def masks_form(size: tuple[int, int], records: list[MaskRecord] | tuple[MaskRecord, ...]) -> dict[str, Any]:
    """The JSON form of masks of an image of `size` (H, W)."""
    return {"size": list(size), "masks": [record.to_dict() for record in records]}


def conditional(data: bytes, headers: dict[str, str], if_none_match: str | None) -> Response:
    """The data, or 304 when the client has them already. headers: with the ETag."""
    known = [each.strip().removeprefix("W/") for each in (if_none_match or "").split(",")]
    if headers["ETag"] in known or "*" in known:
        return Response(status_code=304, headers=headers)
    return Response(data, 200, headers, "application/octet-stream")


def _event_form(
    size: tuple[int, int],
) -> Callable[[Progress | tuple[MaskRecord, ...]], tuple[str, dict[str, Any]]]:
    def form(item: Progress | tuple[MaskRecord, ...]) -> tuple[str, dict[str, Any]]:
        if isinstance(item, Progress):
            return "progress", {"done": item.done}
        return "result", masks_form(size, item)

    return form


async def _last(items: AsyncIterator[Progress | tuple[MaskRecord, ...]]) -> tuple[MaskRecord, ...]:
    records: tuple[MaskRecord, ...] = ()
    try:
        async for item in items:
            if not isinstance(item, Progress):
                records = item
    finally:
        close = getattr(items, "aclose", None)
        if close is not None:
            await close()
    return records
