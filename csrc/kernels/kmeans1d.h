/* Clustering on a line (numerics 13): what the search for clusters is given, and what it needs. Its reals are double
 * or `wide`: the same loops (kmeans1d_template.h) serve ordinary lines on each instruction set, and in software those
 * that no range of double holds. */
#ifndef QK_LINE_H
#define QK_LINE_H

#include <float.h>
#include <stddef.h>
#include <stdint.h>

/* 113 bits and exponents of 15 where they can be had; macOS has 64 bits of as many exponents, or a double's. */
#ifdef QK_WIDE
typedef QK_WIDE wide;
#elif LDBL_MANT_DIG != 113 && defined(__SIZEOF_FLOAT128__)
typedef __float128 wide;
#else
typedef long double wide;
#endif

/* Distinct points in ascending order. */
typedef struct {
    size_t n;
    const void *gap; /* reals: from each point to the next; NULL: differences of v */
    const double *v;
    const void *weight;  /* positive reals; NULL: 1 each */
    int (*stop)(void *); /* whether to give up, asked every few milliseconds; or NULL */
    void *context;
} qk_line;

enum { QK_LINE_LEFT = 4, QK_LINE_RIGHT = 6 };
/* Room for n points. */
typedef struct {
    void *cost;                                      /* n + 1 reals */
    int32_t *count, *begin;                          /* n + 1 */
    void *left[QK_LINE_LEFT], *right[QK_LINE_RIGHT]; /* n + 1 reals each */
    int32_t *few, *many, *splits;                    /* n + 1 */
} qk_line_space;

/* Puts into `splits` where the best k clusters begin, and n: 1 <= k < n. `penalty` is a guess of what asks for k
 * clusters, or 0; then one that did. Returns 0 where it was told to stop. */
typedef int qk_line_search(const qk_line *line, size_t k, double *penalty, qk_line_space *space);

#endif
