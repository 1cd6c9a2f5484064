/* AVX-VNNI (Alder Lake and later, Zen 5): vpdpbusd in registers of 256 bits, without AVX-512.
 *
 * vpdpbusd: 8 lanes x (4 unsigned by 4 signed bytes) added to int32, no saturation (numerics 6). Golden Cove and Zen 5
 * issue two a cycle, latency 5 or 4: ten chains at least. The families of bytes and of 4 bits are here, all others are
 * AVX2's.
 *
 * Tile: 6 rows x 16 columns, 12 accumulators; 2 registers hold b, 1 the broadcast of a: 15 of 16. One step takes 4
 * codes of k: 2 loads of b, 6 broadcasts of a, 12 vpdpbusd.
 *
 *          b0 (8 columns)   b1 (8 columns)
 *     a0   c00              c01
 *     ..   ..               ..
 *     a5   c50              c51
 */
#if defined(__x86_64__)
#include "kernels/kernels.h"
#include "kernels/x86/cpu.h"
#include "kernels/x86/target.h"
#include "runtime/compiler.h"

#if QK_HAVE_AVXVNNI
#ifndef QK_EVEX
static int available(void) { return qk_has_avxvnni(); }

QK_TARGET_BEGIN("avxvnni,avx2,fma,f16c")
#else /* For tests and measurements on CPUs that have the instruction with AVX-512 only. */
static int available(void) { return qk_has_avx512vnni(); }

QK_TARGET_BEGIN("avx512vnni,avx512vl,avx2,fma,f16c")
#define _mm256_dpbusd_avx_epi32 _mm256_dpbusd_epi32
#endif

#include "kernels/x86/avx2.h"

#define WITH_VNNI 1
#define DEPTHWISE_TAPS 4
#define MR 6
#define DEPTHWISE_CODES depthwise_codes
#define NR 16
#define KR 4
#define BLOCKS8_FLIP 128
#define GEMM4_CODES_ROWS 64
#define GEMM4_LEVELS_ROWS 64
#define GEMM4_TO_BYTES gemm4_to_bytes
#define HAVE_LOW_TO_BYTES
#define LOW_TILE low_tile
#define LOW_CODES_ROWS 6
#define LOW_LEVELS_ROWS 6
#define COLUMN_LEVELS_TO_BYTES column_levels_to_bytes
#include "kernels/x86/avx2_elementwise.h"
#include "kernels/generic/gemm8.h"
#include "kernels/generic/gemm4.h"
#include "kernels/generic/low_bits.h"

/* c + a * b, of unsigned a and signed b. The asm pins the sum to its register: gcc would copy it each time. */
static QK_INLINE __m256i multiply_add(__m256i c, __m256i a, __m256i b)
{
    c = _mm256_dpbusd_avx_epi32(c, a, b);
    QK_KEEP(c);
    return c;
}

/* Panels may come from the L3 cache or from memory. */
enum { AHEAD = 64 * NR * KR };

static QK_INLINE void store(int32_t *c, __m256i left, __m256i right)
{
    _mm256_storeu_si256((__m256i *)c, left);
    _mm256_storeu_si256((__m256i *)(c + 8), right);
}

static QK_INLINE __m256i load_b(const int8_t *panel) { return _mm256_loadu_si256((const __m256i *)panel); }

/* `rows` is a constant where this is inlined: the accumulators of absent rows vanish. */
static QK_INLINE void tile(const int rows, size_t steps, const uint8_t *a, size_t lda, const int8_t *panel,
                           const int32_t *init, int32_t *c, size_t ldc)
{
    const uint8_t *a3 = a + 3 * lda;
    ask_for_rows(rows, c, ldc, NR);
    __m256i c00 = _mm256_loadu_si256((const __m256i *)init), c01 = _mm256_loadu_si256((const __m256i *)(init + 8));
    __m256i c10 = c00, c11 = c01, c20 = c00, c21 = c01, c30 = c00, c31 = c01, c40 = c00, c41 = c01, c50 = c00,
            c51 = c01;
    for (size_t s = 0; s < steps; s++, a += KR, a3 += KR, panel += NR * KR) {
        const __m256i b0 = load_b(panel), b1 = load_b(panel + 32);
        if (rows > 3) __builtin_prefetch(panel + AHEAD);
        __m256i v = broadcast4(a);
        c00 = multiply_add(c00, v, b0), c01 = multiply_add(c01, v, b1);
        if (rows > 1) v = broadcast4(a + lda), c10 = multiply_add(c10, v, b0), c11 = multiply_add(c11, v, b1);
        if (rows > 2) v = broadcast4(a + 2 * lda), c20 = multiply_add(c20, v, b0), c21 = multiply_add(c21, v, b1);
        if (rows > 3) v = broadcast4(a3), c30 = multiply_add(c30, v, b0), c31 = multiply_add(c31, v, b1);
        if (rows > 4) v = broadcast4(a3 + lda), c40 = multiply_add(c40, v, b0), c41 = multiply_add(c41, v, b1);
        if (rows > 5) v = broadcast4(a3 + 2 * lda), c50 = multiply_add(c50, v, b0), c51 = multiply_add(c51, v, b1);
    }
    store(c, c00, c01);
    if (rows > 1) c += ldc, store(c, c10, c11);
    if (rows > 2) c += ldc, store(c, c20, c21);
    if (rows > 3) c += ldc, store(c, c30, c31);
    if (rows > 4) c += ldc, store(c, c40, c41);
    if (rows > 5) c += ldc, store(c, c50, c51);
}

/* One row, four steps at a time, or two, two at a time: eight chains of sums, since each waits for itself. */
static QK_INLINE void few_rows(const int rows, size_t steps, const uint8_t *a, size_t lda, const int8_t *panel,
                               const int32_t *init, int32_t *c, size_t ldc)
{
    enum { STEP = NR * KR };
    const size_t at_once = rows == 1 ? 4 : 2,
                 other = rows == 1 ? 2 * KR : lda; /* the third and fourth pair of chains */
    const int8_t *after = rows == 1 ? panel + 2 * STEP : panel;
    const __m256i zero = _mm256_setzero_si256();
    __m256i c0 = _mm256_loadu_si256((const __m256i *)init), c1 = _mm256_loadu_si256((const __m256i *)(init + 8));
    __m256i d0 = zero, d1 = zero, e0 = rows == 1 ? zero : c0, e1 = rows == 1 ? zero : c1, f0 = zero, f1 = zero;
    for (; steps >= at_once; steps -= at_once, a += at_once * KR, panel += at_once * STEP, after += at_once * STEP) {
        __m256i v = broadcast4(a), w = broadcast4(a + KR);
        c0 = multiply_add(c0, v, load_b(panel)), c1 = multiply_add(c1, v, load_b(panel + 32));
        d0 = multiply_add(d0, w, load_b(panel + STEP)), d1 = multiply_add(d1, w, load_b(panel + STEP + 32));
        v = broadcast4(a + other), w = broadcast4(a + other + KR);
        e0 = multiply_add(e0, v, load_b(after)), e1 = multiply_add(e1, v, load_b(after + 32));
        f0 = multiply_add(f0, w, load_b(after + STEP)), f1 = multiply_add(f1, w, load_b(after + STEP + 32));
    }
    for (; steps > 0; steps--, a += KR, panel += STEP) {
        const __m256i v = broadcast4(a);
        c0 = multiply_add(c0, v, load_b(panel)), c1 = multiply_add(c1, v, load_b(panel + 32));
        if (rows == 1) continue;
        e0 = multiply_add(e0, broadcast4(a + lda), load_b(panel));
        e1 = multiply_add(e1, broadcast4(a + lda), load_b(panel + 32));
    }
    c0 = _mm256_add_epi32(c0, d0), c1 = _mm256_add_epi32(c1, d1);
    e0 = _mm256_add_epi32(e0, f0), e1 = _mm256_add_epi32(e1, f1);
    if (rows == 1) {
        store(c, _mm256_add_epi32(c0, e0), _mm256_add_epi32(c1, e1));
        return;
    }
    store(c, c0, c1);
    store(c + ldc, e0, e1);
}

static QK_INLINE void few_or_tile(const int rows, size_t steps, const uint8_t *a, size_t lda, const int8_t *panel,
                                  const int32_t *init, int32_t *c, size_t ldc)
{
    if (rows < 3)
        few_rows(rows, steps, a, lda, panel, init, c, ldc);
    else
        tile(rows, steps, a, lda, panel, init, c, ldc);
}

static void gemm8_tile(int rows, size_t steps, const void *a, size_t lda, const int8_t *panel, const int32_t *init,
                       int32_t *c, size_t ldc)
{
    ROWS_6(rows, few_or_tile, steps, a, lda, panel, init, c, ldc);
}

static void gemm8_pack_row(const uint8_t *a, size_t n, size_t n_pad, uint8_t flip, void *to)
{
    pack_row_bytes(a, n, n_pad, flip, to);
}

/* ---- 4-bit weights, and blocks of 8-bit ones (numerics 12) ---- */

/* Weights of 4 bits, or their levels + 128, are the unsigned operand of vpdpbusd; of 8 bits codes of a + 128 are, whose
 * sums start from what the columns' sums take from that. Tile: 6 rows x 16 columns, or 3 rows x 32: 12 sums of a block;
 * those of all blocks are in y, in the L1 cache. */

#include "kernels/x86/avx2_gemm4.h"
#include "kernels/x86/avx2_low_bits.h"

enum { BYTES, CODES, LEVELS };

/* Levels + 128, in each lane of 16 bytes. */
static inline __m256i table_of(const int8_t *levels)
{
    const __m128i table = _mm_xor_si128(_mm_loadu_si128((const __m128i *)levels), _mm_set1_epi8((char)128));
    return _mm256_broadcastsi128_si256(table);
}

/* Sums of one row and a block, and what a step has for them: 8 columns each. */
typedef struct {
    __m256i left, right;
} two_sums;

static QK_INLINE two_sums multiply_step(two_sums c, two_sums b, const int8_t *a, const int kind)
{
    const __m256i v = broadcast4(a);
    if (kind == BYTES) return (two_sums){multiply_add(c.left, v, b.left), multiply_add(c.right, v, b.right)};
    return (two_sums){multiply_add(c.left, b.left, v), multiply_add(c.right, b.right, v)};
}

static QK_INLINE two_sums decode(const uint8_t *b, const int kind, __m256i levels)
{
    const __m256i codes = load_codes(b);
    if (kind == BYTES) return (two_sums){codes, load_codes(b + 32)};
    if (kind == CODES) return (two_sums){low_halves(codes), high_halves(codes)};
    return (two_sums){_mm256_shuffle_epi8(levels, low_halves(codes)), _mm256_shuffle_epi8(levels, high_halves(codes))};
}

/* What all rows of a block of bytes start from: -128 times the sums of 8 columns. */
static inline __m256i column_starts8(const uint8_t *sums, const int wide, size_t col)
{
    const __m256i sum =
        wide ? load_codes(sums + 4 * col) : _mm256_cvtepi16_epi32(_mm_loadu_si128((const __m128i *)(sums + 2 * col)));
    return _mm256_slli_epi32(sum, 7);
}

/* What 16 columns of a block have. */
typedef struct {
    block_columns of;
    two_sums starts;
} columns;

static QK_INLINE columns columns_of(const qk_gemm4_panel *p, const int kind, const int own_zeros, const uint8_t *scales,
                                    const uint8_t *next, size_t col)
{
    const size_t right = col + (kind == BYTES ? 8 : 16);
    columns c = {columns_at(p, kind != BYTES && own_zeros, scales, col, right),
                 {_mm256_setzero_si256(), _mm256_setzero_si256()}};
    if (kind != BYTES) return c;
    const uint8_t *sums = next - (p->long_sums ? 4 : 2) * QK_GEMM4_NR, *zeros = sums - QK_GEMM4_NR;
    c.starts = (two_sums){column_starts8(sums, p->long_sums, col), column_starts8(sums, p->long_sums, right)};
    if (own_zeros) c.of.z0 = zero_pairs8(zeros + col), c.of.z1 = zero_pairs8(zeros + right);
    return c;
}

/* The sums that a row starts from. */
static QK_INLINE two_sums starts_of(columns c, const int kind, const int own_zeros, const int32_t *start)
{
    const __m256i v = _mm256_set1_epi32(*start);
    if (kind == BYTES && !own_zeros) return c.starts;
    if (kind == BYTES)
        return (two_sums){_mm256_add_epi32(c.starts.left, _mm256_madd_epi16(c.of.z0, v)),
                          _mm256_add_epi32(c.starts.right, _mm256_madd_epi16(c.of.z1, v))};
    if (!own_zeros) return (two_sums){v, v};
    return (two_sums){_mm256_mullo_epi32(c.of.z0, v), _mm256_mullo_epi32(c.of.z1, v)};
}

static QK_INLINE void add_row(float *y, two_sums c, columns of, const int kind)
{
    float *right = y + (kind == BYTES ? 8 : 16);
    _mm256_storeu_ps(y, _mm256_fmadd_ps(_mm256_cvtepi32_ps(c.left), of.of.s0, _mm256_loadu_ps(y)));
    _mm256_storeu_ps(right, _mm256_fmadd_ps(_mm256_cvtepi32_ps(c.right), of.of.s1, _mm256_loadu_ps(right)));
}

/* A block of `rows` rows, added to y: of 16 columns that begin with the part `part`, or, of at most 3 rows, of all 32,
 * whose second half is in c3 to c5. `rows`, `kind` and `own_zeros` are constants where this is inlined. */
static QK_INLINE void block_rows(const int rows, const int kind, const int own_zeros, const size_t part,
                                 const qk_gemm4_panel *p, size_t steps, const uint8_t *b, __m256i levels,
                                 const int8_t *a, size_t lda, const int32_t *start, size_t ld_start, float *y)
{
    const int all = rows < 4;
    const size_t step = QK_GEMM4_NR * QK_GEMM4_KR / (kind == BYTES ? 1 : 2), half = step / 2;
    const size_t width = kind == BYTES ? 16 : 8; /* from one part to the other, in columns */
    const uint8_t *scales = b + steps * step, *next = scales + p->params_bytes;
    const columns of = columns_of(p, kind, own_zeros, scales, next, part * width);
    const columns after = all ? columns_of(p, kind, own_zeros, scales, next, width) : of;
    const int8_t *a3 = a + 3 * lda;
    const int32_t *start3 = start + 3 * ld_start;
    two_sums c0 = starts_of(of, kind, own_zeros, start), c1, c2, c3, c4, c5;
    if (rows > 1) c1 = starts_of(of, kind, own_zeros, start + ld_start);
    if (rows > 2) c2 = starts_of(of, kind, own_zeros, start + 2 * ld_start);
    if (rows > 3) c3 = starts_of(of, kind, own_zeros, start3);
    if (rows > 4) c4 = starts_of(of, kind, own_zeros, start3 + ld_start);
    if (rows > 5) c5 = starts_of(of, kind, own_zeros, start3 + 2 * ld_start);
    if (all) c3 = starts_of(after, kind, own_zeros, start);
    if (all && rows > 1) c4 = starts_of(after, kind, own_zeros, start + ld_start);
    if (all && rows > 2) c5 = starts_of(after, kind, own_zeros, start + 2 * ld_start);
    b += part * half;
    for (size_t s = 0; s < steps; s++, b += step, a += QK_GEMM4_KR, a3 += QK_GEMM4_KR) {
        two_sums codes = decode(b, kind, levels);
        c0 = multiply_step(c0, codes, a, kind);
        if (rows > 1) c1 = multiply_step(c1, codes, a + lda, kind);
        if (rows > 2) c2 = multiply_step(c2, codes, a + 2 * lda, kind);
        if (rows > 3) c3 = multiply_step(c3, codes, a3, kind);
        if (rows > 4) c4 = multiply_step(c4, codes, a3 + lda, kind);
        if (rows > 5) c5 = multiply_step(c5, codes, a3 + 2 * lda, kind);
        if (all) codes = decode(b + half, kind, levels), c3 = multiply_step(c3, codes, a, kind);
        if (all && rows > 1) c4 = multiply_step(c4, codes, a + lda, kind);
        if (all && rows > 2) c5 = multiply_step(c5, codes, a + 2 * lda, kind);
    }
    float *to = y + part * width;
    add_row(to, c0, of, kind);
    if (rows > 1) add_row(to + QK_GEMM4_NR, c1, of, kind);
    if (rows > 2) add_row(to + 2 * QK_GEMM4_NR, c2, of, kind);
    if (rows > 3) add_row(to + 3 * QK_GEMM4_NR, c3, of, kind);
    if (rows > 4) add_row(to + 4 * QK_GEMM4_NR, c4, of, kind);
    if (rows > 5) add_row(to + 5 * QK_GEMM4_NR, c5, of, kind);
    if (all) add_row(to + width, c3, after, kind);
    if (all && rows > 1) add_row(to + QK_GEMM4_NR + width, c4, after, kind);
    if (all && rows > 2) add_row(to + 2 * QK_GEMM4_NR + width, c5, after, kind);
}

/* Block by block, so that the second half of the columns finds each in the L1 cache. */
static QK_INLINE void blocks_of(const int rows, const int kind, const int own_zeros, const qk_gemm4_panel *panel,
                                const int8_t *a, size_t lda, const int32_t *start, size_t ld_start, float *y)
{
    const qk_gemm4_panel p = *panel;
    const size_t step = QK_GEMM4_NR * QK_GEMM4_KR / (kind == BYTES ? 1 : 2);
    const __m256i levels = kind == LEVELS ? table_of(p.levels) : _mm256_setzero_si256();
    const uint8_t *b = p.records;
    if (!p.more) memset(y, 0, (size_t)rows * QK_GEMM4_NR * sizeof *y);
    for (size_t block = 1; block <= p.blocks; block++, start++) {
        const size_t steps = block < p.blocks ? p.steps : p.last_steps;
        block_rows(rows, kind, own_zeros, 0, &p, steps, b, levels, a, lda, start, ld_start, y);
        if (rows > 3) block_rows(rows, kind, own_zeros, 1, &p, steps, b, levels, a, lda, start, ld_start, y);
        a += steps * QK_GEMM4_KR, b += steps * step + p.params_bytes;
    }
}

#define ROWS_OF_BLOCKS ROWS_6
#include "kernels/generic/blocks.h"

#include "kernels/generic/depthwise.h"

#include "kernels/generic/table.h"
static const qk_gemm8_kernels gemm8 = {
#include "kernels/families/gemm8.def"
};
static const qk_gemm4_kernels gemm4 = {
#include "kernels/families/gemm4.def"
};
static const qk_blocks8_kernels blocks8 = {
#include "kernels/families/blocks8.def"
};
static const qk_conv_kernels conv = {
#include "kernels/families/conv.def"
};

#define PEAK_VECTOR __m256i
#define PEAK_PRODUCTS 32
static QK_INLINE __m256i peak_step(__m256i sums, __m256i a, __m256i b) { return _mm256_dpbusd_avx_epi32(sums, a, b); }
#include "kernels/generic/peak.h"

const qk_kernels qk_kernels_avxvnni = {
    .name = "avxvnni",
    .available = available,
    .peak = peak,
    .gemm8 = &gemm8,
    .gemm4 = &gemm4,
    .blocks8 = &blocks8,
    .folded = &qk_folded_avx2,
    .gemm8_folded = &qk_gemm8_small_avx2,
    .gemm16 = &qk_gemm16_avx2,
    .gemmf16 = &qk_gemmf16_avx2,
    .elementwise = &qk_elementwise_avx2,
    .codebooks = &qk_codebooks_avx2,
    .layers = &qk_layers_avx2,
    .kmeans = &qk_kmeans_avx2,
    .pq = &qk_pq_avx2,
    .histogram = &qk_histogram_avx2,
    .conv = &conv,
};

QK_TARGET_END
#endif
#endif
