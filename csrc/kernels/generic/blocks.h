/* Tiles of 4-bit weights and of blocks of bytes (numerics 12) of an instruction set whose blocks_of serves both: after
 * it. */
#ifndef QK_GENERIC_BLOCKS_H
#define QK_GENERIC_BLOCKS_H

#include "kernels/generic/target.h"
#include "kernels/kernels.h"
#include "runtime/compiler.h"

#ifdef ROWS_OF_BLOCKS
static QK_INLINE void tile_of_blocks(const int kind, const int own_zeros, int rows, const qk_gemm4_panel *p,
                                     const int8_t *a, size_t lda, const int32_t *start, size_t ld_start, float *y)
{
    ROWS_OF_BLOCKS(rows, blocks_of, kind, own_zeros, p, a, lda, start, ld_start, y);
}

static void gemm4_tile(int rows, const qk_gemm4_panel *p, const int8_t *a, size_t lda, const int32_t *start,
                       size_t ld_start, float *y)
{
    if (p->levels)
        tile_of_blocks(LEVELS, 0, rows, p, a, lda, start, ld_start, y);
    else if (p->own_zeros)
        tile_of_blocks(CODES, 1, rows, p, a, lda, start, ld_start, y);
    else
        tile_of_blocks(CODES, 0, rows, p, a, lda, start, ld_start, y);
}

static void blocks8_tile(int rows, const qk_gemm4_panel *p, const void *a, size_t lda, const int32_t *start,
                         size_t ld_start, float *y)
{
    if (p->own_zeros)
        tile_of_blocks(BYTES, 1, rows, p, a, lda, start, ld_start, y);
    else
        tile_of_blocks(BYTES, 0, rows, p, a, lda, start, ld_start, y);
}
#endif

#endif
