"""This package's own JSON: everything that is known of each mask, prompts included."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from anysam.outputs.coco import segmentation_to_rle
from anysam.outputs.files import write_json
from anysam.outputs.formats import ImageResult
from anysam.outputs.reading import as_box, as_file_name, as_list, as_number, as_prompt, as_size, as_text, make_record
from anysam.outputs.words import with_said
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
        forms = as_list(row.get("masks"), f"{where}: masks")
        records = tuple(_record(form, size, f"{where}: mask {i}") for i, form in enumerate(forms, start=1))
        file_name = Path(as_file_name(row.get("image", Path(name).name), where)).name
        results.append(ImageResult(file_name, size, records))
    return results


def _record(form: Mapping[str, Any], size: tuple[int, int], where: str) -> MaskRecord:
    """`MaskRecord.to_dict` -> the record. Area and box are the mask's own."""
    label, prompt, crop_box = form.get("label"), form.get("prompt"), form.get("crop_box")
    record = make_record(
        segmentation_to_rle(form.get("segmentation"), size, where),
        as_number(form.get("predicted_iou"), where),
        prompt=None if prompt is None else as_prompt(prompt, where),
        label=None if label is None else as_text(label, where),
        crop_box=None if crop_box is None else as_box(crop_box, where),
    )
    return with_said(record, form, where)
