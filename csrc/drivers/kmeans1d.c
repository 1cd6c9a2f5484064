/* Clustering on a line (numerics 13): sorting, the range in which a line is searched, its centroids, labels. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "drivers/drivers.h"
#include "runtime/fpmode.h"
#include "kernels/kernels.h"
#include "runtime/sizes.h"

#define REAL wide
#define TYPED(name) wide_line_##name
#include "kernels/generic/kmeans1d_template.h"
#undef REAL
#undef TYPED

enum { GROUPS_PER_CLUSTER = 16, SORTED_AT_ONCE = 1 << 18 };
enum { PLAIN = 200 }; /* exponents up to which products of a search stay in the range of double */
static const uint64_t SIGN = (uint64_t)1 << 63;

/* Bits of a double, which may be read as either. */
typedef uint64_t __attribute__((may_alias)) line_key;

/* One line on its way: distinct points, their weights, the room for its search. */
typedef struct {
    const qk_lines *args;
    size_t n;
    line_key *keys;      /* values as integers; doubles' bits after sorting */
    double *v;           /* the same memory */
    double *weights;     /* or NULL: 1 each */
    int weight_exponent; /* by which weights were made smaller */
    double *counts;      /* room for weights that count equal values */
    qk_line_space space;
    int32_t *splits;
} line_job;

static int stopped(const line_job *j) { return j->args->stop && j->args->stop(j->args->context); }

/* The same between two passes over some points, if each takes longer than to ask. */
static int stopped_after(const line_job *j, size_t points) { return points > SORTED_AT_ONCE && stopped(j); }

/* The same in a pass that is at point i. */
static int stopped_at(const line_job *j, size_t i) { return i && i % SORTED_AT_ONCE == 0 && stopped(j); }

/* ---- memory ---- */

/* Lays out the room for n points of reals of some size from `at`; returns the end. */
static char *lay_out(qk_line_space *s, size_t n, size_t real, char *at)
{
    s->cost = qk_carve(&at, (n + 1) * real);
    for (int i = 0; i < QK_LINE_LEFT; i++) s->left[i] = qk_carve(&at, (n + 1) * real);
    for (int i = 0; i < QK_LINE_RIGHT; i++) s->right[i] = qk_carve(&at, (n + 1) * real);
    int32_t **arrays[] = {&s->count, &s->begin, &s->few, &s->many, &s->splits};
    for (int i = 0; i < 5; i++) *arrays[i] = qk_carve(&at, (n + 1) * sizeof(int32_t));
    return at;
}

static char *obtain(qk_line_space *s, size_t n, size_t real)
{
    char *memory = qk_obtain((size_t)(lay_out(s, n, real, (char *)64) - (char *)64));
    if (memory) lay_out(s, n, real, memory);
    return memory;
}

/* ---- sorting ---- */

/* As unsigned integers in the order of the values: all bits of negative ones flipped, else the sign. NaN comes first
 * or last. */
static uint64_t key_of(uint64_t bits) { return bits & SIGN ? ~bits : bits | SIGN; }
static uint64_t bits_of(uint64_t key) { return key & SIGN ? key ^ SIGN : ~key; }

static int ascends(const line_key *keys, size_t n)
{
    int64_t falls = 0;
    for (size_t i = 1; i < n; i++) falls |= keys[i - 1] > keys[i];
    return !falls;
}

/* One digit of a radix sort. */
static int scatter(const line_job *j, const line_key *from, const double *weights, line_key *to, double *to_weights,
                   size_t *place, int shift)
{
    for (size_t first = 0; first < j->args->n; first += SORTED_AT_ONCE) {
        if (first && stopped(j)) return 0;
        const size_t last = min_size(j->args->n, first + SORTED_AT_ONCE);
        for (size_t i = first; i < last; i++) {
            const size_t at = place[from[i] >> shift & 255]++;
            to[at] = from[i];
            if (weights) to_weights[at] = weights[i];
        }
    }
    return 1;
}

static int count_digits(const line_job *j, size_t (*places)[256])
{
    memset(places, 0, 8 * sizeof *places);
    for (size_t first = 0; first < j->args->n; first += SORTED_AT_ONCE) {
        if (first && stopped(j)) return 0;
        const size_t last = min_size(j->args->n, first + SORTED_AT_ONCE);
        for (size_t i = first; i < last; i++)
            for (int d = 0; d < 8; d++) places[d][j->keys[i] >> 8 * d & 255]++;
    }
    return 1;
}

/* Ascending keys, and their weights along. Digits that are all alike are passed over: the low ones of what was
 * float32, say. */
static int sort_keys(const line_job *j)
{
    const size_t n = j->args->n;
    size_t places[8][256];
    line_key *from = j->keys, *to = j->space.cost;
    double *weights = j->weights, *to_weights = j->space.left[0];
    if (stopped_after(j, n)) return 0;
    if (ascends(from, n)) return 1;
    if (!count_digits(j, places)) return 0;
    for (int d = 0; d < 8; d++) {
        size_t sum = 0;
        if (places[d][from[0] >> 8 * d & 255] == n) continue;
        for (int b = 0; b < 256; b++) {
            const size_t count = places[d][b];
            places[d][b] = sum, sum += count;
        }
        if (!scatter(j, from, weights, to, to_weights, places[d], 8 * d)) return 0;
        line_key *const keys = from;
        double *const old = weights;
        from = to, to = keys;
        if (old) weights = to_weights, to_weights = old;
    }
    if (stopped_after(j, n)) return 0;
    if (from != j->keys) memcpy(j->keys, from, n * sizeof *from);
    if (weights != j->weights) memcpy(j->weights, weights, n * sizeof *weights);
    return 1;
}

/* Sorts a line. Returns 0 where it was stopped. */
static int sort_line(const line_job *j)
{
    const size_t n = j->args->n;
    const int doubles = !j->args->integers;
    for (size_t i = 0; i < n && doubles; i++) {
        j->v[i] += 0.0; /* -0 becomes 0 */
        j->keys[i] = key_of(j->keys[i]);
    }
    if (!sort_keys(j) || stopped_after(j, n)) return 0;
    for (size_t i = 0; i < n && doubles; i++) j->keys[i] = bits_of(j->keys[i]);
    return 1;
}

/* ---- distinct points ---- */

/* Whether values and weights can be clustered. */
static int can_be_clustered(const line_job *j)
{
    const size_t n = j->args->n;
    if (!j->args->integers && !(isfinite(j->v[0]) && isfinite(j->v[n - 1]))) return 0;
    if (!j->weights) return 1;
    double largest = 0;
    for (size_t i = 0; i < n; i++) {
        const double w = j->weights[i];
        if (!(w >= 0 && w < INFINITY)) return 0;
        if (w > largest) largest = w;
    }
    return largest > 0;
}

/* Makes weights so small that their sum is a double. */
static void bound_weights(line_job *j)
{
    double sum = 0;
    for (size_t i = 0; i < j->args->n; i++) sum += j->weights[i] * 0x1p-40;
    const int exponent = sum > 0 ? ilogb(sum) + 40 : 0;
    const int most = j->args->pinned ? 1020 : 1022;
    j->weight_exponent = exponent > most ? exponent - most : 0;
    if (!j->weight_exponent) return;
    for (size_t i = 0; i < j->args->n; i++) {
        const double w = ldexp(j->weights[i], -j->weight_exponent);
        j->weights[i] = w > 0 || j->weights[i] == 0 ? w : 0x1p-1074;
    }
}

/* Sorted values to the distinct ones of positive weight, in place; equal ones add their weights. */
static void merge_weighted(line_job *j)
{
    size_t m = 0;
    for (size_t i = 0; i < j->args->n; i++) {
        if (j->weights[i] == 0) continue;
        if (m && j->keys[m - 1] == j->keys[i])
            j->weights[m - 1] += j->weights[i];
        else
            j->keys[m] = j->keys[i], j->weights[m] = j->weights[i], m++;
    }
    j->n = m;
}

static int merge_counted(line_job *j)
{
    size_t m = 0;
    double *counts = NULL;
    for (size_t i = 0; i < j->args->n; i++) {
        if (i == 0 || j->keys[m - 1] != j->keys[i]) {
            j->keys[m] = j->keys[i];
            if (counts) counts[m] = 1;
            m++;
            continue;
        }
        if (!counts) {
            if (!j->counts) j->counts = malloc(j->args->n * sizeof *counts);
            if (!(counts = j->counts)) return 0;
            for (size_t c = 0; c < m; c++) counts[c] = 1;
        }
        counts[m - 1] += 1;
    }
    j->n = m, j->weights = counts;
    return 1;
}

static int merge(line_job *j)
{
    if (!j->weights) return merge_counted(j);
    bound_weights(j);
    merge_weighted(j);
    return 1;
}

/* ---- the range of a line ---- */

/* Exactly, unless the exponents of two doubles are more than 60 apart. */
static wide value(const line_job *j, size_t i)
{
    switch (j->args->integers) {
    case 0: return j->v[i];
    case 1: return j->keys[i];
    default: return (int64_t)(j->keys[i] ^ SIGN);
    }
}

static wide times_power(wide x, int exponent)
{
    for (; exponent > 1000; exponent -= 1000) x *= 0x1p1000;
    for (; exponent < -1000; exponent += 1000) x *= 0x1p-1000;
    return x * ldexp(1, exponent);
}

static int exponent_of(wide x)
{
    int shift = 0;
    for (; x > 0x1p500; shift += 500) x *= 0x1p-500;
    for (; x < 0x1p-500; shift -= 500) x *= 0x1p500;
    return ilogb((double)x) + shift;
}

/* Exponents of the weights and of the gaps, those of the largest and smallest; and of the largest distance. */
typedef struct {
    int weight_low, weight_high, gap_low, gap_high;
} line_range;

static line_range range_of(const line_job *j)
{
    line_range r = {0};
    if (j->weights) {
        double low = j->weights[0], high = 0;
        for (size_t i = 0; i < j->n; i++) {
            low = j->weights[i] < low ? j->weights[i] : low;
            high += j->weights[i];
        }
        r.weight_low = ilogb(low), r.weight_high = ilogb(high);
    }
    if (j->args->integers) {
        r.gap_high = 64;
        return r;
    }
    double low = INFINITY;
    for (size_t i = 0; i + 1 < j->n; i++) {
        const double gap = j->v[i + 1] - j->v[i];
        low = gap < low ? gap : low;
    }
    r.gap_low = ilogb(low < 0x1p1023 ? low : 0x1p1023);
    const wide extent = value(j, j->n - 1) - value(j, 0);
    r.gap_high = extent < (wide)INFINITY ? exponent_of(extent) : DBL_MAX_EXP;
    return r;
}

/* The exponent of the k-th largest gap. */
static int exponent_of_gap(const line_job *j, size_t k)
{
    enum { LOWEST = -1100, HIGHEST = 1100 };
    size_t counts[HIGHEST - LOWEST] = {0}, seen = 0;
    for (size_t i = 0; i + 1 < j->n; i++) {
        if (stopped_at(j, i)) return 0; /* which is asked again before it matters */
        counts[exponent_of(value(j, i + 1) - value(j, i)) - LOWEST]++;
    }
    int e = HIGHEST;
    while (seen < k) seen += counts[--e - LOWEST];
    return e;
}

/* The gaps as doubles in units of 2^exponent, within 2^-PLAIN .. 2^PLAIN. Returns 0 where it was told to stop. */
static int make_gaps(const line_job *j, int exponent, double *gaps)
{
    if (j->args->integers && exponent == 0) {
        for (size_t i = 0; i + 1 < j->n; i++) gaps[i] = (double)(j->keys[i + 1] - j->keys[i]);
        return 1;
    }
    for (size_t i = 0; i + 1 < j->n; i++) {
        if (stopped_at(j, i)) return 0;
        const wide gap = times_power(value(j, i + 1) - value(j, i), -exponent);
        gaps[i] = gap > 0x1p200 ? 0x1p200 : gap < 0x1p-200 ? 0x1p-200 : (double)gap;
    }
    return 1;
}

/* ---- the search ---- */

static double position(const line_job *j, size_t i)
{
    return j->args->integers ? (double)(j->keys[i] - j->keys[0]) : j->v[i];
}

/* (w h^2)^(1/3) of each run of `size` points, h being its extent; and their sum. */
static double density_cost(const line_job *j, size_t size, double *runs)
{
    double sum = 0;
    for (size_t first = 0, r = 0; first < j->n; first += size, r++) {
        const size_t last = min_size(j->n, first + size);
        const double h = position(j, min_size(last, j->n - 1)) - position(j, first);
        double w = (double)(last - first);
        if (j->weights) {
            w = 0;
            for (size_t i = first; i < last; i++) w += j->weights[i];
        }
        sum += runs[r] = cbrt(w * h * h);
    }
    return sum;
}

/* Groups of points that would make good clusters: neither many points nor much of the density cost. Their last
 * points' ends. */
static size_t coarse_ends(const line_job *j, size_t size, const double *runs, double share, size_t most, int32_t *ends)
{
    size_t count = 0, last = 0;
    double sum = 0;
    for (size_t begin = 0, r = 0; begin < j->n; begin += size, r++) {
        const size_t end = min_size(j->n, begin + size);
        sum += runs[r];
        if (runs[r] > share) { /* a gap somewhere: every point by itself */
            for (size_t i = begin > last ? begin : last + 1; i <= end; i++)
                if (i > last) ends[count++] = (int32_t)(last = i);
            sum = 0;
        } else if (sum >= share || end - last >= most || end == j->n) {
            ends[count++] = (int32_t)(last = end);
            sum = 0;
        }
    }
    return count;
}

/* Means of groups and their weights. */
static void coarse_points(const line_job *j, const int32_t *ends, size_t m, double *v, double *weights)
{
    size_t first = 0;
    for (size_t g = 0; g < m; g++) {
        double sum = 0, moment = 0;
        for (size_t i = first; i < (size_t)ends[g]; i++) {
            const double w = j->weights ? j->weights[i] : 1;
            sum += w, moment += w * (position(j, i) - position(j, first));
        }
        v[g] = position(j, first) + moment / sum, weights[g] = sum;
        first = (size_t)ends[g];
    }
}

/* A guess of the penalty from the problem of grouped points. Returns 0 where the search was stopped, -1 without
 * memory. */
static int coarse_penalty(const line_job *j, size_t k, size_t size, const double *runs, double share, double *penalty)
{
    int32_t *ends = malloc((j->n + 1) * sizeof *ends);
    if (!ends) return -1;
    const size_t m = coarse_ends(j, size, runs, share, 2 * j->n / (GROUPS_PER_CLUSTER * k), ends);
    int done = 1;
    qk_line_space space;
    if (m > 2 * k && m <= j->n / 2) {
        double *v = malloc(2 * m * sizeof *v);
        char *memory = obtain(&space, m, sizeof(double));
        if (v && memory) {
            coarse_points(j, ends, m, v, v + m);
            const qk_line line = {.n = m, .v = v, .weight = v + m, .stop = j->args->stop, .context = j->args->context};
            done = qk_active()->kmeans->line_search(&line, k, penalty, &space);
        } else {
            done = -1;
        }
        free(v), qk_release(memory);
    }
    free(ends);
    return done;
}

/* A penalty that asks for about k clusters: by high-resolution theory, then by grouped points. Status as before. */
static int guess_penalty(const line_job *j, size_t k, double *penalty)
{
    const size_t size = j->n > 256 ? 8 : 1;
    double few[256], *runs = j->n > 256 ? malloc((j->n + size - 1) / size * sizeof *runs) : few;
    if (!runs) return -1;
    const double sum = density_cost(j, size, runs), groups = (double)(GROUPS_PER_CLUSTER * k);
    *penalty = sum * sum * sum / 6 / ((double)k * (double)k * (double)k);
    int done = stopped_after(j, j->n) ? 0 : 1;
    if (done && groups * 4 <= (double)j->n) done = coarse_penalty(j, k, size, runs, sum / groups, penalty);
    if (runs != few) free(runs);
    return done;
}

static qk_lines_status status_of(int done)
{
    return done > 0 ? QK_LINES_DONE : done < 0 ? QK_LINES_NO_MEMORY : QK_LINES_STOPPED;
}

static qk_lines_status search_wide(line_job *j, size_t k)
{
    qk_line_space space;
    char *memory = obtain(&space, j->n, sizeof(wide));
    wide *reals = malloc(2 * j->n * sizeof *reals);
    int done = memory && reals ? 1 : -1;
    if (done > 0) {
        for (size_t i = 0; i < j->n && done; i++) {
            reals[i] = i + 1 < j->n ? value(j, i + 1) - value(j, i) : 0;
            reals[j->n + i] = j->weights ? j->weights[i] : 1;
            done = !stopped_at(j, i);
        }
        if (j->args->pinned) reals[j->n] *= 0x1p100;
        const qk_line line = {j->n, reals, NULL, reals + j->n, j->args->stop, j->args->context};
        double penalty = 0;
        done = done && wide_line_search(&line, k, &penalty, &space);
        if (done > 0) memcpy(j->splits = j->space.splits, space.splits, (k + 1) * sizeof *space.splits);
    }
    free(reals), qk_release(memory);
    return status_of(done);
}

/* The splits of a line of n > k points, by doubles where these hold all products, or all that matter. */
static qk_lines_status search(line_job *j, size_t k, int *plain_line)
{
    const line_range r = range_of(j);
    const int weights_span = r.weight_high - r.weight_low, gaps_span = r.gap_high - r.gap_low;
    const int plain = r.gap_low > -PLAIN && r.gap_high < PLAIN && r.weight_low > -PLAIN && r.weight_high < PLAIN;
    *plain_line = plain;
    int exponent = r.gap_high - PLAIN + 1, done = 1;
    double *gaps = NULL, *weights = NULL, penalty = 0;
    if (!plain && sizeof(wide) == sizeof(double)) return QK_LINES_TOO_WIDE;
    if (j->args->pinned && r.weight_high >= 900) return search_wide(j, k);
    if (!plain && (weights_span >= 2 * PLAIN || (gaps_span >= 2 * PLAIN - 2 && weights_span >= PLAIN)))
        return search_wide(j, k);
    if (gaps_span >= 2 * PLAIN - 2) exponent = exponent_of_gap(j, k);
    if (!plain || j->args->integers) {
        gaps = malloc(j->n * sizeof *gaps);
        if (!gaps) return QK_LINES_NO_MEMORY;
        done = make_gaps(j, plain ? 0 : exponent, gaps);
    }
    if (!plain && j->weights) {
        weights = malloc(j->n * sizeof *weights);
        if (!weights) return free(gaps), QK_LINES_NO_MEMORY;
        for (size_t i = 0; i < j->n; i++) weights[i] = ldexp(j->weights[i], -(r.weight_low + r.weight_high) / 2);
    }
    if (done > 0 && stopped_after(j, j->n)) done = 0;
    if (plain && done > 0) done = guess_penalty(j, k, &penalty);
    if (done > 0) {
        const qk_line line = {j->n, gaps, j->v, weights ? weights : j->weights, j->args->stop, j->args->context};
        done = qk_active()->kmeans->line_search(&line, k, &penalty, &j->space);
    }
    free(gaps), free(weights);
    j->splits = j->space.splits;
    return status_of(done);
}

/* ---- centroids ---- */

static double difference(const line_job *j, size_t i, size_t pivot)
{
    if (!j->args->integers) return j->v[i] - j->v[pivot];
    const uint64_t a = j->keys[i], b = j->keys[pivot];
    return a >= b ? (double)(a - b) : -(double)(b - a);
}

/* Sums of w, w d and w d^2, d being the distance from a pivot. */
typedef struct {
    wide weight, moment, square;
} line_sums;

static line_sums sums_of_hostile(const line_job *j, size_t first, size_t last, size_t pivot)
{
    line_sums s = {0, 0, 0};
    for (size_t i = first; i < last && !stopped_at(j, i - first); i++) {
        const wide w = j->weights ? j->weights[i] : 1, d = value(j, i) - value(j, pivot);
        s.weight += w, s.moment += w * d, s.square += w * d * d;
    }
    return s;
}

enum { LANES = 8, SUMMED_AT_ONCE = 512 };

static void add_lanes(const double *weights, const double *d, double *weight, double *moment, double *square)
{
    for (int l = 0; l < LANES; l++) {
        const double w = weights ? weights[l] : 1;
        weight[l] += w, moment[l] += w * d[l], square[l] += w * (d[l] * d[l]);
    }
}

/* The same in doubles, some hundred points at a time. */
static line_sums sums_of(const line_job *j, size_t first, size_t last, size_t pivot)
{
    line_sums s = {0, 0, 0};
    for (size_t block = first; block < last; block += SUMMED_AT_ONCE) {
        const size_t end = min_size(last, block + SUMMED_AT_ONCE);
        double weight[LANES] = {0}, moment[LANES] = {0}, square[LANES] = {0}, d[LANES], total[3] = {0};
        size_t i = block;
        for (; i + LANES <= end; i += LANES) {
            for (size_t l = 0; l < LANES; l++) d[l] = difference(j, i + l, pivot);
            add_lanes(j->weights ? j->weights + i : NULL, d, weight, moment, square);
        }
        for (size_t l = 0; i < end; i++, l++) {
            const double w = j->weights ? j->weights[i] : 1, d_i = difference(j, i, pivot);
            weight[l] += w, moment[l] += w * d_i, square[l] += w * (d_i * d_i);
        }
        for (int l = 0; l < LANES; l++) total[0] += weight[l], total[1] += moment[l], total[2] += square[l];
        s.weight += total[0], s.moment += total[1], s.square += total[2];
    }
    return s;
}

/* The point nearest to a place that lies `shift` from a pivot. */
static size_t nearest(const line_job *j, size_t first, size_t last, size_t pivot, wide shift)
{
    size_t low = first, high = last - 1;
    while (low < high) {
        const size_t middle = (low + high) / 2;
        const wide left = shift - (value(j, middle) - value(j, pivot)),
                   right = value(j, middle + 1) - value(j, pivot) - shift;
        if (left > right)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

/* Mean of points first .. last - 1, and their cost; anything if it is told to stop, which find_means asks as well.
 * About the point nearest to the mean the sum of squares is at most twice that. */
static wide mean_and_cost(const line_job *j, int plain, size_t first, size_t last, wide *cost)
{
    size_t pivot = (first + last) / 2;
    wide shift = 0;
    *cost = 0;
    if (j->args->pinned && first == 0) pivot = 0;
    for (int round = 0; round < 5 && last - first > 1 && !stopped_after(j, last - first); round++) {
        const line_sums s = plain ? sums_of(j, first, last, pivot) : sums_of_hostile(j, first, last, pivot);
        if (j->args->pinned && first == 0) {
            *cost = s.square;
            break;
        }
        shift = s.moment / s.weight, *cost = s.square - s.moment * shift;
        if (s.moment * shift <= 0.50001 * s.square) break;
        pivot = nearest(j, first, last, pivot, shift);
    }
    return value(j, pivot) + shift;
}

/* The largest double that is no nearer to b than to a; less than `taken`, if that is as near to both. */
static double limit_between(double a, double b, double taken)
{
    const int large = fabs(a) > 0x1p1000 || fabs(b) > 0x1p1000;
    const double x = large ? a / 2 : a, y = large ? b / 2 : b, sum = x + y, part = sum - x;
    const double error = (x - (sum - part)) + (y - part), middle = large ? sum : sum / 2,
                 twice = large ? sum : 2 * middle;
    const int above = twice > sum || (twice == sum && error < 0), tie = twice == sum && error == 0 && middle == taken;
    return above || tie ? nextafter(middle, -INFINITY) : middle;
}

/* The limit of a cluster whose last point is at - 1: what is not nearer to the next cluster, a tie being decided by
 * the points. */
static void set_limit(const line_job *j, size_t at, wide a, wide b, void *limits, size_t c)
{
    if (!j->args->integers) {
        ((double *)limits)[c] = limit_between((double)a, (double)b, j->v[at]);
        return;
    }
    const wide offset = j->args->integers == 2 ? 0x1p63 : 0, middle = (a + b) / 2 + offset;
    uint64_t limit = middle < 0x1p64 ? middle > 0 ? (uint64_t)middle : 0 : UINT64_MAX;
    if (limit < j->keys[at - 1]) limit = j->keys[at - 1];
    if (limit >= j->keys[at]) limit = j->keys[at] - 1;
    ((uint64_t *)limits)[c] = limit;
}

/* Points that are nearer to the mean of the next cluster than to their own go there, and back, until none is: the
 * search may leave points of so little weight that their cost is lost in that of others. Returns whether any had to. */
static int settle_points(line_job *j, size_t count, const wide *means)
{
    int moved = 0;
    for (size_t c = 1; c < count; c++) {
        const wide middle = (means[c - 1] + means[c]) / 2;
        const size_t first = (size_t)j->splits[c - 1], last = (size_t)j->splits[c + 1];
        size_t at = (size_t)j->splits[c];
        while (at - 1 > first && value(j, at - 1) > middle) at--;
        while (at + 1 < last && value(j, at) < middle) at++;
        moved |= at != (size_t)j->splits[c];
        j->splits[c] = (int32_t)at;
    }
    return moved;
}

/* Means of the clusters, and the sum of their costs. Returns 0 where it was stopped. */
static int find_means(const line_job *j, size_t count, int plain, wide *means, wide *inertia)
{
    size_t since = 0; /* points since the last look */
    *inertia = 0;
    for (size_t c = 0; c < count; c++) {
        const size_t first = (size_t)j->splits[c], last = (size_t)j->splits[c + 1];
        wide cost;
        means[c] = mean_and_cost(j, plain, first, last, &cost);
        *inertia += cost, since += last - first;
        if (since <= SORTED_AT_ONCE) continue;
        since = 0;
        if (stopped(j)) return 0;
    }
    return 1;
}

static qk_lines_status write_line(line_job *j, size_t line, size_t count, int plain)
{
    enum { ROUNDS = 32 };
    const qk_lines *p = j->args;
    double *centroids = p->centroids + line * p->k;
    void *limits = (uint64_t *)p->limits + line * p->k;
    wide *means = malloc(count * sizeof *means), inertia = 0;
    if (!means) return QK_LINES_NO_MEMORY;
    for (size_t i = 0; i <= count && count == j->n; i++) j->splits[i] = (int32_t)i;
    for (int round = 0; round < ROUNDS; round++) {
        if (!find_means(j, count, plain, means, &inertia)) return free(means), QK_LINES_STOPPED;
        if (round + 1 == ROUNDS || !settle_points(j, count, means)) break;
    }
    for (size_t c = 0; c < count; c++) {
        centroids[c] = (double)means[c];
        if (c) set_limit(j, (size_t)j->splits[c], means[c - 1], means[c], limits, c - 1);
    }
    free(means);
    for (size_t c = count; c < p->k; c++) centroids[c] = centroids[count - 1];
    const int exponent = p->exponents && inertia > 0 ? exponent_of(inertia) : -j->weight_exponent;
    if (p->exponents) p->exponents[line] = exponent + j->weight_exponent;
    p->inertia[line] = (double)times_power(inertia, -exponent);
    p->counts[line] = (int32_t)count;
    return QK_LINES_DONE;
}

/* ---- lines ---- */

/* Weight enough that the first cluster's mean is its first point. */
static int pin_first(line_job *j)
{
    double sum = 0;
    for (size_t i = 0; i < j->n; i++) sum += j->weights[i];
    j->weights[0] = sum < 0x1p900 ? ldexp(sum, 60) : sum; /* search_wide makes more of it */
    return isfinite(j->weights[0]);
}

static qk_lines_status cluster_line(line_job *j, size_t line)
{
    const qk_lines *p = j->args;
    j->keys = (line_key *)p->values + line * p->n, j->v = (double *)p->values + line * p->n;
    j->weights = p->weights ? p->weights + line * p->n : NULL, j->weight_exponent = 0;
    j->splits = j->space.splits;
    p->counts[line] = 0;
    if (!sort_line(j) || stopped_after(j, p->n)) return QK_LINES_STOPPED;
    if (!can_be_clustered(j)) return QK_LINES_DONE;
    if (!merge(j)) return QK_LINES_NO_MEMORY;
    if (stopped_after(j, p->n)) return QK_LINES_STOPPED;
    if (p->pinned && !pin_first(j)) return QK_LINES_DONE;
    const size_t count = min_size(j->n, p->k);
    qk_lines_status status = QK_LINES_DONE;
    int plain = 1;
    if (count < j->n) status = search(j, count, &plain);
    return status == QK_LINES_DONE ? write_line(j, line, count, plain) : status;
}

qk_lines_status qk_cluster_lines(const qk_lines *p)
{
    QK_DEFAULT_MODE;
    line_job j = {.args = p};
    char *memory = obtain(&j.space, p->n, sizeof(double));
    const qk_mode mode = qk_enter_mode();
    qk_lines_status status = memory ? QK_LINES_DONE : QK_LINES_NO_MEMORY;
    for (size_t line = 0; line < p->lines && status == QK_LINES_DONE; line++)
        status = line && stopped(&j) ? QK_LINES_STOPPED : cluster_line(&j, line);
    qk_leave_mode(mode);
    qk_release(memory), free(j.counts);
    return status;
}

qk_lines_status qk_distinct_points(const qk_lines *p)
{
    QK_DEFAULT_MODE;
    line_job j = {.args = p, .v = (double *)p->values, .keys = (line_key *)p->values, .weights = p->weights};
    char *memory = obtain(&j.space, p->n, sizeof(double));
    if (!memory) return QK_LINES_NO_MEMORY;
    const qk_mode mode = qk_enter_mode();
    const int sorted = sort_line(&j);
    if (sorted) merge(&j), p->counts[0] = (int32_t)j.n;
    qk_leave_mode(mode);
    qk_release(memory);
    return sorted ? QK_LINES_DONE : QK_LINES_STOPPED;
}

/* ---- labels ---- */

enum { LABELLED_AT_ONCE = 256 };

/* How many limits each value is above: bisection, a step of all values at a time, so that no branch depends on a
 * value. */
static void rank_doubles(const double *x, size_t n, const double *limits, size_t count, uint32_t *at)
{
    memset(at, 0, n * sizeof *at);
    for (size_t length = count; length;) {
        const size_t half = (length + 1) / 2;
        for (size_t i = 0; i < n; i++) at[i] += limits[at[i] + half - 1] < x[i] ? (uint32_t)half : 0;
        length -= half;
    }
}

static void rank_integers(const uint64_t *x, size_t n, const uint64_t *limits, size_t count, uint32_t *at)
{
    memset(at, 0, n * sizeof *at);
    for (size_t length = count; length;) {
        const size_t half = (length + 1) / 2;
        for (size_t i = 0; i < n; i++) at[i] += limits[at[i] + half - 1] < x[i] ? (uint32_t)half : 0;
        length -= half;
    }
}

static void store_labels(const uint32_t *from, size_t n, void *labels, size_t first, int as_int32)
{
    if (as_int32)
        for (size_t i = 0; i < n; i++) ((int32_t *)labels)[first + i] = (int32_t)from[i];
    else
        for (size_t i = 0; i < n; i++) ((uint8_t *)labels)[first + i] = (uint8_t)from[i];
}

void qk_label_lines(const void *values, int integers, size_t lines, size_t n, const void *limits, size_t k,
                    const int32_t *counts, void *labels, int as_int32)
{
    QK_DEFAULT_MODE;
    uint32_t at[LABELLED_AT_ONCE];
    const qk_mode mode = qk_enter_mode();
    for (size_t line = 0; line < lines; line++) {
        const size_t limit = line * k, count = (size_t)counts[line] - 1;
        for (size_t i = 0; i < n; i += LABELLED_AT_ONCE) {
            const size_t size = min_size(n - i, LABELLED_AT_ONCE), first = line * n + i;
            if (integers)
                rank_integers((const uint64_t *)values + first, size, (const uint64_t *)limits + limit, count, at);
            else
                rank_doubles((const double *)values + first, size, (const double *)limits + limit, count, at);
            store_labels(at, size, labels, first, as_int32);
        }
    }
    qk_leave_mode(mode);
}

/* ---- 16-bit codes ---- */

int qk_count_codes(const uint16_t *codes, const double *weights, size_t n, double *bins)
{
    QK_DEFAULT_MODE;
    int valid = 1;
    const qk_mode mode = qk_enter_mode();
    for (size_t i = 0; i < n; i++) {
        bins[codes[i]] += weights ? weights[i] : 1;
        if (weights) valid &= weights[i] >= 0 && weights[i] < INFINITY;
    }
    qk_leave_mode(mode);
    return valid;
}

void qk_look_up(const uint16_t *codes, size_t n, const void *table, void *labels, int as_int32)
{
    QK_DEFAULT_MODE;
    if (as_int32)
        for (size_t i = 0; i < n; i++) ((int32_t *)labels)[i] = ((const int32_t *)table)[codes[i]];
    else
        for (size_t i = 0; i < n; i++) ((uint8_t *)labels)[i] = ((const uint8_t *)table)[codes[i]];
}
