/* What the loops of elementwise.h ask for, on the registers of avx2.h or avx512.h: within the target of the file that
 * includes this first, which has set VECTOR. */
#ifndef QK_X86_ELEMENTWISE_H
#define QK_X86_ELEMENTWISE_H

#include "kernels/kernels.h"
#include "runtime/compiler.h"
#if VECTOR == 64
#include "kernels/x86/avx512.h"
#else
#define VECTOR 32
#include "kernels/x86/avx2.h"
#endif

#define HAVE_FMA 1
#define GROUP VECTOR
#define HAVE_WIDEN

#include "kernels/generic/target.h"

enum { FLOATS = VECTOR / sizeof(float) };

/* x / scale, rounded to an integer (numerics 3); INT32_MIN where it is NaN or beyond int32. x is read once: gcc would
 * rather read it again as an operand, and loads that straddle cache lines are dear. */
static inline reg quotients(const float *x, floats scale, floats reciprocal)
{
    floats v = load_floats(x);
    QK_KEEP(v);
    const floats q = product_of(v, reciprocal);
    return to_i32(add_product(q, subtract_product(v, q, scale), reciprocal));
}

/* Codes of what packs saturated to 16 bits, within the range; packed twice, they are in the order of lanes. */
static inline reg packed_lanes(reg n0, reg n1, int32_t qmin, int32_t qmax)
{
    const int whole = qmax - qmin >= 255;
    if (qmin < 0) {
        const reg codes = packs_i16(n0, n1);
        return whole ? codes : min_i8(max_i8(codes, all_i8(qmin)), all_i8(qmax));
    }
    const reg codes = pack_u16(n0, n1);
    return whole ? codes : min_u8(max_u8(codes, all_i8(qmin)), all_i8(qmax));
}

static inline reg packed_codes(reg n0, reg n1, int32_t qmin, int32_t qmax)
{
    return in_order(packed_lanes(n0, n1, qmin, qmax));
}

/* The same after zero points are added. */
static inline reg to_codes(reg n0, reg n1, reg zero0, reg zero1, int32_t qmin, int32_t qmax)
{
    return packed_codes(adds_i16(n0, zero0), adds_i16(n1, zero1), qmin, qmax);
}

/* Parameters of a group, half of which has those from number a on, or that one (step 0), the other half those of b. */
typedef struct {
    floats scale0, scale1, scale2, scale3, reciprocal0, reciprocal1, reciprocal2, reciprocal3;
    reg zero0, zero1; /* 16 bits, in the order of packs_i32 */
    int32_t qmin, qmax;
} group_parameters;

static QK_INLINE floats some_floats(const float *p, const size_t step)
{
    return step ? load_floats(p) : all_floats(*p);
}

static QK_INLINE reg some_zeros(const int32_t *p, const size_t step)
{
    return step ? packs_i32(load_reg(p), load_reg(p + FLOATS)) : all_i16(*p);
}

static QK_INLINE group_parameters load_group(const qk_affines *p, size_t a, size_t b, const size_t step)
{
    const float *s = p->scale, *r = p->reciprocal;
    return (group_parameters){some_floats(s + a, step),
                              some_floats(s + a + step * FLOATS, step),
                              some_floats(s + b, step),
                              some_floats(s + b + step * FLOATS, step),
                              some_floats(r + a, step),
                              some_floats(r + a + step * FLOATS, step),
                              some_floats(r + b, step),
                              some_floats(r + b + step * FLOATS, step),
                              some_zeros(p->zero_point + a, step),
                              some_zeros(p->zero_point + b, step),
                              p->qmin,
                              p->qmax};
}

/* Codes of two halves of a group. Returns 0, and stores nothing, if one may come from NaN or from beyond int32. */
static QK_INLINE int group_codes(const float *x0, const float *x1, group_parameters p, reg *codes)
{
    const reg n0 = packs_i32(quotients(x0, p.scale0, p.reciprocal0), quotients(x0 + FLOATS, p.scale1, p.reciprocal1));
    const reg n1 = packs_i32(quotients(x1, p.scale2, p.reciprocal2), quotients(x1 + FLOATS, p.scale3, p.reciprocal3));
    if (any_equal_i16(min_i16(n0, n1), INT16_MIN)) return 0;
    *codes = to_codes(n0, n1, p.zero0, p.zero1, p.qmin, p.qmax);
    return 1;
}

static QK_INLINE int quantize_group(const float *x, uint8_t *q, group_parameters p)
{
    reg codes;
    if (!group_codes(x, x + 2 * FLOATS, p, &codes)) return 0;
    store_reg(q, codes);
    return 1;
}

/* Halves that lie apart, or overlap. */
static QK_INLINE int quantize_halves(const float *x0, const float *x1, uint8_t *q0, uint8_t *q1, group_parameters p)
{
    reg codes;
    if (!group_codes(x0, x1, p, &codes)) return 0;
    store_halves(q0, q1, codes);
    return 1;
}

/* 8-bit codes: gcc widens them by chains of shuffles, the loads do it at once. */
static inline void widen_span(const uint8_t *q, int is_signed, int32_t *to)
{
    for (int i = 0; i < 32; i += FLOATS) store_reg(to + i, is_signed ? widen_i8(q + i) : widen_u8(q + i));
}

#endif
