/* Products of bytes with 4-bit weights that fold to int8 (numerics 33), in registers of 256 bits.
 *
 * vpmaddubsw of a's codes and of code - 8 cannot saturate, and int16 holds its sums of 32 rows: 2 * 255 * 8 * 8 < 2^15.
 * Then vpmaddwd by the scale widens them, and another one adds the shift, times the sum of a's codes: 32 products for
 * two instructions, and four more for 256. Tile: 4 rows x 16 columns, 8 accumulators of 16 bits; int32 sums are in the
 * L1 cache. */
#ifndef QK_AVX2_FOLDED_H
#define QK_AVX2_FOLDED_H

#include "kernels/generic/folded.h"
#include "kernels/kernels.h"
#include "kernels/x86/avx2_gemm4.h"
#include "runtime/compiler.h"

/* Scale and twice the shift of 8 columns, each as two int16. */
typedef struct {
    __m256i scale, shift;
} fold;

static QK_INLINE fold fold_of(const uint8_t *params)
{
    const __m256i raw = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)params));
    const __m256i scale = _mm256_add_epi32(_mm256_and_si256(raw, _mm256_set1_epi32(15)), _mm256_set1_epi32(1));
    const __m256i shift = _mm256_srai_epi32(_mm256_slli_epi32(raw, 24), 28), twice = _mm256_add_epi32(shift, shift);
    return (fold){_mm256_or_si256(scale, _mm256_slli_epi32(scale, 16)),
                  _mm256_blend_epi16(twice, _mm256_slli_epi32(twice, 16), 0xaa)};
}

/* c + a * codes in int16, pinned as in multiply_add. */
static QK_INLINE __m256i add_short(__m256i c, __m256i a, __m256i codes)
{
    c = _mm256_add_epi16(c, _mm256_maddubs_epi16(a, codes));
    QK_KEEP(c);
    return c;
}

/* Codes of 8 columns; those of the high halves are stored less 8, as signed numbers. */
static QK_INLINE __m256i codes_of(const uint8_t *b, const int half)
{
    const __m256i two = load_codes(b);
    return half ? _mm256_xor_si256(high_halves(two), _mm256_set1_epi8(8)) : low_halves(two);
}

/* The sums of a row, of 8 columns and 8 others. */
typedef struct {
    __m256i c0, c1;
} short_sums;

static QK_INLINE short_sums multiply_short(short_sums c, const uint8_t *a, __m256i b0, __m256i b1)
{
    const __m256i v = broadcast4(a);
    return (short_sums){add_short(c.c0, v, b0), add_short(c.c1, v, b1)};
}

/* Sums of code - 8 start from these of codes. */
static QK_INLINE short_sums start_row(const int32_t *sum)
{
    const __m256i start = _mm256_sub_epi16(_mm256_setzero_si256(), _mm256_slli_epi16(broadcast4(sum), 3));
    return (short_sums){start, start};
}

static QK_INLINE void add_scaled(int32_t *c, __m256i sums, fold by, __m256i all)
{
    const __m256i scaled = _mm256_madd_epi16(sums, by.scale), shifted = _mm256_madd_epi16(all, by.shift);
    const __m256i so_far = _mm256_loadu_si256((const __m256i *)c);
    _mm256_storeu_si256((__m256i *)c, _mm256_add_epi32(so_far, _mm256_add_epi32(scaled, shifted)));
}

static QK_INLINE void add_chunk(int32_t *c, short_sums sums, fold by0, fold by1, const int32_t *sum)
{
    const __m256i all = broadcast4(sum);
    add_scaled(c, sums.c0, by0, all), add_scaled(c + 8, sums.c1, by1, all);
}

/* A chunk of at most 8 steps. `rows` and `half` are constants where this is inlined. */
static QK_INLINE void folded_chunk(const int rows, const int half, size_t steps, const uint8_t *b, fold by0, fold by1,
                                   const uint8_t *a, size_t lda, const int32_t *sums, size_t ld_sums, int32_t *c)
{
    enum { NC = 16 };
    const uint8_t *a3 = a + 3 * lda;
    const int32_t *sums3 = sums + 3 * ld_sums;
    short_sums c0 = start_row(sums), c1 = c0, c2 = c0, c3 = c0;
    if (rows > 1) c1 = start_row(sums + ld_sums);
    if (rows > 2) c2 = start_row(sums + 2 * ld_sums);
    if (rows > 3) c3 = start_row(sums3);
#pragma GCC unroll 8
    for (size_t s = 0; s < steps; s++, b += QK_FOLDED_STEP, a += QK_GEMM4_KR, a3 += QK_GEMM4_KR) {
        const __m256i b0 = codes_of(b, half), b1 = codes_of(b + 32, half);
        c0 = multiply_short(c0, a, b0, b1);
        if (rows > 1) c1 = multiply_short(c1, a + lda, b0, b1);
        if (rows > 2) c2 = multiply_short(c2, a + 2 * lda, b0, b1);
        if (rows > 3) c3 = multiply_short(c3, a3, b0, b1);
    }
    add_chunk(c, c0, by0, by1, sums);
    if (rows > 1) add_chunk(c + NC, c1, by0, by1, sums + ld_sums);
    if (rows > 2) add_chunk(c + 2 * NC, c2, by0, by1, sums + 2 * ld_sums);
    if (rows > 3) add_chunk(c + 3 * NC, c3, by0, by1, sums3);
}

static QK_INLINE void folded_rows(const int rows, const int half, const qk_folded_panel *panel, const uint8_t *a,
                                  size_t lda, const int32_t *sums, size_t ld_sums, int32_t *c)
{
    enum { STEPS = QK_FOLDED_CHUNK / QK_GEMM4_KR };
    const qk_folded_panel p = *panel;
    const uint8_t *b = p.codes, *params = p.params + 16 * half;
    for (size_t block = 0; block < p.blocks; block++, params += QK_GEMM4_NR) {
        const fold by0 = fold_of(params), by1 = fold_of(params + 8);
        size_t steps = steps_in(&p, block);
        for (; steps >= STEPS; steps -= STEPS, b += STEPS * QK_FOLDED_STEP, a += QK_FOLDED_CHUNK, sums++)
            folded_chunk(rows, half, STEPS, b, by0, by1, a, lda, sums, ld_sums, c);
        if (!steps) continue;
        folded_chunk(rows, half, steps, b, by0, by1, a, lda, sums, ld_sums, c);
        b += steps * QK_FOLDED_STEP, a += steps * QK_GEMM4_KR, sums++;
    }
}

static void folded_tile(int rows, int half, const qk_folded_panel *p, const uint8_t *a, size_t lda, const int32_t *sums,
                        size_t ld_sums, int32_t *c)
{
    if (half)
        ROWS_4(rows, folded_rows, 1, p, a, lda, sums, ld_sums, c)
    else
        ROWS_4(rows, folded_rows, 0, p, a, lda, sums, ld_sums, c)
}

/* Of a chunk two int16: the codes of the first two of each four rows, and of the others, below 2^13. */
static void folded_sums(const uint8_t *a, size_t k, size_t block, int32_t *sums)
{
    for (size_t i = 0; i < k; i += block)
        for (size_t j = i; j < min_size(i + block, k); j += QK_FOLDED_CHUNK) {
            int32_t first = 0, last = 0;
            for (size_t l = j; l < min_size(j + QK_FOLDED_CHUNK, min_size(i + block, k)); l += 4)
                first += a[l] + a[l + 1], last += a[l + 2] + a[l + 3];
            *sums++ = first | last << 16;
        }
}

#endif
