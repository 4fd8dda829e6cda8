"""Clients that click as fast as they are answered: seconds to an answer, errors, and the server's memory.

python benchmarks/serve_load.py [--clients 32] [--seconds 60] [--think 0] [--images 4] [--url http://127.0.0.1:8000]

Starts `anysam serve` on a free port, uploads the photographs of examples/images, waits until they are encoded, and lets
every client click at random places of one of them over its own connection: one foreground point, three masks as run
lengths. Clients and server share the machine's cores. The exit status is 1 if an answer was no 200, or the 95th
percentile is above the bound. See README.md for the method.
"""

import argparse
import asyncio
import ipaddress
import json
import os
import platform
import random
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

IMAGES = sorted(
    path for path in (Path(__file__).parent.parent / "examples" / "images").iterdir() if path.suffix in (".png", ".jpg")
)
BOUND = 0.400
START_SECONDS = 120


class Connection:
    """HTTP/1.1 on one socket, kept open; as little work as possible, because the server needs the cores."""

    def __init__(self, host: str, port: int) -> None:
        self._host, self._port = host, port
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def ask(self, method: str, path: str, body: bytes = b"", kind: str = "application/json") -> tuple[int, bytes]:
        """Status and body of an answer."""
        if self._reader is None or self._writer is None:
            self._reader, self._writer = await asyncio.open_connection(self._host, self._port)
        head = f"{method} {path} HTTP/1.1\r\nHost: {self._host}:{self._port}\r\nContent-Type: {kind}\r\n"
        self._writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        answer = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        length = re.search(r"^content-length: *(\d+)", answer, re.IGNORECASE | re.MULTILINE)
        content = await self._reader.readexactly(int(length[1]) if length else 0)
        return int(answer.split(" ", 2)[1]), content

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
        self._reader = self._writer = None


@dataclass
class Outcome:
    """seconds: of every answer, with its place in time. failed: how often each status, or error, came."""

    seconds: list[float] = field(default_factory=list)
    failed: Counter[str] = field(default_factory=Counter)
    received: int = 0


def loopback(url: str) -> tuple[str, int]:
    """Host and port of a server on this machine; nothing else is put under load."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    if parts.scheme != "http" or not (host == "localhost" or _is_loopback(host)):
        raise SystemExit(f"--url must be an http address of this machine, such as http://127.0.0.1:8000, got {url!r}.")
    return host, parts.port or 80


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def resident(process: subprocess.Popen[bytes] | None) -> float | None:
    """MB that a process of ours holds; None where the system does not tell."""
    status = Path(f"/proc/{process.pid}/status") if process is not None else None
    if status is None or not status.is_file():
        return None
    match = re.search(r"^VmRSS:\s+(\d+) kB", status.read_text(), re.MULTILINE)
    return int(match[1]) / 1024 if match else None


def processor_seconds(process: subprocess.Popen[bytes] | None) -> float | None:
    """Seconds of processor time that a process of ours has taken, all threads."""
    stat = Path(f"/proc/{process.pid}/stat") if process is not None else None
    if stat is None or not stat.is_file():
        return None
    fields = stat.read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def wait_until_up(host: str, port: int) -> None:
    end = time.monotonic() + START_SECONDS
    while True:
        connection = Connection(host, port)
        try:
            if (await connection.ask("GET", "/readyz"))[0] == 200:
                return
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            connection.close()
        if time.monotonic() > end:
            raise SystemExit(f"The server did not answer within {START_SECONDS} s.")
        await asyncio.sleep(0.2)


async def upload(host: str, port: int, path: Path) -> tuple[str, tuple[int, int]]:
    """The id and size (H, W) of an encoded image."""
    connection = Connection(host, port)
    try:
        status, content = await connection.ask("POST", "/v1/images", path.read_bytes(), "application/octet-stream")
        if status != 201:
            raise SystemExit(f"{path.name} was not accepted: {status} {content[:300]!r}")
        state = json.loads(content)
        while state["state"] in ("queued", "encoding"):
            state = json.loads((await connection.ask("GET", f"/v1/images/{state['id']}?wait=20"))[1])
        if state["state"] != "ready":
            raise SystemExit(f"{path.name} was not encoded: {state['error']}")
        return state["id"], (state["size"][0], state["size"][1])
    finally:
        connection.close()


async def click(
    host: str, port: int, image: tuple[str, tuple[int, int]], seed: int, end: float, think: float, outcome: Outcome
) -> None:
    """One client, until `end`."""
    chance, connection = random.Random(seed), Connection(host, port)
    image_id, (height, width) = image
    await asyncio.sleep(chance.random() * think)
    while time.monotonic() < end:
        point = [round(chance.uniform(0, width), 1), round(chance.uniform(0, height), 1)]
        body = json.dumps({"prompts": [{"points": [point]}]}).encode()
        began = time.perf_counter()
        try:
            status, content = await connection.ask("POST", f"/v1/images/{image_id}/predict", body)
        except (OSError, asyncio.IncompleteReadError) as error:
            outcome.failed[type(error).__name__] += 1
            connection.close()
            await asyncio.sleep(0.5)
            continue
        outcome.seconds.append(time.perf_counter() - began)
        outcome.received += len(content)
        if status != 200:
            outcome.failed[str(status)] += 1
        await asyncio.sleep(think)
    connection.close()


async def measure(
    host: str, port: int, process: subprocess.Popen[bytes] | None, options: argparse.Namespace
) -> tuple[Outcome, list[float | None], float, float | None]:
    """The outcome, memory before, in the middle and after, seconds, and the server's processor seconds."""
    await wait_until_up(host, port)
    images = [await upload(host, port, IMAGES[i % len(IMAGES)]) for i in range(options.images)]
    warm_up = Outcome()
    until = time.monotonic() + min(5.0, options.seconds)
    await asyncio.gather(*(click(host, port, images[i % len(images)], -i, until, 0, warm_up) for i in range(4)))
    outcome, memory = Outcome(), [resident(process)]
    busy = processor_seconds(process)
    began = time.monotonic()
    clients = [
        click(host, port, images[i % len(images)], i, began + options.seconds, options.think, outcome)
        for i in range(options.clients)
    ]
    everyone = asyncio.gather(*clients)
    await asyncio.sleep(options.seconds / 2)
    memory.append(resident(process))
    await everyone
    seconds, after = time.monotonic() - began, processor_seconds(process)
    memory.append(resident(process))
    return outcome, memory, seconds, None if after is None or busy is None else after - busy


def report(
    outcome: Outcome, memory: list[float | None], seconds: float, busy: float | None, options: argparse.Namespace
) -> bool:
    """Print the numbers; whether they are good enough."""
    ordered = sorted(outcome.seconds) or [float("inf")]
    p50, p95, p99 = (ordered[min(len(ordered) - 1, int(len(ordered) * share))] for share in (0.50, 0.95, 0.99))
    answers = len(outcome.seconds)
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    print(f"{options.clients} clients on {options.images} images, {options.think:g} s between clicks, {seconds:.0f} s")
    print(
        f"{answers} answers, {answers / seconds:.1f} a second, {outcome.received / max(1, answers) / 1024:.1f} KB each"
    )
    print(
        f"p50 {p50 * 1000:.0f} ms, p95 {p95 * 1000:.0f} ms, p99 {p99 * 1000:.0f} ms, most {ordered[-1] * 1000:.0f} ms"
    )
    if busy is not None:
        print(f"server: {busy / seconds:.2f} cores, {busy / max(1, answers) * 1000:.1f} ms of them an answer")
    if all(value is not None for value in memory):
        print("server's memory: " + ", ".join(f"{value:.0f} MB" for value in memory) + " (begin, middle, end)")
    print(f"errors: {dict(outcome.failed) or 'none'}")
    return not outcome.failed and p95 <= BOUND


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--think", type=float, default=0.0, help="seconds between an answer and the next click")
    parser.add_argument("--images", type=int, default=4, help="how many images the clients share")
    parser.add_argument("--url", help="a server of this machine that runs already")
    options = parser.parse_args()
    if options.url is not None:
        host, port = loopback(options.url)
        return 0 if report(*asyncio.run(measure(host, port, None, options)), options) else 1
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "anysam", "serve", "--port", str(port)]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=log)
        try:
            return 0 if report(*asyncio.run(measure("127.0.0.1", port, process, options)), options) else 1
        finally:
            ended = process.poll()
            process.terminate()
            process.wait(30)
            if ended is not None:
                log.seek(0)
                print(f"The server ended by itself, with status {ended}; the end of its log:", file=sys.stderr)
                print(log.read().decode(errors="replace")[-4000:], file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
