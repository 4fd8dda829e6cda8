"""The page where not all is as usual: a token, no decoder or a late one, no mouse, work that is stopped."""

import json
import os
import re
import subprocess
import sys

import httpx
import pytest

from anysam.masks import decode_rle
from test_page import CHROMIUM, IMAGE, ROOT, missing

TOKEN = "s3cret"
KNOWN = {"Authorization": f"Bearer {TOKEN}"}

pytestmark = pytest.mark.skipif(missing() is not None, reason=f"the page's tests are skipped: {missing()}")


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    """What web/e2e/edges.mjs saw, with `masks`: what the API says of the same point."""
    words = [sys.executable, "-m", "anysam", "app", "--no-browser", "--port", "0"]
    words += ["--db", str(tmp_path_factory.mktemp("edges") / "p.sqlite")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ANYSAM_TOKEN": TOKEN}
    # Its log goes to a file: a pipe that nobody reads would fill up.
    log = tmp_path_factory.mktemp("log") / "stderr.txt"
    with log.open("w") as stderr:
        process = subprocess.Popen(words, stderr=stderr, env=environment)
    try:
        address = announced(log, process)
        with httpx.Client(base_url=address, headers=KNOWN, timeout=300) as client:
            client.get("/v1/decoder/info").raise_for_status()  # exports it, which is not what is looked at here
            image = client.post("/v1/images?wait=30", content=IMAGE.read_bytes()).json()
            height, width = image["size"]
            prompt = {"points": [[width / 2, height / 2]]}
            answer = client.post(f"/v1/images/{image['id']}/predict", json={"prompts": [prompt]}).json()
        words = ["node", "e2e/edges.mjs", "--url", address, "--token", TOKEN, "--chromium", CHROMIUM]
        done = subprocess.run(
            [*words, "--image", str(IMAGE)], cwd=ROOT / "web", capture_output=True, text=True, timeout=400, check=False
        )
    finally:
        process.kill()
        process.wait(10)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout) | {"masks": answer["results"][0]["masks"]}


def announced(log, process):
    """The address that the server says."""
    for _ in range(1800):
        found = re.search(r"at (http://\S+/) ", log.read_text())
        if found:
            return found[1]
        assert process.poll() is None, log.read_text()
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.1)
    raise AssertionError("the server did not start")


def assert_same(shown, seen):
    """The page's object is the API's best mask, but for pixels that rounding moves over its border."""
    best = max(seen["masks"], key=lambda record: record["predicted_iou"])
    first, second = decode_rle(shown["segmentation"]), decode_rle(best["segmentation"])
    assert (first & second).sum() / (first | second).sum() > 0.995
    assert shown["iou"] == pytest.approx(best["predicted_iou"], abs=0.01)


def test_the_page_asks_for_the_token_and_takes_it_out_of_the_address(seen):
    assert seen["asksForTheToken"]["refused"] == [True, False]
    assert TOKEN not in seen["asksForTheToken"]["address"]


def test_without_a_decoder_the_server_answers_clicks(seen):
    found = seen["withoutDecoder"]
    assert found["mode"] == "server" and "no decoder" in found["reason"]
    assert_same(found["object"], seen)


def test_while_the_decoder_is_made_the_server_answers_and_then_the_browser(seen):
    found = seen["withLateDecoder"]
    assert found["mode"] == "server" and "still being made" in found["reason"]
    assert_same(found["first"], seen)
    assert_same(found["second"], seen)


def test_the_keyboard_alone_makes_a_mask_and_takes_it_back(seen):
    found = seen["withoutMouse"]
    height, width = found["size"]
    assert found["object"]["prompt"]["points"][0] == pytest.approx([width / 2, height / 2], abs=2)
    assert_same(found["object"], seen)


def test_everything_that_is_stopped_leaves_nothing_behind(seen):
    found = seen["stopped"]
    assert found["proposals"] is None and found["added"] == 0
    assert_same(found["object"], seen)


def test_nothing_is_asked_of_other_machines_and_no_policy_is_broken(seen):
    assert seen["foreign"] == [] and seen["errors"] == []
