/* The gradients of fake_quantize (numerics 26), compiled once per instruction set, after elementwise.h: ordinary C that
 * the compiler vectorizes. */
#ifndef QK_GENERIC_FAKE_GRAD_H
#define QK_GENERIC_FAKE_GRAD_H

#include "kernels/generic/elementwise.h"
#include "kernels/generic/fake_grad_types.h"

static QK_INLINE void take_grad_parameters(const qk_affines *from, size_t n, grad_parameters *p)
{
    QK_NO_DEPENDENCE
    for (size_t i = 0; i < n; i++) {
        const float scale = from->scale[i];
        p->scale[i] = scale;
        p->lo[i] = (float)(from->qmin - from->zero_point[i]), p->hi[i] = (float)(from->qmax - from->zero_point[i]);
#ifdef GRAD_VECTOR
        const int divides = (scale >= 0x1p-64f) & (scale <= 0x1p64f);
        p->reciprocal[i] = divides ? 1.0f / scale : NAN;
#endif
    }
}

/* Adds the terms of an element; returns the gradient of x. */
static QK_INLINE float add_terms(float g, float x, grad_parameter p, const int clipped, float *scale, float *zero)
{
    const float v = x / p.scale, r = v + ROUNDER - ROUNDER, c = clamp(r, p.lo, p.hi);
    const int number = v == v, inside = clipped ? (v > p.lo) & (v < p.hi) : c == r;
    const int outside = number & !inside;
    const float distance = inside ? c - v : outside ? c : 0.0f;
    *scale += g * distance;
    *zero += outside ? g : 0.0f;
    return inside ? g : 0.0f;
}

/* Some rows of n columns, which have the parameters from number 0 on, or that one (step 0). */
static QK_INLINE void grad_rows(grad_stretch s, const size_t rows, const size_t n, const grad_parameters *p,
                                const size_t step, const int clipped, grad_terms *t)
{
    const grad_parameter same = {p->scale[0], p->lo[0], p->hi[0]};
    for (size_t i = 0; i < n; i++) {
        const grad_parameter here = step ? (grad_parameter){p->scale[i], p->lo[i], p->hi[i]} : same;
        float scale = t->scale[i], zero = t->zero[i];
        for (size_t row = 0; row < rows; row++) {
            const size_t at = row * s.stride + i;
            s.grad_x[at] = add_terms(s.grad[at], s.x[at], here, clipped, &scale, &zero);
        }
        t->scale[i] = scale, t->zero[i] = zero;
    }
}

/* Up to QK_GRAD_ROWS rows, whose terms are added in float32, and their sums to those in double. */
static QK_INLINE void add_group(grad_stretch s, size_t rows, const size_t n, const grad_parameters *p,
                                const size_t step, const int clipped, qk_grad_sums to)
{
    grad_terms t __attribute__((aligned(64)));
    for (size_t i = 0; i < n; i++) t.scale[i] = 0, t.zero[i] = 0;
    for (; rows >= GRAD_ROWS; rows -= GRAD_ROWS) {
        grad_rows(s, GRAD_ROWS, n, p, step, clipped, &t);
        s.grad += GRAD_ROWS * s.stride, s.x += GRAD_ROWS * s.stride, s.grad_x += GRAD_ROWS * s.stride;
    }
    for (; rows > 0; rows--) {
        grad_rows(s, 1, n, p, step, clipped, &t);
        s.grad += s.stride, s.x += s.stride, s.grad_x += s.stride;
    }
    for (size_t i = 0; i < n; i++) to.scale[i] += (double)t.scale[i], to.zero[i] += (double)t.zero[i];
}

#ifdef GRAD_VECTOR
/* What vectors refuse. */
static QK_NOINLINE void add_slowly(grad_stretch s, size_t rows, size_t n, const grad_parameters *p, size_t step,
                                   int clipped, qk_grad_sums to)
{
    clipped ? add_group(s, rows, n, p, step, 1, to) : add_group(s, rows, n, p, step, 0, to);
}

/* Whole vectors of columns, which have the parameters from number 0 on, or that one (step 0). */
static QK_INLINE void add_vectors(grad_stretch s, size_t rows, size_t n, const grad_parameters *p, const size_t step,
                                  const int clipped, qk_grad_sums to)
{
    if (step) {
        if (!grad_whole_columns(s, rows, n, p, clipped, to)) add_slowly(s, rows, n, p, 1, clipped, to);
        return;
    }
    for (size_t i = 0; i < n; i += GRAD_VECTOR) {
        const qk_grad_sums sums = {to.scale + i, to.zero + i};
        if (!grad_lanes(grad_part(s, i), rows, p, clipped, sums))
            add_slowly(grad_part(s, i), rows, GRAD_VECTOR, p, 0, clipped, sums);
    }
}
#endif

enum { GROUP_SIZE = QK_GRAD_ROWS * QK_GRAD_LANES }; /* of a run */

static QK_INLINE void grad_group(grad_stretch s, size_t rows, const size_t n, const grad_parameters *p,
                                 const size_t step, const int clipped, qk_grad_sums to)
{
    size_t whole = 0;
#ifdef GRAD_VECTOR
    whole = n / GRAD_VECTOR * GRAD_VECTOR;
    if (whole) add_vectors(s, rows, whole, p, step, clipped, to);
#endif
    if (whole < n)
        add_group(grad_part(s, whole), rows, n - whole, grad_parameters_from(p, step * whole), step, clipped,
                  (qk_grad_sums){to.scale + whole, to.zero + whole});
}

static QK_INLINE void grad_columns(grad_stretch s, const qk_affines *given, const int clipped, qk_grad_sums to)
{
    grad_parameters p __attribute__((aligned(64)));
    take_grad_parameters(given, s.n, &p);
    for (size_t row = 0; row < given->rows; row += QK_GRAD_ROWS) {
        const size_t rows = given->rows - row < QK_GRAD_ROWS ? given->rows - row : QK_GRAD_ROWS;
        grad_group(grad_part(s, row * s.stride), rows, s.n, &p, 1, clipped, to);
    }
}

/* Whole pairs of groups, whose results go past the caches: seldom, or loads wait for them. Returns where these end. */
static QK_INLINE size_t grad_pairs(grad_stretch s, const grad_parameters *p, const int clipped, qk_grad_sums to)
{
    float result[2 * GROUP_SIZE] __attribute__((aligned(64)));
    size_t at = 0;
    for (; s.n - at >= 2 * GROUP_SIZE; at += 2 * GROUP_SIZE) {
        grad_stretch part = grad_part(s, at);
        for (part.grad_x = result; part.grad_x < result + 2 * GROUP_SIZE; part = grad_part(part, GROUP_SIZE))
            grad_group(part, QK_GRAD_ROWS, QK_GRAD_LANES, p, 0, clipped, to);
        copy_past_caches(result, s.grad_x + at, sizeof result);
    }
    return at;
}

/* A run is rows of QK_GRAD_LANES columns that share parameters. */
static QK_INLINE void grad_run(grad_stretch s, const grad_parameters *p, const int clipped, const int past,
                               qk_grad_sums to)
{
    size_t at = past ? grad_pairs(s, p, clipped, to) : 0;
    for (; s.n - at >= GROUP_SIZE; at += GROUP_SIZE)
        grad_group(grad_part(s, at), QK_GRAD_ROWS, QK_GRAD_LANES, p, 0, clipped, to);
    const size_t rows = (s.n - at) / QK_GRAD_LANES, rest = (s.n - at) % QK_GRAD_LANES;
    if (rows) grad_group(grad_part(s, at), rows, QK_GRAD_LANES, p, 0, clipped, to);
    if (rest) grad_group(grad_part(s, at + rows * QK_GRAD_LANES), 1, rest, p, 0, clipped, to);
}

static void fake_grad_columns_f32(const float *grad, const float *x, float *grad_x, size_t n, const qk_affines *p,
                                  int clipped, qk_grad_sums to)
{
    const grad_stretch s = {grad, x, grad_x, n, p->in_stride};
    clipped ? grad_columns(s, p, 1, to) : grad_columns(s, p, 0, to);
}

static QK_INLINE void grad_run_by(grad_stretch s, const grad_parameters *p, int clipped, int past, qk_grad_sums to)
{
    if (past)
        clipped ? grad_run(s, p, 1, 1, to) : grad_run(s, p, 0, 1, to);
    else
        clipped ? grad_run(s, p, 1, 0, to) : grad_run(s, p, 0, 0, to);
}

#ifdef GRAD_VECTOR
static QK_NOINLINE void grad_run_slowly(grad_stretch s, const qk_affines *given, int clipped, int past, qk_grad_sums to)
{
    grad_parameters p;
    take_grad_parameters(given, 1, &p), p.reciprocal[0] = NAN; /* vectors refuse */
    for (size_t i = 0; i < QK_GRAD_LANES; i++) to.scale[i] = to.zero[i] = 0;
    grad_run_by(s, &p, clipped, past, to);
}
#endif

static void fake_grad_run_f32(const float *grad, const float *x, float *grad_x, size_t n, const qk_affines *given,
                              int clipped, int past, qk_grad_sums to)
{
    const grad_stretch s = {grad, x, grad_x, n, QK_GRAD_LANES};
    grad_parameters p;
    take_grad_parameters(given, 1, &p);
#ifdef GRAD_VECTOR
    qk_forget_underflow();
#endif
    grad_run_by(s, &p, clipped, past, to);
#ifdef GRAD_VECTOR
    if (qk_underflown()) grad_run_slowly(s, given, clipped, past, to);
#endif
}

#endif
