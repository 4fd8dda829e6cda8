"""What a server allows, as one value. Reads no files and starts nothing."""

import ipaddress
import re
from dataclasses import dataclass

from anysam.errors import OptionError

MIB = 1024**2
LOOPBACK_HOSTS = ("localhost", "127.0.0.1", "::1")
ANY_HOST = "*"

_TOKEN = re.compile(r"[!-~]+")
# As browsers send it: small letters, other alphabets as xn--..., and no port where it is the usual one.
_ORIGIN = re.compile(
    r"(?!http:.*:80$|https:.*:443$)https?://([a-z0-9._-]+|\[[0-9a-f:.]+\])(:[0-9]{1,5})?",
)


@dataclass(frozen=True)
class ServeSettings:
    """What requests may do and bring.

    token: what `Authorization: Bearer` must carry; None lets everybody in. hosts: names that the Host header may have,
    in small letters without a port; "*" for any. Numbers such as 192.0.2.7 are always let in: a page cannot point them
    elsewhere. cors: origins ("https://example.org") of other pages that may use the API. allow_urls: whether images are
    fetched from addresses that clients name. upload_bytes: of one image. max_pixels: of one image. json_bytes: of one
    JSON body. held_bytes: of the bodies of all requests until they are answered; always room for two uploads.
    max_requests: at once; health is answered besides. Raises OptionError.
    """

    token: str | None = None
    hosts: frozenset[str] = frozenset(LOOPBACK_HOSTS)
    cors: tuple[str, ...] = ()
    allow_urls: bool = False
    upload_bytes: int = 32 * MIB
    max_pixels: int = 64_000_000
    json_bytes: int = 16 * MIB
    held_bytes: int = 512 * MIB
    max_requests: int = 512

    def __post_init__(self) -> None:
        if self.token is not None:
            check_token(self.token)
        for origin in self.cors:
            if not _ORIGIN.fullmatch(origin):
                raise OptionError(
                    "An origin is like https://example.org, as browsers send it: in small letters, without a path or "
                    f"the usual port; got {origin!r}."
                )
        for name in ("upload_bytes", "max_pixels", "json_bytes", "held_bytes", "max_requests"):
            if getattr(self, name) < 1:
                raise OptionError(f"{name} must be at least 1, got {getattr(self, name)}.")


def check_token(token: str) -> None:
    """Raises OptionError, which does not repeat it, for what no header can carry."""
    if not _TOKEN.fullmatch(token):
        raise OptionError("The token must be visible ASCII characters without spaces, at least one; choose another.")


def is_loopback(host: str) -> bool:
    """Whether a server bound to `host` is reached from this machine only."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def is_number(host: str) -> bool:
    """Whether a Host header's name is an IP address."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
