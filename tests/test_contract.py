"""What every family keeps to, tried on a tiny instance of each with random weights."""

import dataclasses
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image

from anysam import EncodedImage, Model, Prediction, Prompt
from anysam.catalogue import VARIANTS
from anysam.errors import PromptError
from anysam.models import InstanceModel, PromptableModel, SelectingModel
from anysam.models.layers import fuse
from tiny_models import TINY, tiny_model

PROMPTABLE = [family for family in TINY if family != "object_aware"]
DETECTING = ["fast_sam", "object_aware"]
SIZE = (50, 70)


def disc() -> np.ndarray:
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    return (y - 20) ** 2 + (x - 40) ** 2 < 150


PROMPTS: dict[str, Callable[[], Prompt]] = {
    "point": lambda: Prompt(points=[[30, 20]]),
    "background point": lambda: Prompt(points=[[30, 20], [5, 5]], labels=[1, 0]),
    "box": lambda: Prompt(box=[10, 5, 60, 40]),
    "box and point": lambda: Prompt(box=[10, 5, 60, 40], points=[[12, 7]], labels=[0]),
    "mask": lambda: Prompt(mask=disc()),
    "mask and point": lambda: Prompt(mask=disc(), points=[[40, 20]]),
    "polygon": lambda: Prompt(polygon=[[10, 5], [60, 8], [30, 40]]),
    "scribble": lambda: Prompt(scribble=[[5, 5], [60, 40]]),
    "two scribbles": lambda: Prompt(scribble=[[5, 5], [60, 40]], scribble_negative=[[1, 45], [60, 45]]),
}

models: dict[str, Model] = {}


@pytest.fixture(params=list(TINY))
def model(request: pytest.FixtureRequest) -> Model:
    return models.setdefault(request.param, tiny_model(request.param))


@pytest.fixture(params=PROMPTABLE)
def promptable(request: pytest.FixtureRequest) -> Model:
    return models.setdefault(request.param, tiny_model(request.param))


def photo(size: tuple[int, int] = SIZE) -> np.ndarray:
    """A few bright ellipses on a dark gradient, (H, W, 3) uint8."""
    y, x = np.mgrid[: size[0], : size[1]]
    image = np.stack([x * 60 / size[1], y * 60 / size[0], 30 + 0 * x], axis=2)
    for i, (cy, cx) in enumerate(((0.4, 0.55), (0.8, 0.2), (0.2, 0.1))):
        image[((y - cy * size[0]) / size[0]) ** 2 + ((x - cx * size[1]) / size[1]) ** 2 < 0.03, i] = 230
    return image.astype(np.uint8)


def assert_same(ours: Prediction, expected: Prediction) -> None:
    np.testing.assert_allclose(ours.iou_predictions, expected.iou_predictions, rtol=1e-3, atol=1e-4)
    scale = max(float(np.abs(expected.low_res_logits).max()), 1e-6)
    np.testing.assert_allclose(ours.low_res_logits / scale, expected.low_res_logits / scale, atol=1e-4)
    assert ours.masks.shape == expected.masks.shape
    assert (ours.masks != expected.masks).mean() < 5e-3
    assert set(ours.extras) == set(expected.extras)
    for name, value in ours.extras.items():
        np.testing.assert_allclose(value, expected.extras[name], rtol=1e-3, atol=1e-3)


def assert_equal_features(ours: EncodedImage, expected: EncodedImage) -> None:
    assert set(ours.features) == set(expected.features)
    for name, value in ours.features.items():
        assert torch.equal(value, expected.features[name]), name


def test_every_family_of_the_catalogue_is_tried_here() -> None:
    assert {variant.family for variant in VARIANTS} == set(TINY)


def test_network_keeps_to_the_protocol_of_its_kind(model: Model) -> None:
    network = model.network
    assert isinstance(network, PromptableModel) != isinstance(network, InstanceModel)
    if isinstance(network, PromptableModel):
        assert network.multimask_default in ("single_point", "always", "never")


@pytest.mark.parametrize("kind", list(PROMPTS))
def test_every_kind_of_prompt_is_answered_at_the_size_of_the_image(promptable: Model, kind: str) -> None:
    encoded = promptable.encode(photo())
    for multimask in (None, True, False):
        prediction = promptable.predict(encoded, PROMPTS[kind](), multimask)
        assert prediction.masks.shape == (len(prediction.iou_predictions), *SIZE)
        assert np.isfinite(prediction.low_res_logits).all()
        assert np.isfinite(prediction.iou_predictions).all()
        if multimask is False:
            assert len(prediction.masks) == 1


def test_prompts_in_one_call_are_answered_as_one_by_one(promptable: Model) -> None:
    encoded = promptable.encode(photo())
    prompts = [make() for make in PROMPTS.values()] + [Prompt(points=[[9, 9]]), Prompt(box=[0, 0, 70, 50])]
    for multimask in (None, True):
        together = promptable.predict(encoded, prompts, multimask)
        assert len(together) == len(prompts)
        for prompt, prediction in zip(prompts, together, strict=True):
            assert_same(prediction, promptable.predict(encoded, prompt, multimask))


def test_earlier_logits_refine_or_are_refused_with_the_way_out(promptable: Model) -> None:
    encoded = promptable.encode(photo())
    earlier = promptable.predict(encoded, Prompt(box=[10, 5, 60, 40]))
    prompt = Prompt(low_res_logits=earlier.low_res_logits[earlier.best] + 1e-3, points=[[30, 20]])
    if isinstance(promptable.network, SelectingModel):
        with pytest.raises(PromptError, match="Prompt\\(mask=prediction.masks"):
            promptable.predict(encoded, prompt)
    elif (earlier.low_res_logits[earlier.best] > 0).any():
        assert promptable.predict(encoded, prompt).masks.shape[1:] == SIZE


def test_encoding_twice_gives_the_same(model: Model) -> None:
    assert_equal_features(model.encode(photo()), model.encode(photo()))


def test_two_threads_get_what_one_gets(model: Model) -> None:
    images = [photo(), photo((64, 40))]
    alone = [model.encode(image) for image in images]
    barrier = threading.Barrier(2)

    def work(i: int) -> list[tuple[EncodedImage, list[Prediction]]]:
        barrier.wait()
        done = []
        for _ in range(3):
            encoded = model.encode(images[i])
            found = (
                []
                if model.variant == "mobilesamv2_object_aware"
                else [
                    model.predict(encoded, Prompt(points=[[20, 20]])),
                    model.predict(encoded, Prompt(box=[5, 5, 35, 30])),
                ]
            )
            done.append((encoded, found))
        return done

    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(work, range(2)))
    for i in range(2):
        expected = (
            []
            if model.variant == "mobilesamv2_object_aware"
            else [
                model.predict(alone[i], Prompt(points=[[20, 20]])),
                model.predict(alone[i], Prompt(box=[5, 5, 35, 30])),
            ]
        )
        for encoded, found in results[i]:
            assert_equal_features(encoded, alone[i])
            for ours, wanted in zip(found, expected, strict=True):
                assert_same(ours, wanted)


@pytest.mark.parametrize("size", [(1, 1), (33, 1500), (3000, 20)])
def test_odd_sizes_are_images_too(model: Model, size: tuple[int, int]) -> None:
    encoded = model.encode(photo(size))
    assert encoded.original_size == size
    if model.variant == "mobilesamv2_object_aware":
        found = model.detect(encoded)
        assert (found.boxes >= 0).all() and (found.boxes <= [size[1], size[0]] * 2).all()
        return
    mask = np.zeros(size, dtype=bool)
    mask[: max(1, size[0] // 2), : max(1, size[1] // 2)] = True
    prompts = [Prompt(points=[[size[1] / 2, size[0] / 2]]), Prompt(box=[0, 0, size[1], size[0]]), Prompt(mask=mask)]
    for prediction in model.predict(encoded, prompts):
        assert prediction.masks.shape[1:] == size
        assert np.isfinite(prediction.low_res_logits).all()


def test_nothing_is_remembered_between_images_and_calls(promptable: Model) -> None:
    network = promptable.network
    assert isinstance(network, torch.nn.Module)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    attributes = {name: set(vars(module)) for name, module in network.named_modules()}
    torch.manual_seed(7)
    state = torch.get_rng_state()
    first = promptable.encode(photo())
    answer = promptable.predict(first, Prompt(points=[[30, 20]]))
    promptable.predict(promptable.encode(255 - photo((33, 90))), [make() for make in PROMPTS.values()][:2])
    assert_same(promptable.predict(first, Prompt(points=[[30, 20]])), answer)
    assert torch.equal(torch.get_rng_state(), state)
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert {name: set(vars(module)) for name, module in network.named_modules()} == attributes


def test_images_as_pillow_float64_and_tensor_are_the_same_image(model: Model) -> None:
    image = photo()
    expected = model.encode(image)
    for same in (
        Image.fromarray(image),
        image.astype(np.float64) / 255,
        torch.from_numpy(image).permute(2, 0, 1),
        np.asfortranarray(image),
    ):
        assert_equal_features(model.encode(same), expected)


def test_prompts_as_float64_and_tensors_are_the_same_prompt(promptable: Model) -> None:
    encoded = promptable.encode(photo())
    expected = promptable.predict(encoded, Prompt(points=[[30, 20], [5, 5]], labels=[1, 0]))
    arrays = Prompt(points=np.array([[30.0, 20.0], [5, 5]]), labels=np.array([1.0, 0.0]))
    tensors = Prompt(points=torch.tensor([[30, 20], [5, 5]]).numpy(), labels=torch.tensor([1, 0]).numpy())
    for prompt in (arrays, tensors):
        assert_same(promptable.predict(encoded, prompt), expected)


def test_saved_encoding_gives_the_same_answer(promptable: Model, tmp_path) -> None:
    encoded = promptable.encode(photo())
    encoded.save(tmp_path / "e.safetensors")
    again = EncodedImage.load(tmp_path / "e.safetensors")
    prompt = Prompt(box=[10, 5, 60, 40])
    assert_same(promptable.predict(again, prompt), promptable.predict(encoded, prompt))


def test_fused_network_gives_the_same_numbers(model: Model) -> None:
    twin = tiny_model(next(family for family, (name, _) in TINY.items() if name == model.variant))
    assert isinstance(twin.network, torch.nn.Module)
    fused = dataclasses.replace(twin, network=fuse(twin.network))
    ours, expected = fused.encode(photo()), model.encode(photo())
    for name, value in expected.features.items():
        difference = (ours.features[name] - value).abs().max() / value.std()
        assert difference < 1e-4, f"{name}: {difference}"
    if model.variant != "mobilesamv2_object_aware":
        prompts = [Prompt(points=[[30, 20]]), Prompt(box=[10, 5, 60, 40])]
        for a, b in zip(fused.predict(ours, prompts), model.predict(expected, prompts), strict=True):
            assert_same(a, b)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_gives_numbers(model: Model, dtype: torch.dtype) -> None:
    family = next(family for family, (name, _) in TINY.items() if name == model.variant)
    half = tiny_model(family, dtype)
    encoded = half.encode(photo())
    assert all(value.isfinite().all() for value in encoded.features.values())
    if family == "object_aware":
        assert np.isfinite(half.detect(encoded).boxes).all()
        return
    for prediction in half.predict(encoded, [make() for make in PROMPTS.values()]):
        assert np.isfinite(prediction.low_res_logits).all() and np.isfinite(prediction.iou_predictions).all()


@pytest.mark.parametrize("family", [family for family in PROMPTABLE if family != "fast_sam"])
def test_network_can_learn(family: str) -> None:
    """Gradients reach the parts in training mode, with batch norm counting, and are finite."""
    network = tiny_model(family).network
    assert isinstance(network, torch.nn.Module) and isinstance(network, PromptableModel)
    network.requires_grad_(True).train()
    side = network.preprocess.padded_image_size(network.preprocess.input_size((64, 64)))
    features = network.encode_image(torch.randn(2, 3, *side))
    one = {name: value[:1] for name, value in features.items()}
    points, labels = torch.tensor([[[20.0, 20], [40, 50]]]), torch.tensor([[2, 3]])
    decoded = network.decode(one, points, labels, None, True)
    (decoded.low_res_logits.square().mean() + decoded.iou_predictions.square().mean()).backward()
    gradients = [value.grad for name, value in network.named_parameters() if value.grad is not None]
    assert len(gradients) > 0.6 * len(list(network.parameters()))
    assert all(gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize("family", DETECTING)
def test_detected_objects_lie_in_the_image_best_first(family: str) -> None:
    model = models.setdefault(family, tiny_model(family))
    encoded = model.encode(photo())
    found = model.detect(encoded, confidence=0.0, limit=20)
    assert 0 < len(found.boxes) <= 20
    assert (np.diff(found.scores) <= 0).all()
    assert (found.boxes >= 0).all() and (found.boxes <= [SIZE[1], SIZE[0]] * 2).all()
    assert len(model.detect(encoded, confidence=1.0).boxes) == 0
    if family == "fast_sam":
        assert found.masks is not None and found.masks.shape == (len(found.boxes), *SIZE)
    else:
        with pytest.raises(PromptError, match="takes no prompts; use Model.detect"):
            model.predict(encoded, Prompt(points=[[1, 1]]))


def test_without_objects_a_prompt_is_answered_by_an_empty_mask() -> None:
    model = models.setdefault("fast_sam", tiny_model("fast_sam"))
    network = dataclasses.replace(model).network
    assert isinstance(network, SelectingModel)
    encoded = model.encode(photo())
    none = network.instances(encoded.features, SIZE, confidence=1.0, nms_iou=0.9)
    from anysam.prompts import resolve_prompt

    prediction = network.select(none, resolve_prompt(Prompt(points=[[30, 20]]), SIZE), False)
    assert prediction.masks.shape == (1, *SIZE) and not prediction.masks.any()
    assert prediction.iou_predictions.tolist() == [0]
