"""Objects found in one pass: FastSAM's as records, a detector's as boxes for another model."""

import dataclasses

import numpy as np
import pytest

from anysam import Prompt
from anysam.automatic import boxes
from anysam.automatic.instances import detected_records, find_boxes, instance_records
from anysam.automatic.options import EverythingOptions
from anysam.encoded_image import EncodedImage
from anysam.errors import OptionError
from anysam.masks import encode_rle, mask_area, mask_to_box
from anysam.models.yolov8 import Instances
from anysam.results import Prediction
from naive_regions import clean_mask
from tiny_models import tiny_model

IMAGE = np.random.default_rng(0).integers(0, 256, (48, 80, 3), dtype=np.uint8)
ALL = EverythingOptions(confidence=0.0, nms_iou=1.0)  # random weights find nothing with confidence
SOME = EverythingOptions(confidence=0.0)


class Detector:
    """Finds what it is told to, and remembers how it was asked."""

    variant, network, device = "detector", tiny_model("object_aware").network, None

    def __init__(self, found: list[list[float]], scores: list[float]) -> None:
        self.found = Instances(np.float32(found).reshape(-1, 4), np.float32(scores))
        self.asked: tuple[float | None, float | None, int] | None = None

    def encode(self, image: np.ndarray) -> EncodedImage:
        return EncodedImage({}, (image.shape[0], image.shape[1]), (1, 1), "", "", "")

    def detect(self, encoded, *, confidence=None, nms_iou=None, limit=300):
        self.asked = confidence, nms_iou, limit
        return self.found


@pytest.mark.parametrize("options", [ALL, SOME])
def test_records_are_the_instances_by_falling_score(options: EverythingOptions) -> None:
    model = tiny_model("fast_sam")
    encoded = model.encode(IMAGE)
    found = model.detect(encoded, confidence=0.0, nms_iou=1.0 if options is ALL else None)
    filled = found.masks.any(axis=(1, 2))
    assert filled.sum() > 10
    for image in (IMAGE, encoded):
        records = instance_records(model, image, options)
        assert len(records) == filled.sum()
        for record, mask, score in zip(records, found.masks[filled], found.scores[filled], strict=True):
            assert record.segmentation == encode_rle(mask)
            assert (record.area, record.box) == (mask_area(mask), tuple(mask_to_box(mask)))
            assert record.predicted_iou == record.detection_score == float(score)
    assert [record.predicted_iou for record in records] == sorted((r.predicted_iou for r in records), reverse=True)


@pytest.mark.parametrize("bytes_", [1, 4 * 7 * 48 * 80])
def test_memory_changes_how_many_masks_are_held_not_the_records(bytes_: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("fast_sam")
    expected = instance_records(model, IMAGE, ALL)
    held = []
    lots = type(model.network).instance_lots

    def watched(self, *arguments, **options):
        for lot in lots(self, *arguments, **options):
            held.append(len(lot.masks))
            yield lot

    monkeypatch.setattr(type(model.network), "instance_lots", watched)
    assert instance_records(model, IMAGE, dataclasses.replace(ALL, max_memory=bytes_)) == expected
    assert max(held) == (1 if bytes_ == 1 else 7) and len(held) > 10


def test_small_regions_go_where_that_is_wished() -> None:
    model = tiny_model("fast_sam")
    plain = instance_records(model, IMAGE, ALL)
    clean = instance_records(model, IMAGE, dataclasses.replace(ALL, min_mask_region_area=5))
    assert len(plain) == len(clean) and plain != clean
    for before, after in zip(plain, clean, strict=True):
        np.testing.assert_array_equal(after.to_mask(), clean_mask(before.to_mask(), 5)[0])


def test_nothing_found_is_no_record() -> None:
    model = tiny_model("fast_sam")
    steps: list[float] = []
    assert instance_records(model, IMAGE, EverythingOptions(confidence=1.0), steps.append) == []
    assert steps == [1.0]
    for detector in (tiny_model("object_aware"), model, Detector([], [])):
        assert detected_records(tiny_model("sam"), detector, IMAGE, EverythingOptions(confidence=1.0)) == []


def test_published_thresholds_are_used_if_none_are_given() -> None:
    detector = Detector([], [])
    detected_records(tiny_model("sam"), detector, IMAGE, EverythingOptions())
    assert detector.asked == (None, None, 300)
    detected_records(tiny_model("sam"), detector, IMAGE, EverythingOptions(confidence=0.2, nms_iou=0.5))
    assert detector.asked == (0.2, 0.5, 300)
    asked = {}

    def lots(*_, **options):
        asked.update(options)
        yield from ()

    model = tiny_model("fast_sam")
    object.__setattr__(model.network, "instance_lots", lots)
    instance_records(model, IMAGE, EverythingOptions())
    assert (asked["confidence"], asked["nms_iou"], asked["limit"]) == (0.4, 0.9, 300)


def test_detected_boxes_become_masks_of_another_model_in_the_detectors_order() -> None:
    model = tiny_model("mobile_sam_v2")
    found = [[2, 3, 60, 40], [10, 10, 10, 30], [0, 0, 80, 48], [4, 9, 40, 9], [30, 5, 50, 20]]
    records = detected_records(model, Detector(found, [0.9, 0.8, 0.7, 0.65, 0.6]), IMAGE, EverythingOptions())
    encoded = model.encode(IMAGE)
    kept = detected_records(model, Detector(found, [0.9] * 5), IMAGE, EverythingOptions(), encode=lambda image: encoded)
    assert [record.area for record in kept] == [record.area for record in records]
    expected = []
    for box, score in ((found[0], 0.9), (found[2], 0.7), (found[4], 0.6)):  # two have no area
        prediction = model.predict(encoded, Prompt(box=box), multimask=False)  # as published
        if prediction.masks.any():
            expected.append((box, score, float(prediction.iou_predictions[0]), prediction.masks[0]))
    assert len(expected) > 1
    for record, (box, score, iou, mask) in zip(records, expected, strict=True):
        assert record.prompt == {"box": box}
        assert record.detection_score == pytest.approx(score)
        assert record.predicted_iou == pytest.approx(iou, abs=1e-5)
        assert (record.to_mask() ^ mask).sum() <= 0.01 * mask.sum()


def test_masks_without_a_pixel_are_no_records(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("sam")

    def predict(self, encoded, prompts, multimask=None):
        masks = [np.full((1, 48, 80), prompt.box[0] == 2) for prompt in prompts]
        return [Prediction(mask, np.ones(1, np.float32), np.zeros((1, 1, 1), np.float32)) for mask in masks]

    monkeypatch.setattr(type(model), "predict", predict)
    found = Detector([[1, 3, 60, 40], [2, 10, 20, 30]], [0.9, 0.8])
    records = detected_records(model, found, IMAGE, EverythingOptions())
    assert [(record.prompt["box"][0], record.area) for record in records] == [(2, 48 * 80)]


def test_a_mask_reaches_to_the_end_of_a_box_between_pixels() -> None:
    model = tiny_model("fast_sam")
    mask = np.zeros((2, 48, 80), dtype=np.bool_)
    mask[0, 3:8, 2:6] = True
    found = Instances(np.float32([[1.2, 2.9, 5.3, 7.1], [9, 9, 9, 20]]), np.float32([0.9, 0.8]), mask)

    def lots(*_, **options):
        yield found

    object.__setattr__(model.network, "instance_lots", lots)
    records = instance_records(model, IMAGE, EverythingOptions())
    assert [(record.area, record.box) for record in records] == [(20, (2, 3, 6, 8))]


def test_fastsam_can_be_the_detector(monkeypatch: pytest.MonkeyPatch) -> None:
    detector = tiny_model("fast_sam")
    found = detector.detect(detector.encode(IMAGE), confidence=0.0, nms_iou=1.0)
    filled = (found.boxes[:, 2:] > found.boxes[:, :2]).all(axis=1)
    monkeypatch.setattr(boxes, "_MOST_BYTES", 7 * 48 * 80)
    corners, scores = find_boxes(detector, IMAGE, ALL)
    np.testing.assert_array_equal(corners, found.boxes[filled])
    np.testing.assert_array_equal(scores, found.scores[filled])


def test_what_each_model_cannot_be_is_said() -> None:
    sam, detector, fast_sam = tiny_model("sam"), tiny_model("object_aware"), tiny_model("fast_sam")
    options = EverythingOptions()
    with pytest.raises(
        OptionError, match="mobilesamv2_object_aware finds boxes without masks; give it as the detector"
    ):
        instance_records(detector, IMAGE, options)
    with pytest.raises(OptionError, match="sam_vit_b finds no objects by itself"):
        instance_records(sam, IMAGE, options)
    with pytest.raises(OptionError, match="sam_vit_b finds no objects by itself"):
        detected_records(sam, sam, IMAGE, options)
    for model in (fast_sam, detector):
        with pytest.raises(OptionError, match="use it without a detector"):
            detected_records(model, detector, IMAGE, options)
