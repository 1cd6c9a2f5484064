/* What tiles of 4-bit weights and of blocks of 8-bit ones have in common in registers of 256 bits (numerics 12). A file
 * whose target has AVX-VNNI sets WITH_VNNI to 1. */
#ifndef QK_AVX2_GEMM4_H
#define QK_AVX2_GEMM4_H

#include <string.h>

#include "kernels/kernels.h"
#include "kernels/x86/avx2.h"
#include "runtime/compiler.h"

#ifndef WITH_VNNI
#define WITH_VNNI 0
#endif

static inline __m256i load_codes(const uint8_t *p) { return _mm256_loadu_si256((const __m256i *)p); }
static inline __m256i low_halves(__m256i codes) { return _mm256_and_si256(codes, _mm256_set1_epi8(15)); }
static inline __m256i high_halves(__m256i codes) { return low_halves(_mm256_srli_epi16(codes, 4)); }

/* c + level * a in int32; pinned to its register. VNNI takes level + 128 as the unsigned operand, and its sums start
 * from what that adds; vpmaddubsw |a|, the level with the sign of a. */
static QK_INLINE __m256i multiply_level(__m256i c, __m256i level, __m256i a)
{
#if WITH_VNNI
    c = _mm256_dpbusd_avx_epi32(c, level, a);
#else
    const __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(a), _mm256_sign_epi8(level, a));
    c = _mm256_add_epi32(c, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
#endif
    QK_KEEP(c);
    return c;
}

/* Levels, of two columns or the same twice, as multiply_level takes them. */
static inline __m256i as_factors(__m256i levels)
{
    return WITH_VNNI ? _mm256_xor_si256(levels, _mm256_set1_epi8(-128)) : levels;
}

static QK_INLINE __m256 scales8(const qk_gemm4_panel *p, const uint8_t *scales, size_t col)
{
    if (p->byte_scales) {
        const __m256i bytes = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(scales + col)));
        return _mm256_mul_ps(_mm256_castsi256_ps(_mm256_slli_epi32(bytes, 20)), _mm256_set1_ps(p->scale_unit));
    }
    return p->half_scales ? _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(scales + 2 * col)))
                          : _mm256_loadu_ps((const float *)scales + col);
}

/* What 8 columns and 8 others of a block have. */
typedef struct {
    __m256 s0, s1;
    __m256i z0, z1;
} block_columns;

static QK_INLINE block_columns columns_at(const qk_gemm4_panel *p, const int own_zeros, const uint8_t *scales,
                                          size_t col0, size_t col1)
{
    const uint8_t *zeros = scales + qk_scales_bytes(p);
    block_columns of = {scales8(p, scales, col0), scales8(p, scales, col1), _mm256_setzero_si256(),
                        _mm256_setzero_si256()};
    if (own_zeros) of.z0 = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(zeros + col0)));
    if (own_zeros) of.z1 = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(zeros + col1)));
    return of;
}

/* ---- 4-bit weights with levels of each column (numerics 12) ---- */

/* A lane of 16 bytes has 16 rows of one column, so vpshufb looks them up in its levels. Tile: 4 rows x 4 columns, a sum
 * in four parts, which are added at the end of k. */

enum { OWN_STEP = QK_COLUMN_LEVELS_NR * QK_COLUMN_LEVELS_KR / 2 };

static inline __m256i broadcast16(const int8_t *a)
{
    return _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)a));
}

/* c0 has columns 0 and 1, c1 columns 2 and 3. */
static inline void store_columns(float *y, __m256i c0, __m256i c1, int32_t start, __m128 scale)
{
    const __m256i pairs = _mm256_hadd_epi32(c0, c1), sums = _mm256_hadd_epi32(pairs, pairs);
    __m128i columns = _mm_unpacklo_epi32(_mm256_castsi256_si128(sums), _mm256_extracti128_si256(sums, 1));
    if (WITH_VNNI) columns = _mm_add_epi32(columns, _mm_set1_epi32(start));
    _mm_storeu_ps(y, _mm_mul_ps(_mm_cvtepi32_ps(columns), scale));
}

/* `rows` is a constant where this is inlined. `levels` are of 4 columns, b their codes, in steps that lie OWN_STEP
 * apart. */
static QK_INLINE void column_levels_rows(const int rows, size_t steps, const uint8_t *levels, const uint8_t *b,
                                         __m128 scale, const int8_t *a, size_t lda, const int32_t *start,
                                         size_t ld_start, float *y)
{
    enum { HALF = QK_COLUMN_LEVELS_KR / 2 };
    const __m256i levels0 = as_factors(load_codes(levels)), levels1 = as_factors(load_codes(levels + 32));
    const int8_t *a3 = a + 3 * lda;
    __m256i c0 = _mm256_setzero_si256(), c1 = c0, c2 = c0, c3 = c0, c4 = c0, c5 = c0, c6 = c0, c7 = c0;
    for (size_t s = 0; s < steps; s++, b += OWN_STEP)
        for (int half = 0; half < 2; half++, a += HALF, a3 += HALF) {
            const __m256i two0 = load_codes(b), two1 = load_codes(b + 32);
            const __m256i b0 = _mm256_shuffle_epi8(levels0, half ? high_halves(two0) : low_halves(two0));
            const __m256i b1 = _mm256_shuffle_epi8(levels1, half ? high_halves(two1) : low_halves(two1));
            __m256i v = broadcast16(a);
            c0 = multiply_level(c0, b0, v), c1 = multiply_level(c1, b1, v);
            if (rows > 1) v = broadcast16(a + lda);
            if (rows > 1) c2 = multiply_level(c2, b0, v), c3 = multiply_level(c3, b1, v);
            if (rows > 2) v = broadcast16(a + 2 * lda);
            if (rows > 2) c4 = multiply_level(c4, b0, v), c5 = multiply_level(c5, b1, v);
            if (rows > 3) v = broadcast16(a3);
            if (rows > 3) c6 = multiply_level(c6, b0, v), c7 = multiply_level(c7, b1, v);
        }
    store_columns(y, c0, c1, start[0], scale);
    if (rows > 1) store_columns(y + QK_GEMM4_NR, c2, c3, start[ld_start], scale);
    if (rows > 2) store_columns(y + 2 * QK_GEMM4_NR, c4, c5, start[2 * ld_start], scale);
    if (rows > 3) store_columns(y + 3 * QK_GEMM4_NR, c6, c7, start[3 * ld_start], scale);
}

static void column_levels_tile(int rows, const qk_gemm4_panel *p, const int8_t *a, size_t lda, const int32_t *start,
                               size_t ld_start, float *y)
{
    const size_t steps = p->last_steps, group = OWN_STEP * (1 + steps);
    const float *scales = (const float *)(p->records + QK_GEMM4_NR / QK_COLUMN_LEVELS_NR * group);
    if (p->blocks == 0) memset(y, 0, (size_t)rows * QK_GEMM4_NR * sizeof *y);
    for (int col = 0; p->blocks && col < QK_GEMM4_NR; col += 4, y += 4) {
        const uint8_t *levels = p->records + (size_t)(col / QK_COLUMN_LEVELS_NR) * group +
            col % QK_COLUMN_LEVELS_NR * QK_LEVELS,
                      *b = levels + OWN_STEP;
        const __m128 scale = _mm_loadu_ps(scales + col);
        ROWS_4(rows, column_levels_rows, steps, levels, b, scale, a, lda, start, ld_start, y);
    }
}

/* ---- panels of 4 bits that become panels of 8 (numerics 12) ---- */

/* Takes 4 rows of 8 columns from the sums of these. */
static inline void subtract_codes(int32_t *sums, __m256i codes)
{
    const __m256i pairs = _mm256_maddubs_epi16(_mm256_set1_epi8(1), codes);
    const __m256i fours = _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
    _mm256_storeu_si256((__m256i *)sums, _mm256_sub_epi32(_mm256_loadu_si256((const __m256i *)sums), fours));
}

static QK_INLINE void store_codes(uint8_t *to, __m256i codes, int32_t *sums)
{
    _mm256_storeu_si256((__m256i *)to, codes);
    subtract_codes(sums, codes);
}

/* A block of codes; zeros: of 8 columns each, four times. */
static QK_INLINE void block_to_bytes(const int looked_up, const uint8_t *b, size_t steps, __m256i levels,
                                     const __m256i *zeros, uint8_t *to, int32_t *sums)
{
    for (size_t s = 0; s < steps; s++, b += QK_GEMM4_NR * QK_GEMM4_KR / 2, to += QK_GEMM4_NR * QK_GEMM4_KR)
        for (int i = 0; i < 2; i++) {
            const __m256i two = load_codes(b + 32 * i), low = low_halves(two), high = high_halves(two);
            store_codes(to + 32 * i, looked_up ? _mm256_shuffle_epi8(levels, low) : _mm256_sub_epi8(low, zeros[i]),
                        sums + 8 * i);
            store_codes(to + 64 + 32 * i,
                        looked_up ? _mm256_shuffle_epi8(levels, high) : _mm256_sub_epi8(high, zeros[2 + i]),
                        sums + 16 + 8 * i);
        }
}

static void gemm4_to_bytes(const qk_gemm4_panel *p, int32_t zero, uint8_t *to)
{
    const uint8_t *b = p->records;
    __m256i levels = _mm256_setzero_si256(), zeros[4];
    if (p->levels) levels = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)p->levels));
    for (int i = 0; i < 4; i++) zeros[i] = _mm256_set1_epi8((char)zero);
    for (size_t block = 1; block <= p->blocks; block++) {
        const size_t steps = block < p->blocks ? p->steps : p->last_steps;
        const uint8_t *scales = b + steps * QK_GEMM4_NR * QK_GEMM4_KR / 2;
        int32_t sums[QK_GEMM4_NR] = {0};
        for (size_t i = 0; p->own_zeros && i < 4; i++)
            zeros[i] = _mm256_mullo_epi32(columns_at(p, 1, scales, 8 * i, 0).z0, _mm256_set1_epi32(0x01010101));
        if (p->levels)
            block_to_bytes(1, b, steps, levels, zeros, to, sums);
        else
            block_to_bytes(0, b, steps, levels, zeros, to, sums);
        to += steps * QK_GEMM4_NR * QK_GEMM4_KR;
        for (size_t i = 0; i < 4; i++) _mm256_storeu_ps((float *)to + 8 * i, scales8(p, scales, 8 * i));
        memcpy(to + 4 * QK_GEMM4_NR, sums, sizeof sums);
        to += 8 * QK_GEMM4_NR, b = scales + p->params_bytes;
    }
}

/* The levels of 16 rows of a column. */
static inline __m128i column_of_levels(const uint8_t *levels, const uint8_t *b, __m128i shift)
{
    const __m128i codes = _mm_and_si128(_mm_srl_epi16(_mm_loadu_si128((const __m128i *)b), shift), _mm_set1_epi8(15));
    return _mm_shuffle_epi8(_mm_loadu_si128((const __m128i *)levels), codes);
}

/* 16 rows of 4 columns become 4 steps, or fewer. */
static QK_INLINE void turn_columns(const uint8_t *levels, const uint8_t *b, __m128i shift, size_t steps, uint8_t *to)
{
    const __m128i r0 = column_of_levels(levels, b, shift), r1 = column_of_levels(levels + 16, b + 16, shift);
    const __m128i r2 = column_of_levels(levels + 32, b + 32, shift), r3 = column_of_levels(levels + 48, b + 48, shift);
    const __m128i low01 = _mm_unpacklo_epi32(r0, r1), low23 = _mm_unpacklo_epi32(r2, r3);
    const __m128i high01 = _mm_unpackhi_epi32(r0, r1), high23 = _mm_unpackhi_epi32(r2, r3);
    const __m128i turned[] = {_mm_unpacklo_epi64(low01, low23), _mm_unpackhi_epi64(low01, low23),
                              _mm_unpacklo_epi64(high01, high23), _mm_unpackhi_epi64(high01, high23)};
#pragma GCC unroll 4
    for (size_t s = 0; s < 4 && s < steps; s++, to += QK_GEMM4_NR * QK_GEMM4_KR)
        _mm_storeu_si128((__m128i *)to, turned[s]);
}

static void column_levels_to_bytes(const qk_gemm4_panel *p, size_t steps, uint8_t *to)
{
    const size_t group = OWN_STEP * (1 + p->last_steps), step_bytes = QK_GEMM4_NR * QK_GEMM4_KR;
    uint8_t *params = to + step_bytes * steps;
    int32_t *sums = (int32_t *)(params + 4 * QK_GEMM4_NR);
    for (size_t col = 0; col < QK_GEMM4_NR; col += 4) {
        const uint8_t *levels = p->records + col / QK_COLUMN_LEVELS_NR * group + col % QK_COLUMN_LEVELS_NR * QK_LEVELS;
        for (size_t s = 0; s < steps; s += 4) /* by turns of the low and of the high halves of bytes */
            turn_columns(levels, levels + OWN_STEP * (1 + s / 8), _mm_cvtsi32_si128((int)(s % 8)),
                         min_size(steps - s, 4), to + step_bytes * s + QK_GEMM4_KR * col);
    }
    memcpy(params, p->records + 2 * group, 4 * QK_GEMM4_NR);
    memset(sums, 0, QK_GEMM4_NR * sizeof *sums);
    for (; to != params; to += step_bytes)
        for (int i = 0; i < 4; i++) subtract_codes(sums + 8 * i, load_codes(to + 32 * i));
}

/* Zero points z of 8 columns, as int16 (z, 256 z). */
static inline __m256i zero_pairs8(const uint8_t *zeros)
{
    const __m256i z = _mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)zeros));
    return _mm256_or_si256(_mm256_and_si256(z, _mm256_set1_epi32(0xffff)), _mm256_slli_epi32(z, 24));
}

#endif
