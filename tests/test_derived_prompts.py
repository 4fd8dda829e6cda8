"""Masks for models that take none: what is derived, what is kept, what is chosen, and the limit on points."""

import numpy as np
import pytest

from anysam.derived_prompts import check_points, choose_by_mask, innermost_point, prompt_from_mask
from anysam.errors import PromptError
from anysam.prompts import Prompt, resolve_prompt
from anysam.results import Prediction

SIZE = (40, 60)


def plate() -> np.ndarray:
    """A rectangle of rows 10..24 and columns 20..30, with a thin arm to the right."""
    mask = np.zeros(SIZE, dtype=bool)
    mask[10:25, 20:31] = True
    mask[17, 31:50] = True
    return mask


def test_innermost_point_is_the_centre_of_the_thickest_part() -> None:
    x, y = innermost_point(plate())
    assert (x, y) == (25.5, 15.5)  # five columns and at least five rows away from every edge; the first such pixel
    full = np.ones((5, 9), dtype=bool)
    assert innermost_point(full)[1] == 2.5  # the image's edge is a border too


def test_innermost_point_lies_in_a_mask_that_is_hollow() -> None:
    y, x = np.mgrid[:40, :60]
    radius = np.hypot(y - 20, x - 30)
    ring = (radius < 15) & (radius > 9)
    px, py = innermost_point(ring)
    assert ring[int(py), int(px)]


def test_mask_alone_becomes_its_box_and_a_click() -> None:
    resolved = resolve_prompt(Prompt(mask=plate()), SIZE)
    derived = prompt_from_mask(resolved, plate(), None)
    assert derived.mask is None
    assert derived.box is not None and derived.box.tolist() == [20, 10, 50, 25]
    assert derived.points.tolist() == [[25.5, 15.5]]
    assert derived.labels.tolist() == [1]


def test_what_the_user_gave_is_kept() -> None:
    prompt = Prompt(mask=plate(), box=[1, 2, 30, 30], points=[[22, 12], [3, 3]], labels=[1, 0])
    derived = prompt_from_mask(resolve_prompt(prompt, SIZE), plate(), None)
    assert derived.box is not None and derived.box.tolist() == [1, 2, 30, 30]
    assert derived.points.tolist() == [[22, 12], [3, 3]]
    only_background = prompt_from_mask(
        resolve_prompt(Prompt(mask=plate(), points=[[3, 3]], labels=[0]), SIZE), plate(), 6
    )
    assert only_background.labels.tolist() == [0, 1]
    assert only_background.box is not None


@pytest.mark.parametrize(("count", "points", "box"), [(6, 6, False), (5, 6, False), (4, 4, True), (3, 4, True)])
def test_nothing_is_derived_beyond_the_room_for_points(count: int, points: int, box: bool) -> None:
    clicks = [[i, 1] for i in range(count)]
    resolved = resolve_prompt(Prompt(mask=plate(), points=clicks, labels=[0] * count), SIZE)
    derived = prompt_from_mask(resolved, plate(), 6)
    assert len(derived.points) == points
    assert (derived.box is not None) == box
    check_points(derived, 6, "x")


def test_the_candidate_most_like_the_mask_is_chosen() -> None:
    other = np.roll(plate(), 5, axis=1)
    masks = np.stack([np.ones(SIZE, dtype=bool), other, plate()])
    logits = np.arange(3, dtype=np.float32)[:, None, None] * np.ones((1, 4, 4), dtype=np.float32)
    extras = {"semantic_tokens": np.array([[1.0], [2.0], [3.0]], dtype=np.float32)}
    candidates = Prediction(masks, np.array([0.9, 0.8, 0.1], dtype=np.float32), logits, extras)
    chosen = choose_by_mask(candidates, plate())
    assert chosen.masks.shape == (1, *SIZE)
    assert np.array_equal(chosen.masks[0], plate())
    assert chosen.iou_predictions.tolist() == [np.float32(0.1)]
    assert chosen.low_res_logits[0, 0, 0] == 2
    assert chosen.extras["semantic_tokens"].tolist() == [[3.0]]


def test_too_many_points_are_refused_with_the_count_and_an_alternative() -> None:
    prompt = resolve_prompt(Prompt(points=[[i, i] for i in range(5)], box=[0, 0, 9, 9]), SIZE)
    with pytest.raises(PromptError, match=r"tiny takes at most 6 points .* a box counting as 2; got 7; .* mobile_sam"):
        check_points(prompt, 6, "tiny")
    check_points(prompt, 7, "tiny")
    check_points(prompt, None, "tiny")


def test_strokes_become_as_many_points_as_there_is_room_for() -> None:
    stroke = [[0, 20], [59, 20]]
    full = resolve_prompt(Prompt(scribble=stroke), (40, 60))
    assert len(full.points) == 5  # one for each SCRIBBLE_SPACING of 10 pixels
    two = resolve_prompt(Prompt(scribble=stroke, scribble_negative=[[0, 1], [59, 1]], box=[0, 0, 9, 9]), SIZE, 6)
    assert two.labels.tolist() == [1, 1, 0, 0]
    crowded = resolve_prompt(Prompt(scribble=stroke, points=[[1, 1]] * 6), SIZE, 6)
    assert len(crowded.points) == 7  # never dropped: the limit is reported, not applied in silence
