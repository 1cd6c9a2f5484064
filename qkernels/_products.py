"""Multiply matrices of codes: exact sums, and what becomes of them. Formulas: docs/numerics.md, sections 6 to 8."""

import numpy as np

from ._bind import products, weights
from ._bind.arrays import FLOATS
from ._bind.integer_layers import check_params as check_byte_params
from ._bind.runtime import word
from ._checks import FLOAT32, as_array, float32_of, float_array, is_a, shown
from ._rounding import checked_int_bias, is_fixed_point
from ._weights import PackedMatrix

BYTES = np.dtype(np.int8), np.dtype(np.uint8)


def matmul(a, b, *, a_zero_point=0, b_zero_point=0, out=None):
    """Multiply codes exactly: ``(a - a_zero_point) @ (b - b_zero_point)``.

    The sums of 8-bit codes are int32, modulo 2**32; if a or b is int16 they are int64, which holds every sum.

    Parameters
    ----------
    a : uint8, int8 or int16 array of shape (..., M, K), or (K,)
    b : uint8, int8 or int16 array of shape (K, N) or (..., K, N), or PackedMatrix
        A packed b is int16 if a is. Packed weights save the packing that each call would repeat. Their own scale and
        zero point are not used. Leading axes broadcast with those of a as in `numpy.matmul` (not of int16); strides are
        free, so that ``k.swapaxes(-1, -2)`` costs no copy.
    a_zero_point : int or array of ints of shape (..., M)
        One for each row of a.
    b_zero_point : int or array of ints of shape (N,) or (..., N)
        One for each column of b. With leading axes in b, each zero point may have any shape that broadcasts to its own.
    out : int32 array of shape (..., M, N), optional
        Or int64, as the result; C-contiguous; may not overlap a, b or a zero point.

    Returns
    -------
    int32 or int64 array of shape (..., M, N)

    Raises
    ------
    TypeError, ValueError
        For a wrong dtype, shape, zero point or `out`, which is then left untouched.

    References
    ----------
    ONNX MatMulInteger-10; docs/numerics.md, sections 6 and 17.

    Examples
    --------
    >>> qk.matmul(np.uint8([[11, 7, 3]]), np.int8([[1, 4], [2, 5], [3, 6]]), a_zero_point=12)
    array([[-38, -83]], dtype=int32)
    >>> qk.matmul(np.int16([[-32768, -32768]]), np.int16([[-32768], [-32768]]))
    array([[2147483648]])

    One product for each of 12 heads, as attention has them:

    >>> q, k = np.ones((12, 128, 32), np.int8), np.ones((12, 128, 32), np.int8)
    >>> qk.matmul(q, k.swapaxes(-1, -2)).shape
    (12, 128, 128)
    """
    return products.matmul(a, b, a_zero_point, b_zero_point, out)


def linear(x, packed, bias=None, *, activation=None, residual=None, clamp=None, params=None, out=None):
    """Apply a dense layer, giving floats: ``activation(x @ w + bias + residual)``.

    Products are integer unless the weights are floats. Each row of x is quantized by its own range (`dynamic_quantize`
    with ``axis=0``), which keeps the accuracy that one scale for all rows loses: to uint8, or to int8 if the weights
    have 4 bits or blocks of rows (but for integer scales, which make int8 of weights), int16 if they are int16. With
    float16 and bfloat16 weights it is not quantized: they are half as many bytes to read as float32, and the arithmetic
    is that of float32.

    Parameters
    ----------
    x : array of float32, float64, float16 or bfloat16, shape (..., K)
        Finite; used as float32. With `params`, int8 or uint8 codes.
    packed : PackedMatrix of shape (K, N)
        For a layer of `torch.nn.Linear`, whose weight is (out, in), pack ``weight.T``.
    bias : float array of shape (N,), optional
    activation : {None, "relu", "gelu", "gelu_tanh", "silu"}
        ``gelu`` is the exact form, by erf.
    residual : float32 array of shape (..., N), optional
        Added before the activation, as a ResNet block has it; a transformer block has no activation there.
    clamp : (float or None, float or None), optional
        Bounds of the result, after the activation: ReLU6 is ``clamp=(0, 6)``.
    params : QParams, optional
        Those of x, per tensor, which is not quantized then: the product is that of its codes, the weights being of 8
        bits without blocks. (For codes as the result, call `qlinear`.)
    out : float32 array of shape (..., N), optional
        C-contiguous; may be residual itself, and may not overlap it otherwise, nor x or bias.

    Returns
    -------
    float32 array of shape (..., N)

    Raises
    ------
    ValueError
        If x holds NaN or infinity, shapes do not match, or the weights are such that an int32 sum could overflow.
    TypeError
        For a wrong dtype or `out`, which is left untouched after each error.

    References
    ----------
    docs/numerics.md, sections 8, 12, 16 and 17; Hendrycks and Gimpel, *Gaussian Error Linear Units*, 2016.

    Examples
    --------
    >>> w = np.float32([[0.5, -1], [1, 0.25], [-0.5, 2]])
    >>> params = qk.choose_qparams(w, "int8", axis=1)
    >>> qk.linear(np.float32([[1, 2, 3]]), qk.pack(qk.quantize(w, params), params)).round(2)
    array([[0.99, 5.5 ]], dtype=float32)
    """
    if type(packed) is not PackedMatrix and not is_a(packed, PackedMatrix):
        raise TypeError(f"packed must be a PackedMatrix, got {type(packed).__name__}")
    if params is not None:
        weights.need_eight_bits(packed, "packed")
        x = codes_of(x, params, "x")
    elif type(x) is not np.ndarray or x.dtype is not FLOAT32:
        x = float32_of(float_array(x))  # what float32 lacks is refused as infinite
    return products.linear(x, packed, bias, activation, residual, clamp, params, out)


def qlinear(q, params, packed, out_params, bias=None, *, activation=None, clamp=None, rounding="half_even", out=None):
    """Apply a dense layer to codes: the integer product, requantized by `out_params`.

    Parameters
    ----------
    q : uint8 or int8 array of shape (..., K)
        Codes of dtype `params.dtype`.
    params : QParams
        Those of q, per tensor.
    packed : PackedMatrix of shape (K, N)
    out_params : QParams
        Those of the result, per tensor; uint8 or int8.
    bias : int32 or float array of shape (N,), optional
        int32 is in units of scale(q) * scale(b) and added to the sums; floats are real values.
    activation : {None, "relu", "gelu", "gelu_tanh", "silu"}
    clamp : (float or None, float or None), optional
        Bounds of the result as real values, after the activation. (To add a residual, which has a scale of its own, let
        `linear` make floats.)
    rounding : {"half_even", "half_away", "gemmlowp", "tflite"}
        As in `requantize`; the fixed-point ones take an int32 bias and no activation but relu.
    out : array of dtype `out_params.dtype` and shape (..., N), optional
        C-contiguous; may not overlap q or bias.

    Returns
    -------
    array of dtype `out_params.dtype` and shape (..., N)

    Raises
    ------
    TypeError, ValueError
        For a wrong dtype, shape, rounding or `out`, which is then left untouched, and for weights with which an int32
        sum could overflow.

    References
    ----------
    ONNX QLinearMatMul-21; TensorFlow Lite, `reference_integer_ops::FullyConnected`.

    Examples
    --------
    >>> packed = qk.pack(np.int8([[1, 2], [3, -4]]), qk.QParams(0.5))
    >>> qk.qlinear(np.uint8([[130, 126]]), qk.QParams(0.1, 128, "uint8"), packed, qk.QParams(0.2))
    array([[-1,  3]], dtype=int8)
    """
    if type(packed) is not PackedMatrix and not is_a(packed, PackedMatrix):
        raise TypeError(f"packed must be a PackedMatrix, got {type(packed).__name__}")
    options = activation, clamp, rounding
    y = products.qlinear_again(q, params, packed, out_params, bias, options, out)
    if y is not None:
        return y
    weights.need_eight_bits(packed, "packed")
    q = codes_of(q, params)
    biases, how = layer_of_codes(packed.shape[1], out_params, bias, *options)
    return products.qlinear(q, params, packed, out_params, biases, how, options, out)


def codes_of(q, params, name="q"):
    """Return q, which the caller gave by that name, as an array, whose params are of bytes."""
    check_byte_params(params, "params")
    q = as_array(q, name)
    if q.dtype is not params.dtype and q.dtype != params.dtype:
        raise TypeError(f"{name} must have dtype {params.dtype} (as params), got {q.dtype}")
    return q


def layer_of_codes(n, out_params, bias, activation, clamp, rounding):
    """Return the bias of n columns, as C reads it and as it was given, and how sums become codes of `out_params`."""
    check_byte_params(out_params, "out_params")
    bias = None if bias is None else as_array(bias, "bias")
    rounding, activation = word(rounding), word(activation)
    biases = None if bias is None else (checked_bias(bias, n, rounding), bias)
    bounds = None
    if clamp is not None:
        bounds = products.clamp_codes(clamp, out_params, is_a(rounding, str) and rounding == "half_even")
    if is_fixed_point(rounding) and not (activation is None or is_a(activation, str) and activation == "relu"):
        raise ValueError(f"activation must be None or 'relu' with rounding {rounding!r}, got {shown(activation)}")
    return biases, (activation, bounds, rounding)


def checked_bias(bias, n, rounding):
    """Return the bias as C reads it: int32, or float32."""
    if bias.shape != (n,):
        raise ValueError(f"bias must have shape {(n,)}, got {bias.shape}")
    if bias.dtype.kind in "iu":
        return checked_int_bias(bias, n)
    if bias.dtype.newbyteorder("=") not in FLOATS:
        raise TypeError(f"bias must be int32 or a float array, got {bias.dtype}")
    if is_fixed_point(rounding):
        raise TypeError(f"bias must be int32 with rounding {rounding!r}, got {bias.dtype}")
    return np.ascontiguousarray(float32_of(bias))
