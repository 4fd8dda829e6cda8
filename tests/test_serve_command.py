"""`anysam serve` and `anysam app` as processes: what they refuse, what they answer over a socket, how they end."""

import asyncio
import contextlib
import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

import anysam
from anysam import Prompt
from anysam.automatic.presets import preset
from anysam.cli import main
from anysam.commands.page_decoder import PageDecoder, make_page_decoder
from anysam.commands.serving import listen
from anysam.errors import ImageError, OptionError
from anysam.serve.client import Client, ServerError
from anysam.serve.engine_types import NotEnabled
from plain_engine import photograph
from tiny_models import tiny_model


@contextlib.contextmanager
def serving(*words, **environment):
    """A server of its own on a free port: its process and address."""
    process = subprocess.Popen(
        [sys.executable, "-m", "anysam", *words, "--port", "0"],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    )
    try:
        address = None
        for line in process.stderr:
            found = re.search(r"at (http://\S+/) ", line)
            if found:
                address = found[1]
                break
        assert address, "the server did not start"
        rest = []
        reader = threading.Thread(target=lambda: rest.extend(process.stderr), daemon=True)
        reader.start()
        yield process, address, rest
    finally:
        process.kill()
        process.wait(10)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    db = tmp_path_factory.mktemp("db") / "p.sqlite"
    with serving("serve", "--db", str(db)) as (_, address, _):
        yield address


@pytest.fixture(scope="module")
def client(server):
    with Client(server) as client:
        yield client


def png(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def test_a_client_gets_what_the_model_says(client, tmp_path):
    model = anysam.load()
    encoded = model.encode(photograph()).rounded()
    path = tmp_path / "photo.png"
    path.write_bytes(png(photograph()))
    image = client.add_image(path)
    assert client.wait(image)
    prompts = [Prompt(points=[[40, 30]]), Prompt(box=[18, 8, 62, 52])]
    for answer, wanted in zip(
        client.predict(image, prompts, low_res_logits=True), model.predict(encoded, prompts), strict=True
    ):
        np.testing.assert_array_equal([record.to_mask() for record in answer.masks], wanted.masks)
        np.testing.assert_allclose(answer.low_res_logits, wanted.low_res_logits, atol=1e-4)
        assert answer.best == wanted.best
    done = []
    records = client.everything(image, "fast", progress=done.append)
    wanted = model.everything(encoded, preset("fast", "anysam_lite"))
    assert [each.segmentation for each in records] == [each.segmentation for each in wanted] and records
    assert done == sorted(done) and done[-1] == 1
    assert client.models()["served"] == "anysam_lite" and client.models()["projects"]
    assert len(client.embedding(image)) > 10_000
    client.remove(image)
    with pytest.raises(ServerError, match="no such image") as caught:
        client.predict(image, prompts)
    assert caught.value.status == 404


def test_a_client_says_what_is_wrong(client, tmp_path):
    with pytest.raises(ImageError, match=r"nothing\.png"):
        client.add_image(tmp_path / "nothing.png")
    with pytest.raises(ServerError) as caught:
        client.add_image(b"no image")
    assert caught.value.status == 415
    with Client("http://127.0.0.1:9") as nobody, pytest.raises(ServerError, match="cannot be reached"):
        nobody.models()


def test_the_decoder_for_browsers_is_exported_once(server):
    with httpx.Client(base_url=server, timeout=120, trust_env=False) as http:
        info = http.get("/v1/decoder/info").json()
        decoder = http.get("/v1/decoder")
    assert info["certificate"]["half"]  # its weights are float16 numbers
    assert info["certificate"]["max_logit_difference"] < 1e-3 and info["bytes"] == len(decoder.content)
    kept = [path.name for path in (anysam_home() / "decoders").iterdir()]
    assert len(kept) == 2 and all(name.startswith("anysam_lite-0052e268") for name in kept)


def test_other_models_get_a_decoder_of_full_precision_and_some_a_reason():
    data, info = asyncio.run(PageDecoder(tiny_model("mobile_sam")).file())
    assert not info["certificate"]["half"] and info["bytes"] == len(data)
    assert make_page_decoder(tiny_model("mobile_sam")) is not None
    assert make_page_decoder(tiny_model("efficient_sam")) is None and make_page_decoder(tiny_model("fast_sam")) is None
    with pytest.raises(NotEnabled, match="cannot be exported"):
        asyncio.run(PageDecoder(tiny_model("efficient_sam")).file())


def anysam_home():
    from anysam.home import home

    return home()


def test_projects_outlive_the_server(tmp_path):
    db = tmp_path / "p.sqlite"
    with serving("app", "--no-browser", "--db", str(db)) as (_, address, _):
        made = httpx.post(f"{address}v1/projects", json={"name": "Cats"}, trust_env=False).json()
    with serving("app", "--no-browser", "--db", str(db)) as (_, address, _):
        assert httpx.get(f"{address}v1/projects", trust_env=False).json()["projects"] == [made]


def test_many_clients_get_their_own_answers(server):
    pixels = photograph()
    shifted = np.roll(pixels, 12, axis=1)
    wrong = []

    def work(image, x):
        with Client(server) as own:
            for _ in range(5):
                (answer,) = own.predict(image, [Prompt(points=[[x, 30]])])
                if not answer.masks[answer.best].to_mask()[30, x]:
                    wrong.append(x)

    with Client(server) as client:
        images = [client.add_image(png(each)) for each in (pixels, shifted)]
    threads = [threading.Thread(target=work, args=(images[i % 2], 40 + 12 * (i % 2))) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not wrong


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_the_curl_lines_of_the_documents_do_what_they_say(server, tmp_path):
    (tmp_path / "photo.jpg").write_bytes(png(np.tile(photograph(), (8, 8, 1))))  # 640x480: the documents' points fit
    lines = Path("docs/serve.md").read_text(encoding="utf-8").splitlines()
    environment = {**os.environ, "SERVER": server.rstrip("/")}
    statuses = {}
    for line in [each for each in lines if each.startswith("curl ")]:
        command = f"{line} -w '\\n%{{http_code}}'"
        done = subprocess.run(
            ["sh", "-c", command], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
        )
        body, _, status = done.stdout.rpartition("\n")
        statuses[line] = int(status)
        if "IMAGE" not in environment and status == "201":
            environment["IMAGE"] = json.loads(body)["id"]
    needs_more = [line for line in statuses if '"text"' in line or "/describe" in line]
    assert len(statuses) > 12 and len(needs_more) == 2
    for line, status in statuses.items():
        assert status == 409 if line in needs_more else 200 <= status < 300, (line, status)


def number_of(server, name):
    text = httpx.get(f"{server}metrics", trust_env=False).text
    return float(re.search(rf"^{name} (\S+)$", text, re.MULTILINE)[1])


def test_closing_the_connection_ends_everything_mode(server):
    with Client(server) as client:
        image = client.add_image(png(np.tile(photograph(), (4, 4, 1))))
        before = number_of(server, "anysam_cancelled_total")
        with pytest.raises(InterruptedError):
            client.everything(image, "dense", progress=lambda done: (_ for _ in ()).throw(InterruptedError))
        end = time.monotonic() + 60
        while number_of(server, "anysam_everything_running") and time.monotonic() < end:
            time.sleep(0.05)
        assert number_of(server, "anysam_everything_running") == 0
        assert number_of(server, "anysam_cancelled_total") == before + 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_a_signal_ends_the_server_with_status_0_whatever_it_does(number):
    with serving("serve") as (process, address, rest):
        assert httpx.get(f"{address}healthz", trust_env=False).json() == {"status": "ok"}
        with Client(address) as client, contextlib.suppress(ServerError):
            image = client.add_image(png(np.tile(photograph(), (4, 4, 1))))
            client.everything(image, "dense", progress=lambda done: process.send_signal(number))
        assert process.wait(60) == 0
    assert "Traceback" not in "".join(rest)


def test_other_machines_need_a_token_or_a_clear_word(capsys, tmp_path):
    assert main(["serve", "--host", "0.0.0.0", "--port", "0"]) == 2
    assert "--token" in capsys.readouterr().err
    (tmp_path / "token").write_text("s3cret\n")
    with serving("serve", "--host", "0.0.0.0", "--token-file", str(tmp_path / "token")) as (_, address, _):
        named = {"Host": "anysam.example", "Authorization": "Bearer s3cret"}
        assert httpx.get(f"{address}v1/models", headers=named, trust_env=False).status_code == 403
        with pytest.raises(ServerError, match="token"), Client(address) as stranger:
            stranger.models()
        with Client(address, token="s3cret") as friend:
            assert friend.models()["served"] == "anysam_lite"


@pytest.mark.parametrize(
    "words, said",
    [
        (["--port", "70000"], "--port"),
        (["--queue", "0"], "--queue"),
        (["--memory", "lots"], "lots"),
        (["--token", ""], "token"),
        (["--token", "a", "--token-file", "b"], "--token-file"),
        (["--token-file", "no such file"], "no such file"),
        (["--token-file", os.devnull], "no token"),
        (["--cors", "example.org"], "https://example.org"),
        (["--allow-host", "http://anysam.example.org"], "http://"),
        (["--allow-host", "anysam.example.org:8000"], "port"),
        (["--allow-host", "*.example.org"], "--allow-host"),
        (["--allow-host", ""], "--allow-host"),
        (["--host", "[::1]"], "such as ::1"),
        (["--max-upload", "1G"], "--memory"),
        (["--host", "no host at all"], "--host"),
        (["--db", "mysql://nobody@nowhere/none"], "mysql"),
        (["--db", "a.sqlite", "--no-projects"], "--no-projects"),
        (["--max-pixels", "0"], "--max-pixels"),
        (["--model", "mobilesamv2_object_aware"], "takes no prompts"),
    ],
    ids=str,
)
def test_options_that_make_no_sense_are_told_before_anything_starts(words, said, capsys, monkeypatch):
    monkeypatch.setattr("anysam.commands.serving.load_model", None)
    monkeypatch.delenv("ANYSAM_TOKEN", raising=False)
    insecure = ["--insecure"] if "--host" in words else []
    assert main(["serve", "--port", "0", *insecure, *words]) == 2
    assert said in capsys.readouterr().err


def test_a_file_of_a_model_that_has_no_masks_is_not_served(capsys, monkeypatch):
    monkeypatch.setattr("anysam.commands.serving.load_model", lambda *_: tiny_model("object_aware"))
    assert main(["serve", "--port", "0", "--model", "boxes.safetensors"]) == 2
    assert "takes no prompts" in capsys.readouterr().err


def test_a_port_that_is_taken_is_told_and_app_takes_another(capsys, monkeypatch):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert main(["serve", "--port", str(port)]) == 2
        assert f"port {port}" in capsys.readouterr().err
        monkeypatch.setattr("anysam.commands.serving.DEFAULT_PORT", port)
        with listen("127.0.0.1", None, free=True) as other:
            assert other.getsockname()[1] != port
        with pytest.raises(OptionError):
            listen("127.0.0.1", None, free=False)


def test_app_opens_the_page_with_its_token_in_the_fragment(monkeypatch):
    opened = []
    monkeypatch.setattr("anysam.commands.app.webbrowser.open", opened.append)
    serve = {}
    monkeypatch.setattr("anysam.commands.app.run_server", lambda arguments, serving: serve.update(it=serving) or 0)
    for words, wanted in (([], "http://x/"), (["--token", "a&b"], "http://x/#token=a%26b"), (["--no-browser"], None)):
        assert main(["app", *words]) == 0
        before = threading.active_count()
        serve["it"].ready("http://x/")
        end = time.monotonic() + 5
        while threading.active_count() > before and time.monotonic() < end:
            time.sleep(0.01)
        assert (opened.pop() if opened else None) == wanted
