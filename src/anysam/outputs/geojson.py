"""GeoJSON (RFC 7946): a feature for each mask, with holes and parts.

Coordinates are a map's where the image has one (its transform), else pixels, y down. RFC 7946 wants longitude and
latitude in WGS 84 and has no other; for another reference system the member "crs" of the older GeoJSON of 2008 names
it, which GDAL and QGIS read. Nothing is reprojected. A member "anysam" of the collection keeps the image's name, size
and transform, so that the masks can be read back.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from anysam.errors import OptionError
from anysam.outputs.files import write_json
from anysam.outputs.formats import ImageResult, Loss
from anysam.outputs.polygons import fill_parts, record_outlines
from anysam.outputs.reading import as_file_name, as_list, as_number, as_size, as_text, make_record
from anysam.outputs.words import said_of, with_said
from anysam.results import MaskRecord

_WGS84 = ("EPSG:4326", "OGC:CRS84")
_PIXELS = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
_Transform = tuple[float, float, float, float, float, float]


def write_geojson(path: str | Path, result: ImageResult) -> list[Loss]:
    """Write the masks of an image; empty ones have no geometry and are left out."""
    transform = result.transform or _PIXELS
    document: dict[str, Any] = {"type": "FeatureCollection"}
    if result.crs is not None and result.crs not in _WGS84:
        document["crs"] = {"type": "name", "properties": {"name": _urn(result.crs)}}
    document["anysam"] = {"file_name": result.file_name, "size": list(result.size), "transform": list(transform)}
    empty = []

    def features() -> Iterator[dict[str, Any]]:
        for number, record in enumerate(result.records):
            feature = _feature(number, record, transform)
            if feature is None:
                empty.append(number)
            else:
                yield feature

    write_json(path, document | {"features": features()})
    return [Loss("geojson", "masks without a pixel", len(empty))] if empty else []


def _feature(number: int, record: MaskRecord, transform: _Transform) -> dict[str, Any] | None:
    parts = []
    for outline in record_outlines(record):
        rings = [_to_map(ring, transform) for ring in (outline.outer, *outline.holes)]
        parts.append([[*ring.tolist(), ring[0].tolist()] for ring in rings])
    if not parts:
        return None
    single = len(parts) == 1
    geometry = {"type": "Polygon" if single else "MultiPolygon", "coordinates": parts[0] if single else parts}
    properties = {
        "label": record.label,
        "predicted_iou": record.predicted_iou,
        "stability_score": None,
        "area_pixels": record.area,
    } | said_of(record)
    return {"type": "Feature", "id": number, "properties": properties, "geometry": geometry}


def geojson_to_result(document: Mapping[str, Any], name: str) -> ImageResult:
    """A collection that `write_geojson` wrote -> its masks. Raises OptionError, for others too: they have no pixels."""
    facts = document.get("anysam")
    if not isinstance(facts, Mapping):
        raise OptionError(f"{name} does not say which image it belongs to (its member anysam is missing).")
    size = as_size(facts.get("size"), name)
    given = facts.get("transform")
    if not isinstance(given, list) or len(given) != 6:
        raise OptionError(f"{name}: six numbers of the transform are expected.")
    a, b, c, d, e, f = (as_number(value, f"{name}: transform") for value in given)
    if not abs(a * e - b * d) > 1e-30:
        raise OptionError(f"{name}: the transform {given} maps the image to a line.")
    transform: _Transform = (a, b, c, d, e, f)
    records = []
    for number, feature in enumerate(as_list(document.get("features"), f"{name}: features"), start=1):
        where = f"{name}: feature {number}"
        properties = feature.get("properties") or {}
        geometry = feature.get("geometry") or {}
        if not isinstance(properties, Mapping) or not isinstance(geometry, Mapping):
            raise OptionError(f"{where} is malformed.")
        score, label = properties.get("predicted_iou"), properties.get("label")
        record = make_record(
            fill_parts(_parts(geometry, transform, where), size, where),
            1.0 if score is None else as_number(score, where),
            label=None if label is None else as_text(label, where),
        )
        records.append(with_said(record, properties, where))
    crs = document.get("crs")
    properties = crs.get("properties") if isinstance(crs, Mapping) else None
    named = properties.get("name") if isinstance(properties, Mapping) else None
    mapped = transform != _PIXELS
    return ImageResult(
        as_file_name(facts.get("file_name", Path(name).name), name),
        size,
        tuple(records),
        as_text(named, f"{name}: crs") if named else ("EPSG:4326" if mapped else None),
        transform if mapped else None,
    )


def _parts(geometry: Mapping[str, Any], transform: _Transform, where: str) -> list[list[np.ndarray]]:
    kind, coordinates = geometry.get("type"), geometry.get("coordinates")
    if kind not in ("Polygon", "MultiPolygon"):
        raise OptionError(f"{where} is of the kind {str(kind)[:40]!r}; Polygon and MultiPolygon are accepted.")
    parts = as_list([coordinates] if kind == "Polygon" else coordinates, where, list)
    return [[_to_pixels(ring, transform, where) for ring in as_list(part, where, list)] for part in parts]


def _to_map(ring: np.ndarray, transform: _Transform) -> np.ndarray:
    """(N, 2) pixels -> (N, 2) map; outer rings run counter-clockwise there, as RFC 7946 wants."""
    a, b, c, d, e, f = transform
    mapped = ring @ np.array([[a, d], [b, e]]) + (c, f)
    # Clockwise on a screen, y down, is counter-clockwise where y points up; a map that is not mirrored turns it round.
    return mapped if a * e - b * d > 0 else mapped[::-1]


def _to_pixels(ring: object, transform: _Transform, where: str) -> np.ndarray:
    points = [[as_number(value, where) for value in point[:2]] for point in as_list(ring, where, list)]
    if len(points) < 4 or any(len(point) != 2 for point in points):
        raise OptionError(f"{where}: a ring is at least 4 points x y, the last like the first.")
    a, b, c, d, e, f = transform
    inverse = np.array([[e, -d], [-b, a]]) / (a * e - b * d)  # of the matrix of `_to_map`
    with np.errstate(over="ignore", invalid="ignore"):  # what becomes of absurd numbers is refused where it is filled
        pixels = (np.array(points[:-1]) - (c, f)) @ inverse
    nearest = np.round(pixels)
    return np.where(np.abs(pixels - nearest) < 1e-3, nearest, pixels)  # what the rounding of map coordinates has moved


def _urn(crs: str) -> str:
    found = re.fullmatch(r"([A-Za-z]+):(\w+)", crs)
    return f"urn:ogc:def:crs:{found[1].upper()}::{found[2]}" if found else crs
