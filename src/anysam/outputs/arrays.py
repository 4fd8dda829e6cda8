"""NumPy's .npz: run lengths of all masks one after the other, boxes, scores and words; read without pickles."""

import math
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from anysam import rle
from anysam.atomic import write_atomic
from anysam.errors import OptionError, OutputError
from anysam.outputs.coco import segmentation_to_rle
from anysam.outputs.formats import ImageResult, Loss
from anysam.outputs.reading import MAX_BYTES, as_file_name, as_number, as_size, as_text, make_record
from anysam.outputs.words import with_said

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
# Of what is said of masks; files of earlier versions do not have them.
_SCORES = ("detection_score", "label_score", "caption_score", "similarity")
_WORDS = {
    **dict.fromkeys(_SCORES, "f"),
    "has_label": "b",
    "captions": "U",
    "has_caption": "b",
    "label_score_counts": "i",
    "label_score_names": "U",
    "label_score_values": "f",
}


def write_npz(path: str | Path, result: ImageResult) -> list[Loss]:
    """Write an image's N masks.

    file_name () and size (2,), (H, W); run_counts (N,) and runs, all masks' run lengths end to end, column by column
    and beginning with background; boxes (N, 4) x0 y0 x1 y1 with exclusive right and bottom; areas, predicted_iou and
    stability_score (N,), NaN where there is none; labels (N,), "" where there is none.

    What else is said of masks: detection_score, label_score, caption_score and similarity (N,), NaN where there is
    none; captions (N,), "" where there is none; has_label and has_caption (N,) bool, by which texts that are empty
    differ from none; label_score_counts (N,), -1 where there are none, and label_score_names and label_score_values,
    all masks' label_scores end to end. NumPy's texts cannot end in the character NUL, which is said to be lost.
    """
    records = result.records
    runs = [rle.read_rle(record.segmentation)[0] for record in records]
    forms = [record.to_dict() for record in records]
    label_scores = [form["label_scores"] for form in forms]
    pairs = [pair for each in label_scores for pair in (each or {}).items()]
    if not np.isfinite([score for _, score in pairs]).all():
        raise OutputError(f"{path} cannot be written: a score in label_scores is no finite number.")
    texts = {
        "labels": [record.label or "" for record in records],
        "captions": [record.caption or "" for record in records],
        "label_score_names": [name for name, _ in pairs],
    }
    arrays = {
        "file_name": np.array(result.file_name),
        "size": np.array(result.size, dtype=np.int64),
        "runs": np.concatenate(runs) if runs else np.zeros(0, dtype=np.int64),
        "run_counts": np.array([len(each) for each in runs], dtype=np.int64),
        "boxes": np.array([record.box for record in records], dtype=np.float64).reshape(-1, 4),
        "areas": np.array([record.area for record in records], dtype=np.int64),
        **{name: _scores(forms, name) for name in ("predicted_iou", "stability_score", *_SCORES)},
        **{name: _texts(of_masks, f"{path}: {name}") for name, of_masks in texts.items()},
        "has_label": np.array([record.label is not None for record in records], dtype=np.bool_),
        "has_caption": np.array([record.caption is not None for record in records], dtype=np.bool_),
        "label_score_counts": np.array([-1 if each is None else len(each) for each in label_scores], dtype=np.int64),
        "label_score_values": np.array([score for _, score in pairs], dtype=np.float64),
    }

    def write(file: BinaryIO) -> None:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]

    write_atomic(path, write)
    cut = sum(text.endswith("\0") for of_masks in texts.values() for text in of_masks)
    return [Loss("npz", "the character NUL at the end of texts", cut)] if cut else []


def _scores(forms: Sequence[dict[str, Any]], name: str) -> np.ndarray:
    """(N,) float64, NaN where a mask has none."""
    return np.array([np.nan if form[name] is None else form[name] for form in forms], dtype=np.float64)


def _texts(texts: Sequence[str], where: str) -> np.ndarray:
    """(N,) texts. Raises OutputError where they would take more than is read: each as much as the longest."""
    if len(texts) * max(map(len, texts), default=0) * 4 > MAX_BYTES:
        raise OutputError(f"{where} cannot be written: NumPy's arrays have no room for texts so long; write json.")
    return np.array(texts, dtype=np.str_)


def read_npz(path: str | Path) -> ImageResult:
    """What `write_npz` wrote. Raises OptionError for anything else."""
    try:
        with zipfile.ZipFile(path) as archive:
            there = set(archive.namelist())
            wanted = _ARRAYS | {name: kinds for name, kinds in _WORDS.items() if f"{name}.npy" in there}
            arrays = {name: _read_array(archive, name, kinds) for name, kinds in wanted.items()}
    except Exception as error:  # zipfile raises eight kinds and what the unpackers raise besides
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise OptionError(f"{path} is no .npz of masks: {' '.join(reason.split())}.") from error
    size, counts, runs = as_size(arrays["size"].tolist(), str(path)), arrays["run_counts"], arrays["runs"]
    common = ("file_name", "size", "runs", "label_score_names", "label_score_values")
    together = runs.ndim == 1 and {arrays[name].shape for name in arrays if name not in common} == {(counts.size,)}
    if not together or (counts < 0).any() or sum(counts.tolist()) != len(runs):
        raise OptionError(f"{path}: the arrays of its masks do not belong together.")
    label_scores = _label_scores(arrays, counts.size, str(path))
    records = []
    for i, end in enumerate(np.cumsum(counts).tolist()):
        segmentation = {"size": list(size), "counts": runs[end - counts[i] : end]}
        where = f"{path}: mask {i + 1}"
        record = make_record(
            segmentation_to_rle(segmentation, size, where),
            as_number(float(arrays["predicted_iou"][i]), where),
            label=_text(arrays, "labels", "has_label", i, where),
        )
        said = {name: float(arrays[name][i]) for name in ("stability_score", *_SCORES) if name in arrays}
        form: dict[str, Any] = {name: score for name, score in said.items() if not np.isnan(score)}
        form |= {"label_scores": label_scores[i], "caption": _text(arrays, "captions", "has_caption", i, where)}
        records.append(with_said(record, form, where))
    return ImageResult(as_file_name(str(arrays["file_name"]), str(path)), size, tuple(records))


def _text(arrays: Mapping[str, np.ndarray], name: str, name_of_has: str, i: int, where: str) -> str | None:
    """The text of a mask, or None. Without an array that says which texts there are, an empty one is none."""
    text = as_text(str(arrays[name][i]), where) if name in arrays else ""
    there = bool(arrays[name_of_has][i]) if name_of_has in arrays else text != ""
    return text if there else None


def _label_scores(arrays: Mapping[str, np.ndarray], count: int, where: str) -> list[dict[str, float] | None]:
    """Of each of `count` masks. Raises OptionError when the arrays do not belong together."""
    three = [arrays.get(f"label_score_{each}") for each in ("counts", "names", "values")]
    counts, names, values = three
    if counts is None or names is None or values is None:
        if any(each is not None for each in three):
            raise OptionError(f"{where}: of the arrays label_score_counts, _names and _values some are missing.")
        return [None] * count
    sizes = np.maximum(counts, 0).tolist()
    if (counts < -1).any() or names.ndim != 1 or names.shape != values.shape or sum(sizes) != len(names):
        raise OptionError(f"{where}: the arrays of label_scores do not belong together.")
    pairs = list(zip(names.tolist(), values.tolist(), strict=True))
    ends = np.cumsum(sizes).tolist()
    of_masks = [dict(pairs[end - size : end]) for size, end in zip(sizes, ends, strict=True)]
    return [None if number < 0 else found for number, found in zip(counts.tolist(), of_masks, strict=True)]


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
