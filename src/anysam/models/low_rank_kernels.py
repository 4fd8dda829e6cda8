"""Loops of low_rank_decoder that PyTorch would make many passes of, compiled by numba, for float32 on a CPU.

numba is optional (the extra `fast`): low_rank_decoder has the same in PyTorch, and the results differ by rounding only.
The kernels release the GIL; each thread is given rows of its own. Compiled code is kept on disk (numba's cache).

GELU is x (1 + erf(x / sqrt 2)) / 2, with erf(x / sqrt 2) / 2 as x times a polynomial of degree 13 in x^2 (our own fit,
least maximum error for |x| <= 5.2, beyond which it is 0.5 to float32's accuracy): at most 3e-7 off, two roundings of 1.
"""

import math

import numba
import numpy as np

_F = np.float32
_LIMIT = _F(5.2)
_SPAN = _F(2 / 5.2**2)
_ONE, _HALF, _ZERO = _F(1), _F(0.5), _F(0)
# Coefficients of u^0 to u^13, u = 2 (x / 5.2)^2 - 1.
_C0, _C1, _C2, _C3, _C4, _C5, _C6 = (
    _F(0.135949993),
    _F(-0.0677436675),
    _F(0.0500245213),
    _F(-0.0399298196),
    _F(0.0319899593),
    _F(-0.0247236296),
    _F(0.0179547869),
)
_C7, _C8, _C9, _C10, _C11, _C12, _C13 = (
    _F(-0.0125051209),
    _F(0.00855996778),
    _F(-0.00478903913),
    _F(0.00180012266),
    _F(-0.00122149354),
    _F(0.00126851103),
    _F(-0.00048127718),
)

# Sums may be reordered and products fused, which vector units need. NaN and infinity keep their meaning.
_MATH = {"contract", "reassoc", "nsz", "arcp"}


@numba.njit(inline="always")
def _gelu(x):  # type: ignore[no-untyped-def]  # numba infers
    c = min(max(x, -_LIMIT), _LIMIT)
    u = c * c * _SPAN - _ONE
    u2 = u * u
    u4 = u2 * u2
    # In pairs, which a processor can work on at once, not one after the other.
    low = (_C0 + _C1 * u) + (_C2 + _C3 * u) * u2 + ((_C4 + _C5 * u) + (_C6 + _C7 * u) * u2) * u4
    high = (_C8 + _C9 * u) + (_C10 + _C11 * u) * u2 + (_C12 + _C13 * u) * u4
    return x * (_HALF + c * (low + high * (u4 * u4)))


@numba.njit(cache=True, nogil=True, fastmath=_MATH)
def add_norm_gelu(x, shared, a, gain, bias, eps):  # type: ignore[no-untyped-def]
    """x = gelu(norm(x + a * shared)), in place: x and shared (m, 4 * D/4), a (m,); a norm of each fourth of a row."""
    width = len(gain)
    share = _ONE / _F(width)
    row = np.empty(width, _F)
    for i in range(len(x)):
        scale_shared = a[i]
        for quarter in range(4):
            first = quarter * width
            total = _ZERO
            for j in range(width):
                value = x[i, first + j] + scale_shared * shared[i, first + j]
                row[j] = value
                total += value
            mean = total * share
            squares = _ZERO
            for j in range(width):
                value = row[j] - mean
                squares += value * value
            scale = _ONE / _F(math.sqrt(squares * share + eps))
            for j in range(width):
                row[j] = _gelu((row[j] - mean) * scale * gain[j] + bias[j])
            for j in range(width):
                x[i, first + j] = row[j]


@numba.njit(cache=True, nogil=True, fastmath=_MATH)
def gelu_masks(x, bias, weights, first, columns, out):  # type: ignore[no-untyped-def]
    """out = weights @ gelu(x + bias), for some cells of out (C, H, 4 * columns), as far as H reaches.

    x (m, 16 * D/8): for each cell, from the one of number `first` on, its 2 x 2 cells, and for each of these its 2 x 2.
    bias (D/8,), weights (C, D/8).
    """
    width = len(bias)
    values = np.empty(16 * width, _F)
    for i in range(len(x)):
        top, left = 4 * ((first + i) // columns), 4 * ((first + i) % columns)
        for part in range(16):
            for j in range(width):
                values[part * width + j] = _gelu(x[i, part * width + j] + bias[j])
        for part in range(16):
            y = top + 2 * (part // 8) + part // 2 % 2
            column = left + 2 * (part // 4 % 2) + part % 2
            if y < out.shape[1]:
                for c in range(len(weights)):
                    total = _ZERO
                    for j in range(width):
                        total += values[part * width + j] * weights[c, j]
                    out[c, y, column] = total
