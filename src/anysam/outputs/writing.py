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
from anysam.outputs.yolo import names_path, write_yolo
from anysam.results import MaskRecord

# Formats of which one file holds all masks of an image: what its name ends in, and what writes it.
_ONE_FILE: dict[str, tuple[str, Callable[[Path, ImageResult], list[Loss]]]] = {
    "coco": (".coco.json", lambda path, result: write_coco_json(path, [result])),
    "coco-polygons": (".polygons.json", lambda path, result: write_coco_json(path, [result], polygons=True)),
    "yolo": (".txt", write_yolo),
    "labelme": (".labelme.json", write_labelme),
    "labels": ("_labels.png", write_label_map),
    "geojson": (".geojson", write_geojson),
    "npz": (".npz", write_npz),
    "sa1b": (".sa1b.json", write_sa1b),
}


def write_outputs(
    image_path: str | Path,
    image: np.ndarray,
    records: Sequence[MaskRecord],
    out_dir: str | Path,
    formats: Collection[str],
    stem: str | None = None,
    losses: list[Loss] | None = None,
    place: ImageResult | None = None,
) -> list[Path]:
    """Write one image's results into `out_dir` (made if missing) and return the paths, in the order of FORMATS.

    image: (H, W, 3) uint8 RGB. formats: of FORMATS; `formats.TABLE` has the names of their files. stem: the image's own
    by default; for several images pass those of `output_stems`, so that equal names do not overwrite each other.
    losses: what a format cannot hold is appended to it. place: an ImageResult whose crs and transform are the image's.
    Raises OptionError for an unknown format, OutputError when a file cannot be written.
    """
    check_formats(formats)
    folder = make_folder(out_dir)
    name = Path(image_path).stem if stem is None else stem
    result = ImageResult(Path(image_path).name, (image.shape[0], image.shape[1]), tuple(records))
    if place is not None:
        result = dataclasses.replace(result, crs=place.crs, transform=place.transform)
    written: list[Path] = []
    lost = [] if losses is None else losses
    if "png" in formats:
        written += write_result("png", folder, name, result, lost)
    if "overlay" in formats:
        written.append(folder / f"{name}_overlay.png")
        write_overlay_png(written[-1], image, records)
    if "cutout" in formats:
        for i, record in enumerate(records):
            written.append(folder / f"{name}_cutout_{i}.png")
            write_cutout_png(written[-1], image, record.to_mask())
    for kind in _ONE_FILE:
        if kind in formats:
            written += write_result(kind, folder, name, result, lost)
    if "json" in formats:
        written.append(folder / f"{name}.json")
        write_result_json(written[-1], image_path, result.size, records)
    return written


def write_result(
    kind: str,
    folder: Path,
    stem: str,
    result: ImageResult,
    losses: list[Loss],
    *,
    path: Path | None = None,
    names: list[str] | None = None,
) -> list[Path]:
    """Write the files of one image in a format that needs no photograph; returns their paths.

    kind: any of FORMATS but overlay and cutout. What the format cannot hold is appended to `losses`. path: instead of
    the format's own name in `folder`, for a format of one file. names: of YOLO's classes.
    """
    labelled = sum(record.label is not None for record in result.records)
    if labelled and kind not in (row.name for row in TABLE if row.labels):
        losses.append(Loss(kind, "labels of masks", labelled))
    if kind == "png":
        return write_mask_pngs(folder, stem, result.records)
    if kind == "json":
        path = path or folder / f"{stem}.json"
        write_result_json(path, result.file_name, result.size, result.records)
        return [path]
    ending, write = _ONE_FILE[kind]
    path = path or folder / f"{stem}{ending}"
    if kind == "yolo":
        losses += write_yolo(path, result, names)
        return [path, names_path(path)]
    losses += write(path, result)
    return [path]


def write_mask_pngs(folder: Path, stem: str, records: Sequence[MaskRecord]) -> list[Path]:
    """Write a PNG for each mask: `<stem>_mask_<i>.png`."""
    paths = []
    for i, record in enumerate(records):
        paths.append(folder / f"{stem}_mask_{i}.png")
        write_mask_png(paths[-1], record.to_mask())
    return paths
