"""One image of everything mode: opening it, finding its masks, and saying how many there are."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anysam.commands.everything_options import as_typed, finds_objects
from anysam.commands.prompt_files import ImagePrompts, PromptFile
from anysam.commands.words_options import kinds_words
from anysam.errors import ImageError, OptionError

if TYPE_CHECKING:
    import numpy as np

    from anysam.automatic.options import EverythingOptions
    from anysam.describe.interface import Describer
    from anysam.outputs import ImageResult
    from anysam.predictor import Model
    from anysam.rasters import ArraySource, RasterSource
    from anysam.results import MaskRecord
    from anysam.store import EmbeddingStore


@dataclass(frozen=True, eq=False)
class Finder:
    """The loaded models and what is asked of them. settings: what results depend on, in JSON form. describer: None for
    masks without words.
    """

    model: "Model"
    detector: "Model | None"
    options: "EverythingOptions"
    store: "EmbeddingStore | None"
    settings: dict[str, Any]
    seconds: float
    describer: "Describer | None" = None


@dataclass(frozen=True, eq=False)
class Picture:
    """An open image. pixels: (H, W, 3) uint8, or None for one that is only read window by window."""

    source: "ArraySource | RasterSource"
    pixels: "np.ndarray | None"

    @property
    def size(self) -> tuple[int, int]:
        """(H, W)."""
        return self.source.size

    def shape(self) -> "np.ndarray":
        """The pixels, or something of their shape for formats that look at nothing else."""
        import numpy as np

        return np.broadcast_to(np.uint8(0), (*self.size, 3)) if self.pixels is None else self.pixels

    def place(self, name: str) -> "ImageResult":
        """Where the image lies, for formats that say it."""
        from anysam.outputs import ImageResult

        return ImageResult(name, self.size, (), self.source.crs, self.source.transform)

    def close(self) -> None:
        """Close the file, if it is still open."""
        from anysam.rasters import RasterSource

        if isinstance(self.source, RasterSource):
            self.source.close()


def open_picture(path: Path, max_pixels: int | None, *, tiled: bool, drawn: bool, described: bool = False) -> Picture:
    """Open an image file. Raises ImageError, MissingExtraError.

    max_pixels: a larger image is refused; None for the usual limit, which is for images that must be in memory as a
    whole: those that are not cut into tiles, or that are also drawn or described.
    """
    from anysam.images import MAX_PIXELS
    from anysam.rasters import ArraySource, open_image

    source = open_image(path, MAX_PIXELS if max_pixels is None else max_pixels)
    height, width = source.size
    whole = not tiled or drawn or described
    limit = MAX_PIXELS if max_pixels is None and whole else max_pixels
    if limit is not None and height * width > limit:
        causes = [*["--describe out"] * described, *["overlay and cutout out of --format"] * drawn]
        advice = f"leave {' and '.join(causes)}" if tiled else "give --tile 1024, or make it smaller"
        advice = "make it smaller" if max_pixels is not None else advice
        pixels = f"{width}x{height} = {height * width:,} pixels"
        raise ImageError(f"{path} is too large: {pixels}, at most {limit:,} are accepted; {advice}.")
    if isinstance(source, ArraySource):
        return Picture(source, source.pixels)
    return Picture(source, source.read(0, 0, width, height) if whole else None)


def find(
    finder: Finder,
    picture: Picture,
    file: PromptFile | None,
    prompts: ImagePrompts | None,
    progress: Callable[[float], None],
) -> list["MaskRecord"]:
    """The masks of an image: of everything, or for its boxes or points in a file. Raises AnySamError."""
    if prompts is None or file is None:
        image = picture.source if picture.pixels is None else picture.pixels
        try:
            return finder.model.everything(image, finder.options, finder.detector, progress, finder.store)
        except OptionError as error:
            raise OptionError(as_typed(str(error))) from error
    from anysam.automatic.boxes import box_records, point_records
    from anysam.automatic.refine import refine

    values = prompts.in_pixels(picture.size)
    if not len(values):
        return []
    assert picture.pixels is not None  # --tile and given prompts exclude each other
    ask = box_records if file.kind == "box" else point_records
    model, store = finder.model, finder.store
    encoded = model.encode(picture.pixels) if store is None else store.encode(model, picture.pixels)
    records = ask(model, encoded, values, finder.options, labels=prompts.labels, progress=progress)
    scored = [
        record if score is None else replace(record, detection_score=score)
        for record, score in zip(records, prompts.scores, strict=True)
    ]
    return refine([record for record in scored if record.area], finder.options)


def describe_found(
    finder: Finder, picture: Picture, records: list["MaskRecord"], progress: Callable[[float], None]
) -> list["MaskRecord"]:
    """The masks with words, where they are asked for. Raises AnySamError."""
    if finder.describer is None:
        return records
    from anysam.describe.interface import describe_records

    assert picture.pixels is not None  # opened as one that is described
    return describe_records(finder.describer, picture.pixels, records, progress)


def found_words(
    records: Sequence["MaskRecord"], finder: Finder, file: PromptFile | None, prompts: ImagePrompts | None
) -> str:
    """How many masks there are, and of what; if there are none, what might give some."""
    if count := len(records):
        return f"{count:,} mask{'s' if count > 1 else ''}{kinds_words(records) if finder.describer else ''}"
    if file is not None and prompts is not None and not prompts.values:
        return f"no mask, since {file.path} has no {file.kind} for it"
    options, lower = finder.options, []
    if prompts is None and finds_objects(finder.model.variant, finder.detector is not None):
        lower.append("--confidence")
    elif prompts is None:
        lower += [
            f"--pred-iou-thresh ({options.pred_iou_thresh:g})",
            f"--stability-score-thresh ({options.stability_score_thresh:g})",
        ]
    if options.min_area:
        lower.append(f"--min-area ({options.min_area})")
    return f"no mask found; lower {' or '.join(lower)}" if lower else "no mask found"
