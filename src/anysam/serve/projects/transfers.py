"""The HTTP API of exports and imports of whole projects."""

import tempfile
from pathlib import Path
from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request, Response
from starlette.background import BackgroundTask
from starlette.responses import FileResponse

from anysam.serve.projects.answers import ProjectId, Threads, answer, form_body, problems
from anysam.serve.projects.bodies import ProjectLimits, is_multipart, read_form_file
from anysam.serve.projects.database import Projects
from anysam.serve.projects.errors import ProjectError
from anysam.serve.projects.exporting import Export, export_project
from anysam.serve.projects.importing import ImportAnswer, import_file

_ExportFormat = Literal["coco", "coco-polygons", "yolo", "labelme", "png", "labels", "cutout", "geojson", "json"]
_ImportFormat = Literal["auto", "coco", "yolo", "labelme", "labels", "png", "geojson", "json"]
_LONGEST_HEADER = 1000


def add_transfer_routes(router: APIRouter, projects: Projects, threads: Threads, limits: ProjectLimits) -> None:
    """Add the routes for files of masks."""
    binary = {"schema": {"type": "string", "format": "binary"}}
    files = {"application/json": {"schema": {"type": "object"}}, "application/zip": binary}

    @router.get(
        "/{project_id}/export",
        response_class=Response,
        responses=problems(404, 422, 503, 507) | {200: {"description": "The file", "content": files}},
    )
    async def export(project_id: ProjectId, kind: Annotated[_ExportFormat, Query(alias="format")]) -> Response:
        """All annotations of a project as a file; X-Export-Losses says what the format could not hold."""
        # Removed when the file has been sent, or when nobody holds it any more because the client went away.
        folder = tempfile.TemporaryDirectory(prefix="anysam-export-")

        def work() -> Export:
            return export_project(projects, project_id, kind, Path(folder.name))

        try:
            made = await threads.transfer(work)
        except BaseException:
            folder.cleanup()
            raise
        headers = {"Cache-Control": "no-store"}
        if made.losses:
            losses = "; ".join(made.losses).encode("ascii", "replace").decode("ascii")
            headers["X-Export-Losses"] = losses[:_LONGEST_HEADER]
        cleanup = BackgroundTask(folder.cleanup)
        return FileResponse(
            made.path, headers=headers, media_type=made.media_type, filename=made.name, background=cleanup
        )

    @router.post(
        "/{project_id}/import",
        response_model=ImportAnswer,
        responses=problems(400, 404, 413, 422, 503, 507),
        openapi_extra=form_body([]),
    )
    async def import_masks(
        project_id: ProjectId, request: Request, kind: Annotated[_ImportFormat, Query(alias="format")] = "auto"
    ) -> Response:
        """Add the masks of a JSON, PNG or zip file to the images of the same names, all or nothing."""
        if not is_multipart(request):
            raise ProjectError(400, "Send the file as multipart/form-data, in a part called file.")
        file = await read_form_file(request, limits.import_bytes)
        name = file.filename or "upload"
        given = None if kind == "auto" else kind
        try:
            done = await threads.transfer(lambda: import_file(projects, project_id, file.file, name, given, limits))
        finally:
            await file.close()
        return answer({"imported": done.imported, "skipped": [dict(vars(each)) for each in done.skipped]})
