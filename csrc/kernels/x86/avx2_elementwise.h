/* What the loops of elementwise.h, codebook.h and gemm8.h ask for, on AVX2: within the target of the file that includes
 * this first. */
#ifndef QK_AVX2_ELEMENTWISE_H
#define QK_AVX2_ELEMENTWISE_H

#include "kernels/kernels.h"
#include "kernels/x86/avx2.h"

#define VECTOR 32
#define HAVE_FMA 1
#define GROUP 32
#define HAVE_WIDEN

#include "kernels/generic/gelu.h"
#include "kernels/generic/target.h"

/* x / scale, rounded to an integer (numerics 3); INT32_MIN where it is NaN or beyond int32. */
static inline __m256i quotient8(const float *x, __m256 scale, __m256 reciprocal)
{
    const __m256 v = _mm256_loadu_ps(x), q = _mm256_mul_ps(v, reciprocal);
    return _mm256_cvtps_epi32(_mm256_fmadd_ps(_mm256_fnmadd_ps(q, scale, v), reciprocal, q));
}

/* Adds zero points and stores 32 codes. n0 and n1 hold quotients saturated to 16 bits, n0 elements 0-3, 8-11, 4-7,
 * 12-15, n1 the same from 16 on. Returns 0, and stores nothing, where one may come from NaN or from beyond int32. */
static inline int store32(uint8_t *q, __m256i n0, __m256i n1, __m256i zero0, __m256i zero1, int32_t qmin, int32_t qmax)
{
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    const __m256i special = _mm256_cmpeq_epi16(_mm256_min_epi16(n0, n1), _mm256_set1_epi16(INT16_MIN));
    if (_mm256_movemask_epi8(special)) return 0;
    n0 = _mm256_adds_epi16(n0, zero0);
    n1 = _mm256_adds_epi16(n1, zero1);
    __m256i codes;
    if (qmin < 0) {
        codes = _mm256_packs_epi16(n0, n1);
        codes = _mm256_min_epi8(_mm256_max_epi8(codes, _mm256_set1_epi8((char)qmin)), _mm256_set1_epi8((char)qmax));
    } else {
        codes = _mm256_packus_epi16(n0, n1);
        if (qmax - qmin < 255)
            codes = _mm256_min_epu8(_mm256_max_epu8(codes, _mm256_set1_epi8((char)qmin)), _mm256_set1_epi8((char)qmax));
    }
    _mm256_storeu_si256((__m256i *)q, _mm256_permutevar8x32_epi32(codes, order));
    return 1;
}

static inline int quantize_group(const float *x, uint8_t *q, const qk_affine *p)
{
    const __m256 scale = _mm256_set1_ps(p->scale), reciprocal = _mm256_set1_ps(p->reciprocal);
    const __m256i zero = _mm256_set1_epi16((short)p->zero_point);
    const __m256i n0 = _mm256_packs_epi32(quotient8(x, scale, reciprocal), quotient8(x + 8, scale, reciprocal));
    const __m256i n1 = _mm256_packs_epi32(quotient8(x + 16, scale, reciprocal), quotient8(x + 24, scale, reciprocal));
    return store32(q, n0, n1, zero, zero, p->qmin, p->qmax);
}

static inline __m256i zero16(const int32_t *zero)
{
    return _mm256_packs_epi32(_mm256_loadu_si256((const __m256i *)zero),
                              _mm256_loadu_si256((const __m256i *)(zero + 8)));
}

/* Columns i .. i + 31 of several rows, the parameters held in registers. Returns how many rows were stored before one
 * that store32 refused. */
static inline size_t quantize_group_columns(const float *x, uint8_t *q, const qk_affine_columns *p, size_t i,
                                            size_t rows)
{
    const float *s = p->scale + i, *r = p->reciprocal + i;
    const __m256 s0 = _mm256_loadu_ps(s), s1 = _mm256_loadu_ps(s + 8), s2 = _mm256_loadu_ps(s + 16),
                 s3 = _mm256_loadu_ps(s + 24);
    const __m256 r0 = _mm256_loadu_ps(r), r1 = _mm256_loadu_ps(r + 8), r2 = _mm256_loadu_ps(r + 16),
                 r3 = _mm256_loadu_ps(r + 24);
    const __m256i z0 = zero16(p->zero_point + i), z1 = zero16(p->zero_point + i + 16);
    const int32_t qmin = p->qmin, qmax = p->qmax;
    const size_t stride = p->stride;
    for (size_t row = 0; row < rows; row++, x += stride, q += stride) {
        const __m256i n0 = _mm256_packs_epi32(quotient8(x, s0, r0), quotient8(x + 8, s1, r1));
        const __m256i n1 = _mm256_packs_epi32(quotient8(x + 16, s2, r2), quotient8(x + 24, s3, r3));
        if (!store32(q, n0, n1, z0, z1, qmin, qmax)) return row;
    }
    return rows;
}

/* 32 codes: gcc widens bytes by chains of shuffles, the loads do it at once. */
static inline void widen_group(const uint8_t *q, int is_signed, int32_t *to)
{
    for (int i = 0; i < 32; i += 8) {
        const __m128i codes = _mm_loadl_epi64((const __m128i *)(q + i));
        const __m256i wide = is_signed ? _mm256_cvtepi8_epi32(codes) : _mm256_cvtepu8_epi32(codes);
        _mm256_storeu_si256((__m256i *)(to + i), wide);
    }
}

/* ---- codebooks of at most 16 levels (numerics 15) ---- */

/* The thresholds are a binary tree whose depths 1, 2 and 3 fit a register each, as do their 2, 4 and 8 nodes; vpermps
 * looks up the one where each lane has got to. */
#define HAVE_LEVELS16
#define GROUP16 32
typedef struct {
    __m256 depth0, depth1, depth2, depth3;
    __m256i order;
} nodes16;

static inline nodes16 load_nodes16(const qk_levels *t)
{
    return (nodes16){_mm256_set1_ps(t->node[1]), _mm256_loadu_ps(t->node + 2), _mm256_loadu_ps(t->node + 4),
                     _mm256_loadu_ps(t->node + 8),
                     _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)t->order))};
}

/* -1 where v is above the threshold. */
static inline __m256i above(__m256 v, __m256 threshold)
{
    return _mm256_castps_si256(_mm256_cmp_ps(v, threshold, _CMP_GT_OQ));
}

/* One level down: from `at` to 2 at, or 2 at + 1 where v is above the node. */
static inline __m256i descend(__m256i at, __m256 v, __m256 nodes)
{
    return _mm256_sub_epi32(_mm256_add_epi32(at, at), above(v, _mm256_permutevar8x32_ps(nodes, at)));
}

static inline __m256i rank8(const float *x, __m256 factor, nodes16 t)
{
    const __m256 v = _mm256_mul_ps(_mm256_loadu_ps(x), factor);
    const __m256i at = _mm256_sub_epi32(_mm256_setzero_si256(), above(v, t.depth0));
    return descend(descend(descend(at, v, t.depth1), v, t.depth2), v, t.depth3);
}

static inline void encode16(const float *x, uint8_t *q, float factor, nodes16 t)
{
    const __m256 f = _mm256_set1_ps(factor);
    const __m256i r0 = _mm256_packs_epi32(rank8(x, f, t), rank8(x + 8, f, t));
    const __m256i r1 = _mm256_packs_epi32(rank8(x + 16, f, t), rank8(x + 24, f, t));
    const __m256i codes = _mm256_shuffle_epi8(t.order, _mm256_packus_epi16(r0, r1));
    _mm256_storeu_si256((__m256i *)q, _mm256_permutevar8x32_epi32(codes, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7)));
}

static inline __m256i larger(__m256i a, __m256i b) { return _mm256_max_epi32(a, b); }

/* The largest magnitude of `block` values, a multiple of 16, in 8 parts, as bits. */
static inline __m256i magnitudes(const float *x, size_t block)
{
    const __m256i mask = _mm256_set1_epi32(INT32_MAX);
    __m256i even = _mm256_setzero_si256(), odd = even;
    for (size_t i = 0; i < block; i += 16) {
        even = larger(even, _mm256_and_si256(_mm256_loadu_si256((const __m256i *)(x + i)), mask));
        odd = larger(odd, _mm256_and_si256(_mm256_loadu_si256((const __m256i *)(x + i + 8)), mask));
    }
    return larger(even, odd);
}

/* Scales of four blocks and what to multiply with; returns the largest as bits. Parts of different blocks are brought
 * together, so that the maxima of all four take little more than those of one. */
static inline int32_t magnitudes4(const float *x, size_t block, float *scale, float *factor)
{
    const __m256i m0 = magnitudes(x, block), m1 = magnitudes(x + block, block);
    const __m256i m2 = magnitudes(x + 2 * block, block), m3 = magnitudes(x + 3 * block, block);
    const __m256i m01 = larger(_mm256_unpacklo_epi32(m0, m1), _mm256_unpackhi_epi32(m0, m1));
    const __m256i m23 = larger(_mm256_unpacklo_epi32(m2, m3), _mm256_unpackhi_epi32(m2, m3));
    const __m256i all = larger(_mm256_unpacklo_epi64(m01, m23), _mm256_unpackhi_epi64(m01, m23));
    const __m128i most = _mm_max_epi32(_mm256_castsi256_si128(all), _mm256_extracti128_si256(all, 1));
    const __m128 divisor = _mm_castsi128_ps(_mm_max_epi32(most, _mm_set1_epi32(0x00800000))); /* FLT_MIN at least */
    _mm_storeu_ps(scale, _mm_castsi128_ps(most));
    _mm_storeu_ps(factor, _mm_div_ps(_mm_set1_ps(1.0f), divisor));
    const __m128i pair = _mm_max_epi32(most, _mm_shuffle_epi32(most, 0x4e));
    return _mm_cvtsi128_si32(_mm_max_epi32(pair, _mm_shuffle_epi32(pair, 0xb1)));
}

typedef struct {
    __m256 low, high;
} levels16;

static inline levels16 load_levels16(const qk_levels *t)
{
    return (levels16){_mm256_loadu_ps(t->level), _mm256_loadu_ps(t->level + 8)};
}

/* vpermps reads the low 3 bits of a code; the fourth, moved to the sign, chooses between the halves. */
static inline void decode16(const uint8_t *q, float *y, float scale, levels16 levels)
{
    const __m256 s = _mm256_set1_ps(scale);
    for (int i = 0; i < GROUP16; i += 8) {
        const __m256i codes = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(q + i)));
        const __m256 low = _mm256_permutevar8x32_ps(levels.low, codes),
                     high = _mm256_permutevar8x32_ps(levels.high, codes);
        const __m256 v = _mm256_blendv_ps(low, high, _mm256_castsi256_ps(_mm256_slli_epi32(codes, 28)));
        _mm256_storeu_ps(y + i, _mm256_mul_ps(v, s));
    }
}

/* ---- epilogues (numerics 9) ---- */

/* values[i], by bit 3 of which one of the two halves holds it. */
static inline __m256 look_up(const float *values, __m256i i)
{
    const __m256 low = _mm256_permutevar8x32_ps(_mm256_loadu_ps(values), i),
                 high = _mm256_permutevar8x32_ps(_mm256_loadu_ps(values + 8), i);
    return _mm256_blendv_ps(low, high, _mm256_castsi256_ps(_mm256_slli_epi32(i, 28)));
}

static inline __m256 gelu8(__m256 x, const gelu_table *g)
{
    const __m256 rounder = _mm256_set1_ps(ROUNDER), magnitude = _mm256_andnot_ps(_mm256_set1_ps(-0.0f), x);
    const __m256 v =
        _mm256_min_ps(_mm256_set1_ps(GELU_SEGMENTS - 1), _mm256_mul_ps(magnitude, _mm256_set1_ps(g->per_unit)));
    const __m256 shifted = _mm256_add_ps(v, rounder), t = _mm256_sub_ps(v, _mm256_sub_ps(shifted, rounder));
    const __m256i i = _mm256_castps_si256(shifted);
    __m256 p = look_up(g->coefficient[4], i);
    p = _mm256_fmadd_ps(p, t, look_up(g->coefficient[3], i));
    p = _mm256_fmadd_ps(p, t, look_up(g->coefficient[2], i));
    p = _mm256_fmadd_ps(p, t, look_up(g->coefficient[1], i));
    return _mm256_fmadd_ps(p, t, _mm256_add_ps(_mm256_max_ps(_mm256_setzero_ps(), x), look_up(g->coefficient[0], i)));
}

#define HAVE_GELU_RUN
static void gelu_run(float *y, size_t n, const gelu_table *g)
{
    for (size_t i = 0; i < n; i += 8)
        _mm256_storeu_ps(y + i, gelu8(_mm256_loadu_ps(y + i), g)); /* n is a multiple of 16 */
}

#endif
