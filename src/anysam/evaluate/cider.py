"""CIDEr-D and BLEU-4, which compare a written caption with what people wrote of the same thing; no torch.

CIDEr-D: Vedantam, Zitnick and Parikh, "CIDEr: Consensus-based Image Description Evaluation", arXiv 1411.5726, sections
3 and 6, with the published code's choices (tylin/coco-caption at 3a9afb2, pycocoevalcap/cider/cider_scorer.py): n-grams
of 1 to 4 words, a Gaussian of deviation 6 on the difference of lengths, times 10. BLEU: Papineni et al., 2002, over the
whole corpus and with the closest reference's length, as coco-caption's bleu_scorer.py. On 300 random captions with one
to five references each the scores are those of the package pycocoevalcap 1.2 up to 1e-15.

coco-caption reads sentences with the Penn Treebank tokenizer of Stanford CoreNLP 3.4.1, which needs Java; `tokens` is a
small rule that gives the same words for the 25 sentences of tests/test_cider.py.
"""

import math
import re
from collections import Counter
from collections.abc import Sequence

Tokens = Sequence[str]
Grams = Counter[tuple[str, ...]]

ORDERS = 4  # n-grams of 1 to so many words
SIGMA = 6.0
_SCALE = 10.0
_TINY, _SMALL = 1e-15, 1e-9  # bleu_scorer.py's, against division by zero

# What coco-caption leaves out (ptbtokenizer.py, PUNCTUATIONS); brackets stay as words there, since its list has them in
# capitals and the sentence is in small letters.
_LEFT_OUT = frozenset(["''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";", '"'])
_BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
_PLAIN = str.maketrans({"\u2018": "'", "\u2019": "'", "\u201c": '"', "\u201d": '"', "\u2013": "--", "\u2014": "--"})
_TOKEN = re.compile(
    r"""
    [^\W\d_](?:\.[^\W\d_])+\.?(?!\w)      # u.s., a.m., e.g.
    | (?:mr|mrs|ms|dr|st|jr|sr|[^\W\d_])\.(?=[\s,]|$)
    | '(?:s|re|ve|ll|d|m)(?!\w)           # what an apostrophe made short, alone
    | \w+(?:[-/'.@]\w+|(?<=\d)[.,:/]\d+)*
    | \.{2,} | -+ | [!?]+
    | \S
    """,
    re.VERBOSE,
)
_SHORTENED = re.compile(r"(?<=\w)(?=n't$)|(?<=[\w'])(?=(?:'s|'re|'ve|'ll|'d|'m)(?:$|'))")
_JOINED = {"cannot": ("can", "not"), "gonna": ("gon", "na"), "wanna": ("wan", "na"), "gotta": ("got", "ta")}


def tokens(sentence: str) -> tuple[str, ...]:
    """The words of a sentence in small letters, without punctuation.

    Words keep hyphens, slashes and points inside ("t-shirt", "white/black", "2.5"); what an apostrophe made short is a
    word of its own ("man's" is man and 's, "isn't" is and n't). That tokenizer also knows addresses and long lists of
    abbreviations, which are not repeated here.
    """
    words: list[str] = []
    for found in _TOKEN.findall(sentence.lower().translate(_PLAIN)):
        word = _BRACKETS.get(found, found)
        if word in _LEFT_OUT or not word.strip(".-"):
            continue
        words += _JOINED.get(word) or (part for part in _SHORTENED.split(word) if part)
    return tuple(words)


def cider_d(candidates: Sequence[Tokens], references: Sequence[Sequence[Tokens]]) -> list[float]:
    """The score, 0 to 10, of each of N captions against one or more references of its own; words as of `tokens`.

    The corpus's score is their mean. How much an n-gram counts depends on how many of the N have it in a reference: a
    single caption has a score of 0, and scores of different corpora cannot be compared.

    Raises ValueError unless there are as many lists of references as captions, and none of them empty.
    """
    _check(candidates, references)
    cooked = [[_grams(each) for each in own] for own in references]
    frequencies: Counter[tuple[str, ...]] = Counter(gram for own in cooked for gram in set().union(*own))
    corpus = math.log(len(candidates)) if candidates else 0.0
    weights = {gram: corpus - math.log(count) for gram, count in frequencies.items()}
    scores = []
    for candidate, own in zip(candidates, cooked, strict=True):
        written = _Vector(_grams(candidate), weights, corpus)
        similar = [written.similarity(_Vector(each, weights, corpus)) for each in own]
        scores.append(_SCALE * sum(similar) / len(similar))
    return scores


def bleu_4(candidates: Sequence[Tokens], references: Sequence[Sequence[Tokens]]) -> float:
    """BLEU with n-grams of 1 to 4 words, 0 to 1, of N captions taken together; words as of `tokens`.

    Close to 0 where no caption shares four words in a row with a reference. Raises ValueError as `cider_d`.
    """
    _check(candidates, references)
    right, written = [0] * ORDERS, [0] * ORDERS
    length, aim = 0, 0
    for candidate, own in zip(candidates, references, strict=True):
        length += len(candidate)
        aim += min((abs(len(each) - len(candidate)), len(each)) for each in own)[1]
        most: Grams = Counter()
        for each in own:
            most |= _grams(each)
        for gram, count in _grams(candidate).items():
            right[len(gram) - 1] += min(count, most[gram])
            written[len(gram) - 1] += count
    precision = math.prod((a + _TINY) / (b + _SMALL) for a, b in zip(right, written, strict=True)) ** (1 / ORDERS)
    ratio = (length + _TINY) / (aim + _SMALL)
    return precision * math.exp(min(0.0, 1 - 1 / ratio))


def _check(candidates: Sequence[Tokens], references: Sequence[Sequence[Tokens]]) -> None:
    if len(candidates) != len(references) or not all(references):
        raise ValueError(f"{len(candidates)} captions need as many lists of references, and none of them empty")


def _grams(words: Tokens) -> Grams:
    """How often each n-gram of 1 to ORDERS words is there."""
    words = tuple(words)
    return Counter(words[i : i + n] for n in range(1, ORDERS + 1) for i in range(len(words) - n + 1))


class _Vector:
    """A sentence as weights of its n-grams: how often it is there, times how rare it is in the corpus' references.

    length: of the sentence less one, the number of its pairs of words, which is what the published code compares.
    """

    def __init__(self, grams: Grams, weights: dict[tuple[str, ...], float], unknown: float) -> None:
        self.values = {gram: count * weights.get(gram, unknown) for gram, count in grams.items()}
        squares = [0.0] * ORDERS
        for gram, value in self.values.items():
            squares[len(gram) - 1] += value * value
        self.norms = [math.sqrt(square) for square in squares]
        self.length = sum(count for gram, count in grams.items() if len(gram) == 2)

    def similarity(self, reference: "_Vector") -> float:
        """With a reference, 0 to 1: a repeated n-gram counts no more often than it is there (equation 4 of CIDEr-D)."""
        products = [0.0] * ORDERS
        for gram, value in self.values.items():
            known = reference.values.get(gram, 0.0)
            products[len(gram) - 1] += min(value, known) * known
        norms = [a * b for a, b in zip(self.norms, reference.norms, strict=True)]
        cosines = [product / norm if norm else 0.0 for product, norm in zip(products, norms, strict=True)]
        difference = self.length - reference.length
        return math.exp(-(difference**2) / (2 * SIGMA**2)) * sum(cosines) / ORDERS
