/* The loops of k-means (kmeans.c, numerics 14), compiled once per instruction set for each of two types: the including
 * file has set REAL, its INTEGER of the same size, EPSILON (half a unit in the last place of 1), VECTOR, the bytes of a
 * register, and `TYPED`, which gives names their suffix; and it has, of that suffix, `multiply_add` and `keep_two`. */
#ifndef REAL
#include "kernels/generic/kmeans.h" /* which sets it */
#else

#include "runtime/compiler.h"

typedef REAL TYPED(lanes) __attribute__((vector_size(VECTOR)));
typedef REAL TYPED(stored_lanes) __attribute__((vector_size(VECTOR), aligned(sizeof(REAL)), may_alias));
typedef INTEGER TYPED(indices) __attribute__((vector_size(VECTOR), aligned(sizeof(REAL)), may_alias));

static inline TYPED(lanes) TYPED(load)(const REAL *x) { return *(const TYPED(stored_lanes) *)x; }

/* ---- the two nearest ---- */

/* Of the points of a tile: squared distances to the nearest and to the second nearest centroid, and which is the
 * nearest. */
typedef struct {
    REAL first[QK_KMEANS_TILE], second[QK_KMEANS_TILE];
    INTEGER nearest[QK_KMEANS_TILE];
} TYPED(two);

/* Points that come after those of a tile: their rows are asked for, one now and one then, while the tile is worked on,
 * as memory has nothing else to do then. */
typedef struct {
    const REAL *x;
    const int32_t *points;
    size_t count;
} TYPED(ahead);

/* Squared distances of two registers of points, from `at` on, to four centroids at a time: 8 sums, 2 registers of
 * coordinates, 4 of differences. Four subtractions, then four multiply-adds (`fence`): Zen 4 runs both at the same
 * time, but takes 4/3 of that where they alternate. `d` is a constant where this is inlined for a small one. `list` has
 * a multiple of 4 centroids. */
static QK_INLINE void TYPED(scan_pair)(const REAL *tile, const size_t d, const REAL *centroids, const int32_t *list,
                                       size_t count, const TYPED(ahead) * ahead, size_t at, TYPED(two) * found)
{
    enum { LANES = VECTOR / sizeof(REAL) };
    const TYPED(lanes) zero = {0};
    const REAL *x = tile + at;
    size_t asked = at ? ahead->count : 0;
    TYPED(lanes) first0 = zero + (REAL)INFINITY, first1 = first0, second0 = first0, second1 = first0;
    TYPED(indices) nearest0 = {0}, nearest1 = {0};
    for (size_t i = 0; i < count; i += 4) {
        const REAL *c0 = centroids + (size_t)list[i] * d, *c1 = centroids + (size_t)list[i + 1] * d;
        const REAL *c2 = centroids + (size_t)list[i + 2] * d, *c3 = centroids + (size_t)list[i + 3] * d;
        TYPED(lanes) a0 = zero, a1 = zero, a2 = zero, a3 = zero, b0 = zero, b1 = zero, b2 = zero, b3 = zero;
        for (size_t f = 0; f < d; f++) {
            if (d > 8 && f % 8 == 0 && asked < ahead->count)
                prefetch_row(ahead->x + (size_t)ahead->points[asked++] * d, d * sizeof(REAL));
            const TYPED(lanes) xa = TYPED(load)(x + f * QK_KMEANS_TILE),
                               xb = TYPED(load)(x + f * QK_KMEANS_TILE + LANES);
            TYPED(lanes)
            t0 = TYPED(minus)(xa, c0 + f), t1 = TYPED(minus)(xb, c0 + f), t2 = TYPED(minus)(xa, c1 + f),
            t3 = TYPED(minus)(xb, c1 + f);
            TYPED(fence)(&t0, &t1, &t2, &t3);
            a0 = TYPED(multiply_add)(t0, a0), b0 = TYPED(multiply_add)(t1, b0), a1 = TYPED(multiply_add)(t2, a1),
            b1 = TYPED(multiply_add)(t3, b1);
            t0 = TYPED(minus)(xa, c2 + f), t1 = TYPED(minus)(xb, c2 + f), t2 = TYPED(minus)(xa, c3 + f),
            t3 = TYPED(minus)(xb, c3 + f);
            TYPED(fence)(&t0, &t1, &t2, &t3);
            a2 = TYPED(multiply_add)(t0, a2), b2 = TYPED(multiply_add)(t1, b2), a3 = TYPED(multiply_add)(t2, a3),
            b3 = TYPED(multiply_add)(t3, b3);
        }
        TYPED(keep_two)
        (a0, list[i], &first0, &second0, &nearest0), TYPED(keep_two)(b0, list[i], &first1, &second1, &nearest1);
        TYPED(keep_two)
        (a1, list[i + 1], &first0, &second0, &nearest0), TYPED(keep_two)(b1, list[i + 1], &first1, &second1, &nearest1);
        TYPED(keep_two)
        (a2, list[i + 2], &first0, &second0, &nearest0), TYPED(keep_two)(b2, list[i + 2], &first1, &second1, &nearest1);
        TYPED(keep_two)
        (a3, list[i + 3], &first0, &second0, &nearest0), TYPED(keep_two)(b3, list[i + 3], &first1, &second1, &nearest1);
    }
    REAL *first = found->first + at, *second = found->second + at;
    INTEGER *nearest = found->nearest + at;
    *(TYPED(stored_lanes) *)first = first0, *(TYPED(stored_lanes) *)(first + LANES) = first1;
    *(TYPED(stored_lanes) *)second = second0, *(TYPED(stored_lanes) *)(second + LANES) = second1;
    *(TYPED(indices) *)nearest = nearest0, *(TYPED(indices) *)(nearest + LANES) = nearest1;
}

static QK_INLINE void TYPED(scan_of)(const REAL *tile, const size_t d, const REAL *centroids, const int32_t *list,
                                     size_t count, const TYPED(ahead) * ahead, TYPED(two) * found)
{
    for (size_t at = 0; at < QK_KMEANS_TILE; at += 2 * VECTOR / sizeof(REAL))
        TYPED(scan_pair)(tile, d, centroids, list, count, ahead, at, found);
}

static void TYPED(scan)(const REAL *tile, size_t d, const REAL *centroids, const int32_t *list, size_t count,
                        const TYPED(ahead) * ahead, TYPED(two) * found)
{
    switch (d) {
    case 1: TYPED(scan_of)(tile, 1, centroids, list, count, ahead, found); break;
    case 2: TYPED(scan_of)(tile, 2, centroids, list, count, ahead, found); break;
    case 3: TYPED(scan_of)(tile, 3, centroids, list, count, ahead, found); break;
    case 4: TYPED(scan_of)(tile, 4, centroids, list, count, ahead, found); break;
    case 8: TYPED(scan_of)(tile, 8, centroids, list, count, ahead, found); break;
    default: TYPED(scan_of)(tile, d, centroids, list, count, ahead, found); break;
    }
}

/* Points of `rows`, an index each, as columns of a tile (d x QK_KMEANS_TILE); the last one fills up. Points lie
 * `stride` values apart. Squares of 16 bytes a side are transposed at a time. */
static void TYPED(gather)(const REAL *x, size_t stride, size_t d, const int32_t *rows, size_t count, REAL *tile)
{
    enum { SIDE = 16 / sizeof(REAL) };
    for (size_t i = 0; i < QK_KMEANS_TILE; i += SIDE) {
        const REAL *row[SIDE];
        for (size_t r = 0; r < SIDE; r++) row[r] = x + (size_t)rows[i + r < count ? i + r : count - 1] * stride;
        size_t f = 0;
        for (; f + SIDE <= d; f += SIDE) TYPED(transpose)(row, f, tile + f * QK_KMEANS_TILE + i);
        for (; f < d; f++)
            for (size_t r = 0; r < SIDE; r++) tile[f * QK_KMEANS_TILE + i + r] = row[r][f];
    }
}

/* ---- at most 16 centroids: points stay rows ---- */

#if VECTOR == 64
/* Centroids as columns (d, 16); the infinite one fills up. */
static void TYPED(turn)(const qk_kmeans *p, REAL *columns)
{
    const REAL *centroids = p->centroids;
    for (size_t f = 0; f < p->d; f++)
        for (size_t j = 0; j < 16; j++) columns[16 * f + j] = centroids[min_size(j, p->k) * p->d + f];
}

/* Squared distances of rows to 16 centroids: 8 sums, for `parts` registers a row. Lines of the rows `next`, as many,
 * are asked for meanwhile. */
static QK_INLINE void TYPED(distances_of)(const int parts, const REAL *const *row, const REAL *const *next, size_t d,
                                          const REAL *columns, REAL *to)
{
    enum { LANES = VECTOR / sizeof(REAL), LINE = 64 / sizeof(REAL) };
    const REAL *x0 = row[0], *x1 = row[1 / parts], *x2 = row[2 / parts], *x3 = row[3 / parts];
    const REAL *x4 = row[4 / parts], *x5 = row[5 / parts], *x6 = row[6 / parts], *x7 = row[7 / parts];
    const size_t at1 = 1 % parts * LANES, at2 = 2 % parts * LANES, at3 = 3 % parts * LANES, at4 = 4 % parts * LANES,
                 at5 = 5 % parts * LANES, at6 = 6 % parts * LANES, at7 = 7 % parts * LANES;
    const TYPED(lanes) zero = {0};
    TYPED(lanes) a0 = zero, a1 = zero, a2 = zero, a3 = zero, b0 = zero, b1 = zero, b2 = zero, b3 = zero;
    for (size_t f = 0; f < d; f++, columns += 16) {
        if (f % LINE == 0)
            for (int r = 0; r < 8 / parts; r++) __builtin_prefetch(next[r] + f);
        TYPED(lanes)
        t0 = TYPED(minus)(TYPED(load)(columns), x0 + f), t1 = TYPED(minus)(TYPED(load)(columns + at1), x1 + f),
        t2 = TYPED(minus)(TYPED(load)(columns + at2), x2 + f), t3 = TYPED(minus)(TYPED(load)(columns + at3), x3 + f);
        TYPED(fence)(&t0, &t1, &t2, &t3);
        a0 = TYPED(multiply_add)(t0, a0), a1 = TYPED(multiply_add)(t1, a1), a2 = TYPED(multiply_add)(t2, a2),
        a3 = TYPED(multiply_add)(t3, a3);
        t0 = TYPED(minus)(TYPED(load)(columns + at4), x4 + f), t1 = TYPED(minus)(TYPED(load)(columns + at5), x5 + f),
        t2 = TYPED(minus)(TYPED(load)(columns + at6), x6 + f), t3 = TYPED(minus)(TYPED(load)(columns + at7), x7 + f);
        TYPED(fence)(&t0, &t1, &t2, &t3);
        b0 = TYPED(multiply_add)(t0, b0), b1 = TYPED(multiply_add)(t1, b1), b2 = TYPED(multiply_add)(t2, b2),
        b3 = TYPED(multiply_add)(t3, b3);
    }
    const TYPED(lanes) sums[8] = {a0, a1, a2, a3, b0, b1, b2, b3};
    memcpy(to, sums, sizeof sums);
}

/* As `scan` finds them, of points of x at once, from centroids as columns: points are not turned, distances are. */
static void TYPED(scan_rows)(const REAL *x, size_t d, const int32_t *points, size_t count, const REAL *columns,
                             const TYPED(ahead) * ahead, TYPED(two) * found)
{
    enum { LANES = VECTOR / sizeof(REAL), PARTS = 16 / LANES, ROWS = 8 / PARTS };
    REAL distances[16 * QK_KMEANS_TILE], turned[16 * QK_KMEANS_TILE];
    int32_t all[QK_KMEANS_TILE];
    for (size_t i = 0; i < QK_KMEANS_TILE; i += ROWS) {
        const REAL *row[ROWS], *next[ROWS];
        for (size_t r = 0; r < ROWS; r++) {
            row[r] = next[r] = x + (size_t)points[min_size(i + r, count - 1)] * d;
            if (ahead->count) next[r] = ahead->x + (size_t)ahead->points[min_size(i + r, ahead->count - 1)] * d;
        }
        TYPED(distances_of)(PARTS, row, next, d, columns, distances + 16 * i);
    }
    for (int i = 0; i < QK_KMEANS_TILE; i++) all[i] = i;
    TYPED(gather)(distances, 16, 16, all, QK_KMEANS_TILE, turned);
    for (size_t at = 0; at < QK_KMEANS_TILE; at += LANES) {
        const TYPED(lanes) zero = {0};
        TYPED(lanes) first = zero + (REAL)INFINITY, second = first;
        TYPED(indices) nearest = {0};
        for (int32_t j = 0; j < 16; j++)
            TYPED(keep_two)(TYPED(load)(turned + j * QK_KMEANS_TILE + at), j, &first, &second, &nearest);
        *(TYPED(stored_lanes) *)(found->first + at) = first, *(TYPED(stored_lanes) *)(found->second + at) = second;
        *(TYPED(indices) *)(found->nearest + at) = nearest;
    }
}
#endif

/* A distance, for bounds: 16 bytes at a time, so that it is the same on every instruction set. */
static inline REAL TYPED(distance)(const REAL *x, const REAL *c, size_t d)
{
    enum { SIDE = 16 / sizeof(REAL) };
    TYPED(quad) sums = {0};
    REAL sum = 0;
    size_t f = 0;
    for (; f + SIDE <= d; f += SIDE) {
        const TYPED(quad) difference = *(const TYPED(quad) *)(x + f) - *(const TYPED(quad) *)(c + f);
        sums += difference * difference;
    }
    for (; f < d; f++) sum += (x[f] - c[f]) * (x[f] - c[f]);
    return TYPED(root)(sum + TYPED(sum_of_quad)(sums));
}

/* ---- a chunk of points ---- */

/* Moves the bounds of points as far as centroids moved, and lists the points whose bounds do not prove that the label
 * stays. Two rounds: in the second the upper bound is an actual distance again, unless there is no label yet or
 * distances to all centroids cost little more. */
static size_t TYPED(doubtful)(const qk_kmeans *p, size_t begin, size_t end, int32_t *list)
{
    const REAL *restrict moved = p->moved, *restrict passed = p->passed, *restrict half = p->half, *x = p->x;
    const REAL *centroids = p->centroids;
    REAL *restrict upper = p->upper, *restrict lower = p->lower;
    const REAL above = 1 + (REAL)(p->d + 8) * EPSILON;
    size_t count = 0, rest = 0;
    for (size_t at = begin; at < end; at += 64) { /* two loops, of which the first becomes vectors */
        const size_t points = min_size(end - at, 64);
        INTEGER doubt[64];
        for (size_t i = 0; i < points; i++) {
            const int32_t a = p->labels[at + i];
            const REAL u = (upper[at + i] + moved[a]) * (1 + 4 * EPSILON), l = lower[at + i] - passed[a], h = half[a];
            upper[at + i] = u, lower[at + i] = l * (1 - 4 * EPSILON);
            doubt[i] = !(u < (l > h ? l : h));
        }
        for (size_t i = 0; i < points; i++) {
            list[count] = (int32_t)(at + i - begin);
            count += (size_t)doubt[i];
        }
    }
    if (p->k < 32 || upper[begin] == (REAL)INFINITY) return count;
    for (size_t j = 0; j < count; j++) {
        const size_t i = begin + (size_t)list[j], ahead = begin + (size_t)list[j + 32 < count ? j + 32 : count - 1];
        const int32_t a = p->labels[i];
        prefetch_row(x + ahead * p->d, p->d * sizeof(REAL));
        const REAL u = TYPED(distance)(x + i * p->d, centroids + (size_t)a * p->d, p->d) * above + TINY;
        upper[i] = u;
        list[rest] = list[j];
        rest += !(u < (lower[i] > half[a] ? lower[i] : half[a]));
    }
    return rest;
}

/* Largest upper bound of the points of each label. */
static void TYPED(reaches)(const int32_t *labels, const REAL *upper, size_t k, const int32_t *list, size_t count,
                           REAL *reach)
{
    memset(reach, 0, k * sizeof *reach);
    for (size_t j = 0; j < count; j++) {
        const int32_t a = labels[list[j]];
        reach[a] = upper[list[j]] > reach[a] ? upper[list[j]] : reach[a];
    }
}

/* `list` by label, and roughly by upper bound within a label, by counting: by the last of the bins where the bound is
 * NaN, as that of a point is which another thread has changed since it was checked. `key` is memory for one entry a
 * point, `ends` for QK_KMEANS_BINS * k + 1. */
static void TYPED(sort_by_label)(const int32_t *labels, const REAL *upper, size_t k, const int32_t *list, size_t count,
                                 const REAL *reach, uint32_t *key, int32_t *ends, int32_t *sorted)
{
    memset(ends, 0, (QK_KMEANS_BINS * k + 1) * sizeof *ends);
    for (size_t j = 0; j < count; j++) {
        const int32_t a = labels[list[j]];
        const REAL part = upper[list[j]] / reach[a], bin = part * part * (REAL)(QK_KMEANS_BINS - 1);
        key[j] = QK_KMEANS_BINS * (uint32_t)a + (uint32_t)(bin < QK_KMEANS_BINS - 1 ? bin : QK_KMEANS_BINS - 1);
        ends[key[j] + 1]++;
    }
    for (size_t i = 1; i <= QK_KMEANS_BINS * k; i++) ends[i] += ends[i - 1];
    for (size_t j = 0; j < count; j++) sorted[ends[key[j]]++] = list[j];
}

/* Lists those of k centroids whose distance is within the limit, filled up to a multiple of 4 by k. Returns how many.
 */
static size_t TYPED(within)(const REAL *distance, size_t k, REAL limit, int32_t *list)
{
    size_t j = 0, listed = 0;
#if VECTOR == 64 /* whose registers list what a comparison found */
    listed = TYPED(within_registers)(distance, k, limit, list, &j);
#endif
    for (; j < k; j++) {
        list[listed] = (int32_t)j;
        listed += distance[j] <= limit;
    }
    while (listed % 4) list[listed++] = (int32_t)k;
    return listed;
}

static size_t TYPED(count_within)(const REAL *distance, size_t k, REAL limit)
{
    INTEGER listed = 0;
    for (size_t j = 0; j < k; j++) listed += distance[j] <= limit;
    return (size_t)listed;
}

/* How many of the points, up to a tile, have the label of the first. */
static size_t TYPED(tile_of_label)(const int32_t *labels, const int32_t *points, size_t count)
{
    size_t some = count < QK_KMEANS_TILE ? count : QK_KMEANS_TILE;
    while (labels[points[some - 1]] != labels[points[0]]) some--;
    return some;
}

/* The nearest centroids of points whose squared distances may have underflowed, of which a bound of 0 is then true. */
static QK_NOINLINE void TYPED(look_again)(const qk_kmeans *p, size_t begin, const int32_t *points, size_t count,
                                          TYPED(two) * found)
{
    for (size_t i = 0; i < count; i++) {
        if (found->second[i] >= TINY / 2) continue;
        const REAL *x = (const REAL *)p->x + (begin + (size_t)points[i]) * p->d;
        found->nearest[i] = (INTEGER)TYPED(qk_nearest)(x, p->centroids, p->k, p->d, (int32_t)found->nearest[i]);
        found->second[i] = 0;
    }
}

/* Labels and bounds of up to QK_KMEANS_TILE points, to which no centroid that is not listed is nearer than `beyond`
 * less the upper bound; `count` may be larger, and says then that these come next. The list ascends, so that ties go to
 * the lower index; without one `tile` has all centroids as columns. Returns the number of labels that changed. */
static size_t TYPED(assign_tile)(const qk_kmeans *p, size_t begin, const int32_t *points, size_t count,
                                 const int32_t *list, size_t listed, REAL beyond, REAL *tile)
{
    const REAL above = 1 + (REAL)(p->d + 8) * EPSILON, below = 1 - (REAL)(p->d + 8) * EPSILON;
    REAL *upper = (REAL *)p->upper + begin, *lower = (REAL *)p->lower + begin;
    int32_t *labels = p->labels + begin;
    const size_t rest = count - min_size(count, QK_KMEANS_TILE);
    size_t changed = 0;
    count -= rest;
    const TYPED(ahead) ahead = {(const REAL *)p->x + begin * p->d, points + count, min_size(rest, QK_KMEANS_TILE)};
    TYPED(two) found;
    const REAL *x = (const REAL *)p->x + begin * p->d;
#if VECTOR == 64
    if (!list) TYPED(scan_rows)(x, p->d, points, count, tile, &ahead, &found);
#endif
    if (list) {
        TYPED(gather)(x, p->d, p->d, points, count, tile);
        TYPED(scan)(tile, p->d, p->centroids, list, listed, &ahead, &found);
    }
    for (size_t i = 0; i < QK_KMEANS_TILE; i++) {
        found.first[i] = TYPED(root)(found.first[i]) * above + TINY;
        found.second[i] = TYPED(root)(found.second[i]);
    }
    int underflowed = 0;
    for (size_t i = 0; i < count; i++) underflowed |= found.second[i] < TINY / 2;
    if (underflowed) TYPED(look_again)(p, begin, points, count, &found);
    for (size_t i = 0; i < count; i++) {
        const int32_t at = points[i], nearest = (int32_t)found.nearest[i];
        const REAL others = beyond - upper[at];
        lower[at] = (found.second[i] < others ? found.second[i] : others) * below;
        upper[at] = found.first[i];
        changed += nearest != labels[at];
        labels[at] = nearest;
    }
    return changed;
}

/* All centroids for points in any order. */
static size_t TYPED(assign_all)(const qk_kmeans *p, size_t begin, const int32_t *points, size_t count,
                                const qk_kmeans_scratch *s)
{
    const size_t listed = (p->k + 3) / 4 * 4;
    size_t changed = 0;
    const size_t look = tiles_a_look(p) * QK_KMEANS_TILE;
    const int32_t *list = s->all;
#if VECTOR == 64 /* with shorter registers to turn points costs less than this */
    if (QK_KMEANS_FEW <= p->k && p->k <= 16 && p->d >= 16) list = NULL, TYPED(turn)(p, s->tile);
#endif
    for (size_t at = 0; at < count && !(at % look == 0 && s->stopped()); at += QK_KMEANS_TILE)
        changed += TYPED(assign_tile)(p, begin, points + at, count - at, list, listed, (REAL)INFINITY, s->tile);
    return changed;
}

/* Twice the largest upper bound of some points of one label: no centroid farther than that from theirs is nearest to
 * any of them. */
static REAL TYPED(limit)(const REAL *upper, const int32_t *points, size_t count, size_t d)
{
    REAL most = 0;
    for (size_t i = 0; i < count; i++) most = upper[points[i]] > most ? upper[points[i]] : most;
    return 2 * most * (1 + (REAL)(d + 8) * EPSILON);
}

static void TYPED(prefetch)(const qk_kmeans *p, size_t begin, const int32_t *points, size_t count)
{
    const REAL *x = (const REAL *)p->x + begin * p->d;
    for (size_t i = 0; i < count; i++) prefetch_row(x + (size_t)points[i] * p->d, p->d * sizeof(REAL));
}

/* Points by label, each tile with its own candidates. Returns 0, and does nothing, where that is more work than all
 * centroids for whole tiles. */
static int TYPED(assign_by_label)(const qk_kmeans *p, size_t begin, size_t count, const qk_kmeans_scratch *s,
                                  size_t *changed)
{
    const REAL *upper = (const REAL *)p->upper + begin, *distance = p->distance;
    const int32_t *labels = p->labels + begin, *sorted = s->sorted;
    size_t work = 0;
    TYPED(reaches)(labels, upper, p->k, s->list, count, s->reach);
    TYPED(sort_by_label)(labels, upper, p->k, s->list, count, s->reach, s->key, s->ends, s->sorted);
    for (size_t at = 0, some; at < count; at += some) {
        some = TYPED(tile_of_label)(labels, sorted + at, count - at);
        work += TYPED(count_within)(distance + (size_t)labels[sorted[at]] * p->k, p->k,
                                    TYPED(limit)(upper, sorted + at, some, p->d));
    }
    if (work >= (count + QK_KMEANS_TILE - 1) / QK_KMEANS_TILE * p->k) return 0;
    const size_t look = tiles_a_look(p) * QK_KMEANS_TILE;
    for (size_t at = 0, some, looked = 0; at < count; at += some) {
        if (at >= looked + look) {
            if (s->stopped()) break;
            looked = at;
        }
        some = TYPED(tile_of_label)(labels, sorted + at, count - at);
        const REAL limit = TYPED(limit)(upper, sorted + at, some, p->d);
        const size_t listed = TYPED(within)(distance + (size_t)labels[sorted[at]] * p->k, p->k, limit, s->near),
                     next = at + some;
        TYPED(prefetch)(p, begin, sorted + next, count - next < QK_KMEANS_TILE ? count - next : QK_KMEANS_TILE);
        *changed += TYPED(assign_tile)(p, begin, sorted + at, some, s->near, listed, limit, s->tile);
    }
    return 1;
}

/* Sums of weight * x and of weights of a chunk, in double, in the order of points. `d`, `stride` and `weighted` are
 * constants where this is inlined. */
static QK_INLINE void TYPED(sum_of)(const qk_kmeans *p, size_t begin, size_t end, const size_t d, const size_t stride,
                                    const int weighted, double *restrict sums)
{
    const REAL *restrict x = p->x;
    const int32_t *restrict labels = p->labels;
    for (size_t i = begin; i < end; i++) {
        double *restrict sum = sums + (size_t)labels[i] * stride;
        const double w = weighted ? p->weight[i] : 1;
        for (size_t f = 0; f < d; f++) sum[f] += weighted ? w * (double)x[i * d + f] : (double)x[i * d + f];
        sum[d] += w;
    }
}

static void TYPED(sum)(const qk_kmeans *p, size_t begin, size_t end, double *sums)
{
    memset(sums, 0, p->k * p->stride * sizeof *sums);
    if (p->weight)
        TYPED(sum_of)(p, begin, end, p->d, p->stride, 1, sums);
    else if (p->d == 4)
        TYPED(sum_of)(p, begin, end, 4, 8, 0, sums);
    else if (p->d == 8)
        TYPED(sum_of)(p, begin, end, 8, 16, 0, sums);
    else
        TYPED(sum_of)(p, begin, end, p->d, p->stride, 0, sums);
}

/* Bounds, labels and sums of a chunk. */
static void TYPED(kmeans_chunk)(const qk_kmeans *p, size_t chunk, const qk_kmeans_scratch *s, qk_kmeans_counts *counts)
{
    const size_t begin = chunk * p->chunk, end = begin + p->chunk < p->n ? begin + p->chunk : p->n;
    const size_t count = TYPED(doubtful)(p, begin, end, s->list);
    if (p->distance && TYPED(assign_by_label)(p, begin, count, s, &counts->changed))
        counts->by_label++;
    else
        counts->changed += TYPED(assign_all)(p, begin, s->list, count, s);
    TYPED(sum)(p, begin, end, p->sums + chunk * p->k * p->stride);
}

/* ---- inertia ---- */

typedef REAL TYPED(eight) __attribute__((vector_size(8 * sizeof(REAL)), aligned(sizeof(REAL)), may_alias));
typedef double TYPED(eight_doubles) __attribute__((vector_size(64)));

/* Exact differences, in double; eight sums, difference f going to number f mod 8. */
static inline double TYPED(squared_error)(const REAL *x, const REAL *c, size_t d)
{
    TYPED(eight_doubles) sums = {0};
    size_t f = 0;
    for (; f + 8 <= d; f += 8) {
        const TYPED(eight_doubles) difference =
            __builtin_convertvector(*(const TYPED(eight) *)(x + f), TYPED(eight_doubles)) -
            __builtin_convertvector(*(const TYPED(eight) *)(c + f), TYPED(eight_doubles));
        sums += difference * difference;
    }
    for (size_t i = 0; f < d; f++, i++) sums[i] += ((double)x[f] - (double)c[f]) * ((double)x[f] - (double)c[f]);
    return ((sums[0] + sums[4]) + (sums[2] + sums[6])) + ((sums[1] + sums[5]) + (sums[3] + sums[7]));
}

/* weight * squared distance to the centroid of the label, summed over a chunk and, unless `errors` is NULL, of each
 * point. */
static double TYPED(kmeans_errors)(const qk_kmeans *p, size_t chunk, double *errors)
{
    const size_t begin = chunk * p->chunk, end = begin + p->chunk < p->n ? begin + p->chunk : p->n;
    const REAL *x = p->x, *centroids = p->centroids;
    double sum = 0;
    for (size_t i = begin; i < end; i++) {
        double error = TYPED(squared_error)(x + i * p->d, centroids + (size_t)p->labels[i] * p->d, p->d);
        if (p->weight) error *= p->weight[i];
        if (errors) errors[i] = error;
        sum += error;
    }
    return sum;
}

/* ---- distances between centroids ---- */

/* Lower bounds of the distances of centroids first .. last - 1 from all, and half of the smallest. `columns` (d, k) is
 * memory. */
static void TYPED(kmeans_distances)(const qk_kmeans *p, size_t first, size_t last, REAL *columns)
{
    const size_t k = p->k;
    const REAL below = 1 - (REAL)(p->d + 8) * EPSILON, *centroids = p->centroids;
    for (size_t j = 0; j < k; j++)
        for (size_t f = 0; f < p->d; f++) columns[f * k + j] = centroids[j * p->d + f];
    for (size_t a = first; a < last; a++) {
        REAL *restrict distance = (REAL *)p->distance + a * k, least = (REAL)INFINITY;
        memset(distance, 0, k * sizeof *distance);
        for (size_t f = 0; f < p->d; f++) {
            const REAL c = centroids[a * p->d + f], *restrict column = columns + f * k;
            for (size_t j = 0; j < k; j++) distance[j] += (column[j] - c) * (column[j] - c);
        }
        for (size_t j = 0; j < k; j++) distance[j] = TYPED(root)(distance[j]) * below;
        for (size_t j = 0; j < k; j++)
            if (j != a && distance[j] < least) least = distance[j];
        ((REAL *)p->half)[a] = least / 2;
    }
}

/* ---- seeds (k-means++) ---- */

/* nearest[i] is the squared distance to the nearest seed so far. potential[t] = sum of weight * min(nearest, distance
 * to seed t) of a chunk, by a sum for each place in a tile (lanes: one tile of double for each seed); `update` stores
 * the minimum for the one seed. */
static void TYPED(kmeans_potential)(const qk_kmeans *p, size_t chunk, const REAL *seeds, size_t count, int update,
                                    REAL *nearest, REAL *tile, double *lanes, double *potential)
{
    const size_t begin = chunk * p->chunk, end = begin + p->chunk < p->n ? begin + p->chunk : p->n, d = p->d;
    memset(lanes, 0, count * QK_KMEANS_TILE * sizeof *lanes);
    for (size_t at = begin; at < end; at += QK_KMEANS_TILE) {
        const size_t points = end - at < QK_KMEANS_TILE ? end - at : QK_KMEANS_TILE;
        double weight[QK_KMEANS_TILE] = {0};
        REAL least[QK_KMEANS_TILE] = {0};
        int32_t rows[QK_KMEANS_TILE];
        for (int32_t i = 0; i < QK_KMEANS_TILE; i++) rows[i] = i;
        TYPED(gather)((const REAL *)p->x + at * d, d, d, rows, points, tile);
        for (size_t i = 0; i < points; i++) weight[i] = p->weight ? p->weight[at + i] : 1;
        memcpy(least, nearest + at, points * sizeof *least);
        for (size_t t = 0; t < count; t++) {
            REAL sums[QK_KMEANS_TILE] = {0};
            double *restrict total = lanes + t * QK_KMEANS_TILE;
            for (size_t f = 0; f < d; f++) {
                const REAL c = seeds[t * d + f], *restrict column = tile + f * QK_KMEANS_TILE;
                for (size_t i = 0; i < QK_KMEANS_TILE; i++) sums[i] += (column[i] - c) * (column[i] - c);
            }
            for (size_t i = 0; i < QK_KMEANS_TILE; i++) sums[i] = sums[i] < least[i] ? sums[i] : least[i];
            for (size_t i = 0; i < QK_KMEANS_TILE; i++) total[i] += weight[i] * (double)sums[i];
            if (update) memcpy(nearest + at, sums, points * sizeof *sums);
        }
    }
    for (size_t t = 0; t < count; t++, lanes += QK_KMEANS_TILE) {
        for (size_t step = QK_KMEANS_TILE / 2; step > 0; step /= 2)
            for (size_t i = 0; i < step; i++) lanes[i] += lanes[i + step];
        potential[t] = lanes[0];
    }
}

#endif
