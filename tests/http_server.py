"""An application over the plain engine and a client of it, in this process. For tests."""

import asyncio
import io

import httpx
from PIL import Image

from anysam.serve.application import make_application
from anysam.serve.engine_types import NotEnabled
from anysam.serve.settings import ServeSettings
from plain_engine import PlainEngine, photograph

CLICK = {"points": [[40, 30]]}


def png(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


class Decoder:
    reason = None

    async def file(self):
        if self.reason is not None:
            raise NotEnabled(self.reason)
        return b"onnx", {"sha256": "abc", "variant": "anysam_lite"}


class Server:
    """A client of an application, without a network."""

    def __init__(self, model, page=None, decoder=None, **settings):
        self.engine = PlainEngine(model)
        self.app = make_application(self.engine, ServeSettings(**settings), decoder=decoder, page=page)

    def __call__(self, method, path, expected=200, host="localhost:8000", **options):
        async def ask():
            transport = httpx.ASGITransport(self.app)
            async with httpx.AsyncClient(transport=transport, base_url=f"http://{host}") as client:
                return await client.request(method, path, **options)

        response = asyncio.run(ask())
        assert response.status_code == expected, (response.status_code, response.text[:300])
        if expected >= 400:
            assert response.headers["content-type"] == "application/problem+json"
            assert response.json()["status"] == expected and response.json()["detail"]
            assert response.json()["request_id"] == response.headers["x-request-id"]
        return response

    def add(self, pixels=None):
        data = png(photograph() if pixels is None else pixels)
        return self("POST", "/v1/images", 201, content=data).json()["id"]


async def raw(app, path, method="GET", headers=None):
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
        return await client.request(method, path, headers=headers)
