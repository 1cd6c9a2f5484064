/* Scales whose product may leave float32 (numerics 21): which rows are scaled in float32, by the kernels, and how the
 * others are.
 *
 * A driver of float results states once a product what multiplies what (qk_factors), has each row of x quantized by
 * qk_quantize_row, and where that says that a row is wide makes its results by qk_finish_row, from sums that it scales
 * in double. What a row is depends on the row, the weights and the bias alone: never on tiles, threads or the
 * instruction set. */
#ifndef QK_SCALES_H
#define QK_SCALES_H

#include <string.h>

#include "kernels/kernels.h"

/* What multiplies the scale of a row: first, in float32, factors from `least` to `most` (scales of columns, or 1); then
 * sums of at most `sum` in magnitude, in which no intermediate is larger. `bias` is that of qk_largest_bias. */
typedef struct {
    double least, most, sum, bias;
} qk_factors;

/* Whether each intermediate of a row of this scale is a normal float32, or exact. (Beyond 2^126 a bias could overflow.)
 */
static inline int qk_is_ordinary(const qk_factors *f, double scale)
{
    return scale * f->least >= 0x1p-126 && scale * f->most <= 0x1p127 && scale * f->most * f->sum <= 0x1p126 &&
        f->sum <= 0x1p127 && f->bias <= 0x1p126;
}

/* The largest magnitude of rows; not finite where a value is not. */
static inline float qk_largest(const qk_kernels *k, const float *x, size_t stride, size_t rows, size_t cols)
{
    const int32_t bits = k->layers->absmax_f32(x, stride, rows, cols);
    float most;
    memcpy(&most, &bits, sizeof most);
    return most;
}

/* The largest finite bias of n columns if a residual is added to it, which could bring the sum back from beyond
 * float32; else 0. */
double qk_largest_bias(const qk_kernels *k, const qk_epilogue *epilogue, size_t n);

/* How rows of x become codes of 8 or 16 bits (numerics 2 and 3). */
typedef struct {
    const qk_kernels *kernels;
    size_t n;
    int32_t qmin, qmax;
    int symmetric, bytes;
    qk_factors factors;
} qk_row_quantizer;

/* What is known of such a row. `wide` is 0 if it is ordinary; else it is the scale, `scale` being something finite. */
typedef struct {
    float scale;
    double wide;
    int32_t zero_point;
} qk_row_scale;

/* Finds the range of a row, its scale and its codes; returns 0 where a value is not finite. */
int qk_quantize_row(const qk_row_quantizer *p, const float *x, void *q, qk_row_scale *row);

/* Rows of codes from 0 to 255 whose scales are found together: the divisions that each takes wait for one another.
 * Those that are not `usual` are left to qk_quantize_row. */
enum { QK_TOGETHER = 16 };
typedef struct {
    float lo[QK_TOGETHER], hi[QK_TOGETHER], scale[QK_TOGETHER];
    float above[QK_TOGETHER], below[QK_TOGETHER], start[QK_TOGETHER]; /* qk_bracket */
    int32_t zero_point[QK_TOGETHER], usual[QK_TOGETHER];
} qk_row_group;

/* Finds the scales of at most QK_TOGETHER rows, `stride` bytes apart. */
void qk_plan_group(const qk_row_quantizer *p, const float *x, ptrdiff_t stride, size_t rows, qk_row_group *group);
/* Row i of the group at x; returns as qk_quantize_row. */
int qk_quantize_of_group(const qk_row_quantizer *p, const qk_row_group *group, size_t i, const float *x, uint8_t *q,
                         qk_row_scale *row);

/* Turns scaled sums of the one row of a tile, at most MAX_NR, into its floats: bias, residual, one rounding to float32,
 * then the activation and the clamp. */
void qk_finish_row(const qk_kernels *k, const double *sums, const qk_tile *t);

/* Codes of n values, at most MAX_NR, of a tile's columns: real ones if it has an activation that needs those, else in
 * units of the result's scale. */
void qk_finish_codes(const qk_kernels *k, const double *values, int n, const qk_tile *t, uint8_t *codes);

/* The sum of a column in the one row of a tile, corrected for zero points. */
static inline int32_t qk_sum_of(const int32_t *acc, const qk_tile *t, int col)
{
    uint32_t sum = (uint32_t)acc[col];
    if (t->row_zero) sum -= (uint32_t)t->row_zero[0] * (uint32_t)t->colsum[col];
    if (t->row_term) sum -= (uint32_t)t->row_term[0] * (uint32_t)t->col_zero[col];
    return (int32_t)sum;
}

/* One row of a tile. */
static inline qk_tile qk_row_of_tile(const qk_tile *t, int row)
{
    qk_tile r = *t;
    r.rows = 1;
    if (r.row_zero) r.row_zero += row;
    if (r.row_term) r.row_term += row;
    if (r.row_scale) r.row_scale += row;
    if (r.residual) r.residual = (const float *)((const char *)t->residual + (size_t)row * t->residual_stride);
    r.dst = (char *)t->dst + (size_t)row * t->row_stride;
    return r;
}

/* Copies of `count` floats or int32, one after the other, until there are `total` in `to`, which is returned; NULL is
 * left NULL. */
static inline void *qk_repeat(const void *from, size_t count, size_t total, void *to)
{
    if (!from) return NULL;
    memcpy(to, from, count * sizeof(int32_t));
    for (size_t done = count, more; done < total; done += more) {
        more = min_size(done, total - done);
        memcpy((char *)to + done * sizeof(int32_t), to, more * sizeof(int32_t));
    }
    return to;
}

#endif
