"""Matrix products of 8-bit codes: exact int32 sums, and what becomes of them. Formulas: docs/numerics.md, sections 6 to 8."""

import ml_dtypes
import numpy as np

from . import _core
from .qparams import QParams, code_range, float_array
from .quantize import pack_bits, quantize, unpack_bits
from .rounding import FIXED_POINT, check_params, checked_int_bias, multiplier_arrays


FOUR_BITS = np.dtype(ml_dtypes.int4), np.dtype(ml_dtypes.uint4)


def matmul(a, b, *, a_zero_point=0, b_zero_point=0, out=None):
    """Exact integer product ``(a - a_zero_point) @ (b - b_zero_point)``, modulo 2**32.

    Parameters
    ----------
    a : uint8 or int8 array of shape (..., M, K), or (K,)
    b : uint8 or int8 array of shape (K, N) or (..., K, N), or PackedMatrix
        Packed weights save the packing that each call would repeat. Their own scale and zero point are not used. Leading axes
        broadcast with those of a as in `numpy.matmul`; strides are free, so that ``k.swapaxes(-1, -2)`` costs no copy.
    a_zero_point : int or integer array of shape (..., M)
        One for each row of a.
    b_zero_point : int or integer array of shape (N,) or (..., N)
        One for each column of b. With leading axes in b, each zero point may have any shape that broadcasts to its own.
    out : int32 array of shape (..., M, N), optional
        C-contiguous; may not overlap a, b or a zero point.

    Returns
    -------
    int32 array of shape (..., M, N)

    Raises
    ------
    TypeError, ValueError
        For a wrong dtype, shape, zero point or `out`, which is then left untouched.

    References
    ----------
    ONNX MatMulInteger-10.

    Examples
    --------
    >>> qk.matmul(np.uint8([[11, 7, 3]]), np.int8([[1, 4], [2, 5], [3, 6]]), a_zero_point=12)
    array([[-38, -83]], dtype=int32)

    One product for each of 12 heads, as attention has them:

    >>> q, k = np.ones((12, 128, 32), np.int8), np.ones((12, 128, 32), np.int8)
    >>> qk.matmul(q, k.swapaxes(-1, -2)).shape
    (12, 128, 128)
    """
    return _core.matmul(a, b, a_zero_point, b_zero_point, out)


def pack(b, params, *, scales=None):
    """Quantized weights in the layout that the products read fastest.

    Parameters
    ----------
    b : int8, uint8, int4 or uint4 array of shape (K, N)
        Of any strides, so that ``w.T`` costs no copy. 4-bit codes (of `ml_dtypes`) are kept two a byte; they are for `linear`.
    params : QParams
        Of dtype `b.dtype`, per tensor or per column (``axis=1``); 4-bit codes also per block of rows and column (``axis=0``,
        `block_size`), where multiples of 8 run fastest. Their scales are kept as float16 if that holds them all exactly.
    scales : None
        For codebooks.

    Returns
    -------
    PackedMatrix

    Raises
    ------
    TypeError, ValueError
        For another dtype, shape or axis.

    Examples
    --------
    >>> w = np.float32([[0.5, -1], [1, 0.25], [-0.5, 2]])
    >>> params = qk.choose_qparams(w, "int8", axis=1)
    >>> qk.pack(qk.quantize(w, params), params).shape
    (3, 2)
    """
    if scales is not None:
        raise ValueError(f"scales must be None for weights of QParams, got {type(scales).__name__}")
    return PackedMatrix(b, params)


class PackedMatrix(_core.Packed):
    """Weights as `pack` makes them: read-only, picklable, to be used from any thread.

    Attributes
    ----------
    shape : (int, int)
        (K, N)
    params : QParams
    nbytes : int
        Of the panels and of what is kept for each column.

    Examples
    --------
    >>> packed = qk.pack(np.eye(3, 2, dtype=np.int8), qk.QParams(0.5))
    >>> packed
    PackedMatrix(shape=(3, 2), params=QParams(scale=0.5, dtype='int8'))
    >>> qk.PackedMatrix.from_arrays(packed.to_arrays()).unpack()
    array([[1, 0],
           [0, 1],
           [0, 0]], dtype=int8)
    """

    __slots__ = ()

    def __new__(cls, b, params):
        b = np.asarray(b)
        if not isinstance(params, QParams):
            raise TypeError(f"params must be QParams, got {type(params).__name__}")
        if b.dtype not in (np.int8, np.uint8, *FOUR_BITS):
            raise TypeError(f"b must be int8, uint8, int4 or uint4, got {b.dtype}")
        if b.dtype != params.dtype:
            raise TypeError(f"b must have dtype {params.dtype} (as params), got {b.dtype}")
        if b.ndim != 2:
            raise ValueError(f"b must have shape (K, N), got {b.shape}")
        by_column = params.axis in (None, 1, -1) and params.block_size is None
        if not by_column and not (b.dtype in FOUR_BITS and params.axis in (0, -2) and params.block_size):
            blocks = ", or per block of rows (axis=0 and block_size)" if b.dtype in FOUR_BITS else ""
            raise ValueError(f"params must be per tensor or per column (axis=1){blocks}, got axis={params.axis}, "
                             f"block_size={params.block_size}")
        params.check_shape(b.shape)
        if params.axis in (-1, -2):  # one name for one thing, so that from_arrays gives equal params back
            params = QParams._chosen(params.scale, params.zero_point, params.dtype, (params.qmin, params.qmax), params.axis + 2,
                                     params.block_size)
        return super().__new__(cls, b, params)

    def __repr__(self):
        return f"PackedMatrix(shape={self.shape}, params={self.params})"

    def __reduce__(self):
        return PackedMatrix, (self.unpack(), self.params)

    def to_arrays(self):
        """Plain arrays that hold all of it, for safetensors, npz and the like: `from_arrays` reads them anywhere.

        Returns
        -------
        dict of str to array
            ``codes`` (K, N), ``scale`` and ``zero_point`` (their shape in `params`), and ``qmin`` (). Of 4-bit weights ``codes``
            has one dimension, as `pack_bits` makes them, and ``shape`` (2,), ``signed`` () and ``block_size`` () (0 for none) tell the rest.
        """
        p = self.params
        arrays = {"scale": np.array(p.scale), "zero_point": np.array(p.zero_point), "qmin": np.array(p.qmin, np.int32)}
        if p.dtype not in FOUR_BITS:
            return {"codes": self.unpack()} | arrays
        return {"codes": pack_bits(self.unpack(), 4), "shape": np.array(self.shape), "signed": np.array(p.dtype == FOUR_BITS[0]),
                "block_size": np.array(p.block_size or 0)} | arrays

    @classmethod
    def from_arrays(cls, arrays):
        """The matrix whose `to_arrays` gave `arrays` (a mapping of str to array), packed for this machine.

        Raises
        ------
        TypeError, ValueError
            Where an array is missing, or is not as `to_arrays` makes it.
        """
        missing = {"codes", "scale", "zero_point", "qmin"} - arrays.keys()
        if missing:
            raise ValueError(f"arrays must hold codes, scale, zero_point and qmin, got no {', '.join(sorted(missing))}")
        codes, scale, qmin = np.asarray(arrays["codes"]), np.asarray(arrays["scale"]), int(arrays["qmin"])
        if codes.dtype not in (np.int8, np.uint8):
            raise TypeError(f"codes must be int8 or uint8, got {codes.dtype}")
        block_size = None
        if "shape" in arrays:
            codes = unpack_bits(codes, 4, tuple(map(int, arrays["shape"])), dtype=FOUR_BITS[0 if arrays["signed"] else 1])
            block_size = int(arrays["block_size"]) or None
        lowest = code_range(codes.dtype)[0]
        if qmin not in (lowest, lowest + 1):
            raise ValueError(f"qmin must be {lowest} or {lowest + 1} for codes of {codes.dtype}, got {qmin}")
        params = QParams(scale, arrays["zero_point"], codes.dtype, axis=0 if block_size else 1 if scale.ndim else None,
                         block_size=block_size, narrow_range=qmin != lowest)
        return cls(codes, params)


def linear(x, packed, bias=None, *, activation=None, residual=None, clamp=None, out=None):
    """A dense layer: ``activation(x @ w + bias + residual)``, floats in and out, with integer products.

    Each row of x is quantized by its own range (`dynamic_quantize` with ``axis=0``), which keeps the accuracy that one scale for
    all rows loses: to uint8, or to int8 where the weights have 4 bits.

    Parameters
    ----------
    x : array of float32, float64, float16 or bfloat16, shape (..., K)
        Finite; used as float32.
    packed : PackedMatrix of shape (K, N)
    bias : float array of shape (N,), optional
    activation : {None, "relu", "gelu", "gelu_tanh", "silu"}
        ``gelu`` is the exact form, by erf.
    residual : float32 array of shape (..., N), optional
        Added before the activation, as a ResNet block has it; a transformer block has no activation there.
    clamp : (float or None, float or None), optional
        Bounds of the result, after the activation: ReLU6 is ``clamp=(0, 6)``.
    out : float32 array of shape (..., N), optional
        C-contiguous; may be residual itself, and may not overlap it otherwise, nor x or bias.

    Returns
    -------
    float32 array of shape (..., N)

    Raises
    ------
    ValueError
        Where x holds NaN or infinity, shapes do not match, or the weights are such that an int32 sum could overflow.
    TypeError
        For a wrong dtype or `out`, which is left untouched after each error.

    References
    ----------
    docs/numerics.md, sections 8 and 12; Hendrycks and Gimpel, *Gaussian Error Linear Units*, 2016.

    Examples
    --------
    >>> w = np.float32([[0.5, -1], [1, 0.25], [-0.5, 2]])
    >>> params = qk.choose_qparams(w, "int8", axis=1)
    >>> qk.linear(np.float32([[1, 2, 3]]), qk.pack(qk.quantize(w, params), params)).round(2)
    array([[0.99, 5.5 ]], dtype=float32)
    """
    if not isinstance(packed, PackedMatrix):
        raise TypeError(f"packed must be a PackedMatrix, got {type(packed).__name__}")
    if type(x) is not np.ndarray or x.dtype is not _core.FLOAT32:
        with np.errstate(over="ignore"):  # what float32 lacks is refused as infinite
            x = float_array(x).astype(np.float32, copy=False)
    return _core.linear(x, packed, bias, activation, residual, clamp, out)


def qlinear(q, params, packed, out_params, bias=None, *, activation=None, clamp=None, rounding="half_even", out=None):
    """A dense layer of codes: the integer product, requantized by `out_params`.

    Parameters
    ----------
    q : uint8 or int8 array of shape (..., K)
        Codes of dtype `params.dtype`.
    params : QParams
        Of q, per tensor.
    packed : PackedMatrix of shape (K, N)
    out_params : QParams
        Of the result, per tensor; uint8 or int8.
    bias : int32 or float array of shape (N,), optional
        int32 is in units of scale(q) * scale(b) and added to the sums; floats are real values.
    activation : {None, "relu", "gelu", "gelu_tanh", "silu"}
    clamp : (float or None, float or None), optional
        Bounds of the result as real values, after the activation. (To add a residual, which has a scale of its own, let `linear`
        make floats.)
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
        For a wrong dtype, shape, rounding or `out`, which is then left untouched, and for weights with which an int32 sum
        could overflow.

    References
    ----------
    ONNX QLinearMatMul-21; TensorFlow Lite, `reference_integer_ops::FullyConnected`.

    Examples
    --------
    >>> packed = qk.pack(np.int8([[1, 2], [3, -4]]), qk.QParams(0.5))
    >>> qk.qlinear(np.uint8([[130, 126]]), qk.QParams(0.1, 128, "uint8"), packed, qk.QParams(0.2))
    array([[-1,  3]], dtype=int8)
    """
    if not isinstance(packed, PackedMatrix):
        raise TypeError(f"packed must be a PackedMatrix, got {type(packed).__name__}")
    check_params(params, "params")
    check_params(out_params, "out_params")
    for name, given in (("params", params), ("out_params", out_params)):
        if given.dtype not in (np.int8, np.uint8):
            raise TypeError(f"{name} must have dtype int8 or uint8, got {given.dtype.name}")
    if getattr(q, "dtype", params.dtype) != params.dtype:
        raise TypeError(f"q must have dtype {params.dtype} (as params), got {q.dtype}")
    int_bias, real_bias = _split_bias(bias, packed.shape[1], rounding)
    bounds = None if clamp is None else _clamp_codes(clamp, out_params, rounding)
    mantissa = shift = None
    if rounding in FIXED_POINT:
        if activation not in (None, "relu"):
            raise ValueError(f"activation must be None or 'relu' with rounding {rounding!r}, got {activation!r}")
        exact = np.float64(params.scale) * np.float64(packed.params.scale) / np.float64(out_params.scale)
        _, mantissa, shift = multiplier_arrays(np.atleast_1d(exact), rounding)
    return _core.qlinear(q, params, packed, out_params, rounding, activation, bounds, mantissa, shift, int_bias, real_bias, bias, out)


def _clamp_codes(clamp, params, rounding):
    """The codes of real bounds: rounding is monotonic, so that they clamp codes as the bounds clamp values."""
    lo, hi = _core.clamp_bounds(clamp)
    return quantize(np.float32([lo, hi]), params, rounding="half_even" if rounding == "half_even" else "half_away")


def _split_bias(bias, n, rounding):
    """(int bias, float bias): one of them, or neither."""
    if bias is None:
        return None, None
    bias = np.asarray(bias)
    if bias.shape != (n,):
        raise ValueError(f"bias must have shape {(n,)}, got {bias.shape}")
    if bias.dtype.kind in "iu":
        return checked_int_bias(bias, n), None
    if bias.dtype.newbyteorder("=") not in _core.FLOATS:
        raise TypeError(f"bias must be int32 or a float array, got {bias.dtype}")
    if rounding in FIXED_POINT:
        raise TypeError(f"bias must be int32 with rounding {rounding!r}, got {bias.dtype}")
    return None, np.ascontiguousarray(bias, np.float32)
