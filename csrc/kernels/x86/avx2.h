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

#endif
