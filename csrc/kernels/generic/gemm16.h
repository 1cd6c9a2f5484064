/* Products of int16 (numerics 17), compiled once per instruction set. */
#ifndef QK_GENERIC_GEMM16_H
#define QK_GENERIC_GEMM16_H

#include "kernels/generic/target.h"
#include "kernels/kernels.h"

/* Rows of NR sums: sum = c * 2^shift, plus what is there if there is `more`. */
static inline void gemm16_add_rows(int rows, const int32_t *restrict c, const int shift, const int more,
                                   int64_t *restrict sum, size_t ld)
{
    for (; rows > 0; rows--, c += NR, sum += ld)
        for (int j = 0; j < NR; j++) sum[j] = (more ? sum[j] : 0) + (int64_t)((uint64_t)(int64_t)c[j] << shift);
}

static void gemm16_add(int rows, const int32_t *c, int shift, int more, int64_t *sum, size_t ld)
{
    if (!more)
        gemm16_add_rows(rows, c, 0, 0, sum, ld);
    else if (!shift)
        gemm16_add_rows(rows, c, 0, 1, sum, ld);
    else
        gemm16_add_rows(rows, c, 8, 1, sum, ld);
}

#endif
