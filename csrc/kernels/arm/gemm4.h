/* 4-bit weights, and blocks of 8-bit ones (numerics 12). A file whose target has dot products sets WITH_DOTPROD to 1.
 *
 * Codes of 4 bits, their levels and those of 8 bits are signed bytes, as those of a are, and |a| <= 127. Tile: 6 rows x
 * 16 columns, 24 sums of a block, or 4 rows without dot products, whose steps need registers; the sums of all blocks
 * are in y, in the L1 cache. */
#ifndef QK_ARM_GEMM4_H
#define QK_ARM_GEMM4_H

#include "kernels/arm/target.h"
#include "kernels/kernels.h"

#ifndef WITH_DOTPROD
#define WITH_DOTPROD 0
#endif

/* 4 codes of a, as dot takes them for each of 4 columns; dot16 takes 16 for one. */
#if WITH_DOTPROD
#define ROWS_OF_BLOCKS ROWS_6
typedef int8x8_t four;

static QK_INLINE four broadcast_four(const int8_t *a) { return vreinterpret_s8_u8(load4(a)); }
static QK_INLINE int32x4_t dot(int32x4_t c, int8x16_t b, four a) { return vdotq_lane_s32(c, b, a, 0); }
static QK_INLINE int32x4_t dot16(int32x4_t c, int8x16_t b, int8x16_t a) { return vdotq_s32(c, b, a); }
#else
#define ROWS_OF_BLOCKS ROWS_4
typedef int8x16_t four;

static QK_INLINE four broadcast_four(const int8_t *a)
{
    int32_t codes;
    memcpy(&codes, a, sizeof codes);
    return vreinterpretq_s8_s32(vdupq_n_s32(codes));
}

/* The sum of two products fits 16 bits: 2 * 127 * 128 < 2^15. */
static QK_INLINE int32x4_t dot(int32x4_t c, int8x16_t b, four a)
{
    const int16x8_t low = vmull_s8(vget_low_s8(b), vget_low_s8(a)), high = vmull_high_s8(b, a);
    return vpadalq_s16(c, vpaddq_s16(low, high));
}

static QK_INLINE int32x4_t dot16(int32x4_t c, int8x16_t b, int8x16_t a) { return dot(c, b, a); }
#endif

enum { BYTES, CODES, LEVELS };

/* Sums of 16 columns of a row and a block, and what a step has for them. */
typedef struct {
    int32x4_t c0, c1, c2, c3;
} block_sums;
typedef struct {
    int8x16_t b0, b1, b2, b3;
} block_codes;

static QK_INLINE int8x16_t low_halves(uint8x16_t two) { return vreinterpretq_s8_u8(vandq_u8(two, vdupq_n_u8(15))); }
static QK_INLINE int8x16_t high_halves(uint8x16_t two) { return vreinterpretq_s8_u8(vshrq_n_u8(two, 4)); }
static QK_INLINE int8x16_t look_up(int8x16_t levels, int8x16_t codes)
{
    return vqtbl1q_s8(levels, vreinterpretq_u8_s8(codes));
}

static QK_INLINE block_codes decode(const uint8_t *b, const int kind, int8x16_t levels)
{
    const uint8x16_t two = vld1q_u8(b), next = vld1q_u8(b + 16);
    if (kind == BYTES)
        return (block_codes){vreinterpretq_s8_u8(two), vreinterpretq_s8_u8(next), vreinterpretq_s8_u8(vld1q_u8(b + 32)),
                             vreinterpretq_s8_u8(vld1q_u8(b + 48))};
    const block_codes of = {low_halves(two), low_halves(next), high_halves(two), high_halves(next)};
    if (kind == CODES) return of;
    return (block_codes){look_up(levels, of.b0), look_up(levels, of.b1), look_up(levels, of.b2),
                         look_up(levels, of.b3)};
}

static QK_INLINE block_sums multiply_four(block_sums c, block_codes b, const int8_t *a)
{
    const four v = broadcast_four(a);
    return (block_sums){dot(c.c0, b.b0, v), dot(c.c1, b.b1, v), dot(c.c2, b.b2, v), dot(c.c3, b.b3, v)};
}

/* The columns of the third register of sums begin so far from those of the first. */
static QK_INLINE size_t right_of(const int kind) { return kind == BYTES ? 8 : 16; }

static QK_INLINE float32x4_t scales4(const qk_gemm4_panel *p, const uint8_t *scales, size_t col)
{
    if (p->byte_scales) {
        const uint32x4_t bytes = vmovl_u16(vget_low_u16(vmovl_u8(load4(scales + col))));
        return vmulq_n_f32(vreinterpretq_f32_u32(vshlq_n_u32(bytes, 20)), p->scale_unit);
    }
    if (!p->half_scales) return vld1q_f32((const float *)scales + col);
    return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16((const uint16_t *)scales + col)));
}

/* Zero points of 4 columns, times what a row has for them. */
static QK_INLINE int32x4_t zeros4(const int kind, const uint8_t *zeros, int32_t times)
{
    const uint8x8_t codes = load4(zeros);
    const int16x8_t wide = kind == BYTES ? vmovl_s8(vreinterpret_s8_u8(codes)) : vreinterpretq_s16_u16(vmovl_u8(codes));
    return vmulq_n_s32(vmovl_s16(vget_low_s16(wide)), times);
}

/* The sums that a row starts from. */
static QK_INLINE block_sums starts_of(const int kind, const int own_zeros, const uint8_t *zeros, const int32_t *start)
{
    const size_t right = right_of(kind);
    int32x4_t all = vdupq_n_s32(kind == CODES ? *start : 0);
    if (!own_zeros) return (block_sums){all, all, all, all};
    const int32_t times = kind == BYTES ? (*start >> 16) * 256 + (*start & 255) : *start;
    return (block_sums){zeros4(kind, zeros, times), zeros4(kind, zeros + 4, times), zeros4(kind, zeros + right, times),
                        zeros4(kind, zeros + right + 4, times)};
}

static QK_INLINE void add_scaled(float *y, int32x4_t c, float32x4_t scale)
{
    vst1q_f32(y, vfmaq_f32(vld1q_f32(y), vcvtq_f32_s32(c), scale));
}

static QK_INLINE void add_row(float *y, block_sums c, const int kind, const float32x4_t *scale)
{
    const size_t right = right_of(kind);
    add_scaled(y, c.c0, scale[0]), add_scaled(y + 4, c.c1, scale[1]);
    add_scaled(y + right, c.c2, scale[2]), add_scaled(y + right + 4, c.c3, scale[3]);
}

/* A block of `rows` rows and of 16 columns that begin with the part `part`, added to y. The first four are constants
 * where this is inlined. */
static QK_INLINE void block_rows(const int rows, const int kind, const int own_zeros, const size_t part,
                                 const qk_gemm4_panel *p, size_t steps, const uint8_t *b, int8x16_t levels,
                                 const int8_t *a, size_t lda, const int32_t *start, size_t ld_start, float *y)
{
    const size_t step = QK_GEMM4_NR * QK_GEMM4_KR / (kind == BYTES ? 1 : 2), right = right_of(kind);
    const size_t col = part * (kind == BYTES ? 16 : 8);
    const uint8_t *scales = b + steps * step, *zeros = scales + qk_scales_bytes(p) + col;
    const int8_t *a1 = a + lda, *a2 = a1 + lda, *a3 = a2 + lda, *a4 = a3 + lda, *a5 = a4 + lda;
    block_sums c0 = starts_of(kind, own_zeros, zeros, start), c1, c2, c3, c4, c5;
    if (rows > 1) c1 = starts_of(kind, own_zeros, zeros, start + ld_start);
    if (rows > 2) c2 = starts_of(kind, own_zeros, zeros, start + 2 * ld_start);
    if (rows > 3) c3 = starts_of(kind, own_zeros, zeros, start + 3 * ld_start);
    if (rows > 4) c4 = starts_of(kind, own_zeros, zeros, start + 4 * ld_start);
    if (rows > 5) c5 = starts_of(kind, own_zeros, zeros, start + 5 * ld_start);
    b += part * step / 2;
    for (size_t k = 0; k < steps * QK_GEMM4_KR; k += QK_GEMM4_KR, b += step) {
        const block_codes codes = decode(b, kind, levels);
        c0 = multiply_four(c0, codes, a + k);
        if (rows > 1) c1 = multiply_four(c1, codes, a1 + k);
        if (rows > 2) c2 = multiply_four(c2, codes, a2 + k);
        QK_IN_ORDER;
        if (rows > 3) c3 = multiply_four(c3, codes, a3 + k);
        if (rows > 4) c4 = multiply_four(c4, codes, a4 + k);
        if (rows > 5) c5 = multiply_four(c5, codes, a5 + k);
    }
    const float32x4_t scale[] = {scales4(p, scales, col), scales4(p, scales, col + 4), scales4(p, scales, col + right),
                                 scales4(p, scales, col + right + 4)};
    y += col;
    add_row(y, c0, kind, scale);
    if (rows > 1) add_row(y + QK_GEMM4_NR, c1, kind, scale);
    if (rows > 2) add_row(y + 2 * QK_GEMM4_NR, c2, kind, scale);
    if (rows > 3) add_row(y + 3 * QK_GEMM4_NR, c3, kind, scale);
    if (rows > 4) add_row(y + 4 * QK_GEMM4_NR, c4, kind, scale);
    if (rows > 5) add_row(y + 5 * QK_GEMM4_NR, c5, kind, scale);
}

/* Block by block, so that the second half of the columns finds each in the L1 cache. */
static QK_INLINE void blocks_of(const int rows, const int kind, const int own_zeros, const qk_gemm4_panel *p,
                                const int8_t *a, size_t lda, const int32_t *start, size_t ld_start, float *y)
{
    const size_t step = QK_GEMM4_NR * QK_GEMM4_KR / (kind == BYTES ? 1 : 2);
    const int8x16_t levels = kind == LEVELS ? vld1q_s8(p->levels) : vdupq_n_s8(0);
    const uint8_t *b = p->records;
    if (!p->more) memset(y, 0, (size_t)rows * QK_GEMM4_NR * sizeof *y);
    for (size_t block = 1; block <= p->blocks; block++, start++) {
        const size_t steps = block < p->blocks ? p->steps : p->last_steps;
        block_rows(rows, kind, own_zeros, 0, p, steps, b, levels, a, lda, start, ld_start, y);
        block_rows(rows, kind, own_zeros, 1, p, steps, b, levels, a, lda, start, ld_start, y);
        a += steps * QK_GEMM4_KR, b += steps * step + p->params_bytes;
    }
}

#include "kernels/generic/blocks.h"

/* ---- levels of each column ---- */

/* A register has 16 rows of one column, so that tbl looks them up in its levels. Tile: 4 rows x 4 columns, a sum in
 * four parts, which are added at the end of k. */

enum { OWN_STEP = QK_COLUMN_LEVELS_NR * QK_COLUMN_LEVELS_KR / 2 };

static QK_INLINE block_sums multiply_16(block_sums c, block_codes b, const int8_t *a)
{
    const int8x16_t v = vld1q_s8(a);
    return (block_sums){dot16(c.c0, b.b0, v), dot16(c.c1, b.b1, v), dot16(c.c2, b.b2, v), dot16(c.c3, b.b3, v)};
}

static QK_INLINE void store_columns(float *y, block_sums c, float32x4_t scale)
{
    const int32x4_t sums = vpaddq_s32(vpaddq_s32(c.c0, c.c1), vpaddq_s32(c.c2, c.c3));
    vst1q_f32(y, vmulq_f32(vcvtq_f32_s32(sums), scale));
}

static QK_INLINE block_codes load_columns(const uint8_t *b)
{
    return (block_codes){vld1q_s8((const int8_t *)b), vld1q_s8((const int8_t *)b + 16),
                         vld1q_s8((const int8_t *)b + 32), vld1q_s8((const int8_t *)b + 48)};
}

/* The levels of 16 rows of 4 columns. */
static QK_INLINE block_codes decode_columns(block_codes levels, block_codes two, const int half)
{
    const uint8x16_t t0 = vreinterpretq_u8_s8(two.b0), t1 = vreinterpretq_u8_s8(two.b1);
    const uint8x16_t t2 = vreinterpretq_u8_s8(two.b2), t3 = vreinterpretq_u8_s8(two.b3);
    return (block_codes){look_up(levels.b0, half ? high_halves(t0) : low_halves(t0)),
                         look_up(levels.b1, half ? high_halves(t1) : low_halves(t1)),
                         look_up(levels.b2, half ? high_halves(t2) : low_halves(t2)),
                         look_up(levels.b3, half ? high_halves(t3) : low_halves(t3))};
}

/* `rows` is a constant where this is inlined. `own` are the levels of 4 columns, b their codes, in steps that lie
 * OWN_STEP apart. */
static QK_INLINE void column_levels_rows(const int rows, size_t steps, const uint8_t *own, const uint8_t *b,
                                         float32x4_t scale, const int8_t *a, size_t lda, float *y)
{
    enum { HALF = QK_COLUMN_LEVELS_KR / 2 };
    const int8_t *a1 = a + lda, *a2 = a1 + lda, *a3 = a2 + lda;
    const int32x4_t zero = vdupq_n_s32(0);
    const block_codes levels = load_columns(own);
    block_sums c0 = {zero, zero, zero, zero}, c1 = c0, c2 = c0, c3 = c0;
    for (size_t k = 0; k < steps * QK_COLUMN_LEVELS_KR; b += OWN_STEP)
        for (int half = 0; half < 2; half++, k += HALF) {
            QK_IN_ORDER;
            const block_codes of = decode_columns(levels, load_columns(b), half);
            c0 = multiply_16(c0, of, a + k);
            if (rows > 1) c1 = multiply_16(c1, of, a1 + k);
            if (rows > 2) c2 = multiply_16(c2, of, a2 + k);
            if (rows > 3) c3 = multiply_16(c3, of, a3 + k);
        }
    store_columns(y, c0, scale);
    if (rows > 1) store_columns(y + QK_GEMM4_NR, c1, scale);
    if (rows > 2) store_columns(y + 2 * QK_GEMM4_NR, c2, scale);
    if (rows > 3) store_columns(y + 3 * QK_GEMM4_NR, c3, scale);
}

static void column_levels_tile(int rows, const qk_gemm4_panel *p, const int8_t *a, size_t lda, const int32_t *start,
                               size_t ld_start, float *y)
{
    const size_t steps = p->last_steps, group = OWN_STEP * (1 + steps);
    const float *scales = (const float *)(p->records + QK_GEMM4_NR / QK_COLUMN_LEVELS_NR * group);
    (void)start, (void)ld_start; /* of tiles that add 128 to each level */
    if (p->blocks == 0) memset(y, 0, (size_t)rows * QK_GEMM4_NR * sizeof *y);
    for (; p->blocks && rows > 0; rows -= 4, a += 4 * lda, y += 4 * QK_GEMM4_NR)
        for (size_t col = 0; col < QK_GEMM4_NR; col += 4) {
            const uint8_t *own = p->records + col / QK_COLUMN_LEVELS_NR * group + col % QK_COLUMN_LEVELS_NR * QK_LEVELS;
            const float32x4_t scale = vld1q_f32(scales + col);
            ROWS_4(rows, column_levels_rows, steps, own, own + OWN_STEP, scale, a, lda, y + col);
        }
}

#endif
