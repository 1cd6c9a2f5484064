/* What the loops of elementwise.h, codebook.h and gemm8.h ask for, on AVX-512: within the target of the file that
 * includes this first, which needs avx512f, bw, dq and vl. */
#ifndef QK_AVX512_ELEMENTWISE_H
#define QK_AVX512_ELEMENTWISE_H

#include <string.h>

#include "kernels/kernels.h"
#include "kernels/x86/avx512.h"
#include "runtime/compiler.h"

#define VECTOR 64
#include "kernels/x86/elementwise.h"

#include "kernels/generic/gelu.h"

/* ---- bounds (numerics 2) ---- */

typedef struct {
    __m512i highest, lowest;
    __m512 high, low, nan;
} bounds32;

/* Half of the values by the maxima of their bits, which are on one of two pipes, the other half by those of floats, on
 * either: the second operand is returned if both are 0 or one is NaN, which the sum of products with 0 shows. */
static QK_INLINE void keep_bounds(bounds32 *s, __m512 a, __m512 b)
{
    QK_KEEP(a);
    QK_KEEP(b);
    const __m512i bits = _mm512_castps_si512(a);
    s->highest = _mm512_max_epi32(s->highest, bits), s->lowest = _mm512_max_epu32(s->lowest, bits);
    s->high = _mm512_max_ps(b, s->high), s->low = _mm512_min_ps(b, s->low);
    s->nan = _mm512_fmadd_ps(b, _mm512_setzero_ps(), s->nan);
}

#define HAVE_FINITE_BOUNDS
static int finite_bounds(const float *x, size_t n, float *lo, float *hi)
{
    const __m512 zero = _mm512_setzero_ps(), minus = _mm512_set1_ps(-0.0f);
    const __m512i sign = _mm512_castps_si512(minus);
    bounds32 s = {_mm512_setzero_si512(), sign, zero, minus, zero};
    size_t i = 0;
    for (; n - i >= 32; i += 32) keep_bounds(&s, _mm512_loadu_ps(x + i), _mm512_loadu_ps(x + i + 16));
    for (; i < n; i += 16) {
        const __mmask16 some = (__mmask16)(n - i < 16 ? (1u << (n - i)) - 1 : 0xffff);
        keep_bounds(&s, _mm512_maskz_loadu_ps(some, x + i), zero);
    }
    if (_mm512_cmp_ps_mask(s.nan, s.nan, _CMP_UNORD_Q)) return 0;
    s.highest = _mm512_max_epi32(s.highest, _mm512_castps_si512(s.high));
    s.lowest = _mm512_xor_si512(_mm512_max_epu32(s.lowest, _mm512_castps_si512(s.low)), sign); /* in signed order */
    const __m512i both =
        _mm512_max_epi32(_mm512_unpacklo_epi32(s.highest, s.lowest), _mm512_unpackhi_epi32(s.highest, s.lowest));
    const __m256i half = _mm256_max_epi32(_mm512_castsi512_si256(both), _mm512_extracti64x4_epi64(both, 1));
    const __m128i four = _mm_max_epi32(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
    const __m128i two = _mm_max_epi32(four, _mm_shuffle_epi32(four, 0x4e));
    int32_t bits[4];
    _mm_storeu_si128((__m128i *)bits, _mm_xor_si128(two, _mm_setr_epi32(0, INT32_MIN, 0, INT32_MIN)));
    memcpy(hi, bits, sizeof *hi), memcpy(lo, bits + 1, sizeof *lo);
    return 1;
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

/* weight_code of 16 scores less the largest. */
static QK_INLINE __m512i weights16(const int32_t *score, __m512i most, __m512 factor)
{
    const __m512 rounder = _mm512_set1_ps(ROUNDER);
    const __m512 x = _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_sub_epi32(_mm512_loadu_si512(score), most)), factor);
    const __m512 t = _mm512_max_ps(_mm512_set1_ps(-20.0f), x), shifted = _mm512_add_ps(t, rounder);
    const __m512 r = _mm512_sub_ps(t, _mm512_sub_ps(shifted, rounder));
    __m512 p = _mm512_fmadd_ps(_mm512_set1_ps(14.0687752f), r, _mm512_set1_ps(61.8658371f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(176.781555f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(254.981659f));
    const __m512i power = _mm512_slli_epi32(_mm512_castps_si512(shifted), 23);
    return _mm512_cvtps_epi32(_mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(p), power)));
}

/* gcc would pack and add codes by more instructions than compute them. */
#define HAVE_WEIGHT_CODES
static int32_t weight_codes(const int32_t *score, size_t n, int32_t most, float factor, uint8_t *w)
{
    const __m512i m = _mm512_set1_epi32(most), zero = _mm512_setzero_si512();
    const __m512 f = _mm512_set1_ps(factor);
    __m512i sums = zero;
    for (size_t j = 0; j < n; j += 64, score += 64, w += 64) { /* n is a multiple of 32 */
        const size_t more = n - j > 32 ? 32 : 0;
        const __m512i low = packs_i32(weights16(score, m, f), weights16(score + 16, m, f));
        const __m512i high = packs_i32(weights16(score + more, m, f), weights16(score + more + 16, m, f));
        const __m512i codes = in_order(pack_u16(low, high));
        const __m512i once = _mm512_mask_mov_epi32(zero, more ? 0xffff : 0x00ff, codes);
        store_halves(w, w + more, codes);
        sums = _mm512_add_epi64(sums, _mm512_sad_epu8(once, zero));
    }
    const __m256i four = _mm256_add_epi64(_mm512_castsi512_si256(sums), _mm512_extracti64x4_epi64(sums, 1));
    const __m128i two = _mm_add_epi64(_mm256_castsi256_si128(four), _mm256_extracti128_si256(four, 1));
    return _mm_cvtsi128_si32(_mm_add_epi64(two, _mm_unpackhi_epi64(two, two)));
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

/* Factors of 24 bits by 9 bits as int16 (low, high): c * z = low * z + high * 128 z, by vpmaddwd or vpdpwssd, where
 * low is 0 .. 127. 32-bit products (vpmulld) take twice as long. */
static QK_INLINE __m512i column_pairs(__m512i c)
{
    return _mm512_mask_mov_epi16(_mm512_and_si512(c, _mm512_set1_epi32(127)), 0xaaaaaaaa, _mm512_slli_epi32(c, 9));
}

static QK_INLINE __m512i add_pair_products(__m512i sums, __m512i columns, __m512i row)
{
#ifdef WITH_VNNI
    return _mm512_dpwssd_epi32(sums, columns, row);
#else
    return _mm512_add_epi32(sums, _mm512_madd_epi16(columns, row));
#endif
}

/* What float_rows knows of a tile: pairs of zero points of its rows, and of minus the sums of its columns, and scales.
 */
typedef struct {
    int32_t zeros[16];
    __m512i left_sums, right_sums;
    __m512 left_scale, right_scale, left_bias, right_bias;
} tile_columns;

/* Returns 0 if zero points need more bits than pairs have, or columns have some too. */
static QK_INLINE int pair_zeros(const qk_tile *t, tile_columns *c)
{
    const __mmask16 rows = (__mmask16)(t->row_zero ? (1u << t->rows) - 1 : 0);
    const int32_t *from = t->row_zero ? t->row_zero : t->colsum; /* where nothing is read, what can be */
    const __m512i zero = _mm512_castps_si512(_mm512_maskz_loadu_ps(rows, from));
    const __m512i left = _mm512_sub_epi32(_mm512_setzero_si512(), _mm512_loadu_si512(t->colsum));
    const __m512i right = _mm512_sub_epi32(_mm512_setzero_si512(), _mm512_loadu_si512(t->colsum + 16));
    const __m512i size = _mm512_or_si512(_mm512_abs_epi32(left), _mm512_abs_epi32(right));
    _mm512_storeu_si512(c->zeros, _mm512_or_si512(zero, _mm512_slli_epi32(zero, 23)));
    c->left_sums = column_pairs(left), c->right_sums = column_pairs(right);
    return !t->row_term &&
        !(_mm512_test_epi32_mask(size, _mm512_set1_epi32(~((1 << 22) - 1))) |
          _mm512_test_epi32_mask(zero, _mm512_set1_epi32(~255)));
}

/* Takes off the sums of a tile what zero points add to them. */
static QK_NOINLINE void correct_sums(int32_t *acc, const qk_tile *t)
{
    for (int row = 0; row < t->rows; row++)
        for (int col = 0; col < NR; col += 16) _mm512_storeu_si512(acc + NR * row + col, sums16(acc, t, row, col));
}

/* 32 columns of a row that has neither a zero point nor a scale of its own. */
static QK_INLINE void scale_columns32(const int32_t *acc, const tile_columns *c, __m512 *y)
{
    const __m512 left = _mm512_cvtepi32_ps(_mm512_loadu_si512(acc));
    const __m512 right = _mm512_cvtepi32_ps(_mm512_loadu_si512(acc + 16));
    y[0] = _mm512_add_ps(_mm512_mul_ps(left, c->left_scale), c->left_bias);
    y[1] = _mm512_add_ps(_mm512_mul_ps(right, c->right_scale), c->right_bias);
}

/* 32 columns of a row. */
static QK_INLINE void scale_row32(const int32_t *acc, const tile_columns *c, int32_t zero, float scale, __m512 *y)
{
    const __m512i z = _mm512_set1_epi32(zero);
    const __m512 s = _mm512_set1_ps(scale);
    const __m512 left = _mm512_cvtepi32_ps(add_pair_products(_mm512_loadu_si512(acc), c->left_sums, z));
    const __m512 right = _mm512_cvtepi32_ps(add_pair_products(_mm512_loadu_si512(acc + 16), c->right_sums, z));
    y[0] = _mm512_add_ps(_mm512_mul_ps(left, _mm512_mul_ps(s, c->left_scale)), c->left_bias);
    y[1] = _mm512_add_ps(_mm512_mul_ps(right, _mm512_mul_ps(s, c->right_scale)), c->right_bias);
}

/* x / scale, rounded to an integer (numerics 3); INT32_MIN where it is NaN or beyond int32. */
static QK_INLINE __m512i quotients16(__m512 v, __m512 scale, __m512 reciprocal)
{
    const __m512 q = _mm512_mul_ps(v, reciprocal);
    return _mm512_cvtps_epi32(_mm512_fmadd_ps(_mm512_fnmadd_ps(q, scale, v), reciprocal, q));
}

/* Codes of two rows of 32 floats to where they belong, the second one unless it is the first again. Returns 0, and
 * stores nothing, if one may come from NaN or from beyond int32. */
static QK_INLINE int store_codes(const __m512 *y, const qk_tile *t, __mmask32 wanted, char *to, char *after)
{
    const __m512 scale = _mm512_set1_ps(t->out.scale), reciprocal = _mm512_set1_ps(t->out.reciprocal);
    const __m512i zero = _mm512_set1_epi16((short)t->out.zero_point);
    const __m512i n0 = _mm512_packs_epi32(quotients16(y[0], scale, reciprocal), quotients16(y[1], scale, reciprocal));
    const __m512i n1 = _mm512_packs_epi32(quotients16(y[2], scale, reciprocal), quotients16(y[3], scale, reciprocal));
    if (any_equal_i16(_mm512_min_epi16(n0, n1), INT16_MIN)) return 0;
    const __m512i codes = to_codes(n0, n1, zero, zero, t->out.qmin, t->out.qmax);
    _mm256_mask_storeu_epi8(to, wanted, _mm512_castsi512_si256(codes));
    if (after != to) _mm256_mask_storeu_epi8(after, wanted, _mm512_extracti64x4_epi64(codes, 1));
    return 1;
}

/* Two rows at a time; where their number is odd, the last of them twice. Rows are `alike` if columns alone have zero
 * points and scales. Returns 0 where `codes` are wanted, but the plain formula must make them. */
static QK_INLINE int float_rows(const int32_t *acc, const qk_tile *t, const tile_columns *c, const int alike,
                                const qk_activation activation, const int codes)
{
    static const float ones[16] = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1};
    const int rows = t->rows, cols = t->cols, bounded = t->bounded;
    const size_t stride = t->row_stride, residual_stride = t->residual_stride;
    const float *scale = t->row_scale ? t->row_scale : ones;
    const __m512 lo = _mm512_set1_ps(t->lo), hi = _mm512_set1_ps(t->hi);
    const __mmask16 left = (__mmask16)(cols < 16 ? (1 << cols) - 1 : 0xffff);
    const __mmask16 right = (__mmask16)(cols > 16 ? (1 << (cols - 16)) - 1 : 0);
    const char *from = (const char *)t->residual;
    char *to = t->dst;
    float edge[2 * NR];
    for (int row = 0; row < rows; row += 2, acc += 2 * NR, to += 2 * stride) {
        const int next = row + 1 < rows;
        __m512 y[4];
        if (alike) {
            scale_columns32(acc, c, y);
            scale_columns32(acc + NR * next, c, y + 2);
        } else {
            scale_row32(acc, c, c->zeros[row], scale[row], y);
            scale_row32(acc + NR * next, c, c->zeros[row + next], scale[row + next], y + 2);
        }
        if (from) {
            const float *r0 = (const float *)from, *r1 = (const float *)(from + (next ? residual_stride : 0));
            y[0] = _mm512_add_ps(y[0], _mm512_maskz_loadu_ps(left, r0)),
            y[1] = _mm512_add_ps(y[1], _mm512_maskz_loadu_ps(right, r0 + 16));
            y[2] = _mm512_add_ps(y[2], _mm512_maskz_loadu_ps(left, r1)),
            y[3] = _mm512_add_ps(y[3], _mm512_maskz_loadu_ps(right, r1 + 16));
            from += 2 * residual_stride;
        }
        if (activation == QK_RELU)
            for (int v = 0; v < 4; v++) y[v] = _mm512_max_ps(_mm512_setzero_ps(), y[v]);
        if (activation == QK_GELU) gelu64(y, &gelu_erf);
        if (activation == QK_GELU_TANH) gelu64(y, &gelu_tanh);
        if (bounded)
            for (int v = 0; v < 4; v++) y[v] = _mm512_min_ps(hi, _mm512_max_ps(lo, y[v]));
        char *after = to + (next ? stride : 0);
        if (codes) {
            if (!store_codes(y, t, cols == NR ? ~0u : (1u << cols) - 1, to, after)) return 0;
            continue;
        }
        float *to0 = cols == NR ? (float *)to : edge, *to1 = cols == NR ? (float *)after : edge + NR;
        _mm512_storeu_ps(to0, y[0]), _mm512_storeu_ps(to0 + 16, y[1]);
        _mm512_storeu_ps(to1, y[2]), _mm512_storeu_ps(to1 + 16, y[3]);
        if (cols == NR) continue;
        memcpy(to, edge, (size_t)cols * sizeof *edge);
        memcpy(after, edge + NR, (size_t)cols * sizeof *edge);
    }
    return 1;
}

/* Returns what pair_zeros does. */
static QK_INLINE int load_columns(const qk_tile *t, tile_columns *c)
{
    c->left_scale = _mm512_loadu_ps(t->col_scale), c->right_scale = _mm512_loadu_ps(t->col_scale + 16);
    c->left_bias = _mm512_loadu_ps(t->bias), c->right_bias = _mm512_loadu_ps(t->bias + 16);
    return pair_zeros(t, c);
}

#define HAVE_FLOAT_TILE /* but for SiLU */
static void float_tile(int32_t *acc, const qk_tile *t)
{
    tile_columns c; /* not initialized: gcc would clear it by `rep stos`, which takes as long as two rows */
    if (!load_columns(t, &c)) {
        correct_sums(acc, t);
        memset(c.zeros, 0, sizeof c.zeros);
    }
    switch (t->activation) {
    case QK_RELU: float_rows(acc, t, &c, 0, QK_RELU, 0); break;
    case QK_GELU: float_rows(acc, t, &c, 0, QK_GELU, 0); break;
    case QK_GELU_TANH: float_rows(acc, t, &c, 0, QK_GELU_TANH, 0); break;
    default: float_rows(acc, t, &c, 0, QK_IDENTITY, 0); break;
    }
}

#define HAVE_GELU_CODES /* scales having reciprocals, rounded half to even; returns 0 if others must do it */
static int gelu_codes(const int32_t *acc, const qk_tile *t)
{
    tile_columns c;
    if (!load_columns(t, &c)) return 0;
    const int alike = !t->row_zero && !t->row_scale;
    if (t->activation == QK_GELU)
        return alike ? float_rows(acc, t, &c, 1, QK_GELU, 1) : float_rows(acc, t, &c, 0, QK_GELU, 1);
    return alike ? float_rows(acc, t, &c, 1, QK_GELU_TANH, 1) : float_rows(acc, t, &c, 0, QK_GELU_TANH, 1);
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

/* 16 sums by multipliers below 1: what becomes of them fits int32. */
static QK_INLINE __m512i scaled16(__m512i sums, __m512 multiplier)
{
    return _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_cvtepi32_ps(sums), multiplier));
}

/* What makes codes of the sums of at most 16 columns. */
typedef struct {
    __m512 multiplier;
    __m512i zero;
    int32_t qmin, qmax;
    __mmask16 wanted;
    size_t stride;
} half_codes;

static QK_INLINE half_codes half_codes_of(const qk_tile *t)
{
    return (half_codes){_mm512_loadu_ps(t->multiplier),
                        _mm512_set1_epi16((short)t->requant->zero_point),
                        t->requant->qmin,
                        t->requant->qmax,
                        (__mmask16)((1u << t->cols) - 1),
                        t->row_stride};
}

/* Codes of four rows, or of the first `left` of them, to where they belong: a quarter of a register each. */
static QK_INLINE void store_half_rows(char *to, int left, __m512i r0, __m512i r1, __m512i r2, __m512i r3, half_codes h)
{
    const __m512i n0 = _mm512_packs_epi32(scaled16(r0, h.multiplier), scaled16(r1, h.multiplier));
    const __m512i n1 = _mm512_packs_epi32(scaled16(r2, h.multiplier), scaled16(r3, h.multiplier));
    const __m512i codes = to_codes(n0, n1, h.zero, h.zero, h.qmin, h.qmax);
    if (left > 3 && h.stride == 16 && h.wanted == 0xffff) { /* the rows follow one another */
        _mm512_storeu_si512(to, codes);
        return;
    }
    _mm_mask_storeu_epi8(to, h.wanted, _mm512_castsi512_si128(codes));
    if (left > 1) _mm_mask_storeu_epi8(to + h.stride, h.wanted, _mm512_extracti32x4_epi32(codes, 1));
    if (left > 2) _mm_mask_storeu_epi8(to + 2 * h.stride, h.wanted, _mm512_extracti32x4_epi32(codes, 2));
    if (left > 3) _mm_mask_storeu_epi8(to + 3 * h.stride, h.wanted, _mm512_extracti32x4_epi32(codes, 3));
}

#define HAVE_PLAIN_TILE
static void plain_tile(const int32_t *acc, const qk_tile *t)
{
    const int32_t qmin = t->requant->qmin, qmax = t->requant->qmax;
    const __m512i zero = _mm512_set1_epi16((short)t->requant->zero_point);
    const __m512 left = _mm512_loadu_ps(t->multiplier), right = _mm512_loadu_ps(t->multiplier + 16);
    const __mmask32 wanted = t->cols == NR ? ~0u : (1u << t->cols) - 1;
    const size_t stride = t->row_stride;
    const int rows = t->rows;
    char *to = t->dst;
    for (int row = 0; row < rows; row += 2, acc += 2 * NR, to += 2 * stride) {
        const int next = row + 1 < rows ? NR : 0;
        const __m512i n0 =
            _mm512_packs_epi32(scaled16(_mm512_loadu_si512(acc), left), scaled16(_mm512_loadu_si512(acc + 16), right));
        const __m512i n1 = _mm512_packs_epi32(scaled16(_mm512_loadu_si512(acc + next), left),
                                              scaled16(_mm512_loadu_si512(acc + next + 16), right));
        const __m512i codes = to_codes(n0, n1, zero, zero, qmin, qmax);
        _mm256_mask_storeu_epi8(to, wanted, _mm512_castsi512_si256(codes));
        if (next) _mm256_mask_storeu_epi8(to + stride, wanted, _mm512_extracti64x4_epi64(codes, 1));
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

/* ---- histograms (numerics 24) ---- */

#define HAVE_NONZERO_GROUP
static inline size_t nonzero_group(const float *x, float *found)
{
    size_t count = 0;
    for (int i = 0; i < GROUP16; i += 16) {
        const __m512i bits = _mm512_loadu_si512(x + i);
        const __mmask16 some = _mm512_test_epi32_mask(bits, _mm512_set1_epi32(INT32_MAX));
        _mm512_storeu_si512(found + count, _mm512_maskz_compress_epi32(some, bits));
        count += (size_t)__builtin_popcount(some);
    }
    return count;
}

#endif
