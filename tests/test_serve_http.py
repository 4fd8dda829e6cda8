"""The HTTP API over the built-in model, in this process: what is asked, what is answered, what is refused."""

import asyncio
import base64
import logging
import re
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load

import anysam
from anysam import MaskRecord, Prompt
from anysam.automatic.presets import PRESETS
from anysam.serve.application import make_application
from anysam.serve.engine_types import Overloaded
from http_server import CLICK, Decoder, Server, png, raw
from plain_engine import PlainEngine, photograph


@pytest.fixture(scope="module")
def model():
    return anysam.load()


@pytest.fixture(scope="module")
def server(model):
    return Server(model, decoder=Decoder())


@pytest.fixture(scope="module")
def image(server):
    return server.add()


# --- images ----------------------------------------------------------------------------------------------------------


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


def test_a_removed_image_is_unknown(server):
    image = server.add()
    server("DELETE", f"/v1/images/{image}", 204)
    for method, path in (("GET", ""), ("DELETE", ""), ("GET", "/embedding")):
        server(method, f"/v1/images/{image}{path}", 404)
    server("POST", f"/v1/images/{image}/predict", 404, json={"prompts": [CLICK]})


@pytest.mark.parametrize("image_id", ["x", "../../etc/passwd", "A" * 32, "%00" * 3])
def test_what_is_no_id_finds_nothing(server, image_id):
    assert server.engine.kept is not None
    response = asyncio.run(raw(server.app, f"/v1/images/{image_id}"))
    assert response.status_code in (404, 422)


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


# --- prompts ---------------------------------------------------------------------------------------------------------


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
        (422, {"prompts": [{"points": [[40, 30]] * 257}]}),
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


def test_masks_that_would_not_fit_in_memory_together_are_refused(server, image, monkeypatch):
    monkeypatch.setattr("anysam.serve.schemas.MAX_MASK_PIXELS", 2 * 60 * 80)
    mask = Prompt(mask=photograph()[..., 0] > 100).to_dict()
    outline = {"polygon": [[30, 20], [50, 20], [40, 45]]}
    server("POST", f"/v1/images/{image}/predict", json={"prompts": [mask, outline]})
    problem = server("POST", f"/v1/images/{image}/predict", 422, json={"prompts": [mask, mask, outline]}).json()
    assert "2 masks and polygons, got 3" in problem["detail"]


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


# --- the server itself -----------------------------------------------------------------------------------------------


def test_models_say_what_the_server_has(server):
    form = server("GET", "/v1/models").json()
    assert form["served"] == "anysam_lite" and [row["name"] for row in form["models"] if row["served"]] == [
        "anysam_lite"
    ]
    assert form["presets"] == list(PRESETS)
    assert not form["text"] and not form["describe"] and not form["projects"] and form["decoder"]
    licences = {row["name"]: row["licence"] for row in form["models"]}
    assert licences["anysam_lite"] == "Apache-2.0"


def test_the_decoder_is_sent_once(server):
    response = server("GET", "/v1/decoder")
    assert response.content == b"onnx" and server("GET", "/v1/decoder/info").json()["variant"] == "anysam_lite"
    server("GET", "/v1/decoder", 304, headers={"If-None-Match": response.headers["etag"]})


def test_a_model_without_a_decoder_for_browsers_has_none_at_its_address(model):
    without, refused = Decoder(), Server(model)
    without.reason = "There is none."
    for server, possible in ((Server(model, decoder=without), True), (refused, False)):
        assert server("GET", "/v1/models").json()["decoder"] is possible
        for path in ("/v1/decoder", "/v1/decoder/info"):
            server("GET", path, 404)


def test_metrics_count_requests_by_route(server, image):
    server("GET", f"/v1/images/{image}")
    text = server("GET", "/metrics").text
    assert 'anysam_requests_total{method="GET",route="/v1/images/{image_id}",status="200"}' in text
    assert "anysam_ready " in text and image not in text
    page = Path("docs/serve.md").read_text(encoding="utf-8")
    for name in re.findall(r"^# TYPE (\w+) ", text, re.MULTILINE):
        if not name.startswith(("process_", "python_")) and not name.endswith("_created"):
            assert f"`{name}`" in page, name


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
        assert asyncio.run(raw(server.app, path)).status_code == 404
    assert "make page" in Server(model, page=tmp_path)("GET", "/").text


def test_the_documents_name_every_route_and_no_other(model, tmp_path):
    from anysam.serve.projects.database import open_projects
    from anysam.serve.projects.routes import make_router

    engine = PlainEngine(model)
    projects = open_projects(tmp_path / "p.sqlite")
    app = make_application(engine, routers=[make_router(projects, engine)], page=None)
    document = asyncio.run(raw(app, "/openapi.json")).json()
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
