/* Depthwise convolutions (numerics 22), in registers of AVX2 or of AVX-512; after avx2.h or avx512.h, MR and NR.
 *
 * Codes of a channel from four rows of the image become neighbours, 32 bits, so that one instruction multiplies four
 * taps of each lane's channel: vpdpbusd, or vpmaddwd if two of the rows are zeros, which makes pairs of int16 of the
 * other two. A pixel and a register of codes are four registers of those. They stay in the L1 cache, where all columns
 * of the kernel, and rows of the result that need the same four, find them.
 *
 * Tile: mr pixels x a register's lanes; mr accumulators and the weights of a step. */
#ifndef QK_DEPTHWISE_H
#define QK_DEPTHWISE_H

#include "kernels/generic/conv.h"
#include "runtime/compiler.h"
#if VECTOR == 64
#include "kernels/x86/avx512.h"
#else
#include "kernels/x86/avx2.h"
#endif

enum { DEPTHWISE_LANES = REG / 4, DEPTHWISE_TILE = GEMM8_MR * NR };

/* A pixel of four rows, whose first `parts` registers of neighbours are wanted. */
static QK_INLINE void interleave_pixel(reg a, reg b, reg c, reg d, char *to, const int parts)
{
    a = spread_lanes(a), b = spread_lanes(b), c = spread_lanes(c), d = spread_lanes(d);
    const reg ab = low_u8(a, b), cd = low_u8(c, d);
    store_reg(to, low_u16(ab, cd));
    if (parts == 1) return;
    store_reg(to + REG, high_u16(ab, cd));
    if (parts == 2) return;
    const reg high_ab = high_u8(a, b), high_cd = high_u8(c, d);
    store_reg(to + 2 * REG, low_u16(high_ab, high_cd)), store_reg(to + 3 * REG, high_u16(high_ab, high_cd));
}

/* `parts` is a constant where this is inlined: 4 if there are as many channels as a register has codes. */
static QK_INLINE void interleave_parts(const uint8_t *const *rows, const size_t *stride, size_t columns,
                                       size_t channels, uint8_t flip, char *to, size_t ld, const int parts)
{
    const uint8_t *p0 = rows[0], *p1 = rows[1], *p2 = rows[2], *p3 = rows[3];
    const size_t s0 = stride[0], s1 = stride[1], s2 = stride[2], s3 = stride[3];
    const reg flips = all_i8((char)flip);
    const some_codes some = first_codes(channels);
    for (size_t i = 0; i < columns; i++, to += ld, p0 += s0, p1 += s1, p2 += s2, p3 += s3)
        if (channels >= REG)
            interleave_pixel(exclusive(load_reg(p0), flips), exclusive(load_reg(p1), flips),
                             exclusive(load_reg(p2), flips), exclusive(load_reg(p3), flips), to, 4);
        else
            interleave_pixel(exclusive(load_some(p0, some), flips), exclusive(load_some(p1, some), flips),
                             exclusive(load_some(p2, some), flips), exclusive(load_some(p3, some), flips), to, parts);
}

static void interleave_taps(const uint8_t *const *rows, const size_t *stride, size_t columns, size_t channels,
                            uint8_t flip, char *to, size_t ld)
{
    if (channels > REG / 2)
        interleave_parts(rows, stride, columns, channels, flip, to, ld, 4);
    else if (channels > REG / 4)
        interleave_parts(rows, stride, columns, channels, flip, to, ld, 2);
    else
        interleave_parts(rows, stride, columns, channels, flip, to, ld, 1);
}

static QK_INLINE reg multiply_taps(reg sum, const char *codes, reg weights, const int wide)
{
    const reg a = load_reg(codes);
#if DEPTHWISE_TAPS == 4
    if (!wide) return multiply_add(sum, a, weights);
#else
    (void)wide;
#endif
    return add_to_i32(sum, madd_i16(a, weights));
}

/* `rows` and `wide` are constants where this is inlined. */
static QK_INLINE void depthwise_rows(const int rows, const int wide, const qk_steps *steps, const char *a,
                                     const char *weights, const int32_t *init, int32_t *c)
{
    const size_t pixel = steps->pixel, count = steps->count;
    const size_t *offset = steps->offset;
    const reg start = load_reg(init);
    reg c0 = start, c1 = start, c2 = start, c3 = start, c4 = start, c5 = start;
    reg c6 = start, c7 = start, c8 = start, c9 = start, ca = start, cb = start;
    for (size_t s = 0; s < count; s++, weights += 4 * REG) {
        const reg w = load_reg(weights);
        const char *p = a + offset[s], *p3 = p + 3 * pixel, *p6 = p + 6 * pixel, *p9 = p3 + 6 * pixel;
        c0 = multiply_taps(c0, p, w, wide);
        if (rows > 1) c1 = multiply_taps(c1, p + pixel, w, wide);
        if (rows > 2) c2 = multiply_taps(c2, p + 2 * pixel, w, wide);
        if (rows > 3) c3 = multiply_taps(c3, p3, w, wide);
        if (rows > 4) c4 = multiply_taps(c4, p3 + pixel, w, wide);
        if (rows > 5) c5 = multiply_taps(c5, p3 + 2 * pixel, w, wide);
        if (rows > 6) c6 = multiply_taps(c6, p6, w, wide);
        if (rows > 7) c7 = multiply_taps(c7, p6 + pixel, w, wide);
        if (rows > 8) c8 = multiply_taps(c8, p6 + 2 * pixel, w, wide);
        if (rows > 9) c9 = multiply_taps(c9, p9, w, wide);
        if (rows > 10) ca = multiply_taps(ca, p9 + pixel, w, wide);
        if (rows > 11) cb = multiply_taps(cb, p9 + 2 * pixel, w, wide);
    }
    store_reg(c, c0);
    if (rows > 1) store_reg(c + NR, c1);
    if (rows > 2) store_reg(c + 2 * NR, c2);
    if (rows > 3) store_reg(c + 3 * NR, c3);
    if (rows > 4) store_reg(c + 4 * NR, c4);
    if (rows > 5) store_reg(c + 5 * NR, c5);
    if (rows > 6) store_reg(c + 6 * NR, c6);
    if (rows > 7) store_reg(c + 7 * NR, c7);
    if (rows > 8) store_reg(c + 8 * NR, c8);
    if (rows > 9) store_reg(c + 9 * NR, c9);
    if (rows > 10) store_reg(c + 10 * NR, ca);
    if (rows > 11) store_reg(c + 11 * NR, cb);
}

#if GEMM8_MR == 12
#define DEPTHWISE_ROWS ROWS_12
#else
#define DEPTHWISE_ROWS ROWS_6
#endif

static void depthwise_tile(int rows, size_t channels, const qk_steps *steps, const char *a, const char *weights,
                           const int32_t *init, int32_t *c)
{
    enum { PARTS = NR / DEPTHWISE_LANES }; /* of a tile */
    for (size_t i = 0; i * DEPTHWISE_LANES < channels; i++, a += REG, weights += REG, init += DEPTHWISE_LANES) {
        int32_t *to = c + i / PARTS * DEPTHWISE_TILE + i % PARTS * DEPTHWISE_LANES;
        if (DEPTHWISE_TAPS == 4 && !steps->wide) {
            DEPTHWISE_ROWS(rows, depthwise_rows, 0, steps, a, weights, init, to);
        } else {
            DEPTHWISE_ROWS(rows, depthwise_rows, 1, steps, a, weights, init, to);
        }
    }
}

#endif
