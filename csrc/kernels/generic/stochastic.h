/* Stochastic rounding (numerics 27), compiled once per instruction set, after elementwise.h. */
#ifndef QK_GENERIC_STOCHASTIC_H
#define QK_GENERIC_STOCHASTIC_H

#include "kernels/generic/elementwise.h"
#include "kernels/generic/philox.h"

static inline void philox_block(uint64_t counter, uint64_t seed, uint32_t word[4])
{
    uint32_t key0 = (uint32_t)seed, key1 = (uint32_t)(seed >> 32);
    word[0] = (uint32_t)counter, word[1] = (uint32_t)(counter >> 32), word[2] = word[3] = 0;
    for (int round = 0; round < PHILOX_ROUNDS; round++, key0 += PHILOX_BUMP0, key1 += PHILOX_BUMP1) {
        const uint64_t a = (uint64_t)word[0] * PHILOX_FACTOR0, b = (uint64_t)word[2] * PHILOX_FACTOR1;
        word[0] = (uint32_t)(b >> 32) ^ word[1] ^ key0, word[1] = (uint32_t)b;
        word[2] = (uint32_t)(a >> 32) ^ word[3] ^ key1, word[3] = (uint32_t)a;
    }
}

/* Numbers of elements from number `index` on. */
static void random_16(uint64_t index, uint64_t seed, uint16_t *u, size_t n)
{
    uint32_t word[4];
    for (size_t i = 0; i < n;) {
        const unsigned skip = (unsigned)((index + i) % PHILOX_ELEMENTS);
#ifdef HAVE_PHILOX
        if (skip == 0 && n - i >= PHILOX_GROUP) {
            const size_t done = philox_groups((index + i) / PHILOX_ELEMENTS, seed, u + i, n - i);
            i += done;
            if (done) continue;
        }
#endif
        philox_block((index + i) / PHILOX_ELEMENTS, seed, word);
        for (unsigned e = skip; e < PHILOX_ELEMENTS && i < n; e++, i++) u[i] = (uint16_t)(word[e / 2] >> 16 * (e % 2));
    }
}

static QK_INLINE int32_t rounded_randomly(float x, uint16_t u, parameter p, const int how)
{
    const float v = quotient(x, p, how), shifted = v + ROUNDER, r = shifted - ROUNDER;
    const float kept = how == MULTIPLY ? clamp(x, p.lo, p.hi) : x, rest = (v - r) * 65536.0f;
    const int32_t k = kept == r * p.scale ? 0 : bits_of(rest + ROUNDER) - bits_of(ROUNDER);
    return bits_of(shifted) - bits_of(ROUNDER) + ((k + u) >> 16);
}

static QK_INLINE void round_some(const int what, const float *x, const uint16_t *u, void *to, size_t n,
                                 const parameters *p, const qk_affines *given, const size_t step, const int how,
                                 const int small)
{
    size_t first = 0;
#ifdef HAVE_RANDOM_VECTORS
    if (how == MULTIPLY && small) first = random_vectors(what, x, u, to, n, p, given, step);
#else
    (void)small, (void)given;
#endif
    const parameter same = parameter_at(p, 0, TO_8_BITS, how);
    QK_NO_DEPENDENCE
    for (size_t i = first; i < n; i++) {
        const parameter here = step ? parameter_at(p, i, TO_8_BITS, how) : same;
        const int32_t code = rounded_randomly(x[i], u[i], here, how);
        if (what == AND_BACK)
            ((float *)to)[i] = (float)code * here.scale;
        else if (what == TO_8_BITS)
            ((uint8_t *)to)[i] = (uint8_t)(code + here.zero_point);
        else
            ((uint16_t *)to)[i] = (uint16_t)(code + here.zero_point);
    }
}

/* Whether all steps are within -128 .. 128. */
static QK_INLINE int steps_are_small(const qk_affines *p, size_t n)
{
    int large = 0;
    for (size_t i = 0; i < n; i++) large |= (p->qmin - p->zero_point[i] < -128) | (p->qmax - p->zero_point[i] > 128);
    return !large;
}

static QK_INLINE void round_by(const int what, const float *x, const uint16_t *u, void *to, size_t n,
                               const qk_affines *given)
{
    parameters p __attribute__((aligned(64)));
    const int multiply = HAVE_FMA && given->reciprocal, each = given->run == 1 && n > 1;
    const size_t count = each ? n : 1;
    if (multiply)
        take_parameters(given, 0, count, &p, TO_8_BITS, MULTIPLY);
    else
        take_parameters(given, 0, count, &p, TO_8_BITS, DIVIDE);
    const int small = what != TO_16_BITS && steps_are_small(given, count);
    const size_t out_bytes = given->out_stride * (what == AND_BACK ? 4 : what == TO_8_BITS ? 1 : 2);
    for (size_t row = 0; row < given->rows; row++, x += given->in_stride, u += n, to = (char *)to + out_bytes) {
        if (!multiply)
            each ? round_some(what, x, u, to, n, &p, given, 1, DIVIDE, 0)
                 : round_some(what, x, u, to, n, &p, given, 0, DIVIDE, 0);
        else if (each)
            small ? round_some(what, x, u, to, n, &p, given, 1, MULTIPLY, 1)
                  : round_some(what, x, u, to, n, &p, given, 1, MULTIPLY, 0);
        else
            small ? round_some(what, x, u, to, n, &p, given, 0, MULTIPLY, 1)
                  : round_some(what, x, u, to, n, &p, given, 0, MULTIPLY, 0);
    }
}

static void round_randomly_f32(const float *x, const uint16_t *u, void *to, size_t bytes, size_t n, const qk_affines *p)
{
    if (bytes == 1)
        round_by(TO_8_BITS, x, u, to, n, p);
    else if (bytes == 2)
        round_by(TO_16_BITS, x, u, to, n, p);
    else
        round_by(AND_BACK, x, u, to, n, p);
}

#endif
