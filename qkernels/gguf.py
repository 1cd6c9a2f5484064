"""Read and write arrays in GGUF's block layouts. Formulas: docs/numerics.md, section 15."""

import ml_dtypes
import numpy as np

from ._bind import codebooks
from ._bind.arrays import PART, cuts, raise_not_finite
from ._bind.runtime import word
from ._checks import (
    SMALLEST_SCALE,
    as_array,
    boolean,
    check_weights,
    contiguous_float32,
    finite_float32,
    float_array,
    is_a,
    shown,
    spread_weights,
)
from ._gguf_search import WRITERS
from ._mode import default_mode
from ._qparams import QParams

KINDS = codebooks.GGUF  # of each (number, values and bytes of a block, values that share a scale)
CODES = {kind: np.dtype(np.int8) for kind in ("Q5_0", "Q8_0", "Q6_K", "IQ4_NL", "IQ4_XS", "MXFP4", "NVFP4")}
CODES |= {kind: np.dtype(ml_dtypes.int4) for kind in ("Q3_K", "TQ1_0", "TQ2_0")} | {"Q4_0": np.dtype(ml_dtypes.uint4)}
WRITTEN = ("Q8_0", "Q4_0", *WRITERS)
SEARCHED = 1 << 15  # values at a time, whose arrays fit the cache


@default_mode
def to_gguf(x, kind, *, importance=None):
    """Return the bytes of x in a block layout of GGUF.

    For each so many neighbours along the last axis it has scales and their codes.

    Parameters
    ----------
    x : array of float32, float64, float16 or bfloat16
        Finite; its last axis a multiple of the values of a block: 256 for kinds with `_K`, 64 for `NVFP4`, else 32.
        Used as float32.
    kind : {"Q8_0", "Q4_0", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "MXFP4", "NVFP4"}
        - `Q8_0`: 34 bytes a block; int8 codes, rounded half away from zero; scale: largest magnitude / 127.
        - `Q4_0`: 18 bytes; codes 0 to 15 with zero point 8, those of the first 16 values in the low halves of bytes;
          scale: the value of the largest magnitude / -8.
        - The others have the scales that a search finds, of least squares. `NVFP4` has scales from 2**-9 to 448, so
          that values should be divided by one number first, which GGUF keeps beside them.
    importance : array of real numbers, optional
        How much the squared error of each value counts: not negative, broadcast to the shape of x. For kinds that are
        searched.

    Returns
    -------
    uint8 array of shape (..., n / values * bytes of a block)
        `Q8_0` and `Q4_0` as ``gguf.quants.quantize``, bit for bit.

    Raises
    ------
    TypeError, ValueError
        For another dtype, shape or kind, NaN and infinity (how many, and where the first is), or values whose scale the
        kind does not hold.

    References
    ----------
    ggml, ``ggml-quants.c``, for the layouts, and quantize_row_q8_0_ref and quantize_row_q4_0_ref; gguf-py,
    ``gguf.quants``.

    Examples
    --------
    >>> qk.to_gguf(np.linspace(-1, 1, 64, dtype=np.float32), "Q8_0").shape
    (68,)
    """
    x, kind = float_array(x), _checked_kind(kind, WRITTEN)
    values = KINDS[kind][1]
    if x.ndim == 0 or x.shape[-1] % values:
        raise ValueError(f"the last axis of x must be a multiple of {values}, got shape {x.shape}")
    if kind in WRITERS:
        return _searched(x, kind, importance)
    if importance is not None:
        raise ValueError(f"importance must be None for {kind}, got {shown(importance)}")
    data, largest = codebooks.to_gguf(contiguous_float32(x), kind)
    if largest is not None:
        if not np.isfinite(x).all():
            raise_not_finite(x)
        finite_float32(x)
        raise ValueError(f"x reaches {largest} in magnitude, whose scale is beyond the range of float16")
    return data


def _searched(x, kind, importance):
    """Write blocks whose scales are searched for, some at a time."""
    write, limit = WRITERS[kind]
    _, values, size, _ = KINDS[kind]
    x = finite_float32(x)
    if x.size and (largest := max(x.max(), -x.min())) > limit:
        raise ValueError(f"x reaches {largest} in magnitude, beyond {limit:g}, which {kind} surely holds")
    if importance is not None:
        importance = spread_weights(importance, x.shape, "importance")
        check_weights(importance, "importance", zeros=True)
        importance = importance.reshape(-1, values)
    blocks, data = x.reshape(-1, values), np.empty((x.size // values, size), np.uint8)
    for first in range(0, len(blocks), SEARCHED // values):
        part = blocks[first : first + SEARCHED // values]
        w = None if importance is None else _relative(importance[first : first + len(part)])
        data[first : first + len(part)] = write(part, w, kind)
    return data.reshape(*x.shape[:-1], x.shape[-1] // values * size)


def _relative(weights):
    """Return weights of blocks as float32, the largest of each 1."""
    weights = weights.astype(np.float64)
    largest = weights.max(axis=1, keepdims=True)
    return np.divide(weights, largest, where=largest > 0, out=np.zeros_like(weights)).astype(np.float32)


def from_gguf(data, kind, *, codes=False, out=None):
    """Return the values of an array in a block layout of GGUF: code times scale; or what `pack` takes.

    Parameters
    ----------
    data : uint8 array
        Its last axis a multiple of the bytes of a block: 34 for `Q8_0`, 18 for `Q4_0`, 144 for `Q4_K`, and so on.
    kind : {"Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS", \
"TQ1_0", "TQ2_0", "MXFP4", "NVFP4"}
    codes : bool
        Return codes and parameters instead of values, for a product without a second rounding: GGUF's rows are those of
        nn.Linear's weight (N, K), so codes come transposed, (K, N), as `pack` and `linear` have them. Not for kinds
        that add a least value to each block (`Q4_1`, `Q5_1`, `Q2_K`, `Q4_K`, `Q5_K`), which no zero point stands for.
    out : float32 array of the result's shape, optional
        C-contiguous; may not overlap data. Not with `codes`.

    Returns
    -------
    float32 array
        As ``gguf.quants.dequantize``, bit for bit.
    (array, QParams)
        With `codes`: codes, the last two axes swapped, and scales of their blocks (``axis=0`` of two dimensions,
        ``block_size`` 16, 32 or 256), of which `dequantize` makes exactly those values, zeros being +0.0. Codes are
        uint4 (Q4_0), int4 (Q3_K, TQ1_0, TQ2_0) or int8; those of FP4 are twice its values. If the scale d of a block is
        negative, code q becomes ``-q``, or ``-1 - q`` with zero point -1 (Q8_0), or ``15 - q`` with zero point 7
        (Q4_0); if d is 0, the scale is 1 and codes are the zero point.

    Raises
    ------
    TypeError, ValueError
        For another dtype, shape or kind, or a wrong `out`, which is then left untouched; with `codes`, if a scale is
        NaN, infinite or below 2**-126.

    References
    ----------
    ggml, ``ggml-quants.c``: dequantize_row_q8_0 and its like; gguf-py, ``gguf.quants``.

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
    data, kind = as_array(data, "data"), _checked_kind(kind, KINDS)
    size = KINDS[kind][2]
    if data.dtype != np.uint8:
        raise TypeError(f"data must be uint8, got {data.dtype}")
    if data.ndim == 0 or data.shape[-1] % size:
        raise ValueError(f"the last axis of data must be a multiple of {size} bytes for {kind}, got shape {data.shape}")
    if not boolean(codes, "codes"):
        return codebooks.from_gguf(data, kind, out)
    if out is not None:
        raise ValueError(f"out must be None with codes, got {type(out).__name__}")
    if kind not in CODES:
        raise ValueError(f"kind must be one without least values with codes, {', '.join(CODES)}, got {kind!r}")
    return _codes_and_params(data, kind)


def _codes_and_params(data, kind):
    q, scale = codebooks.codes_of_gguf(data, kind)
    group, dtype, zero_point = KINDS[kind][3], CODES[kind], np.empty(scale.shape, np.int8)
    _refuse_not_finite(scale)
    blocks = q.reshape(*scale.shape, group)
    for part in cuts(scale.shape, PART // group):
        _turn_signs(blocks[part], scale[part], zero_point[part], kind)
    codes = q.view(dtype) if dtype != ml_dtypes.int4 else q.astype(dtype)
    codes, scale, zero_point = (_turned(a) for a in (codes, scale, zero_point))
    return codes, QParams(scale, zero_point, dtype, axis=-2 if q.ndim > 2 else 0, block_size=group)


def _turn_signs(q, scale, zero_point, kind):
    """Make scales of blocks (..., group) positive, and codes and zero points what they then are."""
    negative = -(scale < 0).astype(np.int8)  # -1 or 0: the exclusive or with -1 is -1 - q
    nothing = (scale == 0) | ((np.abs(scale) < SMALLEST_SCALE) & ~q.any(axis=-1))
    if (np.abs(scale) < SMALLEST_SCALE)[~nothing].any():
        raise ValueError("data has blocks whose scale is below 2**-126, which parameters do not have")
    zero_point[...] = {"Q4_0": negative + np.int8(8), "Q8_0": negative}.get(kind, 0)
    q ^= negative[..., None]
    if kind != "Q8_0":
        q += np.int8(8) if kind == "Q4_0" else -negative[..., None]
    q[nothing] = zero_point[nothing][:, None]
    scale[...] = np.where(nothing, np.float32(1), np.abs(scale))


def _turned(a):
    return a.swapaxes(-1, -2) if a.ndim > 1 else a


def _refuse_not_finite(scale):
    bad = ~np.isfinite(scale)
    if bad.any():
        first = tuple(int(i) for i in np.argwhere(bad)[0])
        count = np.count_nonzero(bad)
        raise ValueError(f"data has {count} blocks whose scale is NaN or infinite, the first at {first}")


def _checked_kind(kind, kinds):
    kind = word(kind)
    if not is_a(kind, str) or kind not in kinds:
        raise ValueError(f"kind must be one of {', '.join(map(repr, kinds))}, got {shown(kind)}")
    return kind
