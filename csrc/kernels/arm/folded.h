/* 4-bit weights that fold to int8 (numerics 33), for the tiles of gemm8. A file whose target has dot products sets
 * WITH_DOTPROD to 1.
 *
 * Up to three rows multiply the codes u = c + 8 and scale the sums, sum q W = i sum q u + (3 d - 8 i) sum q: dot
 * products those of a block; umlal, which adds 8 products to 16 bits, those of 32 rows, 8 * 255 * 15 each and two of
 * them added, below 2^16. For more rows a panel becomes int8 first, W = i u + (3 d - 8 i) by one instruction for 16. */
#ifndef QK_ARM_FOLDED_H
#define QK_ARM_FOLDED_H

#include "kernels/arm/target.h"
#include "kernels/generic/folded.h"
#include "kernels/generic/target.h"
#include "kernels/kernels.h"
#include "runtime/compiler.h"

#ifndef WITH_DOTPROD
#define WITH_DOTPROD 0
#endif

enum { FOLDED_AHEAD = 4096 }; /* bytes of a panel: of one row, weights may come from memory */

/* u of a step, of the columns of a half. */
static QK_INLINE row_codes folded_codes(const uint8_t *b, const int half)
{
    const row_codes two = load_codes(b);
    const uint8x16_t low = vdupq_n_u8(15), middle = vdupq_n_u8(8);
    if (!half)
        return (row_codes){vandq_u8(two.b0, low), vandq_u8(two.b1, low), vandq_u8(two.b2, low), vandq_u8(two.b3, low)};
    return (row_codes){veorq_u8(vshrq_n_u8(two.b0, 4), middle), veorq_u8(vshrq_n_u8(two.b1, 4), middle),
                       veorq_u8(vshrq_n_u8(two.b2, 4), middle), veorq_u8(vshrq_n_u8(two.b3, 4), middle)};
}

/* i of 16 columns. */
static QK_INLINE uint8x16_t block_scales(uint8x16_t params)
{
    return vaddq_u8(vandq_u8(params, vdupq_n_u8(15)), vdupq_n_u8(1));
}

/* d of 16 columns. */
static QK_INLINE int8x16_t block_shifts(uint8x16_t params) { return vshrq_n_s8(vreinterpretq_s8_u8(params), 4); }

/* ---- few rows ---- */

/* Sums of a row and 16 columns, whatever adds them up; the steps that they hold. */
#if WITH_DOTPROD
typedef row_sums chunk_sums;

static QK_INLINE size_t steps_at_once(size_t steps) { return steps; }
static QK_INLINE row_sums sums_of_chunk(chunk_sums c) { return c; }
static QK_INLINE chunk_sums multiply_codes(chunk_sums c, row_codes b, const uint8_t *a)
{
    const uint8x8_t v = load4(a);
    return (chunk_sums){vdotq_lane_u32(c.c0, b.b0, v, 0), vdotq_lane_u32(c.c1, b.b1, v, 0),
                        vdotq_lane_u32(c.c2, b.b2, v, 0), vdotq_lane_u32(c.c3, b.b3, v, 0)};
}
#else
typedef struct {
    uint16x8_t l0, h0, l1, h1, l2, h2, l3, h3;
} chunk_sums;

static QK_INLINE size_t steps_at_once(size_t steps) { return min_size(steps, QK_FOLDED_CHUNK / QK_GEMM4_KR); }
static QK_INLINE uint32x4_t four_columns_of(uint16x8_t l, uint16x8_t h) { return vpaddlq_u16(vpaddq_u16(l, h)); }
static QK_INLINE row_sums sums_of_chunk(chunk_sums c)
{
    return (row_sums){four_columns_of(c.l0, c.h0), four_columns_of(c.l1, c.h1), four_columns_of(c.l2, c.h2),
                      four_columns_of(c.l3, c.h3)};
}
static QK_INLINE chunk_sums multiply_codes(chunk_sums c, row_codes b, const uint8_t *a)
{
    uint32_t four;
    memcpy(&four, a, sizeof four);
    const uint8x16_t w = vreinterpretq_u8_u32(vdupq_n_u32(four));
    const uint8x8_t v = vget_low_u8(w);
    return (chunk_sums){vmlal_u8(c.l0, vget_low_u8(b.b0), v), vmlal_high_u8(c.h0, b.b0, w),
                        vmlal_u8(c.l1, vget_low_u8(b.b1), v), vmlal_high_u8(c.h1, b.b1, w),
                        vmlal_u8(c.l2, vget_low_u8(b.b2), v), vmlal_high_u8(c.h2, b.b2, w),
                        vmlal_u8(c.l3, vget_low_u8(b.b3), v), vmlal_high_u8(c.h3, b.b3, w)};
}
#endif

/* What 16 columns of a block are multiplied by: their sums, and the sum of a's codes. */
typedef struct {
    uint32_t scale[16], more[16];
} factors;

static QK_INLINE void widen(int16x8_t from, uint32_t *to)
{
    vst1q_u32(to, vreinterpretq_u32_s32(vmovl_s16(vget_low_s16(from))));
    vst1q_u32(to + 4, vreinterpretq_u32_s32(vmovl_high_s16(from)));
}

static QK_INLINE void factors_of(const uint8_t *params, factors *to)
{
    const uint8x16_t all = vld1q_u8(params);
    const int8x16_t scale = vreinterpretq_s8_u8(block_scales(all)), shift = block_shifts(all);
    const int16x8_t s0 = vmovl_s8(vget_low_s8(scale)), s1 = vmovl_high_s8(scale);
    const int16x8_t d0 = vmovl_s8(vget_low_s8(shift)), d1 = vmovl_high_s8(shift);
    widen(s0, to->scale), widen(s1, to->scale + 8);
    widen(vsubq_s16(vmulq_n_s16(d0, 3), vshlq_n_s16(s0, 3)), to->more);
    widen(vsubq_s16(vmulq_n_s16(d1, 3), vshlq_n_s16(s1, 3)), to->more + 8);
}

static QK_INLINE uint32x4_t scale_sums(uint32x4_t c, uint32x4_t sums, const uint32_t *scale, const uint32_t *more,
                                       uint32_t sum)
{
    return vmlaq_n_u32(vmlaq_u32(c, sums, vld1q_u32(scale)), vld1q_u32(more), sum);
}

/* Adds the sums of a chunk to those of a row. */
static QK_INLINE void add_folded(int32_t *c, chunk_sums chunk, const factors *by, uint32_t sum)
{
    const row_sums of = sums_of_chunk(chunk);
    row_sums s = load_sums(c);
    s.c0 = scale_sums(s.c0, of.c0, by->scale, by->more, sum);
    s.c1 = scale_sums(s.c1, of.c1, by->scale + 4, by->more + 4, sum);
    s.c2 = scale_sums(s.c2, of.c2, by->scale + 8, by->more + 8, sum);
    s.c3 = scale_sums(s.c3, of.c3, by->scale + 12, by->more + 12, sum);
    store_sums(c, s);
}

/* Chunks of so many steps, whose codes of a are summed up; and these sums together. */
static QK_INLINE size_t chunks_of(size_t steps) { return qk_sums_of(1, steps) / 2; }

static QK_INLINE uint32_t codes_in(const int32_t *sums, size_t chunks)
{
    uint32_t sum = (uint32_t)*sums;
    for (size_t i = 1; i < chunks; i++) sum += (uint32_t)sums[i];
    return sum;
}

/* `rows` and `half` are constants where this is inlined. */
static QK_INLINE void folded_rows(const int rows, const int half, const qk_folded_panel *panel, const uint8_t *a,
                                  size_t lda, const int32_t *sums, size_t ld_sums, int32_t *c)
{
    const qk_folded_panel p = *panel;
    const chunk_sums none = {0};
    const uint8_t *b = p.codes;
    for (size_t block = 0; block < p.blocks; block++, sums += qk_sums_of(1, p.steps)) {
        const int32_t *of_chunks = sums;
        factors by;
        factors_of(p.params + block * QK_GEMM4_NR + 16 * half, &by);
        for (size_t left = steps_in(&p, block), n; left; left -= n) {
            chunk_sums c0 = none, c1 = none, c2 = none;
            n = steps_at_once(left);
            for (size_t s = 0; s < n; s++, b += QK_FOLDED_STEP, a += QK_GEMM4_KR) {
                const row_codes of = folded_codes(b, half);
                if (rows == 1) __builtin_prefetch(b + FOLDED_AHEAD);
                c0 = multiply_codes(c0, of, a);
                if (rows > 1) c1 = multiply_codes(c1, of, a + lda);
                if (rows > 2) c2 = multiply_codes(c2, of, a + 2 * lda);
            }
            const size_t chunks = chunks_of(n);
            add_folded(c, c0, &by, codes_in(of_chunks, chunks));
            if (rows > 1) add_folded(c + 16, c1, &by, codes_in(of_chunks + ld_sums, chunks));
            if (rows > 2) add_folded(c + 32, c2, &by, codes_in(of_chunks + 2 * ld_sums, chunks));
            of_chunks += chunks;
        }
    }
}

static void folded_tile(int rows, const qk_folded_panel *p, const uint8_t *a, size_t lda, const int32_t *sums,
                        size_t ld_sums, int32_t *c)
{
    ROWS_3(rows, folded_rows, 0, p, a, lda, sums, ld_sums, c);
    c += rows * NR;
    ROWS_3(rows, folded_rows, 1, p, a, lda, sums, ld_sums, c);
}

/* A number for each chunk, those of a block in the first half of its room. */
static void folded_sums(const uint8_t *a, size_t k, size_t block, int32_t *sums)
{
    for (size_t i = 0; i < k; i += block, sums += qk_sums_of(1, block / QK_GEMM4_KR)) {
        const size_t end = min_size(i + block, k);
        int32_t *to = sums;
        for (size_t j = i; j < end; j += QK_FOLDED_CHUNK) {
            int32_t sum = 0;
            for (size_t l = j; l < min_size(j + QK_FOLDED_CHUNK, end); l++) sum += a[l];
            *to++ = sum;
        }
    }
}

/* ---- panels of int8 ---- */

static QK_INLINE void store_step(uint8_t *to, row_codes w)
{
    vst1q_u8(to, w.b0), vst1q_u8(to + 16, w.b1), vst1q_u8(to + 32, w.b2), vst1q_u8(to + 48, w.b3);
}

/* Two steps of 4 rows as one of 8: of 4 columns. */
static QK_INLINE void store_columns_of_two(uint8_t *to, uint8x16_t first, uint8x16_t second)
{
    const uint32x4_t x = vreinterpretq_u32_u8(first), y = vreinterpretq_u32_u8(second);
    vst1q_u8(to, vreinterpretq_u8_u32(vzip1q_u32(x, y))), vst1q_u8(to + 16, vreinterpretq_u8_u32(vzip2q_u32(x, y)));
}

static QK_INLINE void store_two_steps(uint8_t *to, row_codes first, row_codes second)
{
    store_columns_of_two(to, first.b0, second.b0), store_columns_of_two(to + 32, first.b1, second.b1);
    store_columns_of_two(to + 64, first.b2, second.b2), store_columns_of_two(to + 96, first.b3, second.b3);
}

/* The panel of gemm8, ^ PANEL_FLIP, in steps of KR rows; the second half of a last step meets zeros of a. */
static QK_INLINE void unfold(const qk_folded_panel *p, const int half, uint8_t *to)
{
    const uint8_t *b = p->codes;
    row_codes before = {0};
    int odd = 0;
    for (size_t block = 0; block < p->blocks; block++) {
        const uint8x16_t params = vld1q_u8(p->params + block * QK_GEMM4_NR + 16 * half), scale = block_scales(params);
        const uint8x16_t shift = vreinterpretq_u8_s8(block_shifts(params));
        const uint8x16_t flipped = vmlaq_u8(vdupq_n_u8((uint8_t)PANEL_FLIP), shift, vdupq_n_u8(3));
        const row_codes by = each_four_times(scale), more = each_four_times(vsubq_u8(flipped, vshlq_n_u8(scale, 3)));
        for (size_t s = steps_in(p, block); s > 0; s--, b += QK_FOLDED_STEP) {
            const row_codes u = folded_codes(b, half);
            const row_codes w = {vmlaq_u8(more.b0, u.b0, by.b0), vmlaq_u8(more.b1, u.b1, by.b1),
                                 vmlaq_u8(more.b2, u.b2, by.b2), vmlaq_u8(more.b3, u.b3, by.b3)};
            if (KR == QK_GEMM4_KR)
                store_step(to, w), to += NR * KR;
            else if (odd)
                store_two_steps(to, before, w), to += NR * KR;
            before = w, odd = !odd;
        }
    }
    if (KR > QK_GEMM4_KR && odd) store_two_steps(to, before, before);
}

static void unfold_panel(const qk_folded_panel *p, int half, int8_t *to)
{
    if (half)
        unfold(p, 1, (uint8_t *)to);
    else
        unfold(p, 0, (uint8_t *)to);
}

#endif
