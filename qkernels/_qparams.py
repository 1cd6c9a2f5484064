"""Hold quantization parameters: `QParams`. Formulas: docs/numerics.md, section 1. _choose.py finds them from data."""

import ml_dtypes
import numpy as np

from ._bind import elementwise
from ._bind.arrays import FLOATS, cuts, holds_as_half, named_dtype
from ._checks import (
    SMALLEST_SCALE,
    array_named,
    arrays_named,
    as_array,
    boolean,
    checked_blocks,
    number_named,
    optional_int,
    real,
    real_array,
    shown,
)
from ._mode import default_mode
from ._value import Value, restored

# Codes that are small floats have no zero point and a largest value instead of a range of integers.
SMALL_FLOATS = "float8_e4m3fn", "float8_e5m2", "float6_e2m3fn", "float6_e3m2fn", "float4_e2m1fn"
FLOAT_CODES = tuple(np.dtype(getattr(ml_dtypes, name)) for name in SMALL_FLOATS)
SUB_BYTE_CODES = tuple(map(np.dtype, (ml_dtypes.int4, ml_dtypes.uint4, ml_dtypes.int2, ml_dtypes.uint2)))
INT_CODES = (*map(np.dtype, (np.int8, np.uint8, np.int16, np.uint16)), *SUB_BYTE_CODES)
_RANGES = {t: (-float(ml_dtypes.finfo(t).max), float(ml_dtypes.finfo(t).max)) for t in FLOAT_CODES}
_RANGES |= {t: (int(ml_dtypes.iinfo(t).min), int(ml_dtypes.iinfo(t).max)) for t in INT_CODES}
_BY_NAME = {t.name: t for t in _RANGES}
AXES = "axis", "block_size"
FOUR_BITS = SUB_BYTE_CODES[:2]
MIDDLES = dict(zip(FOUR_BITS, (0, 8), strict=True))  # zero points where scales are integers


class QParams(elementwise.Params, Value):
    """Hold the parameters of the affine map ``real = (code - zero_point) * scale``: frozen, used many times.

    Parameters
    ----------
    scale : float or array of floats
        Kept as float32; positive, finite and not subnormal. A scalar, or one value of shape (1,), is per tensor. With
        `axis`, shape (n,): one entry per index of that axis of the data. With `axis` and `block_size`, the shape of the
        data with `axis` shortened to ``ceil(n / block_size)`` (ONNX blocked layout).
    zero_point : int or array of ints of the shape of `scale`, optional
        Codes that stand for 0.0; a scalar, or one of shape (1,), stands for all. None is 0 everywhere: symmetric. For
        codes that are floats it is 0, and may have their dtype.
    dtype : str or dtype
        ``int8 uint8 int16 uint16 int4 uint4 int2 uint2 float8_e4m3fn float8_e5m2 float6_e2m3fn float6_e3m2fn
        float4_e2m1fn``; those that NumPy lacks are dtypes of `ml_dtypes`.
    axis, block_size : int, optional
    narrow_range : bool
        Leave the lowest code out, as in [-127, 127].
    block_scale, block_shift : arrays of ints of shape (blocks, n), optional
        Integer scales, 1 to 16, and shifts, -8 to 7 (None: 0), of the blocks of a matrix (k, n) of int4 or uint4 codes,
        with ``axis=0`` and a `block_size` that is a multiple of 4; `scale` has shape (n,) then. A code stands for
        ``scale * (block_scale * (code - zero_point) + 3 * block_shift)``, the zero point being 0 of int4 and 8 of
        uint4. The factor of the scale must be an int8, so that products are those of int8 with one scale a column.

    Attributes
    ----------
    scale : float32 scalar or read-only array
    block_scale, block_shift : uint8 and int8 read-only arrays, or None
    zero_point : int32 scalar or read-only array of the same shape
    dtype : numpy.dtype
    axis, block_size : int or None
    qmin, qmax : int
        Range of the codes (floats for codes that are floats).

    Raises
    ------
    TypeError, ValueError
        For what is not as above; the message names the argument and its value.

    References
    ----------
    ONNX QuantizeLinear-25; Jacob et al., *Quantization and Training of Neural Networks for Efficient
    Integer-Arithmetic-Only Inference*, 2018, equation 1.

    Examples
    --------
    >>> qk.QParams(0.1, 3, "uint8")
    QParams(scale=0.1, zero_point=3, dtype='uint8')
    >>> qk.QParams([0.5, 0.25], axis=1).zero_point
    array([0, 0], dtype=int32)
    """

    __slots__ = ()

    @staticmethod
    @default_mode
    def __new__(
        cls,
        scale,
        zero_point=None,
        dtype="int8",
        *,
        axis=None,
        block_size=None,
        narrow_range=False,
        block_scale=None,
        block_shift=None,
    ):
        dtype = code_dtype(dtype)
        axis, block_size = checked_axes(axis, block_size)
        if block_scale is not None or block_shift is not None:
            return cls._of_integer_scales(
                scale, zero_point, dtype, axis, block_size, narrow_range, block_scale, block_shift
            )
        scale = _checked_scale(scale, axis, block_size)
        qmin, qmax = code_range(dtype, boolean(narrow_range, "narrow_range"))
        zero_point = _checked_zero_point(zero_point, scale.shape, dtype, qmin, qmax)
        return cls._chosen(scale, zero_point, dtype, (qmin, qmax), axis, block_size)

    @classmethod
    def _chosen(cls, scale, zero_point, dtype, code_range, axis, block_size):
        """Make parameters from arrays that hold what they must."""
        return super().__new__(cls, scale, zero_point, dtype, *code_range, axis, block_size)

    @classmethod
    def _of_integer_scales(cls, scale, zero_point, dtype, axis, block_size, narrow_range, block_scale, block_shift):
        if dtype not in FOUR_BITS or axis not in (0, -2) or block_size is None or block_size % 4:
            raise ValueError(
                "block_scale needs dtype int4 or uint4, axis=0 and a block_size that is a multiple of 4, got dtype "
                f"{dtype.name}, axis={axis}, block_size={block_size}"
            )
        scale = _checked_scale(scale, 1, None)
        codes = code_range(dtype, boolean(narrow_range, "narrow_range"))
        block_scale = _checked_small(block_scale, "block_scale", 1, 16, (None, len(scale)))
        if block_shift is None:
            block_shift = np.zeros(block_scale.shape, np.int8)
        block_shift = _checked_small(block_shift, "block_shift", -8, 7, block_scale.shape)
        middle = MIDDLES[dtype]
        zero = middle if zero_point is None else _checked_zero_point(zero_point, scale.shape, dtype, *codes)
        if np.any(zero != middle):
            raise ValueError(f"zero_point must be None or {middle} where block_scale is given, got {shown(zero_point)}")
        return cls._folded(scale, dtype, codes, block_size, block_scale, block_shift)

    @classmethod
    def _folded(cls, scale, dtype, codes, block_size, block_scale, block_shift):
        """Make parameters with integer scales of arrays that have their types and shapes."""
        zero_point = np.full(scale.shape, MIDDLES[dtype], np.int32)
        made = super().__new__(cls, scale, zero_point, dtype, *codes, 0, block_size, block_scale, block_shift)
        if not elementwise.folds(made):
            raise ValueError("block_scale * code + 3 * block_shift must be within [-128, 127] for each code")
        return made

    @default_mode
    def __repr__(self):
        parts = [f"scale={_brief(self.scale)}"]
        if np.any(self.zero_point) and self.block_scale is None:
            parts.append(f"zero_point={_brief(self.zero_point)}")
        parts.append(f"dtype={self.dtype.name!r}")
        parts += [f"{name}={getattr(self, name)}" for name in ("axis", "block_size") if getattr(self, name) is not None]
        if self._narrow_range:
            parts.append("narrow_range=True")
        for name in ("block_scale", "block_shift"):
            if getattr(self, name) is not None:
                parts.append(f"{name}={_brief(getattr(self, name))}")
        return f"QParams({', '.join(parts)})"

    def __reduce__(self):
        if self.block_scale is not None:
            return restored, (QParams, self.to_arrays())
        values = smallest(self.scale, self.zero_point)
        return _rebuild, (*values, self.dtype.name, self.axis, self.block_size, self._narrow_range)

    @default_mode
    def to_arrays(self):
        """Return plain arrays that hold all of it, for safetensors, npz and the like.

        Returns
        -------
        dict of str to array
            ``scale`` and ``zero_point`` (their shape; () if all zero points are equal), ``qmin`` () and ``qmax`` (), of
            which no two dtypes have the same, and, if it has them, ``axis`` () and ``block_size`` (). Scales are
            float16 if that holds them all exactly. Integer scales add ``integer_scales``, of their shape: bytes with
            ``block_scale - 1`` in their low halves, and ``block_shift`` in the others.
        """
        scale, zero_point = (np.asarray(a) for a in smallest(self.scale, self.zero_point))
        arrays = {"scale": scale, "zero_point": zero_point, "qmin": np.array(self.qmin), "qmax": np.array(self.qmax)}
        if self.block_scale is not None:
            arrays["integer_scales"] = dense_blocks(self)
        return arrays | axes_of(self)

    @classmethod
    @default_mode
    def from_arrays(cls, arrays):
        """Return the parameters whose `to_arrays` gave `arrays` (a mapping of str to array).

        Raises
        ------
        TypeError, ValueError
            If an array is missing, or is not as `to_arrays` makes it.
        """
        arrays = arrays_named(arrays, ("scale", "zero_point", "qmin", "qmax"), (*AXES, "integer_scales"), only=True)
        codes = tuple(real(array_named(arrays, name, np.int64, np.float64), name) for name in ("qmin", "qmax"))
        found = [(t, n) for t, (lo, hi) in _RANGES.items() for n in (False, True) if codes == (lo + n, hi)]
        if not found or (found[0][1] and found[0][0] in FLOAT_CODES):
            raise ValueError(f"qmin and qmax must be those of a dtype of codes, got {codes}")
        scale = array_named(arrays, "scale", *FLOATS)
        zero_point = spread(array_named(arrays, "zero_point"), scale.shape)
        return cls(
            scale, zero_point, found[0][0], narrow_range=found[0][1], **axes_named(arrays), **blocks_named(arrays)
        )

    @property
    def _narrow_range(self):
        return self.qmin != code_range(self.dtype, False)[0]

    def _key(self):
        values = np.shape(self.scale), self.scale.tobytes(), self.zero_point.tobytes()
        blocks = () if self.block_scale is None else (self.block_scale.tobytes(), self.block_shift.tobytes())
        return *values, self.dtype.name, self.axis, self.block_size, self.qmin, *blocks


def _rebuild(scale, zero_point, dtype, axis, block_size, narrow_range):
    zero_point = spread(zero_point, np.shape(scale))
    return QParams(scale, zero_point, dtype, axis=axis, block_size=block_size, narrow_range=narrow_range)


@default_mode
def smallest(scale, zero_point=None):
    """Return the same values in fewer bytes: float16 if exact, integers of the smallest type, one if all are equal."""
    scale = np.float16(scale) if holds_as_half(scale) else scale
    if zero_point is None:
        return scale
    zero_point = np.asarray(zero_point)
    lo, hi = (zero_point.min(), zero_point.max()) if zero_point.size else (0, 0)
    dtype = np.result_type(np.min_scalar_type(lo), np.min_scalar_type(hi))
    return scale, dtype.type(lo) if lo == hi else zero_point.astype(dtype)


def spread(zero_point, shape):
    """Undo what `smallest` does to zero points: one stands for all."""
    return np.full(shape, zero_point) if np.ndim(zero_point) == 0 else zero_point


def axes_of(value):
    """Return axis and block_size, as far as parameters or a codebook have them, as arrays by name."""
    given = {name: getattr(value, name) for name in AXES}
    return {name: np.array(number) for name, number in given.items() if number is not None}


def axes_named(arrays):
    """Return the axis and the block_size that are among arrays by name, as keyword arguments."""
    return {name: number_named(arrays, name) for name in AXES if name in arrays}


def dense_blocks(params):
    """Return integer scales, and their shifts, in a byte each."""
    return params.block_scale - np.uint8(1) | params.block_shift.view(np.uint8) << np.uint8(4)


def blocks_named(arrays):
    """Return those of arrays by name, if they are among them, as keyword arguments."""
    if "integer_scales" not in arrays:
        return {}
    blocks = array_named(arrays, "integer_scales", np.uint8)
    if blocks.ndim != 2:
        raise ValueError(f"integer_scales must have shape (blocks, n), got {blocks.shape}")
    return {"block_scale": (blocks & 15) + np.uint8(1), "block_shift": blocks.view(np.int8) >> 4}


# ---- dtypes of codes ----


def code_dtype(dtype):
    """Return the dtype of codes that is called `dtype`."""
    found = named_dtype(dtype)
    if found not in _RANGES:
        raise TypeError(f"dtype must be one of {', '.join(_BY_NAME)}, got {shown(dtype)}")
    return found


def code_range(dtype, narrow_range=False):
    """Return (qmin, qmax) of the codes of `dtype`."""
    qmin, qmax = _RANGES[dtype]
    if narrow_range and dtype in FLOAT_CODES:
        raise ValueError(f"narrow_range is for integer codes, got dtype {dtype.name}")
    return (qmin + 1 if narrow_range else qmin), qmax


# ---- checks ----


def checked_axes(axis, block_size):
    """Return axis and block_size, which needs an axis, as integers or None."""
    if optional_int(block_size, "block_size") is not None and axis is None:
        raise ValueError(f"block_size needs an axis, got block_size={block_size} and axis=None")
    return checked_blocks(axis, block_size)


def _checked_scale(scale, axis, block_size):
    given = real_array(scale, "scale", "a float or an array of floats")
    if axis is None and given.shape == (1,):
        given = given.reshape(())  # as ONNX files hold a scalar
    if axis is None and given.ndim:
        raise ValueError(f"scale must be a scalar unless axis is given, got shape {given.shape}")
    if axis is not None and (given.ndim == 0 or (block_size is None and given.ndim != 1)):
        expected = "shape (n,)" if block_size is None else "the shape of the blocks"
        raise ValueError(f"scale must have {expected} when axis is {axis}, got shape {given.shape}")
    kept = np.array(given, np.float32, order="C")
    bad = ~((kept >= SMALLEST_SCALE) & (kept < np.inf))
    if np.count_nonzero(bad):
        raise ValueError(f"scale must be positive, finite and at least 2**-126 in float32, got {given[bad].flat[0]}")
    return kept


def _checked_zero_point(zero_point, shape, dtype, qmin, qmax):
    if zero_point is None:
        return np.zeros(shape, np.int32)
    given = as_array(zero_point, "zero_point")
    if given.dtype.kind not in "iu" and given.dtype not in INT_CODES and not (given.dtype == dtype in FLOAT_CODES):
        raise TypeError(f"zero_point must be an integer or an array of integers, got {shown(zero_point)}")
    if given.shape not in (shape, (), (1,)):
        raise ValueError(f"zero_point must be a scalar or have the shape of scale {shape}, got {given.shape}")
    if given.dtype in _RANGES:
        given = given.astype(np.float32 if given.dtype in FLOAT_CODES else np.int32)
    if dtype in FLOAT_CODES:
        qmin = qmax = 0
    bad = ~((given >= qmin) & (given <= qmax))
    if np.count_nonzero(bad):
        raise ValueError(f"zero_point must be within [{qmin}, {qmax}] for {dtype.name}, got {given[bad].flat[0]}")
    return np.broadcast_to(given if given.shape == shape else given.reshape(()), shape).astype(np.int32, order="C")


def _checked_small(values, name, least, most, shape):
    """Return integers of blocks (blocks, n) as int8, or uint8 if none is negative."""
    given = as_array(values, name)
    if given.dtype.kind not in "iu" and given.dtype not in INT_CODES:
        raise TypeError(f"{name} must be an array of integers, got {shown(values)}")
    if given.ndim != 2 or shape[0] not in (None, len(given)) or (shape[0] is not None and given.shape != shape):
        expected = "(blocks, n)" if shape[0] is None else shape
        raise ValueError(f"{name} must have shape {expected}, got {given.shape}")
    if given.shape[1] != shape[1]:
        raise ValueError(
            f"scale must have shape {given.shape[1:]} to match blocks {given.shape} of {name}, got {shape[1:]}"
        )
    kept = np.empty(given.shape, np.int8 if least < 0 else np.uint8)
    for part in cuts(given.shape):
        some = given[part].astype(np.int32) if given.dtype in SUB_BYTE_CODES else given[part]
        bad = ~((some >= least) & (some <= most))
        if np.count_nonzero(bad):
            raise ValueError(f"{name} must be within [{least}, {most}], got {some[bad].flat[0]}")
        kept[part] = some
    return kept


def _brief(value):
    return str(value) if np.ndim(value) == 0 else f"<{value.dtype} array of shape {value.shape}>"
