/* The filter of searches among codes of 16 levels (numerics 19), in registers of AVX2 or of AVX-512.
 *
 * vpshufb looks up 16 bytes of a lane in the 16 entries of one group, so a register must hold codes of one group for as
 * many vectors as it has bytes. Codes (n, m) are therefore turned, a tile of 128 vectors at a time, by squares of 16
 * groups x 16 vectors a lane: four rounds of vpunpck. One turn serves all queries. Packed codes were turned before, and
 * only come apart: two in 3 instructions, for one query in registers. Eight groups then take 8 vpshufb, 7 vpaddusb, and
 * a shift and 2 vpaddw that add the sums of even and of odd vectors to 16 bits: 18 instructions for 8 codes of REG
 * vectors, which keep two vector pipes about equally busy where only one of them shuffles. Meanwhile memory is asked
 * for the next packed codes: half of the time that one query takes is theirs. */
#ifndef QK_PQ_FILTER_H
#define QK_PQ_FILTER_H

#include <string.h>

#include "kernels/generic/target.h"
#include "kernels/kernels.h"
#include "runtime/compiler.h"
#if VECTOR == 64
#include "kernels/x86/avx512.h"
#else
#include "kernels/x86/avx2.h"
#endif

enum { SQUARE = 16, FAR = 16384, NEAR = 2048 }; /* codes so far ahead are asked for: to L2, then to L1 */

/* Turns 16 codes of REG vectors, which lie m bytes apart. (Vectors of 16 codes share a register with their neighbours,
 * as they lie; others with those 16 further on.) A round interleaves registers i and i + 8; four rounds exchange the
 * places of row and column. Returns the largest code in each place. */
static QK_INLINE reg turn_squares(const uint8_t *codes, size_t m, const int close, uint8_t *turned)
{
    reg a[SQUARE], b[SQUARE], most = zero_reg();
    for (size_t i = 0, row = 0; i < 8; i++, row += m) {
        QK_KEEP_SIZE(row); /* gcc would keep an address for each load */
        a[i] = close ? load_reg(codes + i * REG) : load_lanes(codes + row, SQUARE * m);
        a[i + 8] = close ? load_reg(codes + (i + 8) * REG) : load_lanes(codes + 8 * m + row, SQUARE * m);
        most = max_u8(max_u8(most, a[i]), a[i + 8]);
    }
    for (size_t i = 0; i < 8; i++) b[2 * i] = low_u8(a[i], a[i + 8]), b[2 * i + 1] = high_u8(a[i], a[i + 8]);
    for (size_t i = 0; i < 8; i++) a[2 * i] = low_u8(b[i], b[i + 8]), a[2 * i + 1] = high_u8(b[i], b[i + 8]);
    for (size_t i = 0; i < 8; i++) b[2 * i] = low_u8(a[i], a[i + 8]), b[2 * i + 1] = high_u8(a[i], a[i + 8]);
    for (size_t i = 0; i < 8; i++, turned += 2 * QK_PQ_TILE) {
        store_reg(turned, low_u8(b[i], b[i + 8]));
        store_reg(turned + QK_PQ_TILE, high_u8(b[i], b[i + 8]));
    }
    return most;
}

static QK_INLINE reg turn_tiles(const uint8_t *codes, size_t m, const int close, size_t tiles, uint8_t *turned)
{
    reg most = zero_reg();
    for (size_t t = 0; t < tiles; t++, codes += QK_PQ_TILE * m) {
        uint8_t *to = turned + t * qk_pq_turned(m);
        for (size_t at = 0; at < m; at += SQUARE, to += SQUARE * QK_PQ_TILE)
            for (size_t v = 0; v < QK_PQ_TILE; v += REG) {
                const char *soon = (const char *)codes + at * QK_PQ_TILE + v * SQUARE;
                for (size_t i = 0; i < SQUARE * REG; i += 64)
                    _mm_prefetch(soon + i + FAR, _MM_HINT_T1), _mm_prefetch(soon + i + NEAR, _MM_HINT_T0);
                most = max_u8(most, turn_squares(codes + v * m + at, m, close, to + v));
            }
    }
    return most;
}

static int pq_turn(const uint8_t *codes, size_t m, size_t tiles, uint8_t *turned)
{
    uint8_t each[REG], largest = 0;
    store_reg(each, m == SQUARE ? turn_tiles(codes, m, 1, tiles, turned) : turn_tiles(codes, m, 0, tiles, turned));
    for (size_t i = 0; i < REG; i++) largest = each[i] > largest ? each[i] : largest;
    return largest;
}

static void pq_split(const uint8_t *packed, size_t m, size_t tiles, uint8_t *turned)
{
    const size_t bytes = (m + 1) / 2 * QK_PQ_TILE;
    const reg low = all_i8(15);
    for (size_t t = 0; t < tiles; t++, packed += bytes) {
        uint8_t *to = turned + t * qk_pq_turned(m);
        for (size_t at = 0; at < bytes; at += QK_PQ_TILE, to += 2 * QK_PQ_TILE)
            for (size_t v = 0; v < QK_PQ_TILE; v += REG) {
                const reg codes = load_reg(packed + at + v);
                store_reg(to + v, both(codes, low));
                store_reg(to + QK_PQ_TILE + v, both(over_16_i16(codes), low));
            }
        memset(to, 0, (round_up(m, 8) - round_up(m, 2)) * QK_PQ_TILE);
    }
}

/* The entries of two groups, whose codes are bytes of their own, or the halves of the same ones; 255 at most. */
static QK_INLINE reg sums_of_two(reg even, reg odd, const uint8_t *codes, const int packed)
{
    const reg here = load_reg(codes);
    if (!packed) return adds_u8(look_up_u8(even, here), look_up_u8(odd, load_reg(codes + QK_PQ_TILE)));
    const reg low = all_i8(15);
    return adds_u8(look_up_u8(even, both(here, low)), look_up_u8(odd, both(over_16_i16(here), low)));
}

/* Sums of the even words' bytes and of the odd ones'. */
typedef struct {
    reg all, odd;
} word_sums;

static QK_INLINE void add_bytes(word_sums *s, reg bytes)
{
    s->all = add_i16(s->all, bytes), s->odd = add_i16(s->odd, over_256_i16(bytes));
}

/* Adds the vectors of a register of which the mask has a bit to the list. Returns its length. */
static QK_NOINLINE size_t list_bits(uint64_t mask, int close, size_t first, uint32_t *list, size_t listed)
{
    for (; mask; mask &= mask - 1) {
        const size_t place = (size_t)__builtin_ctzll(mask);
        list[listed++] = (uint32_t)(first + (close ? place % SQUARE * (REG / SQUARE) + place / SQUARE : place));
    }
    return listed;
}

/* Adds the entries of up to eight groups for two registers of vectors. */
static QK_INLINE void add_groups(word_sums *first, word_sums *second, const uint8_t *table, const int groups,
                                 const uint8_t *codes, const int packed)
{
    const size_t two = packed ? QK_PQ_TILE : 2 * QK_PQ_TILE; /* bytes of two groups */
    reg s0 = zero_reg(), s1 = s0;
    for (int g = 0; g < groups; g += 2, codes += two) {
        const reg even = all_lanes(table + g * SQUARE), odd = all_lanes(table + (g + 1) * SQUARE);
        s0 = adds_u8(s0, sums_of_two(even, odd, codes, packed));
        s1 = adds_u8(s1, sums_of_two(even, odd, codes + REG, packed));
    }
    add_bytes(first, s0), add_bytes(second, s1);
}

/* `packed` is a constant where this is inlined. */
static QK_INLINE size_t pass(const uint8_t *table, size_t m, const int packed, const int close, const uint8_t *tile,
                             size_t tile_bytes, size_t tiles, const uint8_t *soon, uint16_t limit, uint32_t *list)
{
    const reg most = all_i16((int16_t)limit);
    const size_t eight = packed ? 4 * QK_PQ_TILE : 8 * QK_PQ_TILE; /* bytes of eight groups */
    size_t listed = 0;
    for (size_t v = 0; v < tiles * QK_PQ_TILE; v += 2 * REG) {
        const uint8_t *codes = tile + v / QK_PQ_TILE * tile_bytes + v % QK_PQ_TILE, *t = table;
        word_sums first = {zero_reg(), zero_reg()}, second = first;
        for (size_t g = 0; g < m; g += 8, t += 8 * SQUARE, codes += eight) {
            for (size_t i = 0; packed && v % QK_PQ_TILE == 0 && i < eight; i += 64)
                _mm_prefetch((const char *)codes + FAR / 2 + i, _MM_HINT_T0);
            for (size_t i = 0; soon && i < 8 * REG; i += 64, soon += 64) _mm_prefetch((const char *)soon, _MM_HINT_T0);
            if (!packed || g + 8 <= m)
                add_groups(&first, &second, t, 8, codes, packed);
            else
                add_groups(&first, &second, t, (int)(m - g + 1) & ~1, codes, packed);
        }
        const uint64_t mask0 = words_below(sub_i16(first.all, times_256_i16(first.odd)), first.odd, most);
        const uint64_t mask1 = words_below(sub_i16(second.all, times_256_i16(second.odd)), second.odd, most);
        if (mask0) listed = list_bits(mask0, close, v, list, listed);
        if (mask1) listed = list_bits(mask1, close, v + REG, list, listed);
    }
    return listed;
}

static size_t pq_pass(const uint8_t *table, size_t m, int packed, const uint8_t *turned, size_t tiles,
                      const uint8_t *soon, uint16_t limit, uint32_t *list)
{
    return pass(table, m, 0, m == SQUARE && !packed, turned, qk_pq_turned(m), tiles, soon, limit, list);
}

static size_t pq_pass_packed(const uint8_t *table, size_t m, const uint8_t *packed, size_t tiles, uint16_t limit,
                             uint32_t *list)
{
    return pass(table, m, 1, 0, packed, (m + 1) / 2 * QK_PQ_TILE, tiles, NULL, limit, list);
}

#endif
