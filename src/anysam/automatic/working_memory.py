"""What networks take beside their weights while they work, for the plan of everything mode (`memory.plan_grid`)."""

from importlib.util import find_spec

import torch

from anysam.catalogue import find_variant
from anysam.memory import MEGABYTE, WorkingMemory

# Megabytes (10^6) of encoding a photograph of 800x600 in float32 on a CPU: the measured peak above the loaded model, of
# the widest size that was measured, or of one variant by its name. Memory that building the model had left free was
# given back before, because an encoder that fits into it seems to take less. Image encoders take as much for any
# photograph, but for its own pixels.
_ENCODING = {
    "anysam_lite": 90,
    "sam": 343,
    "mobile_sam": 130,
    "mobilesamv2_tiny_vit": 130,
    "mobile_sam_v2": 200,
    "edge_sam": 131,
    "efficient_sam": 178,
    "efficientvit_sam": 378,
    "slim_sam": 209,
    "sam_lightening": 166,
    "tap": 285,
    "fastsam_s": 163,
    "fast_sam": 346,
    "object_aware": 348,
}
# Sizes that were not measured: in proportion to the width of their tokens.
_WIDER = {"vit_l": 4 / 3, "vit_h": 5 / 3, "sam_vit_h": 10 / 3, "b": 2, "l": 8 / 3, "h": 10 / 3}
_MARGIN = 1.2  # allocations are not packed without gaps
_USUAL = 400

# The decoder: what is shared, what each of its threads takes, and numba where it is there: the library itself.
_DECODER, _DECODER_THREAD, _MOST_THREADS, _NUMBA = 100 * MEGABYTE, 40 * MEGABYTE, 16, 100 * MEGABYTE
_WITHOUT_NUMBA = ("anysam_lite", "efficient_sam", "tap")
_POINT = 256 * 1024


def working_memory(variant: str) -> WorkingMemory:
    """Bytes that a variant of the catalogue takes beside its weights; estimated where it was not measured."""
    row = find_variant(variant)
    measured = _ENCODING.get(row.name, _ENCODING.get(row.family, _USUAL))
    encoding = measured * _WIDER.get(row.size, 1.0) * _MARGIN
    threads = min(torch.get_num_threads(), _MOST_THREADS)
    decode = _DECODER + threads * _DECODER_THREAD
    if find_spec("numba") is not None and row.family not in _WITHOUT_NUMBA:
        decode += _NUMBA
    return WorkingMemory(encode=round(encoding * 1_000_000), decode=decode, point=_POINT)
