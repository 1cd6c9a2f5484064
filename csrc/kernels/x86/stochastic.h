/* Stochastic rounding on the registers of avx2.h or avx512.h, for generic/stochastic.h.
 *
 * Philox: a counter a lane of 64 bits, of which each
 * word of the state takes the lower half. vpmuludq does not read the upper one, so that what it leaves there, the high
 * half of a product that is a word of the next state, stays: a round is 6 instructions for all four words, on AVX-512.
 */
#ifndef QK_X86_STOCHASTIC_H
#define QK_X86_STOCHASTIC_H

#include "kernels/x86/elementwise.h"

#include "kernels/generic/elementwise.h"
#include "kernels/generic/philox.h"

#define HAVE_PHILOX
#define HAVE_RANDOM_VECTORS
enum { PHILOX_LANES = REG / 8, PHILOX_GROUP = PHILOX_LANES * PHILOX_ELEMENTS };

/* Keys of the rounds. Words 1 to 3 of the counters are the same for all of a call: so is what the second round makes of
 * them, word 3 and a term of word 2, which that round's key takes up. */
typedef struct {
    reg key0[PHILOX_ROUNDS], key1[PHILOX_ROUNDS], word3;
} philox_keys;

static QK_INLINE philox_keys philox_keys_of(uint32_t word1, uint64_t seed)
{
    philox_keys k;
    uint32_t key0 = (uint32_t)seed, key1 = (uint32_t)(seed >> 32);
    const uint64_t a = (uint64_t)(word1 ^ key0) * PHILOX_FACTOR0;
    for (int round = 0; round < PHILOX_ROUNDS; round++, key0 += PHILOX_BUMP0, key1 += PHILOX_BUMP1)
        k.key0[round] = all_i64(key0), k.key1[round] = all_i64(round == 1 ? key1 ^ a >> 32 : key1);
    k.word3 = all_i64(a);
    return k;
}

/* Numbers of counters, of which these are words 0. The last round leaves two words in each lane, without junk. */
static QK_INLINE void philox_group(reg counters, const philox_keys *k, uint16_t *u)
{
    const reg factor0 = all_i64(PHILOX_FACTOR0), factor1 = all_i64(PHILOX_FACTOR1);
    reg a = product_u32(counters, factor0), b = product_u32(exclusive(upper_u32(a), k->key1[0]), factor1);
    reg w0 = exclusive(upper_u32(b), k->key0[1]), w1 = b, w2 = exclusive(a, k->key1[1]), w3 = k->word3;
    for (int round = 2; round < PHILOX_ROUNDS - 1; round++) {
        a = product_u32(w0, factor0), b = product_u32(w2, factor1);
        w0 = exclusive3(upper_u32(b), w1, k->key0[round]), w1 = b;
        w2 = exclusive3(upper_u32(a), w3, k->key1[round]), w3 = a;
    }
    a = product_u32(w0, factor0), b = product_u32(w2, factor1);
    const reg first = exclusive_lower(swapped_u32(b), w1, k->key0[PHILOX_ROUNDS - 1]);
    const reg second = exclusive_lower(swapped_u32(a), w3, k->key1[PHILOX_ROUNDS - 1]);
    store_reg(u, low_u64(first, second)), store_reg((char *)u + REG, high_u64(first, second));
}

/* Whole groups of n elements from that of a counter on, but those after a carry into word 1; returns how many elements
 * these are. */
static size_t philox_groups(uint64_t counter, uint64_t seed, uint16_t *u, size_t n)
{
    const philox_keys k = philox_keys_of((uint32_t)(counter >> 32), seed);
    const uint64_t left = (1ull << 32) - (uint32_t)counter;
    const reg lanes = unpacked_lanes();
    size_t i = 0;
    for (; n - i >= PHILOX_GROUP && i / PHILOX_ELEMENTS + PHILOX_LANES <= left; i += PHILOX_GROUP)
        philox_group(add_i64(all_i64(counter + i / PHILOX_ELEMENTS), lanes), &k, u + i);
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

/* A vector of n elements or fewer. */
static QK_INLINE void random_vector(const int what, const float *x, const uint16_t *u, void *to, size_t i,
                                    const parameters *p, const size_t step)
{
    const size_t which = step ? i : 0;
    const reg steps = random_steps(load_floats(x + i), widen_u16(u + i), p, which, step);
    if (what == AND_BACK)
        write_floats((float *)to + i, product_of(to_floats(steps), some_floats(p->scale + which, step)));
    else
        store_low_bytes((uint8_t *)to + i,
                        add_i32(steps, step ? load_reg(p->zero_point + i) : all_i32_at(p->zero_point)));
}

/* The same sum by one multiply-add, from 0 to 4 more than it is. */
static QK_INLINE reg sums_near(floats x, const uint16_t *u, floats reciprocal)
{
    const floats factor = product_of(reciprocal, all_floats(0x1p16f));
    return add_i32(to_i32(add_product(all_floats(2), x, factor)), widen_u16(u));
}

/* Whether one of the sums may be in another step than it ought to. */
static QK_INLINE int any_in_doubt(reg t0, reg t1, reg t2, reg t3)
{
    return any_without_i32(min_u16(min_u16(t0, t1), min_u16(t2, t3)), 0xfffc);
}

/* Codes of a group. Like random_floats it returns 0, and stores nothing, if one is in doubt, NaN or beyond 16 bits. */
static QK_INLINE int random_codes(const float *x, const uint16_t *u, uint8_t *q, group_parameters p)
{
    const reg t0 = sums_near(load_floats(x), u, p.reciprocal0);
    const reg t1 = sums_near(load_floats(x + FLOATS), u + FLOATS, p.reciprocal1);
    const reg t2 = sums_near(load_floats(x + 2 * FLOATS), u + 2 * FLOATS, p.reciprocal2);
    const reg t3 = sums_near(load_floats(x + 3 * FLOATS), u + 3 * FLOATS, p.reciprocal3);
    const reg n0 = upper_u16(t0, t1), n1 = upper_u16(t2, t3);
    if (any_in_doubt(t0, t1, t2, t3) | any_equal_i16(min_i16(n0, n1), INT16_MIN)) return 0;
    store_reg(q, to_codes(n0, n1, p.zero0, p.zero1, p.qmin, p.qmax));
    return 1;
}

static QK_INLINE reg clamped_sums(const float *x, const uint16_t *u, const parameters *p, size_t i, const size_t step)
{
    const floats most =
        smaller_of(some_floats(p->hi + i, step), larger_of(some_floats(p->lo + i, step), load_floats(x)));
    return sums_near(most, u, some_floats(p->reciprocal + i, step));
}

static QK_INLINE floats floats_of_sums(reg sums, const float *scale, const size_t step)
{
    return product_of(to_floats(over_65536_i32(sums)), some_floats(scale, step));
}

static QK_INLINE int random_floats(const float *x, const uint16_t *u, float *y, const parameters *p, size_t i,
                                   const size_t step)
{
    const size_t more = step * FLOATS;
    const reg t0 = clamped_sums(x, u, p, i, step), t1 = clamped_sums(x + FLOATS, u + FLOATS, p, i + more, step);
    const reg t2 = clamped_sums(x + 2 * FLOATS, u + 2 * FLOATS, p, i + 2 * more, step);
    const reg t3 = clamped_sums(x + 3 * FLOATS, u + 3 * FLOATS, p, i + 3 * more, step);
    if (any_in_doubt(t0, t1, t2, t3) | any_equal_i16(min_i16(min_i16(t0, t1), min_i16(t2, t3)), INT16_MIN)) return 0;
    write_floats(y, floats_of_sums(t0, p->scale + i, step));
    write_floats(y + FLOATS, floats_of_sums(t1, p->scale + i + more, step));
    write_floats(y + 2 * FLOATS, floats_of_sums(t2, p->scale + i + 2 * more, step));
    write_floats(y + 3 * FLOATS, floats_of_sums(t3, p->scale + i + 3 * more, step));
    return 1;
}

/* Whole vectors of n elements; returns how many elements these are. */
static QK_INLINE size_t random_vectors(const int what, const float *x, const uint16_t *u, void *to, size_t n,
                                       const parameters *p, const qk_affines *given, const size_t step)
{
    size_t i = 0;
    const group_parameters fixed = load_group(given, 0, 0, 0);
    for (; i + 4 * FLOATS <= n; i += 4 * FLOATS) {
        const int done = what == AND_BACK
            ? random_floats(x + i, u + i, (float *)to + i, p, step * i, step)
            : random_codes(x + i, u + i, (uint8_t *)to + i, step ? load_group(given, i, i + 2 * FLOATS, 1) : fixed);
        if (!done)
            for (size_t j = i; j < i + 4 * FLOATS; j += FLOATS) random_vector(what, x, u, to, j, p, step);
    }
    for (; i + FLOATS <= n; i += FLOATS) random_vector(what, x, u, to, i, p, step);
    return i;
}

#endif
