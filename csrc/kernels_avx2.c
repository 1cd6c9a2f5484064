/* AVX2 with FMA (Haswell, Zen 1 and later; no VNNI).
 *
 * vpmaddwd: 8 lanes x (2 by 2 int16) summed to int32, exact here (numerics 6), then vpaddd: 16 products for two
 * instructions. vpmaddubsw does twice that and saturates: it serves weights that let packing prove the sums
 * (light_avx2.inc.h).
 *
 * Tile: 6 rows x 16 columns, 12 accumulators; 2 registers hold b, widened from int8 by vpmovsxbw as it is loaded, 1 the
 * broadcast of a (widened once per block of rows), 1 the products: all 16 registers.
 *
 *          b0 (8 columns)   b1 (8 columns)
 *     a0   c00              c01
 *     ..   ..               ..
 *     a5   c50              c51
 */
#if defined(__x86_64__)
#include <immintrin.h>

#include "kernels.h"

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC target("avx2,fma,f16c")
#endif

/* x / scale, rounded to an integer (numerics 3); INT32_MIN where it is NaN or beyond int32. */
static inline __m256i quotient8(const float *x, __m256 scale, __m256 reciprocal)
{
    const __m256 v = _mm256_loadu_ps(x), q = _mm256_mul_ps(v, reciprocal);
    return _mm256_cvtps_epi32(_mm256_fmadd_ps(_mm256_fnmadd_ps(q, scale, v), reciprocal, q));
}

/* Adds zero points and stores 32 codes. n0 and n1 hold quotients saturated to 16 bits, n0 elements 0-3, 8-11, 4-7, 12-15, n1
 * the same from 16 on. Returns 0, and stores nothing, where one may come from NaN or from beyond int32. */
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
    return _mm256_packs_epi32(_mm256_loadu_si256((const __m256i *)zero), _mm256_loadu_si256((const __m256i *)(zero + 8)));
}

/* Columns i .. i + 31 of several rows, the parameters held in registers. Returns how many rows were stored before one that
 * store32 refused. */
static inline size_t quantize_group_columns(const float *x, uint8_t *q, const qk_affine_columns *p, size_t i, size_t rows)
{
    const float *s = p->scale + i, *r = p->reciprocal + i;
    const __m256 s0 = _mm256_loadu_ps(s), s1 = _mm256_loadu_ps(s + 8), s2 = _mm256_loadu_ps(s + 16), s3 = _mm256_loadu_ps(s + 24);
    const __m256 r0 = _mm256_loadu_ps(r), r1 = _mm256_loadu_ps(r + 8), r2 = _mm256_loadu_ps(r + 16), r3 = _mm256_loadu_ps(r + 24);
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

#define MR 8 /* at most */
#define NR 16
#define KR 2
#define HAVE_FMA 1
#define GROUP 32
#define HAVE_WIDEN
#include "elementwise.inc.h"
#include "layers.inc.h"

/* values[i], by bit 3 of which one of the two halves holds it. */
static inline __m256 look_up(const float *values, __m256i i)
{
    const __m256 low = _mm256_permutevar8x32_ps(_mm256_loadu_ps(values), i), high = _mm256_permutevar8x32_ps(_mm256_loadu_ps(values + 8), i);
    return _mm256_blendv_ps(low, high, _mm256_castsi256_ps(_mm256_slli_epi32(i, 28)));
}

static inline __m256 gelu8(__m256 x, const gelu_table *g)
{
    const __m256 rounder = _mm256_set1_ps(ROUNDER), magnitude = _mm256_andnot_ps(_mm256_set1_ps(-0.0f), x);
    const __m256 v = _mm256_min_ps(_mm256_set1_ps(GELU_SEGMENTS - 1), _mm256_mul_ps(magnitude, _mm256_set1_ps(g->per_unit)));
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
    for (size_t i = 0; i < n; i += 8) _mm256_storeu_ps(y + i, gelu8(_mm256_loadu_ps(y + i), g)); /* n is a multiple of 16 */
}

#include "products.inc.h"
#include "blocked.inc.h"

static inline __m256i broadcast2(const int16_t *p)
{
    int32_t codes;
    memcpy(&codes, p, sizeof codes);
    return _mm256_set1_epi32(codes);
}

static inline __m256i widen(const int8_t *p) { return _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)p)); }

/* c + a * b. The empty asm pins the sum to its register and its place: gcc would otherwise reassociate integer sums
 * across steps and spill. */
static inline __attribute__((always_inline)) __m256i multiply_add(__m256i c, __m256i a, __m256i b)
{
    c = _mm256_add_epi32(c, _mm256_madd_epi16(a, b));
    __asm__("" : "+x"(c));
    return c;
}

static inline __attribute__((always_inline)) void store(int32_t *c, __m256i left, __m256i right)
{
    _mm256_storeu_si256((__m256i *)c, left);
    _mm256_storeu_si256((__m256i *)(c + 8), right);
}

/* `rows` is a constant where this is inlined: the accumulators of absent rows vanish. */
static inline __attribute__((always_inline)) void tile(const int rows, size_t steps, const int16_t *a, size_t lda,
                                                       const int8_t *panel, const int32_t *init, int32_t *c, size_t ldc)
{
    const int16_t *a3 = a + 3 * lda;
    __m256i c00 = _mm256_loadu_si256((const __m256i *)init), c01 = _mm256_loadu_si256((const __m256i *)(init + 8));
    __m256i c10 = c00, c11 = c01, c20 = c00, c21 = c01, c30 = c00, c31 = c01, c40 = c00, c41 = c01, c50 = c00, c51 = c01;
    for (size_t s = 0; s < steps; s++, a += KR, a3 += KR, panel += NR * KR) {
        const __m256i b0 = widen(panel), b1 = widen(panel + 16);
        __m256i v = broadcast2(a);
        c00 = multiply_add(c00, v, b0), c01 = multiply_add(c01, v, b1);
        if (rows > 1) v = broadcast2(a + lda), c10 = multiply_add(c10, v, b0), c11 = multiply_add(c11, v, b1);
        if (rows > 2) v = broadcast2(a + 2 * lda), c20 = multiply_add(c20, v, b0), c21 = multiply_add(c21, v, b1);
        if (rows > 3) v = broadcast2(a3), c30 = multiply_add(c30, v, b0), c31 = multiply_add(c31, v, b1);
        if (rows > 4) v = broadcast2(a3 + lda), c40 = multiply_add(c40, v, b0), c41 = multiply_add(c41, v, b1);
        if (rows > 5) v = broadcast2(a3 + 2 * lda), c50 = multiply_add(c50, v, b0), c51 = multiply_add(c51, v, b1);
    }
    store(c, c00, c01);
    if (rows > 1) c += ldc, store(c, c10, c11);
    if (rows > 2) c += ldc, store(c, c20, c21);
    if (rows > 3) c += ldc, store(c, c30, c31);
    if (rows > 4) c += ldc, store(c, c40, c41);
    if (rows > 5) c += ldc, store(c, c50, c51);
}

static void gemm_tile(int rows, size_t steps, const void *a, size_t lda, const int8_t *panel, const int32_t *init,
                      int32_t *c, size_t ldc)
{
    lda /= sizeof(int16_t);
    switch (rows) {
    case 1: tile(1, steps, a, lda, panel, init, c, ldc); break;
    case 2: tile(2, steps, a, lda, panel, init, c, ldc); break;
    case 3: tile(3, steps, a, lda, panel, init, c, ldc); break;
    case 4: tile(4, steps, a, lda, panel, init, c, ldc); break;
    case 5: tile(5, steps, a, lda, panel, init, c, ldc); break;
    default: tile(6, steps, a, lda, panel, init, c, ldc); break;
    }
}

static void gemm_pack_row(const uint8_t *a, size_t n, size_t n_pad, uint8_t flip, void *to)
{
    pack_row_words(a, n, n_pad, flip, to);
}

/* ---- 4-bit weights (numerics 12) ---- */

/* Weights of 0..15 cannot saturate vpmaddubsw, and 8 of its sums fit int16: 32 products for two instructions, with one
 * vpmaddwd by ones every 32 rows of b. Tile: 4 rows x 16 columns, 8 accumulators; for one row 32 columns, so that it reads panels
 * as they lie. The sums of all blocks are in the L1 cache. */

enum { STEP = 4 * QK_BLOCKED_NR, SHORT_STEPS = 4 /* whose sums int16 holds */, L1_PART = 12 * 1024 };

/* Row by row. */
typedef struct {
    __m256i c0, c1, c2, c3, c4, c5, c6, c7;
} eight_sums;

static inline __m256i broadcast4(const void *p)
{
    int32_t codes;
    memcpy(&codes, p, sizeof codes);
    return _mm256_set1_epi32(codes);
}

static inline __m256i load_codes(const uint8_t *p) { return _mm256_loadu_si256((const __m256i *)p); }

/* c + b * a in int16; pinned as in multiply_add. */
static inline __attribute__((always_inline)) __m256i multiply_add_short(__m256i c, __m256i b, __m256i a)
{
    c = _mm256_add_epi16(c, _mm256_maddubs_epi16(b, a));
    __asm__("" : "+x"(c));
    return c;
}

/* At most SHORT_STEPS steps of `rows` rows of a and of 16 columns of b. Unrolled, for gcc rotates registers in loops. */
static inline __attribute__((always_inline)) eight_sums multiply_steps(const int rows, size_t steps, const int8_t *a, size_t lda,
                                                                       const uint8_t *b)
{
    const __m256i low = _mm256_set1_epi8(15), zero = _mm256_setzero_si256();
    const int8_t *a3 = a + 3 * lda;
    eight_sums c = {zero, zero, zero, zero, zero, zero, zero, zero};
#pragma GCC unroll 4
    for (size_t s = 0; s < steps; s++, b += STEP, a += 8, a3 += 8) {
        const __m256i two0 = load_codes(b), two1 = load_codes(b + 32);
        __m256i b0 = _mm256_and_si256(two0, low), b1 = _mm256_and_si256(two1, low), v = broadcast4(a);
        c.c0 = multiply_add_short(c.c0, b0, v), c.c1 = multiply_add_short(c.c1, b1, v);
        if (rows > 1) v = broadcast4(a + lda), c.c2 = multiply_add_short(c.c2, b0, v), c.c3 = multiply_add_short(c.c3, b1, v);
        if (rows > 2) v = broadcast4(a + 2 * lda), c.c4 = multiply_add_short(c.c4, b0, v), c.c5 = multiply_add_short(c.c5, b1, v);
        if (rows > 3) v = broadcast4(a3), c.c6 = multiply_add_short(c.c6, b0, v), c.c7 = multiply_add_short(c.c7, b1, v);
        b0 = _mm256_and_si256(_mm256_srli_epi16(two0, 4), low), b1 = _mm256_and_si256(_mm256_srli_epi16(two1, 4), low);
        v = broadcast4(a + 4);
        c.c0 = multiply_add_short(c.c0, b0, v), c.c1 = multiply_add_short(c.c1, b1, v);
        if (rows > 1) v = broadcast4(a + lda + 4), c.c2 = multiply_add_short(c.c2, b0, v), c.c3 = multiply_add_short(c.c3, b1, v);
        if (rows > 2) v = broadcast4(a + 2 * lda + 4), c.c4 = multiply_add_short(c.c4, b0, v), c.c5 = multiply_add_short(c.c5, b1, v);
        if (rows > 3) v = broadcast4(a3 + 4), c.c6 = multiply_add_short(c.c6, b0, v), c.c7 = multiply_add_short(c.c7, b1, v);
    }
    return c;
}

/* One row and all 32 columns, in c0 .. c3. */
static inline __attribute__((always_inline)) eight_sums multiply_row_steps(size_t steps, const int8_t *a, const uint8_t *b)
{
    const __m256i low = _mm256_set1_epi8(15), zero = _mm256_setzero_si256();
    eight_sums c = {zero, zero, zero, zero, zero, zero, zero, zero};
    for (size_t s = 0; s < steps; s++, b += STEP, a += 8) {
        const __m256i two0 = load_codes(b), two1 = load_codes(b + 32), two2 = load_codes(b + 64), two3 = load_codes(b + 96);
        __m256i v = broadcast4(a);
        c.c0 = multiply_add_short(c.c0, _mm256_and_si256(two0, low), v);
        c.c1 = multiply_add_short(c.c1, _mm256_and_si256(two1, low), v);
        c.c2 = multiply_add_short(c.c2, _mm256_and_si256(two2, low), v);
        c.c3 = multiply_add_short(c.c3, _mm256_and_si256(two3, low), v);
        v = broadcast4(a + 4);
        c.c0 = multiply_add_short(c.c0, _mm256_and_si256(_mm256_srli_epi16(two0, 4), low), v);
        c.c1 = multiply_add_short(c.c1, _mm256_and_si256(_mm256_srli_epi16(two1, 4), low), v);
        c.c2 = multiply_add_short(c.c2, _mm256_and_si256(_mm256_srli_epi16(two2, 4), low), v);
        c.c3 = multiply_add_short(c.c3, _mm256_and_si256(_mm256_srli_epi16(two3, 4), low), v);
    }
    return c;
}

/* Neighbours of int16 added; and to them, if there is `more`, the sum so far. */
static inline __attribute__((always_inline)) __m256i widen_sum(__m256i c, const __m256i *sum, int more)
{
    c = _mm256_madd_epi16(c, _mm256_set1_epi16(1));
    return more ? _mm256_add_epi32(c, *sum) : c;
}

static inline __attribute__((always_inline)) eight_sums widen_sums(const int used, eight_sums c, const __m256i *sums, int more)
{
    c.c0 = widen_sum(c.c0, sums, more), c.c1 = widen_sum(c.c1, sums + 1, more);
    if (used > 2) c.c2 = widen_sum(c.c2, sums + 2, more), c.c3 = widen_sum(c.c3, sums + 3, more);
    if (used > 4) c.c4 = widen_sum(c.c4, sums + 4, more), c.c5 = widen_sum(c.c5, sums + 5, more);
    if (used > 6) c.c6 = widen_sum(c.c6, sums + 6, more), c.c7 = widen_sum(c.c7, sums + 7, more);
    return c;
}

static inline __attribute__((always_inline)) void store_sums(const int used, __m256i *sums, eight_sums c)
{
    sums[0] = c.c0, sums[1] = c.c1;
    if (used > 2) sums[2] = c.c2, sums[3] = c.c3;
    if (used > 4) sums[4] = c.c4, sums[5] = c.c5;
    if (used > 6) sums[6] = c.c6, sums[7] = c.c7;
}

static inline __attribute__((always_inline)) __m256 scales8(const qk_blocked_panel *p, const uint8_t *scales, size_t col)
{
    return p->half_scales ? _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(scales + 2 * col)))
                          : _mm256_loadu_ps((const float *)scales + col);
}

/* What 16 columns of a block have. */
typedef struct {
    __m256 s0, s1;
    __m256i z0, z1;
} block_columns;

static inline __attribute__((always_inline)) block_columns columns_at(const qk_blocked_panel *p, const int own_zeros,
                                                                      const uint8_t *scales, size_t col)
{
    const uint8_t *zeros = scales + (p->half_scales ? 2 : 4) * QK_BLOCKED_NR + col;
    block_columns of = {scales8(p, scales, col), scales8(p, scales, col + 8), _mm256_setzero_si256(), _mm256_setzero_si256()};
    if (own_zeros) of.z0 = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)zeros));
    if (own_zeros) of.z1 = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(zeros + 8)));
    return of;
}

/* The sums of a block, of one row, scaled and added to the total. */
static inline __attribute__((always_inline)) void add_block(__m256 *total, __m256i c0, __m256i c1, int32_t start,
                                                            block_columns of, const int own_zeros)
{
    const __m256i v = _mm256_set1_epi32(start);
    c0 = _mm256_add_epi32(c0, own_zeros ? _mm256_mullo_epi32(of.z0, v) : v);
    c1 = _mm256_add_epi32(c1, own_zeros ? _mm256_mullo_epi32(of.z1, v) : v);
    total[0] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(c0), of.s0, total[0]);
    total[1] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(c1), of.s1, total[1]);
}

/* `rows` rows and 16 columns from `col` on; or, where `wide`, one row and 32 columns. All three are constants where this is
 * inlined. */
static inline __attribute__((always_inline)) void blocked_rows(const int rows, const int wide, const int own_zeros, size_t col,
                                                               const qk_blocked_panel *p, const int8_t *a, size_t lda,
                                                               const int32_t *start, size_t ld_start, float *y)
{
    const int used = wide ? 4 : 2 * rows;
    const size_t params_bytes = QK_BLOCKED_NR * (size_t)((p->half_scales ? 2 : 4) + (own_zeros ? 1 : 0));
    const uint8_t *b = p->records + 4 * col;
    __m256i sums[8];
    __m256 total[8];
    for (int i = 0; i < used; i++) total[i] = _mm256_loadu_ps(wide ? y + 8 * i : y + i / 2 * QK_BLOCKED_NR + col + i % 2 * 8);
    for (size_t block = 0; block < p->blocks; block++, start++) {
        size_t steps = block + 1 < p->blocks ? p->steps : p->last_steps;
        int more = 0; /* whether `sums` hold some of this block */
        const uint8_t *scales = b - 4 * col + steps * STEP;
        for (; steps > SHORT_STEPS; steps -= SHORT_STEPS, a += 8 * SHORT_STEPS, b += STEP * SHORT_STEPS, more = 1) {
            const eight_sums c = wide ? multiply_row_steps(SHORT_STEPS, a, b) : multiply_steps(rows, SHORT_STEPS, a, lda, b);
            store_sums(used, sums, widen_sums(used, c, sums, more));
        }
        const eight_sums last = wide ? multiply_row_steps(steps, a, b)
                              : steps == SHORT_STEPS ? multiply_steps(rows, SHORT_STEPS, a, lda, b)
                                                     : multiply_steps(rows, steps, a, lda, b);
        const eight_sums c = widen_sums(used, last, sums, more);
        const block_columns of = columns_at(p, own_zeros, scales, col);
        add_block(total, c.c0, c.c1, start[0], of, own_zeros);
        if (wide) add_block(total + 2, c.c2, c.c3, start[0], columns_at(p, own_zeros, scales, 16), own_zeros);
        if (rows > 1) add_block(total + 2, c.c2, c.c3, start[ld_start], of, own_zeros);
        if (rows > 2) add_block(total + 4, c.c4, c.c5, start[2 * ld_start], of, own_zeros);
        if (rows > 3) add_block(total + 6, c.c6, c.c7, start[3 * ld_start], of, own_zeros);
        a += steps * 8, b = scales + params_bytes + 4 * col;
    }
    for (int i = 0; i < used; i++) _mm256_storeu_ps(wide ? y + 8 * i : y + i / 2 * QK_BLOCKED_NR + col + i % 2 * 8, total[i]);
}

/* y += a * panel. */
static void blocked_columns(int rows, const qk_blocked_panel *p, const int8_t *a, size_t lda, const int32_t *start,
                            size_t ld_start, float *y)
{
    for (size_t col = 0; col < QK_BLOCKED_NR; col += rows == 1 ? 32 : 16) switch (rows * 2 + p->own_zeros) {
        case 2: blocked_rows(1, 1, 0, 0, p, a, lda, start, ld_start, y); break;
        case 3: blocked_rows(1, 1, 1, 0, p, a, lda, start, ld_start, y); break;
        case 4: blocked_rows(2, 0, 0, col, p, a, lda, start, ld_start, y); break;
        case 5: blocked_rows(2, 0, 1, col, p, a, lda, start, ld_start, y); break;
        case 6: blocked_rows(3, 0, 0, col, p, a, lda, start, ld_start, y); break;
        case 7: blocked_rows(3, 0, 1, col, p, a, lda, start, ld_start, y); break;
        case 8: blocked_rows(4, 0, 0, col, p, a, lda, start, ld_start, y); break;
        default: blocked_rows(4, 0, 1, col, p, a, lda, start, ld_start, y); break;
        }
}

/* Some blocks at a time, so that the second half of the columns finds them in the L1 cache: 128 bytes apart and from L2,
 * lines came half as fast at times. */
static void blocked_tile(int rows, const qk_blocked_panel *p, const int8_t *a, size_t lda, const int32_t *start,
                         size_t ld_start, float *y)
{
    const size_t record = p->steps * STEP + QK_BLOCKED_NR * (size_t)((p->half_scales ? 2 : 4) + (p->own_zeros ? 1 : 0));
    const size_t most = rows == 1 ? p->blocks : record < L1_PART ? L1_PART / record : 1;
    qk_blocked_panel part = *p;
    memset(y, 0, (size_t)rows * QK_BLOCKED_NR * sizeof *y);
    for (size_t left = p->blocks; left; left -= part.blocks) {
        part.blocks = left < most ? left : most;
        part.last_steps = part.blocks == left ? p->last_steps : p->steps;
        blocked_columns(rows, &part, a, lda, start, ld_start, y);
        part.records += part.blocks * record, a += part.blocks * p->steps * 8, start += part.blocks;
    }
}

#include "light_avx2.inc.h"

const qk_kernels qk_kernels_avx2 = {
    .name = "avx2",
    .mr = 6, .nr = NR, .kr = KR, .a_bytes = 2,
    .light = &light,
    .blocked_mr = 4,
    .gemm_tile = gemm_tile,
    .gemm_pack_row = gemm_pack_row,
    .gemm_pack_panel = gemm_pack_panel,
    .gemm_unpack_panel = gemm_unpack_panel,
    .gemm_panel_bytes = gemm_panel_bytes,
#include "kernels_table.inc.h"
};

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
