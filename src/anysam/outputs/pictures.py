"""Masks as pictures: black and white, laid on the photograph, cut out of it."""

import json
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from anysam import rle
from anysam.errors import OptionError
from anysam.masks import mask_to_box
from anysam.outputs.files import write_grey_png, write_png
from anysam.outputs.formats import Loss
from anysam.outputs.label_drawing import draw_labels
from anysam.prompts import Prompt
from anysam.results import MaskRecord

# Told apart from each other and from most photographs; dark enough for a white line beside them.
_COLOURS = (
    (0, 132, 255),  # azure
    (255, 86, 48),  # vermilion
    (35, 190, 90),  # green
    (191, 64, 220),  # violet
    (255, 176, 0),  # amber
    (0, 184, 196),  # teal
    (240, 50, 120),  # pink
    (140, 200, 20),  # lime
    (110, 90, 240),  # indigo
    (170, 110, 60),  # brown
)
_FOREGROUND = (22, 163, 74)
_BACKGROUND = (220, 38, 38)
_WHITE = (255, 255, 255)
_BLACK = (0, 0, 0)
_FILL = 0.42  # opacity of a mask on the photograph
_ROWS = 256  # of the image, tinted at once
_SHIFT = 4  # OpenCV draws at 1/16 pixel
_MARKER_EDGE = 1.45  # of the disc's radius


def write_mask_png(path: str | Path, mask: np.ndarray) -> None:
    """Write a mask (H, W) bool as an 8-bit grey PNG: 255 on the object, 0 elsewhere."""
    write_grey_png(path, mask)


def write_overlay_png(
    path: str | Path,
    image: np.ndarray,
    records: Sequence[MaskRecord],
    prompts: Sequence[Prompt] | None = None,
    losses: list[Loss] | None = None,
) -> None:
    """Write `draw_overlay` as a PNG."""
    write_png(path, Image.fromarray(draw_overlay(image, records, prompts, losses)))


def write_cutout_png(path: str | Path, image: np.ndarray, mask: np.ndarray) -> None:
    """Write the object alone as an RGBA PNG, cropped to the mask's box.

    image: (H, W, 3) uint8 RGB. mask: (H, W) bool; an empty one gives a transparent image of the whole size. Transparent
    pixels are black inside: nothing of the background is kept. Raises OptionError when the sizes differ.
    """
    if mask.shape != image.shape[:2]:
        raise OptionError(f"The mask {mask.shape} and the image {image.shape[:2]} differ in size (H, W).")
    box = mask_to_box(mask)
    x0, y0, x1, y1 = (0, 0, mask.shape[1], mask.shape[0]) if box is None else box.astype(int).tolist()
    write_png(path, cut_out(image[y0:y1, x0:x1], mask[y0:y1, x0:x1]))


def cut_out(image: np.ndarray, mask: np.ndarray) -> Image.Image:
    """(H, W, 3) uint8 RGB where a mask (H, W) bool is set, RGBA; elsewhere black and transparent."""
    rgba = cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_RGB2RGBA)  # (H, W, 4), opaque
    rgba.view(np.uint32)[..., 0] *= mask  # all four bytes of a pixel at once
    return Image.fromarray(rgba)


def draw_overlay(
    image: np.ndarray,
    records: Sequence[MaskRecord],
    prompts: Sequence[Prompt] | None = None,
    losses: list[Loss] | None = None,
) -> np.ndarray:
    """Lay masks, prompts and words on a photograph: (H, W, 3) uint8 RGB -> the same, the input untouched.

    Each record is tinted and outlined in a colour unlike its neighbours', small masks above large ones, with one tint
    at each pixel; points are drawn as green + and red - discs, boxes, outlines and strokes as thin lines. prompts: by
    default those of the records, but not the points of a grid nor a detector's boxes. Labels, with their scores, and
    captions stand in boxes that do not overlap, in the colour of the mask that each lies on or has a line to. losses:
    what of the words could not be drawn is appended to it: those for which there is no room, the smallest masks' first,
    and characters that no font on this machine has.
    Raises OptionError when a record belongs to an image of another size.
    """
    canvas = np.ascontiguousarray(image).copy()
    line = max(2, round(max(image.shape[:2]) / 640))  # 2 pixels up to 1600, and as thin to the eye on larger images
    order = sorted(range(len(records)), key=lambda i: -records[i].area)
    on_top = np.zeros(image.shape[:2], dtype=np.int32)  # (H, W), from 1
    for i in order:
        if records[i].size != image.shape[:2]:
            raise OptionError(f"The mask {records[i].size} and the image {image.shape[:2]} differ in size (H, W).")
        if (box := rle.box(records[i].segmentation)) is not None:
            x0, y0, x1, y1 = box
            on_top[y0:y1, x0:x1][rle.window(records[i].segmentation, box)] = i + 1
    colours = _choose_colours(on_top, len(records))
    _tint(canvas, on_top, colours)
    for i in order:
        _draw_outline(canvas, records[i], colours[i], line)
    if prompts is None:
        given = [record.prompt for record in records if record.prompt and _is_given(record)]
        distinct = {json.dumps(prompt, sort_keys=True): prompt for prompt in given}
        prompts = [Prompt.from_dict(form) for form in distinct.values()]
    for prompt in prompts:
        _draw_prompt(canvas, prompt, line)
    markers = [box for prompt in prompts for box in _marker_boxes(canvas, prompt)]
    lost = draw_labels(canvas, records, on_top, colours, markers)
    if losses is not None:
        losses += lost
    return canvas


def _choose_colours(on_top: np.ndarray, count: int) -> np.ndarray:
    """A colour for each of `count` masks, (N, 3) uint8: in turn, but unlike those of neighbours that have theirs.

    on_top: (H, W), the number from 1 of the mask seen at each pixel, 0 for none.
    """
    palette = np.array(_COLOURS, dtype=np.float64)
    likeness = np.exp(-((palette[:, None] - palette[None]) ** 2).sum(axis=-1) / 100**2)  # (colours, colours)
    step = max(1, max(on_top.shape) // 400)  # neighbours that share no more than a few pixels need no other colour
    small = on_top[::step, ::step]
    sides = [(small[:, 2:], small[:, :-2]), (small[2:], small[:-2])]
    pairs = np.concatenate([np.stack([a[a != b], b[a != b]], axis=1) for a, b in sides])  # (M, 2)
    neighbours: dict[int, set[int]] = {}
    for a, b in np.unique(np.sort(pairs[(pairs > 0).all(axis=1)], axis=1), axis=0).tolist():
        neighbours.setdefault(b - 1, set()).add(a - 1)
    chosen: list[int] = []
    for i in range(count):
        turn = (np.arange(len(palette)) - i) % len(palette)  # 0 for the colour whose turn it is
        cost = likeness[:, [chosen[near] for near in neighbours.get(i, ())]].sum(axis=1)
        chosen.append(int((cost + 1e-3 * turn).argmin()))
    return palette[chosen].astype(np.uint8)


def _tint(canvas: np.ndarray, on_top: np.ndarray, colours: np.ndarray) -> None:
    for y in range(0, len(canvas), _ROWS):  # the arithmetic takes many times the memory of the image
        part, numbers = canvas[y : y + _ROWS], on_top[y : y + _ROWS]
        inside = numbers > 0
        part[inside] = (part[inside] * (1 - _FILL) + colours[numbers[inside] - 1] * _FILL + 0.5).astype(np.uint8)


def _draw_outline(canvas: np.ndarray, record: MaskRecord, colour: np.ndarray, line: int) -> None:
    """A band inside the mask: OpenCV's own contours spill over its border."""
    box = rle.box(record.segmentation)
    if box is None:
        return
    height, width = record.size
    line = int(np.clip(record.area**0.5 / 20, 1, line))  # small masks would be all outline
    # With a margin, since what is eroded depends on what lies around; the border of the image is none of the object.
    x0, y0 = max(box[0] - line, 0), max(box[1] - line, 0)
    x1, y1 = min(box[2] + line, width), min(box[3] + line, height)
    mask, part = rle.window(record.segmentation, (x0, y0, x1, y1)), canvas[y0:y1, x0:x1]
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * line + 1, 2 * line + 1))
    core = cv2.erode(mask.astype(np.uint8), disc)
    part[mask & (core == 0)] = colour


def _is_given(record: MaskRecord) -> bool:
    """Whether somebody pointed at the object; the points of a grid and a detector's boxes would only hide it."""
    return record.crop_box is None and record.detection_score is None


def _draw_prompt(canvas: np.ndarray, prompt: Prompt, line: int) -> None:
    thin = max(1, line // 2)
    if prompt.box is not None:
        x0, y0, x1, y1 = prompt.box
        _draw_line(canvas, np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]]), _WHITE, thin, closed=True)
    if prompt.polygon is not None:
        _draw_line(canvas, prompt.polygon, _WHITE, thin, closed=True)
    if prompt.scribble is not None:
        _draw_line(canvas, prompt.scribble, _FOREGROUND, line + 1, closed=False)
    if prompt.scribble_negative is not None:
        _draw_line(canvas, prompt.scribble_negative, _BACKGROUND, line + 1, closed=False)
    if prompt.points is not None and prompt.labels is not None:
        for point, label in zip(prompt.points, prompt.labels, strict=True):
            _draw_marker(canvas, point, bool(label))


def _draw_line(
    canvas: np.ndarray, vertices: np.ndarray, colour: tuple[int, int, int], thickness: int, closed: bool
) -> None:
    """A line with a soft dark edge, legible on light and on dark."""
    side = max(canvas.shape[:2])
    near = np.clip(vertices, -side, 2 * side)  # a box may reach far outside, beyond what OpenCV can count to
    corners = [np.round(near * 2**_SHIFT).astype(np.int32)]
    shadow = cv2.polylines(canvas.copy(), corners, closed, _BLACK, thickness + 2, cv2.LINE_AA, _SHIFT)
    cv2.addWeighted(canvas, 0.5, shadow, 0.5, 0, dst=canvas)
    cv2.polylines(canvas, corners, closed, colour, thickness, cv2.LINE_AA, _SHIFT)


def _draw_marker(canvas: np.ndarray, point: np.ndarray, foreground: bool) -> None:
    """A disc with a + or - in it, about a fiftieth of the image wide."""
    radius = _marker_radius(canvas)
    x, y = point

    def fixed(*values: float) -> list[int]:
        return [round(value * 2**_SHIFT) for value in values]

    for size, colour in ((_MARKER_EDGE, _BLACK), (1.3, _WHITE), (1.0, _FOREGROUND if foreground else _BACKGROUND)):
        cv2.circle(canvas, fixed(x, y), fixed(radius * size)[0], colour, cv2.FILLED, cv2.LINE_AA, _SHIFT)
    arm, thick = radius * 0.6, max(1, round(radius * 0.22))
    cv2.line(canvas, fixed(x - arm, y), fixed(x + arm, y), _WHITE, thick, cv2.LINE_AA, _SHIFT)
    if foreground:
        cv2.line(canvas, fixed(x, y - arm), fixed(x, y + arm), _WHITE, thick, cv2.LINE_AA, _SHIFT)


def _marker_radius(canvas: np.ndarray) -> float:
    return float(np.clip(max(canvas.shape[:2]) / 85, 5, 60))


def _marker_boxes(canvas: np.ndarray, prompt: Prompt) -> list[tuple[float, float, float, float]]:
    """Boxes x0 y0 x1 y1 of the discs."""
    edge = _marker_radius(canvas) * _MARKER_EDGE
    points = [] if prompt.points is None else prompt.points.tolist()
    return [(x - edge, y - edge, x + edge, y + edge) for x, y in points]
