/* Products of floats and float16 or bfloat16 weights (numerics 16): packing, blocking, threads. The tile belongs to the
 * instruction set.
 *
 * Loop order as in gemm.c: a block of rows of x, copied into the L2 cache, x all panels of b, each for all tiles of rows. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "blocking.h"
#include "fpmode.h"
#include "kernels.h"
#include "parallel.h"

enum { NR = QK_HALF_NR, ROW_PANELS = QK_HALF_ROW_PANELS, SMALL_FLOATS = 2048, LINE_FLOATS = 16 };

/* ---- packing of b ---- */

void qk_half_init(qk_half *p, const qk_kernels *kernels, size_t k, size_t n, qk_dtype type)
{
    *p = (qk_half){.kernels = kernels, .k = k, .n = n, .n_pad = round_up(n, NR), .type = type};
}

size_t qk_half_bytes(const qk_half *p) { return p->k * p->n_pad * sizeof(uint16_t); }

static uint16_t *panel_at(const qk_half *p, size_t panel) { return p->panels + panel * p->k * NR; }

/* Where column j stands in a row of a panel. */
static size_t place_of(size_t j, qk_dtype type) { return type == QK_BF16 ? j % 16 * 2 + j / 16 : j; }

static uint16_t weight_at(const char *b)
{
    uint16_t weight;
    memcpy(&weight, b, sizeof weight);
    return weight;
}

/* A row of 32 adjacent weights. */
static void pack_row(const char *b, qk_dtype type, uint16_t *to)
{
    uint16_t row[NR];
    memcpy(row, b, sizeof row);
    if (type == QK_F16)
        memcpy(to, row, sizeof row);
    else
        for (int j = 0; j < NR / 2; j++) to[2 * j] = row[j], to[2 * j + 1] = row[j + NR / 2];
}

/* Rows of any strides, a column at a time: those of a transposed matrix are adjacent. */
static void pack_columns(const char *b, ptrdiff_t row_stride, ptrdiff_t col_stride, size_t rows, size_t cols, qk_dtype type,
                         uint16_t *to)
{
    memset(to, 0, rows * NR * sizeof *to);
    for (size_t j = 0; j < cols; j++) {
        const char *column = b + (ptrdiff_t)j * col_stride;
        uint16_t *at = to + place_of(j, type);
        for (size_t i = 0; i < rows; i++) at[i * NR] = weight_at(column + (ptrdiff_t)i * row_stride);
    }
}

/* Whether an exponent is all ones: NaN or infinity. */
static int has_special(const uint16_t *weights, size_t n, qk_dtype type)
{
    int16_t largest = 0;
    for (size_t i = 0; i < n; i++) {
        const int16_t magnitude = weights[i] & 0x7fff;
        largest = magnitude > largest ? magnitude : largest;
    }
    return largest >= (type == QK_BF16 ? 0x7f80 : 0x7c00);
}

typedef struct {
    const qk_half *p;
    const char *b;
    ptrdiff_t row_stride, col_stride;
    int special;
} pack_job;

static void pack_panels(void *context, size_t begin, size_t end)
{
    enum { ROWS = 32 }; /* at a time: their part of the panel stays in the L1 cache */
    pack_job *job = context;
    const qk_half *p = job->p;
    int special = 0;
    for (size_t panel = begin; panel < end; panel++) {
        const size_t cols = at_most(p->n - panel * NR, NR);
        const char *b = job->b + (ptrdiff_t)(panel * NR) * job->col_stride;
        uint16_t *to = panel_at(p, panel);
        for (size_t row = 0; row < p->k; row += ROWS, b += ROWS * job->row_stride, to += ROWS * NR) {
            const size_t rows = at_most(p->k - row, ROWS);
            if (cols == NR && job->col_stride == sizeof *to)
                for (size_t i = 0; i < rows; i++) pack_row(b + (ptrdiff_t)i * job->row_stride, p->type, to + i * NR);
            else
                pack_columns(b, job->row_stride, job->col_stride, rows, cols, p->type, to);
            special |= has_special(to, rows * NR, p->type);
        }
    }
    if (special) __atomic_store_n(&job->special, 1, __ATOMIC_RELAXED);
}

int qk_half_pack(const qk_half *p, const void *b, ptrdiff_t row_stride, ptrdiff_t col_stride)
{
    QK_DEFAULT_MODE;
    pack_job job = {p, b, row_stride, col_stride, 0};
    qk_parallel_for(p->n_pad / NR, 0.5 * (double)p->k * (double)p->n, pack_panels, &job);
    return !job.special;
}

void qk_half_unpack(const qk_half *p, void *b)
{
    uint16_t *to = b;
    for (size_t row = 0; row < p->k; row++)
        for (size_t col = 0; col < p->n; col++)
            to[row * p->n + col] = panel_at(p, col / NR)[row * NR + place_of(col % NR, p->type)];
}

/* ---- the product ---- */

typedef struct {
    const float *x;
    ptrdiff_t row_stride;
    size_t m;
    const qk_half *b;
    const qk_right *right;
    size_t lda;
    blocking share;
    int failure;
} product;

static void fail(product *g, int code) { __atomic_store_n(&g->failure, code, __ATOMIC_RELAXED); }

/* Copies rows of x, lda apart. Returns 0 where a value is not finite. */
static int take_rows(const product *g, float *to, size_t first, size_t count)
{
    const qk_half *b = g->b;
    for (size_t i = 0; i < count; i++, to += g->lda) {
        float lo, hi;
        memcpy(to, (const char *)g->x + (ptrdiff_t)(first + i) * g->row_stride, b->k * sizeof *to);
        b->kernels->minmax_f32(to, b->k, &lo, &hi);
        if (!isfinite(lo) || !isfinite(hi)) return 0;
    }
    return 1;
}

/* Rows of sums on their way out; the epilogue's scale is 1, which changes nothing. */
static void store_tile(const product *g, float *y, size_t row, size_t rows, size_t col)
{
    static const float ones[MAX_MR] = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1};
    const qk_tile t = qk_float_tile(g->right, row, rows, col, at_most(g->b->n - col, NR), ones);
    g->b->kernels->blocked_to_float(y, &t);
}

static void multiply_row(const product *g, const float *x, size_t row, size_t begin, size_t end)
{
    const qk_half *b = g->b;
    float y[ROW_PANELS * NR] __attribute__((aligned(64)));
    for (size_t panel = begin; panel < end; panel += ROW_PANELS) {
        const size_t panels = at_most(end - panel, ROW_PANELS);
        b->kernels->half_row((int)panels, b->k, x, panel_at(b, panel), b->type, y);
        for (size_t i = 0; i < panels; i++) store_tile(g, y + i * NR, row, 1, (panel + i) * NR);
    }
}

static void multiply_block(const product *g, const float *x, size_t first, size_t rows, size_t begin, size_t end)
{
    const qk_half *b = g->b;
    const size_t mr = (size_t)b->kernels->half_mr, tiles = ceil_div(rows, mr);
    float y[MAX_MR * NR] __attribute__((aligned(64)));
    if (rows == 1) {
        multiply_row(g, x, first, begin, end);
        return;
    }
    for (size_t panel = begin; panel < end; panel++)
        for (size_t tile = 0; tile < tiles; tile++) { /* of even height */
            const size_t row = rows * tile / tiles, count = rows * (tile + 1) / tiles - row;
            b->kernels->half_tile((int)count, b->k, x + row * g->lda, g->lda, panel_at(b, panel), b->type, y);
            store_tile(g, y, first + row, count, panel * NR);
        }
}

static void run_tasks(void *context, size_t begin, size_t end)
{
    product *g = context;
    const size_t panels = g->b->n_pad / NR, size = g->lda * g->share.block_rows;
    float small[SMALL_FLOATS] __attribute__((aligned(64)));
    float *x = size <= SMALL_FLOATS ? small : aligned_alloc(64, size * sizeof *x);
    if (!x) {
        fail(g, -1);
        return;
    }
    size_t taken = SIZE_MAX; /* the first of the rows that the buffer holds */
    for (size_t task = begin; task < end; task++) {
        const size_t first = task / g->share.col_chunks * g->share.block_rows, chunk = task % g->share.col_chunks;
        const size_t rows = at_most(g->m - first, g->share.block_rows);
        if (first != taken && !take_rows(g, x, first, rows)) {
            fail(g, -2);
            break;
        }
        taken = first;
        multiply_block(g, x, first, rows, panels * chunk / g->share.col_chunks, panels * (chunk + 1) / g->share.col_chunks);
    }
    if (x != small) free(x);
}

int qk_half_linear(const float *x, ptrdiff_t row_stride, size_t m, const qk_half *b, const qk_right *right)
{
    QK_DEFAULT_MODE;
    if (m == 0 || b->n == 0) return 1;
    product g = {.x = x, .row_stride = row_stride, .m = m, .b = b, .right = right};
    g.lda = (ceil_div(b->k, LINE_FLOATS) | 1) * LINE_FLOATS; /* an odd number of lines: rows do not share sets of the cache */
    const double work = (double)m * (double)b->n * (double)b->k / 48;
    const size_t team = (size_t)qk_threads_for(SIZE_MAX, work);
    g.share = block_rows(m, g.lda * sizeof(float), (size_t)b->kernels->half_mr, b->n_pad / NR, team);
    qk_parallel_for(g.share.row_blocks * g.share.col_chunks, work, run_tasks, &g);
    return g.failure ? g.failure : 1;
}
