"""What requests carry: JSON by strict schemas, files as they come in, all bounded while they are read. No database."""

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

from fastapi import Request
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from anysam.images import MAX_PIXELS
from anysam.serve.projects.errors import ProjectError, refused
from anysam.serve.projects.items import MAX_LABEL, MAX_NAME, MAX_SCORE, Source

MAX_BATCH = 5000  # annotations in one request
_MIB = 1024**2
_LISTED = 3  # mistakes in one message

_ID = r"^[0-9a-f]{32}$"
_NO_CONTROLS = r"^[^\x00-\x1f\x7f-\x9f\u2028\u2029]+$"
_NO_NUL = r"^[^\x00]+$"

Id = Annotated[str, StringConstraints(pattern=_ID)]
Name = Annotated[str, StringConstraints(min_length=1, max_length=MAX_NAME, pattern=_NO_CONTROLS)]
Colour = Annotated[str, StringConstraints(pattern=r"^#[0-9A-Fa-f]{6}$")]
Label = Annotated[str, StringConstraints(min_length=1, max_length=MAX_LABEL, pattern=_NO_NUL)]
CategoryId = Annotated[int, Field(ge=1, le=2**31 - 1)]
Score = Annotated[float, Field(ge=-MAX_SCORE, le=MAX_SCORE, allow_inf_nan=False)]
Side = Annotated[int, Field(ge=1, le=MAX_PIXELS)]
RunLength = Annotated[int, Field(ge=0, le=MAX_PIXELS)]


@dataclass(frozen=True)
class ProjectLimits:
    """What one request may bring. In bytes but for max_pixels, of an image, and max_entries, of a zip file.

    document_bytes: of one JSON or text file inside an import, which is read whole. unpacked_bytes: of all files in a
    zip file together.
    """

    upload_bytes: int = 64 * _MIB
    max_pixels: int = MAX_PIXELS
    json_bytes: int = 32 * _MIB
    import_bytes: int = 512 * _MIB
    unpacked_bytes: int = 2048 * _MIB
    document_bytes: int = 128 * _MIB
    max_entries: int = 50_000


class StrictBody(BaseModel):
    """A body with the keys that are named and no other, each of its own kind."""

    model_config = ConfigDict(extra="forbid", strict=True)


class ProjectBody(StrictBody):
    """A new project, or its new name."""

    name: Name


class CategoryBody(StrictBody):
    """A new category. colour: #rrggbb."""

    name: Name
    colour: Colour


class CategoryChange(StrictBody):
    """What is to change of a category; null or absent stays."""

    name: Name | None = None
    colour: Colour | None = None


class SegmentationBody(StrictBody):
    """COCO's run lengths: its string, or a list of lengths. size: [H, W] of the image."""

    size: Annotated[list[Side], Field(min_length=2, max_length=2)]
    counts: str | list[RunLength]


class AnnotationBody(StrictBody):
    """An annotation. prompt: as `Prompt.to_dict` of the Python package has it, kept and given back."""

    segmentation: SegmentationBody
    category_id: CategoryId | None = None
    prompt: dict[str, Any] | None = None
    predicted_iou: Score | None = None
    label: Label | None = None
    source: Source


class BatchItem(AnnotationBody):
    """An annotation with its id, 32 hexadecimal digits that the client makes up."""

    id: Id


class BatchBody(StrictBody):
    """Annotations to save and ids of those to delete, all or nothing."""

    put: Annotated[list[BatchItem], Field(max_length=MAX_BATCH)] = []
    delete: Annotated[list[Id], Field(max_length=MAX_BATCH)] = []


Body = TypeVar("Body", bound=StrictBody)


async def read_body(request: Request, model: type[Body], limit: int) -> Body:
    """The JSON body of a request, of at most `limit` bytes.

    Raises ProjectError: 400 for what is no JSON, 413 for more, 415 for another Content-Type, 422 for other values.
    """
    if _content_type(request) != "application/json":
        raise ProjectError(415, "The body must be JSON; send Content-Type: application/json.")
    data = bytes(await read_bytes(request, limit))
    try:
        return model.model_validate_json(data)
    except ValidationError as error:
        mistakes = error.errors(include_url=False, include_input=False, include_context=False)
        if mistakes[0]["type"] == "json_invalid":
            raise ProjectError(400, f"The body is no JSON: {mistakes[0]['msg']}.") from error
        listed = "; ".join(_mistake(each["loc"], each["msg"]) for each in mistakes[:_LISTED])
        more = f"; and {len(mistakes) - _LISTED:,} more" if len(mistakes) > _LISTED else ""
        raise refused(f"The body is not accepted: {listed}{more}.") from error


async def read_bytes(request: Request, limit: int) -> bytearray:
    """The body of a request. Raises ProjectError (413) as soon as it is longer than `limit` bytes."""
    data = bytearray()
    async for chunk in _bounded(request, limit):
        data += chunk
    return data


async def read_upload(request: Request, limit: int) -> tuple[bytes, str | None]:
    """The bytes of a file and its name, if it has one: the body itself, or the part "file" of multipart/form-data.

    Raises ProjectError: 400 for another form, 413 for more than `limit` bytes.
    """
    if not is_multipart(request):
        return bytes(await read_bytes(request, limit)), None
    file = await read_form_file(request, limit)
    try:
        return await file.read(), file.filename or None
    finally:
        await file.close()


def is_multipart(request: Request) -> bool:
    """Whether the body is a form with files."""
    return _content_type(request) == "multipart/form-data"


async def read_form_file(request: Request, limit: int) -> UploadFile:
    """The part "file" of multipart/form-data, of at most `limit` bytes, large ones on disk; the caller closes it.

    Raises ProjectError: 400 when there is none or something else, 413 for more.
    """
    # What the form's own lines may take comes on top.
    parser = MultiPartParser(request.headers, _bounded(request, limit + 64 * 1024), max_files=1, max_fields=0)
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise ProjectError(400, f"The form is not accepted: {error.message}; give one part, file.") from error
    except (KeyError, ValueError) as error:  # no boundary; names in an encoding that does not exist
        raise ProjectError(400, "The form cannot be read; send multipart/form-data with one part, file.") from error
    file = form.get("file")
    if not isinstance(file, UploadFile):
        await form.close()
        raise ProjectError(400, "The form has no part called file; give the file in it.")
    if (file.size or 0) > limit:
        await file.close()
        raise _too_large(limit)
    return file


def inlined_schema(model: type[StrictBody]) -> dict[str, Any]:
    """The JSON schema of a body without references, as a part of an OpenAPI document needs it."""
    schema = model.model_json_schema()
    parts = schema.pop("$defs", {})

    def resolve(value: Any) -> Any:
        if isinstance(value, dict):
            if "$ref" in value:
                return resolve(parts[value["$ref"].rsplit("/", 1)[1]])
            return {key: resolve(each) for key, each in value.items()}
        return [resolve(each) for each in value] if isinstance(value, list) else value

    resolved: dict[str, Any] = resolve(schema)
    return resolved


async def _bounded(request: Request, limit: int) -> AsyncGenerator[bytes, None]:
    given = request.headers.get("content-length", "")
    if given.isdecimal() and len(given) < 20 and int(given) > limit:
        raise _too_large(limit)
    taken = 0
    async for chunk in request.stream():
        taken += len(chunk)
        if taken > limit:
            raise _too_large(limit)
        yield chunk


def _too_large(limit: int) -> ProjectError:
    return ProjectError(413, f"The body is too large; at most {limit:,} bytes are accepted.")


def _content_type(request: Request) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def _mistake(place: tuple[int | str, ...], message: str) -> str:
    where = ".".join(str(part)[:60] for part in place)
    return f"{where}: {message}" if where else message
