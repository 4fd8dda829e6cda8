"""How much memory there is, how much may be taken, and how work is cut so that it fits.

Sizes are bytes. "Above the loaded model" means: what a process takes beyond what it has when the model is loaded and
the image is read.
"""

import ctypes
import platform
import re
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from anysam.errors import OptionError

_UNITS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}
_SIZE = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,9})?)\s*([KMGT]?)(B|IB)?", re.IGNORECASE)

# Assumed free where the system does not tell.
_UNKNOWN_FREE = 4 * 1024**3

MEGABYTE = 1024 * 1024


def parse_size(text: str | int) -> int:
    """Bytes of "2G", "512M", "1.5 GiB", "600MB" or a plain number.

    K, M, G, T and KiB, MiB, GiB, TiB are powers of 1024, as most commands have it; KB, MB, GB, TB are powers of 1000.
    Raises OptionError for anything else, and for less than a byte.
    """
    match = _SIZE.fullmatch(text.strip()) if isinstance(text, str) else None
    if isinstance(text, int) and not isinstance(text, bool):
        size = text
    elif match is not None:
        number, unit, suffix = match[1], match[2].upper(), (match[3] or "").upper()
        size = int(float(number) * (1000 if unit and suffix == "B" else 1024) ** _UNITS[unit])
    else:
        size = 0
    if size < 1 or (match is not None and match[3] and match[3].upper() == "IB" and not match[2]):
        raise OptionError(
            f"A size of memory must be a number of bytes, or with K, M, G or T such as 2G or 512M, got {text!r}."
        )
    return size


def format_size(size: int) -> str:
    """Bytes as people write them, rounded up: 1.5G, 600M; `parse_size` reads it back to at least as much."""
    if size >= 10 * 1024**3:
        return f"{-(-size // 1024**3)}G"
    if size >= 1024**3:
        return f"{-(-size * 10 // 1024**3) / 10:g}G"
    return f"{-(-size // MEGABYTE)}M"


def free_memory(device: torch.device | str = "cpu") -> int:
    """Bytes that can still be taken: of a GPU's memory, or of this machine's, or less where a container limits it."""
    device = torch.device(device)
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    system = platform.system()
    if system == "Linux":
        return _free_on_linux(Path("/proc"), Path("/sys/fs/cgroup"))
    if system == "Windows":
        return _free_on_windows()
    return _free_on_macos()


def memory_bound(max_memory: int | None, device: torch.device | str = "cpu") -> int:
    """Bytes that may be taken: max_memory, or half of what is free."""
    return free_memory(device) // 2 if max_memory is None else int(max_memory)


def _free_on_linux(proc: Path, cgroup: Path) -> int:
    """MemAvailable, or what the control group of this process (version 2 or 1) leaves, if that is less."""
    found = re.search(r"^MemAvailable:\s+(\d+) kB", _read(proc / "meminfo"), re.MULTILINE)
    free = [int(found[1]) * 1024] if found else []
    for line in _read(proc / "self" / "cgroup").splitlines():
        number, controllers, path = line.split(":", 2)
        if number == "0" and not controllers:
            names, base = ("memory.max", "memory.current"), cgroup
        elif "memory" in controllers.split(","):
            names, base = ("memory.limit_in_bytes", "memory.usage_in_bytes"), cgroup / "memory"
        else:
            continue
        # The groups around it limit it too. Inside a container its folder is often the root of what is visible.
        own = base / path.strip().lstrip("/")
        for folder in (own, *(parent for parent in own.parents if parent.is_relative_to(base))):
            limit, used = (_read(folder / name).strip() for name in names)
            if limit.isdigit() and used.isdigit():
                free.append(max(0, int(limit) - int(used) + _reclaimable(folder)))
    return min(free) if free else _UNKNOWN_FREE


def _reclaimable(folder: Path) -> int:
    """Bytes of the group's files in memory that the kernel gives back when memory is wanted."""
    found = re.search(r"^(?:total_)?inactive_file (\d+)$", _read(folder / "memory.stat"), re.MULTILINE)
    return int(found[1]) if found else 0


def _read(path: Path) -> str:
    """A file's text; empty when it cannot be read, which is usual for what a kernel does not offer."""
    try:
        return path.read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""


def _free_on_windows() -> int:
    class MemoryStatus(ctypes.Structure):
        """MEMORYSTATUSEX of the Windows API."""

        _fields_ = [("length", ctypes.c_ulong), ("load", ctypes.c_ulong)] + [
            (name, ctypes.c_ulonglong)
            for name in ("total", "free", "total_page", "free_page", "total_virtual", "free_virtual", "extended")
        ]

    status = MemoryStatus()
    status.length = ctypes.sizeof(status)
    kernel = getattr(ctypes, "windll", None)  # there is none elsewhere, and mypy looks from elsewhere
    if kernel is None or not kernel.kernel32.GlobalMemoryStatusEx(ctypes.byref(status)):
        return _UNKNOWN_FREE
    return int(status.free)


def _free_on_macos() -> int:
    """Half of the memory there is: what is free is not told without help, and most of the rest can be reclaimed."""
    try:
        library = ctypes.CDLL(None)
        total, length = ctypes.c_uint64(), ctypes.c_size_t(8)
        failed = library.sysctlbyname(b"hw.memsize", ctypes.byref(total), ctypes.byref(length), None, 0)
    except (OSError, AttributeError, TypeError):
        return _UNKNOWN_FREE
    return _UNKNOWN_FREE if failed or not total.value else total.value // 2


def resident_bytes(name: str) -> int | None:
    """What this process holds now, VmRSS, or held at most, VmHWM; None where the system does not tell.

    Not getrusage on Linux: there a new process begins with its parent's maximum. Elsewhere its maximum is both.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        match = re.search(rf"^{name}:\s+(\d+) kB", status.read_text(encoding="ascii", errors="replace"), re.MULTILINE)
        return int(match[1]) * 1024 if match else None
    if sys.platform == "darwin":
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return None


@dataclass(frozen=True)
class WorkingMemory:
    """What a model takes beside its weights. encode: while it encodes an image; decode: while it answers points; point:
    more for each point that is answered at once, its logits not counted.
    """

    encode: int
    decode: int
    point: int


@dataclass(frozen=True)
class GridPlan:
    """How a grid's work is cut. points_at_once: decoded together. kept_logits: bytes of candidates before some are
    finished early. masks_at_once: resized together to full size, where a GPU does it.
    """

    points_at_once: int
    kept_logits: int
    masks_at_once: int


# Percent of a bound that is planned with: the rest is for gaps between allocations and for Python's own objects.
_USABLE = 75
# What a plan takes at most: more would not be faster.
_MOST_POINTS = {"cpu": 64, "gpu": 256}
_MOST_KEPT = {"cpu": 192 * MEGABYTE, "gpu": 2048 * MEGABYTE}
_MOST_MASKS = 32
_LEAST_KEPT = 4 * MEGABYTE


def check_bound(bound: int, least: int, size: tuple[int, int]) -> None:
    """Raises OptionError if an image of size (H, W) needs `least` bytes, more than the bound."""
    if bound < least:
        raise OptionError(
            f"At most {format_size(bound)} of memory may be taken, but this model and an image of {size[1]}x{size[0]} "
            f"pixels need {format_size(least)} above the loaded model; raise max_memory, or use a smaller model."
        )


def plan_grid(
    bound: int,
    size: tuple[int, int],
    cells: int,
    masks_per_point: int,
    working: WorkingMemory,
    *,
    on_gpu: bool = False,
    exact_pixels: int,
) -> GridPlan:
    """Cut a grid's work so that it takes at most `bound` bytes above the loaded model.

    size: (H, W) of the image. cells: low-resolution logits of one mask. masks_per_point: candidates of a point.
    exact_pixels: of an image that is resized as a whole where rounding decides; 0 if it never is. The plan has no
    influence on the masks. Raises OptionError for a bound that is too small for a single point, naming the least that
    is needed.
    """
    height, width = size
    logits = 4 * cells
    # Two copies of one point's masks: as they come, and while their boxes are found.
    point = working.point + 3 * masks_per_point * logits
    # One mask as a whole: float32 logits in two sizes, what is compared and turned.
    exact = 8 * exact_pixels + 6 * exact_pixels
    # Columns of cells at the image's full height, thrice, and a few blocks.
    lines = 12 * height * min(width, 1024) + 4 * MEGABYTE
    answering = working.decode + max(exact, lines)
    least = max(working.encode, answering + point + _LEAST_KEPT)
    usable = bound * _USABLE // 100
    check_bound(bound, -(-100 * least // _USABLE), size)
    kind = "gpu" if on_gpu else "cpu"
    spare = usable - answering - point - _LEAST_KEPT
    points = 1 + min(_MOST_POINTS[kind] - 1, spare // 2 // point)
    spare -= (points - 1) * point
    kept = _LEAST_KEPT + min(_MOST_KEPT[kind], spare // 2)
    spare -= kept - _LEAST_KEPT
    masks = 1 + min(_MOST_MASKS - 1, spare // max(1, 10 * height * width)) if on_gpu else 1
    return GridPlan(points, kept, masks)
