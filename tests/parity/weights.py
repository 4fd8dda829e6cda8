"""Deterministic stand-in weights: the same bytes on every machine, from a tensor's name, shape and dtype alone.

The reference outputs under cases/ were produced by each model's published reference code, its state_dict filled by
`filled_state_dict` below. Fill the same manifest here, load the result through the project's own checkpoint loader,
run the project's own model on the same input, and the outputs must agree.

A manifest is JSON: {"tensors": {official state_dict key: [shape, dtype]}, ...}.
Only numpy is needed; values are float32 numpy arrays (int64 for counters), wrap them with torch.from_numpy.
"""

import hashlib
import json
from pathlib import Path

import numpy as np

# learned tables (not layers): positions, biases, tokens, prompt embeddings
_TABLES = (
    "pos_embed",
    "rel_pos",
    "attention_biases",
    "embeddings",
    "_embed.weight",
    "iou_token",
    "mask_tokens",
    "sem_tokens",
)


def _generator(name: str) -> np.random.Generator:
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")
    return np.random.Generator(np.random.PCG64(seed))


def filled_tensor(name: str, shape, dtype: str = "float32") -> np.ndarray:
    """The stand-in value of the tensor called `name` in the official state_dict."""
    shape = tuple(int(n) for n in shape)
    if not dtype.startswith(("float", "bfloat")):
        return np.zeros(shape, dtype=dtype)
    rng = _generator(name)
    if name.endswith("running_var"):
        return rng.uniform(0.5, 1.5, shape).astype(np.float32)
    z = rng.standard_normal(shape).astype(np.float32)
    leaf = name.rsplit(".", 1)[-1]
    table = any(s in name for s in _TABLES)
    if "gaussian_matrix" in name:
        return z
    if table and z.ndim != 4 or "pos_embed" in leaf:
        return ((0.2 if "rel_pos" in name or "attention_biases" in name else 0.5) * z).astype(np.float32)
    if leaf == "running_mean":
        return (0.1 * z).astype(np.float32)
    if z.ndim <= 1:
        gain = leaf in ("weight", "gamma", "g")
        return ((1.0 if gain else 0.0) + 0.1 * z).astype(np.float32)
    fan_in = max(1, int(np.prod(shape[1:])))
    return (z / np.float32(np.sqrt(fan_in))).astype(np.float32)


def _window_relative_index(side: int = 16) -> np.ndarray:
    """TAP's relative-position index of a side x side window, row-major positions: (side**2, side**2) int64."""
    y, x = np.divmod(np.arange(side * side), side)
    return (y[:, None] - y[None] + side - 1) * (2 * side - 1) + (x[:, None] - x[None] + side - 1)


def filled_state_dict(manifest, gain: bool = False) -> dict[str, np.ndarray]:
    """All tensors of a manifest (a path to its JSON, or the parsed object), filled.

    manifest["fixed"] names tensors that keep their true value (YOLO's DFL bins, TAP's pixel statistics and window
    index). manifest["gain"] (YOLO only): with gain=True every key ending in ".bn.weight" is multiplied by its factor;
    compare with the expected arrays whose name starts with "gain/" (with plain weights the signal fades with depth).
    """
    if isinstance(manifest, (str, Path)):
        manifest = json.loads(Path(manifest).read_text())
    fixed = manifest.get("fixed", {})
    state = {}
    for name, (shape, dtype) in manifest["tensors"].items():
        if name.endswith(".rel_pos_embed.index"):
            state[name] = _window_relative_index()
        elif name in fixed:
            state[name] = np.asarray(fixed[name], dtype=dtype).reshape(shape)
        else:
            state[name] = filled_tensor(name, shape, dtype)
            if gain and name.endswith(".bn.weight"):
                state[name] = state[name] * np.float32(manifest["gain"]["factor"])
    return state


def input_image(height: int, width: int, seed: int = 0) -> np.ndarray:
    """A smooth, structured RGB test image, uint8 (height, width, 3), the same on every machine."""
    rng = np.random.Generator(np.random.PCG64(seed))
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    channels = []
    for _ in range(3):
        value = np.zeros((height, width))
        for _ in range(6):
            fy, fx = rng.uniform(0.5, 9.0, 2)
            value += np.sin(2 * np.pi * (fy * y / height + fx * x / width) + rng.uniform(0, 2 * np.pi))
        channels.append(value)
    image = np.stack(channels, axis=-1)
    for _ in range(12):
        cy, cx, r = rng.uniform(0, height), rng.uniform(0, width), rng.uniform(0.04, 0.2) * min(height, width)
        image[(y - cy) ** 2 + (x - cx) ** 2 < r * r] = rng.uniform(-3, 3, 3)
    return np.clip((image + 6.0) * (255.0 / 12.0), 0, 255).round().astype(np.uint8)


def thin(array, limit: int = 4096) -> np.ndarray:
    """A fixed, evenly strided sample of a flattened array: what cases/ stores of a large tensor."""
    flat = np.asarray(array, dtype=np.float32).reshape(-1)
    stride = max(1, -(-flat.size // limit))
    # an odd stride walks through every row, column and channel phase instead of one
    stride += stride > 1 and stride % 2 == 0
    return flat[::stride].copy()
