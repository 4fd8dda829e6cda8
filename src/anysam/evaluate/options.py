"""What each protocol can be told: frozen dataclasses whose fields are flags. No torch, no numpy."""

from dataclasses import dataclass

from anysam.errors import OptionError
from anysam.evaluate.protocols import option

PRESETS = ("default", "whole", "part", "subpart", "dense", "fast")


@dataclass(frozen=True)
class ClickOptions:
    """The first click is the mask's centre-most pixel, each further one that of the largest error of the mask before.
    Of the three masks of the first click the one with the highest predicted IoU counts; "best of 3" takes the best one.
    """

    clicks: tuple[int, ...] = option((1, 2, 3, 5, 9), "after how many clicks the IoU is taken, rising from 1")
    masks_per_image: int = option(0, "choose at most N masks of an image, by the seed; 0: all")
    least_area: int = option(16, "leave out smaller masks, in pixels (ours)")
    mask_prompt: str = option(
        "auto",
        "give the previous logits along with later clicks; auto: to models that take masks",
        ("auto", "yes", "no"),
    )
    multimask: bool = option(
        False, "the surest of three masks after later clicks too, as EfficientViT-SAM's evaluation"
    )
    seed: int = option(0, "of what is chosen")

    def __post_init__(self) -> None:
        rising = all(a < b for a, b in zip(self.clicks, self.clicks[1:], strict=False))
        if not self.clicks or self.clicks[0] < 1 or not rising:
            raise OptionError(f"--clicks must be rising numbers from 1 on, such as 1,2,3,5,9, got {self.clicks}.")
        _at_least("--masks-per-image", self.masks_per_image, 0)
        _at_least("--least-area", self.least_area, 1)


@dataclass(frozen=True)
class BoxOptions:
    """The tight box around each annotated mask is the prompt. Scores by size follow COCO's limits."""

    masks_per_image: int = option(0, "choose at most N masks of an image, by the seed; 0: all")
    least_area: int = option(16, "leave out smaller masks, in pixels (ours)")
    jitter: float = option(0.0, "noise on the edges: its deviation, as a part of the box's side; SAM's training: 0.1")
    multimask: bool = option(False, "the surest of three masks, as EfficientViT-SAM's evaluation; else the only one")
    baselines: bool = option(False, "also score the box itself as mask, and OpenCV's GrabCut from it")
    seed: int = option(0, "of what is chosen and of the jitter")

    def __post_init__(self) -> None:
        _at_least("--masks-per-image", self.masks_per_image, 0)
        _at_least("--least-area", self.least_area, 1)
        _between("--jitter", self.jitter, 0, 1)


@dataclass(frozen=True)
class InstanceOptions:
    """Each box that a detector found becomes a mask with the detector's class and score. --data, or --annotations, is
    the COCO or LVIS JSON to compare with; all its images count, also those without annotations.
    """

    detections: str = option("", "JSON of the detector's results: image_id, category_id, bbox (x y w h), score")
    annotations: str = option("", "COCO or LVIS JSON to compare with (default: that of --data)")
    rules: str = option("auto", "which rules count: LVIS has images without all labels", ("auto", "coco", "lvis"))
    max_detections: int = option(0, "of an image, the best by score; 0: 100, and 300 by the rules of LVIS")
    least_score: float = option(0.0, "leave out detections below this score")
    multimask: bool = option(False, "the surest of three masks, as EfficientViT-SAM's evaluation; else the only one")
    refine: bool = option(False, "ask again with the surest mask's logits and the box, as in SAM's paper")

    def __post_init__(self) -> None:
        _at_least("--max-detections", self.max_detections, 0)
        _between("--least-score", self.least_score, 0, 1)


@dataclass(frozen=True)
class EverythingProtocolOptions:
    """Every annotated mask counts with the best mask that everything mode found; masks that nobody annotated are no
    fault.
    """

    preset: str = option("default", "how masks are found, as `anysam everything --preset`", PRESETS)
    points_per_side: int = option(0, "points of the grid along each side; 0: the preset's")
    pred_iou_thresh: float = option(-1.0, "drop masks with a lower predicted IoU; -1: the preset's")
    stability_score_thresh: float = option(-1.0, "drop less stable masks; -1: the preset's")
    box_nms_thresh: float = option(-1.0, "of masks whose boxes overlap more keep the better; -1: the preset's")
    detector: str = option("", "ask at this model's boxes instead of a grid; none: a grid (default: as the authors)")
    confidence: float = option(-1.0, "least score of found objects, for detectors and FastSAM; -1: as published")
    least_area: int = option(16, "leave out smaller annotated masks, in pixels (ours)")

    def __post_init__(self) -> None:
        _check_everything(self)


@dataclass(frozen=True)
class ProposalOptions:
    """Everything mode as SAM's appendix D.3 has it: 64 x 64 points, no filters, suppression above a box IoU of 0.9;
    masks in the order of the average of predicted IoU and stability. Recall is the average over the IoU thresholds
    .5:.05:.95.
    """

    proposals: tuple[int, ...] = option((10, 100, 1000), "of how many masks of an image the recall is taken")
    annotations: str = option("", "COCO or LVIS JSON with categories and frequencies (default: the masks of --data)")
    preset: str = option("default", "where no number below says otherwise", PRESETS)
    points_per_side: int = option(64, "points of the grid along each side; 0: the preset's")
    pred_iou_thresh: float = option(0.0, "drop masks with a lower predicted IoU; -1: the preset's")
    stability_score_thresh: float = option(0.0, "drop less stable masks; -1: the preset's")
    box_nms_thresh: float = option(0.9, "of masks whose boxes overlap more keep the better; -1: the preset's")
    detector: str = option("", "ask at this model's boxes instead of a grid; none: a grid (default: as the authors)")
    confidence: float = option(-1.0, "least score of found objects, for detectors and FastSAM; -1: as published")

    def __post_init__(self) -> None:
        rising = all(a < b for a, b in zip(self.proposals, self.proposals[1:], strict=False))
        if not self.proposals or self.proposals[0] < 1 or not rising:
            raise OptionError(
                f"--proposals must be rising numbers from 1 on, such as 10,100,1000, got {self.proposals}."
            )
        _check_everything(self)


@dataclass(frozen=True)
class EdgeOptions:
    """The outlines of everything mode's masks as a map of edges, matched with boundaries that people drew. --data is
    BSDS500's folder with images/ and groundTruth/ (its part test unless --split names another), or folders with an
    annotations.json whose masks tell the annotator.
    """

    points_per_side: int = option(16, "points of the grid along each side")
    box_nms_thresh: float = option(0.7, "of masks whose boxes overlap more keep the better")
    thresholds: int = option(99, "at how many strengths of an edge is counted, evenly spread")
    max_distance: float = option(0.0075, "how far a match may be, as a part of the image's diagonal")
    confidence: float = option(-1.0, "least score of found objects, for FastSAM; -1: as published")

    def __post_init__(self) -> None:
        # All candidates of a grid are held at once, at low resolution: 64 x 64 points with SAM are 2.4 GB.
        _between("--points-per-side", self.points_per_side, 1, 64)
        _between("--box-nms-thresh", self.box_nms_thresh, 0, 1)
        _between("--thresholds", self.thresholds, 1, 999)
        _between("--max-distance", self.max_distance, 0, 0.1)
        if self.confidence != -1:
            _between("--confidence", self.confidence, 0, 1)


@dataclass(frozen=True)
class LabelOptions:
    """Each annotated object is shown to a model by its box, and named with one of the data set's own categories.
    Tokenize Anything (--model tap_vit_b ...) names what it cuts out itself; for the masks of other models CLIP does.
    --data is a COCO or LVIS JSON, or folders with an annotations.json each.
    """

    prompt: str = option(
        "box", "what is shown: the annotated box, from which the model cuts out, or the mask itself", ("box", "mask")
    )
    describer: str = option("", "who names a mask, as `anysam describe --describer` (the model itself if it can; clip)")
    labels: str = option("", "names to choose from, as `anysam describe --labels` (the data set's categories)")
    template: str = option("", "what is asked of a name, with {} in its place (that of the describer)")
    text_encoder: str = option("", "folder that turns names into labels of Tokenize Anything, if none are published")
    average_precision: bool = option(False, "also the box AP of Tokenize Anything's eval_cls.py, from the same answers")
    masks_per_image: int = option(0, "choose at most N masks of an image, by the seed; 0: all")
    least_area: int = option(1, "leave out smaller masks, in pixels")
    seed: int = option(0, "of what is chosen")

    def __post_init__(self) -> None:
        _at_least("--masks-per-image", self.masks_per_image, 0)
        _at_least("--least-area", self.least_area, 1)
        if self.template and self.template.count("{}") != 1:
            raise OptionError(f"--template must have {{}} once, in the place of the name, got {self.template!r}.")
        if self.average_precision and (self.prompt == "mask" or self.masks_per_image or self.least_area > 1):
            raise OptionError(
                "--average-precision is of all boxes; leave out --prompt mask, --masks-per-image and --least-area."
            )


@dataclass(frozen=True)
class CaptionOptions:
    """Each annotated region is shown to a model of Tokenize Anything (--model tap_vit_b ...) by its box, and the
    caption it writes is compared with what people wrote. --data is Visual Genome's region_descriptions.json, or a
    COCO-style JSON whose annotations have `bbox` and `caption` (or `captions`), such as GRiT's test.json of Visual
    Genome.
    """

    beams: int = option(1, "captions by a beam search this wide; 1: the most probable next token, as the authors")
    max_tokens: int = option(0, "end captions after so many tokens; 0: what the model can write")
    tokenizer: str = option("", "the captions' tokenizer, a file (the published one)")
    join: bool = option(False, "annotations with the same box are one region with several references")
    regions_per_image: int = option(0, "choose at most N regions of an image, by the seed; 0: all")
    seed: int = option(0, "of what is chosen")

    def __post_init__(self) -> None:
        _between("--beams", self.beams, 1, 16)
        _at_least("--max-tokens", self.max_tokens, 0)
        _at_least("--regions-per-image", self.regions_per_image, 0)


def _check_everything(options: EverythingProtocolOptions | ProposalOptions) -> None:
    _at_least("--points-per-side", options.points_per_side, 0)
    for name in ("pred_iou_thresh", "stability_score_thresh", "box_nms_thresh", "confidence"):
        value = getattr(options, name)
        if value != -1:
            _between(f"--{name.replace('_', '-')}", value, 0, 1)


def _at_least(flag: str, value: float, least: float) -> None:
    if value < least:
        raise OptionError(f"{flag} must be at least {least}, got {value}.")


def _between(flag: str, value: float, least: float, most: float) -> None:
    if not least <= value <= most:
        raise OptionError(f"{flag} must be from {least} to {most}, got {value}.")
