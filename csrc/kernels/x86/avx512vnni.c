/* AVX-512 with VNNI (Ice Lake, Sapphire Rapids, Zen 4 and later).
 *
 * vpdpbusd: 16 lanes x (4 unsigned by 4 signed bytes) added to int32, no saturation (numerics 6).
 * Zen 4 issues one 512-bit vpdpbusd a cycle (latency 4), Zen 5 two: 64 or 128 products a cycle.
 *
 * Tile: 12 rows x 32 columns, 24 accumulators; 2 registers hold b, 1 the broadcast of a: 27 of 32. One step takes 4
 * codes of k: 2 loads of b, 12 broadcasts of a, 24 vpdpbusd, so loads (2 a cycle) are never the limit. Half as many
 * rows do as well from the L1 cache, but at k = 1024 a panel fills it, and is read from L2 once for each tile.
 *
 *          b0 (16 columns)  b1 (16 columns)
 *     a0   c00              c01
 *     a1   c10              c11
 *     ..   ..               ..
 *     ab   cb0              cb1
 */
#if defined(__x86_64__)
#include "kernels/kernels.h"
#include "kernels/x86/cpu.h"
#include "kernels/x86/target.h"
#include "runtime/compiler.h"

static int available(void) { return qk_has_avx512vnni(); }

QK_TARGET_BEGIN("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c,prfchw", "prefer-vector-width=512")

#define WITH_VNNI 1
#define DEPTHWISE_TAPS 4
#define MR 12
#define DEPTHWISE_CODES depthwise_codes
#define DEPTHWISE_PASS depthwise_pass
#define NR 32
#define KR 4
#define GEMM4_MR 4
#define GEMM4_CODES_ROWS 24
#define GEMM4_LEVELS_ROWS 24
#define GEMM4_TO_BYTES gemm4_to_bytes
#define COLUMN_LEVELS_TO_BYTES column_levels_to_bytes
#define LOW_TILE low_tile
#define LOW_CODES_ROWS 24
#define LOW_LEVELS_ROWS 24
#define HAVE_LOW_TO_BYTES
#define FOLDED_MR 12
#define FOLDED_PAIRS 1
#define UNFOLD_ROWS 24
#define UNFOLD_PANEL unfold_panel
#define BLOCKS8_FLIP 128
#define GEMM8_WHOLE_TILE gemm8_whole_tile
#define GEMM8_WINDOW_TILE gemm8_window_tile
#define GEMM8_HALF_TILE gemm8_half_tile
#define GEMM8_HALF_CODES gemm8_half_codes
#define GEMM8_FAR_TILE gemm8_far_tile
#define HAVE_COLUMN_SUMS
#include "kernels/x86/avx512_elementwise.h"
#include "kernels/generic/gemm8.h"
#include "kernels/generic/folded.h"
#include "kernels/generic/gemm4.h"
#include "kernels/generic/low_bits.h"
#include "kernels/generic/gemm16.h"
#include "kernels/x86/avx512_int16.h"
#include "kernels/x86/avx512_gemm4.h"

/* Bytes of a panel that are asked for ahead of their use (avx512_int16.h). */
enum { AHEAD = 32 * NR * KR };

/* The sums of a row: of even steps and of odd ones, since vpdpbusd takes 4 cycles and b comes faster. */
typedef struct {
    __m512i c0, c1, d0, d1;
} row_sums;

static QK_INLINE row_sums two_steps(row_sums s, const uint8_t *a, __m512i b0, __m512i b1, __m512i b2, __m512i b3)
{
    const __m512i v = broadcast4(a), w = broadcast4(a + KR);
    return (row_sums){_mm512_dpbusd_epi32(s.c0, v, b0), _mm512_dpbusd_epi32(s.c1, v, b1),
                      _mm512_dpbusd_epi32(s.d0, w, b2), _mm512_dpbusd_epi32(s.d1, w, b3)};
}

static QK_INLINE row_sums last_step(row_sums s, const uint8_t *a, __m512i b0, __m512i b1)
{
    const __m512i v = broadcast4(a);
    s.c0 = _mm512_dpbusd_epi32(s.c0, v, b0), s.c1 = _mm512_dpbusd_epi32(s.c1, v, b1);
    return s;
}

static QK_INLINE void store_row(int32_t *c, row_sums s)
{
    _mm512_storeu_si512(c, _mm512_add_epi32(s.c0, s.d0)), _mm512_storeu_si512(c + 16, _mm512_add_epi32(s.c1, s.d1));
}

/* Up to four rows, two steps at a time. If the panel is `far`, it is asked for. */
static QK_INLINE void few_rows(const int rows, const int far, size_t steps, const uint8_t *a, size_t lda,
                               const int8_t *panel, const int32_t *init, int32_t *c, size_t ldc)
{
    const __m512i none = _mm512_setzero_si512();
    row_sums s0 = {_mm512_loadu_si512(init), _mm512_loadu_si512(init + 16), none, none}, s1 = s0, s2 = s0, s3 = s0;
    for (; steps > 1; steps -= 2, a += 2 * KR, panel += 2 * NR * KR) {
        const __m512i b0 = _mm512_loadu_si512(panel), b1 = _mm512_loadu_si512(panel + 64);
        const __m512i b2 = _mm512_loadu_si512(panel + 128), b3 = _mm512_loadu_si512(panel + 192);
        for (int line = 0; far && line < 4; line++) __builtin_prefetch(panel + AHEAD + 64 * line);
        s0 = two_steps(s0, a, b0, b1, b2, b3);
        if (rows > 1) s1 = two_steps(s1, a + lda, b0, b1, b2, b3);
        if (rows > 2) s2 = two_steps(s2, a + 2 * lda, b0, b1, b2, b3);
        if (rows > 3) s3 = two_steps(s3, a + 3 * lda, b0, b1, b2, b3);
    }
    if (steps) {
        const __m512i b0 = _mm512_loadu_si512(panel), b1 = _mm512_loadu_si512(panel + 64);
        s0 = last_step(s0, a, b0, b1);
        if (rows > 1) s1 = last_step(s1, a + lda, b0, b1);
        if (rows > 2) s2 = last_step(s2, a + 2 * lda, b0, b1);
        if (rows > 3) s3 = last_step(s3, a + 3 * lda, b0, b1);
    }
    store_row(c, s0);
    if (rows > 1) store_row(c + ldc, s1);
    if (rows > 2) store_row(c + 2 * ldc, s2);
    if (rows > 3) store_row(c + 3 * ldc, s3);
}

static QK_INLINE void few_or_tile(const int rows, size_t steps, const uint8_t *a, size_t lda, const int8_t *panel,
                                  const int32_t *init, int32_t *c, size_t ldc)
{
    if (rows < 3)
        few_rows(rows, 0, steps, a, lda, panel, init, c, ldc);
    else
        exact_rows(rows, BYTES, 1, (qk_window){1, steps, 0}, (const char *)a, lda, panel, init, c, ldc, NULL);
}

static void gemm8_tile(int rows, size_t steps, const void *a, size_t lda, const int8_t *panel, const int32_t *init,
                       int32_t *c, size_t ldc)
{
    ROWS_12(rows, few_or_tile, steps, a, lda, panel, init, c, ldc);
}

static void gemm8_far_tile(int rows, size_t steps, const void *a, size_t lda, const int8_t *panel, const int32_t *init,
                           int32_t *c, size_t ldc)
{
    ROWS_4(rows, few_rows, 1, steps, a, lda, panel, init, c, ldc);
}

static void gemm8_whole_tile(int rows, size_t steps, const void *a, size_t lda, const int8_t *panel,
                             const int32_t *init, int32_t *c, size_t ldc, const qk_ahead *given)
{
    const qk_ahead ahead = *given;
    (void)rows; /* MR */
    exact_rows(MR, BYTES, 1, (qk_window){1, steps, 0}, a, lda, panel, init, c, ldc, &ahead);
}

static void gemm8_window_tile(int rows, const qk_window *window, const void *a, size_t lda, const int8_t *panel,
                              const int32_t *init, int32_t *c, const qk_ahead *given)
{
    const qk_ahead ahead = *given;
    const qk_window w = *window;
    ROWS_12(rows, exact_rows, BYTES, 1, w, a, lda, panel, init, c, NR, &ahead);
}

/* As exact_rows, of columns for which one register is enough; if there is a tile, sums become codes at once. */
static QK_INLINE void half_rows(const int rows, size_t steps, const uint8_t *a, size_t lda, const int8_t *panel,
                                const int32_t *init, int32_t *c, size_t ldc, const qk_tile *t)
{
    const uint8_t *a3 = a + 3 * lda, *a6 = a + 6 * lda, *a9 = a + 9 * lda;
    __m512i c0 = _mm512_loadu_si512(init), c1 = c0, c2 = c0, c3 = c0, c4 = c0, c5 = c0;
    __m512i c6 = c0, c7 = c0, c8 = c0, c9 = c0, ca = c0, cb = c0;
    for (size_t s = 0; s < steps; s++, a += KR, a3 += KR, a6 += KR, a9 += KR, panel += NR * KR) {
        const __m512i b = _mm512_loadu_si512(panel);
        c0 = _mm512_dpbusd_epi32(c0, broadcast4(a), b);
        if (rows > 1) c1 = _mm512_dpbusd_epi32(c1, broadcast4(a + lda), b);
        if (rows > 2) c2 = _mm512_dpbusd_epi32(c2, broadcast4(a + 2 * lda), b);
        if (rows > 3) c3 = _mm512_dpbusd_epi32(c3, broadcast4(a3), b);
        if (rows > 4) c4 = _mm512_dpbusd_epi32(c4, broadcast4(a3 + lda), b);
        if (rows > 5) c5 = _mm512_dpbusd_epi32(c5, broadcast4(a3 + 2 * lda), b);
        if (rows > 6) c6 = _mm512_dpbusd_epi32(c6, broadcast4(a6), b);
        if (rows > 7) c7 = _mm512_dpbusd_epi32(c7, broadcast4(a6 + lda), b);
        if (rows > 8) c8 = _mm512_dpbusd_epi32(c8, broadcast4(a6 + 2 * lda), b);
        if (rows > 9) c9 = _mm512_dpbusd_epi32(c9, broadcast4(a9), b);
        if (rows > 10) ca = _mm512_dpbusd_epi32(ca, broadcast4(a9 + lda), b);
        if (rows > 11) cb = _mm512_dpbusd_epi32(cb, broadcast4(a9 + 2 * lda), b);
    }
    if (t) {
        const half_codes to = half_codes_of(t);
        char *dst = t->dst;
        store_half_rows(dst, rows, c0, c1, c2, c3, to);
        if (rows > 4) store_half_rows(dst + 4 * to.stride, rows - 4, c4, c5, c6, c7, to);
        if (rows > 8) store_half_rows(dst + 8 * to.stride, rows - 8, c8, c9, ca, cb, to);
        return;
    }
    const __m512i sums[] = {c0, c1, c2, c3, c4, c5, c6, c7, c8, c9, ca, cb};
    for (int row = 0; row < rows; row++, c += ldc)
        _mm512_storeu_si512(c, sums[row]), _mm512_storeu_si512(c + 16, _mm512_setzero_si512());
}

static void gemm8_half_tile(int rows, size_t steps, const void *a, size_t lda, const int8_t *panel, const int32_t *init,
                            int32_t *c, size_t ldc)
{
    ROWS_12(rows, half_rows, steps, a, lda, panel, init, c, ldc, NULL);
}

static void gemm8_half_codes(size_t steps, const void *a, size_t lda, const int8_t *panel, const int32_t *init,
                             const qk_tile *t)
{
    ROWS_12(t->rows, half_rows, steps, a, lda, panel, init, NULL, 0, t);
}

static void gemm8_pack_row(const uint8_t *a, size_t n, size_t n_pad, uint8_t flip, void *to)
{
    pack_row_bytes(a, n, n_pad, flip, to);
}

/* ---- 4-bit weights (numerics 12) ---- */

/* The sums of four registers. */
static inline __m128i sums_of_four(__m512i a, __m512i b, __m512i c, __m512i d)
{
    const __m512i ab = _mm512_add_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
    const __m512i cd = _mm512_add_epi32(_mm512_unpacklo_epi32(c, d), _mm512_unpackhi_epi32(c, d));
    const __m512i all = _mm512_add_epi32(_mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd));
    const __m256i half = _mm256_add_epi32(_mm512_castsi512_si256(all), _mm512_extracti64x4_epi64(all, 1));
    return _mm_add_epi32(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
}

/* Eight rows, and their sums. */
typedef struct {
    const uint8_t *x0, *x1, *x2, *x3, *x4, *x5, *x6, *x7;
} eight_rows;

typedef struct {
    __m512i s0, s1, s2, s3, s4, s5, s6, s7;
} eight_sums;

/* Adds the products of 64 codes, or of some of them. */
static QK_INLINE void add_codes(eight_sums *s, const eight_rows *x, size_t f, const int8_t *column, __m512i flip,
                                const int whole, some_codes some)
{
#define CODES(p) (whole ? _mm512_loadu_si512((p) + f) : load_some((const uint8_t *)(p) + f, some))
#define ADD(i) s->s##i = _mm512_dpbusd_epi32(s->s##i, _mm512_xor_si512(CODES(x->x##i), flip), b)
    const __m512i b = CODES(column);
    ADD(0), ADD(1), ADD(2), ADD(3), ADD(4), ADD(5), ADD(6), ADD(7);
#undef ADD
#undef CODES
}

/* Eight rows at a time; the last one again if there are fewer. */
static void column_sums(const qk_few_rows *rows, size_t k, const qk_column *column, int32_t *c)
{
    const size_t lda = rows->lda, last = rows->count - 1;
    const __m512i zero = _mm512_setzero_si512(), flip = _mm512_set1_epi8((char)rows->flip);
    for (size_t i = 0; i <= last; i += 8) {
        const uint8_t *x = (const uint8_t *)rows->a + i * lda;
        const size_t left = last - i;
        const eight_rows eight = {x,
                                  x + min_size(1, left) * lda,
                                  x + min_size(2, left) * lda,
                                  x + min_size(3, left) * lda,
                                  x + min_size(4, left) * lda,
                                  x + min_size(5, left) * lda,
                                  x + min_size(6, left) * lda,
                                  x + min_size(7, left) * lda};
        eight_sums s = {zero, zero, zero, zero, zero, zero, zero, zero};
        size_t f = 0;
        for (; f + 64 <= k; f += 64) add_codes(&s, &eight, f, column->codes, flip, 1, 0);
        if (f < k) add_codes(&s, &eight, f, column->codes, flip, 0, first_codes(k - f));
        const __m128i low = sums_of_four(s.s0, s.s1, s.s2, s.s3), high = sums_of_four(s.s4, s.s5, s.s6, s.s7);
        _mm256_mask_storeu_epi32(c + i, (__mmask8)((2u << min_size(7, left)) - 1), _mm256_set_m128i(high, low));
    }
}

/* The weights are the unsigned operand of vpdpbusd. Tile: 4 rows x 32 columns, with 8 sums of a block and 8 of all
 * blocks.
 *
 * A byte t = 16 h + l has codes of two columns, which meet the same a: T = sum a t = 16 H + L, and sum a (t & 240) = 16
 * H. So one `and` for two vpdpbusd decodes both, but to part H and L takes two instructions a row at the end of a
 * block. One row, which is bound by vector instructions of all kinds, gains 10%; 4 rows decode code by code, on other
 * pipes than vpdpbusd, and levels must. Multiply-adds at the end of a block are on the pipes of vpdpbusd: with 64 of
 * those in a block of 32 rows, 8/9 of the peak is the limit. */

enum {
    STEP = QK_GEMM4_NR * QK_GEMM4_KR / 2,
    MOST_STEPS = 16 * 1024 /* of a block: 4 * 16 * 1024 * 255 * 127 < 2^31 */
};

/* Adds to the sums so far those of a block, times its scales. */
static QK_INLINE void add_block(__m512 *y0, __m512 *y1, two_sums c, const int kind, __m512i start1, __m512 s0,
                                __m512 s1)
{
    const __m512i low = kind ? c.low : _mm512_sub_epi32(c.low, c.high);
    const __m512i high = kind ? c.high : _mm512_srai_epi32(c.high, 4);
    *y0 = _mm512_fmadd_ps(_mm512_cvtepi32_ps(low), s0, *y0);
    *y1 = _mm512_fmadd_ps(_mm512_cvtepi32_ps(_mm512_add_epi32(high, start1)), s1, *y1);
}

/* `rows`, `own_zeros` and `kind` are constants where this is inlined. */
static QK_INLINE void gemm4_rows(const int rows, const int own_zeros, const int kind, const qk_gemm4_panel *panel,
                                 const int8_t *a, size_t lda, const int32_t *start, size_t ld_start, float *y)
{
    const qk_gemm4_panel p = *panel;
    const __m512i levels = kind >= SHUFFLED ? table_of(p.levels) : _mm512_setzero_si512();
    const uint8_t *b = p.records;
    const size_t scale_bytes = qk_scales_bytes(panel);
    const __m512i none = _mm512_setzero_si512();
    __m512 y00 = _mm512_setzero_ps(), y01 = y00, y10 = y00, y11 = y00, y20 = y00, y21 = y00, y30 = y00, y31 = y00;
    if (p.more) {
        y00 = _mm512_loadu_ps(y), y01 = _mm512_loadu_ps(y + 16);
        if (rows > 1) y10 = _mm512_loadu_ps(y + 32), y11 = _mm512_loadu_ps(y + 48);
        if (rows > 2) y20 = _mm512_loadu_ps(y + 64), y21 = _mm512_loadu_ps(y + 80);
        if (rows > 3) y30 = _mm512_loadu_ps(y + 96), y31 = _mm512_loadu_ps(y + 112);
    }
    for (size_t block = 1; block <= p.blocks; block++, start++) {
        const size_t steps = block < p.blocks ? p.steps : p.last_steps;
        const uint8_t *scales = b + steps * STEP, *zeros = scales + scale_bytes;
        __m512i z0 = none, z1 = none;
        if (own_zeros) z0 = widen16(zeros), z1 = widen16(zeros + 16);
        two_sums c0 = {starts16(z0, own_zeros, start[0]), none}, c1 = {none, none}, c2 = c1, c3 = c1, d0 = c1;
        if (rows > 1) c1.low = starts16(z0, own_zeros, start[ld_start]);
        if (rows > 2) c2.low = starts16(z0, own_zeros, start[2 * ld_start]);
        if (rows > 3) c3.low = starts16(z0, own_zeros, start[3 * ld_start]);
        if (rows == 1) /* two more chains, for vpdpbusd takes 4 cycles */
            for (; b + STEP < scales; b += 2 * STEP, a += 2 * QK_GEMM4_KR) {
                c0 = multiply_step(c0, decode(b, kind, levels), a);
                d0 = multiply_step(d0, decode(b + STEP, kind, levels), a + QK_GEMM4_KR);
            }
        for (; b != scales; b += STEP, a += QK_GEMM4_KR) {
            const step_bytes of = decode(b, kind, levels);
            c0 = multiply_step(c0, of, a);
            if (rows > 1) c1 = multiply_step(c1, of, a + lda);
            if (rows > 2) c2 = multiply_step(c2, of, a + 2 * lda);
            if (rows > 3) c3 = multiply_step(c3, of, a + 3 * lda);
        }
        if (rows == 1) c0.low = _mm512_add_epi32(c0.low, d0.low), c0.high = _mm512_add_epi32(c0.high, d0.high);
        const __m512 s0 = scales16(scales, &p, 0), s1 = scales16(scales, &p, 1);
        add_block(&y00, &y01, c0, kind, starts16(z1, own_zeros, start[0]), s0, s1);
        if (rows > 1) add_block(&y10, &y11, c1, kind, starts16(z1, own_zeros, start[ld_start]), s0, s1);
        if (rows > 2) add_block(&y20, &y21, c2, kind, starts16(z1, own_zeros, start[2 * ld_start]), s0, s1);
        if (rows > 3) add_block(&y30, &y31, c3, kind, starts16(z1, own_zeros, start[3 * ld_start]), s0, s1);
        b = zeros + (own_zeros ? QK_GEMM4_NR : 0);
    }
    _mm512_storeu_ps(y, y00), _mm512_storeu_ps(y + 16, y01);
    if (rows > 1) y += 32, _mm512_storeu_ps(y, y10), _mm512_storeu_ps(y + 16, y11);
    if (rows > 2) y += 32, _mm512_storeu_ps(y, y20), _mm512_storeu_ps(y + 16, y21);
    if (rows > 3) y += 32, _mm512_storeu_ps(y, y30), _mm512_storeu_ps(y + 16, y31);
}

static QK_INLINE void gemm4_tile_of(const int own_zeros, const int kind, int rows, const qk_gemm4_panel *p,
                                    const int8_t *a, size_t lda, const int32_t *start, size_t ld_start, float *y)
{
    ROWS_4(rows, gemm4_rows, own_zeros, kind, p, a, lda, start, ld_start, y);
}

static void gemm4_tile(int rows, const qk_gemm4_panel *p, const int8_t *a, size_t lda, const int32_t *start,
                       size_t ld_start, float *y)
{
    const int by_code = rows > 3 || (p->blocks > 1 ? p->steps : p->last_steps) > MOST_STEPS;
    if (p->levels && has_vpermb())
        gemm4_tile_of(0, PERMUTED, rows, p, a, lda, start, ld_start, y);
    else if (p->levels)
        gemm4_tile_of(0, SHUFFLED, rows, p, a, lda, start, ld_start, y);
    else if (p->own_zeros && by_code)
        gemm4_tile_of(1, CODES, rows, p, a, lda, start, ld_start, y);
    else if (p->own_zeros)
        gemm4_tile_of(1, BOTH, rows, p, a, lda, start, ld_start, y);
    else if (by_code)
        gemm4_tile_of(0, CODES, rows, p, a, lda, start, ld_start, y);
    else
        gemm4_tile_of(0, BOTH, rows, p, a, lda, start, ld_start, y);
}

/* ---- 4-bit weights with levels of each column (numerics 12) ---- */

/* A lane of 16 bytes has 16 rows of one column, so vpshufb looks them up in its levels. Tile: 4 rows x 16 columns, each
 * sum in four parts, which are added at the end of k. With 8 columns, broadcasts of 16 codes of a cost 25%. */

enum { OWN_STEP = QK_COLUMN_LEVELS_NR * QK_COLUMN_LEVELS_KR / 2 };

static inline __m512i broadcast16(const int8_t *a)
{
    return _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)a));
}
static inline __m512i levels_at(const uint8_t *p)
{
    return _mm512_xor_si512(_mm512_loadu_si512(p), _mm512_set1_epi8((char)128));
}

/* Sums of four parts, a lane: of c0, then of c1. */
static inline __m256i add_parts(__m512i c0, __m512i c1)
{
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 0, 0, 0, 0, 0, 0, 0, 0);
    const __m512i pairs = _mm512_add_epi32(_mm512_unpacklo_epi32(c0, c1), _mm512_unpackhi_epi32(c0, c1));
    const __m512i sums = _mm512_add_epi32(pairs, _mm512_shuffle_epi32(pairs, 0x4e));
    return _mm512_castsi512_si256(_mm512_permutexvar_epi32(order, sums));
}

static inline void store_columns(float *y, __m512i c0, __m512i c1, __m512i c2, __m512i c3, int32_t start, __m512 scale)
{
    const __m512i sums = _mm512_inserti64x4(_mm512_castsi256_si512(add_parts(c0, c1)), add_parts(c2, c3), 1);
    _mm512_storeu_ps(y, _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_add_epi32(sums, _mm512_set1_epi32(start))), scale));
}

/* `rows` is a constant where this is inlined. b has levels, then codes, of 16 columns. */
static QK_INLINE void column_levels_rows(const int rows, size_t steps, const uint8_t *b, const float *scales,
                                         const int8_t *a, size_t lda, const int32_t *start, size_t ld_start, float *y)
{
    const __m512i levels0 = levels_at(b), levels1 = levels_at(b + 64);
    const __m512i levels2 = levels_at(b + 128), levels3 = levels_at(b + 192);
    const int8_t *a3 = a + 3 * lda;
    __m512i c00 = _mm512_setzero_si512(), c01 = c00, c02 = c00, c03 = c00, c10 = c00, c11 = c00, c12 = c00, c13 = c00;
    __m512i c20 = c00, c21 = c00, c22 = c00, c23 = c00, c30 = c00, c31 = c00, c32 = c00, c33 = c00, v;
    for (const uint8_t *end = b + OWN_STEP * steps; b != end; a += QK_COLUMN_LEVELS_KR, a3 += QK_COLUMN_LEVELS_KR) {
        b += OWN_STEP;
        const __m512i two0 = _mm512_loadu_si512(b), two1 = _mm512_loadu_si512(b + 64);
        const __m512i two2 = _mm512_loadu_si512(b + 128), two3 = _mm512_loadu_si512(b + 192);
        __m512i b0 = byte_of(two0, SHUFFLED, levels0), b1 = byte_of(two1, SHUFFLED, levels1);
        __m512i b2 = byte_of(two2, SHUFFLED, levels2), b3 = byte_of(two3, SHUFFLED, levels3);
        v = broadcast16(a), c00 = multiply_add(c00, b0, v), c01 = multiply_add(c01, b1, v);
        c02 = multiply_add(c02, b2, v), c03 = multiply_add(c03, b3, v);
        if (rows > 1) v = broadcast16(a + lda), c10 = multiply_add(c10, b0, v), c11 = multiply_add(c11, b1, v);
        if (rows > 1) c12 = multiply_add(c12, b2, v), c13 = multiply_add(c13, b3, v);
        if (rows > 2) v = broadcast16(a + 2 * lda), c20 = multiply_add(c20, b0, v), c21 = multiply_add(c21, b1, v);
        if (rows > 2) c22 = multiply_add(c22, b2, v), c23 = multiply_add(c23, b3, v);
        if (rows > 3) v = broadcast16(a3), c30 = multiply_add(c30, b0, v), c31 = multiply_add(c31, b1, v);
        if (rows > 3) c32 = multiply_add(c32, b2, v), c33 = multiply_add(c33, b3, v);
        b0 = byte_of(_mm512_srli_epi16(two0, 4), SHUFFLED, levels0),
        b1 = byte_of(_mm512_srli_epi16(two1, 4), SHUFFLED, levels1);
        b2 = byte_of(_mm512_srli_epi16(two2, 4), SHUFFLED, levels2),
        b3 = byte_of(_mm512_srli_epi16(two3, 4), SHUFFLED, levels3);
        v = broadcast16(a + 16), c00 = multiply_add(c00, b0, v), c01 = multiply_add(c01, b1, v);
        c02 = multiply_add(c02, b2, v), c03 = multiply_add(c03, b3, v);
        if (rows > 1) v = broadcast16(a + lda + 16), c10 = multiply_add(c10, b0, v), c11 = multiply_add(c11, b1, v);
        if (rows > 1) c12 = multiply_add(c12, b2, v), c13 = multiply_add(c13, b3, v);
        if (rows > 2) v = broadcast16(a + 2 * lda + 16), c20 = multiply_add(c20, b0, v), c21 = multiply_add(c21, b1, v);
        if (rows > 2) c22 = multiply_add(c22, b2, v), c23 = multiply_add(c23, b3, v);
        if (rows > 3) v = broadcast16(a3 + 16), c30 = multiply_add(c30, b0, v), c31 = multiply_add(c31, b1, v);
        if (rows > 3) c32 = multiply_add(c32, b2, v), c33 = multiply_add(c33, b3, v);
    }
    const __m512 scale = _mm512_loadu_ps(scales);
    store_columns(y, c00, c01, c02, c03, start[0], scale);
    if (rows > 1) store_columns(y + 32, c10, c11, c12, c13, start[ld_start], scale);
    if (rows > 2) store_columns(y + 64, c20, c21, c22, c23, start[2 * ld_start], scale);
    if (rows > 3) store_columns(y + 96, c30, c31, c32, c33, start[3 * ld_start], scale);
}

static void column_levels_tile(int rows, const qk_gemm4_panel *p, const int8_t *a, size_t lda, const int32_t *start,
                               size_t ld_start, float *y)
{
    const size_t steps = p->last_steps, group = OWN_STEP * (1 + steps);
    const uint8_t *b = p->records;
    const float *scales = (const float *)(b + 2 * group);
    if (p->blocks == 0) memset(y, 0, (size_t)rows * QK_GEMM4_NR * sizeof *y);
    for (int i = 0; p->blocks && i < 2; i++, b += group, scales += 16, y += 16)
        ROWS_4(rows, column_levels_rows, steps, b, scales, a, lda, start, ld_start, y);
}

/* ---- panels of 4 bits that become panels of 8 ---- */

/* `kind` is a constant where this is inlined: CODES less the zero points of their columns, or looked up. */
static QK_INLINE void blocks_to_bytes(const int kind, const qk_gemm4_panel *panel, int32_t zero, uint8_t *to)
{
    const qk_gemm4_panel p = *panel;
    const __m512i table = bytes_of_codes(panel, zero);
    __m512i z0 = _mm512_setzero_si512(), z1 = z0;
    const uint8_t *b = p.records;
    for (size_t block = 1; block <= p.blocks; block++) {
        const uint8_t *scales = b + (block < p.blocks ? p.steps : p.last_steps) * STEP;
        const uint8_t *zeros = scales + qk_scales_bytes(panel);
        column_totals sums = {_mm512_setzero_si512(), _mm512_setzero_si512()};
        if (kind == CODES) z0 = zeros16(zeros), z1 = zeros16(zeros + 16);
        for (; b != scales; b += STEP, to += 2 * STEP) {
            const step_bytes of = decode(b, kind, table);
            if (kind == CODES)
                store_step(to, _mm512_sub_epi8(of.low, z0), _mm512_sub_epi8(of.high, z1), &sums);
            else
                store_step(to, of.low, of.high, &sums);
        }
        _mm512_storeu_ps((float *)to, scales16(scales, &p, 0));
        _mm512_storeu_ps((float *)to + 16, scales16(scales, &p, 1));
        store_sums(to + 128, sums);
        to += 256, b = scales + p.params_bytes;
    }
}

static void gemm4_to_bytes(const qk_gemm4_panel *p, int32_t zero, uint8_t *to)
{
    if (p->own_zeros)
        blocks_to_bytes(CODES, p, zero, to);
    else if (has_vpermb())
        blocks_to_bytes(PERMUTED, p, zero, to);
    else
        blocks_to_bytes(SHUFFLED, p, zero, to);
}

/* 16 rows of 16 columns, a lane of r0 .. r3 for each, become 4 steps. */
static QK_INLINE void turn_columns(__m512i r0, __m512i r1, __m512i r2, __m512i r3, size_t steps, uint8_t *to,
                                   __m512i *sum)
{
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    const __m512i low01 = _mm512_unpacklo_epi32(r0, r1), low23 = _mm512_unpacklo_epi32(r2, r3);
    const __m512i high01 = _mm512_unpackhi_epi32(r0, r1), high23 = _mm512_unpackhi_epi32(r2, r3);
    const __m512i turned[] = {_mm512_unpacklo_epi64(low01, low23), _mm512_unpackhi_epi64(low01, low23),
                              _mm512_unpacklo_epi64(high01, high23), _mm512_unpackhi_epi64(high01, high23)};
#pragma GCC unroll 4
    for (size_t s = 0; s < 4 && s < steps; s++, to += 2 * STEP) {
        const __m512i step = _mm512_permutexvar_epi32(order, turned[s]);
        *sum = _mm512_dpbusd_epi32(*sum, _mm512_set1_epi8(1), step);
        _mm512_storeu_si512(to, step);
    }
}

/* The levels of 16 rows of 4 columns. */
static inline __m512i columns_of_levels(const uint8_t *levels, const uint8_t *b, __m128i shift)
{
    const __m512i codes = _mm512_srl_epi16(_mm512_loadu_si512(b), shift);
    return _mm512_shuffle_epi8(_mm512_loadu_si512(levels), _mm512_and_si512(codes, _mm512_set1_epi8(15)));
}

static void column_levels_to_bytes(const qk_gemm4_panel *p, size_t steps, uint8_t *to)
{
    const size_t group = OWN_STEP * (1 + p->last_steps);
    uint8_t *params = to + 2 * STEP * steps;
    column_totals sums = {_mm512_setzero_si512(), _mm512_setzero_si512()};
    for (int i = 0; i < 2; i++)
        for (size_t s = 0; s < steps; s += 4) {
            const uint8_t *levels = p->records + (size_t)i * group, *b = levels + OWN_STEP * (1 + s / 8);
            const __m128i shift = _mm_cvtsi32_si128((int)(s % 8)); /* 4 for the high halves of bytes */
            turn_columns(columns_of_levels(levels, b, shift), columns_of_levels(levels + 64, b + 64, shift),
                         columns_of_levels(levels + 128, b + 128, shift),
                         columns_of_levels(levels + 192, b + 192, shift), min_size(steps - s, 4),
                         to + 2 * STEP * s + STEP * i, i ? &sums.high : &sums.low);
        }
    memcpy(params, p->records + 2 * group, 128);
    store_sums(params + 128, sums);
}

/* ---- blocks of 8-bit weights (numerics 12) ---- */

/* Codes of a are the unsigned operand, + 128, as where a column has one scale; its zero points are those of the sums of
 * the columns, from which all rows start: copies of a register are free, while to load a start of each row took 6%.
 * Tile: 12 rows x 32 columns, 24 sums of a block; those of all blocks are in y, in the L1 cache. 6 rows, which leave
 * registers for these, are slower by 5%. At the end of a block each sum takes two instructions on the pipes of
 * vpdpbusd, which has 8 in a block of 32 rows: 8/10 of the peak is the limit. */

enum { BYTES_STEP = QK_GEMM4_NR * QK_GEMM4_KR };

static QK_INLINE two_sums multiply_bytes(two_sums c, step_bytes b, const int8_t *a)
{
    const __m512i v = broadcast_codes(a);
    return (two_sums){multiply_add(c.low, v, b.low), multiply_add(c.high, v, b.high)};
}

static inline step_bytes load_step(const uint8_t *b)
{
    return (step_bytes){_mm512_loadu_si512(b), _mm512_loadu_si512(b + 64)};
}

/* Zero points z of 16 columns, as int16 (z, 256 z). */
static inline __m512i zero_pairs16(const uint8_t *zeros)
{
    const __m512i z = _mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)zeros));
    return _mm512_or_si512(_mm512_and_si512(z, _mm512_set1_epi32(0xffff)), _mm512_slli_epi32(z, 24));
}

/* What 32 columns of a block have. */
typedef struct {
    __m512 s0, s1;
    __m512i z0, z1;
} block_columns;

static QK_INLINE block_columns columns_of(const int own_zeros, const uint8_t *scales, const uint8_t *zeros,
                                          const qk_gemm4_panel *p)
{
    block_columns of = {scales16(scales, p, 0), scales16(scales, p, 1), _mm512_setzero_si512(), _mm512_setzero_si512()};
    if (own_zeros) of.z0 = zero_pairs16(zeros), of.z1 = zero_pairs16(zeros + 16);
    return of;
}

/* Adds the sums of a block, of one row, to those of all blocks. */
static QK_INLINE void add_sums(float *y, two_sums c, const int own_zeros, block_columns of, const int32_t *start)
{
    if (own_zeros) {
        const __m512i v = _mm512_set1_epi32(*start);
        c = (two_sums){_mm512_dpwssd_epi32(c.low, of.z0, v), _mm512_dpwssd_epi32(c.high, of.z1, v)};
    }
    _mm512_storeu_ps(y, _mm512_fmadd_ps(_mm512_cvtepi32_ps(c.low), of.s0, _mm512_loadu_ps(y)));
    _mm512_storeu_ps(y + 16, _mm512_fmadd_ps(_mm512_cvtepi32_ps(c.high), of.s1, _mm512_loadu_ps(y + 16)));
}

/* Asks, in step s of a tile, for what will be read. */
static QK_INLINE void ask_for_bytes(const qk_gemm4_panel *p, const uint8_t *b, size_t s, const int rows)
{
    if (p->ahead)
        ask_ahead(p->ahead, s, rows);
    else
        __builtin_prefetch(b + 2 * AHEAD), __builtin_prefetch(b + 2 * AHEAD + 64);
}

/* `rows` and `own_zeros` are constants where this is inlined. Where rows are few, every other step has sums of its own,
 * since vpdpbusd takes 4 cycles or 5. */
static QK_INLINE void blocks8_rows(const int rows, const int own_zeros, const qk_gemm4_panel *panel, const int8_t *a,
                                   size_t lda, const int32_t *start, size_t ld_start, float *y)
{
    const qk_gemm4_panel p = *panel;
    const uint8_t *b = p.records;
    const int8_t *a3 = a + 3 * lda, *a6 = a + 6 * lda, *a9 = a + 9 * lda;
    const int32_t *start3 = start + 3 * ld_start, *start6 = start + 6 * ld_start, *start9 = start + 9 * ld_start;
    const __m512i none = _mm512_setzero_si512();
    size_t s = 0;
    if (!p.more) clear_rows(y, rows);
    for (size_t block = 1; block <= p.blocks; block++, start++, start3++, start6++, start9++) {
        const uint8_t *scales = b + (block < p.blocks ? p.steps : p.last_steps) * BYTES_STEP,
                      *next = scales + p.params_bytes;
        const uint8_t *sums = next - (p.long_sums ? 4 : 2) * QK_GEMM4_NR, *zeros = sums - QK_GEMM4_NR;
        const two_sums columns = {column_starts16(sums, p.long_sums, 0), column_starts16(sums, p.long_sums, 1)};
        two_sums c0 = columns, c1 = c0, c2 = c0, c3 = c0, c4 = c0, c5 = c0, c6 = c0, c7 = c0, c8 = c0, c9 = c0, ca = c0,
                 cb = c0;
        two_sums d0 = {none, none}, d1 = d0;
        if (rows < 3)
            for (; b + BYTES_STEP < scales; b += 2 * BYTES_STEP, a += 2 * QK_GEMM4_KR) {
                const step_bytes of = load_step(b), after = load_step(b + BYTES_STEP);
                c0 = multiply_bytes(c0, of, a), d0 = multiply_bytes(d0, after, a + QK_GEMM4_KR);
                if (rows > 1)
                    c1 = multiply_bytes(c1, of, a + lda), d1 = multiply_bytes(d1, after, a + lda + QK_GEMM4_KR);
            }
        for (; b != scales;
             b += BYTES_STEP, a += QK_GEMM4_KR, a3 += QK_GEMM4_KR, a6 += QK_GEMM4_KR, a9 += QK_GEMM4_KR) {
            const step_bytes of = load_step(b);
            if (rows > 4) ask_for_bytes(&p, b, s++, rows);
            c0 = multiply_bytes(c0, of, a);
            if (rows > 1) c1 = multiply_bytes(c1, of, a + lda);
            if (rows > 2) c2 = multiply_bytes(c2, of, a + 2 * lda);
            if (rows > 3) c3 = multiply_bytes(c3, of, a3);
            if (rows > 4) c4 = multiply_bytes(c4, of, a3 + lda);
            if (rows > 5) c5 = multiply_bytes(c5, of, a3 + 2 * lda);
            if (rows > 6) c6 = multiply_bytes(c6, of, a6);
            if (rows > 7) c7 = multiply_bytes(c7, of, a6 + lda);
            if (rows > 8) c8 = multiply_bytes(c8, of, a6 + 2 * lda);
            if (rows > 9) c9 = multiply_bytes(c9, of, a9);
            if (rows > 10) ca = multiply_bytes(ca, of, a9 + lda);
            if (rows > 11) cb = multiply_bytes(cb, of, a9 + 2 * lda);
        }
        if (rows < 3) c0 = (two_sums){_mm512_add_epi32(c0.low, d0.low), _mm512_add_epi32(c0.high, d0.high)};
        if (rows == 2) c1 = (two_sums){_mm512_add_epi32(c1.low, d1.low), _mm512_add_epi32(c1.high, d1.high)};
        __asm__ volatile("" ::: "memory"); /* or gcc would keep y in more registers than there are */
        if (rows > 4 && !p.ahead)
            for (size_t i = 0; i < p.params_bytes; i += 64) __builtin_prefetch(scales + 2 * AHEAD + i);
        const block_columns of = columns_of(own_zeros, scales, zeros, &p);
        add_sums(y, c0, own_zeros, of, start);
        if (rows > 1) add_sums(y + 32, c1, own_zeros, of, start + ld_start);
        if (rows > 2) add_sums(y + 64, c2, own_zeros, of, start + 2 * ld_start);
        if (rows > 3) add_sums(y + 96, c3, own_zeros, of, start3);
        if (rows > 4) add_sums(y + 128, c4, own_zeros, of, start3 + ld_start);
        if (rows > 5) add_sums(y + 160, c5, own_zeros, of, start3 + 2 * ld_start);
        if (rows > 6) add_sums(y + 192, c6, own_zeros, of, start6);
        if (rows > 7) add_sums(y + 224, c7, own_zeros, of, start6 + ld_start);
        if (rows > 8) add_sums(y + 256, c8, own_zeros, of, start6 + 2 * ld_start);
        if (rows > 9) add_sums(y + 288, c9, own_zeros, of, start9);
        if (rows > 10) add_sums(y + 320, ca, own_zeros, of, start9 + ld_start);
        if (rows > 11) add_sums(y + 352, cb, own_zeros, of, start9 + 2 * ld_start);
        b = next;
    }
}

/* The sums of all blocks of a row, added to in registers. */
typedef struct {
    __m512 low, high;
} blocks_row;

static QK_INLINE blocks_row load_blocks_row(const float *y)
{
    return (blocks_row){_mm512_loadu_ps(y), _mm512_loadu_ps(y + 16)};
}
static QK_INLINE void store_blocks_row(float *y, blocks_row of)
{
    _mm512_storeu_ps(y, of.low), _mm512_storeu_ps(y + 16, of.high);
}
static QK_INLINE blocks_row add_to_row(blocks_row y, two_sums c, const int own_zeros, block_columns of,
                                       const int32_t *start)
{
    if (own_zeros) {
        const __m512i v = _mm512_set1_epi32(*start);
        c = (two_sums){_mm512_dpwssd_epi32(c.low, of.z0, v), _mm512_dpwssd_epi32(c.high, of.z1, v)};
    }
    return (blocks_row){_mm512_fmadd_ps(_mm512_cvtepi32_ps(c.low), of.s0, y.low),
                        _mm512_fmadd_ps(_mm512_cvtepi32_ps(c.high), of.s1, y.high)};
}

/* blocks8_rows of 3 to 6 rows, whose sums of all blocks stay in registers: 512-bit stores take AMD's CPUs two cycles.
 */
static QK_INLINE void blocks8_six(const int rows, const int own_zeros, const qk_gemm4_panel *panel, const int8_t *a,
                                  size_t lda, const int32_t *start, size_t ld_start, float *y)
{
    const qk_gemm4_panel p = *panel;
    const uint8_t *b = p.records;
    const int8_t *a3 = a + 3 * lda;
    const int32_t *start3 = start + 3 * ld_start;
    size_t s = 0;
    if (!p.more) clear_rows(y, rows);
    blocks_row y0 = load_blocks_row(y), y1 = y0, y2 = y0, y3 = y0, y4 = y0, y5 = y0;
    if (rows > 1) y1 = load_blocks_row(y + 32);
    if (rows > 2) y2 = load_blocks_row(y + 64);
    if (rows > 3) y3 = load_blocks_row(y + 96);
    if (rows > 4) y4 = load_blocks_row(y + 128);
    if (rows > 5) y5 = load_blocks_row(y + 160);
    for (size_t block = 1; block <= p.blocks; block++, start++, start3++) {
        const uint8_t *scales = b + (block < p.blocks ? p.steps : p.last_steps) * BYTES_STEP,
                      *next = scales + p.params_bytes;
        const uint8_t *sums = next - (p.long_sums ? 4 : 2) * QK_GEMM4_NR, *zeros = sums - QK_GEMM4_NR;
        const two_sums columns = {column_starts16(sums, p.long_sums, 0), column_starts16(sums, p.long_sums, 1)};
        two_sums c0 = columns, c1 = c0, c2 = c0, c3 = c0, c4 = c0, c5 = c0;
        for (; b != scales; b += BYTES_STEP, a += QK_GEMM4_KR, a3 += QK_GEMM4_KR) {
            const step_bytes of = load_step(b);
            if (rows > 4) ask_for_bytes(&p, b, s++, rows);
            c0 = multiply_bytes(c0, of, a);
            if (rows > 1) c1 = multiply_bytes(c1, of, a + lda);
            if (rows > 2) c2 = multiply_bytes(c2, of, a + 2 * lda);
            if (rows > 3) c3 = multiply_bytes(c3, of, a3);
            if (rows > 4) c4 = multiply_bytes(c4, of, a3 + lda);
            if (rows > 5) c5 = multiply_bytes(c5, of, a3 + 2 * lda);
        }
        const block_columns of = columns_of(own_zeros, scales, zeros, &p);
        y0 = add_to_row(y0, c0, own_zeros, of, start);
        if (rows > 1) y1 = add_to_row(y1, c1, own_zeros, of, start + ld_start);
        if (rows > 2) y2 = add_to_row(y2, c2, own_zeros, of, start + 2 * ld_start);
        if (rows > 3) y3 = add_to_row(y3, c3, own_zeros, of, start3);
        if (rows > 4) y4 = add_to_row(y4, c4, own_zeros, of, start3 + ld_start);
        if (rows > 5) y5 = add_to_row(y5, c5, own_zeros, of, start3 + 2 * ld_start);
        b = next;
    }
    store_blocks_row(y, y0);
    if (rows > 1) store_blocks_row(y + 32, y1);
    if (rows > 2) store_blocks_row(y + 64, y2);
    if (rows > 3) store_blocks_row(y + 96, y3);
    if (rows > 4) store_blocks_row(y + 128, y4);
    if (rows > 5) store_blocks_row(y + 160, y5);
}

static QK_INLINE void blocks8_tile_of(const int own_zeros, int rows, const qk_gemm4_panel *p, const int8_t *a,
                                      size_t lda, const int32_t *start, size_t ld_start, float *y)
{
    if (rows > 2 && rows <= 6) {
        ROWS_6(rows, blocks8_six, own_zeros, p, a, lda, start, ld_start, y);
        return;
    }
    ROWS_12(rows, blocks8_rows, own_zeros, p, a, lda, start, ld_start, y);
}

/* Whether two tiles of 6 rows beat one of 12: in short blocks, 0.87 to 0.91 of the time in those of 32 rows and 0.97 in
 * those of 128, where conversions have pipes of their own, as on AMD's CPUs; on Intel's 1.07 to 1.10. */
static inline int takes_halves(int rows, const qk_gemm4_panel *p)
{
    enum { SHORT_STEPS = 32 };
    return rows > 6 && p->blocks > 1 && p->steps <= SHORT_STEPS && qk_is_amd();
}

static void blocks8_tile(int rows, const qk_gemm4_panel *p, const void *a, size_t lda, const int32_t *start,
                         size_t ld_start, float *y)
{
    if (takes_halves(rows, p)) {
        const int half = rows / 2;
        qk_gemm4_panel after = *p;
        qk_ahead ahead;
        blocks8_tile(half, p, a, lda, start, ld_start, y);
        if (p->ahead) ahead = *p->ahead, ahead.write += (size_t)half * ahead.row_stride, after.ahead = &ahead;
        blocks8_tile(rows - half, &after, (const int8_t *)a + (size_t)half * lda, lda, start + (size_t)half * ld_start,
                     ld_start, y + half * QK_GEMM4_NR);
        return;
    }
    if (p->own_zeros)
        blocks8_tile_of(1, rows, p, a, lda, start, ld_start, y);
    else
        blocks8_tile_of(0, rows, p, a, lda, start, ld_start, y);
}

/* ---- weights of 2 and 3 bits (numerics 12) ---- */

#include "kernels/x86/avx512_low_bits.h"

/* ---- 4-bit weights that fold to int8 (numerics 33) ---- */

/* A panel becomes int8 as it is read, or once for many rows: of 64 codes, one multiplication of byte pairs by the scale
 * of their column, and one addition. One or two rows multiply codes instead, and scale the sums of a chunk; as in
 * gemm4, t = 16 h + l has codes of two columns, and one `and` decodes both. */

/* What 32 columns of a block are multiplied with, and then have added: scales in pairs of bytes, 3 shift - 8 scale. */
typedef struct {
    __m512i scale0, scale1, more0, more1;
} fold;

/* 16 columns, each of which has four bytes of the register, by an order of `bytes`. */
static inline __m512i spread16(__m256i bytes, int high, __m512i order)
{
    const __m128i half = high ? _mm256_extracti128_si256(bytes, 1) : _mm256_castsi256_si128(bytes);
    return _mm512_shuffle_epi8(_mm512_broadcast_i32x4(half), order);
}

static inline __m256i scales_of(__m256i params)
{
    return _mm256_add_epi8(_mm256_and_si256(params, _mm256_set1_epi8(15)), _mm256_set1_epi8(1));
}

/* 3 shift, of -24 .. 21. */
static inline __m256i shifts_of(__m256i params)
{
    const __m256i thrice =
        _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 3, 6, 9, 12, 15, 18, 21, -24, -21, -18, -15, -12, -9, -6, -3));
    return _mm256_shuffle_epi8(thrice, _mm256_and_si256(_mm256_srli_epi16(params, 4), _mm256_set1_epi8(15)));
}

static QK_INLINE fold fold_of(const uint8_t *params)
{
    const __m512i columns = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const __m512i four = _mm512_mullo_epi32(columns, _mm512_set1_epi32(0x01010101));
    const __m512i pairs = _mm512_or_si512(four, _mm512_set1_epi32((int)0x80008000)); /* bit 7: 0 */
    const __m256i raw = _mm256_loadu_si256((const __m256i *)params), scale = scales_of(raw);
    const __m256i more = _mm256_sub_epi8(shifts_of(raw), _mm256_slli_epi16(scale, 3));
    return (fold){spread16(scale, 0, pairs), spread16(scale, 1, pairs), spread16(more, 0, four),
                  spread16(more, 1, four)};
}

static inline __m512i fold_codes(__m512i codes, __m512i scale, __m512i more)
{
    return _mm512_add_epi8(_mm512_mullo_epi16(codes, scale), more);
}

/* The int8 of a step. */
static QK_INLINE step_bytes fold_step(const uint8_t *b, const fold *f)
{
    const __m512i two = _mm512_loadu_si512(b), mask = _mm512_set1_epi8(15), eight = _mm512_set1_epi8(8);
    const __m512i low = _mm512_and_si512(two, mask);
    const __m512i high = _mm512_xor_si512(_mm512_and_si512(_mm512_srli_epi16(two, 4), mask), eight);
    return (step_bytes){fold_codes(low, f->scale0, f->more0), fold_codes(high, f->scale1, f->more1)};
}

static void unfold_panel(const qk_folded_panel *p, int half, int8_t *to)
{
    (void)half; /* a panel has all columns */
    const uint8_t *b = p->codes, *params = p->params;
    for (size_t block = 0; block < p->blocks; block++, params += QK_GEMM4_NR) {
        const fold f = fold_of(params);
        for (size_t s = steps_in(p, block); s > 0; s--, b += QK_FOLDED_STEP, to += 2 * QK_FOLDED_STEP) {
            const step_bytes of = fold_step(b, &f);
            _mm512_storeu_si512(to, of.low), _mm512_storeu_si512(to + 64, of.high);
        }
    }
}

static QK_INLINE void add_row(int32_t *c, __m512i low, __m512i high)
{
    _mm512_storeu_si512(c, _mm512_add_epi32(_mm512_loadu_si512(c), low));
    _mm512_storeu_si512(c + 16, _mm512_add_epi32(_mm512_loadu_si512(c + 16), high));
}

/* `rows` is a constant where this is inlined. */
static QK_INLINE void folded_rows(const int rows, const qk_folded_panel *panel, const uint8_t *given, size_t lda,
                                  int32_t *c)
{
    const qk_folded_panel p = *panel;
    const int8_t *a = (const int8_t *)given, *a3 = a + 3 * lda, *a6 = a + 6 * lda, *a9 = a + 9 * lda;
    const uint8_t *b = p.codes, *params = p.params;
    const two_sums none = {_mm512_setzero_si512(), _mm512_setzero_si512()};
    two_sums c0 = none, c1 = c0, c2 = c0, c3 = c0, c4 = c0, c5 = c0, c6 = c0, c7 = c0, c8 = c0, c9 = c0, ca = c0,
             cb = c0;
    for (size_t block = 0; block < p.blocks; block++, params += QK_GEMM4_NR) {
        const fold f = fold_of(params);
        for (size_t s = steps_in(&p, block); s > 0;
             s--, b += QK_FOLDED_STEP, a += QK_GEMM4_KR, a3 += QK_GEMM4_KR, a6 += QK_GEMM4_KR, a9 += QK_GEMM4_KR) {
            const step_bytes of = fold_step(b, &f);
            __builtin_prefetch(b + AHEAD);
            c0 = multiply_bytes(c0, of, a);
            if (rows > 1) c1 = multiply_bytes(c1, of, a + lda);
            if (rows > 2) c2 = multiply_bytes(c2, of, a + 2 * lda);
            if (rows > 3) c3 = multiply_bytes(c3, of, a3);
            if (rows > 4) c4 = multiply_bytes(c4, of, a3 + lda);
            if (rows > 5) c5 = multiply_bytes(c5, of, a3 + 2 * lda);
            if (rows > 6) c6 = multiply_bytes(c6, of, a6);
            if (rows > 7) c7 = multiply_bytes(c7, of, a6 + lda);
            if (rows > 8) c8 = multiply_bytes(c8, of, a6 + 2 * lda);
            if (rows > 9) c9 = multiply_bytes(c9, of, a9);
            if (rows > 10) ca = multiply_bytes(ca, of, a9 + lda);
            if (rows > 11) cb = multiply_bytes(cb, of, a9 + 2 * lda);
        }
    }
    add_row(c, c0.low, c0.high);
    if (rows > 1) add_row(c + 32, c1.low, c1.high);
    if (rows > 2) add_row(c + 64, c2.low, c2.high);
    if (rows > 3) add_row(c + 96, c3.low, c3.high);
    if (rows > 4) add_row(c + 128, c4.low, c4.high);
    if (rows > 5) add_row(c + 160, c5.low, c5.high);
    if (rows > 6) add_row(c + 192, c6.low, c6.high);
    if (rows > 7) add_row(c + 224, c7.low, c7.high);
    if (rows > 8) add_row(c + 256, c8.low, c8.high);
    if (rows > 9) add_row(c + 288, c9.low, c9.high);
    if (rows > 10) add_row(c + 320, ca.low, ca.high);
    if (rows > 11) add_row(c + 352, cb.low, cb.high);
}

/* What folded_sums makes of four blocks of at most SCALED_ROWS rows: -8 times the sum of a's codes in each, and the low
 * and the high bytes of these sums, of blocks 0, 2, 1 and 3. */
typedef struct {
    int32_t start[QK_FOLDED_SUMMED];
    uint8_t low[QK_FOLDED_SUMMED], high[QK_FOLDED_SUMMED];
    int32_t unused[2];
} four_sums;
enum { SCALED_ROWS = 256 };

/* Sums so far of a row and 32 columns: of scaled blocks, those of the high halves of bytes 16 times; and 16 times the
 * shifts, times the low and the high bytes of sums of a's codes, of columns in the order of shifts_of_four. */
typedef struct {
    two_sums scaled, low, high;
} scaled_sums;

/* Loaded once: gcc would have the `and` read memory again, and a load of 64 bytes takes a cycle. */
static QK_INLINE step_bytes load_both(const uint8_t *b)
{
    __m512i two = _mm512_loadu_si512(b);
    QK_KEEP(two);
    return (step_bytes){two, _mm512_and_si512(two, _mm512_set1_epi8((char)240))};
}

/* As t is the signed operand, low has the sums of the low halves and those of the high ones. */
static QK_INLINE void add_scaled(two_sums *y, two_sums c, __m512i scale0, __m512i scale1)
{
    y->low = _mm512_add_epi32(y->low, _mm512_mullo_epi32(_mm512_sub_epi32(c.low, c.high), scale0));
    y->high = _mm512_add_epi32(y->high, _mm512_mullo_epi32(c.high, scale1));
}

/* The same of a block whose parameters these are. vpermd ignores shifts, which are above the four bits of an index. */
static QK_INLINE void add_folded(two_sums *y, two_sums c, const uint8_t *params)
{
    const __m512i scales = _mm512_setr_epi32(1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16);
    add_scaled(y, c, _mm512_permutexvar_epi32(widen16(params), scales),
               _mm512_permutexvar_epi32(widen16(params + 16), scales));
}

/* A block of one or two rows, or of one and two panels; `steps` is a constant where this is inlined for 32 rows. Of one
 * row and panel, even and odd steps have sums of their own, for vpdpbusd takes 4 cycles. Two panels spare their sum,
 * and share loads of a, of which there is one a cycle. */
static QK_INLINE void scaled_block(const int rows, const int panels, size_t steps, const uint8_t *b,
                                   const uint8_t *params, const uint8_t *next, const uint8_t *next_params,
                                   const uint8_t *given, size_t lda, const int32_t *start, size_t ld_sums, two_sums *y0,
                                   two_sums *y1)
{
    const int8_t *a = (const int8_t *)given;
    const __m512i none = _mm512_setzero_si512();
    two_sums c = {_mm512_set1_epi32(*start), none}, d = panels > 1 ? c : (two_sums){none, none};
    if (rows > 1) d.low = _mm512_set1_epi32(start[ld_sums]);
#pragma GCC unroll 8
    for (size_t i = 0; i < steps; i++, b += QK_FOLDED_STEP, a += QK_GEMM4_KR) {
        const step_bytes of = load_both(b);
        if (rows > 1) __builtin_prefetch(b + AHEAD);
        if (rows * panels > 1 || i % 2 == 0) c = multiply_bytes(c, of, a);
        if (panels > 1)
            d = multiply_bytes(d, load_both(next + i * QK_FOLDED_STEP), a);
        else if (rows > 1 || i % 2)
            d = multiply_bytes(d, of, rows > 1 ? a + lda : a);
    }
    if (rows * panels > 1) {
        add_folded(y0, c, params), add_folded(y1, d, panels > 1 ? next_params : params);
        return;
    }
    c = (two_sums){_mm512_add_epi32(c.low, d.low), _mm512_add_epi32(c.high, d.high)};
    add_folded(y0, c, params);
}

/* 16 times the shifts of `blocks` of four blocks: a lane has those of blocks 0, 2, 1 and 3 and of a column, low of 0 ..
 * 7 and 16 .. 23, high of the others. */
static QK_INLINE two_sums shifts_of_four(const uint8_t *params, size_t blocks)
{
    const __m512i turn =
        _mm512_add_epi16(_mm512_mullo_epi32(_mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15),
                                            _mm512_set1_epi32(0x00010001)),
                         _mm512_set1_epi32(16 << 16));
    const __mmask64 bytes = blocks > 1 ? ~0ull : 0xffffffffull;
    const __mmask64 more = blocks > 3 ? ~0ull : blocks > 2 ? 0xffffffffull : 0;
    const __m512i mask = _mm512_set1_epi8((char)240);
    const __m512i first = _mm512_and_si512(_mm512_maskz_loadu_epi8(bytes, params), mask);
    const __m512i second = _mm512_and_si512(_mm512_maskz_loadu_epi8(more, params + 64), mask);
    return (two_sums){_mm512_permutexvar_epi16(turn, _mm512_unpacklo_epi8(first, second)),
                      _mm512_permutexvar_epi16(turn, _mm512_unpackhi_epi8(first, second))};
}

static QK_INLINE void add_shifts(scaled_sums *y, two_sums shifts, const int32_t *sums)
{
    const four_sums *of = (const four_sums *)sums;
    const __m512i low = broadcast4(of->low), high = broadcast4(of->high);
    y->low = (two_sums){_mm512_dpbusd_epi32(y->low.low, low, shifts.low),
                        _mm512_dpbusd_epi32(y->low.high, low, shifts.high)};
    y->high = (two_sums){_mm512_dpbusd_epi32(y->high.low, high, shifts.low),
                         _mm512_dpbusd_epi32(y->high.high, high, shifts.high)};
}

static inline __m512i thrice(__m512i v) { return _mm512_add_epi32(v, _mm512_slli_epi32(v, 1)); }

static QK_INLINE void add_scaled_row(int32_t *c, scaled_sums y)
{
    const __m512i low = _mm512_add_epi32(y.low.low, _mm512_slli_epi32(y.high.low, 8));
    const __m512i high = _mm512_add_epi32(y.low.high, _mm512_slli_epi32(y.high.high, 8));
    const __m512i shifts0 = thrice(_mm512_srai_epi32(_mm512_shuffle_i64x2(low, high, 0x44), 4));
    const __m512i shifts1 = thrice(_mm512_srai_epi32(_mm512_shuffle_i64x2(low, high, 0xee), 4));
    add_row(c, _mm512_add_epi32(y.scaled.low, shifts0), _mm512_add_epi32(_mm512_srai_epi32(y.scaled.high, 4), shifts1));
}

/* One or two rows, or one and two panels, of so few blocks that 16 times their sums are int32. */
static QK_INLINE void scaled_blocks(const int rows, const int panels, const qk_folded_panel *p, const uint8_t *a,
                                    size_t lda, const int32_t *sums, size_t ld_sums, int32_t *c)
{
    enum { STEPS = QK_FOLDED_CHUNK / QK_GEMM4_KR, PARAMS_AHEAD = 1024 };
    const two_sums none = {_mm512_setzero_si512(), _mm512_setzero_si512()};
    scaled_sums y0 = {none, none, none}, y1 = y0;
    const uint8_t *b = p->codes, *params = p->params, *next = p->next_codes, *next_params = p->next_params;
    for (size_t block = 0; block < p->blocks; block += QK_FOLDED_SUMMED) {
        for (size_t i = 0; i < 128; i += 64) __builtin_prefetch(params + PARAMS_AHEAD + i);
        for (size_t i = 0; i < 128 && panels > 1; i += 64) __builtin_prefetch(next_params + PARAMS_AHEAD + i);
        const size_t count = min_size(p->blocks - block, QK_FOLDED_SUMMED);
        const two_sums shifts = shifts_of_four(params, count);
        add_shifts(&y0, shifts, sums);
        if (rows > 1) add_shifts(&y1, shifts, sums + ld_sums);
        if (panels > 1) add_shifts(&y1, shifts_of_four(next_params, count), sums);
        for (size_t i = 0; i < count; i++, params += QK_GEMM4_NR) {
            const size_t steps = steps_in(p, block + i);
            if (steps == STEPS)
                scaled_block(rows, panels, STEPS, b, params, next, next_params, a, lda, sums + i, ld_sums, &y0.scaled,
                             &y1.scaled);
            else
                scaled_block(rows, panels, steps, b, params, next, next_params, a, lda, sums + i, ld_sums, &y0.scaled,
                             &y1.scaled);
            b += steps * QK_FOLDED_STEP, a += steps * QK_GEMM4_KR;
            if (panels > 1) next += steps * QK_FOLDED_STEP, next_params += QK_GEMM4_NR;
        }
        sums += qk_sums_of(QK_FOLDED_SUMMED, p->steps);
    }
    add_scaled_row(c, y0);
    if (rows * panels > 1) add_scaled_row(c + 32, y1);
}

static QK_INLINE void scaled_rows(const int rows, const int panels, const qk_folded_panel *panel, const uint8_t *a,
                                  size_t lda, const int32_t *sums, size_t ld_sums, int32_t *c)
{
    enum { MOST_STEPS = 1024 }; /* 16 * 255 * 128 * 4096 < 2^31 */
    const size_t most = MOST_STEPS / panel->steps / QK_FOLDED_SUMMED * QK_FOLDED_SUMMED;
    qk_folded_panel p = *panel;
    for (size_t left = panel->blocks; left; left -= p.blocks) {
        p.blocks = min_size(left, most), p.last_steps = p.blocks < left ? p.steps : panel->last_steps;
        scaled_blocks(rows, panels, &p, a, lda, sums, ld_sums, c);
        const size_t codes = p.blocks * p.steps * QK_FOLDED_STEP, params = p.blocks * QK_GEMM4_NR;
        p.codes += codes, p.params += params;
        if (panels > 1) p.next_codes += codes, p.next_params += params;
        a += p.blocks * p.steps * QK_GEMM4_KR, sums += qk_sums_of(p.blocks, p.steps);
    }
}

static void folded_tile(int rows, const qk_folded_panel *p, const uint8_t *a, size_t lda, const int32_t *sums,
                        size_t ld_sums, int32_t *c)
{
    const int scaled = p->steps <= SCALED_ROWS / QK_GEMM4_KR;
    if (p->next_codes && scaled) {
        scaled_rows(1, 2, p, a, lda, sums, ld_sums, c);
    } else if (p->next_codes) {
        const qk_folded_panel next = {p->next_codes, p->next_params, p->blocks, p->steps, p->last_steps, NULL, NULL};
        folded_rows(1, p, a, lda, c), folded_rows(1, &next, a, lda, c + 32);
    } else if (rows == 1 && scaled) {
        scaled_rows(1, 1, p, a, lda, sums, ld_sums, c);
    } else if (rows == 2 && scaled) {
        scaled_rows(2, 1, p, a, lda, sums, ld_sums, c);
    } else
        ROWS_12(rows, folded_rows, p, a, lda, c);
}

/* n is a multiple of 4, at most SCALED_ROWS. */
static inline int32_t sum_of_codes(const uint8_t *a, size_t n)
{
    const __m256i zero = _mm256_setzero_si256();
    __m256i sums = zero;
    for (; n >= 32; n -= 32, a += 32)
        sums = _mm256_add_epi64(sums, _mm256_sad_epu8(_mm256_loadu_si256((const __m256i *)a), zero));
    if (n) sums = _mm256_add_epi64(sums, _mm256_sad_epu8(_mm256_maskz_loadu_epi8((1u << n) - 1, a), zero));
    const __m128i two = _mm_add_epi64(_mm256_castsi256_si128(sums), _mm256_extracti128_si256(sums, 1));
    return _mm_cvtsi128_si32(_mm_add_epi64(two, _mm_unpackhi_epi64(two, two)));
}

static void folded_sums(const uint8_t *a, size_t k, size_t block, int32_t *sums)
{
    static const uint8_t place[] = {0, 2, 1, 3};
    if (block > SCALED_ROWS) return;
    for (size_t i = 0; i * block < k; i++) {
        const size_t in_four = i % QK_FOLDED_SUMMED;
        four_sums *of = (four_sums *)(sums + qk_sums_of(i - in_four, block / QK_GEMM4_KR));
        const int32_t sum = sum_of_codes(a + i * block, min_size(block, k - i * block));
        of->start[in_four] = -8 * sum;
        of->low[place[in_four]] = (uint8_t)sum, of->high[place[in_four]] = (uint8_t)(sum >> 8);
    }
}

/* ---- int16 (numerics 17) ---- */

static void gemm16_tile(int rows, size_t steps, const int16_t *a, size_t lda, const int16_t *panel, int32_t *c)
{
    int16_tile(0, 0, rows, steps, a, lda, panel, NULL, c, NR);
}

/* ---- depthwise (numerics 22) ---- */

#include "kernels/generic/depthwise.h"

#include "kernels/generic/table.h"
const qk_gemm8_kernels qk_gemm8_avx512vnni = {
#include "kernels/families/gemm8.def"
};
const qk_gemm4_kernels qk_gemm4_avx512vnni = {
#include "kernels/families/gemm4.def"
};
const qk_blocks8_kernels qk_blocks8_avx512vnni = {
#include "kernels/families/blocks8.def"
};
const qk_folded_kernels qk_folded_avx512vnni = {
#include "kernels/families/folded.def"
};
const qk_gemm16_kernels qk_gemm16_avx512vnni = {
#include "kernels/families/gemm16.def"
};
const qk_conv_kernels qk_conv_avx512vnni = {
#include "kernels/families/conv.def"
};

#define PEAK_VECTOR __m512i
#define PEAK_PRODUCTS 64
static QK_INLINE __m512i peak_step(__m512i sums, __m512i a, __m512i b) { return _mm512_dpbusd_epi32(sums, a, b); }
#include "kernels/generic/peak.h"

const qk_kernels qk_kernels_avx512vnni = {
    .name = "avx512vnni",
    .available = available,
    .peak = peak,
    .gemm8 = &qk_gemm8_avx512vnni,
    .gemm4 = &qk_gemm4_avx512vnni,
    .blocks8 = &qk_blocks8_avx512vnni,
    .folded = &qk_folded_avx512vnni,
    .gemm8_folded = &qk_gemm8_avx512vnni,
    .gemm16 = &qk_gemm16_avx512vnni,
    .gemmf16 = &qk_gemmf16_avx512,
    .elementwise = &qk_elementwise_avx512,
    .codebooks = &qk_codebooks_avx512,
    .layers = &qk_layers_avx512,
    .kmeans = &qk_kmeans_avx512,
    .pq = &qk_pq_avx512,
    .histogram = &qk_histogram_avx512,
    .conv = &qk_conv_avx512vnni,
};

QK_TARGET_END
#endif
