"""Which describer is loaded, with what, and what is refused; the models themselves are stand-ins."""

import numpy as np
import pytest

from anysam import describers
from anysam.describe.crops import pictures_of
from anysam.describe.labels import LabelDescriber
from anysam.describe.tap import TapDescriber
from anysam.describe.vocabulary import Vocabulary, read_names, save_vocabulary
from anysam.describers import load_describer
from anysam.errors import AnySamError, MissingExtraError, OptionError, UnknownModelError
from anysam.results import MaskRecord
from stand_in_text import ColourScorer
from tiny_models import tiny_model
from tiny_tokenizer import write_tokenizer

NAMES = ("cat", "dog", "cup")


class Loaded:
    """Stands for what loads models, and notes with what it was asked."""

    def __init__(self, monkeypatch, variant="tap") -> None:
        self.names: list[tuple[str, object]] = []
        self.settings: dict = {}
        self.variant = variant
        monkeypatch.setattr(describers, "load", self.tap)
        monkeypatch.setattr(describers, "load_image_text", self.clip)

    def tap(self, name, **settings):
        self.names.append(("tap", name))
        self.settings = settings
        return tiny_model(self.variant)

    def clip(self, name, **settings):
        self.names.append(("clip", name))
        self.settings = settings
        return ColourScorer()


@pytest.fixture
def loaded(monkeypatch):
    return Loaded(monkeypatch)


@pytest.fixture
def nothing(monkeypatch):
    """Whatever is wrong is said before a model is loaded."""
    for name in ("load", "load_image_text"):
        monkeypatch.setattr(describers, name, lambda *_, **__: pytest.fail("loaded"))


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
    """Nothing is downloaded, and nothing of other tests is in the cache."""
    monkeypatch.setenv("ANYSAM_OFFLINE", "1")
    monkeypatch.setenv("ANYSAM_HOME", str(tmp_path / "home"))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return write_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture
def vocabulary(tmp_path):
    """The path of a vocabulary for the tiny network."""
    embeddings = np.random.default_rng(0).normal(size=(32, 3)).astype(np.float32)
    path = tmp_path / "mine.safetensors"
    save_vocabulary(path, Vocabulary(NAMES, embeddings, "mine"))
    return path


@pytest.fixture
def text_file(tmp_path):
    path = tmp_path / "names.txt"
    path.write_text("# mine\nred\ngreen\n\nblue\n")
    return path


def describe(describer):
    mask = np.zeros((40, 50), dtype=np.bool_)
    mask[5:25, 10:30] = True
    image = np.full((40, 50, 3), (220, 30, 30), dtype=np.uint8)
    return describer.words(image, [MaskRecord.from_mask(mask, 0.9)])[0]


# --- Tokenize Anything ------------------------------------------------------------------------------------------------


def test_a_variant_of_tokenize_anything_writes_labels_and_captions(loaded, vocabulary, tokenizer) -> None:
    describer = load_describer(
        "tap_vit_l", labels=vocabulary, tokenizer=tokenizer, device="cpu", dtype="bfloat16", say=print
    )
    assert isinstance(describer, TapDescriber)
    assert loaded.names == [("tap", "tap_vit_l")]
    assert (loaded.settings["device"], loaded.settings["dtype"]) == ("cpu", "bfloat16")
    words = describe(describer)
    assert words.label in NAMES
    assert words.caption
    assert describer.names == NAMES


def test_the_path_of_a_file_is_weights_of_tokenize_anything(loaded, vocabulary, tmp_path) -> None:
    (tmp_path / "own_weights").write_bytes(b"")
    for path in (tmp_path / "tap.pkl", str(tmp_path / "tap.pkl"), "weights/tap.safetensors", tmp_path / "own_weights"):
        load_describer(path, labels=vocabulary, captions=False)
        assert loaded.names[-1][0] == "tap"
        assert str(loaded.names[-1][1]) == str(path)


def test_weights_of_another_model_are_refused(monkeypatch, vocabulary) -> None:
    Loaded(monkeypatch, "sam")
    with pytest.raises(OptionError, match="sam_vit_b makes masks but has no words"):
        load_describer("some.pth", labels=vocabulary, captions=False)


def test_labels_can_be_turned_off_and_captions_too_but_not_both(loaded, vocabulary, tokenizer) -> None:
    words = describe(load_describer("tap_vit_b", labels=False, tokenizer=tokenizer, say=print))
    assert words.label is None
    assert words.caption
    words = describe(load_describer("tap_vit_b", labels=vocabulary, captions=False, top=2, say=print))
    assert words.caption is None
    assert len(words.label_scores) == 2
    with pytest.raises(OptionError, match="Neither labels nor captions"):
        load_describer("tap_vit_b", labels=False, captions=False)


def test_without_sentencepiece_captions_are_left_out_if_nobody_asked_for_them(loaded, vocabulary, monkeypatch) -> None:
    found = describers.importlib.util.find_spec
    monkeypatch.setattr(
        describers.importlib.util, "find_spec", lambda name: None if name == "sentencepiece" else found(name)
    )
    said: list[str] = []
    describer = load_describer("tap_vit_b", labels=vocabulary, say=said.append)
    assert describer.facts()["captions"] is False
    assert len(said) == 1
    assert "pip install 'anysam[text]'" in said[0]
    for asked in ({"captions": True}, {"beams": 2}, {"labels": False}):
        with pytest.raises(MissingExtraError, match="captions=False"):
            load_describer("tap_vit_b", **{"labels": vocabulary, **asked})


def test_names_without_embeddings_need_the_text_encoder(nothing, text_file) -> None:
    for labels in (text_file, str(text_file), list(NAMES), "everyday"):
        with pytest.raises(OptionError, match="text encoder"):
            load_describer("tap_vit_b", labels=labels, captions=False)


def test_names_of_ones_own_are_embedded_in_the_template(loaded, text_file, monkeypatch) -> None:
    asked = []

    def embedded(names, text_encoder, source, template, *_):
        asked.append((names, text_encoder, template))
        return Vocabulary(names, np.eye(32, len(names), dtype=np.float32), source)

    monkeypatch.setattr("anysam.describe.vocabulary.embedded_once", embedded)
    monkeypatch.setattr(describers, "embedded_once", embedded)
    describer = load_describer("tap_vit_b", labels=text_file, text_encoder="tower", captions=False)
    assert describer.names == ("red", "green", "blue")
    describer = load_describer("tap_vit_b", labels=NAMES, text_encoder="tower", template="one {}", captions=False)
    assert describer.names == NAMES
    assert asked == [(("red", "green", "blue"), "tower", "a {}"), (NAMES, "tower", "one {}")]


# --- CLIP -------------------------------------------------------------------------------------------------------------


def test_clip_chooses_among_the_names_of_a_list_a_file_or_the_package(loaded, text_file, vocabulary) -> None:
    describer = load_describer("clip", labels=text_file, top=2)
    assert isinstance(describer, LabelDescriber)
    assert loaded.names == [("clip", "openai/clip-vit-base-patch32")]
    words = describe(describer)
    assert words.label == "red"
    assert len(words.label_scores) == 2
    assert load_describer("clip", labels=["red", "blue"]).names == ("red", "blue")
    assert load_describer("clip", labels=vocabulary).names == NAMES
    everyday = load_describer("clip")
    assert everyday.names == read_names("everyday")
    assert "person" in everyday.names
    assert everyday.facts()["vocabulary"] == "everyday"


def test_a_clip_on_the_disk_names_masks_as_the_transformers_library_does(tmp_path) -> None:
    """The same picture through the library's own processor and network."""
    import torch

    transformers = pytest.importorskip("transformers")
    from tiny_clip import write_clip

    folder = write_clip(tmp_path / "clip")
    names = ("car", "dog", "house", "tree")
    image = np.random.default_rng(0).integers(0, 256, (80, 100, 3), dtype=np.uint8)
    mask = np.zeros((80, 100), dtype=np.bool_)
    mask[10:60, 20:70] = True
    record = MaskRecord.from_mask(mask, 0.9)
    describer = load_describer(folder, labels=names, device="cpu", say=pytest.fail)
    found = describer.words(image, [record])[0]

    picture = next(pictures_of(image, [record]))
    model = transformers.CLIPModel.from_pretrained(folder).eval()
    words = transformers.CLIPTokenizer.from_pretrained(folder)(
        [f"a photo of a {name}" for name in names], return_tensors="pt", padding=True
    )
    pixels = transformers.CLIPImageProcessorPil.from_pretrained(folder)(picture, return_tensors="pt")
    with torch.no_grad():
        probabilities = model(**words, **pixels).logits_per_image[0].softmax(0)
    assert found.label_scores == pytest.approx(dict(zip(names, probabilities.tolist(), strict=True)), abs=1e-4)
    assert found.label == names[int(probabilities.argmax())]
    facts = describer.facts()
    assert (facts["model"], facts["kind"], len(facts["weights_sha256"])) == (str(folder), "clip", 64)


def test_a_name_of_the_hub_or_a_folder_is_an_image_text_model(loaded, tmp_path) -> None:
    (tmp_path / "config.json").write_text("{}")
    for name in ("google/siglip-base-patch16-224", tmp_path, str(tmp_path)):
        load_describer(name, labels=NAMES, template="this is {}")
        assert loaded.names[-1][0] == "clip"
        assert str(loaded.names[-1][1]) == str(name)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"captions": True}, "writes no captions"),
        ({"beams": 2}, "beams belongs to Tokenize Anything"),
        ({"max_tokens": 5}, "max_tokens belongs"),
        ({"tokenizer": "t.model"}, "tokenizer belongs"),
        ({"text_encoder": "tower"}, "text_encoder belongs"),
        ({"labels": False}, "only gives labels"),
        ({"labels": []}, "at least one"),
        ({"labels": ["cat", "cat"]}, "twice"),
        ({"labels": ["cat", "dog"], "top": 3}, "at most 2"),
        ({"labels": 3}, "must be a list"),
        ({"labels": "coco80"}, "coco_80"),
        ({"labels": "no/such.txt"}, "no/such.txt"),
        ({"template": "a photo"}, "one {} in it"),
        ({"top": 0}, "at least 1"),
        ({"captions": "yes"}, "True, False or None"),
    ],
    ids=str,
)
def test_what_makes_no_sense_with_clip_is_refused(nothing, options, message) -> None:
    with pytest.raises(AnySamError, match=message):
        load_describer("clip", **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"labels": "coco80"}, "coco_80"),
        ({"labels": "no/such.pkl", "captions": False}, "no/such.pkl"),
        ({"top": 4}, "at most 3"),
        ({"template": "a {}"}, "template is for names of your own"),
        ({"text_encoder": "tower"}, "text_encoder is for names of your own"),
        ({"captions": False, "beams": 2}, "beams has no effect"),
        ({"labels": ["cat"], "text_encoder": "tower", "top": 2}, "at most 1"),
        ({"labels": 3}, "must be a list"),
        ({"tokenizer": "nowhere.model"}, "nowhere.model"),
    ],
    ids=str,
)
def test_what_makes_no_sense_with_tokenize_anything_is_refused(
    nothing, vocabulary, tokenizer, options, message
) -> None:
    given = {"labels": vocabulary, **({} if options.get("captions") is False else {"tokenizer": tokenizer}), **options}
    with pytest.raises(AnySamError, match=message):
        load_describer("tap_vit_b", **given)


# --- neither is named -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["tap_vit_x", "clap", "", "a/b/c", 3])
def test_an_unknown_describer_is_refused(nothing, name) -> None:
    with pytest.raises((UnknownModelError, OptionError), match=r"describer"):
        load_describer(name)


def test_a_model_without_words_is_refused(nothing) -> None:
    with pytest.raises(OptionError, match="mobile_sam finds masks but no words; describers are tap_vit_b"):
        load_describer("mobile_sam")


def here(monkeypatch, tap: bool, clip: bool) -> None:
    monkeypatch.setattr(describers, "locate", lambda row: "file" if tap else None)
    monkeypatch.setattr(describers.clip_files, "cached_checkpoint", lambda name: "folder" if clip else None)
    monkeypatch.setattr(describers, "prepare_wording", lambda *_: None)
    monkeypatch.setattr(describers, "check_speaking", lambda *_: None)
    monkeypatch.setattr(describers, "TapDescriber", lambda *_: "tap")
    monkeypatch.setattr(describers, "LabelDescriber", lambda *_, **__: "clip")


@pytest.mark.parametrize(
    ("tap", "clip", "chosen"), [(True, True, "tap"), (True, False, "tap"), (False, True, "clip"), (False, False, "tap")]
)
def test_without_a_name_what_is_on_this_machine_is_taken(loaded, monkeypatch, tap, clip, chosen) -> None:
    here(monkeypatch, tap, clip)
    assert load_describer(captions=False) == chosen


def test_without_a_name_clip_is_not_looked_for_without_its_packages(loaded, monkeypatch) -> None:
    here(monkeypatch, tap=False, clip=True)
    monkeypatch.setattr(describers.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(describers.clip_files, "cached_checkpoint", lambda name: pytest.fail("looked for"))
    assert load_describer(captions=False) == "tap"


def test_without_a_name_the_describer_is_one_that_can_do_what_is_asked(
    loaded, monkeypatch, text_file, vocabulary
) -> None:
    here(monkeypatch, tap=False, clip=True)
    for wish in ({"captions": True}, {"labels": False}, {"beams": 3}, {"max_tokens": 9}, {"labels": "coco_80"}):
        assert load_describer(**wish) == "tap"
    assert load_describer(labels=vocabulary) == "tap"
    here(monkeypatch, tap=True, clip=False)
    for labels in (text_file, ["cat", "dog"], "everyday"):
        assert load_describer(labels=labels) == "clip"
    assert load_describer(template="a picture of a {}") == "clip"
