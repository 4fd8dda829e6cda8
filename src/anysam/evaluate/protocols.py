"""The table of protocols, `anysam eval NAME`, and what a protocol is. Names only: protocols are imported on use.

No torch and no numpy here, nor in the modules of options, so that `anysam eval NAME --help` starts at once.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any

from anysam.errors import OptionError

if TYPE_CHECKING:
    from anysam.datasets import ImageDataset, ImageEntry
    from anysam.predictor import Model


def option(default: Any, help: str, choices: tuple[str, ...] = ()) -> Any:
    """A field of a protocol's options that is also a flag: `masks_per_image` becomes --masks-per-image.

    Its type is bool (a switch, off by default), int, float, str or tuple[int, ...] (numbers with commas).
    """
    return field(default=default, metadata={"help": help, "choices": choices})


@dataclass(frozen=True)
class Listed:
    """A row of the table.

    source: the paper and section, or the published file, whose numbers these are. protocol: "module:NAME" below
    anysam.evaluate, a Protocol. options: "module:Class" below it, a frozen dataclass, its fields made by `option`.
    """

    name: str
    summary: str
    source: str
    protocol: str
    options: str


PROTOCOLS = (
    Listed(
        "clicks",
        "mean IoU after 1, 2, 3, 5 and 9 simulated clicks, and the best of three masks",
        "SAM, arXiv 2304.02643, section 7.1 and appendix D.1",
        "prompts:CLICKS",
        "options:ClickOptions",
    ),
    Listed(
        "boxes",
        "mean IoU of the mask that a tight box gives",
        "EdgeSAM, evaluation/eval_mIoU.py at 57a997a; EfficientViT-SAM, eval_efficientvit_sam_model.py at 8d60c1c",
        "prompts:BOXES",
        "options:BoxOptions",
    ),
    Listed(
        "instances",
        "COCO or LVIS mask AP, with the boxes of a detector as prompts",
        "SAM, arXiv 2304.02643, section 7.4 and appendix D.4",
        "instances:INSTANCES",
        "options:InstanceOptions",
    ),
    Listed(
        "proposals",
        "mask AR@10, 100 and 1000 of everything mode, whatever the class",
        "SAM, arXiv 2304.02643, section 7.3 and appendix D.3",
        "proposals:PROPOSALS",
        "options:ProposalOptions",
    ),
    Listed(
        "everything",
        "mean IoU of every annotated mask with the best mask that everything mode finds",
        "ours",
        "everything:EVERYTHING",
        "options:EverythingProtocolOptions",
    ),
    Listed(
        "edges",
        "ODS, OIS, AP and R50 of the edges that everything mode's masks have",
        "SAM, arXiv 2304.02643, section 7.2 and appendix D.2; BIDS/BSDS500, bench, at a04b7c6",
        "edges:EDGES",
        "options:EdgeOptions",
    ),
    Listed(
        "labels",
        "how often the name that an object gets is right: top 1, top 5, mean over classes",
        "Tokenize Anything, arXiv 2312.09128, scripts/eval_cls.py at 29df88e; the accuracies are ours",
        "labels:LABELS",
        "options:LabelOptions",
    ),
    Listed(
        "captions",
        "CIDEr-D and BLEU-4 of captions of regions",
        "Tokenize Anything, arXiv 2312.09128, scripts/eval_cap.py at 29df88e; CIDEr, arXiv 1411.5726",
        "captions:CAPTIONS",
        "options:CaptionOptions",
    ),
)


@dataclass(frozen=True)
class DataChoice:
    """What is evaluated on, as `anysam.datasets.read_dataset` takes it: path, kind, split and the folder of images.

    limit: at most so many images, spread evenly over all; 0: all. An empty split or folder is the reader's default.
    """

    data: str
    kind: str = "auto"
    split: str = ""
    images: str = ""
    limit: int = 0


@dataclass(frozen=True)
class Row:
    """What was measured on one image. values: JSON, as `measure` gave it and exactly as it is read from a file again.
    seconds: what measuring took, wall clock, not compared and not part of a score.
    """

    dataset: str
    name: str
    values: Mapping[str, Any]
    seconds: float = 0.0


@dataclass(frozen=True)
class Figure:
    """A plot's data for one model; figures of one name are drawn together, a colour for each model.

    kind: "lines" (x, y pairs joined), "points" (not joined) or "bars" (x are labels). marks: labelled points (x, y)
    drawn on top, such as the best point of a curve.
    """

    name: str
    title: str
    kind: str
    x_label: str
    y_label: str
    x: tuple[float | str, ...]
    y: tuple[float, ...]
    marks: tuple[tuple[float, float, str], ...] = ()


@dataclass(frozen=True)
class Table:
    """A protocol's result for one model.

    columns: the scores by name, in the order to print. lines: (label, {column: value}), usually one for each data set
    and last "mean"; int is printed as a count, float with three digits, None or absent as a dash. judge: the column
    that says most. notes: sentences below the table.
    """

    columns: tuple[str, ...]
    lines: tuple[tuple[str, Mapping[str, float | int | None]], ...]
    judge: str
    figures: tuple[Figure, ...] = ()
    notes: tuple[str, ...] = ()


def take_model(model: "Model", options: Any) -> "Model":
    """The usual `prepare`: the model itself is all that is needed."""
    return model


def no_check(options: Any, data: DataChoice) -> None:
    """The usual `check`: the options' own __post_init__ sees all there is to see."""


def no_facts(options: Any, data: DataChoice) -> dict[str, Any]:
    """The usual `digest`: results depend on nothing but options and data."""
    return {}


@dataclass(frozen=True)
class Protocol:
    """A way to measure a model. All parts are functions at the top of a module: worker processes find them by name.

    measure: (subject, entry, options) -> JSON values of one image, or None where it has nothing to measure (no mask of
    a countable size). subject is what `prepare` gave. It raises ImageError for a broken image, which is then skipped,
    counted and listed. What it draws comes from `entry_generator`. summarise: (rows in the order of the data, options,
    data) -> Table. prepare: (model, options) -> what measure needs, once in each process: the model, or a frozen
    dataclass with, say, the detections of a file beside it. check: (options, data), raises an AnySamError before any
    work and before a model is loaded. digest: (options, data) -> facts beside options and data that results depend
    on, such as the hash of a detections file. read: (options, data) -> the images, where they are not those of
    `anysam.datasets.read_dataset`; the limit is applied to them afterwards. prepare_for: (model, options, data), in the
    place of `prepare` where what measure needs is in the data, too, such as the names of all categories.
    """

    name: str
    measure: Callable[[Any, "ImageEntry", Any], dict[str, Any] | None]
    summarise: Callable[[Sequence[Row], Any, DataChoice], Table]
    prepare: Callable[["Model", Any], Any] = take_model
    check: Callable[[Any, DataChoice], None] = no_check
    digest: Callable[[Any, DataChoice], dict[str, Any]] = no_facts
    read: Callable[[Any, DataChoice], "ImageDataset"] | None = None
    prepare_for: Callable[["Model", Any, DataChoice], Any] | None = None


def find_listed(name: str) -> Listed:
    """The row of a protocol. Raises OptionError for a name that there is not."""
    for each in PROTOCOLS:
        if each.name == name:
            return each
    raise OptionError(f"There is no protocol {name!r}; protocols are {', '.join(each.name for each in PROTOCOLS)}.")


def load_protocol(listed: Listed) -> Protocol:
    """The protocol itself, with what it imports."""
    protocol = _find(listed.protocol)
    assert isinstance(protocol, Protocol)
    return protocol


def options_class(listed: Listed) -> Any:
    """The frozen dataclass of the protocol's options; every field has a default."""
    return _find(listed.options)


def _find(place: str) -> Any:
    module, _, name = place.partition(":")
    return getattr(import_module(f"anysam.evaluate.{module}"), name)
