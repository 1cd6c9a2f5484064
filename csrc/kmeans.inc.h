/* The loops of k-means (kmeans.c, numerics 14), compiled once per instruction set for each of two types: the including file has set
 * REAL, its INTEGER of the same size, EPSILON (half a unit in the last place of 1), VECTOR, the bytes of a register, and `of`, which
 * gives names their suffix; and it has, of that suffix, `multiply_add` and `keep_two`. */

typedef REAL of(lanes) __attribute__((vector_size(VECTOR), aligned(sizeof(REAL)), may_alias));
typedef INTEGER of(indices) __attribute__((vector_size(VECTOR), aligned(sizeof(REAL)), may_alias));

static inline of(lanes) of(load)(const REAL *x) { return *(const of(lanes) *)x; }

/* ---- the two nearest ---- */

/* What is known of the points of a tile: squared distances to the nearest and the second nearest centroid, and which is the nearest. */
typedef struct {
    REAL first[QK_KMEANS_TILE], second[QK_KMEANS_TILE];
    INTEGER nearest[QK_KMEANS_TILE];
} of(two);

/* Squared distances of two registers of points to four centroids at a time: 8 sums, 2 registers of coordinates. `d` is a constant where
 * this is inlined for a small one. `list` has a multiple of 4 centroids. */
static inline __attribute__((always_inline)) void of(scan_pair)(const REAL *x, const size_t d, const REAL *centroids, const int32_t *list,
                                                                size_t count, REAL *first, REAL *second, INTEGER *nearest)
{
    enum { LANES = VECTOR / sizeof(REAL) };
    const of(lanes) zero = {0};
    of(lanes) first0 = zero + (REAL)INFINITY, first1 = first0, second0 = first0, second1 = first0;
    of(indices) nearest0 = {0}, nearest1 = {0};
    for (size_t i = 0; i < count; i += 4) {
        const REAL *c0 = centroids + (size_t)list[i] * d, *c1 = centroids + (size_t)list[i + 1] * d;
        const REAL *c2 = centroids + (size_t)list[i + 2] * d, *c3 = centroids + (size_t)list[i + 3] * d;
        of(lanes) a0 = zero, a1 = zero, a2 = zero, a3 = zero, b0 = zero, b1 = zero, b2 = zero, b3 = zero;
        for (size_t f = 0; f < d; f++) {
            const of(lanes) xa = of(load)(x + f * QK_KMEANS_TILE), xb = of(load)(x + f * QK_KMEANS_TILE + LANES);
            a0 = of(multiply_add)(xa - c0[f], a0), b0 = of(multiply_add)(xb - c0[f], b0);
            a1 = of(multiply_add)(xa - c1[f], a1), b1 = of(multiply_add)(xb - c1[f], b1);
            a2 = of(multiply_add)(xa - c2[f], a2), b2 = of(multiply_add)(xb - c2[f], b2);
            a3 = of(multiply_add)(xa - c3[f], a3), b3 = of(multiply_add)(xb - c3[f], b3);
        }
        of(keep_two)(a0, list[i], &first0, &second0, &nearest0), of(keep_two)(b0, list[i], &first1, &second1, &nearest1);
        of(keep_two)(a1, list[i + 1], &first0, &second0, &nearest0), of(keep_two)(b1, list[i + 1], &first1, &second1, &nearest1);
        of(keep_two)(a2, list[i + 2], &first0, &second0, &nearest0), of(keep_two)(b2, list[i + 2], &first1, &second1, &nearest1);
        of(keep_two)(a3, list[i + 3], &first0, &second0, &nearest0), of(keep_two)(b3, list[i + 3], &first1, &second1, &nearest1);
    }
    *(of(lanes) *)first = first0, *(of(lanes) *)(first + LANES) = first1;
    *(of(lanes) *)second = second0, *(of(lanes) *)(second + LANES) = second1;
    *(of(indices) *)nearest = nearest0, *(of(indices) *)(nearest + LANES) = nearest1;
}

static inline __attribute__((always_inline)) void of(scan_of)(const REAL *tile, const size_t d, const REAL *centroids,
                                                              const int32_t *list, size_t count, of(two) *found)
{
    for (size_t at = 0; at < QK_KMEANS_TILE; at += 2 * VECTOR / sizeof(REAL))
        of(scan_pair)(tile + at, d, centroids, list, count, found->first + at, found->second + at, found->nearest + at);
}

static void of(scan)(const REAL *tile, size_t d, const REAL *centroids, const int32_t *list, size_t count, of(two) *found)
{
    switch (d) {
    case 1: of(scan_of)(tile, 1, centroids, list, count, found); break;
    case 2: of(scan_of)(tile, 2, centroids, list, count, found); break;
    case 3: of(scan_of)(tile, 3, centroids, list, count, found); break;
    case 4: of(scan_of)(tile, 4, centroids, list, count, found); break;
    case 8: of(scan_of)(tile, 8, centroids, list, count, found); break;
    default: of(scan_of)(tile, d, centroids, list, count, found); break;
    }
}

/* One squared distance, by the same operations as a lane of `scan`. */
static inline REAL of(squared_distance)(const REAL *x, const REAL *c, size_t d)
{
    REAL sum = 0;
    for (size_t f = 0; f < d; f++) sum = of(fused)(x[f] - c[f], sum);
    return sum;
}

/* ---- a chunk of points ---- */

/* Points of `rows`, an index each, as columns of a tile (d x QK_KMEANS_TILE); the last one fills up. */
static void of(gather)(const REAL *x, size_t d, const int32_t *rows, size_t count, REAL *tile)
{
    for (size_t i = 0; i < QK_KMEANS_TILE; i++) {
        const REAL *row = x + (size_t)rows[i < count ? i : count - 1] * d;
        for (size_t f = 0; f < d; f++) tile[f * QK_KMEANS_TILE + i] = row[f];
    }
}

/* Moves the bounds of points as far as centroids moved, and lists the points whose bounds do not prove that the label stays. Two rounds:
 * the upper bound is an actual distance again in the second. */
static size_t of(doubtful)(const qk_kmeans *p, size_t begin, size_t end, int32_t *list)
{
    const REAL *moved = p->moved, *passed = p->passed, *half = p->half, *x = p->x, *centroids = p->centroids;
    REAL *upper = p->upper, *lower = p->lower;
    const REAL above = 1 + (REAL)(p->d + 8) * EPSILON;
    size_t count = 0, rest = 0;
    for (size_t i = begin; i < end; i++) {
        const int32_t a = p->labels[i];
        const REAL u = (upper[i] + moved[a]) * (1 + 4 * EPSILON), l = lower[i] - passed[a];
        upper[i] = u, lower[i] = l * (1 - 4 * EPSILON);
        list[count] = (int32_t)(i - begin);
        count += !(u < (l > half[a] ? l : half[a]));
    }
    for (size_t j = 0; j < count; j++) {
        const size_t i = begin + (size_t)list[j];
        const int32_t a = p->labels[i];
        const REAL u = of(root)(of(squared_distance)(x + i * p->d, centroids + (size_t)a * p->d, p->d)) * above + TINY;
        upper[i] = u;
        list[rest] = list[j];
        rest += !(u < (lower[i] > half[a] ? lower[i] : half[a]));
    }
    return rest;
}

/* The order of `list` becomes that of labels, by counting. */
static void of(sort_by_label)(const int32_t *labels, size_t k, const int32_t *list, size_t count, int32_t *starts, int32_t *sorted)
{
    memset(starts, 0, (k + 1) * sizeof *starts);
    for (size_t j = 0; j < count; j++) starts[labels[list[j]] + 1]++;
    for (size_t a = 0; a < k; a++) starts[a + 1] += starts[a];
    for (size_t j = 0; j < count; j++) sorted[starts[labels[list[j]]]++] = list[j];
}

/* Centroids that can be nearest to points within `reach` of centroid a: the first of its row. Returns their number, and in `beyond` a
 * lower bound of the distance of all others from a. */
static size_t of(candidates)(const qk_kmeans *p, size_t a, REAL reach, REAL *beyond)
{
    const REAL *distance = (const REAL *)p->distance + a * p->width;
    size_t low = 0, high = p->width;
    while (low < high) {
        const size_t middle = (low + high) / 2;
        if (distance[middle] > 2 * reach)
            high = middle;
        else
            low = middle + 1;
    }
    low = (low + 3) / 4 * 4;
    *beyond = low < p->width ? distance[low] : (REAL)INFINITY;
    return low;
}

/* Labels and bounds of up to QK_KMEANS_TILE points. Those of equal labels share candidates; without distances between centroids
 * all are candidates. Returns the number of labels that changed. */
static size_t of(assign_tile)(const qk_kmeans *p, size_t begin, const int32_t *points, size_t count, REAL *tile)
{
    const REAL above = 1 + (REAL)(p->d + 8) * EPSILON, below = 1 - (REAL)(p->d + 8) * EPSILON;
    REAL *upper = (REAL *)p->upper + begin, *lower = (REAL *)p->lower + begin, beyond = (REAL)INFINITY;
    int32_t *labels = p->labels + begin;
    const int32_t *list = p->order;
    size_t listed = p->width, changed = 0;
    of(two) found;
    if (p->distance) {
        REAL reach = 0;
        for (size_t i = 0; i < count; i++) reach = upper[points[i]] > reach ? upper[points[i]] : reach;
        const size_t a = (size_t)labels[points[0]];
        list += a * p->width;
        listed = of(candidates)(p, a, reach * above, &beyond);
    }
    of(gather)((const REAL *)p->x + begin * p->d, p->d, points, count, tile);
    of(scan)(tile, p->d, p->centroids, list, listed, &found);
    for (size_t i = 0; i < count; i++) {
        const int32_t at = points[i];
        int32_t nearest = (int32_t)found.nearest[i];
        if (found.first[i] == found.second[i]) { /* a tie: the lowest index of all that are as near */
            const REAL *x = (const REAL *)p->x + (begin + (size_t)at) * p->d;
            for (size_t j = 0; j < listed; j++)
                if (list[j] < nearest &&
                    of(squared_distance)(x, (const REAL *)p->centroids + (size_t)list[j] * p->d, p->d) == found.first[i])
                    nearest = list[j];
        }
        const REAL others = beyond - upper[at], second = of(root)(found.second[i]);
        lower[at] = (second < others ? second : others) * below;
        upper[at] = of(root)(found.first[i]) * above + TINY;
        changed += nearest != labels[at];
        labels[at] = nearest;
    }
    return changed;
}

/* Sums of weight * x and of weights of a chunk, in double, in the order of points. `d` is a constant where this is inlined. */
static inline __attribute__((always_inline)) void of(sum_of)(const qk_kmeans *p, size_t begin, size_t end, const size_t d,
                                                             double *restrict sums)
{
    const REAL *restrict x = p->x;
    const int32_t *restrict labels = p->labels;
    for (size_t i = begin; i < end; i++) {
        double *sum = sums + (size_t)labels[i] * (d + 1);
        const double w = p->weight ? p->weight[i] : 1;
        for (size_t f = 0; f < d; f++) sum[f] += w * (double)x[i * d + f];
        sum[d] += w;
    }
}

static void of(sum)(const qk_kmeans *p, size_t begin, size_t end, double *sums)
{
    memset(sums, 0, p->k * (p->d + 1) * sizeof *sums);
    switch (p->d) {
    case 4: of(sum_of)(p, begin, end, 4, sums); break;
    case 8: of(sum_of)(p, begin, end, 8, sums); break;
    default: of(sum_of)(p, begin, end, p->d, sums); break;
    }
}

static size_t of(kmeans_chunk)(const qk_kmeans *p, size_t chunk, const qk_kmeans_scratch *s)
{
    const size_t begin = chunk * p->chunk, end = begin + p->chunk < p->n ? begin + p->chunk : p->n;
    const size_t count = of(doubtful)(p, begin, end, s->list);
    const int32_t *points = s->list, *labels = p->labels + begin;
    size_t changed = 0;
    if (p->distance) {
        of(sort_by_label)(labels, p->k, s->list, count, s->starts, s->sorted);
        points = s->sorted;
    }
    for (size_t at = 0, next; at < count; at = next) {
        next = at + QK_KMEANS_TILE < count ? at + QK_KMEANS_TILE : count;
        if (p->distance)
            while (labels[points[next - 1]] != labels[points[at]]) next--;
        changed += of(assign_tile)(p, begin, points + at, next - at, s->tile);
    }
    of(sum)(p, begin, end, p->sums + chunk * p->k * (p->d + 1));
    return changed;
}

/* ---- distances between centroids ---- */

/* Shell's method: nearly in order already, but for the first time. */
static void of(sort_row)(REAL *key, int32_t *index, size_t n)
{
    static const size_t gaps[] = {701, 301, 132, 57, 23, 10, 4, 1};
    for (size_t g = 0; g < sizeof gaps / sizeof *gaps; g++)
        for (size_t i = gaps[g]; i < n; i++) {
            const REAL k = key[i];
            const int32_t at = index[i];
            size_t j = i;
            for (; j >= gaps[g] && key[j - gaps[g]] > k; j -= gaps[g]) key[j] = key[j - gaps[g]], index[j] = index[j - gaps[g]];
            key[j] = k, index[j] = at;
        }
}

/* Distances of centroid a from all, ascending, as lower bounds; half of the smallest. Its row of `order` holds a permutation before. */
static void of(kmeans_row)(const qk_kmeans *p, size_t a, REAL *tile)
{
    const REAL below = 1 - (REAL)(p->d + 8) * EPSILON, *centroids = p->centroids;
    REAL *distance = (REAL *)p->distance + a * p->width, sums[QK_KMEANS_TILE];
    int32_t *order = p->order + a * p->width;
    for (size_t at = 0; at < p->k; at += QK_KMEANS_TILE) {
        const size_t count = p->k - at < QK_KMEANS_TILE ? p->k - at : QK_KMEANS_TILE;
        of(gather)(centroids, p->d, order + at, count, tile);
        memset(sums, 0, sizeof sums);
        for (size_t f = 0; f < p->d; f++) {
            const REAL c = centroids[a * p->d + f];
            for (size_t i = 0; i < QK_KMEANS_TILE; i++) {
                const REAL difference = tile[f * QK_KMEANS_TILE + i] - c;
                sums[i] += difference * difference;
            }
        }
        for (size_t i = 0; i < count; i++) distance[at + i] = of(root)(sums[i]) * below;
    }
    of(sort_row)(distance, order, p->k);
    ((REAL *)p->half)[a] = p->k > 1 ? distance[1] / 2 : (REAL)INFINITY;
}

/* ---- seeds (k-means++) ---- */

/* nearest[i] is the squared distance to the nearest seed so far. potential[t] = sum of weight * min(nearest, distance to seed t) of a
 * chunk; `update` stores the minimum for the one seed. */
static void of(kmeans_potential)(const qk_kmeans *p, size_t chunk, const REAL *seeds, size_t count, int update, REAL *nearest,
                                 REAL *tile, double *potential)
{
    const size_t begin = chunk * p->chunk, end = begin + p->chunk < p->n ? begin + p->chunk : p->n, d = p->d;
    memset(potential, 0, count * sizeof *potential);
    for (size_t at = begin; at < end; at += QK_KMEANS_TILE) {
        const size_t points = end - at < QK_KMEANS_TILE ? end - at : QK_KMEANS_TILE;
        const REAL *x = (const REAL *)p->x + at * d;
        double weight[QK_KMEANS_TILE] = {0};
        REAL least[QK_KMEANS_TILE] = {0};
        for (size_t i = 0; i < QK_KMEANS_TILE; i++)
            for (size_t f = 0; f < d; f++) tile[f * QK_KMEANS_TILE + i] = x[(i < points ? i : points - 1) * d + f];
        for (size_t i = 0; i < points; i++) weight[i] = p->weight ? p->weight[at + i] : 1, least[i] = nearest[at + i];
        for (size_t t = 0; t < count; t++) {
            REAL sums[QK_KMEANS_TILE] = {0};
            double total[QK_KMEANS_TILE];
            for (size_t f = 0; f < d; f++) {
                const REAL c = seeds[t * d + f];
                for (size_t i = 0; i < QK_KMEANS_TILE; i++) {
                    const REAL difference = tile[f * QK_KMEANS_TILE + i] - c;
                    sums[i] += difference * difference;
                }
            }
            for (size_t i = 0; i < QK_KMEANS_TILE; i++) sums[i] = sums[i] < least[i] ? sums[i] : least[i];
            for (size_t i = 0; i < QK_KMEANS_TILE; i++) total[i] = weight[i] * (double)sums[i];
            for (size_t step = QK_KMEANS_TILE / 2; step > 0; step /= 2)
                for (size_t i = 0; i < step; i++) total[i] += total[i + step];
            potential[t] += total[0];
            if (update) memcpy(nearest + at, sums, points * sizeof *sums);
        }
    }
}
