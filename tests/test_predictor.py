"""encode and predict: mixed prompts, odd images, saved encodings, threads. A tiny random SAM stands for every model."""

import dataclasses
import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import anysam
from anysam import EncodedImage, Model, Prediction, Prompt, prompting
from anysam.catalogue import find_variant
from anysam.checkpoints import save_checkpoint
from anysam.errors import ImageError, OptionError, OutputError, PromptError
from anysam.models import sam
from anysam.models.layers import move
from anysam.models.sam import VitConfig, build_sam
from anysam.preprocess import Preprocess

TINY = VitConfig(
    embed_dim=32, depth=2, num_heads=2, global_blocks=(1,), image_size=64, window_size=3, mlp_ratio=2, out_channels=32
)
PREPROCESS = Preprocess(name="tiny_64", long_side=64, pad_to=64)


def tiny_model(seed: int = 0, dtype: torch.dtype = torch.float32) -> Model:
    network = build_sam(TINY, PREPROCESS).eval()
    generator = torch.Generator().manual_seed(seed)
    for value in network.state_dict().values():
        torch.nn.init.normal_(value, std=0.3, generator=generator)
    return Model("sam_vit_b", move(network, "cpu", dtype), torch.device("cpu"), dtype, f"{seed:064d}")


@pytest.fixture(scope="module")
def model() -> Model:
    return tiny_model()


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (48, 80, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def encoded(model: Model, image: np.ndarray) -> EncodedImage:
    return model.encode(image)


def disc() -> np.ndarray:
    y, x = np.mgrid[:48, :80]
    return (y - 20) ** 2 + (x - 50) ** 2 < 150


def kinds(model: Model, encoded: EncodedImage) -> dict[str, Prompt]:
    earlier = model.predict(encoded, Prompt(points=[[30, 20]]))
    return {
        "point": Prompt(points=[[30, 20]]),
        "another point": Prompt(points=[[70, 40]], labels=[1]),
        "box": Prompt(box=[10, 5, 60, 40]),
        "three points and a negative": Prompt(points=[[5, 5], [9, 9], [40, 8], [70, 40]], labels=[1, 1, 1, 0]),
        "box and point": Prompt(points=[[20, 20]], labels=[0], box=[10, 5, 60, 40]),
        "mask": Prompt(mask=disc()),
        "polygon": Prompt(polygon=[[10, 5], [60, 8], [30, 40]]),
        "scribble": Prompt(scribble=[[5, 5], [60, 40]]),
        "logits": Prompt(low_res_logits=earlier.low_res_logits[earlier.best]),
        "logits and point": Prompt(points=[[30, 20]], low_res_logits=earlier.low_res_logits[0]),
    }


def assert_same(ours: Prediction, expected: Prediction) -> None:
    np.testing.assert_allclose(ours.low_res_logits, expected.low_res_logits, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(ours.iou_predictions, expected.iou_predictions, rtol=1e-4, atol=1e-4)
    assert ours.masks.shape == expected.masks.shape
    assert (ours.masks != expected.masks).mean() < 1e-3


def test_prediction_is_at_image_size_in_plain_types(model: Model, encoded: EncodedImage) -> None:
    prediction = model.predict(encoded, Prompt(points=[[30, 20]]))
    assert prediction.masks.shape == (3, 48, 80)
    assert prediction.masks.dtype == np.bool_
    assert prediction.iou_predictions.shape == (3,)
    assert prediction.iou_predictions.dtype == np.float32
    assert prediction.low_res_logits.shape == (3, 16, 16)
    assert prediction.low_res_logits.dtype == np.float32
    assert 0 < prediction.masks.mean() < 1


def test_mixed_prompts_in_one_call_equal_one_by_one(model: Model, encoded: EncodedImage) -> None:
    prompts = list(kinds(model, encoded).values())
    together = model.predict(encoded, prompts)
    assert isinstance(together, list)
    for prompt, prediction in zip(prompts, together, strict=True):
        assert_same(prediction, model.predict(encoded, prompt))
    logits = [p.low_res_logits[0] for p in together]
    assert all(not np.allclose(a, b, atol=1e-3) for i, a in enumerate(logits) for b in logits[:i])


def test_more_prompts_than_fit_one_batch_keep_their_order(model: Model, encoded: EncodedImage) -> None:
    corners = np.random.default_rng(1).uniform(0, 40, (21, 2))
    prompts = [Prompt(points=[xy]) if i % 2 else Prompt(box=[*xy, *(xy + 7)]) for i, xy in enumerate(corners)]
    for prompt, prediction in zip(prompts, model.predict(encoded, prompts), strict=True):
        assert_same(prediction, model.predict(encoded, prompt))


def test_no_prompts_give_no_predictions(model: Model, encoded: EncodedImage) -> None:
    assert model.predict(encoded, []) == []


def test_three_masks_for_a_lone_point_only_unless_asked(model: Model, encoded: EncodedImage) -> None:
    prompts = kinds(model, encoded)
    counts = {name: len(model.predict(encoded, prompt).masks) for name, prompt in prompts.items()}
    assert counts == {name: 3 if name in ("point", "another point") else 1 for name in prompts}
    assert len(model.predict(encoded, prompts["box"], multimask=True).masks) == 3
    assert len(model.predict(encoded, prompts["point"], multimask=False).masks) == 1


@pytest.mark.parametrize("size", [(1, 1), (33, 1500), (1500, 33), (1, 300), (64, 64), (7, 3)])
def test_images_of_any_size(model: Model, size: tuple[int, int]) -> None:
    height, width = size
    encoded = model.encode(np.full((height, width, 3), 90, dtype=np.uint8))
    assert encoded.original_size == size
    prompts = [
        Prompt(points=[[width / 2, height / 2]]),
        Prompt(box=[0, 0, width, height]),
        Prompt(mask=np.ones(size, dtype=bool)),
    ]
    assert [p.masks.shape[1:] for p in model.predict(encoded, prompts)] == [size] * 3


def test_array_pil_path_and_bytes_are_the_same_image(model: Model, image: np.ndarray, tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    Image.fromarray(image).save(path)
    expected = model.encode(image).features["image_embeddings"]
    for source in (Image.fromarray(image), path, str(path), path.read_bytes()):
        assert torch.equal(model.encode(source).features["image_embeddings"], expected)


def test_masks_do_not_depend_on_how_many_are_upscaled_at_once(
    model: Model, encoded: EncodedImage, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = model.predict(encoded, Prompt(points=[[30, 20]]))
    sizes = []
    upscale = prompting.upscale_logits
    monkeypatch.setattr(prompting, "_LOGITS_AT_ONCE", 2 * 64 * 64)
    monkeypatch.setattr(prompting, "upscale_logits", lambda *given: sizes.append(given[0].shape[1]) or upscale(*given))
    assert np.array_equal(model.predict(encoded, Prompt(points=[[30, 20]])).masks, expected.masks)
    assert sizes == [2, 1]


def test_predictions_own_their_memory(model: Model, encoded: EncodedImage) -> None:
    predictions = model.predict(encoded, [Prompt(points=[[30, 20]]), Prompt(points=[[60, 40]])])
    for prediction in predictions:
        for array in (prediction.masks, prediction.low_res_logits, prediction.iou_predictions):
            assert array.base is None


def test_threads_share_a_model(model: Model, image: np.ndarray, encoded: EncodedImage) -> None:
    prompts = list(kinds(model, encoded).values())
    expected = [model.predict(encoded, prompt) for prompt in prompts]

    def job(i: int) -> Prediction:
        own = model.encode(image) if i % 3 else encoded
        return model.predict(own, prompts[i % len(prompts)])

    with ThreadPoolExecutor(8) as pool:
        for i, prediction in enumerate(pool.map(job, range(40))):
            assert_same(prediction, expected[i % len(prompts)])


def test_results_need_no_gradient_bookkeeping(model: Model, encoded: EncodedImage) -> None:
    assert any(parameter.requires_grad for parameter in model.network.parameters())
    assert not encoded.features["image_embeddings"].requires_grad


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_gives_float32_results_near_the_same(image: np.ndarray, dtype: torch.dtype) -> None:
    model = tiny_model(dtype=dtype)
    encoded = model.encode(image)
    assert encoded.features["image_embeddings"].dtype == dtype
    prediction = model.predict(encoded, Prompt(box=[10, 5, 60, 40]))
    assert prediction.low_res_logits.dtype == prediction.iou_predictions.dtype == np.float32
    exact = tiny_model()
    expected = exact.predict(exact.encode(image), Prompt(box=[10, 5, 60, 40]))
    assert np.corrcoef(prediction.low_res_logits.ravel(), expected.low_res_logits.ravel())[0, 1] > 0.99


# Mask prompts


def test_earlier_logits_and_binary_masks_change_the_answer(model: Model, encoded: EncodedImage) -> None:
    prompts = kinds(model, encoded)
    logits = [model.predict(encoded, prompts[n]).low_res_logits[0] for n in ("point", "logits and point", "logits")]
    logits.append(model.predict(encoded, Prompt(points=[[30, 20]], mask=disc())).low_res_logits[0])
    assert all(not np.allclose(a, b, atol=1e-2) for i, a in enumerate(logits) for b in logits[:i])


def test_logits_of_another_size_are_refused_with_both_sizes(model: Model, encoded: EncodedImage) -> None:
    with pytest.raises(PromptError, match=r"must be \(16, 16\) .* got \(256, 256\)"):
        model.predict(encoded, Prompt(points=[[1, 1]], low_res_logits=np.zeros((256, 256))))


# Refusals


def test_bad_prompt_of_many_is_named(model: Model, encoded: EncodedImage) -> None:
    good, bad = Prompt(points=[[1, 1]]), Prompt(points=[[81, 1]])
    with pytest.raises(PromptError, match=r"^Prompt 2 of 3: The point 81,1 lies outside"):
        model.predict(encoded, [good, bad, good])
    with pytest.raises(PromptError, match=r"^The point 81,1 lies outside"):
        model.predict(encoded, bad)


def test_something_else_than_a_prompt_is_refused(model: Model, encoded: EncodedImage) -> None:
    with pytest.raises(PromptError, match="must be an anysam.Prompt, got list"):
        model.predict(encoded, [[30, 20]])
    with pytest.raises(PromptError, match="or a list of them, got NoneType"):
        model.predict(encoded, None)  # type: ignore[call-overload]


def test_an_image_in_the_place_of_its_encoding_is_refused(model: Model, image: np.ndarray) -> None:
    with pytest.raises(OptionError, match="got ndarray; encode the image first"):
        model.predict(image, Prompt(points=[[1, 1]]))  # type: ignore[arg-type]


def test_a_model_is_a_name_or_a_path() -> None:
    with pytest.raises(OptionError, match="got int"):
        anysam.load(3)  # type: ignore[arg-type]


def limited(monkeypatch: pytest.MonkeyPatch, **changes: object) -> None:
    """Make the tiny model's row say that it takes less."""
    row = dataclasses.replace(find_variant("sam_vit_b"), **changes)  # type: ignore[arg-type]
    monkeypatch.setattr(prompting, "find_variant", lambda name: row)


def test_kind_the_model_does_not_take_is_an_error(
    model: Model, encoded: EncodedImage, monkeypatch: pytest.MonkeyPatch
) -> None:
    limited(monkeypatch, prompts=("box",))
    model.predict(encoded, Prompt(box=[1, 1, 5, 5]))
    with pytest.raises(PromptError, match="sam_vit_b takes no point prompt; it takes box"):
        model.predict(encoded, Prompt(points=[[1, 1]]))


def test_mask_for_a_model_that_takes_none_is_answered_by_the_candidate_most_like_it(
    model: Model, encoded: EncodedImage, monkeypatch: pytest.MonkeyPatch
) -> None:
    limited(monkeypatch, prompts=("point", "box"))
    derived = Prompt(points=[[50.5, 20.5]], box=[38, 8, 63, 33])  # the disc's centre and box
    candidates = [*model.predict(encoded, derived, True).masks, *model.predict(encoded, derived, False).masks]
    best = max(candidates, key=lambda mask: (mask & disc()).sum() / (mask | disc()).sum())
    chosen, box = model.predict(encoded, [Prompt(mask=disc()), Prompt(box=[1, 1, 5, 5])])
    assert chosen.masks.shape == (1, 48, 80)
    assert np.array_equal(chosen.masks[0], best)
    assert len(model.predict(encoded, Prompt(mask=disc()), multimask=True).masks) == 3
    assert_same(box, model.predict(encoded, Prompt(box=[1, 1, 5, 5])))


def test_earlier_logits_for_a_model_that_takes_none_are_read_as_the_mask_they_are(
    model: Model, encoded: EncodedImage, monkeypatch: pytest.MonkeyPatch
) -> None:
    earlier = model.predict(encoded, Prompt(box=[10, 5, 60, 40]))
    limited(monkeypatch, prompts=("point", "box"))
    by_logits = model.predict(encoded, Prompt(low_res_logits=earlier.low_res_logits[0]))
    assert_same(by_logits, model.predict(encoded, Prompt(mask=earlier.masks[0])))
    with pytest.raises(PromptError, match="mark no pixel, and sam_vit_b takes no mask prompt"):
        model.predict(encoded, Prompt(low_res_logits=np.full((16, 16), -1.0)))


def test_more_points_than_the_model_takes_are_refused_not_dropped(
    model: Model, encoded: EncodedImage, monkeypatch: pytest.MonkeyPatch
) -> None:
    limited(monkeypatch, max_points=6)
    model.predict(encoded, Prompt(points=[[i, i] for i in range(6)]))
    with pytest.raises(PromptError, match="takes at most 6 points"):
        model.predict(encoded, [Prompt(points=[[1, 1]]), Prompt(points=[[i, i] for i in range(7)])])


def test_model_that_finds_nothing_by_itself_says_which_do(model: Model, encoded: EncodedImage) -> None:
    with pytest.raises(OptionError, match="finds no objects by itself; models that do are .*fastsam_s"):
        model.detect(encoded)


def test_encoding_of_another_model_weights_or_frame_is_refused(model: Model, encoded: EncodedImage) -> None:
    prompt = Prompt(points=[[1, 1]])
    for change, message in (
        ({"variant": "sam_vit_l"}, "encoded by sam_vit_l, but the model is sam_vit_b"),
        ({"weights_sha256": "f" * 64}, "other weights"),
        ({"preprocess": "another"}, "another preprocessing"),
    ):
        with pytest.raises(OptionError, match=message):
            model.predict(dataclasses.replace(encoded, **change), prompt)


# Saved encodings


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_saved_encoding_comes_back_bit_for_bit(image: np.ndarray, dtype: torch.dtype, tmp_path: Path) -> None:
    model = tiny_model(dtype=dtype)
    encoded = model.encode(image)
    more = {"odd": torch.tensor([[0.1, -0.0, float("inf"), 1e-42]]), "ints": torch.arange(6).reshape(1, 2, 3).mT}
    encoded = dataclasses.replace(encoded, features=encoded.features | more)
    encoded.save(tmp_path / "photo.safetensors")
    loaded = EncodedImage.load(tmp_path / "photo.safetensors")
    assert loaded.features.keys() == encoded.features.keys()
    for name, tensor in encoded.features.items():
        assert loaded.features[name].dtype == tensor.dtype
        assert torch.equal(loaded.features[name], tensor)
    for field in ("original_size", "input_size", "variant", "preprocess", "weights_sha256"):
        assert getattr(loaded, field) == getattr(encoded, field)
    prompt = Prompt(points=[[30, 20]])
    expected = model.predict(encoded, prompt)
    assert np.array_equal(model.predict(loaded, prompt).low_res_logits, expected.low_res_logits)


def test_saved_encoding_is_refused_by_other_weights(encoded: EncodedImage, tmp_path: Path) -> None:
    encoded.save(tmp_path / "photo.safetensors")
    with pytest.raises(OptionError, match="other weights"):
        tiny_model(seed=1).predict(EncodedImage.load(tmp_path / "photo.safetensors"), Prompt(points=[[1, 1]]))


def test_files_that_are_no_encoding_are_refused(encoded: EncodedImage, tmp_path: Path) -> None:
    path = tmp_path / "photo.safetensors"
    with pytest.raises(ImageError, match="no encoded image"):
        EncodedImage.load(path)
    encoded.save(path)
    whole = path.read_bytes()
    for content in (b"", b"not safetensors at all", whole[: len(whole) // 2], whole[:20]):
        path.write_bytes(content)
        with pytest.raises(ImageError, match="photo.safetensors' is not a readable encoded image"):
            EncodedImage.load(path)
    with pytest.raises(ImageError, match="not a readable encoded image"):
        EncodedImage.load(tmp_path)
    save_checkpoint(path, {"weight": torch.zeros(1)}, {"variant": "sam_vit_b"})
    with pytest.raises(ImageError, match="not an encoded image of this version: its format is 'anysam'"):
        EncodedImage.load(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"original_size": (0, 80)}, "damaged"),
        ({"input_size": (38.5, 64)}, "damaged"),
        ({"features": {"other": torch.zeros(1, 2)}}, "features of one image"),
        ({"features": {"image_embeddings": torch.zeros(2, 32, 4, 4)}}, "features of one image"),
    ],
)
def test_encodings_with_impossible_contents_are_refused(
    encoded: EncodedImage, change: dict, message: str, tmp_path: Path
) -> None:
    dataclasses.replace(encoded, **change).save(tmp_path / "photo.safetensors")
    with pytest.raises(ImageError, match=message):
        EncodedImage.load(tmp_path / "photo.safetensors")


def test_encoding_is_not_loaded_onto_a_device_that_is_not_there(encoded: EncodedImage, tmp_path: Path) -> None:
    encoded.save(tmp_path / "photo.safetensors")
    with pytest.raises(OptionError, match="'gpu' cannot be used"):
        EncodedImage.load(tmp_path / "photo.safetensors", device="gpu")


def test_encoding_that_cannot_be_saved_is_an_output_error(encoded: EncodedImage, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="photo.safetensors"):
        encoded.save(tmp_path / "missing" / "photo.safetensors")


# load


@pytest.fixture
def tiny_weights(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A checkpoint for a SAM that is tiny but has the published input frame."""
    monkeypatch.setitem(sam.SIZES, "vit_b", dataclasses.replace(TINY, image_size=1024))
    path = tmp_path / "weights.safetensors"
    save_checkpoint(path, sam.build("vit_b").state_dict(), {"variant": "sam_vit_b"})
    return path


def test_load_gives_a_model_ready_to_use(tiny_weights: Path, image: np.ndarray) -> None:
    model = anysam.load(tiny_weights, variant="sam_vit_b", device="cpu")
    assert (model.variant, model.device.type, model.dtype) == ("sam_vit_b", "cpu", torch.float32)
    assert model.weights_sha256 == hashlib.sha256(tiny_weights.read_bytes()).hexdigest()
    assert not model.network.training
    assert not any(parameter.requires_grad for parameter in model.network.parameters())
    prediction = model.predict(model.encode(image), Prompt(box=[10, 5, 60, 40]))
    assert prediction.masks.shape == (1, 48, 80)
    assert prediction.low_res_logits.shape == (1, 256, 256)


def test_load_takes_a_dtype_by_name_or_as_torch_has_it(tiny_weights: Path) -> None:
    for dtype in ("bfloat16", torch.bfloat16):
        model = anysam.load(str(tiny_weights), device="cpu", dtype=dtype)
        assert model.dtype == torch.bfloat16
        dtypes = {name.split(".")[0]: value.dtype for name, value in model.network.named_parameters()}
        assert dtypes.pop("image_encoder") == torch.bfloat16
        assert set(dtypes) == {"prompt_encoder", "mask_decoder"} and set(dtypes.values()) == {torch.float32}


@pytest.mark.parametrize("dtype", ["float99", "int8", torch.int8, torch.float64])
def test_load_refuses_other_dtypes(dtype: object) -> None:
    with pytest.raises(OptionError, match="dtype must be one of float32, float16, bfloat16, got"):
        anysam.load("sam_vit_b", dtype=dtype)


@pytest.mark.parametrize("device", ["gpu", "cuda:99", ""])
def test_load_refuses_devices_that_are_not_there(device: str) -> None:
    with pytest.raises(OptionError, match="cannot be used") as caught:
        anysam.load("sam_vit_b", device=device)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("multimask", ["yes", 1, []])
def test_multimask_is_true_false_or_none(model: Model, encoded: EncodedImage, multimask: object) -> None:
    with pytest.raises(OptionError, match="multimask must be True, False or None"):
        model.predict(encoded, Prompt(points=[[1, 1]]), multimask)


def test_an_encoding_of_the_wrong_size_is_refused(model: Model, encoded: EncodedImage) -> None:
    wrong = dataclasses.replace(encoded, input_size=(encoded.input_size[0] + 1, encoded.input_size[1]))
    with pytest.raises(OptionError, match="encode it again"):
        model.predict(wrong, Prompt(points=[[1, 1]]))
