"""From an image to its encoding, and from an encoding and prompts to masks. Holds no state and writes no image files.

    model = anysam.load()
    encoded = model.encode("photo.jpg")
    prediction = model.predict(encoded, Prompt(points=[[320, 240]]))

Encoding is the expensive half. An `EncodedImage` is a plain value: it can be kept, saved, and used by several threads.
"""

from collections.abc import Callable, Iterable, Sequence
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
from anysam.catalogue import DEFAULT_VARIANT, VARIANTS
from anysam.checkpoints import load_model
from anysam.describe.find_options import FindOptions
from anysam.describe.interface import ImageTextModel
from anysam.describe.tap import describe_prompts
from anysam.describe.tap_words import DescribeOptions
from anysam.describe.text_prompts import Texts, find_by_text, predict_texts
from anysam.devices import find_device, find_dtype
from anysam.encoded_image import EncodedImage
from anysam.errors import OptionError, PromptError
from anysam.images import read_image
from anysam.letterbox import prepare_letterbox
from anysam.memory import WorkingMemory
from anysam.models import InstanceModel, PromptableModel, SelectingModel
from anysam.models.layers import fuse, move
from anysam.preprocess import Preprocess, prepare_image
from anysam.prompting import check_encoded, decode_prompts, decoder_dtype, resolve
from anysam.prompts import Prompt
from anysam.rasters import ImageSource
from anysam.results import MaskRecord, Prediction

if TYPE_CHECKING:
    from anysam.models.yolov8 import Instances

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

    def encode(self, image: AnyImage) -> EncodedImage:
        """Encode a path, the bytes of an image file, a PIL image, an RGB array (H, W, 3) or a tensor (3, H, W).

        Raises ImageError for whatever `anysam.read_image` refuses.
        """
        return self.encode_together([image])[0]

    @torch.inference_mode()
    def encode_together(self, images: Sequence[AnyImage]) -> list[EncodedImage]:
        """Encode several images, those of one input shape as one batch: in order, and but for rounding as by `encode`.

        It pays on a GPU, which one image does not fill; on a CPU `encode` one by one is as fast or faster. Memory grows
        with the images of one shape. Raises ImageError as `encode` does, for all of them.
        """
        arrays = [read_image(image) for image in images]
        frame = self.network.preprocess
        prepare = prepare_image if isinstance(frame, Preprocess) else prepare_letterbox
        exact = "image_encoder" in getattr(self.network, "float32_parts", ())
        dtype = torch.float32 if exact else self.dtype
        prepared = [prepare(array, frame, self.device, dtype) for array in arrays]  # type: ignore[arg-type]
        shapes: dict[tuple[int, ...], list[int]] = {}
        for i, (pixels, _) in enumerate(prepared):
            shapes.setdefault(tuple(pixels.shape), []).append(i)
        encoded: dict[int, EncodedImage] = {}
        for members in shapes.values():
            batch = torch.cat([prepared[i][0] for i in members])  # (B, 3, H', W')
            together = self.network.encode_image(batch)  # each (B, ...)
            for place, i in enumerate(members):
                encoded[i] = EncodedImage(
                    features={name: _one_of(value, place) for name, value in together.items()},
                    original_size=(arrays[i].shape[0], arrays[i].shape[1]),
                    input_size=prepared[i][1],
                    variant=self.variant,
                    preprocess=repr(frame),
                    weights_sha256=self.weights_sha256,
                )
        return [encoded[i] for i in range(len(arrays))]

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
        check_encoded(self, encoded)
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
            check_encoded(self, image)
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

    @overload
    def describe(self, encoded: EncodedImage, prompt: Prompt, options: DescribeOptions | None = None) -> MaskRecord: ...

    @overload
    def describe(
        self, encoded: EncodedImage, prompt: Sequence[Prompt], options: DescribeOptions | None = None
    ) -> list[MaskRecord]: ...

    def describe(
        self, encoded: EncodedImage, prompt: Prompt | Sequence[Prompt], options: DescribeOptions | None = None
    ) -> MaskRecord | list[MaskRecord]:
        """Mask, names with scores, and a caption for one prompt (a record) or several (a list, in the same order).

        For models that speak, the Tokenize Anything ones; masks of any other model get words from a describer
        (`anysam.load_describer`, `anysam.describe_records`). options: which names, captions or not; None is labels of
        merged_2560 and captions, whose files are fetched on first use.

        Raises OptionError for a model without words, PromptError as `predict`, MissingExtraError for captions without
        the extra `text`, WeightsError or DownloadError for the files of words. Nothing is computed before all is there.
        """
        if isinstance(prompt, Prompt):
            return describe_prompts(self, encoded, [prompt], options)[0]
        if not isinstance(prompt, Iterable):
            raise PromptError(f"A prompt must be an anysam.Prompt or a list of them, got {type(prompt).__name__}.")
        return describe_prompts(self, encoded, list(prompt), options)

    def decode_points(self, encoded: EncodedImage, points: np.ndarray, least_iou: float) -> PointMasks:
        """The several masks of each of many foreground points, at low resolution: everything mode's question.

        points: (P, 2) float64, x y, pixels of the encoded image. least_iou: masks with a predicted IoU up to it are
        left out, and not even made where the network can tell before; -inf leaves none out. Raises OptionError for an
        encoding that another model made, or a model without point prompts.
        """
        check_encoded(self, encoded)
        if isinstance(self.network, InstanceModel):
            raise OptionError(f"{self.variant} is not asked at points of a grid; it finds objects by itself.")
        features = {name: tensor.to(self.device, decoder_dtype(self)) for name, tensor in encoded.features.items()}
        with torch.inference_mode():
            return decode_points(self.network, features, encoded, points, least_iou)

    def resize(self, encoded: EncodedImage) -> Resize:
        """From the logits of `decode_points` to the encoded image's pixels."""
        return make_resize(cast(PromptableModel, self.network).preprocess, encoded, self.device)

    def working_memory(self) -> WorkingMemory:
        """Bytes that it takes beside its weights, for the plan of everything mode."""
        return working_memory(self.variant)

    @torch.inference_mode()
    def _predict(self, encoded: EncodedImage, prompts: list[Prompt], multimask: bool | None) -> list[Prediction]:
        check_encoded(self, encoded)
        if multimask is not None and not isinstance(multimask, (bool, np.bool_)):
            raise OptionError(f"multimask must be True, False or None, got {multimask!r}.")
        if not prompts:
            return []
        resolved = []
        for i, prompt in enumerate(prompts):
            try:
                resolved.append(resolve(self, prompt, encoded))
            except PromptError as error:
                raise (
                    error if len(prompts) == 1 else PromptError(f"Prompt {i + 1} of {len(prompts)}: {error}")
                ) from error
        if isinstance(self.network, SelectingModel):
            found = self.detect(encoded)
            return [self.network.select(found, prompt, bool(multimask)) for prompt in resolved]
        return decode_prompts(self, encoded, resolved, multimask)


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


def _one_of(values: Tensor, place: int) -> Tensor:
    """(B, ...) -> (1, ...), the batch's image at `place`, which holds nothing of the others.

    Contiguous, as it is after saving and loading: another layout rounds differently in the decoder.
    """
    return (
        values.contiguous()
        if len(values) == 1
        else values[place : place + 1].clone(memory_format=torch.contiguous_format)
    )


def _detecting_variants() -> list[str]:
    return [row.name for row in VARIANTS if row.family in ("fast_sam", "object_aware")]
