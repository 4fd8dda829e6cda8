"""Protocol "edges": how well the outlines of everything mode's masks are the edges that people draw, on BSDS500.

How a model becomes a map of edges is SAM's (arXiv 2304.02643, section 7.2 and appendix D.2), see `edge_maps`. How a map
is scored is the data set's (BIDS/BSDS500 at a04b7c6, bench/benchmarks), see `edge_matching` and `edge_scores`: at each
of 99 thresholds the map is thinned and matched with what every annotator drew, see `edge_truth`, one pixel with one
pixel, at most 0.0075 of the image's diagonal apart. The published code reads maps from files of 8 bits; here they keep
their float32.
"""

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from anysam.datasets import ImageDataset, ImageEntry
from anysam.errors import OptionError
from anysam.evaluate.edge_maps import check_model, edge_map
from anysam.evaluate.edge_matching import Counts, count_matches, require_scipy
from anysam.evaluate.edge_scores import best_of_images, edge_curve, thresholds
from anysam.evaluate.edge_thinning import thin
from anysam.evaluate.edge_truth import drawn_boundaries, is_published, read_published
from anysam.evaluate.options import EdgeOptions
from anysam.evaluate.protocols import DataChoice, Figure, Protocol, Row, Table
from anysam.evaluate.runs import open_data
from anysam.predictor import Model

_COLUMNS = ("images", "ODS", "OIS", "AP", "R50", "seconds")


def prepare_edges(model: Model, options: EdgeOptions) -> Model:
    """The model. Raises OptionError for one without masks, and for options that it has no use for."""
    check_model(model, options)
    return model


def measure_edges(model: Model, entry: ImageEntry, options: EdgeOptions) -> dict[str, Any] | None:
    """The counts of an image at every threshold, by their published names; None where nobody drew anything."""
    drawn = drawn_boundaries(entry)
    if not any(each.any() for each in drawn):
        return None
    counts = map_counts(edge_map(model, entry.read_image(), options), drawn, options)
    return {name: each.tolist() for name, each in asdict(counts).items()}


def map_counts(strength: np.ndarray, drawn: Sequence[np.ndarray], options: EdgeOptions) -> Counts:
    """A map of edges (H, W), 0 to 1, against what people drew, (H, W) bool each."""
    found = [thin(strength >= threshold) for threshold in thresholds(options.thresholds)]
    return count_matches(found, drawn, options.max_distance * float(np.hypot(*strength.shape)))


def summarise_edges(rows: Sequence[Row], options: EdgeOptions, data: DataChoice) -> Table:
    """The scores of each data set and their mean; the curve of all images together."""
    by_dataset: dict[str, list[Row]] = {}
    for row in rows:
        by_dataset.setdefault(row.dataset, []).append(row)
    lines = [(name, _line(own)) for name, own in by_dataset.items()]
    if not lines:
        return Table(_COLUMNS, (), "ODS", notes=("There was nothing to measure.",))
    lines.append(("mean", _mean([scores for _, scores in lines])))
    curve = edge_curve([_counts(row) for row in rows])
    figure = Figure(
        "edges",
        "Edges: precision by recall",
        "lines",
        "recall",
        "precision",
        tuple(curve.recall.tolist()),
        tuple(curve.precision.tolist()),
        ((curve.ods_recall, curve.ods_precision, f"ODS {curve.ods:.3f}"),),
    )
    return Table(_COLUMNS, tuple(lines), "ODS", (figure,))


def _counts(row: Row) -> Counts:
    return Counts(**{name: np.asarray(values, dtype=np.float64) for name, values in row.values.items()})


def _line(rows: Sequence[Row]) -> dict[str, float | int | None]:
    counts = [_counts(row) for row in rows]
    curve = edge_curve(counts)
    return {
        "images": len(rows),
        "ODS": curve.ods,
        "OIS": best_of_images(counts),
        "AP": curve.average_precision,
        "R50": curve.r50,
        "seconds": float(np.mean([row.seconds for row in rows])),
    }


def _mean(lines: Sequence[dict[str, float | int | None]]) -> dict[str, float | int | None]:
    known = {name: [value for line in lines if (value := line[name]) is not None] for name in _COLUMNS}
    mean: dict[str, float | int | None] = {name: float(np.mean(own)) if own else None for name, own in known.items()}
    return {**mean, "images": int(sum(known["images"]))}


def read_edges(options: EdgeOptions, data: DataChoice) -> ImageDataset:
    """BSDS500's published folder with images/ and groundTruth/, part "test" unless named; else what all protocols read.

    Raises OptionError.
    """
    path = Path(data.data)
    if data.kind != "auto" or not is_published(path):
        return open_data(replace(EDGES, read=None), options, data)
    if data.images:
        raise OptionError(f"{path} has its images with it; leave out the folder of images {data.images}.")
    return read_published(path, data.split)


def check_edges(options: EdgeOptions, data: DataChoice) -> None:
    """Raises MissingExtraError without scipy: before any work."""
    require_scipy()


EDGES = Protocol("edges", measure_edges, summarise_edges, prepare_edges, check_edges, read=read_edges)
