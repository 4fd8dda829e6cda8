"""Words in the page of `anysam app --text`: what is found is what the API says."""

import httpx
import numpy as np
import pytest
from PIL import Image

from page_server import browse, needs_page, once, serving
from stand_in_text import COLOURS

pytest.importorskip("transformers")
pytest.importorskip("tokenizers")

import tiny_clip  # noqa: E402

TEXTS = ("red car", "blue dog")

pytestmark = needs_page


def discs():
    pixels = np.full((120, 160, 3), COLOURS["grey"], dtype=np.uint8)
    y, x = np.mgrid[:120, :160]
    for colour, centre in (("red", 40), ("blue", 115)):
        pixels[(y - 60) ** 2 + (x - centre) ** 2 < 28**2] = COLOURS[colour]
    return pixels


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    """What web/e2e/text.mjs saw with a CLIP of random weights, with `answers`: the API's for the same texts."""

    def use(folder):
        Image.fromarray(discs()).save(folder / "discs.png")
        clip = tiny_clip.write_clip(folder / "clip")
        with serving(folder, "--text", str(clip)) as url:
            found = browse("text.mjs", url, image=folder / "discs.png", texts="|".join(TEXTS))
            prompts = [{"text": text} for text in TEXTS]
            path = f"v1/images/{found['words']['engineImage']}/predict"
            answer = httpx.post(url + path, json={"prompts": prompts}, timeout=120)
        assert answer.status_code == 200, answer.text
        return found | {"answers": dict(zip(TEXTS, answer.json()["results"], strict=True))}

    found = once(tmp_path_factory, "text", use)
    assert found["errors"] == []
    return found


def facts(masks):
    return [(each["segmentation"], each["label"]) for each in sorted(masks, key=lambda each: each["area"])]


@pytest.mark.parametrize("text", TEXTS)
def test_words_offer_the_masks_that_the_api_finds(seen, text):
    found, masks = seen["words"]["found"][text], seen["answers"][text]["masks"]
    assert found["offered"] == len(masks) > 0 and found["said"].startswith(f"{len(masks)} mask")
    assert facts(found["kept"]) == facts([each | {"label": text} for each in masks])
    assert {each["source"] for each in found["kept"]} == {"text"}


def test_other_words_find_other_masks(seen):
    """Else a page that sends the wrong words would pass."""
    first, second = (facts(seen["answers"][text]["masks"]) for text in TEXTS)
    assert [rle for rle, _ in first] != [rle for rle, _ in second]


def test_what_is_taken_back_is_offered_again_and_gone_when_it_is_discarded(seen):
    first, second = (len(seen["answers"][text]["masks"]) for text in TEXTS)
    assert seen["words"]["undone"] == {"proposals": second, "objects": first}
    assert seen["words"]["discarded"] == {"proposals": None, "objects": first}
