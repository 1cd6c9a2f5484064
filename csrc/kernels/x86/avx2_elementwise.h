/* What the loops of elementwise.h, codebook.h and gemm8.h ask for, on AVX2: within the target of the file that includes
 * this first. */
#ifndef QK_AVX2_ELEMENTWISE_H
#define QK_AVX2_ELEMENTWISE_H

#include "kernels/kernels.h"
#include "kernels/x86/avx2.h"

#define VECTOR 32
#include "kernels/x86/elementwise.h"

#include "kernels/generic/gelu.h"

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
