"""THE table of file formats for masks: what each can hold, and what its files are called."""

import difflib
from collections.abc import Collection
from dataclasses import dataclass

from anysam.errors import OptionError
from anysam.results import MaskRecord


@dataclass(frozen=True)
class Format:
    """One format. files: names of one image's files, where * is the image's own stem and N counts the masks from 0.

    holes, parts, overlap, scores, labels, captions: whether masks with holes, of several parts, that share pixels, and
    their scores, labels and captions come back when a file is read; captions: and the scores of labels and captions.
    reads: whether it can be read at all. note: what else to know.
    """

    name: str
    files: str
    holes: bool
    parts: bool
    overlap: bool
    scores: bool
    labels: bool
    captions: bool
    reads: bool
    note: str


def _format(name: str, files: str, holds: str, note: str) -> Format:
    """A row; holds: its columns, or "all" of them."""

    def held(column: str) -> bool:
        return holds == "all" or column in holds.split()

    return Format(
        name=name,
        files=files,
        holes=held("holes"),
        parts=held("parts"),
        overlap=held("overlap"),
        scores=held("scores"),
        labels=held("labels"),
        captions=held("captions"),
        reads=held("reads"),
        note=note,
    )


TABLE = (
    _format("png", "*_mask_N.png", "holes parts overlap reads", "255 on the object, 0 elsewhere"),
    _format("overlay", "*_overlay.png", "", "for the eye"),
    _format("cutout", "*_cutout_N.png", "", "the object on transparent ground"),
    _format("coco", "*.coco.json", "all", "COCO instances with run lengths: exact"),
    _format(
        *("coco-polygons", "*.polygons.json", "all"),
        "COCO instances with polygons along pixel edges; a hole is joined to its outline by a seam of no width",
    ),
    _format(
        *("yolo", "*.txt, *.names.txt", "holes parts overlap labels reads"),
        "one ring for each mask, holes and parts joined by seams of no width; the size of the image is not in it",
    ),
    _format(
        *("labelme", "*.labelme.json", "all"),
        "polygons, several parts with one group_id; a mask with holes as labelme's shape of type mask; captions as "
        "its descriptions",
    ),
    _format(
        *("labels", "*_labels.png", "holes parts reads"),
        "a label map, 0 where no mask is; 16 bits from 256 masks on; smaller masks lie on larger ones",
    ),
    _format("geojson", "*.geojson", "all", "a map's coordinates where the image has them, else pixels"),
    _format("npz", "*.npz", "all", "NumPy arrays: run lengths, boxes, scores, words; no pickles"),
    _format("sa1b", "*.sa1b.json", "holes parts overlap scores reads", "as SA-1B's annotations, a file an image"),
    _format("json", "*.json", "all", "everything that is known, prompts included: exact"),
)
FORMATS = tuple(row.name for row in TABLE)
READABLE = tuple(row.name for row in TABLE if row.reads)


@dataclass(frozen=True)
class ImageResult:
    """One image: its file name as written, its size (H, W), the masks on it; and where it lies, if it is a map.

    crs: for example "EPSG:32633". transform: six numbers a b c d e f, so that the corner at column x and row y lies at
    a x + b y + c, d x + e y + f.
    """

    file_name: str
    size: tuple[int, int]
    records: tuple[MaskRecord, ...]
    crs: str | None = None
    transform: tuple[float, float, float, float, float, float] | None = None


@dataclass(frozen=True)
class Loss:
    """What a format could not hold of an image: `count` of `what`, for example 2 of "masks without a pixel"."""

    format: str
    what: str
    count: int

    def __str__(self) -> str:
        return f"{self.format} cannot hold {self.what}: {self.count:,} lost"


def check_formats(formats: Collection[str]) -> None:
    """Raise OptionError when a format is not one of FORMATS, naming the nearest."""
    for given in formats:
        if given not in FORMATS:
            near = difflib.get_close_matches(given, FORMATS, n=1)
            hint = f"; did you mean '{near[0]}'?" if near else "."
            raise OptionError(f"Unknown output format '{given}', accepted are {', '.join(FORMATS)}{hint}")


def formats_table() -> str:
    """The table in Markdown."""
    lines = [
        "| format | files | holes | parts | overlap | scores | labels | captions | read back | |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in TABLE:
        held = (row.holes, row.parts, row.overlap, row.scores, row.labels, row.captions, row.reads)
        marks = " | ".join("yes" if each else "" for each in held)
        lines.append(f"| `{row.name}` | `{row.files.replace(', ', '`, `')}` | {marks} | {row.note} |")
    return "\n".join(lines)
