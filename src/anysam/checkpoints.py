"""From a name or a file of weights to a network, and from published files to files of our own format.

What may be in a file is up to `weights_files`, which network it is for to `identification`; the fit is strict.
"""

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from anysam.catalogue import VARIANTS, Variant, find_variant
from anysam.errors import OptionError, OutputError, WeightsError
from anysam.fetch import Progress, fetch_weights, locate, missing_parts, verify_weights
from anysam.fetch import file_sha256 as file_sha256  # the names that callers of this module use
from anysam.identification import EXTRA_KEYS, converted, guess_variant, likely_variants, merged, unfilled
from anysam.licences import allowed_licences, announce_licence, require_allowed
from anysam.weights_files import (
    FORMAT,
    SUFFIXES,
    read_checkpoint,
    read_metadata,
    read_state_dict,
    save_checkpoint,
    show,
)
from anysam.weights_files import read_concepts as read_concepts
from anysam.weights_files import write_tensors as write_tensors

_DTYPES = {"float32": torch.float32, "float16": torch.float16}


@dataclass(frozen=True, eq=False)
class _Weights:
    """A state_dict, converted to the keys of `variant`, where it came from and under which licence it is."""

    state_dict: dict[str, Tensor]
    variant: Variant
    sha256: str
    licence: str


@dataclass(frozen=True)
class Converted:
    """What `convert_checkpoint` wrote. source_sha256: of the files it was made from, with commas between."""

    path: Path
    variant: str
    licence: str
    dtype: str
    tensors: int
    source_sha256: str


def load_strictly(
    module: nn.Module, state_dict: Mapping[str, Tensor], variant_name: str, with_guess: bool = True
) -> None:
    """Copy `state_dict` into `module`, which keeps its own dtype (float16 files become float32) and device.

    Every key must be there, and no other (but for EXTRA_KEYS), each in the module's shape. Otherwise raises
    WeightsError with the number and the first of the missing, unexpected and misshapen keys and a guess of what the
    weights are; the module is then unchanged. variant_name: what the module is, for the message. with_guess: False for
    what is no model of the catalogue; guessing takes seconds.
    """
    expected = module.state_dict()
    given = {key: value for key, value in state_dict.items() if key in expected or not _is_allowed_extra(key, value)}
    missing = [key for key in expected if key not in given]
    unexpected = [show(key) for key in given if key not in expected]
    misshapen = [
        f"{key} is {_form(given[key])} instead of {_form(wanted)}"
        for key, wanted in expected.items()
        if key in given and _form(given[key]) != _form(wanted)
    ]
    if not (missing or unexpected or misshapen):
        module.load_state_dict(given, strict=True)
        return
    problems = [
        f"{len(keys)} {word} (first: {', '.join(keys[:3])})"
        for word, keys in (("missing", missing), ("unexpected", unexpected), ("misshapen", misshapen))
        if keys
    ]
    guess = guess_variant(_shapes(state_dict)) if with_guess else None
    hint = f"; this looks like {guess}" if guess not in (None, variant_name) else ""
    raise WeightsError(f"These weights do not fit {variant_name}: keys {', '.join(problems)}{hint}.")


def _form(tensor: Tensor) -> str:
    """Shape, and whether the values are fractions or whole numbers; the width of a number does not matter."""
    return f"{tuple(tensor.shape)}{'' if tensor.is_floating_point() else ' of whole numbers'}"


def _is_allowed_extra(key: str, value: Tensor) -> bool:
    if key not in EXTRA_KEYS or value.numel() != 3:
        return False
    return torch.allclose(value.flatten().double(), torch.tensor(EXTRA_KEYS[key], dtype=torch.float64), atol=0.05)


def load_model(
    name_or_path: str | Path,
    variant: str | None = None,
    progress: Progress | None = None,
    allow: str | Iterable[str] | None = None,
) -> tuple[nn.Module, Variant, str]:
    """The network with its weights (float32, CPU, training mode as built), its catalogue row, and the file's sha256.

    A name from the catalogue takes the package's own file, else the cache, else a download (see anysam.fetch for
    `progress` and the errors); the hash is checked. Anything that is a Path, exists, or looks like a file is read from
    there; which variant it is comes from `variant`, else from its hash, its metadata, or its keys and shapes.
    allow: the licences that the weights may be under, see anysam.licences.

    Raises UnknownModelError, OptionError (a name with another `variant`), LicenceError, WeightsError or DownloadError.
    """
    allowed = allowed_licences(allow)
    names = {row.name for row in VARIANTS}
    if isinstance(name_or_path, Path) or (name_or_path not in names and _looks_like_file(name_or_path)):
        paths = [Path(name_or_path).expanduser()]
        weights = _read(paths, variant)
        require_allowed(str(paths[0]), weights.licence, allowed)
    else:
        row = find_variant(name_or_path)
        if variant is not None and find_variant(variant) != row:
            raise OptionError(f"The model {row.name} is not a {variant}; give a variant only with the path of a file.")
        require_allowed(row.name, row.weights_licence, allowed)  # before a download
        paths = _published_files(row, progress)
        weights = _read(paths, row.name)
    announce_licence(weights.variant.name, weights.licence)
    return _network(weights, paths), weights.variant, weights.sha256


def _looks_like_file(text: str) -> bool:
    return Path(text).suffix.lower() in SUFFIXES or "/" in text or os.sep in text or Path(text).is_file()


def _published_files(row: Variant, progress: Progress | None) -> list[Path]:
    """The files of a model on this machine, verified: the one, or where that is not here its published parts."""
    rows = missing_parts(row) or (row,)
    paths = [locate(each) or fetch_weights(each, progress) for each in rows]
    for each, path in zip(rows, paths, strict=True):
        verify_weights(each, path)
    return paths


def _read(paths: Sequence[Path], variant: str | None) -> _Weights:
    """The weights in one file or in the several that a variant is published as. variant: None to find out."""
    chosen = None if variant is None else find_variant(variant)
    if len(paths) == 1:
        state_dict = _read_whole(paths[0])
        digest, metadata = file_sha256(paths[0]), read_metadata(paths[0])
        row = chosen or _identify(paths[0], state_dict, digest, metadata)
        licence = metadata.get("licence", "") if metadata.get("format") == FORMAT else ""
        return _Weights(_converted(row, state_dict, paths), row, digest, licence or row.weights_licence)
    contents = [read_checkpoint(path) for path in paths]
    row = chosen or _identify_parts(paths, contents)
    try:
        state_dict = merged(row, contents)
    except WeightsError as error:
        raise WeightsError(f"{', '.join(map(str, paths))}: {error}") from error
    digests = ",".join(map(file_sha256, paths))
    return _Weights(_converted(row, state_dict, paths), row, digests, row.weights_licence)


def _converted(row: Variant, state_dict: Mapping[str, Tensor], paths: Sequence[Path]) -> dict[str, Tensor]:
    try:
        return converted(row, state_dict)
    except WeightsError as error:
        raise WeightsError(f"{', '.join(map(str, paths))}: {error}") from error


def _read_whole(path: Path) -> dict[str, Tensor]:
    """The state_dict of a model that is one file. Raises WeightsError that says so if it is a part of another."""
    try:
        return read_state_dict(path)
    except WeightsError:
        if not _rows_with_part(path) or not isinstance(read_checkpoint(path), dict):
            raise
    raise _only_a_part(path)


def _rows_with_part(path: Path) -> list[Variant]:
    return [row for row in VARIANTS if any(part.name == path.name for part in row.parts)]


def _only_a_part(path: Path) -> WeightsError:
    row = _rows_with_part(path)[0]
    names = " ".join(part.name for part in row.parts)
    return WeightsError(
        f"{path} is only a part of a model, for example of {row.name}; join its files with `anysam convert {names} "
        f"-o {row.file.name}`, and load that."
    )


def _network(weights: _Weights, paths: Sequence[Path]) -> nn.Module:
    """The network filled with the weights. Raises WeightsError with the files' names."""
    try:
        module = unfilled(weights.variant, weights.state_dict)
        load_strictly(module, weights.state_dict, weights.variant.name)
    except WeightsError as error:
        raise WeightsError(f"{', '.join(map(str, paths))}: {error}") from error
    return module


def _identify(path: Path, state_dict: Mapping[str, Tensor], digest: str, metadata: Mapping[str, str]) -> Variant:
    """The variant whose published hash a file has, which it says it is, or which its tensors look like."""
    published = [row for row in VARIANTS if row.file.sha256 == digest]
    if published:
        return published[0]
    if metadata.get("format") == FORMAT and re.fullmatch(r"\w+", metadata.get("variant", "")):
        return find_variant(metadata["variant"])
    likely = likely_variants(_shapes(state_dict))
    if likely:  # some variants differ in values only: then the file's name decides
        return next((row for row in likely if row.file.name == path.name), likely[0])
    if _rows_with_part(path):
        raise _only_a_part(path)
    first, names = show(next(iter(state_dict))), ", ".join(row.name for row in VARIANTS)
    raise WeightsError(f"Cannot tell which model {path} is for (first key: {first}); pass variant, one of {names}.")


def _identify_parts(paths: Sequence[Path], contents: Sequence[object]) -> Variant:
    """The variant whose parts these are, in any order and under any names."""
    rows = [row for row in VARIANTS if row.parts]
    for family in dict.fromkeys(row.family for row in rows):
        first = next(row for row in rows if row.family == family)
        try:
            state_dict = merged(first, contents)
        except WeightsError as error:
            if len({row.family for row in rows}) == 1:  # then its reason is the best that can be said
                raise WeightsError(f"{', '.join(map(str, paths))}: {error}") from error
            continue
        for row in likely_variants(_shapes(state_dict)):
            if row in rows:
                return row
    names = ", ".join(row.name for row in rows)
    raise WeightsError(
        f"Cannot tell which model {', '.join(map(str, paths))} are the parts of; pass variant, one of {names}."
    )


def _shapes(state_dict: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {key: tuple(value.shape) for key, value in state_dict.items()}


def convert_checkpoint(
    paths: str | Path | Sequence[str | Path],
    out: str | Path,
    variant: str | None = None,
    dtype: str | None = None,
    force: bool = False,
    allow: str | Iterable[str] | None = None,
) -> Converted:
    """Write weights of any accepted kind as a .safetensors file that says which model it is and where it came from.

    paths: a file, or the several that a model is published as. variant: as in `anysam.load`. dtype: "float16" or
    "float32" for the fractions among the numbers; None keeps what is stored. force: replace an existing file. allow:
    the licences that the weights may be under. The file fits the network strictly, and appears whole or not at all.

    Raises as `anysam.load` does, OptionError for another dtype or suffix, OutputError if `out` exists or cannot be
    written.
    """
    sources = [Path(path).expanduser() for path in ([paths] if isinstance(paths, (str, Path)) else paths)]
    target = Path(out).expanduser()
    _check_request(sources, target, dtype, force)
    allowed = allowed_licences(allow)
    weights = _read(sources, variant)
    require_allowed(weights.variant.name, weights.licence, allowed)
    announce_licence(weights.variant.name, weights.licence)
    keys = _network(weights, sources).state_dict().keys()
    tensors = {key: _cast(key, weights.state_dict[key], dtype) for key in keys}
    metadata = {"variant": weights.variant.name, "source_sha256": weights.sha256, "licence": weights.licence}
    save_checkpoint(target, tensors, metadata)
    written = read_metadata(target)["dtype"]
    return Converted(target, weights.variant.name, weights.licence, written, len(tensors), weights.sha256)


def _check_request(sources: Sequence[Path], target: Path, dtype: str | None, force: bool) -> None:
    if not sources:
        raise OptionError("No file to convert is given.")
    if dtype is not None and dtype not in _DTYPES:
        raise OptionError(f"dtype must be one of {', '.join(_DTYPES)}, got {dtype!r}.")
    if target.suffix != ".safetensors":
        raise OptionError(f"The file to write must end in .safetensors, got {str(target)!r}.")
    if any(source.exists() and target.exists() and source.samefile(target) for source in sources):
        raise OptionError(f"{target} is the file to convert; write another one.")
    if target.exists() and not force:
        raise OutputError(f"{target} is there already; choose another name, or replace it with --force.")


def _cast(key: str, value: Tensor, dtype: str | None) -> Tensor:
    """`value` in the wanted dtype. Raises OptionError if it has numbers too large for it."""
    if dtype is None or not value.is_floating_point() or value.dtype == _DTYPES[dtype]:
        return value
    cast = value.to(_DTYPES[dtype])
    if not torch.equal(torch.isfinite(cast), torch.isfinite(value)):
        raise OptionError(f"{key} has values that {dtype} cannot hold, up to {value.abs().max():g}; use float32.")
    return cast
