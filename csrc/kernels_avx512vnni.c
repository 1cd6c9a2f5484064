/* AVX-512 with VNNI (Ice Lake, Sapphire Rapids, Zen 4 and later).
 *
 * vpdpbusd: 16 lanes x (4 unsigned by 4 signed bytes) added to int32, no saturation (numerics 6).
 * Zen 4 issues one 512-bit vpdpbusd a cycle (latency 4), Zen 5 two: 64 or 128 products a cycle.
 *
 * Tile: 12 rows x 32 columns, 24 accumulators; 2 registers hold b, 1 the broadcast of a: 27 of 32. One step takes 4 codes of
 * k: 2 loads of b, 12 broadcasts of a, 24 vpdpbusd, so loads (2 a cycle) are never the limit. Half as many rows do as
 * well from the L1 cache, but at k = 1024 a panel fills it, and is read from L2 once for each tile.
 *
 *          b0 (16 columns)  b1 (16 columns)
 *     a0   c00              c01
 *     a1   c10              c11
 *     ..   ..               ..
 *     ab   cb0              cb1
 */
#if defined(__x86_64__)
#include "kernels.h"

#ifdef QK_SIMDE
#include "simde_avx512.h" /* in tests/: for CPUs without AVX-512 */
#else
#include <immintrin.h>
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,prefer-vector-width=512")
#endif
#endif

/* Read once: gcc would rather read again as an operand, and loads that straddle cache lines are dear. */
static inline __m512 load_once(const float *x)
{
    __m512 v = _mm512_loadu_ps(x);
#ifndef QK_SIMDE
    __asm__("" : "+v"(v));
#endif
    return v;
}

/* x / scale, rounded to an integer (numerics 3); INT32_MIN where it is NaN or beyond int32. */
static inline __m512i quotient16(const float *x, __m512 scale, __m512 reciprocal)
{
    const __m512 v = load_once(x), q = _mm512_mul_ps(v, reciprocal);
    return _mm512_cvtps_epi32(_mm512_fmadd_ps(_mm512_fnmadd_ps(q, scale, v), reciprocal, q));
}

/* 64 codes of what packs saturated to 16 bits: n0 holds elements 0-3, 16-19, 4-7, ..., n1 the same from 32 on. */
static inline __m512i to_codes(__m512i n0, __m512i n1, __m512i zero0, __m512i zero1, int32_t qmin, int32_t qmax)
{
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    n0 = _mm512_adds_epi16(n0, zero0);
    n1 = _mm512_adds_epi16(n1, zero1);
    __m512i codes;
    if (qmin < 0) {
        codes = _mm512_packs_epi16(n0, n1);
        codes = _mm512_min_epi8(_mm512_max_epi8(codes, _mm512_set1_epi8((char)qmin)), _mm512_set1_epi8((char)qmax));
    } else {
        codes = _mm512_packus_epi16(n0, n1);
        if (qmax - qmin < 255)
            codes = _mm512_min_epu8(_mm512_max_epu8(codes, _mm512_set1_epi8((char)qmin)), _mm512_set1_epi8((char)qmax));
    }
    return _mm512_permutexvar_epi32(order, codes);
}

/* Returns 0, and stores nothing, where a quotient may come from NaN or from beyond int32. */
static inline int store64(uint8_t *q, __m512i n0, __m512i n1, __m512i zero0, __m512i zero1, int32_t qmin, int32_t qmax)
{
    if (_mm512_cmpeq_epi16_mask(_mm512_min_epi16(n0, n1), _mm512_set1_epi16(INT16_MIN))) return 0;
    _mm512_storeu_si512(q, to_codes(n0, n1, zero0, zero1, qmin, qmax));
    return 1;
}

static inline int quantize_group(const float *x, uint8_t *q, const qk_affine *p)
{
    const __m512 scale = _mm512_set1_ps(p->scale), reciprocal = _mm512_set1_ps(p->reciprocal);
    const __m512i zero = _mm512_set1_epi16((short)p->zero_point);
    const __m512i n0 = _mm512_packs_epi32(quotient16(x, scale, reciprocal), quotient16(x + 16, scale, reciprocal));
    const __m512i n1 = _mm512_packs_epi32(quotient16(x + 32, scale, reciprocal), quotient16(x + 48, scale, reciprocal));
    return store64(q, n0, n1, zero, zero, p->qmin, p->qmax);
}

/* Columns i .. i + 63 of several rows, the parameters held in registers. Returns how many rows were stored before one that
 * store64 refused. */
static inline size_t quantize_group_columns(const float *x, uint8_t *q, const qk_affine_columns *p, size_t i, size_t rows)
{
    const float *s = p->scale + i, *r = p->reciprocal + i;
    const int32_t *z = p->zero_point + i;
    const __m512 s0 = _mm512_loadu_ps(s), s1 = _mm512_loadu_ps(s + 16), s2 = _mm512_loadu_ps(s + 32), s3 = _mm512_loadu_ps(s + 48);
    const __m512 r0 = _mm512_loadu_ps(r), r1 = _mm512_loadu_ps(r + 16), r2 = _mm512_loadu_ps(r + 32), r3 = _mm512_loadu_ps(r + 48);
    const __m512i z0 = _mm512_packs_epi32(_mm512_loadu_si512(z), _mm512_loadu_si512(z + 16));
    const __m512i z1 = _mm512_packs_epi32(_mm512_loadu_si512(z + 32), _mm512_loadu_si512(z + 48));
    const int32_t qmin = p->qmin, qmax = p->qmax;
    const size_t stride = p->stride;
    for (size_t row = 0; row < rows; row++, x += stride, q += stride) {
        const __m512i n0 = _mm512_packs_epi32(quotient16(x, s0, r0), quotient16(x + 16, s1, r1));
        const __m512i n1 = _mm512_packs_epi32(quotient16(x + 32, s2, r2), quotient16(x + 48, s3, r3));
        if (!store64(q, n0, n1, z0, z1, qmin, qmax)) return row;
    }
    return rows;
}

#ifndef QK_SIMDE /* which lacks these conversions */
#define HAVE_WIDEN
/* 64 codes: gcc widens bytes by chains of shuffles, the loads do it at once. */
static inline void widen_group(const uint8_t *q, int is_signed, int32_t *to)
{
    for (int i = 0; i < 64; i += 16) {
        const __m128i codes = _mm_loadu_si128((const __m128i *)(q + i));
        _mm512_storeu_si512(to + i, is_signed ? _mm512_cvtepi8_epi32(codes) : _mm512_cvtepu8_epi32(codes));
    }
}
#endif

#define MR 12
#define NR 32
#define KR 4
#define HAVE_FMA 1
#define GROUP 64
#include "elementwise.inc.h"
#include "layers.inc.h"

/* ---- epilogues (numerics 7 to 9): 4 registers at a time, step by step, for each step waits for the one before ---- */

/* gelu_f32. The segment is looked up by the low 4 bits of vpermps' indices. */
static inline __attribute__((always_inline)) void gelu64(__m512 *y, const gelu_table *g)
{
    const __m512 zero = _mm512_setzero_ps();
    const __m512 c0 = _mm512_loadu_ps(g->coefficient[0]), c1 = _mm512_loadu_ps(g->coefficient[1]);
    const __m512 c2 = _mm512_loadu_ps(g->coefficient[2]), c3 = _mm512_loadu_ps(g->coefficient[3]);
    const __m512 c4 = _mm512_loadu_ps(g->coefficient[4]);
    __m512 t[4], p[4];
    __m512i i[4];
    for (int v = 0; v < 4; v++) {
        t[v] = _mm512_range_ps(_mm512_mul_ps(y[v], _mm512_set1_ps(g->per_unit)), _mm512_set1_ps(GELU_SEGMENTS - 1), 0xa);
        i[v] = _mm512_cvtps_epi32(t[v]);
        t[v] = _mm512_reduce_ps(t[v], 8);
    }
    for (int v = 0; v < 4; v++) p[v] = _mm512_permutexvar_ps(i[v], c4);
    for (int v = 0; v < 4; v++) p[v] = _mm512_fmadd_ps(p[v], t[v], _mm512_permutexvar_ps(i[v], c3));
    for (int v = 0; v < 4; v++) p[v] = _mm512_fmadd_ps(p[v], t[v], _mm512_permutexvar_ps(i[v], c2));
    for (int v = 0; v < 4; v++) p[v] = _mm512_fmadd_ps(p[v], t[v], _mm512_permutexvar_ps(i[v], c1));
    for (int v = 0; v < 4; v++) y[v] = _mm512_add_ps(_mm512_max_ps(zero, y[v]), _mm512_permutexvar_ps(i[v], c0));
    for (int v = 0; v < 4; v++) y[v] = _mm512_fmadd_ps(p[v], t[v], y[v]);
}

#define HAVE_GELU_RUN
static void gelu_run(float *y, size_t n, const gelu_table *g)
{
    __m512 v[4];
    for (size_t i = 0; i < n; i += 64) { /* n is a multiple of 32 */
        const size_t more = n - i > 32 ? 32 : 0;
        v[0] = _mm512_loadu_ps(y + i), v[1] = _mm512_loadu_ps(y + i + 16);
        v[2] = _mm512_loadu_ps(y + i + more), v[3] = _mm512_loadu_ps(y + i + more + 16);
        gelu64(v, g);
        _mm512_storeu_ps(y + i, v[0]), _mm512_storeu_ps(y + i + 16, v[1]);
        _mm512_storeu_ps(y + i + more, v[2]), _mm512_storeu_ps(y + i + more + 16, v[3]);
    }
}

/* The sums of a row, corrected for zero points. */
static inline __attribute__((always_inline)) __m512i sums16(const int32_t *acc, const qk_tile *t, int row, int col)
{
    __m512i sums = _mm512_loadu_si512(acc + NR * row + col);
    if (t->row_zero)
        sums = _mm512_sub_epi32(sums, _mm512_mullo_epi32(_mm512_set1_epi32(t->row_zero[row]), _mm512_loadu_si512(t->colsum + col)));
    if (t->row_term)
        sums = _mm512_sub_epi32(sums, _mm512_mullo_epi32(_mm512_set1_epi32(t->row_term[row]), _mm512_loadu_si512(t->col_zero + col)));
    return sums;
}

static inline __attribute__((always_inline)) __m512 scaled16(const int32_t *acc, const qk_tile *t, int row, int col)
{
    __m512 scale = _mm512_loadu_ps(t->col_scale + col);
    if (t->row_scale) scale = _mm512_mul_ps(_mm512_set1_ps(t->row_scale[row]), scale);
    return _mm512_add_ps(_mm512_mul_ps(_mm512_cvtepi32_ps(sums16(acc, t, row, col)), scale), _mm512_loadu_ps(t->bias + col));
}

static inline float *line_of(const void *first, size_t row_stride, int row)
{
    return (float *)((char *)first + (size_t)row * row_stride);
}

/* Two rows at a time; where their number is odd, the last of them twice. */
static inline __attribute__((always_inline)) void float_rows(const int32_t *acc, const qk_tile *t, const qk_activation activation)
{
    const int rows = t->rows, whole = t->cols == NR;
    float edge[2 * NR];
    const __mmask16 left = (__mmask16)(t->cols < 16 ? (1 << t->cols) - 1 : 0xffff);
    const __mmask16 right = (__mmask16)(t->cols > 16 ? (1 << (t->cols - 16)) - 1 : 0);
    for (int row = 0; row < rows; row += 2) {
        const int next = row + 1 < rows ? row + 1 : row;
        __m512 y[4] = {scaled16(acc, t, row, 0), scaled16(acc, t, row, 16), scaled16(acc, t, next, 0), scaled16(acc, t, next, 16)};
        if (t->residual) {
            const float *r0 = line_of(t->residual, t->residual_stride, row), *r1 = line_of(t->residual, t->residual_stride, next);
            y[0] = _mm512_add_ps(y[0], _mm512_maskz_loadu_ps(left, r0)), y[1] = _mm512_add_ps(y[1], _mm512_maskz_loadu_ps(right, r0 + 16));
            y[2] = _mm512_add_ps(y[2], _mm512_maskz_loadu_ps(left, r1)), y[3] = _mm512_add_ps(y[3], _mm512_maskz_loadu_ps(right, r1 + 16));
        }
        if (activation == QK_RELU)
            for (int v = 0; v < 4; v++) y[v] = _mm512_max_ps(_mm512_setzero_ps(), y[v]);
        if (activation == QK_GELU) gelu64(y, &gelu_erf);
        if (activation == QK_GELU_TANH) gelu64(y, &gelu_tanh);
        if (t->bounded)
            for (int v = 0; v < 4; v++) y[v] = _mm512_min_ps(_mm512_set1_ps(t->hi), _mm512_max_ps(_mm512_set1_ps(t->lo), y[v]));
        float *to0 = whole ? line_of(t->dst, t->row_stride, row) : edge, *to1 = whole ? line_of(t->dst, t->row_stride, next) : edge + NR;
        _mm512_storeu_ps(to0, y[0]), _mm512_storeu_ps(to0 + 16, y[1]);
        _mm512_storeu_ps(to1, y[2]), _mm512_storeu_ps(to1 + 16, y[3]);
        if (whole) continue;
        memcpy(line_of(t->dst, t->row_stride, row), edge, (size_t)t->cols * sizeof *edge);
        memcpy(line_of(t->dst, t->row_stride, next), edge + NR, (size_t)t->cols * sizeof *edge);
    }
}

#define HAVE_FLOAT_TILE /* but for SiLU */
static void float_tile(const int32_t *acc, const qk_tile *given)
{
    const qk_tile t = *given; /* a copy that stores cannot change */
    switch (t.activation) {
    case QK_RELU: float_rows(acc, &t, QK_RELU); break;
    case QK_GELU: float_rows(acc, &t, QK_GELU); break;
    case QK_GELU_TANH: float_rows(acc, &t, QK_GELU_TANH); break;
    default: float_rows(acc, &t, QK_IDENTITY); break;
    }
}

/* Sums times multipliers, not above `hi`, so that only what lies below int32 saturates, to where it belongs; rounded. */
static inline __attribute__((always_inline)) __m512i rounded16(__m512i sums, const qk_tile *t, int col, __m512 hi, const int half_away)
{
    __m512 v = _mm512_mul_ps(_mm512_cvtepi32_ps(sums), _mm512_loadu_ps(t->multiplier + col));
    v = _mm512_min_ps(hi, _mm512_add_ps(v, _mm512_loadu_ps(t->bias + col)));
    if (half_away) {
        const __m512 whole = _mm512_roundscale_ps(v, _MM_FROUND_TO_ZERO), rest = _mm512_sub_ps(v, whole);
        v = _mm512_mask_add_ps(whole, _mm512_cmp_ps_mask(rest, _mm512_set1_ps(0.5f), _CMP_GE_OQ), whole, _mm512_set1_ps(1.0f));
        v = _mm512_mask_sub_ps(v, _mm512_cmp_ps_mask(rest, _mm512_set1_ps(-0.5f), _CMP_LE_OQ), whole, _mm512_set1_ps(1.0f));
    }
    return _mm512_cvtps_epi32(v);
}

/* shift_left */
static inline __m512i shifted_left16(__m512i sums, __m512i shift)
{
    const __m512i lo = _mm512_srav_epi32(_mm512_set1_epi32(INT32_MIN), shift), hi = _mm512_srav_epi32(_mm512_set1_epi32(INT32_MAX), shift);
    return _mm512_sllv_epi32(_mm512_min_epi32(_mm512_max_epi32(sums, lo), hi), shift);
}

static inline __m512i even_products(__m512i a, __m512i b) { return _mm512_mul_epi32(a, b); }
static inline __m512i odd_products(__m512i a, __m512i b) { return _mm512_mul_epi32(_mm512_srli_epi64(a, 32), _mm512_srli_epi64(b, 32)); }
/* The low words of `even`, and the high ones of `odd`. */
static inline __m512i interleaved(__m512i even, __m512i odd) { return _mm512_mask_mov_epi32(even, 0xaaaa, odd); }

/* multiply_gemmlowp */
static inline __m512i gemmlowp16(__m512i sums, __m512i mantissa, __m512i shift)
{
    const __m512i zero = _mm512_setzero_si512(), one = _mm512_set1_epi32(1), half = _mm512_set1_epi64(1 << 30);
    const __m512i right = _mm512_max_epi32(_mm512_sub_epi32(zero, shift), zero), a = shifted_left16(sums, _mm512_max_epi32(shift, zero));
    const __m512i even = _mm512_srli_epi64(_mm512_add_epi64(even_products(a, mantissa), half), 31);
    const __m512i odd = _mm512_slli_epi64(_mm512_add_epi64(odd_products(a, mantissa), half), 1);
    const __m512i high = interleaved(even, odd), mask = _mm512_sub_epi32(_mm512_sllv_epi32(one, right), one);
    const __m512i limit = _mm512_sub_epi32(_mm512_srli_epi32(mask, 1), _mm512_srai_epi32(high, 31)), q = _mm512_srav_epi32(high, right);
    return _mm512_mask_add_epi32(q, _mm512_cmpgt_epi32_mask(_mm512_and_si512(high, mask), limit), q, one);
}

/* multiply_tflite */
static inline __m512i tflite16(__m512i sums, __m512i mantissa, __m512i given)
{
    const __m512i one = _mm512_set1_epi32(1), shift = _mm512_min_epi32(given, _mm512_set1_epi32(28));
    const __m512i left = _mm512_max_epi32(_mm512_add_epi32(shift, _mm512_set1_epi32(2)), _mm512_setzero_si512());
    const __m512i last = _mm512_sub_epi32(_mm512_sub_epi32(left, _mm512_set1_epi32(2)), shift); /* right - 1 */
    const __m512i a = shifted_left16(sums, left);
    const __m512i high = interleaved(_mm512_srli_epi64(even_products(a, mantissa), 32), odd_products(a, mantissa));
    return _mm512_srav_epi32(_mm512_add_epi32(high, _mm512_sllv_epi32(one, last)), _mm512_add_epi32(last, one));
}

static inline __attribute__((always_inline)) __m512i multiplied16(const int32_t *acc, const qk_tile *t, int row, int col, __m512 hi,
                                                                  const qk_rounding rounding)
{
    const __m512i sums = sums16(acc, t, row, col);
    if (rounding <= QK_HALF_AWAY) return rounded16(sums, t, col, hi, rounding == QK_HALF_AWAY);
    const __m512i mantissa = _mm512_loadu_si512(t->mantissa + col), shift = _mm512_loadu_si512(t->shift + col);
    return rounding == QK_GEMMLOWP ? gemmlowp16(sums, mantissa, shift) : tflite16(sums, mantissa, shift);
}

static inline __attribute__((always_inline)) void multiply_rows(const int32_t *acc, uint8_t *q, const qk_tile *t,
                                                                const qk_rounding rounding)
{
    const int32_t qmin = t->requant->qmin, qmax = t->requant->qmax, zero_point = t->requant->zero_point;
    const int rows = t->rows;
    const __m512i zero = _mm512_set1_epi16((short)zero_point);
    const __m512 hi = _mm512_set1_ps((float)(qmax - zero_point));
    for (int row = 0; row < rows; row += 2) { /* q has MR rows, and MR is even */
        const int next = row + 1 < rows ? row + 1 : row;
        const __m512i n0 = _mm512_packs_epi32(multiplied16(acc, t, row, 0, hi, rounding), multiplied16(acc, t, row, 16, hi, rounding));
        const __m512i n1 = _mm512_packs_epi32(multiplied16(acc, t, next, 0, hi, rounding), multiplied16(acc, t, next, 16, hi, rounding));
        _mm512_storeu_si512(q + NR * row, to_codes(n0, n1, zero, zero, qmin, qmax));
    }
}

#define HAVE_MULTIPLY_TILE
static void multiply_tile(const int32_t *acc, uint8_t *q, const qk_tile *given)
{
    const qk_tile t = *given;
    switch (t.requant->rounding) {
    case QK_HALF_EVEN: multiply_rows(acc, q, &t, QK_HALF_EVEN); break;
    case QK_HALF_AWAY: multiply_rows(acc, q, &t, QK_HALF_AWAY); break;
    case QK_GEMMLOWP: multiply_rows(acc, q, &t, QK_GEMMLOWP); break;
    default: multiply_rows(acc, q, &t, QK_TFLITE); break;
    }
}

#include "products.inc.h"
#include "blocked.inc.h"

static inline __m512i broadcast4(const uint8_t *p)
{
    int32_t codes;
    memcpy(&codes, p, sizeof codes);
    return _mm512_set1_epi32(codes);
}

/* Panels may come from the L3 cache or from memory: asking 32 steps ahead gains 3% at 32 x 4096 x 4096, and nothing at few rows, where
 * it would cost. */
enum { AHEAD = 32 * NR * KR };

/* `rows` is a constant where this is inlined: the accumulators of absent rows vanish. Each has a name,
 * since gcc keeps arrays of them in memory. */
static inline __attribute__((always_inline)) void tile(const int rows, size_t steps, const uint8_t *a, size_t lda,
                                                       const int8_t *panel, const int32_t *init, int32_t *c, size_t ldc)
{
    const uint8_t *a3 = a + 3 * lda, *a6 = a + 6 * lda, *a9 = a + 9 * lda;
    const __m512i i0 = _mm512_loadu_si512(init), i1 = _mm512_loadu_si512(init + 16);
    __m512i c00 = i0, c01 = i1, c10 = i0, c11 = i1, c20 = i0, c21 = i1;
    __m512i c30 = i0, c31 = i1, c40 = i0, c41 = i1, c50 = i0, c51 = i1;
    __m512i c60 = i0, c61 = i1, c70 = i0, c71 = i1, c80 = i0, c81 = i1;
    __m512i c90 = i0, c91 = i1, ca0 = i0, ca1 = i1, cb0 = i0, cb1 = i1;
    for (size_t s = 0; s < steps; s++, a += KR, a3 += KR, a6 += KR, a9 += KR, panel += NR * KR) {
        const __m512i b0 = _mm512_loadu_si512(panel), b1 = _mm512_loadu_si512(panel + 64);
        if (rows > 4) __builtin_prefetch(panel + AHEAD), __builtin_prefetch(panel + AHEAD + 64);
        __m512i v = broadcast4(a);
        c00 = _mm512_dpbusd_epi32(c00, v, b0), c01 = _mm512_dpbusd_epi32(c01, v, b1);
        if (rows > 1) v = broadcast4(a + lda), c10 = _mm512_dpbusd_epi32(c10, v, b0), c11 = _mm512_dpbusd_epi32(c11, v, b1);
        if (rows > 2) v = broadcast4(a + 2 * lda), c20 = _mm512_dpbusd_epi32(c20, v, b0), c21 = _mm512_dpbusd_epi32(c21, v, b1);
        if (rows > 3) v = broadcast4(a3), c30 = _mm512_dpbusd_epi32(c30, v, b0), c31 = _mm512_dpbusd_epi32(c31, v, b1);
        if (rows > 4) v = broadcast4(a3 + lda), c40 = _mm512_dpbusd_epi32(c40, v, b0), c41 = _mm512_dpbusd_epi32(c41, v, b1);
        if (rows > 5) v = broadcast4(a3 + 2 * lda), c50 = _mm512_dpbusd_epi32(c50, v, b0), c51 = _mm512_dpbusd_epi32(c51, v, b1);
        if (rows > 6) v = broadcast4(a6), c60 = _mm512_dpbusd_epi32(c60, v, b0), c61 = _mm512_dpbusd_epi32(c61, v, b1);
        if (rows > 7) v = broadcast4(a6 + lda), c70 = _mm512_dpbusd_epi32(c70, v, b0), c71 = _mm512_dpbusd_epi32(c71, v, b1);
        if (rows > 8) v = broadcast4(a6 + 2 * lda), c80 = _mm512_dpbusd_epi32(c80, v, b0), c81 = _mm512_dpbusd_epi32(c81, v, b1);
        if (rows > 9) v = broadcast4(a9), c90 = _mm512_dpbusd_epi32(c90, v, b0), c91 = _mm512_dpbusd_epi32(c91, v, b1);
        if (rows > 10) v = broadcast4(a9 + lda), ca0 = _mm512_dpbusd_epi32(ca0, v, b0), ca1 = _mm512_dpbusd_epi32(ca1, v, b1);
        if (rows > 11) v = broadcast4(a9 + 2 * lda), cb0 = _mm512_dpbusd_epi32(cb0, v, b0), cb1 = _mm512_dpbusd_epi32(cb1, v, b1);
    }
    _mm512_storeu_si512(c, c00), _mm512_storeu_si512(c + 16, c01);
    if (rows > 1) c += ldc, _mm512_storeu_si512(c, c10), _mm512_storeu_si512(c + 16, c11);
    if (rows > 2) c += ldc, _mm512_storeu_si512(c, c20), _mm512_storeu_si512(c + 16, c21);
    if (rows > 3) c += ldc, _mm512_storeu_si512(c, c30), _mm512_storeu_si512(c + 16, c31);
    if (rows > 4) c += ldc, _mm512_storeu_si512(c, c40), _mm512_storeu_si512(c + 16, c41);
    if (rows > 5) c += ldc, _mm512_storeu_si512(c, c50), _mm512_storeu_si512(c + 16, c51);
    if (rows > 6) c += ldc, _mm512_storeu_si512(c, c60), _mm512_storeu_si512(c + 16, c61);
    if (rows > 7) c += ldc, _mm512_storeu_si512(c, c70), _mm512_storeu_si512(c + 16, c71);
    if (rows > 8) c += ldc, _mm512_storeu_si512(c, c80), _mm512_storeu_si512(c + 16, c81);
    if (rows > 9) c += ldc, _mm512_storeu_si512(c, c90), _mm512_storeu_si512(c + 16, c91);
    if (rows > 10) c += ldc, _mm512_storeu_si512(c, ca0), _mm512_storeu_si512(c + 16, ca1);
    if (rows > 11) c += ldc, _mm512_storeu_si512(c, cb0), _mm512_storeu_si512(c + 16, cb1);
}

/* One row or two, two steps at a time: a chain of sums for each, since vpdpbusd takes 4 cycles and b comes faster. */
static inline __attribute__((always_inline)) void few_rows(const int rows, size_t steps, const uint8_t *a, size_t lda,
                                                           const int8_t *panel, const int32_t *init, int32_t *c, size_t ldc)
{
    __m512i c00 = _mm512_loadu_si512(init), c01 = _mm512_loadu_si512(init + 16), c10 = c00, c11 = c01;
    __m512i d00 = _mm512_setzero_si512(), d01 = d00, d10 = d00, d11 = d00;
    for (; steps > 1; steps -= 2, a += 2 * KR, panel += 2 * NR * KR) {
        const __m512i b0 = _mm512_loadu_si512(panel), b1 = _mm512_loadu_si512(panel + 64);
        const __m512i b2 = _mm512_loadu_si512(panel + 128), b3 = _mm512_loadu_si512(panel + 192);
        __m512i v = broadcast4(a), w = broadcast4(a + KR);
        c00 = _mm512_dpbusd_epi32(c00, v, b0), c01 = _mm512_dpbusd_epi32(c01, v, b1);
        d00 = _mm512_dpbusd_epi32(d00, w, b2), d01 = _mm512_dpbusd_epi32(d01, w, b3);
        if (rows == 1) continue;
        v = broadcast4(a + lda), w = broadcast4(a + lda + KR);
        c10 = _mm512_dpbusd_epi32(c10, v, b0), c11 = _mm512_dpbusd_epi32(c11, v, b1);
        d10 = _mm512_dpbusd_epi32(d10, w, b2), d11 = _mm512_dpbusd_epi32(d11, w, b3);
    }
    if (steps) {
        const __m512i b0 = _mm512_loadu_si512(panel), b1 = _mm512_loadu_si512(panel + 64);
        const __m512i v = broadcast4(a);
        c00 = _mm512_dpbusd_epi32(c00, v, b0), c01 = _mm512_dpbusd_epi32(c01, v, b1);
        if (rows > 1) d10 = _mm512_dpbusd_epi32(d10, broadcast4(a + lda), b0), d11 = _mm512_dpbusd_epi32(d11, broadcast4(a + lda), b1);
    }
    _mm512_storeu_si512(c, _mm512_add_epi32(c00, d00)), _mm512_storeu_si512(c + 16, _mm512_add_epi32(c01, d01));
    if (rows == 1) return;
    _mm512_storeu_si512(c + ldc, _mm512_add_epi32(c10, d10)), _mm512_storeu_si512(c + ldc + 16, _mm512_add_epi32(c11, d11));
}

static void gemm_tile(int rows, size_t steps, const void *a, size_t lda, const int8_t *panel, const int32_t *init,
                      int32_t *c, size_t ldc)
{
    switch (rows) {
    case 1: few_rows(1, steps, a, lda, panel, init, c, ldc); break;
    case 2: few_rows(2, steps, a, lda, panel, init, c, ldc); break;
    case 3: tile(3, steps, a, lda, panel, init, c, ldc); break;
    case 4: tile(4, steps, a, lda, panel, init, c, ldc); break;
    case 5: tile(5, steps, a, lda, panel, init, c, ldc); break;
    case 6: tile(6, steps, a, lda, panel, init, c, ldc); break;
    case 7: tile(7, steps, a, lda, panel, init, c, ldc); break;
    case 8: tile(8, steps, a, lda, panel, init, c, ldc); break;
    case 9: tile(9, steps, a, lda, panel, init, c, ldc); break;
    case 10: tile(10, steps, a, lda, panel, init, c, ldc); break;
    case 11: tile(11, steps, a, lda, panel, init, c, ldc); break;
    default: tile(12, steps, a, lda, panel, init, c, ldc); break;
    }
}

static void gemm_pack_row(const uint8_t *a, size_t n, size_t n_pad, uint8_t flip, void *to)
{
    pack_row_bytes(a, n, n_pad, flip, to);
}

/* ---- 4-bit weights (numerics 12) ---- */

/* The weights, 0..15, are the unsigned operand of vpdpbusd. Tile: 4 rows x 32 columns, with 8 sums of a block and 8 of all
 * blocks. Decoding takes 6 instructions a step, on other pipes than its 16 vpdpbusd; the 8 multiply-adds at the end of a block are on
 * the same: with 64 vpdpbusd in a block of 32 rows, 8/9 of the peak is the limit. */

static inline __m512i widen16(const uint8_t *p) { return _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)p)); }
static inline __m512i broadcast_codes(const int8_t *p) { return broadcast4((const uint8_t *)p); }

/* Scales 16 i .. 16 i + 15. */
static inline __m512 scales16(const uint8_t *p, int half, int i)
{
    return half ? _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p + i)) : _mm512_loadu_ps((const float *)p + 16 * i);
}

/* The sums that a row starts from: the zero points of 16 columns (or 1) times `start`. */
static inline __m512i starts16(__m512i zeros, int own_zeros, int32_t start)
{
    const __m512i v = _mm512_set1_epi32(start);
    return own_zeros ? _mm512_mullo_epi32(zeros, v) : v;
}

/* `rows` and `own_zeros` are constants where this is inlined. */
static inline __attribute__((always_inline)) void blocked_rows(const int rows, const int own_zeros, const qk_blocked_panel *p,
                                                               const int8_t *a, size_t lda, const int32_t *start,
                                                               size_t ld_start, float *y)
{
    const __m512i low = _mm512_set1_epi8(15);
    const uint8_t *b = p->records;
    const int8_t *a1 = a + lda, *a2 = a + 2 * lda, *a3 = a + 3 * lda;
    const size_t scale_bytes = p->half_scales ? 2 * QK_BLOCKED_NR : 4 * QK_BLOCKED_NR;
    __m512 y00 = _mm512_setzero_ps(), y01 = y00, y10 = y00, y11 = y00, y20 = y00, y21 = y00, y30 = y00, y31 = y00;
    for (size_t block = 0; block < p->blocks; block++, start++) {
        const size_t steps = block + 1 < p->blocks ? p->steps : p->last_steps;
        const uint8_t *scales = b + steps * 128, *zeros = scales + scale_bytes;
        __m512i z0 = _mm512_setzero_si512(), z1 = z0;
        if (own_zeros) z0 = widen16(zeros), z1 = widen16(zeros + 16);
        __m512i c00 = starts16(z0, own_zeros, start[0]), c01 = starts16(z1, own_zeros, start[0]);
        __m512i c10 = c00, c11 = c01, c20 = c00, c21 = c01, c30 = c00, c31 = c01;
        if (rows > 1) c10 = starts16(z0, own_zeros, start[ld_start]), c11 = starts16(z1, own_zeros, start[ld_start]);
        if (rows > 2) c20 = starts16(z0, own_zeros, start[2 * ld_start]), c21 = starts16(z1, own_zeros, start[2 * ld_start]);
        if (rows > 3) c30 = starts16(z0, own_zeros, start[3 * ld_start]), c31 = starts16(z1, own_zeros, start[3 * ld_start]);
        __m512i d00 = _mm512_setzero_si512(), d01 = d00; /* one row: two more chains, for vpdpbusd takes 4 cycles */
        for (size_t s = 0; s < steps; s++, b += 128, a += 8, a1 += 8, a2 += 8, a3 += 8) {
            const __m512i two0 = _mm512_loadu_si512(b), two1 = _mm512_loadu_si512(b + 64);
            __m512i b0 = _mm512_and_si512(two0, low), b1 = _mm512_and_si512(two1, low);
            __m512i v = broadcast_codes(a);
            c00 = _mm512_dpbusd_epi32(c00, b0, v), c01 = _mm512_dpbusd_epi32(c01, b1, v);
            if (rows > 1) v = broadcast_codes(a1), c10 = _mm512_dpbusd_epi32(c10, b0, v), c11 = _mm512_dpbusd_epi32(c11, b1, v);
            if (rows > 2) v = broadcast_codes(a2), c20 = _mm512_dpbusd_epi32(c20, b0, v), c21 = _mm512_dpbusd_epi32(c21, b1, v);
            if (rows > 3) v = broadcast_codes(a3), c30 = _mm512_dpbusd_epi32(c30, b0, v), c31 = _mm512_dpbusd_epi32(c31, b1, v);
            b0 = _mm512_and_si512(_mm512_srli_epi16(two0, 4), low), b1 = _mm512_and_si512(_mm512_srli_epi16(two1, 4), low);
            v = broadcast_codes(a + 4);
            if (rows == 1) d00 = _mm512_dpbusd_epi32(d00, b0, v), d01 = _mm512_dpbusd_epi32(d01, b1, v);
            if (rows > 1) c00 = _mm512_dpbusd_epi32(c00, b0, v), c01 = _mm512_dpbusd_epi32(c01, b1, v);
            if (rows > 1) v = broadcast_codes(a1 + 4), c10 = _mm512_dpbusd_epi32(c10, b0, v), c11 = _mm512_dpbusd_epi32(c11, b1, v);
            if (rows > 2) v = broadcast_codes(a2 + 4), c20 = _mm512_dpbusd_epi32(c20, b0, v), c21 = _mm512_dpbusd_epi32(c21, b1, v);
            if (rows > 3) v = broadcast_codes(a3 + 4), c30 = _mm512_dpbusd_epi32(c30, b0, v), c31 = _mm512_dpbusd_epi32(c31, b1, v);
        }
        if (rows == 1) c00 = _mm512_add_epi32(c00, d00), c01 = _mm512_add_epi32(c01, d01);
        const __m512 s0 = scales16(scales, p->half_scales, 0), s1 = scales16(scales, p->half_scales, 1);
        y00 = _mm512_fmadd_ps(_mm512_cvtepi32_ps(c00), s0, y00), y01 = _mm512_fmadd_ps(_mm512_cvtepi32_ps(c01), s1, y01);
        if (rows > 1) y10 = _mm512_fmadd_ps(_mm512_cvtepi32_ps(c10), s0, y10), y11 = _mm512_fmadd_ps(_mm512_cvtepi32_ps(c11), s1, y11);
        if (rows > 2) y20 = _mm512_fmadd_ps(_mm512_cvtepi32_ps(c20), s0, y20), y21 = _mm512_fmadd_ps(_mm512_cvtepi32_ps(c21), s1, y21);
        if (rows > 3) y30 = _mm512_fmadd_ps(_mm512_cvtepi32_ps(c30), s0, y30), y31 = _mm512_fmadd_ps(_mm512_cvtepi32_ps(c31), s1, y31);
        b = zeros + (own_zeros ? QK_BLOCKED_NR : 0);
    }
    _mm512_storeu_ps(y, y00), _mm512_storeu_ps(y + 16, y01);
    if (rows > 1) y += 32, _mm512_storeu_ps(y, y10), _mm512_storeu_ps(y + 16, y11);
    if (rows > 2) y += 32, _mm512_storeu_ps(y, y20), _mm512_storeu_ps(y + 16, y21);
    if (rows > 3) y += 32, _mm512_storeu_ps(y, y30), _mm512_storeu_ps(y + 16, y31);
}

static void blocked_tile(int rows, const qk_blocked_panel *p, const int8_t *a, size_t lda, const int32_t *start,
                         size_t ld_start, float *y)
{
    switch (rows * 2 + p->own_zeros) {
    case 2: blocked_rows(1, 0, p, a, lda, start, ld_start, y); break;
    case 3: blocked_rows(1, 1, p, a, lda, start, ld_start, y); break;
    case 4: blocked_rows(2, 0, p, a, lda, start, ld_start, y); break;
    case 5: blocked_rows(2, 1, p, a, lda, start, ld_start, y); break;
    case 6: blocked_rows(3, 0, p, a, lda, start, ld_start, y); break;
    case 7: blocked_rows(3, 1, p, a, lda, start, ld_start, y); break;
    case 8: blocked_rows(4, 0, p, a, lda, start, ld_start, y); break;
    default: blocked_rows(4, 1, p, a, lda, start, ld_start, y); break;
    }
}

const qk_kernels qk_kernels_avx512vnni = {
    .name = "avx512vnni",
    .mr = MR, .nr = NR, .kr = KR, .a_bytes = 1,
    .blocked_mr = 4,
    .gemm_tile = gemm_tile,
    .gemm_pack_row = gemm_pack_row,
    .gemm_pack_panel = gemm_pack_panel,
    .gemm_unpack_panel = gemm_unpack_panel,
    .gemm_panel_bytes = gemm_panel_bytes,
#include "kernels_table.inc.h"
};

#if defined(__clang__) && !defined(QK_SIMDE)
#pragma clang attribute pop
#endif
#endif
