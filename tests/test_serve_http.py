"""The HTTP API over the built-in model, in this process: what is asked, what is answered, what is refused."""

import asyncio
import base64
import io
import json
import logging
import re
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load

import anysam
from anysam import MaskRecord, Prompt
from anysam.automatic.presets import preset
from anysam.serve.application import make_application
from anysam.serve.engine_types import Overloaded, Progress
from anysam.serve.events import EventStream
from anysam.serve.settings import ServeSettings
from plain_engine import PlainEngine, photograph

CLICK = {"points": [[40, 30]]}


@pytest.fixture(scope="module")
def model():
    return anysam.load()


def png(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


class Decoder:
    async def file(self):
        return b"onnx", {"sha256": "abc", "variant": "anysam_lite"}


class Server:
    """A client of an application, without a network."""

    def __init__(self, model, page=None, **settings):
        self.engine = PlainEngine(model)
        self.app = make_application(self.engine, ServeSettings(**settings), decoder=Decoder(), page=page)

    def __call__(self, method, path, expected=200, host="localhost:8000", **options):
        async def ask():
            transport = httpx.ASGITransport(self.app)
            async with httpx.AsyncClient(transport=transport, base_url=f"http://{host}") as client:
                return await client.request(method, path, **options)

        response = asyncio.run(ask())
        assert response.status_code == expected, (response.status_code, response.text[:300])
        if expected >= 400:
            assert response.headers["content-type"] == "application/problem+json"
            assert response.json()["status"] == expected and response.json()["detail"]
            assert response.json()["request_id"] == response.headers["x-request-id"]
        return response

    def add(self, pixels=None):
        data = png(photograph() if pixels is None else pixels)
        return self("POST", "/v1/images", 201, content=data).json()["id"]


@pytest.fixture(scope="module")
def server(model):
    return Server(model)


@pytest.fixture(scope="module")
def image(server):
    return server.add()


# --- images -----------------------------------------------------------------------------------------------------------


def test_an_upload_is_answered_with_where_and_what_it_is(server):
    response = server("POST", "/v1/images?wait=5", 201, content=png(photograph(50, 70)))
    form = response.json()
    assert form["size"] == [50, 70] and form["state"] == "ready" and form["model"] == "anysam_lite"
    assert response.headers["location"] == f"/v1/images/{form['id']}"
    assert server("GET", response.headers["location"]).json() == form


def test_a_form_with_one_file_is_an_upload(server):
    form = server("POST", "/v1/images", 201, files={"file": ("../../etc/x.png", png(photograph()))}).json()
    assert form["size"] == [60, 80]


@pytest.mark.parametrize(
    "status, options",
    [
        (400, {"content": b""}),
        (400, {"files": {"other": ("x.png", b"123")}}),
        (400, {"files": [("file", ("a", b"1")), ("file", ("b", b"2"))]}),
        (400, {"data": {"file": "text"}, "files": {"file": ("a", b"1")}}),
        (400, {"content": b"no form", "headers": {"content-type": "multipart/form-data"}}),
        (400, {"content": b"{", "headers": {"content-type": "application/json"}}),
        (403, {"json": {"url": "http://example.org/a.png"}}),
        (415, {"content": b"GIF89a of nothing"}),
        (415, {"content": b"<svg/>", "headers": {"content-type": "text/html"}}),
        (422, {"json": {"url": 5}}),
        (422, {"json": {"url": "http://a", "path": "/etc/passwd"}}),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_is_no_image_is_refused(server, status, options):
    server("POST", "/v1/images", status, **options)


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


def test_a_removed_image_is_unknown(server):
    image = server.add()
    server("DELETE", f"/v1/images/{image}", 204)
    for method, path in (("GET", ""), ("DELETE", ""), ("GET", "/embedding")):
        server(method, f"/v1/images/{image}{path}", 404)
    server("POST", f"/v1/images/{image}/predict", 404, json={"prompts": [CLICK]})


@pytest.mark.parametrize("image_id", ["x", "../../etc/passwd", "A" * 32, "%00" * 3])
def test_what_is_no_id_finds_nothing(server, image_id):
    assert server.engine.kept is not None
    response = asyncio.run(_raw(server.app, f"/v1/images/{image_id}"))
    assert response.status_code in (404, 422)


async def _raw(app, path, method="GET", headers=None):
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
        return await client.request(method, path, headers=headers)


def test_the_embedding_is_the_model_s_own_and_is_sent_once(server, model, image):
    response = server("GET", f"/v1/images/{image}/embedding")
    features = load(response.content)
    encoded = model.encode(photograph())
    assert features.keys() == encoded.features.keys()
    for name, value in encoded.features.items():
        np.testing.assert_array_equal(features[name], value.half().numpy())
    assert response.headers["x-original-size"] == "60,80" and response.headers["x-input-size"] == "480,640"
    again = {"If-None-Match": f'"other", {response.headers["etag"]}'}
    assert server("GET", f"/v1/images/{image}/embedding", 304, headers=again).content == b""


# --- prompts ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("multimask", [None, True, False])
def test_predictions_are_the_model_s(server, model, image, multimask):
    encoded = model.encode(photograph()).rounded()
    prompts = [
        Prompt(points=[[40, 30], [3, 3]], labels=[1, 0]),
        Prompt(points=[[40, 30]]),
        Prompt(box=[18, 8, 62, 52]),
        Prompt(mask=photograph()[..., 0] > 100),
        Prompt(polygon=[[30, 20], [50, 20], [40, 45]]),
        Prompt(scribble=[[35, 30], [45, 30]]),
    ]
    body = {"prompts": [each.to_dict() for each in prompts], "multimask": multimask, "low_res_logits": True}
    answer = server("POST", f"/v1/images/{image}/predict", json=body).json()
    assert answer["size"] == [60, 80] and len(answer["results"]) == len(prompts)
    for result, prediction, prompt in zip(
        answer["results"], model.predict(encoded, prompts, multimask), prompts, strict=True
    ):
        records = [MaskRecord.from_dict(form) for form in result["masks"]]
        np.testing.assert_array_equal([record.to_mask() for record in records], prediction.masks)
        assert [record.predicted_iou for record in records] == prediction.iou_predictions.tolist()
        assert result["best"] == prediction.best and records[0].prompt == prompt.to_dict()
        for form, logits in zip(result["low_res_logits"], prediction.low_res_logits, strict=True):
            found = np.frombuffer(base64.b64decode(form["float32"]), "<f4").reshape(form["shape"])
            np.testing.assert_array_equal(found, logits)


def test_logits_refine(server, image):
    first = server("POST", f"/v1/images/{image}/predict", json={"prompts": [CLICK], "low_res_logits": True}).json()
    refined = CLICK | {"low_res_logits": first["results"][0]["low_res_logits"][0]}
    answer = server("POST", f"/v1/images/{image}/predict", json={"prompts": [refined]}).json()
    assert len(answer["results"][0]["masks"]) == 1 and "low_res_logits" not in answer["results"][0]


@pytest.mark.parametrize(
    "status, body",
    [
        (400, b"{"),
        (400, b"[" * 100_000),
        (422, {}),
        (422, {"prompts": []}),
        (422, {"prompts": [{}]}),
        (422, {"prompts": [CLICK], "multimusk": True}),
        (422, {"prompts": [CLICK | {"pointz": []}]}),
        (422, {"prompts": [{"points": [[400, 30]]}]}),
        (422, {"prompts": [{"points": [["40", 30]]}]}),
        (422, {"prompts": [{"points": [[40, 30, 1]]}]}),
        (422, {"prompts": [{"points": [[40, 30]], "labels": [2]}]}),
        (422, {"prompts": [{"points": [[40, 30]], "labels": [True]}]}),
        (422, b'{"prompts": [{"points": [[NaN, 30]]}]}'),
        (422, {"prompts": [{"box": [30, 30, 10, 10]}]}),
        (422, {"prompts": [CLICK] * 257}),
        (422, {"prompts": [{"mask": {"size": [100000, 100000], "counts": [10**10]}}]}),
        (422, {"prompts": [{"mask": {"size": [60, 80], "counts": "nonsense"}}]}),
        (422, {"prompts": [{"low_res_logits": {"shape": [4, 4], "float32": "AAAA"}}]}),
        (409, {"prompts": [{"text": "the disc"}]}),
    ],
    ids=lambda value: str(value)[:60],
)
def test_malformed_prompts_are_refused(server, image, status, body):
    options = {"content": body, "headers": {"content-type": "application/json"}} if isinstance(body, bytes) else {}
    server("POST", f"/v1/images/{image}/predict", status, **(options or {"json": body}))


def test_a_full_queue_says_when_to_come_again(model):
    server = Server(model)
    image = server.add()
    server.engine.fault = Overloaded(7)
    response = server("POST", f"/v1/images/{image}/predict", 503, json={"prompts": [CLICK]})
    assert response.headers["retry-after"] == "7"


def test_a_fault_is_told_without_its_message_and_the_server_goes_on(model, caplog):
    server = Server(model)
    image = server.add()
    server.engine.fault = RuntimeError("the secret of a user")
    with caplog.at_level(logging.INFO, "anysam.serve"):
        response = server("POST", f"/v1/images/{image}/predict", 500, json={"prompts": [CLICK]})
    assert "secret" not in response.text + caplog.text
    assert response.headers["x-request-id"] in caplog.text and "plain_engine.py" in caplog.text
    server.engine.fault = None
    server("POST", f"/v1/images/{image}/predict", json={"prompts": [CLICK]})


def test_describing_needs_a_describer_and_one_kind_of_thing(server, image):
    record = server("POST", f"/v1/images/{image}/predict", json={"prompts": [CLICK]}).json()["results"][0]["masks"][0]
    for body in ({"prompts": [CLICK]}, {"masks": [record]}):
        assert "--describe" in server("POST", f"/v1/images/{image}/describe", 409, json=body).json()["detail"]
    for body in ({}, {"prompts": [CLICK], "masks": [record]}, {"masks": [record | {"area": 1}]}):
        server("POST", f"/v1/images/{image}/describe", 422, json=body)


# --- everything -------------------------------------------------------------------------------------------------------


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


@pytest.mark.parametrize("accept", ["text/event-stream", "application/json"])
def test_a_client_that_goes_cancels_everything(model, accept):
    async def go():
        server = Server(model)
        server.engine.hold = asyncio.Event()
        state = await server.engine.add_image(png(photograph()))
        left, sent = asyncio.Event(), []
        body = iter([{"type": "http.request", "body": b"{}", "more_body": False}])

        async def receive():
            message = next(body, None)
            if message is None:
                await left.wait()
                return {"type": "http.disconnect"}
            return message

        async def send(message):
            sent.append(message)

        scope = {
            "type": "http",
            "method": "POST",
            "path": f"/v1/images/{state.image_id}/everything",
            "raw_path": b"",
            "query_string": b"",
            "headers": [(b"host", b"localhost"), (b"accept", accept.encode()), (b"content-type", b"application/json")],
            "http_version": "1.1",
            "scheme": "http",
            "server": ("localhost", 80),
            "client": ("127.0.0.1", 1),
            "root_path": "",
        }
        running = asyncio.create_task(server.app(scope, receive, send))
        while not (sent and len(sent) > 1) and accept == "text/event-stream":
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.05)
        left.set()
        await asyncio.wait_for(running, 5)
        return server.engine.cancelled

    assert asyncio.run(go()) == 1


def test_what_goes_wrong_after_the_first_events_is_an_event():
    async def items():
        yield Progress(0.1)
        await asyncio.sleep(0)
        raise Overloaded(3)

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
    assert [name for name, _ in told] == ["progress", "problem"] and told[1][1]["status"] == 503


# --- the guard --------------------------------------------------------------------------------------------------------


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
    for host in ("localhost", "127.0.0.1:8000", "[::1]:8000", "LOCALHOST:1"):
        server("GET", "/healthz", host=host)
    for host in ("evil.example", "localhost.evil.example:8000", "127.0.0.1.evil.example"):
        server("GET", "/healthz", 403, host=host)
    data = {"content": png(photograph())}
    for origin in ("http://evil.example", "null", "http://localhost:8001", "http://localhost:8000.evil.example"):
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


def test_the_log_has_no_user_data(model, caplog):
    server = Server(model, token="s3cret")
    own = {"Authorization": "Bearer s3cret"}
    with caplog.at_level(logging.DEBUG, "anysam.serve"):
        image = server("POST", "/v1/images?wait=1&secret=1", 201, content=png(photograph()), headers=own).json()["id"]
        server("POST", f"/v1/images/{image}/predict", 409, json={"prompts": [{"text": "secret"}]}, headers=own)
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 2 and "POST /v1/images/{image_id}/predict 409" in lines[1]
    assert not any(word in caplog.text for word in ("secret", "s3cret", image, "127.0.0.1"))


# --- the server itself ------------------------------------------------------------------------------------------------


def test_models_say_what_the_server_has(server):
    form = server("GET", "/v1/models").json()
    assert form["served"] == "anysam_lite" and [row["name"] for row in form["models"] if row["served"]] == [
        "anysam_lite"
    ]
    assert not form["text"] and not form["describe"] and not form["projects"] and form["decoder"]
    licences = {row["name"]: row["licence"] for row in form["models"]}
    assert licences["anysam_lite"] == "Apache-2.0"


def test_the_decoder_is_sent_once(server):
    response = server("GET", "/v1/decoder")
    assert response.content == b"onnx" and server("GET", "/v1/decoder/info").json()["variant"] == "anysam_lite"
    server("GET", "/v1/decoder", 304, headers={"If-None-Match": response.headers["etag"]})


def test_metrics_count_requests_by_route(server, image):
    server("GET", f"/v1/images/{image}")
    text = server("GET", "/metrics").text
    assert 'anysam_requests_total{method="GET",route="/v1/images/{image_id}",status="200"}' in text
    assert "anysam_ready " in text and image not in text


def test_the_page_is_served_and_nothing_beside_it(model, tmp_path):
    page = tmp_path / "page"
    (page / "assets").mkdir(parents=True)
    (tmp_path / "secret.txt").write_text("secret")
    (page / "index.html").write_text("<title>anysam</title>")
    (page / "assets" / "run-abc.wasm").write_bytes(b"\0asm")
    server = Server(model, page=page)
    assert server("GET", "/").headers["content-type"].startswith("text/html")
    asset = server("GET", "/assets/run-abc.wasm")
    assert asset.headers["content-type"] == "application/wasm" and "immutable" in asset.headers["cache-control"]
    for path in ("/secret.txt", "/assets/../../secret.txt", "/..%2fsecret.txt", "/assets/"):
        assert asyncio.run(_raw(server.app, path)).status_code == 404
    assert "make page" in Server(model, page=tmp_path)("GET", "/").text


def test_the_documents_name_every_route_and_no_other(model, tmp_path):
    from anysam.serve.projects.database import open_projects
    from anysam.serve.projects.routes import make_router

    engine = PlainEngine(model)
    projects = open_projects(tmp_path / "p.sqlite")
    app = make_application(engine, routers=[make_router(projects, engine)], page=None)
    document = asyncio.run(_raw(app, "/openapi.json")).json()
    projects.close()
    told = set()
    for name in ("serve.md", "projects.md"):
        for line in Path("docs", name).read_text(encoding="utf-8").splitlines():
            if line.startswith("curl "):
                path = re.search(r"\$SERVER([^\s\"?]*)", line)[1]
                method = re.search(r"-X (\w+)", line)
                post = " -d " in line or "--data-binary" in line or " -F " in line
                told.add((method[1] if method else "POST" if post else "GET", re.sub(r"\$\w+", "{}", path)))
    routes = {
        (method.upper(), re.sub(r"\{\w+\}", "{}", path))
        for path, methods in document["paths"].items()
        for method in methods
    }
    assert told == routes
