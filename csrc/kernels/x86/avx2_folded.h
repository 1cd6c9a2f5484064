/* Products of bytes with 4-bit weights that fold to int8 (numerics 33), in registers of 256 bits.
 *
 * vpmaddubsw of a's codes and of code - 8 cannot saturate, and int16 holds its sums of 32 rows: 2 * 255 * 8 * 8 < 2^15.
 * Then vpmaddwd by the scale, twice, widens them; another one adds the shifts of two chunks, times the sums of a's
 * codes: 36 instructions for 512 products. From 3 rows on, some chunks of a panel become code - 8 once for up to 64
 * rows. Tile: 4 rows x 16 columns, 8 accumulators of 16 bits; int32 sums are in the L1 cache. */
#ifndef QK_AVX2_FOLDED_H
#define QK_AVX2_FOLDED_H

#include "kernels/generic/folded.h"
#include "kernels/kernels.h"
#include "kernels/x86/avx2_gemm4.h"
#include "runtime/compiler.h"

enum {
    CHUNK_STEPS = QK_FOLDED_CHUNK / QK_GEMM4_KR,
    CHUNKS = 8,                 /* that are decoded at a time */
    HALF_STEP = QK_FOLDED_STEP, /* bytes of a step of 16 columns */
    DIRECT_ROWS = 2,
    CODES_AHEAD = 4096 /* bytes: few rows use codes as fast as they arrive */
};

/* What folded_sums makes of two chunks: what sums of codes start from, -8 times a's codes that a lane of 16 bits meets,
 * and three times the sum of all of them. */
typedef struct {
    int32_t start[2], thrice, unused;
} chunk_pair;
_Static_assert(sizeof(chunk_pair) == 4 * sizeof(int32_t), "two numbers a chunk");

static inline chunk_pair *pair_at(const int32_t *sums, size_t chunk) { return (chunk_pair *)(sums + 2 * chunk); }

/* c + a * codes in int16, pinned as in multiply_add. */
static QK_INLINE __m256i add_short(__m256i c, __m256i a, __m256i codes)
{
    c = _mm256_add_epi16(c, _mm256_maddubs_epi16(a, codes));
    QK_KEEP(c);
    return c;
}

static QK_INLINE void add_to_sums(int32_t *c, __m256i v)
{
    _mm256_storeu_si256((__m256i *)c, _mm256_add_epi32(_mm256_loadu_si256((const __m256i *)c), v));
}

/* ---- many rows ---- */

/* Chunks of a panel: each has its scales, each two their shifts, of 8 columns, as int16 for vpmaddwd. */
typedef struct {
    __m256i scale[CHUNKS][4], shift[CHUNKS / 2][4];
    int8_t codes[2][CHUNKS * CHUNK_STEPS * HALF_STEP];
    size_t steps[CHUNKS], count;
} decoded;

static inline void decode_params(decoded *to, const uint8_t *params)
{
    const size_t i = to->count;
    for (int part = 0; part < 4; part++, params += 8) {
        const __m256i raw = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)params));
        const __m256i scale = _mm256_add_epi32(_mm256_and_si256(raw, _mm256_set1_epi32(15)), _mm256_set1_epi32(1));
        const __m256i shift = _mm256_slli_epi32(_mm256_srai_epi32(_mm256_slli_epi32(raw, 24), 28), 16);
        __m256i *pair = &to->shift[i / 2][part];
        to->scale[i][part] = _mm256_or_si256(scale, _mm256_slli_epi32(scale, 16));
        *pair = i % 2 ? _mm256_blend_epi16(*pair, shift, 0xaa) : _mm256_srli_epi32(shift, 16);
    }
}

/* The high halves of bytes are stored less 8, as signed numbers. */
static inline void decode_chunk(decoded *to, size_t steps, const uint8_t *b, const uint8_t *params)
{
    const __m256i eight = _mm256_set1_epi8(8);
    int8_t *left = to->codes[0] + to->count * CHUNK_STEPS * HALF_STEP;
    int8_t *right = to->codes[1] + to->count * CHUNK_STEPS * HALF_STEP;
    for (const uint8_t *end = b + steps * QK_FOLDED_STEP; b != end; b += 32, left += 32, right += 32) {
        _mm_prefetch((const char *)(b + CODES_AHEAD), _MM_HINT_T0);
        const __m256i two = load_codes(b), high = _mm256_xor_si256(high_halves(two), eight);
        _mm256_storeu_si256((__m256i *)left, _mm256_sub_epi8(low_halves(two), eight));
        _mm256_storeu_si256((__m256i *)right, _mm256_sub_epi8(high, eight));
    }
    decode_params(to, params);
    to->steps[to->count++] = steps;
}

/* The sums of a row, of 8 columns and 8 others. */
typedef struct {
    __m256i c0, c1;
} short_sums;

static QK_INLINE short_sums multiply_short(short_sums c, const uint8_t *a, __m256i b0, __m256i b1)
{
    const __m256i v = broadcast4(a);
    return (short_sums){add_short(c.c0, v, b0), add_short(c.c1, v, b1)};
}

/* Adds the sums of a chunk, and, with the first of two, the shifts of both. */
static QK_INLINE void add_row(int32_t *c, short_sums sums, const int first, const __m256i *scale, const __m256i *shift,
                              const int32_t *of)
{
    __m256i c0 = _mm256_madd_epi16(sums.c0, scale[0]), c1 = _mm256_madd_epi16(sums.c1, scale[1]);
    if (first) {
        const __m256i thrice = broadcast4(&((const chunk_pair *)of)->thrice);
        c0 = _mm256_add_epi32(c0, _mm256_madd_epi16(thrice, shift[0]));
        c1 = _mm256_add_epi32(c1, _mm256_madd_epi16(thrice, shift[1]));
    }
    add_to_sums(c, c0), add_to_sums(c + 8, c1);
}

/* `rows` and `first` are constants where this is inlined, and steps for whole chunks. */
static QK_INLINE void multiply_chunk(const int rows, const int first, size_t steps, const int8_t *b,
                                     const __m256i *scale, const __m256i *shift, const uint8_t *a, size_t lda,
                                     const int32_t *sums, size_t ld_sums, int32_t *c)
{
    __asm__ volatile("" : "+r"(a), "+r"(b) : : "memory");
    const uint8_t *a3 = a + 3 * lda;
    const short_sums none = {_mm256_setzero_si256(), _mm256_setzero_si256()};
    short_sums c0 = none, c1 = none, c2 = none, c3 = none;
#pragma GCC unroll 8
    for (size_t s = 0; s < steps; s++, b += HALF_STEP, a += QK_GEMM4_KR, a3 += QK_GEMM4_KR) {
        const __m256i b0 = load_reg(b), b1 = load_reg(b + 32);
        c0 = multiply_short(c0, a, b0, b1);
        if (rows > 1) c1 = multiply_short(c1, a + lda, b0, b1);
        if (rows > 2) c2 = multiply_short(c2, a + 2 * lda, b0, b1);
        if (rows > 3) c3 = multiply_short(c3, a3, b0, b1);
    }
    __asm__ volatile("" ::: "memory"); /* or gcc would keep c in more registers than there are */
    add_row(c, c0, first, scale, shift, sums);
    if (rows > 1) add_row(c + 16, c1, first, scale, shift, sums + ld_sums);
    if (rows > 2) add_row(c + 32, c2, first, scale, shift, sums + 2 * ld_sums);
    if (rows > 3) add_row(c + 48, c3, first, scale, shift, sums + 3 * ld_sums);
}

static QK_INLINE void multiply_chunks(const int rows, const decoded *of, int half, const uint8_t *a, size_t lda,
                                      const int32_t *sums, size_t ld_sums, int32_t *c)
{
    const int8_t *b = of->codes[half];
    for (size_t i = 0; i < of->count; i++, b += CHUNK_STEPS * HALF_STEP) {
        const size_t steps = of->steps[i];
        const __m256i *scale = of->scale[i] + 2 * half, *shift = of->shift[i / 2] + 2 * half;
        if (steps == CHUNK_STEPS && i % 2 == 0)
            multiply_chunk(rows, 1, CHUNK_STEPS, b, scale, shift, a, lda, sums, ld_sums, c);
        else if (steps == CHUNK_STEPS)
            multiply_chunk(rows, 0, CHUNK_STEPS, b, scale, shift, a, lda, sums, ld_sums, c);
        else if (i % 2 == 0)
            multiply_chunk(rows, 1, steps, b, scale, shift, a, lda, sums, ld_sums, c);
        else
            multiply_chunk(rows, 0, steps, b, scale, shift, a, lda, sums, ld_sums, c);
        a += steps * QK_GEMM4_KR, sums += 2;
    }
}

/* The chunks that are decoded, of all rows: in parts of at most 4, of even height. */
static void multiply_decoded(int rows, const decoded *of, const uint8_t *a, size_t lda, const int32_t *sums,
                             size_t ld_sums, int32_t *c)
{
    const int parts = (rows + 3) / 4;
    for (int half = 0; half < 2; half++)
        for (int part = 0; part < parts; part++) {
            const int row = rows * part / parts, count = rows * (part + 1) / parts - row;
            const uint8_t *ar = a + (size_t)row * lda;
            const int32_t *sr = sums + (size_t)row * ld_sums;
            ROWS_4(count, multiply_chunks, of, half, ar, lda, sr, ld_sums, c);
            c += 16 * count;
        }
}

static void decoded_rows(int rows, const qk_folded_panel *p, const uint8_t *a, size_t lda, const int32_t *sums,
                         size_t ld_sums, int32_t *c)
{
    decoded part;
    size_t rows_before = 0;
    part.count = 0;
    const uint8_t *b = p->codes;
    for (size_t block = 0; block < p->blocks; block++)
        for (size_t left = steps_in(p, block), steps; left; left -= steps, b += steps * QK_FOLDED_STEP) {
            steps = min_size(left, CHUNK_STEPS);
            decode_chunk(&part, steps, b, p->params + block * QK_GEMM4_NR);
            rows_before += steps * QK_GEMM4_KR;
            if (part.count < CHUNKS && (block + 1 < p->blocks || left > steps)) continue;
            multiply_decoded(rows, &part, a, lda, sums, ld_sums, c);
            a += rows_before, sums += 2 * part.count;
            rows_before = part.count = 0;
        }
}

/* ---- one or two rows ---- */

/* Sums of one or two rows and 32 columns: c0 and c2 begin with the low halves of a step. */
typedef struct {
    __m256i c0, c1, c2, c3;
} wide_sums;

static QK_INLINE wide_sums multiply_wide(wide_sums c, const uint8_t *a, wide_sums b)
{
    const __m256i v = broadcast4(a);
    return (wide_sums){add_short(c.c0, v, b.c0), add_short(c.c1, v, b.c1), add_short(c.c2, v, b.c2),
                       add_short(c.c3, v, b.c3)};
}

static QK_INLINE void add_wide(int32_t *left, int32_t *right, wide_sums sums, wide_sums by)
{
    add_to_sums(left, _mm256_madd_epi16(sums.c0, by.c0)), add_to_sums(left + 8, _mm256_madd_epi16(sums.c1, by.c1));
    add_to_sums(right, _mm256_madd_epi16(sums.c2, by.c2)), add_to_sums(right + 8, _mm256_madd_epi16(sums.c3, by.c3));
}

static inline __m256i scales_of(__m256i raw, int high)
{
    const __m256i low8 = _mm256_setr_epi8(0, -1, 0, -1, 1, -1, 1, -1, 2, -1, 2, -1, 3, -1, 3, -1, 4, -1, 4, -1, 5, -1,
                                          5, -1, 6, -1, 6, -1, 7, -1, 7, -1);
    const __m256i order = high ? _mm256_add_epi8(low8, _mm256_set1_epi16(8)) : low8;
    const __m256i scale = _mm256_and_si256(_mm256_shuffle_epi8(raw, order), _mm256_set1_epi16(15));
    return _mm256_add_epi16(scale, _mm256_set1_epi16(1));
}

static inline __m256i params16(const uint8_t *params)
{
    return _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)params));
}

/* Shifts of 8 columns and two blocks, whose parameters are interleaved. */
static inline __m256i shifts_of(__m256i both)
{
    const __m256i order = _mm256_setr_epi8(-1, 0, -1, 1, -1, 2, -1, 3, -1, 4, -1, 5, -1, 6, -1, 7, -1, 8, -1, 9, -1, 10,
                                           -1, 11, -1, 12, -1, 13, -1, 14, -1, 15);
    return _mm256_srai_epi16(_mm256_shuffle_epi8(both, order), 12);
}

static QK_INLINE void wide_block(const int rows, size_t steps, const uint8_t *b, const uint8_t *params,
                                 const uint8_t *a, size_t lda, const int32_t *start, size_t ld_sums, int32_t *c)
{
    const __m256i eight = _mm256_set1_epi8(8), start0 = broadcast4(start);
    wide_sums c0 = {start0, start0, start0, start0}, c1 = c0;
    if (rows > 1) {
        const __m256i start1 = broadcast4(start + ld_sums);
        c1 = (wide_sums){start1, start1, start1, start1};
    }
#pragma GCC unroll 8
    for (size_t s = 0; s < steps; s++, b += QK_FOLDED_STEP, a += QK_GEMM4_KR) {
        const __m256i two0 = load_codes(b), two1 = load_codes(b + 32);
        _mm_prefetch((const char *)(b + CODES_AHEAD), _MM_HINT_T0);
        const wide_sums codes = {low_halves(two0), low_halves(two1), _mm256_xor_si256(high_halves(two0), eight),
                                 _mm256_xor_si256(high_halves(two1), eight)};
        c0 = multiply_wide(c0, a, codes);
        if (rows > 1) c1 = multiply_wide(c1, a + lda, codes);
    }
    const __m256i raw0 = params16(params), raw1 = params16(params + 16);
    const wide_sums by = {scales_of(raw0, 0), scales_of(raw0, 1), scales_of(raw1, 0), scales_of(raw1, 1)};
    add_wide(c, c + 16 * rows, c0, by);
    if (rows > 1) add_wide(c + 16, c + 48, c1, by);
}

/* The shifts of two blocks, times the sums of a's codes. */
static QK_INLINE void wide_shifts(const int rows, const uint8_t *params, const uint8_t *other, const int32_t *sums,
                                  size_t ld_sums, int32_t *c)
{
    wide_sums by;
    const __m256i raw0 = params16(params), raw1 = params16(other), raw2 = params16(params + 16),
                  raw3 = params16(other + 16);
    by.c0 = _mm256_unpacklo_epi8(raw0, raw1), by.c1 = _mm256_unpackhi_epi8(raw0, raw1);
    by.c2 = _mm256_unpacklo_epi8(raw2, raw3), by.c3 = _mm256_unpackhi_epi8(raw2, raw3);
    by = (wide_sums){shifts_of(by.c0), shifts_of(by.c1), shifts_of(by.c2), shifts_of(by.c3)};
    for (int row = 0; row < rows; row++) {
        const __m256i thrice = broadcast4(&((const chunk_pair *)(sums + (size_t)row * ld_sums))->thrice);
        add_wide(c + 16 * row, c + 16 * (rows + row), (wide_sums){thrice, thrice, thrice, thrice}, by);
    }
}

static QK_INLINE void wide_rows(const int rows, const qk_folded_panel *p, const uint8_t *a, size_t lda,
                                const int32_t *sums, size_t ld_sums, int32_t *c)
{
    const uint8_t *b = p->codes, *params = p->params;
    for (size_t block = 0; block < p->blocks; block++, params += QK_GEMM4_NR, sums += 2) {
        const size_t steps = steps_in(p, block);
        const int32_t *start = ((const chunk_pair *)(block % 2 ? sums - 2 : sums))->start + block % 2;
        if (steps == CHUNK_STEPS)
            wide_block(rows, CHUNK_STEPS, b, params, a, lda, start, ld_sums, c);
        else
            wide_block(rows, steps, b, params, a, lda, start, ld_sums, c);
        b += steps * QK_FOLDED_STEP, a += steps * QK_GEMM4_KR;
        if (block % 2 == 0)
            wide_shifts(rows, params, block + 1 < p->blocks ? params + QK_GEMM4_NR : params, sums, ld_sums, c);
    }
}

static void folded_tile(int rows, const qk_folded_panel *p, const uint8_t *a, size_t lda, const int32_t *sums,
                        size_t ld_sums, int32_t *c)
{
    if (rows > DIRECT_ROWS || p->steps > CHUNK_STEPS)
        decoded_rows(rows, p, a, lda, sums, ld_sums, c);
    else if (rows == 2)
        wide_rows(2, p, a, lda, sums, ld_sums, c);
    else
        wide_rows(1, p, a, lda, sums, ld_sums, c);
}

/* Of a chunk the codes of the first two of each four rows, and of the others, below 2^13. */
static inline __m128i sum_chunk(const uint8_t *a, size_t n)
{
    uint8_t codes[QK_FOLDED_CHUNK] = {0};
    if (n < sizeof codes) a = memcpy(codes, a, n);
    const __m256i pairs = _mm256_maddubs_epi16(load_reg(a), _mm256_set1_epi8(1));
    const __m128i four = _mm_add_epi16(_mm256_castsi256_si128(pairs), _mm256_extracti128_si256(pairs, 1));
    const __m128i two = _mm_add_epi16(four, _mm_unpackhi_epi64(four, four));
    return _mm_add_epi16(two, _mm_srli_epi64(two, 32));
}

static void folded_sums(const uint8_t *a, size_t k, size_t block, int32_t *sums)
{
    size_t chunk = 0;
    for (size_t i = 0; i < k; i += block) {
        const size_t end = min_size(i + block, k);
        for (size_t j = i; j < end; j += QK_FOLDED_CHUNK, chunk++) {
            chunk_pair *pair = pair_at(sums, chunk - chunk % 2);
            const uint32_t both = (uint32_t)_mm_cvtsi128_si32(sum_chunk(a + j, min_size(end - j, QK_FOLDED_CHUNK)));
            const uint32_t first = both & 0xffff, last = both >> 16, thrice = 3 * (first + last);
            pair->start[chunk % 2] = (int32_t)((-8 * first & 0xffff) | -8 * last << 16);
            pair->thrice = (int32_t)(chunk % 2 ? (uint32_t)pair->thrice | thrice << 16 : thrice);
        }
    }
}

#endif
