"""CIDEr-D and BLEU-4: cases by hand, a second implementation, and numbers that the published code gave."""

import math
import random

import pytest

from anysam.evaluate.cider import bleu_4, cider_d, tokens

# What pycocoevalcap 1.2 gave, on Python 3.11 with numpy 2.4: Cider().compute_score and Bleu().compute_score of these
# eight captions with their references, words divided at spaces.
GOLDEN = (
    ("a red car on the street", ("a red car parked on the street", "the car is red"), 3.4157220541534503),
    (
        "a man is riding a horse",
        ("man riding a brown horse", "a man on a horse in a field", "person on horse"),
        1.8126553501213702,
    ),
    ("white plate with food on it", ("white plate with a slice of pizza on it",), 3.024314627240343),
    ("the sky is is blue", ("the sky is blue",), 5.140400395991199),
    ("a dog", ("a small black dog sleeping on the couch",), 0.6769716055341832),
    ("blue and white sign on the side of the street near a tree", ("a street sign",), 0.2615505917656923),
    ("", ("green leaves of the tree",), 0.0),
    ("zebra", ("zebra",), 2.5),
)
GOLDEN_BLEU = 3.475242366153259e-05

# What its PTBTokenizer gave (Stanford CoreNLP 3.4.1 with Java, punctuation left out as there).
GOLDEN_TOKENS = {
    "A man's red t-shirt isn't clean.": "a man 's red t-shirt is n't clean",
    "two-story building, with windows": "two-story building with windows",
    "a dog (brown) & a cat": "a dog -lrb- brown -rrb- & a cat",
    'a sign that says "STOP"': "a sign that says stop",
    "he can't; they're here: we'll go!": "he ca n't they 're here we 'll go",
    "it costs $5.50 or 50% off": "it costs $ 5.50 or 50 % off",
    "the U.S. flag at 10:30 a.m.": "the u.s. flag at 10:30 a.m.",
    "boys' shoes": "boys shoes",
    "a 3/4 view of a bus #12": "a 3/4 view of a bus # 12",
    "cannot gonna wanna": "can not gon na wan na",
    "white/black umbrella": "white/black umbrella",
    "woman   wearing -- a hat...": "woman wearing a hat",
    "it's the 1980's": "it 's the 1980 's",
    "mr. smith's dog": "mr. smith 's dog",
    "\u201cquoted\u201d \u2018single\u2019 don\u2019t": "quoted single do n't",
    "I'd've": "i 'd 've",
    "the man,woman and child": "the man woman and child",
    "number 1,000 and 2.5": "number 1,000 and 2.5",
    "...": "",
    "": "",
    "a+b=c": "a + b = c",
    "-dog": "dog",
    "what?!": "what ?!",
    "it is 5pm.": "it is 5pm",
    "caf\u00e9 [bracket] {brace}": "caf\u00e9 -lsb- bracket -rsb- -lcb- brace -rcb-",
}


def test_cider_by_hand():
    """Two captions: every n-gram is in the references of one, so that all weights are log 2 and cancel."""
    scores = cider_d(["a b".split(), "c c".split()], [["a b".split()], ["c d".split()]])
    # a, b and "a b" are as they should be; there are no three words.
    assert scores[0] == pytest.approx(10 * (1 + 1 + 0 + 0) / 4)
    # c is there twice and counts once: 1 x 1 / (2 x sqrt 2); "c c" is in no reference.
    assert scores[1] == pytest.approx(10 * (1 / (2 * math.sqrt(2))) / 4)


def test_a_caption_of_another_length_loses_by_the_gaussian():
    scores = cider_d([["a"], ["x"]], [["a b c".split()], [["y"]]])
    # cosine 1 / sqrt 3; two pairs of words against none, with a deviation of 6
    assert scores == pytest.approx([10 * math.exp(-(2**2) / 72) / math.sqrt(3) / 4, 0.0])


def test_words_that_every_region_has_count_nothing():
    assert cider_d([["the"], ["the"]], [[["the"]], [["the"]]]) == [0.0, 0.0]
    assert cider_d(["a b c".split()], [["a b c".split()]]) == [0.0]
    assert cider_d([], []) == []


def test_scores_are_those_of_the_published_code():
    captions = [caption.split() for caption, _, _ in GOLDEN]
    references = [[each.split() for each in own] for _, own, _ in GOLDEN]
    assert cider_d(captions, references) == pytest.approx([score for _, _, score in GOLDEN], abs=1e-12)
    assert bleu_4(captions, references) == pytest.approx(GOLDEN_BLEU, rel=1e-9)


def naive_cider(captions, references):
    """The formulas of the paper, one n and one n-gram at a time."""

    def grams(words, n):
        return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]

    def weight(gram, words, n):
        has = sum(any(gram in grams(each, n) for each in own) for own in references)
        return grams(words, n).count(gram) * math.log(len(references) / max(1, has))

    def similarity(one, other, n):
        both = sorted(set(grams(one, n) + grams(other, n)))
        a, b = ([weight(gram, words, n) for gram in both] for words in (one, other))
        norm = math.sqrt(sum(x * x for x in a)) * math.sqrt(sum(x * x for x in b))
        product = sum(min(x, y) * y for x, y in zip(a, b, strict=True))
        difference = max(0, len(one) - 1) - max(0, len(other) - 1)
        return math.exp(-(difference**2) / (2 * 6**2)) * (product / norm if norm else 0.0)

    return [
        10 * sum(sum(similarity(caption, each, n) for each in own) / len(own) for n in (1, 2, 3, 4)) / 4
        for caption, own in zip(captions, references, strict=True)
    ]


@pytest.mark.parametrize("seed", range(6))
def test_scores_of_random_sentences_equal_a_second_implementation(seed):
    draw = random.Random(seed)
    words = "a the man dog red car on in of street".split()

    def sentence(least=1):
        return [draw.choice(words) for _ in range(draw.randint(least, 9))]

    references = [[sentence() for _ in range(draw.randint(1, 4))] for _ in range(draw.randint(2, 7))]
    captions = [own[0][: draw.randint(1, 9)] if draw.random() < 0.6 else sentence(0) for own in references]
    found = cider_d(captions, references)
    assert found == pytest.approx(naive_cider(captions, references), abs=1e-9)
    assert max(found) > 0


def test_bleu_by_hand():
    caption, reference = "the cat is on the mat today".split(), "the cat is on a mat".split()
    # of 7, 6, 5, 4 n-grams 5 (the second "the" is one too many), 3, 2, 1 are right; longer than the reference
    assert bleu_4([caption], [[reference]]) == pytest.approx((5 / 7 * 3 / 6 * 2 / 5 * 1 / 4) ** 0.25, abs=1e-6)
    # all is right, but it has 4 words of 6; the closest reference counts
    short = "the cat is on".split()
    assert bleu_4([short], [[reference]]) == pytest.approx(math.exp(1 - 6 / 4), abs=1e-6)
    assert bleu_4([short], [[reference, "the cat is on it".split()]]) == pytest.approx(math.exp(1 - 5 / 4), abs=1e-6)
    # several captions count together, not one by one
    both = bleu_4([short, reference], [[reference], [reference]])
    assert both == pytest.approx(math.exp(1 - 12 / 10), abs=1e-6)
    assert bleu_4([["x"]], [[reference]]) < 1e-3


@pytest.mark.parametrize("sentence", GOLDEN_TOKENS)
def test_words_are_those_of_the_published_tokenizer(sentence):
    assert " ".join(tokens(sentence)) == GOLDEN_TOKENS[sentence]


def test_captions_without_references_are_refused():
    for score in (cider_d, bleu_4):
        with pytest.raises(ValueError, match="references"):
            score([["a"]], [[]])
        with pytest.raises(ValueError, match="2 captions"):
            score([["a"], ["b"]], [[["a"]]])
