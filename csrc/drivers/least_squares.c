/* Scales of least squares, exactly (numerics 18, whose symbols these names follow): scales are searched by u = 1 / s,
 * in which the breakpoints (c - 1/2) / y of a value are evenly spaced, and in buckets of u. One search serves all zero
 * points: they differ in what saturates, which few values do. */
#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "drivers/drivers.h"
#include "kernels/kernels.h"
#include "runtime/fpmode.h"
#include "runtime/parallel.h"
#include "runtime/sizes.h"

static const double NEGLIGIBLE = 0x1p-48; /* of sum w x^2: what rounding a scale to float32 may cost */
static const double SLACK = 1e-13;        /* of sum w x^2: more than the rounding of the sums of a bound */
static const double NARROW = 0.15, SHORTER = 0.6, LONGER = 1.2; /* intervals of u, of codes of an average value */
static const double SHRINKS[] = {1.0, 0.88, 0.74, 0.55};
enum {
    MAX_BUCKETS = 1 << 16,
    MAX_SORTED = 1 << 22,
    LOOK = 1 << 19 /* steps of work between two looks for a signal */,
    LANES = 4
};

typedef double lanes __attribute__((vector_size(LANES * sizeof(double)), aligned(sizeof(double)), may_alias));
typedef int64_t masks __attribute__((vector_size(LANES * sizeof(double)), aligned(sizeof(double)), may_alias));
typedef struct {
    double loss, slope, square;
} sums; /* sum w r^2, sum w c r, sum w c^2: r = y - s c */
typedef struct {
    double y, w, wyy, wy, ww;
} tail; /* a value, and the sums up to it of w y^2, w y and w */
typedef struct {
    double at;
    uint32_t value;
    int32_t code;
} breakpoint; /* `at` in buckets: the code becomes `code` there */
typedef double change __attribute__((vector_size(2 * sizeof(double)), aligned(sizeof(double)), may_alias));
/* sum w y, sum w (2 c - 1): over breakpoints at which c is reached, what they add to sum w y c and sum w c^2 */
typedef struct {
    uint32_t bucket, begin, end;
} survivor; /* where its breakpoints are */

typedef struct {
    const qk_least_squares *args;
    const qk_kmeans_kernels *kernels;
    double *limits;  /* of the codes of values, as doubles */
    double *y, *w;   /* magnitudes, positive values first; their weights */
    double *spacing; /* of the breakpoints of a value, in buckets */
    size_t n, positive;
    int codes;              /* qmax - qmin */
    int limit[2];           /* of positive and of negative values; `codes` where there are several zero points */
    int zero, many;         /* where the search begins, and whether there are other zero points */
    double total, smallest; /* sum w y^2; scale, in units of y */
    double loss, scale;     /* the best so far */
    int best_zero;
    size_t room;           /* of the arrays by bucket */
    size_t first, buckets; /* that are searched: none below is better */
    double step;           /* of u */
    double *bound;         /* by bucket, as what follows */
    sums *state;
    change *changes;
    uint32_t *count;
    int32_t *slot;
    double clip[2]; /* whatever is clipped below these costs more than the best loss */
    tail *tails[2]; /* values above, descending */
    size_t tail_count[2];
    breakpoint *points, *spare;
    survivor *survivors;
    size_t work;
    int stopped;
} search;

/* ---- loss at a scale ---- */

static inline double smaller(double a, double b) { return a < b ? a : b; }
static inline double larger(double a, double b) { return a > b ? a : b; }

static void look_if_due(search *q)
{
    if (q->work < LOOK) return;
    q->work = 0;
    q->stopped |= qk_stopped();
}

/* Between two passes over all values. */
static int stopped_after(search *q, size_t values)
{
    q->work += values;
    look_if_due(q);
    return q->stopped;
}

/* The same within a pass, at value i. */
static inline int stopped_at(search *q, size_t i)
{
    enum { SOME = 1 << 16 };
    return i % SOME == 0 && i && stopped_after(q, SOME);
}

static size_t whole_lanes(size_t n) { return (n + QK_ROUNDED_LANES - 1) / QK_ROUNDED_LANES * QK_ROUNDED_LANES; }

static inline double sum_of(lanes a) { return (a[0] + a[2]) + (a[1] + a[3]); }

/* Sets the largest codes of positive and of negative values. */
static void limit_codes(search *q, int positive, int negative)
{
    for (size_t i = 0; i < q->n; i++) q->limits[i] = i < q->positive ? positive : negative;
}

/* Returns the sums at a scale, with the codes that are set. */
static sums loss_at(search *q, double scale)
{
    double s[3];
    q->kernels->rounded_sums(q->y, q->w, q->limits, whole_lanes(q->n), scale, s);
    q->work += q->n;
    look_if_due(q);
    return (sums){s[0], s[1], s[2]};
}

/* The best scale for codes whose sums at `scale` are s. */
static void keep(search *q, const sums *s, double scale, int zero)
{
    double move = s->slope / s->square;
    if (!(s->square > 0)) return;
    if (scale + move < q->smallest) move = q->smallest - scale;
    const double loss = s->loss - move * (2 * s->slope - move * s->square);
    if (loss < q->loss) q->loss = loss, q->scale = scale + move, q->best_zero = zero;
}

/* ---- what saturates ---- */

/* Adds to `s` what values begin .. end - 1 cost where they are clipped at limit * scale, and half of its fall with the
 * scale. */
static void add_clipped(const search *q, size_t begin, size_t end, double limit, double scale, sums *s)
{
    const double clip = limit * scale;
    lanes loss = {0}, slope = {0};
    for (; begin + LANES <= end; begin += LANES) {
        const lanes over = *(const lanes *)(q->y + begin) - clip;
        const lanes r = (lanes)((masks)over & (over > 0)), wr = *(const lanes *)(q->w + begin) * r;
        loss += wr * r, slope += wr;
    }
    s->loss += sum_of(loss), s->slope += limit * sum_of(slope);
    for (; begin < end; begin++) {
        const double r = q->y[begin] > clip ? q->y[begin] - clip : 0;
        s->loss += q->w[begin] * r * r, s->slope += limit * q->w[begin] * r;
    }
}

/* A scale below which saturation of values begin .. end - 1 alone costs more than the best loss: Newton's method, from
 * the left on a convex function, does not overshoot. */
static double least_scale(search *q, size_t begin, size_t end, const double *limit)
{
    double scale = 0;
    for (double move = INFINITY; move > 0.003 * scale; scale += move) {
        const size_t middle = q->positive < begin ? begin : q->positive < end ? q->positive : end;
        sums s = {0};
        add_clipped(q, begin, middle, limit[0], scale, &s), add_clipped(q, middle, end, limit[1], scale, &s);
        q->work += end - begin;
        look_if_due(q);
        if (q->stopped) break;
        if (s.loss <= q->loss || s.slope == 0) break;
        move = (s.loss - q->loss) / (2 * s.slope);
    }
    return scale;
}

static int descending(const void *a, const void *b)
{
    const double x = ((const tail *)a)->y, y = ((const tail *)b)->y;
    return (x < y) - (x > y);
}

static void take_tails(search *q, int side)
{
    tail *t = q->tails[side];
    const size_t end = side ? q->n : q->positive;
    size_t count = 0;
    for (size_t i = side ? q->positive : 0; i < end && !stopped_at(q, i); i++)
        if (q->y[i] >= q->clip[side]) t[count++] = (tail){.y = q->y[i], .w = q->w[i]};
    qsort(t, count, sizeof *t, descending);
    tail sum = {0};
    for (size_t i = 0; i < count; i++) {
        sum.ww += t[i].w, sum.wy += t[i].w * t[i].y, sum.wyy += t[i].w * t[i].y * t[i].y;
        t[i].ww = sum.ww, t[i].wy = sum.wy, t[i].wyy = sum.wyy;
    }
    q->tail_count[side] = count;
    q->work += 8 * count;
}

/* How many values of a side are above a limit. */
static size_t above(const search *q, int side, double limit)
{
    const tail *t = q->tails[side];
    size_t low = 0, high = q->tail_count[side];
    while (low < high) {
        const size_t middle = (low + high) / 2;
        if (t[middle].y > limit)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

/* What saturation of one side adds to the loss without it, in which codes are at most q->codes: at most `most` at the
 * scale; at least `least` at it and at scales down to `ratio` times it. */
typedef struct {
    double least, most;
} excess;
static excess excess_of(const search *q, int side, double scale, double ratio, int limit)
{
    const size_t count = above(q, side, scale * (limit + 0.5));
    if (count == 0) return (excess){0, 0};
    const size_t outside = above(q, side, scale * (q->codes + 0.5));
    const tail none = {0}, *all = q->tails[side] + count - 1, *out = outside ? q->tails[side] + outside - 1 : &none;
    const double clip = scale * limit, whole = scale * q->codes;
    const double far = (whole - clip) * (2 * out->wy - (whole + clip) * out->ww); /* both clip */
    const double w = all->ww - out->ww;
    const double near = (all->wyy - out->wyy) - 2 * clip * (all->wy - out->wy) + clip * clip * w;
    const double rounded = near - scale * scale / 4 * w;
    return (excess){larger(rounded, 0) + ratio * larger(far, 0), near + far};
}

/* ---- buckets ---- */

static void *obtain(void *old, size_t count, size_t size) { return realloc(old, qk_times(count + 1, size)); }

/* Room for so many buckets. */
static int make_room(search *q, size_t buckets)
{
    if (buckets <= q->room) return 1;
    q->room = buckets;
    void *const arrays[] = {&q->changes, &q->bound, &q->state, &q->count, &q->slot, &q->survivors};
    const size_t sizes[] = {sizeof(change),   sizeof(double),  sizeof(sums),
                            sizeof(uint32_t), sizeof(int32_t), sizeof(survivor)};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        void *old, *more;
        memcpy(&old, arrays[i], sizeof old); /* pointers of different types */
        more = obtain(old, buckets, sizes[i]);
        if (!more) return 0;
        memcpy(arrays[i], &more, sizeof more);
    }
    return 1;
}

static double root_mean_square(const search *q)
{
    double weights = 0;
    for (size_t i = 0; i < q->n; i++) weights += q->w[i];
    return sqrt(q->total / weights);
}

/* So many that bounds are as tight as the loss varies from one to the next. */
static size_t choose_buckets(const search *q, double highest)
{
    double codes = 0;
    for (size_t i = 0; i < q->n; i++) codes += q->y[i];
    const double fine = root_mean_square(q) * highest * sqrt(10 * sqrt((double)q->n));
    return (size_t)smaller(smaller(larger(fine, 4), MAX_BUCKETS), 0.5 * codes * highest + 4);
}

/* The code of a value where a bucket begins, by the arithmetic that puts breakpoints into buckets. */
static inline int code_at(double spacing, double bucket, int limit)
{
    const double near = bucket / spacing + 0.5;
    int c = near < limit ? (int)near : limit;
    while (c > 0 && spacing * (c - 0.5) >= bucket) c--;
    while (c < limit && spacing * (c + 0.5) < bucket) c++;
    return c;
}

/* Adds the breakpoints of all values to their buckets. Returns the sums of the codes where the first one begins. */
static change fill_buckets(search *q)
{
    const size_t first = q->first, count = q->buckets - first;
    const double begin = (double)first, end = (double)q->buckets;
    change before = {0};
    memset(q->changes + first, 0, count * sizeof *q->changes), memset(q->count + first, 0, count * sizeof *q->count);
    for (size_t i = 0; i < q->n; i++) q->spacing[i] = 1 / (q->y[i] * q->step);
    stopped_after(q, q->n);
    for (size_t i = 0; i < q->n && !q->stopped; i++) {
        const double a = q->spacing[i], wy = q->w[i] * q->y[i], w = q->w[i];
        const int limit = q->limit[i >= q->positive], c0 = first ? code_at(a, begin, limit) : 0;
        before += (change){wy * c0, w * c0 * c0};
        int c = c0 + 1;
        for (double at; c <= limit && (at = a * (c - 0.5)) < end; c++) {
            const size_t b = (size_t)at;
            q->changes[b] += (change){wy, w * (2 * c - 1)}, q->count[b]++;
        }
        q->work += (size_t)(c - c0) + 8;
        look_if_due(q);
    }
    return before;
}

static inline double within(double x, double low, double high) { return smaller(larger(x, low), high); }

/* A lower bound of the loss at scales from s down to s1 = 1 / u1, without what saturates: `a` and `b` are sum w y c and
 * sum w c^2 at s = 1 / u, `more` is what they gain up to s1. */
static inline double bound_of(double total, double a, double b, change more, double u, double u1, double s, double s1)
{
    const double e = within((2 * more[0] - s1 * more[1]) * (u * u1 / (u1 - u)), 0, more[1]);
    const double linear = 2 * a + s * e, square = b + e, best = within(linear / (2 * square), s1, s);
    return total - best * (linear - square * best);
}

/* Neumaier's sum. */
typedef struct {
    change high, low;
} pair;
static inline void add(pair *p, change x)
{
    const change sum = p->high + x, of_x = sum - p->high;
    p->low += (p->high - (sum - of_x)) + (x - of_x);
    p->high = sum;
}

/* Of each bucket the state at its begin, at the scale of its end, and the lower bound of the loss without what
 * saturates. Of the one in which scales have no end, it is that of the values that have no breakpoint there. */
static void bound_buckets(search *q, change before)
{
    pair sum = {before, {0}};
    double s = 1 / ((double)q->first * q->step);
    for (size_t b = q->first; b < q->buckets; b++) {
        const double u = (double)b * q->step, u1 = (double)(b + 1) * q->step, s1 = 1 / u1;
        const change now = sum.high + sum.low;
        q->state[b] = (sums){q->total - s1 * (2 * now[0] - s1 * now[1]), now[0] - s1 * now[1], now[1]};
        q->bound[b] = b ? bound_of(q->total, now[0], now[1], q->changes[b], u, u1, s, s1) : 0;
        add(&sum, q->changes[b]);
        s = s1;
    }
    if (q->first) return;
    q->bound[0] = q->total;
    for (size_t i = 0; i < q->n; i++)
        if (q->spacing[i] * 0.5 < 1) q->bound[0] -= q->w[i] * q->y[i] * q->y[i];
}

/* A u below which the loss is worse than the best, by the same bounds of a few wide intervals: as far as these serve.
 */
static double skip_large_scales(search *q, double largest, double highest)
{
    const double slack = (SLACK + 0x1p-52 * (double)q->n) * q->total, rms = root_mean_square(q);
    double u = 0.5 / largest, a = 0, b = 0; /* all codes are 0 up to here */
    if (q->total < q->loss + slack) return 0;
    limit_codes(q, q->limit[0], q->limit[1]);
    for (double step = 1 / rms; step * rms >= NARROW && u < highest && !q->stopped;) {
        const double u1 = u + step < highest ? u + step : highest, s1 = 1 / u1;
        const sums at = loss_at(q, s1);
        const double a1 = at.slope + s1 * at.square;
        if (!q->many) keep(q, &at, s1, q->zero);
        if (bound_of(q->total, a, b, (change){a1 - a, at.square - b}, u, u1, 1 / u, s1) < q->loss + slack) {
            step *= SHORTER;
            continue;
        }
        u = u1, a = a1, b = at.square, step *= LONGER;
    }
    return u;
}

/* ---- zero points ---- */

static excess excess_at(const search *q, double scale, double ratio, int zero)
{
    const excess of_positive = excess_of(q, 0, scale, ratio, q->args->qmax - zero);
    const excess of_negative = excess_of(q, 1, scale, ratio, zero - q->args->qmin);
    return (excess){of_positive.least + of_negative.least, of_positive.most + of_negative.most};
}

/* Improves the best by the scales at the beginnings of buckets, with zero points found by descent from one bucket to
 * the next. */
static void try_beginnings(search *q)
{
    int zero = q->zero;
    for (size_t b = q->first ? q->first : 1; b < q->buckets; b++) {
        if (q->bound[b] >= q->loss) continue;
        if (!q->many) {
            keep(q, &q->state[b], 1 / ((double)(b + 1) * q->step), zero);
            continue;
        }
        const double s = 1 / ((double)b * q->step), end = 1 / ((double)(b + 1) * q->step), d = s - end;
        const double loss = q->state[b].loss - d * (2 * q->state[b].slope - d * q->state[b].square);
        double most = excess_at(q, s, 1, zero).most;
        for (int step = -1; step <= 1; step += 2)
            while (zero + step >= q->args->first_zero && zero + step <= q->args->last_zero) {
                const double other = excess_at(q, s, 1, zero + step).most;
                if (other >= most) break;
                most = other, zero += step;
            }
        if (loss + most < q->loss && s >= q->smallest) q->loss = loss + most, q->scale = s, q->best_zero = zero;
        q->work += 200;
    }
}

/* The zero points with which a bucket may hold a better scale, from first to last. Returns 0 where there are none. */
static int viable(search *q, size_t b, int *first, int *last)
{
    const double margin = q->loss + SLACK * q->total - q->bound[b];
    *first = *last = q->zero;
    if (margin <= 0 || !q->many) return margin > 0;
    if (b == 0) {
        *first = q->args->first_zero, *last = q->args->last_zero;
        return 1;
    }
    const double s = 1 / ((double)b * q->step), ratio = (double)b / (double)(b + 1);
    const double fewest[2] = {ceil(q->clip[0] / s - 0.5), ceil(q->clip[1] / s - 0.5)}; /* codes */
    int low = (int)larger(q->args->first_zero, q->args->qmin + fewest[1]);
    int high = (int)smaller(q->args->last_zero, q->args->qmax - fewest[0]);
    for (int bottom = low, top = high; bottom < top;) {
        const int middle = bottom + (top - bottom) / 2;
        if (excess_of(q, 1, s, ratio, middle - q->args->qmin).least < margin)
            top = middle;
        else
            bottom = middle + 1;
        low = top;
    }
    for (int bottom = low, top = high; bottom < top;) {
        const int middle = top - (top - bottom) / 2;
        if (excess_of(q, 0, s, ratio, q->args->qmax - middle).least < margin)
            bottom = middle;
        else
            top = middle - 1;
        high = bottom;
    }
    while (low <= high && excess_at(q, s, ratio, low).least >= margin) low++;
    while (low <= high && excess_at(q, s, ratio, high).least >= margin) high--;
    *first = low, *last = high;
    q->work += 300;
    return low <= high;
}

/* ---- breakpoints one after the other ---- */

/* Breakpoints of the survivors first .. last - 1, each in its bucket, in any order. */
static void gather(search *q, size_t first, size_t last)
{
    survivor *s = q->survivors;
    uint32_t filled = 0;
    for (size_t b = q->first; b < q->buckets; b++) q->slot[b] = -1;
    for (size_t i = first; i < last; i++) {
        q->slot[s[i].bucket] = (int32_t)i, s[i].begin = s[i].end = filled;
        filled += q->count[s[i].bucket];
    }
    const double begin = s[first].bucket, end = s[last - 1].bucket + 1.0;
    for (size_t i = 0; i < q->n && !q->stopped; i++) {
        const int limit = q->limit[i >= q->positive];
        const double a = q->spacing[i];
        int c = code_at(a, begin, limit) + 1;
        for (double at; c <= limit && (at = a * (c - 0.5)) < end; c++, q->work++) {
            const int32_t slot = q->slot[(size_t)at];
            if (slot >= 0) q->points[s[slot].end++] = (breakpoint){at, (uint32_t)i, c};
        }
        q->work += 8;
        look_if_due(q);
    }
}

/* Sorts breakpoints of a bucket: by counting as many parts of it as there are, then by insertion. */
static void sort_points(breakpoint *p, size_t n, breakpoint *spare, uint32_t *ends, double bucket)
{
    if (n > 16) {
        memset(ends, 0, (n + 1) * sizeof *ends);
        for (size_t i = 0; i < n; i++) ends[(size_t)((p[i].at - bucket) * (double)n) + 1]++;
        for (size_t i = 1; i <= n; i++) ends[i] += ends[i - 1];
        for (size_t i = 0; i < n; i++) spare[ends[(size_t)((p[i].at - bucket) * (double)n)]++] = p[i];
        memcpy(p, spare, n * sizeof *p);
    }
    for (size_t i = 1; i < n; i++) {
        const breakpoint x = p[i];
        size_t j = i;
        for (; j > 0 && p[j - 1].at > x.at; j--) p[j] = p[j - 1];
        p[j] = x;
    }
}

/* The state of a bucket with the codes of what saturates. */
static sums saturated(search *q, size_t b, double s, const int *limit)
{
    sums state = q->state[b];
    for (int side = 0; side < 2 && q->many; side++)
        for (size_t i = 0; i < q->tail_count[side]; i++, q->work += 4) {
            const tail *t = q->tails[side] + i;
            const double c = code_at(1 / (t->y * q->step), (double)b, q->codes), h = limit[side], r = t->y - s * c,
                         to = t->y - s * h;
            if (c <= h) break;
            state.loss += t->w * (to * to - r * r), state.slope += t->w * (h * to - c * r),
                state.square += t->w * (h * h - c * c);
        }
    return state;
}

/* Improves the best by all codes that scales in a bucket give with one zero point. */
static void sweep(search *q, const survivor *v, int zero)
{
    const double s = 1 / ((double)(v->bucket + 1) * q->step);
    const int limit[2] = {q->args->qmax - zero, zero - q->args->qmin};
    sums state = saturated(q, v->bucket, s, limit);
    keep(q, &state, s, zero);
    for (const breakpoint *p = q->points + v->begin, *end = q->points + v->end; p < end; p++) {
        if (p->code > limit[p->value >= q->positive]) continue;
        const double y = q->y[p->value], w = q->w[p->value], odd = 2 * p->code - 1;
        state.loss += w * s * (s * odd - 2 * y), state.slope += w * (y - s * odd), state.square += w * odd;
        if ((state.loss - q->loss) * state.square < state.slope * state.slope) keep(q, &state, s, zero);
    }
    q->work += v->end - v->begin + 8;
}

/* All zero points of a survivor, outward from where the search began: of equal losses the first is kept. */
static void sweep_zeros(search *q, const survivor *v)
{
    int first, last;
    if (!viable(q, v->bucket, &first, &last)) return;
    const int reach = (int)larger(fabs((double)q->zero - first), fabs((double)last - q->zero));
    for (int i = 0; i <= 2 * reach && !q->stopped; i++) {
        const int zero = q->zero + (i % 2 ? (i + 1) / 2 : -(i / 2));
        if (zero < first || zero > last) continue;
        sweep(q, v, zero);
        look_if_due(q);
    }
}

/* Sweeps survivors first .. last - 1, whose breakpoints are `points`. */
static int sweep_survivors(search *q, size_t first, size_t last, size_t points)
{
    size_t most = 0;
    for (size_t i = first; i < last; i++)
        most = q->count[q->survivors[i].bucket] > most ? q->count[q->survivors[i].bucket] : most;
    breakpoint *all = obtain(q->points, points, sizeof *all);
    if (all) q->points = all;
    breakpoint *spare = obtain(q->spare, most + most / 2 + 2, sizeof *spare);
    if (spare) q->spare = spare;
    if (!all || !spare) return 0;
    gather(q, first, last);
    for (size_t i = first; i < last && !q->stopped; i++) {
        survivor *v = q->survivors + i;
        if (q->bound[v->bucket] >= q->loss + SLACK * q->total) continue;
        q->work += 8 * (v->end - v->begin);
        sort_points(q->points + v->begin, v->end - v->begin, q->spare, (uint32_t *)(q->spare + most), v->bucket);
        sweep_zeros(q, v);
    }
    return 1;
}

/* ---- one line ---- */

/* Scales from the least that can be best up to any. Returns 0 where memory ran out. */
static int search_scales(search *q)
{
    const double unit[2] = {1, 1}, limit[2] = {q->limit[0], q->limit[1]};
    double lowest;
    if (q->many) {
        q->clip[0] = least_scale(q, 0, q->positive, unit), q->clip[1] = least_scale(q, q->positive, q->n, unit);
        lowest = (q->clip[0] + q->clip[1]) / q->codes;
        for (int side = 0; side < 2; side++) take_tails(q, side);
    } else {
        lowest = least_scale(q, 0, q->n, limit);
    }
    if (q->stopped) return 1;
    double least = INFINITY, largest = 0;
    for (size_t i = 0; i < q->n; i++)
        least = q->y[i] < least ? q->y[i] : least, largest = q->y[i] > largest ? q->y[i] : largest;
    lowest = larger(larger(lowest, q->smallest),
                    0.999 * least / larger(limit[0], limit[1])); /* below the last one no code changes */
    q->buckets = choose_buckets(q, 1 / lowest);
    if (stopped_after(q, 3 * q->n)) return 1;
    if (!make_room(q, q->buckets)) return 0;
    q->step = 1 / lowest / (double)q->buckets * (1 + 1e-9);
    q->first = (size_t)(skip_large_scales(q, largest, 1 / lowest) / q->step);
    const change before = fill_buckets(q);
    if (q->stopped) return 1;
    bound_buckets(q, before);
    if (stopped_after(q, q->n)) return 1;
    try_beginnings(q);
    size_t count = 0, first = 0, points = 0;
    int one, other;
    for (size_t b = q->first; b < q->buckets; b++)
        if (viable(q, b, &one, &other)) q->survivors[count++].bucket = (uint32_t)b;
    for (size_t i = 0; i < count && !q->stopped; i++) {
        points += q->count[q->survivors[i].bucket];
        if (i + 1 < count && points + q->count[q->survivors[i + 1].bucket] <= MAX_SORTED) continue;
        if (!sweep_survivors(q, first, i + 1, points)) return 0;
        first = i + 1, points = 0;
    }
    return 1;
}

/* The largest scale at which the codes farthest from a zero point still make a float32. */
static float largest_scale(const qk_least_squares *p, int zero)
{
    const int above = p->qmax - zero, below = zero - p->qmin, codes = above > below ? above : below;
    const float s = FLT_MAX / (float)codes;
    return s * (float)codes <= FLT_MAX ? s : nextafterf(s, 0);
}

/* The better of the start and of the float32 scales around the best real one. */
static void choose_float(search *q, int exponent, float *scale, int32_t *zero_point)
{
    const float near = (float)ldexp(q->scale, exponent), smallest = 0x1p-126f;
    const float tries[3] = {near, nextafterf(near, 0), nextafterf(near, INFINITY)};
    const int zero = q->best_zero;
    const float most = largest_scale(q->args, zero);
    limit_codes(q, q->args->qmax - *zero_point, *zero_point - q->args->qmin);
    const int holds = *scale <= largest_scale(q->args, *zero_point);
    double least = holds ? loss_at(q, ldexp(*scale, -exponent)).loss : INFINITY;
    limit_codes(q, q->args->qmax - zero, zero - q->args->qmin);
    for (int i = 0; i < 3; i++) {
        const float s = tries[i] < smallest ? smallest : tries[i] > most ? most : tries[i];
        const double loss = loss_at(q, ldexp(s, -exponent)).loss;
        if (loss < least) *scale = s, *zero_point = zero, least = loss;
    }
}

/* Magnitudes in units of 2^exponent, the largest below 1, and weights in such that the largest w y^2 is below 1; those
 * of weight 0, and those that have the code 0 at every scale, are left out. */
static void take_values(search *q, const double *x, const double *importance, size_t n, int *exponent)
{
    const double *w = importance;
    double largest = 0;
    int most = INT32_MIN, e, f;
    q->n = 0;
    for (size_t i = 0; i < n && !stopped_at(q, i); i++)
        if (fabs(x[i]) > 0x1p-127 && !(w && w[i] == 0)) largest = fabs(x[i]) > largest ? fabs(x[i]) : largest;
    frexp(largest, exponent);
    for (size_t i = 0; w && i < n && !stopped_at(q, i); i++)
        if (fabs(x[i]) > 0x1p-127 && w[i] != 0) {
            frexp(x[i], &e), frexp(w[i], &f);
            most = 2 * (e - *exponent) + f > most ? 2 * (e - *exponent) + f : most;
        }
    const double factor = ldexp(1, -*exponent);
    for (int side = 0; side < 2; side++) {
        for (size_t i = 0; i < n && !stopped_at(q, i); i++) {
            if ((x[i] < 0) != side || fabs(x[i]) <= 0x1p-127 || (w && w[i] == 0)) continue;
            const double weight = w ? ldexp(w[i], -most) : 1;
            if (weight == 0) continue; /* beside the largest w y^2 it is nothing */
            q->y[q->n] = fabs(x[i]) * factor, q->w[q->n++] = weight;
        }
        if (side == 0) q->positive = q->n;
    }
    for (size_t i = q->n; i < whole_lanes(q->n); i++) q->y[i] = q->w[i] = q->limits[i] = 0;
}

/* One line or block. Returns 0 where memory ran out. */
static int refine(search *q, const double *x, const double *importance, size_t n, float *scale, int32_t *zero_point)
{
    const qk_least_squares *p = q->args;
    int exponent, first = p->first_zero, last = p->last_zero;
    take_values(q, x, importance, n, &exponent);
    if (q->n == 0 || q->stopped) return 1;
    if (first < last &&
        (q->positive == 0 || q->positive == q->n)) /* no other zero point leaves one sign as many codes */
        first = last = q->positive ? first : last;
    q->many = first < last, q->zero = q->many ? *zero_point : first, q->best_zero = q->zero;
    q->limit[0] = q->many ? q->codes : p->qmax - q->zero, q->limit[1] = q->many ? q->codes : q->zero - p->qmin;
    q->smallest = ldexp(0x1p-126, -exponent);
    q->total = 0;
    double largest = 0;
    for (size_t i = 0; i < q->n && !stopped_at(q, i); i++)
        q->total += q->w[i] * q->y[i] * q->y[i], largest = larger(largest, q->y[i]);
    limit_codes(q, p->qmax - q->zero, q->zero - p->qmin);
    q->loss = q->total, q->scale = larger(largest, q->smallest);
    for (size_t i = 0; i < sizeof SHRINKS / sizeof *SHRINKS && !q->stopped; i++) {
        const double s = larger(SHRINKS[i] * smaller(ldexp(*scale, -exponent), largest), q->smallest);
        const sums found = loss_at(q, s);
        keep(q, &found, s, q->zero);
    }
    if (!q->stopped && q->loss > NEGLIGIBLE * q->total && !search_scales(q)) return 0;
    if (!q->stopped) choose_float(q, exponent, scale, zero_point);
    return 1;
}

typedef struct {
    const qk_least_squares *args;
    const double *x, *importance;
    float *scale;
    int32_t *zero_point;
    int failed;
} job;

static void release(search *q)
{
    void *arrays[] = {q->y,     q->w,    q->limits,    q->spacing,  q->changes,  q->bound,  q->state,
                      q->count, q->slot, q->survivors, q->tails[0], q->tails[1], q->points, q->spare};
    for (size_t i = 0; i < sizeof arrays / sizeof *arrays; i++) free(arrays[i]);
}

/* Lines, or blocks of them, begin .. end - 1. */
static void refine_some(void *context, size_t begin, size_t end)
{
    job *j = context;
    const qk_least_squares *p = j->args;
    const size_t longest = p->n < p->block ? p->n : p->block, blocks = (p->n - 1) / p->block + 1;
    search q = {.args = p, .kernels = qk_active()->kmeans, .codes = p->qmax - p->qmin};
    const size_t lanes = whole_lanes(longest);
    q.y = obtain(NULL, lanes, sizeof *q.y), q.w = obtain(NULL, lanes, sizeof *q.w);
    q.limits = obtain(NULL, lanes, sizeof *q.limits);
    q.spacing = obtain(NULL, longest, sizeof *q.spacing);
    for (int side = 0; side < 2; side++) q.tails[side] = obtain(NULL, longest, sizeof(tail));
    int done = q.y && q.w && q.limits && q.spacing && q.tails[0] && q.tails[1];
    for (size_t i = begin; i < end && done && !q.stopped; i++) {
        const size_t skip = i % blocks * p->block, at = i / blocks * p->n + skip,
                     n = p->n - skip < p->block ? p->n - skip : p->block;
        done = refine(&q, j->x + at, j->importance ? j->importance + at : NULL, n, j->scale + i, j->zero_point + i);
        look_if_due(&q);
    }
    if (!done) __atomic_store_n(&j->failed, 1, __ATOMIC_RELAXED);
    release(&q);
}

int qk_refine(const qk_least_squares *p, size_t rows, const double *x, const double *importance, float *scale,
              int32_t *zero_point)
{
    QK_DEFAULT_MODE;
    if (p->n == 0) return 1;
    job j = {.args = p, .x = x, .importance = importance, .scale = scale, .zero_point = zero_point};
    const int status =
        qk_parallel_for(rows * ((p->n - 1) / p->block + 1), 150.0 * (double)rows * (double)p->n, refine_some, &j);
    return status ? status : j.failed ? -1 : 1;
}
