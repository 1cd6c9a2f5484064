/* NEON with products of 8-bit matrices (Neoverse V1 and N2, Cortex-A710 and later, Apple's from M2 on).
 *
 * usmmla: 2 rows x 8 unsigned bytes by 8 signed bytes x 2 columns, the 4 sums added to int32 (numerics 6): 32 products
 * an instruction, twice those of udot. Neoverse V1 issues four a cycle. A register of b has 8 codes of two columns, one
 * of a 8 codes of two rows, which one instruction more brings together.
 *
 * Tile: 6 rows x 16 columns, 24 accumulators of 2 rows and 2 columns; 3 registers hold a, the others b as it comes. One
 * step takes 8 codes of k: 8 loads of b, 6 of a, 3 to pair rows, 24 usmmla.
 *
 *             b0 (2 columns)   ..   b7
 *     a0, 1   p00              ..   p07
 *     a2, 3   p10              ..   p17
 *     a4, 5   p20              ..   p27
 */
#if defined(__aarch64__)
#include "kernels/arm/cpu.h"
#include "kernels/arm/target.h"
#include "kernels/kernels.h"
#include "runtime/compiler.h"

static int available(void) { return qk_has_dotprod() && qk_has_i8mm(); }

QK_TARGET_BEGIN("arch=armv8.2-a+dotprod+i8mm")

#define WITH_DOTPROD 1
#define WITH_I8MM 1
#define MR 6
#define NR 16
#define KR 8
#define FOLDED_MR 3
#define UNFOLD_ROWS 4
#define UNFOLD_PANEL unfold_panel
#define DEPTHWISE_TAPS 4
#define DEPTHWISE_CODES depthwise_codes
#include "kernels/generic/gemm8.h"

/* Panels may come from the L3 cache or from memory. */
enum { AHEAD = 32 * NR * KR };

/* Sums of two rows and 16 columns: columns 2 i and 2 i + 1 of the first, then of the second. */
typedef struct {
    int32x4_t p0, p1, p2, p3, p4, p5, p6, p7;
} pair_sums;

static QK_INLINE uint64x2_t load8(const uint8_t *a)
{
    return vcombine_u64(vreinterpret_u64_u8(vld1_u8(a)), vdup_n_u64(0));
}

/* 8 codes of two rows: by zip1, which any of the vector pipes does. */
static QK_INLINE uint8x16_t load_pair(const uint8_t *a, const uint8_t *next)
{
    return vreinterpretq_u8_u64(vzip1q_u64(load8(a), load8(next)));
}

static QK_INLINE pair_sums start_pair(const int32_t *init)
{
    const int32x4_t i0 = vld1q_s32(init), i1 = vld1q_s32(init + 4), i2 = vld1q_s32(init + 8), i3 = vld1q_s32(init + 12);
    return (pair_sums){
        vcombine_s32(vget_low_s32(i0), vget_low_s32(i0)), vcombine_s32(vget_high_s32(i0), vget_high_s32(i0)),
        vcombine_s32(vget_low_s32(i1), vget_low_s32(i1)), vcombine_s32(vget_high_s32(i1), vget_high_s32(i1)),
        vcombine_s32(vget_low_s32(i2), vget_low_s32(i2)), vcombine_s32(vget_high_s32(i2), vget_high_s32(i2)),
        vcombine_s32(vget_low_s32(i3), vget_low_s32(i3)), vcombine_s32(vget_high_s32(i3), vget_high_s32(i3)),
    };
}

static QK_INLINE void store_first(int32_t *c, pair_sums s)
{
    vst1_s32(c, vget_low_s32(s.p0)), vst1_s32(c + 2, vget_low_s32(s.p1));
    vst1_s32(c + 4, vget_low_s32(s.p2)), vst1_s32(c + 6, vget_low_s32(s.p3));
    vst1_s32(c + 8, vget_low_s32(s.p4)), vst1_s32(c + 10, vget_low_s32(s.p5));
    vst1_s32(c + 12, vget_low_s32(s.p6)), vst1_s32(c + 14, vget_low_s32(s.p7));
}

static QK_INLINE void store_second(int32_t *c, pair_sums s)
{
    vst1_s32(c, vget_high_s32(s.p0)), vst1_s32(c + 2, vget_high_s32(s.p1));
    vst1_s32(c + 4, vget_high_s32(s.p2)), vst1_s32(c + 6, vget_high_s32(s.p3));
    vst1_s32(c + 8, vget_high_s32(s.p4)), vst1_s32(c + 10, vget_high_s32(s.p5));
    vst1_s32(c + 12, vget_high_s32(s.p6)), vst1_s32(c + 14, vget_high_s32(s.p7));
}

/* Two columns of a step, of all rows. */
#define MULTIPLY_ADD(i)                                                                                                \
    b = vld1q_s8(panel + 16 * i), c0.p##i = vusmmlaq_s32(c0.p##i, v0, b);                                              \
    if (rows > 2) c2.p##i = vusmmlaq_s32(c2.p##i, v2, b);                                                              \
    if (rows > 4) c4.p##i = vusmmlaq_s32(c4.p##i, v4, b)

/* `rows` is a constant where this is inlined: the accumulators of absent rows vanish. The last of an odd number of rows
 * is its own partner. */
static QK_INLINE void tile(const int rows, size_t steps, const uint8_t *a, size_t lda, const int8_t *panel,
                           const int32_t *init, int32_t *c, size_t ldc)
{
    const uint8_t *a1 = rows > 1 ? a + lda : a, *a2 = a + 2 * lda, *a3 = rows > 3 ? a2 + lda : a2, *a4 = a + 4 * lda,
                  *a5 = rows > 5 ? a4 + lda : a4;
    pair_sums c0 = start_pair(init), c2 = c0, c4 = c0;
    for (; steps; steps--, panel += NR * KR) {
        uint8x16_t v0 = load_pair(a, a1), v2 = v0, v4 = v0;
        int8x16_t b;
        if (rows > 2) v2 = load_pair(a2, a3);
        if (rows > 4) v4 = load_pair(a4, a5);
        if (rows > 3) __builtin_prefetch(panel + AHEAD), __builtin_prefetch(panel + AHEAD + 64);
        MULTIPLY_ADD(0);
        MULTIPLY_ADD(1);
        QK_IN_ORDER;
        MULTIPLY_ADD(2);
        MULTIPLY_ADD(3);
        QK_IN_ORDER;
        MULTIPLY_ADD(4);
        MULTIPLY_ADD(5);
        QK_IN_ORDER;
        MULTIPLY_ADD(6);
        MULTIPLY_ADD(7);
        a += KR, a1 += KR, a2 += KR, a3 += KR, a4 += KR, a5 += KR;
    }
    store_first(c, c0);
    if (rows > 1) store_second(c + ldc, c0);
    if (rows > 2) store_first(c + 2 * ldc, c2);
    if (rows > 3) store_second(c + 3 * ldc, c2);
    if (rows > 4) store_first(c + 4 * ldc, c4);
    if (rows > 5) store_second(c + 5 * ldc, c4);
}

static void gemm8_tile(int rows, size_t steps, const void *a, size_t lda, const int8_t *panel, const int32_t *init,
                       int32_t *c, size_t ldc)
{
    ROWS_6(rows, tile, steps, a, lda, panel, init, c, ldc);
}

static void gemm8_pack_row(const uint8_t *a, size_t n, size_t n_pad, uint8_t flip, void *to)
{
    pack_row_bytes(a, n, n_pad, flip, to);
}

#include "kernels/arm/folded.h"
#include "kernels/generic/depthwise.h"

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

#define PEAK_VECTOR int32x4_t
#define PEAK_PRODUCTS 32
static QK_INLINE int32x4_t peak_step(int32x4_t sums, int32x4_t a, int32x4_t b)
{
    return vusmmlaq_s32(sums, vreinterpretq_u8_s32(a), vreinterpretq_s8_s32(b));
}
#include "kernels/generic/peak.h"

const qk_kernels qk_kernels_neon_i8mm = {
    .name = "neon_i8mm",
    .available = available,
    .peak = peak,
    .gemm8 = &gemm8,
    .gemm4 = &qk_gemm4_neon_dotprod,
    .blocks8 = &qk_blocks8_neon_dotprod,
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

QK_TARGET_END
#endif
