"""Read weights safely, fit them strictly, save them with their origin. Knows no architecture.

Nothing in a file is ever run: .safetensors holds only numbers, and of a pickled .pth or .pt only the names that rebuild
plain tensors and containers are accepted, before torch's own `weights_only` unpickler reads it.
"""

import io
import os
import pickletools
import re
import secrets
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import init
from torch.overrides import TorchFunctionMode

from anysam.catalogue import VARIANTS, Variant, find_variant
from anysam.errors import OptionError, OutputError, WeightsError
from anysam.fetch import Progress, fetch_weights, locate, verify_weights
from anysam.fetch import file_sha256 as file_sha256  # the name that callers of this module use
from anysam.models import build

FORMAT = "anysam"
MAX_BYTES = 16_000_000_000  # six times the largest file of the family
WRAPPERS = ("model", "state_dict", "model_state_dict")
SUFFIXES = (".pth", ".pt", ".safetensors")

# Keys that a file may have beyond the model's own, and the only values they may hold: another value means another
# preprocessing than ours, so it counts as an unexpected key.
EXTRA_KEYS = {
    # SAM's pixel statistics are non-persistent buffers: official files lack them, some re-saved files have them.
    "pixel_mean": (123.675, 116.28, 103.53),
    "pixel_std": (58.395, 57.12, 57.375),
}

# Names that a pickled state_dict refers to. torch's own list is wider: its bytearray, for example, lets a file of 200
# bytes ask for any amount of memory.
_TENSOR_GLOBALS = frozenset(
    ["collections OrderedDict", "collections defaultdict", "collections Counter", "torch Size", "torch device"]
    + [f"torch._utils _rebuild_{what}" for what in ("tensor", "tensor_v2", "tensor_v3", "parameter")]
    + [f"torch {kind}Storage" for kind in "Float Half BFloat16 Double Long Int Short Char Byte Bool Untyped".split()]
    + ["torch.storage UntypedStorage"]
    + [f"torch {kind}" for kind in "float32 float16 bfloat16 float64 int64 int32 int16 int8 uint8 bool".split()]
)


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors file, or of a .pth/.pt file that holds a state_dict, plain or wrapped.

    Unwraps {"model" | "state_dict" | "model_state_dict": state_dict} and strips a "module." that all keys share. The
    tensors are on the CPU, in the stored dtype, and may be views of the file: copy them before it is changed in place.
    Raises WeightsError if the file is missing, damaged, of another kind, or holds anything but tensors.
    """
    path = Path(path)
    kind = _file_kind(path)
    if kind == "safetensors":
        try:
            content: object = load_file(path)
        except Exception as error:  # the library raises its own error, KeyError for odd dtypes and more
            raise _damaged(path, error) from error
    else:
        content = _read_pickled(path, kind)
    state_dict = _unwrap(path, content)
    _require_honest_sizes(path, state_dict)
    if state_dict and all(key.startswith("module.") for key in state_dict):
        state_dict = {key.removeprefix("module."): value for key, value in state_dict.items()}
    return state_dict


def read_metadata(path: str | Path) -> dict[str, str]:
    """The metadata of a .safetensors file; empty for files without any. Raises WeightsError as read_state_dict does."""
    path = Path(path)
    if _file_kind(path) != "safetensors":
        return {}
    try:
        with safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {})
    except Exception as error:  # as in read_state_dict
        raise _damaged(path, error) from error


def _file_kind(path: Path) -> str:
    """The file's kind by its content: "safetensors", "zip" (torch's format) or "pickle" (torch's before 1.6)."""
    try:
        with open(path, "rb") as file:
            head, size = file.read(512), os.fstat(file.fileno()).st_size
    except FileNotFoundError as error:
        raise WeightsError(f"There is no weights file {path}.") from error
    except OSError as error:
        raise WeightsError(f"Cannot read the weights file {path}: {error.strerror or error}.") from error
    if size == 0:
        raise WeightsError(f"The weights file {path} is empty; download or copy it again.")
    if size > MAX_BYTES:
        raise WeightsError(f"The weights file {path} has {size} bytes; at most {MAX_BYTES} are read.")
    text = head.lstrip().lower()
    if text.startswith((b"<!doctype", b"<html", b"<head", b"<?xml")):
        raise WeightsError(f"{path} is a web page, not weights; download the file itself, not the page that shows it.")
    if text.startswith(b"version https://git-lfs"):
        raise WeightsError(f"{path} is a Git LFS pointer, not weights; run `git lfs pull` where it came from.")
    if head.startswith((b"PK\x03\x04", b"\x80")):
        if path.suffix == ".safetensors":  # torch.load goes by the name and would fail obscurely
            raise WeightsError(f"{path} is a pickled PyTorch file, not safetensors; rename it to .pth.")
        return "zip" if head.startswith(b"PK") else "pickle"
    if path.suffix == ".safetensors" or (head[8:9] == b"{" and int.from_bytes(head[:8], "little") < size):
        return "safetensors"
    raise WeightsError(f"{path} is not a weights file; accepted are .safetensors and PyTorch's .pth and .pt.")


def _read_pickled(path: Path, kind: str) -> object:
    """What a .pth or .pt file holds, read without running any of it."""
    try:
        if kind == "zip":
            with zipfile.ZipFile(path) as archive:
                _check_archive(path, archive)
                _check_globals(path, io.BytesIO(archive.read(_pickle_member(path, archive))))
        else:
            with open(path, "rb") as file:
                for _ in range(5):  # magic number, version, system, the object, names of its storages
                    _check_globals(path, file)
        # mmap: storages are slices of the file, so that no claim in it can ask for memory
        return torch.load(path, map_location="cpu", weights_only=True, mmap=kind == "zip")
    except WeightsError:
        raise
    except Exception as error:  # a damaged pickle can fail in any way; nothing goes on after it
        raise _damaged(path, error) from error


def _check_archive(path: Path, archive: zipfile.ZipFile) -> None:
    """Refuse zip bombs: torch stores its members uncompressed, so that they cannot be larger than the file."""
    members = archive.infolist()
    claimed, size = sum(member.file_size for member in members), path.stat().st_size
    if claimed > size or any(member.compress_type != zipfile.ZIP_STORED for member in members):
        raise WeightsError(
            f"{path} is not a PyTorch weights file: it has {size} bytes, but its members claim {claimed} bytes or are "
            f"compressed, which torch.save never does."
        )


def _pickle_member(path: Path, archive: zipfile.ZipFile) -> str:
    names = archive.namelist()
    if any(name.endswith("/constants.pkl") for name in names):
        raise WeightsError(f"{path} is a TorchScript program, not weights; save its state_dict() with torch.save.")
    pickles = [name for name in names if name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise WeightsError(f"{path} is a zip archive, but not one written by torch.save; pass the weights file itself.")
    return pickles[0]


def _check_globals(path: Path, file: BinaryIO) -> None:
    """Read one pickle's instructions, without following them, and refuse names that tensors do not need."""
    for name in _global_names(file):
        if name not in _TENSOR_GLOBALS:
            raise WeightsError(
                f"{path} holds Python objects ({_show(name.replace(' ', '.'))}), not just tensors, and was not run; "
                f"save model.state_dict() in the program that made it."
            )


def _global_names(file: BinaryIO) -> Iterator[str]:
    """The names that a pickle looks up, as "module name"."""
    for opcode, argument, _ in pickletools.genops(file):
        if opcode.name == "GLOBAL":
            yield str(argument)
        elif opcode.name in ("STACK_GLOBAL", "INST", "OBJ", "EXT1", "EXT2", "EXT4"):
            yield f"pickle instruction {opcode.name}"  # torch.save does not write these


def _unwrap(path: Path, content: object) -> dict[str, Tensor]:
    """The state_dict in `content`: itself, or under one of WRAPPERS."""
    if isinstance(content, Mapping):
        found = [key for key in WRAPPERS if isinstance(content.get(key), Mapping)]
        if len(found) > 1:
            raise WeightsError(
                f"{path} holds more than one state_dict ({', '.join(found)}); save the wanted one in a file of its own."
            )
        inner = content[found[0]] if found else content
        other = next(
            (key for key, value in inner.items() if not isinstance(key, str) or not isinstance(value, Tensor)), None
        )
        if other is None and inner:
            return {key: value.detach() for key, value in inner.items()}
        if inner:
            kind = type(inner[other]).__name__
            raise WeightsError(
                f"{path} holds no state_dict: {_show(str(other))} is of type {kind}, not a tensor; "
                f"accepted are a state_dict or one under {', '.join(WRAPPERS)}."
            )
    raise WeightsError(f"{path} holds no tensors; accepted are a state_dict or one under {', '.join(WRAPPERS)}.")


def _require_honest_sizes(path: Path, state_dict: Mapping[str, Tensor]) -> None:
    """Refuse tensors that repeat a few stored values billions of times."""
    claimed = sum(value.numel() * value.element_size() for value in state_dict.values())
    if claimed > MAX_BYTES:
        raise WeightsError(f"The tensors of {path} claim {claimed} bytes; at most {MAX_BYTES} are read.")


def _damaged(path: Path, error: Exception) -> WeightsError:
    # the rest of torch's text advises to switch its safety off
    reason = " ".join(str(error).split())[:160] or type(error).__name__
    if "weights_only" in reason or "Weights only" in reason:
        reason = "it is not a plain state_dict"
    return WeightsError(f"The weights file {path} is damaged or incomplete ({reason}); download or copy it again.")


def _show(name: str) -> str:
    """A name from a file, fit for a one-line message."""
    return name if name.isprintable() and len(name) <= 120 else ascii(name[:120])


def load_strictly(module: nn.Module, state_dict: Mapping[str, Tensor], variant_name: str) -> None:
    """Copy `state_dict` into `module`, which keeps its own dtype (float16 files become float32) and device.

    Every key must be there, and no other (but for EXTRA_KEYS), each in the module's shape. Otherwise raises
    WeightsError with the number and the first of the missing, unexpected and misshapen keys and a guess of what the
    weights are; the module is then unchanged. variant_name: what the module is, for the message.
    """
    expected = module.state_dict()
    given = {key: value for key, value in state_dict.items() if key in expected or not _is_allowed_extra(key, value)}
    missing = [key for key in expected if key not in given]
    unexpected = [_show(key) for key in given if key not in expected]
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
    guess = guess_variant({key: tuple(value.shape) for key, value in state_dict.items()})
    hint = f"; this looks like {guess}" if guess not in (None, variant_name) else ""
    raise WeightsError(f"These weights do not fit {variant_name}: keys {', '.join(problems)}{hint}.")


def _form(tensor: Tensor) -> str:
    """Shape, and whether the values are fractions or whole numbers; the width of a number does not matter."""
    return f"{tuple(tensor.shape)}{'' if tensor.is_floating_point() else ' of whole numbers'}"


def _is_allowed_extra(key: str, value: Tensor) -> bool:
    if key not in EXTRA_KEYS or value.numel() != 3:
        return False
    return torch.allclose(value.flatten().double(), torch.tensor(EXTRA_KEYS[key], dtype=torch.float64), atol=0.05)


def guess_variant(shapes: Mapping[str, tuple[int, ...]]) -> str | None:
    """The variant whose keys and shapes are most like `shapes`, or None if no variant shares at least half of them.

    Builds the networks of the catalogue one after the other, without filling them, until one fits exactly.
    """
    given = {(key, tuple(shape)) for key, shape in shapes.items() if key not in EXTRA_KEYS}
    best, best_score = None, 0.5
    for variant in VARIANTS:
        network = _build_unfilled(variant)
        own = {(key, tuple(value.shape)) for key, value in network.state_dict().items()}
        score = len(own & given) / max(1, len(own | given))
        if score > best_score:
            best, best_score = variant.name, score
        if score == 1:
            break
    return best


class _SkipRandomInit(TorchFunctionMode):
    """Networks built under this keep their weights as allocated (the base class is how torch intercepts calls).

    All of them are overwritten by load_strictly, or only their shapes are wanted, and drawing hundreds of millions of
    random numbers takes seconds.
    """

    def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        """Return the tensor untouched where a random initialiser is called."""
        kwargs = kwargs or {}
        if func in (init.uniform_, init.normal_, init.kaiming_uniform_, Tensor.uniform_, Tensor.normal_):
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return func(*args, **kwargs)


def _build_unfilled(variant: Variant) -> nn.Module:
    with _SkipRandomInit():
        return build(variant.family, variant.size)


def save_checkpoint(path: str | Path, state_dict: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write `state_dict` as safetensors in its own dtypes; an interrupted write leaves an older file as it was.

    metadata: {"variant": name} at least; by custom also "source_sha256" (of the file converted from) and "licence".
    "format" ("anysam") and "dtype" (that of the floating-point tensors, or "mixed") are added.
    Raises OutputError if it cannot be written, OptionError for metadata without a variant or with a foreign format.
    """
    if not metadata.get("variant") or metadata.get("format", FORMAT) != FORMAT:
        raise OptionError(
            f"A checkpoint's metadata needs a variant and no other format than {FORMAT}, got {dict(metadata)}."
        )
    dtypes = {str(value.dtype).removeprefix("torch.") for value in state_dict.values() if value.is_floating_point()}
    dtype = dtypes.pop() if len(dtypes) == 1 else "mixed"
    write_tensors(path, state_dict, {**metadata, "format": FORMAT, "dtype": dtype})


def write_tensors(path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write any tensors and texts as safetensors, complete or not at all. Raises OutputError if that fails."""
    path = Path(path)
    owned, storages = {}, set()
    for key, value in tensors.items():
        value = value.detach().cpu().contiguous()
        storage = value.untyped_storage()
        # the format has no shared memory: a second name of the same values gets its own copy
        owned[key] = value.clone() if storage.data_ptr() in storages else value
        storages.add(storage.data_ptr())
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        draft.touch(exist_ok=False)
        mode = draft.stat().st_mode  # of a new file here; save_file makes one that only its owner may read
        save_file(owned, draft, dict(metadata))
        draft.chmod(mode)
        with open(draft, "rb") as file:
            os.fsync(file.fileno())
        os.replace(draft, path)
    except (OSError, SafetensorError) as error:
        raise OutputError(f"Cannot write {path}: {error}; is the folder there, writable and not full?") from error
    finally:
        draft.unlink(missing_ok=True)


def load_model(
    name_or_path: str | Path, variant: str | None = None, progress: Progress | None = None
) -> tuple[nn.Module, Variant, str]:
    """The network with its weights (float32, CPU, training mode as built), its catalogue row, and the file's sha256.

    A name from the catalogue takes the package's own file, else the cache, else a download (see anysam.fetch for
    `progress` and the errors); the hash is checked. Anything that is a Path, exists, or looks like a file is read from
    there; which variant it is comes from `variant`, else from the file's metadata, else from its keys and shapes.
    Raises UnknownModelError, OptionError (a name with another `variant`), WeightsError or DownloadError.
    """
    names = {row.name for row in VARIANTS}
    if isinstance(name_or_path, Path) or (name_or_path not in names and _looks_like_file(name_or_path)):
        path = Path(name_or_path).expanduser()
        state_dict = read_state_dict(path)
        row = find_variant(variant) if variant is not None else _identify(path, state_dict)
        digest = file_sha256(path)
    else:
        row = find_variant(name_or_path)
        if variant is not None and find_variant(variant) != row:
            raise OptionError(f"The model {row.name} is not a {variant}; give a variant only with the path of a file.")
        path = locate(row) or fetch_weights(row, progress)
        digest = verify_weights(row, path)
        state_dict = read_state_dict(path)
    module = _build_unfilled(row)
    try:
        load_strictly(module, state_dict, row.name)
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}") from error
    return module, row, digest


def _looks_like_file(text: str) -> bool:
    return Path(text).suffix.lower() in SUFFIXES or "/" in text or os.sep in text or Path(text).is_file()


def _identify(path: Path, state_dict: Mapping[str, Tensor]) -> Variant:
    """The variant that a file says it is, or that its tensors look like."""
    metadata = read_metadata(path)
    if metadata.get("format") == FORMAT and re.fullmatch(r"\w+", metadata.get("variant", "")):
        return find_variant(metadata["variant"])
    guess = guess_variant({key: tuple(value.shape) for key, value in state_dict.items()})
    if guess is None:
        first, names = _show(next(iter(state_dict))), ", ".join(row.name for row in VARIANTS)
        raise WeightsError(f"Cannot tell which model {path} is for (first key: {first}); pass variant, one of {names}.")
    return find_variant(guess)
