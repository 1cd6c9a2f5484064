/* Drivers of the elementwise operations: which scale an element has, conversion of the float types, threads. */
#include <float.h>
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
    CHUNK = 2048,       /* elements that are converted at a time: they fit the L1 cache */
    PAST = 1024,        /* that are stored past the caches at a time: seldom enough, and loads do not wait for them */
    FEW_COLUMNS = 256,  /* that have parameters of their own, of such chunks: eight rows share them */
    COLUMNS = 1024,     /* parameters that are used at a time: so do they */
    FAR = 1 << 22,      /* bytes of arrays, above which rows that are seen together lie far apart: four streams */
    FAR_COLUMNS = 4096, /* each, which go on from one page to the next, */
    FAR_PIECE = 1 << 17 /* elements of which are an item */
};

/* numerics 3: outside these scales the product with the reciprocal is not the quotient */
static float reciprocal_of(float scale)
{
    const float reciprocal = 1.0f / scale; /* at any rate, so that vectors of them can be made */
    return ((scale >= 0x1p-64f) & (scale <= 0x1p64f)) ? reciprocal : 0.0f;
}

static int find_reciprocals(const float *scale, size_t n, float *reciprocal)
{
    int all = 1;
    for (size_t i = 0; i < n; i++) {
        reciprocal[i] = reciprocal_of(scale[i]);
        all &= reciprocal[i] != 0;
    }
    return all;
}

int qk_reciprocals(const float *scale, size_t n, float *reciprocal)
{
    QK_DEFAULT_MODE;
    return find_reciprocals(scale, n, reciprocal);
}

qk_affine qk_affine_of(float scale, int32_t zero_point, int32_t qmin, int32_t qmax, qk_rounding rounding)
{
    return (qk_affine){scale, reciprocal_of(scale), zero_point, qmin, qmax, rounding == QK_HALF_AWAY};
}

typedef struct operation operation;
typedef void apply(const operation *op, const void *in, void *out, size_t n, const qk_affines *p);

/* The array as blocks, one after another, of rows that share parameters: each run of a row's elements has the next.
 * Of every `among` blocks the last has fewer rows. */
typedef struct {
    size_t blocks, rows, length, run, step; /* step: parameters from block to block */
    size_t among, last_rows;
} layout;

struct operation {
    apply *f32, *f64;             /* of rows; of one row */
    const qk_small_float *floats; /* what codes are, or NULL: integers */
    const qk_elementwise_kernels *k;
    qk_dtype from, to;
    qk_rounding rounding;
    const uint64_t *seed; /* of stochastic rounding, or NULL */
    const char *start;    /* the first element; `in` may be a later one */
    const char *in;
    char *out;
    const qk_params *p;
    layout l;
    size_t stretch, piece, rows; /* elements of a row that whole runs make, of a part of these; rows of an item */
    int far;                     /* rows that are seen together lie far apart */
    int past;                    /* results are stored past the caches */
    size_t row_items, pieces, col_items; /* of a block, of a stretch, of a row */
};

/* ---- rows of any type, by those of float32 ---- */

static int is_half(qk_dtype t) { return t == QK_F16 || t == QK_BF16; }

static void to_f32(const operation *op, const uint16_t *x, size_t stride, float *buffer, size_t rows, size_t n)
{
    if (stride == n) n *= rows, rows = 1;
    for (; rows > 0; rows--, x += stride, buffer += n)
        op->from == QK_F16 ? op->k->f16_to_f32(x, buffer, n) : op->k->bf16_to_f32(x, buffer, n);
}

static void from_f32(const operation *op, const float *buffer, uint16_t *y, size_t stride, size_t rows, size_t n)
{
    if (stride == n) n *= rows, rows = 1;
    for (; rows > 0; rows--, y += stride, buffer += n)
        op->to == QK_F16 ? op->k->f32_to_f16(buffer, y, n) : op->k->f32_to_bf16(buffer, y, n);
}

static void copy_past_caches(const operation *op, const void *buffer, char *out, size_t stride, size_t rows, size_t n)
{
    const size_t bytes = n * size_of(op->to);
    for (size_t row = 0; row < rows; row++)
        op->k->copy_past_caches((const char *)buffer + row * bytes, out + row * stride * size_of(op->to), bytes);
}

/* A part of rows, which fits the buffer. */
static void apply_converted(const operation *op, const char *in, char *out, size_t n, const qk_affines *given)
{
    float buffer[CHUNK];
    qk_affines p = *given;
    const int after = is_half(op->to) || op->past;
    if (is_half(op->from)) to_f32(op, (const uint16_t *)in, p.in_stride, buffer, p.rows, n), p.in_stride = n;
    if (after) p.out_stride = n;
    op->f32(op, is_half(op->from) ? (const void *)buffer : in, after ? (void *)buffer : out, n, &p);
    if (op->past)
        copy_past_caches(op, buffer, out, given->out_stride, p.rows, n);
    else if (is_half(op->to))
        from_f32(op, buffer, (uint16_t *)out, given->out_stride, p.rows, n);
}

/* How many floats of its cache line lie before p. Parts that end with a line make the next begin with one. */
static size_t in_line(const void *p) { return (uintptr_t)p % 64 / sizeof(float); }

static void apply_chunks(const operation *op, const char *in, char *out, size_t n, const qk_affines *given)
{
    const size_t run = min_size(given->run, n), chunk = op->past ? PAST : CHUNK;
    const size_t most = run == 1 ? FEW_COLUMNS : run < chunk ? chunk / run * run : chunk;
    qk_affines p = *given;
    for (size_t at = 0, count; at < n; at += count) {
        count = min_size(min_size(n - at, most), run < chunk ? most : run - at % run);
        if (op->past && run >= chunk) count = min_size(count, most - in_line(out + at * size_of(op->to)));
        p.apart = op->past && count > 1 ? 2 : 0; /* of runs from memory the CPU itself asks for what comes next */
        p.scale = given->scale + at / run, p.zero_point = given->zero_point + at / run;
        if (p.reciprocal) p.reciprocal = given->reciprocal + at / run;
        for (size_t row = 0; row < given->rows; row += p.rows) {
            p.rows = min_size(given->rows - row, chunk / count);
            apply_converted(op, in + (row * p.in_stride + at) * size_of(op->from),
                            out + (row * p.out_stride + at) * size_of(op->to), count, &p);
        }
    }
}

static void apply_randomly(const operation *op, const char *in, char *out, size_t n, const qk_affines *given);

static void apply_rows(const operation *op, const char *in, char *out, size_t n, const qk_affines *p)
{
    if (op->seed) {
        apply_randomly(op, in, out, n, p);
        return;
    }
    const size_t in_step = p->in_stride * size_of(op->from), out_step = p->out_stride * size_of(op->to);
    const int by_row = op->from == QK_F64 || op->to == QK_F64;
    if (!by_row && (is_half(op->from) || is_half(op->to) || op->floats || op->past))
        apply_chunks(op, in, out, n, p);
    else if (!by_row)
        op->f32(op, in, out, n, p);
    for (size_t row = 0; row < p->rows; row++, in += in_step, out += out_step) {
        if (by_row) op->f64(op, in, out, n, p);
        keep_bits(out, op->to, n);
    }
}

/* ---- which parameters an element has ---- */

static layout layout_of(const qk_params *p)
{
    const size_t total = p->outer * p->length * p->inner, block = min_size(p->block, p->length);
    if (p->kind == QK_PER_TENSOR || (p->kind == QK_PER_AXIS && p->length == 1))
        return (layout){1, 1, total, total, 0, 1, 1};
    if (p->kind == QK_PER_AXIS) return (layout){1, p->outer, p->length * p->inner, p->inner, 0, 1, p->outer};
    const size_t blocks = ceil_div(p->length, block), last = p->length - (blocks - 1) * block;
    if (p->inner > 1) return (layout){p->outer * blocks, block, p->inner, 1, p->inner, blocks, last};
    if (last == block) return (layout){1, 1, total, block, 0, 1, 1};
    return (layout){p->outer, 1, p->length, block, blocks, 1, 1};
}

static size_t first_element(const layout *l, size_t block)
{
    return (block / l->among * ((l->among - 1) * l->rows + l->last_rows) + block % l->among * l->rows) * l->length;
}

static size_t rows_of(const layout *l, size_t block)
{
    return block % l->among == l->among - 1 ? l->last_rows : l->rows;
}

static qk_affines affines_of(const operation *op, size_t first, size_t run, size_t rows, size_t stride)
{
    const qk_params *p = op->p;
    return (qk_affines){p->scale + first,
                        p->reciprocal ? p->reciprocal + first : NULL,
                        p->zero_point + first,
                        p->qmin,
                        p->qmax,
                        op->rounding == QK_HALF_AWAY,
                        run,
                        rows,
                        stride,
                        stride,
                        0};
}

static void apply_items(void *context, size_t begin, size_t end)
{
    const operation *op = context;
    const layout *l = &op->l;
    float reciprocal[COLUMNS];
    for (size_t item = begin; item < end; item++) {
        const size_t row_item = qk_over(item, op->col_items), col_item = item - row_item * op->col_items;
        const size_t block = qk_over(row_item, op->row_items), row = (row_item - block * op->row_items) * op->rows;
        const size_t part = qk_over(col_item, op->pieces);
        const size_t first = part * op->stretch, skip = (col_item - part * op->pieces) * op->piece;
        const size_t whole = min_size(l->length - first, op->stretch);
        if (row >= rows_of(l, block) || skip >= whole) continue;
        const size_t n = min_size(whole - skip, op->piece);
        const size_t at = first_element(l, block) + row * l->length + first + skip;
        qk_affines p = affines_of(op, block * l->step + qk_over(first, l->run), l->run,
                                  min_size(rows_of(l, block) - row, op->rows), l->length);
        if (!p.reciprocal && l->run > 1 && find_reciprocals(p.scale, ceil_div(n, l->run), reciprocal))
            p.reciprocal = reciprocal;
        if (op->far && p.rows > 4 && p.rows % 4 == 0) p.apart = p.rows / 4;
        apply_rows(op, op->in + at * size_of(op->from), op->out + at * size_of(op->to), n, &p);
    }
    if (op->past) qk_settle_stores();
}

/* Whether an array does not fit the cache, and is not converted in parts. */
static int is_far(const operation *op, size_t bytes)
{
    const size_t from = size_of(op->from), to = size_of(op->to);
    return bytes > FAR && from != 8 && to != 8 && !is_half(op->from) && !is_half(op->to) && !op->floats;
}

/* Whether floats are whole cache lines, or so many that it matters little if two runs share one: that is stored in two
 * parts, through the caches, and stores past them wait for it. */
static int fills_lines(size_t n) { return n % 16 == 0 || n >= PAST; }

static int apply_layout(operation *op)
{
    const layout *l = &op->l;
    const size_t bytes = first_element(l, l->blocks) * (size_of(op->from) + size_of(op->to));
    const int whole = is_far(op, bytes);
    op->past = whole && l->run > 1 && fills_lines(l->run) && fills_lines(l->length) && !op->seed &&
        size_of(op->to) == 4 && bytes > BEYOND_CACHES;
    op->far = whole && l->run == 1;
    const size_t most = op->far ? FAR_COLUMNS : l->run == 1 ? COLUMNS : PIECE;
    op->stretch = min_size(l->length, l->run < most ? most / l->run * l->run : l->run);
    op->piece = min_size(op->stretch, most);
    op->rows = (op->far ? FAR_PIECE : op->piece < l->length && l->run == 1 ? PIECE / 2 : PIECE) / op->piece;
    op->pieces = ceil_div(op->stretch, op->piece);
    op->col_items = ceil_div(l->length, op->stretch) * op->pieces;
    op->row_items = ceil_div(l->rows, op->rows);
    const double work = 0.15 * (double)l->blocks * (double)l->rows * (double)l->length;
    return qk_parallel_for(l->blocks * op->row_items * op->col_items, work, apply_items, op);
}

/* ---- narrow runs and rows: parameters are written out, one an element, and are the columns of a matrix ---- */

enum { NARROW = 32, WRITTEN = 1024, EXTRA = 4 }; /* EXTRA: elements beyond the last that may be written */

typedef struct {
    float scale[WRITTEN + EXTRA], reciprocal[WRITTEN + EXTRA];
    int32_t zero_point[WRITTEN + EXTRA];
} written;

/* Writes parameter `which` into n elements from i on, and up to EXTRA more. */
static inline void fill(written *w, const qk_params *p, size_t which, size_t i, size_t n)
{
    const float scale = p->scale[which], reciprocal = p->reciprocal ? p->reciprocal[which] : 0;
    const int32_t zero_point = p->zero_point[which];
    for (const size_t end = i + n; i < end; i += EXTRA)
        for (size_t j = i; j < i + EXTRA; j++)
            w->scale[j] = scale, w->reciprocal[j] = reciprocal, w->zero_point[j] = zero_point;
}

/* Writes n parameters from number `which` on. */
static inline void copy(written *w, const qk_params *p, size_t which, size_t i, size_t n)
{
    for (size_t j = 0; j < n; j++) {
        w->scale[i + j] = p->scale[which + j], w->zero_point[i + j] = p->zero_point[which + j];
        if (p->reciprocal) w->reciprocal[i + j] = p->reciprocal[which + j];
    }
}

/* Those of n elements from the one at `start`. */
static void write_out(written *w, const operation *op, size_t start, size_t n)
{
    const layout *l = &op->l;
    const size_t group = first_element(l, l->among);
    size_t block = start / group * l->among, rest = start % group;
    if (l->among > 1) block += min_size(rest / (l->rows * l->length), l->among - 1);
    rest = start - first_element(l, block);
    size_t row = rest / l->length, at = rest % l->length, last = rows_of(l, block);
    size_t which = block * l->step + at / l->run, skip = at % l->run;
    for (size_t i = 0, count; i < n; i += count, at += count, skip = 0) {
        if (at == l->length) at = 0, row++;
        if (row == last) row = 0, last = rows_of(l, ++block);
        if (at == 0) which = block * l->step;
        count = min_size(l->run == 1 ? l->length - at : min_size(l->run - skip, l->length - at), n - i);
        if (l->run == 1)
            copy(w, op->p, which, i, count), which += count;
        else
            fill(w, op->p, which++, i, count);
    }
}

static void apply_written(void *context, size_t begin, size_t end)
{
    const operation *op = context;
    const size_t total = first_element(&op->l, op->l.blocks);
    written w;
    for (size_t item = begin, at = begin * WRITTEN; item < end; item++, at += WRITTEN) {
        const size_t n = min_size(total - at, WRITTEN);
        write_out(&w, op, at, n);
        qk_affines p = affines_of(op, 0, 1, 1, n);
        p.scale = w.scale, p.zero_point = w.zero_point;
        if (p.reciprocal) p.reciprocal = w.reciprocal;
        apply_rows(op, op->in + at * size_of(op->from), op->out + at * size_of(op->to), n, &p);
    }
}

/* Rows so short that several are written out once, and serve all others. */
static int apply_periods(const operation *op)
{
    const layout *l = &op->l;
    written w;
    operation part = *op;
    qk_params columns = *op->p;
    const size_t rows = min_size(WRITTEN / l->length, l->rows), whole = l->rows / rows;
    write_out(&w, op, 0, rows * l->length);
    columns.scale = w.scale, columns.zero_point = w.zero_point;
    if (columns.reciprocal) columns.reciprocal = w.reciprocal;
    part.p = &columns, part.l = (layout){1, whole, rows * l->length, 1, 0, 1, whole};
    const int status = apply_layout(&part);
    const size_t done = whole * rows * l->length;
    part.in += done * size_of(op->from), part.out += done * size_of(op->to);
    part.l.rows = part.l.last_rows = 1, part.l.length = l->rows * l->length - done;
    return status || !part.l.length ? status : apply_layout(&part);
}

static int apply_all(operation *op, const qk_params *p)
{
    const size_t total = p->outer * p->length * p->inner;
    op->k = qk_active()->elementwise, op->p = p;
    if (total == 0) return 0;
    op->l = layout_of(p);
    const layout *l = &op->l;
    const size_t least = op->floats && l->run > 1 ? NARROW / 2 : NARROW; /* blocks of 16 are those of NVFP4 */
    const int narrow = (l->run > 1 ? l->run : l->blocks > 1 ? l->length : l->length / 4) < least;
    const int ragged = l->blocks > 1 && l->run > 1 && l->length < WRITTEN;
    if (narrow && l->blocks == 1 && l->rows > 1 && 2 * l->length <= WRITTEN) return apply_periods(op);
    if ((!narrow || (l->blocks == 1 && l->run == 1)) && !ragged) return apply_layout(op);
    return qk_parallel_for(ceil_div(total, WRITTEN), 0.5 * (double)total, apply_written, op);
}

/* ---- float64: the same formulas in double ---- */

static double quotient_f64(double x, double scale, double lo, double hi)
{
    double v = x / scale;
    return v != v ? 0.0 : v < lo ? lo : v > hi ? hi : v;
}

static double round_f64(double v, int half_away) { return half_away ? round(v) : (v + 0x1.8p52) - 0x1.8p52; }

/* Goes to the parameters of the next element. */
static void move_on(const qk_affines *p, size_t *which, size_t *left)
{
    if (--*left == 0) *left = p->run, ++*which;
}

static void quantize_f64(const operation *op, const void *in, void *q, size_t n, const qk_affines *p)
{
    const double *x = in;
    for (size_t i = 0, which = 0, left = p->run; i < n; i++, move_on(p, &which, &left)) {
        const double zero = p->zero_point[which];
        const double v = quotient_f64(x[i], p->scale[which], p->qmin - zero, p->qmax - zero);
        const int32_t code = (int32_t)(round_f64(v, p->half_away) + zero);
        if (size_of(op->to) == 1)
            ((uint8_t *)q)[i] = (uint8_t)code;
        else
            ((uint16_t *)q)[i] = (uint16_t)code;
    }
}

static void fake_quantize_f64(const operation *op, const void *in, void *y, size_t n, const qk_affines *p)
{
    (void)op;
    for (size_t i = 0, which = 0, left = p->run; i < n; i++, move_on(p, &which, &left)) {
        const double scale = p->scale[which], zero = p->zero_point[which];
        const double v = quotient_f64(((const double *)in)[i], scale, p->qmin - zero, p->qmax - zero);
        ((double *)y)[i] = round_f64(v, 0) * scale;
    }
}

static void dequantize_f64(const operation *op, const void *q, void *y, size_t n, const qk_affines *p)
{
    for (size_t i = 0, which = 0, left = p->run; i < n; i++, move_on(p, &which, &left)) {
        const uint32_t difference = (uint32_t)qk_code_at(q, op->from, i) - (uint32_t)p->zero_point[which];
        ((double *)y)[i] = (double)(int32_t)difference * p->scale[which];
    }
}

/* ---- stochastic rounding (numerics 27) ---- */

static int32_t random_f64(double x, uint16_t u, double scale, double lo, double hi)
{
    const double v = quotient_f64(x, scale, lo, hi), r = round_f64(v, 0);
    const int32_t k = x == r * scale ? 0 : (int32_t)round_f64((v - r) * 65536, 0);
    return (int32_t)r + ((k + u) >> 16);
}

static void round_randomly_f64(const operation *op, const double *x, const uint16_t *u, void *to, size_t n,
                               const qk_affines *p)
{
    const size_t bytes = size_of(op->to);
    for (size_t i = 0; i < n; i++) {
        const size_t which = p->run == 1 ? i : 0;
        const int32_t zero = p->zero_point[which];
        const int32_t code = random_f64(x[i], u[i], p->scale[which], p->qmin - zero, p->qmax - zero);
        if (bytes == 8)
            ((double *)to)[i] = (double)code * p->scale[which];
        else if (bytes == 2)
            ((uint16_t *)to)[i] = (uint16_t)(code + zero);
        else
            ((uint8_t *)to)[i] = (uint8_t)(code + zero);
    }
}

/* Up to QK_RANDOM elements, which have a parameter each or share one. */
static void round_randomly(const operation *op, const char *in, const uint16_t *u, char *out, size_t n,
                           const qk_affines *p)
{
    float x[QK_RANDOM];
    const int half = is_half(op->to);
    if (op->from == QK_F64)
        round_randomly_f64(op, (const double *)in, u, out, n, p);
    else if (!is_half(op->from))
        op->k->round_randomly_f32((const float *)in, u, out, size_of(op->to), n, p);
    else
        to_f32(op, (const uint16_t *)in, n, x, 1, n),
            op->k->round_randomly_f32(x, u, half ? (void *)x : out, half ? sizeof *x : size_of(op->to), n, p);
    if (half) from_f32(op, x, (uint16_t *)out, n, 1, n);
    keep_bits(out, op->to, n);
}

/* Rows of float32, short and one after another, that share the parameters of their columns. */
static void apply_to_columns(const operation *op, const char *in, char *out, size_t n, const qk_affines *given)
{
    enum { ROOM = 4 * QK_RANDOM };
    uint16_t u[ROOM];
    const size_t to = size_of(op->to), in_bytes = given->in_stride * sizeof(float), out_bytes = given->out_stride * to;
    qk_affines p = *given;
    for (size_t row = 0; row < given->rows; row += p.rows) {
        const char *x = in + row * in_bytes;
        char *y = out + row * out_bytes;
        p.rows = min_size(given->rows - row, ROOM / n);
        op->k->random_16((uint64_t)(x - op->start) / sizeof(float), *op->seed, u, p.rows * n);
        op->k->round_randomly_f32((const float *)x, u, y, to, n, &p);
        for (size_t i = 0; i < p.rows; i++) keep_bits(y + i * out_bytes, op->to, n);
    }
}

static void apply_randomly(const operation *op, const char *in, char *out, size_t n, const qk_affines *given)
{
    if (given->run == 1 && op->from == QK_F32 && given->in_stride == n && 2 * n <= QK_RANDOM) {
        apply_to_columns(op, in, out, n, given);
        return;
    }
    uint16_t u[QK_RANDOM];
    const size_t from = size_of(op->from), to = size_of(op->to);
    for (size_t row = 0; row < given->rows; row++, in += given->in_stride * from, out += given->out_stride * to) {
        const uint64_t index = (uint64_t)(in - op->start) / from;
        qk_affines p = *given;
        p.rows = 1;
        for (size_t at = 0, count, first = 0, made = 0; at < n; at += count) {
            const size_t which = at / given->run;
            count = min_size(n - at, given->run == 1 ? QK_RANDOM : given->run - at % given->run);
            if (at == made) { /* up to where others begin */
                first = at, made = at + min_size(n - at, QK_RANDOM - (index + at) % QK_RANDOM);
                op->k->random_16(index + at, *op->seed, u, made - at);
            }
            count = min_size(count, made - at);
            p.scale = given->scale + which, p.zero_point = given->zero_point + which;
            if (p.reciprocal) p.reciprocal = given->reciprocal + which;
            round_randomly(op, in + at * from, u + (at - first), out + at * to, count, &p);
        }
    }
}

/* ---- quantize, dequantize, fake quantize ---- */

static void quantize_f32(const operation *op, const void *x, void *q, size_t n, const qk_affines *p)
{
    size_of(op->to) == 1 ? op->k->quantize_rows_f32_8(x, q, n, p) : op->k->quantize_rows_f32_16(x, q, n, p);
}

static void dequantize_f32(const operation *op, const void *q, void *y, size_t n, const qk_affines *p)
{
    op->k->dequantize_rows_f32(q, op->from, y, n, p);
}

static void fake_quantize_f32(const operation *op, const void *x, void *y, size_t n, const qk_affines *p)
{
    op->k->fake_quantize_rows_f32(x, y, n, p);
}

/* ---- codes that are floats: quotients, or values, of a part of rows are in a buffer ---- */

static const qk_small_float *floats_of(qk_dtype t)
{
    static const qk_small_float formats[] = {{20, 121 << 23, 0x1p-9f, 0x7e, 0x7f, 0x7f, 7, 448},
                                             {21, 113 << 23, 0x1p-16f, 0x7b, 0x7e, 0x7c, 7, 57344},
                                             {20, 127 << 23, 0x1p-3f, 0x1f, 0, 0x20, 5, 8},
                                             {21, 125 << 23, 0x1p-4f, 0x1f, 0, 0x20, 5, 28},
                                             {22, 127 << 23, 0x1p-1f, 7, 0, 8, 3, 6}};
    return is_small_float(t) ? formats + (t - QK_F8_E4M3) : NULL;
}

/* The buffer has rows one after the other. */
static qk_affines in_buffer(const qk_affines *given, size_t n, int in, int out)
{
    qk_affines p = *given;
    if (in) p.in_stride = n;
    if (out) p.out_stride = n;
    return p;
}

static void quantize_floats_f32(const operation *op, const void *x, void *q, size_t n, const qk_affines *given)
{
    float v[CHUNK];
    const qk_affines p = in_buffer(given, n, 0, 1);
    op->k->quotients_rows_f32(x, v, n, &p);
    for (size_t row = 0; row < p.rows; row++)
        op->k->small_floats(v + row * n, (uint8_t *)q + row * given->out_stride, n, op->floats);
}

static void dequantize_floats_f32(const operation *op, const void *q, void *y, size_t n, const qk_affines *given)
{
    float v[CHUNK];
    const qk_affines p = in_buffer(given, n, 1, 0);
    for (size_t row = 0; row < p.rows; row++)
        op->k->small_float_values((const uint8_t *)q + row * given->in_stride, v + row * n, n, op->floats);
    op->k->dequantize_rows_f32(v, QK_F32, y, n, &p);
}

static void fake_quantize_floats_f32(const operation *op, const void *x, void *y, size_t n, const qk_affines *given)
{
    uint8_t q[CHUNK];
    qk_affines p = in_buffer(given, n, 0, 1);
    quantize_floats_f32(op, x, q, n, &p);
    p = in_buffer(given, n, 1, 0);
    dequantize_floats_f32(op, q, y, n, &p);
}

/* Rounded to odd. */
static float odd_f32(double v)
{
    float near = (float)v;
    int32_t bits;
    if (near == v || v != v) return near;
    memcpy(&bits, &near, sizeof bits);
    bits = (bits - (fabs(near) > fabs(v))) | 1;
    memcpy(&near, &bits, sizeof near);
    return near;
}

static double clamped_f64(double x, double scale, double most)
{
    const double v = x / scale;
    return v < -most ? -most : v > most ? most : v;
}

static void quantize_floats_f64(const operation *op, const void *in, void *q, size_t n, const qk_affines *p)
{
    float v[CHUNK];
    for (size_t i = 0, which = 0, left = p->run, at = 0; i < n; i++, move_on(p, &which, &left)) {
        v[i - at] = odd_f32(clamped_f64(((const double *)in)[i], p->scale[which], p->qmax));
        if (i + 1 - at < CHUNK && i + 1 < n) continue;
        op->k->small_floats(v, (uint8_t *)q + at, i + 1 - at, op->floats);
        at = i + 1;
    }
}

static void dequantize_floats_f64(const operation *op, const void *q, void *y, size_t n, const qk_affines *p)
{
    float v[CHUNK];
    for (size_t i = 0, which = 0, left = p->run; i < n; i++, move_on(p, &which, &left)) {
        if (i % CHUNK == 0) op->k->small_float_values((const uint8_t *)q + i, v, min_size(n - i, CHUNK), op->floats);
        ((double *)y)[i] = (double)v[i % CHUNK] * p->scale[which];
    }
}

static void fake_quantize_floats_f64(const operation *op, const void *in, void *y, size_t n, const qk_affines *p)
{
    for (size_t i = 0, which = 0, left = p->run; i < n; i++, move_on(p, &which, &left)) {
        const double scale = p->scale[which];
        float v = odd_f32(clamped_f64(((const double *)in)[i], scale, p->qmax));
        uint8_t q;
        op->k->small_floats(&v, &q, 1, op->floats);
        op->k->small_float_values(&q, &v, 1, op->floats);
        ((double *)y)[i] = (double)v * scale;
    }
}

/* Whether an operation can be what it is asked to be, as far as that shows without a look at each scale. */
static int can_apply(const qk_params *p, const void *in, const void *out, qk_dtype codes)
{
    if (!p || (unsigned)p->kind > QK_PER_BLOCK || (p->kind == QK_PER_BLOCK && !p->block)) return 0;
    const size_t total = qk_times(qk_times(p->outer, p->length), p->inner);
    const int32_t least = least_code(codes), most = most_code(codes);
    if (total > PTRDIFF_MAX / sizeof(double) || p->qmin > p->qmax || p->qmin < least || p->qmax > most) return 0;
    if (total == 0) return 1;
    if (!in || !out || !p->scale || !p->zero_point) return 0;
    if (p->kind != QK_PER_TENSOR) return 1;
    return *p->scale >= FLT_MIN && *p->scale <= FLT_MAX && *p->zero_point >= least && *p->zero_point <= most;
}

int qk_quantize_inside(const void *x, qk_dtype from, void *q, qk_dtype to, const qk_params *p, qk_rounding rounding)
{
    operation op = {
        .f32 = quantize_f32, .f64 = quantize_f64, .from = from, .to = to, .rounding = rounding, .in = x, .out = q};
    return apply_all(&op, p);
}

/* Returns parameters for codes of a type, or NULL if they cannot be applied. */
static const qk_params *params_for(const qk_params *p, const void *in, const void *out, qk_dtype codes, qk_params *own)
{
    if (!p || !is_small_float(codes)) return can_apply(p, in, out, codes) ? p : NULL;
    *own = *p, own->qmin = own->qmax = 0;
    if (!can_apply(own, in, out, codes)) return NULL;
    own->qmax = floats_of(codes)->bound, own->qmin = -own->qmax;
    return own;
}

static int quantize_floats(const void *x, qk_dtype from, void *q, qk_dtype to, const qk_params *p)
{
    operation op = {.f32 = quantize_floats_f32,
                    .f64 = quantize_floats_f64,
                    .floats = floats_of(to),
                    .from = from,
                    .to = to,
                    .in = x,
                    .out = q};
    return apply_all(&op, p);
}

qk_status qk_quantize(const void *x, qk_dtype from, void *q, qk_dtype to, const qk_params *p, qk_rounding rounding)
{
    QK_DEFAULT_MODE;
    qk_params own;
    const int floats = is_small_float(to);
    if (!is_float(from) || !(is_code(to) || floats) || (unsigned)rounding > (floats ? QK_HALF_EVEN : QK_HALF_AWAY) ||
        !(p = params_for(p, x, q, to, &own)))
        return QK_INVALID;
    return (qk_status)(floats ? quantize_floats(x, from, q, to, p) : qk_quantize_inside(x, from, q, to, p, rounding));
}

qk_status qk_dequantize(const void *q, qk_dtype from, void *y, qk_dtype to, const qk_params *p)
{
    QK_DEFAULT_MODE;
    qk_params own;
    const int floats = is_small_float(from);
    if (!(is_code(from) || floats || from == QK_I32) || !is_float(to) || !(p = params_for(p, q, y, from, &own)))
        return QK_INVALID;
    operation op = {.f32 = floats ? dequantize_floats_f32 : dequantize_f32,
                    .f64 = floats ? dequantize_floats_f64 : dequantize_f64,
                    .floats = floats_of(from),
                    .from = from,
                    .to = to,
                    .in = q,
                    .out = y};
    return (qk_status)apply_all(&op, p);
}

qk_status qk_fake_quantize(const void *x, void *y, qk_dtype dtype, const qk_params *p)
{
    QK_DEFAULT_MODE;
    if (!is_float(dtype) || !can_apply(p, x, y, QK_I32)) return QK_INVALID;
    operation op = {.f32 = fake_quantize_f32, .f64 = fake_quantize_f64, .from = dtype, .to = dtype, .in = x, .out = y};
    return (qk_status)apply_all(&op, p);
}

int qk_fake_quantize_floats(const void *x, void *y, qk_dtype dtype, qk_dtype codes, const qk_params *p)
{
    QK_DEFAULT_MODE;
    qk_params own;
    operation op = {.f32 = fake_quantize_floats_f32,
                    .f64 = fake_quantize_floats_f64,
                    .floats = floats_of(codes),
                    .from = dtype,
                    .to = dtype,
                    .in = x,
                    .out = y};
    p = params_for(p, x, y, codes, &own);
    return p ? apply_all(&op, p) : QK_INVALID;
}

int qk_quantize_randomly(const void *x, qk_dtype from, void *q, qk_dtype to, const qk_params *p, uint64_t seed)
{
    QK_DEFAULT_MODE;
    operation op = {.from = from, .to = to, .seed = &seed, .start = x, .in = x, .out = q};
    return apply_all(&op, p);
}
