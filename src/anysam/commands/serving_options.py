"""The options of `anysam serve` and `anysam app`, and what they mean as values; starts nothing."""

import argparse
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from anysam.commands.model_options import add_model_options, pixel_limit
from anysam.commands.options import add_cache
from anysam.errors import OptionError

if TYPE_CHECKING:
    from anysam.serve.settings import ServeSettings

DEFAULT_PORT = 8000
_TOKEN = "ANYSAM_TOKEN"
_WILDCARDS = ("0.0.0.0", "::", "")
_HOST_NAME = re.compile(r"[a-z0-9._-]+")


@dataclass(frozen=True)
class EngineLimits:
    """queue: images that may wait to be encoded. batch: images encoded together. memory: bytes for what is kept."""

    queue: int
    batch: int | None
    memory: int


def add_serving_options(parser: argparse.ArgumentParser) -> None:
    """Declare the options of both commands, for `serving.run_server`."""
    model = parser.add_argument_group("the model")
    add_model_options(model)
    model.add_argument(
        "--text", nargs="?", const="", metavar="NAME|DIR", help="answer text prompts, with a model of the CLIP kind"
    )
    model.add_argument(
        "--describe", nargs="?", const="", metavar="NAME|FILE", help="name and caption masks, see `anysam describe`"
    )
    _add_network(parser.add_argument_group("the network"))
    limits = parser.add_argument_group("limits")
    limits.add_argument(
        "--max-upload", default="32M", metavar="SIZE", help="the largest image file (default: %(default)s)"
    )
    limits.add_argument(
        "--queue", type=int, default=64, metavar="N", help="images that may wait to be encoded (default: %(default)s)"
    )
    limits.add_argument(
        "--encode-batch",
        type=int,
        metavar="N",
        help="images encoded together where several wait (default: 1 on a CPU, where more gain nothing; 4 on a GPU)",
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


def _add_network(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to listen at; any but this machine's own needs a token (default: %(default)s)",
    )
    group.add_argument(
        "--port", type=int, metavar="N", help=f"port to listen at; 0 for a free one (default: {DEFAULT_PORT})"
    )
    group.add_argument(
        "--token", help=f"what clients must send as `Authorization: Bearer` (default: {_TOKEN}, or none)"
    )
    group.add_argument("--token-file", metavar="FILE", help="a file whose first line is the token")
    group.add_argument("--insecure", action="store_true", help="listen to other machines without a token")
    group.add_argument(
        "--allow-host",
        action="append",
        default=[],
        metavar="NAME",
        help="a name that clients may call this server by, * for any; repeatable",
    )
    group.add_argument(
        "--cors", action="append", default=[], metavar="ORIGIN", help="another page that may use the API; repeatable"
    )
    group.add_argument("--allow-urls", action="store_true", help="fetch images from public addresses that clients name")


def chosen_token(arguments: argparse.Namespace) -> str | None:
    """--token, that of --token-file, or the environment's; None for none. Raises OptionError."""
    if arguments.token is not None and arguments.token_file is not None:
        raise OptionError("--token and --token-file both give the token; leave one of them out.")
    if arguments.token_file is None:
        token: str | None = arguments.token
        return token if token is not None else os.environ.get(_TOKEN) or None
    try:
        lines = Path(arguments.token_file).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no text"
        raise OptionError(f"--token-file {arguments.token_file} cannot be read: {reason}.") from error
    if not lines or not lines[0].strip():
        raise OptionError(f"--token-file {arguments.token_file} has no token in its first line.")
    return lines[0].strip()


def serve_settings(arguments: argparse.Namespace) -> "ServeSettings":
    """What requests may do. Raises OptionError."""
    from anysam.memory import parse_size
    from anysam.serve.settings import ANY_HOST, LOOPBACK_HOSTS, ServeSettings, is_loopback, is_number

    token = chosen_token(arguments)
    if arguments.host.startswith("["):
        raise OptionError(f"--host takes an address without brackets, such as ::1, got {arguments.host!r}.")
    if not is_loopback(arguments.host) and token is None and not arguments.insecure:
        raise OptionError(
            f"--host {arguments.host} lets other machines in: give them a --token, or say --insecure if everybody who "
            "reaches this address may use the server."
        )
    names = {name.lower() for name in arguments.allow_host}
    for name in names:
        if not (name == ANY_HOST or _HOST_NAME.fullmatch(name) or is_number(name)):
            raise OptionError(
                "--allow-host takes a name as it stands in addresses, such as anysam.example.org, without http:// and "
                f"port, or * for any; got {name!r}."
            )
    if arguments.host not in _WILDCARDS:
        names.add(arguments.host.lower())
    return ServeSettings(
        token=token,
        hosts=frozenset({*LOOPBACK_HOSTS, *names}),
        cors=tuple(arguments.cors),
        allow_urls=arguments.allow_urls,
        upload_bytes=parse_size(arguments.max_upload),
        max_pixels=pixel_limit(arguments),
    )


def engine_limits(arguments: argparse.Namespace) -> EngineLimits:
    """What the engine may take. Raises OptionError."""
    from anysam.memory import parse_size

    memory, upload = parse_size(arguments.memory), parse_size(arguments.max_upload)
    if arguments.queue < 1:
        raise OptionError(f"--queue must be at least 1, got {arguments.queue}.")
    if arguments.encode_batch is not None and arguments.encode_batch < 1:
        raise OptionError(f"--encode-batch must be at least 1, got {arguments.encode_batch}.")
    if 2 * upload > memory:  # a half of the memory is for uploads
        raise OptionError(
            f"--max-upload {arguments.max_upload} does not fit in half of --memory {arguments.memory}; change one."
        )
    return EngineLimits(arguments.queue, arguments.encode_batch, memory)
