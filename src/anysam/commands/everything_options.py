"""The options of everything mode on the command line, and what they mean together."""

import argparse
import dataclasses
import re
from typing import TYPE_CHECKING, Any

from anysam.errors import OptionError

if TYPE_CHECKING:
    from anysam.automatic.options import EverythingOptions

PRESETS = ("whole", "part", "subpart", "dense", "fast")
DUPLICATES = 0.9  # --merge-duplicates without a number
DEFAULT_DETECTOR = "mobilesamv2_object_aware"
# Families that find objects in one pass.
_FINDING = ("fast_sam", "object_aware")

# By their names in EverythingOptions: the type, what stands for the value, and the help.
_GRID: tuple[tuple[str, type, str, str], ...] = (
    ("points_per_side", int, "N", "points of the grid along each side (32)"),
    ("points_per_batch", int, "N", "points asked at once; changes no result (as memory allows)"),
    ("pred_iou_thresh", float, "0..1", "drop masks with a lower predicted IoU (0.88)"),
    ("stability_score_thresh", float, "0..1", "drop masks that change more when the threshold moves (0.95)"),
    ("stability_score_offset", float, "LOGITS", "by how much it moves (1.0)"),
    ("box_nms_thresh", float, "0..1", "of two masks whose boxes overlap more, keep the better (0.7)"),
    ("crop_n_layers", int, "N", "look again at crops: 4, then 16, ... of them (0)"),
    ("crop_nms_thresh", float, "0..1", "as --box-nms-thresh, between crops (0.7)"),
    ("crop_overlap_ratio", float, "0..1", "overlap of crops, as a part of the shorter side (0.341)"),
    ("crop_n_points_downscale_factor", int, "N", "divide the points along each side by it, layer by layer (1)"),
    ("min_mask_region_area", int, "PIXELS", "fill smaller holes, remove smaller islands (0)"),
)
# With boxes or points from elsewhere there is no grid to speak of.
_OF_THE_GRID = tuple(name for name, _, _, _ in _GRID)
_OF_OBJECTS = ("confidence", "nms_iou")
# The field of EverythingOptions for each option, where the names differ by more than the dashes.
_FLAGS = {"tile_overlap": "--overlap"}


def add_what(group: argparse._ArgumentGroup) -> None:
    """Declare what to look for: --preset, --boxes, --points, --detector and its thresholds."""
    group.add_argument(
        "--preset",
        choices=PRESETS,
        help="whole, part or subpart: masks of one size only; dense: less certain and smaller ones, too, in more than "
        "twice the time; fast: a quarter of the points (default: all sizes, as the model's authors do)",
    )
    group.add_argument(
        "--boxes",
        metavar="FILE",
        help="a mask for each given box instead: COCO JSON (a dataset, or results), YOLO text (a file, or a folder "
        "with one for each image), or CSV: image,x0,y0,x1,y1[,label[,score]]",
    )
    group.add_argument(
        "--points",
        metavar="FILE",
        help="a mask for each given point instead, CSV: image,x,y[,label], the object's name",
    )
    group.add_argument(
        "--detector",
        metavar="NAME|FILE|none",
        help="ask at the boxes of the objects that this model finds, not at a grid (default: for mobilesamv2 models "
        "mobilesamv2_object_aware, for others none)",
    )
    group.add_argument(
        "--confidence", type=float, metavar="0..1", help="least score of objects found by a detector or by FastSAM"
    )
    group.add_argument(
        "--nms-iou", type=float, metavar="0..1", help="of two such objects whose boxes overlap more, keep the better"
    )


def add_grid(group: argparse._ArgumentGroup) -> None:
    """Declare the parameters of the published mask generator, under their published names."""
    for name, kind, metavar, words in _GRID:
        group.add_argument(_flag(name), type=kind, metavar=metavar, help=words)


def add_choice(group: argparse._ArgumentGroup) -> None:
    """Declare which of the masks are kept."""
    group.add_argument("--min-area", type=int, metavar="PIXELS", help="leave out smaller masks")
    group.add_argument("--max-masks", type=int, metavar="N", help="keep at most so many of an image, the best")
    group.add_argument(
        "--merge-duplicates",
        type=_overlap,
        nargs="?",
        const=DUPLICATES,
        metavar="IOU",
        help=f"of masks that overlap more than this keep the best only (IOU: {DUPLICATES})",
    )
    group.add_argument(
        "--panoptic",
        action="store_const",
        const=True,
        help="every pixel in at most one mask, without holes and islands below --min-mask-region-area; also writes the "
        "label map: adds labels to --format",
    )


def add_size(group: argparse._ArgumentGroup) -> None:
    """Declare what large images need."""
    group.add_argument(
        "--tile",
        type=int,
        metavar="N",
        help="cut large images into tiles of N pixels a side; objects across tiles stay one mask (1024 is good)",
    )
    group.add_argument(
        "--overlap",
        dest="tile_overlap",
        type=float,
        metavar="0..0.9",
        help="by which part of their side tiles overlap (default: 0.25)",
    )
    group.add_argument(
        "--max-memory",
        metavar="SIZE",
        help="stay below this beside the loaded model, for example 2G; the masks are the same (default: half of what "
        "is free)",
    )


def given_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """The fields of EverythingOptions that were given, checked. Raises OptionError."""
    from anysam.automatic.options import EverythingOptions

    fields = [field.name for field in dataclasses.fields(EverythingOptions)]
    given = {name: value for name in fields if (value := getattr(arguments, name, None)) is not None}
    if "max_memory" in given:
        from anysam.memory import parse_size  # which imports torch

        given["max_memory"] = parse_size(given["max_memory"])
    _refuse_contradictions(arguments, given)
    _replace(EverythingOptions(), given)
    return given


def everything_options(
    preset_name: str | None, variant: str, with_grid: bool, given: dict[str, Any]
) -> "EverythingOptions":
    """What was given, on top of the preset for a variant of the catalogue. Raises OptionError.

    with_grid: False where prompts come from a detector or a file.
    """
    from anysam.automatic.presets import preset

    return _replace(preset(preset_name or "default", variant, detector=not with_grid), given)


def finds_objects(variant: str, with_detector: bool) -> bool:
    """Whether masks come from objects that were found, with a confidence, and not from a grid of points."""
    from anysam.catalogue import find_variant

    return with_detector or find_variant(variant).family in _FINDING


def detector_name(arguments: argparse.Namespace, variant: str, given: dict[str, Any]) -> str | None:
    """The detector to use with a variant of the catalogue: the one asked for, or the one its authors use; or none.

    Raises OptionError for a detector beside a model that finds objects by itself, and for options that have no effect.
    """
    from anysam.catalogue import find_variant

    if arguments.boxes is not None or arguments.points is not None:
        return None
    asked: str | None = arguments.detector
    family = find_variant(variant).family
    if family in _FINDING:
        if asked not in (None, "none"):
            raise OptionError(f"{variant} finds objects by itself; --detector has no effect with it.")
        _refuse_grid(given, f"with {variant}, which is not asked at a grid of points")
        return None
    # With an option or a preset that is about a grid, a grid is what the user has in mind; else the authors' way.
    grid = arguments.preset not in (None, "dense") or any(name in given for name in _OF_THE_GRID)
    if asked is None and not grid and (usual := authors_detector(variant)):
        return usual
    if asked in (None, "none"):
        _refuse_all(given, _OF_OBJECTS, f"with {variant} and a grid of points; give a --detector")
        return None
    return asked


def authors_detector(variant: str) -> str | None:
    """The detector that the authors of a variant of the catalogue use it with, or None."""
    from anysam.catalogue import find_variant

    return DEFAULT_DETECTOR if find_variant(variant).family == "mobile_sam_v2" else None


def _replace(options: "EverythingOptions", given: dict[str, Any]) -> "EverythingOptions":
    try:
        return dataclasses.replace(options, **given)
    except OptionError as error:
        raise OptionError(as_typed(str(error))) from error


def as_typed(message: str) -> str:
    """A message about fields of EverythingOptions, in the names of the command line."""
    names = [name for name, _, _, _ in _GRID] + ["min_area", "max_masks", "max_memory", "merge_duplicates", "nms_iou"]
    message = re.sub(rf"\b({'|'.join([*names, 'tile_overlap'])})\b", lambda found: _flag(found[1]), message)
    return re.sub(r"^(tile|confidence)\b", r"--\1", message).replace(" or None, got", ", got")


def _refuse_contradictions(arguments: argparse.Namespace, given: dict[str, Any]) -> None:
    if arguments.boxes is not None and arguments.points is not None:
        raise OptionError("--boxes and --points exclude each other; give one of them, or run the command twice.")
    prompts = "--boxes" if arguments.boxes is not None else "--points" if arguments.points is not None else None
    if prompts is not None:
        _refuse_all(given, (*_OF_OBJECTS, "tile", "tile_overlap"), f"with {prompts}")
        for name in ("preset", "detector"):
            if getattr(arguments, name) is not None:
                raise OptionError(f"--{name} has no effect with {prompts}; leave one of them out.")
        _refuse_grid(given, f"with {prompts}")
    if "tile_overlap" in given and "tile" not in given:
        raise OptionError("--overlap has no effect without --tile; add for example --tile 1024.")
    if arguments.detector not in (None, "none"):
        _refuse_grid(given, "with --detector, which takes the place of the grid")
    if arguments.detector == "none":
        _refuse_all(given, _OF_OBJECTS, "with --detector none")


def _refuse_grid(given: dict[str, Any], where: str) -> None:
    """What only the masks of a grid are filtered by; two parameters are also of use to tiles and to --panoptic."""
    used = {"box_nms_thresh" if "tile" in given else None, "min_mask_region_area" if "panoptic" in given else None}
    _refuse_all(given, tuple(name for name in _OF_THE_GRID if name not in used), where)


def _refuse_all(given: dict[str, Any], names: tuple[str, ...], where: str) -> None:
    """A value that would change nothing is a mistake: the user expects something of it."""
    for name in names:
        if name in given:
            raise OptionError(f"{_flag(name)} has no effect {where}; leave one of them out.")


def _flag(name: str) -> str:
    return _FLAGS.get(name, "--" + name.replace("_", "-"))


def _overlap(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        # Most likely the image: the number may be left out, and argparse cannot know.
        raise argparse.ArgumentTypeError(
            f"must be a number, got {text!r}; write --merge-duplicates={DUPLICATES}, or the images first"
        ) from None
