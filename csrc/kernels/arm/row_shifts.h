/* What sums of unsigned products have too much of (numerics 6). A file whose target has dot products sets WITH_DOTPROD
 * to 1. */
#ifndef QK_ARM_ROW_SHIFTS_H
#define QK_ARM_ROW_SHIFTS_H

#include "kernels/arm/target.h"
#include "kernels/generic/target.h"
#include "runtime/compiler.h"

#ifndef WITH_DOTPROD
#define WITH_DOTPROD 0
#endif

static QK_INLINE uint32x4_t add_codes(uint32x4_t sum, uint8x16_t codes)
{
#if WITH_DOTPROD
    return vdotq_u32(sum, codes, vdupq_n_u8(1));
#else
    return vpadalq_u16(sum, vpaddlq_u8(codes));
#endif
}

/* 16 codes, or fewer and zeros. */
static QK_INLINE uint8x16_t codes_and_zeros(const uint8_t *a, const size_t n)
{
    if (n == 16) return vld1q_u8(a);
    return vcombine_u8(n == 8 ? vld1_u8(a) : load4(a), vdup_n_u8(0));
}

/* Row by row. */
typedef struct {
    uint32x4_t s0, s1, s2, s3, s4, s5;
} six_sums;

/* n codes of each row; `rows` and n are constants where this is inlined. */
static QK_INLINE six_sums add_to_rows(const int rows, six_sums s, const uint8_t *a, size_t lda, const size_t n)
{
    s.s0 = add_codes(s.s0, codes_and_zeros(a, n));
    if (rows > 1) s.s1 = add_codes(s.s1, codes_and_zeros(a + lda, n));
    if (rows > 2) s.s2 = add_codes(s.s2, codes_and_zeros(a + 2 * lda, n));
    if (rows > 3) s.s3 = add_codes(s.s3, codes_and_zeros(a + 3 * lda, n));
    if (rows > 4) s.s4 = add_codes(s.s4, codes_and_zeros(a + 4 * lda, n));
    if (rows > 5) s.s5 = add_codes(s.s5, codes_and_zeros(a + 5 * lda, n));
    return s;
}

static QK_INLINE void shifts_of_rows(const int rows, size_t n, const uint8_t *a, size_t lda, uint32_t *shift)
{
    const uint32x4_t zero = vdupq_n_u32(0);
    six_sums s = {zero, zero, zero, zero, zero, zero};
    size_t i = 0;
    for (; i + 16 <= n; i += 16) s = add_to_rows(rows, s, a + i, lda, 16);
    for (; i < n; i += KR) s = add_to_rows(rows, s, a + i, lda, KR);
    const uint32x4_t sums[] = {s.s0, s.s1, s.s2, s.s3, s.s4, s.s5};
    for (int row = 0; row < rows; row++) shift[row] = vaddvq_u32(sums[row]) << 7;
}

/* 128 times the sum of n codes, a multiple of KR, of each row. */
static QK_NOINLINE void shifts_of(int rows, size_t n, const uint8_t *a, size_t lda, uint32_t *shift)
{
    ROWS_6(rows, shifts_of_rows, n, a, lda, shift);
}

#endif
