"""Many clients that click at once on encoded images: how long they wait, what fails, how memory grows.

python benchmarks/serve_load.py [--clients 32] [--seconds 60] [--pause 1.0] [--images 4]

Starts `anysam serve` on a free port of this machine, uploads photographs, and has every client send one click after the
other over a connection of its own, each on a random place of a random photograph; --pause is the mean time between an
answer and the next click (0: none). Clients and server share the machine's cores. Only loopback addresses are asked.
"""

import argparse
import asyncio
import json
import os
import platform
import random
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

IMAGES = Path(__file__).parents[1] / "examples" / "images"
AIM_SECONDS = 0.4


async def ask(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, path: str, body: bytes, kind: str
) -> tuple[int, bytes]:
    """One POST over a connection that stays open: status and body."""
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
    writer.write(head.encode("ascii") + body)
    await writer.drain()
    answer = (await reader.readuntil(b"\r\n\r\n")).lower()
    length = re.search(rb"content-length: (\d+)", answer)
    assert length is not None
    return int(answer.split()[1]), await reader.readexactly(int(length[1]))


async def click(port: int, images: list[dict], end: float, pause: float, seed: int, waits: list[float]) -> int:
    """One client: clicks until `end`; how many were not answered with 200."""
    chance = random.Random(seed)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    await asyncio.sleep(chance.uniform(0, pause))
    failed = 0
    while time.perf_counter() < end:
        image = chance.choice(images)
        height, width = image["size"]
        point = [round(chance.uniform(0, width - 1)), round(chance.uniform(0, height - 1))]
        body = json.dumps({"prompts": [{"points": [point]}]}).encode()
        start = time.perf_counter()
        status, _ = await ask(reader, writer, f"/v1/images/{image['id']}/predict", body, "application/json")
        waits.append(time.perf_counter() - start)
        failed += status != 200
        await asyncio.sleep(chance.expovariate(1 / pause) if pause else 0)
    writer.close()
    return failed


async def load(port: int, clients: int, seconds: float, pause: float, count: int) -> tuple[list[float], int]:
    """Upload `count` photographs, then click: seconds of every click, and how many failed."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    images = []
    for path in sorted(IMAGES.glob("*.*g"))[:count]:
        status, body = await ask(reader, writer, "/v1/images?wait=30", path.read_bytes(), "application/octet-stream")
        images.append(json.loads(body))
        assert status == 201 and images[-1]["state"] == "ready", body
    writer.close()
    for timed in (3.0, seconds):  # the first is not counted
        waits: list[float] = []
        end = time.perf_counter() + timed
        failed = sum(await asyncio.gather(*(click(port, images, end, pause, i, waits) for i in range(clients))))
    return sorted(waits), failed


def resident(pid: int) -> float:
    """Megabytes that a process holds."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise OSError("no VmRSS")


def main() -> int:
    """Print one table; the exit status is 1 when a click failed or the aim was missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--pause", type=float, default=0.0)
    parser.add_argument("--images", type=int, default=4)
    options = parser.parse_args()
    server = subprocess.Popen(
        [sys.executable, "-m", "anysam", "serve", "--port", "0"], stderr=subprocess.PIPE, text=True
    )
    try:
        assert server.stderr is not None
        port = next(int(found[1]) for line in server.stderr if (found := re.search(r"127\.0\.0\.1:(\d+)/", line)))
        threading.Thread(target=server.stderr.read, daemon=True).start()  # a full pipe would stop the server
        before = None

        async def run() -> tuple[list[float], int]:
            nonlocal before
            await asyncio.sleep(0.5)
            task = asyncio.create_task(load(port, options.clients, options.seconds, options.pause, options.images))
            await asyncio.sleep(min(8.0, options.seconds / 2))
            before = resident(server.pid)
            return await task

        waits, failed = asyncio.run(run())
        after = resident(server.pid)
    finally:
        server.terminate()
        server.wait(20)
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    print("| clients | pause s | clicks/s | p50 s | p95 s | p99 s | failed | MB after 8 s | MB at the end |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    p50, p95, p99 = (waits[int(part * (len(waits) - 1))] for part in (0.5, 0.95, 0.99))
    print(
        f"| {options.clients} | {options.pause:g} | {len(waits) / options.seconds:.1f} | {p50:.3f} | {p95:.3f} | "
        f"{p99:.3f} | {failed} | {before:.0f} | {after:.0f} |"
    )
    return int(failed > 0 or p95 > AIM_SECONDS)


if __name__ == "__main__":
    sys.exit(main())
