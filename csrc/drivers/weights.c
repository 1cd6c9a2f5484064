/* Weights: every kind behind one type, the products by them, the C interface to both (numerics 6, 8, 12, 16 and 17). */
#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "drivers/drivers.h"
#include "drivers/elementwise.h"
#include "kernels/kernels.h"
#include "runtime/fpmode.h"
#include "runtime/sizes.h"

/* ---- what a matrix must be ---- */

static int is_small(qk_dtype type) { return type >= QK_I4 && type <= QK_U2; }
static int is_half(qk_dtype type) { return type == QK_F16 || type == QK_BF16; }

size_t qk_scale_count(const qk_matrix *m)
{
    if (m->block_scale) return m->n;
    if (m->kind == QK_PER_TENSOR) return 1;
    return m->kind == QK_PER_AXIS ? m->n : qk_times(ceil_div(m->k, m->block), m->n);
}

static int scales_are_good(const float *scale, size_t count, float least)
{
    for (size_t i = 0; i < count; i++)
        if (!(scale[i] >= least && scale[i] <= FLT_MAX)) return 0;
    return 1;
}

static int zero_points_fit(const int32_t *zero_point, size_t count, qk_dtype type)
{
    for (size_t i = 0; zero_point && i < count; i++)
        if (zero_point[i] < least_code(type) || zero_point[i] > most_code(type)) return 0;
    return 1;
}

static int has_good_levels(const qk_matrix *m)
{
    if (m->type != QK_U8 || m->zero_point || !m->level_count || m->level_count > QK_LEVELS) return 0;
    const size_t count = qk_times(m->kind == QK_PER_AXIS ? m->n : 1, m->level_count);
    if (count > PTRDIFF_MAX / sizeof(float)) return 0;
    for (size_t i = 0; i < count; i++)
        if (!isfinite(m->levels[i])) return 0;
    for (size_t row = 0; row < m->k; row++)
        for (size_t col = 0; col < m->n; col++)
            if (((const uint8_t *)m->b)[(ptrdiff_t)row * m->row_stride + (ptrdiff_t)col * m->col_stride] >=
                m->level_count)
                return 0;
    return m->kind == QK_PER_BLOCK ? m->scale && scales_are_good(m->scale, qk_scale_count(m), 0) : !m->scale;
}

static int has_good_params(const qk_matrix *m)
{
    if (m->kind == QK_PER_BLOCK && m->type == QK_I16) return 0;
    const size_t count = qk_scale_count(m);
    return m->scale && scales_are_good(m->scale, count, FLT_MIN) && zero_points_fit(m->zero_point, count, m->type);
}

static int has_good_integer_scales(const qk_matrix *m)
{
    if ((m->type != QK_I4 && m->type != QK_U4) || m->kind != QK_PER_BLOCK || m->block % 4 || !m->block_shift ||
        !m->scale || m->zero_point || m->levels || qk_times(ceil_div(m->k, m->block), m->n) > PTRDIFF_MAX)
        return 0;
    const qk_integer_scales scales = {.k = m->k,
                                      .n = m->n,
                                      .block = m->block,
                                      .scale = m->scale,
                                      .block_scale = m->block_scale,
                                      .block_shift = m->block_shift,
                                      .codes = m->type,
                                      .qmin = least_code(m->type),
                                      .qmax = most_code(m->type)};
    return qk_fold_fits(&scales);
}

static int is_good(const qk_matrix *m)
{
    const int known =
        m->type == QK_I8 || m->type == QK_U8 || m->type == QK_I16 || is_small(m->type) || is_half(m->type);
    if (!known || (unsigned)m->kind > QK_PER_BLOCK || (m->kind == QK_PER_BLOCK && !m->block)) return 0;
    if ((m->k && m->n && !m->b) || qk_scale_count(m) > PTRDIFF_MAX / sizeof(float)) return 0;
    if (is_half(m->type)) return !m->scale && !m->zero_point && !m->levels && m->kind == QK_PER_TENSOR;
    if (m->block_scale || m->block_shift) return m->block_scale && has_good_integer_scales(m);
    return m->levels ? has_good_levels(m) : has_good_params(m);
}

/* ---- layout ---- */

static qk_family family_of(const qk_matrix *m, size_t height)
{
    if (height) return QK_DEPTHWISE;
    if (is_half(m->type)) return QK_GEMMF16;
    if (m->type == QK_I16) return QK_GEMM16;
    if (m->block_scale) return QK_FOLDED;
    return is_small(m->type) || m->levels || m->kind == QK_PER_BLOCK ? QK_GEMM4 : QK_GEMM8;
}

static int has_zeros(const qk_matrix *m)
{
    const size_t count = m->scale && m->zero_point ? qk_scale_count(m) : 0;
    int any = 0;
    for (size_t i = 0; i < count; i++) any |= m->zero_point[i] != 0;
    return any;
}

void qk_weights_init(qk_weights *w, const qk_matrix *m, size_t height)
{
    QK_DEFAULT_MODE;
    const qk_kernels *kernels = qk_active();
    const int is_unsigned = m->type == QK_U8;
    const qk_gemm8_kernels *gemm8 = NULL;
    size_t column_bytes = 0;
    *w = (qk_weights){.family = family_of(m, height), .type = m->type, .k = m->k, .n = m->n};
    switch (w->family) {
    case QK_GEMM8:
        if (m->scale) /* packed once, used often */
            gemm8 = qk_gemm8_kernels_for(kernels, m->b, m->row_stride, m->col_stride, m->k, m->n, is_unsigned);
        qk_gemm8_init(&w->gemm8, kernels, gemm8, m->k, m->n, is_unsigned);
        w->n_pad = w->gemm8.n_pad, w->panel_bytes = qk_gemm8_bytes(&w->gemm8);
        column_bytes = sizeof *w->gemm8.colsum;
        break;
    case QK_FOLDED:
        qk_folded_init(&w->gemm8, m);
        w->n_pad = w->gemm8.n_pad, w->panel_bytes = qk_folded_bytes(&w->gemm8);
        w->bytes = qk_plus(w->panel_bytes, qk_times(w->n_pad, qk_folded_column_bytes(&w->gemm8)));
        return;
    case QK_GEMM4:
        qk_gemm4_init(&w->gemm4, m, w->levels);
        w->n_pad = w->gemm4.n_pad, w->panel_bytes = qk_gemm4_bytes(&w->gemm4);
        break;
    case QK_GEMMF16:
        qk_gemmf16_init(&w->gemmf16, kernels, m->k, m->n, m->type);
        w->n_pad = w->gemmf16.n_pad, w->panel_bytes = qk_gemmf16_bytes(&w->gemmf16);
        break;
    case QK_GEMM16:
        qk_gemm16_init(&w->gemm16, kernels, m->k, m->n);
        w->n_pad = w->gemm16.n_pad, w->panel_bytes = qk_gemm16_bytes(&w->gemm16);
        column_bytes = sizeof *w->gemm16.colsum;
        break;
    case QK_DEPTHWISE:
        qk_depthwise_init(&w->depthwise, m, height);
        w->n_pad = round_up(m->n, (size_t)kernels->conv->block), w->panel_bytes = qk_depthwise_bytes(&w->depthwise);
        column_bytes = sizeof *w->depthwise.colsum;
        break;
    }
    w->has_zeros = column_bytes && has_zeros(m);
    if (column_bytes && m->scale) column_bytes += sizeof *w->scale;
    if (w->has_zeros) column_bytes += sizeof *w->zero_point;
    w->panel_bytes = round_up(w->panel_bytes, sizeof *w->gemm16.colsum);
    w->bytes = qk_plus(w->panel_bytes, qk_times(w->n_pad, column_bytes));
}

/* ---- packing ---- */

static void bound_scales(qk_weights *w, const float *scale, size_t count)
{
    w->least_scale = FLT_MAX;
    for (size_t i = 0; i < count; i++) {
        if (scale[i] < w->least_scale) w->least_scale = scale[i];
        if (scale[i] > w->most_scale) w->most_scale = scale[i];
    }
}

/* Keeps scales and zero points of columns, padded to whole panels, in memory for them. */
static void keep_columns(qk_weights *w, const qk_matrix *m, void *memory)
{
    const size_t step = m->kind != QK_PER_TENSOR, count = step ? w->n : 1;
    if (!m->scale) return;
    w->scale = memory, w->zero_point = w->has_zeros ? (int32_t *)(w->scale + w->n_pad) : NULL;
    for (size_t i = 0; i < w->n_pad; i++) w->scale[i] = i < w->n ? m->scale[i * step] : 0;
    for (size_t i = 0; w->has_zeros && i < w->n_pad; i++) w->zero_point[i] = i < w->n ? m->zero_point[i * step] : 0;
    bound_scales(w, m->scale, count);
}

static qk_status fill_gemm8(qk_weights *w, const qk_matrix *m)
{
    w->gemm8.panels = w->memory, w->gemm8.colsum = (int32_t *)((char *)w->memory + w->panel_bytes);
    keep_columns(w, m, w->gemm8.colsum + w->n_pad);
    int32_t *none = w->scale && !w->zero_point ? calloc(w->n_pad + 1, sizeof *none) : NULL;
    if (w->scale && !w->zero_point && !none) return QK_NO_MEMORY;
    w->bound = qk_gemm8_pack(&w->gemm8, m->b, m->row_stride, m->col_stride, none ? none : w->zero_point);
    free(none);
    return w->bound < 0 ? (qk_status)w->bound : QK_OK;
}

static qk_status fill_folded(qk_weights *w, const qk_matrix *m)
{
    w->gemm8.folded.panels = w->memory, w->gemm8.folded.columns = (uint8_t *)w->memory + w->panel_bytes;
    bound_scales(w, m->scale, w->n);
    w->bound = qk_folded_pack(&w->gemm8, m);
    return w->bound < 0 ? (qk_status)w->bound : QK_OK;
}

static qk_status fill_depthwise(qk_weights *w, const qk_matrix *m)
{
    w->depthwise.panels = w->memory, w->depthwise.colsum = (int32_t *)((char *)w->memory + w->panel_bytes);
    keep_columns(w, m, w->depthwise.colsum + w->n_pad);
    w->bound = qk_depthwise_pack(&w->depthwise, m);
    return w->bound < 0 ? (qk_status)w->bound : QK_OK;
}

static int fill_gemm16(qk_weights *w, const qk_matrix *m)
{
    w->gemm16.panels = w->memory, w->gemm16.colsum = (int64_t *)((char *)w->memory + w->panel_bytes);
    memset(w->gemm16.colsum, 0, w->n_pad * sizeof *w->gemm16.colsum);
    keep_columns(w, m, w->gemm16.colsum + w->n_pad);
    return qk_gemm16_pack(&w->gemm16, m->b, m->row_stride, m->col_stride);
}

static qk_status status_of(int done) { return done < 0 ? (qk_status)done : QK_OK; }

qk_status qk_weights_fill(qk_weights *w, const qk_matrix *m, void *memory)
{
    QK_DEFAULT_MODE;
    w->memory = memory;
    if (w->family == QK_GEMM8) return fill_gemm8(w, m);
    if (w->family == QK_FOLDED) return fill_folded(w, m);
    if (w->family == QK_GEMM16) return status_of(fill_gemm16(w, m));
    if (w->family == QK_DEPTHWISE) return fill_depthwise(w, m);
    if (w->family == QK_GEMM4) {
        w->gemm4.panels = memory;
        return status_of(qk_gemm4_pack(&w->gemm4, m));
    }
    w->gemmf16.panels = memory;
    const int done = qk_gemmf16_pack(&w->gemmf16, m->b, m->row_stride, m->col_stride);
    return done ? status_of(done) : QK_NOT_FINITE;
}

int qk_weights_unpack(const qk_weights *w, void *b)
{
    QK_DEFAULT_MODE;
    switch (w->family) {
    case QK_GEMM8: return qk_gemm8_unpack(&w->gemm8, b);
    case QK_GEMM4: return qk_gemm4_unpack(&w->gemm4, b);
    case QK_FOLDED: return qk_folded_unpack(&w->gemm8, b);
    case QK_GEMMF16: return qk_gemmf16_unpack(&w->gemmf16, b);
    case QK_DEPTHWISE: return qk_depthwise_unpack(w, b);
    default: return qk_gemm16_unpack(&w->gemm16, b);
    }
}

void qk_weights_params(const qk_weights *w, float *scale, int32_t *zero_point)
{
    QK_DEFAULT_MODE;
    if (w->family == QK_GEMM4) {
        qk_gemm4_params(&w->gemm4, scale, zero_point);
        return;
    }
    if (w->family == QK_FOLDED)
        qk_folded_scales(&w->gemm8, scale, w->n);
    else
        memcpy(scale, w->scale, w->n * sizeof *scale);
    for (size_t i = 0; i < w->n; i++) zero_point[i] = w->zero_point ? w->zero_point[i] : 0;
}

/* ---- weights of the C interface ---- */

void qk_weights_free(qk_weights *w)
{
    if (!w) return;
    qk_release(w->memory), free(w);
}

size_t qk_weights_bytes(const qk_weights *w) { return w ? sizeof *w + w->bytes : 0; }
size_t qk_weights_rows(const qk_weights *w) { return w ? w->k : 0; }
size_t qk_weights_cols(const qk_weights *w) { return w ? w->n : 0; }

qk_status qk_weights_new(const qk_matrix *matrix, qk_weights **weights)
{
    QK_DEFAULT_MODE;
    if (!matrix || !weights) return QK_INVALID;
    qk_matrix m = *matrix;
    if ((unsigned)m.type > QK_U2) return QK_INVALID;
    const size_t item = size_of(m.type);
    const size_t most = PTRDIFF_MAX / sizeof(float); /* of a row of x, or of y */
    if (m.k > most || m.n > most || qk_times(qk_times(m.k, m.n), item) > PTRDIFF_MAX) return QK_INVALID;
    if (!m.row_stride && !m.col_stride) m.row_stride = (ptrdiff_t)(m.n * item), m.col_stride = (ptrdiff_t)item;
    if (!is_good(&m)) return QK_INVALID;
    qk_weights *w = calloc(1, sizeof *w);
    int32_t *zeros = m.scale && !m.zero_point ? calloc(qk_scale_count(&m) + 1, sizeof *zeros) : NULL;
    if (zeros) m.zero_point = zeros;
    qk_status status = QK_NO_MEMORY;
    if (w && (m.zero_point || !m.scale)) {
        qk_weights_init(w, &m, 0);
        void *memory = qk_obtain(w->bytes);
        if (memory) status = qk_weights_fill(w, &m, memory);
    }
    free(zeros);
    if (status)
        qk_weights_free(w);
    else
        *weights = w;
    return status;
}

/* ---- products ---- */

/* Column arrays of a call, n_pad entries of 4 bytes: the caller's where there is nothing to pad, else a copy in `own`.
 */
static const void *columns_of(const qk_weights *w, const void *values, void **own)
{
    if (!values || w->n == w->n_pad) return values;
    *own = calloc(w->n_pad, 4);
    return *own ? memcpy(*own, values, w->n * 4) : NULL;
}

static int rows_fit(size_t rows, size_t cols, size_t *stride, size_t item)
{
    if (!*stride) *stride = cols;
    return *stride >= cols && qk_times(qk_times(rows, *stride), item) <= PTRDIFF_MAX;
}

size_t qk_most_rows(const qk_gemm4_weights *p)
{
    if (p->bits == 8) return 65536; /* whose codes' sum two int16 hold */
    return INT32_MAX / (127 * (p->levels || p->column_levels ? 128 : p->bits == 2 ? 12 : 15));
}

static int could_overflow(const qk_weights *w, int64_t largest, int64_t bias)
{
    if (w->family == QK_GEMM4) return w->gemm4.block > qk_most_rows(&w->gemm4);
    return (w->family == QK_GEMM8 || w->family == QK_FOLDED) && w->bound * largest + bias > INT32_MAX;
}

int qk_multiply(const qk_rows *rows, const qk_weights *w, const qk_epilogue *epilogue)
{
    switch (w->family) {
    case QK_GEMM8: return qk_gemm8(rows, &w->gemm8, epilogue);
    case QK_FOLDED: return qk_folded_linear(rows, &w->gemm8, epilogue);
    case QK_GEMM4: return qk_gemm4_linear(rows->a, rows->row_stride, rows->m, &w->gemm4, epilogue);
    case QK_GEMMF16: return qk_gemmf16_linear(rows->a, rows->row_stride, rows->m, &w->gemmf16, epilogue);
    default: return qk_gemm16(rows, &w->gemm16, epilogue);
    }
}

qk_status qk_linear(const qk_weights *w, const float *x, size_t rows, const qk_layer *given, float *y)
{
    QK_DEFAULT_MODE;
    qk_layer layer = {0};
    if (!w) return QK_INVALID;
    if (given) layer = *given;
    const size_t item = sizeof(float);
    if (!rows_fit(rows, w->k, &layer.x_stride, item) || !rows_fit(rows, w->n, &layer.y_stride, item) ||
        !rows_fit(rows, w->n, &layer.residual_stride, item) || (unsigned)layer.activation > QK_SILU ||
        (layer.bounded && !(layer.lo <= layer.hi)) || (rows && w->n && ((!x && w->k) || !y)))
        return QK_INVALID;
    if (could_overflow(w, 255, 0)) return QK_OVERFLOW;
    const qk_rows source = {.m = rows, .a = x, .row_stride = (ptrdiff_t)(layer.x_stride * item), .type = QK_FLOATS};
    void *own = NULL;
    const qk_epilogue e = {
        .type = QK_TO_FLOAT,
        .out = y,
        .row_stride = layer.y_stride * item,
        .b_zero = w->zero_point,
        .col_scale = w->scale,
        .least_scale = w->least_scale,
        .most_scale = w->most_scale,
        .float_bias = columns_of(w, layer.bias, &own),
        .residual = layer.residual,
        .residual_stride = layer.residual_stride * item,
        .activation = layer.activation,
        .bounded = layer.bounded,
        .lo = layer.lo,
        .hi = layer.hi,
    };
    const qk_status status = layer.bias && !e.float_bias ? QK_NO_MEMORY : status_of(qk_multiply(&source, w, &e));
    free(own);
    return status;
}

/* ---- products of codes ---- */

static int is_byte(qk_dtype type) { return type == QK_I8 || type == QK_U8; }
static int is_code_of(int32_t code, qk_dtype type) { return code >= least_code(type) && code <= most_code(type); }

static int layer_is_good(const qk_code_layer *l)
{
    const int fixed_point = l->rounding > QK_HALF_AWAY;
    const float scales[] = {l->scale, l->out_scale};
    return is_byte(l->type) && is_byte(l->out_type) && scales_are_good(scales, 2, FLT_MIN) &&
        is_code_of(l->zero_point, l->type) && is_code_of(l->out_zero_point, l->out_type) && l->qmin <= l->qmax &&
        is_code_of(l->qmin, l->out_type) && is_code_of(l->qmax, l->out_type) && (unsigned)l->activation <= QK_SILU &&
        (unsigned)l->rounding <= QK_TFLITE && !(l->bias && l->int_bias) &&
        !(fixed_point && (l->bias || l->activation > QK_RELU));
}

/* Mantissas and shifts of scale * b's scale / out_scale, which in double leave no range, in the memory at `columns`. */
static void set_fixed_point(const qk_weights *w, const qk_code_layer *l, void *columns, qk_epilogue *e)
{
    int32_t *mantissa = columns, *shift = mantissa + w->n_pad;
    for (size_t i = 0; i < w->n; i++)
        qk_quantize_multiplier((double)l->scale * w->scale[i] / (double)l->out_scale, mantissa + i, shift + i);
    e->requant.mantissa = mantissa, e->requant.shift = shift;
}

/* Multipliers, scales and biases of the sums (numerics 8 and 21): wide ones, of 8 bytes, before those of 4. */
static void set_multipliers(const qk_weights *w, const qk_code_layer *l, void *columns, qk_epilogue *e)
{
    const qk_unit_columns unit = {w->n, l->scale, l->out_scale, w->scale, l->bias, l->activation > QK_RELU};
    double *wide_scale = columns, *wide_bias = wide_scale + w->n_pad;
    float *multiplier = (float *)(wide_bias + w->n_pad), *scale = multiplier + w->n_pad, *bias = scale + w->n_pad;
    e->requant.multiplier = multiplier, e->col_scale = scale, e->float_bias = bias;
    if (qk_unit_multipliers(&unit, multiplier, scale, bias)) return;
    qk_wide_columns(&unit, multiplier, wide_scale, wide_bias);
    e->wide_scale = wide_scale, e->wide_bias = wide_bias;
}

enum { COLUMN_BYTES = 2 * sizeof(double) + 3 * sizeof(float) };

static qk_status multiply_codes(const qk_weights *w, const qk_rows *rows, const qk_code_layer *l, qk_epilogue *e)
{
    void *own = NULL, *columns = calloc(w->n_pad + 1, COLUMN_BYTES);
    e->int_bias = columns_of(w, l->int_bias, &own);
    qk_status status = QK_NO_MEMORY;
    if (columns && (e->int_bias || !l->int_bias)) {
        if (l->rounding > QK_HALF_AWAY)
            set_fixed_point(w, l, columns, e);
        else
            set_multipliers(w, l, columns, e);
        status = status_of(qk_multiply(rows, w, e));
    }
    free(columns), free(own);
    return status;
}

static int64_t largest_magnitude(const int32_t *values, size_t n)
{
    int64_t largest = 0;
    for (size_t i = 0; values && i < n; i++) {
        const int64_t value = values[i] < 0 ? -(int64_t)values[i] : values[i];
        if (value > largest) largest = value;
    }
    return largest;
}

qk_status qk_qlinear(const qk_weights *w, const void *q, size_t rows, const qk_code_layer *given, void *out)
{
    QK_DEFAULT_MODE;
    if (!w || !given || w->family != QK_GEMM8 || !is_byte(given->out_type)) return QK_INVALID;
    qk_code_layer l = *given;
    if (!l.qmin && !l.qmax) l.qmin = least_code(l.out_type), l.qmax = most_code(l.out_type);
    if (!layer_is_good(&l) || !rows_fit(rows, w->k, &l.q_stride, 1) || !rows_fit(rows, w->n, &l.out_stride, 1) ||
        (rows && w->n && ((!q && w->k) || !out)))
        return QK_INVALID;
    const int32_t below = l.zero_point - least_code(l.type), above = most_code(l.type) - l.zero_point;
    if (could_overflow(w, below > above ? below : above, largest_magnitude(l.int_bias, w->n))) return QK_OVERFLOW;
    float lo, hi;
    const int finite = l.bias ? qk_minmax(l.bias, w->n, &lo, &hi) : 1;
    if (finite <= 0) return finite ? (qk_status)finite : QK_NOT_FINITE;
    const qk_rows source = {.m = rows,
                            .a = q,
                            .row_stride = (ptrdiff_t)l.q_stride,
                            .type = l.type == QK_U8 ? QK_CODES_U8 : QK_CODES_I8,
                            .zero_point = &l.zero_point};
    qk_epilogue e = {
        .type = QK_TO_CODES,
        .out = out,
        .row_stride = l.out_stride,
        .b_zero = w->zero_point,
        .activation = l.activation,
        .requant = {.rounding = l.rounding, .zero_point = l.out_zero_point, .qmin = l.qmin, .qmax = l.qmax},
        .out_scale = l.out_scale};
    return multiply_codes(w, &source, &l, &e);
}

qk_status qk_matmul(const qk_weights *w, const void *a, qk_dtype type, size_t rows, const int32_t *a_zero_point,
                    const int32_t *b_zero_point, void *out)
{
    QK_DEFAULT_MODE;
    if (!w || (w->family != QK_GEMM8 && w->family != QK_GEMM16)) return QK_INVALID;
    const int wide = w->family == QK_GEMM16;
    const size_t item = wide ? sizeof(int64_t) : sizeof(int32_t);
    size_t a_stride = w->k, out_stride = w->n;
    if ((wide ? type != QK_I16 : !is_byte(type)) || !rows_fit(rows, w->k, &a_stride, size_of(type)) ||
        !rows_fit(rows, w->n, &out_stride, item) || (rows && w->n && ((!a && w->k) || !out)) ||
        !zero_points_fit(a_zero_point, rows, type) || !zero_points_fit(b_zero_point, w->n, w->type))
        return QK_INVALID;
    const qk_rows source = {.m = rows,
                            .a = a,
                            .row_stride = (ptrdiff_t)(w->k * size_of(type)),
                            .type = type == QK_U8 ? QK_CODES_U8 : QK_CODES_I8,
                            .zero_point = a_zero_point,
                            .zero_point_per_row = a_zero_point != NULL};
    void *own = NULL;
    const qk_epilogue e = {
        .type = QK_TO_INT32, .out = out, .row_stride = w->n * item, .b_zero = columns_of(w, b_zero_point, &own)};
    qk_status status = QK_NO_MEMORY;
    if (e.b_zero || !b_zero_point) status = status_of(qk_multiply(&source, w, &e));
    free(own);
    return status;
}
