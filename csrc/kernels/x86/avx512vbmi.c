/* AVX-512 with VBMI (Ice Lake and later, Zen 4): tables of 256 bytes, for the layers on codes of avx512.c.
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

QK_TARGET_END
#endif
