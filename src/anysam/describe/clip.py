"""Image-text models: CLIP, SigLIP and SigLIP 2, by the networks of the transformers library.

Papers: Radford et al. 2021 (CLIP), Zhai et al. 2023 (SigLIP), Tschannen et al. 2025 (SigLIP 2). A checkpoint is a
folder as the hub keeps it, see `clip_files`; texts become tokens in `clip_texts`, pictures arrays in `clip_pictures`.
Of the configuration only the numbers that shape the network are taken: transformers would follow other entries of it to
code of strangers. The weights are read by `anysam.weights_files` and must fit strictly. transformers takes seconds to
import and is imported when a model is loaded.
"""

import importlib
import importlib.util
import logging
import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from anysam.describe.clip_files import CONFIG, find_checkpoint, read_processor, read_weights
from anysam.describe.clip_pictures import (
    PatchRule,
    PictureRule,
    patch_rule,
    patches,
    picture_rule,
    prepared,
    require_picture,
)
from anysam.describe.clip_texts import (
    Say,
    TextReader,
    checked_texts,
    load_text_reader,
    padded_ids,
    read_json,
    token_ids,
)
from anysam.devices import find_device, find_dtype
from anysam.errors import MissingExtraError, OptionError, WeightsError
from anysam.fetch import Progress
from anysam.weights_files import show

DEFAULT = "openai/clip-vit-base-patch32"
KINDS = {
    "clip": "CLIP",
    "siglip": "Siglip",
    "siglip2": "Siglip2",
}  # model_type -> what transformers' classes begin with

# All entries of a configuration that are looked at, by the part of it.
_TOWER = (
    "hidden_size intermediate_size num_hidden_layers num_attention_heads hidden_act layer_norm_eps projection_dim"
).split()
_SHAPE = {
    "text_config": {*_TOWER, "vocab_size", "max_position_embeddings", "projection_size", "eos_token_id"},
    "vision_config": {*_TOWER, "image_size", "patch_size", "num_channels", "num_patches"},
}
_MOST_LAYERS = 500
_LEGACY_END = 2  # CLIP's early configurations name this id; then the text ends at its highest id

_TEXTS_AT_ONCE = 64
_KEPT_LISTS = 8
_KEPT_TEXTS = 20_000


@dataclass
class _TextFeatures:
    """Features of the last few lists of texts. (T, D) float32 of unit length, for each list."""

    lists: OrderedDict[tuple[str, ...], Tensor] = field(default_factory=OrderedDict)
    lock: AbstractContextManager[Any] = field(default_factory=threading.Lock)

    def get(self, texts: tuple[str, ...], encode: Callable[[tuple[str, ...]], Tensor]) -> Tensor:
        """The features of `texts`, encoded if they are not kept; two threads with the same list encode it once."""
        with self.lock:
            if texts not in self.lists:
                self.lists[texts] = encode(texts)
            self.lists.move_to_end(texts)
            while len(self.lists) > 1 and (len(self.lists) > _KEPT_LISTS or self._count() > _KEPT_TEXTS):
                self.lists.popitem(last=False)
            return self.lists[texts]

    def _count(self) -> int:
        return sum(map(len, self.lists))


@dataclass(frozen=True, eq=False)
class ImageTextNetwork:
    """An `ImageTextModel` of the CLIP kind. `load_image_text` makes it; several threads may use it at once.

    kind: "clip", "siglip" or "siglip2". batch: how many pictures are computed, and drawn from an iterator, at once; the
    logits do not depend on it. say: called with a sentence about each text that had to be cut.
    """

    name: str
    kind: str
    revision: str | None
    licence: str | None
    weights_sha256: str
    device: torch.device
    dtype: torch.dtype
    batch: int
    say: Say
    _module: Any  # of transformers
    _reader: TextReader
    _rule: PictureRule | PatchRule
    _scale: float
    _bias: float
    _kept: _TextFeatures = field(default_factory=_TextFeatures)
    # Some releases of transformers note the running call in the module; and two batches at once take twice the memory.
    _computing: AbstractContextManager[Any] = field(default_factory=threading.Lock)

    def similarities(self, pictures: Iterable[np.ndarray], texts: Sequence[str]) -> np.ndarray:
        """Pictures, each (H, W, 3) uint8 RGB of any size, and T texts -> logits (N, T) float32.

        CLIP: exp(logit_scale) times the cosine of their features, where the softmax over texts is the probability of
        each among them. SigLIP: the same plus its bias, where the sigmoid is the probability of each alone. The texts
        of the last few lists are kept encoded. A text beyond the model's limit is cut at a word, which is said. Raises
        OptionError for an empty text or none, and for a picture of another form.
        """
        checked = checked_texts(texts)
        rows = [np.zeros((0, len(checked)), dtype=np.float32)]
        for pixels in self._batches(pictures):
            features = self._kept.get(checked, self._encode_texts)
            with torch.inference_mode():
                cosines = self._features(self._module.get_image_features, pixels) @ features.T  # (N, T)
                rows.append((cosines * self._scale + self._bias).cpu().numpy())
        return np.concatenate(rows)  # (N, T)

    def facts(self) -> dict[str, Any]:
        """What a result's reader wants to know, in JSON form. revision and licence are None where nothing says them."""
        return {
            "model": self.name,
            "kind": self.kind,
            "revision": self.revision,
            "weights_sha256": self.weights_sha256,
            "licence": self.licence,
            "dtype": str(self.dtype).removeprefix("torch."),
            "device": str(self.device),
        }

    def _batches(self, pictures: Iterable[np.ndarray]) -> Iterator[dict[str, Tensor]]:
        """Pictures as the network takes them, drawn one batch at a time; none is held longer than it is prepared."""
        numbered = enumerate(pictures, start=1)
        while drawn := [self._prepared(require_picture(each, n)) for n, each in islice(numbered, self.batch)]:
            inputs = {name: torch.from_numpy(np.stack([one[name] for one in drawn])) for name in drawn[0]}
            yield {
                name: value.to(self.device, self.dtype if name == "pixel_values" else None)
                for name, value in inputs.items()
            }

    def _prepared(self, picture: np.ndarray) -> dict[str, np.ndarray]:
        if isinstance(self._rule, PictureRule):
            return {"pixel_values": prepared(picture, self._rule)}
        values, real, shape = patches(picture, self._rule)
        return {
            "pixel_values": values,
            "pixel_attention_mask": real.astype(np.int64),
            "spatial_shapes": np.array(shape, dtype=np.int64),
        }

    def _encode_texts(self, texts: tuple[str, ...]) -> Tensor:
        """Checked texts -> (T, D) float32 of unit length."""
        rows = [token_ids(self._reader, text, self.say) for text in texts]
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]))  # short texts beside short ones: less to fill up
        features: list[Tensor | None] = [None] * len(rows)
        for start in range(0, len(order), _TEXTS_AT_ONCE):
            places = order[start : start + _TEXTS_AT_ONCE]
            ids = torch.from_numpy(padded_ids(self._reader, [rows[i] for i in places])).to(self.device)
            with torch.inference_mode():
                encoded = self._features(self._module.get_text_features, {"input_ids": ids})
            for i, row in zip(places, encoded, strict=True):
                features[i] = row
        return torch.stack([row for row in features if row is not None])  # (T, D)

    def _features(self, encode: Callable[..., Any], inputs: Mapping[str, Tensor]) -> Tensor:
        """One batch through one of the two networks -> (B, D) float32 of unit length."""
        with self._computing:
            answer = encode(**inputs)
        # from release 5 on it is among other things, and not alone
        features: Tensor = answer if isinstance(answer, Tensor) else answer.pooler_output
        features = features.float()
        if not bool(torch.isfinite(features).all()):
            if self.dtype != torch.float32:
                raise OptionError(f"{self.name} computes numbers beyond {self.facts()['dtype']}; use float32.")
            raise WeightsError(f"{self.name} computes nothing but NaN; its weights are damaged, download them again.")
        return functional.normalize(features, dim=-1)


def load_image_text(
    name_or_folder: str | Path = DEFAULT,
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype | str = "float32",
    batch: int = 16,
    say: Say | None = None,
    progress: Progress | None = None,
    allow: str | Iterable[str] | None = None,
) -> ImageTextNetwork:
    """A CLIP, SigLIP or SigLIP 2 checkpoint: a folder, or a name of the hub, which is fetched unless it is cached.

    device: None is a GPU if there is one. dtype: of the networks; what comes after them is float32. batch: pictures at
    once, see `ImageTextNetwork`. say: for sentences about texts that had to be cut; None warns. progress, allow and the
    place of downloads: see `anysam.describe.clip_files`.

    Raises MissingExtraError without transformers, OptionError, UnknownModelError, LicenceError, DownloadError, and
    WeightsError for files that are missing, damaged, of another kind or do not fit each other.
    """
    if isinstance(batch, bool) or not isinstance(batch, int) or batch < 1:
        raise OptionError(f"batch must be a whole number from 1, got {batch!r}.")
    found_device, found_dtype = find_device(device), find_dtype(dtype)
    _require_transformers()
    found = find_checkpoint(name_or_folder, progress, allow)
    form = read_json(found.path / CONFIG)
    kind = _kind(form, found.name)
    architecture = _architecture(form, kind, found.path)
    limit = int(architecture["text_config"].get("max_position_embeddings", 77 if kind == "clip" else 64))
    reader = load_text_reader(found.path, kind, limit, found.name)
    rule = _picture_rule(found.path, kind)
    module = _unfilled(kind, architecture, found.path)
    _require_match(module, reader, rule, found.path)
    state_dict, digest = read_weights(found.path)
    scale, bias = _fill(module, state_dict, found.name, found_device, found_dtype)
    return ImageTextNetwork(
        name=found.name,
        kind=kind,
        revision=found.revision,
        licence=found.licence,
        weights_sha256=digest,
        device=found_device,
        dtype=found_dtype,
        batch=batch,
        say=say or _warn,
        _module=module,
        _reader=reader,
        _rule=rule,
        _scale=scale,
        _bias=bias,
    )


def _warn(message: str) -> None:
    warnings.warn(message, stacklevel=1)


def _require_transformers() -> None:
    if importlib.util.find_spec("transformers") is None:
        raise MissingExtraError(
            "Comparing pictures with texts needs the transformers library; install it with: pip install 'anysam[text]'"
        )


def _kind(form: Mapping[str, Any], name: str) -> str:
    kind = form.get("model_type")
    if not isinstance(kind, str) or kind not in KINDS:
        raise WeightsError(
            f"{name} is of the kind {str(kind)[:60]!r}; accepted are {', '.join(KINDS)} (model_type in {CONFIG}), with "
            "both of their networks."
        )
    return kind


def _architecture(form: Mapping[str, Any], kind: str, folder: Path) -> dict[str, Any]:
    """The entries of a configuration that shape the network, and no others. Raises WeightsError for a senseless one."""
    chosen: dict[str, Any] = {}
    if kind == "clip" and isinstance(form.get("projection_dim"), int):
        chosen["projection_dim"] = form["projection_dim"]
    for part, names in _SHAPE.items():
        entries = form.get(part)
        if kind == "clip" and form.get(f"{part}_dict") is not None:  # early files; it replaces the other one
            entries = form[f"{part}_dict"]
        entries = {} if entries is None else entries
        if not isinstance(entries, dict):
            raise WeightsError(f"{folder / CONFIG} has no object {part}; download or copy it again.")
        chosen[part] = {name: value for name, value in entries.items() if name in names and value is not None}
        for name in ("num_hidden_layers", "max_position_embeddings", "vocab_size"):
            value = chosen[part].get(name, 1)
            most = _MOST_LAYERS if name == "num_hidden_layers" else 10_000_000
            if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= most:
                raise WeightsError(f"{folder / CONFIG} has {value!r} as {name}; accepted are 1 to {most}.")
    # ids that the networks make no use of; transformers would say that its own defaults for them are odd
    unused = ("bos_token_id", "pad_token_id") if kind == "clip" else ("bos_token_id", "pad_token_id", "eos_token_id")
    chosen["text_config"] |= dict.fromkeys(unused)
    return chosen


def _picture_rule(folder: Path, kind: str) -> PictureRule | PatchRule:
    form = read_processor(folder)
    try:
        return patch_rule(form) if kind == "siglip2" else picture_rule(form, square=kind == "siglip")
    except WeightsError as error:
        raise WeightsError(f"The picture processor in {folder} cannot be used: {error}.") from error


def _unfilled(kind: str, architecture: Mapping[str, Any], folder: Path) -> Any:
    """The network without weights (on the meta device), by transformers."""
    transformers = importlib.import_module("transformers")
    config = getattr(transformers, f"{KINDS[kind]}Config", None)
    network = getattr(transformers, f"{KINDS[kind]}Model", None)
    if config is None or network is None:
        raise MissingExtraError(
            f"transformers {transformers.__version__} has no {kind}; install a newer one with: "
            "pip install --upgrade 'anysam[text]'"
        )
    # while it checks a configuration it makes one of defaults, and complains of those
    logger = logging.getLogger("transformers.configuration_utils")
    logger.addFilter(_say_nothing)
    try:
        with torch.device("meta"):
            return network(config(**architecture))
    except Exception as error:  # whatever senseless numbers lead to
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise WeightsError(f"{folder / CONFIG} describes no {kind} network ({reason}).") from error
    finally:
        logger.removeFilter(_say_nothing)


def _say_nothing(record: logging.LogRecord) -> bool:
    return False


def _require_match(module: Any, reader: TextReader, rule: PictureRule | PatchRule, folder: Path) -> None:
    """Raise WeightsError if the network, the tokenizer and the picture processor are not made for each other."""
    text, vision = module.config.text_config, module.config.vision_config
    largest = max((*reader.start, reader.end, reader.pad))
    if largest >= text.vocab_size or reader.room < 1:
        raise WeightsError(
            f"The tokenizer in {folder} does not belong to the network: it has the id {largest}, and the network reads "
            f"{text.vocab_size} ids, {reader.limit} in a text."
        )
    if reader.start and text.eos_token_id not in (_LEGACY_END, reader.end):
        raise WeightsError(
            f"The tokenizer in {folder} ends texts with the id {reader.end}, but the network expects "
            f"{text.eos_token_id}; they do not belong together."
        )
    made: tuple[int, ...]
    if isinstance(rule, PatchRule):
        made, size = (rule.side, rule.side), vision.patch_size
    else:
        made, size = rule.size or (), vision.image_size
    taken = (size, size) if isinstance(size, int) else tuple(size)
    if made != taken or vision.num_channels != 3:
        raise WeightsError(
            f"The picture processor in {folder} makes {made or 'pictures of many sizes'} of 3 colours, but the network "
            f"takes {taken} of {vision.num_channels}; they do not belong together."
        )


def _require_fit(module: nn.Module, given: Mapping[str, Tensor], name: str) -> None:
    """Raise WeightsError unless each of the network's tensors is given, in its shape, and no other."""
    expected = module.state_dict()
    problems = {
        "missing": [key for key in expected if key not in given],
        "unexpected": [show(key) for key in given if key not in expected],
        "misshapen": [
            f"{key} is {tuple(given[key].shape)} instead of {tuple(wanted.shape)}"
            for key, wanted in expected.items()
            if key in given and given[key].shape != wanted.shape
        ],
    }
    said = [f"{len(keys)} {word} (first: {', '.join(keys[:3])})" for word, keys in problems.items() if keys]
    if said:
        raise WeightsError(f"The weights of {name} do not fit its {CONFIG}: keys {', '.join(said)}.")


def _fill(
    module: nn.Module, state_dict: dict[str, Tensor], name: str, device: torch.device, dtype: torch.dtype
) -> tuple[float, float]:
    """Give a network on the meta device its weights, strictly, and return the logits' scale and bias, in float32.

    Empties `state_dict` as it goes, which frees its memory where that is not shared. Early checkpoints keep
    position_ids, a count from 0, which networks now make themselves: here.
    """
    counts = {key: value for key, value in module.named_buffers() if key not in module.state_dict()}
    given = {key: value for key, value in state_dict.items() if not key.endswith(".position_ids")}
    _require_fit(module, given, name)
    scale = float(given["logit_scale"].float().exp())
    bias = float(given.get("logit_bias", torch.zeros(())).float())
    keys = list(given)
    given.clear()
    module.load_state_dict({key: state_dict.pop(key).to(device, dtype, copy=True) for key in keys}, assign=True)
    for key, value in counts.items():
        assert key.endswith(".position_ids"), key
        owner = module.get_submodule(key.rpartition(".")[0])
        numbers = torch.arange(value.shape[-1], device=device).expand(value.shape)
        owner.register_buffer("position_ids", numbers, persistent=False)
    module.eval().requires_grad_(False)
    return scale, bias
