"""The bytes of arrays in GGUF's block layouts. Formulas: docs/numerics.md, section 15."""

import numpy as np

from . import _core
from ._checks import as_array, float32_of, float_array, shown

BLOCK = 32
KINDS = {"Q8_0": 34, "Q4_0": 18}  # bytes of a block


def to_gguf(x, kind):
    """The bytes of x in a block layout of GGUF: for each 32 neighbours along the last axis a float16 scale and their codes.

    Parameters
    ----------
    x : array of float32, float64, float16 or bfloat16
        Finite; its last axis a multiple of 32. Used as float32.
    kind : {"Q8_0", "Q4_0"}
        - `Q8_0`: 34 bytes a block; int8 codes, rounded half away from zero; scale: largest magnitude / 127.
        - `Q4_0`: 18 bytes; codes 0 to 15 with zero point 8, those of the first 16 values in the low halves of the bytes; scale: the value
          of the largest magnitude / -8.

    Returns
    -------
    uint8 array of shape (..., n / 32 * bytes of a block)
        As ``gguf.quants.quantize``, bit for bit.

    Raises
    ------
    TypeError, ValueError
        For another dtype, shape or kind, NaN and infinity (how many, and where the first is), or a scale that float16 does not hold.

    References
    ----------
    ggml, ``ggml-quants.c``: quantize_row_q8_0_ref and quantize_row_q4_0_ref; gguf-py, ``gguf.quants``.

    Examples
    --------
    >>> qk.to_gguf(np.linspace(-1, 1, 64, dtype=np.float32), "Q8_0").shape
    (68,)
    """
    x, size = float_array(x), _bytes_of(kind)
    if x.ndim == 0 or x.shape[-1] % BLOCK:
        raise ValueError(f"the last axis of x must be a multiple of {BLOCK}, got shape {x.shape}")
    data, largest = _core.to_gguf(np.require(float32_of(x), requirements="CA"), size)
    if largest is not None:
        if not np.isfinite(x).all():
            _core.raise_not_finite(x)
        raise ValueError(f"x reaches {largest} in magnitude, whose scale is beyond the range of float16")
    return data


def from_gguf(data, kind, *, out=None):
    """The values of an array in a block layout of GGUF: code times scale.

    Parameters
    ----------
    data : uint8 array
        Its last axis a multiple of the bytes of a block: 34 for `Q8_0`, 18 for `Q4_0`.
    kind : {"Q8_0", "Q4_0"}
    out : float32 array of the result's shape, optional
        C-contiguous; may not overlap data.

    Returns
    -------
    float32 array
        As ``gguf.quants.dequantize``, bit for bit.

    Raises
    ------
    TypeError, ValueError
        For another dtype, shape or kind, or a wrong `out`, which is then left untouched.

    References
    ----------
    ggml, ``ggml-quants.c``: dequantize_row_q8_0 and dequantize_row_q4_0; gguf-py, ``gguf.quants``.

    Examples
    --------
    >>> qk.from_gguf(qk.to_gguf(np.full(32, 2.54, np.float32), "Q4_0"), "Q4_0")[:2]
    array([2.5390625, 2.5390625], dtype=float32)
    """
    data, size = as_array(data, "data"), _bytes_of(kind)
    if data.dtype != np.uint8:
        raise TypeError(f"data must be uint8, got {data.dtype}")
    if data.ndim == 0 or data.shape[-1] % size:
        raise ValueError(f"the last axis of data must be a multiple of {size} bytes for {kind}, got shape {data.shape}")
    return _core.from_gguf(data, size, out)


def _bytes_of(kind):
    if not isinstance(kind, str) or kind not in KINDS:
        raise ValueError(f"kind must be 'Q8_0' or 'Q4_0', got {shown(kind)}")
    return KINDS[kind]
