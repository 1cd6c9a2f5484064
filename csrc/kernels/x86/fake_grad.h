/* The gradients of fake_quantize on the registers of avx2.h or avx512.h, for generic/fake_grad.h. gcc would make a path
 * of each condition, and then add to a sum once for each; here sums have one addition a row, as the loop waits for
 * them. */
#ifndef QK_X86_FAKE_GRAD_H
#define QK_X86_FAKE_GRAD_H

#include "kernels/x86/elementwise.h"

#include "kernels/generic/elementwise.h"
#include "kernels/generic/fake_grad_types.h"

#define HAVE_GRAD_VECTORS

typedef struct {
    floats scale, reciprocal, lo, hi, least, most;
} grad_floats;

static QK_INLINE grad_floats grad_floats_at(const grad_parameters *p, size_t i, const size_t step)
{
    return (grad_floats){some_floats(p->scale + i, step), some_floats(p->reciprocal + i, step),
                         some_floats(p->lo + i, step),    some_floats(p->hi + i, step),
                         some_floats(p->least + i, step), some_floats(p->most + i, step)};
}

/* add_terms of generic/fake_grad.h. */
static QK_INLINE floats add_vector(floats g, floats x, grad_floats p, const int clipped, floats *scale, floats *zero)
{
    const floats rounder = all_floats(0x1.8p23f), kept = smaller_of(p.most, larger_of(p.least, x));
    const floats q = product_of(kept, p.reciprocal);
    const floats v = add_product(q, subtract_product(kept, q, p.scale), p.reciprocal);
    const floats r = difference_of(sum_of(v, rounder), rounder), c = smaller_of(p.hi, larger_of(p.lo, r));
    const choice number = equal_floats(v, v);
    const choice inside = clipped ? both_chosen(below(p.lo, v), below(v, p.hi)) : equal_floats(c, r);
    const floats distance = chosen(number, difference_of(c, chosen(inside, v)));
    *scale = sum_of(*scale, product_of(g, distance));
    *zero = add_chosen(*zero, chosen_but_not(number, inside), g);
    return chosen(inside, g);
}

/* Whole vectors of n columns; returns how many columns these are. */
static QK_INLINE size_t grad_vectors(grad_stretch s, const size_t rows, const size_t n, const grad_parameters *p,
                                     const size_t step, const int clipped, grad_terms *t)
{
    const grad_floats same = grad_floats_at(p, 0, 0);
    size_t i = 0;
    for (; i + FLOATS <= n; i += FLOATS) {
        const grad_floats here = step ? grad_floats_at(p, i, 1) : same;
        floats scale = load_floats(t->scale + i), zero = load_floats(t->zero + i);
        for (size_t row = 0; row < rows; row++) {
            const size_t at = row * s.stride + i, soon = at + LOOK_AHEAD;
            fetch((const char *)(s.grad + soon), VECTOR), fetch((const char *)(s.x + soon), VECTOR);
            fetch((const char *)(s.grad_x + soon), VECTOR);
            const floats to = add_vector(load_floats(s.grad + at), load_floats(s.x + at), here, clipped, &scale, &zero);
            write_floats(s.grad_x + at, to);
        }
        write_floats(t->scale + i, scale), write_floats(t->zero + i, zero);
    }
    return i;
}

#endif
