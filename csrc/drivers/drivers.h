/* The drivers, as the bindings call them; the library's public interface is include/qkernels.h.
 *
 * Functions that can take long return an int, which is 0 where nothing else is said, or QK_INTERRUPTED.
 * Arrays are C-contiguous unless a stride is given; sizes are in elements. Nothing is checked here: who calls has
 * validated its arguments. Formulas and bounds: docs/numerics.md, cited as "numerics N". */
#ifndef QK_DRIVERS_H
#define QK_DRIVERS_H

#include "include/qkernels.h"
#include "kernels/arguments.h"
#include "kernels/gguf.h"
#include "runtime/dispatch.h"

/* ---- ranges ---- */

/* Smallest and largest value, 0 included. Returns 0 where x holds NaN or infinity. */
int qk_minmax(const float *x, size_t n, float *lo, float *hi);
void qk_choose(float lo, float hi, int32_t qmin, int32_t qmax, int symmetric, float *scale, int32_t *zero_point);
/* One scale and zero point a row. Returns 0 where x holds NaN or infinity. */
int qk_quantize_rows(const float *x, size_t rows, size_t cols, void *q, qk_dtype to, int32_t qmin, int32_t qmax,
                     int symmetric, float *scale, int32_t *zero_point);

/* qk_fake_quantize by way of codes that are floats. */
int qk_fake_quantize_floats(const void *x, void *y, qk_dtype dtype, qk_dtype codes, const qk_params *p);
/* The largest magnitude of each block of `block` along the middle axis of x (outer, length, inner), in the layout of
 * scales: float32, float64 being rounded away from 0 or towards it. Returns 0 if one is NaN, or beyond float32. */
int qk_block_magnitudes(const void *x, qk_dtype from, const qk_params *layout, int outward, float *most);
/* Scales of microscaling in place of such magnitudes. */
int qk_micro_scales(float *magnitudes, size_t n, const qk_micro *how);
/* qk_quantize, or qk_fake_quantize if `to` is `from`, by stochastic rounding (numerics 27); q may be x. */
int qk_quantize_randomly(const void *x, qk_dtype from, void *q, qk_dtype to, const qk_params *p, uint64_t seed);

/* The gradients of fake_quantize (numerics 26): of x, of each scale and of each zero point. */
typedef struct {
    const void *grad, *x;
    void *grad_x;
    float *grad_scale, *grad_zero_point;
    qk_dtype dtype; /* of the first three */
    int clipped;    /* whether x is inside by its quotient, rather than by that rounded */
} qk_fake_grad;

/* The sums of pieces that are kept; qk_fake_quantize_grad has room for twice as many. */
size_t qk_fake_grad_sums(const qk_params *p);
int qk_fake_quantize_grad(const qk_fake_grad *given, const qk_params *p, double *sums);

/* ---- integer products ---- */

/* What weights of 4 bits that fold to int8 have in place of panels of int8 (folded.c): the same for every instruction
 * set. Panels of 32 columns; behind them, in the same order, what their blocks have (generic/folded.h). */
typedef struct {
    size_t block;       /* rows of a block, a multiple of 4; 0: weights are no such */
    size_t blocks;      /* of a column */
    size_t panel_bytes; /* of a panel's codes */
    int flip;           /* code ^ flip is what is stored */
    uint8_t *panels;    /* aligned to 64 */
    /* Of columns, n_pad of each: scales, float16 if that holds them all, and sums of weights, whose upper bytes are one
     * where k is such that 24 bits hold them, else two. */
    int half_scales, high_bytes;
    uint8_t *columns;
} qk_folded;

/* Weights b (k, n) in the panels that an instruction set reads. Column arrays have n_pad entries. */
typedef struct {
    const qk_kernels *kernels;
    const qk_gemm8_kernels *gemm8;
    size_t k, n, k_pad, n_pad;
    int flipped;                      /* b was uint8 and is stored as b - 128 */
    size_t steps, count, panel_bytes; /* of a panel: k_pad / kr; how many panels: n_pad / nr */
    int8_t *panels;                   /* aligned to 64 */
    int32_t *colsum;                  /* of the stored codes */
    qk_folded folded;
} qk_gemm8_weights;

/* 4-bit weights with integer scales (numerics 33): a matrix as qk_weights_init has it; bytes of the panels, and what a
 * column takes beside them; then all of it is filled, where it returns max over columns of sum |b'|, or QK_INTERRUPTED.
 */
void qk_folded_init(qk_gemm8_weights *p, const qk_matrix *m);
size_t qk_folded_bytes(const qk_gemm8_weights *p);
size_t qk_folded_column_bytes(const qk_gemm8_weights *p);
int64_t qk_folded_pack(qk_gemm8_weights *p, const qk_matrix *m);
int qk_folded_unpack(const qk_gemm8_weights *p, void *b);
/* Scales and shifts of blocks (blocks, n). */
int qk_folded_params(const qk_gemm8_weights *p, uint8_t *block_scale, int8_t *block_shift);
/* Scales of the first columns. */
void qk_folded_scales(const qk_gemm8_weights *p, float *scale, size_t count);

/* Integer scales of weights (k, n) in blocks of rows, and the codes that these have, QK_I4 or QK_U4. */
typedef struct {
    size_t k, n, block;
    const float *scale;         /* (n,) */
    const uint8_t *block_scale; /* (ceil(k / block), n), as the next */
    const int8_t *block_shift;
    qk_dtype codes;
    int qmin, qmax;
} qk_integer_scales;

/* Whether all are such (1 or 0): scales as everywhere, those of blocks 1 .. 16, shifts -8 .. 7, weights int8. */
int qk_fold_fits(const qk_integer_scales *p);
/* The int8 that codes fold to; codes of x, QK_F32 or QK_F64, half to even or away. */
int qk_fold(const uint8_t *codes, int8_t *folded, const qk_integer_scales *p);
int qk_quantize_folded(const void *x, qk_dtype from, uint8_t *codes, const qk_integer_scales *p, qk_rounding rounding);

/* Return those of k's products that are faster on weights b (rows, cols), for qk_gemm8_init, or NULL. */
const qk_gemm8_kernels *qk_gemm8_kernels_for(const qk_kernels *k, const void *b, ptrdiff_t row_stride,
                                             ptrdiff_t col_stride, size_t rows, size_t cols, int b_unsigned);
size_t qk_gemm8_bytes(
    const qk_gemm8_weights *p); /* of the panels; SIZE_MAX (also of those below) where that overflows */
void qk_gemm8_init(qk_gemm8_weights *p, const qk_kernels *kernels, const qk_gemm8_kernels *gemm8, size_t k, size_t n,
                   int b_unsigned);
/* Fills panels and colsum; returns max over columns of sum |b - zero_point| (numerics 6), or 0 without zero_point. */
int64_t qk_gemm8_pack(qk_gemm8_weights *p, const void *b, ptrdiff_t row_stride, ptrdiff_t col_stride,
                      const int32_t *zero_point);
int qk_gemm8_unpack(const qk_gemm8_weights *p, void *b);

/* Where a comes from: codes with zero points, or floats that each row quantizes on the fly. */
typedef struct {
    size_t m;
    const void *a;
    ptrdiff_t row_stride; /* in bytes; unit stride along k */
    enum { QK_CODES_U8, QK_CODES_I8, QK_FLOATS } type;
    const int32_t *zero_point; /* of codes: NULL for 0 */
    int zero_point_per_row;
    float scale; /* of codes that become floats */
    const qk_patches
        *patches; /* of codes that share a zero point: where rows are gathered from, instead of a; or NULL */
} qk_rows;

/* What multiplies the sums of qlinear's columns: scales of a and b over that of the result, and a float bias, or NULL
 * (numerics 8). `real`: with an activation that needs real values. */
typedef struct {
    size_t n;
    float a_scale, out_scale;
    const float *b_scale, *bias;
    int real;
} qk_unit_columns;

/* Fills the multipliers, scales and biases of n columns. Returns 0 where some of them leave float32: these have a
 * multiplier of -1, and qk_wide_columns fills their wide_scale and wide_bias, and zeros for the others. */
int qk_unit_multipliers(const qk_unit_columns *p, float *multiplier, float *scale, float *bias);
void qk_wide_columns(const qk_unit_columns *p, const float *multiplier, double *wide_scale, double *wide_bias);

/* Returns 0 where memory ran out or (floats) a value is NaN or infinite: -1 and -2. */
int qk_gemm8(const qk_rows *source, const qk_gemm8_weights *b, const qk_epilogue *epilogue);
/* The same of folded weights and floats: scales of columns are those of the weights. */
int qk_folded_linear(const qk_rows *source, const qk_gemm8_weights *b, const qk_epilogue *epilogue);

/* Many products of codes, each with its own b, which is packed on the way. The matrices are counted through `shape`, C
 * order; each operand has a step for each of those axes, 0 where all matrices share it: in bytes, of zero points in
 * entries. */
enum { QK_MAX_AXES = 64 };
typedef struct {
    qk_rows source; /* the first a; zero_point: one, or m of them */
    const void *b;  /* the first b (k, n) */
    size_t k, n;
    ptrdiff_t b_row_stride, b_col_stride;
    int b_unsigned;
    const int32_t *b_zero; /* n of them, or NULL for 0 */
    int32_t *out;          /* C-contiguous */
    int axes;
    size_t shape[QK_MAX_AXES];
    ptrdiff_t a_step[QK_MAX_AXES], b_step[QK_MAX_AXES], a_zero_step[QK_MAX_AXES], b_zero_step[QK_MAX_AXES];
} qk_batch;

/* Returns as qk_gemm8. */
int qk_gemm8_batch(const qk_batch *batch);

/* ---- layers on codes of 8 bits (numerics 23) ---- */

/* Of codes, signed if qmin < 0 (of an operand: the least code of its type) or unsigned; qmin and qmax bound results. */
typedef struct {
    float scale;
    int32_t zero_point, qmin, qmax;
} qk_code_params;

/* y = table[q, or q + 128 of signed codes]; rows of y lie y_stride apart, from which q's have no gap. */
int qk_take_table(const uint8_t *q, size_t rows, size_t cols, int is_signed, const uint8_t *table, uint8_t *y,
                  size_t y_stride);

/* Sums or products of codes of one type, rows of n results, counted through the outer axes in C order. A step is one
 * from entry to entry of an axis, 0 where all share them; b has one code a row (b_step 0) or n. Rounding is half even,
 * as onnxruntime, or QK_TFLITE. */
typedef struct {
    const uint8_t *a_codes, *b_codes;
    uint8_t *y_codes;
    qk_code_params a, b, y;
    int product, is_signed;
    qk_rounding rounding;
    size_t n, b_step;
    int axes;
    size_t shape[QK_MAX_AXES], a_steps[QK_MAX_AXES], b_steps[QK_MAX_AXES];
} qk_code_pair;

int qk_pair_codes(const qk_code_pair *p);

/* Of rows. */
int qk_softmax_codes(const uint8_t *q, const qk_code_params *params, size_t rows, size_t cols, uint8_t *y,
                     const qk_code_params *to);

/* Layer norm of rows, or RMS norm if bias is NULL. Returns -1 if memory ran out. */
typedef struct {
    const uint8_t *q;
    uint8_t *y;
    size_t rows, cols;
    const float *weight, *bias;
    double eps;
    qk_code_params params, to;
} qk_code_norm_args;

int qk_norm_codes(const qk_code_norm_args *args);

/* ---- float layers that take and give codes (numerics 25) ---- */

/* Values in rows: floats, or codes of 8 bits with a scale and a zero point, or one a column. */
typedef struct {
    const void *data;
    qk_dtype type;
    const qk_params *params; /* NULL: floats */
} qk_values;

/* Layer norm as qk_layer_norm. y, whose data is written, is none of the codes. Returns -1 if memory ran out. */
typedef struct {
    qk_values x, residual, y; /* residual.data NULL: 0 */
    size_t rows, cols;
    const float *weight, *bias;
    double eps;
} qk_norm_args;

int qk_layer_norm_of(const qk_norm_args *args);

/* Rotation of rows, or the one back (numerics 34). y may be x, and else does not overlap it. Returns -1 if memory ran
 * out. */
typedef struct {
    const float *x;
    float *y;
    size_t rows, cols;
    uint64_t seed;
    int inverse;
} qk_rotation;

int qk_rotate(const qk_rotation *p);

/* Attention as qk_attention, but for codes of q, k and v (with `codes`, three), which `args` points to and has strides
 * of, and to codes of the result (with `to`): 8 bits each. Heads of codes have at most QK_MOST_CODES values, and
 * sequences so many tokens: then int32 holds all sums. */
enum { QK_MOST_CODES = 16384 };
int qk_attention_of(const qk_attention_args *args, const qk_code_params *codes, const qk_code_params *to);

/* ---- products with 4-bit weights, and with blocks of 8-bit ones ---- */

/* Weights b (k, n) of 2, 3, 4 or 8 bits, each block of `block` rows having a scale for each column (numerics 12). The
 * panels, of 32 columns, are the same for every instruction set. A panel is a run of records, one a block: the codes,
 * one or two a byte, in steps of 4 rows (gemm4.h), 32 scales, and 32 zero points where they are not all equal (of 8
 * bits: where not all are 0), and of 8 bits the negative sums of the columns, int16 in blocks of at most QK_SHORT_BLOCK
 * rows, else int32. Codes of 4 bits may stand for levels; where each column has its own, there is one block, and a
 * panel has for each 16 columns their levels, and codes in steps of 32 rows: byte i of a column's 16 has row i in its
 * low half and row i + 16 in its high half; then 32 scales, float32. */
typedef struct {
    const qk_kernels *kernels;
    size_t k, n, n_pad;
    size_t block, blocks;
    int bits;        /* of a code: 2, 3, 4 or 8; of 2 and 3 kernels/low_bits.h tells how they lie */
    size_t pad;      /* blocks are padded to whole multiples of so many rows */
    int flip;        /* code ^ flip is stored: 4 bits as unsigned numbers, 8 as signed ones */
    int half_scales; /* scales are float16, which holds each exactly */
    int byte_scales; /* or bytes: shifted left by 20, the bits of floats, times scale_unit, as exactly */
    float scale_unit;
    int own_zeros;
    int long_sums;        /* of 8 bits: sums of columns are int32 */
    int32_t zero;         /* of the stored codes, unless own_zeros; of levels + 128 */
    const int8_t *levels; /* 16 of a codebook, or NULL */
    int column_levels;
    float level_scale; /* of all levels, 1 where scales have it */
    float most_scale;  /* the largest of the blocks' */
    uint8_t *panels;   /* qk_gemm4_bytes of them, aligned to 64 */
} qk_gemm4_weights;

/* A matrix as qk_weights_init has it. 16 int8 levels that all columns share are kept at `levels`. */
void qk_gemm4_init(qk_gemm4_weights *p, const qk_matrix *m, int8_t *levels);
size_t qk_gemm4_bytes(const qk_gemm4_weights *p);
int qk_gemm4_pack(qk_gemm4_weights *p, const qk_matrix *m);
int qk_gemm4_unpack(const qk_gemm4_weights *p, void *b);
/* Scales and zero points of b, both (blocks, n), as they were packed; the latter are not those of levels. */
void qk_gemm4_params(const qk_gemm4_weights *p, float *scale, int32_t *zero_point);
/* Whether float16 has each of the values, which are not negative. */
int qk_holds_as_half(const float *values, size_t count);
/* x (m, k), whose row_stride is in bytes, times b; of `epilogue` what concerns floats, but for col_scale. Returns as
 * qk_gemm8. */
int qk_gemm4_linear(const float *x, ptrdiff_t row_stride, size_t m, const qk_gemm4_weights *b,
                    const qk_epilogue *epilogue);

/* Rounds rows one after another, each with what the errors of the others add to it (numerics 30). */
int qk_round(const qk_feedback *p);
/* Makes `sums` of the distances that the first pass has left there: by `feed`, the triangular factor above its
 * diagonal, which is `weight`; `rest` (k) is the sum of the squares of a row of `feed`. */
int qk_start_sums(const qk_feedback *p, const float *rest);

/* ---- codebooks (numerics 15) ---- */

/* Tables of channels, one after another; those of the first. Several have no buckets. */
typedef struct {
    size_t channels;
    qk_levels first;
} qk_codebook;

/* The tables of a book, which keeps them; without buckets. */
qk_codebook qk_book_tables(const qk_book *book);
/* x is seen as (outer, length, inner). Without scale: one channel, or channel i of `length` for index i of the axis.
 * With it: one channel; each block of `block` values along the axis is divided by its scale, its largest magnitude,
 * scale having the shape (outer, ceil(length / block), inner). Returns 0 where a value is NaN or infinite. */
int qk_encode(const float *x, uint8_t *q, const qk_codebook *c, size_t outer, size_t length, size_t inner, size_t block,
              float *scale);
/* No code may exceed the levels. */
int qk_decode(const uint8_t *q, float *y, const qk_codebook *c, size_t outer, size_t length, size_t inner, size_t block,
              const float *scale);
int qk_largest_code(const uint8_t *q, size_t n);

/* Codes of the nearest levels, of `total` values around an axis, which become stochastic ones (numerics 27). Tables of
 * channels are one after the other, as qk_moves has them. */
typedef struct {
    const void *x;
    qk_dtype dtype; /* QK_F32 or QK_F64 */
    uint8_t *codes;
    const float *level, *per_distance;
    const uint8_t *next;
    size_t k, channels, total, length, inner, block, scales;
    const float *scale; /* of the blocks, or NULL */
    float *factor;      /* memory for as many */
    uint64_t seed;
} qk_moved_codes;

int qk_move_codes(qk_moved_codes *m);

/* n codes of 1, 2, 3, 4, 5, 6 or 8 bits, one a byte, to and from ceil(n * bits / 8) bytes: the first in the lowest
 * bits. */
int qk_pack_bits(const uint8_t *codes, size_t n, int bits, uint8_t *data);
int qk_unpack_bits(const uint8_t *data, size_t n, int bits, uint8_t *codes);

/* Blocks as GGUF lays them out. Writes Q8_0 and Q4_0; returns the bits of the largest magnitude, above those of FLT_MAX
 * where a value is not finite. */
int32_t qk_to_gguf(const float *x, uint8_t *data, size_t blocks, qk_gguf_type type);
/* Reads values y, or, if y is NULL, codes and scales, without what is added to their products. */
/* Factors (blocks, 2), integers (blocks, 2, groups) and codes of blocks of a K kind. */
int qk_search_k(const float *x, const float *w, size_t blocks, qk_gguf_type type, float *factors, int8_t *integers,
                uint8_t *codes);
int qk_from_gguf(const uint8_t *data, float *y, int8_t *q, float *scale, size_t blocks, qk_gguf_type type);

/* ---- products with float16 and bfloat16 weights ---- */

/* Weights b (k, n) in panels of 32 columns, which are the same for every instruction set. */
typedef struct {
    const qk_kernels *kernels;
    size_t k, n, n_pad;
    qk_dtype type;    /* QK_F16 or QK_BF16 */
    float most;       /* the largest magnitude */
    uint16_t *panels; /* qk_gemmf16_bytes of them, aligned to 64 */
} qk_gemmf16_weights;

void qk_gemmf16_init(qk_gemmf16_weights *p, const qk_kernels *kernels, size_t k, size_t n, qk_dtype type);
size_t qk_gemmf16_bytes(const qk_gemmf16_weights *p);
/* Strides in bytes. Returns 0 where b holds NaN or infinity. */
int qk_gemmf16_pack(qk_gemmf16_weights *p, const void *b, ptrdiff_t row_stride, ptrdiff_t col_stride);
int qk_gemmf16_unpack(const qk_gemmf16_weights *p, void *b);
/* As qk_gemm4_linear. */
int qk_gemmf16_linear(const float *x, ptrdiff_t row_stride, size_t m, const qk_gemmf16_weights *b,
                      const qk_epilogue *epilogue);

/* ---- products of int16 ---- */

/* Codes b (k, n) in panels of an instruction set's nr columns, steps of 2 codes of k. Column arrays have n_pad entries.
 */
typedef struct {
    const qk_kernels *kernels;
    size_t k, n, steps, n_pad;
    int32_t largest; /* magnitude of b */
    int16_t *panels; /* qk_gemm16_bytes of them, aligned to 64 */
    int64_t *colsum;
} qk_gemm16_weights;

void qk_gemm16_init(qk_gemm16_weights *p, const qk_kernels *kernels, size_t k, size_t n);
size_t qk_gemm16_bytes(const qk_gemm16_weights *p);
/* Fills panels, colsum and largest; strides in bytes. */
int qk_gemm16_pack(qk_gemm16_weights *p, const void *b, ptrdiff_t row_stride, ptrdiff_t col_stride);
int qk_gemm16_unpack(const qk_gemm16_weights *p, int16_t *b);
/* As qk_gemm8: of floats to floats, or, whatever other type they have, of int16 codes to int64. Of `epilogue` it reads
 * type, out, row_stride and b_zero, and for floats col_scale, float_bias and activation. */
int qk_gemm16(const qk_rows *source, const qk_gemm16_weights *b, const qk_epilogue *epilogue);

/* ---- depthwise kernels (numerics 22) ---- */

/* Codes b (height * width, n), a column a channel, in panels of `block` channels. A panel has for each shift of the
 * kernel down the rows of the image that are seen at once, for each column of the kernel and each step of `taps` rows,
 * 4 bytes a channel: int8 codes of 4 rows, or int16 differences from the zero point of 2. */
typedef struct {
    const qk_kernels *kernels;
    size_t n, height, width, taps, steps, shifts, panel_bytes; /* steps of a column of the kernel */
    int flipped, wide;
    char *panels;    /* aligned to 64 */
    int32_t *colsum; /* of what is stored */
} qk_depthwise_weights;

/* ---- weights of any kind ---- */

typedef enum {
    QK_GEMM8,
    QK_GEMM4,
    QK_FOLDED,
    QK_GEMMF16,
    QK_GEMM16,
    QK_DEPTHWISE
} qk_family; /* whose products multiply them */

/* Panels, and what else products read, in one piece of memory. Column arrays have n_pad entries. */
struct qk_weights {
    qk_family family;
    qk_dtype type;
    size_t k, n, n_pad;
    union {
        qk_gemm8_weights gemm8;
        qk_gemm4_weights gemm4;
        qk_gemmf16_weights gemmf16;
        qk_gemm16_weights gemm16;
        qk_depthwise_weights depthwise;
    };
    void *memory;
    size_t bytes, panel_bytes; /* of the memory, and of the panels in it; SIZE_MAX where that overflows */
    float *scale;              /* of columns; NULL where panels hold them, or there are none */
    int32_t *zero_point;       /* NULL where all are 0 */
    int has_zeros;
    float least_scale, most_scale;
    int64_t bound;     /* of bytes: max over columns of sum |b - zero_point| */
    int8_t levels[16]; /* those that all columns share */
};

size_t qk_scale_count(const qk_matrix *m); /* or of levels with scales */
/* Chooses a layout for a matrix whose strides are set; its scales, if it has any, have zero points. `height` is 0, or
 * that of a depthwise kernel, whose columns of taps are those of the matrix. */
void qk_weights_init(qk_weights *w, const qk_matrix *m, size_t height);
/* Packs the same matrix in w->bytes of memory, aligned to 64. */
qk_status qk_weights_fill(qk_weights *w, const qk_matrix *m, void *memory);
int qk_weights_unpack(const qk_weights *w, void *b);
/* Scales and zero points as they were given: of columns, or of blocks, as qk_gemm4_params. */
void qk_weights_params(const qk_weights *w, float *scale, int32_t *zero_point);
/* How many rows can share a scale before a sum of int32 might overflow (numerics 12). */
size_t qk_most_rows(const qk_gemm4_weights *p);
/* Rows times weights of any kind. Returns as qk_gemm8. */
int qk_multiply(const qk_rows *rows, const qk_weights *w, const qk_epilogue *epilogue);

/* Makes, for `epilogue`, what does not change from call to call with codes of source's type and zero point, in the
 * memory at `columns`: 2 * n_pad entries. No sum has a magnitude above `largest` before its bias. Returns 0 if that is
 * not all there is to make: zero points of weights need the rows. */
int qk_prepare(const qk_rows *source, const qk_weights *w, qk_epilogue *epilogue, int64_t largest, int32_t *columns);

/* ---- convolution (numerics 22) ---- */

void qk_depthwise_init(qk_depthwise_weights *p, const qk_matrix *m, size_t height);
size_t qk_depthwise_bytes(const qk_depthwise_weights *p); /* of the panels */
/* Fills panels and colsum; returns max over columns of sum |b - zero_point|. */
int64_t qk_depthwise_pack(qk_depthwise_weights *p, const qk_matrix *m);
/* Entries of the channels, 4 bytes each, in the order of their neighbours in each block. */
void qk_order_channels(const qk_depthwise_weights *b, const int32_t *channels, int32_t *to);
int qk_depthwise_unpack(const qk_weights *w, void *b);

/* Columns that the groups of a convolution are padded to, in one matrix of all of them. */
size_t qk_group_columns(void);
/* Convolves codes of source's type and zero point, image being where they are, with the weights of so many groups:
 * columns of one matrix, of which each group has `filters` and then those that pad it; or depthwise ones. Returns as
 * qk_gemm8. */
int qk_conv(const qk_rows *source, const qk_image *image, const qk_weights *w, size_t groups, size_t filters,
            const qk_epilogue *epilogue);
/* The largest code, or the mean of all, of the window of each channel, of what it holds of the image or of all of it.
 */
int qk_max_pool(const qk_image *image, int is_signed, uint8_t *out);
int qk_average_pool(const qk_image *image, int is_signed, int32_t zero_point, int with_padding, const float *scales,
                    const qk_requant *r, uint8_t *out);

/* ---- scales of least squares ---- */

typedef struct {
    size_t n, block;           /* values of a row, and of those that share a scale; the last block may be short */
    int qmin, qmax;            /* codes */
    int first_zero, last_zero; /* zero points to try */
} qk_least_squares;

/* Replaces the scale and zero point (rows, blocks) of x (rows, n), finite and within float32, by those of least
 * squares, where these are better. importance (rows, n), finite and not negative, may be NULL. Returns 1, -1 where
 * memory ran out, or QK_INTERRUPTED. */
int qk_refine(const qk_least_squares *p, size_t rows, const double *x, const double *importance, float *scale,
              int32_t *zero_point);

/* Integer scales of columns of k values in blocks, for codes qmin .. qmax, `middle` being the one of 0: by the range,
 * or by least squares; with shifts, or these are 0. */
typedef struct {
    size_t k, block;
    int qmin, qmax, middle, shifts, least_squares;
} qk_integer_search;

/* Finds those of x (columns, k), finite and within float32: scale (columns,), block_scale and block_shift (columns,
 * blocks). importance as of qk_refine. Returns as it does. */
int qk_search_integer_scales(const qk_integer_search *p, size_t columns, const double *x, const double *importance,
                             float *scale, uint8_t *block_scale, int8_t *block_shift);

/* ---- k-means ---- */

/* Labels, bounds and sums of the chunks first .. last - 1; adds to `counts`. Returns 0 where memory ran out, as the
 * next two. */
int qk_kmeans_assign(const qk_kmeans *p, size_t first, size_t last, qk_kmeans_counts *counts);
/* `distance` and `half` of the centroids. */
int qk_kmeans_distances(const qk_kmeans *p);
/* For each chunk and each of `count` seeds the sum of weight * min(nearest, squared distance to the seed). `update`,
 * where there is one seed: the minimum becomes `nearest`. */
int qk_kmeans_seed(const qk_kmeans *p, const void *seeds, size_t count, int update, void *nearest, double *potential);
/* Sums of weight * squared distance to the centroid of the label, of chunks; and of each point, unless `errors` is
 * NULL. */
int qk_kmeans_errors(const qk_kmeans *p, double *errors, double *sums);

/* ---- clustering on a line ---- */

/* Lines of points and the best clusters of each (numerics 13). */
typedef struct {
    size_t lines, n, k;
    int integers;        /* 0: values are doubles; 1: uint64_t; 2: int64_t, the sign bit flipped, so that they ascend as
                            uint64_t */
    int pinned;          /* whether the smallest value is a centroid, whatever that costs */
    void *values;        /* (lines, n); overwritten, as weights are */
    double *weights;     /* (lines, n), or NULL: 1 each */
    double *centroids;   /* (lines, k); the last one fills the places of those that a line lacks */
    void *limits;        /* (lines, k): the largest value of each cluster, of the type of values */
    int32_t *counts;     /* (lines,): 0 where a value is not finite, or weights are negative, not finite or all 0 */
    double *inertia;     /* (lines,) */
    int32_t *exponents;  /* (lines,): inertia is in units of 2 to these; or NULL: of 1 */
    int (*stop)(void *); /* whether to give up, asked every few milliseconds */
    void *context;
} qk_lines;

/* QK_LINES_TOO_WIDE: products leave a double's range, where there is no wider type (kmeans1d.h). */
typedef enum { QK_LINES_DONE, QK_LINES_STOPPED, QK_LINES_NO_MEMORY, QK_LINES_TOO_WIDE } qk_lines_status;
qk_lines_status qk_cluster_lines(const qk_lines *p);
/* The distinct values of one line of doubles, ascending, and the sums of their weights: the first counts[0] of both. */
qk_lines_status qk_distinct_points(const qk_lines *p);
/* labels (lines, n) of any values: uint8_t, or int32_t. Limits are rows of k, of which count are in use. */
void qk_label_lines(const void *values, int integers, size_t lines, size_t n, const void *limits, size_t k,
                    const int32_t *counts, void *labels, int as_int32);
/* Adds the weight of each code, or 1, to its bin. Returns 0 where a weight is negative or not finite. */
int qk_count_codes(const uint16_t *codes, const double *weights, size_t n, double *bins);
void qk_look_up(const uint16_t *codes, size_t n, const void *table, void *labels, int as_int32);

/* ---- histograms (numerics 24) ---- */

/* Counts of the values of lines, in blocks of bins: of one sign and exponent, that is of the values whose bits begin
 * alike. A block that is absent is one of zeros. */
enum { QK_BLOCKS = 512, QK_SIGN_BLOCK = 256 /* from which on they are of negative values */ };
typedef struct qk_histogram qk_histogram;

/* 2^bits bins a block, bits <= 10. NULL where memory ran out. */
qk_histogram *qk_histogram_new(size_t lines, int bits);
void qk_histogram_free(qk_histogram *h);
/* Counts x (rows, n), n < 2^31, of the lines from `first` on. Returns 1; 0 where a value is not finite, -1 where memory
 * ran out, or QK_INTERRUPTED: then a single row has left no trace, but of several rows some may be counted. */
int qk_histogram_count(qk_histogram *h, const float *x, size_t first, size_t rows, size_t n);
/* Adds the counts of another of the same lines and bins. Returns 0, and has done nothing, where memory ran out. */
int qk_histogram_merge(qk_histogram *h, const qk_histogram *other);
/* The block of a line, or NULL if it is absent and not to be made, or memory ran out. */
uint64_t *qk_histogram_block(qk_histogram *h, size_t line, size_t block, int make);
/* Ranks (lines,) of the extremes, the first above the second where nothing has been counted. */
int32_t *qk_histogram_least(qk_histogram *h);
int32_t *qk_histogram_most(qk_histogram *h);

/* Bins in ascending order, apart from one another: from begin to end, with count > 0 values. */
typedef struct {
    size_t n;
    const double *begin, *end, *count;
} qk_bins;
/* What each of some ranges lo .. hi, cut into so many equal cells, loses of the distribution: infinite where nothing is
 * within. Returns 0 where memory ran out. */
int qk_divergences(const qk_bins *bins, size_t cells, size_t ranges, const double *lo, const double *hi,
                   double *divergence);

/* ---- codebooks of vectors ---- */

/* x (n, m * d), finite, in the scale of b->scaled, and the same as it was given, to codes (n, m). Returns 0 where
 * memory ran out. */
int qk_pq_encode(const float *x, const float *given, uint8_t *codes, size_t n, const qk_pq_book *b);
int qk_pq_decode(const uint8_t *codes, float *y, size_t n, const qk_pq_book *b);
/* Squared distances (count, m, k) of queries (count, m * d) from levels. */
int qk_pq_distance_tables(const float *queries, size_t count, const qk_pq_book *b, float *tables);
/* Codes of 4 bits (n, m), one a byte, to packed ones and back. */
int qk_pq_pack(const uint8_t *codes, size_t n, size_t m, uint8_t *packed);
int qk_pq_unpack(const uint8_t *packed, size_t n, size_t m, uint8_t *codes);
/* Of each query the k smallest sums of squared distances, and whose they are, ascending. 1 <= k <= n < 2^32. Returns 0
 * where memory ran out, and 2 where a code is not below b->k, if it checks them: else they have been. */
int qk_pq_search(const float *queries, size_t count, const qk_pq_codes *codes, const qk_pq_book *b, size_t k,
                 float *distances, int64_t *indices);
int qk_pq_checks(const qk_pq_codes *codes, const qk_pq_book *b, size_t k);

#endif
