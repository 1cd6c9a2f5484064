"""Read and write arrays in GGUF's block layouts. Formulas: docs/numerics.md, section 15."""

import ml_dtypes
import numpy as np

from ._bind import codebooks
from ._bind.arrays import PART, cuts, raise_not_finite
from ._bind.runtime import word
from ._checks import as_array, boolean, contiguous_float32, float_array, is_a, shown
from ._qparams import QParams

BLOCK = 32
KINDS = {"Q8_0": 34, "Q4_0": 18}  # bytes of a block


def to_gguf(x, kind):
    """Return the bytes of x in a block layout of GGUF.

    For each 32 neighbours along the last axis it has a float16 scale and their codes.

    Parameters
    ----------
    x : array of float32, float64, float16 or bfloat16
        Finite; its last axis a multiple of 32. Used as float32.
    kind : {"Q8_0", "Q4_0"}
        - `Q8_0`: 34 bytes a block; int8 codes, rounded half away from zero; scale: largest magnitude / 127.
        - `Q4_0`: 18 bytes; codes 0 to 15 with zero point 8, those of the first 16 values in the low halves of bytes;
          scale: the value of the largest magnitude / -8.

    Returns
    -------
    uint8 array of shape (..., n / 32 * bytes of a block)
        As ``gguf.quants.quantize``, bit for bit.

    Raises
    ------
    TypeError, ValueError
        For another dtype, shape or kind, NaN and infinity (how many, and where the first is), or a scale that float16
        does not hold.

    References
    ----------
    ggml, ``ggml-quants.c``: quantize_row_q8_0_ref and quantize_row_q4_0_ref; gguf-py, ``gguf.quants``.

    Examples
    --------
    >>> qk.to_gguf(np.linspace(-1, 1, 64, dtype=np.float32), "Q8_0").shape
    (68,)
    """
    x, size = float_array(x), KINDS[_checked_kind(kind)]
    if x.ndim == 0 or x.shape[-1] % BLOCK:
        raise ValueError(f"the last axis of x must be a multiple of {BLOCK}, got shape {x.shape}")
    data, largest = codebooks.to_gguf(contiguous_float32(x), size)
    if largest is not None:
        if not np.isfinite(x).all():
            raise_not_finite(x)
        raise ValueError(f"x reaches {largest} in magnitude, whose scale is beyond the range of float16")
    return data


def from_gguf(data, kind, *, codes=False, out=None):
    """Return the values of an array in a block layout of GGUF: code times scale; or what `pack` takes.

    Parameters
    ----------
    data : uint8 array
        Its last axis a multiple of the bytes of a block: 34 for `Q8_0`, 18 for `Q4_0`.
    kind : {"Q8_0", "Q4_0"}
    codes : bool
        Return codes and parameters instead of values, for a product without a second rounding: GGUF's rows are those of
        nn.Linear's weight (N, K), so codes come transposed, (K, N), as `pack` and `linear` have them.
    out : float32 array of the result's shape, optional
        C-contiguous; may not overlap data. Not with `codes`.

    Returns
    -------
    float32 array
        As ``gguf.quants.dequantize``, bit for bit.
    (array, QParams)
        With `codes`: int8 or uint4 codes, the last two axes swapped, and scales of their blocks (``axis=0`` of two
        dimensions, ``block_size=32``), of which `dequantize` makes exactly those values, zeros being +0.0. If the scale
        d of a block is negative, code q becomes ``-1 - q`` with zero point -1 (Q8_0), or ``15 - q`` with zero point 7
        (Q4_0); if d is 0, the scale is 1 and codes are the zero point.

    Raises
    ------
    TypeError, ValueError
        For another dtype, shape or kind, or a wrong `out`, which is then left untouched; with `codes`, if a scale is
        NaN or infinite.

    References
    ----------
    ggml, ``ggml-quants.c``: dequantize_row_q8_0 and dequantize_row_q4_0; gguf-py, ``gguf.quants``.

    Examples
    --------
    >>> qk.from_gguf(qk.to_gguf(np.full(32, 2.54, np.float32), "Q4_0"), "Q4_0")[:2]
    array([2.5390625, 2.5390625], dtype=float32)

    Straight into a product:

    >>> data = qk.to_gguf(np.eye(3, 64, dtype=np.float32), "Q4_0")
    >>> packed = qk.pack(*qk.from_gguf(data, "Q4_0", codes=True))
    >>> packed.shape
    (64, 3)
    """
    data, kind = as_array(data, "data"), _checked_kind(kind)
    size = KINDS[kind]
    if data.dtype != np.uint8:
        raise TypeError(f"data must be uint8, got {data.dtype}")
    if data.ndim == 0 or data.shape[-1] % size:
        raise ValueError(f"the last axis of data must be a multiple of {size} bytes for {kind}, got shape {data.shape}")
    if not boolean(codes, "codes"):
        return codebooks.from_gguf(data, size, out)
    if out is not None:
        raise ValueError(f"out must be None with codes, got {type(out).__name__}")
    return _codes_and_params(data, kind)


def _codes_and_params(data, kind):
    lead, count = data.shape[:-1], data.shape[-1] // KINDS[kind]
    blocks = data.reshape(*lead, count, KINDS[kind])
    d = np.empty(blocks.shape[:-1], np.uint16)  # bits of float16
    scale, zero_point = np.empty(d.shape, np.float32), np.empty(d.shape, np.int8)
    q = np.empty((*d.shape, BLOCK), np.uint8)
    for part in cuts(d.shape, PART // BLOCK):
        d[part] = np.ascontiguousarray(blocks[part][..., :2]).view("<u2")[..., 0]
    _refuse_not_finite(d)
    for part in cuts(d.shape, PART // BLOCK):
        q[part], scale[part], zero_point[part] = _codes_of(blocks[part][..., 2:], d[part], kind)
    dtype = np.dtype(np.int8 if kind == "Q8_0" else ml_dtypes.uint4)
    q, scale, zero_point = (_turned(a) for a in (q.reshape(*lead, count * BLOCK), scale, zero_point))
    return q.view(dtype), QParams(scale, zero_point, dtype, axis=-2 if q.ndim > 2 else 0, block_size=BLOCK)


def _codes_of(data, d, kind):
    """Return codes (..., 32), as bytes, scales and zero points of blocks: of their bytes without d, and d."""
    negative, nothing = d > 0x8000, (d & 0x7FFF) == 0
    scale = (d & 0x7FFF).view(np.float16).astype(np.float32)
    scale[nothing] = 1
    if kind == "Q8_0":
        zero_point = np.where(negative, np.int8(-1), np.int8(0))
        q = data ^ zero_point[..., None].view(np.uint8)
    else:
        zero_point = np.where(negative, np.int8(7), np.int8(8))
        q = np.concatenate((data & 15, data >> 4), axis=-1) ^ np.where(negative, np.uint8(15), np.uint8(0))[..., None]
    q[nothing] = zero_point[nothing][:, None].view(np.uint8)
    return q, scale, zero_point


def _turned(a):
    return a.swapaxes(-1, -2) if a.ndim > 1 else a


def _refuse_not_finite(d):
    bad = (d & 0x7C00) == 0x7C00
    if bad.any():
        first = tuple(int(i) for i in np.argwhere(bad)[0])
        count = np.count_nonzero(bad)
        raise ValueError(f"data has {count} blocks whose scale is NaN or infinite, the first at {first}")


def _checked_kind(kind):
    kind = word(kind)
    if not is_a(kind, str) or kind not in KINDS:
        raise ValueError(f"kind must be 'Q8_0' or 'Q4_0', got {shown(kind)}")
    return kind
