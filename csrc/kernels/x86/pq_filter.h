/* The filter of searches among codes of 16 levels (numerics 19), in registers of AVX2 or of AVX-512.
 *
 * vpshufb looks up 16 bytes of a lane in the 16 entries of one group, so a register must hold codes of one group for as
 * many vectors as it has bytes. Codes (n, m) are therefore turned, a tile of 128 vectors at a time, by squares of 16
 * groups x 16 vectors a lane: four rounds of vpunpck. One turn serves all queries. Four groups then take 4 vpshufb,
 * 3 vpaddusb, and a shift and 2 vpaddw that add the sums of even and of odd vectors to 16 bits: 10 instructions for 4
 * codes of REG vectors, which keep two vector pipes equally busy where only one of them shuffles. */
#ifndef QK_PQ_FILTER_H
#define QK_PQ_FILTER_H

#include "kernels/generic/target.h"
#include "kernels/kernels.h"
#include "runtime/compiler.h"
#if VECTOR == 64
#include "kernels/x86/avx512.h"
#else
#include "kernels/x86/avx2.h"
#endif

enum { SQUARE = 16, AHEAD = 16384 /* bytes of codes that are asked for before their turn */ };

/* Turn codes of 16 groups of REG vectors to a register for each group, QK_PQ_TILE bytes apart. Return the largest code
 * in each place. A round interleaves registers i and i + 8; four rounds exchange the places of row and column. */
static QK_INLINE reg turn_squares(const uint8_t *codes, size_t m, uint8_t *turned)
{
    reg a[SQUARE], b[SQUARE], most = zero_reg();
    for (size_t i = 0, row = 0; i < 8; i++, row += m) {
        QK_KEEP_SIZE(row); /* gcc would keep an address for each load */
        a[i] = load_lanes(codes + row, SQUARE * m), a[i + 8] = load_lanes(codes + 8 * m + row, SQUARE * m);
        most = most_u8(most_u8(most, a[i]), a[i + 8]);
    }
    for (size_t i = 0; i < 8; i++) b[2 * i] = low_u8(a[i], a[i + 8]), b[2 * i + 1] = high_u8(a[i], a[i + 8]);
    for (size_t i = 0; i < 8; i++) a[2 * i] = low_u8(b[i], b[i + 8]), a[2 * i + 1] = high_u8(b[i], b[i + 8]);
    for (size_t i = 0; i < 8; i++) b[2 * i] = low_u8(a[i], a[i + 8]), b[2 * i + 1] = high_u8(a[i], a[i + 8]);
    for (size_t i = 0; i < 8; i++) {
        store_reg(turned + 2 * i * QK_PQ_TILE, low_u8(b[i], b[i + 8]));
        store_reg(turned + (2 * i + 1) * QK_PQ_TILE, high_u8(b[i], b[i + 8]));
    }
    return most;
}

static int pq_turn(const uint8_t *codes, size_t m, size_t tiles, uint8_t *turned)
{
    reg most = zero_reg();
    uint8_t each[REG], largest = 0;
    for (size_t t = 0; t < tiles; t++, codes += QK_PQ_TILE * m)
        for (size_t g = 0; g < m; g += SQUARE, turned += SQUARE * QK_PQ_TILE)
            for (size_t v = 0; v < QK_PQ_TILE; v += REG) {
                for (size_t i = 0; i < SQUARE * REG; i += 64)
                    _mm_prefetch((const char *)codes + g * QK_PQ_TILE + v * SQUARE + i + AHEAD, _MM_HINT_T1);
                most = most_u8(most, turn_squares(codes + v * m + g, m, turned + v));
            }
    store_reg(each, most);
    for (size_t i = 0; i < REG; i++) largest = each[i] > largest ? each[i] : largest;
    return largest;
}

/* Sums of four groups' entries, 255 at most. */
static QK_INLINE reg sums_of_four(reg t0, reg t1, reg t2, reg t3, const uint8_t *turned)
{
    const reg s0 = look_up_u8(t0, load_reg(turned)), s1 = look_up_u8(t1, load_reg(turned + QK_PQ_TILE));
    const reg s2 = look_up_u8(t2, load_reg(turned + 2 * QK_PQ_TILE));
    return adds_u8(adds_u8(s0, s1), adds_u8(s2, look_up_u8(t3, load_reg(turned + 3 * QK_PQ_TILE))));
}

/* Adds the vectors of which the mask has a bit to the list, from `first` on. Returns its length. */
static QK_NOINLINE size_t list_bits(uint64_t mask, size_t first, uint32_t *list, size_t listed)
{
    for (; mask; mask &= mask - 1) list[listed++] = (uint32_t)(first + (size_t)__builtin_ctzll(mask));
    return listed;
}

static size_t pq_pass(const uint8_t *table, size_t m, const uint8_t *turned, size_t tiles, uint16_t limit,
                      uint32_t *list)
{
    const size_t step = round_up(m, SQUARE) * QK_PQ_TILE;
    const reg most = all_i16((int16_t)limit);
    size_t listed = 0;
    for (size_t v = 0; v < tiles * QK_PQ_TILE; v += 2 * REG) {
        const uint8_t *codes = turned + v / QK_PQ_TILE * step + v % QK_PQ_TILE, *t = table;
        reg all0 = zero_reg(), odd0 = all0, all1 = all0, odd1 = all0; /* words of an even vector and of the odd one */
        for (size_t g = 0; g < m; g += 4, t += 4 * SQUARE, codes += 4 * QK_PQ_TILE) {
            const reg t0 = all_lanes(t), t1 = all_lanes(t + 16), t2 = all_lanes(t + 32), t3 = all_lanes(t + 48);
            const reg s0 = sums_of_four(t0, t1, t2, t3, codes), s1 = sums_of_four(t0, t1, t2, t3, codes + REG);
            all0 = add_i16(all0, s0), odd0 = add_i16(odd0, over_256_i16(s0));
            all1 = add_i16(all1, s1), odd1 = add_i16(odd1, over_256_i16(s1));
        }
        const uint64_t mask0 = words_below(sub_i16(all0, times_256_i16(odd0)), odd0, most);
        const uint64_t mask1 = words_below(sub_i16(all1, times_256_i16(odd1)), odd1, most);
        if (mask0) listed = list_bits(mask0, v, list, listed);
        if (mask1) listed = list_bits(mask1, v + REG, list, listed);
    }
    return listed;
}

#endif
