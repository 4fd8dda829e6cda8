"""The YOLOv8 segmentation network and what follows it: against golden numbers and second, plainer versions."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from anysam.errors import WeightsError
from anysam.models.layers import fuse
from anysam.models.yolov8 import (
    SCALES,
    C2f,
    Detections,
    Proto,
    Raw,
    Segment,
    YoloConfig,
    YoloV8,
    anchor_grid,
    find_candidates,
    pairwise_iou,
    read_config,
    snap_to_border,
    suppress,
)

CASES = Path(__file__).parent / "parity" / "cases"
STORED = np.load(CASES / "fastsam_functions" / "expected.npz")

TINY = YoloConfig(depth=0.33, width=0.125, max_channels=128, reg_max=4, classes=2, coefficients=6)


def randomise(module: nn.Module, seed: int = 0) -> nn.Module:
    """Random weights and statistics that keep the size of what passes; the constant distances stay."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in module.state_dict().items():
        if not value.is_floating_point() or "dfl" in name:
            continue
        if name.endswith("running_var"):
            value.uniform_(0.5, 1.5, generator=generator)
        elif value.dim() > 1:
            value.normal_(std=(2 / value[0].numel()) ** 0.5, generator=generator)
        else:
            value.normal_(mean=float("bn.weight" in name), std=0.2, generator=generator)
    return module.eval()


def noise(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def picture(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(2))


def full_size(scale: str, reg_max: int, prototypes: bool = True) -> YoloV8:
    with torch.device("meta"):
        return YoloV8(YoloConfig(*SCALES[scale], reg_max=reg_max, prototypes=prototypes))


@pytest.mark.parametrize(
    ("case", "scale", "reg_max", "prototypes"),
    [("fastsam_s", "s", 16, True), ("mobilesamv2_object_aware", "x", 26, False)],
)
def test_state_dict_has_the_official_keys_shapes_and_order(
    case: str, scale: str, reg_max: int, prototypes: bool
) -> None:
    manifest = json.loads((CASES / case / "manifest.json").read_text())["tensors"]
    ours = full_size(scale, reg_max, prototypes).state_dict()
    assert [(f"model.{name}", list(value.shape)) for name, value in ours.items()] == [
        (name, shape) for name, (shape, _) in manifest.items()
    ]


@pytest.mark.parametrize(
    ("scale", "reg_max", "prototypes", "parameters"),
    [
        ("s", 16, True, 11_790_483),
        ("x", 16, True, 71_751_811),
        ("x", 26, True, 72_234_149),
        ("x", 26, False, 69_969_445),
    ],
)
def test_number_of_parameters_is_the_stated_one(scale: str, reg_max: int, prototypes: bool, parameters: int) -> None:
    assert sum(value.numel() for value in full_size(scale, reg_max, prototypes).parameters()) == parameters


@pytest.mark.parametrize("scale", list(SCALES))
@pytest.mark.parametrize("prototypes", [True, False])
def test_configuration_is_read_from_the_tensors(scale: str, prototypes: bool) -> None:
    config = YoloConfig(*SCALES[scale], reg_max=26, classes=3, prototypes=prototypes)
    with torch.device("meta"):
        state_dict = nn.ModuleDict({"model": YoloV8(config)}).state_dict()
    assert read_config(state_dict) == (scale, config)


def test_tensors_of_another_network_are_refused() -> None:
    with pytest.raises(WeightsError, match="no tensors of a YOLOv8 .*'model.0.conv.weight' is missing"):
        read_config({"image_encoder.pos_embed": torch.zeros(1)})
    with torch.device("meta"):
        odd = nn.ModuleDict({"model": YoloV8(YoloConfig(0.33, 0.125, 1024))}).state_dict()
    with pytest.raises(WeightsError, match="No YOLOv8 scale .* has 8 channels in the first layer, 128 in the eighth"):
        read_config(odd)


@pytest.mark.parametrize("changes", [{"depth": 0}, {"width": -1.0}, {"reg_max": 0}, {"classes": 0}])
def test_impossible_shapes_are_refused(changes: dict) -> None:
    with pytest.raises(ValueError, match="must be positive"):
        YoloConfig(**({"depth": 0.33, "width": 0.25, "max_channels": 64} | changes))


@torch.no_grad()
@pytest.mark.parametrize("size", [(64, 96), (96, 64), (32, 32)])
@pytest.mark.parametrize("width", [0.125, 1.0])  # the wide one has convolutions that are made another way
def test_fused_network_gives_the_same(size: tuple[int, int], width: float) -> None:
    network = randomise(YoloV8(YoloConfig(0.33, width, 128, reg_max=4, coefficients=6)))
    pixels = picture(1, 3, *size)
    expected = network(pixels)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    proto = network["22"].proto.fused()
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    ours = fuse(network)(pixels)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in network.modules())
    pairs = [*zip(ours.levels, expected.levels, strict=True), *zip(ours[1:], expected[1:], strict=True)]
    for value, reference in pairs:
        assert (value - reference).abs().max() <= 1e-4 * reference.std()
    assert proto is not network["22"].proto


@torch.no_grad()
@pytest.mark.parametrize("size", [(1, 1), (1, 5), (3, 2), (8, 8)])
def test_fused_prototypes_are_right_at_the_border(size: tuple[int, int]) -> None:
    proto = randomise(Proto(3, 8, 5))
    nn.init.normal_(proto.upsample.bias, std=3.0)  # what the border lacks is visible
    x = noise(2, 3, *size)
    torch.testing.assert_close(proto.fused()(x), proto(x), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_shortcut_adds_what_went_in() -> None:
    with_shortcut, without = (randomise(C2f(8, 8, 1, shortcut=shortcut)) for shortcut in (True, False))
    x = noise(1, 8, 4, 4)
    half = with_shortcut.cv1(x)[:, 4:]  # (1, 4, 4, 4)
    links = [*with_shortcut.cv1(x).chunk(2, dim=1), with_shortcut.m[0].cv2(with_shortcut.m[0].cv1(half))]
    torch.testing.assert_close(without(x), without.cv2(torch.cat(links, dim=1)))
    links[2] = links[2] + half
    torch.testing.assert_close(with_shortcut(x), with_shortcut.cv2(torch.cat(links, dim=1)))


@torch.no_grad()
@pytest.mark.parametrize("reg_max", [16, 26])
def test_decoding_is_the_published_one(reg_max: int) -> None:
    prefix = f"decode/reg{reg_max}"
    fine, middle, coarse = (torch.from_numpy(STORED[f"{prefix}/head_p{level}"]) for level in (3, 4, 5))
    head = Segment(YoloConfig(0.33, 0.125, 64, reg_max=reg_max), (8, 8, 8))
    decoded = head.decode(Raw((fine, middle, coarse), torch.zeros(1, 32, 64), None))
    torch.testing.assert_close(decoded[:, :5], torch.from_numpy(STORED[f"{prefix}/decoded"]), atol=1e-4, rtol=1e-5)
    centres, strides = anchor_grid([(8, 6), (4, 3), (2, 2)], torch.device("cpu"))
    np.testing.assert_array_equal(centres, STORED[f"{prefix}/anchors"])
    np.testing.assert_array_equal(strides[None], STORED[f"{prefix}/strides"])


@torch.no_grad()
def test_shapes_of_what_is_predicted() -> None:
    features = randomise(YoloV8(TINY)).predict(picture(2, 3, 64, 96))
    assert features["decoded"].shape == (2, 4 + 2 + 6, 8 * 12 + 4 * 6 + 2 * 3)
    assert features["prototypes"].shape == (2, 6, 16, 24)
    boxless = YoloConfig(0.33, 0.125, 128, prototypes=False)
    assert list(randomise(YoloV8(boxless)).predict(picture(1, 3, 64, 96))) == ["decoded"]


@torch.no_grad()
def test_images_of_a_batch_do_not_mix() -> None:
    network = randomise(YoloV8(TINY))
    pixels = picture(3, 3, 64, 64)
    together = network.predict(pixels)
    for i in range(3):
        for name, value in network.predict(pixels[i : i + 1]).items():
            torch.testing.assert_close(together[name][i : i + 1], value, atol=1e-4, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("fusing", [False, True])
def test_half_precision_moves_boxes_little(dtype: torch.dtype, fusing: bool) -> None:
    network = randomise(YoloV8(TINY))
    pixels = picture(1, 3, 64, 64)
    expected = network.predict(pixels)["decoded"]
    network = (fuse(network) if fusing else network).to(dtype)
    features = network.predict(pixels.to(dtype))
    assert features["decoded"].dtype == torch.float32  # or boxes would be rounded to whole pixels and more
    assert features["prototypes"].dtype == dtype
    assert (features["decoded"][:, :4] - expected[:, :4]).abs().max() < 2.0  # pixels
    assert (features["decoded"][:, 4:6] - expected[:, 4:6]).abs().max() < 0.05


def test_training_form_learns_and_leaves_the_distances_alone() -> None:
    network = YoloV8(TINY).train()
    features = network.predict(picture(2, 3, 64, 64))
    (features["decoded"].square().mean() + features["prototypes"].square().mean()).backward()
    missing = [name for name, value in network.named_parameters() if value.requires_grad and value.grad is None]
    assert missing == []
    assert [name for name, value in network.named_parameters() if not value.requires_grad] == ["22.dfl.conv.weight"]


def boxes_and_scores(count: int, seed: int, classes: int = 1) -> Detections:
    rng = np.random.default_rng(seed)
    low = rng.uniform(0, 80, (count, 2))
    boxes = np.concatenate((low, low + rng.uniform(0, 40, (count, 2))), axis=1).astype(np.float32)
    scores = np.sort(rng.uniform(0, 1, count).astype(np.float32))[::-1]
    return Detections(boxes, scores, rng.integers(0, classes, count), np.zeros((count, 32), dtype=np.float32))


def suppressed_one_by_one(found: Detections, threshold: float, limit: int) -> list[int]:
    """The definition: every box with every better one that stayed."""
    kept: list[int] = []
    for i, box in enumerate(found.boxes.astype(np.float64)):
        for j in kept:
            other = found.boxes[j].astype(np.float64)
            sides = np.minimum(box[2:], other[2:]) - np.maximum(box[:2], other[:2])
            overlap = sides.prod() if (sides > 0).all() else 0.0
            union = (box[2:] - box[:2]).prod() + (other[2:] - other[:2]).prod() - overlap
            if found.classes[i] == found.classes[j] and overlap / union > threshold:
                break
        else:
            kept.append(i)
    return kept[:limit]


@pytest.mark.parametrize(("count", "classes"), [(0, 1), (1, 1), (130, 1), (170, 3)])
@pytest.mark.parametrize(("threshold", "limit"), [(0.3, 1000), (0.7, 50)])
def test_suppression_is_the_definition(
    count: int, classes: int, threshold: float, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("anysam.models.yolov8._BLOCK", 50)
    found = boxes_and_scores(count, seed=count, classes=classes)
    kept = suppressed_one_by_one(found, threshold, limit)
    np.testing.assert_array_equal(suppress(found, threshold, limit).boxes, found.boxes[kept].reshape(-1, 4))


def test_suppression_does_not_touch_at_the_threshold_itself_and_keeps_boxes_without_area() -> None:
    boxes = np.array([[0, 0, 4, 4], [0, 0, 4, 2], [1, 1, 1, 1], [1, 1, 1, 1]], dtype=np.float32)
    found = Detections(boxes, np.array([0.9, 0.8, 0.7, 0.6]), np.zeros(4, dtype=np.int64), np.zeros((4, 32)))
    assert len(suppress(found, 0.5, 10).boxes) == 4  # the first two have an IoU of exactly 0.5
    assert len(suppress(found, 0.49, 10).boxes) == 3
    assert suppress(found, 0.5, 2).boxes.tolist() == boxes[:2].tolist()


def test_classes_meet_only_where_they_are_told_to() -> None:
    boxes = np.array([[0, 0, 9, 9]] * 2, dtype=np.float32)
    found = Detections(boxes, np.array([0.9, 0.8]), np.array([0, 1]), np.zeros((2, 32)))
    assert len(suppress(found, 0.5, 10).boxes) == 2
    assert len(suppress(found, 0.5, 10, across_classes=True).boxes) == 1


def test_candidates_are_above_the_confidence_and_fall_in_score() -> None:
    decoded = np.zeros((4 + 2 + 3, 6), dtype=np.float32)
    decoded[:4] = np.array([[10, 20, 4, 6]]).T
    decoded[4] = [0.4, 0.5, 0.1, np.nan, 0.5, 0.3]
    decoded[5] = [0.2, 0.1, 0.9, 0.1, 0.2, 0.3]
    decoded[6] = np.arange(6)
    found = find_candidates(decoded, classes=2, confidence=0.4)
    assert found.coefficients[:, 0].tolist() == [2, 1, 4]  # 0.4 is not above 0.4; equal scores keep their order
    assert found.classes.tolist() == [1, 0, 0]
    assert found.boxes[0].tolist() == [8, 17, 12, 23]


def test_many_candidates_are_cut_by_score(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("anysam.models.yolov8.MAX_CANDIDATES", 2)
    decoded = np.ones((5, 4), dtype=np.float32)
    decoded[4] = [0.5, 0.7, 0.6, 0.8]
    np.testing.assert_array_equal(find_candidates(decoded, 1, 0.1).scores, np.float32([0.8, 0.7]))


@pytest.mark.parametrize(("name", "conf", "iou", "limit"), [("fastsam", 0.4, 0.9, 300), ("max_det", 0.25, 0.9, 7)])
def test_suppressed_predictions_are_the_published_ones(name: str, conf: float, iou: float, limit: int) -> None:
    found = suppress(find_candidates(STORED["nms/predictions_1class"][0], 1, conf), iou, limit)
    rows = np.column_stack((found.boxes, found.scores, found.classes, found.coefficients))
    np.testing.assert_array_equal(rows, STORED[f"nms/{name}"])


def test_snapped_boxes_are_the_published_ones() -> None:
    given = STORED["boxes/snap_input"]
    snapped = snap_to_border(given, (192, 256))
    np.testing.assert_array_equal(snapped, STORED["boxes/snap_adjusted"])
    assert snapped is not given and not np.array_equal(snapped, given)
    whole = np.float32([[0, 0, 256, 192]])
    np.testing.assert_allclose(pairwise_iou(snapped, whole)[:, 0], STORED["boxes/snap_iou_full"], rtol=1e-6)
