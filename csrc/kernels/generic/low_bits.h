/* Weights of 2 and 3 bits (numerics 12): packing, and panels of them that become bytes, after gemm4.h. */
#ifndef QK_GENERIC_LOW_BITS_H
#define QK_GENERIC_LOW_BITS_H

#include <string.h>

#include "kernels/generic/gemm4.h"
#include "kernels/low_bits.h"

/* Four rows of 32 columns, a column in each number; what b does not have is 0. */
static inline void take_group(const uint8_t *b, ptrdiff_t row_stride, ptrdiff_t col_stride, size_t rows, size_t cols,
                              int bits, uint32_t *group)
{
    const uint32_t mask = bits == 2 ? 0x03030303 : 0x07070707;
    if (rows == QK_GEMM4_KR && cols == QK_GEMM4_NR && col_stride == 1)
        interleave_rows(b, row_stride, 0, (uint8_t *)group, QK_GEMM4_NR, QK_GEMM4_KR);
    else
        for (size_t j = 0; j < QK_GEMM4_NR; j++, b += col_stride)
            group[j] = j < cols ? column_codes(b, row_stride, rows) : 0;
    for (int j = 0; j < QK_GEMM4_NR; j++) group[j] &= mask;
}

/* One step of codes, one a byte in b, of any strides. Those that b does not have are 0 ^ flip. */
static void low_pack_step(const uint8_t *b, ptrdiff_t row_stride, ptrdiff_t col_stride, size_t rows, size_t cols,
                          int bits, uint8_t flip, uint8_t *to)
{
    enum { NC = QK_GEMM4_NR, LANES = NC / 2 };
    uint32_t group[4][NC] = {{0}}, line[3][LANES];
    for (size_t i = 0; QK_GEMM4_KR * i < rows; i++, b += QK_GEMM4_KR * row_stride)
        take_group(b, row_stride, col_stride, min_size(rows - QK_GEMM4_KR * i, QK_GEMM4_KR), cols, bits, group[i]);
    if (bits == 2) {
        for (int j = 0; j < LANES; j++)
            line[0][j] = (group[0][j] | group[0][j + LANES] << 2 | group[1][j] << 4 | group[1][j + LANES] << 6) ^
                flip * 0x55555555u;
        memcpy(to, line, sizeof line[0]);
        return;
    }
    for (int g = 0; g < 3; g++)
        for (int j = 0; j < LANES; j++) {
            const uint32_t last = group[3][j] | group[3][j + LANES] << 3;
            line[g][j] = group[g][j] | group[g][j + LANES] << 3 | (last >> 2 * g & 0x03030303) << 6;
        }
    memcpy(to, line, sizeof line);
}

#ifndef HAVE_LOW_TO_BYTES
/* Rows of a step as blocks8_tile reads them, and their sums, which it holds with the other sign. */
static inline void low_step_to_bytes(const qk_gemm4_panel *p, const int8_t *levels, const uint8_t *step,
                                     const int32_t *zeros, int8_t *to, int32_t *sums)
{
    for (size_t row = 0; row < qk_low_rows(p->bits); row++)
        for (size_t j = 0; j < QK_GEMM4_NR; j++) {
            const int code = qk_low_code(step, p->bits, row, j);
            const int value = p->column_levels ? levels[qk_low_level_at(code, j)] : levels ? levels[code] : code;
            to[(row / QK_GEMM4_KR * QK_GEMM4_NR + j) * QK_GEMM4_KR + row % QK_GEMM4_KR] = (int8_t)(value - zeros[j]);
            sums[j] -= value - zeros[j];
        }
}

static void low_to_bytes(const qk_gemm4_panel *p, int32_t zero, uint8_t *to)
{
    enum { NC = QK_GEMM4_NR };
    const uint8_t *b = p->records + (p->column_levels ? qk_low_head(p->bits) : 0);
    const int8_t *levels = p->column_levels ? (const int8_t *)p->records : p->levels;
    const size_t step = qk_low_step(p->bits), bytes = qk_low_rows(p->bits) * NC;
    for (size_t block = 1; block <= p->blocks; block++) {
        const uint8_t *scales = b + (block < p->blocks ? p->steps : p->last_steps) * step;
        int32_t zeros[NC], sums[NC] = {0};
        for (int j = 0; j < NC; j++)
            zeros[j] = levels ? 0 : p->own_zeros ? scales[(p->half_scales ? 2 : 4) * NC + j] : zero;
        for (; b != scales; b += step, to += bytes) low_step_to_bytes(p, levels, b, zeros, (int8_t *)to, sums);
        if (p->half_scales)
            f16_to_f32((const uint16_t *)scales, (float *)to, NC);
        else
            memcpy(to, scales, 4 * NC);
        memcpy(to + 4 * NC, sums, sizeof sums);
        to += 8 * NC, b = scales + p->params_bytes;
    }
}
#endif

#endif
