/* Weights of 2 and 3 bits in registers of 256 bits (numerics 12): half a line at a time, whose index of 4 bits serves
 * two tables as avx512_low_bits.h tells. Tile: a row x 32 columns; 4 rows are faster by panels that become bytes. */
#ifndef QK_AVX2_LOW_BITS_H
#define QK_AVX2_LOW_BITS_H

#include "kernels/low_bits.h"
#include "kernels/x86/avx2_gemm4.h"

/* What codes stand for: themselves; levels that all columns share; levels of each column. */
enum { NUMBERS, SHARED, BY_COLUMN };

/* Tables of 8 low and 8 high columns; the last two, of BY_COLUMN alone, of levels 4 to 7. */
typedef struct {
    __m256i low, high, low4, high4;
} low_tables;

/* What two codes of 4 rows and 8 columns stand for. */
typedef struct {
    __m256i low, high;
} low_values;

static inline __m256i all8(int byte) { return _mm256_set1_epi8((char)byte); }

static QK_INLINE low_tables shared_tables(const int bits, __m128i levels)
{
    const __m128i low = _mm_setr_epi8(0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3);
    const __m128i high = _mm_setr_epi8(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3);
    const __m256i all = _mm256_broadcastsi128_si256(levels);
    if (bits == 3) return (low_tables){all, all, all, all};
    const __m256i first = _mm256_broadcastsi128_si256(_mm_shuffle_epi8(levels, low));
    return (low_tables){first, _mm256_broadcastsi128_si256(_mm_shuffle_epi8(levels, high)), first, first};
}

/* Levels at `from`, of the columns `half` is the first or second half of; of 2 bits the index of the high columns is
 * 4 code + column. */
static QK_INLINE low_tables column_tables(const int bits, const uint8_t *from, int half)
{
    const __m256i turned =
        _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
    const __m256i low = load_codes(from + 32 * half), high = load_codes(from + 64 + 32 * half);
    if (bits == 2) return (low_tables){low, _mm256_shuffle_epi8(high, turned), low, high};
    from += QK_LOW_LEVELS;
    return (low_tables){low, high, load_codes(from + 32 * half), load_codes(from + 64 + 32 * half)};
}

/* v of `mask`, and the column of each byte of a lane, times `by`. */
static QK_INLINE __m256i index_of(__m256i v, const int mask, const int by)
{
    const __m256i column = _mm256_setr_epi32(0, 0x01010101 * by, 0x02020202 * by, 0x03030303 * by, 0, 0x01010101 * by,
                                             0x02020202 * by, 0x03030303 * by);
    return _mm256_or_si256(_mm256_and_si256(v, all8(mask)), column);
}

static QK_INLINE low_values decode_two_bits(__m256i v, const int kind, const low_tables *t)
{
    const __m256i both = _mm256_and_si256(v, all8(15));
    if (kind == SHARED) return (low_values){_mm256_shuffle_epi8(t->low, both), _mm256_shuffle_epi8(t->high, both)};
    return (low_values){_mm256_shuffle_epi8(t->low, index_of(v, 3, 4)),
                        _mm256_shuffle_epi8(t->high, index_of(v, 12, 1))};
}

static QK_INLINE __m256i level_of_three_bits(__m256i v, const int kind, __m256i table, __m256i table4)
{
    if (kind == SHARED) return _mm256_shuffle_epi8(table, _mm256_and_si256(v, all8(7)));
    const __m256i index = index_of(v, 3, 4), above = _mm256_slli_epi16(v, 5);
    return _mm256_blendv_epi8(_mm256_shuffle_epi8(table, index), _mm256_shuffle_epi8(table4, index), above);
}

static QK_INLINE low_values decode_three_bits(__m256i v, const int kind, const low_tables *t)
{
    return (low_values){level_of_three_bits(v, kind, t->low, t->low4),
                        level_of_three_bits(_mm256_srli_epi16(v, 3), kind, t->high, t->high4)};
}

/* The last group of a step of 3 bits. */
static inline __m256i last_group(__m256i v0, __m256i v1, __m256i v2)
{
    const __m256i first = _mm256_and_si256(_mm256_srli_epi16(v0, 6), all8(3));
    const __m256i second = _mm256_and_si256(_mm256_srli_epi16(v1, 4), all8(12));
    return _mm256_or_si256(_mm256_or_si256(first, second), _mm256_and_si256(_mm256_srli_epi16(v2, 2), all8(48)));
}

static inline __m256i sum_of_fours(__m256i codes)
{
    return _mm256_madd_epi16(_mm256_maddubs_epi16(all8(1), codes), _mm256_set1_epi16(1));
}

/* Stores a group of 4 rows less zero points, and takes it from the sums of its columns. */
static QK_INLINE void store_group(uint8_t *to, low_values of, const low_values *zeros, low_values *sums)
{
    const __m256i low = _mm256_sub_epi8(of.low, zeros->low), high = _mm256_sub_epi8(of.high, zeros->high);
    _mm256_storeu_si256((__m256i *)to, low), _mm256_storeu_si256((__m256i *)(to + 64), high);
    sums->low = _mm256_sub_epi32(sums->low, sum_of_fours(low));
    sums->high = _mm256_sub_epi32(sums->high, sum_of_fours(high));
}

/* A block of 8 low and 8 high columns; returns their negative sums. */
static QK_INLINE low_values low_block_to_bytes(const int bits, const int kind, const uint8_t *b, const uint8_t *end,
                                               low_tables t, low_values zeros, uint8_t *to)
{
    enum { GROUP_BYTES = QK_GEMM4_NR * QK_GEMM4_KR };
    low_values sums = {_mm256_setzero_si256(), _mm256_setzero_si256()};
    for (; b < end; b += qk_low_step(bits), to += qk_low_rows(bits) * QK_GEMM4_NR) {
        const __m256i v0 = load_codes(b);
        if (bits == 2) {
            store_group(to, decode_two_bits(v0, kind, &t), &zeros, &sums);
            store_group(to + GROUP_BYTES, decode_two_bits(_mm256_srli_epi16(v0, 4), kind, &t), &zeros, &sums);
            continue;
        }
        const __m256i v1 = load_codes(b + QK_LOW_LINE), v2 = load_codes(b + 2 * QK_LOW_LINE);
        store_group(to, decode_three_bits(v0, kind, &t), &zeros, &sums);
        store_group(to + GROUP_BYTES, decode_three_bits(v1, kind, &t), &zeros, &sums);
        store_group(to + 2 * GROUP_BYTES, decode_three_bits(v2, kind, &t), &zeros, &sums);
        store_group(to + 3 * GROUP_BYTES, decode_three_bits(last_group(v0, v1, v2), kind, &t), &zeros, &sums);
    }
    return sums;
}

/* What codes are looked up in unless columns have levels of their own. */
static inline __m128i shared_levels(const qk_gemm4_panel *p, int32_t zero)
{
    const __m128i codes = _mm_setr_epi8(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    if (p->levels) return _mm_loadu_si128((const __m128i *)p->levels);
    return _mm_sub_epi8(codes, _mm_set1_epi8((char)(p->own_zeros ? 0 : zero)));
}

static QK_INLINE void low_blocks_to_bytes(const int bits, const int kind, const qk_gemm4_panel *p, int32_t zero,
                                          uint8_t *to)
{
    const __m256i none = _mm256_setzero_si256(), four = _mm256_set1_epi32(0x01010101);
    const uint8_t *b = p->records + (kind == BY_COLUMN ? qk_low_head(bits) : 0);
    low_tables t[2];
    for (int i = 0; i < 2; i++)
        t[i] = kind == BY_COLUMN ? column_tables(bits, p->records, i) : shared_tables(bits, shared_levels(p, zero));
    for (size_t block = 1; block <= p->blocks; block++) {
        const size_t steps = block < p->blocks ? p->steps : p->last_steps;
        const uint8_t *scales = b + steps * qk_low_step(bits);
        uint8_t *params = to + steps * qk_low_rows(bits) * QK_GEMM4_NR;
        __m256i *sums = (__m256i *)(params + 4 * QK_GEMM4_NR);
        for (size_t i = 0; i < 2; i++) {
            const block_columns of = columns_at(p, p->own_zeros, scales, 8 * i, 16 + 8 * i);
            low_values zeros = {none, none};
            if (p->own_zeros) zeros = (low_values){_mm256_mullo_epi32(of.z0, four), _mm256_mullo_epi32(of.z1, four)};
            const low_values found = low_block_to_bytes(bits, kind, b + 32 * i, scales, t[i], zeros, to + 32 * i);
            _mm256_storeu_ps((float *)params + 8 * i, of.s0), _mm256_storeu_ps((float *)params + 16 + 8 * i, of.s1);
            _mm256_storeu_si256(sums + i, found.low), _mm256_storeu_si256(sums + 2 + i, found.high);
        }
        to = params + 8 * QK_GEMM4_NR, b = scales + p->params_bytes;
    }
}

static void low_to_bytes(const qk_gemm4_panel *p, int32_t zero, uint8_t *to)
{
    if (p->bits == 3 && p->column_levels)
        low_blocks_to_bytes(3, BY_COLUMN, p, zero, to);
    else if (p->bits == 3)
        low_blocks_to_bytes(3, SHARED, p, zero, to);
    else if (p->column_levels)
        low_blocks_to_bytes(2, BY_COLUMN, p, zero, to);
    else
        low_blocks_to_bytes(2, SHARED, p, zero, to);
}

/* ---- the tile ---- */

enum { LOW_RUN = 4 /* steps of 2 bits whose sums int16 holds: 4 * 2 * 2 * 12 * 127 < 2^15 */ };

/* Sums of a row: of 8 low and 8 high columns, and of the next 8 of both. */
typedef struct {
    low_values first, second;
} low_sums;

static inline __m256i broadcast_four(const int8_t *a)
{
    int32_t four;
    memcpy(&four, a, sizeof four);
    return _mm256_set1_epi32(four);
}

/* Adds two groups of numbers: `low` and 4 `high` by a byte each. Of VNNI sums are int32, else int16. */
static QK_INLINE low_values add_numbers(low_values c, __m256i v, __m256i a, __m256i after)
{
    const __m256i three = all8(3), twelve = all8(12), w = _mm256_srli_epi16(v, 4);
    const __m256i low = _mm256_and_si256(v, three), high = _mm256_and_si256(v, twelve);
    const __m256i next_low = _mm256_and_si256(w, three), next_high = _mm256_and_si256(w, twelve);
#if WITH_VNNI
    c.low = _mm256_dpbusd_avx_epi32(_mm256_dpbusd_avx_epi32(c.low, low, a), next_low, after);
    c.high = _mm256_dpbusd_avx_epi32(_mm256_dpbusd_avx_epi32(c.high, high, a), next_high, after);
#else
    c.low = _mm256_add_epi16(c.low, _mm256_maddubs_epi16(low, a));
    c.high = _mm256_add_epi16(c.high, _mm256_maddubs_epi16(high, a));
    c.low = _mm256_add_epi16(c.low, _mm256_maddubs_epi16(next_low, after));
    c.high = _mm256_add_epi16(c.high, _mm256_maddubs_epi16(next_high, after));
#endif
    QK_KEEP(c.low);
    QK_KEEP(c.high);
    return c;
}

static QK_INLINE low_values widen_low(low_values c, low_values run)
{
    const __m256i ones = _mm256_set1_epi16(1);
    return (low_values){_mm256_add_epi32(c.low, _mm256_madd_epi16(run.low, ones)),
                        _mm256_add_epi32(c.high, _mm256_madd_epi16(run.high, ones))};
}

/* A block of numbers. */
static QK_INLINE low_sums multiply_low_numbers(const uint8_t *b, const uint8_t *end, const int8_t *a)
{
    const __m256i none = _mm256_setzero_si256();
    low_sums c = {{none, none}, {none, none}};
    while (b != end) {
        const uint8_t *stop = WITH_VNNI || end - b <= LOW_RUN * QK_LOW_LINE ? end : b + LOW_RUN * QK_LOW_LINE;
        low_sums run = {{none, none}, {none, none}};
        for (; b != stop; b += QK_LOW_LINE, a += 8) {
            const __m256i first = broadcast_four(a), after = broadcast_four(a + 4);
            run.first = add_numbers(run.first, load_codes(b), first, after);
            run.second = add_numbers(run.second, load_codes(b + 32), first, after);
        }
        if (WITH_VNNI) return run;
        c = (low_sums){widen_low(c.first, run.first), widen_low(c.second, run.second)};
    }
    return c;
}

static QK_INLINE low_values add_levels(low_values c, low_values of, __m256i a)
{
    return (low_values){multiply_level(c.low, of.low, a), multiply_level(c.high, of.high, a)};
}

/* Half a step of levels. */
static QK_INLINE low_values add_level_step(const int bits, const int kind, low_values c, const low_tables *t,
                                           const uint8_t *b, const int8_t *a)
{
    const __m256i v0 = load_codes(b);
    if (bits == 2) {
        c = add_levels(c, decode_two_bits(v0, kind, t), broadcast_four(a));
        return add_levels(c, decode_two_bits(_mm256_srli_epi16(v0, 4), kind, t), broadcast_four(a + 4));
    }
    const __m256i v1 = load_codes(b + QK_LOW_LINE), v2 = load_codes(b + 2 * QK_LOW_LINE);
    c = add_levels(c, decode_three_bits(v0, kind, t), broadcast_four(a));
    c = add_levels(c, decode_three_bits(v1, kind, t), broadcast_four(a + 4));
    c = add_levels(c, decode_three_bits(v2, kind, t), broadcast_four(a + 8));
    return add_levels(c, decode_three_bits(last_group(v0, v1, v2), kind, t), broadcast_four(a + 12));
}

/* Adds the sums of 8 low and 8 high columns from `col` on, times their scales. */
static QK_INLINE void add_low_block(float *y, low_values c, const int kind, const int own_zeros,
                                    const qk_gemm4_panel *p, const uint8_t *scales, size_t col, int32_t start)
{
    const block_columns of = columns_at(p, own_zeros, scales, col, col + 16);
    const __m256i v = _mm256_set1_epi32(kind == NUMBERS || WITH_VNNI ? start : 0);
    if (kind == NUMBERS) c.high = _mm256_srai_epi32(c.high, 2);
    c.low = _mm256_add_epi32(c.low, own_zeros ? _mm256_mullo_epi32(of.z0, v) : v);
    c.high = _mm256_add_epi32(c.high, own_zeros ? _mm256_mullo_epi32(of.z1, v) : v);
    y += col;
    _mm256_storeu_ps(y, _mm256_fmadd_ps(_mm256_cvtepi32_ps(c.low), of.s0, _mm256_loadu_ps(y)));
    _mm256_storeu_ps(y + 16, _mm256_fmadd_ps(_mm256_cvtepi32_ps(c.high), of.s1, _mm256_loadu_ps(y + 16)));
}

static QK_INLINE low_tables as_low_factors(low_tables t)
{
    return (low_tables){as_factors(t.low), as_factors(t.high), as_factors(t.low4), as_factors(t.high4)};
}

/* All before `panel` are constants where this is inlined. */
static QK_INLINE void low_row(const int bits, const int kind, const int own_zeros, const qk_gemm4_panel *panel,
                              const int8_t *a, const int32_t *start, float *y)
{
    const qk_gemm4_panel p = *panel;
    const size_t step = qk_low_step(bits), step_rows = qk_low_rows(bits);
    const __m256i none = _mm256_setzero_si256();
    const uint8_t *b = p.records + (kind == BY_COLUMN ? qk_low_head(bits) : 0);
    low_tables t0 = {none, none, none, none}, t1 = t0;
    if (kind == SHARED) t0 = t1 = as_low_factors(shared_tables(bits, _mm_loadu_si128((const __m128i *)p.levels)));
    if (kind == BY_COLUMN) t0 = as_low_factors(column_tables(bits, p.records, 0));
    if (kind == BY_COLUMN) t1 = as_low_factors(column_tables(bits, p.records, 1));
    for (size_t block = 1; block <= p.blocks; block++, start++) {
        const size_t steps = block < p.blocks ? p.steps : p.last_steps;
        const uint8_t *scales = b + steps * step;
        low_sums c = {{none, none}, {none, none}};
        if (kind == NUMBERS) c = multiply_low_numbers(b, scales, a), a += steps * step_rows, b = scales;
        for (; b != scales; b += step, a += step_rows) {
            c.first = add_level_step(bits, kind, c.first, &t0, b, a);
            c.second = add_level_step(bits, kind, c.second, &t1, b + 32, a);
        }
        add_low_block(y, c.first, kind, own_zeros, &p, scales, 0, *start);
        add_low_block(y, c.second, kind, own_zeros, &p, scales, 8, *start);
        b = scales + p.params_bytes;
    }
}

static void low_tile(int rows, const qk_gemm4_panel *p, const int8_t *a, size_t lda, const int32_t *start,
                     size_t ld_start, float *y)
{
    if (!p->more) memset(y, 0, (size_t)rows * QK_GEMM4_NR * sizeof *y);
    for (int row = 0; row < rows; row++, a += lda, start += ld_start, y += QK_GEMM4_NR)
        if (p->bits == 3 && p->column_levels)
            low_row(3, BY_COLUMN, 0, p, a, start, y);
        else if (p->bits == 3)
            low_row(3, SHARED, 0, p, a, start, y);
        else if (p->column_levels)
            low_row(2, BY_COLUMN, 0, p, a, start, y);
        else if (p->levels)
            low_row(2, SHARED, 0, p, a, start, y);
        else if (p->own_zeros)
            low_row(2, NUMBERS, 1, p, a, start, y);
        else
            low_row(2, NUMBERS, 0, p, a, start, y);
}

#endif
