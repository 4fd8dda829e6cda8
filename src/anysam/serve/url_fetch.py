"""An image from an address that a client names: fetched from public machines only, bounded in time and bytes.

The name is resolved here, every address that it has must be public, and the connection is made to the address that was
checked, so that a name which changes its meaning in between reaches nothing. Redirects are followed by the same rules.
"""

import asyncio
import ipaddress
import socket
from collections.abc import Awaitable, Callable
from urllib.parse import SplitResult, urljoin, urlsplit

import httpx

from anysam import __version__
from anysam.serve.problems import Problem

Resolve = Callable[[str, int], Awaitable[list[str]]]

_MAX_REDIRECTS = 3
_SECONDS = 20.0
_REDIRECTS = (301, 302, 303, 307, 308)


async def resolve(host: str, port: int) -> list[str]:
    """The addresses of a name, as text. Raises OSError."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


async def fetch_image(
    url: str, limit: int, *, resolve: Resolve = resolve, transport: httpx.AsyncBaseTransport | None = None
) -> bytes:
    """The bytes at an address, at most `limit`. Raises Problem 403 for what is not public, 413, and 422 for all else.

    resolve, transport: for tests.
    """
    try:
        async with asyncio.timeout(_SECONDS):
            async with httpx.AsyncClient(transport=transport, trust_env=False, timeout=_SECONDS) as client:
                for _ in range(_MAX_REDIRECTS + 1):
                    found = await _once(client, url, limit, resolve)
                    if isinstance(found, bytes):
                        return found
                    url = urljoin(url, found)
    except TimeoutError as error:
        raise Problem(422, f"The address did not answer within {_SECONDS:.0f} s; download the image.") from error
    except (httpx.HTTPError, httpx.InvalidURL, OSError, UnicodeError) as error:
        raise Problem(422, "The address cannot be fetched; check it, or download the image.") from error
    raise Problem(422, f"The address leads on more than {_MAX_REDIRECTS} times; give the last one.")


async def _once(client: httpx.AsyncClient, url: str, limit: int, resolve: Resolve) -> bytes | str:
    """The bytes, or where it leads on."""
    parts = _checked(url)
    host = parts.hostname or ""
    port = parts.port or (443 if parts.scheme == "https" else 80)
    addresses = await resolve(host, port)
    if not addresses or not all(is_public(address) for address in addresses):
        raise Problem(403, "The address is not a public one; only those are fetched.")
    target = f"[{addresses[0]}]" if ":" in addresses[0] else addresses[0]
    query = f"?{parts.query}" if parts.query else ""
    shown = f"[{host}]" if ":" in host else host
    default = parts.port is None
    request = client.build_request(
        "GET",
        f"{parts.scheme}://{target}:{port}{parts.path or '/'}{query}",
        headers={
            "Host": shown if default else f"{shown}:{port}",
            "User-Agent": f"anysam/{__version__}",
            "Accept": "image/*",
            "Accept-Encoding": "identity",
        },
        extensions={"sni_hostname": host},  # the certificate must be the name's, not the address's
    )
    response = await client.send(request, stream=True, follow_redirects=False)
    try:
        if response.status_code in _REDIRECTS and "location" in response.headers:
            return str(response.headers["location"])
        if response.status_code != 200:
            raise Problem(422, f"The address answered with {response.status_code}; download the image.")
        data = bytearray()
        async for part in response.aiter_bytes():
            data += part
            if len(data) > limit:
                raise Problem(413, f"The image there is larger than {limit:,} bytes; download a smaller one.")
        return bytes(data)
    finally:
        await response.aclose()


def is_public(address: str) -> bool:
    """Whether an address is one of the open internet: not private, local, shared, reserved or for many at once."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if isinstance(found, ipaddress.IPv6Address):
        inside = found.ipv4_mapped or found.sixtofour or (found.teredo[1] if found.teredo else None)
        if inside is not None:
            return is_public(str(inside))
        if found in ipaddress.ip_network("64:ff9b::/96"):  # an IPv4 address behind a translator
            return is_public(str(ipaddress.IPv4Address(int(found) & 0xFFFFFFFF)))
    return found.is_global and not found.is_multicast and not found.is_reserved


def _checked(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise Problem(422, "The address is broken; give one like https://example.org/photo.jpg.") from error
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
        raise Problem(422, "The address must begin with https:// or http:// and name a host.")
    if parts.username is not None or parts.password is not None:
        raise Problem(422, "The address must not hold a user name or a password.")
    return parts
