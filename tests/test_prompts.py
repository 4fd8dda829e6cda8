"""Prompts: what is accepted, what is refused and how, and what models receive."""

import json
import re

import numpy as np
import pytest
import torch

from anysam.errors import PromptError
from anysam.masks import decode_rle
from anysam.prompts import Prompt, resolve_prompt, stroke_to_points, validate_prompt

IMAGE_SIZE = (40, 60)  # H, W


def square_mask() -> np.ndarray:
    mask = np.zeros(IMAGE_SIZE, dtype=bool)
    mask[10:20, 30:45] = True
    return mask


def test_lists_become_arrays_and_labels_default_to_foreground():
    prompt = Prompt(points=[[1, 2], [3.5, 4]], box=(1, 2, 3, 4))
    assert prompt.points.dtype == np.float64
    assert prompt.points.tolist() == [[1.0, 2.0], [3.5, 4.0]]
    assert prompt.labels.dtype == np.int64
    assert prompt.labels.tolist() == [1, 1]
    assert prompt.box.tolist() == [1.0, 2.0, 3.0, 4.0]


def test_a_prompt_keeps_its_values_when_the_caller_changes_theirs():
    points = np.array([[1.0, 2.0]])
    mask = square_mask()
    by_point, by_mask = Prompt(points=points), Prompt(mask=mask)
    points[:] = 9
    mask[:] = True
    assert by_point.points.tolist() == [[1.0, 2.0]]
    assert by_mask.mask.sum() == 150
    with pytest.raises(ValueError, match="read-only"):
        by_point.points[0, 0] = 7


def test_empty_points_count_as_none():
    prompt = Prompt(points=[], labels=[], box=[0, 0, 5, 5])
    assert prompt.points is None
    assert prompt.labels is None


NAN = float("nan")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "empty"),
        ({"points": []}, "empty"),
        ({"points": [1, 2]}, r"points must be \(N, 2\).*got \(2,\); write one point as \[\[x, y\]\]"),
        ({"points": [1, 2, 3]}, r"points must be \(N, 2\).*got \(3,\)"),
        ({"points": [[1, 2, 3]]}, r"got \(1, 3\)"),
        ({"points": [[1, 2], [3]]}, "must be numbers"),
        ({"points": "here"}, "must be numbers"),
        ({"points": [[1, NAN]]}, "finite"),
        ({"points": [[1, float("inf")]]}, "finite"),
        ({"points": np.array([[NAN, 5.0]])}, r"got \[\[nan, 5\.0\]\]\.$"),
        ({"points": torch.ones(1, 2, requires_grad=True)}, "must be numbers"),
        ({"points": [[1, 2]], "labels": [1, 0]}, "got 2 labels for 1 points"),
        ({"points": [[1, 2]], "labels": []}, "got 0 labels for 1 points"),
        ({"labels": [1]}, "got 1 labels for 0 points"),
        ({"points": [[1, 2]], "labels": [2]}, r"1 \(on the object\) or 0"),
        ({"points": [[1, 2]], "labels": [0.5]}, r"1 \(on the object\) or 0"),
        ({"points": [[1, 2]], "labels": ["a"]}, "labels must be numbers"),
        ({"box": [1, 2, 3]}, r"box must be \(4,\).*got \(3,\)"),
        ({"box": [[1, 2, 3, 4]]}, "several boxes are several prompts"),
        ({"box": [10, 10, 10, 20]}, r"got 10,10,10,20 \(0 wide, 10 high\)"),
        ({"box": [10, 20, 15, 12]}, r"5 wide, -8 high"),
        ({"box": [1, 2, NAN, 4]}, "finite"),
        ({"mask": np.zeros(IMAGE_SIZE, dtype=bool)}, "no pixel is set"),
        ({"mask": np.zeros((1, *IMAGE_SIZE), dtype=bool)}, r"got bool \(1, 40, 60\)"),
        ({"mask": np.ones(IMAGE_SIZE)}, "got float64"),
        ({"mask": [[True], [True, False]]}, r"must be \(H, W\)"),
        ({"mask": np.array([[0, 1, 2]])}, "binary"),
        ({"low_res_logits": np.zeros((1, 4, 4))}, r"got \(1, 4, 4\); take one row"),
        ({"low_res_logits": [[NAN]]}, "finite"),
        ({"polygon": [[1, 2], [3, 4]]}, r"N at least 3"),
        ({"scribble": []}, r"N at least 1"),
        ({"mask": square_mask(), "polygon": [[1, 2], [3, 4], [5, 1]]}, "got mask and polygon"),
        ({"mask": square_mask(), "low_res_logits": np.zeros((4, 4))}, "got mask and low_res_logits"),
    ],
)
def test_malformed_prompts_are_refused_in_one_sentence(arguments, message):
    with pytest.raises(PromptError, match=message) as caught:
        Prompt(**arguments)
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith(".")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"points": [[5, 5], [61, 5]]}, "point 61,5 lies outside the image, which is 60x40"),
        ({"points": [[5, -0.5]]}, "point 5,-0.5"),
        ({"points": [[5, 41]]}, "point 5,41"),
        ({"polygon": [[1, 1], [70, 1], [5, 5]]}, "polygon vertex 70,1"),
        ({"scribble": [[1, 1], [1, 99]]}, "scribble point 1,99"),
        ({"scribble_negative": [[-1, 1]]}, "scribble_negative point -1,1"),
        ({"box": [60, 0, 70, 10]}, "box 60,0,70,10 lies outside"),
        ({"box": [-9, -9, 0, 10]}, "box -9,-9,0,10 lies outside"),
        ({"mask": square_mask().T}, "mask is 40x60 but the image is 60x40"),
    ],
)
def test_prompts_that_miss_the_image_are_refused(arguments, message):
    prompt = Prompt(**arguments)
    for function in (validate_prompt, resolve_prompt):
        with pytest.raises(PromptError, match=re.escape(message)):
            function(prompt, IMAGE_SIZE)


def test_a_text_keeps_its_words_and_survives_json():
    prompt = Prompt(text=" the  red\ncar ")
    assert prompt.text == "the red car"
    assert prompt.to_dict() == {"text": "the red car"}
    assert Prompt.from_dict(prompt.to_dict()).text == "the red car"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"text": ""}, "text is empty"),
        ({"text": " \t\n"}, "text is empty"),
        ({"text": ["a", "b"]}, "must be a string, got list"),
        ({"text": "car", "box": [0, 0, 5, 5]}, "stands alone, got text and box"),
    ],
)
def test_malformed_texts_are_refused(arguments, message):
    with pytest.raises(PromptError, match=message):
        Prompt(**arguments)


def test_a_text_is_nothing_that_can_be_put_in_points():
    with pytest.raises(PromptError, match="Model.find"):
        resolve_prompt(Prompt(text="car"), IMAGE_SIZE)


def test_the_edges_of_the_image_belong_to_it_and_boxes_may_reach_over():
    prompt = Prompt(points=[[0, 0], [60, 40]], box=[-5, -5, 70, 3])
    resolved = resolve_prompt(prompt, IMAGE_SIZE)
    assert resolved.points.tolist() == [[0, 0], [60, 40]]
    assert resolved.box.tolist() == [-5, -5, 70, 3]
    assert resolved.mask is None


def test_a_box_alone_resolves_to_no_points():
    resolved = resolve_prompt(Prompt(box=[1, 2, 3, 4]), IMAGE_SIZE)
    assert resolved.points.shape == (0, 2)
    assert resolved.labels.shape == (0,)
    assert resolved.labels.dtype == np.int64


def test_a_mask_alone_brings_its_tight_box_but_not_beside_points():
    alone = resolve_prompt(Prompt(mask=square_mask()), IMAGE_SIZE)
    assert alone.box.tolist() == [30, 10, 45, 20]
    np.testing.assert_array_equal(alone.mask, square_mask())
    assert resolve_prompt(Prompt(mask=square_mask(), points=[[35, 15]]), IMAGE_SIZE).box is None
    given = resolve_prompt(Prompt(mask=square_mask(), box=[1, 2, 3, 4]), IMAGE_SIZE)
    assert given.box.tolist() == [1, 2, 3, 4]


def test_masks_of_0_and_255_are_accepted():
    prompt = Prompt(mask=square_mask().astype(np.uint8) * 255)
    np.testing.assert_array_equal(prompt.mask, square_mask())


def test_a_polygon_becomes_a_mask_with_its_box():
    resolved = resolve_prompt(Prompt(polygon=[[30, 10], [45, 10], [45, 20], [30, 20]]), IMAGE_SIZE)
    np.testing.assert_array_equal(resolved.mask, square_mask())
    assert resolved.box.tolist() == [30, 10, 45, 20]


def test_a_polygon_without_a_pixel_is_refused():
    with pytest.raises(PromptError, match="covers no pixel"):
        resolve_prompt(Prompt(polygon=[[1, 1], [20, 1], [30, 1]]), IMAGE_SIZE)


def test_a_long_stroke_becomes_eight_evenly_spaced_points_on_it():
    points = stroke_to_points(np.array([[0.0, 0.0], [80.0, 0.0], [80.0, 80.0]]))
    assert points.tolist() == [[10, 0], [30, 0], [50, 0], [70, 0], [80, 10], [80, 30], [80, 50], [80, 70]]


def test_a_short_stroke_and_a_dab_become_one_point():
    assert stroke_to_points(np.array([[4.0, 4.0], [8.0, 4.0]])).tolist() == [[6, 4]]
    assert stroke_to_points(np.array([[4.0, 7.0]])).tolist() == [[4, 7]]
    assert stroke_to_points(np.array([[4.0, 7.0], [4.0, 7.0]])).tolist() == [[4, 7]]


def test_clicks_and_strokes_are_joined_with_their_labels():
    prompt = Prompt(points=[[1, 1], [2, 2]], labels=[1, 0], scribble=[[5, 5]], scribble_negative=[[9, 9]])
    resolved = resolve_prompt(prompt, IMAGE_SIZE)
    assert resolved.points.tolist() == [[1, 1], [2, 2], [5, 5], [9, 9]]
    assert resolved.labels.tolist() == [1, 0, 1, 0]


@pytest.mark.parametrize(
    "prompt",
    [
        Prompt(points=[[1.25, 2]], labels=[0], box=[1, 2, 3, 4], scribble=[[1, 2]], scribble_negative=[[3, 4]]),
        Prompt(mask=square_mask()),
        Prompt(polygon=[[1, 1], [9, 1], [9, 9]]),
        Prompt(low_res_logits=np.linspace(-7, 7, 12).reshape(3, 4)),
    ],
)
def test_json_form_restores_the_prompt(prompt):
    form = json.loads(json.dumps(prompt.to_dict()))
    restored = Prompt.from_dict(form)
    assert restored.to_dict() == prompt.to_dict()
    given = {name for name, value in vars(prompt).items() if value is not None}
    assert set(form) == given
    for name in given:
        np.testing.assert_array_equal(vars(restored)[name], vars(prompt)[name])
        assert vars(restored)[name].dtype == vars(prompt)[name].dtype


def test_json_form_holds_plain_lists_and_coco_rle():
    assert Prompt(points=[[1, 2]]).to_dict() == {"points": [[1.0, 2.0]], "labels": [1]}
    np.testing.assert_array_equal(decode_rle(Prompt(mask=square_mask()).to_dict()["mask"]), square_mask())


@pytest.mark.parametrize(
    "form",
    [
        [],
        {"point": [[1, 2]]},
        {"points": {"x": 1}},
        {"points": [[1, None]]},
        {"mask": {"size": [2, 2], "counts": "x"}},
        {"mask": "x"},
        {"low_res_logits": {"shape": [2, 2], "float32": "AAAA"}},
        {"low_res_logits": {"shape": [1, 1], "float32": "?"}},
        {"low_res_logits": [[1.0]]},
    ],
)
def test_malformed_json_prompts_are_refused(form):
    with pytest.raises(PromptError):
        Prompt.from_dict(form)
