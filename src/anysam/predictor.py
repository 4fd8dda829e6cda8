"""From an image to its encoding, and from an encoding and prompts to masks. Holds no state and writes no image files.

    model = anysam.load()
    encoded = model.encode("photo.jpg")
    prediction = model.predict(encoded, Prompt(points=[[320, 240]]))

Encoding is the expensive half. An `EncodedImage` is a plain value: it can be kept, saved, and used by several threads.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, cast, overload

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from anysam.automatic.decoding import decode_points, make_resize
from anysam.automatic.everything import ImageStore, find_everything
from anysam.automatic.interface import PointMasks, Resize
from anysam.automatic.options import EverythingOptions
from anysam.automatic.presets import preset
from anysam.automatic.working_memory import working_memory
from anysam.catalogue import DEFAULT_VARIANT, VARIANTS, find_variant
from anysam.checkpoints import load_model
from anysam.derived_prompts import check_points, choose_by_mask, prompt_from_mask
from anysam.describe.find_options import FindOptions
from anysam.describe.interface import ImageTextModel
from anysam.describe.text_prompts import Texts, find_by_text, predict_texts
from anysam.devices import find_device, find_dtype
from anysam.encoded_image import EncodedImage
from anysam.errors import OptionError, PromptError
from anysam.images import read_image
from anysam.letterbox import prepare_letterbox
from anysam.memory import WorkingMemory
from anysam.models import InstanceModel, PromptableModel, SelectingModel
from anysam.models.layers import fuse, move
from anysam.preprocess import Preprocess, mask_to_logits, prepare_image, prompt_tokens, upscale_logits
from anysam.prompts import Prompt, ResolvedPrompt, resolve_prompt
from anysam.rasters import ImageSource
from anysam.results import MaskRecord, Prediction

if TYPE_CHECKING:
    from anysam.models.yolov8 import Instances

# Prompts decoded at once. A call shares the first layer's projections; beyond a few prompts there is little more to
# share, and the decoders limit by themselves how many they hold at a time on a CPU (benchmarks/README.md).
_PROMPTS_AT_ONCE_CPU, _PROMPTS_AT_ONCE_GPU = 8, 64

# Full-size logits held at once while masks are made: 32 M float32 are 128 MB (one mask's, if a single one is larger).
_LOGITS_AT_ONCE = 32 * 1024 * 1024


AnyImage = str | Path | bytes | Image.Image | np.ndarray | Tensor


@dataclass(frozen=True, eq=False)
class Model:
    """A loaded model. Holds nothing of any image, so threads can share it.

    variant: its name in the catalogue. network: in eval mode, on `device`, with parameters of `dtype` but for its
    float32_parts. weights_sha256: of the file the weights came from.
    """

    variant: str
    network: PromptableModel | InstanceModel
    device: torch.device
    dtype: torch.dtype
    weights_sha256: str

    @torch.inference_mode()
    def encode(self, image: AnyImage) -> EncodedImage:
        """Encode a path, the bytes of an image file, a PIL image, an RGB array (H, W, 3) or a tensor (3, H, W).

        Raises ImageError for whatever `anysam.read_image` refuses.
        """
        array = read_image(image)
        frame = self.network.preprocess
        prepare = prepare_image if isinstance(frame, Preprocess) else prepare_letterbox
        exact = "image_encoder" in getattr(self.network, "float32_parts", ())
        dtype = torch.float32 if exact else self.dtype
        pixels, input_size = prepare(array, frame, self.device, dtype)  # type: ignore[arg-type]
        # Contiguous, as they are after saving and loading: another layout rounds differently in the decoder.
        features = {name: tensor.contiguous() for name, tensor in self.network.encode_image(pixels).items()}
        return EncodedImage(
            features=features,
            original_size=(array.shape[0], array.shape[1]),
            input_size=input_size,
            variant=self.variant,
            preprocess=repr(self.network.preprocess),
            weights_sha256=self.weights_sha256,
        )

    @overload
    def predict(
        self,
        encoded: EncodedImage,
        prompt: Prompt,
        multimask: bool | None = None,
        *,
        image: AnyImage | ImageSource | None = None,
        image_text: ImageTextModel | None = None,
    ) -> Prediction: ...

    @overload
    def predict(
        self,
        encoded: EncodedImage,
        prompt: Sequence[Prompt],
        multimask: bool | None = None,
        *,
        image: AnyImage | ImageSource | None = None,
        image_text: ImageTextModel | None = None,
    ) -> list[Prediction]: ...

    def predict(
        self,
        encoded: EncodedImage,
        prompt: Prompt | Sequence[Prompt],
        multimask: bool | None = None,
        *,
        image: AnyImage | ImageSource | None = None,
        image_text: ImageTextModel | None = None,
    ) -> Prediction | list[Prediction]:
        """Masks for one prompt (a Prediction) or for several, of any kinds (a list, in the same order).

        multimask: True for several masks per prompt (three, from most models), False for one. None decides as the
        model's authors do; SAM gives three for a single point with nothing else, which is ambiguous, else one. The
        results do not depend on the other prompts.

        A mask, polygon or scribble for a model that does not take one is put in points and a box; the candidate that
        overlaps the mask most is then returned alone, unless multimask is True.

        image, image_text: for prompts of texts, the image that was encoded and what compares pictures with words; the
        answers are among everything mode's masks, see `describe.text_prompts.predict_text` (`find` gives records, and
        all hits).

        Raises PromptError for prompts outside the image or of a kind the model does not take, OptionError for an
        encoding that another model or other weights made.
        """
        if not isinstance(prompt, Iterable) and not isinstance(prompt, Prompt):
            raise PromptError(f"A prompt must be an anysam.Prompt or a list of them, got {type(prompt).__name__}.")
        prompts = [prompt] if isinstance(prompt, Prompt) else list(prompt)
        said = [i for i, each in enumerate(prompts) if isinstance(each, Prompt) and each.text is not None]
        if said and (image is None or image_text is None):
            raise PromptError(
                "A text prompt needs the image and an image-text model: predict(encoded, prompt, image=..., "
                "image_text=anysam.load_image_text()), or use Model.find."
            )
        others = [i for i in range(len(prompts)) if i not in said]
        answers = dict(zip(others, self._predict(encoded, [prompts[i] for i in others], multimask), strict=True))
        if said and image is not None and image_text is not None:
            pixels = image if isinstance(image, ImageSource) else read_image(image)
            texts = [prompts[i] for i in said]
            answers |= zip(said, predict_texts(self, encoded, pixels, texts, image_text, multimask), strict=True)
        predictions = [answers[i] for i in range(len(prompts))]
        return predictions[0] if isinstance(prompt, Prompt) else predictions

    def detect(
        self, encoded: EncodedImage, *, confidence: float | None = None, nms_iou: float | None = None, limit: int = 300
    ) -> "Instances":
        """All objects that a model of the FastSAM kind, or a detector, found in the image, best first.

        confidence: least score, 0 to 1. nms_iou: of two boxes that overlap more than this, the worse is left out.
        None is what the model's authors use. limit: the most objects. Raises OptionError for a model that finds
        nothing by itself, a value out of range, or another model's encoding.
        """
        network = self.network
        if not isinstance(network, InstanceModel):
            raise OptionError(
                f"{self.variant} finds no objects by itself; models that do are {', '.join(_detecting_variants())}."
            )
        self._check_encoded(encoded)
        confidence = network.default_confidence if confidence is None else confidence
        nms_iou = network.default_nms_iou if nms_iou is None else nms_iou
        for name, value in (("confidence", confidence), ("nms_iou", nms_iou)):
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
                raise OptionError(f"{name} must be a number from 0 to 1, got {value!r}.")
        if isinstance(limit, bool) or not isinstance(limit, int) or limit < 1:
            raise OptionError(f"limit must be a whole number of at least 1, got {limit!r}.")
        features = {name: tensor.to(self.device) for name, tensor in encoded.features.items()}
        with torch.inference_mode():
            return network.instances(
                features, encoded.original_size, confidence=confidence, nms_iou=nms_iou, limit=limit
            )

    def everything(
        self,
        image: AnyImage | EncodedImage | ImageSource,
        options: EverythingOptions | None = None,
        detector: "Model | None" = None,
        progress: Callable[[float], None] | None = None,
        store: ImageStore | None = None,
    ) -> list[MaskRecord]:
        """All masks of an image, without prompts.

        image: whatever `encode` takes, an encoded image, or a source of windows (`anysam.rasters`) for tiles. options:
        how; None is what the model's authors use (`anysam.preset` has others). detector: a model that finds boxes, each
        of which is then a prompt, such as mobilesamv2_object_aware. progress: called with the part done, rising to 1.
        store: where encoded images are kept and looked up, such as `anysam.EmbeddingStore`.

        Returns records in the published order: by falling predicted IoU within a crop. Raises ImageError for a bad
        image, OptionError for options that make no sense for the model or the memory.
        """
        if options is None:
            options = preset("default", self.variant)
        if not isinstance(options, EverythingOptions):
            raise OptionError(f"options must be anysam.EverythingOptions, got {type(options).__name__}.")
        source: np.ndarray | EncodedImage | ImageSource
        if isinstance(image, EncodedImage):
            self._check_encoded(image)
            source = image
        else:
            source = image if isinstance(image, ImageSource) else read_image(image)
        encode = None if store is None else partial(store.encode, self)
        return find_everything(self, source, options, detector=detector, encode=encode, progress=progress)

    def find(
        self,
        image: AnyImage | ImageSource,
        texts: Texts,
        image_text: ImageTextModel,
        options: FindOptions | None = None,
        everything: EverythingOptions | None = None,
        detector: "Model | None" = None,
        progress: Callable[[float], None] | None = None,
        store: ImageStore | None = None,
    ) -> list[MaskRecord]:
        """The masks of an image that texts mean, such as "the red car": text by text, the most probable first.

        image: whatever `encode` takes, or a source of windows (`anysam.rasters`). texts: one or several. image_text: a
        model of the CLIP kind (`anysam.load_image_text`). options: how masks are chosen: the best one of each text, or
        with a threshold all that are probable enough. everything, detector, store: how masks are proposed, see
        `everything`. progress: called with the part done, rising to 1.

        The records have a label, label_score, label_scores and similarity; [] where nothing fits. Raises ImageError for
        a bad image, PromptError for an empty text, OptionError for options that make no sense together.
        """
        pixels = image if isinstance(image, ImageSource) else read_image(image)
        return find_by_text(self, pixels, texts, image_text, options, everything, detector, progress, store)

    def decode_points(self, encoded: EncodedImage, points: np.ndarray, least_iou: float) -> PointMasks:
        """The several masks of each of many foreground points, at low resolution: everything mode's question.

        points: (P, 2) float64, x y, pixels of the encoded image. least_iou: masks with a predicted IoU up to it are
        left out, and not even made where the network can tell before; -inf leaves none out. Raises OptionError for an
        encoding that another model made, or a model without point prompts.
        """
        self._check_encoded(encoded)
        if isinstance(self.network, InstanceModel):
            raise OptionError(f"{self.variant} is not asked at points of a grid; it finds objects by itself.")
        features = {name: tensor.to(self.device, self._decoder_dtype) for name, tensor in encoded.features.items()}
        with torch.inference_mode():
            return decode_points(self._promptable(), features, encoded, points, least_iou)

    def resize(self, encoded: EncodedImage) -> Resize:
        """From the logits of `decode_points` to the encoded image's pixels."""
        return make_resize(self._promptable().preprocess, encoded, self.device)

    def working_memory(self) -> WorkingMemory:
        """Bytes that it takes beside its weights, for the plan of everything mode."""
        return working_memory(self.variant)

    @torch.inference_mode()
    def _predict(self, encoded: EncodedImage, prompts: list[Prompt], multimask: bool | None) -> list[Prediction]:
        self._check_encoded(encoded)
        if multimask is not None and not isinstance(multimask, (bool, np.bool_)):
            raise OptionError(f"multimask must be True, False or None, got {multimask!r}.")
        if not prompts:
            return []
        resolved = []
        for i, prompt in enumerate(prompts):
            try:
                resolved.append(self._resolve(prompt, encoded))
            except PromptError as error:
                raise (
                    error if len(prompts) == 1 else PromptError(f"Prompt {i + 1} of {len(prompts)}: {error}")
                ) from error
        if isinstance(self.network, SelectingModel):
            found = self.detect(encoded)
            return [self.network.select(found, prompt, bool(multimask)) for prompt in resolved]
        return self._decode_all(encoded, resolved, multimask)

    def _decode_all(
        self, encoded: EncodedImage, prompts: list[ResolvedPrompt], multimask: bool | None
    ) -> list[Prediction]:
        """Predictions for prompts of any kinds, in their order, decoded in batches of equal form."""
        features = {name: tensor.to(self.device, self._decoder_dtype) for name, tensor in encoded.features.items()}
        # A prompt is one query, or two where the answer is chosen among all masks that the model can propose.
        queries: list[_Query] = []
        owners: list[int] = []
        hints: dict[int, np.ndarray] = {}
        for i, prompt in enumerate(prompts):
            hint = self._hint(prompt, encoded)
            if hint is None or multimask:
                own = [self._query(prompt, encoded, multimask, hint)]
            else:
                hints[i] = hint
                own = [self._query(prompt, encoded, several, hint) for several in (False, True)]
            queries += own
            owners += [i] * len(own)
        answers: dict[int, Prediction] = {}
        for batch in _batches(queries, _PROMPTS_AT_ONCE_CPU if self.device.type == "cpu" else _PROMPTS_AT_ONCE_GPU):
            members = [queries[j] for j in batch]
            answers |= zip(batch, self._decode(features, encoded, members), strict=True)
        predictions: dict[int, Prediction] = {}
        for j, i in enumerate(owners):
            predictions[i] = _join(predictions[i], answers[j]) if i in predictions else answers[j]
        return [choose_by_mask(predictions[i], hints[i]) if i in hints else predictions[i] for i in range(len(prompts))]

    def _check_encoded(self, encoded: EncodedImage) -> None:
        if not isinstance(encoded, EncodedImage):
            raise OptionError(
                f"predict takes an anysam.EncodedImage, got {type(encoded).__name__}; encode the image first."
            )
        if encoded.variant != self.variant:
            raise OptionError(
                f"This image was encoded by {encoded.variant}, but the model is {self.variant}; encode it again."
            )
        if encoded.weights_sha256 != self.weights_sha256:
            raise OptionError(
                f"This image was encoded by {encoded.variant} with other weights ({encoded.weights_sha256[:12]}... "
                f"instead of {self.weights_sha256[:12]}...); encode it again."
            )
        if encoded.preprocess != repr(self.network.preprocess):
            raise OptionError("This image was encoded with another preprocessing than the model's; encode it again.")
        if encoded.input_size != self.network.preprocess.input_size(encoded.original_size):
            raise OptionError(
                f"An image of {encoded.original_size} is not encoded at {encoded.input_size} by {self.variant}; "
                "encode it again."
            )

    def _resolve(self, prompt: Prompt, encoded: EncodedImage) -> ResolvedPrompt:
        """A prompt in points, box and mask, checked against the image and the model. Raises PromptError."""
        if not isinstance(prompt, Prompt):
            raise PromptError(f"A prompt must be an anysam.Prompt, got {type(prompt).__name__}.")
        row = find_variant(self.variant)
        if isinstance(self.network, InstanceModel) and not isinstance(self.network, SelectingModel):
            raise PromptError(
                f"{self.variant} finds boxes and takes no prompts; use Model.detect, and give its boxes as prompts to "
                "a model that takes them, such as mobilesamv2_tiny_vit."
            )
        resolved = resolve_prompt(prompt, encoded.original_size, row.max_points)
        check_points(resolved, row.max_points, self.variant)
        given = {"point": len(resolved.points) > 0, "box": resolved.box is not None}
        for kind in given:
            if given[kind] and kind not in row.prompts:
                raise PromptError(f"{self.variant} takes no {kind} prompt; it takes {', '.join(row.prompts)}.")
        if resolved.low_res_logits is None:
            return resolved
        if isinstance(self.network, SelectingModel):
            raise PromptError(
                f"{self.variant} only chooses among objects it found and cannot refine low_res_logits; give the mask "
                "itself instead: Prompt(mask=prediction.masks[prediction.best])."
            )
        low_res_size = self._promptable().preprocess.low_res_size(encoded.input_size)
        if resolved.low_res_logits.shape != low_res_size:
            raise PromptError(
                f"low_res_logits must be {low_res_size} for this image and {self.variant}, "
                f"got {resolved.low_res_logits.shape}; pass a row of an earlier prediction on the same image."
            )
        return resolved

    @property
    def _decoder_dtype(self) -> torch.dtype:
        return torch.float32 if self._promptable().float32_parts else self.dtype

    def _promptable(self) -> PromptableModel:
        return cast(PromptableModel, self.network)

    def _hint(self, prompt: ResolvedPrompt, encoded: EncodedImage) -> np.ndarray | None:
        """The mask (H, W) that a prompt gives to a model without mask prompts; None if there is none, or no need."""
        if "mask" in find_variant(self.variant).prompts:
            return None
        if prompt.low_res_logits is None:
            return prompt.mask
        logits = torch.tensor(prompt.low_res_logits, device=self.device)[None]  # (1, h, w)
        mask = self._full_masks(logits, encoded)[0]
        if not mask.any():
            raise PromptError(
                f"low_res_logits mark no pixel, and {self.variant} takes no mask prompt to correct; "
                "give points or a box instead."
            )
        return mask

    def _query(
        self, prompt: ResolvedPrompt, encoded: EncodedImage, multimask: bool | None, hint: np.ndarray | None
    ) -> "_Query":
        """A prompt as the decoder's input; with a hint, as points and a box."""
        network = self._promptable()
        if hint is not None:
            prompt = prompt_from_mask(prompt, hint, find_variant(self.variant).max_points)
        points, labels = prompt_tokens(prompt, network.preprocess, encoded.original_size)
        mask = None
        if prompt.mask is not None:
            low_res_size = network.preprocess.low_res_size(encoded.input_size)
            mask = mask_to_logits(prompt.mask, network.preprocess, encoded.input_size, low_res_size)
        elif prompt.low_res_logits is not None:
            mask = torch.tensor(prompt.low_res_logits, dtype=torch.float32)
        if multimask is None:
            single_point = len(prompt.points) == 1 and prompt.box is None and mask is None
            multimask = {"single_point": single_point, "always": True, "never": False}[network.multimask_default]
        return _Query(points, labels, mask, multimask)

    def _decode(self, features: dict[str, Tensor], encoded: EncodedImage, queries: list["_Query"]) -> list[Prediction]:
        """Predictions for queries that all have the same number of tokens, a mask or none, and the same multimask."""
        points = torch.stack([query.points for query in queries]).to(self.device)  # (P, N, 2)
        labels = torch.stack([query.labels for query in queries]).to(self.device)  # (P, N)
        masks = [query.mask for query in queries if query.mask is not None]
        mask_logits = (
            torch.stack(masks)[:, None].to(self.device, self._decoder_dtype) if masks else None
        )  # (P, 1, h, w)
        logits, ious, extras = self._promptable().decode(features, points, labels, mask_logits, queries[0].multimask)
        scores = ious.float().cpu().numpy()  # (P, C)
        low_res = logits.float().cpu().numpy()  # (P, C, h, w)
        more = {name: value.float().cpu().numpy() for name, value in extras.items()}  # each (P, C, ...)
        # Copies, so that keeping one prediction does not keep the whole batch.
        return [
            Prediction(
                self._full_masks(logits[i], encoded),
                scores[i].copy(),
                low_res[i].copy(),
                {name: value[i].copy() for name, value in more.items()},
            )
            for i in range(len(queries))
        ]

    def _full_masks(self, logits: Tensor, encoded: EncodedImage) -> np.ndarray:
        """One prompt's logits (C, h, w) -> masks (C, H, W) bool, holding few full-size logits at once."""
        frame = self._promptable().preprocess
        height, width = encoded.original_size
        padded_height, padded_width = frame.padded_size(encoded.input_size)
        step = max(1, _LOGITS_AT_ONCE // max(height * width, padded_height * padded_width))
        masks = np.empty((len(logits), height, width), dtype=np.bool_)  # (C, H, W)
        for start in range(0, len(masks), step):
            part = logits[None, start : start + step]  # (1, step, h, w)
            full = upscale_logits(part, frame, encoded.input_size, encoded.original_size)
            masks[start : start + step] = (full[0] > 0).cpu().numpy()
        return masks


@dataclass(frozen=True, eq=False)
class _Query:
    """A prompt as the decoder takes it: points (N, 2), labels (N,), mask logits (h, w) or None."""

    points: Tensor
    labels: Tensor
    mask: Tensor | None
    multimask: bool


def load(
    name_or_path: str | Path | None = None,
    *,
    variant: str | None = None,
    device: str | None = None,
    dtype: torch.dtype | str = "float32",
    progress: Callable[[int, int | None], None] | None = None,
    allow: str | Iterable[str] | None = None,
) -> Model:
    """Load a model, ready to use; the built-in one if nothing is named.

    name_or_path: a name of the catalogue, or a weights file. variant: the catalogue name of a weights file that does
    not tell by itself. device: "cpu", "cuda", "cuda:1", ...; None takes a GPU if there is one. dtype: "float32",
    "float16" or "bfloat16"; parts whose masks would suffer stay in float32 (`PromptableModel.float32_parts`).
    progress: called with bytes done and bytes in all (or None) during a download. allow: the licences that the weights
    may be under, for example "apache-2.0,mit"; None takes ANYSAM_ALLOW, else all.

    Raises UnknownModelError, WeightsError, LicenceError, DownloadError, or OptionError for a device or dtype that is
    not there.
    """
    chosen_dtype = find_dtype(dtype)
    chosen_device = find_device(device)
    name = DEFAULT_VARIANT if name_or_path is None else name_or_path
    if not isinstance(name, (str, Path)):
        raise OptionError(f"A model is given by its name or the path of a weights file, got {type(name).__name__}.")
    network, row, weights_sha256 = load_model(name, variant, progress, allow)
    network = move(fuse(network.eval().requires_grad_(False)), chosen_device, chosen_dtype)
    return Model(row.name, cast(PromptableModel | InstanceModel, network), chosen_device, chosen_dtype, weights_sha256)


def _join(first: Prediction, second: Prediction) -> Prediction:
    """The candidates of two predictions for the same prompt, as one."""
    return Prediction(
        np.concatenate([first.masks, second.masks]),
        np.concatenate([first.iou_predictions, second.iou_predictions]),
        np.concatenate([first.low_res_logits, second.low_res_logits]),
        {name: np.concatenate([first.extras[name], second.extras[name]]) for name in first.extras},
    )


def _detecting_variants() -> list[str]:
    return [row.name for row in VARIANTS if row.family in ("fast_sam", "object_aware")]


def _batches(queries: list[_Query], at_once: int) -> Iterator[list[int]]:
    """Indices of queries that can be decoded together: no padding is added, so each gives what it gives alone."""
    groups: dict[tuple[int, bool, bool], list[int]] = {}
    for i, query in enumerate(queries):
        groups.setdefault((len(query.points), query.mask is not None, query.multimask), []).append(i)
    for group in groups.values():
        for start in range(0, len(group), at_once):
            yield group[start : start + at_once]
