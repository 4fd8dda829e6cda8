"""Protocol "captions": captions of regions, compared with what people wrote of them.

Tokenize Anything's published scripts/eval_cap.py (baaivision/tokenize-anything at 29df88e): the annotated boxes are the
prompts, the mask of the box speaks, the next token is the most probable one; every annotation is a region of its own
with one reference; CIDEr-D and BLEU of coco-caption over all regions. The same here, but for the tokenizer (see
`cider.tokens`) and boxes that are cut off at the image's edges. Ours: `join`, several references of an annotation
(`captions`), regions by the size of their box, and scores of one data set after the other. METEOR and ROUGE, which the
script also prints, are not computed.

How much a word counts in CIDEr-D depends on all references of the data set: with --limit, on those of the images that
were taken.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from anysam.datasets import ImageEntry
from anysam.describe.tap_words import DescribeOptions, check_speaking, prepare_wording
from anysam.errors import OptionError
from anysam.evaluate.cider import bleu_4, cider_d, tokens
from anysam.evaluate.instances import inside
from anysam.evaluate.options import CaptionOptions
from anysam.evaluate.protocols import DataChoice, Figure, Protocol, Row, Table
from anysam.evaluate.regions import Regions, read_captioned
from anysam.evaluate.sampling import SIZES, entry_generator, of_size
from anysam.fetch import file_sha256
from anysam.predictor import Model
from anysam.prompts import Prompt

_LONGEST = 20  # words of a caption that the figure tells apart


@dataclass(frozen=True, eq=False)
class Writer:
    """A model that writes captions, and how."""

    model: Model
    options: DescribeOptions


@dataclass(frozen=True)
class Written:
    """A caption, its references as words, and the area of its region's box."""

    caption: tuple[str, ...]
    references: tuple[tuple[str, ...], ...]
    area: float


def check_captions(options: CaptionOptions, data: DataChoice) -> None:
    """Raises OptionError for data without captions, MissingExtraError without sentencepiece."""
    if options.tokenizer and not Path(options.tokenizer).is_file():
        raise OptionError(f"--tokenizer {options.tokenizer} is not a file.")
    describe_options(options)
    if not Path(data.data).is_file():
        read_images(options, data)  # which says what is accepted


def describe_options(options: CaptionOptions) -> DescribeOptions:
    """Captions alone, as the protocol's options have them."""
    return DescribeOptions(
        vocabulary=None,
        captions=True,
        max_tokens=options.max_tokens or None,
        beams=options.beams,
        tokenizer=options.tokenizer or None,
    )


def read_images(options: CaptionOptions, data: DataChoice) -> Regions:
    """The images with captioned regions."""
    return read_captioned(data, options.join)


def files_digest(options: CaptionOptions, data: DataChoice) -> dict[str, str]:
    """SHA-256 of the references, and of a tokenizer that was given."""
    paths = {"references": data.data, "tokenizer": options.tokenizer}
    return {name: file_sha256(Path(path)) for name, path in paths.items() if path}


def prepare_captions(model: Model, options: CaptionOptions) -> Writer:
    """Raises OptionError for a model that writes no captions, and what there may be wrong with the tokenizer."""
    check_speaking(model)
    wanted = describe_options(options)
    check_speaking(model, prepare_wording(wanted))
    return Writer(model, wanted)


def measure_captions(writer: Writer, entry: ImageEntry, options: CaptionOptions) -> dict[str, Any] | None:
    """What is written of each chosen region, and what people wrote."""
    chosen = list(range(len(entry.boxes)))
    if options.regions_per_image:
        chosen = entry_generator(options.seed, entry).permutation(chosen)[: options.regions_per_image].tolist()
    if not chosen:
        return None
    encoded = writer.model.encode(entry.read_image())
    boxes = [inside(entry.boxes[i], entry.size) for i in chosen]
    records = writer.model.describe(encoded, [Prompt(box=box) for box in boxes], writer.options)
    return {
        "ids": [entry.ids[i] for i in chosen],
        "areas": [float((box[2] - box[0]) * (box[3] - box[1])) for box in boxes],
        "captions": [record.caption or "" for record in records],
        "references": [list(entry.captions[i]) for i in chosen],
    }


def summarise_captions(rows: Sequence[Row], options: CaptionOptions, data: DataChoice) -> Table:
    """Scores by data set, their mean, and by size of the box over all regions."""
    columns = ("images", "regions", "CIDEr", "BLEU-4", "words", "different")
    by_dataset: dict[str, list[Row]] = {}
    for row in rows:
        by_dataset.setdefault(row.dataset, []).append(row)
    if not by_dataset:
        return Table(columns, (), "CIDEr", notes=("There was nothing to measure.",))
    lines: list[tuple[str, Mapping[str, float | int | None]]] = []
    written: list[Written] = []
    ciders: list[float] = []
    for dataset, own in by_dataset.items():
        regions = [each for row in own for each in _regions(row)]
        scores = cider_d([each.caption for each in regions], [each.references for each in regions])
        lines.append((dataset, {"images": len(own), **_scores(regions, scores)}))
        written += regions
        ciders += scores
    each = [values for _, values in lines]
    mean = {name: float(np.mean([values[name] for values in each])) for name in columns[2:]}
    lines.append(("mean", {"images": len(rows), "regions": len(written), **mean}))
    areas = [each.area for each in written]
    for size in SIZES:
        places = of_size(list(range(len(written))), areas, size)
        lines.append((size, _scores([written[int(i)] for i in places], [ciders[int(i)] for i in places])))
    notes = (
        "CIDEr is CIDEr-D, from 0 to 10; papers print 100 times of it. different: captions per region, each once.",
        "small, medium, large: boxes below 32 x 32, up to 96 x 96 and above, in pixels.",
    )
    return Table(columns, tuple(lines), "CIDEr", (_length_figure(written),), notes)


def _regions(row: Row) -> list[Written]:
    values = row.values
    return [
        Written(tokens(caption), tuple(tokens(each) for each in references), area)
        for caption, references, area in zip(values["captions"], values["references"], values["areas"], strict=True)
    ]


def _scores(regions: Sequence[Written], ciders: Sequence[float]) -> dict[str, float | int | None]:
    """CIDEr is the mean of the regions'; words: the mean length of a caption; different: the share of captions that
    would be left if each were there once.
    """
    if not regions:
        return {"regions": 0}
    captions = [each.caption for each in regions]
    return {
        "regions": len(regions),
        "CIDEr": float(np.mean(ciders)),
        "BLEU-4": bleu_4(captions, [each.references for each in regions]),
        "words": float(np.mean([len(caption) for caption in captions])),
        "different": len(set(captions)) / len(captions),
    }


def _length_figure(written: Sequence[Written]) -> Figure:
    counts = Counter(min(len(each.caption), _LONGEST) for each in written)
    lengths = tuple(range(max(counts) + 1))
    shares = tuple(counts[length] / len(written) for length in lengths)
    return Figure("words", "Words of a caption", "lines", "words", "share", tuple(map(float, lengths)), shares)


CAPTIONS = Protocol(
    "captions",
    measure_captions,
    summarise_captions,
    prepare_captions,
    check_captions,
    files_digest,
    read_images,
)
