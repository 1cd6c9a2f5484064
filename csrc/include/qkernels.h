/* qkernels: exact, fast kernels for quantized machine learning on CPUs. This is the C interface.
 *
 * Values. Every function computes what the documentation of the Python package says, to the bit, whatever the
 * instruction set, the number of threads or the floating-point mode of the caller (which is left as it was). Formulas
 * and bounds: docs/numerics.md, cited here as "numerics N".
 *
 * Arrays are C-contiguous and belong to the caller; strides are in elements unless it is said that they are in bytes,
 * and a stride of 0 in a struct stands for rows that follow one another. float16 and bfloat16 are 16 bits each, codes
 * of 4 and 2 bits the low bits of a byte each. Outputs may not overlap inputs, unless it is said that they may. A field
 * of a struct that is 0 or NULL means what is usual, so that a struct of zeros is where to start.
 *
 * Errors. Functions that can fail return a qk_status, QK_OK being 0; results come by pointer, and what an output holds
 * after a failure is undefined. NULL, sizes that do not fit the memory, unknown enumerators and the like are
 * QK_INVALID; what would take a look at each element is checked only where that is said.
 *
 * Threads. Any thread may call at any time; weights and codebooks are never written to once they are made. The number
 * of threads and the instruction set are those of the process. */
#ifndef QKERNELS_H
#define QKERNELS_H

#include <stddef.h>
#include <stdint.h>

/* The version of this header, and of the package; qk_version() is that of the library. */
#define QK_VERSION "0.1.0"

#ifdef __cplusplus
extern "C" {
#endif

#if defined(QK_EXPORT) && defined(_WIN32) /* while a shared library is built */
#define QK_API __declspec(dllexport)
#elif defined(QK_EXPORT) && defined(__GNUC__)
#define QK_API __attribute__((visibility("default")))
#else
#define QK_API
#endif

typedef enum {
    QK_OK = 0,
    QK_NO_MEMORY = -1,
    QK_NOT_FINITE = -2,  /* a value is NaN or infinite */
    QK_INTERRUPTED = -3, /* see qk_set_interrupt */
    QK_OVERFLOW = -4,    /* sums could leave int32 */
    QK_INVALID = -5      /* an argument is not as this header wants it */
} qk_status;

typedef enum {
    QK_F32,
    QK_F64,
    QK_F16,
    QK_BF16,
    QK_I8,
    QK_U8,
    QK_I16,
    QK_U16,
    QK_I32,
    QK_I4, /* this and the next three: one code a byte, in its low bits; the others are written as 0, and not read */
    QK_U4,
    QK_I2,
    QK_U2,
    QK_F8_E4M3, /* codes that are floats, one a byte: float8_e4m3fn, float8_e5m2, float6_e2m3fn, ... of ml_dtypes */
    QK_F8_E5M2,
    QK_F6_E2M3,
    QK_F6_E3M2,
    QK_F4_E2M1
} qk_dtype;

/* How ties go; the last two are the fixed-point requantizations of gemmlowp and TFLite (numerics 7). */
typedef enum { QK_HALF_EVEN, QK_HALF_AWAY, QK_GEMMLOWP, QK_TFLITE } qk_rounding;
typedef enum { QK_IDENTITY, QK_RELU, QK_GELU, QK_GELU_TANH, QK_SILU } qk_activation;
/* Whether an array has one scale, one for each index of an axis, or one for each block along an axis. */
typedef enum { QK_PER_TENSOR, QK_PER_AXIS, QK_PER_BLOCK } qk_kind;

/* ---- the library ---- */

QK_API const char *qk_version(void);
/* A sentence that says what a status means; of another number, that it is none. */
QK_API const char *qk_status_text(qk_status status);

/* The instruction set in use ("amx", "avx512vnni", "avx2", "scalar", ...): the best that the CPU has, or what the
 * environment variable QKERNELS_ISA names. Setting it serves tests: QK_INVALID if it is not built or the CPU lacks it.
 */
QK_API const char *qk_get_isa(void);
QK_API qk_status qk_set_isa(const char *name);

/* Threads that a call uses, at least 1: at first as QKERNELS_NUM_THREADS says, or as many as there are CPUs. More than
 * qk_most_threads(), the CPUs of the machine or 8 if it has fewer, are as many as that. */
QK_API void qk_set_num_threads(int n);
QK_API int qk_get_num_threads(void);
QK_API int qk_most_threads(void);

/* Long calls ask `poll`, on the thread that called and every 40 ms or so, whether to stop. Where it does not return 0
 * they return QK_INTERRUPTED soon. NULL: they do not ask. */
QK_API void qk_set_interrupt(int (*poll)(void));
/* Calls with work for several threads ask `alone`, on the thread that called, whether to use that thread only: within
 * another library's parallel region, say. NULL: they do not ask. */
QK_API void qk_set_alone(int (*alone)(void));

/* ---- arrays: quantize and back (numerics 2 to 5) ---- */

/* Which scale an element has, and which codes there are. The array is seen as (outer, length, inner) around the axis:
 * for QK_PER_TENSOR only the product of the three counts, which for the others is 1 or more each or 0. The scales have
 * shape (), (length,) or (outer, ceil(length / block), inner), and so have the zero points. Scales are finite and at
 * least 2^-126, zero points within the codes' type; arrays of them are not checked: what wrong ones give is
 * undefined. */
typedef struct {
    qk_kind kind;
    size_t outer, length, inner, block;
    const float *scale;
    const float *reciprocal; /* NULL; or, which is faster for many scales, what qk_reciprocals made of them */
    const int32_t *zero_point;
    int32_t qmin, qmax; /* the smallest and the largest code, both within the type of the codes */
} qk_params;

/* Fills the reciprocals of n scales. Returns 0 if these are such that quotients need a division (numerics 3): leave
 * qk_params.reciprocal NULL. */
QK_API int qk_reciprocals(const float *scale, size_t n, float *reciprocal);

/* q = saturate(round(x / scale) + zero_point): from floats, to codes of 2 to 16 bits; QK_HALF_EVEN or QK_HALF_AWAY. NaN
 * becomes the zero point. To codes that are floats: QK_HALF_EVEN, zero points 0, whatever qmin and qmax are; NaN stays
 * NaN if there is one. */
QK_API qk_status qk_quantize(const void *x, qk_dtype from, void *q, qk_dtype to, const qk_params *p,
                             qk_rounding rounding);
/* y = (q - zero_point) * scale: from codes of 2 to 16 bits, or from int32, to floats. */
QK_API qk_status qk_dequantize(const void *q, qk_dtype from, void *y, qk_dtype to, const qk_params *p);
/* Both at once; y may be x. */
QK_API qk_status qk_fake_quantize(const void *x, void *y, qk_dtype dtype, const qk_params *p);

/* The scale and zero point of n values by their range, 0 included, for codes of 2 to 16 bits. QK_NOT_FINITE where a
 * value is NaN or infinite. symmetric: the zero point is the middle of the codes, and the lowest of these is not used,
 * so that qmin is 1 more than else. */
QK_API qk_status qk_choose_qparams(const float *x, size_t n, qk_dtype dtype, int symmetric, float *scale,
                                   int32_t *zero_point);
/* Each row of x (rows, cols) quantized by its own range: q (rows, cols), scale and zero_point (rows,). */
QK_API qk_status qk_dynamic_quantize(const float *x, size_t rows, size_t cols, void *q, qk_dtype to, int symmetric,
                                     float *scale, int32_t *zero_point);

/* Multipliers of int32 sums, one a column (numerics 7): float ones, positive and finite, for QK_HALF_EVEN and
 * QK_HALF_AWAY; mantissa and shift, by qk_quantize_multiplier, for QK_GEMMLOWP and QK_TFLITE. */
typedef struct {
    qk_rounding rounding;
    const float *multiplier;
    const int32_t *mantissa, *shift;
    int32_t zero_point, qmin, qmax;
} qk_requant;

/* m, positive and finite, as mantissa * 2^(shift - 31). */
QK_API void qk_quantize_multiplier(double m, int32_t *mantissa, int32_t *shift);
/* Codes of 2 to 16 bits q (rows, cols) = saturate(round((acc + bias) * multiplier) + zero_point), with acc (rows, cols)
 * and bias (cols,). */
QK_API qk_status qk_requantize(const int32_t *acc, const int32_t *bias, void *q, qk_dtype to, size_t rows, size_t cols,
                               const qk_requant *r);

/* ---- weights and products (numerics 6, 8, 12, 16 and 17) ---- */

/* A matrix b (k, n), inputs by outputs, in the layout that products read fastest on this CPU. */
typedef struct qk_weights qk_weights;

/* What becomes weights, which keep no pointer to it. By type:
 *
 *   QK_I8, QK_U8          codes with scales per tensor, per column (QK_PER_AXIS) or per block of rows and column
 *   QK_I4, QK_U4          the same, kept two a byte; with `block_scale` those with integer scales, which fold to
 *                         int8 (numerics 33)
 *   QK_I2, QK_U2          the same, kept four a byte
 *   QK_I16                codes with scales per tensor or per column
 *   QK_F16, QK_BF16       floats, which are finite, without scales
 *   QK_U8 with `levels`   codes of a codebook of at most 16 levels, kept at 4 bits, of 8 levels at 3 (unless blocks
 *                         have so few rows that 4 take less), of 4 at 2; its levels are rounded to int8 multiples of
 *                         the largest over 127, or of a power of two if they are such (numerics 12)
 *
 * All values are checked: scales, which are finite and at least 2^-126, zero points, the codes of a codebook. */
typedef struct {
    const void *b;
    qk_dtype type;
    size_t k, n;
    ptrdiff_t row_stride, col_stride; /* in bytes, of any sign; both 0: rows that follow one another */
    qk_kind kind;
    size_t block; /* rows of a block; multiples of 4 run fastest, of 16 at 3 bits, of 8 at 2 */
    /* (), (n,) or (ceil(k / block), n). Of a codebook only those of blocks, which may be 0; else NULL. */
    const float *scale;
    const int32_t *zero_point; /* of the same shape; NULL: 0 */
    const float *levels;       /* (level_count,), or with QK_PER_AXIS (n, level_count): of each column */
    size_t level_count;
    /* Of QK_I4 and QK_U4 per block, or NULL: w = scale * (block_scale * c + 3 * block_shift), where c is the code, or
     * the code - 8 of QK_U4, and the factor of scale is an int8. Then scale has shape (n,), these have (ceil(k /
     * block), n), 1 .. 16 and -8 .. 7; blocks are multiples of 4 rows; there are no zero points. */
    const uint8_t *block_scale;
    const int8_t *block_shift;
} qk_matrix;

QK_API qk_status qk_weights_new(const qk_matrix *matrix, qk_weights **weights);
QK_API void qk_weights_free(qk_weights *weights); /* NULL: does nothing */
/* What they occupy. */
QK_API size_t qk_weights_bytes(const qk_weights *weights);
QK_API size_t qk_weights_rows(const qk_weights *weights); /* k */
QK_API size_t qk_weights_cols(const qk_weights *weights); /* n */

/* What follows a product of floats: y = clamp(activation(x @ b + bias + residual)). */
typedef struct {
    const float *bias;     /* (n,), or NULL */
    const float *residual; /* (rows, n), or NULL; may be y */
    qk_activation activation;
    int bounded; /* whether the result is clamped to lo .. hi */
    float lo, hi;
    size_t x_stride, y_stride, residual_stride; /* from row to row */
} qk_layer;

/* y (rows, n) of x (rows, k), by any weights. Each row of x is quantized by its own range, to 8 bits, to 16 if the
 * weights are int16, and not at all if they are floats. layer: NULL for none of it. QK_NOT_FINITE where x has NaN or
 * infinity; QK_OVERFLOW if the weights are such that an int32 sum could overflow. */
QK_API qk_status qk_linear(const qk_weights *weights, const float *x, size_t rows, const qk_layer *layer, float *y);

/* A dense layer on codes: those of q, and those of the result. */
typedef struct {
    qk_dtype type, out_type; /* QK_I8 or QK_U8 each */
    float scale, out_scale;
    int32_t zero_point, out_zero_point;
    int32_t qmin, qmax;      /* the codes that results have; both 0: all of out_type */
    const int32_t *int_bias; /* (n,), in units of scale * b's scale, added to the sums; or NULL */
    const float *bias;       /* (n,), real values; or NULL. Not both, and not with fixed-point rounding */
    qk_activation activation;
    qk_rounding rounding;        /* the fixed-point ones: with no activation but QK_RELU */
    size_t q_stride, out_stride; /* from row to row */
} qk_code_layer;

/* out (rows, n) of q (rows, k), by 8-bit weights without blocks. QK_OVERFLOW as qk_linear. */
QK_API qk_status qk_qlinear(const qk_weights *weights, const void *q, size_t rows, const qk_code_layer *layer,
                            void *out);

/* out (rows, n) = (a - a_zero_point) @ (b - b_zero_point) of codes a (rows, k), exactly; scales and zero points of the
 * weights are not used. 8-bit weights without blocks: a is QK_I8 or QK_U8, out int32, modulo 2^32. int16 weights: a is
 * QK_I16, out int64. a_zero_point has an entry a row, b_zero_point one a column; NULL: 0. */
QK_API qk_status qk_matmul(const qk_weights *weights, const void *a, qk_dtype type, size_t rows,
                           const int32_t *a_zero_point, const int32_t *b_zero_point, void *out);

/* ---- codebooks (numerics 15) ---- */

/* Up to 256 levels that codes stand for: of all values, or of each index of an axis. */
typedef struct qk_book qk_book;

/* levels (channels, k), finite and in any order; 1 <= k <= 256. */
QK_API qk_status qk_book_new(const float *levels, size_t channels, size_t k, qk_book **book);
QK_API void qk_book_free(qk_book *book); /* NULL: does nothing */

/* Which levels and which scale a value has. The array is seen as (outer, length, inner) around the axis. With several
 * channels, `length` is their number. Blocks of `block` values along the axis (of one channel) are divided by their
 * scales, (outer, ceil(length / block), inner); block 0: there are none. */
typedef struct {
    size_t outer, length, inner, block;
} qk_shape;

/* The code of the level nearest to each value, the lower code of two as near. Fills `scale` with the largest magnitude
 * of each block; without blocks it is NULL. QK_NOT_FINITE where a value is NaN or infinite. */
QK_API qk_status qk_book_encode(const qk_book *book, const float *x, const qk_shape *shape, uint8_t *codes,
                                float *scale);
/* The level of each code, times the scale of its block. QK_INVALID where a code is not below k. */
QK_API qk_status qk_book_decode(const qk_book *book, const uint8_t *codes, const qk_shape *shape, const float *scale,
                                float *y);

/* ---- float layers (numerics 10 and 11) ---- */

/* Each row of x + residual (NULL: 0), both (rows, cols), normalised, times weight (cols,) plus bias (cols,). eps is
 * not negative. y may be x or residual. */
QK_API qk_status qk_layer_norm(const float *x, const float *residual, size_t rows, size_t cols, const float *weight,
                               const float *bias, double eps, float *y);

/* Softmax attention of sequences that lie one after another: tokens starts[i] .. starts[i + 1] attend to each other,
 * at most 65,536 of them. Rows, one a token, hold `heads` heads of `size` values, 1 to 65,536 of these. Strides are
 * from row to row; here 0 is one that all tokens share. */
typedef struct {
    const float *q, *k, *v;
    size_t q_stride, k_stride, v_stride;
    float *out;
    size_t out_stride;
    size_t heads, size, sequences;
    const int64_t *starts; /* sequences + 1 of them, ascending from 0 */
    double scale;          /* of the scores, positive; usually 1 / sqrt(size) */
} qk_attention_args;

/* QK_NOT_FINITE where a value of q, k or v is NaN or infinite. */
QK_API qk_status qk_attention(const qk_attention_args *args);

#ifdef __cplusplus
}
#endif

#endif
