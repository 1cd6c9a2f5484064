/* Registers of AVX-512, for its files: within the target of the file that includes this. */
#ifndef QK_AVX512_H
#define QK_AVX512_H

#include <stdint.h>
#include <string.h>

#include "kernels/x86/target.h"

static inline __m512i broadcast4(const void *p)
{
    int32_t codes;
    memcpy(&codes, p, sizeof codes);
    return _mm512_set1_epi32(codes);
}

/* A register, and operations on it, by names that avx2.h has too: for files that serve both (maddubs.h). */
typedef __m512i reg;
enum { REG = 64 }; /* bytes */

static inline reg load_reg(const void *p) { return _mm512_loadu_si512(p); }
static inline void store_reg(void *p, reg v) { _mm512_storeu_si512(p, v); }
static inline void store_past_caches(void *p, reg v) { _mm512_stream_si512((__m512i *)p, v); } /* p at a cache line */
static inline reg zero_reg(void) { return _mm512_setzero_si512(); }
static inline reg all_i8(int v) { return _mm512_set1_epi8((char)v); }
static inline reg all_i16(int v) { return _mm512_set1_epi16((short)v); }
static inline reg all_i32(int v) { return _mm512_set1_epi32(v); }
static inline reg all_i32_at(const void *p) { return broadcast4(p); }
static inline reg abs_i8(reg v) { return _mm512_abs_epi8(v); }
static inline reg negative_i8(reg v) { return _mm512_movm_epi8(_mm512_movepi8_mask(v)); } /* -1 or 0 */
static inline reg max_i32(reg a, reg b) { return _mm512_max_epi32(a, b); }
static inline reg min_i32(reg a, reg b) { return _mm512_min_epi32(a, b); }
static inline reg both(reg a, reg b) { return _mm512_and_si512(a, b); }
static inline reg but_not(reg a, reg b) { return _mm512_andnot_si512(a, b); } /* b without a */
static inline reg exclusive(reg a, reg b) { return _mm512_xor_si512(a, b); }
static inline reg exclusive3(reg a, reg b, reg c) { return _mm512_ternarylogic_epi32(a, b, c, 0x96); }
static inline reg maddubs(reg a, reg b) { return _mm512_maddubs_epi16(a, b); }
static inline reg madd_i16(reg a, reg b) { return _mm512_madd_epi16(a, b); }
static inline reg add_i8(reg a, reg b) { return _mm512_add_epi8(a, b); }
static inline reg sub_i8(reg a, reg b) { return _mm512_sub_epi8(a, b); }
static inline reg subs_i8(reg a, reg b) { return _mm512_subs_epi8(a, b); }
static inline reg add_i16(reg a, reg b) { return _mm512_add_epi16(a, b); }
static inline reg add_i32(reg a, reg b) { return _mm512_add_epi32(a, b); }
static inline reg sub_i32(reg a, reg b) { return _mm512_sub_epi32(a, b); }
/* c + v, of sums in a loop. Left to itself gcc would reassociate them across steps, spill, and copy each accumulator.
 */
static inline reg add_to_i32(reg c, reg v)
{
#if QK_ASM
    __asm__("vpaddd %1, %0, %0" : "+v"(c) : "v"(v));
    return c;
#else
    return _mm512_add_epi32(c, v);
#endif
}
static inline reg times_128_i32(reg v) { return _mm512_slli_epi32(v, 7); }
static inline reg pack_u16(reg a, reg b) { return _mm512_packus_epi16(a, b); } /* in some order */
static inline reg adds_u8(reg a, reg b) { return _mm512_adds_epu8(a, b); }
static inline int none_above_u8(reg v, int most)
{
    const reg beyond = _mm512_subs_epu8(v, all_i8(most));
    return !_mm512_test_epi32_mask(beyond, beyond);
}
static inline int none_above_u16(reg v, int most)
{
    const reg beyond = _mm512_subs_epu16(v, all_i16(most));
    return !_mm512_test_epi32_mask(beyond, beyond);
}

typedef __m512 floats;

static inline floats load_floats(const float *p) { return _mm512_loadu_ps(p); }
static inline floats all_floats(float v) { return _mm512_set1_ps(v); }
static inline floats to_floats(reg v) { return _mm512_cvtepi32_ps(v); }
static inline floats smaller_of(floats a, floats b) { return _mm512_min_ps(a, b); }
static inline floats larger_of(floats a, floats b) { return _mm512_max_ps(a, b); } /* b if one is NaN, as above */
static inline floats sum_of(floats a, floats b) { return _mm512_add_ps(a, b); }
static inline floats difference_of(floats a, floats b) { return _mm512_sub_ps(a, b); }
static inline floats product_of(floats a, floats b) { return _mm512_mul_ps(a, b); }
static inline floats add_product(floats c, floats a, floats b) { return _mm512_fmadd_ps(a, b, c); }
static inline floats subtract_product(floats c, floats a, floats b) { return _mm512_fnmadd_ps(a, b, c); }
/* Half to even, of magnitudes below 2^22; of others some number beyond: two additions are on pipes that products leave
 * free. */
static inline floats rounded_floats(floats v)
{
    const __m512 rounder = _mm512_set1_ps(0x1.8p23f);
    return _mm512_sub_ps(_mm512_add_ps(v, rounder), rounder);
}
static inline reg to_i32(floats v) { return _mm512_cvtps_epi32(v); }
static inline reg packs_i32(reg a, reg b) { return _mm512_packs_epi32(a, b); } /* in some order, as these: */
static inline reg packs_i16(reg a, reg b) { return _mm512_packs_epi16(a, b); }
static inline reg adds_i16(reg a, reg b) { return _mm512_adds_epi16(a, b); }
static inline reg min_i16(reg a, reg b) { return _mm512_min_epi16(a, b); }
static inline reg min_u16(reg a, reg b) { return _mm512_min_epu16(a, b); }
static inline reg min_i8(reg a, reg b) { return _mm512_min_epi8(a, b); }
static inline reg max_i8(reg a, reg b) { return _mm512_max_epi8(a, b); }
static inline reg min_u8(reg a, reg b) { return _mm512_min_epu8(a, b); }
static inline reg max_u8(reg a, reg b) { return _mm512_max_epu8(a, b); }
static inline int any_equal_i16(reg v, int to) { return _mm512_cmpeq_epi16_mask(v, all_i16(to)) != 0; }
/* Bytes of four registers, packed twice, in the order of these. */
static inline reg in_order(reg v)
{
    return _mm512_permutexvar_epi32(_mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15), v);
}
static inline void store_halves(void *low, void *high, reg v)
{
    _mm256_storeu_si256((__m256i *)low, _mm512_castsi512_si256(v));
    _mm256_storeu_si256((__m256i *)high, _mm512_extracti64x4_epi64(v, 1));
}
/* The lowest bytes of the numbers of four registers. */
static inline reg low_bytes(reg a, reg b, reg c, reg d)
{
    const reg bytes = _mm512_set1_epi32(0x0c080400);
    reg v = _mm512_mask_shuffle_epi8(_mm512_shuffle_epi8(a, bytes), 0x00f000f000f000f0, b, bytes);
    v = _mm512_mask_shuffle_epi8(v, 0x0f000f000f000f00, c, bytes);
    return in_order(_mm512_mask_shuffle_epi8(v, 0xf000f000f000f000, d, bytes));
}
static inline reg bits_of_floats(floats v) { return _mm512_castps_si512(v); }
static inline reg or_differences(reg seen, reg a, reg b) { return _mm512_ternarylogic_epi32(seen, a, b, 0xf6); }
static inline int is_zero(reg v) { return !_mm512_test_epi32_mask(v, v); }
static inline reg widen_i8(const void *p) { return _mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)p)); }
static inline reg widen_u8(const void *p) { return _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)p)); }

/* 16 bytes in each lane: of rows that lie so far apart, the same ones, interleaved (of lower or upper halves). */
static inline reg load_lanes(const uint8_t *p, size_t apart)
{
    const __m128i *p0 = (const __m128i *)p, *p1 = (const __m128i *)(p + apart);
    const __m128i *p2 = (const __m128i *)(p + 2 * apart), *p3 = (const __m128i *)(p + 3 * apart);
    const reg two = _mm512_inserti32x4(_mm512_castsi128_si512(_mm_loadu_si128(p0)), _mm_loadu_si128(p1), 1);
    return _mm512_inserti32x4(_mm512_inserti32x4(two, _mm_loadu_si128(p2), 2), _mm_loadu_si128(p3), 3);
}
static inline reg all_lanes(const void *p) { return _mm512_broadcast_i32x4(_mm_loadu_si128(p)); }
static inline reg low_u8(reg a, reg b) { return _mm512_unpacklo_epi8(a, b); }
static inline reg high_u8(reg a, reg b) { return _mm512_unpackhi_epi8(a, b); }
static inline reg low_u16(reg a, reg b) { return _mm512_unpacklo_epi16(a, b); }
static inline reg high_u16(reg a, reg b) { return _mm512_unpackhi_epi16(a, b); }
/* The first so many bytes, no more of which are read, and then zeros. */
typedef __mmask64 some_codes;
static inline some_codes first_codes(size_t n) { return n >= REG ? ~0ull : (1ull << n) - 1; }
static inline reg load_some(const uint8_t *p, some_codes some) { return _mm512_maskz_loadu_epi8(some, p); }
static inline void store_some(uint8_t *p, reg v, some_codes some) { _mm512_mask_storeu_epi8(p, some, v); }
/* A register of two or four parts, of each of which these are the first bytes; `parts` is a constant. */
static inline __attribute__((always_inline)) reg load_parts(const uint8_t *const *p, const int parts, some_codes some)
{
    if (parts == 2)
        return _mm512_inserti64x4(_mm512_castsi256_si512(_mm256_maskz_loadu_epi8((__mmask32)some, p[0])),
                                  _mm256_maskz_loadu_epi8((__mmask32)some, p[1]), 1);
    const __mmask16 mask = (__mmask16)some;
    const reg two = _mm512_inserti32x4(_mm512_castsi128_si512(_mm_maskz_loadu_epi8(mask, p[0])),
                                       _mm_maskz_loadu_epi8(mask, p[1]), 1);
    const reg three = _mm512_inserti32x4(two, _mm_maskz_loadu_epi8(mask, p[2]), 2);
    return _mm512_inserti32x4(three, _mm_maskz_loadu_epi8(mask, p[3]), 3);
}
/* Of each part of v the first bytes, `at` bytes from its place on, unless that is NULL. */
static inline __attribute__((always_inline)) void store_parts(uint8_t *const *p, size_t at, reg v, const int parts,
                                                              some_codes some)
{
    if (p[0]) _mm512_mask_storeu_epi8(p[0] + at, some, v);
    if (parts == 2) {
        if (p[1]) _mm256_mask_storeu_epi8(p[1] + at, (__mmask32)some, _mm512_extracti64x4_epi64(v, 1));
        return;
    }
    if (p[1]) _mm_mask_storeu_epi8(p[1] + at, (__mmask16)some, _mm512_extracti32x4_epi32(v, 1));
    if (p[2]) _mm_mask_storeu_epi8(p[2] + at, (__mmask16)some, _mm512_extracti32x4_epi32(v, 2));
    if (p[3]) _mm_mask_storeu_epi8(p[3] + at, (__mmask16)some, _mm512_extracti32x4_epi32(v, 3));
}
static inline reg look_up_u8(reg table, reg index) { return _mm512_shuffle_epi8(table, index); }
static inline reg sub_i16(reg a, reg b) { return _mm512_sub_epi16(a, b); }
static inline reg over_16_i16(reg v) { return _mm512_srli_epi16(v, 4); }
static inline reg over_256_i16(reg v) { return _mm512_srli_epi16(v, 8); }
static inline reg times_256_i16(reg v) { return _mm512_slli_epi16(v, 8); }
/* A bit for each word of a that is below the limit, and of b, in turns. */
static inline uint64_t words_below(reg a, reg b, reg limit)
{
    const reg under_a = _mm512_subs_epu16(limit, a), under_b = _mm512_subs_epu16(limit, b);
    const reg even = _mm512_movm_epi16(_mm512_test_epi16_mask(under_a, under_a));
    const reg odd = _mm512_movm_epi16(_mm512_test_epi16_mask(under_b, under_b));
    return _mm512_movepi8_mask(_mm512_mask_mov_epi8(even, 0xaaaaaaaaaaaaaaaa, odd));
}

static inline void write_floats(float *p, floats v) { _mm512_storeu_ps(p, v); }

/* Some of the floats: those that are equal, or below others (of NaN none); they, and 0 for the rest; the others added
 * to c, or they subtracted. */
typedef __mmask16 choice;
static inline choice equal_floats(floats a, floats b) { return _mm512_cmp_ps_mask(a, b, _CMP_EQ_OQ); }
static inline choice below(floats a, floats b) { return _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ); }
static inline choice both_chosen(choice a, choice b) { return (choice)(a & b); }
static inline choice chosen_but_not(choice a, choice b) { return (choice)(a & ~b); }
static inline floats chosen(choice some, floats v) { return _mm512_maskz_mov_ps(some, v); }
static inline choice not_at_most_floats(floats a, floats b) { return _mm512_cmp_ps_mask(a, b, _CMP_NLE_UQ); }
static inline choice differently_chosen(choice a, choice b) { return (choice)(a ^ b); }
static inline choice one_chosen(choice a, choice b) { return (choice)(a | b); }
static inline int any_nan(floats v) { return _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q) != 0; }
static inline int any_chosen(choice some) { return some != 0; }
static inline floats add_unless(floats c, choice some, floats v) { return _mm512_mask_add_ps(c, (choice)~some, c, v); }
static inline floats subtract_chosen(floats c, choice some, floats v) { return _mm512_mask_sub_ps(c, some, c, v); }

/* Adds them to as many doubles. */
static inline void add_to_doubles(double *to, floats v)
{
    _mm512_storeu_pd(to, _mm512_add_pd(_mm512_loadu_pd(to), _mm512_cvtps_pd(_mm512_castps512_ps256(v))));
    _mm512_storeu_pd(to + 8, _mm512_add_pd(_mm512_loadu_pd(to + 8), _mm512_cvtps_pd(_mm512_extractf32x8_ps(v, 1))));
}

/* Tables of 16 entries, in which floats are found by lanes of numbers. Of two such tables the second serves the chosen
 * ones. */
typedef __m512 table16;
typedef struct {
    __m512 first, second;
} table32;
static inline table16 load_table16(const float *p) { return _mm512_loadu_ps(p); }
static inline table32 load_table32(const float *p) { return (table32){load_table16(p), load_table16(p + 16)}; }
static inline floats look_up16(table16 t, reg i) { return _mm512_permutexvar_ps(i, t); }
static inline floats look_up32(table32 t, reg i, choice second)
{
    return _mm512_permutex2var_ps(t.first, _mm512_mask_or_epi32(i, second, i, _mm512_set1_epi32(16)), t.second);
}

/* Tables of 16 bytes; bytes chosen as the lanes of 4 registers are, and one or the other by that. */
typedef __mmask64 byte_choice;
static inline reg all_16_bytes(const void *p) { return _mm512_broadcast_i32x4(_mm_loadu_si128(p)); }
static inline reg look_up_bytes(reg table, reg i) { return _mm512_shuffle_epi8(table, i); }
static inline byte_choice chosen_bytes(choice a, choice b, choice c, choice d)
{
    return (uint64_t)((uint32_t)a | (uint32_t)b << 16) | (uint64_t)((uint32_t)c | (uint32_t)d << 16) << 32;
}
static inline reg either_bytes(byte_choice some, reg a, reg b) { return _mm512_mask_blend_epi8(some, b, a); }

/* Lanes of 64 bits, for random.h: products of their lower halves; their upper halves; halves swapped; of the lower
 * half alone, exclusive3; turned by some bits; shifted to the left; 0, 1, 2 and so on. */
static inline reg all_i64(uint64_t v) { return _mm512_set1_epi64((long long)v); }
static inline reg add_i64(reg a, reg b) { return _mm512_add_epi64(a, b); }
static inline reg product_u32(reg a, reg b) { return _mm512_mul_epu32(a, b); }
static inline reg upper_u32(reg v) { return _mm512_srli_epi64(v, 32); }
static inline reg swapped_u32(reg v) { return _mm512_shuffle_epi32(v, 0xb1); }
static inline reg exclusive_lower(reg a, reg b, reg c) { return _mm512_mask_ternarylogic_epi32(a, 0x5555, b, c, 0x96); }
static inline reg turned_i64(reg v, const int bits) { return _mm512_rolv_epi64(v, all_i64(bits)); }
static inline reg turned_24_i64(reg v) { return turned_i64(v, 24); }
static inline reg shifted_i64(reg v, const int bits) { return _mm512_slli_epi64(v, (unsigned)bits); }
static inline reg lane_numbers_i64(void) { return _mm512_setr_epi64(0, 1, 2, 3, 4, 5, 6, 7); }
static inline reg widen_u16(const void *p) { return _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p)); }
static inline reg over_65536_i32(reg v) { return _mm512_srai_epi32(v, 16); }
/* Upper halves of 32 bits, in the order of packs_i32; whether a number has none of the bits. */
static inline reg upper_u16(reg a, reg b)
{
    const reg words = _mm512_setr_epi32(0x030001, 0x070005, 0x230021, 0x270025, 0x0b0009, 0x0f000d, 0x2b0029, 0x2f002d,
                                        0x130011, 0x170015, 0x330031, 0x370035, 0x1b0019, 0x1f001d, 0x3b0039, 0x3f003d);
    return _mm512_permutex2var_epi16(a, words, b);
}
static inline int any_without_i32(reg v, int bits) { return _mm512_testn_epi32_mask(v, _mm512_set1_epi32(bits)) != 0; }
static inline void store_low_bytes(void *p, reg v) { _mm_storeu_si128((__m128i *)p, _mm512_cvtepi32_epi8(v)); }

/* avx512vbmi.c, where qk_has_vbmi: take_table, the sum of uint32 weights that lie in four planes of 256 bytes, and
 * pq_pass_rows. */
void qk_take_table_vbmi(const uint8_t *q, uint8_t *y, size_t n, const uint8_t *table, uint8_t mask, uint8_t shift);
uint64_t qk_sum_weights_vbmi(const uint8_t *q, size_t n, const uint8_t *planes, uint8_t mask, uint8_t shift);
size_t qk_pq_pass_rows_vbmi(const uint8_t *table, size_t m, const uint8_t *codes, size_t vectors, uint16_t limit,
                            uint32_t *list, int32_t *largest);

#endif
