/* Products with small weights without VNNI (numerics 6), in registers of AVX2 or of AVX-512.
 *
 * vpmaddubsw multiplies bytes, twice as many as vpmaddwd, and saturates the sums of two products to 16 bits. A step is
 * 4 codes of k x HALF columns (8 or 16), one register of b. Packing proves of each step, and of pairs of steps, what
 * fits 16 bits (numerics 6):
 *
 *     plain     vpmaddubsw(a, b); then vpmaddwd by ones, vpaddd: 3 instructions for 32 products
 *     centred   vpmaddubsw(|b|, a ^ flip), a factor of 127 - a or a - 128 with the sign of b: 4, and fits always
 *
 * Two steps whose products fit together are added (vpaddw) before they are widened: 5 or 7 instructions for 64
 * products. On Zen 4 the tile does 130 (plain pairs), 108 (plain), 98 (centred pairs) and 86 GMAC/s (centred; vpmaddwd
 * on int16 as well), in registers of 32 bytes. A panel has its own pairs and its own order of k, which costs an index
 * for each step, as 4 codes of a row of a are one broadcast wherever they lie. Tile: 8 rows x HALF columns, 8
 * accumulators, 4 registers for two steps of b, 2 for products, 1 of ones.
 *
 * A panel: for each chunk of 256 steps its left columns, then its right ones, steps in the order in which they are
 * taken; NR starting sums; for each half and chunk how many steps are of which kind; for each half the steps' numbers
 * in their order: plain pairs, plain steps, centred pairs, centred steps. */
#ifndef QK_MADDUBS_H
#define QK_MADDUBS_H

#include <string.h>

#include "kernels/generic/gemm8.h"
#include "kernels/generic/table.h"
#include "kernels/kernels.h"
#include "runtime/compiler.h"
#if VECTOR == 64
#include "kernels/x86/avx512.h"
#else
#include "kernels/x86/avx2.h"
#endif

enum { SMALL_KR = 4, HALF = NR / 2, SMALL_STEP = HALF * SMALL_KR, CHUNK = 256, PLAIN_LIMIT = 128, CENTRED_LIMIT = 256 };

typedef struct {
    uint16_t plain_pairs, plain, centred_pairs, centred; /* how many pairs of steps, and steps alone */
} kinds;

static size_t chunks_of(size_t steps) { return (steps + CHUNK - 1) / CHUNK; }

static int32_t *panel_start(const int8_t *panel, size_t steps) { return (int32_t *)(panel + 2 * steps * SMALL_STEP); }

static kinds *panel_kinds(const int8_t *panel, size_t steps, int half)
{
    return (kinds *)(panel + 2 * steps * SMALL_STEP + NR * sizeof(int32_t)) + (half ? chunks_of(steps) : 0);
}

static uint8_t *panel_order(const int8_t *panel, size_t steps, int half)
{
    return (uint8_t *)panel_kinds(panel, steps, 0) + 2 * chunks_of(steps) * sizeof(kinds) + (half ? steps : 0);
}

static size_t small_gemm8_panel_bytes(size_t steps)
{
    if (steps > SIZE_MAX / (4 * SMALL_STEP)) return SIZE_MAX;
    const size_t bytes = 2 * steps * SMALL_STEP + NR * sizeof(int32_t) + 2 * (chunks_of(steps) * sizeof(kinds) + steps);
    return (bytes + 63) / 64 * 64;
}

/* Per pair of codes of a step: `signed_sums` has the sums of its positive codes, then those of the magnitudes of its
 * negative ones, as bytes; `sizes` the sums of both, at most 256. */
typedef struct {
    reg signed_sums, sizes;
} weight;

static inline weight weigh(reg codes)
{
    const reg one = all_i8(1), size = abs_i8(codes), sign = negative_i8(codes);
    const reg positive = maddubs(but_not(sign, size), one);
    const reg negative = maddubs(both(sign, size), one);
    return (weight){pack_u16(positive, negative), add_i16(positive, negative)};
}

static inline int fits_plain(const weight *s, const weight *t)
{
    return none_above_u8(adds_u8(s->signed_sums, t->signed_sums), PLAIN_LIMIT);
}

static inline int fits_centred(const weight *s, const weight *t)
{
    return none_above_u16(add_i16(s->sizes, t->sizes), CENTRED_LIMIT);
}

/* Pairs the steps in `from` greedily: pairs go to `order`, the rest to `rest`. Returns how many pairs; *count becomes
 * that of the rest. A step waits for one that fits; few wait at a time, which bounds the search, and all are tried,
 * which spares branches. */
static QK_INLINE size_t pair_steps(const weight *w, const uint8_t *from, size_t *count,
                                   int (*fits)(const weight *, const weight *), uint8_t *order, uint8_t *rest)
{
    enum { WAITING = 8 };
    uint8_t waiting[WAITING];
    size_t pairs = 0, left = 0;
    int n = 0;
    for (size_t i = 0; i < *count; i++) {
        const uint8_t s = from[i];
        unsigned found = 0;
        for (int j = 0; j < n; j++) found |= (unsigned)fits(w + s, w + waiting[j]) << j;
        if (found) {
            const int j = __builtin_ctz(found);
            order[2 * pairs] = waiting[j], order[2 * pairs + 1] = s, pairs++;
            waiting[j] = waiting[--n];
        } else if (n < WAITING) {
            waiting[n++] = s;
        } else {
            rest[left++] = waiting[i % WAITING];
            waiting[i % WAITING] = s;
        }
    }
    for (int j = 0; j < n; j++) rest[left++] = waiting[j];
    *count = left;
    return pairs;
}

/* Moves steps that fit alone to `order`. */
static size_t take_plain(const weight *w, uint8_t *steps, size_t *count, uint8_t *order)
{
    const weight nothing = {zero_reg(), zero_reg()};
    size_t taken = 0, left = 0;
    for (size_t i = 0; i < *count; i++) {
        const uint8_t s = steps[i];
        const int fits = fits_plain(w + s, &nothing);
        order[taken] = steps[left] = s;
        taken += (size_t)fits, left += (size_t)!fits;
    }
    *count = left;
    return taken;
}

/* What the centred products of a step lack: 128 |b| where b >= 0, -127 |b| elsewhere; or 128 b, and |b| more where b <
 * 0. */
static inline reg centre_term(reg codes)
{
    const reg one = all_i16(1), sign = negative_i8(codes);
    const reg negative = maddubs(both(sign, abs_i8(codes)), all_i8(1));
    const reg sum = maddubs(all_i8(1), codes);
    return add_i32(times_128_i32(madd_i16(sum, one)), madd_i16(negative, one));
}

/* Chooses kinds and order of a chunk's steps for HALF columns, of which `from` holds the codes (2 * SMALL_STEP apart),
 * and writes them to `to` in that order. Adds to `start` what the centred products lack. */
static kinds plan_chunk(const int8_t *from, size_t steps, uint8_t *order, int8_t *to, int32_t *start)
{
    weight w[CHUNK];
    uint8_t left[CHUNK], rest[CHUNK];
    size_t count = steps;
    kinds k;
    for (size_t s = 0; s < steps; s++) {
        w[s] = weigh(load_reg(from + s * 2 * SMALL_STEP));
        left[s] = (uint8_t)s;
    }
    k.plain_pairs = (uint16_t)pair_steps(w, left, &count, fits_plain, order, rest);
    order += 2 * k.plain_pairs;
    k.plain = (uint16_t)take_plain(w, rest, &count, order);
    order += k.plain;
    reg sum = load_reg(start);
    for (size_t i = 0; i < count; i++) {
        const reg codes = load_reg(from + rest[i] * 2 * SMALL_STEP);
        sum = add_i32(sum, centre_term(codes));
    }
    store_reg(start, sum);
    k.centred_pairs = (uint16_t)pair_steps(w, rest, &count, fits_centred, order, left);
    k.centred = (uint16_t)count;
    memcpy(order + 2 * k.centred_pairs, left, count);
    order -= 2 * k.plain_pairs + k.plain;
    for (size_t i = 0; i < steps; i++) memcpy(to + i * SMALL_STEP, from + order[i] * 2 * SMALL_STEP, SMALL_STEP);
    return k;
}

static int64_t small_gemm8_pack_panel(const qk_panel_source *s, size_t cols, int8_t *panel, int32_t *colsum)
{
    const size_t steps = (s->k + SMALL_KR - 1) / SMALL_KR;
    int8_t chunk[2 * CHUNK * SMALL_STEP] __attribute__((aligned(REG)));
    int32_t *start = panel_start(panel, steps);
    memset(start, 0, NR * sizeof *start);
    for (size_t first = 0; first < steps && !qk_panel_stopped(s); first += CHUNK) {
        const size_t count = steps - first < CHUNK ? steps - first : CHUNK;
        interleave(s, first * SMALL_KR, count, cols, chunk, SMALL_KR);
        for (int half = 0; half < 2; half++) {
            uint8_t *order = panel_order(panel, steps, half) + first;
            int8_t *to = panel + (2 * first + (half ? count : 0)) * SMALL_STEP;
            panel_kinds(panel, steps, half)[first / CHUNK] =
                plan_chunk(chunk + half * SMALL_STEP, count, order, to, start + half * HALF);
        }
    }
    return sum_columns(s, cols, colsum);
}

_Static_assert(QK_UNPACK_ROWS % (CHUNK * SMALL_KR) == 0, "rows are in order chunk by chunk only");

/* Where the codes of step `order[i]` are: those of half 0 come first in each chunk. */
static void small_gemm8_unpack_panel(const int8_t *panel, size_t k, size_t top, size_t cols, uint8_t flip, uint8_t *to,
                                     size_t row_stride)
{
    const size_t steps = (k + SMALL_KR - 1) / SMALL_KR;
    for (size_t i = top / SMALL_KR; i < steps && i < (top + QK_UNPACK_ROWS) / SMALL_KR; i++)
        for (size_t col = 0; col < cols; col++) {
            const size_t half = col / HALF, first = i / CHUNK * CHUNK,
                         count = steps - first < CHUNK ? steps - first : CHUNK;
            const int8_t *codes =
                panel + first * 2 * SMALL_STEP + (half * count + i % CHUNK) * SMALL_STEP + col % HALF * SMALL_KR;
            const size_t row = (first + panel_order(panel, steps, (int)half)[i]) * SMALL_KR;
            for (size_t j = 0; j < SMALL_KR && row + j < k; j++)
                to[(row + j) * row_stride + col] = (uint8_t)codes[j] ^ flip;
        }
}

static QK_INLINE reg add_pairs(reg c, reg products)
{
    reg ones = all_i16(1);
    return add_to_i32(c, madd_i16(products, ones));
}

/* c + a b, a being the unsigned factor, of two steps. */
static QK_INLINE reg plain_pair(reg c, const uint8_t *a0, const uint8_t *a1, reg b0, reg b1)
{
    return add_pairs(c, add_i16(maddubs(all_i32_at(a0), b0), maddubs(all_i32_at(a1), b1)));
}

static QK_INLINE reg plain(reg c, const uint8_t *a, reg b) { return add_pairs(c, maddubs(all_i32_at(a), b)); }

/* The factors of a centred product: |b|, and what turns a into a - 128 where b >= 0, into 127 - a elsewhere. */
typedef struct {
    reg size, flip;
} centred_codes;

static QK_INLINE centred_codes centre(const int8_t *p)
{
    const reg b = load_reg(p), sign = negative_i8(b);
    return (centred_codes){abs_i8(b), exclusive(sign, all_i8(-128))};
}

static QK_INLINE reg centred_products(const uint8_t *a, centred_codes b)
{
    return maddubs(b.size, exclusive(all_i32_at(a), b.flip));
}

static QK_INLINE reg centred_pair(reg c, const uint8_t *a0, const uint8_t *a1, centred_codes b0, centred_codes b1)
{
    return add_pairs(c, add_i16(centred_products(a0, b0), centred_products(a1, b1)));
}

static QK_INLINE reg centred(reg c, const uint8_t *a, centred_codes b) { return add_pairs(c, centred_products(a, b)); }

/* A chunk of rows x HALF columns, added to `from` (ldf between rows). `rows` is a constant where this is inlined: the
 * accumulators of absent rows vanish. */
static QK_INLINE void small_half(const int rows, const uint8_t *a, size_t lda, const int8_t *codes, kinds k,
                                 const uint8_t *order, const int32_t *from, size_t ldf, int32_t *c, size_t ldc)
{
    const size_t lda3 = 3 * lda, lda5 = 5 * lda, lda7 = 7 * lda;
    reg c0, c1, c2, c3, c4, c5, c6, c7;
    c0 = load_reg(from);
    if (rows > 1) c1 = load_reg(from + 1 * ldf);
    if (rows > 2) c2 = load_reg(from + 2 * ldf);
    if (rows > 3) c3 = load_reg(from + 3 * ldf);
    if (rows > 4) c4 = load_reg(from + 4 * ldf);
    if (rows > 5) c5 = load_reg(from + 5 * ldf);
    if (rows > 6) c6 = load_reg(from + 6 * ldf);
    if (rows > 7) c7 = load_reg(from + 7 * ldf);
    for (int i = k.plain_pairs; i; i--, order += 2, codes += 2 * SMALL_STEP) {
        const uint8_t *s = a + order[0] * SMALL_KR, *t = a + order[1] * SMALL_KR;
        const reg b0 = load_reg(codes);
        const reg b1 = load_reg(codes + SMALL_STEP);
        c0 = plain_pair(c0, s, t, b0, b1);
        if (rows > 1) c1 = plain_pair(c1, s + lda, t + lda, b0, b1);
        if (rows > 2) c2 = plain_pair(c2, s + 2 * lda, t + 2 * lda, b0, b1);
        if (rows > 3) c3 = plain_pair(c3, s + lda3, t + lda3, b0, b1);
        if (rows > 4) c4 = plain_pair(c4, s + 4 * lda, t + 4 * lda, b0, b1);
        if (rows > 5) c5 = plain_pair(c5, s + lda5, t + lda5, b0, b1);
        if (rows > 6) c6 = plain_pair(c6, s + 2 * lda3, t + 2 * lda3, b0, b1);
        if (rows > 7) c7 = plain_pair(c7, s + lda7, t + lda7, b0, b1);
    }
    for (int i = k.plain; i; i--, order++, codes += SMALL_STEP) {
        const uint8_t *s = a + *order * SMALL_KR;
        const reg b = load_reg(codes);
        c0 = plain(c0, s, b);
        if (rows > 1) c1 = plain(c1, s + lda, b);
        if (rows > 2) c2 = plain(c2, s + 2 * lda, b);
        if (rows > 3) c3 = plain(c3, s + lda3, b);
        if (rows > 4) c4 = plain(c4, s + 4 * lda, b);
        if (rows > 5) c5 = plain(c5, s + lda5, b);
        if (rows > 6) c6 = plain(c6, s + 2 * lda3, b);
        if (rows > 7) c7 = plain(c7, s + lda7, b);
    }
    for (int i = k.centred_pairs; i; i--, order += 2, codes += 2 * SMALL_STEP) {
        const uint8_t *s = a + order[0] * SMALL_KR, *t = a + order[1] * SMALL_KR;
        const centred_codes b0 = centre(codes), b1 = centre(codes + SMALL_STEP);
        c0 = centred_pair(c0, s, t, b0, b1);
        if (rows > 1) c1 = centred_pair(c1, s + lda, t + lda, b0, b1);
        if (rows > 2) c2 = centred_pair(c2, s + 2 * lda, t + 2 * lda, b0, b1);
        if (rows > 3) c3 = centred_pair(c3, s + lda3, t + lda3, b0, b1);
        if (rows > 4) c4 = centred_pair(c4, s + 4 * lda, t + 4 * lda, b0, b1);
        if (rows > 5) c5 = centred_pair(c5, s + lda5, t + lda5, b0, b1);
        if (rows > 6) c6 = centred_pair(c6, s + 2 * lda3, t + 2 * lda3, b0, b1);
        if (rows > 7) c7 = centred_pair(c7, s + lda7, t + lda7, b0, b1);
    }
    for (int i = k.centred; i; i--, order++, codes += SMALL_STEP) {
        const uint8_t *s = a + *order * SMALL_KR;
        const centred_codes b = centre(codes);
        c0 = centred(c0, s, b);
        if (rows > 1) c1 = centred(c1, s + lda, b);
        if (rows > 2) c2 = centred(c2, s + 2 * lda, b);
        if (rows > 3) c3 = centred(c3, s + lda3, b);
        if (rows > 4) c4 = centred(c4, s + 4 * lda, b);
        if (rows > 5) c5 = centred(c5, s + lda5, b);
        if (rows > 6) c6 = centred(c6, s + 2 * lda3, b);
        if (rows > 7) c7 = centred(c7, s + lda7, b);
    }
    store_reg(c, c0);
    if (rows > 1) c += ldc, store_reg(c, c1);
    if (rows > 2) c += ldc, store_reg(c, c2);
    if (rows > 3) c += ldc, store_reg(c, c3);
    if (rows > 4) c += ldc, store_reg(c, c4);
    if (rows > 5) c += ldc, store_reg(c, c5);
    if (rows > 6) c += ldc, store_reg(c, c6);
    if (rows > 7) c += ldc, store_reg(c, c7);
}

/* A chunk at a time, so that codes are read from begin to end. */
static QK_INLINE void small_rows(const int rows, size_t steps, const uint8_t *a, size_t lda, const int8_t *panel,
                                 const int32_t *init, int32_t *c, size_t ldc)
{
    if (REG == 64) ask_for_rows(rows, c, ldc, NR); /* AVX2 lacks registers for it */
    const kinds *left = panel_kinds(panel, steps, 0), *right = panel_kinds(panel, steps, 1);
    const uint8_t *order = panel_order(panel, steps, 0);
    size_t ldf = 0;
    for (size_t first = 0; first < steps; first += CHUNK, a += CHUNK * SMALL_KR, order += CHUNK, left++, right++) {
        const size_t count = steps - first < CHUNK ? steps - first : CHUNK;
        small_half(rows, a, lda, panel, *left, order, init, ldf, c, ldc);
        small_half(rows, a, lda, panel + count * SMALL_STEP, *right, order + steps, init + HALF, ldf, c + HALF, ldc);
        panel += 2 * count * SMALL_STEP;
        init = c, ldf = ldc;
    }
}

static void small_gemm8_tile(int rows, size_t steps, const void *a, size_t lda, const int8_t *panel,
                             const int32_t *init, int32_t *c, size_t ldc)
{
    const int32_t *start = panel_start(panel, steps);
    int32_t from[NR];
    for (int j = 0; j < NR; j++) from[j] = (int32_t)((uint32_t)init[j] + (uint32_t)start[j]);
    ROWS_8(rows, small_rows, steps, a, lda, panel, from, c, ldc);
}

static void small_gemm8_pack_row(const uint8_t *a, size_t n, size_t n_pad, uint8_t flip, void *to)
{
    pack_row_bytes(a, n, n_pad, flip, to);
}

/* ---- the table ---- */

enum { SMALL_GEMM8_MR = 8, SMALL_NR = NR, SMALL_A_BYTES = 1, SMALL_GEMM8_ASK_ROWS = 8, SMALL_GEMM8_BLOCK_BYTES = 0 };

#undef SIZE
#undef PANEL
#undef OPTIONAL
#define SIZE(size, value) .size = SMALL_##value,
#define PANEL(result, name, arguments) .name = small_##name,
#define OPTIONAL(result, name, arguments, value) .name = NULL,
#ifndef SMALL_TABLE /* others borrow it under another name */
#define SMALL_TABLE static const qk_gemm8_kernels gemm8_small
#endif
SMALL_TABLE = {
#include "kernels/families/gemm8.def"
};

#endif
