"""The HTTP API of projects. Requests are checked here and in `bodies`; the work is done by `operations`, in threads.

Errors are ProjectError, with a status and a sentence; the application answers with them as application/problem+json.
"""

from dataclasses import dataclass
from typing import Annotated, Protocol

from fastapi import APIRouter, Query, Request, Response

from anysam.serve.projects import history, operations
from anysam.serve.projects.annotation_routes import add_annotation_routes
from anysam.serve.projects.answers import (
    UPLOAD_BODY,
    CategoryNumber,
    IfNoneMatch,
    ImageId,
    ProjectId,
    Threads,
    answer,
    etags,
    json_body,
    problems,
)
from anysam.serve.projects.bodies import (
    CategoryBody,
    CategoryChange,
    ProjectBody,
    ProjectLimits,
    read_body,
    read_upload,
)
from anysam.serve.projects.database import Projects
from anysam.serve.projects.errors import ProjectError
from anysam.serve.projects.items import Category, Event, Project, ProjectImage, form_of
from anysam.serve.projects.pages import MOST_ROWS, AfterNumber, Limit
from anysam.serve.projects.transfers import add_transfer_routes

_WITHOUT_ENGINE = "This server has no model to open the image with."
AfterProject = Annotated[
    str | None, Query(pattern=r"^[0-9]{1,18}-[0-9a-f]{32}$", description="next of the answer before")
]
_MAX_WAIT = 30.0


class ImageStateLike(Protocol):
    """What is read of an engine's ImageState."""

    @property
    def image_id(self) -> str: ...
    @property
    def size(self) -> tuple[int, int]: ...
    @property
    def state(self) -> str: ...
    @property
    def queue_position(self) -> int | None: ...
    @property
    def error(self) -> str | None: ...


class ImageOpener(Protocol):
    """What projects ask of an engine: to encode an image."""

    @property
    def variant(self) -> str: ...
    async def add_image(self, data: bytes) -> ImageStateLike: ...
    async def wait(self, image_id: str, seconds: float) -> ImageStateLike: ...


@dataclass(frozen=True)
class ProjectList:
    """Projects, the newest first. next: what to go on after; null at the end."""

    projects: list[Project]
    next: str | None


@dataclass(frozen=True)
class CategoryList:
    """All categories of a project."""

    categories: list[Category]


@dataclass(frozen=True)
class ProjectImageList:
    """Images of a project. next: the number to go on after; null at the end."""

    images: list[ProjectImage]
    next: int | None


@dataclass(frozen=True)
class EventList:
    """Changes in their order. next: the number to go on after; null at the end."""

    events: list[Event]
    next: int | None


@dataclass(frozen=True)
class OpenedImage:
    """An image that the engine knows, under an id of the engine's."""

    id: str
    size: tuple[int, int]
    state: str
    model: str
    queue_position: int | None
    error: str | None


def make_router(projects: Projects, engine: ImageOpener | None, limits: ProjectLimits | None = None) -> APIRouter:
    """The routes below /v1/projects. engine: opens images; without one that is answered with 409."""
    router = APIRouter(prefix="/v1/projects", tags=["projects"])
    threads = Threads()
    limits = limits or ProjectLimits()
    _add_projects(router, projects, threads, limits)
    _add_categories(router, projects, threads, limits)
    _add_images(router, projects, threads, limits)
    _add_opening(router, projects, threads, engine)
    add_annotation_routes(router, projects, threads, limits)
    add_transfer_routes(router, projects, threads, limits)
    return router


def _add_projects(router: APIRouter, projects: Projects, threads: Threads, limits: ProjectLimits) -> None:
    @router.get("", response_model=ProjectList, responses=problems(422, 500, 503))
    async def list_projects(after: AfterProject = None, limit: Limit = MOST_ROWS) -> Response:
        """The projects, the newest first."""
        found, following = await threads.quick(lambda: operations.list_projects(projects, after, limit))
        return answer({"projects": [form_of(each) for each in found], "next": following})

    @router.post(
        "",
        status_code=201,
        response_model=Project,
        responses=problems(400, 413, 415, 422, 503, 507),
        openapi_extra=json_body(ProjectBody),
    )
    async def create_project(request: Request) -> Response:
        """Make a project."""
        body = await read_body(request, ProjectBody, limits.json_bytes)
        made = await threads.quick(lambda: operations.create_project(projects, body.name))
        return answer(form_of(made), 201, {"Location": f"{router.prefix}/{made.id}"})

    @router.get("/{project_id}", response_model=Project, responses=problems(404, 422, 503))
    async def get_project(project_id: ProjectId) -> Response:
        """A project."""
        return answer(form_of(await threads.quick(lambda: operations.get_project(projects, project_id))))

    @router.patch(
        "/{project_id}",
        response_model=Project,
        responses=problems(400, 404, 413, 415, 422, 503, 507),
        openapi_extra=json_body(ProjectBody),
    )
    async def rename_project(project_id: ProjectId, request: Request) -> Response:
        """Give a project another name."""
        body = await read_body(request, ProjectBody, limits.json_bytes)
        return answer(form_of(await threads.quick(lambda: operations.rename_project(projects, project_id, body.name))))

    @router.delete("/{project_id}", status_code=204, response_class=Response, responses=problems(404, 422, 503, 507))
    async def delete_project(project_id: ProjectId) -> Response:
        """Delete a project with its images, annotations and history."""
        await threads.quick(lambda: operations.delete_project(projects, project_id))
        return Response(status_code=204)

    @router.get("/{project_id}/history", response_model=EventList, responses=problems(404, 422, 503))
    async def list_history(
        project_id: ProjectId,
        after: AfterNumber = 0,
        limit: Limit = 100,
    ) -> Response:
        """Changes with numbers above `after`; fewer than `limit` where they are large."""
        events, following = await threads.quick(lambda: history.list_events(projects, project_id, after, limit))
        return answer({"events": [form_of(each) for each in events], "next": following})


def _add_categories(router: APIRouter, projects: Projects, threads: Threads, limits: ProjectLimits) -> None:
    @router.get("/{project_id}/categories", response_model=CategoryList, responses=problems(404, 422, 503))
    async def list_categories(project_id: ProjectId) -> Response:
        """The categories of a project."""
        found = await threads.quick(lambda: operations.list_categories(projects, project_id))
        return answer({"categories": [form_of(each) for each in found]})

    @router.post(
        "/{project_id}/categories",
        status_code=201,
        response_model=Category,
        responses=problems(400, 404, 409, 413, 415, 422, 503, 507),
        openapi_extra=json_body(CategoryBody),
    )
    async def create_category(project_id: ProjectId, request: Request) -> Response:
        """Make a category; a project has one of a name."""
        body = await read_body(request, CategoryBody, limits.json_bytes)
        made = await threads.quick(lambda: operations.create_category(projects, project_id, body.name, body.colour))
        return answer(form_of(made), 201, {"Location": f"{router.prefix}/{project_id}/categories/{made.id}"})

    @router.patch(
        "/{project_id}/categories/{category_id}",
        response_model=Category,
        responses=problems(400, 404, 409, 413, 415, 422, 503, 507),
        openapi_extra=json_body(CategoryChange),
    )
    async def change_category(project_id: ProjectId, category_id: CategoryNumber, request: Request) -> Response:
        """Give a category another name or colour."""
        body = await read_body(request, CategoryChange, limits.json_bytes)
        changed = await threads.quick(
            lambda: operations.change_category(projects, project_id, category_id, body.name, body.colour)
        )
        return answer(form_of(changed))

    @router.delete(
        "/{project_id}/categories/{category_id}",
        status_code=204,
        response_class=Response,
        responses=problems(404, 422, 503, 507),
    )
    async def delete_category(project_id: ProjectId, category_id: CategoryNumber) -> Response:
        """Delete a category; its annotations have none from then on."""
        await threads.quick(lambda: operations.delete_category(projects, project_id, category_id))
        return Response(status_code=204)


def _add_images(router: APIRouter, projects: Projects, threads: Threads, limits: ProjectLimits) -> None:
    @router.get("/{project_id}/images", response_model=ProjectImageList, responses=problems(404, 422, 503))
    async def list_images(project_id: ProjectId, after: AfterNumber = 0, limit: Limit = MOST_ROWS) -> Response:
        """The images of a project in the order in which they were added."""
        found, following = await threads.quick(lambda: operations.list_images(projects, project_id, after, limit))
        return answer({"images": [form_of(each) for each in found], "next": following})

    @router.post(
        "/{project_id}/images",
        status_code=201,
        response_model=ProjectImage,
        responses=problems(400, 404, 413, 415, 422, 503, 507)
        | {200: {"model": ProjectImage, "description": "The project has the same bytes already"}},
        openapi_extra=UPLOAD_BODY,
    )
    async def add_image(
        project_id: ProjectId, request: Request, name: Annotated[str | None, Query(max_length=200)] = None
    ) -> Response:
        """Keep an image: its bytes as the body, or the part `file` of a form."""
        data, own_name = await read_upload(request, limits.upload_bytes)
        wanted = own_name if name is None else name
        image, new = await threads.image(
            lambda: operations.add_image(projects, project_id, data, wanted, limits.max_pixels)
        )
        place = f"{router.prefix}/{project_id}/images/{image.id}"
        return answer(form_of(image), 201 if new else 200, {"Location": place})

    @router.get("/{project_id}/images/{image_id}", response_model=ProjectImage, responses=problems(404, 422, 503))
    async def get_image(project_id: ProjectId, image_id: ImageId) -> Response:
        """An image."""
        return answer(form_of(await threads.quick(lambda: operations.get_image(projects, project_id, image_id))))

    @router.delete(
        "/{project_id}/images/{image_id}",
        status_code=204,
        response_class=Response,
        responses=problems(404, 422, 503, 507),
    )
    async def delete_image(project_id: ProjectId, image_id: ImageId) -> Response:
        """Delete an image with its annotations."""
        await threads.quick(lambda: operations.delete_image(projects, project_id, image_id))
        return Response(status_code=204)

    @router.get(
        "/{project_id}/images/{image_id}/file",
        response_class=Response,
        responses=problems(404, 422, 503)
        | {200: {"content": {"image/*": {}}, "description": "The file"}, 304: {"description": "It is the same"}},
    )
    async def get_file(project_id: ProjectId, image_id: ImageId, if_none_match: IfNoneMatch = None) -> Response:
        """The file of an image as it was uploaded."""
        tags = etags(if_none_match, weak=True)
        known = next((tag for tag in tags if len(tag) == 64), None)
        file = await threads.image(lambda: operations.read_image_file(projects, project_id, image_id, known))
        headers = {"ETag": f'"{file.sha256}"', "Cache-Control": "private, no-cache"}
        if file.sha256 in tags or "*" in tags:
            return Response(status_code=304, headers=headers)
        return Response(file.data, media_type=file.media_type, headers=headers)


def _add_opening(router: APIRouter, projects: Projects, threads: Threads, engine: ImageOpener | None) -> None:
    @router.post(
        "/{project_id}/images/{image_id}/open",
        status_code=201,
        response_model=OpenedImage,
        responses=problems(404, 409, 413, 415, 422, 503),
    )
    async def open_image(
        project_id: ProjectId,
        image_id: ImageId,
        wait: Annotated[float, Query(ge=0, le=_MAX_WAIT, allow_inf_nan=False)] = 0.0,
    ) -> Response:
        """Give an image to the model, as POST /v1/images does."""
        if engine is None:
            raise ProjectError(409, _WITHOUT_ENGINE)
        file = await threads.image(lambda: operations.read_image_file(projects, project_id, image_id))
        state = await engine.add_image(file.data)
        if wait > 0 and state.state not in ("ready", "failed"):
            state = await engine.wait(state.image_id, wait)
        opened = OpenedImage(
            id=state.image_id,
            size=state.size,
            state=state.state,
            model=engine.variant,
            queue_position=state.queue_position,
            error=state.error,
        )
        return answer(dict(vars(opened)), 201, {"Location": f"/v1/images/{state.image_id}"})
