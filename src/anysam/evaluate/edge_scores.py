"""ODS, OIS, AP and R50 from the counts of images, as published.

Sources: BIDS/BSDS500 at a04b7c6, bench/benchmarks/collect_eval_bdry.m; R50: pdollar/edges at 94260b5, edgesEvalDir.m,
which has the same numbers otherwise. Counts are those of `edge_matching.Counts`, float64, at K rising thresholds.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from anysam.evaluate.edge_matching import Counts

_BETWEEN = np.linspace(0, 1, 100)  # places between two thresholds at which F is looked at
_GRID = np.arange(101) / 100  # recalls at which AP takes the precision


@dataclass(frozen=True, eq=False)
class Curve:
    """recall, precision: (K,) float64. ods: the best F between the thresholds, at ods_recall and ods_precision. r50:
    the recall at a precision of 0.5; None where the curve does not get there (published: not a number)."""

    recall: np.ndarray
    precision: np.ndarray
    ods: float
    ods_recall: float
    ods_precision: float
    average_precision: float
    r50: float | None


def thresholds(count: int) -> np.ndarray:
    """1 / (count + 1) ... count / (count + 1): (count,) float64."""
    return np.linspace(1 / (count + 1), 1 - 1 / (count + 1), count)


def edge_curve(images: Sequence[Counts]) -> Curve:
    """The curve of several images' counts, added up, and its scores."""
    recall, precision = _rates(_added(images))
    recalls, precisions = (_interpolated(each) for each in (recall, precision))
    scores = f_measure(recalls, precisions)
    best = int(scores.argmax())
    return Curve(
        recall=recall,
        precision=precision,
        ods=float(scores[best]),
        ods_recall=float(recalls[best]),
        ods_precision=float(precisions[best]),
        average_precision=_average_precision(recall, precision),
        r50=_recall_at_half(recall, precision),
    )


def best_of_images(images: Sequence[Counts]) -> float:
    """OIS: F of the counts that each image has at its own best threshold, of equal ones the lowest; added up."""
    chosen = []
    for counts in images:
        best = f_measure(*_rates(counts)).argmax()
        chosen.append(Counts(*(each[best : best + 1] for each in (counts.cntR, counts.sumR, counts.cntP, counts.sumP))))
    return float(f_measure(*_rates(_added(chosen)))[0])


def f_measure(recall: np.ndarray, precision: np.ndarray) -> np.ndarray:
    """The harmonic mean, 0 where both are 0."""
    total = recall + precision
    return np.asarray(2 * recall * precision / np.where(total == 0, 1, total))


def _added(images: Sequence[Counts]) -> Counts:
    every = ([each.cntR, each.sumR, each.cntP, each.sumP] for each in images)
    return Counts(*(np.sum(each, axis=0) for each in zip(*every, strict=True)))


def _rates(counts: Counts) -> tuple[np.ndarray, np.ndarray]:
    """Recall and precision; 0 where nothing was drawn or found."""
    return counts.cntR / np.maximum(counts.sumR, 1), counts.cntP / np.maximum(counts.sumP, 1)


def _interpolated(rates: np.ndarray) -> np.ndarray:
    """The rates and 98 more between each two thresholds."""
    if len(rates) == 1:
        return rates
    before, after = rates[:-1, None], rates[1:, None]
    return np.asarray(after * _BETWEEN + before * (1 - _BETWEEN)).ravel()  # (100 * (K - 1),)


def _average_precision(recall: np.ndarray, precision: np.ndarray) -> float:
    """The area below precision by recall; nothing beyond the curve's ends, of equal recalls the lowest threshold."""
    levels, first = np.unique(recall, return_index=True)
    if len(levels) == 1:
        return 0.0
    return float(np.interp(_GRID, levels, precision[first], left=0, right=0).sum() / 100)


def _recall_at_half(recall: np.ndarray, precision: np.ndarray) -> float | None:
    levels, first = np.unique(precision, return_index=True)
    if levels[-1] < 0.5:
        return None
    return float(np.interp(max(levels[0], 0.5), levels, recall[first]))
