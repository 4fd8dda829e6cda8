"""A small application around the projects' routes, an engine that encodes nothing, pictures and masks for tests."""

import io
import os
import secrets
from dataclasses import dataclass, field

import numpy as np
import sqlalchemy
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.testclient import TestClient
from PIL import Image

from anysam.masks import decode_rle, encode_rle
from anysam.serve.projects.bodies import ProjectLimits
from anysam.serve.projects.database import open_projects
from anysam.serve.projects.errors import ProjectError
from anysam.serve.projects.routes import make_router


@dataclass(frozen=True)
class FakeState:
    image_id: str
    size: tuple[int, int]
    state: str
    queue_position: int | None = None
    error: str | None = None


@dataclass
class FakeEngine:
    variant: str = "fake"
    received: list[bytes] = field(default_factory=list)

    async def add_image(self, data):
        self.received.append(data)
        return FakeState("e" * 32, (6, 8), "queued", 0)

    async def wait(self, image_id, seconds):
        return FakeState(image_id, (6, 8), "ready")


def make_app(projects, engine=None, limits=None):
    app = FastAPI()

    @app.exception_handler(ProjectError)
    async def tell(request, error):
        return JSONResponse(
            {"title": "", "status": error.status, "detail": error.detail},
            error.status,
            media_type="application/problem+json",
        )

    @app.exception_handler(RequestValidationError)
    async def refuse(request, error):
        return JSONResponse(
            {"title": "", "status": 422, "detail": "refused"}, 422, media_type="application/problem+json"
        )

    app.include_router(make_router(projects, engine, limits))
    return app


def new_database(folder):
    """A file in a folder; or a new database on the server that ANYSAM_TEST_POSTGRESQL names, for whoever has one."""
    server = os.environ.get("ANYSAM_TEST_POSTGRESQL")
    if not server:
        return folder / "projects.sqlite"
    name = f"anysam_{secrets.token_hex(8)}"
    engine = sqlalchemy.create_engine(server, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.exec_driver_sql(f"CREATE DATABASE {name}")
    engine.dispose()
    return sqlalchemy.make_url(server).set(database=name).render_as_string(hide_password=False)


class Server:
    """A client of the API over a new database in a folder."""

    def __init__(self, folder, limits=None, db=None):
        self.projects = open_projects(db or new_database(folder))
        self.engine = FakeEngine()
        self.app = make_app(self.projects, self.engine, limits or ProjectLimits())
        self.client = TestClient(self.app, raise_server_exceptions=True)

    def ask(self, method, path, expected=200, **options):
        response = self.client.request(method, f"/v1/projects{path}", **options)
        assert response.status_code == expected, (response.status_code, response.text[:500])
        return response.json() if "json" in response.headers.get("content-type", "") else response

    def project(self, name="Cats"):
        return self.ask("POST", "", 201, json={"name": name})["id"]

    def image(self, project, picture=None, name="cat.png", expected=201):
        data = png((6, 8), 1) if picture is None else picture
        return self.ask("POST", f"/{project}/images", expected, params={"name": name}, content=data)["id"]

    def annotations(self, project, image):
        return self.ask("GET", f"/{project}/images/{image}/annotations")["annotations"]

    def put(self, project, image, mask, expected=201, **values):
        path = f"/{project}/images/{image}/annotations/{secrets.token_hex(16)}"
        return self.ask("PUT", path, expected, json=body(mask, **values))

    def events(self, project, limit=1000):
        found, after = [], 0
        while after is not None:
            page = self.ask("GET", f"/{project}/history", params={"after": after, "limit": limit})
            found += page["events"]
            after = page["next"]
        return found


def png(size, seed, kind="PNG"):
    """The bytes of a picture (H, W) of noise."""
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def box_mask(size, x0, y0, x1, y1):
    """A mask (H, W) of a rectangle."""
    mask = np.zeros(size, dtype=bool)
    mask[y0:y1, x0:x1] = True
    return mask


def body(mask, source="click", **values):
    """The body of an annotation."""
    return {"segmentation": encode_rle(mask), "source": source, **values}


def masks_of(annotations):
    return [decode_rle(each["segmentation"]) for each in annotations]
