/* Codebooks of vectors (numerics 19): encoding, decoding, and search among codes. The k nearest are the smallest of
 * keys that all differ, so how codes are divided among threads does not matter. */
#include <float.h>
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
enum { LOOK = 1 << 10, LOOK_CODES = 1 << 22 }; /* vectors or neighbours, or codes, between two looks for signals */

/* The filter. */
enum {
    FILTER_LEVELS = 16, /* at most, and so many groups */
    FILTER_GROUPS = 1024,
    FILTER_QUERIES = 128, /* of a unit */
    FEW_QUERIES = 4,      /* that read packed codes as they lie, */
    FEW_OF_ROWS = 2,      /* and codes that are not packed, */
    WIDE = 32,            /* of so many groups at least */
    TURNED = 1 << 14,     /* bytes of turned codes that stay in the L1 cache, */
    ROWS = 1 << 16,       /* and of codes as they lie that stay in L2 */
    SAMPLE = 512,         /* vectors that give the first limits */
    USUAL = 128           /* what vectors at the limit have as sums of eight, of 255 */
};

typedef struct {
    const qk_pq_book *b;
    const qk_pq_kernels *kernels;
    const float *x, *given;
    uint8_t *codes, *to;
    float *y;
    size_t n;           /* vectors of codes */
    int packed;         /* whether they are packed */
    size_t count, k;    /* queries, and how many nearest ones are wanted */
    size_t lanes, unit; /* queries that share a scan, and that share an item */
    size_t parts;       /* of the codes */
    int filter;         /* whether vectors are filtered; then distances[k - 1] of a query bounds its answer */
    uint64_t *heaps;    /* (count, parts, k) */
    float *distances;
    int64_t *indices;
    int32_t most; /* of the codes that the filter saw */
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
    qk_release(tile);
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

/* ---- codes of 4 bits, packed ---- */

static size_t packed_tile(size_t m) { return ceil_div(m, 2) * QK_PQ_TILE; }

/* Packed codes of the tile that begins with vector `at`. */
static const uint8_t *packed_from(const job *j, size_t at) { return j->codes + at / QK_PQ_TILE * packed_tile(j->b->m); }

static void pack_tiles(void *context, size_t begin, size_t end)
{
    const job *j = context;
    const size_t m = j->b->m;
    for (size_t tile = begin; tile < end; tile++) {
        const uint8_t *codes = j->codes + tile * QK_PQ_TILE * m;
        const size_t vectors = min_size(j->n - tile * QK_PQ_TILE, QK_PQ_TILE);
        uint8_t *to = j->to + tile * packed_tile(m);
        memset(to, 0, packed_tile(m));
        for (size_t v = 0; v < vectors; v++, codes += m)
            for (size_t g = 0; g < m; g++) to[g / 2 * QK_PQ_TILE + v] |= (uint8_t)(codes[g] << g % 2 * 4);
    }
}

int qk_pq_pack(const uint8_t *codes, size_t n, size_t m, uint8_t *packed)
{
    QK_DEFAULT_MODE;
    const qk_pq_book b = {.m = m};
    job j = {.b = &b, .codes = (uint8_t *)codes, .to = packed, .n = n};
    return m ? qk_parallel_for(ceil_div(n, QK_PQ_TILE), (double)n * (double)m, pack_tiles, &j) : 0;
}

static void unpack_vectors(const uint8_t *packed, size_t m, size_t at, size_t vectors, uint8_t *codes)
{
    for (; vectors; vectors--, at++, codes += m) {
        const uint8_t *from = packed + at / QK_PQ_TILE * packed_tile(m) + at % QK_PQ_TILE;
        for (size_t g = 0; g < m; g++) codes[g] = from[g / 2 * QK_PQ_TILE] >> g % 2 * 4 & 15;
    }
}

static void unpack_tiles(void *context, size_t begin, size_t end)
{
    const job *j = context;
    const size_t at = begin * QK_PQ_TILE;
    unpack_vectors(j->codes, j->b->m, at, min_size(end * QK_PQ_TILE, j->n) - at, j->to + at * j->b->m);
}

int qk_pq_unpack(const uint8_t *packed, size_t n, size_t m, uint8_t *codes)
{
    QK_DEFAULT_MODE;
    const qk_pq_book b = {.m = m};
    job j = {.b = &b, .codes = (uint8_t *)packed, .to = codes, .n = n};
    return m ? qk_parallel_for(ceil_div(n, QK_PQ_TILE), (double)n * (double)m, unpack_tiles, &j) : 0;
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

/* Codes of some vectors, one a byte; packed ones come into `space`. */
static const uint8_t *codes_of(const job *j, size_t at, size_t vectors, uint8_t *space)
{
    if (!j->packed) return j->codes + at * j->b->m;
    unpack_vectors(j->codes, j->b->m, at, vectors, space);
    return space;
}

/* Codes first .. last - 1 for one query. `memory` holds its table, `space` codes of SCAN vectors. */
static void scan_for_one(job *j, const float *query, size_t first, size_t last, float *memory, uint8_t *space,
                         uint64_t *heap)
{
    const size_t m = j->b->m;
    float sum[SCAN];
    j->kernels->pq_distance_table(j->b, query, memory);
    for (size_t at = first, count; at < last; at += count) {
        if ((at - first) % LOOK == 0 && qk_stopped()) return;
        count = min_size(last - at, SCAN);
        j->kernels->pq_table_sums(memory, m, j->b->k, codes_of(j, at, count, space), count, sum);
        for (size_t i = 0; i < count; i++) {
            const uint64_t key = key_of(sum[i], at + i);
            if (key < heap[0]) replace_largest(heap, j->k, key);
        }
    }
}

/* The same for a query a lane; their heaps are j->parts * j->k keys apart. */
static void scan_for_lanes(job *j, const float *queries, size_t count, size_t first, size_t last, float *memory,
                           uint8_t *space, uint64_t *heaps)
{
    const size_t m = j->b->m, lanes = j->lanes, stride = j->parts * j->k;
    float *turned = memory + m * j->b->k * lanes, sum[LANE_SCAN * MAX_LANES];
    int32_t least[MAX_LANES];
    j->kernels->pq_distance_lanes(j->b, queries, count, turned, memory);
    for (size_t at = first, vectors; at < last; at += vectors) {
        if ((at - first) % LOOK == 0 && qk_stopped()) return;
        vectors = min_size(last - at, LANE_SCAN);
        j->kernels->pq_lane_sums(memory, m, j->b->k, codes_of(j, at, vectors, space), vectors, sum, least);
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

/* Codes first .. last - 1 for some queries: a query a lane, or one by one where they are so few that it is faster. */
static void scan_for_all(job *j, size_t query, size_t count, size_t first, size_t last, uint64_t *heaps)
{
    const size_t width = j->b->m * j->b->d, lanes = j->lanes;
    const size_t beyond =
        QK_MAX_LEVELS - j->b->k; /* of the last table: for codes that another thread changes after they were checked */
    const size_t numbers = qk_plus(qk_times(j->b->m, j->b->k + j->b->d), beyond);
    const size_t bytes = qk_times(numbers, lanes * sizeof(float)), unpacked = j->packed ? qk_times(SCAN, j->b->m) : 0;
    float *memory = obtain(j, qk_plus(bytes, unpacked));
    if (!memory) return;
    uint8_t *space = (uint8_t *)memory + bytes;
    for (size_t some; count; count -= some, query += some, heaps += some * j->parts * j->k) {
        const int single = 5 * count <= lanes + 1;
        some = single ? 1 : min_size(count, lanes);
        if (single)
            scan_for_one(j, j->x + query * width, first, last, memory, space, heaps);
        else
            scan_for_lanes(j, j->x + query * width, some, first, last, memory, space, heaps);
    }
    qk_release(memory);
}

/* ---- the filter (numerics 19) ---- */

typedef struct {
    float *table;      /* distances (m, k) of a query from levels */
    uint8_t *bytes;    /* what becomes of them, (m in eights, 16) */
    double base;       /* the least sum that there can be */
    double unit;       /* bytes of a distance; 0: there are none yet */
    double room;       /* between base and the limit, as it was when bytes were made */
    float most;        /* the k-th nearest distance, or more */
    uint16_t limit;    /* of sums of bytes */
    int32_t most_code; /* that it saw in codes as they lie */
} sieve;

static float least_of(const float *distance, size_t k)
{
    float least = FLT_MAX;
    for (size_t i = 0; i < k; i++) least = distance[i] < least ? distance[i] : least;
    return least;
}

static void fill_bytes(const qk_pq_book *b, sieve *s)
{
    for (size_t g = 0; g < b->m; g++) {
        const float *distance = s->table + g * b->k;
        const double least = (double)least_of(distance, b->k);
        for (size_t i = 0; i < b->k; i++) {
            const double bytes = ((double)distance[i] - least) * s->unit;
            s->bytes[g * FILTER_LEVELS + i] = bytes < 255 ? (uint8_t)bytes : 255;
        }
    }
}

/* Sums of bytes from this limit on belong to vectors that neither the heap nor the bound would let in. */
static void set_limit(const qk_pq_book *b, sieve *s, const uint64_t *heap)
{
    uint32_t bits;
    float below;
    memcpy(&bits, &s->most, sizeof bits);
    bits = bits < (uint32_t)limit_of(heap) ? bits + 1 : (uint32_t)limit_of(heap);
    memcpy(&below, &bits, sizeof below);
    s->limit = UINT16_MAX;
    if (!(below <= FLT_MAX)) return;
    const double room = (double)below * (1 + 0x1p-23 * (double)b->m) - s->base;
    if (room > 0 && (s->unit == 0 || room < s->room / 2)) {
        s->room = room, s->unit = (double)(USUAL * ceil_div(b->m, 8)) / room;
        fill_bytes(b, s);
    }
    const double sums = room * s->unit;
    s->limit = room <= 0 ? 0 : sums < UINT16_MAX - 1 ? (uint16_t)((uint16_t)sums + 1) : UINT16_MAX;
}

/* How codes are read: a byte each, of one group after the other, or as they lie, packed or in rows. */
typedef enum { BY_GROUPS, AS_PACKED, AS_ROWS } reading;

static size_t pass(const job *j, sieve *s, reading how, const uint8_t *codes, size_t tiles, const uint8_t *soon,
                   uint32_t *list)
{
    const qk_pq_kernels *k = j->kernels;
    const size_t m = j->b->m;
    if (how == AS_PACKED) return k->pq_pass_packed(s->bytes, m, codes, tiles, s->limit, list);
    if (how == AS_ROWS) return k->pq_pass_rows(s->bytes, m, codes, tiles * QK_PQ_TILE, s->limit, list, &s->most_code);
    return k->pq_pass(s->bytes, m, j->packed, codes, tiles, soon, s->limit, list);
}

/* Lets vectors, from `at` on, into the heap, whose codes are read as `how` says. Returns how many the filter let pass.
 */
static size_t sift(job *j, sieve *s, reading how, const uint8_t *codes, size_t tiles, size_t at, const uint8_t *soon,
                   uint32_t *list, uint64_t *heap)
{
    const qk_pq_book *b = j->b;
    const size_t passed = pass(j, s, how, codes, tiles, soon, list);
    uint8_t space[FILTER_GROUPS];
    int closer = 0;
    for (size_t i = 0; i < passed; i++) {
        float sum;
        if (at + list[i] >= j->n) continue;
        j->kernels->pq_table_sums(s->table, b->m, b->k, codes_of(j, at + list[i], 1, space), 1, &sum);
        const uint64_t key = key_of(sum, at + list[i]);
        if (key < heap[0]) replace_largest(heap, j->k, key), closer = 1;
    }
    if (closer) set_limit(b, s, heap);
    return passed;
}

/* Whole tiles of codes from vector `at` on, with 15 bytes beyond them: in their place, or copied and filled up. */
static const uint8_t *whole_tiles(const job *j, size_t at, size_t vectors, uint8_t *copy)
{
    const size_t m = j->b->m, left = (j->n - at) * m, wanted = vectors * m + 15;
    if (left >= wanted) return j->codes + at * m;
    memset(copy, 0, wanted);
    return memcpy(copy, j->codes + at * m, left);
}

/* Turns tiles of codes from vector `at` on. Returns the largest code; packed ones were checked before. */
static int32_t turn(const job *j, size_t at, size_t tiles, uint8_t *turned, uint8_t *copy)
{
    const size_t m = j->b->m;
    if (!j->packed) return j->kernels->pq_turn(whole_tiles(j, at, tiles * QK_PQ_TILE, copy), m, tiles, turned);
    j->kernels->pq_split(packed_from(j, at), m, tiles, turned);
    return 0;
}

/* Only queries enough make up for a copy by groups. */
static reading reading_of(const job *j, size_t count)
{
    if (j->packed) return count <= FEW_QUERIES ? AS_PACKED : BY_GROUPS;
    const int rows = j->b->m >= WIDE && count <= FEW_OF_ROWS && j->kernels->pq_passes_rows;
    return rows && j->kernels->pq_passes_rows() ? AS_ROWS : BY_GROUPS;
}

/* Codes first .. last - 1 for some queries, whose sieves lie at `sieves`, by blocks of so many tiles. Returns where it
 * went to: not to the end if the filter lets much pass. */
static size_t sift_all(job *j, sieve *sieves, size_t count, size_t first, size_t last, size_t tiles, uint32_t *list,
                       uint64_t *heaps)
{
    const size_t m = j->b->m, block = tiles * QK_PQ_TILE;
    uint8_t *turned = (uint8_t *)(list + block), *copy = turned + tiles * qk_pq_turned(m);
    const reading how = reading_of(j, count);
    size_t at = first, passed = 0, seen = 0;
    int32_t most = 0;
    int stopped = 0;
    for (; at < last && passed / 16 <= (at - first) * count / 256 + count * j->k && !stopped; at += block) {
        const size_t some = min_size(tiles, ceil_div(last - at, QK_PQ_TILE));
        const uint8_t *soon = j->packed ? packed_from(j, at + some * QK_PQ_TILE) : NULL;
        const uint8_t *codes = turned;
        if (how == AS_PACKED) codes = packed_from(j, at);
        if (how == AS_ROWS) codes = whole_tiles(j, at, some * QK_PQ_TILE, copy);
        const int32_t largest = how == BY_GROUPS ? turn(j, at, some, turned, copy) : 0;
        most = largest > most ? largest : most;
        for (size_t q = 0; q < count && !stopped; q++, seen += block * m) {
            passed += sift(j, &sieves[q], how, codes, some, at, q ? NULL : soon, list, heaps + q * j->parts * j->k);
            most = sieves[q].most_code > most ? sieves[q].most_code : most;
            if (seen >= LOOK_CODES) stopped = qk_stopped(), seen = 0;
        }
    }
    qk_keep_most(&j->most, most);
    return min_size(at, last);
}

static size_t scan_filtered(job *j, size_t query, size_t count, size_t first, size_t last, uint64_t *heaps)
{
    const qk_pq_book *b = j->b;
    const size_t eights = round_up(b->m, 8) * FILTER_LEVELS, tile = qk_pq_turned(b->m);
    const size_t most = reading_of(j, count) == AS_ROWS ? ROWS : TURNED;
    const size_t tiles = tile < most ? most / tile : 1, block = tiles * QK_PQ_TILE;
    const size_t floats = round_up(count * b->m * b->k, 16) + QK_MAX_LEVELS; /* for codes that another thread changes */
    sieve sieves[FILTER_QUERIES];
    const size_t copy = round_up(block * b->m + 15, 64);
    float *tables = obtain(j, (floats + block) * sizeof *tables + count * eights + tiles * tile + copy);
    if (!tables) return last;
    uint32_t *list = (uint32_t *)(tables + floats);
    uint8_t *bytes = (uint8_t *)(list + block) + tiles * tile + copy;
    memset(bytes, 0, count * eights);
    for (size_t q = 0; q < count; q++) {
        sieve *s = &sieves[q];
        *s = (sieve){.table = tables + q * b->m * b->k, .bytes = bytes + q * eights};
        j->kernels->pq_distance_table(b, j->x + (query + q) * b->m * b->d, s->table);
        for (size_t g = 0; g < b->m; g++) s->base += (double)least_of(s->table + g * b->k, b->k);
        s->most = j->distances[(query + q) * j->k + j->k - 1];
        set_limit(b, s, heaps + q * j->parts * j->k);
    }
    const size_t done = sift_all(j, sieves, count, first, last, tiles, list, heaps);
    qk_release(tables);
    return done;
}

/* Where a part of the codes begins: at a whole tile. */
static size_t part_from(const job *j, size_t part)
{
    return part < j->parts ? j->n * part / j->parts / QK_PQ_TILE * QK_PQ_TILE : j->n;
}

/* An item is a unit of queries and a part of the codes. */
static void scan_parts(void *context, size_t begin, size_t end)
{
    job *j = context;
    for (size_t item = begin; item < end; item++) {
        const size_t query = item / j->parts * j->unit, part = item % j->parts;
        const size_t count = min_size(j->count - query, j->unit), last = part_from(j, part + 1);
        uint64_t *heaps = j->heaps + (query * j->parts + part) * j->k;
        size_t first = part_from(j, part);
        for (size_t q = 0; q < count; q++) {
            if (qk_stopped()) return;
            for (size_t i = 0; i < j->k; i++) heaps[q * j->parts * j->k + i] = INT64_MAX;
        }
        if (j->filter) {
            first = scan_filtered(j, query, count, first, last, heaps);
            if (!j->packed)
                qk_keep_most(&j->most, qk_largest_code(j->codes + first * j->b->m, (last - first) * j->b->m));
        }
        if (first < last) scan_for_all(j, query, count, first, last, heaps);
    }
}

/* Merges the parts of a query, and sorts. Codes that another thread has changed may have left a heap unfilled. */
static void finish_queries(void *context, size_t begin, size_t end)
{
    const job *j = context;
    const size_t k = j->k;
    for (size_t q = begin; q < end; q++) {
        uint64_t *heap = j->heaps + q * j->parts * k;
        for (size_t i = k; i < j->parts * k; i++) {
            if (i % LOOK == 0 && qk_stopped()) return;
            if (heap[i] < heap[0]) replace_largest(heap, k, heap[i]);
        }
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

/* Searches, by the filter or without. */
static int scan(job *j)
{
    const double work = (j->filter ? 0.01 : 0.15) * (double)j->count * (double)j->n * (double)j->b->m;
    const size_t threads = (size_t)qk_threads_for(j->n, work), units = ceil_div(j->count, j->unit);
    j->parts = units >= 4 * threads ? 1 : threads;
    j->heaps = obtain(j, qk_times(qk_times(j->count, j->k), j->parts * sizeof *j->heaps));
    if (!j->heaps) return 0;
    int status = qk_parallel_for(units * j->parts, work, scan_parts, j);
    if (!status && !j->failed) status = qk_parallel_for(j->count, 50.0 * (double)(j->count * j->k), finish_queries, j);
    qk_release(j->heaps);
    return status ? status : !j->failed;
}

/* Bounds of the k-th nearest distances: those of a sample of vectors, or of tiles, evenly spread. */
static int scan_sample(const job *whole)
{
    job j = *whole;
    const size_t each = j.packed ? QK_PQ_TILE : 1, bytes = j.packed ? packed_tile(j.b->m) : j.b->m;
    const size_t items = ceil_div(SAMPLE + 4 * j.k, each), apart = whole->n / each / items * bytes;
    j.n = items * each;
    j.codes = obtain(&j, items * bytes);
    if (!j.codes) return 0;
    for (size_t i = 0; i < items; i++) memcpy(j.codes + i * bytes, whole->codes + i * apart, bytes);
    const int status = scan(&j);
    qk_release(j.codes);
    return status;
}

static int is_filtered(const qk_pq_book *b, size_t n, size_t k)
{
    return qk_active()->pq->pq_pass && b->k <= FILTER_LEVELS && b->m <= FILTER_GROUPS && n / 64 >= k + SAMPLE / 2;
}

int qk_pq_checks(const qk_pq_codes *codes, const qk_pq_book *b, size_t k)
{
    QK_DEFAULT_MODE;
    return codes->packed || is_filtered(b, codes->n, k);
}

int qk_pq_search(const float *queries, size_t count, const qk_pq_codes *codes, const qk_pq_book *b, size_t k,
                 float *distances, int64_t *indices)
{
    QK_DEFAULT_MODE;
    job j = {.b = b,
             .kernels = qk_active()->pq,
             .x = queries,
             .codes = (uint8_t *)codes->codes,
             .n = codes->n,
             .packed = codes->packed,
             .count = count,
             .k = k,
             .distances = distances,
             .indices = indices};
    j.lanes = j.unit = (size_t)j.kernels->lanes;
    int status = 1;
    if (is_filtered(b, j.n, k)) {
        status = scan_sample(&j);
        j.filter = 1, j.unit = FILTER_QUERIES;
    }
    if (status == 1) status = scan(&j);
    return status == 1 && qk_pq_checks(codes, b, k) && (size_t)j.most >= b->k ? 2 : status;
}
