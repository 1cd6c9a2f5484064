/* k-means for float32 and float64; the including file has set VECTOR, the bytes of a register. */
#ifndef QK_GENERIC_KMEANS_H
#define QK_GENERIC_KMEANS_H

#include <math.h>
#include <string.h>

#include "kernels/generic/target.h"
#include "kernels/kernels.h"

#ifndef HAVE_LANES
#include "kernels/generic/lanes.h"
#endif

static inline void prefetch_row(const void *row, size_t bytes)
{
    for (size_t at = 0; at < bytes; at += 64) __builtin_prefetch((const char *)row + at);
}

#define REAL float
#define INTEGER int32_t
#define EPSILON 0x1p-24f
#define TINY 0x1p-60f /* above the error that underflow brings to a distance */
#define TYPED(name) name##_f32
static inline float root_f32(float x) { return sqrtf(x); }

/* Tiles of points between two looks for signals: a look costs as much as a small tile. */
static inline size_t tiles_a_look(const qk_kmeans *p)
{
    const size_t tiles = QK_KMEANS_LOOK / QK_KMEANS_TILE / (p->k * p->d);
    return tiles ? tiles : 1;
}

typedef float quad_f32 __attribute__((vector_size(16), aligned(4), may_alias));
#if defined(__clang__) || __GNUC__ >= 12
#define shuffle(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
typedef int32_t quad_order __attribute__((vector_size(16)));
#define shuffle(a, b, ...) __builtin_shuffle(a, b, (quad_order){__VA_ARGS__})
#endif

static inline float sum_of_quad_f32(quad_f32 a) { return (a[0] + a[2]) + (a[1] + a[3]); }

/* Four values of four rows, from column f on, as columns of a tile. */
static inline void transpose_f32(const float *const *row, size_t f, float *to)
{
    const quad_f32 r0 = *(const quad_f32 *)(row[0] + f), r1 = *(const quad_f32 *)(row[1] + f);
    const quad_f32 r2 = *(const quad_f32 *)(row[2] + f), r3 = *(const quad_f32 *)(row[3] + f);
    const quad_f32 a = shuffle(r0, r1, 0, 4, 1, 5), b = shuffle(r2, r3, 0, 4, 1, 5);
    const quad_f32 c = shuffle(r0, r1, 2, 6, 3, 7), d = shuffle(r2, r3, 2, 6, 3, 7);
    *(quad_f32 *)to = shuffle(a, b, 0, 1, 4, 5);
    *(quad_f32 *)(to + QK_KMEANS_TILE) = shuffle(a, b, 2, 3, 6, 7);
    *(quad_f32 *)(to + 2 * QK_KMEANS_TILE) = shuffle(c, d, 0, 1, 4, 5);
    *(quad_f32 *)(to + 3 * QK_KMEANS_TILE) = shuffle(c, d, 2, 3, 6, 7);
}
#include "kernels/generic/kmeans_template.h"
#undef REAL
#undef INTEGER
#undef EPSILON
#undef TINY
#undef TYPED

#define REAL double
#define INTEGER int64_t
#define EPSILON 0x1p-53
#define TINY 0x1p-500
#define TYPED(name) name##_f64
static inline double root_f64(double x) { return sqrt(x); }

typedef double quad_f64 __attribute__((vector_size(16), aligned(8), may_alias));

static inline double sum_of_quad_f64(quad_f64 a) { return a[0] + a[1]; }

static inline void transpose_f64(const double *const *row, size_t f, double *to)
{
    to[0] = row[0][f], to[1] = row[1][f];
    to[QK_KMEANS_TILE] = row[0][f + 1], to[QK_KMEANS_TILE + 1] = row[1][f + 1];
}
#include "kernels/generic/kmeans_template.h"
#undef REAL
#undef INTEGER
#undef EPSILON
#undef TINY
#undef TYPED

#endif
