"""What every request passes: host, origin, token, size, number; and what the log tells of it."""

import asyncio
import logging
import struct
import zlib

import httpx
import pytest

import anysam
from anysam.errors import OptionError
from anysam.serve.problems import Problem
from anysam.serve.request_bodies import CountedBody, HeldBytes
from anysam.serve.settings import ServeSettings, is_loopback
from http_server import Decoder, Server, png
from plain_engine import photograph


@pytest.fixture(scope="module")
def model():
    return anysam.load()


@pytest.fixture(scope="module")
def server(model):
    return Server(model, decoder=Decoder())


@pytest.fixture(scope="module")
def image(server):
    return server.add()


@pytest.mark.parametrize("form", [False, True])
def test_an_upload_may_be_so_large_and_no_larger(model, form):
    data = png(photograph())
    for limit, status in ((len(data), 201), (len(data) - 1, 413)):
        options = {"files": {"file": ("a.png", data)}} if form else {"content": data}
        Server(model, upload_bytes=limit)("POST", "/v1/images", status, **options)


def test_a_body_that_does_not_say_its_length_is_cut_off(model):
    sent = []

    async def endless():
        while True:
            sent.append(1)
            yield bytes(100_000)

    Server(model, upload_bytes=300_000)("POST", "/v1/images", 413, content=endless())
    assert len(sent) < 10
    sent.clear()
    headers = {"content-type": "application/json"}
    image = "a" * 32
    Server(model, json_bytes=300_000)("POST", f"/v1/images/{image}/predict", 413, content=endless(), headers=headers)
    assert len(sent) < 10


def body_of(*messages):
    waiting = [{"type": "http.request", "body": body, "more_body": more} for body, more in messages]

    async def receive():
        if not waiting:
            await asyncio.Event().wait()
        return waiting.pop(0)

    return receive


def test_bodies_of_several_requests_are_bounded_together_until_they_are_answered():
    async def run():
        held = HeldBytes(10)
        first = CountedBody(body_of((b"123456", False)), 8, held)
        await first()
        second = CountedBody(body_of((b"123456", False)), 8, held)
        with pytest.raises(Problem) as caught:
            await second()
        second.release()
        first.release()
        await CountedBody(body_of((b"12345678", False)), 8, held)()
        return caught.value, held.now

    problem, now = asyncio.run(run())
    assert problem.status == 503 and int(problem.headers["Retry-After"]) >= 1 and now == 8


def test_a_body_that_stops_coming_is_given_up_and_one_that_is_whole_is_not():
    async def run():
        stopped = CountedBody(body_of((b"1", True)), 8, HeldBytes(10), pause=0.02)
        await stopped()
        with pytest.raises(Problem) as caught:
            await stopped()
        whole = CountedBody(body_of((b"1", False)), 8, HeldBytes(10), pause=0.02)
        await whole()
        with pytest.raises(TimeoutError):  # it waits for the client to go
            await asyncio.wait_for(whole(), 0.1)
        return caught.value.status

    assert asyncio.run(run()) == 408


def bombs():
    """Files of a few bytes that say, or unpack to, far more pixels or text than they should."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    start = b"\x89PNG\r\n\x1a\n"
    yield "pixels", start + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    small = struct.pack(">IIBBBBB", 4, 4, 8, 2, 0, 0, 0)
    text = b"a\0\0" + zlib.compress(bytes(200_000_000))
    yield "text", start + chunk(b"IHDR", small) + chunk(b"zTXt", text) + chunk(b"IEND", b"")
    yield "gif", b"GIF89a" + struct.pack("<HH", 65_000, 65_000) + b"\x80\0\0" + bytes(6) + b","
    yield "postscript", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 100 100\nshowpage\n"


@pytest.mark.parametrize("data", [pytest.param(data, id=name) for name, data in bombs()])
def test_a_small_file_that_unpacks_to_much_is_refused(server, data):
    assert len(data) < 300_000
    server("POST", "/v1/images", 415, content=data)


def test_without_the_token_only_the_page_and_health_answer(model, tmp_path):
    (tmp_path / "index.html").write_text("page")
    server = Server(model, page=tmp_path, token="s3cret")
    for path in ("/", "/healthz", "/readyz"):
        server("GET", path)
    for path in ("/v1/models", "/metrics", "/openapi.json", "/v1/decoder", "/v1/images/" + "a" * 32):
        assert server("GET", path, 401).headers["www-authenticate"].startswith("Bearer")
        for wrong in ("Bearer s3cre", "Bearer s3crets", "Basic s3cret", "Bearer", "s3cret", "Bearer \xff"):
            server("GET", path, 401, headers={"Authorization": wrong.encode("latin-1")})
    server("GET", "/v1/models", headers={"Authorization": "bearer s3cret"})


def test_other_hosts_and_origins_are_refused(model):
    server = Server(model, cors=("https://friend.example",))
    for host in ("localhost", "127.0.0.1:8000", "[::1]:8000", "LOCALHOST:1", "192.168.7.5:80"):
        server("GET", "/healthz", host=host)
    for host in ("evil.example", "localhost.evil.example:8000", "127.0.0.1.evil.example"):
        server("GET", "/healthz", 403, host=host)
    data = {"content": png(photograph())}
    for origin in (
        "http://evil.example",
        "null",
        "http://localhost:8001",
        "http://localhost:8000.evil.example",
        "http://[",
    ):
        server("POST", "/v1/images", 403, headers={"Origin": origin}, **data)
    server("POST", "/v1/images", 201, headers={"Origin": "http://localhost:8000"}, **data)
    answer = server("POST", "/v1/images", 201, headers={"Origin": "https://friend.example"}, **data)
    assert answer.headers["access-control-allow-origin"] == "https://friend.example"
    asked = {"Origin": "https://friend.example", "Access-Control-Request-Method": "POST"}
    allowed = server("OPTIONS", "/v1/images", 204, headers=asked).headers
    assert "If-Match" in allowed["access-control-allow-headers"]
    assert "access-control-allow-origin" not in server("GET", "/healthz", headers={"Origin": "http://evil"}).headers


def test_every_answer_has_the_headers_that_keep_a_page_safe(server):
    for path, status in (("/healthz", 200), ("/nothing", 404), ("/v1/images/x", 422)):
        headers = server("GET", path, status).headers
        policy = dict(part.strip().partition(" ")[::2] for part in headers["content-security-policy"].split(";"))
        assert policy["script-src"] == "'self' 'wasm-unsafe-eval'" and policy["frame-ancestors"] == "'none'"
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["cross-origin-embedder-policy"] == "require-corp"


def test_more_requests_than_the_server_takes_are_told_to_come_again_and_health_still_answers(model):
    async def go():
        server = Server(model, max_requests=1)
        state = await server.engine.add_image(png(photograph()))
        began, end = asyncio.Event(), asyncio.Event()

        async def wait(image_id, seconds):
            began.set()
            await end.wait()
            return state

        server.engine.wait = wait
        async with httpx.AsyncClient(transport=httpx.ASGITransport(server.app), base_url="http://localhost") as client:
            first = asyncio.create_task(client.get(f"/v1/images/{state.image_id}?wait=9"))
            await began.wait()
            busy, health = await client.get("/v1/models"), await client.get("/healthz")
            end.set()
            await first
            return busy, health, await client.get("/v1/models")

    busy, health, later = asyncio.run(go())
    assert (busy.status_code, busy.headers["retry-after"], health.status_code) == (503, "1", 200)
    assert busy.headers["content-type"] == "application/problem+json" and later.status_code == 200


@pytest.mark.parametrize(
    "host, local",
    [
        ("localhost", True),
        ("127.9.0.1", True),
        ("::1", True),
        ("127.0.0.1.example", False),
        ("0.0.0.0", False),
        ("", False),
    ],
)
def test_only_loopback_is_this_machine_alone(host, local):
    assert is_loopback(host) is local


@pytest.mark.parametrize(
    "settings",
    [
        {"token": "a b"},
        {"token": "line\n"},
        {"token": "schlüssel"},
        {"cors": ("https://a.example/path",)},
        {"cors": ("*",)},
        {"cors": ("https://schlüssel.example",)},
        {"cors": ("https://A.example",)},
        {"cors": ("https://a.example:443",)},
        {"upload_bytes": 0},
    ],
    ids=str,
)
def test_settings_that_make_no_sense_are_refused(settings):
    with pytest.raises(OptionError):
        ServeSettings(**settings)


def test_the_log_has_no_user_data(model, caplog):
    server = Server(model, token="s3cret")
    own = {"Authorization": "Bearer s3cret"}
    with caplog.at_level(logging.DEBUG, "anysam.serve"):
        image = server("POST", "/v1/images?wait=1&secret=1", 201, content=png(photograph()), headers=own).json()["id"]
        server("POST", f"/v1/images/{image}/predict", 409, json={"prompts": [{"text": "secret"}]}, headers=own)
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 2 and "POST /v1/images/{image_id}/predict 409" in lines[1]
    assert not any(word in caplog.text for word in ("secret", "s3cret", image, "127.0.0.1"))


def test_origins_are_taken_as_browsers_send_them():
    origins = (
        "https://a.example",
        "http://a.example:443",
        "http://[::1]:8080",
        "https://xn--schlssel-95a.example:8443",
    )
    assert ServeSettings(cors=origins).cors == origins
