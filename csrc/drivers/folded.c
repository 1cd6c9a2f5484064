/* Weights of 4 bits with integer scales, which fold to int8 (numerics 33): codes to and from floats, packing, and what
 * products by them do otherwise than gemm8.c, whose rows and results they share. */
#include <float.h>
#include <math.h>
#include <string.h>

#include "drivers/drivers.h"
#include "drivers/gemm8.h"
#include "kernels/kernels.h"
#include "runtime/fpmode.h"
#include "runtime/parallel.h"

enum { NC = QK_GEMM4_NR, KR = QK_GEMM4_KR, FEW_SUMS = 1024 };

/* ---- codes ---- */

/* What a code is before it is scaled: itself, or itself less 8. */
static inline int middle_of(qk_dtype codes) { return codes == QK_U4 ? 8 : 0; }

static inline int fits_int8(int weight) { return weight >= -128 && weight <= 127; }

typedef struct {
    const qk_integer_scales *p;
    size_t blocks; /* of all columns */
    int32_t unfit;
} scales_job;

static int block_fits(const qk_integer_scales *p, int scale, int shift)
{
    const int lo = p->qmin - middle_of(p->codes), hi = p->qmax - middle_of(p->codes);
    return scale >= 1 && scale <= 16 && shift >= -8 && shift <= 7 && fits_int8(scale * lo + 3 * shift) &&
        fits_int8(scale * hi + 3 * shift);
}

static void look_at_scales(void *context, size_t begin, size_t end)
{
    scales_job *j = context;
    const qk_integer_scales *p = j->p;
    int fit = 1;
    for (size_t i = begin; i < min_size(end, p->n) && fit; i++) fit = p->scale[i] >= FLT_MIN && p->scale[i] <= FLT_MAX;
    for (size_t i = begin; i < min_size(end, j->blocks) && fit; i++)
        fit = block_fits(p, p->block_scale[i], p->block_shift[i]);
    qk_keep_most(&j->unfit, !fit);
}

int qk_fold_fits(const qk_integer_scales *p)
{
    QK_DEFAULT_MODE;
    scales_job j = {p, qk_times(ceil_div(p->k, p->block), p->n), 0};
    const size_t items = j.blocks < p->n ? p->n : j.blocks;
    const int status = qk_parallel_for(items, 2.0 * (double)items, look_at_scales, &j);
    return status ? status : !j.unfit;
}

typedef struct {
    const qk_integer_scales *p;
    const void *from;
    void *to;
    qk_dtype type;
    qk_rounding rounding;
} elements;

static void fold_rows(void *context, size_t begin, size_t end)
{
    const elements *e = context;
    const qk_integer_scales *p = e->p;
    const int middle = middle_of(p->codes);
    for (size_t row = begin; row < end; row++) {
        const uint8_t *codes = (const uint8_t *)e->from + row * p->n;
        const uint8_t *scale = p->block_scale + row / p->block * p->n;
        const int8_t *shift = p->block_shift + row / p->block * p->n;
        int8_t *to = (int8_t *)e->to + row * p->n;
        for (size_t j = 0; j < p->n; j++)
            to[j] = (int8_t)(scale[j] * (qk_code_at(codes, p->codes, j) - middle) + 3 * shift[j]);
    }
}

int qk_fold(const uint8_t *codes, int8_t *folded, const qk_integer_scales *p)
{
    QK_DEFAULT_MODE;
    elements e = {.p = p, .from = codes, .to = folded};
    return qk_parallel_for(p->k, (double)p->k * (double)p->n, fold_rows, &e);
}

/* The nearest code to x / s, less the middle: NaN is 0. */
static inline int nearest_code(double x, double s, int scale, int shift, const qk_integer_scales *p, int half_away)
{
    const double units = x == x ? x / s : 0, code = (units - 3 * shift) / scale;
    const double lo = p->qmin - middle_of(p->codes), hi = p->qmax - middle_of(p->codes);
    const double within = code < lo ? lo : code > hi ? hi : code;
    return (int)(half_away ? round(within) : rint(within));
}

static void quantize_rows(void *context, size_t begin, size_t end)
{
    const elements *e = context;
    const qk_integer_scales *p = e->p;
    const int middle = middle_of(p->codes), half_away = e->rounding == QK_HALF_AWAY;
    for (size_t row = begin; row < end; row++) {
        const uint8_t *scale = p->block_scale + row / p->block * p->n;
        const int8_t *shift = p->block_shift + row / p->block * p->n;
        for (size_t j = 0, i = row * p->n; j < p->n; j++, i++) {
            const double x = e->type == QK_F64 ? ((const double *)e->from)[i] : ((const float *)e->from)[i];
            ((uint8_t *)e->to)[i] = (uint8_t)(nearest_code(x, p->scale[j], scale[j], shift[j], p, half_away) + middle);
        }
    }
}

int qk_quantize_folded(const void *x, qk_dtype from, uint8_t *codes, const qk_integer_scales *p, qk_rounding rounding)
{
    QK_DEFAULT_MODE;
    elements e = {p, x, codes, from, rounding};
    return qk_parallel_for(p->k, 10.0 * (double)p->k * (double)p->n, quantize_rows, &e);
}

/* ---- packing ---- */

static size_t steps_of(const qk_gemm8_weights *p, size_t block)
{
    return ceil_div(min_size(p->k - block * p->folded.block, p->folded.block), KR);
}

/* Where the codes of a block begin in a panel; those of no block: where they end. */
static size_t codes_at(const qk_gemm8_weights *p, size_t block)
{
    const size_t last = block == p->folded.blocks ? steps_of(p, block - 1) : 0;
    return ((block - (last > 0)) * steps_of(p, 0) + last) * QK_FOLDED_STEP;
}

/* Scales and shifts of a panel's blocks, which stand behind the codes of all panels. */
static uint8_t *params_of(const qk_gemm8_weights *p, size_t panel)
{
    return p->folded.panels + ceil_div(p->n, NC) * p->folded.panel_bytes + panel * p->folded.blocks * NC;
}

void qk_folded_init(qk_gemm8_weights *p, const qk_matrix *m)
{
    enum { MOST = 1024 }; /* bytes of a panel that a row takes at most: with such k no size overflows */
    const qk_kernels *kernels = qk_active();
    qk_gemm8_init(p, kernels, kernels->gemm8_folded, m->k, m->n, 0);
    p->folded =
        (qk_folded){.block = round_up(min_size(m->block, m->k ? m->k : 1), KR), .flip = m->type == QK_I4 ? 8 : 0};
    p->folded.blocks = ceil_div(m->k, p->folded.block);
    if (m->k > SIZE_MAX / MOST - MOST)
        p->folded.panel_bytes = SIZE_MAX;
    else if (p->folded.blocks)
        p->folded.panel_bytes = codes_at(p, p->folded.blocks);
    p->folded.half_scales = qk_holds_as_half(m->scale, m->n);
    p->folded.high_bytes = m->k < 1 << 16 ? 1 : 2; /* a weight's magnitude is at most 128 */
}

size_t qk_folded_bytes(const qk_gemm8_weights *p)
{
    return qk_times(ceil_div(p->n, NC), qk_plus(p->folded.panel_bytes, p->folded.blocks * NC));
}

static size_t scale_bytes(const qk_gemm8_weights *p) { return p->folded.half_scales ? 2 : 4; }

size_t qk_folded_column_bytes(const qk_gemm8_weights *p)
{
    return scale_bytes(p) + sizeof(uint16_t) + (size_t)p->folded.high_bytes;
}

/* Of the sums of columns: their lower halves, and what is above. */
static uint16_t *low_sums(const qk_gemm8_weights *p)
{
    return (uint16_t *)(p->folded.columns + p->n_pad * scale_bytes(p));
}

static int8_t *high_sums(const qk_gemm8_weights *p) { return (int8_t *)(low_sums(p) + p->n_pad); }

static void keep_sums(const qk_gemm8_weights *p, size_t col, size_t cols, const int32_t *sum)
{
    for (size_t j = 0; j < cols; j++) {
        const int16_t high = (int16_t)(sum[j] >> 16);
        low_sums(p)[col + j] = (uint16_t)sum[j];
        if (p->folded.high_bytes == 1)
            high_sums(p)[col + j] = (int8_t)high;
        else
            ((int16_t *)high_sums(p))[col + j] = high;
    }
}

static void read_sums(const qk_gemm8_weights *p, int32_t *restrict sum)
{
    const uint16_t *low = low_sums(p);
    const int8_t *high = high_sums(p);
    if (p->folded.high_bytes == 1)
        p->kernels->folded->folded_columns(low, high, p->n_pad, sum);
    else
        for (size_t j = 0; j < p->n_pad; j++) sum[j] = (int32_t)((uint32_t)((const int16_t *)high)[j] << 16 | low[j]);
}

static void keep_scales(const qk_gemm8_weights *p, const float *scale)
{
    if (p->folded.half_scales)
        p->kernels->elementwise->f32_to_f16(scale, (uint16_t *)p->folded.columns, p->n);
    else
        memcpy(p->folded.columns, scale, p->n * sizeof *scale);
}

void qk_folded_scales(const qk_gemm8_weights *p, float *scale, size_t count)
{
    QK_DEFAULT_MODE;
    if (p->folded.half_scales)
        p->kernels->elementwise->f16_to_f32((const uint16_t *)p->folded.columns, scale, count);
    else
        memcpy(scale, p->folded.columns, count * sizeof *scale);
}

typedef struct {
    const qk_gemm8_weights *p;
    const qk_matrix *m;
    int64_t bound;
} pack_job;

/* Adds what a block has to the sums of its columns, and to those of magnitudes. */
static void sum_block(const pack_job *job, size_t block, size_t rows, size_t col, size_t cols, int32_t *sum,
                      int64_t *size)
{
    const qk_matrix *m = job->m;
    const qk_folded *f = &job->p->folded;
    for (size_t j = 0; j < cols; j++) {
        const uint8_t *b = (const uint8_t *)m->b + (ptrdiff_t)(block * f->block) * m->row_stride +
            (ptrdiff_t)(col + j) * m->col_stride;
        const size_t at = block * m->n + col + j;
        for (size_t i = 0; i < rows; i++, b += m->row_stride) {
            const int code = ((*b & 15) ^ f->flip) - 8, weight = m->block_scale[at] * code + 3 * m->block_shift[at];
            sum[j] = (int32_t)((uint32_t)sum[j] + (uint32_t)weight), size[j] += weight < 0 ? -weight : weight;
        }
    }
}

/* Codes of a block, and its scales and shifts; those of absent columns are any that are valid. */
static void pack_block(const pack_job *job, size_t block, size_t rows, size_t col, size_t cols, uint8_t *to)
{
    const qk_matrix *m = job->m;
    const qk_gemm8_weights *p = job->p;
    const uint8_t *b =
        (const uint8_t *)m->b + (ptrdiff_t)(block * p->folded.block) * m->row_stride + (ptrdiff_t)col * m->col_stride;
    uint8_t *params = params_of(p, col / NC) + block * NC;
    to += codes_at(p, block);
    for (size_t row = 0; row < rows && !(row && qk_stopped_at(row));
         row += KR, b += KR * m->row_stride, to += QK_FOLDED_STEP) {
        p->kernels->gemm4->gemm4_pack_step(b, m->row_stride, m->col_stride, min_size(rows - row, KR), cols,
                                           (uint8_t)p->folded.flip, to);
        for (size_t i = 0; i < QK_FOLDED_STEP; i++) to[i] ^= 0x80; /* the high halves: code - 8 */
    }
    memset(params, 0, NC);
    for (size_t j = 0, at = block * m->n + col; j < cols; j++, at++)
        params[j] = (uint8_t)((m->block_scale[at] - 1) | (uint8_t)m->block_shift[at] << 4);
}

static void pack_panels(void *context, size_t begin, size_t end)
{
    pack_job *job = context;
    const qk_gemm8_weights *p = job->p;
    for (size_t panel = begin; panel < end; panel++) {
        const size_t col = panel * NC, cols = min_size(p->n - col, NC);
        uint8_t *to = p->folded.panels + panel * p->folded.panel_bytes;
        int32_t sum[NC] = {0};
        int64_t size[NC] = {0}, largest = 0;
        for (size_t block = 0; block < p->folded.blocks && !(block % 64 == 0 && qk_stopped()); block++) {
            const size_t rows = min_size(p->k - block * p->folded.block, p->folded.block);
            pack_block(job, block, rows, col, cols, to);
            sum_block(job, block, rows, col, cols, sum, size);
        }
        keep_sums(p, col, cols, sum);
        for (size_t j = 0; j < cols; j++) largest = size[j] > largest ? size[j] : largest;
        int64_t seen = __atomic_load_n(&job->bound, __ATOMIC_RELAXED);
        while (largest > seen &&
               !__atomic_compare_exchange_n(&job->bound, &seen, largest, 0, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {}
    }
}

int64_t qk_folded_pack(qk_gemm8_weights *p, const qk_matrix *m)
{
    QK_DEFAULT_MODE;
    pack_job job = {p, m, 0};
    memset(p->folded.columns, 0, p->n_pad * qk_folded_column_bytes(p));
    keep_scales(p, m->scale);
    if (p->k == 0) return 0; /* without bytes, panels may be more than a loop can count */
    const int status = qk_parallel_for(ceil_div(p->n, NC), (double)p->k * (double)p->n, pack_panels, &job);
    return status ? status : job.bound;
}

static const uint8_t *panel_at(const qk_gemm8_weights *p, size_t col)
{
    return p->folded.panels + col / NC * p->folded.panel_bytes;
}

static void unpack_rows(void *context, size_t begin, size_t end)
{
    const unpack_job *job = context;
    const qk_gemm8_weights *p = job->weights;
    uint8_t *to = (uint8_t *)job->to + begin * p->n;
    for (size_t row = begin; row < end; row++)
        for (size_t col = 0; col < p->n; col++) {
            const size_t in_block = row % p->folded.block, j = col % NC;
            const uint8_t *codes = panel_at(p, col) + codes_at(p, row / p->folded.block);
            const int two = codes[in_block / KR * QK_FOLDED_STEP + j % 16 * KR + in_block % KR];
            const int code = j < 16 ? two & 15 : (two >> 4) ^ 8;
            *to++ = (uint8_t)(p->folded.flip ? code - 8 : code); /* int4 fills its byte with its sign */
        }
}

int qk_folded_unpack(const qk_gemm8_weights *p, void *b)
{
    QK_DEFAULT_MODE;
    unpack_job job = {p, b};
    return qk_parallel_for(p->k, 5.0 * (double)p->k * (double)p->n, unpack_rows, &job);
}

typedef struct {
    const qk_gemm8_weights *p;
    uint8_t *scale;
    int8_t *shift;
} params_job;

static void unpack_params(void *context, size_t begin, size_t end)
{
    const params_job *j = context;
    const qk_gemm8_weights *p = j->p;
    for (size_t block = begin; block < end; block++)
        for (size_t col = 0; col < p->n && !qk_stopped_at(col); col++) {
            const uint8_t params = params_of(p, col / NC)[block * NC + col % NC];
            j->scale[block * p->n + col] = (uint8_t)qk_block_scale(params);
            j->shift[block * p->n + col] = (int8_t)qk_block_shift(params);
        }
}

int qk_folded_params(const qk_gemm8_weights *p, uint8_t *block_scale, int8_t *block_shift)
{
    QK_DEFAULT_MODE;
    params_job j = {p, block_scale, block_shift};
    const size_t blocks = p->folded.blocks;
    return qk_parallel_for(blocks, 5.0 * (double)blocks * (double)p->n, unpack_params, &j);
}

/* ---- the product ---- */

/* What kernels are told of the panel from column `col` on. */
static qk_folded_panel panel_of(const qk_gemm8_weights *p, size_t col)
{
    const size_t blocks = p->folded.blocks;
    if (!blocks) return (qk_folded_panel){0};
    return (qk_folded_panel){
        panel_at(p, col), params_of(p, col / NC), blocks, steps_of(p, 0), steps_of(p, blocks - 1), NULL, NULL};
}

const int8_t *qk_unfold(const product *g, void *memory, size_t panel)
{
    const size_t col = panel * (size_t)g->b->gemm8->nr;
    const qk_folded_panel p = panel_of(g->b, col);
    int8_t *to = (int8_t *)memory + g->unfold_at;
    g->b->kernels->folded->unfold_panel(&p, col % NC >= 16, to);
    return to;
}

/* Rows, and the sums of their codes. */
static int take_rows(const void *context, void *memory, size_t first, size_t rows)
{
    const product *g = context;
    const row_block *block = memory;
    const qk_folded_kernels *k = g->b->kernels->folded;
    int32_t *sums = (int32_t *)((char *)memory + g->sums_at);
    if (!qk_take_rows(g, memory, first, rows)) return 0;
    for (size_t i = 0; i < rows && !qk_stopped_at_long(g->b->k); i++)
        k->folded_sums((const uint8_t *)block->a + i * g->lda, round_up(g->b->k, KR), g->b->folded.block,
                       sums + i * g->ld_sums);
    return 1;
}

/* c += rows * a panel: some blocks after the other, if they are so many that a signal would wait for all of them. */
static void add_tile(const product *g, int rows, const qk_folded_panel *panel, const uint8_t *a, const int32_t *sums,
                     int32_t *c)
{
    const qk_folded *f = &g->b->folded;
    const size_t most = round_up(QK_STRETCH / f->block + 1, QK_FOLDED_SUMMED);
    qk_folded_panel p = *panel;
    for (size_t left = panel->blocks; left && !qk_stopped(); left -= p.blocks) {
        p.blocks = min_size(left, most);
        p.last_steps = p.blocks < left ? p.steps : panel->last_steps;
        g->b->kernels->folded->folded_tile(rows, &p, a, g->lda, sums, g->ld_sums, c);
        a += p.blocks * f->block, sums += qk_sums_of(p.blocks, p.steps);
        const size_t codes = p.blocks * p.steps * QK_FOLDED_STEP, params = p.blocks * NC;
        p.codes += codes, p.params += params;
        if (p.next_codes) p.next_codes += codes, p.next_params += params;
    }
}

/* What the sums of a tile start from, in the layout of tiles that are stored: of a panel, the columns that these have
 * are one part after the other; the last panel may lack some. */
static void start_tile(const product *g, size_t rows, size_t col, int32_t *c)
{
    const size_t nr = (size_t)g->b->gemm8->nr, after = min_size(col + NC, g->b->n);
    for (size_t at = col; at < col + NC; at += nr)
        for (size_t i = 0; i < rows; i++, c += nr) memcpy(c, g->init + (at < after ? at : col), nr * sizeof *c);
}

/* The sums of a tile of each of some panels from column `col` on. */
static void sum_tiles(const product *g, const row_block *block, size_t row, size_t rows, size_t col, size_t panels,
                      int32_t *c)
{
    const int32_t *sums = (const int32_t *)((const char *)block + g->sums_at) + row * g->ld_sums;
    const size_t most = rows == 1 && g->b->kernels->folded->pairs ? 2 : 1;
    for (size_t i = 0; i < panels; i++) start_tile(g, rows, col + i * NC, c + i * rows * NC);
    for (size_t i = 0; i < panels; i += most) {
        qk_folded_panel p = panel_of(g->b, col + i * NC);
        if (most > 1 && i + 1 < panels) {
            const qk_folded_panel next = panel_of(g->b, col + (i + 1) * NC);
            p.next_codes = next.codes, p.next_params = next.params;
        }
        add_tile(g, (int)rows, &p, (const uint8_t *)block->a + row * g->lda, sums, c + i * rows * NC);
    }
}

static void store_tile(const product *g, const row_block *block, size_t first, size_t row, size_t count, size_t col,
                       int32_t *c, qk_tile *t)
{
    const size_t nr = (size_t)g->b->gemm8->nr, mr = (size_t)g->b->gemm8->mr;
    for (size_t at = col; at < min_size(col + NC, g->b->n); at += nr) {
        qk_move_to_panel(g, at, t);
        for (size_t i = 0; i < count; i += mr)
            qk_store_tile(g, block, first + row + i, row + i, min_size(count - i, mr), at,
                          c + (at - col) * count + i * nr, t);
    }
}

/* Of rows that are a single tile, sums of some panels become results together: what these read and write in between
 * would stop the stream of codes, and cost few rows up to a fifth of their time. */
static void multiply(const void *context, void *memory, size_t first, size_t rows, size_t begin, size_t end)
{
    const product *g = context;
    const row_block *block = memory;
    const size_t tiles = ceil_div(rows, (size_t)g->b->kernels->folded->mr);
    int32_t acc[MAX_MR * MAX_NR] __attribute__((aligned(64)));
    const size_t together = rows * NC < FEW_SUMS ? FEW_SUMS / (rows * NC) : 1;
    qk_tile t = qk_tile_of_product(g);
    for (size_t panel = begin; panel < end; panel += together)
        for (size_t tile = 0; tile < tiles; tile++) { /* of even height */
            const size_t row = rows * tile / tiles, count = rows * (tile + 1) / tiles - row;
            const size_t some = min_size(end - panel, together);
            sum_tiles(g, block, row, count, panel * NC, some, acc);
            for (size_t i = 0; i < some; i++)
                store_tile(g, block, first, row, count, (panel + i) * NC, acc + i * count * NC, &t);
        }
}

int qk_unfolds(const product *g)
{
    const size_t least = (size_t)g->b->kernels->folded->unfold_rows;
    return least && g->walk.m >= least && g->b->k && UNFOLDED_BYTES / g->b->k >= least;
}

void qk_share_folded(product *g, size_t row_bytes)
{
    if (qk_unfolds(g)) {
        g->walk.block_bytes = UNFOLDED_BYTES;
        qk_share(&g->walk, row_bytes, g->b->gemm8->mr);
    } else {
        g->walk.panels = ceil_div(g->b->n, NC);
        qk_share(&g->walk, row_bytes, g->b->kernels->folded->mr);
    }
}

int qk_folded_linear(const qk_rows *source, const qk_gemm8_weights *given, const qk_epilogue *epilogue)
{
    QK_DEFAULT_MODE;
    int32_t small[2 * SMALL_COLUMNS];
    const int few = given->n_pad <= SMALL_COLUMNS;
    int32_t *columns = few ? small : qk_obtain(qk_times(given->n_pad, 2 * sizeof *columns));
    if (!columns) return -1;
    qk_gemm8_weights b = *given;
    qk_epilogue e = *epilogue;
    float *scale = (float *)(columns + b.n_pad);
    read_sums(&b, columns), qk_folded_scales(&b, scale, b.n_pad);
    b.colsum = columns, e.col_scale = scale;
    const int status = qk_gemm8(source, &b, &e);
    if (!few) qk_release(columns);
    return status;
}

void qk_lay_out_folded(product *g)
{
    const qk_gemm8_weights *b = g->b;
    if (qk_unfolds(g)) {
        g->unfold_at = g->walk.bytes;
        g->walk.bytes = qk_plus(g->unfold_at, round_up(b->panel_bytes, 64));
        return;
    }
    g->walk.take_rows = take_rows, g->walk.multiply = multiply;
    if (b->folded.blocks) g->ld_sums = qk_sums_of(round_up(b->folded.blocks, QK_FOLDED_SUMMED), steps_of(b, 0));
    g->sums_at = g->walk.bytes;
    g->walk.bytes = qk_plus(g->sums_at, round_up(qk_times(g->walk.block_rows, g->ld_sums * sizeof(int32_t)), 64));
}
