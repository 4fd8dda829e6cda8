"""The decoder that browsers get: exported once in a thread, then kept on disk. torch and onnx are imported late."""

import asyncio
import importlib.util
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anysam import __version__
from anysam.atomic import write_atomic
from anysam.errors import AnySamError
from anysam.home import home

if TYPE_CHECKING:
    from anysam.predictor import Model


def make_page_decoder(model: "Model") -> "PageDecoder | None":
    """The decoder of a model, or None where there can be none: the server decodes then."""
    from anysam.errors import ExportError
    from anysam.export.decoder import decoder_graph

    if any(importlib.util.find_spec(name) is None for name in ("onnx", "onnxruntime")):
        return None
    try:
        decoder_graph(model)
    except ExportError:
        return None
    return PageDecoder(model)


class PageDecoder:
    """The decoder of one loaded model. Raises NotEnabled with the reason where there is none."""

    def __init__(self, model: "Model") -> None:
        self._model = model
        self._lock = asyncio.Lock()
        self._found: tuple[bytes, dict[str, Any]] | None = None
        self._reason: str | None = None

    async def file(self) -> tuple[bytes, dict[str, Any]]:
        """The ONNX file, and its description. Exported at the first call, unless an earlier process did."""
        from anysam.serve.engine_types import NotEnabled

        async with self._lock:
            if self._found is None and self._reason is None:
                try:
                    self._found = await asyncio.to_thread(_load_or_export, self._model)
                except AnySamError as error:
                    self._reason = str(error)
        if self._found is None:
            raise NotEnabled(self._reason)
        return self._found


def _load_or_export(model: "Model") -> tuple[bytes, dict[str, Any]]:
    from anysam.export.decoder import DecoderOptions, decoder_graph, export_decoder, loses_nothing_in_half

    half = loses_nothing_in_half(decoder_graph(model))
    stem = f"{model.variant}-{model.weights_sha256[:16]}-{__version__}-{'half' if half else 'whole'}"
    folder = home() / "decoders"
    path, description = folder / f"{stem}.onnx", folder / f"{stem}.json"
    kept = _read(path, description)
    if kept is not None:
        return kept
    file = export_decoder(model, DecoderOptions(half=half))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(path, lambda out: out.write(file.data))
        write_atomic(description, lambda out: out.write(json.dumps(file.info).encode()))
    except (OSError, AnySamError):  # a disk that is full or may not be written: it is exported again next time
        pass
    return file.data, dict(file.info)


def _read(path: Path, description: Path) -> tuple[bytes, dict[str, Any]] | None:
    """What an earlier process kept, if it is whole."""
    import hashlib

    try:
        data, info = path.read_bytes(), json.loads(description.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    whole = isinstance(info, dict) and info.get("sha256") == hashlib.sha256(data).hexdigest()
    return (data, info) if whole else None
