"""Names by an image-text model, compared with a stand-in that knows colours and with sums done by hand."""

import math

import numpy as np
import pytest

from anysam.describe.interface import Describer, Words, describe_records
from anysam.describe.labels import LabelDescriber, label_words
from anysam.errors import OptionError
from anysam.results import MaskRecord
from stand_in_text import ColourScorer

NAMES = ("red", "green", "blue")
PLACES = {"red": (slice(4, 24), slice(4, 24)), "blue": (slice(30, 60), slice(50, 90))}
COLOURS = {"red": (220, 30, 30), "blue": (40, 60, 220)}


def painted() -> tuple[np.ndarray, list[MaskRecord]]:
    """A grey image with a red and a blue rectangle, and their masks."""
    image = np.full((64, 96, 3), 128, dtype=np.uint8)
    records = []
    for name, place in PLACES.items():
        image[place] = COLOURS[name]
        mask = np.zeros((64, 96), dtype=np.bool_)
        mask[place] = True
        records.append(MaskRecord.from_mask(mask, 0.9))
    return image, records


class Fixed:
    """Logits that are given, whatever the pictures show."""

    def __init__(self, logits) -> None:
        self.logits = np.array(logits, dtype=np.float32)
        self.texts: list[str] = []

    def similarities(self, pictures, texts):
        self.texts = list(texts)
        assert len(list(pictures)) == len(self.logits)
        return self.logits


def test_masks_are_named_after_what_they_show() -> None:
    image, records = painted()
    describer = LabelDescriber(ColourScorer(), NAMES, view="crop")
    assert isinstance(describer, Describer)
    assert [record.label for record in describe_records(describer, image, records)] == ["red", "blue"]
    assert describe_records(describer, image, []) == []


def test_scores_are_the_softmax_over_the_names_best_first() -> None:
    image, records = painted()
    logits = [[1.0, 3.0, 2.0], [0.0, 0.0, -1.0]]
    words = LabelDescriber(Fixed(logits), NAMES).words(image, records)
    total = math.exp(1) + math.exp(2) + math.exp(3)
    expected = {"green": math.exp(3) / total, "blue": math.exp(2) / total, "red": math.exp(1) / total}
    assert list(words[0].label_scores) == ["green", "blue", "red"]
    assert words[0].label_scores == pytest.approx(expected)
    assert (words[0].label, words[0].label_score) == ("green", pytest.approx(expected["green"]))
    assert (words[0].caption, words[0].caption_score) == (None, None)
    assert list(words[1].label_scores) == ["red", "green", "blue"]  # of equal ones the first comes first
    assert LabelDescriber(Fixed(logits), NAMES, top=1).words(image, records)[1].label_scores == {
        "red": pytest.approx(1 / (2 + math.exp(-1)))
    }


def test_huge_logits_do_not_overflow() -> None:
    image, records = painted()
    words = LabelDescriber(Fixed([[1e4, 0, 0], [-1e4, -1e4, 0]]), NAMES).words(image, records)
    assert [each.label_score for each in words] == [1.0, 1.0]


def test_without_a_wish_five_names_get_a_score_or_all_there_are() -> None:
    names = tuple("abcdefg")
    assert list(label_words(np.arange(7) / 21, names, None).label_scores) == ["g", "f", "e", "d", "c"]
    assert list(label_words(np.array([0.25, 0.75]), ("a", "b"), None).label_scores) == ["b", "a"]
    twice = label_words(np.array([0.5, 0.3, 0.2]), ("cat", "cat", "dog"), 2)
    assert twice.label_scores == {"cat": 0.5, "dog": 0.2}


def test_names_are_asked_in_the_template() -> None:
    image, records = painted()
    model = Fixed(np.zeros((2, 3)))
    LabelDescriber(model, NAMES).words(image, records)
    assert model.texts == ["a photo of a red", "a photo of a green", "a photo of a blue"]
    LabelDescriber(model, NAMES, template="{}!").words(image, records)
    assert model.texts == ["red!", "green!", "blue!"]


def test_a_mask_whose_numbers_are_not_finite_gets_no_words_and_that_is_said() -> None:
    image, records = painted()
    said: list[str] = []
    words = LabelDescriber(Fixed([[1, math.nan, 2], [1, 2, 3]]), NAMES, say=said.append).words(image, records)
    assert words[0] == Words()
    assert words[1].label == "blue"
    assert len(said) == 1
    assert said[0].startswith("1 of 2 masks got no words")
    with pytest.raises(OptionError, match="not finite for any mask"):
        LabelDescriber(Fixed(np.full((2, 3), math.nan)), NAMES).words(image, records)


def test_progress_rises_to_one_as_pictures_are_taken() -> None:
    image, records = painted()
    seen: list[float] = []
    LabelDescriber(ColourScorer(), NAMES).words(image, records, seen.append)
    assert seen == [0.0, 0.5, 1.0]


def test_facts_say_what_was_asked_and_of_which_model() -> None:
    class Known(ColourScorer):
        def facts(self):
            return {"model": "colours", "weights_sha256": "0" * 64}

    facts = LabelDescriber(Known(), NAMES, source="my.txt").facts()
    assert (facts["model"], facts["vocabulary"], facts["names"]) == ("colours", "my.txt", 3)
    assert LabelDescriber(ColourScorer(), NAMES).facts()["template"] == "a photo of a {}"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"names": ()}, "at least one"),
        ({"names": "red"}, "must be a list"),
        ({"names": ("red", 3)}, "must be a list of texts"),
        ({"names": ("red", " ")}, "none of them empty"),
        ({"names": ("red", "blue", "red")}, "'red' is there twice"),
        ({"template": "a photo"}, "one {} in it"),
        ({"template": "{} {}"}, "one {} in it"),
        ({"view": "sideways"}, "no view 'sideways'"),
        ({"top": 0}, "at least 1"),
        ({"top": True}, "whole number"),
        ({"top": 4}, "at most 3"),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused(options, message) -> None:
    with pytest.raises(OptionError, match=message):
        LabelDescriber(**{"image_text": ColourScorer(), "names": NAMES, **options})
