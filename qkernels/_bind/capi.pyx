# cython: language_level=3, cdivision=True, freethreading_compatible=True
"""Define what `cimport qkernels` gives (qkernels/__init__.pxd): the C interface with plain arguments.

Whoever looks for capsules finds these functions in `__pyx_capi__`, so numbers and pointers are all that they take.
"""

from libc.stddef cimport ptrdiff_t
from libc.stdint cimport int32_t
from libc.string cimport memset

from .c cimport (
    QK_HALF_EVEN, QK_I32, QK_PER_AXIS, QK_PER_BLOCK, QK_PER_TENSOR, qk_activation, qk_dequantize, qk_dtype,
    qk_get_num_threads, qk_layer_norm, qk_matrix, qk_params, qk_quantize, qk_requant, qk_requantize, qk_set_num_threads,
)

cdef extern from "include/qkernels.h" nogil:
    ctypedef enum qk_status:
        QK_NO_MEMORY, QK_INVALID
    ctypedef struct Weights "qk_weights":
        pass
    ctypedef struct qk_layer:
        const float *bias
        qk_activation activation

    int qk_choose_qparams(const float *x, size_t n, qk_dtype dtype, int symmetric, float *scale,
                          int32_t *zero_point) except -3
    int qk_dynamic_quantize(const float *x, size_t rows, size_t cols, void *q, qk_dtype to, int symmetric,
                            float *scale, int32_t *zero_point) except -3
    int qk_weights_new(const qk_matrix *matrix, Weights **weights) except -3
    void qk_weights_free(Weights *weights)
    size_t qk_weights_bytes(const Weights *weights)
    int qk_linear(const Weights *weights, const float *x, size_t rows, const qk_layer *layer, float *y) except -3
    int qk_matmul(const Weights *weights, const void *a, qk_dtype type, size_t rows, const int32_t *a_zero_point,
                  const int32_t *b_zero_point, void *out) except -3
    const char *qk_get_isa()
    const char *qk_status_text(qk_status status)

cdef extern from "drivers/elementwise.h" nogil:
    int32_t least_code(qk_dtype t)
    int32_t most_code(qk_dtype t)
    bint is_code(qk_dtype t)


cdef qk_params params_of(qk_dtype codes, size_t outer, size_t length, size_t inner, const float *scale,
                         const int32_t *zero_point) noexcept nogil:
    cdef qk_params p
    memset(&p, 0, sizeof(p))
    p.kind = QK_PER_TENSOR if length == 1 else QK_PER_AXIS
    p.outer, p.length, p.inner, p.block = outer, length, inner, 1
    p.scale, p.zero_point = scale, zero_point
    p.qmin, p.qmax = least_code(codes), most_code(codes)
    return p


cdef api int quantize(const void *x, int x_type, void *q, int q_type, size_t outer, size_t length, size_t inner,
                      const float *scale, const int32_t *zero_point) except -3 nogil:
    if not is_code(<qk_dtype>q_type):
        return QK_INVALID
    cdef qk_params p = params_of(<qk_dtype>q_type, outer, length, inner, scale, zero_point)
    return qk_quantize(x, <qk_dtype>x_type, q, <qk_dtype>q_type, &p, QK_HALF_EVEN)


cdef api int dequantize(const void *q, int q_type, void *y, int y_type, size_t outer, size_t length, size_t inner,
                        const float *scale, const int32_t *zero_point) except -3 nogil:
    if q_type != QK_I32 and not is_code(<qk_dtype>q_type):
        return QK_INVALID
    cdef qk_params p = params_of(<qk_dtype>q_type, outer, length, inner, scale, zero_point)
    return qk_dequantize(q, <qk_dtype>q_type, y, <qk_dtype>y_type, &p)


cdef api int choose_qparams(const float *x, size_t n, int q_type, bint symmetric, float *scale,
                            int32_t *zero_point) except -3 nogil:
    return qk_choose_qparams(x, n, <qk_dtype>q_type, symmetric, scale, zero_point)


cdef api int dynamic_quantize(const float *x, size_t rows, size_t cols, void *q, int q_type, bint symmetric,
                              float *scale, int32_t *zero_point) except -3 nogil:
    return qk_dynamic_quantize(x, rows, cols, q, <qk_dtype>q_type, symmetric, scale, zero_point)


cdef api int requantize(const int32_t *acc, const int32_t *bias, void *q, int q_type, size_t rows, size_t cols,
                        const float *multiplier, int32_t zero_point) except -3 nogil:
    if not is_code(<qk_dtype>q_type):
        return QK_INVALID
    cdef qk_requant r
    memset(&r, 0, sizeof(r))
    r.rounding, r.multiplier, r.zero_point = QK_HALF_EVEN, multiplier, zero_point
    r.qmin, r.qmax = least_code(<qk_dtype>q_type), most_code(<qk_dtype>q_type)
    return qk_requantize(acc, bias, q, <qk_dtype>q_type, rows, cols, &r)


cdef api int pack(const void *b, int b_type, size_t k, size_t n, ptrdiff_t row_stride, ptrdiff_t col_stride,
                  size_t block, const float *scale, const int32_t *zero_point, Weights **weights) except -3 nogil:
    cdef qk_matrix m
    memset(&m, 0, sizeof(m))
    m.b, m.type, m.k, m.n, m.block = b, <qk_dtype>b_type, k, n, block
    m.row_stride, m.col_stride = row_stride, col_stride
    if scale != NULL:
        m.kind = QK_PER_BLOCK if block else QK_PER_AXIS
    m.scale, m.zero_point = scale, zero_point
    return qk_weights_new(&m, weights)


cdef api int linear(const Weights *weights, const float *x, size_t rows, const float *bias, int activation,
                    float *y) except -3 nogil:
    cdef qk_layer layer
    memset(&layer, 0, sizeof(layer))
    layer.bias, layer.activation = bias, <qk_activation>activation
    return qk_linear(weights, x, rows, &layer, y)


cdef api int matmul(const Weights *weights, const void *a, int a_type, size_t rows, const int32_t *a_zero_point,
                    const int32_t *b_zero_point, void *out) except -3 nogil:
    return qk_matmul(weights, a, <qk_dtype>a_type, rows, a_zero_point, b_zero_point, out)


cdef api int layer_norm(const float *x, const float *residual, size_t rows, size_t cols, const float *weight,
                        const float *bias, double eps, float *y) except -3 nogil:
    return qk_layer_norm(x, residual, rows, cols, weight, bias, eps, y)


cdef api void free_weights(Weights *weights) noexcept nogil:
    qk_weights_free(weights)


cdef api size_t weights_bytes(const Weights *weights) noexcept nogil:
    return qk_weights_bytes(weights)


cdef api const char *get_isa() noexcept nogil:
    return qk_get_isa()


cdef api int get_num_threads() noexcept nogil:
    return qk_get_num_threads()


cdef api void set_num_threads(int n) noexcept nogil:
    qk_set_num_threads(n)


cdef int raise_status(int status) except -1 with gil:
    text = qk_status_text(<qk_status>status).decode()
    raise MemoryError(text) if status == QK_NO_MEMORY else ValueError(text)


cdef api int check(int status) except -1 nogil:
    return 0 if status == 0 else raise_status(status)
