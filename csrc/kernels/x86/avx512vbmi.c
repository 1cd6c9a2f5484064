/* AVX-512 with VBMI (Ice Lake and later, Zen 4): tables of 256 bytes, for the layers on codes of avx512.c, and of 128,
 * for its search among codes of 16 levels.
 *
 * vpermi2b looks up two registers, 128 bytes, by the low 7 bits of an index: two of them and a blend by bit 7 are a
 * table of 256, one a cycle each. A table of uint32 is four of these, a plane of bytes each, whose sums vpsadbw takes.
 */
#if defined(__x86_64__)
#include "kernels/kernels.h"
#include "kernels/x86/cpu.h"
#include "kernels/x86/target.h"
#include "runtime/compiler.h"

QK_TARGET_BEGIN("avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx2,fma,f16c", "prefer-vector-width=512")

#define VECTOR 64
#include "kernels/x86/avx512.h"

typedef struct {
    __m512i part[4];
} plane;

static QK_INLINE plane load_plane(const uint8_t *table)
{
    return (plane){{_mm512_loadu_si512(table), _mm512_loadu_si512(table + 64), _mm512_loadu_si512(table + 128),
                    _mm512_loadu_si512(table + 192)}};
}

static QK_INLINE __m512i look_up(const plane *t, __m512i index)
{
    const __m512i low = _mm512_permutex2var_epi8(t->part[0], index, t->part[1]);
    const __m512i high = _mm512_permutex2var_epi8(t->part[2], index, t->part[3]);
    return _mm512_mask_mov_epi8(low, _mm512_movepi8_mask(index), high);
}

static QK_INLINE __m512i index_of(__m512i codes, uint8_t mask, uint8_t shift)
{
    return _mm512_add_epi8(_mm512_xor_si512(codes, _mm512_set1_epi8((char)mask)), _mm512_set1_epi8((char)shift));
}

void qk_take_table_vbmi(const uint8_t *q, uint8_t *y, size_t n, const uint8_t *table, uint8_t mask, uint8_t shift)
{
    const plane t = load_plane(table);
    size_t i = 0;
    for (; i + VECTOR <= n; i += VECTOR)
        _mm512_storeu_si512(y + i, look_up(&t, index_of(_mm512_loadu_si512(q + i), mask, shift)));
    if (i == n) return;
    const __mmask64 rest = first_codes(n - i);
    _mm512_mask_storeu_epi8(y + i, rest, look_up(&t, index_of(_mm512_maskz_loadu_epi8(rest, q + i), mask, shift)));
}

static QK_INLINE __m512i add_bytes(__m512i sum, const plane *t, __m512i index, __mmask64 valid)
{
    const __m512i bytes = _mm512_maskz_mov_epi8(valid, look_up(t, index));
    return _mm512_add_epi64(sum, _mm512_sad_epu8(bytes, _mm512_setzero_si512()));
}

uint64_t qk_sum_weights_vbmi(const uint8_t *q, size_t n, const uint8_t *planes, uint8_t mask, uint8_t shift)
{
    const plane t0 = load_plane(planes), t1 = load_plane(planes + 256);
    const plane t2 = load_plane(planes + 512), t3 = load_plane(planes + 768);
    __m512i s0 = _mm512_setzero_si512(), s1 = s0, s2 = s0, s3 = s0;
    for (size_t i = 0; i < n; i += VECTOR) {
        const __mmask64 valid = first_codes(n - i);
        const __m512i index = index_of(_mm512_maskz_loadu_epi8(valid, q + i), mask, shift);
        s0 = add_bytes(s0, &t0, index, valid), s1 = add_bytes(s1, &t1, index, valid);
        s2 = add_bytes(s2, &t2, index, valid), s3 = add_bytes(s3, &t3, index, valid);
    }
    const __m512i low = _mm512_add_epi64(s0, _mm512_slli_epi64(s1, 8));
    const __m512i high = _mm512_add_epi64(_mm512_slli_epi64(s2, 16), _mm512_slli_epi64(s3, 24));
    return (uint64_t)_mm512_reduce_add_epi64(_mm512_add_epi64(low, high));
}

/* ---- the filter of searches (numerics 19), for codes as they lie ----
 *
 * vpermi2b has the tables of eight groups, so eight codes of a vector stay neighbours: a register wants those of eight
 * vectors, which are turned as words of 64 bits, in two rounds, where codes of one group alone take four. vpsadbw adds
 * the eight. Three instructions a query are more than pq_filter.h takes, so this is for few. */

/* 32 codes of eight vectors, by groups of eight; vectors are in the order of list_words. */
typedef struct {
    __m512i eight[4];
} four_eights;

static QK_INLINE __m512i load_two(const uint8_t *low, const uint8_t *high, __mmask32 wanted)
{
    const __m256i a = _mm256_maskz_loadu_epi8(wanted, low), b = _mm256_maskz_loadu_epi8(wanted, high);
    return _mm512_inserti64x4(_mm512_castsi256_si512(a), b, 1);
}

static QK_INLINE four_eights turn_words(const uint8_t *codes, size_t m, __mmask32 wanted, __m512i *most)
{
    const uint8_t *after = codes + 4 * m;
    const __m512i r0 = load_two(codes, after, wanted), r1 = load_two(codes + m, after + m, wanted);
    const __m512i r2 = load_two(codes + 2 * m, after + 2 * m, wanted),
                  r3 = load_two(codes + 3 * m, after + 3 * m, wanted);
    *most = _mm512_max_epu8(*most, _mm512_max_epu8(_mm512_max_epu8(r0, r1), _mm512_max_epu8(r2, r3)));
    const __m512i even0 = _mm512_unpacklo_epi64(r0, r1), even1 = _mm512_unpacklo_epi64(r2, r3);
    const __m512i odd0 = _mm512_unpackhi_epi64(r0, r1), odd1 = _mm512_unpackhi_epi64(r2, r3);
    return (four_eights){{_mm512_shuffle_i64x2(even0, even1, 0x88), _mm512_shuffle_i64x2(odd0, odd1, 0x88),
                          _mm512_shuffle_i64x2(even0, even1, 0xdd), _mm512_shuffle_i64x2(odd0, odd1, 0xdd)}};
}

static QK_INLINE __m512i add_entries(__m512i sums, __m512i codes, __m512i low, __m512i high)
{
    const __m512i groups = _mm512_set1_epi64(0x7060504030201000);
    const __m512i bytes = _mm512_permutex2var_epi8(low, _mm512_or_si512(codes, groups), high);
    return _mm512_add_epi64(sums, _mm512_sad_epu8(bytes, _mm512_setzero_si512()));
}

/* Two times eight vectors' sums of up to 32 groups. */
static QK_INLINE void add_32_groups(__m512i *first, __m512i *second, const uint8_t *table, const size_t groups,
                                    const uint8_t *codes, size_t m, __mmask32 wanted, __m512i *most)
{
    const four_eights a = turn_words(codes, m, wanted, most), b = turn_words(codes + 8 * m, m, wanted, most);
    for (size_t e = 0; 8 * e < groups; e++, table += 128) {
        const __m512i low = _mm512_loadu_si512(table), high = _mm512_loadu_si512(table + 64);
        *first = add_entries(*first, a.eight[e], low, high);
        *second = add_entries(*second, b.eight[e], low, high);
    }
}

static QK_NOINLINE size_t list_words(uint32_t mask, size_t first, uint32_t *list, size_t listed)
{
    static const uint8_t order[8] = {0, 1, 4, 5, 2, 3, 6, 7};
    for (; mask; mask &= mask - 1) {
        const size_t place = (size_t)__builtin_ctz(mask);
        list[listed++] = (uint32_t)(first + place / 8 * 8 + order[place % 8]);
    }
    return listed;
}

/* Lines are asked for in the order in which they lie just before they are read in another one: so the CPU sees a
 * stream, and asks for what follows. */
size_t qk_pq_pass_rows_vbmi(const uint8_t *table, size_t m, const uint8_t *codes, size_t vectors, uint16_t limit,
                            uint32_t *list, int32_t *largest)
{
    const __m512i bound = _mm512_set1_epi64(limit == UINT16_MAX ? INT64_MAX : limit);
    const size_t whole = m / 32 * 32;
    const __mmask32 rest = (__mmask32)((1u << (m - whole)) - 1);
    __m512i most = _mm512_setzero_si512();
    size_t listed = 0;
    for (size_t v = 0; v < vectors; v += 16, codes += 16 * m) {
        __m512i first = _mm512_setzero_si512(), second = first;
        for (size_t i = 0; i < 16 * m; i += 64) _mm_prefetch((const char *)codes + i, _MM_HINT_T0);
        for (size_t g = 0; g < whole; g += 32)
            add_32_groups(&first, &second, table + 16 * g, 32, codes + g, m, ~(__mmask32)0, &most);
        if (rest) add_32_groups(&first, &second, table + 16 * whole, m - whole, codes + whole, m, rest, &most);
        const uint32_t mask =
            _mm512_cmpgt_epi64_mask(bound, first) | (uint32_t)_mm512_cmpgt_epi64_mask(bound, second) << 8;
        if (mask) listed = list_words(mask, v, list, listed);
    }
    uint8_t each[VECTOR];
    _mm512_storeu_si512(each, most);
    for (size_t i = 0; i < VECTOR; i++) *largest = each[i] > *largest ? each[i] : *largest;
    return listed;
}

QK_TARGET_END
#endif
