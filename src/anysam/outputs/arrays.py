"""NumPy's .npz: run lengths of all masks one after the other, boxes and scores; read without pickles."""

import math
import zipfile
from pathlib import Path
from typing import BinaryIO

import numpy as np

from anysam import rle
from anysam.atomic import write_atomic
from anysam.errors import OptionError
from anysam.outputs.coco import segmentation_to_rle
from anysam.outputs.formats import ImageResult, Loss
from anysam.outputs.reading import MAX_BYTES, as_file_name, as_number, as_size, as_text, make_record

# What is read, and the kinds of numbers (NumPy's letters) that are taken.
_ARRAYS = {
    "file_name": "U",
    "size": "iu",
    "runs": "iu",
    "run_counts": "iu",
    "predicted_iou": "f",
    "stability_score": "f",
    "labels": "U",
}


def write_npz(path: str | Path, result: ImageResult) -> list[Loss]:
    """Write an image's N masks.

    file_name () and size (2,), (H, W); run_counts (N,) and runs, all masks' run lengths end to end, column by column
    and beginning with background; boxes (N, 4) x0 y0 x1 y1 with exclusive right and bottom; areas, predicted_iou and
    stability_score (N,), NaN where there is none; labels (N,), "" where there is none.
    """
    records = result.records
    runs = [rle.read_rle(record.segmentation)[0] for record in records]
    scores = [np.nan if record.stability_score is None else record.stability_score for record in records]
    arrays = {
        "file_name": np.array(result.file_name),
        "size": np.array(result.size, dtype=np.int64),
        "runs": np.concatenate(runs) if runs else np.zeros(0, dtype=np.int64),
        "run_counts": np.array([len(each) for each in runs], dtype=np.int64),
        "boxes": np.array([record.box for record in records], dtype=np.float64).reshape(-1, 4),
        "areas": np.array([record.area for record in records], dtype=np.int64),
        "predicted_iou": np.array([record.predicted_iou for record in records], dtype=np.float64),
        "stability_score": np.array(scores, dtype=np.float64),
        "labels": np.array([record.label or "" for record in records], dtype=np.str_),
    }

    def write(file: BinaryIO) -> None:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]

    write_atomic(path, write)
    return []


def read_npz(path: str | Path) -> ImageResult:
    """What `write_npz` wrote. Raises OptionError for anything else."""
    try:
        with zipfile.ZipFile(path) as archive:
            arrays = {name: _read_array(archive, name, kinds) for name, kinds in _ARRAYS.items()}
    except Exception as error:  # zipfile raises eight kinds and what the unpackers raise besides
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise OptionError(f"{path} is no .npz of masks: {' '.join(reason.split())}.") from error
    size, counts, runs = as_size(arrays["size"].tolist(), str(path)), arrays["run_counts"], arrays["runs"]
    of_masks = [counts, *(arrays[name] for name in ("predicted_iou", "stability_score", "labels"))]
    together = runs.ndim == 1 and {array.shape for array in of_masks} == {(counts.size,)}
    if not together or (counts < 0).any() or sum(counts.tolist()) != len(runs):
        raise OptionError(f"{path}: the arrays of its masks do not belong together.")
    records = []
    for i, end in enumerate(np.cumsum(counts).tolist()):
        own = runs[end - counts[i] : end]
        where = f"{path}: mask {i + 1}"
        stability, label = float(arrays["stability_score"][i]), str(arrays["labels"][i])
        records.append(
            make_record(
                segmentation_to_rle({"size": list(size), "counts": own}, size, where),
                as_number(float(arrays["predicted_iou"][i]), where),
                label=as_text(label, where) or None,
                stability_score=None if np.isnan(stability) else as_number(stability, where),
            )
        )
    return ImageResult(as_file_name(str(arrays["file_name"]), str(path)), size, tuple(records))


def _read_array(archive: zipfile.ZipFile, name: str, kinds: str) -> np.ndarray:
    """An array of the archive; `np.load` would make room for whatever its header says. Raises ValueError."""
    member = archive.getinfo(f"{name}.npy")
    with archive.open(member) as file:
        version = np.lib.format.read_magic(file)
        if version not in ((1, 0), (2, 0)):
            raise ValueError(f"{name} is of another version, {version}")
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, kind = read_header(file)
        wanted = math.prod(shape) * kind.itemsize
        # The sizes of packed members can be false, too; a thousandfold is as much as deflate can pack.
        if kind.kind not in kinds or wanted > MAX_BYTES or wanted > 1100 * member.compress_size + 4096:
            raise ValueError(f"{name} is {kind} {shape}, which is not accepted")
        data = file.read(wanted)
        if len(data) != wanted:
            raise ValueError(f"{name} breaks off")
        return np.frombuffer(data, dtype=kind).reshape(shape)
