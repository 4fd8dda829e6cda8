"""All files of one image's masks, in the formats asked for."""

import dataclasses
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import numpy as np

from anysam.outputs.arrays import write_npz
from anysam.outputs.coco import write_coco_json
from anysam.outputs.files import make_folder
from anysam.outputs.formats import TABLE, ImageResult, Loss, check_formats
from anysam.outputs.geojson import write_geojson
from anysam.outputs.label_map import write_label_map
from anysam.outputs.labelme import write_labelme
from anysam.outputs.native import write_result_json
from anysam.outputs.pictures import write_cutout_png, write_mask_png, write_overlay_png
from anysam.outputs.sa1b import write_sa1b
from anysam.outputs.words import class_names, lost_words
from anysam.outputs.yolo import names_path, write_yolo
from anysam.results import MaskRecord

# Formats of which one file holds all masks of an image, and what its name ends in.
_ENDINGS = {
    "coco": ".coco.json",
    "coco-polygons": ".polygons.json",
    "yolo": ".txt",
    "labelme": ".labelme.json",
    "labels": "_labels.png",
    "geojson": ".geojson",
    "npz": ".npz",
    "sa1b": ".sa1b.json",
    "json": ".json",
}
OF_CLASSES = ("coco", "coco-polygons", "yolo")  # formats that number the names of masks


def write_outputs(
    image_path: str | Path,
    image: np.ndarray,
    records: Sequence[MaskRecord],
    out_dir: str | Path,
    formats: Collection[str],
    stem: str | None = None,
    losses: list[Loss] | None = None,
    place: ImageResult | None = None,
    names: Sequence[str] | None = None,  # the ninth: all but five are left out by most callers
) -> list[Path]:
    """Write one image's results into `out_dir` (made if missing) and return the paths, in the order of FORMATS.

    image: (H, W, 3) uint8 RGB. formats: of FORMATS; `formats.TABLE` has the names of their files. stem: the image's own
    by default; for several images pass those of `output_stems`, so that equal names do not overwrite each other.
    losses: what a format cannot hold is appended to it. place: an ImageResult whose crs and transform are the image's.

    names: of all classes of a run, each once. Files of one image know only the labels on it, and would number them
    anew for every image; whoever joins them, as trainers on YOLO's files do, needs one numbering. With names, COCO's
    categories are all of them in this order, with ids from 1, and YOLO's classes, from 0; masks without a label are
    of a class "object" after them. None: the labels of the image, sorted.

    Raises OptionError for an unknown format and for a label that is not among the names, before anything is written;
    OutputError when a file cannot be written.
    """
    check_formats(formats)
    name = Path(image_path).stem if stem is None else stem
    result = ImageResult(Path(image_path).name, (image.shape[0], image.shape[1]), tuple(records))
    if place is not None:
        result = dataclasses.replace(result, crs=place.crs, transform=place.transform)
    if names is not None and any(kind in formats for kind in OF_CLASSES):
        class_names([result], names)
    folder = make_folder(out_dir)
    written: list[Path] = []
    lost = [] if losses is None else losses
    if "png" in formats:
        written += write_result("png", folder, name, result, lost)
    if "overlay" in formats:
        written.append(folder / f"{name}_overlay.png")
        write_overlay_png(written[-1], image, records, losses=lost)
    if "cutout" in formats:
        for i, record in enumerate(records):
            written.append(folder / f"{name}_cutout_{i}.png")
            write_cutout_png(written[-1], image, record.to_mask())
    for kind in _ENDINGS:
        if kind in formats:
            named = dataclasses.replace(result, file_name=str(image_path)) if kind == "json" else result
            written += write_result(kind, folder, name, named, lost, names=names)
    return written


def write_result(
    kind: str,
    folder: Path,
    stem: str,
    result: ImageResult,
    losses: list[Loss],
    *,
    path: Path | None = None,
    names: Sequence[str] | None = None,
) -> list[Path]:
    """Write the files of one image in a format that needs no photograph; returns their paths.

    kind: any of FORMATS but overlay and cutout. What the format cannot hold is appended to `losses`. path: instead of
    the format's own name in `folder`, for a format of one file. names: of the classes of a whole run, as in
    `write_outputs`; looked at by COCO and YOLO. Raises OptionError for a label that is not among them.
    """
    (row,) = (row for row in TABLE if row.name == kind)
    if kind == "png":
        paths, lost = write_mask_pngs(folder, stem, result.records), []
    else:
        paths = [path or folder / f"{stem}{_ENDINGS[kind]}"]
        lost = _write_file(kind, paths[0], result, names)
    if kind == "yolo":
        paths.append(names_path(paths[0]))
    losses += [*lost_words(kind, result, row.labels, row.captions), *lost]
    return paths


def _write_file(kind: str, path: Path, result: ImageResult, names: Sequence[str] | None) -> list[Loss]:
    if kind in ("coco", "coco-polygons"):
        return write_coco_json(path, [result], polygons=kind == "coco-polygons", names=names)
    if kind == "yolo":
        return write_yolo(path, result, names)
    if kind == "json":
        write_result_json(path, result.file_name, result.size, result.records)
        return []
    writers: dict[str, Callable[[Path, ImageResult], list[Loss]]] = {
        "labelme": write_labelme,
        "labels": write_label_map,
        "geojson": write_geojson,
        "npz": write_npz,
        "sa1b": write_sa1b,
    }
    return writers[kind](path, result)


def write_mask_pngs(folder: Path, stem: str, records: Sequence[MaskRecord]) -> list[Path]:
    """Write a PNG for each mask: `<stem>_mask_<i>.png`."""
    paths = []
    for i, record in enumerate(records):
        paths.append(folder / f"{stem}_mask_{i}.png")
        write_mask_png(paths[-1], record.to_mask())
    return paths
