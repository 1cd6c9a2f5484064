/* Integer scales of least squares (numerics 33): of a column, one float scale, and of each of its blocks an integer one
 * and a shift. Those of a block are the best that there are for the column's scale; that one is searched by descent
 * from many starts. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "drivers/drivers.h"
#include "kernels/kernels.h"
#include "runtime/fpmode.h"
#include "runtime/parallel.h"
#include "runtime/sizes.h"

enum {
    MOST_SCALE = 16,
    FIRST_SHIFT = -8,
    LAST_SHIFT = 7,
    SHIFTS = LAST_SHIFT - FIRST_SHIFT + 1,
    MOST_WEIGHT = 127,
    STARTS = 16,       /* scales of a column from which descent begins: those that make its largest weight .. */
    LEAST_START = 56,  /* .. an integer of this .. */
    LAST_START = 140,  /* .. to that */
    LONG_BLOCK = 4096, /* rows, of which a look for signals is to come between two scales */
    MOST_DESCENTS = 8, /* each of which improves the loss */
    LANES = QK_ROUNDED_LANES
};

/* What a column has. */
typedef struct {
    uint8_t *scale;
    int8_t *shift;
} block_params;

typedef struct {
    const qk_integer_search *args;
    const qk_kmeans_kernels *kernels;
    size_t blocks, lanes;          /* lanes of a block */
    double *y, *w;                 /* in units of 2^exponent, block by block, padded with weights 0 */
    double *units, *size, *limits; /* of a block: in units of the scale; what rounded_sums wants */
    block_params now, best;
    double loss;
    int stopped;
} search;

/* The sums of a block at a scale and a shift. */
static double loss_of(search *q, const double *w, int scale, int shift, double *sums)
{
    const int middle = q->args->middle;
    const double above = q->args->qmax - middle, below = middle - q->args->qmin;
    for (size_t i = 0; i < q->lanes; i++) {
        const double y = q->units[i] - 3 * shift;
        q->size[i] = fabs(y), q->limits[i] = y < 0 ? below : above;
    }
    q->kernels->rounded_sums(q->size, w, q->limits, q->lanes, scale, sums);
    return sums[0];
}

static int fits(const search *q, int scale, int shift)
{
    const int lo = q->args->qmin - q->args->middle, hi = q->args->qmax - q->args->middle;
    return scale * lo + 3 * shift >= -MOST_WEIGHT - 1 && scale * hi + 3 * shift <= MOST_WEIGHT;
}

/* What the extremes of a block cost, where they are clipped. */
typedef struct {
    double lo, hi, w_lo, w_hi;
} extremes;

static double clipped(const search *q, const extremes *e, int scale, int shift)
{
    const double bottom = scale * (q->args->qmin - q->args->middle) + 3 * shift;
    const double top = scale * (q->args->qmax - q->args->middle) + 3 * shift;
    const double under = e->lo < bottom ? bottom - e->lo : 0, over = e->hi > top ? e->hi - top : 0;
    return e->w_lo * under * under + e->w_hi * over * over;
}

/* The scale and the shift of a block with the least loss, which is returned in units of its column's scale. */
static double search_block(search *q, const double *y, const double *w, double unit, uint8_t *scale, int8_t *shift)
{
    const qk_integer_search *p = q->args;
    extremes e = {0, 0, 0, 0};
    double best = INFINITY, sums[3];
    for (size_t i = 0; i < q->lanes; i++) {
        const double units = q->units[i] = y[i] / unit;
        if (w[i] > 0 && units < e.lo) e.lo = units, e.w_lo = w[i];
        if (w[i] > 0 && units > e.hi) e.hi = units, e.w_hi = w[i];
    }
    const int codes = p->qmax - p->qmin;
    const double whole = (e.hi - e.lo) / codes;
    const int first = whole < 1 ? 1 : whole > MOST_SCALE ? MOST_SCALE : (int)whole;
    for (int step = 0; step < 2 * MOST_SCALE; step++) { /* outward from the scale that clips nothing */
        const int i = first + (step % 2 ? -(step + 1) / 2 : step / 2);
        if (i < 1 || i > MOST_SCALE || q->stopped) continue;
        q->stopped = q->lanes > LONG_BLOCK && qk_stopped();
        for (int d = p->shifts ? FIRST_SHIFT : 0; d <= (p->shifts ? LAST_SHIFT : 0); d++) {
            if (!fits(q, i, d) || clipped(q, &e, i, d) >= best) continue;
            const double loss = loss_of(q, w, i, d, sums);
            if (loss < best) best = loss, *scale = (uint8_t)i, *shift = (int8_t)d;
        }
    }
    return best;
}

/* The loss of a column at a scale, with the best scales and shifts of its blocks, and its best scale for these. */
static double search_blocks(search *q, double unit, double *next)
{
    double loss = 0, products = 0, squares = 0;
    for (size_t b = 0; b < q->blocks && !q->stopped; b++) {
        const double *y = q->y + b * q->lanes, *w = q->w + b * q->lanes;
        loss += search_block(q, y, w, unit, q->now.scale + b, q->now.shift + b);
        for (size_t i = 0; i < q->lanes; i++) {
            const double shift = 3 * q->now.shift[b], scale = q->now.scale[b];
            double code = rint((q->units[i] - shift) / scale);
            const double lo = q->args->qmin - q->args->middle, hi = q->args->qmax - q->args->middle;
            code = code < lo ? lo : code > hi ? hi : code;
            const double weight = scale * code + shift;
            products += w[i] * y[i] * weight, squares += w[i] * weight * weight;
        }
        q->stopped |= qk_stopped();
    }
    *next = squares > 0 && products > 0 ? products / squares : unit;
    return loss * unit * unit;
}

/* Scales are kept to 11 bits, so that float16 holds those within its range. */
static float rounded(double scale)
{
    int exponent;
    const double mantissa = frexp(scale, &exponent);
    return (float)ldexp(rint(ldexp(mantissa, 11)), exponent - 11);
}

static void keep_best(search *q, double loss, double unit, int exponent, float *scale)
{
    if (!(loss < q->loss) || q->stopped) return;
    q->loss = loss, *scale = (float)ldexp(unit, exponent);
    memcpy(q->best.scale, q->now.scale, q->blocks), memcpy(q->best.shift, q->now.shift, q->blocks);
}

/* From one scale to the next while the loss falls, the last of them rounded. */
static void descend(search *q, double unit, int exponent, float *scale, int most)
{
    double before = INFINITY;
    for (int i = 0; i < most && !q->stopped; i++) {
        const double at = ldexp((double)rounded(ldexp(unit, exponent)), -exponent);
        if (!(at > 0 && ldexp(at, exponent) >= 0x1p-126 && ldexp(at, exponent) <= 0x1.ffcp127)) return;
        const double loss = search_blocks(q, at, &unit);
        keep_best(q, loss, at, exponent, scale);
        if (!(loss < before)) return;
        before = loss;
    }
}

/* A column into blocks of whole lanes; the largest magnitude. Weights are such that none overflows. */
static double take_values(search *q, const double *x, const double *importance, int *exponent)
{
    const qk_integer_search *p = q->args;
    double largest = 0, heaviest = 0;
    int of_weights = 0;
    for (size_t i = 0; i < p->k; i++) {
        largest = fmax(largest, fabs(x[i]));
        if (importance) heaviest = fmax(heaviest, importance[i]);
    }
    frexp(largest, exponent), frexp(heaviest, &of_weights);
    memset(q->y, 0, q->blocks * q->lanes * sizeof *q->y), memset(q->w, 0, q->blocks * q->lanes * sizeof *q->w);
    for (size_t i = 0; i < p->k; i++) {
        const size_t at = i / p->block * q->lanes + i % p->block;
        q->y[at] = ldexp(x[i], -*exponent);
        q->w[at] = importance ? ldexp(importance[i], -of_weights) : 1;
    }
    return ldexp(largest, -*exponent);
}

/* The least integer scales that clip nothing, and their shifts. */
static void cover_blocks(search *q, double unit)
{
    for (size_t b = 0; b < q->blocks && !q->stopped; b++) {
        const double *y = q->y + b * q->lanes;
        extremes e = {0, 0, 1, 1};
        for (size_t i = 0; i < q->lanes; i++) e.lo = fmin(e.lo, y[i] / unit), e.hi = fmax(e.hi, y[i] / unit);
        int found = 0;
        for (int i = 1; i <= MOST_SCALE && !found; i++)
            for (int step = 0; step < (q->args->shifts ? 2 * SHIFTS : 1) && !found; step++) {
                const int d = step % 2 ? (step + 1) / 2 : -step / 2;
                found = d >= FIRST_SHIFT && d <= LAST_SHIFT && fits(q, i, d) && clipped(q, &e, i, d) <= 1e-6;
                if (found) q->best.scale[b] = (uint8_t)i, q->best.shift[b] = (int8_t)d;
            }
        q->stopped |= qk_stopped();
    }
}

static void search_column(search *q, const double *x, const double *importance, float *scale)
{
    const qk_integer_search *p = q->args;
    int exponent;
    const double largest = take_values(q, x, importance, &exponent);
    memset(q->best.scale, 1, q->blocks), memset(q->best.shift, 0, q->blocks);
    *scale = 1;
    if (largest == 0) return;
    const int lo = p->middle - p->qmin, hi = p->qmax - p->middle, narrow = lo < hi ? lo : hi;
    /* what all blocks can have on either side, by the largest scale and a shift of its middle */
    const double sure = p->shifts ? MOST_SCALE * (p->qmax - p->qmin) / 2.0 : fmin(MOST_SCALE * narrow, MOST_WEIGHT);
    const double least = fmax(ldexp(largest, exponent) / sure, 0x1p-126);
    *scale = rounded(least);
    if (*scale < least) *scale = rounded(least * (1 + 0x1p-10));
    cover_blocks(q, ldexp(*scale, -exponent));
    q->loss = INFINITY;
    if (!p->least_squares) return;
    for (int i = 0; i < STARTS && !q->stopped; i++)
        descend(q, largest / (LEAST_START + (LAST_START - LEAST_START) * i / (STARTS - 1.0)), exponent, scale, 2);
    if (!q->stopped && q->loss < INFINITY) descend(q, ldexp(*scale, -exponent), exponent, scale, MOST_DESCENTS);
}

typedef struct {
    const qk_integer_search *args;
    const double *x, *importance;
    float *scale;
    uint8_t *block_scale;
    int8_t *block_shift;
    int failed;
} job;

static void search_some(void *context, size_t begin, size_t end)
{
    job *j = context;
    const qk_integer_search *p = j->args;
    search q = {.args = p, .kernels = qk_active()->kmeans, .blocks = ceil_div(p->k, p->block)};
    q.lanes = round_up(min_size(p->block, p->k), LANES);
    const size_t all = qk_times(q.blocks, q.lanes);
    double *memory = qk_obtain(qk_times(qk_plus(qk_times(all, 2), qk_times(q.lanes, 3)), sizeof(double)));
    uint8_t *params = malloc(2 * q.blocks + 1);
    q.y = memory, q.w = memory + all, q.units = q.w + all, q.size = q.units + q.lanes, q.limits = q.size + q.lanes;
    q.now = (block_params){params, (int8_t *)params + q.blocks};
    for (size_t i = begin; i < end && memory && params && !q.stopped; i++) {
        q.best = (block_params){j->block_scale + i * q.blocks, j->block_shift + i * q.blocks};
        search_column(&q, j->x + i * p->k, j->importance ? j->importance + i * p->k : NULL, j->scale + i);
    }
    if (!memory || !params) __atomic_store_n(&j->failed, 1, __ATOMIC_RELAXED);
    qk_release(memory), free(params);
}

int qk_search_integer_scales(const qk_integer_search *p, size_t columns, const double *x, const double *importance,
                             float *scale, uint8_t *block_scale, int8_t *block_shift)
{
    QK_DEFAULT_MODE;
    job j = {p, x, importance, scale, block_scale, block_shift, 0};
    const double work = (p->least_squares ? 500.0 : 5.0) * (double)columns * (double)p->k;
    const int status = qk_parallel_for(columns, work, search_some, &j);
    return status ? status : j.failed ? -1 : 1;
}
