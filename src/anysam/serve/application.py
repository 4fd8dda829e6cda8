"""The whole server as one ASGI application: routes, errors, guard, page. Starts nothing."""

from collections.abc import Sequence
from pathlib import Path

from fastapi import APIRouter, FastAPI
from starlette.types import ASGIApp

from anysam import __version__
from anysam.serve import problems
from anysam.serve.engine_types import Engine
from anysam.serve.guard import Guard
from anysam.serve.metrics import Metrics
from anysam.serve.page_files import PAGE, make_page_router
from anysam.serve.routes_images import make_image_router
from anysam.serve.routes_service import DecoderProvider, make_service_router
from anysam.serve.settings import ServeSettings

_DESCRIPTION = """\
Segment anything over HTTP: upload an image, then ask for masks with points, boxes, masks, strokes or words. Prompts and
masks have the JSON forms of the `anysam` command. Coordinates are pixels of the original image, points x y, boxes
x0 y0 x1 y1, sizes [height, width]. Errors are application/problem+json.
"""


def make_application(
    engine: Engine,
    settings: ServeSettings | None = None,
    *,
    decoder: DecoderProvider | None = None,
    routers: Sequence[APIRouter] = (),
    text: bool = False,
    describe: bool = False,
    page: Path | None = PAGE,
) -> ASGIApp:
    """The application around an engine.

    settings: None for what suits one user on one machine. decoder: of /v1/decoder. routers: further ones, such as that
    of projects. text, describe: what the engine was given models for. page: folder of the built page; None for none.
    """
    settings = ServeSettings() if settings is None else settings
    metrics = Metrics(engine)
    app = FastAPI(title="anysam", version=__version__, description=_DESCRIPTION, docs_url=None, redoc_url=None)
    problems.install(app)
    app.include_router(make_image_router(engine, settings))
    app.include_router(
        make_service_router(engine, settings, metrics, decoder, text=text, describe=describe, projects=len(routers) > 0)
    )
    for router in routers:
        app.include_router(router)
    if page is not None:
        app.include_router(make_page_router(page))
    return Guard(app, settings, metrics.observe)
