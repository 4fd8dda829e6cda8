"""Words on the command line: `segment --text`, `describe`, `everything --describe`: what is asked, written and said.

The stand-in model finds patches of one colour, the stand-in image-text model and describer know colours by name.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask

from anysam import predictor
from anysam.commands import options as command_options
from anysam.describe.interface import Words
from anysam.encoded_image import EncodedImage
from anysam.errors import OptionError, WeightsError
from anysam.prompts import resolve_prompt
from anysam.results import MaskRecord, Prediction
from stand_in_text import COLOURS, ColourScorer
from test_cli import refused, run

WIDTH, HEIGHT = 150, 110
# x y of patches of 16x12 pixels, so far apart and from the border that a picture of one has it in its middle
PLACES = {"red": (20, 20), "green": (67, 24), "blue": (114, 28), "yellow": (24, 70), "grey": (70, 74)}
AREA = 16 * 12


class Patches:
    """A model whose masks are the patches of one colour, the larger first; white is nothing."""

    variant, weights_sha256, device, dtype, network = "anysam_lite", "0" * 64, torch.device("cpu"), torch.float32, None

    def __init__(self):
        self.looked, self.asked = 0, []
        self.before = lambda number: None

    def everything(self, image, options=None, detector=None, progress=None, store=None):
        self.before(self.looked)
        self.looked += 1
        progress(1.0)
        colours = [colour for colour in np.unique(image.reshape(-1, 3), axis=0) if (colour != 255).any()]
        masks = [(image == colour).all(axis=2) for colour in colours]
        return [MaskRecord.from_mask(mask, 0.9) for mask in sorted(masks, key=lambda mask: -mask.sum())]

    def encode(self, image):
        return EncodedImage({"image": image}, image.shape[:2], image.shape[:2], self.variant, "", self.weights_sha256)

    def predict(self, encoded, prompts, multimask=None):
        self.asked.append((list(prompts), multimask))
        return [self.answer(resolve_prompt(prompt, encoded.original_size), encoded) for prompt in prompts]

    def answer(self, prompt, encoded):
        x, y = prompt.points[0].astype(int) if len(prompt.points) else prompt.box[:2].astype(int) + 1
        mask = (encoded.features["image"] == encoded.features["image"][y, x]).all(axis=2)
        return Prediction(mask[None], np.array([0.8], np.float32), np.zeros((1, 4, 4), np.float32))


class Scorer(ColourScorer):
    """Looks at the middle of a picture only, where the mask is."""

    def similarities(self, pictures, texts):
        middles = (picture[len(picture) // 2, picture.shape[1] // 2].reshape(1, 1, 3) for picture in pictures)
        return super().similarities(middles, texts)

    def facts(self):
        return {"model": "colours"}


@dataclass
class Namer:
    """A describer that names the mean colour of a mask, and says so."""

    names: tuple[str, ...] = tuple(COLOURS)
    captions: bool = True
    described: list[int] = field(default_factory=list)

    def words(self, image: np.ndarray, records: Sequence[MaskRecord], progress: Any = None) -> list[Words]:
        self.described.append(len(records))
        found = []
        for record in records:
            mean = image[record.to_mask()].mean(axis=0)
            far = {name: float(np.linalg.norm(mean - np.array(colour))) for name, colour in COLOURS.items()}
            scores = {name: 1 / (1 + far[name]) for name in sorted(far, key=far.__getitem__) if name in self.names}
            label, score = next(iter(scores.items()), (None, None))
            caption = f"a patch of {min(far, key=far.__getitem__)}" if self.captions else None
            found.append(Words(label, score, scores, caption, 0.5 if caption else None))
        progress(1.0)
        return found

    def facts(self) -> dict[str, Any]:
        return {"describer": "namer", "captions": self.captions}


@dataclass
class Loaded:
    """What the commands were given instead of models, and what they asked for."""

    model: Patches
    scorer: Scorer
    namer: Namer
    models: list[Any] = field(default_factory=list)
    scorers: list[Any] = field(default_factory=list)
    describers: list[Any] = field(default_factory=list)

    def nothing(self) -> bool:
        return not (self.models or self.scorers or self.describers)


@pytest.fixture
def loaded(monkeypatch):
    from anysam import describers
    from anysam.describe import clip

    stand_ins = Loaded(Patches(), Scorer(), Namer())

    def load(name=None, *, variant=None, device=None, dtype="float32", progress=None, allow=None):
        stand_ins.models.append(name)
        return stand_ins.model

    def load_image_text(name="", *, device=None, dtype="float32", batch=16, say=None, progress=None, allow=None):
        stand_ins.scorers.append((name, device, dtype, allow))
        return stand_ins.scorer

    def load_describer(name=None, **options):
        stand_ins.describers.append((name, options))
        return stand_ins.namer

    monkeypatch.setattr(predictor, "load", load)
    monkeypatch.setattr(clip, "load_image_text", load_image_text)
    monkeypatch.setattr(describers, "load_describer", load_describer)
    monkeypatch.setattr(command_options, "need_package", lambda package, what: None)
    return stand_ins


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working folder with photo.png: patches of all colours of PLACES on white."""
    monkeypatch.chdir(tmp_path)
    save("photo.png")
    return tmp_path


def save(name, colours=tuple(PLACES), size=(WIDTH, HEIGHT)):
    pixels = np.full((size[1], size[0], 3), 255, np.uint8)
    for colour in colours:
        x, y = PLACES[colour]
        pixels[y : y + 12, x : x + 16] = COLOURS[colour]
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(name)


def patch(colour):
    """The mask (H, W) bool of a patch."""
    mask = np.zeros((HEIGHT, WIDTH), bool)
    x, y = PLACES[colour]
    mask[y : y + 12, x : x + 16] = True
    return mask


def at(colour):
    """A point in a patch, as it is typed."""
    x, y = PLACES[colour]
    return f"{x + 8},{y + 6}"


def masks_of(out):
    """The masks of the first image of a JSON document on stdout."""
    return json.loads(out)["images"][0]["masks"]


def files_in(path):
    return sorted(file.name for file in Path(path).iterdir() if file.name != ".anysam")


def decoded(mask):
    return coco_mask.decode(mask["segmentation"]).astype(bool)


# segment --text


def test_a_text_gives_the_mask_that_fits_it_best(loaded, folder, capsys):
    status, out, err = run(capsys, "segment", "photo.png", "--text", "a  blue patch")
    assert status == 0, err
    assert out.splitlines() == ["out/photo_mask_0.png", "out/photo_overlay.png", "out/photo.json"]
    assert np.array_equal(np.array(Image.open("out/photo_mask_0.png")) > 0, patch("blue"))
    assert "cannot hold" not in err and "may not be there" not in err  # the words are in the JSON
    assert "photo.png: a blue patch " in err and f"{AREA} pixels" in err
    assert loaded.scorers == [("openai/clip-vit-base-patch32", None, "float32", None)]


def test_json_has_the_scores_of_the_text_and_of_what_it_was_compared_with(loaded, folder, capsys):
    _, out, _ = run(capsys, "segment", "photo.png", "--text", "red", "--negative", "green", "--negative=blue", "--json")
    (mask,) = masks_of(out)
    assert mask["label"] == "red" and mask["prompt"] == {"text": "red"} and np.array_equal(decoded(mask), patch("red"))
    assert set(mask["label_scores"]) == {"red", "green", "blue"}
    assert mask["label_score"] == mask["label_scores"]["red"] > 0.9 and mask["similarity"] > 20
    facts = json.loads(out)["text_model"]
    assert facts["model"] == "colours" and facts["options"]["negatives"] == ["green", "blue"]


def test_texts_are_objects_after_those_that_are_pointed_at(loaded, folder, capsys):
    arguments = ["--text", "red", "--object", f"point={at('yellow')}", "--text", "blue", "--point", at("green")]
    _, out, _ = run(capsys, "segment", "photo.png", *arguments, "--json")
    masks = masks_of(out)
    assert [mask["object"] for mask in masks] == [0, 1, 2, 3]
    for mask, colour in zip(masks, ("green", "yellow", "red", "blue"), strict=True):
        assert np.array_equal(decoded(mask), patch(colour))
    assert loaded.scorer.pictures == len(PLACES)  # each mask is looked at once, whatever the number of texts


def test_a_threshold_keeps_all_that_fit_and_a_limit_bounds_them(loaded, folder, capsys):
    def hits(*more):
        _, out, _ = run(capsys, "segment", "photo.png", "--text", "red", "--negative", "blue", *more, "--json")
        scores = [mask["label_score"] for mask in masks_of(out)]
        assert scores == sorted(scores, reverse=True)
        return len(scores)

    assert hits() == 1
    assert hits("--text-threshold", "0.5") == 2  # yellow, too, is nearer to red than to blue
    assert hits("--text-threshold", "0") == len(PLACES)
    assert hits("--text-threshold", "0", "--text-limit", "3") == hits("--text-limit", "3") == 3


def test_a_text_that_means_nothing_is_said_with_the_nearest_and_the_result_is_whole(loaded, folder, capsys):
    save("blank.png", ())
    arguments = ["--text", "red", "--text", "unicorn", "--text-threshold", "0.75", "--format", "png,coco,yolo"]
    status, out, err = run(capsys, "segment", "photo.png", "blank.png", *arguments)
    assert status == 0
    # a text without a colour is as far from everything as the four negatives
    assert "no mask fits 'unicorn' with probability 0.75; the best had 0.20" in err
    assert "blank.png: no mask fits 'red', for no mask was found at all; no mask fits 'unicorn', for" in err
    both = [f"{stem}.{ending}" for stem in ("blank", "photo") for ending in ("coco.json", "names.txt", "txt")]
    assert files_in("out") == [*both, "photo_mask_0.png"]
    assert json.loads(Path("out/blank.coco.json").read_text())["annotations"] == []
    before = loaded.scorer.pictures
    _, out, _ = run(capsys, "segment", "photo.png", *arguments[2:6], "--json")
    assert loaded.scorer.pictures == before + len(PLACES)  # to name the nearest, no mask is looked at twice
    (image,) = json.loads(out)["images"]
    assert image["masks"] == [] and len(image["remarks"]) == 1


def test_the_best_mask_of_a_text_that_is_probably_not_there_is_doubted(loaded, folder, capsys):
    save("photo.png", ("red", "yellow"))
    arguments = ["--text", "blue", "--text", "red", "--negative", "green", "--negative", "yellow"]
    status, _, err = run(capsys, "segment", "photo.png", *arguments)
    assert status == 0 and err.count("may not be there") == 1
    assert "'blue' may not be there: its best mask is rather 'yellow' (" in err


def test_texts_are_the_classes_of_the_whole_run(loaded, folder, capsys):
    save("only_red.png", ("red",))
    arguments = ["--text", "red", "--text", "blue", "--text-threshold", "0.9", "--format", "yolo"]
    run(capsys, "segment", "photo.png", "only_red.png", *arguments)
    for stem, classes in (("photo", ["0", "1"]), ("only_red", ["0"])):
        assert Path(f"out/{stem}.names.txt").read_text().splitlines()[:2] == ["red", "blue"]
        assert [line.split()[0] for line in Path(f"out/{stem}.txt").read_text().splitlines()] == classes


def test_models_are_loaded_once_with_the_options_given(loaded, folder, capsys):
    save("other.png")
    options = ("--device", "cpu", "--dtype", "bfloat16", "--allow", "mit", "--text-model", "google/siglip-base")
    assert run(capsys, "segment", "photo.png", "other.png", "--text", "red", *options)[0] == 0
    assert loaded.models == [None] and loaded.scorers == [("google/siglip-base", "cpu", "bfloat16", "mit")]
    assert loaded.model.asked == []  # nothing is pointed at


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--text", ""], ["text is empty", "''"]),
        (["--text", "  "], ["text is empty"]),
        (["--text", "red", "--text", " red"], ["'red' is given twice", "--text-limit"]),
        (["--object", "text=dog box=1,1,9,9"], ["text stands alone", "--text 'dog'"]),
        (["--text", "red", "--text-threshold", "1.5"], ["--text-threshold must be a number from 0 to 1, got 1.5"]),
        (["--text", "red", "--text-threshold", "half"], ["--text-threshold", "half"]),
        (["--text", "red", "--text-limit", "0"], ["--text-limit must be a whole number of at least 1, got 0"]),
        (["--text", "red", "--negative", ""], ["--negative must not be empty"]),
        (["--text", "red", "--negative", "sky", "--text-rule", "published"], ["--negative", "no effect", "published"]),
        (["--text", "red", "--negative", "Red"], ["--negative 'red'", "itself"]),
        (["--text", "red", "--text-rule", "other"], ["--text-rule", "published"]),
        (["--text", "red", "--text-model", "./gone"], ["no folder", "./gone"]),
        (["--text", "red", "--multimask"], ["--multimask", "--text-limit"]),
        (["--text", "red", "--single"], ["--single has no effect"]),
        (["--point", "1,1", "--text-threshold", "0.5"], ["--text-threshold has no effect without --text"]),
        (["--point", "1,1", "--negative", "sky"], ["--negative has no effect without --text"]),
        (["--point", "1,1", "--text-model", "a/b"], ["--text-model has no effect without --text"]),
        ([], ["--point X,Y", "--text"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_bad_texts_are_refused_before_an_image_is_opened(loaded, folder, capsys, options, words):
    Path("photo.png").write_bytes(b"not looked at")
    message = refused(capsys, "segment", "photo.png", *options)
    assert all(word in message for word in words), message
    assert loaded.nothing()


@pytest.mark.parametrize(
    ("arguments", "package"),
    [
        (["segment", "gone.png", "--text", "red"], "transformers"),
        (["segment", "gone.png", "--point", "1,1", "--describe", "clip", "--labels", "names.txt"], "transformers"),
        (["everything", "photo.png", "--describe", "clip", "--labels", "names.txt"], "transformers"),
        (["describe", "photo.png", "--everything", "--describer", "clip", "--labels", "names.txt"], "transformers"),
        (["describe", "photo.png", "--everything", "--describer", "tap_vit_b", "--beams", "2"], "sentencepiece"),
        (["describe", "photo.png", "--everything", "--describer", "a/b", "--top", "2"], "transformers"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_a_missing_extra_is_refused_before_work_with_its_install_line(folder, capsys, monkeypatch, arguments, package):
    monkeypatch.setattr(command_options.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(predictor, "load", None)  # would be a fault
    Path("names.txt").write_text("cat\n")
    message = refused(capsys, *arguments)
    assert package in message and "pip install 'anysam[text]'" in message


def test_an_image_text_model_that_cannot_be_loaded_stops_everything(loaded, folder, capsys, monkeypatch):
    from anysam.describe import clip

    def load(*arguments, **options):
        raise WeightsError("it is damaged")

    save("other.png")
    monkeypatch.setattr(clip, "load_image_text", load)
    assert "it is damaged" in refused(capsys, "segment", "photo.png", "other.png", "--text", "red")
    assert loaded.models == []


# Words for what was cut out


def test_segment_describes_what_it_cut_out(loaded, folder, capsys):
    status, out, err = run(
        capsys, "segment", "photo.png", "--point", at("green"), "--describe", "--format", "json,yolo"
    )
    assert status == 0, err
    assert 'green 1.00, "a patch of green" 0.50, 192 pixels, predicted IoU 0.80' in err
    (mask,) = json.loads(Path("out/photo.json").read_text())["masks"]
    assert (mask["label"], mask["caption"], mask["caption_score"]) == ("green", "a patch of green", 0.5)
    assert Path("out/photo.names.txt").read_text().splitlines()[: len(COLOURS)] == list(COLOURS)
    assert Path("out/photo.txt").read_text().split()[0] == str(list(COLOURS).index("green"))
    assert loaded.describers[0][0] is None and loaded.namer.described == [1]
    _, _, err = run(capsys, "segment", "photo.png", "--text", "blue", "--negative", "red", "--describe", "--json")
    assert "for 'blue' " not in err and "blue 1.00" in err
    loaded.namer.names = ("red",)
    _, _, err = run(capsys, "segment", "photo.png", "--text", "blue", "--negative", "red", "--describe", "--json")
    assert "for 'blue' red 0.00" in err  # both what was looked for, and what it is called


def test_everything_describes_what_it_finds_and_counts_the_kinds(loaded, folder, capsys):
    save("blank.png", ())
    status, out, err = run(capsys, "everything", "photo.png", "blank.png", "--describe", "tap_vit_b", "--json")
    assert status == 0, err
    assert "photo.png: 5 masks: 1 " in err and "1 red" in err
    document = json.loads(out)
    assert document["describer"] == {"describer": "namer", "captions": True}
    for mask in document["images"][0]["masks"]:
        assert np.array_equal(decoded(mask), patch(mask["label"]))
        assert mask["caption"] == f"a patch of {mask['label']}" and len(mask["label_scores"]) == len(COLOURS)
    assert document["images"][1]["masks"] == []
    assert set(document["images"][0]["seconds"]) == {"read", "find", "describe"}
    assert [name for name, _ in loaded.describers] == ["tap_vit_b"]


def test_a_run_has_the_same_classes_in_all_images(loaded, folder, capsys):
    save("a.png", ("yellow",))
    save("b.png", ("red", "yellow"))
    assert run(capsys, "everything", "a.png", "b.png", "--describe", "--format", "yolo,coco")[0] == 0
    number = str(list(COLOURS).index("yellow"))
    for stem in "ab":
        assert number in [line.split()[0] for line in Path(f"out/{stem}.txt").read_text().splitlines()]
        categories = json.loads(Path(f"out/{stem}.coco.json").read_text())["categories"]
        assert [each["name"] for each in categories][: len(COLOURS)] == list(COLOURS)


def test_labels_alone_ask_for_words_and_all_options_are_passed_on(loaded, folder, capsys):
    Path("names.txt").write_text("red\ngreen\n")
    Path("tokens.model").write_text("")
    Path("encoder").mkdir()
    run(capsys, "everything", "photo.png", "--labels", "names.txt", "--template", "one {}", "--top", "2")
    captions = ["--beams", "3", "--max-tokens", "9", "--tokenizer", "tokens.model", "--text-encoder", "encoder"]
    run(capsys, "describe", "photo.png", "--everything", "--describer", "tap_vit_b", "--labels", "names.txt", *captions)
    run(capsys, "describe", "photo.png", "--everything", "--no-labels", "--device", "cpu", "--allow", "mit")
    run(capsys, "describe", "photo.png", "--everything", "--no-captions", "--dtype", "bfloat16")
    expected = [
        (None, {"labels": "names.txt", "template": "one {}", "top": 2}),
        (
            "tap_vit_b",
            {
                **{"labels": "names.txt", "beams": 3, "max_tokens": 9},
                **{"tokenizer": "tokens.model", "text_encoder": "encoder"},
            },
        ),
        (None, {"labels": False, "device": "cpu", "allow": "mit"}),
        (None, {"captions": False, "dtype": "bfloat16"}),
    ]
    usual = {"beams": 1, "dtype": "float32"}
    found = [
        (name, {key: value for key, value in options.items() if value is not None and value != usual.get(key)})
        for name, options in loaded.describers
    ]
    for _, options in found:
        del options["say"], options["progress"]
    assert found == expected


@pytest.mark.parametrize("command", [["segment", "--point", "1,1"], ["everything"], ["describe", "--everything"]])
@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--describe", "tap_vit_x"], ["tap_vit_x", "tap_vit_"]),
        (["--describe", "sam_vit_b"], ["sam_vit_b", "no words", "tap_vit_b"]),
        (["--describe", "gone.safetensors"], ["no file", "gone.safetensors"]),
        (["--describe", "--labels", "gone"], ["'gone'", "merged_2560"]),
        (["--describe", "--labels", "empty.txt"], ["empty.txt", "no names"]),
        (["--describe", "--labels", "twice.txt"], ["'cat' twice"]),
        (["--describe", "--labels", "photo.png"], ["photo.png", "UTF-8"]),
        (["--describe", "--top", "0"], ["--top must be at least 1, got 0"]),
        (["--describe", "--beams", "0"], ["--beams must be at least 1"]),
        (["--describe", "--max-tokens", "-1"], ["--max-tokens"]),
        (["--describe", "--tokenizer", "gone.model"], ["gone.model", "--tokenizer"]),
        (["--describe", "--text-encoder", "gone"], ["gone", "--text-encoder"]),
        (["--describe", "--template", "a photo"], ["--template", "{}", "'a photo'"]),
        (["--describe", "--no-labels", "--no-captions"], ["nothing to say"]),
        (["--describe", "--no-labels", "--top", "3"], ["--top has no effect with --no-labels"]),
        (["--describe", "--no-captions", "--beams", "3"], ["--beams has no effect with --no-captions"]),
        (["--describe", "clip", "--max-tokens", "3"], ["--max-tokens has no effect", "clip, which gives labels only"]),
        (["--describe", "clip", "--no-labels"], ["--no-labels has no effect"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_bad_describers_are_refused_before_an_image_is_opened(loaded, folder, capsys, command, options, words):
    Path("empty.txt").write_text("# nothing\n")
    Path("twice.txt").write_text("cat\ndog\ncat\n")
    if command[0] == "describe":
        options = ["--describer" if option == "--describe" else option for option in options]
        options = options[1:] if options[1].startswith("--") else options
    message = refused(capsys, command[0], "photo.png", *command[1:], *options)
    assert all(word in message for word in words), message
    assert loaded.nothing() and not Path("out").exists()


@pytest.mark.parametrize("command", ["segment", "everything"])
def test_options_of_a_describer_need_one_and_an_image_is_none(loaded, folder, capsys, command):
    point = ["--point", "1,1"] if command == "segment" else []
    assert "--no-captions has no effect without --describe" in refused(
        capsys, command, "a.png", *point, "--no-captions"
    )
    message = refused(capsys, command, *point, "--describe", "photo.JPG")
    assert "photo.JPG" in message and "images first" in message


@pytest.mark.filterwarnings("ignore:Use `@` matmul:PendingDeprecationWarning")
def test_a_tiled_map_is_described_if_it_fits_into_memory(loaded, folder, capsys, monkeypatch):
    rasterio = pytest.importorskip("rasterio")
    place = {"crs": "EPSG:32633", "transform": rasterio.transform.from_origin(500_000, 4_600_000, 10, 10)}
    with rasterio.open("map.tif", "w", driver="GTiff", height=40, width=60, count=3, dtype="uint8", **place) as file:
        file.write(np.zeros((3, 40, 60), np.uint8))
    arguments = ["everything", "map.tif", "--tile", "64", "--describe", "--format"]
    assert run(capsys, *arguments, "json")[0] == 0 and loaded.namer.described == [1]
    monkeypatch.setattr("anysam.images.MAX_PIXELS", 1000)  # fewer than the map has
    assert "leave --describe out" in refused(capsys, *arguments, "json")
    assert "leave --describe out and overlay and cutout out" in refused(capsys, *arguments, "overlay")


def test_resume_does_again_what_other_words_are_asked_for(loaded, folder, capsys):
    arguments = ["everything", "photo.png", "--format", "coco", "--resume"]
    run(capsys, *arguments)

    def done_again(*options):
        _, out, err = run(capsys, *arguments, *options)
        return err.split("again because ")[1].splitlines()[0] if out else None

    assert "settings have changed" in done_again("--describe")
    assert done_again("--describe") is None
    loaded.namer.names = ("red", "blue")
    assert "names_sha256" in done_again("--describe")
    loaded.namer.captions = False
    assert "describer" in done_again("--describe")
    assert "top" in done_again("--describe", "--top", "3")
    assert done_again("--describe", "--top", "3") is None
    assert done_again() is not None  # without words now
    assert done_again() is None


# describe


def masks_file(name, masks, image="photo.png", kind="json"):
    """A file of masks as the commands write it."""
    from anysam.outputs import ImageResult, write_result

    records = tuple(MaskRecord.from_mask(mask, 0.7, label="before") for mask in masks)
    write_result(kind, Path(), "x", ImageResult(image, masks[0].shape, records), [], path=Path(name))


@pytest.mark.parametrize("kind", ["json", "coco", "labelme", "npz", "labels", "yolo", "geojson"])
def test_masks_of_a_file_are_described(loaded, folder, capsys, kind):
    ending = {"json": "json", "coco": "json", "labelme": "json", "labels": "png", "yolo": "txt"}.get(kind, kind)
    masks_file(f"given.{ending}", [patch("red"), patch("blue")], kind=kind)
    status, out, err = run(capsys, "describe", "photo.png", "--masks", f"given.{ending}")
    assert status == 0, err
    assert out.splitlines() == ["out/photo_overlay.png", "out/photo.json"]
    masks = json.loads(Path("out/photo.json").read_text())["masks"]
    found = {mask["label"]: mask for mask in masks}
    assert set(found) == {"red", "blue"} and loaded.models == []
    for colour, mask in found.items():
        assert np.array_equal(decoded(mask), patch(colour)) and mask["caption"] == f"a patch of {colour}"
    lines = err[err.index("photo.png: 2 masks (") :].splitlines()
    assert lines[1].startswith('  0: red 1.00, "a patch of red" 0.50, 192 pixels') and lines[2].startswith("  1: blue")


def test_json_has_all_scores_and_facts_and_writes_no_files(loaded, folder, capsys):
    masks_file("given.json", [patch("grey")])
    _, out, _ = run(capsys, "describe", "photo.png", "--masks", "given.json", "--json")
    document = json.loads(out)
    assert not Path("out").exists() and document["model"] is None and document["describer"]["describer"] == "namer"
    (mask,) = masks_of(out)
    assert list(mask["label_scores"])[0] == mask["label"] == "grey" and len(mask["label_scores"]) == len(COLOURS)


@pytest.mark.parametrize(
    "prompts",
    [
        ["--point", at("yellow"), "--point=-50,50"],
        ["--box", "24,70,40,82"],
        ["--scribble", "28,74;36,78"],
        ["--object", f"point={at('yellow')}"],
        ["--polygon", "24,70;40,70;40,82;24,82"],
    ],
    ids=lambda value: value[0],
)
def test_what_is_pointed_at_is_cut_out_and_described(loaded, folder, capsys, prompts):
    status, out, err = run(capsys, "describe", "photo.png", *prompts, "--model", "sam_vit_b", "--json")
    assert status == 0, err
    (mask,) = masks_of(out)
    assert np.array_equal(decoded(mask), patch("yellow")) and mask["label"] == "yellow" and mask["prompt"]
    assert loaded.models == ["sam_vit_b"] and json.loads(out)["model"]["name"] == "anysam_lite"


def test_a_negative_point_needs_no_equals_sign(loaded, folder, capsys):
    run(capsys, "describe", "photo.png", "--point", at("red"), "--point", "-50,50", "--json")
    ((prompts, _),) = loaded.model.asked
    assert prompts[0].labels.tolist() == [1, 0]


def test_everything_that_there_is_is_described(loaded, folder, capsys):
    _, out, err = run(capsys, "describe", "photo.png", "--everything", "--json")
    assert {mask["label"] for mask in masks_of(out)} == set(PLACES) and loaded.models == [None]
    assert sum(line.startswith("  ") for line in err.splitlines()) == len(PLACES)


def test_a_model_that_its_authors_use_with_a_detector_has_it(loaded, folder, capsys, monkeypatch):
    monkeypatch.setattr(Patches, "variant", "mobilesamv2_tiny_vit")
    run(capsys, "describe", "photo.png", "--everything", "--model", "mobilesamv2_tiny_vit", "--json")
    assert loaded.models == ["mobilesamv2_tiny_vit", "mobilesamv2_object_aware"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], ["--masks FILE", "--point X,Y", "--everything"]),
        (["--everything", "--point", "1,1"], ["--everything and --point exclude each other"]),
        (["--masks", "given.json", "--everything"], ["--masks and --everything exclude"]),
        (["--masks", "given.json", "--box", "1,1,5,5"], ["--masks and --box exclude"]),
        (["--masks", "given.json", "--model", "sam_vit_b"], ["--model has no effect with --masks"]),
        (["--everything", "--masks-format", "coco"], ["--masks-format has no effect without --masks"]),
        (["--masks", "gone.json"], ["no file or folder gone.json"]),
        (["--masks", "broken.json"], ["broken.json"]),
        (["--masks", "other.json"], ["other.json", "no format that is known"]),
        (["--masks", "given.json", "--masks-format", "overlay"], ["--masks-format"]),
        (["--masks", "empty_folder"], ["empty_folder", "no files of masks"]),
        (["--masks", "given.json", "--resume", "--json"], ["--resume", "--out"]),
        (["--point", "1,2,3"], ["--point must be X,Y"]),
        (["--point", "1,1", "--format", "gif"], ["'gif'"]),
        (["--point", "1,1", "--cache-size", "1G"], ["--cache-size"]),
        (["--text", "red"], ["--text"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_bad_masks_are_refused_before_an_image_is_opened(loaded, folder, capsys, options, words):
    masks_file("given.json", [patch("red")])
    Path("broken.json").write_text(Path("given.json").read_text()[:-20])
    Path("other.json").write_text('{"a": 1}')
    Path("empty_folder").mkdir()
    Path("photo.png").write_bytes(b"not looked at")
    message = refused(capsys, "describe", "photo.png", *options)
    assert all(word in message for word in words), message
    assert loaded.nothing()


@pytest.mark.parametrize(
    ("image", "size", "words"),
    [
        ("photo.png", (20, 30), ["given.json", "photo.png", "30x20", "150x110"]),
        ("photo.png", (WIDTH, HEIGHT), ["110x150", "150x110", "upright"]),
    ],
)
def test_masks_that_do_not_fit_the_image_are_refused(loaded, folder, capsys, image, size, words):
    masks_file("given.json", [np.ones(size, bool)], image)
    message = refused(capsys, "describe", "photo.png", "--masks", "given.json")
    assert all(word in message for word in words), message
    assert loaded.nothing()


def test_no_masks_are_an_empty_result_with_its_files(loaded, folder, capsys):
    save("blank.png", ())
    run(capsys, "everything", "blank.png", "--format", "json", "--out", "found")
    formats = ("--format", "overlay,json,coco,yolo,labels")
    status, out, err = run(capsys, "describe", "blank.png", "--masks", "found/blank.json", *formats)
    assert status == 0 and "blank.png: 0 masks" in err
    assert all(os.path.isfile(path) for path in out.splitlines()) and len(out.splitlines()) >= 5
    assert json.loads(Path("out/blank.json").read_text())["masks"] == []
    assert loaded.namer.described == []


def test_a_mask_without_a_pixel_keeps_what_it_had_and_breaks_nothing(loaded, folder, capsys):
    masks_file("given.json", [np.zeros((HEIGHT, WIDTH), bool), patch("red")])
    status, out, err = run(capsys, "describe", "photo.png", "--masks", "given.json", "--format", "json,coco,yolo")
    assert status == 0, err
    masks = json.loads(Path("out/photo.json").read_text())["masks"]
    assert [mask["label"] for mask in masks] == ["before", "red"]


@pytest.fixture
def several(folder):
    """photos/ with a, b and c, and given/ with masks of a, a damaged file of b, and none of c."""
    for name, colours in (("a", ("red",)), ("b", ("blue",)), ("c", ("grey",))):
        save(f"photos/{name}.png", colours)
    Path("given").mkdir()
    masks_file("given/a.json", [patch("red")], "a.png")
    masks_file("given/b.json", [patch("blue")], "b.png")
    Path("given/b.json").write_text(Path("given/b.json").read_text()[:-20])
    return folder


def test_good_images_are_described_and_bad_ones_listed(loaded, several, capsys):
    status, out, err = run(capsys, "describe", "photos", "--masks", "given", "--format", "json")
    assert status == 1 and out.splitlines() == ["out/a.json"]
    assert "2 of 3 images failed:" in err and "given/b.json" in err.splitlines()[-2] and "c.png" in err.splitlines()[-1]
    assert json.loads(Path("out/a.json").read_text())["masks"][0]["label"] == "red"
    assert len(loaded.describers) == 1


def test_masks_are_found_by_the_name_of_their_image(loaded, several, capsys):
    masks_file("given/b.json", [patch("blue")], "b.png")
    masks_file("given/c.json", [patch("grey")], "c.png")
    status, out, _ = run(capsys, "describe", "photos", "--masks", "given", "--json")
    assert status == 0
    labels = [[mask["label"] for mask in image["masks"]] for image in json.loads(out)["images"]]
    assert labels == [["red"], ["blue"], ["grey"]]


def test_the_masks_that_are_read_are_not_overwritten(loaded, folder, capsys):
    arguments = ["everything", "photo.png", "--format", "coco,json"]
    run(capsys, *arguments)
    before = Path("out/photo.json").read_bytes()
    assert "out/photo.json" in refused(capsys, "describe", "photo.png", "--masks", "out/photo.json")
    assert "out/photo.json" in refused(capsys, "describe", "photo.png", "--masks", "out", "--masks-format", "json")
    assert Path("out/photo.json").read_bytes() == before
    assert "several formats" in refused(capsys, "describe", "photo.png", "--masks", "out", "--out", "x")
    status, out, _ = run(
        capsys, "describe", "photo.png", "--masks", "out/photo.coco.json", "--format", "overlay,labelme"
    )
    assert status == 0 and "out/photo.labelme.json" in out


def test_resume_skips_what_is_described_and_redoes_what_changed(loaded, several, capsys):
    masks_file("given/b.json", [patch("blue")], "b.png")
    masks_file("given/c.json", [patch("grey")], "c.png")
    arguments = ["describe", "photos", "--masks", "given", "--format", "json", "--resume"]
    assert len(run(capsys, *arguments)[1].splitlines()) == 3
    status, out, err = run(capsys, *arguments)
    assert (status, out) == (0, "") and err.count("skipped, finished before") == 3
    masks_file("given/c.json", [patch("grey"), patch("red")], "c.png")
    _, out, err = run(capsys, *arguments)
    assert out.splitlines() == ["out/c.json"] and "again because the settings have changed: masks" in err
    _, out, _ = run(capsys, *arguments, "--no-captions")
    assert len(out.splitlines()) == 3


def test_ctrl_c_keeps_what_is_described_and_says_how_to_go_on(loaded, folder, capsys):
    for name in "abc":
        save(f"photos/{name}.png")

    def interrupt(number):
        if number == 1:
            signal.raise_signal(signal.SIGINT)

    loaded.model.before = interrupt
    status, out, err = run(capsys, "describe", "photos", "--everything", "--format", "json")
    assert status == 130 and out.splitlines() == ["out/a.json"] and files_in("out") == ["a.json"]
    assert "1 of 3 images are done; the same command with --resume goes on." in err
    loaded.model.before = lambda number: None
    _, out, _ = run(capsys, "describe", "photos", "--everything", "--format", "json", "--resume")
    assert out.splitlines() == ["out/b.json", "out/c.json"]


def test_a_describer_that_cannot_be_loaded_stops_everything(loaded, folder, capsys, monkeypatch):
    from anysam import describers

    def load(*arguments, **options):
        raise OptionError("no such describer")

    save("other.png")
    monkeypatch.setattr(describers, "load_describer", load)
    assert "no such describer" in refused(capsys, "describe", "photo.png", "other.png", "--everything")
    assert loaded.models == []


def test_words_from_strangers_do_not_command_the_terminal(loaded, folder, capsys, monkeypatch):
    evil = Words("a\x1b[2J:smile:[red]\nb", 0.5, {}, "c\u202ed", 0.5)
    monkeypatch.setattr(Namer, "words", lambda self, image, records, progress: [evil] * len(records))
    masks_file("given.json", [patch("red")])
    _, _, err = run(capsys, "describe", "photo.png", "--masks", "given.json", "--format", "json")
    assert "\x1b" not in err and "\u202e" not in err
    assert '  0: a\\x1b[2J:smile:[red]\\nb 0.50, "c\\u202ed" 0.50, 192 pixels' in err


def test_tokenize_anything_cuts_out_and_describes_in_one_step(loaded, folder, capsys, monkeypatch):
    """The real describer around a network with random weights, and a vocabulary of its own."""
    import anysam
    from anysam import describers
    from anysam.describe.tap import TapDescriber, Wording
    from anysam.describe.vocabulary import Vocabulary
    from tiny_models import tiny_model

    model = tiny_model("tap")
    vectors = np.random.default_rng(0).normal(size=(model.network.semantic_dim, 3)).astype(np.float32)
    wording = Wording(Vocabulary(("cup", "dog", "tree"), vectors, "made up"), None, None, None, 1)
    describer = TapDescriber(model, wording)
    monkeypatch.setattr(describers, "load_describer", lambda *arguments, **options: describer)
    arguments = ["describe", "photo.png", "--point", at("red"), "--object", "box=60,20,90,40"]
    status, out, err = run(capsys, *arguments, "--json", "--out", "out")
    assert status == 0, err
    document, masks = json.loads(out), masks_of(out)
    assert loaded.models == [] and document["model"] is None and document["describer"]["model"] == model.variant
    expected = model.predict(
        model.encode("photo.png"),
        [anysam.Prompt(points=[[28, 26]]), anysam.Prompt(box=[60, 20, 90, 40])],
    )
    for mask, prediction in zip(masks, expected, strict=True):
        assert np.array_equal(decoded(mask), prediction.masks[prediction.best])
        assert set(mask["label_scores"]) == {"cup", "dog", "tree"} and sum(
            mask["label_scores"].values()
        ) == pytest.approx(1)
    loaded.models.clear()
    run(capsys, *arguments, "--model", "sam_vit_b", "--json")
    assert loaded.models == ["sam_vit_b"]  # --model makes the masks, also beside it


def test_the_help_of_describe_needs_nothing_heavy():
    program = (
        "import sys\nfrom anysam.cli import main\n"
        "try:\n    main(sys.argv[1:])\nexcept SystemExit:\n    pass\n"
        "heavy = ('torch', 'numpy', 'PIL', 'cv2', 'rich', 'transformers', 'sentencepiece')\n"
        "print([name for name in heavy if name in sys.modules], file=sys.stderr)\n"
    )
    for command in ("describe", "segment", "everything"):
        done = subprocess.run([sys.executable, "-c", program, command, "--help"], capture_output=True, text=True)
        assert done.stderr.strip() == "[]" and "--labels" in done.stdout
