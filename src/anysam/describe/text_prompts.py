"""Text prompts for a model of any family: everything mode proposes masks, an image-text model says which a text means.

The published rule is FastSAM's (Zhao et al., "Fast Segment Anything", 2023; CASIA-IVA-Lab/FastSAM@b4ed20c, AGPL-3.0,
known here by a description in words and golden numbers only). Where we differ from it on purpose:
- A probability is mapped back to its mask as the published utils/tools.py does; the published class miscounts.
- The image-text model gets RGB; the published class swaps red and blue.

The rule with negatives is the usual zero-shot classification of CLIP (Radford et al., 2021), one mask at a time.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from PIL import Image

from anysam import rle
from anysam.automatic.everything import ImageStore
from anysam.automatic.instances import FindingModel
from anysam.automatic.options import EverythingOptions
from anysam.describe.crops import check_records, image_source, pictures_of
from anysam.describe.find_options import NEGATIVES, TEMPLATE, FindOptions
from anysam.describe.interface import ImageTextModel
from anysam.encoded_image import EncodedImage
from anysam.errors import OptionError, PromptError
from anysam.letterbox import Letterbox, picture_cells
from anysam.models import InstanceModel, PromptableModel, SelectingModel
from anysam.preprocess import MASK_PROMPT_LOGIT, Preprocess, mask_to_logits
from anysam.prompts import Prompt
from anysam.rasters import ImageSource
from anysam.results import MaskRecord, Prediction

Progress = Callable[[float], None]
Texts = str | Prompt | Sequence[str | Prompt]

CANDIDATES = 3  # masks of an ambiguous prompt
_WIDER = 0.9  # published: a mask that holds more of the chosen one


class ProposingModel(Protocol):
    """What is asked of a model; `anysam.Model` offers it."""

    @property
    def variant(self) -> str: ...

    @property
    def network(self) -> PromptableModel | InstanceModel: ...

    def everything(
        self,
        image: np.ndarray | ImageSource | EncodedImage,
        options: EverythingOptions | None = None,
        detector: Any = None,  # a model of its own kind
        progress: Progress | None = None,
        store: ImageStore | None = None,
    ) -> list[MaskRecord]: ...


def find_by_text(
    model: ProposingModel,
    image: np.ndarray | ImageSource,
    texts: Texts,
    image_text: ImageTextModel,
    options: FindOptions | None = None,
    everything: EverythingOptions | None = None,
    detector: FindingModel | None = None,
    progress: Progress | None = None,
    store: ImageStore | None = None,
) -> list[MaskRecord]:
    """The masks of an image that texts mean: text by text in the order given, the most probable first; [] for none.

    image: RGB uint8 (H, W, 3), or a source of windows. texts: one or several, or prompts of texts. options: how masks
    are chosen. everything, detector, store: how masks are proposed, see `Model.everything`. progress: called with the
    part done, rising to 1. Each proposed mask is shown to image_text once, however many the texts.

    A record is everything mode's with the text as its label and prompt; label_score is the probability that the rule
    gives, label_scores the text's and the negatives', similarity the image-text model's logit. Raises OptionError for
    a model, an image, or options that do not fit, PromptError for an empty text, or a prompt that is none.
    """
    options = check_options(options)
    asked = check_texts(texts)
    _check_scorer(image_text)
    image_source(image)
    options = dataclasses.replace(options, rule=options.rule_for(isinstance(model.network, SelectingModel)))
    _questions(asked, options)  # whether they can be asked, before the work
    records = model.everything(
        image, options=everything, detector=detector, progress=_part(progress, 0, 0.5), store=store
    )
    return choose_by_text(records, image, asked, image_text, options, _part(progress, 0.5, 1))


def choose_by_text(
    records: Sequence[MaskRecord],
    image: np.ndarray | ImageSource,
    texts: Texts,
    image_text: ImageTextModel,
    options: FindOptions | None = None,
    progress: Progress | None = None,
) -> list[MaskRecord]:
    """As `find_by_text`, among masks of the image that are there already. The rule None is "negatives" here."""
    options = check_options(options)
    asked = check_texts(texts)
    _check_scorer(image_text)
    return [record for found in _choose(records, image, asked, image_text, options, progress) for record in found]


def predict_text(
    model: ProposingModel,
    encoded: EncodedImage,
    image: np.ndarray | ImageSource,
    prompt: Prompt | str,
    image_text: ImageTextModel,
    multimask: bool | None = None,
    options: FindOptions | None = None,
    everything: EverythingOptions | None = None,
) -> Prediction:
    """The mask that a text means, on an image that the model has encoded; with multimask up to three, best first.

    image: the one that was encoded. iou_predictions are the probabilities of the rule: of masks that were found already
    it is the text that decides which is best, not their borders. low_res_logits are the masks as they would be given as
    prompts. extras: "text_probabilities", "similarities" and "predicted_ious", (C,) float32 each.

    Where no mask is large or probable enough the answer is one empty mask with score 0 and a similarity that is NaN.
    Raises what `find_by_text` does, and OptionError for another image than the one encoded.
    """
    if not isinstance(prompt, (str, Prompt)):
        raise PromptError(f"A prompt must be a text or an anysam.Prompt, got {type(prompt).__name__}.")
    return predict_texts(model, encoded, image, [prompt], image_text, multimask, options, everything)[0]


def predict_texts(
    model: ProposingModel,
    encoded: EncodedImage,
    image: np.ndarray | ImageSource,
    prompts: Sequence[Prompt | str],
    image_text: ImageTextModel,
    multimask: bool | None = None,
    options: FindOptions | None = None,
    everything: EverythingOptions | None = None,
) -> list[Prediction]:
    """As `predict_text`, for several texts in one pass over the image's masks."""
    options = check_options(options)
    asked = check_texts(prompts)
    _check_scorer(image_text)
    if multimask is not None and not isinstance(multimask, (bool, np.bool_)):
        raise OptionError(f"multimask must be True, False or None, got {multimask!r}.")
    if not isinstance(encoded, EncodedImage):
        raise OptionError(f"An anysam.EncodedImage is needed, got {type(encoded).__name__}; encode the image first.")
    if image_source(image).size != encoded.original_size:
        height, width = encoded.original_size
        found = image_source(image).size
        raise OptionError(
            f"The image has {found[1]}x{found[0]} pixels, but the one that was encoded {width}x{height}; give the "
            "image that was encoded."
        )
    rule = options.rule_for(isinstance(model.network, SelectingModel))
    options = dataclasses.replace(options, rule=rule, limit=CANDIDATES if multimask else 1)
    _questions(asked, options)  # whether they can be asked, before the work
    records = model.everything(encoded, options=everything)
    return [
        _prediction(hits, model.network.preprocess, encoded)
        for hits in _choose(records, image, asked, image_text, options, None)
    ]


def check_options(options: FindOptions | None) -> FindOptions:
    """The options, or the default ones. Raises OptionError for anything else."""
    if options is not None and not isinstance(options, FindOptions):
        raise OptionError(f"options must be anysam.FindOptions, got {type(options).__name__}.")
    return FindOptions() if options is None else options


def check_texts(texts: Texts) -> list[str]:
    """The words of one text or several. Raises PromptError for none, an empty one, or a prompt without a text."""
    if isinstance(texts, (str, Prompt)):
        texts = [texts]
    if not isinstance(texts, Sequence):
        raise PromptError(f"What to find must be a text or a list of texts, got {type(texts).__name__}.")
    if not texts:
        raise PromptError("The list of texts is empty; write what to find, for example 'the red car'.")
    prompts = [Prompt(text=text) if not isinstance(text, Prompt) else text for text in texts]
    words = [prompt.text for prompt in prompts if prompt.text is not None]
    if len(words) != len(prompts):
        raise PromptError("A prompt without a text finds nothing by words; use Prompt(text='the red car').")
    return words


def _check_scorer(image_text: object) -> None:
    if not isinstance(image_text, ImageTextModel):
        raise OptionError(
            f"Texts need an image-text model, which {type(image_text).__name__} is not: it has no method similarities; "
            "use anysam.describe.clip.load_image_text()."
        )


def _questions(texts: Sequence[str], options: FindOptions) -> tuple[list[tuple[str, ...]], dict[str, str]]:
    """For each text the words that it is compared with, itself first; and how all these words are put to the model."""
    if options.rule_for(False) == "published":
        return [(text,) for text in texts], {text: text for text in texts}
    negatives = NEGATIVES if options.negatives is None else options.negatives
    groups = [(text, *(word for word in negatives if word.casefold() != text.casefold())) for text in texts]
    for group in groups:
        if len(group) == 1:
            raise OptionError(
                f"The negatives of {group[0]!r} are the text itself; give others, or None for the usual ones."
            )
    template = options.template or TEMPLATE
    return groups, {word: template.replace("{}", word) for group in groups for word in group}


def _choose(
    records: Sequence[MaskRecord],
    image: np.ndarray | ImageSource,
    texts: Sequence[str],
    image_text: ImageTextModel,
    options: FindOptions,
    progress: Progress | None,
) -> list[list[MaskRecord]]:
    """The masks of each text, best first."""
    published = options.rule_for(False) == "published"
    groups, sentences = _questions(texts, options)
    candidates = [record for record in records if record.area > options.min_area]
    check_records(candidates, image_source(image).size)
    found: list[list[MaskRecord]] = [[] for _ in texts]
    if candidates:
        masks, which = _distinct(candidates)
        pictures = pictures_of(image, masks, options.view or ("canvas" if published else "blurred"))
        counted = _counted(pictures, len(masks), progress)
        logits = _logits(image_text, counted, len(masks), list(sentences.values()))[which]  # (K, T)
        column = {word: i for i, word in enumerate(sentences)}
        overlaps = _Overlaps(candidates)
        for own, group in zip(found, groups, strict=True):
            hits = _hits(logits[:, [column[word] for word in group]], published, overlaps, options)
            own += [_record(candidates[hit.mask], group, hit) for hit in hits]
    if progress is not None:
        progress(1.0)
    return found


def _distinct(records: Sequence[MaskRecord]) -> tuple[list[MaskRecord], list[int]]:
    """The records without those of a mask that came before, and for each of all records its place among them.

    FastSAM's boxes may differ where its masks do not, and both count in the published rule.
    """
    places: dict[str, int] = {}
    masks: list[MaskRecord] = []
    for record in records:
        if places.setdefault(str(record.segmentation["counts"]), len(places)) == len(masks):
            masks.append(record)
    return masks, [places[str(record.segmentation["counts"])] for record in records]


def _logits(
    image_text: ImageTextModel, pictures: Iterator[np.ndarray], number: int, sentences: Sequence[str]
) -> np.ndarray:
    """Logits (K, T) float32 of the image-text model, checked."""
    logits = np.asarray(image_text.similarities(pictures, sentences), dtype=np.float32)
    if logits.shape != (number, len(sentences)):
        raise OptionError(
            f"{type(image_text).__name__}.similarities must give {(number, len(sentences))} for {number} pictures and "
            f"{len(sentences)} texts, got {logits.shape}."
        )
    if not np.isfinite(logits).all():
        raise OptionError(
            f"{type(image_text).__name__}.similarities gave values that are no numbers; its weights are damaged or its "
            "number format is too narrow: use float32."
        )
    return logits


class _Hit(NamedTuple):
    """A mask, by its number among the candidates, and how probable the words of a group are for it, (W,) float32."""

    mask: int
    probabilities: np.ndarray
    similarity: float


def _hits(logits: np.ndarray, published: bool, overlaps: "_Overlaps", options: FindOptions) -> list[_Hit]:
    """The masks that a text means, from logits (K, W) of the text and its negatives; best first."""
    probabilities = _softmax(logits.T).T if published else _softmax(logits)  # (K, W)
    order = np.lexsort((-logits[:, 0], -probabilities[:, 0]))
    if options.threshold is not None:
        order = order[probabilities[order, 0] >= options.threshold]
    most = options.limit or (len(order) if options.threshold is not None else 1)
    hits: list[_Hit] = []
    for i in order:
        mask = overlaps.wider(int(i)) if options.wider else int(i)
        if len(hits) == most:
            break
        if not any(mask == hit.mask or overlaps.share(mask, hit.mask) > options.overlap for hit in hits):
            hits.append(_Hit(mask, probabilities[i], float(logits[i, 0])))
    return hits


def _softmax(logits: np.ndarray) -> np.ndarray:
    """Along rows (R, N), float32 as published."""
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


class _Overlaps:
    """How masks lie in each other; run lengths are read on use, once."""

    def __init__(self, records: Sequence[MaskRecord]) -> None:
        self._records = records
        self._regions: dict[int, _Region] = {}

    def region(self, i: int) -> "_Region":
        if i not in self._regions:
            runs, (height, _) = rle.read_rle(self._records[i].segmentation)
            spans = rle.runs_to_spans(runs)
            self._regions[i] = _Region(spans, rle.spans_area(spans), rle.spans_to_box(spans, height))
        return self._regions[i]

    def share(self, i: int, j: int) -> float:
        """The part of the smaller of two masks that lies in the other."""
        return _common(self.region(i), self.region(j)) / min(self.region(i).area, self.region(j).area)

    def wider(self, i: int) -> int:
        """The largest mask with more than _WIDER of mask i in it; the first of several as large."""
        chosen = self.region(i)
        order = sorted(range(len(self._records)), key=lambda j: -self._records[j].area)
        return next(j for j in order if _common(self.region(j), chosen) > _WIDER * chosen.area)


class _Region(NamedTuple):
    """A mask's spans (N, 2), pixels, and box."""

    spans: np.ndarray
    area: int
    box: rle.Box | None


def _common(a: _Region, b: _Region) -> int:
    """Pixels in both; of masks whose boxes are apart without a look at their spans."""
    if (
        a.box is None
        or b.box is None
        or any(max(a.box[k], b.box[k]) >= min(a.box[k + 2], b.box[k + 2]) for k in (0, 1))
    ):
        return 0
    return rle.spans_intersection(a.spans, b.spans)


def _record(record: MaskRecord, words: Sequence[str], hit: _Hit) -> MaskRecord:
    """The record with what a text, the first of the words, found."""
    scores = sorted(zip(words, hit.probabilities.tolist(), strict=True), key=lambda named: -named[1])
    return dataclasses.replace(
        record,
        prompt={"text": words[0]},
        label=words[0],
        label_score=float(hit.probabilities[0]),
        label_scores=dict(scores),
        similarity=hit.similarity,
    )


def _counted(pictures: Iterator[np.ndarray], number: int, progress: Progress | None) -> Iterator[np.ndarray]:
    for done, picture in enumerate(pictures, start=1):
        yield picture
        if progress is not None:
            progress(done / (number + 1))


def _part(progress: Progress | None, start: float, end: float) -> Progress | None:
    """Progress on a part of the work, from 0 to 1, as progress on the whole."""
    return None if progress is None else lambda done: progress(start + (end - start) * done)


def _prediction(records: Sequence[MaskRecord], frame: Preprocess | Letterbox, encoded: EncodedImage) -> Prediction:
    """Records of a text, best first, as a prediction."""
    masks = [record.to_mask() for record in records] or [np.zeros(encoded.original_size, dtype=np.bool_)]
    scores = [record.label_score for record in records] or [0.0]
    extras = {
        "text_probabilities": scores,
        "similarities": [record.similarity for record in records] or [np.nan],
        "predicted_ious": [record.predicted_iou for record in records] or [0.0],
    }
    return Prediction(
        np.stack(masks),
        np.array(scores, dtype=np.float32),
        np.stack([_low_res_logits(mask, frame, encoded) for mask in masks]),
        {name: np.array(values, dtype=np.float32) for name, values in extras.items()},
    )


def _low_res_logits(mask: np.ndarray, frame: Preprocess | Letterbox, encoded: EncodedImage) -> np.ndarray:
    """A mask (H, W) bool as logits (h, w) float32 in the model's frame."""
    low_res_size = frame.low_res_size(encoded.input_size)
    if isinstance(frame, Preprocess):
        return mask_to_logits(mask, frame, encoded.input_size, low_res_size).numpy()
    top, left, bottom, right = picture_cells(low_res_size, encoded.original_size)
    resized = Image.fromarray(mask.astype(np.uint8) * 255).resize(
        (right - left, bottom - top), Image.Resampling.BILINEAR
    )
    cells = np.zeros(low_res_size, dtype=np.float32)
    cells[top:bottom, left:right] = np.asarray(resized, dtype=np.float32) / 255
    return (2 * cells - 1) * np.float32(MASK_PROMPT_LOGIT)
