# cython: language_level=3
"""Functions on pointers for `cimport qkernels`: they need no GIL, and share threads and instruction set with Python.

All but the last six return a status, OK or less, for which `check` raises. Arrays are C-contiguous: docs/embedding.md.
"""

from libc.stddef cimport ptrdiff_t
from libc.stdint cimport int32_t

cdef extern from *:
    """
    typedef struct qk_weights qk_weights;
    """
    ctypedef struct Weights "qk_weights":   # packed: made by pack, freed by free_weights
        pass

cdef enum:   # types of values and codes; 4 and 2 bits are the low ones of a byte
    F32, F64, F16, BF16, I8, U8, I16, U16, I32, I4, U4, I2, U2
    F8_E4M3, F8_E5M2, F6_E2M3, F6_E3M2, F4_E2M1   # codes that are floats

cdef enum:   # activations
    IDENTITY, RELU, GELU, GELU_TANH, SILU

cdef enum:   # statuses
    OK = 0
    NO_MEMORY = -1
    NOT_FINITE = -2
    INTERRUPTED = -3   # by a signal, whose handler's exception is set
    OVERFLOW = -4
    INVALID = -5

# x (outer, length, inner) has `length` scales and zero points: 1 for one of all values.
cdef int quantize(const void *x, int x_type, void *q, int q_type, size_t outer, size_t length, size_t inner,
                  const float *scale, const int32_t *zero_point) except -3 nogil
cdef int dequantize(const void *q, int q_type, void *y, int y_type, size_t outer, size_t length, size_t inner,
                    const float *scale, const int32_t *zero_point) except -3 nogil
cdef int choose_qparams(const float *x, size_t n, int q_type, bint symmetric, float *scale,
                        int32_t *zero_point) except -3 nogil
# Each row by its own range, to codes with a scale and a zero point a row.
cdef int dynamic_quantize(const float *x, size_t rows, size_t cols, void *q, int q_type, bint symmetric, float *scale,
                          int32_t *zero_point) except -3 nogil
# acc (rows, cols), bias and multiplier (cols,); bias may be NULL.
cdef int requantize(const int32_t *acc, const int32_t *bias, void *q, int q_type, size_t rows, size_t cols,
                    const float *multiplier, int32_t zero_point) except -3 nogil
# b (k, n), inputs by outputs, of integers with scales and zero points (ceil(k / block), n), all rows being one block if
# it is 0, or of floats, F16 or BF16, with NULL for both. Strides are in bytes, or both 0 if b is C-contiguous.
cdef int pack(const void *b, int b_type, size_t k, size_t n, ptrdiff_t row_stride, ptrdiff_t col_stride, size_t block,
              const float *scale, const int32_t *zero_point, Weights **weights) except -3 nogil
# y (rows, n) of x (rows, k); bias may be NULL.
cdef int linear(const Weights *weights, const float *x, size_t rows, const float *bias, int activation,
                float *y) except -3 nogil
# out (rows, n) of codes a (rows, k): int32; int64 if they are int16. Zero points (rows,) and (n,) may be NULL.
cdef int matmul(const Weights *weights, const void *a, int a_type, size_t rows, const int32_t *a_zero_point,
                const int32_t *b_zero_point, void *out) except -3 nogil
# residual may be NULL; y may be x or residual.
cdef int layer_norm(const float *x, const float *residual, size_t rows, size_t cols, const float *weight,
                    const float *bias, double eps, float *y) except -3 nogil

cdef void free_weights(Weights *weights) noexcept nogil
cdef size_t weights_bytes(const Weights *weights) noexcept nogil
cdef const char *get_isa() noexcept nogil
cdef int get_num_threads() noexcept nogil
cdef void set_num_threads(int n) noexcept nogil
cdef int check(int status) except -1 nogil
