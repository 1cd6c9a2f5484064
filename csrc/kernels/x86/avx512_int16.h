/* The tile of exact products on AVX-512, 12 rows x 32 columns: of int16 by vpdpwssd where the target of the including
 * file has VNNI (it sets WITH_VNNI to 1), else by vpmaddwd and vpaddd; of bytes by vpdpbusd. */
#ifndef QK_AVX512_INT16_H
#define QK_AVX512_INT16_H

#include "kernels/generic/target.h"
#include "kernels/kernels.h"
#include "kernels/x86/avx512.h"
#include "runtime/compiler.h"

#ifndef WITH_VNNI
#define WITH_VNNI 0
#endif

/* What a panel holds: int16, int8 that is widened, or, with VNNI, int8 that meets bytes of a. */
enum { INT16, INT8, BYTES };

/* c + a * b of 16 lanes x (2 by 2 int16, or 4 by 4 bytes). */
static QK_INLINE __m512i multiply_add_codes(const int kind, __m512i c, __m512i a, __m512i b)
{
#if WITH_VNNI
    return kind == BYTES ? _mm512_dpbusd_epi32(c, a, b) : _mm512_dpwssd_epi32(c, a, b);
#else
    (void)kind;
    return add_to_i32(c, _mm512_madd_epi16(a, b));
#endif
}

/* 32 codes at `i` of a panel, of int8 if it is narrow. */
static QK_INLINE __m512i load_int16(const void *panel, size_t i, const int narrow)
{
    if (narrow) return _mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i *)((const int8_t *)panel + i)));
    return _mm512_loadu_si512((const int16_t *)panel + i);
}

/* Asks for what `ahead` names, in step s of a tile: for the lines of a row of the result every few steps, since all at
 * once would keep those of the panel waiting. */
static QK_INLINE void ask_ahead(const qk_ahead *ahead, size_t s, const int rows)
{
    enum { EVERY = 8 };
    __builtin_prefetch(ahead->read + s * ahead->step, 0, 2);
    if (s % EVERY || s / EVERY >= (size_t)rows) return;
    char *line = ahead->write + s / EVERY * ahead->row_stride;
    __builtin_prefetch(line, 1), __builtin_prefetch(line + 64, 1);
}

/* c (rows x NR, ldc) = init if it is `started`, else 0, + a * panel; lda is in bytes. `rows`, `kind` and `started` are
 * constants where this is inlined: the accumulators of absent rows vanish. Each has a name, since gcc keeps arrays of
 * them in memory. Panels may come from the L3 cache or from memory: asking 32 steps ahead gains 3% at 32 x 4096 x 4096,
 * and nothing at few rows, where it would cost; a panel that was just widened is near. `more` may be NULL. A row has
 * one line, or the lines of a window. */
static QK_INLINE void exact_rows(const int rows, const int kind, const int started, qk_window w, const char *a,
                                 size_t lda, const int8_t *panel, const int32_t *init, int32_t *c, size_t ldc,
                                 const qk_ahead *more)
{
    const size_t half = kind == INT8 ? NR : 2 * NR, ahead = kind == INT16 ? 256 * NR : 128 * NR; /* bytes */
    const char *a3 = a + 3 * lda, *a6 = a + 6 * lda, *a9 = a + 9 * lda;
    if (kind != BYTES) ask_for_rows(rows, c, ldc, NR);
    const __m512i i0 = started ? _mm512_loadu_si512(init) : _mm512_setzero_si512();
    const __m512i i1 = started ? _mm512_loadu_si512(init + 16) : _mm512_setzero_si512();
    __m512i c00 = i0, c01 = i1, c10 = i0, c11 = i1, c20 = i0, c21 = i1, c30 = i0, c31 = i1;
    __m512i c40 = i0, c41 = i1, c50 = i0, c51 = i1, c60 = i0, c61 = i1, c70 = i0, c71 = i1;
    __m512i c80 = i0, c81 = i1, c90 = i0, c91 = i1, ca0 = i0, ca1 = i1, cb0 = i0, cb1 = i1;
#define ADD(at, left, right)                                                                                           \
    v = broadcast4(at), left = multiply_add_codes(kind, left, v, b0), right = multiply_add_codes(kind, right, v, b1)
    size_t s = 0;
    for (size_t line = 0; line < w.lines; line++, a += w.skip, a3 += w.skip, a6 += w.skip, a9 += w.skip)
        for (const size_t end = s + w.steps; s < end; s++, a += 4, a3 += 4, a6 += 4, a9 += 4, panel += 2 * half) {
            const __m512i b0 = load_int16(panel, 0, kind == INT8), b1 = load_int16(panel + half, 0, kind == INT8);
            if (rows > 4 && (kind != INT16 || !started))
                __builtin_prefetch(panel + ahead), __builtin_prefetch(panel + ahead + half);
            if (more) ask_ahead(more, s, rows);
            __m512i v;
            ADD(a, c00, c01);
            if (rows > 1) ADD(a + lda, c10, c11);
            if (rows > 2) ADD(a + 2 * lda, c20, c21);
            if (rows > 3) ADD(a3, c30, c31);
            if (rows > 4) ADD(a3 + lda, c40, c41);
            if (rows > 5) ADD(a3 + 2 * lda, c50, c51);
            if (rows > 6) ADD(a6, c60, c61);
            if (rows > 7) ADD(a6 + lda, c70, c71);
            if (rows > 8) ADD(a6 + 2 * lda, c80, c81);
            if (rows > 9) ADD(a9, c90, c91);
            if (rows > 10) ADD(a9 + lda, ca0, ca1);
            if (rows > 11) ADD(a9 + 2 * lda, cb0, cb1);
        }
#undef ADD
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
    const qk_window row = {1, steps, 0};
    ROWS_12(rows, exact_rows, narrow ? INT8 : INT16, started, row, (const char *)a, lda * sizeof *a, panel, init, c,
            ldc, NULL);
}

#endif
