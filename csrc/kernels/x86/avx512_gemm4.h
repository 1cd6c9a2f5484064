/* What tiles of weights of 2 to 4 bits, and of blocks of 8-bit ones, have in common with AVX-512 VNNI (numerics 12). */
#ifndef QK_AVX512_GEMM4_H
#define QK_AVX512_GEMM4_H

#include "kernels/kernels.h"
#include "kernels/x86/cpu.h"
#include "kernels/x86/avx512.h"
#include "runtime/compiler.h"

static inline __m512i widen16(const uint8_t *p) { return _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)p)); }
static inline __m512i broadcast_codes(const int8_t *p) { return broadcast4((const uint8_t *)p); }

/* Scales 16 i .. 16 i + 15. */
static inline __m512 scales16(const uint8_t *scales, const qk_gemm4_panel *p, int i)
{
    if (p->byte_scales) {
        const __m512i bits = _mm512_slli_epi32(widen16(scales + 16 * i), 20);
        return _mm512_mul_ps(_mm512_castsi512_ps(bits), _mm512_set1_ps(p->scale_unit));
    }
    return p->half_scales ? _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)scales + i))
                          : _mm512_loadu_ps((const float *)scales + 16 * i);
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

static inline int has_vpermb(void) { return QK_ASM && qk_has_vbmi(); }

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

/* Sums of 32 columns. */
typedef struct {
    __m512i low, high;
} column_totals;

/* Stores a step, and adds it to the sums of its columns. */
static QK_INLINE void store_step(uint8_t *to, __m512i low, __m512i high, column_totals *sums)
{
    const __m512i ones = _mm512_set1_epi8(1);
    _mm512_storeu_si512(to, low), _mm512_storeu_si512(to + 64, high);
    sums->low = _mm512_dpbusd_epi32(sums->low, ones, low), sums->high = _mm512_dpbusd_epi32(sums->high, ones, high);
}

/* Stores the sums, which a panel holds with the other sign. */
static inline void store_sums(uint8_t *to, column_totals sums)
{
    _mm512_storeu_si512(to, _mm512_sub_epi32(_mm512_setzero_si512(), sums.low));
    _mm512_storeu_si512(to + 64, _mm512_sub_epi32(_mm512_setzero_si512(), sums.high));
}

/* Zero points of 16 columns, each four times. */
static inline __m512i zeros16(const uint8_t *zeros)
{
    const __m512i four = _mm512_setr_epi32(0, 0x01010101, 0x02020202, 0x03030303, 0x04040404, 0x05050505, 0x06060606,
                                           0x07070707, 0x08080808, 0x09090909, 0x0a0a0a0a, 0x0b0b0b0b, 0x0c0c0c0c,
                                           0x0d0d0d0d, 0x0e0e0e0e, 0x0f0f0f0f);
    return _mm512_shuffle_epi8(_mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)zeros)), four);
}

/* What codes stand for, in each lane of 16 bytes, unless columns have zero points of their own. */
static inline __m512i bytes_of_codes(const qk_gemm4_panel *p, int32_t zero)
{
    const __m128i codes = _mm_setr_epi8(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    return _mm512_broadcast_i32x4(p->levels ? _mm_loadu_si128((const __m128i *)p->levels)
                                            : _mm_sub_epi8(codes, _mm_set1_epi8((char)zero)));
}

/* What all rows start from: -128 times the sums of 16 columns. */
static inline __m512i column_starts16(const uint8_t *sums, const int wide, int i)
{
    const __m512i sum = wide ? _mm512_loadu_si512((const __m512i *)sums + i)
                             : _mm512_cvtepi16_epi32(_mm256_loadu_si256((const __m256i *)sums + i));
    return _mm512_slli_epi32(sum, 7);
}

/* Of plain stores of zeros gcc makes `rep stos`, which waits for the stores of the tile before. */
static QK_INLINE void clear_rows(float *y, const int rows)
{
    __m512 zero = _mm512_setzero_ps();
    QK_KEEP(zero);
    for (int i = 0; i < rows * QK_GEMM4_NR; i += 16) _mm512_storeu_ps(y + i, zero);
}

#endif
