"""The folder of an image-text checkpoint: a user's own, or one of the Hugging Face hub, downloaded where it is missing.

A model that is in the cache is used as it is, without asking the hub for a newer one. The cache is `ANYSAM_HOME`/hub if
that variable is set, else the hub's own, which other programs share (HF_HOME, HF_HUB_CACHE). Of a repository only the
configuration, the tokenizer, the model card and one set of weights are fetched: model.safetensors, else
pytorch_model.bin, either in one file or in parts with an index. Nothing in these files is run: pickled weights are read
by `anysam.weights_files`. Environment variables, read at each call: ANYSAM_OFFLINE as in `anysam.fetch`; HF_ENDPOINT,
the hub's address, and the hub's own for tokens and proxies.
"""

import hashlib
import importlib.util
import io
import os
import re
import threading
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from anysam.describe.clip_texts import SPIECE, TOKENIZER_FILES, read_json
from anysam.errors import AnySamError, DownloadError, MissingExtraError, OptionError, UnknownModelError, WeightsError
from anysam.fetch import Progress, file_sha256, home
from anysam.licences import allowed_licences, announce_licence, require_allowed
from anysam.weights_files import read_state_dict, show

CONFIG = "config.json"
PROCESSOR = "preprocessor_config.json"
NEW_PROCESSOR = "processor_config.json"  # newer releases of transformers put everything into this one
CARD = "README.md"
WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # in the order of preference
INDEX = ".index.json"

_SMALL_FILES = (CONFIG, PROCESSOR, NEW_PROCESSOR, CARD, SPIECE, *TOKENIZER_FILES)
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")


@dataclass(frozen=True)
class CheckpointFolder:
    """Where a checkpoint's files are. revision: the hub's commit, None for a user's folder. licence: as its card says,
    None if it says nothing."""

    path: Path
    name: str
    revision: str | None
    licence: str | None


def find_checkpoint(
    name_or_folder: str | Path, progress: Progress | None = None, allow: str | Iterable[str] | None = None
) -> CheckpointFolder:
    """The folder of a checkpoint, downloaded if it is a name of the hub (OWNER/NAME) and not in the cache.

    progress(bytes so far, bytes in all or None). allow: as in anysam.licences; the licence is what the head of the
    model card says, and is looked at before the weights are fetched. A card that says nothing refuses nothing. Where
    the name is a folder too, the folder is meant.

    Raises UnknownModelError for a name that the hub lacks and OptionError for what can be neither folder nor name;
    WeightsError for a folder without the files; LicenceError; DownloadError, which says how else to get the files;
    MissingExtraError without the hub's library.
    """
    allowed = allowed_licences(allow)
    text = str(name_or_folder)
    if not text.strip() or "\0" in text:
        raise OptionError(f"An image-text model is a folder or a name of the hub, OWNER/NAME, got {text!r}.")
    folder = Path(text).expanduser()
    if folder.is_dir():
        _require_config(folder)
        found = CheckpointFolder(folder, text, None, _card_licence(folder))
    elif isinstance(name_or_folder, Path) or not _HUB_NAME.fullmatch(text):
        raise _no_folder(folder, text)
    else:
        found = cached_checkpoint(text) or _downloaded(text, progress, allowed)
    if found.licence is not None:
        require_allowed(found.name, found.licence, allowed)
        announce_licence(found.name, found.licence)
    return found


def read_weights(folder: Path) -> tuple[dict[str, Tensor], str]:
    """All tensors of a checkpoint and the sha256 of its weights, of several files the sha256 of theirs, in order.

    Raises WeightsError if there are none or they are damaged.
    """
    files = _weights_files(folder)
    tensors: dict[str, Tensor] = {}
    for file in files:
        part = read_state_dict(folder / file)
        twice = sorted(set(part) & set(tensors))
        if twice:
            raise WeightsError(f"{folder / file} holds {show(twice[0])}, as another part does; download them again.")
        tensors |= part
    digests = [file_sha256(folder / file) for file in files]
    return tensors, digests[0] if len(files) == 1 else hashlib.sha256("".join(digests).encode("ascii")).hexdigest()


def read_processor(folder: Path) -> dict[str, Any]:
    """What the checkpoint says about preparing pictures. Raises WeightsError if it says nothing."""
    if not (folder / PROCESSOR).is_file() and (folder / NEW_PROCESSOR).is_file():
        form = read_json(folder / NEW_PROCESSOR).get("image_processor")
        if isinstance(form, dict):
            return form
    return read_json(folder / PROCESSOR)


def _require_config(folder: Path) -> None:
    if not (folder / CONFIG).is_file():
        raise WeightsError(
            f"The folder {folder} has no {CONFIG}; accepted is a folder as the hub keeps a CLIP, SigLIP or SigLIP 2 "
            f"model for the transformers library: {CONFIG}, {PROCESSOR}, the tokenizer and {WEIGHTS[0]}."
        )


def _no_folder(folder: Path, text: str) -> AnySamError:
    if folder.is_file():
        return WeightsError(f"{text} is a file; give the folder that it is in, with {CONFIG} and the tokenizer.")
    return UnknownModelError(
        f"There is no folder {text!r}, and it is not a name of the hub, which are OWNER/NAME, for example "
        "openai/clip-vit-base-patch32."
    )


def _weights_files(folder: Path) -> list[str]:
    """The names of the files that hold a folder's weights, all of which are there. Raises WeightsError."""
    try:
        chosen = _chosen_weights([entry.name for entry in folder.iterdir()])
    except OSError as error:
        raise WeightsError(f"Cannot read the folder {folder}: {error.strerror or error}.") from error
    if chosen is None:
        raise WeightsError(
            f"{folder} has no weights that can be read; accepted are {' and '.join(WEIGHTS)}, or their parts with "
            f"{WEIGHTS[0]}{INDEX}."
        )
    if not chosen.endswith(INDEX):
        return [chosen]
    index = folder / chosen
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise WeightsError(f"{index} names no parts; download or copy it again.")
    files = sorted({str(place) for place in places.values()})
    for file in files:
        # no file from elsewhere may be meant
        if Path(file).name != file or not (folder / file).is_file():
            raise WeightsError(f"{index} names the part {show(file)}, which is not in {folder}; download it again.")
    return files


def _chosen_weights(names: Collection[str]) -> str | None:
    """Which of a folder's files to start from: weights, or the index of their parts."""
    return next((name for file in WEIGHTS for name in (file, file + INDEX) if name in names), None)


def _is_complete(folder: Path) -> bool:
    """Whether all that is needed of a repository is here; other programs may have fetched only a part of it."""
    processor = any((folder / file).is_file() for file in (PROCESSOR, NEW_PROCESSOR))
    tokenizer = any((folder / file).is_file() for file in (SPIECE, "tokenizer.json", "merges.txt"))
    try:
        return (folder / CONFIG).is_file() and processor and tokenizer and bool(_weights_files(folder))
    except WeightsError:
        return False


def _card_licence(folder: Path) -> str | None:
    """The licence in the head of the model card, None if there is no card or its head names none."""
    try:
        with open(folder / CARD, encoding="utf-8", errors="replace") as file:
            text = file.read(20_000)
    except OSError:
        return None
    head = re.match(r"---\s*\n(.*?)\n---", text, re.DOTALL)
    values = dict(
        re.findall(r"^(license|license_name):[ \t]*['\"]?([^\s'\"#\[\]]+)", head[1] if head else "", re.MULTILINE)
    )
    named = values.get("license")
    return values.get("license_name", named) if named == "other" else named


def _hub_library() -> None:
    if importlib.util.find_spec("huggingface_hub") is None:
        raise MissingExtraError(
            "Fetching an image-text model needs the transformers library; install it with: pip install 'anysam[text]'"
        )


def _cache_dir() -> Path | None:
    """Where downloads are kept; None for the hub's own place."""
    return home() / "hub" if os.environ.get("ANYSAM_HOME") else None


def cached_checkpoint(name: str) -> CheckpointFolder | None:
    """A model of the hub that is on this machine with all its files. Never connects."""
    _hub_library()
    from huggingface_hub import try_to_load_from_cache

    config = try_to_load_from_cache(name, CONFIG, cache_dir=_cache_dir())
    folder = Path(config).parent if isinstance(config, str) else None
    if folder is None or not _is_complete(folder):
        return None
    return CheckpointFolder(folder, name, folder.name, _card_licence(folder))


def _downloaded(name: str, progress: Progress | None, allowed: frozenset[str] | None) -> CheckpointFolder:
    """A model of the hub, fetched now: first what is small, then, if the licence is allowed, the weights."""
    if os.environ.get("ANYSAM_OFFLINE", "").lower() not in ("", "0", "false", "no"):
        raise DownloadError(
            f"The image-text model {name} is not in the cache and ANYSAM_OFFLINE forbids connecting; "
            f"unset ANYSAM_OFFLINE, or {_elsewhere(name)}."
        )
    try:
        from huggingface_hub import HfApi

        siblings = HfApi(endpoint=_endpoint()).model_info(name).siblings or []
        names = [sibling.rfilename for sibling in siblings]
        weights = _chosen_weights(names)
        if CONFIG not in names or weights is None:
            raise WeightsError(
                f"{name} is no CLIP, SigLIP or SigLIP 2 model for the transformers library: the hub has no "
                f"{CONFIG if CONFIG not in names else ' or '.join(WEIGHTS)} of it."
            )
        wanted = [file for file in (*_SMALL_FILES, weights) if file in names]
        folder = _fetched(name, [file for file in wanted if file not in WEIGHTS], None)
        licence = _card_licence(folder)
        if licence is not None:
            require_allowed(name, licence, allowed)
        if weights.endswith(INDEX):
            parts = read_json(folder / weights).get("weight_map")
            wanted += sorted({str(part) for part in parts.values()}) if isinstance(parts, dict) else []
        folder = _fetched(name, wanted, progress)
    except (WeightsError, MissingExtraError):
        raise
    except Exception as error:  # of the hub's library, of the one that it connects by, and of the system
        raise _hub_problem(name, error) from error
    _weights_files(folder)
    return CheckpointFolder(folder, name, folder.name, licence)


def _fetched(name: str, files: list[str], progress: Progress | None) -> Path:
    from huggingface_hub import snapshot_download

    return Path(
        snapshot_download(
            name,
            cache_dir=_cache_dir(),
            allow_patterns=files,
            endpoint=_endpoint(),
            tqdm_class=_quiet_bar(progress),
        )
    )


def _endpoint() -> str | None:
    return os.environ.get("HF_ENDPOINT") or None


def _quiet_bar(progress: Progress | None) -> type:
    """A progress bar that draws nothing and passes the bytes on; the hub's library takes only a class for that."""
    from tqdm.auto import tqdm  # type: ignore[import-untyped]

    reported = 0  # by any of the bars, of which several count the same bytes
    lock = threading.Lock()

    class Bar(tqdm):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            options.pop("name", None)
            super().__init__(*arguments, **{**options, "file": io.StringIO(), "disable": False})

        def update(self, n: float | None = 1) -> bool | None:
            nonlocal reported
            shown = super().update(n)
            with lock:
                if progress is not None and self.unit == "B" and self.n > reported:
                    reported = int(self.n)
                    progress(reported, int(self.total) if self.total else None)
            return shown

    return Bar


def _hub_problem(name: str, error: Exception) -> DownloadError | UnknownModelError:
    """What went wrong at the hub, in our words."""
    from huggingface_hub import errors

    if isinstance(error, errors.GatedRepoError):
        return DownloadError(
            f"The hub gives {name} only to those who accepted its terms there; do that, log in with `hf auth login`, "
            f"or {_elsewhere(name)}."
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return UnknownModelError(
            f"There is no folder {name!r}, and the hub has no model of that name for you; check the name, for example "
            "openai/clip-vit-base-patch32, or log in if it is a private one."
        )
    reason = " ".join(str(error).split())[:120] or type(error).__name__
    return DownloadError(
        f"The image-text model {name} could not be fetched from the Hugging Face hub ({show(reason)}); try again, or "
        f"{_elsewhere(name)}."
    )


def _elsewhere(name: str) -> str:
    return (
        f"download it where there is a network (hf download {name} --local-dir FOLDER), copy the folder here and give "
        "its path as the model"
    )
