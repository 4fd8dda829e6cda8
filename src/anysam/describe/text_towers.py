"""Names embedded with the text encoder that Tokenize Anything's semantic embeddings belong to.

It is the text half of EVA02-CLIP-bigE-14-plus (Sun et al., "EVA-CLIP", 2023): OpenCLIP's text transformer, 32 layers of
20 heads, 1280 wide, exact GELU, 77 tokens, read at the end token, projected to 1024. Sources: baaivision/EVA,
EVA-CLIP/rei/eva_clip/{model,transformer}.py and model_configs/EVA02-CLIP-bigE-14-plus.json (MIT);
mlfoundations/open_clip, model_configs/EVA02-E-14-plus.json (MIT). It is published only with the image half, 10 GB, as
EVA02_CLIP_E_psz14_plus_s9B.pt and, for OpenCLIP, as timm/eva02_enormous_patch14_plus_clip_224.laion2b_s9b_b144k.
`anysam.describe.tower_conversion` keeps the text half, 1.4 GB, in a folder as transformers loads it.

No other CLIP shares the space of these embeddings, not even one that is as wide.
"""

import hashlib
import importlib
import importlib.util
import math
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from anysam.checkpoints import load_strictly
from anysam.describe.clip_texts import (
    TOKENIZER_FILES,
    Say,
    TextReader,
    load_text_reader,
    padded_ids,
    read_json,
    token_ids,
)
from anysam.describe.vocabulary import TEMPLATE, Vocabulary
from anysam.errors import MissingExtraError, OptionError, WeightsError
from anysam.weights_files import read_metadata, read_state_dict, show

NAME = "EVA02-CLIP-bigE-14-plus"
SPACE = 1024  # the width of Tokenize Anything's semantic embeddings
WIDTH, LAYERS = 1280, 32  # of NAME
CONFIG, WEIGHTS = "config.json", "model.safetensors"

_DEFAULT_LOGIT_SCALE = math.log(100)  # CLIP's upper limit, which training reaches
_SHAPE = (
    "hidden_size intermediate_size num_hidden_layers num_attention_heads hidden_act layer_norm_eps projection_dim "
    "vocab_size max_position_embeddings bos_token_id eos_token_id"
).split()
_TEXT_KEYS = re.compile(r"(text_model\..*(?<!\.position_ids)|text_projection\.weight)")


def embed_names(
    names: Sequence[str],
    text_encoder: str | Path,
    template: str = TEMPLATE,
    batch: int = 64,
    progress: Callable[[float], None] | None = None,
    say: Say | None = None,
) -> Vocabulary:
    """Names with the embeddings that Tokenize Anything compares: (1024, C), unit length times the temperature.

    text_encoder: the folder that `anysam.describe.tower_conversion` wrote. template: what is read in place of a name,
    {} standing for it. batch: how many are computed at once, in float32 on the CPU. progress: called with the part that
    is done, rising to 1. say: for sentences about names that had to be cut and about an encoder that is not the
    expected one; None warns.

    Raises OptionError for another kind of encoder, a template without {} or no names, WeightsError for a damaged
    folder, MissingExtraError without transformers.
    """
    if template.count("{}") != 1 or template.replace("{}", "").count("{") or template.replace("{}", "").count("}"):
        raise OptionError(f"A template has {{}} once, where the name goes, for example {TEMPLATE!r}, got {template!r}.")
    if isinstance(batch, bool) or not isinstance(batch, int) or batch < 1:
        raise OptionError(f"batch must be a whole number from 1, got {batch!r}.")
    if not names:
        raise OptionError("No names are given to embed; give at least one.")
    say = say or _warn
    folder = _encoder_folder(text_encoder)
    require_transformers()
    entries = _architecture(folder)
    reader = tower_reader(folder, entries)
    rows = [token_ids(reader, " ".join(template.format(name).split()), say) for name in names]
    network, scale = _network(folder, entries, say)
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))  # short beside short: less to fill up
    embeddings = np.empty((entries["projection_dim"], len(rows)), dtype=np.float32)
    for start in range(0, len(order), batch):
        places = order[start : start + batch]
        ids = torch.from_numpy(padded_ids(reader, [rows[i] for i in places]))  # (B, L)
        with torch.inference_mode():
            # the network's own count of positions is not there: it was built without memory
            features = network(input_ids=ids, position_ids=torch.arange(ids.shape[1])[None]).text_embeds  # (B, D)
        embeddings[:, places] = (functional.normalize(features.float(), dim=-1) * scale).T.numpy()
        if progress is not None:
            progress(min(1.0, (start + batch) / len(order)))
    if not np.isfinite(embeddings).all():
        raise WeightsError(f"The text encoder in {folder} computes nothing but NaN; make the folder again.")
    return Vocabulary(tuple(names), embeddings, f"{len(names)} names embedded by {folder}")


def encoder_identity(text_encoder: str | Path) -> str | None:
    """A text that changes when an encoder's files do, without reading its weights; None if there is no such folder."""
    folder = Path(text_encoder).expanduser()
    digest = hashlib.sha256()
    try:
        for name in (CONFIG, *TOKENIZER_FILES):
            if (folder / name).is_file():
                digest.update(name.encode() + b"\0" + (folder / name).read_bytes())
        state = (folder / WEIGHTS).stat()
    except OSError:
        return None
    return f"{digest.hexdigest()} {state.st_size} {state.st_mtime_ns}"


def _warn(message: str) -> None:
    warnings.warn(message, stacklevel=3)


def require_transformers() -> None:
    """Raise MissingExtraError without transformers, whose import takes seconds."""
    if importlib.util.find_spec("transformers") is None:
        raise MissingExtraError(
            "Embedding names needs the transformers library; install it with: pip install 'anysam[text]'"
        )


def _encoder_folder(text_encoder: str | Path) -> Path:
    folder = Path(text_encoder).expanduser()
    if (folder / CONFIG).is_file() and (folder / WEIGHTS).is_file():
        return folder
    what = f"has no {CONFIG} and {WEIGHTS}" if folder.is_dir() else "is no folder"
    raise OptionError(
        f"A text encoder is the folder that `anysam convert --text-tower` makes of {NAME}, but {text_encoder} {what}."
    )


def _architecture(folder: Path) -> dict[str, Any]:
    """What shapes the network, of the folder's configuration, and nothing else: that could name code to run."""
    form = read_json(folder / CONFIG)
    text = form.get("text_config") if form.get("model_type") == "clip" else form
    if form.get("model_type") not in ("clip", "clip_text_model") or not isinstance(text, dict):
        raise OptionError(
            f"{folder} is a model of the kind {show(str(form.get('model_type')))!r}; the text encoder of Tokenize "
            f"Anything is a CLIP ({NAME})."
        )
    entries = {name: text[name] for name in _SHAPE if text.get(name) is not None}
    if form is not text:
        entries["projection_dim"] = form.get("projection_dim")
    whole = [name for name in _SHAPE if name not in ("hidden_act", "layer_norm_eps")]
    odd = [name for name in whole if type(entries.get(name, 1)) is not int or not 0 <= entries.get(name, 1) < 10**7]
    if odd or entries.get("projection_dim") is None or entries.get("num_hidden_layers", 1) > 500:
        raise WeightsError(f"{folder / CONFIG} describes no text encoder (see {', '.join(odd) or 'projection_dim'}).")
    require_space(entries["projection_dim"], str(folder))
    return entries


def require_space(width: int, what: str) -> None:
    """Raise OptionError unless embeddings of `what`, the subject of a sentence, are as wide as those compared with."""
    if width != SPACE:
        raise OptionError(
            f"{what} makes embeddings of {width} numbers, but those of Tokenize Anything have {SPACE} and belong to "
            f"{NAME}; other CLIPs do not share their space."
        )


def tower_reader(folder: Path, entries: Mapping[str, Any]) -> TextReader:
    """The tokenizer of a folder, for its network. Raises WeightsError if they do not belong together."""
    reader = load_text_reader(folder, "clip", entries.get("max_position_embeddings", 77), str(folder))
    size, end = entries.get("vocab_size", 49408), entries.get("eos_token_id", reader.end)
    if max(*reader.start, reader.end) >= size or end not in (reader.end, 2):  # 2: in early configurations
        raise WeightsError(
            f"The tokenizer in {folder} ends texts with the id {reader.end}, but the network expects {end} of {size}; "
            f"they do not belong together."
        )
    return reader


def _network(folder: Path, entries: Mapping[str, Any], say: Say) -> tuple[Any, float]:
    """The network with its weights in float32, and the temperature. Raises WeightsError if they do not fit."""
    transformers = importlib.import_module("transformers")
    try:
        with torch.device("meta"):
            network: nn.Module = transformers.CLIPTextModelWithProjection(transformers.CLIPTextConfig(**entries))
    except Exception as error:  # whatever senseless numbers lead to
        reason = show(" ".join(str(error).split())[:120] or type(error).__name__)
        raise WeightsError(f"{folder / CONFIG} describes no text encoder ({reason}).") from error
    path = folder / WEIGHTS
    given = read_state_dict(path, lambda key: key == "logit_scale" or _TEXT_KEYS.fullmatch(key) is not None)
    scale = _logit_scale(path, given.pop("logit_scale", None), say)
    shapes = {key: value.to("meta") for key, value in given.items()}
    load_strictly(network, shapes, f"the text encoder in {folder}", with_guess=False)
    network.load_state_dict({key: value.to(torch.float32, copy=True) for key, value in given.items()}, assign=True)
    network.eval().requires_grad_(False)
    if (entries.get("hidden_size"), entries.get("num_hidden_layers")) != (WIDTH, LAYERS):
        say(f"The text encoder in {folder} is not that of {NAME}; labels found with it mean nothing.")
    return network, math.exp(scale)


def _logit_scale(path: Path, stored: Tensor | None, say: Say) -> float:
    """The logarithm of the temperature: as the file's metadata says, else a whole CLIP's tensor, else its limit."""
    noted = read_metadata(path).get("logit_scale", "")
    if re.fullmatch(r"-?\d{1,3}(\.\d{1,20})?", noted):
        scale = float(noted)
    elif stored is not None and stored.numel() == 1:
        scale = float(stored.float())
    else:
        scale = _DEFAULT_LOGIT_SCALE
        say(f"{path} has no temperature; 100 is taken, which CLIPs end their training with.")
    if not -10 < scale < 10:
        raise WeightsError(f"{path} has the logarithm {scale:g} of a temperature; accepted are -10 to 10.")
    return scale
