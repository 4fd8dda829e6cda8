"""What a server allows, as one value. Reads no files and starts nothing."""

from dataclasses import dataclass

from anysam.errors import OptionError

MIB = 1024**2
LOOPBACK_HOSTS = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True)
class ServeSettings:
    """What requests may do and bring.

    token: what `Authorization: Bearer` must carry; None lets everybody in. hosts: names that the Host header may have,
    in small letters without a port; empty for any. cors: origins ("https://example.org") of other pages that may use
    the API. allow_urls: whether images are fetched from addresses that clients name. upload_bytes: of one image.
    max_pixels: of one image. json_bytes: of one JSON body.
    """

    token: str | None = None
    hosts: frozenset[str] = frozenset(LOOPBACK_HOSTS)
    cors: tuple[str, ...] = ()
    allow_urls: bool = False
    upload_bytes: int = 32 * MIB
    max_pixels: int = 64_000_000
    json_bytes: int = 16 * MIB

    def __post_init__(self) -> None:
        if self.token is not None and (not self.token or not self.token.isascii() or " " in self.token):
            raise OptionError("The token must be ASCII characters without spaces, at least one; choose another.")
        for origin in self.cors:
            scheme, found, rest = origin.partition("://")
            if scheme not in ("http", "https") or not found or not rest or "/" in rest:
                raise OptionError(f"An origin is like https://example.org, without a path, got {origin!r}.")


def is_loopback(host: str) -> bool:
    """Whether a server bound to `host` is reached from this machine only."""
    return host in LOOPBACK_HOSTS or host.startswith("127.")
