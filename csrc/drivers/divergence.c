/* What a range that is cut into cells loses of a distribution: the relative entropy of numerics 24. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "drivers/drivers.h"
#include "runtime/fpmode.h"
#include "runtime/parallel.h"
#include "runtime/sizes.h"

/* ln x of a positive normal number, the same on every machine: x = 2^e m with m in [sqrt(1/2), sqrt 2), and ln m =
 * 2 artanh((m - 1) / (m + 1)), whose argument is at most 0.172. */
static double log_of(double x)
{
    int64_t bits;
    memcpy(&bits, &x, sizeof bits);
    const int64_t exponent = (bits - 0x3fe6a09e667f3bcc) >> 52; /* less those of sqrt(1/2) */
    bits -= exponent * ((int64_t)1 << 52);
    memcpy(&x, &bits, sizeof x);
    const double s = (x - 1) / (x + 1), z = s * s;
    double sum = 0;
    for (int k = 23; k > 1; k -= 2) sum = z * (sum + 1.0 / k);
    return 2 * (s + s * sum) + (double)exponent * 0x1.62e42fefa39efp-1;
}

typedef struct {
    const qk_bins *bins;
    size_t cells;
    const double *lo, *hi, *middle, *term; /* term: sums of count (ln count - ln width) of the bins before */
    double *before;                        /* counts of the bins before */
    double *divergence;
} job;

/* The first bin whose middle is at least `limit`. */
static size_t bin_from(const job *j, double limit)
{
    size_t low = 0, high = j->bins->n;
    while (low < high) {
        const size_t half = low + (high - low) / 2;
        if (j->middle[half] < limit)
            low = half + 1;
        else
            high = half;
    }
    return low;
}

static double width(const qk_bins *b, size_t i) { return b->end[i] - b->begin[i]; }

/* What the terms of a bin become if values from outside are added to it. */
static double more(const qk_bins *b, size_t i, double outside)
{
    const double count = b->count[i], sum = count + outside, size = log_of(width(b, i));
    return sum * (log_of(sum) - size) - count * (log_of(count) - size);
}

/* P holds the bins of the range, those beside it added to its outermost ones, and Q what is left of the bins within if
 * each cell is spread over its bins as they are wide. */
static double divergence_of(const job *j, double lo, double hi)
{
    const qk_bins *b = j->bins;
    const size_t first = bin_from(j, lo), end = bin_from(j, hi);
    if (first == end) return INFINITY;
    const double total = j->before[b->n], below = j->before[first], above = total - j->before[end];
    const double step = (hi - lo) / (double)j->cells;
    double sum = j->term[end] - j->term[first];
    if (end - first == 1) {
        sum += more(b, first, below + above);
    } else {
        sum += more(b, first, below) + more(b, end - 1, above);
    }
    for (size_t i = first; i < end;) {
        double cell = floor((j->middle[i] - lo) / step), size = 0;
        const size_t begin = i;
        const double limit = lo + (cell + 1) * step;
        do size += width(b, i++);
        while (i < end && j->middle[i] < limit);
        const double count = j->before[i] - j->before[begin];
        const double with = count + (begin == first ? below : 0) + (i == end ? above : 0);
        sum -= with * (log_of(count) - log_of(size));
    }
    return sum / total + log_of((total - below - above) / total);
}

static void some_ranges(void *context, size_t begin, size_t end)
{
    const job *j = context;
    for (; begin < end && !qk_stopped(); begin++) j->divergence[begin] = divergence_of(j, j->lo[begin], j->hi[begin]);
}

int qk_divergences(const qk_bins *bins, size_t cells, size_t ranges, const double *lo, const double *hi,
                   double *divergence)
{
    QK_DEFAULT_MODE;
    const size_t bytes = qk_times(bins->n + 1, sizeof(double));
    char *memory = qk_obtain(qk_times(round_up(bytes, 64), 3)), *at = memory;
    if (!memory) return 0;
    double *middle = qk_carve(&at, bytes), *term = qk_carve(&at, bytes), *before = qk_carve(&at, bytes);
    term[0] = before[0] = 0;
    for (size_t i = 0; i < bins->n; i++) {
        middle[i] = (bins->begin[i] + bins->end[i]) / 2;
        before[i + 1] = before[i] + bins->count[i];
        term[i + 1] = term[i] + bins->count[i] * (log_of(bins->count[i]) - log_of(width(bins, i)));
    }
    job j = {bins, cells, lo, hi, middle, term, before, divergence};
    const double work = (double)ranges * (4.0 * (double)bins->n + 30.0 * (double)min_size(cells, bins->n));
    const int status = qk_parallel_for(ranges, work, some_ranges, &j);
    qk_release(memory);
    return status < 0 ? status : 1;
}
