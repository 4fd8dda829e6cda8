"""Files of masks from other programs -> annotations of a project's images, all or nothing.

Files are read by `anysam.outputs`, one image after the other, only for images that the project has; checked masks wait
in a file until all are read, so that the database is asked for one short transaction.
"""

import json
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from sqlalchemy import func, select

from anysam.serve.projects.annotations import add_all
from anysam.serve.projects.bodies import ProjectLimits
from anysam.serve.projects.database import Projects
from anysam.serve.projects.errors import ProjectError, printable, refused, unknown
from anysam.serve.projects.exporting import named_images
from anysam.serve.projects.history import Change, changing
from anysam.serve.projects.items import MAX_LABEL, NewAnnotation, Segmentation, check_annotation, check_name
from anysam.serve.projects.mask_files import Found, MaskFiles
from anysam.serve.projects.naming import ImageNames
from anysam.serve.projects.operations import add_category, new_id
from anysam.serve.projects.tables import annotations, categories, images
from anysam.serve.projects.tables import projects as projects_table

_Kept = tuple[str, str | None]  # of an annotation: its counts, and the name of its category, else its label

_LISTED = 1000  # of what was skipped; the rest is counted
_ROWS = 200  # saved together

# Of categories that an import makes, one after the other.
_COLOURS = (
    "#0084ff",
    "#ff5630",
    "#23be5a",
    "#bf40dc",
    "#ffb000",
    "#00b8c4",
    "#f03278",
    "#8cc814",
    "#6e5af0",
    "#aa6e3c",
)


@dataclass(frozen=True)
class Skipped:
    """What of a file was not imported, and why."""

    what: str
    why: str


@dataclass(frozen=True)
class ImportAnswer:
    """How many annotations were made of a file, and what was left out."""

    imported: int
    skipped: list[Skipped]


class SkippedList:
    """What was left out: the first ones by name, the others by number."""

    def __init__(self) -> None:
        self._listed: list[Skipped] = []
        self._more = 0

    def add(self, what: str, why: str) -> None:
        """Note one thing."""
        if len(self._listed) < _LISTED:
            self._listed.append(Skipped(printable(what), printable(why)))
        else:
            self._more += 1

    def listed(self) -> list[Skipped]:
        """All of it."""
        rest = [Skipped(f"{self._more:,} more", "for reasons like these")] if self._more else []
        return [*self._listed, *rest]


def import_file(
    projects: Projects,
    project_id: str,
    file: BinaryIO,
    file_name: str,
    kind: str | None,
    limits: ProjectLimits,
) -> ImportAnswer:
    """Add the masks of a file, or of all files in a zip file, to the images of the same names.

    file_name: tells the image of a PNG. kind: of `mask_files.IMPORT_FORMATS`; None finds out. A label becomes the
    category of that name, made if missing; masks that the image has already, of the same category, are left out. Raises
    ProjectError: 404, 413 for too much, 422 for a file that is damaged or of no known format; nothing is imported
    then.
    """
    with projects.reading() as connection:
        if connection.execute(select(projects_table.c.id).where(projects_table.c.id == project_id)).first() is None:
            raise unknown("project", project_id)
        names = ImageNames(named_images(connection, project_id))
    skipped = SkippedList()
    captions = 0
    try:
        with tempfile.TemporaryDirectory(prefix="anysam-import-") as folder:
            waiting = Path(folder) / "waiting.jsonl"
            with open(waiting, "w", encoding="ascii") as target:
                for found in MaskFiles(names, kind, limits, Path(folder), skipped.add).read(file, file_name):
                    captions += sum(record.caption is not None for record in found.records)
                    for form in _checked(found, skipped):
                        target.write(json.dumps(form) + "\n")
            if captions:
                skipped.add(f"captions of {captions:,} masks", "projects keep no captions")
            with open(waiting, encoding="ascii") as source, changing(projects, project_id) as change:
                imported = _save(change, (json.loads(line) for line in source), skipped)
    except OSError as error:
        reason = error.strerror or "the temporary folder cannot be written"
        raise ProjectError(507, f"The import needs room on the disk: {reason}.") from error
    return ImportAnswer(imported, skipped.listed())


def _checked(found: Found, skipped: SkippedList) -> Iterator[dict[str, Any]]:
    """What is kept of the masks of an image, in JSON."""
    for number, record in enumerate(found.records, start=1):
        label = record.label or None
        try:
            if label is not None and len(label) > MAX_LABEL:
                raise refused(f"its label is longer than {MAX_LABEL:,} characters")
            item = check_annotation(
                new_id(),
                record.segmentation,
                found.image.size,
                prompt=record.prompt,
                predicted_iou=record.predicted_iou if found.has_scores else None,
                label=label,
            )
        except ProjectError as error:
            skipped.add(f"{found.where}: mask {number} of {found.image.name}", error.detail)
            continue
        form = dict(vars(item))
        form["segmentation"] = item.segmentation.counts
        yield {"image": found.image.id, "image_name": found.image.name, "size": found.image.size, "item": form}


def _save(change: Change, rows: Iterator[Mapping[str, Any]], skipped: SkippedList) -> int:
    """Save what has waited; returns how many annotations it became."""
    query = select(categories.c.name, categories.c.id).where(categories.c.project_id == change.project_id)
    numbers: dict[str, int | None] = {row.name: row.id for row in change.connection.execute(query)}
    begun_at = change.version
    image_id, is_there, old = "", False, set[_Kept]()
    items: list[NewAnnotation] = []
    size = (0, 0)
    count = 0

    def flush() -> None:
        nonlocal items
        add_all(change, image_id, size, items)
        items = []

    for row in rows:
        if row["image"] != image_id:
            flush()
            image_id, size = row["image"], (row["size"][0], row["size"][1])
            is_there = _image_is_there(change, image_id)
            old = _old_masks(change, image_id, begun_at)
            if not is_there:
                skipped.add(f"the masks of {row['image_name']}", "the image was deleted meanwhile")
        if not is_there:
            continue
        kept: _Kept = row["item"]["segmentation"], row["item"]["label"]
        if kept in old or (kept[1] is None and any(counts == kept[0] for counts, _ in old)):
            skipped.add(f"a mask of {row['image_name']}", "the image has it already")
            continue
        items.append(_to_item(change, row, numbers))
        count += 1
        if len(items) >= _ROWS:
            flush()
    flush()
    return count


def _to_item(change: Change, row: Mapping[str, Any], numbers: dict[str, int | None]) -> NewAnnotation:
    form = dict(row["item"])
    size = (row["size"][0], row["size"][1])
    label = form.pop("label")
    category_id = None
    if label is not None:
        if label not in numbers:
            numbers[label] = _new_category(change, label, len(numbers))
        category_id = numbers[label]
    form |= {
        "segmentation": Segmentation(size, form["segmentation"]),
        "box": tuple(form["box"]),
        "category_id": category_id,
        "label": None if category_id is not None else label,
    }
    return NewAnnotation(**form)


def _new_category(change: Change, name: str, place: int) -> int | None:
    """A category for a label; None where it can be none, as a whole sentence: it stays a label."""
    try:
        check_name(name, "a category")
        return add_category(change, name, _COLOURS[place % len(_COLOURS)]).id
    except ProjectError:
        return None


def _image_is_there(change: Change, image_id: str) -> bool:
    query = select(images.c.id).where(images.c.id == image_id, images.c.project_id == change.project_id)
    return change.connection.execute(query).first() is not None


def _old_masks(change: Change, image_id: str, begun_at: int) -> set[_Kept]:
    """The annotations that an image had before this import."""
    own = (categories.c.project_id == annotations.c.project_id) & (categories.c.id == annotations.c.category_id)
    query = select(annotations.c.counts, func.coalesce(categories.c.name, annotations.c.label).label("name"))
    query = query.select_from(annotations.outerjoin(categories, own))
    query = query.where(annotations.c.image_id == image_id, annotations.c.version <= begun_at)
    return {(row.counts, row.name) for row in change.connection.execute(query)}
