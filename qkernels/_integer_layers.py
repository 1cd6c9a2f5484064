"""Apply layers to codes of 8 bits, which give such codes. Formulas: docs/numerics.md, section 23."""

import math

import numpy as np

from ._bind import elementwise, integer_layers
from ._bind.arrays import cuts, store
from ._checks import (
    as_array,
    check_weights,
    float_array,
    in_parts,
    integer,
    is_a,
    raise_not_finite,
    real,
    shown,
)
from ._mode import default_mode
from ._rounding import check_params

INT32 = np.iinfo(np.int32)


# ---- sums, products, concatenation ----


def qadd(a, a_params, b, b_params, out_params, *, activation=None, rounding="half_even", out=None):
    """Add codes, with broadcasting: the code of ``real(a) + real(b)``, as onnxruntime's QLinearAdd bit for bit.

    Parameters
    ----------
    a, b : int8 or uint8 arrays, both of one dtype
    a_params, b_params, out_params : QParams
        Per tensor; those of a and b have their dtype, those of the result may have the other one.
    activation : {"relu"}, optional
        Clamp the result at its zero point. (Others are tables: `make_table`.)
    rounding : {"half_even", "tflite"}
        ``tflite``: as LiteRT's reference kernel ADD, in fixed point.
    out : array of dtype `out_params.dtype` and the shape of the result, optional
        C-contiguous; may not overlap a or b.

    Returns
    -------
    array of dtype `out_params.dtype`

    Raises
    ------
    TypeError, ValueError
        For a wrong dtype, shape, option or `out`, which is then left untouched.

    References
    ----------
    onnxruntime, MlasQLinearAdd; TensorFlow Lite, `kernels/internal/reference/add.h`.

    Examples
    --------
    >>> half = qk.QParams(0.5)
    >>> qk.qadd(np.int8([[2, 4]]), half, np.int8([[1], [6]]), half, qk.QParams(1))
    array([[2, 2],
           [4, 5]], dtype=int8)
    """
    return integer_layers.pair(False, a, a_params, b, b_params, out_params, activation, rounding, out)


def qmultiply(a, a_params, b, b_params, out_params, *, activation=None, rounding="half_even", out=None):
    """Multiply codes, with broadcasting: the code of ``real(a) * real(b)``, as onnxruntime's QLinearMul bit for bit.

    Parameters, results and errors are those of `qadd`; ``rounding="tflite"`` is LiteRT's reference kernel MUL.

    References
    ----------
    onnxruntime, MlasQLinearMul; TensorFlow Lite, `kernels/internal/reference/mul.h`.

    Examples
    --------
    >>> half = qk.QParams(0.5)
    >>> qk.qmultiply(np.int8([2, 4]), half, np.int8([-3]), half, qk.QParams(0.25, 1))
    array([ -5, -11], dtype=int8)
    """
    return integer_layers.pair(True, a, a_params, b, b_params, out_params, activation, rounding, out)


def qconcatenate(parts, out_params, *, axis, rounding="half_even", out=None):
    """Join codes along an axis, each part requantized from its own parameters to those of the result.

    Parameters
    ----------
    parts : sequence of (q, params)
        int8 or uint8 arrays, of one shape but for the axis, each with its QParams per tensor.
    out_params : QParams
        Per tensor, int8 or uint8.
    axis : int
    rounding : {"half_even", "tflite"}
        ``half_even``: as onnxruntime's QLinearConcat, bit for bit. ``tflite``: as LiteRT's, ties away from zero.
    out : array of dtype `out_params.dtype` and the shape of the result, optional
        C-contiguous; may not overlap a part.

    Returns
    -------
    array of dtype `out_params.dtype`

    Raises
    ------
    TypeError, ValueError
        For a wrong dtype, shape, axis, rounding or `out`, which is then left untouched.

    Examples
    --------
    >>> parts = [(np.int8([2, 4]), qk.QParams(0.5)), (np.uint8([7]), qk.QParams(1, 3, "uint8"))]
    >>> qk.qconcatenate(parts, qk.QParams(0.25), axis=0)
    array([ 4,  8, 16], dtype=int8)
    """
    _, tflite = integer_layers.options(None, rounding)
    integer_layers.check_params(out_params, "out_params")
    arrays, params = _checked_parts(parts)
    axis, ndim = integer(axis, "axis"), arrays[0].ndim
    if not -ndim <= axis < ndim:
        raise ValueError(f"axis {axis} is out of range for parts with shape {arrays[0].shape}")
    axis %= ndim
    others = {a.shape[:axis] + a.shape[axis + 1 :] if a.ndim == ndim else None for a in arrays}
    if len(others) > 1:
        raise ValueError(
            f"parts must have one shape but for axis {axis}, got {', '.join(str(a.shape) for a in arrays)}"
        )
    length = sum(a.shape[axis] for a in arrays)
    shape = arrays[0].shape[:axis] + (length,) + arrays[0].shape[axis + 1 :]
    tables = [_requantizing_table(p, out_params, tflite) for p in params]
    return integer_layers.concatenate(arrays, tables, shape, axis, out_params, out)


def _checked_parts(parts):
    """Return the arrays and the parameters of parts."""
    try:
        pairs = [(q, params) for q, params in parts]
    except Exception as error:  # whatever an iterator raises
        raise TypeError(f"parts must be a sequence of (q, params), got {shown(parts)}") from error
    if not pairs:
        raise ValueError("parts must have at least one (q, params), got none")
    arrays = []
    for i, (q, params) in enumerate(pairs):
        integer_layers.check_params(params, f"parts[{i}][1]")
        a = as_array(q, f"parts[{i}][0]")
        if a.dtype != params.dtype:
            raise TypeError(f"parts[{i}][0] must have dtype {params.dtype} (as its params), got {a.dtype}")
        if a.ndim == 0:
            raise ValueError(f"parts[{i}][0] must have at least one axis, got a scalar")
        arrays.append(a)
    return arrays, [params for _, params in pairs]


@default_mode
def _requantizing_table(params, to, tflite):
    """Return the code of each byte, as it lies in memory."""
    codes = np.arange(256, dtype=np.uint8).view(params.dtype)
    if not tflite:
        return elementwise.quantize(elementwise.dequantize(codes, params, np.float32, None), to, "half_even", None)
    scale = params.scale * (np.float32(1) / to.scale)
    value = codes * scale + np.float32(-params.zero_point) * scale
    rounded = np.trunc(value + np.copysign(np.float32(0.5), value)) if params != to else codes - to.zero_point
    return np.clip(rounded + to.zero_point, to.qmin, to.qmax).astype(to.dtype)


# ---- unary layers ----


def make_table(function, params, out_params):
    """Return the nearest code of ``function(x)`` for each code of x: a unary layer, for `take_table`.

    Parameters
    ----------
    function : str or callable
        ``sigmoid tanh exp gelu gelu_tanh silu hard_swish hard_sigmoid leaky_relu elu softplus`` (leaky_relu with slope
        0.01, elu with alpha 1); or any function of a float64 array (256,), ascending, which gives one alike.
    params, out_params : QParams
        Of x and of the result: per tensor, int8 or uint8.

    Returns
    -------
    array of shape (256,) and dtype `out_params.dtype`
        Entry i is the code of the i-th lowest code of x: for uint8 ``table[q]`` is the answer. Off by half a step at
        most, ties to even, on the real value. NaN gives the zero point; infinities saturate.

    Raises
    ------
    TypeError, ValueError
        For another name, or a result that is not 256 real numbers.

    Examples
    --------
    >>> table = qk.make_table("sigmoid", qk.QParams(0.05), qk.QParams(1 / 256, -128))
    >>> qk.take_table(np.int8([-128, 0, 40]), table)
    array([-128,    0,   97], dtype=int8)
    """
    return _tables().table_of(function, params, out_params)


@default_mode
def _tables():
    """Return the module of exact arithmetic, which takes milliseconds to import."""
    from . import _tables

    return _tables


def take_table(q, table, *, out=None):
    """Look up each code in a table of 256, as `make_table` gives.

    Parameters
    ----------
    q : int8 or uint8 array
    table : int8 or uint8 array of shape (256,)
        Entry i is for the i-th lowest code: ``table[q]``, or ``table[q + 128]`` of int8.
    out : array of the table's dtype and the shape of q, optional
        C-contiguous; may not overlap q or the table.

    Returns
    -------
    array of the table's dtype

    Raises
    ------
    TypeError, ValueError
        For a wrong dtype, shape or `out`, which is then left untouched.

    Examples
    --------
    >>> qk.take_table(np.uint8([[3, 255]]), np.arange(255, -1, -1, np.uint8))
    array([[252,   0]], dtype=uint8)
    """
    return integer_layers.take_table(q, table, out)


# ---- rows ----


def qsoftmax(q, params, out_params, *, axis=-1, out=None):
    """Apply softmax to codes along an axis: within 0.5 + 2**-10 steps of the exact value, by integer sums.

    Parameters
    ----------
    q : int8 or uint8 array
    params, out_params : QParams
        Per tensor; probabilities usually have scale 1/256 and the lowest code as zero point.
    axis : int
        The last is fastest; another costs two transpositions.
    out : array of dtype `out_params.dtype` and the shape of q, optional
        C-contiguous; may not overlap q.

    Returns
    -------
    array of dtype `out_params.dtype`
        Equal bits on every instruction set.

    Raises
    ------
    TypeError, ValueError
        For a wrong dtype, axis or `out`, which is then left untouched.

    Examples
    --------
    >>> qk.qsoftmax(np.int8([[0, 10, 20]]), qk.QParams(0.1), qk.QParams(1 / 256, -128))
    array([[-105,  -65,   42]], dtype=int8)
    """
    q, axis = as_array(q, "q"), integer(axis, "axis")
    if q.ndim and not -q.ndim <= axis < q.ndim:
        raise ValueError(f"axis {axis} is out of range for q with shape {q.shape}")
    if axis in (-1, q.ndim - 1) or q.ndim == 0:
        return integer_layers.softmax(q, params, out_params, out)
    turned = integer_layers.softmax(np.moveaxis(q, axis, -1), params, out_params, None)
    return store(out, np.moveaxis(turned, -1, axis), q, "q")


def qlayer_norm(q, params, weight, bias, out_params, *, eps=1e-12, out=None):
    """Normalise each row of codes: the codes of `layer_norm`, within 0.5 + 2**-10 steps, by integer sums.

    Parameters
    ----------
    q : int8 or uint8 array of shape (..., N)
    params, out_params : QParams
        Per tensor.
    weight, bias : float32 arrays of shape (N,)
        Finite.
    eps : float
        Added to the variance of real values.
    out : array of dtype `out_params.dtype` and the shape of q, optional
        C-contiguous; may not overlap the others.

    Returns
    -------
    array of dtype `out_params.dtype`
        Equal bits on every instruction set. A row of equal codes gives the bias, also if eps is 0.

    Raises
    ------
    TypeError, ValueError
        For a wrong dtype, shape, value or `out`, which is then left untouched.

    Examples
    --------
    >>> ones = np.ones(4, np.float32)
    >>> qk.qlayer_norm(np.int8([[1, 2, 3, 6]]), qk.QParams(0.5), ones, 0 * ones, qk.QParams(0.02))
    array([[-53, -27,   0,  80]], dtype=int8)
    """
    if bias is None:
        raise TypeError("bias must be a float32 array, got None")
    return integer_layers.norm(q, params, weight, bias, out_params, real(eps, "eps"), out)


def qrms_norm(q, params, weight, out_params, *, eps=1e-6, out=None):
    """Divide each row of codes by the root of its mean square: ``x / sqrt(mean(x**2) + eps) * weight``, as codes.

    Parameters, results and errors are those of `qlayer_norm`.

    References
    ----------
    Zhang and Sennrich, *Root Mean Square Layer Normalization*, 2019, equation 4.

    Examples
    --------
    >>> qk.qrms_norm(np.int8([[1, 2, 3, 6]]), qk.QParams(0.5), np.ones(4, np.float32), qk.QParams(0.02))
    array([[14, 28, 42, 85]], dtype=int8)
    """
    return integer_layers.norm(q, params, weight, None, out_params, real(eps, "eps"), out)


# ---- before quantization ----


@default_mode
def fold_batchnorm(w, bias, gamma, beta, mean, var, *, eps=1e-5, axis=-1):
    """Fold a batch normalisation that follows a layer into its weights and bias.

    ``((x w + bias) - mean) / sqrt(var + eps) * gamma + beta`` is ``x w' + bias'``.

    Parameters
    ----------
    w : float array
        Whose `axis` has the outputs.
    bias : float array of shape (outputs,), or None
    gamma, beta, mean, var : float arrays of shape (outputs,)
    eps : float
    axis : int

    Returns
    -------
    w : array of the dtype and shape of w
    bias : array of that dtype, of shape (outputs,)
        Both computed in float64 and rounded once.

    Raises
    ------
    TypeError, ValueError
        For a wrong dtype, shape or axis, a variance below 0, and values, or results in the dtype of w, that are not
        finite.

    References
    ----------
    Jacob et al. 2018, equation 14.

    Examples
    --------
    >>> one = np.ones(1)
    >>> qk.fold_batchnorm(np.float32([[4]]), None, 2 * one, 3 * one, one, 4 * one, eps=0)
    (array([[4.]], dtype=float32), array([2.], dtype=float32))
    """
    w, axis, eps = float_array(w, "w"), integer(axis, "axis"), real(eps, "eps")
    if not -w.ndim <= axis < w.ndim:
        raise ValueError(f"axis {axis} is out of range for w with shape {w.shape}")
    if not 0 <= eps < math.inf:
        raise ValueError(f"eps must be at least 0 and finite, got {eps}")
    outputs = w.shape[axis]
    given = {
        "bias": np.zeros(outputs) if bias is None else bias,
        "gamma": gamma,
        "beta": beta,
        "mean": mean,
        "var": var,
    }
    bias, gamma, beta, mean, var = (_channel_values(value, outputs, name) for name, value in given.items())
    check_weights(var, "var", zeros=True)
    if not (var + eps > 0).all():
        raise ValueError("var + eps must be positive, got 0")
    factor = gamma / np.sqrt(var + eps)
    spread = np.broadcast_to(factor.reshape([-1 if i == axis % w.ndim else 1 for i in range(w.ndim)]), w.shape)
    dtype = w.dtype.newbyteorder("=")
    folded, shift = in_parts(np.multiply, w, dtype, spread), ((bias - mean) * factor + beta).astype(dtype)
    if not (_are_finite(folded) and _are_finite(shift)):
        if not _are_finite(w):
            raise_not_finite(w, "w")
        raise ValueError(f"w and bias must stay finite values of {dtype} when the others are folded into them")
    return folded, shift


def _are_finite(x):
    return all(np.isfinite(x[part]).all() for part in cuts(x.shape))


@default_mode
def smooth(w, activation_absmax, alpha=0.5):
    """Move the ranges of a layer's inputs into its weights, so that one scale serves all inputs: SmoothQuant.

    ``x @ w`` is ``(x / factors) @ smoothed``, ``factors`` being ``activation_absmax**alpha / w_absmax**(1 - alpha)``
    with the largest magnitude of each input's weights. The division costs nothing if it is folded into what makes x:
    into weight and bias of a layer norm, into columns of the layer before, or into the scales of `QParams` with
    ``axis=-1`` by which x is quantized.

    Parameters
    ----------
    w : float array of shape (inputs, outputs)
    activation_absmax : float array of shape (inputs,)
        The largest magnitude of each input, as ``observers.MinMax(axis=-1)`` has seen them; less an offset of its own,
        if zero points of columns take that.
    alpha : float
        How much of the ranges weights take over: 0.5 shares them out; layers after a layer norm like 0.8 and more.

    Returns
    -------
    smoothed : array of the dtype and shape of w
    factors : float32 array of shape (inputs,)
        1 for inputs that were always 0, or of which all weights are 0.

    Raises
    ------
    TypeError, ValueError
        For a wrong dtype, shape or alpha, magnitudes below 0, and values, or results in the dtype of w, that are not
        finite.

    References
    ----------
    Xiao et al., *SmoothQuant: Accurate and Efficient Post-Training Quantization for Large Language Models*, 2023,
    equation 4.

    Examples
    --------
    >>> smoothed, factors = qk.smooth(np.float32([[0.25, -0.5], [2, 1]]), np.float32([8, 2]))
    >>> smoothed, factors
    (array([[ 1., -2.],
           [ 2.,  1.]], dtype=float32), array([4., 1.], dtype=float32))
    """
    w, alpha = float_array(w, "w"), real(alpha, "alpha")
    if w.ndim != 2:
        raise ValueError(f"w must have shape (inputs, outputs), got {w.shape}")
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha must be between 0 and 1, got {alpha}")
    inputs = _channel_values(activation_absmax, len(w), "activation_absmax")
    check_weights(inputs, "activation_absmax", zeros=True)
    weights = np.abs(w.astype(np.float64)).max(axis=1, initial=0)
    if not np.isfinite(weights).all():
        raise_not_finite(w, "w")
    factors = np.ones(len(w))
    known = (inputs > 0) & (weights > 0)
    factors[known] = inputs[known] ** alpha / weights[known] ** (1 - alpha)
    factors = np.float32(np.clip(factors, 2.0**-126, 2.0**126))
    smoothed = (w * factors[:, None].astype(np.float64)).astype(w.dtype.newbyteorder("="))
    if not _are_finite(smoothed):
        raise ValueError(f"w must stay finite values of {smoothed.dtype} when it is multiplied by factors")
    return smoothed, factors


def _channel_values(given, n, name):
    values = float_array(given, name)
    if values.shape != (n,):
        raise ValueError(f"{name} must have shape {(n,)} to match the axis of w, got {values.shape}")
    if not np.isfinite(values.astype(np.float64)).all():
        raise_not_finite(values, name)
    return values.astype(np.float64)


@default_mode
def quantize_bias(bias, x_params, w_params):
    """Return a bias as int32, in units of the product's scale: ``round(bias / (x_scale * w_scale))``, half to even.

    Parameters
    ----------
    bias : float array of shape (outputs,)
    x_params : QParams
        Per tensor.
    w_params : QParams
        Per tensor, or one scale an output.

    Returns
    -------
    int32 array of shape (outputs,)

    Raises
    ------
    ValueError
        If a value is NaN or does not fit int32, or the shapes do not match.
    TypeError
        For a wrong dtype, or what is not QParams.

    Examples
    --------
    >>> qk.quantize_bias(np.float32([1, -0.3]), qk.QParams(0.5), qk.QParams([0.25, 0.125], axis=1))
    array([ 8, -5], dtype=int32)
    """
    values = float_array(bias, "bias")
    check_params(x_params, "x_params")
    if not is_a(w_params, elementwise.Params):
        raise TypeError(f"w_params must be QParams, got {type(w_params).__name__}")
    scale = np.asarray(w_params.scale, np.float64)
    if values.ndim != 1 or scale.shape not in ((), values.shape):
        raise ValueError(
            f"bias must have shape (outputs,) to match w_params with scales {scale.shape}, got {values.shape}"
        )
    steps = np.rint(values.astype(np.float64) / (float(x_params.scale) * scale))
    bad = ~((steps >= INT32.min) & (steps <= INT32.max))
    if bad.any():
        i = int(np.argmax(bad))
        raise ValueError(
            f"bias must fit int32 in units of the scales, got {values[i]}, {steps[i]:g} of them, at ({i},)"
        )
    return steps.astype(np.int32)
