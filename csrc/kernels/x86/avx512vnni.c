/* AVX-512 with VNNI (Ice Lake, Sapphire Rapids, Zen 4 and later).
 *
 * vpdpbusd: 16 lanes x (4 unsigned by 4 signed bytes) added to int32, no saturation (numerics 6).
 * Zen 4 issues one 512-bit vpdpbusd a cycle (latency 4), Zen 5 two: 64 or 128 products a cycle.
 *
 * Tile: 12 rows x 32 columns, 24 accumulators; 2 registers hold b, 1 the broadcast of a: 27 of 32. One step takes 4
 * codes of k: 2 loads of b, 12 broadcasts of a, 24 vpdpbusd, so loads (2 a cycle) are never the limit. Half as many
 * rows do as well from the L1 cache, but at k = 1024 a panel fills it, and is read from L2 once for each tile.
 *
 *          b0 (16 columns)  b1 (16 columns)
 *     a0   c00              c01
 *     a1   c10              c11
 *     ..   ..               ..
 *     ab   cb0              cb1
 */
#if defined(__x86_64__)
#include "kernels/kernels.h"
#include "kernels/x86/target.h"
#include "runtime/compiler.h"

QK_TARGET_BEGIN("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c", "prefer-vector-width=512")

/* Read once: gcc would rather read again as an operand, and loads that straddle cache lines are dear. */
static inline __m512 load_once(const float *x)
{
    __m512 v = _mm512_loadu_ps(x);
    QK_KEEP(v);
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

/* Columns i .. i + 63 of several rows, the parameters held in registers. Returns how many rows were stored before one
 * that store64 refused. */
static inline size_t quantize_group_columns(const float *x, uint8_t *q, const qk_affine_columns *p, size_t i,
                                            size_t rows)
{
    const float *s = p->scale + i, *r = p->reciprocal + i;
    const int32_t *z = p->zero_point + i;
    const __m512 s0 = _mm512_loadu_ps(s), s1 = _mm512_loadu_ps(s + 16), s2 = _mm512_loadu_ps(s + 32),
                 s3 = _mm512_loadu_ps(s + 48);
    const __m512 r0 = _mm512_loadu_ps(r), r1 = _mm512_loadu_ps(r + 16), r2 = _mm512_loadu_ps(r + 32),
                 r3 = _mm512_loadu_ps(r + 48);
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

#define HAVE_WIDEN
/* 64 codes: gcc widens bytes by chains of shuffles, the loads do it at once. */
static inline void widen_group(const uint8_t *q, int is_signed, int32_t *to)
{
    for (int i = 0; i < 64; i += 16) {
        const __m128i codes = _mm_loadu_si128((const __m128i *)(q + i));
        _mm512_storeu_si512(to + i, is_signed ? _mm512_cvtepi8_epi32(codes) : _mm512_cvtepu8_epi32(codes));
    }
}

/* ---- codebooks of at most 16 levels (numerics 15) ---- */

/* The thresholds are a binary tree: each of its four depths is a register, in which vpermps looks up where each lane
 * has got to. */
#define HAVE_LEVELS16
#define GROUP16 64
typedef struct {
    __m512 depth0, depth1, depth2, depth3;
    __m512i order;
} nodes16;

/* Depth d of the tree, for lanes that have d bits of their rank, the first decision in the lowest bit: 16 entries from
 * 2^d on, in the order of the bits reversed. So a decision is one masked addition. */
static inline nodes16 load_nodes16(const qk_levels *t)
{
    const __m512i reversed2 = _mm512_setr_epi32(0, 2, 1, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0);
    const __m512i reversed3 = _mm512_setr_epi32(0, 4, 2, 6, 1, 5, 3, 7, 0, 0, 0, 0, 0, 0, 0, 0);
    const __m128i reversed4 = _mm_setr_epi8(0, 8, 4, 12, 2, 10, 6, 14, 1, 9, 5, 13, 3, 11, 7, 15);
    const __m512 nodes = _mm512_loadu_ps(t->node);
    nodes16 of;
    of.depth0 = _mm512_set1_ps(t->node[1]);
    of.depth1 = _mm512_permutexvar_ps(_mm512_setr_epi32(2, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0), nodes);
    of.depth2 = _mm512_permutexvar_ps(_mm512_add_epi32(reversed2, _mm512_set1_epi32(4)), nodes);
    of.depth3 = _mm512_permutexvar_ps(_mm512_add_epi32(reversed3, _mm512_set1_epi32(8)), nodes);
    of.order = _mm512_broadcast_i32x4(_mm_shuffle_epi8(_mm_loadu_si128((const __m128i *)t->order), reversed4));
    return of;
}

static inline __mmask16 above(__m512 v, __m512 threshold) { return _mm512_cmp_ps_mask(v, threshold, _CMP_GT_OQ); }

/* Ranks of 16 values, their bits reversed. */
static inline __m512i reversed_rank(__m512 v, nodes16 t)
{
    __m512i r = _mm512_maskz_mov_epi32(above(v, t.depth0), _mm512_set1_epi32(1));
    r = _mm512_mask_add_epi32(r, above(v, _mm512_permutexvar_ps(r, t.depth1)), r, _mm512_set1_epi32(2));
    r = _mm512_mask_add_epi32(r, above(v, _mm512_permutexvar_ps(r, t.depth2)), r, _mm512_set1_epi32(4));
    return _mm512_mask_add_epi32(r, above(v, _mm512_permutexvar_ps(r, t.depth3)), r, _mm512_set1_epi32(8));
}

static inline void encode16(const float *x, uint8_t *q, float factor, nodes16 t)
{
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    const __m512 f = _mm512_set1_ps(factor);
    const __m512i r0 = reversed_rank(_mm512_mul_ps(_mm512_loadu_ps(x), f), t);
    const __m512i r1 = reversed_rank(_mm512_mul_ps(_mm512_loadu_ps(x + 16), f), t);
    const __m512i r2 = reversed_rank(_mm512_mul_ps(_mm512_loadu_ps(x + 32), f), t);
    const __m512i r3 = reversed_rank(_mm512_mul_ps(_mm512_loadu_ps(x + 48), f), t);
    const __m512i ranks = _mm512_packus_epi16(_mm512_packs_epi32(r0, r1), _mm512_packs_epi32(r2, r3));
    _mm512_storeu_si512(q, _mm512_permutexvar_epi32(order, _mm512_shuffle_epi8(t.order, ranks)));
}

static inline __m512i larger(__m512i a, __m512i b) { return _mm512_max_epi32(a, b); }

/* The largest magnitude of `block` values, a multiple of 16, in 16 parts, as bits. */
static inline __m512i magnitudes(const float *x, size_t block)
{
    const __m512i mask = _mm512_set1_epi32(INT32_MAX);
    __m512i most = _mm512_setzero_si512();
    for (size_t i = 0; i < block; i += 16) most = larger(most, _mm512_and_si512(_mm512_loadu_si512(x + i), mask));
    return most;
}

/* Scales of four blocks and what to multiply with; returns the largest as bits. Parts of different blocks are brought
 * together, so that the maxima of all four take little more than those of one. */
static inline int32_t magnitudes4(const float *x, size_t block, float *scale, float *factor)
{
    const __m512i m0 = magnitudes(x, block), m1 = magnitudes(x + block, block);
    const __m512i m2 = magnitudes(x + 2 * block, block), m3 = magnitudes(x + 3 * block, block);
    const __m512i m01 = larger(_mm512_unpacklo_epi32(m0, m1), _mm512_unpackhi_epi32(m0, m1));
    const __m512i m23 = larger(_mm512_unpacklo_epi32(m2, m3), _mm512_unpackhi_epi32(m2, m3));
    const __m512i all = larger(_mm512_unpacklo_epi64(m01, m23), _mm512_unpackhi_epi64(m01, m23));
    const __m256i half = _mm256_max_epi32(_mm512_castsi512_si256(all), _mm512_extracti64x4_epi64(all, 1));
    const __m128i most = _mm_max_epi32(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
    const __m128 divisor = _mm_castsi128_ps(_mm_max_epi32(most, _mm_set1_epi32(0x00800000))); /* FLT_MIN at least */
    _mm_storeu_ps(scale, _mm_castsi128_ps(most));
    _mm_storeu_ps(factor, _mm_div_ps(_mm_set1_ps(1.0f), divisor));
    const __m128i pair = _mm_max_epi32(most, _mm_shuffle_epi32(most, 0x4e));
    return _mm_cvtsi128_si32(_mm_max_epi32(pair, _mm_shuffle_epi32(pair, 0xb1)));
}

typedef __m512 levels16;

static inline levels16 load_levels16(const qk_levels *t) { return _mm512_loadu_ps(t->level); }

static inline void decode16(const uint8_t *q, float *y, float scale, levels16 levels)
{
    const __m512 s = _mm512_set1_ps(scale);
    for (int i = 0; i < GROUP16; i += 16) {
        const __m512i codes = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)(q + i)));
        _mm512_storeu_ps(y + i, _mm512_mul_ps(_mm512_permutexvar_ps(codes, levels), s));
    }
}

#define MR 12
#define NR 32
#define KR 4
#define VECTOR 64
#define HAVE_FMA 1
#define GROUP 64
#include "kernels/generic/elementwise.h"
#include "kernels/generic/layers.h"
#include "kernels/generic/codebook.h"
#include "kernels/generic/gguf.h"

/* ---- epilogues (numerics 7 to 9): 4 registers at a time, step by step, for each step waits for the one before ---- */

/* gelu_f32. The segment is looked up by the low 4 bits of vpermps' indices. */
static QK_INLINE void gelu64(__m512 *y, const gelu_table *g)
{
    const __m512 zero = _mm512_setzero_ps();
    const __m512 c0 = _mm512_loadu_ps(g->coefficient[0]), c1 = _mm512_loadu_ps(g->coefficient[1]);
    const __m512 c2 = _mm512_loadu_ps(g->coefficient[2]), c3 = _mm512_loadu_ps(g->coefficient[3]);
    const __m512 c4 = _mm512_loadu_ps(g->coefficient[4]);
    __m512 t[4], p[4];
    __m512i i[4];
    for (int v = 0; v < 4; v++) {
        t[v] =
            _mm512_range_ps(_mm512_mul_ps(y[v], _mm512_set1_ps(g->per_unit)), _mm512_set1_ps(GELU_SEGMENTS - 1), 0xa);
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
static QK_INLINE __m512i sums16(const int32_t *acc, const qk_tile *t, int row, int col)
{
    __m512i sums = _mm512_loadu_si512(acc + NR * row + col);
    if (t->row_zero)
        sums = _mm512_sub_epi32(
            sums, _mm512_mullo_epi32(_mm512_set1_epi32(t->row_zero[row]), _mm512_loadu_si512(t->colsum + col)));
    if (t->row_term)
        sums = _mm512_sub_epi32(
            sums, _mm512_mullo_epi32(_mm512_set1_epi32(t->row_term[row]), _mm512_loadu_si512(t->col_zero + col)));
    return sums;
}

static QK_INLINE __m512 scaled16(const int32_t *acc, const qk_tile *t, int row, int col)
{
    __m512 scale = _mm512_loadu_ps(t->col_scale + col);
    if (t->row_scale) scale = _mm512_mul_ps(_mm512_set1_ps(t->row_scale[row]), scale);
    return _mm512_add_ps(_mm512_mul_ps(_mm512_cvtepi32_ps(sums16(acc, t, row, col)), scale),
                         _mm512_loadu_ps(t->bias + col));
}

static inline float *line_of(const void *first, size_t row_stride, int row)
{
    return (float *)((char *)first + (size_t)row * row_stride);
}

/* Two rows at a time; where their number is odd, the last of them twice. */
static QK_INLINE void float_rows(const int32_t *acc, const qk_tile *t, const qk_activation activation)
{
    const int rows = t->rows, whole = t->cols == NR;
    float edge[2 * NR];
    const __mmask16 left = (__mmask16)(t->cols < 16 ? (1 << t->cols) - 1 : 0xffff);
    const __mmask16 right = (__mmask16)(t->cols > 16 ? (1 << (t->cols - 16)) - 1 : 0);
    for (int row = 0; row < rows; row += 2) {
        const int next = row + 1 < rows ? row + 1 : row;
        __m512 y[4] = {scaled16(acc, t, row, 0), scaled16(acc, t, row, 16), scaled16(acc, t, next, 0),
                       scaled16(acc, t, next, 16)};
        if (t->residual) {
            const float *r0 = line_of(t->residual, t->residual_stride, row),
                        *r1 = line_of(t->residual, t->residual_stride, next);
            y[0] = _mm512_add_ps(y[0], _mm512_maskz_loadu_ps(left, r0)),
            y[1] = _mm512_add_ps(y[1], _mm512_maskz_loadu_ps(right, r0 + 16));
            y[2] = _mm512_add_ps(y[2], _mm512_maskz_loadu_ps(left, r1)),
            y[3] = _mm512_add_ps(y[3], _mm512_maskz_loadu_ps(right, r1 + 16));
        }
        if (activation == QK_RELU)
            for (int v = 0; v < 4; v++) y[v] = _mm512_max_ps(_mm512_setzero_ps(), y[v]);
        if (activation == QK_GELU) gelu64(y, &gelu_erf);
        if (activation == QK_GELU_TANH) gelu64(y, &gelu_tanh);
        if (t->bounded)
            for (int v = 0; v < 4; v++)
                y[v] = _mm512_min_ps(_mm512_set1_ps(t->hi), _mm512_max_ps(_mm512_set1_ps(t->lo), y[v]));
        float *to0 = whole ? line_of(t->dst, t->row_stride, row) : edge,
              *to1 = whole ? line_of(t->dst, t->row_stride, next) : edge + NR;
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

/* Sums times multipliers, not above `hi`, so that only what lies below int32 saturates, to where it belongs; rounded.
 */
static QK_INLINE __m512i rounded16(__m512i sums, const qk_tile *t, int col, __m512 hi, const int half_away)
{
    __m512 v = _mm512_mul_ps(_mm512_cvtepi32_ps(sums), _mm512_loadu_ps(t->multiplier + col));
    v = _mm512_min_ps(hi, _mm512_add_ps(v, _mm512_loadu_ps(t->bias + col)));
    if (half_away) {
        const __m512 whole = _mm512_roundscale_ps(v, _MM_FROUND_TO_ZERO), rest = _mm512_sub_ps(v, whole);
        v = _mm512_mask_add_ps(whole, _mm512_cmp_ps_mask(rest, _mm512_set1_ps(0.5f), _CMP_GE_OQ), whole,
                               _mm512_set1_ps(1.0f));
        v = _mm512_mask_sub_ps(v, _mm512_cmp_ps_mask(rest, _mm512_set1_ps(-0.5f), _CMP_LE_OQ), whole,
                               _mm512_set1_ps(1.0f));
    }
    return _mm512_cvtps_epi32(v);
}

/* shift_left */
static inline __m512i shifted_left16(__m512i sums, __m512i shift)
{
    const __m512i lo = _mm512_srav_epi32(_mm512_set1_epi32(INT32_MIN), shift),
                  hi = _mm512_srav_epi32(_mm512_set1_epi32(INT32_MAX), shift);
    return _mm512_sllv_epi32(_mm512_min_epi32(_mm512_max_epi32(sums, lo), hi), shift);
}

static inline __m512i even_products(__m512i a, __m512i b) { return _mm512_mul_epi32(a, b); }
static inline __m512i odd_products(__m512i a, __m512i b)
{
    return _mm512_mul_epi32(_mm512_srli_epi64(a, 32), _mm512_srli_epi64(b, 32));
}
/* The low words of `even`, and the high ones of `odd`. */
static inline __m512i interleaved(__m512i even, __m512i odd) { return _mm512_mask_mov_epi32(even, 0xaaaa, odd); }

/* multiply_gemmlowp */
static inline __m512i gemmlowp16(__m512i sums, __m512i mantissa, __m512i shift)
{
    const __m512i zero = _mm512_setzero_si512(), one = _mm512_set1_epi32(1), half = _mm512_set1_epi64(1 << 30);
    const __m512i right = _mm512_max_epi32(_mm512_sub_epi32(zero, shift), zero),
                  a = shifted_left16(sums, _mm512_max_epi32(shift, zero));
    const __m512i even = _mm512_srli_epi64(_mm512_add_epi64(even_products(a, mantissa), half), 31);
    const __m512i odd = _mm512_slli_epi64(_mm512_add_epi64(odd_products(a, mantissa), half), 1);
    const __m512i high = interleaved(even, odd), mask = _mm512_sub_epi32(_mm512_sllv_epi32(one, right), one);
    const __m512i limit = _mm512_sub_epi32(_mm512_srli_epi32(mask, 1), _mm512_srai_epi32(high, 31)),
                  q = _mm512_srav_epi32(high, right);
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

static QK_INLINE __m512i multiplied16(const int32_t *acc, const qk_tile *t, int row, int col, __m512 hi,
                                      const qk_rounding rounding)
{
    const __m512i sums = sums16(acc, t, row, col);
    if (rounding <= QK_HALF_AWAY) return rounded16(sums, t, col, hi, rounding == QK_HALF_AWAY);
    const __m512i mantissa = _mm512_loadu_si512(t->mantissa + col), shift = _mm512_loadu_si512(t->shift + col);
    return rounding == QK_GEMMLOWP ? gemmlowp16(sums, mantissa, shift) : tflite16(sums, mantissa, shift);
}

static QK_INLINE void multiply_rows(const int32_t *acc, uint8_t *q, const qk_tile *t, const qk_rounding rounding)
{
    const int32_t qmin = t->requant->qmin, qmax = t->requant->qmax, zero_point = t->requant->zero_point;
    const int rows = t->rows;
    const __m512i zero = _mm512_set1_epi16((short)zero_point);
    const __m512 hi = _mm512_set1_ps((float)(qmax - zero_point));
    for (int row = 0; row < rows; row += 2) { /* q has MR rows, and MR is even */
        const int next = row + 1 < rows ? row + 1 : row;
        const __m512i n0 =
            _mm512_packs_epi32(multiplied16(acc, t, row, 0, hi, rounding), multiplied16(acc, t, row, 16, hi, rounding));
        const __m512i n1 = _mm512_packs_epi32(multiplied16(acc, t, next, 0, hi, rounding),
                                              multiplied16(acc, t, next, 16, hi, rounding));
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

#include "kernels/generic/gemm8.h"
#include "kernels/generic/gemm4.h"
#include "kernels/generic/gemm16.h"

static inline __m512i broadcast4(const uint8_t *p)
{
    int32_t codes;
    memcpy(&codes, p, sizeof codes);
    return _mm512_set1_epi32(codes);
}

/* Panels may come from the L3 cache or from memory: asking 32 steps ahead gains 3% at 32 x 4096 x 4096, and nothing at
 * few rows, where it would cost. */
enum { AHEAD = 32 * NR * KR };

/* `rows` is a constant where this is inlined: the accumulators of absent rows vanish. Each has a name,
 * since gcc keeps arrays of them in memory. */
static QK_INLINE void tile(const int rows, size_t steps, const uint8_t *a, size_t lda, const int8_t *panel,
                           const int32_t *init, int32_t *c, size_t ldc)
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
        if (rows > 1)
            v = broadcast4(a + lda), c10 = _mm512_dpbusd_epi32(c10, v, b0), c11 = _mm512_dpbusd_epi32(c11, v, b1);
        if (rows > 2)
            v = broadcast4(a + 2 * lda), c20 = _mm512_dpbusd_epi32(c20, v, b0), c21 = _mm512_dpbusd_epi32(c21, v, b1);
        if (rows > 3) v = broadcast4(a3), c30 = _mm512_dpbusd_epi32(c30, v, b0), c31 = _mm512_dpbusd_epi32(c31, v, b1);
        if (rows > 4)
            v = broadcast4(a3 + lda), c40 = _mm512_dpbusd_epi32(c40, v, b0), c41 = _mm512_dpbusd_epi32(c41, v, b1);
        if (rows > 5)
            v = broadcast4(a3 + 2 * lda), c50 = _mm512_dpbusd_epi32(c50, v, b0), c51 = _mm512_dpbusd_epi32(c51, v, b1);
        if (rows > 6) v = broadcast4(a6), c60 = _mm512_dpbusd_epi32(c60, v, b0), c61 = _mm512_dpbusd_epi32(c61, v, b1);
        if (rows > 7)
            v = broadcast4(a6 + lda), c70 = _mm512_dpbusd_epi32(c70, v, b0), c71 = _mm512_dpbusd_epi32(c71, v, b1);
        if (rows > 8)
            v = broadcast4(a6 + 2 * lda), c80 = _mm512_dpbusd_epi32(c80, v, b0), c81 = _mm512_dpbusd_epi32(c81, v, b1);
        if (rows > 9) v = broadcast4(a9), c90 = _mm512_dpbusd_epi32(c90, v, b0), c91 = _mm512_dpbusd_epi32(c91, v, b1);
        if (rows > 10)
            v = broadcast4(a9 + lda), ca0 = _mm512_dpbusd_epi32(ca0, v, b0), ca1 = _mm512_dpbusd_epi32(ca1, v, b1);
        if (rows > 11)
            v = broadcast4(a9 + 2 * lda), cb0 = _mm512_dpbusd_epi32(cb0, v, b0), cb1 = _mm512_dpbusd_epi32(cb1, v, b1);
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
static QK_INLINE void few_rows(const int rows, size_t steps, const uint8_t *a, size_t lda, const int8_t *panel,
                               const int32_t *init, int32_t *c, size_t ldc)
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
        if (rows > 1)
            d10 = _mm512_dpbusd_epi32(d10, broadcast4(a + lda), b0),
            d11 = _mm512_dpbusd_epi32(d11, broadcast4(a + lda), b1);
    }
    _mm512_storeu_si512(c, _mm512_add_epi32(c00, d00)), _mm512_storeu_si512(c + 16, _mm512_add_epi32(c01, d01));
    if (rows == 1) return;
    _mm512_storeu_si512(c + ldc, _mm512_add_epi32(c10, d10)),
        _mm512_storeu_si512(c + ldc + 16, _mm512_add_epi32(c11, d11));
}

static void gemm8_tile(int rows, size_t steps, const void *a, size_t lda, const int8_t *panel, const int32_t *init,
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

static void gemm8_pack_row(const uint8_t *a, size_t n, size_t n_pad, uint8_t flip, void *to)
{
    pack_row_bytes(a, n, n_pad, flip, to);
}

/* ---- 4-bit weights (numerics 12) ---- */

/* The weights are the unsigned operand of vpdpbusd. Tile: 4 rows x 32 columns, with 8 sums of a block and 8 of all
 * blocks.
 *
 * A byte t = 16 h + l has codes of two columns, which meet the same a: T = sum a t = 16 H + L, and sum a (t & 240) = 16
 * H. So one `and` for two vpdpbusd decodes both, but to part H and L takes two instructions a row at the end of a
 * block. One row, which is bound by vector instructions of all kinds, gains 10%; 4 rows decode code by code, on other
 * pipes than vpdpbusd, and levels must. Multiply-adds at the end of a block are on the pipes of vpdpbusd: with 64 of
 * those in a block of 32 rows, 8/9 of the peak is the limit. */

enum {
    STEP = QK_GEMM4_NR * QK_GEMM4_KR / 2,
    MOST_STEPS = 16 * 1024 /* of a block: 4 * 16 * 1024 * 255 * 127 < 2^31 */
};

static inline __m512i widen16(const uint8_t *p) { return _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)p)); }
static inline __m512i broadcast_codes(const int8_t *p) { return broadcast4((const uint8_t *)p); }

/* Scales 16 i .. 16 i + 15. */
static inline __m512 scales16(const uint8_t *p, int half, int i)
{
    return half ? _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p + i))
                : _mm512_loadu_ps((const float *)p + 16 * i);
}

/* The sums that a row starts from: the zero points of 16 columns (or 1) times `start`. */
static inline __m512i starts16(__m512i zeros, const int own_zeros, int32_t start)
{
    const __m512i v = _mm512_set1_epi32(start);
    return own_zeros ? _mm512_mullo_epi32(zeros, v) : v;
}

/* Levels + 128, in each lane of 16 bytes. */
static inline __m512i table_of(const int8_t *levels)
{
    const __m128i table = _mm_xor_si128(_mm_loadu_si128((const __m128i *)levels), _mm_set1_epi8((char)128));
    return _mm512_broadcast_i32x4(table);
}

/* The unsigned bytes of a step. */
typedef struct {
    __m512i low, high;
} step_bytes;

/* How a step becomes bytes: t and t & 240; codes; levels by vpshufb, or by vpermb (AVX-512 VBMI), which ignores the
 * bits that vpshufb must not see. */
enum { BOTH, CODES, SHUFFLED, PERMUTED };

static inline int has_vpermb(void) { return QK_ASM && __builtin_cpu_supports("avx512vbmi"); }

static QK_INLINE __m512i byte_of(__m512i codes, const int kind, __m512i levels)
{
    if (kind != PERMUTED) codes = _mm512_and_si512(codes, _mm512_set1_epi8(15));
    if (kind == SHUFFLED) codes = _mm512_shuffle_epi8(levels, codes);
#if QK_ASM /* the intrinsic would need another target */
    if (kind == PERMUTED) __asm__("vpermb %2, %1, %0" : "=v"(codes) : "v"(codes), "v"(levels));
#endif
    return codes;
}

static QK_INLINE step_bytes decode(const uint8_t *b, const int kind, __m512i levels)
{
    const __m512i two = _mm512_loadu_si512(b);
    if (kind == BOTH) return (step_bytes){two, _mm512_and_si512(two, _mm512_set1_epi8((char)240))};
    return (step_bytes){byte_of(two, kind, levels), byte_of(_mm512_srli_epi16(two, 4), kind, levels)};
}

/* Sums of one row and a block. One `c` is (low columns, high columns). */
typedef struct {
    __m512i low, high;
} two_sums;

static QK_INLINE two_sums multiply_step(two_sums c, step_bytes b, const int8_t *a)
{
    const __m512i v = broadcast_codes(a);
    return (two_sums){_mm512_dpbusd_epi32(c.low, b.low, v), _mm512_dpbusd_epi32(c.high, b.high, v)};
}

/* Adds to the sums so far those of a block, times its scales. */
static QK_INLINE void add_block(__m512 *y0, __m512 *y1, two_sums c, const int kind, __m512i start1, __m512 s0,
                                __m512 s1)
{
    const __m512i low = kind ? c.low : _mm512_sub_epi32(c.low, c.high);
    const __m512i high = kind ? c.high : _mm512_srai_epi32(c.high, 4);
    *y0 = _mm512_fmadd_ps(_mm512_cvtepi32_ps(low), s0, *y0);
    *y1 = _mm512_fmadd_ps(_mm512_cvtepi32_ps(_mm512_add_epi32(high, start1)), s1, *y1);
}

/* `rows`, `own_zeros` and `kind` are constants where this is inlined. */
static QK_INLINE void gemm4_rows(const int rows, const int own_zeros, const int kind, const qk_gemm4_panel *panel,
                                 const int8_t *a, size_t lda, const int32_t *start, size_t ld_start, float *y)
{
    const qk_gemm4_panel p = *panel;
    const __m512i levels = kind >= SHUFFLED ? table_of(p.levels) : _mm512_setzero_si512();
    const uint8_t *b = p.records;
    const size_t scale_bytes = p.half_scales ? 2 * QK_GEMM4_NR : 4 * QK_GEMM4_NR;
    const __m512i none = _mm512_setzero_si512();
    __m512 y00 = _mm512_setzero_ps(), y01 = y00, y10 = y00, y11 = y00, y20 = y00, y21 = y00, y30 = y00, y31 = y00;
    for (size_t block = 1; block <= p.blocks; block++, start++) {
        const size_t steps = block < p.blocks ? p.steps : p.last_steps;
        const uint8_t *scales = b + steps * STEP, *zeros = scales + scale_bytes;
        __m512i z0 = none, z1 = none;
        if (own_zeros) z0 = widen16(zeros), z1 = widen16(zeros + 16);
        two_sums c0 = {starts16(z0, own_zeros, start[0]), none}, c1 = {none, none}, c2 = c1, c3 = c1, d0 = c1;
        if (rows > 1) c1.low = starts16(z0, own_zeros, start[ld_start]);
        if (rows > 2) c2.low = starts16(z0, own_zeros, start[2 * ld_start]);
        if (rows > 3) c3.low = starts16(z0, own_zeros, start[3 * ld_start]);
        if (rows == 1) /* two more chains, for vpdpbusd takes 4 cycles */
            for (; b + STEP < scales; b += 2 * STEP, a += 2 * QK_GEMM4_KR) {
                c0 = multiply_step(c0, decode(b, kind, levels), a);
                d0 = multiply_step(d0, decode(b + STEP, kind, levels), a + QK_GEMM4_KR);
            }
        for (; b != scales; b += STEP, a += QK_GEMM4_KR) {
            const step_bytes of = decode(b, kind, levels);
            c0 = multiply_step(c0, of, a);
            if (rows > 1) c1 = multiply_step(c1, of, a + lda);
            if (rows > 2) c2 = multiply_step(c2, of, a + 2 * lda);
            if (rows > 3) c3 = multiply_step(c3, of, a + 3 * lda);
        }
        if (rows == 1) c0.low = _mm512_add_epi32(c0.low, d0.low), c0.high = _mm512_add_epi32(c0.high, d0.high);
        const __m512 s0 = scales16(scales, p.half_scales, 0), s1 = scales16(scales, p.half_scales, 1);
        add_block(&y00, &y01, c0, kind, starts16(z1, own_zeros, start[0]), s0, s1);
        if (rows > 1) add_block(&y10, &y11, c1, kind, starts16(z1, own_zeros, start[ld_start]), s0, s1);
        if (rows > 2) add_block(&y20, &y21, c2, kind, starts16(z1, own_zeros, start[2 * ld_start]), s0, s1);
        if (rows > 3) add_block(&y30, &y31, c3, kind, starts16(z1, own_zeros, start[3 * ld_start]), s0, s1);
        b = zeros + (own_zeros ? QK_GEMM4_NR : 0);
    }
    _mm512_storeu_ps(y, y00), _mm512_storeu_ps(y + 16, y01);
    if (rows > 1) y += 32, _mm512_storeu_ps(y, y10), _mm512_storeu_ps(y + 16, y11);
    if (rows > 2) y += 32, _mm512_storeu_ps(y, y20), _mm512_storeu_ps(y + 16, y21);
    if (rows > 3) y += 32, _mm512_storeu_ps(y, y30), _mm512_storeu_ps(y + 16, y31);
}

static QK_INLINE void gemm4_tile_of(const int own_zeros, const int kind, int rows, const qk_gemm4_panel *p,
                                    const int8_t *a, size_t lda, const int32_t *start, size_t ld_start, float *y)
{
    switch (rows) {
    case 1: gemm4_rows(1, own_zeros, kind, p, a, lda, start, ld_start, y); break;
    case 2: gemm4_rows(2, own_zeros, kind, p, a, lda, start, ld_start, y); break;
    case 3: gemm4_rows(3, own_zeros, kind, p, a, lda, start, ld_start, y); break;
    default: gemm4_rows(4, own_zeros, kind, p, a, lda, start, ld_start, y); break;
    }
}

static void gemm4_tile(int rows, const qk_gemm4_panel *p, const int8_t *a, size_t lda, const int32_t *start,
                       size_t ld_start, float *y)
{
    const int by_code = rows > 3 || (p->blocks > 1 ? p->steps : p->last_steps) > MOST_STEPS;
    if (p->levels && has_vpermb())
        gemm4_tile_of(0, PERMUTED, rows, p, a, lda, start, ld_start, y);
    else if (p->levels)
        gemm4_tile_of(0, SHUFFLED, rows, p, a, lda, start, ld_start, y);
    else if (p->own_zeros && by_code)
        gemm4_tile_of(1, CODES, rows, p, a, lda, start, ld_start, y);
    else if (p->own_zeros)
        gemm4_tile_of(1, BOTH, rows, p, a, lda, start, ld_start, y);
    else if (by_code)
        gemm4_tile_of(0, CODES, rows, p, a, lda, start, ld_start, y);
    else
        gemm4_tile_of(0, BOTH, rows, p, a, lda, start, ld_start, y);
}

/* ---- 4-bit weights with levels of each column (numerics 12) ---- */

/* A lane of 16 bytes has 16 rows of one column, so vpshufb looks them up in its levels. Tile: 4 rows x 16 columns, each
 * sum in four parts, which are added at the end of k. With 8 columns, broadcasts of 16 codes of a cost 25%. */

enum { OWN_STEP = QK_COLUMN_LEVELS_NR * QK_COLUMN_LEVELS_KR / 2 };

static inline __m512i broadcast16(const int8_t *a)
{
    return _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)a));
}
static inline __m512i levels_at(const uint8_t *p)
{
    return _mm512_xor_si512(_mm512_loadu_si512(p), _mm512_set1_epi8((char)128));
}

/* c + b * a. The asm pins the sum to its register: gcc would copy it each time. */
static QK_INLINE __m512i multiply_add(__m512i c, __m512i b, __m512i a)
{
#if QK_ASM
    __asm__("vpdpbusd %2, %1, %0" : "+v"(c) : "v"(b), "v"(a));
    return c;
#else
    return _mm512_dpbusd_epi32(c, b, a);
#endif
}

/* Sums of four parts, a lane: of c0, then of c1. */
static inline __m256i add_parts(__m512i c0, __m512i c1)
{
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 0, 0, 0, 0, 0, 0, 0, 0);
    const __m512i pairs = _mm512_add_epi32(_mm512_unpacklo_epi32(c0, c1), _mm512_unpackhi_epi32(c0, c1));
    const __m512i sums = _mm512_add_epi32(pairs, _mm512_shuffle_epi32(pairs, 0x4e));
    return _mm512_castsi512_si256(_mm512_permutexvar_epi32(order, sums));
}

static inline void store_columns(float *y, __m512i c0, __m512i c1, __m512i c2, __m512i c3, int32_t start, __m512 scale)
{
    const __m512i sums = _mm512_inserti64x4(_mm512_castsi256_si512(add_parts(c0, c1)), add_parts(c2, c3), 1);
    _mm512_storeu_ps(y, _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_add_epi32(sums, _mm512_set1_epi32(start))), scale));
}

/* `rows` is a constant where this is inlined. b has levels, then codes, of 16 columns. */
static QK_INLINE void column_levels_rows(const int rows, size_t steps, const uint8_t *b, const float *scales,
                                         const int8_t *a, size_t lda, const int32_t *start, size_t ld_start, float *y)
{
    const __m512i levels0 = levels_at(b), levels1 = levels_at(b + 64);
    const __m512i levels2 = levels_at(b + 128), levels3 = levels_at(b + 192);
    const int8_t *a3 = a + 3 * lda;
    __m512i c00 = _mm512_setzero_si512(), c01 = c00, c02 = c00, c03 = c00, c10 = c00, c11 = c00, c12 = c00, c13 = c00;
    __m512i c20 = c00, c21 = c00, c22 = c00, c23 = c00, c30 = c00, c31 = c00, c32 = c00, c33 = c00, v;
    for (const uint8_t *end = b + OWN_STEP * steps; b != end; a += QK_COLUMN_LEVELS_KR, a3 += QK_COLUMN_LEVELS_KR) {
        b += OWN_STEP;
        const __m512i two0 = _mm512_loadu_si512(b), two1 = _mm512_loadu_si512(b + 64);
        const __m512i two2 = _mm512_loadu_si512(b + 128), two3 = _mm512_loadu_si512(b + 192);
        __m512i b0 = byte_of(two0, SHUFFLED, levels0), b1 = byte_of(two1, SHUFFLED, levels1);
        __m512i b2 = byte_of(two2, SHUFFLED, levels2), b3 = byte_of(two3, SHUFFLED, levels3);
        v = broadcast16(a), c00 = multiply_add(c00, b0, v), c01 = multiply_add(c01, b1, v);
        c02 = multiply_add(c02, b2, v), c03 = multiply_add(c03, b3, v);
        if (rows > 1) v = broadcast16(a + lda), c10 = multiply_add(c10, b0, v), c11 = multiply_add(c11, b1, v);
        if (rows > 1) c12 = multiply_add(c12, b2, v), c13 = multiply_add(c13, b3, v);
        if (rows > 2) v = broadcast16(a + 2 * lda), c20 = multiply_add(c20, b0, v), c21 = multiply_add(c21, b1, v);
        if (rows > 2) c22 = multiply_add(c22, b2, v), c23 = multiply_add(c23, b3, v);
        if (rows > 3) v = broadcast16(a3), c30 = multiply_add(c30, b0, v), c31 = multiply_add(c31, b1, v);
        if (rows > 3) c32 = multiply_add(c32, b2, v), c33 = multiply_add(c33, b3, v);
        b0 = byte_of(_mm512_srli_epi16(two0, 4), SHUFFLED, levels0),
        b1 = byte_of(_mm512_srli_epi16(two1, 4), SHUFFLED, levels1);
        b2 = byte_of(_mm512_srli_epi16(two2, 4), SHUFFLED, levels2),
        b3 = byte_of(_mm512_srli_epi16(two3, 4), SHUFFLED, levels3);
        v = broadcast16(a + 16), c00 = multiply_add(c00, b0, v), c01 = multiply_add(c01, b1, v);
        c02 = multiply_add(c02, b2, v), c03 = multiply_add(c03, b3, v);
        if (rows > 1) v = broadcast16(a + lda + 16), c10 = multiply_add(c10, b0, v), c11 = multiply_add(c11, b1, v);
        if (rows > 1) c12 = multiply_add(c12, b2, v), c13 = multiply_add(c13, b3, v);
        if (rows > 2) v = broadcast16(a + 2 * lda + 16), c20 = multiply_add(c20, b0, v), c21 = multiply_add(c21, b1, v);
        if (rows > 2) c22 = multiply_add(c22, b2, v), c23 = multiply_add(c23, b3, v);
        if (rows > 3) v = broadcast16(a3 + 16), c30 = multiply_add(c30, b0, v), c31 = multiply_add(c31, b1, v);
        if (rows > 3) c32 = multiply_add(c32, b2, v), c33 = multiply_add(c33, b3, v);
    }
    const __m512 scale = _mm512_loadu_ps(scales);
    store_columns(y, c00, c01, c02, c03, start[0], scale);
    if (rows > 1) store_columns(y + 32, c10, c11, c12, c13, start[ld_start], scale);
    if (rows > 2) store_columns(y + 64, c20, c21, c22, c23, start[2 * ld_start], scale);
    if (rows > 3) store_columns(y + 96, c30, c31, c32, c33, start[3 * ld_start], scale);
}

static void column_levels_tile(int rows, const qk_gemm4_panel *p, const int8_t *a, size_t lda, const int32_t *start,
                               size_t ld_start, float *y)
{
    const size_t steps = p->last_steps, group = OWN_STEP * (1 + steps);
    const uint8_t *b = p->records;
    const float *scales = (const float *)(b + 2 * group);
    if (p->blocks == 0) memset(y, 0, (size_t)rows * QK_GEMM4_NR * sizeof *y);
    for (int i = 0; p->blocks && i < 2; i++, b += group, scales += 16, y += 16) switch (rows) {
        case 1: column_levels_rows(1, steps, b, scales, a, lda, start, ld_start, y); break;
        case 2: column_levels_rows(2, steps, b, scales, a, lda, start, ld_start, y); break;
        case 3: column_levels_rows(3, steps, b, scales, a, lda, start, ld_start, y); break;
        default: column_levels_rows(4, steps, b, scales, a, lda, start, ld_start, y); break;
        }
}

/* ---- blocks of 8-bit weights (numerics 12) ---- */

/* Codes of a are the unsigned operand, + 128, as where a column has one scale; its zero points are those of the sums of
 * the columns, from which all rows start: copies of a register are free, while to load a start of each row took 6%.
 * Tile: 12 rows x 32 columns, 24 sums of a block; those of all blocks are in y, in the L1 cache. 6 rows, which leave
 * registers for these, are slower by 5%. At the end of a block each sum takes two instructions on the pipes of
 * vpdpbusd, which has 8 in a block of 32 rows: 8/10 of the peak is the limit. */

enum { BYTES_STEP = QK_GEMM4_NR * QK_GEMM4_KR };

static QK_INLINE two_sums multiply_bytes(two_sums c, step_bytes b, const int8_t *a)
{
    const __m512i v = broadcast_codes(a);
    return (two_sums){multiply_add(c.low, v, b.low), multiply_add(c.high, v, b.high)};
}

static inline step_bytes load_step(const uint8_t *b)
{
    return (step_bytes){_mm512_loadu_si512(b), _mm512_loadu_si512(b + 64)};
}

/* What all rows start from: -128 times the sums of 16 columns. */
static inline __m512i column_starts16(const uint8_t *sums, const int wide, int i)
{
    const __m512i sum = wide ? _mm512_loadu_si512((const __m512i *)sums + i)
                             : _mm512_cvtepi16_epi32(_mm256_loadu_si256((const __m256i *)sums + i));
    return _mm512_slli_epi32(sum, 7);
}

/* Zero points z of 16 columns, as int16 (z, 256 z). */
static inline __m512i zero_pairs16(const uint8_t *zeros)
{
    const __m512i z = _mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)zeros));
    return _mm512_or_si512(_mm512_and_si512(z, _mm512_set1_epi32(0xffff)), _mm512_slli_epi32(z, 24));
}

/* Of plain stores of zeros gcc makes `rep stos`, which waits for the stores of the tile before. */
static QK_INLINE void clear_rows(float *y, const int rows)
{
    __m512 zero = _mm512_setzero_ps();
    QK_KEEP(zero);
    for (int i = 0; i < rows * QK_GEMM4_NR; i += 16) _mm512_storeu_ps(y + i, zero);
}

/* What 32 columns of a block have. */
typedef struct {
    __m512 s0, s1;
    __m512i z0, z1;
} block_columns;

static QK_INLINE block_columns columns_of(const int own_zeros, const uint8_t *scales, const uint8_t *zeros,
                                          int half_scales)
{
    block_columns of = {scales16(scales, half_scales, 0), scales16(scales, half_scales, 1), _mm512_setzero_si512(),
                        _mm512_setzero_si512()};
    if (own_zeros) of.z0 = zero_pairs16(zeros), of.z1 = zero_pairs16(zeros + 16);
    return of;
}

/* Adds the sums of a block, of one row, to those of all blocks. */
static QK_INLINE void add_sums(float *y, two_sums c, const int own_zeros, block_columns of, const int32_t *start)
{
    if (own_zeros) {
        const __m512i v = _mm512_set1_epi32(*start);
        c = (two_sums){_mm512_dpwssd_epi32(c.low, of.z0, v), _mm512_dpwssd_epi32(c.high, of.z1, v)};
    }
    _mm512_storeu_ps(y, _mm512_fmadd_ps(_mm512_cvtepi32_ps(c.low), of.s0, _mm512_loadu_ps(y)));
    _mm512_storeu_ps(y + 16, _mm512_fmadd_ps(_mm512_cvtepi32_ps(c.high), of.s1, _mm512_loadu_ps(y + 16)));
}

/* `rows` and `own_zeros` are constants where this is inlined. Where rows are few, every other step has sums of its own,
 * since vpdpbusd takes 4 cycles or 5. */
static QK_INLINE void blocks8_rows(const int rows, const int own_zeros, const qk_gemm4_panel *panel, const int8_t *a,
                                   size_t lda, const int32_t *start, size_t ld_start, float *y)
{
    const qk_gemm4_panel p = *panel;
    const uint8_t *b = p.records;
    const int8_t *a3 = a + 3 * lda, *a6 = a + 6 * lda, *a9 = a + 9 * lda;
    const int32_t *start3 = start + 3 * ld_start, *start6 = start + 6 * ld_start, *start9 = start + 9 * ld_start;
    const __m512i none = _mm512_setzero_si512();
    clear_rows(y, rows);
    for (size_t block = 1; block <= p.blocks; block++, start++, start3++, start6++, start9++) {
        const uint8_t *scales = b + (block < p.blocks ? p.steps : p.last_steps) * BYTES_STEP,
                      *next = scales + p.params_bytes;
        const uint8_t *sums = next - (p.long_sums ? 4 : 2) * QK_GEMM4_NR, *zeros = sums - QK_GEMM4_NR;
        const two_sums columns = {column_starts16(sums, p.long_sums, 0), column_starts16(sums, p.long_sums, 1)};
        two_sums c0 = columns, c1 = c0, c2 = c0, c3 = c0, c4 = c0, c5 = c0, c6 = c0, c7 = c0, c8 = c0, c9 = c0, ca = c0,
                 cb = c0;
        two_sums d0 = {none, none}, d1 = d0;
        if (rows < 3)
            for (; b + BYTES_STEP < scales; b += 2 * BYTES_STEP, a += 2 * QK_GEMM4_KR) {
                const step_bytes of = load_step(b), after = load_step(b + BYTES_STEP);
                c0 = multiply_bytes(c0, of, a), d0 = multiply_bytes(d0, after, a + QK_GEMM4_KR);
                if (rows > 1)
                    c1 = multiply_bytes(c1, of, a + lda), d1 = multiply_bytes(d1, after, a + lda + QK_GEMM4_KR);
            }
        for (; b != scales;
             b += BYTES_STEP, a += QK_GEMM4_KR, a3 += QK_GEMM4_KR, a6 += QK_GEMM4_KR, a9 += QK_GEMM4_KR) {
            const step_bytes of = load_step(b);
            if (rows > 4) __builtin_prefetch(b + 2 * AHEAD), __builtin_prefetch(b + 2 * AHEAD + 64);
            c0 = multiply_bytes(c0, of, a);
            if (rows > 1) c1 = multiply_bytes(c1, of, a + lda);
            if (rows > 2) c2 = multiply_bytes(c2, of, a + 2 * lda);
            if (rows > 3) c3 = multiply_bytes(c3, of, a3);
            if (rows > 4) c4 = multiply_bytes(c4, of, a3 + lda);
            if (rows > 5) c5 = multiply_bytes(c5, of, a3 + 2 * lda);
            if (rows > 6) c6 = multiply_bytes(c6, of, a6);
            if (rows > 7) c7 = multiply_bytes(c7, of, a6 + lda);
            if (rows > 8) c8 = multiply_bytes(c8, of, a6 + 2 * lda);
            if (rows > 9) c9 = multiply_bytes(c9, of, a9);
            if (rows > 10) ca = multiply_bytes(ca, of, a9 + lda);
            if (rows > 11) cb = multiply_bytes(cb, of, a9 + 2 * lda);
        }
        if (rows < 3) c0 = (two_sums){_mm512_add_epi32(c0.low, d0.low), _mm512_add_epi32(c0.high, d0.high)};
        if (rows == 2) c1 = (two_sums){_mm512_add_epi32(c1.low, d1.low), _mm512_add_epi32(c1.high, d1.high)};
        __asm__ volatile("" ::: "memory"); /* or gcc would keep y in more registers than there are */
        if (rows > 4)
            for (size_t i = 0; i < p.params_bytes; i += 64) __builtin_prefetch(scales + 2 * AHEAD + i);
        const block_columns of = columns_of(own_zeros, scales, zeros, p.half_scales);
        add_sums(y, c0, own_zeros, of, start);
        if (rows > 1) add_sums(y + 32, c1, own_zeros, of, start + ld_start);
        if (rows > 2) add_sums(y + 64, c2, own_zeros, of, start + 2 * ld_start);
        if (rows > 3) add_sums(y + 96, c3, own_zeros, of, start3);
        if (rows > 4) add_sums(y + 128, c4, own_zeros, of, start3 + ld_start);
        if (rows > 5) add_sums(y + 160, c5, own_zeros, of, start3 + 2 * ld_start);
        if (rows > 6) add_sums(y + 192, c6, own_zeros, of, start6);
        if (rows > 7) add_sums(y + 224, c7, own_zeros, of, start6 + ld_start);
        if (rows > 8) add_sums(y + 256, c8, own_zeros, of, start6 + 2 * ld_start);
        if (rows > 9) add_sums(y + 288, c9, own_zeros, of, start9);
        if (rows > 10) add_sums(y + 320, ca, own_zeros, of, start9 + ld_start);
        if (rows > 11) add_sums(y + 352, cb, own_zeros, of, start9 + 2 * ld_start);
        b = next;
    }
}

static QK_INLINE void blocks8_tile_of(const int own_zeros, int rows, const qk_gemm4_panel *p, const int8_t *a,
                                      size_t lda, const int32_t *start, size_t ld_start, float *y)
{
    switch (rows) {
    case 1: blocks8_rows(1, own_zeros, p, a, lda, start, ld_start, y); break;
    case 2: blocks8_rows(2, own_zeros, p, a, lda, start, ld_start, y); break;
    case 3: blocks8_rows(3, own_zeros, p, a, lda, start, ld_start, y); break;
    case 4: blocks8_rows(4, own_zeros, p, a, lda, start, ld_start, y); break;
    case 5: blocks8_rows(5, own_zeros, p, a, lda, start, ld_start, y); break;
    case 6: blocks8_rows(6, own_zeros, p, a, lda, start, ld_start, y); break;
    case 7: blocks8_rows(7, own_zeros, p, a, lda, start, ld_start, y); break;
    case 8: blocks8_rows(8, own_zeros, p, a, lda, start, ld_start, y); break;
    case 9: blocks8_rows(9, own_zeros, p, a, lda, start, ld_start, y); break;
    case 10: blocks8_rows(10, own_zeros, p, a, lda, start, ld_start, y); break;
    case 11: blocks8_rows(11, own_zeros, p, a, lda, start, ld_start, y); break;
    default: blocks8_rows(12, own_zeros, p, a, lda, start, ld_start, y); break;
    }
}

static void blocks8_tile(int rows, const qk_gemm4_panel *p, const void *a, size_t lda, const int32_t *start,
                         size_t ld_start, float *y)
{
    if (p->own_zeros)
        blocks8_tile_of(1, rows, p, a, lda, start, ld_start, y);
    else
        blocks8_tile_of(0, rows, p, a, lda, start, ld_start, y);
}

/* ---- k-means: what kmeans.h needs ---- */

typedef int32_t indices16 __attribute__((vector_size(64), aligned(4), may_alias));
typedef int64_t indices8 __attribute__((vector_size(64), aligned(8), may_alias));

static inline __m512 multiply_add_f32(__m512 x, __m512 sum) { return _mm512_fmadd_ps(x, x, sum); }
static inline __m512d smaller_f64(__m512d a, __m512d b) { return _mm512_min_pd(a, b); }
static inline __m512d multiply_add_f64(__m512d x, __m512d sum) { return _mm512_fmadd_pd(x, x, sum); }

#if QK_ASM
/* x - *c, by an operand that is broadcast from memory, which is free: gcc would broadcast to a register once for two
 * differences, which takes the slot of a multiply-add. */
static inline __m512 minus_f32(__m512 x, const float *c)
{
    __m512 y;
    __asm__("vsubps %2%{1to16%}, %1, %0" : "=v"(y) : "v"(x), "m"(*c));
    return y;
}

static inline __m512d minus_f64(__m512d x, const double *c)
{
    __m512d y;
    __asm__("vsubpd %2%{1to8%}, %1, %0" : "=v"(y) : "v"(x), "m"(*c));
    return y;
}
#else
static inline __m512 minus_f32(__m512 x, const float *c) { return _mm512_sub_ps(x, _mm512_set1_ps(*c)); }
static inline __m512d minus_f64(__m512d x, const double *c) { return _mm512_sub_pd(x, _mm512_set1_pd(*c)); }
#endif

static inline void fence_f32(__m512 *a, __m512 *b, __m512 *c, __m512 *d) { QK_KEEP4(*a, *b, *c, *d); }
static inline void fence_f64(__m512d *a, __m512d *b, __m512d *c, __m512d *d) { QK_KEEP4(*a, *b, *c, *d); }

/* Distances are positive, and so ordered as their bits are: integer minima run on all four pipes of Zen 4, float ones
 * on two. */
static inline __m512 smaller_f32(__m512 a, __m512 b)
{
    return _mm512_castsi512_ps(_mm512_min_epi32(_mm512_castps_si512(a), _mm512_castps_si512(b)));
}

static inline __m512 larger_f32(__m512 a, __m512 b)
{
    return _mm512_castsi512_ps(_mm512_max_epi32(_mm512_castps_si512(a), _mm512_castps_si512(b)));
}

static inline void keep_two_f32(__m512 distance, int32_t index, __m512 *first, __m512 *second, indices16 *nearest)
{
    const __mmask16 nearer = _mm512_cmp_ps_mask(distance, *first, _CMP_LT_OQ);
    *second = smaller_f32(*second, larger_f32(distance, *first));
    *first = smaller_f32(*first, distance);
    *nearest = (indices16)_mm512_mask_set1_epi32((__m512i)*nearest, nearer, index);
}

static inline void keep_two_f64(__m512d distance, int32_t index, __m512d *first, __m512d *second, indices8 *nearest)
{
    const __mmask8 nearer = _mm512_cmp_pd_mask(distance, *first, _CMP_LT_OQ);
    *second = _mm512_min_pd(*second, _mm512_max_pd(distance, *first));
    *first = _mm512_min_pd(*first, distance);
    *nearest = (indices8)_mm512_mask_set1_epi64((__m512i)*nearest, nearer, index);
}

/* Lists centroids whose distance is within the limit, from *j on, for whole registers. Returns how many. */
static inline size_t within_registers_f32(const float *distance, size_t k, float limit, int32_t *list, size_t *j)
{
    __m512i index = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    size_t listed = 0;
    for (; *j + 16 <= k; *j += 16) {
        const __mmask16 near = _mm512_cmp_ps_mask(_mm512_loadu_ps(distance + *j), _mm512_set1_ps(limit), _CMP_LE_OQ);
        _mm512_storeu_si512(list + listed, _mm512_maskz_compress_epi32(near, index));
        listed += (size_t)__builtin_popcount(near);
        index = _mm512_add_epi32(index, _mm512_set1_epi32(16));
    }
    return listed;
}

static inline size_t within_registers_f64(const double *distance, size_t k, double limit, int32_t *list, size_t *j)
{
    __m256i index = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    size_t listed = 0;
    for (; *j + 8 <= k; *j += 8) {
        const __mmask8 near = _mm512_cmp_pd_mask(_mm512_loadu_pd(distance + *j), _mm512_set1_pd(limit), _CMP_LE_OQ);
        _mm256_storeu_si256((__m256i *)(list + listed), _mm256_maskz_compress_epi32(near, index));
        listed += (size_t)__builtin_popcount(near);
        index = _mm256_add_epi32(index, _mm256_set1_epi32(8));
    }
    return listed;
}

#define HAVE_LANES
#include "kernels/generic/kmeans.h"
#include "kernels/generic/pq.h"
#include "kernels/generic/kmeans1d.h"
#include "kernels/generic/least_squares.h"

/* ---- float16 and bfloat16 weights (numerics 16) ---- */

/* Tile: 12 rows x 32 columns, as for bytes; a step is a row of 64 bytes of the panel. Widening it takes two
 * instructions on other pipes than its 24 multiply-adds. */

/* 16 columns each. */
typedef struct {
    __m512 left, right;
} two_floats;

/* A row of a panel. `type` is a constant where this is inlined. */
static QK_INLINE two_floats row_of_floats(const uint16_t *p, const qk_dtype type)
{
    if (type == QK_F16)
        return (two_floats){_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p)),
                            _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(p + 16)))};
    const __m512i two = _mm512_loadu_si512(p);
    return (two_floats){_mm512_castsi512_ps(_mm512_slli_epi32(two, 16)),
                        _mm512_castsi512_ps(_mm512_and_si512(two, _mm512_set1_epi32((int32_t)0xffff0000)))};
}

static QK_INLINE void gemmf16_rows(const int rows, const qk_dtype type, size_t k, const float *a, size_t lda,
                                   const uint16_t *panel, float *y)
{
    const float *a3 = a + 3 * lda, *a6 = a + 6 * lda, *a9 = a + 9 * lda;
    const __m512 zero = _mm512_setzero_ps();
    __m512 c00 = zero, c01 = zero, c10 = zero, c11 = zero, c20 = zero, c21 = zero, c30 = zero, c31 = zero;
    __m512 c40 = zero, c41 = zero, c50 = zero, c51 = zero, c60 = zero, c61 = zero, c70 = zero, c71 = zero;
    __m512 c80 = zero, c81 = zero, c90 = zero, c91 = zero, ca0 = zero, ca1 = zero, cb0 = zero, cb1 = zero;
    for (size_t i = 0; i < k; i++, a++, a3++, a6++, a9++, panel += QK_GEMMF16_NR) {
        _mm_prefetch((const char *)(panel + 64 * QK_GEMMF16_NR),
                     _MM_HINT_T0); /* few rows use weights as fast as they arrive */
        const two_floats b = row_of_floats(panel, type);
        __m512 v = _mm512_set1_ps(a[0]);
        c00 = _mm512_fmadd_ps(v, b.left, c00), c01 = _mm512_fmadd_ps(v, b.right, c01);
        if (rows > 1)
            v = _mm512_set1_ps(a[lda]), c10 = _mm512_fmadd_ps(v, b.left, c10), c11 = _mm512_fmadd_ps(v, b.right, c11);
        if (rows > 2)
            v = _mm512_set1_ps(a[2 * lda]), c20 = _mm512_fmadd_ps(v, b.left, c20),
            c21 = _mm512_fmadd_ps(v, b.right, c21);
        if (rows > 3)
            v = _mm512_set1_ps(a3[0]), c30 = _mm512_fmadd_ps(v, b.left, c30), c31 = _mm512_fmadd_ps(v, b.right, c31);
        if (rows > 4)
            v = _mm512_set1_ps(a3[lda]), c40 = _mm512_fmadd_ps(v, b.left, c40), c41 = _mm512_fmadd_ps(v, b.right, c41);
        if (rows > 5)
            v = _mm512_set1_ps(a3[2 * lda]), c50 = _mm512_fmadd_ps(v, b.left, c50),
            c51 = _mm512_fmadd_ps(v, b.right, c51);
        if (rows > 6)
            v = _mm512_set1_ps(a6[0]), c60 = _mm512_fmadd_ps(v, b.left, c60), c61 = _mm512_fmadd_ps(v, b.right, c61);
        if (rows > 7)
            v = _mm512_set1_ps(a6[lda]), c70 = _mm512_fmadd_ps(v, b.left, c70), c71 = _mm512_fmadd_ps(v, b.right, c71);
        if (rows > 8)
            v = _mm512_set1_ps(a6[2 * lda]), c80 = _mm512_fmadd_ps(v, b.left, c80),
            c81 = _mm512_fmadd_ps(v, b.right, c81);
        if (rows > 9)
            v = _mm512_set1_ps(a9[0]), c90 = _mm512_fmadd_ps(v, b.left, c90), c91 = _mm512_fmadd_ps(v, b.right, c91);
        if (rows > 10)
            v = _mm512_set1_ps(a9[lda]), ca0 = _mm512_fmadd_ps(v, b.left, ca0), ca1 = _mm512_fmadd_ps(v, b.right, ca1);
        if (rows > 11)
            v = _mm512_set1_ps(a9[2 * lda]), cb0 = _mm512_fmadd_ps(v, b.left, cb0),
            cb1 = _mm512_fmadd_ps(v, b.right, cb1);
    }
    _mm512_storeu_ps(y, c00), _mm512_storeu_ps(y + 16, c01);
    if (rows > 1) y += 32, _mm512_storeu_ps(y, c10), _mm512_storeu_ps(y + 16, c11);
    if (rows > 2) y += 32, _mm512_storeu_ps(y, c20), _mm512_storeu_ps(y + 16, c21);
    if (rows > 3) y += 32, _mm512_storeu_ps(y, c30), _mm512_storeu_ps(y + 16, c31);
    if (rows > 4) y += 32, _mm512_storeu_ps(y, c40), _mm512_storeu_ps(y + 16, c41);
    if (rows > 5) y += 32, _mm512_storeu_ps(y, c50), _mm512_storeu_ps(y + 16, c51);
    if (rows > 6) y += 32, _mm512_storeu_ps(y, c60), _mm512_storeu_ps(y + 16, c61);
    if (rows > 7) y += 32, _mm512_storeu_ps(y, c70), _mm512_storeu_ps(y + 16, c71);
    if (rows > 8) y += 32, _mm512_storeu_ps(y, c80), _mm512_storeu_ps(y + 16, c81);
    if (rows > 9) y += 32, _mm512_storeu_ps(y, c90), _mm512_storeu_ps(y + 16, c91);
    if (rows > 10) y += 32, _mm512_storeu_ps(y, ca0), _mm512_storeu_ps(y + 16, ca1);
    if (rows > 11) y += 32, _mm512_storeu_ps(y, cb0), _mm512_storeu_ps(y + 16, cb1);
}

static QK_INLINE void gemmf16_tile_of(const qk_dtype type, int rows, size_t k, const float *a, size_t lda,
                                      const uint16_t *panel, float *y)
{
    switch (rows) {
    case 1: gemmf16_rows(1, type, k, a, lda, panel, y); break;
    case 2: gemmf16_rows(2, type, k, a, lda, panel, y); break;
    case 3: gemmf16_rows(3, type, k, a, lda, panel, y); break;
    case 4: gemmf16_rows(4, type, k, a, lda, panel, y); break;
    case 5: gemmf16_rows(5, type, k, a, lda, panel, y); break;
    case 6: gemmf16_rows(6, type, k, a, lda, panel, y); break;
    case 7: gemmf16_rows(7, type, k, a, lda, panel, y); break;
    case 8: gemmf16_rows(8, type, k, a, lda, panel, y); break;
    case 9: gemmf16_rows(9, type, k, a, lda, panel, y); break;
    case 10: gemmf16_rows(10, type, k, a, lda, panel, y); break;
    case 11: gemmf16_rows(11, type, k, a, lda, panel, y); break;
    default: gemmf16_rows(12, type, k, a, lda, panel, y); break;
    }
}

static void gemmf16_tile(int rows, size_t k, const float *a, size_t lda, const uint16_t *panel, qk_dtype type, float *y)
{
    if (type == QK_F16)
        gemmf16_tile_of(QK_F16, rows, k, a, lda, panel, y);
    else
        gemmf16_tile_of(QK_BF16, rows, k, a, lda, panel, y);
}

/* One row takes panels side by side: the two chains of one panel would wait for their own multiply-adds. */
static QK_INLINE void bfloat_panels(const int panels, size_t k, const float *a, const uint16_t *panel, float *y)
{
    const size_t size = k * QK_GEMMF16_NR;
    const uint16_t *panel3 = panel + 3 * size;
    const __m512 zero = _mm512_setzero_ps();
    __m512 c00 = zero, c01 = zero, c10 = zero, c11 = zero, c20 = zero, c21 = zero, c30 = zero, c31 = zero;
    for (size_t i = 0; i < k; i++, panel += QK_GEMMF16_NR, panel3 += QK_GEMMF16_NR) {
        const __m512 v = _mm512_set1_ps(a[i]);
        two_floats b = row_of_floats(panel, QK_BF16);
        c00 = _mm512_fmadd_ps(v, b.left, c00), c01 = _mm512_fmadd_ps(v, b.right, c01);
        if (panels > 1)
            b = row_of_floats(panel + size, QK_BF16), c10 = _mm512_fmadd_ps(v, b.left, c10),
            c11 = _mm512_fmadd_ps(v, b.right, c11);
        if (panels > 2)
            b = row_of_floats(panel + 2 * size, QK_BF16), c20 = _mm512_fmadd_ps(v, b.left, c20),
            c21 = _mm512_fmadd_ps(v, b.right, c21);
        if (panels > 3)
            b = row_of_floats(panel3, QK_BF16), c30 = _mm512_fmadd_ps(v, b.left, c30),
            c31 = _mm512_fmadd_ps(v, b.right, c31);
    }
    _mm512_storeu_ps(y, c00), _mm512_storeu_ps(y + 16, c01);
    if (panels > 1) _mm512_storeu_ps(y + 32, c10), _mm512_storeu_ps(y + 48, c11);
    if (panels > 2) _mm512_storeu_ps(y + 64, c20), _mm512_storeu_ps(y + 80, c21);
    if (panels > 3) _mm512_storeu_ps(y + 96, c30), _mm512_storeu_ps(y + 112, c31);
}

static QK_INLINE __m256 multiply_add8(__m256 c, __m256 v, const uint16_t *p)
{
    return _mm256_fmadd_ps(v, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p)), c);
}

/* The same of float16: conversions of 256 bits, two of which are faster than one of 512. */
static QK_INLINE void gemmf16_panels(const int panels, size_t k, const float *a, const uint16_t *panel, float *y)
{
    const size_t size = k * QK_GEMMF16_NR;
    const __m256 zero = _mm256_setzero_ps();
    __m256 c00 = zero, c01 = zero, c02 = zero, c03 = zero, c10 = zero, c11 = zero, c12 = zero, c13 = zero;
    for (size_t i = 0; i < k; i++, panel += QK_GEMMF16_NR) {
        const __m256 v = _mm256_set1_ps(a[i]);
        c00 = multiply_add8(c00, v, panel), c01 = multiply_add8(c01, v, panel + 8);
        c02 = multiply_add8(c02, v, panel + 16), c03 = multiply_add8(c03, v, panel + 24);
        if (panels == 1) continue;
        c10 = multiply_add8(c10, v, panel + size), c11 = multiply_add8(c11, v, panel + size + 8);
        c12 = multiply_add8(c12, v, panel + size + 16), c13 = multiply_add8(c13, v, panel + size + 24);
    }
    _mm256_storeu_ps(y, c00), _mm256_storeu_ps(y + 8, c01), _mm256_storeu_ps(y + 16, c02),
        _mm256_storeu_ps(y + 24, c03);
    if (panels == 1) return;
    y += 32;
    _mm256_storeu_ps(y, c10), _mm256_storeu_ps(y + 8, c11), _mm256_storeu_ps(y + 16, c12),
        _mm256_storeu_ps(y + 24, c13);
}

static void gemmf16_row(int panels, size_t k, const float *a, const uint16_t *panel, qk_dtype type, float *y)
{
    const uint16_t *p = panel;
    for (; type == QK_F16 && panels > 1; panels -= 2, p += 2 * k * QK_GEMMF16_NR, y += 2 * QK_GEMMF16_NR)
        gemmf16_panels(2, k, a, p, y);
    if (type == QK_F16) {
        if (panels) gemmf16_panels(1, k, a, p, y);
        return;
    }
    switch (panels) {
    case 1: bfloat_panels(1, k, a, p, y); break;
    case 2: bfloat_panels(2, k, a, p, y); break;
    case 3: bfloat_panels(3, k, a, p, y); break;
    default: bfloat_panels(4, k, a, p, y); break;
    }
}

/* ---- int16 (numerics 17) ---- */

/* vpdpwssd: 16 lanes x (2 by 2 int16) added to int32, half as many products as vpdpbusd; the same tile. */

static inline __m512i broadcast_pairs(const int16_t *p) { return broadcast4((const uint8_t *)p); }

static QK_INLINE void gemm16_rows(const int rows, size_t steps, const int16_t *a, size_t lda, const int16_t *panel,
                                  int32_t *c)
{
    const int16_t *a3 = a + 3 * lda, *a6 = a + 6 * lda, *a9 = a + 9 * lda;
    const __m512i zero = _mm512_setzero_si512();
    __m512i c00 = zero, c01 = zero, c10 = zero, c11 = zero, c20 = zero, c21 = zero, c30 = zero, c31 = zero;
    __m512i c40 = zero, c41 = zero, c50 = zero, c51 = zero, c60 = zero, c61 = zero, c70 = zero, c71 = zero;
    __m512i c80 = zero, c81 = zero, c90 = zero, c91 = zero, ca0 = zero, ca1 = zero, cb0 = zero, cb1 = zero;
    for (size_t s = 0; s < steps; s++, a += 2, a3 += 2, a6 += 2, a9 += 2, panel += 2 * NR) {
        if (rows > 4) { /* as in gemmf16_rows; fewer read faster without */
            _mm_prefetch((const char *)(panel + 128 * NR), _MM_HINT_T0);
            _mm_prefetch((const char *)(panel + 129 * NR), _MM_HINT_T0);
        }
        const __m512i b0 = _mm512_loadu_si512(panel), b1 = _mm512_loadu_si512(panel + NR);
        __m512i v = broadcast_pairs(a);
        c00 = _mm512_dpwssd_epi32(c00, v, b0), c01 = _mm512_dpwssd_epi32(c01, v, b1);
        if (rows > 1)
            v = broadcast_pairs(a + lda), c10 = _mm512_dpwssd_epi32(c10, v, b0), c11 = _mm512_dpwssd_epi32(c11, v, b1);
        if (rows > 2)
            v = broadcast_pairs(a + 2 * lda), c20 = _mm512_dpwssd_epi32(c20, v, b0),
            c21 = _mm512_dpwssd_epi32(c21, v, b1);
        if (rows > 3)
            v = broadcast_pairs(a3), c30 = _mm512_dpwssd_epi32(c30, v, b0), c31 = _mm512_dpwssd_epi32(c31, v, b1);
        if (rows > 4)
            v = broadcast_pairs(a3 + lda), c40 = _mm512_dpwssd_epi32(c40, v, b0), c41 = _mm512_dpwssd_epi32(c41, v, b1);
        if (rows > 5)
            v = broadcast_pairs(a3 + 2 * lda), c50 = _mm512_dpwssd_epi32(c50, v, b0),
            c51 = _mm512_dpwssd_epi32(c51, v, b1);
        if (rows > 6)
            v = broadcast_pairs(a6), c60 = _mm512_dpwssd_epi32(c60, v, b0), c61 = _mm512_dpwssd_epi32(c61, v, b1);
        if (rows > 7)
            v = broadcast_pairs(a6 + lda), c70 = _mm512_dpwssd_epi32(c70, v, b0), c71 = _mm512_dpwssd_epi32(c71, v, b1);
        if (rows > 8)
            v = broadcast_pairs(a6 + 2 * lda), c80 = _mm512_dpwssd_epi32(c80, v, b0),
            c81 = _mm512_dpwssd_epi32(c81, v, b1);
        if (rows > 9)
            v = broadcast_pairs(a9), c90 = _mm512_dpwssd_epi32(c90, v, b0), c91 = _mm512_dpwssd_epi32(c91, v, b1);
        if (rows > 10)
            v = broadcast_pairs(a9 + lda), ca0 = _mm512_dpwssd_epi32(ca0, v, b0), ca1 = _mm512_dpwssd_epi32(ca1, v, b1);
        if (rows > 11)
            v = broadcast_pairs(a9 + 2 * lda), cb0 = _mm512_dpwssd_epi32(cb0, v, b0),
            cb1 = _mm512_dpwssd_epi32(cb1, v, b1);
    }
    _mm512_storeu_si512(c, c00), _mm512_storeu_si512(c + 16, c01);
    if (rows > 1) c += NR, _mm512_storeu_si512(c, c10), _mm512_storeu_si512(c + 16, c11);
    if (rows > 2) c += NR, _mm512_storeu_si512(c, c20), _mm512_storeu_si512(c + 16, c21);
    if (rows > 3) c += NR, _mm512_storeu_si512(c, c30), _mm512_storeu_si512(c + 16, c31);
    if (rows > 4) c += NR, _mm512_storeu_si512(c, c40), _mm512_storeu_si512(c + 16, c41);
    if (rows > 5) c += NR, _mm512_storeu_si512(c, c50), _mm512_storeu_si512(c + 16, c51);
    if (rows > 6) c += NR, _mm512_storeu_si512(c, c60), _mm512_storeu_si512(c + 16, c61);
    if (rows > 7) c += NR, _mm512_storeu_si512(c, c70), _mm512_storeu_si512(c + 16, c71);
    if (rows > 8) c += NR, _mm512_storeu_si512(c, c80), _mm512_storeu_si512(c + 16, c81);
    if (rows > 9) c += NR, _mm512_storeu_si512(c, c90), _mm512_storeu_si512(c + 16, c91);
    if (rows > 10) c += NR, _mm512_storeu_si512(c, ca0), _mm512_storeu_si512(c + 16, ca1);
    if (rows > 11) c += NR, _mm512_storeu_si512(c, cb0), _mm512_storeu_si512(c + 16, cb1);
}

static void gemm16_tile(int rows, size_t steps, const int16_t *a, size_t lda, const int16_t *panel, int32_t *c)
{
    switch (rows) {
    case 1: gemm16_rows(1, steps, a, lda, panel, c); break;
    case 2: gemm16_rows(2, steps, a, lda, panel, c); break;
    case 3: gemm16_rows(3, steps, a, lda, panel, c); break;
    case 4: gemm16_rows(4, steps, a, lda, panel, c); break;
    case 5: gemm16_rows(5, steps, a, lda, panel, c); break;
    case 6: gemm16_rows(6, steps, a, lda, panel, c); break;
    case 7: gemm16_rows(7, steps, a, lda, panel, c); break;
    case 8: gemm16_rows(8, steps, a, lda, panel, c); break;
    case 9: gemm16_rows(9, steps, a, lda, panel, c); break;
    case 10: gemm16_rows(10, steps, a, lda, panel, c); break;
    case 11: gemm16_rows(11, steps, a, lda, panel, c); break;
    default: gemm16_rows(12, steps, a, lda, panel, c); break;
    }
}

const qk_kernels qk_kernels_avx512vnni = {
    .name = "avx512vnni",
    .mr = MR,
    .nr = NR,
    .kr = KR,
    .a_bytes = 1,
    .gemm4_mr = 4,
    .blocks8_mr = 12,
    .blocks8_flip = 128,
    .gemmf16_mr = 12,
    .gemm8_tile = gemm8_tile,
    .gemm8_pack_row = gemm8_pack_row,
    .gemm8_pack_panel = gemm8_pack_panel,
    .gemm8_unpack_panel = gemm8_unpack_panel,
    .gemm8_panel_bytes = gemm8_panel_bytes,
#include "kernels/generic/table.def"
};

QK_TARGET_END
#endif
