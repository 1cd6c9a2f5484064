/* AVX2 with FMA (Haswell, Zen 1 and later; no VNNI).
 *
 * vpmaddwd: 8 lanes x (2 by 2 int16) summed to int32, exact here (numerics 6), then vpaddd: 16 products for two
 * instructions. vpmaddubsw does twice that and saturates: it serves weights that let packing prove the sums (`light`, below).
 *
 * Tile: 6 rows x 16 columns, 12 accumulators; 2 registers hold b, widened from int8 by vpmovsxbw as it is loaded, 1 the
 * broadcast of a (widened once per block of rows), 1 the products: all 16 registers.
 *
 *          b0 (8 columns)   b1 (8 columns)
 *     a0   c00              c01
 *     ..   ..               ..
 *     a5   c50              c51
 */
#if defined(__x86_64__)
#include <immintrin.h>

#include "kernels.h"

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC target("avx2,fma")
#endif

/* x / scale, rounded to an integer (numerics 3); INT32_MIN where it is NaN or beyond int32. */
static inline __m256i quotient8(const float *x, __m256 scale, __m256 reciprocal)
{
    const __m256 v = _mm256_loadu_ps(x), q = _mm256_mul_ps(v, reciprocal);
    return _mm256_cvtps_epi32(_mm256_fmadd_ps(_mm256_fnmadd_ps(q, scale, v), reciprocal, q));
}

/* Adds zero points and stores 32 codes. n0 and n1 hold quotients saturated to 16 bits, n0 elements 0-3, 8-11, 4-7, 12-15, n1
 * the same from 16 on. Returns 0, and stores nothing, where one may come from NaN or from beyond int32. */
static inline int store32(uint8_t *q, __m256i n0, __m256i n1, __m256i zero0, __m256i zero1, int32_t qmin, int32_t qmax)
{
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    const __m256i special = _mm256_cmpeq_epi16(_mm256_min_epi16(n0, n1), _mm256_set1_epi16(INT16_MIN));
    if (_mm256_movemask_epi8(special)) return 0;
    n0 = _mm256_adds_epi16(n0, zero0);
    n1 = _mm256_adds_epi16(n1, zero1);
    __m256i codes;
    if (qmin < 0) {
        codes = _mm256_packs_epi16(n0, n1);
        codes = _mm256_min_epi8(_mm256_max_epi8(codes, _mm256_set1_epi8((char)qmin)), _mm256_set1_epi8((char)qmax));
    } else {
        codes = _mm256_packus_epi16(n0, n1);
        if (qmax - qmin < 255)
            codes = _mm256_min_epu8(_mm256_max_epu8(codes, _mm256_set1_epi8((char)qmin)), _mm256_set1_epi8((char)qmax));
    }
    _mm256_storeu_si256((__m256i *)q, _mm256_permutevar8x32_epi32(codes, order));
    return 1;
}

static inline int quantize_group(const float *x, uint8_t *q, const qk_affine *p)
{
    const __m256 scale = _mm256_set1_ps(p->scale), reciprocal = _mm256_set1_ps(p->reciprocal);
    const __m256i zero = _mm256_set1_epi16((short)p->zero_point);
    const __m256i n0 = _mm256_packs_epi32(quotient8(x, scale, reciprocal), quotient8(x + 8, scale, reciprocal));
    const __m256i n1 = _mm256_packs_epi32(quotient8(x + 16, scale, reciprocal), quotient8(x + 24, scale, reciprocal));
    return store32(q, n0, n1, zero, zero, p->qmin, p->qmax);
}

static inline __m256i zero16(const int32_t *zero)
{
    return _mm256_packs_epi32(_mm256_loadu_si256((const __m256i *)zero), _mm256_loadu_si256((const __m256i *)(zero + 8)));
}

/* Columns i .. i + 31 of several rows, the parameters held in registers. Returns how many rows were stored before one that
 * store32 refused. */
static inline size_t quantize_group_columns(const float *x, uint8_t *q, const qk_affine_columns *p, size_t i, size_t rows)
{
    const float *s = p->scale + i, *r = p->reciprocal + i;
    const __m256 s0 = _mm256_loadu_ps(s), s1 = _mm256_loadu_ps(s + 8), s2 = _mm256_loadu_ps(s + 16), s3 = _mm256_loadu_ps(s + 24);
    const __m256 r0 = _mm256_loadu_ps(r), r1 = _mm256_loadu_ps(r + 8), r2 = _mm256_loadu_ps(r + 16), r3 = _mm256_loadu_ps(r + 24);
    const __m256i z0 = zero16(p->zero_point + i), z1 = zero16(p->zero_point + i + 16);
    const int32_t qmin = p->qmin, qmax = p->qmax;
    const size_t stride = p->stride;
    for (size_t row = 0; row < rows; row++, x += stride, q += stride) {
        const __m256i n0 = _mm256_packs_epi32(quotient8(x, s0, r0), quotient8(x + 8, s1, r1));
        const __m256i n1 = _mm256_packs_epi32(quotient8(x + 16, s2, r2), quotient8(x + 24, s3, r3));
        if (!store32(q, n0, n1, z0, z1, qmin, qmax)) return row;
    }
    return rows;
}

/* 32 codes: gcc widens bytes by chains of shuffles, the loads do it at once. */
static inline void widen_group(const uint8_t *q, int is_signed, int32_t *to)
{
    for (int i = 0; i < 32; i += 8) {
        const __m128i codes = _mm_loadl_epi64((const __m128i *)(q + i));
        const __m256i wide = is_signed ? _mm256_cvtepi8_epi32(codes) : _mm256_cvtepu8_epi32(codes);
        _mm256_storeu_si256((__m256i *)(to + i), wide);
    }
}

#define MR 8 /* at most */
#define NR 16
#define KR 2
#define HAVE_FMA 1
#define GROUP 32
#define HAVE_WIDEN
#include "elementwise.inc.h"
#include "layers.inc.h"
#include "products.inc.h"

static inline __m256i broadcast2(const int16_t *p)
{
    int32_t codes;
    memcpy(&codes, p, sizeof codes);
    return _mm256_set1_epi32(codes);
}

static inline __m256i widen(const int8_t *p) { return _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)p)); }

/* c + a * b. The empty asm pins the sum to its register and its place: gcc would otherwise reassociate integer sums
 * across steps and spill. */
static inline __attribute__((always_inline)) __m256i multiply_add(__m256i c, __m256i a, __m256i b)
{
    c = _mm256_add_epi32(c, _mm256_madd_epi16(a, b));
    __asm__("" : "+x"(c));
    return c;
}

static inline __attribute__((always_inline)) void store(int32_t *c, __m256i left, __m256i right)
{
    _mm256_storeu_si256((__m256i *)c, left);
    _mm256_storeu_si256((__m256i *)(c + 8), right);
}

/* `rows` is a constant where this is inlined: the accumulators of absent rows vanish. */
static inline __attribute__((always_inline)) void tile(const int rows, size_t steps, const int16_t *a, size_t lda,
                                                       const int8_t *panel, const int32_t *init, int32_t *c, size_t ldc)
{
    const int16_t *a3 = a + 3 * lda;
    __m256i c00 = _mm256_loadu_si256((const __m256i *)init), c01 = _mm256_loadu_si256((const __m256i *)(init + 8));
    __m256i c10 = c00, c11 = c01, c20 = c00, c21 = c01, c30 = c00, c31 = c01, c40 = c00, c41 = c01, c50 = c00, c51 = c01;
    for (size_t s = 0; s < steps; s++, a += KR, a3 += KR, panel += NR * KR) {
        const __m256i b0 = widen(panel), b1 = widen(panel + 16);
        __m256i v = broadcast2(a);
        c00 = multiply_add(c00, v, b0), c01 = multiply_add(c01, v, b1);
        if (rows > 1) v = broadcast2(a + lda), c10 = multiply_add(c10, v, b0), c11 = multiply_add(c11, v, b1);
        if (rows > 2) v = broadcast2(a + 2 * lda), c20 = multiply_add(c20, v, b0), c21 = multiply_add(c21, v, b1);
        if (rows > 3) v = broadcast2(a3), c30 = multiply_add(c30, v, b0), c31 = multiply_add(c31, v, b1);
        if (rows > 4) v = broadcast2(a3 + lda), c40 = multiply_add(c40, v, b0), c41 = multiply_add(c41, v, b1);
        if (rows > 5) v = broadcast2(a3 + 2 * lda), c50 = multiply_add(c50, v, b0), c51 = multiply_add(c51, v, b1);
    }
    store(c, c00, c01);
    if (rows > 1) c += ldc, store(c, c10, c11);
    if (rows > 2) c += ldc, store(c, c20, c21);
    if (rows > 3) c += ldc, store(c, c30, c31);
    if (rows > 4) c += ldc, store(c, c40, c41);
    if (rows > 5) c += ldc, store(c, c50, c51);
}

static void gemm_tile(int rows, size_t steps, const void *a, size_t lda, const int8_t *panel, const int32_t *init,
                      int32_t *c, size_t ldc)
{
    lda /= sizeof(int16_t);
    switch (rows) {
    case 1: tile(1, steps, a, lda, panel, init, c, ldc); break;
    case 2: tile(2, steps, a, lda, panel, init, c, ldc); break;
    case 3: tile(3, steps, a, lda, panel, init, c, ldc); break;
    case 4: tile(4, steps, a, lda, panel, init, c, ldc); break;
    case 5: tile(5, steps, a, lda, panel, init, c, ldc); break;
    default: tile(6, steps, a, lda, panel, init, c, ldc); break;
    }
}

static void gemm_pack_row(const uint8_t *a, size_t n, size_t n_pad, uint8_t flip, void *to)
{
    pack_row_words(a, n, n_pad, flip, to);
}

/* ---- light weights ----
 *
 * vpmaddubsw multiplies bytes, twice as many as vpmaddwd, and saturates the sums of two products to 16 bits. A step is 4 codes of
 * k x 8 columns, one register of b. Packing proves of each step, and of pairs of steps, what fits 16 bits (numerics 6):
 *
 *     plain     vpmaddubsw(a, b); then vpmaddwd by ones, vpaddd: 3 instructions for 32 products
 *     centred   vpmaddubsw(|b|, a ^ flip), a factor of 127 - a or a - 128 with the sign of b: 4, and fits always
 *
 * Two steps whose products fit together are added (vpaddw) before they are widened: 5 or 7 instructions for 64 products. On Zen 4 the
 * tile does 130 (plain pairs), 108 (plain), 98 (centred pairs) and 86 GMAC/s (centred; vpmaddwd on int16 as well). A panel has
 * its own pairs and its own order of k, which costs an index for each step, as 4 codes of a row of a are one broadcast wherever they
 * lie. Tile: 8 rows x 8 columns, 8 accumulators, 4 registers for two steps of b, 2 for products, 1 of ones.
 *
 * A panel: for each chunk of 256 steps its left 8 columns, then its right ones, steps in the order in which they are taken; 16
 * starting sums; for each half and chunk how many steps are of which kind; for each half the steps' numbers in their order: plain
 * pairs, plain steps, centred pairs, centred steps. */

enum { LIGHT_KR = 4, HALF = 8, STEP = HALF * LIGHT_KR, CHUNK = 256, PLAIN_LIMIT = 128, CENTRED_LIMIT = 256 };

typedef struct {
    uint16_t plain_pairs, plain, centred_pairs, centred;  /* how many pairs of steps, and steps alone */
} kinds;

static size_t chunks_of(size_t steps) { return (steps + CHUNK - 1) / CHUNK; }

static int32_t *panel_start(const int8_t *panel, size_t steps) { return (int32_t *)(panel + 2 * steps * STEP); }

static kinds *panel_kinds(const int8_t *panel, size_t steps, int half)
{
    return (kinds *)(panel + 2 * steps * STEP + NR * sizeof(int32_t)) + (half ? chunks_of(steps) : 0);
}

static uint8_t *panel_order(const int8_t *panel, size_t steps, int half)
{
    return (uint8_t *)panel_kinds(panel, steps, 0) + 2 * chunks_of(steps) * sizeof(kinds) + (half ? steps : 0);
}

static size_t light_panel_bytes(size_t steps)
{
    const size_t bytes = 2 * steps * STEP + NR * sizeof(int32_t) + 2 * (chunks_of(steps) * sizeof(kinds) + steps);
    return (bytes + 63) / 64 * 64;
}

/* Per pair of codes of a step: `signed_sums` has the sums of its positive codes, then those of the magnitudes of its negative ones, as
 * bytes; `sizes` the sums of both, at most 256. */
typedef struct {
    __m256i signed_sums, sizes;
} weight;

static inline weight weigh(__m256i codes)
{
    const __m256i one = _mm256_set1_epi8(1), size = _mm256_abs_epi8(codes), sign = _mm256_cmpgt_epi8(_mm256_setzero_si256(), codes);
    const __m256i positive = _mm256_maddubs_epi16(_mm256_andnot_si256(sign, size), one);
    const __m256i negative = _mm256_maddubs_epi16(_mm256_and_si256(sign, size), one);
    return (weight){_mm256_packus_epi16(positive, negative), _mm256_add_epi16(positive, negative)};
}

static inline int fits_plain(const weight *s, const weight *t)
{
    const __m256i beyond = _mm256_subs_epu8(_mm256_adds_epu8(s->signed_sums, t->signed_sums), _mm256_set1_epi8((char)PLAIN_LIMIT));
    return _mm256_testz_si256(beyond, beyond);
}

static inline int fits_centred(const weight *s, const weight *t)
{
    const __m256i beyond = _mm256_subs_epu16(_mm256_add_epi16(s->sizes, t->sizes), _mm256_set1_epi16(CENTRED_LIMIT));
    return _mm256_testz_si256(beyond, beyond);
}

/* Pairs the steps in `from` greedily: pairs go to `order`, the rest to `rest`. Returns how many pairs; *count becomes that of the
 * rest. A step waits for one that fits; few wait at a time, which bounds the search, and all are tried, which spares branches. */
static inline __attribute__((always_inline)) size_t pair_steps(const weight *w, const uint8_t *from, size_t *count,
                                                               int (*fits)(const weight *, const weight *), uint8_t *order,
                                                               uint8_t *rest)
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

/* What the centred products of a step lack: 128 |b| where b >= 0, -127 |b| elsewhere; or 128 b, and |b| more where b < 0. */
static inline __m256i centre_term(__m256i codes)
{
    const __m256i one = _mm256_set1_epi16(1), sign = _mm256_cmpgt_epi8(_mm256_setzero_si256(), codes);
    const __m256i negative = _mm256_maddubs_epi16(_mm256_and_si256(sign, _mm256_abs_epi8(codes)), _mm256_set1_epi8(1));
    const __m256i sum = _mm256_maddubs_epi16(_mm256_set1_epi8(1), codes);
    return _mm256_add_epi32(_mm256_slli_epi32(_mm256_madd_epi16(sum, one), 7), _mm256_madd_epi16(negative, one));
}

/* Chooses kinds and order of a chunk's steps for 8 columns, of which `from` holds the codes (2 * STEP apart), and writes them to `to`
 * in that order. Adds to `start` what the centred products lack. */
static kinds plan_chunk(const int8_t *from, size_t steps, uint8_t *order, int8_t *to, int32_t *start)
{
    weight w[CHUNK];
    uint8_t left[CHUNK], heavy[CHUNK];
    size_t count = steps;
    kinds k;
    for (size_t s = 0; s < steps; s++) {
        w[s] = weigh(_mm256_loadu_si256((const __m256i *)(from + s * 2 * STEP)));
        left[s] = (uint8_t)s;
    }
    k.plain_pairs = (uint16_t)pair_steps(w, left, &count, fits_plain, order, heavy);
    order += 2 * k.plain_pairs;
    k.plain = (uint16_t)take_plain(w, heavy, &count, order);
    order += k.plain;
    __m256i sum = _mm256_loadu_si256((const __m256i *)start);
    for (size_t i = 0; i < count; i++) {
        const __m256i codes = _mm256_load_si256((const __m256i *)(from + heavy[i] * 2 * STEP));
        sum = _mm256_add_epi32(sum, centre_term(codes));
    }
    _mm256_storeu_si256((__m256i *)start, sum);
    k.centred_pairs = (uint16_t)pair_steps(w, heavy, &count, fits_centred, order, left);
    k.centred = (uint16_t)count;
    memcpy(order + 2 * k.centred_pairs, left, count);
    order -= 2 * k.plain_pairs + k.plain;
    for (size_t i = 0; i < steps; i++) memcpy(to + i * STEP, from + order[i] * 2 * STEP, STEP);
    return k;
}

static int64_t light_pack_panel(const qk_panel_source *s, size_t cols, int8_t *panel, int32_t *colsum)
{
    const size_t steps = (s->k + LIGHT_KR - 1) / LIGHT_KR;
    int8_t chunk[2 * CHUNK * STEP] __attribute__((aligned(32)));
    int32_t *start = panel_start(panel, steps);
    const int64_t bound = pack_panel(s, cols, panel, colsum, LIGHT_KR);
    memset(start, 0, NR * sizeof *start);
    for (size_t first = 0; first < steps; first += CHUNK) {
        const size_t count = steps - first < CHUNK ? steps - first : CHUNK;
        int8_t *codes = panel + first * 2 * STEP;
        memcpy(chunk, codes, count * 2 * STEP);
        for (int half = 0; half < 2; half++) {
            uint8_t *order = panel_order(panel, steps, half) + first;
            int8_t *to = codes + (half ? count * STEP : 0);
            panel_kinds(panel, steps, half)[first / CHUNK] = plan_chunk(chunk + half * STEP, count, order, to, start + half * HALF);
        }
    }
    return bound;
}

/* Where the codes of step `order[i]` are: those of half 0 come first in each chunk. */
static void light_unpack_panel(const int8_t *panel, size_t k, size_t cols, uint8_t flip, uint8_t *to, size_t row_stride)
{
    const size_t steps = (k + LIGHT_KR - 1) / LIGHT_KR;
    for (size_t i = 0; i < steps; i++)
        for (size_t col = 0; col < cols; col++) {
            const size_t half = col / HALF, first = i / CHUNK * CHUNK, count = steps - first < CHUNK ? steps - first : CHUNK;
            const int8_t *codes = panel + first * 2 * STEP + (half * count + i % CHUNK) * STEP + col % HALF * LIGHT_KR;
            const size_t row = (first + panel_order(panel, steps, (int)half)[i]) * LIGHT_KR;
            for (size_t j = 0; j < LIGHT_KR && row + j < k; j++) to[(row + j) * row_stride + col] = (uint8_t)codes[j] ^ flip;
        }
}

static inline __m256i broadcast4(const uint8_t *p)
{
    int32_t codes;
    memcpy(&codes, p, sizeof codes);
    return _mm256_set1_epi32(codes);
}

static inline __attribute__((always_inline)) __m256i add_pairs(__m256i c, __m256i products)
{
    __m256i ones = _mm256_set1_epi16(1);
    c = _mm256_add_epi32(c, _mm256_madd_epi16(products, ones));
    __asm__("" : "+x"(c));
    return c;
}

/* c + a b, a being the unsigned factor, of two steps. */
static inline __attribute__((always_inline)) __m256i plain_pair(__m256i c, const uint8_t *a0, const uint8_t *a1, __m256i b0,
                                                                __m256i b1)
{
    return add_pairs(c, _mm256_add_epi16(_mm256_maddubs_epi16(broadcast4(a0), b0), _mm256_maddubs_epi16(broadcast4(a1), b1)));
}

static inline __attribute__((always_inline)) __m256i plain(__m256i c, const uint8_t *a, __m256i b)
{
    return add_pairs(c, _mm256_maddubs_epi16(broadcast4(a), b));
}

/* The factors of a centred product: |b|, and what turns a into a - 128 where b >= 0, into 127 - a elsewhere. */
typedef struct {
    __m256i size, flip;
} centred_codes;

static inline __attribute__((always_inline)) centred_codes centre(const int8_t *p)
{
    const __m256i b = _mm256_load_si256((const __m256i *)p), sign = _mm256_cmpgt_epi8(_mm256_setzero_si256(), b);
    return (centred_codes){_mm256_abs_epi8(b), _mm256_xor_si256(sign, _mm256_set1_epi8(-128))};
}

static inline __attribute__((always_inline)) __m256i centred_products(const uint8_t *a, centred_codes b)
{
    return _mm256_maddubs_epi16(b.size, _mm256_xor_si256(broadcast4(a), b.flip));
}

static inline __attribute__((always_inline)) __m256i centred_pair(__m256i c, const uint8_t *a0, const uint8_t *a1, centred_codes b0,
                                                             centred_codes b1)
{
    return add_pairs(c, _mm256_add_epi16(centred_products(a0, b0), centred_products(a1, b1)));
}

static inline __attribute__((always_inline)) __m256i centred(__m256i c, const uint8_t *a, centred_codes b)
{
    return add_pairs(c, centred_products(a, b));
}

/* A chunk of rows x 8 columns, added to `from` (ldf between rows). `rows` is a constant where this is inlined: the accumulators of
 * absent rows vanish. */
static inline __attribute__((always_inline)) void light_half(const int rows, const uint8_t *a, size_t lda, const int8_t *codes,
                                                             kinds k, const uint8_t *order, const int32_t *from,
                                                             size_t ldf, int32_t *c, size_t ldc)
{
    const size_t lda2 = 2 * lda, lda3 = 3 * lda;
    __m256i c0, c1, c2, c3, c4, c5, c6, c7;
    c0 = _mm256_loadu_si256((const __m256i *)from);
    if (rows > 1) c1 = _mm256_loadu_si256((const __m256i *)(from + 1 * ldf));
    if (rows > 2) c2 = _mm256_loadu_si256((const __m256i *)(from + 2 * ldf));
    if (rows > 3) c3 = _mm256_loadu_si256((const __m256i *)(from + 3 * ldf));
    if (rows > 4) c4 = _mm256_loadu_si256((const __m256i *)(from + 4 * ldf));
    if (rows > 5) c5 = _mm256_loadu_si256((const __m256i *)(from + 5 * ldf));
    if (rows > 6) c6 = _mm256_loadu_si256((const __m256i *)(from + 6 * ldf));
    if (rows > 7) c7 = _mm256_loadu_si256((const __m256i *)(from + 7 * ldf));
    for (int i = k.plain_pairs; i; i--, order += 2, codes += 2 * STEP) {
        const uint8_t *s = a + order[0] * LIGHT_KR, *t = a + order[1] * LIGHT_KR;
        const __m256i b0 = _mm256_load_si256((const __m256i *)(codes));
        const __m256i b1 = _mm256_load_si256((const __m256i *)(codes + STEP));
        c0 = plain_pair(c0, s, t, b0, b1);
        if (rows > 1) c1 = plain_pair(c1, s + lda, t + lda, b0, b1);
        if (rows > 2) c2 = plain_pair(c2, s + lda2, t + lda2, b0, b1);
        if (rows > 3) s += lda3, t += lda3, c3 = plain_pair(c3, s, t, b0, b1);
        if (rows > 4) c4 = plain_pair(c4, s + lda, t + lda, b0, b1);
        if (rows > 5) c5 = plain_pair(c5, s + lda2, t + lda2, b0, b1);
        if (rows > 6) s += lda3, t += lda3, c6 = plain_pair(c6, s, t, b0, b1);
        if (rows > 7) c7 = plain_pair(c7, s + lda, t + lda, b0, b1);
    }
    for (int i = k.plain; i; i--, order++, codes += STEP) {
        const uint8_t *s = a + *order * LIGHT_KR;
        const __m256i b = _mm256_load_si256((const __m256i *)codes);
        c0 = plain(c0, s, b);
        if (rows > 1) c1 = plain(c1, s + lda, b);
        if (rows > 2) c2 = plain(c2, s + lda2, b);
        if (rows > 3) s += lda3, c3 = plain(c3, s, b);
        if (rows > 4) c4 = plain(c4, s + lda, b);
        if (rows > 5) c5 = plain(c5, s + lda2, b);
        if (rows > 6) s += lda3, c6 = plain(c6, s, b);
        if (rows > 7) c7 = plain(c7, s + lda, b);
    }
    for (int i = k.centred_pairs; i; i--, order += 2, codes += 2 * STEP) {
        const uint8_t *s = a + order[0] * LIGHT_KR, *t = a + order[1] * LIGHT_KR;
        const centred_codes b0 = centre(codes), b1 = centre(codes + STEP);
        c0 = centred_pair(c0, s, t, b0, b1);
        if (rows > 1) c1 = centred_pair(c1, s + lda, t + lda, b0, b1);
        if (rows > 2) c2 = centred_pair(c2, s + lda2, t + lda2, b0, b1);
        if (rows > 3) s += lda3, t += lda3, c3 = centred_pair(c3, s, t, b0, b1);
        if (rows > 4) c4 = centred_pair(c4, s + lda, t + lda, b0, b1);
        if (rows > 5) c5 = centred_pair(c5, s + lda2, t + lda2, b0, b1);
        if (rows > 6) s += lda3, t += lda3, c6 = centred_pair(c6, s, t, b0, b1);
        if (rows > 7) c7 = centred_pair(c7, s + lda, t + lda, b0, b1);
    }
    for (int i = k.centred; i; i--, order++, codes += STEP) {
        const uint8_t *s = a + *order * LIGHT_KR;
        const centred_codes b = centre(codes);
        c0 = centred(c0, s, b);
        if (rows > 1) c1 = centred(c1, s + lda, b);
        if (rows > 2) c2 = centred(c2, s + lda2, b);
        if (rows > 3) s += lda3, c3 = centred(c3, s, b);
        if (rows > 4) c4 = centred(c4, s + lda, b);
        if (rows > 5) c5 = centred(c5, s + lda2, b);
        if (rows > 6) s += lda3, c6 = centred(c6, s, b);
        if (rows > 7) c7 = centred(c7, s + lda, b);
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
static inline __attribute__((always_inline)) void light_rows(const int rows, size_t steps, const uint8_t *a, size_t lda,
                                                             const int8_t *panel, const int32_t *init, int32_t *c, size_t ldc)
{
    const kinds *left = panel_kinds(panel, steps, 0), *right = panel_kinds(panel, steps, 1);
    const uint8_t *order = panel_order(panel, steps, 0);
    size_t ldf = 0;
    for (size_t first = 0; first < steps; first += CHUNK, a += CHUNK * LIGHT_KR, order += CHUNK, left++, right++) {
        const size_t count = steps - first < CHUNK ? steps - first : CHUNK;
        light_half(rows, a, lda, panel, *left, order, init, ldf, c, ldc);
        light_half(rows, a, lda, panel + count * STEP, *right, order + steps, init + HALF, ldf, c + HALF, ldc);
        panel += 2 * count * STEP;
        init = c, ldf = ldc;
    }
}

static void light_tile(int rows, size_t steps, const void *a, size_t lda, const int8_t *panel, const int32_t *init, int32_t *c,
                       size_t ldc)
{
    const int32_t *start = panel_start(panel, steps);
    int32_t from[NR];
    for (int j = 0; j < NR; j++) from[j] = (int32_t)((uint32_t)init[j] + (uint32_t)start[j]);
    switch (rows) {
    case 1: light_rows(1, steps, a, lda, panel, from, c, ldc); break;
    case 2: light_rows(2, steps, a, lda, panel, from, c, ldc); break;
    case 3: light_rows(3, steps, a, lda, panel, from, c, ldc); break;
    case 4: light_rows(4, steps, a, lda, panel, from, c, ldc); break;
    case 5: light_rows(5, steps, a, lda, panel, from, c, ldc); break;
    case 6: light_rows(6, steps, a, lda, panel, from, c, ldc); break;
    case 7: light_rows(7, steps, a, lda, panel, from, c, ldc); break;
    default: light_rows(8, steps, a, lda, panel, from, c, ldc); break;
    }
}

static void light_pack_row(const uint8_t *a, size_t n, size_t n_pad, uint8_t flip, void *to)
{
    pack_row_bytes(a, n, n_pad, flip, to);
}

static const qk_kernels light = {
    .name = "avx2",
    .mr = 8, .nr = NR, .kr = LIGHT_KR, .a_bytes = 1,
    .gemm_tile = light_tile,
    .gemm_pack_row = light_pack_row,
    .gemm_pack_panel = light_pack_panel,
    .gemm_unpack_panel = light_unpack_panel,
    .gemm_panel_bytes = light_panel_bytes,
#include "kernels_table.inc.h"
};

const qk_kernels qk_kernels_avx2 = {
    .name = "avx2",
    .mr = 6, .nr = NR, .kr = KR, .a_bytes = 2,
    .light = &light,
    .gemm_tile = gemm_tile,
    .gemm_pack_row = gemm_pack_row,
    .gemm_pack_panel = gemm_pack_panel,
    .gemm_unpack_panel = gemm_unpack_panel,
    .gemm_panel_bytes = gemm_panel_bytes,
#include "kernels_table.inc.h"
};

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
