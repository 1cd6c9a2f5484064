/* Products with 4-bit weights and with blocks of 8-bit ones (numerics 12): packing, sums of activations and the
 * epilogue, compiled once per instruction set, after gemm8.h.
 *
 * A step holds 4 rows of 32 columns. Of 4 bits: in 64 bytes. Byte 4 j + i has row i of column j in its low half and of
 * column j + 16 in its high half: a lane of 4 bytes has 4 rows of two columns. Of 8 bits: in 128 bytes, 4 j + i having
 * row i of column j. */
#ifndef QK_GENERIC_GEMM4_H
#define QK_GENERIC_GEMM4_H

#include <string.h>

#include "kernels/generic/gemm8.h"
#include "kernels/kernels.h"

/* `rows` codes of a column in the low halves of bytes. */
static inline uint32_t column_codes(const uint8_t *b, ptrdiff_t row_stride, size_t rows)
{
    uint32_t codes = 0;
    if (rows == QK_GEMM4_KR && row_stride == 1)
        memcpy(&codes, b, sizeof codes);
    else
        for (size_t i = 0; i < rows; i++) codes |= (uint32_t)b[(ptrdiff_t)i * row_stride] << 8 * i;
    return codes & 0x0f0f0f0fu;
}

/* Four rows of 32 unit-stride columns; the loop that gcc vectorizes. */
static inline void pack_whole_step(const uint8_t *b, ptrdiff_t row_stride, uint8_t flip, uint8_t *to)
{
    const uint8_t *b1 = b + row_stride, *b2 = b1 + row_stride, *b3 = b2 + row_stride;
    uint32_t *restrict fours = (uint32_t *)to;
    for (int j = 0, h = 16; j < 16; j++, h++) {
        const uint32_t low = b[j] | (uint32_t)b1[j] << 8 | (uint32_t)b2[j] << 16 | (uint32_t)b3[j] << 24;
        const uint32_t high = b[h] | (uint32_t)b1[h] << 8 | (uint32_t)b2[h] << 16 | (uint32_t)b3[h] << 24;
        fours[j] = ((low & 0x0f0f0f0fu) | (high & 0x0f0f0f0fu) << 4) ^ flip * 0x11111111u;
    }
}

/* One step of codes, one a byte in b, of any strides. Those that b does not have are 0 ^ flip. */
static void gemm4_pack_step(const uint8_t *b, ptrdiff_t row_stride, ptrdiff_t col_stride, size_t rows, size_t cols,
                            uint8_t flip, uint8_t *to)
{
    if (rows == QK_GEMM4_KR && cols == QK_GEMM4_NR && col_stride == 1) {
        pack_whole_step(b, row_stride, flip, to);
        return;
    }
    for (size_t j = 0; j < 16; j++, b += col_stride, to += 4) {
        const uint32_t low = j < cols ? column_codes(b, row_stride, rows) : 0;
        const uint32_t high = j + 16 < cols ? column_codes(b + 16 * col_stride, row_stride, rows) : 0;
        const uint32_t four = (low | high << 4) ^ flip * 0x11111111u;
        memcpy(to, &four, sizeof four);
    }
}

/* The same of 8 bits, those that b does not have being 0; adds the codes of each column, as signed ones, to `sum`. */
static void blocks8_pack_step(const uint8_t *b, ptrdiff_t row_stride, ptrdiff_t col_stride, size_t rows, size_t cols,
                              uint8_t flip, uint8_t *to, int32_t *restrict sum)
{
    interleave_step(b, row_stride, col_stride, rows, cols, flip, to, QK_GEMM4_NR, QK_GEMM4_KR);
    for (int j = 0; j < QK_GEMM4_NR; j++) {
        const uint32_t four = ((const uint32_t *)to)[j];
        sum[j] += (int8_t)four + (int8_t)(four >> 8) + (int8_t)(four >> 16) + (int8_t)(four >> 24);
    }
}

/* Sum of 8 codes at a time, as unsigned bytes: pairs in the 16-bit parts of `pairs`, which 32 steps cannot overflow,
 * nor their sum: 32 * 8 * 255 < 2^16. `n` is a multiple of 4. */
static inline int32_t sum_block(const int8_t *a, size_t n)
{
    int32_t sum = 0;
    for (size_t i = 0; i < n;) {
        uint64_t pairs = 0;
        const size_t begin = i, end = n - i < 256 ? n : i + 256;
        for (; i < end; i += 8) {
            uint64_t codes = 0;
            if (end - i < 8)
                memcpy(&codes, a + i, 4);
            else
                memcpy(&codes, a + i, 8);
            codes ^= 0x8080808080808080u; /* + 128 each */
            pairs += (codes & 0x00ff00ff00ff00ffu) + (codes >> 8 & 0x00ff00ff00ff00ffu);
        }
        sum += (int32_t)(pairs * 0x0001000100010001u >> 48) - 128 * (int32_t)((end - begin + 7) / 8 * 8);
    }
    return sum;
}

/* start = factor * sum of a, for each block of a row: what tiles start from (factor -zero), or multiply by their zero
 * points first (factor -1). */
static void gemm4_starts(const int8_t *a, size_t k_pad, size_t block, int32_t factor, int32_t *start)
{
    size_t i = 0;
    if (block == 32)
        for (; i + 32 <= k_pad; i += 32, start++) *start = factor * sum_block(a + i, 32); /* without a loop */
    for (; i < k_pad; i += block, start++) *start = factor * sum_block(a + i, k_pad - i < block ? k_pad - i : block);
}

static inline void scale_line(const float *y, const float *restrict bias, float scale, float *to)
{
    for (int j = 0; j < QK_GEMM4_NR; j++) to[j] = y[j] * scale + bias[j];
}

static void finish_floats(float *y, const qk_tile *t)
{
    enum { NC = QK_GEMM4_NR };
    const int in_place =
        t->activation == QK_IDENTITY && t->cols == NC && !t->residual && !t->bounded; /* one visit is enough */
    for (int row = 0; row < t->rows; row++) {
        float *dst = (float *)((char *)t->dst + (size_t)row * t->row_stride);
        scale_line(y + row * NC, t->bias, t->row_scale[row], in_place ? dst : y + row * NC);
    }
    if (in_place) return;
    finish_rows(y, NC, t);
    for (int row = 0; row < t->rows; row++, y += NC)
        memcpy((char *)t->dst + (size_t)row * t->row_stride, y, (size_t)t->cols * sizeof *y);
}

#endif
