/* The gradients of fake_quantize on the registers of avx2.h or avx512.h, for generic/fake_grad.h. gcc would make a path
 * of each condition, and then add to a sum once for each; here sums have one addition a row, as the loop waits for
 * them. */
#ifndef QK_X86_FAKE_GRAD_H
#define QK_X86_FAKE_GRAD_H

#include "kernels/x86/elementwise.h"

#include "kernels/generic/elementwise.h"
#include "kernels/generic/fake_grad_types.h"
#include "runtime/fpmode.h"

#define GRAD_VECTOR FLOATS

typedef struct {
    floats scale, reciprocal, lo, hi;
} grad_floats;

static QK_INLINE grad_floats load_grad_floats(const grad_parameters *p, const size_t step)
{
    return (grad_floats){some_floats(p->scale, step), some_floats(p->reciprocal, step), some_floats(p->lo, step),
                         some_floats(p->hi, step)};
}

/* Rows that are seen step by step, as each step waits for the one before. */
enum { ROWS_AT_ONCE = VECTOR / 16 };

/* add_terms of generic/fake_grad.h for a vector of columns of some rows, by multiplication with the reciprocal: where x
 * or that is NaN, or its quotient not finite, so is the sum of terms; where it may be off, a result underflows. */
static QK_INLINE void add_some_rows(grad_stretch s, const int rows, grad_floats p, const int clipped, floats *scale,
                                    floats *zero)
{
    floats g[ROWS_AT_ONCE], v[ROWS_AT_ONCE], c[ROWS_AT_ONCE];
    choice inside[ROWS_AT_ONCE];
    for (int row = 0; row < rows; row++) {
        g[row] = load_floats(s.grad + (size_t)row * s.stride), v[row] = load_floats(s.x + (size_t)row * s.stride);
        QK_KEEP(g[row]);
        QK_KEEP(v[row]);
        c[row] = product_of(v[row], p.reciprocal);
    }
    for (int row = 0; row < rows; row++) v[row] = subtract_product(v[row], c[row], p.scale);
    for (int row = 0; row < rows; row++) v[row] = add_product(c[row], v[row], p.reciprocal);
    for (int row = 0; row < rows; row++) c[row] = rounded_floats(v[row]);
    for (int row = 0; row < rows; row++) {
        const floats r = c[row];
        c[row] = smaller_of(p.hi, larger_of(p.lo, r));
        inside[row] = clipped ? both_chosen(below(p.lo, v[row]), below(v[row], p.hi)) : equal_floats(c[row], r);
    }
    for (int row = 0; row < rows; row++) c[row] = subtract_chosen(c[row], inside[row], v[row]);
    for (int row = 0; row < rows; row++) {
        *scale = sum_of(*scale, product_of(g[row], c[row]));
        *zero = add_unless(*zero, inside[row], g[row]);
        write_floats(s.grad_x + (size_t)row * s.stride, chosen(inside[row], g[row]));
    }
}

/* Up to QK_GRAD_ROWS rows of GRAD_VECTOR columns of a run. Returns 0, and adds nothing, where a sum is NaN. */
static QK_INLINE int grad_lanes(grad_stretch s, size_t rows, const grad_parameters *p, const int clipped,
                                qk_grad_sums to)
{
    const grad_floats here = load_grad_floats(p, 0);
    const size_t next = ROWS_AT_ONCE * s.stride;
    floats scale = all_floats(0), zero = all_floats(0);
    for (; rows >= ROWS_AT_ONCE; rows -= ROWS_AT_ONCE, s = grad_part(s, next))
        add_some_rows(s, ROWS_AT_ONCE, here, clipped, &scale, &zero);
    for (; rows > 0; rows--, s = grad_part(s, s.stride)) add_some_rows(s, 1, here, clipped, &scale, &zero);
    if (any_nan(scale)) return 0;
    add_to_doubles(to.scale, scale), add_to_doubles(to.zero, zero);
    return 1;
}

/* Some rows of n columns, so few that their lines do not meet in the same sets of the L1 cache. */
static QK_INLINE void grad_some_rows(grad_stretch s, const int rows, size_t n, const grad_parameters *p,
                                     const int clipped, grad_terms *t)
{
    for (size_t i = 0; i < n; i += FLOATS) {
        floats scale = load_floats(t->scale + i), zero = load_floats(t->zero + i);
        add_some_rows(grad_part(s, i), rows, load_grad_floats(grad_parameters_from(p, i), 1), clipped, &scale, &zero);
        write_floats(t->scale + i, scale), write_floats(t->zero + i, zero);
    }
}

/* As many rows of n columns, a multiple of GRAD_VECTOR. Returns 0, and adds nothing, where a sum is NaN or a result has
 * underflown. */
static QK_INLINE int grad_whole_columns(grad_stretch s, size_t rows, size_t n, const grad_parameters *p,
                                        const int clipped, qk_grad_sums to)
{
    const size_t next = ROWS_AT_ONCE * s.stride;
    grad_terms t __attribute__((aligned(64)));
    qk_forget_underflow();
    for (size_t i = 0; i < n; i++) t.scale[i] = 0, t.zero[i] = 0;
    for (; rows >= ROWS_AT_ONCE; rows -= ROWS_AT_ONCE, s = grad_part(s, next))
        grad_some_rows(s, ROWS_AT_ONCE, n, p, clipped, &t);
    for (; rows > 0; rows--, s = grad_part(s, s.stride)) grad_some_rows(s, 1, n, p, clipped, &t);
    floats sum = all_floats(0);
    if (qk_underflown()) return 0;
    for (size_t i = 0; i < n; i += FLOATS) sum = sum_of(sum, product_of(load_floats(t.scale + i), all_floats(0)));
    if (any_nan(sum)) return 0;
    for (size_t i = 0; i < n; i += FLOATS) {
        add_to_doubles(to.scale + i, load_floats(t.scale + i));
        add_to_doubles(to.zero + i, load_floats(t.zero + i));
    }
    return 1;
}

#endif
