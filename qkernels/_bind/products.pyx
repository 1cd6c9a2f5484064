# cython: language_level=3, cdivision=True, freethreading_compatible=True
"""Bind the products: rows that are read in place, `out`, zero points, biases, what becomes of sums."""

from libc.math cimport INFINITY
from libc.stddef cimport ptrdiff_t
from libc.stdint cimport int8_t, int32_t, int64_t, uint8_t
from libc.string cimport memset

import numpy as np

cimport numpy as cnp
from cpython.ref cimport PyObject

from .arrays import FLOATS, as_array, copied, raise_not_finite
from .runtime import shown

from .arrays cimport (
    activation_code, array_of, BRIEF_PRODUCT, contiguous, data_of, descr_of, FLOAT32, float32_array, floats, INT32,
    int32s, INT64, is_plain, new_array, out_array, PyArray_ISCARRAY, PyArray_ISCARRAY_RO, PyArray_TYPE, reals,
    refuse_giant, refuse_overlap, rounding_code,
)
from .c cimport (
    qk_activation, qk_batch, QK_CODES_I8, QK_CODES_U8, qk_enter_scope, qk_epilogue, QK_F32, QK_FLOATS, QK_GEMM16,
    QK_GEMM4, qk_gemm8_batch, QK_HALF_AWAY, QK_HALF_EVEN, QK_I8, qk_minmax, qk_most_rows, qk_multiply, qk_params,
    qk_prepare, qk_quantize, QK_RELU, qk_rounding, qk_rows, qk_rows_type, qk_scope, QK_TFLITE, QK_TO_CODES, QK_TO_FLOAT,
    QK_TO_INT32, qk_unit_columns, qk_unit_multipliers, qk_wide_columns,
)
from .elementwise cimport multipliers_of_scales, Params, params_of, rows_are_finite
from .weights cimport keep_layer, last_layer, Layer, need_eight_bits, Packed

cnp.import_array()


cdef int describe_rows(cnp.ndarray a, Py_ssize_t k, object name, object other, qk_rows *source) except -1:
    """Fill m and row_stride if a (..., k) can be read in place; return 0 if it must be copied."""
    cdef int ndim = cnp.PyArray_NDIM(a)
    if ndim == 0 or cnp.PyArray_DIM(a, ndim - 1) != k:
        raise ValueError(f"{name} must have {k} columns to match {other}, got shape {(<object>a).shape}")
    cdef Py_ssize_t item = cnp.PyArray_ITEMSIZE(a)
    source.m = <size_t>(cnp.PyArray_SIZE(a) // k) if k else <size_t>int(np.prod((<object>a).shape[:-1]))
    source.row_stride = k * item
    if PyArray_ISCARRAY_RO(a):
        source.a = data_of(a)
        return 1
    if ndim == 2 and (k <= 1 or cnp.PyArray_STRIDE(a, 1) == item) and a.flags.aligned and a.dtype.isnative:
        source.a = data_of(a)
        source.row_stride = cnp.PyArray_STRIDE(a, 0)
        return source.row_stride % item == 0
    return 0


cdef cnp.ndarray rows_of(cnp.ndarray a, Py_ssize_t k, object name, object other, qk_rows *source):
    """Describe a, or a contiguous copy of it, in `source`; `name` and `other`, b, are the caller's."""
    if not describe_rows(a, k, name, other, source):
        a = contiguous(a)
        describe_rows(a, k, name, other, source)
    return a


cdef cnp.ndarray product_out(out, cnp.ndarray a, Py_ssize_t n, object dtype):
    """Return `out`, checked, or a new array, of shape a.shape[:-1] + (n,)."""
    cdef int ndim = cnp.PyArray_NDIM(a), i
    cdef cnp.npy_intp[64] shape
    if out is None:
        for i in range(ndim - 1):
            shape[i] = cnp.PyArray_DIM(a, i)
        shape[ndim - 1] = n
        return new_array(ndim, shape, dtype)
    if cnp.PyArray_CheckExact(out) and PyArray_ISCARRAY(<cnp.ndarray>out) \
            and descr_of(<cnp.ndarray>out) == <PyObject *>dtype and cnp.PyArray_NDIM(<cnp.ndarray>out) == ndim \
            and cnp.PyArray_DIM(<cnp.ndarray>out, ndim - 1) == n:
        for i in range(ndim - 1):
            if cnp.PyArray_DIM(<cnp.ndarray>out, i) != cnp.PyArray_DIM(a, i):
                break
        else:
            return <cnp.ndarray>out
    return out_array(out, (<object>a).shape[:-1] + (n,), dtype)


cdef int multiply(const qk_rows *source, Packed b, const qk_epilogue *epilogue, object x) except -1:
    """Multiply x, which `source` describes, by b."""
    cdef int status
    if source.m * b.c.k * b.c.n_pad <= BRIEF_PRODUCT:
        status = qk_multiply(source, &b.c, epilogue)
    else:
        with nogil:
            status = qk_multiply(source, &b.c, epilogue)
    return check_status(status, x)


cdef int check_status(int status, object x) except -1:
    """Raise what the status of a product, or of a convolution or pool, says, whose rows are of x."""
    if status == -1:
        raise MemoryError(f"no memory to gather rows of the input, which has shape {x.shape}")
    if status == -2:
        raise_not_finite(x)
    return 0


cdef zero_points(value, cnp.ndarray codes, tuple shape, name):
    """Return a zero point, or an array of them with `shape`, as contiguous int32 within the range of the codes."""
    given = array_of(value, name)
    if given.dtype.kind not in "iu":
        raise TypeError(f"{name} must be an integer or an array of integers, got {shown(value)}")
    if given.shape == (1,):
        given = given.reshape(())   # as ONNX files hold a scalar
    if given.ndim and given.shape != shape:
        raise ValueError(f"{name} must be a scalar or have shape {shape}, got {given.shape}")
    refuse_giant(given, name)
    info = np.iinfo(codes.dtype)
    if given.size and (given.min() < info.min or given.max() > info.max):
        raise ValueError(f"{name} must be within [{info.min}, {info.max}] for {codes.dtype}, got {shown(value)}")
    return np.asarray(given, np.int32, order="C")


cdef int codes_type(cnp.ndarray a, object name, object also="") except -1:
    cdef int num = PyArray_TYPE(a)
    if num == cnp.NPY_UINT8:
        return QK_CODES_U8
    if num == cnp.NPY_INT8:
        return QK_CODES_I8
    raise TypeError(f"{name} must be uint8{', int8' if also else ''} or {also or 'int8'}, got {a.dtype}")


cdef tuple lay_over_batch(cnp.ndarray a, cnp.ndarray b, qk_batch *p):
    """Fill axes and shape: the leading axes of a and b, broadcast."""
    cdef int na = cnp.PyArray_NDIM(a) - 2, nb = cnp.PyArray_NDIM(b) - 2, axis
    cdef Py_ssize_t of_a, of_b
    p.axes = max(na, nb)
    for axis in range(p.axes):
        of_a = cnp.PyArray_DIM(a, axis - p.axes + na) if axis >= p.axes - na else 1
        of_b = cnp.PyArray_DIM(b, axis - p.axes + nb) if axis >= p.axes - nb else 1
        if of_a != of_b and of_a != 1 and of_b != 1:
            raise ValueError(f"a and b must have leading axes that broadcast, got shapes {(<object>a).shape} "
                             f"and {(<object>b).shape}")
        p.shape[axis] = <size_t>(of_b if of_a == 1 else of_a)
    return tuple([<Py_ssize_t>p.shape[axis] for axis in range(p.axes)])


cdef void fill_steps(cnp.ndarray x, int own, Py_ssize_t unit, const qk_batch *p, ptrdiff_t *step) noexcept:
    """Fill the strides of the leading axes of x, all but its last `own`, over `unit`; 0 if x is broadcast."""
    cdef int missing = p.axes - (cnp.PyArray_NDIM(x) - own), axis
    for axis in range(p.axes):
        step[axis] = 0
        if axis >= missing and cnp.PyArray_DIM(x, axis - missing) > 1:
            step[axis] = cnp.PyArray_STRIDE(x, axis - missing) // unit


cdef cnp.ndarray batch_zero_points(value, cnp.ndarray codes, tuple shape, name):
    """Return zero points, like zero_points, of any shape that broadcasts to `shape`: all of them, or a scalar."""
    given = array_of(value, name)
    if given.size == 1:
        return zero_points(given.reshape(()), codes, (), name)
    try:
        given = np.broadcast_to(given, shape)
    except ValueError:
        raise ValueError(f"{name} must be a scalar or broadcast to shape {shape}, got {given.shape}") from None
    return zero_points(given, codes, shape, name)


cdef matmul_batch(cnp.ndarray a, cnp.ndarray b, a_zero_point, b_zero_point, out):
    """Multiply codes a (..., m, k) and b (..., k, n)."""
    cdef qk_batch p
    memset(&p, 0, sizeof(p))
    cdef int na = cnp.PyArray_NDIM(a), nb = cnp.PyArray_NDIM(b)
    cdef Py_ssize_t k = cnp.PyArray_DIM(b, nb - 2), n = cnp.PyArray_DIM(b, nb - 1)
    if na < 2 or cnp.PyArray_DIM(a, na - 1) != k:
        raise ValueError(f"a must have shape (..., M, {k}) to match b with shape {(<object>b).shape}, "
                         f"got {(<object>a).shape}")
    cdef Py_ssize_t m = cnp.PyArray_DIM(a, na - 2)
    shape = lay_over_batch(a, b, &p) + (m, n)
    cdef cnp.ndarray c = out_array(out, shape, INT32), az, bz
    if out is not None:
        for name, x in (("a", a), ("b", b), ("a_zero_point", a_zero_point), ("b_zero_point", b_zero_point)):
            if type(x) is not int:
                refuse_overlap(c, array_of(x, name), name)
    cdef cnp.ndarray rows = a if k <= 1 or cnp.PyArray_STRIDE(a, na - 1) == 1 else contiguous(a)
    p.source.m, p.source.a, p.source.row_stride = <size_t>m, data_of(rows), cnp.PyArray_STRIDE(rows, na - 2)
    p.source.type = <qk_rows_type>codes_type(a, "a", "int16")
    fill_steps(rows, 2, 1, &p, p.a_step)
    if not (type(a_zero_point) is int and a_zero_point == 0):
        az = batch_zero_points(a_zero_point, a, (<object>a).shape[:-1], "a_zero_point")
        p.source.zero_point = int32s(az)
        p.source.zero_point_per_row = cnp.PyArray_NDIM(az) > 0
        if p.source.zero_point_per_row:
            fill_steps(az, 1, 4, &p, p.a_zero_step)
    p.b, p.k, p.n = data_of(b), <size_t>k, <size_t>n
    p.b_row_stride, p.b_col_stride = cnp.PyArray_STRIDE(b, nb - 2), cnp.PyArray_STRIDE(b, nb - 1)
    p.b_unsigned = PyArray_TYPE(b) == cnp.NPY_UINT8
    fill_steps(b, 2, 1, &p, p.b_step)
    if not (type(b_zero_point) is int and b_zero_point == 0):
        of_columns = (<object>b).shape[:-2] + (n,)
        bz = batch_zero_points(b_zero_point, b, of_columns, "b_zero_point")
        if cnp.PyArray_NDIM(bz) == 0:
            bz = np.full(n, bz, np.int32)
        p.b_zero = int32s(bz)
        fill_steps(bz, 1, 4, &p, p.b_zero_step)
    p.out = int32s(c)
    cdef int status
    if cnp.PyArray_SIZE(c) <= BRIEF_PRODUCT // (k + 1):
        status = qk_gemm8_batch(&p)
    else:
        with nogil:
            status = qk_gemm8_batch(&p)
    check_status(status, a)
    return c if out is None else out


def matmul(a, b, a_zero_point, b_zero_point, out):
    cdef cnp.ndarray left = array_of(a, "a"), right = None
    cdef Packed packed = None
    cdef qk_rows source
    cdef qk_epilogue epilogue
    memset(&source, 0, sizeof(source))
    memset(&epilogue, 0, sizeof(epilogue))
    if isinstance(b, Packed):
        packed = <Packed>b
    else:
        right = array_of(b, "b")
    cdef bint wide = packed.c.family == QK_GEMM16 if right is None else PyArray_TYPE(right) == cnp.NPY_INT16
    wide = wide or PyArray_TYPE(left) == cnp.NPY_INT16
    cdef cnp.ndarray rows = int16_codes(left, "a") if wide else left
    if not wide:
        source.type = <qk_rows_type>codes_type(left, "a", "int16")
    if packed is not None and not wide:
        need_eight_bits(packed, "b")
    elif packed is not None and packed.c.family != QK_GEMM16:
        raise TypeError(f"b must be packed from int16 where a is int16, got a PackedMatrix of {b.dtype}")
    elif packed is None and not wide:
        codes_type(right, "b", "int16")
        if cnp.PyArray_NDIM(right) > 2:
            return matmul_batch(left, right, a_zero_point, b_zero_point, out)
        if cnp.PyArray_NDIM(right) < 2:
            raise ValueError(f"b must have shape (..., K, N), got {(<object>right).shape}")
    elif packed is None:
        b = int16_codes(right, "b")
        if cnp.PyArray_NDIM(right) != 2:
            raise ValueError(f"b must have shape (K, N) where a or b is int16, got {(<object>right).shape}")
    cdef Py_ssize_t k = <Py_ssize_t>packed.c.k if right is None else cnp.PyArray_DIM(right, 0)
    cdef Py_ssize_t n = <Py_ssize_t>packed.c.n if right is None else cnp.PyArray_DIM(right, 1)
    rows = rows_of(rows, k, "a", "b", &source)
    cdef cnp.ndarray c = product_out(out, left, n, INT64 if wide else INT32)
    if out is not None:
        refuse_overlap(c, left, "a")
        if packed is None:
            refuse_overlap(c, right, "b")
    if not (type(a_zero_point) is int and a_zero_point == 0):
        az = zero_points(a_zero_point, left, (<object>left).shape[:-1], "a_zero_point")
        source.zero_point, source.zero_point_per_row = int32s(az), cnp.PyArray_NDIM(az) > 0
        if out is not None:
            refuse_overlap(c, array_of(a_zero_point, "a_zero_point"), "a_zero_point")
    bz = None
    if not (type(b_zero_point) is int and b_zero_point == 0):
        like = np.empty(0, packed.dtype) if right is None else right
        bz = np.broadcast_to(zero_points(b_zero_point, like, (n,), "b_zero_point"), (n,))
    if packed is None:
        packed = Packed(b if wide else right, None)
    if bz is not None:
        bz = packed.padded(bz, np.int32)
    epilogue.type, epilogue.b_zero, epilogue.out = QK_TO_INT32, int32s(bz), data_of(c)
    epilogue.row_stride = <size_t>(n * cnp.PyArray_ITEMSIZE(c))
    multiply(&source, packed, &epilogue, a)
    return c if out is None else out


cdef cnp.ndarray int16_codes(codes, name):
    """Return codes of at most 16 bits as int16 in native byte order."""
    if codes.dtype.newbyteorder("=") not in (np.int16, np.int8, np.uint8):
        raise TypeError(f"{name} must be int16, int8 or uint8 where the other is int16, got {codes.dtype}")
    return codes if codes.dtype == np.int16 else copied(codes, np.int16)


cdef int refuse_overflow(Packed b, int64_t largest, int64_t bias) except -1:
    if b.c.bound * largest + bias > 0x7FFFFFFF:
        raise ValueError(f"packed: int32 could overflow: the largest column sum of |b - zero_point| is {b.c.bound}, "
                         f"|a - zero_point| can be {largest} and |bias| {bias}: {b.c.bound * largest + bias} exceeds "
                         "2**31 - 1")
    return 0


cdef float_bias(Packed b, cnp.ndarray bias):
    """Return bias (n,) as float32 padded to whole panels."""
    cdef object given = bias
    if PyArray_TYPE(bias) == cnp.NPY_FLOAT32 and cnp.PyArray_NDIM(bias) == 1 \
            and <size_t>cnp.PyArray_DIM(bias, 0) == b.c.n == b.c.n_pad and PyArray_ISCARRAY_RO(bias):
        return bias
    if given.dtype.newbyteorder("=") not in FLOATS:
        raise TypeError(f"bias must be a float array, got {given.dtype}")
    if given.shape != (b.c.n,):
        raise ValueError(f"bias must have shape {(b.c.n,)}, got {given.shape}")
    if given.dtype == FLOAT32:
        return b.padded(given, FLOAT32)
    with np.errstate(all="ignore"):   # float64 may be beyond float32
        return b.padded(given, FLOAT32)


cdef double bound(value) except? -1:
    """Return a bound as a double, that of an array without what the conversion would warn of (axes, gradients)."""
    if not isinstance(value, (float, int, np.generic)) and hasattr(value, "__array__"):
        value = as_array(value, "clamp")
        if value.ndim:
            raise TypeError
    return <double>value


def clamp_bounds(clamp):
    """Return (lo, hi) as floats; None, for either, is no bound."""
    try:
        lo, hi = clamp
        lo, hi = -INFINITY if lo is None else bound(lo), INFINITY if hi is None else bound(hi)
    except MemoryError:
        raise
    except Exception as error:   # whatever the methods of its entries raise
        kind = ValueError if isinstance(error, OverflowError) else TypeError
        raise kind(f"clamp must be None or a pair of floats (lo, hi), got {shown(clamp)}") from None
    if not lo <= hi:
        raise ValueError(f"clamp must have lo <= hi, got {shown(clamp)}")
    return lo, hi


def clamp_codes(clamp, Params to, bint even):
    """Return the codes of real bounds: rounding is monotonic, so they clamp codes as the bounds clamp values."""
    cdef qk_scope _mode = qk_enter_scope()
    lo, hi = clamp_bounds(clamp)
    cdef float[2] bounds
    cdef uint8_t[2] codes
    cdef qk_params p = to.c
    bounds[0], bounds[1], p.length = <float><double>lo, <float><double>hi, 2
    qk_quantize(bounds, QK_F32, codes, to.storage, &p, QK_HALF_EVEN if even else QK_HALF_AWAY)
    if to.storage == QK_I8:
        return <int8_t>codes[0], <int8_t>codes[1]
    return codes[0], codes[1]


cdef cnp.ndarray residual_of(residual, cnp.ndarray y, bint is_out):
    """Return residual as contiguous float32 of the shape of y, which it may be itself if y is `out`."""
    cdef cnp.ndarray r = float32_array(residual, "residual")
    if not cnp.PyArray_SAMESHAPE(r, y):
        raise ValueError(f"residual must have shape {(<object>y).shape} (as the result), got {(<object>r).shape}")
    cdef bint is_y = PyArray_ISCARRAY_RO(r) and data_of(r) == data_of(y)
    if is_out and not is_y and np.may_share_memory(y, r):
        raise ValueError("out must be residual itself or not overlap it")
    return contiguous(r)


cdef int describe_source(qk_rows *source, cnp.ndarray q, name, Params of) except -1:
    """Fill what is known of codes by their type and parameters, which must outlive `source`."""
    source.type = <qk_rows_type>codes_type(q, name)
    source.zero_point, source.scale = &of.one_zero_point, of.one_scale
    return 0


cdef int64_t largest_code(Params of) noexcept:
    """Return the largest magnitude of codes less their zero point."""
    cdef int64_t lo = 0 if of.c.qmin >= 0 else -128, hi = 255 if of.c.qmin >= 0 else 127
    return max(of.one_zero_point - lo, hi - of.one_zero_point)


def linear(cnp.ndarray x, Packed b, bias, activation, residual, clamp, params, out):
    """Multiply float32 x (..., k), or codes of params, which are per tensor."""
    cdef qk_scope _mode = qk_enter_scope()
    cdef qk_rows source
    cdef qk_epilogue epilogue
    memset(&source, 0, sizeof(source))
    memset(&epilogue, 0, sizeof(epilogue))
    epilogue.activation = <qk_activation>activation_code(activation)
    if clamp is not None:
        epilogue.bounded = True
        epilogue.lo, epilogue.hi = clamp_bounds(clamp)
    cdef cnp.ndarray _rows = rows_of(x, <Py_ssize_t>b.c.k, "x", "packed", &source)
    if bias is not None:
        bias = array_of(bias, "bias")
    cdef cnp.ndarray columns = None if bias is None else float_bias(b, bias)
    cdef cnp.ndarray y = product_out(out, x, <Py_ssize_t>b.c.n, FLOAT32)
    if out is not None:
        refuse_overlap(y, x, "x")
        if bias is not None:
            refuse_overlap(y, bias, "bias")
    epilogue.type, epilogue.out, epilogue.float_bias = QK_TO_FLOAT, data_of(y), floats(columns)
    epilogue.row_stride = epilogue.residual_stride = b.c.n * 4
    if residual is not None:
        residual = residual_of(residual, y, out is not None)
        epilogue.residual = floats(residual)
    if params is not None:
        describe_source(&source, x, "x", <Params?>params)
        refuse_overflow(b, largest_code(<Params>params), 0)
    elif b.c.family != QK_GEMM4:
        refuse_overflow(b, 255, 0)
    elif b.c.gemm4.block > qk_most_rows(&b.c.gemm4):
        raise ValueError(f"packed: int32 could overflow: a scale is shared by {b.c.gemm4.block} rows, at most "
                         f"{qk_most_rows(&b.c.gemm4)} are possible")
    if params is None:
        source.type = QK_FLOATS
        if (out is not None or b.c.n == 0) and not rows_are_finite(source.a, source.m, b.c.k, source.row_stride):
            raise_not_finite(x)
    epilogue.b_zero, epilogue.col_scale = b.c.zero_point, b.c.scale
    epilogue.least_scale, epilogue.most_scale = b.c.least_scale, b.c.most_scale
    multiply(&source, b, &epilogue, x)
    return y if out is None else out


cdef set_multipliers(qk_epilogue *epilogue, float a_scale, Packed b, float out_scale, real_bias):
    """Point `epilogue` to multipliers, scales and biases of sums, in arrays that are returned (numerics 8 and 21)."""
    cdef qk_unit_columns unit
    cdef float lo, hi
    memset(&unit, 0, sizeof(unit))
    unit.n, unit.a_scale, unit.out_scale, unit.b_scale = b.c.n, a_scale, out_scale, b.c.scale
    unit.real, unit.bias = epilogue.activation > QK_RELU, floats(real_bias)
    if real_bias is not None and not qk_minmax(unit.bias, unit.n, &lo, &hi):
        raise_not_finite(real_bias, "bias")
    cdef cnp.npy_intp[2] shape = [3, b.c.n_pad]
    cdef cnp.ndarray columns = cnp.PyArray_ZEROS(2, shape, cnp.NPY_FLOAT32, 0), wide = None
    cdef float *multiplier = floats(columns)
    cdef float *scale = multiplier + b.c.n_pad
    cdef float *bias = scale + b.c.n_pad
    epilogue.requant.multiplier, epilogue.col_scale, epilogue.float_bias = multiplier, scale, bias
    if not qk_unit_multipliers(&unit, multiplier, scale, bias):
        wide = np.zeros((2, b.c.n_pad))
        epilogue.wide_scale, epilogue.wide_bias = reals(wide), reals(wide) + b.c.n_pad
        qk_wide_columns(&unit, multiplier, reals(wide), reals(wide) + b.c.n_pad)
    return columns, wide


cdef int64_t largest_magnitude(cnp.ndarray x):
    """Return the largest magnitude of contiguous int32 values."""
    cdef const int32_t *values = int32s(x)
    cdef int32_t lo = 0, hi = 0
    cdef Py_ssize_t i
    for i in range(cnp.PyArray_SIZE(x)):  # two bounds, which compilers turn into vectors
        lo = min(lo, values[i])
        hi = max(hi, values[i])
    return max(-<int64_t>lo, <int64_t>hi)


cdef tuple describe_codes(qk_epilogue *epilogue, Params of, Params to, Packed b, biases, how):
    """Fill `epilogue` with what makes codes of the sums of b's columns, in arrays that are returned.

    `biases` is None, or an int32 or float32 array of b.c.n entries; `how` is activation, bounds, rounding.
    """
    activation, bounds, rounding = how
    cdef cnp.ndarray int_bias = None, real_bias = None
    if biases is not None and PyArray_TYPE(biases) == cnp.NPY_INT32:
        int_bias = biases
    else:
        real_bias = biases
    epilogue.type = QK_TO_CODES
    epilogue.activation = <qk_activation>activation_code(activation)
    epilogue.requant.rounding = <qk_rounding>rounding_code(rounding, QK_TFLITE)
    epilogue.requant.zero_point, epilogue.requant.qmin, epilogue.requant.qmax = to.one_zero_point, to.c.qmin, to.c.qmax
    if bounds is not None:
        epilogue.requant.qmin, epilogue.requant.qmax = bounds
    epilogue.out_scale = to.one_scale
    epilogue.b_zero = b.c.zero_point
    if epilogue.requant.rounding <= QK_HALF_AWAY:
        columns = set_multipliers(epilogue, of.one_scale, b, to.one_scale, real_bias)
    else:
        scale = b._kept.scale if isinstance(b._kept, Params) else b._columns()[0]
        mantissa, shift = multipliers_of_scales(of, scale, to)
        columns = b.padded(mantissa, INT32), b.padded(shift, INT32)
        epilogue.requant.mantissa, epilogue.requant.shift = int32s(columns[0]), int32s(columns[1])
    if int_bias is not None:
        int_bias = b.padded(int_bias, INT32)
    epilogue.int_bias = int32s(int_bias)
    return *columns, int_bias


cdef Layer new_layer(cnp.ndarray q, Params of, Params to, Packed b, biases, how, tuple options):
    """Return what makes codes of the sums of b's columns; `biases` and `how` are as describe_codes has them.

    keep_layer keeps it for the next call, if its bias and options are then those of the caller.
    """
    cdef Layer layer = Layer.__new__(Layer)
    cdef qk_rows source
    memset(&source, 0, sizeof(source))
    describe_source(&source, q, "q", of)
    layer.of, layer.to = of, to
    cdef bint is_int = biases is not None and PyArray_TYPE(biases) == cnp.NPY_INT32
    cdef int64_t code = largest_code(of), most = largest_magnitude(biases) if is_int else 0
    refuse_overflow(b, code, most)
    layer.columns = describe_codes(&layer.epilogue, of, to, b, biases, how)
    cdef cnp.npy_intp[2] shape = [2, b.c.n_pad]
    cdef cnp.ndarray prepared = cnp.PyArray_EMPTY(2, shape, cnp.NPY_INT32, 0)
    if qk_prepare(&source, &b.c, &layer.epilogue, b.c.bound * code, int32s(prepared)):
        layer.columns = (prepared,) if layer.epilogue.plain else (*layer.columns[:2], prepared)
        layer.options, layer.bias = options, None if biases is None else biases.copy()
    return layer


cdef multiply_codes(cnp.ndarray a, Packed b, Layer layer, bias, out):
    """Multiply codes a (..., k), the caller's q, and requantize the sums; `bias` is what the caller gave."""
    cdef qk_rows source
    cdef qk_epilogue epilogue = layer.epilogue
    memset(&source, 0, sizeof(source))
    describe_source(&source, a, "q", layer.of)
    cdef cnp.ndarray _rows = rows_of(a, <Py_ssize_t>b.c.k, "q", "packed", &source)
    cdef cnp.ndarray y = product_out(out, a, <Py_ssize_t>b.c.n, layer.to.dtype)
    if out is not None:
        refuse_overlap(y, a, "q")
        if bias is not None:
            refuse_overlap(y, bias, "bias")
    epilogue.out, epilogue.row_stride = data_of(y), b.c.n
    multiply(&source, b, &epilogue, a)
    return y if out is None else out


def qlinear_again(q, params, Packed b, out_params, bias, tuple options, out):
    """Return what qlinear does, if its last call with b had the same parameters, else None."""
    cdef qk_scope _mode = qk_enter_scope()
    cdef Layer layer = last_layer(b, params, out_params, bias, options)
    if layer is None or not is_plain(q, layer.of.dtype):
        return None
    return multiply_codes(q, b, layer, bias, out)


def qlinear(cnp.ndarray a, params, Packed b, out_params, bias, how, tuple options, out):
    """Multiply codes a (..., k), the caller's q, and requantize the sums; params and out_params are per tensor.

    `bias` is None, or a pair: int32 or float32 (contiguous, n entries), and what the caller gave. `how` is activation,
    bounds, which are the codes of a clamp or None, and rounding: what the caller's `options` mean.
    """
    cdef qk_scope _mode = qk_enter_scope()
    biases, given = (None, None) if bias is None else bias
    cdef Layer layer = new_layer(a, params_of(params), params_of(out_params), b, biases, how, options)
    keep_layer(b, layer)
    return multiply_codes(a, b, layer, given, out)
