/* What an instruction set can do at most: products of bytes from registers alone. Tiles share their time with loads,
 * rows with memory; `python -m qkernels` tells which part of this they reach. Before this: PEAK_VECTOR, PEAK_PRODUCTS
 * of a step, peak_step(sums, a, b), PEAK_IN_TWO for a step of two instructions, and QK_KEEP, without which compilers
 * would merge steps or take them out of the loop. */
#ifndef QK_PEAK_H
#define QK_PEAK_H

#include <stddef.h>
#include <string.h>

#include "runtime/compiler.h"

#ifndef PEAK_VECTOR
#define PEAK_VECTOR unsigned
#define PEAK_PRODUCTS 1
#define peak_step(sums, a, b) ((sums) + (a) * (b))
#endif
#ifndef QK_KEEP
#define QK_KEEP(v) ((void)(v))
#endif

/* sums = peak_step(sums, *a, b). Of two instructions, a is new each time: else one product would serve all sums. */
static QK_INLINE PEAK_VECTOR peak_kept(PEAK_VECTOR sums, PEAK_VECTOR *a, PEAK_VECTOR b)
{
#ifdef PEAK_IN_TWO
    QK_KEEP(*a);
#endif
    sums = peak_step(sums, *a, b);
    QK_KEEP(sums);
    return sums;
}

/* Returns the products of so many rounds. Twelve sums: no step waits for the one before it, which takes five cycles
 * where two begin in each. */
static size_t peak(size_t rounds)
{
    PEAK_VECTOR a, b, c0, c1, c2, c3, c4, c5, c6, c7, c8, c9, c10, c11;
    memset(&a, 60, sizeof a), memset(&c0, 0, sizeof c0);
    b = a, c1 = c2 = c3 = c4 = c5 = c6 = c7 = c8 = c9 = c10 = c11 = c0;
    QK_KEEP(b);
    for (size_t i = 0; i < rounds; i++) {
        c0 = peak_kept(c0, &a, b), c1 = peak_kept(c1, &a, b), c2 = peak_kept(c2, &a, b), c3 = peak_kept(c3, &a, b);
        c4 = peak_kept(c4, &a, b), c5 = peak_kept(c5, &a, b), c6 = peak_kept(c6, &a, b), c7 = peak_kept(c7, &a, b);
        c8 = peak_kept(c8, &a, b), c9 = peak_kept(c9, &a, b), c10 = peak_kept(c10, &a, b);
        c11 = peak_kept(c11, &a, b);
    }
    volatile PEAK_VECTOR sums[] = {c0, c1, c2, c3, c4, c5, c6, c7, c8, c9, c10, c11}; /* or nothing would be computed */
    (void)sums;
    return rounds * 12 * PEAK_PRODUCTS;
}

#endif
