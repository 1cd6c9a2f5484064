/* Requantization of int32 sums (numerics 7): multipliers in fixed point, threads. */
#include <math.h>

#include "drivers/drivers.h"
#include "drivers/elementwise.h"
#include "drivers/scales.h"
#include "kernels/kernels.h"
#include "runtime/compiler.h"
#include "runtime/fpmode.h"
#include "runtime/parallel.h"
#include "runtime/sizes.h"

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
                     n = min_size(job->cols - col, PIECE);
        qk_requant r = *job->r;
        if (r.multiplier) r.multiplier += col;
        if (r.mantissa) r.mantissa += col, r.shift += col;
        qk_active()->elementwise->requantize_i32(job->acc + start, job->bias + col, job->q + start * size, (int)size, n,
                                                 &r);
        keep_bits(job->q + start * size, job->to, n);
    }
}

enum { WRITTEN = 1024 }; /* columns that narrow rows become */

/* Rows so narrow that many are one row, whose columns have copies of the parameters; then what remains of them. */
static int requantize_narrow(const requantize_job *given, size_t rows)
{
    int32_t bias[WRITTEN], mantissa[WRITTEN], shift[WRITTEN];
    float multiplier[WRITTEN];
    const size_t cols = given->cols, together = WRITTEN / cols;
    const qk_requant *r = given->r;
    qk_requant written = *r;
    written.multiplier = qk_repeat(r->multiplier, cols, together * cols, multiplier);
    written.mantissa = qk_repeat(r->mantissa, cols, together * cols, mantissa);
    written.shift = qk_repeat(r->shift, cols, together * cols, shift);
    requantize_job job = {given->acc,      qk_repeat(given->bias, cols, together * cols, bias),
                          given->q,        given->to,
                          together * cols, &written};
    const size_t whole = rows / together;
    const int status = qk_parallel_for(whole, 0.3 * (double)whole * (double)job.cols, requantize_items, &job);
    job.acc += whole * job.cols, job.q += whole * job.cols * size_of(job.to);
    job.cols = rows % together * cols;
    if (!status && job.cols) requantize_items(&job, 0, 1);
    return status;
}

static int can_requantize(const int32_t *acc, const int32_t *bias, const void *q, qk_dtype to, size_t total,
                          const qk_requant *r)
{
    if (!r || !is_code(to) || (unsigned)r->rounding > QK_TFLITE || total > PTRDIFF_MAX / sizeof *acc) return 0;
    const int32_t least = least_code(to), most = most_code(to);
    if (r->qmin > r->qmax || r->qmin < least || r->qmax > most || r->zero_point < least || r->zero_point > most)
        return 0;
    return total == 0 ||
        (acc && bias && q && (r->rounding <= QK_HALF_AWAY ? !!r->multiplier : r->mantissa && r->shift));
}

qk_status qk_requantize(const int32_t *acc, const int32_t *bias, void *q, qk_dtype to, size_t rows, size_t cols,
                        const qk_requant *r)
{
    QK_DEFAULT_MODE;
    if (!can_requantize(acc, bias, q, to, qk_times(rows, cols), r)) return QK_INVALID;
    requantize_job job = {acc, bias, q, to, cols, r};
    if (cols && cols <= WRITTEN / 4 && rows >= WRITTEN / cols) return (qk_status)requantize_narrow(&job, rows);
    return (qk_status)qk_parallel_for(rows * ceil_div(cols, PIECE), 0.3 * (double)rows * (double)cols, requantize_items,
                                      &job);
}
