# cython: language_level=3, cdivision=True, freethreading_compatible=True
"""Bind what maps values to codes and back: parameters, quantize, requantize, scales."""

from libc.float cimport FLT_MAX
from libc.math cimport INFINITY
from libc.stdint cimport int8_t, uint8_t, uint64_t
from libc.string cimport memset

import numpy as np

cimport cython
cimport numpy as cnp
from cpython.exc cimport PyErr_CheckSignals
from cpython.ref cimport PyObject

from .arrays import CODE_TYPES, float_dtype, frozen, raise_not_finite
from .runtime import shown

from .arrays cimport (
    array_of, BRIEF, contiguous, data_of, descr_of, FLOAT32, float_type, floats, int32s, lay_out, PyArray_TYPE, reals,
    refuse_overlap, result_array, rounding_code,
)
from .c cimport (
    qk_block_magnitudes, qk_choose, qk_dequantize, qk_enter_scope, QK_F8_E4M3, qk_fake_grad, qk_fake_grad_sums,
    qk_fake_quantize, qk_fake_quantize_floats, qk_fake_quantize_grad, qk_fold, qk_fold_fits, QK_HALF_AWAY,
    QK_HALF_EVEN, QK_I32, qk_integer_scales, qk_integer_search, qk_least_squares, qk_micro, qk_micro_scales,
    qk_minmax, QK_PER_AXIS, QK_PER_BLOCK, QK_PER_TENSOR, qk_quantize, qk_quantize_folded, qk_quantize_multiplier,
    qk_quantize_randomly, qk_quantize_rows, qk_reciprocals, qk_refine, qk_requant, qk_requantize, qk_rounding,
    qk_scope, qk_search_integer_scales, QK_TFLITE,
)

cnp.import_array()


@cython.binding(False)  # which checks whose method is called
cdef class Params:
    """Hold QParams (_qparams.py), which has checked the arguments, as C reads them."""

    def __cinit__(self, scale, zero_point, dtype, qmin, qmax, axis, block_size, block_scale=None, block_shift=None):
        self.dtype, self.qmin, self.qmax, self.axis, self.block_size = dtype, qmin, qmax, axis, block_size
        if axis is not None:
            scale, zero_point = frozen(scale), frozen(zero_point)
        self.c.scale, self.c.zero_point = floats(scale), int32s(zero_point)
        self.c.outer = self.c.length = self.c.inner = self.c.block = 1
        self.c.kind = QK_PER_TENSOR if axis is None else QK_PER_AXIS if block_size is None else QK_PER_BLOCK
        self.storage = CODE_TYPES[dtype]
        self.codes_are_floats = self.storage >= QK_F8_E4M3
        if not self.codes_are_floats:
            self.c.qmin, self.c.qmax = qmin, qmax
        if axis is None:
            self.one_scale, self.one_zero_point = scale, zero_point
            self.c.scale, self.c.zero_point = &self.one_scale, &self.one_zero_point
            self.scale, self.zero_point = scale[()], zero_point[()]
            return
        self.scale, self.zero_point, self.c_axis = scale, zero_point, axis
        if block_scale is not None:
            self.block_scale, self.block_shift = frozen(block_scale), frozen(block_shift)
            return
        self.reciprocal = np.empty(scale.size, np.float32)
        if qk_reciprocals(self.c.scale, <size_t>cnp.PyArray_SIZE(scale), floats(self.reciprocal)):
            self.c.reciprocal = floats(self.reciprocal)
        if block_size is not None:
            self.c.block = block_size

    cdef Py_ssize_t nbytes(self):
        """Return the bytes of the arrays that it holds."""
        if self.axis is None:
            return 0
        arrays = self.scale, self.zero_point, self.reciprocal, self.block_scale, self.block_shift
        return sum([a.nbytes for a in arrays if a is not None])

    def check_shape(self, shape, name="x"):
        """Raise unless the scales fit data of this shape, which the caller gave as `name`."""
        if self.axis is None:
            return
        if not -len(shape) <= self.axis < len(shape):
            raise ValueError(f"params: axis {self.axis} is out of range for {name} with shape {tuple(shape)}")
        expected, axis, what = tuple(shape), self.axis % len(shape), f"axis {self.axis}"
        if self.block_size is None:
            expected = expected[axis : axis + 1]
        else:
            blocks = -(-expected[axis] // self.block_size)
            expected = expected[:axis] + (blocks,) + expected[axis + 1 :]
            what = f"blocks of {self.block_size} along axis {self.axis}"
        scale = self.scale if self.block_scale is None else self.block_scale
        if self.block_scale is not None and len(shape) != 2:
            raise ValueError(f"params: integer scales are those of a matrix, got {name} with shape {tuple(shape)}")
        if scale.shape != expected:
            raise ValueError(f"params: scale must have shape {expected} to match {what} of {name} with shape "
                             f"{tuple(shape)}, got {scale.shape}")

    cdef bint fits(self, cnp.ndarray x, int axis):
        """Tell what check_shape tells, without Python objects: most calls end here."""
        cdef cnp.ndarray scale = self.scale
        cdef int i, ndim = cnp.PyArray_NDIM(x)
        cdef Py_ssize_t wanted
        if not 0 <= axis < ndim:
            return False
        if self.c.kind == QK_PER_AXIS:
            return cnp.PyArray_NDIM(scale) == 1 and cnp.PyArray_DIM(scale, 0) == cnp.PyArray_DIM(x, axis)
        if cnp.PyArray_NDIM(scale) != ndim:
            return False
        for i in range(ndim):
            wanted = cnp.PyArray_DIM(x, i)
            if i == axis and wanted:
                wanted = 1 + (wanted - 1) // <Py_ssize_t>self.c.block
            if cnp.PyArray_DIM(scale, i) != wanted:
                return False
        return True

    cdef int lay_over(self, cnp.ndarray x, qk_params *p, name) except -1:
        """Fill the C parameters for an array of the shape of x."""
        if self.block_scale is not None:
            raise TypeError("params must not have integer scales (block_scale) here")
        p[0] = self.c
        if p.kind == QK_PER_TENSOR:
            p.length = <size_t>cnp.PyArray_SIZE(x)
            return 0
        cdef int axis = self.c_axis + cnp.PyArray_NDIM(x) if self.c_axis < 0 else self.c_axis
        if not self.fits(x, axis):
            self.check_shape((<object>x).shape, name)
        lay_out(x, axis, &p.outer, &p.length, &p.inner)
        return 0


# ---- integer scales: codes fold to int8 (numerics 33) ----


cdef int lay_out_integer_scales(Params p, cnp.ndarray x, qk_integer_scales *s, name) except -1:
    """Fill the C parameters for a matrix x, which the caller gave as `name`."""
    p.check_shape((<object>x).shape, name)
    s.k, s.n, s.block = <size_t>cnp.PyArray_DIM(x, 0), <size_t>cnp.PyArray_DIM(x, 1), p.block_size
    s.scale, s.codes, s.qmin, s.qmax = floats(p.scale), p.storage, p.qmin, p.qmax
    s.block_scale, s.block_shift = <const uint8_t *>data_of(p.block_scale), <const int8_t *>data_of(p.block_shift)
    return 0


def folds(Params p):
    """Tell whether integer scales, of the right shapes, are such that weights fold to int8."""
    cdef qk_integer_scales s
    blocks, n = p.block_scale.shape
    s.k, s.n, s.block, s.codes, s.qmin, s.qmax = blocks, n, 1, p.storage, p.qmin, p.qmax
    s.scale = floats(p.scale)
    s.block_scale, s.block_shift = <const uint8_t *>data_of(p.block_scale), <const int8_t *>data_of(p.block_shift)
    cdef int fits
    with nogil:
        fits = qk_fold_fits(&s)
    return bool(fits)


def fold(cnp.ndarray q, Params params, name="q"):
    """Return the int8 that codes fold to, multiples of the scale of their column."""
    cdef qk_integer_scales s
    lay_out_integer_scales(params, q, &s, name)
    cdef cnp.ndarray codes = contiguous(q), folded = np.empty_like(codes, np.int8)
    with nogil:
        qk_fold(<const uint8_t *>data_of(codes), <int8_t *>data_of(folded), &s)
    return folded


cdef cnp.ndarray quantize_folded(cnp.ndarray x, Params params, qk_rounding rounding):
    cdef qk_integer_scales s
    lay_out_integer_scales(params, x, &s, "x")
    float_type(x, "x")
    cdef cnp.ndarray a = contiguous(x if x.dtype.itemsize > 2 else x.astype(FLOAT32))
    cdef qk_dtype from_ = <qk_dtype>float_type(a, "x")
    cdef cnp.ndarray codes = np.empty_like(a, params.dtype)
    with nogil:
        qk_quantize_folded(data_of(a), from_, <uint8_t *>data_of(codes), &s, rounding)
    return codes


cdef cnp.ndarray dequantize_folded(cnp.ndarray q, Params params, dtype):
    """Return the values of codes, the multiples of scales that they fold to."""
    if q.dtype != params.dtype:
        raise TypeError(f"q must have dtype {params.dtype} (as params) where these have integer scales, got {q.dtype}")
    columns = Params(params.scale, np.zeros_like(params.scale, np.int32), np.dtype(np.int8), -128, 127, 1, None)
    return dequantize(fold(q, params), columns, dtype, None)


cdef object deliver(cnp.ndarray found, out, cnp.ndarray given, name, cnp.ndarray same=None):
    """Return what was found, in `out` if there is one, which may have the memory of `same`."""
    if out is None:
        return found
    cdef cnp.ndarray to = result_array(out, found, found.dtype)
    if same is None or data_of(to) != data_of(same):
        refuse_overlap(to, given, name)
    (<object>to)[...] = found
    return out


cdef int refuse_rounding(Params to, rounding) except -1:
    if to.codes_are_floats:
        raise ValueError(f"rounding must be 'half_even' for codes of dtype {to.dtype.name}, got {shown(rounding)}")
    return 0


def quantize(x, params, rounding, out):
    cdef qk_scope _mode = qk_enter_scope()
    cdef Params to = params_of(params)
    cdef cnp.ndarray given = array_of(x, "x"), a = contiguous(given)
    cdef qk_dtype from_ = <qk_dtype>float_type(a, "x")
    cdef qk_rounding how = <qk_rounding>rounding_code(rounding, QK_HALF_AWAY)
    if how != QK_HALF_EVEN:
        refuse_rounding(to, rounding)
    if to.block_scale is not None:
        return deliver(quantize_folded(a, to, how), out, given, "x")
    cdef qk_params p
    to.lay_over(a, &p, "x")
    cdef cnp.ndarray q = result_array(out, a, to.dtype)
    if out is not None:
        refuse_overlap(q, given, "x")
    if cnp.PyArray_SIZE(a) <= BRIEF:
        qk_quantize(data_of(a), from_, data_of(q), to.storage, &p, how)
    else:
        with nogil:
            qk_quantize(data_of(a), from_, data_of(q), to.storage, &p, how)
    return q if out is None else out


def dequantize(q, params, dtype, out):
    cdef qk_scope _mode = qk_enter_scope()
    cdef Params of = params_of(params)
    cdef cnp.ndarray given = array_of(q, "q"), a = contiguous(given)
    cdef qk_dtype from_ = of.storage
    if of.block_scale is not None:
        return deliver(dequantize_folded(a, of, float_dtype(dtype)), out, given, "q")
    if PyArray_TYPE(a) == cnp.NPY_INT32:
        from_ = QK_I32
    elif descr_of(a) != <PyObject *>of.dtype and a.dtype != of.dtype:
        raise TypeError(f"q must have dtype {of.dtype} (as params) or int32, got {a.dtype}")
    if dtype is not np.float32:
        dtype = float_dtype(dtype)
    else:
        dtype = FLOAT32
    cdef qk_params p
    of.lay_over(a, &p, "q")
    cdef cnp.ndarray y = result_array(out, a, dtype)
    cdef qk_dtype to = <qk_dtype>float_type(y, "out")
    if out is not None:
        refuse_overlap(y, given, "q")
    if cnp.PyArray_SIZE(a) <= BRIEF:
        qk_dequantize(data_of(a), from_, data_of(y), to, &p)
    else:
        with nogil:
            qk_dequantize(data_of(a), from_, data_of(y), to, &p)
    return y if out is None else out


cdef int fake_quantize_inside(Params by, const void *x, void *y, qk_dtype type, const qk_params *p) except -3 nogil:
    if by.codes_are_floats:
        return qk_fake_quantize_floats(x, y, type, by.storage, p)
    return qk_fake_quantize(x, y, type, p)


def fake_quantize(x, params, out):
    cdef qk_scope _mode = qk_enter_scope()
    cdef Params by = params_of(params)
    cdef cnp.ndarray given = array_of(x, "x"), a = contiguous(given)
    cdef qk_dtype type = <qk_dtype>float_type(a, "x")
    if by.block_scale is not None:
        return deliver(dequantize_folded(quantize_folded(a, by, QK_HALF_EVEN), by, a.dtype), out, given, "x", a)
    cdef qk_params p
    by.lay_over(a, &p, "x")
    cdef cnp.ndarray y = result_array(out, a, <object>descr_of(a))
    if out is not None and data_of(a) != data_of(y):
        refuse_overlap(y, given, "x")
    if cnp.PyArray_SIZE(a) <= BRIEF:
        fake_quantize_inside(by, data_of(a), data_of(y), type, &p)
    else:
        with nogil:
            fake_quantize_inside(by, data_of(a), data_of(y), type, &p)
    return y if out is None else out


def quantize_randomly(x, params, uint64_t seed, bint back, out):
    """Round x to codes, or `back` to the values that these stand for, stochastically."""
    cdef qk_scope _mode = qk_enter_scope()
    cdef Params by = params_of(params)
    refuse_rounding(by, "stochastic")
    cdef cnp.ndarray given = array_of(x, "x"), a = contiguous(given)
    cdef qk_dtype from_ = <qk_dtype>float_type(a, "x"), to = from_ if back else by.storage
    cdef qk_params p
    by.lay_over(a, &p, "x")
    cdef cnp.ndarray y = result_array(out, a, a.dtype if back else by.dtype)
    if out is not None and not (back and data_of(a) == data_of(y)):
        refuse_overlap(y, given, "x")
    if cnp.PyArray_SIZE(a) <= BRIEF:
        qk_quantize_randomly(data_of(a), from_, data_of(y), to, &p, seed)
    else:
        with nogil:
            qk_quantize_randomly(data_of(a), from_, data_of(y), to, &p, seed)
    return y if out is None else out


def fake_quantize_grad(grad, x, params, bint clipped):
    """Return the gradients of x, of the scales and of the zero points."""
    cdef qk_scope _mode = qk_enter_scope()
    cdef Params by = params_of(params)
    if by.codes_are_floats:
        raise TypeError(f"params must have an integer dtype, got {by.dtype.name}")
    cdef cnp.ndarray a = contiguous(array_of(x, "x")), g = array_of(grad, "grad")
    cdef qk_fake_grad given
    given.dtype = <qk_dtype>float_type(a, "x")
    if PyArray_TYPE(g) != PyArray_TYPE(a):
        raise TypeError(f"grad must have the dtype of x, {a.dtype}, got {g.dtype}")
    if not cnp.PyArray_SAMESHAPE(g, a):
        raise ValueError(f"grad must have the shape of x, {(<object>a).shape}, got {(<object>g).shape}")
    g = contiguous(g)
    cdef qk_params p
    by.lay_over(a, &p, "x")
    cdef cnp.ndarray grad_x = np.empty_like(a)
    cdef cnp.ndarray scale = np.empty(by.scale.shape, FLOAT32), zero_point = np.empty(by.scale.shape, FLOAT32)
    cdef cnp.ndarray sums = np.empty(2 * qk_fake_grad_sums(&p))
    given.grad, given.x, given.grad_x, given.clipped = data_of(g), data_of(a), data_of(grad_x), clipped
    given.grad_scale, given.grad_zero_point = floats(scale), floats(zero_point)
    if cnp.PyArray_SIZE(a) <= BRIEF:
        qk_fake_quantize_grad(&given, &p, reals(sums))
    else:
        with nogil:
            qk_fake_quantize_grad(&given, &p, reals(sums))
    return grad_x, (<object>scale)[()], (<object>zero_point)[()]


def minmax(cnp.ndarray x):
    """Return the bounds of a contiguous float32 array and 0, or None if a value is not finite."""
    cdef float lo, hi
    cdef int finite
    with nogil:
        finite = qk_minmax(floats(x), <size_t>cnp.PyArray_SIZE(x), &lo, &hi)
    return (lo, hi) if finite else None


def block_magnitudes(x, int axis, size_t block_size, bint outward):
    """Return the largest magnitudes of blocks along an axis as float32, or None if one is not finite in float32.

    What float32 lacks is rounded away from 0 if `outward`, else towards it.
    """
    cdef cnp.ndarray a = contiguous(array_of(x, "x"))
    cdef qk_dtype from_ = <qk_dtype>float_type(a, "x")
    cdef qk_params p
    lay_out(a, axis, &p.outer, &p.length, &p.inner)
    p.block = block_size
    shape = list((<object>a).shape)
    shape[axis] = -(-shape[axis] // block_size)
    cdef cnp.ndarray most = np.empty(shape, FLOAT32)
    cdef int finite
    with nogil:
        finite = qk_block_magnitudes(data_of(a), from_, &p, outward, floats(most))
    return most if finite else None


def micro_scales(cnp.ndarray magnitudes, float largest, float times, int exponent, int up):
    """Turn magnitudes of blocks, contiguous float32, into scales: powers of two, or float8 numbers `times` one.

    The exponent is that of the codes' largest power of two, `up` is added to the bits of a magnitude over `largest`.
    """
    cdef qk_micro how
    how.largest, how.times, how.exponent, how.up = largest, times, exponent << 23, up
    with nogil:
        qk_micro_scales(floats(magnitudes), <size_t>cnp.PyArray_SIZE(magnitudes), &how)


cdef int rows_are_finite(const void *x, size_t rows, size_t cols, ptrdiff_t row_stride) except -1:
    """Tell whether all values are finite, before anything is written to an `out` that an error must leave untouched.

    The stride is in bytes.
    """
    cdef float lo, hi
    cdef size_t i, first = 0
    cdef size_t n = cols
    if row_stride == <ptrdiff_t>(cols * sizeof(float)):
        n, rows = rows * cols, 1
    if rows == 1 and n <= BRIEF:
        return qk_minmax(<const float *>x, n, &lo, &hi)
    while first < rows:
        with nogil:
            for i in range(first, min(first + 65536, rows)):
                if not qk_minmax(<const float *>(<const char *>x + <ptrdiff_t>i * row_stride), n, &lo, &hi):
                    return False
        first += 65536
        PyErr_CheckSignals()
    return True


def choose(lo, hi, int qmin, int qmax, bint symmetric):
    """Return scale and zero_point of ranges: float32 and int32 arrays of the shape of lo and hi."""
    cdef qk_scope _mode = qk_enter_scope()
    cdef cnp.ndarray low = contiguous(np.asarray(lo)), high = contiguous(np.asarray(hi))
    cdef cnp.ndarray scale = np.empty_like(low), zero_point = np.empty_like(low, np.int32)
    cdef Py_ssize_t i
    for i in range(cnp.PyArray_SIZE(low)):
        qk_choose(floats(low)[i], floats(high)[i], qmin, qmax, symmetric, floats(scale) + i, int32s(zero_point) + i)
    return scale, zero_point


def quantize_rows(x, tuple shape, dtype, int qmin, int qmax, bint symmetric):
    """Quantize float32 x, which is not empty, as one row (shape ()) or as rows (shape (rows,)).

    Returns q, and scale and zero_point of `shape`.
    """
    cdef cnp.ndarray a = contiguous(x)
    cdef cnp.ndarray q = np.empty((<object>a).shape, dtype)
    cdef cnp.ndarray scale = np.empty(shape, np.float32), zero_point = np.empty(shape, np.int32)
    cdef size_t rows = <size_t>cnp.PyArray_SIZE(scale)
    cdef size_t cols = <size_t>cnp.PyArray_SIZE(a) // rows
    cdef qk_dtype to = CODE_TYPES[dtype]
    cdef int finite
    with nogil:
        finite = qk_quantize_rows(floats(a), rows, cols, data_of(q), to, qmin, qmax, symmetric, floats(scale),
                                  int32s(zero_point))
    if not finite:
        raise_not_finite(x)
    return q, scale, zero_point


def refine(cnp.ndarray x, cnp.ndarray importance, size_t block, code_range, zero_points, cnp.ndarray scale,
           cnp.ndarray zero_point):
    """Replace scale (float32) and zero_point (int32), (rows, blocks), by those of least squares.

    x (rows, n) is contiguous float64; importance is like x, or None.
    """
    cdef qk_least_squares p
    p.n, p.block = <size_t>cnp.PyArray_DIM(x, 1), block
    p.qmin, p.qmax = code_range
    p.first_zero, p.last_zero = zero_points
    cdef int status
    with nogil:
        status = qk_refine(&p, <size_t>cnp.PyArray_DIM(x, 0), reals(x), reals(importance), floats(scale),
                           int32s(zero_point))
    if status == -1:
        raise MemoryError(f"no memory for the breakpoints of {p.n} values")


def search_integer_scales(cnp.ndarray x, cnp.ndarray importance, size_t block, code_range, int middle, bint shifts,
                          bint least_squares, cnp.ndarray scale, cnp.ndarray block_scale, cnp.ndarray block_shift):
    """Fill scale (columns,), block_scale and block_shift (columns, blocks), which are contiguous.

    x (columns, k) is contiguous float64; importance is like x, or None.
    """
    cdef qk_integer_search p
    p.k, p.block, p.middle = <size_t>cnp.PyArray_DIM(x, 1), block, middle
    p.shifts, p.least_squares = shifts, least_squares
    p.qmin, p.qmax = code_range
    cdef int status
    with nogil:
        status = qk_search_integer_scales(&p, <size_t>cnp.PyArray_DIM(x, 0), reals(x), reals(importance), floats(scale),
                                          <uint8_t *>data_of(block_scale), <int8_t *>data_of(block_shift))
    if status == -1:
        raise MemoryError(f"no memory for the blocks of {p.k} values")


# ---- requantize ----


def quantize_multiplier(cnp.ndarray m):
    """Return mantissas and shifts of a contiguous float64 array (n,)."""
    cdef cnp.ndarray mantissa = np.empty_like(m, np.int32), shift = np.empty_like(m, np.int32)
    cdef Py_ssize_t i
    for i in range(cnp.PyArray_SIZE(m)):
        qk_quantize_multiplier(reals(m)[i], int32s(mantissa) + i, int32s(shift) + i)
    return mantissa, shift


def multipliers(given, Py_ssize_t n, bint fixed_point):
    """Return multipliers, one or n real numbers, as n entries of what the kernels read.

    That is (float32, None, None), or (None, mantissas, shifts) if they are fixed-point.
    """
    cdef qk_scope _mode = qk_enter_scope()
    if given.shape not in ((), (1,), (n,)):
        raise ValueError(f"multiplier must be a scalar or have shape {(n,)}, got {given.shape}")
    cdef cnp.ndarray wide = np.ascontiguousarray(given, np.float64), narrow = np.empty(n, FLOAT32)
    cdef const double *m = reals(wide)
    cdef Py_ssize_t i, count = cnp.PyArray_SIZE(wide)
    for i in range(count):
        if not 0 < m[i] < INFINITY:
            raise ValueError(f"multiplier must be positive and finite, got {given.flat[i]}")
    if fixed_point:
        return None, *quantize_multiplier(np.full(n, wide) if count != n else wide)
    for i in range(n):
        # beyond FLT_MAX, all but 0 saturates with the largest one as well
        floats(narrow)[i] = <float>min(m[i if count == n else 0], FLT_MAX)
    return narrow, None, None


cdef multipliers_of_scales(Params a, b_scale, Params of_result):
    """Return mantissas and shifts of scale(a) * b_scale / scale(result), a and the result per tensor.

    In double nothing leaves the range.
    """
    cdef qk_scope _mode = qk_enter_scope()
    exact = <double>a.one_scale * np.asarray(b_scale, np.float64).reshape(-1) / <double>of_result.one_scale
    return multipliers(exact, exact.size, True)[1:]


def requantize(cnp.ndarray acc, cnp.ndarray bias, given_bias, params, rounding, tuple columns, given_multiplier, out):
    """Requantize int32 acc (..., n); bias and the multipliers, `columns`, are contiguous and have n entries.

    The caller gave arrays: `acc`, `given_bias` or None, `given_multiplier`.
    """
    cdef qk_scope _mode = qk_enter_scope()
    cdef Params to = params_of(params)
    cdef cnp.ndarray a = contiguous(acc)
    multiplier, mantissa, shift = columns
    cdef qk_requant r
    memset(&r, 0, sizeof(r))
    r.rounding = <qk_rounding>rounding_code(rounding, QK_TFLITE)
    r.zero_point, r.qmin, r.qmax = to.one_zero_point, to.c.qmin, to.c.qmax
    r.multiplier, r.mantissa, r.shift = floats(multiplier), int32s(mantissa), int32s(shift)
    cdef cnp.ndarray q = result_array(out, a, to.dtype)
    if out is not None:
        refuse_overlap(q, acc, "acc")
        refuse_overlap(q, bias if given_bias is None else given_bias, "bias")
        refuse_overlap(q, given_multiplier, "multiplier")
    cdef size_t cols = <size_t>cnp.PyArray_SIZE(bias)
    cdef size_t rows = <size_t>cnp.PyArray_SIZE(a) // cols if cols else 0
    if rows * cols <= BRIEF:
        qk_requantize(int32s(a), int32s(bias), data_of(q), to.storage, rows, cols, &r)
    else:
        with nogil:
            qk_requantize(int32s(a), int32s(bias), data_of(q), to.storage, rows, cols, &r)
    return q if out is None else out
