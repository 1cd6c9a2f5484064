/* Registers of AVX2, for its files: within the target of the file that includes this. */
#ifndef QK_AVX2_H
#define QK_AVX2_H

#include <stdint.h>
#include <string.h>

#include "kernels/x86/target.h"

static inline __m256i broadcast4(const void *p)
{
    int32_t codes;
    memcpy(&codes, p, sizeof codes);
    return _mm256_set1_epi32(codes);
}

/* A register, and operations on it, by names that avx512.h has too: for files that serve both (maddubs.h). */
typedef __m256i reg;
enum { REG = 32 }; /* bytes */

static inline reg load_reg(const void *p) { return _mm256_loadu_si256((const __m256i *)p); }
static inline void store_reg(void *p, reg v) { _mm256_storeu_si256((__m256i *)p, v); }
static inline void store_past_caches(void *p, reg v) { _mm256_stream_si256((__m256i *)p, v); } /* p at half a line */
static inline reg zero_reg(void) { return _mm256_setzero_si256(); }
static inline reg all_i8(int v) { return _mm256_set1_epi8((char)v); }
static inline reg all_i16(int v) { return _mm256_set1_epi16((short)v); }
static inline reg all_i32(int v) { return _mm256_set1_epi32(v); }
static inline reg all_i32_at(const void *p) { return broadcast4(p); }
static inline reg abs_i8(reg v) { return _mm256_abs_epi8(v); }
static inline reg negative_i8(reg v) { return _mm256_cmpgt_epi8(_mm256_setzero_si256(), v); } /* -1 or 0 */
static inline reg max_i32(reg a, reg b) { return _mm256_max_epi32(a, b); }
static inline reg min_i32(reg a, reg b) { return _mm256_min_epi32(a, b); }
static inline reg both(reg a, reg b) { return _mm256_and_si256(a, b); }
static inline reg but_not(reg a, reg b) { return _mm256_andnot_si256(a, b); } /* b without a */
static inline reg exclusive(reg a, reg b) { return _mm256_xor_si256(a, b); }
static inline reg exclusive3(reg a, reg b, reg c) { return exclusive(exclusive(a, b), c); }
static inline reg maddubs(reg a, reg b) { return _mm256_maddubs_epi16(a, b); }
static inline reg madd_i16(reg a, reg b) { return _mm256_madd_epi16(a, b); }
static inline reg add_i8(reg a, reg b) { return _mm256_add_epi8(a, b); }
static inline reg sub_i8(reg a, reg b) { return _mm256_sub_epi8(a, b); }
static inline reg subs_i8(reg a, reg b) { return _mm256_subs_epi8(a, b); }
static inline reg add_i16(reg a, reg b) { return _mm256_add_epi16(a, b); }
static inline reg add_i32(reg a, reg b) { return _mm256_add_epi32(a, b); }
static inline reg sub_i32(reg a, reg b) { return _mm256_sub_epi32(a, b); }
/* c + v, of sums in a loop. Left to itself gcc would reassociate them across steps, spill, and copy each accumulator.
 */
static inline reg add_to_i32(reg c, reg v)
{
#if QK_ASM
    __asm__("vpaddd %1, %0, %0" : "+x"(c) : "x"(v));
    return c;
#else
    return _mm256_add_epi32(c, v);
#endif
}
static inline reg times_128_i32(reg v) { return _mm256_slli_epi32(v, 7); }
static inline reg pack_u16(reg a, reg b) { return _mm256_packus_epi16(a, b); } /* in some order */
static inline reg adds_u8(reg a, reg b) { return _mm256_adds_epu8(a, b); }
static inline int none_above_u8(reg v, int most)
{
    const reg beyond = _mm256_subs_epu8(v, all_i8(most));
    return _mm256_testz_si256(beyond, beyond);
}
static inline int none_above_u16(reg v, int most)
{
    const reg beyond = _mm256_subs_epu16(v, all_i16(most));
    return _mm256_testz_si256(beyond, beyond);
}

typedef __m256 floats;

static inline floats load_floats(const float *p) { return _mm256_loadu_ps(p); }
static inline floats all_floats(float v) { return _mm256_set1_ps(v); }
static inline floats to_floats(reg v) { return _mm256_cvtepi32_ps(v); }
static inline floats smaller_of(floats a, floats b) { return _mm256_min_ps(a, b); }
static inline floats larger_of(floats a, floats b) { return _mm256_max_ps(a, b); } /* b if one is NaN, as above */
static inline floats sum_of(floats a, floats b) { return _mm256_add_ps(a, b); }
static inline floats difference_of(floats a, floats b) { return _mm256_sub_ps(a, b); }
static inline floats product_of(floats a, floats b) { return _mm256_mul_ps(a, b); }
static inline floats add_product(floats c, floats a, floats b) { return _mm256_fmadd_ps(a, b, c); }
static inline floats subtract_product(floats c, floats a, floats b) { return _mm256_fnmadd_ps(a, b, c); }
static inline floats rounded_floats(floats v)
{
    return _mm256_round_ps(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
static inline reg to_i32(floats v) { return _mm256_cvtps_epi32(v); }
static inline reg packs_i32(reg a, reg b) { return _mm256_packs_epi32(a, b); } /* in some order, as these: */
static inline reg packs_i16(reg a, reg b) { return _mm256_packs_epi16(a, b); }
static inline reg adds_i16(reg a, reg b) { return _mm256_adds_epi16(a, b); }
static inline reg min_i16(reg a, reg b) { return _mm256_min_epi16(a, b); }
static inline reg min_u16(reg a, reg b) { return _mm256_min_epu16(a, b); }
static inline reg min_i8(reg a, reg b) { return _mm256_min_epi8(a, b); }
static inline reg max_i8(reg a, reg b) { return _mm256_max_epi8(a, b); }
static inline reg min_u8(reg a, reg b) { return _mm256_min_epu8(a, b); }
static inline reg max_u8(reg a, reg b) { return _mm256_max_epu8(a, b); }
static inline int any_equal_i16(reg v, int to) { return _mm256_movemask_epi8(_mm256_cmpeq_epi16(v, all_i16(to))); }
/* Bytes of four registers, packed twice, in the order of these. */
static inline reg in_order(reg v) { return _mm256_permutevar8x32_epi32(v, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7)); }
static inline void store_halves(void *low, void *high, reg v)
{
    _mm_storeu_si128((__m128i *)low, _mm256_castsi256_si128(v));
    _mm_storeu_si128((__m128i *)high, _mm256_extracti128_si256(v, 1));
}
/* The lowest bytes of the numbers of four registers. */
static inline reg low_bytes(reg a, reg b, reg c, reg d)
{
    const reg byte = _mm256_set1_epi32(255);
    const reg ab = _mm256_packs_epi32(_mm256_and_si256(a, byte), _mm256_and_si256(b, byte));
    const reg cd = _mm256_packs_epi32(_mm256_and_si256(c, byte), _mm256_and_si256(d, byte));
    return in_order(_mm256_packus_epi16(ab, cd));
}
static inline reg bits_of_floats(floats v) { return _mm256_castps_si256(v); }
static inline reg or_differences(reg seen, reg a, reg b) { return _mm256_or_si256(seen, _mm256_xor_si256(a, b)); }
static inline int is_zero(reg v) { return _mm256_testz_si256(v, v); }
static inline reg widen_i8(const void *p) { return _mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)p)); }
static inline reg widen_u8(const void *p) { return _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)p)); }

/* 16 bytes in each lane: of rows that lie so far apart, the same ones, interleaved (of lower or upper halves). */
static inline reg load_lanes(const uint8_t *p, size_t apart)
{
    return _mm256_inserti128_si256(_mm256_castsi128_si256(_mm_loadu_si128((const __m128i *)p)),
                                   _mm_loadu_si128((const __m128i *)(p + apart)), 1);
}
static inline reg all_lanes(const void *p) { return _mm256_broadcastsi128_si256(_mm_loadu_si128(p)); }
static inline reg low_u8(reg a, reg b) { return _mm256_unpacklo_epi8(a, b); }
static inline reg high_u8(reg a, reg b) { return _mm256_unpackhi_epi8(a, b); }
static inline reg low_u16(reg a, reg b) { return _mm256_unpacklo_epi16(a, b); }
static inline reg high_u16(reg a, reg b) { return _mm256_unpackhi_epi16(a, b); }
/* The first so many bytes, no more of which are read, and then zeros: whole fours of them at once. */
typedef struct {
    size_t n;
    __m256i fours;
} some_codes;
static inline some_codes first_codes(size_t n)
{
    const __m256i number = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    return (some_codes){n, _mm256_cmpgt_epi32(_mm256_set1_epi32(n >= REG ? 8 : (int)n / 4), number)};
}
static inline reg load_some(const uint8_t *p, some_codes some)
{
    if (some.n % 4 == 0) return _mm256_maskload_epi32((const int *)p, some.fours);
    uint8_t codes[REG] = {0};
    memcpy(codes, p, some.n < REG ? some.n : REG);
    return load_reg(codes);
}
static inline void store_some(uint8_t *p, reg v, some_codes some)
{
    uint8_t codes[REG];
    store_reg(codes, v);
    memcpy(p, codes, some.n < REG ? some.n : REG);
}
/* A register of two parts, of each of which these are the first bytes. */
static inline reg load_parts(const uint8_t *const *p, const int parts, some_codes some)
{
    (void)parts;
    return _mm256_permute2x128_si256(load_some(p[0], some), load_some(p[1], some), 0x20);
}
/* Of each part of v the first bytes, `at` bytes from its place on, unless that is NULL. */
static inline void store_parts(uint8_t *const *p, size_t at, reg v, const int parts, some_codes some)
{
    (void)parts;
    if (p[0]) store_some(p[0] + at, v, some);
    if (p[1]) store_some(p[1] + at, _mm256_permute2x128_si256(v, v, 0x11), some);
}
static inline reg look_up_u8(reg table, reg index) { return _mm256_shuffle_epi8(table, index); }
static inline reg sub_i16(reg a, reg b) { return _mm256_sub_epi16(a, b); }
static inline reg over_16_i16(reg v) { return _mm256_srli_epi16(v, 4); }
static inline reg over_256_i16(reg v) { return _mm256_srli_epi16(v, 8); }
static inline reg times_256_i16(reg v) { return _mm256_slli_epi16(v, 8); }
/* A bit for each word of a that is below the limit, and of b, in turns. */
static inline uint64_t words_below(reg a, reg b, reg limit)
{
    const reg zero = _mm256_setzero_si256(), odd = _mm256_set1_epi16((short)0xff00);
    const reg not_a = _mm256_cmpeq_epi16(_mm256_subs_epu16(limit, a), zero);
    const reg not_b = _mm256_cmpeq_epi16(_mm256_subs_epu16(limit, b), zero);
    return (uint32_t)~_mm256_movemask_epi8(_mm256_blendv_epi8(not_a, not_b, odd));
}

static inline void write_floats(float *p, floats v) { _mm256_storeu_ps(p, v); }

/* Some of the floats: those that are equal, or below others (of NaN none); they, and 0 for the rest; the others added
 * to c, or they subtracted. */
typedef __m256 choice;
static inline choice equal_floats(floats a, floats b) { return _mm256_cmp_ps(a, b, _CMP_EQ_OQ); }
static inline choice below(floats a, floats b) { return _mm256_cmp_ps(a, b, _CMP_LT_OQ); }
static inline choice both_chosen(choice a, choice b) { return _mm256_and_ps(a, b); }
static inline choice chosen_but_not(choice a, choice b) { return _mm256_andnot_ps(b, a); }
static inline floats chosen(choice some, floats v) { return _mm256_and_ps(some, v); }
static inline choice not_at_most_floats(floats a, floats b) { return _mm256_cmp_ps(a, b, _CMP_NLE_UQ); }
static inline choice differently_chosen(choice a, choice b) { return _mm256_xor_ps(a, b); }
static inline choice one_chosen(choice a, choice b) { return _mm256_or_ps(a, b); }
static inline int any_nan(floats v) { return _mm256_movemask_ps(_mm256_cmp_ps(v, v, _CMP_UNORD_Q)) != 0; }
static inline int any_chosen(choice some) { return _mm256_movemask_ps(some) != 0; }
static inline floats add_unless(floats c, choice some, floats v) { return _mm256_add_ps(c, _mm256_andnot_ps(some, v)); }
static inline floats subtract_chosen(floats c, choice some, floats v)
{
    return _mm256_sub_ps(c, _mm256_and_ps(some, v));
}

/* Adds them to as many doubles. */
static inline void add_to_doubles(double *to, floats v)
{
    _mm256_storeu_pd(to, _mm256_add_pd(_mm256_loadu_pd(to), _mm256_cvtps_pd(_mm256_castps256_ps128(v))));
    _mm256_storeu_pd(to + 4, _mm256_add_pd(_mm256_loadu_pd(to + 4), _mm256_cvtps_pd(_mm256_extractf128_ps(v, 1))));
}

/* Tables of 16 entries, in which floats are found by lanes of numbers: vpermps reads the low 3 bits of these; the
 * fourth, moved to the sign, chooses between the halves. Of two such tables the second serves the chosen ones. */
typedef struct {
    __m256 low, high;
} table16;
typedef struct {
    table16 first, second;
} table32;
static inline table16 load_table16(const float *p) { return (table16){_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
static inline table32 load_table32(const float *p) { return (table32){load_table16(p), load_table16(p + 16)}; }
static inline floats look_up16(table16 t, reg i)
{
    const __m256 low = _mm256_permutevar8x32_ps(t.low, i), high = _mm256_permutevar8x32_ps(t.high, i);
    return _mm256_blendv_ps(low, high, _mm256_castsi256_ps(_mm256_slli_epi32(i, 28)));
}
static inline floats look_up32(table32 t, reg i, choice second)
{
    return _mm256_blendv_ps(look_up16(t.first, i), look_up16(t.second, i), second);
}

/* Tables of 16 bytes; bytes chosen as the lanes of 4 registers are, and one or the other by that. */
typedef __m256i byte_choice;
static inline reg all_16_bytes(const void *p) { return _mm256_broadcastsi128_si256(_mm_loadu_si128(p)); }
static inline reg look_up_bytes(reg table, reg i) { return _mm256_shuffle_epi8(table, i); }
static inline byte_choice chosen_bytes(choice a, choice b, choice c, choice d)
{
    const reg ab = _mm256_packs_epi32(_mm256_castps_si256(a), _mm256_castps_si256(b));
    return in_order(_mm256_packs_epi16(ab, _mm256_packs_epi32(_mm256_castps_si256(c), _mm256_castps_si256(d))));
}
static inline reg either_bytes(byte_choice some, reg a, reg b) { return _mm256_blendv_epi8(b, a, some); }

/* Lanes of 64 bits, for random.h: products of their lower halves; their upper halves; halves swapped; of the lower
 * half alone, exclusive3; turned by some bits; shifted to the left; 0, 1, 2 and so on. */
static inline reg all_i64(uint64_t v) { return _mm256_set1_epi64x((long long)v); }
static inline reg add_i64(reg a, reg b) { return _mm256_add_epi64(a, b); }
static inline reg product_u32(reg a, reg b) { return _mm256_mul_epu32(a, b); }
static inline reg upper_u32(reg v) { return _mm256_srli_epi64(v, 32); }
static inline reg swapped_u32(reg v) { return _mm256_shuffle_epi32(v, 0xb1); }
static inline reg exclusive_lower(reg a, reg b, reg c)
{
    return exclusive(a, both(exclusive(b, c), all_i64(UINT32_MAX)));
}
static inline reg turned_i64(reg v, const int bits)
{
    return _mm256_or_si256(_mm256_slli_epi64(v, bits), _mm256_srli_epi64(v, 64 - bits));
}
static inline reg turned_24_i64(reg v)
{
    const __m128i bytes = _mm_setr_epi8(5, 6, 7, 0, 1, 2, 3, 4, 13, 14, 15, 8, 9, 10, 11, 12);
    return _mm256_shuffle_epi8(v, _mm256_broadcastsi128_si256(bytes));
}
static inline reg shifted_i64(reg v, const int bits) { return _mm256_slli_epi64(v, bits); }
static inline reg lane_numbers_i64(void) { return _mm256_setr_epi64x(0, 1, 2, 3); }
static inline reg widen_u16(const void *p) { return _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p)); }
static inline reg over_65536_i32(reg v) { return _mm256_srai_epi32(v, 16); }
/* Upper halves of 32 bits, in the order of packs_i32; whether a number has none of the bits. */
static inline reg upper_u16(reg a, reg b)
{
    return _mm256_packs_epi32(_mm256_srai_epi32(a, 16), _mm256_srai_epi32(b, 16));
}
static inline int any_without_i32(reg v, int bits)
{
    const reg none = _mm256_cmpeq_epi32(_mm256_and_si256(v, _mm256_set1_epi32(bits)), _mm256_setzero_si256());
    return _mm256_movemask_epi8(none);
}
static inline void store_low_bytes(void *p, reg v)
{
    const __m256i first = _mm256_setr_epi32(0x0c080400, -1, -1, -1, 0x0c080400, -1, -1, -1);
    const __m256i low = _mm256_shuffle_epi8(v, first);
    const __m128i codes = _mm_unpacklo_epi32(_mm256_castsi256_si128(low), _mm256_extracti128_si256(low, 1));
    _mm_storel_epi64((__m128i *)p, codes);
}

#endif
