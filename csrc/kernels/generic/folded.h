/* 4-bit weights that fold to int8 (numerics 33), in plain C.
 *
 * A panel has the codes of all blocks, in steps as in gemm4.h, but that the high halves of bytes are code - 8 as signed
 * numbers of 4 bits. Behind all panels, panel by panel and block by block, a byte for each of 32 columns has the
 * scale - 1 in its low half and the shift, signed, in its high one. Among the codes they would have every other block
 * begin within a cache line. */
#ifndef QK_GENERIC_FOLDED_H
#define QK_GENERIC_FOLDED_H

#include "kernels/generic/target.h"
#include "kernels/kernels.h"
#include "runtime/compiler.h"

/* How many steps block `block` has, from 0 on. */
static inline size_t steps_in(const qk_folded_panel *p, size_t block)
{
    return block + 1 < p->blocks ? p->steps : p->last_steps;
}

static void folded_columns(const uint16_t *restrict low, const int8_t *restrict high, size_t n, int32_t *restrict sums)
{
    for (size_t j = 0; j < n; j++) sums[j] = (int32_t)((uint32_t)high[j] << 16 | low[j]);
}

#endif
