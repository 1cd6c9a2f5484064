"""Where Python meets C: arrays are made contiguous, `out` is checked, the GIL is released, one C driver is called.

The public functions (quantize.py, gemm.py, rounding.py) hold the documentation; the checks that every call needs stand
here, since 64 floats should not wait for Python.
"""

# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, freethreading_compatible=True

from libc.string cimport memset

import os

import ml_dtypes
import numpy as np

cimport numpy as cnp
from cpython.ref cimport PyObject

cnp.import_array()

cdef extern from "numpy/arrayobject.h":
    int PyArray_ISCARRAY_RO(cnp.ndarray a)
    int PyArray_ISCARRAY(cnp.ndarray a)
    object PyArray_DESCR(cnp.ndarray a)
    int PyArray_TYPE(cnp.ndarray a)

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
cdef int BF16_NUM = BFLOAT16.num

FLOATS = (np.dtype(np.float32), np.dtype(np.float64), np.dtype(np.float16), BFLOAT16)
ROUNDINGS = {"half_even": QK_HALF_EVEN, "half_away": QK_HALF_AWAY, "gemmlowp": QK_GEMMLOWP, "tflite": QK_TFLITE}
ACTIVATIONS = {None: QK_IDENTITY, "relu": QK_RELU, "gelu": QK_GELU, "silu": QK_SILU}


# ---- instruction sets and threads ----


def available_isas():
    """Names of the instruction sets that are built and that this CPU has, best first."""
    return [name for name in ("avx512vnni", "avx2", "neon", "scalar") if qk_find(name.encode()) != NULL]


def get_isa():
    """Name of the instruction set in use."""
    return qk_name(qk_active()).decode()


def set_isa(str name):
    """Use the instruction set `name` from now on (for tests and comparisons)."""
    cdef const qk_kernels *k = qk_find(name.encode())
    if k == NULL:
        raise ValueError(f"instruction set {name!r} is not available here, only {', '.join(available_isas())}")
    qk_activate(k)


def set_num_threads(int n):
    qk_set_num_threads(n)


def get_num_threads():
    return qk_get_num_threads()


if os.environ.get("QKERNELS_ISA"):
    try:
        set_isa(os.environ["QKERNELS_ISA"])
    except ValueError as error:
        raise RuntimeError(f"QKERNELS_ISA: {error}") from None


# ---- arrays ----


cdef int float_type(cnp.ndarray x) except -1:
    """qk_dtype of a float array."""
    cdef int num = PyArray_TYPE(x)
    if num == cnp.NPY_FLOAT32: return QK_F32
    if num == cnp.NPY_FLOAT64: return QK_F64
    if num == cnp.NPY_FLOAT16: return QK_F16
    if num == BF16_NUM: return QK_BF16
    raise TypeError(f"x must be float32, float64, float16 or bfloat16, got {x.dtype}")


cdef cnp.ndarray contiguous(x):
    """x as an aligned C-contiguous array in native byte order: itself, or a copy."""
    if isinstance(x, np.ndarray) and PyArray_ISCARRAY_RO(<cnp.ndarray>x):
        return <cnp.ndarray>x
    x = np.asarray(x)
    if not x.dtype.isnative:
        x = x.astype(x.dtype.newbyteorder("="))
    return np.require(x, requirements="CA")


cdef bint overlap(cnp.ndarray a, cnp.ndarray b):
    """Whether two contiguous arrays share bytes."""
    cdef char *pa = <char *>cnp.PyArray_DATA(a)
    cdef char *pb = <char *>cnp.PyArray_DATA(b)
    return pa < pb + cnp.PyArray_NBYTES(b) and pb < pa + cnp.PyArray_NBYTES(a)


def check_out(out, tuple shape, dtype):
    """Raise unless `out` is a writeable, aligned, C-contiguous array of this shape and dtype."""
    if not isinstance(out, np.ndarray):
        raise TypeError(f"out must be an ndarray, got {type(out).__name__}")
    if out.dtype != dtype or not out.dtype.isnative:
        raise TypeError(f"out must have dtype {dtype}, got {out.dtype.str if not out.dtype.isnative else out.dtype}")
    if out.shape != shape:
        raise ValueError(f"out must have shape {shape}, got {out.shape}")
    if not out.flags.writeable:
        raise ValueError("out must be writeable, got a read-only array")
    if not (out.flags.c_contiguous and out.flags.aligned):
        raise ValueError(f"out must be C-contiguous and aligned, got strides {out.strides} for shape {out.shape}")


cdef cnp.ndarray result_array(out, cnp.ndarray like, dtype):
    """`out` checked, or a new array, with the shape of `like`."""
    if out is None:
        return np.empty((<object>like).shape, dtype)
    if not (isinstance(out, np.ndarray) and PyArray_ISCARRAY(<cnp.ndarray>out)
            and PyArray_DESCR(<cnp.ndarray>out) is dtype and cnp.PyArray_SAMESHAPE(<cnp.ndarray>out, like)):
        check_out(out, (<object>like).shape, dtype)
    return <cnp.ndarray>out


cdef refuse_overlap(cnp.ndarray out, cnp.ndarray x, name):
    if overlap(out, x):
        raise ValueError(f"out must not overlap {name}")


cdef int rounding_code(rounding, int most) except -1:
    if rounding == "half_even": return QK_HALF_EVEN
    code = ROUNDINGS.get(rounding) if isinstance(rounding, str) else None
    if code is None or code > most:
        names = ", ".join(repr(name) for name, value in ROUNDINGS.items() if value <= most)
        raise ValueError(f"rounding must be one of {names}, got {rounding!r}")
    return code


def check_activation(activation):
    try:
        return ACTIVATIONS[activation]
    except (KeyError, TypeError):
        raise ValueError(f"activation must be one of None, 'relu', 'gelu', 'silu', got {activation!r}") from None


def raise_not_finite(x, name="x"):
    """The ValueError that says how many values of x are NaN or infinite, and where the first is."""
    x = np.asarray(x)
    bad = ~np.isfinite(x)
    where = tuple(int(i[0]) for i in np.nonzero(np.atleast_1d(bad)))
    raise ValueError(f"{name} has {int(bad.sum())} NaN or infinite values, the first at {where}")


# ---- elementwise ----


cdef class Params:
    """What C reads of a QParams: set once by qparams.py."""

    cdef qk_params c
    cdef qk_dtype storage
    cdef readonly object dtype, scale, zero_point
    cdef int axis, ndim
    cdef object per_block_shape

    def __init__(self, scale, zero_point, dtype, int qmin, int qmax, axis, block_size):
        self.scale = np.ascontiguousarray(scale, np.float32)
        self.zero_point = np.ascontiguousarray(zero_point, np.int32)
        self.dtype = dtype
        cdef bint signed = qmin < 0
        if dtype.itemsize == 1:
            self.storage = QK_I8 if signed else QK_U8
        else:
            self.storage = QK_I16 if signed else QK_U16
        self.c.qmin, self.c.qmax = qmin, qmax
        self.c.scale = <const float *>cnp.PyArray_DATA(self.scale)
        self.c.zero_point = <const int32_t *>cnp.PyArray_DATA(self.zero_point)
        self.c.outer = self.c.length = self.c.inner = self.c.block = 1
        self.c.kind = QK_PER_TENSOR if axis is None else QK_PER_AXIS if block_size is None else QK_PER_BLOCK
        if axis is not None:
            self.axis = axis
        if block_size is not None:
            self.c.block = block_size

    cdef int lay_over(self, cnp.ndarray x, qk_params *p) except -1:
        """The C parameters for an array of the shape of x."""
        cdef int i, axis, ndim = cnp.PyArray_NDIM(x)
        p[0] = self.c
        if p.kind == QK_PER_TENSOR:
            p.length = <size_t>cnp.PyArray_SIZE(x)
            return 0
        axis = self.axis + ndim if self.axis < 0 else self.axis
        if not 0 <= axis < ndim:
            raise ValueError(f"axis {self.axis} is out of range for x with shape {(<object>x).shape}")
        for i in range(axis):
            p.outer *= <size_t>cnp.PyArray_DIM(x, i)
        p.length = <size_t>cnp.PyArray_DIM(x, axis)
        for i in range(axis + 1, ndim):
            p.inner *= <size_t>cnp.PyArray_DIM(x, i)
        expected = list((<object>x).shape)
        if p.kind == QK_PER_AXIS:
            expected = [expected[axis]]
            what = f"axis {self.axis}"
        else:
            expected[axis] = (expected[axis] + p.block - 1) // p.block
            what = f"blocks of {p.block} along axis {self.axis}"
        if self.scale.shape != tuple(expected):
            raise ValueError(f"scale must have shape {tuple(expected)} to match {what} of x with shape "
                             f"{(<object>x).shape}, got {self.scale.shape}")
        return 0


def quantize(x, Params params, rounding, out):
    cdef cnp.ndarray a = contiguous(x)
    cdef qk_dtype from_ = <qk_dtype>float_type(a)
    cdef qk_rounding how = <qk_rounding>rounding_code(rounding, QK_HALF_AWAY)
    cdef qk_params p
    params.lay_over(a, &p)
    cdef cnp.ndarray q = result_array(out, a, params.dtype)
    if out is not None:
        refuse_overlap(q, a, "x")
    cdef void *source = cnp.PyArray_DATA(a)
    cdef void *to = cnp.PyArray_DATA(q)
    with nogil:
        qk_quantize(source, from_, to, params.storage, &p, how)
    return q


def dequantize(q, Params params, dtype, out):
    cdef cnp.ndarray a = contiguous(q)
    cdef qk_dtype from_ = params.storage
    if PyArray_TYPE(a) == cnp.NPY_INT32:
        from_ = QK_I32
    elif PyArray_DESCR(a) is not params.dtype and a.dtype != params.dtype:
        raise TypeError(f"q must have dtype {params.dtype} (as params) or int32, got {a.dtype}")
    dtype = np.dtype(dtype)
    if dtype not in FLOATS:
        raise TypeError(f"dtype must be float32, float64, float16 or bfloat16, got {dtype}")
    cdef qk_params p
    params.lay_over(a, &p)
    cdef cnp.ndarray y = result_array(out, a, dtype)
    cdef qk_dtype to_type = <qk_dtype>float_type(y)
    if out is not None:
        refuse_overlap(y, a, "q")
    cdef void *source = cnp.PyArray_DATA(a)
    cdef void *to = cnp.PyArray_DATA(y)
    with nogil:
        qk_dequantize(source, from_, to, to_type, &p)
    return y


def fake_quantize(x, Params params, out):
    cdef cnp.ndarray a = contiguous(x)
    cdef qk_dtype type = <qk_dtype>float_type(a)
    cdef qk_params p
    params.lay_over(a, &p)
    cdef cnp.ndarray y = result_array(out, a, PyArray_DESCR(a))
    cdef void *source = cnp.PyArray_DATA(a)
    cdef void *to = cnp.PyArray_DATA(y)
    if out is not None and source != to:
        refuse_overlap(y, a, "x")
    with nogil:
        qk_fake_quantize(source, to, type, &p)
    return y


def minmax(cnp.ndarray x):
    """Bounds of a contiguous float32 array and 0, or None where a value is not finite."""
    cdef float lo, hi
    cdef int finite
    cdef const float *data = <const float *>cnp.PyArray_DATA(x)
    cdef size_t n = <size_t>cnp.PyArray_SIZE(x)
    with nogil:
        finite = qk_minmax(data, n, &lo, &hi)
    return (lo, hi) if finite else None


def quantize_rows(cnp.ndarray x, size_t rows, cnp.ndarray q, int qmin, int qmax, bint symmetric):
    """Contiguous float32 x seen as rows, each quantized by its own scale: (scale, zero_point)."""
    scale, zero_point = np.empty(rows, np.float32), np.empty(rows, np.int32)
    cdef float *s = <float *>cnp.PyArray_DATA(scale)
    cdef int32_t *z = <int32_t *>cnp.PyArray_DATA(zero_point)
    cdef const float *data = <const float *>cnp.PyArray_DATA(x)
    cdef void *to = cnp.PyArray_DATA(q)
    cdef size_t cols = <size_t>cnp.PyArray_SIZE(x) // rows if rows else 0
    cdef qk_dtype type = (QK_I8 if qmin < 0 else QK_U8) if cnp.PyArray_ITEMSIZE(q) == 1 else (QK_I16 if qmin < 0 else QK_U16)
    cdef int finite
    with nogil:
        finite = qk_quantize_rows(data, rows, cols, to, type, qmin, qmax, symmetric, s, z)
    if not finite:
        raise_not_finite(x)
    return scale, zero_point


# ---- requantize ----


def quantize_multiplier(double m):
    cdef int32_t mantissa, shift
    qk_quantize_multiplier(m, &mantissa, &shift)
    return mantissa, shift


def requantize(cnp.ndarray acc, cnp.ndarray bias, cnp.ndarray q, int zero_point, int qmin, int qmax, rounding,
               cnp.ndarray multiplier, cnp.ndarray mantissa, cnp.ndarray shift):
    """Contiguous int32 acc (rows, n); bias and the multipliers have n entries."""
    cdef qk_requant r
    memset(&r, 0, sizeof r)
    r.rounding = <qk_rounding>rounding_code(rounding, QK_TFLITE)
    r.zero_point, r.qmin, r.qmax = zero_point, qmin, qmax
    if r.rounding <= QK_HALF_AWAY:
        r.multiplier = <const float *>cnp.PyArray_DATA(multiplier)
    else:
        r.mantissa = <const int32_t *>cnp.PyArray_DATA(mantissa)
        r.shift = <const int32_t *>cnp.PyArray_DATA(shift)
    cdef size_t cols = <size_t>cnp.PyArray_SIZE(bias)
    cdef size_t rows = <size_t>cnp.PyArray_SIZE(acc) // cols if cols else 0
    cdef const int32_t *source = <const int32_t *>cnp.PyArray_DATA(acc)
    cdef const int32_t *b = <const int32_t *>cnp.PyArray_DATA(bias)
    cdef void *to = cnp.PyArray_DATA(q)
    cdef qk_dtype type = QK_U8 if cnp.PyArray_ITEMSIZE(q) == 1 else QK_U16
    with nogil:
        qk_requantize(source, b, to, type, rows, cols, &r)


# ---- products ----


cdef class Packed:
    """Weights in panels: the C side of PackedMatrix."""

    cdef qk_packed c
    cdef readonly object panels, colsum, scale, zero_point, zeros
    cdef readonly int64_t bound      # max over columns of sum |b - zero_point|
    cdef readonly Py_ssize_t k, n, n_pad
    cdef bint has_zero_point

    cdef pack(self, cnp.ndarray b, scale, zero_point):
        """b (k, n) int8 or uint8 of any strides; scale and zero_point of its columns (or None)."""
        self.k, self.n = cnp.PyArray_DIM(b, 0), cnp.PyArray_DIM(b, 1)
        qk_packed_init(&self.c, qk_active(), <size_t>self.k, <size_t>self.n, PyArray_TYPE(b) == cnp.NPY_UINT8)
        self.n_pad = <Py_ssize_t>self.c.n_pad
        size = self.c.k_pad * self.c.n_pad
        buffer = np.empty(size + 63, np.uint8)
        start = -<Py_ssize_t>cnp.PyArray_DATA(buffer) % 64
        self.panels = buffer[start : start + size]
        self.colsum = np.empty(self.n_pad, np.int32)
        self.c.panels = <int8_t *>cnp.PyArray_DATA(self.panels)
        self.c.colsum = <int32_t *>cnp.PyArray_DATA(self.colsum)
        cdef const int32_t *zero = NULL
        if zero_point is not None:
            self.scale = self.padded(scale, np.float32)
            self.zero_point = self.padded(zero_point, np.int32)
            self.zeros = np.zeros(self.n_pad, np.float32)
            self.has_zero_point = bool(np.any(self.zero_point))
            zero = <const int32_t *>cnp.PyArray_DATA(self.zero_point)
        cdef const void *data = cnp.PyArray_DATA(b)
        cdef ptrdiff_t row_stride = cnp.PyArray_STRIDE(b, 0), col_stride = cnp.PyArray_STRIDE(b, 1)
        with nogil:
            self.bound = qk_pack(&self.c, data, row_stride, col_stride, zero)

    cdef padded(self, values, dtype):
        """One entry a column, and zeros up to whole panels."""
        result = np.zeros(self.n_pad, dtype)
        result[: self.n] = values
        return result

    def unpack_codes(self):
        """The codes (k, n) as they were packed."""
        codes = np.empty((self.k, self.n), np.uint8 if self.c.flipped else np.int8)
        cdef void *to = cnp.PyArray_DATA(codes)
        with nogil:
            qk_unpack(&self.c, to)
        return codes


def pack(Packed packed, b, scale, zero_point):
    packed.pack(b, scale, zero_point)


cdef class Rows:
    """A left operand as rows of unit stride: the array (to keep it alive) and its description."""

    cdef cnp.ndarray array
    cdef tuple shape
    cdef qk_left c


cdef int describe_rows(cnp.ndarray a, Py_ssize_t k, object name, qk_left *left) except -1:
    """Fills m and row_stride where a (..., k) can be read in place; returns 0 where it must be copied."""
    cdef int ndim = cnp.PyArray_NDIM(a)
    if ndim == 0 or cnp.PyArray_DIM(a, ndim - 1) != k:
        raise ValueError(f"{name} must have {k} columns to match b, got shape {(<object>a).shape}")
    cdef Py_ssize_t item = cnp.PyArray_ITEMSIZE(a)
    left.m = <size_t>(cnp.PyArray_SIZE(a) // k) if k else <size_t>int(np.prod((<object>a).shape[:-1]))
    left.row_stride = k * item
    if PyArray_ISCARRAY_RO(a):
        left.a = cnp.PyArray_DATA(a)
        return 1
    if ndim == 2 and (k <= 1 or cnp.PyArray_STRIDE(a, 1) == item) and a.flags.aligned and a.dtype.isnative:
        left.a = cnp.PyArray_DATA(a)
        left.row_stride = cnp.PyArray_STRIDE(a, 0)
        return left.row_stride % item == 0
    return 0


cdef cnp.ndarray rows_of(cnp.ndarray a, Py_ssize_t k, object name, qk_left *left):
    """a, or a contiguous copy of it, described in `left`."""
    if not describe_rows(a, k, name, left):
        a = contiguous(a)
        describe_rows(a, k, name, left)
    return a


cdef cnp.ndarray product_out(out, cnp.ndarray a, Py_ssize_t n, object dtype):
    """`out` checked, or a new array, of shape a.shape[:-1] + (n,)."""
    cdef int ndim = cnp.PyArray_NDIM(a), i
    if out is not None and isinstance(out, np.ndarray) and PyArray_ISCARRAY(<cnp.ndarray>out) \
            and PyArray_DESCR(<cnp.ndarray>out) is dtype and cnp.PyArray_NDIM(<cnp.ndarray>out) == ndim \
            and cnp.PyArray_DIM(<cnp.ndarray>out, ndim - 1) == n:
        for i in range(ndim - 1):
            if cnp.PyArray_DIM(<cnp.ndarray>out, i) != cnp.PyArray_DIM(a, i):
                break
        else:
            return <cnp.ndarray>out
    shape = (<object>a).shape[:-1] + (n,)
    if out is None:
        return np.empty(shape, dtype)
    check_out(out, shape, dtype)
    return <cnp.ndarray>out


cdef int check_no_overlap(out, cnp.ndarray a, name) except -1:
    if out is not None and (overlap(<cnp.ndarray>out, a) if PyArray_ISCARRAY_RO(a) else np.may_share_memory(out, a)):
        raise ValueError(f"out must not overlap {name}")
    return 0


cdef int run(qk_left *left, qk_packed *b, qk_right *right, object x) except -1:
    cdef int status
    with nogil:
        status = qk_gemm(left, b, right)
    if status == -1:
        raise MemoryError("no memory for the packed rows of a")
    if status == -2:
        raise_not_finite(x)
    return 0


INT32 = np.dtype(np.int32)
FLOAT32 = np.dtype(np.float32)


cdef zero_points(value, cnp.ndarray codes, tuple shape, name):
    """A zero point, or an array of them with `shape`, as contiguous int32 within the range of the codes."""
    given = np.asarray(value)
    if given.dtype.kind not in "iu":
        raise TypeError(f"{name} must be an integer or an array of integers, got {value!r}")
    if given.ndim and given.shape != shape:
        raise ValueError(f"{name} must be a scalar or have shape {shape}, got {given.shape}")
    info = np.iinfo(codes.dtype)
    if given.size and (given.min() < info.min or given.max() > info.max):
        raise ValueError(f"{name} must be within [{info.min}, {info.max}] for {codes.dtype}, got {value!r}")
    return np.ascontiguousarray(given, np.int32)


cdef int codes_type(cnp.ndarray a, name) except -1:
    cdef int num = PyArray_TYPE(a)
    if num == cnp.NPY_UINT8: return QK_CODES_U8
    if num == cnp.NPY_INT8: return QK_CODES_I8
    raise TypeError(f"{name} must be uint8 or int8, got {a.dtype}")


def matmul(a, b, a_zero_point, b_zero_point, out):
    cdef cnp.ndarray left_array = a if isinstance(a, np.ndarray) else np.asarray(a)
    cdef cnp.ndarray right_array
    cdef Packed packed
    cdef qk_left left
    cdef qk_right right
    memset(&left, 0, sizeof left)
    memset(&right, 0, sizeof right)
    left.type = <qk_left_type>codes_type(left_array, "a")
    if isinstance(b, Packed):
        packed = <Packed>b
    else:
        right_array = b if isinstance(b, np.ndarray) else np.asarray(b)
        codes_type(right_array, "b")
        if right_array.ndim != 2:
            raise ValueError(f"b must have shape (K, N), got {(<object>right_array).shape}")
        packed = None
    cdef Py_ssize_t k = packed.k if packed is not None else cnp.PyArray_DIM(right_array, 0)
    cdef Py_ssize_t n = packed.n if packed is not None else cnp.PyArray_DIM(right_array, 1)
    cdef cnp.ndarray rows = rows_of(left_array, k, "a", &left)
    cdef cnp.ndarray c = product_out(out, left_array, n, INT32)
    if out is not None:
        check_no_overlap(out, left_array, "a")
        if packed is None:
            check_no_overlap(out, right_array, "b")
    if not (type(a_zero_point) is int and a_zero_point == 0):
        az = zero_points(a_zero_point, left_array, (<object>left_array).shape[:-1], "a_zero_point")
        left.zero_point = <const int32_t *>cnp.PyArray_DATA(az)
        left.zero_point_per_row = cnp.PyArray_NDIM(az) > 0
    if not (type(b_zero_point) is int and b_zero_point == 0):
        like = right_array if packed is None else np.empty(0, np.uint8 if packed.c.flipped else np.int8)
        bz = np.broadcast_to(zero_points(b_zero_point, like, (n,), "b_zero_point"), (n,))
    else:
        bz = None
    if packed is None:
        packed = Packed()
        packed.pack(right_array, None, None)
    if bz is not None:
        bz = packed.padded(bz, np.int32)
        right.b_zero = <const int32_t *>cnp.PyArray_DATA(bz)
    right.type = QK_TO_INT32
    right.out = cnp.PyArray_DATA(c)
    right.row_stride = <size_t>n * 4
    run(&left, &packed.c, &right, a)
    return c


cdef int refuse_overflow(Packed b, int64_t largest) except -1:
    if b.bound * largest > 0x7FFFFFFF:
        raise ValueError(f"int32 could overflow: the largest column sum of |b - zero_point| is {b.bound}, and |a - zero_point| "
                         f"can be {largest}; their product exceeds 2**31 - 1")
    return 0


cdef float_bias(Packed b, bias):
    """bias (n,) as float32 padded to whole panels."""
    given = np.asarray(bias)
    if given.dtype not in FLOATS:
        raise TypeError(f"bias must be a float array, got {given.dtype}")
    if given.shape != (b.n,):
        raise ValueError(f"bias must have shape {(b.n,)}, got {given.shape}")
    if b.n == b.n_pad and given.dtype == FLOAT32 and PyArray_ISCARRAY_RO(given):
        return given
    return b.padded(given, np.float32)


def linear(cnp.ndarray x, Packed b, bias, activation, out):
    """float32 x (..., k)."""
    cdef qk_left left
    cdef qk_right right
    memset(&left, 0, sizeof left)
    memset(&right, 0, sizeof right)
    right.activation = <qk_activation>check_activation(activation)
    cdef cnp.ndarray rows = rows_of(x, b.k, "x", &left)
    cdef object bias_array = b.zeros if bias is None else float_bias(b, bias)
    cdef cnp.ndarray y = product_out(out, x, b.n, FLOAT32)
    if out is not None:
        check_no_overlap(out, x, "x")
        if bias is not None:
            check_no_overlap(out, bias_array, "bias")
    refuse_overflow(b, 255)
    left.type = QK_FLOATS
    right.type = QK_TO_FLOAT
    right.out = cnp.PyArray_DATA(y)
    right.row_stride = <size_t>b.n * 4
    right.b_zero = <const int32_t *>cnp.PyArray_DATA(b.zero_point) if b.has_zero_point else NULL
    right.col_scale = <const float *>cnp.PyArray_DATA(b.scale)
    right.float_bias = <const float *>cnp.PyArray_DATA(bias_array)
    run(&left, &b.c, &right, x)
    return y


def qlinear(cnp.ndarray q, int zero_point, int64_t largest, Packed b, cnp.ndarray out, int out_zero_point, float out_scale,
            int qmin, int qmax, rounding, activation, multiplier, real_scale, mantissa, shift, int_bias, real_bias):
    """q (..., k) codes; column arrays have n entries. `out` is a checked array."""
    cdef qk_left left
    cdef qk_right right
    memset(&left, 0, sizeof left)
    memset(&right, 0, sizeof right)
    refuse_overflow(b, largest)
    cdef cnp.ndarray rows = rows_of(q, b.k, "q", &left)
    cdef int32_t zero = zero_point
    left.type = <qk_left_type>codes_type(q, "q")
    left.zero_point = &zero
    right.type = QK_TO_CODES
    right.out = cnp.PyArray_DATA(out)
    right.row_stride = <size_t>b.n
    right.b_zero = <const int32_t *>cnp.PyArray_DATA(b.zero_point) if b.has_zero_point else NULL
    right.activation = <qk_activation>check_activation(activation)
    right.requant.rounding = <qk_rounding>rounding_code(rounding, QK_TFLITE)
    right.requant.zero_point, right.requant.qmin, right.requant.qmax = out_zero_point, qmin, qmax
    right.out_scale = out_scale
    multiplier, real_scale = b.padded(multiplier, np.float32), b.padded(real_scale, np.float32)
    right.requant.multiplier = <const float *>cnp.PyArray_DATA(multiplier)
    right.col_scale = <const float *>cnp.PyArray_DATA(real_scale)
    if mantissa is not None:
        mantissa, shift = b.padded(mantissa, np.int32), b.padded(shift, np.int32)
        right.requant.mantissa = <const int32_t *>cnp.PyArray_DATA(mantissa)
        right.requant.shift = <const int32_t *>cnp.PyArray_DATA(shift)
    if int_bias is not None:
        int_bias = b.padded(int_bias, np.int32)
        right.int_bias = <const int32_t *>cnp.PyArray_DATA(int_bias)
    real_bias = b.zeros if real_bias is None else b.padded(real_bias, np.float32)
    right.float_bias = <const float *>cnp.PyArray_DATA(real_bias)
    run(&left, &b.c, &right, q)
