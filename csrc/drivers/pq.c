/* Codebooks of vectors (numerics 19): encoding, decoding, and search among codes. The k nearest are the smallest of
 * keys that all differ, so how codes are divided among threads does not matter. */
#include <stdlib.h>
#include <string.h>

#include "drivers/drivers.h"
#include "runtime/compiler.h"
#include "runtime/fpmode.h"
#include "kernels/kernels.h"
#include "runtime/parallel.h"
#include "runtime/sizes.h"

enum { SCAN = 256, LANE_SCAN = 64 }; /* vectors of codes at a time: their sums stay in the L1 cache */
enum { MAX_LANES = 16 };
enum { LOOK = 1 << 14 }; /* vectors or neighbours between two looks for signals */

typedef struct {
    const qk_pq_book *b;
    const qk_pq_kernels *kernels;
    const float *x, *given;
    uint8_t *codes;
    float *y;
    size_t n;                  /* vectors of codes */
    size_t count, k;           /* queries, and how many nearest ones are wanted */
    size_t lanes, full, units; /* queries of a unit, units of so many, all units */
    int singles;               /* whether the units after the full ones are one query each, else the rest of them */
    size_t parts;              /* of the codes */
    uint64_t *heaps;           /* (count, parts, k) */
    float *distances;
    int64_t *indices;
    int failed;
} job;

static void *obtain(job *j, size_t bytes)
{
    void *memory = qk_obtain(bytes);
    if (!memory) __atomic_store_n(&j->failed, 1, __ATOMIC_RELAXED);
    return memory;
}

/* ---- codes ---- */

static void encode_tiles(void *context, size_t begin, size_t end)
{
    job *j = context;
    const qk_pq_book *b = j->b;
    int32_t all[QK_MAX_LEVELS + 4];
    float *tile = obtain(j, qk_times(b->d, QK_KMEANS_TILE * sizeof *tile));
    if (!tile) return;
    for (size_t i = 0; i < QK_MAX_LEVELS + 4; i++) all[i] = (int32_t)min_size(i, b->k);
    for (size_t at = begin * QK_KMEANS_TILE; at < min_size(end * QK_KMEANS_TILE, j->n) && !qk_stopped();
         at += QK_KMEANS_TILE)
        j->kernels->pq_encode(b, j->x + at * b->m * b->d, j->given + at * b->m * b->d,
                              min_size(j->n - at, QK_KMEANS_TILE), all, tile, j->codes + at * b->m);
    free(tile);
}

int qk_pq_encode(const float *x, const float *given, uint8_t *codes, size_t n, const qk_pq_book *b)
{
    QK_DEFAULT_MODE;
    job j = {.b = b, .kernels = qk_active()->pq, .x = x, .given = given, .codes = codes, .n = n};
    const double work = (double)(n * b->m) * (double)(b->k * (b->d + 1)) / 20;
    const int status = qk_parallel_for(ceil_div(n, QK_KMEANS_TILE), work, encode_tiles, &j);
    return status ? status : !j.failed;
}

/* `d` is a constant where this is inlined for a usual one. */
static QK_INLINE void decode_run(const job *j, size_t begin, size_t end, const size_t d)
{
    const size_t m = j->b->m, last = j->b->k - 1, step = j->b->shared ? 0 : j->b->k * d;
    const uint8_t *codes = j->codes + begin * m;
    float *y = j->y + begin * m * d;
    for (size_t i = begin; i < end; i++) {
        const float *levels = j->b->levels;
        for (size_t g = 0; g < m; g++, y += d, levels += step) {
            const size_t code = min_size(*codes++, last); /* another thread may have changed it */
            memcpy(y, levels + code * d, d * sizeof *y);
        }
    }
}

static void decode_rows(void *context, size_t begin, size_t end)
{
    const job *j = context;
    switch (j->b->d) {
    case 2: decode_run(j, begin, end, 2); break;
    case 4: decode_run(j, begin, end, 4); break;
    case 8: decode_run(j, begin, end, 8); break;
    default: decode_run(j, begin, end, j->b->d); break;
    }
}

int qk_pq_decode(const uint8_t *codes, float *y, size_t n, const qk_pq_book *b)
{
    QK_DEFAULT_MODE;
    job j = {.b = b, .codes = (uint8_t *)codes, .y = y, .n = n};
    return qk_parallel_for(n, (double)(n * b->m) * (1 + 0.3 * (double)b->d), decode_rows, &j);
}

/* ---- distances ---- */

static void fill_tables(void *context, size_t begin, size_t end)
{
    const job *j = context;
    const qk_pq_book *b = j->b;
    for (size_t i = begin; i < end && !qk_stopped(); i++)
        j->kernels->pq_distance_table(b, j->x + i * b->m * b->d, j->y + i * b->m * b->k);
}

int qk_pq_distance_tables(const float *queries, size_t count, const qk_pq_book *b, float *tables)
{
    QK_DEFAULT_MODE;
    job j = {.b = b, .kernels = qk_active()->pq, .x = queries, .y = tables};
    return qk_parallel_for(count, (double)count * (double)(b->m * b->k * b->d) / 20, fill_tables, &j);
}

/* ---- the k nearest: a heap of keys, the largest on top, filled up with INT64_MAX ---- */

/* Sums are not negative, so keys are in the order of (sum, index). */
static inline uint64_t key_of(float sum, size_t index)
{
    uint32_t bits;
    memcpy(&bits, &sum, sizeof bits);
    return (uint64_t)bits << 32 | index;
}

/* Bits that those of a sum must be below. What has the same sum came earlier, and stays. */
static inline int32_t limit_of(const uint64_t *heap) { return (int32_t)(heap[0] >> 32); }

/* Puts a key where the largest of k was. */
static void replace_largest(uint64_t *heap, size_t k, uint64_t key)
{
    size_t at = 0;
    for (size_t child; (child = 2 * at + 1) < k; at = child) {
        if (child + 1 < k && heap[child + 1] > heap[child]) child++;
        if (heap[child] <= key) break;
        heap[at] = heap[child];
    }
    heap[at] = key;
}

/* Codes first .. last - 1 for one query. `memory` holds its table. */
static void scan_for_one(const job *j, const float *query, size_t first, size_t last, float *memory, uint64_t *heap)
{
    const size_t m = j->b->m;
    float sum[SCAN];
    j->kernels->pq_distance_table(j->b, query, memory);
    for (size_t at = first, count; at < last; at += count) {
        if ((at - first) % LOOK == 0 && qk_stopped()) return;
        count = min_size(last - at, SCAN);
        j->kernels->pq_table_sums(memory, m, j->b->k, j->codes + at * m, count, sum);
        for (size_t i = 0; i < count; i++) {
            const uint64_t key = key_of(sum[i], at + i);
            if (key < heap[0]) replace_largest(heap, j->k, key);
        }
    }
}

/* The same for a query a lane; their heaps are `stride` keys apart. */
static void scan_for_lanes(const job *j, const float *queries, size_t count, size_t first, size_t last, float *memory,
                           uint64_t *heaps, size_t stride)
{
    const size_t m = j->b->m, lanes = j->lanes;
    float *turned = memory + m * j->b->k * lanes, sum[LANE_SCAN * MAX_LANES];
    int32_t least[MAX_LANES];
    j->kernels->pq_distance_lanes(j->b, queries, count, turned, memory);
    for (size_t at = first, vectors; at < last; at += vectors) {
        if ((at - first) % LOOK == 0 && qk_stopped()) return;
        vectors = min_size(last - at, LANE_SCAN);
        j->kernels->pq_lane_sums(memory, m, j->b->k, j->codes + at * m, vectors, sum, least);
        for (size_t q = 0; q < count; q++) {
            uint64_t *heap = heaps + q * stride;
            if (least[q] >= limit_of(heap)) continue;
            for (size_t i = 0; i < vectors; i++) {
                const uint64_t key = key_of(sum[i * lanes + q], at + i);
                if (key < heap[0]) replace_largest(heap, j->k, key);
            }
        }
    }
}

/* An item is a unit of queries (a query a lane, or a single one) and a part of the codes. */
static void scan_parts(void *context, size_t begin, size_t end)
{
    job *j = context;
    const size_t width = j->b->m * j->b->d, stride = j->parts * j->k;
    const size_t beyond =
        QK_MAX_LEVELS - j->b->k; /* of the last table: for codes that another thread changes after they were checked */
    const size_t numbers = qk_plus(qk_times(j->b->m, j->b->k + j->b->d), beyond);
    float *memory = obtain(j, qk_times(numbers, j->lanes * sizeof *memory));
    if (!memory) return;
    for (size_t item = begin; item < end; item++) {
        const size_t unit = item / j->parts, part = item % j->parts;
        const int single = unit >= j->full && j->singles;
        const size_t query = single ? j->full * j->lanes + unit - j->full : unit * j->lanes;
        const size_t first = j->n * part / j->parts, last = j->n * (part + 1) / j->parts;
        uint64_t *heap = j->heaps + query * stride + part * j->k;
        if (single)
            scan_for_one(j, j->x + query * width, first, last, memory, heap);
        else
            scan_for_lanes(j, j->x + query * width, min_size(j->count - query, j->lanes), first, last, memory, heap,
                           stride);
    }
    free(memory);
}

/* Merges the parts of a query, and sorts. Codes that another thread has changed may have left a heap unfilled. */
static void finish_queries(void *context, size_t begin, size_t end)
{
    const job *j = context;
    const size_t k = j->k;
    for (size_t q = begin; q < end; q++) {
        uint64_t *heap = j->heaps + q * j->parts * k;
        for (size_t i = k; i < j->parts * k; i++)
            if (heap[i] < heap[0]) replace_largest(heap, k, heap[i]);
        for (size_t left = k; left-- > 0;) {
            if (left % LOOK == 0 && qk_stopped()) return;
            const uint64_t largest = heap[0];
            const uint32_t bits = (uint32_t)(largest >> 32);
            memcpy(&j->distances[q * k + left], &bits, sizeof bits);
            j->indices[q * k + left] = (int64_t)min_size(largest & UINT32_MAX, j->n - 1);
            replace_largest(heap, left, heap[left]);
        }
    }
}

int qk_pq_search(const float *queries, size_t count, const uint8_t *codes, size_t n, const qk_pq_book *b, size_t k,
                 float *distances, int64_t *indices)
{
    QK_DEFAULT_MODE;
    job j = {.b = b,
             .kernels = qk_active()->pq,
             .x = queries,
             .codes = (uint8_t *)codes,
             .n = n,
             .count = count,
             .k = k,
             .distances = distances,
             .indices = indices};
    const double work = 0.15 * (double)count * (double)n * (double)b->m;
    const size_t threads = (size_t)qk_threads_for(n, work);
    j.lanes = (size_t)j.kernels->lanes, j.full = count / j.lanes;
    const size_t rest = count % j.lanes;
    j.singles = 5 * rest <= j.lanes + 1; /* so few are faster one by one */
    j.units = j.full + (j.singles ? rest : 1);
    j.parts = j.units >= 4 * threads ? 1 : threads;
    j.heaps = obtain(&j, qk_times(qk_times(count, k), j.parts * sizeof *j.heaps));
    if (!j.heaps) return 0;
    for (size_t i = 0; i < count * j.parts * k; i++) j.heaps[i] = INT64_MAX;
    int status = qk_parallel_for(j.units * j.parts, work, scan_parts, &j);
    if (!status && !j.failed) status = qk_parallel_for(count, 50.0 * (double)(count * k), finish_queries, &j);
    free(j.heaps);
    return status ? status : !j.failed;
}
