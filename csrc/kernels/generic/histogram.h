/* Loops of histograms (numerics 24), compiled once for each instruction set. */
#ifndef QK_GENERIC_HISTOGRAM_H
#define QK_GENERIC_HISTOGRAM_H

#include <string.h>

#include "kernels/generic/target.h"
#include "kernels/kernels.h"
#include "runtime/compiler.h"

/* Whatever s held. 2 * bits - 1, unsigned, is in the order of the magnitudes, and the largest number for 0. */
static void survey_f32(const float *x, size_t n, qk_survey *s)
{
    int32_t least = INT32_MAX, most = INT32_MIN;
    uint32_t nearest = UINT32_MAX, zeros = 0;
    for (size_t i = 0; i < n; i++) {
        int32_t bits;
        memcpy(&bits, x + i, sizeof bits);
        const int32_t rank = qk_rank(bits);
        least = rank < least ? rank : least;
        most = rank > most ? rank : most;
        const uint32_t magnitude = 2 * (uint32_t)bits - 1;
        nearest = magnitude < nearest ? magnitude : nearest;
        zeros += magnitude == UINT32_MAX;
    }
    *s = (qk_survey){least, most, nearest, zeros};
}

/* Two values come in one load, and no vector is taken apart: an increment is what a value costs. The next chunk comes
 * from memory meanwhile. */
static QK_INLINE void count_pairs(const float *x, size_t n, int shift, uint32_t *counts)
{
    enum { LINE = 16 };
    uint64_t pair;
    uint32_t last;
    for (; n >= LINE; n -= LINE, x += LINE) {
        __builtin_prefetch(x + QK_HISTOGRAM_CHUNK, 0, 2);
        for (size_t i = 0; i < LINE; i += 2) {
            memcpy(&pair, x + i, sizeof pair);
            counts[(uint32_t)pair >> shift]++;
            counts[pair >> 32 >> shift]++;
        }
    }
    for (size_t i = 0; i < n; i++) {
        memcpy(&last, x + i, sizeof last);
        counts[last >> shift]++;
    }
}

static void count_f32(const float *x, size_t n, int shift, uint32_t *counts)
{
    if (shift == QK_FINE_SHIFT)
        count_pairs(x, n, QK_FINE_SHIFT, counts); /* a shift by a constant is one operation */
    else
        count_pairs(x, n, shift, counts);
}

static size_t nonzero_f32(const float *x, size_t n, float *found)
{
    size_t count = 0, i = 0;
#ifdef HAVE_NONZERO_GROUP
    for (; i + GROUP16 <= n; i += GROUP16) count += nonzero_group(x + i, found + count);
#endif
    for (; i < n; i++) {
        uint32_t bits;
        memcpy(&bits, x + i, sizeof bits);
        memcpy(found + count, &bits, sizeof bits);
        count += 2 * bits != 0;
    }
    return count;
}

static int any_counts(const uint32_t *counts, size_t n)
{
    uint32_t any = 0;
    for (size_t i = 0; i < n; i++) any |= counts[i];
    return any != 0;
}

/* Most bins of small values have no count: a line of them is left alone, as are the two lines of their sums. */
static void move_counts(uint32_t *restrict from, size_t n, uint64_t *restrict to)
{
    enum { LINE = 16 }; /* which divides n */
    for (; n; n -= LINE, from += LINE, to += LINE) {
        if (!any_counts(from, LINE)) continue;
        for (size_t i = 0; i < LINE; i++) {
            to[i] += from[i];
            from[i] = 0;
        }
    }
}

#endif
