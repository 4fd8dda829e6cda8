"""Image-text models: tiny checkpoints on disk, loaded as real ones, against the networks of transformers themselves."""

import hashlib
import json
import pickle
import shutil
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from anysam.describe.clip_pictures import patch_rule, patches, picture_rule, prepared
from anysam.describe.clip_texts import canonical
from anysam.describe.interface import ImageTextModel
from anysam.errors import (
    DownloadError,
    LicenceError,
    MissingExtraError,
    OptionError,
    UnknownModelError,
    WeightsError,
)

transformers = pytest.importorskip("transformers")
pytest.importorskip("sentencepiece")

import tiny_clip  # noqa: E402
from anysam.describe.clip import DEFAULT, load_image_text  # noqa: E402

TEXTS = ["a red car", "the green dog and the cat", "Tree!", "狗 no. 7"]
SIZES = [(1, 1), (30, 50), (64, 32), (300, 3), (3, 300), (33, 32)]


@pytest.fixture(scope="module", autouse=True)
def quiet_transformers():
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("tiny")
    return {
        "clip": tiny_clip.write_clip(root / "clip"),
        "siglip": tiny_clip.write_siglip(root / "siglip"),
        "siglip2": tiny_clip.write_siglip2(root / "siglip2"),
    }


@pytest.fixture
def copy(folders, tmp_path):
    """A copy of a tiny checkpoint that a test may damage."""

    def make(kind="clip"):
        return Path(shutil.copytree(folders[kind], tmp_path / kind))

    return make


def pictures(seed=0):
    """Blotches of colour, so that neither resizing nor the network makes them alike."""
    draw = np.random.default_rng(seed)
    small = [draw.integers(0, 256, (3, 4, 3), dtype=np.uint8) for _ in SIZES]
    resized = [Image.fromarray(each).resize((w, h)) for each, (h, w) in zip(small, SIZES, strict=True)]
    return [np.asarray(each) for each in resized]


def load(folder, **options):
    return load_image_text(folder, device="cpu", **options)


def edit(path, **entries):
    form = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**form, **entries}), encoding="utf-8")


def difference(a, b):
    return float(np.abs(np.asarray(a, dtype=np.float64) - np.asarray(b, dtype=np.float64)).max())


# ---------------------------------------------------------------------------------------- against transformers


def test_clip_gives_the_logits_of_transformers(folders):
    model = transformers.CLIPModel.from_pretrained(folders["clip"]).eval()
    tokenizer = transformers.CLIPTokenizerFast.from_pretrained(folders["clip"])
    processor = transformers.CLIPImageProcessorPil.from_pretrained(folders["clip"])
    texts = tokenizer(TEXTS, padding=True, return_tensors="pt")
    pixels = torch.cat([processor(each, return_tensors="pt", input_data_format="channels_last").pixel_values
                        for each in pictures()])  # fmt: skip
    with torch.inference_mode():
        expected = model(**texts, pixel_values=pixels).logits_per_image
    found = load(folders["clip"]).similarities(pictures(), TEXTS)
    assert found.shape == (len(SIZES), len(TEXTS)) and found.dtype == np.float32
    assert difference(found, expected) < 1e-4
    assert np.ptp(found, axis=0).min() > 1, "a test of pictures that are all alike says nothing"


def test_siglip_gives_the_logits_of_transformers_and_fills_texts_up_to_the_limit(folders):
    import sentencepiece

    pieces = sentencepiece.SentencePieceProcessor(model_file=str(folders["siglip"] / "spiece.model"))
    rows = [pieces.encode(text) for text in ("a red car", "the green dog and the cat", "tree", "狗 no 7")]
    ids = torch.tensor([row + [1] * (tiny_clip.LIMIT - len(row)) for row in rows])
    processor = transformers.SiglipImageProcessorPil.from_pretrained(folders["siglip"])
    pixels = torch.cat([processor(each, return_tensors="pt", input_data_format="channels_last").pixel_values
                        for each in pictures()])  # fmt: skip
    model = transformers.SiglipModel.from_pretrained(folders["siglip"]).eval()
    with torch.inference_mode():
        expected = model(input_ids=ids, pixel_values=pixels).logits_per_image
    assert difference(load(folders["siglip"]).similarities(pictures(), TEXTS), expected) < 1e-4


def test_siglip_2_gives_the_logits_of_transformers_at_every_aspect_ratio(folders):
    tokenizer = transformers.AutoTokenizer.from_pretrained(folders["siglip2"])
    texts = ["a red car", "Tree", "the cat"]
    ids = tokenizer(texts, padding="max_length", max_length=tiny_clip.LIMIT, return_tensors="pt").input_ids
    ends = [[*row, 1] for row in (tokenizer(text, add_special_tokens=False).input_ids for text in texts)]
    assert ids.shape[1] == tiny_clip.LIMIT
    ids = torch.tensor([row + [0] * (tiny_clip.LIMIT - len(row)) for row in ends])
    processor = transformers.Siglip2ImageProcessorPil.from_pretrained(folders["siglip2"])
    inputs = processor(pictures(), return_tensors="pt", input_data_format="channels_last")
    model = transformers.Siglip2Model.from_pretrained(folders["siglip2"]).eval()
    with torch.inference_mode():
        expected = model(input_ids=ids, **inputs).logits_per_image
    assert difference(load(folders["siglip2"]).similarities(pictures(), texts), expected) < 1e-4


def test_logits_are_a_hundred_times_the_cosine_and_their_softmax_the_probability(folders):
    model = load(folders["clip"])
    found = model.similarities(pictures(), TEXTS)
    network = transformers.CLIPModel.from_pretrained(folders["clip"]).double().eval()
    rule = picture_rule(json.loads((folders["clip"] / "preprocessor_config.json").read_text()), square=False)
    pixels = torch.from_numpy(np.stack([prepared(each, rule) for each in pictures()])).double()
    tokenizer = transformers.CLIPTokenizerFast.from_pretrained(folders["clip"])
    with torch.inference_mode():
        seen = network.visual_projection(network.vision_model(pixel_values=pixels).pooler_output).numpy()
        read = np.stack([
            network.text_projection(network.text_model(**tokenizer(text, return_tensors="pt")).pooler_output)[0].numpy()
            for text in TEXTS
        ])  # fmt: skip
    cosine = np.array([[a @ b / np.sqrt((a @ a) * (b @ b)) for b in read] for a in seen])
    assert difference(found, 100 * cosine) < 1e-3
    expected = np.exp(100 * cosine - 100 * cosine.max()) / np.exp(100 * cosine - 100 * cosine.max()).sum(
        1, keepdims=True
    )
    assert difference(torch.from_numpy(found).softmax(1), expected) < 1e-3


def test_a_text_that_spells_a_special_token_is_only_a_text(folders):
    model = load(folders["clip"])
    found = model.similarities(pictures(), ["red<|endoftext|>car", "red"])
    assert difference(found[:, 0], found[:, 1]) > 1e-2, "the rest of the text must count"
    assert model._reader.end not in model._reader.pieces("red<|endoftext|>car")


def test_the_model_is_an_image_text_model(folders):
    assert isinstance(load(folders["clip"]), ImageTextModel)


# ---------------------------------------------------------------------------------------- pictures


@pytest.mark.parametrize("size", [*SIZES, (480, 640), (641, 479)])
def test_pictures_are_prepared_to_the_last_bit_as_by_transformers(size):
    picture = np.random.default_rng(1).integers(0, 256, (*size, 3), dtype=np.uint8)
    for square, processor in (
        (False, transformers.CLIPImageProcessorPil()),
        (False, transformers.CLIPImageProcessorPil(size={"shortest_edge": 20}, crop_size={"height": 33, "width": 27})),
        (True, transformers.SiglipImageProcessorPil()),
    ):
        form = json.loads(processor.to_json_string())
        expected = processor(picture, return_tensors="np", input_data_format="channels_last").pixel_values[0]
        assert np.array_equal(prepared(picture, picture_rule(form, square)), expected)
    processor = transformers.Siglip2ImageProcessorPil()
    expected = processor(picture, return_tensors="np", input_data_format="channels_last")
    values, real, shape = patches(picture, patch_rule(json.loads(processor.to_json_string())))
    assert np.array_equal(values, expected.pixel_values[0])
    assert np.array_equal(real, expected.pixel_attention_mask[0])
    assert shape == tuple(expected.spatial_shapes[0])


def test_clip_cuts_the_middle_of_a_wide_picture():
    """By hand: a picture twice as wide as high whose sides are red, its middle grey."""
    picture = np.full((50, 100, 3), 128, dtype=np.uint8)
    picture[:, :10], picture[:, 90:] = (255, 0, 0), (255, 0, 0)
    form = {"size": 10, "crop_size": 10, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.25, 0.5, 1.0]}
    result = prepared(picture, picture_rule(form, square=False))
    grey = 128 / 255 - 0.5
    expected = np.array([grey / 0.25, grey / 0.5, grey]).reshape(3, 1, 1)
    assert result.shape == (3, 10, 10)
    assert difference(result, np.broadcast_to(expected, (3, 10, 10))) < 1e-6


def test_a_picture_of_absurd_shape_takes_little_memory_and_keeps_its_middle():
    picture = np.zeros((2, 60_000, 3), dtype=np.uint8)
    picture[:, 29_990:30_010] = 200  # scaled up as a whole it would have 224 x 6,720,000 pixels
    result = prepared(picture, picture_rule({"do_normalize": False}, square=False))
    assert result.shape == (3, 224, 224)
    assert difference(result, 200 / 255) < 1e-6


@pytest.mark.parametrize("square", [False, True])
def test_older_and_newer_ways_of_writing_a_size_mean_the_same(square):
    for forms in (
        [{"size": 32}, {"size": {"height": 32, "width": 32}} if square else {"size": {"shortest_edge": 32}}],
        [{"crop_size": 24, "do_center_crop": True}, {"crop_size": {"height": 24, "width": 24}, "do_center_crop": True}],
    ):
        rules = [picture_rule(form, square) for form in forms]
        assert rules[0].resize == rules[1].resize and rules[0].crop == rules[1].crop


@pytest.mark.parametrize(
    "form",
    [
        {"size": {"longest_edge": 10}},
        {"size": -1},
        {"size": "big"},
        {"resample": 99},
        {"image_std": [0, 1, 1]},
        {"image_mean": [1, 2]},
        {"rescale_factor": "x"},
        {"do_pad": True},
        {"crop_size": 10**9},
    ],
)
def test_a_senseless_picture_processor_is_refused(copy, form):
    folder = copy()
    edit(folder / "preprocessor_config.json", **form)
    with pytest.raises(WeightsError, match="picture processor in .* cannot be used"):
        load(folder)


def test_what_a_new_release_keeps_in_one_file_is_found_there(copy, folders):
    folder = copy()
    form = json.loads((folder / "preprocessor_config.json").read_text())
    (folder / "preprocessor_config.json").unlink()
    (folder / "processor_config.json").write_text(json.dumps({"image_processor": form}))
    expected = load(folders["clip"]).similarities(pictures(), TEXTS)
    assert np.array_equal(load(folder).similarities(pictures(), TEXTS), expected)


@pytest.mark.parametrize(
    "picture",
    [
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((4, 4, 3), np.float32),
        np.zeros((0, 4, 3), np.uint8),
        "coffee.png",
        None,
    ],
    ids=["grey", "four channels", "fractions", "no pixel", "a path", "nothing"],
)
def test_a_picture_of_another_form_is_refused_by_its_number(folders, picture):
    with pytest.raises(OptionError, match="Picture 2 must be"):
        load(folders["clip"]).similarities([pictures()[1], picture], ["a cat"])


# ---------------------------------------------------------------------------------------- batches


@pytest.mark.parametrize("kind", ["clip", "siglip", "siglip2"])
def test_neither_batch_nor_order_changes_the_logits(folders, kind):
    expected = load(folders[kind], batch=1, say=lambda _: None).similarities(pictures(), TEXTS)
    for batch in (2, 4, 100):
        model = load(folders[kind], batch=batch, say=lambda _: None)
        assert difference(model.similarities(pictures(), TEXTS), expected) < 1e-4
        backwards = model.similarities(pictures()[::-1], TEXTS[::-1])[::-1, ::-1]
        assert difference(backwards, expected) < 1e-4


def test_pictures_are_drawn_one_batch_at_a_time(folders):
    model = load(folders["clip"], batch=2)
    drawn, seen = 0, []
    inner = model._module.get_image_features

    def watched(**inputs):
        seen.append((drawn, len(inputs["pixel_values"])))
        return inner(**inputs)

    def source():
        nonlocal drawn
        for picture in pictures()[:5]:
            drawn += 1
            yield picture

    model._module.get_image_features = watched
    assert model.similarities(source(), ["a cat"]).shape == (5, 1)
    assert seen == [(2, 2), (4, 2), (5, 1)]


def test_no_pictures_give_no_rows(folders):
    found = load(folders["clip"]).similarities(iter([]), TEXTS)
    assert found.shape == (0, len(TEXTS)) and found.dtype == np.float32


def test_half_precision_is_near_and_its_logits_are_float32(folders):
    expected = load(folders["clip"]).similarities(pictures(), TEXTS)
    found = load(folders["clip"], dtype="bfloat16").similarities(pictures(), TEXTS)
    assert found.dtype == np.float32
    assert 0 < difference(found, expected) < 5  # of 100


def test_numbers_beyond_float16_are_an_error_and_not_nan(copy):
    folder = copy()
    weights = load_file(folder / "model.safetensors")
    save_file(
        {key: value * (1e6 if "visual" in key else 1) for key, value in weights.items()}, folder / "model.safetensors"
    )
    with pytest.raises(OptionError, match="beyond float16; use float32"):
        load(folder, dtype="float16").similarities(pictures(), ["a cat"])


# ---------------------------------------------------------------------------------------- texts


def watch_texts(model):
    """The shapes of the token arrays that the text network is given."""
    shapes, inner = [], model._module.get_text_features

    def watched(input_ids):
        shapes.append(tuple(input_ids.shape))
        return inner(input_ids=input_ids)

    model._module.get_text_features = watched
    return shapes


def test_texts_are_encoded_once_for_all_pictures_and_calls(folders):
    model = load(folders["clip"], batch=2)
    shapes = watch_texts(model)
    first = model.similarities(pictures(), TEXTS)
    again = model.similarities(pictures()[:3], tuple(TEXTS))
    assert len(shapes) == 1 and shapes[0][0] == len(TEXTS)
    assert difference(first[:3], again) < 1e-4
    model.similarities(pictures()[:1], TEXTS[:2])
    assert len(shapes) == 2


def test_only_the_last_few_lists_of_texts_are_kept(folders):
    model = load(folders["clip"])
    shapes = watch_texts(model)
    lists = [[f"car {number}"] for number in range(9)]
    for texts in lists:
        model.similarities(pictures()[:1], texts)
    assert len(shapes) == 9
    model.similarities(pictures()[:1], lists[1])
    assert len(shapes) == 9, "kept: eight lists"
    model.similarities(pictures()[:1], lists[0])
    assert len(shapes) == 10, "the oldest was dropped"


def test_threads_share_one_model_and_encode_a_list_once(folders):
    model = load(folders["clip"], batch=2)
    expected = model.similarities(pictures(), TEXTS)
    model = load(folders["clip"], batch=2)
    shapes = watch_texts(model)
    barrier = threading.Barrier(4)

    def ask(number):
        barrier.wait()
        return model.similarities(pictures()[number:], TEXTS)

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(ask, range(4)))
    assert len(shapes) == 1
    for number, each in enumerate(found):
        assert difference(each, expected[number:]) < 1e-4


@pytest.mark.parametrize("texts", [[], (), [""], ["a cat", " \n"], ["a cat", None], "a cat", ["\ud800x"], 5], ids=repr)
def test_texts_that_are_none_are_refused(folders, texts):
    with pytest.raises(OptionError, match="[Tt]ext"):
        load(folders["clip"]).similarities(pictures()[:1], texts)


def test_a_text_of_which_a_tokenizer_keeps_nothing_is_refused(folders):
    with pytest.raises(OptionError, match="holds nothing that"):
        load(folders["siglip"]).similarities(pictures()[:1], ["?!"])
    load(folders["clip"]).similarities(pictures()[:1], ["?!"])  # CLIP reads these


def test_a_text_of_unknown_letters_is_said(folders):
    said = []
    for kind in ("siglip", "siglip2"):
        load(folders[kind], say=said.append).similarities(pictures()[:1], ["a cat", "狗 狗"])
    assert len(said) == 2 and all("knows nothing of the text '狗 狗'" in each for each in said)


@pytest.mark.parametrize("kind", ["clip", "siglip", "siglip2"])
def test_a_text_that_is_too_long_is_cut_at_a_word_and_that_is_said(folders, kind):
    said = []
    model = load(folders[kind], say=said.append)
    words = ["car", "red"] * 20
    found = model.similarities(pictures(), [" ".join(words)])
    assert len(said) == 1 and "'car red car" in said[0] and f"{tiny_clip.LIMIT} tokens" in said[0]
    kept = int(said[0].split("only its first ")[1].split(" ")[0])
    beginning = " ".join(words)[:kept]
    assert beginning.split(" ") == words[: len(beginning.split(" "))] and kept > 10
    assert len(model._reader.pieces(beginning)) <= model._reader.room
    assert len(model._reader.pieces(" ".join(words[: len(beginning.split(" ")) + 1]))) > model._reader.room
    assert difference(found, model.similarities(pictures(), [beginning])) < 1e-4
    assert len(said) == 1, "what fits is not spoken of"


def test_a_text_of_exactly_the_limit_is_not_cut(folders):
    said = []
    model = load(folders["clip"], say=said.append)
    model.similarities(pictures()[:1], [" ".join(["car"] * (tiny_clip.LIMIT - 2))])
    assert not said
    model.similarities(pictures()[:1], [" ".join(["car"] * (tiny_clip.LIMIT - 1))])
    assert len(said) == 1


@pytest.mark.parametrize(
    "word", ["车" * 50, "x" * 3000, "e\u0301" * 40, "👩\u200d🚒" * 20], ids=["cjk", "x", "accents", "emoji"]
)
def test_a_word_longer_than_the_limit_is_cut_between_characters(folders, word):
    said = []
    model = load(folders["clip"], say=said.append)
    model.similarities(pictures()[:1], [f"a {word}"])
    kept = f"a {word}"[: int(said[0].split("only its first ")[1].split(" ")[0])]
    assert len(kept) > 4 and kept.encode("utf-8").decode("utf-8") == kept
    assert not kept.endswith(("\u200d", "e"))
    assert len(model._reader.pieces(kept)) <= model._reader.room


def test_a_cut_warns_unless_told_otherwise(folders):
    with pytest.warns(UserWarning, match="is longer than the 16 tokens that .* reads; only its first"):
        load(folders["clip"]).similarities(pictures()[:1], ["car " * 100])


def test_spaces_and_line_breaks_do_not_matter(folders):
    found = load(folders["siglip2"]).similarities(pictures(), [" red\n  car ", "red car"])
    assert np.array_equal(found[:, 0], found[:, 1])


def test_siglip_reads_texts_without_case_and_punctuation():
    assert canonical("A  T-shirt, (RED)!") == "a tshirt red"


def test_old_tokenizer_files_give_the_same_tokens(copy, folders):
    folder = copy()
    (folder / "tokenizer.json").unlink()
    texts = ["A red car's 42 trees", "狗 naïve"]
    found = load(folder).similarities(pictures(), texts)
    assert np.array_equal(found, load(folders["clip"]).similarities(pictures(), texts))


# ---------------------------------------------------------------------------------------- files


def test_facts_say_what_was_loaded(folders):
    facts = load(folders["clip"], dtype="bfloat16").facts()
    digest = hashlib.sha256((folders["clip"] / "model.safetensors").read_bytes()).hexdigest()
    assert facts == {
        "model": str(folders["clip"]),
        "kind": "clip",
        "revision": None,
        "weights_sha256": digest,
        "licence": None,
        "dtype": "bfloat16",
        "device": "cpu",
    }
    json.dumps(facts)


def test_pickled_weights_with_position_ids_give_the_same(folders, tmp_path):
    folder = tiny_clip.write_clip(tmp_path / "pickled", pickled=True)
    assert not (folder / "model.safetensors").exists()
    expected = load(folders["clip"]).similarities(pictures(), TEXTS)
    assert np.array_equal(load(folder).similarities(pictures(), TEXTS), expected)


class Evil:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return (Path.touch, (self.marker,))


def test_a_pickle_with_code_is_not_run(copy, tmp_path):
    folder, marker = copy(), tmp_path / "ran"
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"logit_scale": Evil(marker)}))
    with pytest.raises(WeightsError):
        load(folder)
    assert not marker.exists()


def test_a_configuration_cannot_name_code(copy, folders):
    folder = copy()
    (folder / "evil.py").write_text("raise SystemExit('ran')")
    text = json.loads((folder / "config.json").read_text())["text_config"]
    names = {"attn_implementation": "evil/kernel", "_attn_implementation": "evil/kernel"}
    remote = {"auto_map": {"AutoModel": "evil.Evil", "AutoConfig": "evil.Evil"}, "quantization_config": {"a": 1}}
    edit(folder / "config.json", text_config={**text, **names}, **names, **remote)
    model = load(folder)
    assert "kernel" not in str(model._module.config._attn_implementation)
    expected = load(folders["clip"]).similarities(pictures(), TEXTS)
    assert np.array_equal(model.similarities(pictures(), TEXTS), expected)


def split(folder, names=("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")):
    """Weights in two parts with an index, as large models are published."""
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    places = {key: names[number % 2] for number, key in enumerate(sorted(weights))}
    for name in names:
        save_file({key: weights[key] for key, place in places.items() if place == name}, folder / name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))


def test_weights_in_parts_are_put_together(copy, folders):
    folder = copy()
    split(folder)
    expected = load(folders["clip"]).similarities(pictures(), TEXTS)
    assert np.array_equal(load(folder).similarities(pictures(), TEXTS), expected)
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(WeightsError, match="names the part model-00002-of-00002.safetensors, which is not in"):
        load(folder)


def test_an_index_cannot_point_out_of_its_folder(copy, folders):
    folder = copy()
    (folder / "model.safetensors").unlink()
    place = f"../../{folders['clip'].name}/model.safetensors"
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"logit_scale": place}}))
    with pytest.raises(WeightsError, match="which is not in"):
        load(folder)


def rewrite(folder, change):
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors")


def damage_json(name):
    return lambda folder: (folder / name).write_text("{'")


BROKEN = {
    "no config": (lambda f: (f / "config.json").unlink(), "has no config.json; accepted is a folder as the hub"),
    "config damaged": (damage_json("config.json"), "config.json is not a JSON file"),
    "config a list": (lambda f: (f / "config.json").write_text("[]"), "must hold a JSON object, got list"),
    "other kind": (lambda f: edit(f / "config.json", model_type="bert"), "'bert'; accepted are clip, siglip, siglip2"),
    "no kind": (lambda f: edit(f / "config.json", model_type=None), "accepted are clip, siglip, siglip2"),
    "half a model": (lambda f: edit(f / "config.json", model_type="clip_text_model"), "accepted are clip"),
    "text_config a list": (lambda f: edit(f / "config.json", text_config=[1]), "has no object text_config"),
    "a billion layers": (
        lambda f: edit(f / "config.json", vision_config={"num_hidden_layers": 10**9}),
        "1000000000 as num_hidden_layers; accepted are 1 to 500",
    ),
    "odd heads": (
        lambda f: edit(f / "config.json", text_config={"hidden_size": 16, "num_attention_heads": 5}),
        "describes no clip network",
    ),
    "odd activation": (
        lambda f: edit(f / "config.json", text_config={"hidden_act": "os.system"}),
        "describes no clip network",
    ),
    "no processor": (lambda f: (f / "preprocessor_config.json").unlink(), "has no preprocessor_config.json"),
    "other picture size": (
        lambda f: edit(f / "preprocessor_config.json", crop_size=64, size=64),
        r"makes \(64, 64\) of 3 colours, but the network takes \(32, 32\)",
    ),
    "no tokenizer": (
        lambda f: [(f / name).unlink() for name in ("tokenizer.json", "vocab.json")],
        "has no tokenizer; accepted are tokenizer.json",
    ),
    "tokenizer damaged": (damage_json("tokenizer.json"), "tokenizer .* is damaged"),
    "tokenizer of another model": (
        lambda f: edit(f / "tokenizer_config.json", bos_token="<start>"),
        "has no piece '<start>'",
    ),
    "tokens beyond the network": (
        lambda f: edit(f / "config.json", text_config={"vocab_size": 100}),
        "does not belong to the network: it has the id",
    ),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "has no weights that can be read; accepted are"),
    "weights damaged": (
        lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:-100]),
        "damaged or incomplete",
    ),
    "weights of Git LFS": (
        lambda f: (f / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n"),
        "Git LFS pointer",
    ),
    "key missing": (
        lambda f: rewrite(f, lambda w: w.pop("visual_projection.weight")),
        r"1 missing \(first: visual_projection.weight\)",
    ),
    "key unexpected": (
        lambda f: rewrite(f, lambda w: w.update(extra=torch.zeros(2))),
        r"1 unexpected \(first: extra\)",
    ),
    "misshapen": (
        lambda f: rewrite(f, lambda w: w.update({"text_projection.weight": torch.zeros(24, 17)})),
        r"1 misshapen \(first: text_projection.weight is \(24, 17\) instead of \(24, 16\)\)",
    ),
    "not finite": (
        lambda f: rewrite(f, lambda w: w["visual_projection.weight"].fill_(float("nan"))),
        "computes nothing but NaN; its weights are damaged",
    ),
}


@pytest.mark.parametrize("how", BROKEN)
def test_a_broken_checkpoint_says_what_is_wrong(copy, how):
    folder = copy()
    breaking, message = BROKEN[how]
    breaking(folder)
    with pytest.raises(WeightsError, match=message) as caught:
        load(folder).similarities(pictures()[:1], ["a cat"])
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600


def test_an_end_of_text_that_the_network_does_not_know_is_refused(copy):
    folder = copy()
    text = json.loads((folder / "config.json").read_text())["text_config"]
    edit(folder / "config.json", text_config={**text, "eos_token_id": 7})
    with pytest.raises(WeightsError, match="but the network expects 7"):
        load(folder)


def test_an_early_configuration_ends_texts_at_the_highest_id(copy, folders):
    folder = copy()
    text = json.loads((folder / "config.json").read_text())["text_config"]
    edit(folder / "config.json", text_config=None, text_config_dict={**text, "eos_token_id": 2})
    expected = load(folders["clip"]).similarities(pictures(), TEXTS)
    assert difference(load(folder).similarities(pictures(), TEXTS), expected) < 1e-5


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("nowhere", UnknownModelError, "no folder 'nowhere', and it is not a name of the hub"),
        ("./no/where", UnknownModelError, "no folder './no/where'"),
        ("/no/where/at/all", UnknownModelError, "OWNER/NAME"),
        (Path("owner/name"), UnknownModelError, "no folder 'owner/name'"),
        ("", OptionError, "a folder or a name of the hub"),
    ],
    ids=repr,
)
def test_what_is_neither_folder_nor_name_is_refused(name, error, message):
    with pytest.raises(error, match=message):
        load(name)


def test_a_file_instead_of_its_folder_is_refused(folders):
    with pytest.raises(WeightsError, match="is a file; give the folder that it is in"):
        load(folders["clip"] / "model.safetensors")


@pytest.mark.parametrize("options", [{"batch": 0}, {"batch": 2.5}, {"batch": True}, {"dtype": "int8"}], ids=repr)
def test_senseless_options_are_refused(folders, options):
    with pytest.raises(OptionError, match=next(iter(options))):
        load(folders["clip"], **options)


def test_without_transformers_the_install_line_is_said(folders, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'anysam\[text\]'"):
        load(folders["clip"])


# ---------------------------------------------------------------------------------------- licences and the hub


CARD = "---\nlanguage: en\nlicense: cc-by-nc-4.0\ntags:\n- vision\n---\n# A model\nlicense: mit\n"


def test_the_licence_of_the_model_card_is_kept_to(copy, capsys):
    folder = copy()
    (folder / "README.md").write_text(CARD)
    with pytest.raises(LicenceError, match="under the licence 'cc-by-nc-4.0', and allowed are only mit"):
        load(folder, allow="mit")
    assert load(folder, allow="mit,cc-by-nc-4.0").facts()["licence"] == "cc-by-nc-4.0"
    assert "non-commercial" in capsys.readouterr().err
    (folder / "README.md").write_text("# A model\nlicense: cc-by-nc-4.0\n")
    assert load(folder, allow="mit").facts()["licence"] is None, "a card that says nothing refuses nothing"


COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """The part of the hub's interface that a download needs, on this machine. Notes which files were asked for."""

    def __init__(self, folder, name):
        self.folder, self.name, self.asked = folder, name, []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_):
                pass

            def do_HEAD(self):
                hub.answer(self, body=False)

            def do_GET(self):
                hub.answer(self, body=True)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def answer(self, request, body):
        path = request.path.split("?")[0]
        files = sorted(file.name for file in self.folder.iterdir())
        if path.startswith(f"/api/models/{self.name}/tree/"):
            form = [{"type": "file", "path": name, "size": (self.folder / name).stat().st_size, "oid": "a" * 40}
                    for name in files]  # fmt: skip
        elif path in (f"/api/models/{self.name}", f"/api/models/{self.name}/revision/main"):
            form = {"id": self.name, "sha": COMMIT, "siblings": [{"rfilename": name} for name in files]}
        elif path.startswith(f"/{self.name}/resolve/") and path.rpartition("/")[2] in files:
            return self.send_file(request, self.folder / path.rpartition("/")[2], body)
        else:
            headers = {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"}
            return self.send(request, 404, b"{}", headers, body)
        self.send(request, 200, json.dumps(form).encode(), {"Content-Type": "application/json"}, body)

    def send_file(self, request, file, body):
        if body:
            self.asked.append(file.name)
        content = file.read_bytes()
        headers = {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "X-Repo-Commit": COMMIT}
        self.send(request, 200, content, headers, body)

    def send(self, request, status, content, headers, body):
        request.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            request.send_header(name, value)
        request.end_headers()
        if body:
            request.wfile.write(content)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    monkeypatch.setenv("ANYSAM_HOME", str(tmp_path / "home"))
    folder = tiny_clip.write_clip(tmp_path / "published", pickled=True)
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    (folder / "flax_model.msgpack").write_bytes(b"large")
    (folder / "tf_model.h5").write_bytes(b"large")
    hub = Hub(folder, DEFAULT)
    monkeypatch.setenv("HF_ENDPOINT", hub.address)
    yield hub
    hub.server.shutdown()
    hub.server.server_close()


def test_the_default_is_fetched_once_and_then_found_without_a_network(hub, folders, monkeypatch, tmp_path):
    told = []
    model = load_image_text(device="cpu", progress=lambda done, whole: told.append((done, whole)))
    assert sorted(hub.asked) == sorted(
        "README.md config.json merges.txt preprocessor_config.json pytorch_model.bin tokenizer.json "
        "tokenizer_config.json vocab.json".split()
    )
    assert model.facts()["model"] == DEFAULT and model.facts()["revision"] == COMMIT
    assert model.facts()["licence"] == "mit"
    expected = load(folders["clip"]).similarities(pictures(), TEXTS)
    assert np.array_equal(model.similarities(pictures(), TEXTS), expected)
    size = (hub.folder / "pytorch_model.bin").stat().st_size
    assert told[-1][0] >= size and [done for done, _ in told] == sorted(done for done, _ in told)
    assert (tmp_path / "home" / "hub").is_dir()
    hub.asked.clear()
    monkeypatch.setenv("ANYSAM_OFFLINE", "1")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert np.array_equal(load(DEFAULT).similarities(pictures(), TEXTS), expected)
    assert not hub.asked


def test_safetensors_are_preferred_to_a_pickle(hub):
    shutil.copy(hub.folder / "pytorch_model.bin", hub.folder / "kept.bin")
    save_file(torch.load(hub.folder / "pytorch_model.bin"), hub.folder / "model.safetensors")
    load(DEFAULT)
    assert "model.safetensors" in hub.asked and "pytorch_model.bin" not in hub.asked and "kept.bin" not in hub.asked


def test_weights_in_parts_are_fetched_by_their_index(hub, folders):
    weights = torch.load(hub.folder / "pytorch_model.bin")
    save_file(weights, hub.folder / "model.safetensors")
    split(hub.folder)
    found = load(DEFAULT).similarities(pictures(), TEXTS)
    assert np.array_equal(found, load(folders["clip"]).similarities(pictures(), TEXTS))
    assert "model-00002-of-00002.safetensors" in hub.asked and "pytorch_model.bin" not in hub.asked


def test_a_licence_that_is_not_allowed_is_refused_before_the_weights_are_fetched(hub):
    with pytest.raises(LicenceError, match="licence 'mit'"):
        load(DEFAULT, allow="apache-2.0")
    assert "pytorch_model.bin" not in hub.asked


def test_what_the_cache_lacks_is_fetched(hub, tmp_path):
    """Other programs share the hub's cache, and may have fetched only a part of a repository."""
    load(DEFAULT)
    weights = next((tmp_path / "home").rglob("pytorch_model.bin"))
    weights.resolve().unlink()
    weights.unlink(missing_ok=True)
    hub.asked.clear()
    load(DEFAULT)
    assert hub.asked == ["pytorch_model.bin"]


def test_a_name_that_the_hub_lacks_is_unknown(hub):
    with pytest.raises(UnknownModelError, match="no folder 'nobody/nothing', and the hub has no model of that name"):
        load("nobody/nothing")


def test_a_repository_of_another_format_is_refused_before_a_download(hub):
    (hub.folder / "pytorch_model.bin").unlink()
    with pytest.raises(WeightsError, match="the hub has no model.safetensors or pytorch_model.bin of it"):
        load(DEFAULT)
    assert not hub.asked


def test_without_a_network_it_is_said_how_to_bring_the_files(hub, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    message = r"could not be fetched .*hf download openai/clip-vit-base-patch32 --local-dir FOLDER.* give its path"
    with pytest.raises(DownloadError, match=message) as caught:
        load(DEFAULT)
    assert "\n" not in str(caught.value)
    monkeypatch.setenv("ANYSAM_OFFLINE", "1")
    with pytest.raises(DownloadError, match="not in the cache and ANYSAM_OFFLINE forbids connecting"):
        load(DEFAULT)


def test_a_model_may_be_given_another_batch(folders):
    model = load(folders["clip"])
    assert replace(model, batch=1).similarities(pictures(), TEXTS).shape == (len(SIZES), len(TEXTS))
