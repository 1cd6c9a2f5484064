/* Drivers of the elementwise operations: which scale an element has, conversion of the float types, threads. */
#include <float.h>
#include <math.h>
#include <string.h>

#include "drivers/blocking.h"
#include "runtime/fpmode.h"
#include "kernels/kernels.h"
#include "runtime/parallel.h"

enum { CHUNK = 1024 };              /* elements that are converted at a time: fits the L1 cache */
enum { PIECE = 32768 };             /* elements of a long run that a thread takes at a time */
enum { COLUMNS = 1024, ROWS = 16 }; /* the same of runs with a scale for each column */

static size_t size_of(qk_dtype t)
{
    static const uint8_t sizes[] = {4, 8, 2, 2, 1, 1, 2, 2, 4, 1, 1, 1, 1};
    return sizes[t];
}

/* Clears what lies above the code in a byte. */
static void keep_bits(void *q, qk_dtype to, size_t n)
{
    if (to < QK_I4) return;
    const uint8_t mask = to <= QK_U4 ? 15 : 3;
    uint8_t *bytes = q;
    for (size_t i = 0; i < n; i++) bytes[i] &= mask;
}

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

qk_affine qk_affine_of(float scale, int32_t zero_point, int32_t qmin, int32_t qmax, qk_rounding rounding)
{
    qk_affine p = {
        .scale = scale, .zero_point = zero_point, .qmin = qmin, .qmax = qmax, .half_away = rounding == QK_HALF_AWAY};
    p.v_lo = (float)(qmin - zero_point);
    p.v_hi = (float)(qmax - zero_point);
    p.x_lo = p.v_lo * scale;
    p.x_hi = p.v_hi * scale;
    p.reciprocal = reciprocal_of(scale);
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
    if (p->inner == 1) return (runs){items, at_most(p->block, p->length), 0, p};
    return (runs){items, p->inner, 1, p};
}

static run run_at(const runs *r, size_t item)
{
    const qk_params *p = r->p;
    if (p->kind == QK_PER_TENSOR) return (run){0, r->length, 1, 0};
    if (p->kind == QK_PER_AXIS) {
        if (p->inner > 1) return (run){item * p->inner, p->inner, 1, item % p->length};
        return (run){item * ROWS * p->length, p->length, at_most(p->outer - item * ROWS, ROWS), 0};
    }
    const size_t blocks = ceil_div(p->length, p->block), begin = item % blocks * p->block;
    const size_t start = (item / blocks * p->length + begin) * p->inner, count = at_most(p->length - begin, p->block);
    if (p->inner == 1) return (run){start, count, 1, item};
    return (run){start, p->inner, count, item * p->inner};
}

/* Applies an operation to n elements that share the affine map, or whose maps are columns. */
typedef struct operation operation;
struct operation {
    void (*apply)(const operation *op, const void *in, void *out, size_t n, const qk_affine *one,
                  const qk_affine_columns *columns);
    const qk_kernels *k;
    qk_dtype from, to;
    qk_rounding rounding;
    const char *in;
    char *out;
    runs r;
    size_t piece, pieces; /* elements of a row at a time, and how many times */
};

/* Of n elements, those before a cache line begins: a vector that straddles two costs twice. */
static size_t before_line(const void *p, size_t size, size_t n) { return n < 1024 ? 0 : (-(uintptr_t)p & 63) / size; }

/* The same of the wider operand, which is the float one. */
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
        const size_t n = at_most(part.count - skip, op->piece);
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
        const size_t n = at_most(op->r.length - start, WRITTEN);
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
    op->k = qk_active();
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

static const float *to_f32(const qk_kernels *k, const void *x, qk_dtype from, float *buffer, size_t n)
{
    if (from == QK_F32) return x;
    if (from == QK_F16)
        k->f16_to_f32(x, buffer, n);
    else
        k->bf16_to_f32(x, buffer, n);
    return buffer;
}

static void from_f32(const qk_kernels *k, const float *x, void *y, qk_dtype to, size_t n)
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
    const qk_kernels *k = op->k;
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
        count = at_most(n - done, CHUNK);
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

static int quantize_all(const void *x, qk_dtype from, void *q, qk_dtype to, const qk_params *p, qk_rounding rounding)
{
    operation op = {.apply = apply_quantize, .from = from, .to = to, .rounding = rounding, .in = x, .out = q};
    return apply_all(&op, p);
}

int qk_quantize(const void *x, qk_dtype from, void *q, qk_dtype to, const qk_params *p, qk_rounding rounding)
{
    QK_DEFAULT_MODE;
    return quantize_all(x, from, q, to, p, rounding);
}

/* ---- dequantize ---- */

static void apply_dequantize(const operation *op, const void *q, void *y, size_t n, const qk_affine *one,
                             const qk_affine_columns *columns)
{
    const qk_kernels *k = op->k;
    if (op->to == QK_F64) {
        dequantize_f64(q, op->from, y, n, one, columns);
        return;
    }
    float buffer[CHUNK];
    const size_t step = op->to == QK_F32 ? n : CHUNK;
    qk_affine_columns rest = columns ? *columns : (qk_affine_columns){0};
    for (size_t done = 0, count; done < n; done += count) {
        count = at_most(n - done, step);
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

int qk_dequantize(const void *q, qk_dtype from, void *y, qk_dtype to, const qk_params *p)
{
    QK_DEFAULT_MODE;
    operation op = {.apply = apply_dequantize, .from = from, .to = to, .in = q, .out = y};
    return apply_all(&op, p);
}

/* ---- fake quantize ---- */

static void apply_fake_quantize(const operation *op, const void *x, void *y, size_t n, const qk_affine *one,
                                const qk_affine_columns *columns)
{
    const qk_kernels *k = op->k;
    if (op->from == QK_F64) {
        fake_quantize_f64(x, y, n, one, columns);
        return;
    }
    float buffer[CHUNK];
    const size_t step = op->from == QK_F32 ? n : CHUNK;
    qk_affine_columns rest = columns ? *columns : (qk_affine_columns){0};
    for (size_t done = 0, count; done < n; done += count) {
        count = at_most(n - done, step);
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

int qk_fake_quantize(const void *x, void *y, qk_dtype dtype, const qk_params *p)
{
    QK_DEFAULT_MODE;
    operation op = {.apply = apply_fake_quantize, .from = dtype, .to = dtype, .in = x, .out = y};
    return apply_all(&op, p);
}

/* ---- choosing parameters (numerics 2) ---- */

static int bounds_of(const qk_kernels *k, const float *x, size_t n, float *lo, float *hi)
{
    const size_t head = before_line(x, sizeof *x, n);
    float head_lo, head_hi;
    k->minmax_f32(x, head, &head_lo, &head_hi);
    k->minmax_f32(x + head, n - head, lo, hi);
    const int finite = isfinite(head_lo) && isfinite(head_hi) && isfinite(*lo) && isfinite(*hi);
    if (head_lo < *lo) *lo = head_lo;
    if (head_hi > *hi) *hi = head_hi;
    return finite;
}

/* Bounds of pieces, put together in whatever order the threads finish: the extremes are the same. */
typedef struct {
    const float *x;
    size_t n;
    int32_t below, above; /* bits of -lo and hi, which are not negative: in the order of the values */
    int not_finite;
} minmax_job;

static void minmax_pieces(void *context, size_t begin, size_t end)
{
    minmax_job *job = context;
    float lo, hi;
    if (!bounds_of(qk_active(), job->x + begin * PIECE, at_most(job->n - begin * PIECE, (end - begin) * PIECE), &lo,
                   &hi)) {
        __atomic_store_n(&job->not_finite, 1, __ATOMIC_RELAXED);
        return;
    }
    int32_t bits[2];
    const float bounds[2] = {0 - lo, hi};
    memcpy(bits, bounds, sizeof bits);
    qk_keep_most(&job->below, bits[0]);
    qk_keep_most(&job->above, bits[1]);
}

static int minmax_of(const float *x, size_t n, float *lo, float *hi)
{
    if (n <= PIECE) return bounds_of(qk_active(), x, n, lo, hi);
    minmax_job job = {.x = x, .n = n};
    float bounds[2];
    const int status = qk_parallel_for(ceil_div(n, PIECE), 0.05 * (double)n, minmax_pieces, &job);
    memcpy(bounds, &job.below, sizeof *bounds);
    memcpy(bounds + 1, &job.above, sizeof *bounds);
    *lo = 0 - bounds[0], *hi = bounds[1];
    return status < 0 ? status : !job.not_finite;
}

int qk_minmax(const float *x, size_t n, float *lo, float *hi)
{
    QK_DEFAULT_MODE;
    return minmax_of(x, n, lo, hi);
}

/* Not inline, as below: in qk_choose nothing may be computed before the mode is set. */
QK_NOINLINE void qk_choose_inside(float lo, float hi, int32_t qmin, int32_t qmax, int symmetric, float *scale,
                                  int32_t *zero_point)
{
    const float levels = (float)(qmax - qmin);
    const int32_t middle = qmax > 0 && qmin >= 0 ? (int32_t)((uint32_t)(qmax + 1) / 2) : 0;
    float s;
    if (symmetric) {
        float above = hi / (float)(qmax - middle), below = lo / (float)(qmin - middle);
        s = above > below ? above : below;
        if (s * (float)(qmax - middle) > FLT_MAX)
            s = nextafterf(s, 0); /* rounded up: the largest code would stand for infinity */
    } else {
        s = (hi - lo) / levels;
        if (!isfinite(s)) s = hi / levels - lo / levels;
    }
    if (lo == hi) s = 1.0f;
    if (s < FLT_MIN) s = FLT_MIN;
    *scale = s;
    if (symmetric) {
        *zero_point = middle;
        return;
    }
    float zero = (float)qmin - lo / s;
    zero = zero < (float)qmin ? (float)qmin : zero > (float)qmax ? (float)qmax : zero;
    *zero_point = (int32_t)rintf(zero);
}

void qk_choose(float lo, float hi, int32_t qmin, int32_t qmax, int symmetric, float *scale, int32_t *zero_point)
{
    QK_DEFAULT_MODE;
    qk_choose_inside(lo, hi, qmin, qmax, symmetric, scale, zero_point);
}

typedef struct {
    const float *x;
    size_t cols;
    char *q;
    qk_dtype to;
    int32_t qmin, qmax;
    int symmetric;
    float *scale;
    int32_t *zero_point;
    int not_finite, stopped;
} rows_job;

static void quantize_some_rows(void *context, size_t begin, size_t end)
{
    rows_job *job = context;
    for (size_t row = begin; row < end; row++) {
        const float *x = job->x + row * job->cols;
        float lo, hi;
        const int finite = minmax_of(x, job->cols, &lo, &hi);
        if (finite <= 0) {
            __atomic_store_n(finite ? &job->stopped : &job->not_finite, 1, __ATOMIC_RELAXED);
            return;
        }
        float *scale = job->scale + row;
        int32_t *zero_point = job->zero_point + row;
        qk_choose_inside(lo, hi, job->qmin, job->qmax, job->symmetric, scale, zero_point);
        const qk_params p = {.kind = QK_PER_TENSOR,
                             .outer = 1,
                             .length = job->cols,
                             .inner = 1,
                             .scale = scale,
                             .zero_point = zero_point,
                             .qmin = job->qmin,
                             .qmax = job->qmax};
        if (quantize_all(x, QK_F32, job->q + row * job->cols * size_of(job->to), job->to, &p, QK_HALF_EVEN)) {
            __atomic_store_n(&job->stopped, 1, __ATOMIC_RELAXED);
            return;
        }
    }
}

/* Threads share the rows; where these are few, the elements of each. */
int qk_quantize_rows(const float *x, size_t rows, size_t cols, void *q, qk_dtype to, int32_t qmin, int32_t qmax,
                     int symmetric, float *scale, int32_t *zero_point)
{
    QK_DEFAULT_MODE;
    rows_job job = {x, cols, q, to, qmin, qmax, symmetric, scale, zero_point, 0, 0};
    if (rows < 2 * (size_t)qk_get_num_threads())
        quantize_some_rows(&job, 0, rows);
    else if (qk_parallel_for(rows, 0.3 * (double)rows * (double)cols, quantize_some_rows, &job))
        return QK_INTERRUPTED;
    return job.stopped ? QK_INTERRUPTED : !job.not_finite;
}

/* ---- requantize (numerics 7) ---- */

static QK_NOINLINE void fixed_point_of(double m, int32_t *mantissa, int32_t *shift)
{
    int exponent;
    int64_t q = (int64_t)round(frexp(m, &exponent) * 0x1p31);
    if (q == (int64_t)1 << 31) q /= 2, exponent++;
    if (exponent < -31) q = 0, exponent = 0;
    if (exponent > 30) q = INT32_MAX, exponent = 30;
    *mantissa = (int32_t)q;
    *shift = exponent;
}

void qk_quantize_multiplier(double m, int32_t *mantissa, int32_t *shift)
{
    QK_DEFAULT_MODE;
    fixed_point_of(m, mantissa, shift);
}

typedef struct {
    const int32_t *acc, *bias;
    char *q;
    qk_dtype to;
    size_t cols;
    const qk_requant *r;
} requantize_job;

/* An item is up to PIECE columns of a row. */
static void requantize_items(void *context, size_t begin, size_t end)
{
    const requantize_job *job = context;
    const size_t size = size_of(job->to), pieces = ceil_div(job->cols, PIECE);
    for (size_t item = begin; item < end; item++) {
        const size_t col = item % pieces * PIECE, start = item / pieces * job->cols + col,
                     n = at_most(job->cols - col, PIECE);
        qk_requant r = *job->r;
        if (r.multiplier) r.multiplier += col;
        if (r.mantissa) r.mantissa += col, r.shift += col;
        qk_active()->requantize_i32(job->acc + start, job->bias + col, job->q + start * size, (int)size, n, &r);
        keep_bits(job->q + start * size, job->to, n);
    }
}

int qk_requantize(const int32_t *acc, const int32_t *bias, void *q, qk_dtype to, size_t rows, size_t cols,
                  const qk_requant *r)
{
    QK_DEFAULT_MODE;
    requantize_job job = {acc, bias, q, to, cols, r};
    return qk_parallel_for(rows * ceil_div(cols, PIECE), 0.3 * (double)rows * (double)cols, requantize_items, &job);
}
