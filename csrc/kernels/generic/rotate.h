/* Rotation by Hadamard matrices (rotate.c, numerics 34), compiled once per instruction set: VECTOR is the bytes of a
 * register. Pairs of values at a distance become their sum and their difference; distances double from 1 on, the first
 * ones within registers. Each pair is by itself, so that widths of registers change no bits. */
#ifndef QK_GENERIC_ROTATE_H
#define QK_GENERIC_ROTATE_H

#include <string.h>

#include "kernels/generic/elementwise.h"
#include "kernels/kernels.h"

typedef float turned __attribute__((vector_size(VECTOR), aligned(4), may_alias));
typedef int32_t turned_bits __attribute__((vector_size(VECTOR)));
enum { TURNED = VECTOR / sizeof(float), TURNED_EIGHT = 8 * TURNED };

/* Lanes in an order that is a constant. */
#if defined(__clang__) || __GNUC__ >= 12
#define TURN(v, ...) __builtin_shufflevector(v, v, __VA_ARGS__)
#else
#define TURN(v, ...) __builtin_shuffle(v, (turned_bits){__VA_ARGS__})
#endif
#if VECTOR == 64
#define IN_TURNS(apart)                                                                                                \
    0 ^ apart, 1 ^ apart, 2 ^ apart, 3 ^ apart, 4 ^ apart, 5 ^ apart, 6 ^ apart, 7 ^ apart, 8 ^ apart, 9 ^ apart,      \
        10 ^ apart, 11 ^ apart, 12 ^ apart, 13 ^ apart, 14 ^ apart, 15 ^ apart
#elif VECTOR == 32
#define IN_TURNS(apart) 0 ^ apart, 1 ^ apart, 2 ^ apart, 3 ^ apart, 4 ^ apart, 5 ^ apart, 6 ^ apart, 7 ^ apart
#else
#define IN_TURNS(apart) 0 ^ apart, 1 ^ apart, 2 ^ apart, 3 ^ apart
#endif

/* Pairs of lanes at a distance: `other` has the partners, to which the upper one's own value is negative. */
static QK_INLINE turned turn_lanes(turned v, turned other, const int apart)
{
    turned_bits sign;
    for (int i = 0; i < TURNED; i++) sign[i] = i & apart ? INT32_MIN : 0;
    return other + (turned)((turned_bits)v ^ sign);
}

static QK_INLINE turned turn_register(turned v)
{
    v = turn_lanes(v, TURN(v, IN_TURNS(1)), 1);
    v = turn_lanes(v, TURN(v, IN_TURNS(2)), 2);
#if VECTOR >= 32
    v = turn_lanes(v, TURN(v, IN_TURNS(4)), 4);
#endif
#if VECTOR >= 64
    v = turn_lanes(v, TURN(v, IN_TURNS(8)), 8);
#endif
    return v;
}

/* Register i of x, times factors unless there are none. */
static QK_INLINE turned take_turned(const float *x, const float *factors, int i)
{
    turned v = ((const turned *)x)[i];
    if (factors) v *= ((const turned *)factors)[i];
    return turn_register(v);
}

static QK_INLINE void turn_eight(const float *x, const float *factors, float *y)
{
    const turned a0 = take_turned(x, factors, 0), a1 = take_turned(x, factors, 1);
    const turned a2 = take_turned(x, factors, 2), a3 = take_turned(x, factors, 3);
    const turned a4 = take_turned(x, factors, 4), a5 = take_turned(x, factors, 5);
    const turned a6 = take_turned(x, factors, 6), a7 = take_turned(x, factors, 7);
    const turned b0 = a0 + a1, b1 = a0 - a1, b2 = a2 + a3, b3 = a2 - a3;
    const turned b4 = a4 + a5, b5 = a4 - a5, b6 = a6 + a7, b7 = a6 - a7;
    const turned c0 = b0 + b2, c1 = b1 + b3, c2 = b0 - b2, c3 = b1 - b3;
    const turned c4 = b4 + b6, c5 = b5 + b7, c6 = b4 - b6, c7 = b5 - b7;
    turned *to = (turned *)y;
    to[0] = c0 + c4, to[1] = c1 + c5, to[2] = c2 + c6, to[3] = c3 + c7;
    to[4] = c0 - c4, to[5] = c1 - c5, to[6] = c2 - c6, to[7] = c3 - c7;
}

/* Fewer values than eight registers. */
static void turn_few(const float *x, const float *factors, float *y, size_t n)
{
    size_t apart = 1;
    if (n >= TURNED) {
        for (size_t i = 0; i < n; i += TURNED) *(turned *)(y + i) = take_turned(x + i, factors ? factors + i : NULL, 0);
        apart = TURNED;
    } else
        for (size_t i = 0; i < n; i++) y[i] = factors ? x[i] * factors[i] : x[i];
    for (; apart < n; apart *= 2)
        for (size_t first = 0; first < n; first += 2 * apart)
            for (size_t i = first; i < first + apart; i++) {
                const float a = y[i], b = y[i + apart];
                y[i] = a + b, y[i + apart] = a - b;
            }
}

/* Pairs of whole registers `apart` values from each other. */
static void merge_halves(float *y, size_t apart)
{
    for (size_t i = 0; i < apart; i += TURNED) {
        turned *const low = (turned *)(y + i), *const high = (turned *)(y + i + apart);
        const turned a = *low, b = *high;
        *low = a + b, *high = a - b;
    }
}

/* Two distances at once: `apart`, and twice that. */
static void merge_quarters(float *y, size_t apart)
{
    for (size_t i = 0; i < apart; i += TURNED) {
        turned *const p0 = (turned *)(y + i), *const p1 = (turned *)(y + i + apart);
        turned *const p2 = (turned *)(y + i + 2 * apart), *const p3 = (turned *)(y + i + 3 * apart);
        const turned a = *p0 + *p1, b = *p0 - *p1, c = *p2 + *p3, d = *p2 - *p3;
        *p0 = a + c, *p1 = b + d, *p2 = a - c, *p3 = b - d;
    }
}

/* Depth first, so that parts stay in the cache; y may be x. */
static void hadamard_f32(const float *x, const float *factors, float *y, size_t n)
{
    if (n < TURNED_EIGHT) {
        turn_few(x, factors, y, n);
        return;
    }
    if (n == TURNED_EIGHT) {
        turn_eight(x, factors, y);
        return;
    }
    const size_t part = n / (n == 2 * TURNED_EIGHT ? 2 : 4);
    for (size_t i = 0; i < n; i += part) hadamard_f32(x + i, factors ? factors + i : NULL, y + i, part);
    part == n / 2 ? merge_halves(y, part) : merge_quarters(y, part);
}

/* Values `first` to `first + count` of all parts, of which 2 / m times the sum is taken away. */
static QK_INLINE void reflect_some(float *y, size_t n, size_t m, const int count)
{
    enum { MOST = 32 };
    float sum[MOST] = {0};
    const float share = 2.0f / (float)m;
    for (size_t part = 0; part < m; part++)
        for (int i = 0; i < count; i++) sum[i] += y[part * n + (size_t)i];
    for (int i = 0; i < count; i++) sum[i] *= share;
    for (size_t part = 0; part < m; part++)
        for (int i = 0; i < count; i++) y[part * n + (size_t)i] -= sum[i];
}

static void reflect_f32(float *y, size_t n, size_t m)
{
    size_t i = 0;
    for (; i + 32 <= n; i += 32) reflect_some(y + i, n, m, 32);
    for (; i + 4 <= n; i += 4) reflect_some(y + i, n, m, 4);
    for (; i < n; i++) reflect_some(y + i, n, m, 1);
}

static void multiply_f32(float *y, const float *factors, size_t n)
{
    for (size_t i = 0; i < n; i++) y[i] *= factors[i];
}

/* The factor, negative where a bit of u is 1: 16 to a number. */
static void signed_factors(const uint16_t *u, float factor, float *to, size_t n)
{
    const int32_t bits = bits_of(factor);
    for (size_t i = 0; i < n; i += 16) {
        const uint32_t number = u[i / 16];
        float some[16];
        for (int j = 0; j < 16; j++) some[j] = float_of(bits ^ (int32_t)(number >> j << 31));
        memcpy(to + i, some, (n - i < 16 ? n - i : 16) * sizeof *to);
    }
}

#endif
