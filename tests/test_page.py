"""The page of `anysam app` in a real Chromium: what a person does, and what is saved of it."""

import re
import subprocess

import numpy as np
import pytest
from pycocotools import mask as coco_mask

import anysam
from anysam import Prompt
from page_server import IMAGE, ROOT, browse, needs_page, once, serving, shared_folder

pytestmark = needs_page


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    """What web/e2e/run.mjs saw; `out` is the folder of its screenshots."""

    def use(folder):
        with serving(folder) as url:
            return browse("run.mjs", url, image=IMAGE, out=folder, clicks="5")

    found = once(tmp_path_factory, "usual", use)
    assert found["problems"] == []
    return found | {"out": shared_folder(tmp_path_factory) / "usual"}


def test_clicks_are_answered_in_the_browser(seen):
    opened = seen["opened"]
    assert opened["size"] == [400, 600] and opened["isolated"]
    assert opened["mode"] == "browser", opened.get("reason")
    assert seen["click_ms"]["clicks"] == 5


def test_a_click_makes_a_mask_and_another_one_changes_it(seen):
    clicks = seen["clicks"]
    assert clicks["choices"] == 3 and clicks["labels"] == [1, 0]
    assert len({clicks["first"], clicks["third"], clicks["second"]}) == 3


def test_undo_and_redo_give_the_masks_back(seen):
    undo = seen["undo"]
    assert undo["undone"] != undo["before"] == undo["redone"]
    assert seen["brush"]["after"] > seen["brush"]["before"] == undo["redone"]


def test_a_box_gives_what_the_model_says_of_it(seen):
    x0, y0, x1, y1 = seen["box"]["prompt"]
    model = anysam.load()
    encoded = model.encode(IMAGE).rounded()
    wanted = model.predict(encoded, Prompt(box=[x0, y0, x1, y1])).masks[0]
    (shown,) = (each for each in seen["export"]["shown"] if each["area"] == seen["box"]["area"])
    # The decoder in the browser rounds otherwise: pixels on the very border may differ.
    assert np.count_nonzero(coco_mask.decode(shown["segmentation"]).astype(bool) != wanted) <= 3


def test_the_exported_file_has_the_masks_that_are_shown_and_saved(seen):
    found = seen["export"]
    assert len(found["coco"]) == len(found["api"]) == len(found["shown"]) == 2
    by_area = {name: sorted(found[name], key=lambda each: each["area"]) for name in ("coco", "api", "shown")}
    for exported, saved, shown in zip(*by_area.values(), strict=True):
        masks = [coco_mask.decode(each["segmentation"]) for each in (exported, saved, shown)]
        assert masks[0].any() and np.array_equal(masks[0], masks[1]) and np.array_equal(masks[0], masks[2])
        assert saved["id"] == shown["id"]


def test_everything_survives_a_reload(seen):
    reload = seen["reload"]
    assert reload["before"] == reload["after"] and len(reload["after"]) == 2 and reload["image"] == "coffee.png"
    assert "cup" in [category for _, _, category in reload["after"]]


def test_everything_is_found_and_can_be_kept(seen):
    assert seen["everything"]["proposals"] == seen["everything"]["objects"] > 20


def test_the_page_can_be_photographed(seen):
    for name in ("empty", "everything", "page", "help", "dark", "narrow"):
        assert (seen["out"] / f"{name}.png").stat().st_size > 10_000


def test_the_licences_of_what_is_bundled_are_beside_the_page():
    text = (ROOT / "src" / "anysam" / "serve" / "page" / "third-party-licences.txt").read_text(encoding="utf-8")
    assert "onnxruntime-web" in text and "MIT" in text


def test_the_page_loads_nothing_from_elsewhere():
    page = ROOT / "src" / "anysam" / "serve" / "page"
    html = (page / "index.html").read_text(encoding="utf-8")
    assert not re.search(r"(src|href)=\"(https?:)?//", html) and "<script>" not in html and "style=" not in html


def test_the_parts_of_the_page_by_themselves():
    done = subprocess.run(["npx", "vitest", "run"], cwd=ROOT / "web", capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:]
