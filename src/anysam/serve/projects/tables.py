"""The tables of the database. What reads and writes them is elsewhere.

Every change of a project has a number, counted from 1 in that project: `projects.version` is the last one, `version` of
any other row the change that made it what it is, and `history.seq` the change itself. So a version never comes twice.
Times are microseconds since 1970 in UTC. The bytes of images lie in the database, too: one file to back up, and an
image is there whole or not at all.
"""

from sqlalchemy import (
    BigInteger,
    Column,
    Double,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
)

SCHEMA_VERSION = 1

metadata = MetaData()


def _project_id(primary_key: bool = False) -> Column[str]:
    return Column(
        "project_id", String(32), ForeignKey("projects.id", ondelete="CASCADE"), primary_key=primary_key, nullable=False
    )


def _image_id() -> Column[str]:
    return Column("image_id", String(32), ForeignKey("images.id", ondelete="CASCADE"), primary_key=True)


schema_facts = Table(
    "anysam_schema",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),  # always 1
    Column("version", Integer, nullable=False),
)

projects = Table(
    "projects",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("name", Text, nullable=False),
    Column("version", BigInteger, nullable=False),
    Column("name_version", BigInteger, nullable=False),  # the change that gave it its name
    Column("last_category", Integer, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("updated_at", BigInteger, nullable=False),
    Index("projects_by_creation", "created_at", "id"),
)

categories = Table(
    "categories",
    metadata,
    _project_id(primary_key=True),
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("name", Text, nullable=False),
    Column("colour", String(7), nullable=False),
    Column("version", BigInteger, nullable=False),
    UniqueConstraint("project_id", "name"),
)

images = Table(
    "images",
    metadata,
    Column("id", String(32), primary_key=True),
    _project_id(),
    Column("name", Text, nullable=False),
    Column("height", Integer, nullable=False),
    Column("width", Integer, nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("media_type", String(40), nullable=False),
    Column("sha256", String(64), nullable=False),
    Column("version", BigInteger, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    UniqueConstraint("project_id", "sha256"),
    Index("images_by_version", "project_id", "version"),
)

# Apart from their images, so that a listing does not pass over them.
image_files = Table(
    "image_files",
    metadata,
    _image_id(),
    Column("data", LargeBinary, nullable=False),
)

annotations = Table(
    "annotations",
    metadata,
    _image_id(),
    Column("id", String(32), primary_key=True),
    _project_id(),
    Column("category_id", Integer),
    Column("counts", Text, nullable=False),  # COCO's, of a mask at the size of the image
    Column("area", BigInteger, nullable=False),
    Column("x0", Integer, nullable=False),
    Column("y0", Integer, nullable=False),
    Column("x1", Integer, nullable=False),
    Column("y1", Integer, nullable=False),
    Column("prompt", Text),  # JSON
    Column("predicted_iou", Double),
    Column("label", Text),
    Column("source", String(16), nullable=False),
    Column("place", BigInteger, nullable=False),  # order within the image: the change that made it
    Column("version", BigInteger, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("updated_at", BigInteger, nullable=False),
    ForeignKeyConstraint(["project_id", "category_id"], ["categories.project_id", "categories.id"]),
    Index("annotations_by_category", "project_id", "category_id"),
    Index("annotations_by_place", "image_id", "place"),
)

# Ids without foreign keys: history outlives what it tells of. `previous` is the change before of the same thing, whose
# `after` is this one's before; so a state is kept once.
history = Table(
    "history",
    metadata,
    _project_id(primary_key=True),
    Column("seq", BigInteger, primary_key=True, autoincrement=False),
    Column("time", BigInteger, nullable=False),
    Column("action", String(32), nullable=False),
    Column("image_id", String(32)),
    Column("annotation_id", String(32)),
    Column("previous", BigInteger),
    Column("after", Text),  # JSON, or NULL where it is gone
)
