"""One image out of a request: raw bytes, one part of a form, or an address; bounded while it comes in."""

import json
from collections.abc import AsyncGenerator

from pydantic import ValidationError
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

from anysam.serve.problems import ClientGone, Problem
from anysam.serve.schemas import UrlBody

_MIB = 1024**2


async def read_image_or_url(request: Request, limit: int) -> bytes | str:
    """The bytes of an image, or the address that a JSON body names.

    limit: bytes of an image. Raises Problem: 400 for an empty or broken body, 413, 422 for JSON of another form.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    try:
        if kind == "application/json":
            return _url(await _all(request, 64 * 1024))
        if kind == "multipart/form-data":
            return await _part(request, limit)
        # Whatever else it is called: what it is shows when it is decoded, and `curl --data-binary` calls it a form.
        return _some(await _all(request, limit))
    except ClientDisconnect as error:
        raise ClientGone from error


async def _all(request: Request, limit: int) -> bytes:
    parts, taken = [], 0
    async for part in request.stream():
        taken += len(part)
        if taken > limit:
            raise _too_large(limit)
        parts.append(part)
    return b"".join(parts)


async def _part(request: Request, limit: int) -> bytes:
    """The part `file` of a form; nothing else may be in it. What the client calls the file is not looked at."""

    async def bounded() -> AsyncGenerator[bytes, None]:
        taken = 0
        async for part in request.stream():
            taken += len(part)
            if taken > limit + _MIB // 16:
                raise _too_large(limit)
            yield part

    # Parts up to max_part_size that are no files stay in memory; files larger than a megabyte go to an unnamed one.
    parser = MultiPartParser(request.headers, bounded(), max_files=1, max_fields=0)
    try:
        form = await parser.parse()
    except (MultiPartException, KeyError, ValueError, UnicodeError) as error:
        raise Problem(400, "The form is broken, or holds more than one part; send one part called `file`.") from error
    try:
        files = form.getlist("file")
        if len(files) != 1 or not isinstance(files[0], UploadFile):
            raise Problem(400, "The form has no part called `file`; send the image as that.")
        data = await files[0].read()
        if len(data) > limit:
            raise _too_large(limit)
        return _some(data)
    finally:
        await form.close()


def _url(data: bytes) -> str:
    try:
        body = UrlBody.model_validate(json.loads(data))
    except ValidationError as error:
        raise Problem(422, 'The JSON body must be {"url": "https://..."}.') from error
    except (ValueError, RecursionError) as error:
        raise Problem(400, "The body is no JSON.") from error
    return body.url


def _some(data: bytes) -> bytes:
    if not data:
        raise Problem(400, "The body is empty; send an image.")
    return data


def _too_large(limit: int) -> Problem:
    return Problem(413, f"The image is larger than the {limit:,} bytes that this server takes; send a smaller file.")
