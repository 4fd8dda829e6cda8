"""The evaluation protocol, with stand-in models whose scores are known beforehand."""

import json

import numpy as np
import pytest
from PIL import Image

from anysam.datasets import read_collection
from anysam.evaluate import promptable
from anysam.evaluate.promptable import Part, chosen_masks, evaluate, score_baselines, score_image
from anysam.masks import mask_iou
from anysam.results import Prediction
from test_datasets import write_folder


class Oracle:
    """Knows the targets: a box or the last of three clicks gives the right mask, a lone click the wrong guess first."""

    def __init__(self, targets):
        self.targets, self.prompts = targets, []

    def encode(self, image):
        return "encoded"

    def predict(self, encoded, prompt, multimask):
        if isinstance(prompt, list):
            return [self.predict(encoded, each, multimask) for each in prompt]
        self.prompts.append(prompt)
        x, y = prompt.points[0] if prompt.box is None else (prompt.box[:2] + prompt.box[2:]) / 2
        target = next(t for t in self.targets if t[int(y), int(x)])
        if multimask:
            half = target.copy()
            half[:, : int(x)] = False
            masks, scores = np.stack([half, target, ~target]), np.array([0.9, 0.5, 0.1], np.float32)
        else:
            masks, scores = target[None], np.array([0.9], np.float32)
        return Prediction(masks, scores, masks.astype(np.float32))


@pytest.fixture
def targets():
    y, x = np.mgrid[:60, :80]
    return [(y - 20) ** 2 + (x - 20) ** 2 < 15**2, (y - 35) ** 2 + (x - 55) ** 2 < 20**2]


def test_scores_follow_the_protocol(targets):
    model = Oracle(targets)
    scores = score_image(model, np.zeros((60, 80, 3), np.uint8), targets)
    assert scores["box"] == [1.0, 1.0] and scores["oracle_of_3"] == [1.0, 1.0]
    # the highest predicted IoU names the half of the disc that lies right of the click
    assert scores["one_click"] == [pytest.approx(0.5, abs=0.05)] * 2
    assert scores["three_clicks"] == [1.0, 1.0]


def test_the_second_click_corrects_the_first_mask_with_its_logits(targets):
    model = Oracle(targets[:1])
    score_image(model, np.zeros((60, 80, 3), np.uint8), targets[:1])
    box, click, second = model.prompts  # the third click is not needed: the second mask is right
    assert box.box.tolist() == [6, 6, 35, 35]
    assert click.points.tolist() == [[20, 20]]
    assert second.points[0].tolist() == [20, 20] and second.points[1][0] < 20  # in the missing left half
    assert second.labels.tolist() == [1, 1]
    assert second.low_res_logits.sum() == pytest.approx(targets[0][:, 20:].sum())


def test_the_box_baseline_is_the_share_of_the_box_that_the_mask_fills(targets):
    rng = np.random.default_rng(0)
    scores = score_baselines(rng.integers(0, 255, (60, 80, 3), np.uint8), targets)
    # the discs are 29 and 39 pixels wide
    assert scores["box_as_mask"] == [targets[0].sum() / 29**2, targets[1].sum() / 39**2]
    assert all(0 <= score <= 1 for score in scores["grabcut"])


def test_the_mean_averages_data_sets_and_not_masks(tmp_path, targets, monkeypatch):
    write_folder(tmp_path / "one", {"a.png": [(targets[0], 0)], "b.png": [(targets[1], 0)]}, "val")
    write_folder(tmp_path / "two", {"c.png": [(targets[0], 0)]}, "val")
    for path in (tmp_path / "one/images/a.png", tmp_path / "one/images/b.png", tmp_path / "two/images/c.png"):
        Image.fromarray(np.zeros((60, 80, 3), np.uint8)).save(path)
    given = iter([0.2, 0.4, 0.9])

    def fixed(model, image, masks):
        value = next(given)
        return {name: [value] for name in promptable.SCORES[:4]}

    monkeypatch.setattr(promptable, "score_image", fixed)
    monkeypatch.setattr(promptable, "load", lambda name, variant: None)
    rows = []
    collection = read_collection(tmp_path, "val")
    parts = {name: [Part(None, None, [entry], 4, False) for entry in own] for name, own in collection.items()}
    table = evaluate(parts, jobs=1, progress=rows.append)
    assert table["one"]["box"] == pytest.approx(0.3) and table["two"]["box"] == pytest.approx(0.9)
    assert table["mean"]["box"] == pytest.approx(0.6)
    assert table["mean"]["masks"] == 3 and len(rows) == 2 and "grabcut" not in table["mean"]
    json.dumps(table)


def test_the_masks_of_an_image_are_the_same_in_every_run_and_not_tiny(tmp_path, targets):
    tiny = np.zeros((60, 80), bool)
    tiny[0, :15] = True
    folder = {"a.png": [(tiny, 0), (targets[0], 0), (targets[1], 0), (targets[0] | targets[1], 0)]}
    write_folder(tmp_path / "set", folder, "val")
    (entry,) = read_collection(tmp_path, "val")["set"]
    first, again = chosen_masks(entry, 2), chosen_masks(entry, 2)
    assert len(first) == 2 and all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert len(chosen_masks(entry, 10)) == 3
    assert all(mask_iou(mask, tiny) < 0.1 for mask in chosen_masks(entry, 10))


def test_two_processes_give_the_scores_of_one(tmp_path, targets):
    write_folder(tmp_path / "set", {f"{i}.png": [(targets[i], 0)] for i in range(2)}, "val")
    for i in range(2):  # clear objects: on noise, a rounding error may move a correcting click
        image = np.where(targets[i][..., None], (220, 60, 40), (60, 90, 120)).astype(np.uint8)
        Image.fromarray(image).save(tmp_path / f"set/images/{i}.png")
    entries = read_collection(tmp_path, "val")["set"]
    parts = {"set": [Part(None, None, [entry], 4, True) for entry in entries]}
    one, two = (evaluate(parts, jobs, lambda row: None) for jobs in (1, 2))
    assert set(one["mean"]) == {"images", "masks", *promptable.SCORES}
    # processes may round differently: a pixel of the smaller disc is 0.0014
    for key, value in one["set"].items():
        assert two["set"][key] == pytest.approx(value, abs=5e-3)
