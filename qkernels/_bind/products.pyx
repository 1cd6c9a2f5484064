# cython: language_level=3, cdivision=True, freethreading_compatible=True
"""Bind the products: rows that are read in place, `out`, zero points, biases, what becomes of sums."""

from libc.math cimport INFINITY
from libc.stddef cimport ptrdiff_t
from libc.stdint cimport int32_t, int64_t
from libc.string cimport memset

import numpy as np

cimport numpy as cnp
from cpython.ref cimport PyObject

from .arrays import FLOATS, as_array, raise_not_finite
from .runtime import shown

from .arrays cimport (
    activation_code, array_of, BRIEF_PRODUCT, contiguous, descr_of, FLOAT32, float32_array, INT32, INT64, out_array,
    PyArray_ISCARRAY, PyArray_ISCARRAY_RO, PyArray_TYPE, refuse_giant, refuse_overlap, rounding_code,
)
from .c cimport (
    qk_activation, qk_batch, QK_CODES_I8, QK_CODES_U8, qk_enter_scope, qk_epilogue, QK_FLOATS, qk_gemm16,
    qk_gemm16_weights, qk_gemm4_linear, qk_gemm4_weights, qk_gemm8, qk_gemm8_batch, qk_gemm8_weights,
    qk_gemmf16_linear, qk_gemmf16_weights, QK_HALF_AWAY, qk_minmax, QK_RELU, qk_rounding, qk_rows, qk_rows_type,
    qk_scope, QK_TFLITE, QK_TO_CODES, QK_TO_FLOAT, QK_TO_INT32, qk_unit_columns, qk_unit_multipliers, qk_wide_columns,
)
from .elementwise cimport multipliers_of_scales, Params, params_of, rows_are_finite
from .weights cimport need_eight_bits, Packed

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
        source.a = cnp.PyArray_DATA(a)
        return 1
    if ndim == 2 and (k <= 1 or cnp.PyArray_STRIDE(a, 1) == item) and a.flags.aligned and a.dtype.isnative:
        source.a = cnp.PyArray_DATA(a)
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
    if out is not None and cnp.PyArray_CheckExact(out) and PyArray_ISCARRAY(<cnp.ndarray>out) \
            and descr_of(<cnp.ndarray>out) == <PyObject *>dtype and cnp.PyArray_NDIM(<cnp.ndarray>out) == ndim \
            and cnp.PyArray_DIM(<cnp.ndarray>out, ndim - 1) == n:
        for i in range(ndim - 1):
            if cnp.PyArray_DIM(<cnp.ndarray>out, i) != cnp.PyArray_DIM(a, i):
                break
        else:
            return <cnp.ndarray>out
    return out_array(out, (<object>a).shape[:-1] + (n,), dtype)


cdef int run(qk_rows *source, qk_gemm8_weights *b, qk_epilogue *epilogue, object x) except -1:
    cdef int status
    if source.m * b.k_pad * b.n_pad <= BRIEF_PRODUCT:
        status = qk_gemm8(source, b, epilogue)
    else:
        with nogil:
            status = qk_gemm8(source, b, epilogue)
    return check_status(status, x)


cdef int run_gemm16(qk_rows *source, qk_gemm16_weights *b, qk_epilogue *epilogue, object x) except -1:
    cdef int status
    if source.m * b.k * b.n_pad <= BRIEF_PRODUCT:
        status = qk_gemm16(source, b, epilogue)
    else:
        with nogil:
            status = qk_gemm16(source, b, epilogue)
    return check_status(status, x)


cdef int linear_of(const qk_rows *source, const qk_gemm4_weights *gemm4, const qk_gemmf16_weights *gemmf16,
                   const qk_epilogue *epilogue) except -3 nogil:
    """Multiply rows of floats by the weights that are not NULL."""
    if gemmf16 != NULL:
        return qk_gemmf16_linear(<const float *>source.a, source.row_stride, source.m, gemmf16, epilogue)
    return qk_gemm4_linear(<const float *>source.a, source.row_stride, source.m, gemm4, epilogue)


cdef int run_floats(const qk_rows *source, Packed b, const qk_epilogue *epilogue, object x) except -1:
    cdef const qk_gemm4_weights *gemm4 = &b.gemm4 if b.is_gemm4 else NULL
    cdef const qk_gemmf16_weights *gemmf16 = &b.gemmf16 if b.is_gemmf16 else NULL
    cdef int status
    if source.m * <size_t>b.k * <size_t>b.n_pad <= BRIEF_PRODUCT:
        status = linear_of(source, gemm4, gemmf16, epilogue)
    else:
        with nogil:
            status = linear_of(source, gemm4, gemmf16, epilogue)
    return check_status(status, x)


cdef int check_status(int status, object x) except -1:
    """Raise what the status of a product says, whose left operand is x."""
    if status == -1:
        raise MemoryError("no memory for the packed rows of a")
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


cdef int codes_type(cnp.ndarray a, name, also="") except -1:
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
    p.source.m, p.source.a, p.source.row_stride = <size_t>m, cnp.PyArray_DATA(rows), cnp.PyArray_STRIDE(rows, na - 2)
    p.source.type = <qk_rows_type>codes_type(a, "a", "int16")
    fill_steps(rows, 2, 1, &p, p.a_step)
    if not (type(a_zero_point) is int and a_zero_point == 0):
        az = batch_zero_points(a_zero_point, a, (<object>a).shape[:-1], "a_zero_point")
        p.source.zero_point = <const int32_t *>cnp.PyArray_DATA(az)
        p.source.zero_point_per_row = cnp.PyArray_NDIM(az) > 0
        if p.source.zero_point_per_row:
            fill_steps(az, 1, 4, &p, p.a_zero_step)
    p.b, p.k, p.n = cnp.PyArray_DATA(b), <size_t>k, <size_t>n
    p.b_row_stride, p.b_col_stride = cnp.PyArray_STRIDE(b, nb - 2), cnp.PyArray_STRIDE(b, nb - 1)
    p.b_unsigned = PyArray_TYPE(b) == cnp.NPY_UINT8
    fill_steps(b, 2, 1, &p, p.b_step)
    if not (type(b_zero_point) is int and b_zero_point == 0):
        of_columns = (<object>b).shape[:-2] + (n,)
        bz = batch_zero_points(b_zero_point, b, of_columns, "b_zero_point")
        if cnp.PyArray_NDIM(bz) == 0:
            bz = np.full(n, bz, np.int32)
        p.b_zero = <const int32_t *>cnp.PyArray_DATA(bz)
        fill_steps(bz, 1, 4, &p, p.b_zero_step)
    p.out = <int32_t *>cnp.PyArray_DATA(c)
    cdef int status
    if cnp.PyArray_SIZE(c) <= BRIEF_PRODUCT // (k + 1):
        status = qk_gemm8_batch(&p)
    else:
        with nogil:
            status = qk_gemm8_batch(&p)
    check_status(status, a)
    return c if out is None else out


def matmul(a, b, a_zero_point, b_zero_point, out):
    cdef cnp.ndarray left_array = array_of(a, "a")
    cdef cnp.ndarray right_array
    cdef Packed packed
    cdef qk_rows source
    cdef qk_epilogue epilogue
    memset(&source, 0, sizeof(source))
    memset(&epilogue, 0, sizeof(epilogue))
    if not isinstance(b, Packed):
        b = array_of(b, "b")
    if PyArray_TYPE(left_array) == cnp.NPY_INT16 or is_int16(b):
        return matmul_gemm16(left_array, b, a_zero_point, b_zero_point, out)
    source.type = <qk_rows_type>codes_type(left_array, "a", "int16")
    if isinstance(b, Packed):
        packed = <Packed>b
        need_eight_bits(packed, "b")
    else:
        right_array = <cnp.ndarray>b
        codes_type(right_array, "b", "int16")
        if cnp.PyArray_NDIM(right_array) > 2:
            return matmul_batch(left_array, right_array, a_zero_point, b_zero_point, out)
        if cnp.PyArray_NDIM(right_array) < 2:
            raise ValueError(f"b must have shape (..., K, N), got {(<object>right_array).shape}")
        packed = None
    cdef Py_ssize_t k = packed.k if packed is not None else cnp.PyArray_DIM(right_array, 0)
    cdef Py_ssize_t n = packed.n if packed is not None else cnp.PyArray_DIM(right_array, 1)
    cdef cnp.ndarray _rows = rows_of(left_array, k, "a", "b", &source)
    cdef cnp.ndarray c = product_out(out, left_array, n, INT32)
    if out is not None:
        refuse_overlap(c, left_array, "a")
        if packed is None:
            refuse_overlap(c, right_array, "b")
    if not (type(a_zero_point) is int and a_zero_point == 0):
        az = zero_points(a_zero_point, left_array, (<object>left_array).shape[:-1], "a_zero_point")
        source.zero_point = <const int32_t *>cnp.PyArray_DATA(az)
        source.zero_point_per_row = cnp.PyArray_NDIM(az) > 0
        if out is not None:
            refuse_overlap(c, array_of(a_zero_point, "a_zero_point"), "a_zero_point")
    if not (type(b_zero_point) is int and b_zero_point == 0):
        like = right_array if packed is None else np.empty(0, np.uint8 if packed.c.flipped else np.int8)
        bz = np.broadcast_to(zero_points(b_zero_point, like, (n,), "b_zero_point"), (n,))
    else:
        bz = None
    if packed is None:
        packed = Packed(right_array, None)
    if bz is not None:
        bz = packed.padded(bz, np.int32)
        epilogue.b_zero = <const int32_t *>cnp.PyArray_DATA(bz)
    epilogue.type = QK_TO_INT32
    epilogue.out = cnp.PyArray_DATA(c)
    epilogue.row_stride = <size_t>n * 4
    run(&source, &packed.c, &epilogue, a)
    return c if out is None else out


cdef bint is_int16(b):
    if isinstance(b, Packed):
        return (<Packed>b).is_gemm16
    return isinstance(b, cnp.ndarray) and PyArray_TYPE(<cnp.ndarray>b) == cnp.NPY_INT16


cdef cnp.ndarray int16_codes(codes, name):
    """Return codes of at most 16 bits as int16 in native byte order."""
    if codes.dtype.newbyteorder("=") not in (np.int16, np.int8, np.uint8):
        raise TypeError(f"{name} must be int16, int8 or uint8 where the other is int16, got {codes.dtype}")
    return codes.astype(np.int16, copy=False)


cdef matmul_gemm16(cnp.ndarray a, b, a_zero_point, b_zero_point, out):
    """Multiply if a or b is int16."""
    cdef qk_rows source
    cdef Packed packed
    memset(&source, 0, sizeof(source))
    cdef cnp.ndarray codes = int16_codes(a, "a")
    if isinstance(b, Packed):
        if not (<Packed>b).is_gemm16:
            raise TypeError(f"b must be packed from int16 where a is int16, got a PackedMatrix of {b.dtype}")
        packed = <Packed>b
    else:
        wide = int16_codes(b, "b")
        if b.ndim != 2:
            raise ValueError(f"b must have shape (K, N) where a or b is int16, got {b.shape}")
        packed = None
    cdef Py_ssize_t k = packed.k if packed is not None else b.shape[0]
    cdef Py_ssize_t n = packed.n if packed is not None else b.shape[1]
    cdef cnp.ndarray _rows = rows_of(codes, k, "a", "b", &source)
    cdef cnp.ndarray c = product_out(out, a, n, INT64)
    cdef qk_epilogue epilogue
    memset(&epilogue, 0, sizeof(epilogue))
    if out is not None:
        refuse_overlap(c, a, "a")
        if packed is None:
            refuse_overlap(c, b, "b")
    if not (type(a_zero_point) is int and a_zero_point == 0):
        az = zero_points(a_zero_point, a, (<object>a).shape[:-1], "a_zero_point")
        if out is not None:
            refuse_overlap(c, array_of(a_zero_point, "a_zero_point"), "a_zero_point")
        source.zero_point = <const int32_t *>cnp.PyArray_DATA(az)
        source.zero_point_per_row = cnp.PyArray_NDIM(az) > 0
    if not (type(b_zero_point) is int and b_zero_point == 0):
        like = np.empty(0, np.int16) if packed is not None else b
        bz = np.broadcast_to(zero_points(b_zero_point, like, (n,), "b_zero_point"), (n,))
    else:
        bz = None
    if packed is None:
        packed = Packed(wide, None)
    if bz is not None:
        bz = packed.padded(bz, np.int32)
        epilogue.b_zero = <const int32_t *>cnp.PyArray_DATA(bz)
    epilogue.out = cnp.PyArray_DATA(c)
    epilogue.row_stride = <size_t>n * 8
    run_gemm16(&source, &packed.gemm16, &epilogue, a)
    return c if out is None else out


cdef int refuse_overflow(Packed b, int64_t largest, int64_t bias) except -1:
    if b.bound * largest + bias > 0x7FFFFFFF:
        raise ValueError(f"packed: int32 could overflow: the largest column sum of |b - zero_point| is {b.bound}, "
                         f"|a - zero_point| can be {largest} and |bias| {bias}: {b.bound * largest + bias} exceeds "
                         "2**31 - 1")
    return 0


cdef float_bias(Packed b, cnp.ndarray bias):
    """Return bias (n,) as float32 padded to whole panels."""
    cdef object given = bias
    if PyArray_TYPE(bias) == cnp.NPY_FLOAT32 and cnp.PyArray_NDIM(bias) == 1 \
            and cnp.PyArray_DIM(bias, 0) == b.n == b.n_pad and PyArray_ISCARRAY_RO(bias):
        return bias
    if given.dtype.newbyteorder("=") not in FLOATS:
        raise TypeError(f"bias must be a float array, got {given.dtype}")
    if given.shape != (b.n,):
        raise ValueError(f"bias must have shape {(b.n,)}, got {given.shape}")
    if given.dtype == FLOAT32:
        return b.padded(given, FLOAT32)
    with np.errstate(all="ignore"):   # float64 may be beyond float32
        return b.padded(given, FLOAT32)


cdef size_t most_rows(Packed b):
    """Return how many rows' sum int32 holds; with b of 8 bits, the sum of a's codes in two int16 (numerics 12)."""
    return 65536 if b.gemm4.bits == 8 else 0x7FFFFFFF // (127 * (128 if b.dtype == np.uint8 else 15))


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


cdef cnp.ndarray residual_of(residual, cnp.ndarray y, bint is_out):
    """Return residual as contiguous float32 of the shape of y, which it may be itself if y is `out`."""
    cdef cnp.ndarray r = float32_array(residual, "residual")
    if not cnp.PyArray_SAMESHAPE(r, y):
        raise ValueError(f"residual must have shape {(<object>y).shape} (as the result), got {(<object>r).shape}")
    cdef bint is_y = PyArray_ISCARRAY_RO(r) and cnp.PyArray_DATA(r) == cnp.PyArray_DATA(y)
    if is_out and not is_y and np.may_share_memory(y, r):
        raise ValueError("out must be residual itself or not overlap it")
    return contiguous(r)


def linear(cnp.ndarray x, Packed b, bias, activation, residual, clamp, out):
    """Multiply float32 x (..., k)."""
    cdef qk_scope _mode = qk_enter_scope()
    cdef qk_rows source
    cdef qk_epilogue epilogue
    memset(&source, 0, sizeof(source))
    memset(&epilogue, 0, sizeof(epilogue))
    epilogue.activation = <qk_activation>activation_code(activation)
    if clamp is not None:
        epilogue.bounded = True
        epilogue.lo, epilogue.hi = clamp_bounds(clamp)
    cdef cnp.ndarray _rows = rows_of(x, b.k, "x", "packed", &source)
    if bias is not None:
        bias = array_of(bias, "bias")
    cdef object bias_array = None if bias is None else float_bias(b, bias)
    cdef cnp.ndarray y = product_out(out, x, b.n, FLOAT32)
    if out is not None:
        refuse_overlap(y, x, "x")
        if bias is not None:
            refuse_overlap(y, bias, "bias")
    epilogue.out = cnp.PyArray_DATA(y)
    epilogue.row_stride = epilogue.residual_stride = <size_t>b.n * 4
    epilogue.float_bias = <const float *>cnp.PyArray_DATA(bias_array) if bias is not None else NULL
    if residual is not None:
        residual = residual_of(residual, y, out is not None)
        epilogue.residual = <const float *>cnp.PyArray_DATA(residual)
    if not b.is_gemm4:
        refuse_overflow(b, 255, 0)
    elif b.gemm4.block > most_rows(b):
        raise ValueError(f"packed: int32 could overflow: a scale is shared by {b.gemm4.block} rows, at most "
                         f"{most_rows(b)} are possible")
    if out is not None and not rows_are_finite(source.a, source.m, <size_t>b.k, source.row_stride):
        raise_not_finite(x)
    if b.is_gemm4 or b.is_gemmf16:
        run_floats(&source, b, &epilogue, x)
        return y if out is None else out
    source.type = QK_FLOATS
    epilogue.type = QK_TO_FLOAT
    epilogue.b_zero = <const int32_t *>cnp.PyArray_DATA(b.zero_point) if b.zero_point is not None else NULL
    epilogue.col_scale = <const float *>cnp.PyArray_DATA(b.scale)
    epilogue.least_scale, epilogue.most_scale = b.least_scale, b.most_scale
    if b.is_gemm16:
        run_gemm16(&source, &b.gemm16, &epilogue, x)
    else:
        run(&source, &b.c, &epilogue, x)
    return y if out is None else out


cdef set_multipliers(qk_epilogue *epilogue, float a_scale, Packed b, float out_scale, real_bias):
    """Point `epilogue` to multipliers, scales and biases of sums, in arrays that are returned (numerics 8 and 21)."""
    cdef qk_unit_columns unit
    cdef float lo, hi
    memset(&unit, 0, sizeof(unit))
    unit.n, unit.a_scale, unit.out_scale = <size_t>b.n, a_scale, out_scale
    unit.b_scale = <const float *>cnp.PyArray_DATA(b.scale)
    unit.real = epilogue.activation > QK_RELU
    if real_bias is not None:
        unit.bias = <const float *>cnp.PyArray_DATA(real_bias)
        if not qk_minmax(unit.bias, unit.n, &lo, &hi):
            raise_not_finite(real_bias, "bias")
    cdef cnp.ndarray columns = np.zeros((3, b.n_pad), np.float32), wide = None
    cdef float *multiplier = <float *>cnp.PyArray_DATA(columns)
    cdef bint all_serve = qk_unit_multipliers(&unit, multiplier, multiplier + b.n_pad, multiplier + 2 * b.n_pad)
    epilogue.requant.multiplier = multiplier
    epilogue.col_scale, epilogue.float_bias = multiplier + b.n_pad, multiplier + 2 * b.n_pad
    if not all_serve:
        wide = np.zeros((2, b.n_pad))
        epilogue.wide_scale = <const double *>cnp.PyArray_DATA(wide)
        epilogue.wide_bias = epilogue.wide_scale + b.n_pad
        qk_wide_columns(&unit, multiplier, <double *>epilogue.wide_scale, <double *>epilogue.wide_bias)
    return columns, wide


cdef int64_t largest_magnitude(cnp.ndarray x):
    """Return the largest magnitude of contiguous int32 values."""
    cdef const int32_t *values = <const int32_t *>cnp.PyArray_DATA(x)
    cdef int64_t largest = 0
    cdef Py_ssize_t i
    for i in range(cnp.PyArray_SIZE(x)):
        largest = max(largest, -<int64_t>values[i] if values[i] < 0 else values[i])
    return largest


def qlinear(cnp.ndarray a, params, Packed b, out_params, bias, activation, bounds, rounding, out):
    """Multiply codes a (..., k), the caller's q, and requantize the sums; params and out_params are per tensor.

    `bias` is None, or a pair: int32 or float32 (contiguous, n entries), and what the caller gave. `bounds` are the
    codes of a clamp, or None.
    """
    cdef qk_scope _mode = qk_enter_scope()
    cdef Params of = params_of(params), to = params_of(out_params)
    cdef qk_rows source
    cdef qk_epilogue epilogue
    memset(&source, 0, sizeof(source))
    memset(&epilogue, 0, sizeof(epilogue))
    source.type = <qk_rows_type>codes_type(a, "q")
    source.zero_point = &of.one_zero_point
    epilogue.type = QK_TO_CODES
    epilogue.activation = <qk_activation>activation_code(activation)
    epilogue.requant.rounding = <qk_rounding>rounding_code(rounding, QK_TFLITE)
    epilogue.requant.zero_point, epilogue.requant.qmin, epilogue.requant.qmax = to.one_zero_point, to.c.qmin, to.c.qmax
    if bounds is not None:
        epilogue.requant.qmin, epilogue.requant.qmax = bounds
    epilogue.out_scale = to.one_scale
    epilogue.b_zero = <const int32_t *>cnp.PyArray_DATA(b.zero_point) if b.zero_point is not None else NULL
    cdef cnp.ndarray _rows = rows_of(a, b.k, "q", "packed", &source)
    cdef cnp.ndarray y = product_out(out, a, b.n, to.dtype)
    if out is not None:
        refuse_overlap(y, a, "q")
        if bias is not None:
            refuse_overlap(y, bias[1], "bias")
    cdef cnp.ndarray int_bias = None, real_bias = None
    if bias is not None:
        if PyArray_TYPE(bias[0]) == cnp.NPY_INT32:
            int_bias = bias[0]
        else:
            real_bias = bias[0]
    cdef int64_t lo = 0 if of.c.qmin >= 0 else -128, hi = 255 if of.c.qmin >= 0 else 127
    cdef int64_t bias_size = 0 if int_bias is None else largest_magnitude(int_bias)
    refuse_overflow(b, max(of.one_zero_point - lo, hi - of.one_zero_point), bias_size)
    if epilogue.requant.rounding <= QK_HALF_AWAY:
        _columns = set_multipliers(&epilogue, of.one_scale, b, to.one_scale, real_bias)
    else:
        scale = b._kept.scale if isinstance(b._kept, Params) else b._columns()[0]
        mantissa, shift = multipliers_of_scales(of, scale, to)
        mantissa, shift = b.padded(mantissa, np.int32), b.padded(shift, np.int32)
        epilogue.requant.mantissa = <const int32_t *>cnp.PyArray_DATA(mantissa)
        epilogue.requant.shift = <const int32_t *>cnp.PyArray_DATA(shift)
    if int_bias is not None:
        int_bias = b.padded(int_bias, np.int32)
        epilogue.int_bias = <const int32_t *>cnp.PyArray_DATA(int_bias)
    epilogue.out = cnp.PyArray_DATA(y)
    epilogue.row_stride = <size_t>b.n
    run(&source, &b.c, &epilogue, a)
    return y if out is None else out
