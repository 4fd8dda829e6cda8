"""Mask records -> files: mask PNGs, an overlay, cut-outs, COCO JSON and our own JSON. No inference.

Every file is written under a temporary name in its own folder and renamed when complete, so that a reader, a crash or a
full disk never leaves half a file behind. All failures are OutputError (OptionError for a wrong argument).
"""

import difflib
import errno
import json
import os
import secrets
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import cv2
import numpy as np
from PIL import Image

from anysam.errors import OptionError, OutputError
from anysam.masks import mask_to_box
from anysam.prompts import Prompt
from anysam.results import MaskRecord

FORMATS = ("png", "overlay", "cutout", "coco", "json")

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
_SHIFT = 4  # OpenCV draws at 1/16 pixel


@dataclass(frozen=True)
class ImageResult:
    """One image of a COCO file: its file name as written there, its size (H, W) and the masks on it."""

    file_name: str
    size: tuple[int, int]
    records: tuple[MaskRecord, ...]


def write_atomic(path: str | Path, write: Callable[[BinaryIO], object]) -> None:
    """Call `write` with an open binary file that becomes `path` when it is complete, replacing what was there.

    The folder must exist. When anything fails, an interrupt included, the temporary file is removed and `path` is as
    before. Raises OutputError naming `path` for every OSError.
    """
    path = Path(path)
    temporary = path.with_name(f".{secrets.token_hex(8)}.tmp")  # not the target's name: that may be as long as allowed
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
        try:
            with os.fdopen(descriptor, "wb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())  # a full disk may only show here, and must before the rename
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise OutputError(_explain(path, error)) from error


def write_mask_png(path: str | Path, mask: np.ndarray) -> None:
    """Write a mask (H, W) bool as an 8-bit grey PNG: 255 on the object, 0 elsewhere."""
    _write_png(path, Image.fromarray(mask.astype(np.uint8) * 255))


def write_overlay_png(
    path: str | Path, image: np.ndarray, records: Sequence[MaskRecord], prompts: Sequence[Prompt] | None = None
) -> None:
    """Write `draw_overlay` as a PNG."""
    _write_png(path, Image.fromarray(draw_overlay(image, records, prompts)))


def write_cutout_png(path: str | Path, image: np.ndarray, mask: np.ndarray) -> None:
    """Write the object alone as an RGBA PNG, cropped to the mask's box.

    image: (H, W, 3) uint8 RGB. mask: (H, W) bool; an empty one gives a transparent image of the whole size. Transparent
    pixels are black inside: nothing of the background is kept. Raises OptionError when the sizes differ.
    """
    if mask.shape != image.shape[:2]:
        raise OptionError(f"The mask {mask.shape} and the image {image.shape[:2]} differ in size (H, W).")
    box = mask_to_box(mask)
    x0, y0, x1, y1 = (0, 0, mask.shape[1], mask.shape[0]) if box is None else box.astype(int).tolist()
    inside = mask[y0:y1, x0:x1, None]  # (h, w, 1)
    rgba = np.concatenate([image[y0:y1, x0:x1] * inside, inside * np.uint8(255)], axis=2)  # (h, w, 4)
    _write_png(path, Image.fromarray(rgba))


def write_coco_json(path: str | Path, results: Sequence[ImageResult]) -> None:
    """Write a COCO instances file: RLE segmentations, bbox x y width height, score; one category for each label.

    Masks without a label are of the category "object".
    """
    names = sorted({record.label or "object" for result in results for record in result.records} or {"object"})
    categories = {name: number for number, name in enumerate(names, start=1)}
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image_id, result in enumerate(results, start=1):
        height, width = result.size
        images.append({"id": image_id, "file_name": result.file_name, "height": height, "width": width})
        for record in result.records:
            x0, y0, x1, y1 = record.box
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": categories[record.label or "object"],
                    "segmentation": record.segmentation,
                    "area": record.area,
                    "bbox": [x0, y0, x1 - x0, y1 - y0],
                    "iscrowd": 0,
                    "score": record.predicted_iou,
                }
            )
    document = {
        "info": {"description": "Masks predicted by anysam"},
        "images": images,
        "annotations": annotations,
        "categories": [{"id": number, "name": name} for name, number in categories.items()],
    }
    _write_json(path, document)


def result_to_dict(image_path: str | Path, size: tuple[int, int], records: Sequence[MaskRecord]) -> dict[str, Any]:
    """The JSON form of one image's result: {"image", "size": [H, W], "masks": [MaskRecord.to_dict, ...]}."""
    return {"image": str(image_path), "size": list(size), "masks": [record.to_dict() for record in records]}


def write_result_json(
    path: str | Path, image_path: str | Path, size: tuple[int, int], records: Sequence[MaskRecord]
) -> None:
    """Write `result_to_dict` as JSON."""
    _write_json(path, result_to_dict(image_path, size, records))


def output_stems(image_paths: Sequence[str | Path]) -> list[str]:
    """One file-name stem for each image, all different: `cat`, then `cat_2` for another cat.jpg or a cat.png.

    Names that differ only by case count as equal, since some file systems cannot tell them apart.
    """
    wanted = [Path(path).stem for path in image_paths]
    reserved = {stem.casefold() for stem in wanted}
    taken: set[str] = set()
    stems = []
    for stem in wanted:
        name, number = stem, 1
        while _claims(name) & taken or (number > 1 and name.casefold() in reserved):
            number += 1
            name = f"{stem}_{number}"
        taken |= _claims(name)
        stems.append(name)
    return stems


def _claims(stem: str) -> set[str]:
    return {stem.casefold(), f"{stem}.coco".casefold()}  # "cat.coco.json" is also the JSON of an image cat.coco.jpg


def write_outputs(
    image_path: str | Path,
    image: np.ndarray,
    records: Sequence[MaskRecord],
    out_dir: str | Path,
    formats: Collection[str],
    stem: str | None = None,
) -> list[Path]:
    """Write one image's results into `out_dir` (made if missing) and return the paths, in the order of FORMATS.

    image: (H, W, 3) uint8 RGB. formats: of FORMATS: png `<stem>_mask_<i>.png`, overlay `<stem>_overlay.png`, cutout
    `<stem>_cutout_<i>.png`, coco `<stem>.coco.json`, json `<stem>.json`; i counts the records from 0. stem: the image's
    own by default; for several images pass those of `output_stems`, so that equal names do not overwrite each other.
    Raises OptionError for an unknown format, OutputError when a file cannot be written.
    """
    check_formats(formats)
    folder = make_folder(out_dir)
    name = Path(image_path).stem if stem is None else stem
    size = (image.shape[0], image.shape[1])
    masks = [record.to_mask() for record in records] if {"png", "cutout"} & set(formats) else []
    written: list[Path] = []
    if "png" in formats:
        for i, mask in enumerate(masks):
            written.append(folder / f"{name}_mask_{i}.png")
            write_mask_png(written[-1], mask)
    if "overlay" in formats:
        written.append(folder / f"{name}_overlay.png")
        write_overlay_png(written[-1], image, records)
    if "cutout" in formats:
        for i, mask in enumerate(masks):
            written.append(folder / f"{name}_cutout_{i}.png")
            write_cutout_png(written[-1], image, mask)
    if "coco" in formats:
        written.append(folder / f"{name}.coco.json")
        write_coco_json(written[-1], [ImageResult(Path(image_path).name, size, tuple(records))])
    if "json" in formats:
        written.append(folder / f"{name}.json")
        write_result_json(written[-1], image_path, size, records)
    return written


def check_formats(formats: Collection[str]) -> None:
    """Raise OptionError when a format is not one of FORMATS, naming the nearest."""
    for given in formats:
        if given not in FORMATS:
            near = difflib.get_close_matches(given, FORMATS, n=1)
            hint = f"; did you mean '{near[0]}'?" if near else "."
            raise OptionError(f"Unknown output format '{given}', accepted are {', '.join(FORMATS)}{hint}")


def make_folder(path: str | Path) -> Path:
    """Create a folder and its parents if missing. Raises OutputError when that fails or the folder is not writable."""
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(_explain(folder, error)) from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise OutputError(f"The folder {folder} is not writable; choose another one.")
    return folder


def draw_overlay(
    image: np.ndarray, records: Sequence[MaskRecord], prompts: Sequence[Prompt] | None = None
) -> np.ndarray:
    """Lay masks and prompts on a photograph: (H, W, 3) uint8 RGB -> the same, the input untouched.

    Each record is tinted and outlined in its own colour, small masks above large ones; points are drawn as green + and
    red - discs, boxes, outlines and strokes as thin lines. prompts: by default those of the records.
    Raises OptionError when a record belongs to an image of another size.
    """
    canvas = np.ascontiguousarray(image).copy()
    line = max(2, round(max(image.shape[:2]) / 640))  # 2 pixels up to 1600, and as thin to the eye on larger images
    order = sorted(range(len(records)), key=lambda i: -records[i].area)
    for i in order:
        if records[i].size != image.shape[:2]:
            raise OptionError(f"The mask {records[i].size} and the image {image.shape[:2]} differ in size (H, W).")
        _draw_mask(canvas, records[i].to_mask(), _COLOURS[i % len(_COLOURS)], line)
    if prompts is None:
        distinct = {json.dumps(record.prompt, sort_keys=True): record.prompt for record in records if record.prompt}
        prompts = [Prompt.from_dict(form) for form in distinct.values()]
    for prompt in prompts:
        _draw_prompt(canvas, prompt, line)
    return canvas


def _draw_mask(canvas: np.ndarray, mask: np.ndarray, colour: tuple[int, int, int], line: int) -> None:
    canvas[mask] = (canvas[mask] * (1 - _FILL) + np.array(colour) * _FILL + 0.5).astype(np.uint8)
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * line + 1, 2 * line + 1))
    core = cv2.erode(mask.astype(np.uint8), disc)
    canvas[mask & (core == 0)] = colour  # a band inside the mask: OpenCV's own contours spill over its border


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
    radius = float(np.clip(max(canvas.shape[:2]) / 85, 5, 60))
    x, y = point

    def fixed(*values: float) -> list[int]:
        return [round(value * 2**_SHIFT) for value in values]

    for size, colour in ((1.45, _BLACK), (1.3, _WHITE), (1.0, _FOREGROUND if foreground else _BACKGROUND)):
        cv2.circle(canvas, fixed(x, y), fixed(radius * size)[0], colour, cv2.FILLED, cv2.LINE_AA, _SHIFT)
    arm, thick = radius * 0.6, max(1, round(radius * 0.22))
    cv2.line(canvas, fixed(x - arm, y), fixed(x + arm, y), _WHITE, thick, cv2.LINE_AA, _SHIFT)
    if foreground:
        cv2.line(canvas, fixed(x, y - arm), fixed(x, y + arm), _WHITE, thick, cv2.LINE_AA, _SHIFT)


def _write_png(path: str | Path, image: Image.Image) -> None:
    write_atomic(path, lambda file: image.save(file, "PNG", compress_level=4))  # 6 is twice as slow for 3 % less


def _write_json(path: str | Path, document: dict[str, Any]) -> None:
    text = json.dumps(document, ensure_ascii=False, allow_nan=False)
    # A file name that is not UTF-8 reaches us as lone surrogates; escaped with a backslash they are valid JSON.
    data = text.encode("utf-8", "backslashreplace")

    def write(file: BinaryIO) -> None:
        file.write(data)

    write_atomic(path, write)


def _explain(path: Path, error: OSError) -> str:
    reasons = {
        errno.ENOSPC: "the disk is full; free some space or choose another folder",
        errno.EDQUOT: "the disk quota is used up; free some space or choose another folder",
        errno.EACCES: "permission is denied; choose a folder you may write to",
        errno.EPERM: "permission is denied; choose a folder you may write to",
        errno.EROFS: "the file system is read-only; choose another folder",
        errno.ENOENT: "its folder does not exist; create it first",
        errno.ENOTDIR: "a part of its path is a file, not a folder",
        errno.EEXIST: "a file of that name is in the way; choose another folder",
        errno.EISDIR: "a folder of that name is in the way; remove it or choose another folder",
        errno.ENAMETOOLONG: "the name is too long; rename the image or choose a shorter folder",
    }
    reason = reasons.get(error.errno or 0, error.strerror or str(error))
    return f"{path} cannot be written: {reason}."
