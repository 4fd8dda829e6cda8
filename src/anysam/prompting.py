"""Prompts of all kinds on an encoded image -> predictions: checked, put in the model's terms, decoded in batches."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from torch import Tensor

from anysam.catalogue import find_variant
from anysam.derived_prompts import check_points, choose_by_mask, prompt_from_mask
from anysam.encoded_image import EncodedImage
from anysam.errors import OptionError, PromptError
from anysam.models import Decoded, InstanceModel, LoadedModel, PromptableModel, SelectingModel
from anysam.preprocess import mask_to_logits, prompt_tokens, upscale_logits
from anysam.prompts import Prompt, ResolvedPrompt, resolve_prompt
from anysam.results import Prediction

# Prompts decoded at once. A call shares the first layer's projections; beyond a few prompts there is little more to
# share, and the decoders limit by themselves how many they hold at a time on a CPU (benchmarks/README.md).
_PROMPTS_AT_ONCE_CPU, _PROMPTS_AT_ONCE_GPU = 8, 64

# Full-size logits held at once while masks are made: 32 M float32 are 128 MB (one mask's, if a single one is larger).
_LOGITS_AT_ONCE = 32 * 1024 * 1024


@dataclass(frozen=True, eq=False)
class _Query:
    """A prompt as the decoder takes it: points (N, 2), labels (N,), mask logits (h, w) or None."""

    points: Tensor
    labels: Tensor
    mask: Tensor | None
    multimask: bool


def check_encoded(model: LoadedModel, encoded: EncodedImage) -> None:
    """Raise OptionError for anything but an encoding by this model, with these weights and preprocessing."""
    if not isinstance(encoded, EncodedImage):
        raise OptionError(
            f"predict takes an anysam.EncodedImage, got {type(encoded).__name__}; encode the image first."
        )
    if encoded.variant != model.variant:
        raise OptionError(
            f"This image was encoded by {encoded.variant}, but the model is {model.variant}; encode it again."
        )
    if encoded.weights_sha256 != model.weights_sha256:
        raise OptionError(
            f"This image was encoded by {encoded.variant} with other weights ({encoded.weights_sha256[:12]}... "
            f"instead of {model.weights_sha256[:12]}...); encode it again."
        )
    if encoded.preprocess != repr(model.network.preprocess):
        raise OptionError("This image was encoded with another preprocessing than the model's; encode it again.")
    if encoded.input_size != model.network.preprocess.input_size(encoded.original_size):
        raise OptionError(
            f"An image of {encoded.original_size} is not encoded at {encoded.input_size} by {model.variant}; "
            "encode it again."
        )


def resolve(model: LoadedModel, prompt: Prompt, encoded: EncodedImage) -> ResolvedPrompt:
    """A prompt in points, box and mask, checked against the image and the model. Raises PromptError."""
    if not isinstance(prompt, Prompt):
        raise PromptError(f"A prompt must be an anysam.Prompt, got {type(prompt).__name__}.")
    row = find_variant(model.variant)
    if isinstance(model.network, InstanceModel) and not isinstance(model.network, SelectingModel):
        raise PromptError(
            f"{model.variant} finds boxes and takes no prompts; use Model.detect, and give its boxes as prompts to "
            "a model that takes them, such as mobilesamv2_tiny_vit."
        )
    resolved = resolve_prompt(prompt, encoded.original_size, row.max_points)
    check_points(resolved, row.max_points, model.variant)
    given = {"point": len(resolved.points) > 0, "box": resolved.box is not None}
    for kind in given:
        if given[kind] and kind not in row.prompts:
            raise PromptError(f"{model.variant} takes no {kind} prompt; it takes {', '.join(row.prompts)}.")
    if resolved.low_res_logits is None:
        return resolved
    if isinstance(model.network, SelectingModel):
        raise PromptError(
            f"{model.variant} only chooses among objects it found and cannot refine low_res_logits; give the mask "
            "itself instead: Prompt(mask=prediction.masks[prediction.best])."
        )
    low_res_size = _promptable(model).preprocess.low_res_size(encoded.input_size)
    if resolved.low_res_logits.shape != low_res_size:
        raise PromptError(
            f"low_res_logits must be {low_res_size} for this image and {model.variant}, "
            f"got {resolved.low_res_logits.shape}; pass a row of an earlier prediction on the same image."
        )
    return resolved


@dataclass(frozen=True, eq=False)
class LowResPrediction:
    """A `Prediction` whose masks are not made yet: low_res_logits (C, h, w), iou_predictions (C,), float32."""

    low_res_logits: np.ndarray
    iou_predictions: np.ndarray


def decode_low_res(
    model: LoadedModel, encoded: EncodedImage, prompts: list[ResolvedPrompt], multimask: bool | None
) -> list[LowResPrediction]:
    """What `decode_prompts` begins with, in the same batches, for a promptable model and prompts it need not derive.

    For callers that make masks in another way. See `is_derived`.
    """
    features = _features(model, encoded)
    queries = [_query(model, prompt, encoded, multimask, None) for prompt in prompts]
    answers: dict[int, LowResPrediction] = {}
    for batch in _batches(queries, _prompts_at_once(model)):
        decoded = _decode_low_res(model, features, [queries[j] for j in batch])
        scores = decoded.iou_predictions.float().cpu().numpy()  # (P, C)
        low_res = decoded.low_res_logits.float().cpu().numpy()  # (P, C, h, w)
        for i, j in enumerate(batch):
            answers[j] = LowResPrediction(low_res[i].copy(), scores[i].copy())
    return [answers[j] for j in range(len(queries))]


def is_derived(model: LoadedModel, prompt: ResolvedPrompt) -> bool:
    """Whether the prompt's mask is put in points and a box, because the model takes no mask."""
    masked = prompt.mask is not None or prompt.low_res_logits is not None
    return masked and "mask" not in find_variant(model.variant).prompts


def decode_prompts(
    model: LoadedModel, encoded: EncodedImage, prompts: list[ResolvedPrompt], multimask: bool | None
) -> list[Prediction]:
    """Predictions for prompts of any kinds, in their order, decoded in batches of equal form."""
    features = _features(model, encoded)
    # A prompt is one query, or two where the answer is chosen among all masks that the model can propose.
    queries: list[_Query] = []
    owners: list[int] = []
    hints: dict[int, np.ndarray] = {}
    for i, prompt in enumerate(prompts):
        hint = _hint(model, prompt, encoded)
        if hint is None or multimask:
            own = [_query(model, prompt, encoded, multimask, hint)]
        else:
            hints[i] = hint
            own = [_query(model, prompt, encoded, several, hint) for several in (False, True)]
        queries += own
        owners += [i] * len(own)
    answers: dict[int, Prediction] = {}
    for batch in _batches(queries, _prompts_at_once(model)):
        members = [queries[j] for j in batch]
        answers |= zip(batch, _decode(model, features, encoded, members), strict=True)
    predictions: dict[int, Prediction] = {}
    for j, i in enumerate(owners):
        predictions[i] = _join(predictions[i], answers[j]) if i in predictions else answers[j]
    return [choose_by_mask(predictions[i], hints[i]) if i in hints else predictions[i] for i in range(len(prompts))]


def decoder_dtype(model: LoadedModel) -> torch.dtype:
    """The number format in which prompts are decoded."""
    return torch.float32 if _promptable(model).float32_parts else model.dtype


def _promptable(model: LoadedModel) -> PromptableModel:
    return cast(PromptableModel, model.network)


def _features(model: LoadedModel, encoded: EncodedImage) -> dict[str, Tensor]:
    return {name: tensor.to(model.device, decoder_dtype(model)) for name, tensor in encoded.features.items()}


def _prompts_at_once(model: LoadedModel) -> int:
    return _PROMPTS_AT_ONCE_CPU if model.device.type == "cpu" else _PROMPTS_AT_ONCE_GPU


def _hint(model: LoadedModel, prompt: ResolvedPrompt, encoded: EncodedImage) -> np.ndarray | None:
    """The mask (H, W) that a prompt gives to a model without mask prompts; None if there is none, or no need."""
    if not is_derived(model, prompt):
        return None
    if prompt.low_res_logits is None:
        return prompt.mask
    logits = torch.tensor(prompt.low_res_logits, device=model.device)[None]  # (1, h, w)
    mask = _full_masks(model, logits, encoded)[0]
    if not mask.any():
        raise PromptError(
            f"low_res_logits mark no pixel, and {model.variant} takes no mask prompt to correct; "
            "give points or a box instead."
        )
    return mask


def _query(
    model: LoadedModel, prompt: ResolvedPrompt, encoded: EncodedImage, multimask: bool | None, hint: np.ndarray | None
) -> _Query:
    """A prompt as the decoder's input; with a hint, as points and a box."""
    network = _promptable(model)
    if hint is not None:
        prompt = prompt_from_mask(prompt, hint, find_variant(model.variant).max_points)
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


def _decode_low_res(model: LoadedModel, features: dict[str, Tensor], queries: list[_Query]) -> Decoded:
    """What the decoder says of queries as in `_decode`."""
    points = torch.stack([query.points for query in queries]).to(model.device)  # (P, N, 2)
    labels = torch.stack([query.labels for query in queries]).to(model.device)  # (P, N)
    masks = [query.mask for query in queries if query.mask is not None]
    mask_logits = torch.stack(masks)[:, None].to(model.device, decoder_dtype(model)) if masks else None  # (P, 1, h, w)
    return _promptable(model).decode(features, points, labels, mask_logits, queries[0].multimask)


def _decode(
    model: LoadedModel, features: dict[str, Tensor], encoded: EncodedImage, queries: list[_Query]
) -> list[Prediction]:
    """Predictions for queries that all have the same number of tokens, a mask or none, and the same multimask."""
    logits, ious, extras = _decode_low_res(model, features, queries)
    scores = ious.float().cpu().numpy()  # (P, C)
    low_res = logits.float().cpu().numpy()  # (P, C, h, w)
    more = {name: value.float().cpu().numpy() for name, value in extras.items()}  # each (P, C, ...)
    # Copies, so that keeping one prediction does not keep the whole batch.
    return [
        Prediction(
            _full_masks(model, logits[i], encoded),
            scores[i].copy(),
            low_res[i].copy(),
            {name: value[i].copy() for name, value in more.items()},
        )
        for i in range(len(queries))
    ]


def _full_masks(model: LoadedModel, logits: Tensor, encoded: EncodedImage) -> np.ndarray:
    """One prompt's logits (C, h, w) -> masks (C, H, W) bool, holding few full-size logits at once."""
    frame = _promptable(model).preprocess
    height, width = encoded.original_size
    padded_height, padded_width = frame.padded_size(encoded.input_size)
    step = max(1, _LOGITS_AT_ONCE // max(height * width, padded_height * padded_width))
    masks = np.empty((len(logits), height, width), dtype=np.bool_)  # (C, H, W)
    for start in range(0, len(masks), step):
        part = logits[None, start : start + step]  # (1, step, h, w)
        full = upscale_logits(part, frame, encoded.input_size, encoded.original_size)
        masks[start : start + step] = (full[0] > 0).cpu().numpy()
    return masks


def _join(first: Prediction, second: Prediction) -> Prediction:
    """The candidates of two predictions for the same prompt, as one."""
    return Prediction(
        np.concatenate([first.masks, second.masks]),
        np.concatenate([first.iou_predictions, second.iou_predictions]),
        np.concatenate([first.low_res_logits, second.low_res_logits]),
        {name: np.concatenate([first.extras[name], second.extras[name]]) for name in first.extras},
    )


def _batches(queries: list[_Query], at_once: int) -> Iterator[list[int]]:
    """Indices of queries that can be decoded together: no padding is added, so each gives what it gives alone."""
    groups: dict[tuple[int, bool, bool], list[int]] = {}
    for i, query in enumerate(queries):
        groups.setdefault((len(query.points), query.mask is not None, query.multimask), []).append(i)
    for group in groups.values():
        for start in range(0, len(group), at_once):
            yield group[start : start + at_once]
