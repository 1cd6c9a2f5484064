/* The elementwise loops, compiled once per instruction set: ordinary C that the compiler vectorizes.
 * The including file sets its target, HAVE_FMA and, where intrinsics do better, GROUP: then it has quantize_group and
 * quantize_group_columns, which see GROUP elements at a time.
 *
 * Float results have equal bits everywhere: each operation is written out, rounded once and never
 * contracted; where a fused multiply-add is meant it is called by name (numerics 9). */
#ifndef QK_GENERIC_ELEMENTWISE_H
#define QK_GENERIC_ELEMENTWISE_H

#include <float.h>
#include <math.h>
#include <string.h>

#include "kernels/generic/gelu.h"
#include "kernels/generic/target.h"
#include "kernels/kernels.h"
#include "runtime/compiler.h"

#define SPECIAL_BITS 0x30000000 /* of a sum v + ROUNDER: clear in 0x4b000000 to 0x4bffffff, set in NaN */

static inline int32_t bits_of(float v)
{
    int32_t i;
    memcpy(&i, &v, sizeof i);
    return i;
}

static inline float float_of(int32_t i)
{
    float v;
    memcpy(&v, &i, sizeof v);
    return v;
}

static inline float at_least(float lo, float v) { return lo > v ? lo : v; } /* NaN stays NaN */
static inline float not_above(float hi, float v) { return hi < v ? hi : v; }
static inline float clamp(float v, float lo, float hi) { return not_above(hi, at_least(lo, v)); }
static inline float nan_to_zero(float v) { return v == v ? v : 0.0f; }

/* |v| < 2^22 */
static inline int32_t round_to_int(float v, int half_away)
{
    float shifted = v + ROUNDER;
    int32_t n = bits_of(shifted) - bits_of(ROUNDER);
    if (half_away) {
        float rest = v - (shifted - ROUNDER); /* exact */
        n += (rest == 0.5f) & (v > 0);
        n -= (rest == -0.5f) & (v < 0);
    }
    return n;
}

/* ---- quantize (numerics 3) ---- */

/* x / scale, within [v_lo, v_hi] up to rounding; NaN stays. `divide` is a constant where this is inlined. */
static inline float quotient_or_nan(float x, const qk_affine *p, int divide)
{
    if (divide) return clamp(x / p->scale, p->v_lo, p->v_hi);
    x = clamp(x, p->x_lo, p->x_hi);
    float q = x * p->reciprocal;
    return __builtin_fmaf(__builtin_fmaf(-q, p->scale, x), p->reciprocal, q);
}

static inline float quotient(float x, const qk_affine *p, int divide)
{
    return nan_to_zero(quotient_or_nan(x, p, divide));
}

static inline int must_divide(const qk_affine *p) { return !HAVE_FMA || p->reciprocal == 0; }

static inline void quantize_run(const float *restrict x, void *restrict q, int bytes, size_t n, const qk_affine *given,
                                int divide, int half_away)
{
    const qk_affine p = *given; /* a copy that stores to q cannot change */
    uint8_t *restrict q8 = q;
    uint16_t *restrict q16 = q;
    for (size_t i = 0; i < n; i++) {
        int32_t code = round_to_int(quotient(x[i], &p, divide), half_away) + p.zero_point;
        if (bytes == 1)
            q8[i] = (uint8_t)code;
        else
            q16[i] = (uint16_t)code;
    }
}

static void quantize_any(const float *x, void *q, int bytes, size_t n, const qk_affine *p)
{
    if (p->half_away)
        quantize_run(x, q, bytes, n, p, 1, 1);
    else if (must_divide(p))
        quantize_run(x, q, bytes, n, p, 1, 0);
    else
        quantize_run(x, q, bytes, n, p, 0, 0);
}

static inline void quantize_columns_row(const float *restrict x, void *restrict q, int bytes, size_t n,
                                        const qk_affine_columns *p, int half_away)
{
    const float *restrict scale = p->scale;
    const int32_t *restrict zero_point = p->zero_point;
    const int32_t qmin = p->qmin, qmax = p->qmax;
    uint8_t *restrict q8 = q;
    uint16_t *restrict q16 = q;
    for (size_t i = 0; i < n; i++) {
        int32_t z = zero_point[i];
        float v = clamp(nan_to_zero(x[i] / scale[i]), (float)(qmin - z), (float)(qmax - z));
        int32_t code = round_to_int(v, half_away) + z;
        if (bytes == 1)
            q8[i] = (uint8_t)code;
        else
            q16[i] = (uint16_t)code;
    }
}

static void quantize_rows(const float *x, void *q, int bytes, size_t n, const qk_affine_columns *p)
{
    for (size_t row = 0; row < p->rows; row++) {
        const float *from = x + row * p->stride;
        char *to = (char *)q + row * p->stride * (size_t)bytes;
        if (p->half_away)
            quantize_columns_row(from, to, bytes, n, p, 1);
        else
            quantize_columns_row(from, to, bytes, n, p, 0);
    }
}

#ifdef GROUP
/* Where the group after the one at i begins: the last one overlaps its neighbour instead of leaving a tail. */
static inline size_t next_group(size_t i, size_t n)
{
    i += GROUP;
    return i < n && n - i < GROUP ? n - GROUP : i;
}
#endif

static void quantize_f32_8(const float *x, uint8_t *q, size_t n, const qk_affine *p)
{
#ifdef GROUP
    if (n >= GROUP && !p->half_away && !must_divide(p)) {
        const qk_affine fixed = *p; /* as in quantize_run: its broadcasts leave the loop */
        for (size_t i = 0; i + GROUP <= n; i += GROUP)
            if (!quantize_group(x + i, q + i, &fixed)) quantize_any(x + i, q + i, 1, GROUP, p);
        x += n - GROUP, q += n - GROUP; /* the last group overlaps its neighbour instead of leaving a tail */
        if (n % GROUP && !quantize_group(x, q, &fixed)) quantize_any(x, q, 1, GROUP, p);
        return;
    }
#endif
    quantize_any(x, q, 1, n, p);
}

#ifdef GROUP
/* GROUP columns of all rows; those with NaN or huge values take the slow way one by one. */
static void quantize_column_group(const float *x, uint8_t *q, const qk_affine_columns *p, size_t i)
{
    for (size_t row = 0; row < p->rows; row++) {
        row += quantize_group_columns(x + row * p->stride, q + row * p->stride, p, i, p->rows - row);
        if (row == p->rows) return;
        const qk_affine_columns one = {p->scale + i, NULL, p->zero_point + i, p->qmin, p->qmax, 0, 1, 0};
        quantize_rows(x + row * p->stride, q + row * p->stride, 1, GROUP, &one);
    }
}
#endif

static void quantize_columns_f32_8(const float *x, uint8_t *q, size_t n, const qk_affine_columns *p)
{
#ifdef GROUP
    if (n >= GROUP && !p->half_away && p->reciprocal) {
        for (size_t i = 0; i < n; i = next_group(i, n)) quantize_column_group(x + i, q + i, p, i);
        return;
    }
#endif
    quantize_rows(x, q, 1, n, p);
}

static void quantize_f32_16(const float *x, uint16_t *q, size_t n, const qk_affine *p) { quantize_any(x, q, 2, n, p); }

static void quantize_columns_f32_16(const float *x, uint16_t *q, size_t n, const qk_affine_columns *p)
{
    quantize_rows(x, q, 2, n, p);
}

/* ---- dequantize (numerics 4) ---- */

/* int32 codes wrap, so the difference is taken modulo 2^32 */
static inline float difference(int32_t code, int32_t zero_point)
{
    return (float)(int32_t)((uint32_t)code - (uint32_t)zero_point);
}

static inline void dequantize_run(const void *restrict q, qk_dtype from, float *restrict y, size_t n,
                                  const qk_affine *p)
{
    const float scale = p->scale;
    const int32_t zero_point = p->zero_point;
    for (size_t i = 0; i < n; i++) y[i] = difference(qk_code_at(q, from, i), zero_point) * scale;
}

#ifdef HAVE_WIDEN
/* 8-bit codes, GROUP at a time; the array of codes lives in registers. Returns how many are done. */
static inline size_t dequantize_groups(const uint8_t *restrict q, int is_signed, float *restrict y, size_t n,
                                       const qk_affine *p)
{
    const float scale = p->scale;
    const int32_t zero_point = p->zero_point;
    size_t done = 0;
    for (; n - done >= GROUP; done += GROUP) {
        int32_t codes[GROUP];
        widen_group(q + done, is_signed, codes);
        for (int j = 0; j < GROUP; j++) y[done + j] = difference(codes[j], zero_point) * scale;
    }
    return done;
}
#endif

static void dequantize_8(const uint8_t *q, qk_dtype from, float *y, size_t n, const qk_affine *p)
{
    size_t done = 0;
#ifdef HAVE_WIDEN
    done = from == QK_I8 ? dequantize_groups(q, 1, y, n, p) : dequantize_groups(q, 0, y, n, p);
#endif
    if (from == QK_I8)
        dequantize_run(q + done, QK_I8, y + done, n - done, p);
    else
        dequantize_run(q + done, QK_U8, y + done, n - done, p);
}

static void dequantize_f32(const void *q, qk_dtype from, float *y, size_t n, const qk_affine *p)
{
    switch (from) {
    case QK_I8:
    case QK_U8: dequantize_8(q, from, y, n, p); break;
    case QK_I16: dequantize_run(q, QK_I16, y, n, p); break;
    case QK_U16: dequantize_run(q, QK_U16, y, n, p); break;
    case QK_I4: dequantize_run(q, QK_I4, y, n, p); break;
    case QK_U4: dequantize_run(q, QK_U4, y, n, p); break;
    case QK_I2: dequantize_run(q, QK_I2, y, n, p); break;
    case QK_U2: dequantize_run(q, QK_U2, y, n, p); break;
    default: dequantize_run(q, QK_I32, y, n, p); break;
    }
}

static inline void dequantize_columns_run(const void *restrict q, qk_dtype from, float *restrict y, size_t n,
                                          const qk_affine_columns *p)
{
    const float *restrict scale = p->scale;
    const int32_t *restrict zero_point = p->zero_point;
    for (size_t row = 0; row < p->rows; row++)
        for (size_t i = 0, at = row * p->stride; i < n; i++, at++)
            y[at] = difference(qk_code_at(q, from, at), zero_point[i]) * scale[i];
}

static void dequantize_columns_f32(const void *q, qk_dtype from, float *y, size_t n, const qk_affine_columns *p)
{
    switch (from) {
    case QK_I8: dequantize_columns_run(q, QK_I8, y, n, p); break;
    case QK_U8: dequantize_columns_run(q, QK_U8, y, n, p); break;
    case QK_I16: dequantize_columns_run(q, QK_I16, y, n, p); break;
    case QK_U16: dequantize_columns_run(q, QK_U16, y, n, p); break;
    case QK_I4: dequantize_columns_run(q, QK_I4, y, n, p); break;
    case QK_U4: dequantize_columns_run(q, QK_U4, y, n, p); break;
    case QK_I2: dequantize_columns_run(q, QK_I2, y, n, p); break;
    case QK_U2: dequantize_columns_run(q, QK_U2, y, n, p); break;
    default: dequantize_columns_run(q, QK_I32, y, n, p); break;
    }
}

/* Returns the bits of all sums or-ed: those of SPECIAL_BITS are set where, and only where, some x is NaN. x may be y.
 */
static inline int32_t fake_quantize_block(const float *x, float *y, size_t n, const qk_affine *given, int divide)
{
    const qk_affine p = *given;
    int32_t seen = 0;
    for (size_t i = 0; i < n; i++) {
        float shifted = quotient_or_nan(x[i], &p, divide) + ROUNDER;
        seen |= bits_of(shifted);
        y[i] = (shifted - ROUNDER) * p.scale;
    }
    return seen;
}

/* NaN is rare: it goes through the loop, and is put right where it was seen. */
static inline void fake_quantize_run(const float *x, float *y, size_t n, const qk_affine *p, int divide)
{
    enum { BLOCK = 1024 };
    for (size_t count; n > 0; x += count, y += count, n -= count) {
        count = n < BLOCK ? n : BLOCK;
        if (fake_quantize_block(x, y, count, p, divide) & SPECIAL_BITS)
            for (size_t i = 0; i < count; i++) y[i] = nan_to_zero(y[i]);
    }
}

static void fake_quantize_f32(const float *x, float *y, size_t n, const qk_affine *p)
{
    if (must_divide(p))
        fake_quantize_run(x, y, n, p, 1);
    else
        fake_quantize_run(x, y, n, p, 0);
}

static void fake_quantize_columns_f32(const float *x, float *y, size_t n, const qk_affine_columns *p)
{
    const float *scale = p->scale;
    const int32_t *zero_point = p->zero_point;
    const int32_t qmin = p->qmin, qmax = p->qmax;
    for (size_t row = 0; row < p->rows; row++)
        for (size_t i = 0, at = row * p->stride; i < n; i++, at++) {
            float lo = (float)(qmin - zero_point[i]), hi = (float)(qmax - zero_point[i]);
            float v = clamp(nan_to_zero(x[at] / scale[i]), lo, hi);
            y[at] = ((v + ROUNDER) - ROUNDER) * scale[i];
        }
}

/* ---- bounds (numerics 2) ---- */

/* The bits of floats of one sign are in the order of their magnitudes, NaN beyond infinity. As int32 all negative
 * floats lie below 0.0, as uint32 all positive ones below -0.0: from these two the maxima see one sign each. */
static void minmax_f32(const float *x, size_t n, float *lo, float *hi)
{
    int32_t highest = 0;
    uint32_t lowest = 0x80000000u;
    for (size_t i = 0; i < n; i++) {
        int32_t bits = bits_of(x[i]);
        highest = bits > highest ? bits : highest;
        lowest = (uint32_t)bits > lowest ? (uint32_t)bits : lowest;
    }
    *lo = float_of((int32_t)lowest);
    *hi = float_of(highest);
}

/* ---- float16 and bfloat16: exact one way, rounded half to even the other ---- */

static void f16_to_f32(const uint16_t *restrict x, float *restrict y, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        int32_t sign = (int32_t)((uint32_t)(x[i] & 0x8000) << 16), magnitude = x[i] & 0x7fff;
        /* The exponent bias differs by 112; the product also normalises subnormals. */
        float scaled = float_of(magnitude << 13) * 0x1p112f;
        int32_t special = magnitude >= 0x7c00 ? 0x7f800000 : 0;
        y[i] = float_of(sign | bits_of(scaled) | special);
    }
}

static void f32_to_f16(const float *restrict x, uint16_t *restrict y, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        int32_t bits = bits_of(x[i]), magnitude = bits & 0x7fffffff, sign = (bits >> 16) & 0x8000;
        int32_t normal = (magnitude - (112 << 23) + 0xfff + ((magnitude >> 13) & 1)) >> 13;
        /* Below 2^-14 the last bit is 2^-24: adding 1/2 leaves it at the end of the mantissa. */
        int32_t subnormal = bits_of(float_of(magnitude) + 0.5f) - bits_of(0.5f);
        int32_t half = magnitude < (113 << 23) ? subnormal : normal;
        half = magnitude >= 0x47800000 ? 0x7c00 : half;
        half = magnitude > 0x7f800000 ? 0x7e00 : half;
        y[i] = (uint16_t)(sign | half);
    }
}

static void bf16_to_f32(const uint16_t *restrict x, float *restrict y, size_t n)
{
    for (size_t i = 0; i < n; i++) y[i] = float_of((int32_t)((uint32_t)x[i] << 16));
}

static void f32_to_bf16(const float *restrict x, uint16_t *restrict y, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        uint32_t bits = (uint32_t)bits_of(x[i]), rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
        y[i] = (uint16_t)((bits & 0x7fffffff) > 0x7f800000 ? (bits >> 16) | 0x40 : rounded);
    }
}

/* ---- elementary functions (numerics 9) ---- */

static inline float exp_f32(float x)
{
    x = clamp(x, -87.33f, 88.37f);
    float shifted = __builtin_fmaf(x, 1.44269504f, ROUNDER), n = shifted - ROUNDER;
    float r = __builtin_fmaf(n, -6.93145752e-1f, x);
    r = __builtin_fmaf(n, -1.42860677e-6f, r);
    float p = 1.394656138e-3f;
    p = __builtin_fmaf(p, r, 8.369223215e-3f);
    p = __builtin_fmaf(p, r, 4.166626185e-2f);
    p = __builtin_fmaf(p, r, 1.666651517e-1f);
    p = __builtin_fmaf(p, r, 5.000000000e-1f);
    p = __builtin_fmaf(p * r, r, r) + 1.0f;
    /* unsigned, as the bits of NaN would overflow */
    return p * float_of((int32_t)(((uint32_t)bits_of(shifted) - (uint32_t)bits_of(ROUNDER) + 127) << 23));
}

static inline float gelu_f32(float x, const gelu_table *g)
{
    const float v = not_above(GELU_SEGMENTS - 1, float_of(bits_of(x) & 0x7fffffff) * g->per_unit),
                shifted = v + ROUNDER;
    const float t = v - (shifted - ROUNDER);
    const int i = bits_of(shifted) & (GELU_SEGMENTS - 1);
    float p = g->coefficient[4][i];
    p = __builtin_fmaf(p, t, g->coefficient[3][i]);
    p = __builtin_fmaf(p, t, g->coefficient[2][i]);
    p = __builtin_fmaf(p, t, g->coefficient[1][i]);
    return __builtin_fmaf(p, t, at_least(0.0f, x) + g->coefficient[0][i]);
}

#define SILU_FAR (-88.37f) /* below it 1 + exp(-x) is beyond exp_f32 */

static inline float silu_f32(float x) { return at_least(SILU_FAR, x) / (1.0f + exp_f32(-x)); }

/* x exp(x), which goes to 0 by way of subnormal numbers. */
static inline float silu_far(float x)
{
    const float near = at_least(-200.0f, x);
    const double root = exp_f32(0.5f * near);
    return (float)(near * root * root);
}

/* ---- requantize (numerics 7) ---- */

static inline int32_t saturate(int32_t v, int32_t lo, int32_t hi) { return v < lo ? lo : v > hi ? hi : v; }

/* acc * 2^shift, saturated, for shift >= 0. */
static inline int32_t shift_left(int32_t acc, int32_t shift)
{
    return (int32_t)((uint32_t)saturate(acc, INT32_MIN >> shift, INT32_MAX >> shift) << shift);
}

/* The high half of the doubled product, rounded half up; then a shift, rounded half away from zero. |product| < 2^62,
 * so the 32 bits that are kept do not depend on how the sign is shifted in. */
static inline int32_t multiply_gemmlowp(int32_t acc, int32_t mantissa, int32_t shift)
{
    const int32_t left = shift > 0 ? shift : 0, right = shift < 0 ? -shift : 0;
    const int64_t product = (int64_t)shift_left(acc, left) * mantissa;
    const int32_t high = (int32_t)((uint64_t)(product + (1 << 30)) >> 31);
    const int32_t mask = (int32_t)((1u << right) - 1), rest = high & mask; /* right <= 31 */
    return (high >> right) + (rest > (mask >> 1) + (high < 0));
}

/* Half up. The high 32 bits of the product, and at least one bit more, are shifted out; where the multiplier is so
 * large that this needs a shift of acc to the left first, what saturates there does so in the result. */
static inline int32_t multiply_tflite(int32_t acc, int32_t mantissa, int32_t shift)
{
    shift = shift > 28 ? 28 : shift;
    const int32_t left = shift > -2 ? shift + 2 : 0, right = left - 1 - shift;
    const int32_t high = (int32_t)((uint64_t)((int64_t)shift_left(acc, left) * mantissa) >> 32);
    return (high + (int32_t)(1u << (right - 1))) >> right;
}

static inline void fixed_point_run(const int32_t *restrict acc, const int32_t *restrict mantissa,
                                   const int32_t *restrict shift, uint16_t *restrict q, size_t n, const qk_requant *r)
{
    const int32_t zero_point = r->zero_point, lo = r->qmin - zero_point, hi = r->qmax - zero_point;
    if (r->rounding == QK_GEMMLOWP)
        for (size_t i = 0; i < n; i++)
            q[i] = (uint16_t)(saturate(multiply_gemmlowp(acc[i], mantissa[i], shift[i]), lo, hi) + zero_point);
    else
        for (size_t i = 0; i < n; i++)
            q[i] = (uint16_t)(saturate(multiply_tflite(acc[i], mantissa[i], shift[i]), lo, hi) + zero_point);
}

static inline int32_t scale_to_code(float v, float lo, float hi, int32_t zero_point, int half_away)
{
    return round_to_int(clamp(v, lo, hi), half_away) + zero_point;
}

static inline void requantize_run(const int32_t *restrict acc, const int32_t *restrict bias, uint16_t *restrict q,
                                  size_t n, const qk_requant *r, int half_away)
{
    const float *restrict multiplier = r->multiplier;
    const int32_t zero_point = r->zero_point;
    const float lo = (float)(r->qmin - zero_point), hi = (float)(r->qmax - zero_point);
    for (size_t i = 0; i < n; i++) {
        float v = (float)(int32_t)((uint32_t)acc[i] + (uint32_t)bias[i]) * multiplier[i];
        q[i] = (uint16_t)scale_to_code(v, lo, hi, zero_point, half_away);
    }
}

/* The pointers of r are those of the first of the n columns. */
static void requantize_i32(const int32_t *acc, const int32_t *bias, void *q, int bytes, size_t n, const qk_requant *r)
{
    enum { BLOCK = 256 };
    uint16_t codes[BLOCK];
    int32_t sums[BLOCK];
    qk_requant part = *r;
    for (size_t done = 0, count; done < n; done += count) {
        count = n - done < BLOCK ? n - done : BLOCK;
        if (r->rounding == QK_HALF_EVEN) {
            requantize_run(acc + done, bias + done, codes, count, &part, 0);
        } else if (r->rounding == QK_HALF_AWAY) {
            requantize_run(acc + done, bias + done, codes, count, &part, 1);
        } else {
            for (size_t i = 0; i < count; i++) sums[i] = (int32_t)((uint32_t)acc[done + i] + (uint32_t)bias[done + i]);
            fixed_point_run(sums, r->mantissa + done, r->shift + done, codes, count, r);
        }
        if (bytes == 2)
            memcpy((uint16_t *)q + done, codes, count * sizeof *codes);
        else
            for (size_t i = 0; i < count; i++) ((uint8_t *)q)[done + i] = (uint8_t)codes[i];
        if (part.multiplier) part.multiplier += count;
    }
}

#endif
