/* The loops of codebooks of vectors (pq.c, numerics 19), compiled once per instruction set, after
 * kmeans.h: VECTOR is the bytes of a register, whose lanes are points or queries. */
#ifndef QK_GENERIC_PQ_H
#define QK_GENERIC_PQ_H

#include "kernels/generic/kmeans.h"
#include "kernels/kernels.h"
#include "runtime/compiler.h"

enum { PQ_LANES = VECTOR / sizeof(float) };

/* Codes of at most QK_KMEANS_TILE points, x in the scale of the levels, `given` as they are. `all` lists the levels as
 * k-means has it; `tile` is memory for d * QK_KMEANS_TILE floats. */
static void pq_encode(const qk_pq_book *b, const float *x, const float *given, size_t points, const int32_t *all,
                      float *tile, uint8_t *codes)
{
    const size_t k = b->k, d = b->d, listed = (k + 3) / 4 * 4;
    const float small = 0x1p-122f;
    const ahead_f32 none = {0};
    int32_t rows[QK_KMEANS_TILE];
    two_f32 found;
    for (int32_t i = 0; i < QK_KMEANS_TILE; i++) rows[i] = i;
    for (size_t g = 0; g < b->m; g++) {
        gather_f32(x + g * d, b->m * d, d, rows, points, tile);
        scan_f32(tile, d, b->scaled + (b->shared ? 0 : g * (k + 1) * d), all, listed, &none, &found);
        int any_small = 0; /* squares, which may have underflowed, or values in scaling */
        for (size_t i = 0; i < QK_KMEANS_TILE; i++) any_small |= found.second[i] < small;
        for (size_t i = 0; i < points; i++) codes[i * b->m + g] = (uint8_t)found.nearest[i];
        if (!any_small) continue;
        const float *levels = b->levels + (b->shared ? 0 : g * k * d);
        for (size_t i = 0; i < points; i++)
            if (found.second[i] < small)
                codes[i * b->m + g] =
                    (uint8_t)qk_nearest_f32(given + (i * b->m + g) * d, levels, k, d, found.nearest[i]);
    }
}

/* Squared distances (m, k) of one query from all levels. */
static void pq_distance_table(const qk_pq_book *b, const float *query, float *table)
{
    const size_t k = b->k, d = b->d;
    for (size_t g = 0; g < b->m; g++) {
        const float *columns = b->columns + (b->shared ? 0 : g * k * d);
        float *restrict distance = table + g * k;
        for (size_t j = 0; j < k; j++) distance[j] = 0;
        for (size_t f = 0; f < d; f++) {
            const float x = query[g * d + f], *restrict column = columns + f * k;
            for (size_t j = 0; j < k; j++) distance[j] = __builtin_fmaf(x - column[j], x - column[j], distance[j]);
        }
    }
}

/* The same (m, k, PQ_LANES) of one query a lane; absent ones repeat the last. `turned` is memory for m * d *
 * PQ_LANES floats. */
static void pq_distance_lanes(const qk_pq_book *b, const float *queries, size_t count, float *turned, float *table)
{
    const size_t k = b->k, d = b->d, n = b->m * d;
    for (size_t i = 0; i < PQ_LANES; i++)
        for (size_t f = 0; f < n; f++) turned[f * PQ_LANES + i] = queries[(i < count ? i : count - 1) * n + f];
    for (size_t g = 0; g < b->m; g++, turned += d * PQ_LANES) {
        const float *level = b->levels + (b->shared ? 0 : g * k * d);
        for (size_t j = 0; j < k; j++, level += d, table += PQ_LANES) {
            lanes_f32 sum = {0};
            for (size_t f = 0; f < d; f++)
                sum = multiply_add_f32(minus_f32(load_f32(turned + f * PQ_LANES), level + f), sum);
            *(stored_lanes_f32 *)table = sum;
        }
    }
}

/* Eight groups at a time: their part of the table stays in the L1 cache, and chains of eight additions of many vectors
 * overlap. `k` is a constant where this is inlined for 256. */
static QK_INLINE void sums_of(const float *table, size_t m, const size_t k, const uint8_t *codes, size_t n,
                              float *restrict sum)
{
    size_t g = 0;
    for (size_t i = 0; i < n; i++) sum[i] = 0;
    for (; g + 8 <= m; g += 8, table += 8 * k)
        for (size_t i = 0; i < n; i++) {
            uint64_t c;
            memcpy(&c, codes + i * m + g, sizeof c);
            float s = sum[i] + table[c & 255];
            s += table[k + (c >> 8 & 255)];
            s += table[2 * k + (c >> 16 & 255)];
            s += table[3 * k + (c >> 24 & 255)];
            s += table[4 * k + (c >> 32 & 255)];
            s += table[5 * k + (c >> 40 & 255)];
            s += table[6 * k + (c >> 48 & 255)];
            sum[i] = s + table[7 * k + (c >> 56)];
        }
    for (; g < m; g++, table += k)
        for (size_t i = 0; i < n; i++) sum[i] += table[codes[i * m + g]];
}

/* Of n vectors of codes (n, m), the sums of their entries in the table of one query. */
static void pq_table_sums(const float *table, size_t m, size_t k, const uint8_t *codes, size_t n, float *sum)
{
    if (k == 256)
        sums_of(table, m, 256, codes, n, sum);
    else
        sums_of(table, m, k, codes, n, sum);
}

/* The same (n, PQ_LANES) of one query a lane, and the bits of the smallest sum of each. Four vectors at a time:
 * each is one chain of additions. */
static void pq_lane_sums(const float *table, size_t m, size_t k, const uint8_t *codes, size_t n, float *sum,
                         int32_t *least)
{
    indices_f32 smallest = (indices_f32){0} + INT32_MAX;
    for (size_t i = 0; i < n; i += 4) {
        const size_t last = n - 1,
                     at[4] = {i, i + 1 < n ? i + 1 : last, i + 2 < n ? i + 2 : last, i + 3 < n ? i + 3 : last};
        const uint8_t *c0 = codes + at[0] * m, *c1 = codes + at[1] * m, *c2 = codes + at[2] * m,
                      *c3 = codes + at[3] * m;
        const float *row = table;
        lanes_f32 s0 = {0}, s1 = {0}, s2 = {0}, s3 = {0};
        for (size_t g = 0; g < m; g++, row += k * PQ_LANES) {
            s0 += load_f32(row + c0[g] * PQ_LANES), s1 += load_f32(row + c1[g] * PQ_LANES);
            s2 += load_f32(row + c2[g] * PQ_LANES), s3 += load_f32(row + c3[g] * PQ_LANES);
        }
        const lanes_f32 sums[4] = {s0, s1, s2, s3};
        for (size_t v = 0; v < 4; v++) {
            const indices_f32 bits = (indices_f32)sums[v], smaller = bits < smallest;
            *(stored_lanes_f32 *)(sum + at[v] * PQ_LANES) = sums[v];
            smallest = (bits & smaller) | (smallest & ~smaller);
        }
    }
    *(indices_f32 *)least = smallest;
}

#endif
