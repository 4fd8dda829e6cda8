"""The page where not all is as usual: a token, no decoder or a late one, no mouse, work that is stopped."""

import httpx
import pytest

from page_server import IMAGE, browse, needs_page, once, overlap, serving

TOKEN = "s3cret"
KNOWN = {"Authorization": f"Bearer {TOKEN}"}

pytestmark = needs_page


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    """What web/e2e/edges.mjs saw, with `masks`: what the API says of the same point."""

    def use(folder):
        with serving(folder, environment={"ANYSAM_TOKEN": TOKEN}) as url:
            with httpx.Client(base_url=url, headers=KNOWN, timeout=300) as client:
                client.get("/v1/decoder/info").raise_for_status()  # exports it, which is not what is looked at here
                image = client.post("/v1/images?wait=30", content=IMAGE.read_bytes()).json()
                height, width = image["size"]
                prompt = {"points": [[width / 2, height / 2]]}
                answer = client.post(f"/v1/images/{image['id']}/predict", json={"prompts": [prompt]}).json()
            return browse("edges.mjs", url, token=TOKEN, image=IMAGE) | {"masks": answer["results"][0]["masks"]}

    return once(tmp_path_factory, "edges", use)


def assert_same(shown, seen):
    """The page's object is the API's best mask, but for pixels that rounding moves over its border."""
    best = max(seen["masks"], key=lambda record: record["predicted_iou"])
    assert overlap(shown["segmentation"], best["segmentation"]) > 0.995
    assert shown["iou"] == pytest.approx(best["predicted_iou"], abs=0.01)


def test_the_page_asks_for_the_token_and_takes_it_out_of_the_address(seen):
    assert seen["asksForTheToken"]["refused"] == [True, False]
    assert TOKEN not in seen["asksForTheToken"]["address"]


def test_without_a_decoder_the_server_answers_clicks(seen):
    found = seen["withoutDecoder"]
    assert found["mode"] == "server" and "no decoder" in found["reason"]
    assert_same(found["object"], seen)


def test_where_webassembly_is_missing_the_server_answers_and_the_page_says_why(seen):
    found = seen["withoutWebAssembly"]
    assert found["scripts"] == 1 and found["mode"] == "server"
    assert "WebAssembly" in found["reason"] and found["badge"] == "On the server"
    assert found["reason"] in found["said"] and found["reason"] in found["notice"]
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
