/* Histograms of floats on a grid that never moves (numerics 24): bins are values whose bits begin alike, so that counts
 * of parts add up to those of the whole. Threads count into tables of their own, which are all zeros between calls. */
#include <stdlib.h>
#include <string.h>

#include "drivers/drivers.h"
#include "kernels/kernels.h"
#include "runtime/fpmode.h"
#include "runtime/parallel.h"
#include "runtime/sizes.h"

enum { CHUNK = QK_HISTOGRAM_CHUNK };
static const int32_t LARGEST = 0x7f7fffff; /* bits of the largest float */
static const double NANOSECONDS = 1;       /* a value */

/* What a thread has counted. */
typedef struct {
    int taken;
    uint32_t *counts;     /* of all bins */
    float nonzero[CHUNK]; /* of a chunk with many zeros */
    int32_t least, most;  /* ranks of the extremes */
    uint32_t nearest;     /* as in qk_survey */
} table;

struct qk_histogram {
    size_t lines, tables;
    int shift;         /* bits of a value that bins do not know */
    uint64_t **blocks; /* (lines, QK_BLOCKS) */
    int32_t *least, *most;
    table *table;
};

static size_t bins_of(const qk_histogram *h) { return (size_t)1 << (23 - h->shift); }

static void free_tables(qk_histogram *h)
{
    for (size_t i = 0; i < h->tables; i++) free(h->table[i].counts);
    free(h->table);
    h->table = NULL, h->tables = 0;
}

void qk_histogram_free(qk_histogram *h)
{
    if (!h) return;
    for (size_t i = 0; h->blocks && i < h->lines * QK_BLOCKS; i++) free(h->blocks[i]);
    free(h->blocks), qk_release(h->least), qk_release(h->most);
    free_tables(h);
    free(h);
}

qk_histogram *qk_histogram_new(size_t lines, int bits)
{
    qk_histogram *h = calloc(1, sizeof *h);
    if (!h) return NULL;
    h->lines = lines, h->shift = 23 - bits;
    h->blocks = calloc(qk_times(qk_plus(lines, 1), QK_BLOCKS), sizeof *h->blocks);
    h->least = qk_obtain(qk_times(lines, sizeof *h->least));
    h->most = qk_obtain(qk_times(lines, sizeof *h->most));
    if (!h->blocks || !h->least || !h->most) {
        qk_histogram_free(h);
        return NULL;
    }
    for (size_t i = 0; i < lines; i++) h->least[i] = INT32_MAX, h->most[i] = INT32_MIN;
    return h;
}

int32_t *qk_histogram_least(qk_histogram *h) { return h->least; }
int32_t *qk_histogram_most(qk_histogram *h) { return h->most; }

uint64_t *qk_histogram_block(qk_histogram *h, size_t line, size_t block, int make)
{
    uint64_t **found = &h->blocks[line * QK_BLOCKS + block];
    if (!*found && make) *found = calloc(bins_of(h), sizeof **found);
    return *found;
}

/* ---- tables ---- */

static int have_tables(qk_histogram *h)
{
    const size_t wanted = (size_t)qk_get_num_threads();
    if (h->tables >= wanted) return 1;
    free_tables(h);
    h->table = calloc(wanted, sizeof *h->table);
    if (h->table) h->tables = wanted;
    return h->table != NULL;
}

/* A table that nobody has: there is one for each thread, so that one is free at once, or soon. NULL: no memory. */
static table *take_table(qk_histogram *h)
{
    for (size_t i = 0;; i = (i + 1) % h->tables) {
        table *t = &h->table[i];
        if (__atomic_exchange_n(&t->taken, 1, __ATOMIC_ACQUIRE)) continue;
        if (t->counts) return t;
        t->counts = calloc(QK_BLOCKS * bins_of(h), sizeof *t->counts);
        t->least = INT32_MAX, t->most = INT32_MIN, t->nearest = UINT32_MAX;
        if (t->counts) return t;
        __atomic_store_n(&t->taken, 0, __ATOMIC_RELEASE);
        return NULL;
    }
}

static void return_table(table *t) { __atomic_store_n(&t->taken, 0, __ATOMIC_RELEASE); }

/* Returns 0, having counted nothing, where a value is not finite. */
static int count_chunk(const qk_histogram *h, table *t, const float *x, size_t n)
{
    const qk_histogram_kernels *k = qk_active()->histogram;
    qk_survey s;
    k->survey_f32(x, n, &s);
    if (s.most > LARGEST || s.least < qk_rank(LARGEST | INT32_MIN)) return 0;
    if (s.least < t->least) t->least = s.least;
    if (s.most > t->most) t->most = s.most;
    if (s.nearest < t->nearest) t->nearest = s.nearest;
    const uint32_t first = (uint32_t)qk_rank(s.least) >> h->shift, last = (uint32_t)qk_rank(s.most) >> h->shift;
    if (first == last) { /* one bin, whose increments would wait for each other, as those of zeros would */
        t->counts[first] += (uint32_t)n;
    } else if (s.zeros >= n / 4) {
        t->counts[0] += s.zeros;
        k->count_f32(t->nonzero, k->nonzero_f32(x, n, t->nonzero), h->shift, t->counts);
    } else {
        k->count_f32(x, n, h->shift, t->counts);
    }
    return 1;
}

/* The blocks that a table may have counts in: of exponents from `first` to `last`, and of 0. */
typedef struct {
    size_t first, last;
} span;

static span span_of(const table *t)
{
    if (t->nearest == UINT32_MAX) return (span){1, 0};
    const uint32_t a = (uint32_t)qk_rank(t->least) & INT32_MAX, b = (uint32_t)qk_rank(t->most) & INT32_MAX;
    return (span){(t->nearest / 2 + 1) >> 23, (a > b ? a : b) >> 23};
}

/* Calls f(h, t, line, block) for these until one returns 0. */
static int for_blocks(qk_histogram *h, table *t, size_t line, int (*f)(qk_histogram *, table *, size_t, size_t))
{
    const span s = span_of(t);
    if (s.first > 0 && !(f(h, t, line, 0) && f(h, t, line, QK_SIGN_BLOCK))) return 0;
    for (size_t i = s.first; i <= s.last; i++)
        if (!f(h, t, line, i) || !f(h, t, line, QK_SIGN_BLOCK + i)) return 0;
    return 1;
}

static int make_block(qk_histogram *h, table *t, size_t line, size_t block)
{
    const size_t n = bins_of(h);
    return qk_histogram_block(h, line, block, 0) || !qk_active()->histogram->any_counts(t->counts + block * n, n) ||
        qk_histogram_block(h, line, block, 1);
}

static int move_block(qk_histogram *h, table *t, size_t line, size_t block)
{
    const size_t n = bins_of(h);
    uint64_t *to = qk_histogram_block(h, line, block, 0);
    if (to) qk_active()->histogram->move_counts(t->counts + block * n, n, to);
    return 1;
}

static int clear_block(qk_histogram *h, table *t, size_t line, size_t block)
{
    (void)line;
    memset(t->counts + block * bins_of(h), 0, bins_of(h) * sizeof *t->counts);
    return 1;
}

/* -0.0, and what is as small, is counted as 0. */
static void join_zeros(const qk_histogram *h, table *t)
{
    uint32_t *negative = t->counts + QK_SIGN_BLOCK * bins_of(h);
    t->counts[0] += *negative;
    *negative = 0;
}

/* Leaves the table as it was before it counted. */
static void empty_table(qk_histogram *h, table *t)
{
    if (!t->counts) return;
    for_blocks(h, t, 0, clear_block);
    t->least = INT32_MAX, t->most = INT32_MIN, t->nearest = UINT32_MAX;
}

static void move_table(qk_histogram *h, table *t, size_t line)
{
    if (!t->counts) return;
    for_blocks(h, t, line, move_block);
    if (t->least < h->least[line]) h->least[line] = t->least;
    if (t->most > h->most[line]) h->most[line] = t->most;
    t->least = INT32_MAX, t->most = INT32_MIN, t->nearest = UINT32_MAX;
}

/* ---- counting ---- */

typedef struct {
    qk_histogram *h;
    const float *x;
    size_t first, n;
    int status; /* as qk_histogram_count returns it */
} job;

static void fail(job *j, int status) { __atomic_store_n(&j->status, status, __ATOMIC_RELAXED); }

static void count_values(job *j, table *t, const float *x, size_t n)
{
    for (size_t i = 0; i < n && __atomic_load_n(&j->status, __ATOMIC_RELAXED) == 1; i += CHUNK)
        if (qk_stopped())
            fail(j, QK_INTERRUPTED);
        else if (!count_chunk(j->h, t, x + i, min_size(n - i, CHUNK)))
            fail(j, 0);
    join_zeros(j->h, t);
}

static void count_chunks(void *context, size_t begin, size_t end)
{
    job *j = context;
    table *t = take_table(j->h);
    if (!t) {
        fail(j, -1);
        return;
    }
    const size_t at = begin * CHUNK;
    count_values(j, t, j->x + at, min_size(end * CHUNK, j->n) - at);
    return_table(t);
}

/* One row: its counts are moved once they are complete. */
static int count_row(job *j)
{
    qk_histogram *h = j->h;
    const int status = qk_parallel_for(ceil_div(j->n, CHUNK), NANOSECONDS * (double)j->n, count_chunks, j);
    if (status < 0) j->status = status;
    for (size_t i = 0; i < h->tables && j->status == 1; i++)
        if (h->table[i].counts && !for_blocks(h, &h->table[i], j->first, make_block)) j->status = -1;
    for (size_t i = 0; i < h->tables; i++)
        if (j->status == 1)
            move_table(h, &h->table[i], j->first);
        else
            empty_table(h, &h->table[i]);
    return j->status;
}

static void count_rows(void *context, size_t begin, size_t end)
{
    job *j = context;
    table *t = take_table(j->h);
    if (!t) fail(j, -1);
    for (; t && begin < end && __atomic_load_n(&j->status, __ATOMIC_RELAXED) == 1; begin++) {
        count_values(j, t, j->x + begin * j->n, j->n);
        if (!for_blocks(j->h, t, j->first + begin, make_block)) fail(j, -1);
        move_table(j->h, t, j->first + begin);
    }
    if (!t) return;
    empty_table(j->h, t);
    return_table(t);
}

int qk_histogram_count(qk_histogram *h, const float *x, size_t first, size_t rows, size_t n)
{
    QK_DEFAULT_MODE;
    job j = {h, x, first, n, 1};
    if (!have_tables(h)) return -1;
    if (rows == 1) return count_row(&j);
    const int status = qk_parallel_for(rows, NANOSECONDS * (double)rows * ((double)n + 5000), count_rows, &j);
    return status < 0 ? status : j.status;
}

int qk_histogram_merge(qk_histogram *h, const qk_histogram *other)
{
    QK_DEFAULT_MODE;
    const size_t n = bins_of(h);
    for (int add = 0; add < 2; add++) /* memory for all of it comes first */
        for (size_t i = 0; i < h->lines * QK_BLOCKS; i++) {
            if (!other->blocks[i]) continue;
            uint64_t *to = qk_histogram_block(h, i / QK_BLOCKS, i % QK_BLOCKS, 1);
            if (!to) return 0;
            for (size_t bin = 0; add && bin < n; bin++) to[bin] += other->blocks[i][bin];
        }
    for (size_t i = 0; i < h->lines; i++) {
        if (other->least[i] < h->least[i]) h->least[i] = other->least[i];
        if (other->most[i] > h->most[i]) h->most[i] = other->most[i];
    }
    return 1;
}
