"""The HTTP API of annotations."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, Request, Response

from anysam.serve.projects import annotations, operations
from anysam.serve.projects.answers import (
    AnnotationId,
    IfMatch,
    ImageId,
    ProjectId,
    Threads,
    answer,
    etags,
    json_body,
    problems,
)
from anysam.serve.projects.bodies import AnnotationBody, BatchBody, BatchItem, ProjectLimits, read_body
from anysam.serve.projects.database import Projects
from anysam.serve.projects.items import Annotation, NewAnnotation, check_annotation, form_of
from anysam.serve.projects.pages import MOST_ROWS, AfterNumber, Limit

_HIGHEST = 2**63 - 1


@dataclass(frozen=True)
class AnnotationList:
    """Annotations of an image. next: the number to go on after; null at the end."""

    annotations: list[Annotation]
    next: int | None


@dataclass(frozen=True)
class BatchAnswer:
    """The annotations that were saved, and the ids of those that were deleted."""

    annotations: list[Annotation]
    deleted: list[str]


def add_annotation_routes(router: APIRouter, projects: Projects, threads: Threads, limits: ProjectLimits) -> None:
    """Add the routes below an image."""
    base = "/{project_id}/images/{image_id}/annotations"

    @router.get(base, response_model=AnnotationList, responses=problems(404, 422, 503))
    async def list_annotations(
        project_id: ProjectId, image_id: ImageId, after: AfterNumber = 0, limit: Limit = MOST_ROWS
    ) -> Response:
        """The annotations of an image in the order in which they were made; fewer than `limit` where they are large."""

        def work() -> dict[str, Any]:
            found, following = annotations.list_annotations(projects, project_id, image_id, after, limit)
            return {"annotations": [form_of(each) for each in found], "next": following}

        return answer(await threads.quick(work))

    @router.put(
        base + "/{annotation_id}",
        response_model=Annotation,
        responses=problems(400, 404, 412, 413, 415, 422, 503, 507)
        | {201: {"model": Annotation, "description": "It is new"}},
        openapi_extra=json_body(AnnotationBody),
    )
    async def put_annotation(
        project_id: ProjectId,
        image_id: ImageId,
        annotation_id: AnnotationId,
        request: Request,
        if_match: IfMatch = None,
    ) -> Response:
        """Save an annotation under an id that the client made up; with If-Match only over that version."""
        body = await read_body(request, AnnotationBody, limits.json_bytes)

        def work() -> tuple[Annotation, bool]:
            size = operations.get_image(projects, project_id, image_id).size
            item = _checked(annotation_id, body, size)
            return annotations.put_annotation(projects, project_id, image_id, item, _versions(if_match))

        saved, new = await threads.quick(work)
        return answer(form_of(saved), 201 if new else 200, {"ETag": f'"{saved.version}"'})

    @router.delete(
        base + "/{annotation_id}",
        status_code=204,
        response_class=Response,
        responses=problems(404, 412, 422, 503, 507),
    )
    async def delete_annotation(
        project_id: ProjectId, image_id: ImageId, annotation_id: AnnotationId, if_match: IfMatch = None
    ) -> Response:
        """Delete an annotation; with If-Match only that version."""

        def work() -> None:
            annotations.delete_annotation(projects, project_id, image_id, annotation_id, _versions(if_match))

        await threads.quick(work)
        return Response(status_code=204)

    @router.post(
        base + "/batch",
        response_model=BatchAnswer,
        responses=problems(400, 404, 413, 415, 422, 503, 507),
        openapi_extra=json_body(BatchBody),
    )
    async def change_batch(project_id: ProjectId, image_id: ImageId, request: Request) -> Response:
        """Save and delete many annotations of an image, all or nothing. Ids that are not there are not deleted."""
        body = await read_body(request, BatchBody, limits.json_bytes)

        def work() -> dict[str, Any]:
            size = operations.get_image(projects, project_id, image_id).size
            items = [_checked(each.id, each, size) for each in body.put]
            saved, deleted = annotations.change_batch(projects, project_id, image_id, items, body.delete)
            return {"annotations": [form_of(each) for each in saved], "deleted": deleted}

        return answer(await threads.quick(work))


def _checked(annotation_id: str, body: AnnotationBody | BatchItem, size: tuple[int, int]) -> NewAnnotation:
    return check_annotation(
        annotation_id,
        {"size": body.segmentation.size, "counts": body.segmentation.counts},
        size,
        category_id=body.category_id,
        prompt=body.prompt,
        predicted_iou=body.predicted_iou,
        label=body.label,
        source=body.source,
    )


def _versions(if_match: str | None) -> Collection[int] | None:
    """The versions that If-Match allows; None when it is not there."""
    if if_match is None:
        return None
    tags = etags(if_match, weak=False)
    if "*" in tags:
        return range(_HIGHEST)
    return {int(tag) for tag in tags if tag.isascii() and tag.isdecimal() and len(tag) < 20}
