/* The best clusters of a line (numerics 13), compiled once per instruction set for double, once for wide: the
 * including file has set REAL, and `TYPED`, which gives names their suffix. No difference is formed but that of
 * neighbours: all sums have positive terms. */
#ifndef REAL
#include "kernels/generic/kmeans1d.h" /* which sets it */
#else

#include <math.h>
#include <stddef.h>
#include <stdint.h>

typedef struct {
    size_t n;
    const REAL *gap, *weight;
    const double *v;
    int (*stop)(void *);
    void *context;
    size_t work;            /* since `stop` was asked, in candidates */
    REAL penalty;           /* what each cluster costs more */
    REAL *cost;             /* of the first j points, without penalties */
    int32_t *count, *begin; /* their clusters; where the last of these begins */
    /* Runs that end at a base, by their first point: weight, distance of the mean from the base, own cost and that of
     * all points before the base, without and with penalties. */
    REAL *left_weight, *left_mean, *left_cost, *left_total;
    /* Runs that begin at a base, by their length: the same; sums of w d and w d^2, d being the distance from the base;
     * bound of errors. */
    REAL *weight_of, *mean_of, *cost_of, *moment_of, *square_of, *reach_of;
} TYPED(pass);

static inline REAL TYPED(gap)(const TYPED(pass) * p, size_t i)
{
    return p->gap ? p->gap[i] : (REAL)(p->v[i + 1] - p->v[i]);
}
static inline REAL TYPED(weight)(const TYPED(pass) * p, size_t i) { return p->weight ? p->weight[i] : 1; }
static inline REAL TYPED(total)(const TYPED(pass) * p, size_t j) { return p->cost[j] + p->penalty * (REAL)p->count[j]; }

/* A run of points that grows at one edge. `moment` is about its outermost point, `sum` about the base, `reach` away
 * from it. */
typedef struct {
    REAL weight, moment, reach, sum, cost, mean;
} TYPED(run);

/* Takes in a point that lies `gap` beyond. Its distance from the mean is moment / weight: a sum of gaps, so that
 * nothing cancels. */
static inline void TYPED(grow)(TYPED(run) * r, REAL gap, REAL w)
{
    const REAL all = r->weight + w, inverse = 1 / (r->weight * all);
    r->moment += r->weight * gap;
    r->reach += gap;
    r->sum += w * r->reach;
    r->cost += r->moment * inverse * w * r->moment;
    r->mean = r->sum * (r->weight * inverse);
    r->weight = all;
}

/* Asks, every few milliseconds of work. */
static int TYPED(told)(TYPED(pass) * p)
{
    if (p->work < (sizeof(REAL) > sizeof(double) ? 1 << 15 : 1 << 21)) return 0;
    p->work = 0;
    return p->stop && p->stop(p->context);
}

enum { TYPED(AT_ONCE) = 1 << 18 }; /* points of a run between two looks at the work */

/* Runs of points i .. base - 1, for i from `start` on. */
static int TYPED(look_left)(TYPED(pass) * p, size_t start, size_t base)
{
    size_t at = base - start;
    TYPED(run) r = {0};
    p->left_weight[at] = p->left_mean[at] = 0;
    p->left_cost[at] = p->cost[base], p->left_total[at] = TYPED(total)(p, base);
    for (size_t i = base; i-- > start;) {
        if (i + 1 == base) {
            r.weight = TYPED(weight)(p, i);
            r.reach = r.mean = TYPED(gap)(p, i);
            r.sum = r.weight * r.reach;
        } else {
            TYPED(grow)(&r, TYPED(gap)(p, i), TYPED(weight)(p, i));
        }
        at--;
        p->left_weight[at] = r.weight, p->left_mean[at] = r.mean;
        p->left_cost[at] = p->cost[i] + r.cost, p->left_total[at] = TYPED(total)(p, i) + r.cost;
        if (at % TYPED(AT_ONCE)) continue;
        p->work += base - start - at < TYPED(AT_ONCE) ? base - start - at : TYPED(AT_ONCE);
        if (TYPED(told)(p)) return 0;
    }
    return 1;
}

/* Runs of 1 .. size points from base on. */
static int TYPED(look_right)(TYPED(pass) * p, size_t base, size_t size)
{
    TYPED(run) r = {.weight = TYPED(weight)(p, base)};
    REAL square = 0;
    for (size_t t = 1;; t++) {
        p->weight_of[t] = r.weight, p->mean_of[t] = r.mean, p->cost_of[t] = r.cost;
        p->moment_of[t] = r.sum, p->square_of[t] = square, p->reach_of[t] = r.reach * r.sum;
        if (t == size) break;
        const REAL w = TYPED(weight)(p, base + t);
        TYPED(grow)(&r, TYPED(gap)(p, base + t - 1), w);
        square += w * r.reach * r.reach;
        if (t % TYPED(AT_ONCE)) continue;
        p->work += TYPED(AT_ONCE);
        if (TYPED(told)(p)) return 0;
    }
    p->work += size % TYPED(AT_ONCE);
    return 1;
}

/* What it costs to join a run left of the base, of index i, to one right of it. */
static inline REAL TYPED(joint)(const TYPED(pass) * p, size_t i, REAL inverse, REAL mean)
{
    const REAL distance = p->left_mean[i] + mean;
    return p->left_weight[i] / (p->left_weight[i] * inverse + 1) * (distance * distance);
}

enum { TYPED(FEW) = 12, TYPED(SAMPLES) = 32, TYPED(CHUNK) = 64 };

/* Which of the runs first .. last - 1 left of the base had best be joined to the one of t points right of it.
 * Division is slow: most chunks are seen to have nothing better without it. */
static size_t TYPED(best_left)(TYPED(pass) * p, size_t first, size_t last, size_t t)
{
    const REAL inverse = 1 / p->weight_of[t], mean = p->mean_of[t];
    const REAL *weight = p->left_weight, *means = p->left_mean, *totals = p->left_total;
    const size_t stride = last - first <= TYPED(FEW) ? 1 : 1 + (last - first) / TYPED(SAMPLES);
    size_t at = first;
    REAL lowest = totals[first] + TYPED(joint)(p, first, inverse, mean);
    for (size_t i = first + stride; i < last; i += stride) {
        const REAL total = totals[i] + TYPED(joint)(p, i, inverse, mean);
        if (total < lowest) lowest = total, at = i;
    }
    p->work += last - first + TYPED(FEW);
    if (stride == 1) return at;
    for (size_t chunk = first; chunk < last; chunk += TYPED(CHUNK)) {
        const size_t end = last - chunk < TYPED(CHUNK) ? last : chunk + TYPED(CHUNK);
        int64_t better = 0;
        for (size_t i = chunk; i < end; i++) {
            const REAL distance = means[i] + mean;
            better |= (lowest - totals[i]) * (weight[i] * inverse + 1) > weight[i] * (distance * distance);
        }
        if (!better) continue;
        for (size_t i = chunk; i < end; i++) {
            const REAL total = totals[i] + TYPED(joint)(p, i, inverse, mean);
            if (total < lowest) lowest = total, at = i;
        }
    }
    return at;
}

/* Finds the last cluster of the first base + t points, which begins at one of first .. last - 1. */
static void TYPED(settle)(TYPED(pass) * p, size_t start, size_t base, size_t t, size_t first, size_t last)
{
    const size_t at = TYPED(best_left)(p, first - start, last - start, t), j = base + t;
    p->begin[j] = (int32_t)(start + at);
    p->count[j] = p->count[start + at] + 1;
    p->cost[j] = p->left_cost[at] + (TYPED(joint)(p, at, 1 / p->weight_of[t], p->mean_of[t]) + p->cost_of[t]);
}

/* The points after the base, by halves: the last cluster of each begins between those of its neighbours that are
 * done. */
static int TYPED(settle_block)(TYPED(pass) * p, size_t start, size_t base, size_t size)
{
    size_t stride = 1;
    TYPED(settle)(p, start, base, size, start, base + 1);
    while (2 * stride < size) stride *= 2;
    for (; stride > 0 && size > 1; stride /= 2)
        for (size_t t = stride; t < size; t += 2 * stride) {
            const size_t right = t + stride < size ? t + stride : size;
            TYPED(settle)(p, start, base, t, (size_t)p->begin[base + t - stride], (size_t)p->begin[base + right] + 1);
            if (TYPED(told)(p)) return 0;
        }
    return 1;
}

/* Whether the last cluster of the first base + t points had better begin after the base, or might: differences of
 * sums may err. */
static int TYPED(doubtful)(TYPED(pass) * p, size_t base, size_t t)
{
    const REAL error = (REAL)(t + 16) * 0x1p-51, total = TYPED(total)(p, base + t);
    const REAL weight = p->weight_of[t] * (1 - (p->weight ? error : 0)), moment = p->moment_of[t] * (1 + error);
    const REAL rest = p->penalty + p->square_of[t] - total - error * (p->reach_of[t] + total);
    for (size_t chunk = 1; chunk < t; chunk += TYPED(CHUNK)) {
        const size_t end = t - chunk < TYPED(CHUNK) ? t : chunk + TYPED(CHUNK);
        int64_t better = 0;
        for (size_t i = chunk; i < end; i++) {
            const REAL w = weight - p->weight_of[i], s = moment - p->moment_of[i];
            const REAL cost = p->cost[base + i] + p->penalty * (REAL)p->count[base + i] - p->square_of[i] + rest;
            better |= cost * (w > 0 ? w : 0) < s * s;
        }
        if (better) return 1;
    }
    p->work += t;
    return 0;
}

/* One pass with a penalty: cost, count and begin of the first j points, for j = 1 .. n. Returns 0 where it was told
 * to stop. */
static int TYPED(relax)(TYPED(pass) * p, REAL penalty)
{
    p->penalty = penalty;
    p->cost[0] = 0, p->count[0] = p->begin[0] = 0;
    for (size_t base = 0; base < p->n;) {
        const size_t start = (size_t)p->begin[base];
        size_t size = (base - start) / 2, good = 1;
        size = size < 1 ? 1 : size > p->n - base ? p->n - base : size;
        if (!TYPED(look_left)(p, start, base) || !TYPED(look_right)(p, base, size)) return 0;
        if (!TYPED(settle_block)(p, start, base, size)) return 0;
        for (size_t bad = size + 1, at = size; bad - good > 1; at = (good + bad) / 2) {
            if (TYPED(told)(p)) return 0;
            if (TYPED(doubtful)(p, base, at))
                bad = at;
            else
                good = at;
        }
        base += good;
    }
    return 1;
}

/* Where the clusters of the last pass begin, and n. Returns how many there are. */
static size_t TYPED(trace)(const TYPED(pass) * p, int32_t *splits)
{
    const size_t count = (size_t)p->count[p->n];
    splits[count] = (int32_t)p->n;
    for (size_t i = count; i-- > 0;) splits[i] = p->begin[splits[i + 1]];
    return count;
}

/* Of the clusters that begin at the splits; less if it is told to stop, as whatever comes next is then. */
static REAL TYPED(cost)(TYPED(pass) * p, const int32_t *splits, size_t count)
{
    REAL sum = 0;
    for (size_t c = 0; c < count; c++) {
        TYPED(run) r = {.weight = TYPED(weight)(p, (size_t)splits[c])};
        for (size_t i = (size_t)splits[c] + 1; i < (size_t)splits[c + 1]; i++) {
            TYPED(grow)(&r, TYPED(gap)(p, i - 1), TYPED(weight)(p, i));
            if (i % TYPED(AT_ONCE)) continue;
            p->work += TYPED(AT_ONCE);
            if (TYPED(told)(p)) return sum;
        }
        sum += r.cost;
    }
    return sum;
}

/* k clusters out of two optimal clusterings for one penalty: one with fewer, one with more. */
static void TYPED(join)(const int32_t *few, size_t few_count, const int32_t *many, size_t k, int32_t *splits)
{
    const size_t skip = k - few_count;
    size_t r = 0;
    while (many[r + 1 + skip] > few[r + 1]) r++;
    for (size_t i = 0; i <= r + skip; i++) splits[i] = many[i];
    for (size_t i = r + 1; i <= few_count; i++) splits[i + skip] = few[i];
}

/* Halfway between two penalties in their logarithm, roughly. */
static REAL TYPED(middle)(REAL low, REAL high)
{
    for (REAL ratio = high / low; ratio > 4; ratio /= 4) low *= 2;
    return low;
}

typedef struct {
    int32_t *splits;
    size_t count;
    REAL cost, penalty;
} TYPED(found);

/* The clustering of one penalty into `f->splits`. */
static int TYPED(try)(TYPED(pass) * p, REAL penalty, TYPED(found) * f)
{
    if (!TYPED(relax)(p, penalty)) return 0;
    f->count = TYPED(trace)(p, f->splits), f->cost = p->cost[p->n], f->penalty = penalty;
    return 1;
}

static void TYPED(swap)(TYPED(found) * a, TYPED(found) * b)
{
    const TYPED(found) c = *a;
    *a = *b, *b = c;
}

/* k clusters were found by a penalty that is large beside their cost, in which this is rounded: again by one that is
 * not. */
static int TYPED(sharpen)(TYPED(pass) * p, size_t k, TYPED(found) * found, TYPED(found) * spare)
{
    while (found->penalty > 2 * found->cost && found->cost > 0) {
        if (!TYPED(try)(p, found->cost, spare)) return 0;
        if (spare->count != k) break;
        const int better = spare->cost < found->cost;
        const REAL penalty = spare->penalty;
        if (better) TYPED(swap)(found, spare);
        found->penalty = penalty;
    }
    return 1;
}

static TYPED(pass) TYPED(pass_of)(const qk_line *line, const qk_line_space *s)
{
    TYPED(pass)
    p = {
        .n = line->n,
        .gap = line->gap,
        .weight = line->weight,
        .v = line->v,
        .stop = line->stop,
        .context = line->context,
        .cost = s->cost,
        .count = s->count,
        .begin = s->begin,
        .left_weight = s->left[0],
        .left_mean = s->left[1],
        .left_cost = s->left[2],
        .left_total = s->left[3],
        .weight_of = s->right[0],
        .mean_of = s->right[1],
        .cost_of = s->right[2],
        .moment_of = s->right[3],
        .square_of = s->right[4],
        .reach_of = s->right[5],
    };
    return p;
}

/* The penalty after one that gave `now`. On a chord it makes `few` and `many` equally good. */
static REAL TYPED(next)(const TYPED(found) * few, const TYPED(found) * many, const TYPED(found) * now, size_t k,
                        int trial, int *chord)
{
    REAL penalty = now->penalty;
    if (trial <= 8) {
        const REAL ratio = (REAL)now->count / (REAL)k;
        penalty *= ratio * ratio * ratio;
    } else if (trial % 2 && many->penalty > 0 && few->penalty > 64 * many->penalty && few->penalty < (REAL)INFINITY) {
        penalty = TYPED(middle)(many->penalty, few->penalty);
    } else {
        penalty = 0;
    }
    *chord = !(many->penalty < penalty && penalty < few->penalty) || many->count - few->count <= 3;
    return *chord ? (few->cost - many->cost) / (REAL)(many->count - few->count) : penalty;
}

/* See qk_line_search. The join of two clusterings is the answer where no penalty has one of k clusters, or it is
 * close enough to the lower bound that a penalty gives. */
static int TYPED(search)(const qk_line *line, size_t k, double *guess, qk_line_space *space)
{
    TYPED(pass) p = TYPED(pass_of)(line, space);
    const REAL near = 0x1p-47;
    TYPED(found)
    few = {space->few, 1, 0, (REAL)INFINITY}, many = {space->many, p.n, 0, 0}, now = {.splits = space->splits};
    few.splits[0] = 0, few.splits[1] = (int32_t)p.n;
    for (size_t i = 0; i <= p.n && k > 1; i++) many.splits[i] = (int32_t)i;
    few.cost = TYPED(cost)(&p, few.splits, 1);
    REAL bound = 0, penalty = (REAL)*guess;
    if (!(penalty > 0 && penalty < few.cost)) penalty = few.cost / ((REAL)k * (REAL)k * (REAL)k);
    int done = k == 1, chord = 0;
    if (done) TYPED(swap)(&now, &few);
    for (int trial = 1; !done; trial++) {
        if (!TYPED(try)(&p, penalty, &now)) return 0;
        if (now.count == k) {
            if (!TYPED(sharpen)(&p, k, &now, &few)) return 0;
            penalty = now.penalty;
            break;
        }
        const REAL value = now.cost + penalty * (REAL)now.count, under = value - penalty * (REAL)k;
        const REAL slack = near * (value > penalty * (REAL)k ? value : penalty * (REAL)k);
        if (under - slack > bound) bound = under - slack;
        const int between = few.count < now.count && now.count < many.count;
        const int better = value < (few.cost + penalty * (REAL)few.count) * (1 - near);
        const TYPED(found) last = now;
        if (now.count < k && now.count >= few.count)
            TYPED(swap)(&now, &few);
        else if (now.count > k && now.count <= many.count)
            TYPED(swap)(&now, &many);
        if (chord) {
            TYPED(join)(few.splits, few.count, many.splits, k, now.splits);
            done = !(between || better) || TYPED(cost)(&p, now.splits, k) * (1 - 8 * near) <= bound;
        }
        if (!done) penalty = TYPED(next)(&few, &many, &last, k, trial, &chord);
    }
    *guess = (double)penalty;
    space->splits = now.splits, space->few = few.splits, space->many = many.splits;
    return 1;
}

#endif
