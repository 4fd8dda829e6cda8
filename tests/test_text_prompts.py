"""Masks for texts: the two rules against golden numbers and a naive second implementation, and every family."""

import dataclasses
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

import anysam
from anysam.automatic.options import EverythingOptions
from anysam.describe.find_options import NEGATIVES, FindOptions
from anysam.describe.text_prompts import choose_by_text, find_by_text, predict_text, predict_texts
from anysam.errors import OptionError, PromptError
from anysam.prompts import Prompt
from anysam.rasters import ArraySource
from anysam.results import MaskRecord
from stand_in_text import COLOURS, ColourScorer
from tiny_models import TINY, tiny_model

CASE = Path(__file__).parent / "parity" / "cases" / "fastsam_functions"
FORM = json.loads((CASE / "case.json").read_text())
STORED = np.load(CASE / "expected.npz")

SIZE = (120, 160)
DISCS = {"red": (30, 30), "green": (80, 30), "blue": (130, 30), "yellow": (30, 85), "black": (80, 85)}


@dataclass
class Fixed:
    """A model whose masks are known."""

    records: list[MaskRecord]
    network: object = None
    variant: str = "fixed"
    asked: list[dict] = field(default_factory=list)

    def everything(self, image, options=None, detector=None, progress=None, store=None):
        self.asked.append({"image": image, "options": options, "detector": detector, "store": store})
        if progress is not None:
            progress(0.5)
            progress(1.0)
        return self.records


@dataclass
class Table:
    """An image-text model whose logits (K, T) are known, column by column."""

    logits: np.ndarray
    texts: list[str] = field(default_factory=list)

    def similarities(self, pictures: Iterable[np.ndarray], texts: Sequence[str]) -> np.ndarray:
        assert sum(1 for _ in pictures) == len(self.logits)
        self.texts = list(texts)
        return self.logits[:, : len(texts)]


def disc(x: int, y: int, radius: int = 18) -> np.ndarray:
    rows, columns = np.mgrid[: SIZE[0], : SIZE[1]]
    return (rows - y) ** 2 + (columns - x) ** 2 <= radius**2


def scene(*colours: str) -> tuple[np.ndarray, list[MaskRecord]]:
    """Discs on grey, and a record of each."""
    image = np.full((*SIZE, 3), COLOURS["grey"], dtype=np.uint8)
    masks = [disc(*place) for place, _ in zip(DISCS.values(), colours, strict=False)]
    for mask, colour in zip(masks, colours, strict=True):
        image[mask] = COLOURS[colour]
    return image, [MaskRecord.from_mask(mask, 0.5 + i / 10) for i, mask in enumerate(masks)]


def boxes(*corners: tuple[int, int, int, int]) -> list[MaskRecord]:
    masks = np.zeros((len(corners), *SIZE), dtype=np.bool_)
    for mask, (x0, y0, x1, y1) in zip(masks, corners, strict=True):
        mask[y0:y1, x0:x1] = True
    return [MaskRecord.from_mask(mask, i) for i, mask in enumerate(masks)]


def numbers(records: list[MaskRecord]) -> list[int]:
    """Which masks these are: `boxes` notes it as their predicted IoU."""
    return [int(record.predicted_iou) for record in records]


def apart(count: int) -> list[MaskRecord]:
    """So many masks that do not touch."""
    return boxes(*((15 * (i % 10), 15 * (i // 10), 15 * (i % 10) + 12, 15 * (i // 10) + 12) for i in range(count)))


GREY = np.full((*SIZE, 3), 128, dtype=np.uint8)
EVERY_MASK = FindOptions(threshold=0, overlap=1)


@pytest.mark.parametrize("family", ["sam", "fast_sam"])
@pytest.mark.parametrize("colour", DISCS)
def test_text_finds_the_disc_of_its_colour(family: str, colour: str) -> None:
    image, records = scene(*DISCS)
    model = Fixed(records, tiny_model(family).network)
    (found,) = find_by_text(model, image, f"the {colour} disc", ColourScorer())
    number = list(DISCS).index(colour)
    assert found.segmentation == records[number].segmentation
    assert found.label == f"the {colour} disc"
    assert found.prompt == {"text": f"the {colour} disc"}
    assert found.label_score == found.label_scores[found.label]
    assert len(found.label_scores) == (1 if family == "fast_sam" else 1 + len(NEGATIVES))
    assert MaskRecord.from_dict(json.loads(json.dumps(found.to_dict()))) == found


def test_several_texts_are_answered_in_their_order_with_one_picture_of_each_mask() -> None:
    image, records = scene(*DISCS)
    scorer, model = ColourScorer(), Fixed(records)
    texts = ["blue", Prompt(text="the  red\none"), "yellow", "blue"]
    found = find_by_text(model, image, texts, scorer)
    assert [record.label for record in found] == ["blue", "the red one", "yellow", "blue"]
    assert [record.segmentation for record in found] == [records[i].segmentation for i in (2, 0, 3, 2)]
    assert (scorer.calls, scorer.pictures, len(model.asked)) == (1, len(records), 1)
    assert scorer.texts[0] == "a photo of blue"
    assert len(scorer.texts) == len(set(scorer.texts)) == 3 + len(NEGATIVES)
    # One mask can be what two texts mean.
    both = find_by_text(model, image, ["red", "red disc"], ColourScorer())
    assert [record.label for record in both] == ["red", "red disc"]
    assert both[0].segmentation == both[1].segmentation == records[0].segmentation


def test_threshold_finds_all_the_red_discs_best_first_and_none_where_there_are_none() -> None:
    image, records = scene("red", "green", "red", "blue", "red")
    image[disc(*DISCS["blue"])] = (200, 50, 50)  # less red
    options = FindOptions(threshold=0.6, view="masked")
    found = find_by_text(Fixed(records), image, ["red", "white"], ColourScorer(), options)
    assert [record.segmentation for record in found] == [records[i].segmentation for i in (0, 4, 2)]
    assert found[0].label_score >= found[1].label_score > found[2].label_score > 0.6
    two = dataclasses.replace(options, limit=2)
    assert find_by_text(Fixed(records), image, "red", ColourScorer(), two) == found[:2]
    assert find_by_text(Fixed(records), image, "white", ColourScorer(), options) == []
    # Without a threshold there is always a best one, or so many.
    assert len(find_by_text(Fixed(records), image, "white", ColourScorer())) == 1
    assert len(find_by_text(Fixed(records), image, "white", ColourScorer(), FindOptions(limit=4))) == 4


def naive_negatives(logits: np.ndarray) -> list[float]:
    return [float(np.exp(row[0] - row.max()) / sum(np.exp(value - row.max()) for value in row)) for row in logits]


@pytest.mark.parametrize("seed", range(5))
def test_negatives_rule_is_a_softmax_for_each_mask_by_itself(seed: int) -> None:
    random = np.random.default_rng(seed)
    records = apart(30)
    negatives = ("grass", "sky", "a wall")[: seed % 3 + 1]
    logits = random.normal(25, 3, (30, 2 + len(negatives))).astype(np.float32)
    scorer = Table(logits)
    options = dataclasses.replace(EVERY_MASK, negatives=negatives, template="{}")
    found = choose_by_text(records, GREY, ["cat", "dog"], scorer, options)
    assert scorer.texts == ["cat", *negatives, "dog"]
    for text, column, part in (("cat", 0, found[:30]), ("dog", 1 + len(negatives), found[30:])):
        own = logits[:, [column, *range(1, 1 + len(negatives))]]
        expected = naive_negatives(own)
        order = sorted(range(30), key=lambda i, expected=expected, own=own: (-expected[i], -own[i, 0]))
        assert numbers(part) == order
        np.testing.assert_allclose([record.label_score for record in part], np.array(expected)[order], rtol=1e-5)
        np.testing.assert_array_equal([record.similarity for record in part], own[order, 0])
        for record in part:
            assert set(record.label_scores) == {text, *negatives}
            assert list(record.label_scores.values()) == sorted(record.label_scores.values(), reverse=True)
            assert sum(record.label_scores.values()) == pytest.approx(1, rel=1e-5)


def test_equal_probabilities_are_ordered_by_similarity_then_as_given() -> None:
    logits = np.array([[20, 10], [30, 20], [25, 15], [30, 20]], dtype=np.float32)
    options = dataclasses.replace(EVERY_MASK, negatives=["other"])
    assert numbers(choose_by_text(apart(4), GREY, "cat", Table(logits), options)) == [1, 3, 2, 0]


def test_words_of_the_text_are_no_negative_of_it() -> None:
    logits = np.array([[25, 20, 15]], dtype=np.float32)
    options = FindOptions(negatives=("Sky", "grass"), template="{}")
    found = choose_by_text(apart(1), GREY, ["sky", "grass"], Table(logits), options)
    assert [set(record.label_scores) for record in found] == [{"sky", "grass"}, {"grass", "Sky"}]
    with pytest.raises(OptionError, match="negatives of 'sky' are the text itself"):
        choose_by_text(apart(1), GREY, "sky", Table(logits), FindOptions(negatives=["sky"]))


def golden_records(name: str) -> tuple[list[MaskRecord], np.ndarray]:
    """The stored masks of a prompt case, with their numbers as predicted IoU, and an image of their size."""
    _, geometry, kind, grid = name.split("/")
    prefix = f"post/{geometry}/{kind}/{grid}"
    shape = FORM["postprocess"][prefix]["masks_shape"]
    masks = np.unpackbits(STORED[f"{prefix}/masks_packed"], count=int(np.prod(shape))).reshape(shape) > 0
    records = [MaskRecord.from_mask(mask, number) for number, mask in enumerate(masks)]
    return records, np.zeros((*shape[1:], 3), dtype=np.uint8)


@pytest.mark.parametrize("name", [name for name in FORM["prompts"] if "tall" in name])
def test_published_rule_has_the_golden_probabilities_and_masks(name: str) -> None:
    records, image = golden_records(name)
    network = tiny_model("fast_sam").network
    facts = FORM["prompts"][name]["text"]
    for key in (key for key in facts if key != "dropped"):
        scorer = Table(100 * STORED[f"{name}/text/{key}_similarities"][:, None])
        (best,) = find_by_text(Fixed(records, network), image, "any text", scorer)
        assert scorer.texts == ["any text"]
        assert best.predicted_iou == facts[key]["mask_index_chosen_by_utils.tools"]
        (wider,) = find_by_text(Fixed(records), image, "any text", scorer, FindOptions(wider=True))
        assert wider.predicted_iou == facts[key]["mask_index_chosen_by_utils.tools_wider"]
        found = find_by_text(Fixed(records, network), image, "any text", scorer, EVERY_MASK)
        by_number = sorted(found, key=lambda record: record.predicted_iou)
        assert [r.predicted_iou for r in records if r.predicted_iou not in numbers(found)] == facts["dropped"]
        np.testing.assert_allclose(
            [record.label_score for record in by_number],
            STORED[f"{name}/text/{key}_probabilities"],
            rtol=1e-5,
            atol=1e-9,
        )
        assert best.label_scores == {"any text": best.label_score}
        assert best.label_score == found[0].label_score == max(record.label_score for record in found)


def test_mask_that_comes_twice_is_shown_once_and_counts_twice() -> None:
    a, b, again = boxes((0, 0, 20, 20), (40, 0, 60, 20), (0, 0, 20, 20))
    scorer = Table(np.array([[3.0], [2.0]]))
    options = FindOptions(rule="published", threshold=0)
    found = choose_by_text([a, b, again], GREY, "cat", scorer, options)
    assert numbers(found) == [0, 1]
    assert found[0].label_score == pytest.approx(np.exp(3) / (2 * np.exp(3) + np.exp(2)), rel=1e-5)


def test_rule_follows_from_what_is_asked_and_from_the_family() -> None:
    for options, rules in (
        (FindOptions(), ("negatives", "published")),
        (FindOptions(rule="negatives"), ("negatives", "negatives")),
        (FindOptions(rule="published"), ("published", "published")),
        (FindOptions(wider=True), ("published", "published")),
        (FindOptions(negatives=["sky"]), ("negatives", "negatives")),
        (FindOptions(template="{}"), ("negatives", "negatives")),
    ):
        assert (options.rule_for(False), options.rule_for(True)) == rules


def test_masks_of_up_to_a_hundred_pixels_are_no_candidates() -> None:
    records = boxes((0, 0, 10, 10), (20, 0, 31, 10), (40, 0, 41, 1), (60, 60, 60, 60))
    scorer = ColourScorer()
    assert numbers(choose_by_text(records, GREY, "grey", scorer, EVERY_MASK)) == [1]
    assert scorer.pictures == 1
    assert sorted(
        numbers(choose_by_text(records, GREY, "grey", scorer, dataclasses.replace(EVERY_MASK, min_area=0)))
    ) == [
        0,
        1,
        2,
    ]


def naive_without_overlaps(masks: list[np.ndarray], most: float) -> list[int]:
    """Numbers of masks, best first, of which no two have more than `most` of the smaller in common."""
    kept: list[int] = []
    for i, mask in enumerate(masks):
        if all((mask & masks[j]).sum() / min(mask.sum(), masks[j].sum()) <= most for j in kept):
            kept.append(i)
    return kept


@pytest.mark.parametrize("overlap", [0, 0.3, 0.8, 1])
def test_of_overlapping_masks_the_less_probable_is_left_out(overlap: float) -> None:
    random = np.random.default_rng(3)
    corners = [(x, y, x + int(w), y + int(h)) for x, y, w, h in random.integers(11, 60, (40, 4)).tolist()]
    records = boxes(*corners)
    logits = np.linspace(30, 10, 40, dtype=np.float32)[:, None]
    options = FindOptions(rule="published", threshold=0, overlap=overlap)
    found = numbers(choose_by_text(records, GREY, "cat", Table(logits), options))
    assert found == naive_without_overlaps([record.to_mask() for record in records], overlap)
    assert (len(found) == 40) == (overlap == 1)


def test_wider_masks_of_several_hits_are_given_once() -> None:
    records = boxes((0, 0, 20, 20), (0, 0, 60, 60), (30, 30, 50, 50), (80, 0, 100, 20), (1, 0, 61, 60))
    logits = np.array([[30], [1], [29], [28], [2]], dtype=np.float32)
    options = dataclasses.replace(EVERY_MASK, wider=True)
    assert numbers(choose_by_text(records, GREY, "cat", Table(logits), options)) == [1, 3]


def test_progress_rises_to_one_over_both_halves() -> None:
    image, records = scene(*DISCS)
    for masks in (records, []):
        told: list[float] = []
        find_by_text(Fixed(masks), image, "red", ColourScorer(), progress=told.append)
        assert told == sorted(told)
        assert told[:2] == [0.25, 0.5]
        assert told[-1] == 1
        assert told.count(1) == 1
        assert len(told) == 3 + len(masks)


def test_nothing_large_enough_is_an_empty_result_without_a_question() -> None:
    scorer = ColourScorer()
    assert find_by_text(Fixed([]), GREY, ["red", "blue"], scorer) == []
    assert find_by_text(Fixed(boxes((0, 0, 3, 3))), GREY, "red", scorer) == []
    assert scorer.calls == 0


def test_how_masks_are_proposed_is_passed_on() -> None:
    model, detector, store = Fixed(apart(2)), Fixed([]), object()
    options = EverythingOptions(points_per_side=3)
    source = ArraySource(GREY)
    find_by_text(model, source, "red", ColourScorer(), None, options, detector, None, store)
    assert model.asked == [{"image": source, "options": options, "detector": detector, "store": store}]


# --- every family


COARSE = EverythingOptions(points_per_side=3, pred_iou_thresh=0, stability_score_thresh=0)


def photograph(size: tuple[int, int] = (70, 90)) -> np.ndarray:
    rows, columns = np.mgrid[: size[0], : size[1]]
    return np.stack([rows * 3 % 256, columns * 2 % 256, (rows * columns) % 256], axis=2).astype(np.uint8)


def proposing(family: str) -> tuple[anysam.Model, EverythingOptions]:
    return tiny_model(family), EverythingOptions(confidence=0.01) if family == "fast_sam" else COARSE


@pytest.mark.parametrize("family", [family for family in TINY if family != "object_aware"])
def test_every_family_finds_masks_by_text_and_predicts_them(family: str) -> None:
    model, options = proposing(family)
    image = photograph()
    proposed = [record for record in model.everything(image, options) if record.area > 100]
    assert proposed
    scorer = ColourScorer()
    found = find_by_text(model, image, ["red", "blue"], scorer, FindOptions(limit=2, overlap=1), options)
    assert (scorer.calls, scorer.pictures) == (1, len({record.segmentation["counts"] for record in proposed}))
    assert [record.label for record in found] == [text for text in ("red", "blue") for _ in proposed[:2]]
    plain = [dataclasses.replace(record, prompt=None) for record in proposed]
    for record in found:
        words = dict.fromkeys(("label", "label_score", "label_scores", "similarity", "prompt"))
        assert dataclasses.replace(record, **words) in plain
        assert MaskRecord.from_dict(record.to_dict()) == record

    encoded = model.encode(image)
    prediction = predict_text(model, encoded, image, "red", ColourScorer(), None, FindOptions(overlap=1), options)
    np.testing.assert_array_equal(prediction.masks, [found[0].to_mask()])
    assert prediction.iou_predictions.tolist() == [np.float32(found[0].label_score)]
    assert prediction.extras["similarities"].tolist() == [np.float32(found[0].similarity)]
    assert prediction.extras["predicted_ious"].tolist() == [np.float32(found[0].predicted_iou)]
    low_res_size = model.network.preprocess.low_res_size(encoded.input_size)
    assert prediction.low_res_logits.shape == (1, *low_res_size)
    assert prediction.low_res_logits.dtype == np.float32


def test_detector_alone_proposes_no_masks() -> None:
    with pytest.raises(OptionError, match="finds boxes without masks"):
        find_by_text(tiny_model("object_aware"), photograph(), "red", ColourScorer())


def test_large_image_is_searched_by_tiles_and_its_crops_are_read_by_windows() -> None:
    model = tiny_model("anysam_lite")
    image = photograph((90, 150))
    tiles, every_mask = dataclasses.replace(COARSE, tile=64), dataclasses.replace(EVERY_MASK, min_area=0)
    proposed = model.everything(ArraySource(image), tiles)
    found = find_by_text(model, ArraySource(image), "red", ColourScorer(), every_mask, tiles)
    assert len(found) == len(proposed) > 0
    assert found == find_by_text(model, image, "red", ColourScorer(), every_mask, tiles)


def test_built_in_model_finds_the_red_disc_of_a_picture() -> None:
    image, records = scene("red", "green", "blue", "yellow")
    model = anysam.load()
    options = dataclasses.replace(anysam.preset("default", model.variant), points_per_side=6)
    for colour, place in zip(("red", "blue"), (0, 2), strict=True):
        (found,) = find_by_text(model, image, f"the {colour} disc", ColourScorer(), FindOptions(view="masked"), options)
        mask, truth = found.to_mask(), records[place].to_mask()
        assert (mask & truth).sum() / (mask | truth).sum() > 0.75


# --- predictions


@pytest.mark.parametrize("family", ["sam", "efficient_sam", "fast_sam"])
def test_prediction_is_the_best_masks_and_their_logits_mark_them(family: str) -> None:
    image, records = scene(*DISCS)
    tiny = tiny_model(family)
    encoded = tiny.encode(image)
    model = Fixed(records, tiny.network)
    prediction = predict_text(model, encoded, image, Prompt(text="green"), ColourScorer(), True)
    assert model.asked[0]["image"] is encoded
    assert len(prediction.masks) == 3
    assert prediction.best == 0
    np.testing.assert_array_equal(prediction.masks[0], records[1].to_mask())
    assert (np.diff(prediction.iou_predictions) <= 0).all()
    np.testing.assert_array_equal(prediction.iou_predictions, prediction.extras["text_probabilities"])
    # Where the picture lies in the low-resolution frame: from it, the mask as far as its cells can show it.
    h, w = prediction.low_res_logits.shape[1:]
    top = (h - round(h * SIZE[0] / SIZE[1])) // 2 if family == "fast_sam" and h == w else 0
    scale = (h, w) if family == "efficient_sam" else (w * SIZE[0] / SIZE[1], w)
    rows = (np.arange(SIZE[0]) * scale[0] / SIZE[0]).astype(int) + top
    columns = (np.arange(SIZE[1]) * scale[1] / SIZE[1]).astype(int)
    back = prediction.low_res_logits[0][rows][:, columns] > 0
    truth = records[1].to_mask()
    assert (back & truth).sum() / (back | truth).sum() > 0.6
    assert abs(prediction.low_res_logits).max() <= 10


def test_several_texts_are_predicted_in_one_pass() -> None:
    image, records = scene(*DISCS)
    tiny = tiny_model("sam")
    encoded, model, scorer = tiny.encode(image), Fixed(records, tiny.network), ColourScorer()
    texts = ["red", Prompt(text="green"), "red"]
    predictions = predict_texts(model, encoded, image, texts, scorer)
    assert (len(model.asked), scorer.calls, scorer.pictures) == (1, 1, len(records))
    for prediction, place in zip(predictions, (0, 1, 0), strict=True):
        np.testing.assert_array_equal(prediction.masks, [records[place].to_mask()])


def test_logits_of_a_text_prediction_can_be_refined() -> None:
    model, options = proposing("sam")
    image = photograph()
    encoded = model.encode(image)
    prediction = predict_text(model, encoded, image, "red", ColourScorer(), everything=options)
    refined = model.predict(encoded, Prompt(points=[[40, 30]], low_res_logits=prediction.low_res_logits[0]))
    assert refined.masks.shape[1:] == image.shape[:2]


@pytest.mark.parametrize("family", ["sam", "fast_sam"])
def test_prediction_of_nothing_is_an_empty_mask_with_score_zero(family: str) -> None:
    tiny = tiny_model(family)
    encoded = tiny.encode(GREY)
    for records, options in ((boxes((0, 0, 3, 3)), None), (apart(2), FindOptions(negatives=["grey"], threshold=0.9))):
        prediction = predict_text(Fixed(records, tiny.network), encoded, GREY, "red", ColourScorer(), True, options)
        assert prediction.masks.shape == (1, *SIZE)
        assert not prediction.masks.any()
        assert prediction.iou_predictions.tolist() == [0]
        assert (prediction.low_res_logits == -10).all()
        assert np.isnan(prediction.extras["similarities"]).all()


# --- what is refused


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rule": "softmax"}, "rule must be published or negatives, or None, got 'softmax'"),
        ({"negatives": "sky"}, "negatives must be a list of texts, .* got 'sky'"),
        ({"negatives": [1]}, "negatives must be a list of texts"),
        ({"negatives": []}, "negatives must be one text at least"),
        ({"negatives": ["sky", "  "]}, "none of them empty"),
        ({"template": "a photo"}, r"one \{\} in it"),
        ({"template": "{} and {}"}, r"one \{\} in it"),
        ({"wider": 1}, "wider must be True or False, got 1"),
        ({"threshold": 1.5}, "threshold must be a number from 0 to 1, got 1.5"),
        ({"threshold": float("nan")}, "threshold must be a number from 0 to 1, got nan"),
        ({"threshold": True}, "threshold must be a number from 0 to 1, got True"),
        ({"overlap": None}, "overlap must be a number from 0 to 1, got None"),
        ({"limit": 0}, "limit must be a whole number of at least 1, got 0"),
        ({"min_area": -1}, "min_area must be a whole number of at least 0, got -1"),
        ({"view": "circle"}, "There is no view 'circle'"),
        ({"rule": "published", "negatives": ["sky"]}, "without negatives; leave negatives out"),
        ({"rule": "published", "template": "{}"}, "without template; leave template out"),
        ({"wider": True, "negatives": ["sky"]}, "the rule negatives without wider"),
        ({"wider": True, "rule": "negatives"}, "wider belongs to the published rule"),
    ],
)
def test_options_out_of_range_or_against_each_other_are_refused(options: dict, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        FindOptions(**options)


def test_options_have_a_json_form() -> None:
    for options in (FindOptions(), FindOptions(negatives=["the  sky", "grass", "grass"], threshold=0.5, view="crop")):
        form = json.loads(json.dumps(dataclasses.asdict(options)))
        assert FindOptions(**form) == options
    assert FindOptions(negatives=["the  sky", "grass", "grass"]).negatives == ("the sky", "grass")


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ([], "list of texts is empty"),
        ("  ", "text is empty"),
        (["red", ""], "text is empty"),
        (["red", 3], "text must be a string, got int"),
        (7, "must be a text or a list of texts, got int"),
        (Prompt(points=[[1, 1]]), "A prompt without a text"),
        (["red", Prompt(box=[0, 0, 1, 1])], "A prompt without a text"),
    ],
)
def test_texts_that_are_none_are_refused_before_any_work(texts: object, message: str) -> None:
    model = Fixed(apart(1))
    with pytest.raises(PromptError, match=message):
        find_by_text(model, GREY, texts, ColourScorer())
    assert not model.asked


def test_what_does_not_fit_is_refused_before_any_work() -> None:
    model = Fixed(apart(1))
    with pytest.raises(OptionError, match="Texts need an image-text model, which object is not"):
        find_by_text(model, GREY, "red", object())
    with pytest.raises(OptionError, match="got .*str; use anysam.read_image"):
        find_by_text(model, "photo.jpg", "red", ColourScorer())
    with pytest.raises(OptionError, match="options must be anysam.FindOptions, got EverythingOptions"):
        find_by_text(model, GREY, "red", ColourScorer(), EverythingOptions())
    with pytest.raises(OptionError, match="negatives of 'sky' are the text itself"):
        find_by_text(model, GREY, "sky", ColourScorer(), FindOptions(negatives=["Sky"]))
    assert not model.asked
    with pytest.raises(OptionError, match="Mask 1 of 1 belongs to an image of 160x120 pixels, but this one has 30x20"):
        choose_by_text(apart(1), np.zeros((20, 30, 3), dtype=np.uint8), "red", ColourScorer())


@pytest.mark.parametrize(
    ("logits", "message"),
    [
        (np.zeros((3, 1)), r"must give \(2, 1\) for 2 pictures and 1 texts, got \(3, 1\)"),
        (np.array([[1.0], [np.nan]]), "gave values that are no numbers"),
    ],
)
def test_damaged_answers_of_an_image_text_model_are_told(logits: np.ndarray, message: str) -> None:
    class Broken:
        def similarities(self, pictures: Iterable[np.ndarray], texts: Sequence[str]) -> np.ndarray:
            return logits

    with pytest.raises(OptionError, match=message):
        choose_by_text(apart(2), GREY, "red", Broken(), FindOptions(rule="published"))


def test_prediction_needs_the_image_that_was_encoded() -> None:
    tiny = tiny_model("sam")
    encoded, model = tiny.encode(GREY), Fixed(apart(2), tiny.network)
    with pytest.raises(OptionError, match="The image has 90x70 pixels, but the one that was encoded 160x120"):
        predict_text(model, encoded, photograph(), "red", ColourScorer())
    with pytest.raises(OptionError, match="EncodedImage is needed, got ndarray"):
        predict_text(model, GREY, GREY, "red", ColourScorer())
    with pytest.raises(PromptError, match="must be a text or an anysam.Prompt, got list"):
        predict_text(model, encoded, GREY, ["red"], ColourScorer())
    with pytest.raises(OptionError, match="multimask must be True, False or None, got 3"):
        predict_text(model, encoded, GREY, "red", ColourScorer(), 3)
