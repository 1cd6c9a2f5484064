/* Stochastic rounding on the registers of avx2.h or avx512.h, for generic/stochastic.h.
 *
 * Philox: a counter a lane of 64 bits, of which each
 * word of the state takes the lower half. vpmuludq does not read the upper one, so that what it leaves there, the high
 * half of a product that is a word of the next state, stays: a round is 6 instructions for all four words. */
#ifndef QK_X86_STOCHASTIC_H
#define QK_X86_STOCHASTIC_H

#include "kernels/x86/elementwise.h"

#include "kernels/generic/elementwise.h"
#include "kernels/generic/philox.h"

#define HAVE_PHILOX
#define HAVE_RANDOM_VECTORS
enum { PHILOX_LANES = REG / 8, PHILOX_GROUP = PHILOX_LANES * PHILOX_ELEMENTS };

typedef struct {
    reg key0[PHILOX_ROUNDS], key1[PHILOX_ROUNDS];
} philox_keys;

/* Words 0 and 1 of the first counters, in the order in which unpacking leaves lanes. */
static QK_INLINE void philox_group(reg w0, reg w1, const philox_keys *k, uint16_t *u)
{
    const reg factor0 = all_i64(PHILOX_FACTOR0), factor1 = all_i64(PHILOX_FACTOR1);
    reg w2 = zero_reg(), w3 = w2;
    for (int round = 0; round < PHILOX_ROUNDS; round++) {
        const reg a = product_u32(w0, factor0), b = product_u32(w2, factor1);
        w0 = exclusive(exclusive(upper_u32(b), w1), k->key0[round]), w1 = b;
        w2 = exclusive(exclusive(upper_u32(a), w3), k->key1[round]), w3 = a;
    }
    const reg first = both_halves(w0, w1), second = both_halves(w2, w3);
    store_reg(u, low_u64(first, second)), store_reg((char *)u + REG, high_u64(first, second));
}

/* Whole groups of n elements from that of a counter on; returns how many elements these are. */
static size_t philox_groups(uint64_t counter, uint64_t seed, uint16_t *u, size_t n)
{
    philox_keys k;
    uint32_t key0 = (uint32_t)seed, key1 = (uint32_t)(seed >> 32);
    for (int round = 0; round < PHILOX_ROUNDS; round++, key0 += PHILOX_BUMP0, key1 += PHILOX_BUMP1)
        k.key0[round] = all_i64(key0), k.key1[round] = all_i64(key1);
    const reg lanes = unpacked_lanes();
    size_t i = 0;
    for (; n - i >= PHILOX_GROUP; i += PHILOX_GROUP, counter += PHILOX_LANES) {
        const reg counters = add_i64(all_i64(counter), lanes);
        philox_group(counters, upper_u32(counters), &k, u + i);
    }
    return i;
}

/* Rounding of steps within -128 .. 128, all codes of which are exact quotients: so 2^16 v, rounded to an integer, and
 * the random number are one sum, whose upper half is the code (numerics 27). */
static QK_INLINE reg random_steps(floats x, reg u, const parameters *p, size_t i, const size_t step)
{
    const floats scale = product_of(some_floats(p->scale + i, step), all_floats(0x1p-16f));
    const floats reciprocal = product_of(some_floats(p->reciprocal + i, step), all_floats(0x1p16f));
    const floats kept = smaller_of(some_floats(p->hi + i, step), larger_of(some_floats(p->lo + i, step), x));
    const floats q = product_of(kept, reciprocal);
    const floats v = add_product(q, subtract_product(kept, q, scale), reciprocal);
    return over_65536_i32(add_i32(to_i32(chosen(equal_floats(v, v), v)), u));
}

/* Whole vectors of n elements; returns how many elements these are. */
static QK_INLINE size_t random_vectors(const int what, const float *x, const uint16_t *u, void *to, size_t n,
                                       const parameters *p, const size_t step)
{
    size_t i = 0;
    for (; i + FLOATS <= n; i += FLOATS) {
        const size_t which = step ? i : 0;
        const reg steps = random_steps(load_floats(x + i), widen_u16(u + i), p, which, step);
        if (what == AND_BACK)
            write_floats((float *)to + i, product_of(to_floats(steps), some_floats(p->scale + which, step)));
        else
            store_low_bytes((uint8_t *)to + i,
                            add_i32(steps, step ? load_reg(p->zero_point + i) : all_i32_at(p->zero_point)));
    }
    return i;
}

#endif
