/* The loop of rounding with feedback (rounding.c, numerics 30), compiled once per instruction set. */
#ifndef QK_GENERIC_ROUNDING_H
#define QK_GENERIC_ROUNDING_H

#include "kernels/generic/target.h"
#include "kernels/kernels.h"

enum { ROUND_NR = QK_GEMMF16_NR };

/* Codes of values by scales and zero points, and what they stand for. Adding 1.5 * 2^23 rounds half to even. */
static inline void round_to_scale(const qk_round_rows *p, size_t row, const float *restrict value,
                                  int16_t *restrict codes, float *restrict rounded)
{
    const qk_feedback *of = p->of;
    const size_t at = (size_t)of->group[row] * of->n + p->column;
    const float *restrict scale = of->scale + at;
    const int32_t *restrict zero = of->zero + at;
    for (int j = 0; j < ROUND_NR; j++) {
        const float lo = (float)(of->qmin - zero[j]), hi = (float)(of->qmax - zero[j]);
        float v = value[j] / scale[j];
        v = v > lo ? v : lo; /* of NaN, too */
        v = v < hi ? v : hi;
        v = v + 0x1.8p23f - 0x1.8p23f;
        codes[j] = (int16_t)((int32_t)v + zero[j]);
        rounded[j] = v * scale[j];
    }
}

/* Ranks of levels, and what they stand for. */
static inline void round_to_levels(const qk_round_rows *p, size_t row, const float *restrict value,
                                   int16_t *restrict codes, float *restrict rounded)
{
    const qk_feedback *of = p->of;
    const float *restrict scale = of->scale + (size_t)of->group[row] * of->n + p->column;
    const float *restrict level = of->level + p->column, *restrict threshold = of->threshold + p->column;
    float v[ROUND_NR];
    int32_t rank[ROUND_NR] = {0};
    for (int j = 0; j < ROUND_NR; j++) {
        v[j] = value[j] * (1 / (scale[j] > 0x1p-126f ? scale[j] : 0x1p-126f));
        rounded[j] = level[j];
    }
    for (size_t i = 1; i < of->levels; i++, threshold += of->n) {
        level += of->n;
        for (int j = 0; j < ROUND_NR; j++) {
            rank[j] += v[j] > threshold[j];
            rounded[j] = v[j] > threshold[j] ? level[j] : rounded[j];
        }
    }
    for (int j = 0; j < ROUND_NR; j++) codes[j] = (int16_t)rank[j], rounded[j] *= scale[j];
}

/* Errors of a row, and what they change of the loss. */
static inline void change_row(const qk_round_rows *p, int i, const float *restrict value, const float *restrict rounded)
{
    const qk_feedback *of = p->of;
    const size_t row = p->row + (size_t)i;
    const float *restrict w = of->w + row * of->n + p->column, weight = of->weight[row];
    float *restrict error = p->errors + i * ROUND_NR;
    double *restrict loss = of->loss + p->column;
    for (int j = 0; j < ROUND_NR; j++) {
        const double now = (double)value[j] - rounded[j];
        const double earlier = of->both ? (double)value[j] - ((double)w[j] - error[j]) : 0;
        loss[j] += weight * (now * now - earlier * earlier);
        error[j] = w[j] - rounded[j];
    }
}

/* What the grid makes of values; of masked weights, what it makes of 0. */
static inline void round_row(const qk_round_rows *p, size_t row, const float *restrict value, float *restrict rounded)
{
    const qk_feedback *of = p->of;
    const size_t at = row * of->n + p->column;
    float kept[ROUND_NR];
    for (int j = 0; j < ROUND_NR; j++) kept[j] = value[j];
    if (of->mask)
        for (int j = 0; j < ROUND_NR; j++) kept[j] = of->mask[at + (size_t)j] ? 0 : kept[j];
    if (!of->scale)
        for (int j = 0; j < ROUND_NR; j++) rounded[j] = kept[j];
    else if (of->zero)
        round_to_scale(p, row, kept, of->codes + at, rounded);
    else
        round_to_levels(p, row, kept, of->codes + at, rounded);
}

static void round_rows(const qk_round_rows *p)
{
    const qk_feedback *of = p->of;
    for (int i = 0; i < p->rows; i++) {
        const size_t row = p->row + (size_t)i;
        const float *restrict w = of->w + row * of->n + p->column, *restrict near = of->near + row * QK_ROUND_ROWS;
        float value[ROUND_NR], rounded[ROUND_NR];
        for (int j = 0; j < ROUND_NR; j++) value[j] = p->before[i * ROUND_NR + j];
        for (int of_row = 0; of_row < i; of_row++) {
            const float *restrict error = p->errors + of_row * ROUND_NR;
            for (int j = 0; j < ROUND_NR; j++) value[j] = __builtin_fmaf(near[of_row], error[j], value[j]);
        }
        for (int j = 0; j < ROUND_NR; j++) value[j] += w[j];
        if (p->after)
            for (int j = 0; j < ROUND_NR; j++) value[j] += p->after[i * ROUND_NR + j];
        round_row(p, row, value, rounded);
        change_row(p, i, value, rounded);
    }
}

#endif
