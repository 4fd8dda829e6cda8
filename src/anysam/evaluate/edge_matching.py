"""Edges that were found against edges that people drew: pixels matched one to one within a distance.

Source of the rules: BIDS/BSDS500 at a04b7c6, bench/benchmarks/evaluation_bdry_image.m and bench/source/match.cc.

The published matching is an assignment in which a pair costs its distance (in hundredths of a pixel, rounded) and a
pixel without a partner 100 times the greatest distance: as many pairs as there can be, and of all such sets of pairs
the one with the least sum of distances. That is solved here exactly. The published code differs from it in two ways
that no score shows in two digits: its outliers are linked at random, so that a few pixels can stay without the partner
that they could have; and a chain of more than about 100 pairs would not be shifted for the sake of one pair more. Where
several sets of pairs have the same sum, which pixels are in them is a matter of the solver, there as here.
"""

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from anysam.errors import MissingExtraError

if TYPE_CHECKING:
    from scipy.sparse import csr_array

_UNITS = 100  # costs are distances in so many parts of a pixel, rounded, as published


def require_scipy() -> None:
    """Raises MissingExtraError when there is no scipy. Imports it not."""
    if importlib.util.find_spec("scipy") is None:
        raise MissingExtraError(
            "The matching of edges needs scipy, which is not installed: pip install 'anysam[eval]'."
        )


@dataclass(frozen=True, eq=False)
class Counts:
    """What is counted at each of K thresholds, (K,) int64 each, by their published names.

    cntR of sumR: pixels that people drew and that are matched, summed over people. cntP of sumP: pixels that were found
    and that are matched with at least one of the people.
    """

    cntR: np.ndarray  # noqa: N815
    sumR: np.ndarray  # noqa: N815
    cntP: np.ndarray  # noqa: N815
    sumP: np.ndarray  # noqa: N815


def count_matches(found: Sequence[np.ndarray], drawn: Sequence[np.ndarray], max_distance: float) -> Counts:
    """Match each of K maps of found edges with each person's: all (H, W) bool. max_distance: in pixels."""
    ever = np.logical_or.reduce(found) if len(found) else np.zeros(0, dtype=np.bool_)
    places = np.flatnonzero(ever)  # (N,)
    alive = [np.flatnonzero(each.ravel()[places]) for each in found]  # rows of each map
    matched_drawn = np.zeros(len(found), dtype=np.int64)
    matched = [np.zeros(len(places), dtype=np.bool_) for _ in found]
    for boundary in drawn:
        pairs = pair_distances(ever, boundary, max_distance)
        before: np.ndarray | None = None
        rows = np.zeros(0, dtype=np.int64)
        for k, now in enumerate(alive):
            if before is None or not np.array_equal(now, before):
                rows, before = now[match_pixels(pairs[now])], now
            matched_drawn[k] += len(rows)
            matched[k][rows] = True
    total = sum(int(np.count_nonzero(boundary)) for boundary in drawn)
    return Counts(
        cntR=matched_drawn,
        sumR=np.full(len(found), total, dtype=np.int64),
        cntP=np.array([np.count_nonzero(each) for each in matched], dtype=np.int64),
        sumP=np.array([len(each) for each in alive], dtype=np.int64),
    )


def pair_distances(found: np.ndarray, drawn: np.ndarray, max_distance: float) -> "csr_array":
    """Pairs of pixels of two maps (H, W) bool, at most max_distance pixels apart: sparse (N, M) float64.

    Rows and columns are the pixels that are set, in reading order. Values are whole: 1 + hundredths of a pixel.
    """
    from scipy.sparse import csr_array

    reach = int(np.ceil(max_distance))
    height, width = found.shape
    numbers = np.full((height + 2 * reach, width + 2 * reach), -1, dtype=np.int64)
    inner = numbers[reach : reach + height, reach : reach + width]
    inner[drawn] = np.arange(np.count_nonzero(drawn))
    y, x = np.nonzero(found)
    steps = [
        (down, right)
        for down in range(-reach, reach + 1)
        for right in range(-reach, reach + 1)
        if down * down + right * right <= max_distance * max_distance
    ]
    rows, columns, costs = [], [], []
    for down, right in steps:
        partners = numbers[y + reach + down, x + reach + right]
        there = np.flatnonzero(partners >= 0)
        rows.append(there)
        columns.append(partners[there])
        costs.append(np.full(len(there), 1 + np.rint(_UNITS * np.hypot(down, right))))
    shape = (len(y), int(np.count_nonzero(drawn)))
    return csr_array((np.concatenate(costs), (np.concatenate(rows), np.concatenate(columns))), shape=shape)


def match_pixels(pairs: "csr_array") -> np.ndarray:
    """The rows of pairs (N, M) that get a partner: as many as can be, with the least sum of costs; int64, rising.

    Costs must be above 0. Where a row must stay without partner, the rows that compete with it are those reached from
    it by turns of pair and partner. They and their columns are a problem of their own (Dulmage and Mendelsohn 1958):
    there every column has a partner, everywhere else every row, so that both are assignments without outliers.
    """
    from scipy.sparse.csgraph import min_weight_full_bipartite_matching

    if pairs.nnz == 0:
        return np.zeros(0, dtype=np.int64)
    partners = _most_pairs(pairs)  # (N,)
    alone = np.flatnonzero((partners < 0) & (np.diff(pairs.indptr) > 0))
    if not len(alone):
        return np.flatnonzero(partners >= 0)
    rivals = _reached(pairs, partners, alone)
    contested = np.zeros(pairs.shape[1], dtype=np.bool_)
    contested[pairs[rivals].indices] = True
    own = pairs[rivals][:, np.flatnonzero(contested)]
    winners, _ = min_weight_full_bipartite_matching(own)
    others = partners >= 0
    others[rivals] = False
    return np.sort(np.concatenate([rivals[winners], np.flatnonzero(others)]))


def _most_pairs(pairs: "csr_array") -> np.ndarray:
    """The column of each row in some matching of as many pairs as can be, or -1: (N,) int64.

    In reading order, SciPy's search went on for more than ten minutes for one image's lines of 1927 and 2868 pixels; in
    a random order the same takes 0.02 s (SciPy 1.17). What is made of it does not depend on which matching it is.
    """
    from scipy.sparse.csgraph import maximum_bipartite_matching

    random = np.random.default_rng(0)
    rows, columns = (random.permutation(count) for count in pairs.shape)
    found = maximum_bipartite_matching(pairs[rows][:, columns], perm_type="column")
    partners = np.full(pairs.shape[0], -1, dtype=np.int64)
    partners[rows] = np.where(found < 0, -1, columns[found])
    return partners


def _reached(pairs: "csr_array", partners: np.ndarray, alone: np.ndarray) -> np.ndarray:
    """Rows that can be reached from rows without partner: over a pair to a column, and on to that column's partner."""
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import breadth_first_order

    count = pairs.shape[0]
    owners = np.full(pairs.shape[1], -1, dtype=np.int64)
    with_partner = np.flatnonzero(partners >= 0)
    owners[partners[with_partner]] = with_partner
    sources = np.repeat(np.arange(count), np.diff(pairs.indptr))
    targets = owners[pairs.indices]
    there = targets >= 0  # a free column cannot be reached, or the matching would not be the largest
    start = count  # one more node, before the rows that are alone
    rows = np.concatenate([sources[there], np.full(len(alone), start)])
    columns = np.concatenate([targets[there], alone])
    graph: Any = csr_array((np.ones(len(rows), dtype=np.int8), (rows, columns)), shape=(count + 1, count + 1))
    reached = breadth_first_order(graph, start, directed=True, return_predecessors=False)
    return np.sort(reached[reached != start]).astype(np.int64)
