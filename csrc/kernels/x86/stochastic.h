/* Stochastic rounding on the registers of avx2.h or avx512.h, for generic/stochastic.h.
 *
 * Philox: a counter a lane of 64 bits, of which each word of the state takes the lower half. vpmuludq does not read the
 * upper one, so that what it leaves there, the high half of a product that is a word of the next state, stays: a round
 * is 6 instructions for all four words, on AVX-512.
 */
#ifndef QK_X86_STOCHASTIC_H
#define QK_X86_STOCHASTIC_H

#include "kernels/x86/elementwise.h"

#include "kernels/generic/elementwise.h"
#include "kernels/generic/random.h"

#define HAVE_RANDOM_LINES
#define HAVE_RANDOM_VECTORS
enum { LANES_64 = REG / 8, STATE_REGS = STATES / LANES_64, RANDOM_VECTOR = FLOATS, TABLE_16 = 16 };

/* States of xoroshiro128+, one a lane. */
typedef struct {
    reg s0, s1;
} random_states;

/* Those of a chunk. Words 1 to 3 of the counters are the same for all of it: so is what the second round makes of them,
 * word 3 and a term of word 2. The last round leaves two words in each lane, without junk. */
static QK_INLINE void draw_states(uint64_t counter, uint64_t seed, random_states *s)
{
    const uint64_t first = (uint64_t)((uint32_t)(counter >> 32) ^ (uint32_t)seed) * PHILOX_FACTOR0;
    const reg factor0 = all_i64(PHILOX_FACTOR0), bump0 = all_i64(PHILOX_BUMP0), counters = lane_numbers_i64();
    const reg factor1 = all_i64(PHILOX_FACTOR1), bump1 = all_i64(PHILOX_BUMP1);
    reg key0 = all_i64((uint32_t)seed), key1 = all_i64(seed >> 32), w1[STATE_REGS], w3[STATE_REGS];
    for (int i = 0; i < STATE_REGS; i++) {
        const reg a = product_u32(add_i64(all_i64((uint32_t)counter + i * LANES_64), counters), factor0);
        const reg b = product_u32(exclusive(upper_u32(a), key1), factor1);
        s[i].s0 = exclusive(upper_u32(b), add_i32(key0, bump0)), w1[i] = b;
        s[i].s1 = exclusive3(a, all_i64(first >> 32), add_i32(key1, bump1)), w3[i] = all_i64(first);
    }
    key0 = add_i32(key0, bump0), key1 = add_i32(key1, bump1);
    for (int round = 2; round < PHILOX_ROUNDS; round++) {
        key0 = add_i32(key0, bump0), key1 = add_i32(key1, bump1);
        for (int i = 0; i < STATE_REGS; i++) {
            const reg a = product_u32(s[i].s0, factor0), b = product_u32(s[i].s1, factor1);
            const int last = round == PHILOX_ROUNDS - 1;
            s[i].s0 = last ? exclusive_lower(swapped_u32(b), w1[i], key0) : exclusive3(upper_u32(b), w1[i], key0);
            s[i].s1 = last ? exclusive_lower(swapped_u32(a), w3[i], key1) : exclusive3(upper_u32(a), w3[i], key1);
            w1[i] = b, w3[i] = a;
        }
    }
}

/* A step of xoroshiro128+. */
static QK_INLINE reg next_random(random_states *s)
{
    const reg s0 = s->s0, s1 = exclusive(s0, s->s1), sums = add_i64(s0, s->s1);
    s->s0 = exclusive3(turned_24_i64(s0), s1, shifted_i64(s1, SHIFT_0)), s->s1 = turned_i64(s1, TURN_1);
    return sums;
}

/* Numbers of lines of a chunk, from line `first` on. */
static void random_lines(uint64_t chunk, uint64_t seed, size_t first, uint16_t *u, size_t lines)
{
    random_states s[STATE_REGS];
    draw_states(chunk * STATES, seed, s);
    for (; first > 0; first--)
        for (int i = 0; i < STATE_REGS; i++) next_random(s + i);
    for (; lines > 0; lines--)
        for (int i = 0; i < STATE_REGS; i++, u += 4 * LANES_64) store_reg(u, next_random(s + i));
}

/* Parameters of a vector; the bounds are integers. */
typedef struct {
    floats scale, reciprocal;
    reg zero, lo, hi;
} random_parameters;

static QK_INLINE random_parameters random_parameters_at(const qk_affines *p, size_t i, const size_t step)
{
    const reg zero = step ? load_reg(p->zero_point + i) : all_i32_at(p->zero_point);
    return (random_parameters){some_floats(p->scale + step * i, step), some_floats(p->reciprocal + step * i, step),
                               zero, sub_i32(all_i32(p->qmin), zero), sub_i32(all_i32(p->qmax), zero)};
}

/* Rounding of steps within -256 .. 256, as rounded_randomly of generic/stochastic.h has it. */
static QK_INLINE reg random_steps(floats x, reg u, random_parameters p)
{
    const floats lo = product_of(to_floats(p.lo), p.scale), hi = product_of(to_floats(p.hi), p.scale);
    const floats kept = smaller_of(hi, larger_of(lo, x)), q = product_of(kept, p.reciprocal);
    const floats quotient = add_product(q, subtract_product(kept, q, p.scale), p.reciprocal);
    const choice number = equal_floats(quotient, quotient);
    const floats v = chosen(number, quotient), r = difference_of(sum_of(v, all_floats(ROUNDER)), all_floats(ROUNDER));
    const choice between = chosen_but_not(number, equal_floats(kept, product_of(r, p.scale)));
    const floats rest = product_of(chosen(between, difference_of(v, r)), all_floats(0x1p16f));
    return add_i32(to_i32(r), over_65536_i32(add_i32(to_i32(rest), u)));
}

static QK_INLINE void random_vector(const int what, const float *x, const uint16_t *u, void *to, size_t i,
                                    const qk_affines *given, const size_t step)
{
    const random_parameters p = random_parameters_at(given, i, step);
    const reg steps = random_steps(load_floats(x + i), widen_u16(u + i), p);
    if (what == AND_BACK)
        write_floats((float *)to + i, product_of(to_floats(steps), p.scale));
    else
        store_low_bytes((uint8_t *)to + i, add_i32(steps, p.zero));
}

/* Steps times 2^16 and the random number as one sum, by one multiply-add: from 0 to 6 more than it is (numerics 27). */
static QK_INLINE reg sums_near(const float *x, const uint16_t *u, floats reciprocal)
{
    const floats factor = product_of(reciprocal, all_floats(0x1p16f));
    return add_i32(to_i32(add_product(all_floats(3), load_floats(x), factor)), widen_u16(u));
}

/* Whether one of the sums may be in another step than it ought to. */
static QK_INLINE int any_in_doubt(reg t0, reg t1, reg t2, reg t3)
{
    return any_without_i32(min_u16(min_u16(t0, t1), min_u16(t2, t3)), 0xfff8);
}

/* Codes of a group. Like random_floats it returns 0, and stores nothing, if one is in doubt, NaN or beyond 16 bits. */
static QK_INLINE int random_codes(const float *x, const uint16_t *u, uint8_t *q, group_parameters p)
{
    const reg t0 = sums_near(x, u, p.reciprocal0), t1 = sums_near(x + FLOATS, u + FLOATS, p.reciprocal1);
    const reg t2 = sums_near(x + 2 * FLOATS, u + 2 * FLOATS, p.reciprocal2);
    const reg t3 = sums_near(x + 3 * FLOATS, u + 3 * FLOATS, p.reciprocal3);
    const reg n0 = upper_u16(t0, t1), n1 = upper_u16(t2, t3);
    if (any_in_doubt(t0, t1, t2, t3) | any_equal_i16(min_i16(n0, n1), INT16_MIN)) return 0;
    store_reg(q, to_codes(n0, n1, p.zero0, p.zero1, p.qmin, p.qmax));
    return 1;
}

static QK_INLINE floats floats_of_sums(reg sums, random_parameters p)
{
    return product_of(to_floats(min_i32(p.hi, max_i32(p.lo, over_65536_i32(sums)))), p.scale);
}

static QK_INLINE int random_floats(const float *x, const uint16_t *u, float *y, const qk_affines *given, size_t i,
                                   const size_t step)
{
    const random_parameters p0 = random_parameters_at(given, i, step);
    const random_parameters p1 = random_parameters_at(given, i + FLOATS, step);
    const random_parameters p2 = random_parameters_at(given, i + 2 * FLOATS, step);
    const random_parameters p3 = random_parameters_at(given, i + 3 * FLOATS, step);
    const reg t0 = sums_near(x, u, p0.reciprocal), t1 = sums_near(x + FLOATS, u + FLOATS, p1.reciprocal);
    const reg t2 = sums_near(x + 2 * FLOATS, u + 2 * FLOATS, p2.reciprocal);
    const reg t3 = sums_near(x + 3 * FLOATS, u + 3 * FLOATS, p3.reciprocal);
    const reg least = min_i16(min_i16(t0, t1), min_i16(t2, t3));
    if (any_in_doubt(t0, t1, t2, t3) | any_equal_i16(least, INT16_MIN)) return 0;
    write_floats(y, floats_of_sums(t0, p0)), write_floats(y + FLOATS, floats_of_sums(t1, p1));
    write_floats(y + 2 * FLOATS, floats_of_sums(t2, p2)), write_floats(y + 3 * FLOATS, floats_of_sums(t3, p3));
    return 1;
}

/* n elements, whole vectors of them. */
static QK_INLINE void random_vectors(const int what, const float *x, const uint16_t *u, void *to, size_t n,
                                     const qk_affines *p, const size_t step)
{
    const group_parameters fixed = load_group(p, 0, 0, 0);
    size_t i = 0;
    for (; i + 4 * FLOATS <= n; i += 4 * FLOATS) {
        const int done = what == AND_BACK
            ? random_floats(x + i, u + i, (float *)to + i, p, i, step)
            : random_codes(x + i, u + i, (uint8_t *)to + i, step ? load_group(p, i, i + 2 * FLOATS, 1) : fixed);
        if (!done)
            for (size_t j = i; j < i + 4 * FLOATS; j += FLOATS) random_vector(what, x, u, to, j, p, step);
    }
    for (; i + FLOATS <= n; i += FLOATS) random_vector(what, x, u, to, i, p, step);
}

/* Tables of qk_moves in registers. */
typedef struct {
    table16 level;
    table32 per_distance;
    reg below, above; /* next codes */
} move_tables;

/* Which of four vectors lie above their level, which move, and which are in doubt: step by step, as each step waits for
 * the one before. */
typedef struct {
    choice up[4], move[4], doubt[4];
} moves;

static QK_INLINE moves moves_of(const float *x, const uint16_t *u, const uint8_t *q, const move_tables *t)
{
    moves m;
    reg codes[4];
    floats rest[4], drawn[4];
    for (int v = 0; v < 4; v++) codes[v] = widen_u8(q + v * FLOATS);
    for (int v = 0; v < 4; v++) rest[v] = look_up16(t->level, codes[v]);
    for (int v = 0; v < 4; v++) rest[v] = difference_of(load_floats(x + v * FLOATS), rest[v]);
    for (int v = 0; v < 4; v++) m.up[v] = below(all_floats(0), rest[v]);
    for (int v = 0; v < 4; v++) drawn[v] = to_floats(widen_u16(u + v * FLOATS));
    for (int v = 0; v < 4; v++) {
        const floats left = subtract_product(drawn[v], rest[v], look_up32(t->per_distance, codes[v], m.up[v]));
        m.move[v] = below(left, all_floats(NEAR_NUMBER - 0.5f));
        m.doubt[v] = differently_chosen(not_at_most_floats(all_floats(-0.5f - NEAR_NUMBER), left), m.move[v]);
    }
    return m;
}

/* Codes of tables of 16 entries, whole groups of 4 vectors; returns how many elements these are. */
static QK_INLINE size_t move_vectors(const float *x, const uint16_t *u, uint8_t *q, size_t n, const qk_moves *m)
{
    enum { FOUR = 4 * FLOATS };
    const move_tables t = {load_table16(m->level), load_table32(m->per_distance), all_16_bytes(m->next),
                           all_16_bytes(m->next + TABLE_16)};
    size_t i = 0;
    for (; i + FOUR <= n; i += FOUR) {
        const moves a = moves_of(x + i, u + i, q + i, &t);
        if (any_chosen(one_chosen(one_chosen(a.doubt[0], a.doubt[1]), one_chosen(a.doubt[2], a.doubt[3])))) {
            for (size_t j = i; j < i + FOUR; j++) q[j] = qk_moved_code(m, j, x[j], q[j], u[j]);
            continue;
        }
        const byte_choice up = chosen_bytes(a.up[0], a.up[1], a.up[2], a.up[3]);
        const reg codes = load_reg(q + i);
        const reg to = either_bytes(up, look_up_bytes(t.above, codes), look_up_bytes(t.below, codes));
        store_reg(q + i, either_bytes(chosen_bytes(a.move[0], a.move[1], a.move[2], a.move[3]), to, codes));
    }
    return i;
}

#endif
