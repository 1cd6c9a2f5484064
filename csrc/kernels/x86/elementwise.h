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

#include "kernels/generic/gelu.h"
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

/* Sums with ROUNDER of FLOATS values times the factor above; `differ` keeps the bits in which those below differ. */
static QK_INLINE reg bracketed(const float *x, floats above, floats below, floats start, reg *differ)
{
    floats v = load_floats(x);
    QK_KEEP(v);
    const reg sums = bits_of_floats(add_product(start, v, above));
    *differ = or_differences(*differ, sums, bits_of_floats(add_product(start, v, below)));
    return sums;
}

/* The factors of a bracket, and the bits in which its sums differed so far. */
typedef struct {
    floats above, below, start;
    reg even, odd;
} bracket_state;

static QK_INLINE reg bracketed_group(const float *x, bracket_state *s)
{
    const reg a = bracketed(x, s->above, s->below, s->start, &s->even);
    const reg b = bracketed(x + FLOATS, s->above, s->below, s->start, &s->odd);
    const reg c = bracketed(x + 2 * FLOATS, s->above, s->below, s->start, &s->even);
    return low_bytes(a, b, c, bracketed(x + 3 * FLOATS, s->above, s->below, s->start, &s->odd));
}

/* The last group, if it is not whole, from a copy that zeros fill up: after the loop, whose constants would not stay in
 * registers beside a copy. */
#define HAVE_BRACKETED_CODES
static int bracketed_codes(const float *x, uint8_t *q, size_t n, qk_bracket p)
{
    const size_t whole = n / GROUP * GROUP;
    bracket_state s = {all_floats(p.above), all_floats(p.below), all_floats(p.start), zero_reg(), zero_reg()};
    for (size_t i = 0; i < whole; i += GROUP) store_reg(q + i, bracketed_group(x + i, &s));
    if (whole < n) {
        float last[GROUP] = {0};
        uint8_t codes[GROUP];
        memcpy(last, x + whole, (n - whole) * sizeof *x);
        store_reg(codes, bracketed_group(last, &s));
        memcpy(q + whole, codes, n - whole);
    }
    return is_zero(or_differences(s.even, s.odd, zero_reg()));
}

/* Largest magnitude of rows, as bits: gcc would keep the lanes of it in memory. */
#define HAVE_ABSMAX
static int32_t absmax_f32(const float *x, size_t stride, size_t rows, size_t cols)
{
    const size_t whole = cols / (2 * FLOATS) * (2 * FLOATS);
    const reg sign = bits_of_floats(all_floats(-0.0f));
    reg left = zero_reg(), right = left;
    int32_t lanes[FLOATS], most = 0;
    for (size_t i = 0; i < rows; i++, x += stride) {
        for (size_t j = 0; j < whole; j += 2 * FLOATS) {
            left = max_i32(left, but_not(sign, load_reg(x + j)));
            right = max_i32(right, but_not(sign, load_reg(x + j + FLOATS)));
        }
        for (size_t j = whole; j < cols; j++) {
            int32_t bits;
            memcpy(&bits, x + j, sizeof bits);
            most = most < (bits & INT32_MAX) ? bits & INT32_MAX : most;
        }
    }
    store_reg(lanes, max_i32(left, right));
    for (int j = 0; j < FLOATS; j++) most = lanes[j] > most ? lanes[j] : most;
    return most;
}

static inline reg sums_with_rounder(const float *x, floats inverse)
{
    return bits_of_floats(sum_of(product_of(load_floats(x), inverse), all_floats(ROUNDER)));
}

static inline uint8_t symmetric_code(float x, float inverse, uint8_t flip)
{
    const float sum = x * inverse + ROUNDER;
    uint32_t bits;
    memcpy(&bits, &sum, sizeof bits);
    return (uint8_t)bits ^ flip;
}

/* Two rows at a time, as those of a head are narrow; where their number is odd, the last of them twice. */
#define HAVE_SYMMETRIC_CODES
static void symmetric_codes_f32(const float *x, size_t stride, size_t rows, size_t cols, float inverse, uint8_t flip,
                                uint8_t *q, size_t ldq)
{
    const size_t whole = cols / (2 * FLOATS) * (2 * FLOATS);
    const floats factor = all_floats(inverse);
    const reg flips = all_i8(flip);
    for (size_t i = 0; i < rows; i += 2, x += 2 * stride, q += 2 * ldq) {
        const float *x1 = i + 1 < rows ? x + stride : x;
        uint8_t *q1 = i + 1 < rows ? q + ldq : q;
        for (size_t j = 0; j < whole; j += 2 * FLOATS) {
            const reg a = sums_with_rounder(x + j, factor), b = sums_with_rounder(x + j + FLOATS, factor);
            const reg c = sums_with_rounder(x1 + j, factor), d = sums_with_rounder(x1 + j + FLOATS, factor);
            store_halves(q + j, q1 + j, exclusive(low_bytes(a, b, c, d), flips));
        }
        for (size_t j = whole; j < cols; j++)
            q[j] = symmetric_code(x[j], inverse, flip), q1[j] = symmetric_code(x1[j], inverse, flip);
    }
}

/* Lines that are not whole go through the cache. */
#define HAVE_COPY_PAST_CACHES
static void copy_past_caches(const void *from, void *to, size_t bytes)
{
    const char *source = from;
    char *target = to;
    const size_t head = -(uintptr_t)to & 63, whole = bytes > head ? (bytes - head) / 64 * 64 : 0;
    size_t i = whole ? head : 0;
    memcpy(target, source, i);
    for (const size_t end = i + whole; i < end; i += VECTOR) store_past_caches(target + i, load_reg(source + i));
    memcpy(target + i, source + i, bytes - i);
}

/* 8-bit codes: gcc widens them by chains of shuffles, the loads do it at once. */
static inline void widen_span(const uint8_t *q, int is_signed, int32_t *to)
{
    for (int i = 0; i < 32; i += FLOATS) store_reg(to + i, is_signed ? widen_i8(q + i) : widen_u8(q + i));
}

#endif
