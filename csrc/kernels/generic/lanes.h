/* Operations of k-means on vectors of 16 bytes, four points or two at a time, in plain C. */
#ifndef QK_GENERIC_LANES_H
#define QK_GENERIC_LANES_H

#include <stddef.h>
#include <stdint.h>

typedef float lanes4 __attribute__((vector_size(16), aligned(4), may_alias));
typedef int32_t indices4 __attribute__((vector_size(16), aligned(4), may_alias));
typedef double lanes2 __attribute__((vector_size(16), aligned(8), may_alias));
typedef int64_t indices2 __attribute__((vector_size(16), aligned(8), may_alias));

static inline lanes4 multiply_add_f32(lanes4 x, lanes4 sum)
{
    for (int i = 0; i < 4; i++) sum[i] = __builtin_fmaf(x[i], x[i], sum[i]);
    return sum;
}

static inline lanes2 multiply_add_f64(lanes2 x, lanes2 sum)
{
    for (int i = 0; i < 2; i++) sum[i] = __builtin_fma(x[i], x[i], sum[i]);
    return sum;
}

static inline lanes2 smaller_f64(lanes2 a, lanes2 b)
{
    return (lanes2){a[0] < b[0] ? a[0] : b[0], a[1] < b[1] ? a[1] : b[1]};
}

static inline lanes4 minus_f32(lanes4 x, const float *c) { return x - *c; }
static inline lanes2 minus_f64(lanes2 x, const double *c) { return x - *c; }
static inline void fence_f32(lanes4 *a, lanes4 *b, lanes4 *c, lanes4 *d) { (void)a, (void)b, (void)c, (void)d; }
static inline void fence_f64(lanes2 *a, lanes2 *b, lanes2 *c, lanes2 *d) { (void)a, (void)b, (void)c, (void)d; }

static inline void keep_two_f32(lanes4 distance, int32_t index, lanes4 *first, lanes4 *second, indices4 *nearest)
{
    for (int i = 0; i < 4; i++)
        if (distance[i] < (*first)[i])
            (*second)[i] = (*first)[i], (*first)[i] = distance[i], (*nearest)[i] = index;
        else if (distance[i] < (*second)[i])
            (*second)[i] = distance[i];
}

static inline void keep_two_f64(lanes2 distance, int32_t index, lanes2 *first, lanes2 *second, indices2 *nearest)
{
    for (int i = 0; i < 2; i++)
        if (distance[i] < (*first)[i])
            (*second)[i] = (*first)[i], (*first)[i] = distance[i], (*nearest)[i] = index;
        else if (distance[i] < (*second)[i])
            (*second)[i] = distance[i];
}

#endif
