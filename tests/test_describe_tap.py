"""Words by a tiny Tokenize Anything, compared with one prompt, one softmax and one token at a time."""

import numpy as np
import pytest
import torch

from anysam import Prompt
from anysam.derived_prompts import innermost_point
from anysam.describe import tap, tap_words
from anysam.describe.interface import Describer, Words, describe_records
from anysam.describe.mask_prompts import overlap, show_mask
from anysam.describe.tap import DescribeOptions, TapDescriber, describe_prompts
from anysam.describe.tap_words import prepare_wording
from anysam.describe.vocabulary import Vocabulary, save_vocabulary
from anysam.errors import AnySamError, MissingExtraError, OptionError, PromptError, WeightsError
from anysam.masks import mask_iou
from anysam.models import Decoded
from anysam.models.tap_text import BOS, EOS
from anysam.preprocess import upscale_logits
from anysam.results import MaskRecord
from tiny_models import tiny_model
from tiny_tokenizer import write_tokenizer

SIZE = (90, 120)
NAMES = ("cat", "dog", "cup", "tree", "car", "hand", "sky")


@pytest.fixture(scope="module")
def model():
    return tiny_model("tap")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return write_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def vocabulary():
    columns = np.random.default_rng(0).normal(size=(32, len(NAMES)))
    columns = 20 * columns / np.linalg.norm(columns, axis=0)
    return Vocabulary(NAMES, columns.astype(np.float32), "seven names")


@pytest.fixture
def options(vocabulary, tokenizer):
    return DescribeOptions(vocabulary=vocabulary, top=3, tokenizer=tokenizer)


def photograph(size=SIZE) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (*size, 3), dtype=np.uint8)


def some_prompts() -> list[Prompt]:
    mask = np.zeros(SIZE, dtype=np.bool_)
    mask[20:60, 30:80] = True
    return [
        Prompt(points=[[40, 30]]),
        Prompt(box=[10, 20, 90, 70]),
        Prompt(points=[[60, 50], [5, 5]], labels=[1, 0], box=[20, 10, 110, 80]),
        Prompt(scribble=[[20, 20], [90, 60]]),
        Prompt(mask=mask),
        Prompt(polygon=[[10, 10], [80, 15], [50, 80]]),
    ]


def some_masks(size=SIZE) -> list[np.ndarray]:
    """Masks of many kinds: large, thin, in pieces, of one pixel, of all pixels."""
    y, x = np.mgrid[: size[0], : size[1]]
    height, width = size
    masks = [
        (y - height / 2) ** 2 + (x - width / 2) ** 2 < (min(size) / 3) ** 2,
        (y == height // 2),
        (abs(y - x) < 2),
        (y % 20 < 5) & (x < width / 2),
        (y == 3) & (x == width - 1),
        np.ones(size, dtype=np.bool_),
        (y < height / 3) & (x > width / 2),
        (abs(y - height / 2) > height / 3) | (abs(x - width / 2) > width / 3),
        (y > height / 2) & (x % 7 != 0),
    ]
    return [np.ascontiguousarray(mask) for mask in masks]


def some_records(size=SIZE) -> list[MaskRecord]:
    return [MaskRecord.from_mask(mask, 0.9) for mask in some_masks(size)]


def words_by_definition(model, vocabulary, tokenizer, extras, top):
    """Names by a softmax in float64; a caption by reading all that was written again for every token."""
    import sentencepiece

    embedding = extras["semantic_embeddings"].astype(np.float64)  # (D,)
    logits = embedding / np.linalg.norm(embedding) @ vocabulary.embeddings.astype(np.float64)
    probabilities = np.exp(logits) / np.exp(logits).sum()
    best = np.argsort(probabilities)[::-1][:top]
    decoder, tokens, chances = model.network.text_decoder, [BOS], []
    with torch.no_grad():
        while len(tokens) <= decoder.config.max_tokens:
            read = decoder(torch.from_numpy(extras["semantic_tokens"])[None], torch.tensor([tokens]))
            probability, token = read[0, -1].softmax(dim=0).max(dim=0)
            tokens.append(int(token))
            chances.append(float(probability))
            if tokens[-1] == EOS:
                break
    pieces = [token for token in tokens[1:] if token != EOS]
    caption = sentencepiece.SentencePieceProcessor(model_file=str(tokenizer)).decode(pieces).strip()
    return {vocabulary.names[i]: probabilities[i] for i in best}, caption, float(np.exp(np.mean(np.log(chances))))


def check_words(words, expected) -> None:
    scores, caption, caption_score = expected
    assert list(words.label_scores) == list(scores)
    assert words.label_scores == pytest.approx(scores, abs=1e-4)
    assert (words.label, words.label_score) == next(iter(words.label_scores.items()))
    assert words.caption == caption
    assert words.caption_score == pytest.approx(caption_score, abs=1e-4)


# --- prompts ----------------------------------------------------------------------------------------------------------


def test_every_kind_of_prompt_gets_its_mask_names_and_caption(model, vocabulary, tokenizer, options) -> None:
    encoded = model.encode(photograph())
    prompts = some_prompts()
    records = describe_prompts(model, encoded, prompts, options)
    assert len(records) == len(prompts)
    for record, prompt in zip(records, prompts, strict=True):
        prediction = model.predict(encoded, prompt)
        assert (record.to_mask() == prediction.masks[0]).all()
        assert record.predicted_iou == pytest.approx(float(prediction.iou_predictions[0]), abs=1e-5)
        assert record.prompt == prompt.to_dict()
        extras = {name: value[0] for name, value in prediction.extras.items()}
        check_words(record, words_by_definition(model, vocabulary, tokenizer, extras, 3))
    assert len({record.label for record in records}) > 1


def test_words_do_not_depend_on_what_is_described_together(model, options, monkeypatch) -> None:
    encoded = model.encode(photograph())
    together = describe_prompts(model, encoded, some_prompts(), options)
    monkeypatch.setattr(tap, "_MASK_BYTES", 1)  # one prompt at a time
    monkeypatch.setattr(tap_words, "_CAPTIONS_AT_ONCE", 2)
    monkeypatch.setattr(tap_words, "_LABELS_AT_ONCE", 2)
    apart = describe_prompts(model, encoded, some_prompts(), options)
    for one, other in zip(together, apart, strict=True):
        assert (one.segmentation, one.label, one.caption) == (other.segmentation, other.label, other.caption)
        assert one.label_scores == pytest.approx(other.label_scores, abs=1e-4)


def test_what_is_not_asked_for_is_not_said(model, vocabulary, tokenizer) -> None:
    encoded, prompt = model.encode(photograph()), some_prompts()[:1]
    labels = describe_prompts(model, encoded, prompt, DescribeOptions(vocabulary, captions=False))[0]
    assert (labels.caption, labels.caption_score) == (None, None)
    assert len(labels.label_scores) == 5
    captions = describe_prompts(model, encoded, prompt, DescribeOptions(None, tokenizer=tokenizer, max_tokens=2))[0]
    assert (captions.label, captions.label_score, captions.label_scores) == (None, None, None)
    assert captions.caption
    assert len(captions.caption.split()) <= 2
    assert describe_prompts(model, encoded, [], DescribeOptions(vocabulary, captions=False)) == []


def test_beams_find_captions_at_least_as_probable(model, tokenizer) -> None:
    encoded = model.encode(photograph())
    greedy, searched = (
        describe_prompts(model, encoded, some_prompts(), DescribeOptions(None, tokenizer=tokenizer, beams=beams))
        for beams in (1, 4)
    )
    scores = [np.array([record.caption_score for record in records]) for records in (greedy, searched)]
    assert np.mean(scores[1]) > np.mean(scores[0])


def test_a_vocabulary_is_read_from_its_file(model, vocabulary, tmp_path) -> None:
    path = tmp_path / "mine.safetensors"
    save_vocabulary(path, vocabulary)
    encoded = model.encode(photograph())
    given, read = (
        describe_prompts(model, encoded, some_prompts()[:2], DescribeOptions(each, captions=False))
        for each in (vocabulary, path)
    )
    assert given == read


def test_a_model_without_words_is_refused_with_what_can_do_it(options) -> None:
    other = tiny_model("sam")
    with pytest.raises(OptionError, match=r"sam_vit_b .* tap_vit_b, .*load_describer"):
        describe_prompts(other, other.encode(photograph()), some_prompts(), options)


@pytest.mark.parametrize(
    ("made", "error", "message"),
    [
        (lambda v, t: DescribeOptions("merged_2561", tokenizer=t), OptionError, "merged_2560"),
        (lambda v, t: DescribeOptions(v, top=8, captions=False), OptionError, "at most 7"),
        (lambda v, t: DescribeOptions(v, tokenizer="nowhere.model"), AnySamError, "nowhere.model"),
        (lambda v, t: DescribeOptions(v, tokenizer=t, max_tokens=39), OptionError, "at most 38"),
    ],
    ids=["vocabulary", "top", "tokenizer", "max_tokens"],
)
def test_what_can_be_known_before_is_said_before_anything_is_computed(
    model, vocabulary, tokenizer, monkeypatch, made, error, message
) -> None:
    encoded = model.encode(photograph())
    monkeypatch.setattr(type(model.network), "decode", lambda *_: pytest.fail("computed"))
    with pytest.raises(error, match=message):
        describe_prompts(model, encoded, some_prompts(), made(vocabulary, tokenizer))


def test_embeddings_of_another_width_are_refused(model) -> None:
    wide = Vocabulary(("a",), np.ones((33, 1), dtype=np.float32), "wide")
    with pytest.raises(OptionError, match="wide have 33 numbers, but tap_vit_b compares 32"):
        describe_prompts(model, model.encode(photograph()), some_prompts(), DescribeOptions(wide, captions=False))


def test_a_tokenizer_with_too_few_pieces_is_refused(vocabulary, tokenizer) -> None:
    model = tiny_model("tap")
    decoder = model.network.text_decoder
    decoder.config = type(decoder.config)(dim=32, depth=1, num_heads=2, vocabulary=41)
    with pytest.raises(WeightsError, match="40 pieces"):
        TapDescriber(model, prepare_wording(DescribeOptions(vocabulary, tokenizer=tokenizer)))


def test_captions_without_sentencepiece_name_the_extra_and_the_way_without(vocabulary, monkeypatch) -> None:
    monkeypatch.setattr(tap_words.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"pip install 'anysam\[text\]'.*captions=False"):
        prepare_wording(DescribeOptions(vocabulary))
    assert prepare_wording(DescribeOptions(vocabulary, captions=False)).vocabulary is vocabulary


def test_a_bad_prompt_is_named(model, options) -> None:
    encoded = model.encode(photograph())
    with pytest.raises(PromptError, match="Prompt 2 of 2: The point 500,5 lies outside"):
        describe_prompts(model, encoded, [some_prompts()[0], Prompt(points=[[500, 5]])], options)
    with pytest.raises(PromptError, match="'a cat' cannot be found"):
        describe_prompts(model, encoded, [Prompt(text="a cat")], options)
    with pytest.raises(PromptError, match=r"must be an anysam\.Prompt, got str"):
        describe_prompts(model, encoded, ["a cat"], options)
    with pytest.raises(OptionError, match=r"anysam\.EncodedImage, got ndarray"):
        describe_prompts(model, photograph(), some_prompts(), options)
    with pytest.raises(OptionError, match="encoded by tap_vit_b with other weights"):
        describe_prompts(tiny_model("tap", seed=1), encoded, [], options)
    with pytest.raises(OptionError, match=r"DescribeOptions, got dict"):
        describe_prompts(model, encoded, some_prompts(), {"top": 3})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"vocabulary": ["cat", "dog"]}, "names of your own need embeddings"),
        ({"vocabulary": None, "captions": False}, "Neither labels nor captions"),
        ({"vocabulary": None, "top": 3}, "no names"),
        ({"top": 0}, "at least 1"),
        ({"top": 2.0}, "whole number"),
        ({"captions": 1}, "True or False"),
        ({"beams": 0}, "from 1 to 16"),
        ({"beams": 17}, "from 1 to 16"),
        ({"beams": None}, "from 1 to 16"),
        ({"max_tokens": 0}, "from 1, got 0"),
        ({"tokenizer": 3}, "a path or None"),
        ({"captions": False, "beams": 2}, "beams has no effect"),
        ({"captions": False, "max_tokens": 2}, "max_tokens has no effect"),
        ({"captions": False, "tokenizer": "t.model"}, "tokenizer has no effect"),
    ],
    ids=str,
)
def test_options_that_cannot_be_are_refused(values, message) -> None:
    with pytest.raises(OptionError, match=message):
        DescribeOptions(**values)


# --- masks ------------------------------------------------------------------------------------------------------------


def region_by_definition(model, encoded, mask):
    """The extras of the region of a mask's box and innermost pixel, or of the pixel alone, compared at full size.

    And how much it overlaps the mask, and how much the next best does.
    """
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    box = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
    point = innermost_point(mask)[None]
    answers = [model.predict(encoded, Prompt(points=point, box=box), multimask=False)]
    if mask_iou(answers[0].masks[0], mask) < 0.8:
        answers.append(model.predict(encoded, Prompt(points=point), multimask=True))
    fits = [(mask_iou(each, mask), a, i) for a, answer in enumerate(answers) for i, each in enumerate(answer.masks)]
    fits.sort(reverse=True)
    (best, a, i), second = fits[0], (*fits, (0.0, 0, 0))[1][0]
    return {name: value[i] for name, value in answers[a].extras.items()}, best, second


def test_masks_get_the_words_of_the_region_that_is_most_like_them(model, vocabulary, tokenizer, options) -> None:
    """Where that is no close run: a random network's regions have ragged borders, which are compared by cells."""
    describer = TapDescriber(model, prepare_wording(options))
    image = photograph()
    encoded = model.encode(image)
    clear = 0
    for words, mask in zip(describer.words(image, some_records()), some_masks(), strict=True):
        extras, best, second = region_by_definition(model, encoded, mask)
        if best - second > 0.04:
            check_words(words, words_by_definition(model, vocabulary, tokenizer, extras, 3))
            clear += 1
    assert clear >= 3


def disc(x: float, y: float, radius: float) -> np.ndarray:
    rows, columns = np.mgrid[: SIZE[0], : SIZE[1]]
    return (columns + 0.5 - x) ** 2 + (rows + 0.5 - y) ** 2 < radius**2


@pytest.mark.parametrize(
    ("mask", "questions", "answer"),
    [
        (disc(60, 45, 30), 1, 0),
        (disc(60, 45, 30) & (np.arange(120) < 80), 1, 0),
        (disc(60, 45, 8) | disc(110, 80, 4), 2, 1),
        (disc(60, 45, 16) | disc(10, 10, 3), 2, 2),
        (disc(60, 45, 33) & ~disc(92, 45, 12) | disc(2, 2, 2), 2, 3),
        (disc(60, 45, 2) | disc(15, 10, 1) | disc(110, 80, 1), 2, 1),
    ],
    ids=["as its box", "most of its box", "small", "middle", "large", "tiny"],
)
def test_a_mask_unlike_the_region_of_its_box_is_asked_about_by_its_point(
    vocabulary, monkeypatch, mask, questions, answer
) -> None:
    """The network answers a box with the ellipse in it, and a point with discs of three sizes around it."""
    model = tiny_model("tap", seed=1)
    asked = []

    def decode(self, features, points, labels, mask_logits, multimask):
        asked.append(multimask)
        rows, columns = (np.mgrid[:16, :16] + 0.5) * 4
        logits, tokens = [], torch.zeros(len(points), 3 if multimask else 1, 64)
        for i, ((x, y), *more) in enumerate(points.tolist()):
            if multimask:
                shapes = [(x, y, radius * 64 / 120, radius * 64 / 120) for radius in (8, 16, 33)]
                tokens[i, :, 0] = torch.arange(1, 4)
            else:
                (x0, y0), (x1, y1) = more
                shapes = [((x0 + x1) / 2, (y0 + y1) / 2, (x1 - x0) / 2, (y1 - y0) / 2)]
            logits.append([1 - np.hypot((columns - cx) / rx, (rows - cy) / ry) for cx, cy, rx, ry in shapes])
        extras = {"semantic_tokens": tokens, "semantic_embeddings": torch.ones(*tokens.shape[:2], 32)}
        return Decoded(torch.tensor(np.array(logits)).float(), torch.ones(tokens.shape[:2]), extras)

    monkeypatch.setattr(type(model.network), "decode", decode)
    describer = TapDescriber(model, prepare_wording(DescribeOptions(vocabulary, captions=False)))
    encoded = model.encode(photograph())
    fits, tokens, _ = describer._regions(encoded, [MaskRecord.from_mask(mask, 1.0)], lambda part: None)
    assert asked == [False, True][:questions]
    assert int(tokens[0, 0]) == answer
    assert (fits[0] >= 0.8) == (questions == 1 or answer == 2)


def test_words_do_not_depend_on_the_other_masks(model, options) -> None:
    describer = TapDescriber(model, prepare_wording(options))
    image, records = photograph(), some_records() * 2
    together = describer.words(image, records)
    for i in (0, 3, 4, 12):
        alone = describer.words(image, [records[i]])[0]
        assert (alone.label, alone.caption) == (together[i].label, together[i].caption)
        assert alone.label_scores == pytest.approx(together[i].label_scores, abs=1e-4)


@pytest.mark.parametrize("size", [(1, 1), (2, 300), (500, 30), (64, 64), (700, 900)], ids=str)
def test_images_of_any_size_are_described(model, vocabulary, size) -> None:
    describer = TapDescriber(model, prepare_wording(DescribeOptions(vocabulary, captions=False)))
    records = [record for record in some_records(size) if record.area]
    described = describe_records(describer, photograph(size), records)
    assert [record.label in NAMES for record in described] == [True] * len(records)


def test_no_masks_and_empty_masks_cost_nothing(model, options, monkeypatch) -> None:
    describer = TapDescriber(model, prepare_wording(options))
    assert isinstance(describer, Describer)
    assert describer.names == NAMES
    monkeypatch.setattr(type(model), "encode", lambda *_: pytest.fail("encoded"))
    empty = MaskRecord.from_mask(np.zeros(SIZE, dtype=np.bool_), 0.5)
    assert describer.words(photograph(), []) == []
    assert describe_records(describer, photograph(), [empty]) == [empty]


def test_the_image_is_encoded_by_the_store(model, options) -> None:
    kept = []

    class Store:
        def encode(self, model, image):
            kept.append(image.shape)
            return model.encode(image)

    describer = TapDescriber(model, prepare_wording(options), store=Store())
    plain = TapDescriber(model, prepare_wording(options))
    assert describer.words(photograph(), some_records()) == plain.words(photograph(), some_records())
    assert kept == [(*SIZE, 3)]


def test_progress_rises_to_one(model, options, vocabulary) -> None:
    for each in (options, DescribeOptions(vocabulary, captions=False)):
        seen: list[float] = []
        TapDescriber(model, prepare_wording(each)).words(photograph(), some_records() * 3, seen.append)
        assert seen == sorted(seen)
        assert len(set(seen)) > 3
        assert seen[-1] == 1.0


def test_words_of_a_region_that_is_hardly_the_mask_are_said_to_be_so(model, options) -> None:
    said: list[str] = []
    describer = TapDescriber(model, prepare_wording(options), say=said.append)
    image = photograph()
    encoded = model.encode(image)
    poor = sum(region_by_definition(model, encoded, mask)[1] < 0.5 for mask in some_masks())
    describer.words(image, some_records())
    assert poor > 1
    assert said == [f"{poor} of 9 masks have the words of a region that shares less than half with them."]


def test_a_mask_whose_region_is_not_finite_gets_no_words(model, options, monkeypatch) -> None:
    said: list[str] = []
    describer = TapDescriber(model, prepare_wording(options), say=said.append)
    whole = describer.words(photograph(), some_records())
    said.clear()
    decode = type(model.network).decode

    def damaged(self, features, points, labels, mask_logits, multimask):
        decoded = decode(self, features, points, labels, mask_logits, multimask)
        pixel = torch.tensor([119.5, 3.5]) * 64 / 120  # where the mask of one pixel is, in the network's frame
        bad = ((points[:, 0] - pixel).abs() < 0.1).all(dim=1)
        decoded.extras["semantic_embeddings"][bad] = torch.nan
        decoded.low_res_logits[bad] = torch.nan
        return decoded

    monkeypatch.setattr(type(model.network), "decode", damaged)
    words = describer.words(photograph(), some_records())
    assert words[4] == Words()
    said_of = [[(each.label, each.caption) for each in all_of[:4] + all_of[5:]] for all_of in (words, whole)]
    assert said_of[0] == said_of[1]
    assert said[0].startswith("1 of 9 masks got no words")
    with pytest.raises(OptionError, match="not finite for any mask"):
        describer.words(photograph(), some_records()[4:5])


def test_facts_are_json_and_say_what_words_depend_on(model, options, vocabulary) -> None:
    facts = TapDescriber(model, prepare_wording(options)).facts()
    assert (facts["model"], facts["weights_sha256"]) == ("tap_vit_b", model.weights_sha256)
    assert (facts["vocabulary"], facts["names"], facts["captions"]) == ("seven names", 7, True)


# --- a mask as a prompt -----------------------------------------------------------------------------------------------


def test_the_point_is_a_pixel_of_the_mask_and_of_small_masks_the_innermost() -> None:
    for size in (SIZE, (700, 900), (300, 20)):
        for mask in some_masks(size):
            if not mask.any():
                continue
            shown = show_mask(MaskRecord.from_mask(mask, 1))
            x, y = np.floor(shown.point).astype(int)
            assert mask[y, x]
            assert shown.pixels.sum() == mask.sum()
            if max(shown.box[2] - shown.box[0], shown.box[3] - shown.box[1]) <= 256:
                cropped = mask[shown.box[1] : shown.box[3], shown.box[0] : shown.box[2]]
                assert (shown.point == innermost_point(cropped) + shown.box[:2]).all()


def test_a_wire_that_fills_no_cell_is_still_pointed_at() -> None:
    mask = np.zeros((3000, 4000), dtype=np.bool_)
    mask[np.arange(3000), np.arange(3000)] = True
    shown = show_mask(MaskRecord.from_mask(mask, 1))
    assert shown.pixels.shape == (256, 256)
    x, y = np.floor(shown.point).astype(int)
    assert mask[y, x]


def test_overlap_is_that_of_the_masks_at_full_size(model) -> None:
    """Up to the resolution of cells; logits are smooth, as a network's are."""
    frame = model.network.preprocess
    generator = torch.Generator().manual_seed(0)
    for size in (SIZE, (600, 1000), (800, 500)):
        input_size = frame.input_size(size)
        for mask in some_masks(size):
            if mask.sum() < 50:
                continue
            coarse = torch.randn(1, 1, 4, 4, generator=generator)
            logits = torch.nn.functional.interpolate(coarse, frame.low_res_size(input_size), mode="bicubic")
            full = upscale_logits(logits, frame, input_size, size)[0, 0].numpy() > 0
            found = overlap(show_mask(MaskRecord.from_mask(mask, 1)), logits[0, 0].numpy(), frame, input_size, size)
            assert found == pytest.approx(mask_iou(full, mask), abs=0.03)


def test_logits_that_are_not_numbers_overlap_nothing(model) -> None:
    frame = model.network.preprocess
    shown = show_mask(some_records()[0])
    assert overlap(shown, np.full((16, 16), np.nan, dtype=np.float32), frame, frame.input_size(SIZE), SIZE) == 0


def test_a_record_that_claims_pixels_it_has_not_is_refused() -> None:
    import dataclasses

    empty = MaskRecord.from_mask(np.zeros(SIZE, dtype=np.bool_), 0.5)
    with pytest.raises(OptionError, match="has none"):
        show_mask(dataclasses.replace(empty, area=3))
