"""The routes about the server itself: models, the browser's decoder, health, numbers."""

from typing import Annotated, Any, Protocol

from fastapi import APIRouter, Header
from pydantic import BaseModel
from starlette.responses import JSONResponse, Response

from anysam import __version__
from anysam.automatic.presets import presets_of
from anysam.catalogue import VARIANTS
from anysam.serve.engine_types import Engine, NotEnabled
from anysam.serve.metrics import CONTENT_TYPE, Metrics
from anysam.serve.problems import Problem
from anysam.serve.routes_images import conditional, problems
from anysam.serve.schemas import ServiceAnswer
from anysam.serve.settings import ServeSettings


class DecoderProvider(Protocol):
    """Where the decoder for browsers comes from: made once, then kept."""

    async def file(self) -> tuple[bytes, dict[str, Any]]:
        """An ONNX file and what is known of it. Raises NotEnabled where the model has none."""
        ...


class Status(BaseModel):
    """ok, or what is not."""

    status: str


def make_service_router(
    engine: Engine,
    settings: ServeSettings,
    metrics: Metrics,
    decoder: DecoderProvider | None,
    *,
    text: bool,
    describe: bool,
    projects: bool,
) -> APIRouter:
    """The routes of the server. text, describe, projects: what it has."""
    router = APIRouter(tags=["service"])

    @router.get("/v1/models", response_model=ServiceAnswer, responses=problems())
    async def models() -> Response:
        """The models of the catalogue, the one that answers here, and what this server has."""
        rows = [
            {
                "name": row.name,
                "family": row.family,
                "licence": row.weights_licence,
                "prompts": list(row.prompts),
                "served": row.name == engine.variant,
            }
            for row in VARIANTS
        ]
        return JSONResponse(
            {
                "models": rows,
                "served": engine.variant,
                "presets": list(presets_of(engine.variant)),
                "text": text,
                "describe": describe,
                "urls": settings.allow_urls,
                "projects": projects,
                "decoder": decoder is not None,
                "limits": {"upload_bytes": settings.upload_bytes, "pixels": settings.max_pixels},
                "version": __version__,
            }
        )

    @router.get(
        "/v1/decoder",
        response_class=Response,
        responses={
            200: {
                "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
                "description": "an ONNX file",
            },
            304: {"description": "as it was"},
            **problems(404),
        },
    )
    async def decoder_file(
        if_none_match: Annotated[str | None, Header(description="an ETag, for 304")] = None,
    ) -> Response:
        """The decoder of this server's model, for onnxruntime-web: clicks without a round trip."""
        data, info = await _decoder(decoder)
        headers = {"ETag": f'"{info["sha256"]}"', "Cache-Control": "private, no-cache"}
        return conditional(data, headers, if_none_match)

    @router.get("/v1/decoder/info", responses=problems(404))
    async def decoder_info() -> dict[str, Any]:
        """Inputs, outputs and frame of /v1/decoder, and by how much it differs from PyTorch."""
        return (await _decoder(decoder))[1]

    @router.head("/healthz", include_in_schema=False)
    @router.get("/healthz")
    async def healthz() -> Status:
        """The process lives."""
        return Status(status="ok")

    @router.head("/readyz", include_in_schema=False)
    @router.get("/readyz", responses={503: {"model": Status}})
    async def readyz() -> Response:
        """Whether it takes work."""
        if engine.ready:
            return JSONResponse({"status": "ok"})
        return JSONResponse({"status": "not ready"}, 503, {"Retry-After": "1"})

    @router.get(
        "/metrics",
        response_class=Response,
        responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}, **problems()},
    )
    async def numbers() -> Response:
        """Numbers for Prometheus."""
        return Response(metrics.text(), media_type=CONTENT_TYPE)

    return router


async def _decoder(provider: DecoderProvider | None) -> tuple[bytes, dict[str, Any]]:
    if provider is None:
        raise Problem(404, "This server has no decoder for browsers; ask it to predict.")
    try:
        return await provider.file()
    except NotEnabled as error:
        raise Problem(404, str(error)) from error
