"""Projects, categories and images: made, listed, changed, deleted. Every change is one transaction with its history."""

import hashlib
import io
import secrets
import warnings

from PIL import Image
from sqlalchemy import Row, Select, delete, func, insert, select, tuple_, update

from anysam.errors import ImageError
from anysam.images import MAX_PIXELS, read_image
from anysam.serve.projects.annotations import clear_category, delete_all_of
from anysam.serve.projects.database import Projects
from anysam.serve.projects.errors import ProjectError, conflict, refused, unknown
from anysam.serve.projects.history import Change, changing
from anysam.serve.projects.items import (
    Category,
    ImageFile,
    Project,
    ProjectImage,
    check_colour,
    check_file_name,
    check_name,
    form_of,
    iso_time,
)
from anysam.serve.projects.pages import MOST_ROWS, read_page
from anysam.serve.projects.tables import annotations, categories, history, image_files, images
from anysam.serve.projects.tables import projects as projects_table

MAX_CATEGORIES = 10_000

# What Pillow calls the kinds of files that `anysam.images` reads, and the names for browsers and of files.
_MEDIA_TYPES = {
    "JPEG": ("image/jpeg", ".jpg"),
    "PNG": ("image/png", ".png"),
    "WEBP": ("image/webp", ".webp"),
    "TIFF": ("image/tiff", ".tif"),
    "BMP": ("image/bmp", ".bmp"),
    "GIF": ("image/gif", ".gif"),
    "PPM": ("image/x-portable-anymap", ".ppm"),
    "JPEG2000": ("image/jp2", ".jp2"),
    "AVIF": ("image/avif", ".avif"),
    "TGA": ("image/x-tga", ".tga"),
}
_UNKNOWN_TYPE = ("image/jpeg", ".jpg")  # Pillow has other names for some kinds of JPEG


def create_project(projects: Projects, name: str) -> Project:
    """Make a project. Names need not differ. Raises ProjectError (422) for a name that is none."""
    check_name(name, "a project")
    project_id = new_id()
    with projects.writing() as connection:
        change = Change(connection, project_id, 0)
        row = {"id": project_id, "name": name, "version": 0, "name_version": 0, "last_category": 0}
        connection.execute(insert(projects_table).values(**row, created_at=change.now, updated_at=change.now))
        _name_project(change, name, "project.create", None)
        change.finish()
    return get_project(projects, project_id)


def list_projects(
    projects: Projects, after: str | None = None, limit: int = MOST_ROWS
) -> tuple[list[Project], str | None]:
    """At most `limit` projects, the newest first.

    after: where the page before ended. Also returned: where this one does, None at the end. Not in the order of
    changes: a project that is changed while pages are read would be missing in them.
    """
    table = projects_table.c
    query = _project_query().order_by(table.created_at.desc(), table.id.desc())
    if after is not None:
        created_at, _, project_id = after.partition("-")
        query = query.where(tuple_(table.created_at, table.id) < tuple_(int(created_at), project_id))
    with projects.reading() as connection:
        rows, more = read_page(connection, query, limit, lambda row: len(row.name))
    return [_project(row) for row in rows], f"{rows[-1].created_at}-{rows[-1].id}" if more else None


def get_project(projects: Projects, project_id: str) -> Project:
    """One project. Raises ProjectError (404)."""
    with projects.reading() as connection:
        row = connection.execute(_project_query().where(projects_table.c.id == project_id)).first()
    if row is None:
        raise unknown("project", project_id)
    return _project(row)


def rename_project(projects: Projects, project_id: str, name: str) -> Project:
    """Give a project another name. Raises ProjectError (404, 422)."""
    check_name(name, "a project")
    with changing(projects, project_id) as change:
        query = select(projects_table.c.name, projects_table.c.name_version).where(projects_table.c.id == project_id)
        found = change.connection.execute(query).one()
        if found.name != name:
            _name_project(change, name, "project.rename", found.name_version)
    return get_project(projects, project_id)


def delete_project(projects: Projects, project_id: str) -> None:
    """Delete a project with all that is in it, its history included. Raises ProjectError (404)."""
    with changing(projects, project_id) as change:
        for table in (annotations, categories, images, history):
            change.connection.execute(delete(table).where(table.c.project_id == project_id))
        change.connection.execute(delete(projects_table).where(projects_table.c.id == project_id))
    projects.give_space_back()


def create_category(projects: Projects, project_id: str, name: str, colour: str) -> Category:
    """Make a category. Raises ProjectError: 404, 422, and 409 when the project has one of this name."""
    check_name(name, "a category")
    with changing(projects, project_id) as change:
        return add_category(change, name, check_colour(colour))


def add_category(change: Change, name: str, colour: str) -> Category:
    """Make a category in a transaction; the name and the colour are checked. Raises ProjectError (409)."""
    _check_free(change, name, None)
    key = projects_table.c.id == change.project_id
    number = change.connection.execute(select(projects_table.c.last_category).where(key)).scalar_one() + 1
    if number > MAX_CATEGORIES:
        raise conflict(f"A project has at most {MAX_CATEGORIES:,} categories, deleted ones included.")
    category = Category(number, name, colour)
    version = change.next_version()
    change.connection.execute(update(projects_table).where(key).values(last_category=number))
    change.connection.execute(
        insert(categories).values(project_id=change.project_id, version=version, **form_of(category))
    )
    change.record("category.create", form_of(category))
    return category


def list_categories(projects: Projects, project_id: str) -> list[Category]:
    """The categories of a project in the order of their ids. Raises ProjectError (404)."""
    with projects.reading() as connection:
        found = connection.execute(select(projects_table.c.id).where(projects_table.c.id == project_id)).first()
        if found is None:
            raise unknown("project", project_id)
        query = select(categories).where(categories.c.project_id == project_id).order_by(categories.c.id)
        return [Category(row.id, row.name, row.colour) for row in connection.execute(query)]


def change_category(
    projects: Projects, project_id: str, category_id: int, name: str | None, colour: str | None
) -> Category:
    """Give a category another name or colour; None leaves it. Raises ProjectError (404, 409, 422)."""
    if name is None and colour is None:
        raise refused("Give a name, a colour or both.")
    if name is not None:
        check_name(name, "a category")
    with changing(projects, project_id) as change:
        key = (categories.c.project_id == project_id) & (categories.c.id == category_id)
        row = change.connection.execute(select(categories).where(key)).first()
        if row is None:
            raise unknown("category", category_id)
        category = Category(category_id, name or row.name, row.colour if colour is None else check_colour(colour))
        if (category.name, category.colour) == (row.name, row.colour):
            return category
        _check_free(change, category.name, category_id)
        version = change.next_version()
        change.connection.execute(update(categories).where(key).values(version=version, **form_of(category)))
        change.record("category.change", form_of(category), previous=row.version)
        return category


def delete_category(projects: Projects, project_id: str, category_id: int) -> None:
    """Delete a category; annotations of it have none from then on. Raises ProjectError (404)."""
    with changing(projects, project_id) as change:
        key = (categories.c.project_id == project_id) & (categories.c.id == category_id)
        version = change.connection.execute(select(categories.c.version).where(key)).scalar_one_or_none()
        if version is None:
            raise unknown("category", category_id)
        clear_category(change, category_id)
        change.connection.execute(delete(categories).where(key))
        change.next_version()
        change.record("category.delete", None, previous=version)


def add_image(
    projects: Projects, project_id: str, data: bytes, name: str | None, max_pixels: int = MAX_PIXELS
) -> tuple[ProjectImage, bool]:
    """Keep the file of an image; returns it and whether it is new: the same bytes are kept once in a project.

    name: of the file; None makes one up. Raises ProjectError: 404, 413 for too many pixels, 415 for what is no image
    or a damaged one, 422 for a name with folders in it.
    """
    if name is not None:
        check_file_name(name)
    get_project(projects, project_id)  # before the work
    size, media_type, suffix = _look_at(data, max_pixels)
    digest = hashlib.sha256(data).hexdigest()
    with changing(projects, project_id) as change:
        same = _image_query().where(images.c.project_id == project_id, images.c.sha256 == digest)
        row = change.connection.execute(same).first()
        if row is not None:
            return _image(row), False
        image_id, version = new_id(), change.next_version()
        name = name or f"image_{version}{suffix}"
        image = ProjectImage(image_id, name, size, len(data), 0, iso_time(change.now))
        row_of_image = {"id": image_id, "project_id": project_id, "name": name, "height": size[0], "width": size[1]}
        facts = {"bytes": len(data), "media_type": media_type, "sha256": digest}
        change.connection.execute(
            insert(images).values(**row_of_image, **facts, version=version, created_at=change.now)
        )
        change.connection.execute(insert(image_files).values(image_id=image_id, data=data))
        change.record("image.add", _kept_form(image), image_id=image_id)
    return image, True


def list_images(
    projects: Projects, project_id: str, after: int = 0, limit: int = MOST_ROWS
) -> tuple[list[ProjectImage], int | None]:
    """At most `limit` images of a project in the order in which they were added.

    after: where the page before ended. Also returned: where this one does, None at the end. Raises ProjectError (404).
    """
    query = _image_query().where(images.c.project_id == project_id, images.c.version > after)
    with projects.reading() as connection:
        found = connection.execute(select(projects_table.c.id).where(projects_table.c.id == project_id)).first()
        if found is None:
            raise unknown("project", project_id)
        rows, more = read_page(connection, query.order_by(images.c.version), limit, lambda row: len(row.name))
    return [_image(row) for row in rows], rows[-1].version if more else None


def get_image(projects: Projects, project_id: str, image_id: str) -> ProjectImage:
    """One image. Raises ProjectError (404)."""
    with projects.reading() as connection:
        query = _image_query().where(images.c.project_id == project_id, images.c.id == image_id)
        row = connection.execute(query).first()
    if row is None:
        raise unknown("image", image_id)
    return _image(row)


def read_image_file(projects: Projects, project_id: str, image_id: str, known: str | None = None) -> ImageFile:
    """The bytes of an image; without them when its sha256 is `known`. Raises ProjectError (404)."""
    with projects.reading() as connection:
        query = select(images.c.media_type, images.c.sha256)
        row = connection.execute(query.where(images.c.project_id == project_id, images.c.id == image_id)).first()
        if row is None:
            raise unknown("image", image_id)
        data = b""
        if row.sha256 != known:
            data = connection.execute(select(image_files.c.data).where(image_files.c.image_id == image_id)).scalar_one()
    return ImageFile(bytes(data), row.media_type, row.sha256)


def delete_image(projects: Projects, project_id: str, image_id: str) -> None:
    """Delete an image with its annotations; history keeps them, but not the file. Raises ProjectError (404)."""
    with changing(projects, project_id) as change:
        key = (images.c.project_id == project_id) & (images.c.id == image_id)
        version = change.connection.execute(select(images.c.version).where(key)).scalar_one_or_none()
        if version is None:
            raise unknown("image", image_id)
        delete_all_of(change, image_id)
        change.connection.execute(delete(images).where(key))
        change.next_version()
        change.record("image.delete", None, previous=version, image_id=image_id)
    projects.give_space_back()


def new_id() -> str:
    """A random id of 32 hexadecimal digits."""
    return secrets.token_hex(16)


def _name_project(change: Change, name: str, action: str, previous: int | None) -> None:
    version = change.next_version()
    change.connection.execute(
        update(projects_table).where(projects_table.c.id == change.project_id).values(name=name, name_version=version)
    )
    change.record(action, {"name": name}, previous=previous)


def _check_free(change: Change, name: str, but: int | None) -> None:
    query = select(categories.c.id).where(categories.c.project_id == change.project_id, categories.c.name == name)
    found = change.connection.execute(query).scalar_one_or_none()
    if found is not None and found != but:
        raise conflict(f"The project has a category {name!r} already, with the id {found}.")


def _look_at(data: bytes, max_pixels: int) -> tuple[tuple[int, int], str, str]:
    """Size (H, W), media type and suffix of an image that can be read whole. Raises ProjectError."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # judged here, in one sentence
            with Image.open(io.BytesIO(data), formats=list(_MEDIA_TYPES)) as opened:
                (width, height), kind = opened.size, opened.format or ""
    except Image.DecompressionBombError as error:
        raise ProjectError(413, f"The image is too large; at most {max_pixels:,} pixels are accepted.") from error
    except Exception:  # Pillow raises whatever damage makes it trip over; `read_image` says what is wrong
        width, height, kind = 0, 0, ""
    if width * height > max_pixels:
        raise ProjectError(413, f"The image has {width}x{height} pixels; at most {max_pixels:,} are accepted.")
    try:
        pixels = read_image(data, max_pixels)
    except ImageError as error:
        raise ProjectError(415, str(error)) from error
    return (pixels.shape[0], pixels.shape[1]), *_MEDIA_TYPES.get(kind, _UNKNOWN_TYPE)


def _project_query() -> Select:
    return select(
        projects_table,
        select(func.count()).where(images.c.project_id == projects_table.c.id).scalar_subquery().label("images"),
        select(func.count())
        .where(annotations.c.project_id == projects_table.c.id)
        .scalar_subquery()
        .label("annotations"),
    )


def _project(row: Row) -> Project:
    times = iso_time(row.created_at), iso_time(row.updated_at)
    return Project(row.id, row.name, *times, images=row.images, annotations=row.annotations)


def _image_query() -> Select:
    count = select(func.count()).where(annotations.c.image_id == images.c.id).scalar_subquery()
    return select(images, count.label("annotations"))


def _image(row: Row) -> ProjectImage:
    size = (row.height, row.width)
    return ProjectImage(row.id, row.name, size, row.bytes, row.annotations, iso_time(row.created_at))


def _kept_form(image: ProjectImage) -> dict[str, object]:
    """Of an image in history: all but the count, which is not its own."""
    form = form_of(image)
    del form["annotations"]
    return form
