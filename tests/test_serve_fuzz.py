"""Schemathesis asks the server for everything that its own OpenAPI document allows, and for what it does not."""

import asyncio
import io

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given
from hypothesis import settings as bounded
from hypothesis import strategies as st
from PIL import Image
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_schema_conformance,
    status_code_conformance,
)

import anysam
from anysam.serve.application import make_application
from anysam.serve.projects.database import open_projects
from anysam.serve.projects.routes import make_router
from anysam.serve.settings import ServeSettings
from plain_engine import PlainEngine, photograph

EXAMPLES = 12  # for each operation


class Decoder:
    async def file(self):
        return b"onnx", {"sha256": "abc"}


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """The application with one image and one project, whose ids fill the paths of half of the requests."""
    engine = PlainEngine(anysam.load())
    projects = open_projects(tmp_path_factory.mktemp("db") / "p.sqlite")
    settings = ServeSettings(hosts=frozenset())
    app = make_application(engine, settings, decoder=Decoder(), routers=[make_router(projects, engine)], page=None)
    file = io.BytesIO()
    Image.fromarray(photograph()).save(file, "PNG")

    async def prepare():
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
            image = (await client.post("/v1/images", content=file.getvalue())).json()["id"]
            project = (await client.post("/v1/projects", json={"name": "p"})).json()["id"]
            own = await client.post(f"/v1/projects/{project}/images?name=a.png", content=file.getvalue())
            return {"image_id": image, "pid": project, "iid": own.json()["id"]}

    yield app, asyncio.run(prepare())
    projects.close()


def test_no_request_makes_the_server_fail_or_answer_otherwise_than_described(served):
    app, ids = served
    schema = schemathesis.openapi.from_asgi("/openapi.json", app)
    schema.config.generation.with_security_parameters = False
    checks = [
        not_a_server_error,
        status_code_conformance,
        content_type_conformance,
        response_schema_conformance,
        negative_data_rejection,
    ]
    asked = 0
    for result in schema.get_all_operations():
        operation = result.ok()
        if operation.path.endswith("/everything"):
            continue  # whole seconds each; its body is tested beside the other routes

        @bounded(
            max_examples=EXAMPLES,
            derandomize=True,
            deadline=None,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(case=operation.as_strategy(), known=st.booleans())
        def ask(case, known):
            nonlocal asked
            asked += 1
            if known:
                case.path_parameters |= {name: ids[name] for name in case.path_parameters if name in ids}
            if case.method == "DELETE" and known and case.path.count("{") == 1:
                return  # the image and the project that others ask for
            response = case.call()
            case.validate_response(response, checks=[not_a_server_error] if known else checks)

        ask()
    assert asked > 100
