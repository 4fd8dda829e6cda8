"""Running the server until it is stopped, for `anysam serve` and `anysam app`."""

import argparse
import importlib.util
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from anysam.catalogue import VARIANTS
from anysam.commands.model_options import load_model
from anysam.commands.options import open_cache, warn
from anysam.commands.serving_options import DEFAULT_PORT, EngineLimits, engine_limits, serve_settings
from anysam.errors import MissingExtraError, OptionError

if TYPE_CHECKING:
    from fastapi import APIRouter

    from anysam.serve.engine_types import Engine
    from anysam.serve.projects.database import Projects
    from anysam.serve.settings import ServeSettings

_PACKAGES = ("fastapi", "httpx", "prometheus_client", "python_multipart", "sqlalchemy", "uvicorn")
_GRACE_SECONDS = 5
_KEEP_ALIVE_SECONDS = 75  # longer than the 60 s of usual load balancers, which must not find a connection closed
_MAX_CONNECTIONS = 1024  # more are answered with 503 by uvicorn itself
_BACKLOG = 1024
_THREADS = "anysam-"  # how the names of the engine's threads begin


@dataclass(frozen=True)
class Serving:
    """What differs between the commands.

    projects: whether there are any unasked. free_port: whether another port is taken where the usual one is taken.
    ready: called with the address.
    """

    projects: bool
    free_port: bool
    ready: Callable[[str], None]


def run_server(arguments: argparse.Namespace, serving: Serving) -> int:
    """Serve until Ctrl-C or SIGTERM, the ordinary ends: status 0.

    Raises OptionError for what is wrong with the options, the port or the database before a model is loaded.
    """
    _need_packages()
    settings, limits = serve_settings(arguments), engine_limits(arguments)
    _require_prompts(arguments.model)  # before a download
    if arguments.db is not None and arguments.no_projects:
        raise OptionError("--db names a database of projects, and --no-projects wants none; leave one of them out.")
    with ExitStack() as stack:
        listening = stack.enter_context(listen(arguments.host, arguments.port, serving.free_port))
        projects = None
        if not arguments.no_projects and (serving.projects or arguments.db is not None):
            from anysam.serve.projects.database import open_projects

            projects = open_projects(arguments.db)
            stack.callback(projects.close)
        _serve(arguments, serving, settings, limits, listening, projects)
    if any(thread.daemon and thread.name.startswith(_THREADS) for thread in threading.enumerate()):
        # They are inside PyTorch, cannot be stopped, and would abort the process when Python ends before them.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)
    return 0


def listen(host: str, port: int | None, free: bool) -> socket.socket:
    """A socket that listens already: connections wait until the model is loaded. Raises OptionError.

    free: whether another port will do where none is given and the usual one is taken.
    """
    if port is not None and not 0 <= port < 65536:
        raise OptionError(f"--port must be from 0 to 65535, got {port}.")
    ports = [DEFAULT_PORT, 0] if port is None and free else [DEFAULT_PORT if port is None else port]
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for number in ports:
        listening = socket.socket(family, socket.SOCK_STREAM)
        if os.name == "posix":  # elsewhere it would let two programs share a port
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((host, number))
            listening.listen(_BACKLOG)
        except (OSError, UnicodeError) as error:
            listening.close()
            if number == ports[-1]:
                reason = getattr(error, "strerror", None) or "it is no name of a host"
                raise OptionError(
                    f"{host} port {number} cannot be listened at: {reason}; choose another --port or --host."
                ) from error
            continue
        listening.set_inheritable(True)
        return listening
    raise AssertionError("there is at least one port")


def _serve(
    arguments: argparse.Namespace,
    serving: Serving,
    settings: "ServeSettings",
    limits: EngineLimits,
    listening: socket.socket,
    projects: "Projects | None",
) -> None:
    import asyncio

    from anysam.commands.page_decoder import make_page_decoder
    from anysam.serve.application import make_application
    from anysam.serve.engine import EngineSettings, open_engine

    store = open_cache(arguments)
    model = load_model(arguments, arguments.model)
    _require_prompts(model.variant)
    image_text, describer = _words(arguments)
    bounds = EngineSettings(
        max_pixels=settings.max_pixels,
        max_queue=limits.queue,
        memory_bytes=limits.memory,
        encode_batch=limits.batch,
    )

    async def run() -> None:
        engine = open_engine(model, bounds, store=store, image_text=image_text, describer=describer)
        try:
            app = make_application(
                engine,
                settings,
                decoder=make_page_decoder(model),
                routers=[] if projects is None else [_project_router(projects, engine, settings)],
                text=image_text is not None,
                describe=describer is not None,
            )
            await _until_stopped(app, listening, lambda: serving.ready(_address(listening)))
        finally:
            engine.close()

    try:
        asyncio.run(run())
    except KeyboardInterrupt:  # how a server is meant to end
        print("stopped.", file=sys.stderr)


def _require_prompts(model: str | None) -> None:
    """Raises OptionError for a variant that finds boxes alone: a server would have nothing to answer with."""
    if any(row.name == model and not row.prompts for row in VARIANTS):
        raise OptionError(f"{model} finds boxes without masks and takes no prompts; serve a model that takes them.")


def _project_router(projects: "Projects", engine: "Engine", settings: "ServeSettings") -> "APIRouter":
    from anysam.serve.projects.bodies import ProjectLimits
    from anysam.serve.projects.routes import make_router

    limits = ProjectLimits(
        upload_bytes=settings.upload_bytes, max_pixels=settings.max_pixels, json_bytes=settings.json_bytes
    )
    return make_router(projects, engine, limits)


async def _until_stopped(app: Any, listening: socket.socket, ready: Callable[[], None]) -> None:
    import asyncio

    import uvicorn

    _log_to_stderr()
    config = uvicorn.Config(
        app,
        http="h11",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=_MAX_CONNECTIONS,
        timeout_graceful_shutdown=_GRACE_SECONDS,
        timeout_keep_alive=_KEEP_ALIVE_SECONDS,
    )
    server = uvicorn.Server(config)
    # uvicorn repeats the signal when it has ended: what comes after must still run.
    signal.signal(signal.SIGTERM, lambda number, frame: None)
    running = asyncio.create_task(server.serve(sockets=[listening]))
    while not server.started and not running.done():
        await asyncio.sleep(0.02)
    if not running.done():
        ready()
    await running


def _words(arguments: argparse.Namespace) -> tuple[Any, Any]:
    """The image-text model and the describer that were asked for, or None."""
    import anysam
    from anysam.describe.clip import DEFAULT

    image_text = describer = None
    if arguments.text is not None:
        image_text = anysam.load_image_text(
            arguments.text or DEFAULT, device=arguments.device, say=warn, allow=arguments.allow
        )
    if arguments.describe is not None:
        describer = anysam.load_describer(
            arguments.describe or None, device=arguments.device, say=warn, allow=arguments.allow
        )
    return image_text, describer


def _address(listening: socket.socket) -> str:
    host, port = listening.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"


def _log_to_stderr() -> None:
    import asyncio
    import logging

    from anysam.serve.logs import LOGGER

    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    # Requests that are cut off when the server ends are no errors.
    handler.addFilter(lambda record: not record.exc_info or record.exc_info[0] is not asyncio.CancelledError)
    for name, level in ((LOGGER, logging.INFO), ("uvicorn.error", logging.WARNING)):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(level)


def _need_packages() -> None:
    missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingExtraError(f"The server needs {missing[0]}, which is not installed: pip install 'anysam[serve]'")
