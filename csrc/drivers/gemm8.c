/* Integer products: packing, blocking, threads. The inner tile and the epilogues belong to the instruction set.
 *
 * Loop order, per task: a block of rows of a (in the L2 cache) x all panels of b: for each panel (nr columns, all of
 * k), for each tile of mr rows. k is not split: the sums stay in registers from the first product to the last, and the
 * epilogue turns each finished tile into its output while it is in the L1 cache. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "drivers/drivers.h"
#include "runtime/compiler.h"
#include "runtime/fpmode.h"
#include "kernels/kernels.h"
#include "runtime/parallel.h"
#include "drivers/gemm8.h"
#include "drivers/scales.h"

const float qk_no_bias[MAX_NR] __attribute__((aligned(64)));

enum {
    WIDE_ROWS = 48,                /* for as many it pays to widen a panel */
    MANY_ROWS = 8,                 /* that a set of the L1 cache has no lines for */
    MANY_PANELS = 4,               /* for as many it pays to copy rows apart */
    LONG = 128,                    /* codes of k: in fewer there is no time to ask for what comes next */
    LONG_LINE = 20,                /* pixels: a tile of a shorter one has too few rows */
    GROUP_BYTES = 16 * 1024,       /* of floats that are seen twice */
    PATCH_BYTES = 96 * 1024,       /* of rows that are gathered from an image, which shares the L2 cache with them */
    MANY_PATCH_BYTES = 384 * 1024, /* the same, for weights of */
    BIG_WEIGHTS = 1024 * 1024,     /* so many bytes: to read them once more would take longer */
    FAR_WEIGHTS = 4096 * 1024,     /* bytes that no L2 cache holds */
    FAR_ROWS = 4,                  /* that a tile asks for such weights */
    PAGE = 4096,                   /* within which caches look ahead; of the next one they are told the first bytes, */
    AHEAD = 256                    /* so many */
};

/* ---- packing of b ---- */

/* The largest of the sums of four magnitudes that two steps of 4 codes add up in 16 bits, over 8 columns (numerics 6).
 */
static int largest_sum(const uint8_t *b, ptrdiff_t row_stride, ptrdiff_t col_stride, uint8_t flip)
{
    int largest = 0;
    for (int col = 0; col < 8; col++) {
        int sums[2] = {0};
        for (int row = 0; row < 8; row++) {
            const int code = (int8_t)(b[row * row_stride + col * col_stride] ^ flip);
            sums[row / 2 % 2] += code < 0 ? -code : code;
        }
        for (int i = 0; i < 2; i++) largest = sums[i] > largest ? sums[i] : largest;
    }
    return largest;
}

/* Small weights are those of which most sums fit, in a sample of at most 16 x 16 places. The choice changes no result.
 */
const qk_gemm8_kernels *qk_gemm8_kernels_for(const qk_kernels *kernels, const void *b, ptrdiff_t row_stride,
                                             ptrdiff_t col_stride, size_t k, size_t n, int b_unsigned)
{
    enum { PLACES = 16, LIMIT = 256 };
    if (!kernels->gemm8_small) return kernels->gemm8;
    const size_t row_step = k / PLACES < 8 ? 8 : k / PLACES, col_step = n / PLACES < 8 ? 8 : n / PLACES;
    size_t seen = 0, small = 0;
    for (size_t row = 0; row + 8 <= k; row += row_step)
        for (size_t col = 0; col + 8 <= n; col += col_step, seen++) {
            const uint8_t *place = (const uint8_t *)b + (ptrdiff_t)row * row_stride + (ptrdiff_t)col * col_stride;
            small += largest_sum(place, row_stride, col_stride, b_unsigned ? 0x80 : 0) <= LIMIT;
        }
    return 2 * small > seen ? kernels->gemm8_small : kernels->gemm8;
}

void qk_gemm8_init(qk_gemm8_weights *p, const qk_kernels *kernels, const qk_gemm8_kernels *gemm8, size_t k, size_t n,
                   int b_unsigned)
{
    if (!gemm8) gemm8 = kernels->gemm8;
    *p = (qk_gemm8_weights){.kernels = kernels, .gemm8 = gemm8, .k = k, .n = n, .flipped = b_unsigned};
    p->k_pad = round_up(k, (size_t)gemm8->kr);
    p->n_pad = round_up(n, (size_t)gemm8->nr);
    p->steps = p->k_pad / (size_t)gemm8->kr, p->count = p->n_pad / (size_t)gemm8->nr;
    p->panel_bytes = gemm8->gemm8_panel_bytes(p->steps);
}

size_t qk_gemm8_bytes(const qk_gemm8_weights *p) { return qk_times(p->count, p->panel_bytes); }

typedef struct {
    const qk_gemm8_weights *p;
    const uint8_t *b;
    ptrdiff_t row_stride, col_stride;
    const int32_t *zero_point;
    int64_t bound;
} pack_job;

/* Sums of a panel's columns: its products with ones, a stretch of k after the other. */
static void sum_panel(const qk_gemm8_weights *p, const int8_t *panel, int32_t *colsum)
{
    enum { STRETCH = 1024 }; /* codes */
    static const uint8_t bytes[STRETCH] = {[0 ... STRETCH - 1] = 1};
    static const int16_t int16s[STRETCH] = {[0 ... STRETCH - 1] = 1};
    const qk_gemm8_kernels *k = p->gemm8;
    const size_t step_bytes = (size_t)k->nr * (size_t)k->kr;
    memset(colsum, 0, (size_t)k->nr * sizeof *colsum);
    for (size_t rest = p->steps, steps; rest > 0; rest -= steps, panel += steps * step_bytes) {
        steps = min_size(rest, STRETCH / (size_t)k->kr);
        k->gemm8_tile(1, steps, k->a_bytes == 1 ? (const void *)bytes : int16s, 0, panel, colsum, colsum,
                      (size_t)k->nr);
    }
}

static void pack_panels(void *context, size_t begin, size_t end)
{
    pack_job *job = context;
    const qk_gemm8_weights *p = job->p;
    const size_t nr = (size_t)p->gemm8->nr;
    int64_t bound = 0;
    for (size_t panel = begin; panel < end; panel++) {
        const size_t col = panel * nr, cols = min_size(p->n - col, nr);
        int8_t *codes = p->panels + panel * p->panel_bytes;
        int32_t zero[MAX_NR];
        qk_panel_source source = {job->b + (ptrdiff_t)col * job->col_stride,
                                  job->row_stride,
                                  job->col_stride,
                                  p->k,
                                  p->flipped ? 0x80 : 0,
                                  NULL,
                                  qk_stopped};
        if (!job->zero_point) {
            p->gemm8->gemm8_pack_panel(&source, cols, codes, NULL);
            sum_panel(p, codes, p->colsum + col);
            continue;
        }
        for (size_t j = 0; j < cols; j++) zero[j] = job->zero_point[col + j] - (p->flipped ? 128 : 0);
        source.zero = zero;
        const int64_t size = p->gemm8->gemm8_pack_panel(&source, cols, codes, p->colsum + col);
        if (size > bound) bound = size;
    }
    int64_t seen = __atomic_load_n(&job->bound, __ATOMIC_RELAXED);
    while (bound > seen &&
           !__atomic_compare_exchange_n(&job->bound, &seen, bound, 0, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {}
}

int64_t qk_gemm8_pack(qk_gemm8_weights *p, const void *b, ptrdiff_t row_stride, ptrdiff_t col_stride,
                      const int32_t *zero_point)
{
    QK_DEFAULT_MODE;
    pack_job job = {p, b, row_stride, col_stride, zero_point, 0};
    const double work = 0.5 * (double)p->k * (double)p->n;
    const int status = qk_parallel_for(p->count, work, pack_panels, &job);
    return status ? status : job.bound;
}

/* An item is some rows of a panel; those of the same rows follow each other, as their pages do. */
static void unpack_parts(void *context, size_t begin, size_t end)
{
    const unpack_job *job = context;
    const qk_gemm8_weights *p = job->weights;
    const size_t nr = (size_t)p->gemm8->nr, panels = p->count;
    for (size_t item = begin; item < end; item++) {
        const size_t panel = item % panels, col = panel * nr;
        p->gemm8->gemm8_unpack_panel(p->panels + panel * p->panel_bytes, p->k, item / panels * QK_UNPACK_ROWS,
                                     min_size(p->n - col, nr), p->flipped ? 0x80 : 0, (uint8_t *)job->to + col, p->n);
    }
}

int qk_gemm8_unpack(const qk_gemm8_weights *p, void *b)
{
    QK_DEFAULT_MODE;
    unpack_job job = {p, b};
    const size_t items = ceil_div(p->k, QK_UNPACK_ROWS) * p->count;
    return qk_parallel_for(items, (double)p->k * (double)p->n, unpack_parts, &job);
}

/* ---- the product ---- */

/* What zero points need of row i, whose codes are `a`: its own, and (only where b has zero points) its sum. */
static void describe_row(const product *g, row_block *block, size_t i, const uint8_t *a, int32_t zero, uint8_t flip)
{
    block->zero[i] = zero + g->a_shift;
    if (!g->b_zero) return;
    const uint32_t sum = (uint32_t)g->b->gemm8->sum_codes(a, g->b->k, flip);
    block->term[i] = (int32_t)(sum - (uint32_t)g->b->k * (uint32_t)block->zero[i]);
}

static int32_t zero_of_codes(const qk_rows *source, size_t row)
{
    return source->zero_point ? source->zero_point[source->zero_point_per_row ? row : 0] : 0;
}

static const char *row_of(const qk_rows *source, size_t row)
{
    return (const char *)source->a + (ptrdiff_t)row * source->row_stride;
}

/* Rows that are gathered from an image. */
static void gather_patches(const product *g, row_block *block, size_t first, size_t rows)
{
    const int32_t zero = zero_of_codes(g->source, 0) + g->a_shift;
    const uint8_t flip = g->a_shift ? 0x80 : 0;
    g->b->kernels->conv->gather_rows(g->source->patches, first, rows, g->b->gemm8->a_bytes, flip, block->rows, g->lda,
                                     g->b_zero ? block->term : NULL);
    for (size_t i = 0; g->b_zero && i < rows; i++)
        block->term[i] = (int32_t)((uint32_t)block->term[i] - (uint32_t)g->b->k * (uint32_t)zero);
}

/* Lines of an image, and of padding, that the windows of rows see: whole lines of the result. */
static void pad_lines(const product *g, row_block *block, size_t first, size_t rows)
{
    const qk_image *p = g->source->patches->image;
    const size_t depth = p->channels, wide = g->line_bytes / depth, y = first / p->out_width * p->stride_y - p->top;
    const size_t count = (rows / p->out_width - 1) * p->stride_y + p->kernel_height;
    const size_t left = min_size(p->left, wide), inside = min_size(p->width, wide - left);
    const uint8_t flip = g->a_shift ? 0x80 : 0, pad = p->pad ^ flip;
    char *to = block->rows;
    for (size_t i = 0; i < count; i++, to += g->line_bytes) {
        const int is_inside = y + i < p->height;
        memset(to, pad, is_inside ? left * depth : g->line_bytes);
        if (!is_inside) continue;
        g->b->gemm8->gemm8_pack_row(p->codes + (y + i) * p->width * depth, inside * depth, inside * depth, flip,
                                    to + left * depth);
        memset(to + (left + inside) * depth, pad, (wide - left - inside) * depth);
    }
}

static int needs_description(const product *g) { return g->source->zero_point_per_row || g->b_zero; }

/* Rows of codes as the tile wants them: in one go where they follow each other on both sides, and are not so long that
 * signals would wait. */
static void pack_codes(const product *g, row_block *block, size_t first, size_t rows)
{
    const qk_gemm8_kernels *k = g->b->gemm8;
    const size_t depth = g->b->k;
    const uint8_t flip = g->a_shift ? 0x80 : 0;
    const int dense =
        g->source->row_stride == (ptrdiff_t)depth && g->lda == depth * (size_t)k->a_bytes && depth <= QK_STRETCH;
    if (dense)
        k->gemm8_pack_row((const uint8_t *)row_of(g->source, first), rows * depth, rows * depth, flip, block->rows);
    if (dense && !needs_description(g)) return;
    for (size_t i = 0; i < rows && !qk_stopped_at_long(depth); i++) {
        const uint8_t *a = (const uint8_t *)row_of(g->source, first + i);
        if (!dense) k->gemm8_pack_row(a, depth, g->b->k_pad, flip, block->rows + i * g->lda);
        describe_row(g, block, i, a, zero_of_codes(g->source, first + i), flip);
    }
}

/* Row i of floats at x, number `which` of a group; returns 0 if a value is not finite. */
static int quantize_row(const product *g, row_block *block, size_t i, const float *x, const qk_row_group *group,
                        size_t which)
{
    const qk_gemm8_kernels *k = g->b->gemm8;
    char *to = block->rows + i * g->lda;
    uint8_t *q = k->a_bytes == 1 ? (uint8_t *)to : (uint8_t *)block + g->spare_at; /* before they are widened */
    qk_row_scale row;
    if (!qk_quantize_of_group(&g->quantizer, group, which, x, q, &row)) return 0;
    block->scale[i] = row.scale, block->wide_scale[i] = row.wide;
    block->any_wide |= row.wide != 0;
    if (k->a_bytes == 1)
        memset(q + g->b->k, 0, g->b->k_pad - g->b->k);
    else
        k->gemm8_pack_row(q, g->b->k, g->b->k_pad, 0, to);
    describe_row(g, block, i, q, row.zero_point, 0);
    return 1;
}

/* Rows as the tile wants them, of floats, quantized on the way, as many together as stay in the L1 cache. Returns 0 if
 * a value is not finite. */
static int pack_floats(const product *g, row_block *block, size_t first, size_t rows)
{
    const size_t fit = GROUP_BYTES / (g->b->k * sizeof(float) + 1), together = fit < 2 ? 2 : min_size(fit, QK_TOGETHER);
    qk_row_group group;
    for (size_t i = 0, count; i < rows && !qk_stopped_at_long(g->b->k); i += count) {
        count = min_size(rows - i, together);
        qk_plan_group(&g->quantizer, (const float *)row_of(g->source, first + i), g->source->row_stride, count, &group);
        for (size_t j = 0; j < count; j++)
            if (!quantize_row(g, block, i + j, (const float *)row_of(g->source, first + i + j), &group, j)) return 0;
    }
    return 1;
}

/* Rows that stay in place. */
static void describe_rows(const product *g, row_block *block, size_t first, size_t rows)
{
    for (size_t i = 0; i < rows && !qk_stopped_at_long(g->b->k); i++)
        describe_row(g, block, i, (const uint8_t *)row_of(g->source, first + i), zero_of_codes(g->source, first + i),
                     g->a_shift ? 0x80 : 0);
}

/* The scale of codes that become floats is that of each row. */
static void scale_codes(const product *g, row_block *block, size_t rows)
{
    const float scale = g->source->scale;
    block->any_wide = !qk_is_ordinary(&g->quantizer.factors, scale);
    for (size_t i = 0; i < rows; i++) block->scale[i] = scale, block->wide_scale[i] = block->any_wide ? scale : 0;
}

int qk_take_rows(const void *context, void *memory, size_t first, size_t rows)
{
    const product *g = context;
    row_block *block = memory;
    block->any_wide = 0;
    if (g->epilogue->type == QK_TO_FLOAT && g->source->type != QK_FLOATS) scale_codes(g, block, rows);
    if (g->in_place) {
        block->a = row_of(g->source, first);
        if (needs_description(g)) describe_rows(g, block, first, rows);
        return 1;
    }
    block->a = block->rows;
    if (g->source->type == QK_FLOATS) return pack_floats(g, block, first, rows);
    if (g->window.lines)
        pad_lines(g, block, first, rows);
    else if (g->source->patches)
        gather_patches(g, block, first, rows);
    else
        pack_codes(g, block, first, rows);
    return 1;
}

/* Rows of a tile of floats, some of which are wide: `wide` are their scales. */
static QK_NOINLINE void store_rows_apart(const product *g, const double *wide, int32_t *acc, const qk_tile *t)
{
    const qk_gemm8_kernels *k = g->b->gemm8;
    double sums[MAX_NR];
    for (int i = 0; i < t->rows; i++, acc += k->nr) {
        const qk_tile row = qk_row_of_tile(t, i);
        if (!wide[i]) {
            k->tile_to_float(acc, &row);
            continue;
        }
        for (int j = 0; j < t->cols; j++) sums[j] = qk_sum_of(acc, &row, j) * wide[i] * row.col_scale[j];
        qk_finish_row(g->b->kernels, sums, &row);
    }
}

/* Codes of columns some of which leave float32: those replace what the kernel makes of them. */
static QK_NOINLINE void store_columns_apart(const product *g, size_t col, int32_t *acc, const qk_tile *t)
{
    const qk_gemm8_kernels *k = g->b->gemm8;
    const double *scale = g->epilogue->wide_scale + col, *bias = g->epilogue->wide_bias + col;
    double values[MAX_MR * MAX_NR];
    int which[MAX_NR], n = 0;
    for (int j = 0; j < t->cols; j++)
        if (scale[j]) which[n++] = j;
    for (int i = 0; i < t->rows; i++) {
        const qk_tile row = qk_row_of_tile(t, i);
        for (int j = 0; j < n; j++)
            values[i * n + j] = qk_sum_of(acc + i * k->nr, &row, which[j]) * scale[which[j]] + bias[which[j]];
    }
    k->tile_to_codes(acc, t);
    for (int i = 0; i < t->rows; i++) {
        uint8_t codes[MAX_NR], *dst = (uint8_t *)t->dst + (size_t)i * t->row_stride;
        qk_finish_codes(g->b->kernels, values + i * n, n, t, codes);
        for (int j = 0; j < n; j++) dst[which[j]] = codes[j];
    }
}

qk_requant qk_requant_of(const qk_epilogue *epilogue)
{
    qk_requant r = epilogue->requant;
    if (epilogue->activation == QK_RELU && r.qmin < r.zero_point)
        r.qmin = r.zero_point < r.qmax ? r.zero_point : r.qmax;
    return r;
}

int qk_is_plain(const qk_epilogue *epilogue, size_t n, int64_t largest)
{
    const float *multiplier = epilogue->requant.multiplier, *bias = epilogue->float_bias;
    const int32_t *int_bias = epilogue->int_bias;
    int other = 0;
    if (epilogue->type != QK_TO_CODES || epilogue->requant.rounding != QK_HALF_EVEN || epilogue->activation > QK_RELU)
        return 0;
    for (size_t i = 0; i < n; i++) {
        const float size = (float)largest + (int_bias ? fabsf((float)int_bias[i]) : 0);
        other |= (!(multiplier[i] < 1) & !(multiplier[i] * size < 0x1p30f)) | (bias[i] != 0);
    }
    return !other && !epilogue->wide_scale;
}

/* What all tiles have in common; qk_move_to_panel and qk_store_tile add the rest. */
qk_tile qk_tile_of_product(const product *g)
{
    const qk_epilogue *epilogue = g->epilogue;
    qk_tile t = {
        .bias = qk_no_bias,
        .activation = epilogue->activation,
        .bounded = epilogue->bounded,
        .lo = epilogue->lo,
        .hi = epilogue->hi,
        .requant = &g->requant,
        .row_stride = epilogue->row_stride,
        .plain = g->plain,
    };
    if (epilogue->type == QK_TO_CODES && epilogue->activation > QK_RELU)
        t.out = qk_affine_of(epilogue->out_scale, g->requant.zero_point, g->requant.qmin, g->requant.qmax,
                             g->requant.rounding);
    return t;
}

void qk_move_to_panel(const product *g, size_t col, qk_tile *t)
{
    const qk_epilogue *epilogue = g->epilogue;
    t->cols = (int)min_size(g->b->n - col, (size_t)g->b->gemm8->nr);
    t->colsum = g->b->colsum + col;
    if (g->b_zero) t->col_zero = g->b_zero + col;
    if (epilogue->float_bias) t->bias = epilogue->float_bias + col;
    if (epilogue->col_scale) t->col_scale = epilogue->col_scale + col;
    if (epilogue->requant.multiplier) t->multiplier = epilogue->requant.multiplier + col;
    if (epilogue->requant.mantissa)
        t->mantissa = epilogue->requant.mantissa + col, t->shift = epilogue->requant.shift + col;
}

/* Asks for the first bytes of each page that begins in a panel. */
static void ask_for_pages(const int8_t *panel, size_t bytes)
{
    for (size_t page = -(uintptr_t)panel % PAGE; page < bytes; page += PAGE)
        for (size_t i = 0; i < AHEAD; i += 64) __builtin_prefetch(panel + page + i, 0, 2);
}

static char *result_at(const product *g, size_t row, size_t col)
{
    const qk_epilogue *epilogue = g->epilogue;
    return (char *)epilogue->out + row * epilogue->row_stride + col * (epilogue->type == QK_TO_CODES ? 1 : 4);
}

void qk_store_tile(const product *g, const row_block *block, size_t row, size_t row_in_block, size_t rows, size_t col,
                   int32_t *acc, qk_tile *t)
{
    const qk_epilogue *epilogue = g->epilogue;
    const qk_gemm8_kernels *k = g->b->gemm8;
    const int floats = g->source->type == QK_FLOATS;
    t->rows = (int)rows;
    t->row_zero = floats || g->source->zero_point_per_row ? block->zero + row_in_block : NULL;
    t->row_term = g->b_zero ? block->term + row_in_block : NULL;
    t->row_scale = epilogue->type == QK_TO_FLOAT ? block->scale + row_in_block : NULL;
    t->dst = result_at(g, row, col);
    if (epilogue->residual) qk_tile_residual(t, epilogue, row, col);
    if (epilogue->type == QK_TO_INT32)
        k->tile_to_int32(acc, t);
    else if (epilogue->type == QK_TO_FLOAT && block->any_wide)
        store_rows_apart(g, block->wide_scale + row_in_block, acc, t);
    else if (epilogue->type == QK_TO_FLOAT)
        k->tile_to_float(acc, t);
    else if (epilogue->wide_scale)
        store_columns_apart(g, col, acc, t);
    else
        k->tile_to_codes(acc, t);
}

/* Whether signals would wait for a tile. Panels of small weights cannot be parted, but are fast. */
static int is_long(const qk_gemm8_weights *b)
{
    return b->steps > QK_STRETCH / (size_t)b->gemm8->kr && b->gemm8 == b->kernels->gemm8;
}

/* The sums of such a tile, a stretch of k after the other. */
static QK_NOINLINE void sum_stretches(const product *g, size_t rows, const char *a, const int8_t *panel,
                                      const int32_t *init, int32_t *c, size_t ldc)
{
    const qk_gemm8_kernels *k = g->b->gemm8;
    const size_t most = QK_STRETCH / (size_t)k->kr, nr = (size_t)k->nr;
    static const int32_t zeros[MAX_NR];
    int32_t part[MAX_MR * MAX_NR] __attribute__((aligned(64)));
    for (size_t i = 0; i < rows; i++) memcpy(c + i * ldc, init, nr * sizeof *c);
    for (size_t left = g->b->steps, steps; left && !qk_stopped(); left -= steps) {
        steps = min_size(left, most);
        if (k->gemm8_begin) k->gemm8_begin(rows);
        k->gemm8_tile((int)rows, steps, a, g->lda, panel, zeros, part, nr);
        if (k->gemm8_end) k->gemm8_end(rows);
        for (size_t i = 0; i < rows; i++)
            for (size_t j = 0; j < nr; j++)
                c[i * ldc + j] = (int32_t)((uint32_t)c[i * ldc + j] + (uint32_t)part[i * nr + j]);
        a += steps * (size_t)(k->kr * k->a_bytes), panel += steps * nr * (size_t)k->kr;
    }
}

/* The sums of a tile: of `rows` rows at `a` and of a panel, which is widened if the product has a place for that. */
static QK_INLINE void sum_tile(const product *g, size_t rows, const char *a, const void *panel, const int32_t *init,
                               int32_t *c, size_t ldc, const qk_ahead *ahead)
{
    const qk_gemm8_kernels *k = g->b->gemm8;
    const size_t left = g->b->n - (size_t)(init - g->init); /* columns */
    if (is_long(g->b))
        sum_stretches(g, rows, a, panel, init, c, ldc);
    else if (g->wide_at)
        k->gemm8_wide_tile((int)rows, g->b->steps, a, g->lda, panel, init, c, ldc);
    else if (k->gemm8_half_tile && left <= (size_t)k->nr / 2)
        k->gemm8_half_tile((int)rows, g->b->steps, a, g->lda, panel, init, c, ldc);
    else if (k->gemm8_far_tile && rows <= FAR_ROWS && g->b->count * g->b->panel_bytes > FAR_WEIGHTS)
        k->gemm8_far_tile((int)rows, g->b->steps, a, g->lda, panel, init, c, ldc);
    else if (ahead->step && rows >= (size_t)k->ask_rows)
        k->gemm8_whole_tile((int)rows, g->b->steps, a, g->lda, panel, init, c, ldc, ahead);
    else
        k->gemm8_tile((int)rows, g->b->steps, a, g->lda, panel, init, c, ldc);
}

/* Whether the rest of the columns, from `col` on, are so few that their sums become codes in registers. */
static int are_half_codes(const product *g, size_t col)
{
    const qk_gemm8_kernels *k = g->b->gemm8;
    return k->gemm8_half_codes && g->plain && g->b->n - col <= (size_t)k->nr / 2 && !g->b_zero &&
        g->source->type != QK_FLOATS && !g->source->zero_point_per_row && !is_long(g->b);
}

/* What is kept of a panel, and of each. */
static const int8_t *kept_panel(const qk_gemm8_weights *b, size_t panel)
{
    return b->folded.block ? (const int8_t *)b->folded.panels + panel * b->folded.panel_bytes
                           : b->panels + panel * b->panel_bytes;
}
static size_t kept_bytes(const qk_gemm8_weights *b) { return b->folded.block ? b->folded.panel_bytes : b->panel_bytes; }

/* While a panel is multiplied with the rows of a block, their tiles ask for the next, each for a part of it: it may
 * come from memory. The last asks for the first, with which the next block begins. Of rows that are a single tile there
 * is no time for that. */
static void multiply(const void *context, void *memory, size_t first, size_t rows, size_t begin, size_t end)
{
    const product *g = context;
    const row_block *block = memory;
    const qk_gemm8_weights *b = g->b;
    const qk_gemm8_kernels *k = b->gemm8;
    const size_t nr = (size_t)k->nr, mr = (size_t)k->mr;
    const int plain = g->epilogue->type == QK_TO_INT32 && !g->b_zero && g->source->type != QK_FLOATS &&
        !g->source->zero_point_per_row;
    int16_t *wide = g->wide_at ? (int16_t *)((char *)memory + g->wide_at) : NULL;
    int32_t acc[MAX_MR * MAX_NR] __attribute__((aligned(64)));
    qk_ahead ahead = {.row_stride = g->epilogue->row_stride};
    if (k->gemm8_whole_tile && rows > (size_t)k->ask_rows && b->k_pad >= LONG)
        ahead.step = ceil_div(kept_bytes(b), b->steps * ceil_div(rows, mr));
    qk_tile t;
    if (!plain || b->n < b->n_pad) t = qk_tile_of_product(g);
    const int once = k->gemm8_begin && !is_long(b);
    if (once) k->gemm8_begin(rows);
    for (size_t panel = begin; panel < end; panel++) {
        const int8_t *codes = g->unfold_at ? qk_unfold(g, memory, panel) : kept_panel(b, panel);
        const size_t col = panel * nr;
        ahead.read = kept_panel(b, panel + 1 < b->count ? panel + 1 : 0);
        if (rows <= mr && !ahead.step) ask_for_pages(ahead.read, kept_bytes(b));
        if (wide) k->gemm8_widen_panel(codes, b->steps, wide);
        const int direct = plain && col + nr <= b->n, half = are_half_codes(g, col);
        const size_t ldc = direct ? ahead.row_stride / sizeof *acc : nr;
        if (!direct) qk_move_to_panel(g, col, &t);
        for (size_t i = 0; i < rows; i += mr, ahead.read += ahead.step * b->steps) {
            const size_t count = min_size(rows - i, mr);
            ahead.write = result_at(g, first + i, col);
            if (half) {
                t.rows = (int)count, t.dst = ahead.write;
                k->gemm8_half_codes(b->steps, block->a + i * g->lda, g->lda, codes, g->init + col, &t);
                continue;
            }
            sum_tile(g, count, block->a + i * g->lda, wide ? (const void *)wide : codes, g->init + col,
                     direct ? (int32_t *)ahead.write : acc, ldc, &ahead);
            if (!direct) qk_store_tile(g, block, first + i, i, count, col, acc, &t);
        }
    }
    if (once) k->gemm8_end(rows);
}

/* The same of windows in place: a tile has some of a line of the result. */
static void multiply_windows(const void *context, void *memory, size_t first, size_t rows, size_t begin, size_t end)
{
    const product *g = context;
    const row_block *block = memory;
    const qk_image *p = g->source->patches->image;
    const qk_gemm8_weights *b = g->b;
    const qk_gemm8_kernels *k = b->gemm8;
    const size_t wide = p->out_width, tiles = ceil_div(wide, (size_t)k->mr), lda = p->stride_x * p->channels;
    int32_t acc[MAX_MR * MAX_NR] __attribute__((aligned(64)));
    qk_ahead ahead = {.row_stride = g->epilogue->row_stride};
    if (b->k_pad >= LONG) ahead.step = ceil_div(b->panel_bytes, b->steps * tiles * (rows / wide));
    qk_tile t = qk_tile_of_product(g);
    for (size_t panel = begin; panel < end; panel++) {
        const int8_t *codes = b->panels + panel * b->panel_bytes;
        const size_t col = panel * (size_t)k->nr;
        ahead.read = panel + 1 < b->count ? codes + b->panel_bytes : b->panels;
        qk_move_to_panel(g, col, &t);
        for (size_t i = 0; i < tiles * (rows / wide); i++, ahead.read += ahead.step * b->steps) {
            const size_t line = i / tiles, x = wide * (i % tiles) / tiles, count = wide * (i % tiles + 1) / tiles - x;
            const char *a = block->a + line * p->stride_y * g->line_bytes + x * lda;
            ahead.write = result_at(g, first + line * wide + x, col);
            k->gemm8_window_tile((int)count, &g->window, a, lda, codes, g->init + col, acc, &ahead);
            qk_store_tile(g, block, first + line * wide + x, line * wide + x, count, col, acc, &t);
        }
    }
}

/* ---- a single column: of a tile all others would be computed in vain ---- */

enum { COLUMN_ROWS = 32 }; /* for as many it pays to lay it out */

typedef struct {
    const qk_gemm8_weights *b;
    int16_t *wide;
    int8_t *codes;
} column_job;

static void lay_out_column(void *context, size_t begin, size_t end)
{
    const column_job *job = context;
    const qk_gemm8_weights *b = job->b;
    for (size_t first = begin * QK_UNPACK_ROWS; first < min_size(end * QK_UNPACK_ROWS, b->k); first += QK_UNPACK_ROWS) {
        b->gemm8->gemm8_unpack_panel(b->panels, b->k, first, 1, 0, (uint8_t *)job->codes, 1);
        for (size_t i = first; i < min_size(first + QK_UNPACK_ROWS, b->k); i++) job->wide[i] = job->codes[i];
    }
}

/* Lays out the column of b', as bytes and as int16. Returns 1, 0 if memory ran out, or QK_INTERRUPTED. */
static int take_column(product *g)
{
    const qk_gemm8_weights *b = g->b;
    int16_t *wide = qk_obtain(qk_times(b->k_pad, sizeof *wide + 1));
    if (!wide) return 0;
    column_job job = {b, wide, (int8_t *)(wide + b->k_pad)};
    g->column = (qk_column){wide, job.codes};
    const int status = qk_parallel_for(ceil_div(b->k, QK_UNPACK_ROWS), 0.5 * (double)b->k, lay_out_column, &job);
    if (status) qk_release(wide);
    return status ? status : 1;
}

/* What a tile has for its columns, where all are alike. */
typedef union {
    float real[MAX_NR];
    int32_t integer[MAX_NR];
} repeated;

/* The sums of some rows and their only column leave as a row of that many columns. */
static void store_column(const product *g, const row_block *block, size_t row, size_t row_in_block, qk_tile *t,
                         int32_t *acc)
{
    const qk_epilogue *epilogue = g->epilogue;
    const qk_gemm8_kernels *k = g->b->gemm8;
    const size_t size = epilogue->type == QK_TO_CODES ? 1 : 4, count = (size_t)t->cols;
    const int apart = epilogue->row_stride != size;
    float scale[MAX_NR] = {0}, residual[MAX_NR];
    repeated results;
    if (epilogue->type == QK_TO_FLOAT) t->col_scale = memcpy(scale, block->scale + row_in_block, count * sizeof *scale);
    if (epilogue->residual) {
        qk_tile_residual(t, epilogue, row, 0);
        for (size_t j = 0; j < count; j++)
            residual[j] = *(const float *)((const char *)t->residual + j * t->residual_stride);
        t->residual = residual;
    }
    t->dst = apart ? (void *)&results : result_at(g, row, 0);
    if (epilogue->type == QK_TO_INT32)
        k->tile_to_int32(acc, t);
    else if (epilogue->type == QK_TO_FLOAT)
        k->tile_to_float(acc, t);
    else
        k->tile_to_codes(acc, t);
    for (size_t j = 0; apart && j < count; j++) memcpy(result_at(g, row + j, 0), (char *)&results + j * size, size);
}

/* Takes from sums what zero points add to them. */
static void correct_column(const product *g, const row_block *block, size_t rows, int32_t *sums)
{
    const uint32_t colsum = (uint32_t)g->b->colsum[0], b_zero = g->b_zero ? (uint32_t)g->b_zero[0] : 0;
    if (g->source->type == QK_FLOATS || g->source->zero_point_per_row)
        for (size_t i = 0; i < rows; i++) sums[i] = (int32_t)((uint32_t)sums[i] - (uint32_t)block->zero[i] * colsum);
    for (size_t i = 0; b_zero && i < rows; i++)
        sums[i] = (int32_t)((uint32_t)sums[i] - (uint32_t)block->term[i] * b_zero);
}

/* As many rows of sums at a time as a tile has columns. */
static void store_columns(const product *g, const row_block *block, size_t first, size_t rows, int32_t *sums)
{
    repeated bias, scale, multiplier, mantissa, shift;
    qk_tile t = qk_tile_of_product(g);
    qk_move_to_panel(g, 0, &t);
    t.rows = 1;
    t.bias = qk_repeat(t.bias, 1, MAX_NR, &bias), t.multiplier = qk_repeat(t.multiplier, 1, MAX_NR, &multiplier);
    t.mantissa = qk_repeat(t.mantissa, 1, MAX_NR, &mantissa), t.shift = qk_repeat(t.shift, 1, MAX_NR, &shift);
    t.col_scale = qk_repeat(t.col_scale, 1, MAX_NR, &scale);
    if (g->epilogue->type == QK_TO_FLOAT) t.row_scale = t.col_scale; /* the two are multiplied */
    const size_t whole = round_up(rows, (size_t)g->b->gemm8->nr);
    for (size_t i = rows; i < whole && i < MAX_ROWS; i++) sums[i] = 0; /* of the last tile, results that nobody reads */
    for (size_t i = 0; i < rows; i += (size_t)t.cols) {
        t.cols = (int)min_size(rows - i, (size_t)g->b->gemm8->nr);
        store_column(g, block, first + i, i, &t, sums + i);
    }
}

/* The same if some are wide, which is rare: row by row, as a tile that has a column. */
static void store_sums_apart(const product *g, const row_block *block, size_t first, size_t rows, const int32_t *sums)
{
    qk_tile t = qk_tile_of_product(g);
    qk_move_to_panel(g, 0, &t);
    for (size_t i = 0; i < rows; i++) {
        int32_t sum[MAX_NR] __attribute__((aligned(64))) = {sums[i]};
        qk_store_tile(g, block, first + i, i, 1, 0, sum, &t);
    }
}

/* The sums of rows, a stretch of k after the other. */
static void sum_column(const product *g, const row_block *block, size_t rows, int32_t *sums)
{
    const size_t k = g->b->k;
    const int bytes = g->in_place ? 1 : g->b->gemm8->a_bytes;
    qk_few_rows few = {block->a, g->lda, rows, bytes, g->in_place && g->a_shift ? 0x80 : 0};
    qk_column column = g->column;
    int32_t part[MAX_ROWS] __attribute__((aligned(64)));
    for (size_t i = 0; i < rows; i++) sums[i] = g->init[0];
    for (size_t left = k, n; left && !qk_stopped_at_long(k); left -= n) {
        n = min_size(left, QK_STRETCH);
        g->b->gemm8->column_sums(&few, n, &column, part);
        for (size_t i = 0; i < rows; i++) sums[i] = (int32_t)((uint32_t)sums[i] + (uint32_t)part[i]);
        few.a = (const char *)few.a + n * (size_t)bytes, column.wide += n, column.codes += n;
    }
}

static void multiply_column(const void *context, void *memory, size_t first, size_t rows, size_t begin, size_t end)
{
    const product *g = context;
    const row_block *block = memory;
    const qk_epilogue *epilogue = g->epilogue;
    const int direct = epilogue->type == QK_TO_INT32 && epilogue->row_stride == sizeof(int32_t);
    int32_t own[MAX_ROWS] __attribute__((aligned(64)));
    int32_t *sums = direct ? (int32_t *)result_at(g, first, 0) : own;
    if (begin == end) return;
    sum_column(g, block, rows, sums);
    if (block->any_wide || epilogue->wide_scale) {
        store_sums_apart(g, block, first, rows, sums);
        return;
    }
    correct_column(g, block, rows, sums);
    if (!direct) store_columns(g, block, first, rows, sums);
}

/* Whether windows can be read where they lie: overlapping rows of long lines, which are whole steps. */
static int are_in_place(const product *g)
{
    const qk_patches *of = g->source->patches;
    const qk_gemm8_kernels *k = g->b->gemm8;
    if (!of || !k->gemm8_window_tile || k->a_bytes != 1 || g->b_zero || g->b->n <= (size_t)k->nr / 2 || is_long(g->b))
        return 0;
    const qk_image *p = of->image;
    return p->count == 1 && of->depth == p->channels && p->dilation_x == 1 && p->dilation_y == 1 &&
        p->kernel_width > p->stride_x && p->kernel_height >= p->stride_y &&
        p->kernel_width * of->depth % (size_t)k->kr == 0 && p->out_width >= LONG_LINE && p->out_width <= MAX_ROWS;
}

/* Divides the lines of the result. */
static void lay_out_lines(product *g)
{
    const qk_image *p = g->source->patches->image;
    const size_t depth = p->channels, line = p->kernel_width * depth, kr = (size_t)g->b->gemm8->kr;
    walk *w = &g->walk;
    g->line_bytes = ((p->out_width - 1) * p->stride_x + p->kernel_width) * depth;
    g->window = (qk_window){p->kernel_height, line / kr, g->line_bytes - line};
    w->block_bytes = PATCH_BYTES, w->multiply = multiply_windows;
    qk_share(w, p->stride_y * g->line_bytes / p->out_width, g->b->gemm8->mr);
    const size_t most = w->block_rows < p->out_width ? 1 : w->block_rows / p->out_width;
    const size_t lines = ceil_div(p->out_height, ceil_div(p->out_height, most));
    qk_share_blocks(w, lines * p->out_width);
    w->bytes = sizeof(row_block) + ((lines - 1) * p->stride_y + p->kernel_height) * g->line_bytes;
    w->bytes = round_up(w->bytes + 64, 64);
}

/* Whether rows of codes are read where they lie. Those that share sets of the L1 cache are copied apart, if a copy
 * serves enough panels: else no line of them is there for its second step. */
static int stay_in_place(const product *g, int column)
{
    const qk_gemm8_weights *b = g->b;
    if (g->source->patches || g->source->type == QK_FLOATS) return 0;
    if (column) return 1;
    if (g->source->type != QK_CODES_U8 || b->gemm8->a_bytes != 1 || b->k != b->k_pad) return 0;
    return g->source->m < MANY_ROWS || b->count < MANY_PANELS || !qk_share_sets((size_t)g->source->row_stride);
}

/* Divides the rows, and says where things lie in the memory of a task. */
static void lay_out(product *g)
{
    const qk_gemm8_weights *b = g->b;
    const qk_gemm8_kernels *k = b->gemm8;
    if (are_in_place(g)) {
        lay_out_lines(g);
        return;
    }
    const size_t row_bytes = b->k_pad * (size_t)k->a_bytes, wide = qk_times(b->k_pad, (size_t)k->nr * sizeof(int16_t));
    const size_t whole = g->source->type == QK_FLOATS ? round_up(row_bytes, 64) : row_bytes;
    const size_t lda = g->source->m < MANY_ROWS ? whole : qk_apart(whole);
    const size_t patches = b->count * b->panel_bytes > BIG_WEIGHTS ? MANY_PATCH_BYTES : PATCH_BYTES;
    g->walk.block_bytes = g->source->patches ? patches : (size_t)k->block_bytes;
    if (b->folded.block)
        qk_share_folded(g, row_bytes);
    else
        qk_share(&g->walk, row_bytes, k->mr);
    g->lda = g->in_place ? (size_t)g->source->row_stride : lda;
    g->walk.bytes = sizeof(row_block);
    if (!g->in_place) {
        g->spare_at = qk_plus(g->walk.bytes, round_up(qk_times(lda, g->walk.block_rows), 64));
        g->walk.bytes = qk_plus(g->spare_at, round_up(b->k_pad, 64) + 64);
    }
    if (!b->folded.block && k->gemm8_widen_panel && g->walk.block_rows >= WIDE_ROWS && !is_long(b) && !g->column.wide) {
        g->wide_at = g->walk.bytes;
        g->walk.bytes = qk_plus(g->wide_at, wide);
    }
    if (b->folded.block) qk_lay_out_folded(g);
}

/* What sums start from: a bias, or NULL, less what the zero point that rows share adds to each column. */
static void fill_starts(const qk_gemm8_kernels *k, const qk_rows *source, const int32_t *colsum,
                        const int32_t *int_bias, size_t n, int32_t *starts)
{
    const int one_zero = source->type != QK_FLOATS && !source->zero_point_per_row;
    const uint32_t shift = source->type == QK_CODES_I8 ? 128 : 0,
                   zero = one_zero ? shift + (uint32_t)(source->zero_point ? source->zero_point[0] : 0) : 0;
    k->start_sums(starts, int_bias, colsum, zero, n);
}

/* Zero points of the stored codes. Returns whether one of them is not 0. */
static int fill_zeros(const qk_gemm8_weights *b, const int32_t *b_zero, int32_t *zeros)
{
    uint32_t any = 0;
    if (!b_zero && !b->flipped) return 0;
    for (size_t j = 0; j < b->n_pad; j++) {
        zeros[j] = (b_zero ? b_zero[j] : 0) - (b->flipped ? 128 : 0);
        if (j < b->n) any |= (uint32_t)zeros[j];
    }
    return any != 0;
}

/* Column arrays that this product alone needs, unless they were made before. */
static void fill_columns(product *g, int32_t *columns)
{
    const qk_epilogue *epilogue = g->epilogue;
    const size_t n_pad = g->b->n_pad;
    g->init = epilogue->starts, g->plain = epilogue->plain;
    if (g->init) return;
    fill_starts(g->b->gemm8, g->source, g->b->colsum, epilogue->int_bias, n_pad, columns);
    g->init = columns, g->plain = qk_is_plain(epilogue, g->b->n, INT32_MAX);
    if (fill_zeros(g->b, epilogue->b_zero, columns + n_pad)) g->b_zero = columns + n_pad;
}

int qk_prepare(const qk_rows *source, const qk_weights *w, qk_epilogue *epilogue, int64_t largest, int32_t *columns)
{
    QK_DEFAULT_MODE;
    int32_t *multiplier = columns + w->n_pad;
    const int depthwise = w->family == QK_DEPTHWISE;
    if (!depthwise && fill_zeros(&w->gemm8, epilogue->b_zero, columns)) return 0;
    const int32_t *colsum = depthwise ? w->depthwise.colsum : w->gemm8.colsum;
    const qk_gemm8_kernels *k = depthwise ? w->depthwise.kernels->gemm8 : w->gemm8.gemm8;
    fill_starts(k, source, colsum, epilogue->int_bias, w->n_pad, depthwise ? multiplier : columns);
    if (depthwise) qk_order_channels(&w->depthwise, multiplier, columns);
    epilogue->starts = columns, epilogue->plain = qk_is_plain(epilogue, w->n, largest);
    epilogue->int_bias = NULL;
    if (!epilogue->plain) return 1;
    if (depthwise && w->depthwise.kernels->conv->depthwise_codes)
        qk_order_channels(&w->depthwise, (const int32_t *)epilogue->requant.multiplier, multiplier);
    else
        memcpy(multiplier, epilogue->requant.multiplier, w->n_pad * sizeof *multiplier);
    epilogue->requant.multiplier = (const float *)multiplier;
    epilogue->col_scale = epilogue->float_bias = NULL;
    return 1;
}

int qk_gemm8(const qk_rows *source, const qk_gemm8_weights *b, const qk_epilogue *epilogue)
{
    QK_DEFAULT_MODE;
    if (source->m == 0 || b->n == 0) return 1;
    product g = {.walk = {.m = source->m, .take_rows = qk_take_rows, .multiply = multiply},
                 .source = source,
                 .b = b,
                 .epilogue = epilogue,
                 .requant = qk_requant_of(epilogue)};
    g.a_shift = source->type == QK_CODES_I8 ? 128 : 0;
    const int column = b->n == 1 && source->m >= COLUMN_ROWS && !b->folded.block ? take_column(&g) : 0;
    if (column < 0) return column;
    if (column) g.walk.multiply = multiply_column;
    g.in_place = stay_in_place(&g, column);
    if (epilogue->type == QK_TO_FLOAT) {
        const qk_factors factors = {epilogue->least_scale, epilogue->most_scale, 0x1p31,
                                    qk_largest_bias(b->kernels, epilogue, b->n)};
        g.quantizer = (qk_row_quantizer){b->kernels, b->k, 0, 255, 0, 1, factors};
    }

    int32_t small[2 * SMALL_COLUMNS];
    int32_t *columns =
        b->n_pad <= SMALL_COLUMNS || epilogue->starts ? small : qk_obtain(qk_times(b->n_pad, 2 * sizeof *columns));
    if (!columns) return -1;
    fill_columns(&g, columns);
    g.walk.panels = b->count;
    g.walk.work = qk_product_work(source->m, b->k, b->n, 128);
    lay_out(&g);
    const int status = qk_walk(&g.walk);
    qk_release((void *)g.column.wide);
    if (columns != small) qk_release(columns);
    return status;
}

/* ---- many products ---- */

typedef struct {
    const qk_batch *batch;
    int failure;
} batch_job;

/* Where the operands of the product with this number begin. */
typedef struct {
    ptrdiff_t a, b, a_zero, b_zero;
} offsets;

static offsets offsets_of(const qk_batch *p, size_t number)
{
    offsets at = {0};
    for (int axis = p->axes - 1; axis >= 0; axis--) {
        const ptrdiff_t index = (ptrdiff_t)(number % p->shape[axis]);
        number /= p->shape[axis];
        at.a += index * p->a_step[axis], at.b += index * p->b_step[axis];
        at.a_zero += index * p->a_zero_step[axis], at.b_zero += index * p->b_zero_step[axis];
    }
    return at;
}

static void run_products(void *context, size_t begin, size_t end)
{
    batch_job *job = context;
    const qk_batch *p = job->batch;
    qk_gemm8_weights packed;
    qk_gemm8_init(&packed, qk_active(), NULL, p->k, p->n, p->b_unsigned);
    const size_t panels = round_up(qk_gemm8_bytes(&packed), 64);
    char *memory = qk_obtain(qk_plus(panels, qk_times(packed.n_pad, 2 * sizeof(int32_t))));
    if (!memory) {
        __atomic_store_n(&job->failure, -1, __ATOMIC_RELAXED);
        return;
    }
    packed.panels = (int8_t *)memory, packed.colsum = (int32_t *)(memory + panels);
    int32_t *b_zero = packed.colsum + packed.n_pad;
    memset(b_zero, 0, packed.n_pad * sizeof *b_zero);
    const char *taken = NULL; /* the b that is packed: neighbours may share it */
    for (size_t number = begin; number < end; number++) {
        const offsets at = offsets_of(p, number);
        const char *b = (const char *)p->b + at.b;
        qk_rows source = p->source;
        source.a = (const char *)source.a + at.a;
        if (source.zero_point) source.zero_point += at.a_zero;
        if (p->b_zero) memcpy(b_zero, p->b_zero + at.b_zero, p->n * sizeof *b_zero);
        const qk_epilogue epilogue = {.type = QK_TO_INT32,
                                      .out = p->out + number * source.m * p->n,
                                      .row_stride = p->n * sizeof(int32_t),
                                      .b_zero = p->b_zero ? b_zero : NULL};
        int64_t status = b == taken ? 0 : qk_gemm8_pack(&packed, b, p->b_row_stride, p->b_col_stride, NULL);
        taken = b;
        if (status >= 0) status = qk_gemm8(&source, &packed, &epilogue);
        if (status < 0) __atomic_store_n(&job->failure, (int)status, __ATOMIC_RELAXED);
        if (status < 0) break;
    }
    qk_release(memory);
}

/* Threads share the products, or each of them where they are few. */
int qk_gemm8_batch(const qk_batch *p)
{
    QK_DEFAULT_MODE;
    if (p->source.m == 0 || p->n == 0) return 1;
    batch_job job = {p, 0};
    size_t count = 1;
    for (int axis = 0; axis < p->axes; axis++) count *= p->shape[axis];
    const double packing = 0.5 * (double)p->k * (double)p->n;
    const double work = (double)count * (packing + qk_product_work(p->source.m, p->k, p->n, 128));
    int status = 0;
    if (count < (size_t)qk_threads_for(SIZE_MAX, work))
        run_products(&job, 0, count);
    else
        status = qk_parallel_for(count, work, run_products, &job);
    return status ? status : job.failure ? job.failure : 1;
}
