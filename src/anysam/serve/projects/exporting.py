"""A project as a file of another program's format, by the writers of `anysam.outputs`, one image after the other.

COCO is one JSON document of all images; of the other formats each image has files of its own, in a zip file. What is
written is of one moment, however long it takes, and no more than one image is in memory.
"""

import json
import shutil
import tempfile
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from sqlalchemy import Connection, select

from anysam import rle
from anysam.errors import OutputError
from anysam.images import read_image
from anysam.outputs import ImageResult, Loss, write_result
from anysam.outputs.coco import coco_annotation, coco_image
from anysam.outputs.files import save_png
from anysam.outputs.grey import grey_png
from anysam.outputs.pictures import cut_out
from anysam.outputs.words import DEFAULT_NAME, lost_words
from anysam.results import MaskRecord
from anysam.serve.projects.annotations import each_annotation
from anysam.serve.projects.database import Projects
from anysam.serve.projects.errors import ProjectError, printable, refused, unknown
from anysam.serve.projects.items import Annotation
from anysam.serve.projects.naming import NamedImage, name_images, portable
from anysam.serve.projects.tables import annotations, categories, image_files, images
from anysam.serve.projects.tables import projects as projects_table

EXPORT_FORMATS = ("coco", "coco-polygons", "yolo", "labelme", "png", "labels", "cutout", "geojson", "json")
_ONE_FILE = ("coco", "coco-polygons")
_DAY = (1980, 1, 1, 0, 0, 0)  # zip files begin with it; the same project gives the same file
_ENDINGS = {"coco": "coco.json", "coco-polygons": "polygons.json"}


@dataclass(frozen=True)
class Export:
    """A file that was written. name: what to call it. losses: what the format could not hold, a sentence each."""

    path: Path
    name: str
    media_type: str
    losses: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class _Project:
    """What is known before any image is looked at. class_ids: of all names that masks have, in the order of classes."""

    name: str
    images: list[NamedImage]
    category_names: Mapping[int, str]
    class_ids: Mapping[str, int]


def export_project(projects: Projects, project_id: str, kind: str, folder: Path) -> Export:
    """Write a project into a file in `folder`, which is for this alone.

    kind: of EXPORT_FORMATS. Raises ProjectError: 404, 422 for another format or for what a format cannot hold at all,
    507 for a full disk.
    """
    if kind not in EXPORT_FORMATS:
        raise refused(f"There is no format {kind!r} to export; accepted are {', '.join(EXPORT_FORMATS)}.")
    lost: Counter[tuple[str, str]] = Counter()
    ending = _ENDINGS.get(kind, f"{kind}.zip")
    path = folder / f"export.{ending}"
    try:
        with projects.reading() as connection:
            project = _look_up(connection, project_id)
            if kind in _ONE_FILE:
                _write_coco(connection, project, kind == "coco-polygons", path, folder, lost)
            else:
                _write_zip(connection, project, kind, path, folder, lost)
    except (OutputError, OSError) as error:
        raise ProjectError(507, f"The export cannot be written: {_reason(error)}.") from error
    losses = tuple(printable(f"{what}: {count:,} lost") for (_, what), count in sorted(lost.items()))
    media_type = "application/json" if kind in _ONE_FILE else "application/zip"
    return Export(path, f"{portable(project.name)}.{ending}", media_type, losses)


def _look_up(connection: Connection, project_id: str) -> _Project:
    name = connection.execute(select(projects_table.c.name).where(projects_table.c.id == project_id)).scalar()
    if name is None:
        raise unknown("project", project_id)
    query = select(categories).where(categories.c.project_id == project_id).order_by(categories.c.id)
    category_names = {row.id: row.name for row in connection.execute(query)}
    without = select(annotations.c.label).distinct()
    without = without.where(annotations.c.project_id == project_id, annotations.c.category_id.is_(None))
    labels = set(connection.execute(without).scalars())
    class_ids = {name: number for number, name in category_names.items()}
    for label in sorted({label or DEFAULT_NAME for label in labels} - class_ids.keys()):
        class_ids[label] = max(class_ids.values(), default=0) + 1
    if not class_ids:
        class_ids = {DEFAULT_NAME: 1}
    found = named_images(connection, project_id)
    return _Project(name, found, category_names, class_ids)


def named_images(connection: Connection, project_id: str) -> list[NamedImage]:
    """The images of a project with their names in files, in the order in which they were added."""
    query = select(images.c.id, images.c.name, images.c.height, images.c.width)
    rows = connection.execute(query.where(images.c.project_id == project_id).order_by(images.c.version))
    return name_images([(row.id, row.name, (row.height, row.width)) for row in rows])


def _results(
    connection: Connection, project: _Project, kind: str, lost: Counter[tuple[str, str]]
) -> Iterator[tuple[NamedImage, ImageResult, list[Annotation]]]:
    for image in project.images:
        found = list(each_annotation(connection, image.id, image.size))
        records = tuple(_record(each, project) for each in found)
        both = sum(each.category_id is not None and each.label is not None for each in found)
        if both:
            lost[kind, f"{kind} cannot hold labels beside a category"] += both
        yield image, ImageResult(image.file_name, image.size, records), found


def _record(annotation: Annotation, project: _Project) -> MaskRecord:
    named = None if annotation.category_id is None else project.category_names[annotation.category_id]
    return MaskRecord(
        segmentation={"size": list(annotation.segmentation.size), "counts": annotation.segmentation.counts},
        area=annotation.area,
        box=annotation.box,
        predicted_iou=1.0 if annotation.predicted_iou is None else annotation.predicted_iou,
        prompt=annotation.prompt,
        label=named or annotation.label,
    )


def _write_coco(
    connection: Connection, project: _Project, polygons: bool, path: Path, folder: Path, lost: Counter[tuple[str, str]]
) -> None:
    """One document of all images, written as it is made."""
    kind = "coco-polygons" if polygons else "coco"
    count = 0
    with open(path, "wb") as target, tempfile.TemporaryFile(dir=folder) as rows:
        target.write(b'{"info": {"description": "Annotations of a project of anysam"},\n"images": [')
        for number, (_, result, found) in enumerate(_results(connection, project, kind, lost), start=1):
            _append(target, coco_image(number, result), number == 1)
            for record, annotation in zip(result.records, found, strict=True):
                count += 1
                row = {"id": count, "image_id": number} | coco_annotation(record, project.class_ids, polygons)
                if annotation.predicted_iou is None:
                    del row["score"]
                if polygons and not record.area:
                    lost[kind, f"{kind} cannot hold masks without a pixel"] += 1
                _append(rows, row, count == 1)
        target.write(b'],\n"annotations": [')
        rows.seek(0)
        shutil.copyfileobj(rows, target)
        listed = [{"id": number, "name": name} for name, number in project.class_ids.items()]
        target.write(b'],\n"categories": ' + json.dumps(listed).encode() + b"}\n")


def _append(target: BinaryIO, row: Mapping[str, Any], first: bool) -> None:
    target.write((b"\n" if first else b",\n") + json.dumps(row).encode())


def _write_zip(
    connection: Connection, project: _Project, kind: str, path: Path, folder: Path, lost: Counter[tuple[str, str]]
) -> None:
    """A zip file of what the writer makes of each image; its names are given here, not on this machine's disk."""
    work = folder / "work"
    work.mkdir()
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        has_classes = False
        for image, result, _ in _results(connection, project, kind, lost):
            if kind in ("png", "cutout"):
                _add_pictures(connection, archive, kind, image, result)
                if kind == "png":
                    _add(lost, lost_words(kind, result, labels=False, captions=False))
                continue
            losses: list[Loss] = []
            written = write_result(kind, work, "image", result, losses, names=list(project.class_ids))
            _add(lost, losses)
            if kind == "yolo":
                labels, names = written
                if not has_classes:
                    _store(archive, names, "classes.txt")
                    has_classes = True
                _store(archive, labels, f"labels/{image.stem}.txt")
            else:
                for file in written:
                    _store(archive, file, image.stem + file.name.removeprefix("image"))
            for file in written:
                file.unlink()


def _add_pictures(
    connection: Connection, archive: zipfile.ZipFile, kind: str, image: NamedImage, result: ImageResult
) -> None:
    """A PNG for each mask, straight into the zip file: there may be thousands of them."""
    pixels: np.ndarray | None = None
    if kind == "cutout" and result.records:
        query = select(image_files.c.data).where(image_files.c.image_id == image.id)
        pixels = read_image(bytes(connection.execute(query).scalar_one()))
    for number, record in enumerate(result.records):
        entry = _entry(f"{image.stem}_{'mask' if pixels is None else kind}_{number}.png", zipfile.ZIP_STORED)
        with archive.open(entry, "w") as target:
            if pixels is None:
                target.writelines(grey_png(record.to_mask()))
            else:
                height, width = result.size
                x0, y0, x1, y1 = rle.box(record.segmentation) or (0, 0, width, height)
                mask = rle.window(record.segmentation, (x0, y0, x1, y1))
                save_png(target, cut_out(pixels[y0:y1, x0:x1], mask))


def _store(archive: zipfile.ZipFile, file: Path, name: str) -> None:
    entry = _entry(name, zipfile.ZIP_STORED if file.suffix == ".png" else zipfile.ZIP_DEFLATED)
    entry.file_size = file.stat().st_size  # so that a large one is written as such
    with open(file, "rb") as source, archive.open(entry, "w") as target:
        shutil.copyfileobj(source, target)


def _entry(name: str, packing: int) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(name, _DAY)
    entry.compress_type = packing
    entry.external_attr = 0o644 << 16
    return entry


def _add(lost: Counter[tuple[str, str]], losses: Sequence[Loss]) -> None:
    for loss in losses:
        lost[loss.format, f"{loss.format} cannot hold {loss.what}"] += loss.count


def _reason(error: OSError | OutputError) -> str:
    cause = error.__cause__ if isinstance(error, OutputError) else error
    return (cause.strerror if isinstance(cause, OSError) else None) or "the temporary folder cannot be written"
