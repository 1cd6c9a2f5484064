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

/* Whether the scale of a row would be below float32's normal numbers. Then all of it is multiplied by a power of two,
 * which is exact. */
static int is_tiny(const qk_row_plan *plan) { return plan->row.scale == FLT_MIN && plan->lo != plan->hi; }
static const float up = 0x1p100f;

int qk_plan_row(const qk_row_quantizer *p, const float *x, qk_row_plan *plan)
{
    float scale;
    qk_row_scale *row = &plan->row;
    p->kernels->elementwise->minmax_f32(x, p->n, &plan->lo, &plan->hi);
    if (!isfinite(plan->lo) || !isfinite(plan->hi)) return 0;
    qk_choose_inside(plan->lo, plan->hi, p->qmin, p->qmax, p->symmetric, &row->scale, &row->zero_point);
    scale = row->scale;
    row->wide = plan->lo != plan->hi && !qk_is_ordinary(&p->factors, scale) ? scale : 0;
    if (is_tiny(plan)) {
        qk_choose_inside(plan->lo * up, plan->hi * up, p->qmin, p->qmax, p->symmetric, &scale, &row->zero_point);
        row->wide = scale * 0x1p-100;
    }
    plan->affine = qk_affine_of(scale, row->zero_point, p->qmin, p->qmax, QK_HALF_EVEN);
    return 1;
}

void qk_quantize_planned(const qk_row_quantizer *p, const float *x, void *q, const qk_row_plan *plan)
{
    enum { CHUNK = 256 };
    float larger[CHUNK];
    if (!is_tiny(plan)) {
        quantize(p, x, p->n, q, &plan->affine);
        return;
    }
    for (size_t done = 0, n; done < p->n; done += n) {
        n = min_size(p->n - done, CHUNK);
        for (size_t i = 0; i < n; i++) larger[i] = x[done + i] * up;
        quantize(p, larger, n, (char *)q + done * (size_t)p->bytes, &plan->affine);
    }
}

int qk_quantize_row(const qk_row_quantizer *p, const float *x, void *q, qk_row_scale *row)
{
    qk_row_plan plan;
    if (!qk_plan_row(p, x, &plan)) return 0;
    qk_quantize_planned(p, x, q, &plan);
    *row = plan.row;
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
