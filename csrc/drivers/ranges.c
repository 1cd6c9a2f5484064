/* Choosing parameters (numerics 2): extremes of arrays, scales and zero points from them, and rows that are quantized
 * by their own. */
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

static int bounds_of(const qk_elementwise_kernels *k, const float *x, size_t n, float *lo, float *hi)
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
    if (!bounds_of(qk_active()->elementwise, job->x + begin * PIECE,
                   min_size(job->n - begin * PIECE, (end - begin) * PIECE), &lo, &hi)) {
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
    if (n <= PIECE) return bounds_of(qk_active()->elementwise, x, n, lo, hi);
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

/* A short row, of which qk_quantize_inside would take longer to find out how it lies. */
static void quantize_row(const rows_job *job, size_t row)
{
    const qk_elementwise_kernels *k = qk_active()->elementwise;
    const qk_affine affine = qk_affine_of(job->scale[row], job->zero_point[row], job->qmin, job->qmax, QK_HALF_EVEN);
    const float *x = job->x + row * job->cols;
    char *q = job->q + row * job->cols * size_of(job->to);
    if (size_of(job->to) == 1)
        k->quantize_f32_8(x, (uint8_t *)q, job->cols, &affine);
    else
        k->quantize_f32_16(x, (uint16_t *)q, job->cols, &affine);
    keep_bits(q, job->to, job->cols);
}

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
        if (job->cols < 1024) {
            quantize_row(job, row);
            continue;
        }
        const qk_params p = {.kind = QK_PER_TENSOR,
                             .outer = 1,
                             .length = job->cols,
                             .inner = 1,
                             .scale = scale,
                             .zero_point = zero_point,
                             .qmin = job->qmin,
                             .qmax = job->qmax};
        if (qk_quantize_inside(x, QK_F32, job->q + row * job->cols * size_of(job->to), job->to, &p, QK_HALF_EVEN)) {
            __atomic_store_n(&job->stopped, 1, __ATOMIC_RELAXED);
            return;
        }
    }
}

qk_status qk_choose_qparams(const float *x, size_t n, qk_dtype dtype, int symmetric, float *scale, int32_t *zero_point)
{
    QK_DEFAULT_MODE;
    if (!is_code(dtype) || (n && !x) || n > PTRDIFF_MAX / sizeof *x || !scale || !zero_point) return QK_INVALID;
    float lo, hi;
    const int finite = minmax_of(x, n, &lo, &hi);
    if (finite <= 0) return finite ? (qk_status)finite : QK_NOT_FINITE;
    qk_choose_inside(lo, hi, least_code(dtype) + !!symmetric, most_code(dtype), symmetric, scale, zero_point);
    return QK_OK;
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

qk_status qk_dynamic_quantize(const float *x, size_t rows, size_t cols, void *q, qk_dtype to, int symmetric,
                              float *scale, int32_t *zero_point)
{
    QK_DEFAULT_MODE;
    const size_t total = qk_times(rows, cols);
    if (!is_code(to) || total > PTRDIFF_MAX / sizeof *x || rows > PTRDIFF_MAX / sizeof *scale ||
        (total && (!x || !q)) || (rows && (!scale || !zero_point)))
        return QK_INVALID;
    const int done = qk_quantize_rows(x, rows, cols, q, to, least_code(to) + !!symmetric, most_code(to), symmetric,
                                      scale, zero_point);
    return done < 0 ? (qk_status)done : done ? QK_OK : QK_NOT_FINITE;
}

/* ---- largest magnitudes of blocks (numerics 2) ---- */

enum { PART = 1024 }; /* values or columns that are converted at a time */

typedef struct {
    const qk_elementwise_kernels *k;
    const char *x;
    qk_dtype from;
    size_t outer, length, inner, block; /* as if of one row if blocks are whole */
    size_t blocks, together, row_items; /* of a row; blocks, or columns, of an item; items of a row or block */
    int outward, not_finite;
    int32_t *most; /* bits of float32 */
} blocks_job;

static const float *as_f32(const blocks_job *job, const char *x, size_t n, float *buffer)
{
    if (job->from == QK_F32) return (const float *)x;
    (job->from == QK_F16 ? job->k->f16_to_f32 : job->k->bf16_to_f32)((const uint16_t *)x, buffer, n);
    return buffer;
}

static int32_t bits_of_magnitude(double v, int outward)
{
    float near = (float)v;
    int32_t bits;
    if (outward ? near < v : near > v && v <= FLT_MAX) near = nextafterf(near, outward ? INFINITY : 0);
    if (v > FLT_MAX) near = INFINITY;
    memcpy(&bits, &near, sizeof bits);
    return bits & 0x7fffffff;
}

/* NaN stays, whatever comes after it. */
static double larger(double most, double v)
{
    v = fabs(v);
    return v <= most || most != most ? most : v;
}

static void runs_of(const blocks_job *job, const char *x, size_t n, int32_t *most)
{
    const size_t run = min_size(job->block, n), size = size_of(job->from);
    float buffer[PART];
    for (size_t at = 0, count; job->from != QK_F64 && at < n; at += count) {
        const size_t rest = run - at % run;
        count = job->from == QK_F32 ? n : run <= PART ? min_size(n - at, PART / run * run) : min_size(rest, PART);
        count = min_size(count, n - at);
        job->k->magnitudes_of_runs(as_f32(job, x + at * size, count, buffer), count, run, most + at / run);
    }
    for (size_t at = 0, i = 0; job->from == QK_F64 && at < n; at = i, most++) {
        double largest = 0;
        for (; i < n && i < at + run; i++) largest = larger(largest, ((const double *)x)[i]);
        *most = bits_of_magnitude(largest, job->outward);
    }
}

static void columns_of(const blocks_job *job, const char *x, size_t rows, size_t n, int32_t *most)
{
    float buffer[PART];
    double largest[PART] = {0};
    const size_t step = job->inner * size_of(job->from);
    if (job->from == QK_F32) {
        job->k->magnitudes_of_columns((const float *)x, job->inner, rows, n, most);
        return;
    }
    for (size_t row = 0; row < rows; row++, x += step)
        if (job->from == QK_F64)
            for (size_t i = 0; i < n; i++) largest[i] = larger(largest[i], ((const double *)x)[i]);
        else
            job->k->magnitudes_of_columns(as_f32(job, x, n, buffer), n, 1, n, most);
    for (size_t i = 0; job->from == QK_F64 && i < n; i++) most[i] = bits_of_magnitude(largest[i], job->outward);
}

static void find_magnitudes(void *context, size_t begin, size_t end)
{
    blocks_job *job = context;
    const size_t size = size_of(job->from);
    for (size_t item = begin; item < end; item++) {
        const size_t row = item / job->row_items, part = item % job->row_items * job->together;
        const size_t outer = job->inner > 1 ? row / job->blocks : row;
        const size_t first = job->inner > 1 ? row % job->blocks * job->block : part * job->block;
        const size_t rest = job->length - first;
        const size_t found = min_size((job->inner > 1 ? job->inner : job->blocks) - part, job->together);
        int32_t *most = job->most + row * (job->inner > 1 ? job->inner : job->blocks) + part;
        const char *x = job->x + ((outer * job->length + first) * job->inner + (job->inner > 1 ? part : 0)) * size;
        memset(most, 0, found * sizeof *most);
        if (job->inner > 1)
            columns_of(job, x, min_size(rest, job->block), found, most);
        else
            runs_of(job, x, min_size(rest, qk_times(found, job->block)), most);
        for (size_t i = 0; i < found; i++)
            if (most[i] >= 0x7f800000) __atomic_store_n(&job->not_finite, 1, __ATOMIC_RELAXED);
    }
}

int qk_block_magnitudes(const void *x, qk_dtype from, const qk_params *p, int outward, float *most)
{
    QK_DEFAULT_MODE;
    blocks_job job = {.k = qk_active()->elementwise, .x = x, .from = from, .outward = outward, .most = (int32_t *)most};
    job.outer = p->outer, job.length = p->length, job.inner = p->inner, job.block = min_size(p->block, p->length);
    const size_t total = job.outer * job.length * job.inner;
    if (total == 0) return 1;
    if (job.inner == 1 && job.length % job.block == 0) job.length *= job.outer, job.outer = 1;
    job.blocks = ceil_div(job.length, job.block);
    job.together = job.inner > 1 ? PART : ceil_div(PIECE, job.block);
    job.row_items = ceil_div(job.inner > 1 ? job.inner : job.blocks, job.together);
    const size_t items = job.outer * (job.inner > 1 ? job.blocks : 1) * job.row_items;
    const int status = qk_parallel_for(items, 0.1 * (double)total, find_magnitudes, &job);
    return status < 0 ? status : !job.not_finite;
}

typedef struct {
    float *magnitudes;
    size_t n;
    const qk_micro *how;
} scales_job;

static void make_scales(void *context, size_t begin, size_t end)
{
    const scales_job *job = context;
    const size_t first = begin * PIECE;
    qk_active()->elementwise->micro_scales(job->magnitudes + first, min_size(job->n - first, (end - begin) * PIECE),
                                           job->how);
}

int qk_micro_scales(float *magnitudes, size_t n, const qk_micro *how)
{
    QK_DEFAULT_MODE;
    scales_job job = {magnitudes, n, how};
    return qk_parallel_for(ceil_div(n, PIECE), 0.2 * (double)n, make_scales, &job);
}
