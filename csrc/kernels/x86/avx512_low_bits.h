/* Weights of 2 and 3 bits by AVX-512 VNNI (numerics 12).
 *
 * A line of 64 bytes holds codes of 16 columns and of the 16 next ones. Codes of 2 bits that stand for themselves are
 * `low` and `4 high`, by a mask each; others are looked up by vpshufb, whose index of 4 bits has room for two codes, so
 * that one index, without a shift, finds `low` in one table and `high` in another. Where columns have levels of their
 * own, a lane of 16 bytes has 4 columns of 4 levels: the other two bits of the index are the column. Levels 4 to 7 of 3
 * bits are in a second table. Tile: 4 rows x 32 columns as that of 4 bits. */
#ifndef QK_AVX512_LOW_BITS_H
#define QK_AVX512_LOW_BITS_H

#include "kernels/low_bits.h"
#include "kernels/x86/avx512_gemm4.h"

/* What codes stand for: themselves, or in one row of blocks that are not too long, as they lie in their bytes; levels
 * that all columns share, by vpshufb or, 3 bits in a table of 64 bytes, by vpermb; levels of each column. */
enum { NUMBERS, IN_PLACE, SHARED, SHARED_WIDE, BY_COLUMN };

enum { LOW_AHEAD = 8192 };
enum { MOST_LOW_STEPS = 16 * 1024 /* of a block IN_PLACE: 4 * 16 * 1024 * 192 * 127 < 2^31 */ };

/* Tables of a panel: of the low and of the high columns; the last two, of BY_COLUMN alone, of levels 4 to 7. */
typedef struct {
    __m512i low, high, low4, high4;
} low_tables;

/* Levels at `from`, a lane of 4 columns each; of 2 bits the index of the high columns is 4 code + column. */
static QK_INLINE low_tables column_tables(const int bits, const uint8_t *from, __m512i flip)
{
    const __m512i turned = _mm512_broadcast_i32x4(_mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
    const __m512i low = _mm512_xor_si512(_mm512_loadu_si512(from), flip);
    const __m512i high = _mm512_xor_si512(_mm512_loadu_si512(from + 64), flip);
    if (bits == 2) return (low_tables){low, _mm512_shuffle_epi8(high, turned), low, high};
    return (low_tables){low, high, _mm512_xor_si512(_mm512_loadu_si512(from + QK_LOW_LEVELS), flip),
                        _mm512_xor_si512(_mm512_loadu_si512(from + QK_LOW_LEVELS + 64), flip)};
}

/* 16 bytes looked up by codes; of 2 bits, high codes are bits 2 and 3 of the index, of 3 bits in a wide one 3 to 5. */
static QK_INLINE low_tables shared_tables(const int bits, const int wide, __m128i levels)
{
    const __m128i low = _mm_setr_epi8(0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3);
    const __m128i high = _mm_setr_epi8(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3);
    const __m512i all = _mm512_broadcast_i32x4(levels);
    if (bits == 3 && wide) {
        const uint64_t ones = 0x0101010101010101;
        const __m512i last = _mm512_setr_epi64(0, ones, 2 * ones, 3 * ones, 4 * ones, 5 * ones, 6 * ones, 7 * ones);
        const __m512i table = _mm512_shuffle_epi8(all, _mm512_set1_epi64(0x0706050403020100));
        return (low_tables){table, _mm512_shuffle_epi8(all, last), table, table};
    }
    if (bits == 3) return (low_tables){all, all, all, all};
    const __m512i first = _mm512_broadcast_i32x4(_mm_shuffle_epi8(levels, low));
    return (low_tables){first, _mm512_broadcast_i32x4(_mm_shuffle_epi8(levels, high)), first, first};
}

/* x where `mask` has ones, else y. */
static inline __m512i select_bits(__m512i mask, __m512i x, __m512i y)
{
    return _mm512_ternarylogic_epi32(mask, x, y, 0xca);
}

/* The columns of bytes in a lane, times `by`. */
static QK_INLINE __m512i lane_columns(const int by)
{
    return _mm512_mullo_epi32(_mm512_broadcast_i32x4(_mm_setr_epi32(0, 1, 2, 3)), _mm512_set1_epi32(0x01010101 * by));
}

/* The two codes in the low bits of each byte. */
static QK_INLINE step_bytes decode_two_bits(__m512i v, const int kind, const low_tables *t)
{
    const __m512i three = _mm512_set1_epi8(3), twelve = _mm512_set1_epi8(12);
    if (kind == NUMBERS) return (step_bytes){_mm512_and_si512(v, three), _mm512_and_si512(v, twelve)};
    if (kind == SHARED) {
        const __m512i both = _mm512_and_si512(v, _mm512_set1_epi8(15));
        return (step_bytes){_mm512_shuffle_epi8(t->low, both), _mm512_shuffle_epi8(t->high, both)};
    }
    const __m512i low = select_bits(three, v, lane_columns(4)), high = select_bits(twelve, v, lane_columns(1));
    return (step_bytes){_mm512_shuffle_epi8(t->low, low), _mm512_shuffle_epi8(t->high, high)};
}

/* The level of the code in the low bits of each byte. */
static QK_INLINE __m512i level_of_three_bits(__m512i v, const int kind, __m512i table, __m512i table4)
{
    if (kind == SHARED) return _mm512_shuffle_epi8(table, _mm512_and_si512(v, _mm512_set1_epi8(7)));
    const __m512i index = select_bits(_mm512_set1_epi8(3), v, lane_columns(4));
    const __mmask64 above = _mm512_test_epi8_mask(v, _mm512_set1_epi8(4));
    return _mm512_mask_shuffle_epi8(_mm512_shuffle_epi8(table, index), above, table4, index);
}

static QK_INLINE step_bytes decode_three_bits(__m512i v, const int kind, const low_tables *t)
{
    if (kind == SHARED_WIDE) return (step_bytes){byte_of(v, PERMUTED, t->low), byte_of(v, PERMUTED, t->high)};
    return (step_bytes){level_of_three_bits(v, kind, t->low, t->low4),
                        level_of_three_bits(_mm512_srli_epi16(v, 3), kind, t->high, t->high4)};
}

/* The last group of a step of 3 bits. */
static inline __m512i last_group(__m512i v0, __m512i v1, __m512i v2)
{
    const __m512i two = select_bits(_mm512_set1_epi8(3), _mm512_srli_epi16(v0, 6), _mm512_srli_epi16(v1, 4));
    return select_bits(_mm512_set1_epi8(15), two, _mm512_srli_epi16(v2, 2));
}

/* Sums of some rows. */
typedef struct {
    two_sums c0, c1, c2, c3;
} low_sums;

static QK_INLINE two_sums multiply_group(two_sums c, step_bytes of, const int8_t *a)
{
    const __m512i v = broadcast_codes(a);
    return (two_sums){multiply_add(c.low, of.low, v), multiply_add(c.high, of.high, v)};
}

/* Adds a group of 4 rows of b. */
static QK_INLINE low_sums add_group(const int rows, low_sums c, step_bytes of, const int8_t *a, size_t lda)
{
    c.c0 = multiply_group(c.c0, of, a);
    if (rows > 1) c.c1 = multiply_group(c.c1, of, a + lda);
    if (rows > 2) c.c2 = multiply_group(c.c2, of, a + 2 * lda);
    if (rows > 3) c.c3 = multiply_group(c.c3, of, a + 3 * lda);
    return c;
}

/* Sums of both kinds of groups of a row. */
static QK_INLINE two_sums add_two(const int kind, two_sums c, two_sums d)
{
    if (kind == IN_PLACE)
        return (two_sums){_mm512_add_epi32(c.low, _mm512_srai_epi32(d.low, 4)),
                          _mm512_add_epi32(_mm512_srai_epi32(c.high, 2), _mm512_srai_epi32(d.high, 6))};
    return (two_sums){_mm512_add_epi32(c.low, d.low), _mm512_add_epi32(c.high, d.high)};
}

/* Adds a step to `c`, of one row every other group to `d`: vpdpbusd takes 4 cycles. */
static QK_INLINE void add_low_step(const int bits, const int rows, const int kind, const low_tables *t,
                                   const uint8_t *b, const int8_t *a, size_t lda, low_sums *c, low_sums *d)
{
    const __m512i v0 = _mm512_loadu_si512(b);
    low_sums *second = rows == 1 ? d : c;
    if (kind == IN_PLACE) {
        const step_bytes first = {_mm512_and_si512(v0, _mm512_set1_epi8(3)),
                                  _mm512_and_si512(v0, _mm512_set1_epi8(12))};
        const step_bytes after = {_mm512_and_si512(v0, _mm512_set1_epi8(48)),
                                  _mm512_and_si512(v0, _mm512_set1_epi8((char)192))};
        c->c0 = multiply_group(c->c0, first, a), d->c0 = multiply_group(d->c0, after, a + 4);
        return;
    }
    if (bits == 2) {
        *c = add_group(rows, *c, decode_two_bits(v0, kind, t), a, lda);
        *second = add_group(rows, *second, decode_two_bits(_mm512_srli_epi16(v0, 4), kind, t), a + 4, lda);
        return;
    }
    const __m512i v1 = _mm512_loadu_si512(b + 64), v2 = _mm512_loadu_si512(b + 128);
    *c = add_group(rows, *c, decode_three_bits(v0, kind, t), a, lda);
    *second = add_group(rows, *second, decode_three_bits(v1, kind, t), a + 4, lda);
    *c = add_group(rows, *c, decode_three_bits(v2, kind, t), a + 8, lda);
    *second = add_group(rows, *second, decode_three_bits(last_group(v0, v1, v2), kind, t), a + 12, lda);
}

/* What a row has in y. */
typedef struct {
    __m512 low, high;
} two_floats;

static inline two_floats load_y(const float *y) { return (two_floats){_mm512_loadu_ps(y), _mm512_loadu_ps(y + 16)}; }
static inline void store_y(float *y, two_floats x) { _mm512_storeu_ps(y, x.low), _mm512_storeu_ps(y + 16, x.high); }

/* Adds the sums of a block and what its zero points make of `start`, times its scales. */
static QK_INLINE two_floats add_low_block(two_floats y, two_sums c, const int kind, const int own_zeros, __m512i z0,
                                          __m512i z1, int32_t start, __m512 s0, __m512 s1)
{
    if (kind == NUMBERS) c.high = _mm512_srai_epi32(c.high, 2);
    const __m512i low = _mm512_add_epi32(c.low, starts16(z0, own_zeros, start));
    const __m512i high = _mm512_add_epi32(c.high, starts16(z1, own_zeros, start));
    return (two_floats){_mm512_fmadd_ps(_mm512_cvtepi32_ps(low), s0, y.low),
                        _mm512_fmadd_ps(_mm512_cvtepi32_ps(high), s1, y.high)};
}

/* All before `panel` are constants where this is inlined. */
static QK_INLINE void low_rows(const int rows, const int bits, const int kind, const int own_zeros,
                               const qk_gemm4_panel *panel, const int8_t *a, size_t lda, const int32_t *start,
                               size_t ld_start, float *y)
{
    const qk_gemm4_panel p = *panel;
    const size_t step = qk_low_step(bits), step_rows = qk_low_rows(bits);
    const __m512i none = _mm512_setzero_si512(), flip = _mm512_set1_epi8((char)128);
    const uint8_t *b = p.records;
    low_tables t = {none, none, none, none};
    if (kind == SHARED || kind == SHARED_WIDE)
        t = shared_tables(bits, kind == SHARED_WIDE, _mm512_castsi512_si128(table_of(p.levels)));
    if (kind == BY_COLUMN) t = column_tables(bits, b, flip), b += qk_low_head(bits);
    if (!p.more) clear_rows(y, rows);
    two_floats y0 = load_y(y), y1 = y0, y2 = y0, y3 = y0;
    if (rows > 1) y1 = load_y(y + 32);
    if (rows > 2) y2 = load_y(y + 64);
    if (rows > 3) y3 = load_y(y + 96);
    for (size_t block = 1; block <= p.blocks; block++, start++) {
        const uint8_t *scales = b + (block < p.blocks ? p.steps : p.last_steps) * step;
        const uint8_t *zeros = scales + qk_scales_bytes(&p);
        low_sums c = {{none, none}, {none, none}, {none, none}, {none, none}}, d = c;
        for (; b != scales; b += step, a += step_rows) {
            if (rows < 3)
                for (size_t i = 0; i < step; i += 64) __builtin_prefetch(b + LOW_AHEAD + i);
            add_low_step(bits, rows, kind, &t, b, a, lda, &c, &d);
        }
        if (rows < 3)
            for (size_t i = 0; i < p.params_bytes; i += 64) __builtin_prefetch(scales + LOW_AHEAD + i);
        if (rows == 1) c.c0 = add_two(kind, c.c0, d.c0);
        const __m512i z0 = own_zeros ? widen16(zeros) : none, z1 = own_zeros ? widen16(zeros + 16) : none;
        const __m512 s0 = scales16(scales, &p, 0), s1 = scales16(scales, &p, 1);
        y0 = add_low_block(y0, c.c0, kind, own_zeros, z0, z1, start[0], s0, s1);
        if (rows > 1) y1 = add_low_block(y1, c.c1, kind, own_zeros, z0, z1, start[ld_start], s0, s1);
        if (rows > 2) y2 = add_low_block(y2, c.c2, kind, own_zeros, z0, z1, start[2 * ld_start], s0, s1);
        if (rows > 3) y3 = add_low_block(y3, c.c3, kind, own_zeros, z0, z1, start[3 * ld_start], s0, s1);
        b = scales + p.params_bytes;
    }
    store_y(y, y0);
    if (rows > 1) store_y(y + 32, y1);
    if (rows > 2) store_y(y + 64, y2);
    if (rows > 3) store_y(y + 96, y3);
}

static QK_INLINE void low_tile_of(const int bits, const int kind, const int own_zeros, int rows,
                                  const qk_gemm4_panel *p, const int8_t *a, size_t lda, const int32_t *start,
                                  size_t ld_start, float *y)
{
    ROWS_4(rows, low_rows, bits, kind, own_zeros, p, a, lda, start, ld_start, y);
}

/* Of numbers. */
static QK_INLINE void low_numbers(const int own_zeros, int rows, const qk_gemm4_panel *p, const int8_t *a, size_t lda,
                                  const int32_t *start, size_t ld_start, float *y)
{
    if (rows == 1 && (p->blocks > 1 ? p->steps : p->last_steps) <= MOST_LOW_STEPS)
        low_rows(1, 2, IN_PLACE, own_zeros, p, a, lda, start, ld_start, y);
    else
        low_tile_of(2, NUMBERS, own_zeros, rows, p, a, lda, start, ld_start, y);
}

static void low_tile(int rows, const qk_gemm4_panel *p, const int8_t *a, size_t lda, const int32_t *start,
                     size_t ld_start, float *y)
{
    if (p->bits == 3 && p->column_levels)
        low_tile_of(3, BY_COLUMN, 0, rows, p, a, lda, start, ld_start, y);
    else if (p->bits == 3 && has_vpermb())
        low_tile_of(3, SHARED_WIDE, 0, rows, p, a, lda, start, ld_start, y);
    else if (p->bits == 3)
        low_tile_of(3, SHARED, 0, rows, p, a, lda, start, ld_start, y);
    else if (p->column_levels)
        low_tile_of(2, BY_COLUMN, 0, rows, p, a, lda, start, ld_start, y);
    else if (p->levels)
        low_tile_of(2, SHARED, 0, rows, p, a, lda, start, ld_start, y);
    else if (p->own_zeros)
        low_numbers(1, rows, p, a, lda, start, ld_start, y);
    else
        low_numbers(0, rows, p, a, lda, start, ld_start, y);
}

/* ---- panels that become bytes ---- */

/* Stores a group of 4 rows less zero points, and adds it to the sums of its columns. */
static QK_INLINE void store_group(uint8_t *to, step_bytes of, const int own_zeros, __m512i z0, __m512i z1,
                                  column_totals *sums)
{
    if (own_zeros) of = (step_bytes){_mm512_sub_epi8(of.low, z0), _mm512_sub_epi8(of.high, z1)};
    store_step(to, of.low, of.high, sums);
}

static QK_INLINE void low_blocks_to_bytes(const int bits, const int kind, const int own_zeros,
                                          const qk_gemm4_panel *panel, int32_t zero, uint8_t *to)
{
    enum { GROUP_BYTES = QK_GEMM4_NR * QK_GEMM4_KR };
    const qk_gemm4_panel p = *panel;
    const size_t step = qk_low_step(bits), bytes = qk_low_rows(bits) * QK_GEMM4_NR;
    const uint8_t *b = p.records + (kind == BY_COLUMN ? qk_low_head(bits) : 0);
    const __m512i none = _mm512_setzero_si512();
    const low_tables t = kind == BY_COLUMN
        ? column_tables(bits, p.records, none)
        : shared_tables(bits, kind == SHARED_WIDE, _mm512_castsi512_si128(bytes_of_codes(panel, own_zeros ? 0 : zero)));
    for (size_t block = 1; block <= p.blocks; block++) {
        const uint8_t *scales = b + (block < p.blocks ? p.steps : p.last_steps) * step;
        const uint8_t *zeros = scales + qk_scales_bytes(&p);
        const __m512i z0 = own_zeros ? zeros16(zeros) : none, z1 = own_zeros ? zeros16(zeros + 16) : none;
        column_totals sums = {none, none};
        for (; b != scales; b += step, to += bytes) {
            const __m512i v0 = _mm512_loadu_si512(b);
            if (bits == 2) {
                store_group(to, decode_two_bits(v0, kind, &t), own_zeros, z0, z1, &sums);
                store_group(to + GROUP_BYTES, decode_two_bits(_mm512_srli_epi16(v0, 4), kind, &t), own_zeros, z0, z1,
                            &sums);
                continue;
            }
            const __m512i v1 = _mm512_loadu_si512(b + 64), v2 = _mm512_loadu_si512(b + 128);
            store_group(to, decode_three_bits(v0, kind, &t), 0, z0, z1, &sums);
            store_group(to + GROUP_BYTES, decode_three_bits(v1, kind, &t), 0, z0, z1, &sums);
            store_group(to + 2 * GROUP_BYTES, decode_three_bits(v2, kind, &t), 0, z0, z1, &sums);
            store_group(to + 3 * GROUP_BYTES, decode_three_bits(last_group(v0, v1, v2), kind, &t), 0, z0, z1, &sums);
        }
        _mm512_storeu_ps((float *)to, scales16(scales, &p, 0));
        _mm512_storeu_ps((float *)to + 16, scales16(scales, &p, 1));
        store_sums(to + 128, sums);
        to += 256, b = scales + p.params_bytes;
    }
}

static void low_to_bytes(const qk_gemm4_panel *p, int32_t zero, uint8_t *to)
{
    if (p->bits == 3 && p->column_levels)
        low_blocks_to_bytes(3, BY_COLUMN, 0, p, zero, to);
    else if (p->bits == 3 && has_vpermb())
        low_blocks_to_bytes(3, SHARED_WIDE, 0, p, zero, to);
    else if (p->bits == 3)
        low_blocks_to_bytes(3, SHARED, 0, p, zero, to);
    else if (p->column_levels)
        low_blocks_to_bytes(2, BY_COLUMN, 0, p, zero, to);
    else if (p->own_zeros)
        low_blocks_to_bytes(2, SHARED, 1, p, zero, to);
    else
        low_blocks_to_bytes(2, SHARED, 0, p, zero, to);
}

#endif
