/* Codebooks of at most 16 levels (numerics 15), looked up in registers: what generic/codebook.h asks for. */
#ifndef QK_ARM_CODEBOOK_H
#define QK_ARM_CODEBOOK_H

#include "kernels/arm/target.h"
#include "kernels/kernels.h"

#define HAVE_LEVELS16
#define GROUP16 16

/* The thresholds are a binary tree whose depths 1 and 2 fit a register each, depth 3 two; tbl looks up the one where
 * each lane has got to. */
typedef struct {
    float32x4_t depth0;
    uint8x16_t depth1, depth2;
    uint8x16x2_t depth3;
    uint8x16_t order;
} nodes16;

static QK_INLINE uint8x16_t bytes_of(const float *p) { return vreinterpretq_u8_f32(vld1q_f32(p)); }

static inline nodes16 load_nodes16(const qk_levels *t)
{
    return (nodes16){vdupq_n_f32(t->node[1]),
                     bytes_of(t->node + 2),
                     bytes_of(t->node + 4),
                     {{bytes_of(t->node + 8), bytes_of(t->node + 12)}},
                     vld1q_u8(t->order)};
}

/* Places of the bytes of floats number i of a table. */
static QK_INLINE uint8x16_t places(uint32x4_t i)
{
    return vreinterpretq_u8_u32(vmlaq_n_u32(vdupq_n_u32(0x03020100), i, 0x04040404));
}

/* One level down: from `at` to 2 at, or 2 at + 1 where v is above the node. */
static QK_INLINE uint32x4_t descend(uint32x4_t at, float32x4_t v, uint8x16_t node)
{
    return vsubq_u32(vaddq_u32(at, at), vcgtq_f32(v, vreinterpretq_f32_u8(node)));
}

static QK_INLINE uint32x4_t rank4(const float *x, float factor, const nodes16 *t)
{
    const float32x4_t v = vmulq_n_f32(vld1q_f32(x), factor);
    uint32x4_t at = vsubq_u32(vdupq_n_u32(0), vcgtq_f32(v, t->depth0));
    at = descend(at, v, vqtbl1q_u8(t->depth1, places(at)));
    at = descend(at, v, vqtbl1q_u8(t->depth2, places(at)));
    return descend(at, v, vqtbl2q_u8(t->depth3, places(at)));
}

static inline void encode16(const float *x, uint8_t *q, float factor, nodes16 t)
{
    const uint16x8_t low = vcombine_u16(vmovn_u32(rank4(x, factor, &t)), vmovn_u32(rank4(x + 4, factor, &t)));
    const uint16x8_t high = vcombine_u16(vmovn_u32(rank4(x + 8, factor, &t)), vmovn_u32(rank4(x + 12, factor, &t)));
    vst1q_u8(q, vqtbl1q_u8(t.order, vcombine_u8(vmovn_u16(low), vmovn_u16(high))));
}

/* Scales of four blocks and what to multiply with; returns the largest as bits. */
static inline int32_t magnitudes4(const float *x, size_t block, float *scale, float *factor)
{
    const int32x4_t mask = vdupq_n_s32(INT32_MAX);
    int32_t most[4];
    for (int i = 0; i < 4; i++, x += block) {
        int32x4_t even = vdupq_n_s32(0), odd = even;
        for (size_t j = 0; j < block; j += 8) {
            even = vmaxq_s32(even, vandq_s32(vreinterpretq_s32_f32(vld1q_f32(x + j)), mask));
            odd = vmaxq_s32(odd, vandq_s32(vreinterpretq_s32_f32(vld1q_f32(x + j + 4)), mask));
        }
        most[i] = vmaxvq_s32(vmaxq_s32(even, odd));
    }
    const int32x4_t all = vld1q_s32(most), divisor = vmaxq_s32(all, vdupq_n_s32(0x00800000)); /* FLT_MIN at least */
    vst1q_f32(scale, vreinterpretq_f32_s32(all));
    vst1q_f32(factor, vdivq_f32(vdupq_n_f32(1.0f), vreinterpretq_f32_s32(divisor)));
    return vmaxvq_s32(all);
}

/* All 16 levels. */
typedef uint8x16x4_t levels16;

static inline levels16 load_levels16(const qk_levels *t)
{
    return (levels16){{bytes_of(t->level), bytes_of(t->level + 4), bytes_of(t->level + 8), bytes_of(t->level + 12)}};
}

/* Four codes from number `first` on. */
static QK_INLINE void decode4(uint8x16_t codes, const uint8_t first, float *y, float scale, const levels16 *levels)
{
    const uint8x16_t four_times = {0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3};
    const uint8x16_t each = vqtbl1q_u8(codes, vaddq_u8(four_times, vdupq_n_u8(first)));
    const uint8x16_t at = vorrq_u8(vshlq_n_u8(each, 2), vreinterpretq_u8_u32(vdupq_n_u32(0x03020100)));
    vst1q_f32(y, vmulq_n_f32(vreinterpretq_f32_u8(vqtbl4q_u8(*levels, at)), scale));
}

static inline void decode16(const uint8_t *q, float *y, float scale, levels16 levels)
{
    const uint8x16_t codes = vandq_u8(vld1q_u8(q), vdupq_n_u8(15));
    decode4(codes, 0, y, scale, &levels), decode4(codes, 4, y + 4, scale, &levels);
    decode4(codes, 8, y + 8, scale, &levels), decode4(codes, 12, y + 12, scale, &levels);
}

#endif
