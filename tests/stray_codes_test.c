/* Codes beyond their tables, as another thread may make them after they were checked: nothing outside the tables and
 * arrays is touched. sanitize/run.py compiles it with AddressSanitizer and runs it. Tables are blocks of their own, so
 * that a touch beside them is seen. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "drivers/drivers.h"
#include "kernels/kernels.h"

static unsigned calls;

static void *block(size_t bytes, int value)
{
    void *p = malloc(bytes);
    memset(p, value, bytes);
    return p;
}

static float *levels_of(size_t n)
{
    float *p = malloc(n * sizeof *p);
    for (size_t i = 0; i < n; i++) p[i] = (float)i;
    return p;
}

/* decode of `channels` tables of 2^depth levels: one table, a table a column, blocks of rows and of columns. */
static void decode(int depth, size_t channels, size_t n)
{
    float *level = levels_of(channels << depth), *y = block(2 * n * sizeof *y, 0), *scale = levels_of(2 * n);
    uint8_t *codes = block(2 * n, 255), *order = block(channels << depth, 0);
    const qk_codebook book = {.channels = channels,
                              .first = {.depth = depth, .in_order = 1, .level = level, .order = order}};
    qk_decode(codes, y, &book, 2, n, 1, n + 1, NULL);
    qk_decode(codes, y, &book, 1, n, 2, n + 1, NULL);
    if (channels == 1) {
        qk_decode(codes, y, &book, 2, n, 1, 3, scale);
        qk_decode(codes, y, &book, 2, n, 1, 16, scale);
        qk_decode(codes, y, &book, 1, n, 2, 5, scale);
    }
    calls += 5;
    free(level), free(y), free(scale), free(codes), free(order);
}

static void vectors(size_t m, size_t k, size_t d, size_t n, size_t queries)
{
    float *level = levels_of(m * k * d), *columns = levels_of(m * d * k), *scaled = levels_of(m * (k + 1) * d);
    float *y = block(n * m * d * sizeof *y, 0), *q = levels_of(queries * m * d),
          *distances = block(queries * sizeof *distances, 0);
    uint8_t *codes = block(n * m, 255), *full = block((n + 127) / 128 * 128 * ((m + 1) / 2), 255);
    int64_t *indices = block(queries * sizeof *indices, 0);
    const qk_pq_codes stored = {.codes = codes, .n = n}, packed = {.codes = full, .n = n, .packed = 1};
    for (int shared = 0; shared < 2; shared++) {
        const qk_pq_book book = {
            .m = m, .k = k, .d = d, .shared = shared, .levels = level, .columns = columns, .scaled = scaled};
        qk_pq_decode(codes, y, n, &book);
        qk_pq_search(q, queries, &stored, &book, 1, distances, indices);
        for (size_t i = 0; i < queries; i++)
            if (indices[i] < 0 || (size_t)indices[i] >= n) exit(2);
        calls += 2;
        if (k <= 16) calls++, qk_pq_search(q, queries, &packed, &book, 1, distances, indices);
    }
    free(level), free(columns), free(scaled), free(y), free(q), free(distances), free(codes), free(full), free(indices);
}

/* Points that turn to NaN between two iterations. */
static void clusters(size_t n, size_t k)
{
    enum { D = 3, STRIDE = 8 };
    float *x = levels_of(n * D), *centroids = levels_of((k + 1) * D), *distance = block(k * k * 4, 0),
          *half = block(k * 4, 0);
    float *moved = block(k * 4, 0), *upper = block(n * 4, 0), *lower = block(n * 4, 0);
    int32_t *labels = block(n * 4, 0);
    double *sums = aligned_alloc(64, k * STRIDE * 8);
    const qk_kmeans p = {.type = QK_F32,
                         .n = n,
                         .d = D,
                         .k = k,
                         .stride = STRIDE,
                         .chunk = n,
                         .x = x,
                         .centroids = centroids,
                         .distance = distance,
                         .half = half,
                         .moved = moved,
                         .passed = moved,
                         .labels = labels,
                         .upper = upper,
                         .lower = lower,
                         .sums = sums};
    qk_kmeans_counts counts = {0};
    for (size_t f = 0; f < D; f++) centroids[k * D + f] = INFINITY;
    for (size_t i = 0; i < n; i++) upper[i] = INFINITY;
    for (int round = 0; round < 6; round++) {
        for (size_t i = round ? 0 : n; i < n * D; i += (size_t)(7 - round)) x[i] = round % 2 ? NAN : INFINITY;
        for (size_t j = 0; j < k; j++) moved[j] = round == 3 ? INFINITY : 1;
        qk_kmeans_distances(&p);
        qk_kmeans_assign(&p, 0, 1, &counts);
        for (size_t i = 0; i < n; i++)
            if (labels[i] < 0 || (size_t)labels[i] >= k) exit(3);
        calls++;
    }
    free(x), free(centroids), free(distance), free(half), free(moved), free(upper), free(lower), free(labels),
        free(sums);
}

int main(void)
{
    static const char *const names[] = {"scalar", "avx2", "avx512vnni"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        if (!qk_find(names[i])) continue;
        qk_activate(qk_find(names[i]));
        for (int depth = 4; depth <= 8; depth++)
            for (size_t n = 1; n < 80; n += 13) decode(depth, 1, n), decode(depth, n, n);
        for (size_t m = 1; m < 20; m += 3)
            for (size_t k = 1; k <= 256; k += 51)
                for (size_t d = 1; d < 6; d += 2)
                    vectors(m, k, d, 70, 1), vectors(m, k, d, 300, 19), vectors(m, k, d, 5, 37);
        for (size_t m = 1; m < 20; m += 5) vectors(m, 16, 2, 16640, 3), vectors(m, 5, 2, 16700, 1);
        for (size_t k = 2; k < 60; k += 19) clusters(1000, k);
    }
    printf("%u calls\n", calls);
    return 0;
}
