/* Depthwise convolutions and pools (numerics 22), in registers of AVX2, of AVX-512 or of NEON; after MR and NR.
 *
 * Codes of a channel from four rows of the image become neighbours, 32 bits, so that one instruction multiplies four
 * taps of each lane's channel: vpdpbusd, usdot or sdot; or vpmaddwd if two of the rows are zeros, which makes pairs of
 * int16 of the other two. A pixel and a register of codes are four registers of those. They stay in the L1 cache, where
 * all columns of the kernel, and rows of the result that need the same four, find them.
 *
 * Tile: a few pixels x a register's bytes, in four registers of sums each, which are packed into one of codes: in the
 * order of the image, since packing undoes what interleaving does. */
#ifndef QK_GENERIC_DEPTHWISE_H
#define QK_GENERIC_DEPTHWISE_H

#include "kernels/registers.h"
#include "kernels/generic/conv.h"
#include "kernels/generic/target.h"
#include "runtime/compiler.h"

enum { DEPTHWISE_TILE = GEMM8_MR * NR, DEPTHWISE_PIXELS = REG == 64 ? 4 : 2 };

/* `parts` is a constant where this is inlined; 0: registers are whole. */
static QK_INLINE reg load_pixel(const uint8_t *const *p, const int parts, some_codes some, reg flips)
{
    if (parts == 0) return exclusive(load_reg(*p), flips);
    return exclusive(parts == 1 ? load_some(*p, some) : load_parts(p, parts, some), flips);
}

/* Sums of a pixel, or codes of one in four rows: of the first four of each 16 channels, of the second, ... */
typedef struct {
    reg s0, s1, s2, s3;
} pixel_sums;

typedef const uint8_t *row_pointers[4][QK_MOST_PARTS];

static QK_INLINE void point_to_rows(const qk_seen_rows *rows, const int parts, row_pointers p)
{
    for (int tap = 0; tap < 4; tap++)
        for (int part = 0; part < (parts ? parts : 1); part++) p[tap][part] = rows->from[tap][part];
}

/* A column of four rows, interleaved; pointers move on to the next. */
static QK_INLINE pixel_sums take_column(row_pointers p, const qk_seen_rows *rows, const int parts, some_codes some,
                                        reg flips)
{
    const reg a = load_pixel(p[0], parts, some, flips), b = load_pixel(p[1], parts, some, flips);
    const reg c = load_pixel(p[2], parts, some, flips), d = load_pixel(p[3], parts, some, flips);
    const reg ab = low_u8(a, b), cd = low_u8(c, d), high_ab = high_u8(a, b), high_cd = high_u8(c, d);
    for (int tap = 0; tap < 4; tap++)
        for (int part = 0; part < (parts ? parts : 1); part++) p[tap][part] += rows->stride[tap][part];
    return (pixel_sums){low_u16(ab, cd), high_u16(ab, cd), low_u16(high_ab, high_cd), high_u16(high_ab, high_cd)};
}

static QK_INLINE void interleave_parts(const qk_seen_rows *rows, const int parts, size_t columns, uint8_t flip,
                                       char *to, size_t ld)
{
    const reg flips = all_i8((char)flip);
    const some_codes some = first_codes(rows->channels);
    row_pointers p;
    point_to_rows(rows, parts, p);
    for (size_t i = 0; i < columns; i++, to += ld) {
        const pixel_sums codes = take_column(p, rows, parts, some, flips);
        store_reg(to, codes.s0), store_reg(to + REG, codes.s1);
        store_reg(to + 2 * REG, codes.s2), store_reg(to + 3 * REG, codes.s3);
    }
}

static void interleave_taps(const qk_seen_rows *rows, size_t columns, uint8_t flip, char *to, size_t ld)
{
    if (rows->channels >= REG)
        interleave_parts(rows, 0, columns, flip, to, ld);
    else if (rows->parts == 1)
        interleave_parts(rows, 1, columns, flip, to, ld);
    else if (rows->parts == 2)
        interleave_parts(rows, 2, columns, flip, to, ld);
    else
        interleave_parts(rows, 4, columns, flip, to, ld);
}

#ifndef HAVE_TAP_STARTS
static QK_INLINE const int32_t *tap_starts(const int wide, size_t steps, const char *weights, const int32_t *init,
                                           int32_t *own)
{
    (void)wide, (void)steps, (void)weights, (void)own;
    return init;
}
#endif

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

static QK_INLINE void add_taps(pixel_sums *c, const char *a, pixel_sums w, const int wide)
{
    c->s0 = multiply_taps(c->s0, a, w.s0, wide), c->s1 = multiply_taps(c->s1, a + REG, w.s1, wide);
    c->s2 = multiply_taps(c->s2, a + 2 * REG, w.s2, wide), c->s3 = multiply_taps(c->s3, a + 3 * REG, w.s3, wide);
}

static QK_INLINE pixel_sums load_four(const void *from)
{
    const char *p = from;
    return (pixel_sums){load_reg(p), load_reg(p + REG), load_reg(p + 2 * REG), load_reg(p + 3 * REG)};
}

/* `pixels` and `wide` are constants where this is inlined. */
static QK_INLINE void sum_pixels(const int pixels, const int wide, const qk_steps *steps, const char *a,
                                 const char *weights, const int32_t *init, pixel_sums *sums)
{
    const size_t pixel = steps->pixel, count = steps->count;
    const size_t *offset = steps->offset;
    pixel_sums c0 = load_four(init), c1 = c0, c2 = c0, c3 = c0;
    for (size_t s = 0; s < count; s++, weights += 4 * REG) {
        const pixel_sums w = load_four(weights);
        const char *p = a + offset[s], *p2 = p + 2 * pixel;
        add_taps(&c0, p, w, wide);
        if (pixels > 1) add_taps(&c1, p + pixel, w, wide);
        if (pixels > 2) add_taps(&c2, p2, w, wide);
        if (pixels > 3) add_taps(&c3, p2 + pixel, w, wide);
    }
    sums[0] = c0;
    if (pixels > 1) sums[1] = c1;
    if (pixels > 2) sums[2] = c2;
    if (pixels > 3) sums[3] = c3;
}

static QK_INLINE void spread_sums(reg v, int first, int32_t *c)
{
    int32_t sums[REG / 4];
    store_reg(sums, v);
    for (int i = first, j = 0; i < REG; i += 16, j += 4) memcpy(c + i / NR * DEPTHWISE_TILE + i % NR, sums + j, 16);
}

static QK_INLINE void tile_of_pixels(const int wide, int rows, const qk_steps *steps, const char *a,
                                     const char *weights, const int32_t *init, int32_t *c)
{
    int32_t own[REG];
    init = tap_starts(wide, steps->count, weights, init, own);
    for (int row = 0; row < rows; row++, a += steps->pixel, c += NR) {
        pixel_sums sums;
        sum_pixels(1, wide, steps, a, weights, init, &sums);
        spread_sums(sums.s0, 0, c), spread_sums(sums.s1, 4, c), spread_sums(sums.s2, 8, c), spread_sums(sums.s3, 12, c);
    }
}

static void depthwise_tile(int rows, const qk_steps *steps, const char *a, const char *weights, const int32_t *init,
                           int32_t *c)
{
    if (DEPTHWISE_TAPS == 4 && !steps->wide)
        tile_of_pixels(0, rows, steps, a, weights, init, c);
    else
        tile_of_pixels(1, rows, steps, a, weights, init, c);
}

/* What makes codes of sums, and where they go. */
typedef struct {
    floats m0, m1, m2, m3;
    reg zero;
    int32_t qmin, qmax;
    some_codes some;
} pixel_codes;

static QK_INLINE reg scaled(reg sums, floats multiplier) { return to_i32(product_of(to_floats(sums), multiplier)); }

/* A pixel of each part; `parts` is a constant where this is inlined, 0 for whole registers. */
static QK_INLINE void store_pixel(pixel_sums c, pixel_codes by, const int parts, uint8_t *const *to, size_t at)
{
    const reg n0 = packs_i32(scaled(c.s0, by.m0), scaled(c.s1, by.m1));
    const reg n1 = packs_i32(scaled(c.s2, by.m2), scaled(c.s3, by.m3));
    const reg codes = packed_lanes(adds_i16(n0, by.zero), adds_i16(n1, by.zero), by.qmin, by.qmax);
    if (parts == 0)
        store_reg(to[0] + at, codes);
    else if (parts == 1)
        store_some(to[0] + at, codes, by.some);
    else
        store_parts(to, at, codes, parts, by.some);
}

static QK_INLINE pixel_codes codes_of_line(const qk_coded_line *line)
{
    const float *m = line->multiplier;
    return (pixel_codes){load_floats(m),
                         load_floats(m + REG / 4),
                         load_floats(m + REG / 2),
                         load_floats(m + REG / 4 * 3),
                         all_i16(line->requant->zero_point),
                         line->requant->qmin,
                         line->requant->qmax,
                         first_codes(line->channels)};
}

static QK_INLINE void code_pixels(const int pixels, const int wide, const int parts, const qk_steps *steps,
                                  const char *a, const char *weights, const qk_coded_line *line, size_t at)
{
    const pixel_codes by = codes_of_line(line);
    pixel_sums sums[4];
    sum_pixels(pixels, wide, steps, a, weights, line->init, sums);
    for (int i = 0; i < pixels; i++) store_pixel(sums[i], by, parts, line->to, at + (size_t)i * line->row_stride);
}

/* The last tile of a line overlaps the one before. */
static QK_INLINE void code_line(const int wide, const int parts, size_t pixels, const qk_steps *steps, const char *a,
                                const char *weights, const qk_coded_line *line)
{
    enum { MOST = DEPTHWISE_PIXELS };
    for (size_t i = 0; pixels >= MOST && i < pixels; i += MOST) {
        const size_t first = i + MOST <= pixels ? i : pixels - MOST;
        code_pixels(MOST, wide, parts, steps, a + first * steps->pixel, weights, line, first * line->row_stride);
    }
    for (size_t i = 0; pixels < MOST && i < pixels; i++)
        code_pixels(1, wide, parts, steps, a + i * steps->pixel, weights, line, i * line->row_stride);
}

static QK_INLINE void code_parts(const int wide, size_t pixels, const qk_steps *steps, const char *a,
                                 const char *weights, const qk_coded_line *line)
{
    if (line->channels >= REG)
        code_line(wide, 0, pixels, steps, a, weights, line);
    else if (line->parts == 1)
        code_line(wide, 1, pixels, steps, a, weights, line);
    else if (line->parts == 2)
        code_line(wide, 2, pixels, steps, a, weights, line);
    else
        code_line(wide, 4, pixels, steps, a, weights, line);
}

/* A line whose sums start from what tap_starts says. */
typedef struct {
    qk_coded_line line;
    int32_t init[REG];
} started_line;

static QK_INLINE const qk_coded_line *start_line(const qk_steps *steps, const char *weights, const qk_coded_line *line,
                                                 started_line *own)
{
    const int32_t *init = tap_starts(steps->wide, steps->count, weights, line->init, own->init);
    if (init == line->init) return line;
    own->line = *line, own->line.init = init;
    return &own->line;
}

static void depthwise_codes(size_t pixels, const qk_steps *steps, const char *a, const char *weights,
                            const qk_coded_line *line)
{
    started_line own;
    line = start_line(steps, weights, line, &own);
    if (DEPTHWISE_TAPS == 4 && !steps->wide)
        code_parts(0, pixels, steps, a, weights, line);
    else
        code_parts(1, pixels, steps, a, weights, line);
}

#if DEPTHWISE_TAPS == 4 && VECTOR == 64 /* registers enough */
static QK_INLINE void add_column_taps(pixel_sums *c, pixel_sums a, pixel_sums w)
{
    c->s0 = multiply_add(c->s0, a.s0, w.s0), c->s1 = multiply_add(c->s1, a.s1, w.s1);
    c->s2 = multiply_add(c->s2, a.s2, w.s2), c->s3 = multiply_add(c->s3, a.s3, w.s3);
}

/* Columns go by in registers, as each is wanted by two pixels at most: the last one of a pixel is the first of the
 * next. */
static QK_INLINE void pass_parts(size_t pixels, const qk_seen_rows *rows, const int parts, const qk_columns *columns,
                                 const char *weights, const qk_coded_line *line)
{
    const reg flips = all_i8((char)columns->flip), pad = all_i8((char)(columns->pad ^ columns->flip));
    const pixel_sums outside = {pad, pad, pad, pad};
    const pixel_sums w0 = load_four(weights), w1 = load_four(weights + 4 * REG), w2 = load_four(weights + 8 * REG);
    const pixel_codes by = codes_of_line(line);
    const some_codes some = first_codes(rows->channels);
    const size_t before = columns->before, inside = columns->inside;
    row_pointers p;
    point_to_rows(rows, parts, p);
#define COLUMN(i) ((i) - before < inside ? take_column(p, rows, parts, some, flips) : outside)
    pixel_sums last = COLUMN((size_t)0);
    for (size_t x = 0; x < pixels; x++) {
        pixel_sums c = load_four(line->init);
        add_column_taps(&c, last, w0);
        add_column_taps(&c, COLUMN(2 * x + 1), w1);
        last = COLUMN(2 * x + 2);
        add_column_taps(&c, last, w2);
        store_pixel(c, by, parts, line->to, x * line->row_stride);
    }
#undef COLUMN
}

static void depthwise_pass(size_t pixels, const qk_seen_rows *rows, const qk_columns *columns, const char *weights,
                           const qk_coded_line *line)
{
    if (rows->channels >= REG)
        pass_parts(pixels, rows, 0, columns, weights, line);
    else if (rows->parts == 1)
        pass_parts(pixels, rows, 1, columns, weights, line);
    else if (rows->parts == 2)
        pass_parts(pixels, rows, 2, columns, weights, line);
    else
        pass_parts(pixels, rows, 4, columns, weights, line);
}
#endif

/* ---- pools ---- */

/* Codes of so many channels, in a register or less; the last register overlaps the one before. */
static QK_INLINE reg load_channels(const uint8_t *p, const int whole, some_codes some, reg flips)
{
    return exclusive(whole ? load_reg(p) : load_some(p, some), flips);
}

static QK_INLINE void store_channels(uint8_t *p, reg v, const int whole, some_codes some)
{
    if (whole)
        store_reg(p, v);
    else
        store_some(p, v, some);
}

static QK_INLINE void max_run(const qk_windows *of, const int whole)
{
    const some_codes some = first_codes(of->channels);
    const reg flips = all_i8((char)of->flip);
    const uint8_t *const *from = of->from;
    const size_t count = of->count, channels = of->channels, step = of->step;
    uint8_t *to = of->to;
    for (size_t window = 0; window < of->windows; window++, to += channels)
        for (size_t i = 0; i < channels; i += REG) {
            const size_t first = whole && i + REG > channels ? channels - REG : i, at = window * step + first;
            reg most = zero_reg();
            for (size_t tap = 0; tap < count; tap++)
                most = max_u8(most, load_channels(from[tap] + at, whole, some, flips));
            store_channels(to + first, exclusive(most, flips), whole, some);
        }
}

static void max_windows(const qk_windows *of)
{
    if (of->channels >= REG)
        max_run(of, 1);
    else
        max_run(of, 0);
}

/* Adds codes of up to 256 pixels, whose sums fit 16 bits: 256 * 255 < 2^16. */
static QK_INLINE pixel_sums add_pixels(pixel_sums c, const uint8_t *const *from, size_t count, size_t at,
                                       const int whole, some_codes some, reg flips)
{
    const reg none = zero_reg();
    reg low = none, high = none;
    for (size_t tap = 0; tap < count; tap++) {
        const reg codes = load_channels(from[tap] + at, whole, some, flips);
        low = add_i16(low, low_u8(codes, none)), high = add_i16(high, high_u8(codes, none));
    }
    c.s0 = add_i32(c.s0, low_u16(low, none)), c.s1 = add_i32(c.s1, high_u16(low, none));
    c.s2 = add_i32(c.s2, low_u16(high, none)), c.s3 = add_i32(c.s3, high_u16(high, none));
    return c;
}

/* Rounded, at most hi: what is too low for int32 becomes INT32_MIN, which is low enough. */
static QK_INLINE reg averages(reg sums, floats multiplier, floats hi)
{
    return to_i32(smaller_of(product_of(to_floats(sums), multiplier), hi));
}

static QK_INLINE void average_run(const qk_windows *of, const int whole)
{
    enum { PIXELS = 256 };
    const some_codes some = first_codes(of->channels);
    const int32_t zero_point = of->requant->zero_point, qmin = of->requant->qmin, qmax = of->requant->qmax;
    const int32_t start = -of->zeros;
    const reg flips = all_i8((char)of->flip), zero = all_i16(zero_point), starts = all_i32_at(&start);
    const floats multiplier = all_floats(of->multiplier), hi = all_floats((float)(qmax - zero_point));
    const size_t channels = of->channels;
    size_t window = 0, channel = 0;
    while (window < of->windows) {
        const size_t first = whole && channel + REG > channels ? channels - REG : channel;
        pixel_sums c = {starts, starts, starts, starts};
        for (size_t tap = 0; tap < of->count; tap += PIXELS)
            c = add_pixels(c, of->from + tap, min_size(of->count - tap, PIXELS), window * of->step + first, whole, some,
                           flips);
        const reg n0 = packs_i32(averages(c.s0, multiplier, hi), averages(c.s1, multiplier, hi));
        const reg n1 = packs_i32(averages(c.s2, multiplier, hi), averages(c.s3, multiplier, hi));
        const reg codes = packed_lanes(adds_i16(n0, zero), adds_i16(n1, zero), qmin, qmax);
        store_channels(of->to + window * channels + first, codes, whole, some);
        channel += REG;
        if (channel >= channels) channel = 0, window++;
    }
}

static void average_windows(const qk_windows *of)
{
    if (of->channels >= REG)
        average_run(of, 1);
    else
        average_run(of, 0);
}

#endif
