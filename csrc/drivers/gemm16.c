/* Exact products of int16 codes, and of floats quantized to int16 (numerics 17): packing, blocking, threads. The tile
 * belongs to the instruction set.
 *
 * Loop order as in gemm8.c: a block of rows of a (in the L2 cache) x all panels of b, each for all tiles of rows. Along
 * k a tile is cut where its int32 sums could overflow; there they are added to int64 ones. */
#include <string.h>

#include "drivers/drivers.h"
#include "runtime/compiler.h"
#include "runtime/fpmode.h"
#include "kernels/kernels.h"
#include "runtime/parallel.h"
#include "drivers/scales.h"
#include "drivers/walk.h"

enum {
    KR = 2,
    LINE = 32 /* codes in a cache line */,
    LARGEST = 32768,
    NC = QK_GEMM4_NR /* columns of the epilogue */
};

/* ---- packing of b ---- */

void qk_gemm16_init(qk_gemm16_weights *p, const qk_kernels *kernels, size_t k, size_t n)
{
    const size_t nr = (size_t)kernels->gemm16->nr;
    *p = (qk_gemm16_weights){.kernels = kernels, .k = k, .n = n, .steps = ceil_div(k, KR)};
    if (n) p->n_pad = round_up(n, nr) - nr + NC; /* the epilogue reads that much from the last panel on */
}

static size_t panels_of(const qk_gemm16_weights *p) { return ceil_div(p->n, (size_t)p->kernels->gemm16->nr); }

size_t qk_gemm16_bytes(const qk_gemm16_weights *p)
{
    return qk_times(qk_times(panels_of(p), (size_t)p->kernels->gemm16->nr), qk_times(p->steps, KR * sizeof(int16_t)));
}

static int16_t *panel_at(const qk_gemm16_weights *p, size_t col) { return p->panels + p->steps * KR * col; }

typedef uint32_t __attribute__((may_alias)) code_pair; /* two int16 of a panel */

static uint32_t code_at(const char *b)
{
    int16_t code;
    memcpy(&code, b, sizeof code);
    return (uint16_t)code;
}

/* Pairs of two rows of adjacent codes. */
static void pair_rows(const char *b, ptrdiff_t row_stride, size_t nr, code_pair *restrict to)
{
    for (size_t j = 0; j < nr; j++, b += sizeof(int16_t)) to[j] = code_at(b) | code_at(b + row_stride) << 16;
}

/* Rows of any strides, a column at a time: those of a transposed matrix are adjacent. */
static void pair_columns(const char *b, ptrdiff_t row_stride, ptrdiff_t col_stride, size_t rows, size_t cols, size_t nr,
                         code_pair *to)
{
    memset(to, 0, ceil_div(rows, KR) * nr * sizeof *to);
    for (size_t j = 0; j < cols; j++) {
        const char *column = b + (ptrdiff_t)j * col_stride;
        for (size_t i = 0; i < rows; i++)
            to[i / KR * nr + j] |= code_at(column + (ptrdiff_t)i * row_stride) << (i % KR ? 16 : 0);
    }
}

/* Adds the codes of at most 2^14 steps to colsum: int32 holds the sums of 2^15 codes. Returns the largest magnitude. */
static int32_t sum_steps(const int16_t *panel, size_t steps, size_t nr, int64_t *colsum)
{
    int32_t sum[MAX_NR] = {0};
    int16_t low = 0, high = 0;
    for (size_t s = 0; s < steps; s++, panel += KR * nr)
        for (size_t j = 0; j < nr; j++) sum[j] += panel[2 * j] + panel[2 * j + 1];
    panel -= steps * KR * nr;
    for (size_t i = 0; i < steps * KR * nr; i++)
        low = panel[i] < low ? panel[i] : low, high = panel[i] > high ? panel[i] : high;
    for (size_t j = 0; j < nr; j++) colsum[j] += sum[j];
    return -low > high ? -low : high;
}

typedef struct {
    qk_gemm16_weights *p;
    const char *b;
    ptrdiff_t row_stride, col_stride;
    int32_t largest;
} pack_job;

static void pack_panels(void *context, size_t begin, size_t end)
{
    enum { ROWS = 32 }; /* at a time: their part of the panel stays in the L1 cache */
    pack_job *job = context;
    const qk_gemm16_weights *p = job->p;
    const size_t nr = (size_t)p->kernels->gemm16->nr;
    int32_t largest = 0;
    for (size_t col = begin * nr; col < end * nr; col += nr) {
        const size_t cols = min_size(p->n - col, nr);
        const char *b = job->b + (ptrdiff_t)col * job->col_stride;
        int16_t *to = panel_at(p, col);
        memset(p->colsum + col, 0, nr * sizeof *p->colsum);
        for (size_t row = 0; row < p->k && !qk_stopped_at(row);
             row += ROWS, b += ROWS * job->row_stride, to += ROWS * nr) {
            const size_t rows = min_size(p->k - row, ROWS), steps = ceil_div(rows, KR);
            if (cols == nr && job->col_stride == sizeof *to && rows == ROWS)
                for (size_t s = 0; s < steps; s++)
                    pair_rows(b + (ptrdiff_t)(KR * s) * job->row_stride, job->row_stride, nr, (code_pair *)to + s * nr);
            else
                pair_columns(b, job->row_stride, job->col_stride, rows, cols, nr, (code_pair *)to);
            const int32_t size = sum_steps(to, steps, nr, p->colsum + col);
            largest = size > largest ? size : largest;
        }
    }
    qk_keep_most(&job->largest, largest);
}

int qk_gemm16_pack(qk_gemm16_weights *p, const void *b, ptrdiff_t row_stride, ptrdiff_t col_stride)
{
    QK_DEFAULT_MODE;
    pack_job job = {p, b, row_stride, col_stride, 0};
    const int status = qk_parallel_for(panels_of(p), (double)p->k * (double)p->n, pack_panels, &job);
    p->largest = job.largest;
    return status;
}

static void unpack_rows(void *context, size_t begin, size_t end)
{
    const unpack_job *job = context;
    const qk_gemm16_weights *p = job->weights;
    const size_t nr = (size_t)p->kernels->gemm16->nr;
    int16_t *to = (int16_t *)job->to + begin * p->n;
    for (size_t row = begin; row < end; row++)
        for (size_t col = 0; col < p->n; col++)
            *to++ = panel_at(p, col / nr * nr)[(row / KR * nr + col % nr) * KR + row % KR];
}

int qk_gemm16_unpack(const qk_gemm16_weights *p, int16_t *b)
{
    QK_DEFAULT_MODE;
    unpack_job job = {p, b};
    return qk_parallel_for(p->k, 2.0 * (double)p->k * (double)p->n, unpack_rows, &job);
}

/* ---- the product ---- */

typedef struct {
    walk walk;
    const qk_rows *source;
    const qk_gemm16_weights *b;
    const qk_epilogue *epilogue;
    size_t lda;
    qk_row_quantizer quantizer; /* of floats */
} product;

/* A block of rows of a: codes in one plane, or in two, low and high, where sums of the codes themselves would overflow
 * too soon. */
typedef struct {
    int16_t *high; /* NULL: one plane */
    size_t steps;  /* after which int32 sums are added to the int64 ones */
    int64_t zero[MAX_ROWS], term[MAX_ROWS];
    float scale[MAX_ROWS];
    double wide_scale[MAX_ROWS]; /* qk_row_scale */
    _Alignas(64) int16_t codes[];
} row_block;

/* Steps whose sums int32 holds, factors being at most a and b. */
static size_t steps_within(int64_t a, int64_t b, size_t steps)
{
    const int64_t pair = KR * a * b;
    return pair > 0 ? min_size(steps, (size_t)(INT32_MAX / pair)) : steps;
}

static int32_t largest_of(const int16_t *a, size_t n)
{
    int16_t low = 0, high = 0;
    for (size_t i = 0; i < n; i++) low = a[i] < low ? a[i] : low, high = a[i] > high ? a[i] : high;
    return -low > high ? -low : high;
}

static int64_t sum_of(const int16_t *a, size_t n)
{
    int64_t sum = 0;
    for (size_t i = 0; i < n; i++) sum += a[i];
    return sum;
}

/* a = 256 high + low, low in -128 .. 127 and high in -128 .. 128. */
static void split(int16_t *restrict low, int16_t *restrict high, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        const int16_t a = low[i], rest = (int8_t)a;
        low[i] = rest;
        high[i] = (int16_t)((a - rest) >> 8);
    }
}

static int take_rows(const void *context, void *memory, size_t first, size_t rows)
{
    enum { FEW_STEPS = 8, L1_STEPS = 128 };
    const product *g = context;
    row_block *block = memory;
    const qk_rows *source = g->source;
    const size_t k = g->b->k, steps = g->b->steps;
    int32_t largest = 0;
    block->high = NULL;
    for (size_t i = 0; i < rows && !qk_stopped_at_long(k); i++) {
        int16_t *to = block->codes + i * g->lda;
        const void *from = (const char *)source->a + (ptrdiff_t)(first + i) * source->row_stride;
        qk_row_scale row = {0};
        if (source->type != QK_FLOATS)
            memcpy(to, from, k * sizeof *to);
        else if (!qk_quantize_row(&g->quantizer, from, to, &row))
            return 0;
        block->scale[i] = row.scale, block->wide_scale[i] = row.wide;
        if (k % KR) to[k] = 0;
        const int32_t size = largest_of(to, k);
        largest = size > largest ? size : largest;
        block->zero[i] = source->zero_point ? source->zero_point[source->zero_point_per_row ? first + i : 0] : 0;
        if (g->epilogue->b_zero) block->term[i] = sum_of(to, k) - (int64_t)k * block->zero[i];
    }
    block->steps = min_size(steps_within(largest, g->b->largest, steps), QK_STRETCH / KR);
    if (block->steps >= min_size(steps, FEW_STEPS)) return 1;
    block->high = block->codes + g->lda * g->walk.block_rows;
    for (size_t i = 0; i < rows; i++) split(block->codes + i * g->lda, block->high + i * g->lda, KR * steps);
    block->steps =
        steps_within(LARGEST >> 8, g->b->largest, L1_STEPS); /* the second plane finds the panel in the L1 cache */
    return 1;
}

/* Rows of sums of all of k, ld apart; zero points are not taken into account yet. */
static void multiply_tile(const product *g, const row_block *block, size_t row, size_t rows, const int16_t *panel,
                          int64_t *sum, size_t ld)
{
    const qk_kernels *k = g->b->kernels;
    const int16_t *a = block->codes + row * g->lda, *high = block->high ? block->high + row * g->lda : NULL;
    size_t left = g->b->steps;
    int32_t c[MAX_MR * MAX_NR] __attribute__((aligned(64)));
    int more = 0;
    do {
        const size_t steps = min_size(left, block->steps);
        k->gemm16->gemm16_tile((int)rows, steps, a, g->lda, panel, c);
        k->gemm16->gemm16_add((int)rows, c, 0, more, sum, ld);
        if (high) {
            k->gemm16->gemm16_tile((int)rows, steps, high, g->lda, panel, c);
            k->gemm16->gemm16_add((int)rows, c, 8, 1, sum, ld);
            high += KR * steps;
        }
        a += KR * steps, panel += KR * steps * (size_t)k->gemm16->nr, left -= steps, more = 1;
    } while (left && !qk_stopped());
}

/* Takes from a row of sums what zero points add to it. */
static void correct_row(const product *g, const row_block *block, size_t row, size_t col, size_t cols, int64_t *sum)
{
    const int64_t zero = block->zero[row], *colsum = g->b->colsum + col;
    const int32_t *b_zero = g->epilogue->b_zero;
    if (zero)
        for (size_t j = 0; j < cols; j++) sum[j] -= zero * colsum[j];
    if (b_zero)
        for (size_t j = 0; j < cols; j++) sum[j] -= block->term[row] * b_zero[col + j];
}

/* Rows of a tile some of which are wide. */
static QK_NOINLINE void store_rows_apart(const product *g, const double *wide, const int64_t *sum, float *y,
                                         const qk_tile *t, const float *col_scale)
{
    const qk_kernels *k = g->b->kernels;
    double sums[MAX_NR];
    for (int i = 0; i < t->rows; i++, y += NC, sum += k->gemm16->nr) {
        const qk_tile row = qk_row_of_tile(t, i);
        for (int j = 0; j < t->cols; j++) sums[j] = (double)sum[j] * wide[i] * col_scale[j];
        if (wide[i])
            qk_finish_row(k, sums, &row);
        else
            k->elementwise->finish_floats(y, &row);
    }
}

static void store_floats(const product *g, const row_block *block, size_t first, size_t row, size_t rows, size_t col,
                         size_t cols, const int64_t *sum)
{
    qk_tile t = qk_float_tile(g->epilogue, col, cols);
    qk_set_rows(&t, g->epilogue, first + row, rows, col, block->scale + row);
    const float *col_scale = g->epilogue->col_scale + col;
    float y[MAX_MR * NC] __attribute__((aligned(64)));
    int any_wide = 0;
    memset(y, 0, rows * NC * sizeof *y);
    for (size_t i = 0; i < rows; i++) {
        for (size_t j = 0; j < cols; j++)
            y[i * NC + j] = (float)sum[i * (size_t)g->b->kernels->gemm16->nr + j] * col_scale[j];
        any_wide |= block->wide_scale[row + i] != 0;
    }
    if (any_wide)
        store_rows_apart(g, block->wide_scale + row, sum, y, &t, col_scale);
    else
        g->b->kernels->elementwise->finish_floats(y, &t);
}

static void multiply(const void *context, void *memory, size_t first, size_t rows, size_t begin, size_t end)
{
    const product *g = context;
    const row_block *block = memory;
    const size_t nr = (size_t)g->b->kernels->gemm16->nr, mr = (size_t)g->b->kernels->gemm16->mr,
                 tiles = ceil_div(rows, mr);
    const size_t ld = g->epilogue->row_stride / sizeof(int64_t);
    int64_t sum[MAX_MR * MAX_NR] __attribute__((aligned(64)));
    for (size_t col = begin * nr; col < end * nr; col += nr)
        for (size_t tile = 0; tile < tiles; tile++) { /* of even height */
            const size_t row = rows * tile / tiles, count = rows * (tile + 1) / tiles - row,
                         cols = min_size(g->b->n - col, nr);
            const int to_float = g->epilogue->type == QK_TO_FLOAT, in_place = !to_float && cols == nr;
            int64_t *out = to_float ? NULL : (int64_t *)g->epilogue->out + (first + row) * ld + col,
                    *to = in_place ? out : sum;
            multiply_tile(g, block, row, count, panel_at(g->b, col), to, in_place ? ld : nr);
            for (size_t i = 0; i < count; i++, to += in_place ? ld : nr) {
                correct_row(g, block, row + i, col, cols, to);
                if (!to_float && !in_place) memcpy(out + i * ld, to, cols * sizeof *out);
            }
            if (to_float) store_floats(g, block, first, row, count, col, cols, sum);
        }
}

int qk_gemm16(const qk_rows *source, const qk_gemm16_weights *b, const qk_epilogue *epilogue)
{
    QK_DEFAULT_MODE;
    if (source->m == 0 || b->n == 0) return 1;
    product g = {.walk = {.m = source->m, .panels = panels_of(b), .take_rows = take_rows, .multiply = multiply},
                 .source = source,
                 .b = b,
                 .epilogue = epilogue};
    if (source->type == QK_FLOATS) {
        const double sum = 0x1p32 * (double)b->k * epilogue->most_scale; /* codes less zero points are below 2^16 */
        const qk_factors factors = {1, 1, sum, qk_largest_bias(b->kernels, epilogue, b->n)};
        g.quantizer = (qk_row_quantizer){b->kernels, b->k, 1 - LARGEST, LARGEST - 1, 1, sizeof(int16_t), factors};
    }
    g.lda = (ceil_div(b->k + 1, LINE) | 1) * LINE; /* an odd number of lines: rows do not share sets of the cache */
    const size_t row_bytes = 2 * g.lda * sizeof(int16_t);
    g.walk.work = qk_product_work(source->m, b->k, b->n, 64);
    qk_share(&g.walk, row_bytes, b->kernels->gemm16->mr);
    g.walk.bytes = qk_plus(sizeof(row_block), qk_times(g.walk.block_rows, row_bytes));
    return qk_walk(&g.walk);
}
