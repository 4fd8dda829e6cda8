"""NumPy's .npz: run lengths of all masks one after the other, boxes and scores; read without pickles."""

import zipfile
import zlib
from pathlib import Path
from typing import BinaryIO

import numpy as np

from anysam import rle
from anysam.atomic import write_atomic
from anysam.errors import OptionError
from anysam.outputs.formats import ImageResult, Loss
from anysam.outputs.reading import MAX_BYTES, as_size, make_record

_ARRAYS = ("file_name", "size", "runs", "run_counts", "predicted_iou", "stability_score", "labels")


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
            if sum(member.file_size for member in archive.infolist()) > MAX_BYTES:
                raise OptionError(f"{path} is too large unpacked: at most {MAX_BYTES:,} bytes are read.")
        with np.load(path, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in _ARRAYS}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise OptionError(f"{path} is no .npz of masks: {' '.join(str(error).split())}.") from error
    size = as_size(arrays["size"].tolist(), str(path))
    counts, runs = arrays["run_counts"], arrays["runs"]
    whole = counts.dtype.kind in "iu" and runs.dtype.kind in "iu" and counts.ndim == runs.ndim == 1
    of_masks = [arrays[name] for name in ("predicted_iou", "stability_score", "labels")]
    same = {len(array) if array.ndim == 1 else -1 for array in of_masks}
    if not whole or (counts < 0).any() or int(counts.sum()) != len(runs) or same != {len(counts)}:
        raise OptionError(f"{path}: the arrays of its masks do not belong together.")
    records = []
    for i, own in enumerate(np.split(runs.astype(np.int64), np.cumsum(counts)[:-1]) if len(counts) else []):
        segmentation = {"size": list(size), "counts": own.tolist()}
        checked = rle.write_rle(rle.read_rle(segmentation)[0], size)
        stability, label = float(arrays["stability_score"][i]), str(arrays["labels"][i])
        records.append(
            make_record(
                checked,
                float(arrays["predicted_iou"][i]),
                label=label or None,
                stability_score=None if np.isnan(stability) else stability,
            )
        )
    return ImageResult(str(arrays["file_name"]), size, tuple(records))
