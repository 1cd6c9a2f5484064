/* AVX2 with FMA (Haswell, Zen 1 and later; no VNNI).
 *
 * vpmaddwd: 8 lanes x (2 by 2 int16) summed to int32, exact here (numerics 6), then vpaddd: 16 products for two
 * instructions. vpmaddubsw does twice that and saturates: it serves weights that let packing prove the sums
 * (maddubs.h).
 *
 * Tile: 6 rows x 16 columns, 12 accumulators; 2 registers hold b, 1 the broadcast of a (widened once per block of
 * rows), 1 the products: all 16 registers. b is widened from int8 by vpmovsxbw as it is loaded; where many rows share a
 * panel, once for all of them, which saves 2 of the 26 instructions of a step that need the four vector pipes.
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

static int available(void) { return qk_has_avx2(); }

QK_TARGET_BEGIN("avx2,fma,f16c")
#include "kernels/x86/avx2.h"

#define MR 8 /* of small weights; of others: */
#define GEMM8_MR 6
#define GEMM16_MR 6
#define GEMMF16_MR 6
#define BLOCKS8_MR 32
#define FOLDED_MR 64
#define GEMM4_LEVELS_ROWS 24
#define GEMM4_TO_BYTES gemm4_to_bytes
#define HAVE_LOW_TO_BYTES
#define LOW_TILE low_tile
#define LOW_LEVELS_ROWS 6
#define COLUMN_LEVELS_TO_BYTES column_levels_to_bytes
#define DEPTHWISE_CODES depthwise_codes
#define NR 16
#define KR 2
#define A_BYTES 2
#define GEMM8_WIDE_TILE gemm8_wide_tile
#define GEMM8_WIDEN_PANEL gemm8_widen_panel
#define BLOCKS8_PREPARE_ROW blocks8_prepare_row
#define PQ_TURN pq_turn
#define PQ_SPLIT pq_split
#define PQ_PASS pq_pass
#define PQ_PASS_PACKED pq_pass_packed
#include "kernels/x86/avx2_elementwise.h"
#include "kernels/generic/elementwise.h"
#include "kernels/x86/stochastic.h"
#include "kernels/generic/stochastic.h"
#include "kernels/x86/fake_grad.h"
#include "kernels/generic/fake_grad.h"
#include "kernels/generic/layers.h"
#include "kernels/generic/rotate.h"
#include "kernels/x86/integer_layers.h"
#include "kernels/generic/integer_layers.h"
#include "kernels/generic/codebook.h"
#include "kernels/generic/rounding.h"
#include "kernels/generic/gguf.h"
#include "kernels/generic/gguf_search.h"
#include "kernels/generic/histogram.h"

#include "kernels/generic/gemm8.h"
#include "kernels/generic/gemm4.h"
#include "kernels/generic/low_bits.h"
#include "kernels/generic/gemm16.h"
#include "kernels/generic/depthwise.h"

static inline __m256i broadcast2(const int16_t *p)
{
    int32_t codes;
    memcpy(&codes, p, sizeof codes);
    return _mm256_set1_epi32(codes);
}

static inline __m256i widen(const int8_t *p) { return _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)p)); }

/* c + a * b */
static QK_INLINE __m256i multiply_add(__m256i c, __m256i a, __m256i b)
{
    return add_to_i32(c, _mm256_madd_epi16(a, b));
}

static QK_INLINE void store(int32_t *c, __m256i left, __m256i right)
{
    _mm256_storeu_si256((__m256i *)c, left);
    _mm256_storeu_si256((__m256i *)(c + 8), right);
}

/* What a panel holds: int8, what was int8, or int16 (numerics 17), whose sums begin with 0. */
enum { INT8, WIDENED, INT16 };

/* 16 codes of b. */
static QK_INLINE __m256i load_b(const int8_t *b, const int kind)
{
    if (kind == INT8) return widen(b);
    return kind == WIDENED ? _mm256_load_si256((const __m256i *)b) : _mm256_loadu_si256((const __m256i *)b);
}

/* `rows` and `kind` are constants where this is inlined: the accumulators of absent rows vanish. */
static QK_INLINE void tile(const int rows, const int kind, size_t steps, const int16_t *a, size_t lda,
                           const void *panel, const int32_t *init, int32_t *c, size_t ldc)
{
    const size_t half = kind == INT8 ? NR : 2 * NR; /* bytes */
    const int8_t *b = panel;
    const int16_t *a3 = a + 3 * lda;
    const __m256i zero = _mm256_setzero_si256();
    __m256i c00 = kind == INT16 ? zero : _mm256_loadu_si256((const __m256i *)init);
    __m256i c01 = kind == INT16 ? zero : _mm256_loadu_si256((const __m256i *)(init + 8));
    __m256i c10 = c00, c11 = c01, c20 = c00, c21 = c01, c30 = c00, c31 = c01, c40 = c00, c41 = c01, c50 = c00,
            c51 = c01;
    for (size_t s = 0; s < steps; s++, a += KR, a3 += KR, b += 2 * half) {
        if (kind == INT16 && rows > 1) /* as in gemmf16_rows; one reads faster without */
            _mm_prefetch((const char *)(b + 256 * NR), _MM_HINT_T0);
        const __m256i b0 = load_b(b, kind), b1 = load_b(b + half, kind);
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

static void gemm8_tile(int rows, size_t steps, const void *a, size_t lda, const int8_t *panel, const int32_t *init,
                       int32_t *c, size_t ldc)
{
    ROWS_6(rows, tile, INT8, steps, a, lda / sizeof(int16_t), panel, init, c, ldc);
}

static void gemm8_wide_tile(int rows, size_t steps, const void *a, size_t lda, const int16_t *panel,
                            const int32_t *init, int32_t *c, size_t ldc)
{
    ROWS_6(rows, tile, WIDENED, steps, a, lda / sizeof(int16_t), panel, init, c, ldc);
}

static void gemm8_widen_panel(const int8_t *panel, size_t steps, int16_t *to)
{
    for (size_t i = 0; i < steps * NR * KR; i += 16) _mm256_store_si256((__m256i *)(to + i), widen(panel + i));
}

static void gemm8_pack_row(const uint8_t *a, size_t n, size_t n_pad, uint8_t flip, void *to)
{
    pack_row_int16(a, n, n_pad, flip, to);
}

/* ---- 4-bit weights (numerics 12) ---- */

/* Weights of 0..15 cannot saturate vpmaddubsw, and 8 of its sums fit int16: 32 products for two instructions, with one
 * vpmaddwd by ones every 32 rows of b. Levels of a codebook fill int8: |a| is the unsigned operand, and the level takes
 * the sign of a, so that pairs fit int16, 2 * 127 * 127 < 2^15, and are widened at once. Tile: 4 rows x 16 columns, 8
 * accumulators; for one row 32 columns, so that it reads panels as they lie. The sums of all blocks are in the L1
 * cache. */

enum {
    STEP = QK_GEMM4_NR * QK_GEMM4_KR / 2,
    SHORT_STEPS = 8, /* whose sums int16 holds */
    L1_PART = 12 * 1024
};

#include "kernels/x86/avx2_gemm4.h"
#include "kernels/x86/avx2_low_bits.h"

/* Row by row: the columns of the low halves of bytes, and of the high ones. */
typedef struct {
    __m256i c0, c1, c2, c3, c4, c5, c6, c7;
} eight_sums;

/* c + b * a in int16; pinned as in multiply_add. */
static QK_INLINE __m256i multiply_add_short(__m256i c, __m256i b, __m256i a)
{
    c = _mm256_add_epi16(c, _mm256_maddubs_epi16(b, a));
    QK_KEEP(c);
    return c;
}

/* At most SHORT_STEPS steps of `rows` rows of a and of 16 columns of b. Unrolled, for gcc rotates registers in loops.
 */
static QK_INLINE eight_sums multiply_steps(const int rows, size_t steps, const int8_t *a, size_t lda, const uint8_t *b)
{
    const __m256i zero = _mm256_setzero_si256();
    const int8_t *a3 = a + 3 * lda;
    eight_sums c = {zero, zero, zero, zero, zero, zero, zero, zero};
#pragma GCC unroll 8
    for (size_t s = 0; s < steps; s++, b += STEP, a += QK_GEMM4_KR, a3 += QK_GEMM4_KR) {
        const __m256i two = load_codes(b), b0 = low_halves(two), b1 = high_halves(two);
        __m256i v = broadcast4(a);
        c.c0 = multiply_add_short(c.c0, b0, v), c.c1 = multiply_add_short(c.c1, b1, v);
        if (rows > 1)
            v = broadcast4(a + lda), c.c2 = multiply_add_short(c.c2, b0, v), c.c3 = multiply_add_short(c.c3, b1, v);
        if (rows > 2)
            v = broadcast4(a + 2 * lda), c.c4 = multiply_add_short(c.c4, b0, v), c.c5 = multiply_add_short(c.c5, b1, v);
        if (rows > 3)
            v = broadcast4(a3), c.c6 = multiply_add_short(c.c6, b0, v), c.c7 = multiply_add_short(c.c7, b1, v);
    }
    return c;
}

/* One row and all 32 columns, in c0 .. c3. */
static QK_INLINE eight_sums multiply_row_steps(size_t steps, const int8_t *a, const uint8_t *b)
{
    const __m256i zero = _mm256_setzero_si256();
    eight_sums c = {zero, zero, zero, zero, zero, zero, zero, zero};
    for (size_t s = 0; s < steps; s++, b += STEP, a += QK_GEMM4_KR) {
        const __m256i two0 = load_codes(b), two1 = load_codes(b + 32), v = broadcast4(a);
        c.c0 = multiply_add_short(c.c0, low_halves(two0), v), c.c1 = multiply_add_short(c.c1, low_halves(two1), v);
        c.c2 = multiply_add_short(c.c2, high_halves(two0), v), c.c3 = multiply_add_short(c.c3, high_halves(two1), v);
    }
    return c;
}

/* The same with levels, any number of steps, sums in int32. */
static QK_INLINE eight_sums multiply_levels(const int rows, size_t steps, const int8_t *a, size_t lda, const uint8_t *b,
                                            __m256i levels)
{
    const __m256i zero = _mm256_setzero_si256();
    const int8_t *a3 = a + 3 * lda;
    eight_sums c = {zero, zero, zero, zero, zero, zero, zero, zero};
    for (size_t s = 0; s < steps; s++, b += STEP, a += QK_GEMM4_KR, a3 += QK_GEMM4_KR) {
        const __m256i two = load_codes(b);
        const __m256i b0 = _mm256_shuffle_epi8(levels, low_halves(two)),
                      b1 = _mm256_shuffle_epi8(levels, high_halves(two));
        __m256i v = broadcast4(a);
        c.c0 = multiply_level(c.c0, b0, v), c.c1 = multiply_level(c.c1, b1, v);
        if (rows > 1) v = broadcast4(a + lda);
        if (rows > 1) c.c2 = multiply_level(c.c2, b0, v), c.c3 = multiply_level(c.c3, b1, v);
        if (rows > 2) v = broadcast4(a + 2 * lda);
        if (rows > 2) c.c4 = multiply_level(c.c4, b0, v), c.c5 = multiply_level(c.c5, b1, v);
        if (rows > 3) v = broadcast4(a3);
        if (rows > 3) c.c6 = multiply_level(c.c6, b0, v), c.c7 = multiply_level(c.c7, b1, v);
    }
    return c;
}

static QK_INLINE eight_sums multiply_row_levels(size_t steps, const int8_t *a, const uint8_t *b, __m256i levels)
{
    const __m256i zero = _mm256_setzero_si256();
    eight_sums c = {zero, zero, zero, zero, zero, zero, zero, zero};
    for (size_t s = 0; s < steps; s++, b += STEP, a += QK_GEMM4_KR) {
        const __m256i two0 = load_codes(b), two1 = load_codes(b + 32), v = broadcast4(a);
        c.c0 = multiply_level(c.c0, _mm256_shuffle_epi8(levels, low_halves(two0)), v);
        c.c1 = multiply_level(c.c1, _mm256_shuffle_epi8(levels, low_halves(two1)), v);
        c.c2 = multiply_level(c.c2, _mm256_shuffle_epi8(levels, high_halves(two0)), v);
        c.c3 = multiply_level(c.c3, _mm256_shuffle_epi8(levels, high_halves(two1)), v);
    }
    return c;
}

/* Neighbours of int16 added; and to them, if there is `more`, the sum so far. */
static QK_INLINE __m256i widen_sum(__m256i c, const __m256i *sum, int more)
{
    c = _mm256_madd_epi16(c, _mm256_set1_epi16(1));
    return more ? _mm256_add_epi32(c, *sum) : c;
}

static QK_INLINE eight_sums widen_sums(const int used, eight_sums c, const __m256i *sums, int more)
{
    c.c0 = widen_sum(c.c0, sums, more), c.c1 = widen_sum(c.c1, sums + 1, more);
    if (used > 2) c.c2 = widen_sum(c.c2, sums + 2, more), c.c3 = widen_sum(c.c3, sums + 3, more);
    if (used > 4) c.c4 = widen_sum(c.c4, sums + 4, more), c.c5 = widen_sum(c.c5, sums + 5, more);
    if (used > 6) c.c6 = widen_sum(c.c6, sums + 6, more), c.c7 = widen_sum(c.c7, sums + 7, more);
    return c;
}

static QK_INLINE void store_sums(const int used, __m256i *sums, eight_sums c)
{
    sums[0] = c.c0, sums[1] = c.c1;
    if (used > 2) sums[2] = c.c2, sums[3] = c.c3;
    if (used > 4) sums[4] = c.c4, sums[5] = c.c5;
    if (used > 6) sums[6] = c.c6, sums[7] = c.c7;
}

/* The sums of a block, of one row, scaled and added to the total. */
static QK_INLINE void add_block(__m256 *total, __m256i c0, __m256i c1, int32_t start, block_columns of,
                                const int own_zeros)
{
    const __m256i v = _mm256_set1_epi32(start);
    c0 = _mm256_add_epi32(c0, own_zeros ? _mm256_mullo_epi32(of.z0, v) : v);
    c1 = _mm256_add_epi32(c1, own_zeros ? _mm256_mullo_epi32(of.z1, v) : v);
    total[0] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(c0), of.s0, total[0]);
    total[1] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(c1), of.s1, total[1]);
}

/* The sums of a block. */
static QK_INLINE eight_sums multiply_numbers(const int rows, const int wide, size_t steps, const int8_t *a, size_t lda,
                                             const uint8_t *b)
{
    const int used = wide ? 4 : 2 * rows;
    __m256i sums[8];
    int more = 0; /* whether `sums` hold some of them */
    for (; steps > SHORT_STEPS;
         steps -= SHORT_STEPS, a += QK_GEMM4_KR * SHORT_STEPS, b += STEP * SHORT_STEPS, more = 1) {
        const eight_sums c =
            wide ? multiply_row_steps(SHORT_STEPS, a, b) : multiply_steps(rows, SHORT_STEPS, a, lda, b);
        store_sums(used, sums, widen_sums(used, c, sums, more));
    }
    const eight_sums last = wide ? multiply_row_steps(steps, a, b)
        : steps == SHORT_STEPS   ? multiply_steps(rows, SHORT_STEPS, a, lda, b)
                                 : multiply_steps(rows, steps, a, lda, b);
    return widen_sums(used, last, sums, more);
}

/* y += a * panel, of `rows` rows and 16 columns: 8 from `col` on, and from `col` + 16; or of one row and 32 columns.
 * The first three are constants where this is inlined. */
static QK_INLINE void gemm4_rows(const int rows, const int own_zeros, const int looked_up, size_t col,
                                 const qk_gemm4_panel *p, const int8_t *a, size_t lda, const int32_t *start,
                                 size_t ld_start, float *y)
{
    const int wide = rows == 1, used = wide ? 4 : 2 * rows;
    const size_t params_bytes = qk_scales_bytes(p) + (own_zeros ? QK_GEMM4_NR : 0);
    const uint8_t *b = p->records + 4 * col;
    const __m256i zero = _mm256_setzero_si256();
    const __m256i levels = looked_up ? _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)p->levels)) : zero;
    __m256 total[8];
    y += col;
    for (int i = 0; i < used; i++) total[i] = _mm256_loadu_ps(wide ? y + 8 * i : y + i / 2 * QK_GEMM4_NR + i % 2 * 16);
    for (size_t block = 0; block < p->blocks; block++, start++) {
        const size_t steps = block + 1 < p->blocks ? p->steps : p->last_steps;
        const uint8_t *scales = b - 4 * col + steps * STEP;
        const eight_sums c = !looked_up ? multiply_numbers(rows, wide, steps, a, lda, b)
            : wide                      ? multiply_row_levels(steps, a, b, levels)
                                        : multiply_levels(rows, steps, a, lda, b, levels);
        const block_columns of = columns_at(p, own_zeros, scales, col, col + (wide ? 8 : 16));
        add_block(total, c.c0, c.c1, looked_up ? 0 : start[0], of, own_zeros);
        if (wide)
            add_block(total + 2, c.c2, c.c3, looked_up ? 0 : start[0], columns_at(p, own_zeros, scales, 16, 24),
                      own_zeros);
        if (rows > 1) add_block(total + 2, c.c2, c.c3, looked_up ? 0 : start[ld_start], of, own_zeros);
        if (rows > 2) add_block(total + 4, c.c4, c.c5, looked_up ? 0 : start[2 * ld_start], of, own_zeros);
        if (rows > 3) add_block(total + 6, c.c6, c.c7, looked_up ? 0 : start[3 * ld_start], of, own_zeros);
        a += steps * QK_GEMM4_KR, b = scales + params_bytes + 4 * col;
    }
    for (int i = 0; i < used; i++) _mm256_storeu_ps(wide ? y + 8 * i : y + i / 2 * QK_GEMM4_NR + i % 2 * 16, total[i]);
}

/* All 32 columns. */
static QK_INLINE void gemm4_columns(const int own_zeros, const int looked_up, int rows, const qk_gemm4_panel *p,
                                    const int8_t *a, size_t lda, const int32_t *start, size_t ld_start, float *y)
{
    for (size_t col = 0; col < 16; col += rows == 1 ? 16 : 8)
        ROWS_4(rows, gemm4_rows, own_zeros, looked_up, col, p, a, lda, start, ld_start, y);
}

/* Some blocks at a time, so that the second half of the columns finds them in the L1 cache: 128 bytes apart and from
 * L2, lines came half as fast at times. */
static void gemm4_tile(int rows, const qk_gemm4_panel *p, const int8_t *a, size_t lda, const int32_t *start,
                       size_t ld_start, float *y)
{
    const size_t record = p->steps * STEP + qk_scales_bytes(p) + (p->own_zeros ? QK_GEMM4_NR : 0);
    const size_t most = rows == 1 ? p->blocks : record < L1_PART ? L1_PART / record : 1;
    qk_gemm4_panel part = *p;
    if (!p->more) memset(y, 0, (size_t)rows * QK_GEMM4_NR * sizeof *y);
    for (size_t left = p->blocks; left; left -= part.blocks) {
        part.blocks = left < most ? left : most;
        part.last_steps = part.blocks == left ? p->last_steps : p->steps;
        if (p->levels)
            gemm4_columns(0, 1, rows, &part, a, lda, start, ld_start, y);
        else if (p->own_zeros)
            gemm4_columns(1, 0, rows, &part, a, lda, start, ld_start, y);
        else
            gemm4_columns(0, 0, rows, &part, a, lda, start, ld_start, y);
        part.records += part.blocks * record, a += part.blocks * p->steps * QK_GEMM4_KR, start += part.blocks;
    }
}

/* ---- blocks of 8-bit weights (numerics 12) ---- */

/* vpmaddubsw multiplies |a| by b, its bits flipped where a < 0: -b - 1 instead of -b, which is made good by the sum of
 * the |a| of a < 0, known for each block of a row. Two products fit 16 bits, 2 * 127 * 128 < 2^15, and are widened at
 * once; four do if their |a| sum up to 256 or less, and are added before: 28 instructions a block of 32 rows x 8
 * columns instead of 32. Codes of normal values seldom fail, uniform ones often. Tile: 32 rows x 32 columns, block by
 * block in parts of 4 rows x 16 columns, while its codes are in the L1 cache as sums of all blocks are. */

enum { BYTES_STEP = QK_GEMM4_NR * QK_GEMM4_KR, PART_ROWS = 4, MOST_PAIRED = 256 };

/* A block of a row as the tile reads it; 4 magnitudes and 4 signs (0 or -1) of each step follow. */
typedef struct {
    int32_t negatives; /* sum of |a| where a < 0 */
    int32_t apart;     /* whether some steps do not fit 16 bits in pairs */
} block_of_row;

/* Two steps of a row, or one and zeros. `sums` gets the magnitudes that are added in 16 bits, `negatives` those of
 * negative codes. */
static QK_INLINE void prepare_steps(__m128i codes, int8_t *to, const int both, __m128i *sums, __m128i *negatives)
{
    const __m128i zero = _mm_setzero_si128(), sign = _mm_cmpgt_epi8(zero, codes), size = _mm_abs_epi8(codes);
    const __m128i pairs = _mm_maddubs_epi16(size, _mm_set1_epi8(1)), steps = _mm_unpacklo_epi32(size, sign);
    *sums = _mm_max_epi16(*sums, _mm_add_epi16(pairs, _mm_srli_epi64(pairs, 32)));
    *negatives = _mm_add_epi32(*negatives, _mm_sad_epu8(_mm_and_si128(size, sign), zero));
    if (both)
        _mm_storeu_si128((__m128i *)to, steps);
    else
        _mm_storel_epi64((__m128i *)to, steps);
}

static void blocks8_prepare_row(const int8_t *a, size_t n, size_t block, void *prepared)
{
    int8_t *to = prepared;
    for (size_t left = n, rows; left; left -= rows) {
        __m128i sums = _mm_setzero_si128(), negatives = sums;
        block_of_row *head = (block_of_row *)to;
        rows = left < block ? left : block;
        to += sizeof *head;
        size_t i = 0;
        for (; i + 8 <= rows; i += 8, a += 8, to += 16)
            prepare_steps(_mm_loadl_epi64((const __m128i *)a), to, 1, &sums, &negatives);
        if (i < rows) {
            int32_t last;
            memcpy(&last, a, sizeof last);
            prepare_steps(_mm_cvtsi32_si128(last), to, 0, &sums, &negatives);
            a += 4, to += 8;
        }
        const int first = _mm_extract_epi16(sums, 0), second = _mm_extract_epi16(sums, 1);
        head->negatives = _mm_cvtsi128_si32(negatives);
        head->apart = first > MOST_PAIRED || second > MOST_PAIRED;
    }
}

/* The sums that 8 columns of a row start from. */
static QK_INLINE __m256i starts8(const int own_zeros, __m256i zeros, const int32_t *start, const uint8_t *a)
{
    const __m256i negatives = broadcast4(a + offsetof(block_of_row, negatives));
    return own_zeros ? _mm256_add_epi32(negatives, _mm256_madd_epi16(zeros, _mm256_set1_epi32(*start))) : negatives;
}

/* Pairs of products of a step of a row, at `a`, and 8 columns. */
static QK_INLINE __m256i products8(const uint8_t *a, __m256i b)
{
    return _mm256_maddubs_epi16(broadcast4(a), _mm256_xor_si256(b, broadcast4(a + 4)));
}

/* c + the products of one step, or of two. */
static QK_INLINE __m256i add_products8(const int steps, __m256i c, const uint8_t *a, __m256i b, __m256i next)
{
    __m256i products = products8(a, b);
    if (steps > 1) products = _mm256_add_epi16(products, products8(a + 8, next));
    return add_to_i32(c, _mm256_madd_epi16(products, _mm256_set1_epi16(1)));
}

static inline void add_sums(float *y, __m256i c0, __m256i c1, block_columns of)
{
    _mm256_storeu_ps(y, _mm256_fmadd_ps(_mm256_cvtepi32_ps(c0), of.s0, _mm256_loadu_ps(y)));
    _mm256_storeu_ps(y + 8, _mm256_fmadd_ps(_mm256_cvtepi32_ps(c1), of.s1, _mm256_loadu_ps(y + 8)));
}

/* The sums of `rows` rows and 16 columns: c0 and c1 are of the first row. */
static QK_INLINE void add_steps8(const int rows, const int steps, eight_sums *c, const uint8_t *a, size_t lda,
                                 const uint8_t *b)
{
    const uint8_t *next = b + (steps > 1 ? BYTES_STEP : 0);
    const __m256i b0 = load_codes(b), b1 = load_codes(b + 32), n0 = load_codes(next), n1 = load_codes(next + 32);
    c->c0 = add_products8(steps, c->c0, a, b0, n0), c->c1 = add_products8(steps, c->c1, a, b1, n1);
    if (rows > 1) a += lda, c->c2 = add_products8(steps, c->c2, a, b0, n0);
    if (rows > 1) c->c3 = add_products8(steps, c->c3, a, b1, n1);
    if (rows > 2) a += lda, c->c4 = add_products8(steps, c->c4, a, b0, n0);
    if (rows > 2) c->c5 = add_products8(steps, c->c5, a, b1, n1);
    if (rows > 3) a += lda, c->c6 = add_products8(steps, c->c6, a, b0, n0);
    if (rows > 3) c->c7 = add_products8(steps, c->c7, a, b1, n1);
}

/* A block of `rows` rows and of 16 columns, added to y. `rows` and `own_zeros` are constants where this is inlined. */
static QK_INLINE void blocks8_part(const int rows, const int own_zeros, size_t steps, const uint8_t *b,
                                   block_columns of, const uint8_t *a, size_t lda, const int32_t *start,
                                   size_t ld_start, float *y)
{
    int apart = 0;
    for (int i = 0; i < rows; i++) apart |= ((const block_of_row *)(a + (size_t)i * lda))->apart;
    eight_sums c;
    c.c0 = starts8(own_zeros, of.z0, start, a), c.c1 = starts8(own_zeros, of.z1, start, a);
    const uint8_t *a1 = a + lda, *a2 = a1 + lda, *a3 = a2 + lda;
    const int32_t *start1 = start + ld_start, *start2 = start1 + ld_start, *start3 = start2 + ld_start;
    if (rows > 1) c.c2 = starts8(own_zeros, of.z0, start1, a1), c.c3 = starts8(own_zeros, of.z1, start1, a1);
    if (rows > 2) c.c4 = starts8(own_zeros, of.z0, start2, a2), c.c5 = starts8(own_zeros, of.z1, start2, a2);
    if (rows > 3) c.c6 = starts8(own_zeros, of.z0, start3, a3), c.c7 = starts8(own_zeros, of.z1, start3, a3);
    a += sizeof(block_of_row);
    if (!apart)
        for (; steps > 1; steps -= 2, a += 16, b += 2 * BYTES_STEP) add_steps8(rows, 2, &c, a, lda, b);
    for (; steps; steps--, a += 8, b += BYTES_STEP) add_steps8(rows, 1, &c, a, lda, b);
    add_sums(y, c.c0, c.c1, of);
    if (rows > 1) add_sums(y + QK_GEMM4_NR, c.c2, c.c3, of);
    if (rows > 2) add_sums(y + 2 * QK_GEMM4_NR, c.c4, c.c5, of);
    if (rows > 3) add_sums(y + 3 * QK_GEMM4_NR, c.c6, c.c7, of);
}

/* A block of all rows and of 16 columns from `col` on. */
static QK_INLINE void blocks8_half(const int own_zeros, int rows, size_t col, size_t steps, const qk_gemm4_panel *p,
                                   const uint8_t *b, const uint8_t *a, size_t lda, const int32_t *start,
                                   size_t ld_start, float *y)
{
    const uint8_t *scales = b + steps * BYTES_STEP, *zeros = scales + qk_scales_bytes(p) + col;
    block_columns of = columns_at(p, 0, scales, col, col + 8);
    if (own_zeros) of.z0 = zero_pairs8(zeros), of.z1 = zero_pairs8(zeros + 8);
    b += QK_GEMM4_KR * col, y += col;
    for (; rows >= PART_ROWS; rows -= PART_ROWS) {
        blocks8_part(PART_ROWS, own_zeros, steps, b, of, a, lda, start, ld_start, y);
        a += PART_ROWS * lda, start += PART_ROWS * ld_start, y += PART_ROWS * QK_GEMM4_NR;
    }
    switch (rows) {
    case 1: blocks8_part(1, own_zeros, steps, b, of, a, lda, start, ld_start, y); break;
    case 2: blocks8_part(2, own_zeros, steps, b, of, a, lda, start, ld_start, y); break;
    case 3: blocks8_part(3, own_zeros, steps, b, of, a, lda, start, ld_start, y); break;
    default: break;
    }
}

/* Block by block, both halves of the columns of each. Few rows use codes as fast as they arrive, so these are fetched
 * two blocks ahead. */
static QK_INLINE void blocks8_columns(const int own_zeros, int rows, const qk_gemm4_panel *p, const uint8_t *a,
                                      size_t lda, const int32_t *start, size_t ld_start, float *y)
{
    const uint8_t *b = p->records;
    for (size_t block = 1; block <= p->blocks; block++, start++) {
        const size_t steps = block < p->blocks ? p->steps : p->last_steps;
        const size_t record = steps * BYTES_STEP + p->params_bytes;
        for (size_t i = 0; i < record; i += 64) _mm_prefetch((const char *)(b + 2 * record + i), _MM_HINT_T0);
        for (size_t col = 0; col < QK_GEMM4_NR; col += 16)
            blocks8_half(own_zeros, rows, col, steps, p, b, a, lda, start, ld_start, y);
        a += sizeof(block_of_row) + steps * 2 * QK_GEMM4_KR, b += steps * BYTES_STEP + p->params_bytes;
    }
}

static void blocks8_tile(int rows, const qk_gemm4_panel *p, const void *a, size_t lda, const int32_t *start,
                         size_t ld_start, float *y)
{
    if (!p->more) memset(y, 0, (size_t)rows * QK_GEMM4_NR * sizeof *y);
    if (p->own_zeros)
        blocks8_columns(1, rows, p, a, lda, start, ld_start, y);
    else
        blocks8_columns(0, rows, p, a, lda, start, ld_start, y);
}

/* ---- k-means: what kmeans.h needs ---- */

typedef int32_t indices8 __attribute__((vector_size(32), aligned(4), may_alias));
typedef int64_t indices4 __attribute__((vector_size(32), aligned(8), may_alias));

static inline __m256 multiply_add_f32(__m256 x, __m256 sum) { return _mm256_fmadd_ps(x, x, sum); }
static inline __m256d smaller_f64(__m256d a, __m256d b) { return _mm256_min_pd(a, b); }
static inline __m256d multiply_add_f64(__m256d x, __m256d sum) { return _mm256_fmadd_pd(x, x, sum); }

static inline __m256 minus_f32(__m256 x, const float *c) { return _mm256_sub_ps(x, _mm256_broadcast_ss(c)); }
static inline __m256d minus_f64(__m256d x, const double *c) { return _mm256_sub_pd(x, _mm256_broadcast_sd(c)); }

static inline void fence_f32(__m256 *a, __m256 *b, __m256 *c, __m256 *d) { QK_KEEP4(*a, *b, *c, *d); }
static inline void fence_f64(__m256d *a, __m256d *b, __m256d *c, __m256d *d) { QK_KEEP4(*a, *b, *c, *d); }

static inline void keep_two_f32(__m256 distance, int32_t index, __m256 *first, __m256 *second, indices8 *nearest)
{
    const __m256 nearer = _mm256_cmp_ps(distance, *first, _CMP_LT_OQ);
    *second = _mm256_min_ps(*second, _mm256_max_ps(distance, *first));
    *first = _mm256_min_ps(*first, distance);
    *nearest = (indices8)_mm256_blendv_epi8((__m256i)*nearest, _mm256_set1_epi32(index), (__m256i)nearer);
}

static inline void keep_two_f64(__m256d distance, int32_t index, __m256d *first, __m256d *second, indices4 *nearest)
{
    const __m256d nearer = _mm256_cmp_pd(distance, *first, _CMP_LT_OQ);
    *second = _mm256_min_pd(*second, _mm256_max_pd(distance, *first));
    *first = _mm256_min_pd(*first, distance);
    *nearest = (indices4)_mm256_blendv_epi8((__m256i)*nearest, _mm256_set1_epi64x(index), (__m256i)nearer);
}

#define HAVE_LANES
#include "kernels/generic/kmeans.h"
#include "kernels/generic/pq.h"
#include "kernels/x86/pq_filter.h"
#include "kernels/generic/kmeans1d.h"
#include "kernels/generic/least_squares.h"

/* ---- float16 and bfloat16 weights (numerics 16) ---- */

/* Tile: 6 rows x 16 columns, as for bytes: columns 0..7 and 16..23 of a panel, then the other two eights. One row takes
 * two panels at once, 8 chains of multiply-adds. */

/* 8 columns each. */
typedef struct {
    __m256 left, right;
} two_floats;

/* Columns col .. col + 7 and the same + 16 of a row of a panel. `type` is a constant where this is inlined. */
static QK_INLINE two_floats row_of_floats(const uint16_t *p, size_t col, const qk_dtype type)
{
    if (type == QK_F32)
        return (two_floats){_mm256_loadu_ps((const float *)p + col), _mm256_loadu_ps((const float *)p + 16 + col)};
    if (type == QK_F16)
        return (two_floats){_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(p + col))),
                            _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(p + 16 + col)))};
    const __m256i two = _mm256_loadu_si256((const __m256i *)(p + 2 * col));
    return (two_floats){_mm256_castsi256_ps(_mm256_slli_epi32(two, 16)),
                        _mm256_castsi256_ps(_mm256_and_si256(two, _mm256_set1_epi32((int32_t)0xffff0000)))};
}

static QK_INLINE void store_floats(float *y, __m256 left, __m256 right)
{
    _mm256_storeu_ps(y, left);
    _mm256_storeu_ps(y + 16, right);
}

static QK_INLINE void gemmf16_rows(const int rows, const qk_dtype type, size_t k, const float *a, size_t lda,
                                   const uint16_t *panel, size_t col, int more, float *y)
{
    const float *a3 = a + 3 * lda;
    const __m256 zero = _mm256_setzero_ps();
    __m256 c00 = zero, c01 = zero, c10 = zero, c11 = zero, c20 = zero, c21 = zero;
    __m256 c30 = zero, c31 = zero, c40 = zero, c41 = zero, c50 = zero, c51 = zero;
    const size_t step = type == QK_F32 ? 2 * QK_GEMMF16_NR : QK_GEMMF16_NR;
    y += col;
    if (more) {
        c00 = _mm256_loadu_ps(y), c01 = _mm256_loadu_ps(y + 16);
        if (rows > 1) c10 = _mm256_loadu_ps(y + 32), c11 = _mm256_loadu_ps(y + 48);
        if (rows > 2) c20 = _mm256_loadu_ps(y + 64), c21 = _mm256_loadu_ps(y + 80);
        if (rows > 3) c30 = _mm256_loadu_ps(y + 96), c31 = _mm256_loadu_ps(y + 112);
        if (rows > 4) c40 = _mm256_loadu_ps(y + 128), c41 = _mm256_loadu_ps(y + 144);
        if (rows > 5) c50 = _mm256_loadu_ps(y + 160), c51 = _mm256_loadu_ps(y + 176);
    }
    for (size_t i = 0; i < k; i++, a++, a3++, panel += step) {
        _mm_prefetch((const char *)(panel + 64 * QK_GEMMF16_NR),
                     _MM_HINT_T0); /* few rows use weights as fast as they arrive */
        const two_floats b = row_of_floats(panel, col, type);
        __m256 v = _mm256_set1_ps(a[0]);
        c00 = _mm256_fmadd_ps(v, b.left, c00), c01 = _mm256_fmadd_ps(v, b.right, c01);
        if (rows > 1)
            v = _mm256_set1_ps(a[lda]), c10 = _mm256_fmadd_ps(v, b.left, c10), c11 = _mm256_fmadd_ps(v, b.right, c11);
        if (rows > 2)
            v = _mm256_set1_ps(a[2 * lda]), c20 = _mm256_fmadd_ps(v, b.left, c20),
            c21 = _mm256_fmadd_ps(v, b.right, c21);
        if (rows > 3)
            v = _mm256_set1_ps(a3[0]), c30 = _mm256_fmadd_ps(v, b.left, c30), c31 = _mm256_fmadd_ps(v, b.right, c31);
        if (rows > 4)
            v = _mm256_set1_ps(a3[lda]), c40 = _mm256_fmadd_ps(v, b.left, c40), c41 = _mm256_fmadd_ps(v, b.right, c41);
        if (rows > 5)
            v = _mm256_set1_ps(a3[2 * lda]), c50 = _mm256_fmadd_ps(v, b.left, c50),
            c51 = _mm256_fmadd_ps(v, b.right, c51);
    }
    store_floats(y, c00, c01);
    if (rows > 1) y += 32, store_floats(y, c10, c11);
    if (rows > 2) y += 32, store_floats(y, c20, c21);
    if (rows > 3) y += 32, store_floats(y, c30, c31);
    if (rows > 4) y += 32, store_floats(y, c40, c41);
    if (rows > 5) y += 32, store_floats(y, c50, c51);
}

static QK_INLINE void gemmf16_tile_of(const qk_dtype type, int rows, size_t k, const float *a, size_t lda,
                                      const uint16_t *panel, int more, float *y)
{
    for (size_t col = 0; col < 16; col += 8) ROWS_6(rows, gemmf16_rows, type, k, a, lda, panel, col, more, y);
}

static void gemmf16_tile(int rows, size_t k, const float *a, size_t lda, const uint16_t *panel, qk_dtype type, int more,
                         float *y)
{
    if (type == QK_F32)
        gemmf16_tile_of(QK_F32, rows, k, a, lda, panel, more, y);
    else if (type == QK_F16)
        gemmf16_tile_of(QK_F16, rows, k, a, lda, panel, more, y);
    else
        gemmf16_tile_of(QK_BF16, rows, k, a, lda, panel, more, y);
}

/* One row and one or two panels. */
static QK_INLINE void gemmf16_panels(const int panels, const qk_dtype type, size_t k, const float *a,
                                     const uint16_t *panel, float *y)
{
    const size_t size = k * QK_GEMMF16_NR;
    const __m256 zero = _mm256_setzero_ps();
    __m256 c00 = zero, c01 = zero, c10 = zero, c11 = zero, c20 = zero, c21 = zero, c30 = zero, c31 = zero;
    for (size_t i = 0; i < k; i++, panel += QK_GEMMF16_NR) {
        const __m256 v = _mm256_set1_ps(a[i]);
        two_floats b = row_of_floats(panel, 0, type);
        c00 = _mm256_fmadd_ps(v, b.left, c00), c01 = _mm256_fmadd_ps(v, b.right, c01);
        b = row_of_floats(panel, 8, type), c10 = _mm256_fmadd_ps(v, b.left, c10),
        c11 = _mm256_fmadd_ps(v, b.right, c11);
        if (panels == 1) continue;
        b = row_of_floats(panel + size, 0, type), c20 = _mm256_fmadd_ps(v, b.left, c20),
        c21 = _mm256_fmadd_ps(v, b.right, c21);
        b = row_of_floats(panel + size, 8, type), c30 = _mm256_fmadd_ps(v, b.left, c30),
        c31 = _mm256_fmadd_ps(v, b.right, c31);
    }
    store_floats(y, c00, c01), store_floats(y + 8, c10, c11);
    if (panels > 1) store_floats(y + 32, c20, c21), store_floats(y + 40, c30, c31);
}

static void gemmf16_row(int panels, size_t k, const float *a, const uint16_t *panel, qk_dtype type, float *y)
{
    const uint16_t *p = panel;
    for (; panels > 0; panels -= 2, p += 2 * k * QK_GEMMF16_NR, y += 2 * QK_GEMMF16_NR)
        switch ((type == QK_BF16) + 2 * (panels > 1)) {
        case 0: gemmf16_panels(1, QK_F16, k, a, p, y); break;
        case 1: gemmf16_panels(1, QK_BF16, k, a, p, y); break;
        case 2: gemmf16_panels(2, QK_F16, k, a, p, y); break;
        default: gemmf16_panels(2, QK_BF16, k, a, p, y); break;
        }
}

/* ---- 4-bit weights that fold to int8 (numerics 33) ---- */

#include "kernels/x86/avx2_folded.h"

/* ---- int16 (numerics 17) ---- */

static void gemm16_tile(int rows, size_t steps, const int16_t *a, size_t lda, const int16_t *panel, int32_t *c)
{
    ROWS_6(rows, tile, INT16, steps, a, lda, panel, NULL, c, NR);
}

#include "kernels/generic/table.h"
#define FAMILY(name) const qk_##name##_kernels qk_##name##_avx2 =
#include "kernels/generic/families.def"

#define SMALL_TABLE const qk_gemm8_kernels qk_gemm8_small_avx2
#include "kernels/x86/maddubs.h"

#define PEAK_IN_TWO 1
#define PEAK_VECTOR __m256i
#define PEAK_PRODUCTS 16
static QK_INLINE __m256i peak_step(__m256i sums, __m256i a, __m256i b)
{
    return _mm256_add_epi32(sums, _mm256_madd_epi16(a, b));
}
#include "kernels/generic/peak.h"

const qk_kernels qk_kernels_avx2 = {
    .name = "avx2",
    .available = available,
    .peak = peak,
    .gemm8 = &qk_gemm8_avx2,
    .gemm8_small = &qk_gemm8_small_avx2,
    .gemm4 = &qk_gemm4_avx2,
    .blocks8 = &qk_blocks8_avx2,
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
    .conv = &qk_conv_avx2,
};

QK_TARGET_END
#endif
