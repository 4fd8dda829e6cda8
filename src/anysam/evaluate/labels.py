"""Protocol "labels": how often the name that an object gets is the one that people gave it.

Tokenize Anything's published scripts/eval_cls.py (baaivision/tokenize-anything at 29df88e), its "zero-shot instance
classification": the annotated box is the prompt, the mask of the box speaks, and the names are the data set's
categories, from the published embeddings. That script prints the box AP of all (box, name) pairs with a probability
above 0.001 and the score sqrt(probability x predicted IoU), after suppression within a name at an IoU of 0.5 and with
the best 300 of an image; `average_precision` gives this number (LVIS: 0.591 for TAP-L v1.1 in
notebooks/evaluation_tap_vit_l_v1_1.ipynb), but that boxes are cut off at the image's edges and COCO's crowds are no
prompts.

Ours: accuracies. top_1 and top_5 are the share of objects whose category is the most probable name, or among five;
class_mean the mean over categories of their own top_1, so that rare ones count as much as frequent ones. Models that
have no words cut out what the box shows, and CLIP names that mask, as `anysam describe` does; with the prompt "mask"
the annotated mask itself is named and the model's own masks play no part.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from anysam.datasets import ImageEntry
from anysam.describe.interface import describe_records
from anysam.errors import OptionError
from anysam.evaluate.average_precision import has_federated_labels, measure_precision, scores
from anysam.evaluate.averages import average_lines
from anysam.evaluate.instances import inside
from anysam.evaluate.naming import TOP, Namer, make_namer, naming_files
from anysam.evaluate.options import LabelOptions
from anysam.evaluate.protocols import DataChoice, Figure, Protocol, Row, Table
from anysam.evaluate.regions import Categories, Regions, plain_name, read_categories, read_objects
from anysam.evaluate.sampling import SIZES, chosen_masks, of_size
from anysam.evaluate.truth import image_ids, make_coco, read_document
from anysam.fetch import file_sha256
from anysam.predictor import Model
from anysam.prompts import Prompt
from anysam.results import MaskRecord

_AT_ONCE = 16  # boxes whose masks, of the image's size, are held at a time
_BARS = 8  # classes whose names find room below a figure
_LEAST_PROBABILITY, _OVERLAP, _MOST = 0.001, 0.5, 300  # eval_cls.py
_COCO_LIMIT = 100


def files_digest(options: LabelOptions, data: DataChoice) -> dict[str, str]:
    """SHA-256 of the annotations, and what the names depend on."""
    return {**{each.dataset: file_sha256(each.path) for each in read_categories(data)}, **naming_files(options)}


def read_images(options: LabelOptions, data: DataChoice) -> Regions:
    """The images with objects."""
    return read_objects(data)


def prepare_labels(model: Model, options: LabelOptions, data: DataChoice) -> Namer:
    """The model with who names, and the names."""
    return make_namer(model, options, read_categories(data))


def measure_labels(namer: Namer, entry: ImageEntry, options: LabelOptions) -> dict[str, Any] | None:
    """The categories of the chosen objects that can be answered, and the names they got, best first."""
    large = chosen_masks(entry, options.masks_per_image, options.least_area, options.seed)
    answers = namer.answers[entry.dataset]
    chosen = [i for i in large if plain_name(str(entry.labels[i])) in answers]
    if not large:
        return None
    records = _named(namer, entry, chosen, options) if chosen else []
    values: dict[str, Any] = {
        "areas": [entry.areas[i] for i in chosen],
        "labels": [entry.labels[i] for i in chosen],
        "guesses": [list(record.label_scores or {})[:TOP] for record in records],
        "unanswerable": len(large) - len(chosen),
        "namer": namer.identity,
    }
    if options.average_precision:
        values["results"] = _detections(entry, chosen, records)
    return values


def _named(namer: Namer, entry: ImageEntry, chosen: Sequence[int], options: LabelOptions) -> list[MaskRecord]:
    """A record with names for each chosen object."""
    image = entry.read_image()
    describer = namer.describers[entry.dataset]
    if options.prompt == "mask":
        # An annotated mask is as sure as can be.
        masks = [MaskRecord.from_mask(entry.decode(i).astype(bool), 1.0) for i in chosen]
        return describe_records(describer, image, masks)
    prompts = [Prompt(box=inside(entry.boxes[i], entry.size)) for i in chosen]
    encoded = namer.model.encode(image)
    if namer.own is not None:
        return namer.model.describe(encoded, prompts, namer.own[entry.dataset])
    records = []
    for start in range(0, len(prompts), _AT_ONCE):
        for one in namer.model.predict(encoded, prompts[start : start + _AT_ONCE], multimask=False):
            records.append(MaskRecord.from_mask(one.masks[one.best], one.iou_predictions[one.best]))
    return describe_records(describer, image, records)


# --- accuracies -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Guess:
    """An object. place: of its category among the names it got, from 0 on; None where it is not among them."""

    dataset: str
    label: str
    area: float
    place: int | None

    def within(self, count: int) -> bool:
        return self.place is not None and self.place < count


def summarise_labels(rows: Sequence[Row], options: LabelOptions, data: DataChoice) -> Table:
    """Accuracies by data set, their mean, by size, and by frequency where a file says it."""
    namers = sorted({row.values["namer"] for row in rows})
    if len(namers) > 1:
        raise OptionError(
            f"The objects were named by several describers ({', '.join(namers)}); give another --out and measure anew."
        )
    guesses = [guess for row in rows for guess in row_guesses(row)]
    if not guesses:
        return Table(("images", "masks", "top_1"), (), "top_1", notes=("There was nothing to measure.",))
    sets = {each.dataset: each for each in read_categories(data)}
    measured = {row.dataset for row in rows}
    few = {name for name in measured if len(sets[name].names) <= TOP and not options.labels}
    lines, notes = average_lines([_accuracies(row, row.dataset in few) for row in rows], ("top_1", "top_5"))
    scored = {label: {**values, **_class_scores(_of_line(guesses, label))} for label, values in lines}
    means = [value for name in sets if (value := scored.get(name, {}).get("class_mean")) is not None]
    scored["mean"]["class_mean"] = float(np.mean(means)) if means else None
    scored |= {kind: _plain_scores(own) for kind, own in by_frequency(guesses, sets).items()}
    columns = ["images", "masks", "top_1", "top_5", "class_mean", "classes"]
    if options.average_precision:
        for name, each in sets.items():
            own = [row for row in rows if row.dataset == name]
            if own:
                precision = box_precision(own, each)
                scored[name] |= precision
                columns += [column for column in precision if column not in columns]
    notes = (*notes, *_notes(rows, sets, few, namers, options))
    return Table(tuple(columns), tuple(scored.items()), "top_1", _figures(guesses, scored), notes)


def row_guesses(row: Row) -> list[Guess]:
    """The objects of an image."""
    values = row.values
    found = []
    for label, area, names in zip(values["labels"], values["areas"], values["guesses"], strict=True):
        plain = [plain_name(name) for name in names]
        place = plain.index(plain_name(label)) if plain_name(label) in plain else None
        found.append(Guess(row.dataset, label, area, place))
    return found


def _accuracies(row: Row, few: bool) -> Row:
    """As `average_lines` takes it; five of few names say nothing."""
    own = row_guesses(row)
    values: dict[str, Any] = {
        "areas": [guess.area for guess in own],
        "top_1": [float(guess.within(1)) for guess in own],
    }
    if not few:
        values["top_5"] = [float(guess.within(TOP)) for guess in own]
    return Row(row.dataset, row.name, values)


def _of_line(guesses: Sequence[Guess], label: str) -> list[Guess]:
    """The objects of a line that `average_lines` makes."""
    if label in SIZES:
        return [guesses[int(i)] for i in of_size(range(len(guesses)), [guess.area for guess in guesses], label)]
    return [guess for guess in guesses if label in ("mean", guess.dataset)]


def _class_scores(guesses: Sequence[Guess]) -> dict[str, float | int | None]:
    """class_mean: the mean over classes of a class's share of right names; classes: how many there are."""
    classes = _by_class(guesses)
    mean = float(np.mean([_share(own) for own in classes.values()])) if classes else None
    return {"class_mean": mean, "classes": len(classes)}


def _plain_scores(guesses: Sequence[Guess]) -> dict[str, float | int | None]:
    top = {name: _share(guesses, count) for name, count in (("top_1", 1), ("top_5", TOP))}
    return {"masks": len(guesses), **top, **_class_scores(guesses)}


def _by_class(guesses: Iterable[Guess]) -> dict[tuple[str, str], list[Guess]]:
    classes: dict[tuple[str, str], list[Guess]] = {}
    for guess in guesses:
        classes.setdefault((guess.dataset, guess.label), []).append(guess)
    return classes


def _share(guesses: Sequence[Guess], count: int = 1) -> float:
    return float(np.mean([guess.within(count) for guess in guesses]))


def by_frequency(guesses: Sequence[Guess], sets: Mapping[str, Categories]) -> dict[str, list[Guess]]:
    """The objects of rare, common and frequent categories, where there are any."""
    found: dict[str, list[Guess]] = {kind: [] for kind in ("rare", "common", "frequent")}
    for guess in guesses:
        kind = sets[guess.dataset].frequencies.get(guess.label)
        if kind is not None:
            found[kind].append(guess)
    return {kind: own for kind, own in found.items() if own}


def _notes(
    rows: Sequence[Row],
    sets: Mapping[str, Categories],
    few: Iterable[str],
    namers: Sequence[str],
    options: LabelOptions,
) -> list[str]:
    notes = ["class mean: of the top 1 of each category, all categories alike."]
    if few:
        notes.append(f"No top 5 where there are at most {TOP} categories: {', '.join(sorted(few))}.")
    left_out = sum(row.values["unanswerable"] for row in rows)
    if left_out:
        notes.append(
            f"Left out, because their categories are not among the names {options.labels}: {left_out} of the masks."
        )
    if any(each.frequencies for each in sets.values()):
        notes.append("rare, common, frequent: all masks of the categories that the file calls so.")
    shown = "masks" if options.prompt == "mask" else "boxes"
    return [*notes, f"Named by {namers[0]}, shown the annotated {shown}."]


def _figures(guesses: Sequence[Guess], scored: Mapping[str, Mapping[str, float | int | None]]) -> tuple[Figure, ...]:
    counts = tuple(float(count) for count in range(1, TOP + 1))
    shares = tuple(_share(guesses, int(count)) for count in counts)
    ranks = Figure("ranks", "Right name among the first", "lines", "names", "share of objects", counts, shares)
    frequent = [label for label, _ in Counter(guess.label for guess in guesses).most_common(_BARS)]
    titles = tuple(label.replace("_", " ").replace(" ", "\n") for label in frequent)
    accuracies = tuple(_share([guess for guess in guesses if guess.label == label]) for label in frequent)
    bars = Figure("classes", "Right names of the most frequent categories", "bars", "", "top 1", titles, accuracies)
    sizes = [(size, float(value)) for size in SIZES if (value := scored.get(size, {}).get("top_1")) is not None]
    x, y = zip(*sizes, strict=True)
    return ranks, bars, Figure("sizes", "Right names by size of the object", "bars", "", "top 1", x, y)


# --- box AP -----------------------------------------------------------------------------------------------------------


def _detections(entry: ImageEntry, chosen: Sequence[int], records: Sequence[MaskRecord]) -> list[list[Any]]:
    """[name, score, x, y, w, h] of every pair of a box and a name that eval_cls.py keeps."""
    by_name: dict[str, list[tuple[float, int]]] = {}
    for i, record in zip(chosen, records, strict=True):
        for name, probability in (record.label_scores or {}).items():
            if probability > _LEAST_PROBABILITY:
                score = float(np.sqrt(probability * np.clip(record.predicted_iou, 0, 1)))
                by_name.setdefault(name, []).append((score, i))
    kept = [(score, name, i) for name, pairs in by_name.items() for score, i in suppressed(pairs, entry.boxes)]
    if len(kept) > _MOST:
        least = sorted((each[0] for each in kept), reverse=True)[_MOST - 1]
        kept = [each for each in kept if each[0] >= least]
    results = []
    for score, name, i in kept:
        x0, y0, x1, y1 = entry.boxes[i]
        results.append([name, score, x0, y0, x1 - x0, y1 - y0])
    return results


def suppressed(
    pairs: Sequence[tuple[float, int]], boxes: Sequence[tuple[float, float, float, float]]
) -> list[tuple[float, int]]:
    """Of (score, number of a box xyxy) those that overlap no better one by an IoU above 0.5, best first."""
    kept: list[tuple[float, int]] = []
    for score, i in sorted(pairs, key=lambda pair: -pair[0]):
        if all(_iou(boxes[i], boxes[j]) <= _OVERLAP for _, j in kept):
            kept.append((score, i))
    return kept


def _iou(a: Sequence[float], b: Sequence[float]) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    shared = width * height
    return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)


def box_precision(rows: Sequence[Row], categories: Categories) -> dict[str, float | None]:
    """The box AP of a data set's images, by the rules of COCO or LVIS."""
    document = read_document(categories.path)
    ids, classes = image_ids(document), {plain_name(str(each["name"])): each["id"] for each in document["categories"]}
    results = [
        {"image_id": ids[row.name], "category_id": classes[plain_name(name)], "score": score, "bbox": box}
        for row in rows
        for name, score, *box in row.values["results"]
        if plain_name(name) in classes
    ]
    federated = has_federated_labels(document)
    limit = _MOST if federated else _COCO_LIMIT
    truth = make_coco(document)
    images = [ids[row.name] for row in rows]
    found = measure_precision(truth, results, images, lvis=federated, max_detections=limit, kind="bbox")
    return scores(found, truth)


LABELS = Protocol(
    "labels",
    measure_labels,
    summarise_labels,
    digest=files_digest,
    read=read_images,
    prepare_for=prepare_labels,
)
