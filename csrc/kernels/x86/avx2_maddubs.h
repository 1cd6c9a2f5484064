/* Products with small weights on AVX2 (numerics 6); avx2.c includes this.
 *
 * vpmaddubsw multiplies bytes, twice as many as vpmaddwd, and saturates the sums of two products to 16 bits. A step is
 * 4 codes of k x 8 columns, one register of b. Packing proves of each step, and of pairs of steps, what fits 16 bits
 * (numerics 6):
 *
 *     plain     vpmaddubsw(a, b); then vpmaddwd by ones, vpaddd: 3 instructions for 32 products
 *     centred   vpmaddubsw(|b|, a ^ flip), a factor of 127 - a or a - 128 with the sign of b: 4, and fits always
 *
 * Two steps whose products fit together are added (vpaddw) before they are widened: 5 or 7 instructions for 64
 * products. On Zen 4 the tile does 130 (plain pairs), 108 (plain), 98 (centred pairs) and 86 GMAC/s (centred; vpmaddwd
 * on int16 as well). A panel has its own pairs and its own order of k, which costs an index for each step, as 4 codes
 * of a row of a are one broadcast wherever they lie. Tile: 8 rows x 8 columns, 8 accumulators, 4 registers for two
 * steps of b, 2 for products, 1 of ones.
 *
 * A panel: for each chunk of 256 steps its left 8 columns, then its right ones, steps in the order in which they are
 * taken; 16 starting sums; for each half and chunk how many steps are of which kind; for each half the steps' numbers
 * in their order: plain pairs, plain steps, centred pairs, centred steps. */
#ifndef QK_AVX2_MADDUBS_H
#define QK_AVX2_MADDUBS_H

#include <string.h>

#include "kernels/generic/gemm8.h"
#include "kernels/kernels.h"
#include "kernels/x86/avx2.h"
#include "runtime/compiler.h"

enum { SMALL_KR = 4, HALF = 8, SMALL_STEP = HALF * SMALL_KR, CHUNK = 256, PLAIN_LIMIT = 128, CENTRED_LIMIT = 256 };

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

static size_t small_panel_bytes(size_t steps)
{
    if (steps > SIZE_MAX / (4 * SMALL_STEP)) return SIZE_MAX;
    const size_t bytes = 2 * steps * SMALL_STEP + NR * sizeof(int32_t) + 2 * (chunks_of(steps) * sizeof(kinds) + steps);
    return (bytes + 63) / 64 * 64;
}

/* Per pair of codes of a step: `signed_sums` has the sums of its positive codes, then those of the magnitudes of its
 * negative ones, as bytes; `sizes` the sums of both, at most 256. */
typedef struct {
    __m256i signed_sums, sizes;
} weight;

static inline weight weigh(__m256i codes)
{
    const __m256i one = _mm256_set1_epi8(1), size = _mm256_abs_epi8(codes),
                  sign = _mm256_cmpgt_epi8(_mm256_setzero_si256(), codes);
    const __m256i positive = _mm256_maddubs_epi16(_mm256_andnot_si256(sign, size), one);
    const __m256i negative = _mm256_maddubs_epi16(_mm256_and_si256(sign, size), one);
    return (weight){_mm256_packus_epi16(positive, negative), _mm256_add_epi16(positive, negative)};
}

static inline int fits_plain(const weight *s, const weight *t)
{
    const __m256i beyond =
        _mm256_subs_epu8(_mm256_adds_epu8(s->signed_sums, t->signed_sums), _mm256_set1_epi8((char)PLAIN_LIMIT));
    return _mm256_testz_si256(beyond, beyond);
}

static inline int fits_centred(const weight *s, const weight *t)
{
    const __m256i beyond = _mm256_subs_epu16(_mm256_add_epi16(s->sizes, t->sizes), _mm256_set1_epi16(CENTRED_LIMIT));
    return _mm256_testz_si256(beyond, beyond);
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
    const weight nothing = {_mm256_setzero_si256(), _mm256_setzero_si256()};
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
static inline __m256i centre_term(__m256i codes)
{
    const __m256i one = _mm256_set1_epi16(1), sign = _mm256_cmpgt_epi8(_mm256_setzero_si256(), codes);
    const __m256i negative = _mm256_maddubs_epi16(_mm256_and_si256(sign, _mm256_abs_epi8(codes)), _mm256_set1_epi8(1));
    const __m256i sum = _mm256_maddubs_epi16(_mm256_set1_epi8(1), codes);
    return _mm256_add_epi32(_mm256_slli_epi32(_mm256_madd_epi16(sum, one), 7), _mm256_madd_epi16(negative, one));
}

/* Chooses kinds and order of a chunk's steps for 8 columns, of which `from` holds the codes (2 * SMALL_STEP apart), and
 * writes them to `to` in that order. Adds to `start` what the centred products lack. */
static kinds plan_chunk(const int8_t *from, size_t steps, uint8_t *order, int8_t *to, int32_t *start)
{
    weight w[CHUNK];
    uint8_t left[CHUNK], rest[CHUNK];
    size_t count = steps;
    kinds k;
    for (size_t s = 0; s < steps; s++) {
        w[s] = weigh(_mm256_loadu_si256((const __m256i *)(from + s * 2 * SMALL_STEP)));
        left[s] = (uint8_t)s;
    }
    k.plain_pairs = (uint16_t)pair_steps(w, left, &count, fits_plain, order, rest);
    order += 2 * k.plain_pairs;
    k.plain = (uint16_t)take_plain(w, rest, &count, order);
    order += k.plain;
    __m256i sum = _mm256_loadu_si256((const __m256i *)start);
    for (size_t i = 0; i < count; i++) {
        const __m256i codes = _mm256_load_si256((const __m256i *)(from + rest[i] * 2 * SMALL_STEP));
        sum = _mm256_add_epi32(sum, centre_term(codes));
    }
    _mm256_storeu_si256((__m256i *)start, sum);
    k.centred_pairs = (uint16_t)pair_steps(w, rest, &count, fits_centred, order, left);
    k.centred = (uint16_t)count;
    memcpy(order + 2 * k.centred_pairs, left, count);
    order -= 2 * k.plain_pairs + k.plain;
    for (size_t i = 0; i < steps; i++) memcpy(to + i * SMALL_STEP, from + order[i] * 2 * SMALL_STEP, SMALL_STEP);
    return k;
}

static int64_t small_pack_panel(const qk_panel_source *s, size_t cols, int8_t *panel, int32_t *colsum)
{
    const size_t steps = (s->k + SMALL_KR - 1) / SMALL_KR;
    int8_t chunk[2 * CHUNK * SMALL_STEP] __attribute__((aligned(32)));
    int32_t *start = panel_start(panel, steps);
    memset(start, 0, NR * sizeof *start);
    for (size_t first = 0; first < steps; first += CHUNK) {
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
static void small_unpack_panel(const int8_t *panel, size_t k, size_t top, size_t cols, uint8_t flip, uint8_t *to,
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

/* c + a b, a being the unsigned factor, of two steps. */
static QK_INLINE __m256i plain_pair(__m256i c, const uint8_t *a0, const uint8_t *a1, __m256i b0, __m256i b1)
{
    return add_pairs(
        c, _mm256_add_epi16(_mm256_maddubs_epi16(broadcast4(a0), b0), _mm256_maddubs_epi16(broadcast4(a1), b1)));
}

static QK_INLINE __m256i plain(__m256i c, const uint8_t *a, __m256i b)
{
    return add_pairs(c, _mm256_maddubs_epi16(broadcast4(a), b));
}

/* The factors of a centred product: |b|, and what turns a into a - 128 where b >= 0, into 127 - a elsewhere. */
typedef struct {
    __m256i size, flip;
} centred_codes;

static QK_INLINE centred_codes centre(const int8_t *p)
{
    const __m256i b = _mm256_load_si256((const __m256i *)p), sign = _mm256_cmpgt_epi8(_mm256_setzero_si256(), b);
    return (centred_codes){_mm256_abs_epi8(b), _mm256_xor_si256(sign, _mm256_set1_epi8(-128))};
}

static QK_INLINE __m256i centred_products(const uint8_t *a, centred_codes b)
{
    return _mm256_maddubs_epi16(b.size, _mm256_xor_si256(broadcast4(a), b.flip));
}

static QK_INLINE __m256i centred_pair(__m256i c, const uint8_t *a0, const uint8_t *a1, centred_codes b0,
                                      centred_codes b1)
{
    return add_pairs(c, _mm256_add_epi16(centred_products(a0, b0), centred_products(a1, b1)));
}

static QK_INLINE __m256i centred(__m256i c, const uint8_t *a, centred_codes b)
{
    return add_pairs(c, centred_products(a, b));
}

/* A chunk of rows x 8 columns, added to `from` (ldf between rows). `rows` is a constant where this is inlined: the
 * accumulators of absent rows vanish. */
static QK_INLINE void small_half(const int rows, const uint8_t *a, size_t lda, const int8_t *codes, kinds k,
                                 const uint8_t *order, const int32_t *from, size_t ldf, int32_t *c, size_t ldc)
{
    const size_t lda3 = 3 * lda, lda5 = 5 * lda, lda7 = 7 * lda;
    __m256i c0, c1, c2, c3, c4, c5, c6, c7;
    c0 = _mm256_loadu_si256((const __m256i *)from);
    if (rows > 1) c1 = _mm256_loadu_si256((const __m256i *)(from + 1 * ldf));
    if (rows > 2) c2 = _mm256_loadu_si256((const __m256i *)(from + 2 * ldf));
    if (rows > 3) c3 = _mm256_loadu_si256((const __m256i *)(from + 3 * ldf));
    if (rows > 4) c4 = _mm256_loadu_si256((const __m256i *)(from + 4 * ldf));
    if (rows > 5) c5 = _mm256_loadu_si256((const __m256i *)(from + 5 * ldf));
    if (rows > 6) c6 = _mm256_loadu_si256((const __m256i *)(from + 6 * ldf));
    if (rows > 7) c7 = _mm256_loadu_si256((const __m256i *)(from + 7 * ldf));
    for (int i = k.plain_pairs; i; i--, order += 2, codes += 2 * SMALL_STEP) {
        const uint8_t *s = a + order[0] * SMALL_KR, *t = a + order[1] * SMALL_KR;
        const __m256i b0 = _mm256_load_si256((const __m256i *)(codes));
        const __m256i b1 = _mm256_load_si256((const __m256i *)(codes + SMALL_STEP));
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
        const __m256i b = _mm256_load_si256((const __m256i *)codes);
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
    _mm256_storeu_si256((__m256i *)c, c0);
    if (rows > 1) c += ldc, _mm256_storeu_si256((__m256i *)c, c1);
    if (rows > 2) c += ldc, _mm256_storeu_si256((__m256i *)c, c2);
    if (rows > 3) c += ldc, _mm256_storeu_si256((__m256i *)c, c3);
    if (rows > 4) c += ldc, _mm256_storeu_si256((__m256i *)c, c4);
    if (rows > 5) c += ldc, _mm256_storeu_si256((__m256i *)c, c5);
    if (rows > 6) c += ldc, _mm256_storeu_si256((__m256i *)c, c6);
    if (rows > 7) c += ldc, _mm256_storeu_si256((__m256i *)c, c7);
}

/* A chunk at a time, so that codes are read from begin to end. */
static QK_INLINE void small_rows(const int rows, size_t steps, const uint8_t *a, size_t lda, const int8_t *panel,
                                 const int32_t *init, int32_t *c, size_t ldc)
{
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

static void small_tile(int rows, size_t steps, const void *a, size_t lda, const int8_t *panel, const int32_t *init,
                       int32_t *c, size_t ldc)
{
    const int32_t *start = panel_start(panel, steps);
    int32_t from[NR];
    for (int j = 0; j < NR; j++) from[j] = (int32_t)((uint32_t)init[j] + (uint32_t)start[j]);
    switch (rows) {
    case 1: small_rows(1, steps, a, lda, panel, from, c, ldc); break;
    case 2: small_rows(2, steps, a, lda, panel, from, c, ldc); break;
    case 3: small_rows(3, steps, a, lda, panel, from, c, ldc); break;
    case 4: small_rows(4, steps, a, lda, panel, from, c, ldc); break;
    case 5: small_rows(5, steps, a, lda, panel, from, c, ldc); break;
    case 6: small_rows(6, steps, a, lda, panel, from, c, ldc); break;
    case 7: small_rows(7, steps, a, lda, panel, from, c, ldc); break;
    default: small_rows(8, steps, a, lda, panel, from, c, ldc); break;
    }
}

static void small_pack_row(const uint8_t *a, size_t n, size_t n_pad, uint8_t flip, void *to)
{
    pack_row_bytes(a, n, n_pad, flip, to);
}

#endif
