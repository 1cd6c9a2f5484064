/* Rounding with feedback (numerics 30): columns are independent, and 128 of them go through all rows together, so that
 * a block of the feedback serves four panels from the L2 cache. */
#include "drivers/drivers.h"
#include "kernels/kernels.h"
#include "runtime/fpmode.h"
#include "runtime/parallel.h"

enum { NR = QK_GEMMF16_NR, ROWS = QK_ROUND_ROWS, PANELS = 4 };

typedef struct {
    const qk_feedback *of;
    const qk_kernels *kernels;
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
    const qk_round_rows block = {(int)rows, of, row, panel * NR, own, before, of->both ? after : NULL};
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

int qk_round(const qk_feedback *p)
{
    QK_DEFAULT_MODE;
    job j = {p, qk_active()};
    const double products = (double)p->k * (double)p->k * (double)p->n * (p->both ? 1 : 0.5);
    return qk_parallel_for(ceil_div(p->n, NR * PANELS), products / 40, round_panels, &j);
}
