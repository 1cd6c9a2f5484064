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
        const float divisor = __builtin_fmaxf(__builtin_fabsf(scale[j]), 0x1p-126f);
        v[j] = value[j] * (1 / __builtin_copysignf(divisor, scale[j]));
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
    const float *restrict w = of->w + row * of->n + p->column, root = of->weight[row];
    const float weight = of->both ? root : root * root;
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
        for (int j = 0; p->sums && j < ROUND_NR; j++)
            p->sums[i * ROUND_NR + j] = of->weight[row] * (value[j] - rounded[j]);
    }
}

/* sums[j] += feed[0] * changes[0][j], and so on, one after the other. */
static inline void add_four_changes(const float *const *feed, const float *restrict changes, float *restrict sums,
                                    size_t i)
{
    const float f0 = feed[0][i], f1 = feed[1][i], f2 = feed[2][i], f3 = feed[3][i];
    for (int j = 0; j < ROUND_NR; j++) {
        float sum = __builtin_fmaf(f0, changes[j], sums[j]);
        sum = __builtin_fmaf(f1, changes[j + ROUND_NR], sum);
        sum = __builtin_fmaf(f2, changes[j + 2 * ROUND_NR], sum);
        sums[j] = __builtin_fmaf(f3, changes[j + 3 * ROUND_NR], sum);
    }
}

static void add_changes(const float *const *feed, const float *changes, size_t count, float *sums, size_t first,
                        size_t end)
{
    for (size_t i = first; i < end; i++) {
        float *restrict to = sums + i * ROUND_NR;
        size_t c = 0;
        for (; c + 4 <= count; c += 4) add_four_changes(feed + c, changes + c * ROUND_NR, to, i);
        for (; c < count; c++) {
            const float f = feed[c][i], *restrict change = changes + c * ROUND_NR;
            for (int j = 0; j < ROUND_NR; j++) to[j] = __builtin_fmaf(f, change[j], to[j]);
        }
    }
}

/* Errors less what they were; returns whether one has changed. */
static inline int changes_of(const float *restrict now, const float *restrict earlier, float *restrict changes)
{
    int any = 0;
    for (int j = 0; j < ROUND_NR; j++) changes[j] = now[j] - earlier[j];
    for (int j = 0; j < ROUND_NR; j++) any |= changes[j] != 0;
    return any;
}

static size_t round_again(const qk_round_rows *p, float *changes, size_t *changed)
{
    const qk_feedback *of = p->of;
    size_t count = 0;
    for (int i = 0; i < p->rows; i++) {
        const size_t row = p->row + (size_t)i;
        const float *restrict w = of->w + row * of->n + p->column, *restrict sums = p->sums + i * ROUND_NR;
        const float *error = p->errors + i * ROUND_NR, *feed = of->feed + row * of->ld;
        float value[ROUND_NR], rounded[ROUND_NR], earlier[ROUND_NR];
        for (int j = 0; j < ROUND_NR; j++) value[j] = w[j] + sums[j] / of->weight[row];
        for (int j = 0; j < ROUND_NR; j++) earlier[j] = error[j];
        round_row(p, row, value, rounded);
        change_row(p, i, value, rounded);
        if (!changes_of(error, earlier, changes + count * ROUND_NR)) continue;
        add_changes(&feed, changes + count * ROUND_NR, 1, p->sums - p->row * ROUND_NR, row + 1,
                    p->row + (size_t)p->rows);
        changed[count++] = row;
    }
    return count;
}

#endif
