"""The C API (csrc/qkernels.h) as Cython sees it."""

from libc.stddef cimport ptrdiff_t
from libc.stdint cimport int8_t, int32_t, int64_t, uint8_t

cdef extern from "qkernels.h" nogil:
    ctypedef struct qk_kernels:
        pass
    ctypedef enum qk_dtype:
        QK_F32, QK_F64, QK_F16, QK_BF16, QK_I8, QK_U8, QK_I16, QK_U16, QK_I32, QK_I4, QK_U4, QK_I2, QK_U2
    ctypedef enum qk_rounding:
        QK_HALF_EVEN, QK_HALF_AWAY, QK_GEMMLOWP, QK_TFLITE
    ctypedef enum qk_activation:
        QK_IDENTITY, QK_RELU, QK_GELU, QK_GELU_TANH, QK_SILU
    ctypedef enum qk_kind "int":
        QK_PER_TENSOR, QK_PER_AXIS, QK_PER_BLOCK
    ctypedef enum qk_left_type "int":
        QK_CODES_U8, QK_CODES_I8, QK_FLOATS
    ctypedef enum qk_right_type "int":
        QK_TO_INT32, QK_TO_FLOAT, QK_TO_CODES

    const qk_kernels *qk_active()
    const qk_kernels *qk_find(const char *name)
    const char *qk_name(const qk_kernels *k)
    const char *qk_built(size_t i)
    void qk_activate(const qk_kernels *k)
    void qk_set_num_threads(int n)
    int qk_get_num_threads()

    ctypedef struct qk_params:
        qk_kind kind
        size_t outer, length, inner, block
        const float *scale
        const float *reciprocal
        const int32_t *zero_point
        int32_t qmin, qmax

    int qk_reciprocals(const float *scale, size_t n, float *reciprocal)
    void qk_quantize(const void *x, qk_dtype from_, void *q, qk_dtype to, const qk_params *p, qk_rounding rounding)
    void qk_dequantize(const void *q, qk_dtype from_, void *y, qk_dtype to, const qk_params *p)
    void qk_fake_quantize(const void *x, void *y, qk_dtype dtype, const qk_params *p)
    int qk_minmax(const float *x, size_t n, float *lo, float *hi)
    void qk_choose(float lo, float hi, int32_t qmin, int32_t qmax, int symmetric, float *scale, int32_t *zero_point)
    int qk_quantize_rows(const float *x, size_t rows, size_t cols, void *q, qk_dtype to, int32_t qmin, int32_t qmax,
                         int symmetric, float *scale, int32_t *zero_point)

    ctypedef struct qk_requant:
        qk_rounding rounding
        const float *multiplier
        const int32_t *mantissa
        const int32_t *shift
        int32_t zero_point, qmin, qmax

    void qk_quantize_multiplier(double m, int32_t *mantissa, int32_t *shift)
    void qk_requantize(const int32_t *acc, const int32_t *bias, void *q, qk_dtype to, size_t rows, size_t cols,
                       const qk_requant *r)

    ctypedef struct qk_packed:
        const qk_kernels *kernels
        size_t k, n, k_pad, n_pad
        int flipped
        int8_t *panels
        int32_t *colsum

    const qk_kernels *qk_kernels_for(const qk_kernels *k, const void *b, ptrdiff_t row_stride, ptrdiff_t col_stride, size_t rows,
                                     size_t cols, int b_unsigned)
    size_t qk_packed_bytes(const qk_packed *p)
    void qk_packed_init(qk_packed *p, const qk_kernels *kernels, size_t k, size_t n, int b_unsigned)
    int64_t qk_pack(qk_packed *p, const void *b, ptrdiff_t row_stride, ptrdiff_t col_stride, const int32_t *zero_point)
    void qk_unpack(const qk_packed *p, void *b)

    ctypedef struct qk_left:
        size_t m
        const void *a
        ptrdiff_t row_stride
        qk_left_type type
        const int32_t *zero_point
        int zero_point_per_row

    ctypedef struct qk_right:
        qk_right_type type
        void *out
        size_t row_stride
        const int32_t *b_zero
        const int32_t *int_bias
        const float *col_scale
        const float *float_bias
        const float *residual
        size_t residual_stride
        qk_activation activation
        int bounded
        float lo, hi
        qk_requant requant
        float out_scale

    int qk_gemm(const qk_left *left, const qk_packed *b, const qk_right *right)

    enum:
        QK_MAX_AXES
    ctypedef struct qk_batch:
        qk_left left
        const void *b
        size_t k, n
        ptrdiff_t b_row_stride, b_col_stride
        int b_unsigned
        const int32_t *b_zero
        int32_t *out
        int axes
        size_t shape[64]
        ptrdiff_t a_step[64]
        ptrdiff_t b_step[64]
        ptrdiff_t a_zero_step[64]
        ptrdiff_t b_zero_step[64]

    int qk_gemm_batch(const qk_batch *batch)

    ctypedef struct qk_blocked:
        const qk_kernels *kernels
        size_t k, n, n_pad
        size_t block, blocks
        int flip, half_scales, own_zeros
        int32_t zero
        uint8_t *panels

    ctypedef struct qk_block_params:
        const float *scale
        const int32_t *zero_point
        size_t row_stride, col_stride

    void qk_blocked_init(qk_blocked *p, const qk_kernels *kernels, size_t k, size_t n, size_t block, int b_signed,
                         int half_scales, int own_zeros, int32_t zero_point)
    size_t qk_blocked_bytes(const qk_blocked *p)
    void qk_blocked_pack(const qk_blocked *p, const void *b, ptrdiff_t row_stride, ptrdiff_t col_stride,
                         const qk_block_params *params)
    void qk_blocked_unpack(const qk_blocked *p, void *b)
    int qk_blocked_linear(const float *x, ptrdiff_t row_stride, size_t m, const qk_blocked *b, const qk_right *right)

    void qk_layer_norm(const float *x, const float *residual, size_t rows, size_t cols, const float *weight,
                       const float *bias, float eps, float *y)

    ctypedef struct qk_attention_args:
        const float *q
        const float *k
        const float *v
        size_t q_stride, k_stride, v_stride
        float *out
        size_t out_stride
        size_t heads, size, sequences
        const int64_t *starts
        float scale

    int qk_attention(const qk_attention_args *args)
