/* Registers of AVX2, for its files: within the target of the file that includes this. */
#ifndef QK_AVX2_H
#define QK_AVX2_H

#include <stdint.h>
#include <string.h>

#include "kernels/x86/target.h"
#include "runtime/compiler.h"

static inline __m256i broadcast4(const void *p)
{
    int32_t codes;
    memcpy(&codes, p, sizeof codes);
    return _mm256_set1_epi32(codes);
}

/* c + pairs of products, widened; see multiply_add for vpaddd. */
static QK_INLINE __m256i add_pairs(__m256i c, __m256i products)
{
    __m256i ones = _mm256_set1_epi16(1);
    __asm__("vpaddd %1, %0, %0" : "+x"(c) : "x"(_mm256_madd_epi16(products, ones)));
    return c;
}

#endif
