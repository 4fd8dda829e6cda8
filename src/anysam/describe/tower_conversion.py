"""The text half of a CLIP checkpoint -> a folder that transformers' CLIPTextModelWithProjection loads.

What is read are OpenCLIP's and EVA-CLIP's state_dicts, whose text transformers are alike and have the same names; see
`anysam.describe.text_towers` for where the one of Tokenize Anything is. Their fused projections become three, their
x @ W a linear layer; the numbers stay as they are stored.
"""

import importlib
import json
import math
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from anysam.atomic import DRAFT_SUFFIX, explain, write_atomic
from anysam.catalogue import find_resource
from anysam.checkpoints import load_strictly
from anysam.describe.clip_texts import TOKENIZER_FILES
from anysam.describe.text_towers import (
    CONFIG,
    LAYERS,
    WEIGHTS,
    WIDTH,
    require_space,
    require_transformers,
    tower_reader,
)
from anysam.errors import DownloadError, OptionError, OutputError, WeightsError
from anysam.fetch import Progress, fetch_resource, file_sha256, is_offline
from anysam.home import home
from anysam.licences import allowed_licences, require_allowed
from anysam.weights_files import read_state_dict, show, write_tensors

DEFAULT_TOKENIZER = "openai/clip-vit-base-patch32"  # OpenCLIP and EVA-CLIP changed nothing about it

_TOKENIZER_CONFIG = "tokenizer_config.json"
_HEAD = 64  # the width of a head in every CLIP
_MAX_TOKENIZER_BYTES = 64 << 20

# OpenCLIP's names -> transformers', within a layer; in_proj is three of theirs.
_LAYER = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
_OPEN_CLIP = re.compile(
    r"(module\.)?(text\.)?(token_embedding\.|positional_embedding$|transformer\.|ln_final\.|text_projection|logit_scale$)"
)


@dataclass(frozen=True)
class ConvertedTower:
    """What `convert_text_tower` wrote: the folder, and what the tower is. logit_scale: the logarithm of the
    temperature. licence: of the weights, as far as it is known."""

    folder: Path
    width: int
    layers: int
    dtype: str
    tensors: int
    logit_scale: float
    licence: str
    source_sha256: str
    is_expected: bool


def convert_text_tower(
    checkpoint: str | Path,
    out: str | Path,
    tokenizer: str | Path | None = None,
    force: bool = False,
    progress: Progress | None = None,
    allow: str | Iterable[str] | None = None,
) -> ConvertedTower:
    """Write the text half of an OpenCLIP or EVA-CLIP checkpoint as a folder that transformers loads.

    checkpoint: a name of the catalogue's RESOURCES or a file; only the text tensors of it are read. out: the folder,
    new or, with `force`, one whose files of these names are replaced; it appears whole or not at all. tokenizer: a
    folder with a CLIP tokenizer's files or a name of the Hugging Face hub; None takes the checkpoint's own folder if it
    has them, else openai/clip-vit-base-patch32. progress: of a download. allow: see anysam.licences.

    Raises OptionError, WeightsError, LicenceError, DownloadError, OutputError, and MissingExtraError without the
    libraries that read tokenizers.
    """
    allowed, target = allowed_licences(allow), Path(out).expanduser()
    if target.exists() and not (force and target.is_dir()):
        hint = ", or replace its files with --force" if target.is_dir() else " for a folder"
        raise OutputError(f"{target} is there already; choose another name{hint}.")
    require_transformers()
    source = fetch_resource(checkpoint, progress, allow, ("clip",))
    tensors, scale = _text_half(source)
    entries = _entries(tensors)
    files = _tokenizer_files(tokenizer, source)
    expected = (entries["hidden_size"], entries["num_hidden_layers"]) == (WIDTH, LAYERS)
    licence = find_resource("eva02_clip_e_plus").licence if expected else "none stated"
    require_allowed(str(source), licence, allowed, f"the text encoder in {source}")
    digest = file_sha256(source)
    metadata = {"format": "pt", "logit_scale": f"{scale:.9f}", "source_sha256": digest, "licence": licence}
    dtypes = {str(value.dtype).removeprefix("torch.") for value in tensors.values()}
    dtype = dtypes.pop() if len(dtypes) == 1 else "float32"

    def fill(folder: Path) -> None:
        _write_small_files(folder, entries, dtype, files)
        tower_reader(folder, entries)  # a tokenizer that does not fit is refused before the large file is written
        write_tensors(folder / WEIGHTS, tensors, metadata)

    _write_folder(target, fill)
    width, layers = entries["hidden_size"], entries["num_hidden_layers"]
    return ConvertedTower(target, width, layers, dtype, len(tensors), scale, licence, digest, expected)


def _text_half(path: Path) -> tuple[dict[str, Tensor], float]:
    """The text tensors of a checkpoint under transformers' names, and the logarithm of the temperature."""
    found = read_state_dict(path, lambda key: _OPEN_CLIP.match(key) is not None)
    given = {re.sub(r"^(module\.)?(text\.)?", "", key): value for key, value in found.items()}
    scale = given.pop("logit_scale", None)
    if scale is None or scale.numel() != 1 or not math.isfinite(float(scale.float())) or len(given) != len(found) - 1:
        raise WeightsError(
            f"{path} has no text encoder of the OpenCLIP kind with its logit_scale; accepted are the state_dicts of "
            f"EVA-CLIP and OpenCLIP, for example EVA02_CLIP_E_psz14_plus_s9B.pt."
        )
    tensors: dict[str, Tensor] = {}
    try:
        tensors["text_model.embeddings.token_embedding.weight"] = given.pop("token_embedding.weight")
        tensors["text_model.embeddings.position_embedding.weight"] = given.pop("positional_embedding")
        tensors["text_projection.weight"] = given.pop("text_projection").transpose(0, 1)  # from x @ W to W' x
        for part in ("weight", "bias"):
            tensors[f"text_model.final_layer_norm.{part}"] = given.pop(f"ln_final.{part}")
        layer = 0
        while any(key.startswith(f"transformer.resblocks.{layer}.") for key in given):
            tensors |= _layer(given, layer)
            layer += 1
    except (KeyError, RuntimeError, IndexError) as error:  # the last two of odd shapes
        raise WeightsError(f"{path} has no whole text encoder: {show(str(error))} is missing or misshapen.") from error
    if given or not layer:
        odd = next(iter(given), "transformer.resblocks.0.ln_1.weight is missing")
        raise WeightsError(f"{path} has a text encoder of another kind than OpenCLIP's ({show(odd)}).")
    _require_shapes(path, tensors)
    return tensors, float(scale.float())


def _layer(given: dict[str, Tensor], number: int) -> dict[str, Tensor]:
    """One layer under transformers' names, taken out of `given`."""
    old, new = f"transformer.resblocks.{number}.", f"text_model.encoder.layers.{number}."
    tensors = {}
    for part in ("weight", "bias"):
        for theirs, ours in _LAYER.items():
            tensors[f"{new}{ours}.{part}"] = given.pop(f"{old}{theirs}.{part}")
        fused = given.pop(f"{old}attn.in_proj_{part}")  # (3 W, W) or (3 W,): queries, keys, values
        for name, third in zip("qkv", fused.unflatten(0, (3, -1)), strict=True):
            tensors[f"{new}self_attn.{name}_proj.{part}"] = third
    return tensors


def _entries(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The configuration that the tensors are for."""
    vocabulary, width = tensors["text_model.embeddings.token_embedding.weight"].shape
    return {
        "hidden_size": width,
        "intermediate_size": tensors["text_model.encoder.layers.0.mlp.fc1.weight"].shape[0],
        "num_hidden_layers": sum(key.endswith(".mlp.fc1.weight") for key in tensors),
        "num_attention_heads": width // _HEAD,
        "max_position_embeddings": tensors["text_model.embeddings.position_embedding.weight"].shape[0],
        "vocab_size": vocabulary,
        "projection_dim": tensors["text_projection.weight"].shape[0],
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-5,
        "bos_token_id": vocabulary - 2,
        "eos_token_id": vocabulary - 1,  # OpenCLIP reads a text at its highest id
    }


def _require_shapes(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Raise WeightsError unless all tensors fit one network, OptionError if that is of another space."""
    token, projection = tensors["text_model.embeddings.token_embedding.weight"], tensors["text_projection.weight"]
    flat = any(value.ndim == 0 for value in tensors.values())
    if flat or token.ndim != 2 or not token.shape[1] or token.shape[1] % _HEAD:
        raise WeightsError(f"{path} has a text encoder of another kind than OpenCLIP's: its heads are 64 wide.")
    require_space(projection.shape[0], f"The text encoder in {path}")
    entries = _entries(tensors)
    transformers = importlib.import_module("transformers")
    with torch.device("meta"):
        network = transformers.CLIPTextModelWithProjection(transformers.CLIPTextConfig(**entries))
    shapes = {key: value.to("meta") for key, value in tensors.items()}
    load_strictly(network, shapes, f"the text encoder in {path}", with_guess=False)


def _tokenizer_files(tokenizer: str | Path | None, source: Path) -> list[Path]:
    """The files of a CLIP tokenizer that are to be copied."""
    if tokenizer is None:
        folder = source.parent if _has_tokenizer(source.parent) else _hub_tokenizer(DEFAULT_TOKENIZER)
    else:
        folder = Path(tokenizer).expanduser()
        if not folder.exists() and re.fullmatch(r"[\w.-]{1,96}/[\w.-]{1,96}", str(tokenizer)):
            folder = _hub_tokenizer(str(tokenizer))
    if not _has_tokenizer(folder):
        raise OptionError(
            f"{folder} has no tokenizer; give a folder with tokenizer.json, or vocab.json and merges.txt, of any CLIP, "
            f"or a name of the Hugging Face hub such as {DEFAULT_TOKENIZER}."
        )
    files = [folder / name for name in TOKENIZER_FILES if (folder / name).is_file()]
    if sum(file.stat().st_size for file in files) > _MAX_TOKENIZER_BYTES:
        raise OptionError(f"The tokenizer in {folder} has more than {_MAX_TOKENIZER_BYTES} bytes; CLIP's has 4 MB.")
    return files


def _has_tokenizer(folder: Path) -> bool:
    found = {name for name in TOKENIZER_FILES if (folder / name).is_file()}
    return "tokenizer.json" in found or {"vocab.json", "merges.txt"} <= found


def _hub_tokenizer(name: str) -> Path:
    """The tokenizer's files of a model on the hub: in the cache of `anysam.describe.clip_files`, else downloaded."""
    from huggingface_hub import snapshot_download

    kept = home() / "hub" if os.environ.get("ANYSAM_HOME") else None
    try:
        folder = snapshot_download(
            name, allow_patterns=list(TOKENIZER_FILES), local_files_only=is_offline(), cache_dir=kept
        )
        return Path(folder)
    except Exception as error:  # of the hub's library, of the one that it connects by, and of the system
        reason = show(" ".join(str(error).split())[:120] or type(error).__name__)
        raise DownloadError(
            f"The tokenizer of {name} could not be fetched from the Hugging Face hub ({reason}); give the folder of "
            f"any CLIP that has tokenizer.json, or vocab.json and merges.txt."
        ) from error


def _write_small_files(folder: Path, entries: Mapping[str, Any], dtype: str, tokenizer: Iterable[Path]) -> None:
    """The configuration and the tokenizer, in a new folder."""
    for file in tokenizer:
        shutil.copyfile(file, folder / file.name)
    if not (folder / _TOKENIZER_CONFIG).exists():  # which says what the other files are
        length = entries["max_position_embeddings"]
        _write_json(folder / _TOKENIZER_CONFIG, {"tokenizer_class": "CLIPTokenizer", "model_max_length": length})
    kind = {"architectures": ["CLIPTextModelWithProjection"], "model_type": "clip_text_model", "torch_dtype": dtype}
    _write_json(folder / CONFIG, {**kind, **entries})


def _write_json(path: Path, form: Mapping[str, Any]) -> None:
    write_atomic(path, lambda stream: stream.write(json.dumps(form, indent=2).encode()))


def _write_folder(target: Path, fill: Callable[[Path], None]) -> None:
    """Make a folder whole or not at all; of one that exists, the files of the same names are replaced, each whole."""
    draft = target.with_name(f".{secrets.token_hex(8)}{DRAFT_SUFFIX}")
    try:
        draft.mkdir()
        try:
            fill(draft)
            if not target.exists():
                os.rename(draft, target)
                return
            for file in sorted(draft.iterdir(), key=lambda file: file.name == CONFIG):  # without it, it is no model
                os.replace(file, target / file.name)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    except OSError as error:
        raise OutputError(explain(target, error)) from error
