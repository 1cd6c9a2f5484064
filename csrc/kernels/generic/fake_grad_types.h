/* What the loops of fake_grad.h see. */
#ifndef QK_GENERIC_FAKE_GRAD_TYPES_H
#define QK_GENERIC_FAKE_GRAD_TYPES_H

#include "kernels/kernels.h"

enum { GRAD_ROWS = 4 /* that are seen at once, so that sums stay in registers */ };

/* Of each column: what quotients need, and their bounds. The reciprocal is for vectors: NaN has them refuse scales of
 * which it is none. */
typedef struct {
    float scale[QK_GRAD_COLUMNS], reciprocal[QK_GRAD_COLUMNS], lo[QK_GRAD_COLUMNS], hi[QK_GRAD_COLUMNS];
} grad_parameters;

typedef struct {
    float scale, lo, hi;
} grad_parameter;

/* Terms of up to QK_GRAD_ROWS rows. */
typedef struct {
    float scale[QK_GRAD_COLUMNS], zero[QK_GRAD_COLUMNS];
} grad_terms;

typedef struct {
    const float *grad, *x;
    float *grad_x;
    size_t n, stride;
} grad_stretch;

static inline grad_stretch grad_part(grad_stretch s, size_t at)
{
    return (grad_stretch){s.grad + at, s.x + at, s.grad_x + at, s.n, s.stride};
}

/* Returns those from number i on: all arrays are reached from one address. */
static inline const grad_parameters *grad_parameters_from(const grad_parameters *p, size_t i)
{
    return (const grad_parameters *)(p->scale + i);
}

#endif
