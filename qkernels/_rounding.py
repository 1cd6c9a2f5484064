"""Make codes of int32 sums, in floating or fixed point. Formulas: docs/numerics.md, section 7."""

import numpy as np

from ._bind import elementwise
from ._bind.runtime import word
from ._checks import as_array, is_a, real_array
from ._mode import default_mode
from ._qparams import FLOAT_CODES, QParams

FIXED_POINT = ("gemmlowp", "tflite")
INT32 = np.dtype(np.int32)


def is_fixed_point(rounding):
    """Tell whether that is the name of a fixed-point rounding."""
    rounding = word(rounding)
    return type(rounding) is str and rounding in FIXED_POINT


def requantize(acc, multiplier, params, *, bias=None, rounding="half_even", out=None):
    """Requantize int32 sums to codes: ``saturate(round((acc + bias) * multiplier) + zero_point)``.

    Parameters
    ----------
    acc : int32 array of shape (..., n)
    multiplier : float or array of shape (n,)
        Scale of acc divided by scale of the result: positive and finite. Used as float32, or as `quantize_multiplier`
        of it in the fixed-point roundings.
    params : QParams
        Per tensor; of it only dtype, zero point and range count.
    bias : int or int32 array of shape (n,), optional
        Added to acc modulo 2**32.
    rounding : {"half_even", "half_away", "gemmlowp", "tflite"}
        ``half_even``: as onnxruntime's QLinearMatMul. ``gemmlowp``: 31-bit fixed-point multiplier and shift, rounded
        twice. ``tflite``: the same multiplier rounded once, as TFLite has done since 2.20.
    out : array of dtype `params.dtype` and the shape of acc, optional

    Returns
    -------
    array of dtype `params.dtype` and the shape of acc

    Raises
    ------
    TypeError, ValueError
        For a wrong dtype, shape, multiplier, rounding or `out`, which is then left untouched.

    References
    ----------
    onnxruntime, MlasRequantizeOutput; gemmlowp, `fixedpoint.h`, SaturatingRoundingDoublingHighMul and
    RoundingDivideByPOT; TensorFlow Lite, `kernels/internal/common.h`, MultiplyByQuantizedMultiplier.

    Examples
    --------
    >>> qk.requantize(np.int32([-99, 5, 1000]), 0.5, qk.QParams(1, 10, "uint8"))
    array([  0,  12, 255], dtype=uint8)
    >>> qk.requantize(np.int32([-99, 5, 1000]), 0.5, qk.QParams(1, 10, "uint8"), rounding="tflite")
    array([  0,  13, 255], dtype=uint8)
    """
    acc = as_array(acc, "acc")
    if acc.dtype.newbyteorder("=") != np.int32:
        raise TypeError(f"acc must be int32, got {acc.dtype}")
    check_params(params, "params")
    if params.dtype in FLOAT_CODES:
        raise TypeError(f"params must have an integer dtype, got {params.dtype.name}")
    n = acc.shape[-1] if acc.ndim else 1
    multiplier = real_array(multiplier, "multiplier", "a float or an array of floats")
    bias = None if bias is None else as_array(bias, "bias")
    summand = np.zeros(n, np.int32) if bias is None else checked_int_bias(bias, n)
    arrays = elementwise.multipliers(multiplier, n, is_fixed_point(rounding))
    return elementwise.requantize(acc, summand, bias, params, rounding, arrays, multiplier, out)


@default_mode
def quantize_multiplier(m):
    """Split a positive multiplier into its fixed-point form: ``m = mantissa * 2**(shift - 31)``, nearly.

    Parameters
    ----------
    m : float or array of floats
        Finite and not negative.

    Returns
    -------
    mantissa, shift : ints, or int32 arrays of the shape of m
        mantissa is in [2**30, 2**31), or 0 if m < 2**-32.

    Raises
    ------
    ValueError
        For NaN, infinite or negative m.
    TypeError
        If m is not a number.

    References
    ----------
    TensorFlow Lite, `kernels/internal/quantization_util.cc`, QuantizeMultiplier.

    Examples
    --------
    >>> qk.quantize_multiplier(0.1)
    (1717986918, -3)
    """
    given = real_array(m, "m", "a float or an array of floats").astype(np.float64)
    bad = ~((given >= 0) & (given < np.inf))
    if bad.any():
        raise ValueError(f"m must be finite and not negative, got {given[bad].flat[0]}")
    mantissa, shift = elementwise.quantize_multiplier(np.ascontiguousarray(given).reshape(-1))
    if given.ndim == 0:
        return int(mantissa[0]), int(shift[0])
    return mantissa.reshape(given.shape), shift.reshape(given.shape)


# ---- shared with qlinear ----


def check_params(params, name):
    """Raise unless `params` are QParams per tensor."""
    if not is_a(params, QParams):
        raise TypeError(f"{name} must be QParams, got {type(params).__name__}")
    if params.axis is not None:
        raise ValueError(f"{name} must be per tensor, got axis {params.axis}")


def checked_int_bias(given, n):
    """Return the array of a bias as n int32 values."""
    if given.dtype is INT32 and given.shape == (n,) and given.flags.carray:
        return given
    if given.dtype.kind not in "iu":
        raise TypeError(f"bias must be int32, got {given.dtype}")
    if given.shape not in ((), (n,)):
        raise ValueError(f"bias must be a scalar or have shape {(n,)}, got {given.shape}")
    if given.dtype is not INT32 and given.size and (int(given.min()) < -(2**31) or int(given.max()) >= 2**31):
        raise ValueError(f"bias must fit int32, got values within [{given.min()}, {given.max()}]")
    return np.ascontiguousarray(given if given.ndim else np.broadcast_to(given, (n,)), INT32)
