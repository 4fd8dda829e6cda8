"""The page as it was built into the package: which file answers which address, and how long it may be kept."""

from functools import partial
from pathlib import Path

from fastapi import APIRouter
from starlette.responses import FileResponse, PlainTextResponse, Response

PAGE = Path(__file__).parent / "page"

_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".mjs": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".wasm": "application/wasm",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".ico": "image/x-icon",
    ".txt": "text/plain; charset=utf-8",
    ".json": "application/json",
    ".webmanifest": "application/manifest+json",
    ".woff2": "font/woff2",
}
_MISSING = (
    "The API runs, but the page has not been built into this installation.\n\n"
    "In a clone of the repository: make page (needs Node.js 20). In an installed package it is there.\n"
)


def page_files(folder: Path = PAGE) -> dict[str, Path]:
    """Address -> file of the built page, {} if it has not been built. Only these are ever opened."""
    if not (folder / "index.html").is_file():
        return {}
    files = (path for path in folder.rglob("*") if path.is_file() and path.suffix in _TYPES)
    return {f"/{path.relative_to(folder).as_posix()}": path for path in files}


def make_page_router(folder: Path = PAGE) -> APIRouter:
    """The page at / and its files beside it."""
    files = page_files(folder)
    router = APIRouter(include_in_schema=False)

    @router.get("/")
    async def page() -> Response:
        if not files:
            return PlainTextResponse(_MISSING)
        return _file(files["/index.html"], "no-cache")

    for address, path in files.items():
        # Names in assets/ hold a digest of what is in them.
        cache = "public, max-age=31536000, immutable" if address.startswith("/assets/") else "no-cache"
        router.add_api_route(address, partial(_asset, path, cache), methods=["GET"])
    return router


async def _asset(path: Path, cache: str) -> Response:
    return _file(path, cache)


def _file(path: Path, cache: str) -> Response:
    return FileResponse(path, media_type=_TYPES[path.suffix], headers={"Cache-Control": cache})
