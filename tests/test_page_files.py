"""Files into the page and out of it: several at once, folders, drops, and masks from one project to another."""

import json
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from anysam.masks import decode_rle
from page_server import browse, needs_page, once
from plain_engine import photograph

NAMES = ["2.png", "10.png", "deep.png"]  # as people count

pytestmark = needs_page


def write_files(folder: Path) -> dict[str, Path]:
    """A folder with a folder inside, images, what is none, and what only looks like one; two loose images."""
    album = folder / "Holiday"
    (album / "more").mkdir(parents=True)
    images = {
        album / "2.png": photograph(120, 160),
        album / "10.png": photograph(160, 120),
        album / "more" / "deep.png": photograph(100, 100),
        folder / "loose.png": photograph(180, 240),
        folder / "other.png": np.flip(photograph(180, 240), axis=1).copy() // 2,
    }
    for path, pixels in images.items():
        Image.fromarray(pixels).save(path)
    (album / "notes.txt").write_text("no image")
    (folder / "broken.png").write_bytes(b"no image either")
    return {"folder": album, "loose": folder / "loose.png", "other": folder / "other.png"}


@pytest.fixture(scope="module")
def seen(tmp_path_factory, page_address):
    """What web/e2e/files.mjs saw, with `saved`: the API's annotations of the image that was imported into."""

    def use(folder):
        paths = write_files(folder)
        found = browse("files.mjs", page_address(), **paths, out=folder)
        project, image = (found["imports"][name] for name in ("projectId", "imageId"))
        with httpx.Client(base_url=page_address(), timeout=60) as client:
            saved = client.get(f"/v1/projects/{project}/images/{image}/annotations").json()["annotations"]
        return found | {"saved": saved}

    found = once(tmp_path_factory, "files", use)
    assert found["errors"] == []
    return found


def decoded(objects):
    masks = [decode_rle(each["segmentation"]) for each in objects]
    return sorted(masks, key=lambda mask: int(mask.sum()))


def assert_same_masks(first, second):
    one, other = decoded(first), decoded(second)
    assert len(one) == len(other) and all(np.array_equal(*pair) for pair in zip(one, other, strict=True))


def test_a_folder_becomes_a_project_of_its_name_with_its_images_in_order(seen):
    assert seen["folder"]["project"] == "Holiday" and seen["folder"]["names"] == NAMES


def test_every_image_has_its_own_masks_and_keeps_them_over_a_reload(seen):
    found = seen["folder"]
    first, second = found["made"]
    assert [len(objects) for objects in found["made"].values()] == [1, 1] and found["emptyThere"] == 0
    assert found["back"] == {first: found["made"][first]}
    assert found["after"] == found["made"] | {"deep.png": []} and second == "10.png"


def test_several_files_are_added_and_what_is_no_image_is_told(seen):
    found = seen["several"]
    assert found["names"] == found["again"] == ["loose.png", "other.png"]
    assert "broken.png" in found["notice"]


def test_files_and_folders_can_be_dropped(seen):
    found = seen["drops"]
    assert found["veiled"] == {"shown": True, "taken": True, "gone": True}
    assert found["first"] == ["loose.png"]
    assert found["project"] == "Holiday" and found["second"] == NAMES


def test_an_exported_file_gives_another_project_the_same_masks(seen):
    found = seen["imports"]
    assert len(json.loads(Path(found["file"]).read_text())["annotations"]) == 2
    assert_same_masks(found["taken"]["masks"], found["exported"])
    assert_same_masks(seen["saved"], found["exported"])
    assert_same_masks(found["reloaded"], found["exported"])
    assert not {each["id"] for each in found["exported"]} & {each["id"] for each in found["taken"]["masks"]}


def test_what_is_there_already_is_not_imported_again(seen):
    found = seen["imports"]
    assert "2 skipped" in found["again"]["text"]
    assert found["again"]["masks"] == found["taken"]["masks"]


def test_a_wrong_file_is_refused_in_words_and_nothing_is_lost(seen):
    found = seen["imports"]
    for name, each in found["wrong"].items():
        assert f"{name} was not imported: " in each["text"]
        assert each["masks"] == found["taken"]["masks"]
