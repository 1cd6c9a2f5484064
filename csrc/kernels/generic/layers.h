/* The loops of float layers (layers.c), compiled once per instruction set, after elementwise.h. */
#ifndef QK_GENERIC_LAYERS_H
#define QK_GENERIC_LAYERS_H

#include "kernels/generic/elementwise.h"
#include "kernels/kernels.h"
#include "runtime/compiler.h"

/* ---- layer norm (numerics 10) ---- */

/* Sixteen partial sums in two halves, whatever the width of a register: sums are taken in the same order everywhere. */
typedef float half_lanes __attribute__((vector_size(32), aligned(4), may_alias));
enum { LANES = 16 };

typedef int32_t half_ints __attribute__((vector_size(32), aligned(4), may_alias));

static inline half_lanes *halves(float *x) { return (half_lanes *)x; }
static inline const half_lanes *halves_of(const float *x) { return (const half_lanes *)x; }

/* Return the mean of n values from partial sums: lane i gains lane i + 8, then i + 4, i + 2, i + 1. */
static inline float mean_of_lanes(half_lanes low, half_lanes high, size_t n)
{
    float sums[LANES / 2];
    halves(sums)[0] = low + high;
    for (int half = LANES / 4; half > 0; half /= 2)
        for (int i = 0; i < half; i++) sums[i] += sums[i + half];
    return sums[0] / (float)n;
}

/* Magnitudes of 2^110 and more, and NaN, have no fewer bits than this: differences from it are negative otherwise. */
enum { HUGE_BITS = 0x76800000 };

static inline half_ints less_huge(const float *x) { return (*(const half_ints *)x & INT32_MAX) - HUGE_BITS; }

/* Return whether one of n weights is huge, `all` being negative in lanes that saw none of the others. */
static inline int any_huge(half_ints all, const float *weight, size_t n)
{
    int32_t lanes[LANES / 2];
    memcpy(lanes, &all, sizeof lanes);
    for (int half = LANES / 4; half > 0; half /= 2)
        for (int i = 0; i < half; i++) lanes[i] &= lanes[i + half];
    for (size_t i = n / LANES * LANES; i < n; i++) lanes[0] &= (bits_of(weight[i]) & INT32_MAX) - HUGE_BITS;
    return lanes[0] >= 0;
}

/* Values i .. i + 15 of x + residual, less `mean`. Here and below `added` is a constant: whether there is a residual.
 */
static inline void take_lanes(const float *x, const float *residual, const int added, size_t i, float mean,
                              half_lanes *a, half_lanes *b)
{
    *a = halves_of(x + i)[0], *b = halves_of(x + i)[1];
    if (added) *a += halves_of(residual + i)[0], *b += halves_of(residual + i)[1];
    *a -= mean, *b -= mean;
}

static inline float value_at(const float *x, const float *residual, const int added, size_t i)
{
    return added ? x[i] + residual[i] : x[i];
}

/* The same of the last n % 16 values, and zeros. */
static inline void take_tail(const float *x, const float *residual, const int added, size_t n, float mean,
                             half_lanes *a, half_lanes *b)
{
    const size_t whole = n / LANES * LANES;
    *a = *b = (half_lanes){0};
    if (whole == n) return;
    float tail[LANES] = {0};
    for (size_t i = whole; i < n; i++) tail[i - whole] = value_at(x, residual, added, i) - mean;
    *a = halves(tail)[0], *b = halves(tail)[1];
}

/* Where a stretch of a row ends, after which signals are looked for. */
static inline size_t end_of_stretch(size_t i, size_t n)
{
    enum { LONG = 1 << 20 };
    return n - i < LONG ? n : i + LONG;
}

/* Three visits of a row, which stays in the L1 cache; the first looks at the weights too, as additions leave it time.
 * Between them y holds the sums, if `kept`, and else is not written before the last visit. */
static QK_INLINE int norm_row(const float *x, const float *residual, int added, const int kept, size_t n,
                              const float *weight, const float *bias, float eps, int (*stopped)(void), float *y)
{
    const size_t whole = n / LANES * LANES;
    half_lanes low = {0}, high = {0}, a, b;
    half_ints normal = (half_ints){0} - 1;
    for (size_t i = 0, end; i < whole;) {
        if (stopped && stopped()) return 1;
        for (end = end_of_stretch(i, whole); i < end; i += LANES) {
            normal &= less_huge(weight + i) & less_huge(weight + i + LANES / 2);
            take_lanes(x, residual, added, i, 0, &a, &b);
            if (kept) halves(y + i)[0] = a, halves(y + i)[1] = b;
            low += a, high += b;
        }
    }
    take_tail(x, residual, added, n, 0, &a, &b);
    const float mean = mean_of_lanes(low + a, high + b, n);
    if (!(fabsf(mean) <= FLT_MAX) || any_huge(normal, weight, n)) return 0;
    for (size_t i = whole; kept && i < n; i++) y[i] = x[i] + residual[i];
    if (kept) x = y, added = 0;

    low = high = (half_lanes){0};
    for (size_t i = 0, end; i < whole;) {
        if (stopped && stopped()) return 1;
        for (end = end_of_stretch(i, whole); i < end; i += LANES) {
            take_lanes(x, residual, added, i, mean, &a, &b);
            low += a * a, high += b * b;
        }
    }
    take_tail(x, residual, added, n, mean, &a, &b);
    const float variance = mean_of_lanes(low + a * a, high + b * b, n) + eps;
    if (!(variance >= 0x1p-100f && variance <= FLT_MAX)) return 0;

    const float inverse = 1.0f / sqrtf(variance);
    for (size_t i = 0, end; i < whole;) {
        if (stopped && stopped()) return 1;
        for (end = end_of_stretch(i, whole); i < end; i += LANES) {
            take_lanes(x, residual, added, i, mean, &a, &b);
            halves(y + i)[0] = a * inverse * halves_of(weight + i)[0] + halves_of(bias + i)[0];
            halves(y + i)[1] = b * inverse * halves_of(weight + i)[1] + halves_of(bias + i)[1];
        }
    }
    for (size_t i = whole; i < n; i++) y[i] = (value_at(x, residual, added, i) - mean) * inverse * weight[i] + bias[i];
    return 1;
}

/* y may be x or residual. Returns 0, with these as they were, where an intermediate leaves float32 (numerics 21). */
static int layer_norm_f32(const float *x, const float *residual, size_t n, const float *weight, const float *bias,
                          float eps, int (*stopped)(void), float *y)
{
    if (!residual) return norm_row(x, NULL, 0, 0, n, weight, bias, eps, stopped, y);
    if (y == x || y == residual) return norm_row(x, residual, 1, 0, n, weight, bias, eps, stopped, y);
    return norm_row(x, residual, 1, 1, n, weight, bias, eps, stopped, y);
}

/* ---- attention (numerics 11) ---- */

/* Heads are narrow: columns in chunks of a constant width leave no row a tail of its own. */
enum { NARROW = 32 };

#ifndef HAVE_ABSMAX
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
#endif

#ifndef HAVE_SYMMETRIC_CODES
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
#endif

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
