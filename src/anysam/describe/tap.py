"""Words by Tokenize Anything: for the regions of its own prompts, and for masks of any family.

For a mask that is there already, the model is shown where it is, and the region that overlaps the mask most speaks for
it.
"""

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from anysam.automatic.everything import ImageStore
from anysam.catalogue import find_variant
from anysam.derived_prompts import check_points
from anysam.describe.interface import Words
from anysam.describe.labels import Say
from anysam.describe.mask_prompts import ShownMask, overlap, show_mask
from anysam.describe.tap_words import DescribeOptions as DescribeOptions  # a name that callers of this module use
from anysam.describe.tap_words import Progress, SpeakingModel, Wording, check_speaking, prepare_wording, write_words
from anysam.encoded_image import EncodedImage
from anysam.errors import OptionError, PromptError
from anysam.preprocess import prompt_tokens
from anysam.prompts import Prompt, resolve_prompt
from anysam.results import MaskRecord

# Masks of prompts that are held at once; one prompt, from which a mask is chosen, may have 4.
_MASK_BYTES, _MOST_PROMPTS, _MASKS = 256 * 1024 * 1024, 64, 4

# Masks shown at once. Beyond a few prompts there is nothing more to share on a CPU (benchmarks/README.md).
_AT_ONCE_CPU, _AT_ONCE_GPU = 8, 64

# Where the region of the box overlaps the mask at least so much, the model sees what is meant. Else it is asked again,
# with the point alone, for which it has three masks of its own.
_SURE = 0.8

# Below this the words are of another thing as much as of the mask.
_DOUBTFUL = 0.5

# How much of the time the steps take, measured with tap_vit_b on a CPU (benchmarks/describe.py).
_ENCODE, _SHOW, _CAPTION = 120.0, 1.0, 1.0


# --- prompts ----------------------------------------------------------------------------------------------------------


@torch.inference_mode()
def describe_prompts(
    model: SpeakingModel, encoded: EncodedImage, prompts: Sequence[Prompt], options: DescribeOptions | None = None
) -> list[MaskRecord]:
    """A record for each prompt, in their order: mask, predicted IoU, prompt, and the words that the options ask for.

    prompts: of any kind but texts, as `Model.predict` takes them; it makes the masks. None of them gives [].

    Raises OptionError for a model without words, an encoding of another one, options that cannot be or numbers that are
    not finite; PromptError; and what `prepare_wording` raises. What can be known before anything is computed is.
    """
    options = DescribeOptions() if options is None else options
    if not isinstance(options, DescribeOptions):
        raise OptionError(f"options must be anysam.DescribeOptions, got {type(options).__name__}.")
    check_speaking(model)
    _check_prompts(model, encoded, prompts)
    wording = prepare_wording(options)
    network = check_speaking(model, wording)
    records: list[MaskRecord] = []
    tokens, embeddings = [], []
    for some in _parts(prompts, encoded.original_size):
        for prompt, prediction in zip(some, model.predict(encoded, some), strict=True):
            best = prediction.best
            records.append(MaskRecord.from_mask(prediction.masks[best], prediction.iou_predictions[best], prompt))
            tokens.append(prediction.extras["semantic_tokens"][best])
            embeddings.append(prediction.extras["semantic_embeddings"][best])
    if not records:
        return []
    semantic_tokens, semantic_embeddings = (
        torch.from_numpy(np.stack(rows)).to(model.device) for rows in (tokens, embeddings)
    )
    found = write_words(network, wording, semantic_tokens, semantic_embeddings, warnings.warn)
    return [words.added_to(record) for words, record in zip(found, records, strict=True)]


def _check_prompts(model: SpeakingModel, encoded: EncodedImage, prompts: Sequence[Prompt]) -> None:
    """Raise PromptError for a prompt that does not fit the image, with its number; OptionError for the encoding."""
    model.predict(encoded, [])  # whether it made the encoding
    most = find_variant(model.variant).max_points
    for number, prompt in enumerate(prompts, start=1):
        try:
            if not isinstance(prompt, Prompt):
                raise PromptError(f"A prompt must be an anysam.Prompt, got {type(prompt).__name__}.")
            check_points(resolve_prompt(prompt, encoded.original_size, most), most, model.variant)
        except PromptError as error:
            raise (
                error if len(prompts) == 1 else PromptError(f"Prompt {number} of {len(prompts)}: {error}")
            ) from error


def _parts(prompts: Sequence[Prompt], size: tuple[int, int]) -> Iterator[list[Prompt]]:
    """The prompts in groups whose masks, for an image of `size` (H, W), may be held at once."""
    at_once = min(_MOST_PROMPTS, max(1, _MASK_BYTES // (_MASKS * size[0] * size[1])))
    for start in range(0, len(prompts), at_once):
        yield list(prompts[start : start + at_once])


# --- masks ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class TapDescriber:
    """A `Describer` that shows masks of any family to a model with words. `anysam.load_describer` makes it.

    store: where encoded images are kept and looked up, such as `anysam.EmbeddingStore`. say: called with a sentence
    when masks got no words, or those of a region that overlaps them little. Raises OptionError where model and wording
    do not fit.
    """

    model: SpeakingModel
    wording: Wording
    store: ImageStore | None = None
    say: Say | None = None

    def __post_init__(self) -> None:
        check_speaking(self.model, self.wording)

    @property
    def names(self) -> tuple[str, ...]:
        """All that a label can be; empty if labels are not asked for."""
        return () if self.wording.vocabulary is None else self.wording.vocabulary.names

    @torch.inference_mode()
    def words(self, image: np.ndarray, records: Sequence[MaskRecord], progress: Progress | None = None) -> list[Words]:
        """Words for each mask of an image (H, W, 3) uint8 RGB; the masks have pixels, and the image's size.

        progress: called with the part done, rising to 1. The image is encoded once; beside that the memory does not
        grow with the number of masks by more than a few KB each.
        """
        if not records:
            return []
        network = check_speaking(self.model)
        steps = (_ENCODE, _SHOW * len(records), _CAPTION * len(records) if self.wording.tokenizer else 0.0)
        report = [_share(progress, sum(steps[:i]) / sum(steps), sum(steps[: i + 1]) / sum(steps)) for i in range(3)]
        encoded = self.model.encode(image) if self.store is None else self.store.encode(self.model, image)
        report[0](1.0)
        fits, tokens, embeddings = self._regions(encoded, records, report[1])
        found = write_words(network, self.wording, tokens, embeddings, self.say, report[2])
        report[2](1.0)
        doubtful = sum(words != Words() and fit < _DOUBTFUL for words, fit in zip(found, fits, strict=True))
        if doubtful and self.say is not None:
            self.say(
                f"{doubtful} of {len(records)} masks have the words of a region that shares less than half with them."
            )
        return found

    def facts(self) -> dict[str, Any]:
        """The model, the vocabulary, and how captions are written."""
        wording = self.wording
        return {
            "describer": "tokenize-anything",
            "model": self.model.variant,
            "weights_sha256": self.model.weights_sha256,
            "vocabulary": None if wording.vocabulary is None else wording.vocabulary.source,
            "names": len(self.names),
            "captions": wording.tokenizer is not None,
            "max_tokens": wording.max_tokens,
            "beams": wording.beams,
        }

    def _regions(
        self, encoded: EncodedImage, records: Sequence[MaskRecord], progress: Progress
    ) -> tuple[list[float], Tensor, Tensor]:
        """What the model takes each mask for: overlaps, semantic tokens (P, 256), semantic embeddings (P, D)."""
        at_once = _AT_ONCE_CPU if self.model.device.type == "cpu" else _AT_ONCE_GPU
        regions: list[_Region] = []
        for start in range(0, len(records), at_once):
            shown = [show_mask(record) for record in records[start : start + at_once]]
            found = self._ask(encoded, shown, with_box=True)
            unsure = [i for i, region in enumerate(found) if not region.fit >= _SURE]
            if unsure:
                again = self._ask(encoded, [shown[i] for i in unsure], with_box=False)
                for i, region in zip(unsure, again, strict=True):
                    found[i] = max(found[i], region, key=lambda each: each.fit)  # the box's if they are equal
            regions += found
            progress(len(regions) / len(records))
        tokens, embeddings = (torch.stack(each) for each in list(zip(*regions, strict=True))[1:])
        return [region.fit for region in regions], tokens, embeddings

    def _ask(self, encoded: EncodedImage, shown: Sequence[ShownMask], with_box: bool) -> list["_Region"]:
        """The model's region for each mask: the one of the box, or the best of those of the point alone.

        A box has one, a point has several: each semantic token answers the kind of prompt that it was trained with.
        """
        network = check_speaking(self.model)
        frame = network.preprocess
        dtype = torch.float32 if network.float32_parts else self.model.dtype
        features = {name: tensor.to(self.model.device, dtype) for name, tensor in encoded.features.items()}
        prompts = [prompt_tokens(each.prompt(with_box), frame, encoded.original_size) for each in shown]
        points, labels = (torch.stack(each).to(self.model.device) for each in zip(*prompts, strict=True))  # (P, N, ..)
        decoded = network.decode(features, points, labels, None, multimask=not with_box)
        logits = decoded.low_res_logits.float().cpu().numpy()  # (P, C, h, w)
        tokens, embeddings = (decoded.extras[name].float() for name in ("semantic_tokens", "semantic_embeddings"))
        regions = []
        for i, mask in enumerate(shown):
            fits = [overlap(mask, each, frame, encoded.input_size, encoded.original_size) for each in logits[i]]
            best = int(np.argmax(fits))
            regions.append(_Region(fits[best], tokens[i, best], embeddings[i, best]))
        return regions


class _Region(NamedTuple):
    """fit: overlap with the mask, 0 to 1. tokens (256,), embeddings (D,): the semantic ones."""

    fit: float
    tokens: Tensor
    embeddings: Tensor


def _share(progress: Progress | None, start: float, stop: float) -> Progress:
    """Progress of a step, told as that of the whole."""
    return lambda part: None if progress is None else progress((1 - part) * start + part * stop)
