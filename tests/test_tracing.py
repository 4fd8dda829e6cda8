"""The outlines of masks against a plain walk along the edges of pixels, part by part."""

import cv2
import numpy as np
import pytest

from anysam.masks import mask_to_polygons
from anysam.outputs.polygons import record_outlines
from anysam.results import MaskRecord

RIGHT, DOWN, LEFT, UP = (1, 0), (0, 1), (-1, 0), (0, -1)


def walked_rings(mask):
    """Closed rings of corners, the mask on the right of every step; the first step of each is the first by rows."""
    steps = {}
    for y, x in zip(*np.nonzero(mask), strict=True):
        at = np.pad(mask, 1)[y : y + 3, x : x + 3]
        for there, corner, heading in (
            (at[0, 1], (x, y), RIGHT),
            (at[1, 2], (x + 1, y), DOWN),
            (at[2, 1], (x + 1, y + 1), LEFT),
            (at[1, 0], (x, y + 1), UP),
        ):
            if not there:
                steps.setdefault((int(corner[0]), int(corner[1])), set()).add(heading)
    rings = []
    for y, x in sorted((y, x) for x, y in steps):
        for heading in (RIGHT, LEFT):  # LEFT of a hole begins at its right end, which is found by walking
            if heading in steps.get((x, y), ()):
                ring, corner = [], (x, y)
                while heading in steps[corner]:
                    steps[corner].remove(heading)
                    if not ring or ring[-1][1] != heading:
                        ring.append((corner, heading))
                    corner = corner[0] + heading[0], corner[1] + heading[1]
                    dx, dy = heading
                    turns = ((-dy, dx), heading, (dy, -dx))  # to the right, ahead, to the left
                    heading = next((turn for turn in turns if turn in steps[corner]), heading)
                if ring[0][1] == ring[-1][1]:
                    ring.pop(0)  # in the middle of an edge
                rings.append([corner for corner, _ in ring])
    return rings


def rotated(ring):
    """A ring from its first corner by rows on."""
    start = min(range(len(ring)), key=lambda i: (ring[i][1], ring[i][0]))
    return tuple(tuple(int(side) for side in ring[(start + i) % len(ring)]) for i in range(len(ring)))


def random_mask(seed):
    rng = np.random.default_rng(seed)
    size = tuple(rng.integers(1, 24, 2))
    if seed % 3 == 0:
        return rng.random(size) < rng.uniform(0.2, 0.9)
    if seed % 3 == 1:
        return cv2.GaussianBlur(rng.random(size), (5, 5), 1.0) < rng.uniform(0.4, 0.6)
    return np.kron(rng.random((5, 6)) < 0.6, np.ones((3, 2))) > 0


@pytest.mark.parametrize("first", range(0, 240, 40))
def test_rings_are_those_of_a_walk_and_belong_to_their_parts(first):
    for seed in range(first, first + 40):
        mask = random_mask(seed)
        outlines = mask_to_polygons(mask)
        rings = [ring for each in outlines for ring in (each.outer, *each.holes)]
        assert sorted(map(rotated, rings)) == sorted(map(rotated, walked_rings(mask)))
        count, parts = cv2.connectedComponents(mask.astype(np.uint8), connectivity=4)
        assert len(outlines) == count - 1
        starts = [tuple(each.outer[0][::-1]) for each in outlines]
        assert starts == sorted(starts)
        for each in outlines:
            x, y = each.outer[0].astype(int)
            for hole in each.holes:
                (x0, y0), (x1, _) = hole[:2].astype(int)  # runs left, along the lower side of what is above
                assert x1 < x0 and parts[y0 - 1, x1] == parts[y, x]


def test_a_record_has_the_outlines_of_its_mask():
    mask = np.zeros((70, 90), dtype=bool)
    mask[20:60, 33:] = cv2.GaussianBlur(np.random.default_rng(1).random((40, 57)), (7, 7), 2.0) > 0.5
    found, expected = record_outlines(MaskRecord.from_mask(mask, 1.0)), mask_to_polygons(mask)
    assert len(found) == len(expected) > 1
    for own, other in zip(found, expected, strict=True):
        assert np.array_equal(own.outer, other.outer)
        assert all(np.array_equal(*pair) for pair in zip(own.holes, other.holes, strict=True))


def test_the_outline_of_a_large_image_takes_no_memory_for_its_pixels():
    side = 40_000
    record = MaskRecord({"size": [side, side], "counts": [side, side * side - 2 * side, side]}, 1, (0, 0, 1, 1), 1.0)
    (outline,) = record_outlines(record)
    assert outline.outer.tolist() == [[1, 0], [side - 1, 0], [side - 1, side], [1, side]] and not outline.holes
