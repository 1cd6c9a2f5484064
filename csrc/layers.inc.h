/* The loops of float layers (layers.c), compiled once per instruction set, after elementwise.inc.h. */

/* ---- layer norm (numerics 10) ---- */

/* Sixteen partial sums in two halves, whatever the width of a register: sums are taken in the same order everywhere. */
typedef float half_lanes __attribute__((vector_size(32), aligned(4), may_alias));
enum { LANES = 16 };

static inline half_lanes *halves(float *x) { return (half_lanes *)x; }
static inline const half_lanes *halves_of(const float *x) { return (const half_lanes *)x; }

/* Lane i gains lane i + 8, then i + 4, i + 2, i + 1. */
static inline float sum_of_lanes(float *sums)
{
    for (int half = LANES / 2; half > 0; half /= 2)
        for (int i = 0; i < half; i++) sums[i] += sums[i + half];
    return sums[0];
}

/* Values i .. i + 15 of x + residual, less `mean`. */
static inline void take_lanes(const float *x, const float *residual, size_t i, float mean, half_lanes *a, half_lanes *b)
{
    *a = halves_of(x + i)[0], *b = halves_of(x + i)[1];
    if (residual) *a += halves_of(residual + i)[0], *b += halves_of(residual + i)[1];
    *a -= mean, *b -= mean;
}

/* The last n % 16 values less `mean`, and zeros. */
static inline void tail_of(const float *x, const float *residual, size_t n, float mean, float *tail)
{
    const size_t whole = n / LANES * LANES;
    memset(tail, 0, LANES * sizeof *tail);
    for (size_t i = whole; i < n; i++) tail[i - whole] = (residual ? x[i] + residual[i] : x[i]) - mean;
}

/* Three visits of a row, which stays in the L1 cache; y, which may be x or residual, is written by the last. Returns 0, with y as it
 * was, where an intermediate leaves float32 (numerics 21). */
static int layer_norm_f32(const float *x, const float *residual, size_t n, const float *weight, const float *bias, float eps, float *y)
{
    const size_t whole = n / LANES * LANES;
    float tail[LANES], sums[LANES];
    half_lanes low = {0}, high = {0}, a, b;
    tail_of(x, residual, n, 0, tail);
    for (size_t i = 0; i < whole; i += LANES) {
        take_lanes(x, residual, i, 0, &a, &b);
        low += a, high += b;
    }
    halves(sums)[0] = low + halves(tail)[0], halves(sums)[1] = high + halves(tail)[1];
    const float mean = sum_of_lanes(sums) / (float)n;
    if (!(fabsf(mean) <= FLT_MAX)) return 0;

    low = high = (half_lanes){0};
    tail_of(x, residual, n, mean, tail);
    for (size_t i = 0; i < whole; i += LANES) {
        take_lanes(x, residual, i, mean, &a, &b);
        low += a * a, high += b * b;
    }
    halves(sums)[0] = low + halves(tail)[0] * halves(tail)[0], halves(sums)[1] = high + halves(tail)[1] * halves(tail)[1];
    const float variance = sum_of_lanes(sums) / (float)n + eps;
    if (!(variance >= 0x1p-100f && variance <= FLT_MAX)) return 0;

    const float inverse = 1.0f / sqrtf(variance);
    for (size_t i = 0; i < whole; i += LANES) {
        take_lanes(x, residual, i, mean, &a, &b);
        halves(y + i)[0] = a * inverse * halves_of(weight + i)[0] + halves_of(bias + i)[0];
        halves(y + i)[1] = b * inverse * halves_of(weight + i)[1] + halves_of(bias + i)[1];
    }
    for (size_t i = whole; i < n; i++) y[i] = tail[i - whole] * inverse * weight[i] + bias[i];
    return 1;
}

/* ---- attention (numerics 11) ---- */

/* Largest magnitude of a block of rows, as bits: above those of FLT_MAX where a value is not finite. */
static int32_t absmax_f32(const float *x, size_t stride, size_t rows, size_t cols)
{
    int32_t most = 0;
    for (size_t i = 0; i < rows; i++, x += stride)
        for (size_t j = 0; j < cols; j++) {
            const int32_t magnitude = bits_of(x[j]) & 0x7fffffff;
            most = magnitude > most ? magnitude : most;
        }
    return most;
}

/* rne(x * inverse) ^ flip, rows of q being ldq apart; |x * inverse| < 128. */
static void symmetric_codes_f32(const float *x, size_t stride, size_t rows, size_t cols, float inverse, uint8_t flip,
                                uint8_t *q, size_t ldq)
{
    for (size_t i = 0; i < rows; i++, x += stride, q += ldq) {
        const float *restrict from = x;
        uint8_t *restrict to = q;
        for (size_t j = 0; j < cols; j++) to[j] = (uint8_t)bits_of(from[j] * inverse + ROUNDER) ^ flip;
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

/* Softmax weights of a row of scores, as codes in units of 1 / sum: rne(255 * 2^(factor * (score - max))). Returns sum. */
static int32_t attention_weights(const int32_t *restrict score, size_t n, float factor, uint8_t *restrict w)
{
    int32_t most = INT32_MIN, sum = 0;
    for (size_t j = 0; j < n; j++) most = score[j] > most ? score[j] : most;
    for (size_t j = 0; j < n; j++) {
        const int32_t code = weight_code((float)(score[j] - most) * factor);
        w[j] = (uint8_t)code;
        sum += code;
    }
    return sum;
}
