/* Convolutions of codes, and pools (numerics 22).
 *
 * Dense and grouped ones are products (gemm8.c): of rows that lie in the image if a window is one pixel and the next
 * one begins where it ends, else of rows that are gathered. A depthwise one has a column of taps for each channel. */
#include <float.h>
#include <stdlib.h>
#include <string.h>

#include "drivers/gemm8.h"
#include "kernels/kernels.h"
#include "runtime/fpmode.h"
#include "runtime/parallel.h"

/* ---- depthwise kernels ---- */

void qk_depthwise_init(qk_depthwise_weights *p, const qk_matrix *m, size_t height)
{
    const int flipped = m->type == QK_U8;
    *p = (qk_depthwise_weights){.kernels = qk_active(), .n = m->n, .height = height, .width = m->k / height};
    p->flipped = flipped;
    for (size_t i = 0; i < qk_scale_count(m); i++) p->wide |= m->zero_point[i] != (flipped ? 128 : 0);
    p->taps = p->wide ? 2 : (size_t)p->kernels->conv->taps;
    p->wide |= p->taps == 2;
    p->steps = ceil_div(height, p->taps);
    p->shifts = p->steps * p->taps - height + 1;
    p->panel_bytes = qk_times(qk_times(p->shifts, qk_times(p->width, p->steps)), 4 * (size_t)p->kernels->conv->block);
}

size_t qk_depthwise_bytes(const qk_depthwise_weights *p)
{
    return qk_times(ceil_div(p->n, (size_t)p->kernels->conv->block), p->panel_bytes);
}

/* Channels of a block, of which a register has one byte each: as many as it has bytes, unless so few are left that
 * parts of 16 or 32 bytes hold them; then each part has lines of its own. */
static size_t span_of(const qk_depthwise_weights *p, size_t first)
{
    const size_t left = p->n - first, block = (size_t)p->kernels->conv->block;
    const size_t span = left <= 16 ? 16 : left <= 32 ? 32 : 64;
    return span < block ? span : block;
}

/* Where a block has the neighbours of a byte of a register: in the order in which interleaving leaves them. */
static size_t neighbours_of(const qk_depthwise_weights *p, size_t byte)
{
    return byte % 16 / 4 * (size_t)p->kernels->conv->block + byte / 16 * 16 + byte % 4 * 4;
}

/* Where the tap of a column of the kernel at row `row` of the rows that are seen at once is, of a byte of a block. */
static char *place_of(const qk_depthwise_weights *p, size_t first, size_t byte, size_t shift, size_t x, size_t row)
{
    const size_t block = (size_t)p->kernels->conv->block;
    const size_t step = (shift * p->width + x) * p->steps + row / p->taps;
    return p->panels + first / block * p->panel_bytes + step * block * 4 + neighbours_of(p, byte) +
        row % p->taps * (4 / p->taps);
}

typedef struct {
    const qk_depthwise_weights *p;
    const qk_matrix *m;
    int32_t bound;
} pack_job;

/* A channel of the block whose first is given; returns the sum of the magnitudes. */
static int64_t pack_channel(const qk_depthwise_weights *p, const qk_matrix *m, size_t first, size_t channel)
{
    const size_t block = (size_t)p->kernels->conv->block, span = span_of(p, first);
    const int32_t zero = m->zero_point[m->kind == QK_PER_AXIS ? channel : 0];
    const uint8_t *codes = (const uint8_t *)m->b + (ptrdiff_t)channel * m->col_stride;
    int64_t size = 0, sum = 0;
    for (size_t tap = 0; tap < m->k; tap++) {
        const uint8_t code = codes[(ptrdiff_t)tap * m->row_stride];
        const int32_t distance = (p->flipped ? code : (int8_t)code) - zero;
        const int16_t stored = (int16_t)distance;
        size += distance < 0 ? -distance : distance, sum += distance;
        for (size_t shift = 0; shift < p->shifts; shift++)
            for (size_t byte = channel - first; byte < block; byte += span)
                memcpy(place_of(p, first, byte, shift, tap % p->width, tap / p->width + shift), &stored, 4 / p->taps);
    }
    p->colsum[channel] = (int32_t)(uint32_t)sum;
    return size;
}

static void pack_blocks(void *context, size_t begin, size_t end)
{
    pack_job *job = context;
    const qk_depthwise_weights *p = job->p;
    const size_t block = (size_t)p->kernels->conv->block;
    for (size_t i = begin; i < end && !qk_stopped(); i++) {
        memset(p->panels + i * p->panel_bytes, 0, p->panel_bytes);
        memset(p->colsum + i * block, 0, block * sizeof *p->colsum);
        for (size_t channel = i * block; channel < p->n && channel < (i + 1) * block; channel++) {
            const int64_t size = pack_channel(p, job->m, i * block, channel);
            qk_keep_most(&job->bound, size < INT32_MAX ? (int32_t)size : INT32_MAX);
        }
    }
}

int64_t qk_depthwise_pack(qk_depthwise_weights *p, const qk_matrix *m)
{
    QK_DEFAULT_MODE;
    pack_job job = {p, m, 0};
    const double work = 5.0 * (double)m->k * (double)m->n * (double)p->shifts;
    const int status = qk_parallel_for(ceil_div(p->n, (size_t)p->kernels->conv->block), work, pack_blocks, &job);
    return status ? status : job.bound;
}

static void unpack_taps(void *context, size_t begin, size_t end)
{
    const unpack_job *job = context;
    const qk_weights *w = job->weights;
    const qk_depthwise_weights *p = &w->depthwise;
    for (size_t tap = begin; tap < end; tap++)
        for (size_t channel = 0; channel < p->n; channel++) {
            const size_t first = channel - channel % (size_t)p->kernels->conv->block;
            const char *place = place_of(p, first, channel - first, 0, tap % p->width, tap / p->width);
            int16_t distance = (signed char)*place;
            if (p->wide) memcpy(&distance, place, sizeof distance);
            const int32_t zero = w->zero_point ? w->zero_point[channel] : 0;
            ((uint8_t *)job->to)[tap * p->n + channel] = (uint8_t)(distance + zero);
        }
}

int qk_depthwise_unpack(const qk_weights *w, void *b)
{
    QK_DEFAULT_MODE;
    unpack_job job = {w, b};
    const size_t taps = w->depthwise.height * w->depthwise.width;
    return qk_parallel_for(taps, 5.0 * (double)taps * (double)w->n, unpack_taps, &job);
}

enum { STRIP_BYTES = 24 * 1024, SMALL_BYTES = 24 * 1024, MOST_TILES = 4, MOST_BLOCK = 64, FEW_STEPS = 64 };

/* A depthwise convolution. An item is some lines of the result, of which one look at the image serves all, in a strip
 * of columns and a block of channels; of a block that has parts so many lines for each. */
typedef struct {
    const qk_image *image;
    const qk_depthwise_weights *b;
    const product *sums;
    const int32_t *init;     /* what sums start from, */
    const float *multiplier; /* and what makes codes of them, in the order of a block's neighbours */
    uint8_t flip;
    size_t lines, strip, strips, blocks, last_parts; /* whole blocks; parts of the last one, or 0 if there is none */
    size_t columns, column_bytes, acc_bytes;         /* of the image that a strip needs, at most */
    size_t *offset;                                  /* of a step from the first pixel */
    uint8_t outside[MOST_BLOCK], zeros[MOST_BLOCK];  /* codes of a pixel that is padding, and that become 0 */
    int failure;
} depthwise_job;

/* Where in the result an item is. */
typedef struct {
    size_t number, y, x, pixels, channel, channels, parts;
    int framed; /* whether the item before left the columns that are padding, where lines are one strip */
} place;

/* Items of blocks that have so many parts; `blocks` of them. */
static size_t count_items(const depthwise_job *job, size_t blocks, size_t parts)
{
    return blocks * job->image->count * job->strips * ceil_div(job->image->out_height, job->lines * parts);
}

/* What a place has of what lies there. */
static void measure(const depthwise_job *job, place *at)
{
    at->channels = min_size(job->image->channels - at->channel, (size_t)job->b->kernels->conv->block);
    at->pixels = min_size(job->image->out_width - at->x, job->strip);
}

static place place_of_item(const depthwise_job *job, size_t item)
{
    const size_t block = (size_t)job->b->kernels->conv->block, whole = count_items(job, job->blocks, 1);
    size_t blocks = job->blocks;
    place at = {.parts = 1};
    if (item >= whole) item -= whole, at.parts = job->last_parts, at.channel = job->blocks * block, blocks = 1;
    at.channel += item % blocks * block, item /= blocks;
    at.x = item % job->strips * job->strip, item /= job->strips;
    const size_t lines = job->lines * at.parts, groups = ceil_div(job->image->out_height, lines);
    at.y = item % groups * lines, at.number = item / groups;
    measure(job, &at);
    return at;
}

/* The place of the next item: blocks first, then strips, lines and images; at last those of the last block. */
static void move_on(const depthwise_job *job, place *at)
{
    const qk_image *p = job->image;
    const size_t block = (size_t)job->b->kernels->conv->block, end = job->blocks * block;
    const size_t first = at->channel < end ? 0 : end;
    at->channel += block;
    if (at->channel == end || first == end) at->channel = first, at->x += job->strip;
    if (at->x >= p->out_width) at->x = 0, at->y += job->lines * at->parts;
    if (at->y >= p->out_height) at->y = 0, at->number++;
    if (at->number == p->count) at->number = 0, at->channel = end, at->parts = job->last_parts;
    at->framed = job->strips == 1;
    measure(job, at);
}

/* Columns that are padding, of one step. */
static void fill_columns(const depthwise_job *job, size_t columns, char *to)
{
    const size_t size = 2 * (size_t)job->b->kernels->conv->block;
    const uint8_t code = job->outside[0] ^ job->flip;
    for (size_t i = 0; i < columns; i++, to += job->column_bytes)
        if (job->b->taps == 4)
            memset(to, code, 2 * size);
        else
            for (size_t j = 0; j < size; j++) ((uint16_t *)to)[j] = code;
}

/* How many columns an item needs. */
static size_t columns_of(const depthwise_job *job, const place *at)
{
    const qk_image *p = job->image;
    return (at->pixels - 1) * p->stride_x + (p->kernel_width - 1) * p->dilation_x + 1;
}

/* The rows of one step, which are in the image or not, from the first column on that is. */
static qk_columns find_rows(const depthwise_job *job, const place *at, size_t step, qk_seen_rows *seen)
{
    const qk_image *p = job->image;
    const qk_depthwise_weights *b = job->b;
    const size_t line = p->width * p->channels, needed = (job->lines - 1) * p->stride_y + b->height;
    const size_t columns = columns_of(job, at);
    const ptrdiff_t x = (ptrdiff_t)(at->x * p->stride_x - p->left);
    const size_t before = x >= 0 ? 0 : min_size((size_t)-x, columns), first = x >= 0 ? (size_t)x : 0;
    const size_t inside = first >= p->width ? 0 : min_size(columns - before, p->width - first);
    const uint8_t *image = p->codes + at->number * p->height * line + at->channel + first * p->channels;
    seen->parts = (int)at->parts, seen->channels = at->channels;
    for (size_t i = 0; i < 4; i++) {
        const size_t row = step * b->taps + i * b->taps / 4;
        const int is_zero = b->taps == 2 && i % 2;
        for (size_t part = 0; part < at->parts; part++) {
            const size_t y = (at->y + part * job->lines) * p->stride_y - p->top + row * p->dilation_y;
            const int is_code = !is_zero && row < needed && y < p->height;
            seen->from[i][part] = is_code ? image + y * line : is_zero ? job->zeros : job->outside;
            seen->stride[i][part] = is_code ? p->channels : 0;
        }
    }
    return (qk_columns){before, inside, job->flip, p->pad};
}

/* Interleaves columns of these rows. */
static void look_at_rows(const depthwise_job *job, const place *at, size_t step, char *to)
{
    qk_seen_rows seen;
    const qk_columns c = find_rows(job, at, step, &seen);
    char *within = to + c.before * job->column_bytes;
    if (!at->framed) fill_columns(job, c.before, to);
    job->b->kernels->conv->interleave_taps(&seen, c.inside, job->flip, within, job->column_bytes);
    if (!at->framed)
        fill_columns(job, columns_of(job, at) - c.before - c.inside, within + c.inside * job->column_bytes);
}

/* Sums of a line of each part, a tile of pixels after the other, and what becomes of them. */
static void sum_line(const depthwise_job *job, const place *at, size_t line, const qk_steps *steps, const char *codes,
                     const char *weights, int32_t *acc, qk_tile *tiles)
{
    const qk_image *p = job->image;
    const qk_gemm8_kernels *k = job->b->kernels->gemm8;
    const qk_conv_kernels *conv = job->b->kernels->conv;
    const size_t mr = (size_t)conv->mr, nr = (size_t)k->nr, span = (size_t)conv->block / at->parts;
    for (size_t i = 0; i < at->pixels; i += mr) {
        const size_t pixels = min_size(at->pixels - i, mr);
        conv->depthwise_tile((int)pixels, steps, codes + i * steps->pixel, weights, job->init + at->channel, acc);
        for (size_t part = 0; part < at->parts; part++) {
            const size_t y = at->y + part * job->lines + line;
            const size_t row = (at->number * p->out_height + y) * p->out_width + at->x + i;
            for (size_t j = 0; y < p->out_height && j < at->channels; j += nr) {
                const size_t byte = part * span + j;
                qk_store_tile(job->sums, NULL, row, 0, pixels, at->channel + j, acc + byte / nr * mr * nr + byte % nr,
                              tiles + j / nr);
            }
        }
    }
}

/* Where a line of each part goes whose sums become codes in the simplest way. */
static qk_coded_line line_of(const depthwise_job *job, const place *at, size_t line)
{
    const qk_image *p = job->image;
    const product *sums = job->sums;
    qk_coded_line to = {.init = job->init + at->channel,
                        .multiplier = job->multiplier + at->channel,
                        .requant = &sums->requant,
                        .row_stride = sums->epilogue->row_stride,
                        .parts = (int)at->parts,
                        .channels = at->channels};
    for (size_t part = 0; part < at->parts; part++) {
        const size_t y = at->y + part * job->lines + line;
        const size_t row = (at->number * p->out_height + y) * p->out_width + at->x;
        to.to[part] = y < p->out_height ? (uint8_t *)sums->epilogue->out + row * to.row_stride + at->channel : NULL;
    }
    return to;
}

/* Whether columns go by in registers: no other line, and few other pixels, would find them in memory. */
static int columns_pass(const depthwise_job *job)
{
    const qk_image *p = job->image;
    const qk_depthwise_weights *b = job->b;
    return job->multiplier && b->kernels->conv->depthwise_pass && b->taps == 4 && b->steps == 1 && job->lines == 1 &&
        p->kernel_width == 3 && p->stride_x == 2 && p->dilation_x == 1;
}

static void pass_item(const depthwise_job *job, const place *at, const char *weights)
{
    qk_seen_rows seen;
    const qk_columns columns = find_rows(job, at, 0, &seen);
    const qk_coded_line to = line_of(job, at, 0);
    job->b->kernels->conv->depthwise_pass(at->pixels, &seen, &columns, weights, &to);
}

static void run_item(const depthwise_job *job, const place *at, char *codes, int32_t *acc, qk_tile *tiles)
{
    const qk_image *p = job->image;
    const qk_depthwise_weights *b = job->b;
    const size_t nr = (size_t)b->kernels->gemm8->nr, block = (size_t)b->kernels->conv->block;
    const int plain = job->multiplier != NULL;
    const qk_steps steps = {b->width * b->steps, p->stride_x * job->column_bytes, job->offset, b->wide};
    const char *weights = b->panels + at->channel / block * b->panel_bytes;
    if (columns_pass(job)) {
        pass_item(job, at, weights);
        return;
    }
    for (size_t step = 0; step < b->steps; step++) look_at_rows(job, at, step, codes + step * block * 4);
    for (size_t j = 0; !plain && j < at->channels; j += nr)
        qk_move_to_panel(job->sums, at->channel + j, tiles + j / nr);
    for (size_t line = 0; line < job->lines && at->y + line < p->out_height; line++) {
        if (plain) {
            const qk_coded_line to = line_of(job, at, line);
            b->kernels->conv->depthwise_codes(at->pixels, &steps, codes, weights, &to);
        } else {
            sum_line(job, at, line, &steps, codes, weights, acc, tiles);
        }
        weights += p->stride_y * steps.count * block * 4;
    }
}

static void run_depthwise(void *context, size_t begin, size_t end)
{
    depthwise_job *job = context;
    char small[SMALL_BYTES] __attribute__((aligned(64)));
    const size_t bytes = qk_plus(job->acc_bytes, qk_times(job->columns, job->column_bytes));
    char *codes = bytes <= sizeof small ? small : qk_obtain(bytes);
    qk_tile tiles[MOST_TILES];
    if (!codes) {
        __atomic_store_n(&job->failure, -1, __ATOMIC_RELAXED);
        return;
    }
    for (int j = 0; !job->multiplier && j < MOST_TILES; j++) tiles[j] = qk_tile_of_product(job->sums);
    place at = place_of_item(job, begin);
    for (size_t item = begin; item < end && !qk_stopped(); item++, move_on(job, &at))
        run_item(job, &at, codes + job->acc_bytes, (int32_t *)codes, tiles);
    if (codes != small) qk_release(codes);
}

/* How the result is divided, and what an item needs. */
static void lay_out(depthwise_job *job)
{
    const qk_image *p = job->image;
    const qk_depthwise_weights *b = job->b;
    const qk_gemm8_kernels *k = b->kernels->gemm8;
    const size_t block = (size_t)b->kernels->conv->block, reach = (p->kernel_width - 1) * p->dilation_x + 1;
    job->column_bytes = b->steps * block * 4;
    job->lines = p->dilation_y == 1 ? min_size((b->shifts - 1) / p->stride_y + 1, p->out_height) : 1;
    const size_t most = STRIP_BYTES / job->column_bytes, mr = (size_t)b->kernels->conv->mr;
    job->strip = most > reach ? round_up((most - reach) / p->stride_x + 1, mr) : mr;
    job->strips = ceil_div(p->out_width, job->strip);
    job->strip = ceil_div(p->out_width, job->strips);
    job->columns = qk_plus(qk_times(job->strip - 1, p->stride_x), reach);
    job->blocks = b->n / block;
    if (b->n % block) job->last_parts = block / span_of(b, job->blocks * block);
    job->acc_bytes = (round_up(block, (size_t)k->nr) * mr + block) * sizeof(int32_t);
    memset(job->outside, p->pad, sizeof job->outside), memset(job->zeros, job->flip, sizeof job->zeros);
    for (size_t x = 0; x < b->width; x++)
        for (size_t step = 0; step < b->steps; step++)
            job->offset[x * b->steps + step] = x * p->dilation_x * job->column_bytes + step * block * 4;
}

void qk_order_channels(const qk_depthwise_weights *b, const int32_t *channels, int32_t *to)
{
    const size_t block = (size_t)b->kernels->conv->block;
    for (size_t first = 0; first < b->n; first += block, channels += block, to += block) {
        const size_t last = span_of(b, first) - 1;
        for (size_t byte = 0; byte < block; byte += 16)
            for (size_t four = 0; four < 16; four += 4)
                memcpy(to + four / 4 * (block / 4) + byte / 4, channels + (byte & last) + four, 4 * sizeof *to);
    }
}

static int convolve_channels(const qk_rows *source, const qk_image *image, const qk_weights *w,
                             const qk_epilogue *epilogue)
{
    const qk_depthwise_weights *b = &w->depthwise;
    const qk_gemm8_weights columns = {
        .kernels = b->kernels, .gemm8 = b->kernels->gemm8, .n = b->n, .colsum = b->colsum};
    const product sums = {.source = source,
                          .b = &columns,
                          .epilogue = epilogue,
                          .requant = qk_requant_of(epilogue),
                          .plain = epilogue->plain};
    const int flip = source->type == QK_CODES_I8 ? 0x80 : 0;
    depthwise_job job = {.image = image, .b = b, .sums = &sums, .init = epilogue->starts, .flip = (uint8_t)flip};
    const size_t steps = qk_times(b->width, b->steps);
    size_t few[FEW_STEPS];
    job.offset = steps <= FEW_STEPS ? few : qk_obtain(qk_times(steps, sizeof *job.offset));
    if (!job.offset) return -1;
    if (sums.plain && b->kernels->conv->depthwise_codes) job.multiplier = epilogue->requant.multiplier;
    lay_out(&job);
    const double work = (double)image->count * (double)image->out_height * (double)image->out_width * (double)b->n *
        (0.01 * (double)b->width * (double)b->height + 0.05);
    const size_t items = count_items(&job, job.blocks, 1) + (job.last_parts ? count_items(&job, 1, job.last_parts) : 0);
    const int status = qk_parallel_for(items, work, run_depthwise, &job);
    if (job.offset != few) qk_release(job.offset);
    return status ? status : job.failure ? job.failure : 1;
}

/* What is prepared, once or in each call. */
static int convolve_depthwise(const qk_rows *source, const qk_image *image, const qk_weights *w,
                              const qk_epilogue *epilogue)
{
    if (epilogue->starts) return convolve_channels(source, image, w, epilogue);
    qk_epilogue prepared = *epilogue;
    int32_t *columns = qk_obtain(qk_times(w->n_pad, 2 * sizeof *columns));
    if (!columns) return -1;
    qk_prepare(source, w, &prepared, INT32_MAX, columns);
    const int status = convolve_channels(source, image, w, &prepared);
    qk_release(columns);
    return status;
}

/* ---- dense and grouped ones ---- */

typedef struct {
    const qk_rows *source;
    const qk_image *image;
    const qk_weights *w;
    size_t filters, step; /* columns of a group, and with those that pad it */
    const qk_epilogue *epilogue;
    int in_place, failure;
} groups_job;

/* The columns of a group, from number `first` on. */
static qk_epilogue epilogue_of(const groups_job *job, size_t group)
{
    const size_t first = group * job->step;
    qk_epilogue e = *job->epilogue;
    if (e.b_zero) e.b_zero += first;
    if (e.int_bias) e.int_bias += first;
    if (e.col_scale) e.col_scale += first;
    if (e.float_bias) e.float_bias += first;
    if (e.requant.multiplier) e.requant.multiplier += first;
    if (e.requant.mantissa) e.requant.mantissa += first, e.requant.shift += first;
    if (e.wide_scale) e.wide_scale += first, e.wide_bias += first;
    if (e.starts) e.starts += first;
    e.out = (char *)e.out + group * job->filters * (e.type == QK_TO_CODES ? 1 : sizeof(int32_t));
    return e;
}

static int convolve_group(const groups_job *job, size_t group)
{
    const qk_image *p = job->image;
    const qk_weights *w = job->w;
    qk_gemm8_weights b = w->gemm8;
    const size_t depth = b.k / (p->kernel_height * p->kernel_width);
    if (job->step != b.n_pad) {
        b.n = job->filters, b.n_pad = job->step, b.count = b.n_pad / (size_t)b.gemm8->nr;
        b.panels += group * b.count * b.panel_bytes, b.colsum += group * job->step;
    }
    const qk_patches patches = {p, group * depth, depth};
    qk_rows source = *job->source;
    source.a = p->codes + patches.channel;
    source.m = p->count * p->out_height * p->out_width;
    source.row_stride = (ptrdiff_t)p->channels;
    if (!job->in_place) source.patches = &patches;
    const qk_epilogue epilogue = epilogue_of(job, group);
    return qk_gemm8(&source, &b, &epilogue);
}

static void run_groups(void *context, size_t begin, size_t end)
{
    groups_job *job = context;
    for (; begin < end; begin++) {
        const int status = convolve_group(job, begin);
        if (status < 0) __atomic_store_n(&job->failure, status, __ATOMIC_RELAXED);
        if (status < 0) break;
    }
}

/* Whether the rows of the implicit matrix are those of the image. */
static int is_plain(const qk_image *p)
{
    return p->kernel_height == 1 && p->kernel_width == 1 && p->stride_y == 1 && p->stride_x == 1 &&
        p->out_height == p->height && p->out_width == p->width && !p->top && !p->left;
}

size_t qk_group_columns(void) { return (size_t)qk_active()->gemm8->nr; }

/* Threads share the groups, or each of them if they are few. */
int qk_conv(const qk_rows *source, const qk_image *image, const qk_weights *w, size_t groups, size_t filters,
            const qk_epilogue *epilogue)
{
    QK_DEFAULT_MODE;
    const size_t rows = image->count * image->out_height * image->out_width;
    if (rows == 0 || w->n == 0) return 1;
    if (w->family == QK_DEPTHWISE) return convolve_depthwise(source, image, w, epilogue);
    groups_job job = {source, image, w, filters, groups == 1 ? w->n_pad : w->n / groups, epilogue, is_plain(image), 0};
    const double work = (double)rows * (double)w->n * (double)w->k / 128;
    int status = 0;
    if (groups < (size_t)qk_threads_for(SIZE_MAX, work))
        run_groups(&job, 0, groups);
    else
        status = qk_parallel_for(groups, work, run_groups, &job);
    return status ? status : job.failure ? job.failure : 1;
}

/* ---- pools ---- */

enum { MOST_PIXELS = 256 }; /* of a window, for which the stack has room */

typedef struct {
    const qk_image *image;
    uint8_t flip;
    uint8_t *out;
    const float *scales; /* of averages: of the codes and of the result; else NULL */
    int32_t zero_point;
    int with_padding, failure;
    const qk_requant *r;
} pool_job;

/* Where a window's pixels in the image begin: their number. */
static size_t pixels_of_window(const qk_image *p, size_t window, const uint8_t **from)
{
    const size_t ox = window % p->out_width, oy = window / p->out_width % p->out_height;
    const uint8_t *image = p->codes + window / p->out_width / p->out_height * p->height * p->width * p->channels;
    size_t count = 0;
    for (size_t ky = 0; ky < p->kernel_height; ky++) {
        const size_t y = oy * p->stride_y - p->top + ky * p->dilation_y;
        for (size_t kx = 0; y < p->height && kx < p->kernel_width; kx++) {
            const size_t x = ox * p->stride_x - p->left + kx * p->dilation_x;
            if (x < p->width) from[count++] = image + (y * p->width + x) * p->channels;
        }
    }
    return count;
}

/* fl(sx / fl(sy count)), in double if that product leaves float32 (numerics 22). */
static float multiplier_of(const float *scales, size_t count)
{
    const float divisor = scales[1] * (float)count;
    const float m = divisor <= FLT_MAX ? scales[0] / divisor : (float)((double)scales[0] / scales[1] / (double)count);
    return m <= FLT_MAX ? m : FLT_MAX;
}

/* How many windows from this one on, at most so many, lie one after the other and in the image from side to side. */
static size_t neighbours_of_window(const qk_image *p, size_t window, size_t most)
{
    const size_t ox = window % p->out_width, reach = (p->kernel_width - 1) * p->dilation_x + 1;
    const size_t x = ox * p->stride_x - p->left;
    if (ox * p->stride_x < p->left || reach > p->width || x > p->width - reach) return 1;
    return min_size(min_size(most, p->out_width - ox), (p->width - reach - x) / p->stride_x + 1);
}

static void pool_windows(const pool_job *job, qk_windows *of)
{
    const qk_image *p = job->image;
    const size_t all = job->with_padding ? p->kernel_height * p->kernel_width : of->count;
    if (!job->scales && of->count == 0)
        memset(of->to, job->flip, of->windows * of->channels); /* the least code */
    else if (!job->scales)
        qk_active()->conv->max_windows(of);
    else {
        of->zeros = (int32_t)of->count * (job->zero_point + (job->flip ? 128 : 0));
        of->multiplier = multiplier_of(job->scales, all ? all : 1), of->requant = job->r;
        qk_active()->conv->average_windows(of);
    }
}

static void run_windows(void *context, size_t begin, size_t end)
{
    pool_job *job = context;
    const qk_image *p = job->image;
    const uint8_t *few[MOST_PIXELS];
    const size_t pixels = qk_times(p->kernel_height, p->kernel_width);
    const uint8_t **from = pixels <= MOST_PIXELS ? few : qk_obtain(qk_times(pixels, sizeof *from));
    if (!from) {
        __atomic_store_n(&job->failure, -1, __ATOMIC_RELAXED);
        return;
    }
    qk_windows of = {.from = from, .channels = p->channels, .step = p->stride_x * p->channels, .flip = job->flip};
    for (size_t window = begin; window < end && !qk_stopped(); window += of.windows) {
        of.count = pixels_of_window(p, window, from);
        of.windows = neighbours_of_window(p, window, end - window);
        of.to = job->out + window * p->channels;
        pool_windows(job, &of);
    }
    if (from != few) qk_release(from);
}

static int run_pool(pool_job *job)
{
    const qk_image *p = job->image;
    const size_t windows = p->count * p->out_height * p->out_width;
    if (windows == 0 || p->channels == 0) return 1;
    const double work =
        (double)windows * (double)p->channels * (0.02 * (double)p->kernel_height * (double)p->kernel_width + 0.1);
    const int status = qk_parallel_for(windows, work, run_windows, job);
    return status ? status : job->failure ? job->failure : 1;
}

int qk_max_pool(const qk_image *image, int is_signed, uint8_t *out)
{
    QK_DEFAULT_MODE;
    pool_job job = {.image = image, .flip = is_signed ? 0x80 : 0, .out = out};
    return run_pool(&job);
}

int qk_average_pool(const qk_image *image, int is_signed, int32_t zero_point, int with_padding, const float *scales,
                    const qk_requant *r, uint8_t *out)
{
    QK_DEFAULT_MODE;
    pool_job job = {image, is_signed ? 0x80 : 0, out, scales, zero_point, with_padding, 0, r};
    return run_pool(&job);
}
