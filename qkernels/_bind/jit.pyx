# cython: language_level=3, cdivision=True, freethreading_compatible=True
"""Give compiled Python (qkernels/numba.py) its functions, which need no GIL: `ADDRESSES` has them by name.

A function does what is usual. Whatever else there is, and every error, is left to the public function of its name,
which is called with the same arguments as arrays: what it raises comes through.
"""

from libc.float cimport FLT_MAX
from libc.math cimport INFINITY
from libc.stdint cimport int32_t, int64_t, uint64_t, uint8_t, uintptr_t
from libc.stdlib cimport free, malloc
from libc.string cimport memset

from copy import copy
from threading import get_ident

import numpy as np

cimport cython
cimport numpy as cnp

from .c cimport (
    qk_activation, qk_batch, QK_CODES_I8, QK_CODES_U8, qk_decode, qk_dequantize, qk_dtype, qk_encode, qk_enter_scope,
    QK_F32, QK_F64, QK_GEMM16, QK_GEMM8, qk_gemm8_batch, QK_GEMMLOWP, QK_I16, QK_I32, QK_I8, qk_largest_code, qk_minmax,
    qk_params, QK_PER_AXIS, QK_PER_TENSOR, qk_quantize, qk_quantize_multiplier, qk_requant, qk_requantize, qk_rounding,
    qk_scope, qk_set_alone, QK_U8, qk_weights,
)
from .codebooks cimport Levels
from .elementwise cimport Params
from .weights cimport Packed

cnp.import_array()

cdef extern from "include/qkernels.h" nogil:
    ctypedef struct qk_layer:
        const float *bias
        const float *residual
        qk_activation activation
        int bounded
        float lo, hi

    int qk_linear(const qk_weights *weights, const float *x, size_t rows, const qk_layer *layer, float *y) except -3
    int qk_matmul(const qk_weights *weights, const void *a, qk_dtype type, size_t rows, const int32_t *a_zero_point,
                  const int32_t *b_zero_point, void *out) except -3

cdef extern from *:
    """
    typedef struct { /* of compiled code: a C-contiguous array, or a number; NULL is None */
        void *data;
        Py_ssize_t num, itemsize, ndim; /* the first is NumPy's of its type */
        Py_ssize_t shape[1];            /* as many as ndim */
    } qk_view;

    static int (*in_region)(void);

    /* Threads that Python does not know are those of parallel loops. */
    static int in_parallel_loop(void)
    {
        return !PyGILState_GetThisThreadState() || (in_region && in_region());
    }

    #define pending() ((void)0) /* after which Cython looks for what is raised */
    #define ndim_of(a) PyArray_NDIM((PyArrayObject *)(a))
    #define dim_of(a, i) PyArray_DIM((PyArrayObject *)(a), i)
    """
    ctypedef struct View "qk_view":
        void *data
        Py_ssize_t num, itemsize, ndim
        Py_ssize_t shape[64]
    int (*in_region)() noexcept nogil
    int in_parallel_loop() noexcept nogil
    void pending() except *
    int ndim_of(void *a) nogil
    Py_ssize_t dim_of(void *a, int i) nogil


ACTIVATIONS = None, "relu", "gelu", "gelu_tanh", "silu"   # as qk_activation counts them
public = {}   # functions by name, as qkernels has them: set by qkernels/numba.py


def work_alone(uintptr_t region):
    """Let calls in a parallel loop of Numba have one thread each; `region` is omp_in_parallel's address, or 0."""
    global in_region
    in_region = <int (*)() noexcept nogil>region
    qk_set_alone(in_parallel_loop)


@cython.final
cdef class Book:
    """Hold a Codebook of numbers as the functions below read it."""

    cdef Levels levels
    cdef bint has_axis
    cdef int axis
    cdef size_t block, k
    cdef readonly object codebook

    def __cinit__(self, codebook):
        self.codebook, self.levels, self.k = codebook, codebook._levels, codebook.k
        self.has_axis, self.axis = codebook.axis is not None, codebook.axis or 0
        self.block = codebook.block_size or 0


# ---- views ----


cdef inline Py_ssize_t size_of(const View *v) noexcept nogil:
    cdef Py_ssize_t i, size = 1
    for i in range(v.ndim):
        size *= v.shape[i]
    return size


cdef inline bint are_alike(const View *a, const View *b, Py_ssize_t ndim) noexcept nogil:
    """Tell whether their first axes, `ndim` of them, are the same."""
    cdef Py_ssize_t i
    for i in range(ndim):
        if a.shape[i] != b.shape[i]:
            return False
    return a.ndim == b.ndim


cdef inline bint are_apart(const View *out, const View *x) noexcept nogil:
    """Tell whether out is aligned and has no memory of x."""
    if <uintptr_t>out.data & (<size_t>out.itemsize - 1):
        return False
    if x == NULL or x.ndim == 0:
        return True
    cdef const char *a = <const char *>out.data
    cdef const char *b = <const char *>x.data
    return a + size_of(out) * out.itemsize <= b or b + size_of(x) * x.itemsize <= a


cdef inline int float_of(const View *v) noexcept nogil:
    return QK_F32 if v.num == cnp.NPY_FLOAT32 else QK_F64


cdef bint lay_over(Params p, const View *x, qk_params *c) noexcept nogil:
    """Fill the C parameters for an array of the shape of x, if they fit it."""
    if p.block_scale is not None:
        return False
    c[0] = p.c
    if c.kind == QK_PER_TENSOR:
        c.length = <size_t>size_of(x)
        return True
    cdef Py_ssize_t axis = p.c_axis + x.ndim if p.c_axis < 0 else p.c_axis, i, wanted
    cdef void *scale = <void *>p.scale
    if not 0 <= axis < x.ndim or ndim_of(scale) != (1 if c.kind == QK_PER_AXIS else x.ndim):
        return False
    for i in range(x.ndim):
        wanted = x.shape[i]
        if i < axis:
            c.outer *= <size_t>wanted
        elif i > axis:
            c.inner *= <size_t>wanted
        else:
            c.length = <size_t>wanted
        if c.kind != QK_PER_AXIS:
            if i == axis and wanted:
                wanted = 1 + (wanted - 1) // <Py_ssize_t>c.block
            if dim_of(scale, i) != wanted:
                return False
    return c.kind != QK_PER_AXIS or dim_of(scale, 0) == x.shape[axis]


cdef object array_of_view(const View *v):
    if v == NULL:
        return None
    cdef cnp.ndarray array = cnp.PyArray_SimpleNewFromData(v.ndim, <cnp.npy_intp *>v.shape, v.num, v.data)
    cnp.PyArray_UpdateFlags(array, cnp.NPY_ARRAY_ALIGNED)
    return array


cdef object number_of_view(const View *v):
    """Return an argument that may be a number as one."""
    array = array_of_view(v)
    if v == NULL or v.ndim or v.num not in (cnp.NPY_INT64, cnp.NPY_UINT64, cnp.NPY_FLOAT64):
        return array
    return array[()] if v.num == cnp.NPY_UINT64 else array.item()   # errors show what was given


cdef object codes_of_view(const View *v, Params p):
    """Return an array of codes; those whose dtype compiled code lacks are bytes there."""
    a = array_of_view(v)
    return a.view(p.dtype) if a.dtype == np.uint8 else a


# ---- functions: the results are made by the caller ----


cdef int quantize_slowly(Params p, const View *x, const View *q, Py_ssize_t rounding) except -1 with gil:
    public["quantize"](array_of_view(x), p, rounding="half_away" if rounding else "half_even", out=codes_of_view(q, p))
    return 0


cdef int quantize(Params p, const View *x, const View *q, Py_ssize_t rounding) except -1 nogil:
    cdef qk_params c
    if are_alike(x, q, x.ndim) and lay_over(p, x, &c) and are_apart(q, x) \
            and qk_quantize(x.data, <qk_dtype>float_of(x), q.data, p.storage, &c, <qk_rounding>rounding) == 0:
        return 0
    return quantize_slowly(p, x, q, rounding)


cdef int dequantize_slowly(Params p, const View *q, const View *y) except -1 with gil:
    out = array_of_view(y)
    public["dequantize"](codes_of_view(q, p), p, dtype=out.dtype, out=out)
    return 0


cdef int dequantize(Params p, const View *q, const View *y) except -1 nogil:
    cdef qk_params c
    cdef qk_dtype from_ = QK_I32 if q.num == cnp.NPY_INT32 else p.storage
    if are_alike(q, y, q.ndim) and lay_over(p, q, &c) and are_apart(y, q) \
            and qk_dequantize(q.data, from_, y.data, <qk_dtype>float_of(y), &c) == 0:
        return 0
    return dequantize_slowly(p, q, y)


cdef int requantize_slowly(Params p, const View *acc, const View *multiplier, const View *bias, const View *q,
                           Py_ssize_t rounding) except -1 with gil:
    how = ("half_even", "half_away", "gemmlowp", "tflite")[rounding]
    public["requantize"](array_of_view(acc), number_of_view(multiplier), p, bias=array_of_view(bias), rounding=how,
                         out=codes_of_view(q, p))
    return 0


cdef bint fill_multipliers(const View *m, size_t cols, int32_t *memory, qk_requant *r) noexcept nogil:
    """Fill those of columns; memory has room for two each."""
    cdef qk_scope _mode = qk_enter_scope()
    cdef float *floats = <float *>memory
    cdef size_t i, count = <size_t>size_of(m)
    cdef double value = 0
    if not (m.ndim == 0 or (m.ndim == 1 and count == cols)):
        return False
    r.multiplier, r.mantissa, r.shift = floats, memory, memory + cols
    for i in range(cols):
        if i < count:
            value = (<float *>m.data)[i] if m.num == cnp.NPY_FLOAT32 else (<double *>m.data)[i]
        if not 0 < value < INFINITY:
            return False
        if r.rounding >= QK_GEMMLOWP:
            qk_quantize_multiplier(value, memory + i, memory + cols + i)
        else:
            floats[i] = <float>min(value, <double>FLT_MAX)
    return True


cdef int requantize(Params p, const View *acc, const View *multiplier, const View *bias, const View *q,
                    Py_ssize_t rounding) except -1 nogil:
    cdef Py_ssize_t n = acc.shape[acc.ndim - 1] if acc.ndim else 1
    cdef size_t cols = <size_t>n, rows = <size_t>(size_of(acc) // n) if n else 0
    cdef int32_t[768] own   # two of a multiplier, and a bias
    cdef int32_t *memory = &own[0] if cols <= 256 else <int32_t *>malloc(12 * cols)
    cdef const int32_t *added
    cdef int status = -1
    cdef qk_requant r
    memset(&r, 0, sizeof(r))
    r.rounding = <qk_rounding>rounding
    r.zero_point, r.qmin, r.qmax = p.one_zero_point, p.c.qmin, p.c.qmax
    try:
        if memory != NULL and size_of(acc) > 0 and p.c.kind == QK_PER_TENSOR and not p.codes_are_floats \
                and are_alike(acc, q, acc.ndim) \
                and (bias == NULL or (bias.num == cnp.NPY_INT32 and bias.ndim == 1 and bias.shape[0] == n)) \
                and are_apart(q, acc) and are_apart(q, bias) and are_apart(q, multiplier) \
                and fill_multipliers(multiplier, cols, memory, &r):
            added = memory + 2 * cols if bias == NULL else <int32_t *>bias.data
            if bias == NULL:
                memset(memory + 2 * cols, 0, 4 * cols)
            status = qk_requantize(<int32_t *>acc.data, added, q.data, p.storage, rows, cols, &r)
    finally:
        if memory != &own[0]:
            free(memory)
    return 0 if status == 0 else requantize_slowly(p, acc, multiplier, bias, q, rounding)


cdef int matmul_slowly(void *packed, const View *a, const View *b, const View *a_zero, const View *b_zero,
                       const View *out) except -1 with gil:
    right = <object>packed if b == NULL else array_of_view(b)
    public["matmul"](array_of_view(a), right, a_zero_point=number_of_view(a_zero),
                     b_zero_point=number_of_view(b_zero), out=array_of_view(out))
    return 0


cdef int32_t *fill_zero_points(const View *zero, size_t n, bint is_signed, int32_t *memory) noexcept nogil:
    """Return `memory` with n zero points of bytes; NULL if they are no such."""
    cdef size_t i
    cdef int64_t lo = -128 if is_signed else 0, hi = 127 if is_signed else 255, value
    if memory == NULL or zero.ndim > 1 or (zero.ndim and <size_t>zero.shape[0] != n):
        return NULL
    for i in range(n):
        if zero.ndim == 0 and zero.num == cnp.NPY_INT64:
            value = (<int64_t *>zero.data)[0]
        elif zero.ndim == 0 and zero.num == cnp.NPY_UINT64:
            value = <int64_t>min((<uint64_t *>zero.data)[0], <uint64_t>256)   # which is no byte
        elif zero.ndim and zero.num == cnp.NPY_INT32:
            value = (<int32_t *>zero.data)[i]
        else:
            return NULL
        if not lo <= value <= hi:
            return NULL
        memory[i] = <int32_t>value
    return memory


cdef int multiply_plain(const View *a, const View *b, const int32_t *a_zero, const int32_t *b_zero,
                        const View *out) except -3 nogil:
    """Multiply codes of 8 bits a (..., m, k) and b (k, n), which each call packs."""
    cdef qk_batch p
    memset(&p, 0, sizeof(p))
    p.k, p.n = <size_t>b.shape[0], <size_t>b.shape[1]
    p.source.m = <size_t>(size_of(out) // b.shape[1]) if p.n else 0
    p.source.a, p.source.row_stride = a.data, b.shape[0]
    p.source.type = QK_CODES_I8 if a.num == cnp.NPY_INT8 else QK_CODES_U8
    p.source.zero_point, p.source.zero_point_per_row = a_zero, a_zero != NULL
    p.b, p.b_row_stride, p.b_col_stride = b.data, b.shape[1], 1
    p.b_unsigned, p.b_zero, p.out = b.num == cnp.NPY_UINT8, b_zero, <int32_t *>out.data
    cdef int status = qk_gemm8_batch(&p)
    return 0 if status == 1 else status


cdef bint is_byte(Py_ssize_t num) noexcept nogil:
    return num == cnp.NPY_INT8 or num == cnp.NPY_UINT8


cdef bint is_zero(const View *v) noexcept nogil:
    return v.ndim == 0 and v.num == cnp.NPY_INT64 and (<int64_t *>v.data)[0] == 0


cdef bint have_rows(const View *x, Py_ssize_t k, const View *out, Py_ssize_t n) noexcept nogil:
    """Tell whether x is (..., k) and out (..., n)."""
    return x.ndim > 0 and are_alike(x, out, x.ndim - 1) and x.shape[x.ndim - 1] == k and out.shape[x.ndim - 1] == n


cdef int matmul(Packed packed, const View *a, const View *b, const View *a_zero, const View *b_zero,
                const View *out) except -1 nogil:
    """Multiply by `packed` where b is NULL."""
    cdef Py_ssize_t k = <Py_ssize_t>packed.c.k if b == NULL else b.shape[0]
    cdef Py_ssize_t n = <Py_ssize_t>packed.c.n if b == NULL else b.shape[b.ndim - 1]
    cdef bint bytes = is_byte(a.num), is_signed = packed.c.type == QK_I8 if b == NULL else b.num == cnp.NPY_INT8
    cdef bint fits = (packed.c.family == QK_GEMM8 if bytes else packed.c.family == QK_GEMM16) if b == NULL \
        else bytes and b.ndim == 2 and is_byte(b.num)
    cdef bint shifted = not (is_zero(a_zero) and is_zero(b_zero))
    if shifted:   # zero points have to be right even if no sum has them, and are flat below
        fits = fits and size_of(out) > 0 and (a_zero.ndim == 0 or a.ndim == 2)
    if not fits or not have_rows(a, k, out, n) or not are_apart(out, a) or not are_apart(out, b) \
            or not are_apart(out, a_zero) or not are_apart(out, b_zero):
        return matmul_slowly(<void *>packed, a, b, a_zero, b_zero, out)
    cdef size_t rows = <size_t>(size_of(out) // n) if n else 0
    cdef int32_t *az = NULL
    cdef int32_t *bz = NULL
    cdef int32_t *memory = NULL
    cdef int status = -1
    try:
        if shifted:
            memory = <int32_t *>malloc(4 * (rows + <size_t>n + 1)) if bytes else NULL
            az = fill_zero_points(a_zero, rows, a.num == cnp.NPY_INT8, memory)
            bz = NULL if az == NULL else fill_zero_points(b_zero, <size_t>n, is_signed, memory + rows)
        if shifted and bz == NULL:
            status = -1
        elif b != NULL:
            status = multiply_plain(a, b, az, bz, out)
        else:
            status = qk_matmul(&packed.c, a.data, <qk_dtype>code_of(a.num), rows, az, bz, out.data)
    finally:
        free(memory)
    return 0 if status == 0 else matmul_slowly(<void *>packed, a, b, a_zero, b_zero, out)


cdef int code_of(Py_ssize_t num) noexcept nogil:
    return QK_I8 if num == cnp.NPY_INT8 else QK_U8 if num == cnp.NPY_UINT8 else QK_I16


cdef int linear_slowly(Packed packed, const View *x, const View *bias, const View *residual, const View *lo,
                       const View *hi, const View *out, Py_ssize_t activation) except -1 with gil:
    clamp = None if lo == NULL and hi == NULL else (number_of_view(lo), number_of_view(hi))
    public["linear"](array_of_view(x), packed, array_of_view(bias), activation=ACTIVATIONS[activation],
                     residual=array_of_view(residual), clamp=clamp, out=array_of_view(out))
    return 0


cdef int linear(Packed packed, const View *x, const View *bias, const View *residual, const View *lo,
                const View *hi, const View *out, Py_ssize_t activation) except -1 nogil:
    cdef qk_scope _mode = qk_enter_scope()
    cdef Py_ssize_t k = <Py_ssize_t>packed.c.k, n = <Py_ssize_t>packed.c.n
    cdef size_t rows = <size_t>(size_of(out) // n) if n else 0
    cdef double low = -INFINITY if lo == NULL else (<double *>lo.data)[0]
    cdef double high = INFINITY if hi == NULL else (<double *>hi.data)[0]
    cdef float least, most
    cdef qk_layer layer
    memset(&layer, 0, sizeof(layer))
    layer.activation, layer.bounded = <qk_activation>activation, lo != NULL or hi != NULL
    layer.lo, layer.hi = <float>low, <float>high
    layer.bias = NULL if bias == NULL else <float *>bias.data
    layer.residual = NULL if residual == NULL else <float *>residual.data
    if x.num == cnp.NPY_FLOAT32 and have_rows(x, k, out, n) and are_apart(out, x) and low <= high \
            and (bias == NULL or (is_float32(bias) and bias.ndim == 1 and bias.shape[0] == n
                                  and are_apart(out, bias))) \
            and (residual == NULL or (is_float32(residual) and are_alike(residual, out, out.ndim)
                                      and (residual.data == out.data or are_apart(out, residual)))) \
            and qk_minmax(<float *>x.data, <size_t>size_of(x), &least, &most) \
            and qk_linear(&packed.c, <float *>x.data, rows, &layer, <float *>out.data) == 0:
        return 0
    return linear_slowly(packed, x, bias, residual, lo, hi, out, activation)


cdef int narrow(const View *x, const View *y) noexcept nogil:
    """Round float64 to float32."""
    cdef qk_scope _mode = qk_enter_scope()
    cdef Py_ssize_t i
    for i in range(size_of(x)):
        (<float *>y.data)[i] = <float>(<double *>x.data)[i]
    return 0


cdef bint is_float32(const View *v) noexcept nogil:
    return v.num == cnp.NPY_FLOAT32


# ---- codebooks ----


cdef bint lay_levels(Book b, const View *x, const View *scales, size_t *outer, size_t *length,
                     size_t *inner) noexcept nogil:
    """Split the shape of x around the codebook's axis, if its channels, and scales of its blocks, fit."""
    cdef Py_ssize_t axis = b.axis + x.ndim if b.axis < 0 else b.axis, i
    outer[0], length[0], inner[0] = 1, 1, 1
    if b.has_axis and not 0 <= axis < x.ndim:
        return False
    for i in range(x.ndim):
        if not b.has_axis or i == axis:
            length[0] *= <size_t>x.shape[i]
        elif i < axis:
            outer[0] *= <size_t>x.shape[i]
        else:
            inner[0] *= <size_t>x.shape[i]
    if b.block == 0:
        return scales == NULL and (not b.has_axis or length[0] == b.levels.c.channels)
    if scales == NULL or scales.num != cnp.NPY_FLOAT32 or scales.ndim != (x.ndim if b.has_axis else 1):
        return False
    for i in range(scales.ndim):
        if <size_t>scales.shape[i] != ((length[0] + b.block - 1) // b.block if not b.has_axis or i == axis
                                       else <size_t>x.shape[i]):
            return False
    return True


cdef int encode_slowly(Book b, const View *x, const View *codes, const View *scales) except -1 with gil:
    found = public["encode"](array_of_view(x), b.codebook)
    if scales == NULL:
        array_of_view(codes)[...] = found
    else:
        array_of_view(codes)[...], array_of_view(scales)[...] = found
    return 0


cdef int encode(Book b, const View *x, const View *codes, const View *scales) except -1 nogil:
    cdef size_t outer, length, inner
    if x.num == cnp.NPY_FLOAT32 and lay_levels(b, x, scales, &outer, &length, &inner) \
            and qk_encode(<float *>x.data, <uint8_t *>codes.data, &b.levels.c, outer, length, inner,
                          b.block if b.block else 1, NULL if scales == NULL else <float *>scales.data) == 1:
        return 0
    return encode_slowly(b, x, codes, scales)


cdef int decode_slowly(Book b, const View *codes, const View *scales, const View *y) except -1 with gil:
    public["decode"](array_of_view(codes), b.codebook, array_of_view(scales), out=array_of_view(y))
    return 0


cdef int decode(Book b, const View *codes, const View *scales, const View *y) except -1 nogil:
    cdef size_t outer, length, inner, n = <size_t>size_of(codes)
    cdef float lo, hi
    if codes.num == cnp.NPY_UINT8 and are_alike(codes, y, codes.ndim) and are_apart(y, codes) \
            and are_apart(y, scales) and lay_levels(b, codes, scales, &outer, &length, &inner) \
            and (n == 0 or <size_t>qk_largest_code(<uint8_t *>codes.data, n) < b.k) \
            and (scales == NULL or qk_minmax(<float *>scales.data, <size_t>size_of(scales), &lo, &hi)):
        qk_decode(<uint8_t *>codes.data, <float *>y.data, &b.levels.c, outer, length, inner, b.block if b.block else 1,
                  NULL if scales == NULL else <float *>scales.data)
        return 0
    return decode_slowly(b, codes, scales, y)


# ---- errors ----


cdef dict errors = {}   # by thread: what its last call raised that failed


cdef void keep_error() noexcept with gil:
    """Keep what is raised: in compiled code, which may catch it, no exception of Python's can be."""
    kept = None
    try:
        pending()
    except BaseException as error:
        kept = copy(error)   # without its frames, which hold arrays of memory that may go
    errors[get_ident()] = kept


def last_error():
    """Return what the last call of this thread that failed has raised; Numba calls this twice to raise it."""
    return copy(errors.get(get_ident()) or RuntimeError("a call in a parallel loop has failed"))


# ---- what compiled code asks of them ----


cdef Py_ssize_t rows_of(Packed packed) noexcept nogil:
    return <Py_ssize_t>packed.c.k


cdef Py_ssize_t columns_of(Packed packed) noexcept nogil:
    return <Py_ssize_t>packed.c.n


cdef Py_ssize_t axis_of(Book b) noexcept nogil:
    return b.axis


cdef Py_ssize_t block_of(Book b) noexcept nogil:
    return <Py_ssize_t>b.block


ADDRESSES = {
    "quantize": <uintptr_t>quantize,
    "dequantize": <uintptr_t>dequantize,
    "requantize": <uintptr_t>requantize,
    "matmul": <uintptr_t>matmul,
    "linear": <uintptr_t>linear,
    "encode": <uintptr_t>encode,
    "decode": <uintptr_t>decode,
    "narrow": <uintptr_t>narrow,
    "keep_error": <uintptr_t>keep_error,
    "rows_of": <uintptr_t>rows_of,
    "columns_of": <uintptr_t>columns_of,
    "axis_of": <uintptr_t>axis_of,
    "block_of": <uintptr_t>block_of,
}
