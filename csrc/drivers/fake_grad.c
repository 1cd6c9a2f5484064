/* The driver of the gradients of fake_quantize (numerics 26): pieces of the array, whose sums are kept and then added
 * in order, so that they do not depend on the number of threads. */
#include <math.h>
#include <string.h>

#include "drivers/drivers.h"
#include "drivers/elementwise.h"
#include "kernels/kernels.h"
#include "runtime/compiler.h"
#include "runtime/fpmode.h"
#include "runtime/parallel.h"
#include "runtime/sizes.h"

enum {
    RUN = 4096,     /* elements of a piece of a run */
    LONG = 4 * RUN, /* a run, whose ends, which share pairs of groups or cache lines with others, are few */
    ROWS = 128,     /* rows of a piece of columns */
    HALF_COLUMNS = RUN / QK_GRAD_ROWS
};

/* The array as runs of n elements that share parameters, the last of every `among` having `last`; or as matrices of so
 * many rows of n columns, each of which has its own. */
typedef struct {
    int columns;
    size_t count, rows, n, among, last, pieces; /* pieces: of a run, of a matrix */
} grad_layout;

typedef struct {
    const qk_fake_grad *given;
    const qk_params *p;
    const qk_elementwise_kernels *k;
    grad_layout l;
    qk_grad_sums sums;
    size_t cols, col_items; /* columns of an item, items of a row */
    int wide;               /* terms are of double */
    int past;               /* gradients of x are stored past the caches */
} gradient;

/* Where an item lies: rows of n elements. */
typedef struct {
    size_t at, rows, n, stride, first, sum; /* first: of its parameters; sum: where its sums are kept */
} place;

static grad_layout grad_layout_of(const qk_params *p)
{
    const size_t total = p->outer * p->length * p->inner, block = min_size(p->block, p->length);
    grad_layout l = {.count = 1, .n = total, .among = 1, .last = total, .rows = 1};
    if (p->kind == QK_PER_AXIS && p->length > 1) {
        l = (grad_layout){.count = p->outer * p->length, .n = p->inner, .among = 1, .last = p->inner, .rows = 1};
        if (p->inner == 1) l = (grad_layout){1, 1, p->outer, p->length, 1, p->outer, 0};
    } else if (p->kind == QK_PER_BLOCK) {
        const size_t blocks = ceil_div(p->length, block), last = p->length - (blocks - 1) * block;
        l = (grad_layout){p->inner > 1, p->outer * blocks, 1, block, blocks, last, 0};
        if (p->inner > 1) l.rows = block, l.n = p->inner;
    }
    l.pieces = l.columns ? ceil_div(l.rows, ROWS) : ceil_div(l.n, RUN);
    return l;
}

static size_t parameters_of(const qk_params *p)
{
    if (p->kind != QK_PER_BLOCK) return p->kind == QK_PER_AXIS ? p->length : 1;
    return p->outer * (p->length ? ceil_div(p->length, min_size(p->block, p->length)) : 0) * p->inner;
}

size_t qk_fake_grad_sums(const qk_params *p)
{
    if (p->outer * p->length * p->inner == 0) return 0;
    const grad_layout l = grad_layout_of(p);
    return qk_times(l.count * l.pieces, l.columns ? l.n : 1);
}

static place place_of(const gradient *g, size_t item)
{
    const grad_layout *l = &g->l;
    const size_t all_pieces = qk_over(item, g->col_items), col = (item - all_pieces * g->col_items) * g->cols;
    const size_t which = qk_over(all_pieces, l->pieces), piece = all_pieces - which * l->pieces;
    const size_t groups = qk_over(which, l->among), in_group = which - groups * l->among;
    const size_t group = ((l->among - 1) * (l->columns ? l->rows : l->n) + l->last) * (l->columns ? l->n : 1);
    const size_t length = in_group == l->among - 1 ? l->last : l->columns ? l->rows : l->n;
    const size_t begin = groups * group;
    if (!l->columns) {
        const size_t skip = piece * RUN, n = skip < length ? min_size(length - skip, RUN) : 0;
        const size_t first = g->p->kind == QK_PER_AXIS ? which % g->p->length : which;
        return (place){begin + in_group * l->n + skip, 1, n, 0, first, which * l->pieces + piece};
    }
    const size_t skip = piece * ROWS, rows = skip < length ? min_size(length - skip, ROWS) : 0;
    return (place){
        begin + (in_group * l->rows + skip) * l->n + col, rows, min_size(l->n - col, g->cols), l->n, which * l->n + col,
        (which * l->pieces + piece) * l->n + col};
}

/* ---- in double: of float64, and where sums of float32 would leave its range ---- */

typedef struct {
    const void *grad, *x;
    void *grad_x;
    int is_double;
} wide_arrays;

static double gradient_at(const wide_arrays *a, size_t i)
{
    return a->is_double ? ((const double *)a->grad)[i] : ((const float *)a->grad)[i];
}

static double steps_at(const wide_arrays *a, size_t i, float scale)
{
    return a->is_double ? ((const double *)a->x)[i] / scale : ((const float *)a->x)[i] / scale;
}

/* |v| beyond 2^51 is out of any bounds, whatever it is rounded to. */
static double rounded(double v) { return v + 0x1.8p52 - 0x1.8p52; }

static void add_wide(const gradient *g, const wide_arrays *a, size_t i, const qk_affines *p, size_t which, size_t to,
                     qk_grad_sums sums)
{
    const double lo = p->qmin - p->zero_point[which], hi = p->qmax - p->zero_point[which];
    const double by = gradient_at(a, i), v = steps_at(a, i, p->scale[which]), r = rounded(v);
    const double c = r < lo ? lo : r > hi ? hi : r;
    const int inside = g->given->clipped ? v > lo && v < hi : c == r;
    if (v == v) sums.scale[to] += by * (inside ? c - v : c);
    if (v == v && !inside) sums.zero[to] += by;
    if (a->is_double)
        ((double *)a->grad_x)[i] = inside ? by : 0;
    else
        ((float *)a->grad_x)[i] = inside ? (float)by : 0;
}

static void add_wide_rows(const gradient *g, const wide_arrays *a, const place *at, const qk_affines *p,
                          qk_grad_sums sums)
{
    for (size_t row = 0; row < at->rows; row++)
        for (size_t i = 0; i < at->n; i++)
            add_wide(g, a, row * at->stride + i, p, g->l.columns ? i : 0, g->l.columns ? i : i % QK_GRAD_LANES, sums);
}

/* ---- rows of any type ---- */

static void add_floats(const gradient *g, const float *grad, const float *x, float *grad_x, const place *at,
                       qk_affines *p, qk_grad_sums sums)
{
    const wide_arrays a = {grad, x, grad_x, 0};
    p->rows = at->rows, p->in_stride = p->out_stride = at->stride;
    if (g->wide)
        add_wide_rows(g, &a, at, p, sums);
    else if (g->l.columns)
        g->k->fake_grad_columns_f32(grad, x, grad_x, at->n, p, g->given->clipped, sums);
    else
        g->k->fake_grad_run_f32(grad, x, grad_x, at->n, p, g->given->clipped, g->past, sums);
}

static void widen(const gradient *g, const void *x, size_t at, size_t n, float *y)
{
    const uint16_t *halves = (const uint16_t *)x + at;
    g->given->dtype == QK_F16 ? g->k->f16_to_f32(halves, y, n) : g->k->bf16_to_f32(halves, y, n);
}

/* A run's piece, or as many rows at a time as terms of float32 are added of. */
static void add_halves(const gradient *g, const place *all, qk_affines *p, qk_grad_sums sums)
{
    float grad[RUN], x[RUN], to[RUN];
    place part = *all;
    for (size_t row = 0; row < all->rows; row += part.rows) {
        part.rows = min_size(all->rows - row, QK_GRAD_ROWS), part.stride = all->n;
        for (size_t i = 0; i < part.rows; i++) {
            const size_t at = all->at + (row + i) * all->stride;
            widen(g, g->given->grad, at, all->n, grad + i * all->n);
            widen(g, g->given->x, at, all->n, x + i * all->n);
        }
        add_floats(g, grad, x, to, &part, p, sums);
        for (size_t i = 0; i < part.rows; i++) {
            uint16_t *y = (uint16_t *)g->given->grad_x + all->at + (row + i) * all->stride;
            g->given->dtype == QK_F16 ? g->k->f32_to_f16(to + i * all->n, y, all->n)
                                      : g->k->f32_to_bf16(to + i * all->n, y, all->n);
        }
    }
}

static void add_rows(const gradient *g, const place *at, qk_affines *p, qk_grad_sums sums)
{
    const qk_fake_grad *given = g->given;
    if (given->dtype == QK_F16 || given->dtype == QK_BF16) {
        add_halves(g, at, p, sums);
    } else if (given->dtype == QK_F64) {
        const wide_arrays a = {(const double *)given->grad + at->at, (const double *)given->x + at->at,
                               (double *)given->grad_x + at->at, 1};
        add_wide_rows(g, &a, at, p, sums);
    } else {
        add_floats(g, (const float *)given->grad + at->at, (const float *)given->x + at->at,
                   (float *)given->grad_x + at->at, at, p, sums);
    }
}

/* ---- pieces ---- */

static double folded(double *lane)
{
    for (size_t half = QK_GRAD_LANES / 2; half > 0; half /= 2)
        for (size_t i = 0; i < half; i++) lane[i] += lane[i + half];
    return lane[0];
}

static void add_run(const gradient *g, const place *at, qk_affines *p)
{
    double scale[QK_GRAD_LANES] = {0}, zero[QK_GRAD_LANES] = {0};
    add_rows(g, at, p, (qk_grad_sums){scale, zero});
    g->sums.scale[at->sum] = folded(scale), g->sums.zero[at->sum] = folded(zero);
}

/* Whether sums of float32 were no good for a parameter of these: finish says so by NaN. */
static int any_unfinished(const gradient *g, const place *at)
{
    const size_t n = g->l.columns ? at->n : 1;
    for (size_t i = 0; i < n; i++)
        if (isnan(g->given->grad_scale[at->first + i])) return 1;
    return 0;
}

static void add_items(void *context, size_t begin, size_t end)
{
    const gradient *g = context;
    for (size_t item = begin; item < end; item++) {
        const place at = place_of(g, item);
        if (g->wide && g->given->dtype != QK_F64 && !any_unfinished(g, &at)) continue;
        const qk_params *p = g->p;
        qk_affines by = {.scale = p->scale + at.first,
                         .zero_point = p->zero_point + at.first,
                         .qmin = p->qmin,
                         .qmax = p->qmax,
                         .run = 1};
        if (!g->l.columns) {
            add_run(g, &at, &by);
            continue;
        }
        const qk_grad_sums sums = {g->sums.scale + at.sum, g->sums.zero + at.sum};
        memset(sums.scale, 0, at.n * sizeof(double)), memset(sums.zero, 0, at.n * sizeof(double));
        add_rows(g, &at, &by, sums);
    }
    if (g->past) qk_settle_stores();
}

/* ---- all of it ---- */

/* The sum of what was kept for a parameter, in order. */
static double total_of(const gradient *g, const double *sum, size_t which)
{
    const grad_layout *l = &g->l;
    double total = 0;
    if (l->columns) {
        sum += which / l->n * l->pieces * l->n + which % l->n;
        for (size_t i = 0; i < l->pieces; i++) total += sum[i * l->n];
        return total;
    }
    const size_t apart = g->p->kind == QK_PER_AXIS ? g->p->length : l->count;
    for (size_t run = which; run < l->count; run += apart)
        for (size_t i = 0; i < l->pieces; i++) total += sum[run * l->pieces + i];
    return total;
}

/* Writes the gradients of parameters. Returns whether some are to be found in double, as terms or sums of float32 have
 * left its range, or may have: these are NaN. */
static int finish(const gradient *g)
{
    const size_t n = parameters_of(g->p);
    int unfinished = 0;
    for (size_t i = 0; i < n; i++) {
        float *to = g->given->grad_scale + i;
        if (g->wide && g->given->dtype != QK_F64 && !isnan(*to)) continue;
        const double scale = total_of(g, g->sums.scale, i), zero = total_of(g, g->sums.zero, i);
        const int lost = !g->wide && !(fabs(scale) >= 0x1p-90 && fabs(scale) < INFINITY && fabs(zero) < INFINITY);
        *to = lost ? NAN : (float)scale;
        g->given->grad_zero_point[i] = (float)(zero * -(double)g->p->scale[i]);
        unfinished |= lost;
    }
    return unfinished;
}

int qk_fake_quantize_grad(const qk_fake_grad *given, const qk_params *p, double *sums)
{
    QK_DEFAULT_MODE;
    const size_t total = p->outer * p->length * p->inner;
    gradient g = {.given = given, .p = p, .k = qk_active()->elementwise, .wide = given->dtype == QK_F64};
    if (total == 0) {
        for (size_t i = 0; i < parameters_of(p); i++) given->grad_scale[i] = given->grad_zero_point[i] = 0;
        return 0;
    }
    g.l = grad_layout_of(p);
    g.sums = (qk_grad_sums){sums, sums + qk_fake_grad_sums(p)};
    g.cols = min_size(g.l.n, given->dtype == QK_F32 ? QK_GRAD_COLUMNS : HALF_COLUMNS);
    g.past = !g.l.columns && g.l.n >= LONG && given->dtype == QK_F32 && total > BEYOND_CACHES / (3 * sizeof(float));
    g.col_items = g.l.columns ? ceil_div(g.l.n, g.cols) : 1;
    const size_t items = g.l.count * g.l.pieces * g.col_items;
    int status = qk_parallel_for(items, (g.wide ? 2.0 : 0.3) * (double)total, add_items, &g);
    if (status || !finish(&g)) return status;
    g.wide = 1;
    status = qk_parallel_for(items, 2.0 * (double)total, add_items, &g);
    if (!status) finish(&g);
    return status;
}
