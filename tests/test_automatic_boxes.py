"""Records for many boxes and points: against Model.predict one by one, and with a model that counts what it holds."""

import dataclasses

import numpy as np
import pytest

from anysam import Prompt
from anysam.automatic import boxes as module
from anysam.automatic.boxes import box_records, masks_at_once, point_records, prompt_records, record_of
from anysam.automatic.options import EverythingOptions
from anysam.encoded_image import EncodedImage
from anysam.errors import OptionError, PromptError
from anysam.results import MaskRecord, Prediction
from naive_regions import clean_mask
from tiny_models import tiny_model

OPTIONS = EverythingOptions()
IMAGE = np.random.default_rng(0).integers(0, 256, (48, 80, 3), dtype=np.uint8)
BOXES = [[5, 6, 40, 30], [0, 0, 80, 48], [70.5, 3, 95, 20], [20, 20, 22, 24], [1, 30, 60, 47]]


class Filling:
    """A model that fills the boxes and knows how many masks it was asked for together."""

    network = tiny_model("sam").network

    def __init__(self) -> None:
        self.asked: list[int] = []

    def encode(self, image: np.ndarray) -> EncodedImage:
        return EncodedImage({}, (image.shape[0], image.shape[1]), (1, 1), "", "", "")

    def predict(self, encoded: EncodedImage, prompt: list[Prompt], multimask: bool | None = None) -> list[Prediction]:
        self.asked.append(len(prompt))
        return [self._answer(encoded.original_size, each) for each in prompt]

    def _answer(self, size: tuple[int, int], prompt: Prompt) -> Prediction:
        masks = np.zeros((3, *size), dtype=np.bool_)
        x0, y0, x1, y1 = (max(0, int(side)) for side in (prompt.box if prompt.box is not None else [0, 0, 1, 1]))
        masks[1, y0:y1, x0:x1] = True
        return Prediction(masks, np.float32([0.1, x0 / 100, -0.2]), np.zeros((3, 1, 1), dtype=np.float32))


def same(found: MaskRecord, expected: MaskRecord) -> bool:
    close = found.predicted_iou == pytest.approx(expected.predicted_iou, abs=1e-5)
    ours, theirs = found.to_mask(), expected.to_mask()
    return close and (ours ^ theirs).sum() <= 0.01 * max(theirs.sum(), 1)


@pytest.mark.parametrize("family", ["sam", "mobile_sam_v2", "efficient_sam", "tap", "anysam_lite"])
def test_records_are_the_predictions_one_by_one(family: str) -> None:
    model = tiny_model(family)
    encoded = model.encode(IMAGE)
    for image in (IMAGE, encoded):
        records = box_records(model, image, BOXES, OPTIONS, labels=["a", None, "c", "d", "e"])
        assert [record.label for record in records] == ["a", None, "c", "d", "e"]
        assert [record.prompt["box"] for record in records] == BOXES
        for record, box in zip(records, BOXES, strict=True):
            alone = model.predict(encoded, Prompt(box=box))
            assert same(record, MaskRecord.from_mask(alone.masks[alone.best], alone.iou_predictions[alone.best]))
    points = [[10, 10], [79, 47], [40, 24]]
    for record, point in zip(point_records(model, encoded, points, OPTIONS), points, strict=True):
        alone = model.predict(encoded, Prompt(points=[point]))
        assert same(record, MaskRecord.from_mask(alone.masks[alone.best], alone.iou_predictions[alone.best]))
        assert record.prompt == {"points": [point], "labels": [1]}


def test_fastsam_chooses_among_its_objects_for_each_box() -> None:
    records = box_records(tiny_model("fast_sam"), IMAGE, BOXES, OPTIONS)
    assert len(records) == len(BOXES)


def test_a_record_has_the_best_mask_its_box_and_the_scores() -> None:
    records = box_records(Filling(), IMAGE, [[20, 10, 40.9, 30], [5, 0, 10, 8]], OPTIONS, scores=[0.75, 0.5])
    first, second = records
    assert (first.box, first.area, first.detection_score) == ((20, 10, 40, 30), 400, 0.75)
    assert first.predicted_iou == pytest.approx(0.2)
    assert (second.box, second.area, second.predicted_iou) == ((0, 0, 0, 0), 0, pytest.approx(0.1))  # an empty mask


def test_small_regions_go_where_that_is_wished() -> None:
    mask = np.zeros((20, 20), dtype=np.bool_)
    mask[2:12, 2:12] = mask[15, 15] = True
    mask[5, 5] = False
    whole = np.zeros_like(mask)
    whole[2:12, 2:12] = True
    for part in (None, (2, 2, 16, 16)):
        assert record_of(mask, 0.5, part=part, min_region_area=2) == MaskRecord.from_mask(whole, 0.5)
    options = EverythingOptions(min_mask_region_area=5)
    model = tiny_model("sam")
    plain, clean = (box_records(model, IMAGE, BOXES, each) for each in (OPTIONS, options))
    for before, after in zip(plain, clean, strict=True):
        np.testing.assert_array_equal(after.to_mask(), clean_mask(before.to_mask(), 5)[0])
    assert any(before.area != after.area for before, after in zip(plain, clean, strict=True))


def test_masks_held_together_follow_the_memory_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    boxes = [[i, 0, i + 5, 9] for i in range(10)]
    everything = box_records(Filling(), IMAGE, boxes, OPTIONS)
    for bytes_, lots in ((None, [10]), (48 * 80 * 3 * 4 * 4, [4, 4, 2]), (1, [1] * 10)):
        model = Filling()
        steps: list[float] = []
        options = dataclasses.replace(OPTIONS, max_memory=bytes_)
        assert box_records(model, IMAGE, boxes, options, progress=steps.append) == everything
        assert model.asked == lots
        assert steps == pytest.approx(np.cumsum(lots) / 10)
    assert masks_at_once((10_000, 10_000), OPTIONS) == 2
    assert masks_at_once((100_000, 100_000), OPTIONS) == 1


def test_bad_boxes_are_named_before_any_is_decoded() -> None:
    model = Filling()
    with pytest.raises(PromptError, match="^Box 2 of 3: The box 80,0,90,10 lies outside the image, which is 80x48"):
        box_records(model, IMAGE, [[0, 0, 5, 5], [80, 0, 90, 10], [0, 0, 0, 0]][:2] + [[1, 1, 2, 2]], OPTIONS)
    with pytest.raises(PromptError, match="^Box 3 of 3: box must have x1 > x0"):
        box_records(model, IMAGE, [[0, 0, 5, 5], [1, 1, 9, 9], [5, 5, 5, 9]], OPTIONS)
    with pytest.raises(PromptError, match="^Box 1 of 1: box must be finite"):
        box_records(model, IMAGE, [[0, 0, 5, float("nan")]], OPTIONS)
    with pytest.raises(PromptError, match="^Point 2 of 2: The point 3,48.5 lies outside"):
        point_records(model, IMAGE, [[3, 48], [3, 48.5]], OPTIONS)
    for malformed in ([1, 2, 3, 4], [[1, 2, 3]], [[1, 2, 3, 4], [1, 2]], "boxes"):
        with pytest.raises(PromptError, match="boxes must be"):
            box_records(model, IMAGE, malformed, OPTIONS)
    with pytest.raises(OptionError, match="labels must be one for each of 1 prompts, got 2"):
        box_records(model, IMAGE, [[0, 0, 5, 5]], OPTIONS, labels=["a", "b"])
    assert not model.asked


def test_no_boxes_give_no_records() -> None:
    model = Filling()
    for nothing in ([], np.zeros((0, 4))):
        assert box_records(model, IMAGE, nothing, OPTIONS) == []
    assert prompt_records(model, IMAGE, [], OPTIONS) == [] and not model.asked


@pytest.mark.parametrize("part", [None, (2, 1, 7, 6), (0, 0, 9, 6), (3, 2, 3, 2)])
def test_record_of_a_part_is_the_record_of_the_whole(part: tuple[int, int, int, int] | None) -> None:
    mask = np.zeros((6, 9), dtype=np.bool_)
    if part != (3, 2, 3, 2):
        mask[2:6, 3:6] = np.random.default_rng(1).random((4, 3)) > 0.4
    prompt = Prompt(box=[1, 1, 3, 3])
    expected = MaskRecord.from_mask(mask, 0.5, prompt, "cup")
    assert record_of(mask, 0.5, part=part, prompt=prompt, label="cup") == expected
    assert module.record_of(mask, 0.5, detection_score=0.25).detection_score == 0.25
