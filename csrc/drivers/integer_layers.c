/* Layers on codes (numerics 23): tables, sums and products of two, softmax and norms, by rows and threads. */
#include <float.h>
#include <math.h>
#include <stdlib.h>

#include "drivers/drivers.h"
#include "drivers/elementwise.h"
#include "kernels/kernels.h"
#include "runtime/fpmode.h"
#include "runtime/parallel.h"
#include "runtime/sizes.h"

static qk_code_range range_of(const qk_code_params *p) { return (qk_code_range){p->zero_point, p->qmin, p->qmax}; }

/* The code of a real value in steps; NaN cannot come. */
static uint8_t code_of_double(double v, const qk_code_range *to)
{
    const double lo = to->qmin - to->zero_point, hi = to->qmax - to->zero_point;
    return (uint8_t)((int32_t)((v < lo ? lo : v > hi ? hi : v) + 0x1.8p52 - 0x1.8p52) + to->zero_point);
}

static double value_of(const uint8_t *q, int is_signed) { return is_signed ? (double)(int8_t)*q : (double)*q; }

/* ---- tables ---- */

typedef struct {
    const uint8_t *q, *table;
    uint8_t *y;
    size_t n, row, y_stride;
    uint8_t mask;
} table_job;

static void take_items(void *context, size_t begin, size_t end)
{
    const table_job *job = context;
    const size_t pieces = ceil_div(job->row, PIECE);
    for (; begin < end; begin++) {
        const size_t row = begin / pieces, at = begin % pieces * PIECE;
        qk_active()->layers->take_table(job->q + row * job->row + at, job->y + row * job->y_stride + at,
                                        min_size(job->row - at, PIECE), job->table, job->mask, 0);
    }
}

int qk_take_table(const uint8_t *q, size_t rows, size_t cols, int is_signed, const uint8_t *table, uint8_t *y,
                  size_t y_stride)
{
    QK_DEFAULT_MODE;
    if (rows * cols == 0) return 0;
    if (y_stride == cols) cols *= rows, rows = 1;
    table_job job = {q, table, y, rows * cols, cols, y_stride, is_signed ? 128 : 0};
    return qk_parallel_for(rows * ceil_div(cols, PIECE), 0.05 * (double)rows * (double)cols, take_items, &job);
}

/* ---- sums and products of two ---- */

enum { MOST_RATIO = 1 << 20, MOST_FACTOR = 1 << 14 };

/* What all items know: by float32, by double (of wide scales) or in fixed point. */
typedef struct {
    const qk_code_pair *p;
    qk_pair kernel;
    enum { BY_FLOATS, BY_DOUBLES, BY_FIXED_POINT } how;
    double a_unit, b_unit;                  /* doubles: scales over that of the result; a_unit of products */
    int32_t a_shifted[256], b_shifted[256]; /* fixed point: the terms of sums */
    int32_t mantissa, shift;
    size_t pieces;
} pair_job;

static void prepare_floats(pair_job *job)
{
    const qk_code_pair *p = job->p;
    const double a = p->a.scale, b = p->b.scale, y = p->y.scale;
    qk_pair *k = &job->kernel;
    job->how = BY_FLOATS;
    if (p->product) {
        const float scale = p->a.scale * p->b.scale;
        k->a_zero = (float)p->a.zero_point, k->b_zero = (float)p->b.zero_point, k->factor = scale / p->y.scale;
        if (!(scale >= FLT_MIN && k->factor <= MOST_FACTOR)) job->how = BY_DOUBLES, job->a_unit = a * b / y;
        return;
    }
    k->a_factor = p->a.scale / p->y.scale, k->b_factor = p->b.scale / p->y.scale;
    const float b_part = k->b_factor * (float)p->b.zero_point;
    k->offset = (float)p->y.zero_point - __builtin_fmaf(k->a_factor, (float)p->a.zero_point, b_part);
    if (!(k->a_factor <= MOST_RATIO && k->b_factor <= MOST_RATIO))
        job->how = BY_DOUBLES, job->a_unit = a / y, job->b_unit = b / y;
}

/* As multiply_gemmlowp: what saturates before it is multiplied is beyond all codes after it. */
static int64_t fixed_product(int64_t x, int32_t mantissa, int32_t shift)
{
    const int left = shift > 0 ? shift : 0, right = left - shift;
    const int64_t most = INT32_MAX >> left;
    const int64_t product = (x > most ? most : x < -most ? -most : x) * ((int64_t)1 << left) * mantissa;
    const int64_t high = (product + ((int64_t)1 << 30)) >> 31, mask = ((int64_t)1 << right) - 1;
    return (high >> right) + ((high & mask) > (mask >> 1) + (high < 0));
}

static void shift_codes(const qk_code_params *p, int is_signed, double multiplier, int32_t *shifted)
{
    int32_t mantissa, shift;
    qk_quantize_multiplier(multiplier, &mantissa, &shift);
    for (int i = 0; i < 256; i++) {
        const int32_t code = is_signed ? (int8_t)i : i;
        shifted[i] = (int32_t)fixed_product((int64_t)(code - p->zero_point) * (1 << 20), mantissa, shift);
    }
}

static void prepare_fixed_point(pair_job *job)
{
    const qk_code_pair *p = job->p;
    const double a = p->a.scale, b = p->b.scale, y = p->y.scale, twice = 2 * (a > b ? a : b);
    job->how = BY_FIXED_POINT;
    qk_quantize_multiplier(p->product ? a * b / y : twice / (0x1p20 * y), &job->mantissa, &job->shift);
    if (p->product) return;
    shift_codes(&p->a, p->is_signed, a / twice, job->a_shifted);
    shift_codes(&p->b, p->is_signed, b / twice, job->b_shifted);
}

static void pair_in_fixed_point(const pair_job *job, const uint8_t *a, const uint8_t *b, uint8_t *y, size_t n)
{
    const qk_code_pair *p = job->p;
    for (size_t i = 0; i < n; i++, b += p->b_step) {
        int64_t v = job->a_shifted[a[i]] + job->b_shifted[*b];
        if (p->product)
            v = (int64_t)((value_of(a + i, p->is_signed) - p->a.zero_point) *
                          (value_of(b, p->is_signed) - p->b.zero_point));
        v = fixed_product(v, job->mantissa, job->shift) + p->y.zero_point;
        y[i] = (uint8_t)(v < p->y.qmin ? p->y.qmin : v > p->y.qmax ? p->y.qmax : v);
    }
}

static void pair_in_doubles(const pair_job *job, const uint8_t *a, const uint8_t *b, uint8_t *y, size_t n)
{
    const qk_code_pair *p = job->p;
    for (size_t i = 0; i < n; i++, b += p->b_step) {
        const double left = value_of(a + i, p->is_signed) - p->a.zero_point;
        const double right = value_of(b, p->is_signed) - p->b.zero_point;
        const double v = p->product ? left * right * job->a_unit : left * job->a_unit + right * job->b_unit;
        y[i] = code_of_double(v, &job->kernel.to);
    }
}

/* An item is up to PIECE results that lie in a row; rows are counted through the outer axes. */
static void pair_items(void *context, size_t begin, size_t end)
{
    const pair_job *job = context;
    const qk_code_pair *p = job->p;
    for (; begin < end; begin++) {
        const size_t row = begin / job->pieces, at = begin % job->pieces * PIECE, n = min_size(p->n - at, PIECE);
        const uint8_t *a = p->a_codes + at, *b = p->b_codes + at * p->b_step;
        uint8_t *y = p->y_codes + row * p->n + at;
        size_t rest = row;
        for (int axis = p->axes - 1; axis >= 0 && rest; rest /= p->shape[axis--]) {
            const size_t index = rest % p->shape[axis];
            a += index * p->a_steps[axis], b += index * p->b_steps[axis];
        }
        if (job->how == BY_FLOATS)
            qk_active()->layers->pair_codes(a, b, p->b_step, y, n, &job->kernel);
        else if (job->how == BY_DOUBLES)
            pair_in_doubles(job, a, b, y, n);
        else
            pair_in_fixed_point(job, a, b, y, n);
    }
}

int qk_pair_codes(const qk_code_pair *p)
{
    QK_DEFAULT_MODE;
    size_t rows = 1;
    for (int axis = 0; axis < p->axes; axis++) rows *= p->shape[axis];
    if (rows * p->n == 0) return 0;
    pair_job job = {.p = p, .pieces = ceil_div(p->n, PIECE)};
    job.kernel = (qk_pair){.product = p->product, .is_signed = p->is_signed, .to = range_of(&p->y)};
    if (p->rounding == QK_TFLITE)
        prepare_fixed_point(&job);
    else
        prepare_floats(&job);
    const double work = (job.how == BY_FLOATS ? 0.1 : 1.5) * (double)p->n + 15;
    return qk_parallel_for(rows * job.pieces, work * (double)rows, pair_items, &job);
}

/* ---- softmax ---- */

enum { LONG_ROW = 4096 };

/* exp(x) of x <= 0, with the same bits on every machine: x = n ln 2 + r, a Taylor polynomial of r. */
static double exp_of(double x)
{
    static const double inverse[] = {
        1.0 / 6227020800, 1.0 / 479001600, 1.0 / 39916800, 1.0 / 3628800, 1.0 / 362880, 1.0 / 40320, 1.0 / 5040,
        1.0 / 720,        1.0 / 120,       1.0 / 24,       1.0 / 6,       0.5,          1.0,         1.0};
    if (x < -750) return 0;
    const double n = (x * 0x1.71547652b82fep0 + 0x1.8p52) - 0x1.8p52;
    const double r = (x - n * 0x1.62e42fefa3800p-1) - n * 0x1.ef35793c76730p-45;
    double p = inverse[0];
    for (size_t i = 1; i < sizeof inverse / sizeof *inverse; i++) p = p * r + inverse[i];
    return ldexp(p, (int)n);
}

typedef struct {
    const uint8_t *q;
    uint8_t *y;
    size_t n;
    int wide;
    qk_softmax kernel;
    double exact[256]; /* exp(-scale d) */
    uint32_t weight[256];
    float real[256];
    uint8_t planes[4][256];
} softmax_job;

/* A long row, or one whose steps are small: in double. Differences are bytes, whatever becomes of the codes meanwhile.
 */
static void softmax_wide_row(const softmax_job *job, const uint8_t *q, uint8_t *y)
{
    const qk_softmax *k = &job->kernel;
    uint8_t most = 0, codes[256];
    double sum = 0;
    for (size_t at = 0; at < job->n && !(at && qk_stopped()); at += PIECE)
        for (size_t i = at; i < min_size(job->n, at + PIECE); i++)
            most = (q[i] ^ k->flip) > most ? q[i] ^ k->flip : most;
    for (size_t at = 0; at < job->n && !(at && qk_stopped()); at += PIECE)
        for (size_t i = at; i < min_size(job->n, at + PIECE); i++)
            sum += job->exact[(uint8_t)(most - (q[i] ^ k->flip))];
    for (int d = 0; d < 256; d++) codes[d] = code_of_double(job->exact[d] / sum / k->unit, &k->to);
    for (size_t at = 0; at < job->n && !(at && qk_stopped()); at += PIECE)
        for (size_t i = at; i < min_size(job->n, at + PIECE); i++) y[i] = codes[(uint8_t)(most - (q[i] ^ k->flip))];
}

static void softmax_rows(void *context, size_t begin, size_t end)
{
    const softmax_job *job = context;
    for (size_t at = begin * job->n; begin < end; begin++, at += job->n)
        if (job->wide)
            softmax_wide_row(job, job->q + at, job->y + at);
        else
            qk_active()->layers->softmax_codes(job->q + at, job->y + at, job->n, &job->kernel);
}

int qk_softmax_codes(const uint8_t *q, const qk_code_params *params, size_t rows, size_t cols, uint8_t *y,
                     const qk_code_params *to)
{
    QK_DEFAULT_MODE;
    if (rows * cols == 0) return 0;
    softmax_job job = {.q = q, .y = y, .n = cols, .wide = cols > LONG_ROW || !(to->scale >= 0x1p-20f)};
    for (int d = 0; d < 256; d++) {
        job.exact[d] = exp_of(-d * (double)params->scale);
        job.weight[d] = (uint32_t)(0x1p31 * job.exact[d] + 0x1.8p52 - 0x1.8p52);
        job.real[d] = (float)job.weight[d];
        for (int k = 0; k < 4; k++) job.planes[k][d] = (uint8_t)(job.weight[d] >> 8 * k);
    }
    job.kernel = (qk_softmax){job.weight, job.planes[0], job.real, to->scale, params->qmin < 0 ? 128 : 0, range_of(to)};
    return qk_parallel_for(rows, (double)rows * (0.2 * (double)cols + 50), softmax_rows, &job);
}

/* ---- layer norm and RMS norm ---- */

typedef struct {
    const qk_code_norm_args *args;
    qk_code_norm kernel; /* but for times, less and inverse, those of a row */
    int wide;
} norm_job;

/* What each code q of a row becomes: (q * times - less) * inverse. */
typedef struct {
    double times, less, inverse;
} row_norm;

static row_norm norm_of_row(const norm_job *job, const uint8_t *q)
{
    const qk_code_norm_args *args = job->args;
    const double n = (double)args->cols, scale = args->params.scale, eps = args->eps / (scale * scale);
    const uint8_t flip = job->kernel.is_signed ? 128 : 0;
    uint64_t sum = 0, squares = 0;
    for (size_t at = 0; at < args->cols && !(at && qk_stopped()); at += PIECE) {
        uint64_t part[2];
        qk_active()->layers->code_sums(q + at, min_size(args->cols - at, PIECE), flip, &part[0], &part[1]);
        sum += part[0], squares += part[1];
    }
    const int64_t zero = args->params.zero_point + flip, total = (int64_t)sum - flip * (int64_t)args->cols;
    double root;
    row_norm norm = {1, args->params.zero_point, 0};
    if (args->bias) {
        const unsigned __int128 spread = (unsigned __int128)squares * args->cols - (unsigned __int128)sum * sum;
        norm.times = n, norm.less = (double)total;
        root = sqrt((double)spread + n * n * eps);
    } else {
        const __int128 spread =
            (__int128)squares - 2 * (__int128)zero * sum + (__int128)zero * zero * (int64_t)args->cols;
        root = sqrt((double)spread / n + eps);
    }
    if (root > 0) norm.inverse = 1 / root;
    return norm;
}

/* In double: of a row whose sums, or of columns whose factors, float32 does not hold. */
static void norm_wide_row(const norm_job *job, const row_norm *norm, const uint8_t *q, uint8_t *y)
{
    const qk_code_norm_args *args = job->args;
    for (size_t i = 0; i < args->cols && !qk_stopped_at(i); i++) {
        const double d = (value_of(q + i, job->kernel.is_signed) * norm->times - norm->less) * norm->inverse;
        const double v = d * args->weight[i] + (args->bias ? args->bias[i] : 0);
        y[i] = code_of_double(v / args->to.scale, &job->kernel.to);
    }
}

static void norm_rows(void *context, size_t begin, size_t end)
{
    const norm_job *job = context;
    const size_t n = job->args->cols;
    qk_code_norm kernel = job->kernel;
    for (; begin < end; begin++) {
        const uint8_t *q = job->args->q + begin * n;
        uint8_t *y = job->args->y + begin * n;
        const row_norm norm = norm_of_row(job, q);
        kernel.times = (float)norm.times, kernel.less = (float)norm.less, kernel.inverse = (float)norm.inverse;
        if (job->wide)
            norm_wide_row(job, &norm, q, y);
        else
            qk_active()->layers->norm_codes(q, y, n, &kernel);
    }
}

/* Divides by the scale of the result. Returns whether all columns suit float32. */
static int divide_columns(const qk_code_norm_args *args, float *factor, float *offset)
{
    enum { MOST_OFFSET = 1 << 11 };
    int suit = 1;
    for (size_t i = 0; i < args->cols; i++) {
        factor[i] = (float)(args->weight[i] / (double)args->to.scale);
        offset[i] = args->bias ? (float)(args->bias[i] / (double)args->to.scale) : 0;
        suit &= fabsf(factor[i]) <= FLT_MAX && fabsf(offset[i]) <= MOST_OFFSET;
    }
    return suit;
}

int qk_norm_codes(const qk_code_norm_args *args)
{
    QK_DEFAULT_MODE;
    enum { MOST_EXACT = 65793 }; /* 255 of these are below 2^24 */
    if (args->rows * args->cols == 0) return 0;
    const size_t kept = args->cols > MOST_EXACT ? 0 : args->cols;
    float *columns = qk_obtain(2 * sizeof *columns * kept);
    if (!columns) return -1;
    norm_job job = {.args = args, .wide = !kept || !divide_columns(args, columns, columns + kept)};
    job.kernel = (qk_code_norm){
        .factor = columns, .offset = columns + kept, .is_signed = args->params.qmin < 0, .to = range_of(&args->to)};
    const double work = 0.2 * (double)args->rows * (double)args->cols;
    const int status = qk_parallel_for(args->rows, work, norm_rows, &job);
    qk_release(columns);
    return status;
}
