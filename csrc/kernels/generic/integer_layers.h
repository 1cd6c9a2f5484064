/* The loops of layers on codes (numerics 23), compiled once per instruction set, after elementwise.h. Where intrinsics
 * do better, the including file has set HAVE_CODE_GROUPS, and functions that see groups of codes: each returns how many
 * it has done, and the plain loop does the others. */
#ifndef QK_GENERIC_INTEGER_LAYERS_H
#define QK_GENERIC_INTEGER_LAYERS_H

#include "kernels/generic/elementwise.h"
#include "kernels/kernels.h"
#include "runtime/compiler.h"

#ifndef HAVE_CODE_GROUPS
#define table_groups(...) 0
#define pair_groups(...) 0
#define weight_groups(...) 0
#define sum_groups(...) 0
#define norm_groups(...) 0
#endif

static QK_INLINE float code_value(const uint8_t *q, size_t i, const int is_signed)
{
    return is_signed ? (float)(int8_t)q[i] : (float)q[i];
}

/* The code of v, to which `plus` is added once it is an integer. */
static QK_INLINE uint8_t code_of(float v, const qk_code_range *to, int32_t plus)
{
    return (uint8_t)scale_to_code(v, (float)(to->qmin - plus), (float)(to->qmax - plus), plus, 0);
}

static void take_table(const uint8_t *q, uint8_t *y, size_t n, const uint8_t *table, uint8_t mask, uint8_t shift)
{
    for (size_t i = table_groups(q, y, n, table, mask, shift); i < n; i++)
        y[i] = table[(uint8_t)((q[i] ^ mask) + shift)];
}

/* ---- sums and products of two ---- */

static QK_INLINE void pair_run(const uint8_t *a, const uint8_t *b, const size_t b_step, uint8_t *y, size_t n,
                               const qk_pair *given, const int is_signed)
{
    const qk_pair p = *given;
    for (size_t i = 0; i < n; i++) {
        const float left = code_value(a, i, is_signed), right = code_value(b, i * b_step, is_signed);
        const float v = p.product ? (left - p.a_zero) * (right - p.b_zero) * p.factor + (float)p.to.zero_point
                                  : __builtin_fmaf(left, p.a_factor, __builtin_fmaf(right, p.b_factor, p.offset));
        y[i] = code_of(v, &p.to, 0);
    }
}

static void pair_codes(const uint8_t *a, const uint8_t *b, size_t b_step, uint8_t *y, size_t n, const qk_pair *p)
{
    const size_t done = pair_groups(a, b, b_step, y, n, p);
    a += done, b += done * b_step, y += done, n -= done;
    if (p->is_signed)
        pair_run(a, b, b_step, y, n, p, 1);
    else
        pair_run(a, b, b_step, y, n, p, 0);
}

/* ---- softmax ---- */

/* Rows so short that a table of their codes would take longer than the codes. */
enum { SHORT_ROW = 96 };

static inline uint8_t largest_of(const uint8_t *q, size_t n, uint8_t flip)
{
    uint8_t most = 0;
    for (size_t i = 0; i < n; i++) {
        const uint8_t code = q[i] ^ flip;
        most = code > most ? code : most;
    }
    return most;
}

/* A code's difference from the largest, most - (q ^ flip), is (q ^ mask) + shift modulo 256. */
static void softmax_codes(const uint8_t *q, uint8_t *y, size_t n, const qk_softmax *p)
{
    const uint8_t mask = p->flip ^ 255, shift = (uint8_t)(largest_of(q, n, p->flip) + 1);
    uint64_t sum = 0;
    for (size_t i = weight_groups(q, n, p, mask, shift, &sum); i < n; i++)
        sum += p->weight[(uint8_t)((q[i] ^ mask) + shift)];
    const float inverse = (float)(1.0 / ((double)sum * p->unit));
    const qk_code_range to = p->to;
    if (n < SHORT_ROW) {
        for (size_t i = 0; i < n; i++)
            y[i] = code_of(p->real[(uint8_t)((q[i] ^ mask) + shift)] * inverse, &to, to.zero_point);
        return;
    }
    uint8_t codes[256];
    for (size_t d = 0; d < 256; d++) codes[d] = code_of(p->real[d] * inverse, &to, to.zero_point);
    take_table(q, y, n, codes, mask, shift);
}

/* ---- norms ---- */

static void code_sums(const uint8_t *q, size_t n, uint8_t flip, uint64_t *sum, uint64_t *squares)
{
    *sum = *squares = 0;
    for (size_t i = sum_groups(q, n, flip, sum, squares); i < n; i++) {
        const uint32_t code = q[i] ^ flip;
        *sum += code, *squares += code * code;
    }
}

static QK_INLINE void norm_run(const uint8_t *q, uint8_t *y, size_t begin, size_t n, const qk_code_norm *given,
                               const int is_signed)
{
    const qk_code_norm p = *given;
    for (size_t i = begin; i < n; i++) {
        const float d = __builtin_fmaf(code_value(q, i, is_signed), p.times, -p.less) * p.inverse;
        y[i] = code_of(__builtin_fmaf(d, p.factor[i], p.offset[i]), &p.to, p.to.zero_point);
    }
}

static void norm_codes(const uint8_t *q, uint8_t *y, size_t n, const qk_code_norm *p)
{
    const size_t done = norm_groups(q, y, n, p);
    if (p->is_signed)
        norm_run(q, y, done, n, p, 1);
    else
        norm_run(q, y, done, n, p, 0);
}

#endif
