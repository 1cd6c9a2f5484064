/* Products of floats and float16 or bfloat16 weights (numerics 16): packing, blocking, threads. The tile belongs to the
 * instruction set.
 *
 * Loop order as in gemm8.c: a block of rows of x, copied into the L2 cache, x all panels of b, each for all tiles of
 * rows. */
#include <math.h>
#include <string.h>

#include "drivers/drivers.h"
#include "runtime/compiler.h"
#include "runtime/fpmode.h"
#include "kernels/kernels.h"
#include "runtime/parallel.h"
#include "drivers/scales.h"
#include "drivers/walk.h"

enum { NR = QK_GEMMF16_NR, ROW_PANELS = QK_GEMMF16_ROW_PANELS, LINE_FLOATS = 16 };

/* ---- packing of b ---- */

void qk_gemmf16_init(qk_gemmf16_weights *p, const qk_kernels *kernels, size_t k, size_t n, qk_dtype type)
{
    *p = (qk_gemmf16_weights){.kernels = kernels, .k = k, .n = n, .n_pad = round_up(n, NR), .type = type};
}

size_t qk_gemmf16_bytes(const qk_gemmf16_weights *p) { return qk_times(qk_times(p->k, p->n_pad), sizeof(uint16_t)); }

static uint16_t *panel_at(const qk_gemmf16_weights *p, size_t panel) { return p->panels + panel * p->k * NR; }

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
static void pack_columns(const char *b, ptrdiff_t row_stride, ptrdiff_t col_stride, size_t rows, size_t cols,
                         qk_dtype type, uint16_t *to)
{
    memset(to, 0, rows * NR * sizeof *to);
    for (size_t j = 0; j < cols; j++) {
        const char *column = b + (ptrdiff_t)j * col_stride;
        uint16_t *at = to + place_of(j, type);
        for (size_t i = 0; i < rows; i++) at[i * NR] = weight_at(column + (ptrdiff_t)i * row_stride);
    }
}

/* The largest magnitude, as bits. */
static int16_t largest_of(const uint16_t *weights, size_t n)
{
    int16_t largest = 0;
    for (size_t i = 0; i < n; i++) {
        const int16_t magnitude = weights[i] & 0x7fff;
        largest = magnitude > largest ? magnitude : largest;
    }
    return largest;
}

typedef struct {
    const qk_gemmf16_weights *p;
    const char *b;
    ptrdiff_t row_stride, col_stride;
    int32_t largest;
} pack_job;

static void pack_panels(void *context, size_t begin, size_t end)
{
    enum { ROWS = 32 }; /* at a time: their part of the panel stays in the L1 cache */
    pack_job *job = context;
    const qk_gemmf16_weights *p = job->p;
    int16_t largest = 0;
    for (size_t panel = begin; panel < end; panel++) {
        const size_t cols = min_size(p->n - panel * NR, NR);
        const char *b = job->b + (ptrdiff_t)(panel * NR) * job->col_stride;
        uint16_t *to = panel_at(p, panel);
        for (size_t row = 0; row < p->k && !qk_stopped_at(row);
             row += ROWS, b += ROWS * job->row_stride, to += ROWS * NR) {
            const size_t rows = min_size(p->k - row, ROWS);
            if (cols == NR && job->col_stride == sizeof *to)
                for (size_t i = 0; i < rows; i++) pack_row(b + (ptrdiff_t)i * job->row_stride, p->type, to + i * NR);
            else
                pack_columns(b, job->row_stride, job->col_stride, rows, cols, p->type, to);
            const int16_t size = largest_of(to, rows * NR);
            largest = size > largest ? size : largest;
        }
    }
    qk_keep_most(&job->largest, largest);
}

int qk_gemmf16_pack(qk_gemmf16_weights *p, const void *b, ptrdiff_t row_stride, ptrdiff_t col_stride)
{
    QK_DEFAULT_MODE;
    pack_job job = {p, b, row_stride, col_stride, 0};
    if (p->k == 0) return 1; /* without bytes, panels may be more than a loop can count */
    const int status = qk_parallel_for(p->n_pad / NR, 0.5 * (double)p->k * (double)p->n, pack_panels, &job);
    const uint16_t bits = (uint16_t)job.largest;
    (p->type == QK_F16 ? p->kernels->elementwise->f16_to_f32 : p->kernels->elementwise->bf16_to_f32)(&bits, &p->most,
                                                                                                     1);
    return status ? status
                  : bits < (p->type == QK_BF16 ? 0x7f80 : 0x7c00); /* an exponent of all ones is NaN or infinity */
}

static void unpack_rows(void *context, size_t begin, size_t end)
{
    const unpack_job *job = context;
    const qk_gemmf16_weights *p = job->weights;
    uint16_t *to = (uint16_t *)job->to + begin * p->n;
    for (size_t row = begin; row < end; row++)
        for (size_t col = 0; col < p->n; col++) *to++ = panel_at(p, col / NR)[row * NR + place_of(col % NR, p->type)];
}

int qk_gemmf16_unpack(const qk_gemmf16_weights *p, void *b)
{
    QK_DEFAULT_MODE;
    unpack_job job = {p, b};
    return qk_parallel_for(p->k, 2.0 * (double)p->k * (double)p->n, unpack_rows, &job);
}

/* ---- the product ---- */

typedef struct {
    walk walk;
    const float *x;
    ptrdiff_t row_stride;
    const qk_gemmf16_weights *b;
    const qk_epilogue *epilogue;
    size_t lda;
    qk_factors factors; /* of the largest magnitudes of rows */
} product;

/* A block of rows of x, lda apart. */
typedef struct {
    uint8_t wide[MAX_ROWS]; /* rows whose sums may leave float32 */
    int any_wide;
    _Alignas(64) float x[];
} row_block;

static int take_rows(const void *context, void *memory, size_t first, size_t count)
{
    const product *g = context;
    const qk_gemmf16_weights *b = g->b;
    row_block *block = memory;
    float *to = block->x;
    block->any_wide = 0;
    for (size_t i = 0; i < count && !qk_stopped_at_long(b->k); i++, to += g->lda) {
        float lo, hi;
        memcpy(to, (const char *)g->x + (ptrdiff_t)(first + i) * g->row_stride, b->k * sizeof *to);
        b->kernels->elementwise->minmax_f32(to, b->k, &lo, &hi);
        if (!isfinite(lo) || !isfinite(hi)) return 0;
        block->wide[i] = lo != hi && !qk_is_ordinary(&g->factors, hi > -lo ? hi : -lo);
        block->any_wide |= block->wide[i];
    }
    return 1;
}

/* The sums of a row and a panel in double. */
static void wide_sums(const qk_gemmf16_weights *b, const float *x, size_t panel, double *sum)
{
    const uint16_t *weights = panel_at(b, panel);
    double in_place[NR] = {0};
    float w[NR];
    for (size_t i = 0; i < b->k; i++, weights += NR) {
        (b->type == QK_F16 ? b->kernels->elementwise->f16_to_f32 : b->kernels->elementwise->bf16_to_f32)(weights, w,
                                                                                                         NR);
        for (int j = 0; j < NR; j++) in_place[j] += (double)x[i] * w[j];
    }
    for (size_t j = 0; j < NR; j++) sum[j] = in_place[place_of(j, b->type)];
}

/* Rows of a tile some of which are wide, from row `in_block` of the block on. */
static QK_NOINLINE void store_rows_apart(const product *g, const row_block *block, size_t in_block, size_t panel,
                                         float *y, const qk_tile *t)
{
    double sums[NR];
    for (int i = 0; i < t->rows; i++, in_block++, y += NR) {
        const qk_tile row = qk_row_of_tile(t, i);
        if (!block->wide[in_block]) {
            g->b->kernels->elementwise->finish_floats(y, &row);
            continue;
        }
        wide_sums(g->b, block->x + in_block * g->lda, panel, sums);
        qk_finish_row(g->b->kernels, sums, &row);
    }
}

/* Rows of sums on their way out, from row `in_block` of the block on; the epilogue's scale is 1, which changes nothing.
 */
static void store_tile(const product *g, const row_block *block, float *y, size_t first, size_t in_block, size_t rows,
                       size_t panel)
{
    static const float ones[MAX_MR] = {[0 ... MAX_MR - 1] = 1.0f};
    const size_t col = panel * NR;
    qk_tile t = qk_float_tile(g->epilogue, col, min_size(g->b->n - col, NR));
    qk_set_rows(&t, g->epilogue, first + in_block, rows, col, ones);
    if (block->any_wide)
        store_rows_apart(g, block, in_block, panel, y, &t);
    else
        g->b->kernels->elementwise->finish_floats(y, &t);
}

/* y = rows of the block from `row` on, times a panel: a stretch of k after the other, between which it looks for
 * signals. */
static void multiply_tile(const product *g, const row_block *block, size_t row, size_t rows, size_t panel, float *y)
{
    const qk_gemmf16_weights *b = g->b;
    const float *x = block->x + row * g->lda;
    for (size_t k = 0, some = 0; !k || (k < b->k && !qk_stopped()); k += some) {
        some = min_size(b->k - k, QK_STRETCH);
        b->kernels->gemmf16->gemmf16_tile((int)rows, some, x + k, g->lda, panel_at(b, panel) + k * NR, b->type, k > 0,
                                          y);
        if (!some) return;
    }
}

static void multiply_row(const product *g, const row_block *block, size_t row, size_t begin, size_t end)
{
    const qk_gemmf16_weights *b = g->b;
    float y[ROW_PANELS * NR] __attribute__((aligned(64)));
    for (size_t panel = begin; panel < end; panel += ROW_PANELS) {
        const size_t panels = min_size(end - panel, ROW_PANELS);
        if (b->k <= QK_STRETCH)
            b->kernels->gemmf16->gemmf16_row((int)panels, b->k, block->x, panel_at(b, panel), b->type, y);
        else
            for (size_t i = 0; i < panels; i++) multiply_tile(g, block, 0, 1, panel + i, y + i * NR);
        for (size_t i = 0; i < panels; i++) store_tile(g, block, y + i * NR, row, 0, 1, panel + i);
    }
}

static void multiply(const void *context, void *memory, size_t first, size_t rows, size_t begin, size_t end)
{
    const product *g = context;
    const qk_gemmf16_weights *b = g->b;
    const row_block *block = memory;
    const size_t mr = (size_t)b->kernels->gemmf16->mr, tiles = ceil_div(rows, mr);
    float y[MAX_MR * NR] __attribute__((aligned(64)));
    if (rows == 1) {
        multiply_row(g, block, first, begin, end);
        return;
    }
    for (size_t panel = begin; panel < end; panel++)
        for (size_t tile = 0; tile < tiles; tile++) { /* of even height */
            const size_t row = rows * tile / tiles, count = rows * (tile + 1) / tiles - row;
            multiply_tile(g, block, row, count, panel, y);
            store_tile(g, block, y, first, row, count, panel);
        }
}

int qk_gemmf16_linear(const float *x, ptrdiff_t row_stride, size_t m, const qk_gemmf16_weights *b,
                      const qk_epilogue *epilogue)
{
    QK_DEFAULT_MODE;
    if (m == 0 || b->n == 0) return 1;
    product g = {.walk = {.m = m, .panels = b->n_pad / NR, .take_rows = take_rows, .multiply = multiply},
                 .x = x,
                 .row_stride = row_stride,
                 .b = b,
                 .epilogue = epilogue};
    /* Products below 2^-100 would lose bits of a sum that is a normal number. */
    g.factors = (qk_factors){b->most > 0 ? 0x1p-26 * b->most : 1, 1, (double)b->k * b->most,
                             qk_largest_bias(b->kernels, epilogue, b->n)};
    g.lda = (ceil_div(b->k, LINE_FLOATS) | 1) *
        LINE_FLOATS; /* an odd number of lines: rows do not share sets of the cache */
    g.walk.work = qk_product_work(m, b->k, b->n, 48);
    qk_share(&g.walk, g.lda * sizeof(float), b->kernels->gemmf16->mr);
    g.walk.bytes = qk_plus(sizeof(row_block), qk_times(g.walk.block_rows, qk_times(g.lda, sizeof(float))));
    return qk_walk(&g.walk);
}
