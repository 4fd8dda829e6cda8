"""Annotations: saved, listed, deleted, in transactions of their own or in one of somebody else's."""

import json
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

from sqlalchemy import Connection, Row, delete, insert, select, update

from anysam.serve.projects.database import Projects
from anysam.serve.projects.errors import ProjectError, refused, unknown
from anysam.serve.projects.history import Change, changing
from anysam.serve.projects.items import Annotation, NewAnnotation, Segmentation, form_of, iso_time
from anysam.serve.projects.pages import MOST_ROWS, read_page
from anysam.serve.projects.tables import annotations, categories, images

_IDS = 500  # in one statement; SQLite has a limit on its parameters


def list_annotations(
    projects: Projects, project_id: str, image_id: str, after: int = 0, limit: int = MOST_ROWS
) -> tuple[list[Annotation], int | None]:
    """At most `limit` annotations of an image, fewer where they are large, in the order in which they were made.

    after: where the page before ended. Also returned: where this one does, None at the end. Raises ProjectError (404).
    """
    query = select(annotations).where(annotations.c.image_id == image_id, annotations.c.place > after)
    with projects.reading() as connection:
        size = image_size(connection, project_id, image_id)
        rows, more = read_page(
            connection,
            query.order_by(annotations.c.place),
            limit,
            lambda row: len(row.counts) + len(row.prompt or "") + len(row.label or ""),
        )
    return [_annotation(row, size) for row in rows], rows[-1].place if more else None


def get_annotation(projects: Projects, project_id: str, image_id: str, annotation_id: str) -> Annotation:
    """One annotation. Raises ProjectError (404)."""
    with projects.reading() as connection:
        size = image_size(connection, project_id, image_id)
        found = _existing(connection, image_id, [annotation_id])
    if annotation_id not in found:
        raise unknown("annotation", annotation_id)
    return _annotation(found[annotation_id], size)


def put_annotation(
    projects: Projects,
    project_id: str,
    image_id: str,
    item: NewAnnotation,
    versions: Collection[int] | None = None,
) -> tuple[Annotation, bool]:
    """Save an annotation; returns it and whether it is new.

    What is saved as it is already stays as it is, with its version. versions: one of them the annotation must have;
    None takes any, and none too. Raises ProjectError: 404 for the project or the image, 412 for another version, 422
    for an unknown category.
    """
    with changing(projects, project_id) as change:
        size = image_size(change.connection, project_id, image_id)
        found = _existing(change.connection, image_id, [item.id])
        if versions is not None:
            _check_version(found.get(item.id), item.id, versions)
        (saved,) = _put_all(change, image_id, size, [item], found)
    return saved, item.id not in found


def delete_annotation(
    projects: Projects, project_id: str, image_id: str, annotation_id: str, versions: Collection[int] | None = None
) -> None:
    """Delete an annotation. versions: as in `put_annotation`. Raises ProjectError (404, 412)."""
    with changing(projects, project_id) as change:
        image_size(change.connection, project_id, image_id)
        found = _existing(change.connection, image_id, [annotation_id])
        if annotation_id not in found:
            raise unknown("annotation", annotation_id)
        if versions is not None:
            _check_version(found[annotation_id], annotation_id, versions)
        _delete_all(change, list(found.values()))


def change_batch(
    projects: Projects,
    project_id: str,
    image_id: str,
    put: Sequence[NewAnnotation],
    to_delete: Sequence[str],
) -> tuple[list[Annotation], list[str]]:
    """Save some annotations of an image and delete others, all or nothing.

    Returns the saved ones in their order, and the ids that were deleted: those of `to_delete` that were there. Raises
    ProjectError: 404, and 422 for an id that comes twice and for an unknown category.
    """
    ids = [*(item.id for item in put), *to_delete]
    (twice, times), *_ = Counter(ids).most_common(1) or [("", 0)]
    if times > 1:
        raise refused(f"The annotation {twice} comes {times} times; each is put or deleted once.")
    with changing(projects, project_id) as change:
        size = image_size(change.connection, project_id, image_id)
        found = _existing(change.connection, image_id, ids)
        gone = [found[name] for name in to_delete if name in found]
        _delete_all(change, gone)
        saved = _put_all(change, image_id, size, put, found)
    return saved, [row.id for row in gone]


def add_all(change: Change, image_id: str, size: tuple[int, int], items: Sequence[NewAnnotation]) -> list[Annotation]:
    """Save new annotations in a transaction. Raises ProjectError (422) for an unknown category."""
    return _put_all(change, image_id, size, items, {})


def delete_all_of(change: Change, image_id: str) -> None:
    """Delete all annotations of an image in a transaction."""
    query = select(annotations).where(annotations.c.image_id == image_id).order_by(annotations.c.place)
    _delete_all(change, list(change.connection.execute(query)))


def clear_category(change: Change, category_id: int) -> None:
    """Take the category from all annotations that have it, in a transaction."""
    of_category = (annotations.c.project_id == change.project_id) & (annotations.c.category_id == category_id)
    query = select(annotations, images.c.height, images.c.width).join(images, images.c.id == annotations.c.image_id)
    while True:
        rows = list(change.connection.execute(query.where(of_category).limit(_IDS)))
        for row in rows:
            _update(change, row, (row.height, row.width), {"category_id": None})
        if not rows:
            return


def image_size(connection: Connection, project_id: str, image_id: str) -> tuple[int, int]:
    """The size (H, W) of an image. Raises ProjectError (404)."""
    query = select(images.c.height, images.c.width)
    row = connection.execute(query.where(images.c.id == image_id, images.c.project_id == project_id)).first()
    if row is None:
        raise unknown("image", image_id)
    return row.height, row.width


def each_annotation(connection: Connection, image_id: str, size: tuple[int, int]) -> Iterator[Annotation]:
    """The annotations of an image of `size` (H, W), in their order."""
    query = select(annotations).where(annotations.c.image_id == image_id).order_by(annotations.c.place)
    for row in connection.execute(query):
        yield _annotation(row, size)


def _existing(connection: Connection, image_id: str, ids: Sequence[str]) -> dict[str, Row]:
    found: dict[str, Row] = {}
    for start in range(0, len(ids), _IDS):
        some = ids[start : start + _IDS]
        query = select(annotations).where(annotations.c.image_id == image_id, annotations.c.id.in_(some))
        found |= {row.id: row for row in connection.execute(query)}
    return found


def _put_all(
    change: Change, image_id: str, size: tuple[int, int], items: Sequence[NewAnnotation], found: dict[str, Row]
) -> list[Annotation]:
    _check_categories(change, {item.category_id for item in items if item.category_id is not None})
    saved: list[Annotation] = []
    new: list[dict[str, Any]] = []
    for item in items:
        row = found.get(item.id)
        values = {
            "category_id": item.category_id,
            "counts": item.segmentation.counts,
            "area": item.area,
            **dict(zip(("x0", "y0", "x1", "y1"), item.box, strict=True)),
            "prompt": item.prompt,
            "predicted_iou": item.predicted_iou,
            "label": item.label,
            "source": item.source,
        }
        if row is not None:
            saved.append(_update(change, row, size, values))
            continue
        version = change.next_version()
        own = {"image_id": image_id, "id": item.id, "project_id": change.project_id, "place": version}
        new.append({**values, **own, "version": version, "created_at": change.now, "updated_at": change.now})
        saved.append(_annotation(SimpleNamespace(**new[-1]), size))
        change.record("annotation.create", form_of(saved[-1]), image_id=image_id, annotation_id=item.id)
    if new:
        change.connection.execute(insert(annotations), new)
    return saved


def _update(change: Change, row: Row, size: tuple[int, int], values: Mapping[str, object]) -> Annotation:
    if all(getattr(row, name) == value for name, value in values.items()):
        return _annotation(row, size)
    version = change.next_version()
    key = (annotations.c.image_id == row.image_id) & (annotations.c.id == row.id)
    statement = update(annotations).where(key).values(**values, version=version, updated_at=change.now)
    annotation = _annotation(change.connection.execute(statement.returning(*annotations.c)).one(), size)
    form = form_of(annotation)
    change.record("annotation.change", form, previous=row.version, image_id=row.image_id, annotation_id=row.id)
    return annotation


def _delete_all(change: Change, rows: Sequence[Row]) -> None:
    for start in range(0, len(rows), _IDS):
        some = rows[start : start + _IDS]
        of_them = annotations.c.id.in_([row.id for row in some])
        change.connection.execute(delete(annotations).where(annotations.c.image_id == some[0].image_id, of_them))
    for row in rows:
        change.next_version()
        change.record("annotation.delete", None, previous=row.version, image_id=row.image_id, annotation_id=row.id)


def _check_categories(change: Change, wanted: set[int]) -> None:
    if not wanted:
        return
    query = select(categories.c.id).where(categories.c.project_id == change.project_id)
    missing = wanted.difference(change.connection.execute(query).scalars())
    if missing:
        raise refused(f"The project has no category {min(missing)}; make it first, or give null.")


def _check_version(row: Row | None, name: str, versions: Collection[int]) -> None:
    if row is None:
        raise ProjectError(412, f"The annotation {name} does not exist, so no version of it matches If-Match.")
    if row.version not in versions:
        raise ProjectError(412, f"The annotation {name} was changed: its version is {row.version}; read it again.")


def _annotation(row: Any, size: tuple[int, int]) -> Annotation:
    return Annotation(
        id=row.id,
        segmentation=Segmentation(size, row.counts),
        category_id=row.category_id,
        prompt=None if row.prompt is None else json.loads(row.prompt),
        predicted_iou=row.predicted_iou,
        label=row.label,
        source=row.source,
        area=row.area,
        box=(float(row.x0), float(row.y0), float(row.x1), float(row.y1)),
        version=row.version,
        created_at=iso_time(row.created_at),
        updated_at=iso_time(row.updated_at),
    )
