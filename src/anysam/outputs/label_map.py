"""Label maps: a PNG whose pixels are the numbers of masks."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from anysam import rle
from anysam.errors import OptionError
from anysam.outputs.files import write_grey_png
from anysam.outputs.formats import ImageResult, Loss
from anysam.outputs.reading import read_png
from anysam.results import MaskRecord

MOST_MASKS = 65_535


def label_map(records: Sequence[MaskRecord], size: tuple[int, int]) -> tuple[np.ndarray, int]:
    """The number of a mask, from 1, at each pixel it has, else 0: (H, W) uint8, from 256 masks on uint16.

    Where masks overlap, the smaller lies on top. Also returned: how many pixels of larger masks are hidden so. Raises
    OptionError for more than 65,535 masks or masks of another size.
    """
    if len(records) > MOST_MASKS:
        raise OptionError(f"A label map holds at most {MOST_MASKS:,} masks, got {len(records):,}; filter them.")
    labels = np.zeros(size, dtype=np.uint8 if len(records) < 256 else np.uint16)  # (H, W)
    hidden = 0
    for i in sorted(range(len(records)), key=lambda i: -records[i].area):
        if records[i].size != size:
            raise OptionError(f"The mask {records[i].size} and the image {size} differ in size (H, W).")
        box = rle.box(records[i].segmentation)
        if box is not None:
            x0, y0, x1, y1 = box
            inside, part = rle.window(records[i].segmentation, box), labels[y0:y1, x0:x1]
            hidden += int(np.count_nonzero(part[inside]))
            part[inside] = i + 1
    return labels, hidden


def write_label_map(path: str | Path, result: ImageResult) -> list[Loss]:
    """Write `label_map` as a grey PNG of 8 or 16 bits."""
    labels, hidden = label_map(result.records, result.size)
    write_grey_png(path, labels)
    empty = sum(record.area == 0 for record in result.records)
    losses = [
        Loss("labels", "pixels of masks under smaller masks", hidden),
        Loss("labels", "masks without a pixel", empty),
    ]
    return [loss for loss in losses if loss.count]


def read_label_map(path: str | Path) -> ImageResult:
    """A mask for each number but 0 in a grey or palette PNG, in the order of the numbers. Raises OptionError."""
    labels = read_png(path, str(path))
    if labels.size and (labels.min() < 0 or labels.max() > MOST_MASKS):
        raise OptionError(f"{path} is no label map: its values go from {labels.min()} to {labels.max()}.")
    height, width = labels.shape
    return ImageResult(Path(path).stem.removesuffix("_labels"), (height, width), tuple(_records(labels)))


def _records(labels: np.ndarray) -> list[MaskRecord]:
    """One pass for all numbers: the columns are laid end to end, and cut where the number changes."""
    height = len(labels)
    flat = labels.ravel(order="F")
    starts = np.concatenate([[0], np.flatnonzero(flat[1:] != flat[:-1]) + 1])
    ends, values = np.append(starts[1:], flat.size), flat[starts]
    order = np.argsort(values, kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(values[order])) + 1)
    records = []
    for group in groups:
        if values[group[0]] != 0:
            spans = np.stack([starts[group], ends[group]], axis=1)  # (M, 2)
            x0, y0, x1, y1 = rle.spans_to_box(spans, height) or (0, 0, 0, 0)
            segmentation = rle.write_rle(rle.spans_to_runs(spans, flat.size), labels.shape)
            records.append(MaskRecord(segmentation, rle.spans_area(spans), (x0, y0, x1, y1), 1.0))
    return records
