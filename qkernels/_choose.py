"""Choose quantization parameters from data. Formulas: docs/numerics.md, sections 2, 18 and 24."""

import numpy as np

from ._bind import clusters, elementwise, runtime
from ._bind.arrays import PART, cuts, raise_not_finite
from ._bind.runtime import word
from ._checks import (
    FLOAT32,
    SMALLEST_SCALE,
    boolean,
    check_axis,
    check_weights,
    doubles,
    float_array,
    integer,
    is_a,
    raise_beyond_float32,
    real,
    shown,
    spread_weights,
)
from ._histogram import bins_by_part, count, entropy_ranges, new_histogram, percentile_ranges, percentile_within, refine
from ._mode import default_mode
from ._qparams import FLOAT_CODES, FOUR_BITS, MIDDLES, SUB_BYTE_CODES, QParams, checked_axes, code_dtype, code_range

# with the options that each takes
METHODS = {
    "minmax": {"scale_bits"},
    "mse": {"importance", "scale_bits"},
    "percentile": {"percentile"},
    "entropy": set(),
}
METHODS |= {"mx": {"scale_rounding"}, "nvfp4": {"tensor_scale"}}
PERCENTILE = 99.99
# Microscaling: the exponent of the largest power of two among the codes, and the bits of their mantissa.
MX_CODES = {"float8_e4m3fn": (8, 3), "float8_e5m2": (15, 2), "float6_e2m3fn": (2, 3), "float6_e3m2fn": (4, 2)}
MX_CODES |= {"float4_e2m1fn": (2, 1), "int8": (6, 6)}


@default_mode
def choose_qparams(
    x, dtype="int8", *, axis=None, block_size=None, symmetric=None, narrow_range=None, method="minmax", **options
):
    """Choose parameters that represent the values of x well.

    Parameters
    ----------
    x : array of float32, float64, float16 or bfloat16
        Finite. Empty lines give a scale of 1.
    dtype : str or dtype
        As for `QParams`.
    axis, block_size : int, optional
        One scale per index of `axis`, or per block of `block_size` along it; without them one for all of x.
    symmetric : bool, optional
        Zero point in the middle of the codes, or for `mse`, blocks of 2 or 4 bits and their whole range in the better
        of two middles. None: True for signed codes, False for unsigned ones.
    narrow_range : bool, optional
        Leave the lowest code out. None: as `symmetric`, so symmetric int8 is [-127, 127].
    method : {"minmax", "mse", "percentile", "entropy", "mx", "nvfp4"}
        `minmax`: the whole range of x and 0, so that zero is exact and nothing saturates. `mse`: the scale, and unless
        symmetric the zero point, that minimise ``sum((x - fake_quantize(x))**2)`` for each tensor, line or block: the
        optimum, not the best of a grid. For integer codes; the time grows with their number. Symmetric codes of 2 or 4
        bits in blocks have two middles with ``narrow_range=False``, of int4 0 and -1: each block takes the better zero
        point, which is what the sign of a scale does elsewhere (-8 to 7, or -7 to 8 scales). `percentile` and
        `entropy` are those of `qkernels.observers`, which take data in parts, and know no blocks. `mx`: OCP
        microscaling, a power of two for each block of 32 along `axis`, for codes that are floats and int8 (MXFP8,
        MXFP6, MXFP4, MXINT8). `nvfp4`: for each block of 16 along `axis` a float8_e4m3fn number times one of the
        tensor, for float4_e2m1fn. Their `block_size` may be another one.
    importance : array that broadcasts to the shape of x, optional
        Weights of the squares, for method `mse`: finite and not negative, of any magnitude: only ratios count.
    percentile : float, optional
        How much of the values must not saturate, for method `percentile`: above 0, at most 100, 99.99 by default.
    scale_bits : 4, optional
        For methods `minmax` and `mse`, int4 or uint4 codes of a matrix (k, n) in blocks along axis 0, of a multiple of
        4 rows: integer scales, which fold to int8 (`QParams`), of ``4 + 8 / block_size`` bits a weight and one scale a
        column; products are those of int8. Symmetric blocks have no shifts, and codes are -8 to 7 unless
        ``narrow_range=True``; others, as of uint4, are the most accurate that 4 bits are here. `mse`: the best scales
        and shifts of blocks for the column's scale, which is found by descent from 12 starts.
    scale_rounding : {"floor", "even", "rceil"}, optional
        For method `mx`: the scale is the largest power of two of the block over that of the codes, which saturates up
        to a quarter of the range (floor, the standard's own, by default); that of the block rounded to the precision of
        a code; or the least with which nothing saturates.
    tensor_scale : float, optional
        The tensor's number, for method `nvfp4`: float32 of at least 2**-126. None: its largest magnitude over 6 * 448.

    Returns
    -------
    QParams
        Not subnormal: values that would need a smaller scale than 2**-126 share that one.

    Raises
    ------
    ValueError
        If x holds NaN or infinity (how many, and where the first is), or reaches beyond the range of float32; likewise
        importance.
    TypeError
        If x is not a float array.

    References
    ----------
    ONNX DynamicQuantizeLinear-11 for the asymmetric formula; OCP Microscaling Formats (MX) 1.0; docs/numerics.md,
    sections 2 and 18.

    Examples
    --------
    >>> qk.choose_qparams(np.float32([-1, 0, 3]), "uint8")
    QParams(scale=0.015686275, zero_point=64, dtype='uint8')
    >>> qk.choose_qparams(np.float32([[-1, 0], [2.54, 1]]), axis=0).scale
    array([0.00787402, 0.02      ], dtype=float32)
    >>> x = np.float32([0.1, 0.9, 1.1, 2, 2.1, 4])
    >>> [qk.choose_qparams(x, "int4", method=method).scale.round(3) for method in ("minmax", "mse")]
    [np.float32(0.571), np.float32(1.008)]
    >>> x = np.float32([[0.5, -1, 7, 3]])
    >>> params = qk.choose_qparams(x, "float4_e2m1fn", axis=1, method="mx")
    >>> params.scale, qk.quantize(x, params)
    (array([[1.]], dtype=float32), array([[0.5, -1, 6, 3]], dtype='float4_e2m1fn'))
    """
    method = word(method)
    if not is_a(method, str) or method not in METHODS:
        raise ValueError(f"method must be {' or '.join(map(repr, METHODS))}, got {shown(method)}")
    if unknown := options.keys() - METHODS[method]:
        raise TypeError(f"method {method!r} takes no option {min(unknown)!r}")
    dtype, x = code_dtype(dtype), float_array(x)
    axis, block_size = checked_axes(axis, block_size)
    check_axis(axis, x)
    narrow_given = narrow_range
    symmetric, narrow_range = choose_scheme(dtype, symmetric, narrow_range)
    check_codes(method, dtype)
    if method in ("mx", "nvfp4"):
        if axis is None or not symmetric:
            raise ValueError(
                f"method {method!r} needs an axis and symmetric codes, got axis={axis}, symmetric={symmetric}"
            )
        block_size = block_size or (32 if method == "mx" else 16)
        find = _mx_scales if method == "mx" else _nvfp4_scales
        codes = code_range(dtype, narrow_range)
        scale = find(x, dtype, axis % x.ndim, block_size, codes[1], **options)
        return QParams._chosen(scale, np.zeros(scale.shape, np.int32), dtype, codes, axis, block_size)
    if method in ("percentile", "entropy"):
        if block_size is not None:
            raise ValueError(f"block_size is not for method {method!r}, got {block_size}")
        value = percentile_within(options.get("percentile", PERCENTILE))
        counted = new_histogram(x, axis)
        count(counted, x, axis)
        return params_of_counts(counted, method, dtype, (symmetric, narrow_range), axis, value)
    if options.get("scale_bits") is not None:
        scheme = symmetric, narrow_given is not None and narrow_range
        return _integer_scales(x, dtype, (axis, block_size), scheme, method == "mse", **options)
    lo, hi = bounds_of(x, axis, block_size)
    scale, zero_point = params_of_range(lo, hi, dtype, (symmetric, narrow_range))
    if method == "mse" and x.size:
        codes = code_range(dtype, narrow_range)
        zero_points = codes
        if symmetric:
            middle = int(zero_point.flat[0])
            zero_points = middle - (block_size is not None and not narrow_range and dtype in SUB_BYTE_CODES), middle
        _refine(x, options.get("importance"), (axis, block_size), codes, zero_points, scale, zero_point)
    return QParams(scale, zero_point, dtype, axis=axis, block_size=block_size, narrow_range=narrow_range)


def _magnitudes(x, axis, block_size, outward=True):
    """Return the largest magnitude of each block as float32, rounded `outward` or inward; raise unless it is finite."""
    found = elementwise.block_magnitudes(x, axis, block_size, outward)
    if found is None:
        raise_beyond_float32(x)
    return found


def _mx_scales(x, dtype, axis, block_size, largest, scale_rounding="floor"):
    """Return powers of two: the exponents of magnitudes, of those as they round, or of quotients."""
    scale_rounding = word(scale_rounding)
    if not is_a(scale_rounding, str) or scale_rounding not in ("floor", "even", "rceil"):
        raise ValueError(f"scale_rounding must be 'floor', 'even' or 'rceil', got {shown(scale_rounding)}")
    exponent, mantissa = MX_CODES[dtype.name]
    magnitude = _magnitudes(x, axis, block_size, scale_rounding == "rceil")
    if scale_rounding == "rceil":
        elementwise.micro_scales(magnitude, largest, 0, 0, (1 << 23) - 1)
    else:
        elementwise.micro_scales(magnitude, 1, 0, exponent, 1 << 22 - mantissa if scale_rounding == "even" else 0)
    return magnitude


def _nvfp4_scales(x, dtype, axis, block_size, largest, tensor_scale=None):
    """Return float8_e4m3fn numbers times that of the tensor."""
    magnitude = _magnitudes(x, axis, block_size)
    if tensor_scale is None:
        tensor_scale = max(magnitude.max(initial=0) / np.float32(6 * 448), SMALLEST_SCALE) if magnitude.any() else 1
    times = np.float32(real(tensor_scale, "tensor_scale"))
    if not SMALLEST_SCALE <= times < np.inf:
        raise ValueError(f"tensor_scale must be positive, finite and at least 2**-126 in float32, got {tensor_scale}")
    elementwise.micro_scales(magnitude, largest, times, 0, 0)
    return magnitude


def choose_scheme(dtype, symmetric, narrow_range):
    """Return (symmetric, narrow_range), None being decided by the dtype."""
    if symmetric is None:
        symmetric = code_range(dtype)[0] < 0
    symmetric = boolean(symmetric, "symmetric")
    if dtype in FLOAT_CODES:
        if not symmetric:
            raise ValueError(f"codes of dtype {dtype.name} are symmetric, got symmetric=False")
        return True, narrow_range is not None and boolean(narrow_range, "narrow_range")
    return symmetric, symmetric if narrow_range is None else boolean(narrow_range, "narrow_range")


def check_codes(method, dtype):
    """Raise unless the method serves these codes."""
    if method in ("mse", "entropy") and dtype in FLOAT_CODES:
        raise ValueError(f"method {method!r} is for integer codes, got dtype {dtype.name}")
    if method == "mx" and dtype.name not in MX_CODES or method == "nvfp4" and dtype.name != "float4_e2m1fn":
        served = "float4_e2m1fn" if method == "nvfp4" else ", ".join(MX_CODES)
        raise ValueError(f"method {method!r} is for dtype {served}, got {dtype.name}")


def params_of_counts(counted, method, dtype, scheme, axis, percentile=PERCENTILE):
    """Return the parameters of counted values; the scheme is (symmetric, narrow_range) as `choose_scheme` gives it."""
    symmetric, narrow_range = scheme
    codes = code_range(dtype, narrow_range)
    ranges = np.zeros((2, counted.lines), FLOAT32)
    for at, bins in bins_by_part(counted):
        if method == "percentile":
            ranges[:, at] = percentile_ranges(bins, percentile, symmetric)
        elif method == "entropy":
            ranges[:, at] = entropy_ranges(bins, codes[1] - codes[0] + 1, symmetric)
        else:
            ranges[:, at] = bins.lo, bins.hi
    scale, zero_point = params_of_range(*ranges, dtype, scheme)
    if method == "mse":
        zero_points = (int(zero_point.flat[0]),) * 2 if symmetric else codes
        for at, bins in bins_by_part(counted):
            refine(bins, codes, zero_points, scale[at], zero_point[at])
    if axis is None:
        scale, zero_point = (None if a is None else a[0] for a in (scale, zero_point))
    return QParams(scale, zero_point, dtype, axis=axis, narrow_range=narrow_range)


def params_of_range(lo, hi, dtype, scheme):
    """Return scale and zero point, None for codes that are floats, of ranges, float32, to which 0 is added."""
    symmetric, narrow_range = scheme
    lo, hi = np.minimum(lo, FLOAT32.type(0)), np.maximum(hi, FLOAT32.type(0))
    if dtype in FLOAT_CODES:
        return float_code_scale(lo, hi, dtype), None
    return elementwise.choose(lo, hi, *code_range(dtype, narrow_range), symmetric)


def float_code_scale(lo, hi, dtype):
    """Divide the largest magnitude by the largest code; the scale is 1 if all values are 0."""
    largest = np.maximum(-lo, hi)
    scale = np.maximum(largest / np.float32(code_range(dtype)[1]), SMALLEST_SCALE)
    return np.where(largest > 0, scale, np.float32(1))


def bounds_of(x, axis, block_size):
    """Return the smallest and largest value, and 0, of each tensor, line or block, as float32 that does not cut off."""
    if axis is None and x.dtype == FLOAT32 and x.flags.c_contiguous and x.flags.aligned and x.dtype.isnative:
        bounds = elementwise.minmax(x)
        if bounds is None:
            raise_not_finite(x)
        return np.float32(bounds[0]), np.float32(bounds[1])
    lo, hi = _range(x, None if axis is None else axis % x.ndim, block_size)
    if not (np.all(np.isfinite(lo)) and np.all(np.isfinite(hi))):
        raise_not_finite(x)
    bounds = outward(lo, -np.inf), outward(hi, np.inf)
    if not np.all(np.isfinite(bounds)):
        raise ValueError(f"x spans [{np.min(lo)}, {np.max(hi)}], beyond the range of float32")
    return bounds


def _range(x, axis, block_size):
    """Return [smallest, largest] value, and 0, of each tensor, line or block, as float64 if x is, else as float32."""
    shape = () if axis is None else (x.shape[axis],)
    if block_size is not None:
        shape = (*x.shape[:axis], -(-x.shape[axis] // block_size), *x.shape[axis + 1 :])
    found = np.zeros((2, *shape), np.float64 if x.dtype.itemsize == 8 else np.float32)
    parts = _parts(x.shape, axis) if block_size is None else _parts_of_blocks(x.shape, shape, axis, block_size)
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
    """Yield indices of parts of an array, and of the lines along `axis` that each is of."""
    for part in cuts(shape, PART):
        cut_lines = axis is not None and part is not ... and len(part) == axis + 1
        yield part, part[axis:] if cut_lines else ()


def _parts_of_blocks(shape, blocks, axis, block_size):
    """Yield the same of the blocks."""
    for part in cuts(blocks, max(1, PART // min(block_size, shape[axis]))):
        of_x = part
        if part is not ... and len(part) == axis + 1:
            of_x = (*part[:-1], slice(part[-1].start * block_size, part[-1].stop * block_size))
        yield of_x, () if part is ... else part


def outward(bound, direction):
    """Return bound as float32, moved outward if the conversion moved it inward."""
    near = np.float32(bound)
    inward = near > bound if direction < 0 else near < bound
    return np.where(inward, np.nextafter(near, np.float32(direction)), near)


# ---- integer scales ----


def _integer_scales(x, dtype, axes, scheme, least_squares, scale_bits, importance=None):
    """Return parameters with integer scales of the blocks of a matrix; with shifts unless symmetric."""
    axis, block_size = axes
    if integer(scale_bits, "scale_bits") != 4:
        raise ValueError(f"scale_bits must be 4, got {scale_bits}")
    if dtype not in FOUR_BITS or x.ndim != 2 or axis not in (0, -2) or block_size is None or block_size % 4:
        raise ValueError(
            "scale_bits needs dtype int4 or uint4, a matrix, axis=0 and a block_size that is a multiple of 4, got "
            f"dtype {dtype.name}, x with shape {x.shape}, axis={axis}, block_size={block_size}"
        )
    symmetric, narrow_range = scheme
    codes, (k, n) = code_range(dtype, narrow_range), x.shape
    importance = _checked_importance(importance, x)
    shape = n, -(-k // block_size)
    scale, block_scale, block_shift = np.ones(n, np.float32), np.ones(shape, np.uint8), np.zeros(shape, np.int8)
    bounds_of(x, 1, None)  # which raises unless all are finite and within float32
    step = max(runtime.get_num_threads(), CHUNK // max(k, 1))
    for first in range(0, n if x.size else 0, step):
        columns = slice(first, first + step)
        values = doubles(x[:, columns].T)
        weights = None if importance is None else doubles(importance[:, columns].T)
        found = scale[columns], block_scale[columns], block_shift[columns]
        elementwise.search_integer_scales(
            values, weights, block_size, codes, MIDDLES[dtype], not symmetric, least_squares, *found
        )
    return QParams._folded(
        scale, dtype, codes, block_size, np.ascontiguousarray(block_scale.T), np.ascontiguousarray(block_shift.T)
    )


# ---- least squares ----


def _checked_importance(importance, x):
    if importance is None:
        return None
    importance = spread_weights(importance, x.shape, "importance", "an array of floats")
    check_weights(importance, "importance", zeros=True)
    return importance


def _refine(x, importance, axes, codes, zero_points, scale, zero_point):
    """Turn scale and zero_point, of minmax, into those of least squares; codes and zero_points are ranges."""
    importance = _checked_importance(importance, x)
    axis, block_size = axes
    rows = [None if a is None else _as_rows(a, axis, block_size) for a in (x, importance)]
    found = [_as_rows(a, axis, block_size) if block_size else a.reshape(-1, 1) for a in (scale, zero_point)]
    kept = [np.ascontiguousarray(a) for a in found]
    _refine_rows(*rows, block_size or rows[0].shape[1], codes, zero_points, *kept)
    shape = scale.shape if not block_size else np.moveaxis(scale, axis, -1).shape
    for target, a in zip((scale, zero_point), kept, strict=True):
        target[...] = np.moveaxis(a.reshape(shape), -1, axis) if block_size else a.reshape(shape)


CHUNK = 1 << 22  # values that are float64 at once
LONG = 1 << 14  # lines of 16-bit floats from which values are counted first


def _refine_rows(x, importance, block_size, codes, zero_points, scale, zero_point):
    """Do the same for the blocks (rows, blocks) of x (rows, n)."""
    counted = x.dtype.itemsize == 2 and block_size >= x.shape[1] >= LONG
    step = max(runtime.get_num_threads(), CHUNK // (2**16 if counted else x.shape[1]))
    for first in range(0, len(x), step):
        rows = slice(first, first + step)
        weights = None if importance is None else importance[rows]
        if counted:
            values, weights = _distinct(x[rows], weights)
        else:
            values = doubles(x[rows])
            weights = None if weights is None else doubles(weights)
        block = min(block_size, values.shape[1])
        elementwise.refine(values, weights, block, codes, zero_points, scale[rows], zero_point[rows])


def _distinct(x, weights):
    """Return the values of lines of 16-bit floats, each once, and the sums of their weights: float64 (rows, values).

    A weight is 0 if the line lacks the value.
    """
    counts = np.zeros((len(x), 2**16))
    for i, line in enumerate(x):
        exponent = 0 if weights is None else np.frexp(weights[i].max().astype(np.float64))[1]
        for part in cuts(line.shape):
            of_part = None
            if weights is not None:
                with np.errstate(under="ignore"):
                    of_part = np.ldexp(doubles(weights[i][part]), -exponent)  # whose sums are finite
            codes = np.ascontiguousarray(line[part], line.dtype.newbyteorder("=")).view(np.uint16)
            clusters.count_codes(codes, of_part, counts[i])
    present = np.flatnonzero(counts.any(axis=0))
    values = present.astype(np.uint16).view(x.dtype.newbyteorder("=")).astype(np.float64)
    values = np.broadcast_to(values, (len(x), len(values)))
    return np.ascontiguousarray(values), np.ascontiguousarray(counts[:, present])


def _as_rows(x, axis, block_size):
    """Return x as (rows, n): in a row what shares a scale, or the blocks that stand one after another."""
    if axis is None:
        return x.reshape(1, -1)
    x = np.moveaxis(x, axis, -1 if block_size else 0)
    return x.reshape(-1, x.shape[-1]) if block_size else x.reshape(len(x), -1)
