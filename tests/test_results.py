"""Predictions and mask records."""

import json
from dataclasses import replace

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from anysam.errors import OptionError
from anysam.prompts import Prompt
from anysam.results import MaskRecord, Prediction

# pycocotools itself is not yet silent under NumPy 2
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def a_mask() -> np.ndarray:
    mask = np.zeros((8, 10), dtype=bool)
    mask[2:5, 3:9] = True
    return mask


def test_best_is_the_highest_predicted_iou():
    prediction = Prediction(np.zeros((3, 8, 10), dtype=bool), np.float32([0.2, 0.9, 0.5]), np.zeros((3, 2, 2)))
    assert prediction.best == 1
    assert isinstance(prediction.best, int)


@pytest.mark.parametrize(
    ("masks", "scores", "logits"),
    [
        (np.zeros((3, 8, 10), dtype=bool), np.zeros(2), np.zeros((3, 2, 2))),
        (np.zeros((8, 10), dtype=bool), np.zeros(1), np.zeros((1, 2, 2))),
        (np.zeros((0, 8, 10), dtype=bool), np.zeros(0), np.zeros((0, 2, 2))),
        (np.zeros((1, 8, 10)), np.zeros(1), np.zeros((1, 2, 2))),
    ],
)
def test_parts_that_do_not_belong_together_are_no_prediction(masks, scores, logits):
    with pytest.raises(OptionError):
        Prediction(masks, scores, logits)


def test_record_holds_the_area_the_box_and_rle_of_pycocotools():
    record = MaskRecord.from_mask(a_mask(), np.float32(0.5), Prompt(points=[[4, 3]]), label="cat")
    assert record.area == 18
    assert record.box == (3.0, 2.0, 9.0, 5.0)
    assert record.size == (8, 10)
    np.testing.assert_array_equal(coco_mask.decode(record.segmentation).astype(bool), a_mask())
    np.testing.assert_array_equal(record.to_mask(), a_mask())


def test_record_survives_json():
    record = MaskRecord.from_mask(a_mask(), 0.5, Prompt(box=[1, 2, 3, 4]), label="cat")
    form = json.loads(json.dumps(record.to_dict()))
    assert form["box"] == [3.0, 2.0, 9.0, 5.0]
    assert form["prompt"] == {"box": [1.0, 2.0, 3.0, 4.0]}
    assert MaskRecord.from_dict(form) == record


def test_words_of_a_record_survive_json_in_their_order():
    words = {
        "label": "红色汽车",
        "label_score": 0.75,
        "label_scores": {"红色汽车": 0.75, "ambulance": 0.2, "cat": 0.05},
    }
    record = replace(
        MaskRecord.from_mask(a_mask(), 0.5), **words, caption="a red car", caption_score=0.5, similarity=27.5
    )
    form = json.loads(json.dumps(record.to_dict()))
    assert form["label_scores"] == words["label_scores"] and form["caption"] == "a red car"
    restored = MaskRecord.from_dict(form)
    assert restored == record
    assert list(restored.label_scores) == ["红色汽车", "ambulance", "cat"]


def test_a_record_of_an_earlier_version_has_no_words():
    form = MaskRecord.from_mask(a_mask(), 0.5).to_dict()
    words = ("label_score", "label_scores", "caption", "caption_score", "similarity")
    for name in words:
        del form[name]
    assert [getattr(MaskRecord.from_dict(form), name) for name in words] == [None] * 5


@pytest.mark.parametrize("change", [{"label_scores": ["cat"]}, {"label_scores": {"cat": "often"}}, {"similarity": "x"}])
def test_malformed_words_are_refused(change):
    with pytest.raises(OptionError, match="malformed"):
        MaskRecord.from_dict({**MaskRecord.from_mask(a_mask(), 0.5).to_dict(), **change})


def test_record_of_an_empty_mask_has_no_area_and_a_zero_box():
    record = MaskRecord.from_mask(np.zeros((8, 10), dtype=bool), 0.1)
    assert (record.area, record.box) == (0, (0.0, 0.0, 0.0, 0.0))


def test_a_score_that_is_not_a_number_is_refused():
    with pytest.raises(OptionError, match="float32"):
        MaskRecord.from_mask(a_mask(), float("nan"))


@pytest.mark.parametrize("change", [{"box": [1, 2, 3]}, {"area": None}, {"segmentation": {"size": [8, 10]}}])
def test_malformed_records_are_refused(change):
    form = MaskRecord.from_mask(a_mask(), 0.5).to_dict() | change
    with pytest.raises(OptionError):
        MaskRecord.from_dict(form)
