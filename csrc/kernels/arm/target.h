/* Intrinsics of 64-bit ARM, and what the tiles of all its instruction sets share. */
#ifndef QK_ARM_TARGET_H
#define QK_ARM_TARGET_H

#include <arm_neon.h>
#include <stdint.h>
#include <string.h>

#include "kernels/target_pragma.h"
#include "runtime/compiler.h"

/* A fused multiply-add is one instruction. */
#define HAVE_FMA 1

/* Loads that follow do not come before this: gcc 12 would have all of a step in registers, and sums in memory. */
#define QK_IN_ORDER __asm__ volatile("" ::: "memory")

/* A register that holds v here: what is computed before and after stays there. */
#define QK_KEEP(v) __asm__("" : "+w"(v))

/* 4 bytes in the first lane of a register, by one load and no instruction of the vector pipes. */
static QK_INLINE uint8x8_t load4(const void *p)
{
    uint32_t four;
    memcpy(&four, p, sizeof four);
    return vcreate_u8(four);
}

/* 4 registers of 16 codes of b: in dot products each has 4 codes of 4 columns. */
typedef struct {
    uint8x16_t b0, b1, b2, b3;
} row_codes;

static QK_INLINE row_codes load_codes(const void *panel)
{
    const uint8_t *p = panel;
    return (row_codes){vld1q_u8(p), vld1q_u8(p + 16), vld1q_u8(p + 32), vld1q_u8(p + 48)};
}

/* Each byte of 16 four times. */
static QK_INLINE row_codes each_four_times(uint8x16_t v)
{
    const uint16x8_t low = vreinterpretq_u16_u8(vzip1q_u8(v, v)), high = vreinterpretq_u16_u8(vzip2q_u8(v, v));
    return (row_codes){vreinterpretq_u8_u16(vzip1q_u16(low, low)), vreinterpretq_u8_u16(vzip2q_u16(low, low)),
                       vreinterpretq_u8_u16(vzip1q_u16(high, high)), vreinterpretq_u8_u16(vzip2q_u16(high, high))};
}

/* Sums of 16 columns of a row. */
typedef struct {
    uint32x4_t c0, c1, c2, c3;
} row_sums;

static QK_INLINE row_sums load_sums(const int32_t *c)
{
    const uint32_t *p = (const uint32_t *)c;
    return (row_sums){vld1q_u32(p), vld1q_u32(p + 4), vld1q_u32(p + 8), vld1q_u32(p + 12)};
}

static QK_INLINE void store_sums(int32_t *c, row_sums s)
{
    uint32_t *p = (uint32_t *)c;
    vst1q_u32(p, s.c0), vst1q_u32(p + 4, s.c1), vst1q_u32(p + 8, s.c2), vst1q_u32(p + 12, s.c3);
}

static QK_INLINE row_sums minus(row_sums s, uint32_t v)
{
    const uint32x4_t all = vdupq_n_u32(v);
    return (row_sums){vsubq_u32(s.c0, all), vsubq_u32(s.c1, all), vsubq_u32(s.c2, all), vsubq_u32(s.c3, all)};
}

#endif
