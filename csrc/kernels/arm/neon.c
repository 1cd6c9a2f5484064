/* NEON, which every 64-bit ARM has (Cortex-A53, A57, A72 and later).
 *
 * umull: 8 by 8 unsigned bytes to uint16, at most 255 * 255; uadalp adds neighbours to 4 lanes of uint32, which wrap as
 * int32 does (numerics 6): 8 products for two instructions, of which multiplication has one pipe on Cortex-A57 to A76.
 * Panels hold b' + 128, and sums begin with -128 times that of a row of a'.
 *
 * Tile: 4 rows x 4 columns, 16 accumulators of four parts of a sum, added at the end of k; four times for the columns
 * of a panel. One step takes 8 codes of k: 4 loads of a, 4 of b, 16 umull, 16 uadalp.
 *
 *          b0 (8 codes of a column)   b1      b2      b3
 *     a0   c00                        c01     c02     c03
 *     ..   ..                         ..      ..      ..
 *     a3   c30                        c31     c32     c33
 */
#if defined(__aarch64__)
#include "kernels/arm/target.h"
#include "kernels/kernels.h"
#include "runtime/compiler.h"

static int available(void) { return 1; }

#define MR 4
#define GEMM16_MR 6
#define GEMMF16_MR 6
#define NR 16
#define KR 8
#define PANEL_FLIP (-128)
#define FOLDED_MR 3
#define UNFOLD_ROWS 8
#define UNFOLD_PANEL unfold_panel
#define DEPTHWISE_CODES depthwise_codes
#define HAVE_LOW_TO_BYTES
#include "kernels/arm/codebook.h"
#include "kernels/generic/elementwise.h"
#include "kernels/generic/stochastic.h"
#include "kernels/generic/fake_grad.h"
#include "kernels/generic/layers.h"
#include "kernels/generic/rotate.h"
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

#include "kernels/generic/kmeans.h"
#include "kernels/generic/pq.h"
#include "kernels/generic/kmeans1d.h"
#include "kernels/generic/least_squares.h"

#include "kernels/arm/row_shifts.h"

/* Sums of 4 columns of a row, in four parts each. */
typedef struct {
    uint32x4_t c0, c1, c2, c3;
} parts;

static QK_INLINE parts multiply_add(parts c, const uint8_t *a, uint8x8_t b0, uint8x8_t b1, uint8x8_t b2, uint8x8_t b3)
{
    const uint8x8_t v = vld1_u8(a);
    return (parts){vpadalq_u16(c.c0, vmull_u8(v, b0)), vpadalq_u16(c.c1, vmull_u8(v, b1)),
                   vpadalq_u16(c.c2, vmull_u8(v, b2)), vpadalq_u16(c.c3, vmull_u8(v, b3))};
}

static QK_INLINE void store_part_sums(int32_t *c, parts of, uint32x4_t init, uint32_t shift)
{
    const uint32x4_t sums = vpaddq_u32(vpaddq_u32(of.c0, of.c1), vpaddq_u32(of.c2, of.c3));
    vst1q_u32((uint32_t *)c, vaddq_u32(sums, vsubq_u32(init, vdupq_n_u32(shift))));
}

/* 4 columns of a tile. `rows` is a constant where this is inlined: the accumulators of absent rows vanish. */
static QK_INLINE void four_columns(const int rows, size_t steps, const uint8_t *a, size_t lda, const uint8_t *panel,
                                   const int32_t *init, const uint32_t *shift, int32_t *c, size_t ldc)
{
    const uint8_t *a1 = a + lda, *a2 = a1 + lda, *a3 = a2 + lda;
    const uint32x4_t zero = vdupq_n_u32(0);
    parts c0 = {zero, zero, zero, zero}, c1 = c0, c2 = c0, c3 = c0;
    for (size_t k = 0; k < steps * KR; k += KR, panel += NR * KR) {
        const uint8x8_t b0 = vld1_u8(panel), b1 = vld1_u8(panel + 8), b2 = vld1_u8(panel + 16),
                        b3 = vld1_u8(panel + 24);
        c0 = multiply_add(c0, a + k, b0, b1, b2, b3);
        if (rows > 1) c1 = multiply_add(c1, a1 + k, b0, b1, b2, b3);
        if (rows > 2) c2 = multiply_add(c2, a2 + k, b0, b1, b2, b3);
        if (rows > 3) c3 = multiply_add(c3, a3 + k, b0, b1, b2, b3);
    }
    const uint32x4_t start = vld1q_u32((const uint32_t *)init);
    store_part_sums(c, c0, start, shift[0]);
    if (rows > 1) store_part_sums(c + ldc, c1, start, shift[1]);
    if (rows > 2) store_part_sums(c + 2 * ldc, c2, start, shift[2]);
    if (rows > 3) store_part_sums(c + 3 * ldc, c3, start, shift[3]);
}

static void gemm8_tile(int rows, size_t steps, const void *a, size_t lda, const int8_t *panel, const int32_t *init,
                       int32_t *c, size_t ldc)
{
    const uint8_t *b = (const uint8_t *)panel;
    uint32_t shift[MR];
    shifts_of(rows, steps * KR, a, lda, shift);
    for (int col = 0; col < NR; col += 4, b += 4 * KR, init += 4, c += 4)
        ROWS_4(rows, four_columns, steps, a, lda, b, init, shift, c, ldc);
}

static void gemm8_pack_row(const uint8_t *a, size_t n, size_t n_pad, uint8_t flip, void *to)
{
    pack_row_bytes(a, n, n_pad, flip, to);
}

#include "kernels/arm/gemm4.h"
#include "kernels/arm/low_bits.h"
#include "kernels/arm/folded.h"
#include "kernels/generic/depthwise.h"

/* ---- int16 (numerics 17) ---- */

/* smlal by a lane: 4 columns and one code of k. Tile: 6 rows x 16 columns, 24 accumulators; two codes of k a step,
 * which uzp1 and uzp2 part. */

typedef struct {
    int32x4_t c0, c1, c2, c3;
} word_sums;
typedef struct {
    int16x8_t left, right;
} words;

static QK_INLINE word_sums add_two_words(word_sums c, words even, words odd, const int16_t *a)
{
    const int16x4_t v = vreinterpret_s16_u8(load4(a));
    c.c0 = vmlal_lane_s16(c.c0, vget_low_s16(even.left), v, 0), c.c1 = vmlal_high_lane_s16(c.c1, even.left, v, 0);
    c.c2 = vmlal_lane_s16(c.c2, vget_low_s16(even.right), v, 0), c.c3 = vmlal_high_lane_s16(c.c3, even.right, v, 0);
    c.c0 = vmlal_lane_s16(c.c0, vget_low_s16(odd.left), v, 1), c.c1 = vmlal_high_lane_s16(c.c1, odd.left, v, 1);
    c.c2 = vmlal_lane_s16(c.c2, vget_low_s16(odd.right), v, 1), c.c3 = vmlal_high_lane_s16(c.c3, odd.right, v, 1);
    return c;
}

static QK_INLINE void store_words(int32_t *c, word_sums s)
{
    vst1q_s32(c, s.c0), vst1q_s32(c + 4, s.c1), vst1q_s32(c + 8, s.c2), vst1q_s32(c + 12, s.c3);
}

static QK_INLINE void gemm16_rows(const int rows, size_t steps, const int16_t *a, size_t lda, const int16_t *panel,
                                  int32_t *c)
{
    const int16_t *a1 = a + lda, *a2 = a1 + lda, *a3 = a2 + lda, *a4 = a3 + lda, *a5 = a4 + lda;
    const int32x4_t zero = vdupq_n_s32(0);
    word_sums c0 = {zero, zero, zero, zero}, c1 = c0, c2 = c0, c3 = c0, c4 = c0, c5 = c0;
    for (size_t k = 0; k < 2 * steps; k += 2, panel += 2 * NR) {
        const int16x8_t b0 = vld1q_s16(panel), b1 = vld1q_s16(panel + 8), b2 = vld1q_s16(panel + 16),
                        b3 = vld1q_s16(panel + 24);
        const words even = {vuzp1q_s16(b0, b1), vuzp1q_s16(b2, b3)}, odd = {vuzp2q_s16(b0, b1), vuzp2q_s16(b2, b3)};
        c0 = add_two_words(c0, even, odd, a + k);
        if (rows > 1) c1 = add_two_words(c1, even, odd, a1 + k);
        if (rows > 2) c2 = add_two_words(c2, even, odd, a2 + k);
        QK_IN_ORDER;
        if (rows > 3) c3 = add_two_words(c3, even, odd, a3 + k);
        if (rows > 4) c4 = add_two_words(c4, even, odd, a4 + k);
        if (rows > 5) c5 = add_two_words(c5, even, odd, a5 + k);
    }
    store_words(c, c0);
    if (rows > 1) store_words(c + NR, c1);
    if (rows > 2) store_words(c + 2 * NR, c2);
    if (rows > 3) store_words(c + 3 * NR, c3);
    if (rows > 4) store_words(c + 4 * NR, c4);
    if (rows > 5) store_words(c + 5 * NR, c5);
}

static void gemm16_tile(int rows, size_t steps, const int16_t *a, size_t lda, const int16_t *panel, int32_t *c)
{
    ROWS_6(rows, gemm16_rows, steps, a, lda, panel, c);
}

/* ---- float16 and bfloat16 weights (numerics 16) ---- */

/* fmla by a lane, after fcvtl, or a shift and a mask. Tile: 6 rows x 16 columns, 24 accumulators: columns 0 to 7 and 16
 * to 23 of a panel, then the other two eights. */

typedef struct {
    float32x4_t c0, c1, c2, c3;
} float_sums;

/* Columns 4 i to 4 i + 3 of the 8 from p on, as float16. */
static QK_INLINE float32x4_t half4(const uint16_t *p) { return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p))); }

/* Columns col .. col + 7 and the same + 16 of a row of a panel. `type` is a constant where this is inlined. */
static QK_INLINE float_sums row_of_floats(const uint16_t *p, size_t col, const qk_dtype type)
{
    const float *f = (const float *)p + col;
    if (type == QK_F32) return (float_sums){vld1q_f32(f), vld1q_f32(f + 4), vld1q_f32(f + 16), vld1q_f32(f + 20)};
    if (type == QK_F16)
        return (float_sums){half4(p + col), half4(p + col + 4), half4(p + col + 16), half4(p + col + 20)};
    const uint32x4_t two = vreinterpretq_u32_u16(vld1q_u16(p + 2 * col)),
                     next = vreinterpretq_u32_u16(vld1q_u16(p + 2 * col + 8)), mask = vdupq_n_u32(0xffff0000);
    return (float_sums){vreinterpretq_f32_u32(vshlq_n_u32(two, 16)), vreinterpretq_f32_u32(vshlq_n_u32(next, 16)),
                        vreinterpretq_f32_u32(vandq_u32(two, mask)), vreinterpretq_f32_u32(vandq_u32(next, mask))};
}

static QK_INLINE float_sums add_floats(float_sums c, float_sums b, const float *a)
{
    const float32x2_t v = vreinterpret_f32_u8(load4(a));
    return (float_sums){vfmaq_lane_f32(c.c0, b.c0, v, 0), vfmaq_lane_f32(c.c1, b.c1, v, 0),
                        vfmaq_lane_f32(c.c2, b.c2, v, 0), vfmaq_lane_f32(c.c3, b.c3, v, 0)};
}

static QK_INLINE float_sums load_float_sums(const float *y)
{
    return (float_sums){vld1q_f32(y), vld1q_f32(y + 4), vld1q_f32(y + 16), vld1q_f32(y + 20)};
}

static QK_INLINE void store_float_sums(float *y, float_sums s)
{
    vst1q_f32(y, s.c0), vst1q_f32(y + 4, s.c1), vst1q_f32(y + 16, s.c2), vst1q_f32(y + 20, s.c3);
}

static QK_INLINE void gemmf16_rows(const int rows, const qk_dtype type, size_t k, const float *a, size_t lda,
                                   const uint16_t *panel, size_t col, float *y)
{
    enum { NC = QK_GEMMF16_NR };
    const float *a1 = a + lda, *a2 = a1 + lda, *a3 = a2 + lda, *a4 = a3 + lda, *a5 = a4 + lda;
    float_sums c0 = load_float_sums(y), c1, c2, c3, c4, c5;
    if (rows > 1) c1 = load_float_sums(y + NC);
    if (rows > 2) c2 = load_float_sums(y + 2 * NC);
    if (rows > 3) c3 = load_float_sums(y + 3 * NC);
    if (rows > 4) c4 = load_float_sums(y + 4 * NC);
    if (rows > 5) c5 = load_float_sums(y + 5 * NC);
    for (size_t i = 0; i < k; i++, panel += type == QK_F32 ? 2 * NC : NC) {
        const float_sums b = row_of_floats(panel, col, type);
        c0 = add_floats(c0, b, a + i);
        if (rows > 1) c1 = add_floats(c1, b, a1 + i);
        if (rows > 2) c2 = add_floats(c2, b, a2 + i);
        QK_IN_ORDER;
        if (rows > 3) c3 = add_floats(c3, b, a3 + i);
        if (rows > 4) c4 = add_floats(c4, b, a4 + i);
        if (rows > 5) c5 = add_floats(c5, b, a5 + i);
    }
    store_float_sums(y, c0);
    if (rows > 1) store_float_sums(y + NC, c1);
    if (rows > 2) store_float_sums(y + 2 * NC, c2);
    if (rows > 3) store_float_sums(y + 3 * NC, c3);
    if (rows > 4) store_float_sums(y + 4 * NC, c4);
    if (rows > 5) store_float_sums(y + 5 * NC, c5);
}

static QK_INLINE void gemmf16_tile_of(const qk_dtype type, int rows, size_t k, const float *a, size_t lda,
                                      const uint16_t *panel, float *y)
{
    for (size_t col = 0; col < 16; col += 8) ROWS_6(rows, gemmf16_rows, type, k, a, lda, panel, col, y + col);
}

static void gemmf16_tile(int rows, size_t k, const float *a, size_t lda, const uint16_t *panel, qk_dtype type, int more,
                         float *y)
{
    if (!more) memset(y, 0, (size_t)rows * QK_GEMMF16_NR * sizeof *y);
    if (type == QK_F32)
        gemmf16_tile_of(QK_F32, rows, k, a, lda, panel, y);
    else if (type == QK_F16)
        gemmf16_tile_of(QK_F16, rows, k, a, lda, panel, y);
    else
        gemmf16_tile_of(QK_BF16, rows, k, a, lda, panel, y);
}

static void gemmf16_row(int panels, size_t k, const float *a, const uint16_t *panel, qk_dtype type, float *y)
{
    for (int i = 0; i < panels; i++)
        gemmf16_tile(1, k, a, 0, panel + (size_t)i * k * QK_GEMMF16_NR, type, 0, y + i * QK_GEMMF16_NR);
}

#include "kernels/generic/table.h"
static const qk_gemm8_kernels gemm8 = {
#include "kernels/families/gemm8.def"
};
static const qk_folded_kernels folded = {
#include "kernels/families/folded.def"
};
static const qk_conv_kernels conv = {
#include "kernels/families/conv.def"
};
static const qk_gemm4_kernels gemm4 = {
#include "kernels/families/gemm4.def"
};
static const qk_blocks8_kernels blocks8 = {
#include "kernels/families/blocks8.def"
};
const qk_gemm16_kernels qk_gemm16_neon = {
#include "kernels/families/gemm16.def"
};
const qk_gemmf16_kernels qk_gemmf16_neon = {
#include "kernels/families/gemmf16.def"
};
const qk_elementwise_kernels qk_elementwise_neon = {
#include "kernels/families/elementwise.def"
};
const qk_codebooks_kernels qk_codebooks_neon = {
#include "kernels/families/codebooks.def"
};
const qk_layers_kernels qk_layers_neon = {
#include "kernels/families/layers.def"
};
const qk_kmeans_kernels qk_kmeans_neon = {
#include "kernels/families/kmeans.def"
};
const qk_pq_kernels qk_pq_neon = {
#include "kernels/families/pq.def"
};
const qk_histogram_kernels qk_histogram_neon = {
#include "kernels/families/histogram.def"
};

#define PEAK_IN_TWO 1
#define PEAK_VECTOR uint32x4_t
#define PEAK_PRODUCTS 8
static QK_INLINE uint32x4_t peak_step(uint32x4_t sums, uint32x4_t a, uint32x4_t b)
{
    return vpadalq_u16(sums, vmull_u8(vget_low_u8(vreinterpretq_u8_u32(a)), vget_low_u8(vreinterpretq_u8_u32(b))));
}
#include "kernels/generic/peak.h"

const qk_kernels qk_kernels_neon = {
    .name = "neon",
    .available = available,
    .peak = peak,
    .gemm8 = &gemm8,
    .gemm4 = &gemm4,
    .blocks8 = &blocks8,
    .folded = &folded,
    .gemm8_folded = &gemm8,
    .gemm16 = &qk_gemm16_neon,
    .gemmf16 = &qk_gemmf16_neon,
    .elementwise = &qk_elementwise_neon,
    .codebooks = &qk_codebooks_neon,
    .layers = &qk_layers_neon,
    .kmeans = &qk_kmeans_neon,
    .pq = &qk_pq_neon,
    .histogram = &qk_histogram_neon,
    .conv = &conv,
};
#endif
