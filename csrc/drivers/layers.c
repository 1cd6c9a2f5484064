/* Float layers around the products: layer norm, and attention by integer products (numerics 10 and 11). */
#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "drivers/drivers.h"
#include "runtime/fpmode.h"
#include "kernels/kernels.h"
#include "runtime/parallel.h"
#include "drivers/scales.h"
#include "runtime/sizes.h"

/* ---- layer norm ---- */

typedef struct {
    const qk_norm_args *args;
    int failure;
} norm_job;

/* A row some intermediate of which leaves float32 (numerics 21), in double. */
static void norm_wide_row(const qk_norm_args *job, const float *x, const float *residual, float *y)
{
    const size_t n = job->cols;
    double sum = 0, squares = 0;
    for (size_t i = 0; i < n; i++) sum += residual ? (double)x[i] + residual[i] : x[i];
    const double mean = sum / (double)n;
    for (size_t i = 0; i < n; i++) {
        const double d = (residual ? (double)x[i] + residual[i] : x[i]) - mean;
        squares += d * d;
    }
    const double deviation = sqrt(squares / (double)n + job->eps);
    for (size_t i = 0; i < n; i++) {
        const double d = (residual ? (double)x[i] + residual[i] : x[i]) - mean;
        y[i] = (float)(d / deviation * job->weight[i] + job->bias[i]);
    }
}

static qk_affines affines_of(const qk_params *p, size_t rows, size_t cols)
{
    const size_t run = p->kind == QK_PER_TENSOR ? cols : 1;
    return (qk_affines){p->scale, p->reciprocal, p->zero_point, p->qmin, p->qmax, 0, run, rows, cols, cols, 0};
}

/* Rows as floats, in place or in the buffer. */
static const float *rows_of(const qk_values *v, size_t first, size_t rows, size_t cols, float *buffer)
{
    if (!v->data || !v->params) return v->data ? (const float *)v->data + first * cols : NULL;
    const qk_affines p = affines_of(v->params, rows, cols);
    qk_active()->elementwise->dequantize_rows_f32((const char *)v->data + first * cols, v->type, buffer, cols, &p);
    return buffer;
}

static void quantize_rows(const qk_params *p, const float *y, uint8_t *q, size_t rows, size_t cols)
{
    const qk_elementwise_kernels *k = qk_active()->elementwise;
    const qk_affine one = qk_affine_of(p->scale[0], p->zero_point[0], p->qmin, p->qmax, QK_HALF_EVEN);
    const qk_affines columns = affines_of(p, rows, cols);
    if (p->kind == QK_PER_TENSOR)
        k->quantize_f32_8(y, q, rows * cols, &one);
    else
        k->quantize_rows_f32_8(y, q, cols, &columns);
}

/* Rows of floats, at x and y and, if there is one, at the residual. */
static void norm_floats(const qk_norm_args *a, const float *x, const float *residual, size_t rows, float *y)
{
    enum { LONG = 1024 * 1024 };
    const size_t cols = a->cols;
    for (size_t i = 0; i < rows; i++, x += cols, residual = residual ? residual + cols : NULL, y += cols)
        if (!qk_active()->layers->layer_norm_f32(x, residual, cols, a->weight, a->bias, (float)a->eps,
                                                 cols > LONG ? qk_stopped : NULL, y))
            norm_wide_row(a, x, residual, y);
}

/* Codes become floats, and floats codes, several rows at once, as columns have parameters of their own to be loaded. */
static void norm_rows(void *context, size_t begin, size_t end)
{
    enum { SMALL = 4096, TOGETHER = 8 };
    norm_job *job = context;
    const qk_norm_args *a = job->args;
    const int any_codes = a->x.params || a->residual.params || a->y.params;
    const size_t cols = a->cols, fit = SMALL / cols,
                 most = !any_codes ? end - begin
        : fit                      ? min_size(fit, TOGETHER)
                                   : 1;
    float small[3 * SMALL] __attribute__((aligned(64)));
    float *buffer = !any_codes || fit ? small : qk_obtain(qk_times(cols, 3 * sizeof *buffer));
    if (!buffer) {
        __atomic_store_n(&job->failure, -1, __ATOMIC_RELAXED);
        return;
    }
    for (size_t rows; begin < end; begin += rows) {
        rows = min_size(end - begin, most);
        const float *x = rows_of(&a->x, begin, rows, cols, buffer);
        const float *residual = rows_of(&a->residual, begin, rows, cols, buffer + most * cols);
        float *y = a->y.params ? buffer + 2 * most * cols : (float *)a->y.data + begin * cols;
        norm_floats(a, x, residual, rows, y);
        if (a->y.params) quantize_rows(a->y.params, y, (uint8_t *)a->y.data + begin * cols, rows, cols);
    }
    if (buffer != small) qk_release(buffer);
}

int qk_layer_norm_of(const qk_norm_args *args)
{
    QK_DEFAULT_MODE;
    norm_job job = {args, 0};
    if (qk_times(args->rows, args->cols) == 0) return 0;
    const int status = qk_parallel_for(args->rows, 0.15 * (double)args->rows * (double)args->cols, norm_rows, &job);
    return status ? status : job.failure;
}

qk_status qk_layer_norm(const float *x, const float *residual, size_t rows, size_t cols, const float *weight,
                        const float *bias, double eps, float *y)
{
    QK_DEFAULT_MODE;
    const size_t total = qk_times(rows, cols);
    if (total > PTRDIFF_MAX / sizeof *x || !(eps >= 0) || (total && (!x || !weight || !bias || !y))) return QK_INVALID;
    const qk_norm_args args = {.x = {.data = x},
                               .residual = {.data = residual},
                               .y = {.data = y},
                               .rows = rows,
                               .cols = cols,
                               .weight = weight,
                               .bias = bias,
                               .eps = eps};
    return (qk_status)qk_layer_norm_of(&args);
}

/* ---- attention ----
 *
 * A task is one head of one sequence. Its q, k and v become int8 codes with one scale each; k and v become panels of an
 * integer product (gemm8.c). Then, for mr tokens at a time, all of it in the L1 cache:
 *
 *     q (mr x size) . k' (size x n) -> scores (mr x n) -> weights, uint8 -> . v (n x size) -> out (mr x size)
 */

enum { MOST_ATTENDED = 65536, MOST_QUERIES = 32 }; /* tokens of a sequence and values of a head; rows of scores */

typedef struct {
    const qk_attention_args *args;
    const qk_code_params *codes, *to; /* of q, k and v, and of the result; NULL: floats */
    const qk_kernels *k;
    int failure;
} attention_job;

/* One task's operands. Counts of codes, up to whole steps (kr) and whole panels (nr): of a head, of a sequence. */
typedef struct {
    size_t n, size_steps, size_cols, n_steps, n_cols;
    uint8_t *codes;                   /* n_steps rows of size_steps or mr codes, before packing */
    char *q, *weights;                /* n + 1 rows of size_steps codes, mr rows of n_steps: as the tile reads them */
    int8_t *keys, *values;            /* panels */
    int32_t *init, *score;            /* starting sums of the scores; mr rows of n_cols */
    double q_scale, k_scale, v_scale; /* that of v as float32 unless `wide` */
    int wide;                         /* whether results are made in double (numerics 21) */
    int32_t v_zero, sums[MAX_MR];     /* zero point of v as it is stored; sums of weights */
    float *result;                    /* mr rows before they become codes, and these */
} operands;

/* How many tokens attend at a time. */
static size_t queries_of(const attention_job *job) { return min_size((size_t)job->k->gemm8->mr, MOST_QUERIES); }

/* Lays out the operands of a sequence of n tokens from `at`; returns the end. */
static char *lay_out(operands *o, const attention_job *job, size_t n, char *at)
{
    const size_t kr = (size_t)job->k->gemm8->kr, nr = (size_t)job->k->gemm8->nr, mr = queries_of(job),
                 bytes = (size_t)job->k->gemm8->a_bytes;
    const size_t size = job->args->size, size_steps = round_up(size, kr), n_steps = round_up(n, kr);
    *o = (operands){.n = n,
                    .size_steps = size_steps,
                    .size_cols = round_up(size, nr),
                    .n_steps = n_steps,
                    .n_cols = round_up(n, nr)};
    o->codes = qk_carve(&at, (n_steps + 1) * (size_steps > mr ? size_steps : mr));
    o->q = qk_carve(&at, (n + 1) * size_steps * bytes);
    o->weights = qk_carve(&at, mr * n_steps * bytes);
    o->keys = qk_carve(&at, o->n_cols * size_steps);
    o->values = qk_carve(&at, o->size_cols * n_steps);
    o->init = qk_carve(&at, o->n_cols * sizeof *o->init);
    o->score = qk_carve(&at, mr * o->n_cols * sizeof *o->score);
    if (job->to) o->result = qk_carve(&at, mr * size * (sizeof *o->result + 1));
    return at;
}

/* Codes of rows so small that the inverse of their largest magnitude could be infinite: a power of two first, which is
 * exact. */
static void quantize_tiny(const qk_kernels *k, const float *x, size_t stride, size_t rows, size_t size, float absmax,
                          uint8_t flip, uint8_t *to, size_t ld)
{
    enum { CHUNK = 256 };
    const float up = 0x1p64f;
    float larger[CHUNK];
    for (size_t row = 0; row < rows; row++, x += stride, to += ld)
        for (size_t done = 0, n; done < size; done += n) {
            n = min_size(size - done, CHUNK);
            for (size_t i = 0; i < n; i++) larger[i] = x[done + i] * up;
            k->layers->symmetric_codes_f32(larger, 0, 1, n, 127.0f / (absmax * up), flip, to + done, n);
        }
}

/* Codes ^ flip of a head, in rows of size_steps that zeros fill up, and the largest magnitude. Returns 0 where a value
 * is not finite. */
static int quantize_head(const attention_job *job, const operands *o, const float *x, size_t stride, uint8_t flip,
                         void *to, float *absmax)
{
    const size_t size = job->args->size, ld = o->size_steps;
    *absmax = qk_largest(job->k, x, stride, o->n, size);
    if (!(*absmax <= FLT_MAX)) return 0;
    if (*absmax == 0) *absmax = 1;
    if (*absmax < 0x1p-100f)
        quantize_tiny(job->k, x, stride, o->n, size, *absmax, flip, to, ld);
    else
        job->k->layers->symmetric_codes_f32(x, stride, o->n, size, 127.0f / *absmax, flip, to, ld);
    for (size_t i = 0; size < ld && i < o->n; i++) memset((uint8_t *)to + i * ld + size, 0, ld - size);
    return 1;
}

/* Rows of `length` codes as the tile reads them. */
static void widen_rows(const qk_gemm8_kernels *k, const uint8_t *codes, size_t rows, size_t length, char *to)
{
    for (size_t i = 0; i < rows; i++, codes += length, to += length * (size_t)k->a_bytes)
        k->gemm8_pack_row(codes, length, length, 0, to);
}

/* What a code of a head is worth. */
static double head_scale(float absmax, int wide) { return wide ? absmax / 127.0 : absmax / 127.0f; }

static const int32_t zeros[MAX_NR];

/* What is stored is code ^ flip: q without a sign, k and v with one. Returns the zero point of that. */
static int32_t stored_zero(const qk_code_params *p, int with_sign, uint8_t *flip)
{
    *flip = (p->qmin < 0) == with_sign ? 0 : 0x80;
    return p->zero_point + (*flip ? (with_sign ? -128 : 128) : 0);
}

/* Codes of q, and a row of its zero point. */
static void take_queries(const attention_job *job, operands *o, const uint8_t *q)
{
    const qk_gemm8_kernels *k = job->k->gemm8;
    uint8_t flip;
    const int32_t zero = stored_zero(job->codes, 0, &flip);
    for (size_t i = 0; i < o->n; i++)
        k->gemm8_pack_row(q + i * job->args->q_stride, job->args->size, o->size_steps, flip,
                          o->q + i * o->size_steps * (size_t)k->a_bytes);
    memset(o->codes, zero, o->size_steps);
    k->gemm8_pack_row(o->codes, o->size_steps, o->size_steps, 0, o->q + o->n * o->size_steps * (size_t)k->a_bytes);
    o->q_scale = job->codes[0].scale;
}

/* q + 128, the left operand of the scores, and a row of 128. */
static int pack_queries(const attention_job *job, operands *o, const void *q)
{
    if (job->codes) {
        take_queries(job, o, q);
        return 1;
    }
    const int narrow = job->k->gemm8->a_bytes == 1;
    uint8_t *codes = narrow ? (uint8_t *)o->q : o->codes;
    float absmax;
    if (!quantize_head(job, o, q, job->args->q_stride, 0x80, codes, &absmax)) return 0;
    o->q_scale = head_scale(absmax, absmax < 0x1p-100f);
    memset(codes + o->n * o->size_steps, 0x80, o->size_steps);
    if (!narrow) widen_rows(job->k->gemm8, codes, o->n + 1, o->size_steps, o->q);
    return 1;
}

/* Panels of `rows` x `cols` codes ^ flip. */
static void pack_panels(const qk_gemm8_kernels *k, const uint8_t *codes, size_t rows, size_t cols, ptrdiff_t row_stride,
                        ptrdiff_t col_stride, uint8_t flip, size_t panel_rows, int8_t *panels)
{
    const size_t nr = (size_t)k->nr;
    for (size_t col = 0; col < cols; col += nr) {
        const qk_panel_source s = {
            .b = codes + (ptrdiff_t)col * col_stride,
            .row_stride = row_stride,
            .col_stride = col_stride,
            .k = rows,
            .flip = flip,
        };
        k->gemm8_pack_panel(&s, min_size(cols - col, nr), panels + col * panel_rows, NULL);
    }
}

/* Sums for `count` rows of q + 128 from `row`, on top of those in `init`, if any. */
static void score_rows(const attention_job *job, const operands *o, size_t row, size_t count, const int32_t *init,
                       int32_t *score)
{
    const qk_gemm8_kernels *k = job->k->gemm8;
    const size_t nr = (size_t)k->nr, lda = o->size_steps * (size_t)k->a_bytes;
    for (size_t col = 0; col < o->n_cols; col += nr)
        k->gemm8_tile((int)count, o->size_steps / (size_t)k->kr, o->q + row * lda, lda, o->keys + col * o->size_steps,
                      init ? init + col : zeros, score + col, o->n_cols);
}

/* A row of k is a column of the right operand. The scores' sums start from minus q's zero point times a column's sum;
 * that of k moves the scores of a query alike, which changes no weight. */
static int pack_keys(const attention_job *job, operands *o, const void *keys)
{
    float absmax;
    uint8_t flip = 0;
    const uint8_t *codes = job->codes ? keys : o->codes;
    ptrdiff_t stride = (ptrdiff_t)o->size_steps;
    if (job->codes) {
        stored_zero(job->codes + 1, 1, &flip);
        o->k_scale = job->codes[1].scale, stride = (ptrdiff_t)job->args->k_stride;
    } else if (quantize_head(job, o, keys, job->args->k_stride, 0, o->codes, &absmax))
        o->k_scale = head_scale(absmax, absmax < 0x1p-100f);
    else
        return 0;
    pack_panels(job->k->gemm8, codes, job->args->size, o->n, 1, stride, flip, o->size_steps, o->keys);
    score_rows(job, o, o->n, 1, NULL, o->init);
    for (size_t col = 0; col < o->n_cols; col++) o->init[col] = -o->init[col];
    return 1;
}

/* A row of v is a row of the right operand. */
static int pack_values(const attention_job *job, operands *o, const void *values)
{
    float absmax;
    uint8_t flip;
    if (job->codes) {
        const float scale = job->codes[2].scale;
        o->v_zero = stored_zero(job->codes + 2, 1, &flip);
        o->wide = scale < 0x1p-97f || scale > 0x1p119f, o->v_scale = scale;
        pack_panels(job->k->gemm8, values, o->n, job->args->size, (ptrdiff_t)job->args->v_stride, 1, flip, o->n_steps,
                    o->values);
        return 1;
    }
    if (!quantize_head(job, o, values, job->args->v_stride, 0, o->codes, &absmax)) return 0;
    o->wide = absmax < 0x1p-90f || absmax > 0x1p126f; /* a weight's unit, 2^-31 of that, must be a normal number */
    o->v_scale = head_scale(absmax, o->wide);
    pack_panels(job->k->gemm8, o->codes, o->n, job->args->size, (ptrdiff_t)o->size_steps, 1, 0, o->n_steps, o->values);
    return 1;
}

/* The weights of `count` tokens from `row`, and what their sums (as codes) are worth: v_scale / sum. */
static void weigh(const attention_job *job, operands *o, size_t row, size_t count, double *unit)
{
    const qk_kernels *k = job->k;
    const double factor = o->q_scale * o->k_scale * job->args->scale * 1.4426950408889634; /* log2 e */
    const float score_factor = factor < FLT_MAX ? (float)factor : FLT_MAX;
    score_rows(job, o, row, count, o->init, o->score);
    uint8_t *codes = k->gemm8->a_bytes == 1 ? (uint8_t *)o->weights : o->codes;
    for (size_t i = 0; i < count; i++) {
        uint8_t *w = codes + i * o->n_steps;
        o->sums[i] = k->layers->attention_weights(o->score + i * o->n_cols, o->n, score_factor, w);
        const float sum = (float)o->sums[i];
        unit[i] = o->wide ? o->v_scale / sum : (float)o->v_scale / sum;
        memset(w + o->n, 0, o->n_steps - o->n);
    }
    if (k->gemm8->a_bytes > 1) widen_rows(k->gemm8, codes, count, o->n_steps, o->weights);
}

/* Rows of a tile whose unit may not be a normal float32. */
static void store_wide(const qk_kernels *k, const int32_t *acc, const double *unit, const qk_tile *t)
{
    double sums[MAX_NR];
    for (int i = 0; i < t->rows; i++, acc += k->gemm8->nr) {
        const qk_tile row = qk_row_of_tile(t, i);
        for (int j = 0; j < t->cols; j++) sums[j] = qk_sum_of(acc, &row, j) * unit[i];
        qk_finish_row(k, sums, &row);
    }
}

static void average(const attention_job *job, operands *o, size_t count, const double *unit, float *out, size_t stride)
{
    static const float ones[MAX_NR] = {[0 ... MAX_NR - 1] = 1.0f};
    const qk_kernels *k = job->k;
    const size_t nr = (size_t)k->gemm8->nr, size = job->args->size;
    int32_t acc[MAX_MR * MAX_NR] __attribute__((aligned(64)));
    float scale[MAX_MR];
    int32_t zero[MAX_NR];
    for (size_t i = 0; i < count; i++) scale[i] = (float)unit[i];
    for (size_t i = 0; i < nr; i++) zero[i] = o->v_zero;
    for (size_t col = 0; col < size; col += nr) {
        const qk_tile t = {
            .rows = (int)count,
            .cols = (int)min_size(size - col, nr),
            .colsum = zeros,
            .row_term = o->v_zero ? o->sums : NULL,
            .col_zero = zero,
            .row_scale = scale,
            .col_scale = ones,
            .bias = qk_no_bias,
            .dst = out + col,
            .row_stride = stride * sizeof *out,
        };
        k->gemm8->gemm8_tile((int)count, o->n_steps / (size_t)k->gemm8->kr, o->weights,
                             o->n_steps * (size_t)k->gemm8->a_bytes, o->values + col * o->n_steps, zeros, acc, nr);
        if (o->wide)
            store_wide(k, acc, unit, &t);
        else
            k->gemm8->tile_to_float(acc, &t);
    }
}

static void average_to_codes(const attention_job *job, operands *o, size_t count, const double *unit, uint8_t *out)
{
    const size_t size = job->args->size;
    const qk_code_params *to = job->to;
    const qk_affine affine = qk_affine_of(to->scale, to->zero_point, to->qmin, to->qmax, QK_HALF_EVEN);
    uint8_t *codes = (uint8_t *)(o->result + queries_of(job) * size);
    average(job, o, count, unit, o->result, size);
    job->k->elementwise->quantize_f32_8(o->result, codes, count * size, &affine);
    for (size_t i = 0; i < count; i++) memcpy(out + i * job->args->out_stride, codes + i * size, size);
}

static const void *head_at(const attention_job *job, const float *x, size_t at)
{
    return job->codes ? (const void *)((const uint8_t *)x + at) : x + at;
}

static int attend(const attention_job *job, char *memory, size_t sequence, size_t which)
{
    const qk_attention_args *a = job->args;
    const size_t first = (size_t)a->starts[sequence], n = (size_t)a->starts[sequence + 1] - first, at = which * a->size;
    const qk_gemm8_kernels *k = job->k->gemm8;
    const size_t mr = queries_of(job);
    operands o;
    double unit[MAX_MR];
    lay_out(&o, job, n, memory);
    if (!pack_queries(job, &o, head_at(job, a->q, first * a->q_stride + at)) ||
        !pack_keys(job, &o, head_at(job, a->k, first * a->k_stride + at)) ||
        !pack_values(job, &o, head_at(job, a->v, first * a->v_stride + at)))
        return 0;
    for (size_t row = 0; row < n && !qk_stopped(); row += mr) {
        const size_t count = min_size(n - row, mr);
        if (k->gemm8_begin) k->gemm8_begin(count);
        weigh(job, &o, row, count, unit);
        const size_t to = (first + row) * a->out_stride + at;
        if (job->to)
            average_to_codes(job, &o, count, unit, (uint8_t *)a->out + to);
        else
            average(job, &o, count, unit, a->out + to, a->out_stride);
        if (k->gemm8_end) k->gemm8_end(count);
    }
    return 1;
}

static void attend_range(void *context, size_t begin, size_t end)
{
    attention_job *job = context;
    const qk_attention_args *a = job->args;
    size_t longest = 0;
    for (size_t task = begin; task < end; task++) {
        const size_t sequence = task / a->heads, n = (size_t)(a->starts[sequence + 1] - a->starts[sequence]);
        if (n > longest) longest = n;
    }
    operands o;
    char *memory = qk_obtain((size_t)(lay_out(&o, job, longest, (char *)64) - (char *)64));
    if (!memory) {
        __atomic_store_n(&job->failure, -1, __ATOMIC_RELAXED);
        return;
    }
    for (size_t task = begin; task < end; task++)
        if (!attend(job, memory, task / a->heads, task % a->heads))
            __atomic_store_n(&job->failure, -2, __ATOMIC_RELAXED);
    qk_release(memory);
}

static int can_attend(const qk_attention_args *a)
{
    if (!a || !a->starts || a->starts[0] != 0 || !a->size || a->size > MOST_ATTENDED || !(a->scale > 0) ||
        a->scale > DBL_MAX || a->sequences > PTRDIFF_MAX / sizeof *a->starts)
        return 0;
    for (size_t i = 0; i < a->sequences; i++)
        if (a->starts[i + 1] < a->starts[i] || a->starts[i + 1] - a->starts[i] > MOST_ATTENDED) return 0;
    return a->starts[a->sequences] == 0 ||
        (a->q && a->k && a->v && a->out && qk_times(a->heads, a->size) <= PTRDIFF_MAX / sizeof(float));
}

qk_status qk_attention(const qk_attention_args *args)
{
    QK_DEFAULT_MODE;
    return can_attend(args) ? (qk_status)qk_attention_of(args, NULL, NULL) : QK_INVALID;
}

int qk_attention_of(const qk_attention_args *args, const qk_code_params *codes, const qk_code_params *to)
{
    QK_DEFAULT_MODE;
    attention_job job = {args, codes, to, qk_active(), 0};
    if (args->starts[args->sequences] == 0) return 0; /* heads without a token may be more than a loop can count */
    double work = 0; /* per head: about 1 ns for each of 32 codes of q, k and v, and for each score */
    for (size_t i = 0; i < args->sequences; i++) {
        const double n = (double)(args->starts[i + 1] - args->starts[i]);
        work += n * (n + (double)args->size) * (1 + (double)args->size / 64);
    }
    const int status = qk_parallel_for(args->sequences * args->heads, work * (double)args->heads, attend_range, &job);
    return status ? status : job.failure;
}
