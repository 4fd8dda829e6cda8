"""Protocol "edges": matching, thinning, scores by hand and by second implementations; the whole on one photograph."""

import json

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat
from scipy.optimize import linear_sum_assignment

import anysam
from anysam.datasets import read_dataset
from anysam.errors import ImageError, OptionError
from anysam.evaluate.edge_maps import add_border, edge_map
from anysam.evaluate.edge_matching import Counts, count_matches, match_pixels, pair_distances
from anysam.evaluate.edge_scores import best_of_images, edge_curve, thresholds
from anysam.evaluate.edge_thinning import suppress_edges, thin
from anysam.evaluate.edge_truth import drawn_boundaries
from anysam.evaluate.edges import EDGES, measure_edges, read_edges, summarise_edges
from anysam.evaluate.options import EdgeOptions
from anysam.evaluate.protocols import DataChoice, Row
from test_datasets import write_folder


def line(column, size=(20, 30)):
    edge = np.zeros(size, bool)
    edge[:, column] = True
    return edge


def test_a_line_moved_within_the_distance_matches_and_beyond_it_does_not():
    counts = count_matches([line(10), line(12), line(13)], [line(10), line(11)], 2.0)
    assert counts.cntP.tolist() == [20, 20, 20] and counts.sumP.tolist() == [20, 20, 20]
    assert counts.cntR.tolist() == [40, 40, 20] and counts.sumR.tolist() == [40, 40, 40]


def test_a_drawn_pixel_is_matched_once():
    counts = count_matches([line(10) | line(11)], [line(10)], 2.0)
    assert (counts.cntR.tolist(), counts.cntP.tolist(), counts.sumP.tolist()) == ([20], [20], [40])


@pytest.mark.parametrize("seed", range(12))
def test_matching_is_the_assignment_with_outliers(seed):
    """A dense assignment in which a pixel without partner costs far more than any distance."""
    rng = np.random.default_rng(seed)
    found, drawn = rng.random((9, 11)) < 0.25, rng.random((9, 11)) < 0.2
    reach = 2.3
    pairs = pair_distances(found, drawn, reach)
    a, b = np.argwhere(found), np.argwhere(drawn)
    distances = np.hypot(*(a[:, None] - b[None]).transpose(2, 0, 1))
    costs = np.where(distances <= reach, 1 + np.rint(100 * distances), 1e6)
    square = np.full((len(a) + len(b),) * 2, 1e5)
    square[: len(a), : len(b)] = costs
    square[len(a) :, len(b) :] = 0
    rows, columns = linear_sum_assignment(square)
    wanted = [(r, c) for r, c in zip(rows, columns, strict=True) if r < len(a) and c < len(b) and costs[r, c] < 1e5]
    matched = match_pixels(pairs)
    assert len(matched) == len(wanted)
    own = np.full((len(matched), len(b)), 1e6)
    own[:] = costs[matched]
    best = linear_sum_assignment(own)
    assert own[best].sum() == sum(costs[r, c] for r, c in wanted)  # the same least sum of distances


def test_a_ramp_is_suppressed_to_its_ridge():
    x = np.arange(40)
    strength = np.tile(np.maximum(0, 1 - np.abs(x - 17) / 6), (30, 1)).astype(np.float32)
    ridge = suppress_edges(strength)
    assert np.array_equal(np.flatnonzero(ridge[15]), [17]) and ridge[15, 17] == 1


def test_a_bar_is_thinned_to_a_line_that_stays_connected():
    bar = np.zeros((15, 30), bool)
    bar[5:10, 3:27] = True
    thinned = thin(bar)
    assert (thinned[:, 8:22].sum(axis=0) == 1).all() and not (thinned & ~bar).any()
    assert np.array_equal(thin(thinned), thinned)


def boundaries(regions):
    """Whether the pixel to the right, below or between is of another region: a loop over all pixels, then thinned."""
    height, width = regions.shape
    found = np.zeros(regions.shape, bool)
    for y in range(height):
        for x in range(width):
            found[y, x] = len(np.unique(regions[y : y + 2, x : x + 2])) > 1
    return thin(found)


def test_the_strength_of_an_edge_is_on_the_mask_s_outer_border_alone():
    logits = np.where(np.arange(20) < 10, 8.0, -8.0)[None].repeat(12, 0)
    strength = np.zeros((12, 20), np.float32)
    add_border(strength, logits.astype(np.float32), logits > 0)
    assert set(np.flatnonzero(strength[6])) == {10} and strength[6, 10] > 0


def counts(cnt_r, sum_r, cnt_p, sum_p):
    return Counts(*(np.array(each, float) for each in (cnt_r, sum_r, cnt_p, sum_p)))


def test_scores_of_a_curve_by_hand():
    """Three thresholds: (R, P) = (1, 0.25), (0.5, 0.5), (0.25, 1)."""
    curve = edge_curve([counts([8, 4, 2], [8, 8, 8], [4, 4, 2], [16, 8, 2])])
    assert curve.recall.tolist() == [1, 0.5, 0.25] and curve.precision.tolist() == [0.25, 0.5, 1]
    assert curve.ods == pytest.approx(0.546875 / 1.0625, abs=1e-4)  # at (0.625, 0.4375), between the first two
    grid = np.linspace(0, 1, 101)
    height = np.where(grid < 0.25, 0, np.where(grid <= 0.5, 1 - 2 * (grid - 0.25), 0.5 - 0.5 * (grid - 0.5)))
    assert curve.average_precision == pytest.approx(height.sum() * 0.01)
    assert curve.r50 == 0.5


def test_ods_is_interpolated_between_thresholds():
    curve = edge_curve([counts([10, 0], [10, 10], [0, 10], [10, 10])])  # (1, 0) and (0, 1): F is 0.5 in the middle
    assert curve.ods == pytest.approx(0.5, abs=1e-3)


def test_ois_takes_each_image_at_its_own_best():
    one = counts([10, 2], [10, 10], [10, 2], [10, 2])
    two = counts([1, 8], [10, 10], [1, 8], [10, 10])
    assert best_of_images([one, two]) == pytest.approx(0.9)  # 18 of 20 both ways
    assert edge_curve([one, two]).ods < 0.9


@pytest.fixture(scope="module")
def photograph(tmp_path_factory):
    """A disc on another colour; two people drew it, the second one with more."""
    root = tmp_path_factory.mktemp("edges")
    y, x = np.mgrid[:64, :96]
    disc = (y - 32) ** 2 + (x - 44) ** 2 < 400
    left = (x < 20) & ~disc
    write_folder(root / "drawn", {"a.png": [(m, 0) for m in (disc, ~disc, disc, left, ~disc & ~left)]}, "val")
    path = root / "drawn" / "annotations.json"
    document = json.loads(path.read_text())
    for annotation, who in zip(document["annotations"], (0, 0, 1, 1, 1), strict=True):
        annotation["annotator"] = who
    path.write_text(json.dumps(document))
    image = np.where(disc[..., None], (220, 60, 40), (60, 90, 120)).astype(np.uint8)
    Image.fromarray(image).save(root / "drawn" / "images" / "a.png")
    return root / "drawn", disc, left


def test_each_person_has_boundaries_of_their_own(photograph):
    folder, disc, left = photograph
    entry = read_dataset(folder, split="val")[0]
    assert entry.annotators == (0, 0, 1, 1, 1)
    first, second = drawn_boundaries(entry)
    assert np.array_equal(first, boundaries(disc)) and np.array_equal(second, boundaries(disc + 2 * left))


def test_the_built_in_model_s_edges_are_where_the_disc_ends(photograph):
    folder, disc, _ = photograph
    options = EdgeOptions(points_per_side=4, thresholds=4)
    model, entry = anysam.load(device="cpu"), read_dataset(folder, split="val")[0]
    edges = edge_map(model, entry.read_image(), options)
    assert edges.dtype == np.float32 and edges.max() <= 1
    strong = edges >= 0.5
    y, x = np.nonzero(strong)
    near = np.abs(np.hypot(y - 32, x - 44) - 20) < 4
    assert strong.sum() > 30 and near.mean() > 0.7
    values = measure_edges(model, entry, options)
    again = measure_edges(model, entry, options)
    assert values == again and set(values) == {"cntR", "sumR", "cntP", "sumP"}
    data = DataChoice(str(folder), split="val")
    assert len(EDGES.read(options, data)) == 1
    table = summarise_edges([Row("drawn", "a.png", values, 1.0)], options, data)
    (label, scores), (_, mean) = table.lines
    assert mean == scores
    assert label == "drawn" and scores["ODS"] > 0.2 and scores["images"] == 1
    assert table.figures[0].marks[0][2] == f"ODS {scores['ODS']:.3f}"


def test_published_files_are_read_and_broken_ones_named(photograph, tmp_path):
    _, disc, left = photograph
    for folder in ("images/test", "groundTruth/test"):
        (tmp_path / folder).mkdir(parents=True)
    Image.new("RGB", (96, 64)).save(tmp_path / "images/test/7.jpg")
    people = np.empty((1, 2), object)
    for i, regions in enumerate((disc + 1, disc + 2 * left + 1)):
        people[0, i] = {"Segmentation": regions.astype(np.uint16), "Boundaries": boundaries(regions)}
    savemat(tmp_path / "groundTruth/test/7.mat", {"groundTruth": people})
    dataset = read_edges(EdgeOptions(), DataChoice(str(tmp_path)))
    drawn = drawn_boundaries(dataset[0])
    assert [each.tolist() for each in drawn] == [
        boundaries(disc + 1).tolist(),
        boundaries(disc + 2 * left + 1).tolist(),
    ]
    (tmp_path / "groundTruth/test/7.mat").write_bytes(b"nothing")
    with pytest.raises(ImageError, match="7.mat"):
        read_edges(EdgeOptions(), DataChoice(str(tmp_path)))[0]
    with pytest.raises(OptionError, match="no .mat files"):
        read_edges(EdgeOptions(), DataChoice(str(tmp_path), split="train"))


def test_thresholds_are_the_published_ones():
    assert thresholds(99)[[0, 49, 98]].tolist() == [0.01, 0.5, 0.99]
