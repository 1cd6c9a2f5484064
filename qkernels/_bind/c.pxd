"""Declare the C API (csrc/drivers/drivers.h) to Cython.

What returns QK_INTERRUPTED, -3, has left the exception of a signal's handler.
"""

from libc.stddef cimport ptrdiff_t
from libc.stdint cimport int8_t, int16_t, int32_t, int64_t, uint8_t, uint16_t, uint64_t

cdef extern from "drivers/drivers.h" nogil:
    ctypedef struct qk_kernels:
        pass
    ctypedef enum qk_dtype:
        QK_F32, QK_F64, QK_F16, QK_BF16, QK_I8, QK_U8, QK_I16, QK_U16, QK_I32, QK_I4, QK_U4, QK_I2, QK_U2
        QK_F8_E4M3, QK_F8_E5M2, QK_F6_E2M3, QK_F6_E3M2, QK_F4_E2M1
    ctypedef enum qk_rounding:
        QK_HALF_EVEN, QK_HALF_AWAY, QK_GEMMLOWP, QK_TFLITE
    ctypedef enum qk_activation:
        QK_IDENTITY, QK_RELU, QK_GELU, QK_GELU_TANH, QK_SILU
    ctypedef enum qk_kind "int":
        QK_PER_TENSOR, QK_PER_AXIS, QK_PER_BLOCK
    ctypedef enum qk_status "int":
        QK_NO_MEMORY, QK_NOT_FINITE
    ctypedef enum qk_rows_type "int":
        QK_CODES_U8, QK_CODES_I8, QK_FLOATS
    ctypedef enum qk_epilogue_type "int":
        QK_TO_INT32, QK_TO_FLOAT, QK_TO_CODES

    const char *qk_version()
    const qk_kernels *qk_active()
    const qk_kernels *qk_find(const char *name)
    size_t qk_run_peak(size_t rounds) nogil
    const char *qk_name(const qk_kernels *k)
    const char *qk_built(size_t i)
    void qk_activate(const qk_kernels *k)
    void qk_set_num_threads(int n)
    int qk_get_num_threads()
    int qk_most_threads()
    void qk_set_interrupt(int (*poll)() noexcept nogil)
    void qk_set_alone(int (*alone)() noexcept nogil)

    ctypedef struct qk_params:
        qk_kind kind
        size_t outer, length, inner, block
        const float *scale
        const float *reciprocal
        const int32_t *zero_point
        int32_t qmin, qmax

    int qk_reciprocals(const float *scale, size_t n, float *reciprocal)
    int qk_quantize(const void *x, qk_dtype from_, void *q, qk_dtype to, const qk_params *p,
                    qk_rounding rounding) except -3
    int qk_dequantize(const void *q, qk_dtype from_, void *y, qk_dtype to, const qk_params *p) except -3
    int qk_fake_quantize(const void *x, void *y, qk_dtype dtype, const qk_params *p) except -3
    int qk_fake_quantize_floats(const void *x, void *y, qk_dtype dtype, qk_dtype codes,
                                const qk_params *p) except -3
    int qk_block_magnitudes(const void *x, qk_dtype from_, const qk_params *layout, int outward, float *most) except -3
    ctypedef struct qk_micro:
        float largest, times
        int32_t exponent, up
    int qk_micro_scales(float *magnitudes, size_t n, const qk_micro *how) except -3
    int qk_quantize_randomly(const void *x, qk_dtype from_, void *q, qk_dtype to, const qk_params *p,
                             uint64_t seed) except -3
    ctypedef struct qk_fake_grad:
        const void *grad
        const void *x
        void *grad_x
        float *grad_scale
        float *grad_zero_point
        qk_dtype dtype
        int clipped

    size_t qk_fake_grad_sums(const qk_params *p)
    int qk_fake_quantize_grad(const qk_fake_grad *given, const qk_params *p, double *sums) except -3
    int qk_minmax(const float *x, size_t n, float *lo, float *hi) except -3
    void qk_choose(float lo, float hi, int32_t qmin, int32_t qmax, int symmetric, float *scale, int32_t *zero_point)
    int qk_quantize_rows(const float *x, size_t rows, size_t cols, void *q, qk_dtype to, int32_t qmin, int32_t qmax,
                         int symmetric, float *scale, int32_t *zero_point) except -3

    ctypedef struct qk_requant:
        qk_rounding rounding
        const float *multiplier
        const int32_t *mantissa
        const int32_t *shift
        int32_t zero_point, qmin, qmax

    void qk_quantize_multiplier(double m, int32_t *mantissa, int32_t *shift)
    int qk_requantize(const int32_t *acc, const int32_t *bias, void *q, qk_dtype to, size_t rows, size_t cols,
                      const qk_requant *r) except -3

    ctypedef struct qk_rows:
        size_t m
        const void *a
        ptrdiff_t row_stride
        qk_rows_type type
        const int32_t *zero_point
        int zero_point_per_row
        float scale

    ctypedef struct qk_image:
        const uint8_t *codes
        size_t count, height, width, channels
        size_t kernel_height, kernel_width, stride_y, stride_x, dilation_y, dilation_x
        size_t top, left
        size_t out_height, out_width
        uint8_t pad

    ctypedef struct qk_epilogue:
        qk_epilogue_type type
        void *out
        size_t row_stride
        const int32_t *b_zero
        const int32_t *int_bias
        const float *col_scale
        float least_scale, most_scale
        const float *float_bias
        const float *residual
        size_t residual_stride
        qk_activation activation
        int bounded
        float lo, hi
        qk_requant requant
        float out_scale
        const double *wide_scale
        const double *wide_bias
        const int32_t *starts
        int plain

    ctypedef struct qk_unit_columns:
        size_t n
        float a_scale, out_scale
        const float *b_scale
        const float *bias
        int real
    int qk_unit_multipliers(const qk_unit_columns *p, float *multiplier, float *scale, float *bias)
    void qk_wide_columns(const qk_unit_columns *p, const float *multiplier, double *wide_scale, double *wide_bias)

    enum:
        QK_MAX_AXES
    ctypedef struct qk_batch:
        qk_rows source
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

    int qk_gemm8_batch(const qk_batch *batch) except -3

    ctypedef struct qk_matrix:
        const void *b
        qk_dtype type
        size_t k, n
        ptrdiff_t row_stride, col_stride
        qk_kind kind
        size_t block
        const float *scale
        const int32_t *zero_point
        const float *levels
        size_t level_count
        const uint8_t *block_scale
        const int8_t *block_shift

    ctypedef struct qk_folded:
        size_t blocks
    ctypedef struct qk_gemm8_weights:
        qk_folded folded
    int qk_folded_params(const qk_gemm8_weights *p, uint8_t *block_scale, int8_t *block_shift) except -3

    ctypedef struct qk_integer_search:
        size_t k, block
        int qmin, qmax, middle, shifts, least_squares
    int qk_search_integer_scales(const qk_integer_search *p, size_t columns, const double *x, const double *importance,
                                 float *scale, uint8_t *block_scale, int8_t *block_shift) except -3

    ctypedef struct qk_integer_scales:
        size_t k, n, block
        const float *scale
        const uint8_t *block_scale
        const int8_t *block_shift
        qk_dtype codes
        int qmin, qmax
    int qk_fold_fits(const qk_integer_scales *p) except -3
    int qk_fold(const uint8_t *codes, int8_t *folded, const qk_integer_scales *p) except -3
    int qk_quantize_folded(const void *x, qk_dtype from_, uint8_t *codes, const qk_integer_scales *p,
                           qk_rounding rounding) except -3

    ctypedef struct qk_gemm4_weights:
        size_t block, blocks
        int bits
    ctypedef enum qk_family:
        QK_GEMM8, QK_GEMM4, QK_FOLDED, QK_GEMMF16, QK_GEMM16, QK_DEPTHWISE
    ctypedef struct qk_weights:
        qk_family family
        qk_dtype type
        size_t k, n, n_pad, bytes
        qk_gemm8_weights gemm8
        qk_gemm4_weights gemm4
        float *scale
        int32_t *zero_point
        float least_scale, most_scale
        int64_t bound

    void qk_weights_init(qk_weights *w, const qk_matrix *m, size_t height)
    int qk_weights_fill(qk_weights *w, const qk_matrix *m, void *memory) except -3
    int qk_weights_unpack(const qk_weights *w, void *b) except -3
    void qk_weights_params(const qk_weights *w, float *scale, int32_t *zero_point)
    size_t qk_most_rows(const qk_gemm4_weights *p)
    int qk_multiply(const qk_rows *rows, const qk_weights *w, const qk_epilogue *epilogue) except -3
    int qk_prepare(const qk_rows *source, const qk_weights *w, qk_epilogue *epilogue, int64_t largest, int32_t *columns)

    size_t qk_group_columns()
    int qk_conv(const qk_rows *source, const qk_image *image, const qk_weights *w, size_t groups, size_t filters,
                const qk_epilogue *epilogue) except -3
    int qk_max_pool(const qk_image *image, int is_signed, uint8_t *out) except -3
    int qk_average_pool(const qk_image *image, int is_signed, int32_t zero_point, int with_padding,
                        const float *scales, const qk_requant *r, uint8_t *out) except -3

    ctypedef struct qk_levels:
        const uint64_t *bucket
        const uint64_t *second
        int32_t least, last
        int shift

    ctypedef struct qk_codebook:
        size_t channels
        qk_levels first
    ctypedef struct qk_book:
        pass

    int qk_book_new(const float *levels, size_t channels, size_t k, qk_book **book)
    void qk_book_free(qk_book *book)
    qk_codebook qk_book_tables(const qk_book *book)
    int qk_encode(const float *x, uint8_t *q, const qk_codebook *c, size_t outer, size_t length, size_t inner,
                  size_t block, float *scale) except -3
    ctypedef struct qk_moved_codes:
        const void *x
        qk_dtype dtype
        uint8_t *codes
        const float *level
        const float *per_distance
        const uint8_t *next
        size_t k, channels, total, length, inner, block, scales
        const float *scale
        float *factor
        uint64_t seed

    int qk_move_codes(qk_moved_codes *m) except -3
    int qk_decode(const uint8_t *q, float *y, const qk_codebook *c, size_t outer, size_t length, size_t inner,
                  size_t block, const float *scale) except -3
    int qk_largest_code(const uint8_t *q, size_t n) except -3

    ctypedef struct qk_feedback:
        size_t k, n, ld, levels
        int both
        int32_t qmin, qmax
        const float *w
        const float *feed
        const float *near
        const float *weight
        const uint8_t *mask
        const float *scale
        const float *level
        const float *threshold
        const int32_t *group
        const int32_t *zero
        int16_t *codes
        float *errors
        double *loss
        float *sums
    int qk_round(const qk_feedback *p) except -3
    int qk_start_sums(const qk_feedback *p, const float *rest) except -3

    ctypedef enum qk_gguf_type:
        QK_Q4_0, QK_Q8_0, QK_GGUF_TYPES
    ctypedef struct qk_gguf_layout:
        const char *name
        int values, bytes, group
    const qk_gguf_layout *qk_gguf_layouts

    int qk_pack_bits(const uint8_t *codes, size_t n, int bits, uint8_t *data) except -3
    int qk_unpack_bits(const uint8_t *data, size_t n, int bits, uint8_t *codes) except -3
    int32_t qk_to_gguf(const float *x, uint8_t *data, size_t blocks, qk_gguf_type type) except -3
    int qk_search_k(const float *x, const float *w, size_t blocks, qk_gguf_type type, float *factors, int8_t *integers,
                    uint8_t *codes) except -3
    int qk_from_gguf(const uint8_t *data, float *y, int8_t *q, float *scale, size_t blocks, qk_gguf_type type) except -3

    int qk_layer_norm(const float *x, const float *residual, size_t rows, size_t cols, const float *weight,
                      const float *bias, double eps, float *y) except -3

    ctypedef struct qk_values:
        const void *data
        qk_dtype type
        const qk_params *params

    ctypedef struct qk_norm_args:
        qk_values x, residual, y
        size_t rows, cols
        const float *weight
        const float *bias
        double eps

    int qk_layer_norm_of(const qk_norm_args *args) except -3

    ctypedef struct qk_rotation:
        const float *x
        float *y
        size_t rows, cols
        uint64_t seed
        bint inverse

    int qk_rotate(const qk_rotation *p) except -3

    ctypedef struct qk_code_params:
        float scale
        int32_t zero_point, qmin, qmax

    ctypedef struct qk_attention_args:
        const float *q
        const float *k
        const float *v
        size_t q_stride, k_stride, v_stride
        float *out
        size_t out_stride
        size_t heads, size, sequences
        const int64_t *starts
        double scale

    enum:
        QK_MOST_CODES
    int qk_attention_of(const qk_attention_args *args, const qk_code_params *codes, const qk_code_params *to) except -3

    ctypedef struct qk_least_squares:
        size_t n, block
        int qmin, qmax
        int first_zero, last_zero

    int qk_refine(const qk_least_squares *p, size_t rows, const double *x, const double *importance, float *scale,
                  int32_t *zero_point) except -3

    ctypedef struct qk_kmeans:
        qk_dtype type
        size_t n, d, k, stride, chunk
        const void *x
        const double *weight
        const void *centroids
        void *distance
        void *half
        const void *moved
        const void *passed
        int32_t *labels
        void *upper
        void *lower
        double *sums

    ctypedef struct qk_kmeans_counts:
        size_t changed, by_label

    int qk_kmeans_assign(const qk_kmeans *p, size_t first, size_t last, qk_kmeans_counts *counts) except -3
    int qk_kmeans_distances(const qk_kmeans *p) except -3
    int qk_kmeans_seed(const qk_kmeans *p, const void *seeds, size_t count, int update, void *nearest,
                       double *potential) except -3
    int qk_kmeans_errors(const qk_kmeans *p, double *errors, double *inertia) except -3

    ctypedef struct qk_lines:
        size_t lines, n, k
        int integers, pinned
        void *values
        double *weights
        double *centroids
        void *limits
        int32_t *counts
        double *inertia
        int32_t *exponents
        int (*stop)(void *) noexcept nogil
        void *context

    ctypedef enum qk_lines_status:
        QK_LINES_DONE, QK_LINES_STOPPED, QK_LINES_NO_MEMORY, QK_LINES_TOO_WIDE

    qk_lines_status qk_cluster_lines(const qk_lines *p)
    qk_lines_status qk_distinct_points(const qk_lines *p)
    void qk_label_lines(const void *values, int integers, size_t lines, size_t n, const void *limits, size_t k,
                        const int32_t *counts, void *labels, int as_int32)
    int qk_count_codes(const uint16_t *codes, const double *weights, size_t n, double *bins)
    void qk_look_up(const uint16_t *codes, size_t n, const void *table, void *labels, int as_int32)

    ctypedef struct qk_histogram
    enum:
        QK_BLOCKS
    qk_histogram *qk_histogram_new(size_t lines, int bits)
    void qk_histogram_free(qk_histogram *h)
    int qk_histogram_count(qk_histogram *h, const float *x, size_t first, size_t rows, size_t n) except -3
    int qk_histogram_merge(qk_histogram *h, const qk_histogram *other)
    uint64_t *qk_histogram_block(qk_histogram *h, size_t line, size_t block, int make)
    int32_t *qk_histogram_least(qk_histogram *h)
    int32_t *qk_histogram_most(qk_histogram *h)

    ctypedef struct qk_bins:
        size_t n
        const double *begin
        const double *end
        const double *count

    int qk_divergences(const qk_bins *bins, size_t cells, size_t ranges, const double *lo, const double *hi,
                       double *divergence) except -3

    enum:
        QK_MAX_LEVELS, QK_PQ_TILE
    ctypedef struct qk_pq_codes:
        const uint8_t *codes
        size_t n
        bint packed
    ctypedef struct qk_pq_book:
        size_t m, k, d
        int shared
        const float *levels
        const float *columns
        const float *scaled

    int qk_pq_encode(const float *x, const float *given, uint8_t *codes, size_t n, const qk_pq_book *b) except -3
    int qk_pq_decode(const uint8_t *codes, float *y, size_t n, const qk_pq_book *b) except -3
    int qk_pq_distance_tables(const float *queries, size_t count, const qk_pq_book *b, float *tables) except -3
    int qk_pq_pack(const uint8_t *codes, size_t n, size_t m, uint8_t *packed) except -3
    int qk_pq_unpack(const uint8_t *packed, size_t n, size_t m, uint8_t *codes) except -3
    int qk_pq_search(const float *queries, size_t count, const qk_pq_codes *codes, const qk_pq_book *b, size_t k,
                     float *distances, int64_t *indices) except -3
    bint qk_pq_checks(const qk_pq_codes *codes, const qk_pq_book *b, size_t k)

    int qk_take_table(const uint8_t *q, size_t rows, size_t cols, int is_signed, const uint8_t *table, uint8_t *y,
                      size_t y_stride) except -3

    ctypedef struct qk_code_pair:
        const uint8_t *a_codes
        const uint8_t *b_codes
        uint8_t *y_codes
        qk_code_params a, b, y
        int product, is_signed
        qk_rounding rounding
        size_t n, b_step
        int axes
        size_t shape[64]
        size_t a_steps[64]
        size_t b_steps[64]

    int qk_pair_codes(const qk_code_pair *p) except -3
    int qk_softmax_codes(const uint8_t *q, const qk_code_params *params, size_t rows, size_t cols, uint8_t *y,
                         const qk_code_params *to) except -3

    ctypedef struct qk_code_norm_args:
        const uint8_t *q
        uint8_t *y
        size_t rows, cols
        const float *weight
        const float *bias
        double eps
        qk_code_params params, to

    int qk_norm_codes(const qk_code_norm_args *args) except -3

cdef extern from "runtime/fpmode.h" nogil:
    ctypedef struct qk_mode:
        pass
    ctypedef struct qk_scope "QK_SCOPE":   # a mode that is left where the function ends
        pass
    qk_mode qk_enter_mode()
    qk_scope qk_enter_scope "qk_enter_mode" ()
    void qk_leave_mode(qk_mode was)
