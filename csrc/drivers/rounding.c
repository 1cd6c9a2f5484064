/* Rounding with feedback (numerics 30): columns are independent, and 128 of them go through all rows together, so that
 * a block of the feedback serves four panels from the L2 cache. */
#include "drivers/drivers.h"
#include "kernels/kernels.h"
#include "runtime/fpmode.h"
#include "runtime/parallel.h"

enum { NR = QK_GEMMF16_NR, ROWS = QK_ROUND_ROWS, AGAIN = QK_ROUND_AGAIN, PANELS = 4 };

typedef struct {
    const qk_feedback *of;
    const qk_kernels *kernels;
    const float *rest; /* as qk_start_sums has it, else NULL */
} job;

/* What errors of `count` rows add to rows of a block; `feed` is that of the first of either. */
static void add_up(const job *j, size_t rows, size_t count, const float *feed, const float *errors, float *sums)
{
    const qk_gemmf16_kernels *kernels = j->kernels->gemmf16;
    const size_t mr = (size_t)kernels->mr, ld = j->of->ld;
    for (size_t row = 0; row < rows; row += mr)
        kernels->gemmf16_tile((int)min_size(rows - row, mr), count, feed + row * ld, ld, (const uint16_t *)errors,
                              QK_F32, 0, sums + row * NR);
}

static void round_block(const job *j, size_t row, size_t panel)
{
    const qk_feedback *of = j->of;
    const size_t rows = min_size(of->k - row, ROWS);
    const float *feed = of->feed + row * of->ld;
    float *errors = of->errors + panel * of->k * NR, *own = errors + row * NR;
    float before[ROWS * NR] __attribute__((aligned(64))), after[ROWS * NR] __attribute__((aligned(64)));
    add_up(j, rows, row, feed, errors, before);
    if (of->both) add_up(j, rows, of->k - row, feed + row, own, after);
    float *sums = of->sums ? of->sums + (panel * of->k + row) * NR : NULL;
    const qk_round_rows block = {(int)rows, of, row, panel * NR, own, before, of->both ? after : NULL, sums};
    j->kernels->codebooks->round_rows(&block);
}

static void round_panels(void *context, size_t begin, size_t end)
{
    const job *j = context;
    for (size_t first = begin * PANELS; first < end * PANELS; first += PANELS)
        for (size_t row = 0; row < j->of->k && !qk_stopped(); row += ROWS)
            for (size_t panel = first; panel < min_size(first + PANELS, j->of->n / NR); panel++)
                round_block(j, row, panel);
}

/* ---- again, by sums that hold what the errors of all others add ---- */

/* What `count` rows of a block, which began at row `first`, have changed, for all rows but those after them in the
 * block, which have it already; none has its own. */
static void spread(const job *j, const float *changes, const size_t *changed, size_t count, size_t first, size_t end,
                   float *sums)
{
    const qk_codebooks_kernels *kernels = j->kernels->codebooks;
    const float *feed[AGAIN];
    for (size_t c = 0; c < count; c++) feed[c] = j->of->feed + changed[c] * j->of->ld;
    kernels->add_changes(feed, changes, count, sums, 0, first);
    kernels->add_changes(feed, changes, count, sums, end, j->of->k);
    for (size_t c = 0; c < count; first = changed[c++])
        kernels->add_changes(feed + c, changes + c * NR, count - c, sums, first, changed[c]);
}

static void round_panels_again(void *context, size_t begin, size_t end)
{
    const job *j = context;
    const qk_feedback *of = j->of;
    float changes[AGAIN * NR] __attribute__((aligned(64)));
    size_t changed[AGAIN];
    for (size_t panel = begin; panel < end; panel++) {
        float *errors = of->errors + panel * of->k * NR, *sums = of->sums + panel * of->k * NR;
        for (size_t row = 0, rows; row < of->k && !qk_stopped(); row += rows) {
            rows = min_size(of->k - row, AGAIN);
            const qk_round_rows block = {(int)rows,         of,   row,  panel * NR,
                                         errors + row * NR, NULL, NULL, sums + row * NR};
            const size_t count = j->kernels->codebooks->round_again(&block, changes, changed);
            if (count) spread(j, changes, changed, count, row, row + rows, sums);
        }
    }
}

/* Sums of rows, given what distances of later rows add up to: they themselves, less what their own errors are in it. */
static void start_rows(const job *j, size_t row, size_t rows, const float *made, const float *errors, float *sums)
{
    for (size_t i = 0; i < rows; i++, made += NR, errors += NR, sums += NR) {
        const float weight = j->of->weight[row + i], rest = j->rest[row + i];
        for (int col = 0; col < NR; col++) {
            const float own = weight * (sums[col] - weight * errors[col]) - rest * errors[col];
            sums[col] = made[col] + own;
        }
    }
}

/* Distances become sums, block by block: no later block reads them again. */
static void start_panels(void *context, size_t begin, size_t end)
{
    const job *j = context;
    const qk_feedback *of = j->of;
    for (size_t first = begin * PANELS; first < end * PANELS; first += PANELS)
        for (size_t row = 0; row < of->k && !qk_stopped(); row += ROWS)
            for (size_t panel = first; panel < min_size(first + PANELS, of->n / NR); panel++) {
                const size_t rows = min_size(of->k - row, ROWS), at = (panel * of->k + row) * NR;
                float made[ROWS * NR] __attribute__((aligned(64)));
                add_up(j, rows, of->k - row, of->feed + row * of->ld + row, of->sums + at, made);
                start_rows(j, row, rows, made, of->errors + at, of->sums + at);
            }
}

int qk_start_sums(const qk_feedback *p, const float *rest)
{
    QK_DEFAULT_MODE;
    job j = {p, qk_active(), rest};
    const double products = (double)p->k * (double)p->k * (double)p->n / 2;
    return qk_parallel_for(ceil_div(p->n, NR * PANELS), products / 40, start_panels, &j);
}

int qk_round(const qk_feedback *p)
{
    QK_DEFAULT_MODE;
    job j = {p, qk_active(), NULL};
    const double products = (double)p->k * (double)p->k * (double)p->n * (p->both ? 1 : 0.5);
    if (!p->near) return qk_parallel_for(p->n / NR, products / 40, round_panels_again, &j);
    return qk_parallel_for(ceil_div(p->n, NR * PANELS), products / 40, round_panels, &j);
}
