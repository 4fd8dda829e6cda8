"""FastSAM: masks against golden ones; what each prompt chooses, on objects drawn by hand. Network: test_yolov8.py."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from anysam.errors import OptionError, UnknownModelError, WeightsError
from anysam.letterbox import Letterbox
from anysam.models import SelectingModel, fast_sam
from anysam.models.fast_sam import PREPROCESS, FastSam, build, build_from, build_like
from anysam.models.yolov8 import SCALES, Instances, YoloConfig, YoloV8
from anysam.prompts import Prompt, resolve_prompt
from anysam.results import Prediction

CASE = Path(__file__).parent / "parity" / "cases" / "fastsam_functions"
FORM = json.loads((CASE / "case.json").read_text())
STORED = np.load(CASE / "expected.npz")

TINY = YoloConfig(depth=0.33, width=0.125, max_channels=64)
FRAME = Letterbox(name="tiny", long_side=256)
SIZE = (64, 128)  # of the instances drawn by hand: two image pixels are a cell


@pytest.fixture(scope="module")
def network() -> FastSam:
    return build_from(TINY, FRAME).eval()


def drawn(*boxes: tuple[int, int, int, int], scores: list[float] | None = None) -> Instances:
    """Rectangular objects."""
    masks = np.zeros((len(boxes), *SIZE), dtype=np.bool_)
    for mask, (x0, y0, x1, y1) in zip(masks, boxes, strict=True):
        mask[y0:y1, x0:x1] = True
    logits = np.where(masks[:, ::2, ::2], 3.0, -2.0).astype(np.float32)  # (N, 32, 64)
    corners = np.array(boxes, dtype=np.float32).reshape(-1, 4)
    return Instances(corners, np.float32(scores or np.linspace(0.9, 0.5, len(boxes))), masks, logits)


def select(network: FastSam, instances: Instances, multimask: bool = False, **prompt: object) -> Prediction:
    return network.select(instances, resolve_prompt(Prompt(**prompt), SIZE), multimask)


def low_res_is_the_mask(prediction: Prediction) -> bool:
    return np.array_equal(prediction.low_res_logits > 0, prediction.masks[:, ::2, ::2])


@pytest.mark.parametrize("geometry", list(FORM["geometry"]))
@pytest.mark.parametrize("kind", ["none", "one_full"])
def test_instances_are_the_published_ones(network: FastSam, geometry: str, kind: str) -> None:
    size = tuple(FORM["geometry"][geometry]["original_hw"])
    features = {
        "decoded": torch.from_numpy(STORED[f"post/{geometry}/{kind}/predictions"]),
        "prototypes": torch.from_numpy(STORED[f"post/{geometry}/proto"]),
    }
    found = network.instances(features, size)
    prefix = f"post/{geometry}/{kind}/retina"
    np.testing.assert_allclose(found.boxes, STORED[f"{prefix}/boxes"][:, :4], atol=1e-3)
    np.testing.assert_array_equal(found.scores, STORED[f"{prefix}/boxes"][:, 4])
    assert np.unpackbits(np.packbits(found.masks) ^ STORED[f"{prefix}/masks_packed"]).sum() <= 20
    assert found.masks.shape == (len(found.boxes), *size)
    assert [array.dtype for array in (found.boxes, found.scores, found.low_res_logits)] == [np.float32] * 3


def test_several_boxes_of_the_whole_image_are_all_replaced(network: FastSam) -> None:
    features = {
        "decoded": torch.from_numpy(STORED["post/wide/two_full/predictions"]),
        "prototypes": torch.from_numpy(STORED["post/wide/proto"]),
    }
    found = network.instances(features, (300, 400))
    assert (found.boxes == (0, 0, 400, 300)).all(axis=1).sum() == 2


def test_masks_and_logits_end_at_the_box(network: FastSam) -> None:
    decoded = torch.zeros(1, 37, 1)
    decoded[0, :5, 0] = torch.tensor([100.0, 60.0, 40.0, 30.0, 0.9])
    decoded[0, 5] = 1
    prototypes = torch.ones(1, 32, 32, 64)  # positive everywhere
    found = network.instances({"decoded": decoded, "prototypes": prototypes}, (256, 512))
    mask = np.zeros((256, 512), dtype=np.bool_)
    mask[90:150, 160:240] = True
    np.testing.assert_array_equal(found.masks, mask[None])
    cells = np.zeros((32, 64), dtype=np.bool_)
    cells[12:19, 20:30] = True  # those whose left upper corner is in the box
    np.testing.assert_array_equal(found.low_res_logits > 0, cells[None])


def test_masks_made_in_bands_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = torch.randn(3, 16, 24, generator=torch.Generator().manual_seed(1))
    boxes = np.float32([[0, 0, 100, 60], [10, 5, 70, 55], [50, 50, 50, 55]])
    padded = (64, 96)
    whole, at_letterbox = (
        fast_sam.image_masks(logits, boxes, (60, 100)),
        fast_sam.letterbox_masks(logits, boxes, padded),
    )
    monkeypatch.setattr(fast_sam, "_LOGITS_AT_ONCE", 300)
    np.testing.assert_array_equal(fast_sam.image_masks(logits, boxes, (60, 100)), whole)
    np.testing.assert_array_equal(fast_sam.letterbox_masks(logits, boxes, padded), at_letterbox)
    assert whole.any(axis=(1, 2)).tolist() == [True, True, False]


@torch.inference_mode()
@pytest.mark.parametrize("size", [(1, 1), (33, 1500), (3000, 20)])
@pytest.mark.parametrize("confidence", [0.0, 1.0])
def test_images_of_any_shape_have_instances_or_none(size: tuple[int, int], confidence: float) -> None:
    network = build_from(TINY, Letterbox(name="", long_side=64)).eval()
    padded = network.preprocess.padded_size(network.preprocess.input_size(size))
    features = network.encode_image(torch.rand(1, 3, *padded, generator=torch.Generator().manual_seed(1)))
    found = network.instances(features, size, confidence=confidence, limit=5)
    count = 5 if confidence == 0 else 0
    assert found.masks.shape == (count, *size)
    assert found.low_res_logits.shape == (count, padded[0] // 4, padded[1] // 4)
    point = network.select(found, resolve_prompt(Prompt(points=[[0, 0]]), size), True)
    assert point.masks.shape[1:] == size


@torch.inference_mode()
def test_prototypes_in_half_precision_make_nearly_the_same_masks() -> None:
    torch.manual_seed(0)  # some random networks find nothing at all
    network = build_from(TINY, Letterbox(name="", long_side=64)).eval()
    pixels = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    features = network.encode_image(pixels)
    half = features | {"prototypes": features["prototypes"].bfloat16()}
    ours, expected = (network.instances(f, (64, 64), confidence=0.0, limit=20) for f in (half, features))
    assert expected.masks.any()
    overlap = (ours.masks & expected.masks).sum() / (ours.masks | expected.masks).sum()
    assert overlap >= 0.98


def test_network_keeps_the_protocol(network: FastSam) -> None:
    assert isinstance(network, SelectingModel)
    assert (network.default_confidence, network.default_nms_iou) == (0.4, 0.9)


def test_box_chooses_the_mask_most_like_it(network: FastSam) -> None:
    instances = drawn((0, 0, 60, 60), (20, 20, 40, 40), (22, 22, 60, 60))
    prediction = select(network, instances, box=[20, 20, 42, 42])
    np.testing.assert_array_equal(prediction.masks, instances.masks[1:2])
    assert prediction.iou_predictions[0] == pytest.approx(400 / 484)
    assert low_res_is_the_mask(prediction)


@pytest.mark.parametrize("name", ["prompt/wide/one_full/retina", "prompt/tall/none/retina"])
def test_boxes_and_points_choose_what_the_published_code_chooses(name: str) -> None:
    _, geometry, kind, grid = name.split("/")
    shape = FORM["postprocess"][f"post/{geometry}/{kind}/{grid}"]["masks_shape"]
    packed = STORED[f"post/{geometry}/{kind}/{grid}/masks_packed"]
    masks = np.unpackbits(packed, count=int(np.prod(shape))).reshape(shape) > 0  # (N, H, W)
    for box in FORM["prompts"][name]["box_prompts"].values():
        given = np.array(box["xyxy"])
        fit = fast_sam.iou_with_box(masks, given)
        assert (int(fit.argmax()), float(fit.max())) == (box["mask_index"], pytest.approx(box["iou"], abs=1e-6))
        assert given.tolist() == box["xyxy"]  # the published code overwrites it
    for key, points in FORM["prompts"][name]["points"].items():
        united = fast_sam.unite_by_points(masks, np.array(points["points_xy"]), np.array(points["labels_1fg_0bg"]))
        np.testing.assert_array_equal(np.packbits(united), STORED[f"{name}/points_{key}_packed"])


def test_box_over_the_edge_and_thinner_than_a_pixel(network: FastSam) -> None:
    instances = drawn((100, 0, 128, 30), (10, 10, 20, 20))
    np.testing.assert_array_equal(select(network, instances, box=[90, -50, 500, 40]).masks, instances.masks[:1])
    np.testing.assert_array_equal(select(network, instances, box=[12.1, 12, 12.3, 19]).masks, instances.masks[1:])
    np.testing.assert_array_equal(select(network, instances, box=[127.8, 20, 300, 28]).masks, instances.masks[:1])


def test_points_unite_all_masks_under_them(network: FastSam) -> None:
    instances = drawn((0, 0, 40, 40), (20, 20, 60, 60), (80, 0, 120, 20), scores=[0.5, 0.9, 0.8])
    prediction = select(network, instances, points=[[30, 30], [100, 10]])
    np.testing.assert_array_equal(prediction.masks[0], instances.masks.any(axis=0))
    assert prediction.iou_predictions.tolist() == [np.float32(0.9)]
    assert low_res_is_the_mask(prediction)


def test_background_points_take_their_masks_away(network: FastSam) -> None:
    instances = drawn((0, 0, 60, 60), (20, 20, 40, 40), scores=[0.9, 0.8])
    prediction = select(network, instances, points=[[10, 10], [30, 30]], labels=[1, 0])
    # The large mask has both points in it: the last one decides, so it is taken away, and so is the small one.
    assert not prediction.masks.any()
    assert prediction.iou_predictions.tolist() == [0]
    prediction = select(network, instances, points=[[30, 30], [10, 10]], labels=[0, 1])
    np.testing.assert_array_equal(prediction.masks[0], instances.masks[0] & ~instances.masks[1])
    assert prediction.iou_predictions[0] == pytest.approx(0.9)
    assert low_res_is_the_mask(prediction)


@pytest.mark.parametrize("multimask", [False, True])
@pytest.mark.parametrize(
    "prompt",
    [
        {"points": [[127, 63]]},
        {"points": [[30, 30]], "labels": [0]},
        {"box": [100, 40, 120, 60]},
        {"polygon": [[100, 40], [120, 40], [120, 60]]},
    ],
)
@pytest.mark.parametrize("objects", [[], [(0, 0, 60, 60), (20, 20, 40, 40)]])
def test_nothing_that_fits_is_an_empty_mask_with_score_0(
    network: FastSam, multimask: bool, prompt: dict, objects: list
) -> None:
    prediction = select(network, drawn(*objects), multimask, **prompt)
    assert prediction.masks.shape == (1, *SIZE)
    assert not prediction.masks.any()
    assert prediction.iou_predictions.tolist() == [0]
    assert (prediction.low_res_logits < 0).all()
    assert prediction.low_res_logits.shape == (1, 32, 64)


def test_several_masks_are_the_best_three_apart(network: FastSam) -> None:
    instances = drawn((0, 0, 60, 60), (90, 0, 99, 9), (20, 20, 40, 40), (25, 25, 50, 50), (0, 0, 50, 50))
    prediction = select(network, instances, multimask=True, points=[[30, 30]])
    np.testing.assert_array_equal(prediction.masks, instances.masks[[0, 2, 3]])
    np.testing.assert_allclose(prediction.iou_predictions, instances.scores[[0, 2, 3]])
    prediction = select(network, instances, multimask=True, box=[20, 20, 40, 40])
    np.testing.assert_array_equal(prediction.masks, instances.masks[[2, 3, 4]])
    assert prediction.best == 0
    prediction = select(network, instances, multimask=True, points=[[30, 30], [45, 45]], labels=[1, 0])
    np.testing.assert_array_equal(prediction.masks[0], instances.masks[2])


def test_points_refine_what_a_box_means(network: FastSam) -> None:
    instances = drawn((10, 10, 40, 40), (10, 10, 40, 42))
    np.testing.assert_array_equal(select(network, instances, box=[10, 10, 40, 41]).masks, instances.masks[1:])
    prediction = select(network, instances, box=[10, 10, 40, 41], points=[[20, 41]], labels=[0])
    np.testing.assert_array_equal(prediction.masks, instances.masks[:1])


def test_mask_polygon_and_logits_choose_by_overlap(network: FastSam) -> None:
    instances = drawn((0, 0, 60, 60), (20, 20, 40, 40), (20, 20, 60, 60))
    hint = np.zeros(SIZE, dtype=np.bool_)
    hint[18:40, 22:42] = True
    logits = np.where(hint[::2, ::2], 1.0, -1.0)
    prompts = ({"mask": hint}, {"polygon": [[22, 18], [42, 18], [42, 40], [22, 40]]}, {"low_res_logits": logits})
    for prompt in prompts:
        prediction = select(network, instances, **prompt)
        np.testing.assert_array_equal(prediction.masks, instances.masks[1:2])
        assert prediction.iou_predictions[0] == pytest.approx(18 * 20 / (400 + 440 - 360), abs=0.05)
    prediction = select(network, instances, mask=hint, box=[0, 0, 60, 60])  # a box of its own counts too
    np.testing.assert_array_equal(prediction.masks, instances.masks[:1])


def test_point_on_the_right_and_lower_edge_is_the_last_pixel(network: FastSam) -> None:
    instances = drawn((100, 40, 128, 64))
    np.testing.assert_array_equal(select(network, instances, points=[[128, 64]]).masks, instances.masks)


def test_instances_given_are_not_changed(network: FastSam) -> None:
    instances = drawn((0, 0, 60, 60), (20, 20, 40, 40))
    copies = [value.copy() for value in dataclasses.astuple(instances)]
    for multimask in (False, True):
        prediction = select(network, instances, multimask, points=[[30, 30], [10, 10]], labels=[0, 1])
        prediction.masks[:] = True
        prediction.low_res_logits[:] = 7
    for value, copy in zip(dataclasses.astuple(instances), copies, strict=True):
        np.testing.assert_array_equal(value, copy)


def test_boxes_alone_cannot_be_chosen_among(network: FastSam) -> None:
    with pytest.raises(OptionError, match="these instances are boxes alone"):
        select(network, Instances(np.zeros((1, 4)), np.ones(1)), points=[[1, 1]])


def test_cleaning_and_thinning_out_masks() -> None:
    mask = np.zeros(SIZE, dtype=np.bool_)
    mask[10:40, 10:40] = True
    clean = mask.copy()
    mask[20, 20] = False  # a gap
    mask[50:53, 90:93] = True  # a speck
    # The even kernel moves what it cleans by a pixel; the golden masks of the parity case have that too.
    np.testing.assert_array_equal(fast_sam.clean_mask(mask), np.roll(clean, (1, 1), axis=(0, 1)))
    masks = drawn((10, 10, 20, 20), (0, 0, 40, 40), (0, 0, 1, 0), (30, 30, 50, 50)).masks
    assert fast_sam.distinct_masks(masks).tolist() == [1, 3]


def test_build_names_its_sizes_and_takes_no_other() -> None:
    with torch.device("meta"):
        assert build("s").preprocess == PREPROCESS
    for make in (build, lambda size: build_like(size, {})):
        with pytest.raises(UnknownModelError, match="'m'; its sizes are s, x"):
            make("m")
    with pytest.raises(ValueError, match="from prototypes"):
        FastSam(dataclasses.replace(TINY, prototypes=False), FRAME)


def tensors(scale: str, **changes: object) -> dict[str, torch.Tensor]:
    with torch.device("meta"):
        return nn.ModuleDict({"model": YoloV8(YoloConfig(*SCALES[scale], **changes))}).state_dict()


def test_build_like_reads_distances_and_classes_and_refuses_other_sizes() -> None:
    with torch.device("meta"):
        network = build_like("s", tensors("s", reg_max=26, classes=3))
    assert network.model["22"].dfl.conv.weight.shape == (1, 26, 1, 1)
    assert network.classes == 3
    with pytest.raises(WeightsError, match="YOLOv8-x network, not of FastSAM-s; load them as fastsam_x"):
        build_like("s", tensors("x"))
    with pytest.raises(WeightsError, match="YOLOv8-m network, not of FastSAM-x; FastSAM's sizes are s, x"):
        build_like("x", tensors("m"))
    with pytest.raises(WeightsError, match="no prototype branch, .* is it mobilesamv2_object_aware?"):
        build_like("x", tensors("x", prototypes=False))
