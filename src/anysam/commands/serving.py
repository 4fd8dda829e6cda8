"""What `anysam serve` and `anysam app` share: their options, and running the server until it is stopped."""

import argparse
import asyncio
import importlib.util
import os
import signal
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from anysam.commands.model_options import add_model_options, load_model, pixel_limit
from anysam.commands.options import add_cache, open_cache, warn
from anysam.errors import MissingExtraError, OptionError

if TYPE_CHECKING:
    from anysam.serve.settings import ServeSettings

DEFAULT_PORT = 8000
_TOKEN = "ANYSAM_TOKEN"
_PACKAGES = ("fastapi", "httpx", "prometheus_client", "python_multipart", "sqlalchemy", "uvicorn")
_GRACE_SECONDS = 5
_KEEP_ALIVE_SECONDS = 75  # longer than the 60 s of usual load balancers, which must not find a connection closed
_MAX_REQUESTS = 1024  # at once; more are answered with 503


@dataclass(frozen=True)
class Serving:
    """What differs between the commands. projects: whether there are any unasked; ready: called with the address."""

    projects: bool
    free_port: bool
    ready: Callable[[str], None]


def add_serving_options(parser: argparse.ArgumentParser) -> None:
    """Declare the options of both commands, for `run_server`."""
    model = parser.add_argument_group("the model")
    add_model_options(model)
    model.add_argument(
        "--text", nargs="?", const="", metavar="NAME|DIR", help="answer text prompts, with a model of the CLIP kind"
    )
    model.add_argument(
        "--describe", nargs="?", const="", metavar="NAME|FILE", help="name and caption masks, see `anysam describe`"
    )
    network = parser.add_argument_group("the network")
    network.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to listen at; any but this machine's own needs --token (default: %(default)s)",
    )
    network.add_argument(
        "--port", type=int, metavar="N", help=f"port to listen at; 0 for a free one (default: {DEFAULT_PORT})"
    )
    network.add_argument(
        "--token", help=f"what clients must send as `Authorization: Bearer` (default: {_TOKEN}, or none)"
    )
    network.add_argument("--insecure", action="store_true", help="listen to other machines without a token")
    network.add_argument(
        "--allow-host",
        action="append",
        default=[],
        metavar="NAME",
        help="a name that clients may call this server by; repeatable",
    )
    network.add_argument(
        "--cors", action="append", default=[], metavar="ORIGIN", help="another page that may use the API; repeatable"
    )
    network.add_argument(
        "--allow-urls", action="store_true", help="fetch images from public addresses that clients name"
    )
    limits = parser.add_argument_group("limits")
    limits.add_argument(
        "--max-upload", default="32M", metavar="SIZE", help="the largest image file (default: %(default)s)"
    )
    limits.add_argument(
        "--queue", type=int, default=64, metavar="N", help="images that may wait to be encoded (default: %(default)s)"
    )
    limits.add_argument(
        "--memory", default="1G", metavar="SIZE", help="for encoded images and uploads (default: %(default)s)"
    )
    add_cache(limits)
    kept = parser.add_argument_group("projects")
    kept.add_argument(
        "--db", metavar="FILE|URL", help="database of projects: a SQLite file, or postgresql://USER@HOST/NAME"
    )
    kept.add_argument("--no-projects", action="store_true", help="keep no projects")


def run_server(arguments: argparse.Namespace, serving: Serving) -> int:
    """Serve until Ctrl-C, which is the ordinary end: status 0. Raises OptionError before anything is loaded."""
    _need_packages()
    settings = _settings(arguments)
    memory, queue = _limits(arguments)
    if arguments.db is not None and arguments.no_projects:
        raise OptionError("--db names a database of projects, and --no-projects wants none; leave one of them out.")
    listening = _listen(arguments.host, arguments.port, serving.free_port)
    try:
        return _serve(arguments, serving, settings, listening, memory, queue)
    finally:
        listening.close()


def chosen_token(arguments: argparse.Namespace) -> str | None:
    """--token, or the environment's, or None."""
    token: str | None = arguments.token
    return token if token is not None else os.environ.get(_TOKEN) or None


def _serve(
    arguments: argparse.Namespace,
    serving: Serving,
    settings: "ServeSettings",
    listening: socket.socket,
    memory: int,
    queue: int,
) -> int:
    from anysam.commands.page_decoder import PageDecoder
    from anysam.serve.application import make_application
    from anysam.serve.engine import EngineSettings, open_engine
    from anysam.serve.projects.bodies import ProjectLimits
    from anysam.serve.projects.database import open_projects
    from anysam.serve.projects.routes import make_router

    model = load_model(arguments, arguments.model)
    image_text, describer = _words(arguments)
    store = open_cache(arguments)
    projects = open_projects(arguments.db) if _wants_projects(arguments, serving) else None
    limits = EngineSettings(max_pixels=settings.max_pixels, max_queue=queue, memory_bytes=memory)

    async def run() -> None:
        engine = open_engine(model, limits, store=store, image_text=image_text, describer=describer)
        try:
            routers = []
            if projects is not None:
                bounds = ProjectLimits(upload_bytes=settings.upload_bytes, max_pixels=settings.max_pixels)
                routers.append(make_router(projects, engine, bounds))
            app = make_application(
                engine,
                settings,
                decoder=PageDecoder(model),
                routers=routers,
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
    finally:
        if projects is not None:
            projects.close()
    return 0


async def _until_stopped(app: Any, listening: socket.socket, ready: Callable[[], None]) -> None:
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
        limit_concurrency=_MAX_REQUESTS,
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


def _wants_projects(arguments: argparse.Namespace, serving: Serving) -> bool:
    return not arguments.no_projects and (serving.projects or arguments.db is not None)


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


def _settings(arguments: argparse.Namespace) -> "ServeSettings":
    from anysam.memory import parse_size
    from anysam.serve.settings import LOOPBACK_HOSTS, ServeSettings, is_loopback

    token = chosen_token(arguments)
    local = is_loopback(arguments.host)
    if not local and token is None and not arguments.insecure:
        raise OptionError(
            f"--host {arguments.host} lets other machines in: give them a --token, or say --insecure if everybody who "
            "reaches this address may use the server."
        )
    names = {name.lower() for name in arguments.allow_host}
    hosts = frozenset({*LOOPBACK_HOSTS, arguments.host.lower(), *names}) if local or names else frozenset()
    return ServeSettings(
        token=token,
        hosts=hosts,
        cors=tuple(arguments.cors),
        allow_urls=arguments.allow_urls,
        upload_bytes=parse_size(arguments.max_upload),
        max_pixels=pixel_limit(arguments),
    )


def _limits(arguments: argparse.Namespace) -> tuple[int, int]:
    from anysam.memory import parse_size

    if arguments.queue < 1:
        raise OptionError(f"--queue must be at least 1, got {arguments.queue}.")
    return parse_size(arguments.memory), arguments.queue


def _listen(host: str, port: int | None, free: bool) -> socket.socket:
    """A socket that is bound, so that a port that is taken is told before a model is loaded."""
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
        except OSError as error:
            listening.close()
            if number == ports[-1]:
                reason = error.strerror or str(error)
                raise OptionError(
                    f"{host} port {number} cannot be listened at: {reason}; choose another --port."
                ) from error
            continue
        listening.set_inheritable(True)
        return listening
    raise AssertionError("there is at least one port")


def _address(listening: socket.socket) -> str:
    host, port = listening.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"


def _log_to_stderr() -> None:
    import logging

    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    for name in ("anysam.serve", "uvicorn.error"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(logging.INFO if name == "anysam.serve" else logging.WARNING)


def _need_packages() -> None:
    missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingExtraError(f"The server needs {missing[0]}, which is not installed: pip install 'anysam[serve]'")
