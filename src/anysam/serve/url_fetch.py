"""An image from an address that a client names: fetched from public machines only, bounded in time, bytes and number.

The name is resolved here, every address that it has must be public, and the connection is made to the address that was
checked, so that a name which changes its meaning in between reaches nothing. Redirects are followed by the same rules.
"""

import asyncio
import ipaddress
import socket
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import SplitResult, urljoin, urlsplit

import httpx

from anysam import __version__
from anysam.serve.problems import Problem

Resolve = Callable[[str, int], Awaitable[list[str]]]

_MAX_REDIRECTS = 3
_SECONDS = 20.0
_AT_ONCE = 4
_RETRY_SECONDS = 5
_REDIRECTS = (301, 302, 303, 307, 308)
_GLOBAL_UNICAST = ipaddress.ip_network("2000::/3")  # all of IPv6 that is routed; what is closed inside it is told below
_DOCUMENTATION = ipaddress.ip_network("3fff::/20")  # unknown to Python before 3.13
_RELAYS = ipaddress.ip_network("192.88.99.0/24")
_TRANSLATED = ipaddress.ip_network("64:ff9b::/96")  # IPv4 addresses behind a translator


class Fetcher:
    """A few fetches at a time. resolve: a host and port -> its addresses; transport, seconds: for tests."""

    def __init__(
        self,
        resolve: Resolve | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
        seconds: float = _SECONDS,
    ) -> None:
        # Threads of its own: names that are never answered must not hold up those of the event loop.
        self._threads = ThreadPoolExecutor(_AT_ONCE, "anysam-resolve")
        self._resolve = self._look_up if resolve is None else resolve
        self._transport = transport
        self._seconds = seconds
        self._running = 0

    async def fetch(self, url: str, limit: int) -> bytes:
        """The bytes at an address, at most `limit`.

        Raises Problem: 403 for what is not public, 413, 503 when too many are fetched already, and 422 for all else.
        """
        if self._running >= _AT_ONCE:
            detail = f"The server fetches as many addresses as it takes; try again in {_RETRY_SECONDS} s."
            raise Problem(503, detail, {"Retry-After": str(_RETRY_SECONDS)})
        self._running += 1
        try:
            async with asyncio.timeout(self._seconds):
                return await self._follow(url, limit)
        except TimeoutError as error:
            raise Problem(422, f"The address did not answer within {self._seconds:g} s; upload the image.") from error
        except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError) as error:
            raise Problem(422, "The address cannot be fetched; check it, or upload the image.") from error
        finally:
            self._running -= 1

    async def _follow(self, url: str, limit: int) -> bytes:
        async with httpx.AsyncClient(transport=self._transport, trust_env=False, timeout=self._seconds) as client:
            for _ in range(_MAX_REDIRECTS + 1):
                found = await _once(client, url, limit, self._resolve)
                if isinstance(found, bytes):
                    return found
                url = urljoin(url, found)
        raise Problem(422, f"The address leads on more than {_MAX_REDIRECTS} times; give the last one.")

    async def _look_up(self, host: str, port: int) -> list[str]:
        def look_up() -> list[str]:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            return list(dict.fromkeys(str(entry[4][0]) for entry in found))

        return await asyncio.get_running_loop().run_in_executor(self._threads, look_up)


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
    request = client.build_request(
        "GET",
        f"{parts.scheme}://{target}:{port}{parts.path or '/'}{query}",
        headers={
            "Host": shown if parts.port is None else f"{shown}:{port}",
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
            raise Problem(422, f"The address answered with {response.status_code}; upload the image.")
        if response.headers.get("content-encoding", "identity").lower() != "identity":
            # It was not asked for, and what it unpacks to is not bounded.
            raise Problem(422, "The address answers with compressed data; upload the image.")
        data = bytearray()
        async for part in response.aiter_raw():
            data += part
            if len(data) > limit:
                raise Problem(413, f"The image there is larger than {limit:,} bytes; give a smaller one.")
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
        if found in _TRANSLATED:
            return is_public(str(ipaddress.IPv4Address(int(found) & 0xFFFFFFFF)))
        inside = found.ipv4_mapped or found.sixtofour or (found.teredo[1] if found.teredo else None)
        if inside is not None:
            return is_public(str(inside))
        if found not in _GLOBAL_UNICAST or found in _DOCUMENTATION:
            return False
    elif found in _RELAYS:
        return False
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
