/* Drivers of the elementwise operations: which scale an element has, conversion of the float types, threads. */
#include <float.h>
#include <math.h>

#include "drivers/drivers.h"
#include "drivers/elementwise.h"
#include "kernels/kernels.h"
#include "runtime/compiler.h"
#include "runtime/fpmode.h"
#include "runtime/parallel.h"
#include "runtime/sizes.h"

enum { CHUNK = 1024 };              /* elements that are converted at a time: fits the L1 cache */
enum { COLUMNS = 1024, ROWS = 16 }; /* the same of runs with a scale for each column */

/* numerics 3: outside these scales the product with the reciprocal is not the quotient */
static float reciprocal_of(float scale) { return scale >= 0x1p-64f && scale <= 0x1p64f ? 1.0f / scale : 0.0f; }

int qk_reciprocals(const float *scale, size_t n, float *reciprocal)
{
    QK_DEFAULT_MODE;
    int all = 1;
    for (size_t i = 0; i < n; i++) {
        reciprocal[i] = reciprocal_of(scale[i]);
        all &= reciprocal[i] != 0;
    }
    return all;
}

static QK_INLINE void set_affine(qk_affine *p, float scale, int32_t zero_point, int32_t qmin, int32_t qmax,
                                 qk_rounding rounding)
{
    p->scale = scale, p->zero_point = zero_point, p->qmin = qmin, p->qmax = qmax;
    p->half_away = rounding == QK_HALF_AWAY;
    p->v_lo = (float)(qmin - zero_point);
    p->v_hi = (float)(qmax - zero_point);
    p->x_lo = p->v_lo * scale;
    p->x_hi = p->v_hi * scale;
    p->reciprocal = reciprocal_of(scale);
}

void qk_set_affine(qk_affine *p, float scale, int32_t zero_point, int32_t qmin, int32_t qmax, qk_rounding rounding)
{
    set_affine(p, scale, zero_point, qmin, qmax, rounding);
}

qk_affine qk_affine_of(float scale, int32_t zero_point, int32_t qmin, int32_t qmax, qk_rounding rounding)
{
    qk_affine p;
    set_affine(&p, scale, zero_point, qmin, qmax, rounding);
    return p;
}

/* ---- runs: consecutive elements with one scale, or rows of them with a scale for each column ---- */

typedef struct {
    size_t items, length; /* runs, and the elements of each (of a row, where there are rows) */
    int by_column;
    const qk_params *p;
} runs;

typedef struct {
    size_t start, count, rows, first; /* first: index of the first scale */
} run;

static runs runs_of(const qk_params *p)
{
    const size_t total = p->outer * p->length * p->inner;
    if (total == 0) return (runs){0, 0, 0, p};
    if (p->kind == QK_PER_TENSOR) return (runs){1, total, 0, p};
    if (p->kind == QK_PER_AXIS) {
        if (p->inner == 1) return (runs){ceil_div(p->outer, ROWS), p->length, 1, p};
        return (runs){p->outer * p->length, p->inner, 0, p};
    }
    const size_t items = p->outer * ceil_div(p->length, p->block);
    if (p->inner == 1) return (runs){items, min_size(p->block, p->length), 0, p};
    return (runs){items, p->inner, 1, p};
}

static run run_at(const runs *r, size_t item)
{
    const qk_params *p = r->p;
    if (p->kind == QK_PER_TENSOR) return (run){0, r->length, 1, 0};
    if (p->kind == QK_PER_AXIS) {
        if (p->inner > 1) return (run){item * p->inner, p->inner, 1, item % p->length};
        return (run){item * ROWS * p->length, p->length, min_size(p->outer - item * ROWS, ROWS), 0};
    }
    const size_t blocks = ceil_div(p->length, p->block), begin = item % blocks * p->block;
    const size_t start = (item / blocks * p->length + begin) * p->inner, count = min_size(p->length - begin, p->block);
    if (p->inner == 1) return (run){start, count, 1, item};
    return (run){start, p->inner, count, item * p->inner};
}

/* Applies an operation to n elements that share the affine map, or whose maps are columns. */
typedef struct operation operation;
struct operation {
    void (*apply)(const operation *op, const void *in, void *out, size_t n, const qk_affine *one,
                  const qk_affine_columns *columns);
    const qk_elementwise_kernels *k;
    qk_dtype from, to;
    qk_rounding rounding;
    const char *in;
    char *out;
    runs r;
    size_t piece, pieces; /* elements of a row at a time, and how many times */
};

/* before_line of the wider operand, which is the float one. */
static size_t misaligned(const operation *op, const void *in, const void *out, size_t n)
{
    const size_t in_size = size_of(op->from), out_size = size_of(op->to);
    return in_size >= out_size ? before_line(in, in_size, n) : before_line(out, out_size, n);
}

static void apply_affine(const operation *op, const char *in, char *out, size_t n, size_t scale)
{
    const qk_params *p = op->r.p;
    const qk_affine one = qk_affine_of(p->scale[scale], p->zero_point[scale], p->qmin, p->qmax, op->rounding);
    const size_t head = misaligned(op, in, out, n);
    if (head) op->apply(op, in, out, head, &one, NULL);
    op->apply(op, in + head * size_of(op->from), out + head * size_of(op->to), n - head, &one, NULL);
}

/* All rows at once where the operands are float32, whose kernels know rows; else one by one. */
static void apply_columns(const operation *op, const char *in, char *out, size_t n, size_t scale, size_t rows)
{
    const qk_params *p = op->r.p;
    qk_affine_columns columns = {p->scale + scale,
                                 p->reciprocal ? p->reciprocal + scale : NULL,
                                 p->zero_point + scale,
                                 p->qmin,
                                 p->qmax,
                                 op->rounding == QK_HALF_AWAY,
                                 rows,
                                 op->r.length};
    if ((op->from == QK_F32 || op->from >= QK_I8) && (op->to == QK_F32 || op->to >= QK_I8)) {
        op->apply(op, in, out, n, NULL, &columns);
        return;
    }
    columns.rows = 1;
    for (size_t row = 0; row < rows;
         row++, in += op->r.length * size_of(op->from), out += op->r.length * size_of(op->to))
        op->apply(op, in, out, n, NULL, &columns);
}

static void apply_range(void *context, size_t begin, size_t end)
{
    const operation *op = context;
    for (size_t item = begin; item < end; item++) {
        const run part = run_at(&op->r, item / op->pieces);
        const size_t skip = item % op->pieces * op->piece;
        if (skip >= part.count) continue;
        const size_t n = min_size(part.count - skip, op->piece);
        const char *in = op->in + (part.start + skip) * size_of(op->from);
        char *out = op->out + (part.start + skip) * size_of(op->to);
        if (op->r.by_column)
            apply_columns(op, in, out, n, part.first + skip, part.rows);
        else
            apply_affine(op, in, out, n, part.first);
    }
}

static int apply_runs(operation *op, const qk_params *p)
{
    op->r = runs_of(p);
    op->piece = op->r.by_column ? COLUMNS : PIECE;
    op->pieces = ceil_div(op->r.length, op->piece);
    const double work = 0.15 * (double)(p->outer * p->length * p->inner);
    return qk_parallel_for(op->r.items * op->pieces, work, apply_range, op);
}

/* ---- short runs: the scales of consecutive elements are written out, and are the columns of a matrix ---- */

enum { SHORT = 128, WRITTEN = 1024 }; /* elements of a run, and those whose scales are written out at a time */

typedef struct {
    float scale[WRITTEN], reciprocal[WRITTEN];
    int32_t zero_point[WRITTEN];
} written;

/* The scales of `count` elements from the one at `start`. */
static void write_out(written *w, const qk_params *p, size_t start, size_t count)
{
    size_t which = start / p->inner % p->length, left = p->inner - start % p->inner;
    for (size_t i = 0; i < count; i++) {
        w->scale[i] = p->scale[which], w->zero_point[i] = p->zero_point[which];
        if (p->reciprocal) w->reciprocal[i] = p->reciprocal[which];
        if (--left == 0) left = p->inner, which = which + 1 < p->length ? which + 1 : 0;
    }
}

static void apply_written(void *context, size_t begin, size_t end)
{
    const operation *op = context;
    const qk_params *p = op->r.p;
    written w;
    const qk_affine_columns columns = {
        w.scale, p->reciprocal ? w.reciprocal : NULL, w.zero_point, p->qmin, p->qmax, op->rounding == QK_HALF_AWAY, 1,
        0};
    for (size_t start = begin * WRITTEN; begin < end; begin++, start += WRITTEN) {
        const size_t n = min_size(op->r.length - start, WRITTEN);
        write_out(&w, p, start, n);
        op->apply(op, op->in + start * size_of(op->from), op->out + start * size_of(op->to), n, NULL, &columns);
    }
}

/* Where whole periods fit, they are written out once and serve all rows. */
static int apply_periods(const operation *op, const qk_params *p, size_t period)
{
    written w;
    qk_params matrix = *p;
    operation part = *op;
    const size_t columns = WRITTEN / period * period, total = p->outer * period, rows = total / columns;
    write_out(&w, p, 0, columns);
    matrix.scale = w.scale, matrix.zero_point = w.zero_point;
    if (p->reciprocal) matrix.reciprocal = w.reciprocal;
    matrix.outer = rows, matrix.length = columns, matrix.inner = 1;
    const int status = apply_runs(&part, &matrix);
    if (status) return status;
    part.in += rows * columns * size_of(op->from), part.out += rows * columns * size_of(op->to);
    matrix.outer = 1, matrix.length = total - rows * columns;
    return apply_runs(&part, &matrix);
}

static int apply_all(operation *op, const qk_params *p)
{
    const size_t period = p->length * p->inner, total = p->outer * period;
    op->k = qk_active()->elementwise;
    if (p->kind != QK_PER_AXIS || total == 0 || (p->inner > 1 ? p->inner : p->length) >= SHORT) {
        return apply_runs(op, p);
    } else if (2 * period <= WRITTEN) {
        return apply_periods(op, p, period);
    } else {
        op->r = (runs){ceil_div(total, WRITTEN), total, 1, p};
        return qk_parallel_for(op->r.items, 0.5 * (double)total, apply_written, op);
    }
}

/* ---- float64: the same formulas in double ---- */

static double quotient_f64(double x, double scale, double lo, double hi)
{
    double v = x / scale;
    return v != v ? 0.0 : v < lo ? lo : v > hi ? hi : v;
}

static double round_f64(double v, int half_away) { return half_away ? round(v) : (v + 0x1.8p52) - 0x1.8p52; }

static void affine_at(const qk_affine *one, const qk_affine_columns *columns, size_t i, double *scale, double *zero,
                      double *lo, double *hi)
{
    *scale = one ? one->scale : columns->scale[i];
    *zero = one ? one->zero_point : columns->zero_point[i];
    *lo = one ? one->v_lo : (double)columns->qmin - *zero;
    *hi = one ? one->v_hi : (double)columns->qmax - *zero;
}

static void quantize_f64(const double *x, void *q, qk_dtype to, size_t n, int half_away, const qk_affine *one,
                         const qk_affine_columns *columns)
{
    for (size_t i = 0; i < n; i++) {
        double scale, zero, lo, hi;
        affine_at(one, columns, i, &scale, &zero, &lo, &hi);
        int32_t code = (int32_t)(round_f64(quotient_f64(x[i], scale, lo, hi), half_away) + zero);
        if (size_of(to) == 1)
            ((uint8_t *)q)[i] = (uint8_t)code;
        else
            ((uint16_t *)q)[i] = (uint16_t)code;
    }
}

static void fake_quantize_f64(const double *x, double *y, size_t n, const qk_affine *one,
                              const qk_affine_columns *columns)
{
    for (size_t i = 0; i < n; i++) {
        double scale, zero, lo, hi;
        affine_at(one, columns, i, &scale, &zero, &lo, &hi);
        y[i] = round_f64(quotient_f64(x[i], scale, lo, hi), 0) * scale;
    }
}

static void dequantize_f64(const void *q, qk_dtype from, double *y, size_t n, const qk_affine *one,
                           const qk_affine_columns *columns)
{
    for (size_t i = 0; i < n; i++) {
        double scale, zero, lo, hi;
        affine_at(one, columns, i, &scale, &zero, &lo, &hi);
        uint32_t difference = (uint32_t)qk_code_at(q, from, i) - (uint32_t)(int32_t)zero;
        y[i] = (double)(int32_t)difference * scale;
    }
}

/* ---- conversion of a chunk to and from float32 ---- */

static const float *to_f32(const qk_elementwise_kernels *k, const void *x, qk_dtype from, float *buffer, size_t n)
{
    if (from == QK_F32) return x;
    if (from == QK_F16)
        k->f16_to_f32(x, buffer, n);
    else
        k->bf16_to_f32(x, buffer, n);
    return buffer;
}

static void from_f32(const qk_elementwise_kernels *k, const float *x, void *y, qk_dtype to, size_t n)
{
    if (to == QK_F16)
        k->f32_to_f16(x, y, n);
    else if (to == QK_BF16)
        k->f32_to_bf16(x, y, n);
}

static void advance(qk_affine_columns *columns, size_t n)
{
    columns->scale += n;
    columns->zero_point += n;
    if (columns->reciprocal) columns->reciprocal += n;
}

/* ---- quantize ---- */

static void quantize_f32(const operation *op, const float *x, void *q, size_t n, const qk_affine *one,
                         const qk_affine_columns *columns)
{
    const qk_elementwise_kernels *k = op->k;
    if (size_of(op->to) == 1)
        one ? k->quantize_f32_8(x, q, n, one) : k->quantize_columns_f32_8(x, q, n, columns);
    else
        one ? k->quantize_f32_16(x, q, n, one) : k->quantize_columns_f32_16(x, q, n, columns);
}

static void quantize_any_float(const operation *op, const void *x, void *q, size_t n, const qk_affine *one,
                               const qk_affine_columns *columns)
{
    if (op->from == QK_F32) {
        quantize_f32(op, x, q, n, one, columns);
        return;
    }
    if (op->from == QK_F64) {
        quantize_f64(x, q, op->to, n, op->rounding == QK_HALF_AWAY, one, columns);
        return;
    }
    float buffer[CHUNK];
    qk_affine_columns rest = columns ? *columns : (qk_affine_columns){0};
    for (size_t done = 0, count; done < n; done += count) {
        count = min_size(n - done, CHUNK);
        const float *part = to_f32(op->k, (const uint16_t *)x + done, op->from, buffer, count);
        quantize_f32(op, part, (char *)q + done * size_of(op->to), count, one, &rest);
        advance(&rest, count);
    }
}

static void apply_quantize(const operation *op, const void *x, void *q, size_t n, const qk_affine *one,
                           const qk_affine_columns *columns)
{
    quantize_any_float(op, x, q, n, one, columns);
    const size_t rows = columns ? columns->rows : 1, stride = columns ? columns->stride : 0;
    for (size_t row = 0; row < rows; row++) keep_bits((char *)q + row * stride, op->to, n);
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
    operation op = {.apply = apply_quantize, .from = from, .to = to, .rounding = rounding, .in = x, .out = q};
    return apply_all(&op, p);
}

qk_status qk_quantize(const void *x, qk_dtype from, void *q, qk_dtype to, const qk_params *p, qk_rounding rounding)
{
    QK_DEFAULT_MODE;
    if (!is_float(from) || !is_code(to) || (unsigned)rounding > QK_HALF_AWAY || !can_apply(p, x, q, to))
        return QK_INVALID;
    return (qk_status)qk_quantize_inside(x, from, q, to, p, rounding);
}

/* ---- dequantize ---- */

static void apply_dequantize(const operation *op, const void *q, void *y, size_t n, const qk_affine *one,
                             const qk_affine_columns *columns)
{
    const qk_elementwise_kernels *k = op->k;
    if (op->to == QK_F64) {
        dequantize_f64(q, op->from, y, n, one, columns);
        return;
    }
    float buffer[CHUNK];
    const size_t step = op->to == QK_F32 ? n : CHUNK;
    qk_affine_columns rest = columns ? *columns : (qk_affine_columns){0};
    for (size_t done = 0, count; done < n; done += count) {
        count = min_size(n - done, step);
        const char *part = (const char *)q + done * size_of(op->from);
        float *to = op->to == QK_F32 ? (float *)y : buffer;
        if (one)
            k->dequantize_f32(part, op->from, to, count, one);
        else
            k->dequantize_columns_f32(part, op->from, to, count, &rest);
        from_f32(k, buffer, (uint16_t *)y + done, op->to, count);
        advance(&rest, count);
    }
}

qk_status qk_dequantize(const void *q, qk_dtype from, void *y, qk_dtype to, const qk_params *p)
{
    QK_DEFAULT_MODE;
    if (!(is_code(from) || from == QK_I32) || !is_float(to) || !can_apply(p, q, y, from)) return QK_INVALID;
    operation op = {.apply = apply_dequantize, .from = from, .to = to, .in = q, .out = y};
    return (qk_status)apply_all(&op, p);
}

/* ---- fake quantize ---- */

static void apply_fake_quantize(const operation *op, const void *x, void *y, size_t n, const qk_affine *one,
                                const qk_affine_columns *columns)
{
    const qk_elementwise_kernels *k = op->k;
    if (op->from == QK_F64) {
        fake_quantize_f64(x, y, n, one, columns);
        return;
    }
    float buffer[CHUNK];
    const size_t step = op->from == QK_F32 ? n : CHUNK;
    qk_affine_columns rest = columns ? *columns : (qk_affine_columns){0};
    for (size_t done = 0, count; done < n; done += count) {
        count = min_size(n - done, step);
        const float *part = to_f32(k, (const char *)x + done * size_of(op->from), op->from, buffer, count);
        float *to = op->from == QK_F32 ? (float *)y : buffer;
        if (one)
            k->fake_quantize_f32(part, to, count, one);
        else
            k->fake_quantize_columns_f32(part, to, count, &rest);
        from_f32(k, buffer, (uint16_t *)y + done, op->from, count);
        advance(&rest, count);
    }
}

qk_status qk_fake_quantize(const void *x, void *y, qk_dtype dtype, const qk_params *p)
{
    QK_DEFAULT_MODE;
    if (!is_float(dtype) || !can_apply(p, x, y, QK_I32)) return QK_INVALID;
    operation op = {.apply = apply_fake_quantize, .from = dtype, .to = dtype, .in = x, .out = y};
    return (qk_status)apply_all(&op, p);
}
