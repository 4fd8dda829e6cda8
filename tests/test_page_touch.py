"""The page under fingers, on a telephone held upright and on its side."""

import httpx
import pytest

from page_server import IMAGE, browse, needs_page, once, overlap, shared_folder

LEAST = 24  # CSS pixels of a control: WCAG 2.2, 2.5.8

pytestmark = needs_page


@pytest.fixture(scope="module")
def seen(tmp_path_factory, page_address):
    """What web/e2e/touch.mjs saw, with `answer`: what the API says of the points that the fingers made."""

    def use(folder):
        found = browse("touch.mjs", page_address(), image=IMAGE, out=folder)
        prompts = [
            {"points": prompt["points"], "labels": prompt["labels"]}
            for prompt in (found["fingers"][name]["prompt"] for name in ("tapped", "held"))
        ]
        path = f"v1/images/{found['fingers']['engineImage']}/predict"
        answer = httpx.post(page_address() + path, json={"prompts": prompts}, timeout=60)
        assert answer.status_code == 200, answer.text
        return found | {"answer": answer.json()["results"]}

    found = once(tmp_path_factory, "touch", use)
    assert found["errors"] == []
    return found | {"out": shared_folder(tmp_path_factory) / "touch"}


def test_a_tap_makes_a_mask_and_a_long_press_takes_away(seen):
    tapped, held = seen["fingers"]["tapped"], seen["fingers"]["held"]
    assert tapped["prompt"]["labels"] == [1] and held["prompt"]["labels"] == [1, 0]
    for shown, result in zip((tapped, held), seen["answer"], strict=True):
        best = max(result["masks"], key=lambda record: record["predicted_iou"])
        assert overlap(shown["segmentation"], best["segmentation"]) > 0.995
    assert overlap(tapped["segmentation"], held["segmentation"]) < 0.99


def test_two_fingers_zoom_and_move_the_image_and_make_no_point(seen):
    pinch = seen["fingers"]["pinch"]
    before, after = pinch["scales"]
    assert after == pytest.approx(2 * before, rel=0.02)
    assert pinch["moved"] == pytest.approx([40, 60], abs=1.5)
    assert pinch["objects"] == 1 and pinch["points"] == 2


def test_a_finger_that_stays_or_a_third_one_does_not_disturb(seen):
    views = seen["fingers"]["pinch"]["views"]
    assert all(view["scale"] > 0 for view in views)  # None: what JSON makes of a NaN
    assert views[1]["scale"] == pytest.approx(views[0]["scale"] * (32**2 + 12**2) ** 0.5 / 1000**0.5, rel=0.02)


def test_one_finger_draws_a_box_and_moves_the_image_with_the_tool_for_that(seen):
    height, width = 400, 600
    assert seen["fingers"]["box"] == pytest.approx([0.25 * width, 0.05 * height, 0.87 * width, 0.65 * height], abs=12)
    assert seen["fingers"]["pan"] == pytest.approx([20, 30], abs=1)
    assert seen["fingers"]["objects"] == 2


@pytest.mark.parametrize("way", ["portrait", "landscape"])
def test_every_control_can_be_reached_on_a_telephone(seen, way):
    found = seen[way]
    assert set(found["found"]) == {
        "empty",
        "image",
        "object",
        "brush",
        "panel",
        "categories",
        "export",
        "project",
        "help",
    }
    for state, controls in found["found"].items():
        assert controls, state
        for control in controls:
            assert control["inside"] and control["coveredBy"] is None, (way, state, control)
            # The zoom's number may be low: the same can be done with two fingers.
            assert min(control["box"][2:]) >= LEAST or control["testid"] in {"granularity", "brush-size"}, control
    assert found["scrolled"] == [0, 0] and found["closed"]
    names = {state: {control["testid"] for control in controls} for state, controls in found["found"].items()}
    assert {"undo", "export-button", "panel-toggle", "tool-brush", "done", "choice-2"} <= names["object"]
    assert "everything" in names["panel"] and "category-name" in names["categories"]


@pytest.mark.parametrize("way", ["portrait", "landscape"])
def test_most_of_a_telephone_is_the_image(seen, way):
    window, stage = seen[way]["window"], seen[way]["stage"]
    assert stage["width"] >= 0.9 * window["width"] and stage["height"] >= 0.6 * window["height"]
