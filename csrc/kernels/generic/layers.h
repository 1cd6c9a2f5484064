/* The loops of float layers (layers.c), compiled once per instruction set, after elementwise.h. */
#ifndef QK_GENERIC_LAYERS_H
#define QK_GENERIC_LAYERS_H

#include "kernels/generic/elementwise.h"
#include "kernels/kernels.h"
#include "runtime/compiler.h"

/* ---- layer norm (numerics 10) ---- */

/* Sixteen partial sums in two halves, whatever the width of a register: sums are taken in the same order everywhere. */
typedef float half_lanes __attribute__((vector_size(32), aligned(4), may_alias));
typedef struct {
    half_lanes low, high;
} lanes;
enum { LANES = 16 };

static inline half_lanes *halves(float *x) { return (half_lanes *)x; }
static inline const half_lanes *halves_of(const float *x) { return (const half_lanes *)x; }

/* Return the mean of n values from partial sums: lane i gains lane i + 8, then i + 4, i + 2, i + 1. */
static inline float mean_of_lanes(lanes of, size_t n)
{
    float sums[LANES / 2];
    halves(sums)[0] = of.low + of.high;
    for (int half = LANES / 4; half > 0; half /= 2)
        for (int i = 0; i < half; i++) sums[i] += sums[i + half];
    return sums[0] / (float)n;
}

/* Return whether one of n weights is of magnitude 2^110 or more, or NaN. */
static inline int any_huge(const float *weight, size_t n)
{
    int32_t most = 0;
    for (size_t i = 0; i < n; i++) {
        const int32_t magnitude = bits_of(weight[i]) & INT32_MAX;
        most = magnitude > most ? magnitude : most;
    }
    return most >= 0x76800000;
}

/* Rows that are normed together: their chains of additions do not wait for one another. */
typedef struct {
    const float *x, *residual, *weight, *bias;
    float *y;
    size_t n, whole; /* up to the last n % 16 */
    float mean[QK_NORM_ROWS], inverse[QK_NORM_ROWS];
} norm;

/* Values i .. i + 15 of x, plus those of the residual if there is one, less `mean`. Here and below `rows`, `added` and
 * `kept` are constants. */
static QK_INLINE lanes take_lanes(const norm *of, const int added, size_t i, float mean)
{
    lanes v = {halves_of(of->x + i)[0], halves_of(of->x + i)[1]};
    if (added) v.low += halves_of(of->residual + i)[0], v.high += halves_of(of->residual + i)[1];
    return (lanes){v.low - mean, v.high - mean};
}

static QK_INLINE float value_at(const norm *of, const int added, size_t i)
{
    return added ? of->x[i] + of->residual[i] : of->x[i];
}

/* The same of the last n % 16 values of a row, and zeros. */
static QK_INLINE lanes take_tail(const norm *of, const int added, int row, float mean)
{
    float tail[LANES] = {0};
    if (of->whole == of->n) return (lanes){{0}, {0}};
    for (size_t i = of->whole; i < of->n; i++)
        tail[i - of->whole] = value_at(of, added, (size_t)row * of->n + i) - mean;
    return (lanes){halves(tail)[0], halves(tail)[1]};
}

static QK_INLINE void add_lanes(lanes *sum, lanes v) { sum->low += v.low, sum->high += v.high; }
static QK_INLINE lanes squares_of(lanes v) { return (lanes){v.low * v.low, v.high * v.high}; }

/* If `kept`, y becomes x + residual. */
static QK_INLINE int find_means(norm *of, const int rows, const int added, const int kept)
{
    lanes sum[QK_NORM_ROWS] = {0};
    for (size_t i = 0; i < of->whole; i += LANES)
        for (int row = 0; row < rows; row++) {
            const size_t at = (size_t)row * of->n + i;
            const lanes v = take_lanes(of, added, at, 0);
            if (kept) halves(of->y + at)[0] = v.low, halves(of->y + at)[1] = v.high;
            add_lanes(sum + row, v);
        }
    for (int row = 0; row < rows; row++) {
        add_lanes(sum + row, take_tail(of, added, row, 0));
        of->mean[row] = mean_of_lanes(sum[row], of->n);
        if (!(fabsf(of->mean[row]) <= FLT_MAX)) return 0;
        for (size_t i = of->whole, at = (size_t)row * of->n; kept && i < of->n; i++)
            of->y[at + i] = value_at(of, added, at + i);
    }
    return 1;
}

static QK_INLINE int find_inverses(norm *of, const int rows, const int added, float eps)
{
    lanes sum[QK_NORM_ROWS] = {0};
    for (size_t i = 0; i < of->whole; i += LANES)
        for (int row = 0; row < rows; row++)
            add_lanes(sum + row, squares_of(take_lanes(of, added, (size_t)row * of->n + i, of->mean[row])));
    for (int row = 0; row < rows; row++) {
        add_lanes(sum + row, squares_of(take_tail(of, added, row, of->mean[row])));
        const float variance = mean_of_lanes(sum[row], of->n) + eps;
        if (!(variance >= 0x1p-100f && variance <= FLT_MAX)) return 0;
        of->inverse[row] = 1.0f / sqrtf(variance);
    }
    return 1;
}

static QK_INLINE void norm_row(const norm *of, const int added, size_t at, float mean, float inverse)
{
    const float *weight = of->weight, *bias = of->bias;
    for (size_t i = 0; i < of->whole; i += LANES) {
        const lanes v = take_lanes(of, added, at + i, mean);
        halves(of->y + at + i)[0] = v.low * inverse * halves_of(weight + i)[0] + halves_of(bias + i)[0];
        halves(of->y + at + i)[1] = v.high * inverse * halves_of(weight + i)[1] + halves_of(bias + i)[1];
    }
    for (size_t i = of->whole; i < of->n; i++)
        of->y[at + i] = (value_at(of, added, at + i) - mean) * inverse * weight[i] + bias[i];
}

/* Three visits, between which rows stay in the L1 cache. Nothing is written to y before the last one, unless it keeps
 * the sums. */
static QK_INLINE int norm_rows(norm of, const int rows, int added, const int kept, float eps)
{
    if (!find_means(&of, rows, added, kept)) return 0;
    if (kept) of.x = of.y, added = 0;
    if (!find_inverses(&of, rows, added, eps)) return 0;
    for (int row = 0; row < rows; row++) norm_row(&of, added, (size_t)row * of.n, of.mean[row], of.inverse[row]);
    return 1;
}

/* Of QK_NORM_ROWS rows, or of one. y may be x or residual. Returns 0, with these as they were, if an intermediate
 * leaves float32 (numerics 21). */
static int layer_norm_f32(int rows, const float *x, const float *residual, size_t n, const float *weight,
                          const float *bias, float eps, float *y)
{
    const norm of = {
        .x = x, .residual = residual, .weight = weight, .bias = bias, .y = y, .n = n, .whole = n / LANES * LANES};
    const int kept = residual && y != x && y != residual;
    if (any_huge(weight, n)) return 0;
    if (rows == 1) return kept ? norm_rows(of, 1, 1, 1, eps) : norm_rows(of, 1, residual != NULL, 0, eps);
    if (kept) return norm_rows(of, QK_NORM_ROWS, 1, 1, eps);
    return residual ? norm_rows(of, QK_NORM_ROWS, 1, 0, eps) : norm_rows(of, QK_NORM_ROWS, 0, 0, eps);
}

/* ---- attention (numerics 11) ---- */

/* Heads are narrow: columns in chunks of a constant width leave no row a tail of its own. */
enum { NARROW = 32 };

/* Keeps the larger magnitudes, as bits, of `count` columns. */
static inline void keep_magnitudes(const float *restrict x, size_t count, int32_t *restrict most)
{
    for (size_t j = 0; j < count; j++) {
        const int32_t magnitude = bits_of(x[j]) & 0x7fffffff;
        most[j] = magnitude > most[j] ? magnitude : most[j];
    }
}

/* Largest magnitude of a block of rows, as bits: above those of FLT_MAX where a value is not finite. */
static int32_t absmax_f32(const float *x, size_t stride, size_t rows, size_t cols)
{
    const size_t whole = cols / NARROW * NARROW;
    int32_t lanes[NARROW] = {0}, most = 0;
    for (size_t i = 0; i < rows; i++, x += stride) {
        for (size_t j = 0; j < whole; j += NARROW) keep_magnitudes(x + j, NARROW, lanes);
        keep_magnitudes(x + whole, cols - whole, lanes);
    }
    for (int j = 0; j < NARROW; j++) most = lanes[j] > most ? lanes[j] : most;
    return most;
}

static inline void symmetric_codes(const float *restrict x, size_t count, float inverse, uint8_t flip,
                                   uint8_t *restrict q)
{
    for (size_t j = 0; j < count; j++) q[j] = (uint8_t)bits_of(x[j] * inverse + ROUNDER) ^ flip;
}

/* rne(x * inverse) ^ flip, rows of q being ldq apart; |x * inverse| < 128. */
static void symmetric_codes_f32(const float *x, size_t stride, size_t rows, size_t cols, float inverse, uint8_t flip,
                                uint8_t *q, size_t ldq)
{
    const size_t whole = cols / NARROW * NARROW;
    for (size_t i = 0; i < rows; i++, x += stride, q += ldq) {
        for (size_t j = 0; j < whole; j += NARROW) symmetric_codes(x + j, NARROW, inverse, flip, q + j);
        symmetric_codes(x + whole, cols - whole, inverse, flip, q + whole);
    }
}

/* 255 * 2^x rounded to an integer, for x <= 0: a cubic in the fraction, off by less than 0.02 before rounding. */
static inline int32_t weight_code(float x)
{
    x = at_least(-20.0f, x);
    const float shifted = x + ROUNDER, r = x - (shifted - ROUNDER);
    float p = __builtin_fmaf(14.0687752f, r, 61.8658371f);
    p = __builtin_fmaf(p, r, 176.781555f);
    p = __builtin_fmaf(p, r, 254.981659f);
    return bits_of(float_of(bits_of(p) + (int32_t)((uint32_t)bits_of(shifted) << 23)) + ROUNDER) - bits_of(ROUNDER);
}

static inline int32_t largest_score(const int32_t *score, size_t n, int32_t most)
{
    for (size_t j = 0; j < n; j++) most = score[j] > most ? score[j] : most;
    return most;
}

#ifndef HAVE_WEIGHT_CODES
/* Codes of n scores, a multiple of NARROW; returns their sum. */
static inline int32_t weight_codes(const int32_t *restrict score, size_t n, int32_t most, float factor,
                                   uint8_t *restrict w)
{
    int32_t sum = 0;
    for (size_t j = 0; j < n; j++) {
        const int32_t code = weight_code((float)(int32_t)((uint32_t)score[j] - (uint32_t)most) * factor);
        w[j] = (uint8_t)code;
        sum += code;
    }
    return sum;
}
#endif

/* Softmax weights of a row of scores, as codes in units of 1 / sum: rne(255 * 2^(factor * (score - max))). Returns sum.
 * The last n % NARROW are filled up with scores that are less than all others, and their weights taken off the sum. */
static int32_t attention_weights(const int32_t *score, size_t n, float factor, uint8_t *w)
{
    const size_t whole = n / NARROW * NARROW, rest = n - whole;
    int32_t last[NARROW], most = largest_score(score, whole, INT32_MIN);
    uint8_t codes[NARROW];
    if (rest) {
        for (int j = 0; j < NARROW; j++) last[j] = -(1 << 30); /* less than any score */
        memcpy(last, score + whole, rest * sizeof *last);
        most = largest_score(last, NARROW, most);
    }
    int32_t sum = weight_codes(score, whole, most, factor, w);
    if (rest) {
        sum += weight_codes(last, NARROW, most, factor, codes) - (int32_t)(NARROW - rest) * codes[NARROW - 1];
        memcpy(w + whole, codes, rest);
    }
    return sum;
}

#endif
