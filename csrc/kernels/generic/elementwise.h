/* The elementwise loops, compiled once per instruction set: ordinary C that the compiler vectorizes.
 * The including file sets its target, HAVE_FMA and, where intrinsics do better, GROUP: then it has quantize_group and
 * quantize_group_columns, which see GROUP elements at a time.
 *
 * Float results have equal bits everywhere: each operation is written out, rounded once and never
 * contracted; where a fused multiply-add is meant it is called by name (numerics 9). */
#ifndef QK_GENERIC_ELEMENTWISE_H
#define QK_GENERIC_ELEMENTWISE_H

#include <float.h>
#include <math.h>
#include <string.h>

#include "kernels/generic/gelu.h"
#include "kernels/generic/target.h"
#include "kernels/kernels.h"
#include "runtime/compiler.h"

#define SPECIAL_BITS 0x30000000 /* of a sum v + ROUNDER: clear in 0x4b000000 to 0x4bffffff, set in NaN */

static inline int32_t bits_of(float v)
{
    int32_t i;
    memcpy(&i, &v, sizeof i);
    return i;
}

static inline float float_of(int32_t i)
{
    float v;
    memcpy(&v, &i, sizeof v);
    return v;
}

static inline float at_least(float lo, float v) { return lo > v ? lo : v; } /* NaN stays NaN */
static inline float not_above(float hi, float v) { return hi < v ? hi : v; }
static inline float clamp(float v, float lo, float hi) { return not_above(hi, at_least(lo, v)); }
static inline float nan_to_zero(float v) { return v == v ? v : 0.0f; }

/* |v| < 2^22 */
static inline int32_t round_to_int(float v, int half_away)
{
    float shifted = v + ROUNDER;
    int32_t n = bits_of(shifted) - bits_of(ROUNDER);
    if (half_away) {
        float rest = v - (shifted - ROUNDER); /* exact */
        n += (rest == 0.5f) & (v > 0);
        n -= (rest == -0.5f) & (v < 0);
    }
    return n;
}

/* ---- rows of elements (numerics 3 and 4) ---- */

/* The loops see SPAN elements at a time. What remains at the end is a span that overlaps the one before: the same
 * values once more, since fake_quantize is idempotent. */
enum {
    SPAN = 32,
    TOGETHER = 4,      /* rows of which a span each is seen, while its parameters are at hand; */
    GROUPS = 8,        /* and groups each in a row of its own, if neighbours are seen together */
    SHORT_RUN = 128,   /* for longer ones it pays to have parameters in registers */
    LOOK_AHEAD = 256,  /* elements from the loop to those that are fetched into the cache, to be read or written soon */
    PARAMETERS = 4096, /* that are used at a time, at most, */
    APART = 48,        /* the five arrays in lines of their own, and not in those that rows of 1024 floats share */
};

/* What becomes of elements: codes, floats by way of codes, quotients by the scale, or floats of codes of a type,
 * FROM_CODES + type. */
enum { TO_8_BITS, TO_16_BITS, AND_BACK, TO_QUOTIENTS, FROM_CODES };
enum { MULTIPLY, DIVIDE, DIVIDE_HALF_AWAY }; /* how quotients are computed, and their ties rounded */

/* n neighbours, of one row or of several that are seen together; strides from one of these to the next, in elements.
 * Of rows far apart the CPU itself asks for what comes next, as each is a long stream: doing so here slows it down. */
typedef struct {
    const char *in;
    char *out;
    size_t n, in_stride, out_stride;
    int far;
} stretch;

/* Copies of parameters, and bounds of x, or, if it is divided by the scale, of the quotient. */
typedef struct {
    float scale[PARAMETERS + APART], reciprocal[PARAMETERS + APART], lo[PARAMETERS + APART], hi[PARAMETERS + APART];
    int32_t zero_point[PARAMETERS + APART];
} parameters;

static QK_INLINE size_t bytes_in(const int what)
{
    return what < FROM_CODES ? sizeof(float) : qk_code_bytes((qk_dtype)(what - FROM_CODES));
}

static QK_INLINE size_t bytes_out(const int what) { return what == TO_8_BITS ? 1 : what == TO_16_BITS ? 2 : 4; }

/* Row `row` and those that are seen together with it. */
static QK_INLINE stretch stretch_of(const void *in, void *out, size_t row, size_t at, size_t n, const qk_affines *p,
                                    const int what)
{
    const size_t apart = p->apart ? p->apart : 1;
    return (stretch){(const char *)in + (row * p->in_stride + at) * bytes_in(what),
                     (char *)out + (row * p->out_stride + at) * bytes_out(what),
                     n,
                     apart * p->in_stride,
                     apart * p->out_stride,
                     apart > 1};
}

/* How many rows are seen together from this one on, if neighbours at most so many; and the row that follows. */
static inline size_t rows_together(size_t row, const qk_affines *p, size_t most)
{
    if (p->apart && p->rows > 1) return TOGETHER;
    return p->rows - row < most ? p->rows - row : most;
}

static inline size_t next_row(size_t row, size_t rows, const qk_affines *p)
{
    if (!p->apart || rows == 1) return row + rows;
    return row + 1 < p->apart ? row + 1 : p->rows;
}

static QK_INLINE stretch part_of(stretch s, size_t i, size_t n, const int what)
{
    return (stretch){s.in + i * bytes_in(what), s.out + i * bytes_out(what), n, n, n, s.far};
}

/* Where the span after the one at i begins. `head` elements lie before a cache line: a vector that straddles two costs
 * twice. */
static inline size_t next_span(size_t i, size_t n, size_t head, const size_t span)
{
    i += i == 0 && head > 0 ? head : span;
    return i < n && n - i < span ? n - span : i;
}

static inline size_t head_of(const void *floats, size_t n)
{
    return n < 1024 ? 0 : (-(uintptr_t)floats & 63) / sizeof(float);
}

static QK_INLINE void fetch(const char *at, const size_t bytes)
{
    for (size_t byte = 0; byte < bytes; byte += 64) __builtin_prefetch(at + byte);
}

/* How far ahead of element i of a stretch of `rows` rows is one that is seen soon: in its row, or in one of the next.
 */
static QK_INLINE size_t ahead_of(stretch s, size_t i, const size_t rows, size_t stride)
{
    return i + LOOK_AHEAD < s.n ? LOOK_AHEAD : LOOK_AHEAD - s.n + rows * stride;
}

static QK_INLINE void look_ahead(const char *in, size_t in_ahead, const char *out, size_t out_ahead, const size_t n,
                                 const int what)
{
    fetch(in + in_ahead * bytes_in(what), n * bytes_in(what));
    fetch(out + out_ahead * bytes_out(what), n * bytes_out(what));
}

/* Those of one element. */
typedef struct {
    float scale, reciprocal, lo, hi;
    int32_t zero_point;
} parameter;

static QK_INLINE parameter parameter_at(const parameters *p, size_t i, const int what, const int how)
{
    const int codes = what < FROM_CODES;
    return (parameter){p->scale[i], codes && how == MULTIPLY ? p->reciprocal[i] : 0, codes ? p->lo[i] : 0,
                       codes ? p->hi[i] : 0, what == AND_BACK ? 0 : p->zero_point[i]};
}

/* x / scale, within bounds up to rounding, or NaN. */
static QK_INLINE float any_quotient(float x, parameter p, const int how)
{
    if (how != MULTIPLY) return clamp(x / p.scale, p.lo, p.hi);
    x = clamp(x, p.lo, p.hi);
    const float q = x * p.reciprocal;
    return __builtin_fmaf(__builtin_fmaf(-q, p.scale, x), p.reciprocal, q);
}

static QK_INLINE float quotient(float x, parameter p, const int how) { return nan_to_zero(any_quotient(x, p, how)); }

static inline float with_sign_of(float x, float v) { return float_of(bits_of(v) | (bits_of(x) & INT32_MIN)); }

static QK_INLINE void store_quotient(const int what, float x, void *to, size_t i, parameter p, const int how)
{
    const float v = quotient(x, p, how);
    if (what == TO_QUOTIENTS)
        ((float *)to)[i] = with_sign_of(x, any_quotient(x, p, how));
    else if (what == AND_BACK)
        ((float *)to)[i] = (v + ROUNDER - ROUNDER) * p.scale;
    else if (what == TO_8_BITS)
        ((uint8_t *)to)[i] = (uint8_t)(round_to_int(v, how == DIVIDE_HALF_AWAY) + p.zero_point);
    else
        ((uint16_t *)to)[i] = (uint16_t)(round_to_int(v, how == DIVIDE_HALF_AWAY) + p.zero_point);
}

/* int32 codes wrap, so the difference is taken modulo 2^32 */
static inline float difference(int32_t code, int32_t zero_point)
{
    return (float)(int32_t)((uint32_t)code - (uint32_t)zero_point);
}

static QK_INLINE void dequantize_span(const qk_dtype from, const char *restrict q, float *restrict y, const size_t n,
                                      const parameters *p, const size_t step)
{
    const float scale = p->scale[0];
    const int32_t zero_point = p->zero_point[0];
    if (from == QK_F32) {
        for (size_t i = 0; i < n; i++) y[i] = ((const float *)q)[i] * (step ? p->scale[i] : scale);
        return;
    }
#ifdef HAVE_WIDEN
    int32_t codes[SPAN]; /* in registers */
    const int widened = n == SPAN && from <= QK_U8;
    if (widened) widen_span((const uint8_t *)q, from == QK_I8, codes);
#else
    const int32_t *codes = NULL;
    const int widened = 0;
#endif
    for (size_t i = 0; i < n; i++)
        y[i] = difference(widened ? codes[i] : qk_code_at(q, from, i), step ? p->zero_point[i] : zero_point) *
            (step ? p->scale[i] : scale);
}

/* n elements by as many parameters from p on, or by the first of them (step 0). */
static QK_INLINE void compute_span(const int what, const char *in, char *out, const size_t n, const parameters *p,
                                   const size_t step, const int how)
{
    if (what >= FROM_CODES) {
        dequantize_span((qk_dtype)(what - FROM_CODES), in, (float *)out, n, p, step);
        return;
    }
    const parameter same = parameter_at(p, 0, what, how);
    QK_NO_DEPENDENCE
    for (size_t i = 0; i < n; i++) {
        const parameter here = step ? parameter_at(p, i, what, how) : same;
        store_quotient(what, ((const float *)in)[i], out, i, here, how);
    }
}

/* Returns those from number j on: all arrays are reached from one address. */
static QK_INLINE const parameters *parameters_from(const parameters *p, size_t j)
{
    return (const parameters *)((const float *)p + j);
}

static QK_INLINE void compute_stretch(const int what, stretch s, const size_t rows, const parameters *p,
                                      const size_t step, const int how)
{
    const size_t in_step = s.in_stride * bytes_in(what), out_step = s.out_stride * bytes_out(what);
    const size_t head = head_of(what < FROM_CODES ? s.in : s.out, s.n);
    for (size_t row = 0; s.n < SPAN && row < rows; row++)
        compute_span(what, s.in + row * in_step, s.out + row * out_step, s.n, p, step, how);
    for (size_t i = 0; s.n >= SPAN && i < s.n; i = next_span(i, s.n, head, SPAN)) {
        const char *in = s.in + i * bytes_in(what);
        char *out = s.out + i * bytes_out(what);
        const size_t in_ahead = ahead_of(s, i, rows, s.in_stride), out_ahead = ahead_of(s, i, rows, s.out_stride);
        for (size_t row = 0; row < rows; row++, in += in_step, out += out_step) {
            if (!s.far) look_ahead(in, in_ahead, out, out_ahead, SPAN, what);
            compute_span(what, in, out, SPAN, parameters_from(p, i * step), step, how);
        }
    }
}

/* Runs. Those of whole spans, if they are short, are seen span by span. */
static QK_INLINE void compute_runs(const int what, stretch s, const parameters *p, size_t run, const int how)
{
    size_t j = 0, at = 0, left = run;
    for (; run % SPAN == 0 && run <= SHORT_RUN && s.n - at >= SPAN; at += SPAN) {
        const stretch part = part_of(s, at, SPAN, what);
        look_ahead(part.in, LOOK_AHEAD, part.out, LOOK_AHEAD, SPAN, what);
        compute_span(what, part.in, part.out, SPAN, parameters_from(p, j), 0, how);
        if ((left -= SPAN) == 0) j++, left = run;
    }
    for (; run == SPAN / 2 && s.n - at >= run; j++, at += run) {
        const stretch part = part_of(s, at, SPAN / 2, what);
        compute_span(what, part.in, part.out, SPAN / 2, parameters_from(p, j), 0, how);
    }
    for (; at < s.n; j++, at += run)
        compute_stretch(what, part_of(s, at, s.n - at < run ? s.n - at : run, what), 1, parameters_from(p, j), 0, how);
}

/* Takes n parameters from number j on. */
static QK_INLINE void take_parameters(const qk_affines *from, size_t j, size_t n, parameters *p, const int what,
                                      const int how)
{
    const int codes = what < FROM_CODES;
    QK_NO_DEPENDENCE
    for (size_t i = 0; i < n; i++) {
        const float scale = from->scale[j + i], unit = how == MULTIPLY ? scale : 1.0f;
        const int32_t zero_point = from->zero_point[j + i];
        p->scale[i] = scale, p->zero_point[i] = zero_point;
        if (codes && how == MULTIPLY) p->reciprocal[i] = from->reciprocal[j + i];
        if (codes) p->lo[i] = (float)(from->qmin - zero_point) * unit;
        if (codes) p->hi[i] = (float)(from->qmax - zero_point) * unit;
    }
}

static QK_INLINE void compute_rows(const int what, const void *in, void *out, size_t n, const qk_affines *given,
                                   const int how)
{
    parameters p __attribute__((aligned(64)));
    const size_t run = given->run < n ? given->run : n;
    for (size_t j = 0, at = 0; at < n; j += PARAMETERS, at += PARAMETERS * run) {
        const size_t count = n - at < PARAMETERS * run ? n - at : PARAMETERS * run;
        take_parameters(given, j, (count + run - 1) / run, &p, what, how);
        for (size_t row = 0, rows; row < given->rows; row = next_row(row, rows, given)) {
            const stretch s = stretch_of(in, out, row, at, count, given, what);
            rows = run == 1 && rows_together(row, given, TOGETHER) == TOGETHER ? TOGETHER : 1;
            if (run > 1)
                compute_runs(what, s, &p, run, how);
            else if (rows > 1)
                compute_stretch(what, s, TOGETHER, &p, 1, how);
            else
                compute_stretch(what, s, 1, &p, 1, how);
        }
    }
}

static QK_INLINE void quantize_rows(const int what, const float *x, void *to, size_t n, const qk_affines *p)
{
    if (p->half_away && what < AND_BACK)
        compute_rows(what, x, to, n, p, DIVIDE_HALF_AWAY);
    else if (!HAVE_FMA || !p->reciprocal)
        compute_rows(what, x, to, n, p, DIVIDE);
    else
        compute_rows(what, x, to, n, p, MULTIPLY);
}

#ifdef GROUP
#define HALF_GROUP (GROUP / 2)

/* What groups refuse, for NaN or huge values: parameters i and following, each of a run. */
static QK_NOINLINE void quantize_slowly(const float *x, uint8_t *q, size_t n, const qk_affines *p, size_t i, size_t run)
{
    const qk_affines part = {.scale = p->scale + i,
                             .reciprocal = p->reciprocal + i,
                             .zero_point = p->zero_point + i,
                             .qmin = p->qmin,
                             .qmax = p->qmax,
                             .run = run,
                             .rows = 1};
    compute_rows(TO_8_BITS, x, q, n, &part, MULTIPLY);
}

static QK_INLINE void quantize_groups(stretch s, size_t rows, const qk_affines *p, size_t i, const size_t step)
{
    const float *x = (const float *)s.in;
    uint8_t *q = (uint8_t *)s.out;
    const size_t head = head_of(x, s.n), run = step ? 1 : s.n;
    const group_parameters fixed = load_group(p, i, i, 0);
    for (size_t at = 0; at < s.n; at = next_span(at, s.n, head, GROUP)) {
        const group_parameters here = step ? load_group(p, i + at, i + at + HALF_GROUP, 1) : fixed;
        const float *from = x + at;
        uint8_t *to = q + at;
        const size_t in_ahead = ahead_of(s, at, rows, s.in_stride), out_ahead = ahead_of(s, at, rows, s.out_stride);
        for (size_t row = 0; row < rows; row++, from += s.in_stride, to += s.out_stride) {
            if (!s.far) look_ahead((const char *)from, in_ahead, (const char *)to, out_ahead, GROUP, TO_8_BITS);
            if (!quantize_group(from, to, here)) quantize_slowly(from, to, GROUP, p, i + at * step, run);
        }
    }
}

/* Fewer than a group. */
static QK_INLINE void quantize_few(stretch s, const qk_affines *p, size_t i, const size_t step)
{
    const float *x = (const float *)s.in;
    uint8_t *q = (uint8_t *)s.out;
    const size_t last = s.n - HALF_GROUP;
    if (s.n < HALF_GROUP || !quantize_halves(x, x + last, q, q + last, load_group(p, i, i + last * step, step)))
        quantize_slowly(x, q, s.n, p, i, step ? 1 : s.n);
}

/* Runs. Those of whole halves of a group, if they are short, are seen half by half. */
static void quantize_group_runs(stretch s, const qk_affines *p, size_t run)
{
    const float *x = (const float *)s.in;
    uint8_t *q = (uint8_t *)s.out;
    size_t i = 0, at = 0, left = run; /* of the run at `at` */
    for (; run % HALF_GROUP == 0 && run <= 4 * GROUP && s.n - at >= GROUP; at += GROUP) {
        const size_t a = i;
        if ((left -= HALF_GROUP) == 0) i++, left = run;
        const size_t b = i;
        if ((left -= HALF_GROUP) == 0) i++, left = run;
        look_ahead((const char *)(x + at), LOOK_AHEAD, (const char *)(q + at), LOOK_AHEAD, GROUP, TO_8_BITS);
        if (quantize_group(x + at, q + at, load_group(p, a, b, 0))) continue;
        quantize_slowly(x + at, q + at, HALF_GROUP, p, a, run);
        quantize_slowly(x + at + HALF_GROUP, q + at + HALF_GROUP, HALF_GROUP, p, b, run);
    }
    for (size_t n; at < s.n; i++, at += n, left = run) {
        n = s.n - at < left ? s.n - at : left;
        if (n < GROUP)
            quantize_few(part_of(s, at, n, TO_8_BITS), p, i, 0);
        else
            quantize_groups(part_of(s, at, n, TO_8_BITS), 1, p, i, 0);
    }
}
#endif

static void quantize_rows_f32_8(const float *x, uint8_t *q, size_t n, const qk_affines *p)
{
#ifdef GROUP
    const size_t run = p->run < n ? p->run : n;
    if ((run == 1 ? n : run) >= HALF_GROUP && !p->half_away && p->reciprocal) {
        for (size_t row = 0, rows; row < p->rows; row = next_row(row, rows, p)) {
            const stretch s = stretch_of(x, q, row, 0, n, p, TO_8_BITS);
            rows = run > 1 || n < GROUP ? 1 : rows_together(row, p, GROUPS);
            if (run > 1)
                quantize_group_runs(s, p, run);
            else if (n < GROUP)
                quantize_few(s, p, 0, 1);
            else
                quantize_groups(s, rows, p, 0, 1);
        }
        return;
    }
#endif
    quantize_rows(TO_8_BITS, x, q, n, p);
}

static void quantize_rows_f32_16(const float *x, uint16_t *q, size_t n, const qk_affines *p)
{
    quantize_rows(TO_16_BITS, x, q, n, p);
}

static inline qk_affines one_row(const qk_affine *p, size_t n)
{
    return (qk_affines){.scale = &p->scale,
                        .reciprocal = p->reciprocal ? &p->reciprocal : NULL,
                        .zero_point = &p->zero_point,
                        .qmin = p->qmin,
                        .qmax = p->qmax,
                        .half_away = p->half_away,
                        .run = n,
                        .rows = 1,
                        .in_stride = n,
                        .out_stride = n};
}

static void quantize_f32_8(const float *x, uint8_t *q, size_t n, const qk_affine *p)
{
    const qk_affines row = one_row(p, n);
    quantize_rows_f32_8(x, q, n, &row);
}

static void quantize_f32_16(const float *x, uint16_t *q, size_t n, const qk_affine *p)
{
    const qk_affines row = one_row(p, n);
    quantize_rows_f32_16(x, q, n, &row);
}

static void dequantize_rows_f32(const void *q, qk_dtype from, float *y, size_t n, const qk_affines *p)
{
    switch (from) {
    case QK_F32: compute_rows(FROM_CODES + QK_F32, q, y, n, p, MULTIPLY); break;
    case QK_I8: compute_rows(FROM_CODES + QK_I8, q, y, n, p, MULTIPLY); break;
    case QK_U8: compute_rows(FROM_CODES + QK_U8, q, y, n, p, MULTIPLY); break;
    case QK_I16: compute_rows(FROM_CODES + QK_I16, q, y, n, p, MULTIPLY); break;
    case QK_U16: compute_rows(FROM_CODES + QK_U16, q, y, n, p, MULTIPLY); break;
    case QK_I4: compute_rows(FROM_CODES + QK_I4, q, y, n, p, MULTIPLY); break;
    case QK_U4: compute_rows(FROM_CODES + QK_U4, q, y, n, p, MULTIPLY); break;
    case QK_I2: compute_rows(FROM_CODES + QK_I2, q, y, n, p, MULTIPLY); break;
    case QK_U2: compute_rows(FROM_CODES + QK_U2, q, y, n, p, MULTIPLY); break;
    default: compute_rows(FROM_CODES + QK_I32, q, y, n, p, MULTIPLY); break;
    }
}

static void fake_quantize_rows_f32(const float *x, float *y, size_t n, const qk_affines *p)
{
    quantize_rows(AND_BACK, x, y, n, p);
}

/* ---- codes that are floats (numerics 3) ---- */

static void quotients_rows_f32(const float *x, float *v, size_t n, const qk_affines *p)
{
    quantize_rows(TO_QUOTIENTS, x, v, n, p);
}

/* Codes of at most SMALL_FLOATS values, as int32: signs and magnitudes would be made bytes apart else. */
enum { SMALL_FLOATS = 64 };
static QK_INLINE void small_floats_run(const float *restrict v, int32_t *restrict q, const size_t n,
                                       const qk_small_float *f)
{
    const int32_t shift = f->shift, least = f->least, most = f->most, nan = f->nan;
    const int32_t sign_shift = 31 - f->sign, sign_bit = 1 << f->sign, sign_of_nan = nan ? sign_bit : 0;
    const uint32_t up = (uint32_t)shift << 23;
    for (size_t i = 0; i < n; i++) {
        const int32_t bits = bits_of(v[i]), magnitude = bits & 0x7fffffff, top = magnitude & 0x7f800000;
        const int32_t exponent = top > least ? top : least, sign = (bits >> sign_shift) & sign_bit;
        const uint32_t rounder = (uint32_t)exponent + up;
        const uint32_t k = (uint32_t)bits_of(float_of(magnitude) + float_of((int32_t)rounder)) - rounder;
        const int32_t code = (int32_t)(k + (uint32_t)((exponent - least) >> shift));
        const int32_t finite = (code < most ? code : most) | sign;
        q[i] = magnitude > 0x7f800000 ? nan | (sign & sign_of_nan) : finite;
    }
}

static void small_floats(const float *restrict v, uint8_t *restrict q, size_t n, const qk_small_float *f)
{
    int32_t codes[SMALL_FLOATS];
    for (; n >= SMALL_FLOATS; n -= SMALL_FLOATS, v += SMALL_FLOATS, q += SMALL_FLOATS) {
        small_floats_run(v, codes, SMALL_FLOATS, f);
        for (int i = 0; i < SMALL_FLOATS; i++) q[i] = (uint8_t)codes[i];
    }
    small_floats_run(v, codes, n, f);
    for (size_t i = 0; i < n; i++) q[i] = (uint8_t)codes[i];
}

/* A multiplication would normalise subnormal numbers, too, but slowly. */
static void small_float_values(const uint8_t *restrict q, float *restrict v, size_t n, const qk_small_float *f)
{
    const int32_t shift = f->shift, normal = 1 << (23 - shift), special = f->special, sign_bit = 1 << f->sign;
    const int32_t bias = f->least - (1 << 23), sign_shift = 31 - f->sign;
    const float unit = f->unit;
    for (size_t i = 0; i < n; i++) {
        const int32_t code = q[i], magnitude = code & (sign_bit - 1), sign = code & sign_bit;
        const int32_t value = magnitude < normal ? bits_of((float)magnitude * unit) : (magnitude << shift) + bias;
        v[i] = float_of(value | (magnitude >= special ? 0x7f800000 : 0) | (int32_t)((uint32_t)sign << sign_shift));
    }
}

#ifndef HAVE_BRACKETED_CODES
static int bracketed_codes(const float *x, uint8_t *q, size_t n, qk_bracket p)
{
    (void)x, (void)q, (void)n, (void)p;
    return 0;
}
#endif

#ifndef HAVE_COPY_PAST_CACHES
static void copy_past_caches(const void *from, void *to, size_t bytes) { memcpy(to, from, bytes); }
#endif

/* ---- bounds (numerics 2) ---- */

/* The bits of floats of one sign are in the order of their magnitudes, NaN beyond infinity. As int32 all negative
 * floats lie below 0.0, as uint32 all positive ones below -0.0: from these two the maxima see one sign each. */
static void minmax_f32(const float *x, size_t n, float *lo, float *hi)
{
#ifdef HAVE_FINITE_BOUNDS
    if (finite_bounds(x, n, lo, hi)) return;
#endif
    int32_t highest = 0;
    uint32_t lowest = 0x80000000u;
    for (size_t i = 0; i < n; i++) {
        int32_t bits = bits_of(x[i]);
        highest = bits > highest ? bits : highest;
        lowest = (uint32_t)bits > lowest ? (uint32_t)bits : lowest;
    }
    *lo = float_of((int32_t)lowest);
    *hi = float_of(highest);
}

static QK_INLINE int32_t largest_magnitude(const float *x, const size_t n, int32_t most)
{
    for (size_t i = 0; i < n; i++) {
        const int32_t magnitude = bits_of(x[i]) & 0x7fffffff;
        most = magnitude > most ? magnitude : most;
    }
    return most;
}

static void magnitudes_of_runs(const float *x, size_t n, size_t run, int32_t *most)
{
    for (size_t at = 0; at < n; at += run, most++) {
        const size_t count = n - at < run ? n - at : run;
        *most = count == 32 ? largest_magnitude(x + at, 32, *most)
            : count == 16   ? largest_magnitude(x + at, 16, *most)
                            : largest_magnitude(x + at, count, *most);
    }
}

static void magnitudes_of_columns(const float *x, size_t stride, size_t rows, size_t n, int32_t *restrict most)
{
    for (size_t row = 0; row < rows; row++, x += stride)
        for (size_t i = 0; i < n; i++) {
            const int32_t magnitude = bits_of(x[i]) & 0x7fffffff;
            most[i] = magnitude > most[i] ? magnitude : most[i];
        }
}

/* A number from 0 to 448 as float8_e4m3fn has it, at least its smallest: of its last four bits, or of units of 2^-9. */
static QK_INLINE float as_e4m3(float v)
{
    const int32_t bits = bits_of(v);
    const float normal = float_of((bits + 0x7ffff + (bits >> 20 & 1)) & ~0xfffff);
    const float units = v + 0x1.8p14f, small = units - 0x1.8p14f;
    const float near = v < 0x1p-6f ? small : normal;
    return near > 0x1p-9f ? near : 0x1p-9f;
}

static QK_INLINE float power_of_two(float magnitude, const qk_micro *how)
{
    const int32_t power = ((bits_of(magnitude / how->largest) + how->up) & 0xff << 23) - how->exponent;
    return float_of(power < 1 << 23 ? 1 << 23 : power > 0xfe << 23 ? 0xfe << 23 : power);
}

static QK_INLINE float e4m3_times(float magnitude, const qk_micro *how)
{
    const float quotient = magnitude / how->largest / how->times, v = quotient < 448.0f ? quotient : 448.0f;
    const float scale = as_e4m3(v) * how->times;
    return scale > 0x1p-126f ? scale : 0x1p-126f;
}

static void micro_scales(float *magnitudes, size_t n, const qk_micro *given)
{
    const qk_micro how = *given;
    if (how.times == 0)
        for (size_t i = 0; i < n; i++) magnitudes[i] = power_of_two(magnitudes[i], &how);
    else
        for (size_t i = 0; i < n; i++) magnitudes[i] = e4m3_times(magnitudes[i], &how);
}

/* ---- float16 and bfloat16: exact one way, rounded half to even the other ---- */

static void f16_to_f32(const uint16_t *restrict x, float *restrict y, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        int32_t sign = (int32_t)((uint32_t)(x[i] & 0x8000) << 16), magnitude = x[i] & 0x7fff;
        /* The exponent bias differs by 112; the product also normalises subnormals. */
        float scaled = float_of(magnitude << 13) * 0x1p112f;
        int32_t special = magnitude >= 0x7c00 ? 0x7f800000 : 0;
        y[i] = float_of(sign | bits_of(scaled) | special);
    }
}

static void f32_to_f16(const float *restrict x, uint16_t *restrict y, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        int32_t bits = bits_of(x[i]), magnitude = bits & 0x7fffffff, sign = (bits >> 16) & 0x8000;
        int32_t normal = (magnitude - (112 << 23) + 0xfff + ((magnitude >> 13) & 1)) >> 13;
        /* Below 2^-14 the last bit is 2^-24: adding 1/2 leaves it at the end of the mantissa. */
        int32_t subnormal = bits_of(float_of(magnitude) + 0.5f) - bits_of(0.5f);
        int32_t half = magnitude < (113 << 23) ? subnormal : normal;
        half = magnitude >= 0x47800000 ? 0x7c00 : half;
        half = magnitude > 0x7f800000 ? 0x7e00 : half;
        y[i] = (uint16_t)(sign | half);
    }
}

static void bf16_to_f32(const uint16_t *restrict x, float *restrict y, size_t n)
{
    for (size_t i = 0; i < n; i++) y[i] = float_of((int32_t)((uint32_t)x[i] << 16));
}

static void f32_to_bf16(const float *restrict x, uint16_t *restrict y, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        uint32_t bits = (uint32_t)bits_of(x[i]), rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
        y[i] = (uint16_t)((bits & 0x7fffffff) > 0x7f800000 ? (bits >> 16) | 0x40 : rounded);
    }
}

/* ---- elementary functions (numerics 9) ---- */

static inline float exp_f32(float x)
{
    x = clamp(x, -87.33f, 88.37f);
    float shifted = __builtin_fmaf(x, 1.44269504f, ROUNDER), n = shifted - ROUNDER;
    float r = __builtin_fmaf(n, -6.93145752e-1f, x);
    r = __builtin_fmaf(n, -1.42860677e-6f, r);
    float p = 1.394656138e-3f;
    p = __builtin_fmaf(p, r, 8.369223215e-3f);
    p = __builtin_fmaf(p, r, 4.166626185e-2f);
    p = __builtin_fmaf(p, r, 1.666651517e-1f);
    p = __builtin_fmaf(p, r, 5.000000000e-1f);
    p = __builtin_fmaf(p * r, r, r) + 1.0f;
    /* unsigned, as the bits of NaN would overflow */
    return p * float_of((int32_t)(((uint32_t)bits_of(shifted) - (uint32_t)bits_of(ROUNDER) + 127) << 23));
}

static inline float gelu_f32(float x, const gelu_table *g)
{
    const float v = not_above(GELU_SEGMENTS - 1, float_of(bits_of(x) & 0x7fffffff) * g->per_unit),
                shifted = v + ROUNDER;
    const float t = v - (shifted - ROUNDER);
    const int i = bits_of(shifted) & (GELU_SEGMENTS - 1);
    float p = g->coefficient[4][i];
    p = __builtin_fmaf(p, t, g->coefficient[3][i]);
    p = __builtin_fmaf(p, t, g->coefficient[2][i]);
    p = __builtin_fmaf(p, t, g->coefficient[1][i]);
    return __builtin_fmaf(p, t, at_least(0.0f, x) + g->coefficient[0][i]);
}

#define SILU_FAR (-88.37f) /* below it 1 + exp(-x) is beyond exp_f32 */

static inline float silu_f32(float x) { return at_least(SILU_FAR, x) / (1.0f + exp_f32(-x)); }

/* x exp(x), which goes to 0 by way of subnormal numbers. */
static inline float silu_far(float x)
{
    const float near = at_least(-200.0f, x);
    const double root = exp_f32(0.5f * near);
    return (float)(near * root * root);
}

/* ---- requantize (numerics 7) ---- */

static inline int32_t saturate(int32_t v, int32_t lo, int32_t hi) { return v < lo ? lo : v > hi ? hi : v; }

/* acc * 2^shift, saturated, for shift >= 0. */
static inline int32_t shift_left(int32_t acc, int32_t shift)
{
    return (int32_t)((uint32_t)saturate(acc, INT32_MIN >> shift, INT32_MAX >> shift) << shift);
}

/* The high half of the doubled product, rounded half up; then a shift, rounded half away from zero. |product| < 2^62,
 * so the 32 bits that are kept do not depend on how the sign is shifted in. */
static inline int32_t multiply_gemmlowp(int32_t acc, int32_t mantissa, int32_t shift)
{
    const int32_t left = shift > 0 ? shift : 0, right = shift < 0 ? -shift : 0;
    const int64_t product = (int64_t)shift_left(acc, left) * mantissa;
    const int32_t high = (int32_t)((uint64_t)(product + (1 << 30)) >> 31);
    const int32_t mask = (int32_t)((1u << right) - 1), rest = high & mask; /* right <= 31 */
    return (high >> right) + (rest > (mask >> 1) + (high < 0));
}

/* Half up. The high 32 bits of the product, and at least one bit more, are shifted out; where the multiplier is so
 * large that this needs a shift of acc to the left first, what saturates there does so in the result. */
static inline int32_t multiply_tflite(int32_t acc, int32_t mantissa, int32_t shift)
{
    shift = shift > 28 ? 28 : shift;
    const int32_t left = shift > -2 ? shift + 2 : 0, right = left - 1 - shift;
    const int32_t high = (int32_t)((uint64_t)((int64_t)shift_left(acc, left) * mantissa) >> 32);
    return (high + (int32_t)(1u << (right - 1))) >> right;
}

static inline void fixed_point_run(const int32_t *restrict acc, const int32_t *restrict mantissa,
                                   const int32_t *restrict shift, uint16_t *restrict q, size_t n, const qk_requant *r)
{
    const int32_t zero_point = r->zero_point, lo = r->qmin - zero_point, hi = r->qmax - zero_point;
    if (r->rounding == QK_GEMMLOWP)
        for (size_t i = 0; i < n; i++)
            q[i] = (uint16_t)(saturate(multiply_gemmlowp(acc[i], mantissa[i], shift[i]), lo, hi) + zero_point);
    else
        for (size_t i = 0; i < n; i++)
            q[i] = (uint16_t)(saturate(multiply_tflite(acc[i], mantissa[i], shift[i]), lo, hi) + zero_point);
}

static inline int32_t scale_to_code(float v, float lo, float hi, int32_t zero_point, int half_away)
{
    return round_to_int(clamp(v, lo, hi), half_away) + zero_point;
}

static inline void requantize_run(const int32_t *restrict acc, const int32_t *restrict bias, uint16_t *restrict q,
                                  size_t n, const qk_requant *r, int half_away)
{
    const float *restrict multiplier = r->multiplier;
    const int32_t zero_point = r->zero_point;
    const float lo = (float)(r->qmin - zero_point), hi = (float)(r->qmax - zero_point);
    for (size_t i = 0; i < n; i++) {
        float v = (float)(int32_t)((uint32_t)acc[i] + (uint32_t)bias[i]) * multiplier[i];
        q[i] = (uint16_t)scale_to_code(v, lo, hi, zero_point, half_away);
    }
}

/* The pointers of r are those of the first of the n columns. */
static void requantize_i32(const int32_t *acc, const int32_t *bias, void *q, int bytes, size_t n, const qk_requant *r)
{
    enum { BLOCK = 256 };
    uint16_t codes[BLOCK];
    int32_t sums[BLOCK];
    qk_requant part = *r;
    for (size_t done = 0, count; done < n; done += count) {
        count = n - done < BLOCK ? n - done : BLOCK;
        if (r->rounding == QK_HALF_EVEN) {
            requantize_run(acc + done, bias + done, codes, count, &part, 0);
        } else if (r->rounding == QK_HALF_AWAY) {
            requantize_run(acc + done, bias + done, codes, count, &part, 1);
        } else {
            for (size_t i = 0; i < count; i++) sums[i] = (int32_t)((uint32_t)acc[done + i] + (uint32_t)bias[done + i]);
            fixed_point_run(sums, r->mantissa + done, r->shift + done, codes, count, r);
        }
        if (bytes == 2)
            memcpy((uint16_t *)q + done, codes, count * sizeof *codes);
        else
            for (size_t i = 0; i < count; i++) ((uint8_t *)q)[done + i] = (uint8_t)codes[i];
        if (part.multiplier) part.multiplier += count;
    }
}

#endif
