"""The candidates of one crop: taken in as they are decoded, kept in little memory, decided in order of score.

A candidate costs its box when it comes. Only one that no better mask suppresses pays for its stability, and only one
that is kept for its mask and run lengths. When candidates fill their share of memory, the worst of them pay at once,
and leave a few run lengths instead of logits: the same result, earlier.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from torch import Tensor

from anysam.automatic.extents import find_extents
from anysam.automatic.filters import greedy_nms, near_crop_edge
from anysam.automatic.grids import Box, in_image
from anysam.automatic.regions import Frame, Region, region_spans, stability_scores
from anysam.rle import place_spans, spans_area, spans_to_box, spans_to_runs, write_rle

# Masks that are made together where a GPU makes them: too few leave it idle, too many are suppressed meanwhile.
GPU_LOT = 32


@dataclass(frozen=True, eq=False)
class CropMask:
    """A finished mask. segmentation: COCO RLE at the image's size. box: x0 y0 x1 y1 in the image, last row and column
    included, as published. point: x y in the image.
    """

    segmentation: dict[str, Any]
    area: int
    box: tuple[int, int, int, int]
    predicted_iou: float
    stability_score: float
    point: tuple[float, float]
    crop_box: Box


@dataclass(frozen=True, eq=False)
class _Candidate:
    """score: predicted IoU, float32. box: in the crop, as in CropMask. region: None once the candidate is `done`."""

    score: float
    box: tuple[int, int, int, int]
    point: tuple[float, float]
    region: Region | None
    stability: float | None = None
    done: CropMask | None = None


@dataclass(eq=False)
class Candidates:
    """Those of one crop so far. budget: bytes that their logits may take before the worst are finished early."""

    crop_box: Box
    size: tuple[int, int]
    stability_thresh: float
    budget: int
    waiting: list[_Candidate] = field(default_factory=list)
    nbytes: int = 0

    def add(self, logits: Tensor, scores: np.ndarray, points: np.ndarray, frame: Frame) -> None:
        """Take in K candidates: logits (K, h, w) float32, scores (K,) float32, points (K, 2) in the image."""
        boxes, regions = _locate(logits, frame)
        near = near_crop_edge(boxes, self.crop_box, self.size)
        for i in np.flatnonzero(~near).tolist():
            x0, y0, x1, y1 = boxes[i].tolist()
            region = replace(regions[i], logits=regions[i].logits.clone())
            x, y = points[i].tolist()
            self.waiting.append(_Candidate(float(scores[i]), (x0, y0, x1, y1), (x, y), region))
            self.nbytes += region.nbytes
        if self.nbytes > self.budget:
            self._finish_worst(frame)

    def choose(self, frame: Frame, iou_threshold: float) -> list[CropMask]:
        """The masks that stay, best first."""
        if not self.waiting:
            return []
        boxes = np.array([candidate.box for candidate in self.waiting])  # (N, 4)
        scores = np.array([candidate.score for candidate in self.waiting], dtype=np.float32)  # (N,)
        lot = GPU_LOT if frame.whole else 1
        kept = greedy_nms(boxes, scores, iou_threshold, lambda which: self._stable(which.tolist(), frame), lot)
        return [self._finished(self.waiting[i], frame) for i in kept.tolist()]

    def _stable(self, which: Sequence[int], frame: Frame) -> np.ndarray:
        """Whether candidates are stable enough, computing what is not known yet: (len(which),) bool."""
        new = [i for i in which if self.waiting[i].stability is None]
        regions = [region for i in new if (region := self.waiting[i].region) is not None]
        for i, score in zip(new, stability_scores(regions, frame) if new else (), strict=True):
            self.waiting[i] = replace(self.waiting[i], stability=float(score))
        scores = np.array([self.waiting[i].stability for i in which], dtype=np.float32)
        if self.stability_thresh == 0:
            return np.ones(len(which), dtype=bool)
        return scores >= np.float32(self.stability_thresh)

    def _finish_worst(self, frame: Frame) -> None:
        """Finish candidates, those with the lowest scores first, until half of the budget is free."""
        order = np.argsort([candidate.score for candidate in self.waiting], kind="stable")
        dropped = set()
        lot = GPU_LOT if frame.whole else 1
        open_ = [i for i in order.tolist() if self.waiting[i].done is None]
        for start in range(0, len(open_), lot):
            if self.nbytes <= self.budget // 2:
                break
            which = open_[start : start + lot]
            for i, stable in zip(which, self._stable(which, frame), strict=True):
                candidate = self.waiting[i]
                assert candidate.region is not None
                self.nbytes -= candidate.region.nbytes
                if stable:
                    self.waiting[i] = replace(candidate, region=None, done=self._finished(candidate, frame))
                else:
                    dropped.add(i)
        self.waiting = [candidate for i, candidate in enumerate(self.waiting) if i not in dropped]

    def _finished(self, candidate: _Candidate, frame: Frame) -> CropMask:
        """A stable candidate with its mask."""
        if candidate.done is not None:
            return candidate.done
        assert candidate.region is not None and candidate.stability is not None
        left, top = self.crop_box[:2]
        spans = region_spans(candidate.region, frame)
        if frame.size != self.size:
            spans = place_spans(spans, frame.size, (left, top), self.size)
        x0, y0, x1, y1 = in_image(np.array([candidate.box]), self.crop_box)[0].tolist()
        return CropMask(
            segmentation=write_rle(spans_to_runs(spans, self.size[0] * self.size[1]), self.size),
            area=spans_area(spans),
            box=(x0, y0, x1, y1),
            predicted_iou=candidate.score,
            stability_score=candidate.stability,
            point=candidate.point,
            crop_box=self.crop_box,
        )


def _locate(logits: Tensor, frame: Frame) -> tuple[np.ndarray, list[Region]]:
    """Boxes (K, 4) in the crop, as published, and the regions of logits (K, h, w), which are views of them."""
    if not frame.resize.convex:
        height, width = frame.size
        cells = (0, 0, logits.shape[2], logits.shape[1])
        regions = [Region((0, 0, width, height), cells, part) for part in logits]
        found = [_inclusive_box(region_spans(region, frame), height) for region in regions]
        return np.array(found, dtype=np.int64).reshape(-1, 4), regions
    extents = find_extents(logits, frame.rows, frame.columns, -frame.offset, frame.rounding)
    boxes = extents.boxes.copy()
    regions = []
    for i, (pixels, (x0, y0, x1, y1)) in enumerate(zip(extents.pixels.tolist(), extents.cells.tolist(), strict=True)):
        regions.append(Region(tuple(pixels), (x0, y0, x1, y1), logits[i, y0:y1, x0:x1]))
    for i in np.flatnonzero(~extents.sure).tolist():
        boxes[i] = _inclusive_box(region_spans(regions[i], frame), frame.size[0])
    return boxes, regions


def _inclusive_box(spans: np.ndarray, height: int) -> tuple[int, int, int, int]:
    """x0 y0 x1 y1 of spans in an image of H rows, the last row and column included; 0 0 0 0 for none."""
    box = spans_to_box(spans, height)
    return (0, 0, 0, 0) if box is None else (box[0], box[1], box[2] - 1, box[3] - 1)
