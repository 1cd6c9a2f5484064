/* What is not scaled in float32 (numerics 21). Plain C, compiled once: the same bits whatever the instruction set. */
#include <float.h>
#include <math.h>
#include <string.h>

#include "runtime/fpmode.h"
#include "drivers/drivers.h"
#include "drivers/scales.h"
#include "runtime/sizes.h"

double qk_largest_bias(const qk_kernels *k, const qk_epilogue *epilogue, size_t n)
{
    if (!epilogue->residual || !epilogue->float_bias) return 0;
    const float *bias = epilogue->float_bias;
    float most = qk_largest(k, bias, 0, 1, n);
    if (most <= FLT_MAX) return most;
    most = 0;
    for (size_t i = 0; i < n; i++)
        if (fabsf(bias[i]) <= FLT_MAX && fabsf(bias[i]) > most) most = fabsf(bias[i]);
    return most;
}

static void quantize(const qk_row_quantizer *p, const float *x, size_t n, void *q, const qk_affine *affine)
{
    if (p->bytes == 1)
        p->kernels->elementwise->quantize_f32_8(x, q, n, affine);
    else
        p->kernels->elementwise->quantize_f32_16(x, q, n, affine);
}

/* A scale below float32's normal numbers: then all of the row is multiplied by a power of two, which is exact. */
static void quantize_tiny(const qk_row_quantizer *p, const float *x, void *q, float lo, float hi, qk_row_scale *row)
{
    enum { CHUNK = 256 };
    const float up = 0x1p100f;
    float larger[CHUNK], scale;
    qk_choose_inside(lo * up, hi * up, p->qmin, p->qmax, p->symmetric, &scale, &row->zero_point);
    row->wide = scale * 0x1p-100;
    const qk_affine affine = qk_affine_of(scale, row->zero_point, p->qmin, p->qmax, QK_HALF_EVEN);
    for (size_t done = 0, n; done < p->n; done += n) {
        n = min_size(p->n - done, CHUNK);
        for (size_t i = 0; i < n; i++) larger[i] = x[done + i] * up;
        quantize(p, larger, n, (char *)q + done * (size_t)p->bytes, &affine);
    }
}

int qk_quantize_row(const qk_row_quantizer *p, const float *x, void *q, qk_row_scale *row)
{
    float lo, hi;
    p->kernels->elementwise->minmax_f32(x, p->n, &lo, &hi);
    if (!isfinite(lo) || !isfinite(hi)) return 0;
    qk_choose_inside(lo, hi, p->qmin, p->qmax, p->symmetric, &row->scale, &row->zero_point);
    if (row->scale == FLT_MIN && lo != hi) {
        quantize_tiny(p, x, q, lo, hi, row);
        return 1;
    }
    row->wide = lo != hi && !qk_is_ordinary(&p->factors, row->scale) ? row->scale : 0;
    const qk_affine affine = qk_affine_of(row->scale, row->zero_point, p->qmin, p->qmax, QK_HALF_EVEN);
    quantize(p, x, p->n, q, &affine);
    return 1;
}

/* Scales from `least` to `most` are ordinary, and so far from the ends of float32 that brackets are, too. */
static void bounds_of_usual(const qk_factors *f, float *least, float *most)
{
    const double low = 0x1.001p-126 / f->least, high = fmin(0x1.ffep126, 0x1.ffep125 / f->sum) / f->most;
    *least = (float)fmax(low, 0x1p-64), *most = (float)fmin(high, 0x1p64);
    if (!(f->sum <= 0x1p127 && f->bias <= 0x1p126 && f->least > 0)) *most = 0;
}

/* Rows that do not exist have a range like that of zeros. The bounds of the quotients are those between which codes are
 * from 0 to 255 (numerics 3). */
void qk_plan_group(const qk_row_quantizer *p, const float *x, ptrdiff_t stride, size_t rows, qk_row_group *g)
{
    const float rounder = 0x1.8p23f;
    float least, most;
    bounds_of_usual(&p->factors, &least, &most);
    memset(g->lo, 0, sizeof g->lo), memset(g->hi, 0, sizeof g->hi);
    for (size_t i = 0; i < rows; i++)
        p->kernels->elementwise->minmax_f32((const float *)((const char *)x + (ptrdiff_t)i * stride), p->n, g->lo + i,
                                            g->hi + i);
    for (int i = 0; i < QK_TOGETHER; i++) {
        const float lo = g->lo[i], hi = g->hi[i], scale = (hi - lo) / 255.0f + (float)(lo == hi);
        const float inverse = 1.0f / scale, quotient = 0 - lo / scale, zero = quotient > 255.0f ? 255.0f : quotient;
        const float start = zero + rounder, whole = start - rounder;
        const float above = inverse * (1 + 0x1p-22f);
        g->above[i] = above, g->below[i] = inverse * (1 - 0x1p-22f), g->start[i] = start;
        const int usual =
            (scale >= least) & (scale <= most) & (hi * above + whole < 255.4999f) & (lo * above + whole > -0.4999f);
        g->scale[i] = scale, g->usual[i] = usual, g->zero_point[i] = (int32_t)(usual ? whole : 0);
    }
}

int qk_quantize_of_group(const qk_row_quantizer *p, const qk_row_group *g, size_t i, const float *x, uint8_t *q,
                         qk_row_scale *row)
{
    const qk_bracket bracket = {g->above[i], g->below[i], g->start[i]};
    if (!g->usual[i] || !p->kernels->elementwise->bracketed_codes(x, q, p->n, bracket))
        return qk_quantize_row(p, x, q, row);
    *row = (qk_row_scale){.scale = g->scale[i], .zero_point = g->zero_point[i]};
    return 1;
}

void qk_finish_row(const qk_kernels *k, const double *sums, const qk_tile *t)
{
    float y[MAX_NR] = {0};
    for (int j = 0; j < t->cols; j++) {
        const double biased = sums[j] + t->bias[j];
        y[j] = (float)(t->residual ? biased + t->residual[j] : biased);
    }
    k->elementwise->activate(y, MAX_NR, t->activation);
    if (t->bounded)
        for (int j = 0; j < t->cols; j++) {
            y[j] = t->lo > y[j] ? t->lo : y[j];
            y[j] = t->hi < y[j] ? t->hi : y[j];
        }
    memcpy(t->dst, y, (size_t)t->cols * sizeof *y);
}

/* The code of a value in units of the result's scale. */
static uint8_t code_of(double value, const qk_requant *r)
{
    const double lo = r->qmin - r->zero_point, hi = r->qmax - r->zero_point;
    value = value < lo ? lo : value > hi ? hi : value;
    return (uint8_t)((int32_t)(r->rounding == QK_HALF_AWAY ? round(value) : rint(value)) + r->zero_point);
}

void qk_finish_codes(const qk_kernels *k, const double *values, int n, const qk_tile *t, uint8_t *codes)
{
    float y[MAX_NR] = {0};
    if (t->activation <= QK_RELU) {
        for (int j = 0; j < n; j++) codes[j] = code_of(values[j], t->requant);
        return;
    }
    for (int j = 0; j < n; j++) y[j] = (float)values[j];
    k->elementwise->activate(y, MAX_NR, t->activation);
    k->elementwise->quantize_f32_8(y, codes, (size_t)n, &t->out);
    for (int j = 0; j < n; j++) /* beyond float32 an activation is the identity or 0 */
        if (!(fabs(values[j]) <= FLT_MAX)) codes[j] = code_of(values[j] > 0 ? values[j] / t->out.scale : 0, t->requant);
}

/* ---- columns of qlinear ---- */

/* Whether float32 serves a column: all of what it meets is finite, and the scale keeps its bits. */
static int serves(const qk_unit_columns *p, float multiplier, float scale, float bias)
{
    if (!p->real) return multiplier <= FLT_MAX && fabsf(bias) <= FLT_MAX;
    const qk_factors factors = {1, 1, 0x1p31, 0};
    return qk_is_ordinary(&factors, scale);
}

/* Columns one by one. A product of scales that float32 lacks is taken in double. */
static int multipliers_apart(const qk_unit_columns *p, float *multiplier, const float *scale, const float *bias)
{
    int all = 1;
    for (size_t j = 0; j < p->n; j++) {
        if (!(scale[j] >= FLT_MIN && scale[j] <= FLT_MAX))
            multiplier[j] = (float)((double)p->a_scale * p->b_scale[j] / p->out_scale);
        if (serves(p, multiplier[j], scale[j], bias[j])) continue;
        multiplier[j] = -1;
        all = 0;
    }
    return all;
}

int qk_unit_multipliers(const qk_unit_columns *p, float *restrict multiplier, float *restrict scale,
                        float *restrict bias)
{
    QK_DEFAULT_MODE;
    const float a_scale = p->a_scale, out_scale = p->out_scale, *restrict b_scale = p->b_scale;
    const float bias_unit = p->real ? 1 : out_scale, most = p->real ? 0x1p95f : FLT_MAX;
    int unusual = 0;
    for (size_t j = 0; j < p->n; j++) {
        scale[j] = a_scale * b_scale[j];
        multiplier[j] = scale[j] / out_scale;
        unusual |= !(scale[j] >= FLT_MIN) | !(scale[j] <= most) | !(multiplier[j] <= FLT_MAX);
    }
    if (p->bias)
        for (size_t j = 0; j < p->n; j++) {
            bias[j] = p->bias[j] / bias_unit;
            unusual |= !(fabsf(bias[j]) <= FLT_MAX);
        }
    else
        memset(bias, 0, p->n * sizeof *bias);
    return !unusual || multipliers_apart(p, multiplier, scale, bias);
}

void qk_wide_columns(const qk_unit_columns *p, const float *multiplier, double *wide_scale, double *wide_bias)
{
    QK_DEFAULT_MODE;
    const double unit = p->real ? 1 : p->out_scale;
    for (size_t j = 0; j < p->n; j++) {
        const int wide = multiplier[j] < 0;
        wide_scale[j] = wide ? (double)p->a_scale * p->b_scale[j] / unit : 0;
        wide_bias[j] = wide && p->bias ? p->bias[j] / unit : 0;
    }
}
