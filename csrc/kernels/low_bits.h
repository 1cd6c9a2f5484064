/* How a step of codes of 2 or 3 bits lies in memory, for every instruction set (numerics 12): of 32 columns and 8 or 16
 * rows, in lines of 64 bytes. Row i of a group of 4 rows, of the columns j and j + 16, meets in byte 4 j + i: `low` of
 * column j, `high` of column j + 16. From the lowest bits on a byte has
 *
 *     2 bits    low and high of the first group, low and high of the second
 *     3 bits    in line g < 3: low and high of group g, then two of the six bits low + 8 high of the last group: those
 *               from 2 g on
 *
 * so that 8 codes of 3 bits take three bytes, and six of them are parted by one shift.
 *
 * Where each column has levels of its own, a panel begins with them: those of the codes 0 to 3, one column after the
 * other, then those of 4 to 7. */
#ifndef QK_LOW_BITS_H
#define QK_LOW_BITS_H

#include <stddef.h>
#include <stdint.h>

#include "kernels/kernels.h"

enum { QK_LOW_LINE = 64, QK_LOW_LEVELS = 4 * QK_GEMM4_NR /* bytes of four levels of all columns */ };

static inline size_t qk_low_rows(int bits) { return bits == 2 ? 8 : 16; }
static inline size_t qk_low_step(int bits) { return bits == 2 ? QK_LOW_LINE : 3 * QK_LOW_LINE; }

/* The code of a row and a column of a step. */
static inline int qk_low_code(const uint8_t *step, int bits, size_t row, size_t col)
{
    const size_t at = col % 16 * 4 + row % 4, group = row / 4, high = col / 16;
    if (bits == 2) return step[at] >> (4 * group + 2 * high) & 3;
    const int last = step[at] >> 6 | step[at + QK_LOW_LINE] >> 6 << 2 | step[at + 2 * QK_LOW_LINE] >> 6 << 4;
    return (group < 3 ? step[group * QK_LOW_LINE + at] : last) >> 3 * high & 7;
}

/* Bytes of the levels that a panel begins with. */
static inline size_t qk_low_head(int bits) { return bits == 2 ? QK_LOW_LEVELS : 2 * QK_LOW_LEVELS; }
static inline size_t qk_low_level_at(int code, size_t col)
{
    return (size_t)(code / 4 * QK_LOW_LEVELS + code % 4) + 4 * col;
}

#endif
