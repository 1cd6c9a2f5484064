"""Quantization parameters: `QParams`, and how to choose them from data. Formulas: docs/numerics.md, sections 1 and 2."""

import ml_dtypes
import numpy as np

from . import _core
from ._checks import MAX_NDIM, PART, as_array, boolean, cuts, doubles, float_array, optional_int, real_array, shown, word
from .config import get_num_threads
from ._mode import default_mode

# Codes that are small floats have no zero point and a largest value instead of a range of integers.
FLOAT_CODES = tuple(map(np.dtype, (ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2, ml_dtypes.float4_e2m1fn)))
INT_CODES = tuple(
    map(
        np.dtype,
        (np.int8, np.uint8, np.int16, np.uint16, ml_dtypes.int4, ml_dtypes.uint4, ml_dtypes.int2, ml_dtypes.uint2),
    )
)
_RANGES = {t: (-float(ml_dtypes.finfo(t).max), float(ml_dtypes.finfo(t).max)) for t in FLOAT_CODES}
_RANGES |= {t: (int(ml_dtypes.iinfo(t).min), int(ml_dtypes.iinfo(t).max)) for t in INT_CODES}
_BY_NAME = {t.name: t for t in _RANGES}
METHODS = {"minmax": set(), "mse": {"importance"}}  # of choose_qparams, with the options that each takes
SMALLEST_SCALE = float(np.finfo(np.float32).tiny)


class QParams(_core.Params):
    """Parameters of the affine map ``real = (code - zero_point) * scale``: validated once, frozen, used many times.

    Parameters
    ----------
    scale : float or array of floats
        Kept as float32; positive, finite and not subnormal. A scalar, or one value of shape (1,), is per tensor. With `axis`, shape (n,): one entry per
        index of that axis of the data. With `axis` and `block_size`, the shape of the data with `axis`
        shortened to ``ceil(n / block_size)`` (ONNX blocked layout).
    zero_point : int or array of ints of the shape of `scale`, optional
        Codes that stand for 0.0; a scalar, or one of shape (1,), stands for all. None is 0 everywhere: symmetric. For codes that
        are floats it is 0, and may have their dtype.
    dtype : str or dtype
        ``int8 uint8 int16 uint16 int4 uint4 int2 uint2 float8_e4m3fn float8_e5m2 float4_e2m1fn``; those that NumPy lacks
        are dtypes of `ml_dtypes`.
    axis, block_size : int, optional
    narrow_range : bool
        Leave the lowest code out, as in [-127, 127].

    Attributes
    ----------
    scale : float32 scalar or read-only array
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
    def __new__(cls, scale, zero_point=None, dtype="int8", *, axis=None, block_size=None, narrow_range=False):
        dtype = code_dtype(dtype)
        axis, block_size = _checked_blocks(axis, block_size)
        scale = _checked_scale(scale, axis, block_size)
        qmin, qmax = code_range(dtype, boolean(narrow_range, "narrow_range"))
        zero_point = _checked_zero_point(zero_point, scale.shape, dtype, qmin, qmax)
        return cls._chosen(scale, zero_point, dtype, (qmin, qmax), axis, block_size)

    @classmethod
    def _chosen(cls, scale, zero_point, dtype, code_range, axis, block_size):
        """From arrays that hold what they must."""
        return super().__new__(cls, scale, zero_point, dtype, *code_range, axis, block_size)

    @default_mode
    def __repr__(self):
        parts = [f"scale={_brief(self.scale)}"]
        if np.any(self.zero_point):
            parts.append(f"zero_point={_brief(self.zero_point)}")
        parts.append(f"dtype={self.dtype.name!r}")
        parts += [
            f"{name}={value}"
            for name, value in (("axis", self.axis), ("block_size", self.block_size))
            if value is not None
        ]
        if self._narrow_range:
            parts.append("narrow_range=True")
        return f"QParams({', '.join(parts)})"

    def __eq__(self, other):
        if not isinstance(other, QParams):
            return NotImplemented
        return self._key() == other._key()

    def __hash__(self):
        return hash(self._key())

    def __reduce__(self):
        return _rebuild, (
            *smallest(self.scale, self.zero_point),
            self.dtype.name,
            self.axis,
            self.block_size,
            self._narrow_range,
        )

    def __copy__(self):
        return self

    def __deepcopy__(self, memo):
        return self

    @property
    def _narrow_range(self):
        return self.qmin != code_range(self.dtype, False)[0]

    def _key(self):
        return (
            np.shape(self.scale),
            self.scale.tobytes(),
            self.zero_point.tobytes(),
            self.dtype.name,
            self.axis,
            self.block_size,
            self.qmin,
        )


def _rebuild(scale, zero_point, dtype, axis, block_size, narrow_range):
    return QParams(
        scale, spread(zero_point, np.shape(scale)), dtype, axis=axis, block_size=block_size, narrow_range=narrow_range
    )


@default_mode
def smallest(scale, zero_point=None):
    """The same values in fewer bytes: float16 scales if exact, integers of the smallest type, one where all are equal."""
    scale = np.float16(scale) if _core.holds_as_half(scale) else scale
    if zero_point is None:
        return scale
    zero_point = np.asarray(zero_point)
    lo, hi = (zero_point.min(), zero_point.max()) if zero_point.size else (0, 0)
    dtype = np.result_type(np.min_scalar_type(lo), np.min_scalar_type(hi))
    return scale, dtype.type(lo) if lo == hi else zero_point.astype(dtype)


def spread(zero_point, shape):
    """Of `smallest`: one zero point stands for all."""
    return np.full(shape, zero_point) if np.ndim(zero_point) == 0 else zero_point


@default_mode
def choose_qparams(
    x, dtype="int8", *, axis=None, block_size=None, symmetric=None, narrow_range=None, method="minmax", **options
):
    """Parameters that represent the values of x well.

    Parameters
    ----------
    x : array of float32, float64, float16 or bfloat16
        Finite. Empty lines give a scale of 1.
    dtype : str or dtype
        As for `QParams`.
    axis, block_size : int, optional
        One scale per index of `axis`, or per block of `block_size` along it; without them one for all of x.
    symmetric : bool, optional
        Zero point in the middle of the codes. None: True for signed codes, False for unsigned ones.
    narrow_range : bool, optional
        Leave the lowest code out. None: as `symmetric`, so symmetric int8 is [-127, 127].
    method : {"minmax", "mse"}
        `minmax`: the whole range of x and 0, so that zero is exact and nothing saturates. `mse`: the scale, and unless symmetric
        the zero point, that minimise ``sum((x - fake_quantize(x))**2)`` for each tensor, line or block: the optimum, not the best of
        a grid. For integer codes; the time grows with their number.
    importance : array that broadcasts to the shape of x, optional
        Of method `mse`: weights of the squares, finite and not negative, of any magnitude: only ratios count.

    Returns
    -------
    QParams
        Not subnormal: values that would need a smaller scale than 2**-126 share that one.

    Raises
    ------
    ValueError
        Where x holds NaN or infinity (how many, and where the first is), or reaches beyond the range of float32; likewise importance.
    TypeError
        Where x is not a float array.

    References
    ----------
    ONNX DynamicQuantizeLinear-11 for the asymmetric formula; docs/numerics.md, sections 2 and 18.

    Examples
    --------
    >>> qk.choose_qparams(np.float32([-1, 0, 3]), "uint8")
    QParams(scale=0.015686275, zero_point=64, dtype='uint8')
    >>> qk.choose_qparams(np.float32([[-1, 0], [2.54, 1]]), axis=0).scale
    array([0.00787402, 0.02      ], dtype=float32)
    >>> x = np.float32([0.1, 0.9, 1.1, 2, 2.1, 4])
    >>> [qk.choose_qparams(x, "int4", method=method).scale.round(3) for method in ("minmax", "mse")]
    [np.float32(0.571), np.float32(1.008)]
    """
    method = word(method)
    if not isinstance(method, str) or method not in METHODS:
        raise ValueError(f"method must be {' or '.join(map(repr, METHODS))}, got {shown(method)}")
    if unknown := options.keys() - METHODS[method]:
        raise TypeError(f"method {method!r} takes no option {min(unknown)!r}")
    dtype, x = code_dtype(dtype), float_array(x)
    axis, block_size = _checked_blocks(axis, block_size)
    if axis is not None and not -x.ndim <= axis < x.ndim:
        raise ValueError(f"axis {axis} is out of range for x with shape {x.shape}")
    symmetric, narrow_range = choose_scheme(dtype, symmetric, narrow_range)
    if method == "mse" and dtype in FLOAT_CODES:
        raise ValueError(f"method 'mse' is for integer codes, got dtype {dtype.name}")
    lo, hi = _bounds(x, axis, block_size)
    if dtype in FLOAT_CODES:
        scale, zero_point = float_code_scale(lo, hi, dtype), None
    else:
        scale, zero_point = _core.choose(lo, hi, *code_range(dtype, narrow_range), symmetric)
    if method == "mse" and x.size:
        _refine(
            x,
            options.get("importance"),
            code_range(dtype, narrow_range),
            axis,
            block_size,
            symmetric,
            scale,
            zero_point,
        )
    return QParams(scale, zero_point, dtype, axis=axis, block_size=block_size, narrow_range=narrow_range)


# ---- what the other modules share ----


def code_dtype(dtype):
    """The dtype of codes that is called `dtype`."""
    found = _core.named_dtype(dtype)
    if found not in _RANGES:
        raise TypeError(f"dtype must be one of {', '.join(_BY_NAME)}, got {shown(dtype)}")
    return found


def code_range(dtype, narrow_range=False):
    """(qmin, qmax) of the codes of `dtype`."""
    qmin, qmax = _RANGES[dtype]
    if narrow_range and dtype in FLOAT_CODES:
        raise ValueError(f"narrow_range is for integer codes, got dtype {dtype.name}")
    return (qmin + 1 if narrow_range else qmin), qmax


def choose_scheme(dtype, symmetric, narrow_range):
    """(symmetric, narrow_range) with None decided by the dtype."""
    if symmetric is None:
        symmetric = code_range(dtype)[0] < 0
    symmetric = boolean(symmetric, "symmetric")
    if dtype in FLOAT_CODES:
        if not symmetric:
            raise ValueError(f"codes of dtype {dtype.name} are symmetric, got symmetric=False")
        return True, narrow_range is not None and boolean(narrow_range, "narrow_range")
    return symmetric, symmetric if narrow_range is None else boolean(narrow_range, "narrow_range")


def float_code_scale(lo, hi, dtype):
    """absmax / largest code; 1 where all values are 0."""
    largest = np.maximum(-lo, hi)
    scale = np.maximum(largest / np.float32(code_range(dtype)[1]), np.float32(SMALLEST_SCALE))
    return np.where(largest > 0, scale, np.float32(1))


def _bounds(x, axis, block_size):
    """Smallest and largest value, and 0, of each tensor, line or block, as float32 that does not cut off."""
    if axis is None and x.dtype == np.float32 and x.flags.c_contiguous and x.flags.aligned and x.dtype.isnative:
        bounds = _core.minmax(x)
        if bounds is None:
            _core.raise_not_finite(x)
        return np.float32(bounds[0]), np.float32(bounds[1])
    lo, hi = _range(x, None if axis is None else axis % x.ndim, block_size)
    if not (np.all(np.isfinite(lo)) and np.all(np.isfinite(hi))):
        _core.raise_not_finite(x)
    bounds = _outward(lo, -np.inf), _outward(hi, np.inf)
    if not np.all(np.isfinite(bounds)):
        raise ValueError(f"x spans [{np.min(lo)}, {np.max(hi)}], beyond the range of float32")
    return bounds


def _range(x, axis, block_size):
    """[smallest, largest] value, and 0, of each tensor, line or block: as float32, of float64 as such."""
    shape = () if axis is None else (x.shape[axis],)
    if block_size is not None:
        shape = (*x.shape[:axis], -(-x.shape[axis] // block_size), *x.shape[axis + 1 :])
    found = np.zeros((2, *shape), np.float64 if x.dtype.itemsize == 8 else np.float32)
    parts = _parts(x.shape, axis) if block_size is None else _parts_of_blocks(x.shape, found.shape[1:], axis, block_size)
    for of_x, of_found in parts if x.size else ():
        values = x[of_x].astype(found.dtype, copy=False)
        for i, extreme in enumerate((np.minimum, np.maximum)):
            at = (i, *of_found)
            found[at] = extreme(found[at], _reduce(extreme, values, axis, block_size))
    return found


def _reduce(ufunc, x, axis, block_size):
    if axis is None:
        return ufunc.reduce(x, axis=None)
    if block_size is None:
        return ufunc.reduce(x, axis=tuple(i for i in range(x.ndim) if i != axis))
    return ufunc.reduceat(x, range(0, x.shape[axis], block_size), axis=axis)


def _parts(shape, axis):
    """Indices of parts of an array, between which Python sees signals, and of the lines along `axis` that each is of."""
    for part in cuts(shape, PART):
        cut_lines = axis is not None and part is not ... and len(part) == axis + 1
        yield part, part[axis:] if cut_lines else ()


def _parts_of_blocks(shape, blocks, axis, block_size):
    """The same of the blocks."""
    for part in cuts(blocks, max(1, PART // min(block_size, shape[axis]))):
        of_x = part
        if part is not ... and len(part) == axis + 1:
            of_x = (*part[:-1], slice(part[-1].start * block_size, part[-1].stop * block_size))
        yield of_x, () if part is ... else part


def _outward(bound, direction):
    """bound as float32, moved outward where the conversion moved it inward."""
    near = np.float32(bound)
    inward = near > bound if direction < 0 else near < bound
    return np.where(inward, np.nextafter(near, np.float32(direction)), near)


# ---- least squares ----


def _refine(x, importance, code_range, axis, block_size, symmetric, scale, zero_point):
    """Turn scale and zero_point, of minmax, into those of least squares."""
    if importance is not None:
        importance = _checked_importance(importance, x)
    zero_points = (int(zero_point.flat[0]),) * 2 if symmetric else code_range
    rows = [None if a is None else _as_rows(a, axis, block_size) for a in (x, importance)]
    found = [_as_rows(a, axis, block_size) if block_size else a.reshape(-1, 1) for a in (scale, zero_point)]
    kept = [np.ascontiguousarray(a) for a in found]
    _refine_rows(*rows, block_size or rows[0].shape[1], code_range, zero_points, *kept)
    shape = scale.shape if not block_size else np.moveaxis(scale, axis, -1).shape
    for target, a in zip((scale, zero_point), kept):
        target[...] = np.moveaxis(a.reshape(shape), -1, axis) if block_size else a.reshape(shape)


CHUNK = 1 << 22  # values that are float64 at once
LONG = 1 << 14  # lines of 16-bit floats from which values are counted first


def _refine_rows(x, importance, block_size, code_range, zero_points, scale, zero_point):
    """The same for the blocks (rows, blocks) of x (rows, n)."""
    counted = x.dtype.itemsize == 2 and block_size >= x.shape[1] >= LONG
    step = max(get_num_threads(), CHUNK // (2**16 if counted else x.shape[1]))
    for first in range(0, len(x), step):
        rows = slice(first, first + step)
        weights = None if importance is None else importance[rows]
        if counted:
            values, weights = _distinct(x[rows], weights)
        else:
            values = doubles(x[rows])
            weights = None if weights is None else doubles(weights)
        _core.refine(
            values, weights, min(block_size, values.shape[1]), code_range, zero_points, scale[rows], zero_point[rows]
        )


def _distinct(x, weights):
    """The values of lines of 16-bit floats, each once, and the sums of their weights, 0 where a line lacks one: float64 (rows, values)."""
    counts = np.zeros((len(x), 2**16))
    for i, line in enumerate(x):
        exponent = 0 if weights is None else np.frexp(weights[i].max().astype(np.float64))[1]
        for part in cuts(line.shape):
            of_part = None
            if weights is not None:
                with np.errstate(under="ignore"):
                    of_part = np.ldexp(doubles(weights[i][part]), -exponent)  # whose sums are finite
            codes = np.ascontiguousarray(line[part], line.dtype.newbyteorder("=")).view(np.uint16)
            _core.count_codes(codes, of_part, counts[i])
    present = np.flatnonzero(counts.any(axis=0))
    values = present.astype(np.uint16).view(x.dtype.newbyteorder("=")).astype(np.float64)
    return np.ascontiguousarray(np.broadcast_to(values, (len(x), len(values)))), np.ascontiguousarray(
        counts[:, present]
    )


def _as_rows(x, axis, block_size):
    """(rows, n): what shares a scale, or the blocks that stand one after another, in a row."""
    if axis is None:
        return x.reshape(1, -1)
    x = np.moveaxis(x, axis, -1 if block_size else 0)
    return x.reshape(-1, x.shape[-1]) if block_size else x.reshape(len(x), -1)


def _checked_importance(importance, x):
    given = real_array(importance, "importance")
    try:
        broad = np.broadcast_to(given, x.shape)
    except ValueError:
        raise ValueError(f"importance must broadcast to the shape of x {x.shape}, got {given.shape}") from None
    if not np.all(np.isfinite(given)):
        _core.raise_not_finite(given, "importance")
    if np.any(given < 0):
        raise ValueError(f"importance must not be negative, got {given[given < 0].flat[0]}")
    return broad


# ---- checks of QParams ----


def _checked_blocks(axis, block_size):
    axis, block_size = optional_int(axis, "axis"), optional_int(block_size, "block_size")
    if axis is not None and not -MAX_NDIM <= axis < MAX_NDIM:
        raise ValueError(f"axis must be within [{-MAX_NDIM}, {MAX_NDIM - 1}], got {axis}")
    if block_size is not None and axis is None:
        raise ValueError(f"block_size needs an axis, got block_size={block_size} and axis=None")
    if block_size is not None and not 1 <= block_size < 2**63:
        raise ValueError(f"block_size must be at least 1 and fit 64 bits, got {block_size}")
    return axis, block_size


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


def _brief(value):
    return str(value) if np.ndim(value) == 0 else f"<{value.dtype} array of shape {value.shape}>"
