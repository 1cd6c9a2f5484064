/* Stochastic rounding (numerics 27), compiled once per instruction set, after elementwise.h. */
#ifndef QK_GENERIC_STOCHASTIC_H
#define QK_GENERIC_STOCHASTIC_H

#include "kernels/generic/elementwise.h"
#include "kernels/generic/random.h"

#ifndef HAVE_RANDOM_LINES
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

static inline uint64_t turned_u64(uint64_t v, int bits) { return v << bits | v >> (64 - bits); }

/* Numbers of lines of a chunk, from line `first` on. */
static void random_lines(uint64_t chunk, uint64_t seed, size_t first, uint16_t *u, size_t lines)
{
    uint64_t s0[STATES], s1[STATES];
    for (unsigned i = 0; i < STATES; i++) {
        uint32_t word[4];
        philox_block(chunk * STATES + i, seed, word);
        s0[i] = word[0] | (uint64_t)word[1] << 32, s1[i] = word[2] | (uint64_t)word[3] << 32;
    }
    for (size_t line = 0; line < first + lines; line++) {
        uint64_t sums[STATES];
        for (unsigned i = 0; i < STATES; i++) {
            sums[i] = s0[i] + s1[i], s1[i] ^= s0[i];
            s0[i] = turned_u64(s0[i], TURN_0) ^ s1[i] ^ s1[i] << SHIFT_0, s1[i] = turned_u64(s1[i], TURN_1);
        }
        if (line < first) continue;
        for (unsigned i = 0; i < RANDOM_LINE; i++) *u++ = (uint16_t)(sums[i / 4] >> 16 * (i % 4));
    }
}
#endif

/* Numbers of elements from number `index` on. */
static void random_16(uint64_t index, uint64_t seed, uint16_t *u, size_t n)
{
    uint16_t whole[RANDOM_CHUNK];
    for (size_t count; n > 0; n -= count, u += count, index += count) {
        const size_t at = (size_t)(index % RANDOM_CHUNK), skip = at % RANDOM_LINE;
        count = n < RANDOM_CHUNK - at ? n : RANDOM_CHUNK - at;
        const size_t lines = (skip + count + RANDOM_LINE - 1) / RANDOM_LINE;
        const int in_place = skip == 0 && count % RANDOM_LINE == 0;
        random_lines(index / RANDOM_CHUNK, seed, at / RANDOM_LINE, in_place ? u : whole, lines);
        if (!in_place) memcpy(u, whole + skip, count * sizeof *u);
    }
}

static QK_INLINE int32_t rounded_randomly(float x, uint16_t u, parameter p, const int how)
{
    const float v = quotient(x, p, how), shifted = v + ROUNDER, r = shifted - ROUNDER;
    const float kept = how == MULTIPLY ? clamp(x, p.lo, p.hi) : x, rest = (v - r) * 65536.0f;
    const int32_t k = kept == r * p.scale ? 0 : bits_of(rest + ROUNDER) - bits_of(ROUNDER);
    return bits_of(shifted) - bits_of(ROUNDER) + ((k + u) >> 16);
}

/* Elements of a row from number `first` on; their parameters, or the one of all (step 0), are in p. */
static QK_INLINE void round_rest(const int what, const float *x, const uint16_t *u, void *to, size_t first, size_t n,
                                 const parameters *p, const size_t step, const int how)
{
    const parameter same = parameter_at(p, 0, TO_8_BITS, how);
    QK_NO_DEPENDENCE
    for (size_t i = first; i < n; i++) {
        const parameter here = step ? parameter_at(p, i - first, TO_8_BITS, how) : same;
        const int32_t code = rounded_randomly(x[i], u[i], here, how);
        if (what == AND_BACK)
            ((float *)to)[i] = (float)code * here.scale;
        else if (what == TO_8_BITS)
            ((uint8_t *)to)[i] = (uint8_t)(code + here.zero_point);
        else
            ((uint16_t *)to)[i] = (uint16_t)(code + here.zero_point);
    }
}

#ifndef HAVE_RANDOM_VECTORS
enum { RANDOM_VECTOR = INT32_MAX };
static inline void random_vectors(const int what, const float *x, const uint16_t *u, void *to, size_t n,
                                  const qk_affines *p, const size_t step)
{
    (void)what, (void)x, (void)u, (void)to, (void)n, (void)p, (void)step;
}
#endif

/* Rows of which vectors round the first `whole` elements, which are of small steps and have reciprocals. */
static QK_INLINE void rows_by_chance(const int what, const float *x, const uint16_t *u, void *to, size_t whole,
                                     size_t n, const qk_affines *given, const size_t step, const int how)
{
    parameters p __attribute__((aligned(64)));
    take_parameters(given, step * whole, step ? n - whole : 1, &p, TO_8_BITS, how);
    const size_t out_bytes = given->out_stride * (what == AND_BACK ? 4 : what == TO_8_BITS ? 1 : 2);
    for (size_t row = 0; row < given->rows; row++, x += given->in_stride, u += n, to = (char *)to + out_bytes) {
        if (what != TO_16_BITS && how == MULTIPLY && whole) random_vectors(what, x, u, to, whole, given, step);
        round_rest(what, x, u, to, whole, n, &p, step, how);
    }
}

static QK_INLINE void round_by(const int what, const float *x, const uint16_t *u, void *to, size_t n,
                               const qk_affines *p)
{
    const int each = p->run == 1 && n > 1, multiply = HAVE_FMA && p->reciprocal;
    const int vectors = multiply && what != TO_16_BITS && p->qmax - p->qmin < 256; /* zero points are codes */
    const size_t whole = vectors ? n / RANDOM_VECTOR * RANDOM_VECTOR : 0;
    if (multiply)
        each ? rows_by_chance(what, x, u, to, whole, n, p, 1, MULTIPLY)
             : rows_by_chance(what, x, u, to, whole, n, p, 0, MULTIPLY);
    else
        each ? rows_by_chance(what, x, u, to, 0, n, p, 1, DIVIDE) : rows_by_chance(what, x, u, to, 0, n, p, 0, DIVIDE);
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

static void units_of_blocks_f32(const float *x, const float *factor, float *v, size_t n, size_t skip, size_t block)
{
    if (block == 1) {
        QK_NO_DEPENDENCE
        for (size_t i = 0; i < n; i++) v[i] = x[i] * factor[i];
        return;
    }
    for (size_t i = 0, end; i < n; i = end, skip = 0, factor++) {
        end = n - i < block - skip ? n : i + block - skip;
        QK_NO_DEPENDENCE
        for (size_t j = i; j < end; j++) v[j] = x[j] * *factor;
    }
}

/* In float32 but for those in doubt, whose part of the distance is so near to the number that its error matters: 2^15
 * at most, it is off by 3 roundings, 2^-7. NaN is in doubt too. */
static void move_codes_f32(const float *x, const uint16_t *u, uint8_t *q, size_t n, const qk_moves *m)
{
    size_t i = 0;
#ifdef HAVE_RANDOM_VECTORS
    if (m->k == TABLE_16 && m->step == 0) i = move_vectors(x, u, q, n, m);
#endif
    for (; i < n; i++) {
        const size_t at = i * m->step * m->k;
        const uint8_t code = q[i];
        const float rest = x[i] - m->level[at + code], drawn = (float)u[i] + 0.5f;
        const size_t beside = 2 * at + (m->k & -(size_t)(rest > 0)) + code;
        const float part = rest * m->per_distance[beside];
        const int not_at_most = !(part <= drawn + NEAR_NUMBER), above = part > drawn - NEAR_NUMBER;
        q[i] = (uint8_t)(code ^ ((code ^ m->next[beside]) & -above)); /* no branch: half of them would be wrong */
        if (not_at_most != above) q[i] = qk_moved_code(m, i, x[i], code, u[i]);
    }
}

#endif
