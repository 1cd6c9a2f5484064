/* Registers of NEON, for loops that x86 has, too (kernels/registers.h). A file whose target has dot products sets
 * WITH_DOTPROD to 1, and WITH_I8MM if they take unsigned codes by signed ones. */
#ifndef QK_ARM_REGISTERS_H
#define QK_ARM_REGISTERS_H

#include "kernels/arm/target.h"
#include "kernels/kernels.h"
#include "runtime/compiler.h"

#ifndef WITH_DOTPROD
#define WITH_DOTPROD 0
#endif
#ifndef WITH_I8MM
#define WITH_I8MM 0
#endif

typedef uint8x16_t reg;
typedef float32x4_t floats;
enum { REG = 16 }; /* bytes */

#define AS_I8(v) vreinterpretq_s8_u8(v)
#define AS_I16(v) vreinterpretq_s16_u8(v)
#define AS_I32(v) vreinterpretq_s32_u8(v)
#define AS_U16(v) vreinterpretq_u16_u8(v)
#define OF_I8(v) vreinterpretq_u8_s8(v)
#define OF_I16(v) vreinterpretq_u8_s16(v)
#define OF_I32(v) vreinterpretq_u8_s32(v)
#define OF_U16(v) vreinterpretq_u8_u16(v)

static inline reg load_reg(const void *p) { return vld1q_u8(p); }
static inline void store_reg(void *p, reg v) { vst1q_u8(p, v); }
static inline reg zero_reg(void) { return vdupq_n_u8(0); }
static inline reg all_i8(int v) { return vdupq_n_u8((uint8_t)v); }
static inline reg all_i16(int v) { return OF_I16(vdupq_n_s16((int16_t)v)); }
static inline reg all_i32_at(const int32_t *p) { return OF_I32(vld1q_dup_s32(p)); }
static inline reg exclusive(reg a, reg b) { return veorq_u8(a, b); }
static inline reg max_u8(reg a, reg b) { return vmaxq_u8(a, b); }
static inline reg add_i16(reg a, reg b) { return OF_I16(vaddq_s16(AS_I16(a), AS_I16(b))); }
static inline reg adds_i16(reg a, reg b) { return OF_I16(vqaddq_s16(AS_I16(a), AS_I16(b))); }
static inline reg add_i32(reg a, reg b) { return OF_I32(vaddq_s32(AS_I32(a), AS_I32(b))); }

/* The asm pins the sum to its register, as those of products below do: gcc 12 would copy it before or after. */
static inline reg add_to_i32(reg c, reg v)
{
    __asm__("add %0.4s, %0.4s, %1.4s" : "+w"(c) : "w"(v));
    return c;
}

static inline reg low_u8(reg a, reg b) { return vzip1q_u8(a, b); }
static inline reg high_u8(reg a, reg b) { return vzip2q_u8(a, b); }
static inline reg low_u16(reg a, reg b) { return OF_U16(vzip1q_u16(AS_U16(a), AS_U16(b))); }
static inline reg high_u16(reg a, reg b) { return OF_U16(vzip2q_u16(AS_U16(a), AS_U16(b))); }

/* Products of int16, of which two neighbours are added. */
static inline reg madd_i16(reg a, reg b)
{
    const int32x4_t low = vmull_s16(vget_low_s16(AS_I16(a)), vget_low_s16(AS_I16(b)));
    return OF_I32(vpaddq_s32(low, vmull_high_s16(AS_I16(a), AS_I16(b))));
}

static inline floats load_floats(const float *p) { return vld1q_f32(p); }
static inline floats all_floats(float v) { return vdupq_n_f32(v); }
static inline floats to_floats(reg v) { return vcvtq_f32_s32(AS_I32(v)); }
static inline floats smaller_of(floats a, floats b) { return vminq_f32(a, b); }
static inline floats product_of(floats a, floats b) { return vmulq_f32(a, b); }
static inline reg to_i32(floats v) { return OF_I32(vcvtnq_s32_f32(v)); }
static inline reg packs_i32(reg a, reg b) { return OF_I16(vqmovn_high_s32(vqmovn_s32(AS_I32(a)), AS_I32(b))); }

/* Codes of 16 bits, within the range. */
static inline reg packed_lanes(reg n0, reg n1, int32_t qmin, int32_t qmax)
{
    const reg lo = all_i8(qmin), hi = all_i8(qmax);
    if (qmin >= 0) return vminq_u8(vmaxq_u8(vqmovun_high_s16(vqmovun_s16(AS_I16(n0)), AS_I16(n1)), lo), hi);
    const int8x16_t codes = vqmovn_high_s16(vqmovn_s16(AS_I16(n0)), AS_I16(n1));
    return OF_I8(vminq_s8(vmaxq_s8(codes, AS_I8(lo)), AS_I8(hi)));
}

/* The first so many bytes of a register, no more of which are read or written; what is read ends with zeros. */
typedef size_t some_codes;

static inline some_codes first_codes(size_t n) { return n < REG ? n : REG; }
static inline reg load_some(const uint8_t *p, some_codes some)
{
    uint8_t codes[REG] = {0};
    memcpy(codes, p, some);
    return load_reg(codes);
}
static inline void store_some(uint8_t *p, reg v, some_codes some)
{
    uint8_t codes[REG];
    store_reg(codes, v);
    memcpy(p, codes, some);
}

/* Of a register that has parts; here one is all of it. */
static inline reg load_parts(const uint8_t *const *p, const int parts, some_codes some)
{
    (void)parts;
    return load_some(*p, some);
}
static inline void store_parts(uint8_t *const *p, size_t at, reg v, const int parts, some_codes some)
{
    (void)parts;
    store_some(*p + at, v, some);
}

/* Four products are added to each lane. */
#if WITH_I8MM
static inline reg multiply_add(reg sum, reg codes, reg weights)
{
    __asm__("usdot %0.4s, %1.16b, %2.16b" : "+w"(sum) : "w"(codes), "w"(weights));
    return sum;
}
#elif WITH_DOTPROD
/* Codes less 128, as signed ones. */
#define HAVE_TAP_STARTS
static inline reg multiply_add(reg sum, reg codes, reg weights)
{
    __asm__("sdot %0.4s, %1.16b, %2.16b" : "+w"(sum) : "w"(exclusive(codes, all_i8(128))), "w"(weights));
    return sum;
}

/* What that takes from the sums of 16 channels, whose weights these are, is added to those that they start from. */
static QK_INLINE const int32_t *tap_starts(const int wide, size_t steps, const char *weights, const int32_t *init,
                                           int32_t *own)
{
    if (wide) return init;
    for (int i = 0; i < REG; i += 4) {
        int32x4_t sum = vdupq_n_s32(0);
        for (size_t s = 0; s < steps; s++)
            sum = vdotq_s32(sum, AS_I8(load_reg(weights + 4 * REG * s + 4 * i)), vdupq_n_s8(1));
        vst1q_s32(own + i, vaddq_s32(vld1q_s32(init + i), vshlq_n_s32(sum, 7)));
    }
    return own;
}
#endif

#endif
