"""This package's own JSON: everything that is known of each mask, prompts included."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from anysam.errors import OptionError
from anysam.outputs.files import write_json
from anysam.outputs.formats import ImageResult
from anysam.outputs.reading import as_list, as_size
from anysam.results import MaskRecord


def result_to_dict(image_path: str | Path, size: tuple[int, int], records: Sequence[MaskRecord]) -> dict[str, Any]:
    """The JSON form of one image's result: {"image", "size": [H, W], "masks": [MaskRecord.to_dict, ...]}."""
    return {"image": str(image_path), "size": list(size), "masks": [record.to_dict() for record in records]}


def write_result_json(
    path: str | Path, image_path: str | Path, size: tuple[int, int], records: Sequence[MaskRecord]
) -> None:
    """Write `result_to_dict` as JSON."""
    write_json(path, result_to_dict(image_path, size, records))


def native_to_results(document: Mapping[str, Any], name: str) -> list[ImageResult]:
    """A document of one image, or what the commands print with --json. Raises OptionError."""
    rows = [document] if "masks" in document else as_list(document.get("images"), f"{name}: images")
    results = []
    for number, row in enumerate(rows, start=1):
        where = f"{name}: image {number}"
        size = as_size(row.get("size"), where)
        records = []
        for form in as_list(row.get("masks"), f"{where}: masks"):
            try:
                record = MaskRecord.from_dict(form)
            except OptionError as error:
                raise OptionError(f"{where}: {error}") from error
            if record.size != size:
                raise OptionError(f"{where}: a mask is {record.size} and its image {size} (H, W).")
            records.append(record)
        results.append(ImageResult(Path(str(row.get("image", name))).name, size, tuple(records)))
    return results
