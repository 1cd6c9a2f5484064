/* The search for scales of GGUF's K kinds (numerics 15), compiled once per instruction set, after gguf.h.
 *
 * Groups, which share a scale, are lanes, 32 side by side: the blocks of as many. Sums are those of a lane, of its
 * values in their order: the same bits whatever a register holds. */
#ifndef QK_GENERIC_GGUF_SEARCH_H
#define QK_GENERIC_GGUF_SEARCH_H

#include <string.h>

#include "kernels/generic/gguf.h"

enum { K_LANES = 32, K_VALUES = 32, K_TRIALS = 10 };
typedef float lanes[K_LANES];

/* A kind: values and groups, what codes reach, what integers reach and which the largest scale has; whether a least
 * value is subtracted. */
typedef struct {
    int n, groups, affine;
    float low, high, least, most, end;
} k_kind;

typedef struct {
    lanes x[K_VALUES], w[K_VALUES];
} k_values;

static QK_INLINE float within(float v, float low, float high) { return v < low ? low : v > high ? high : v; }
static QK_INLINE float nearest_integer(float v) { return v + 0x1.8p23f - 0x1.8p23f; }
static QK_INLINE float over(float a, float b) { return b != 0 ? a / b : 0; }

static inline float as_half(float v)
{
    uint16_t half;
    f32_to_f16(&v, &half, 1);
    f16_to_f32(&half, &v, 1);
    return v;
}

static QK_INLINE float k_code(const k_kind k, float v, float inverse)
{
    return nearest_integer(within(v * inverse, k.low, k.high));
}

/* ---- the scale of a group as a float ---- */

/* Scale and least value of codes from 0: of the trials, each of which divides by another step, the best optimum. */
static QK_INLINE void affine_scales(const k_kind k, const k_values *v, lanes scale, lanes least)
{
    lanes lo, hi, count, total, error;
    for (int l = 0; l < K_LANES; l++) lo[l] = count[l] = total[l] = 0, hi[l] = v->x[0][l];
    for (int i = 0; i < k.n; i++)
        for (int l = 0; l < K_LANES; l++) {
            const float x = v->x[i][l], w = v->w[i][l];
            lo[l] = x < lo[l] ? x : lo[l], hi[l] = x > hi[l] ? x : hi[l];
            count[l] += w, total[l] += w * x;
        }
    for (int l = 0; l < K_LANES; l++) scale[l] = (hi[l] - lo[l]) / k.high, least[l] = lo[l], error[l] = FLT_MAX;
    for (int trial = -K_TRIALS; trial <= K_TRIALS; trial++) {
        const float steps = k.high + (float)trial / K_TRIALS;
        lanes inverse, first, second, product;
        for (int l = 0; l < K_LANES; l++) inverse[l] = over(steps, hi[l] - lo[l]);
        for (int l = 0; l < K_LANES; l++) first[l] = second[l] = product[l] = 0;
        for (int i = 0; i < k.n; i++)
            for (int l = 0; l < K_LANES; l++) {
                const float code = k_code(k, v->x[i][l] - lo[l], inverse[l]), weighted = v->w[i][l] * code;
                first[l] += weighted, second[l] += weighted * code, product[l] += weighted * v->x[i][l];
            }
        for (int l = 0; l < K_LANES; l++) {
            const float whole = count[l] * second[l] - first[l] * first[l];
            const float m = over(second[l] * total[l] - first[l] * product[l], whole);
            const float s =
                m > 0 ? over(product[l], second[l]) : over(count[l] * product[l] - total[l] * first[l], whole);
            const float kept = m > 0 ? 0 : m;
            const float loss =
                s * (s * second[l] + 2 * (kept * first[l] - product[l])) + kept * (kept * count[l] - 2 * total[l]);
            const int better = (loss < error[l]) & (whole > 0) & (s > 0);
            scale[l] = better ? s : scale[l], least[l] = better ? kept : least[l], error[l] = better ? loss : error[l];
        }
    }
}

/* Scale of codes of both signs; a trial gives the value of the largest magnitude a code at or about the lowest. */
static QK_INLINE void symmetric_scales(const k_kind k, const k_values *v, lanes scale)
{
    lanes peak, most;
    for (int l = 0; l < K_LANES; l++) peak[l] = v->x[0][l], most[l] = scale[l] = 0;
    for (int i = 1; i < k.n; i++)
        for (int l = 0; l < K_LANES; l++) {
            const float x = v->x[i][l];
            peak[l] = __builtin_fabsf(x) > __builtin_fabsf(peak[l]) ? x : peak[l];
        }
    for (int trial = 0; trial <= K_TRIALS; trial++) {
        const float end = k.low - 1 + (float)trial / (K_TRIALS / 2);
        lanes inverse, square, product;
        for (int l = 0; l < K_LANES; l++) inverse[l] = over(end, peak[l]), square[l] = product[l] = 0;
        for (int i = 0; i < k.n; i++)
            for (int l = 0; l < K_LANES; l++) {
                const float code = k_code(k, v->x[i][l], inverse[l]), weighted = v->w[i][l] * code;
                square[l] += weighted * code, product[l] += weighted * v->x[i][l];
            }
        for (int l = 0; l < K_LANES; l++) {
            const float gain = over(product[l] * product[l], square[l]);
            scale[l] = gain > most[l] ? over(product[l], square[l]) : scale[l];
            most[l] = gain > most[l] ? gain : most[l];
        }
    }
}

/* ---- scales that are integers times one of the block ---- */

/* The factors of integers that lanes have: of scales, and of what is subtracted. */
typedef struct {
    lanes scale, least;
} k_pair;

static QK_INLINE void losses(const k_kind k, const k_values *v, const k_pair *s, lanes loss)
{
    lanes inverse;
    for (int l = 0; l < K_LANES; l++) inverse[l] = over(1, s->scale[l]), loss[l] = 0;
    for (int i = 0; i < k.n; i++)
        for (int l = 0; l < K_LANES; l++) {
            const float x = v->x[i][l] + s->least[l], off = k_code(k, x, inverse[l]) * s->scale[l] - x;
            loss[l] += v->w[i][l] * (off * off);
        }
}

/* Moves integers by at most 1 each to where the loss is least. */
static QK_INLINE void move_integers(const k_kind k, const k_values *v, const k_pair *factor, k_pair *of, lanes loss)
{
    static const float moves[] = {0, -1, 1};
    const k_pair start = *of;
    for (int move = 0; move < (k.affine ? 9 : 3); move++) {
        k_pair tried, s;
        lanes now;
        for (int l = 0; l < K_LANES; l++) {
            tried.scale[l] = within(start.scale[l] + moves[k.affine ? move / 3 : move], k.least, k.most);
            tried.least[l] = k.affine ? within(start.least[l] + moves[move % 3], k.least, k.most) : 0;
            s.scale[l] = factor->scale[l] * tried.scale[l], s.least[l] = factor->least[l] * tried.least[l];
        }
        losses(k, v, &s, now);
        for (int l = 0; l < K_LANES; l++) {
            const int better = move == 0 || now[l] < loss[l];
            of->scale[l] = better ? tried.scale[l] : of->scale[l];
            of->least[l] = better ? tried.least[l] : of->least[l];
            loss[l] = better ? now[l] : loss[l];
        }
    }
}

/* Factors of least squares for integers and the codes that they give, by the sums of a block in double. */
static QK_INLINE void fit_factors(const k_kind k, const k_values *v, const k_pair *factor, const k_pair *of,
                                  k_pair *fitted)
{
    lanes inverse, least, a, b, c, e, f;
    for (int l = 0; l < K_LANES; l++) {
        inverse[l] = over(1, factor->scale[l] * of->scale[l]), least[l] = factor->least[l] * of->least[l];
        a[l] = b[l] = c[l] = e[l] = f[l] = 0;
    }
    for (int i = 0; i < k.n; i++)
        for (int l = 0; l < K_LANES; l++) {
            const float x = v->x[i][l], w = v->w[i][l], other = w * of->least[l];
            const float one = k_code(k, x + least[l], inverse[l]) * of->scale[l];
            a[l] += w * one * one, b[l] += other * one, c[l] += other * of->least[l];
            e[l] += w * one * x, f[l] += other * x;
        }
    for (int first = 0; first < K_LANES; first += k.groups) {
        double A = 0, B = 0, C = 0, E = 0, F = 0;
        for (int l = first; l < first + k.groups; l++) A += a[l], B += b[l], C += c[l], E += e[l], F += f[l];
        const double whole = A * C - B * B, alone = A > 0 ? E / A : 0;
        double scale = alone, subtracted = 0;
        if (whole > 0) scale = (E * C - B * F) / whole, subtracted = (B * E - A * F) / whole;
        if (subtracted < 0) scale = alone, subtracted = 0;
        for (int l = first; l < first + k.groups; l++)
            fitted->scale[l] = as_half((float)scale), fitted->least[l] = as_half((float)subtracted);
    }
}

/* The half of a factor: not one that is smaller by more than rounding, as subnormal ones and 0 may be, for integers
 * reach no farther. */
static inline float half_of_factor(float v)
{
    const float half = as_half(v), size = __builtin_fabsf(half);
    return size < 0x1p-14f && size < __builtin_fabsf(v) ? half + __builtin_copysignf(0x1p-24f, v) : half;
}

/* The factors that give the largest of `wished` the integer `end`. */
static QK_INLINE void first_factors(const k_kind k, const lanes wished, lanes factor)
{
    for (int first = 0; first < K_LANES; first += k.groups) {
        float peak = wished[first];
        for (int l = first; l < first + k.groups; l++)
            peak = __builtin_fabsf(wished[l]) > __builtin_fabsf(peak) ? wished[l] : peak;
        for (int l = first; l < first + k.groups; l++) factor[l] = half_of_factor(peak / k.end);
    }
}

static QK_INLINE void search_lanes(const k_kind k, const k_values *v, k_pair *factor, k_pair *of)
{
    k_pair wished = {{0}, {0}};
    lanes loss;
    if (k.affine)
        affine_scales(k, v, wished.scale, wished.least);
    else
        symmetric_scales(k, v, wished.scale);
    for (int l = 0; l < K_LANES; l++) wished.least[l] = 0 - wished.least[l];
    first_factors(k, wished.scale, factor->scale), first_factors(k, wished.least, factor->least);
    for (int l = 0; l < K_LANES; l++) {
        of->scale[l] = nearest_integer(within(over(wished.scale[l], factor->scale[l]), k.least, k.most));
        of->least[l] = k.affine ? nearest_integer(within(over(wished.least[l], factor->least[l]), k.least, k.most)) : 0;
    }
    move_integers(k, v, factor, of, loss);
    for (int again = 0; again < 2; again++) {
        k_pair fitted, moved = *of;
        lanes less;
        fit_factors(k, v, factor, of, &fitted);
        move_integers(k, v, &fitted, &moved, less);
        for (int first = 0; first < K_LANES; first += k.groups) {
            double before = 0, after = 0;
            for (int l = first; l < first + k.groups; l++) before += loss[l], after += less[l];
            for (int l = first; l < first + k.groups && after < before; l++) {
                factor->scale[l] = fitted.scale[l], factor->least[l] = fitted.least[l], loss[l] = less[l];
                of->scale[l] = moved.scale[l], of->least[l] = moved.least[l];
            }
        }
    }
}

/* Blocks as many as lanes have, or fewer; absent ones are zeros. */
static QK_INLINE void search_some(const k_kind k, const float *x, const float *w, size_t blocks, float *factors,
                                  int8_t *integers, uint8_t *codes)
{
    k_values v;
    k_pair factor, of;
    memset(&v, 0, sizeof v);
    for (int l = 0; l < (int)blocks * k.groups; l++)
        for (int i = 0; i < k.n; i++) v.x[i][l] = x[l * k.n + i], v.w[i][l] = w ? w[l * k.n + i] : 1;
    search_lanes(k, &v, &factor, &of);
    for (int l = 0; l < (int)blocks * k.groups; l++) {
        const int block = l / k.groups, group = l % k.groups;
        const float least = factor.least[l] * of.least[l], inverse = over(1, factor.scale[l] * of.scale[l]);
        if (group == 0) factors[2 * block] = factor.scale[l], factors[2 * block + 1] = factor.least[l];
        integers[2 * block * k.groups + group] = (int8_t)of.scale[l];
        integers[(2 * block + 1) * k.groups + group] = (int8_t)of.least[l];
        for (int i = 0; i < k.n; i++) codes[l * k.n + i] = (uint8_t)(k_code(k, v.x[i][l] + least, inverse) - k.low);
    }
}

static void search_k(const float *x, const float *w, size_t blocks, qk_gguf_type type, float *factors, int8_t *integers,
                     uint8_t *codes)
{
    const k_kind q4 = {32, 8, 1, 0, 15, 0, 63, 63}, q5 = {32, 8, 1, 0, 31, 0, 63, 63};
    const k_kind q6 = {16, 16, 0, -32, 31, -128, 127, -128};
    const size_t groups = type == QK_Q6_K ? 16 : 8, most = K_LANES / groups;
    for (size_t n; blocks; blocks -= n) {
        n = blocks < most ? blocks : most;
        if (type == QK_Q4_K)
            search_some(q4, x, w, n, factors, integers, codes);
        else if (type == QK_Q5_K)
            search_some(q5, x, w, n, factors, integers, codes);
        else
            search_some(q6, x, w, n, factors, integers, codes);
        x += n * 256, w += w ? n * 256 : 0, codes += n * 256, factors += 2 * n, integers += 2 * n * groups;
    }
}

#endif
