/* Weights of 2 and 3 bits (numerics 12), which become blocks of bytes for any number of rows, by `tbl`: 16 codes for a
 * shift, a mask and a look-up. Sums of columns, which a panel has room for, are not made: tiles here multiply signed
 * codes. After gemm4.h. */
#ifndef QK_ARM_LOW_BITS_H
#define QK_ARM_LOW_BITS_H

#include "kernels/arm/target.h"
#include "kernels/generic/elementwise.h"
#include "kernels/kernels.h"
#include "kernels/low_bits.h"
#include "runtime/compiler.h"

/* What codes of four columns, one after the other, stand for: in a table of all codes, or, if each column has its own,
 * in two of four codes each; and zero points. */
typedef struct {
    int8x16x2_t levels;
    int8x16_t zeros;
} four_columns_of_levels;

/* `bits` and `own` (levels of each column) are constants where these are inlined. */
static QK_INLINE int8x16_t low_values(const int bits, const int own, uint8x16_t codes, four_columns_of_levels of)
{
    static const uint8_t columns[] = {0, 0, 0, 0, 4, 4, 4, 4, 8, 8, 8, 8, 12, 12, 12, 12};
    codes = vandq_u8(codes, vdupq_n_u8(bits == 2 ? 3 : 7));
    if (!own) return vsubq_s8(vqtbl1q_s8(of.levels.val[0], codes), of.zeros);
    const uint8x16_t first = vorrq_u8(vandq_u8(codes, vdupq_n_u8(3)), vld1q_u8(columns));
    if (bits == 2) return vqtbl1q_s8(of.levels.val[0], first);
    return vqtbl2q_s8(of.levels, vorrq_u8(first, vshlq_n_u8(vandq_u8(codes, vdupq_n_u8(4)), 2)));
}

/* Four rows of four columns and, 64 bytes on, of those 16 columns on. */
static QK_INLINE void store_low_group(const int bits, const int own, uint8x16_t group, const four_columns_of_levels *of,
                                      int8_t *to)
{
    vst1q_s8(to, low_values(bits, own, group, of[0]));
    vst1q_s8(to + 64, low_values(bits, own, bits == 2 ? vshrq_n_u8(group, 2) : vshrq_n_u8(group, 3), of[1]));
}

/* The steps of a block, of eight columns. */
static QK_INLINE void low_steps_to_bytes(const int bits, const int own, const uint8_t *b, size_t steps,
                                         const four_columns_of_levels *of, int8_t *to)
{
    enum { GROUP = QK_GEMM4_NR * QK_GEMM4_KR };
    for (; steps > 0; steps--, b += qk_low_step(bits), to += qk_low_rows(bits) * QK_GEMM4_NR) {
        const uint8x16_t v0 = vld1q_u8(b);
        store_low_group(bits, own, v0, of, to);
        if (bits == 2) {
            store_low_group(bits, own, vshrq_n_u8(v0, 4), of, to + GROUP);
            continue;
        }
        const uint8x16_t v1 = vld1q_u8(b + QK_LOW_LINE), v2 = vld1q_u8(b + 2 * QK_LOW_LINE);
        const uint8x16_t high1 = vandq_u8(vshrq_n_u8(v1, 4), vdupq_n_u8(12)),
                         high2 = vandq_u8(vshrq_n_u8(v2, 2), vdupq_n_u8(48));
        store_low_group(bits, own, v1, of, to + GROUP);
        store_low_group(bits, own, v2, of, to + 2 * GROUP);
        store_low_group(bits, own, vorrq_u8(vorrq_u8(vshrq_n_u8(v0, 6), high1), high2), of, to + 3 * GROUP);
    }
}

/* What codes stand for, from column `col` on, in a block whose zero points are given, or NULL. */
static QK_INLINE four_columns_of_levels columns_of_levels(const qk_gemm4_panel *p, int32_t zero, const uint8_t *zeros,
                                                          size_t col)
{
    static const uint8_t all[] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    const int8_t *own = (const int8_t *)p->records + 4 * col;
    four_columns_of_levels of = {{{vreinterpretq_s8_u8(vld1q_u8(all)), vdupq_n_s8(0)}}, vdupq_n_s8(0)};
    if (p->column_levels)
        of.levels.val[0] = vld1q_s8(own), of.levels.val[1] = vld1q_s8(p->bits == 3 ? own + QK_LOW_LEVELS : own);
    else if (p->levels)
        of.levels.val[0] = vld1q_s8(p->levels);
    else if (zeros)
        of.zeros = vreinterpretq_s8_u8(each_four_times(vcombine_u8(load4(zeros + col), vdup_n_u8(0))).b0);
    else
        of.zeros = vdupq_n_s8((int8_t)zero);
    return of;
}

static QK_INLINE void low_blocks_to_bytes(const int bits, const int own, const qk_gemm4_panel *p, int32_t zero,
                                          uint8_t *to)
{
    enum { NC = QK_GEMM4_NR };
    const uint8_t *b = p->records + (own ? qk_low_head(bits) : 0);
    for (size_t block = 1; block <= p->blocks; block++) {
        const size_t steps = block < p->blocks ? p->steps : p->last_steps, codes = steps * qk_low_rows(bits) * NC;
        const uint8_t *scales = b + steps * qk_low_step(bits);
        const uint8_t *zeros = p->own_zeros ? scales + qk_scales_bytes(p) : NULL;
        for (size_t col = 0; col < 16; col += 4) {
            const four_columns_of_levels of[] = {columns_of_levels(p, zero, zeros, col),
                                                 columns_of_levels(p, zero, zeros, col + 16)};
            low_steps_to_bytes(bits, own, b + 4 * col, steps, of, (int8_t *)to + 4 * col);
        }
        if (p->half_scales)
            f16_to_f32((const uint16_t *)scales, (float *)(to + codes), NC);
        else
            memcpy(to + codes, scales, 4 * NC);
        to += codes + 8 * NC, b = scales + p->params_bytes;
    }
}

static void low_to_bytes(const qk_gemm4_panel *p, int32_t zero, uint8_t *to)
{
    if (p->bits == 3 && p->column_levels)
        low_blocks_to_bytes(3, 1, p, zero, to);
    else if (p->bits == 3)
        low_blocks_to_bytes(3, 0, p, zero, to);
    else if (p->column_levels)
        low_blocks_to_bytes(2, 1, p, zero, to);
    else
        low_blocks_to_bytes(2, 0, p, zero, to);
}

#endif
