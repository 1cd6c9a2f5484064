/* The loop of scales of least squares (least_squares.c, numerics 18), compiled once per instruction set, after
 * kmeans.h: VECTOR is the bytes of a register. */
#ifndef QK_GENERIC_LEAST_SQUARES_H
#define QK_GENERIC_LEAST_SQUARES_H

#include <string.h>

#include "kernels/generic/kmeans.h"
#include "kernels/kernels.h"

typedef double rounded_lanes __attribute__((vector_size(VECTOR), aligned(8), may_alias));

static inline double sum_of_rounded(const rounded_lanes *lanes)
{
    double sum[QK_ROUNDED_LANES];
    memcpy(sum, lanes, sizeof sum);
    for (int half = QK_ROUNDED_LANES / 2; half > 0; half /= 2)
        for (int i = 0; i < half; i++) sum[i] += sum[i + half];
    return sum[0];
}

/* Adding 1.5 * 2^52 rounds half to even. The lanes are the same whatever the width of a register. */
static void rounded_sums(const double *y, const double *w, const double *limit, size_t n, double scale, double *sums)
{
    enum { WIDTH = VECTOR / sizeof(double), PARTS = QK_ROUNDED_LANES / WIDTH };
    const double magic = 0x1.8p52, inverse = 1 / scale;
    rounded_lanes loss[PARTS] = {{0}}, slope[PARTS] = {{0}}, square[PARTS] = {{0}};
    for (size_t i = 0; i < n; i += QK_ROUNDED_LANES)
        for (int p = 0; p < PARTS; p++) {
            const size_t at = i + (size_t)p * WIDTH;
            const rounded_lanes yp = *(const rounded_lanes *)(y + at), wp = *(const rounded_lanes *)(w + at);
            const rounded_lanes most = *(const rounded_lanes *)(limit + at);
            const rounded_lanes c = smaller_f64(yp * inverse, most) + magic - magic;
            const rounded_lanes r = yp - scale * c, wr = wp * r, wc = wp * c;
            loss[p] += wr * r, slope[p] += wr * c, square[p] += wc * c;
        }
    sums[0] = sum_of_rounded(loss), sums[1] = sum_of_rounded(slope), sums[2] = sum_of_rounded(square);
}

#endif
