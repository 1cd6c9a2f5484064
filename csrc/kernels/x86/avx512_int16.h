/* The tile of int16 products on AVX-512, 12 rows x 32 columns: by vpdpwssd where the target of the including file has
 * VNNI (it sets WITH_VNNI to 1), else by vpmaddwd and vpaddd. */
#ifndef QK_AVX512_INT16_H
#define QK_AVX512_INT16_H

#include "kernels/generic/target.h"
#include "kernels/kernels.h"
#include "kernels/x86/avx512.h"
#include "runtime/compiler.h"

#ifndef WITH_VNNI
#define WITH_VNNI 0
#endif

/* c + a * b of 16 lanes x (2 by 2 int16). */
static QK_INLINE __m512i multiply_add_pairs(__m512i c, __m512i a, __m512i b)
{
#if WITH_VNNI
    return _mm512_dpwssd_epi32(c, a, b);
#else
    return add_to_i32(c, _mm512_madd_epi16(a, b));
#endif
}

/* 32 codes at `i` of a panel, of int8 if it is narrow. */
static QK_INLINE __m512i load_int16(const void *panel, size_t i, const int narrow)
{
    if (narrow) return _mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i *)((const int8_t *)panel + i)));
    return _mm512_loadu_si512((const int16_t *)panel + i);
}

static QK_INLINE void prefetch_int16(const void *panel, size_t i, const int narrow)
{
    _mm_prefetch((const char *)panel + (narrow ? i : 2 * i), _MM_HINT_T0);
}

/* c (rows x NR, ldc) = init if it is `started`, else 0, + a * panel. `narrow`, `started` and `rows` are constants where
 * this is inlined: the accumulators of absent rows vanish. */
static QK_INLINE void int16_rows(const int rows, const int narrow, const int started, size_t steps, const int16_t *a,
                                 size_t lda, const void *panel, const int32_t *init, int32_t *c, size_t ldc)
{
    const int16_t *a3 = a + 3 * lda, *a6 = a + 6 * lda, *a9 = a + 9 * lda;
    ask_for_rows(rows, c, ldc, NR);
    const __m512i i0 = started ? _mm512_loadu_si512(init) : _mm512_setzero_si512();
    const __m512i i1 = started ? _mm512_loadu_si512(init + 16) : _mm512_setzero_si512();
    __m512i c00 = i0, c01 = i1, c10 = i0, c11 = i1, c20 = i0, c21 = i1, c30 = i0, c31 = i1;
    __m512i c40 = i0, c41 = i1, c50 = i0, c51 = i1, c60 = i0, c61 = i1, c70 = i0, c71 = i1;
    __m512i c80 = i0, c81 = i1, c90 = i0, c91 = i1, ca0 = i0, ca1 = i1, cb0 = i0, cb1 = i1;
    for (size_t i = 0; i < 2 * NR * steps; i += 2 * NR, a += 2, a3 += 2, a6 += 2, a9 += 2) {
        if (rows > 4 && (narrow || !started)) { /* as in gemmf16_rows; a panel that was just widened is near */
            prefetch_int16(panel, i + 128 * NR, narrow);
            prefetch_int16(panel, i + 129 * NR, narrow);
        }
        const __m512i b0 = load_int16(panel, i, narrow), b1 = load_int16(panel, i + NR, narrow);
        __m512i v = broadcast4(a);
        c00 = multiply_add_pairs(c00, v, b0), c01 = multiply_add_pairs(c01, v, b1);
        if (rows > 1)
            v = broadcast4(a + lda), c10 = multiply_add_pairs(c10, v, b0), c11 = multiply_add_pairs(c11, v, b1);
        if (rows > 2)
            v = broadcast4(a + 2 * lda), c20 = multiply_add_pairs(c20, v, b0), c21 = multiply_add_pairs(c21, v, b1);
        if (rows > 3) v = broadcast4(a3), c30 = multiply_add_pairs(c30, v, b0), c31 = multiply_add_pairs(c31, v, b1);
        if (rows > 4)
            v = broadcast4(a3 + lda), c40 = multiply_add_pairs(c40, v, b0), c41 = multiply_add_pairs(c41, v, b1);
        if (rows > 5)
            v = broadcast4(a3 + 2 * lda), c50 = multiply_add_pairs(c50, v, b0), c51 = multiply_add_pairs(c51, v, b1);
        if (rows > 6) v = broadcast4(a6), c60 = multiply_add_pairs(c60, v, b0), c61 = multiply_add_pairs(c61, v, b1);
        if (rows > 7)
            v = broadcast4(a6 + lda), c70 = multiply_add_pairs(c70, v, b0), c71 = multiply_add_pairs(c71, v, b1);
        if (rows > 8)
            v = broadcast4(a6 + 2 * lda), c80 = multiply_add_pairs(c80, v, b0), c81 = multiply_add_pairs(c81, v, b1);
        if (rows > 9) v = broadcast4(a9), c90 = multiply_add_pairs(c90, v, b0), c91 = multiply_add_pairs(c91, v, b1);
        if (rows > 10)
            v = broadcast4(a9 + lda), ca0 = multiply_add_pairs(ca0, v, b0), ca1 = multiply_add_pairs(ca1, v, b1);
        if (rows > 11)
            v = broadcast4(a9 + 2 * lda), cb0 = multiply_add_pairs(cb0, v, b0), cb1 = multiply_add_pairs(cb1, v, b1);
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

static QK_INLINE void int16_tile(const int narrow, const int started, int rows, size_t steps, const int16_t *a,
                                 size_t lda, const void *panel, const int32_t *init, int32_t *c, size_t ldc)
{
    ROWS_12(rows, int16_rows, narrow, started, steps, a, lda, panel, init, c, ldc);
}

#endif
