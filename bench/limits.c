/* What this core can do at most: multiply-accumulates from registers alone, and streams with no arithmetic.
 *
 * Each function carries its own target, so the file compiles without -march, and the caller asks `has_*` first.
 * Accumulators have names and pass through an empty asm at every step: the compiler can neither merge steps, nor
 * hoist a product out of the loop, nor keep them in memory. Twelve chains cover latency 5 at 2 instructions a cycle. */
#include <stddef.h>
#include <stdint.h>

#if defined(__x86_64__)
#include <immintrin.h>

int has_avx512vnni(void) { return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vnni"); }
int has_avx512(void) { return __builtin_cpu_supports("avx512f"); }
int has_avx2(void) { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }

/* ---- peaks: `steps` rounds of 12 multiply-accumulates of a register ---- */

#define AVX512VNNI __attribute__((target("avx512f,avx512vnni")))
#define AVX512 __attribute__((target("avx512f")))
#define AVX2 __attribute__((target("avx2,fma")))
#define INLINE static inline __attribute__((always_inline))

AVX512VNNI INLINE __m512i dot(__m512i c, __m512i a, __m512i b)
{
    c = _mm512_dpbusd_epi32(c, a, b);
    __asm__("" : "+v"(c));
    return c;
}

/* 12 x 64 products a step */
AVX512VNNI void peak_vpdpbusd(size_t steps, int32_t *sink)
{
    __m512i a = _mm512_set1_epi8(1), b = a, c0 = _mm512_setzero_si512();
    __m512i c1 = c0, c2 = c0, c3 = c0, c4 = c0, c5 = c0, c6 = c0, c7 = c0, c8 = c0, c9 = c0, c10 = c0, c11 = c0;
    for (size_t i = 0; i < steps; i++) {
        c0 = dot(c0, a, b), c1 = dot(c1, a, b), c2 = dot(c2, a, b), c3 = dot(c3, a, b);
        c4 = dot(c4, a, b), c5 = dot(c5, a, b), c6 = dot(c6, a, b), c7 = dot(c7, a, b);
        c8 = dot(c8, a, b), c9 = dot(c9, a, b), c10 = dot(c10, a, b), c11 = dot(c11, a, b);
    }
    c0 = c0 + c1 + c2 + c3 + c4 + c5 + c6 + c7 + c8 + c9 + c10 + c11;
    _mm512_storeu_si512(sink, c0);
}

AVX512VNNI INLINE __m512i dot_words(__m512i c, __m512i a, __m512i b)
{
    c = _mm512_dpwssd_epi32(c, a, b);
    __asm__("" : "+v"(c));
    return c;
}

/* 12 x 32 products a step */
AVX512VNNI void peak_vpdpwssd(size_t steps, int32_t *sink)
{
    __m512i a = _mm512_set1_epi16(1), b = a, c0 = _mm512_setzero_si512();
    __m512i c1 = c0, c2 = c0, c3 = c0, c4 = c0, c5 = c0, c6 = c0, c7 = c0, c8 = c0, c9 = c0, c10 = c0, c11 = c0;
    for (size_t i = 0; i < steps; i++) {
        c0 = dot_words(c0, a, b), c1 = dot_words(c1, a, b), c2 = dot_words(c2, a, b), c3 = dot_words(c3, a, b);
        c4 = dot_words(c4, a, b), c5 = dot_words(c5, a, b), c6 = dot_words(c6, a, b), c7 = dot_words(c7, a, b);
        c8 = dot_words(c8, a, b), c9 = dot_words(c9, a, b), c10 = dot_words(c10, a, b), c11 = dot_words(c11, a, b);
    }
    c0 = c0 + c1 + c2 + c3 + c4 + c5 + c6 + c7 + c8 + c9 + c10 + c11;
    _mm512_storeu_si512(sink, c0);
}

AVX512 INLINE __m512 fma16(__m512 c, __m512 a, __m512 b)
{
    c = _mm512_fmadd_ps(a, b, c);
    __asm__("" : "+v"(c));
    return c;
}

/* 12 x 16 products a step */
AVX512 void peak_fma_512(size_t steps, int32_t *sink)
{
    __m512 a = _mm512_set1_ps(1.0f), b = a, c0 = _mm512_setzero_ps();
    __m512 c1 = c0, c2 = c0, c3 = c0, c4 = c0, c5 = c0, c6 = c0, c7 = c0, c8 = c0, c9 = c0, c10 = c0, c11 = c0;
    for (size_t i = 0; i < steps; i++) {
        c0 = fma16(c0, a, b), c1 = fma16(c1, a, b), c2 = fma16(c2, a, b), c3 = fma16(c3, a, b);
        c4 = fma16(c4, a, b), c5 = fma16(c5, a, b), c6 = fma16(c6, a, b), c7 = fma16(c7, a, b);
        c8 = fma16(c8, a, b), c9 = fma16(c9, a, b), c10 = fma16(c10, a, b), c11 = fma16(c11, a, b);
    }
    c0 = c0 + c1 + c2 + c3 + c4 + c5 + c6 + c7 + c8 + c9 + c10 + c11;
    _mm512_storeu_ps(sink, c0);
}

/* `a` passes through the asm too: else one product would serve all accumulators. */
AVX2 INLINE __m256i multiply_add(__m256i c, __m256i *a, __m256i b)
{
    __asm__("" : "+x"(*a));
    c = _mm256_add_epi32(c, _mm256_madd_epi16(*a, b));
    __asm__("" : "+x"(c));
    return c;
}

/* 12 x 16 products a step */
AVX2 void peak_vpmaddwd(size_t steps, int32_t *sink)
{
    __m256i a = _mm256_set1_epi16(1), b = a, c0 = _mm256_setzero_si256();
    __m256i c1 = c0, c2 = c0, c3 = c0, c4 = c0, c5 = c0, c6 = c0, c7 = c0, c8 = c0, c9 = c0, c10 = c0, c11 = c0;
    for (size_t i = 0; i < steps; i++) {
        c0 = multiply_add(c0, &a, b), c1 = multiply_add(c1, &a, b), c2 = multiply_add(c2, &a, b);
        c3 = multiply_add(c3, &a, b), c4 = multiply_add(c4, &a, b), c5 = multiply_add(c5, &a, b);
        c6 = multiply_add(c6, &a, b), c7 = multiply_add(c7, &a, b), c8 = multiply_add(c8, &a, b);
        c9 = multiply_add(c9, &a, b), c10 = multiply_add(c10, &a, b), c11 = multiply_add(c11, &a, b);
    }
    c0 = c0 + c1 + c2 + c3 + c4 + c5 + c6 + c7 + c8 + c9 + c10 + c11;
    _mm256_storeu_si256((__m256i *)sink, c0);
}

AVX2 INLINE __m256 fma8(__m256 c, __m256 a, __m256 b)
{
    c = _mm256_fmadd_ps(a, b, c);
    __asm__("" : "+x"(c));
    return c;
}

/* 12 x 8 products a step */
AVX2 void peak_fma_256(size_t steps, int32_t *sink)
{
    __m256 a = _mm256_set1_ps(1.0f), b = a, c0 = _mm256_setzero_ps();
    __m256 c1 = c0, c2 = c0, c3 = c0, c4 = c0, c5 = c0, c6 = c0, c7 = c0, c8 = c0, c9 = c0, c10 = c0, c11 = c0;
    for (size_t i = 0; i < steps; i++) {
        c0 = fma8(c0, a, b), c1 = fma8(c1, a, b), c2 = fma8(c2, a, b), c3 = fma8(c3, a, b);
        c4 = fma8(c4, a, b), c5 = fma8(c5, a, b), c6 = fma8(c6, a, b), c7 = fma8(c7, a, b);
        c8 = fma8(c8, a, b), c9 = fma8(c9, a, b), c10 = fma8(c10, a, b), c11 = fma8(c11, a, b);
    }
    c0 = c0 + c1 + c2 + c3 + c4 + c5 + c6 + c7 + c8 + c9 + c10 + c11;
    _mm256_storeu_ps((float *)sink, c0);
}

#else
#define INLINE static inline __attribute__((always_inline))
int has_avx512vnni(void) { return 0; }
int has_avx512(void) { return 0; }
int has_avx2(void) { return 0; }
#endif

/* ---- streams: cache lines, by two 256-bit registers each; 512-bit ones are no faster beyond the L1 cache ---- */

typedef int64_t half __attribute__((vector_size(32), aligned(32), may_alias));

/* Eight lines a group; four chains, since one would wait for its own latency. */
INLINE void read_lines(const half *from, half *sink, size_t groups)
{
    half a = {0}, b = a, c = a, d = a;
    for (size_t i = 0; i < groups; i++, from += 16) {
        a |= from[0], b |= from[1], c |= from[2], d |= from[3];
        a |= from[4], b |= from[5], c |= from[6], d |= from[7];
        a |= from[8], b |= from[9], c |= from[10], d |= from[11];
        a |= from[12], b |= from[13], c |= from[14], d |= from[15];
    }
    *sink = a | b | c | d;
}

/* `reads` and `writes` are constants where this is inlined. The barrier keeps the loop from becoming a memcpy. */
INLINE void move_lines(const half *from, half *to, size_t groups, const int reads, const int writes)
{
    for (size_t i = 0; i < groups; i++, from += 2 * reads, to += 2 * writes) {
        half a = from[0], b = from[1];
        for (int j = 1; j < reads; j++) a |= from[2 * j], b |= from[2 * j + 1];
        for (int j = 0; j < writes; j++) to[2 * j] = a, to[2 * j + 1] = b;
        __asm__ volatile("" ::: "memory");
    }
}

/* The traffic of an operation without its arithmetic: 8:0, 4:1, 1:1 or 1:4 lines read and written a group. */
INLINE void stream(int reads, int writes, const half *from, half *to, size_t groups)
{
    if (writes == 0)
        read_lines(from, to, groups);
    else if (reads > writes)
        move_lines(from, to, groups, 4, 1);
    else if (reads == writes)
        move_lines(from, to, groups, 1, 1);
    else
        move_lines(from, to, groups, 1, 4);
}

void stream_baseline(int reads, int writes, const half *from, half *to, size_t groups)
{
    stream(reads, writes, from, to, groups);
}

#if defined(__x86_64__)
AVX2 void stream_avx2(int reads, int writes, const half *from, half *to, size_t groups)
{
    stream(reads, writes, from, to, groups);
}
#endif
