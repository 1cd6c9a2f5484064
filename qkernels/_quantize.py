"""Turn floats to codes and back, and store sub-byte codes densely. Formulas: docs/numerics.md, sections 3 to 5."""

import math
from itertools import islice

import ml_dtypes
import numpy as np

from ._bind import codebooks, elementwise
from ._bind.arrays import contiguous_as
from ._bind.runtime import word
from ._checks import MAX_NDIM, as_array, float_array, integer, is_a, optional_int, shown, stochastic_seed
from ._choose import choose_qparams, choose_scheme
from ._qparams import FLOAT_CODES, SUB_BYTE_CODES, QParams, code_dtype, code_range

HALF_EVEN = "half_even"  # the default: the very object, since a call for the check would take a fourth of a short one


def quantize(x, params, *, rounding="half_even", seed=None, out=None):
    """Quantize x to codes: ``saturate(round(x / scale) + zero_point)``.

    The division is a true one, rounded once, as in ONNX QuantizeLinear. NaN becomes the zero point; infinities
    saturate.

    Parameters
    ----------
    x : array of float32, float64, float16 or bfloat16
        Any shape that `params` fits.
    params : QParams
    rounding : {"half_even", "half_away", "stochastic"}
        How ties go; or, by chance, up or down, so that the mean of many codes is ``x / scale + zero_point`` (not with
        integer scales). Codes that are floats round to the nearest, ties to even, and keep NaN if their format has one.
    seed : int, only and always for ``rounding="stochastic"``
        0 to 2**64 - 1. An element's random number depends on the seed and on its index in C order alone: use another
        seed for each array and step.
    out : array of dtype `params.dtype` and the shape of x, optional
        C-contiguous; may not overlap x.

    Returns
    -------
    array of dtype `params.dtype`

    Raises
    ------
    TypeError, ValueError
        For a wrong dtype, shape, axis, rounding or `out`, which is then left untouched.

    References
    ----------
    ONNX QuantizeLinear-25. Gupta et al. 2015, stochastic rounding; Salmon et al. 2011 and Blackman and Vigna 2021,
    its numbers.

    Examples
    --------
    >>> qk.quantize(np.float32([-1, 0.25, 0.75, 100]), qk.QParams(0.5, 3, "uint8"))
    array([  1,   3,   5, 203], dtype=uint8)
    """
    if seed is not None or rounding is not HALF_EVEN:
        seed = stochastic_seed(rounding, seed, "half_even", "half_away")
        if seed is not None:
            return elementwise.quantize_randomly(x, params, seed, False, out)
    return elementwise.quantize(x, params, rounding, out)


def dequantize(q, params, *, dtype=np.float32, out=None):
    """Turn codes to real values: ``(q - zero_point) * scale``.

    Parameters
    ----------
    q : array of dtype `params.dtype`, or int32
        int32 holds sums of products; the difference is then taken modulo 2**32.
    params : QParams
    dtype : {float32, float64, float16, bfloat16}
        That of the result. float64 is the product rounded once (exact but for int32); the others are the float32
        product, rounded.
    out : array of `dtype` and the shape of q, optional

    Returns
    -------
    array of `dtype`

    Raises
    ------
    TypeError, ValueError
        For a wrong dtype, shape, axis or `out`, which is then left untouched.

    References
    ----------
    ONNX DequantizeLinear-25.

    Examples
    --------
    >>> qk.dequantize(np.uint8([1, 3, 5]), qk.QParams(0.5, 3, "uint8"))
    array([-1.,  0.,  1.], dtype=float32)
    """
    return elementwise.dequantize(q, params, dtype, out)


def fake_quantize(x, params, *, rounding="half_even", seed=None, out=None):
    """Round x to the values that params can represent: `quantize` and `dequantize` in one pass.

    NaN becomes 0 (8-bit floats keep it).

    Parameters
    ----------
    x : array of float32, float64, float16 or bfloat16
    params : QParams
        Not with integer scales, if rounding is stochastic.
    rounding : {"half_even", "stochastic"}
    seed : int, only and always for ``rounding="stochastic"``
        As in `quantize`: the same seed gives the values of the same codes.
    out : array of the dtype and shape of x, optional
        May be x itself; may not overlap it otherwise.

    Returns
    -------
    array of the dtype and shape of x

    Raises
    ------
    TypeError, ValueError
        For a wrong dtype, shape, axis, rounding or `out`, which is then left untouched.

    References
    ----------
    Jacob et al. 2018, equation 12.

    Examples
    --------
    >>> qk.fake_quantize(np.float32([-1, 0.3, 100]), qk.QParams(0.5, dtype="int4"))
    array([-1. ,  0.5,  3.5], dtype=float32)
    """
    if seed is not None or rounding is not HALF_EVEN:
        seed = stochastic_seed(rounding, seed, "half_even")
        if seed is not None:
            return elementwise.quantize_randomly(x, params, seed, True, out)
    return elementwise.fake_quantize(x, params, out)


def fake_quantize_grad(grad, x, params, *, edge="rounded"):
    """Return the gradients of a loss by x, scale and zero point, given that by ``fake_quantize(x, params)``.

    Rounding passes gradients on as if it were the identity. With ``v = x / scale``, and the codes' range less the zero
    point, `low` to `high`: where x is inside, the gradient of x is `grad` and that of the scale `grad` times
    ``round(v) - v``; outside, that of the scale is `grad` times the end that v is beyond, and that of the zero point
    ``-scale * grad``; the others are 0. NaN in x has none.

    Parameters
    ----------
    grad : array of the dtype and shape of x
        The gradient by the result of `fake_quantize`.
    x : array of float32, float64, float16 or bfloat16
    params : QParams
        Not with integer scales, which are not learned.
        Of integers.
    edge : {"rounded", "clipped"}
        What is inside: ``low <= round(v) <= high``, as in torch, or ``low < v < high``, as in LSQ.

    Returns
    -------
    grad_x : array of the dtype and shape of x
    grad_scale, grad_zero_point : float32 arrays of the shape of ``params.scale``
        Sums over the elements that share a scale: the same bits on each machine, at any number of threads. LSQ
        multiplies the former by ``1 / sqrt(n * high)``, n elements sharing a scale.

    Raises
    ------
    TypeError, ValueError
        For a wrong dtype, shape, axis or edge.

    References
    ----------
    Esser et al., *Learned Step Size Quantization*, 2020, equations 3 and 5; Jain et al., *Trained Quantization
    Thresholds*, 2020; torch, `fake_quantize_per_tensor_affine` and `_fake_quantize_learnable_per_channel_affine`.

    Examples
    --------
    >>> x, params = np.float32([-1, 0.25, 0.75, 100]), qk.QParams(0.5, dtype="int4")
    >>> qk.fake_quantize_grad(np.float32([1, 1, 1, 1]), x, params)
    (array([1., 1., 1., 0.], dtype=float32), np.float32(7.0), np.float32(-0.5))
    """
    edge = word(edge)
    if not (is_a(edge, str) and edge in ("rounded", "clipped")):
        raise ValueError(f"edge must be 'rounded' or 'clipped', got {shown(edge)}")
    return elementwise.fake_quantize_grad(grad, x, params, edge == "clipped")


def dynamic_quantize(x, dtype="uint8", *, axis=None, symmetric=None):
    """Quantize x with parameters chosen from x itself, by the range of its values.

    With uint8 and no axis this is ONNX DynamicQuantizeLinear, bit for bit.

    Parameters
    ----------
    x : array of float32, float64, float16 or bfloat16
        Finite.
    dtype : str or dtype
        As for `QParams`.
    axis : int, optional
        One scale per index of this axis: ``axis=0`` on a matrix is one a row.
    symmetric : bool, optional
        None: True for signed codes, False for unsigned ones.

    Returns
    -------
    q : array of `dtype` and the shape of x
    params : QParams

    Raises
    ------
    ValueError
        If x holds NaN or infinity (how many, and where the first is).

    References
    ----------
    ONNX DynamicQuantizeLinear-11.

    Examples
    --------
    >>> q, params = qk.dynamic_quantize(np.float32([0, 2, -3, -2.5, 1.34, 0.5]))
    >>> q
    array([153, 255,   0,  26, 221, 179], dtype=uint8)
    >>> params
    QParams(scale=0.019607844, zero_point=153, dtype='uint8')
    """
    x, dtype = float_array(x), code_dtype(dtype)
    axis = optional_int(axis, "axis")
    in_rows = axis is None or (x.ndim > 0 and axis in (0, -x.ndim))
    if not in_rows or dtype in FLOAT_CODES or x.dtype != np.float32 or x.size == 0:
        params = choose_qparams(x, dtype, axis=axis, symmetric=symmetric)
        return quantize(x, params), params
    symmetric, narrow_range = choose_scheme(dtype, symmetric, None)
    codes, shape = code_range(dtype, narrow_range), () if axis is None else x.shape[:1]
    q, scale, zero_point = elementwise.quantize_rows(x, shape, dtype, *codes, symmetric)
    return q, QParams._chosen(scale, zero_point, dtype, codes, axis, None)


# ---- dense storage ----


def pack_bits(codes, bits):
    """Store codes of a few bits densely: code i in the bits from ``i * bits`` on.

    The lowest bit of the first byte is bit 0.

    Parameters
    ----------
    codes : array of integers, any shape
        One value each, in C order: int8, uint8 or the 2- and 4-bit dtypes of `ml_dtypes`. Each must fit `bits`
        bits, signed or unsigned.
    bits : {1, 2, 3, 4, 5, 6, 8}
        Eight codes take this many bytes; of 3, 5 and 6 bits some lie across two of them.

    Returns
    -------
    uint8 array of shape (ceil(codes.size * bits / 8),)
        Unused bits at the end are 0.

    Raises
    ------
    TypeError, ValueError
        For another dtype or number of bits, or a code that does not fit.

    References
    ----------
    ONNX, "Packing of int4": the same order, the first element in the low bits.

    Examples
    --------
    >>> qk.pack_bits(np.uint8([1, 2, 15]), 4)
    array([33, 15], dtype=uint8)
    >>> qk.pack_bits(np.uint8([1, 2, 7, 0]), 3)
    array([209,   1], dtype=uint8)
    """
    codes, bits = as_array(codes, "codes"), _checked_bits(bits)
    if codes.dtype not in (np.int8, np.uint8, *SUB_BYTE_CODES):
        raise TypeError(f"codes must be int8, uint8, int4, uint4, int2 or uint2, got {codes.dtype}")
    low, high = (-(1 << bits - 1), (1 << bits - 1) - 1) if _signed(codes.dtype) else (0, (1 << bits) - 1)
    codes = contiguous_as(codes, np.int8 if low else np.uint8)
    least, most = (codes.min(), codes.max()) if codes.size else (low, high)  # read once: others may write them
    if least < low or most > high:
        raise ValueError(f"codes must be within [{low}, {high}] for {bits} bits, got {least if least < low else most}")
    return codebooks.pack_bits(codes, bits)


def unpack_bits(data, bits, shape, *, dtype=np.uint8):
    """Return the codes that `pack_bits` stored.

    Parameters
    ----------
    data : uint8 array of shape (ceil(n * bits / 8),)
        n is the number of elements of `shape`.
    bits : {1, 2, 3, 4, 5, 6, 8}
    shape : int or tuple of ints
    dtype : str or dtype
        ``uint8`` gives the fields as they stand; a signed dtype, or a 2- or 4-bit dtype of `ml_dtypes`, the values.

    Returns
    -------
    array of `dtype` and `shape`

    Raises
    ------
    TypeError, ValueError
        For another dtype or number of bits, or data of another size.

    Examples
    --------
    >>> qk.unpack_bits(np.uint8([33, 15]), 4, (3,))
    array([ 1,  2, 15], dtype=uint8)
    >>> qk.unpack_bits(np.uint8([33, 15]), 4, 3, dtype="int8")
    array([ 1,  2, -1], dtype=int8)
    """
    data, dtype, bits = as_array(data, "data"), code_dtype(dtype), _checked_bits(bits)
    if dtype not in (np.int8, np.uint8, *SUB_BYTE_CODES):
        raise TypeError(f"dtype must be int8, uint8, int4, uint4, int2 or uint2, got {dtype}")
    if data.dtype != np.uint8:
        raise TypeError(f"data must be uint8, got {data.dtype}")
    if bits > ml_dtypes.iinfo(dtype).bits:
        raise ValueError(f"dtype {dtype.name} cannot hold codes of {bits} bits")
    shape = _checked_shape(shape)
    count = math.prod(shape)
    expected = (-(-count * bits // 8),)
    if data.shape != expected:
        raise ValueError(f"data must have shape {expected} for {count} codes of {bits} bits, got {data.shape}")
    codes = codebooks.unpack_bits(data, bits, count)
    if _signed(dtype):
        unused = 8 - bits
        codes = (codes << unused).view(np.int8) >> unused
    return codes.astype(dtype, copy=False).reshape(shape)


def _signed(dtype):
    return code_range(dtype)[0] < 0


def _checked_bits(bits):
    bits = integer(bits, "bits")
    if bits not in (1, 2, 3, 4, 5, 6, 8):
        raise ValueError(f"bits must be 1, 2, 3, 4, 5, 6 or 8, got {bits}")
    return bits


def _checked_shape(shape):
    try:
        sizes = tuple(islice(shape, MAX_NDIM + 1)) if np.iterable(shape) else (shape,)  # which may have no end
    except Exception as error:  # whatever the iterator raises
        raise TypeError(f"shape must be an integer or a tuple of integers, got {shown(shape)}") from error
    sizes = tuple(integer(n, "shape", 0, what="an integer or a tuple of integers") for n in sizes)
    if len(sizes) > MAX_NDIM or math.prod(max(n, 1) for n in sizes) >= 2**63:
        raise ValueError(f"shape must have at most {MAX_NDIM} axes and fewer than 2**63 values, got {shown(sizes)}")
    return sizes
