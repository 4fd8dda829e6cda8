"""Which models and which files beside them there are, and which of them are on this machine. Imports no torch."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anysam.catalogue import (
    DEFAULT_VARIANT,
    RESOURCES,
    VARIANTS,
    Resource,
    Variant,
    WeightsFile,
    find_published,
    find_variant,
)
from anysam.fetch import locate


@dataclass(frozen=True)
class ListedModel:
    """A row of the catalogue, and where its weights are: in the package, in the cache, or None when not here."""

    variant: Variant
    weights: Path | None

    @property
    def megabytes(self) -> float | None:
        """Size of the weights in units of 10**6 bytes: of the file that is here, else of the published ones."""
        return self.variant.megabytes if self.weights is None else self.weights.stat().st_size / 1e6

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        variant = self.variant
        return {
            "name": variant.name,
            "default": variant.name == DEFAULT_VARIANT,
            "family": variant.family,
            "size": variant.size,
            "summary": variant.summary,
            "prompts": list(variant.prompts),
            "max_points": variant.max_points,
            "parameters": variant.parameters,
            "gmac": variant.gmac,
            "megabytes": None if self.megabytes is None else round(self.megabytes, 1),
            "code_licence": variant.code_licence,
            "weights_licence": variant.weights_licence,
            "source": variant.source,
            "files": [_file(file) for file in variant.files],
            "weights": None if self.weights is None else str(self.weights),
        }


@dataclass(frozen=True)
class ListedResource:
    """A file that words need, and where it is: in the package, in the cache, or None when not here."""

    resource: Resource
    path: Path | None

    @property
    def megabytes(self) -> float | None:
        """Size in units of 10**6 bytes: of the file that is here, else of the published one."""
        return self.resource.megabytes if self.path is None else self.path.stat().st_size / 1e6

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        resource = self.resource
        return {
            "name": resource.name,
            "kind": resource.kind,
            "summary": resource.summary,
            "families": list(resource.families),
            "megabytes": None if self.megabytes is None else round(self.megabytes, 2),
            "licence": resource.licence,
            "source": resource.source,
            "file": _file(resource.file),
            "path": None if self.path is None else str(self.path),
        }


def _file(file: WeightsFile) -> dict[str, Any]:
    return {"name": file.name, "url": file.url, "page": file.page, "sha256": file.sha256, "bytes": file.bytes}


def list_models() -> list[ListedModel]:
    """Every model that can be named, in the catalogue's order. Connects to nothing."""
    return [ListedModel(variant, locate(variant)) for variant in VARIANTS]


def find_model(name: str) -> ListedModel:
    """The model called exactly `name`. Connects to nothing. Raises UnknownModelError."""
    variant = find_variant(name)
    return ListedModel(variant, locate(variant))


def list_resources() -> list[ListedResource]:
    """Every file beside weights that can be named, in the catalogue's order. Connects to nothing."""
    return [ListedResource(resource, locate(resource)) for resource in RESOURCES]


def find_listed(name: str) -> ListedModel | ListedResource:
    """The model or the file called exactly `name`. Connects to nothing. Raises UnknownModelError."""
    row = find_published(name)
    return ListedResource(row, locate(row)) if isinstance(row, Resource) else ListedModel(row, locate(row))
