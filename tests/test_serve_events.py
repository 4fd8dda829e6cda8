"""Everything mode over HTTP, its events, and clients that go away before their answer."""

import asyncio
import gc
import json
import logging

import httpx
import pytest

import anysam
from anysam.automatic.presets import preset
from anysam.serve.engine_types import Overloaded, Progress
from anysam.serve.events import EventStream
from http_server import CLICK, Decoder, Server, png
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


def events(text):
    blocks = [block.splitlines() for block in text.strip().split("\n\n") if not block.startswith(":")]
    return [(name.removeprefix("event: "), json.loads(data.removeprefix("data: "))) for name, data in blocks]


def test_everything_is_the_model_s_with_and_without_progress(server, model, image):
    body = {"preset": "fast", "options": {"max_masks": 5}}
    options = anysam.EverythingOptions(**{**vars(preset("fast", "anysam_lite")), "max_masks": 5})
    wanted = [record.to_dict() for record in model.everything(model.encode(photograph()).rounded(), options)]
    answer = server("POST", f"/v1/images/{image}/everything", json=body).json()
    assert answer == {"size": [60, 80], "masks": wanted} and wanted
    told = server("POST", f"/v1/images/{image}/everything", json=body, headers={"Accept": "text/event-stream"})
    assert told.headers["content-type"].startswith("text/event-stream")
    assert events(told.text) == [("progress", {"done": 0.5}), ("result", answer)]


@pytest.mark.parametrize(
    "body",
    [
        {"preset": "none"},
        {"options": {"points_per_side": 65}},
        {"options": {"crop_n_layers": 2}},
        {"options": {"tile": 64}},
        {"options": {"pred_iou_thresh": 2}},
        {"options": {"levels": ["whole", "whole"]}},
    ],
    ids=str,
)
def test_everything_s_options_are_bounded(server, image, body):
    server("POST", f"/v1/images/{image}/everything", 422, json=body)


async def leaving(app, path, body, began, headers=(), query=b"", kind=b"application/json"):
    """Ask, and go away when `began` says so; what was sent until then and after."""
    left, sent = asyncio.Event(), []
    messages = iter([{"type": "http.request", "body": body, "more_body": False}])

    async def receive():
        message = next(messages, None)
        if message is None:
            await left.wait()
            return {"type": "http.disconnect"}
        return message

    async def send(message):
        sent.append(message)

    scope = {
        "type": "http",
        "method": "POST",
        "path": path,
        "raw_path": b"",
        "query_string": query,
        "headers": [(b"host", b"localhost"), (b"content-type", kind), *headers],
        "http_version": "1.1",
        "scheme": "http",
        "server": ("localhost", 80),
        "client": ("127.0.0.1", 1),
        "root_path": "",
    }
    running = asyncio.create_task(app(scope, receive, send))
    async with asyncio.timeout(20):
        while not began(sent):
            await asyncio.sleep(0.01)
        left.set()
        await running
    return sent


@pytest.mark.parametrize("accept", ["text/event-stream", "application/json"])
def test_a_client_that_goes_cancels_everything(model, accept, caplog):
    async def go():
        server = Server(model)
        server.engine.hold = asyncio.Event()
        state = await server.engine.add_image(png(photograph()))
        path, headers = f"/v1/images/{state.image_id}/everything", [(b"accept", accept.encode())]
        await leaving(server.app, path, b"{}", lambda sent: server.engine.held, headers)
        return server.engine.cancelled

    with caplog.at_level(logging.INFO, "anysam.serve"):
        assert asyncio.run(go()) == 1
    assert "fault" not in caplog.text and len(caplog.records) == 1


def test_a_client_that_goes_is_no_fault_of_the_server(model, caplog):
    async def go():
        server = Server(model)
        state = await server.engine.add_image(png(photograph()))
        asked = []

        async def predict(*_):
            asked.append(1)
            await asyncio.Event().wait()

        server.engine.predict = predict
        body = json.dumps({"prompts": [CLICK]}).encode()
        await leaving(server.app, f"/v1/images/{state.image_id}/predict", body, lambda sent: asked)
        async with httpx.AsyncClient(transport=httpx.ASGITransport(server.app), base_url="http://localhost") as client:
            return (await client.get("/metrics")).text

    with caplog.at_level(logging.INFO, "anysam.serve"):
        numbers = asyncio.run(go())
    assert "predict 499" in caplog.text and "fault" not in caplog.text
    assert 'status="499"' in numbers and 'status="500"' not in numbers


def test_an_image_whose_client_goes_before_it_has_the_id_is_forgotten(model):
    async def go():
        server = Server(model)
        waiting = []

        async def wait(image_id, seconds):
            waiting.append(image_id)
            await asyncio.Event().wait()

        server.engine.wait = wait
        data = png(photograph())
        await leaving(server.app, "/v1/images", data, lambda sent: waiting, query=b"wait=5", kind=b"image/png")
        return waiting, server.engine.kept

    waiting, kept = asyncio.run(go())
    assert len(waiting) == 1 and kept == {}


def test_an_upload_whose_client_goes_while_it_is_decoded_is_given_up(model):
    async def go():
        server = Server(model)
        seen = []

        async def add_image(data):
            seen.append("begun")
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                seen.append("given up")
                raise

        server.engine.add_image = add_image
        await leaving(server.app, "/v1/images", png(photograph()), lambda sent: seen, kind=b"image/png")
        return seen

    assert asyncio.run(go()) == ["begun", "given up"]


@pytest.mark.parametrize("error, status", [(Overloaded(3), 503), (RuntimeError("a secret"), 500)], ids=str)
def test_what_goes_wrong_after_the_first_events_is_an_event(error, status, caplog):
    async def items():
        yield Progress(0.1)
        await asyncio.sleep(0)
        raise error

    sent = []

    async def run():
        stream = EventStream(items(), lambda item: ("progress", {"done": item.done}), "id")
        await stream.start()

        async def receive():
            await asyncio.Event().wait()

        async def send(message):
            sent.append(message)

        await stream({}, receive, send)

    asyncio.run(run())
    told = events(b"".join(message.get("body", b"") for message in sent).decode())
    assert [name for name, _ in told] == ["progress", "problem"] and told[1][1]["status"] == status
    assert ("id fault RuntimeError" in caplog.text) == (status == 500)
    assert "secret" not in caplog.text + str(told)


def test_work_that_fails_as_its_client_goes_is_not_told_to_the_log():
    complaints = []

    async def items():
        raise RuntimeError("a secret")
        yield

    async def nothing(*_):
        return {"type": "http.disconnect"}

    async def run():
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: complaints.append(context["message"]))
        await EventStream(items(), lambda item: ("progress", {}), "id")({}, nothing, nothing)
        gc.collect()

    asyncio.run(run())
    assert complaints == []


def test_a_silent_stream_shows_that_it_lives(monkeypatch):
    monkeypatch.setattr("anysam.serve.events._HEARTBEAT_SECONDS", 0.02)
    sent = []

    async def items():
        await asyncio.sleep(0.2)
        yield Progress(1.0)

    async def run():
        async def send(message):
            sent.append(message.get("body", b""))

        await EventStream(items(), lambda item: ("progress", {"done": item.done}), "id")({}, asyncio.Event().wait, send)

    asyncio.run(run())
    comments = [each for each in sent if each.startswith(b":")]
    assert len(comments) >= 3 and all(each.endswith(b"\n\n") for each in comments)
